//! Segments that came before their turn.
//!
//! Read first: RFC 9293 section 3.10.7.4 (seventh step), RFC 2018 section 4, RFC 2883. Bounded in ranges and in buffers by the caller. What
//! a segment costs grows with the logarithm of the ranges, wherever a peer puts its holes. Bytes are kept in the buffers they came in. Not
//! here: what is in order already (`connection::receive`).

use std::collections::{BTreeMap, VecDeque};

use crate::buf::RxBuf;

struct Range {
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

/// One word while there is no hole.
#[derive(Default)]
pub(crate) struct Reassembly {
    /// Not empty.
    ranges: Option<Box<Ranges>>,
}

#[derive(Default)]
struct Ranges {
    /// By where they start. None touches the next.
    ranges: BTreeMap<u64, Range>,
    /// Where those start that last grew when.
    newest: BTreeMap<u64, u64>,
    stamp: u64,
    buffers: usize,
    driver_buffers: usize,
    len: usize,
}

impl Reassembly {
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.ranges.is_none()
    }

    pub fn len(&self) -> usize {
        self.ranges.as_ref().map_or(0, |held| held.len)
    }

    /// Where the highest range ends; 0 if there is none.
    pub fn end(&self) -> u64 {
        self.ranges.as_ref().and_then(|held| held.ranges.last_key_value()).map_or(0, |(_, range)| range.end)
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
        let dropped = self.ranges.as_mut().is_some_and(|held| held.drop_last());
        self.clear_if_empty();
        dropped
    }

    /// Queues the bytes `start..` that `bufs` hold, in order. What is known already keeps its first copy, except that a
    /// range the new one covers entirely gives way to it. With `ranges_max` ranges no other is begun.
    pub fn insert(&mut self, start: u64, bufs: &mut VecDeque<RxBuf>, ranges_max: usize) -> Insert {
        let insert = self.ranges.get_or_insert_default().insert(start, bufs, ranges_max);
        self.clear_if_empty();
        insert
    }

    /// What continues the stream at `next`, cut to begin there.
    pub fn take(&mut self, next: u64) -> Option<VecDeque<RxBuf>> {
        let taken = self.ranges.as_mut()?.take(next);
        self.clear_if_empty();
        taken
    }

    fn clear_if_empty(&mut self) {
        if self.ranges.as_ref().is_some_and(|held| held.ranges.is_empty()) {
            self.ranges = None;
        }
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
        let (start, range) = self.ranges.range(..=offset).next_back()?;
        (offset < range.end).then_some((*start, range.end))
    }

    fn newest(&self, n: usize) -> impl Iterator<Item = (u64, u64)> {
        let newest = self.newest.values().rev().take(n);
        newest.filter_map(|start| Some((*start, self.ranges.get(start)?.end)))
    }

    fn account(&mut self, bufs: &VecDeque<RxBuf>, add: bool) {
        let driver = bufs.iter().filter(|buf| buf.is_driver_buffer()).count();
        let len = bufs.iter().map(RxBuf::len).sum::<usize>();
        if add {
            (self.buffers, self.driver_buffers, self.len) =
                (self.buffers + bufs.len(), self.driver_buffers + driver, self.len + len);
        } else {
            (self.buffers, self.driver_buffers, self.len) =
                (self.buffers - bufs.len(), self.driver_buffers - driver, self.len - len);
        }
    }

    /// Takes the range out that starts at `start`; it stays accounted.
    fn remove(&mut self, start: u64) -> Option<Range> {
        let range = self.ranges.remove(&start)?;
        self.newest.remove(&range.stamp);
        Some(range)
    }

    fn put(&mut self, start: u64, range: Range) {
        self.newest.insert(range.stamp, start);
        self.ranges.insert(start, range);
    }

    fn drop_range(&mut self, start: u64) {
        if let Some(range) = self.remove(start) {
            self.account(&range.bufs, false);
        }
    }

    fn drop_last(&mut self) -> bool {
        let Some(last) = self.ranges.last_key_value().map(|(start, _)| *start) else { return false };
        self.drop_range(last);
        true
    }

    fn insert(&mut self, mut start: u64, bufs: &mut VecDeque<RxBuf>, ranges_max: usize) -> Insert {
        let mut end = start + bufs.iter().map(|buf| buf.len() as u64).sum::<u64>();
        if let Some((_, known)) = self.range_of(start) {
            if known >= end {
                bufs.clear();
                return Insert::Duplicate;
            }
            trim_front(bufs, known - start);
            start = known;
        }
        while let Some((next, next_end)) = self.ranges.range(start..end).next().map(|(next, range)| (*next, range.end)) {
            if next_end <= end {
                self.drop_range(next);
            } else {
                trim_back(bufs, next - start);
                end = next;
            }
        }
        if start == end {
            return Insert::Duplicate;
        }
        self.place(start, end, bufs, ranges_max)
    }

    /// Joins the trimmed piece to its neighbours or makes it a range of its own.
    fn place(&mut self, start: u64, end: u64, bufs: &mut VecDeque<RxBuf>, ranges_max: usize) -> Insert {
        let previous = self.ranges.range(..start).next_back().filter(|(_, range)| range.end == start).map(|(at, _)| *at);
        let joins_next = self.ranges.contains_key(&end);
        if previous.is_none() && !joins_next && self.ranges.len() >= ranges_max {
            return Insert::Refused;
        }
        self.account(bufs, true);
        self.stamp += 1;
        let stamp = self.stamp;
        let next = if joins_next { self.remove(end) } else { None };
        if let Some(at) = previous
            && let Some(range) = self.ranges.get_mut(&at)
        {
            range.bufs.append(bufs);
            range.end = end;
            if let Some(next) = next {
                join(&mut range.bufs, next.bufs);
                range.end = next.end;
            }
            let before = std::mem::replace(&mut range.stamp, stamp);
            self.newest.remove(&before);
            self.newest.insert(stamp, at);
        } else {
            let mut range = Range { end, bufs: std::mem::take(bufs), stamp };
            if let Some(next) = next {
                join(&mut range.bufs, next.bufs);
                range.end = next.end;
            }
            self.put(start, range);
        }
        Insert::Queued
    }

    fn take(&mut self, next: u64) -> Option<VecDeque<RxBuf>> {
        loop {
            let start = self.ranges.first_key_value().map(|(start, _)| *start).filter(|start| *start <= next)?;
            let mut range = self.remove(start)?;
            self.account(&range.bufs, false);
            if range.end > next {
                trim_front(&mut range.bufs, next - start);
                return Some(range.bufs);
            }
        }
    }

    fn replace_each(&mut self, mut replace: impl FnMut(&RxBuf) -> Option<RxBuf>) {
        for buf in self.ranges.values_mut().flat_map(|range| &mut range.bufs) {
            if let Some(new) = replace(buf) {
                self.driver_buffers -= usize::from(buf.is_driver_buffer());
                self.driver_buffers += usize::from(new.is_driver_buffer());
                *buf = new;
            }
        }
    }
}

/// Puts `back` behind `front`. The fewer are moved: else a peer that lets a long range grow at its front would have all of it moved by
/// each segment.
fn join(front: &mut VecDeque<RxBuf>, mut back: VecDeque<RxBuf>) {
    if back.len() <= front.len() {
        front.append(&mut back);
        return;
    }
    while let Some(buf) = front.pop_back() {
        back.push_front(buf);
    }
    *front = back;
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

    const MAX: usize = 256;

    #[test]
    fn the_newest_range_is_reported_first() {
        let mut queue = Reassembly::default();
        for start in [100, 300, 500, 700, 900] {
            assert_eq!(queue.insert(start, &mut bufs(start, 10), MAX), Insert::Queued);
        }
        queue.insert(310, &mut bufs(310, 10), MAX);
        assert_eq!(queue.newest(3).collect::<Vec<_>>(), [(300, 320), (900, 910), (700, 710)]);
        assert_eq!(queue.insert(302, &mut bufs(302, 5), MAX), Insert::Duplicate);
        assert_eq!(queue.range_of(302), Some((300, 320)));
        // Two ranges that become one are as new as what joins them.
        queue.insert(110, &mut bufs(110, 190), MAX);
        assert_eq!(queue.newest(4).collect::<Vec<_>>(), [(100, 320), (900, 910), (700, 710), (500, 510)]);
    }

    #[test]
    fn holes_are_bounded() {
        let mut queue = Reassembly::default();
        for n in 0..MAX as u64 {
            assert_eq!(queue.insert(n * 10, &mut bufs(n * 10, 2), MAX), Insert::Queued);
        }
        let held = (queue.len(), queue.buffers());
        assert_eq!(queue.insert(1_000_000, &mut bufs(1_000_000, 2), MAX), Insert::Refused);
        assert_eq!((queue.len(), queue.buffers()), held);
        assert_eq!(queue.insert(2, &mut bufs(2, 2), MAX), Insert::Queued, "growing a range is still possible");
    }

    proptest! {
        #[test]
        fn any_order_and_overlap_yields_the_stream(
            pieces in proptest::collection::vec((0u64..200, 1usize..40), 1..60)
        ) {
            let mut queue = Reassembly::default();
            let mut known = [false; 256];
            for (start, len) in &pieces {
                queue.insert(*start, &mut bufs(*start, *len), usize::MAX);
                known[*start as usize..*start as usize + len].fill(true);
            }
            prop_assert_eq!(queue.len(), known.iter().filter(|known| **known).count());
            let mut at = 0u64;
            while at < 256 {
                match queue.take(at) {
                    Some(bufs) => {
                        for byte in bufs.iter().flat_map(|buf| buf.iter()) {
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
