//! Operations on names: LOOKUP, CREATE, MKDIR, SYMLINK, MKNOD, REMOVE, RMDIR, RENAME, LINK.
//!
//! Read first: RFC 1813 sections 3.3.3, 3.3.8 to 3.3.15; openat2(2), rename(2), linkat(2).
//!
//! Locks: a directory's `change` lock is held from its attributes before to its attributes after; two directories are locked
//! in the order of their addresses. Of the objects that lose or gain a name no lock is taken, their change is only bracketed
//! (`inode`).

use std::ffi::CStr;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags};
use smallvec::SmallVec;

use super::inode::Inode;
use super::objects::change;
use super::worker::{New, Step, Worker, descriptor_path};
use super::{Answer, failure, sys};
use crate::store::cache::lock;
use crate::store::{
    AttributeChanges, Attributes, CreateHow, Credential, Failure, NodeKind, ObjectId, ObjectKind, Outcome, SetTime, Status,
    Timestamp, Wcc,
};
use crate::time::Instant;

/// Directories on the way from an object up to the root of the export.
const DEPTH_MAX: usize = 4096;
/// Bits of a verifier word that every file system keeps in the seconds of a time (the Linux server masks the same).
const VERIFIER_MASK: u32 = 0x7fff_ffff;
/// Set-user-id and set-group-id.
const SET_ID: u32 = 0o6000;

/// What CREATE came to.
enum Created {
    Object(ObjectId, Attributes),
    /// The existing file is to change its size and is busy.
    Wait(Arc<Inode>),
}

/// How an EXCLUSIVE create leaves its verifier in the file, as the Linux server does: words of it in the times' seconds.
fn verifier_times(verifier: [u8; 8]) -> (Timestamp, Timestamp) {
    let [a, b, c, d, e, f, g, h] = verifier;
    let time = |word: u32| Timestamp { seconds: i64::from(word & VERIFIER_MASK), nanoseconds: 0 };
    (time(u32::from_be_bytes([a, b, c, d])), time(u32::from_be_bytes([e, f, g, h])))
}

impl Worker<'_> {
    pub(super) fn object(&self, fd: &OwnedFd, now: Instant) -> Result<(ObjectId, Attributes), Status> {
        let since = self.shared.epochs.now();
        let id = sys::identity(fd)?;
        let attributes = sys::attributes(fd, self.shared.options.file_system)?;
        self.saw(&id, since, attributes, now);
        Ok((id, attributes))
    }

    pub(super) fn lookup(&self, now: Instant, caller: &Credential, directory: &ObjectId, name: &CStr) -> Answer {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW;
        let fd = self.open_directory(directory, now, flags)?;
        let (_, attributes) = self.object(&fd, now)?;
        let found = self.lookup_in(caller, directory, &fd, name).and_then(|child| self.object(&child, now));
        let (object, found) = found.map_err(|status| failure(status, Some(&attributes)))?;
        Ok(Outcome::Found { object, attributes: found, directory: Some(attributes) })
    }

    fn lookup_in(&self, caller: &Credential, directory: &ObjectId, fd: &OwnedFd, name: &CStr) -> Result<OwnedFd, Status> {
        if name != c".." {
            return self.act_as(caller, || sys::open_name(fd, name));
        }
        if *directory == self.shared.root_id {
            // RFC 1813 section 3.3.3 leaves ".." of the root to the server: there is nothing above.
            return self.act_as(caller, || sys::open_name(fd, c"."));
        }
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let parent = self.act_as(caller, || Ok(rustix::fs::openat(fd, c"..", flags, Mode::empty())?))?;
        if self.is_inside(&parent)? { Ok(parent) } else { Err(Status::Stale) }
    }

    /// Whether a directory lies in the export: the way up from it meets the root.
    pub(super) fn is_inside(&self, directory: &OwnedFd) -> Result<bool, Status> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let mut id = sys::identity(directory)?;
        let mut here: Option<OwnedFd> = None;
        for _ in 0..DEPTH_MAX {
            if id == self.shared.root_id {
                return Ok(true);
            }
            let up = rustix::fs::openat(here.as_ref().unwrap_or(directory), c"..", flags, Mode::empty())?;
            let above = sys::identity(&up)?;
            if above == id {
                return Ok(false);
            }
            (id, here) = (above, Some(up));
        }
        Ok(false)
    }

    pub(super) fn open_directory(&self, directory: &ObjectId, now: Instant, flags: OFlags) -> Result<OwnedFd, Failure> {
        sys::open(self.shared.root_fd(), directory, flags).map_err(|status| match status {
            Status::Stale => {
                self.shared.forget(directory);
                status.into()
            }
            // Not a directory: what it is belongs into the answer.
            _ => failure(status, self.look(directory, now).ok().map(|(_, attributes)| attributes).as_ref()),
        })
    }

    /// Runs `f` on a directory between two looks at its attributes.
    fn changing_directory<T>(
        &self,
        directory: &ObjectId,
        now: Instant,
        f: impl FnOnce(&OwnedFd, &Attributes) -> Result<T, Status>,
    ) -> Result<(T, Wcc), Failure> {
        let fd = self.open_directory(directory, now, OFlags::RDONLY | OFlags::DIRECTORY)?;
        let inode = self.shared.intern(directory);
        let _change = lock(&inode.change);
        self.bracket(&inode, &fd, now, |before| f(&fd, before))
    }

    pub(super) fn create(
        &self,
        now: Instant,
        caller: &Credential,
        directory: &ObjectId,
        name: &CStr,
        how: &CreateHow,
        held: Option<&Arc<Inode>>,
    ) -> Step {
        let made = self.changing_directory(directory, now, |fd, _| match self.create_new(caller, fd, name, how) {
            Ok(file) => {
                // The size, the owner and the times came after the name, perhaps after a commit of the file system's journal that had the name.
                self.sync_opened(&file)?;
                self.sync_opened(fd)?;
                self.object(&file, now).map(|(id, attributes)| Created::Object(id, attributes))
            }
            Err(Status::Exists) => self.create_existing(now, caller, fd, name, how, held),
            Err(status) => Err(status),
        });
        match made {
            Ok((Created::Object(object, attributes), directory)) => {
                Step::Done(Ok(Outcome::Created { object, attributes, directory }))
            }
            Ok((Created::Wait(inode), _)) => Step::Exclusive(inode),
            Err(failure) => Step::Done(Err(failure)),
        }
    }

    fn create_new(&self, caller: &Credential, directory: &OwnedFd, name: &CStr, how: &CreateHow) -> Result<OwnedFd, Status> {
        let (changes, mode) = match how {
            CreateHow::Unchecked(changes) | CreateHow::Guarded(changes) => (*changes, changes.mode.unwrap_or(0)),
            CreateHow::Exclusive(verifier) => {
                let (modified, accessed) = verifier_times(*verifier);
                let (accessed, modified) = (Some(SetTime::To(accessed)), Some(SetTime::To(modified)));
                (AttributeChanges { accessed, modified, ..Default::default() }, 0)
            }
        };
        let flags = OFlags::CREATE | OFlags::EXCL | OFlags::RDWR | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        self.act_as(caller, || {
            let file = rustix::fs::openat(directory, name, flags, Mode::from_raw_mode(mode & 0o7777))?;
            let sized = changes.size.filter(|size| *size > 0).map_or(Ok(()), |size| Ok(rustix::fs::ftruncate(&file, size)?));
            let finished: Result<(), Status> = sized.and_then(|()| finish_new(&file, ObjectKind::File, caller, &changes));
            if let Err(status) = finished {
                let _ = rustix::fs::unlinkat(directory, name, AtFlags::empty());
                return Err(status);
            }
            Ok(file)
        })
    }

    /// RFC 1813 section 3.3.8, the name exists: UNCHECKED takes the file as it is but for its size, GUARDED fails, EXCLUSIVE
    /// succeeds if the same request made the file.
    fn create_existing(
        &self,
        now: Instant,
        caller: &Credential,
        directory: &OwnedFd,
        name: &CStr,
        how: &CreateHow,
        held: Option<&Arc<Inode>>,
    ) -> Result<Created, Status> {
        let file = self.act_as(caller, || sys::open_name(directory, name))?;
        let (id, attributes) = self.object(&file, now)?;
        if attributes.kind != ObjectKind::File {
            return Err(Status::Exists);
        }
        match how {
            CreateHow::Guarded(_) => Err(Status::Exists),
            CreateHow::Exclusive(verifier) => {
                let (modified, accessed) = verifier_times(*verifier);
                let same = attributes.size == 0 && attributes.modified == modified && attributes.accessed == accessed;
                if same { Ok(Created::Object(id, attributes)) } else { Err(Status::Exists) }
            }
            CreateHow::Unchecked(AttributeChanges { size: None, .. }) => Ok(Created::Object(id, attributes)),
            CreateHow::Unchecked(AttributeChanges { size: Some(size), .. }) => {
                let inode = self.shared.intern(&id);
                if !held.is_some_and(|held| Arc::ptr_eq(held, &inode)) {
                    return Ok(Created::Wait(inode));
                }
                self.truncate_existing(now, caller, &id, *size)?;
                self.object(&file, now).map(|(id, attributes)| Created::Object(id, attributes))
            }
        }
    }

    pub(super) fn make(
        &self,
        now: Instant,
        caller: &Credential,
        directory: &ObjectId,
        name: &CStr,
        what: &New,
        changes: &AttributeChanges,
    ) -> Answer {
        let mode = Mode::from_raw_mode(changes.mode.unwrap_or(0) & 0o7777);
        let node = |fd: &OwnedFd, kind, device| rustix::fs::mknodat(fd, name, kind, mode, device);
        let device = rustix::fs::makedev;
        let ((object, attributes), directory) = self.changing_directory(directory, now, |fd, _| {
            let made = self.act_as(caller, || {
                match what {
                    New::Directory => rustix::fs::mkdirat(fd, name, mode)?,
                    New::Symlink(target) => rustix::fs::symlinkat(target.as_c_str(), fd, name)?,
                    New::Node(NodeKind::Fifo) => node(fd, FileType::Fifo, 0)?,
                    New::Node(NodeKind::Socket) => node(fd, FileType::Socket, 0)?,
                    New::Node(NodeKind::BlockDevice { major, minor }) => node(fd, FileType::BlockDevice, device(*major, *minor))?,
                    New::Node(NodeKind::CharacterDevice { major, minor }) => {
                        node(fd, FileType::CharacterDevice, device(*major, *minor))?;
                    }
                }
                Ok(())
            });
            made?;
            // As root: the maker need not be allowed to search what it may write.
            let child = sys::open_name(fd, name)?;
            let kind = sys::attributes(&child, self.shared.options.file_system)?.kind;
            self.act_as(caller, || finish_new(&child, kind, caller, changes))?;
            let (id, attributes) = self.object(&child, now)?;
            self.sync_object(&id, kind)?;
            self.sync_opened(fd)?;
            Ok((id, attributes))
        })?;
        Ok(Outcome::Created { object, attributes, directory })
    }

    /// Runs `f`, which takes a name from the open object or gives it one, and notes what became of the object.
    fn renaming<T>(&self, fd: &OwnedFd, now: Instant, f: impl FnOnce() -> Result<T, Status>) -> Result<T, Status> {
        let shared = self.shared;
        let since = shared.epochs.now();
        let Some(inode) = shared.table.get(&sys::identity(fd)?) else { return f() };
        let before = sys::attributes(fd, shared.options.file_system)?;
        lock(&inode.state).begin_change(since, before, now, &shared.epochs, &shared.counts);
        let result = f();
        let after = sys::attributes(fd, shared.options.file_system).ok();
        lock(&inode.state).end_change(after, now, &shared.epochs);
        if after.is_some_and(|after| after.links == 0) {
            shared.forget(&inode.id);
        }
        result
    }

    pub(super) fn remove(
        &self,
        now: Instant,
        caller: &Credential,
        directory: &ObjectId,
        name: &CStr,
        is_directory: bool,
    ) -> Answer {
        let flags = if is_directory { AtFlags::REMOVEDIR } else { AtFlags::empty() };
        let ((), directory) = self.changing_directory(directory, now, |fd, _| {
            let child = self.act_as(caller, || sys::open_name(fd, name))?;
            let id = sys::identity(&child)?;
            self.renaming(&child, now, || self.act_as(caller, || Ok(rustix::fs::unlinkat(fd, name, flags)?)))?;
            if is_directory {
                // Not every file system counts a removed directory's links down to 0.
                self.shared.forget(&id);
            }
            self.sync_opened(fd)
        })?;
        Ok(Outcome::Removed { directory })
    }

    pub(super) fn link(&self, now: Instant, caller: &Credential, object: &ObjectId, directory: &ObjectId, name: &CStr) -> Answer {
        let (_, attributes) = self.look(object, now)?;
        let unchanged = Wcc { before: Some((&attributes).into()), after: Some(attributes) };
        let failed = |status, directory| Failure { status, wcc: [unchanged, directory] };
        if attributes.kind == ObjectKind::Directory {
            return Err(failed(Status::IsDirectory, Wcc::default()));
        }
        let child = sys::open(self.shared.root_fd(), object, OFlags::PATH | OFlags::NOFOLLOW)
            .map_err(|status| failed(status, Wcc::default()))?;
        let linked = self.changing_directory(directory, now, |fd, _| {
            // AT_EMPTY_PATH would need CAP_DAC_READ_SEARCH, which the caller does not have.
            let from = descriptor_path(&child);
            self.renaming(&child, now, || {
                self.act_as(caller, || Ok(rustix::fs::linkat(CWD, from.as_c_str(), fd, name, AtFlags::SYMLINK_FOLLOW)?))
            })?;
            self.sync_opened(fd)
        });
        match linked {
            Ok(((), directory)) => {
                let attributes = sys::attributes(&child, self.shared.options.file_system).ok();
                Ok(Outcome::Linked { attributes, directory })
            }
            Err(Failure { status, wcc: [directory, _] }) => Err(failed(status, directory)),
        }
    }

    pub(super) fn rename(&self, now: Instant, caller: &Credential, from: (&ObjectId, &CStr), to: (&ObjectId, &CStr)) -> Answer {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY;
        let from_fd = self.open_directory(from.0, now, flags)?;
        let to_fd = self.open_directory(to.0, now, flags).map_err(|Failure { status, wcc: [to, _] }| {
            let attributes = sys::attributes(&from_fd, self.shared.options.file_system).ok();
            Failure { status, wcc: [failure(status, attributes.as_ref()).wcc[0], to] }
        })?;
        let (from_inode, to_inode) = (self.shared.intern(from.0), self.shared.intern(to.0));
        let same = Arc::ptr_eq(&from_inode, &to_inode);
        let mut ordered: SmallVec<[&Arc<Inode>; 2]> = SmallVec::from_slice(&[&from_inode, &to_inode]);
        ordered.sort_by_key(|inode| Arc::as_ptr(inode));
        ordered.truncate(if same { 1 } else { 2 });
        let _changes: SmallVec<[_; 2]> = ordered.iter().map(|inode| lock(&inode.change)).collect();
        // The inner bracket's data is kept apart: the outer one only carries a status.
        let mut to_wcc = Wcc::default();
        let renamed = self.bracket(&from_inode, &from_fd, now, |_| {
            if same {
                return self.rename_in(now, caller, (&from_fd, from.1), (&to_fd, to.1));
            }
            let inner = self.bracket(&to_inode, &to_fd, now, |_| self.rename_in(now, caller, (&from_fd, from.1), (&to_fd, to.1)));
            to_wcc = match &inner {
                Ok(((), wcc)) => *wcc,
                Err(failure) => failure.wcc[0],
            };
            inner.map(|_| ()).map_err(|failure| failure.status)
        });
        match renamed {
            Ok(((), from)) => Ok(Outcome::Renamed { from, to: if same { from } else { to_wcc } }),
            Err(Failure { status, wcc: [from, _] }) => Err(Failure { status, wcc: [from, if same { from } else { to_wcc }] }),
        }
    }

    fn rename_in(&self, now: Instant, caller: &Credential, from: (&OwnedFd, &CStr), to: (&OwnedFd, &CStr)) -> Result<(), Status> {
        let child = self.act_as(caller, || sys::open_name(from.0, from.1))?;
        let target = match self.act_as(caller, || sys::open_name(to.0, to.1)) {
            Ok(target) => Some(target),
            Err(Status::NoEntry) => None,
            Err(status) => return Err(status),
        };
        let rename = || self.act_as(caller, || Ok(rustix::fs::renameat(from.0, from.1, to.0, to.1)?));
        self.renaming(&child, now, || match &target {
            Some(target) => self.renaming(target, now, rename),
            None => rename(),
        })?;
        self.sync_opened(to.0)?;
        self.sync_opened(from.0)
    }
}

/// What the system call that made an object could not set: owner and group (root only; others' wishes are ignored, as the
/// Linux server does), set-id bits of a directory, times.
fn finish_new(fd: &OwnedFd, kind: ObjectKind, caller: &Credential, changes: &AttributeChanges) -> Result<(), Status> {
    let (uid, gid) = if caller.is_root() { (changes.uid, changes.gid) } else { (None, None) };
    let special = changes.mode.filter(|mode| mode & SET_ID != 0);
    let mode = match kind {
        ObjectKind::Symlink => None,
        // mkdir(2) ignores set-id bits; one inherited from the parent stays.
        ObjectKind::Directory => special.map(|mode| {
            let inherited = rustix::fs::statat(fd, c"", AtFlags::EMPTY_PATH).map_or(0, |stat| stat.st_mode & 0o2000);
            mode | inherited
        }),
        // chown(2) clears them.
        _ => special.filter(|_| uid.is_some() || gid.is_some()),
    };
    change(fd, kind, &AttributeChanges { mode, uid, gid, size: None, ..*changes })
}
