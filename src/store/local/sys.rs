//! The host's file handles, attributes and errors in the words of `store::types`.

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, ResolveFlags, Statx, StatxFlags, StatxTimestamp};
use rustix::io::Errno;
use rustix::process::{Resource, Rlimit};

use super::OpenError;
use crate::raw::syscall::{self, KernelHandle};
use crate::store::{Attributes, ObjectId, ObjectKind, Status, Timestamp};

/// An `ObjectId` is the type of the handle (one byte) and its bytes.
pub fn object_id(handle: &KernelHandle) -> Option<ObjectId> {
    let mut bytes = smallvec::SmallVec::<[u8; 64]>::new();
    bytes.push(u8::try_from(handle.kind).ok()?);
    bytes.extend_from_slice(handle.as_bytes());
    ObjectId::new(&bytes)
}

fn kernel_handle(id: &ObjectId) -> Result<KernelHandle, Status> {
    let (kind, bytes) = id.as_bytes().split_first().ok_or(Status::BadHandle)?;
    KernelHandle::new(i32::from(*kind), bytes).ok_or(Status::BadHandle)
}

pub fn open_root(path: &Path) -> Result<(OwnedFd, ObjectId), OpenError> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root = rustix::fs::openat(CWD, path, flags, Mode::empty())
        .map_err(|error| OpenError::Path { path: path.into(), error: error.into() })?;
    let handles = |error| OpenError::Handles { path: path.into(), error };
    let (handle, _) = syscall::name_to_handle(root.as_fd(), c"").map_err(handles)?;
    let id = object_id(&handle).ok_or_else(|| handles(io::Error::other("they are too long for NFSv3")))?;
    syscall::open_by_handle(root.as_fd(), &handle, OFlags::PATH).map_err(|error| match error.raw_os_error() {
        Some(libc::EPERM) => OpenError::Capability { error },
        _ => handles(error),
    })?;
    Ok((root, id))
}

/// Raises the soft limit of open files to the hard limit, which must be at least `needed`; the error is the limit that forbids
/// it. To the hard limit, because each store of the process comes with needs of its own.
pub fn allow_open_files(needed: u64) -> Result<(), u64> {
    let limit = rustix::process::getrlimit(Resource::Nofile);
    let current = limit.maximum.map_or(needed, |maximum| maximum.max(needed));
    if limit.current.is_none_or(|now| now >= current) {
        return Ok(());
    }
    let raised = Rlimit { current: Some(current), maximum: limit.maximum };
    rustix::process::setrlimit(Resource::Nofile, raised).map_err(|_| limit.maximum.or(limit.current).unwrap_or(0))
}

/// Opens an object by its identity. The caller must be root at this moment.
pub fn open(root: BorrowedFd<'_>, id: &ObjectId, flags: OFlags) -> Result<OwnedFd, Status> {
    let handle = kernel_handle(id)?;
    syscall::open_by_handle(root, &handle, flags).map_err(|error| match error.raw_os_error() {
        // The kernel's words for a handle it cannot decode, or whose object is gone.
        Some(libc::ESTALE | libc::ENOENT | libc::EINVAL) => Status::Stale,
        // A symbolic link or device opened for data.
        Some(libc::ELOOP | libc::ENXIO) => Status::InvalidArgument,
        _ => status(&error),
    })
}

/// The flags to open `name` in a directory without following anything or leaving the mount.
pub fn open_name(directory: impl AsFd, name: &CStr) -> Result<OwnedFd, Status> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let resolve = ResolveFlags::NO_XDEV | ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
    Ok(rustix::fs::openat2(directory, name, flags, Mode::empty(), resolve)?)
}

fn timestamp(t: StatxTimestamp) -> Timestamp {
    Timestamp { seconds: t.tv_sec, nanoseconds: t.tv_nsec }
}

fn attributes_of(file_system: u64, s: &Statx) -> Attributes {
    let mode = u32::from(s.stx_mode);
    let kind = match FileType::from_raw_mode(mode) {
        FileType::Directory => ObjectKind::Directory,
        FileType::Symlink => ObjectKind::Symlink,
        FileType::BlockDevice => ObjectKind::BlockDevice,
        FileType::CharacterDevice => ObjectKind::CharacterDevice,
        FileType::Socket => ObjectKind::Socket,
        FileType::Fifo => ObjectKind::Fifo,
        _ => ObjectKind::File,
    };
    Attributes {
        kind,
        mode: mode & 0o7777,
        links: s.stx_nlink,
        uid: s.stx_uid,
        gid: s.stx_gid,
        size: s.stx_size,
        used: s.stx_blocks * 512,
        device: (s.stx_rdev_major, s.stx_rdev_minor),
        file_system,
        file_id: s.stx_ino,
        accessed: timestamp(s.stx_atime),
        modified: timestamp(s.stx_mtime),
        changed: timestamp(s.stx_ctime),
    }
}

pub fn attributes(fd: impl AsFd, file_system: u64) -> Result<Attributes, Status> {
    let s = rustix::fs::statx(fd, c"", AtFlags::EMPTY_PATH, StatxFlags::BASIC_STATS)?;
    Ok(attributes_of(file_system, &s))
}

/// Identity of an open object.
pub fn identity(fd: impl AsFd) -> Result<ObjectId, Status> {
    let (handle, _) = syscall::name_to_handle(fd.as_fd(), c"").map_err(|error| status(&error))?;
    object_id(&handle).ok_or(Status::ServerFault)
}

impl From<Errno> for Status {
    fn from(errno: Errno) -> Status {
        from_errno(errno.raw_os_error())
    }
}

pub fn status(error: &io::Error) -> Status {
    error.raw_os_error().map_or(Status::Io, from_errno)
}

/// errno(3) as nfsstat3, as the Linux server maps it (nfserrno).
fn from_errno(errno: i32) -> Status {
    match errno {
        libc::EPERM => Status::NotOwner,
        libc::ENOENT => Status::NoEntry,
        libc::ENXIO => Status::NoDeviceAddress,
        libc::EACCES | libc::EBUSY | libc::ETXTBSY => Status::AccessDenied,
        libc::EEXIST => Status::Exists,
        libc::EXDEV => Status::CrossDevice,
        libc::ENODEV => Status::NoDevice,
        libc::ENOTDIR => Status::NotDirectory,
        libc::EISDIR => Status::IsDirectory,
        libc::EINVAL | libc::ELOOP => Status::InvalidArgument,
        libc::EFBIG | libc::EOVERFLOW => Status::FileTooLarge,
        libc::ENOSPC => Status::NoSpace,
        libc::EROFS => Status::ReadOnly,
        libc::EMLINK => Status::TooManyLinks,
        libc::ENAMETOOLONG => Status::NameTooLong,
        libc::ENOTEMPTY => Status::NotEmpty,
        libc::EDQUOT => Status::QuotaExceeded,
        libc::ESTALE => Status::Stale,
        libc::EOPNOTSUPP => Status::NotSupported,
        libc::EAGAIN | libc::ENOMEM | libc::EMFILE | libc::ENFILE => Status::Delay,
        _ => Status::Io,
    }
}
