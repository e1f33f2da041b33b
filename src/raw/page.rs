//! Reference-counted blocks of page memory.
//!
//! A pool cuts one region into blocks of equal size. `PageMut` is the only reference to a block and may write it;
//! freezing it yields a `Slice`, an immutable, cheaply cloned view. `Fragment` is a block filled front to back whose
//! finished parts are already shared as `Slice`s (reply heads and tails).
//!
//! The counts are ours and 32 bits wide: DPDK's own count of an external buffer is 16 bits and its update is not atomic
//! when it reads 1. Not here: who may hold pages for how long (`store`, `tcp`), and where memory comes from (`dpdk`).

use std::alloc::{self, Layout};
use std::any::Any;
use std::fmt;
use std::ops::{Deref, DerefMut, Range};
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering, fence};

use crossbeam::queue::ArrayQueue;

/// References a single page may have. Reaching it aborts the process: with 16-byte slices that many live references need
/// more memory than any machine this runs on has, so it can only be a leak, and wrapping would be silent corruption.
const PAGE_REFERENCES_MAX: u32 = u32::MAX / 2;

/// Alignment of anonymous page memory, bytes: what O_DIRECT and DMA engines are content with.
const ANONYMOUS_ALIGN: usize = 4096;

/// Alignment at which a `Fragment` starts each piece, bytes: the unit of XDR, so that replies follow each other without a gap.
const FRAGMENT_ALIGN: u32 = 4;

struct PageMeta {
    references: AtomicU32,
    index: u32,
    base: *mut u8,
    /// The address a device uses for `base`; equals the virtual address outside DPDK and in IOVA-as-VA mode.
    iova: u64,
    pool: *const PoolInner,
}

struct PoolInner {
    metas: Box<[PageMeta]>,
    free: ArrayQueue<u32>,
    block_size: u32,
    outstanding: AtomicUsize,
    /// Owns the memory `metas` point into; dropped after the last page came back.
    _owners: Vec<Box<dyn Any + Send + Sync>>,
}

// SAFETY: the raw pointers in `metas` are to memory owned by `_owners` and to this very structure; access to the bytes is
// governed by `PageMut`/`Slice`, and the counts are atomic.
unsafe impl Send for PoolInner {}
// SAFETY: as above; all shared mutation goes through atomics and the lock-free queue.
unsafe impl Sync for PoolInner {}

/// A piece of memory to cut into pages.
pub struct Region {
    pub base: NonNull<u8>,
    /// Bytes; what does not fill a block is left unused.
    pub len: usize,
    /// The address at which a device reaches the byte `offset` bytes into the region.
    pub iova_of: Box<dyn Fn(usize) -> u64>,
    /// Keeps the memory alive; dropped after the last page came back.
    pub owner: Box<dyn Any + Send + Sync>,
}

/// A pool of equally sized blocks of page memory. Clones are handles on the same pool; any thread may use them.
#[derive(Clone)]
pub struct PagePool {
    inner: Arc<PoolInner>,
}

struct Anonymous {
    base: NonNull<u8>,
    layout: Layout,
}

// SAFETY: a plain owner of an allocation; nothing thread-bound in it.
unsafe impl Send for Anonymous {}
// SAFETY: it offers no access at all, only deallocation on drop.
unsafe impl Sync for Anonymous {}

impl Drop for Anonymous {
    fn drop(&mut self) {
        // SAFETY: allocated in `PagePool::anonymous` with this layout, freed once, here.
        unsafe { alloc::dealloc(self.base.as_ptr(), self.layout) }
    }
}

impl PagePool {
    /// A pool over ordinary process memory, for programs and tests that never see DPDK.
    ///
    /// `block_size` in bytes, a power of two of at least 512; `None` if it is not, if `blocks` is 0 or if memory is short.
    pub fn anonymous(blocks: usize, block_size: usize) -> Option<PagePool> {
        let len = blocks.checked_mul(block_size)?;
        if blocks == 0 || blocks > u32::MAX as usize || !block_size.is_power_of_two() || block_size < 512 {
            return None;
        }
        let layout = Layout::from_size_align(len, ANONYMOUS_ALIGN).ok()?;
        // SAFETY: `len` is not 0 (both factors are at least 1).
        let base = NonNull::new(unsafe { alloc::alloc_zeroed(layout) })?;
        let owner = Box::new(Anonymous { base, layout });
        let iova_of = Box::new(move |at| base.as_ptr() as u64 + at as u64);
        // SAFETY: the region was just allocated with `len` zeroed bytes, nobody else has its address, and `owner` owns it.
        Some(unsafe { PagePool::from_regions(vec![Region { base, len, iova_of, owner }], block_size) })
    }

    /// A pool over memory that somebody else reserved (DPDK memzones), in one piece or several.
    ///
    /// # Safety
    /// Each region's `base..base + len` must be initialised, readable and writable, used by nobody else, and stay so until its
    /// `owner` is dropped; the regions must not overlap. `base` must be aligned so that no block straddles a page for which
    /// `iova_of` is not linear.
    ///
    /// # Panics
    /// If `block_size` is not a power of two of at least 512, or the regions hold no block: both are the caller's constants.
    pub unsafe fn from_regions(regions: Vec<Region>, block_size: usize) -> PagePool {
        assert!(block_size.is_power_of_two() && (512..=1 << 30).contains(&block_size), "block size out of range");
        let blocks: usize = regions.iter().map(|region| region.len / block_size).sum();
        assert!(blocks > 0 && blocks <= u32::MAX as usize, "the regions hold no block, or too many");
        let free = ArrayQueue::new(blocks);
        let inner = Arc::new_cyclic(|weak: &std::sync::Weak<PoolInner>| {
            let mut metas = Vec::with_capacity(blocks);
            for region in &regions {
                for at in (0..region.len / block_size).map(|nth| nth * block_size) {
                    metas.push(PageMeta {
                        references: AtomicU32::new(0),
                        index: metas.len() as u32,
                        // SAFETY: `at + block_size <= region.len` by the division above.
                        base: unsafe { region.base.as_ptr().add(at) },
                        iova: (region.iova_of)(at),
                        pool: weak.as_ptr(),
                    });
                }
            }
            for index in 0..blocks {
                let pushed = free.push(index as u32);
                debug_assert!(pushed.is_ok());
            }
            let owners = regions.into_iter().map(|region| region.owner).collect();
            PoolInner {
                metas: metas.into_boxed_slice(),
                free,
                block_size: block_size as u32,
                outstanding: AtomicUsize::new(0),
                _owners: owners,
            }
        });
        PagePool { inner }
    }

    /// Takes a free block; its bytes are whatever was last in it. `None`: the pool is exhausted.
    pub fn allocate(&self) -> Option<PageMut> {
        let index = self.inner.free.pop()?;
        let meta = &self.inner.metas[index as usize];
        debug_assert_eq!(meta.references.load(Ordering::Relaxed), 0);
        meta.references.store(1, Ordering::Relaxed);
        // The page keeps the pool alive: one strong count per outstanding page, given back in `release`.
        // SAFETY: `inner` is a live Arc, so its pointer came from `Arc::into_raw`-compatible storage and the count is > 0.
        unsafe { Arc::increment_strong_count(Arc::as_ptr(&self.inner)) };
        self.inner.outstanding.fetch_add(1, Ordering::Relaxed);
        Some(PageMut { meta: NonNull::from(meta) })
    }

    /// Bytes in each block.
    pub fn block_size(&self) -> usize {
        self.inner.block_size as usize
    }

    /// Blocks in the pool, free or not.
    pub fn blocks(&self) -> usize {
        self.inner.metas.len()
    }

    /// Blocks that are out: written, cached, queued or in flight.
    pub fn outstanding(&self) -> usize {
        self.inner.outstanding.load(Ordering::Relaxed)
    }
}

impl fmt::Debug for PagePool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PagePool({} of {} blocks of {} out)", self.outstanding(), self.blocks(), self.block_size())
    }
}

/// Takes one more reference. The caller must own one.
fn acquire(meta: NonNull<PageMeta>) {
    // SAFETY: the caller owns a reference, so the pool, and with it the meta, is alive.
    let before = unsafe { meta.as_ref() }.references.fetch_add(1, Ordering::Relaxed);
    if before >= PAGE_REFERENCES_MAX {
        std::process::abort();
    }
}

/// Gives one reference back, and the page with it if it was the last.
fn release(meta: NonNull<PageMeta>) {
    // SAFETY: the caller owns the reference it gives back, so the meta is alive until the pool's count is dropped below.
    let page = unsafe { meta.as_ref() };
    if page.references.fetch_sub(1, Ordering::Release) != 1 {
        return;
    }
    // All reads through other views happened before this point: the next owner may write.
    fence(Ordering::Acquire);
    let pool = page.pool;
    // SAFETY: this page held a strong count on its pool, so `pool` is alive here.
    let inner = unsafe { &*pool };
    inner.outstanding.fetch_sub(1, Ordering::Relaxed);
    let pushed = inner.free.push(page.index);
    debug_assert!(pushed.is_ok(), "more blocks came back than the pool has");
    // SAFETY: gives back the strong count that `allocate` took for this page.
    unsafe { Arc::decrement_strong_count(pool) };
}

/// The only reference to a block: may be read and written.
pub struct PageMut {
    meta: NonNull<PageMeta>,
}

// SAFETY: sole owner of its block; the counts are atomic.
unsafe impl Send for PageMut {}
// SAFETY: shared access only reads.
unsafe impl Sync for PageMut {}

impl PageMut {
    fn parts(&self) -> (*mut u8, usize) {
        // SAFETY: `self` owns a reference, so meta and pool are alive.
        let meta = unsafe { self.meta.as_ref() };
        // SAFETY: as above.
        let len = unsafe { (*meta.pool).block_size } as usize;
        (meta.base, len)
    }

    /// Ends writing: the whole block as an immutable view.
    pub fn freeze(self) -> Slice {
        let len = self.len() as u32;
        let meta = self.meta;
        std::mem::forget(self);
        Slice { meta, offset: 0, len }
    }

    /// Makes the block a fragment to be filled front to back.
    pub fn into_fragment(self) -> Fragment {
        let meta = self.meta;
        std::mem::forget(self);
        Fragment { meta, used: 0 }
    }
}

impl Deref for PageMut {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        let (base, len) = self.parts();
        // SAFETY: the block is initialised memory of `len` bytes and this is its only reference.
        unsafe { std::slice::from_raw_parts(base, len) }
    }
}

impl DerefMut for PageMut {
    fn deref_mut(&mut self) -> &mut [u8] {
        let (base, len) = self.parts();
        // SAFETY: as in `deref`, and `&mut self` makes the access exclusive.
        unsafe { std::slice::from_raw_parts_mut(base, len) }
    }
}

impl Drop for PageMut {
    fn drop(&mut self) {
        release(self.meta);
    }
}

/// An immutable view of a part of a block: (page, offset, length). The currency of the whole send path.
///
/// The bytes cannot change while it lives. Cloning takes a reference, it copies nothing.
pub struct Slice {
    meta: NonNull<PageMeta>,
    offset: u32,
    len: u32,
}

// SAFETY: the bytes are immutable while any `Slice` lives, and the counts are atomic.
unsafe impl Send for Slice {}
// SAFETY: as above.
unsafe impl Sync for Slice {}

impl Slice {
    /// A view of `range` (in bytes, relative to this view) of the same page.
    ///
    /// # Panics
    /// If the range is not inside this view.
    pub fn slice(&self, range: Range<usize>) -> Slice {
        assert!(range.start <= range.end && range.end <= self.len as usize, "slice out of range");
        acquire(self.meta);
        Slice { meta: self.meta, offset: self.offset + range.start as u32, len: (range.end - range.start) as u32 }
    }

    /// Drops the first `n` bytes from the view.
    ///
    /// # Panics
    /// If `n` is larger than the view.
    pub fn advance(&mut self, n: usize) {
        assert!(n <= self.len as usize, "advance past the end");
        self.offset += n as u32;
        self.len -= n as u32;
    }

    /// Shortens the view to its first `n` bytes; longer than it is, does nothing.
    pub fn truncate(&mut self, n: usize) {
        self.len = self.len.min(u32::try_from(n).unwrap_or(u32::MAX));
    }

    /// The page again for writing, if this is its only reference; otherwise the view is given back.
    pub fn try_into_mut(self) -> Result<PageMut, Slice> {
        // SAFETY: `self` owns a reference.
        let meta = unsafe { self.meta.as_ref() };
        // Acquire pairs with the Release of the other views' drops: their reads are over.
        if meta.references.load(Ordering::Acquire) != 1 {
            return Err(self);
        }
        let meta = self.meta;
        std::mem::forget(self);
        Ok(PageMut { meta })
    }

    /// Whether nobody else refers to the page. The answer can turn from `false` to `true` at any time, never back
    /// while the caller keeps its own reference to itself.
    pub fn is_unique(&self) -> bool {
        // SAFETY: `self` owns a reference.
        unsafe { self.meta.as_ref() }.references.load(Ordering::Acquire) == 1
    }

    /// The virtual address of the first byte; for devices, and for tests that show where bytes lie.
    pub fn address(&self) -> usize {
        // SAFETY: `self` owns a reference, so the meta is alive.
        unsafe { self.meta.as_ref() }.base as usize + self.offset as usize
    }

    /// The address under which a device reads the first byte.
    pub fn iova(&self) -> u64 {
        // SAFETY: `self` owns a reference, so the meta is alive.
        unsafe { self.meta.as_ref() }.iova + u64::from(self.offset)
    }

    /// Whether `next` continues this view in the same page.
    pub fn is_followed_by(&self, next: &Slice) -> bool {
        self.meta == next.meta && self.offset + self.len == next.offset
    }
}

impl Clone for Slice {
    fn clone(&self) -> Slice {
        acquire(self.meta);
        Slice { meta: self.meta, offset: self.offset, len: self.len }
    }
}

impl Deref for Slice {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        // SAFETY: every constructor keeps offset + len inside the block; the block is initialised; while a `Slice` covers
        // these bytes nobody writes them (see the module's rules).
        unsafe { std::slice::from_raw_parts(self.address() as *const u8, self.len as usize) }
    }
}

impl Drop for Slice {
    fn drop(&mut self) {
        release(self.meta);
    }
}

impl fmt::Debug for Slice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // SAFETY: `self` owns a reference, so the meta is alive.
        let index = unsafe { self.meta.as_ref() }.index;
        write!(f, "Slice(page {index}, {}+{})", self.offset, self.len)
    }
}

/// A block that is filled front to back, and whose finished front is already shared.
///
/// It owns one reference to the page, so no `Slice` of it is ever unique while the fragment lives.
pub struct Fragment {
    meta: NonNull<PageMeta>,
    used: u32,
}

// SAFETY: only the owner of the fragment writes, and only where no `Slice` reaches; the counts are atomic.
unsafe impl Send for Fragment {}

impl Fragment {
    fn block_size(&self) -> usize {
        // SAFETY: `self` owns a reference, so meta and pool are alive.
        unsafe { (*self.meta.as_ref().pool).block_size as usize }
    }

    /// Bytes that can still be written.
    pub fn room(&self) -> usize {
        self.block_size() - self.used as usize
    }

    /// The unshared rest of the block, to write the next piece into.
    pub fn spare(&mut self) -> &mut [u8] {
        let room = self.room();
        // SAFETY: bytes from `used` on are covered by no `Slice` (they are handed out only by `commit`, which moves `used`
        // past them), and `&mut self` makes this the only writer.
        unsafe { std::slice::from_raw_parts_mut(self.meta.as_ref().base.add(self.used as usize), room) }
    }

    /// Shares the first `len` bytes of `spare` as an immutable view.
    ///
    /// # Panics
    /// If `len` is larger than the room left.
    pub fn commit(&mut self, len: usize) -> Slice {
        assert!(len <= self.room(), "fragment overrun");
        acquire(self.meta);
        let slice = Slice { meta: self.meta, offset: self.used, len: len as u32 };
        let end = self.used + len as u32;
        self.used = end.next_multiple_of(FRAGMENT_ALIGN).min(self.block_size() as u32);
        slice
    }

    /// Shares the first `len` bytes of `spare` by lengthening `last`, if that view ends where the spare starts: one piece
    /// instead of two. `false`, and nothing is shared, if it does not.
    ///
    /// # Panics
    /// If `len` is larger than the room left.
    pub fn commit_onto(&mut self, last: &mut Slice, len: usize) -> bool {
        assert!(len <= self.room(), "fragment overrun");
        if last.meta != self.meta || last.offset + last.len != self.used {
            return false;
        }
        last.len += len as u32;
        self.used = (self.used + len as u32).next_multiple_of(FRAGMENT_ALIGN).min(self.block_size() as u32);
        true
    }

    /// Starts at the front again if no piece is referenced any more; tells whether it did.
    pub fn recycle(&mut self) -> bool {
        // SAFETY: `self` owns a reference.
        let unique = unsafe { self.meta.as_ref() }.references.load(Ordering::Acquire) == 1;
        if unique {
            self.used = 0;
        }
        unique
    }
}

impl Drop for Fragment {
    fn drop(&mut self) {
        release(self.meta);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pool() -> PagePool {
        PagePool::anonymous(4, 4096).unwrap()
    }

    #[test]
    fn a_page_comes_back_when_its_last_view_is_dropped() {
        let pool = pool();
        let page = pool.allocate().unwrap().freeze();
        let part = page.slice(10..20);
        drop(page);
        assert_eq!(pool.outstanding(), 1);
        drop(part);
        assert_eq!(pool.outstanding(), 0);
    }

    #[test]
    fn an_exhausted_pool_says_so_and_recovers() {
        let pool = pool();
        let pages: Vec<_> = (0..4).map(|_| pool.allocate().unwrap()).collect();
        assert!(pool.allocate().is_none());
        drop(pages);
        assert!(pool.allocate().is_some());
    }

    #[test]
    fn a_shared_page_cannot_be_written() {
        let pool = pool();
        let mut page = pool.allocate().unwrap();
        page[0] = 7;
        let first = page.freeze();
        let second = first.clone();
        let first = first.try_into_mut().err().unwrap();
        drop(second);
        let mut page = first.try_into_mut().ok().unwrap();
        assert_eq!(page[0], 7);
        page[0] = 8;
        assert_eq!(page.freeze()[0], 8);
    }

    #[test]
    fn pieces_of_a_fragment_do_not_overlap_and_keep_it_from_recycling() {
        let pool = pool();
        let mut fragment = pool.allocate().unwrap().into_fragment();
        fragment.spare()[..3].copy_from_slice(b"abc");
        let a = fragment.commit(3);
        fragment.spare()[..3].copy_from_slice(b"xyz");
        let b = fragment.commit(3);
        assert_eq!((&a[..], &b[..]), (&b"abc"[..], &b"xyz"[..]));
        assert!(!fragment.recycle());
        let a = a.try_into_mut().err().unwrap();
        drop((a, b));
        assert!(fragment.recycle());
        assert_eq!(fragment.room(), 4096);
    }

    #[test]
    fn pieces_that_follow_each_other_become_one() {
        let pool = pool();
        let mut fragment = pool.allocate().unwrap().into_fragment();
        fragment.spare()[..4].copy_from_slice(b"abcd");
        let mut first = fragment.commit(4);
        fragment.spare()[..2].copy_from_slice(b"ef");
        assert!(fragment.commit_onto(&mut first, 2));
        assert_eq!(&first[..], b"abcdef");
        assert!(!fragment.commit_onto(&mut first, 4), "a gap: pieces start at words");
        let mut part = first.slice(0..3);
        assert!(!fragment.commit_onto(&mut part, 4), "bytes that are shared already");
        let mut elsewhere = pool.allocate().unwrap().into_fragment();
        assert!(!elsewhere.commit_onto(&mut first, 4), "another page");
        drop((first, part));
        assert!(fragment.recycle());
    }

    #[test]
    fn pages_outlive_the_pool_handle() {
        let pool = pool();
        let page = pool.allocate().unwrap().freeze();
        drop(pool);
        assert_eq!(page.len(), 4096);
    }

    #[test]
    fn references_from_many_threads_add_up() {
        let pool = pool();
        let page = pool.allocate().unwrap().freeze();
        std::thread::scope(|scope| {
            for _ in 0..4 {
                let page = page.clone();
                scope.spawn(move || {
                    for _ in 0..10_000 {
                        let other = page.slice(1..2);
                        assert_eq!(other.len(), 1);
                    }
                });
            }
        });
        assert!(page.is_unique());
    }
}
