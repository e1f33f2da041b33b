//! The next packet of a connection.
//!
//! Read first: RFC 9293 sections 3.7.1, 3.7.4, 3.8.6.2.1; RFC 6675 section 5; RFC 8985 section 7.3. Order: SYN, an ACK that reports
//! something, what is lost, a tail probe, new data, probes, an ACK alone. Whatever goes out carries the newest ACK and window.

use super::handshake::MSS_DEFAULT;
use super::timers::Timer;
use super::*;
use crate::buf::{Slice, survey};
use crate::tcp::SendError;
use crate::tcp::endpoint::{Transmit, TransmitLimits};
use crate::tcp::recovery::Phase;
use crate::tcp::send_queue::{Composition, LEN_MAX, Short};
use crate::time::Duration;
use crate::wire::tcp::{PlainRepr, SackBlocks, TSO_FRAMES_MAX, TSO_MSS_MIN, TcpOptions, Timestamps};

/// RFC 9293 section 3.8.6.2.1: the fraction of the largest window that is worth a short segment (Fs = 1/2).
const WORTHWHILE_FRACTION: u64 = 2;

/// RFC 9293 section 3.8.6.2.1: the override timeout is between 0.1 and 1 second.
const OVERRIDE_MAX: Duration = Duration::from_secs(1);
/// By such a part of itself a window may grow by rounding its edge up while it is not read. A peer that sends full segments into a window of 16 MiB
/// makes an eleventh of it.
const WINDOW_SLACK: u64 = 8;

/// Sequence space of one packet or chain.
struct Range {
    start: u64,
    /// Payload bytes to send at most.
    len: usize,
    /// A FIN follows if all of it fits.
    fin: bool,
}

/// What an IP packet has room for behind its headers: a chain is one packet until the device has cut it.
const CHAIN_BYTES_MAX: u16 = u16::MAX - 120;

/// Payload bytes of the longest chain that devices cut into packets of `mss`: one packet if that is too small for them.
pub(super) fn chain_max(mss: u16) -> u16 {
    if mss < TSO_MSS_MIN { mss } else { mss.saturating_mul(TSO_FRAMES_MAX).min(CHAIN_BYTES_MAX) }
}

/// The header takes one buffer of each packet, and one of the chain.
pub(super) fn pieces_per_packet(limits: &TransmitLimits) -> usize {
    usize::from(limits.segments_per_packet_max).saturating_sub(1).max(1)
}

/// Leaves out slices of nothing; how many of the others are shorter `than` so many bytes.
#[inline(never)]
fn without_empty(gather: &mut Vec<Slice>, than: usize) -> u32 {
    gather.retain(|slice| !slice.is_empty());
    survey(gather, than).1
}

impl Connection {
    /// RFC 9293 section 3.10.2.
    pub fn send(&mut self, now: Instant, shared: &mut Shared, gather: &mut Vec<Slice>) -> Result<(), SendError> {
        let takes = matches!(self.state, State::SynSent | State::SynReceived | State::Established | State::CloseWait);
        if !takes || self.send.fin {
            return Err(SendError::Closed);
        }
        let mss = usize::from(self.send.mss);
        let (len, mut short) = survey(gather, mss);
        let queued = self.send.queue.len();
        if (queued > 0 && queued + len > shared.options.send_queue_bytes_max.min(LEN_MAX)) || len > LEN_MAX {
            return self.refuse(shared, len);
        }
        if queued == 0 {
            // A window that closed while there was nothing to send has stalled nothing yet.
            self.send.stalled_since = now;
        }
        // An empty slice is short, too. Mostly the head is, and what stands at the end: empty, they wrap around and count for long.
        let is_short = |slice: Option<&Slice>| slice.is_some_and(|slice| slice.len().wrapping_sub(1) < mss - 1);
        let mut last = is_short(gather.last());
        if short > u32::from(is_short(gather.first())) + u32::from(last) {
            short = without_empty(gather, mss);
            last = is_short(gather.last());
        }
        self.send.queue.push(gather, len, Short { than: self.send.mss, slices: short, last });
        self.wake = true;
        Ok(())
    }

    #[cold]
    fn refuse(&mut self, shared: &mut Shared, len: usize) -> Result<(), SendError> {
        // More than any queue takes is never room for.
        self.send.refused = u32::try_from(len).unwrap_or(u32::MAX);
        shared.counters.send_queue_full += 1;
        Err(SendError::Full)
    }

    pub fn send_room(&self, options: &Options) -> usize {
        let takes = matches!(self.state, State::SynSent | State::SynReceived | State::Established | State::CloseWait);
        if takes && !self.send.fin { options.send_queue_bytes_max.saturating_sub(self.send.queue.len()) } else { 0 }
    }

    pub fn queued_bytes(&self) -> usize {
        self.send.queue.len()
    }

    /// Fills `out` with one packet or chain; `false`: nothing to send now.
    pub fn transmit(&mut self, now: Instant, shared: &mut Shared, limits: &TransmitLimits, out: &mut Transmit) -> bool {
        if matches!(self.state, State::SynSent | State::SynReceived) {
            return self.transmit_syn(now, shared, limits, out);
        }
        if self.state == State::Closed {
            return false;
        }
        self.learn_mss(limits);
        out.may_fragment = self.may_fragment();
        if self.has_only_an_ack_to_send() {
            return self.transmit_ack(now, shared, out);
        }
        self.transmit_report(now, shared, out)
            || self.transmit_lost(now, shared, limits, out)
            || self.transmit_tail_probe(now, shared, limits, out)
            || self.transmit_mtu_probe(now, shared, limits, out)
            || self.transmit_new(now, shared, limits, out)
            || self.transmit_probe(now, shared, out)
            || self.transmit_ack(now, shared, out)
    }

    /// Most of what a receiver sends: nothing queued, lost or to be probed for.
    #[inline]
    fn has_only_an_ack_to_send(&self) -> bool {
        let send = &self.send;
        self.receive.ack == Ack::Now
            && self.scoreboard.is_empty()
            && send.next == send.queue.end()
            && !send.fin
            && !send.probe_due
            && send.path.is_none()
    }

    /// Whether `transmit` may have something else to send, after it has sent something.
    pub fn may_transmit_more(&self) -> bool {
        let probes = self.send.probe_due || self.send.tail_probe_due;
        self.has_something_to_send() || self.receive.ack == Ack::Now || probes || !self.is_synchronized()
    }

    /// RFC 9293 section 3.7.1 (MUST-16), RFC 6691: the peer's MSS and the path's, less the options every segment carries.
    #[inline]
    fn learn_mss(&mut self, limits: &TransmitLimits) {
        let mtus = (limits.mtu, self.send.path_mtu);
        if self.send.mss_of != mtus {
            self.send.mss_of = mtus;
            self.learn_mss_of(limits);
        }
    }

    #[cold]
    fn learn_mss_of(&mut self, limits: &TransmitLimits) {
        let path = limits.mtu.min(self.send.path_mtu).saturating_sub(self.tuple.headers_len());
        let options = if self.timestamps { 12 } else { 0 };
        self.receive.mss_max = limits.mtu.saturating_sub(self.tuple.headers_len() + options).max(MSS_DEFAULT);
        let mss = self.send.peer_mss.min(path).saturating_sub(options).max(1);
        // Each packet that may be cut needs a value of its own in its header, which no device gives it.
        self.send.chain_max = if self.may_fragment() { mss } else { chain_max(mss) };
        if mss != self.send.mss {
            self.send.mss = mss;
            self.congestion.set_mss(u64::from(mss));
        }
    }

    fn transmit_syn(&mut self, now: Instant, shared: &mut Shared, limits: &TransmitLimits, out: &mut Transmit) -> bool {
        let again = self.send.next > SEQUENCE_ORIGIN;
        if again && self.scoreboard.lost() == 0 {
            // RFC 9293 section 3.10.7.4 answers what is not acceptable in SYN-RECEIVED, too.
            return self.state == State::SynReceived && self.transmit_ack(now, shared, out);
        }
        let flags = if self.state == State::SynReceived { Flags::SYN | Flags::ACK } else { Flags::SYN };
        let flags = flags | self.ecn_syn_flags(shared, again);
        let mut repr = self.header(shared, SEQUENCE_ORIGIN, flags);
        let mss = limits.mtu.saturating_sub(self.tuple.headers_len());
        self.receive.mss_max = mss.max(MSS_DEFAULT);
        repr.options = self.syn_options(shared, mss);
        if self.state == State::SynReceived {
            repr.options.timestamps = self.timestamps.then(|| self.timestamps_option(now));
        }
        if again {
            self.scoreboard.on_retransmitted(SEQUENCE_ORIGIN, SEQUENCE_ORIGIN + 1, 1, now);
            self.count_retransmission(shared, 1, 0);
        } else {
            self.scoreboard.on_sent(SEQUENCE_ORIGIN, SEQUENCE_ORIGIN + 1, 1, now);
            self.send.next = SEQUENCE_ORIGIN + 1;
            self.send.stalled_since = now;
        }
        if !self.timers.is_armed(Timer::Retransmit) {
            self.timers.arm(Timer::Retransmit, self.rtt.deadline(now));
        }
        self.statistics.bare_segments_out += 1;
        self.emit(now, shared, repr, 0, out);
        true
    }

    #[inline]
    fn count_packets(&mut self, shared: &mut Shared, packets: u64) {
        self.statistics.segments_out += packets;
        shared.counters.out_segs += packets;
    }

    fn count_retransmission(&mut self, shared: &mut Shared, packets: u64, len: u64) {
        shared.counters.retrans_segs += packets;
        self.statistics.retransmitted = self.statistics.retransmitted.wrapping_add(packets as u32);
        self.statistics.retransmitted_bytes += len;
    }

    /// Bytes the network may take now.
    pub(super) fn allowance(&self) -> u64 {
        let mss = u64::from(self.send.mss);
        let flight = self.scoreboard.in_flight(mss);
        match self.scoreboard.phase() {
            Phase::Recovery { .. } => {
                // With nothing in flight nothing would bring the next ACK.
                let floor = if flight == 0 { mss } else { 0 };
                self.scoreboard.recovery_allowance().max(floor)
            }
            // Whatever left beside a copy that is to be told apart could bring the ACK that hides it.
            Phase::Loss { .. } if self.scoreboard.is_first_apart() => 0,
            Phase::Loss { .. } => self.loss_allowance(flight),
            Phase::Open => self.congestion.window().saturating_sub(flight),
        }
    }

    #[cold]
    fn loss_allowance(&self, flight: u64) -> u64 {
        self.congestion.window().saturating_sub(flight.saturating_sub(self.scoreboard.young()))
    }

    fn transmit_lost(&mut self, now: Instant, shared: &mut Shared, limits: &TransmitLimits, out: &mut Transmit) -> bool {
        let Some((start, end)) = self.scoreboard.first_lost() else { return false };
        if self.send.repair.holds_retransmissions() {
            return false;
        }
        let mss = u64::from(self.send.mss);
        let mut allowance = self.allowance();
        if self.send.timed_out && start == self.send.unacknowledged {
            // RFC 6298 section 5.4 sends the earliest segment, whatever of the later ones is thought to be in flight.
            self.send.timed_out = false;
            allowance = allowance.max(mss);
            if let Some(apart) = self.end_apart(start, end) {
                self.transmit_again(now, shared, limits, out, start, apart, mss);
                if self.scoreboard.first() == Some((start, apart)) {
                    self.scoreboard.on_sent_apart(start);
                }
                return true;
            }
        }
        if allowance < mss.min(end - start) {
            self.send.window_limited = true;
            return false;
        }
        self.transmit_again(now, shared, limits, out, start, end, allowance)
    }

    /// Where the copy of the earliest segment has to end so that an ACK of it is no other copy's: one number before each of them.
    ///
    /// RFC 6298 section 3 (Karn) takes no sample of a segment that was sent twice, "and thus for which it is ambiguous" which copy an ACK is
    /// of, nor does RFC 8961 section 4 (2) (d). Without timestamps the timeout then stays backed off until new data has got through (RFC 9293
    /// section 3.8.2), and in front of those may lie a whole window that was lost with the link, where each further loss would cost up to a
    /// minute long after the link is mended. What is sent again may be cut elsewhere (RFC 9293 section 3.8.6), and where only the last copy
    /// ended nothing is ambiguous. From the second timeout on: the first costs one doubling, and its copy mostly arrives and then is whole.
    fn end_apart(&self, start: u64, end: u64) -> Option<u64> {
        let end = end.min(start + u64::from(self.send.mss)) - 1;
        (!self.timestamps && self.rtt.backoff() > 1 && end > start).then_some(end)
    }

    /// Sends `start..end`, or the front of it, once more.
    #[allow(clippy::too_many_arguments, reason = "the range, and what every transmission takes")]
    fn transmit_again(
        &mut self,
        now: Instant,
        shared: &mut Shared,
        limits: &TransmitLimits,
        out: &mut Transmit,
        start: u64,
        end: u64,
        allowance: u64,
    ) -> bool {
        let data_end = end.min(self.send.queue.end());
        let whole = self.whole_packets(data_end.saturating_sub(start), allowance.max(1), limits);
        let range = Range { start, len: whole, fin: end > self.send.queue.end() && start + whole as u64 == data_end };
        let sent = self.emit_range(now, shared, limits, out, &range);
        self.scoreboard.on_retransmitted(start, start + sent, self.send.mss, now);
        // Without the FIN, which travels with the last of them.
        let len = sent.min(range.len as u64);
        self.count_retransmission(shared, out.packets(len as usize), len);
        self.note_repair(now, sent);
        self.send.last_sent_at = now;
        // The timer watches the earliest segment, which has just left again (Linux does the same; RFC 6675 section 5.1 leaves it open): its
        // ACK cannot be here before a round trip.
        if start == self.send.unacknowledged || !self.timers.is_armed(Timer::Retransmit) {
            self.timers.arm(Timer::Retransmit, self.retransmit_deadline(now));
        }
        true
    }

    /// RFC 8985 section 7.3: new data if there is any and the peer has room, else the last segment again.
    fn transmit_tail_probe(&mut self, now: Instant, shared: &mut Shared, limits: &TransmitLimits, out: &mut Transmit) -> bool {
        // Something may have come since it was due.
        if !std::mem::take(&mut self.send.tail_probe_due) || !self.scoreboard.may_probe(&self.rtt) {
            return false;
        }
        shared.counters.loss_probes += 1;
        let mss = u64::from(self.send.mss);
        let unsent = self.send.queue.end().saturating_sub(self.send.next);
        let usable = (self.send.unacknowledged + self.send.window).saturating_sub(self.send.next);
        if unsent > 0 && usable >= unsent.min(mss) {
            let range = Range { start: self.send.next, len: unsent.min(mss) as usize, fin: false };
            self.transmit_range(now, shared, limits, out, &range);
            self.note_tail_probe(false);
            // RFC 8985 section 7.3: behind a probe only the timeout is armed; one probe is out at a time.
            self.timers.cancel(Timer::TailProbe);
        } else if let Some((start, end)) = self.scoreboard.cut_last(mss) {
            self.transmit_again(now, shared, limits, out, start, end, mss);
            self.note_tail_probe(true);
        }
        true
    }

    #[cold]
    fn note_tail_probe(&mut self, retransmission: bool) {
        self.scoreboard.on_probe_sent(self.send.next, retransmission);
        self.rtt.on_probe_sent();
    }

    /// RFC 5681 section 4.1.
    #[inline]
    pub(super) fn restart_after_idle(&mut self, now: Instant) {
        if self.scoreboard.is_empty() && now.nanos_since(self.send.last_sent_at) > self.rtt.rto_nanos() {
            self.congestion.on_idle();
        }
    }

    /// New data, and the FIN behind it.
    fn transmit_new(&mut self, now: Instant, shared: &mut Shared, limits: &TransmitLimits, out: &mut Transmit) -> bool {
        let unsent = self.send.queue.end().saturating_sub(self.send.next);
        let fin = self.send.fin && !self.fin_sent();
        if (unsent == 0 && !fin) || self.scoreboard.is_full() {
            return false;
        }
        self.restart_after_idle(now);
        let mss = u64::from(self.send.mss);
        let usable = (self.send.unacknowledged + self.send.window).saturating_sub(self.send.next);
        let allowance = self.allowance();
        if allowance < mss.min(unsent.max(1)) {
            self.send.window_limited = true;
            return false;
        }
        let pacing = shared.options.pacing && unsent > 0;
        if pacing && self.is_paced(now) {
            return false;
        }
        let quantum = if pacing { self.pacing_quantum() } else { u64::MAX };
        let len = self.whole_packets(unsent, allowance.min(usable).min(quantum), limits);
        if !self.is_worth_sending(len as u64, unsent, fin) {
            self.arm_persist(now);
            return false;
        }
        self.send.window_limited = len as u64 + mss > allowance || self.uses_most_of_window(len as u64);
        self.send.override_due = false;
        self.timers.cancel(Timer::Persist);
        let range = Range { start: self.send.next, len, fin: fin && len as u64 == unsent };
        self.transmit_range(now, shared, limits, out, &range);
        if pacing {
            self.pace(now, self.send.next - range.start);
        }
        true
    }

    /// Slow start must not wait for the whole window to be filled (RFC 7661 section 4.3's half).
    /// `len` bytes are about to leave.
    fn uses_most_of_window(&self, len: u64) -> bool {
        let flight = || self.scoreboard.in_flight(u64::from(self.send.mss)) + len;
        self.congestion.is_in_slow_start() && 2 * flight() >= self.congestion.window()
    }

    /// How much of `available` to send, or to send again, at once under `limit`: whole packets, unless everything goes or less than one fits.
    /// With Nagle's algorithm the last packet, if it is short, is left for a turn of its own: new, it waits there for the ACK of those before it
    /// (RFC 9293 section 3.7.4).
    fn whole_packets(&self, available: u64, limit: u64, limits: &TransmitLimits) -> usize {
        let mss = u64::from(self.send.mss);
        let tso = if self.tuple.remote_ip.is_ipv4() { limits.tso_bytes_max } else { limits.tso_ipv6_bytes_max };
        let mut device = u64::from(tso).min(u64::from(self.send.chain_max)).max(mss);
        if self.ecn.answer_due {
            // CWR belongs on one packet (RFC 3168 section 6.1.2); devices repeat flags on each of a chain.
            device = mss;
        }
        let len = available.min(limit).min(device);
        let whole = if len > mss && (len < available || self.nagle) { len - len % mss } else { len };
        whole as usize
    }

    /// RFC 9293 sections 3.8.6.2.1 (MUST-38) and 3.7.4.
    fn is_worth_sending(&self, len: u64, unsent: u64, fin: bool) -> bool {
        if unsent == 0 {
            // A FIN alone needs no window: the peer has to hear of it.
            return fin;
        }
        if len == 0 {
            return false;
        }
        if len >= u64::from(self.send.mss) || self.send.override_due {
            return true;
        }
        let nagle = self.nagle && !self.scoreboard.is_empty() && !fin;
        !nagle && (len == unsent || len >= u64::from(self.send.window_max) / WORTHWHILE_FRACTION)
    }

    /// Nothing is in flight whose ACK would open the window: look again later.
    fn arm_persist(&mut self, now: Instant) {
        if self.scoreboard.is_empty() && !self.timers.is_armed(Timer::Persist) {
            let rto = self.rtt.rto();
            let delay = if self.send.window > 0 { rto.min(OVERRIDE_MAX) } else { rto };
            self.timers.arm(Timer::Persist, self.not_after_user_timeout(now, now + delay));
        }
    }

    #[inline(always)]
    fn transmit_range(&mut self, now: Instant, shared: &mut Shared, limits: &TransmitLimits, out: &mut Transmit, range: &Range) {
        if self.scoreboard.is_empty() {
            self.send.stalled_since = now;
        }
        let sent = self.emit_range(now, shared, limits, out, range);
        if self.ecn.on {
            self.mark_capable(out);
        }
        self.scoreboard.on_sent(range.start, range.start + sent, self.send.mss, now);
        self.send.next = range.start + sent;
        self.send.last_sent_at = now;
        // RFC 6298 section 5.1.
        if !self.timers.is_armed(Timer::Retransmit) {
            self.timers.arm(Timer::Retransmit, self.rtt.deadline(now));
        }
        self.arm_tail_probe(now);
    }

    /// `len` bytes of new data as one packet, whatever the MSS.
    pub(super) fn transmit_alone(
        &mut self,
        now: Instant,
        shared: &mut Shared,
        limits: &TransmitLimits,
        out: &mut Transmit,
        len: u16,
    ) {
        let mss = std::mem::replace(&mut self.send.mss, len);
        let range = Range { start: self.send.next, len: usize::from(len), fin: false };
        self.transmit_range(now, shared, limits, out, &range);
        self.send.mss = mss;
    }

    /// Composes payload and header; tells how much sequence space went out.
    #[inline(always)]
    fn emit_range(
        &mut self,
        now: Instant,
        shared: &mut Shared,
        limits: &TransmitLimits,
        out: &mut Transmit,
        range: &Range,
    ) -> u64 {
        let mss = usize::from(self.send.mss);
        let composition = Composition {
            mss,
            pieces_per_packet_max: pieces_per_packet(limits),
            pieces_max: usize::from(if range.len > mss { limits.segments_tso_max } else { limits.segments_per_packet_max })
                .saturating_sub(1)
                .max(1),
        };
        let len = match range.len {
            0 => {
                self.statistics.bare_segments_out += 1;
                0
            }
            wanted => self.send.queue.gather(range.start, wanted, &composition, &mut out.payload),
        };
        if len > mss {
            out.tso_mss = Some(self.send.mss);
        }
        let fin = range.fin && len == range.len;
        let mut flags = Flags::ACK;
        let end = range.start + len as u64;
        if len > 0 && end == self.send.queue.end() {
            // RFC 9293 section 3.9.1.2: the last of what the application gave us.
            flags |= Flags::PSH;
        }
        if fin {
            flags |= Flags::FIN;
        }
        if len > 0 && range.start == self.send.next && std::mem::take(&mut self.ecn.answer_due) {
            flags |= Flags::CWR;
        }
        shared.counters.out_bytes += len as u64;
        if !self.ecn.on && !self.reports_blocks() {
            self.emit_plain(now, shared, range.start, flags, len, out);
            return len as u64 + u64::from(fin);
        }
        // Blocks would take the place of payload: what there is to report has left alone (`transmit_report`).
        let repr = if len > 0 {
            self.header_without_blocks(shared, range.start, flags)
        } else {
            self.header(shared, range.start, flags)
        };
        self.emit(now, shared, repr, len, out);
        len as u64 + u64::from(fin)
    }

    /// An empty segment one position back: the peer must answer with its window (RFC 9293 sections 3.8.4 and 3.8.6.1).
    fn transmit_probe(&mut self, now: Instant, shared: &mut Shared, out: &mut Transmit) -> bool {
        if !std::mem::take(&mut self.send.probe_due) {
            return false;
        }
        // Being unacceptable it is dropped with what it tells (section 3.10.7.4, first step): an ACK that is owed, a window that has opened and
        // a duplicate are still to be told, and no more is promised than was before.
        let ReceiveState { edge, next, scale, duplicate, .. } = self.receive;
        self.receive.duplicate = (0, 0);
        let mut repr = self.header(shared, self.send.unacknowledged - 1, Flags::ACK);
        (self.receive.edge, self.receive.duplicate) = (edge, duplicate);
        repr.window = (edge.saturating_sub(next) >> scale).min(u64::from(u16::MAX)) as u16;
        repr.options.timestamps = self.timestamps.then(|| self.timestamps_option(now));
        if self.ecn.on {
            self.echo_marks(&mut repr);
        }
        self.statistics.bare_segments_out += 1;
        self.count_packets(shared, 1);
        out.seal(&self.tuple, &repr, 0);
        // The next probe, with backoff, unless the window opens.
        if self.send.next < self.send.queue.end() || (self.send.fin && !self.fin_sent()) {
            self.arm_persist(now);
        }
        true
    }

    /// An ACK that tells of a hole or a duplicate leaves alone and before anything else: what carries text is no duplicate ACK (RFC 5681
    /// section 2) and has no room for blocks, and would pass for the ACK that RFC 2018 section 4 asks for.
    #[inline]
    fn transmit_report(&mut self, now: Instant, shared: &mut Shared, out: &mut Transmit) -> bool {
        if self.receive.ack != Ack::Now {
            return false;
        }
        let hole = self.receive.duplicate_acks > 0 || !self.receive.reassembly.is_empty();
        (hole || self.reports_blocks()) && self.transmit_ack(now, shared, out)
    }

    fn transmit_ack(&mut self, now: Instant, shared: &mut Shared, out: &mut Transmit) -> bool {
        if self.receive.ack != Ack::Now {
            return false;
        }
        shared.counters.pure_acks += 1;
        self.statistics.bare_segments_out += 1;
        if !self.ecn.on && !self.reports_blocks() && self.receive.duplicate_acks == 0 {
            self.emit_plain(now, shared, self.send.next, Flags::ACK, 0, out);
            return true;
        }
        let repr = self.header(shared, self.send.next, Flags::ACK);
        let repeat = self.receive.duplicate_acks.checked_sub(1);
        self.emit(now, shared, repr, 0, out);
        if let Some(left) = repeat {
            (self.receive.duplicate_acks, self.receive.ack) = (left, Ack::Now);
        }
        true
    }

    /// A header at `position` with the newest acknowledgement, window and options; the window counts as advertised.
    pub(super) fn header(&mut self, shared: &mut Shared, position: u64, flags: Flags) -> Repr {
        let mut repr = self.header_without_blocks(shared, position, flags);
        if flags.contains(Flags::ACK) && !flags.contains(Flags::SYN) && self.reports_blocks() {
            repr.options.sack = self.sack_blocks(shared);
        }
        repr
    }

    fn header_without_blocks(&mut self, shared: &Shared, position: u64, flags: Flags) -> Repr {
        let syn = flags.contains(Flags::SYN);
        let mut repr = Repr {
            src_port: self.tuple.local_port,
            dst_port: self.tuple.remote_port,
            seq: self.seq_at(position),
            flags,
            options: self.segment_options(),
            ..Repr::default()
        };
        if flags.contains(Flags::ACK) {
            repr.ack = self.peer_seq_at(self.receive.next);
        }
        repr.window = self.advertise(shared, syn);
        repr
    }

    /// The options every segment but a SYN carries, without timestamps' values.
    pub(super) fn segment_options(&self) -> TcpOptions {
        TcpOptions { timestamps: self.timestamps.then(Timestamps::default), ..TcpOptions::default() }
    }

    pub(super) fn timestamps_option(&self, now: Instant) -> Timestamps {
        let synchronized = self.state != State::SynSent;
        Timestamps { value: self.timestamp(now), echo_reply: if synchronized { self.receive.ts_recent } else { 0 } }
    }

    /// RFC 2018 section 4, RFC 2883 section 4: a duplicate first, then the newest ranges.
    fn sack_blocks(&mut self, shared: &mut Shared) -> SackBlocks {
        let mut blocks = SackBlocks::default();
        let room = if self.timestamps { 3 } else { 4 };
        let mut put = |connection: &Connection, (left, right): (u64, u64)| {
            blocks.push((connection.peer_seq_at(left), connection.peer_seq_at(right)));
        };
        let mut left = room;
        let duplicate = std::mem::take(&mut self.receive.duplicate);
        if duplicate.0 < duplicate.1 {
            shared.counters.dsack_sent += 1;
            put(self, duplicate);
            left -= 1;
            if let Some(range) = self.receive.reassembly.range_of(duplicate.0) {
                // The block that contains the duplicate comes second.
                put(self, range);
                left -= 1;
                for other in self.receive.reassembly.newest(room).filter(|other| *other != range).take(left) {
                    put(self, other);
                }
                return blocks;
            }
        }
        for range in self.receive.reassembly.newest(left) {
            put(self, range);
        }
        blocks
    }

    /// The window field; moves the promised edge.
    fn advertise(&mut self, shared: &Shared, syn: bool) -> u16 {
        let window = self.window(shared);
        // RFC 7323 section 2.2: unscaled on a SYN. Rounded up, or the edge would move back (section 2.4). Each time it moves on by a little
        // then; where nobody reads and little comes at a time the peer would never meet the end of the window. Beyond an eighth more the
        // edge is "a smaller window", by less than what one count of the field stands for; what was promised before is still taken.
        let scale = if syn { 0 } else { self.receive.scale };
        let limit = u64::from(self.receive.limit);
        let beyond = self.receive.chain.len() as u64 + window > limit + limit / WINDOW_SLACK;
        let round = if beyond { 0 } else { (1 << scale) - 1 };
        let field = ((window + round) >> scale).min(u64::from(u16::MAX));
        self.receive.edge = self.receive.edge.max(self.receive.next + (field << scale));
        field as u16
    }

    /// Whether an ACK has to carry SACK blocks.
    fn reports_blocks(&self) -> bool {
        let (left, right) = self.receive.duplicate;
        self.sack && (left < right || !self.receive.reassembly.is_empty())
    }

    /// Whatever leaves carries the acknowledgement.
    fn emit(&mut self, now: Instant, shared: &mut Shared, mut repr: Repr, payload_len: usize, out: &mut Transmit) {
        if repr.options.timestamps.is_some() {
            repr.options.timestamps = Some(self.timestamps_option(now));
        }
        if self.ecn.on {
            self.echo_marks(&mut repr);
        }
        if repr.flags.contains(Flags::ACK) {
            self.note_acknowledged();
        }
        self.count_packets(shared, out.packets(payload_len));
        out.seal(&self.tuple, &repr, payload_len);
    }

    /// `header` and `emit` of what carries ACK, no SACK blocks and no echoes of marks.
    #[inline(always)]
    fn emit_plain(&mut self, now: Instant, shared: &mut Shared, position: u64, flags: Flags, len: usize, out: &mut Transmit) {
        let repr = PlainRepr {
            src_port: self.tuple.local_port,
            dst_port: self.tuple.remote_port,
            seq: self.seq_at(position),
            ack: self.peer_seq_at(self.receive.next),
            flags,
            window: self.advertise(shared, false),
            timestamps: self.timestamps.then(|| self.timestamps_option(now)),
        };
        self.note_acknowledged();
        self.count_packets(shared, out.packets(len));
        out.seal_plain(&self.tuple, &repr, len);
    }

    /// Everything that has arrived is acknowledged by what leaves.
    #[inline]
    fn note_acknowledged(&mut self) {
        let receive = &mut self.receive;
        receive.acknowledged = receive.next;
        receive.ack = Ack::None;
        receive.duplicate_acks = 0;
        receive.quick_acks = receive.quick_acks.saturating_sub(1);
        self.timers.cancel(Timer::Ack);
    }
}
