//! The page cache: which blocks of which files are in memory, and which of them go first when memory is short.
//!
//! `FileBlocks` belongs to one file and is guarded by that file's lock. `Clock` is shared: a fixed table with one slot for
//! each block that may be cached, walked by a hand (the CLOCK algorithm: a block that was used since the hand last passed
//! stays). A slot names its block by (owner, index); the owner is a weak reference that the store chooses.
//!
//! A cached page is never written: a WRITE puts a new page in its place, so whoever holds a slice of the old one (a reply
//! that is not acknowledged yet) keeps the old bytes. A page somebody holds cannot be evicted: it would free no memory.
//!
//! Lock order: a file's lock, then the clock's. The clock never takes a file's lock; evicting asks with `try_lock`.
//! Not here: I/O, attributes, who waits for a block (`store::local`).

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::buf::Slice;
use crate::store::block_table::BlockTable;

/// Takes a lock; a panic elsewhere does not spread, because every critical section here leaves its data whole.
pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

struct Slots<O> {
    slots: Vec<Option<(O, u64)>>,
    free: Vec<u32>,
    hand: usize,
}

/// The budget of the cache, and the order of eviction.
pub struct Clock<O> {
    state: Mutex<Slots<O>>,
    capacity: usize,
}

impl<O: Clone> Clock<O> {
    /// `capacity`: blocks that may be cached.
    pub fn new(capacity: usize) -> Clock<O> {
        let slots = (0..capacity).map(|_| None).collect();
        let free = (0..capacity as u32).rev().collect();
        Clock { state: Mutex::new(Slots { slots, free, hand: 0 }), capacity }
    }

    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// Blocks that are cached.
    pub fn occupied(&self) -> usize {
        self.capacity - lock(&self.state).free.len()
    }

    pub fn is_full(&self) -> bool {
        lock(&self.state).free.is_empty()
    }

    fn insert(&self, owner: O, index: u64) -> Option<u32> {
        let mut state = lock(&self.state);
        let slot = state.free.pop()?;
        state.slots[slot as usize] = Some((owner, index));
        Some(slot)
    }

    fn remove(&self, slot: u32) {
        let mut state = lock(&self.state);
        if state.slots.get_mut(slot as usize).and_then(Option::take).is_some() {
            state.free.push(slot);
        }
    }

    /// Moves the hand to the next block and names it; `None` if the cache is empty.
    pub fn advance(&self) -> Option<(O, u64)> {
        let mut state = lock(&self.state);
        for _ in 0..self.capacity {
            let at = state.hand;
            state.hand = (at + 1) % self.capacity;
            if let Some(candidate) = &state.slots[at] {
                return Some(candidate.clone());
            }
        }
        None
    }
}

/// A block whose bytes are here. Bytes past the end of the file are zero.
struct Ready {
    page: Slice,
    slot: u32,
    /// Used since the hand last passed.
    referenced: bool,
    /// Brought by read-ahead and not used yet.
    ahead: bool,
}

enum Block {
    Ready(Ready),
    /// A read from the file is on its way; what it brings counts only if the id still matches.
    Filling {
        id: u64,
    },
}

/// What is known of a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Presence {
    Ready,
    Filling,
    Absent,
}

/// What the hand found at a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    Evicted { ahead: bool },
    Kept,
}

/// The slot of a block that is no longer cached.
fn give_back<O: Clone>(clock: &Clock<O>, block: &Block) {
    if let Block::Ready(ready) = block {
        clock.remove(ready.slot);
    }
}

/// The cached blocks of one file. Dropping it gives its slots back.
pub struct FileBlocks<O: Clone> {
    clock: Arc<Clock<O>>,
    owner: O,
    blocks: BlockTable<Block>,
}

impl<O: Clone> FileBlocks<O> {
    pub fn new(clock: Arc<Clock<O>>, owner: O) -> FileBlocks<O> {
        FileBlocks { clock, owner, blocks: BlockTable::default() }
    }

    pub fn presence(&self, index: u64) -> Presence {
        match self.blocks.get(index) {
            Some(Block::Ready(_)) => Presence::Ready,
            Some(Block::Filling { .. }) => Presence::Filling,
            None => Presence::Absent,
        }
    }

    pub fn is_empty(&self) -> bool {
        self.blocks.is_empty()
    }

    /// The page of a block, and whether this is the first use of a block that was read ahead.
    pub fn get(&mut self, index: u64) -> Option<(&Slice, bool)> {
        match self.blocks.get_mut(index)? {
            Block::Ready(ready) => {
                ready.referenced = true;
                Some((&ready.page, std::mem::take(&mut ready.ahead)))
            }
            Block::Filling { .. } => None,
        }
    }

    /// A read of this block was started under `id`.
    pub fn begin_fill(&mut self, index: u64, id: u64) {
        debug_assert_eq!(self.presence(index), Presence::Absent);
        self.blocks.insert(index, Block::Filling { id });
    }

    /// The read `id` of this block ended: tells whether what it brought is still wanted, and forgets it.
    pub fn end_fill(&mut self, index: u64, id: u64) -> bool {
        let wanted = matches!(self.blocks.get(index), Some(Block::Filling { id: current }) if *current == id);
        if wanted {
            self.blocks.remove(index);
        }
        wanted
    }

    /// Puts `page` in place of whatever is known of the block. If the cache is full nothing is cached, and `false` comes back.
    pub fn install(&mut self, index: u64, page: Slice, ahead: bool) -> bool {
        if let Some(Block::Ready(ready)) = self.blocks.get_mut(index) {
            ready.page = page;
            ready.referenced = true;
            return true;
        }
        let Some(slot) = self.clock.insert(self.owner.clone(), index) else {
            self.blocks.remove(index);
            return false;
        };
        self.blocks.insert(index, Block::Ready(Ready { page, slot, referenced: !ahead, ahead }));
        true
    }

    /// Forgets a block; what a running read brings for it will not be used.
    pub fn forget(&mut self, index: u64) {
        if let Some(block) = self.blocks.remove(index) {
            give_back(&self.clock, &block);
        }
    }

    /// Forgets the blocks from `index` on.
    pub fn forget_from(&mut self, index: u64) {
        self.blocks.remove_from(index, |block| give_back(&self.clock, &block));
    }

    /// Evicts the block if it was not used lately and nobody holds its page.
    pub fn try_evict(&mut self, index: u64) -> Verdict {
        let Some(Block::Ready(ready)) = self.blocks.get_mut(index) else { return Verdict::Kept };
        if std::mem::take(&mut ready.referenced) || !ready.page.is_unique() {
            return Verdict::Kept;
        }
        let ahead = ready.ahead;
        self.forget(index);
        Verdict::Evicted { ahead }
    }
}

impl<O: Clone> Drop for FileBlocks<O> {
    fn drop(&mut self) {
        self.forget_from(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::buf::PagePool;

    fn fixture(capacity: usize) -> (PagePool, Arc<Clock<u8>>, FileBlocks<u8>) {
        let clock = Arc::new(Clock::new(capacity));
        (PagePool::anonymous(8, 512).unwrap(), clock.clone(), FileBlocks::new(clock, 1))
    }

    #[test]
    fn the_hand_spares_what_was_used_and_what_is_held() {
        let (pool, clock, mut blocks) = fixture(3);
        for index in 0..3 {
            assert!(blocks.install(index, pool.allocate().unwrap().freeze(), true));
        }
        assert!(!blocks.install(9, pool.allocate().unwrap().freeze(), false), "full");
        assert_eq!(blocks.presence(9), Presence::Absent);
        let held = blocks.get(0).unwrap().0.clone();
        assert!(!blocks.get(0).unwrap().1, "ahead is told once");
        let mut round = || (0..3).map(|_| blocks.try_evict(clock.advance().unwrap().1)).collect::<Vec<_>>();
        assert_eq!(round(), [Verdict::Kept, Verdict::Evicted { ahead: true }, Verdict::Evicted { ahead: true }]);
        assert_eq!(blocks.try_evict(0), Verdict::Kept, "held");
        drop(held);
        assert_eq!(blocks.try_evict(0), Verdict::Evicted { ahead: false });
        assert_eq!((clock.occupied(), pool.outstanding()), (0, 0));
    }

    #[test]
    fn a_fill_that_was_overtaken_does_not_count() {
        let (pool, clock, mut blocks) = fixture(3);
        blocks.begin_fill(0, 7);
        blocks.install(0, pool.allocate().unwrap().freeze(), false);
        assert!(!blocks.end_fill(0, 7), "a write put its page there");
        assert_eq!(blocks.presence(0), Presence::Ready);
        blocks.begin_fill(1, 8);
        blocks.forget(1);
        blocks.begin_fill(1, 9);
        assert!(!blocks.end_fill(1, 8));
        assert!(blocks.end_fill(1, 9));
        drop(blocks);
        assert_eq!((clock.occupied(), pool.outstanding()), (0, 0));
    }

    #[test]
    fn replacing_a_page_leaves_the_old_bytes_to_their_holder() {
        let (pool, clock, mut blocks) = fixture(3);
        let mut page = pool.allocate().unwrap();
        page.fill(1);
        blocks.install(0, page.freeze(), false);
        let old = blocks.get(0).unwrap().0.clone();
        let mut page = pool.allocate().unwrap();
        page.fill(2);
        blocks.install(0, page.freeze(), false);
        assert_eq!((old[0], blocks.get(0).unwrap().0[0], clock.occupied()), (1, 2, 1));
    }
}
