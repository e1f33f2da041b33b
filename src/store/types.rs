//! The words between the NFS programs and the stores: objects, attributes, operations, outcomes.
//!
//! Every NFSv3 procedure is exactly one `Operation`, so a call either is answered at once or parks once. Units: sizes and
//! offsets in bytes, times in seconds and nanoseconds since the epoch. Semantics follow RFC 1813 section 3 where a field
//! carries the name it has there.

use crate::buf::View;

/// Longest name of a directory entry, bytes (RFC 1813 leaves it to the server; Linux file systems have 255).
pub const NAME_MAX: usize = 255;
/// Longest target of a symbolic link, bytes (Linux PATH_MAX without its NUL).
pub const LINK_TARGET_MAX: usize = 4095;

/// The identity of an object inside one store: stable across restarts, meaningless to clients (they get it sealed in a
/// file handle, see `program::handle`).
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct ObjectId {
    len: u8,
    bytes: [u8; ObjectId::LEN_MAX],
}

impl ObjectId {
    /// Room in an NFSv3 file handle of 64 bytes after version, export and authentication code (`program::handle`).
    pub const LEN_MAX: usize = 44;

    /// `None` if there are more than `LEN_MAX` bytes.
    pub fn new(bytes: &[u8]) -> Option<ObjectId> {
        let mut id = ObjectId { len: u8::try_from(bytes.len()).ok()?, bytes: [0; ObjectId::LEN_MAX] };
        id.bytes.get_mut(..bytes.len())?.copy_from_slice(bytes);
        Some(id)
    }

    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes[..usize::from(self.len)]
    }
}

impl std::fmt::Debug for ObjectId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("ObjectId(")?;
        for byte in self.as_bytes() {
            write!(f, "{byte:02x}")?;
        }
        f.write_str(")")
    }
}

/// Who asks, after squashing: the store checks permissions as this user.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Credential {
    pub uid: u32,
    pub gid: u32,
    /// Supplementary groups (AUTH_SYS carries at most 16, RFC 5531 appendix A).
    pub groups: smallvec::SmallVec<[u32; 16]>,
}

impl Credential {
    pub fn is_root(&self) -> bool {
        self.uid == 0
    }

    pub fn in_group(&self, gid: u32) -> bool {
        self.gid == gid || self.groups.contains(&gid)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Timestamp {
    pub seconds: i64,
    pub nanoseconds: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ObjectKind {
    File,
    Directory,
    Symlink,
    BlockDevice,
    CharacterDevice,
    Socket,
    Fifo,
}

/// fattr3 of RFC 1813 section 2.3.5, wide enough for NFSv4.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attributes {
    pub kind: ObjectKind,
    /// Permission bits, 0..=0o7777.
    pub mode: u32,
    pub links: u32,
    pub uid: u32,
    pub gid: u32,
    pub size: u64,
    /// Bytes of storage in use.
    pub used: u64,
    /// Major and minor number of a device node.
    pub device: (u32, u32),
    /// Identity of the file system (the export; not st_dev, which changes over a reboot).
    pub file_system: u64,
    pub file_id: u64,
    pub accessed: Timestamp,
    pub modified: Timestamp,
    pub changed: Timestamp,
}

/// wcc_attr of RFC 1813 section 2.6.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PreAttributes {
    pub size: u64,
    pub modified: Timestamp,
    pub changed: Timestamp,
}

impl From<&Attributes> for PreAttributes {
    fn from(a: &Attributes) -> PreAttributes {
        PreAttributes { size: a.size, modified: a.modified, changed: a.changed }
    }
}

/// wcc_data of RFC 1813 section 2.6: what the object was before and is after an operation, where known.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Wcc {
    pub before: Option<PreAttributes>,
    pub after: Option<Attributes>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SetTime {
    ServerTime,
    To(Timestamp),
}

/// sattr3 of RFC 1813 section 2.3.6: only what is `Some` changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct AttributeChanges {
    pub mode: Option<u32>,
    pub uid: Option<u32>,
    pub gid: Option<u32>,
    pub size: Option<u64>,
    pub accessed: Option<SetTime>,
    pub modified: Option<SetTime>,
}

/// stable_how of RFC 1813 section 3.3.7.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stability {
    Unstable,
    DataSync,
    FileSync,
}

/// createhow3 of RFC 1813 section 3.3.8.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CreateHow {
    Unchecked(AttributeChanges),
    Guarded(AttributeChanges),
    /// The client's verifier; a second create with the same one finds the first one's file.
    Exclusive([u8; 8]),
}

/// What MKNOD makes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NodeKind {
    BlockDevice { major: u32, minor: u32 },
    CharacterDevice { major: u32, minor: u32 },
    Socket,
    Fifo,
}

/// The bits of ACCESS (RFC 1813 section 3.3.4).
pub mod access {
    pub const READ: u32 = 0x01;
    pub const LOOKUP: u32 = 0x02;
    pub const MODIFY: u32 = 0x04;
    pub const EXTEND: u32 = 0x08;
    pub const DELETE: u32 = 0x10;
    pub const EXECUTE: u32 = 0x20;
    pub const ALL: u32 = 0x3f;
}

/// One request to a store. Names are checked by the program: 1..=NAME_MAX bytes, no '/', no NUL, not "." or ".." where
/// that would make or remove an entry ("." and ".." reach the store only in `Lookup`).
#[derive(Clone, Copy)]
pub enum Operation<'a> {
    GetAttributes {
        object: ObjectId,
    },
    SetAttributes {
        object: ObjectId,
        changes: AttributeChanges,
        /// Refuse with `NotSync` unless the change time is this (sattrguard3).
        guard: Option<Timestamp>,
    },
    Lookup {
        directory: ObjectId,
        name: &'a [u8],
    },
    /// Answers with the subset of `mask` that is granted.
    Access {
        object: ObjectId,
        mask: u32,
    },
    ReadLink {
        object: ObjectId,
    },
    Read {
        object: ObjectId,
        offset: u64,
        count: u32,
    },
    Write {
        object: ObjectId,
        offset: u64,
        data: View<'a>,
        stability: Stability,
    },
    Create {
        directory: ObjectId,
        name: &'a [u8],
        how: CreateHow,
    },
    MakeDirectory {
        directory: ObjectId,
        name: &'a [u8],
        attributes: AttributeChanges,
    },
    Symlink {
        directory: ObjectId,
        name: &'a [u8],
        target: &'a [u8],
        attributes: AttributeChanges,
    },
    MakeNode {
        directory: ObjectId,
        name: &'a [u8],
        kind: NodeKind,
        attributes: AttributeChanges,
    },
    Remove {
        directory: ObjectId,
        name: &'a [u8],
    },
    RemoveDirectory {
        directory: ObjectId,
        name: &'a [u8],
    },
    Rename {
        from_directory: ObjectId,
        from_name: &'a [u8],
        to_directory: ObjectId,
        to_name: &'a [u8],
    },
    Link {
        object: ObjectId,
        directory: ObjectId,
        name: &'a [u8],
    },
    ReadDirectory {
        directory: ObjectId,
        /// 0 to start, else the cookie of the last entry the client has.
        cookie: u64,
        /// The verifier that came with that cookie; ignored for cookie 0.
        verifier: [u8; 8],
        /// Bounds what one answer may bring: names plus 24 bytes an entry, attributes apart.
        bytes_max: u32,
        entries_max: u32,
        /// Attributes and identity of each entry too (READDIRPLUS).
        with_attributes: bool,
    },
    /// FSSTAT: what changes with time.
    FileSystemStatus {
        object: ObjectId,
    },
    /// PATHCONF.
    PathLimits {
        object: ObjectId,
    },
    Commit {
        object: ObjectId,
        offset: u64,
        /// 0: to the end of the file.
        count: u32,
    },
}

/// One entry of a directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DirectoryEntry {
    pub file_id: u64,
    pub name: smallvec::SmallVec<[u8; 32]>,
    /// Where to go on after this entry; never 0, stable as long as the verifier is.
    pub cookie: u64,
    /// Only with `with_attributes`, and only if the entry could be looked up.
    pub object: Option<(ObjectId, Attributes)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct FileSystemStatus {
    pub bytes_total: u64,
    pub bytes_free: u64,
    pub bytes_available: u64,
    pub files_total: u64,
    pub files_free: u64,
    pub files_available: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PathLimits {
    pub links_max: u32,
    pub name_max: u32,
}

/// What an operation that succeeded found. The variant matches the operation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// GetAttributes.
    Attributes(Attributes),
    /// SetAttributes.
    Changed {
        wcc: Wcc,
    },
    /// Lookup.
    Found {
        object: ObjectId,
        attributes: Attributes,
        directory: Option<Attributes>,
    },
    /// Access.
    Granted {
        mask: u32,
        attributes: Attributes,
    },
    /// ReadLink.
    LinkTarget {
        target: Vec<u8>,
        attributes: Attributes,
    },
    /// Read. The data is in the gather list that was passed along: `count` bytes in all.
    Data {
        count: u32,
        end_of_file: bool,
        attributes: Attributes,
    },
    /// Write.
    Written {
        count: u32,
        stability: Stability,
        verifier: [u8; 8],
        wcc: Wcc,
    },
    /// Create, MakeDirectory, Symlink, MakeNode.
    Created {
        object: ObjectId,
        attributes: Attributes,
        directory: Wcc,
    },
    /// Remove, RemoveDirectory.
    Removed {
        directory: Wcc,
    },
    /// Rename.
    Renamed {
        from: Wcc,
        to: Wcc,
    },
    /// Link.
    Linked {
        attributes: Option<Attributes>,
        directory: Wcc,
    },
    /// ReadDirectory.
    Entries {
        entries: Vec<DirectoryEntry>,
        verifier: [u8; 8],
        end: bool,
        directory: Attributes,
    },
    FileSystemStatus {
        status: FileSystemStatus,
        attributes: Attributes,
    },
    PathLimits {
        limits: PathLimits,
        attributes: Attributes,
    },
    /// Commit.
    Committed {
        verifier: [u8; 8],
        wcc: Wcc,
    },
}

/// Why an operation failed, in the words of nfsstat3 (RFC 1813 section 2.6).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Status {
    NotOwner,
    NoEntry,
    Io,
    NoDeviceAddress,
    AccessDenied,
    Exists,
    CrossDevice,
    NoDevice,
    NotDirectory,
    IsDirectory,
    InvalidArgument,
    FileTooLarge,
    NoSpace,
    ReadOnly,
    TooManyLinks,
    NameTooLong,
    NotEmpty,
    QuotaExceeded,
    Stale,
    BadHandle,
    NotSync,
    BadCookie,
    /// Not even one entry of a directory fits in the answer (NFS3ERR_TOOSMALL); stores answer with no entries instead.
    TooSmall,
    NotSupported,
    ServerFault,
    BadType,
    /// Try again later (NFS3ERR_JUKEBOX): a bounded queue or budget is full.
    Delay,
}

/// A failure and what is known of the objects it concerned: the object or directory of the request first, for Rename the
/// target directory second, for Link the object first and the directory second.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Failure {
    pub status: Status,
    pub wcc: [Wcc; 2],
}

impl From<Status> for Failure {
    fn from(status: Status) -> Failure {
        Failure { status, wcc: [Wcc::default(); 2] }
    }
}
