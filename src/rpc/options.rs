//! Limits and counters of the RPC server.

use super::connection::ConnectionLimits;
use super::drc::DrcOptions;
use super::record::RecordLimits;
use crate::counters;
use crate::time::Duration;

/// Longest reply by datagram over IPv6: what every path takes, 1,280 bytes, less the headers of IPv6 and UDP. A node that does not learn what
/// a path takes keeps to it (RFC 8200 section 5), and no router cuts what is longer.
pub(super) const DATAGRAM_BYTES_MAX_V6: u32 = 1280 - 40 - 8;

/// Every limit of one core's RPC server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Options {
    /// Bytes of a call's record; sunrpc's `sv_max_mesg`: the largest WRITE plus a page. TCP's receive buffer must hold this
    /// many bytes and 4 more per fragment, or a record that big never completes.
    pub record_bytes_max: u32,
    /// Fragments of one record.
    pub fragments_max: u32,
    /// Fragments of one record that carry no byte.
    pub empty_fragments_max: u32,
    /// How long a record may stay incomplete after its first byte was seen, plus the time that what has come of it takes at
    /// `record_bytes_per_second_min`; then the connection is closed. A slow client that makes progress is not cut off.
    pub record_timeout: Duration,
    /// The slowest that a record may come once `record_timeout` has passed; not 0. With `record_bytes_max` it bounds how long
    /// an incomplete record holds receive buffers.
    pub record_bytes_per_second_min: u32,
    /// Connections of this core. Beyond: the oldest unauthenticated one is closed; if there is none, the new one is refused.
    pub connections_max: u32,
    /// Connections that have not presented a usable file handle; beyond: the oldest of them is closed (sunrpc: 64).
    pub connections_unauthenticated_max: u32,
    /// A connection that asks for nothing and takes nothing for so long is closed (sunrpc: 6 to 12 minutes).
    pub idle_timeout: Duration,
    /// Calls of one connection that wait; beyond: its next record stays unread.
    pub calls_in_flight_max: u32,
    /// Calls of this core that wait; beyond: records stay unread, datagrams are dropped.
    pub calls_in_flight_total_max: u32,
    /// Of those, calls that came by datagram.
    pub datagram_calls_in_flight_max: u32,
    /// Bytes of replies of one connection, waiting, queued or unacknowledged; beyond: its next record stays unread.
    pub send_queue_bytes_max: u64,
    /// Records taken from one connection before others get their turn.
    pub calls_per_turn_max: u32,
    /// Completions handled in one `poll_completions`.
    pub completions_per_turn_max: u32,
    /// Replies to datagrams that wait to be sent; beyond: calls by datagram are dropped.
    pub datagram_replies_max: u32,
    /// Longest reply by datagram, bytes; a longer one becomes SYSTEM_ERR. What fits a frame: nobody fragments for us. Over IPv6
    /// `DATAGRAM_BYTES_MAX_V6` holds, too.
    pub datagram_bytes_max: u32,
    /// How long to wait before asking again for room that a core did not have.
    pub retry_after: Duration,
    pub drc: DrcOptions,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            record_bytes_max: (1 << 20) + 4096,
            fragments_max: 1024,
            empty_fragments_max: 16,
            record_timeout: Duration::from_secs(60),
            record_bytes_per_second_min: 1024,
            connections_max: 4096,
            connections_unauthenticated_max: 64,
            idle_timeout: Duration::from_secs(360),
            calls_in_flight_max: 128,
            calls_in_flight_total_max: 4096,
            datagram_calls_in_flight_max: 64,
            send_queue_bytes_max: 4 << 20,
            calls_per_turn_max: 64,
            completions_per_turn_max: 256,
            datagram_replies_max: 256,
            datagram_bytes_max: 1472,
            retry_after: Duration::from_millis(1),
            drc: DrcOptions { entries: 4096, reply_bytes_max: 512, expiry: Duration::from_secs(120), seed: [0; 2] },
        }
    }
}

impl Options {
    /// What of these bounds a record.
    pub fn record(&self) -> RecordLimits {
        RecordLimits {
            record_bytes_max: self.record_bytes_max,
            fragments_max: self.fragments_max,
            empty_fragments_max: self.empty_fragments_max,
        }
    }

    pub(super) fn connection(&self) -> ConnectionLimits {
        ConnectionLimits { calls_in_flight_max: self.calls_in_flight_max, send_queue_bytes_max: self.send_queue_bytes_max }
    }
}

counters! {
    /// What one core's RPC server counts. The first eleven are the `net`, `rpc` and `rc` lines of /proc/net/rpc/nfsd, with its
    /// names; `rpcbadcalls` there is the sum of `rpcbadfmt`, `rpcbadauth` and `rpcbadclnt`.
    pub struct RpcCounters {
        /// Messages taken, over both transports.
        netcnt,
        /// Datagrams taken.
        netudpcnt,
        /// Records taken from streams.
        nettcpcnt,
        /// Connections accepted.
        nettcpconn,
        /// Calls handed to a program.
        rpccnt,
        /// Calls that were malformed, or named a program, version or procedure that does not exist.
        rpcbadfmt,
        /// Calls whose credential or verifier was refused before the program saw them.
        rpcbadauth,
        /// Calls that a program refused for who the caller is.
        rpcbadclnt,
        /// Retransmissions of calls in the duplicate request cache, in progress or answered.
        rchits,
        /// Calls that are not idempotent and were new.
        rcmisses,
        /// Calls that need no cache, or found no room in it.
        rcnocache,
        /// Retransmissions dropped because the call was still in progress.
        duplicates_dropped,
        /// Retransmissions answered with the stored reply.
        duplicates_replayed,
        /// Replies too long for the duplicate request cache.
        drc_reply_too_long,
        /// Messages that are not calls, dropped.
        not_calls,
        /// Calls parked by a program.
        calls_parked,
        /// Calls a program chose not to answer.
        calls_dropped,
        /// Replies queued.
        replies,
        /// Bytes of replies queued, record marks included.
        reply_bytes,
        /// Replies whose connection was gone.
        replies_orphaned,
        /// Answers of SYSTEM_ERR.
        system_errors,
        /// Results that did not fit in the room their procedure announced.
        results_overflowed,
        /// Replies by datagram beyond `datagram_bytes_max`.
        datagram_replies_too_long,
        /// Datagrams dropped: malformed, or no room to answer.
        datagrams_dropped,
        /// Completions for tickets that are not waiting.
        tickets_unknown,
        /// Times a connection was left unread because `calls_in_flight_max` was reached.
        stalls_calls_in_flight,
        /// Times a connection was left unread because `send_queue_bytes_max` was reached.
        stalls_send_queue,
        /// Times a connection or a completion waited because fragment pages or call slots were used up.
        stalls_core,
        /// Connections refused because `connections_max` was reached.
        connections_refused,
        /// Connections closed because `connections_unauthenticated_max` or `connections_max` was reached.
        closed_unauthenticated,
        /// Connections closed after `idle_timeout`.
        closed_idle,
        /// Connections closed because a record stayed incomplete for `record_timeout` and came too slowly.
        closed_record_timeout,
        /// Connections reset because they had left replies unacknowledged for 5 s while pages were short.
        closed_holding_pages,
        /// Connections closed for a record above `record_bytes_max`.
        closed_record_too_long,
        /// Connections closed for a record too short to be a message or a call.
        closed_record_too_short,
        /// Connections closed for a record above `fragments_max` or `empty_fragments_max`.
        closed_too_many_fragments,
        /// Connections closed after the peer had finished and had got all its replies.
        closed_finished,
        /// Streams that ended inside a record.
        streams_truncated,
    }
    gauges {
        /// Connections open.
        connections,
        /// Calls waiting.
        calls_in_flight,
    }
}
