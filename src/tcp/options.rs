//! What an endpoint can be told. Every limit has its unit in the name or the doc.

use super::CongestionControl;
use crate::time::Duration;

/// RFC 9293 section 3.8.4: off unless asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Keepalive {
    /// Silence before the first probe.
    pub idle: Duration,
    /// From one probe to the next.
    pub interval: Duration,
    /// Probes without an answer that end the connection.
    pub probes_max: u8,
}

/// RFC 3168 section 6.1.1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Ecn {
    /// Neither asked for nor granted.
    Off,
    /// Granted to peers that ask.
    #[default]
    Accept,
    /// And asked for by `connect`.
    Request,
}

impl Default for Keepalive {
    /// RFC 9293 section 3.8.4, MUST-28: no less than two hours; the rest as in Linux.
    fn default() -> Keepalive {
        Keepalive { idle: Duration::from_secs(7200), interval: Duration::from_secs(75), probes_max: 9 }
    }
}

/// Options of one endpoint; all of its connections share them.
#[derive(Clone, Debug)]
pub struct Options {
    /// Bytes advertised to a new peer; grows with what it sends.
    pub receive_window_initial: u32,
    /// Bytes a peer may have in flight and unread. Larger than the largest record the application waits for.
    pub receive_window_max: u32,
    /// Buffers one connection may hold, in order or not. Also bounds the window: free buffers times the usual segment.
    pub receive_buffers_max: usize,
    /// Driver buffers all connections together may hold; well below the driver's pool. From three quarters on,
    /// everything is copied out.
    pub driver_buffers_max: usize,
    /// Driver buffers a connection holds before its small segments are copied out.
    pub driver_buffers_unshared: usize,
    /// Segments of fewer bytes than this are small.
    pub copy_out_below_bytes: usize,
    /// Bytes queued to send. A longer list is taken only by an empty queue.
    pub send_queue_bytes_max: usize,
    /// Connections in any state, but for those that peers have half opened: of these the tables hold `syn_received_max` more for each
    /// listener. Beyond, TIME-WAITs give way, then what was closed for good; then SYNs, and last ACKs of handshakes, are dropped.
    pub connections_max: usize,
    /// Ports that can be listened on at once.
    pub listeners_max: usize,
    /// Connections that one remote (an IPv4 address, an IPv6 /64) may have opened, TIME-WAIT aside; beyond, its SYNs, and last ACKs
    /// of its handshakes, are dropped.
    pub connections_per_remote_max: usize,
    /// Half-open connections of one listener; beyond, a SYN cookie is sent, or without them the oldest gives way.
    pub syn_received_max: usize,
    /// RFC 4987 section 3.6.
    pub syn_cookies: bool,
    /// Accepted connections not yet polled, per listener.
    pub accept_queue_max: usize,
    /// Connections in TIME-WAIT; beyond, the oldest goes.
    pub time_wait_max: usize,
    /// 2 MSL.
    pub time_wait: Duration,
    /// The retransmission timeout before the first round trip was measured (RFC 6298 section 2.1).
    pub rto_initial: Duration,
    /// The floor of RFC 6298 section 2.4; 1 s there, 200 ms in Linux.
    pub rto_min: Duration,
    /// The longest it gets by doubling; RFC 6298 section 2.5 wants at least 60 s.
    pub rto_max: Duration,
    /// The longest an acknowledgement waits for company.
    pub delayed_ack: Duration,
    /// The same for a segment that ends what the peer had to say (PSH, or short): long enough for a reply out of the
    /// cache, short enough that a peer with Nagle's algorithm, which waits for it, does not notice.
    pub push_ack_delay: Duration,
    /// Segments acknowledged at once at the start and after silence.
    pub quick_acks: u8,
    /// SYNs of `connect` that are sent again before it fails with `Reason::TimedOut`.
    pub syn_retries_max: u8,
    /// SYN-ACKs that are sent again before a half-open connection is given up.
    pub syn_ack_retries_max: u8,
    /// Unacknowledged data this old ends the connection (RFC 9293 section 3.8.3, R2), unless it is told another.
    pub user_timeout: Duration,
    /// How long a connection that nobody here will read any more waits in FIN-WAIT-2 for the peer's FIN. One that is only half-closed
    /// has no such limit (RFC 9293 section 3.6).
    pub fin_wait_2_timeout: Duration,
    /// For every connection; `None`: only for those that `Endpoint::set_keepalive` names.
    pub keepalive: Option<Keepalive>,
    /// RFC 9293 section 3.7.4: off, since a reply is queued whole.
    pub nagle: bool,
    /// A path that did not take the largest packets is tried with larger ones after this (RFC 1191 section 6.3).
    pub path_mtu_raise: Duration,
    /// RFC 7323 section 2: asked for by `connect`, granted to peers that ask.
    pub window_scaling: bool,
    /// RFC 7323 section 3: likewise.
    pub timestamps: bool,
    /// RFC 2018: likewise.
    pub sack: bool,
    /// RFC 3168: whether it is asked for and granted.
    pub ecn: Ecn,
    /// What new connections get.
    pub congestion: CongestionControl,
    /// New data leave spread over the round trip instead of as fast as the device takes them.
    pub pacing: bool,
    /// RFC 5961 section 7: at most one challenge ACK per connection in this time.
    pub challenge_ack_interval: Duration,
    /// Resets waiting to be sent, and apart from them DCTCP's ACKs of a change of marks; beyond, none is made.
    pub replies_max: usize,
    /// SYNs that wait for a cookie, and as many again of those that were dropped and came again; beyond, they are dropped.
    pub syns_waiting_max: usize,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            receive_window_initial: 64 << 10,
            receive_window_max: 2 << 20,
            receive_buffers_max: 2048,
            driver_buffers_max: 4096,
            driver_buffers_unshared: 16,
            copy_out_below_bytes: 512,
            send_queue_bytes_max: 4 << 20,
            connections_max: 65_536,
            connections_per_remote_max: 2048,
            listeners_max: 64,
            syn_received_max: 1024,
            syn_cookies: true,
            accept_queue_max: 1024,
            time_wait_max: 8192,
            time_wait: Duration::from_secs(60),
            rto_initial: Duration::from_secs(1),
            rto_min: Duration::from_millis(200),
            rto_max: Duration::from_secs(60),
            delayed_ack: Duration::from_millis(40),
            push_ack_delay: Duration::from_millis(1),
            quick_acks: 16,
            syn_retries_max: 7,
            syn_ack_retries_max: 5,
            user_timeout: Duration::from_secs(180),
            fin_wait_2_timeout: Duration::from_secs(60),
            keepalive: None,
            nagle: false,
            path_mtu_raise: Duration::from_secs(600),
            window_scaling: true,
            timestamps: true,
            sack: true,
            ecn: Ecn::default(),
            congestion: CongestionControl::Cubic,
            pacing: false,
            challenge_ack_interval: Duration::from_millis(500),
            replies_max: 256,
            syns_waiting_max: 256,
        }
    }
}
