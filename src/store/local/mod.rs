//! A store over a directory of the host's file system.
//!
//! - `handle`: one core's `Store`: what can be answered from memory, in the core's loop; everything else is parked.
//! - `inode`: what is known of an object; how changes made on the host are noticed.
//! - `data`: reads, writes and syncs of file data: data threads, each with an io_uring.
//! - `worker`: metadata threads, which act under the caller's user, group and groups.
//! - `objects`, `names`, `directory`: what they do.
//! - `sys`: the host's attributes, handles and errors in the words of `store::types`.
//!
//! ## Decisions
//! **Identity.** An `ObjectId` is the kernel's file handle (inode and generation): it survives renames and restarts. It is
//! opened with open_by_handle_at, so the server needs CAP_DAC_READ_SEARCH. As with the Linux server without `subtree_check`,
//! an object that the host moves out of the exported directory stays reachable through a handle given out before; a handle
//! that was never given out is refused by its authentication code (`program::handle`). ".." of the root is the root, ".."
//! that leaves the export is `Stale`. The server follows no symbolic link, and a mount point below the export answers
//! `CrossDevice`: what is mounted there is not served.
//!
//! **Threads.** The core's loop makes no system call but waking a thread that sleeps. File data goes through the io_uring of
//! a data thread and not of the core itself: submitting is a system call too, and a buffered read that hits the kernel's own
//! cache is copied by whoever submits it. A file always belongs to the same data thread, which orders its writes.
//!
//! **Freshness.** Attributes are believed for `attribute_cache_ms`: a change made on the host is seen at the latest then.
//!
//! **Durability.** UNSTABLE writes reply when the kernel has them, stable ones and COMMIT after fdatasync or fsync, names and
//! attributes after an fsync of their directory or object (`sync_metadata`). A failed fsync fails every COMMIT it was for
//! and changes the write verifier, so that clients send again what they never had confirmed. Shutdown syncs nothing more
//! than was promised.

mod counters;
mod data;
mod directory;
mod handle;
mod inode;
mod names;
mod objects;
mod sys;
#[cfg(test)]
mod tests;
mod worker;

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use crossbeam::channel;
use crossbeam::queue::ArrayQueue;
use smallvec::SmallVec;

pub use counters::LocalCounters;
pub use handle::LocalHandle;

use self::counters::{Shared as Counts, add, count};
use self::data::{DataJob, DataQueue};
use self::inode::{Epochs, Inode, InodeClock, Table};
use self::worker::Job;
use super::cache::{Clock, Verdict, lock};
use super::{Attributes, Failure, ObjectId, ObjectKind, Outcome, Status, Token};
use crate::buf::{PageMut, PagePool, Slice};
use crate::time::{Duration, Instant};

/// Blocks the hand passes to free one page, in one call.
const EVICTION_SCAN: usize = 256;
/// Descriptors the process needs beside the files of the export.
const OTHER_FILES: u64 = 128;

/// How a local store is opened.
#[derive(Clone, Debug)]
pub struct LocalOptions {
    /// The directory to serve.
    pub path: PathBuf,
    /// What the attributes call the file system: from the export's id, not from st_dev.
    pub file_system: u64,
    /// Where cached blocks and the data of WRITEs live.
    pub pool: PagePool,
    /// Pages of the pool that may hold cached blocks.
    pub cache_blocks_max: usize,
    /// Handles that will be asked for.
    pub cores: usize,
    /// How long attributes are believed, milliseconds.
    pub attribute_cache_ms: u64,
    /// Largest read-ahead of a file, blocks; 0: none.
    pub readahead_blocks_max: u64,
    /// Objects known at a time.
    pub inodes_max: usize,
    /// Files kept open at a time.
    pub open_files_max: usize,
    /// Operations one core may have parked.
    pub parked_max: usize,
    /// Operations that may wait for a metadata thread.
    pub queue_max: usize,
    /// WRITEs that may wait for one file.
    pub writes_per_file_max: usize,
    /// Threads for names and attributes.
    pub metadata_threads: usize,
    /// Threads for data, each with an io_uring.
    pub data_threads: usize,
    /// I/O operations in flight on each data thread.
    pub data_operations_max: usize,
    /// Cores the threads are pinned to, in turn; empty: not pinned.
    pub pin: Vec<usize>,
    /// The write verifier of this start of the server (RFC 1813 section 3.3.7): random.
    pub write_verifier: [u8; 8],
    /// Whether names and attributes are on storage before the reply, as RFC 1813 section 4.8 wants.
    pub sync_metadata: bool,
    /// Use io_uring if the kernel has it.
    pub io_uring: bool,
}

impl LocalOptions {
    pub fn new(path: impl Into<PathBuf>, file_system: u64, pool: PagePool, write_verifier: [u8; 8]) -> LocalOptions {
        let blocks = pool.blocks();
        LocalOptions {
            path: path.into(),
            file_system,
            pool,
            cache_blocks_max: (blocks - blocks / 8).max(1),
            cores: 1,
            attribute_cache_ms: 1000,
            readahead_blocks_max: 32,
            inodes_max: 65_536,
            open_files_max: 4096,
            parked_max: 1024,
            queue_max: 4096,
            writes_per_file_max: 256,
            metadata_threads: 4,
            data_threads: 1,
            data_operations_max: 256,
            pin: Vec::new(),
            write_verifier,
            sync_metadata: true,
            io_uring: true,
        }
    }
}

/// Why a directory cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error("cannot open the directory {path}: {error}")]
    Path { path: PathBuf, error: io::Error },
    #[error("the file system of {path} has no usable file handles: {error}")]
    Handles { path: PathBuf, error: io::Error },
    #[error("file handles cannot be opened: {error}; the server needs the capability CAP_DAC_READ_SEARCH (run it as root)")]
    Capability { error: io::Error },
    #[error(
        "the limit of open files is {limit} and {needed} are needed: raise it (ulimit -n, LimitNOFILE=) or lower open_files_max"
    )]
    OpenFiles { limit: u64, needed: u64 },
    #[error("{0} must be at least 1")]
    Limit(&'static str),
    #[error("cannot start an I/O thread: {0}")]
    Thread(io::Error),
}

/// Wakes a core that sleeps. Called from I/O threads after a completion was queued.
pub type Wake = Arc<dyn Fn() + Send + Sync>;

/// Who gets the answer of a parked operation, and when it was asked.
#[derive(Clone, Copy, Debug)]
pub(super) struct Park {
    core: usize,
    token: Token,
    now: Instant,
}

type Answer = Result<Outcome, Failure>;

struct Completed {
    token: Token,
    answer: Answer,
    pages: SmallVec<[Slice; 2]>,
}

/// Where one core's finished operations arrive.
struct CoreQueue {
    completed: ArrayQueue<Completed>,
    wake: Mutex<Option<Wake>>,
}

/// What all handles and threads share.
struct Shared {
    options: LocalOptions,
    root: OwnedFd,
    root_id: ObjectId,
    clock: Arc<InodeClock>,
    table: Table,
    epochs: Epochs,
    counts: Arc<Counts>,
    cores: Vec<CoreQueue>,
    work: channel::Sender<Job>,
    data: Vec<DataQueue>,
    /// Grows when unstable data may have been lost.
    verifier_steps: AtomicU64,
    fill_ids: AtomicU64,
    open_files: Mutex<std::collections::VecDeque<std::sync::Weak<Inode>>>,
    /// Parked operations and reads of blocks that are not finished.
    busy: AtomicUsize,
    stopping: AtomicBool,
    uses_uring: AtomicBool,
}

impl Shared {
    fn attribute_age_max(&self) -> Duration {
        Duration::from_millis(self.options.attribute_cache_ms)
    }

    fn block_size(&self) -> u64 {
        self.options.pool.block_size() as u64
    }

    fn verifier(&self) -> [u8; 8] {
        let start = u64::from_be_bytes(self.options.write_verifier);
        start.wrapping_add(self.verifier_steps.load(Ordering::SeqCst)).to_be_bytes()
    }

    /// Unstable data may be lost: clients must see another verifier (RFC 1813 section 3.3.21).
    fn data_lost(&self) {
        self.verifier_steps.fetch_add(1, Ordering::SeqCst);
        count(&self.counts.sync_errors);
    }

    /// The same, and it was this file's: what was written to it before and is not on storage yet is among it.
    fn data_lost_of(&self, inode: &Inode) {
        lock(&inode.state).losses += 1;
        self.data_lost();
    }

    /// Answers a parked operation.
    fn complete(&self, park: Park, answer: Answer, pages: SmallVec<[Slice; 2]>) {
        if let Err(Failure { status: Status::Stale, .. }) = answer {
            count(&self.counts.stale_handles);
        }
        let core = &self.cores[park.core];
        // The queue holds `parked_max`, and a core parks no more than that.
        let pushed = core.completed.push(Completed { token: park.token, answer, pages });
        debug_assert!(pushed.is_ok(), "more completions than parked operations");
        self.busy.fetch_sub(1, Ordering::SeqCst);
        let wake = lock(&core.wake).clone();
        if let Some(wake) = wake {
            wake();
        }
    }

    fn send_work(&self, job: Job) {
        // The threads end only after `busy` is 0.
        let _ = self.work.send(job);
    }

    fn send_data(&self, inode: &Inode, job: DataJob) {
        self.data[inode::spread(&inode.id) % self.data.len()].send(job);
    }

    /// A page for the cache or a WRITE, evicting if need be. Takes file locks (only tries), so that a caller may hold one.
    fn allocate(&self) -> Option<PageMut> {
        if !self.clock.is_full()
            && let Some(page) = self.options.pool.allocate()
        {
            return Some(page);
        }
        for _ in 0..EVICTION_SCAN {
            let Some((owner, index)) = self.clock.advance() else { break };
            let Some(inode) = owner.upgrade() else { continue };
            let Ok(mut state) = inode.state.try_lock() else { continue };
            if let Verdict::Evicted { ahead } = state.blocks.try_evict(index) {
                count(&self.counts.evictions);
                if ahead {
                    count(&self.counts.readahead_wasted);
                }
                break;
            }
        }
        self.options.pool.allocate()
    }

    /// Pages for `wanted` blocks, or as many as there are.
    fn allocate_some(&self, wanted: usize) -> Vec<PageMut> {
        (0..wanted).map_while(|_| self.allocate()).collect()
    }

    fn root_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.root.as_fd()
    }
}

/// What READ, WRITE and COMMIT answer to an object that is no regular file, as the Linux server does.
fn not_a_file(kind: ObjectKind) -> Status {
    if kind == ObjectKind::Directory { Status::IsDirectory } else { Status::InvalidArgument }
}

/// A failure with what is known of the object.
fn failure(status: Status, attributes: Option<&Attributes>) -> Failure {
    let mut failure = Failure::from(status);
    failure.wcc[0] = super::Wcc { before: attributes.map(Into::into), after: attributes.copied() };
    failure
}

/// A directory of the host, served. Make one handle for each core; `shutdown` (or dropping it) ends the threads.
pub struct LocalStore {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

/// Reads a store's counters from any thread.
pub struct CounterSource {
    counts: Arc<Counts>,
}

impl CounterSource {
    pub fn read(&self) -> LocalCounters {
        self.counts.snapshot()
    }
}

impl LocalStore {
    pub fn open(options: LocalOptions) -> Result<LocalStore, OpenError> {
        check_limits(&options)?;
        let (root, root_id) = sys::open_root(&options.path)?;
        let clock = Arc::new(Clock::new(options.cache_blocks_max));
        let (work, jobs) = channel::unbounded();
        let mut rings = Vec::new();
        let mut data = Vec::new();
        for _ in 0..options.data_threads {
            let (queue, ring) = data::queue(&options).map_err(OpenError::Thread)?;
            data.push(queue);
            rings.push(ring);
        }
        let uses_uring = rings.iter().all(|ring| ring.uses_uring());
        let core = || CoreQueue { completed: ArrayQueue::new(options.parked_max), wake: Mutex::new(None) };
        let shared = Arc::new(Shared {
            root,
            root_id,
            table: Table::new(options.inodes_max, clock.clone()),
            clock,
            epochs: Epochs::default(),
            counts: Arc::default(),
            cores: (0..options.cores).map(|_| core()).collect(),
            work,
            data,
            verifier_steps: AtomicU64::new(0),
            fill_ids: AtomicU64::new(0),
            open_files: Mutex::default(),
            busy: AtomicUsize::new(0),
            stopping: AtomicBool::new(false),
            uses_uring: AtomicBool::new(uses_uring),
            options,
        });
        let mut store = LocalStore { shared, threads: Vec::new() };
        for ring in rings {
            store.spawn("data", move |shared| ring.run(&shared))?;
        }
        for _ in 0..store.shared.options.metadata_threads {
            let jobs = jobs.clone();
            store.spawn("names", move |shared| worker::run(&shared, &jobs))?;
        }
        Ok(store)
    }

    fn spawn(&mut self, name: &str, run: impl FnOnce(Arc<Shared>) + Send + 'static) -> Result<(), OpenError> {
        let shared = self.shared.clone();
        let pin = &shared.options.pin;
        let pin = (!pin.is_empty()).then(|| pin[self.threads.len() % pin.len()]);
        let thread = std::thread::Builder::new().name(format!("store-{name}")).spawn(move || {
            if let Some(id) = pin {
                core_affinity::set_for_current(core_affinity::CoreId { id });
            }
            run(shared);
        });
        self.threads.push(thread.map_err(OpenError::Thread)?);
        Ok(())
    }

    /// The store as core number `core` sees it; one handle for each core. `wake` is called from I/O threads whenever a
    /// completion was queued for that core.
    ///
    /// # Panics
    /// If `core` is not below `LocalOptions::cores`.
    pub fn handle_for_core(&self, core: usize, wake: Option<Wake>) -> LocalHandle {
        *lock(&self.shared.cores[core].wake) = wake;
        LocalHandle::new(self.shared.clone(), core)
    }

    /// Whether data goes through io_uring; if not, plain reads and writes on the data threads do the same.
    pub fn uses_io_uring(&self) -> bool {
        self.shared.uses_uring.load(Ordering::Relaxed)
    }

    /// What I/O threads and handles counted so far (what a handle counts in its own loop comes from its `Store::counters`).
    pub fn counters(&self) -> LocalCounters {
        self.shared.counts.snapshot()
    }

    /// The same for a thread that outlives this value.
    pub fn counter_source(&self) -> CounterSource {
        CounterSource { counts: Arc::clone(&self.shared.counts) }
    }

    /// Blocks cached at the moment.
    pub fn cached_blocks(&self) -> usize {
        self.shared.clock.occupied()
    }

    /// Objects known at the moment.
    pub fn inodes(&self) -> usize {
        self.shared.table.len()
    }

    /// Refuses new operations, waits for those that run, ends the threads and empties the cache. What was promised to be on
    /// storage is; nothing else is synced. Finished operations can still be polled from the handles.
    pub fn shutdown(mut self) {
        self.stop();
    }

    fn stop(&mut self) {
        self.shared.stopping.store(true, Ordering::SeqCst);
        // Every operation in flight ends by itself: storage answers or fails.
        while self.shared.busy.load(Ordering::SeqCst) > 0 && self.threads.iter().all(|thread| !thread.is_finished()) {
            std::thread::sleep(Duration::from_millis(1));
        }
        for _ in 0..self.shared.options.metadata_threads {
            self.shared.send_work(Job::Stop);
        }
        for queue in &self.shared.data {
            queue.send(DataJob::Stop);
        }
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
        self.shared.table.clear();
    }
}

impl Drop for LocalStore {
    fn drop(&mut self) {
        if !self.threads.is_empty() {
            self.stop();
        }
    }
}

fn check_limits(options: &LocalOptions) -> Result<(), OpenError> {
    let limits = [
        ("cache_blocks_max", options.cache_blocks_max),
        ("cores", options.cores),
        ("inodes_max", options.inodes_max),
        ("open_files_max", options.open_files_max),
        ("parked_max", options.parked_max),
        ("queue_max", options.queue_max),
        ("writes_per_file_max", options.writes_per_file_max),
        ("metadata_threads", options.metadata_threads),
        ("data_threads", options.data_threads),
        ("data_operations_max", options.data_operations_max),
    ];
    if let Some((name, _)) = limits.iter().find(|(_, value)| *value == 0) {
        return Err(OpenError::Limit(name));
    }
    let needed = options.open_files_max as u64 + OTHER_FILES;
    sys::allow_open_files(needed).map_err(|limit| OpenError::OpenFiles { limit, needed })
}
