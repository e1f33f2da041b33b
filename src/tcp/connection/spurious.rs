//! Was the repair needed? If not, the window comes back: Eifel by timestamps, F-RTO without them, D-SACK where either is late.
//!
//! Read first: RFC 3522, RFC 4015, RFC 5682, RFC 3708. An episode begins with the first loss of a window or the first of a row of
//! timeouts, and is judged once, by whichever tells first. Not here: what is lost (`recovery`).

use super::segment::is_before;
use super::*;
use crate::tcp::recovery::{Delivery, Phase};

/// RFC 5682 section 2.1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Frto {
    Off,
    /// Step 2 waits for the first ACK after the timeout.
    Retransmitted,
    /// Step 3 waits for the ACK of new data, and nothing else is sent again before it.
    NewData,
}

/// An episode of repair, as long as it is not known whether it was needed.
pub(super) struct Repair {
    /// RFC 3522: the timestamp of the first retransmission is, or will be, known.
    eifel: bool,
    timestamp: Option<u32>,
    frto: Frto,
    /// Linux: undo_marker and undo_retrans. SND.UNA when it began, and the bytes sent again that no D-SACK reported yet.
    begun_at: u64,
    sent_again: u32,
    /// The peer saw a mark meanwhile.
    marked: bool,
}

impl Repair {
    pub fn new() -> Repair {
        Repair { eifel: false, timestamp: None, frto: Frto::Off, begun_at: u64::MAX, sent_again: 0, marked: false }
    }

    /// The next ACK of new data tells whether the repair was needed.
    pub fn awaits_echo(&self) -> bool {
        self.timestamp.is_some()
    }

    /// Something of the episode was sent again, and not reported to have arrived twice.
    pub fn has_sent_again(&self) -> bool {
        self.sent_again > 0
    }

    /// RFC 3168 section 6.1.2: the window had to fall anyway (Linux: prior_ssthresh).
    pub fn keep_reduction(&mut self) {
        self.marked = true;
    }

    /// It is not known yet whether the timeout was spurious.
    pub fn awaits_acks(&self) -> bool {
        self.frto != Frto::Off
    }

    /// Nothing but new data is to be sent (RFC 5682 section 2.1, step 2b).
    pub fn holds_retransmissions(&self) -> bool {
        self.frto == Frto::NewData
    }
}

impl Connection {
    /// A loss was found, or the retransmission timer expired. `open`: nothing was being repaired before. `copies` bytes had been sent again, by a tail
    /// probe or in an earlier episode: a D-SACK of them says nothing of this one (Linux: tcp_init_undo).
    pub(super) fn begin_repair(&mut self, timeout: bool, open: bool, copies: u64) {
        // Timestamps tell sooner. In an episode that had begun already the timeout was none of the originals'.
        let frto = timeout && open && !self.timestamps && self.is_synchronized();
        // The next ACK of new data is the first range's. If that was sent again in an episode before, the echo may be of that copy:
        // older than this episode's, and no sign of the original.
        let eifel = self.timestamps && !self.scoreboard.is_first_retransmitted();
        self.send.repair = Repair {
            eifel,
            timestamp: None,
            frto: if frto { Frto::Retransmitted } else { Frto::Off },
            begun_at: self.send.unacknowledged,
            sent_again: copies as u32,
            marked: false,
        };
    }

    /// The timer expired again: what was sent is not coming back soon.
    pub(super) fn continue_repair(&mut self) {
        self.send.repair.frto = Frto::Off;
    }

    /// `bytes` of an episode were sent again.
    pub(super) fn note_repair(&mut self, now: Instant, bytes: u64) {
        let timestamp = self.timestamp(now);
        let repair = &mut self.send.repair;
        if repair.eifel {
            repair.timestamp.get_or_insert(timestamp);
        }
        if self.scoreboard.in_recovery() {
            repair.sent_again = repair.sent_again.saturating_add(bytes as u32);
        }
    }

    fn undo_repair(&mut self, shared: &mut Shared) {
        shared.counters.spurious_repairs += 1;
        if self.scoreboard.in_recovery() {
            self.scoreboard.forget_losses();
        }
        if !self.send.repair.marked {
            self.congestion.undo();
            self.ecn.withdraw();
        }
        self.send.repair = Repair::new();
    }

    /// RFC 3522 section 3.2 (Eifel), RFC 4015: the first ACK of new data echoes a timestamp older than the first
    /// retransmission, so the original had arrived: nothing was lost, and the window comes back.
    pub(super) fn detect_spurious_repair(&mut self, shared: &mut Shared, repr: &Repr) {
        let repair = &mut self.send.repair;
        let (Some(first), Some(timestamps)) = (repair.timestamp, repr.options.timestamps) else { return };
        (repair.eifel, repair.timestamp) = (false, None);
        if is_before(timestamps.echo_reply, first) && self.scoreboard.in_recovery() {
            self.undo_repair(shared);
        }
    }

    /// RFC 3708, as Linux does: everything that was sent again is reported to have arrived twice.
    pub(super) fn on_duplicate_reported(&mut self, shared: &mut Shared, left: u64, right: u64) {
        let repair = &mut self.send.repair;
        if left < repair.begun_at || repair.sent_again == 0 {
            return;
        }
        repair.sent_again = repair.sent_again.saturating_sub((right - left).min(u64::from(u32::MAX)) as u32);
        if repair.sent_again == 0 {
            shared.counters.dsack_undos += 1;
            self.undo_repair(shared);
        }
    }

    /// RFC 5682 section 2.1, steps 2 and 3, on an ACK that moved SND.UNA or was a duplicate.
    pub(super) fn advance_frto(&mut self, shared: &mut Shared, advanced: bool, duplicate: bool, delivery: &Delivery) {
        let step = self.send.repair.frto;
        if step == Frto::Off || !(advanced || duplicate || delivery.sacked > 0) {
            return;
        }
        self.send.repair.frto = Frto::Off;
        let point = match self.scoreboard.phase() {
            Phase::Loss { point } => point,
            // This ACK reaches the point.
            Phase::Open => self.send.unacknowledged,
            Phase::Recovery { .. } => return,
        };
        if !advanced {
            // A duplicate: something is missing indeed.
            return;
        }
        match step {
            // Step 2a: unless something is left of what was sent again, whose ACK could be the copy's.
            Frto::Retransmitted
                if self.send.unacknowledged < point
                    && !self.scoreboard.is_first_retransmitted()
                    && self.has_new_data_to_send() =>
            {
                self.send.repair.frto = Frto::NewData;
            }
            Frto::NewData => {
                // What it acknowledges was sent once only.
                shared.counters.spurious_rtos += 1;
                self.undo_repair(shared);
            }
            Frto::Retransmitted | Frto::Off => {}
        }
    }

    /// At least a segment of it goes without waiting for anything.
    fn has_new_data_to_send(&self) -> bool {
        let mss = u64::from(self.send.mss);
        let unsent = self.send.queue.end().saturating_sub(self.send.next);
        let usable = (self.send.unacknowledged + self.send.window).saturating_sub(self.send.next);
        unsent >= mss && usable >= mss && !self.scoreboard.is_full()
    }
}
