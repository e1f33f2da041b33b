//! READs that wait for blocks, blocks on their way into the cache, and read-ahead.
//!
//! A READ holds the blocks it has got, so that eviction cannot take them back while it waits for the rest. One read of a
//! block is on its way at a time; everybody else who wants the block waits for it. A READ that cannot get a page for its
//! first block answers DELAY, one that has some of its blocks is answered short (RFC 1813 section 3.3.6 allows it).

use std::sync::Arc;
use std::sync::atomic::Ordering;

use smallvec::SmallVec;

use super::{DataJob, DataThread, Fill, Pending};
use crate::buf::{PageMut, Slice};
use crate::raw::uring::Buffers;
use crate::store::cache::lock;
use crate::store::local::inode::{Inode, State};
use crate::store::local::worker::Job;
use crate::store::local::{Park, Shared, add, count, failure};
use crate::store::{Attributes, Outcome, Status};

/// Blocks one I/O operation brings at most.
const RUN_MAX: usize = 64;
/// Times a READ is tried again because the file turned out shorter than its attributes said.
const ATTEMPTS_MAX: u32 = 8;

/// A READ that waits.
pub struct Reader {
    pub park: Park,
    pub offset: u64,
    /// Clamped to the size of the file, not 0.
    pub count: u32,
    first: u64,
    parts: SmallVec<[Option<Slice>; 4]>,
    attempts: u32,
}

impl Reader {
    pub fn new(park: Park, offset: u64, count: u32, block_size: u64) -> Reader {
        let (first, last) = block_range(offset, u64::from(count), block_size);
        let parts = (first..=last).map(|_| None).collect();
        Reader { park, offset, count, first, parts, attempts: 0 }
    }

    fn part_mut(&mut self, index: u64) -> Option<&mut Option<Slice>> {
        self.parts.get_mut(usize::try_from(index.checked_sub(self.first)?).ok()?)
    }

    fn complete_parts(&self) -> usize {
        self.parts.iter().take_while(|part| part.is_some()).count()
    }
}

/// The first and last block of a range of `count > 0` bytes.
pub fn block_range(offset: u64, count: u64, block_size: u64) -> (u64, u64) {
    (offset / block_size, (offset.saturating_add(count) - 1) / block_size)
}

/// The part of block `index` that lies in `count` bytes from `offset`, as offsets into the block.
pub fn part_of_block(index: u64, offset: u64, count: u64, block_size: u64) -> (usize, usize) {
    let start = index * block_size;
    let from = offset.saturating_sub(start).min(block_size);
    let to = (offset + count).saturating_sub(start).min(block_size);
    (from as usize, to as usize)
}

/// How many of `count` bytes at `offset` a file of `size` has, and whether they reach its end.
pub fn clamp(size: u64, offset: u64, count: u64) -> (u64, bool) {
    let left = size.saturating_sub(offset);
    (count.min(left), count >= left)
}

impl Shared {
    /// Reads blocks for the waiting READs of a file and answers those that have everything. No lock may be held.
    pub(in crate::store::local) fn advance_readers(&self, inode: &Arc<Inode>) {
        let mut pages = Vec::new();
        loop {
            let mut state = lock(&inode.state);
            if state.readers.is_empty() {
                return;
            }
            let Some(attributes) = state.attributes else {
                // Resumed when a metadata thread has looked.
                if !std::mem::replace(&mut state.refreshing, true) {
                    self.send_work(Job::Refresh(inode.clone()));
                }
                return;
            };
            let finished = self.collect(&mut state, &attributes);
            let (fills, missing) = self.plan_fills(&mut state, inode, &mut pages);
            drop(state);
            for (reader, blocks) in finished {
                self.answer_read(reader, blocks, &attributes);
            }
            for fill in fills {
                self.send_data(inode, DataJob::Fill(fill));
            }
            if missing == 0 {
                return;
            }
            pages = self.allocate_some(missing.min(RUN_MAX));
            if pages.is_empty() {
                return self.starve(inode);
            }
        }
    }

    /// Gives readers what is in memory; takes out those that are complete.
    fn collect(&self, state: &mut State, attributes: &Attributes) -> Vec<(Reader, usize)> {
        let mut finished = Vec::new();
        let mut index = 0;
        while index < state.readers.len() {
            let State { readers, blocks, .. } = state;
            let reader = &mut readers[index];
            for (at, part) in reader.parts.iter_mut().enumerate() {
                if part.is_none()
                    && let Some((page, _)) = blocks.get(reader.first + at as u64)
                {
                    *part = Some(page.clone());
                }
            }
            let complete = reader.complete_parts();
            // The file may have become shorter meanwhile.
            if complete == reader.parts.len() || attributes.size <= reader.offset {
                finished.push((readers.swap_remove(index), complete));
            } else {
                index += 1;
            }
        }
        finished
    }

    /// Starts reading what is missing into `pages`, as far as they go; tells how many blocks are left without a page.
    fn plan_fills(&self, state: &mut State, inode: &Arc<Inode>, pages: &mut Vec<PageMut>) -> (Vec<Fill>, usize) {
        let mut wanted: Vec<u64> = Vec::new();
        for reader in &state.readers {
            let missing = reader.parts.iter().enumerate().filter(|(_, part)| part.is_none());
            wanted.extend(missing.map(|(at, _)| reader.first + at as u64));
        }
        wanted.sort_unstable();
        wanted.dedup();
        wanted.retain(|index| state.is_to_be_read(*index));
        let left = wanted.len().saturating_sub(pages.len());
        wanted.truncate(pages.len());
        (self.fills(state, inode, &wanted, pages, false), left)
    }

    /// Marks `wanted` (absent, ascending) as being read and cuts it into runs.
    fn fills(&self, state: &mut State, inode: &Arc<Inode>, wanted: &[u64], pages: &mut Vec<PageMut>, ahead: bool) -> Vec<Fill> {
        let mut fills: Vec<Fill> = Vec::new();
        for index in wanted {
            let Some(page) = pages.pop() else { break };
            match fills.last_mut() {
                Some(fill) if fill.first + fill.pages.len() as u64 == *index && fill.pages.len() < RUN_MAX => {
                    fill.pages.push(page)
                }
                _ => {
                    let id = self.next_fill_id();
                    fills.push(Fill { inode: inode.clone(), first: *index, id, pages: vec![page], ahead });
                }
            }
            if let Some(fill) = fills.last() {
                state.blocks.begin_fill(*index, fill.id);
            }
        }
        self.busy.fetch_add(fills.len(), Ordering::SeqCst);
        let counter = if ahead { &self.counts.readahead_issued } else { &self.counts.blocks_filled };
        add(counter, fills.iter().map(|fill| fill.pages.len() as u64).sum());
        fills
    }

    /// No page is to be had: READs whose next block nobody reads are answered with what they have. The others go on when a
    /// block arrives.
    fn starve(&self, inode: &Inode) {
        let mut starved = Vec::new();
        let mut state = lock(&inode.state);
        let Some(attributes) = state.attributes else { return };
        let mut index = 0;
        while index < state.readers.len() {
            let reader = &state.readers[index];
            let first_missing = reader.first + reader.complete_parts() as u64;
            if state.is_to_be_read(first_missing) {
                starved.push(state.readers.swap_remove(index));
            } else {
                index += 1;
            }
        }
        drop(state);
        for reader in starved {
            count(&self.counts.pool_exhausted);
            match reader.complete_parts() {
                0 => self.complete(reader.park, Err(failure(Status::Delay, Some(&attributes))), SmallVec::new()),
                blocks => self.answer_read(reader, blocks, &attributes),
            }
        }
    }

    /// Answers with the first `blocks` blocks of what was asked.
    fn answer_read(&self, reader: Reader, blocks: usize, attributes: &Attributes) {
        let block_size = self.block_size();
        let (count, _) = clamp(attributes.size, reader.offset, u64::from(reader.count));
        let mut pages = SmallVec::new();
        let mut given = 0;
        for (at, part) in reader.parts.iter().take(blocks).enumerate() {
            let (from, to) = part_of_block(reader.first + at as u64, reader.offset, count, block_size);
            if let Some(part) = part
                && to > from
            {
                given += to - from;
                pages.push(part.slice(from..to));
            }
        }
        let end_of_file = reader.offset.saturating_add(given as u64) >= attributes.size;
        let answer = Outcome::Data { count: given as u32, end_of_file, attributes: *attributes };
        self.complete(reader.park, Ok(answer), pages);
    }

    /// A run of blocks arrived, or did not.
    pub(super) fn end_fill(&self, fill: Fill, result: Result<usize, Status>) {
        let Fill { inode, first, id, pages, ahead } = fill;
        let mut state = lock(&inode.state);
        let size = state.attributes.map(|attributes| attributes.size);
        let wanted = pages.len() as u64 * self.block_size();
        let expected = size.map_or(0, |size| clamp(size, first * self.block_size(), wanted).0);
        let mut failed = Vec::new();
        let filled = match result {
            Ok(filled) if filled as u64 >= expected && size.is_some() => Some(filled),
            Ok(_) => {
                // The file is shorter than we think: look again before anybody is answered.
                count(&self.counts.fills_short);
                state.expire();
                None
            }
            Err(status) => {
                count(&self.counts.fills_short);
                failed.push(status);
                None
            }
        };
        let blocks = pages.len() as u64;
        for (at, page) in pages.into_iter().enumerate() {
            let index = first + at as u64;
            let still_wanted = state.blocks.end_fill(index, id);
            if let (true, Some(filled)) = (still_wanted, filled) {
                self.place(&mut state, index, at, page, filled, ahead);
            }
        }
        let mut dropped = Vec::new();
        if filled.is_none() {
            let overlaps = |reader: &Reader| reader.first < first + blocks && first < reader.first + reader.parts.len() as u64;
            let mut index = 0;
            while index < state.readers.len() {
                let reader = &mut state.readers[index];
                reader.attempts += 1;
                if overlaps(reader) && (!failed.is_empty() || reader.attempts > ATTEMPTS_MAX) {
                    dropped.push(state.readers.swap_remove(index));
                } else {
                    index += 1;
                }
            }
        }
        let attributes = state.attributes;
        drop(state);
        for reader in dropped {
            let status = failed.first().copied().unwrap_or(Status::Io);
            self.complete(reader.park, Err(failure(status, attributes.as_ref())), SmallVec::new());
        }
        self.advance_readers(&inode);
        self.busy.fetch_sub(1, Ordering::SeqCst);
    }

    /// Block `index`, the `at`th of a run that brought `filled` bytes, goes to those who wait and into the cache.
    fn place(&self, state: &mut State, index: u64, at: usize, mut page: PageMut, filled: usize, ahead: bool) {
        let valid = filled.saturating_sub(at * page.len()).min(page.len());
        page[valid..].fill(0);
        let page = page.freeze();
        let mut used = false;
        for reader in &mut state.readers {
            if let Some(part @ None) = reader.part_mut(index) {
                *part = Some(page.clone());
                used = true;
            }
        }
        state.blocks.install(index, page, ahead && !used);
        if ahead && used {
            count(&self.counts.readahead_used);
        }
    }

    /// Notes where a READ was and reads ahead of it if it goes on where one stopped before. Allocates nothing while what
    /// lies ahead is in memory.
    pub(in crate::store::local) fn read_ahead(
        &self,
        inode: &Arc<Inode>,
        state: &mut State,
        offset: u64,
        count: u64,
    ) -> Option<Ahead> {
        let window_max = self.options.readahead_blocks_max;
        let block_size = self.block_size();
        let size = state.attributes?.size;
        let end = offset.saturating_add(count);
        let sequence = &mut state.sequence;
        // READs sent in parallel arrive out of order: near enough counts as sequential.
        let sequential = offset.abs_diff(sequence.next) <= window_max.max(1) * block_size;
        sequence.next = if sequential { sequence.next.max(end) } else { end };
        if !sequential || window_max == 0 || end == 0 {
            sequence.window = 0;
            sequence.until = 0;
            return None;
        }
        sequence.window = (sequence.window * 2).clamp(2, window_max);
        let here = (sequence.next - 1) / block_size;
        // Half of the window is still ahead: enough for now.
        if sequence.until > here + sequence.window / 2 {
            return None;
        }
        let from = sequence.until.max(here + 1);
        let to = (here + 1 + sequence.window).min(size.div_ceil(block_size));
        if from >= to {
            return None;
        }
        sequence.until = to;
        let absent = (from..to).any(|index| state.is_to_be_read(index));
        absent.then(|| Ahead { inode: inode.clone(), from, to })
    }

    /// Starts the reads that `read_ahead` planned, if there are pages to spare. No lock may be held.
    pub(in crate::store::local) fn start_ahead(&self, ahead: Ahead) {
        let Ahead { inode, from, to } = ahead;
        let mut pages = self.allocate_some((to - from) as usize);
        let mut state = lock(&inode.state);
        if pages.is_empty() {
            // The pool is under pressure: whoever asks comes first.
            state.sequence.window = 0;
            return;
        }
        let wanted: Vec<u64> = (from..to).filter(|index| state.is_to_be_read(*index)).collect();
        let fills = self.fills(&mut state, &inode, &wanted, &mut pages, true);
        drop(state);
        for fill in fills {
            self.send_data(&inode, DataJob::Fill(fill));
        }
    }
}

/// Blocks to be read before somebody asks.
pub struct Ahead {
    inode: Arc<Inode>,
    from: u64,
    to: u64,
}

impl DataThread {
    pub(super) fn start_fill(&mut self, shared: &Arc<Shared>, fill: Fill) {
        match shared.data_fd(&fill.inode) {
            Ok(fd) => {
                let Fill { inode, first, id, pages, ahead } = fill;
                let offset = first * shared.block_size();
                self.push(fd, offset, Buffers::Read(pages), Pending::Fill { inode, first, id, ahead });
            }
            Err(status) => shared.end_fill(fill, Err(status)),
        }
    }
}
