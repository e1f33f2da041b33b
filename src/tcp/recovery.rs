//! What is in flight, what of it is lost, and how fast to repair it.
//!
//! Read first: RFC 8985 (RACK-TLP), RFC 6675, RFC 2018 section 5, RFC 6582 (peers without SACK), RFC 9937 (PRR). One entry
//! per transmitted packet or TSO chain, cut where an acknowledgement or a retransmission cuts it; the entries cover
//! SND.UNA..SND.NXT without gaps, SYN and FIN included. Not here: building packets (`connection::send`), and the window
//! itself (`congestion`).

use std::collections::VecDeque;

use super::rtt::RttEstimator;
use crate::time::{Duration, Instant};

/// RFC 5681 section 3.2, RFC 6675 DupThresh, RFC 8985 section 6.2 step 4.
const DUP_THRESH: u64 = 3;
/// RFC 8985 section 6.2: recoveries without a D-SACK after which the reordering window shrinks again.
const REO_WND_PERSIST: u8 = 16;
/// RFC 8985 section 7.2: the probe timeout without an RTT sample, nanoseconds: 1 s.
const PTO_WITHOUT_RTT: u64 = 1_000_000_000;
/// Packets and chains in flight of one connection: the memory of a scoreboard, and the work of walking it for each ACK that
/// reports a hole. At this number nothing new is sent, and a peer's SACK blocks no longer cut entries into pieces; without it
/// blocks of single bytes would make one entry of each byte in flight. 8 MiB of full Ethernet packets are 5,800.
const ENTRIES_MAX: usize = 8192;
/// RFC 8985 section 7.2, TLP.max_ack_delay: how long a peer may keep back its ACK of a lone segment. Receivers of today wait
/// 40 ms or less. Believing the 200 ms of older ones from the start would put the probe of a lone reply behind its timeout, where it
/// is worth nothing; a probe sent too early costs one segment, and is noticed. Nanoseconds: 50 and 200 ms.
const PEER_ACK_DELAY_INITIAL: u64 = 50_000_000;
const PEER_ACK_DELAY_MAX: u64 = 200_000_000;
/// Timers closer than this make no sense on the wheel; nanoseconds: 2 ms.
const PTO_MIN: u64 = 2_000_000;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Transmission {
    First,
    Again,
    /// It ended where none before it did.
    Apart,
}

#[derive(Clone, Copy, Debug)]
struct Sent {
    start: u64,
    end: u64,
    /// Of the last transmission.
    sent_at: Instant,
    fate: Fate,
    last: Transmission,
    /// Payload bytes of its packets from `start` on, the last of which may be shorter.
    packet: u16,
    /// Bytes in flight when it was sent first, itself included.
    flight: u32,
}

impl Sent {
    fn len(&self) -> u64 {
        self.end - self.start
    }

    fn is_sacked(&self) -> bool {
        self.fate == Fate::Arrived
    }

    fn is_lost(&self) -> bool {
        self.fate == Fate::Lost
    }

    fn is_in_flight(&self) -> bool {
        self.fate == Fate::InFlight
    }

    fn is_retransmitted(&self) -> bool {
        self.last != Transmission::First
    }

    fn is_apart(&self) -> bool {
        self.last == Transmission::Apart
    }

    /// How far inside a packet `at` lies.
    fn offset(&self, at: u64) -> u64 {
        (at - self.start) % u64::from(self.packet.max(1))
    }

    /// The end of the last packet that lies before `at` as a whole.
    fn packets_before(&self, at: u64) -> u64 {
        if at >= self.end { self.end } else { at - self.offset(at) }
    }

    /// The start of the first packet that lies behind `at` as a whole.
    fn packets_from(&self, at: u64) -> u64 {
        let at = at.max(self.start);
        let inside = self.offset(at);
        if inside == 0 { at } else { (at - inside + u64::from(self.packet)).min(self.end) }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    Open,
    /// Fast recovery until everything sent before its start is acknowledged (RFC 6675 RecoveryPoint, RFC 6582 recover).
    Recovery {
        point: u64,
    },
    /// After a retransmission timeout.
    Loss {
        point: u64,
    },
}

/// RFC 8985 section 5.2.
#[derive(Clone, Copy, Debug, Default)]
struct Rack {
    /// Nanoseconds.
    rtt: u64,
    xmit_at: Instant,
    end: u64,
    reordering_seen: bool,
    reo_wnd_mult: u8,
    reo_wnd_persist: u8,
}

/// RFC 8985 section 7.1.
#[derive(Clone, Copy, Debug)]
struct TailProbe {
    end: u64,
    retransmission: bool,
    /// Bytes in flight when what it sends again was sent first.
    flight: u64,
}

/// RFC 6937 section 3.
#[derive(Clone, Copy, Debug, Default)]
struct Prr {
    flight_at_start: u64,
    delivered: u64,
    out: u64,
    allowance: u64,
}

/// What is known of one position of the stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fate {
    InFlight,
    Arrived,
    /// And not sent again since.
    Lost,
}

/// What an acknowledgement did to the flight.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Delivery {
    /// Bytes acknowledged for the first time, cumulatively or selectively.
    pub delivered: u64,
    /// Of them, selectively.
    pub sacked: u64,
    /// Of them, such as duplicate ACKs of a peer without SACK had stood for.
    pub told: u64,
    /// Nanoseconds since the oldest never retransmitted segment among them was sent (Karn).
    pub rtt: Option<u64>,
    /// Something among them had been retransmitted: which copy arrived only timestamps can tell,
    pub retransmitted: bool,
    /// or that it ended apart from all others: nanoseconds since it was sent, if nothing among them was sent later.
    pub apart: Option<u64>,
}

/// What time, or an acknowledgement, showed to be lost.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Losses {
    /// Bytes, newly.
    pub bytes: u64,
    /// A copy was among them that had been sent since the window fell last.
    pub copies: bool,
    /// The largest flight that any of them was sent in, bytes.
    pub flight: u64,
    /// When more could be.
    pub look_again: Option<Duration>,
}

/// What only a flight needs in which something is amiss: lost, reported out of order, sent again, probed for.
#[derive(Clone, Copy, Debug)]
struct Disorder {
    sacked: u64,
    lost: u64,
    phase: Phase,
    /// When the window fell last.
    since: Instant,
    /// Something was lost that had not been sent by then.
    lost_since: bool,
    probe: Option<TailProbe>,
    prr: Prr,
    /// D-SACK round: the multiplier of the reordering window grows once per round trip.
    dsack_round: Option<u64>,
    /// Duplicate ACKs of a peer without SACK: each stands for one segment that left the network.
    duplicate_acks: u64,
    /// In `Phase::Loss`: bytes in flight that had been sent just before the timeout, which did not take them for lost.
    young: u64,
    /// Something in flight was sent again, or selectively acknowledged.
    touched: bool,
    /// Where the segment starts that timed out last, and how often it has in a row, no closed window being told meanwhile.
    timed_out: u64,
    timeouts: u8,
}

impl Disorder {
    fn new() -> Disorder {
        Disorder {
            sacked: 0,
            lost: 0,
            phase: Phase::Open,
            since: Instant::ZERO,
            lost_since: false,
            probe: None,
            prr: Prr::default(),
            dsack_round: None,
            duplicate_acks: 0,
            young: 0,
            touched: false,
            timed_out: u64::MAX,
            timeouts: 0,
        }
    }

    /// `sent` is not in flight any more, if it was.
    fn note_gone(&mut self, sent: &Sent) {
        if sent.is_in_flight() && sent.sent_at < self.since {
            self.young = self.young.saturating_sub(sent.len());
        }
    }

    /// `sent` is, and was in flight.
    fn lose(&mut self, sent: &mut Sent) -> u64 {
        self.note_gone(sent);
        sent.fate = Fate::Lost;
        self.lost += sent.len();
        sent.len()
    }

    fn is_over(&self) -> bool {
        !self.touched && self.lost == 0 && self.duplicate_acks == 0 && self.phase == Phase::Open && self.probe.is_none()
    }
}

pub(crate) struct Scoreboard {
    sent: VecDeque<Sent>,
    outstanding: u64,
    /// The end of the highest byte selectively acknowledged (RFC 8985 RACK.fack).
    forward: u64,
    rack: Rack,
    /// RFC 8985 section 7.2, TLP.max_ack_delay, as this peer has shown it; nanoseconds.
    peer_ack_delay: u64,
    /// RFC 6582 section 3.2, recover: the end of what was sent when the last recovery ended.
    recover: u64,
    /// Made when it is needed first, and kept until the connection rests: the next loss mostly follows soon.
    disorder: Option<Box<Disorder>>,
}

/// Made, if there is none yet.
fn disorder_of(disorder: &mut Option<Box<Disorder>>) -> &mut Disorder {
    disorder.get_or_insert_with(|| Box::new(Disorder::new()))
}

impl Scoreboard {
    pub fn new() -> Scoreboard {
        Scoreboard {
            sent: VecDeque::new(),
            outstanding: 0,
            forward: 0,
            rack: Rack { reo_wnd_mult: 1, ..Rack::default() },
            peer_ack_delay: PEER_ACK_DELAY_INITIAL,
            recover: 0,
            disorder: None,
        }
    }

    fn disorder(&mut self) -> &mut Disorder {
        disorder_of(&mut self.disorder)
    }

    /// Nothing was lost, reported or sent again of what is in flight, and no probe is out: what is acknowledged arrived in order.
    #[inline]
    pub fn is_undisturbed(&self) -> bool {
        self.disorder.as_ref().is_none_or(|disorder| disorder.is_over())
    }

    pub fn phase(&self) -> Phase {
        self.disorder.as_ref().map_or(Phase::Open, |disorder| disorder.phase)
    }

    /// What `enter_recovery` saw was no sign of congestion.
    pub fn call_off_recovery(&mut self) {
        self.disorder().phase = Phase::Open;
    }

    /// Memory is kept for what is sent, or goes wrong, next.
    pub fn has_spare(&self) -> bool {
        self.sent.capacity() > 0 || self.disorder.is_some()
    }

    /// Gives it back. Nothing is in flight; a probe whose fate is open stays.
    pub fn rest(&mut self) {
        debug_assert!(self.is_empty());
        self.sent = VecDeque::new();
        if self.is_undisturbed() {
            self.disorder = None;
        }
    }

    pub fn reordering_seen(&self) -> bool {
        self.rack.reordering_seen
    }

    pub fn is_empty(&self) -> bool {
        self.sent.is_empty()
    }

    /// Nothing new may be sent until something is acknowledged.
    pub fn is_full(&self) -> bool {
        self.sent.len() >= ENTRIES_MAX
    }

    /// Bytes thought to be in the network (RFC 6675 pipe).
    #[inline]
    pub fn in_flight(&self, mss: u64) -> u64 {
        match &self.disorder {
            Some(disorder) => (self.outstanding - disorder.sacked - disorder.lost).saturating_sub(disorder.duplicate_acks * mss),
            None => self.outstanding,
        }
    }

    /// Bytes of them that the loss window has room beside (RFC 8985 section 6.3): they left when it was larger, and to wait until they have
    /// arrived would be to wait for whatever of them was lost (Linux: tcp_enter_loss makes the window one segment more than what is left in flight).
    pub fn young(&self) -> u64 {
        self.disorder.as_ref().map_or(0, |disorder| disorder.young)
    }

    pub fn sacked(&self) -> u64 {
        self.disorder.as_ref().map_or(0, |disorder| disorder.sacked)
    }

    pub fn lost(&self) -> u64 {
        self.disorder.as_ref().map_or(0, |disorder| disorder.lost)
    }

    /// Bytes that were sent again, and neither acknowledged nor lost since.
    pub fn retransmitted(&self) -> u64 {
        self.sent.iter().filter(|sent| sent.is_retransmitted() && sent.is_in_flight()).map(Sent::len).sum()
    }

    /// Bytes in flight that were sent again, whatever became of the copies.
    pub fn sent_again(&self) -> u64 {
        self.sent.iter().filter(|sent| sent.is_retransmitted()).map(Sent::len).sum()
    }

    /// When the oldest outstanding segment was last sent.
    pub fn oldest_sent_at(&self) -> Option<Instant> {
        self.sent.front().map(|sent| sent.sent_at)
    }

    pub fn in_recovery(&self) -> bool {
        self.phase() != Phase::Open
    }

    /// `start..end` was sent, in packets of `packet` bytes.
    pub fn on_sent(&mut self, start: u64, end: u64, packet: u16, now: Instant) {
        debug_assert!(self.sent.back().is_none_or(|last| last.end == start));
        self.outstanding += end - start;
        let flight = self.outstanding as u32;
        let (fate, last) = (Fate::InFlight, Transmission::First);
        self.sent.push_back(Sent { start, end, sent_at: now, fate, last, packet, flight });
        if let Some(disorder) = &mut self.disorder {
            disorder.prr.out += end - start;
        }
    }

    /// `start..end` was sent again, in packets of `packet` bytes; `start` is where an entry starts and `end` not past where it ends.
    pub fn on_retransmitted(&mut self, start: u64, end: u64, packet: u16, now: Instant) {
        let Some(index) = self.index_of(start) else { return };
        self.cut(index, end);
        let sent = &mut self.sent[index];
        let found = if sent.is_lost() { sent.len() } else { 0 };
        if found > 0 {
            sent.fate = Fate::InFlight;
        }
        (sent.sent_at, sent.last) = (now, Transmission::Again);
        sent.packet = packet;
        let disorder = self.disorder();
        disorder.lost -= found;
        disorder.touched = true;
        disorder.prr.out += end - start;
    }

    /// What was sent again last from `start` on ended where nothing had ended before: an ACK of exactly that is its own.
    pub fn on_sent_apart(&mut self, start: u64) {
        if let Some(sent) = self.index_of(start).map(|index| &mut self.sent[index]) {
            sent.last = Transmission::Apart;
        }
    }

    /// Such a copy of the first range is on its way.
    pub fn is_first_apart(&self) -> bool {
        self.sent.front().is_some_and(|sent| sent.is_apart() && !sent.is_lost())
    }

    /// The first range judged lost.
    pub fn first_lost(&self) -> Option<(u64, u64)> {
        if self.lost() == 0 {
            return None;
        }
        self.sent.iter().find(|sent| sent.is_lost()).map(|sent| (sent.start, sent.end))
    }

    /// The first range in flight, whatever is known of it.
    pub fn first(&self) -> Option<(u64, u64)> {
        self.sent.front().map(|sent| (sent.start, sent.end))
    }

    /// The first range in flight was sent more than once.
    pub fn is_first_retransmitted(&self) -> bool {
        self.sent.front().is_some_and(|sent| sent.is_retransmitted())
    }

    /// The last `mss` bytes in flight, as a range of their own: what a tail loss probe sends again.
    pub fn cut_last(&mut self, mss: u64) -> Option<(u64, u64)> {
        let index = self.sent.len().checked_sub(1)?;
        let last = self.sent[index];
        if last.len() > mss {
            self.cut(index, last.end - mss);
        }
        self.sent.back().map(|sent| (sent.start, sent.end))
    }

    fn index_of(&self, offset: u64) -> Option<usize> {
        let index = self.sent.partition_point(|sent| sent.end <= offset);
        self.sent.get(index).filter(|sent| sent.start <= offset).map(|_| index)
    }

    /// Makes `at` a border inside entry `index`, if it lies inside.
    fn cut(&mut self, index: usize, at: u64) {
        let sent = &mut self.sent[index];
        if sent.start < at && at < sent.end {
            let rest = Sent { start: at, ..*sent };
            sent.end = at;
            if sent.is_apart() {
                sent.last = Transmission::Again;
            }
            self.sent.insert(index + 1, rest);
        }
    }

    /// RFC 8985 section 6.2 step 2: the most recently sent segment known to have arrived.
    fn advance_rack(&mut self, sent: &Sent, now: Instant, min_rtt: Option<u64>) {
        let rtt = now.nanos_since(sent.sent_at);
        if sent.is_retransmitted() && min_rtt.is_some_and(|min| rtt < min) {
            return;
        }
        self.rack.rtt = rtt;
        if (sent.sent_at, sent.end) > (self.rack.xmit_at, self.rack.end) {
            (self.rack.xmit_at, self.rack.end) = (sent.sent_at, sent.end);
        }
        // Step 3: acknowledged below what was acknowledged before, and never sent again: the network reorders.
        if sent.end < self.forward && !sent.is_retransmitted() {
            self.rack.reordering_seen = true;
        }
        self.forward = self.forward.max(sent.end);
    }

    fn deliver(&mut self, sent: &Sent, now: Instant, delivery: &mut Delivery) {
        delivery.delivered += sent.len();
        if sent.is_retransmitted() {
            delivery.retransmitted = true;
        } else {
            let rtt = now.nanos_since(sent.sent_at);
            delivery.rtt = Some(delivery.rtt.map_or(rtt, |oldest| oldest.max(rtt)));
        }
    }

    /// Everything before `una` arrived. `echoed_before` tells whether the peer's timestamp echo is older than the given transmission, so that
    /// an earlier copy was acknowledged (RFC 8985 section 6.2 step 2).
    pub fn acknowledge(
        &mut self,
        una: u64,
        now: Instant,
        min_rtt: Option<u64>,
        echoed_before: &dyn Fn(Instant) -> bool,
        delivery: &mut Delivery,
    ) {
        let mut latest = Instant::ZERO;
        while let Some(first) = self.sent.front_mut().filter(|first| first.start < una) {
            // Of a chain that is acknowledged in part the rest stays in flight.
            let mut sent = *first;
            sent.end = sent.end.min(una);
            // Only the end of it tells the copy.
            let apart = first.is_apart() && first.end == una;
            first.start = sent.end;
            if first.start == first.end {
                self.sent.pop_front();
            }
            self.outstanding -= sent.len();
            if sent.is_sacked() {
                self.disorder().sacked -= sent.len();
                continue;
            }
            if let Some(disorder) = &mut self.disorder {
                disorder.lost -= if sent.is_lost() { sent.len() } else { 0 };
                disorder.note_gone(&sent);
            }
            self.deliver(&sent, now, delivery);
            if apart && sent.sent_at >= latest {
                delivery.apart = Some(now.nanos_since(sent.sent_at));
            }
            latest = latest.max(sent.sent_at);
            if !sent.is_retransmitted() || !echoed_before(sent.sent_at) {
                self.advance_rack(&sent, now, min_rtt);
            }
        }
        if let Some(disorder) = &mut self.disorder {
            disorder.touched &= !self.sent.is_empty();
        }
    }

    /// `acknowledge` while the scoreboard `is_undisturbed`: whole and partial chains off the front. At least one byte is new.
    #[inline]
    pub fn acknowledge_in_order(&mut self, una: u64, now: Instant) -> Delivery {
        let mut delivery = Delivery::default();
        while let Some(first) = self.sent.front_mut() {
            if first.start >= una {
                break;
            }
            let (end, sent_at) = (first.end.min(una), first.sent_at);
            delivery.delivered += end - first.start;
            first.start = end;
            // The oldest comes first.
            let rtt = now.nanos_since(sent_at);
            delivery.rtt.get_or_insert(rtt);
            (self.rack.rtt, self.rack.xmit_at, self.rack.end) = (rtt, sent_at, end);
            self.forward = end;
            if end < first.end {
                break;
            }
            self.sent.pop_front();
        }
        self.outstanding -= delivery.delivered;
        delivery
    }

    /// Nanoseconds that the last one took of what `acknowledge_in_order` has just taken off.
    pub fn newest_rtt(&self) -> u64 {
        self.rack.rtt
    }

    /// The bytes `left..right` arrived ahead of their turn.
    ///
    /// Whole packets, that is: what is left of one that a block tells of in part would go again, as a packet for each piece (Linux:
    /// tcp_match_skb_to_sack). The timestamp echo of such an ACK is that of the last segment in order (RFC 7323 section 4.3), and tells of no copy
    /// which one it was: only the time does (as in Linux).
    pub fn sack(&mut self, left: u64, right: u64, now: Instant, min_rtt: Option<u64>, delivery: &mut Delivery) {
        let Some(first) = self.index_of(left) else { return };
        self.disorder().touched = true;
        let left = self.sent[first].packets_from(left);
        if !self.is_full() {
            self.cut(first, left);
        }
        let mut index = if self.sent[first].start < left { first + 1 } else { first };
        while let Some(sent) = self.sent.get(index).copied().filter(|sent| sent.start < right) {
            let end = sent.packets_before(right);
            if end == sent.start || (end < sent.end && self.is_full()) {
                break;
            }
            self.cut(index, end);
            let sent = Sent { end, ..sent };
            if !sent.is_sacked() {
                self.sent[index].fate = Fate::Arrived;
                let disorder = self.disorder();
                if sent.is_lost() {
                    disorder.lost -= sent.len();
                }
                disorder.note_gone(&sent);
                disorder.sacked += sent.len();
                delivery.sacked += sent.len();
                self.deliver(&sent, now, delivery);
                self.advance_rack(&sent, now, min_rtt);
            }
            index += 1;
        }
    }

    /// RFC 8985 section 6.2 step 4: the reordering window, nanoseconds.
    fn reordering_window(&self, rtt: &RttEstimator, mss: u64) -> u64 {
        let many_sacked =
            self.sacked() >= DUP_THRESH * mss || self.sent.iter().filter(|sent| sent.is_sacked()).count() as u64 >= DUP_THRESH;
        if !self.rack.reordering_seen && (self.in_recovery() || many_sacked) {
            return 0;
        }
        let min = rtt.min_nanos().unwrap_or_default();
        (min / 4).saturating_mul(u64::from(self.rack.reo_wnd_mult)).min(rtt.smoothed_nanos().unwrap_or(min))
    }

    /// RFC 8985 section 6.2 step 4: a D-SACK, up to `right`, means that a retransmission was not needed. `true`: it was the tail probe.
    pub fn on_dsack(&mut self, una: u64, right: u64, nxt: u64) -> bool {
        let disorder = self.disorder();
        if disorder.dsack_round.is_none_or(|round| una >= round) {
            disorder.dsack_round = Some(nxt);
            self.rack.reo_wnd_mult = self.rack.reo_wnd_mult.saturating_add(1);
            self.rack.reo_wnd_persist = REO_WND_PERSIST;
        }
        // What the probe sent, with a FIN behind it or not.
        let is_probe = |probe: &mut TailProbe| probe.retransmission && (probe.end == right || probe.end == right + 1);
        let disorder = self.disorder();
        let Some(probe) = disorder.probe.take_if(is_probe) else { return false };
        // RFC 8985 section 7.4.2: both copies arrived, the probe repaired nothing.
        // If the ACK of the first copy has come before this one, it was only late. If not, it was lost, perhaps with the
        // request that carried it, and tells nothing of the peer's timer.
        if self.first().is_none_or(|(start, _)| start >= probe.end) {
            self.on_late_ack();
        }
        true
    }

    /// The next lone segment's probe leaves the ACK more time.
    fn on_late_ack(&mut self) {
        self.peer_ack_delay = (self.peer_ack_delay * 2).min(PEER_ACK_DELAY_MAX);
    }

    /// RFC 8985 section 6.2 step 5: marks what is lost.
    pub fn detect_losses(&mut self, now: Instant, rtt: &RttEstimator, mss: u64) -> Losses {
        let window = self.rack.rtt + self.reordering_window(rtt, mss);
        let Rack { xmit_at, end, .. } = self.rack;
        let since = self.disorder.as_ref().map_or(Instant::ZERO, |disorder| disorder.since);
        let point = match self.phase() {
            Phase::Open => u64::MAX,
            Phase::Recovery { point } | Phase::Loss { point } => point,
        };
        let (mut bytes, mut copies, mut lost_since, mut flight) = (0, false, false, 0);
        let mut again: Option<u64> = None;
        let Scoreboard { sent: entries, disorder, .. } = self;
        for sent in entries.iter_mut().filter(|sent| sent.is_in_flight()) {
            // Only what was sent before something that arrived can be judged.
            if (sent.sent_at, sent.end) >= (xmit_at, end) {
                continue;
            }
            let elapsed = now.nanos_since(sent.sent_at);
            if elapsed >= window {
                bytes += disorder_of(disorder).lose(sent);
                copies |= sent.is_retransmitted() && sent.sent_at >= since;
                lost_since |= sent.start >= point;
                flight = flight.max(sent.flight);
            } else {
                again = Some(again.map_or(window - elapsed, |other| other.max(window - elapsed)));
            }
        }
        if lost_since {
            self.disorder().lost_since = true;
        }
        Losses { bytes, copies, flight: flight.into(), look_again: again.map(Duration::from_nanos) }
    }

    /// A duplicate ACK of `una` from a peer without SACK. Tells whether the first segment is to be taken for lost (RFC 5681 section 3.2):
    /// not if what the last recovery sent again may have caused it (RFC 6582 section 3.2 step 2). `nxt`: the end of what was sent.
    pub fn on_duplicate_ack(&mut self, una: u64, nxt: u64) -> bool {
        let past = una > self.recover;
        let disorder = self.disorder();
        if matches!(disorder.phase, Phase::Loss { point } if nxt <= point) {
            // RFC 5681 section 3.1: after a timeout only acknowledged segments open the window. All goes again, and each copy of what had
            // arrived makes another duplicate: if it stood for room they would keep each other going. Behind text that is new it tells of
            // that (RFC 5682 section 2.1 step 3).
            return false;
        }
        disorder.duplicate_acks += 1;
        disorder.phase == Phase::Open && disorder.duplicate_acks == DUP_THRESH && past
    }

    /// New data was acknowledged by a peer without SACK (RFC 6582 section 3.2 step 3): what left the network is forgotten
    /// for the acknowledged part. Tells of how many bytes of it duplicate ACKs had told.
    pub fn deflate_duplicate_acks(&mut self, acked: u64, mss: u64) -> u64 {
        let Some(disorder) = &mut self.disorder else { return 0 };
        let segments = acked / mss.max(1);
        let recovers = matches!(disorder.phase, Phase::Recovery { .. });
        // The first one was lost.
        let told = disorder.duplicate_acks.min(segments.saturating_sub(1));
        disorder.duplicate_acks = if recovers { disorder.duplicate_acks - told } else { 0 };
        told * mss
    }

    /// Marks the first `mss` bytes lost.
    pub fn mark_first_lost(&mut self, mss: u64) -> Losses {
        let Some((start, _)) = self.first() else { return Losses::default() };
        self.cut(0, start + mss);
        let sent = &mut self.sent[0];
        if !sent.is_in_flight() {
            return Losses::default();
        }
        let flight = sent.flight.into();
        let bytes = disorder_of(&mut self.disorder).lose(sent);
        Losses { bytes, flight, ..Losses::default() }
    }

    /// Bytes in flight when the first segment was sent first.
    pub fn first_flight(&self) -> u64 {
        self.sent.front().map_or(0, |sent| sent.flight.into())
    }

    /// For `newly_lost` bytes.
    pub fn enter_recovery(&mut self, now: Instant, nxt: u64, newly_lost: u64, mss: u64) {
        let outstanding = self.outstanding;
        let disorder = self.disorder();
        if disorder.phase == Phase::Open {
            (disorder.timed_out, disorder.timeouts) = (u64::MAX, 0);
        }
        disorder.phase = Phase::Recovery { point: nxt };
        (disorder.since, disorder.lost_since) = (now, false);
        disorder.probe = None;
        // RFC 6937 section 3.1: RecoverFS is the flight before the loss was known.
        let lost_before = disorder.lost.saturating_sub(newly_lost);
        disorder.prr = Prr { flight_at_start: (outstanding - disorder.sacked - lost_before).max(mss), ..Prr::default() };
    }

    /// RFC 6298 section 5.4 with RFC 8985 section 6.3: the retransmission timer expired.
    /// `sack`: the peer reports what comes, so what is young may wait for its reports; without them nothing would ever tell.
    pub fn on_timeout(&mut self, now: Instant, nxt: u64, rtt: &RttEstimator, mss: u64, sack: bool) {
        let timeouts = self.timeouts().saturating_add(1);
        let reneged = self.sent.front().is_some_and(|first| first.is_sacked());
        let window = self.rack.rtt + self.reordering_window(rtt, mss);
        let first = self.first().map_or(u64::MAX, |(start, _)| start);
        let Scoreboard { sent: flight, disorder, .. } = self;
        let disorder = disorder_of(disorder);
        let mut young = 0;
        for (index, sent) in flight.iter_mut().enumerate() {
            if reneged && sent.is_sacked() {
                // RFC 2018 section 8: the receiver dropped what it had reported.
                sent.fate = Fate::InFlight;
                disorder.sacked -= sent.len();
            }
            let old = !sack || reneged || index == 0 || now.nanos_since(sent.sent_at) >= window;
            if sent.is_in_flight() && old {
                disorder.lose(sent);
            } else if sent.is_in_flight() && sent.sent_at < now {
                young += sent.len();
            }
        }
        disorder.young = young;
        disorder.phase = Phase::Loss { point: nxt };
        (disorder.since, disorder.lost_since) = (now, false);
        (disorder.timed_out, disorder.timeouts) = (first, timeouts);
        disorder.duplicate_acks = 0;
        disorder.probe = None;
    }

    /// The first segment has timed out in this episode already.
    pub fn has_timed_out(&self) -> bool {
        let of_last = |disorder: &Disorder| (disorder.phase != Phase::Open).then_some(disorder.timed_out);
        let timed_out = self.disorder.as_deref().and_then(of_last);
        timed_out.is_some_and(|timed_out| self.sent.front().is_some_and(|first| first.start == timed_out))
    }

    /// Their number does not count.
    pub fn forgive_timeouts(&mut self) {
        if let Some(disorder) = &mut self.disorder {
            disorder.timeouts = 0;
        }
    }

    /// How often, in a row.
    pub fn timeouts(&self) -> u8 {
        self.disorder.as_ref().filter(|_| self.has_timed_out()).map_or(0, |disorder| disorder.timeouts)
    }

    /// What became of the byte at `position`.
    pub fn fate(&self, position: u64) -> Fate {
        match self.index_of(position).map(|index| &self.sent[index]) {
            None => Fate::Arrived,
            Some(sent) if sent.is_sacked() => Fate::Arrived,
            Some(sent) if sent.is_lost() || sent.is_retransmitted() => Fate::Lost,
            Some(_) => Fate::InFlight,
        }
    }

    /// `start..end` did not pass, for no fault of the network.
    pub fn mark_lost(&mut self, start: u64, end: u64) {
        let Some(first) = self.index_of(start) else { return };
        for sent in self.sent.iter_mut().skip(first).take_while(|sent| sent.end <= end).filter(|sent| sent.is_in_flight()) {
            disorder_of(&mut self.disorder).lose(sent);
        }
    }

    /// Everything in flight goes again, for no fault of the network.
    pub fn mark_all_lost(&mut self) {
        self.mark_larger_lost(0);
    }

    /// Packets of more than `payload` bytes go again, for no fault of the network: the path MTU fell.
    pub fn mark_larger_lost(&mut self, payload: u64) {
        let is_larger = |sent: &Sent| sent.len().min(u64::from(sent.packet)) > payload;
        for sent in self.sent.iter_mut().filter(|sent| sent.is_in_flight() && is_larger(sent)) {
            disorder_of(&mut self.disorder).lose(sent);
        }
    }

    /// The repair was not needed: what is outstanding is in flight, not lost.
    pub fn forget_losses(&mut self) {
        for sent in self.sent.iter_mut().filter(|sent| sent.is_lost()) {
            sent.fate = Fate::InFlight;
        }
        let disorder = self.disorder();
        disorder.lost = 0;
        disorder.phase = Phase::Open;
        disorder.duplicate_acks = 0;
        // The network delayed, at least: RFC 8985 section 6.2 step 3.
        self.rack.reordering_seen = true;
    }

    /// Whether `detect_losses` could find anything: without reports beyond SND.UNA and without retransmissions, everything
    /// outstanding was sent after what was acknowledged.
    pub fn may_have_losses(&self, delivery: &Delivery) -> bool {
        self.sacked() > 0 || self.in_recovery() || delivery.retransmitted
    }

    /// Ends recovery when its point is acknowledged. Gives, if it did, whether there were losses of what was sent meanwhile.
    pub fn leave_recovery(&mut self, una: u64) -> Option<bool> {
        let disorder = self.disorder.as_mut()?;
        let (Phase::Recovery { point } | Phase::Loss { point }) = disorder.phase else { return None };
        if una < point {
            return None;
        }
        let lost_since = std::mem::take(&mut disorder.lost_since);
        disorder.phase = Phase::Open;
        disorder.duplicate_acks = 0;
        self.recover = point;
        // Step 4 of RFC 8985 section 6.2: recoveries without D-SACK, fast or after a timeout, narrow the reordering window again.
        self.rack.reo_wnd_persist = self.rack.reo_wnd_persist.saturating_sub(1);
        if self.rack.reo_wnd_persist == 0 {
            self.rack.reo_wnd_mult = 1;
        }
        Some(lost_since)
    }

    /// RFC 9937 (and RFC 6937) section 3.1, on each ACK in recovery: how many bytes may be sent now. `safe`: the ACK moved SND.UNA and tells
    /// of no further loss (SafeACK).
    pub fn reduce_proportionally(&mut self, delivered: u64, threshold: u64, mss: u64, safe: bool) {
        let pipe = self.in_flight(mss);
        let prr = &mut self.disorder().prr;
        if prr.delivered == 0 && prr.out == 0 {
            // RecoverFS counts what the first ACK delivers.
            prr.flight_at_start += delivered;
        }
        prr.delivered += delivered;
        let Prr { flight_at_start, delivered: total, out, .. } = *prr;
        prr.allowance = if pipe > threshold {
            (total.saturating_mul(threshold).div_ceil(flight_at_start.max(1))).saturating_sub(out)
        } else {
            // The conservative reduction bound, or the slow start one.
            let limit = total.saturating_sub(out).max(delivered) + if safe { mss } else { 0 };
            limit.min(threshold - pipe)
        };
        if out == 0 {
            // Fast retransmit sends one segment in any case (RFC 5681 section 3.2 step 3).
            prr.allowance = prr.allowance.max(mss);
        }
        // Kept as a total, so that sending uses it up.
        prr.allowance += out;
    }

    /// Bytes PRR lets go now.
    pub fn recovery_allowance(&self) -> u64 {
        self.disorder.as_ref().map_or(0, |disorder| disorder.prr.allowance.saturating_sub(disorder.prr.out))
    }

    /// RFC 8985 sections 7.2 and 7.3: something is in flight, of which nothing is repaired, reported or probed for, and a round trip was measured
    /// since the last probe: where the path has got longer, and no timestamps tell the answers of a probe and of what it repeats apart, the
    /// next segment would be probed for as needlessly.
    #[inline]
    pub fn may_probe(&self, rtt: &RttEstimator) -> bool {
        let amiss = |disorder: &Disorder| disorder.phase != Phase::Open || disorder.sacked > 0 || disorder.probe.is_some();
        !self.sent.is_empty() && !self.disorder.as_deref().is_some_and(amiss) && rtt.is_sampled_since_probe()
    }

    /// RFC 8985 section 7.2: when to probe for a lost tail, nanoseconds from now.
    pub fn probe_timeout(&self, rtt: &RttEstimator, mss: u64) -> Option<u64> {
        if !self.may_probe(rtt) {
            return None;
        }
        let Some(smoothed) = rtt.smoothed_nanos() else { return Some(PTO_WITHOUT_RTT) };
        let single = if self.outstanding <= mss { self.peer_ack_delay } else { 0 };
        Some((smoothed * 2).saturating_add(single).max(PTO_MIN))
    }

    pub fn on_probe_sent(&mut self, end: u64, retransmission: bool) {
        let flight = self.sent.back().map_or(0, |sent| sent.flight.into());
        self.disorder().probe = Some(TailProbe { end, retransmission, flight });
    }

    /// RFC 8985 section 7.4.2, on an ACK up to `una`. The probe repaired a loss: gives the flight it was of, for which the window has to fall
    /// once. `plain_duplicate`: a duplicate ACK without SACK blocks, so both copies arrived (a D-SACK is `on_dsack`'s).
    pub fn on_probe_acknowledged(&mut self, una: u64, plain_duplicate: bool) -> Option<u64> {
        let disorder = self.disorder.as_mut()?;
        let probe = disorder.probe.filter(|probe| una >= probe.end)?;
        let repaired = probe.retransmission && una > probe.end;
        if !probe.retransmission || repaired || plain_duplicate {
            disorder.probe = None;
        }
        if probe.retransmission && !repaired && plain_duplicate {
            self.on_late_ack();
        }
        repaired.then_some(probe.flight)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// RFC 8985 section 6.2 step 2.
    #[test]
    fn an_older_echo_of_what_is_acknowledged_does_not_move_rack() {
        for older in [false, true] {
            let mut scoreboard = Scoreboard::new();
            let at = Instant::from_millis;
            scoreboard.on_sent(0, 1000, 1000, at(10));
            scoreboard.on_sent(1000, 2000, 1000, at(11));
            scoreboard.mark_all_lost();
            scoreboard.on_retransmitted(0, 1000, 1000, at(100));
            let mut delivery = Delivery::default();
            scoreboard.acknowledge(1000, at(150), Some(10_000_000), &|_| older, &mut delivery);
            assert_eq!(scoreboard.rack.xmit_at, if older { Instant::ZERO } else { at(100) });
        }
    }

    /// What SACK tells of is whole packets.
    #[test]
    fn blocks_are_rounded_to_packets() {
        for ((left, right), sacked) in [
            ((0, 999), (0, 0)),
            ((1, 1000), (0, 0)),
            ((0, 1000), (0, 1000)),
            ((1, 2000), (1000, 2000)),
            ((1001, 3000), (2000, 3000)),
            ((1000, 4500), (1000, 4500)),
            ((1000, 4499), (1000, 4000)),
            ((4000, 4500), (4000, 4500)),
            ((4001, 4500), (0, 0)),
            ((4400, 5500), (4500, 5500)),
            ((4400, 6000), (4500, 6000)),
        ] {
            let (mut scoreboard, mut delivery) = (Scoreboard::new(), Delivery::default());
            // A chain whose last packet is short, and a packet behind it.
            scoreboard.on_sent(0, 4500, 1000, Instant::ZERO);
            scoreboard.on_sent(4500, 5500, 1000, Instant::ZERO);
            scoreboard.sack(left, right, Instant::from_millis(5), None, &mut delivery);
            let mut found = scoreboard.sent.iter().filter(|sent| sent.is_sacked());
            let range = found.next().map_or((0, 0), |first| (first.start, found.next_back().unwrap_or(first).end));
            assert_eq!(range, (sacked.0, sacked.1.min(5500)), "{left}..{right}");
            assert_eq!(scoreboard.sacked(), range.1 - range.0);
        }
    }

    /// RFC 8985 section 4, requirement 2: what a report or a copy cuts off a chain was sent when the chain was.
    #[test]
    fn the_pieces_of_a_chain_keep_its_time() {
        let at = Instant::from_millis;
        let mut scoreboard = Scoreboard::new();
        scoreboard.on_sent(0, 8000, 1000, at(5));
        scoreboard.sack(2000, 3000, at(15), None, &mut Delivery::default());
        scoreboard.mark_first_lost(1000);
        scoreboard.on_retransmitted(0, 1000, 1000, at(16));
        scoreboard.cut_last(1000);
        let pieces: Vec<_> = scoreboard.sent.iter().map(|sent| (sent.start, sent.end, sent.sent_at)).collect();
        let wanted = [(0, 1000, 16), (1000, 2000, 5), (2000, 3000, 5), (3000, 7000, 5), (7000, 8000, 5)];
        assert_eq!(pieces, wanted.map(|(start, end, time)| (start, end, at(time))));
    }

    #[test]
    fn a_packet_in_flight_takes_32_bytes() {
        assert_eq!(std::mem::size_of::<Sent>(), 32);
    }

    #[test]
    fn blocks_of_single_bytes_do_not_fragment_the_flight_without_bound() {
        let mut scoreboard = Scoreboard::new();
        let (flight, now) = (1 << 20, Instant::from_millis(5));
        scoreboard.on_sent(0, flight, 1, now);
        let mut delivery = Delivery::default();
        for left in (1..flight).step_by(2) {
            scoreboard.sack(left, left + 1, now, None, &mut delivery);
        }
        assert!(scoreboard.sent.len() <= ENTRIES_MAX && scoreboard.is_full(), "{} entries", scoreboard.sent.len());
        assert_eq!(scoreboard.sacked(), delivery.sacked);
        // What covers whole entries is still noted.
        scoreboard.sack(1, flight, now, None, &mut delivery);
        assert_eq!(scoreboard.sacked(), flight - 1);
        scoreboard.acknowledge(flight, now, None, &|_| false, &mut delivery);
        assert!(scoreboard.is_empty() && delivery.delivered == flight);
        assert_eq!((scoreboard.sacked(), scoreboard.lost(), scoreboard.in_flight(1000)), (0, 0, 0));
    }
}
