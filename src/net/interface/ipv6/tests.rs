//! One interface's IPv6 against raw frames, as conversations on a virtual clock: what goes out is told in one line a frame.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use super::super::{IcmpErrorKind, Ingress, Interface, InterfaceEvent, InterfaceOptions, OutgoingPacket, SendRefused};
use super::{Ipv6Counters, Ipv6Options};
use crate::buf::{FragmentArena, PagePool, RxPacket, Slice};
use crate::net::device::{Checksum, Device as _, RxFrame};
use crate::net::memory_link::{EndOptions, Impairments, MemoryEnd, MemoryLink};
use crate::time::{Duration, Instant};
use crate::wire::checksum::Sum;
use crate::wire::ethernet::{self, Address, Frame, ethertype};
use crate::wire::ndp::{self, Prefix, RouterAdvertisement};
use crate::wire::{icmpv4, icmpv6, ipv6, protocol, udp};

mod discovery;
mod lead;
mod packets;

const OUR_MAC: Address = Address([2, 0, 0, 0, 0, 1]);
const PEER_MAC: Address = Address([2, 0, 0, 0, 0, 2]);
const ROUTER_MAC: Address = Address([2, 0, 0, 0, 0, 9]);

fn ip(text: &str) -> Ipv6Addr {
    text.parse().unwrap()
}

fn ours() -> Ipv6Addr {
    ip("2001:db8::1")
}

fn peer() -> Ipv6Addr {
    ip("2001:db8::2")
}

fn router() -> Ipv6Addr {
    ip("fe80::9")
}

fn slice(bytes: &[u8]) -> Slice {
    let mut page = PagePool::anonymous(1, 65_536).unwrap().allocate().unwrap();
    page[..bytes.len()].copy_from_slice(bytes);
    page.freeze().slice(0..bytes.len())
}

/// An interface at side 0 of a link; at side 1 the test itself.
struct Bench {
    interface: Interface,
    device: MemoryEnd,
    wire: MemoryEnd,
    now: Instant,
    link: MemoryLink,
}

fn bench_on(end: EndOptions, change: impl FnOnce(&mut InterfaceOptions)) -> Bench {
    let mut options = InterfaceOptions::new(OUR_MAC.0, end.capabilities.mtu, ours().into(), 64);
    change(&mut options);
    let ends = [end, EndOptions::plain(PEER_MAC.0, 9000)];
    let (link, device, wire) = MemoryLink::new(0, [Impairments::default(); 2], ends);
    let arena = FragmentArena::new(PagePool::anonymous(8, 16_384).unwrap()).unwrap();
    Bench { interface: Interface::new(options, arena, Instant::ZERO).unwrap(), device, wire, now: Instant::ZERO, link }
}

/// Its address is in use from the start, and all that was said at the start is over.
fn bench() -> Bench {
    bench_with(|_| {})
}

fn bench_with(change: impl FnOnce(&mut InterfaceOptions)) -> Bench {
    bench_at(EndOptions::plain(OUR_MAC.0, 1500), change)
}

fn bench_at(end: EndOptions, change: impl FnOnce(&mut InterfaceOptions)) -> Bench {
    let mut bench = bench_on(end, |options| {
        options.ipv6.duplicate_detections = 0;
        options.ipv6.announcements = 0;
        change(options);
    });
    bench.interface.handle_timeout(bench.now);
    bench.run(1_500);
    while bench.interface.poll_event().is_some() {}
    bench
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
        std::iter::from_fn(|| self.wire.take_frame()).collect()
    }

    fn said(&mut self) -> Vec<String> {
        self.out().iter().map(|frame| tell(frame)).collect()
    }

    /// Jumps from wake-up to wake-up until `until` ms; what goes out when, listener reports left out.
    fn run(&mut self, until: u64) -> Vec<(u64, String)> {
        let mut sent = Vec::new();
        loop {
            let now = self.now.millis();
            sent.extend(self.said().into_iter().filter(|line| !line.starts_with("MLD")).map(|line| (now, line)));
            match self.interface.poll_timeout() {
                Some(at) if at.millis() <= until => self.now = at.max(self.now),
                _ => break,
            }
            self.link.set_now(self.now);
            self.interface.handle_timeout(self.now);
        }
        self.now = Instant::from_millis(until);
        self.link.set_now(self.now);
        sent
    }

    fn counters(&self) -> Ipv6Counters {
        *self.interface.ipv6_counters().unwrap()
    }

    fn events(&mut self) -> Vec<InterfaceEvent> {
        std::iter::from_fn(|| self.interface.poll_event()).collect()
    }

    fn addresses(&self) -> Vec<String> {
        self.interface.addresses().map(|address| address.to_string()).collect()
    }

    /// The link-local address, made from the key.
    fn link_local(&self) -> Ipv6Addr {
        let v6 = |address| if let IpAddr::V6(v6) = address { Some(v6) } else { None };
        self.interface.addresses().filter_map(v6).find(|v6| ipv6::is_link_local(*v6)).unwrap()
    }

    /// The peer asks for our address, so that we know the peer's.
    fn introduce(&mut self) {
        self.receive(solicitation(peer(), ipv6::solicited_node(ours()), ours(), Some(PEER_MAC)));
        assert_eq!(self.out().len(), 1);
    }

    fn send(&mut self, dst: Ipv6Addr, payload: &[Slice]) -> Result<(), SendRefused> {
        let header = tcp_header();
        let result = self.interface.send(self.now, &mut self.device, &outgoing(dst, &header, payload));
        self.device.flush();
        result
    }
}

/// 20 bytes that look like a TCP header: sequence 1000, flags PSH and ACK, junk where the checksum goes.
fn tcp_header() -> [u8; 20] {
    [8, 1, 2, 188, 0, 0, 3, 232, 0, 0, 0, 1, 0x50, 0x18, 0xff, 0xff, 0xaa, 0xbb, 0, 0]
}

fn outgoing<'a>(dst: Ipv6Addr, transport_header: &'a [u8], payload: &'a [Slice]) -> OutgoingPacket<'a> {
    OutgoingPacket {
        src: ours().into(),
        dst: dst.into(),
        protocol: protocol::TCP,
        traffic_class: 0,
        transport_header,
        payload,
        tso_mss: None,
        may_fragment: false,
    }
}

fn frame_to(dst: Address, src: Address, packet: &[u8]) -> Vec<u8> {
    let mut frame = [&ethernet::Repr { dst, src, ethertype: ethertype::IPV6 }.emit()[..], packet].concat();
    frame.resize(frame.len().max(60), 0);
    frame
}

/// A packet of the peer's, to the MAC address that its destination asks for.
fn packet(src: Ipv6Addr, dst: Ipv6Addr, next_header: u8, hop_limit: u8, payload: &[u8]) -> Vec<u8> {
    let header =
        ipv6::Repr { src, dst, next_header, traffic_class: 0, flow_label: 0, hop_limit, payload_len: payload.len() as u16 };
    let mac = if dst.is_multicast() { ipv6::multicast_mac(dst) } else { OUR_MAC };
    frame_to(mac, PEER_MAC, &[&header.emit()[..], payload].concat())
}

fn discovery(src: Ipv6Addr, dst: Ipv6Addr, repr: &ndp::Repr) -> Vec<u8> {
    packet(src, dst, protocol::ICMPV6, 255, &repr.emit(src, dst))
}

fn solicitation(src: Ipv6Addr, dst: Ipv6Addr, target: Ipv6Addr, source: Option<Address>) -> Vec<u8> {
    discovery(src, dst, &ndp::Repr::NeighbourSolicitation { target, source })
}

fn advertisement(target: Ipv6Addr, link: Option<Address>, solicited: bool) -> Vec<u8> {
    let repr = ndp::Repr::NeighbourAdvertisement { target, router: false, solicited, replace: true, link };
    discovery(target, if solicited { ours() } else { ipv6::ALL_NODES }, &repr)
}

fn router_says(change: impl FnOnce(&mut RouterAdvertisement)) -> Vec<u8> {
    let mut advertisement = RouterAdvertisement {
        hop_limit: 0,
        managed: false,
        other: false,
        lifetime_s: 1800,
        reachable_ms: 0,
        retransmit_ms: 0,
        source: Some(ROUTER_MAC),
        mtu: None,
        prefixes: Default::default(),
    };
    change(&mut advertisement);
    discovery(router(), ipv6::ALL_NODES, &ndp::Repr::RouterAdvertisement(advertisement))
}

fn prefix(text: &str, valid_s: u32, preferred_s: u32) -> Prefix {
    Prefix { prefix: ip(text), len: 64, on_link: true, autonomous: true, valid_s, preferred_s }
}

fn icmp(src: Ipv6Addr, dst: Ipv6Addr, repr: icmpv6::Repr, data: &[u8]) -> Vec<u8> {
    packet(src, dst, protocol::ICMPV6, 64, &[&repr.emit(src, dst, &[data])[..], data].concat())
}

fn udp_bytes(src: Ipv6Addr, dst: Ipv6Addr, dst_port: u16, payload: &[u8]) -> Vec<u8> {
    let mut bytes = udp::Repr { src_port: 700, dst_port, payload_len: payload.len() as u16, checksum: 0 }.emit().to_vec();
    bytes.extend(payload);
    let mut sum = Sum::pseudo_header(src.into(), dst.into(), protocol::UDP, bytes.len());
    sum.add(&bytes);
    bytes[6..8].copy_from_slice(&crate::wire::checksum::udp_field(&sum).to_be_bytes());
    bytes
}

/// One line about a frame of ours, whose checksums must be good.
fn tell(frame: &[u8]) -> String {
    let link = Frame::new(frame).unwrap();
    assert_eq!((link.src(), link.ethertype()), (OUR_MAC, ethertype::IPV6));
    let packet = ipv6::Packet::new(link.payload(), link.payload().len()).unwrap();
    let chain = packet.chain().unwrap();
    let (src, dst, body) = (packet.src(), packet.dst(), &link.payload()[chain.offset..packet.total_len()]);
    if dst.is_multicast() {
        assert_eq!(link.dst(), ipv6::multicast_mac(dst), "RFC 2464 section 7");
    }
    let mut sum = Sum::pseudo_header(src.into(), dst.into(), chain.protocol, body.len());
    sum.add(body);
    assert!(sum.is_valid(), "checksum of {chain:?}");
    let way = format!("{src} > {dst}");
    if chain.protocol != protocol::ICMPV6 {
        return format!("protocol {} {way} via {}, {} bytes", chain.protocol, link.dst(), body.len());
    }
    let view = icmpv6::Packet::new(body).unwrap();
    if !(133..=137).contains(&view.kind()) {
        let name = if matches!(view.kind(), 131 | 132 | 143) { "MLD" } else { "ICMP" };
        assert!(name == "ICMP" || chain.router_alert && packet.hop_limit() == 1);
        return match icmpv6::Repr::parse(&view) {
            icmpv6::Repr::Other { kind, .. } => format!("{name} {kind} {way}"),
            repr => format!("{repr:?} {way} via {}, {} bytes", link.dst(), view.data().len()),
        };
    }
    assert_eq!(packet.hop_limit(), 255, "RFC 4861 section 7.2.2");
    match ndp::Repr::parse(body).unwrap() {
        ndp::Repr::NeighbourSolicitation { target, source } => {
            format!("who has {target}, {way} via {}{}", link.dst(), if source.is_some() { "" } else { ", tells no address" })
        }
        ndp::Repr::NeighbourAdvertisement { target, solicited, replace, link: Some(mac), router: false } => {
            assert!(replace && mac == OUR_MAC);
            format!("{target} is here{}, {way} via {}", if solicited { " (solicited)" } else { "" }, link.dst())
        }
        ndp::Repr::RouterSolicitation { .. } => format!("any routers? {way}"),
        other => panic!("nobody sends {other:?}"),
    }
}

#[test]
fn the_rigs_own_address_is_there_and_nothing_is_said_in_the_end() {
    let mut bench = bench();
    assert_eq!(bench.addresses().len(), 2);
    assert!(bench.interface.is_own(ours().into()));
    assert_eq!(bench.run(600_000), []);
}
