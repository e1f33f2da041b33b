//! The table of NFSv3 procedures, in the manner of sunrpc: how each is decoded, encoded, cached, and how big it gets.
//!
//! Read first: RFC 1813 section 3.3. A procedure is one operation of a store; what happens between decoding and encoding is
//! the same for all and stands in the parent.

use super::Options;
use super::decode::{Listing, Refusal, Request, Scratch};
use super::encode::{self, POST_OP_ATTR_BYTES, POST_OP_FH3_BYTES, STATUS_BYTES, WCC_DATA_BYTES};
use super::{attributes, data, directories, filesystem, names};
use crate::program::handle::{FileHandle, HandleSeal};
use crate::rpc::xdr::{Decoder, Encoder};
use crate::store::{Failure, LINK_TARGET_MAX, ObjectId, Outcome, Status};

pub const READ: u32 = 6;

/// What a reply needs beside the store's outcome.
pub struct Reply<'a> {
    pub seal: &'a HandleSeal,
    pub export: u32,
    pub options: &'a Options,
    pub listing: Option<Listing>,
}

impl Reply<'_> {
    pub fn handle(&self, object: ObjectId) -> FileHandle {
        self.seal.seal(self.export, object)
    }
}

/// An outcome of another operation than the one that was started: a store's bug, answered as such.
pub fn unexpected() -> Result<(), Failure> {
    Err(Status::ServerFault.into())
}

/// What follows the status of a failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OnFailure {
    Nothing,
    Attributes,
    Wcc,
    TwoWccs,
    AttributesAndWcc,
}

pub struct Procedure {
    pub name: &'static str,
    pub decode: for<'a> fn(&mut Decoder<'a>, &'a mut Scratch) -> Result<Request<'a>, Refusal>,
    pub encode: fn(&mut Encoder<'_>, &Outcome, &Reply<'_>) -> Result<(), Failure>,
    pub on_failure: OnFailure,
    /// Not idempotent: the duplicate request cache keeps the reply. The same procedures as in the Linux server.
    pub caches_reply: bool,
    /// Most bytes of results; what the listings take is in `Options`.
    pub head_bytes_max: u32,
}

impl Procedure {
    /// Writes the status of a failure and what is known of its objects.
    pub fn encode_failure(&self, e: &mut Encoder<'_>, failure: &Failure) {
        let [first, second] = &failure.wcc;
        e.u32(encode::nfsstat3(failure.status));
        match self.on_failure {
            OnFailure::Nothing => {}
            OnFailure::Attributes => encode::post_op_attr(e, first.after.as_ref()),
            OnFailure::Wcc => encode::wcc_data(e, first),
            OnFailure::TwoWccs => {
                encode::wcc_data(e, first);
                encode::wcc_data(e, second);
            }
            OnFailure::AttributesAndWcc => {
                encode::post_op_attr(e, first.after.as_ref());
                encode::wcc_data(e, second);
            }
        }
    }
}

const CREATED_BYTES: u32 = STATUS_BYTES + POST_OP_FH3_BYTES + POST_OP_ATTR_BYTES + WCC_DATA_BYTES;
const WITH_ATTRIBUTES: u32 = STATUS_BYTES + POST_OP_ATTR_BYTES;
const WITH_WCC: u32 = STATUS_BYTES + WCC_DATA_BYTES;
/// The largest symbolic link, padded.
const LINK_BYTES: u32 = (LINK_TARGET_MAX as u32).next_multiple_of(4);

macro_rules! procedures {
    ($($name:literal $decode:path, $encode:path, $on_failure:ident, $caches_reply:literal, $head:expr;)*) => {
        &[$(Procedure {
            name: $name,
            decode: $decode,
            encode: $encode,
            on_failure: OnFailure::$on_failure,
            caches_reply: $caches_reply,
            head_bytes_max: $head,
        }),*]
    };
}

/// Procedures 1 to 21; NULL (0) has neither arguments nor results.
static PROCEDURES: &[Procedure] = procedures! {
    "GETATTR" attributes::decode_getattr, attributes::encode_getattr, Nothing, false, WITH_ATTRIBUTES;
    "SETATTR" attributes::decode_setattr, attributes::encode_setattr, Wcc, true, WITH_WCC;
    "LOOKUP" names::decode_lookup, names::encode_lookup, Attributes, false, WITH_ATTRIBUTES + POST_OP_FH3_BYTES + POST_OP_ATTR_BYTES;
    "ACCESS" attributes::decode_access, attributes::encode_access, Attributes, false, WITH_ATTRIBUTES + 4;
    "READLINK" data::decode_readlink, data::encode_readlink, Attributes, false, WITH_ATTRIBUTES + 4 + LINK_BYTES;
    "READ" data::decode_read, data::encode_read, Attributes, false, WITH_ATTRIBUTES + 12;
    "WRITE" data::decode_write, data::encode_write, Wcc, true, WITH_WCC + 16;
    "CREATE" names::decode_create, names::encode_created, Wcc, true, CREATED_BYTES;
    "MKDIR" names::decode_mkdir, names::encode_created, Wcc, true, CREATED_BYTES;
    "SYMLINK" names::decode_symlink, names::encode_created, Wcc, true, CREATED_BYTES;
    "MKNOD" names::decode_mknod, names::encode_created, Wcc, true, CREATED_BYTES;
    "REMOVE" names::decode_remove, names::encode_removed, Wcc, true, WITH_WCC;
    "RMDIR" names::decode_rmdir, names::encode_removed, Wcc, true, WITH_WCC;
    "RENAME" names::decode_rename, names::encode_rename, TwoWccs, true, WITH_WCC + WCC_DATA_BYTES;
    "LINK" names::decode_link, names::encode_link, AttributesAndWcc, true, WITH_WCC + POST_OP_ATTR_BYTES;
    "READDIR" directories::decode_readdir, directories::encode_entries, Attributes, false, STATUS_BYTES;
    "READDIRPLUS" directories::decode_readdirplus, directories::encode_entries, Attributes, false, STATUS_BYTES;
    "FSSTAT" filesystem::decode_fsstat, filesystem::encode_fsstat, Attributes, false, WITH_ATTRIBUTES + 52;
    "FSINFO" filesystem::decode_fsinfo, filesystem::encode_fsinfo, Attributes, false, WITH_ATTRIBUTES + 48;
    "PATHCONF" filesystem::decode_pathconf, filesystem::encode_pathconf, Attributes, false, WITH_ATTRIBUTES + 24;
    "COMMIT" data::decode_commit, data::encode_commit, Wcc, false, WITH_WCC + 8;
};

/// The procedure of a number other than 0; `None`: there is no such procedure.
pub fn procedure(number: u32) -> Option<&'static Procedure> {
    PROCEDURES.get((number as usize).checked_sub(1)?)
}

/// Whether a procedure's head grows with what the client asks for.
pub fn is_listing(number: u32) -> bool {
    matches!(number, 16 | 17)
}
