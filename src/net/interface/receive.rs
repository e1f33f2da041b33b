//! The checks a frame passes on its way up, in their order. A frame that fails one is dropped and counted, by one counter.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use super::recognised::{PlainTcp, SegmentInPlace};
use super::{Ingress, Interface, InterfaceCounters, QUOTED_HEADERS_MAX, QuotedHeaders, UdpDatagram, options};
use crate::buf::RxPacket;
use crate::net::device::{Checksum, RxFrame};
use crate::time::Instant;
use crate::wire::checksum::transport_is_valid;
use crate::wire::ethernet::{self, Frame, ethertype};
use crate::wire::tcp::is_syn;
use crate::wire::{ipv4, protocol, udp};

/// The counter of a reason to drop.
pub(super) type Reason = fn(&mut InterfaceCounters) -> &mut u64;

/// What the layers above IPv4 need to know of a good header.
pub(super) struct Ipv4Facts {
    pub src: Ipv4Addr,
    pub dst: Ipv4Addr,
    pub protocol: u8,
    pub ecn: u8,
    pub headers: QuotedHeaders,
}

impl QuotedHeaders {
    const NONE: QuotedHeaders = QuotedHeaders { bytes: [0; QUOTED_HEADERS_MAX], len: 0 };

    /// RFC 792: the header and the first 8 octets behind it.
    fn of(view: &ipv4::Packet<'_>) -> QuotedHeaders {
        let mut headers = QuotedHeaders::NONE;
        let quoted = view.header().iter().chain(view.payload().iter().take(8));
        for (to, from) in headers.bytes.iter_mut().zip(quoted) {
            *to = *from;
            headers.len += 1;
        }
        headers
    }

    pub(super) fn bytes(&self) -> &[u8] {
        self.bytes.get(..usize::from(self.len)).unwrap_or(&[])
    }
}

impl Interface {
    /// Takes one received frame.
    pub fn handle_frame(&mut self, now: Instant, mut frame: RxFrame) -> Ingress {
        self.handle_frame_in_place(now, &mut frame, |_| false).unwrap_or(Ingress::Consumed)
    }

    /// Takes one received frame. A TCP segment of a sender whose frames have passed all checks before is offered to `take` where
    /// it lies; what that takes (`true`) is done with: `None`.
    #[inline]
    pub fn handle_frame_in_place(
        &mut self,
        now: Instant,
        frame: &mut RxFrame,
        take: impl FnOnce(SegmentInPlace<'_>) -> bool,
    ) -> Option<Ingress> {
        self.counters.frames_in += 1;
        if let Some(tcp) = self.recognised.find(frame) {
            return self.receive_recognised(&tcp, frame, take);
        }
        Some(self.receive_checked(now, frame.take()))
    }

    #[inline(never)]
    fn receive_checked(&mut self, now: Instant, frame: RxFrame) -> Ingress {
        let plain_tcp = PlainTcp::of(&frame);
        match self.receive_ethernet(now, frame) {
            Ok(ingress) => {
                // Not who only asks for a connection: a flood of SYNs would take all places.
                if let (Ingress::Tcp { packet, .. }, Some(tcp)) = (&ingress, &plain_tcp)
                    && !is_syn(&packet.first)
                {
                    self.recognised.remember(tcp);
                }
                ingress
            }
            Err(reason) => {
                *reason(&mut self.counters) += 1;
                Ingress::Consumed
            }
        }
    }

    /// Takes a copy of a frame that another core has received on the same port and deals with: learns from it, answers nothing
    /// and counts nothing; but for what concerns all of the port's IPv6, if this is the core that leads it.
    pub fn handle_copy(&mut self, now: Instant, frame: RxFrame) {
        let (control, events, counters) = (self.control.len(), self.events.len(), self.counters);
        self.mark_copy(true);
        let _ = self.receive_ethernet(now, frame);
        self.mark_copy(false);
        self.control.truncate(control);
        self.events.truncate(events);
        self.counters = counters;
    }

    fn mark_copy(&mut self, of_copy: bool) {
        if let Some(ipv6) = &mut self.ipv6 {
            ipv6.of_copy = of_copy;
        }
    }

    fn receive_ethernet(&mut self, now: Instant, mut frame: RxFrame) -> Result<Ingress, Reason> {
        let view = Frame::new(&frame.packet.first).map_err(|_| -> Reason { |c| &mut c.ethernet_malformed })?;
        let header_len = view.header_len();
        let ethernet::Repr { dst, src, ethertype } = ethernet::Repr::parse(&view);
        if !src.is_unicast() || src == self.mac {
            return Err(|c| &mut c.ethernet_bad_source);
        }
        // The port may be promiscuous, or its switch flooding.
        if dst != self.mac && !dst.is_group() {
            return Err(|c| &mut c.ethernet_not_ours);
        }
        // A tag with the number 0 carries a priority and no VLAN (IEEE 802.1Q-2018 section 6.9.1).
        if view.vlan().unwrap_or(0) != self.options.vlan.unwrap_or(0) {
            return Err(|c| &mut c.ethernet_other_vlan);
        }
        match ethertype {
            ethertype::IPV4 => {
                frame.packet.advance(header_len);
                self.receive_ipv4(now, frame, dst.is_group())
            }
            ethertype::ARP => self.receive_arp(now, view.payload()),
            ethertype::IPV6 if self.ipv6.is_some() => {
                frame.packet.advance(header_len);
                Ok(self.receive_ipv6(now, frame, src, dst.is_group()))
            }
            ethertype::IPV6 => Err(|c| &mut c.ethernet_ipv6),
            _ => Err(|c| &mut c.ethernet_unknown_type),
        }
    }

    fn receive_ipv4(&mut self, now: Instant, frame: RxFrame, link_group: bool) -> Result<Ingress, Reason> {
        let RxFrame { mut packet, ip_checksum, l4_checksum } = frame;
        let view = ipv4::Packet::new(&packet.first, packet.len()).map_err(|_| -> Reason { |c| &mut c.ipv4_malformed })?;
        let facts = self.check_ipv4(&view, ip_checksum, link_group)?;
        let (header_len, total_len) = (view.header_len(), view.total_len());
        packet.truncate(total_len);
        packet.advance(header_len);
        match facts.protocol {
            protocol::TCP => {
                self.counters.tcp_in += 1;
                let (src, dst) = (IpAddr::V4(facts.src), IpAddr::V4(facts.dst));
                Ok(Ingress::Tcp { src, dst, packet, checksum: l4_checksum, ecn: facts.ecn })
            }
            protocol::UDP => self.receive_udp(facts, packet, l4_checksum),
            protocol::ICMPV4 => self.receive_icmp(facts, packet),
            _ => {
                self.protocol_unreachable(now, &facts, &mut packet);
                Err(|c| &mut c.ipv4_unknown_protocol)
            }
        }
    }

    /// RFC 1122 section 3.2.1, in the order in which the checks become meaningful. The time to live is not among them: "a
    /// host MUST NOT discard a datagram just because it was received with TTL less than 2" (section 3.2.1.7).
    fn check_ipv4(&self, view: &ipv4::Packet<'_>, checksum: Checksum, link_group: bool) -> Result<Ipv4Facts, Reason> {
        let intact = match checksum {
            Checksum::Good => true,
            Checksum::Bad => false,
            Checksum::Unknown => view.checksum_is_valid(),
        };
        if !intact {
            return Err(|c| &mut c.ipv4_bad_checksum);
        }
        let (src, dst) = (view.src(), view.dst());
        if !self.is_own_v4(dst) {
            return Err(match dst {
                dst if self.is_broadcast(dst) => |c| &mut c.ipv4_broadcast,
                dst if dst.is_multicast() => |c| &mut c.ipv4_multicast,
                _ => |c| &mut c.ipv4_not_ours,
            });
        }
        // RFC 1122 section 3.3.6: a link-layer broadcast must hold an IP broadcast or multicast.
        if link_group {
            return Err(|c| &mut c.ipv4_link_broadcast);
        }
        // RFC 1122 section 3.2.1.3: "MUST silently discard" a source that is invalid; our own cannot come from outside.
        if !options::is_host(src) || self.is_broadcast(src) || self.is_own_v4(src) {
            return Err(|c| &mut c.ipv4_martian_source);
        }
        match view.options() {
            Ok(ipv4::Options::Skippable) => {}
            Ok(ipv4::Options::SourceRoute) => return Err(|c| &mut c.ipv4_source_routed),
            Err(_) => return Err(|c| &mut c.ipv4_bad_options),
        }
        if view.is_fragment() {
            return Err(|c| &mut c.ipv4_fragments);
        }
        // Nobody quotes a TCP segment: TCP answers for itself.
        let headers = if view.protocol() == protocol::TCP { QuotedHeaders::NONE } else { QuotedHeaders::of(view) };
        Ok(Ipv4Facts { src, dst, protocol: view.protocol(), ecn: view.traffic_class() & 3, headers })
    }

    fn receive_udp(&mut self, facts: Ipv4Facts, mut packet: RxPacket, checksum: Checksum) -> Result<Ingress, Reason> {
        let malformed: Reason = |c| &mut c.udp_malformed;
        let view = udp::Packet::new(&packet.first).map_err(|_| malformed)?;
        let repr = udp::Repr::parse(&view, packet.len()).map_err(|_| malformed)?;
        packet.truncate(udp::HEADER_LEN + usize::from(repr.payload_len));
        let (src, dst) = (IpAddr::V4(facts.src), IpAddr::V4(facts.dst));
        let intact = match checksum {
            // RFC 768: an all zero checksum means that the sender made none.
            _ if repr.checksum == 0 => true,
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
        Ok(Ingress::Udp(UdpDatagram {
            src: SocketAddr::new(src, repr.src_port),
            dst: SocketAddr::new(dst, repr.dst_port),
            packet,
            headers: facts.headers,
        }))
    }
}
