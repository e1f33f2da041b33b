//! net_tap in a network namespace of its own, with the kernel as the peer: it gets the payload of external pages with
//! right checksums, its packets arrive here, an idle queue can be slept on, and the driver's software TSO is right when
//! asked for. Needs root and /dev/net/tun; without them the test says so and passes.

mod common;

use std::{
    fs,
    net::UdpSocket,
    os::fd::AsFd,
    process::Command,
    time::{Duration, Instant},
};

use common::{Memory, pattern};
use dpdk::{Checksum, Mbuf, PortOptions, RxQueue, TxOffload, TxRefused, Wanted};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

const CHILD: &str = "NFSPLICE_TEST_TAP_CHILD";
const KERNEL: [u8; 4] = [10, 99, 0, 1];
const OURS: [u8; 4] = [10, 99, 0, 2];
const OUR_MAC: [u8; 6] = [2, 0, 0, 0, 0, 2];
const UDP: u8 = 17;
const TCP: u8 = 6;

#[test]
fn the_kernel_and_net_tap_agree() {
    if std::env::var_os(CHILD).is_some() {
        return in_namespace();
    }
    let possible = Command::new("unshare").args(["-n", "true"]).status().is_ok_and(|status| status.success());
    if !possible || !fs::exists("/dev/net/tun").unwrap_or(false) {
        eprintln!("skipped: needs root, unshare and /dev/net/tun");
        return;
    }
    let status = Command::new("unshare")
        .arg("-n")
        .arg(std::env::current_exe().expect("a path"))
        .args(["--exact", "the_kernel_and_net_tap_agree", "--nocapture"])
        .env(CHILD, "1")
        .status()
        .expect("unshare runs");
    assert!(status.success());
}

fn in_namespace() {
    fs::write("/proc/sys/net/ipv6/conf/default/disable_ipv6", "1").expect("no IPv6 noise");
    let eal = common::eal("tap", &["net_tap0,iface=tapdpdk0", "net_tap1,iface=tapdpdk1,mac=02:00:00:00:00:09"]);
    let memory = Memory::new(&eal, 1 << 20);
    let options = PortOptions { tso: Wanted::On, ..PortOptions::default() };
    let mut port = common::open(&eal, "net_tap0", &options);
    let can = port.capabilities().clone();
    println!("{can:?}");
    assert_eq!(can.driver_name, "net_tap");
    assert!(can.tso && can.tx_udp_checksum && can.rx_interrupts && can.accepts_chains);
    for line in [
        "addr add 10.99.0.1/24 dev tapdpdk0",
        "link set tapdpdk0 up",
        "neigh replace 10.99.0.2 lladdr 02:00:00:00:00:02 dev tapdpdk0 nud permanent",
    ] {
        assert!(Command::new("ip").args(line.split(' ')).status().expect("ip runs").success(), "{line}");
    }
    let mut tx = port.take_tx_queue(0).expect("a queue");
    let mut rx = port.take_rx_queue(0).expect("a queue");
    let socket = UdpSocket::bind("10.99.0.1:5000").expect("the address is there");
    socket.set_read_timeout(Some(Duration::from_secs(5))).expect("a time-out");

    // To the kernel: a datagram of two external pieces, checksums by the device; then copied.
    for copy in [false, true] {
        let header = frame_header(can.mac, UDP, 8 + 1400);
        let pieces = memory.pieces(2, 700, 4096);
        let sums = TxOffload { ip_checksum: true, udp_checksum: true, ..lengths(8) };
        let queued = if copy { tx.push_copy(&header, pieces, &sums) } else { tx.push(&header, pieces, &sums) };
        queued.expect("room");
        assert_eq!(tx.flush(), 1);
        let mut bytes = [0; 2048];
        let count = socket.recv(&mut bytes).expect("the kernel accepts the datagram");
        let expected: Vec<u8> = (0..700).chain(4096..4796).map(pattern).collect();
        assert_eq!(bytes[..count], expected);
        assert_eq!((memory.live(), tx.holds_outstanding()), (0, 0));
    }

    // From the kernel, asleep in between.
    let mut received = drained(&mut rx);
    rx.arm_interrupt().expect("net_tap can");
    assert!(!readable(&rx, Duration::ZERO));
    socket.send_to(b"wake up", "10.99.0.2:6000").expect("sent");
    assert!(readable(&rx, Duration::from_secs(5)));
    rx.disarm_interrupt();
    wait_for(&mut rx, &mut received, |packet| packet.data().ends_with(b"wake up"));
    let packet = received.iter().find(|packet| packet.data().ends_with(b"wake up")).expect("received");
    assert_eq!(packet.len(), 14 + 20 + 8 + 7);
    assert_eq!((packet.ip_checksum(), packet.l4_checksum()), (Checksum::Good, Checksum::Good));
    drop(received);

    segmentation(&memory, &mut tx, can.mac, can.max_tso_frame_bytes);
    assert_eq!((memory.live(), tx.holds_outstanding(), tx.buffers_in_use()), (0, 0, (0, 0, 0)));
    assert_eq!(port.stats().unwrap().oerrors, 0);
    assert!(port.stats().unwrap().opackets >= 2 && port.stats().unwrap().ipackets >= 1);
    drop((tx, rx, port));
    assert!(!named("tapdpdk0"));
    jumbo(&eal, &memory);
}

fn named(interface: &str) -> bool {
    let listed = Command::new("ip").args(["link", "show", "dev", interface]).output().expect("ip runs");
    listed.status.success()
}

/// MTU 9000, two queues: a datagram that needs several receive buffers, on whichever queue it comes; TSO stays off.
fn jumbo(eal: &dpdk::Eal, memory: &Memory) {
    let options = PortOptions { mtu: 9000, rx_queues: 2, tx_queues: 2, ..PortOptions::default() };
    let mut port = common::open(eal, "net_tap1", &options);
    let can = port.capabilities().clone();
    assert_eq!((can.mtu, can.mac, can.max_frame_bytes), (9000, [2, 0, 0, 0, 0, 9], 9018));
    assert!(can.tso_offered && !can.tso);
    for line in [
        "addr add 10.99.1.1/24 dev tapdpdk1",
        "link set tapdpdk1 up",
        "neigh replace 10.99.1.2 lladdr 02:00:00:00:00:02 dev tapdpdk1 nud permanent",
    ] {
        assert!(Command::new("ip").args(line.split(' ')).status().expect("ip runs").success(), "{line}");
    }
    assert!(port.link().is_some_and(|link| link.up));
    let mut queues: Vec<RxQueue> = (0..2).map(|queue| port.take_rx_queue(queue).expect("a queue")).collect();
    let datagram: Vec<u8> = (0..8900).map(pattern).collect();
    let socket = UdpSocket::bind("10.99.1.1:5000").expect("the address is there");
    socket.send_to(&datagram, "10.99.1.2:6000").expect("sent");
    let deadline = Instant::now() + Duration::from_secs(5);
    let mut received = Vec::new();
    while !received.iter().any(|packet: &Mbuf| packet.len() == 42 + 8900) && Instant::now() < deadline {
        for rx in &mut queues {
            rx.receive(&mut received);
        }
    }
    let packet = received.iter().find(|packet| packet.len() == 42 + 8900).expect("received");
    assert!(packet.segment_count() > 1);
    let bytes: Vec<u8> = packet.segments().flatten().copied().collect();
    assert_eq!(bytes[42..], datagram);

    // And back, by reference; one byte more than the MTU is refused, not left to block the driver's queue.
    let mut tx = port.take_tx_queue(1).expect("a queue");
    let mut header = frame_header(can.mac, UDP, 8 + 8900);
    // 10.99.1.2 to 10.99.1.1; net_tap sums the pseudo header itself.
    (header[28], header[32]) = (1, 1);
    let sums = TxOffload { ip_checksum: true, udp_checksum: true, ..lengths(8) };
    tx.push(&header, [memory.piece(0, 8900)], &sums).expect("room");
    assert_eq!(tx.flush(), 1);
    socket.set_read_timeout(Some(Duration::from_secs(5))).expect("a time-out");
    let mut bytes = vec![0; 10_000];
    let count = socket.recv(&mut bytes).expect("the kernel accepts the datagram");
    assert_eq!(bytes[..count], datagram);
    let too_long = tx.push(&header, [memory.piece(0, 9018 - 42 + 1)], &sums);
    assert_eq!(too_long, Err(TxRefused::FrameTooLong { bytes: 9019, limit: 9018 }));
    assert_eq!((memory.live(), tx.holds_outstanding()), (0, 0));
}

/// 16 pieces of 3,000 bytes as one TSO chain: the kernel counts segments, and none with a wrong checksum.
fn segmentation(memory: &Memory, tx: &mut dpdk::TxQueue<common::Piece>, mac: [u8; 6], frame_bytes_max: u32) {
    let mss = (frame_bytes_max - 14 - 20 - 20) as u16;
    let bytes = 16 * 3000;
    let header = frame_header(mac, TCP, 20 + bytes);
    let tso = TxOffload { ip_checksum: true, tcp_checksum: true, tso_mss: Some(mss), ..lengths(20) };
    let too_long = TxOffload { tso_mss: Some(mss + 1), ..tso };
    let refused = tx.push(&header, memory.pieces(16, 3000, 4096), &too_long).unwrap_err();
    assert!(matches!(refused, TxRefused::FrameTooLong { .. }));
    let before = (kernel_counter("InSegs"), kernel_counter("InCsumErrors"));
    tx.push(&header, memory.pieces(16, 3000, 4096), &tso).expect("room");
    assert_eq!(tx.flush(), 1);
    let segments = u64::from(bytes as u32).div_ceil(u64::from(mss));
    let deadline = Instant::now() + Duration::from_secs(5);
    while kernel_counter("InSegs") < before.0 + segments && Instant::now() < deadline {
        std::thread::yield_now();
    }
    assert_eq!(kernel_counter("InSegs") - before.0, segments);
    assert_eq!(kernel_counter("InCsumErrors"), before.1);
}

/// A TCP counter of this namespace.
fn kernel_counter(name: &str) -> u64 {
    let text = fs::read_to_string("/proc/thread-self/net/snmp").expect("procfs");
    let mut lines = text.lines().filter_map(|line| line.strip_prefix("Tcp: "));
    let (names, values) = (lines.next().expect("names"), lines.next().expect("values"));
    let at = names.split(' ').position(|found| found == name).expect("a counter of this name");
    values.split(' ').nth(at).and_then(|value| value.parse().ok()).expect("a number")
}

fn lengths(l4_len: u8) -> TxOffload {
    TxOffload { l2_len: 14, l3_len: 20, l4_len, ..TxOffload::default() }
}

/// Ethernet, IPv4 and UDP or TCP headers from us to the kernel; `l4_bytes` with the L4 header.
fn frame_header(mac: [u8; 6], protocol: u8, l4_bytes: u16) -> Vec<u8> {
    let mut bytes = [&mac[..], &OUR_MAC, &[8, 0, 0x45, 0]].concat();
    bytes.extend((20 + l4_bytes).to_be_bytes());
    bytes.extend([0, 0, 0x40, 0, 64, protocol, 0, 0]);
    bytes.extend(OURS.into_iter().chain(KERNEL));
    bytes.extend([0x17, 0x70, 0x13, 0x88]); // 6000 to 5000
    // The pseudo-header sum that the offload wants (net_tap recomputes it, NICs need it; its TSO wants no length).
    let length = if protocol == UDP { l4_bytes } else { 0 };
    let pseudo = [OURS, KERNEL, [0, protocol, (length >> 8) as u8, length as u8]].concat();
    let sum: u32 = pseudo.chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(pair[1])).sum();
    let sum = ((sum & 0xffff) + (sum >> 16)) as u16;
    if protocol == UDP {
        bytes.extend(l4_bytes.to_be_bytes());
        bytes.extend(sum.to_be_bytes());
    } else {
        bytes.extend([0, 0, 0, 1, 0, 0, 0, 1, 0x50, 0x10, 0xff, 0xff]);
        bytes.extend(sum.to_be_bytes());
        bytes.extend([0, 0]);
    }
    bytes
}

fn readable(rx: &RxQueue, wait: Duration) -> bool {
    let fd = rx.event_fd().expect("net_tap has one");
    let wait = Timespec { tv_sec: wait.as_secs() as i64, tv_nsec: i64::from(wait.subsec_nanos()) };
    loop {
        // The driver's signal may end the wait early.
        match poll(&mut [PollFd::new(&fd.as_fd(), PollFlags::IN)], Some(&wait)) {
            Ok(ready) => return ready > 0,
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => panic!("poll: {error}"),
        }
    }
}

/// What has arrived so far, until nothing is waiting.
fn drained(rx: &mut RxQueue) -> Vec<Mbuf> {
    let mut received = Vec::new();
    while readable(rx, Duration::from_millis(50)) {
        rx.receive(&mut received);
    }
    received
}

fn wait_for(rx: &mut RxQueue, received: &mut Vec<Mbuf>, wanted: impl Fn(&Mbuf) -> bool) {
    let deadline = Instant::now() + Duration::from_secs(5);
    while !received.iter().any(&wanted) && Instant::now() < deadline {
        rx.receive(received);
    }
}
