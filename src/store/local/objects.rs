//! Operations on one object: SETATTR, READLINK, FSSTAT, PATHCONF.
//!
//! Read first: RFC 1813 sections 3.3.2, 3.3.5, 3.3.18, 3.3.20; utimensat(2), chown(2), statvfs(3).

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use rustix::fs::{AtFlags, Gid, Mode, OFlags, Timespec, Timestamps, UTIME_NOW, UTIME_OMIT, Uid};

use super::inode::Inode;
use super::worker::{SELF, Step, Worker, descriptor_path};
use super::{Answer, failure, not_a_file, sys};
use crate::store::cache::lock;
use crate::store::{
    AttributeChanges, Attributes, Credential, Failure, FileSystemStatus, NAME_MAX, ObjectId, ObjectKind, Outcome, PathLimits,
    SetTime, Status, Timestamp, Wcc, permission,
};
use crate::time::Instant;

/// Hard links to a file, where the file system does not say: ext4's EXT4_LINK_MAX, the smallest of the common ones.
const LINKS_MAX: u32 = 65_000;

fn timespec(set: Option<SetTime>) -> Timespec {
    match set {
        None => Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT },
        Some(SetTime::ServerTime) => Timespec { tv_sec: 0, tv_nsec: UTIME_NOW },
        Some(SetTime::To(t)) => Timespec { tv_sec: t.seconds, tv_nsec: i64::from(t.nanoseconds) },
    }
}

/// Changes everything but the size, as whoever this thread is.
pub fn change(fd: &OwnedFd, kind: ObjectKind, changes: &AttributeChanges) -> Result<(), Status> {
    if changes.uid.is_some() || changes.gid.is_some() {
        let uid = changes.uid.map(Uid::from_raw);
        let gid = changes.gid.map(Gid::from_raw);
        rustix::fs::chownat(fd, SELF, uid, gid, AtFlags::EMPTY_PATH)?;
    }
    // The mode of a symbolic link means nothing on Linux, which cannot change it.
    if let Some(mode) = changes.mode
        && kind != ObjectKind::Symlink
    {
        rustix::fs::chmod(descriptor_path(fd), Mode::from_raw_mode(mode & 0o7777))?;
    }
    if changes.accessed.is_some() || changes.modified.is_some() {
        let times = Timestamps { last_access: timespec(changes.accessed), last_modification: timespec(changes.modified) };
        rustix::fs::utimensat(fd, SELF, &times, AtFlags::EMPTY_PATH)?;
    }
    Ok(())
}

/// Of what was asked for and is `allowed`, after the change of size: what the caller does, and what root does for it.
///
/// The kernel lets only owners set one time to now and leave the other (utimensat(2)), while RFC 1813 has clients do just that where somebody
/// who may write opens a file with O_TRUNC: an error then would come after the truncation. A new size brings the time of modification with it,
/// and takes set-id bits away, as a new owner does: a mode that only follows from those is not set.
fn what_is_left(asked: &AttributeChanges, allowed: &AttributeChanges) -> (AttributeChanges, AttributeChanges) {
    let mut as_caller = AttributeChanges { size: None, mode: allowed.mode.filter(|_| asked.mode.is_some()), ..*allowed };
    if asked.size.is_some() && as_caller.modified == Some(SetTime::ServerTime) {
        as_caller.modified = None;
    }
    let mut as_root = AttributeChanges::default();
    let is_now = |time: Option<SetTime>| time.is_none_or(|time| time == SetTime::ServerTime);
    if is_now(as_caller.accessed) && is_now(as_caller.modified) {
        (as_root.accessed, as_root.modified) = (as_caller.accessed.take(), as_caller.modified.take());
    }
    (as_caller, as_root)
}

impl Worker<'_> {
    pub(super) fn set_attributes(
        &self,
        now: Instant,
        caller: &Credential,
        object: &ObjectId,
        changes: &AttributeChanges,
        guard: Option<Timestamp>,
        held: Option<&Arc<Inode>>,
    ) -> Step {
        let inode = self.shared.intern(object);
        if changes.size.is_some() && !held.is_some_and(|held| Arc::ptr_eq(held, &inode)) {
            return Step::Exclusive(inode);
        }
        let changed = self.changing(object, now, |fd, before| {
            // RFC 1813 section 3.3.2: the guard is compared before anything changes.
            if guard.is_some_and(|guard| guard != before.changed) {
                return Err(Status::NotSync);
            }
            if *changes == AttributeChanges::default() {
                return Ok(());
            }
            let allowed = permission::may_change(before, caller, changes)?;
            if let Some(size) = changes.size {
                self.resize(caller, object, size)?;
            }
            let (as_caller, as_root) = what_is_left(changes, &allowed);
            self.act_as(caller, || change(fd, before.kind, &as_caller))?;
            change(fd, before.kind, &as_root)?;
            self.sync_object(object, before.kind)
        });
        Step::Done(changed.map(|((), wcc)| Outcome::Changed { wcc }))
    }

    /// Runs `f` on the open object between two looks at its attributes.
    pub(super) fn changing<T>(
        &self,
        object: &ObjectId,
        now: Instant,
        f: impl FnOnce(&OwnedFd, &Attributes) -> Result<T, Status>,
    ) -> Result<(T, Wcc), Failure> {
        let inode = self.shared.intern(object);
        let _change = lock(&inode.change);
        let opened = sys::open(self.shared.root_fd(), object, OFlags::PATH | OFlags::NOFOLLOW);
        if let Err(Status::Stale) = opened {
            self.shared.forget(object);
        }
        let fd = opened?;
        self.bracket(&inode, &fd, now, |before| f(&fd, before))
    }

    /// The same for an object that is open and whose `change` lock is held.
    pub(super) fn bracket<T>(
        &self,
        inode: &Arc<Inode>,
        fd: &OwnedFd,
        now: Instant,
        f: impl FnOnce(&Attributes) -> Result<T, Status>,
    ) -> Result<(T, Wcc), Failure> {
        let shared = self.shared;
        let since = shared.epochs.now();
        let before = sys::attributes(fd, shared.options.file_system)?;
        if before.links == 0 {
            shared.forget(&inode.id);
            return Err(Status::Stale.into());
        }
        lock(&inode.state).begin_change(since, before, now, &shared.epochs, &shared.counts);
        let result = f(&before);
        let after = sys::attributes(fd, shared.options.file_system).ok();
        lock(&inode.state).end_change(after, now, &shared.epochs);
        let wcc = Wcc { before: Some((&before).into()), after };
        result.map(|value| (value, wcc)).map_err(|status| Failure { status, wcc: [wcc, Wcc::default()] })
    }

    /// Changes the size of a file that is held exclusively, as `caller`: the kernel then takes set-id bits away.
    pub(super) fn resize(&self, caller: &Credential, object: &ObjectId, size: u64) -> Result<(), Status> {
        if i64::try_from(size).is_err() {
            return Err(Status::FileTooLarge);
        }
        let fd = sys::open(self.shared.root_fd(), object, OFlags::RDWR | OFlags::NOFOLLOW | OFlags::NONBLOCK)?;
        let result = self.act_as(caller, || Ok(rustix::fs::ftruncate(&fd, size)?));
        let inode = self.shared.intern(object);
        let mut state = lock(&inode.state);
        state.dirty = true;
        // The block with the new end goes too: what follows the end in it must read as zeroes when the file grows again.
        state.blocks.forget_from(size / self.shared.block_size());
        result
    }

    /// Attributes must be on storage before the reply (RFC 1813 section 4.8).
    pub(super) fn sync_object(&self, object: &ObjectId, kind: ObjectKind) -> Result<(), Status> {
        // Of the other kinds no descriptor that can be synced can be opened; their inode goes with the journal's next commit.
        if !self.shared.options.sync_metadata || !matches!(kind, ObjectKind::File | ObjectKind::Directory) {
            return Ok(());
        }
        let fd = sys::open(self.shared.root_fd(), object, OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK)?;
        let synced = rustix::fs::fsync(fd);
        if synced.is_err() && kind == ObjectKind::File {
            // It may have been data, and nobody is told of that again (fsync(2), NOTES).
            self.shared.data_lost_of(&self.shared.intern(object));
        }
        Ok(synced?)
    }

    pub(super) fn sync_opened(&self, fd: impl AsFd) -> Result<(), Status> {
        if self.shared.options.sync_metadata { Ok(rustix::fs::fsync(fd)?) } else { Ok(()) }
    }

    pub(super) fn read_link(&self, now: Instant, object: &ObjectId) -> Answer {
        let (_, attributes) = self.look(object, now)?;
        if attributes.kind != ObjectKind::Symlink {
            return Err(failure(Status::InvalidArgument, Some(&attributes)));
        }
        let known = |status| failure(status, Some(&attributes));
        let fd = sys::open(self.shared.root_fd(), object, OFlags::PATH | OFlags::NOFOLLOW).map_err(known)?;
        let target = rustix::fs::readlinkat(fd, SELF, Vec::new()).map_err(|errno| known(errno.into()))?;
        Ok(Outcome::LinkTarget { target: target.into_bytes(), attributes })
    }

    pub(super) fn file_system_status(&self, now: Instant, object: &ObjectId) -> Answer {
        let (_, attributes) = self.look(object, now)?;
        let s = rustix::fs::fstatvfs(self.shared.root_fd()).map_err(|errno| failure(errno.into(), Some(&attributes)))?;
        let status = FileSystemStatus {
            bytes_total: s.f_blocks.saturating_mul(s.f_frsize),
            bytes_free: s.f_bfree.saturating_mul(s.f_frsize),
            bytes_available: s.f_bavail.saturating_mul(s.f_frsize),
            files_total: s.f_files,
            files_free: s.f_ffree,
            files_available: s.f_favail,
        };
        Ok(Outcome::FileSystemStatus { status, attributes })
    }

    pub(super) fn path_limits(&self, now: Instant, object: &ObjectId) -> Answer {
        let (_, attributes) = self.look(object, now)?;
        let limits = PathLimits { links_max: LINKS_MAX, name_max: NAME_MAX as u32 };
        Ok(Outcome::PathLimits { limits, attributes })
    }

    /// What UNCHECKED create does to a file that exists: at most its size changes.
    pub(super) fn truncate_existing(
        &self,
        now: Instant,
        caller: &Credential,
        object: &ObjectId,
        size: u64,
    ) -> Result<(), Status> {
        let changed = self.changing(object, now, |_, before| {
            if before.kind != ObjectKind::File {
                return Err(not_a_file(before.kind));
            }
            permission::may_write(before, caller)?;
            self.resize(caller, object, size)?;
            self.sync_object(object, before.kind)
        });
        changed.map(|_| ()).map_err(|failure| failure.status)
    }
}
