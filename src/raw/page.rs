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
use std::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering, fence};

use crossbeam::utils::CachePadded;

/// References a single page may have. One more aborts the process: with 16-byte slices that many live references need
/// more memory than any machine this runs on has, so it can only be a leak, and wrapping would be silent corruption. Half the
/// range: an addition leaves in the flags whether a count was beyond it.
const PAGE_REFERENCES_MAX: u32 = u32::MAX / 2;

/// Alignment of anonymous page memory, bytes: what O_DIRECT and DMA engines are content with.
const ANONYMOUS_ALIGN: usize = 4096;

/// Alignment at which a `Fragment` starts each piece, bytes: the unit of XDR, so that replies follow each other without a gap.
const FRAGMENT_ALIGN: u32 = 4;

/// Bytes of a `Ledger`, which is aligned to its size.
const LEDGER_BYTES: usize = 16 << 10;
const LINE_BYTES: usize = 64;
const COUNTS_PER_LINE: usize = LINE_BYTES / size_of::<AtomicU32>();
/// Cache lines with counts: all of a ledger's but the first.
const COUNT_LINES: usize = LEDGER_BYTES / LINE_BYTES - 1;
/// Pages whose references one ledger counts.
const LEDGER_PAGES: usize = COUNT_LINES * COUNTS_PER_LINE;

/// What the pages of a ledger have in common.
#[repr(C, align(64))]
struct Common {
    pool: *const PoolInner,
    /// The first page.
    base: *mut u8,
    /// The address a device uses for `base`; equals the virtual address outside DPDK and in IOVA-as-VA mode.
    iova: u64,
    /// That of each page, where the others' do not just follow.
    iovas: Option<Box<[u64]>>,
    /// The number of the first page; see `PoolInner::page`.
    first: u32,
    block_size: u32,
}

/// The reference counts of pages that lie one behind the other.
///
/// Four bytes a page: the counts of a gigabyte in pages of 64 KiB are 64 KiB, which stay in a core's cache while the gigabyte
/// passes by. Everything else about a page follows from where its count stands, for a ledger is aligned to its size.
/// The counts of neighbours stand in different cache lines: pages that several cores send at the same time share none, if they
/// are few.
#[repr(C, align(16384))]
struct Ledger {
    common: Common,
    counts: [AtomicU32; LEDGER_PAGES],
}

const _: () = assert!(size_of::<Ledger>() == LEDGER_BYTES && align_of::<Ledger>() == LEDGER_BYTES);

/// A page, named by its reference count.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Page(NonNull<AtomicU32>);

impl Page {
    /// The page at `nth` place in a ledger.
    fn new(ledger: &Ledger, nth: usize) -> Page {
        assert!(nth < LEDGER_PAGES, "a page of another ledger");
        let place = nth % COUNT_LINES * COUNTS_PER_LINE + nth / COUNT_LINES;
        // Made from the whole ledger's address, which it is to lead back to.
        let counts = NonNull::from(ledger).cast::<u8>();
        // SAFETY: `place < LEDGER_PAGES`, and the counts follow `common` (the assertion on the size).
        Page(unsafe { counts.add(size_of::<Common>()).cast::<AtomicU32>().add(place) })
    }

    /// The count.
    ///
    /// # Safety
    /// The caller owns a reference to the page for as long as the result lives.
    unsafe fn references<'a>(self) -> &'a AtomicU32 {
        // SAFETY: the page is out, so its pool, and with it the ledger, is alive.
        unsafe { self.0.as_ref() }
    }

    /// # Safety
    /// The caller owns a reference to the page for as long as the result lives.
    unsafe fn common<'a>(self) -> &'a Common {
        let ledger = self.0.as_ptr().map_addr(|at| at & !(LEDGER_BYTES - 1)).cast::<Common>();
        // SAFETY: a ledger is aligned to its size and starts with its `Common`; the pointer to the count was made from the
        // ledger's own (`new`); the page is out, so its pool, and with it the ledger, is alive.
        unsafe { &*ledger }
    }

    /// Which page of its ledger.
    fn nth(self) -> usize {
        let place = (self.0.as_ptr().addr() % LEDGER_BYTES - size_of::<Common>()) / size_of::<AtomicU32>();
        place % COUNTS_PER_LINE * COUNT_LINES + place / COUNTS_PER_LINE
    }

    /// The page's first byte and its bytes.
    ///
    /// # Safety
    /// The caller owns a reference to the page.
    unsafe fn block(self) -> (*mut u8, usize) {
        // SAFETY: the caller's.
        let common = unsafe { self.common() };
        let len = common.block_size as usize;
        (common.base.wrapping_add(self.nth() * len), len)
    }

    /// The address a device uses for the first byte.
    ///
    /// # Safety
    /// The caller owns a reference to the page.
    unsafe fn iova(self) -> u64 {
        // SAFETY: the caller's.
        let common = unsafe { self.common() };
        match &common.iovas {
            None => common.iova + self.nth() as u64 * u64::from(common.block_size),
            Some(iovas) => iovas[self.nth()],
        }
    }
}

/// No page: the end of the list of free ones.
const NO_PAGE: u32 = u32::MAX;

/// The free pages, by number, as a stack: the page that came back last is taken first, because its bytes may still be in a
/// cache, and pages that nobody needs are never touched.
struct FreePages {
    /// The top in the lower half; a version in the upper one, so that a top that was taken and came back is told from one that stayed.
    top: CachePadded<AtomicU64>,
    /// For each page that is free, the one below it.
    below: Box<[AtomicU32]>,
}

impl FreePages {
    /// None free, of pages whose numbers are less than `end`.
    fn new(end: usize) -> FreePages {
        let top = CachePadded::new(AtomicU64::new(u64::from(NO_PAGE)));
        FreePages { top, below: (0..end).map(|_| AtomicU32::new(NO_PAGE)).collect() }
    }

    fn push(&self, page: u32) {
        let mut top = self.top.load(Ordering::Relaxed);
        loop {
            self.below[page as usize].store(top as u32, Ordering::Relaxed);
            match self.exchange(top, page) {
                Ok(()) => return,
                Err(now) => top = now,
            }
        }
    }

    fn pop(&self) -> Option<u32> {
        let mut top = self.top.load(Ordering::Acquire);
        loop {
            let page = top as u32;
            if page == NO_PAGE {
                return None;
            }
            // If somebody else takes the page first, this may be anything, and the exchange fails.
            let below = self.below[page as usize].load(Ordering::Relaxed);
            match self.exchange(top, below) {
                Ok(()) => return Some(page),
                Err(now) => top = now,
            }
        }
    }

    /// Makes `page` the top if nothing has changed since the top was `old`.
    fn exchange(&self, old: u64, page: u32) -> Result<(), u64> {
        let version = (old >> 32).wrapping_add(1) << 32;
        // Release: who takes the page sees what stands below it, and all that its last owner did.
        let exchanged = self.top.compare_exchange_weak(old, version | u64::from(page), Ordering::AcqRel, Ordering::Acquire);
        exchanged.map(|_| ())
    }
}

struct PoolInner {
    ledgers: Box<[Ledger]>,
    free: FreePages,
    blocks: usize,
    block_size: u32,
    outstanding: AtomicUsize,
    /// Owns the memory `ledgers` point into; dropped after the last page came back.
    _owners: Vec<Box<dyn Any + Send + Sync>>,
}

impl PoolInner {
    /// The page of a number: ledger after ledger, as many numbers for each as it has room for.
    fn page(&self, number: u32) -> Page {
        Page::new(&self.ledgers[number as usize / LEDGER_PAGES], number as usize % LEDGER_PAGES)
    }
}

// SAFETY: the raw pointers in `ledgers` are to memory owned by `_owners` and to this very structure; access to the bytes is
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
        let ledgers_len: usize = regions.iter().map(|region| (region.len / block_size).div_ceil(LEDGER_PAGES)).sum();
        assert!(blocks > 0 && ledgers_len * LEDGER_PAGES < NO_PAGE as usize, "the regions hold no block, or too many");
        let inner = Arc::new_cyclic(|weak: &std::sync::Weak<PoolInner>| {
            let mut ledgers = Vec::with_capacity(ledgers_len);
            let free = FreePages::new(ledgers_len * LEDGER_PAGES);
            let mut numbers = Vec::with_capacity(ledgers_len);
            for region in &regions {
                let blocks = region.len / block_size;
                for first in (0..blocks).step_by(LEDGER_PAGES) {
                    let pages = LEDGER_PAGES.min(blocks - first);
                    let iova_of = |nth: usize| (region.iova_of)((first + nth) * block_size);
                    let follows = (0..pages).all(|nth| iova_of(nth) == iova_of(0) + (nth * block_size) as u64);
                    let number = (ledgers.len() * LEDGER_PAGES) as u32;
                    ledgers.push(Ledger {
                        common: Common {
                            pool: weak.as_ptr(),
                            // SAFETY: `first < blocks`, so the block ends within `region.len`.
                            base: unsafe { region.base.as_ptr().add(first * block_size) },
                            iova: iova_of(0),
                            iovas: (!follows).then(|| (0..pages).map(iova_of).collect()),
                            first: number,
                            block_size: block_size as u32,
                        },
                        counts: [const { AtomicU32::new(0) }; LEDGER_PAGES],
                    });
                    numbers.push(number..number + pages as u32);
                }
            }
            // The first one on top.
            numbers.into_iter().flatten().rev().for_each(|page| free.push(page));
            let owners = regions.into_iter().map(|region| region.owner).collect();
            PoolInner {
                ledgers: ledgers.into_boxed_slice(),
                free,
                blocks,
                block_size: block_size as u32,
                outstanding: AtomicUsize::new(0),
                _owners: owners,
            }
        });
        PagePool { inner }
    }

    /// Takes a free block; its bytes are whatever was last in it. `None`: the pool is exhausted.
    pub fn allocate(&self) -> Option<PageMut> {
        let page = self.inner.page(self.inner.free.pop()?);
        // SAFETY: the page was just taken from the free ones, and `inner` keeps the pool alive.
        let references = unsafe { page.references() };
        debug_assert_eq!(references.load(Ordering::Relaxed), 0);
        references.store(1, Ordering::Relaxed);
        // The page keeps the pool alive: one strong count per outstanding page, given back in `release`.
        // SAFETY: `inner` is a live Arc, so its pointer came from `Arc::into_raw`-compatible storage and the count is > 0.
        unsafe { Arc::increment_strong_count(Arc::as_ptr(&self.inner)) };
        self.inner.outstanding.fetch_add(1, Ordering::Relaxed);
        Some(PageMut { page })
    }

    /// Bytes in each block.
    pub fn block_size(&self) -> usize {
        self.inner.block_size as usize
    }

    /// Blocks in the pool, free or not.
    pub fn blocks(&self) -> usize {
        self.inner.blocks
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
#[inline]
fn acquire(page: Page) {
    // SAFETY: the caller owns a reference.
    let before = unsafe { page.references() }.fetch_add(1, Ordering::Relaxed);
    if before > PAGE_REFERENCES_MAX {
        std::process::abort();
    }
}

/// Gives one reference back, and the page with it if it was the last.
#[inline]
fn release(page: Page) {
    // SAFETY: the caller owns the reference it gives back, so the pool is alive until its count is dropped in `give_back`.
    if unsafe { page.references() }.fetch_sub(1, Ordering::Release) == 1 {
        give_back(page);
    }
}

/// Gives a page back to its pool. The caller has just dropped its last reference.
fn give_back(page: Page) {
    // All reads through other views happened before this point: the next owner may write.
    fence(Ordering::Acquire);
    // SAFETY: this page held a strong count on its pool, which is given back only below.
    let common = unsafe { page.common() };
    let pool = common.pool;
    let number = common.first + page.nth() as u32;
    // SAFETY: as above, so `pool` is alive here.
    let inner = unsafe { &*pool };
    inner.outstanding.fetch_sub(1, Ordering::Relaxed);
    inner.free.push(number);
    // SAFETY: gives back the strong count that `allocate` took for this page.
    unsafe { Arc::decrement_strong_count(pool) };
}

/// The only reference to a block: may be read and written.
pub struct PageMut {
    page: Page,
}

// SAFETY: sole owner of its block; the counts are atomic.
unsafe impl Send for PageMut {}
// SAFETY: shared access only reads.
unsafe impl Sync for PageMut {}

impl PageMut {
    fn parts(&self) -> (*mut u8, usize) {
        // SAFETY: `self` owns a reference.
        unsafe { self.page.block() }
    }

    /// Ends writing: the whole block as an immutable view.
    pub fn freeze(self) -> Slice {
        let len = self.len() as u32;
        let page = self.page;
        std::mem::forget(self);
        Slice { page, offset: 0, len }
    }

    /// Makes the block a fragment to be filled front to back.
    pub fn into_fragment(self) -> Fragment {
        let page = self.page;
        std::mem::forget(self);
        // SAFETY: the fragment to be made owns the reference.
        let (base, len) = unsafe { page.block() };
        Fragment { page, base, block_size: len as u32, used: 0 }
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
        release(self.page);
    }
}

/// An immutable view of a part of a block: (page, offset, length). The currency of the whole send path.
///
/// The bytes cannot change while it lives. Cloning takes a reference, it copies nothing.
pub struct Slice {
    page: Page,
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
        acquire(self.page);
        Slice { page: self.page, offset: self.offset + range.start as u32, len: (range.end - range.start) as u32 }
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
        // Acquire pairs with the Release of the other views' drops: their reads are over.
        // SAFETY: `self` owns a reference.
        if unsafe { self.page.references() }.load(Ordering::Acquire) != 1 {
            return Err(self);
        }
        let page = self.page;
        std::mem::forget(self);
        Ok(PageMut { page })
    }

    /// Whether nobody else refers to the page. The answer can turn from `false` to `true` at any time, never back
    /// while the caller keeps its own reference to itself.
    pub fn is_unique(&self) -> bool {
        // SAFETY: `self` owns a reference.
        unsafe { self.page.references() }.load(Ordering::Acquire) == 1
    }

    /// The virtual address of the first byte; for devices, and for tests that show where bytes lie.
    pub fn address(&self) -> usize {
        // SAFETY: `self` owns a reference.
        let (base, _) = unsafe { self.page.block() };
        base as usize + self.offset as usize
    }

    /// The address under which a device reads the first byte.
    pub fn iova(&self) -> u64 {
        // SAFETY: `self` owns a reference.
        let iova = unsafe { self.page.iova() };
        iova + u64::from(self.offset)
    }

    /// Only what keeps the page, for a holder that knows by itself which bytes are meant.
    pub(super) fn into_reference(self) -> PageReference {
        let page = self.page;
        std::mem::forget(self);
        PageReference(page)
    }

    /// Whether `next` continues this view in the same page.
    pub fn is_followed_by(&self, next: &Slice) -> bool {
        self.page == next.page && self.offset + self.len == next.offset
    }
}

impl Clone for Slice {
    fn clone(&self) -> Slice {
        acquire(self.page);
        Slice { page: self.page, offset: self.offset, len: self.len }
    }
}

/// Appends clones of `slices` to `out`.
#[inline(always)]
pub fn clone_onto(slices: &[Slice], out: &mut Vec<Slice>) {
    out.reserve(slices.len());
    let mut from = slices.as_ptr_range();
    // SAFETY: `slices.len()` slices are read, each once, and as many places are written behind those in use, for which there is room, in memory
    // that `slices` is no part of. Each copy has a reference of its own, taken before.
    unsafe {
        let mut to = out.as_mut_ptr().add(out.len());
        for _ in 0..slices.len() / 4 {
            for nth in 0..4 {
                acquire((*from.start.add(nth)).page);
                from.start.add(nth).copy_to_nonoverlapping(to.add(nth), 1);
            }
            (from.start, to) = (from.start.add(4), to.add(4));
        }
        while from.start < from.end {
            acquire((*from.start).page);
            from.start.copy_to_nonoverlapping(to, 1);
            (from.start, to) = (from.start.add(1), to.add(1));
        }
        out.set_len(out.len() + slices.len());
    }
}

impl Deref for Slice {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        // SAFETY: `self` owns a reference.
        let (base, _) = unsafe { self.page.block() };
        // SAFETY: every constructor keeps offset + len inside the block; the block is initialised; while a `Slice` covers
        // these bytes nobody writes them (see the module's rules).
        unsafe { std::slice::from_raw_parts(base.add(self.offset as usize), self.len as usize) }
    }
}

impl Drop for Slice {
    fn drop(&mut self) {
        release(self.page);
    }
}

/// A reference to a page, as a `Slice` is: while it lives, what the slice covered stays as it is.
pub(super) struct PageReference(Page);

impl Drop for PageReference {
    fn drop(&mut self) {
        release(self.0);
    }
}

impl fmt::Debug for Slice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // SAFETY: `self` owns a reference.
        let number = unsafe { self.page.common() }.first as usize + self.page.nth();
        write!(f, "Slice(page {number}, {}+{})", self.offset, self.len)
    }
}

/// A block that is filled front to back, and whose finished front is already shared.
///
/// It owns one reference to the page, so no `Slice` of it is ever unique while the fragment lives.
pub struct Fragment {
    page: Page,
    /// The page's memory.
    base: *mut u8,
    block_size: u32,
    used: u32,
}

// SAFETY: only the owner of the fragment writes, and only where no `Slice` reaches; the counts are atomic.
unsafe impl Send for Fragment {}

impl Fragment {
    fn block_size(&self) -> usize {
        self.block_size as usize
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
        unsafe { std::slice::from_raw_parts_mut(self.base.add(self.used as usize), room) }
    }

    /// Shares the first `len` bytes of `spare` as an immutable view.
    ///
    /// # Panics
    /// If `len` is larger than the room left.
    pub fn commit(&mut self, len: usize) -> Slice {
        assert!(len <= self.room(), "fragment overrun");
        acquire(self.page);
        let slice = Slice { page: self.page, offset: self.used, len: len as u32 };
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
        if last.page != self.page || last.offset + last.len != self.used {
            return false;
        }
        last.len += len as u32;
        self.used = (self.used + len as u32).next_multiple_of(FRAGMENT_ALIGN).min(self.block_size() as u32);
        true
    }

    /// Starts at the front again if no piece is referenced any more; tells whether it did.
    pub fn recycle(&mut self) -> bool {
        // SAFETY: `self` owns a reference.
        let unique = unsafe { self.page.references() }.load(Ordering::Acquire) == 1;
        if unique {
            self.used = 0;
        }
        unique
    }
}

impl Drop for Fragment {
    fn drop(&mut self) {
        release(self.page);
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

    /// A pool over `region_pages`, whose devices see page `n` of region `r` at `iova(r, n)`.
    fn regions(region_pages: &[usize], iova: fn(usize, usize) -> u64) -> (PagePool, Vec<usize>) {
        const BLOCK: usize = 512;
        let mut bases = Vec::new();
        let of = |(at, &pages): (usize, &usize)| {
            let memory = vec![0u8; pages * BLOCK].leak();
            bases.push(memory.as_ptr() as usize);
            let iova_of = Box::new(move |offset: usize| iova(at, offset / BLOCK));
            Region { base: NonNull::from(memory).cast(), len: pages * BLOCK, iova_of, owner: Box::new(()) }
        };
        let regions = region_pages.iter().enumerate().map(of).collect();
        // SAFETY: fresh memory that nobody else has and that is never freed.
        (unsafe { PagePool::from_regions(regions, BLOCK) }, bases)
    }

    #[test]
    fn every_page_of_every_ledger_has_a_place_and_an_address_of_its_own() {
        let pages = [LEDGER_PAGES + 3, 5, 2 * LEDGER_PAGES];
        let follows = |region, page| (region as u64 + 1) << 40 | (page * 512) as u64;
        let scattered = |region, page| (region as u64 + 1) << 40 | (page as u64 ^ 1) << 20;
        for iova in [follows, scattered] {
            let (pool, bases) = regions(&pages, iova);
            let all: Vec<Slice> = std::iter::from_fn(|| pool.allocate()).map(PageMut::freeze).collect();
            assert_eq!(all.len(), pages.iter().sum::<usize>());
            let mut slices = all.iter();
            for (region, base) in bases.iter().enumerate() {
                for page in 0..pages[region] {
                    let slice = slices.next().unwrap().slice(7..9);
                    assert_eq!(slice.address(), base + page * 512 + 7, "the first pages are taken first");
                    assert_eq!(slice.iova(), iova(region, page) + 7);
                }
            }
            drop(all);
            assert_eq!((pool.outstanding(), pool.blocks()), (0, pages.iter().sum()));
        }
    }

    #[test]
    fn the_page_that_came_back_last_is_taken_first() {
        let pool = pool();
        let [a, b, _c] = [(); 3].map(|()| pool.allocate().unwrap());
        let (first, second) = (a.as_ptr(), b.as_ptr());
        drop((b, a));
        assert_eq!([(); 2].map(|()| pool.allocate().unwrap().into_fragment().base.cast_const()), [first; 2]);
        let [a, b] = [(); 2].map(|()| pool.allocate().unwrap());
        assert_eq!((a.as_ptr(), b.as_ptr()), (first, second));
    }

    #[test]
    fn many_threads_never_get_the_same_page() {
        let pool = PagePool::anonymous(6, 4096).unwrap();
        std::thread::scope(|scope| {
            for thread in 0..4u8 {
                let pool = &pool;
                scope.spawn(move || {
                    for _ in 0..20_000 {
                        let pages: Vec<_> = (0..2).filter_map(|_| pool.allocate()).collect();
                        for mut page in pages {
                            page[..8].fill(thread);
                            assert_eq!(page[..8], [thread; 8]);
                        }
                    }
                });
            }
        });
        assert_eq!(pool.outstanding(), 0);
        let all: Vec<_> = std::iter::from_fn(|| pool.allocate()).collect();
        assert_eq!(all.len(), 6);
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
