//! One received buffer, read where it lies.
//!
//! The address of the bytes is kept beside their owner: every layer on the way up looks at them, and would have to ask the owner each time
//! (which kind is it, where does its descriptor say that the data begin).

use std::ops::Deref;
use std::ptr::NonNull;

use super::page::{PageReference, Slice};

/// Who keeps the bytes.
#[expect(clippy::box_collection, reason = "one word for each kind; the heap's is for tests")]
enum Owner {
    /// There are none.
    Nobody,
    #[cfg(feature = "dpdk")]
    Mbuf(#[expect(dead_code, reason = "dropped with the buffer")] dpdk::mbuf::Mbuf),
    Page(#[expect(dead_code, reason = "dropped with the buffer")] PageReference),
    /// Boxed once more, so that the owner is one word.
    Heap(#[expect(dead_code, reason = "dropped with the buffer")] Box<Vec<u8>>),
}

/// One contiguous received buffer, or what is left of it after `advance` and `truncate`.
///
/// It has one owner and is never written. Dropping it gives it back to where it came from (a driver's pool, a page pool, the heap of a
/// test).
pub struct RxBuf {
    /// The first of `len` initialised bytes, which `owner` keeps where they are and nobody writes.
    bytes: NonNull<u8>,
    owner: Owner,
    len: u32,
}

const _: () = assert!(size_of::<RxBuf>() <= 32, "it is moved for each segment");

// SAFETY: each kind of owner may be dropped by any thread, and the bytes are immutable as long as it lives.
unsafe impl Send for RxBuf {}
// SAFETY: shared access only reads bytes that nobody writes.
unsafe impl Sync for RxBuf {}

impl RxBuf {
    fn new(bytes: &[u8], owner: Owner) -> RxBuf {
        // Driver's buffers and pages are shorter than 4 GiB, and `from_vec` looks.
        RxBuf { bytes: NonNull::from(bytes).cast(), owner, len: bytes.len() as u32 }
    }

    /// A received mbuf of one segment.
    #[cfg(feature = "dpdk")]
    #[inline]
    pub fn from_mbuf(mbuf: dpdk::mbuf::Mbuf) -> RxBuf {
        let data = mbuf.data();
        let (bytes, len) = (NonNull::from(data).cast(), data.len() as u32);
        // Moving the handle moves no data: they are the driver's, until it is dropped.
        RxBuf { bytes, owner: Owner::Mbuf(mbuf), len }
    }

    /// Bytes that were copied out of a driver's buffer into a page.
    pub fn from_slice(slice: Slice) -> RxBuf {
        let (bytes, len) = (NonNull::from(&*slice).cast(), slice.len() as u32);
        // No part of a page that a reference covers is ever written again.
        RxBuf { bytes, owner: Owner::Page(slice.into_reference()), len }
    }

    /// Bytes on the heap: in-memory links and tests.
    ///
    /// # Panics
    /// If longer than 4 GiB - 1, which no frame is.
    pub fn from_vec(bytes: Vec<u8>) -> RxBuf {
        assert!(u32::try_from(bytes.len()).is_ok(), "a frame is shorter than 4 GiB");
        let bytes = Box::new(bytes);
        let place: *const [u8] = bytes.as_slice();
        // SAFETY: the vector, in its box, is not touched again before it is dropped, so its buffer stays where it is.
        RxBuf::new(unsafe { &*place }, Owner::Heap(bytes))
    }

    /// The buffer, and an empty one, which costs nothing, in its place.
    #[inline]
    pub fn take(&mut self) -> RxBuf {
        std::mem::replace(self, RxBuf { bytes: NonNull::dangling(), owner: Owner::Nobody, len: 0 })
    }

    /// Bytes `start..end` of it, if there are so many, in a buffer of their own; an empty one stays.
    #[inline]
    pub fn take_part(&mut self, start: usize, end: usize) -> RxBuf {
        let mut part = self.take();
        let end = end.min(part.len());
        let start = start.min(end);
        // SAFETY: at most one past the last of the `len` bytes.
        part.bytes = unsafe { part.bytes.add(start) };
        part.len = (end - start) as u32;
        part
    }

    /// Bytes left. Unlike the bytes themselves, this is known without looking at the buffer.
    #[inline]
    pub fn len(&self) -> usize {
        self.len as usize
    }

    #[inline]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Whether it occupies a buffer of a driver's receive pool (which is scarce: see `tcp`'s copy-out rule).
    #[inline]
    pub fn is_driver_buffer(&self) -> bool {
        match self.owner {
            Owner::Nobody | Owner::Page(_) => false,
            #[cfg(feature = "dpdk")]
            Owner::Mbuf(_) => true,
            // Stands in for a driver's buffer in tests on in-memory links.
            Owner::Heap(_) => true,
        }
    }

    /// Forgets the first `n` bytes; more than there are leaves it empty.
    #[inline]
    pub fn advance(&mut self, n: usize) {
        let n = n.min(self.len());
        // SAFETY: at most one past the last of the `len` bytes.
        self.bytes = unsafe { self.bytes.add(n) };
        self.len -= n as u32;
    }

    /// Keeps the first `n` bytes; more than there are changes nothing.
    #[inline]
    pub fn truncate(&mut self, n: usize) {
        self.len = n.min(self.len()) as u32;
    }
}

impl Deref for RxBuf {
    type Target = [u8];
    #[inline]
    fn deref(&self) -> &[u8] {
        // SAFETY: `bytes` and `len` describe a part of what `owner` keeps (every constructor, `advance`, `truncate`), it is initialised, and
        // nobody writes it while the owner lives, which is as long as `self`.
        unsafe { std::slice::from_raw_parts(self.bytes.as_ptr(), self.len()) }
    }
}

#[cfg(test)]
mod tests {
    use super::RxBuf;
    use crate::raw::PagePool;

    #[test]
    fn what_is_left_is_a_part_of_what_came() {
        let bytes: Vec<u8> = (0..10).collect();
        for front in 0..12usize {
            for len in 0..12usize {
                let mut buf = RxBuf::from_vec(bytes.clone());
                buf.advance(front);
                buf.truncate(len);
                let start = front.min(10);
                assert_eq!(&buf[..], &bytes[start..(start + len).min(10)]);
                assert_eq!((buf.len(), buf.is_empty()), (buf[..].len(), buf[..].is_empty()));
            }
        }
    }

    #[test]
    fn a_part_that_is_taken_leaves_nothing() {
        let bytes: Vec<u8> = (0..10).collect();
        for start in 0..12usize {
            for end in 0..12usize {
                let mut buf = RxBuf::from_vec(bytes.clone());
                buf.advance(2);
                let part = buf.take_part(start, end);
                let end = end.min(8);
                assert_eq!((&part[..], buf.is_empty()), (&bytes[2..][start.min(end)..end], true));
            }
        }
    }

    #[test]
    fn a_page_goes_back_with_its_last_buffer() {
        let pool = PagePool::anonymous(1, 4096).unwrap();
        let mut page = pool.allocate().unwrap();
        page[..4].copy_from_slice(b"text");
        let mut slice = page.freeze();
        slice.truncate(4);
        let mut buf = RxBuf::from_slice(slice);
        buf.advance(1);
        let mut taken = buf.take();
        assert!(buf.is_empty() && !buf.is_driver_buffer());
        drop(buf);
        taken.truncate(2);
        assert_eq!((&taken[..], pool.outstanding()), (&b"ex"[..], 1));
        drop(taken);
        assert_eq!(pool.outstanding(), 0);
    }

    #[test]
    fn it_outlives_the_thread_that_received_it() {
        let buf = RxBuf::from_vec(vec![7; 100]);
        let read = std::thread::spawn(move || buf.iter().map(|byte| u32::from(*byte)).sum::<u32>());
        assert_eq!(read.join().unwrap(), 700);
    }
}
