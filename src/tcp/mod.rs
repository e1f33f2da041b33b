//! TCP without I/O: an [`Endpoint`] holds all connections of one core, on a clock that is handed in.
//!
//! The order in which to drive it:
//! 1. [`Endpoint::handle_segment`] for each received segment (or [`Endpoint::handle_marked_segment`], where the IP header's
//!    ECN bits are known), [`Endpoint::handle_icmp`] for each ICMP error that quotes one,
//!    [`Endpoint::handle_timeout`] when [`Endpoint::poll_timeout`] has come.
//! 2. [`Endpoint::poll_event`] until `None`: what the application has to know. Act on it with the verbs (`send`, `receive` and
//!    `received`, `close`, `close_both`, `abort`).
//! 3. [`Endpoint::poll_transmit`] until `false`: each call yields one packet or one TSO chain. ACKs are coalesced here, so handle a
//!    whole burst and its events first: the reply then carries the acknowledgement.
//! 4. [`Endpoint::poll_timeout`] says when to come back.
//!
//! A connection's id is good until its [`Event::Closed`] has been polled, and refused afterwards.
//!
//! Inside: `endpoint` (tables, listeners, resets), `connection` (RFC 9293 in its own steps), `recovery` (what is lost: RACK-TLP,
//! SACK, NewReno, PRR), `congestion`, `rtt`, `reassembly`, `send_queue`, `syn_cookie`, `syn_queue`, `remotes`. Positions in a stream are
//! `u64` that never wrap (the SYN lies at `SEQUENCE_ORIGIN`); sequence numbers exist only at the wire.
//!
//! Not here: IP, RPC, clocks, randomness. May import: `wire`, `buf`, `time`, `counters`.
#![deny(missing_docs)]

mod congestion;
mod connection;
mod counters;
mod endpoint;
mod options;
mod reassembly;
mod recovery;
mod remotes;
mod rtt;
mod send_queue;
mod syn_cookie;
mod syn_queue;
mod tuple_hash;

#[cfg(test)]
mod tests;

pub use congestion::CongestionControl;
pub use counters::TcpCounters;
pub use endpoint::{ConnectionId, Endpoint, FourTuple, IcmpError, Transmit, TransmitLimits};
pub use options::{Ecn, Keepalive, Options};

use std::net::SocketAddr;

use crate::time::{Duration, Instant};

/// Where the SYN lies in both directions. Far from 0, so that positions before the start of a stream exist.
pub(crate) const SEQUENCE_ORIGIN: u64 = 1 << 32;

/// The states of RFC 9293 section 3.3.2. LISTEN is a port of the endpoint; CLOSED is absence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// `connect` has sent its SYN, or will.
    SynSent,
    /// A SYN came and was answered; the peer's ACK is missing.
    SynReceived,
    /// Both directions are open.
    Established,
    /// Closed here, and the FIN is not acknowledged.
    FinWait1,
    /// Closed here and acknowledged; the peer may still send.
    FinWait2,
    /// Closed by the peer; there may still be sent.
    CloseWait,
    /// Both have closed, and neither FIN came first: ours is not acknowledged.
    Closing,
    /// Closed by the peer, then here; our FIN is not acknowledged.
    LastAck,
    /// Over, but its four-tuple rests for `Options::time_wait` (RFC 9293 section 3.4.2).
    TimeWait,
    /// Over, and kept only until `Event::Closed` has been polled.
    Closed,
}

/// What the application has to know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// A peer finished the handshake.
    Accepted {
        /// The one that was given to `listen`.
        port: u16,
        /// Names the connection from now on.
        id: ConnectionId,
        /// The peer's address and port.
        remote: SocketAddr,
    },
    /// `connect` succeeded.
    Connected(ConnectionId),
    /// There are bytes to `receive` that were not there at the last `Readable`.
    Readable(ConnectionId),
    /// The send queue fell below half of its maximum, or has room again for a list that was refused.
    Writable(ConnectionId),
    /// The peer will send no more; it may still be sent to.
    PeerClosed(ConnectionId),
    /// The last event of a connection. Its id and what was not received are gone when this has been polled.
    Closed(ConnectionId, Reason),
}

/// Why a connection ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// Both directions were closed and acknowledged.
    Finished,
    /// The peer reset it.
    Reset,
    /// `connect` was answered with a reset.
    Refused,
    /// Nothing was acknowledged for the user timeout, or the handshake's retries or keepalive's probes ran out.
    TimedOut,
    /// An ICMP hard error during the handshake.
    Unreachable,
    /// `abort` was called, or text came after `close_both`.
    Aborted,
}

/// Why nothing of a gather list was taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SendError {
    /// Wait for `Event::Writable`.
    #[error("the send queue has no room for the whole list")]
    Full,
    /// Unknown id, or this direction is closed.
    #[error("the connection does not take data any more")]
    Closed,
}

/// Why `connect` did nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConnectError {
    /// A connection between them is there, perhaps in TIME-WAIT: take another local port.
    #[error("this pair of addresses and ports is in use")]
    InUse,
    /// Every ephemeral port has a connection to this remote address and port.
    #[error("no local port is free")]
    NoPort,
    /// `Options::connections_max`.
    #[error("the endpoint has its maximum of connections")]
    TooMany,
    /// Unspecified, a group, of two families, or the remote port is 0 (RFC 9293 section 3.9.2.3).
    #[error("not addresses one can connect between")]
    InvalidAddress,
}

/// Why a port cannot be listened on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ListenError {
    /// By this endpoint: `unlisten`, or `unlisten_at`, ends that.
    #[error("this address and port are listened on already")]
    InUse,
    /// `Options::listeners_max`.
    #[error("the endpoint has its maximum of listeners")]
    TooMany,
    /// It stands for "any" where a port is chosen, and no segment may carry it.
    #[error("port 0 cannot be listened on")]
    InvalidPort,
    /// A group's, or the one that stands for any.
    #[error("not the address of a host")]
    InvalidAddress,
}

/// A connection's figures, as `ss -ti` shows them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TcpInfo {
    /// Where it is between SYN and TIME-WAIT.
    pub state: State,
    /// Our address and port.
    pub local: SocketAddr,
    /// The peer's.
    pub remote: SocketAddr,
    /// SRTT of RFC 6298 section 2; `None` before the first measurement.
    pub smoothed_rtt: Option<Duration>,
    /// RTTVAR of the same section.
    pub rtt_variance: Duration,
    /// The least round trip of late, as RFC 8985 section 6.2 step 1 wants it; `None` before the first measurement.
    pub min_rtt: Option<Duration>,
    /// The retransmission timeout, doubled as often as `backoff` says.
    pub rto: Duration,
    /// How often it was doubled.
    pub backoff: u32,
    /// The timer that fires next, of those that repair: its name and when.
    pub timer: Option<(&'static str, Instant)>,
    /// `congestion` in the configuration.
    pub congestion_control: &'static str,
    /// When text was sent last.
    pub last_sent_at: Instant,
    /// When text was received last.
    pub last_received_at: Instant,
    /// When an acceptable segment was received last.
    pub last_heard_at: Instant,
    /// The network was seen to reorder (RFC 8985 section 6.2 step 3).
    pub reordering_seen: bool,
    /// Payload bytes of a full segment.
    pub mss: u16,
    /// Payload bytes of the longest segment that the peer has sent.
    pub peer_mss: u16,
    /// Payload bytes of the longest that it may send.
    pub announced_mss: u16,
    /// Bytes of the largest IP packet that the path is known to take; `None`: no smaller one than the link's was needed.
    pub path_mtu: Option<u16>,
    /// Bytes.
    pub congestion_window: u64,
    /// Bytes; `u64::MAX` before the first loss.
    pub slow_start_threshold: u64,
    /// Sent, not acknowledged and thought to be in the network (RFC 6675 pipe).
    pub in_flight_bytes: u64,
    /// Sent and not acknowledged, whatever became of it.
    pub outstanding_bytes: u64,
    /// Of those, the ones that the peer holds behind a hole (RFC 2018).
    pub sacked_bytes: u64,
    /// Of those, the ones that are taken for lost and were not sent again.
    pub lost_bytes: u64,
    /// The peer's window, bytes.
    pub send_window: u64,
    /// What we advertise, bytes.
    pub receive_window: u64,
    /// Handed to `send` and not acknowledged, whether sent or not, bytes.
    pub queued_bytes: usize,
    /// Received in order and not taken out of the chain, bytes.
    pub unread_bytes: usize,
    /// Received behind a hole, bytes.
    pub out_of_order_bytes: usize,
    /// Since the handshake, bytes.
    pub bytes_acknowledged: u64,
    /// In order, since the handshake, bytes.
    pub bytes_received: u64,
    /// Of text, whether for the first time or again.
    pub bytes_sent: u64,
    /// With text or without.
    pub segments_in: u64,
    /// Of a TSO chain each that the device cuts.
    pub segments_out: u64,
    /// Of `segments_in`, such as carry text.
    pub text_segments_in: u64,
    /// Of `segments_out`, such as carry text.
    pub text_segments_out: u64,
    /// Of these, repetitions of what had been sent before, modulo 2^32.
    pub retransmitted_segments: u64,
    /// Text in them, bytes.
    pub retransmitted_bytes: u64,
    /// Of that, what was neither acknowledged nor lost since, bytes.
    pub retransmitted_in_flight: u64,
    /// By how many bits the peer's windows are shifted, and ours (RFC 7323 section 2); `None`: not agreed on.
    pub window_scale: Option<(u8, u8)>,
    /// Agreed on (RFC 7323 section 3).
    pub timestamps: bool,
    /// Agreed on (RFC 2018).
    pub sack: bool,
    /// Agreed on (RFC 3168).
    pub ecn: bool,
    /// Bytes a second at which sending is spread in time; `None`: it is not.
    pub pacing_rate: Option<u64>,
}
