//! The way down: headers and checksums, behind the route of `routes`.
//!
//! Read first: RFC 1122 section 3.3.1 (routing), RFC 6864 section 4 (the identification field), RFC 1191 section 3 (DF),
//! `device::TxOffload` (who fills in what).

use std::hash::Hasher as _;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use siphasher::sip::SipHasher24;

use super::routes::{Hop, fold};
use super::{Interface, InterfaceCounters};
use crate::buf::{Slice, gather_len};
use crate::net::device::{Device, DeviceCapabilities, TxOffload, TxRefused};
use crate::time::Instant;
use crate::wire::checksum::{Sum, transport_field_offset, udp_field};
use crate::wire::ethernet::{self, Address, ethertype};
use crate::wire::{arp, ipv4, ipv6, protocol};

/// Octets of the longest transport header: TCP with all options.
pub(super) const TRANSPORT_HEADER_MAX: usize = 60;

/// Octets of the longest header in front of a payload.
pub(super) const HEADERS_MAX: usize = ethernet::TAGGED_HEADER_LEN + ipv6::HEADER_LEN + TRANSPORT_HEADER_MAX;

/// Answers, which are all but TCP's packets, that may wait for neighbours. Anybody can have one made, to an address that nobody has, and each
/// may be the last that holds a page of the pool that all replies come from; one would satisfy RFC 1122 section 2.3.2.2.
const ANSWERS_PARKED_MAX: usize = 4;

/// Where a TCP header has its checksum.
const TCP_CHECKSUM_AT: usize = crate::wire::tcp::CHECKSUM_OFFSET;

/// Octets of a TCP header with timestamps and nothing else.
const TCP_WITH_TIMESTAMPS: usize = 32;

/// A transport's packet on its way out.
#[derive(Clone, Copy)]
pub struct OutgoingPacket<'a> {
    /// One of the interface's addresses.
    pub src: IpAddr,
    pub dst: IpAddr,
    /// `wire::protocol`.
    pub protocol: u8,
    /// Differentiated services and ECN: the byte of the IP header.
    pub traffic_class: u8,
    /// TCP or UDP: with a checksum field of any value, it is filled in. ICMP: with its checksum. At most 60 bytes.
    pub transport_header: &'a [u8],
    pub payload: &'a [Slice],
    /// Ask the device to cut the TCP payload into pieces of this many bytes; only if it offers that (`tso_bytes_max`).
    pub tso_mss: Option<u16>,
    /// Routers may cut it (IPv4). Not for what the device cuts.
    pub may_fragment: bool,
}

/// Why a packet was not taken. Nothing of it is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SendRefused {
    /// Try again after the next flush.
    #[error("the device is full")]
    Full,
    /// Neither on the link nor behind a gateway, not an address to send to, or not sent from one of our addresses.
    #[error("no route to the destination")]
    NoRoute,
    /// The next hop did not answer a moment ago.
    #[error("the next hop does not answer")]
    NeighbourUnreachable,
    /// Beyond the MTU, or what the device can cut: a planning error above.
    #[error("the packet is too long")]
    TooLong,
    /// Beyond what a router says of the link (IPv6): plan with this.
    #[error("the packet is longer than the link's MTU of {mtu} bytes")]
    BeyondLinkMtu { mtu: u16 },
    /// Beyond the device's buffers per packet: a planning error above.
    #[error("the packet has too many pieces")]
    TooManySegments,
}

impl From<TxRefused> for SendRefused {
    fn from(refused: TxRefused) -> SendRefused {
        match refused {
            TxRefused::Full => SendRefused::Full,
            TxRefused::TooManySegments => SendRefused::TooManySegments,
            TxRefused::TooLong => SendRefused::TooLong,
        }
    }
}

/// A packet that waits, for a neighbour or for its turn: the same as an `OutgoingPacket`, but owned.
pub(super) struct ParkedPacket {
    src: IpAddr,
    dst: IpAddr,
    protocol: u8,
    traffic_class: u8,
    header: [u8; TRANSPORT_HEADER_MAX],
    header_len: u8,
    payload: Vec<Slice>,
    tso_mss: Option<u16>,
    may_fragment: bool,
    /// Its share of `Interface::answers`, while it waits for a neighbour.
    #[allow(dead_code, reason = "what counts is that it is there")]
    answer: Option<Arc<()>>,
}

impl ParkedPacket {
    /// `header`: at most TRANSPORT_HEADER_MAX bytes.
    pub(super) fn new(src: IpAddr, dst: IpAddr, protocol: u8, header: &[u8], payload: Vec<Slice>) -> ParkedPacket {
        let header_len = header.len().min(TRANSPORT_HEADER_MAX);
        let mut bytes = [0; TRANSPORT_HEADER_MAX];
        bytes[..header_len].copy_from_slice(&header[..header_len]);
        ParkedPacket {
            src,
            dst,
            protocol,
            traffic_class: 0,
            header: bytes,
            header_len: header_len as u8,
            payload,
            tso_mss: None,
            may_fragment: false,
            answer: None,
        }
    }

    fn of(packet: &OutgoingPacket<'_>, answer: Option<Arc<()>>) -> ParkedPacket {
        ParkedPacket {
            traffic_class: packet.traffic_class,
            tso_mss: packet.tso_mss,
            may_fragment: packet.may_fragment,
            answer,
            ..ParkedPacket::new(packet.src, packet.dst, packet.protocol, packet.transport_header, packet.payload.to_vec())
        }
    }

    pub(super) fn as_outgoing(&self) -> OutgoingPacket<'_> {
        OutgoingPacket {
            src: self.src,
            dst: self.dst,
            protocol: self.protocol,
            traffic_class: self.traffic_class,
            transport_header: &self.header[..usize::from(self.header_len)],
            payload: &self.payload,
            tso_mss: self.tso_mss,
            may_fragment: self.may_fragment,
        }
    }
}

/// What the interface itself has to say.
pub(super) enum Control {
    Arp { dst: Address, packet: arp::Repr },
    Ip(ParkedPacket),
}

/// Headers as they go on the wire, and what the device shall do with them.
pub(super) struct Headers {
    pub bytes: [u8; HEADERS_MAX],
    pub len: usize,
    pub offload: TxOffload,
}

impl Headers {
    pub(super) fn new() -> Headers {
        Headers { bytes: [0; HEADERS_MAX], len: 0, offload: TxOffload::default() }
    }

    fn bytes(&self) -> &[u8] {
        // Nothing is ever written past the array.
        self.bytes.get(..self.len).unwrap_or(&[])
    }
}

impl Interface {
    /// Sends a packet, or keeps it (its slices, by reference) until its neighbour has told its MAC address.
    pub fn send<D: Device + ?Sized>(
        &mut self,
        now: Instant,
        device: &mut D,
        packet: &OutgoingPacket<'_>,
    ) -> Result<(), SendRefused> {
        let result = self.try_send(now, device, packet);
        self.count_refusal(result)
    }

    /// `send` of `packet` with all of `payload`, `payload_len` bytes, instead of its own, which is empty. Taken, `payload` is left empty, and
    /// no reference to a page was counted on the way; refused, it is untouched.
    #[inline(always)]
    pub fn send_taking<D: Device + ?Sized>(
        &mut self,
        now: Instant,
        device: &mut D,
        packet: &OutgoingPacket<'_>,
        payload: &mut Vec<Slice>,
        payload_len: usize,
    ) -> Result<(), SendRefused> {
        debug_assert!(packet.payload.is_empty() && gather_len(payload) == payload_len);
        let octets = packet.transport_header.len() + payload_len;
        // Nearly all: what follows is then one piece of code.
        let known = match (packet.src, packet.dst) {
            (IpAddr::V4(src), IpAddr::V4(dst)) if self.routes.knows(now, src, dst) => {
                self.check_length(device.capabilities(), packet, octets, ipv4::HEADER_LEN).is_ok().then_some(dst)
            }
            _ => None,
        };
        let Some(dst) = known else { return self.try_send_taking(now, device, *packet, payload, octets) };
        self.put_headers(device.capabilities(), dst, packet, payload, octets);
        match device.transmit_taking(self.headers.bytes(), payload, &self.headers.offload) {
            Ok(()) => {
                self.counters.packets_out += 1;
                debug_assert!(payload.is_empty());
                Ok(())
            }
            Err(refused) => self.count_refusal(Err(refused.into())),
        }
    }

    #[inline(never)]
    fn count_refusal(&mut self, result: Result<(), SendRefused>) -> Result<(), SendRefused> {
        match result {
            // IPv6 counts its own.
            Ok(()) | Err(SendRefused::BeyondLinkMtu { .. }) => {}
            Err(SendRefused::Full) => self.counters.device_full += 1,
            Err(SendRefused::NoRoute) => self.counters.no_route += 1,
            Err(SendRefused::NeighbourUnreachable) => self.counters.neighbour_unreachable += 1,
            Err(SendRefused::TooLong) => self.counters.too_long += 1,
            Err(SendRefused::TooManySegments) => self.counters.too_many_segments += 1,
        }
        result
    }

    fn try_send<D: Device + ?Sized>(
        &mut self,
        now: Instant,
        device: &mut D,
        packet: &OutgoingPacket<'_>,
    ) -> Result<(), SendRefused> {
        let octets = packet.transport_header.len() + gather_len(packet.payload);
        if self.prepare(now, device.capabilities(), packet, packet.payload, octets)? {
            device.transmit(self.headers.bytes(), packet.payload, &self.headers.offload)?;
            self.counters.packets_out += 1;
        }
        Ok(())
    }

    /// `send_taking`, whatever is known.
    #[inline(never)]
    fn try_send_taking<D: Device + ?Sized>(
        &mut self,
        now: Instant,
        device: &mut D,
        packet: OutgoingPacket<'_>,
        payload: &mut Vec<Slice>,
        octets: usize,
    ) -> Result<(), SendRefused> {
        let result = self.prepare(now, device.capabilities(), &packet, payload, octets).and_then(|ready| {
            if ready {
                device.transmit_taking(self.headers.bytes(), payload, &self.headers.offload)?;
                self.counters.packets_out += 1;
            }
            payload.clear();
            Ok(())
        });
        self.count_refusal(result)
    }

    /// The headers of a packet with `payload` into `self.headers`; `false`: it was kept until its neighbour has told its MAC address.
    /// `octets`: transport header and payload.
    #[inline]
    fn prepare(
        &mut self,
        now: Instant,
        capabilities: &DeviceCapabilities,
        packet: &OutgoingPacket<'_>,
        payload: &[Slice],
        octets: usize,
    ) -> Result<bool, SendRefused> {
        match (packet.src, packet.dst) {
            (IpAddr::V4(src), IpAddr::V4(dst)) => self.prepare_v4(now, capabilities, (src, dst), packet, payload, octets),
            (IpAddr::V6(src), IpAddr::V6(dst)) => self.prepare_v6(now, capabilities, (src, dst), packet, payload, octets),
            _ => Err(SendRefused::NoRoute),
        }
    }

    /// `prepare` for IPv4.
    #[inline(always)]
    fn prepare_v4(
        &mut self,
        now: Instant,
        capabilities: &DeviceCapabilities,
        (src, dst): (Ipv4Addr, Ipv4Addr),
        packet: &OutgoingPacket<'_>,
        payload: &[Slice],
        octets: usize,
    ) -> Result<bool, SendRefused> {
        self.check_length(capabilities, packet, octets, ipv4::HEADER_LEN)?;
        match self.hop(now, src, dst)? {
            Hop::Known => {
                self.put_headers(capabilities, dst, packet, payload, octets);
                Ok(true)
            }
            Hop::Unresolved(next_hop) => {
                self.park(IpAddr::V4(next_hop), &OutgoingPacket { payload, ..*packet });
                Ok(false)
            }
        }
    }

    /// Keeps a packet until `next_hop`, just found unresolved, has told its MAC address.
    #[cold]
    pub(super) fn park(&mut self, next_hop: IpAddr, packet: &OutgoingPacket<'_>) {
        let answer = (packet.protocol != protocol::TCP).then(|| Arc::clone(&self.answers));
        if answer.as_ref().is_some_and(|answers| Arc::strong_count(answers) > 1 + ANSWERS_PARKED_MAX) {
            self.counters.answers_not_parked += 1;
            return;
        }
        let parked = ParkedPacket::of(packet, answer);
        match (next_hop, &mut self.ipv6) {
            (IpAddr::V4(_), _) => self.neighbours.park(next_hop, parked),
            (IpAddr::V6(_), Some(ipv6)) => ipv6.neighbours.park(next_hop, parked),
            (IpAddr::V6(_), None) => {}
        }
    }

    /// `octets`: transport header and payload; `ip_len`: the IP header.
    #[inline]
    pub(super) fn check_length(
        &self,
        capabilities: &DeviceCapabilities,
        packet: &OutgoingPacket<'_>,
        octets: usize,
        ip_len: usize,
    ) -> Result<(), SendRefused> {
        let header = packet.transport_header.len();
        let mtu = usize::from(self.options.mtu.min(capabilities.mtu));
        let fits_device = match packet.tso_mss {
            None => ip_len + octets <= mtu,
            Some(mss) => {
                packet.protocol == protocol::TCP
                    && mss > 0
                    && ip_len + header + usize::from(mss) <= mtu
                    && octets <= header + capabilities.tso_bytes_max as usize
                    && capabilities.tso_bytes_max > 0
                    && (packet.src.is_ipv4() || capabilities.tso_ipv6)
            }
        };
        // A header too short for its checksum field is a planning error too: no transport makes one.
        let header_min = transport_field_offset(packet.protocol).map_or(0, |at| at + 2);
        // The IP total length has 16 bits, also for a packet that only the device sees whole.
        let fits =
            fits_device && header >= header_min && header <= TRANSPORT_HEADER_MAX && ip_len + octets <= usize::from(u16::MAX);
        if fits { Ok(()) } else { Err(SendRefused::TooLong) }
    }

    /// RFC 1122 section 3.3.1.1: on the link, or through the gateway.
    pub(super) fn next_hop(&self, src: Ipv4Addr, dst: Ipv4Addr) -> Option<Ipv4Addr> {
        if !self.is_own_v4(src) || self.is_own_v4(dst) || !super::options::is_host(dst) || self.is_broadcast(dst) {
            return None;
        }
        if self.is_on_link(dst) { Some(dst) } else { self.gateway }
    }

    /// `octets`: transport header and payload. The route to `dst` is known.
    #[inline(always)]
    fn put_headers(
        &mut self,
        capabilities: &DeviceCapabilities,
        dst: Ipv4Addr,
        packet: &OutgoingPacket<'_>,
        payload: &[Slice],
        octets: usize,
    ) {
        // Also with TSO only where it is offered: virtio and vmxnet3 cut packets and take over the checksum of the whole one's header,
        // but refuse a packet that asks for it.
        let mut offload = TxOffload { tso_mss: packet.tso_mss, ip_checksum: capabilities.ip_checksum, ..TxOffload::default() };
        let Interface { headers, routes, counters, .. } = self;
        let template = routes.template(dst);
        // At most 65,535 by `check_length`.
        let total_len = (ipv4::HEADER_LEN + octets) as u16;
        let l2_len = template.put(&mut headers.bytes, packet.traffic_class, total_len, packet.protocol, !offload.ip_checksum);
        let addresses_sum = template.addresses_sum;
        let l4_at = l2_len + ipv4::HEADER_LEN;
        // At most TRANSPORT_HEADER_MAX by `check_length`.
        let l4_len = packet.transport_header.len();
        let transport = &mut headers.bytes[l4_at..l4_at + l4_len];
        // Nearly all are as long or longer: a copy of known length, and of what is left.
        match (transport.split_first_chunk_mut::<TCP_WITH_TIMESTAMPS>(), packet.transport_header.split_first_chunk()) {
            (Some((to, rest_to)), Some((from, rest))) => {
                *to = *from;
                if !rest.is_empty() {
                    rest_to.copy_from_slice(rest);
                }
            }
            _ => transport.copy_from_slice(packet.transport_header),
        }
        if packet.protocol == protocol::TCP && (capabilities.tcp_checksum || packet.tso_mss.is_some()) {
            // `transport_checksum` of nearly all packets: the pseudo-header's sum, the length in it unless the device cuts.
            offload.tcp_checksum = true;
            let len = if packet.tso_mss.is_some() { 0 } else { octets as u32 };
            let field = fold(addresses_sum + u32::from(protocol::TCP) + len);
            if let Some(place) = transport.get_mut(TCP_CHECKSUM_AT..TCP_CHECKSUM_AT + 2) {
                place.copy_from_slice(&field.to_be_bytes());
            }
        } else {
            offload = transport_checksum(counters, capabilities, *packet, payload, octets, transport, offload);
        }
        if offload.ip_checksum || offload.tcp_checksum || offload.udp_checksum {
            (offload.l2_len, offload.l3_len, offload.l4_len) = (l2_len as u8, ipv4::HEADER_LEN as u8, l4_len as u8);
        }
        (headers.len, headers.offload) = (l4_at + l4_len, offload);
        if packet.may_fragment {
            self.allow_fragments(l2_len, dst, packet.transport_header);
        }
    }

    /// Takes "don't fragment" back from the headers at hand.
    #[cold]
    fn allow_fragments(&mut self, link_len: usize, dst: Ipv4Addr, transport_header: &[u8]) {
        let identification = self.identification(dst, transport_header);
        let Headers { bytes, offload, .. } = &mut self.headers;
        if let Some(header) = bytes[link_len..].first_chunk_mut() {
            ipv4::allow_fragments(header, identification, !offload.ip_checksum);
        }
    }

    /// RFC 6864 section 4.3: no value twice for one source, destination and protocol while pieces may be under way; 0 is what all other
    /// packets carry. All count together, each pair of ports from a place of its own that nobody without the key knows: what one peer sees
    /// tells little of what is sent to others (RFC 7739 section 5.3's way), and cores, which count each for itself, do not go in step.
    fn identification(&mut self, dst: Ipv4Addr, transport_header: &[u8]) -> u16 {
        let mut hasher = SipHasher24::new_with_key(&self.options.ipv6.secret);
        hasher.write(&self.mac.0);
        hasher.write(b"identification");
        hasher.write(&dst.octets());
        hasher.write(transport_header.get(..4).unwrap_or(&[]));
        let place = hasher.finish() as u16;
        loop {
            self.fragmentable = self.fragmentable.wrapping_add(1);
            let identification = place.wrapping_add(self.fragmentable);
            if identification != 0 {
                return identification;
            }
        }
    }

    /// Writes the Ethernet header, with the port's tag if it has one; tells its length.
    #[inline]
    pub(super) fn put_link_header(&self, out: &mut [u8; HEADERS_MAX], dst: Address, ethertype: u16) -> usize {
        let repr = ethernet::Repr { dst, src: self.mac, ethertype };
        match self.options.vlan {
            None => {
                out[..ethernet::HEADER_LEN].copy_from_slice(&repr.emit());
                ethernet::HEADER_LEN
            }
            Some(vlan) => {
                out[..ethernet::TAGGED_HEADER_LEN].copy_from_slice(&repr.emit_tagged(vlan));
                ethernet::TAGGED_HEADER_LEN
            }
        }
    }

    pub(super) fn send_arp<D: Device + ?Sized>(
        &mut self,
        device: &mut D,
        dst: Address,
        packet: &arp::Repr,
    ) -> Result<(), SendRefused> {
        let mut frame = [0; HEADERS_MAX];
        let link_len = self.put_link_header(&mut frame, dst, ethertype::ARP);
        frame[link_len..link_len + arp::PACKET_LEN].copy_from_slice(&packet.emit());
        device.transmit(&frame[..link_len + arp::PACKET_LEN], &[], &TxOffload::default())?;
        self.counters.arp_out += 1;
        Ok(())
    }
}

/// Fills in the checksum field of a TCP or UDP header: completely, or as far as the device wants it, which `offload` tells.
#[inline(never)]
pub(super) fn transport_checksum(
    counters: &mut InterfaceCounters,
    capabilities: &DeviceCapabilities,
    packet: OutgoingPacket<'_>,
    payload: &[Slice],
    octets: usize,
    header: &mut [u8],
    mut offload: TxOffload,
) -> TxOffload {
    let Some(at) = transport_field_offset(packet.protocol) else { return offload };
    offload.tcp_checksum = packet.protocol == protocol::TCP && (capabilities.tcp_checksum || offload.tso_mss.is_some());
    offload.udp_checksum = packet.protocol == protocol::UDP && capabilities.udp_checksum;
    let field = if offload.tso_mss.is_some() {
        Sum::pseudo_header_without_length(packet.src, packet.dst, packet.protocol).partial()
    } else if offload.tcp_checksum || offload.udp_checksum {
        Sum::pseudo_header(packet.src, packet.dst, packet.protocol, octets).partial()
    } else {
        if let Some(field) = header.get_mut(at..at + 2) {
            field.fill(0);
        }
        let mut sum = Sum::pseudo_header(packet.src, packet.dst, packet.protocol, octets);
        sum.add(header);
        sum.add_slices(payload);
        counters.software_checksum_octets += octets as u64;
        if packet.protocol == protocol::UDP { udp_field(&sum) } else { sum.finish() }
    };
    // `check_length` has refused headers in which the field is missing.
    if let Some(bytes) = header.get_mut(at..at + 2) {
        bytes.copy_from_slice(&field.to_be_bytes());
    }
    offload
}
