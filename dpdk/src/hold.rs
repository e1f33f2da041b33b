//! What keeps the payload of a queued chain alive: one object per chain from a preallocated list, released by DPDK's
//! free callback.
//!
//! Why not DPDK's own counts per page: its external-buffer count is not atomic when it reads 1 and is 16 bits wide.
//! Here the count of a chain's object is stored once (= number of pieces) before the driver sees it and only ever
//! goes down, which is safe from several threads: the thread that reads 1 is the last.
//! (A driver that clones the chain, like net_tap's software GSO, adds and removes its own counts on the sending thread
//! while it still holds the original.)
//!
//! Threads: one owner takes objects; any thread may return one. Returned objects go to a stack that the owner takes
//! over whole with one swap, so there is no ABA problem and a chain costs one atomic operation on return. What the driver
//! returns while the owner itself sends goes onto the owner's own list, without one: most do, and are used again while they are
//! in its caches.

use std::{
    cell::{Cell, UnsafeCell},
    marker::PhantomData,
    mem::MaybeUninit,
    os::raw::c_void,
    ptr::NonNull,
    sync::atomic::{AtomicIsize, AtomicPtr, Ordering},
};

use dpdk_sys as sys;

use crate::chain::MAX_CHAIN_PIECES;

thread_local! {
    /// The list (its `Shared`) whose owner is sending on this thread.
    static SENDING: Cell<*const c_void> = const { Cell::new(std::ptr::null()) };
}

/// The owner's side. Dropped while objects are still out, it leaves the memory to the last one that returns.
pub(crate) struct HoldList<H> {
    shared: NonNull<Shared<H>>,
}

struct Shared<H> {
    /// Free objects that only the owner sees. Touched through `&mut HoldList`, and by callbacks on the thread and in the time of
    /// a [`Sending`], which borrows the list mutably.
    free: UnsafeCell<*mut Slot<H>>,
    /// Returned objects, or [`orphaned`] after the owner has gone.
    returned: AtomicPtr<Slot<H>>,
    /// Counts down after the owner has gone; 0 is reached once, by whoever then frees everything.
    remaining: AtomicIsize,
    slots: Box<[UnsafeCell<MaybeUninit<Slot<H>>>]>,
}

/// The owner is sending: until this is dropped, what is returned on this thread goes onto the owner's list at once.
pub(crate) struct Sending<'a, H>(PhantomData<(&'a mut HoldList<H>, *const ())>);

impl<H> Drop for Sending<'_, H> {
    fn drop(&mut self) {
        SENDING.set(std::ptr::null());
    }
}

// A cache line of its own, with what the callback reads and the first piece; four pieces on the next.
#[repr(C, align(64))]
struct Slot<H> {
    info: sys::rte_mbuf_ext_shared_info,
    shared: *const Shared<H>,
    next: *mut Slot<H>,
    count: usize,
    held: [MaybeUninit<H>; MAX_CHAIN_PIECES],
}

// SAFETY: the owner's handle may move between threads; what other threads reach is atomics and objects they own, and
// the payload is Send.
unsafe impl<H: Send> Send for HoldList<H> {}

/// The mark of a list without an owner.
fn orphaned<H>() -> *mut Slot<H> {
    NonNull::dangling().as_ptr()
}

impl<H: Send + 'static> HoldList<H> {
    pub(crate) fn new(count: usize) -> HoldList<H> {
        let slots = (0..count).map(|_| UnsafeCell::new(MaybeUninit::uninit())).collect();
        let shared = NonNull::from(Box::leak(Box::new(Shared {
            free: UnsafeCell::new(std::ptr::null_mut()),
            returned: AtomicPtr::new(std::ptr::null_mut()),
            remaining: AtomicIsize::new(0),
            slots,
        })));
        let mut free = std::ptr::null_mut();
        // SAFETY: just made, nobody else knows it.
        for cell in unsafe { shared.as_ref() }.slots.iter().rev() {
            let slot = cell.get().cast::<Slot<H>>();
            // SAFETY: writes the fields of a slot that nobody else knows; `held` stays uninitialised by its type.
            unsafe {
                (&raw mut (*slot).info).write(sys::rte_mbuf_ext_shared_info {
                    free_cb: Some(release::<H>),
                    fcb_opaque: slot.cast(),
                    refcnt: 0,
                });
                (&raw mut (*slot).shared).write(shared.as_ptr());
                (&raw mut (*slot).next).write(free);
                (&raw mut (*slot).count).write(0);
            }
            free = slot;
        }
        let list = HoldList { shared };
        list.set_free(free);
        list
    }

    fn shared(&self) -> &Shared<H> {
        // SAFETY: the shared part lives as long as its owner.
        unsafe { self.shared.as_ref() }
    }

    /// To be kept while the driver is called. One at a time on a thread: a second one takes the place of the first, whose
    /// objects then return as on any other thread.
    pub(crate) fn sending(&mut self) -> Sending<'_, H> {
        SENDING.set(self.shared.as_ptr().cast_const().cast());
        Sending(PhantomData)
    }

    /// An empty object, or None when all are out.
    #[inline]
    pub(crate) fn take(&mut self) -> Option<Hold<'_, H>> {
        let mut free = self.free();
        if free.is_null() {
            // Acquire: the returners' writes are seen.
            free = self.shared().returned.swap(std::ptr::null_mut(), Ordering::Acquire);
        }
        let slot = NonNull::new(free)?;
        // SAFETY: a free slot, reachable by the owner only.
        self.set_free(unsafe { (*slot.as_ptr()).next });
        Some(Hold { list: self, slot })
    }

    /// How many objects are out. Walks the free lists: for statistics and tests.
    pub(crate) fn outstanding(&mut self) -> usize {
        let (own, _) = walk(self.free());
        let list = self.shared().returned.swap(std::ptr::null_mut(), Ordering::Acquire);
        let (returned, last) = walk(list);
        if let Some(last) = NonNull::new(last) {
            // SAFETY: a free slot that only the owner reaches now; joined in front of its list.
            unsafe { (*last.as_ptr()).next = self.free() };
            self.set_free(list);
        }
        self.shared().slots.len() - own - returned
    }
}

impl<H> HoldList<H> {
    fn free(&self) -> *mut Slot<H> {
        // SAFETY: only the owner comes here, and no `Sending` lives meanwhile: it borrows the list mutably.
        unsafe { *self.shared.as_ref().free.get() }
    }

    fn set_free(&self, slot: *mut Slot<H>) {
        // SAFETY: as in `free`.
        unsafe { *self.shared.as_ref().free.get() = slot };
    }
}

/// Length and last element of a list that the caller owns.
fn walk<H>(mut slot: *mut Slot<H>) -> (usize, *mut Slot<H>) {
    let (mut count, mut last) = (0, std::ptr::null_mut());
    while !slot.is_null() {
        (count, last) = (count + 1, slot);
        // SAFETY: a slot of a list that only the caller reaches.
        slot = unsafe { (*slot).next };
    }
    (count, last)
}

impl<H> Drop for HoldList<H> {
    fn drop(&mut self) {
        // SAFETY: alive until `remaining` reaches 0, which needs the addition below.
        let shared = unsafe { self.shared.as_ref() };
        let returned = shared.returned.swap(orphaned(), Ordering::AcqRel);
        let out = shared.slots.len() - walk(self.free()).0 - walk(returned).0;
        let out = out as isize;
        // Objects returned since the swap have been subtracted already.
        if shared.remaining.fetch_add(out, Ordering::AcqRel) + out == 0 {
            // SAFETY: every object is back, nobody refers to the memory any more; made by Box::leak.
            drop(unsafe { Box::from_raw(self.shared.as_ptr()) });
        }
    }
}

/// An object being filled by the owner. Dropped, it releases what it has and goes back to the list.
pub(crate) struct Hold<'a, H: Send + 'static> {
    list: &'a mut HoldList<H>,
    slot: NonNull<Slot<H>>,
}

impl<H: Send + 'static> Hold<'_, H> {
    /// Takes all of `pieces`, which keeps its capacity; false, and nothing taken, when they are too many.
    #[inline]
    pub(crate) fn take_all(&mut self, pieces: &mut Vec<H>) -> bool {
        // SAFETY: the slot belongs to this value alone.
        let slot = unsafe { self.slot.as_mut() };
        let count = pieces.len();
        let Some(room) = slot.held[slot.count..].get_mut(..count) else { return false };
        // SAFETY: `count` initialised values move to as many places; they are the vector's no more before they are the slot's.
        unsafe {
            pieces.set_len(0);
            std::ptr::copy_nonoverlapping(pieces.as_ptr(), room.as_mut_ptr().cast(), count);
        }
        slot.count += count;
        true
    }

    /// For the shim: DPDK's view of the object. Valid until the object is dropped or returned by the callback.
    #[inline]
    pub(crate) fn info(&mut self) -> *mut sys::rte_mbuf_ext_shared_info {
        // The pointer is taken without a reference, so that it may be used for the whole slot.
        self.slot.as_ptr().cast()
    }

    /// The chain now owns the object: the callback releases it.
    #[inline]
    pub(crate) fn given_away(self) {
        std::mem::forget(self);
    }
}

impl<H: Send + 'static> Drop for Hold<'_, H> {
    fn drop(&mut self) {
        // SAFETY: the slot belongs to this value alone; the first `count` pieces are initialised.
        unsafe {
            drop_held(self.slot.as_ptr());
            (*self.slot.as_ptr()).next = self.list.free();
        }
        self.list.set_free(self.slot.as_ptr());
    }
}

/// # Safety
/// The caller owns the slot, whose first `count` pieces are initialised.
unsafe fn drop_held<H>(slot: *mut Slot<H>) {
    // SAFETY: by contract. The count is cleared first, so that a panic in a piece's drop cannot drop it twice.
    unsafe {
        let count = std::mem::replace(&mut (*slot).count, 0);
        let held = &raw mut (*slot).held;
        std::ptr::drop_in_place(std::ptr::slice_from_raw_parts_mut(held.cast::<H>(), count));
    }
}

/// DPDK's free callback: the last buffer of a chain was freed, on any thread.
unsafe extern "C" fn release<H: Send + 'static>(_address: *mut c_void, opaque: *mut c_void) {
    let slot = opaque.cast::<Slot<H>>();
    // SAFETY: `opaque` is the slot this callback was registered with; the count reached 0, so this thread owns it.
    let shared = unsafe {
        drop_held(slot);
        (*slot).shared
    };
    if SENDING.get() == shared.cast() {
        // SAFETY: the list's owner is sending on this very thread (see `Shared::free`), so it lives; the slot is this thread's.
        unsafe {
            let free = (*shared).free.get();
            (*slot).next = *free;
            *free = slot;
        }
        return;
    }
    // SAFETY: the shared part lives until every object is back, and this one is not back yet.
    let returned = unsafe { &(*shared).returned };
    let mut head = returned.load(Ordering::Relaxed);
    while head != orphaned() {
        // SAFETY: the slot is this thread's until the exchange succeeds.
        unsafe { (*slot).next = head };
        match returned.compare_exchange_weak(head, slot, Ordering::Release, Ordering::Relaxed) {
            Ok(_) => return,
            Err(now) => head = now,
        }
    }
    // SAFETY: as above: this object still counts as out.
    let remaining = unsafe { &(*shared).remaining };
    if remaining.fetch_sub(1, Ordering::AcqRel) - 1 == 0 {
        // SAFETY: the owner is gone and every object is back; made by Box::leak.
        drop(unsafe { Box::from_raw(shared.cast_mut()) });
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    fn fill(list: &mut HoldList<Arc<()>>, piece: &Arc<()>, count: usize) -> usize {
        let mut hold = list.take().expect("an object is free");
        assert!(hold.take_all(&mut vec![Arc::clone(piece); count]));
        let info = hold.info() as usize;
        hold.given_away();
        info
    }

    /// What DPDK does when the last buffer of a chain is freed.
    fn free(info: usize) {
        let info = info as *mut sys::rte_mbuf_ext_shared_info;
        // SAFETY: the object is out, and each test frees it once.
        unsafe { ((*info).free_cb.expect("set"))(std::ptr::null_mut(), (*info).fcb_opaque) };
    }

    #[test]
    fn an_object_comes_back_and_releases_its_pieces_once() {
        let mut list = HoldList::new(2);
        let piece = Arc::new(());
        let first = fill(&mut list, &piece, 3);
        let second = fill(&mut list, &piece, 1);
        assert!(list.take().is_none());
        assert_eq!((list.outstanding(), Arc::strong_count(&piece)), (2, 5));
        free(first);
        assert_eq!((list.outstanding(), Arc::strong_count(&piece)), (1, 2));
        free(second);
        assert_eq!((list.outstanding(), Arc::strong_count(&piece)), (0, 1));
    }

    #[test]
    fn an_abandoned_object_is_emptied_and_free_again() {
        let mut list = HoldList::new(1);
        let piece = Arc::new(());
        let mut hold = list.take().expect("free");
        assert!(hold.take_all(&mut vec![Arc::clone(&piece); MAX_CHAIN_PIECES - 1]));
        let mut two_more = vec![Arc::clone(&piece); 2];
        assert!(!hold.take_all(&mut two_more), "there is room for one");
        assert_eq!(two_more.len(), 2);
        two_more.pop();
        assert!(hold.take_all(&mut two_more));
        drop(hold);
        assert_eq!(Arc::strong_count(&piece), 1);
        assert_eq!(list.outstanding(), 0);
        assert!(list.take().is_some());
    }

    #[test]
    fn what_returns_while_the_owner_sends_is_its_own_at_once_and_on_other_threads_all_the_same() {
        let piece = Arc::new(());
        let (mut list, mut other) = (HoldList::new(3), HoldList::new(1));
        let out: Vec<usize> = (0..3).map(|_| fill(&mut list, &piece, 1)).collect();
        let elsewhere = fill(&mut other, &piece, 1);
        let sending = list.sending();
        free(out[0]);
        free(elsewhere);
        std::thread::scope(|scope| scope.spawn(|| free(out[1])).join().expect("no panic"));
        drop(sending);
        assert_eq!((list.outstanding(), other.outstanding(), Arc::strong_count(&piece)), (1, 0, 2));
        // Not while it sends any more: through the stack.
        free(out[2]);
        assert_eq!((list.outstanding(), Arc::strong_count(&piece)), (0, 1));
        assert!((0..3).all(|_| list.take().map(Hold::given_away).is_some()) && list.take().is_none());
    }

    #[test]
    fn objects_may_return_after_their_owner_has_gone() {
        let piece = Arc::new(());
        let mut list = HoldList::new(4);
        let out: Vec<usize> = (0..3).map(|_| fill(&mut list, &piece, 2)).collect();
        free(out[0]);
        drop(list);
        free(out[1]);
        assert_eq!(Arc::strong_count(&piece), 3);
        free(out[2]);
        assert_eq!(Arc::strong_count(&piece), 1);
    }

    #[test]
    fn many_threads_return_while_the_owner_takes_and_leaves() {
        let piece = Arc::new(());
        for round in 0..20 {
            let mut list = HoldList::new(64);
            let (sender, receiver) = crossbeam::channel::unbounded::<usize>();
            let threads: Vec<_> = (0..3)
                .map(|_| {
                    let receiver = receiver.clone();
                    std::thread::spawn(move || receiver.iter().for_each(free))
                })
                .collect();
            let mut sent = 0;
            while sent < 500 + round {
                let Some(mut hold) = list.take() else {
                    continue;
                };
                assert!(hold.take_all(&mut vec![Arc::clone(&piece)]));
                let info = hold.info() as usize;
                hold.given_away();
                sender.send(info).expect("threads are waiting");
                sent += 1;
            }
            // Some are still on their way back: the owner leaves first.
            drop((list, sender));
            threads.into_iter().for_each(|thread| thread.join().expect("no panic"));
            assert_eq!(Arc::strong_count(&piece), 1);
        }
    }
}
