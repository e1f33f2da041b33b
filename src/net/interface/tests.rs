//! One interface against raw frames: each reason to drop, ARP on a virtual clock, what goes out on each kind of device; and
//! two interfaces against each other.

use super::*;
use crate::buf::{PagePool, RxBuf, Slice};
use crate::counters::Counters as _;
use crate::net::device::RxFrame;
use crate::net::memory_link::{EndOptions, Impairments, MemoryEnd, MemoryLink};
use crate::net::neighbour::NeighbourOptions;
use crate::net::udp::UdpRefused;
use crate::time::Duration;
use crate::wire::arp::{Operation, Repr as ArpRepr};
use crate::wire::checksum::Sum;
use crate::wire::ethernet::{Frame, Repr as EthernetRepr, ethertype};
use crate::wire::{arp, icmpv4, ipv4, protocol, udp};

mod link;
mod probe;

const OUR_MAC: Address = Address([2, 0, 0, 0, 0, 1]);
const PEER_MAC: Address = Address([2, 0, 0, 0, 0, 2]);
const TWIN_MAC: Address = Address([2, 0, 0, 0, 0, 9]);
const OURS: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 1);
const PEER: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 2);
const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 254);
const FAR: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 7);

fn arena() -> FragmentArena {
    FragmentArena::new(PagePool::anonymous(8, 16_384).unwrap()).unwrap()
}

fn slices(pieces: &[&[u8]]) -> Vec<Slice> {
    let pool = PagePool::anonymous(pieces.len().max(1), 65_536).unwrap();
    let slice = |piece: &&[u8]| {
        let mut page = pool.allocate().unwrap();
        page[..piece.len()].copy_from_slice(piece);
        page.freeze().slice(0..piece.len())
    };
    pieces.iter().map(slice).collect()
}

/// An interface at side 0 of a link; at side 1 the test itself.
struct Bench {
    interface: Interface,
    device: MemoryEnd,
    peer: MemoryEnd,
    now: Instant,
    link: MemoryLink,
}

fn bench_on(end: EndOptions, change: impl FnOnce(&mut InterfaceOptions)) -> Bench {
    let mut options = InterfaceOptions::new(OUR_MAC.0, end.capabilities.mtu, OURS.into(), 24);
    options.gateway = Some(GATEWAY);
    options.announcements = 0;
    change(&mut options);
    let ends = [end, EndOptions::plain(PEER_MAC.0, 9000)];
    let (link, device, peer) = MemoryLink::new(0, [Impairments::default(); 2], ends);
    Bench { interface: Interface::new(options, arena(), Instant::ZERO).unwrap(), device, peer, now: Instant::ZERO, link }
}

fn bench() -> Bench {
    bench_on(EndOptions::plain(OUR_MAC.0, 1500), |_| {})
}

impl Bench {
    fn receive(&mut self, frame: Vec<u8>) -> Ingress {
        let (ip_checksum, l4_checksum) = (Checksum::Unknown, Checksum::Unknown);
        self.interface.handle_frame(self.now, RxFrame { packet: RxPacket::from_vec(frame), ip_checksum, l4_checksum })
    }

    /// Everything that goes out now.
    fn out(&mut self) -> Vec<Vec<u8>> {
        self.interface.poll_transmit(self.now, &mut self.device);
        self.device.flush();
        std::iter::from_fn(|| self.peer.take_frame()).collect()
    }

    /// Jumps from wake-up to wake-up until `until`; what goes out at which millisecond.
    fn run(&mut self, until: Instant) -> Vec<(u64, Vec<u8>)> {
        let mut sent = Vec::new();
        loop {
            let now = self.now.millis();
            sent.extend(self.out().into_iter().map(|frame| (now, frame)));
            match self.interface.poll_timeout() {
                Some(at) if at <= until => self.now = at.max(self.now),
                _ => break,
            }
            self.interface.handle_timeout(self.now);
        }
        self.now = until;
        self.link.set_now(until);
        sent
    }

    /// The peer asks for our address, so that we know the peer's.
    fn introduce(&mut self) {
        self.receive(arp_frame(Operation::Request, PEER_MAC, PEER, OURS));
        assert_eq!(self.out().len(), 1);
    }

    fn send(&mut self, dst: Ipv4Addr, payload: &[Slice]) -> Result<(), SendRefused> {
        let header = tcp_header();
        let packet = OutgoingPacket { transport_header: &header, ..outgoing(dst, payload) };
        let result = self.interface.send(self.now, &mut self.device, &packet);
        self.device.flush();
        result
    }
}

/// 20 bytes that look like a TCP header: sequence 1000, flags PSH and ACK, junk where the checksum goes.
fn tcp_header() -> [u8; 20] {
    [8, 1, 2, 188, 0, 0, 3, 232, 0, 0, 0, 1, 0x50, 0x18, 0xff, 0xff, 0xaa, 0xbb, 0, 0]
}

fn outgoing(dst: Ipv4Addr, payload: &[Slice]) -> OutgoingPacket<'_> {
    OutgoingPacket {
        src: OURS.into(),
        dst: dst.into(),
        protocol: protocol::TCP,
        traffic_class: 0,
        transport_header: &[],
        payload,
        tso_mss: None,
        may_fragment: false,
    }
}

fn ethernet(dst: Address, src: Address, ethertype: u16, payload: &[u8]) -> Vec<u8> {
    let mut frame = [&EthernetRepr { dst, src, ethertype }.emit()[..], payload].concat();
    // Padded like every frame on a real wire.
    frame.resize(frame.len().max(60), 0);
    frame
}

fn arp_frame(operation: Operation, mac: Address, sender: Ipv4Addr, target: Ipv4Addr) -> Vec<u8> {
    let repr = ArpRepr {
        operation,
        sender_hardware: mac,
        sender_protocol: sender,
        target_hardware: Address::default(),
        target_protocol: target,
    };
    ethernet(Address::BROADCAST, mac, ethertype::ARP, &repr.emit())
}

fn parse_arp(frame: &[u8]) -> (Address, ArpRepr) {
    let frame = Frame::new(frame).unwrap();
    assert_eq!(frame.ethertype(), ethertype::ARP);
    (frame.dst(), ArpRepr::parse(&arp::Packet::new(frame.payload()).unwrap()).unwrap())
}

/// Who a frame asks for, and through which MAC address.
fn asks_for(frame: &[u8]) -> (Address, Ipv4Addr) {
    let (dst, repr) = parse_arp(frame);
    assert_eq!((repr.operation, repr.sender_hardware), (Operation::Request, OUR_MAC));
    (dst, repr.target_protocol)
}

fn ip_header(protocol: u8, payload_len: usize) -> ipv4::Repr {
    ipv4::Repr {
        src: PEER,
        dst: OURS,
        protocol,
        traffic_class: 0,
        identification: 7,
        dont_fragment: false,
        time_to_live: 64,
        payload_len: payload_len as u16,
    }
}

fn ip_frame(header: ipv4::Repr, payload: &[u8]) -> Vec<u8> {
    ethernet(OUR_MAC, PEER_MAC, ethertype::IPV4, &[&header.emit()[..], payload].concat())
}

fn udp_bytes(dst_port: u16, payload: &[u8]) -> Vec<u8> {
    let mut bytes = udp::Repr { src_port: 700, dst_port, payload_len: payload.len() as u16, checksum: 0 }.emit().to_vec();
    bytes.extend(payload);
    let mut sum = Sum::pseudo_header(PEER.into(), OURS.into(), protocol::UDP, bytes.len());
    sum.add(&bytes);
    bytes[6..8].copy_from_slice(&crate::wire::checksum::udp_field(&sum).to_be_bytes());
    bytes
}

fn udp_frame(dst_port: u16, payload: &[u8]) -> Vec<u8> {
    let bytes = udp_bytes(dst_port, payload);
    ip_frame(ip_header(protocol::UDP, bytes.len()), &bytes)
}

fn icmp_frame(repr: icmpv4::Repr, data: &[u8]) -> Vec<u8> {
    let bytes = [&repr.emit([data])[..], data].concat();
    ip_frame(ip_header(protocol::ICMPV4, bytes.len()), &bytes)
}

/// The IPv4 payload of a frame to the peer whose header checksum is good.
fn ip_payload(frame: &[u8]) -> (ipv4::Repr, Vec<u8>) {
    let link = Frame::new(frame).unwrap();
    assert_eq!((link.dst(), link.src(), link.ethertype()), (PEER_MAC, OUR_MAC, ethertype::IPV4));
    let packet = ipv4::Packet::new(link.payload(), link.payload().len()).unwrap();
    assert!(packet.checksum_is_valid());
    (ipv4::Repr::parse(&packet).unwrap(), packet.payload().to_vec())
}

fn checksum_is_good(repr: &ipv4::Repr, bytes: &[u8]) -> bool {
    crate::wire::checksum::transport_is_valid(
        repr.src.into(),
        repr.dst.into(),
        repr.protocol,
        &RxPacket::from_vec(bytes.to_vec()),
    )
}

// ---- reasons to drop ------------------------------------------------------------------------------------------------

/// A good UDP frame with some bytes changed and, if they lie in the IP header, the header's checksum put right again.
fn changed(changes: &[(usize, u8)]) -> Vec<u8> {
    let mut frame = udp_frame(111, b"call");
    for (at, value) in changes {
        frame[*at] = *value;
    }
    frame[24..26].fill(0);
    let mut sum = Sum::new();
    sum.add(&frame[14..34]);
    frame[24..26].copy_from_slice(&sum.finish().to_be_bytes());
    frame
}

/// A good UDP frame with these options in its IP header.
fn with_options(options: &[u8]) -> Vec<u8> {
    let udp = udp_bytes(111, b"call");
    let mut header = ip_header(protocol::UDP, options.len() + udp.len()).emit().to_vec();
    header.extend(options);
    header[0] = 0x40 | (header.len() / 4) as u8;
    header[10..12].fill(0);
    let mut sum = Sum::new();
    sum.add(&header);
    header[10..12].copy_from_slice(&sum.finish().to_be_bytes());
    ethernet(OUR_MAC, PEER_MAC, ethertype::IPV4, &[header, udp].concat())
}

fn from(src: Ipv4Addr) -> Vec<u8> {
    ip_frame(ipv4::Repr { src, ..ip_header(protocol::UDP, 0) }, &[])
}

fn to(dst: Ipv4Addr) -> Vec<u8> {
    ip_frame(ipv4::Repr { dst, ..ip_header(protocol::UDP, 0) }, &[])
}

type Drop = (&'static str, Vec<u8>, fn(&InterfaceCounters) -> u64);

fn link_drops() -> Vec<Drop> {
    let other = |ethertype| ethernet(OUR_MAC, PEER_MAC, ethertype, &[]);
    vec![
        ("13 bytes", vec![0; 13], |c| c.ethernet_malformed),
        ("source is a group", ethernet(OUR_MAC, Address([3; 6]), ethertype::IPV4, &[]), |c| c.ethernet_bad_source),
        ("source is nobody", ethernet(OUR_MAC, Address([0; 6]), ethertype::IPV4, &[]), |c| c.ethernet_bad_source),
        ("source is us", ethernet(OUR_MAC, OUR_MAC, ethertype::IPV4, &[]), |c| c.ethernet_bad_source),
        ("to another station", ethernet(TWIN_MAC, PEER_MAC, ethertype::IPV4, &[]), |c| c.ethernet_not_ours),
        ("802.1Q", ethernet(OUR_MAC, PEER_MAC, ethertype::VLAN, &[0, 5, 8, 0]), |c| c.ethernet_other_vlan),
        ("IPv6", other(ethertype::IPV6), |c| c.ethernet_ipv6),
        ("802.3 length", other(46), |c| c.ethernet_unknown_type),
        ("ARP for IPv6", ethernet(OUR_MAC, PEER_MAC, ethertype::ARP, &[0, 1, 0x86, 0xdd, 6, 16, 0, 1]), |c| c.arp_malformed),
        ("ARP cut short", other(ethertype::ARP)[..41].to_vec(), |c| c.arp_malformed),
        ("ARP from a group", group_arp(), |c| c.arp_bad_sender),
        ("ARP with our own MAC", arp_with_mac(OUR_MAC), |c| c.arp_bad_sender),
        ("ARP from a multicast address", arp_frame(Operation::Reply, PEER_MAC, Ipv4Addr::new(224, 0, 0, 1), OURS), |c| {
            c.arp_bad_sender
        }),
        ("ARP from the broadcast address", arp_frame(Operation::Reply, PEER_MAC, Ipv4Addr::new(10, 0, 0, 255), OURS), |c| {
            c.arp_bad_sender
        }),
    ]
}

fn arp_with_mac(sender_hardware: Address) -> Vec<u8> {
    let mut frame = arp_frame(Operation::Reply, PEER_MAC, PEER, OURS);
    frame[22..28].copy_from_slice(&sender_hardware.0);
    frame
}

fn group_arp() -> Vec<u8> {
    arp_with_mac(Address::BROADCAST)
}

fn ipv4_drops() -> Vec<Drop> {
    let mut bad_sum = udp_frame(111, b"call");
    bad_sum[24] ^= 1;
    let mut link_broadcast = udp_frame(111, b"call");
    link_broadcast[..6].fill(0xff);
    vec![
        ("no IP header", ethernet(OUR_MAC, PEER_MAC, ethertype::IPV4, &[])[..33].to_vec(), |c| c.ipv4_malformed),
        ("version 6", changed(&[(14, 0x65)]), |c| c.ipv4_malformed),
        ("IHL 4", changed(&[(14, 0x44)]), |c| c.ipv4_malformed),
        ("IHL beyond the frame", changed(&[(14, 0x4f)]), |c| c.ipv4_malformed),
        ("total length below the header", changed(&[(17, 19)]), |c| c.ipv4_malformed),
        ("total length beyond the frame", changed(&[(16, 1)]), |c| c.ipv4_malformed),
        ("header checksum", bad_sum, |c| c.ipv4_bad_checksum),
        ("an option of length 0", with_options(&[7, 0, 0, 0]), |c| c.ipv4_bad_options),
        ("an option beyond the header", with_options(&[7, 9, 0, 0]), |c| c.ipv4_bad_options),
        ("loose source route", with_options(&[131, 7, 4, 9, 9, 9, 9, 0]), |c| c.ipv4_source_routed),
        ("from 0.0.0.0", from(Ipv4Addr::UNSPECIFIED), |c| c.ipv4_martian_source),
        ("from loopback", from(Ipv4Addr::LOCALHOST), |c| c.ipv4_martian_source),
        ("from multicast", from(Ipv4Addr::new(224, 0, 0, 1)), |c| c.ipv4_martian_source),
        ("from broadcast", from(Ipv4Addr::BROADCAST), |c| c.ipv4_martian_source),
        ("from the subnet's broadcast", from(Ipv4Addr::new(10, 0, 0, 255)), |c| c.ipv4_martian_source),
        ("from the subnet itself", from(Ipv4Addr::new(10, 0, 0, 0)), |c| c.ipv4_martian_source),
        ("from ourselves", from(OURS), |c| c.ipv4_martian_source),
        ("to broadcast", to(Ipv4Addr::BROADCAST), |c| c.ipv4_broadcast),
        ("to the subnet's broadcast", to(Ipv4Addr::new(10, 0, 0, 255)), |c| c.ipv4_broadcast),
        ("to multicast", to(Ipv4Addr::new(224, 0, 0, 251)), |c| c.ipv4_multicast),
        ("to another host", to(Ipv4Addr::new(10, 0, 0, 3)), |c| c.ipv4_not_ours),
        ("to us in a link broadcast", link_broadcast, |c| c.ipv4_link_broadcast),
        ("first fragment", changed(&[(20, 0x20)]), |c| c.ipv4_fragments),
        ("later fragment", changed(&[(21, 5)]), |c| c.ipv4_fragments),
        ("protocol 132", changed(&[(23, 132)]), |c| c.ipv4_unknown_protocol),
    ]
}

fn transport_drops() -> Vec<Drop> {
    let icmp = |len: usize| ip_frame(ip_header(protocol::ICMPV4, len), &vec![0; len]);
    let unreachable = icmpv4::Repr::DestinationUnreachable { code: 3, mtu: 0 };
    let mut foreign_quote = ipv4::Repr { src: PEER, dst: FAR, ..ip_header(protocol::TCP, 8) }.emit().to_vec();
    foreign_quote.extend([0; 8]);
    let mut bad_udp = udp_frame(111, b"call");
    bad_udp[43] ^= 1;
    let mut bad_icmp = icmp_frame(icmpv4::Repr::EchoRequest { identifier: 1, sequence: 1 }, b"data");
    bad_icmp[44] ^= 1;
    vec![
        ("UDP cut short", ip_frame(ip_header(protocol::UDP, 7), &[0; 7]), |c| c.udp_malformed),
        ("UDP length below 8", changed(&[(39, 7)]), |c| c.udp_malformed),
        ("UDP length beyond the packet", changed(&[(39, 13)]), |c| c.udp_malformed),
        ("UDP to port 0", udp_frame(0, b"call"), |c| c.udp_malformed),
        ("UDP checksum", bad_udp, |c| c.udp_bad_checksum),
        ("ICMP cut short", icmp(7), |c| c.icmp_malformed),
        ("ICMP checksum", bad_icmp, |c| c.icmp_bad_checksum),
        ("echo reply", icmp_frame(icmpv4::Repr::EchoReply { identifier: 1, sequence: 1 }, b""), |c| c.icmp_ignored),
        ("redirect", icmp_frame(icmpv4::Repr::Other { kind: 5, code: 1 }, &[0; 28]), |c| c.icmp_ignored),
        ("an error about nothing", icmp_frame(unreachable, b""), |c| c.icmp_bad_quote),
        ("an error with 7 bytes of transport", icmp_frame(unreachable, &foreign_quote[..27]), |c| c.icmp_bad_quote),
        ("an error about another's packet", icmp_frame(unreachable, &foreign_quote), |c| c.icmp_bad_quote),
    ]
}

#[test]
fn every_bad_frame_is_dropped_and_counted_once() {
    for (name, frame, counter) in link_drops().into_iter().chain(ipv4_drops()).chain(transport_drops()) {
        let mut bench = bench();
        assert!(matches!(bench.receive(frame), Ingress::Consumed), "{name}");
        assert_eq!(counter(bench.interface.counters()), 1, "{name}: {:#?}", bench.interface.counters());
        assert_eq!(
            total(bench.interface.counters()),
            if name == "protocol 132" { 3 } else { 2 },
            "{name}: frames_in and one more"
        );
    }
}

fn total(counters: &InterfaceCounters) -> u64 {
    let mut sum = 0;
    crate::counters::Counters::visit(counters, &mut |_, value| sum += value);
    sum
}

#[test]
fn a_device_that_verified_is_believed() {
    let mut bad_ip = udp_frame(111, b"call");
    bad_ip[24] ^= 1;
    let mut bad_udp = udp_frame(111, b"call");
    bad_udp[43] ^= 1;
    let mut bench = bench();
    let mut receive = |bytes: &[u8], ip_checksum, l4_checksum| {
        let frame = RxFrame { packet: RxPacket::from_vec(bytes.to_vec()), ip_checksum, l4_checksum };
        matches!(bench.interface.handle_frame(Instant::ZERO, frame), Ingress::Udp(_))
    };
    assert!(receive(&bad_ip, Checksum::Good, Checksum::Unknown));
    assert!(receive(&bad_udp, Checksum::Unknown, Checksum::Good));
    assert!(!receive(&udp_frame(111, b"call"), Checksum::Bad, Checksum::Good));
    assert!(!receive(&udp_frame(111, b"call"), Checksum::Good, Checksum::Bad));
    let counters = bench.interface.counters();
    assert_eq!((counters.ipv4_bad_checksum, counters.udp_bad_checksum, counters.udp_in), (1, 1, 2));
}

// ---- good frames ----------------------------------------------------------------------------------------------------

#[test]
fn a_datagram_comes_up_without_headers_or_padding() {
    let mut bench = bench();
    let Ingress::Udp(datagram) = bench.receive(udp_frame(111, b"call")) else { panic!() };
    assert_eq!((datagram.src.to_string(), datagram.dst.to_string()), ("10.0.0.2:700".into(), "10.0.0.1:111".into()));
    assert_eq!((&datagram.packet.first[..], datagram.packet.len()), (&b"call"[..], 4));
    // Options are skipped, a missing checksum is accepted, a low time to live is no reason to drop.
    assert!(matches!(bench.receive(with_options(&[148, 4, 0, 0])), Ingress::Udp(_)));
    assert!(matches!(bench.receive(changed(&[(40, 0), (41, 0)])), Ingress::Udp(_)));
    assert!(matches!(bench.receive(changed(&[(22, 0)])), Ingress::Udp(_)));
}

#[test]
fn a_segment_comes_up_with_its_header_its_ecn_bits_and_whatever_the_device_said() {
    let mut bench = bench();
    let header = ipv4::Repr { traffic_class: 0xfe | 1, ..ip_header(protocol::TCP, 24) };
    let bytes = [&tcp_header()[..], b"data"].concat();
    let frame = ip_frame(header, &bytes);
    let mut packet = RxPacket::from_vec(frame[..60].to_vec());
    packet.first.truncate(56);
    packet.more.push(RxBuf::from_vec(frame[56..].to_vec()));
    let frame = RxFrame { packet, ip_checksum: Checksum::Good, l4_checksum: Checksum::Bad };
    let Ingress::Tcp { src, dst, packet, checksum, ecn } = bench.interface.handle_frame(bench.now, frame) else { panic!() };
    assert_eq!((src, dst, checksum, ecn), (PEER.into(), OURS.into(), Checksum::Bad, 3));
    assert_eq!((packet.len(), packet.first.len()), (24, 22), "cut into two buffers, in place");
    assert_eq!(packet.into_bufs().flat_map(|buf| buf.to_vec()).collect::<Vec<_>>(), bytes);
}

#[test]
fn echo_is_answered_byte_for_byte_also_when_it_came_in_pieces() {
    for (len, cut) in [(0, 0), (5, 0), (1472, 0), (1472, 700)] {
        let mut bench = bench();
        bench.introduce();
        let data: Vec<u8> = (0..len).map(|n| n as u8).collect();
        let frame = icmp_frame(icmpv4::Repr::EchoRequest { identifier: 0x1234, sequence: 9 }, &data);
        let mut packet = RxPacket::from_vec(frame.clone());
        if cut > 0 {
            packet.first.truncate(cut);
            packet.more.push(RxBuf::from_vec(frame[cut..].to_vec()));
        }
        let frame = RxFrame { packet, ip_checksum: Checksum::Unknown, l4_checksum: Checksum::Unknown };
        assert!(matches!(bench.interface.handle_frame(bench.now, frame), Ingress::Consumed));
        let out = bench.out();
        let (header, bytes) = ip_payload(&out[0]);
        assert_eq!((header.src, header.dst, header.protocol), (OURS, PEER, protocol::ICMPV4));
        let mut sum = Sum::new();
        sum.add(&bytes);
        assert!(sum.is_valid());
        let message = icmpv4::Packet::new(&bytes).unwrap();
        assert_eq!(icmpv4::Repr::parse(&message), icmpv4::Repr::EchoReply { identifier: 0x1234, sequence: 9 });
        assert_eq!(message.data(), data);
    }
}

#[test]
fn icmp_errors_name_the_connection_they_are_about() {
    let mut quote = ipv4::Repr { src: OURS, dst: FAR, ..ip_header(protocol::TCP, 1480) }.emit().to_vec();
    quote.extend(&tcp_header()[..8]);
    let mut bench = bench();
    let mut kind_of = |repr: icmpv4::Repr| {
        let Ingress::IcmpError(error) = bench.receive(icmp_frame(repr, &quote)) else { panic!() };
        assert_eq!((error.local.to_string(), error.remote.to_string()), ("10.0.0.1:2049".into(), "192.0.2.7:700".into()));
        assert_eq!((error.protocol, error.tcp_sequence, error.reporter), (protocol::TCP, 1000, PEER.into()));
        error.kind
    };
    let frag_needed = |mtu| icmpv4::Repr::DestinationUnreachable { code: 4, mtu };
    assert_eq!(kind_of(icmpv4::Repr::DestinationUnreachable { code: 1, mtu: 0 }), IcmpErrorKind::Unreachable { code: 1 });
    assert_eq!(kind_of(frag_needed(1400)), IcmpErrorKind::FragmentationNeeded { mtu: 1400 });
    assert_eq!(kind_of(frag_needed(0)), IcmpErrorKind::FragmentationNeeded { mtu: 1492 }, "RFC 1191's plateau below 1500");
    assert_eq!(kind_of(frag_needed(20)), IcmpErrorKind::FragmentationNeeded { mtu: 68 });
    assert_eq!(kind_of(icmpv4::Repr::TimeExceeded { code: 0 }), IcmpErrorKind::TimeExceeded);
    assert_eq!(kind_of(icmpv4::Repr::ParameterProblem { code: 0, pointer: 9 }), IcmpErrorKind::ParameterProblem);
}

/// RFC 6633 section 3, RFC 9293 section 3.9.2.2 (MUST-55).
#[test]
fn a_source_quench_is_not_handed_up() {
    let mut quote = ipv4::Repr { src: OURS, dst: FAR, ..ip_header(protocol::TCP, 1480) }.emit().to_vec();
    quote.extend(&tcp_header()[..8]);
    let mut bench = bench();
    let quench = icmp_frame(icmpv4::Repr::Other { kind: 4, code: 0 }, &quote);
    assert!(matches!(bench.receive(quench), Ingress::Consumed));
    assert_eq!(bench.interface.counters().icmp_errors_in, 0);
    // The same quote in an error does go up.
    assert!(matches!(bench.receive(icmp_frame(icmpv4::Repr::TimeExceeded { code: 0 }, &quote)), Ingress::IcmpError(_)));
    assert!(bench.out().is_empty());
}

#[test]
fn a_port_without_a_listener_is_answered_with_a_quote_at_a_bounded_rate() {
    let mut bench = bench_on(EndOptions::plain(OUR_MAC.0, 1500), |options| {
        options.icmp_errors_burst = 2;
        options.icmp_errors_per_second = 1;
    });
    bench.introduce();
    let payload: Vec<u8> = (0..1000).map(|n| n as u8).collect();
    let sent = udp_frame(999, &payload);
    for _ in 0..3 {
        let Ingress::Udp(datagram) = bench.receive(sent.clone()) else { panic!() };
        bench.interface.udp_unreachable(bench.now, datagram);
    }
    let out = bench.out();
    assert_eq!(out.len(), 2);
    let (header, bytes) = ip_payload(&out[0]);
    assert_eq!(20 + usize::from(header.payload_len), 576, "RFC 1812 section 4.3.2.3");
    let message = icmpv4::Packet::new(&bytes).unwrap();
    assert_eq!(icmpv4::Repr::parse(&message), icmpv4::Repr::DestinationUnreachable { code: 3, mtu: 0 });
    assert_eq!(message.data(), &sent[14..14 + 548]);
    let counters = bench.interface.counters();
    assert_eq!((counters.udp_unreachable, counters.icmp_errors_out, counters.icmp_errors_limited), (3, 2, 1));
}

#[test]
fn an_unknown_protocol_is_answered_but_never_an_error_or_a_fragment() {
    let mut bench = bench();
    bench.introduce();
    let sent = changed(&[(23, 132)]);
    bench.receive(sent.clone());
    let out = bench.out();
    let (_, bytes) = ip_payload(&out[0]);
    let message = icmpv4::Packet::new(&bytes).unwrap();
    assert_eq!(icmpv4::Repr::parse(&message), icmpv4::Repr::DestinationUnreachable { code: 2, mtu: 0 });
    assert_eq!(message.data(), &sent[14..14 + 32]);
    for frame in [changed(&[(23, 132), (20, 0x20)]), icmp_frame(icmpv4::Repr::TimeExceeded { code: 0 }, b"")] {
        bench.receive(frame);
    }
    assert!(bench.out().is_empty());
}

#[test]
fn own_packets_that_nobody_sends_are_bounded() {
    let mut bench = bench_on(EndOptions::plain(OUR_MAC.0, 1500), |options| options.control_packets_max = 2);
    for _ in 0..5 {
        bench.receive(arp_frame(Operation::Request, PEER_MAC, PEER, OURS));
    }
    assert_eq!((bench.out().len(), bench.interface.counters().control_overflow), (2, 3));
}

#[test]
fn without_a_page_an_echo_is_not_answered() {
    let mut bench = bench();
    bench.interface.arena = FragmentArena::new(PagePool::anonymous(2, 512).unwrap()).unwrap();
    bench.introduce();
    bench.receive(icmp_frame(icmpv4::Repr::EchoRequest { identifier: 1, sequence: 1 }, &[0; 600]));
    assert_eq!((bench.out().len(), bench.interface.counters().icmp_no_buffer), (0, 1));
}

#[test]
fn answers_to_strangers_who_are_silent_hold_few_pages() {
    let mut bench = bench();
    let pool = PagePool::anonymous(8, 16_384).unwrap();
    bench.interface.arena = FragmentArena::new(pool.clone()).unwrap();
    bench.introduce();
    for stranger in 0..40u8 {
        let echo = icmpv4::Repr::EchoRequest { identifier: 1, sequence: stranger.into() };
        // One that waits, then as many to somebody who is known as fill its page.
        let data = [0; 1];
        let message = [&echo.emit([&data[..]])[..], &data].concat();
        let src = Ipv4Addr::new(10, 0, 0, 100 + stranger);
        bench.receive(ip_frame(ipv4::Repr { src, ..ip_header(protocol::ICMPV4, message.len()) }, &message));
        for _ in 0..12 {
            bench.receive(icmp_frame(echo, &[0; 1400]));
            bench.out();
        }
    }
    let (waiting, counters) = (bench.interface.neighbour_counters().parked_now, bench.interface.counters());
    assert_eq!((waiting, counters.answers_not_parked), (4, 36));
    assert_eq!((pool.outstanding(), counters.icmp_no_buffer), (6, 0), "two of the arena's own, and one for each that waits");
    // A reply over UDP counts with them; a segment does not, and as soon as one has left there is room for another.
    let udp = |bench: &mut Bench, host| {
        let dst = (Ipv4Addr::new(10, 0, 0, host), 700).into();
        bench.interface.send_udp(bench.now, &mut bench.device, (OURS, 111).into(), dst, &slices(&[b"reply"])).unwrap();
        bench.interface.neighbour_counters().parked_now
    };
    assert_eq!(udp(&mut bench, 50), 4);
    bench.send(Ipv4Addr::new(10, 0, 0, 51), &slices(&[b"segment"])).unwrap();
    bench.receive(arp_frame(Operation::Reply, TWIN_MAC, Ipv4Addr::new(10, 0, 0, 100), OURS));
    bench.out();
    assert_eq!(udp(&mut bench, 52), 5);
    assert_eq!(bench.interface.counters().answers_not_parked, 37);
}

// ---- ARP ------------------------------------------------------------------------------------------------------------

#[test]
fn a_request_for_us_is_answered_and_teaches() {
    let mut bench = bench();
    bench.receive(arp_frame(Operation::Request, PEER_MAC, PEER, OURS));
    let (dst, reply) = parse_arp(&bench.out()[0]);
    assert_eq!((dst, reply.operation), (PEER_MAC, Operation::Reply));
    assert_eq!((reply.sender_hardware, reply.sender_protocol), (OUR_MAC, OURS));
    assert_eq!((reply.target_hardware, reply.target_protocol), (PEER_MAC, PEER));
    assert_eq!(bench.interface.neighbour(PEER.into()), Some(PEER_MAC));
    // So the SYN-ACK of a peer on the link leaves at once.
    bench.send(PEER, &[]).unwrap();
    assert_eq!(bench.out().len(), 1);
}

#[test]
fn only_what_rfc_826_says_is_learned() {
    let mut bench = bench();
    let third = Ipv4Addr::new(10, 0, 0, 3);
    bench.receive(arp_frame(Operation::Request, PEER_MAC, PEER, third));
    bench.receive(arp_frame(Operation::Reply, PEER_MAC, PEER, third));
    assert_eq!(bench.interface.neighbour(PEER.into()), None, "we were not the target");
    bench.receive(udp_frame(111, b"call"));
    assert_eq!(bench.interface.neighbour(PEER.into()), None, "IP frames teach nothing");
    bench.introduce();
    bench.receive(arp_frame(Operation::Request, TWIN_MAC, PEER, third));
    assert_eq!(bench.interface.neighbour(PEER.into()), Some(TWIN_MAC), "an entry is updated in any case");
    // Somebody outside our subnets is answered, for his mask may be wider, but has no entry.
    bench.receive(arp_frame(Operation::Request, PEER_MAC, FAR, OURS));
    assert_eq!((bench.out().len(), bench.interface.neighbour(FAR.into())), (1, None));
    assert_eq!(bench.interface.counters().arp_other_in, 3);
}

#[test]
fn a_probe_is_answered_and_teaches_nothing() {
    let mut bench = bench();
    bench.receive(arp_frame(Operation::Request, PEER_MAC, Ipv4Addr::UNSPECIFIED, OURS));
    let (dst, reply) = parse_arp(&bench.out()[0]);
    assert_eq!((dst, reply.sender_protocol, reply.target_protocol), (PEER_MAC, OURS, Ipv4Addr::UNSPECIFIED));
    assert_eq!(bench.interface.neighbour_counters().entries, 0);
}

#[test]
fn addresses_are_announced_twice_at_start() {
    let second = Ipv4Addr::new(10, 1, 0, 1);
    let mut bench = bench_on(EndOptions::plain(OUR_MAC.0, 1500), |options| {
        options.announcements = 2;
        options.addresses.push((second.into(), 24));
    });
    let sent = bench.run(Instant::from_millis(60_000));
    let seen: Vec<_> = sent.iter().map(|(at, frame)| (*at, parse_arp(frame))).collect();
    assert_eq!(
        seen.iter().map(|(at, (dst, repr))| (*at, *dst, repr.sender_protocol)).collect::<Vec<_>>(),
        [
            (0, Address::BROADCAST, OURS),
            (0, Address::BROADCAST, second),
            (2_000, Address::BROADCAST, OURS),
            (2_000, Address::BROADCAST, second),
        ]
    );
    assert!(
        seen.iter().all(|(_, (_, repr))| repr.operation == Operation::Request && repr.target_protocol == repr.sender_protocol)
    );
}

#[test]
fn a_twin_is_reported_and_the_address_defended_every_ten_seconds_at_most() {
    let mut bench = bench();
    for at in [0, 1, 9_999, 10_000, 10_001] {
        bench.now = Instant::from_millis(at);
        bench.receive(arp_frame(Operation::Reply, TWIN_MAC, OURS, OURS));
    }
    let out = bench.out();
    assert_eq!(out.len(), 2);
    let (dst, repr) = parse_arp(&out[0]);
    assert_eq!(
        (dst, repr.sender_hardware, repr.sender_protocol, repr.target_protocol),
        (Address::BROADCAST, OUR_MAC, OURS, OURS)
    );
    let counters = bench.interface.counters();
    assert_eq!((counters.arp_conflicts, counters.arp_defences), (5, 2));
    let event = InterfaceEvent::AddressConflict { address: OURS.into(), mac: TWIN_MAC };
    assert_eq!(
        [bench.interface.poll_event(), bench.interface.poll_event(), bench.interface.poll_event()],
        [Some(event), Some(event), None]
    );
    assert_eq!(bench.interface.neighbour_counters().entries, 0, "our own address is nobody's");
}

#[test]
fn events_that_nobody_fetches_are_bounded() {
    let mut bench = bench();
    for n in 0..20 {
        bench.now = Instant::from_millis(n * 10_000);
        bench.receive(arp_frame(Operation::Reply, TWIN_MAC, OURS, OURS));
    }
    assert_eq!(bench.interface.counters().events_lost, 4);
}

#[test]
fn packets_wait_for_an_unknown_neighbour_and_leave_when_it_answers() {
    let mut bench = bench();
    let payload = slices(&[b"first"]);
    bench.send(PEER, &payload).unwrap();
    bench.send(PEER, &slices(&[b"second"])).unwrap();
    assert!(!payload[0].is_unique(), "kept by reference");
    let out = bench.out();
    assert_eq!(out.iter().map(|frame| asks_for(frame)).collect::<Vec<_>>(), [(Address::BROADCAST, PEER)]);
    bench.receive(arp_frame(Operation::Reply, PEER_MAC, PEER, OURS));
    let out = bench.out();
    let texts: Vec<_> = out.iter().map(|frame| ip_payload(frame).1[20..].to_vec()).collect();
    assert_eq!(texts, [b"first".to_vec(), b"second".to_vec()]);
    assert!(payload[0].is_unique(), "released after the flush");
    assert_eq!(bench.interface.counters().arp_replies_in, 1);
}

#[test]
fn a_neighbour_that_does_not_answer_is_refused() {
    let mut bench = bench();
    let payload = slices(&[b"lost"]);
    bench.send(PEER, &payload).unwrap();
    let asked: Vec<_> = bench.run(Instant::from_millis(7_000)).iter().map(|(at, frame)| (*at, asks_for(frame).1)).collect();
    assert_eq!(asked, [(0, PEER), (1_000, PEER), (3_000, PEER)]);
    assert_eq!(bench.send(PEER, &payload), Err(SendRefused::NeighbourUnreachable));
    assert!(payload[0].is_unique());
    assert_eq!(bench.interface.counters().neighbour_unreachable, 1);
    assert_eq!(bench.interface.neighbour_counters().parked_failed, 1);
}

#[test]
fn a_known_neighbour_is_asked_again_directly() {
    let mut bench = bench();
    bench.introduce();
    bench.now = Instant::from_millis(61_000);
    bench.send(PEER, &[]).unwrap();
    let out = bench.out();
    assert_eq!(ip_payload(&out[0]).0.dst, PEER, "used meanwhile");
    assert_eq!(asks_for(&out[1]), (PEER_MAC, PEER));
}

// ---- sending --------------------------------------------------------------------------------------------------------

#[test]
fn far_addresses_go_through_the_gateway() {
    let mut bench = bench();
    bench.send(FAR, &[]).unwrap();
    assert_eq!(asks_for(&bench.out()[0]), (Address::BROADCAST, GATEWAY));
    bench.receive(arp_frame(Operation::Reply, PEER_MAC, GATEWAY, OURS));
    assert_eq!(ip_payload(&bench.out()[0]).0.dst, FAR);
}

#[test]
fn addresses_that_lead_nowhere_are_refused() {
    let mut bench = bench_on(EndOptions::plain(OUR_MAC.0, 1500), |options| options.gateway = None);
    for dst in [FAR, OURS, Ipv4Addr::BROADCAST, Ipv4Addr::new(10, 0, 0, 255), Ipv4Addr::new(224, 0, 0, 1), Ipv4Addr::UNSPECIFIED]
    {
        assert_eq!(bench.send(dst, &[]), Err(SendRefused::NoRoute), "{dst}");
    }
    let header = tcp_header();
    let mut packet = OutgoingPacket { transport_header: &header, ..outgoing(PEER, &[]) };
    packet.src = FAR.into();
    assert_eq!(bench.interface.send(bench.now, &mut bench.device, &packet), Err(SendRefused::NoRoute), "not our address");
    packet.src = "::1".parse().unwrap();
    assert_eq!(bench.interface.send(bench.now, &mut bench.device, &packet), Err(SendRefused::NoRoute), "IPv6");
    assert_eq!(bench.interface.counters().no_route, 8);
}

#[test]
fn a_device_without_offloads_gets_finished_frames() {
    let mut bench = bench();
    bench.introduce();
    bench.device.record_addresses(true);
    let payload = slices(&[b"odd", b"pieces", b"of data"]);
    bench.send(PEER, &payload).unwrap();
    let (header, bytes) = ip_payload(&bench.out()[0]);
    assert!(checksum_is_good(&header, &bytes));
    assert!(header.dont_fragment && header.identification == 0 && header.time_to_live == 64);
    assert_eq!(&bytes[20..], b"oddpiecesof data");
    let addresses: Vec<_> = payload.iter().map(|slice| (slice.address(), slice.len())).collect();
    assert_eq!(bench.device.take_recorded(), [addresses], "the pages themselves were given to the device");
    assert_eq!(bench.interface.counters().software_checksum_octets, 36);
}

/// docs/counters.md says what they are called elsewhere.
#[test]
fn the_page_names_counters_that_exist() {
    let page = include_str!("../../../docs/counters.md");
    let rows: Vec<Vec<&str>> = page.lines().map(|line| line.split('|').map(str::trim).collect()).collect();
    let rows: Vec<&Vec<&str>> = rows.iter().filter(|row| row.len() == 6).skip(2).collect();
    assert!(rows.len() > 40, "{} rows", rows.len());
    for row in rows {
        let fields = match row[2] {
            "ip" => InterfaceCounters::default().fields(),
            "ip6" => ipv6::Ipv6Counters::default().fields(),
            layer => panic!("no layer is called '{layer}'"),
        };
        for name in row[3].split(" + ") {
            assert!(fields.iter().any(|field| field.name == name), "{}: {} has no counter {name}", row[1], row[2]);
        }
    }
}

/// RFC 9293 section 3.9.1, MUST-49.
#[test]
fn packets_leave_with_the_time_to_live_that_is_set() {
    let mut bench = bench_on(EndOptions::plain(OUR_MAC.0, 1500), |options| options.time_to_live = 7);
    bench.introduce();
    bench.send(PEER, &[]).unwrap();
    bench.receive(icmp_frame(icmpv4::Repr::EchoRequest { identifier: 1, sequence: 1 }, b"data"));
    let lives: Vec<_> = bench.out().iter().map(|frame| ip_payload(frame).0).map(|ip| (ip.protocol, ip.time_to_live)).collect();
    assert_eq!(lives, [(protocol::TCP, 7), (protocol::ICMPV4, 7)]);
}

/// RFC 6864 section 4.3: what may be cut needs a value that tells its pieces from those of others.
#[test]
fn packets_that_may_be_cut_say_so_and_are_told_apart() {
    let mut without_sums = EndOptions::offloading(OUR_MAC.0, 1500);
    without_sums.capabilities.ip_checksum = false;
    for end in [EndOptions::plain(OUR_MAC.0, 1500), EndOptions::offloading(OUR_MAC.0, 1500), without_sums] {
        let mut bench = bench_on(end, |options| options.vlan = None);
        bench.introduce();
        let (header, payload) = (tcp_header(), slices(&[&[7; 512]]));
        let mut seen = std::collections::BTreeSet::new();
        for round in 0..1_000 {
            let packet = OutgoingPacket { transport_header: &header, may_fragment: true, ..outgoing(PEER, &payload) };
            if round % 2 == 0 {
                bench.interface.send(bench.now, &mut bench.device, &packet).unwrap();
            } else {
                let packet = OutgoingPacket { payload: &[], ..packet };
                bench.interface.send_taking(bench.now, &mut bench.device, &packet, &mut payload.clone(), 512).unwrap();
            }
            bench.device.flush();
            let (header, bytes) = ip_payload(&bench.out()[0]);
            assert!(checksum_is_good(&header, &bytes));
            assert_eq!((header.dont_fragment, header.payload_len), (false, 532));
            assert!(header.identification != 0 && seen.insert(header.identification), "{}", header.identification);
        }
        bench.send(PEER, &payload).unwrap();
        let (header, bytes) = ip_payload(&bench.out()[0]);
        assert!(checksum_is_good(&header, &bytes) && header.dont_fragment && header.identification == 0);
    }
}

#[test]
fn a_packet_that_may_be_cut_still_may_after_it_has_waited_for_its_neighbour() {
    let mut bench = bench();
    let header = tcp_header();
    let packet = OutgoingPacket { transport_header: &header, may_fragment: true, ..outgoing(PEER, &[]) };
    bench.interface.send(bench.now, &mut bench.device, &packet).unwrap();
    assert_eq!(bench.out().len(), 1, "asks for it");
    bench.receive(arp_frame(Operation::Reply, PEER_MAC, PEER, OURS));
    let (header, bytes) = ip_payload(&bench.out()[0]);
    assert!(checksum_is_good(&header, &bytes) && !header.dont_fragment);
}

/// Nobody hears a router that would have had to cut a datagram and was not allowed to: its client would wait for ever.
#[test]
fn routers_may_cut_long_datagrams() {
    for end in [EndOptions::plain(OUR_MAC.0, 1500), EndOptions::offloading(OUR_MAC.0, 1500)] {
        let mut bench = bench_on(end, |_| {});
        bench.introduce();
        let (from, to) = ((OURS, 111).into(), (PEER, 700).into());
        for (payload, uncut) in [(548, true), (549, false), (1472, false)] {
            bench.interface.send_udp(bench.now, &mut bench.device, from, to, &slices(&[&vec![7; payload]])).unwrap();
            let (header, bytes) = ip_payload(&bench.out()[0]);
            assert!(checksum_is_good(&header, &bytes));
            assert_eq!((header.dont_fragment, header.identification == 0), (uncut, uncut), "{payload}");
        }
    }
}

#[test]
fn a_device_with_offloads_completes_them() {
    let mut bench = bench_on(EndOptions::offloading(OUR_MAC.0, 1500), |_| {});
    bench.introduce();
    bench.send(PEER, &slices(&[b"odd", b"pieces"])).unwrap();
    bench
        .interface
        .send_udp(bench.now, &mut bench.device, "10.0.0.1:111".parse().unwrap(), "10.0.0.2:7".parse().unwrap(), &slices(&[b"x"]))
        .unwrap();
    let out = bench.out();
    for frame in &out {
        let (header, bytes) = ip_payload(frame);
        assert!(checksum_is_good(&header, &bytes));
    }
    assert_eq!((out.len(), bench.interface.counters().software_checksum_octets), (2, 0));
}

#[test]
fn a_tso_packet_leaves_as_segments_with_good_checksums() {
    tso_packet_through(EndOptions::offloading(OUR_MAC.0, 1500));
}

/// virtio and vmxnet3. The link asserts that nothing is asked for that was not offered.
#[test]
fn a_device_that_cuts_packets_without_offering_ipv4_checksums_gets_the_whole_packets() {
    let mut options = EndOptions::offloading(OUR_MAC.0, 1500);
    options.capabilities.ip_checksum = false;
    tso_packet_through(options);
}

fn tso_packet_through(options: EndOptions) {
    let mut bench = bench_on(options, |_| {});
    bench.introduce();
    let data: Vec<u8> = (0..40_001u32).map(|n| (n % 251) as u8).collect();
    let header = tcp_header();
    let payload = slices(&[&data[..30_000], &data[30_000..]]);
    let packet = OutgoingPacket { transport_header: &header, tso_mss: Some(1460), traffic_class: 2, ..outgoing(PEER, &payload) };
    bench.interface.send(bench.now, &mut bench.device, &packet).unwrap();
    let out = bench.out();
    assert_eq!(out.len(), 40_001usize.div_ceil(1460));
    let mut joined: Vec<u8> = Vec::new();
    for (n, frame) in out.iter().enumerate() {
        let (ip, bytes) = ip_payload(frame);
        assert!(checksum_is_good(&ip, &bytes));
        assert_eq!((ip.traffic_class, usize::from(ip.identification)), (2, n));
        assert_eq!(bytes[4..8], (1000 + joined.len() as u32).to_be_bytes(), "sequence");
        assert_eq!(bytes[13] & 8 != 0, n + 1 == out.len(), "PSH on the last");
        joined.extend(&bytes[20..]);
    }
    assert_eq!(joined, data);
}

#[test]
fn packets_beyond_the_limits_are_refused_before_anything_is_kept() {
    let mut bench = bench_on(EndOptions::plain(OUR_MAC.0, 1500), |_| {});
    bench.introduce();
    let data = [0; 1461];
    assert_eq!(bench.send(PEER, &slices(&[&data])), Err(SendRefused::TooLong));
    assert_eq!(bench.send(PEER, &slices(&[&data[1..]])), Ok(()));
    assert_eq!(bench.send(Ipv4Addr::new(10, 0, 0, 9), &slices(&[&data])), Err(SendRefused::TooLong), "not parked either");
    let many: Vec<Slice> = (0..64).flat_map(|_| slices(&[b"x"])).collect();
    assert_eq!(bench.send(PEER, &many), Err(SendRefused::TooManySegments));
    let header = tcp_header();
    let mut refused = |packet: OutgoingPacket<'_>| bench.interface.send(Instant::ZERO, &mut bench.device, &packet);
    assert_eq!(
        refused(OutgoingPacket { transport_header: &header, tso_mss: Some(1000), ..outgoing(PEER, &[]) }),
        Err(SendRefused::TooLong)
    );
    assert_eq!(refused(outgoing(PEER, &[])), Err(SendRefused::TooLong), "no TCP header");
    assert_eq!(refused(OutgoingPacket { transport_header: &[0; 61], ..outgoing(PEER, &[]) }), Err(SendRefused::TooLong));
    let counters = bench.interface.counters();
    assert_eq!((counters.too_long, counters.too_many_segments), (5, 1));
}

#[test]
fn tso_packets_beyond_the_limits_are_refused() {
    let mut bench = bench_on(EndOptions::offloading(OUR_MAC.0, 1500), |_| {});
    bench.introduce();
    let header = tcp_header();
    let mut send = |octets: usize, mss| {
        let payload = slices(&[&vec![0; octets]]);
        let packet = OutgoingPacket { transport_header: &header, tso_mss: Some(mss), ..outgoing(PEER, &payload) };
        bench.interface.send(Instant::ZERO, &mut bench.device, &packet)
    };
    assert_eq!(send(65_000, 1460), Ok(()));
    assert_eq!(send(65_001, 1460), Err(SendRefused::TooLong), "beyond tso_bytes_max");
    assert_eq!(send(5_000, 1461), Err(SendRefused::TooLong), "MSS beyond the MTU");
    assert_eq!(send(5_000, 0), Err(SendRefused::TooLong));
    bench.device.capabilities_mut().tso_bytes_max = 70_000;
    let payload = slices(&[&[0; 65_496]]);
    let packet = OutgoingPacket { transport_header: &header, tso_mss: Some(1460), ..outgoing(PEER, &payload) };
    assert_eq!(bench.interface.send(Instant::ZERO, &mut bench.device, &packet), Err(SendRefused::TooLong), "beyond 16 bits");
}

#[test]
fn a_full_device_keeps_own_packets_in_order_for_later() {
    let mut end = EndOptions::plain(OUR_MAC.0, 1500);
    end.ring_frames = 1;
    let mut bench = bench_on(end, |_| {});
    bench.send(PEER, &slices(&[b"one"])).unwrap();
    bench.send(PEER, &slices(&[b"two"])).unwrap();
    bench.receive(arp_frame(Operation::Request, PEER_MAC, PEER, OURS));
    let mut frames = Vec::new();
    for _ in 0..4 {
        assert!(bench.interface.has_transmit());
        frames.extend(bench.out());
    }
    assert!(!bench.interface.has_transmit());
    assert_eq!(ip_payload(&frames[0]).1[20..], *b"one");
    assert_eq!(ip_payload(&frames[1]).1[20..], *b"two");
    assert_eq!(parse_arp(&frames[2]).1.operation, Operation::Reply);
    assert_eq!(parse_arp(&frames[3]).1.operation, Operation::Request);
    let header = tcp_header();
    let packet = OutgoingPacket { transport_header: &header, ..outgoing(PEER, &[]) };
    bench.interface.send(bench.now, &mut bench.device, &packet).unwrap();
    assert_eq!(bench.interface.send(bench.now, &mut bench.device, &packet), Err(SendRefused::Full));
    assert!(bench.interface.counters().device_full >= 1);
}

#[test]
fn a_reply_whose_way_is_gone_when_its_turn_comes_is_dropped_and_counted() {
    let mut bench = bench_on(EndOptions::plain(OUR_MAC.0, 1500), |options| options.gateway = None);
    let frame = ip_frame(
        ipv4::Repr { src: FAR, ..ip_header(protocol::ICMPV4, 8) },
        &icmpv4::Repr::EchoRequest { identifier: 1, sequence: 1 }.emit([]),
    );
    bench.receive(frame);
    assert!(bench.out().is_empty());
    assert_eq!((bench.interface.counters().icmp_echo_in, bench.interface.counters().own_packets_refused), (1, 1));
}

#[test]
fn a_datagram_beyond_the_mtu_is_refused_with_its_lengths() {
    let mut bench = bench();
    bench.introduce();
    let data = [0; 1473];
    let [src, dst] = ["10.0.0.1:111", "10.0.0.2:7"].map(|text| text.parse().unwrap());
    let mut send =
        |octets: usize| bench.interface.send_udp(Instant::ZERO, &mut bench.device, src, dst, &slices(&[&data[..octets]]));
    assert_eq!(send(1472), Ok(()));
    assert_eq!(send(1473), Err(UdpRefused::TooLong { octets: 1473, octets_max: 1472 }));
    assert_eq!(bench.interface.counters().udp_too_long, 1);
}

// ---- two interfaces ---------------------------------------------------------------------------------------------------

/// Runs two interfaces over a lossy link; one sends a datagram every 100 ms, the other echoes its payload.
fn exchange(seed: u64, loss_ppm: u32) -> (Vec<String>, u64) {
    let impairments = Impairments { loss_ppm, delay: Duration::from_micros(300), ..Impairments::default() };
    let ends = [EndOptions::plain(OUR_MAC.0, 1500), EndOptions::offloading(PEER_MAC.0, 1500)];
    let (link, mut a_end, mut b_end) = MemoryLink::new(seed, [impairments; 2], ends);
    let neighbours = NeighbourOptions { reachable: Duration::from_secs(1), ..NeighbourOptions::default() };
    let interface = |mac: Address, address: Ipv4Addr| {
        let mut options = InterfaceOptions::new(mac.0, 1500, address.into(), 24);
        options.neighbours = neighbours.clone();
        Interface::new(options, arena(), Instant::ZERO).unwrap()
    };
    let (mut a, mut b) = (interface(OUR_MAC, OURS), interface(PEER_MAC, PEER));
    let [client, server] = ["10.0.0.1:700", "10.0.0.2:111"].map(|text| text.parse().unwrap());
    let (mut now, mut next_send, mut sent, mut heard) = (Instant::ZERO, Instant::ZERO, 0, Vec::new());
    while now < Instant::from_millis(10_000) {
        link.set_now(now);
        if now >= next_send {
            let payload = slices(&[format!("datagram {sent}").as_bytes()]);
            let _ = a.send_udp(now, &mut a_end, client, server, &payload);
            (sent, next_send) = (sent + 1, now + Duration::from_millis(100));
        }
        let mut frames = Vec::new();
        b_end.receive(&mut frames);
        for frame in frames.drain(..) {
            if let Ingress::Udp(datagram) = b.handle_frame(now, frame) {
                let _ = b.send_udp(now, &mut b_end, datagram.dst, datagram.src, &slices(&[&datagram.packet.first]));
            }
        }
        a_end.receive(&mut frames);
        for frame in frames {
            if let Ingress::Udp(datagram) = a.handle_frame(now, frame) {
                heard.push(String::from_utf8(datagram.packet.first.to_vec()).unwrap());
            }
        }
        for (interface, end) in [(&mut a, &mut a_end), (&mut b, &mut b_end)] {
            interface.handle_timeout(now);
            interface.poll_transmit(now, end);
            end.flush();
        }
        let due = [link.poll_timeout(), a.poll_timeout(), b.poll_timeout(), Some(next_send)];
        now = due.into_iter().flatten().filter(|at| *at > now).min().unwrap_or(next_send);
    }
    (heard, a.neighbour_counters().confirmations)
}

#[test]
fn two_interfaces_find_each_other_and_exchange_datagrams() {
    let (heard, confirmations) = exchange(1, 0);
    assert_eq!(heard, (0..100).map(|n| format!("datagram {n}")).collect::<Vec<_>>());
    assert!((5..=10).contains(&confirmations), "once a second: {confirmations}");
}

#[test]
fn two_interfaces_on_a_lossy_link_lose_datagrams_but_not_each_other() {
    for seed in 0..20 {
        let (heard, _) = exchange(seed, 200_000);
        // Two losses of 20 % leave 64 of 100, and ARP may cost some seconds' worth on top.
        assert!((20..90).contains(&heard.len()), "seed {seed}: {}", heard.len());
        assert_eq!(heard, exchange(seed, 200_000).0, "seed {seed} again");
    }
}

proptest::proptest! {
    #[test]
    fn random_frames_never_panic(
        bytes in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..200), kind in 0usize..6, cut in 0usize..100,
    ) {
        let mut bench = bench();
        let mut frame = bytes;
        // Steer some of them past the first checks.
        let front = match kind {
            1 => ethernet(OUR_MAC, PEER_MAC, ethertype::ARP, &[0, 1, 8, 0, 6, 4, 0]),
            2 => udp_frame(111, b""),
            3 => icmp_frame(icmpv4::Repr::EchoRequest { identifier: 1, sequence: 1 }, b""),
            4 => icmp_frame(icmpv4::Repr::DestinationUnreachable { code: 4, mtu: 0 }, b""),
            5 => with_options(&[7, 4, 4, 0]),
            _ => Vec::new(),
        };
        for (to, from) in frame.iter_mut().zip(front.iter().take(cut)) {
            *to = *from;
        }
        let mut packet = RxPacket::from_vec(frame.clone());
        if cut % 2 == 1 {
            packet.first.truncate(cut);
            packet.more.push(RxBuf::from_vec(frame.get(cut..).unwrap_or(&[]).to_vec()));
        }
        // Checksums count as good, so that random bytes get through to the parsers behind them.
        let frame = RxFrame { packet, ip_checksum: Checksum::Good, l4_checksum: Checksum::Good };
        if let Ingress::Udp(datagram) = bench.interface.handle_frame(bench.now, frame) {
            bench.interface.udp_unreachable(bench.now, datagram);
        }
        bench.out();
    }
}
