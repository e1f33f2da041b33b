//! The ways a connection ends, and what ICMP may do to it.
//!
//! Read first: RFC 9293 sections 3.6, 3.10.4, 3.10.5 and 3.10.7.4 (eighth step); RFC 6191; RFC 5927.

use super::segment::{Segment, is_before};
use super::timers::Timer;
use super::*;
use crate::tcp::endpoint::IcmpError;

impl Connection {
    /// RFC 9293 section 3.10.4. Ours half: the FIN follows what is queued.
    pub fn close(&mut self, now: Instant, shared: &mut Shared) {
        match self.state {
            State::SynSent => return self.finish(shared, Reason::Aborted),
            State::SynReceived => {}
            State::Established => self.set_state(shared, State::FinWait1),
            State::CloseWait => self.set_state(shared, State::LastAck),
            _ => return,
        }
        self.send.fin = true;
        self.send.stalled_since = now;
        self.wake = true;
    }

    /// RFC 1122 section 4.2.2.13, the half-duplex close: what is unread is gone, and the peer is to know it.
    pub fn close_both(&mut self, now: Instant, shared: &mut Shared) {
        self.receive.refuses_text = true;
        self.receive.text_lost |= !self.receive.chain.is_empty() || !self.receive.reassembly.is_empty();
        self.receive.chain = RxChain::new();
        self.receive.chain_driver_buffers = 0;
        self.receive.reassembly.clear();
        self.close(now, shared);
        if self.state == State::FinWait2 {
            self.limit_fin_wait_2(now, shared);
        }
        self.reset_if_text_was_lost(shared);
    }

    /// Half-closed, a connection may last as long as the peer has something to say (RFC 9293 section 3.6, case 1: "CLOSE means "I have no
    /// more data to send"", and the caller goes on receiving). Once nobody would read it, it may not: the peer would decide how long
    /// it has a place in our tables (Linux: tcp_fin_timeout, of orphaned sockets only). Nothing it sends prolongs that.
    fn limit_fin_wait_2(&mut self, now: Instant, shared: &Shared) {
        if self.receive.refuses_text && !self.timers.is_armed(Timer::Life) {
            self.timers.arm(Timer::Life, now + shared.options.fin_wait_2_timeout);
        }
    }

    /// Nobody here waits for anything but its end, which is up to the peer (Linux: an orphaned socket).
    pub fn is_orphan(&self) -> bool {
        let open = !matches!(self.state, State::TimeWait | State::Closed);
        self.receive.refuses_text && open
    }

    /// Text for an application that reads no more (RFC 9293 section 3.6.1, SHLD-3). It is not taken, so never acknowledged; the
    /// reset waits until the peer has everything of ours, which it would throw away.
    pub(super) fn refuse_text(&mut self, shared: &mut Shared, segment: &Segment) {
        if segment.text() + segment.payload_len > self.receive.next {
            self.receive.text_lost = true;
            self.reset_if_text_was_lost(shared);
        }
        if self.state != State::Closed {
            self.acknowledge_now();
        }
    }

    /// Once the peer has everything of ours: behind our FIN in FIN-WAIT-2, in its place where the peer has closed first and nothing of ours is
    /// on its way. (If something is, the FIN goes with it, and that peer does not hear of the loss.)
    fn reset_if_text_was_lost(&mut self, shared: &mut Shared) {
        let told_all = self.send.unacknowledged == self.send.queue.end() && !self.fin_sent();
        let is_time = self.state == State::FinWait2 || (self.state == State::LastAck && told_all);
        if self.receive.text_lost && is_time {
            shared.counters.abort_on_data += 1;
            self.reset(shared);
        }
    }

    /// RFC 9293 section 3.10.5.
    pub fn abort(&mut self, now: Instant, shared: &mut Shared) {
        if matches!(self.state, State::Closed | State::TimeWait) {
            return;
        }
        // In CLOSING and LAST-ACK, all sent: "respond "ok" and delete the TCB". The peer still hears of text of its own that nobody has read (RFC
        // 1122 section 4.2.2.13).
        let unread = self.receive.text_lost || !self.receive.chain.is_empty();
        let told = matches!(self.state, State::Closing | State::LastAck) && self.fin_sent() && !unread;
        match self.state {
            // Nothing the peer would know.
            State::SynSent => {}
            _ if told => self.tell_what_is_owed(now, shared),
            _ => return self.reset(shared),
        }
        self.finish(shared, Reason::Aborted);
    }

    /// Ends it and tells the peer, for whatever that still says would meet nobody.
    pub fn reset(&mut self, shared: &mut Shared) {
        if self.state == State::Closed {
            return;
        }
        self.tell_reset(shared);
        self.finish(shared, Reason::Aborted);
    }

    /// The ACK of what has come last, if it has not left: without it the peer says that again, and would be answered with a reset.
    fn tell_what_is_owed(&mut self, now: Instant, shared: &mut Shared) {
        if self.receive.ack != Ack::Now {
            return;
        }
        let mut repr = self.header(shared, self.send.next, Flags::ACK);
        repr.options.timestamps = self.timestamps.then(|| self.timestamps_option(now));
        if self.ecn.on {
            self.echo_marks(&mut repr);
        }
        shared.counters.pure_acks += 1;
        shared.reply_for_connection(&self.tuple, repr);
    }

    pub(super) fn tell_reset(&self, shared: &mut Shared) {
        let repr = Repr {
            src_port: self.tuple.local_port,
            dst_port: self.tuple.remote_port,
            seq: self.seq_at(self.send.next),
            ack: self.peer_seq_at(self.receive.next),
            flags: Flags::RST | Flags::ACK,
            ..Repr::default()
        };
        shared.reply_for_connection(&self.tuple, repr);
    }

    /// Fifth step, the state's part: our FIN was acknowledged.
    pub(super) fn after_fin_acknowledged(&mut self, now: Instant, shared: &mut Shared) {
        if !(self.send.fin && self.fin_sent() && self.send.unacknowledged == self.send.next) {
            return;
        }
        match self.state {
            State::FinWait1 => {
                self.set_state(shared, State::FinWait2);
                self.limit_fin_wait_2(now, shared);
                self.reset_if_text_was_lost(shared);
            }
            State::Closing => self.enter_time_wait(now, shared),
            State::LastAck => self.finish(shared, Reason::Finished),
            _ => {}
        }
    }

    /// Eighth: the FIN bit. It counts when everything before it is there. One before its turn that lies below text that
    /// has come is not remembered: the stream would run past it, and never meet it. If it is right it comes again, in its turn.
    pub(super) fn process_fin(&mut self, now: Instant, shared: &mut Shared, segment: &Segment) {
        if segment.has(Flags::FIN) && self.state != State::Closed {
            let at = segment.text() + segment.payload_len;
            if self.state == State::TimeWait {
                // "Restart the 2 MSL time-wait timeout."
                self.timers.arm(Timer::Life, now + shared.options.time_wait);
                self.acknowledge_now();
                return;
            }
            let ahead = at > self.receive.next && at <= self.receive.edge && at >= self.receive.reassembly.end();
            if at == self.receive.next || (ahead && self.receive.fin_at == NO_FIN) {
                self.receive.fin_at = at;
            }
            self.acknowledge_now();
        }
        if self.receive.fin_at != self.receive.next {
            return;
        }
        // Text behind the FIN is not the peer's (Linux: tcp_fin drops it as well).
        self.receive.reassembly.clear();
        self.receive.next += 1;
        self.receive.edge = self.receive.edge.max(self.receive.next);
        self.acknowledge_now();
        match self.state {
            State::SynReceived | State::Established => self.set_state(shared, State::CloseWait),
            // Our FIN is not acknowledged yet: a simultaneous close (section 3.6, figure 13).
            State::FinWait1 => self.set_state(shared, State::Closing),
            State::FinWait2 => {
                shared.events.push_back(Event::PeerClosed(self.id));
                return self.enter_time_wait(now, shared);
            }
            _ => return,
        }
        shared.events.push_back(Event::PeerClosed(self.id));
    }

    fn enter_time_wait(&mut self, now: Instant, shared: &mut Shared) {
        self.set_state(shared, State::TimeWait);
        self.timers = Timers::default();
        self.timers.arm(Timer::Life, now + shared.options.time_wait);
        self.entered_time_wait = true;
        if self.is_silent() {
            self.give_spare_back();
        }
        self.report_closed(shared, Reason::Finished);
    }

    /// Its place is needed for another handshake. Nobody is told: it may have been forged.
    pub fn give_up_half_open(&mut self, shared: &mut Shared) {
        shared.counters.attempt_fails += 1;
        self.finish(shared, Reason::TimedOut);
    }

    /// Where the numbers of a connection that takes its place have to begin: above all of this one's (RFC 9293 section 3.6.1, MAY-2; Linux:
    /// tcp_tw_isn), and of what may be in flight.
    pub fn successor_iss(&self) -> SeqNumber {
        self.seq_at(self.send.next) + (u32::from(u16::MAX) + 2)
    }

    /// TIME-WAIT ends early, for its place is needed.
    pub fn give_up_time_wait(&mut self, shared: &mut Shared) {
        // That came when something was heard last.
        self.tell_what_is_owed(self.receive.last_heard_at, shared);
        self.leave_time_wait(shared);
    }

    /// TIME-WAIT is over.
    pub fn leave_time_wait(&mut self, shared: &mut Shared) {
        self.finish(shared, Reason::Finished);
    }

    /// RFC 9293 section 3.10.7.4 (fourth step, TIME-WAIT) and RFC 6191 section 2: a SYN that cannot be an old duplicate.
    /// `timestamps`: they would be agreed on with the SYN's peer.
    pub fn may_be_replaced_by(&self, syn: &Repr, timestamps: bool) -> bool {
        let has = |flag| syn.flags.contains(flag);
        // A SYN with a FIN opens nothing.
        let opens = has(Flags::SYN) && !has(Flags::ACK) && !has(Flags::RST) && !has(Flags::FIN);
        if self.state != State::TimeWait || !opens {
            return false;
        }
        match syn.options.timestamps.filter(|_| timestamps) {
            // RFC 6191 section 2: the numbers of a connection without timestamps are told apart by having them.
            Some(_) if !self.timestamps => true,
            Some(timestamps) if timestamps.value != self.receive.ts_recent => is_before(self.receive.ts_recent, timestamps.value),
            _ => self.peer_position(syn.seq) > self.receive.next,
        }
    }

    /// RFC 5927 section 4: only errors about data in flight count; section 5: none resets a synchronized connection.
    pub fn handle_icmp(&mut self, now: Instant, shared: &mut Shared, seq: SeqNumber, error: IcmpError) {
        let position = self.ack_position(seq);
        if position < self.send.unacknowledged || position >= self.send.next {
            shared.counters.icmp_ignored += 1;
            return;
        }
        match error {
            IcmpError::Unreachable if !self.is_synchronized() => {
                shared.counters.attempt_fails += 1;
                self.finish(shared, Reason::Unreachable);
            }
            IcmpError::Unreachable | IcmpError::Transient => {}
            IcmpError::PacketTooBig { mtu } => {
                self.on_packet_too_big(now, shared, position, mtu);
            }
        }
    }
}
