//! Received bytes, in place: buffers, streams of buffers, and borrowed views that may straddle them.
//!
//! The buffer itself, `RxBuf`, is `raw`'s.

use std::collections::VecDeque;
use std::ops::{Deref, DerefMut};

use crate::raw::RxBuf;

/// Whether somebody below has already verified a checksum.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Checksum {
    /// Nobody looked: verify in software.
    #[default]
    Unknown,
    Good,
    Bad,
}

/// What one received frame (or one coalesced train of frames) brought: the headers are contiguous in `first`.
pub struct RxPacket {
    pub first: RxBuf,
    /// Further segments of a scattered frame; empty, and then without allocation, for ordinary ones.
    pub more: RxRest,
}

/// The buffers behind a packet's first: one word that says that there are none, as nearly always. Each frame is moved and dropped.
#[derive(Default)]
#[expect(clippy::box_collection, reason = "one word, not three; what it costs is paid by scattered frames alone")]
pub struct RxRest(Option<Box<Vec<RxBuf>>>);

impl RxRest {
    pub fn push(&mut self, buf: RxBuf) {
        self.0.get_or_insert_default().push(buf);
    }

    pub fn retain(&mut self, keep: impl FnMut(&RxBuf) -> bool) {
        if let Some(bufs) = &mut self.0 {
            bufs.retain(keep);
        }
    }

    /// Bytes in all of them.
    #[inline]
    fn total_len(&self) -> usize {
        self.0.as_ref().map_or(0, |bufs| bufs.iter().map(RxBuf::len).sum())
    }
}

impl FromIterator<RxBuf> for RxRest {
    fn from_iter<I: IntoIterator<Item = RxBuf>>(bufs: I) -> RxRest {
        let bufs: Vec<RxBuf> = bufs.into_iter().collect();
        RxRest((!bufs.is_empty()).then(|| Box::new(bufs)))
    }
}

impl Deref for RxRest {
    type Target = [RxBuf];
    #[inline]
    fn deref(&self) -> &[RxBuf] {
        self.0.as_ref().map_or(&[], |bufs| bufs)
    }
}

impl DerefMut for RxRest {
    fn deref_mut(&mut self) -> &mut [RxBuf] {
        self.0.as_mut().map_or(&mut [], |bufs| bufs)
    }
}

impl IntoIterator for RxRest {
    type Item = RxBuf;
    type IntoIter = std::vec::IntoIter<RxBuf>;
    fn into_iter(self) -> std::vec::IntoIter<RxBuf> {
        self.0.map_or_else(Vec::new, |bufs| *bufs).into_iter()
    }
}

impl<'a> IntoIterator for &'a RxRest {
    type Item = &'a RxBuf;
    type IntoIter = std::slice::Iter<'a, RxBuf>;
    fn into_iter(self) -> std::slice::Iter<'a, RxBuf> {
        self.iter()
    }
}

impl RxPacket {
    pub fn from_vec(bytes: Vec<u8>) -> RxPacket {
        RxPacket { first: RxBuf::from_vec(bytes), more: RxRest::default() }
    }

    pub fn single(first: RxBuf) -> RxPacket {
        RxPacket { first, more: RxRest::default() }
    }

    /// The packet, and an empty one in its place.
    #[inline]
    pub fn take(&mut self) -> RxPacket {
        RxPacket { first: self.first.take(), more: std::mem::take(&mut self.more) }
    }

    /// Bytes in all segments.
    #[inline]
    pub fn len(&self) -> usize {
        self.first.len() + self.more.total_len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Keeps the first `n` bytes of the packet (Ethernet padding behind the IP packet goes away with this).
    #[inline]
    pub fn truncate(&mut self, n: usize) {
        if self.more.is_empty() {
            return self.first.truncate(n);
        }
        let mut left = n;
        self.first.truncate(left);
        left -= self.first.len();
        for buf in self.more.iter_mut() {
            buf.truncate(left);
            left -= buf.len();
        }
        self.more.retain(|buf| !buf.is_empty());
    }

    /// Forgets the first `n` bytes.
    #[inline]
    pub fn advance(&mut self, n: usize) {
        if self.more.is_empty() {
            return self.first.advance(n);
        }
        let mut left = n;
        let taken = left.min(self.first.len());
        self.first.advance(taken);
        left -= taken;
        for buf in self.more.iter_mut() {
            let taken = left.min(buf.len());
            buf.advance(taken);
            left -= taken;
        }
    }

    /// The segments in order, the empty ones left out.
    pub fn into_bufs(self) -> impl Iterator<Item = RxBuf> {
        std::iter::once(self.first).chain(self.more).filter(|buf| !buf.is_empty())
    }
}

/// A stream of received bytes in order: what TCP has for the layer above, which takes from the front.
#[derive(Default)]
pub struct RxChain {
    bufs: VecDeque<RxBuf>,
    len: usize,
}

impl RxChain {
    pub fn new() -> RxChain {
        RxChain::default()
    }

    /// Bytes held.
    pub fn len(&self) -> usize {
        self.len
    }

    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Buffers held; each may pin one of a driver's.
    pub fn buffers(&self) -> usize {
        self.bufs.len()
    }

    #[inline]
    pub fn push(&mut self, buf: RxBuf) {
        if !buf.is_empty() {
            self.push_text(buf);
        }
    }

    /// One of which it is known that it is not empty.
    #[inline(always)]
    pub(crate) fn push_text(&mut self, buf: RxBuf) {
        debug_assert!(!buf.is_empty());
        self.len += buf.len();
        self.bufs.push_back(buf);
    }

    /// Gives back the first `n` bytes (or all there are).
    pub fn consume(&mut self, n: usize) {
        let mut left = n.min(self.len);
        self.len -= left;
        if self.len == 0 {
            return self.bufs.clear();
        }
        let whole = self.bufs.iter().take_while(|buf| {
            let is_whole = buf.len() <= left;
            left -= if is_whole { buf.len() } else { 0 };
            is_whole
        });
        match whole.count() {
            0 => {}
            1 => drop(self.bufs.pop_front()),
            // In one piece, as most of a long record.
            count => drop(self.bufs.drain(..count)),
        }
        if let Some(front) = self.bufs.front_mut() {
            front.advance(left);
        }
    }

    /// Room is kept for the buffers to come.
    pub fn has_spare(&self) -> bool {
        self.bufs.capacity() > 0
    }

    /// Removes everything.
    pub fn clear(&mut self) {
        self.bufs.clear();
        self.len = 0;
    }

    /// The `len` bytes that start `offset` bytes into the stream; `None` if they are not all there.
    pub fn view(&self, offset: usize, len: usize) -> Option<View<'_>> {
        let end = offset.checked_add(len).filter(|end| *end <= self.len)?;
        let mut view = View { front: &[], behind: end, bufs: Some(&self.bufs), next: 0 };
        view.refill();
        view.skip(offset);
        Some(view)
    }

    /// All bytes held.
    pub fn all(&self) -> View<'_> {
        let mut view = View { front: &[], behind: self.len, bufs: Some(&self.bufs), next: 0 };
        view.refill();
        view
    }

    /// Calls `replace` on each buffer in turn and puts in its place what that returns (the copy-out of long-held buffers);
    /// `None` leaves the buffer as it is. A replacement must hold the same bytes.
    pub fn replace_each(&mut self, mut replace: impl FnMut(&RxBuf) -> Option<RxBuf>) {
        for buf in &mut self.bufs {
            if let Some(new) = replace(buf) {
                debug_assert_eq!(new.len(), buf.len());
                *buf = new;
            }
        }
    }
}

/// A borrowed range of received bytes that may straddle buffers. `Copy`: taking a part copies no bytes.
///
/// It is the contiguous bytes at its front and a count of what lies behind them: whatever is in one buffer, as nearly every
/// call's header is, is read as a plain slice with one comparison. Only what straddles goes back to the buffers.
#[derive(Clone, Copy)]
pub struct View<'a> {
    /// May be used up while there is something behind it: whoever needs bytes refills it.
    front: &'a [u8],
    /// Bytes in the buffers from `next` on.
    behind: usize,
    /// `None` for a view of one slice.
    bufs: Option<&'a VecDeque<RxBuf>>,
    next: usize,
}

impl<'a> From<&'a [u8]> for View<'a> {
    #[inline]
    fn from(front: &'a [u8]) -> View<'a> {
        View { front, behind: 0, bufs: None, next: 0 }
    }
}

impl<'a> View<'a> {
    #[inline]
    pub fn len(&self) -> usize {
        self.front.len() + self.behind
    }

    #[inline]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Replaces the front, which is used up, by the next buffer's bytes.
    fn refill(&mut self) {
        let buffer: &[u8] = self.bufs.and_then(|bufs| bufs.get(self.next)).map_or(&[], |buf| buf);
        self.front = &buffer[..buffer.len().min(self.behind)];
        self.behind -= self.front.len();
        self.next += 1;
    }

    /// Drops the first `n` bytes, of which the callers know that they are there.
    #[inline]
    fn skip(&mut self, n: usize) {
        match self.front.get(n..) {
            Some(front) => self.front = front,
            None => self.skip_buffers(n),
        }
    }

    #[cold]
    fn skip_buffers(&mut self, n: usize) {
        let mut left = n;
        while left > self.front.len() && self.behind > 0 {
            left -= self.front.len();
            self.refill();
        }
        self.front = self.front.get(left..).unwrap_or(&[]);
    }

    /// The first `len` bytes, of which the callers know that they are there.
    fn truncated(&self, len: usize) -> View<'a> {
        match self.front.get(..len) {
            Some(front) => View::from(front),
            None => View { behind: len - self.front.len(), ..*self },
        }
    }

    /// Takes `N` bytes off the front; `None`, and nothing taken, if there are fewer.
    #[inline]
    pub fn take_chunk<const N: usize>(&mut self) -> Option<[u8; N]> {
        match self.front.split_first_chunk::<N>() {
            Some((chunk, front)) => {
                self.front = front;
                Some(*chunk)
            }
            None => self.take_straddling_chunk(),
        }
    }

    #[cold]
    fn take_straddling_chunk<const N: usize>(&mut self) -> Option<[u8; N]> {
        let mut chunk = [0; N];
        self.take(N)?.copy_to(&mut chunk);
        Some(chunk)
    }

    /// Takes `len` bytes off the front; `None`, and nothing taken, if there are fewer.
    #[inline]
    pub fn take(&mut self, len: usize) -> Option<View<'a>> {
        match self.front.split_at_checked(len) {
            Some((taken, front)) => {
                self.front = front;
                Some(View::from(taken))
            }
            None => self.take_straddling(len),
        }
    }

    #[cold]
    fn take_straddling(&mut self, len: usize) -> Option<View<'a>> {
        if len > self.len() {
            return None;
        }
        let taken = self.truncated(len);
        self.skip_buffers(len);
        Some(taken)
    }

    /// The first `len` bytes if they are contiguous, without taking them.
    #[inline]
    pub fn peek(&self, len: usize) -> Option<&'a [u8]> {
        self.front.get(..len)
    }

    /// The `len` bytes from `offset` on; `None` if the view is too short.
    pub fn part(&self, offset: usize, len: usize) -> Option<View<'a>> {
        if offset.checked_add(len)? > self.len() {
            return None;
        }
        let mut part = *self;
        part.skip(offset);
        Some(part.truncated(len))
    }

    /// Cuts the view in two: the first `at` bytes and the rest; `None` if it is too short.
    pub fn split_at(&self, at: usize) -> Option<(View<'a>, View<'a>)> {
        let mut rest = *self;
        Some((rest.take(at)?, rest))
    }

    /// The contiguous pieces, in order, none empty.
    pub fn pieces(&self) -> impl Iterator<Item = &'a [u8]> + use<'a> {
        let mut view = *self;
        std::iter::from_fn(move || {
            if view.front.is_empty() && view.behind > 0 {
                view.refill();
            }
            let piece = std::mem::take(&mut view.front);
            (!piece.is_empty()).then_some(piece)
        })
    }

    /// All bytes if they lie in one buffer (an empty view does).
    #[inline]
    pub fn contiguous(&self) -> Option<&'a [u8]> {
        if self.behind == 0 {
            return Some(self.front);
        }
        let mut view = *self;
        if view.front.is_empty() {
            view.refill();
        }
        (view.behind == 0).then_some(view.front)
    }

    /// All bytes as one slice: in place if they are contiguous, else copied into `scratch`.
    /// `None` if `scratch` is too small for a straddling view.
    pub fn contiguous_in<'s>(&self, scratch: &'s mut [u8]) -> Option<&'s [u8]>
    where
        'a: 's,
    {
        if let Some(bytes) = self.contiguous() {
            return Some(bytes);
        }
        let into = scratch.get_mut(..self.len())?;
        self.copy_to(into);
        Some(into)
    }

    /// Copies the first `into.len()` bytes (or all there are) and tells how many.
    pub fn copy_to(&self, into: &mut [u8]) -> usize {
        if let Some(front) = self.peek(into.len()) {
            into.copy_from_slice(front);
            return into.len();
        }
        let mut done = 0;
        for piece in self.pieces() {
            let n = piece.len().min(into.len() - done);
            into[done..done + n].copy_from_slice(&piece[..n]);
            done += n;
            if done == into.len() {
                break;
            }
        }
        done
    }

    /// As `copy_to`, for bytes that nobody on this core is going to read.
    pub fn copy_past_caches(&self, into: &mut [u8]) -> usize {
        crate::raw::copy_past_caches(self.pieces(), into)
    }

    /// The big-endian word at `offset`; `None` if the view is too short.
    #[inline]
    pub fn u32_at(&self, offset: usize) -> Option<u32> {
        if let Some(word) = self.front.get(offset..offset.checked_add(4)?).and_then(<[u8]>::first_chunk) {
            return Some(u32::from_be_bytes(*word));
        }
        self.part(offset, 4)?.take_chunk().map(u32::from_be_bytes)
    }

    pub fn to_vec(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(self.len());
        self.pieces().for_each(|piece| bytes.extend_from_slice(piece));
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chain(pieces: &[&[u8]]) -> RxChain {
        let mut chain = RxChain::new();
        for piece in pieces {
            chain.push(RxBuf::from_vec(piece.to_vec()));
        }
        chain
    }

    #[test]
    fn every_part_of_every_cut_reads_the_same() {
        let bytes: Vec<u8> = (0..12).collect();
        for cut1 in 0..=12 {
            for cut2 in cut1..=12 {
                let chain = chain(&[&bytes[..cut1], &bytes[cut1..cut2], &bytes[cut2..]]);
                for from in 0..=12 {
                    for to in from..=12 {
                        let view = chain.view(from, to - from).unwrap();
                        assert_eq!(view.to_vec(), &bytes[from..to]);
                        for at in 0..=view.len() {
                            let (a, b) = view.split_at(at).unwrap();
                            assert_eq!([a.to_vec(), b.to_vec()].concat(), &bytes[from..to]);
                            assert_eq!(view.part(at, view.len() - at).unwrap().to_vec(), b.to_vec());
                        }
                        let mut scratch = [0; 12];
                        assert_eq!(view.contiguous_in(&mut scratch).unwrap(), &bytes[from..to]);
                    }
                }
                assert!(chain.view(0, 13).is_none());
            }
        }
    }

    #[test]
    fn words_are_read_across_buffers() {
        let chain = chain(&[&[0, 1], &[2], &[3, 4]]);
        let view = chain.view(0, 5).unwrap();
        assert_eq!(view.u32_at(0), Some(0x0001_0203));
        assert_eq!(view.u32_at(1), Some(0x0102_0304));
        assert_eq!(view.u32_at(2), None);
        assert_eq!(view.u32_at(usize::MAX), None);
    }

    #[test]
    fn consuming_gives_buffers_back_from_the_front() {
        let mut chain = chain(&[b"abc", b"de", b"f"]);
        chain.consume(4);
        assert_eq!((chain.len(), chain.buffers()), (2, 2));
        assert_eq!(chain.view(0, 2).unwrap().to_vec(), b"ef");
        chain.consume(usize::MAX);
        assert!(chain.is_empty() && chain.buffers() == 0);
    }

    #[test]
    fn a_scattered_packet_loses_padding_and_headers() {
        let mut packet = RxPacket {
            first: RxBuf::from_vec(b"hea".to_vec()),
            more: [&b"der+data"[..], b"padding"].map(|bytes| RxBuf::from_vec(bytes.to_vec())).into_iter().collect(),
        };
        packet.truncate(11);
        packet.advance(7);
        let bufs: Vec<_> = packet.into_bufs().map(|buf| buf.to_vec()).collect();
        assert_eq!(bufs, [b"data".to_vec()]);
    }
}
