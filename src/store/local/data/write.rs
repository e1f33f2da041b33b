//! WRITEs, COMMITs and exclusive changes of one file, in order.
//!
//! Read first: RFC 1813 sections 3.3.7 and 3.3.21; fsync(2).
//!
//! WRITEs to a file are done in rounds (`Batch`): what is queued and does not overlap goes to the kernel together, and the
//! next round starts when the last write of this one has ended. So overlapping writes reach the file in the order of their
//! arrival, and the file's attributes are looked at between rounds, when nothing of ours changes it (`inode`). Weak cache
//! consistency data has a `before` only if the round had one WRITE: with several, a `before` would tell one client that
//! nobody else wrote (the Linux server never sends it for WRITE).
//!
//! The payload was copied once, from the received buffers into a page at its place in the block. If the rest of the block is
//! known (cached, past the end of the file, or covered), it is completed from there and the page becomes the cached block:
//! the old page is never written, its holders keep the old bytes. If not, the page is written around the cache: reading the
//! rest first would make every small random write wait for a read, and the kernel's cache holds the block anyway.
//!
//! A change of size runs alone: it waits in the same queue, then a metadata thread does it while the queue stands still.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use smallvec::SmallVec;

use super::{DataJob, DataThread, Pending};
use crate::buf::{PageMut, Slice};
use crate::raw::uring::Buffers;
use crate::store::cache::lock;
use crate::store::local::inode::{Inode, State};
use crate::store::local::worker::Job;
use crate::store::local::{Park, Shared, add, count, failure, sys};
use crate::store::{Attributes, Credential, Failure, Outcome, Stability, Status, Wcc, permission};
use crate::time::Instant;

/// WRITEs in one round.
const ROUND_MAX: usize = 64;

/// The part of a WRITE that lies in one block, at its place in a page.
pub struct Piece {
    pub index: u64,
    pub page: PageMut,
    pub from: usize,
    pub to: usize,
}

/// A WRITE that waits for its round; the caller may write the file (checked).
pub struct WriteRequest {
    pub park: Park,
    pub caller: Credential,
    pub offset: u64,
    pub len: u64,
    pub pieces: Vec<Piece>,
    pub stability: Stability,
}

/// What waits for a file.
pub enum Queued {
    Write(WriteRequest),
    /// Runs on a metadata thread with the file to itself.
    Exclusive(Box<Job>),
}

/// Who waits for an fsync.
pub struct SyncWaiter {
    pub park: Park,
    pub answer: SyncAnswer,
}

pub enum SyncAnswer {
    Commit,
    /// `losses`: the file's when the first byte was written.
    Write {
        count: u32,
        stability: Stability,
        verifier: [u8; 8],
        wcc: Wcc,
        losses: u64,
    },
}

/// An fsync on its way, and whom it is for.
pub struct SyncRound {
    inode: Arc<Inode>,
    waiters: Vec<SyncWaiter>,
}

/// A WRITE in a running round.
struct Running {
    park: Park,
    offset: u64,
    len: u64,
    stability: Stability,
    failed: Option<Status>,
}

/// A running round.
pub struct Batch {
    inode: Arc<Inode>,
    fd: Arc<OwnedFd>,
    before: Attributes,
    /// As it was before the first byte was written: if data is lost meanwhile, what this round wrote may be among it, and
    /// an answer with the verifier after the loss would let the next COMMIT pass for it.
    verifier: [u8; 8],
    /// The file's at that time, for the same reason.
    losses: u64,
    now: Instant,
    writes: Vec<Running>,
    /// Blocks written past the cache.
    around: Vec<u64>,
    left: usize,
}

impl Shared {
    /// Queues a WRITE; gives it back if too many wait for this file.
    pub(in crate::store::local) fn enqueue_write(
        &self,
        inode: &Arc<Inode>,
        state: &mut State,
        request: WriteRequest,
    ) -> Result<(), WriteRequest> {
        if state.queue.len() >= self.options.writes_per_file_max {
            count(&self.counts.queue_full_delays);
            return Err(request);
        }
        state.queue.push_back(Queued::Write(request));
        if !std::mem::replace(&mut state.writing, true) {
            self.send_data(inode, DataJob::Write(inode.clone()));
        }
        Ok(())
    }

    /// Makes `job` wait for an fsync of the file.
    pub(in crate::store::local) fn enqueue_sync(&self, inode: &Arc<Inode>, state: &mut State, waiter: SyncWaiter) {
        state.sync_waiters.push(waiter);
        if !state.syncing {
            self.send_data(inode, DataJob::Sync(inode.clone()));
        }
    }

    /// Takes the file for a change that must run alone. `None`: others run, the job comes back to a metadata thread later.
    pub(in crate::store::local) fn begin_exclusive(&self, inode: &Arc<Inode>, job: Job) -> Option<Job> {
        let mut state = lock(&inode.state);
        if std::mem::replace(&mut state.writing, true) {
            state.queue.push_back(Queued::Exclusive(Box::new(job)));
            return None;
        }
        Some(job)
    }

    pub(in crate::store::local) fn end_exclusive(&self, inode: &Arc<Inode>) {
        let mut state = lock(&inode.state);
        if state.queue.is_empty() {
            state.writing = false;
        } else {
            self.send_data(inode, DataJob::Write(inode.clone()));
        }
    }

    /// Puts a WRITE's pages into the cache as far as whole blocks are known; gives the slices to write to the file.
    fn apply(&self, state: &mut State, request: &mut WriteRequest, size: &mut u64, around: &mut Vec<u64>) -> Vec<Slice> {
        let block_size = self.block_size();
        let mut pieces = Vec::with_capacity(request.pieces.len());
        for Piece { index, mut page, from, to } in request.pieces.drain(..) {
            let valid = size.saturating_sub(index * block_size).min(block_size) as usize;
            let known = if let Some((old, _)) = state.blocks.get(index) {
                page[..from].copy_from_slice(&old[..from]);
                page[to..].copy_from_slice(&old[to..]);
                true
            } else if (from == 0 && to >= valid) || valid == 0 {
                page[..from].fill(0);
                page[to..].fill(0);
                true
            } else {
                false
            };
            let page = page.freeze();
            pieces.push(page.slice(from..to));
            if !known {
                state.blocks.forget(index);
            }
            // A full cache takes nothing. Then too a read may bring the block into it before the write reaches the file.
            if !known || !state.blocks.install(index, page, false) {
                around.push(index);
                count(&self.counts.writes_around);
            }
        }
        *size = (*size).max(request.offset + request.len);
        pieces
    }

    fn answer_write(&self, inode: &Arc<Inode>, running: Running, (verifier, losses): ([u8; 8], u64), wcc: Wcc) {
        let Running { park, len, stability, failed, .. } = running;
        if let Some(status) = failed {
            return self.complete(park, Err(Failure { status, wcc: [wcc, Wcc::default()] }), SmallVec::new());
        }
        count(&self.counts.writes);
        add(&self.counts.write_bytes, len);
        let answer = SyncAnswer::Write { count: len as u32, stability, verifier, wcc, losses };
        let waiter = SyncWaiter { park, answer };
        if stability == Stability::Unstable || len == 0 {
            self.answer_synced(waiter, None, losses);
        } else {
            self.enqueue_sync(inode, &mut lock(&inode.state), waiter);
        }
    }

    /// Answers who waited for storage. `losses`: the file's by now.
    fn answer_synced(&self, waiter: SyncWaiter, attributes: Option<&Attributes>, by_now: u64) {
        let answer = match waiter.answer {
            SyncAnswer::Commit => {
                let wcc = Wcc { before: attributes.map(Into::into), after: attributes.copied() };
                Outcome::Committed { verifier: self.verifier(), wcc }
            }
            // An fsync that failed meanwhile may have been told of this WRITE's pages, and the one that was made for it found them clean. Who has
            // asked for stable storage looks at no verifier.
            SyncAnswer::Write { losses, wcc, .. } if losses != by_now => {
                return self.complete(
                    waiter.park,
                    Err(Failure { status: Status::Io, wcc: [wcc, Wcc::default()] }),
                    SmallVec::new(),
                );
            }
            SyncAnswer::Write { count, stability, verifier, wcc, .. } => Outcome::Written { count, stability, verifier, wcc },
        };
        self.complete(waiter.park, Ok(answer), SmallVec::new());
    }
}

/// Takes the next round from the queue: WRITEs that do not overlap, up to the first that does or is no WRITE.
fn take_round(state: &mut State) -> Vec<WriteRequest> {
    let mut round: Vec<WriteRequest> = Vec::new();
    while let Some(Queued::Write(next)) = state.queue.front() {
        let overlaps = |other: &WriteRequest| next.offset < other.offset + other.len && other.offset < next.offset + next.len;
        if round.len() >= ROUND_MAX || round.iter().any(overlaps) {
            break;
        }
        if let Some(Queued::Write(request)) = state.queue.pop_front() {
            round.push(request);
        }
    }
    round
}

impl DataThread {
    /// The file has queued work and nobody works on it but us (`State::writing`).
    pub(super) fn start_batch(&mut self, shared: &Arc<Shared>, inode: Arc<Inode>) {
        let mut state = lock(&inode.state);
        if let Some(Queued::Exclusive(_)) = state.queue.front() {
            if let Some(Queued::Exclusive(job)) = state.queue.pop_front() {
                shared.send_work(*job);
            }
            return;
        }
        let round = take_round(&mut state);
        if round.is_empty() {
            state.writing = false;
            return;
        }
        drop(state);
        if let Err((round, status)) = self.start_round(shared, &inode, round) {
            let attributes = lock(&inode.state).attributes;
            for request in round {
                shared.complete(request.park, Err(failure(status, attributes.as_ref())), SmallVec::new());
            }
            shared.send_data(&inode, DataJob::Write(inode.clone()));
        }
    }

    fn start_round(
        &mut self,
        shared: &Arc<Shared>,
        inode: &Arc<Inode>,
        mut round: Vec<WriteRequest>,
    ) -> Result<(), (Vec<WriteRequest>, Status)> {
        let verifier = shared.verifier();
        let opened = shared.data_fd_to_write(inode).and_then(|fd| {
            let since = shared.epochs.now();
            let before = sys::attributes(&*fd, shared.options.file_system)?;
            if before.links == 0 {
                shared.forget(&inode.id);
                return Err(Status::Stale);
            }
            Ok((fd, since, before))
        });
        let (fd, since, before) = match opened {
            Ok(opened) => opened,
            Err(status) => return Err((round, status)),
        };
        for request in &round {
            let mode = permission::mode_after_write(&before, &request.caller);
            if mode != before.mode && request.len > 0 {
                // The file is written by root here, whose writes do not clear these bits (inode(7)).
                let _ = rustix::fs::fchmod(&*fd, rustix::fs::Mode::from_raw_mode(mode));
            }
        }
        count(&shared.counts.write_batches);
        let now = round.iter().map(|request| request.park.now).max().unwrap_or(Instant::ZERO);
        let mut around = Vec::new();
        let mut size = before.size;
        let mut state = lock(&inode.state);
        state.begin_change(since, before, now, &shared.epochs, &shared.counts);
        state.dirty = true;
        let losses = state.losses;
        let pieces: Vec<Vec<Slice>> =
            round.iter_mut().map(|request| shared.apply(&mut state, request, &mut size, &mut around)).collect();
        state.being_written = round
            .iter()
            .filter(|request| request.len > 0)
            .map(|request| super::read::block_range(request.offset, request.len, shared.block_size()))
            .collect();
        drop(state);
        let id = self.next_tag;
        self.next_tag += 1;
        let mut left = 0;
        for (index, (request, pieces)) in round.iter().zip(pieces).enumerate() {
            if !pieces.is_empty() {
                left += 1;
                let offset = request.offset;
                self.push(fd.clone(), offset, Buffers::Write(pieces), Pending::Write { batch: id, index, offset });
            }
        }
        let running = |request: WriteRequest| {
            let WriteRequest { park, offset, len, stability, .. } = request;
            Running { park, offset, len, stability, failed: None }
        };
        let writes = round.into_iter().map(running).collect();
        let batch = Batch { inode: inode.clone(), fd, before, verifier, losses, now, writes, around, left };
        if left == 0 {
            self.end_batch(shared, batch);
        } else {
            self.batches.insert(id, batch);
        }
        Ok(())
    }

    /// One WRITE of a round ended, or a part of it.
    pub(super) fn end_write(
        &mut self,
        shared: &Arc<Shared>,
        (id, index, offset): (u64, usize, u64),
        mut pieces: Vec<Slice>,
        result: std::io::Result<usize>,
    ) {
        let Some(batch) = self.batches.get_mut(&id) else { return };
        let wanted: usize = pieces.iter().map(|piece| piece.len()).sum();
        let written = match &result {
            Ok(written) => *written,
            Err(error) if matches!(error.raw_os_error(), Some(libc::EINTR | libc::EAGAIN)) => 0,
            Err(_) => usize::MAX,
        };
        if written < wanted && (written > 0 || result.is_err()) {
            // A short write: go on where it stopped; the error, if there is one, comes then.
            let fd = batch.fd.clone();
            skip(&mut pieces, written);
            let offset = offset + written as u64;
            return self.push(fd, offset, Buffers::Write(pieces), Pending::Write { batch: id, index, offset });
        }
        if matches!(&result, Err(error) if error.raw_os_error() == Some(libc::ENOSPC)) && shared.close_removed() > 0 {
            let fd = batch.fd.clone();
            return self.push(fd, offset, Buffers::Write(pieces), Pending::Write { batch: id, index, offset });
        }
        if let Some(running) = batch.writes.get_mut(index) {
            running.failed = match result {
                Ok(written) if written == wanted => None,
                Ok(_) => Some(Status::NoSpace),
                Err(error) if error.raw_os_error() == Some(libc::EBADF) => Some(Status::ReadOnly),
                Err(error) => Some(sys::status(&error)),
            };
        }
        batch.left -= 1;
        if batch.left == 0
            && let Some(batch) = self.batches.remove(&id)
        {
            self.end_batch(shared, batch);
        }
    }

    fn end_batch(&mut self, shared: &Arc<Shared>, batch: Batch) {
        let Batch { inode, fd, before, verifier, losses, now, writes, around, .. } = batch;
        let after = sys::attributes(&*fd, shared.options.file_system).ok();
        drop(fd);
        let alone = writes.len() == 1;
        let mut state = lock(&inode.state);
        state.end_change(after, now, &shared.epochs);
        // An fsync that began after this round did and ended before it has not seen all of it.
        state.dirty = true;
        state.being_written.clear();
        for index in around {
            // What was read of it meanwhile may be older than the write.
            state.blocks.forget(index);
        }
        for write in writes.iter().filter(|write| write.failed.is_some() && write.len > 0) {
            let (first, last) = super::read::block_range(write.offset, write.len, shared.block_size());
            (first..=last).for_each(|index| state.blocks.forget(index));
        }
        drop(state);
        let wcc = Wcc { before: alone.then(|| (&before).into()), after };
        for write in writes {
            shared.answer_write(&inode, write, (verifier, losses), wcc);
        }
        shared.advance_readers(&inode);
        shared.send_data(&inode, DataJob::Write(inode.clone()));
    }

    pub(super) fn start_sync(&mut self, shared: &Arc<Shared>, inode: Arc<Inode>) {
        let mut state = lock(&inode.state);
        if state.syncing || state.sync_waiters.is_empty() {
            return;
        }
        state.syncing = true;
        state.dirty = false;
        let waiters = std::mem::take(&mut state.sync_waiters);
        drop(state);
        add(&shared.counts.commits, waiters.len() as u64);
        count(&shared.counts.syncs);
        let data_only =
            waiters.iter().all(|waiter| matches!(waiter.answer, SyncAnswer::Write { stability: Stability::DataSync, .. }));
        let round = SyncRound { inode: inode.clone(), waiters };
        match shared.data_fd(&inode) {
            Ok(fd) => self.push(fd, 0, Buffers::Sync { data_only }, Pending::Sync(round)),
            Err(status) => self.end_sync_with(shared, round, Err(status)),
        }
    }

    pub(super) fn end_sync(&mut self, shared: &Arc<Shared>, round: SyncRound, result: std::io::Result<usize>) {
        let result = result.map(|_| ()).map_err(|error| sys::status(&error));
        if result.is_err() {
            // The kernel tells an error of write-back once and then calls the pages clean (fsync(2), NOTES): everything
            // unstable must be sent again, by every client.
            shared.data_lost_of(&round.inode);
        }
        self.end_sync_with(shared, round, result);
    }

    fn end_sync_with(&mut self, shared: &Arc<Shared>, round: SyncRound, result: Result<(), Status>) {
        let SyncRound { inode, waiters } = round;
        let mut state = lock(&inode.state);
        state.syncing = false;
        let (attributes, losses) = (state.attributes, state.losses);
        if !state.sync_waiters.is_empty() {
            shared.send_data(&inode, DataJob::Sync(inode.clone()));
        }
        drop(state);
        for waiter in waiters {
            match result {
                Ok(()) => shared.answer_synced(waiter, attributes.as_ref(), losses),
                Err(status) => shared.complete(waiter.park, Err(failure(status, attributes.as_ref())), SmallVec::new()),
            }
        }
    }
}

/// Drops the first `n` bytes of a gather list.
fn skip(pieces: &mut Vec<Slice>, mut n: usize) {
    while let Some(first) = pieces.first_mut() {
        if n < first.len() {
            first.advance(n);
            return;
        }
        n -= first.len();
        pieces.remove(0);
    }
}
