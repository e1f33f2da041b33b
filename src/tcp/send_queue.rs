//! What the application wants sent and the peer has not acknowledged: references, never copies.
//!
//! Read first: RFC 9293 section 3.8.6. A slice enters whole, is gathered as clones for every transmission and
//! retransmission, and is released when its last byte is acknowledged. Offsets are positions in the stream (see `SendState`).
//! Not here: what may be sent when (`connection::send`), and what was lost (`recovery`).

use std::collections::VecDeque;

use crate::buf::{Slice, clone_onto};

/// How a packet or a TSO chain may be composed; counts are of payload pieces, the header's own buffer is already taken off.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Composition {
    /// Payload bytes of one packet.
    pub mss: usize,
    /// Pieces that one packet's payload may consist of; at least 1.
    pub pieces_per_packet_max: usize,
    /// Pieces of the whole chain; at least 1.
    pub pieces_max: usize,
}

/// How many slices of a list are shorter `than` so many bytes; `last`: the last one is.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Short {
    pub than: u16,
    pub slices: u32,
    pub last: bool,
}

/// How many slices shorter `than` so many bytes follow each other, at most: of those that were queued since the queue was empty. A bound for
/// the pieces of a packet that needs no look at the slices.
#[derive(Clone, Copy, Debug, Default)]
struct ShortRuns {
    than: u16,
    longest: u16,
    /// Those at the end of the queue.
    last: u16,
}

impl ShortRuns {
    /// Those of a list that is queued where there is nothing.
    #[inline]
    fn of(short: Short) -> ShortRuns {
        let longest = short.slices.min(u32::from(u16::MAX)) as u16;
        ShortRuns { than: short.than, longest, last: if short.last { longest } else { 0 } }
    }

    /// A list is queued behind what is there.
    fn add(&mut self, short: Short) {
        if self.than != short.than {
            // Of two kinds: nothing is known until the queue was empty.
            (self.than, self.longest) = (0, u16::MAX);
        }
        let run = self.last.saturating_add(u16::try_from(short.slices).unwrap_or(u16::MAX));
        self.longest = self.longest.max(run);
        self.last = if short.last { run } else { 0 };
    }

    /// No packet of `mss` bytes has more pieces than a run and a slice on both sides of it.
    fn pieces_of_a_packet(&self, mss: usize) -> usize {
        if mss <= usize::from(self.than) { usize::from(self.longest) + 2 } else { usize::MAX }
    }
}

/// A slice by its number in the queue, and how far its first byte is from that of the first slice. Less than 4 Gi each: a list that is
/// longer is refused (`LEN_MAX`).
#[derive(Clone, Copy, Debug, Default)]
struct Place {
    index: u32,
    offset: u32,
}

/// Bytes that the queue may hold at most, whatever the options say.
pub(crate) const LEN_MAX: usize = 1 << 31;

pub(crate) struct SendQueue {
    slices: VecDeque<Slice>,
    /// The first byte not acknowledged.
    start: u64,
    /// The byte after the last queued.
    end: u64,
    /// Where the first slice starts: at `start` or before it.
    front: u64,
    /// The slice after the last byte that was gathered, of those that were sent for the first time and of those that were sent again:
    /// both mostly go on where they ended.
    newest: Place,
    again: Place,
    runs: ShortRuns,
}

impl SendQueue {
    pub fn new(start: u64) -> SendQueue {
        let (newest, again) = (Place::default(), Place::default());
        SendQueue { slices: VecDeque::new(), start, end: start, front: start, newest, again, runs: ShortRuns::default() }
    }

    pub fn end(&self) -> u64 {
        self.end
    }

    /// Bytes not acknowledged.
    pub fn len(&self) -> usize {
        (self.end - self.start) as usize
    }

    /// Takes all of `gather`, `len` bytes, and leaves it empty, with room for as many slices again. None of the slices is empty, and the queue
    /// will not be longer than `LEN_MAX`.
    #[inline]
    pub fn push(&mut self, gather: &mut Vec<Slice>, len: usize, short: Short) {
        debug_assert!(self.len() + len <= LEN_MAX);
        debug_assert!(len == crate::buf::gather_len(gather) && gather.iter().all(|slice| !slice.is_empty()));
        let is_short = |slice: &Slice| slice.len() < usize::from(short.than);
        debug_assert!(short.slices as usize == gather.iter().filter(|slice| is_short(slice)).count());
        debug_assert!(short.last == gather.last().is_some_and(is_short));
        if gather.is_empty() {
            // Neither the end of a run of short slices, nor memory to keep.
            return;
        }
        self.end += len as u64;
        // A deque takes a vector's memory over, and gives it back; another's if it is as large, for a vector that serves all connections
        // should not leave its memory with those that need little.
        let room = self.slices.capacity();
        if self.slices.is_empty() && room >= gather.len() && 2 * room >= gather.capacity() {
            self.runs = ShortRuns::of(short);
            let taken = VecDeque::from(std::mem::take(gather));
            *gather = Vec::from(std::mem::replace(&mut self.slices, taken));
        } else {
            self.append(gather, short);
        }
    }

    #[inline(never)]
    fn append(&mut self, gather: &mut Vec<Slice>, short: Short) {
        if self.slices.is_empty() {
            self.runs = ShortRuns::of(short);
        } else {
            self.runs.add(short);
        }
        let mut taken = VecDeque::from(std::mem::take(gather));
        self.slices.append(&mut taken);
        *gather = Vec::from(taken);
    }

    /// Releases everything before `offset`.
    pub fn acknowledge(&mut self, offset: u64) {
        self.start = offset.clamp(self.start, self.end);
        let (mut released, front_before) = (0, self.front);
        while let Some(front) = self.slices.front() {
            let end = self.front + front.len() as u64;
            if end > self.start {
                break;
            }
            self.slices.pop_front();
            self.front = end;
            released += 1;
        }
        for place in [&mut self.newest, &mut self.again] {
            *place = match place.index.checked_sub(released) {
                Some(index) => Place { index, offset: place.offset - (self.front - front_before) as u32 },
                None => Place::default(),
            };
        }
    }

    /// Forgets everything, sent or not.
    pub fn clear(&mut self) {
        self.slices = VecDeque::new();
        (self.start, self.front) = (self.end, self.end);
        self.rest();
    }

    /// Room is kept for the slices to come.
    pub fn has_spare(&self) -> bool {
        self.slices.capacity() > 0
    }

    /// Gives it back. Nothing is queued.
    pub fn rest(&mut self) {
        debug_assert!(self.slices.is_empty());
        (self.slices, self.newest, self.again) = (VecDeque::new(), Place::default(), Place::default());
    }

    /// The slice that holds the byte `offset` behind the start of the first slice: mostly one of those that are remembered, else some way
    /// behind one.
    fn place_of(&self, offset: u32) -> Place {
        let mut place = match (self.newest.offset <= offset, self.again.offset <= offset) {
            (true, _) if self.again.offset <= self.newest.offset || self.again.offset > offset => self.newest,
            (_, true) => self.again,
            _ => Place::default(),
        };
        while let Some(slice) = self.slices.get(place.index as usize) {
            let end = place.offset + slice.len() as u32;
            if offset < end {
                break;
            }
            place = Place { index: place.index + 1, offset: end };
        }
        place
    }

    /// The slices from `first` on, in the deque's two halves.
    fn from(&self, first: usize) -> [&[Slice]; 2] {
        let (near, far) = self.slices.as_slices();
        match near.get(first..) {
            Some(near) => [near, far],
            None => [far.get(first - near.len()..).unwrap_or(&[]), &[]],
        }
    }

    /// How many slices the `len` bytes from `offset` on lie in.
    pub fn pieces(&self, offset: u64, len: usize) -> usize {
        let place = self.place_of((offset - self.front) as u32);
        let end = (offset - self.front) as usize - place.offset as usize + len;
        let ends = self.slices.range(place.index as usize..).scan(0, |reached, slice| {
            *reached += slice.len();
            Some(*reached)
        });
        1 + ends.take_while(|reached| *reached < end).count()
    }

    /// Appends to `out` the bytes from `offset` on, at most `len_max`, as far as the composition allows; tells how many.
    ///
    /// More than one packet's worth is cut back to whole packets unless all `len_max` bytes fit, so that only the last
    /// packet of a chain can be short. Less than a packet only if the pieces are too many: shorter, but never nothing.
    #[inline(always)]
    pub fn gather(&mut self, offset: u64, len_max: usize, composition: &Composition, out: &mut Vec<Slice>) -> usize {
        let from_front = (offset - self.front) as u32;
        let left = self.slices.len() - self.newest.index as usize;
        if offset.wrapping_add(len_max as u64) == self.end && from_front == self.newest.offset && self.fits(left, composition) {
            // Everything that was not sent yet.
            let (near, far) = self.slices.as_slices();
            match near.get(self.newest.index as usize..) {
                Some(near) if far.is_empty() => clone_onto(near, out),
                _ => self.clone_from(self.newest.index as usize, left, out),
            }
            self.newest = Place { index: self.slices.len() as u32, offset: (self.end - self.front) as u32 };
            return len_max;
        }
        let len_max = len_max.min(self.end.saturating_sub(offset) as usize);
        if len_max == 0 { 0 } else { self.gather_from(from_front, len_max, composition, out) }
    }

    /// `slices` up to the end of the queue are no more than a chain may have, nor those of any packet of it.
    #[inline]
    fn fits(&self, slices: usize, composition: &Composition) -> bool {
        let Composition { mss, pieces_per_packet_max, pieces_max } = *composition;
        slices <= pieces_max && (slices <= pieces_per_packet_max || self.runs.pieces_of_a_packet(mss) <= pieces_per_packet_max)
    }

    /// `gather` from anywhere, counted from the start of the first slice; `len_max` bytes are there.
    #[inline(never)]
    fn gather_from(&mut self, from_front: u32, len_max: usize, composition: &Composition, out: &mut Vec<Slice>) -> usize {
        let (before, place) = (out.len(), self.place_of(from_front));
        let (first, skip) = (place.index as usize, (from_front - place.offset) as usize);
        if let Some(slice) = self.slices.get(first)
            && skip + len_max < slice.len()
        {
            // A packet out of the middle of a slice: every one of a device that cannot cut chains, but for a few.
            out.push(slice.slice(skip..skip + len_max));
            self.remember(from_front, place);
            return len_max;
        }
        let (pieces, reached) = match self.pieces_up_to(first, skip + len_max, composition) {
            Some(plan) => plan,
            None => self.plan_within(first, skip, len_max, composition),
        };
        self.clone_from(first, pieces, out);
        // The chain may end inside the last slice and start inside the first, which may be the same.
        let surplus = reached.of_slices - reached.planned;
        let last = &mut out[before + pieces - 1];
        let last_len = last.len();
        last.truncate(last_len - surplus);
        out[before].advance(skip);
        // The next one starts behind the last slice, or in it.
        let (whole, of_whole) =
            if surplus == 0 { (pieces, reached.of_slices) } else { (pieces - 1, reached.of_slices - last_len) };
        let next = Place { index: place.index + whole as u32, offset: place.offset + of_whole as u32 };
        self.remember(from_front, next);
        reached.planned - skip
    }

    /// Appends clones of `pieces` slices from `first` on, of which there are so many.
    #[inline(never)]
    fn clone_from(&self, first: usize, pieces: usize, out: &mut Vec<Slice>) {
        let [near, far] = self.from(first);
        let count = pieces.min(near.len());
        clone_onto(&near[..count], out);
        if count < pieces {
            clone_onto(&far[..pieces - count], out);
        }
    }

    /// What is gathered next begins at `next`, if it follows what was gathered from `offset` on.
    #[inline]
    fn remember(&mut self, offset: u32, next: Place) {
        if offset < self.newest.offset {
            self.again = next;
        } else {
            self.newest = next;
        }
    }

    /// How many slices from `first` on reach `end`, counted from the start of the first, if no packet of them can have too many pieces:
    /// between two slices of a packet or more, each of which may give it a piece, lie few shorter ones. `None`: it has to be planned.
    fn pieces_up_to(&self, first: usize, end: usize, composition: &Composition) -> Option<(usize, Reached)> {
        let Composition { mss, pieces_per_packet_max, pieces_max } = *composition;
        let (mut pieces, mut shorter, mut between, mut of_slices) = (0, 0, 0, 0);
        if self.runs.pieces_of_a_packet(mss) <= pieces_per_packet_max {
            for part in self.from(first) {
                for slice in part {
                    of_slices += slice.len();
                    pieces += 1;
                    if of_slices >= end {
                        return (pieces <= pieces_max).then_some((pieces, Reached { of_slices, planned: end }));
                    }
                }
            }
            return None;
        }
        for part in self.from(first) {
            for slice in part {
                pieces += 1;
                of_slices += slice.len();
                shorter = if slice.len() < mss { shorter + 1 } else { 0 };
                between = shorter.max(between);
                if of_slices >= end {
                    let few = pieces <= pieces_per_packet_max || between + 2 <= pieces_per_packet_max;
                    return (few && pieces <= pieces_max).then_some((pieces, Reached { of_slices, planned: end }));
                }
            }
        }
        None
    }

    /// How many slices a chain may have that starts `skip` bytes inside slice `first`, and how far it goes, packet by packet. One step for
    /// each slice, however many packets it fills.
    fn plan_within(&self, first: usize, skip: usize, len_max: usize, composition: &Composition) -> (usize, Reached) {
        let Composition { mss, pieces_per_packet_max, pieces_max } = *composition;
        // The packet that is being filled: its bytes so far, the pieces they lie in, and what lies before it.
        let (mut filled, mut pieces_in_packet) = (0, 0);
        let (mut pieces_before, mut slices_before) = (0, 0);
        let (mut len, mut pieces, mut of_slices) = (0, 0, 0);
        for slice in self.slices.range(first..) {
            if len == len_max {
                break;
            }
            if pieces == pieces_max || (filled > 0 && pieces_in_packet == pieces_per_packet_max) {
                if len >= mss {
                    return (pieces_before, Reached { of_slices: slices_before, planned: skip + len - filled });
                }
                break;
            }
            of_slices += slice.len();
            let take = (of_slices - skip - len).min(len_max - len);
            len += take;
            pieces += 1;
            pieces_in_packet += 1;
            filled += take;
            if filled >= mss {
                filled %= mss;
                // The next packet starts in this slice, unless it ends with the last one.
                pieces_in_packet = usize::from(filled > 0);
                (pieces_before, slices_before) = (pieces, of_slices);
            }
        }
        (pieces, Reached { of_slices, planned: skip + len })
    }
}

/// What a plan came to, in bytes from the start of its first slice: the end of its last slice, and of what is taken of them.
#[derive(Clone, Copy)]
struct Reached {
    of_slices: usize,
    planned: usize,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::buf::PagePool;
    use proptest::prelude::*;

    fn queue(lens: &[usize]) -> (SendQueue, PagePool) {
        queue_of(lens, &[], 1000)
    }

    /// Slices of `lens` bytes in lists that end behind so many of them, more than one if something is cut twice; `than`: the MSS.
    fn queue_of(lens: &[usize], cuts: &[usize], than: usize) -> (SendQueue, PagePool) {
        let pool = PagePool::anonymous(lens.len().max(1), 4096).unwrap();
        let mut queue = SendQueue::new(100);
        let mut gather = Vec::new();
        let mut n = 0u8;
        for len in lens {
            let mut page = pool.allocate().unwrap();
            for byte in &mut page[..*len] {
                *byte = n;
                n = n.wrapping_add(1);
            }
            let mut slice = page.freeze();
            slice.truncate(*len);
            gather.push(slice);
        }
        let (mut cuts, mut total) = (cuts.to_vec(), gather.len());
        cuts.sort_unstable();
        let mut lists = Vec::new();
        for cut in cuts.into_iter().rev() {
            total = total.min(cut);
            lists.push(gather.split_off(total));
        }
        lists.push(gather);
        for mut gather in lists.into_iter().rev() {
            push(&mut queue, &mut gather, than);
            assert!(gather.is_empty());
        }
        let gather: Vec<Slice> = Vec::new();
        assert!(gather.is_empty());
        (queue, pool)
    }

    fn push(queue: &mut SendQueue, gather: &mut Vec<Slice>, than: usize) {
        let slices = gather.iter().filter(|slice| slice.len() < than).count() as u32;
        let last = gather.last().is_some_and(|slice| slice.len() < than);
        queue.push(gather, crate::buf::gather_len(gather), Short { than: than as u16, slices, last });
    }

    fn lens(out: &[Slice]) -> Vec<usize> {
        out.iter().map(|slice| slice.len()).collect()
    }

    const WIDE: Composition = Composition { mss: 1000, pieces_per_packet_max: 64, pieces_max: 64 };

    #[test]
    fn a_slice_is_released_with_its_last_byte() {
        let (mut queue, pool) = queue(&[10, 20]);
        queue.acknowledge(109);
        assert_eq!((pool.outstanding(), queue.len()), (2, 21));
        queue.acknowledge(110);
        assert_eq!(pool.outstanding(), 1);
        queue.acknowledge(u64::MAX);
        assert_eq!((pool.outstanding(), queue.len()), (0, 0));
    }

    #[test]
    fn a_gather_may_start_and_end_inside_slices() {
        let (mut queue, _pool) = queue(&[10, 20, 30]);
        let mut out = Vec::new();
        assert_eq!(queue.gather(105, 40, &WIDE, &mut out), 40);
        assert_eq!(lens(&out), [5, 20, 15]);
        assert_eq!(out[0][0], 5);
    }

    #[test]
    fn too_many_pieces_in_one_packet_make_it_shorter() {
        let (mut queue, _pool) = queue(&[10; 8]);
        let mut out = Vec::new();
        let narrow = Composition { mss: 1000, pieces_per_packet_max: 3, pieces_max: 64 };
        assert_eq!(queue.gather(105, 75, &narrow, &mut out), 25);
        assert_eq!(lens(&out), [5, 10, 10]);
    }

    #[test]
    fn a_chain_is_cut_at_the_last_whole_packet() {
        let (mut queue, _pool) = queue(&[1500, 1500, 10, 10, 10, 10, 1500]);
        let mut out = Vec::new();
        let narrow = Composition { mss: 1000, pieces_per_packet_max: 3, pieces_max: 64 };
        assert_eq!(queue.gather(100, 4540, &narrow, &mut out), 3000);
        assert_eq!(lens(&out), [1500, 1500]);
        out.clear();
        let few = Composition { mss: 1000, pieces_per_packet_max: 64, pieces_max: 1 };
        assert_eq!(queue.gather(100, 4540, &few, &mut out), 1000);
    }

    #[test]
    fn an_empty_list_ends_no_run_of_short_slices() {
        let (mut queue, _pool) = queue_of(&[10, 10, 10, 10, 1500], &[2, 2], 1000);
        let narrow = Composition { mss: 1000, pieces_per_packet_max: 4, pieces_max: 64 };
        let mut out = Vec::new();
        assert_eq!(queue.gather(100, 1540, &narrow, &mut out), 40);
    }

    proptest! {
        /// Whatever was gathered before, first or again, and however much is acknowledged: the bytes at an offset are those that were put there.
        #[test]
        fn every_offset_keeps_its_bytes(
            steps in proptest::collection::vec((0u8..3, any::<u16>(), 1usize..4000), 1..80),
        ) {
            let pool = PagePool::anonymous(512, 512).unwrap();
            let mut queue = SendQueue::new(100);
            let (mut pushed, mut acknowledged, mut out) = (0u64, 0u64, Vec::new());
            for (kind, seed, len) in steps {
                match kind {
                    0 => {
                        let mut gather = Vec::new();
                        let mut total = 0;
                        for piece in 0..usize::from(seed % 5) {
                            let Some(mut page) = pool.allocate() else { break };
                            let take = 1 + (usize::from(seed) * 7 + piece * 131 + len) % 512;
                            page[..take].iter_mut().enumerate().for_each(|(at, byte)| *byte = (pushed as usize + total + at) as u8);
                            let mut slice = page.freeze();
                            slice.truncate(take);
                            total += take;
                            gather.push(slice);
                        }
                        push(&mut queue, &mut gather, 1 + len % 900);
                        pushed += total as u64;
                    }
                    1 => {
                        acknowledged = (acknowledged + len as u64 % 700).min(pushed);
                        queue.acknowledge(100 + acknowledged);
                    }
                    _ if acknowledged < pushed => {
                        let offset = acknowledged + u64::from(seed) % (pushed - acknowledged);
                        let composition = Composition { mss: 1 + usize::from(seed) % 900, pieces_per_packet_max: 3, pieces_max: 9 };
                        out.clear();
                        let taken = queue.gather(100 + offset, len, &composition, &mut out);
                        prop_assert!(taken > 0 && taken <= len && taken as u64 <= pushed - offset);
                        let bytes: Vec<u8> = out.iter().flat_map(|slice| slice.to_vec()).collect();
                        prop_assert_eq!(bytes.len(), taken);
                        prop_assert!(bytes.iter().enumerate().all(|(at, byte)| *byte == (offset as usize + at) as u8));
                    }
                    _ => {}
                }
                prop_assert_eq!(queue.len() as u64, pushed - acknowledged);
            }
            out.clear();
            queue.acknowledge(u64::MAX);
            prop_assert_eq!(pool.outstanding(), 0);
        }

        #[test]
        fn no_packet_of_any_chain_has_too_many_pieces(
            sizes in proptest::collection::vec(prop_oneof![1usize..20, 1usize..3000], 1..20),
            cuts in proptest::collection::vec(0usize..20, 0..4),
            than in 1usize..2000,
            skip in 0usize..2000, mss in 1usize..2000, per_packet in 1usize..5, total in 1usize..20,
        ) {
            let (mut queue, _pool) = queue_of(&sizes, &cuts, than);
            let sum: usize = sizes.iter().sum();
            prop_assume!(skip < sum);
            let composition = Composition { mss, pieces_per_packet_max: per_packet, pieces_max: total };
            let mut out = Vec::new();
            let len = queue.gather(100 + skip as u64, usize::MAX, &composition, &mut out);
            prop_assert!(len > 0);
            prop_assert_eq!(crate::buf::gather_len(&out), len);
            prop_assert!(out.len() <= total);
            prop_assert!(len < mss || len % mss == 0 || skip + len == sum);
            let mut owner = Vec::new();
            for (index, slice) in out.iter().enumerate() {
                owner.extend(std::iter::repeat_n(index, slice.len()));
            }
            for packet in owner.chunks(mss) {
                prop_assert!(packet[packet.len() - 1] - packet[0] < per_packet);
            }
            let bytes: Vec<u8> = out.iter().flat_map(|slice| slice.to_vec()).collect();
            prop_assert!(bytes.iter().enumerate().all(|(at, byte)| *byte == (skip + at) as u8));
        }
    }
}
