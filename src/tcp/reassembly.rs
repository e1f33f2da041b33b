//! Segments that came before their turn.
//!
//! Read first: RFC 9293 section 3.10.7.4 (seventh step), RFC 2018 section 4, RFC 2883. Bounded in ranges here and in
//! buffers by the caller. Bytes are kept in the buffers they came in. Not here: what is in order already (`connection::receive`).

use std::collections::VecDeque;

use crate::buf::RxBuf;

/// Ranges with holes between them that one connection may hold; a segment that would open another is dropped.
pub(crate) const OUT_OF_ORDER_RANGES_MAX: usize = 256;

struct Range {
    start: u64,
    end: u64,
    bufs: VecDeque<RxBuf>,
    /// When it last grew, for the order of SACK blocks.
    stamp: u64,
}

/// What became of an out-of-order segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Insert {
    Queued,
    /// All of it was there already.
    Duplicate,
    /// Too many holes.
    Refused,
}

/// One word on the connections that never had a hole.
#[derive(Default)]
pub(crate) struct Reassembly {
    ranges: Option<Box<Ranges>>,
}

#[derive(Default)]
struct Ranges {
    ranges: Vec<Range>,
    stamp: u64,
    buffers: usize,
    driver_buffers: usize,
    len: usize,
}

impl Reassembly {
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.ranges.as_ref().is_none_or(|held| held.ranges.is_empty())
    }

    pub fn len(&self) -> usize {
        self.ranges.as_ref().map_or(0, |held| held.len)
    }

    /// Buffers held, of any kind.
    #[inline]
    pub fn buffers(&self) -> usize {
        self.ranges.as_ref().map_or(0, |held| held.buffers)
    }

    /// Buffers held that belong to a driver.
    #[inline]
    pub fn driver_buffers(&self) -> usize {
        self.ranges.as_ref().map_or(0, |held| held.driver_buffers)
    }

    /// Room is kept for what may come before its turn again.
    pub fn has_spare(&self) -> bool {
        self.ranges.is_some()
    }

    /// The range that holds `offset`, for D-SACK's second block (RFC 2883 section 4).
    pub fn range_of(&self, offset: u64) -> Option<(u64, u64)> {
        self.ranges.as_ref()?.range_of(offset)
    }

    /// Up to `n` ranges, the one that grew last first (RFC 2018 section 4).
    pub fn newest(&self, n: usize) -> impl Iterator<Item = (u64, u64)> {
        self.ranges.iter().flat_map(move |held| held.newest(n))
    }

    /// Forgets the highest range; `false`: there is none.
    pub fn drop_last(&mut self) -> bool {
        self.ranges.as_mut().is_some_and(|held| held.drop_last())
    }

    /// Queues the bytes `start..` that `bufs` hold, in order. What is known already keeps its first copy, except that a
    /// range the new one covers entirely gives way to it.
    pub fn insert(&mut self, start: u64, bufs: &mut VecDeque<RxBuf>) -> Insert {
        self.ranges.get_or_insert_default().insert(start, bufs)
    }

    /// The next buffer that continues the stream at `next`, cut to begin there.
    pub fn take(&mut self, next: u64) -> Option<RxBuf> {
        self.ranges.as_mut()?.take(next)
    }

    pub fn clear(&mut self) {
        self.ranges = None;
    }

    /// As `RxChain::replace_each`.
    pub fn replace_each(&mut self, replace: impl FnMut(&RxBuf) -> Option<RxBuf>) {
        if let Some(held) = &mut self.ranges {
            held.replace_each(replace);
        }
    }
}

impl Ranges {
    fn range_of(&self, offset: u64) -> Option<(u64, u64)> {
        self.ranges.iter().find(|range| range.start <= offset && offset < range.end).map(|range| (range.start, range.end))
    }

    fn newest(&self, n: usize) -> impl Iterator<Item = (u64, u64)> {
        let mut newest: [Option<&Range>; 4] = [None; 4];
        for range in &self.ranges {
            let Some(at) = newest.iter().position(|seen| seen.is_none_or(|seen| seen.stamp < range.stamp)) else { continue };
            newest[at..].rotate_right(1);
            newest[at] = Some(range);
        }
        newest.into_iter().flatten().take(n).map(|range| (range.start, range.end))
    }

    fn account(&mut self, buf: &RxBuf, add: bool) {
        let driver = usize::from(buf.is_driver_buffer());
        if add {
            (self.buffers, self.driver_buffers, self.len) =
                (self.buffers + 1, self.driver_buffers + driver, self.len + buf.len());
        } else {
            (self.buffers, self.driver_buffers, self.len) =
                (self.buffers - 1, self.driver_buffers - driver, self.len - buf.len());
        }
    }

    fn drop_range(&mut self, index: usize) {
        let range = self.ranges.remove(index);
        for buf in &range.bufs {
            self.account(buf, false);
        }
    }

    fn drop_last(&mut self) -> bool {
        let Some(last) = self.ranges.len().checked_sub(1) else { return false };
        self.drop_range(last);
        true
    }

    fn insert(&mut self, mut start: u64, bufs: &mut VecDeque<RxBuf>) -> Insert {
        let mut end = start + bufs.iter().map(|buf| buf.len() as u64).sum::<u64>();
        // The first range that ends behind the new start.
        let mut at = self.ranges.partition_point(|range| range.end <= start);
        if let Some(range) = self.ranges.get(at).filter(|range| range.start <= start) {
            if range.end >= end {
                bufs.clear();
                return Insert::Duplicate;
            }
            trim_front(bufs, range.end - start);
            start = range.end;
            at += 1;
        }
        while let Some(next) = self.ranges.get(at).filter(|next| next.start < end) {
            if next.end <= end {
                self.drop_range(at);
            } else {
                let keep = next.start - start;
                trim_back(bufs, keep);
                end = start + keep;
            }
        }
        if start == end {
            return Insert::Duplicate;
        }
        self.stamp += 1;
        for buf in bufs.iter() {
            self.account(buf, true);
        }
        self.place(at, start, end, bufs)
    }

    /// Joins the trimmed piece to its neighbours or makes it a range of its own at index `at`.
    fn place(&mut self, at: usize, start: u64, end: u64, bufs: &mut VecDeque<RxBuf>) -> Insert {
        let joins_next = self.ranges.get(at).is_some_and(|next| next.start == end);
        let joins_previous = at > 0 && self.ranges[at - 1].end == start;
        match (joins_previous, joins_next) {
            (true, joins_next) => {
                let next = joins_next.then(|| self.ranges.remove(at));
                let previous = &mut self.ranges[at - 1];
                previous.bufs.append(bufs);
                (previous.end, previous.stamp) = (end, self.stamp);
                if let Some(mut next) = next {
                    previous.bufs.append(&mut next.bufs);
                    previous.end = next.end;
                }
            }
            (false, true) => {
                let next = &mut self.ranges[at];
                while let Some(buf) = bufs.pop_back() {
                    next.bufs.push_front(buf);
                }
                (next.start, next.stamp) = (start, self.stamp);
            }
            (false, false) if self.ranges.len() >= OUT_OF_ORDER_RANGES_MAX => {
                while let Some(buf) = bufs.pop_front() {
                    self.account(&buf, false);
                }
                return Insert::Refused;
            }
            (false, false) => {
                let bufs = std::mem::take(bufs);
                self.ranges.insert(at, Range { start, end, bufs, stamp: self.stamp });
            }
        }
        Insert::Queued
    }

    fn take(&mut self, next: u64) -> Option<RxBuf> {
        loop {
            let front = self.ranges.first_mut()?;
            if front.start > next {
                return None;
            }
            let Some(mut buf) = front.bufs.pop_front() else {
                self.ranges.remove(0);
                continue;
            };
            let start = front.start;
            front.start += buf.len() as u64;
            self.account(&buf, false);
            buf.advance((next - start).min(buf.len() as u64) as usize);
            if !buf.is_empty() {
                return Some(buf);
            }
        }
    }

    fn replace_each(&mut self, mut replace: impl FnMut(&RxBuf) -> Option<RxBuf>) {
        for buf in self.ranges.iter_mut().flat_map(|range| &mut range.bufs) {
            if let Some(new) = replace(buf) {
                self.driver_buffers -= usize::from(buf.is_driver_buffer());
                self.driver_buffers += usize::from(new.is_driver_buffer());
                *buf = new;
            }
        }
    }
}

/// Forgets the first `n` bytes.
pub(crate) fn trim_front(bufs: &mut VecDeque<RxBuf>, n: u64) {
    let mut left = n as usize;
    while let Some(front) = bufs.front_mut() {
        if front.len() > left {
            front.advance(left);
            return;
        }
        left -= front.len();
        bufs.pop_front();
    }
}

/// Keeps the first `n` bytes.
pub(crate) fn trim_back(bufs: &mut VecDeque<RxBuf>, n: u64) {
    let mut left = n as usize;
    for buf in bufs.iter_mut() {
        buf.truncate(left);
        left -= buf.len();
    }
    bufs.retain(|buf| !buf.is_empty());
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn bufs(start: u64, len: usize) -> VecDeque<RxBuf> {
        // Two buffers, to have cuts inside and at their border.
        let bytes: Vec<u8> = (start..start + len as u64).map(|n| n as u8).collect();
        let (a, b) = bytes.split_at(len / 2);
        [a, b].into_iter().filter(|part| !part.is_empty()).map(|part| RxBuf::from_vec(part.to_vec())).collect()
    }

    #[test]
    fn the_newest_range_is_reported_first() {
        let mut queue = Reassembly::default();
        for start in [100, 300, 500, 700, 900] {
            assert_eq!(queue.insert(start, &mut bufs(start, 10)), Insert::Queued);
        }
        queue.insert(310, &mut bufs(310, 10));
        assert_eq!(queue.newest(3).collect::<Vec<_>>(), [(300, 320), (900, 910), (700, 710)]);
        assert_eq!(queue.insert(302, &mut bufs(302, 5)), Insert::Duplicate);
        assert_eq!(queue.range_of(302), Some((300, 320)));
    }

    #[test]
    fn holes_are_bounded() {
        let mut queue = Reassembly::default();
        for n in 0..OUT_OF_ORDER_RANGES_MAX as u64 {
            assert_eq!(queue.insert(n * 10, &mut bufs(n * 10, 2)), Insert::Queued);
        }
        let held = (queue.len(), queue.buffers());
        assert_eq!(queue.insert(1_000_000, &mut bufs(1_000_000, 2)), Insert::Refused);
        assert_eq!((queue.len(), queue.buffers()), held);
        assert_eq!(queue.insert(2, &mut bufs(2, 2)), Insert::Queued, "growing a range is still possible");
    }

    proptest! {
        #[test]
        fn any_order_and_overlap_yields_the_stream(
            pieces in proptest::collection::vec((0u64..200, 1usize..40), 1..60)
        ) {
            let mut queue = Reassembly::default();
            let mut known = [false; 256];
            for (start, len) in &pieces {
                queue.insert(*start, &mut bufs(*start, *len));
                known[*start as usize..*start as usize + len].fill(true);
            }
            prop_assert_eq!(queue.len(), known.iter().filter(|known| **known).count());
            let mut at = 0u64;
            while at < 256 {
                match queue.take(at) {
                    Some(buf) => {
                        for byte in buf.iter() {
                            prop_assert_eq!(*byte, at as u8);
                            prop_assert!(known[at as usize]);
                            at += 1;
                        }
                    }
                    None => {
                        prop_assert!(!known[at as usize]);
                        at += 1;
                    }
                }
            }
            prop_assert!(queue.is_empty());
            prop_assert_eq!((queue.len(), queue.buffers(), queue.driver_buffers()), (0, 0, 0));
        }
    }
}
