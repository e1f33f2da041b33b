//! ICMPv6: echo, errors about our packets, errors about theirs; discovery and listener messages go to their files.
//!
//! Read first: RFC 4443 section 2.4 (who may be told what, how often), RFC 8201 section 4 (MTUs), RFC 5927 (why errors are
//! hints, not facts).

use std::net::{IpAddr, SocketAddr};

use super::receive::may_hear_errors;
use super::{Facts, Reason6};
use crate::buf::RxPacket;
use crate::net::device::make_headers_contiguous;
use crate::net::interface::send::{Control, ParkedPacket};
use crate::net::interface::{IcmpError, IcmpErrorKind, Ingress, Interface, UdpDatagram};
use crate::time::Instant;
use crate::wire::checksum::transport_is_valid;
use crate::wire::ethernet::Address;
use crate::wire::icmpv6::{self, HEADER_LEN, Packet, QUOTE_LEN_MAX, Quote, Repr, kind};
use crate::wire::mld::Query;
use crate::wire::{icmpv4, ipv6, protocol};

impl Interface {
    pub(super) fn receive_icmpv6(
        &mut self,
        now: Instant,
        facts: &Facts,
        mac: Address,
        mut packet: RxPacket,
        chain: &ipv6::Chain,
    ) -> Result<Ingress, Reason6> {
        packet.advance(chain.offset);
        // Discovery messages are read whole, and an error's quote as far as it counts. Rarely more than one buffer.
        make_headers_contiguous(&mut packet, usize::from(self.options.mtu));
        // No device verifies this one.
        if !transport_is_valid(facts.src.into(), facts.dst.into(), protocol::ICMPV6, &packet) {
            return Err(|c| &mut c.icmp_bad_checksum);
        }
        let view = Packet::new(&packet.first).map_err(|_| -> Reason6 { |c| &mut c.icmp_malformed })?;
        let Some(ipv6) = &mut self.ipv6 else { return Ok(Ingress::Consumed) };
        match view.kind() {
            // RFC 6980 section 5: neighbour discovery that came with a fragment header is ignored, also in one piece: what guards a
            // switch's ports (RFC 6105) looks behind none.
            kind::ROUTER_SOLICITATION..=kind::REDIRECT if chain.fragment_header => return Err(|c| &mut c.nd_fragments),
            kind::ROUTER_SOLICITATION..=kind::REDIRECT => {
                let result = ipv6.receive_discovery(now, facts, mac, &packet.first);
                ipv6.schedule();
                result?;
                return Ok(Ingress::Consumed);
            }
            kind::MLD_QUERY => {
                // RFC 3810 section 5.1.14 and 6.2: from a link-local address, one hop away, with a router alert.
                let valid = ipv6::is_link_local(facts.src) && facts.hop_limit == 1 && chain.router_alert;
                let query = Query::parse(&packet.first).ok().filter(|_| valid);
                ipv6.receive_query(now, query.ok_or::<Reason6>(|c| &mut c.icmp_ignored)?);
                ipv6.schedule();
                return Ok(Ingress::Consumed);
            }
            _ => {}
        }
        if facts.src.is_unspecified() || ipv6.is_own(facts.src) {
            return Err(|c| &mut c.martian_source);
        }
        if let Repr::EchoRequest { identifier, sequence } = Repr::parse(&view) {
            packet.advance(HEADER_LEN);
            self.echo(now, facts, Repr::EchoReply { identifier, sequence }, &packet);
            return Ok(Ingress::Consumed);
        }
        let error = self.icmpv6_error_in(facts, &view)?;
        Ok(Ingress::IcmpError(error))
    }

    /// RFC 4443 section 4.2: from the address that was asked, or one of ours if that was a group.
    fn echo(&mut self, now: Instant, facts: &Facts, repr: Repr, packet: &RxPacket) {
        let Some(ipv6) = &mut self.ipv6 else { return };
        ipv6.counters.icmp_echo_in += 1;
        self.queue_icmpv6(now, facts, repr, &[], packet, usize::MAX);
    }

    fn icmpv6_error_in(&mut self, facts: &Facts, view: &Packet<'_>) -> Result<IcmpError, Reason6> {
        // The codes of IPv4's errors, as a translator would tell them (RFC 7915 section 5.2).
        let unreachable = |code| IcmpErrorKind::Unreachable { code };
        let kind = match Repr::parse(view) {
            Repr::DestinationUnreachable { code: icmpv6::unreachable::PORT } => unreachable(icmpv4::unreachable::PORT),
            Repr::DestinationUnreachable { code: icmpv6::unreachable::PROHIBITED } => {
                unreachable(icmpv4::unreachable::HOST_PROHIBITED)
            }
            Repr::DestinationUnreachable { .. } => unreachable(icmpv4::unreachable::HOST),
            // RFC 8201 section 4: a report of less than the least MTU there is must be discarded. There is no such link, so it is
            // forged, and taken for 1280 it would still cut every segment of the connection.
            Repr::PacketTooBig { mtu } if mtu < ipv6::MTU_MIN.into() => return Err(|c| &mut c.icmp_bad_mtu),
            Repr::PacketTooBig { mtu } => IcmpErrorKind::FragmentationNeeded { mtu: u16::try_from(mtu).unwrap_or(u16::MAX) },
            Repr::TimeExceeded { .. } => IcmpErrorKind::TimeExceeded,
            Repr::ParameterProblem { code: icmpv6::parameter_problem::NEXT_HEADER, .. } => {
                unreachable(icmpv4::unreachable::PROTOCOL)
            }
            Repr::ParameterProblem { .. } => IcmpErrorKind::ParameterProblem,
            Repr::EchoRequest { .. } | Repr::EchoReply { .. } | Repr::Other { .. } => return Err(|c| &mut c.icmp_ignored),
        };
        let bad_quote: Reason6 = |c| &mut c.icmp_bad_quote;
        let quote = Quote::parse(view.data()).map_err(|_| bad_quote)?;
        let Some(ipv6) = self.ipv6.as_mut().filter(|ipv6| ipv6.is_own(quote.src)) else { return Err(bad_quote) };
        ipv6.counters.icmp_errors_in += 1;
        Ok(IcmpError {
            kind,
            reporter: IpAddr::V6(facts.src),
            local: SocketAddr::new(quote.src.into(), quote.src_port),
            remote: SocketAddr::new(quote.dst.into(), quote.dst_port),
            protocol: quote.protocol,
            tcp_sequence: quote.word,
        })
    }

    /// Tells the sender of a datagram that nobody listens at its port (RFC 4443 section 3.1).
    pub(in crate::net::interface) fn udp_unreachable_v6(&mut self, now: Instant, datagram: &UdpDatagram) {
        let (IpAddr::V6(src), IpAddr::V6(dst)) = (datagram.src.ip(), datagram.dst.ip()) else { return };
        let Some(ipv6) = &mut self.ipv6 else { return };
        ipv6.counters.udp_unreachable += 1;
        // Nothing to quote: see `receive::quoted`.
        if datagram.headers.bytes().is_empty() {
            return;
        }
        let facts = Facts { src, dst, hop_limit: 0, ecn: 0, group: false };
        let repr = Repr::DestinationUnreachable { code: icmpv6::unreachable::PORT };
        self.icmpv6_error(now, &facts, repr, datagram.headers.bytes(), &datagram.packet);
    }

    /// Queues an error about the packet whose bytes are `front` and then `packet`, if its sender may hear one.
    pub(super) fn icmpv6_error(&mut self, now: Instant, facts: &Facts, repr: Repr, front: &[u8], packet: &RxPacket) {
        if self.ipv6.as_ref().is_some_and(|ipv6| ipv6.of_copy) {
            return;
        }
        let headers = if front.is_empty() { &packet.first[..] } else { front };
        if !may_hear_errors(facts.src, facts.group) || quotes_error(headers) {
            if let Some(ipv6) = &mut self.ipv6 {
                ipv6.counters.icmp_errors_forbidden += 1;
            }
            return;
        }
        let may = self.icmp_errors.take(now);
        let Some(ipv6) = &mut self.ipv6 else { return };
        // RFC 4443 section 2.4(f).
        match may {
            true => ipv6.counters.icmp_errors_out += 1,
            false => ipv6.counters.icmp_errors_limited += 1,
        }
        if may {
            self.queue_icmpv6(now, facts, repr, front, packet, QUOTE_LEN_MAX);
        }
    }

    /// Queues a message to the packet's sender whose data are `front` and then `packet`, together at most `data_max` bytes.
    fn queue_icmpv6(&mut self, now: Instant, facts: &Facts, repr: Repr, front: &[u8], packet: &RxPacket, data_max: usize) {
        let mtu = self.mtu_to(facts.src.into());
        let room = usize::from(mtu) - ipv6::HEADER_LEN - HEADER_LEN;
        let len = (front.len() + packet.len()).min(data_max).min(room);
        let data = self.copy_to_page(front, packet, len);
        let Some(ipv6) = &mut self.ipv6 else { return };
        let Some(data) = data else {
            ipv6.counters.icmp_no_buffer += 1;
            return;
        };
        let src = if facts.dst.is_multicast() { ipv6.source_for(now, facts.src) } else { Some(facts.dst) };
        let Some(src) = src else { return };
        let header = repr.emit(src, facts.src, &[&data[..]]);
        let payload = if data.is_empty() { Vec::new() } else { vec![data] };
        let parked = ParkedPacket::new(src.into(), facts.src.into(), protocol::ICMPV6, &header, payload);
        self.queue_answer(Control::Ip(parked));
    }
}

/// RFC 4443 section 2.4(e.1) and (e.2): no error about an error, or about a redirect.
///
/// `packet`: from the IPv6 header on. Also behind the header that is complained about; what cannot be told may be one.
fn quotes_error(packet: &[u8]) -> bool {
    let last_header = ipv6::Packet::new_quoted(packet).ok().and_then(|view| view.last_header());
    let Some((protocol, offset)) = last_header else { return true };
    let kind = packet.get(offset).copied();
    protocol == protocol::ICMPV6 && kind.is_none_or(|kind| icmpv6::is_error(kind) || kind == kind::REDIRECT)
}
