//! A reply as sunrpc's `xdr_buf`: head, pages, tail; and how it becomes one gather list.
//!
//! Read first: RFC 5531 section 11 (record marking), RFC 4506 section 4.10 (padding). The record mark is reserved in front of
//! the head, in the same piece of the same fragment page, and filled in when the reply is sealed: it costs no allocation and
//! has no lifetime of its own. Pages are references; the tail is a reference to zeroes. Nothing but the head was ever written.

use super::record::{LAST_FRAGMENT, MARKER_LEN};
use super::xdr::padding;
use crate::buf::{Fragment, Slice, gather_len};

/// Most bytes of one record: the mark has 31 bits for the length (RFC 5531 section 11).
pub const RECORD_LEN_MAX: usize = (LAST_FRAGMENT - 1) as usize;

/// How a message is told from the next one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Framing {
    /// A record mark in front.
    Stream,
    /// The datagram is the message.
    Datagram,
}

/// A reply whose head is written but not yet shared.
pub struct XdrBuf<'a> {
    /// Its spare starts with room for the mark, then the head.
    fragment: &'a mut Fragment,
    /// Bytes of the head, the mark apart.
    head: usize,
    pages: &'a mut Vec<Slice>,
    /// XDR padding behind the pages.
    tail: Option<Slice>,
    len: usize,
}

impl<'a> XdrBuf<'a> {
    /// A reply whose mark's room and `head` bytes of head stand at the front of `fragment`'s spare. `zeroes` must hold
    /// three bytes at least.
    #[inline]
    pub fn new(fragment: &'a mut Fragment, head: usize, pages: &'a mut Vec<Slice>, zeroes: &Slice) -> XdrBuf<'a> {
        let data = gather_len(pages);
        let padding = padding(data);
        let tail = (padding > 0).then(|| zeroes.slice(0..padding));
        XdrBuf { fragment, head, pages, tail, len: head + data + padding }
    }

    /// Bytes of the message, the mark apart.
    pub fn len(&self) -> usize {
        self.len
    }

    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Writes the mark, shares the head and appends the gather list (mark and head, pages, tail) to `out`; `pages` is left
    /// empty. Returns the bytes appended. With `joins` the last piece of `out` is of the same stream: a head that lies right
    /// behind it becomes a part of it.
    ///
    /// # Panics
    /// If the message is longer than a record can be or its parts do not add up: sending it would lose the place in the
    /// stream for good. Callers bound replies far below (`Options::send_queue_bytes_max`).
    #[inline]
    pub fn seal(self, framing: Framing, joins: bool, out: &mut Vec<Slice>) -> usize {
        assert!(self.len <= RECORD_LEN_MAX, "a record has at most 2^31-1 bytes");
        let mark = LAST_FRAGMENT | self.len as u32;
        self.fragment.spare()[..MARKER_LEN].copy_from_slice(&mark.to_be_bytes());
        let parts = self.head + gather_len(self.pages) + self.tail.as_ref().map_or(0, |tail| tail.len());
        assert!(parts == self.len, "len == head + pages + tail");
        let marked = MARKER_LEN + self.head;
        let joined = joins && out.last_mut().is_some_and(|last| self.fragment.commit_onto(last, marked));
        if !joined {
            let mut head = self.fragment.commit(marked);
            if framing == Framing::Datagram {
                head.advance(MARKER_LEN);
            }
            out.push(head);
        }
        if !self.pages.is_empty() {
            out.append(self.pages);
        }
        if let Some(tail) = self.tail {
            out.push(tail);
        }
        if framing == Framing::Stream { MARKER_LEN + self.len } else { self.len }
    }
}

/// Where in its page the first page of a reply starts (sunrpc's `page_base`), given the page size.
pub fn page_base(pages: &[Slice], page_size: usize) -> usize {
    pages.first().map_or(0, |first| first.address() % page_size.max(1))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::buf::{FragmentArena, PagePool};

    fn sealed(data: &[usize], framing: Framing) -> (Vec<Slice>, usize) {
        let pool = PagePool::anonymous(8, 4096).unwrap();
        let mut arena = FragmentArena::new(pool.clone()).unwrap();
        let zeroes = arena.zeroes(3);
        let mut pages: Vec<Slice> = data
            .iter()
            .map(|&len| {
                let mut page = pool.allocate().unwrap();
                page.fill(0x44);
                page.freeze().slice(100..100 + len)
            })
            .collect();
        assert_eq!(page_base(&pages, 4096), if data.is_empty() { 0 } else { 100 });
        let fragment = arena.reserve(64).unwrap();
        fragment.spare()[MARKER_LEN..MARKER_LEN + 8].copy_from_slice(b"thehead!");
        let mut out = Vec::new();
        let bytes = XdrBuf::new(fragment, 8, &mut pages, &zeroes).seal(framing, false, &mut out);
        assert!(pages.is_empty());
        assert_eq!(out.iter().map(|slice| slice.len()).sum::<usize>(), bytes);
        (out, bytes)
    }

    #[test]
    fn mark_and_head_are_one_piece_and_pages_are_padded() {
        let (gather, bytes) = sealed(&[10, 7], Framing::Stream);
        assert_eq!((bytes, gather.len()), (4 + 8 + 17 + 3, 4));
        assert_eq!(&gather[0][..], b"\x80\0\0\x1cthehead!");
        assert_eq!(gather.iter().skip(1).map(|slice| slice.len()).collect::<Vec<_>>(), [10, 7, 3]);
        assert_eq!(&gather[3][..], [0; 3]);
    }

    #[test]
    fn heads_of_one_stream_that_follow_each_other_are_one_piece() {
        let pool = PagePool::anonymous(8, 4096).unwrap();
        let mut arena = FragmentArena::new(pool.clone()).unwrap();
        let zeroes = arena.zeroes(3);
        let mut out = Vec::new();
        let mut seal = |joins: bool, pages: &mut Vec<Slice>| {
            let fragment = arena.reserve(64).unwrap();
            fragment.spare()[MARKER_LEN..MARKER_LEN + 8].copy_from_slice(b"thehead!");
            XdrBuf::new(fragment, 8, pages, &zeroes).seal(Framing::Stream, joins, &mut out);
            out.iter().map(|slice| slice.len()).collect::<Vec<_>>()
        };
        assert_eq!(seal(false, &mut Vec::new()), [12], "whose the last piece is nobody said");
        assert_eq!(seal(false, &mut Vec::new()), [12, 12]);
        assert_eq!(seal(true, &mut Vec::new()), [12, 24]);
        let mut pages = vec![pool.allocate().unwrap().freeze().slice(0..8)];
        assert_eq!(seal(true, &mut pages), [12, 36, 8]);
        assert_eq!(seal(true, &mut Vec::new()), [12, 36, 8, 12], "a page is between them");
        assert_eq!(&out[1][..], b"\x80\0\0\x08thehead!\x80\0\0\x08thehead!\x80\0\0\x10thehead!");
    }

    #[test]
    fn nothing_is_appended_where_nothing_is_needed() {
        let (gather, bytes) = sealed(&[], Framing::Stream);
        assert_eq!((bytes, gather.len(), &gather[0][..4]), (12, 1, &b"\x80\0\0\x08"[..]));
        let (gather, bytes) = sealed(&[8], Framing::Datagram);
        assert_eq!((bytes, gather.len(), &gather[0][..]), (16, 2, &b"thehead!"[..]));
    }
}
