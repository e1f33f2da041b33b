//! One connection: RFC 9293 in its own steps.
//!
//! Read first: RFC 9293 section 3.3 and 3.10. The files follow what happens to a connection:
//! - `handshake`: both opens, SYN-SENT, options agreed on.
//! - `segment`: the steps a segment goes through in every other state.
//! - `predicted`: the same for the segment that was expected, in fewer. - `train`: those of one burst that follow it.
//! - `ack`: what an acknowledgement means to the sender.
//! - `receive`: text, window, when to acknowledge, the copy-out rule.
//! - `send`: the next packet.
//! - `close`: close, abort, FINs, TIME-WAIT, ICMP.
//! - `ecn`: congestion marks.
//! - `pacing`: a window spread over its round trip.
//! - `path_mtu`: how large a packet may be.
//! - `spurious`: taking back a repair that was not needed.
//! - `timers`: what each timer does when it fires.
//!
//! Not here: tables, listening ports, timers' order: `endpoint`.

mod ack;
mod close;
mod ecn;
mod handshake;
mod pacing;
mod path_mtu;
mod predicted;
mod receive;
mod segment;
mod send;
mod spurious;
mod timers;
mod train;

use std::collections::VecDeque;

use super::congestion::Controller;
use super::counters::TcpCounters;
use super::endpoint::{ConnectionId, FourTuple, Listener, ListenerId, Reply};
use super::reassembly::Reassembly;
use super::recovery::Scoreboard;
use super::rtt::RttEstimator;
use super::send_queue::SendQueue;
use super::{Event, Options, Reason, SEQUENCE_ORIGIN, State, TcpInfo};
use crate::buf::{FragmentArena, RxBuf, RxChain};
use crate::time::{Duration, Instant};
use crate::wire::tcp::{Flags, Repr, SeqNumber};
use ecn::Ecn;
pub(crate) use ecn::{CONGESTION_EXPERIENCED, is_ecn_asked_for};
pub(crate) use handshake::{default_mss, scale_for};
use path_mtu::PathMtu;
use spurious::Repair;
use timers::Timers;
pub(crate) use train::{Header, Train};

/// What all connections of an endpoint share.
pub(crate) struct Shared {
    pub options: Options,
    pub counters: TcpCounters,
    pub events: VecDeque<Event>,
    pub replies: VecDeque<Reply>,
    /// Resets to segments that no connection has sent, and of those that belong to none of a connection that is being opened: few leave in a turn.
    pub resets: VecDeque<Reply>,
    /// Replies, resets, and SYNs that ask for a cookie: what leaves before the packets of connections that wait.
    pub waiting_apart: usize,
    pub listeners: Vec<Listener>,
    pub copy_out: Option<FragmentArena>,
    /// Of one connection: with more, its stream is compacted. The rest is the window's: the peer must not run dry before.
    pub receive_buffers_loose: usize,
    /// Driver buffers held by all connections: an upper bound.
    pub driver_buffers: usize,
    /// The segment at hand carries a congestion mark.
    pub marked: bool,
    /// Where a segment's buffers lie while it is decided what becomes of them.
    pub scratch: VecDeque<RxBuf>,
    /// Off: every segment goes through all steps. For the test that both ways come to the same.
    #[cfg(test)]
    pub prediction: bool,
    /// Off: every train is one segment.
    #[cfg(test)]
    pub coupling: bool,
}

impl Shared {
    pub fn new(options: Options) -> Shared {
        Shared {
            receive_buffers_loose: options.receive_buffers_max / 4 * 3,
            options,
            counters: TcpCounters::default(),
            events: VecDeque::new(),
            replies: VecDeque::new(),
            resets: VecDeque::new(),
            waiting_apart: 0,
            listeners: Vec::new(),
            copy_out: None,
            driver_buffers: 0,
            marked: false,
            scratch: VecDeque::new(),
            #[cfg(test)]
            prediction: true,
            #[cfg(test)]
            coupling: true,
        }
    }

    pub fn listener(&mut self, id: ListenerId) -> Option<&mut Listener> {
        self.listeners.iter_mut().find(|listener| listener.id == id)
    }

    /// Who takes connections to `tuple`'s local end: who asked for its address before who takes any.
    pub fn listener_for(&self, tuple: &FourTuple) -> Option<ListenerId> {
        let taking = |address| {
            let mut listeners = self.listeners.iter();
            listeners
                .find(|listener| (listener.address, listener.port) == (address, tuple.local_port))
                .map(|listener| listener.id)
        };
        taking(Some(tuple.local_ip)).or_else(|| taking(None))
    }

    /// Three quarters of the endpoint's share of the driver's buffers are held.
    pub fn driver_buffers_short(&self) -> bool {
        self.driver_buffers_left() == 0
    }

    /// How many can be held without getting short of them.
    pub fn driver_buffers_left(&self) -> usize {
        (self.options.driver_buffers_max / 4 * 3).saturating_sub(self.driver_buffers)
    }

    /// Answers a segment that belongs to nothing (RFC 9293 section 3.5.2, group 1).
    pub fn reset(&mut self, tuple: &FourTuple, to: &Repr, payload_len: usize) {
        if to.flags.contains(Flags::RST) {
            return;
        }
        let mut repr = Repr { src_port: tuple.local_port, dst_port: tuple.remote_port, ..Repr::default() };
        if to.flags.contains(Flags::ACK) {
            (repr.seq, repr.flags) = (to.ack, Flags::RST);
        } else {
            let flags = u32::from(to.flags.contains(Flags::SYN)) + u32::from(to.flags.contains(Flags::FIN));
            (repr.ack, repr.flags) = (to.seq + payload_len as u32 + flags, Flags::RST | Flags::ACK);
        }
        let room = self.resets.len() < self.options.replies_max;
        self.counters.replies_dropped += u64::from(!room);
        if room {
            self.counters.out_rsts += 1;
            self.waiting_apart += 1;
            self.resets.push_back(Reply { tuple: *tuple, repr });
        }
    }

    /// `false`: too many replies wait already, and another is not to be made.
    fn has_reply_room(&mut self) -> bool {
        let room = self.replies.len() < self.options.replies_max;
        self.counters.replies_dropped += u64::from(!room);
        room
    }

    pub fn reply(&mut self, tuple: &FourTuple, repr: Repr) {
        if self.has_reply_room() {
            self.reply_for_connection(tuple, repr);
        }
    }

    /// A connection's last word: each has one, so there are no more than connections, and none is left out.
    pub fn reply_for_connection(&mut self, tuple: &FourTuple, repr: Repr) {
        if repr.flags.contains(Flags::RST) {
            self.counters.out_rsts += 1;
        }
        self.waiting_apart += 1;
        self.replies.push_back(Reply { tuple: *tuple, repr });
    }
}

/// The send sequence space (RFC 9293 section 3.3.1). Positions, not sequence numbers.
struct SendState {
    iss: SeqNumber,
    /// SND.UNA.
    unacknowledged: u64,
    /// SND.NXT.
    next: u64,
    /// SND.WND, bytes.
    window: u64,
    /// SND.WL1, SND.WL2.
    window_seq: u64,
    window_ack: u64,
    /// The largest window the peer ever had, at most 1 GiB (RFC 7323 section 2.3): half of it is worth a short segment (RFC 9293 section 3.8.6.2.1).
    window_max: u32,
    scale: u8,
    /// The peer's MSS option, or 536 without one, 1,220 over IPv6 (RFC 9293 section 3.7.1, MUST-15).
    peer_mss: u16,
    /// IP packet bytes known to pass.
    path_mtu: u16,
    path: Option<Box<PathMtu>>,
    /// Payload bytes of a full segment as last sent.
    mss: u16,
    /// The MTUs of the link and of the path that it follows from.
    mss_of: (u16, u16),
    /// Payload bytes of the longest chain of such segments.
    chain_max: u16,
    queue: SendQueue,
    /// Close was called: a FIN follows the queue.
    fin: bool,
    /// The last list that was refused, bytes.
    refused: u32,
    last_sent_at: Instant,
    /// New data wait until then, if they are paced.
    paced_until: Instant,
    /// Since when nothing was acknowledged though something was sent.
    stalled_since: Instant,
    /// The congestion window, not the data or the peer, ended the last transmission.
    window_limited: bool,
    /// Send a tail loss probe, a window or keepalive probe, or a segment below the window's silly limit at the next occasion.
    tail_probe_due: bool,
    probe_due: bool,
    override_due: bool,
    /// The timer expired, and the first segment was not sent again since.
    timed_out: bool,
    /// Retransmissions, or unanswered probes, in a row.
    retries: u8,
    repair: Repair,
}

/// No position comes to that: the peer's FIN was not seen yet.
const NO_FIN: u64 = u64::MAX;

/// The receive sequence space.
struct ReceiveState {
    irs: SeqNumber,
    /// RCV.NXT.
    next: u64,
    /// RCV.NXT + RCV.WND as last advertised: never taken back.
    edge: u64,
    scale: u8,
    /// Bytes the window may cover, unread ones included.
    limit: u32,
    /// What that was before memory ran short.
    limit_before: u32,
    chain: RxChain,
    /// Upper bound of the driver buffers in `chain`.
    chain_driver_buffers: u32,
    reassembly: Reassembly,
    /// The application will read no more.
    refuses_text: bool,
    /// It left text unread, or the peer sent more: it has to hear of that.
    text_lost: bool,
    /// Where the peer's FIN lies, or `NO_FIN`.
    fin_at: u64,
    /// Last.ACK.sent of RFC 7323.
    acknowledged: u64,
    ts_recent: u32,
    ts_recent_at: Instant,
    /// To be reported as the first SACK block (RFC 2883), unless it is empty.
    duplicate: (u64, u64),
    /// The largest segment seen, as far as it can be one and not several that a device has coalesced.
    mss: u16,
    /// What the MSS that we announced, or could have, leaves for text.
    mss_max: u16,
    ack: Ack,
    /// ACKs owed beyond one: a peer without SACK counts duplicates.
    duplicate_acks: u8,
    quick_acks: u8,
    /// Of text.
    last_received_at: Instant,
    /// Of an acceptable segment.
    last_heard_at: Instant,
    /// When a challenge ACK may go out again.
    challenge_at: Instant,
}

impl ReceiveState {
    /// How far behind RCV.NXT a peer may send something again, bytes: what it sent when the window was largest, all of whose ACKs were lost.
    fn reach(&self) -> u64 {
        self.limit.max(self.limit_before).into()
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ack {
    None,
    /// A timer runs.
    Delayed,
    Now,
}

#[derive(Clone, Copy, Default)]
struct Statistics {
    segments_in: u64,
    segments_out: u64,
    /// Of them, such as carry text, or none.
    text_segments_in: u64,
    bare_segments_out: u64,
    retransmitted: u32,
    retransmitted_bytes: u64,
    bytes_in: u64,
}

pub(crate) struct Connection {
    pub id: ConnectionId,
    pub tuple: FourTuple,
    pub state: State,
    /// Who takes it; `None`: we opened it.
    pub listener: Option<ListenerId>,
    /// It counts among the listener's half-open connections.
    pub half_open: bool,
    /// Wants `transmit` to be called.
    pub wake: bool,
    /// Is in the endpoint's ready queue.
    pub queued: bool,
    /// What the timer wheel knows.
    pub armed: Instant,
    /// Driver buffers the endpoint counts for it.
    pub accounted_buffers: u32,
    pub entered_time_wait: bool,
    /// Counts among its remote's connections.
    pub counted_at_remote: bool,
    pub readable_pending: bool,
    pub writable_pending: bool,
    /// The application will not ask for it again.
    pub released: bool,
    /// It is out of the endpoint's tables.
    pub removed: bool,
    /// The application knows of it.
    known: bool,
    closed_reported: bool,
    timestamps: bool,
    sack: bool,
    scaling: bool,
    pub nagle: bool,
    keepalive: bool,
    /// Since the last acceptable segment.
    keepalive_probes: u8,
    /// Milliseconds.
    user_timeout: u32,
    ecn: Ecn,
    timestamp_offset: u32,
    send: SendState,
    receive: ReceiveState,
    scoreboard: Scoreboard,
    rtt: RttEstimator,
    congestion: Controller,
    timers: Timers,
    statistics: Statistics,
}

impl Connection {
    /// The sequence number at a position of our stream.
    fn seq_at(&self, position: u64) -> SeqNumber {
        // Positions start at the origin, which the ISS names; the low 32 bits wrap as sequence numbers do.
        self.send.iss + (position.wrapping_sub(SEQUENCE_ORIGIN)) as u32
    }

    /// The position an acknowledgement number names, near SND.UNA.
    fn ack_position(&self, ack: SeqNumber) -> u64 {
        let distance = ack.distance(self.seq_at(self.send.unacknowledged));
        self.send.unacknowledged.wrapping_add_signed(i64::from(distance))
    }

    /// The sequence number at a position of the peer's stream.
    fn peer_seq_at(&self, position: u64) -> SeqNumber {
        self.receive.irs + (position.wrapping_sub(SEQUENCE_ORIGIN)) as u32
    }

    /// The position a sequence number of the peer names, near RCV.NXT.
    fn peer_position(&self, seq: SeqNumber) -> u64 {
        let distance = seq.distance(self.peer_seq_at(self.receive.next));
        self.receive.next.wrapping_add_signed(i64::from(distance))
    }

    /// RFC 7323 section 5.4: a millisecond clock, offset per connection.
    fn timestamp(&self, at: Instant) -> u32 {
        (at.millis() as u32).wrapping_add(self.timestamp_offset)
    }

    fn fin_sent(&self) -> bool {
        self.send.next > self.send.queue.end()
    }

    /// A peer opened it, and the handshake is over.
    pub fn is_accepted(&self) -> bool {
        self.listener.is_some() && self.is_synchronized() && self.state != State::TimeWait
    }

    fn is_synchronized(&self) -> bool {
        !matches!(self.state, State::SynSent | State::SynReceived | State::Closed)
    }

    /// Ends the connection. What the application may still read stays until it polled the event.
    fn finish(&mut self, shared: &mut Shared, reason: Reason) {
        if self.state == State::Closed {
            return;
        }
        self.leave_half_open(shared);
        self.set_state(shared, State::Closed);
        self.send.queue.clear();
        self.receive.reassembly.clear();
        self.scoreboard = Scoreboard::new();
        self.timers = Timers::default();
        self.report_closed(shared, reason);
        self.released |= !self.known;
    }

    fn report_closed(&mut self, shared: &mut Shared, reason: Reason) {
        if self.known && !std::mem::replace(&mut self.closed_reported, true) {
            shared.events.push_back(Event::Closed(self.id, reason));
        }
    }

    fn leave_half_open(&mut self, shared: &mut Shared) {
        if !std::mem::take(&mut self.half_open) {
            return;
        }
        if let Some(listener) = self.listener.and_then(|id| shared.listener(id)) {
            listener.half_open = listener.half_open.saturating_sub(1);
        }
    }

    fn set_state(&mut self, shared: &mut Shared, state: State) {
        let established = |state| matches!(state, State::Established | State::CloseWait);
        let waiting = |state| state == State::TimeWait;
        let counters = &mut shared.counters;
        counters.curr_estab = counters.curr_estab + u64::from(established(state)) - u64::from(established(self.state));
        counters.curr_time_wait = counters.curr_time_wait + u64::from(waiting(state)) - u64::from(waiting(self.state));
        self.state = state;
    }

    /// The application has polled `Closed`: nothing of it is needed by it any more.
    pub fn release(&mut self) {
        self.released = true;
        self.receive.chain = RxChain::new();
        self.receive.chain_driver_buffers = 0;
        self.receive.reassembly.clear();
    }

    pub fn info(&self, options: &Options) -> TcpInfo {
        TcpInfo {
            state: self.state,
            local: self.tuple.local(),
            remote: self.tuple.remote(),
            smoothed_rtt: self.rtt.smoothed(),
            rtt_variance: self.rtt.variance(),
            min_rtt: self.rtt.min(),
            rto: self.rtt.rto(),
            backoff: self.rtt.backoff(),
            timer: self.timers.next_of_repair(),
            congestion_control: self.congestion.name(),
            last_sent_at: self.send.last_sent_at,
            last_received_at: self.receive.last_received_at,
            last_heard_at: self.receive.last_heard_at,
            reordering_seen: self.scoreboard.reordering_seen(),
            mss: self.send.mss,
            peer_mss: self.receive.mss,
            announced_mss: self.receive.mss_max,
            path_mtu: (self.send.path_mtu < u16::MAX).then_some(self.send.path_mtu),
            congestion_window: self.congestion.window(),
            slow_start_threshold: self.congestion.slow_start_threshold(),
            in_flight_bytes: self.scoreboard.in_flight(u64::from(self.send.mss)),
            outstanding_bytes: self.send.next.saturating_sub(self.send.unacknowledged),
            sacked_bytes: self.scoreboard.sacked(),
            lost_bytes: self.scoreboard.lost(),
            send_window: self.send.window,
            receive_window: self.receive.edge.saturating_sub(self.receive.next),
            queued_bytes: self.send.queue.len(),
            unread_bytes: self.receive.chain.len(),
            out_of_order_bytes: self.receive.reassembly.len(),
            bytes_acknowledged: self.send.unacknowledged.saturating_sub(SEQUENCE_ORIGIN + 1),
            bytes_received: self.statistics.bytes_in,
            bytes_sent: self.send.next.min(self.send.queue.end()).saturating_sub(SEQUENCE_ORIGIN + 1)
                + self.statistics.retransmitted_bytes,
            segments_in: self.statistics.segments_in,
            segments_out: self.statistics.segments_out,
            text_segments_in: self.statistics.text_segments_in,
            text_segments_out: self.statistics.segments_out - self.statistics.bare_segments_out,
            retransmitted_segments: self.statistics.retransmitted.into(),
            retransmitted_bytes: self.statistics.retransmitted_bytes,
            retransmitted_in_flight: self.scoreboard.retransmitted(),
            window_scale: self.scaling.then_some((self.send.scale, self.receive.scale)),
            timestamps: self.timestamps,
            sack: self.sack,
            ecn: self.ecn.on,
            pacing_rate: options.pacing.then(|| self.pacing_rate()).flatten(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Connection;

    #[test]
    fn an_idle_connection_is_small() {
        // In a box that takes 896 of mimalloc, whose next size is 1,024. Beyond it come a table entry (45), a slot (16) and a timer (24),
        // and what tables have in reserve: tests/idle_connections.rs holds the sum to 1,024.
        let size = std::mem::size_of::<Connection>();
        assert!(size <= 888, "{size} bytes");
    }
}
