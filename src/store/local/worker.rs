//! The metadata threads: one parked operation after the other, under the caller's identity.
//!
//! Names and attributes are changed with the caller's file-system user, group and supplementary groups in force on the
//! thread, so that the kernel checks permissions (access control lists too) and gives new objects their owner. Handles are
//! opened, and attributes looked at, as root.

use std::ffi::{CStr, CString};
use std::sync::Arc;

use crossbeam::channel::Receiver;
use smallvec::SmallVec;

use super::data::read::Reader;
use super::data::write::{SyncAnswer, SyncWaiter, WriteRequest};
use super::handle::{admit_read, admit_write};
use super::inode::Inode;
use super::{Answer, Park, Shared, failure, sys};
use crate::raw::syscall;
use crate::store::cache::lock;
use crate::store::{
    AttributeChanges, Attributes, CreateHow, Credential, Failure, NodeKind, ObjectId, Operation, Outcome, Status, Timestamp,
    permission,
};
use crate::time::Instant;

/// An operation that outlives the call it came with.
#[derive(Debug)]
pub enum Owned {
    GetAttributes { object: ObjectId },
    SetAttributes { object: ObjectId, changes: AttributeChanges, guard: Option<Timestamp> },
    Lookup { directory: ObjectId, name: CString },
    Access { object: ObjectId, mask: u32 },
    ReadLink { object: ObjectId },
    Read { object: ObjectId, offset: u64, count: u32 },
    Create { directory: ObjectId, name: CString, how: CreateHow },
    Make { directory: ObjectId, name: CString, what: New, attributes: AttributeChanges },
    Remove { directory: ObjectId, name: CString, is_directory: bool },
    Rename { from: (ObjectId, CString), to: (ObjectId, CString) },
    Link { object: ObjectId, directory: ObjectId, name: CString },
    ReadDirectory { directory: ObjectId, page: PageOfEntries },
    FileSystemStatus { object: ObjectId },
    PathLimits { object: ObjectId },
    Commit { object: ObjectId },
}

/// What MKDIR, SYMLINK and MKNOD make.
#[derive(Debug)]
pub enum New {
    Directory,
    Symlink(CString),
    Node(NodeKind),
}

/// What part of a directory is asked for.
#[derive(Clone, Copy, Debug)]
pub struct PageOfEntries {
    pub cookie: u64,
    pub verifier: [u8; 8],
    pub bytes_max: u32,
    pub entries_max: u32,
    pub with_attributes: bool,
}

/// A name for the kernel. The program has checked it; a NUL or '/' would still be refused here, not believed.
fn c_name(name: &[u8]) -> Result<CString, Status> {
    if name.contains(&b'/') || name.is_empty() {
        return Err(Status::InvalidArgument);
    }
    if name.len() > crate::store::NAME_MAX {
        return Err(Status::NameTooLong);
    }
    CString::new(name).map_err(|_| Status::InvalidArgument)
}

/// Not "." or "..", which cannot be made or removed.
fn c_new_name(name: &[u8]) -> Result<CString, Status> {
    match name {
        b"." | b".." => Err(Status::InvalidArgument),
        _ => c_name(name),
    }
}

impl Owned {
    /// `Read`, `Write`, `Commit`, `GetAttributes` and `Access` are made by the handle itself.
    pub fn new(operation: &Operation<'_>) -> Result<Owned, Status> {
        Ok(match *operation {
            Operation::SetAttributes { object, changes, guard } => Owned::SetAttributes { object, changes, guard },
            Operation::Lookup { directory, name } => Owned::Lookup { directory, name: c_name(name)? },
            Operation::ReadLink { object } => Owned::ReadLink { object },
            Operation::Create { directory, name, how } => Owned::Create { directory, name: c_new_name(name)?, how },
            Operation::MakeDirectory { directory, name, attributes } => {
                Owned::Make { directory, name: c_new_name(name)?, what: New::Directory, attributes }
            }
            Operation::Symlink { directory, name, target, attributes } => {
                if target.is_empty() {
                    return Err(Status::InvalidArgument);
                }
                if target.len() > crate::store::LINK_TARGET_MAX {
                    return Err(Status::NameTooLong);
                }
                let target = CString::new(target).map_err(|_| Status::InvalidArgument)?;
                Owned::Make { directory, name: c_new_name(name)?, what: New::Symlink(target), attributes }
            }
            Operation::MakeNode { directory, name, kind, attributes } => {
                Owned::Make { directory, name: c_new_name(name)?, what: New::Node(kind), attributes }
            }
            Operation::Remove { directory, name } => Owned::Remove { directory, name: c_new_name(name)?, is_directory: false },
            Operation::RemoveDirectory { directory, name } => {
                Owned::Remove { directory, name: c_new_name(name)?, is_directory: true }
            }
            Operation::Rename { from_directory, from_name, to_directory, to_name } => {
                Owned::Rename { from: (from_directory, c_new_name(from_name)?), to: (to_directory, c_new_name(to_name)?) }
            }
            Operation::Link { object, directory, name } => Owned::Link { object, directory, name: c_new_name(name)? },
            Operation::ReadDirectory { directory, cookie, verifier, bytes_max, entries_max, with_attributes } => {
                let page = PageOfEntries { cookie, verifier, bytes_max, entries_max, with_attributes };
                Owned::ReadDirectory { directory, page }
            }
            Operation::FileSystemStatus { object } => Owned::FileSystemStatus { object },
            Operation::PathLimits { object } => Owned::PathLimits { object },
            Operation::GetAttributes { object } => Owned::GetAttributes { object },
            Operation::Access { object, mask } => Owned::Access { object, mask },
            Operation::Read { object, offset, count } => Owned::Read { object, offset, count },
            Operation::Commit { object, .. } => Owned::Commit { object },
            Operation::Write { .. } => return Err(Status::ServerFault),
        })
    }
}

#[allow(clippy::large_enum_variant, reason = "moved twice in its life; a box would allocate for each parked operation")]
pub enum Job {
    Operation {
        park: Park,
        caller: Credential,
        operation: Owned,
        /// The file that is held for this operation alone (`Shared::begin_exclusive`).
        held: Option<Arc<Inode>>,
    },
    /// A WRITE to a file whose attributes are not fresh.
    Write {
        object: ObjectId,
        request: WriteRequest,
    },
    /// Readers of the file wait for its attributes.
    Refresh(Arc<Inode>),
    Stop,
}

/// One metadata thread.
pub struct Worker<'a> {
    pub shared: &'a Arc<Shared>,
}

/// What became of an operation on a metadata thread.
#[allow(clippy::large_enum_variant, reason = "lives on the stack of the thread that matches it")]
pub enum Step {
    Done(Answer),
    /// It waits for `file` to be free; run it again then.
    Exclusive(Arc<Inode>),
    /// Somebody else will answer.
    Handed,
}

impl From<Answer> for Step {
    fn from(answer: Answer) -> Step {
        Step::Done(answer)
    }
}

pub fn run(shared: &Arc<Shared>, jobs: &Receiver<Job>) {
    // Without an umask of its own the thread could not make files with the modes asked for; the kernel always allows it.
    let umask = syscall::own_umask_of_zero();
    debug_assert!(umask.is_ok());
    syscall::respect_quotas();
    // The process may have supplementary groups; root as a caller has those it sends.
    let identity = syscall::set_file_system_identity(0, 0, &[]);
    debug_assert!(identity.is_ok());
    let worker = Worker { shared };
    while let Ok(job) = jobs.recv() {
        match job {
            Job::Operation { park, caller, operation, held } => worker.run(park, caller, operation, held),
            Job::Write { object, request } => worker.write(object, request),
            Job::Refresh(inode) => worker.refresh(&inode),
            Job::Stop => return,
        }
    }
}

impl Worker<'_> {
    fn run(&self, park: Park, caller: Credential, operation: Owned, held: Option<Arc<Inode>>) {
        let step = self.step(park, &caller, &operation, held.as_ref());
        if let Some(inode) = held {
            self.shared.end_exclusive(&inode);
            self.shared.advance_readers(&inode);
        }
        match step {
            Step::Done(answer) => self.shared.complete(park, answer, SmallVec::new()),
            Step::Handed => {}
            Step::Exclusive(inode) => {
                let job = Job::Operation { park, caller, operation, held: Some(inode.clone()) };
                // `None`: queued behind what the file is busy with.
                if let Some(Job::Operation { park, caller, operation, held }) = self.shared.begin_exclusive(&inode, job) {
                    self.run(park, caller, operation, held);
                }
            }
        }
    }

    fn step(&self, park: Park, caller: &Credential, operation: &Owned, held: Option<&Arc<Inode>>) -> Step {
        let now = park.now;
        match operation {
            Owned::GetAttributes { object } => self.look(object, now).map(|(_, a)| Outcome::Attributes(a)).into_step(),
            Owned::Access { object, mask } => {
                let granted = |a: Attributes| Outcome::Granted { mask: permission::granted(&a, caller, *mask), attributes: a };
                self.look(object, now).map(|(_, a)| granted(a)).into_step()
            }
            Owned::Read { object, offset, count } => self.read(park, caller, object, *offset, *count),
            Owned::Commit { object } => self.commit(park, caller, object),
            Owned::SetAttributes { object, changes, guard } => self.set_attributes(now, caller, object, changes, *guard, held),
            Owned::ReadLink { object } => self.read_link(now, object).into(),
            Owned::FileSystemStatus { object } => self.file_system_status(now, object).into(),
            Owned::PathLimits { object } => self.path_limits(now, object).into(),
            Owned::Lookup { directory, name } => self.lookup(now, caller, directory, name).into(),
            Owned::Create { directory, name, how } => self.create(now, caller, directory, name, how, held),
            Owned::Make { directory, name, what, attributes } => self.make(now, caller, directory, name, what, attributes).into(),
            Owned::Remove { directory, name, is_directory } => self.remove(now, caller, directory, name, *is_directory).into(),
            Owned::Rename { from, to } => self.rename(now, caller, (&from.0, &from.1), (&to.0, &to.1)).into(),
            Owned::Link { object, directory, name } => self.link(now, caller, object, directory, name).into(),
            Owned::ReadDirectory { directory, page } => self.read_directory(now, caller, directory, page).into(),
        }
    }

    /// Runs `f` as `caller` and is root again afterwards.
    pub fn act_as<T>(&self, caller: &Credential, f: impl FnOnce() -> Result<T, Status>) -> Result<T, Status> {
        if caller.is_root() && caller.gid == 0 && caller.groups.is_empty() {
            return f();
        }
        let became = syscall::set_file_system_identity(caller.uid, caller.gid, &caller.groups);
        let result = became.map_err(|_| Status::ServerFault).and_then(|()| f());
        if syscall::set_file_system_identity(0, 0, &[]).is_err() {
            // A thread that is somebody else for ever would serve the next caller with the wrong rights.
            std::process::abort();
        }
        result
    }

    /// Looks at an object now, whatever is known of it.
    pub fn look(&self, object: &ObjectId, now: Instant) -> Result<(Arc<Inode>, Attributes), Failure> {
        let since = self.shared.epochs.now();
        let looked = sys::open(self.shared.root_fd(), object, rustix::fs::OFlags::PATH | rustix::fs::OFlags::NOFOLLOW)
            .and_then(|fd| sys::attributes(fd, self.shared.options.file_system));
        match looked {
            Ok(attributes) if attributes.links > 0 => Ok((self.saw(object, since, attributes, now), attributes)),
            // Deleted, and only kept alive by a descriptor of ours.
            Ok(_) | Err(Status::Stale) => {
                self.shared.forget(object);
                Err(Status::Stale.into())
            }
            Err(status) => Err(status.into()),
        }
    }

    /// Notes attributes that a look since epoch `since` has brought.
    pub fn saw(&self, object: &ObjectId, since: u64, attributes: Attributes, now: Instant) -> Arc<Inode> {
        let inode = self.shared.intern(object);
        lock(&inode.state).observe(since, attributes, now, &self.shared.counts);
        inode
    }

    fn refresh(&self, inode: &Arc<Inode>) {
        let latest = lock(&inode.state).readers.iter().map(|reader| reader.park.now).max().unwrap_or(Instant::ZERO);
        let looked = self.look(&inode.id, latest);
        let mut state = lock(&inode.state);
        state.refreshing = false;
        let readers = match (&looked, state.attributes) {
            (Ok(_), Some(_)) => Vec::new(),
            // The inode left the table meanwhile; its readers still hold it.
            (Ok((_, attributes)), None) => {
                state.observe(self.shared.epochs.now(), *attributes, latest, &self.shared.counts);
                Vec::new()
            }
            (Err(_), _) => std::mem::take(&mut state.readers),
        };
        drop(state);
        for reader in readers {
            let failure = looked.as_ref().err().copied().unwrap_or(Status::Io.into());
            self.shared.complete(reader.park, Err(failure), SmallVec::new());
        }
        self.shared.advance_readers(inode);
    }

    fn read(&self, park: Park, caller: &Credential, object: &ObjectId, offset: u64, count: u32) -> Step {
        let (inode, attributes) = match self.look(object, park.now) {
            Ok(looked) => looked,
            Err(failure) => return Step::Done(Err(failure)),
        };
        match admit_read(&attributes, caller, offset, count) {
            Err(failure) => Step::Done(Err(failure)),
            Ok(0) => Step::Done(Ok(Outcome::Data { count: 0, end_of_file: offset >= attributes.size, attributes })),
            Ok(count) => {
                let mut state = lock(&inode.state);
                state.readers.push(Reader::new(park, offset, count as u32, self.shared.block_size()));
                let ahead = self.shared.read_ahead(&inode, &mut state, offset, count);
                drop(state);
                self.shared.advance_readers(&inode);
                if let Some(ahead) = ahead {
                    self.shared.start_ahead(ahead);
                }
                Step::Handed
            }
        }
    }

    fn commit(&self, park: Park, caller: &Credential, object: &ObjectId) -> Step {
        let (inode, attributes) = match self.look(object, park.now) {
            Ok(looked) => looked,
            Err(failure) => return Step::Done(Err(failure)),
        };
        if let Err(status) = admit_write(&attributes, caller) {
            return Step::Done(Err(failure(status, Some(&attributes))));
        }
        let mut state = lock(&inode.state);
        self.shared.enqueue_sync(&inode, &mut state, SyncWaiter { park, answer: SyncAnswer::Commit });
        Step::Handed
    }

    fn write(&self, object: ObjectId, request: WriteRequest) {
        let park = request.park;
        let admitted = self.look(&object, park.now).and_then(|(inode, attributes)| {
            admit_write(&attributes, &request.caller).map_err(|status| failure(status, Some(&attributes)))?;
            let mut state = lock(&inode.state);
            let queued = self.shared.enqueue_write(&inode, &mut state, request);
            queued.map_err(|_| failure(Status::Delay, Some(&attributes)))
        });
        if let Err(failure) = admitted {
            self.shared.complete(park, Err(failure), SmallVec::new());
        }
    }
}

trait IntoStep {
    fn into_step(self) -> Step;
}

impl IntoStep for Result<Outcome, Failure> {
    fn into_step(self) -> Step {
        Step::Done(self)
    }
}

/// The name of an object that is open, for calls that take no descriptor.
pub fn descriptor_path(fd: &impl std::os::fd::AsRawFd) -> CString {
    // Digits and slashes: no NUL.
    CString::new(format!("/proc/self/fd/{}", fd.as_raw_fd())).unwrap_or_default()
}

/// The name of nothing: the object itself.
pub const SELF: &CStr = c"";
