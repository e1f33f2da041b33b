//! The timers of a connection and what each does when it fires.
//!
//! Read first: RFC 6298 section 5, RFC 8985 sections 6.3 and 7.3, RFC 9293 sections 3.8.3, 3.8.4 and 3.8.6.1.

use super::handshake::millis;
use super::*;
use crate::tcp::recovery::Phase;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Timer {
    /// RFC 6298.
    Retransmit,
    /// RFC 8985 section 7.
    TailProbe,
    /// RFC 8985 section 6.2 step 5.
    Reorder,
    /// RFC 9293 section 3.8.6.1, and the override of section 3.8.6.2.1.
    Persist,
    /// RFC 9293 section 3.8.6.3.
    Ack,
    /// RFC 9293 section 3.8.4.
    Keepalive,
    /// FIN-WAIT-2's limit, and TIME-WAIT.
    Life,
    /// More new data may go.
    Pace,
}

/// In the order in which they fire: a tail probe that is due takes the place of the timeout (RFC 8985 section 7.3).
const TIMERS: [Timer; 8] =
    [Timer::TailProbe, Timer::Retransmit, Timer::Reorder, Timer::Persist, Timer::Ack, Timer::Keepalive, Timer::Life, Timer::Pace];

/// Silence after which a connection gives back the memory that is kept from one call to the next.
const REST_AFTER: u64 = 10_000_000_000;

/// A deadline each, and one that none is before: exact after `handle_timeout`, and left where it is when a timer is put off.
pub(super) struct Timers {
    deadlines: [Instant; TIMERS.len()],
    soonest: Instant,
}

impl Default for Timers {
    fn default() -> Timers {
        Timers { deadlines: [Instant::FAR_FUTURE; TIMERS.len()], soonest: Instant::FAR_FUTURE }
    }
}

impl Timers {
    #[inline]
    pub fn arm(&mut self, timer: Timer, deadline: Instant) {
        self.deadlines[timer as usize] = deadline;
        self.soonest = self.soonest.min(deadline);
    }

    pub fn arm_earlier(&mut self, timer: Timer, deadline: Instant) {
        self.arm(timer, self.deadlines[timer as usize].min(deadline));
    }

    #[inline]
    pub fn cancel(&mut self, timer: Timer) {
        self.deadlines[timer as usize] = Instant::FAR_FUTURE;
    }

    #[inline]
    pub fn is_armed(&self, timer: Timer) -> bool {
        self.deadlines[timer as usize] != Instant::FAR_FUTURE
    }

    fn deadline(&self, timer: Timer) -> Instant {
        self.deadlines[timer as usize]
    }

    /// The next of those that `ss -o` calls on, persist, keepalive and timewait, with the tail probe and RACK's as reorder; `Life` is
    /// FIN-WAIT-2's limit as well.
    pub fn next_of_repair(&self) -> Option<(&'static str, Instant)> {
        let named = [
            (Timer::Retransmit, "on"),
            (Timer::TailProbe, "probe"),
            (Timer::Reorder, "reorder"),
            (Timer::Persist, "persist"),
            (Timer::Keepalive, "keepalive"),
            (Timer::Life, "timewait"),
        ];
        let armed = named.iter().filter(|(timer, _)| self.is_armed(*timer));
        armed.map(|(timer, name)| (*name, self.deadline(*timer))).min_by_key(|(_, at)| *at)
    }

    fn find_soonest(&mut self) {
        self.soonest = self.deadlines.iter().copied().min().unwrap_or(Instant::FAR_FUTURE);
    }

    /// Whether the timer is due; it is disarmed then.
    fn expired(&mut self, timer: Timer, now: Instant) -> bool {
        let due = self.deadlines[timer as usize] <= now;
        if due {
            self.cancel(timer);
        }
        due
    }
}

impl Connection {
    /// No timer is due before; none may be.
    #[inline]
    pub fn next_deadline(&self) -> Instant {
        self.timers.soonest
    }

    pub fn handle_timeout(&mut self, now: Instant, shared: &mut Shared) {
        for timer in TIMERS {
            if self.state != State::Closed && self.timers.expired(timer, now) {
                match timer {
                    Timer::Retransmit => self.on_retransmit_timeout(now, shared),
                    Timer::TailProbe => self.on_tail_probe_timeout(now),
                    Timer::Reorder => self.on_reorder_timeout(now, shared),
                    Timer::Persist => self.on_persist_timeout(now, shared),
                    Timer::Ack => self.on_ack_timeout(shared),
                    Timer::Keepalive => self.on_keepalive_timeout(now, shared),
                    Timer::Life => self.on_life_timeout(shared),
                    Timer::Pace => self.wake = true,
                }
            }
        }
        self.timers.find_soonest();
        self.rest(now);
    }

    /// Nothing is to be repaired, sent or read.
    pub(super) fn is_silent(&self) -> bool {
        let ReceiveState { chain, reassembly, .. } = &self.receive;
        self.scoreboard.is_empty() && self.send.queue.len() == 0 && chain.is_empty() && reassembly.is_empty()
    }

    pub(crate) fn has_spare(&self) -> bool {
        let queues = self.send.queue.has_spare() || self.receive.chain.has_spare();
        queues || self.scoreboard.has_spare() || self.congestion.has_spare()
    }

    /// Memory that a call has left is kept for the next one, and given back once none has come for `REST_AFTER`. Whatever takes such memory
    /// has a timer fire soon after, which leads here; from then on this looks again by itself.
    fn rest(&mut self, now: Instant) {
        if !self.has_spare() {
            return;
        }
        let due = self.send.last_sent_at.max(self.receive.last_received_at).after_nanos(REST_AFTER);
        if now >= due && self.is_silent() {
            self.give_spare_back();
        } else {
            self.timers.soonest = self.timers.soonest.min(if now < due { due } else { now.after_nanos(REST_AFTER) });
        }
    }

    pub(super) fn give_spare_back(&mut self) {
        self.scoreboard.rest();
        self.send.queue.rest();
        self.send.repair = Repair::new();
        self.receive.chain = RxChain::new();
        self.congestion.rest();
    }

    /// What is wrong with the timers, seen when everything that could leave has left.
    #[cfg(test)]
    pub fn timer_fault(&self) -> Option<&'static str> {
        let timers = &self.timers;
        let waits = self.send.next < self.send.queue.end() && self.is_synchronized();
        let open = self.state != State::Closed;
        if timers.deadlines.iter().any(|deadline| *deadline < timers.soonest) {
            return Some("a deadline is before the soonest");
        }
        if timers.soonest < self.armed && open {
            return Some("the wheel is armed too late");
        }
        if open && !self.scoreboard.is_empty() && !timers.is_armed(Timer::Retransmit) {
            return Some("something is in flight and nothing will send it again");
        }
        let asks = timers.is_armed(Timer::Persist) || timers.is_armed(Timer::Pace);
        if open && self.scoreboard.is_empty() && waits && !asks {
            return Some("text waits, nothing is in flight and nothing will ask for a window");
        }
        if open && self.receive.ack == Ack::Delayed && !timers.is_armed(Timer::Ack) {
            return Some("an ACK waits for ever");
        }
        None
    }

    /// A bug for the tests of `timer_fault`.
    #[cfg(test)]
    pub fn forget_timers(&mut self) {
        for timer in [Timer::Retransmit, Timer::TailProbe, Timer::Ack, Timer::Persist] {
            self.timers.cancel(timer);
        }
    }

    /// RFC 6298 sections 5.4 to 5.7.
    fn on_retransmit_timeout(&mut self, now: Instant, shared: &mut Shared) {
        if self.scoreboard.is_empty() {
            return;
        }
        // A retransmission that meets a closed window is a probe of it. (A SYN's window is not known yet.)
        let answered = self.is_synchronized() && self.send.retries == 0 && self.send.window == 0;
        if !answered && self.has_given_up(now, shared) {
            shared.counters.abort_on_timeout += 1;
            return self.give_up(shared);
        }
        shared.counters.rto_timeouts += 1;
        let mss = u64::from(self.send.mss);
        self.send.timed_out = true;
        // RFC 5681 section 3.1 (equation 4): each segment's first timeout is a loss of its own, also while an earlier one is repaired, and no
        // other is, whatever the peer answers meanwhile.
        let first = !self.scoreboard.has_timed_out();
        let open = !self.scoreboard.in_recovery();
        let flight = (self.send.next - self.send.unacknowledged).max(self.scoreboard.first_flight());
        if answered {
            self.count_try(now);
        } else {
            self.send.retries = self.send.retries.saturating_add(1);
        }
        let copies = self.scoreboard.sent_again();
        self.scoreboard.on_timeout(now, self.send.next, &self.rtt, mss, self.sack);
        // The loss window is filled by what goes again now, whatever is left in flight beside it.
        self.send.window_limited |= self.scoreboard.young() > 0;
        if self.is_synchronized() {
            self.congestion.on_timeout(now, flight, first);
        }
        if first {
            self.begin_repair(true, open, copies);
            self.ecn.note_timeout(self.send.unacknowledged, self.send.next);
        } else {
            self.continue_repair();
        }
        self.observe_mtu_probe(now, shared);
        self.suspect_black_hole(now, shared);
        self.rtt.back_off(shared.options.rto_max);
        self.timers.cancel(Timer::TailProbe);
        self.timers.cancel(Timer::Reorder);
        self.timers.arm(Timer::Retransmit, self.retransmit_deadline(now));
        self.send.tail_probe_due = false;
        self.wake = true;
    }

    /// When the timer expires that is started now, behind something that was sent again.
    pub(super) fn retransmit_deadline(&self, now: Instant) -> Instant {
        self.not_after_user_timeout(now, self.rtt.deadline(now))
    }

    /// RFC 9293 section 3.10.8 (Linux: tcp_clamp_rto_to_user_timeout): backed off, a timer does not pass the user timeout by; but what has left
    /// now has as long to be answered as without backoff. A handshake has limits of its own.
    #[cold]
    pub(super) fn not_after_user_timeout(&self, now: Instant, deadline: Instant) -> Instant {
        if self.send.retries == 0 || !self.is_synchronized() {
            return deadline;
        }
        deadline.min(self.given_up_at(now))
    }

    /// When what left at `sent_at` has gone unanswered for too long.
    fn given_up_at(&self, sent_at: Instant) -> Instant {
        self.user_timeout_at().max(self.rtt.first_deadline(sent_at))
    }

    /// A closed window has answered what was sent again, or its probe: the next is due after the whole backoff (Linux: tcp_ack_probe), not when the
    /// user timeout would have been over.
    #[cold]
    pub(super) fn await_next_try(&mut self, now: Instant) {
        for timer in [Timer::Retransmit, Timer::Persist] {
            if self.timers.is_armed(timer) {
                self.timers.arm(timer, self.rtt.deadline(now));
            }
        }
    }

    fn user_timeout_at(&self) -> Instant {
        self.send.stalled_since + Duration::from_millis(u64::from(self.user_timeout))
    }

    /// Of what has gone unacknowledged already, too.
    pub fn set_user_timeout(&mut self, now: Instant, timeout: Duration) {
        self.user_timeout = millis(timeout);
        for timer in [Timer::Retransmit, Timer::Persist] {
            if self.timers.is_armed(timer) && self.send.retries > 0 && self.is_synchronized() {
                self.timers.arm_earlier(timer, self.given_up_at(now));
            }
        }
    }

    /// RFC 9293 section 3.8.3: R2, and the handshake's own limits.
    fn has_given_up(&self, now: Instant, shared: &Shared) -> bool {
        let options = &shared.options;
        match self.state {
            State::SynSent => self.send.retries >= options.syn_retries_max,
            State::SynReceived => self.send.retries >= options.syn_ack_retries_max,
            // Retransmissions, not only time: a timer that is as late as that has asked the peer nothing yet (Linux: retransmits_timed_out).
            _ => self.send.retries > 0 && now >= self.user_timeout_at(),
        }
    }

    /// What leaves now asks a closed window to open. If what did so before was answered, nothing has stalled until now.
    fn count_try(&mut self, now: Instant) {
        if self.send.retries == 0 {
            self.send.stalled_since = now;
        }
        self.send.retries = self.send.retries.saturating_add(1);
    }

    fn give_up(&mut self, shared: &mut Shared) {
        if !self.is_synchronized() {
            shared.counters.attempt_fails += 1;
        }
        self.finish(shared, Reason::TimedOut);
    }

    /// RFC 8985 section 7.3.
    fn on_tail_probe_timeout(&mut self, now: Instant) {
        if self.scoreboard.is_empty() || self.scoreboard.in_recovery() || !self.sack {
            return;
        }
        self.send.tail_probe_due = true;
        self.wake = true;
        // The probe takes the place of a timeout: that one starts over.
        self.timers.arm(Timer::Retransmit, self.rtt.deadline(now));
    }

    pub(super) fn arm_tail_probe(&mut self, now: Instant) {
        if !self.sack || !self.is_synchronized() {
            return;
        }
        match self.scoreboard.probe_timeout(&self.rtt, u64::from(self.send.mss)) {
            // RFC 8985 section 7.2: never later than the retransmission timeout.
            Some(after) => {
                let deadline = now.after_nanos(after).min(self.timers.deadline(Timer::Retransmit));
                self.timers.arm(Timer::TailProbe, deadline);
            }
            None => self.timers.cancel(Timer::TailProbe),
        }
    }

    fn on_reorder_timeout(&mut self, now: Instant, shared: &mut Shared) {
        let flight = self.send.next - self.send.unacknowledged;
        let losses = self.mark_losses(now, u64::from(self.send.mss));
        self.on_losses(now, shared, &losses, flight);
        // Before it is sent again: its ACK would pass for the probe's.
        self.observe_mtu_probe(now, shared);
        if let Phase::Recovery { .. } = self.scoreboard.phase() {
            // No ACK clocks this transmission: as if one segment had been delivered.
            let mss = u64::from(self.send.mss);
            self.scoreboard.reduce_proportionally(mss, self.congestion.window(), mss, false);
        }
    }

    /// RFC 9293 section 3.8.6.1: the window is closed, or too small to be worth a segment, and nothing is in flight.
    fn on_persist_timeout(&mut self, now: Instant, shared: &mut Shared) {
        // Section 3.8.6.1, MUST-37: only probes that are not answered count, however late after the last answer the next is due.
        if self.send.retries > 0 && self.has_given_up(now, shared) {
            shared.counters.abort_on_timeout += 1;
            return self.give_up(shared);
        }
        self.count_try(now);
        if self.send.window > 0 {
            self.send.override_due = true;
        } else {
            shared.counters.win_probes += 1;
            self.send.probe_due = true;
            // Section 3.8.6.1, SHLD-30: each further probe later.
            self.rtt.back_off(shared.options.rto_max);
        }
        self.wake = true;
    }

    fn on_ack_timeout(&mut self, shared: &mut Shared) {
        if self.receive.ack == Ack::Delayed {
            shared.counters.delayed_acks += 1;
            self.receive.ack = Ack::Now;
            self.wake = true;
        }
    }

    /// RFC 9293 section 3.8.4, MUST-24: for each connection.
    pub fn set_keepalive(&mut self, now: Instant, shared: &Shared, on: bool) {
        self.keepalive = on;
        if !on {
            self.timers.cancel(Timer::Keepalive);
        } else if self.is_synchronized() && self.state != State::TimeWait {
            self.keepalive_probes = 0;
            self.timers.arm(Timer::Keepalive, now + shared.options.keepalive.unwrap_or_default().idle);
        }
    }

    fn on_keepalive_timeout(&mut self, now: Instant, shared: &mut Shared) {
        let keepalive = shared.options.keepalive.unwrap_or_default();
        if !self.scoreboard.is_empty() || self.has_something_to_send() {
            // Data is in flight, or waits for a window that is probed: those timers decide. Section 3.8.4: only on an idle connection.
            self.timers.arm(Timer::Keepalive, now + keepalive.idle);
            return;
        }
        // Section 3.8.4 (MUST-29): a probe that is not answered does not mean a dead connection, and a timer that was late means nothing.
        if self.keepalive_probes >= keepalive.probes_max {
            shared.counters.abort_on_timeout += 1;
            // The peer may have lost its way to us only (Linux: tcp_send_active_reset).
            self.tell_reset(shared);
            return self.give_up(shared);
        }
        self.keepalive_probes += 1;
        shared.counters.keep_alives += 1;
        self.send.probe_due = true;
        self.wake = true;
        self.timers.arm(Timer::Keepalive, now + keepalive.interval);
    }

    fn on_life_timeout(&mut self, shared: &mut Shared) {
        if self.state == State::TimeWait {
            return self.leave_time_wait(shared);
        }
        shared.counters.fin_wait_2_timeouts += 1;
        self.finish(shared, Reason::TimedOut);
    }
}
