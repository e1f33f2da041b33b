//! `[limits]`: every bound that an operator may move, with its unit, default and allowed range.
//!
//! One line per key is the whole definition: reading, writing and the default come from it. What reaching a limit does is
//! told here in short; the room that keeps the limit defines it.

use super::source::Section;
use super::value::{Toml, number};

macro_rules! limits {
    ($(
        $(#[doc = $help:literal])+
        $key:ident: $type:ty = $default:expr, $range:expr $(, $step:ident $(($unit:expr))?)?;
    )*) => {
        /// `[limits]`. Units are the last part of a name; a name without one counts things.
        #[derive(Clone, Debug, PartialEq, Eq)]
        pub struct Limits {
            $( $(#[doc = $help])+ pub $key: $type, )*
        }

        impl Default for Limits {
            fn default() -> Self {
                Self { $( $key: $default, )* }
            }
        }

        impl Limits {
            pub(super) fn read(section: &mut Section<'_, '_>) -> Self {
                Self { $(
                    $key: section.or(stringify!($key), number::<$type>($range)$(.$step($($unit)?))?, $default),
                )* }
            }

            pub(super) fn write(&self, out: &mut String) {
                $( out.push_str(&format!("{} = {}\n", stringify!($key), self.$key.toml())); )*
            }
        }
    };
}

limits! {
    /// Connections open at once on one core; beyond it the oldest unauthenticated one is closed, or the new one refused.
    connections_max: u32 = 4096, 1..=1_048_576;
    /// Connections that have not yet presented a valid file handle or credential; the oldest of them is closed for a new one.
    connections_unauthenticated_max: u32 = 64, 1..=1_048_576;
    /// A connection without a call for so long is closed.
    idle_timeout_s: u32 = 360, 10..=86_400;
    /// Longest time from a record's first byte to its last, besides what record_bytes_per_second_min gives for the bytes that
    /// have come; then the connection is reset.
    record_timeout_s: u32 = 60, 1..=3600;
    /// The slowest that a record may come after record_timeout_s: a client on a slow line is not cut off in a long WRITE.
    record_bytes_per_second_min: u32 = 1024, 64..=1_073_741_824;
    /// Longest call record, over all its fragments; a longer one closes the connection.
    record_bytes_max: u32 = 1_114_112, 65_536..=16_777_216;
    /// Most fragments one record may come in; more close the connection.
    record_fragments_max: u32 = 1024, 1..=65_536;
    /// Most fragments without a byte among them.
    record_empty_fragments_max: u32 = 16, 0..=65_536;
    /// Calls of one connection being worked on; at the limit the next one is not read.
    calls_in_flight_per_connection_max: u32 = 128, 1..=4096;
    /// The same for all connections of a core together.
    calls_in_flight_per_core_max: u32 = 4096, 16..=65_536;
    /// Replies queued on one connection and not yet acknowledged; at the limit the next call is not read.
    send_queue_bytes_max: u32 = 4_194_304, 65_536..=268_435_456;
    /// Receive buffers one connection may hold; the TCP window closes before it.
    receive_buffers_per_connection_max: u32 = 2048, 64..=65_536;
    /// Replies kept for retransmitted calls that must not be carried out twice; the oldest is forgotten.
    duplicate_request_cache_entries: u32 = 4096, 64..=1_048_576;
    /// How long such a reply is kept.
    duplicate_request_cache_s: u32 = 120, 1..=3600;
    /// Most bytes one READ returns: rtmax of FSINFO.
    read_bytes_max: u32 = 1_048_576, 4096..=1_048_576, multiple_of(4096);
    /// Most bytes one WRITE takes: wtmax of FSINFO.
    write_bytes_max: u32 = 1_048_576, 4096..=1_048_576, multiple_of(4096);
    /// Most bytes of one READDIR or READDIRPLUS reply: dtpref of FSINFO.
    readdir_bytes_max: u32 = 32_768, 4096..=1_048_576, multiple_of(4096);
    /// Attributes younger than this are answered without asking the file system; also the longest time after which a change
    /// made on the host is seen. 0 asks every time.
    attribute_cache_ms: u32 = 1000, 0..=3_600_000;
    /// Files the server keeps open on the host; the one longest unused is closed.
    open_files_max: u32 = 4096, 64..=1_048_576;
    /// Blocks read ahead of a sequential reader; 0 switches reading ahead off.
    readahead_blocks: u32 = 16, 0..=1024;
    /// Calls of one loop that wait for the storage of one export; beyond it a call is answered with NFS3ERR_JUKEBOX.
    io_queue_entries: u32 = 1024, 16..=65_536;
    /// Neighbours remembered on a port; the one longest unused is forgotten.
    arp_entries_max: u32 = 1024, 16..=65_536;
    /// An ARP entry older than this is resolved anew.
    arp_age_s: u32 = 60, 10..=86_400;
    /// Connections that one address (of IPv6, one /64) may have open; beyond it its SYNs are dropped and counted.
    tcp_connections_per_address_max: u32 = 2048, 16..=1_048_576;
    /// Connections half open (SYN received) at once; beyond it a SYN is answered with a cookie (RFC 4987).
    tcp_half_open_max: u32 = 1024, 16..=65_536;
    /// Connections whose handshake is complete and that no turn of the server has taken on yet; beyond it the last ACK of a handshake is
    /// dropped and comes again.
    tcp_accept_queue_max: u32 = 1024, 16..=65_536;
    /// Largest receive window offered to one connection.
    tcp_receive_window_bytes_max: u32 = 2_097_152, 65_536..=67_108_864;
    /// Shortest retransmission timeout (RFC 6298 says 1000 ms; Linux uses 200).
    tcp_rto_min_ms: u32 = 200, 10..=10_000;
    /// Longest retransmission timeout; at least 60 s (RFC 6298 section 2.5).
    tcp_rto_max_ms: u32 = 60_000, 60_000..=600_000;
    /// Unacknowledged for so long, a connection is given up (R2 of RFC 9293 section 3.8.3, at least 100 s).
    tcp_user_timeout_s: u32 = 180, 100..=3600;
    /// Longest delay of an acknowledgement (below 500 ms: RFC 9293 section 3.8.6.3).
    tcp_delayed_ack_ms: u32 = 40, 0..=499;
    /// How long a closed connection's four-tuple rests in TIME-WAIT: twice the MSL.
    tcp_time_wait_s: u32 = 60, 1..=240;
    /// Connections in TIME-WAIT; beyond it the oldest is forgotten.
    tcp_time_wait_max: u32 = 8192, 64..=1_048_576;
    /// How long a connection that the server has closed waits in FIN-WAIT-2 for the client to close it, too.
    tcp_fin_wait_s: u32 = 60, 1..=3600;
    /// After SIGTERM: how long replies in progress may take before what is left is reset.
    drain_ms_max: u32 = 1500, 0..=60_000;
}
