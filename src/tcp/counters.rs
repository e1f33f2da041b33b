//! What one endpoint counts, under `nstat`'s names where it has them.

crate::counters! {
    /// Counters of one endpoint.
    pub struct TcpCounters {
        /// Segments handed in.
        in_segs,
        /// Segments dropped for a wrong checksum.
        in_csum_errors,
        /// Segments dropped for a malformed header.
        in_errs,
        /// Segments dropped because an address is not a host's.
        in_addr_errors,
        /// Segments handed out, of a TSO chain each that the device cuts; retransmissions included.
        out_segs,
        /// Payload bytes handed out, retransmissions included.
        out_bytes,
        /// Payload bytes received in order.
        in_bytes,
        /// Resets sent.
        out_rsts,
        /// Resets, and DCTCP's ACKs of a change of marks, not sent because too many waited.
        replies_dropped,
        /// Resets that ended an established connection (RFC 4022: from ESTABLISHED or CLOSE-WAIT).
        estab_resets,
        /// Connections opened by connect.
        active_opens,
        /// Connections opened by a peer's SYN.
        passive_opens,
        /// Handshakes that failed.
        attempt_fails,
        /// SYNs, and last ACKs of handshakes, dropped because the endpoint's connections were at their maximum.
        listen_drops,
        /// Half-open connections given up because a newer SYN needed the place.
        half_open_evicted,
        /// SYNs dropped because too many waited for a cookie.
        syn_queue_drops,
        /// SYN cookies sent.
        syncookies_sent,
        /// Connections opened by the answer to a SYN cookie.
        syncookies_recv,
        /// ACKs, while cookies were out, that answered none.
        syncookies_failed,
        /// SYNs, and last ACKs of handshakes, dropped because their remote had its maximum of connections.
        remote_drops,
        /// Handshakes whose last ACK was dropped because too many accepted connections waited.
        listen_overflows,
        /// Of `out_segs`, segments that carried retransmitted data, SYN or FIN.
        retrans_segs,
        /// Retransmission timeouts.
        rto_timeouts,
        /// Fast recoveries of peers with SACK.
        sack_recoveries,
        /// Fast recoveries of peers without SACK.
        reno_recoveries,
        /// Tail loss probes sent.
        loss_probes,
        /// Losses that a tail loss probe repaired.
        loss_probe_recoveries,
        /// Recoveries and timeouts that turned out not to have been needed, and were undone.
        spurious_repairs,
        /// Of them, timeouts that F-RTO found to have come too early.
        spurious_rtos,
        /// Of them, what D-SACK reported.
        dsack_undos,
        /// Times the window fell because the peer saw a congestion mark.
        ecn_reductions,
        /// Segments received with a congestion mark, on connections that agreed on ECN.
        ce_received,
        /// Bytes judged lost.
        lost_bytes,
        /// D-SACK blocks sent.
        dsack_sent,
        /// D-SACK blocks received.
        dsack_recv,
        /// SACK blocks received that name nothing in flight.
        sack_discarded,
        /// Segments queued out of order.
        ofo_queued,
        /// Out-of-order segments dropped: too many holes, or the connection or the endpoint held too many buffers.
        ofo_drops,
        /// Out-of-order ranges forgotten to make room for what is in order.
        ofo_pruned,
        /// Segments in order dropped because the connection or the endpoint held too many buffers.
        rcv_buffer_drops,
        /// Payload bytes beyond the window, dropped.
        rcv_beyond_window_bytes,
        /// Payload bytes received more than once.
        duplicate_bytes,
        /// Payload bytes copied out of driver buffers.
        copied_out_bytes,
        /// Segments outside the window, answered with an ACK.
        out_of_window,
        /// Segments refused by RFC 7323's timestamp check.
        paws_estab_rejected,
        /// Segments without the agreed timestamps, dropped.
        timestamps_missing,
        /// Challenge ACKs sent.
        challenge_acks,
        /// Challenge ACKs not sent because of the rate limit.
        challenge_acks_skipped,
        /// ACKs of data never sent, or older than any window.
        unacceptable_acks,
        /// ACKs sent alone.
        pure_acks,
        /// ACKs sent because the delay ran out.
        delayed_acks,
        /// Window probes sent.
        win_probes,
        /// Keepalive probes sent.
        keep_alives,
        /// Connections ended by the user timeout, by keepalive or in the handshake.
        abort_on_timeout,
        /// Connections reset because data came that nobody would read.
        abort_on_data,
        /// Connections that nobody here held any more reset because a new one needed the place.
        abort_on_memory,
        /// Connections closed here whose peer did not close its side in time.
        fin_wait_2_timeouts,
        /// Connections that entered TIME-WAIT.
        time_wait_entered,
        /// TIME-WAITs cut short because there were too many.
        time_wait_overflows,
        /// TIME-WAITs ended by a new SYN.
        time_wait_recycled,
        /// Sends refused because the queue was full.
        send_queue_full,
        /// Urgent pointers ignored.
        urgent_ignored,
        /// ICMP errors that fit no data in flight (RFC 5927).
        icmp_ignored,
        /// Path MTU reductions that ICMP asked for.
        pmtu_reductions,
        /// Paths that take less than the least MTU that is planned with: routers may cut their packets.
        pmtu_below_least,
        /// Path MTU reductions because full segments vanished without ICMP.
        pmtu_black_holes,
        /// Probes for a larger path MTU that arrived.
        mtup_success,
        /// Probes for a larger path MTU that did not.
        mtup_fail,
    }
    gauges {
        /// Connections in any state but CLOSED.
        curr_connections,
        /// Connections between handshake and close.
        curr_estab,
        /// Connections in TIME-WAIT.
        curr_time_wait,
        /// Driver buffers held by all connections (an upper bound).
        driver_buffers_held,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::counters::Counters;

    /// docs/counters.md says what they are called elsewhere.
    #[test]
    fn the_page_names_counters_that_exist() {
        let page = include_str!("../../docs/counters.md");
        // TCP's is the first of its tables.
        let table = page.lines().skip_while(|line| !line.starts_with('|')).take_while(|line| line.starts_with('|'));
        let named: Vec<&str> = table.skip(2).filter_map(|row| row.split('|').nth(2)).map(str::trim).collect();
        let counters = TcpCounters::default();
        let known = |name: &str| counters.fields().iter().any(|field| field.name == name);
        assert!(named.len() > 40, "{} rows", named.len());
        assert!(named.iter().all(|name| known(name)), "{:?}", named.iter().find(|name| !known(name)));
    }
}
