//! What TCP/IP costs in instructions, by segment, chain, connection and turn: run by `scripts/instructions.sh` under callgrind,
//! which collects inside of [`measured`] only, and not inside of [`driven`].
//!
//! One end is the server's: an interface and an endpoint, driven as the shard drives them, with nothing above but a reader that
//! takes what arrives. The other end is a hand that writes headers. The device hands over frames that are ready and takes
//! chains without looking at them, so what is left is the stack's own share; giving a received buffer back is one `free`.

#[path = "../tests/support/mod.rs"]
pub mod support;

use std::cell::Cell;
use std::hint::black_box;

use nfsplice::buf::{Checksum, FragmentArena, PagePool, RxPacket, Slice};
use nfsplice::net::device::{Device, DeviceCapabilities, RxFrame, TxOffload, TxRefused};
use nfsplice::net::memory_link::EndOptions;
use nfsplice::net::{Ingress, Interface, InterfaceOptions, OutgoingPacket};
use nfsplice::tcp::{ConnectionId, Endpoint, Event, Options, Transmit, TransmitLimits};
use nfsplice::time::{Duration, Instant};
use nfsplice::wire::tcp::{Flags, HEADER_LEN_MAX, Repr, SeqNumber, Timestamps};
use nfsplice::wire::{arp, ethernet, ipv4, protocol};
use support::client::CLIENT_ADDRESS;
use support::reference_nic::Wire;
use support::server::{SERVER_ADDRESS, Setup};
use support::{CLIENT_MAC, Rig, SERVER_MAC};

// As in the server.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const USAGE: &str = "segments OPERATION [COUNT]; see OPERATIONS";
/// Operations before those that are counted: the congestion window opens, every table has its size.
const WARM_UP: usize = 50;
const PORT: u16 = 2049;
const MTU: u16 = 1500;
/// Payload of a full packet with timestamps.
const MSS: usize = 1448;
const PAGE: usize = 4096;
/// Of a reply of 1 MiB, which leaves in 17 chains of 16 to 18 buffers.
const LARGE_PAGES: usize = 256;
/// Peers that do the same in one turn.
const PEERS: usize = 16;
/// SYNs of a turn that has a connection's segment, too: a burst.
const FLOOD: usize = 63;

type Operation = fn(&mut Bench, usize);
const OPERATIONS: [(&str, Operation); 18] = [
    ("ack-of-two-packets", |bench, count| bench.acknowledge_packets(count, 1)),
    ("ack-of-two-packets-burst", |bench, count| bench.acknowledge_packets(count, 16)),
    ("ack-of-a-chain", |bench, count| bench.send_replies(count, Some(Part::Acknowledge), 15)),
    ("segment", |bench, count| bench.receive_segments(count, 1)),
    ("segment-burst", |bench, count| bench.receive_segments(count, 16)),
    ("chain-of-17", |bench, count| bench.send_replies(count, Some(Part::Send), 15)),
    ("chain-of-17-burst", |bench, count| bench.send_replies_at_once(count, 15)),
    ("chain-of-a-large-reply", |bench, count| bench.send_replies(count, Some(Part::Send), LARGE_PAGES)),
    ("send-64k", |bench, count| bench.send_replies(count, Some(Part::Send), 16)),
    ("send-64k-packets", |bench, count| bench.send_replies(count, Some(Part::Send), 16)),
    ("life", |bench, count| bench.live(count)),
    ("syn-cookie", |bench, count| bench.flood(count, PEERS, false)),
    ("syn-cookie-busy", |bench, count| bench.flood(count, FLOOD, true)),
    ("accept", |bench, count| bench.come_and_go(count, Stage::Open, false)),
    ("accept-cookie", |bench, count| bench.come_and_go(count, Stage::Open, false)),
    ("close", |bench, count| bench.come_and_go(count, Stage::Leave, false)),
    ("reset", |bench, count| bench.come_and_go(count, Stage::Leave, true)),
    ("buffer", |bench, count| bench.give_back_buffers(count)),
];

/// What callgrind collects.
#[inline(never)]
fn measured<R>(what: impl FnOnce() -> R) -> R {
    black_box(what())
}

/// A driver's part of what is measured, in which callgrind does not collect: it stops there and goes on behind it.
#[inline(never)]
fn driven(device: &mut Sink, header: &[u8], payload: &mut Vec<Slice>) {
    device.take(header, payload.len());
    payload.clear();
}

thread_local! {
    /// Time spent in what is measured, for `benches/micro.rs`.
    static SPENT: Cell<std::time::Duration> = const { Cell::new(std::time::Duration::ZERO) };
    /// Inside of `measured`.
    static COUNTS: Cell<bool> = const { Cell::new(false) };
}

fn timed<R>(what: impl FnOnce() -> R) -> R {
    let began = std::time::Instant::now();
    COUNTS.set(true);
    let result = measured(what);
    COUNTS.set(false);
    SPENT.set(SPENT.get() + began.elapsed());
    result
}

fn counted<R>(yes: bool, what: impl FnOnce() -> R) -> R {
    if yes { timed(what) } else { what() }
}

pub fn names() -> impl Iterator<Item = &'static str> {
    OPERATIONS.iter().map(|(name, _)| *name)
}

/// What `count` instances of an operation take. Reading the clock around each turn is in it.
pub fn time(name: &str, count: u64) -> std::time::Duration {
    let operation = OPERATIONS.iter().find(|(known, _)| *known == name).expect("a name of an operation").1;
    // Some come 32 at a time.
    let rounded = count.next_multiple_of(32);
    SPENT.set(std::time::Duration::ZERO);
    operation(&mut Bench::new(name), rounded as usize);
    SPENT.get().mul_f64(count as f64 / rounded as f64)
}

fn capabilities(operation: &str) -> DeviceCapabilities {
    let mut capabilities = EndOptions::offloading(SERVER_MAC, MTU).capabilities;
    // As ice and i40e: a descriptor for each buffer, hundreds of them per chain.
    capabilities.segments_per_packet_max = 8;
    capabilities.segments_tso_max = 255;
    if operation.ends_with("packets") {
        capabilities.tso_bytes_max = 0;
    }
    capabilities
}

/// The server's, where they are not the usual ones.
fn options(operation: &str) -> Options {
    let usual = Options::default();
    let syn_received_max = if operation.contains("cookie") { 0 } else { usual.syn_received_max };
    Options { syn_received_max, ..usual }
}

/// Hands over frames that are ready, and takes chains without looking at them.
struct Sink {
    capabilities: DeviceCapabilities,
    frames: Vec<RxFrame>,
    header: [u8; 128],
    /// As many as there is room for.
    headers: Vec<[u8; 128]>,
    chains: u64,
    segments: u64,
}

impl Device for Sink {
    fn capabilities(&self) -> &DeviceCapabilities {
        &self.capabilities
    }

    fn receive(&mut self, out: &mut Vec<RxFrame>) -> usize {
        let count = self.frames.len();
        out.append(&mut self.frames);
        count
    }

    fn transmit(&mut self, header: &[u8], payload: &[Slice], _: &TxOffload) -> Result<(), TxRefused> {
        self.take(header, payload.len());
        Ok(())
    }

    #[inline(always)]
    fn transmit_taking(&mut self, header: &[u8], payload: &mut Vec<Slice>, _: &TxOffload) -> Result<(), TxRefused> {
        if COUNTS.get() {
            driven(self, header, payload);
        } else {
            self.take(header, payload.len());
            payload.clear();
        }
        Ok(())
    }

    fn flush(&mut self) -> usize {
        0
    }
}

impl Sink {
    fn take(&mut self, header: &[u8], pieces: usize) {
        self.header[..header.len()].copy_from_slice(header);
        if self.headers.len() < self.headers.capacity() {
            self.headers.push(self.header);
        }
        self.chains += 1;
        self.segments += 1 + pieces as u64;
    }
}

/// The server's end.
struct Core {
    device: Sink,
    interface: Interface,
    tcp: Endpoint,
    limits: TransmitLimits,
    frames: Vec<RxFrame>,
    transmit: Transmit,
    accepted: Option<ConnectionId>,
    closed: usize,
}

impl Core {
    fn new(capabilities: DeviceCapabilities, tcp_options: Options, pool: &PagePool) -> Core {
        let mut options = InterfaceOptions::new(SERVER_MAC, MTU, SERVER_ADDRESS.into(), 24);
        options.gateway = Some(CLIENT_ADDRESS.into());
        let arena = || FragmentArena::new(pool.clone()).unwrap();
        let mut tcp = Endpoint::new(tcp_options, [2; 16]);
        tcp.set_copy_out(arena());
        tcp.listen(PORT).unwrap();
        let limits = TransmitLimits {
            mtu: MTU,
            tso_bytes_max: capabilities.tso_bytes_max,
            tso_ipv6_bytes_max: 0,
            segments_per_packet_max: capabilities.segments_per_packet_max,
            segments_tso_max: capabilities.segments_tso_max,
        };
        let (frames, headers) = (Vec::new(), Vec::new());
        let device = Sink { capabilities, frames, header: [0; 128], headers, chains: 0, segments: 0 };
        let interface = Interface::new(options, arena(), Instant::ZERO).unwrap();
        let (frames, transmit) = (Vec::new(), Transmit::default());
        Core { device, interface, tcp, limits, frames, transmit, accepted: None, closed: 0 }
    }

    fn receive(&mut self, now: Instant) {
        self.device.receive(&mut self.frames);
        for frame in &mut self.frames {
            let tcp = &mut self.tcp;
            let ingress = self.interface.handle_frame_in_place(now, frame, |segment| {
                tcp.continue_train(now, (segment.src, segment.dst), segment.buf, segment.range, segment.checksum)
            });
            if let Some(Ingress::Tcp { src, dst, packet, checksum, .. }) = ingress {
                self.tcp.handle_segment(now, src, dst, packet, checksum);
            }
        }
        self.frames.clear();
    }

    fn handle_events(&mut self, now: Instant) {
        while let Some(event) = self.tcp.poll_event() {
            match event {
                Event::Accepted { id, .. } => self.accepted = Some(id),
                Event::Readable(id) => {
                    if let Some(chain) = self.tcp.receive(id) {
                        chain.consume(chain.len());
                    }
                    self.tcp.received(now, id);
                }
                Event::PeerClosed(id) => self.tcp.close(now, id),
                Event::Closed(..) => self.closed += 1,
                Event::Writable(_) | Event::Connected(_) => {}
            }
        }
    }

    fn transmit(&mut self, now: Instant) {
        while self.tcp.poll_transmit(now, &self.limits, &mut self.transmit) {
            let Transmit { src, dst, ecn, tso_mss, may_fragment, payload_len, .. } = self.transmit;
            let (transport_header, payload) = self.transmit.parts();
            let packet = OutgoingPacket {
                src,
                dst,
                protocol: protocol::TCP,
                traffic_class: ecn,
                transport_header,
                payload: &[],
                tso_mss,
                may_fragment,
            };
            self.interface.send_taking(now, &mut self.device, &packet, payload, payload_len as usize).unwrap();
        }
        if self.interface.has_transmit() {
            self.interface.poll_transmit(now, &mut self.device);
        }
        self.device.flush();
    }

    fn turn(&mut self, now: Instant) {
        self.receive(now);
        if self.tcp.poll_timeout().is_some_and(|at| at <= now) {
            self.tcp.handle_timeout(now);
        }
        self.handle_events(now);
        self.transmit(now);
    }
}

fn tcp_header(frame: &[u8]) -> Repr {
    Repr::parse(&frame[ethernet::HEADER_LEN + ipv4::HEADER_LEN..]).unwrap().0
}

/// The number after the text of a frame or chain.
fn end_of(frame: &[u8]) -> SeqNumber {
    let ip = &frame[ethernet::HEADER_LEN..];
    let (repr, header_len) = Repr::parse(&ip[ipv4::HEADER_LEN..]).unwrap();
    repr.seq + (u32::from(u16::from_be_bytes([ip[2], ip[3]])) - (ipv4::HEADER_LEN + header_len) as u32)
}

/// The client's end of one connection.
#[derive(Clone, Copy)]
struct Peer {
    address: [u8; 4],
    port: u16,
    next: SeqNumber,
    acknowledges: SeqNumber,
}

/// Which part of a reply's way is counted.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Part {
    Send,
    Acknowledge,
}

/// Which part of a connection's life is counted.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Stage {
    Open,
    Leave,
}

struct Bench {
    now: Instant,
    core: Core,
    cache: Vec<Slice>,
    peer: Peer,
    /// The connection that `send_replies` opened.
    id: Option<ConnectionId>,
}

impl Bench {
    fn new(operation: &str) -> Bench {
        let pool = PagePool::anonymous(1024, PAGE).unwrap();
        let core = Core::new(capabilities(operation), options(operation), &pool);
        let cache = (0..=LARGE_PAGES).map(|_| pool.allocate().unwrap().freeze()).collect();
        let peer = Peer { address: CLIENT_ADDRESS, port: 1000, next: SeqNumber(1), acknowledges: SeqNumber(0) };
        let mut bench = Bench { now: Instant::from_millis(1), core, cache, peer, id: None };
        bench.introduce();
        bench
    }

    /// An ARP request for the server's address, from which it learns ours.
    fn introduce(&mut self) {
        let request = arp::Repr {
            operation: arp::Operation::Request,
            sender_hardware: ethernet::Address(CLIENT_MAC),
            sender_protocol: CLIENT_ADDRESS.into(),
            target_hardware: ethernet::Address([0; 6]),
            target_protocol: SERVER_ADDRESS.into(),
        };
        let link = ethernet::Repr {
            dst: ethernet::Address([0xff; 6]),
            src: ethernet::Address(CLIENT_MAC),
            ethertype: ethernet::ethertype::ARP,
        };
        self.deliver([&link.emit()[..], &request.emit()].concat());
        self.core.turn(self.now);
    }

    fn deliver(&mut self, bytes: Vec<u8>) {
        let packet = RxPacket::from_vec(bytes);
        self.core.device.frames.push(RxFrame { packet, ip_checksum: Checksum::Good, l4_checksum: Checksum::Good });
    }

    /// A segment of the peer's, as the next frame to be received.
    fn segment(&mut self, flags: Flags, payload: &[u8]) {
        let Peer { address, port, next, acknowledges } = self.peer;
        let mut repr =
            Repr { src_port: port, dst_port: PORT, seq: next, ack: acknowledges, flags, window: 65_535, ..Repr::default() };
        repr.options.timestamps = Some(Timestamps { value: self.now.millis() as u32, echo_reply: 0 });
        if flags.contains(Flags::SYN) {
            repr.options.mss = Some(1460);
            (repr.options.window_scale, repr.options.sack_permitted) = (Some(7), true);
        }
        let mut header = [0; HEADER_LEN_MAX];
        let header_len = repr.emit(&mut header);
        let ip = ipv4::Repr {
            src: address.into(),
            dst: SERVER_ADDRESS.into(),
            protocol: protocol::TCP,
            traffic_class: 0,
            identification: 0,
            dont_fragment: true,
            time_to_live: 64,
            payload_len: (header_len + payload.len()) as u16,
        };
        let link = ethernet::Repr {
            dst: ethernet::Address(SERVER_MAC),
            src: ethernet::Address(CLIENT_MAC),
            ethertype: ethernet::ethertype::IPV4,
        };
        self.deliver([&link.emit()[..], &ip.emit(), &header[..header_len], payload].concat());
        let flags_len = u32::from(flags.contains(Flags::SYN)) + u32::from(flags.contains(Flags::FIN));
        self.peer.next = next + payload.len() as u32 + flags_len;
    }

    /// The TCP header that the server sent last.
    fn last_sent(&self) -> Repr {
        tcp_header(&self.core.device.header)
    }

    fn pass(&mut self) {
        self.now += Duration::from_micros(100);
    }

    fn turn(&mut self) {
        self.pass();
        self.core.turn(self.now);
    }

    fn connect(&mut self) -> ConnectionId {
        self.peer.port = if self.peer.port == u16::MAX { 1000 } else { self.peer.port + 1 };
        self.peer.acknowledges = SeqNumber(0);
        self.segment(Flags::SYN, &[]);
        self.turn();
        self.peer.acknowledges = self.last_sent().seq + 1;
        self.segment(Flags::ACK, &[]);
        self.turn();
        self.core.accepted.take().expect("a connection")
    }

    /// A record mark and head of 112 bytes, then whole pages. As in a server the pages stay in the cache when they are released.
    fn reply(&self, pages: usize) -> Vec<Slice> {
        let head = self.cache[0].slice(0..112);
        std::iter::once(head).chain(self.cache[1..=pages].iter().cloned()).collect()
    }

    /// Replies of a head and `pages` pages, each acknowledged whole.
    fn send_replies(&mut self, count: usize, part: Option<Part>, pages: usize) {
        let id = self.connect();
        for nth in 0..WARM_UP + count {
            let part = part.filter(|_| nth >= WARM_UP);
            let mut gather = self.reply(pages);
            self.pass();
            let Bench { core, now, .. } = self;
            counted(part == Some(Part::Send), || {
                core.tcp.send(*now, id, &mut gather).unwrap();
                core.transmit(*now);
            });
            self.acknowledge_sent();
            counted(part == Some(Part::Acknowledge), || self.turn());
            // The window of the first rounds does not hold a reply.
            while nth < WARM_UP && self.core.tcp.queued(id) > 0 {
                self.acknowledge_sent();
                self.turn();
            }
            assert_eq!(self.core.tcp.queued(id), 0);
        }
        self.id = Some(id);
    }

    /// The same on `PEERS` connections in each turn, only the sending counted: `count` replies in all.
    fn send_replies_at_once(&mut self, count: usize, pages: usize) {
        let mut clients: Vec<(ConnectionId, Peer)> = (0..PEERS).map(|_| (self.connect(), self.peer)).collect();
        for nth in 0..WARM_UP + count / PEERS {
            let mut gathers: Vec<Vec<Slice>> = (0..PEERS).map(|_| self.reply(pages)).collect();
            self.pass();
            let Bench { core, now, .. } = self;
            // Nothing is allocated for them while it counts.
            core.device.headers = Vec::with_capacity(PEERS);
            counted(nth >= WARM_UP, || {
                for ((id, _), gather) in clients.iter().zip(&mut gathers) {
                    core.tcp.send(*now, *id, gather).unwrap();
                }
                core.transmit(*now);
            });
            assert!(nth < WARM_UP || core.device.headers.len() == PEERS, "a chain for each");
            while clients.iter().any(|(id, _)| self.core.tcp.queued(*id) > 0) {
                let sent = std::mem::replace(&mut self.core.device.headers, Vec::with_capacity(4 * PEERS));
                for frame in &sent {
                    let (to, end) = (tcp_header(frame).dst_port, end_of(frame));
                    let (_, peer) = clients.iter_mut().find(|(_, peer)| peer.port == to).expect("one of the peers");
                    peer.acknowledges = end;
                    self.peer = *peer;
                    self.segment(Flags::ACK, &[]);
                }
                self.turn();
            }
        }
    }

    /// The peer acknowledges everything that was sent.
    fn acknowledge_sent(&mut self) {
        self.peer.acknowledges = end_of(&self.core.device.header);
        self.segment(Flags::ACK, &[]);
    }

    /// The peer acknowledges so many more bytes in a segment of its own.
    fn acknowledge(&mut self, bytes: u32) {
        self.peer.acknowledges = self.peer.acknowledges + bytes;
        self.segment(Flags::ACK, &[]);
    }

    /// Acknowledgements of two packets each, `burst` in a turn, of replies of 64 packets.
    fn acknowledge_packets(&mut self, count: usize, burst: usize) {
        self.send_replies(0, None, 15);
        let id = self.id.expect("a connection");
        let bytes = 64 * MSS;
        let mut left = 0;
        for _ in 0..count / burst {
            if left == 0 {
                let mut gather: Vec<Slice> = self.cache[..bytes / PAGE].to_vec();
                gather.push(self.cache[bytes / PAGE].slice(0..bytes % PAGE));
                self.core.tcp.send(self.now, id, &mut gather).unwrap();
                self.turn();
                left = 32;
            }
            for _ in 0..burst {
                self.acknowledge(2 * MSS as u32);
            }
            timed(|| self.turn());
            left -= burst;
        }
        assert!(count % 32 == 0 && self.core.tcp.queued(id) == 0, "the count is a multiple of 32");
    }

    /// Full segments in order, `burst` in a turn, read and acknowledged in that turn.
    fn receive_segments(&mut self, count: usize, burst: usize) {
        let id = self.connect();
        for nth in 0..WARM_UP + count / burst {
            for _ in 0..burst {
                self.segment(Flags::ACK, &[0x5a; MSS]);
            }
            counted(nth >= WARM_UP, || self.turn());
        }
        let info = self.core.tcp.info(id).unwrap();
        assert_eq!(info.bytes_received, ((WARM_UP + count / burst) * burst * MSS) as u64);
    }

    /// A driver's part in the rows of segments: a received buffer given back.
    fn give_back_buffers(&mut self, count: usize) {
        for _ in 0..count {
            self.segment(Flags::ACK, &[]);
            let frame = self.core.device.frames.pop();
            timed(|| drop(frame));
        }
    }

    /// A handshake, a request, its reply, and the peer's close.
    fn live(&mut self, count: usize) {
        for nth in 0..WARM_UP + count {
            let counts = nth >= WARM_UP;
            let id = counted(counts, || self.connect());
            self.segment(Flags::ACK | Flags::PSH, &[0; 100]);
            counted(counts, || self.turn());
            let mut gather = self.reply(0);
            counted(counts, || {
                self.core.tcp.send(self.now, id, &mut gather).unwrap();
                self.turn();
            });
            self.peer.acknowledges = self.peer.acknowledges + 112;
            self.segment(Flags::ACK | Flags::FIN, &[]);
            counted(counts, || self.turn());
            self.acknowledge(1);
            counted(counts, || self.turn());
            assert_eq!(self.core.closed, nth + 1);
        }
    }
}

impl Bench {
    /// The next peer, at an address that nobody had before.
    fn stranger(&mut self, nth: usize) -> Peer {
        let bits = (nth as u32).wrapping_mul(0x9e37_79b9);
        Peer { address: (0x8000_0000 | bits >> 2).to_be_bytes(), port: 1024, next: SeqNumber(bits), acknowledges: SeqNumber(0) }
    }

    /// SYNs from everywhere, so many in a turn, each for a cookie. `busy`: a connection has a segment in each turn, too, so that most
    /// of them are dropped.
    fn flood(&mut self, count: usize, burst: usize, busy: bool) {
        self.connect();
        let own = self.peer;
        // Those that wait fill their queue first, where a turn answers fewer than come.
        let warm_up = if busy { 2 * self.core.tcp.options().syns_waiting_max } else { WARM_UP };
        for turn in 0..(warm_up + count).div_ceil(burst) {
            for nth in 0..burst {
                self.peer = self.stranger(turn * burst + nth);
                self.segment(Flags::SYN, &[]);
            }
            let counts = turn * burst >= warm_up;
            if busy {
                self.peer = own;
                self.segment(Flags::ACK, &[]);
                counted(counts, || self.turn());
            } else {
                self.turns(counts);
            }
        }
    }

    /// `PEERS` connections at a time: opened, and closed by the peer's FIN or RST.
    fn come_and_go(&mut self, count: usize, stage: Stage, reset: bool) {
        for round in 0..(WARM_UP + count).div_ceil(PEERS) {
            let measures = |part| part == stage && round * PEERS >= WARM_UP;
            let mut peers: Vec<Peer> = (0..PEERS).map(|nth| self.stranger(round * PEERS + nth)).collect();
            self.core.device.headers = Vec::with_capacity(PEERS);
            self.each(&mut peers, Flags::SYN, measures(Stage::Open));
            let headers = std::mem::take(&mut self.core.device.headers);
            for (peer, header) in peers.iter_mut().zip(&headers) {
                peer.acknowledges = tcp_header(header).seq + 1;
            }
            self.each(&mut peers, Flags::ACK, measures(Stage::Open));
            assert_eq!(self.core.tcp.counters().curr_estab, PEERS as u64);
            if reset {
                self.each(&mut peers, Flags::RST | Flags::ACK, measures(Stage::Leave));
            } else {
                self.each(&mut peers, Flags::FIN | Flags::ACK, measures(Stage::Leave));
                peers.iter_mut().for_each(|peer| peer.acknowledges = peer.acknowledges + 1);
                self.each(&mut peers, Flags::ACK, measures(Stage::Leave));
            }
            assert_eq!((self.core.tcp.counters().curr_connections, self.core.closed), (0, (round + 1) * PEERS));
        }
    }

    /// Until none is due at once: a turn answers few SYNs that ask for a cookie.
    fn turns(&mut self, counts: bool) {
        counted(counts, || self.turn());
        while self.core.tcp.poll_timeout().is_some_and(|at| at <= self.now) {
            counted(counts, || self.turn());
        }
    }

    /// A segment of each peer, all in one turn.
    fn each(&mut self, peers: &mut [Peer], flags: Flags, counts: bool) {
        for peer in peers {
            self.peer = *peer;
            self.segment(flags, &[]);
            *peer = self.peer;
        }
        self.turns(counts);
    }
}

/// Turns of a whole server that has 16 connections and nothing to do.
fn idle(count: usize) {
    let ends = [EndOptions::offloading(CLIENT_MAC, MTU), EndOptions::offloading(SERVER_MAC, MTU)];
    let (wire, client, server) = Wire::pair(ends);
    let mut rig = Rig::new(&Setup::default(), wire, client, server);
    for _ in 0..16 {
        rig.connect();
    }
    rig.pass(Duration::from_secs(1));
    for _ in 0..count {
        measured(|| rig.server_turn());
    }
}

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).filter(|argument| argument != "--bench").collect();
    let count = arguments.get(1).map_or(64, |count| count.parse().expect(USAGE));
    let all = arguments.is_empty();
    let wanted = |name: &str| all || arguments[0] == name;
    for (name, operation) in OPERATIONS.iter().filter(|(name, _)| wanted(name)) {
        let mut bench = Bench::new(name);
        operation(&mut bench, count);
        let Sink { chains, segments, .. } = bench.core.device;
        println!("{name}: {chains} chains of {segments} segments");
    }
    if wanted("idle-turn") {
        idle(count);
    }
}
