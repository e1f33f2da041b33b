//! Types that NFSv3 results are made of: nfsstat3, fattr3, post_op_attr, wcc_data, post_op_fh3.
//!
//! Read first: RFC 1813 sections 2.3 and 2.6.

use crate::program::handle::FileHandle;
use crate::rpc::xdr::Encoder;
use crate::store::{Attributes, ObjectKind, PreAttributes, Status, Timestamp, Wcc};

/// Most bytes each type takes.
pub const STATUS_BYTES: u32 = 4;
pub const FATTR3_BYTES: u32 = 84;
const FATTR3_WORDS: usize = FATTR3_BYTES as usize / 4;
pub const POST_OP_ATTR_BYTES: u32 = 4 + FATTR3_BYTES;
pub const WCC_DATA_BYTES: u32 = 4 + 24 + POST_OP_ATTR_BYTES;
pub const POST_OP_FH3_BYTES: u32 = 4 + 4 + 64;

pub const NFS3_OK: u32 = 0;

/// nfsstat3 of RFC 1813 section 2.6.
pub const fn nfsstat3(status: Status) -> u32 {
    match status {
        Status::NotOwner => 1,
        Status::NoEntry => 2,
        Status::Io => 5,
        Status::NoDeviceAddress => 6,
        Status::AccessDenied => 13,
        Status::Exists => 17,
        Status::CrossDevice => 18,
        Status::NoDevice => 19,
        Status::NotDirectory => 20,
        Status::IsDirectory => 21,
        Status::InvalidArgument => 22,
        Status::FileTooLarge => 27,
        Status::NoSpace => 28,
        Status::ReadOnly => 30,
        Status::TooManyLinks => 31,
        Status::NameTooLong => 63,
        Status::NotEmpty => 66,
        Status::QuotaExceeded => 69,
        Status::Stale => 70,
        Status::BadHandle => 10001,
        Status::NotSync => 10002,
        Status::BadCookie => 10003,
        Status::NotSupported => 10004,
        Status::TooSmall => 10005,
        Status::ServerFault => 10006,
        Status::BadType => 10007,
        Status::Delay => 10008,
    }
}

/// ftype3 of RFC 1813 section 2.3.5.
fn ftype3(kind: ObjectKind) -> u32 {
    match kind {
        ObjectKind::File => 1,
        ObjectKind::Directory => 2,
        ObjectKind::BlockDevice => 3,
        ObjectKind::CharacterDevice => 4,
        ObjectKind::Symlink => 5,
        ObjectKind::Socket => 6,
        ObjectKind::Fifo => 7,
    }
}

fn nfstime3(time: &Timestamp) -> [u32; 2] {
    // It counts unsigned seconds: times before 1970 or after 2106 wrap, as they do in the Linux server.
    [time.seconds as u32, time.nanoseconds]
}

pub fn time(e: &mut Encoder<'_>, time: &Timestamp) {
    e.words(nfstime3(time));
}

/// The words of a fattr3.
#[inline]
fn fattr3_words(a: &Attributes) -> [u32; FATTR3_WORDS] {
    let (high, low) = (|value: u64| (value >> 32) as u32, |value: u64| value as u32);
    let [[accessed, accessed_ns], [modified, modified_ns], [changed, changed_ns]] =
        [a.accessed, a.modified, a.changed].map(|at| nfstime3(&at));
    [
        ftype3(a.kind),
        a.mode,
        a.links,
        a.uid,
        a.gid,
        high(a.size),
        low(a.size),
        high(a.used),
        low(a.used),
        a.device.0,
        a.device.1,
        high(a.file_system),
        low(a.file_system),
        high(a.file_id),
        low(a.file_id),
        accessed,
        accessed_ns,
        modified,
        modified_ns,
        changed,
        changed_ns,
    ]
}

pub fn fattr3(e: &mut Encoder<'_>, attributes: &Attributes) {
    // In one piece, because every reply but NULL's has it.
    e.words(fattr3_words(attributes));
}

pub fn post_op_attr(e: &mut Encoder<'_>, attributes: Option<&Attributes>) {
    let Some(attributes) = attributes else { return e.bool(false) };
    let mut words = [1; 1 + FATTR3_WORDS];
    words[1..].copy_from_slice(&fattr3_words(attributes));
    e.words(words);
}

fn pre_op_attr(e: &mut Encoder<'_>, before: Option<&PreAttributes>) {
    e.bool(before.is_some());
    if let Some(before) = before {
        e.u64(before.size);
        time(e, &before.modified);
        time(e, &before.changed);
    }
}

pub fn wcc_data(e: &mut Encoder<'_>, wcc: &Wcc) {
    pre_op_attr(e, wcc.before.as_ref());
    post_op_attr(e, wcc.after.as_ref());
}

pub fn post_op_fh3(e: &mut Encoder<'_>, handle: &FileHandle) {
    e.bool(true);
    e.opaque(handle.as_bytes());
}
