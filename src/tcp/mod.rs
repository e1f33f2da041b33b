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
//! SACK, NewReno, PRR), `congestion`, `rtt`, `reassembly`, `send_queue`, `syn_cookie`, `syn_queue`, `remotes`. Positions in a stream are `u64` that
//! never wrap (the SYN lies at `SEQUENCE_ORIGIN`); sequence numbers exist only at the wire.
//!
//! Not here: IP, RPC, clocks, randomness. May import: `wire`, `buf`, `time`, `counters`.

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
    SynSent,
    SynReceived,
    Established,
    FinWait1,
    FinWait2,
    CloseWait,
    Closing,
    LastAck,
    TimeWait,
    /// Over, and kept only until `Event::Closed` has been polled.
    Closed,
}

/// What the application has to know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// A peer finished the handshake on listening port `port`.
    Accepted { port: u16, id: ConnectionId, remote: SocketAddr },
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
    #[error("this pair of addresses and ports is in use")]
    InUse,
    #[error("no local port is free")]
    NoPort,
    #[error("the endpoint has its maximum of connections")]
    TooMany,
    #[error("not addresses one can connect between")]
    InvalidAddress,
}

/// Why a port cannot be listened on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ListenError {
    #[error("the port is listened on already")]
    InUse,
    #[error("the endpoint has its maximum of listeners")]
    TooMany,
    #[error("port 0 cannot be listened on")]
    InvalidPort,
}

/// A connection's figures, as `ss -ti` shows them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TcpInfo {
    pub state: State,
    pub local: SocketAddr,
    pub remote: SocketAddr,
    pub smoothed_rtt: Option<Duration>,
    pub rtt_variance: Duration,
    pub min_rtt: Option<Duration>,
    pub rto: Duration,
    /// How often it was doubled.
    pub backoff: u32,
    /// The timer that fires next, of those that repair: its name and when.
    pub timer: Option<(&'static str, Instant)>,
    /// `congestion` in the configuration.
    pub congestion_control: &'static str,
    /// Text was sent, and received.
    pub last_sent_at: Instant,
    pub last_received_at: Instant,
    /// The network was seen to reorder (RFC 8985 section 6.2 step 3).
    pub reordering_seen: bool,
    /// Payload bytes of a full segment.
    pub mss: u16,
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
    pub sacked_bytes: u64,
    pub lost_bytes: u64,
    /// The peer's window, bytes.
    pub send_window: u64,
    /// What we advertise, bytes.
    pub receive_window: u64,
    pub queued_bytes: usize,
    pub unread_bytes: usize,
    pub out_of_order_bytes: usize,
    pub bytes_acknowledged: u64,
    pub bytes_received: u64,
    pub segments_in: u64,
    /// Of a TSO chain each that the device cuts.
    pub segments_out: u64,
    pub retransmitted_segments: u64,
    pub window_scale: Option<(u8, u8)>,
    pub timestamps: bool,
    pub sack: bool,
    pub ecn: bool,
    /// Bytes a second at which sending is spread in time; `None`: it is not.
    pub pacing_rate: Option<u64>,
}
