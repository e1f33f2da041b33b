//! One core's handle on the local store: what is in memory is answered here, in the core's loop, without a system call and
//! without allocating; everything else is parked with a data thread or a metadata thread.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::counters::LocalCounters;
use super::data::read::{Reader, block_range, clamp, part_of_block};
use super::data::write::{Piece, SyncAnswer, SyncWaiter, WriteRequest};
use super::inode::{Inode, State};
use super::worker::{Job, Owned};
use super::{Park, Shared, failure, not_a_file};
use crate::buf::{Slice, View};
use crate::counters::Counters;
use crate::store::cache::lock;
use crate::store::{
    Attributes, Credential, Failure, ObjectId, ObjectKind, Operation, Outcome, Stability, Start, Status, Store, Token, permission,
};
use crate::time::Instant;

/// Largest offset a file of the host can have.
const OFFSET_MAX: u64 = i64::MAX as u64;

/// One core's handle. Not shared between threads; any number of handles may exist, one for each core.
pub struct LocalHandle {
    shared: Arc<Shared>,
    core: usize,
    parked: usize,
    counters: LocalCounters,
}

/// A `WRITE` as it came.
struct Write<'a> {
    object: ObjectId,
    offset: u64,
    data: View<'a>,
    stability: Stability,
}

impl LocalHandle {
    pub(super) fn new(shared: Arc<Shared>, core: usize) -> LocalHandle {
        LocalHandle { shared, core, parked: 0, counters: LocalCounters::default() }
    }

    fn refuse(&mut self) -> Start {
        self.counters.queue_full_delays += 1;
        Start::Done(Err(Status::Delay.into()))
    }

    /// Whether one more operation may be parked; if so it counts as parked.
    fn admit(&mut self) -> bool {
        if self.parked >= self.shared.options.parked_max {
            return false;
        }
        // Counted before the flag is asked for: `shutdown` sets the flag and then waits for the count.
        self.parked += 1;
        self.shared.busy.fetch_add(1, Ordering::SeqCst);
        if self.shared.stopping.load(Ordering::SeqCst) {
            self.withdraw();
            return false;
        }
        self.counters.operations_parked += 1;
        true
    }

    fn withdraw(&mut self) {
        self.parked -= 1;
        self.shared.busy.fetch_sub(1, Ordering::SeqCst);
    }

    fn park(&mut self, park: Park, caller: &Credential, operation: Owned) -> Start {
        if self.shared.work.len() >= self.shared.options.queue_max || !self.admit() {
            return self.refuse();
        }
        self.shared.send_work(Job::Operation { park, caller: caller.clone(), operation, held: None });
        Start::Parked
    }

    /// What is known of the object, if it is fresh: the inode and its attributes.
    fn fresh(&self, object: &ObjectId, now: Instant) -> Option<(Arc<Inode>, Attributes)> {
        let inode = self.shared.table.get(object)?;
        let attributes = *lock(&inode.state).fresh(now, self.shared.attribute_age_max())?;
        Some((inode, attributes))
    }

    fn start_read(
        &mut self,
        park: Park,
        caller: &Credential,
        (object, offset, count): (ObjectId, u64, u32),
        pages: &mut Vec<Slice>,
    ) -> Start {
        let Some(inode) = self.shared.table.get(&object) else {
            return self.park(park, caller, Owned::Read { object, offset, count });
        };
        let mut state = lock(&inode.state);
        let Some(attributes) = state.fresh(park.now, self.shared.attribute_age_max()).copied() else {
            drop(state);
            return self.park(park, caller, Owned::Read { object, offset, count });
        };
        match admit_read(&attributes, caller, offset, count) {
            Err(failure) => return Start::Done(Err(failure)),
            Ok(0) => {
                let end_of_file = offset >= attributes.size;
                return Start::Done(Ok(Outcome::Data { count: 0, end_of_file, attributes }));
            }
            Ok(_) => {}
        }
        let (count, end_of_file) = clamp(attributes.size, offset, u64::from(count));
        let hit = self.gather(&mut state, offset, count, pages);
        let ahead = self.shared.read_ahead(&inode, &mut state, offset, count);
        drop(state);
        let start = if hit {
            self.counters.read_hits += 1;
            Start::Done(Ok(Outcome::Data { count: count as u32, end_of_file, attributes }))
        } else if self.admit() {
            self.counters.read_misses += 1;
            let reader = Reader::new(park, offset, count as u32, self.shared.block_size());
            lock(&inode.state).readers.push(reader);
            self.shared.advance_readers(&inode);
            Start::Parked
        } else {
            self.refuse()
        };
        if let Some(ahead) = ahead {
            self.shared.start_ahead(ahead);
        }
        start
    }

    /// Appends the slices of `count` bytes at `offset` if all of them are in memory.
    fn gather(&mut self, state: &mut State, offset: u64, count: u64, pages: &mut Vec<Slice>) -> bool {
        let block_size = self.shared.block_size();
        let before = pages.len();
        let (first, last) = block_range(offset, count, block_size);
        for index in first..=last {
            let Some((page, used_ahead)) = state.blocks.get(index) else {
                pages.truncate(before);
                return false;
            };
            let (from, to) = part_of_block(index, offset, count, block_size);
            pages.push(page.slice(from..to));
            self.counters.readahead_used += u64::from(used_ahead);
        }
        true
    }

    fn start_write(&mut self, park: Park, caller: &Credential, write: &Write<'_>) -> Start {
        let Write { object, offset, data, stability } = *write;
        let len = data.len() as u64;
        let too_large = offset.checked_add(len).is_none_or(|end| end > OFFSET_MAX);
        let known = self.fresh(&object, park.now);
        if let Some((_, attributes)) = &known {
            if let Err(status) = admit_write(attributes, caller) {
                return Start::Done(Err(failure(status, Some(attributes))));
            }
            if too_large {
                return Start::Done(Err(failure(Status::FileTooLarge, Some(attributes))));
            }
        } else if too_large {
            return Start::Done(Err(Status::FileTooLarge.into()));
        }
        if !self.admit() {
            return self.refuse();
        }
        let Some(pieces) = self.take_payload(offset, data) else {
            self.withdraw();
            self.counters.pool_exhausted += 1;
            return Start::Done(Err(Status::Delay.into()));
        };
        let request = WriteRequest { park, caller: caller.clone(), offset, len, pieces, stability };
        let Some((inode, attributes)) = known else {
            self.shared.send_work(Job::Write { object, request });
            return Start::Parked;
        };
        let mut state = lock(&inode.state);
        if self.shared.enqueue_write(&inode, &mut state, request).is_err() {
            drop(state);
            self.withdraw();
            return Start::Done(Err(failure(Status::Delay, Some(&attributes))));
        }
        Start::Parked
    }

    /// The one copy of a WRITE's payload: from the received buffers into pages, each byte at its place in its block.
    fn take_payload(&mut self, offset: u64, data: View<'_>) -> Option<Vec<Piece>> {
        let mut pieces = Vec::new();
        let len = data.len() as u64;
        if len == 0 {
            return Some(pieces);
        }
        let block_size = self.shared.block_size();
        let (first, last) = block_range(offset, len, block_size);
        let mut rest = data;
        for index in first..=last {
            let (from, to) = part_of_block(index, offset, len, block_size);
            let (part, behind) = rest.split_at(to - from)?;
            let mut page = self.shared.allocate()?;
            part.copy_to(&mut page[from..to]);
            pieces.push(Piece { index, page, from, to });
            rest = behind;
        }
        Some(pieces)
    }

    fn start_commit(&mut self, park: Park, caller: &Credential, object: ObjectId) -> Start {
        let Some((inode, attributes)) = self.fresh(&object, park.now) else {
            return self.park(park, caller, Owned::Commit { object });
        };
        if let Err(status) = admit_write(&attributes, caller) {
            return Start::Done(Err(failure(status, Some(&attributes))));
        }
        if !self.admit() {
            return self.refuse();
        }
        let mut state = lock(&inode.state);
        self.shared.enqueue_sync(&inode, &mut state, SyncWaiter { park, answer: SyncAnswer::Commit });
        Start::Parked
    }
}

/// Checks a READ; how many bytes it will bring (RFC 1813 section 3.3.6).
pub fn admit_read(attributes: &Attributes, caller: &Credential, offset: u64, count: u32) -> Result<u64, Failure> {
    if attributes.kind != ObjectKind::File {
        return Err(failure(not_a_file(attributes.kind), Some(attributes)));
    }
    permission::may_read(attributes, caller).map_err(|status| failure(status, Some(attributes)))?;
    Ok(clamp(attributes.size, offset, u64::from(count)).0)
}

/// Checks a WRITE or COMMIT.
pub fn admit_write(attributes: &Attributes, caller: &Credential) -> Result<(), Status> {
    if attributes.kind != ObjectKind::File {
        return Err(not_a_file(attributes.kind));
    }
    permission::may_write(attributes, caller)
}

impl Store for LocalHandle {
    fn root(&self) -> ObjectId {
        self.shared.root_id
    }

    fn pages_refused(&self) -> u64 {
        self.counters.pool_exhausted + self.shared.counts.pool_exhausted.load(Ordering::Relaxed)
    }

    fn start(
        &mut self,
        now: Instant,
        caller: &Credential,
        operation: &Operation<'_>,
        token: Token,
        pages: &mut Vec<Slice>,
    ) -> Start {
        let park = Park { core: self.core, token, now };
        match *operation {
            Operation::Read { object, offset, count } => self.start_read(park, caller, (object, offset, count), pages),
            Operation::Write { object, offset, data, stability } => {
                self.start_write(park, caller, &Write { object, offset, data, stability })
            }
            Operation::Commit { object, .. } => self.start_commit(park, caller, object),
            Operation::GetAttributes { object } => match self.fresh(&object, now) {
                Some((_, attributes)) => {
                    self.counters.attribute_hits += 1;
                    Start::Done(Ok(Outcome::Attributes(attributes)))
                }
                None => self.park(park, caller, Owned::GetAttributes { object }),
            },
            Operation::Access { object, mask } => match self.fresh(&object, now) {
                Some((_, attributes)) => {
                    self.counters.attribute_hits += 1;
                    let mask = permission::granted(&attributes, caller, mask);
                    Start::Done(Ok(Outcome::Granted { mask, attributes }))
                }
                None => self.park(park, caller, Owned::Access { object, mask }),
            },
            _ => match Owned::new(operation) {
                Ok(operation) => self.park(park, caller, operation),
                Err(status) => Start::Done(Err(status.into())),
            },
        }
    }

    fn poll_completion(&mut self, _now: Instant, pages: &mut Vec<Slice>) -> Option<(Token, Result<Outcome, Failure>)> {
        let completed = self.shared.cores[self.core].completed.pop()?;
        self.parked -= 1;
        pages.extend(completed.pages);
        Some((completed.token, completed.answer))
    }

    fn parked(&self) -> usize {
        self.parked
    }

    /// What this core counted in its own loop; add `LocalStore::counters`, which the I/O threads count together.
    fn counters(&self) -> Option<&dyn Counters> {
        Some(&self.counters)
    }
}
