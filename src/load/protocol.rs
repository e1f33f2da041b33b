//! NFSv3 from the client's side: calls as bytes, replies taken apart.
//!
//! Read first: RFC 5531 section 9 (rpc_msg), RFC 1813 section 3.3 (procedures), RFC 5531 section 11 (record marks).
//! A call's front, from the record mark to the verifier, is made once ([`CallFront`]) and copied; only the mark, the xid, the
//! procedure and the arguments differ. Deliberately not here: which call, when (`workload`, `pacing`); transport.

use crate::buf::View;
use crate::program::nfs3;
use crate::rpc::auth::{AUTH_NONE, AUTH_SYS};
use crate::rpc::call::RPC_VERSION;
use crate::rpc::record::{LAST_FRAGMENT, MARKER_LEN};
use crate::rpc::xdr::{Decoder, Encoder, XdrError, padding};

/// Longest file handle (RFC 1813 section 2.4, NFS3_FHSIZE).
pub const HANDLE_MAX: usize = 64;
/// Longest name that a call of this generator carries.
pub const NAME_MAX: usize = 255;
/// Bytes of the longest call, a WRITE's data apart: front, handle, name, words.
pub const CALL_BYTES_MAX: usize = 128 + 4 + HANDLE_MAX + 4 + 256 + 64;
/// Bytes of a reply in front of a READ's data: RPC header, status, attributes, count, eof, length.
pub const READ_HEAD_BYTES: usize = 24 + 4 + 4 + 84 + 4 + 4 + 4;

/// Bytes of names and attributes that one READDIRPLUS asks for at most (`maxcount`, RFC 1813 section 3.3.17).
pub const DIRECTORY_BYTES: u32 = 32 << 10;

/// fattr3 (RFC 1813 section 2.6).
const FATTR3_BYTES: usize = 84;
/// wcc_attr (RFC 1813 section 2.6).
const WCC_ATTR_BYTES: usize = 24;
/// NFS3_OK.
const OK: u32 = 0;

/// The procedures that a workload is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Verb {
    Null,
    Getattr,
    Lookup,
    Read,
    Write,
    Commit,
    ReadDirPlus,
    /// NULL on a connection that is opened for it.
    Connect,
}

impl Verb {
    pub const ALL: [Verb; 8] =
        [Verb::Null, Verb::Getattr, Verb::Lookup, Verb::Read, Verb::Write, Verb::Commit, Verb::ReadDirPlus, Verb::Connect];

    /// As in RFC 1813, but for the last.
    pub fn name(self) -> &'static str {
        match self {
            Verb::Null => "NULL",
            Verb::Getattr => "GETATTR",
            Verb::Lookup => "LOOKUP",
            Verb::Read => "READ",
            Verb::Write => "WRITE",
            Verb::Commit => "COMMIT",
            Verb::ReadDirPlus => "READDIRPLUS",
            Verb::Connect => "CONNECT",
        }
    }

    /// RFC 1813 section 3.3.
    pub fn procedure(self) -> u32 {
        match self {
            Verb::Null | Verb::Connect => 0,
            Verb::Getattr => 1,
            Verb::Lookup => 3,
            Verb::Read => 6,
            Verb::Write => 7,
            Verb::ReadDirPlus => 17,
            Verb::Commit => 21,
        }
    }
}

/// One call to make. `offset` and `count` mean what they mean in READ, WRITE and COMMIT.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Operation {
    pub verb: Verb,
    /// Number of a file of the working set.
    pub file: u32,
    pub offset: u64,
    pub count: u32,
    /// stable_how of a WRITE.
    pub stable: u32,
}

impl Operation {
    pub fn of(verb: Verb, file: u32) -> Operation {
        Operation { verb, file, offset: 0, count: 0, stable: 0 }
    }

    /// Bytes of file data behind the call's arguments.
    pub fn payload(&self) -> usize {
        if self.verb == Verb::Write { self.count as usize } else { 0 }
    }
}

/// What a call is about: handle and, for LOOKUP, directory and name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileEntry {
    pub name: String,
    pub handle: Vec<u8>,
}

/// The working set.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FileSet {
    /// Handle of the directory that the files are in.
    pub directory: Vec<u8>,
    pub files: Vec<FileEntry>,
}

/// The caller of every call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Caller {
    pub uid: u32,
    pub gid: u32,
}

/// The front of every call to one program: mark, xid, CALL, version, program, credential, verifier.
#[derive(Clone, Debug)]
pub struct CallFront {
    bytes: Vec<u8>,
}

/// Where the fields that differ lie in the front.
const XID_AT: usize = MARKER_LEN;
const PROCEDURE_AT: usize = MARKER_LEN + 20;

impl CallFront {
    /// `None` for `caller`: AUTH_NONE.
    pub fn new(program: u32, version: u32, caller: Option<&Caller>) -> CallFront {
        let mut room = [0; 128];
        let mut e = Encoder::new(&mut room);
        // Mark and xid, CALL, RPC version, program, version, procedure.
        for word in [0, 0, 0, RPC_VERSION, program, version, 0] {
            e.u32(word);
        }
        match caller {
            None => {
                e.u32(AUTH_NONE);
                e.u32(0);
            }
            Some(caller) => {
                // RFC 5531 appendix A: stamp, machine name, uid, gid, no further groups.
                let name = b"nfsplice-load";
                e.u32(AUTH_SYS);
                e.u32((5 * 4 + name.len() + padding(name.len())) as u32);
                e.u32(0);
                e.opaque(name);
                e.u32(caller.uid);
                e.u32(caller.gid);
                e.u32(0);
            }
        }
        e.u32(AUTH_NONE);
        e.u32(0);
        CallFront { bytes: e.written().to_vec() }
    }

    /// Writes the front of a call and lets `arguments` follow. Returns the bytes written; `payload` more bytes, and their padding,
    /// that the mark counts have to follow. `None` if the room is too small.
    pub fn encode(
        &self,
        room: &mut [u8],
        xid: u32,
        procedure: u32,
        payload: usize,
        arguments: impl FnOnce(&mut Encoder<'_>),
    ) -> Option<usize> {
        let (front, rest) = room.split_at_mut_checked(self.bytes.len())?;
        front.copy_from_slice(&self.bytes);
        front[PROCEDURE_AT..PROCEDURE_AT + 4].copy_from_slice(&procedure.to_be_bytes());
        front[XID_AT..XID_AT + 4].copy_from_slice(&xid.to_be_bytes());
        let mut e = Encoder::new(rest);
        arguments(&mut e);
        if e.overflowed() {
            return None;
        }
        let len = self.bytes.len() + e.position();
        let mark = LAST_FRAGMENT | (len - MARKER_LEN + payload + padding(payload)) as u32;
        front[..MARKER_LEN].copy_from_slice(&mark.to_be_bytes());
        Some(len)
    }
}

/// Writes the arguments of `operation`.
fn arguments(e: &mut Encoder<'_>, operation: &Operation, set: &FileSet) {
    let file = set.files.get(operation.file as usize);
    let handle = file.map_or(&[][..], |file| &file.handle);
    match operation.verb {
        Verb::Null | Verb::Connect => {}
        Verb::Getattr => e.opaque(handle),
        Verb::Lookup => {
            e.opaque(&set.directory);
            e.opaque(file.map_or("", |file| &file.name).as_bytes());
        }
        Verb::Read | Verb::Commit => {
            e.opaque(handle);
            e.u64(operation.offset);
            e.u32(operation.count);
        }
        Verb::Write => {
            e.opaque(handle);
            e.u64(operation.offset);
            e.u32(operation.count);
            e.u32(operation.stable);
            // The length of the data, which follow by reference.
            e.u32(operation.count);
        }
        Verb::ReadDirPlus => {
            e.opaque(&set.directory);
            // From the start: cookie and verifier 0 (RFC 1813 section 3.3.17).
            e.u64(0);
            e.u64(0);
            e.u32(DIRECTORY_BYTES / 4);
            e.u32(DIRECTORY_BYTES);
        }
    }
}

/// The fronts that a workload needs.
pub struct Calls3 {
    nfs: CallFront,
}

impl Calls3 {
    pub fn new(caller: &Caller) -> Calls3 {
        Calls3 { nfs: CallFront::new(nfs3::PROGRAM, nfs3::VERSION, Some(caller)) }
    }

    /// Writes a call but for a WRITE's data. See [`CallFront::encode`].
    pub fn encode(&self, room: &mut [u8], xid: u32, operation: &Operation, set: &FileSet) -> Option<usize> {
        let procedure = operation.verb.procedure();
        self.nfs.encode(room, xid, procedure, operation.payload(), |e| arguments(e, operation, set))
    }
}

/// What is wrong with a reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Not accepted, or accepted without success (RFC 5531 section 9): reply_stat and the stat that follows.
    Rejected { reply: u32, stat: u32 },
    /// nfsstat3 of RFC 1813 section 2.6, not NFS3_OK.
    Status(u32),
    /// Ends too early, or says what the protocol does not know.
    Malformed,
}

impl From<XdrError> for Fault {
    fn from(_: XdrError) -> Fault {
        Fault::Malformed
    }
}

/// What a good reply says.
#[derive(Clone, Copy)]
pub struct Outcome<'a> {
    /// Bytes read or written.
    pub count: u32,
    /// A READ's eof.
    pub eof: bool,
    /// A READ's data.
    pub data: View<'a>,
    /// writeverf3 of WRITE and COMMIT.
    pub verifier: Option<u64>,
}

/// The xid, and the results of a call that was carried out.
pub fn accepted(reply: View<'_>) -> Result<(u32, Decoder<'_>), Fault> {
    let mut d = Decoder::new(reply);
    let xid = d.u32()?;
    // msg_type REPLY.
    if d.u32()? != 1 {
        return Err(Fault::Malformed);
    }
    // MSG_DENIED: reject_stat follows.
    let reply_stat = d.u32()?;
    if reply_stat != 0 {
        return Err(Fault::Rejected { reply: reply_stat, stat: d.u32()? });
    }
    d.u32()?;
    d.opaque(crate::rpc::auth::AUTH_BODY_MAX)?;
    match d.u32()? {
        0 => Ok((xid, d)),
        stat => Err(Fault::Rejected { reply: reply_stat, stat }),
    }
}

pub fn post_op_attr(d: &mut Decoder<'_>) -> Result<(), XdrError> {
    if d.bool()? { d.skip(FATTR3_BYTES) } else { Ok(()) }
}

pub fn wcc_data(d: &mut Decoder<'_>) -> Result<(), XdrError> {
    if d.bool()? {
        d.skip(WCC_ATTR_BYTES)?;
    }
    post_op_attr(d)
}

/// Takes the reply to `operation` apart; its xid has been looked at.
pub fn outcome<'a>(reply: View<'a>, operation: &Operation) -> Result<Outcome<'a>, Fault> {
    let (_, mut d) = accepted(reply)?;
    let mut outcome = Outcome { count: 0, eof: false, data: View::from(&[][..]), verifier: None };
    if operation.verb.procedure() == 0 {
        return Ok(outcome);
    }
    let status = d.u32()?;
    if status != OK {
        return Err(Fault::Status(status));
    }
    match operation.verb {
        Verb::Null | Verb::Connect => {}
        Verb::Getattr => d.skip(FATTR3_BYTES)?,
        Verb::Lookup => {
            let handle = d.opaque(HANDLE_MAX)?;
            if handle.is_empty() {
                return Err(Fault::Malformed);
            }
            post_op_attr(&mut d)?;
            post_op_attr(&mut d)?;
        }
        Verb::Read => {
            post_op_attr(&mut d)?;
            outcome.count = d.u32()?;
            outcome.eof = d.bool()?;
            outcome.data = d.opaque(operation.count as usize)?;
            // RFC 1813 section 3.3.6: count is the number of bytes of data returned.
            if outcome.data.len() != outcome.count as usize {
                return Err(Fault::Malformed);
            }
        }
        Verb::Write => {
            wcc_data(&mut d)?;
            outcome.count = d.u32()?;
            // stable_how: at least as stable as was asked for (RFC 1813 section 3.3.7).
            if d.u32()? < operation.stable || outcome.count > operation.count {
                return Err(Fault::Malformed);
            }
            outcome.verifier = Some(d.u64()?);
        }
        Verb::Commit => {
            wcc_data(&mut d)?;
            outcome.verifier = Some(d.u64()?);
        }
        Verb::ReadDirPlus => read_directory(&mut d)?,
    }
    if d.remaining() != 0 {
        return Err(Fault::Malformed);
    }
    Ok(outcome)
}

/// READDIRPLUS3resok (RFC 1813 section 3.3.17): walked to its end, nothing kept.
fn read_directory(d: &mut Decoder<'_>) -> Result<(), XdrError> {
    post_op_attr(d)?;
    d.skip(8)?;
    // At most as many entries as the reply has bytes for: each step takes some.
    while d.bool()? {
        d.skip(8)?;
        d.string(NAME_MAX)?;
        d.skip(8)?;
        post_op_attr(d)?;
        if d.bool()? {
            d.opaque(HANDLE_MAX)?;
        }
    }
    d.bool().map(|_| ())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rpc::reply::encode_success;

    fn set() -> FileSet {
        let file = FileEntry { name: "f0".into(), handle: vec![7; 28] };
        FileSet { directory: vec![9; 28], files: vec![file] }
    }

    fn call(operation: &Operation) -> Vec<u8> {
        let mut room = [0; CALL_BYTES_MAX];
        let calls = Calls3::new(&Caller { uid: 5, gid: 6 });
        let len = calls.encode(&mut room, 0x1234, operation, &set()).unwrap();
        room[..len].to_vec()
    }

    #[test]
    fn a_call_is_what_the_server_reads() {
        use crate::rpc::auth::{Credential, authenticate};
        let read = Operation { verb: Verb::Read, file: 0, offset: 1 << 40, count: 4096, stable: 0 };
        let bytes = call(&read);
        assert_eq!(u32::from_be_bytes(bytes[..4].try_into().unwrap()), LAST_FRAGMENT | (bytes.len() as u32 - 4));
        let mut d = Decoder::new(View::from(&bytes[4..]));
        let words: Vec<u32> = (0..6).map(|_| d.u32().unwrap()).collect();
        assert_eq!(words, [0x1234, 0, 2, 100_003, 3, 6]);
        let Ok(Credential::Sys(caller)) = authenticate(&mut d) else { panic!("AUTH_SYS") };
        assert_eq!((caller.uid, caller.gid), (5, 6));
        assert_eq!(d.opaque(64).unwrap().to_vec(), [7; 28]);
        assert_eq!((d.u64(), d.u32(), d.remaining()), (Ok(1 << 40), Ok(4096), 0));
    }

    #[test]
    fn the_mark_of_a_write_counts_its_data_and_their_padding() {
        let write = Operation { verb: Verb::Write, file: 0, offset: 0, count: 5, stable: 2 };
        let bytes = call(&write);
        let mark = u32::from_be_bytes(bytes[..4].try_into().unwrap());
        assert_eq!(mark, LAST_FRAGMENT | (bytes.len() as u32 - 4 + 8));
    }

    #[test]
    fn every_call_fits_its_room_with_the_longest_handle_and_name() {
        let longest = FileEntry { name: "n".repeat(NAME_MAX), handle: vec![1; HANDLE_MAX] };
        let set = FileSet { directory: vec![2; HANDLE_MAX], files: vec![longest] };
        let calls = Calls3::new(&Caller { uid: 0, gid: 0 });
        for verb in Verb::ALL {
            let mut room = [0; CALL_BYTES_MAX];
            assert!(calls.encode(&mut room, 1, &Operation::of(verb, 0), &set).is_some(), "{verb:?}");
        }
    }

    fn reply(results: impl FnOnce(&mut Encoder<'_>)) -> Vec<u8> {
        let mut room = [0; 512];
        let mut e = Encoder::new(&mut room);
        encode_success(&mut e, 3);
        results(&mut e);
        e.written().to_vec()
    }

    #[test]
    fn a_read_gives_its_data_and_nothing_else_is_taken_for_one() {
        let read = Operation { verb: Verb::Read, file: 0, offset: 0, count: 8, stable: 0 };
        let good = |count: u32, data: &[u8]| {
            reply(|e| {
                e.u32(0);
                e.u32(0);
                e.u32(count);
                e.u32(1);
                e.opaque(data);
            })
        };
        let bytes = good(5, b"hello");
        let outcome = super::outcome(View::from(&bytes[..]), &read).ok().unwrap();
        assert_eq!((outcome.count, outcome.eof, outcome.data.to_vec()), (5, true, b"hello".to_vec()));
        for bad in [good(4, b"hello"), good(9, b"123456789"), [good(5, b"hello"), vec![0; 4]].concat()] {
            assert_eq!(super::outcome(View::from(&bad[..]), &read).err(), Some(Fault::Malformed));
        }
        for len in 0..bytes.len() {
            assert!(super::outcome(View::from(&bytes[..len]), &read).is_err(), "cut to {len} bytes");
        }
        let refused = reply(|e| e.u32(70));
        assert_eq!(super::outcome(View::from(&refused[..]), &read).err(), Some(Fault::Status(70)));
    }

    #[test]
    fn a_write_that_is_less_stable_than_asked_for_is_no_answer() {
        let write = Operation { verb: Verb::Write, file: 0, offset: 0, count: 8, stable: 2 };
        let answer = |count: u32, stable: u32| {
            reply(|e| {
                for word in [0, 0, 0, count, stable] {
                    e.u32(word);
                }
                e.u64(77);
            })
        };
        let bytes = answer(8, 2);
        let outcome = super::outcome(View::from(&bytes[..]), &write).ok().unwrap();
        assert_eq!((outcome.count, outcome.verifier), (8, Some(77)));
        for bad in [answer(8, 1), answer(9, 2)] {
            assert_eq!(super::outcome(View::from(&bad[..]), &write).err(), Some(Fault::Malformed));
        }
    }

    #[test]
    fn refusals_of_rpc_are_told_apart() {
        use crate::rpc::reply::{Rejection, encode_rejection};
        let mut room = [0; 64];
        let mut e = Encoder::new(&mut room);
        encode_rejection(&mut e, 3, Rejection::GarbageArguments);
        let null = Operation::of(Verb::Null, 0);
        let fault = outcome(View::from(e.written()), &null).err();
        assert_eq!(fault, Some(Fault::Rejected { reply: 0, stat: 4 }));
    }
}
