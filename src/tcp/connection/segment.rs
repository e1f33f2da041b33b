//! What happens to an arriving segment in every state but SYN-SENT, step by step.
//!
//! Read first: RFC 9293 section 3.10.7.4; RFC 5961; RFC 7323 section 5. The steps are functions with the RFC's names, called
//! in its order; each tells whether the next one is reached.

use super::timers::Timer;
use super::*;
use crate::buf::RxPacket;
use crate::wire::tcp::Timestamps;

/// RFC 7323 section 5.5: a recent timestamp this old proves nothing.
const PAWS_IDLE_MAX: std::time::Duration = std::time::Duration::from_secs(24 * 24 * 3600);

/// A segment, in positions of the peer's stream.
pub(super) struct Segment<'a> {
    pub repr: &'a Repr,
    /// SEG.SEQ of the first payload byte's place (the SYN's own, if it has one).
    pub seq: u64,
    pub payload_len: u64,
}

impl Segment<'_> {
    pub fn has(&self, flag: Flags) -> bool {
        self.repr.flags.contains(flag)
    }

    /// SEG.SEQ + SEG.LEN.
    fn end(&self) -> u64 {
        self.seq + self.payload_len + u64::from(self.has(Flags::SYN)) + u64::from(self.has(Flags::FIN))
    }

    /// Where the payload starts.
    pub fn text(&self) -> u64 {
        self.seq + u64::from(self.has(Flags::SYN))
    }
}

impl Connection {
    pub(super) fn segment<'a>(&self, repr: &'a Repr, payload: &RxPacket) -> Segment<'a> {
        Segment { repr, seq: self.peer_position(repr.seq), payload_len: payload.len() as u64 }
    }

    /// A segment that was not predicted. `payload` is what follows the header.
    pub fn handle_segment(&mut self, now: Instant, shared: &mut Shared, repr: &Repr, payload: RxPacket) {
        self.statistics.segments_in += 1;
        self.statistics.text_segments_in += u64::from(!payload.is_empty());
        if self.state == State::SynSent {
            return self.handle_in_syn_sent(now, shared, repr, payload);
        }
        let segment = self.segment(repr, &payload);
        let acceptable = self.check_sequence(now, shared, &segment)
            && self.check_rst(now, shared, &segment)
            && self.check_syn(now, shared, &segment)
            && self.check_ack(now, shared, &segment);
        if acceptable {
            self.receive.last_heard_at = now;
            self.restart_keepalive(now, shared);
            if self.ecn.on {
                self.process_marks(now, shared, &segment);
            }
            self.process_urgent(shared, &segment);
            self.process_text(now, shared, &segment, payload);
            self.process_fin(now, shared, &segment);
        }
    }

    /// First: is any of it in the window, and is it not an old duplicate (RFC 7323 section 5.3, R1)?
    fn check_sequence(&mut self, now: Instant, shared: &mut Shared, segment: &Segment) -> bool {
        if !self.check_timestamps(now, shared, segment) {
            return false;
        }
        let ReceiveState { next, edge, .. } = self.receive;
        let (seq, end) = (segment.seq, segment.end());
        // An empty segment just behind the window is a peer's that filled it: its ACK counts (section 3.10.7.4's special
        // allowance), as it does on a probe of a closed window; what such a probe carries is cut off later.
        // The other half of a simultaneous open lies one position early (section 3.5, figure 7).
        if self.state == State::SynReceived && segment.has(Flags::SYN | Flags::ACK) && seq == SEQUENCE_ORIGIN {
            return true;
        }
        let acceptable = if end == seq { next <= seq && seq <= edge } else { end > next && seq <= edge };
        // A retransmission whose ACK was lost is unacceptable, but its timestamp is news: the echo of the original's would
        // look like a round trip that lasted as long as the sender's backoff. Not while something is missing: that may be on its way
        // since before the retransmission, only late, and would be taken for old (RFC 7323 section 5.3, R1).
        let retransmission =
            !acceptable && seq < next && next - seq <= self.receive.reach() && self.receive.reassembly.is_empty();
        // RFC 7323 section 5.2: a reset teaches nothing.
        if (acceptable || retransmission) && !segment.has(Flags::RST) && self.has_possible_ack(segment) {
            self.remember_timestamp(now, segment);
        }
        if !acceptable {
            shared.counters.out_of_window += 1;
            if !segment.has(Flags::RST) {
                self.acknowledge_unacceptable(now, shared, segment);
            }
        }
        acceptable
    }

    /// Whether its ACK is one the peer can have sent (RFC 5961 section 5.2). A forger who guessed a sequence number in the window
    /// must not move TS.Recent ahead: everything the peer sends from then on would look old.
    fn has_possible_ack(&self, segment: &Segment) -> bool {
        if !segment.has(Flags::ACK) {
            return self.state == State::SynReceived && segment.has(Flags::SYN);
        }
        let ack = self.ack_position(segment.repr.ack);
        ack <= self.send.next && ack + u64::from(self.send.window_max.max(1)) >= self.send.unacknowledged
    }

    /// RFC 7323 section 4.3 (2): only from a segment that spans Last.ACK.sent, or lies before it.
    fn remember_timestamp(&mut self, now: Instant, segment: &Segment) {
        let Some(timestamps) = segment.repr.options.timestamps.filter(|_| self.timestamps) else { return };
        let outdated = now.since(self.receive.ts_recent_at) >= PAWS_IDLE_MAX;
        if segment.seq <= self.receive.acknowledged && (outdated || !is_before(timestamps.value, self.receive.ts_recent)) {
            (self.receive.ts_recent, self.receive.ts_recent_at) = (timestamps.value, now);
        }
    }

    /// "If an incoming segment is not acceptable, an acknowledgment should be sent in reply."
    fn acknowledge_unacceptable(&mut self, now: Instant, shared: &mut Shared, segment: &Segment) {
        if self.state == State::TimeWait {
            // Whatever of it is answered.
            self.receive.last_heard_at = now;
        }
        if self.state == State::SynReceived && segment.has(Flags::SYN) && segment.seq == SEQUENCE_ORIGIN {
            return self.repeat_syn_ack(now, shared, segment);
        }
        if segment.payload_len > 0 {
            let text = segment.text();
            if text >= self.receive.next || self.receive.next - text > self.receive.reach().max(segment.payload_len) {
                // Nowhere a peer of ours can be: a blind injection, whose ACKs are not to be had in numbers (RFC 5961 section 5).
                return self.challenge(now, shared);
            }
            // A retransmission whose ACK was lost: the peer waits for it, and RFC 2883 lets us tell that it was not needed.
            shared.counters.duplicate_bytes += segment.payload_len;
            self.receive.duplicate = (text, (text + segment.payload_len).min(self.receive.next));
            self.restart_time_wait(now, shared);
            self.acknowledge_now();
        } else if self.is_repeated_fin(segment) || self.is_probe(segment) {
            if segment.has(Flags::FIN) {
                self.restart_time_wait(now, shared);
            }
            self.tighten(shared, 1);
            self.acknowledge_now();
        } else {
            self.challenge(now, shared);
        }
    }

    /// The peer sends its SYN again: it did not get our SYN-ACK.
    fn repeat_syn_ack(&mut self, now: Instant, shared: &Shared, syn: &Segment) {
        self.disagree_ecn(shared, syn.repr);
        if self.scoreboard.oldest_sent_at().is_some_and(|at| now.since(at) >= shared.options.rto_min) {
            self.scoreboard.mark_all_lost();
            self.wake = true;
        }
    }

    /// Eighth step: "Restart the 2 MSL time-wait timeout", on a FIN that comes again, and on text that does: either shows that the peer has
    /// not got our last ACK, which is what TIME-WAIT waits for (RFC 9293 section 3.3.2; Linux: any old segment with an ACK). A peer
    /// whose first unacknowledged segment is text will not send its FIN again before.
    fn restart_time_wait(&mut self, now: Instant, shared: &Shared) {
        if self.state == State::TimeWait {
            self.timers.arm(Timer::Life, now + shared.options.time_wait);
        }
    }

    /// A FIN whose ACK was lost. One from anywhere else is a blind injection, whose ACKs are limited (RFC 5961 section 7).
    fn is_repeated_fin(&self, segment: &Segment) -> bool {
        let at = segment.text();
        segment.has(Flags::FIN) && at < self.receive.next && self.receive.next - at <= self.receive.reach()
    }

    /// A keepalive or window probe: one position before what is expected, and empty.
    fn is_probe(&self, segment: &Segment) -> bool {
        segment.end() == segment.seq && segment.seq + 1 == self.receive.next
    }

    fn check_timestamps(&mut self, now: Instant, shared: &mut Shared, segment: &Segment) -> bool {
        if !self.timestamps || segment.has(Flags::RST) {
            return true;
        }
        let Some(Timestamps { value, .. }) = segment.repr.options.timestamps else {
            if segment.has(Flags::SYN) && !segment.has(Flags::ACK) {
                // RFC 5961 section 4.2: whatever else is about it, it is challenged. A peer that has started anew does not know what its
                // predecessor agreed on, and only the challenge makes it reset what is left of that.
                return true;
            }
            // RFC 7323 section 3.2: silently dropped once both have agreed.
            shared.counters.timestamps_missing += 1;
            return false;
        };
        let outdated = is_before(value, self.receive.ts_recent) && now.since(self.receive.ts_recent_at) < PAWS_IDLE_MAX;
        if outdated {
            shared.counters.paws_estab_rejected += 1;
            self.acknowledge_unacceptable(now, shared, segment);
        }
        !outdated
    }

    /// Second: the RST bit (RFC 5961 section 3.2).
    fn check_rst(&mut self, now: Instant, shared: &mut Shared, segment: &Segment) -> bool {
        if !segment.has(Flags::RST) {
            return true;
        }
        if segment.seq != self.receive.next {
            // In the window, but not exactly where a peer of ours would be.
            self.challenge(now, shared);
            return false;
        }
        // RFC 4022's tcpAttemptFails: from SYN-RECEIVED, whoever began.
        shared.counters.attempt_fails += u64::from(self.state == State::SynReceived);
        let reason = match self.state {
            State::SynReceived if self.listener.is_none() => Reason::Refused,
            // In CLOSING and LAST-ACK a reset is no error (RFC 9293 section 3.10.7.4: "enter the CLOSED state", and no word of a "connection
            // reset"): the peer has said all, and has forgotten the connection, mostly because its TIME-WAIT was over before our FIN came
            // again. But text that it has not acknowledged may be lost, and the application learns that.
            State::Closing | State::LastAck if self.send.unacknowledged >= self.send.queue.end() => Reason::Finished,
            _ => Reason::Reset,
        };
        // RFC 1337: a reset does not cut TIME-WAIT short.
        if self.state != State::TimeWait {
            // RFC 4022's tcpEstabResets: from ESTABLISHED or CLOSE-WAIT.
            shared.counters.estab_resets += u64::from(matches!(self.state, State::Established | State::CloseWait));
            self.finish(shared, reason);
        }
        false
    }

    /// Fourth: the SYN bit (RFC 5961 section 4.2: never a reason to reset).
    fn check_syn(&mut self, now: Instant, shared: &mut Shared, segment: &Segment) -> bool {
        if !segment.has(Flags::SYN) {
            return true;
        }
        let is_first_again = self.state == State::SynReceived && segment.seq == SEQUENCE_ORIGIN;
        if is_first_again && segment.has(Flags::ACK) {
            // The other half of a simultaneous open (RFC 9293 section 3.5, figure 7).
            return true;
        }
        if is_first_again {
            // With text, which makes it acceptable.
            self.repeat_syn_ack(now, shared, segment);
        } else {
            self.challenge(now, shared);
        }
        false
    }

    /// Fifth: the ACK field.
    fn check_ack(&mut self, now: Instant, shared: &mut Shared, segment: &Segment) -> bool {
        if !segment.has(Flags::ACK) {
            return false;
        }
        let ack = self.ack_position(segment.repr.ack);
        if self.state == State::SynReceived && !self.check_ack_in_syn_received(now, shared, segment, ack) {
            return false;
        }
        // RFC 5961 section 5.2: SND.UNA - MAX.SND.WND <= SEG.ACK <= SND.NXT.
        let SendState { unacknowledged, next, window_max, .. } = self.send;
        if ack > next || ack + u64::from(window_max.max(1)) < unacknowledged {
            shared.counters.unacceptable_acks += 1;
            self.challenge(now, shared);
            return false;
        }
        self.accept_ack_of(now, shared, ack, segment);
        self.after_fin_acknowledged(now, shared);
        self.state != State::Closed
    }

    fn check_ack_in_syn_received(&mut self, now: Instant, shared: &mut Shared, segment: &Segment, ack: u64) -> bool {
        if ack <= self.send.unacknowledged || ack > self.send.next {
            shared.reset(&self.tuple, segment.repr, segment.payload_len as usize);
            return false;
        }
        let accept_queue_max = shared.options.accept_queue_max;
        let is_full = |id| shared.listener(id).is_none_or(|listener| listener.accept_pending >= accept_queue_max);
        let overflows = self.listener.is_some_and(is_full);
        if overflows {
            // The peer's data, or our SYN-ACK once more, brings another ACK when there may be room.
            shared.counters.listen_overflows += 1;
            return false;
        }
        self.send.window_seq = segment.seq;
        self.establish(now, shared);
        true
    }

    /// Sixth: the urgent pointer. It is not honoured (RFC 6093 section 6 advises against it): urgent bytes stay in line.
    fn process_urgent(&mut self, shared: &mut Shared, segment: &Segment) {
        if segment.has(Flags::URG) {
            shared.counters.urgent_ignored += 1;
        }
    }

    pub(super) fn restart_keepalive(&mut self, now: Instant, shared: &Shared) {
        if self.keepalive && self.timers.is_armed(Timer::Keepalive) {
            self.keepalive_probes = 0;
            self.timers.arm(Timer::Keepalive, now + shared.options.keepalive.unwrap_or_default().idle);
        }
    }

    /// RFC 5961 section 7: a challenge ACK, unless one was sent just now.
    pub(super) fn challenge(&mut self, now: Instant, shared: &mut Shared) {
        if now < self.receive.challenge_at {
            shared.counters.challenge_acks_skipped += 1;
            return;
        }
        self.receive.challenge_at = now + shared.options.challenge_ack_interval;
        shared.counters.challenge_acks += 1;
        self.acknowledge_now();
    }
}

/// Comparison of timestamps, which wrap (RFC 7323 section 5.2).
pub(super) fn is_before(a: u32, b: u32) -> bool {
    (a.wrapping_sub(b) as i32) < 0
}
