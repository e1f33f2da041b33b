//! Text: into order, into as few driver buffers as needed, acknowledged when it helps; and the window.
//!
//! Read first: RFC 9293 sections 3.10.7.4 (seventh step), 3.8.6.2.2 and 3.8.6.3; RFC 5681 section 4.2.

use super::segment::Segment;
use super::timers::Timer;
use super::*;
use crate::buf::RxPacket;
use crate::tcp::endpoint::copied;
use crate::tcp::reassembly::Insert;

/// Ranges with holes between them that a connection may hold; a segment that would begin another is dropped, and `ofo_drops` counts it.
/// One for each of so many bytes of the window that it has been given (segments that are all lost in turn need one for two of them),
/// and `OUT_OF_ORDER_RANGES_MIN` at least. A range's own memory is some 300 bytes: a third of such a window, whatever a peer sends.
const WINDOW_BYTES_PER_RANGE: u64 = 1024;
const OUT_OF_ORDER_RANGES_MIN: usize = 256;

/// The part of a connection's buffers that is kept for what is in order. The rest has room for a window whose first segment was lost,
/// so that it is not dropped after it was asked for.
const BUFFERS_IN_ORDER_FRACTION: usize = 8;

impl Connection {
    pub(super) fn acknowledge_now(&mut self) {
        self.receive.ack = Ack::Now;
        self.wake = true;
    }

    /// A peer without SACK counts duplicate ACKs, so each is sent, also where one would do (RFC 5681 section 4.2).
    fn acknowledge_hole(&mut self) {
        if self.receive.ack == Ack::Now && !self.sack {
            self.receive.duplicate_acks = self.receive.duplicate_acks.saturating_add(1);
        }
        self.acknowledge_now();
    }

    /// Seventh: the segment text.
    pub(super) fn process_text(&mut self, now: Instant, shared: &mut Shared, segment: &Segment, mut payload: RxPacket) {
        if segment.payload_len == 0 {
            return;
        }
        if !matches!(self.state, State::Established | State::FinWait1 | State::FinWait2) {
            // Behind the peer's FIN there can be nothing.
            self.acknowledge_now();
            return;
        }
        if self.receive.refuses_text {
            return self.refuse_text(shared, segment);
        }
        let (mut start, mut end) = (segment.text(), segment.text() + segment.payload_len);
        let limit = self.receive.fin_at.min(self.receive.edge);
        if end > limit {
            // "Portions outside the window are discarded."
            shared.counters.rcv_beyond_window_bytes += end - limit.max(start);
            payload.truncate(limit.saturating_sub(start) as usize);
            end = limit.max(start);
            self.tighten(shared, 1);
            self.acknowledge_now();
        }
        if start < self.receive.next {
            let known = self.receive.next.min(end);
            shared.counters.duplicate_bytes += known - start;
            self.receive.duplicate = (start, known);
            payload.advance((known - start) as usize);
            start = known;
            self.acknowledge_now();
        }
        if start >= end {
            return;
        }
        let len = end - start;
        self.observe_mss(len);
        let mut bufs = std::mem::take(&mut shared.scratch);
        bufs.extend(payload.into_bufs());
        let in_order = start == self.receive.next;
        if !self.admit(shared, &mut bufs, in_order) {
            shared.counters.rcv_buffer_drops += u64::from(in_order);
            shared.counters.ofo_drops += u64::from(!in_order);
            self.narrow();
            self.acknowledge_now();
        } else if in_order {
            let push = segment.has(Flags::PSH) || segment.has(Flags::FIN);
            self.append(now, shared, &mut bufs, len, push);
        } else {
            self.queue_out_of_order(shared, start, end, &mut bufs);
        }
        bufs.clear();
        shared.scratch = bufs;
    }

    fn queue_out_of_order(&mut self, shared: &mut Shared, start: u64, end: u64, bufs: &mut VecDeque<RxBuf>) {
        let ranges_max = usize::try_from(u64::from(self.receive.limit) / WINDOW_BYTES_PER_RANGE).unwrap_or(usize::MAX);
        match self.receive.reassembly.insert(start, bufs, ranges_max.max(OUT_OF_ORDER_RANGES_MIN)) {
            Insert::Queued => shared.counters.ofo_queued += 1,
            Insert::Duplicate => {
                shared.counters.duplicate_bytes += end - start;
                self.receive.duplicate = (start, end);
            }
            Insert::Refused => shared.counters.ofo_drops += 1,
        }
        // RFC 5681 section 4.2: at once, so that the sender learns of the hole.
        self.acknowledge_hole();
    }

    /// In order: to the application, with everything that waited for it.
    fn append(&mut self, now: Instant, shared: &mut Shared, bufs: &mut VecDeque<RxBuf>, len: u64, push: bool) {
        let had_hole = !self.receive.reassembly.is_empty();
        let before = self.receive.next;
        // Duplicates that are still to be sent were of the ACK before: at the new one they would speak of a hole that is not there.
        self.receive.duplicate_acks = 0;
        while let Some(buf) = bufs.pop_front() {
            self.take_in(buf);
        }
        while let Some(waiting) = self.receive.reassembly.take(self.receive.next) {
            waiting.into_iter().for_each(|buf| self.take_in(buf));
        }
        let taken = self.receive.next - before;
        self.on_text(now, shared, taken, len, push, had_hole);
    }

    pub(super) fn observe_mss(&mut self, len: u64) {
        self.receive.mss = self.receive.mss.max(len.min(u64::from(self.receive.mss_max)) as u16);
    }

    /// `taken` bytes came into order, with a segment of `len` bytes.
    pub(super) fn on_text(&mut self, now: Instant, shared: &mut Shared, taken: u64, len: u64, push: bool, had_hole: bool) {
        self.statistics.bytes_in += taken;
        shared.counters.in_bytes += taken;
        // The window grows with what the peer sends, read or not: a record larger than the first window must fit.
        let limit = u64::from(self.receive.limit) + 2 * taken;
        self.receive.limit = limit.min(u64::from(shared.options.receive_window_max)) as u32;
        if !std::mem::replace(&mut self.readable_pending, true) {
            shared.events.push_back(Event::Readable(self.id));
        }
        if had_hole {
            self.acknowledge_now();
        } else {
            self.schedule_ack(now, shared, len, push);
        }
        self.receive.last_received_at = now;
    }

    #[inline]
    pub(super) fn take_in(&mut self, buf: RxBuf) {
        self.receive.next += buf.len() as u64;
        self.receive.chain_driver_buffers += u32::from(buf.is_driver_buffer());
        self.receive.chain.push_text(buf);
    }

    /// RFC 9293 section 3.8.6.3: every second full segment at once (MUST-59, SHLD-19), others after a delay.
    fn schedule_ack(&mut self, now: Instant, shared: &Shared, len: u64, push: bool) {
        let options = &shared.options;
        if now.nanos_since(self.receive.last_received_at) > self.rtt.rto_nanos() {
            // After silence the peer starts over with a small window: it needs each ACK.
            self.receive.quick_acks = options.quick_acks;
        }
        let mss = u64::from(self.receive.mss);
        if self.receive.quick_acks > 0 || self.receive.next - self.receive.acknowledged >= 2 * mss {
            self.acknowledge_now();
        } else if self.receive.ack == Ack::None {
            let delay = if push || len < mss { options.push_ack_delay } else { options.delayed_ack };
            self.receive.ack = Ack::Delayed;
            self.timers.arm(Timer::Ack, now + delay);
        } else if self.receive.ack == Ack::Delayed && (push || len < mss) {
            self.timers.arm_earlier(Timer::Ack, now + options.push_ack_delay);
        }
    }

    /// The copy-out rule: whether the connection may hold `bufs`, after copying what should not occupy a driver's buffer.
    ///
    /// Small segments are copied once the connection holds `driver_buffers_unshared`, all that would leave the endpoint short of
    /// buffers. Before the connection's maximum the stream is compacted; what still does not fit is refused.
    fn admit(&mut self, shared: &mut Shared, bufs: &mut VecDeque<RxBuf>, in_order: bool) -> bool {
        if !self.make_room(shared, bufs.len(), in_order) {
            return false;
        }
        let short = shared.driver_buffers_left() < bufs.iter().filter(|buf| buf.is_driver_buffer()).count();
        let crowded = self.driver_buffers() >= shared.options.driver_buffers_unshared;
        // What a device has coalesced fills all its buffers but the last.
        let small = bufs.iter().map(RxBuf::len).sum::<usize>() < bufs.len() * shared.options.copy_out_below_bytes;
        // The last quarter is for connections that hold little: a few peers that never complete their records must not
        // make everybody else's segments be dropped.
        let max = shared.options.driver_buffers_max;
        let limit = if crowded { max / 4 * 3 } else { max };
        let mut held = shared.driver_buffers;
        let mut more = 0;
        for buf in bufs.iter_mut().filter(|buf| buf.is_driver_buffer()) {
            let copy =
                if short || (crowded && small) { shared.copy_out.as_mut().and_then(|arena| copied(arena, buf)) } else { None };
            match copy {
                Some(copy) => {
                    shared.counters.copied_out_bytes += copy.len() as u64;
                    *buf = copy;
                }
                None => more += 1,
            }
        }
        while more > 0 && held + more > limit {
            // What waits for a hole must not keep out the segment that fills it.
            let before = self.receive.reassembly.driver_buffers();
            if !in_order || !self.prune(shared) {
                return false;
            }
            held -= before - self.receive.reassembly.driver_buffers();
        }
        true
    }

    /// Forgets the out-of-order text that is needed last; `false`: there is none. RFC 2018 section 8 allows to forget what was only
    /// reported selectively.
    fn prune(&mut self, shared: &mut Shared) -> bool {
        let pruned = self.receive.reassembly.drop_last();
        shared.counters.ofo_pruned += u64::from(pruned);
        self.narrow();
        pruned
    }

    /// There is no memory for what the window promises: it opens no further until text has come into order again, as fast as
    /// that comes (`on_text`). What was promised stays (RFC 9293 section 3.8.6, SHLD-14).
    fn narrow(&mut self) {
        let held = (self.receive.chain.len() + self.receive.reassembly.len()) as u64;
        self.receive.limit_before = self.receive.reach() as u32;
        let limit = held + 2 * u64::from(self.receive.mss);
        self.receive.limit = limit.min(u64::from(self.receive.limit)) as u32;
    }

    /// Room for `more` buffers below the connection's maximum. What is in order goes first: it frees what waits for it.
    fn make_room(&mut self, shared: &mut Shared, more: usize, in_order: bool) -> bool {
        let max = shared.options.receive_buffers_max;
        self.tighten(shared, more);
        if !in_order {
            let kept = max / BUFFERS_IN_ORDER_FRACTION;
            return self.receive.reassembly.buffers() + more <= max - kept && self.receive_buffers() + more <= max;
        }
        while self.receive_buffers() + more > max && self.prune(shared) {}
        self.receive_buffers() + more <= max
    }

    /// Compacts the stream where `more` buffers would be many: a record in small pieces needs more of them than there may be, and its peer
    /// would wait for a window that opens when all of it is read.
    pub(super) fn tighten(&mut self, shared: &mut Shared, more: usize) {
        if self.receive_buffers() + more > shared.receive_buffers_loose {
            self.compact(shared);
        }
    }

    fn receive_buffers(&self) -> usize {
        self.receive.chain.buffers() + self.receive.reassembly.buffers()
    }

    /// Driver buffers held; an upper bound, exact while the stream holds no copies.
    pub fn driver_buffers(&self) -> usize {
        (self.receive.chain_driver_buffers as usize).min(self.receive.chain.buffers()) + self.receive.reassembly.driver_buffers()
    }

    /// Joins the small pieces of the stream: a hostile peer's one-byte segments become full pages.
    fn compact(&mut self, shared: &mut Shared) {
        let Some(arena) = &mut shared.copy_out else { return };
        let chain = &mut self.receive.chain;
        let piece_max = arena.piece_max();
        // Worth it only if the pieces are much smaller than what they become, and all find a place: half of it would be done again for the
        // next segment.
        if chain.buffers() < 2 || chain.len() / chain.buffers() > piece_max / 4 || !arena.has_room_for(chain.len()) {
            return;
        }
        let mut compacted = RxChain::new();
        let mut at = 0;
        while at < chain.len() {
            let len = piece_max.min(chain.len() - at);
            let (Some(view), Some(fragment)) = (chain.view(at, len), arena.reserve(len)) else { return };
            view.copy_to(&mut fragment.spare()[..len]);
            compacted.push(RxBuf::from_slice(fragment.commit(len)));
            at += len;
        }
        shared.counters.copied_out_bytes += chain.len() as u64;
        *chain = compacted;
        self.receive.chain_driver_buffers = 0;
    }

    /// Copies everything held in driver buffers out of them. Where there is no room for the copies, what is out of order is
    /// forgotten instead.
    pub fn copy_out_held(&mut self, shared: &mut Shared) {
        self.copy_held(shared);
        while self.driver_buffers() > 0 && self.prune(shared) {}
    }

    fn copy_held(&mut self, shared: &mut Shared) {
        let Shared { copy_out: Some(arena), counters, .. } = shared else { return };
        if !arena.has_room_for(1) {
            return;
        }
        let (mut left, mut has_room) = (0, true);
        let mut copy = |buf: &RxBuf| {
            if !buf.is_driver_buffer() {
                return None;
            }
            let copy = if has_room { copied(arena, buf) } else { None };
            has_room = copy.is_some();
            match &copy {
                Some(copy) => counters.copied_out_bytes += copy.len() as u64,
                None => left += 1,
            }
            copy
        };
        self.receive.reassembly.replace_each(&mut copy);
        let reassembly_left = self.receive.reassembly.driver_buffers();
        self.receive.chain.replace_each(&mut copy);
        self.receive.chain_driver_buffers = (left - reassembly_left) as u32;
    }

    pub fn received_chain(&mut self) -> &mut RxChain {
        &mut self.receive.chain
    }

    /// The application consumed something.
    pub fn on_consumed(&mut self, _now: Instant, shared: &mut Shared) {
        let receive = &mut self.receive;
        receive.chain_driver_buffers = receive.chain_driver_buffers.min(receive.chain.buffers() as u32);
        if !matches!(self.state, State::Established | State::FinWait1 | State::FinWait2) {
            return;
        }
        let old = self.receive.edge - self.receive.next;
        let new = self.window(shared);
        // RFC 9293 section 3.8.6.2.2 asks for at least an MSS; a quarter of the buffer spares ACKs, unless the peer is
        // about to run dry.
        let limit = u64::from(self.receive.limit);
        let mss = u64::from(self.receive.mss);
        let step = if old < 2 * mss { mss.min(limit / 2) } else { limit / 4 };
        if new >= old + step.max(1) {
            self.acknowledge_now();
        }
    }

    /// The window to advertise now, bytes from RCV.NXT: never less than what was promised.
    pub(super) fn window(&self, shared: &Shared) -> u64 {
        let receive = &self.receive;
        let old = receive.edge.saturating_sub(receive.next);
        let limit = u64::from(receive.limit);
        let free = limit.saturating_sub(receive.chain.len() as u64);
        if free <= old {
            // Nothing came since it was promised: whatever else there is can only make it less.
            return old;
        }
        // Worst case in buffers: one usual segment each. Smaller ones are compacted before the maximum is reached.
        let buffers = shared.options.receive_buffers_max.saturating_sub(self.receive_buffers()) as u64;
        let mut window = free.min(buffers * u64::from(receive.mss));
        if shared.driver_buffers >= shared.options.driver_buffers_max && shared.copy_out.is_none() {
            window = 0;
        }
        let mut field_max = u64::from(u16::MAX);
        if self.scaling {
            field_max <<= receive.scale;
        }
        window = window.min(field_max);
        // RFC 9293 section 3.8.6.2.2 (MUST-39): the edge moves in steps worth sending into.
        let step = u64::from(receive.mss).min(limit / 2);
        if window < old + step { old } else { window }
    }
}
