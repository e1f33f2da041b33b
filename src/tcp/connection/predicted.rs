//! Header prediction: the segment that an undisturbed connection expects next, in few steps.
//!
//! Read first: Van Jacobson, "4BSD TCP Header Prediction" (ACM CCR 20(2), 1990); RFC 9293 section 3.10.7.4, whose steps this
//! stands for; RFC 7323 section 5.3. `predicts` holds where each step that is left out has nothing to decide. Whatever is
//! unusual goes through the steps of `segment`, and both must come to the same: nothing is decided here alone.

use super::*;
use crate::buf::RxPacket;

/// A segment that was predicted.
pub(super) struct Predicted {
    /// Where SEG.ACK lies: from SND.UNA to SND.NXT.
    ack: u64,
    /// TSval, where timestamps were agreed on.
    timestamp: Option<u32>,
    push: bool,
    payload_len: usize,
}

impl Connection {
    /// Whether the segment is what the connection expects: an ACK of something new, the next text, or both.
    pub(super) fn predict(&self, shared: &Shared, repr: &Repr, payload: &RxPacket) -> Option<Predicted> {
        #[cfg(test)]
        if !shared.prediction {
            return None;
        }
        let receive = &self.receive;
        // First to fourth and sixth step: at RCV.NXT, no SYN, FIN, RST or URG; and no marks of congestion to be echoed.
        let expected = self.state == State::Established
            && repr.flags.0 & !Flags::PSH.0 == Flags::ACK.0
            && repr.seq == self.peer_seq_at(receive.next)
            && receive.fin_at.is_none()
            && !self.ecn.on;
        // Fifth step: the window did not change, nothing is being repaired.
        let undisturbed = u64::from(repr.window) << self.send.scale == self.send.window
            && repr.options.sack.is_empty()
            && self.scoreboard.is_undisturbed()
            && !self.send.repair.awaits_echo()
            && !self.is_probing_mtu();
        if !expected || !undisturbed {
            return None;
        }
        let ack = self.ack_position(repr.ack);
        if ack < self.send.unacknowledged || ack > self.send.next {
            return None;
        }
        // Text ahead of its turn may have brought a newer window (RFC 9293 section 3.10.7.4, SND.WL1 and SND.WL2).
        if (receive.next, ack) < (self.send.window_seq, self.send.window_ack) {
            return None;
        }
        let timestamp = match (self.timestamps, repr.options.timestamps) {
            (false, _) => None,
            // RFC 7323 section 5.3, R1 (PAWS).
            (true, Some(timestamps)) if !segment::is_before(timestamps.value, receive.ts_recent) => Some(timestamps.value),
            (true, _) => return None,
        };
        let payload_len = payload.len();
        let fits = match payload_len {
            // Without text or news it is a duplicate, a probe, or says something about the window.
            0 => ack > self.send.unacknowledged,
            _ => self.takes_directly(shared, payload, payload_len),
        };
        let push = repr.flags.contains(Flags::PSH);
        fits.then_some(Predicted { ack, timestamp, push, payload_len })
    }

    /// Whether text at RCV.NXT can be appended as it is: in the window, no hole to be closed, and no limit of the copy-out rule
    /// (see `admit`) near.
    fn takes_directly(&self, shared: &Shared, payload: &RxPacket, len: usize) -> bool {
        let receive = &self.receive;
        let buffers = 1 + payload.more.len();
        let small = len < buffers * shared.options.copy_out_below_bytes;
        receive.next + len as u64 <= receive.edge
            && receive.reassembly.is_empty()
            && receive.chain.buffers() + buffers <= shared.options.receive_buffers_max
            && shared.has_driver_buffers(buffers)
            && !(small && self.driver_buffers() >= shared.options.driver_buffers_unshared)
    }

    pub(super) fn handle_predicted(
        &mut self,
        now: Instant,
        shared: &mut Shared,
        repr: &Repr,
        predicted: &Predicted,
        payload: RxPacket,
    ) {
        let receive = &mut self.receive;
        if let Some(value) = predicted.timestamp
            && receive.next <= receive.acknowledged
        {
            // RFC 7323 section 4.3 (2).
            (receive.ts_recent, receive.ts_recent_at) = (value, now);
        }
        receive.last_sign_of_life = now;
        (self.send.window_seq, self.send.window_ack) = (receive.next, predicted.ack);
        if predicted.ack > self.send.unacknowledged {
            self.accept_ack_in_order(now, shared, repr, predicted.ack);
        } else if self.send.window == 0 || self.scoreboard.is_empty() {
            (self.send.stalled_since, self.send.retries) = (now, 0);
        }
        self.restart_keepalive(now, shared);
        if predicted.payload_len > 0 {
            let len = predicted.payload_len as u64;
            self.observe_mss(len);
            for buf in payload.into_bufs() {
                self.take_in(buf);
            }
            self.on_text(now, shared, len, len, predicted.push, false);
        }
    }

    /// `process_acknowledgement` for an ACK of new data on an undisturbed scoreboard.
    fn accept_ack_in_order(&mut self, now: Instant, shared: &mut Shared, repr: &Repr, ack: u64) {
        let mss = u64::from(self.send.mss);
        let queued_before = self.send.queue.len();
        let delivery = self.scoreboard.acknowledge_in_order(ack, now);
        self.send.unacknowledged = ack;
        self.send.queue.acknowledge(ack);
        (self.send.stalled_since, self.send.retries) = (now, 0);
        self.rtt.end_backoff();
        if let Some(rtt) = delivery.rtt {
            self.rtt.sample(now, rtt, shared.options.rto_min, shared.options.rto_max);
        }
        self.adjust_window(now, repr, ack, &delivery, mss);
        self.restart_retransmission_timers(now, shared, true);
        self.report_room(shared, queued_before);
        self.wake |= self.has_something_to_send();
    }
}
