//! The checks an IPv6 packet passes on its way up, in their order. One that fails is dropped and counted, by one counter.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use super::{Facts, Ipv6, Reason6};
use crate::buf::RxPacket;
use crate::net::device::{Checksum, RxFrame, make_headers_contiguous};
use crate::net::interface::{Ingress, Interface, QUOTED_HEADERS_MAX, QuotedHeaders, UdpDatagram};
use crate::time::Instant;
use crate::wire::checksum::transport_is_valid;
use crate::wire::ethernet::Address;
use crate::wire::icmpv6::{self, parameter_problem};
use crate::wire::ipv6::{self, Refused, extension};
use crate::wire::{protocol, tcp, udp};

impl Interface {
    /// `packet` begins with the IPv6 header; `mac`: who sent the frame; `link_group`: it was for many.
    pub(in crate::net::interface) fn receive_ipv6(
        &mut self,
        now: Instant,
        frame: RxFrame,
        mac: Address,
        link_group: bool,
    ) -> Ingress {
        match self.try_receive_ipv6(now, frame, mac, link_group) {
            Ok(ingress) => ingress,
            Err(reason) => {
                if let Some(ipv6) = self.ipv6.as_mut().filter(|ipv6| !ipv6.of_copy) {
                    *reason(&mut ipv6.counters) += 1;
                }
                Ingress::Consumed
            }
        }
    }

    fn try_receive_ipv6(&mut self, now: Instant, frame: RxFrame, mac: Address, link_group: bool) -> Result<Ingress, Reason6> {
        let RxFrame { mut packet, l4_checksum, .. } = frame;
        // `receive_ethernet` comes here only if there is one.
        let Some(ipv6) = &mut self.ipv6 else { return Ok(Ingress::Consumed) };
        ipv6.counters.packets_in += u64::from(!ipv6.of_copy);
        let view = ipv6::Packet::new(&packet.first, packet.len()).map_err(|_| -> Reason6 { |c| &mut c.malformed })?;
        let facts = ipv6.check(&view, link_group)?;
        let total_len = view.total_len();
        let chain = view.chain();
        packet.truncate(total_len);
        let chain = match chain {
            Ok(chain) => chain,
            Err(refused) => return Err(self.refuse_chain(now, &facts, &packet, refused)),
        };
        if chain.fragment.is_some() {
            return Err(|c| &mut c.fragments);
        }
        match chain.protocol {
            protocol::TCP if facts.dst.is_multicast() => Err(|c| &mut c.multicast),
            protocol::TCP => {
                ipv6.counters.tcp_in += 1;
                behind_headers(&mut packet, chain.offset, tcp::HEADER_LEN_MAX);
                let (src, dst) = (IpAddr::V6(facts.src), IpAddr::V6(facts.dst));
                Ok(Ingress::Tcp { src, dst, packet, checksum: l4_checksum, ecn: facts.ecn })
            }
            protocol::UDP if facts.dst.is_multicast() => Err(|c| &mut c.multicast),
            protocol::UDP => ipv6.receive_udp(&facts, packet, chain.offset, l4_checksum),
            protocol::ICMPV6 => self.receive_icmpv6(now, &facts, mac, packet, &chain),
            extension::NO_NEXT_HEADER => Err(|c| &mut c.no_next_header),
            _ => {
                let (code, pointer) = (parameter_problem::NEXT_HEADER, u32::from(chain.next_header_at));
                self.icmpv6_error(now, &facts, icmpv6::Repr::ParameterProblem { code, pointer }, &[], &packet);
                Err(|c| &mut c.unknown_protocol)
            }
        }
    }

    fn refuse_chain(&mut self, now: Instant, facts: &Facts, packet: &RxPacket, refused: Refused) -> Reason6 {
        match refused {
            Refused::Malformed => |c| &mut c.bad_chain,
            Refused::TooLong => |c| &mut c.chain_too_long,
            Refused::Discard => |c| &mut c.discarded_by_option,
            Refused::ParameterProblem { code, pointer, also_multicast } => {
                // RFC 4443 section 2.4(e.3): the one error besides "packet too big" that a group's sender may get.
                let facts = Facts { group: facts.group && !also_multicast, ..*facts };
                self.icmpv6_error(now, &facts, icmpv6::Repr::ParameterProblem { code, pointer }, &[], packet);
                |c| &mut c.parameter_problems
            }
        }
    }
}

/// Cuts off the headers, and sees to it that the next one is contiguous also behind long extension headers.
fn behind_headers(packet: &mut RxPacket, offset: usize, next_len: usize) {
    packet.advance(offset);
    make_headers_contiguous(packet, next_len);
}

impl Ipv6 {
    /// RFC 4291 section 2.7, RFC 8200 section 3: addresses that can be what they are said to be.
    fn check(&self, view: &ipv6::Packet<'_>, link_group: bool) -> Result<Facts, Reason6> {
        let (src, dst) = (view.src(), view.dst());
        let multicast = dst.is_multicast();
        let ours = if multicast { self.is_member(dst) } else { self.is_own(dst) };
        if !ours {
            // RFC 4862 section 5.4: a tentative address hears of neighbour discovery only, through its group.
            return Err(if multicast { |c| &mut c.multicast } else { |c| &mut c.not_ours });
        }
        if link_group && !multicast {
            return Err(|c| &mut c.link_broadcast);
        }
        // What comes from nobody, or from an address of ours, can only be discovery: of a duplicate. `receive_icmpv6` looks again.
        let strange = src.is_unspecified() && multicast || self.is_own(src);
        if !ipv6::is_host(src) && !strange || strange && view.next_header() != protocol::ICMPV6 {
            return Err(|c| &mut c.martian_source);
        }
        let (hop_limit, ecn) = (view.hop_limit(), view.traffic_class() & 3);
        Ok(Facts { src, dst, hop_limit, ecn, group: multicast || link_group })
    }

    fn receive_udp(
        &mut self,
        facts: &Facts,
        mut packet: RxPacket,
        offset: usize,
        checksum: Checksum,
    ) -> Result<Ingress, Reason6> {
        let malformed: Reason6 = |c| &mut c.udp_malformed;
        let headers = quoted(&packet, offset);
        behind_headers(&mut packet, offset, udp::HEADER_LEN);
        let view = udp::Packet::new(&packet.first).map_err(|_| malformed)?;
        let repr = udp::Repr::parse(&view, packet.len()).map_err(|_| malformed)?;
        packet.truncate(udp::HEADER_LEN + usize::from(repr.payload_len));
        let (src, dst) = (IpAddr::V6(facts.src), IpAddr::V6(facts.dst));
        let intact = match checksum {
            // RFC 8200 section 8.1: without a checksum it is discarded.
            _ if repr.checksum == 0 => false,
            Checksum::Good => true,
            Checksum::Bad => false,
            Checksum::Unknown => transport_is_valid(src, dst, protocol::UDP, &packet),
        };
        if !intact {
            return Err(|c| &mut c.udp_bad_checksum);
        }
        // RFC 6335 section 6: port 0 is nobody's.
        if repr.dst_port == 0 {
            return Err(malformed);
        }
        packet.advance(udp::HEADER_LEN);
        self.counters.udp_in += 1;
        let (src, dst) = (SocketAddr::new(src, repr.src_port), SocketAddr::new(dst, repr.dst_port));
        Ok(Ingress::Udp(UdpDatagram { src, dst, packet, headers }))
    }
}

/// The headers of a datagram for an ICMP error to quote. None if there are extension headers: they would not fit, and who sends
/// them to a port where nobody listens gets no error.
fn quoted(packet: &RxPacket, offset: usize) -> QuotedHeaders {
    let mut headers = QuotedHeaders { bytes: [0; QUOTED_HEADERS_MAX], len: 0 };
    if offset == ipv6::HEADER_LEN {
        for (to, from) in headers.bytes.iter_mut().zip(packet.first.iter().take(offset + udp::HEADER_LEN)) {
            *to = *from;
            headers.len += 1;
        }
    }
    headers
}

/// Whether an error may go to the sender of such a packet (RFC 4443 section 2.4(e.3) to (e.6)).
pub(super) fn may_hear_errors(src: Ipv6Addr, group: bool) -> bool {
    !group && ipv6::is_host(src)
}
