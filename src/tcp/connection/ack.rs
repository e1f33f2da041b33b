//! What an acknowledgement means to the sender: what left the network, what is lost, how much more may go.
//!
//! Read first: RFC 9293 section 3.10.7.4 (fifth step), RFC 5681, RFC 8985 section 6.2, RFC 6675, RFC 6582, RFC 2883.

use super::segment::{Segment, is_before};
use super::timers::Timer;
use super::*;
use crate::tcp::congestion::AckSample;
use crate::tcp::recovery::{Delivery, Losses, Phase};
use crate::time::Duration;
use crate::wire::tcp::SACK_BLOCKS_MAX;

impl Connection {
    /// The ACK of a segment that passed the checks.
    pub(super) fn accept_ack_of(&mut self, now: Instant, shared: &mut Shared, ack: u64, segment: &Segment) {
        let before = self.send.window;
        // An ACK of something new is the peer's last word, also on text that it sends again (Linux: tcp_may_update_window). RFC 9293
        // section 3.10.7.4 leaves it out: the window of before, counted from the new SND.UNA, would end right of what was advertised.
        let newer = ack > self.send.unacknowledged
            || segment.seq > self.send.window_seq
            || (segment.seq == self.send.window_seq && ack >= self.send.window_ack.max(self.send.unacknowledged));
        // RFC 7323 section 2.2: that of a SYN, as the peer's SYN-ACK of a simultaneous open, is never scaled.
        let scale = if segment.has(Flags::SYN) { 0 } else { self.send.scale };
        let window = u64::from(segment.repr.window) << scale;
        let repeats = ack == self.send.unacknowledged && segment.payload_len == 0 && !segment.has(Flags::FIN) && window == before;
        if newer && ack >= self.send.unacknowledged {
            self.send.window = window;
            self.send.window_max = self.send.window_max.max(window as u32);
            (self.send.window_seq, self.send.window_ack) = (segment.seq, ack);
            if window > before {
                self.timers.cancel(Timer::Persist);
                if before == 0 {
                    // The probes' backoff says nothing about the network.
                    self.rtt.end_backoff(shared.options.rto_max);
                    if !self.scoreboard.is_empty() {
                        // Nor would what had been in flight be probed for again before the last of them.
                        self.timers.arm_earlier(Timer::Retransmit, self.rtt.deadline(now));
                    }
                }
                self.wake = true;
            }
        }
        if window == 0 || before == 0 {
            // What met a closed window was dropped by the peer, large or small, and answered: it got there.
            self.scoreboard.forgive_timeouts();
        }
        let ended = self.receive.refuses_text || matches!(self.state, State::LastAck | State::Closing);
        if !ended && (window == 0 || self.scoreboard.is_empty()) {
            // A peer that answers probes with a closed window is alive (RFC 9293 section 3.8.6.1, MUST-37). Once both directions are
            // closed nobody here would ever end the connection instead: then only progress counts, or a peer could keep our memory.
            if self.send.retries > 0 && window == 0 {
                self.await_next_try(now);
            }
            (self.send.stalled_since, self.send.retries) = (now, 0);
        }
        self.process_acknowledgement(now, shared, ack, segment.repr, repeats);
    }

    /// The same for the SYN-ACK, whose window is set already.
    pub(super) fn accept_ack(&mut self, now: Instant, shared: &mut Shared, ack: u64, repr: &Repr) {
        self.process_acknowledgement(now, shared, ack, repr, false);
    }

    /// `repeats`: an empty segment that tells neither of an ACK nor of a window that were new.
    fn process_acknowledgement(&mut self, now: Instant, shared: &mut Shared, ack: u64, repr: &Repr, repeats: bool) {
        // RFC 5681 section 2: what counts as a duplicate ACK.
        let duplicate = repeats && !self.scoreboard.is_empty();
        let una = self.send.unacknowledged;
        let flight = self.send.next - una;
        let queued_before = self.send.queue.len();
        let dsack = self.sack && self.process_dsack(shared, ack, repr);
        let mut delivery = self.process_delivery(now, shared, ack, repr);
        let advanced = ack > una;
        if advanced {
            self.send.unacknowledged = ack;
            self.send.queue.acknowledge(ack);
            (self.send.stalled_since, self.send.retries) = (now, 0);
        }
        self.sample_rtt(now, shared, repr, &delivery);
        if advanced {
            self.detect_spurious_repair(shared, repr);
        }
        let repaired = self.scoreboard.in_recovery();
        let newly_lost = self.detect_losses(now, shared, ack.saturating_sub(una), &mut delivery, duplicate, flight);
        if self.send.repair.awaits_acks() {
            self.advance_frto(shared, advanced, duplicate, &delivery);
        }
        // Behind a probe of the tail mostly nothing is in flight when the second copy of it is answered.
        if let Some(flight) = self.scoreboard.on_probe_acknowledged(ack, repeats && !dsack && repr.options.sack.is_empty())
            && self.scoreboard.phase() == Phase::Open
        {
            shared.counters.loss_probe_recoveries += 1;
            self.congestion.on_loss(now, flight);
            self.note_reduction_apart();
        }
        if self.send.path.is_some() {
            self.observe_mtu_probe(now, shared);
        }
        if self.ecn.on && repr.flags.contains(Flags::ECE) {
            self.on_echo(now, shared, flight);
        }
        let counted = self.counted_for_growth(&delivery, repaired);
        if self.sack || advanced || duplicate || !matches!(self.scoreboard.phase(), Phase::Recovery { .. }) {
            self.adjust_window(now, repr, ack, &delivery, counted, advanced && newly_lost == 0);
        }
        if advanced || delivery.sacked > 0 {
            self.restart_retransmission_timers(now, advanced);
        }
        if advanced {
            self.report_room(shared, queued_before);
        }
        // Text whose ACK says nothing new gives no occasion: a larger window has woken already, and a pace has its timer.
        if advanced || duplicate || !self.scoreboard.is_undisturbed() {
            self.wake |= self.has_something_to_send();
        }
    }

    pub(super) fn has_something_to_send(&self) -> bool {
        let unsent = self.send.next < self.send.queue.end() || (self.send.fin && !self.fin_sent());
        unsent || self.scoreboard.lost() > 0
    }

    /// RFC 2883 section 4: a first block below the ACK, or inside the second block, reports a duplicate.
    fn process_dsack(&mut self, shared: &mut Shared, ack: u64, repr: &Repr) -> bool {
        let [first, rest @ ..] = repr.options.sack.as_slice() else { return false };
        let (left, right) = (self.ack_position(first.0), self.ack_position(first.1));
        let inside = |(a, b): &(SeqNumber, SeqNumber)| self.ack_position(*a) <= left && right <= self.ack_position(*b);
        let dsack = left < right && (right <= ack || rest.first().is_some_and(inside));
        if dsack {
            shared.counters.dsack_recv += 1;
            let of_probe = self.scoreboard.on_dsack(ack, right, self.send.next);
            if !of_probe {
                self.on_duplicate_reported(shared, left, right);
            }
        }
        dsack
    }

    /// Takes what arrived off the scoreboard.
    fn process_delivery(&mut self, now: Instant, shared: &mut Shared, ack: u64, repr: &Repr) -> Delivery {
        let mut delivery = Delivery::default();
        let min_rtt = self.rtt.min_nanos();
        let (echo, offset) = (repr.options.timestamps.filter(|_| self.timestamps), self.timestamp_offset);
        // RFC 8985 section 6.2 step 2: an echo older than the last transmission acknowledges an earlier copy.
        let echoed_before =
            |at: Instant| echo.is_some_and(|echo| is_before(echo.echo_reply, (at.millis() as u32).wrapping_add(offset)));
        if ack > self.send.unacknowledged {
            self.scoreboard.acknowledge(ack, now, min_rtt, &echoed_before, &mut delivery);
        }
        if self.sack {
            // In the order of the stream: the newest block comes first (RFC 2018 section 4), and what lies before it is no sign of reordering.
            let mut blocks = [(0, 0); SACK_BLOCKS_MAX];
            let reported = repr.options.sack.as_slice();
            for (position, block) in blocks.iter_mut().zip(reported) {
                *position = (self.ack_position(block.0), self.ack_position(block.1));
            }
            let blocks = &mut blocks[..reported.len()];
            blocks.sort_unstable();
            for (left, right) in blocks.iter().copied() {
                if left < right && left >= ack && right <= self.send.next {
                    self.scoreboard.sack(left, right, now, min_rtt, &mut delivery);
                } else if left >= right || right > self.send.next {
                    shared.counters.sack_discarded += 1;
                }
            }
        }
        delivery
    }

    /// RFC 6298 section 3 (Karn); RFC 7323 section 4.1 where only a timestamp can tell the copies apart.
    fn sample_rtt(&mut self, now: Instant, shared: &Shared, repr: &Repr, delivery: &Delivery) {
        let options = &shared.options;
        if let Some(rtt) = delivery.rtt.filter(|_| !delivery.retransmitted).or(delivery.apart) {
            self.rtt.sample(now, rtt, options.rto_min, options.rto_max);
        } else if let Some(echo) = repr.options.timestamps.filter(|_| self.timestamps && delivery.delivered > delivery.sacked) {
            let elapsed = self.timestamp(now).wrapping_sub(echo.echo_reply);
            // A peer that echoes nonsense must not make the timeout a day long.
            if echo.echo_reply != 0 && Duration::from_millis(u64::from(elapsed)) < options.rto_max {
                let rtt = Duration::from_millis(u64::from(elapsed)).max(Duration::from_micros(500));
                self.rtt.sample_ambiguous(now, rtt, options.rto_min, options.rto_max);
            }
        }
    }

    /// Tells how many bytes it took for lost.
    fn detect_losses(
        &mut self,
        now: Instant,
        shared: &mut Shared,
        acked: u64,
        delivery: &mut Delivery,
        duplicate: bool,
        flight: u64,
    ) -> u64 {
        let mss = u64::from(self.send.mss);
        let left = self.scoreboard.leave_recovery(self.send.unacknowledged);
        let mut losses = Losses::default();
        if self.sack {
            if delivery.delivered > 0 && self.scoreboard.may_have_losses(delivery) {
                losses = self.mark_losses(now, mss);
            }
        } else if acked > 0 {
            delivery.told = self.scoreboard.deflate_duplicate_acks(acked, mss);
            // RFC 6582 section 3.2 step 3: a partial ACK tells of the next hole.
            if matches!(self.scoreboard.phase(), Phase::Recovery { .. }) {
                losses = self.scoreboard.mark_first_lost(mss);
            }
        } else if duplicate && self.scoreboard.on_duplicate_ack(self.send.unacknowledged, self.send.next) {
            losses = self.scoreboard.mark_first_lost(mss);
        }
        // RFC 5681 section 4.3: losses in two windows are two signs of congestion, though those of the second were known before the first was
        // repaired.
        if left == Some(true) && losses.bytes == 0 {
            if self.scoreboard.is_empty() {
                self.congestion.on_loss(now, flight);
                self.note_reduction_apart();
            } else {
                self.begin_recovery(now, shared, 0, flight);
            }
        }
        self.on_losses(now, shared, &losses, flight);
        losses.bytes
    }

    /// RACK's step 5, with its timer.
    pub(super) fn mark_losses(&mut self, now: Instant, mss: u64) -> Losses {
        let losses = self.scoreboard.detect_losses(now, &self.rtt, mss);
        match losses.look_again {
            Some(after) => self.timers.arm(Timer::Reorder, now + after),
            None => self.timers.cancel(Timer::Reorder),
        }
        losses
    }

    /// The first loss of a window starts fast recovery (RFC 5681 section 3.2, RFC 6675 section 5). So does, after a timeout, that of a copy
    /// (RFC 5681 section 4.3): slow start would go on to where the window was in front of the first loss. In fast recovery the loss of a copy is
    /// left out, as in Linux: where one in ten is lost it would cost an eighth of the goodput, and the window is falling anyway.
    pub(super) fn on_losses(&mut self, now: Instant, shared: &mut Shared, losses: &Losses, flight: u64) {
        if losses.bytes == 0 {
            return;
        }
        shared.counters.lost_bytes += losses.bytes;
        self.wake = true;
        let begins = match self.scoreboard.phase() {
            Phase::Open => true,
            Phase::Recovery { .. } => false,
            Phase::Loss { .. } => losses.copies,
        };
        if begins {
            // RFC 5681 equation 4 asks for FlightSize when the loss is detected. Of the last segments of a reply little is left by then, of all
            // that filled the path when they were dropped.
            self.begin_recovery(now, shared, losses.bytes, flight.max(losses.flight));
        }
    }

    fn begin_recovery(&mut self, now: Instant, shared: &mut Shared, newly_lost: u64, flight: u64) {
        if self.sack {
            shared.counters.sack_recoveries += 1;
        } else {
            shared.counters.reno_recoveries += 1;
        }
        let copies = self.scoreboard.sent_again();
        self.scoreboard.enter_recovery(now, self.send.next, newly_lost, u64::from(self.send.mss));
        self.begin_repair(false, true, copies);
        self.note_reduction();
        self.congestion.on_loss(now, flight);
        self.timers.cancel(Timer::TailProbe);
    }

    /// How many bytes of an ACK may open the window outside of fast recovery. `repaired`: it came while losses were repaired.
    fn counted_for_growth(&self, delivery: &Delivery, repaired: bool) -> u64 {
        if delivery.delivered == delivery.sacked && !self.scoreboard.reordering_seen() {
            // RFC 5681 section 3.2 step 1: segments of which a duplicate ACK tells MUST NOT change cwnd; limited transmit sends for them what
            // it may. On a path that was seen to reorder they are no sign of a loss, and count (Linux: tcp_may_raise_cwnd).
            return 0;
        }
        if repaired && !self.sack {
            // RFC 5681 section 3.1, RFC 3465 section 2.3: one segment for an ACK after a timeout. Most of what it covers may have arrived
            // before, which only SACK would have told; and what duplicate ACKs told of has been counted.
            return delivery.delivered.min(u64::from(self.send.mss));
        }
        delivery.delivered
    }

    /// `counted` bytes may open the window. `safe`: SND.UNA moved and nothing more was lost (RFC 9937, SafeACK).
    fn adjust_window(&mut self, now: Instant, repr: &Repr, ack: u64, delivery: &Delivery, counted: u64, safe: bool) {
        let mss = u64::from(self.send.mss);
        if let Phase::Recovery { .. } = self.scoreboard.phase() {
            // RFC 6937 section 2, DeliveredData: a duplicate ACK of a peer without SACK stands for a segment that arrived, and what it stood for is not
            // delivered once more when it is acknowledged.
            let delivered =
                if self.sack { delivery.delivered } else { delivery.delivered.saturating_sub(delivery.told).max(mss) };
            self.scoreboard.reduce_proportionally(delivered, self.congestion.window(), mss, safe);
        } else if delivery.delivered > 0 && ack > SEQUENCE_ORIGIN + 1 {
            self.congestion.on_ack(&AckSample {
                now,
                acked: counted,
                acks: 1,
                // Not while what was sent before an echo's reduction is under way.
                window_limited: self.send.window_limited && !self.ecn.is_reducing(ack),
                smoothed_rtt: self.rtt.smoothed().unwrap_or_default(),
                rtt: delivery.rtt.filter(|_| !delivery.retransmitted).map(Duration::from_nanos),
                acknowledged: self.send.unacknowledged,
                next: self.send.next,
                marked: repr.flags.contains(Flags::ECE),
            });
        }
    }

    /// RFC 6298 sections 5.2 and 5.3; RFC 8985 section 7.2.
    pub(super) fn restart_retransmission_timers(&mut self, now: Instant, advanced: bool) {
        if self.scoreboard.is_empty() {
            self.timers.cancel(Timer::Retransmit);
            self.timers.cancel(Timer::TailProbe);
            self.timers.cancel(Timer::Reorder);
            return;
        }
        if advanced {
            self.timers.arm(Timer::Retransmit, self.rtt.deadline(now));
        }
        self.arm_tail_probe(now);
    }

    /// `Writable` once the queue falls below half, or fits what was refused.
    pub(super) fn report_room(&mut self, shared: &mut Shared, queued_before: usize) {
        let half = shared.options.send_queue_bytes_max / 2;
        let queued = self.send.queue.len();
        let fell = queued_before > half && queued <= half;
        let refused = self.send.refused as usize;
        let fits = refused > 0 && (queued == 0 || queued + refused <= shared.options.send_queue_bytes_max);
        if fell || fits {
            self.send.refused = 0;
            if !std::mem::replace(&mut self.writable_pending, true) {
                shared.events.push_back(Event::Writable(self.id));
            }
        }
    }
}
