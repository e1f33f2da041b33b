//! What a connection costs a core's memory while nothing happens on it: 100,000 of them, each of which has made a call and got its
//! reply, on a whole shard. Counted is the heap of the allocator that the program has, with what it rounds up; tables and timers included, page
//! memory apart.
//!
//! One test in a process of its own: it counts what the process allocates.

mod support;

use std::alloc::{GlobalAlloc, Layout};
use std::sync::atomic::{AtomicIsize, Ordering};

use mimalloc::MiMalloc;
use nfsplice::buf::{Checksum, RxPacket, Slice};
use nfsplice::net::device::{Device, DeviceCapabilities, RxFrame, TxOffload, TxRefused};
use nfsplice::net::memory_link::EndOptions;
use nfsplice::time::{Duration, Instant};
use nfsplice::wire::tcp::{Flags, HEADER_LEN_MAX, Repr, SeqNumber, Timestamps};
use nfsplice::wire::{arp, ethernet, ipv4, protocol};
use support::nfs::{self, Args};
use support::server::{NFS_PORT, SERVER_ADDRESS, Server, Setup};
use support::{CLIENT_MAC, SERVER_MAC};

const CONNECTIONS: usize = 100_000;
/// Of the heap, per connection that is idle: 896 a `tcp` connection, 117 its places in tables and on the timer wheel.
const BYTES_MAX: isize = 1024;
const MTU: u16 = 1500;
/// Connections of one client address: ports from 1024 on.
const PORTS: usize = 50_000;

static HEAP_BYTES: AtomicIsize = AtomicIsize::new(0);

struct Counting;

// SAFETY: hands every request on to the allocator as it came.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's promises are `MiMalloc`'s conditions; it is asked for the size of what it has given.
        unsafe {
            let at = MiMalloc.alloc(layout);
            HEAP_BYTES.fetch_add(MiMalloc.usable_size(at) as isize, Ordering::Relaxed);
            at
        }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        // SAFETY: `at` came from `MiMalloc` with this layout, and is not given back yet.
        unsafe {
            HEAP_BYTES.fetch_sub(MiMalloc.usable_size(at) as isize, Ordering::Relaxed);
            MiMalloc.dealloc(at, layout);
        }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Hands over the frames it was given; keeps the header of what was sent last.
struct Hand {
    capabilities: DeviceCapabilities,
    frames: Vec<RxFrame>,
    header: [u8; 128],
    payload_len: usize,
    sent: usize,
}

impl Device for Hand {
    fn capabilities(&self) -> &DeviceCapabilities {
        &self.capabilities
    }

    fn receive(&mut self, out: &mut Vec<RxFrame>) -> usize {
        let count = self.frames.len();
        out.append(&mut self.frames);
        count
    }

    fn transmit(&mut self, header: &[u8], payload: &[Slice], _: &TxOffload) -> Result<(), TxRefused> {
        self.header[..header.len()].copy_from_slice(header);
        self.payload_len = payload.iter().map(|slice| slice.len()).sum();
        self.sent += 1;
        Ok(())
    }

    fn flush(&mut self) -> usize {
        0
    }
}

/// The client's end of a connection, by its number.
#[derive(Clone, Copy)]
struct Peer {
    number: usize,
    next: SeqNumber,
    acknowledges: SeqNumber,
}

struct Bench {
    now: Instant,
    server: Server<Hand>,
}

impl Bench {
    fn new() -> Bench {
        let mut setup = Setup { mtu: MTU, ..Setup::default() };
        setup.tcp.connections_max = CONNECTIONS + 1;
        setup.tcp.connections_per_remote_max = PORTS;
        (setup.rpc.connections_max, setup.rpc.connections_unauthenticated_max) = (CONNECTIONS as u32 + 1, CONNECTIONS as u32 + 1);
        let capabilities = EndOptions::offloading(SERVER_MAC, MTU).capabilities;
        let device = Hand { capabilities, frames: Vec::new(), header: [0; 128], payload_len: 0, sent: 0 };
        Bench { now: Instant::from_millis(1), server: Server::new(&setup, device) }
    }

    fn address(peer: usize) -> [u8; 4] {
        [10, 77, 0, 10 + (peer / PORTS) as u8]
    }

    fn deliver(&mut self, bytes: Vec<u8>) {
        let packet = RxPacket::from_vec(bytes);
        self.server.device().frames.push(RxFrame { packet, ip_checksum: Checksum::Good, l4_checksum: Checksum::Good });
    }

    fn turn(&mut self) {
        self.now += Duration::from_micros(20);
        while self.server.shard.turn(self.now) > 0 {}
    }

    /// An ARP request for the server's address, from which it learns a client's.
    fn introduce(&mut self, sender: [u8; 4]) {
        let request = arp::Repr {
            operation: arp::Operation::Request,
            sender_hardware: ethernet::Address(CLIENT_MAC),
            sender_protocol: sender.into(),
            target_hardware: ethernet::Address([0; 6]),
            target_protocol: SERVER_ADDRESS.into(),
        };
        let link = ethernet::Repr {
            dst: ethernet::Address([0xff; 6]),
            src: ethernet::Address(CLIENT_MAC),
            ethertype: ethernet::ethertype::ARP,
        };
        self.deliver([&link.emit()[..], &request.emit()].concat());
        self.turn();
    }

    fn segment(&mut self, peer: &mut Peer, flags: Flags, payload: &[u8]) {
        let mut repr = Repr {
            src_port: 1024 + (peer.number % PORTS) as u16,
            dst_port: NFS_PORT,
            seq: peer.next,
            ack: peer.acknowledges,
            flags,
            window: 65_535,
            ..Repr::default()
        };
        repr.options.timestamps = Some(Timestamps { value: self.now.millis() as u32, echo_reply: 0 });
        if flags.contains(Flags::SYN) {
            repr.options.mss = Some(1460);
            (repr.options.window_scale, repr.options.sack_permitted) = (Some(7), true);
        }
        let mut header = [0; HEADER_LEN_MAX];
        let header_len = repr.emit(&mut header);
        let ip = ipv4::Repr {
            src: Self::address(peer.number).into(),
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
        peer.next = peer.next + payload.len() as u32 + u32::from(flags.contains(Flags::SYN));
        self.turn();
    }

    fn last_sent(&mut self) -> Repr {
        Repr::parse(&self.server.device().header[ethernet::HEADER_LEN + ipv4::HEADER_LEN..]).unwrap().0
    }

    fn connect(&mut self, number: usize) -> Peer {
        let mut peer = Peer { number, next: SeqNumber(number as u32), acknowledges: SeqNumber(0) };
        self.segment(&mut peer, Flags::SYN, &[]);
        peer.acknowledges = self.last_sent().seq + 1;
        self.segment(&mut peer, Flags::ACK, &[]);
        peer
    }

    /// A NULL call, its reply, and the reply's acknowledgement.
    fn call(&mut self, peer: &mut Peer) {
        let record = nfs::record(&nfs::call(peer.number as u32, nfs::NULL, &Args::new()));
        let sent = self.server.device().sent;
        self.segment(peer, Flags::ACK | Flags::PSH, &record);
        assert_eq!(self.server.device().sent, sent + 1, "one packet answers and acknowledges");
        let reply = self.last_sent();
        assert_eq!((reply.seq, reply.ack), (peer.acknowledges, peer.next));
        peer.acknowledges = reply.seq + self.server.device().payload_len as u32;
        assert!(self.server.device().payload_len > 0, "a reply");
        self.segment(peer, Flags::ACK, &[]);
    }
}

#[test]
fn an_idle_connection_is_small() {
    let mut bench = Bench::new();
    (0..CONNECTIONS.div_ceil(PORTS)).for_each(|nth| bench.introduce(Bench::address(nth * PORTS)));
    // One that comes and goes: what is made once for all connections is there.
    let mut first = bench.connect(0);
    bench.call(&mut first);
    bench.segment(&mut first, Flags::RST | Flags::ACK, &[]);
    assert_eq!(bench.server.connections(), 0);
    let at_start = HEAP_BYTES.load(Ordering::Relaxed);

    let mut peers = Vec::with_capacity(CONNECTIONS);
    let of_the_test = HEAP_BYTES.load(Ordering::Relaxed) - at_start;
    for number in 0..CONNECTIONS {
        let mut peer = bench.connect(number);
        bench.call(&mut peer);
        peers.push(peer);
    }
    assert_eq!(bench.server.connections(), CONNECTIONS);
    let bytes_each = || (HEAP_BYTES.load(Ordering::Relaxed) - at_start - of_the_test) / CONNECTIONS as isize;
    println!("{CONNECTIONS} connections: {} bytes each while they make calls", bytes_each());
    println!("a shard's pages out: {:?}", bench.server.pages_out());

    // They are idle: a minute passes, and nothing is sent.
    let sent = bench.server.device().sent;
    bench.now += Duration::from_secs(60);
    bench.turn();
    assert_eq!(bench.server.device().sent, sent);
    let each = bytes_each();
    println!("{each} bytes each after a minute without");
    // And alive; what the server knows of their addresses is not news any more.
    (0..CONNECTIONS.div_ceil(PORTS)).for_each(|nth| bench.introduce(Bench::address(nth * PORTS)));
    for at in (0..CONNECTIONS).step_by(CONNECTIONS / 97) {
        let mut peer = peers[at];
        bench.call(&mut peer);
        peers[at] = peer;
    }
    for mut peer in peers {
        bench.segment(&mut peer, Flags::RST | Flags::ACK, &[]);
    }
    assert_eq!(bench.server.connections(), 0);
    assert_eq!(bench.server.pages_out().0, 0);
    assert!(each <= BYTES_MAX, "{each} bytes each");
}
