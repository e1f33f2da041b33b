//! Both ways to open, and SYN-SENT.
//!
//! Read first: RFC 9293 sections 3.5, 3.7.1 and 3.10.7.3; RFC 7323 sections 2.2, 2.3 and 3.2; RFC 2018 section 2.

use super::timers::{Timer, Timers};
use super::*;
use crate::buf::RxPacket;
use crate::tcp::syn_cookie;
use crate::wire::tcp::WINDOW_SCALE_MAX;

/// RFC 9293 section 3.7.1, MUST-15: the MSS of a peer that does not tell.
pub(super) const MSS_DEFAULT: u16 = 536;
const MSS_DEFAULT_IPV6: u16 = 1220;
/// The least believed in.
const MSS_MIN: u16 = 88;

impl Connection {
    fn new(
        now: Instant,
        id: ConnectionId,
        tuple: FourTuple,
        iss: SeqNumber,
        timestamp_offset: u32,
        shared: &Shared,
        state: State,
    ) -> Connection {
        let options = &shared.options;
        let send = SendState {
            iss,
            unacknowledged: SEQUENCE_ORIGIN,
            next: SEQUENCE_ORIGIN,
            window: 0,
            window_seq: 0,
            window_ack: 0,
            window_max: 0,
            scale: 0,
            peer_mss: MSS_DEFAULT,
            path_mtu: u16::MAX,
            path: None,
            mss: MSS_DEFAULT,
            mss_of: (0, 0),
            chain_max: MSS_DEFAULT,
            queue: SendQueue::new(SEQUENCE_ORIGIN + 1),
            fin: false,
            refused: 0,
            last_sent_at: now,
            paced_until: now,
            stalled_since: now,
            window_limited: false,
            tail_probe_due: false,
            probe_due: false,
            override_due: false,
            timed_out: false,
            retries: 0,
            repair: Repair::new(),
        };
        let receive = ReceiveState {
            irs: SeqNumber(0),
            next: SEQUENCE_ORIGIN,
            edge: SEQUENCE_ORIGIN,
            scale: scale_for(options.receive_window_max),
            limit: options.receive_window_initial.min(options.receive_window_max),
            limit_before: 0,
            chain: RxChain::new(),
            chain_driver_buffers: 0,
            reassembly: Reassembly::default(),
            refuses_text: false,
            text_lost: false,
            fin_at: NO_FIN,
            acknowledged: SEQUENCE_ORIGIN,
            ts_recent: 0,
            ts_recent_at: now,
            duplicate: (0, 0),
            mss: MSS_DEFAULT,
            mss_max: MSS_DEFAULT,
            ack: Ack::None,
            duplicate_acks: 0,
            quick_acks: options.quick_acks,
            last_received_at: now,
            last_heard_at: now,
            challenge_at: Instant::ZERO,
        };
        Connection {
            id,
            tuple,
            state,
            listener: None,
            half_open: false,
            wake: true,
            queued: false,
            armed: Instant::FAR_FUTURE,
            accounted_buffers: 0,
            entered_time_wait: false,
            counted_at_remote: false,
            readable_pending: false,
            writable_pending: false,
            released: false,
            removed: false,
            known: false,
            closed_reported: false,
            timestamps: options.timestamps,
            sack: options.sack,
            scaling: options.window_scaling,
            nagle: options.nagle,
            keepalive: options.keepalive.is_some(),
            keepalive_probes: 0,
            user_timeout: millis(options.user_timeout),
            ecn: Ecn::default(),
            timestamp_offset,
            send,
            receive,
            scoreboard: Scoreboard::new(),
            rtt: RttEstimator::new(options.rto_initial, options.rto_max),
            congestion: Controller::new(options.congestion, u64::from(MSS_DEFAULT)),
            timers: Timers::default(),
            statistics: Statistics::default(),
        }
    }

    /// RFC 9293 section 3.10.1, active OPEN.
    pub fn open_active(
        now: Instant,
        id: ConnectionId,
        tuple: FourTuple,
        iss: SeqNumber,
        timestamp_offset: u32,
        shared: &Shared,
    ) -> Connection {
        let mut connection = Connection::new(now, id, tuple, iss, timestamp_offset, shared, State::SynSent);
        connection.known = true;
        connection
    }

    /// RFC 9293 section 3.10.7.2, third step: a SYN to a listening port.
    pub fn open_passive(
        now: Instant,
        id: ConnectionId,
        tuple: FourTuple,
        iss: SeqNumber,
        timestamp_offset: u32,
        shared: &Shared,
        syn: &Repr,
    ) -> Connection {
        let mut connection = Connection::new(now, id, tuple, iss, timestamp_offset, shared, State::SynReceived);
        connection.agree(now, syn);
        connection.agree_ecn_passive(shared, syn);
        // Data on the SYN would have to be queued until ESTABLISHED; it is left for the peer to send again, which
        // section 3.10.7.2 allows by acknowledging only the SYN.
        connection
    }

    /// The same for a handshake that was left to the peer: our SYN-ACK was the cookie `iss`, and `syn` is what it tells.
    pub fn open_cookie(
        now: Instant,
        id: ConnectionId,
        tuple: FourTuple,
        iss: SeqNumber,
        timestamp_offset: u32,
        shared: &Shared,
        syn: &Repr,
    ) -> Connection {
        let mut connection = Connection::open_passive(now, id, tuple, iss, timestamp_offset, shared, syn);
        // Sent, and not on the scoreboard: when is not known, so nothing can be sampled or repeated.
        connection.send.next = SEQUENCE_ORIGIN + 1;
        connection.receive.acknowledged = connection.receive.next;
        connection.receive.edge = connection.receive.next + u64::from(syn_cookie::window(&shared.options));
        connection
    }

    /// Half-open: whether a segment is the first behind the SYN and answers something else than our SYN-ACK.
    pub fn is_answered_elsewhere(&self, repr: &Repr) -> bool {
        let ack = self.ack_position(repr.ack);
        repr.seq == self.receive.irs + 1 && (ack <= self.send.unacknowledged || ack > self.send.next)
    }

    /// Half-open: whether the SYN is the first one again, but without an option that our SYN-ACK grants. A peer that holds that the path
    /// drops what it does not know goes without, and would not know what was agreed on (RFC 7323 section 2.2: both SYNs must carry it).
    pub fn is_asked_for_less(&self, syn: &Repr) -> bool {
        let options = &syn.options;
        let less = (self.timestamps && options.timestamps.is_none())
            || (self.sack && !options.sack_permitted)
            || (self.scaling && options.window_scale.is_none());
        let is_first_again = syn.seq == self.receive.irs
            && syn.flags.contains(Flags::SYN)
            && !syn.flags.contains(Flags::ACK)
            && !syn.flags.contains(Flags::RST)
            && !syn.flags.contains(Flags::FIN);
        self.state == State::SynReceived && is_first_again && less
    }

    /// Takes over what the peer's SYN says.
    fn agree(&mut self, now: Instant, syn: &Repr) {
        self.receive.irs = syn.seq;
        self.receive.next = SEQUENCE_ORIGIN + 1;
        // What our SYN promised counts from behind the peer's.
        self.receive.edge += 1;
        self.receive.acknowledged = SEQUENCE_ORIGIN;
        let options = &syn.options;
        self.send.peer_mss = options.mss.unwrap_or(default_mss(&self.tuple)).max(MSS_MIN);
        // RFC 7323 section 2.2: both SYNs must carry the option; section 2.3: at most 14.
        self.scaling &= options.window_scale.is_some();
        self.send.scale = if self.scaling { options.window_scale.unwrap_or(0).min(WINDOW_SCALE_MAX) } else { 0 };
        if !self.scaling {
            self.receive.scale = 0;
        }
        self.sack &= options.sack_permitted;
        self.timestamps &= options.timestamps.is_some();
        if let Some(timestamps) = options.timestamps {
            (self.receive.ts_recent, self.receive.ts_recent_at) = (timestamps.value, now);
        }
        // RFC 7323 section 2.2: the window of a SYN is never scaled.
        self.send.window = u64::from(syn.window);
        self.send.window_max = self.send.window as u32;
        self.send.window_seq = SEQUENCE_ORIGIN;
        self.send.window_ack = SEQUENCE_ORIGIN;
    }

    /// RFC 9293 section 3.10.7.3.
    pub(super) fn handle_in_syn_sent(&mut self, now: Instant, shared: &mut Shared, repr: &Repr, payload: RxPacket) {
        let acked = repr.flags.contains(Flags::ACK).then(|| self.ack_position(repr.ack));
        // First: the ACK bit.
        if acked.is_some_and(|ack| ack <= SEQUENCE_ORIGIN || ack > self.send.next) {
            shared.reset(&self.tuple, repr, payload.len());
            return;
        }
        // Second: the RST bit; without an acceptable ACK it is nobody's (RFC 5961 section 3.2 needs none here).
        if repr.flags.contains(Flags::RST) {
            if acked.is_some() {
                shared.counters.attempt_fails += 1;
                self.finish(shared, Reason::Refused);
            }
            return;
        }
        // Fourth: the SYN bit.
        if !repr.flags.contains(Flags::SYN) {
            return;
        }
        self.agree(now, repr);
        self.wake = true;
        let Some(ack) = acked else {
            // Simultaneous open (section 3.5, figure 7): the SYN goes again, now with an ACK.
            self.set_state(shared, State::SynReceived);
            self.scoreboard.mark_all_lost();
            return;
        };
        self.agree_ecn_active(shared, repr);
        let retries = self.send.retries;
        self.accept_ack(now, shared, ack, repr);
        // Acknowledged, but what was lost before counts.
        self.send.retries = retries;
        self.establish(now, shared);
        self.receive.ack = Ack::Now;
        let segment = self.segment(repr, &payload);
        self.process_text(now, shared, &segment, payload);
        self.process_fin(now, shared, &segment);
    }

    /// The handshake is complete.
    pub(super) fn establish(&mut self, now: Instant, shared: &mut Shared) {
        let (retransmitted, repeatedly) = (self.send.retries > 0, self.send.retries > 1);
        self.leave_half_open(shared);
        let state = if self.send.fin { State::FinWait1 } else { State::Established };
        self.set_state(shared, state);
        self.send.retries = 0;
        if retransmitted {
            self.rtt.restart_after_syn_loss(shared.options.rto_max);
        }
        if repeatedly {
            // RFC 5681 section 3.1: one segment after a lost SYN; as Linux does, after two, since one may be chance.
            self.congestion.on_timeout(now, 0, false);
        }
        if self.keepalive {
            self.timers.arm(Timer::Keepalive, now + shared.options.keepalive.unwrap_or_default().idle);
        }
        self.known = true;
        self.wake = true;
        if let Some(listener) = self.listener {
            let port = self.tuple.local_port;
            shared.events.push_back(Event::Accepted { port, id: self.id, remote: self.tuple.remote() });
            if let Some(listener) = shared.listener(listener) {
                listener.accept_pending += 1;
            }
        } else {
            shared.events.push_back(Event::Connected(self.id));
        }
    }

    /// The options of our SYN: everything we can on an active open, what both can on the answer.
    pub(super) fn syn_options(&self, shared: &Shared, mss: u16) -> crate::wire::tcp::TcpOptions {
        let mut options = self.segment_options();
        options.sack = Default::default();
        options.mss = Some(mss);
        options.sack_permitted = self.sack;
        options.window_scale = self.scaling.then_some(self.receive.scale);
        debug_assert!(shared.options.window_scaling || !self.scaling);
        options
    }
}

/// What a SYN without the option means.
pub(crate) fn default_mss(tuple: &FourTuple) -> u16 {
    if tuple.remote_ip.is_ipv4() { MSS_DEFAULT } else { MSS_DEFAULT_IPV6 }
}

pub(super) fn millis(time: Duration) -> u32 {
    u32::try_from(time.as_millis()).unwrap_or(u32::MAX)
}

/// The smallest shift with which a window field can tell `window`.
pub(crate) fn scale_for(window: u32) -> u8 {
    let mut scale = 0;
    while scale < WINDOW_SCALE_MAX && window >> scale > u32::from(u16::MAX) {
        scale += 1;
    }
    scale
}

#[cfg(test)]
mod tests {
    use super::scale_for;

    #[test]
    fn the_scale_is_the_smallest_that_fits() {
        assert_eq!([0, 65_535, 65_536, 2 << 20, u32::MAX].map(scale_for), [0, 0, 1, 6, 14]);
    }
}
