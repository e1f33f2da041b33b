//! The data threads: reads, writes and syncs of files through one io_uring a thread.
//!
//! - `read`: READs that wait, blocks on their way into the cache, read-ahead.
//! - `write`: rounds of WRITEs to one file, fsync, exclusive changes of size.
//!
//! A file always belongs to the same thread. Jobs arrive through a queue that never blocks the sender; it needs no bound of
//! its own, because every job belongs to a parked operation or to a page of the pool.

pub mod read;
pub mod write;

use std::collections::{HashMap, VecDeque};
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use crossbeam::channel;
use rustix::fs::OFlags;

use self::write::{Batch, SyncRound};
use super::inode::Inode;
use super::{LocalOptions, Shared, count, sys};
use crate::buf::PageMut;
use crate::raw::uring::{Buffers, Completion, DataRing, RingWaker};
use crate::store::Status;
use crate::store::cache::lock;

/// A run of blocks on its way from the file.
pub struct Fill {
    pub inode: Arc<Inode>,
    pub first: u64,
    pub id: u64,
    pub pages: Vec<PageMut>,
    pub ahead: bool,
}

pub enum DataJob {
    Fill(Fill),
    /// The file has queued WRITEs.
    Write(Arc<Inode>),
    /// Somebody waits for an fsync of the file.
    Sync(Arc<Inode>),
    Stop,
}

/// The senders' end of a data thread.
pub struct DataQueue {
    jobs: channel::Sender<DataJob>,
    waker: RingWaker,
}

impl DataQueue {
    pub fn send(&self, job: DataJob) {
        let _ = self.jobs.send(job);
        self.waker.wake();
    }
}

/// What a completion belongs to.
enum Pending {
    Fill { inode: Arc<Inode>, first: u64, id: u64, ahead: bool },
    Write { batch: u64, index: usize, offset: u64 },
    Sync(SyncRound),
}

/// One data thread.
pub struct DataThread {
    jobs: channel::Receiver<DataJob>,
    ring: DataRing,
    pending: HashMap<u64, Pending>,
    batches: HashMap<u64, Batch>,
    next_tag: u64,
    /// Operations that wait for room in the ring.
    backlog: VecDeque<(Arc<OwnedFd>, u64, Buffers, u64)>,
    stopping: bool,
}

pub fn queue(options: &LocalOptions) -> io::Result<(DataQueue, DataThread)> {
    let ring = DataRing::new(options.data_operations_max, options.io_uring)?;
    let (sender, jobs) = channel::unbounded();
    let queue = DataQueue { jobs: sender, waker: ring.waker() };
    let (pending, batches) = (HashMap::new(), HashMap::new());
    Ok((queue, DataThread { jobs, ring, pending, batches, next_tag: 0, backlog: VecDeque::new(), stopping: false }))
}

impl DataThread {
    pub fn uses_uring(&self) -> bool {
        self.ring.uses_uring()
    }

    pub fn run(mut self, shared: &Arc<Shared>) {
        crate::raw::syscall::respect_quotas();
        loop {
            while let Ok(job) = self.jobs.try_recv() {
                self.start(shared, job);
            }
            self.ring.submit();
            while let Some(completion) = self.ring.poll() {
                self.finish(shared, completion);
            }
            self.drain_backlog();
            if !self.jobs.is_empty() || (!self.backlog.is_empty() && self.ring.has_room()) {
                continue;
            }
            if self.stopping && self.ring.in_flight() == 0 {
                return;
            }
            let jobs = &self.jobs;
            self.ring.wait(|| jobs.is_empty());
        }
    }

    fn start(&mut self, shared: &Arc<Shared>, job: DataJob) {
        match job {
            DataJob::Fill(fill) => self.start_fill(shared, fill),
            DataJob::Write(inode) => self.start_batch(shared, inode),
            DataJob::Sync(inode) => self.start_sync(shared, inode),
            DataJob::Stop => self.stopping = true,
        }
    }

    fn push(&mut self, fd: Arc<OwnedFd>, offset: u64, buffers: Buffers, pending: Pending) {
        let tag = self.next_tag;
        self.next_tag += 1;
        self.pending.insert(tag, pending);
        if !self.backlog.is_empty() || !self.ring.has_room() {
            self.backlog.push_back((fd, offset, buffers, tag));
            return;
        }
        if let Err(buffers) = self.ring.push(fd.clone(), offset, buffers, tag) {
            self.backlog.push_back((fd, offset, buffers, tag));
        }
    }

    fn drain_backlog(&mut self) {
        while self.ring.has_room() {
            let Some((fd, offset, buffers, tag)) = self.backlog.pop_front() else { return };
            if let Err(buffers) = self.ring.push(fd.clone(), offset, buffers, tag) {
                self.backlog.push_front((fd, offset, buffers, tag));
                return;
            }
        }
    }

    fn finish(&mut self, shared: &Arc<Shared>, completion: Completion) {
        let Some(pending) = self.pending.remove(&completion.tag) else { return };
        match (pending, completion.buffers) {
            (Pending::Fill { inode, first, id, ahead }, Buffers::Read(pages)) => {
                let result = completion.result.map_err(|error| sys::status(&error));
                shared.end_fill(Fill { inode, first, id, pages, ahead }, result);
            }
            (Pending::Write { batch, index, offset }, Buffers::Write(pieces)) => {
                self.end_write(shared, (batch, index, offset), pieces, completion.result);
            }
            (Pending::Sync(round), _) => self.end_sync(shared, round, completion.result),
            _ => debug_assert!(false, "buffers come back as they were given"),
        }
    }
}

impl Shared {
    /// A descriptor for the file's data, opened if need be, as root: who may read and write was checked (`permission`). It may only read: one
    /// that could write would keep a program on the host from being executed, and a file system from being made read-only.
    pub(super) fn data_fd(&self, inode: &Arc<Inode>) -> Result<Arc<OwnedFd>, Status> {
        if let Some(fd) = &lock(&inode.state).fd {
            return Ok(fd.clone());
        }
        let fd = self.open_data(inode, OFlags::RDONLY)?;
        lock(&inode.state).fd = Some(fd.clone());
        self.bound_open_files(inode);
        Ok(fd)
    }

    /// The same for a WRITE: a descriptor that only reads makes way for one that writes, too.
    fn data_fd_to_write(&self, inode: &Arc<Inode>) -> Result<Arc<OwnedFd>, Status> {
        let open = lock(&inode.state).fd.clone();
        if let Some(fd) = &open
            && rustix::fs::fcntl_getfl(&**fd)?.contains(OFlags::RDWR)
        {
            return Ok(fd.clone());
        }
        let fd = self.open_data(inode, OFlags::RDWR)?;
        lock(&inode.state).fd = Some(fd.clone());
        if open.is_none() {
            self.bound_open_files(inode);
        }
        Ok(fd)
    }

    fn open_data(&self, inode: &Inode, access: OFlags) -> Result<Arc<OwnedFd>, Status> {
        // NONBLOCK: somebody's lease on the file must not stop the thread here.
        let flags = access | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY;
        let fd = sys::open(self.root_fd(), &inode.id, flags)?;
        // With it, io_uring answers EAGAIN, again and again, on a file system that cannot read and write without waiting.
        rustix::fs::fcntl_setfl(&fd, access)?;
        Ok(Arc::new(fd))
    }

    /// Closes another file's descriptor if there are too many.
    fn bound_open_files(&self, inode: &Arc<Inode>) {
        let mut open = lock(&self.open_files);
        open.push_back(Arc::downgrade(inode));
        let mut scan = open.len();
        while open.len() > self.options.open_files_max && scan > 0 {
            scan -= 1;
            let Some(weak) = open.pop_front() else { return };
            let Some(victim) = weak.upgrade() else { continue };
            // A file that is being read, written or synced keeps its descriptor.
            let taken = victim.state.try_lock().ok().and_then(|mut state| {
                let idle = !state.is_in_use() && state.fd.as_ref().is_some_and(|fd| Arc::strong_count(fd) == 1);
                let dirty = state.dirty;
                if idle { state.fd.take().map(|fd| (fd, std::mem::take(&mut state.dirty) || dirty)) } else { None }
            });
            match taken {
                Some((fd, dirty)) => {
                    count(&self.counts.file_evictions);
                    self.close(&fd, dirty);
                }
                None => open.push_back(weak),
            }
        }
    }

    /// Closes files that were removed on the host, past the server: their space is free only then. Returns how many. For when the
    /// host has no space left.
    pub(super) fn close_removed(&self) -> usize {
        let open: Vec<_> = lock(&self.open_files).iter().filter_map(std::sync::Weak::upgrade).collect();
        let mut closed = 0;
        for inode in open {
            // A file in use is closed by who uses it.
            let Ok(mut state) = inode.state.try_lock() else { continue };
            let idle = !state.is_in_use();
            let removed = |fd: &Arc<OwnedFd>| {
                Arc::strong_count(fd) == 1 && rustix::fs::fstat(&**fd).is_ok_and(|attributes| attributes.st_nlink == 0)
            };
            if idle && state.fd.as_ref().is_some_and(removed) {
                // Nobody can reach what was written to it any more.
                state.dirty = false;
                let fd = state.fd.take();
                // The kernel frees the file's blocks in this, which takes a while if they are many.
                drop(state);
                drop(fd);
                count(&self.counts.removed_files_closed);
                closed += 1;
            }
        }
        closed
    }

    /// Before a file with unstable data is closed it is synced: an error of its write-back would otherwise be lost with it.
    pub(super) fn close(&self, fd: &OwnedFd, dirty: bool) {
        if dirty && rustix::fs::fsync(fd).is_err() {
            self.data_lost();
        }
    }

    /// The inode of `id`; makes room in the table if need be, which may sync a file (I/O threads only).
    pub(super) fn intern(&self, id: &crate::store::ObjectId) -> Arc<Inode> {
        let (inode, evicted) = self.table.intern(id);
        if let Some(evicted) = evicted {
            count(&self.counts.inode_evictions);
            self.retire(&evicted);
        }
        inode
    }

    fn retire(&self, inode: &Inode) {
        let mut state = lock(&inode.state);
        let fd = state.fd.take();
        let dirty = std::mem::take(&mut state.dirty);
        drop(state);
        if let Some(fd) = fd {
            self.close(&fd, dirty);
        }
    }

    /// The object is gone.
    pub(super) fn forget(&self, id: &crate::store::ObjectId) {
        if let Some(inode) = self.table.remove(id) {
            let mut state = lock(&inode.state);
            state.blocks.forget_from(0);
            state.attributes = None;
            if !state.is_in_use() {
                // Nobody can read what was written to it any more.
                state.dirty = false;
                let fd = state.fd.take();
                drop(state);
                drop(fd);
            }
        }
    }

    pub(super) fn next_fill_id(&self) -> u64 {
        self.fill_ids.fetch_add(1, Ordering::Relaxed)
    }
}
