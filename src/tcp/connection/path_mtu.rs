//! How large a packet the path takes: ICMP that tells, black holes that do not, and trying larger ones again.
//!
//! Read first: RFC 1191, RFC 8201, RFC 4821 (sections 7.3 to 7.7), RFC 5927 section 7. A path that never was in doubt has no state here. Once it
//! was, and `Options::path_mtu_raise` has passed since a router said so, or a round trip since a black hole was suspected, one segment of the
//! size hoped for is sent among ordinary ones; its loss says nothing of congestion. Not here: the peer's MSS and the link's MTU (`send::learn_mss`).
//!
//! A router's claim is believed at once, as in Linux, if it quotes what is in flight (RFC 5927 section 4). Section 7.2 would hold it back, once as
//! large a packet was acknowledged, until the quoted segment has timed out: every path that really narrows would cost each of its connections a
//! timeout, and nothing here outlives a connection to spare the next one. What a forger gains who knows both ends' ports and guesses a number in
//! flight is bounded instead: no size below the minimum, few steps on the way there, nothing that stalls (what was in flight goes again, in smaller packets), no fall of
//! the window, and `path_mtu_raise` later a larger packet is tried.
//!
//! Where IPv4's path takes less than that minimum, packets have its size and routers may cut them (RFC 1191 section 3: a host may stop by
//! clearing "don't fragment"; so does Linux with a locked MTU). Smaller ones would hand a forger of ICMP the header's share of each packet.

use super::send::pieces_per_packet;
use super::*;
use crate::tcp::endpoint::{Transmit, TransmitLimits};
use crate::tcp::recovery::{Fate, Phase};

/// RFC 1191 section 3: less than this is nobody's MTU (Linux: ip_no_pmtu_disc's min_pmtu). RFC 8200 section 5 for IPv6.
const MTU_MIN_IPV4: u16 = 552;
const MTU_MIN_IPV6: u16 = 1280;
/// RFC 4821 section 7.7: where the search starts after a black hole.
const MTU_BASE: u16 = 1280;
/// Timeouts in a row of one full segment that make a black hole of a path (RFC 4821 section 7.7; Linux: tcp_retries1).
const BLACK_HOLE_TIMEOUTS: u8 = 3;
/// RFC 4821 section 7.3's coarse table: tunnels, PPPoE, Ethernet, FDDI, jumbo frames.
const USUAL: [u16; 8] = [1280, 1400, 1450, 1480, 1492, 1500, 4352, 9000];
/// How often a router's word is taken before a larger packet was seen to pass again; then the path is taken for the least there is. Each time
/// what is in flight goes again, and what makes a path of more narrowings, each behind the last, is no network.
const REDUCTIONS_MAX: u8 = 8;
/// RFC 4821 section 7.4: data behind a probe whose duplicate ACKs tell at once that it was lost, segments.
const SEGMENTS_BEHIND_PROBE: u64 = 4;

/// What is known of a path that once did not take the largest packets.
pub(super) struct PathMtu {
    /// When a larger packet may be tried (RFC 1191 section 6.3).
    raise_at: Instant,
    /// Sizes from here on are known to be lost; starts over with each raise.
    too_big: u16,
    probe: Option<Probe>,
    reductions: u8,
    /// It takes less than `MTU_MIN_IPV4`.
    below_least: bool,
}

#[derive(Clone, Copy)]
struct Probe {
    start: u64,
    end: u64,
    mtu: u16,
}

impl Connection {
    fn mtu_min(&self) -> u16 {
        if self.tuple.remote_ip.is_ipv4() { MTU_MIN_IPV4 } else { MTU_MIN_IPV6 }
    }

    /// Bytes between the payload and the size of the packet.
    fn overhead(&self) -> u16 {
        self.tuple.headers_len() + if self.timestamps { 12 } else { 0 }
    }

    fn lower_path_mtu(&mut self, now: Instant, shared: &Shared, mtu: u16) {
        self.send.path_mtu = mtu;
        let raise_at = now + shared.options.path_mtu_raise;
        let reductions = self.mtu_reductions().saturating_add(1);
        self.send.path = Some(Box::new(PathMtu { raise_at, too_big: u16::MAX, probe: None, reductions, below_least: false }));
    }

    fn mtu_reductions(&self) -> u8 {
        self.send.path.as_ref().map_or(0, |path| path.reductions)
    }

    /// Routers may cut what is sent.
    #[inline]
    pub(super) fn may_fragment(&self) -> bool {
        self.send.path.as_ref().is_some_and(|path| path.below_least)
    }

    /// A router says that the packet at `position` was too big for a link with `mtu`.
    pub(super) fn on_packet_too_big(&mut self, now: Instant, shared: &mut Shared, position: u64, mtu: u16) {
        if let Some(probe) = self.send.path.as_ref().and_then(|path| path.probe).filter(|probe| probe.start == position) {
            if mtu < probe.mtu {
                self.scoreboard.mark_lost(probe.start, probe.end);
                self.wake = true;
                self.fail_mtu_probe(now, shared, probe);
            }
            return;
        }
        // RFC 1191 section 3 allows only to go down; sizes below the minimum may be an attack (RFC 5927 section 7).
        let (told, mtu) = (mtu, mtu.max(self.mtu_min()));
        let size = self.send.mss.saturating_add(self.overhead());
        let below_least = told < mtu && told < size && self.tuple.remote_ip.is_ipv4() && !self.may_fragment();
        let lower = mtu < self.send.path_mtu && mtu < size;
        if lower || below_least {
            let is_last = self.mtu_reductions() >= REDUCTIONS_MAX;
            self.lower_path_mtu(now, shared, if is_last { self.mtu_min() } else { mtu.min(self.send.path_mtu) });
            shared.counters.pmtu_reductions += u64::from(lower);
            if let Some(path) = self.send.path.as_mut().filter(|_| below_least) {
                path.below_least = true;
                shared.counters.pmtu_below_least += 1;
                // What follows from it is to be learned again, also where the size stays.
                self.send.mss_of = (0, 0);
            }
            self.scoreboard.mark_larger_lost(u64::from(told.saturating_sub(self.overhead())));
            // What a router dropped is lost, whatever comes to light about a repair that had begun before.
            self.send.repair = Repair::new();
            self.wake = true;
        }
    }

    /// RFC 4821 section 7.7: a full segment timed out again and again, nothing came back, and no router said why.
    pub(super) fn suspect_black_hole(&mut self, now: Instant, shared: &mut Shared) {
        if self.scoreboard.timeouts() < BLACK_HOLE_TIMEOUTS || !self.is_synchronized() {
            return;
        }
        let size = u64::from(self.overhead()) + self.scoreboard.first().map_or(0, |(start, end)| end - start);
        let lower = [MTU_BASE, self.mtu_min()].into_iter().find(|mtu| *mtu < self.send.path_mtu && u64::from(*mtu) < size);
        if let Some(mtu) = lower {
            self.lower_path_mtu(now, shared, mtu);
            // Section 7.7 gives up what had been proven, not what is hoped for: it may have been an outage. A lost probe tells more.
            self.try_larger_after(now + self.round_trip(shared));
            shared.counters.pmtu_black_holes += 1;
        }
    }

    /// The size to try next: the largest that is not known to be too big. Nothing larger is left: `None`.
    fn mtu_candidate(&self, path: &PathMtu, limits: &TransmitLimits) -> Option<u16> {
        let current = self.send.mss + self.overhead();
        let largest = limits.mtu.min(self.send.peer_mss.saturating_add(self.tuple.headers_len()));
        let usual = USUAL.iter().copied().filter(|mtu| *mtu <= largest).chain([largest]);
        usual.filter(|mtu| *mtu > current && *mtu < path.too_big).max()
    }

    /// RFC 4821 section 7.4: sends a probe if it is time and everything is quiet enough to learn from it.
    pub(super) fn transmit_mtu_probe(
        &mut self,
        now: Instant,
        shared: &mut Shared,
        limits: &TransmitLimits,
        out: &mut Transmit,
    ) -> bool {
        let Some(path) = &self.send.path else { return false };
        if now < path.raise_at || path.probe.is_some() || self.scoreboard.in_recovery() || self.scoreboard.is_full() {
            return false;
        }
        let Some(mtu) = self.mtu_candidate(path, limits) else {
            return self.end_mtu_search(now, shared, limits);
        };
        self.restart_after_idle(now);
        let len = mtu - self.overhead();
        let needed = u64::from(len) + SEGMENTS_BEHIND_PROBE * u64::from(self.send.mss);
        let usable = (self.send.unacknowledged + self.send.window).saturating_sub(self.send.next);
        let unsent = self.send.queue.end().saturating_sub(self.send.next);
        if unsent.min(usable).min(self.allowance()) < needed {
            return false;
        }
        let start = self.send.next;
        if self.send.queue.pieces(start, usize::from(len)) > pieces_per_packet(limits) {
            // It would be cut short: of the size hoped for its fate would tell nothing, and it would still be larger than what is known to pass.
            self.try_larger_after(now + self.round_trip(shared));
            return false;
        }
        self.transmit_alone(now, shared, limits, out, len);
        // In pieces it would arrive whatever its size.
        out.may_fragment = false;
        let end = self.send.next;
        debug_assert!(end - start == u64::from(len));
        if let Some(path) = &mut self.send.path {
            path.probe = Some(Probe { start, end, mtu });
        }
        true
    }

    /// Nothing larger is to be tried now: either the path takes all that the link does, or it was all lost.
    fn end_mtu_search(&mut self, now: Instant, shared: &Shared, limits: &TransmitLimits) -> bool {
        if self.send.path_mtu >= limits.mtu && !self.may_fragment() {
            (self.send.path, self.send.path_mtu) = (None, u16::MAX);
        } else if let Some(path) = &mut self.send.path {
            (path.raise_at, path.too_big) = (now + shared.options.path_mtu_raise, u16::MAX);
        }
        false
    }

    /// A packet is out whose size is being tried.
    pub(super) fn is_probing_mtu(&self) -> bool {
        self.send.path.as_ref().is_some_and(|path| path.probe.is_some())
    }

    /// After an ACK or a timeout: what became of the probe.
    pub(super) fn observe_mtu_probe(&mut self, now: Instant, shared: &mut Shared) {
        let Some(probe) = self.send.path.as_ref().and_then(|path| path.probe) else { return };
        match self.scoreboard.fate(probe.start) {
            Fate::InFlight => {}
            Fate::Arrived => {
                shared.counters.mtup_success += 1;
                self.send.path_mtu = probe.mtu;
                if let Some(path) = &mut self.send.path {
                    (path.probe, path.reductions, path.below_least) = (None, 0, false);
                }
            }
            Fate::Lost => {
                // Section 7.6.1: a lone lost probe is no sign of congestion. The recovery is this ACK's if nothing was sent in it.
                let first = self.scoreboard.first_lost().is_some_and(|(start, _)| start == probe.start);
                let alone = first && self.scoreboard.lost() <= probe.end - probe.start && !self.send.repair.has_sent_again();
                // It was one packet. Without SACK only its first segment is known to be lost, and no later ACK would tell of the rest.
                self.scoreboard.mark_lost(probe.start, probe.end);
                if alone && self.scoreboard.phase() == (Phase::Recovery { point: self.send.next }) {
                    self.scoreboard.call_off_recovery();
                    self.congestion.undo();
                    self.ecn.withdraw();
                }
                self.fail_mtu_probe(now, shared, probe);
            }
        }
    }

    fn fail_mtu_probe(&mut self, now: Instant, shared: &mut Shared, probe: Probe) {
        shared.counters.mtup_fail += 1;
        if let Some(path) = &mut self.send.path {
            path.probe = None;
            path.too_big = probe.mtu;
        }
        // Section 7.6.2: the next after a round trip at least.
        self.try_larger_after(now + self.round_trip(shared));
    }

    fn try_larger_after(&mut self, at: Instant) {
        if let Some(path) = &mut self.send.path {
            path.raise_at = at;
        }
    }

    fn round_trip(&self, shared: &Shared) -> Duration {
        self.rtt.smoothed().unwrap_or(shared.options.rto_initial)
    }
}
