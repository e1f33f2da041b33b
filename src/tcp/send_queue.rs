//! What the application wants sent and the peer has not acknowledged: references, never copies.
//!
//! Read first: RFC 9293 section 3.8.6. A slice enters whole, is gathered as clones for every transmission and
//! retransmission, and is released when its last byte is acknowledged. Offsets are positions in the stream (see `SendState`).
//! Not here: what may be sent when (`connection::send`), and what was lost (`recovery`).

use std::collections::VecDeque;

use crate::buf::Slice;

struct Queued {
    start: u64,
    slice: Slice,
}

impl Queued {
    fn end(&self) -> u64 {
        self.start + self.slice.len() as u64
    }
}

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

pub(crate) struct SendQueue {
    slices: VecDeque<Queued>,
    /// The first byte not acknowledged.
    start: u64,
    /// The byte after the last queued.
    end: u64,
    /// The slice after the last byte that was gathered.
    cursor: usize,
}

impl SendQueue {
    pub fn new(start: u64) -> SendQueue {
        SendQueue { slices: VecDeque::new(), start, end: start, cursor: 0 }
    }

    pub fn end(&self) -> u64 {
        self.end
    }

    /// Bytes not acknowledged.
    pub fn len(&self) -> usize {
        (self.end - self.start) as usize
    }

    /// Takes all of `gather` and leaves it empty, its capacity with the caller.
    pub fn push(&mut self, gather: &mut Vec<Slice>) {
        if gather.iter().any(|slice| slice.is_empty()) {
            gather.retain(|slice| !slice.is_empty());
        }
        let mut end = self.end;
        self.slices.extend(gather.drain(..).map(|slice| {
            let start = end;
            end += slice.len() as u64;
            Queued { start, slice }
        }));
        self.end = end;
    }

    /// Releases everything before `offset`.
    pub fn acknowledge(&mut self, offset: u64) {
        self.start = offset.clamp(self.start, self.end);
        let mut released = 0;
        while self.slices.front().is_some_and(|front| front.end() <= self.start) {
            self.slices.pop_front();
            released += 1;
        }
        self.cursor = self.cursor.saturating_sub(released);
    }

    /// Forgets everything, sent or not.
    pub fn clear(&mut self) {
        self.slices = VecDeque::new();
        self.start = self.end;
    }

    /// Room is kept for the slices to come.
    pub fn has_spare(&self) -> bool {
        self.slices.capacity() > 0
    }

    /// Gives it back. Nothing is queued.
    pub fn rest(&mut self) {
        debug_assert!(self.slices.is_empty());
        (self.slices, self.cursor) = (VecDeque::new(), 0);
    }

    /// The slice that holds the byte at `offset`: mostly where the last chain ended.
    fn index_of(&self, offset: u64) -> usize {
        match self.slices.get(self.cursor) {
            Some(queued) if queued.start <= offset && offset < queued.end() => self.cursor,
            _ => self.slices.partition_point(|queued| queued.end() <= offset),
        }
    }

    /// Appends to `out` the bytes from `offset` on, at most `len_max`, as far as the composition allows; tells how many.
    ///
    /// More than one packet's worth is cut back to whole packets unless all `len_max` bytes fit, so that only the last
    /// packet of a chain can be short. Less than a packet only if the pieces are too many: shorter, but never nothing.
    pub fn gather(&mut self, offset: u64, len_max: usize, composition: &Composition, out: &mut Vec<Slice>) -> usize {
        let len_max = len_max.min(self.end.saturating_sub(offset) as usize);
        if len_max == 0 {
            return 0;
        }
        let (before, first) = (out.len(), self.index_of(offset));
        let (len, pieces) = match self.pieces_up_to(first, offset + len_max as u64, composition) {
            Some(pieces) => (len_max, pieces),
            None => self.plan_within(first, offset, len_max, composition),
        };
        out.extend(self.slices.range(first..first + pieces).map(|queued| queued.slice.clone()));
        let (end, last) = (offset + len as u64, pieces - 1);
        // The chain may end inside the last slice and start inside the first, which may be the same.
        let (first_start, last_start, last_end) =
            (self.slices[first].start, self.slices[first + last].start, self.slices[first + last].end());
        out[before + last].truncate((end - last_start) as usize);
        out[before].advance((offset - first_start) as usize);
        self.cursor = first + last + usize::from(end == last_end);
        len
    }

    /// How many slices from `first` on reach `end`, if no packet of them can have too many pieces: between two slices of a packet or
    /// more, each of which may give it a piece, lie few shorter ones. `None`: it has to be planned.
    fn pieces_up_to(&self, first: usize, end: u64, composition: &Composition) -> Option<usize> {
        let Composition { mss, pieces_per_packet_max, pieces_max } = *composition;
        let (front, back) = self.slices.as_slices();
        let (near, far) = match front.get(first..) {
            Some(near) => (near, back),
            None => (back.get(first - front.len()..)?, &[][..]),
        };
        let (mut pieces, mut shorter, mut between) = (0, 0, 0);
        for part in [near, far] {
            for queued in part {
                pieces += 1;
                shorter = if queued.slice.len() < mss { shorter + 1 } else { 0 };
                between = shorter.max(between);
                if queued.end() >= end {
                    let few = pieces <= pieces_per_packet_max || between + 2 <= pieces_per_packet_max;
                    return (few && pieces <= pieces_max).then_some(pieces);
                }
            }
        }
        None
    }

    /// How many bytes a chain from `offset` in slice `first` on may have, and in how many slices they lie, packet by packet. One step for
    /// each slice, however many packets it fills.
    fn plan_within(&self, first: usize, offset: u64, len_max: usize, composition: &Composition) -> (usize, usize) {
        let Composition { mss, pieces_per_packet_max, pieces_max } = *composition;
        // The packet that is being filled: its bytes so far, the pieces they lie in, and the pieces up to its start.
        let (mut filled, mut pieces_in_packet, mut pieces_before) = (0, 0, 0);
        let (mut len, mut pieces) = (0, 0);
        for queued in self.slices.range(first..) {
            if len == len_max {
                break;
            }
            if pieces == pieces_max || (filled > 0 && pieces_in_packet == pieces_per_packet_max) {
                return if len >= mss { (len - filled, pieces_before) } else { (len, pieces) };
            }
            let take = ((queued.end() - offset) as usize - len).min(len_max - len);
            len += take;
            pieces += 1;
            pieces_in_packet += 1;
            filled += take;
            if filled >= mss {
                filled %= mss;
                // The next packet starts in this slice, unless it ends with the last one.
                pieces_in_packet = usize::from(filled > 0);
                pieces_before = pieces;
            }
        }
        (len, pieces)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::buf::PagePool;
    use proptest::prelude::*;

    fn queue(lens: &[usize]) -> (SendQueue, PagePool) {
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
        queue.push(&mut gather);
        assert!(gather.is_empty());
        (queue, pool)
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

    proptest! {
        #[test]
        fn no_packet_of_any_chain_has_too_many_pieces(
            sizes in proptest::collection::vec(1usize..3000, 1..20),
            skip in 0usize..2000, mss in 1usize..2000, per_packet in 1usize..5, total in 1usize..12,
        ) {
            let (mut queue, _pool) = queue(&sizes);
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
