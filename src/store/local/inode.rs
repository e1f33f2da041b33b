//! What is known of an object: its attributes and when they were fetched, its cached blocks, its open descriptor, and who
//! waits for it. And the bounded table of these.
//!
//! ## Telling our changes from those made on the host
//! `State::attributes` are what the object looked like after the last thing this server did to it or saw of it. An I/O
//! thread that looks again (`observe`) while nothing of ours is running, and finds another mtime, ctime or size, has found
//! a foreign change: the cached blocks go. Our own changes are bracketed by `begin_change`, which looks for the same thing
//! immediately before, and `end_change`, which takes the attributes after it as the new state of knowledge. An observation
//! that was overtaken by a bracket is not used (`Epochs`). So a foreign change is masked only if it falls between the two
//! ends of one bracket (one round of writes: usually below a millisecond, under sustained writing a few), or if the file
//! system stamps it with the same time and size (kernels before 6.13 have stamps of 4 ms or so).

use std::collections::{HashMap, VecDeque};
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, Weak};

use super::counters::{self, Shared as Counts};
use super::data::read::Reader;
use super::data::write::{Queued, SyncWaiter};
use crate::store::cache::{Clock, FileBlocks, Presence, lock};
use crate::store::{Attributes, ObjectId};
use crate::time::{Duration, Instant};

/// Shards of the table, so that cores seldom meet at a lock.
const SHARDS: usize = 16;
/// Objects looked at to find one to evict.
const EVICTION_SCAN: usize = 32;

pub type InodeClock = Clock<Weak<Inode>>;

/// Orders observations and changes: an observation counts only if no change began or ended since it started.
#[derive(Default)]
pub struct Epochs(AtomicU64);

impl Epochs {
    pub fn now(&self) -> u64 {
        self.0.load(Ordering::SeqCst)
    }

    fn next(&self) -> u64 {
        self.0.fetch_add(1, Ordering::SeqCst) + 1
    }
}

pub struct Inode {
    pub id: ObjectId,
    pub state: Mutex<State>,
    /// Held by a metadata thread around "attributes before, change, attributes after".
    pub change: Mutex<()>,
    used: AtomicBool,
}

/// Where sequential reading has come to.
#[derive(Default)]
pub struct Sequence {
    /// Where a sequential reader goes on, bytes.
    pub next: u64,
    /// Blocks to read ahead; 0: the file is read at random.
    pub window: u64,
    /// Up to which block read-ahead was started.
    pub until: u64,
}

pub struct State {
    pub attributes: Option<Attributes>,
    /// What they were when they stopped being believed: the next look is still compared with them.
    last_known: Option<Attributes>,
    fetched: Instant,
    changing: u32,
    /// Changes overlap, or did since the last quiet moment.
    overlapping: bool,
    changed_epoch: u64,
    pub blocks: FileBlocks<Weak<Inode>>,
    pub sequence: Sequence,
    pub readers: Vec<Reader>,
    pub refreshing: bool,
    pub fd: Option<Arc<OwnedFd>>,
    /// Written since the last fsync began.
    pub dirty: bool,
    /// Times that an fsync of it failed: what had been written by then may be lost, and no later fsync tells.
    pub losses: u64,
    /// A round of writes or an exclusive change is running; what comes later queues.
    pub writing: bool,
    /// First and last blocks of the WRITEs that are on their way to the file. Nobody reads them from there: half of such a block may be old.
    pub being_written: Vec<(u64, u64)>,
    pub queue: VecDeque<Queued>,
    pub syncing: bool,
    pub sync_waiters: Vec<SyncWaiter>,
}

fn differs(a: &Attributes, b: &Attributes) -> bool {
    (a.size, a.modified, a.changed) != (b.size, b.modified, b.changed)
}

impl State {
    /// Whether a block has to come from the file, and may: one that is being written there waits for the write's end.
    pub fn is_to_be_read(&self, index: u64) -> bool {
        let written = self.being_written.iter().any(|(first, last)| (*first..=*last).contains(&index));
        !written && self.blocks.presence(index) == Presence::Absent
    }

    /// The attributes, if they were fetched less than `age_max` ago.
    pub fn fresh(&self, now: Instant, age_max: Duration) -> Option<&Attributes> {
        self.attributes.as_ref().filter(|_| now.since(self.fetched) < age_max)
    }

    /// The attributes are believed no more. The cached blocks stay until a look has told whether somebody changed them.
    pub fn expire(&mut self) {
        self.last_known = self.attributes.take().or(self.last_known);
    }

    fn compare(&mut self, seen: &Attributes, counts: &Counts) {
        let known = self.attributes.or(self.last_known);
        if known.is_some_and(|known| differs(&known, seen)) && !self.blocks.is_empty() {
            self.blocks.forget_from(0);
            counters::count(&counts.foreign_changes);
        }
    }

    fn install(&mut self, attributes: Attributes, now: Instant) {
        self.attributes = Some(attributes);
        self.last_known = None;
        self.fetched = self.fetched.max(now);
    }

    /// What was seen of the object by a look that began at epoch `since`.
    pub fn observe(&mut self, since: u64, attributes: Attributes, now: Instant, counts: &Counts) {
        if self.changing == 0 && self.changed_epoch <= since {
            self.compare(&attributes, counts);
            self.install(attributes, now);
        } else if self.attributes.is_none() {
            self.install(attributes, now);
        }
    }

    /// A change of ours begins; `before` was seen by a look that began at epoch `since`.
    pub fn begin_change(&mut self, since: u64, before: Attributes, now: Instant, epochs: &Epochs, counts: &Counts) {
        self.observe(since, before, now, counts);
        self.overlapping |= self.changing > 0;
        self.changing += 1;
        self.changed_epoch = epochs.next();
    }

    /// It ended; `None`: nobody could look, what is known is void.
    pub fn end_change(&mut self, after: Option<Attributes>, now: Instant, epochs: &Epochs) {
        self.changing = self.changing.saturating_sub(1);
        self.changed_epoch = epochs.next();
        match after {
            // Of changes that overlap, one may end before the other and have looked after it.
            Some(after) if self.overlapping && self.attributes.as_ref().is_some_and(|known| after.changed < known.changed) => {}
            // With one time stamp nobody can tell which came first (time stamps have the length of a tick).
            Some(after)
                if self.overlapping
                    && self.attributes.is_some_and(|known| after.changed == known.changed && differs(&after, &known)) =>
            {
                self.expire();
            }
            Some(after) => self.install(after, now),
            None => self.expire(),
        }
        self.overlapping &= self.changing > 0;
    }

    /// Somebody writes to the file, syncs it, or waits for that.
    pub fn is_in_use(&self) -> bool {
        self.writing || self.syncing || !self.sync_waiters.is_empty()
    }

    fn is_idle(&self) -> bool {
        !self.is_in_use() && self.readers.is_empty() && self.changing == 0
    }
}

impl Inode {
    fn new(id: ObjectId, clock: &Arc<InodeClock>) -> Arc<Inode> {
        Arc::new_cyclic(|weak| Inode {
            id,
            state: Mutex::new(State {
                attributes: None,
                last_known: None,
                fetched: Instant::ZERO,
                changing: 0,
                overlapping: false,
                changed_epoch: 0,
                blocks: FileBlocks::new(clock.clone(), weak.clone()),
                sequence: Sequence::default(),
                readers: Vec::new(),
                refreshing: false,
                fd: None,
                dirty: false,
                losses: 0,
                writing: false,
                being_written: Vec::new(),
                queue: VecDeque::new(),
                syncing: false,
                sync_waiters: Vec::new(),
            }),
            change: Mutex::new(()),
            used: AtomicBool::new(true),
        })
    }
}

#[derive(Default)]
struct Shard {
    map: HashMap<ObjectId, Arc<Inode>>,
    order: VecDeque<ObjectId>,
}

/// The inodes in memory.
pub struct Table {
    shards: [Mutex<Shard>; SHARDS],
    shard_max: usize,
    clock: Arc<InodeClock>,
}

/// What `Table::intern` put out to make room: a file that was written and not synced needs an fsync before it is closed.
pub type Evicted = Option<Arc<Inode>>;

impl Table {
    pub fn new(inodes_max: usize, clock: Arc<InodeClock>) -> Table {
        Table { shards: Default::default(), shard_max: inodes_max.div_ceil(SHARDS).max(1), clock }
    }

    fn shard(&self, id: &ObjectId) -> &Mutex<Shard> {
        &self.shards[spread(id) % SHARDS]
    }

    pub fn get(&self, id: &ObjectId) -> Option<Arc<Inode>> {
        let inode = lock(self.shard(id)).map.get(id)?.clone();
        inode.used.store(true, Ordering::Relaxed);
        Some(inode)
    }

    /// The inode of `id`, made if need be. The table may pass its limit by what is in use at the moment, which the limits of
    /// parked operations bound.
    pub fn intern(&self, id: &ObjectId) -> (Arc<Inode>, Evicted) {
        let mut shard = lock(self.shard(id));
        if let Some(inode) = shard.map.get(id) {
            inode.used.store(true, Ordering::Relaxed);
            return (inode.clone(), None);
        }
        let evicted = if shard.map.len() >= self.shard_max { shard.evict() } else { None };
        let inode = Inode::new(*id, &self.clock);
        shard.map.insert(*id, inode.clone());
        shard.order.push_back(*id);
        (inode, evicted)
    }

    /// The object is gone: its handle, its blocks and its descriptor with it.
    pub fn remove(&self, id: &ObjectId) -> Evicted {
        let mut shard = lock(self.shard(id));
        shard.order.retain(|other| other != id);
        shard.map.remove(id)
    }

    pub fn clear(&self) {
        for shard in &self.shards {
            *lock(shard) = Shard::default();
        }
    }

    pub fn len(&self) -> usize {
        self.shards.iter().map(|shard| lock(shard).map.len()).sum()
    }
}

impl Shard {
    fn evict(&mut self) -> Evicted {
        for _ in 0..EVICTION_SCAN {
            let id = self.order.pop_front()?;
            let Some(inode) = self.map.get(&id) else { continue };
            let in_use = Arc::strong_count(inode) > 1 || !inode.state.try_lock().is_ok_and(|state| state.is_idle());
            if in_use || inode.used.swap(false, Ordering::Relaxed) {
                self.order.push_back(id);
                continue;
            }
            return self.map.remove(&id);
        }
        None
    }
}

/// Spreads object identities over shards and threads.
pub fn spread(id: &ObjectId) -> usize {
    // FNV-1a: what is hashed is a checked handle, not a client's choice.
    let hash =
        id.as_bytes().iter().fold(0xcbf2_9ce4_8422_2325u64, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3));
    (hash >> 32) as usize
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::{ObjectKind, Timestamp};

    fn seen(size: u64, at: i64) -> Attributes {
        let time = Timestamp { seconds: at, nanoseconds: 0 };
        Attributes {
            kind: ObjectKind::File,
            mode: 0o644,
            links: 1,
            uid: 0,
            gid: 0,
            size,
            used: 0,
            device: (0, 0),
            file_system: 1,
            file_id: 2,
            accessed: time,
            modified: time,
            changed: time,
        }
    }

    #[test]
    fn of_two_looks_with_one_time_stamp_none_is_believed() {
        let (epochs, counts) = (Epochs::default(), Counts::default());
        let table = Table::new(16, Arc::new(Clock::new(1)));
        let (inode, _) = table.intern(&ObjectId::new(b"x").unwrap());
        let mut state = lock(&inode.state);
        let now = Instant::from_millis(1);
        // A WRITE that extends the file ends between the last look of a chmod and the note it makes of it.
        state.begin_change(epochs.now(), seen(100, 5), now, &epochs, &counts);
        state.begin_change(epochs.now(), seen(100, 5), now, &epochs, &counts);
        state.end_change(Some(seen(200, 6)), now, &epochs);
        state.end_change(Some(seen(100, 6)), now, &epochs);
        assert_ne!(state.attributes.map(|known| known.size), Some(100), "the file seems to have shrunk");
    }
}
