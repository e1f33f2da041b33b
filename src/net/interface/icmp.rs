//! ICMP: echo, errors about our packets, errors about theirs.
//!
//! Read first: RFC 1122 section 3.2.2 (when an error may be sent), RFC 1812 section 4.3.2 (how much it quotes, how often),
//! RFC 1191 sections 4 and 7 (MTUs), RFC 5927 (why errors are hints, not facts).

use std::net::{IpAddr, SocketAddr};

use super::receive::{Ipv4Facts, Reason};
use super::send::{Control, ParkedPacket};
use super::{IcmpError, IcmpErrorKind, Ingress, Interface, UdpDatagram};
use crate::buf::{RxPacket, Slice};
use crate::time::{Duration, Instant};
use crate::wire::checksum::Sum;
use crate::wire::icmpv4::{HEADER_LEN, Packet, QUOTE_LEN_MAX, Quote, Repr, plateau_below, unreachable};
use crate::wire::protocol;

/// RFC 1191 section 3: no link's MTU is below this.
const PATH_MTU_MIN: u16 = 68;

impl Interface {
    pub(super) fn receive_icmp(&mut self, facts: Ipv4Facts, mut packet: RxPacket) -> Result<Ingress, Reason> {
        let view = Packet::new(&packet.first).map_err(|_| -> Reason { |c| &mut c.icmp_malformed })?;
        // No device verifies this one.
        let mut sum = Sum::new();
        sum.add_packet(&packet);
        if !sum.is_valid() {
            return Err(|c| &mut c.icmp_bad_checksum);
        }
        let kind = match Repr::parse(&view) {
            Repr::EchoRequest { identifier, sequence } => {
                packet.advance(HEADER_LEN);
                self.counters.icmp_echo_in += 1;
                self.queue_icmp(&facts, Repr::EchoReply { identifier, sequence }, &[], &packet, usize::MAX);
                return Ok(Ingress::Consumed);
            }
            Repr::DestinationUnreachable { code: unreachable::FRAGMENTATION_NEEDED, mtu } => {
                IcmpErrorKind::FragmentationNeeded { mtu }
            }
            Repr::DestinationUnreachable { code, .. } => IcmpErrorKind::Unreachable { code },
            Repr::TimeExceeded { .. } => IcmpErrorKind::TimeExceeded,
            Repr::ParameterProblem { .. } => IcmpErrorKind::ParameterProblem,
            Repr::EchoReply { .. } | Repr::Other { .. } => return Err(|c| &mut c.icmp_ignored),
        };
        let bad_quote: Reason = |c| &mut c.icmp_bad_quote;
        let quote = Quote::parse(view.data()).map_err(|_| bad_quote)?;
        if !self.is_own_v4(quote.src) {
            return Err(bad_quote);
        }
        self.counters.icmp_errors_in += 1;
        Ok(Ingress::IcmpError(IcmpError {
            kind: with_known_mtu(kind, quote.total_len),
            reporter: IpAddr::V4(facts.src),
            local: SocketAddr::new(quote.src.into(), quote.src_port),
            remote: SocketAddr::new(quote.dst.into(), quote.dst_port),
            protocol: quote.protocol,
            tcp_sequence: quote.word,
        }))
    }

    /// Tells the sender of a datagram that nobody listens at its port. Drops the datagram.
    ///
    /// The address checks of RFC 1122 section 3.2.2 were made on the way in: neither broadcast, fragment nor a source that
    /// is not one host gets this far.
    pub fn udp_unreachable(&mut self, now: Instant, datagram: UdpDatagram) {
        let (IpAddr::V4(src), IpAddr::V4(dst)) = (datagram.src.ip(), datagram.dst.ip()) else {
            return self.udp_unreachable_v6(now, &datagram);
        };
        self.counters.udp_unreachable += 1;
        let facts = Ipv4Facts { src, dst, protocol: protocol::UDP, ecn: 0, headers: datagram.headers };
        if self.may_send_error(now) {
            let repr = Repr::DestinationUnreachable { code: unreachable::PORT, mtu: 0 };
            self.queue_icmp(&facts, repr, facts.headers.bytes(), &datagram.packet, QUOTE_LEN_MAX);
        }
    }

    /// `packet`: from behind the IP header.
    pub(super) fn protocol_unreachable(&mut self, now: Instant, facts: &Ipv4Facts, packet: &mut RxPacket) {
        // The first 8 bytes are in `headers` already.
        packet.advance(8);
        if self.may_send_error(now) {
            let repr = Repr::DestinationUnreachable { code: unreachable::PROTOCOL, mtu: 0 };
            self.queue_icmp(facts, repr, facts.headers.bytes(), packet, QUOTE_LEN_MAX);
        }
    }

    fn may_send_error(&mut self, now: Instant) -> bool {
        let may = self.icmp_errors.take(now);
        let counter = if may { &mut self.counters.icmp_errors_out } else { &mut self.counters.icmp_errors_limited };
        *counter += 1;
        may
    }

    /// Queues a message to the packet's sender whose data are `front` and then `packet`, together at most `data_max` bytes.
    fn queue_icmp(&mut self, facts: &Ipv4Facts, repr: Repr, front: &[u8], packet: &RxPacket, data_max: usize) {
        // What does not fit into one packet cannot have come in one, unless our MTU is smaller than the peer's.
        let room = usize::from(self.options.mtu) - crate::wire::ipv4::HEADER_LEN - HEADER_LEN;
        let len = (front.len() + packet.len()).min(data_max).min(room);
        let Some(data) = self.copy_to_page(front, packet, len) else {
            self.counters.icmp_no_buffer += 1;
            return;
        };
        let header = repr.emit([&data[..]]);
        let payload = if data.is_empty() { Vec::new() } else { vec![data] };
        self.queue_answer(Control::Ip(ParkedPacket::new(facts.dst.into(), facts.src.into(), protocol::ICMPV4, &header, payload)));
    }

    pub(super) fn copy_to_page(&mut self, front: &[u8], packet: &RxPacket, len: usize) -> Option<Slice> {
        let fragment = self.arena.reserve(len)?;
        let more = packet.more.iter().flat_map(|buf| buf.iter());
        let bytes = front.iter().chain(packet.first.iter()).chain(more);
        for (to, from) in fragment.spare().iter_mut().take(len).zip(bytes) {
            *to = *from;
        }
        Some(fragment.commit(len))
    }
}

fn with_known_mtu(kind: IcmpErrorKind, total_len: u16) -> IcmpErrorKind {
    match kind {
        // RFC 1191 section 5: routers older than it leave the field 0.
        IcmpErrorKind::FragmentationNeeded { mtu: 0 } => IcmpErrorKind::FragmentationNeeded { mtu: plateau_below(total_len) },
        IcmpErrorKind::FragmentationNeeded { mtu } => IcmpErrorKind::FragmentationNeeded { mtu: mtu.max(PATH_MTU_MIN) },
        other => other,
    }
}

/// So many at once, then so many a second.
pub(super) struct TokenBucket {
    /// Between two tokens; `None`: there are none.
    interval: Option<Duration>,
    burst: u32,
    tokens: u32,
    /// When the last token was added.
    filled: Instant,
}

impl TokenBucket {
    pub(super) fn new(per_second: u32, burst: u32, now: Instant) -> TokenBucket {
        let interval = Duration::from_secs(1).checked_div(per_second);
        TokenBucket { interval, burst, tokens: burst, filled: now }
    }

    pub(super) fn take(&mut self, now: Instant) -> bool {
        let Some(interval) = self.interval else { return false };
        let due = now.since(self.filled).as_nanos() / interval.as_nanos().max(1);
        if due >= u128::from(self.burst - self.tokens) {
            self.tokens = self.burst;
            self.filled = now;
        } else {
            // Less than burst - tokens, so it fits.
            self.tokens += due as u32;
            self.filled += interval * due as u32;
        }
        let may = self.tokens > 0;
        self.tokens = self.tokens.saturating_sub(1);
        may
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bucket_gives_its_burst_then_its_rate() {
        let at = Instant::from_millis;
        let mut bucket = TokenBucket::new(10, 3, at(0));
        let taken = |bucket: &mut TokenBucket, now| (0..20).filter(|_| bucket.take(now)).count();
        assert_eq!(taken(&mut bucket, at(0)), 3);
        assert_eq!(taken(&mut bucket, at(99)), 0);
        assert_eq!(taken(&mut bucket, at(100)), 1);
        assert_eq!(taken(&mut bucket, at(350)), 2);
        assert_eq!(taken(&mut bucket, at(400)), 1, "the half token was kept");
        assert_eq!(taken(&mut bucket, at(60_000)), 3, "never more than the burst");
        assert_eq!(taken(&mut TokenBucket::new(0, 3, at(0)), at(1_000)), 0);
    }
}
