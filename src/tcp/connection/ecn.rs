//! Explicit congestion notification: marks in, echoes out, and the other way round.
//!
//! Read first: RFC 3168 section 6.1; RFC 8257 section 3.2 for controllers that want each mark. Marks lie in the IP header, so they come
//! and go beside the segment. Not here: by how much the window falls (`congestion`).

use super::timers::Timer;
use super::*;
use crate::tcp::endpoint::Transmit;
use crate::tcp::options::Ecn as Mode;
use crate::tcp::recovery::Phase;

/// The codepoints of RFC 3168 section 5.
pub(crate) const ECT_0: u8 = 0b10;
pub(crate) const CONGESTION_EXPERIENCED: u8 = 0b11;

/// What both ends agreed on, and where it stands.
#[derive(Default)]
pub(super) struct Ecn {
    pub on: bool,
    /// What we send may not be marked: one of our SYNs did not ask for it.
    plain: bool,
    /// Marks are echoed one by one.
    exact: bool,
    /// ACKs carry ECN-Echo.
    echo: bool,
    /// The next new text carries CWR.
    pub answer_due: bool,
    /// SND.NXT at the last reduction: echoes of what was sent before say nothing new.
    reduced_at: u64,
    /// Until that is acknowledged the window does not grow.
    holds: bool,
    /// When the last reduction was made, what had been sent before the one before it was not all acknowledged.
    overlaps: bool,
}

impl Ecn {
    /// What was sent before the last reduction is not all acknowledged.
    pub fn is_reducing(&self, una: u64) -> bool {
        self.holds && self.on && una <= self.reduced_at
    }

    /// The window fell to one segment for a timeout: that answers what was marked before `next`, and slow start begins (RFC 5681 section 3.1).
    pub fn note_timeout(&mut self, una: u64, next: u64) {
        self.note_reduction(una, next);
        self.holds = false;
    }

    fn note_reduction(&mut self, una: u64, next: u64) {
        self.overlaps = una <= self.reduced_at;
        (self.answer_due, self.reduced_at, self.holds) = (self.on, next, true);
    }

    /// The window is what it was before the last reduction, so that answers no mark: the next has one of its own. Not where an echo could still
    /// be of what an earlier one has answered.
    pub fn withdraw(&mut self) {
        if !self.overlaps {
            (self.answer_due, self.reduced_at, self.holds) = (false, 0, false);
        }
    }
}

impl Connection {
    /// The flags of our SYN or SYN-ACK. `again`: a SYN that got no answer goes without, for paths that drop it (section 6.1.1.1).
    pub(super) fn ecn_syn_flags(&self, shared: &Shared, again: bool) -> Flags {
        match self.state {
            State::SynSent if shared.options.ecn == Mode::Request && !again => Flags::ECE | Flags::CWR,
            State::SynReceived if self.ecn.on => Flags::ECE,
            _ => Flags::default(),
        }
    }

    /// A SYN to a listening port (section 6.1.1).
    pub(super) fn agree_ecn_passive(&mut self, shared: &Shared, syn: &Repr) {
        if is_ecn_asked_for(&shared.options, syn) {
            self.set_ecn();
        }
    }

    /// A SYN that comes again, and asks no more, is of a peer that will not echo marks (section 6.1.1).
    pub(super) fn disagree_ecn(&mut self, shared: &Shared, syn: &Repr) {
        self.ecn.on &= is_ecn_asked_for(&shared.options, syn);
    }

    /// The SYN-ACK. Who has sent a SYN without the flags must not set ECT; but what grants ECN is of a peer that got the SYN with them, and
    /// may (section 6.1.1): its marks have to be echoed.
    pub(super) fn agree_ecn_active(&mut self, shared: &Shared, syn_ack: &Repr) {
        let granted = syn_ack.flags.contains(Flags::ECE) && !syn_ack.flags.contains(Flags::CWR);
        if granted && shared.options.ecn == Mode::Request {
            self.set_ecn();
            self.ecn.plain = self.send.retries > 0;
        }
    }

    fn set_ecn(&mut self) {
        self.ecn = Ecn { on: true, exact: self.congestion.wants_exact_marks(), ..Ecn::default() };
    }

    /// The mark of an acceptable segment, and the sender's answer to earlier ones (section 6.1.3).
    #[cold]
    pub(super) fn process_marks(&mut self, now: Instant, shared: &mut Shared, segment: &super::segment::Segment) {
        let marked = shared.marked && segment.payload_len > 0;
        shared.counters.ce_received += u64::from(marked);
        if !self.ecn.exact {
            self.ecn.echo = (self.ecn.echo && !segment.has(Flags::CWR)) || marked;
        } else if segment.payload_len > 0 && marked != self.ecn.echo {
            // RFC 8257 section 3.2: what was received before the change is acknowledged with its own mark.
            let told = self.receive.ack == Ack::None || self.acknowledge_apart(now, shared);
            // Otherwise the ACK of both says too much: of a mark that nobody hears of the window would not fall.
            self.ecn.echo = marked || !told;
        }
    }

    /// An ACK of everything so far that leaves before anything else; `false`: there is no room for it.
    fn acknowledge_apart(&mut self, now: Instant, shared: &mut Shared) -> bool {
        // First: what a header reports (D-SACK, the window's edge) has been told.
        if !shared.has_reply_room() {
            return false;
        }
        let mut repr = self.header(shared, self.send.next, Flags::ACK);
        repr.options.timestamps = self.timestamps.then(|| self.timestamps_option(now));
        self.echo_marks(&mut repr);
        shared.reply(&self.tuple, repr);
        shared.counters.pure_acks += 1;
        self.receive.acknowledged = self.receive.next;
        self.receive.ack = Ack::None;
        self.timers.cancel(Timer::Ack);
        true
    }

    pub(super) fn echo_marks(&self, repr: &mut Repr) {
        if self.ecn.echo && repr.flags.contains(Flags::ACK) && !repr.flags.contains(Flags::SYN) {
            repr.flags |= Flags::ECE;
        }
    }

    /// The peer saw a mark (section 6.1.2): once in a window, as for a loss.
    #[cold]
    pub(super) fn on_echo(&mut self, now: Instant, shared: &mut Shared, flight: u64) {
        // On a SYN-ACK the flag means something else.
        let said = !self.is_synchronized() || self.send.unacknowledged <= self.ecn.reduced_at;
        if said || self.scoreboard.phase() != Phase::Open {
            // A repair's reduction stands for it, and stays, should the repair turn out to have been needless.
            self.send.repair.keep_reduction();
            return;
        }
        shared.counters.ecn_reductions += 1;
        self.congestion.on_congestion_experienced(now, flight);
        self.note_reduction_apart();
    }

    /// The window fell, for whatever reason: the peer is told, and older echoes are answered with that.
    pub(super) fn note_reduction(&mut self) {
        self.ecn.note_reduction(self.send.unacknowledged, self.send.next);
    }

    /// The same of a reduction that no repair asked for: whether an earlier repair was needed says nothing about it any more.
    pub(super) fn note_reduction_apart(&mut self) {
        self.send.repair = Repair::new();
        self.note_reduction();
    }

    /// New text is ECN-capable; retransmissions, probes and ACKs are not (sections 6.1.4 to 6.1.6).
    pub(super) fn mark_capable(&self, out: &mut Transmit) {
        if !out.payload.is_empty() && !self.ecn.plain {
            out.ecn = ECT_0;
        }
    }
}

/// Whether a SYN asks for what this endpoint gives (section 6.1.1).
pub(crate) fn is_ecn_asked_for(options: &Options, syn: &Repr) -> bool {
    options.ecn != Mode::Off && syn.flags.contains(Flags::ECE | Flags::CWR)
}
