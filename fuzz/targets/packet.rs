//! Frames into a whole core: interface, TCP, RPC, programs and store, over a device that is a queue.
//!
//! A core begins with IPv4 alone. Operation 0x8d gives it an interface with addresses of both families, in a VLAN or not, with or
//! without routers; the next six are what can come over IPv6.
//!
//! The input is a list of frames, each with how much of it is put in order (addresses, lengths, checksums, numbers of one of a
//! few connections), so that mutations get past the first check.
//!
//! Oracles: no panic; the device's limits and offers are kept to; a core comes to rest; limits hold; no page is lost.

use std::collections::VecDeque;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use nfsplice::buf::{Checksum, FragmentArena, PagePool, RxPacket, Slice};
use nfsplice::net::device::{Device, DeviceCapabilities, RxFrame, TxOffload, TxRefused};
use nfsplice::net::{Interface, InterfaceOptions};
use nfsplice::program::ProgramTable;
use nfsplice::shard::{Lane, Shard};
use nfsplice::tcp;
use nfsplice::time::{Duration, Instant};
use nfsplice::wire::checksum::{Sum, udp_field};
use nfsplice::wire::ipv6;
use nfsplice::wire::tcp::{Flags, HEADER_LEN_MAX, Repr, SeqNumber};

use super::input::Input;
use super::rpc_record::call;
use super::server::{Parking, Parts, rpc_options};

const SERVER_MAC: [u8; 6] = [2, 0, 0, 0, 0, 2];
const CLIENT_MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];
const SERVER: [u8; 4] = [10, 77, 0, 2];
const CLIENT: [u8; 4] = [10, 77, 0, 1];
const SERVER_V6: Ipv6Addr = Ipv6Addr::new(0xfd4e, 0x6673, 0, 0, 0, 0, 0, 2);
const CLIENT_V6: Ipv6Addr = Ipv6Addr::new(0xfd4e, 0x6673, 0, 0, 0, 0, 0, 1);
const ROUTER: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 9);
const VLAN: u16 = 42;
const STREAM_PORTS: [u16; 3] = [111, 2049, 20048];
const DATAGRAM_PORTS: [u16; 2] = [111, 20048];
const MTU: u16 = 1500;
/// Turns in which a core must come to rest.
const TURNS_MAX: usize = 2_000;
const FRAMES_PER_TURN: usize = 32;
const CLIENTS: usize = 4;

struct Sent {
    header: Vec<u8>,
    payload: Vec<Slice>,
    tso: bool,
}

/// A device whose cable is two queues.
struct Wire {
    capabilities: DeviceCapabilities,
    ring_frames: usize,
    arriving: VecDeque<Vec<u8>>,
    queued: Vec<Sent>,
    sent: Vec<Sent>,
}

impl Device for Wire {
    fn capabilities(&self) -> &DeviceCapabilities {
        &self.capabilities
    }

    fn receive(&mut self, out: &mut Vec<RxFrame>) -> usize {
        let count = self.arriving.len().min(FRAMES_PER_TURN);
        out.extend(self.arriving.drain(..count).map(|frame| RxFrame {
            packet: RxPacket::from_vec(frame),
            ip_checksum: Checksum::Unknown,
            l4_checksum: Checksum::Unknown,
        }));
        count
    }

    fn transmit(&mut self, header: &[u8], payload: &[Slice], offload: &TxOffload) -> Result<(), TxRefused> {
        if self.queued.len() >= self.ring_frames {
            return Err(TxRefused::Full);
        }
        let offers = &self.capabilities;
        let len: usize = payload.iter().map(|slice| slice.len()).sum();
        let segments = payload.len() + 1;
        match offload.tso_mss {
            None => {
                assert!(header.len() + len <= link_len(header) + usize::from(offers.mtu), "a packet longer than the MTU");
                assert!(segments <= usize::from(offers.segments_per_packet_max), "{segments} buffers");
            }
            Some(mss) => {
                assert!(mss > 0 && len <= offers.tso_bytes_max as usize, "TSO of {len} bytes");
                assert!(offers.tso_ipv6 || !offload.ipv6, "TSO over IPv6");
                assert!(segments <= usize::from(offers.segments_tso_max), "{segments} buffers");
            }
        }
        assert!(offers.ip_checksum || offers.tso_bytes_max > 0 || !offload.ip_checksum);
        assert!(offers.tcp_checksum || offload.tso_mss.is_some() || !offload.tcp_checksum);
        assert!(offers.udp_checksum || !offload.udp_checksum);
        self.queued.push(Sent { header: header.to_vec(), payload: payload.to_vec(), tso: offload.tso_mss.is_some() });
        Ok(())
    }

    fn flush(&mut self) -> usize {
        let count = self.queued.len();
        self.sent.append(&mut self.queued);
        count
    }
}

/// Bytes of a frame's Ethernet header.
fn link_len(frame: &[u8]) -> usize {
    if frame[12..14] == [0x81, 0] { 18 } else { 14 }
}

fn wire(how: u8) -> Wire {
    let offload = how & 8 != 0;
    let capabilities = DeviceCapabilities {
        mac: SERVER_MAC,
        mtu: MTU,
        ip_checksum: offload,
        tcp_checksum: offload,
        udp_checksum: offload,
        tso_bytes_max: if how & 16 != 0 { 20_000 } else { 0 },
        tso_ipv6: how & 24 == 24,
        segments_per_packet_max: if how & 32 != 0 { 2 } else { 32 },
        segments_tso_max: if how & 32 != 0 { 4 } else { 32 },
    };
    let ring_frames = if how & 64 != 0 { 2 } else { 64 };
    Wire { capabilities, ring_frames, arriving: VecDeque::new(), queued: Vec::new(), sent: Vec::new() }
}

fn tcp_options() -> tcp::Options {
    tcp::Options {
        receive_window_initial: 8 << 10,
        receive_window_max: 16 << 10,
        receive_buffers_max: 64,
        driver_buffers_max: 96,
        driver_buffers_unshared: 4,
        copy_out_below_bytes: 64,
        send_queue_bytes_max: 2 * rpc_options().send_queue_bytes_max as usize,
        connections_max: 6,
        listeners_max: 3,
        syn_received_max: 2,
        accept_queue_max: 2,
        time_wait_max: 2,
        replies_max: 8,
        ..tcp::Options::default()
    }
}

/// What a client of one connection knows.
#[derive(Clone, Copy)]
struct Client {
    port: u16,
    next: SeqNumber,
    expected: SeqNumber,
    ipv6: bool,
}

struct Core {
    shard: Shard<Wire, ProgramTable>,
    pools: [PagePool; 3],
    now: Instant,
    clients: [Client; CLIENTS],
    /// The last IP packet the server sent, for ICMP errors to quote.
    seen: Vec<u8>,
    /// The client's host answers ARP and neighbour solicitations.
    answers_arp: bool,
    /// Frames to the server carry this tag.
    tag: Option<u16>,
    log: Option<Vec<Vec<u8>>>,
}

impl Core {
    fn new(how: u8) -> Core {
        let now = Instant::from_millis(1);
        let Parts { rpc, programs, fragments, blocks, store: _ } = Parts::new(Parking::from_bits(how));
        let pool = PagePool::anonymous(128, 2048).expect("memory");
        let arena = || FragmentArena::new(pool.clone()).expect("pages");
        let options = InterfaceOptions::new(SERVER_MAC, MTU, Ipv4Addr::from(SERVER).into(), 24);
        let interface = Interface::new(options, arena(), now).expect("good options");
        let mut tcp = tcp::Endpoint::new(tcp_options(), [3; 16]);
        tcp.set_copy_out(arena());
        for port in STREAM_PORTS {
            tcp.listen(port).expect("a free port");
        }
        let lanes = vec![Lane { device: wire(how), interface }];
        let shard = Shard::new(lanes, tcp, rpc, programs, DATAGRAM_PORTS.to_vec());
        let client = Client { port: 2049, next: SeqNumber(1_000), expected: SeqNumber(0), ipv6: false };
        let pools = [fragments, blocks, pool];
        let clients = [client; CLIENTS];
        let mut core = Core { shard, pools, now, clients, seen: Vec::new(), answers_arp: how & 128 == 0, tag: None, log: None };
        core.settle();
        core
    }

    /// An interface with both families in the place of the one there is, as after a change of the configuration.
    fn reconfigure(&mut self, how: u8) {
        let arena = FragmentArena::new(self.pools[2].clone()).expect("pages");
        let mut options = InterfaceOptions::new(SERVER_MAC, MTU, Ipv4Addr::from(SERVER).into(), 24);
        options.addresses.push((SERVER_V6.into(), 64));
        options.vlan = (how & 1 != 0).then_some(VLAN);
        options.ipv6.slaac = how & 2 != 0;
        options.ipv6.duplicate_detections = u32::from(how & 4 != 0);
        options.ipv6.gateway = (how & 8 != 0).then_some(ROUTER);
        options.ipv6.neighbours.neighbours_max = 16;
        self.tag = options.vlan;
        self.shard.lanes_mut()[0].interface = Interface::new(options, arena, self.now).expect("good options");
    }

    fn arrive(&mut self, mut frame: Vec<u8>) {
        if let Some(tag) = self.tag.filter(|_| frame.len() >= 14) {
            let [high, low] = tag.to_be_bytes();
            frame.splice(12..12, [0x81, 0, high, low]);
        }
        if let Some(log) = &mut self.log {
            log.push(frame.clone());
        }
        self.shard.lanes_mut()[0].device.arriving.push_back(frame);
    }

    /// Turns until there is nothing to do.
    fn settle(&mut self) {
        for _ in 0..TURNS_MAX {
            let work = self.shard.turn(self.now);
            let sent = std::mem::take(&mut self.shard.lanes_mut()[0].device.sent);
            let replied = sent.iter().map(|sent| self.notice(sent)).fold(false, |any, one| any | one);
            self.check_bounds();
            if work == 0 && !replied {
                return;
            }
        }
        panic!("the core does not come to rest");
    }

    /// What the client's side learns from a frame; whether it put another one on the wire.
    fn notice(&mut self, sent: &Sent) -> bool {
        let header = &sent.header;
        assert!(header.len() >= 14);
        let link_len = link_len(header);
        let header = &header[link_len..];
        match sent.header[link_len - 2..link_len] {
            [8, 6] => return self.notice_arp(header),
            [8, 0] => {}
            [0x86, 0xdd] => return self.notice_ipv6(sent, link_len),
            _ => panic!("a frame of type {:x?}", &sent.header[link_len - 2..link_len]),
        }
        self.seen.clear();
        self.seen.extend(header);
        let len: usize = sent.payload.iter().map(|slice| slice.len()).sum();
        let (ip, transport) = header.split_at(20);
        let total = usize::from(u16::from_be_bytes([ip[2], ip[3]]));
        assert!(sent.tso || total == header.len() + len, "IPv4 length {total}");
        if ip[9] == 6 {
            self.notice_segment(transport, len, false);
        }
        false
    }

    /// The same for IPv6: a question for the client's MAC address is answered.
    fn notice_ipv6(&mut self, sent: &Sent, link_len: usize) -> bool {
        let header = &sent.header[link_len..];
        let len: usize = sent.payload.iter().map(|slice| slice.len()).sum();
        let packet = ipv6::Packet::new(header, header.len() + len).expect("an IPv6 packet");
        assert!(sent.tso || packet.total_len() == header.len() + len, "IPv6 length {}", packet.payload_len());
        let chain = packet.chain().expect("good extension headers");
        self.seen.clear();
        self.seen.extend(header);
        let transport = &header[chain.offset..];
        match chain.protocol {
            6 => self.notice_segment(transport, len, true),
            58 if transport[0] == 135 && transport.get(8..24) == Some(&CLIENT_V6.octets()) && self.answers_arp => {
                let target = transport[8..24].to_vec();
                let answer = [&[136, 0, 0, 0, 0x60, 0, 0, 0][..], &target, &[2, 1], &CLIENT_MAC].concat();
                self.arrive(ipv6_frame(CLIENT_V6, packet.src(), 58, 255, &answer, true));
                return true;
            }
            _ => {}
        }
        false
    }

    fn notice_segment(&mut self, transport: &[u8], len: usize, ipv6: bool) {
        let (repr, header_len) = Repr::parse(transport).expect("a TCP header");
        assert_eq!(header_len, transport.len());
        let Some(client) = usize::from(repr.dst_port).checked_sub(900).and_then(|at| self.clients.get_mut(at)) else {
            return;
        };
        let control = u32::from(repr.flags.contains(Flags::SYN)) + u32::from(repr.flags.contains(Flags::FIN));
        if repr.src_port == client.port && client.ipv6 == ipv6 && !repr.flags.contains(Flags::RST) {
            client.expected = repr.seq + (len as u32 + control);
        }
    }

    fn notice_arp(&mut self, packet: &[u8]) -> bool {
        let asks_for_client = packet.len() >= 28 && packet[6..8] == [0, 1] && packet[24..28] == CLIENT;
        if asks_for_client && self.answers_arp {
            let arp = arp(2, CLIENT_MAC, CLIENT, SERVER_MAC, SERVER);
            self.arrive(ethernet(0x0806, &arp));
        }
        asks_for_client && self.answers_arp
    }

    fn check_bounds(&self) {
        let (tcp, rpc) = (tcp_options(), rpc_options());
        let half_open_max = tcp.listeners_max * tcp.syn_received_max;
        assert!(self.shard.tcp().connections().count() <= tcp.connections_max + tcp.time_wait_max + half_open_max);
        assert!(self.shard.tcp().counters().driver_buffers_held <= tcp.driver_buffers_max as u64);
        assert!(self.shard.rpc().counters().calls_in_flight <= u64::from(rpc.calls_in_flight_total_max));
        assert!(self.shard.rpc().counters().connections <= u64::from(rpc.connections_max));
        assert_eq!(self.shard.counters().replies_refused, 0, "a reply that the send queue did not take");
    }

    /// A segment of one of the clients. Offsets of 0 mean what TCP would send next.
    fn segment(&mut self, which: usize, flags: Flags, offsets: (u16, u16), window: u16, payload: &[u8]) {
        let Client { port, next, expected, ipv6 } = self.clients[which];
        let by = |offset: u16| offset as i16 as i32 as u32;
        let repr = Repr {
            src_port: 900 + which as u16,
            dst_port: port,
            seq: next + by(offsets.0),
            ack: expected + by(offsets.1),
            flags,
            window,
            ..Repr::default()
        };
        let mut header = [0; HEADER_LEN_MAX];
        let len = repr.emit(&mut header);
        if offsets.0 == 0 {
            let control = u32::from(flags.contains(Flags::SYN)) + u32::from(flags.contains(Flags::FIN));
            self.clients[which].next = next + (payload.len() as u32 + control);
        }
        let segment = [&header[..len], payload].concat();
        self.arrive(match ipv6 {
            false => ipv4(6, &segment, true),
            true => ipv6_frame(CLIENT_V6, SERVER_V6, 6, 64, &segment, true),
        });
    }

    fn handshake(&mut self, which: usize, port: u16) {
        self.clients[which].port = port;
        self.segment(which, Flags::SYN, (0, 0), 8192, &[]);
        self.settle();
        self.segment(which, Flags::ACK, (0, 0), 8192, &[]);
        self.settle();
    }

    fn step(&mut self, input: &mut Input<'_>) {
        let op = input.byte();
        let which = usize::from(op >> 4) % CLIENTS;
        match op & 15 {
            0 => {
                let len = usize::from(input.u16());
                let frame = input.bytes(len).to_vec();
                self.arrive(frame);
            }
            1 => {
                let ethertype = [0x0800, 0x0806, 0x8100, input.u16()][which];
                let len = usize::from(input.byte());
                self.arrive(ethernet(ethertype, input.bytes(len)));
            }
            2 => {
                let protocol = [1, 6, 17, input.byte()][which];
                let len = usize::from(input.byte());
                self.arrive(ipv4(protocol, input.bytes(len), op & 64 == 0));
            }
            3 | 4 => {
                let (flags, offsets, window) = (Flags(input.byte()), (input.u16(), input.u16()), input.u16());
                let len = usize::from(input.byte()) << (op >> 6);
                self.segment(which, flags, offsets, window, input.bytes(len));
            }
            5 => {
                let port = STREAM_PORTS[usize::from(input.byte()) % 3];
                self.handshake(which, port);
            }
            6 => {
                let len = usize::from(input.u16());
                let bytes = input.bytes(len).to_vec();
                for piece in bytes.chunks(1400) {
                    self.segment(which, Flags::ACK | Flags::PSH, (0, 0), u16::MAX, piece);
                }
            }
            7 => {
                let program = [100_003, 100_005, 100_000, 1][usize::from(input.byte() & 3)];
                let (version, procedure, xid) = (u32::from(input.byte() & 7), u32::from(input.byte() & 31), input.byte());
                let len = usize::from(input.byte());
                let message = call(xid.into(), program, version, procedure, input.bytes(len));
                let marker = (1 << 31 | message.len() as u32).to_be_bytes();
                self.segment(which, Flags::ACK, (0, 0), u16::MAX, &[&marker[..], &message].concat());
            }
            8 => {
                let port = [111, 20048, 2049, input.u16()][which];
                let len = usize::from(input.byte());
                self.arrive(ipv4(17, &udp(port, input.bytes(len)), true));
            }
            9 => {
                let mut from = (CLIENT_MAC, CLIENT);
                from.0[5] = input.byte();
                from.1[3] = input.byte();
                let to = if op & 64 != 0 { from.1 } else { SERVER };
                self.arrive(ethernet(0x0806, &arp(u16::from(input.byte()), from.0, from.1, [0; 6], to)));
            }
            10 => {
                let mut message = vec![input.byte(), input.byte(), 0, 0, 0, 0];
                message.extend(input.u16().to_be_bytes());
                message.extend(&self.seen[..self.seen.len().min(28 + which)]);
                let sum = inet_checksum(&message);
                message[2..4].copy_from_slice(&sum.to_be_bytes());
                self.arrive(ipv4(1, &message, true));
            }
            11 => self.now += Duration::from_millis(u64::from(input.byte()) << (op >> 4)),
            12 => {
                if let Some(at) = self.shard.poll_timeout() {
                    self.now = self.now.max(at);
                }
            }
            13 if op == 0xfd => self.shard.drain(),
            13 if op & 128 != 0 => self.step_ipv6(op, input),
            13 => self.answers_arp = op & 16 == 0,
            // An acknowledgement of everything.
            _ => self.segment(which, Flags::ACK, (0, 0), u16::MAX, &[]),
        }
        // Several frames may come in one burst.
        if op & 15 > 4 || op & 128 == 0 {
            self.settle();
        }
    }

    /// Operations 0x8d, 0x9d, .. 0xed.
    fn step_ipv6(&mut self, op: u8, input: &mut Input<'_>) {
        match op >> 4 {
            8 => {
                let how = input.byte();
                self.reconfigure(how);
            }
            9 => {
                let which = usize::from(input.byte()) % CLIENTS;
                self.clients[which].ipv6 ^= true;
                let port = STREAM_PORTS[usize::from(input.byte()) % 3];
                self.handshake(which, port);
            }
            // Any packet: extension headers, datagrams, ICMP, to whomever.
            10 => {
                let how = input.byte();
                let protocol = [58, 17, 6, 0, 43, 44, 60, input.byte()][usize::from(how & 7)];
                let len = usize::from(input.byte());
                let payload = input.bytes(len);
                let dst = [SERVER_V6, ipv6::ALL_NODES, ipv6::solicited_node(SERVER_V6), CLIENT_V6][usize::from(how >> 3 & 3)];
                let src = [CLIENT_V6, ROUTER, Ipv6Addr::UNSPECIFIED, SERVER_V6][usize::from(how >> 5 & 3)];
                let hop_limit = if how & 128 == 0 { 255 } else { 1 };
                self.arrive(ipv6_frame(src, dst, protocol, hop_limit, payload, true));
            }
            // Neighbour discovery with whatever follows the target.
            11 => {
                let (kind, how) = (133 + input.byte() % 5, input.byte());
                let mut message = vec![kind, 0, 0, 0];
                message.extend(input.bytes(4));
                message.resize(8, 0);
                if kind > 134 {
                    let target = [SERVER_V6, CLIENT_V6, ROUTER, Ipv6Addr::UNSPECIFIED][usize::from(how & 3)];
                    message.extend(target.octets());
                }
                let len = usize::from(input.byte());
                message.extend(input.bytes(len));
                let dst = if how & 4 == 0 { ipv6::ALL_NODES } else { ipv6::solicited_node(SERVER_V6) };
                let src = [CLIENT_V6, ROUTER, Ipv6Addr::UNSPECIFIED, ROUTER][usize::from(how >> 3 & 3)];
                self.arrive(ipv6_frame(src, dst, 58, 255, &message, true));
            }
            // An error about what the server sent last.
            12 => {
                let mut message = vec![input.byte() & 7, input.byte(), 0, 0];
                message.extend(u32::from(input.u16()).to_be_bytes());
                message.extend(&self.seen[..self.seen.len().min(68)]);
                self.arrive(ipv6_frame(CLIENT_V6, SERVER_V6, 58, 64, &message, true));
            }
            13 => self.tag = [None, Some(VLAN), Some(0), Some(input.u16())][usize::from(input.byte() & 3)],
            _ => {
                let len = usize::from(input.byte());
                self.arrive(ipv6_frame(CLIENT_V6, SERVER_V6, 17, 64, &udp(111, input.bytes(len)), true));
            }
        }
    }

    fn finish(mut self) {
        self.settle();
        self.shard.abort_all(self.now);
        self.settle();
        let Core { shard, pools: [fragments, blocks, pool], .. } = self;
        assert!(shard.tcp().connections().all(|id| shard.tcp().info(id).is_none()), "there after abort");
        assert_eq!(shard.programs().parked(), 0);
        assert!(fragments.outstanding() <= 2, "{} pages of reply heads", fragments.outstanding());
        drop(shard);
        assert_eq!([fragments.outstanding(), blocks.outstanding(), pool.outstanding()], [0; 3]);
    }
}

fn ethernet(ethertype: u16, payload: &[u8]) -> Vec<u8> {
    [&SERVER_MAC[..], &CLIENT_MAC, &ethertype.to_be_bytes(), payload].concat()
}

fn inet_checksum(bytes: &[u8]) -> u16 {
    let mut sum = Sum::new();
    sum.add(bytes);
    sum.finish()
}

/// An IPv4 packet to the server in a frame; with `transport_checksum`, that of TCP and UDP is filled in.
fn ipv4(protocol: u8, payload: &[u8], transport_checksum: bool) -> Vec<u8> {
    let mut payload = payload.to_vec();
    let at = match protocol {
        6 => 16,
        17 => 6,
        _ => usize::MAX - 2,
    };
    if transport_checksum && payload.len() >= at + 2 {
        let (src, dst) = (IpAddr::from(CLIENT), IpAddr::from(SERVER));
        payload[at..at + 2].fill(0);
        let mut sum = Sum::pseudo_header(src, dst, protocol, payload.len());
        sum.add(&payload);
        let field = if protocol == 17 { udp_field(&sum) } else { sum.finish() };
        payload[at..at + 2].copy_from_slice(&field.to_be_bytes());
    }
    let mut header = [0x45, 0, 0, 0, 0, 1, 0x40, 0, 64, protocol, 0, 0, 10, 77, 0, 1, 10, 77, 0, 2];
    header[2..4].copy_from_slice(&(20 + payload.len() as u16).to_be_bytes());
    let sum = inet_checksum(&header);
    header[10..12].copy_from_slice(&sum.to_be_bytes());
    ethernet(0x0800, &[&header[..], &payload].concat())
}

/// An IPv6 packet in a frame; with `transport_checksum`, that of TCP, UDP and ICMPv6 is filled in.
fn ipv6_frame(src: Ipv6Addr, dst: Ipv6Addr, next_header: u8, hop_limit: u8, payload: &[u8], transport_checksum: bool) -> Vec<u8> {
    let mut payload = payload.to_vec();
    let at = match next_header {
        6 => 16,
        17 => 6,
        58 => 2,
        _ => usize::MAX - 2,
    };
    if transport_checksum && payload.len() >= at + 2 {
        payload[at..at + 2].fill(0);
        let mut sum = Sum::pseudo_header(src.into(), dst.into(), next_header, payload.len());
        sum.add(&payload);
        let field = if next_header == 17 { udp_field(&sum) } else { sum.finish() };
        payload[at..at + 2].copy_from_slice(&field.to_be_bytes());
    }
    let payload_len = payload.len() as u16;
    let header = ipv6::Repr { src, dst, next_header, traffic_class: 0, flow_label: 0, hop_limit, payload_len }.emit();
    let mac = if dst.is_multicast() { ipv6::multicast_mac(dst).0 } else { SERVER_MAC };
    [&mac[..], &CLIENT_MAC, &[0x86, 0xdd], &header, &payload].concat()
}

fn udp(port: u16, payload: &[u8]) -> Vec<u8> {
    let len = (8 + payload.len() as u16).to_be_bytes();
    [&900u16.to_be_bytes()[..], &port.to_be_bytes(), &len, &[0, 0], payload].concat()
}

fn arp(operation: u16, from_mac: [u8; 6], from: [u8; 4], to_mac: [u8; 6], to: [u8; 4]) -> Vec<u8> {
    [&[0, 1, 8, 0, 6, 4][..], &operation.to_be_bytes(), &from_mac, &from, &to_mac, &to].concat()
}

fn run(core: &mut Core, mut input: Input<'_>) {
    while !input.is_empty() {
        core.step(&mut input);
    }
}

pub fn fuzz(data: &[u8]) {
    let mut input = Input::new(data);
    let mut core = Core::new(input.byte());
    run(&mut core, input);
    core.finish();
}

/// The frames that an input puts on the wire, as bytes: the same conversation without anything put in order.
pub fn frames(data: &[u8]) -> Vec<Vec<u8>> {
    let mut input = Input::new(data);
    let mut core = Core::new(input.byte());
    core.log = Some(Vec::new());
    run(&mut core, input);
    core.log.take().unwrap_or_default()
}
