//! Arguments of NFSv3 procedures: XDR to requests, and requests to operations of a store.
//!
//! Read first: RFC 1813 sections 2.3 (types), 3.2 (file names) and the argument structures in 3.3. Bytes behind the last
//! argument are tolerated, as the Linux server does.

use crate::buf::View;
use crate::program::exports::FILE_HANDLE_MAX;
use crate::rpc::xdr::{Decoder, XdrError};
use crate::store::{
    AttributeChanges, CreateHow, LINK_TARGET_MAX, NAME_MAX, NodeKind, ObjectId, Operation, SetTime, Stability, Status, Timestamp,
};

/// The largest offset and size that clients with a signed 64-bit off_t can name; also FSINFO's maxfilesize.
pub const OFFSET_MAX: u64 = i64::MAX as u64;

/// Why a call is not carried out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// The arguments do not decode: GARBAGE_ARGS.
    Garbage,
    /// They do, and get this answer.
    Status(Status),
}

impl From<XdrError> for Refusal {
    fn from(_: XdrError) -> Refusal {
        Refusal::Garbage
    }
}

impl From<Status> for Refusal {
    fn from(status: Status) -> Refusal {
        Refusal::Status(status)
    }
}

/// Room for handles and names that straddle received buffers; one per core, reused.
pub struct Scratch {
    pub handle: [u8; FILE_HANDLE_MAX],
    pub second_handle: [u8; FILE_HANDLE_MAX],
    pub first: [u8; NAME_MAX],
    pub second: [u8; NAME_MAX],
    pub target: [u8; LINK_TARGET_MAX],
}

impl Scratch {
    pub fn new() -> Scratch {
        let handle = [0; FILE_HANDLE_MAX];
        Scratch { handle, second_handle: handle, first: [0; NAME_MAX], second: [0; NAME_MAX], target: [0; LINK_TARGET_MAX] }
    }
}

/// Decoded arguments.
pub struct Request<'a> {
    pub handle: &'a [u8],
    /// RENAME's target directory, LINK's directory.
    pub second: Option<&'a [u8]>,
    pub verb: Verb<'a>,
}

/// What is asked for; handles, names and data lie in the received buffers or in `Scratch`.
#[derive(Clone, Copy)]
pub enum Verb<'a> {
    GetAttributes,
    SetAttributes { changes: AttributeChanges, guard: Option<Timestamp> },
    Lookup { name: &'a [u8] },
    Access { mask: u32 },
    ReadLink,
    Read { offset: u64, count: u32 },
    Write { offset: u64, stability: Stability, data: View<'a> },
    Create { name: &'a [u8], how: CreateHow },
    MakeDirectory { name: &'a [u8], attributes: AttributeChanges },
    Symlink { name: &'a [u8], target: &'a [u8], attributes: AttributeChanges },
    MakeNode { name: &'a [u8], kind: NodeKind, attributes: AttributeChanges },
    Remove { name: &'a [u8] },
    RemoveDirectory { name: &'a [u8] },
    Rename { from: &'a [u8], to: &'a [u8] },
    Link { name: &'a [u8] },
    ReadDirectory(Listing),
    Status,
    Limits,
    Commit { offset: u64, count: u32 },
}

/// Arguments of READDIR and READDIRPLUS.
#[derive(Clone, Copy)]
pub struct Listing {
    pub cookie: u64,
    pub verifier: [u8; 8],
    /// READDIRPLUS's dircount: bytes of file ids, names and cookies; for READDIR as much as `reply_max`.
    pub names_max: u32,
    /// Bytes of the whole READDIR3resok or READDIRPLUS3resok.
    pub reply_max: u32,
    pub plus: bool,
}

pub fn handle<'a>(d: &mut Decoder<'a>, scratch: &'a mut [u8; FILE_HANDLE_MAX]) -> Result<&'a [u8], Refusal> {
    // A longer one is not an nfs_fh3 (RFC 1813 section 2.3.3).
    d.opaque(FILE_HANDLE_MAX)?.contiguous_in(scratch).ok_or(Refusal::Garbage)
}

/// A file name. The Linux server drops calls with odd names as garbage; here the client is told what is wrong with it.
pub fn name<'a>(d: &mut Decoder<'a>, scratch: &'a mut [u8; NAME_MAX]) -> Result<Result<&'a [u8], Status>, Refusal> {
    let view = d.string(d.remaining())?;
    if view.len() > NAME_MAX {
        return Ok(Err(Status::NameTooLong));
    }
    let name: &[u8] = view.contiguous_in(scratch).ok_or(Refusal::Garbage)?;
    // RFC 1813 section 3.2: what a file system cannot store as one component.
    if name.is_empty() || name.contains(&b'/') || name.contains(&0) {
        return Ok(Err(Status::InvalidArgument));
    }
    Ok(Ok(name))
}

pub fn is_dots(name: &[u8]) -> bool {
    name == b"." || name == b".."
}

/// A name to be made, which "." and ".." always exist for.
pub fn new_name<'a>(d: &mut Decoder<'a>, scratch: &'a mut [u8; NAME_MAX]) -> Result<Result<&'a [u8], Status>, Refusal> {
    Ok(name(d, scratch)?.and_then(|name| if is_dots(name) { Err(Status::Exists) } else { Ok(name) }))
}

pub fn time(d: &mut Decoder<'_>) -> Result<Timestamp, Refusal> {
    let seconds = i64::from(d.u32()?);
    let nanoseconds = d.u32()?;
    Ok(Timestamp { seconds, nanoseconds })
}

/// set_atime and set_mtime of RFC 1813 section 2.3.6 (sattr3).
fn set_time(d: &mut Decoder<'_>) -> Result<Option<SetTime>, Refusal> {
    match d.u32()? {
        0 => Ok(None),
        1 => Ok(Some(SetTime::ServerTime)),
        2 => Ok(Some(SetTime::To(time(d)?))),
        _ => Err(Refusal::Garbage),
    }
}

pub fn changes(d: &mut Decoder<'_>) -> Result<AttributeChanges, Refusal> {
    let mode = d.optional(|d| d.u32())?.map(|mode| mode & 0o7777);
    let uid = d.optional(|d| d.u32())?;
    let gid = d.optional(|d| d.u32())?;
    let size = d.optional(|d| d.u64())?;
    let accessed = set_time(d)?;
    let modified = set_time(d)?;
    Ok(AttributeChanges { mode, uid, gid, size, accessed, modified })
}

/// Values that decode but that no object can have.
pub fn check_changes(changes: &AttributeChanges) -> Result<(), Status> {
    let nanoseconds_ok = [changes.accessed, changes.modified]
        .iter()
        .all(|time| !matches!(time, Some(SetTime::To(Timestamp { nanoseconds, .. })) if *nanoseconds > 999_999_999));
    // (uid_t)-1 means "leave it" to chown(2) and names nobody.
    if !nanoseconds_ok || changes.uid == Some(u32::MAX) || changes.gid == Some(u32::MAX) {
        return Err(Status::InvalidArgument);
    }
    if changes.size.is_some_and(|size| size > OFFSET_MAX) {
        return Err(Status::FileTooLarge);
    }
    Ok(())
}

impl<'a> Request<'a> {
    pub fn new(handle: &'a [u8], verb: Verb<'a>) -> Request<'a> {
        Request { handle, second: None, verb }
    }

    /// Whether a read-only export refuses it.
    pub fn modifies(&self) -> bool {
        match self.verb {
            Verb::GetAttributes
            | Verb::Lookup { .. }
            | Verb::Access { .. }
            | Verb::ReadLink
            | Verb::Read { .. }
            | Verb::ReadDirectory(_)
            | Verb::Status
            | Verb::Limits => false,
            Verb::SetAttributes { .. }
            | Verb::Write { .. }
            | Verb::Create { .. }
            | Verb::MakeDirectory { .. }
            | Verb::Symlink { .. }
            | Verb::MakeNode { .. }
            | Verb::Remove { .. }
            | Verb::RemoveDirectory { .. }
            | Verb::Rename { .. }
            | Verb::Link { .. }
            | Verb::Commit { .. } => true,
        }
    }

    /// The operation that answers the request. `second` is what the second handle led to, or `object` again.
    pub fn operation(&self, object: ObjectId, second: ObjectId) -> Operation<'a> {
        let directory = object;
        match self.verb {
            Verb::GetAttributes => Operation::GetAttributes { object },
            Verb::SetAttributes { changes, guard } => Operation::SetAttributes { object, changes, guard },
            Verb::Lookup { name } => Operation::Lookup { directory, name },
            Verb::Access { mask } => Operation::Access { object, mask },
            Verb::ReadLink => Operation::ReadLink { object },
            Verb::Read { offset, count } => Operation::Read { object, offset, count },
            Verb::Write { offset, stability, data } => Operation::Write { object, offset, data, stability },
            Verb::Create { name, how } => Operation::Create { directory, name, how },
            Verb::MakeDirectory { name, attributes } => Operation::MakeDirectory { directory, name, attributes },
            Verb::Symlink { name, target, attributes } => Operation::Symlink { directory, name, target, attributes },
            Verb::MakeNode { name, kind, attributes } => Operation::MakeNode { directory, name, kind, attributes },
            Verb::Remove { name } => Operation::Remove { directory, name },
            Verb::RemoveDirectory { name } => Operation::RemoveDirectory { directory, name },
            Verb::Rename { from, to } => {
                Operation::Rename { from_directory: object, from_name: from, to_directory: second, to_name: to }
            }
            Verb::Link { name } => Operation::Link { object, directory: second, name },
            Verb::ReadDirectory(listing) => super::directories::operation(directory, &listing),
            Verb::Status => Operation::FileSystemStatus { object },
            Verb::Limits => Operation::PathLimits { object },
            Verb::Commit { offset, count } => Operation::Commit { object, offset, count },
        }
    }
}
