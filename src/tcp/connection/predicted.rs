//! Header prediction: the segment that an undisturbed connection expects next, in few steps.
//!
//! Read first: Van Jacobson, "4BSD TCP Header Prediction" (ACM CCR 20(2), 1990); RFC 9293 section 3.10.7.4, whose steps this
//! stands for; RFC 7323 section 5.3. `predict` holds where each step that is left out has nothing to decide. Whatever is
//! unusual goes through the steps of `segment`, and both must come to the same: nothing is decided here alone. What is predicted
//! starts a `train`, which what follows in the same burst may join.

use super::train::{Departure, Header, Room, Train, word_of};
use std::net::IpAddr;

use super::*;
use crate::buf::RxPacket;
use crate::tcp::congestion::AckSample;

impl Connection {
    /// The train that a segment starts which is what the connection expects: an ACK of something new, the next text, or both.
    #[inline]
    pub fn predict(&self, now: Instant, shared: &Shared, header: &Header) -> Option<Train> {
        #[cfg(test)]
        if !shared.prediction {
            return None;
        }
        let receive = &self.receive;
        // First to fourth and sixth step: at RCV.NXT, no SYN, FIN, RST or URG; and no marks of congestion to be echoed.
        if self.state != State::Established
            || !header.is_plain_ack()
            || header.seq() != self.peer_seq_at(receive.next)
            || receive.fin_at != NO_FIN
            || self.ecn.on
        {
            return None;
        }
        // Fifth step: the window did not change, nothing is being repaired. RFC 7323 section 3.2: timestamps once agreed on.
        if u64::from(header.window()) << self.send.scale != self.send.window
            || !self.scoreboard.is_undisturbed()
            || self.send.repair.awaits_echo()
            || self.is_probing_mtu()
            || header.has_timestamps != self.timestamps
        {
            return None;
        }
        // Text ahead of its turn may have brought a newer window (RFC 9293 section 3.10.7.4, SND.WL1).
        if receive.next < self.send.window_seq {
            return None;
        }
        let train = Train::new(
            Departure {
                now,
                src: self.tuple.remote_ip,
                dst: self.tuple.local_ip,
                ipv4: match (self.tuple.remote_ip, self.tuple.local_ip) {
                    (IpAddr::V4(src), IpAddr::V4(dst)) => Some(word_of(src, dst)),
                    _ => None,
                },
                una: self.seq_at(self.send.unacknowledged),
                nxt: self.seq_at(self.send.next),
                has_timestamps: header.has_timestamps,
                ts_recent: if self.timestamps { receive.ts_recent } else { 0 },
                remembers: self.timestamps && receive.next <= receive.acknowledged,
                room: self.room(shared, header.text as u64),
            },
            header,
        );
        train.has_room_for(header).then_some(train)
    }

    /// What text at RCV.NXT can be appended as it is: in the window, no hole to be closed, and no limit of the copy-out rule (see
    /// `admit`) near; behind a segment of `len` bytes none that would change the peer's MSS as we see it.
    #[inline]
    fn room(&self, shared: &Shared, len: u64) -> Room {
        let receive = &self.receive;
        let Options { driver_buffers_unshared, copy_out_below_bytes, .. } = shared.options;
        let mss_max = u64::from(receive.mss_max);
        let mss = u64::from(receive.mss).max(len.min(mss_max));
        let orderly = receive.reassembly.is_empty();
        Room {
            text: if orderly { receive.edge.saturating_sub(receive.next) } else { 0 },
            segment: if mss < mss_max { mss.max(len) } else { u64::MAX },
            buffers: shared.receive_buffers_loose.saturating_sub(receive.chain.buffers()).min(shared.driver_buffers_left()),
            small_buffers: driver_buffers_unshared.saturating_sub(self.driver_buffers()),
            small_below: copy_out_below_bytes,
        }
    }

    /// Text of a train's segment, one octet at least: in the stream at once.
    #[inline]
    pub fn take_text(&mut self, payload: RxPacket) {
        if payload.more.is_empty() {
            self.take_text_of_one(payload.first);
        } else {
            for buf in payload.into_bufs() {
                self.take_in(buf);
            }
        }
    }

    /// The same of a segment in one buffer. A call of its own: inlined into its callers, it is the deque that is called instead.
    #[inline(never)]
    pub fn take_text_of_one(&mut self, text: RxBuf) {
        debug_assert!(!text.is_empty());
        self.take_in(text);
    }

    /// What the segments of a train come to, apart from their text.
    pub fn handle_train(&mut self, shared: &mut Shared, train: &Train) {
        let now = train.now();
        self.statistics.segments_in += u64::from(train.segments);
        self.statistics.text_segments_in += u64::from(train.text_segments);
        let ack = self.ack_position(train.ack);
        let receive = &mut self.receive;
        if train.from.remembers {
            (receive.ts_recent, receive.ts_recent_at) = (train.from.ts_recent, now);
        }
        (self.send.window_seq, self.send.window_ack) = (receive.next - train.last_len, ack);
        if ack > self.send.unacknowledged {
            self.accept_acks_in_order(now, shared, ack, train.acks);
        } else if self.send.window == 0 || self.scoreboard.is_empty() {
            if self.send.retries > 0 && self.send.window == 0 {
                self.await_next_try(now);
            }
            (self.send.stalled_since, self.send.retries) = (now, 0);
        }
        self.receive.last_heard_at = now;
        self.restart_keepalive(now, shared);
        if train.text > 0 {
            self.observe_mss(train.longest);
            self.on_text(now, shared, train.text, train.shortest, train.push, false);
        }
    }

    /// `process_acknowledgement` for so many ACKs of new data on an undisturbed scoreboard, the last of them `ack`.
    fn accept_acks_in_order(&mut self, now: Instant, shared: &mut Shared, ack: u64, acks: u32) {
        let queued_before = self.send.queue.len();
        let delivery = self.scoreboard.acknowledge_in_order(ack, now);
        self.send.unacknowledged = ack;
        self.send.queue.acknowledge(ack);
        (self.send.stalled_since, self.send.retries) = (now, 0);
        let mut rtt = delivery.rtt;
        if let Some(oldest) = rtt {
            self.rtt.sample(now, oldest, shared.options.rto_min, shared.options.rto_max);
        }
        if acks > 1 {
            // Each of them was a sample: the shortest tells of the path, the longest of how long to wait.
            let newest = self.scoreboard.newest_rtt();
            self.rtt.observe(now, newest);
            rtt = Some(newest);
        }
        self.congestion.on_ack(&AckSample {
            now,
            acked: delivery.delivered,
            acks,
            window_limited: self.send.window_limited,
            smoothed_rtt: self.rtt.smoothed().unwrap_or_default(),
            rtt: rtt.map(Duration::from_nanos),
            acknowledged: ack,
            next: self.send.next,
            marked: false,
        });
        self.restart_retransmission_timers(now, true);
        self.report_room(shared, queued_before);
        self.wake |= self.has_something_to_send();
    }
}
