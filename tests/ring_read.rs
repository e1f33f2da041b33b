//! Zero copy through the whole server: a client on the same net_ring receives a 1 MiB READ from the very addresses of the
//! page cache. What one end sends, the driver hands to the other as it is, so the receiver sees where the bytes lie.
//!
//! One port, its transmit ring its receive ring: a hub sorts what comes back by its Ethernet addresses. Needs no privilege
//! and no hugepages. DPDK can be started once per process: one test in this file.
#![cfg(feature = "dpdk")]

mod support;

use std::cell::RefCell;
use std::collections::VecDeque;
use std::ops::Range;
use std::rc::Rc;

use dpdk::{Eal, EalOptions, Port, PortOptions, Zone};
use nfsplice::buf::{PagePool, Slice};
use nfsplice::net::device::{DeviceCapabilities, HEADERS_CONTIGUOUS, TxOffload, TxRefused};
use nfsplice::net::dpdk_device::{DpdkDevice, TransmitMode};
use nfsplice::net::{Device, RxFrame};
use nfsplice::store::{Credential, Operation, Start, Token};
use nfsplice::time::Instant;
use support::nfs;
use support::server::Setup;
use support::{CLIENT, CLIENT_MAC, Cable, Rig, SERVER, SERVER_MAC};

const MTU: u16 = 9000;
const BLOCK: usize = 64 << 10;
const MIB: usize = 1 << 20;

/// The port and what came back for either end.
struct Hub {
    device: DpdkDevice,
    inboxes: [VecDeque<RxFrame>; 2],
    frames: Vec<RxFrame>,
}

impl Hub {
    fn sort(&mut self) {
        self.device.receive(&mut self.frames);
        for frame in self.frames.drain(..) {
            // A broadcast is for whoever did not send it.
            let from_client = frame.packet.first.get(6..12) == Some(&CLIENT_MAC);
            self.inboxes[if from_client { SERVER } else { CLIENT }].push_back(frame);
        }
    }
}

/// One end: the port under an address of its own.
struct Station {
    hub: Rc<RefCell<Hub>>,
    side: usize,
    capabilities: DeviceCapabilities,
}

impl Device for Station {
    fn capabilities(&self) -> &DeviceCapabilities {
        &self.capabilities
    }

    fn receive(&mut self, out: &mut Vec<RxFrame>) -> usize {
        let mut hub = self.hub.borrow_mut();
        hub.sort();
        let count = hub.inboxes[self.side].len();
        out.extend(hub.inboxes[self.side].drain(..));
        count
    }

    fn transmit(&mut self, header: &[u8], payload: &[Slice], offload: &TxOffload) -> Result<(), TxRefused> {
        self.hub.borrow_mut().device.transmit(header, payload, offload)
    }

    fn flush(&mut self) -> usize {
        let mut hub = self.hub.borrow_mut();
        let count = hub.device.flush();
        // The ring is shorter than a window.
        hub.sort();
        count
    }
}

struct Ring;

impl Cable for Ring {
    fn set_now(&self, _: Instant) {}

    fn poll_timeout(&self) -> Option<Instant> {
        None
    }
}

fn start() -> Result<Eal, dpdk::Error> {
    let affinity = std::fs::read_to_string("/proc/thread-self/status").unwrap();
    let allowed = affinity.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:")).unwrap().trim();
    let first: String = allowed.chars().take_while(char::is_ascii_digit).collect();
    Eal::init(&EalOptions {
        lcores: vec![first.parse().unwrap()],
        hugepages: false,
        memory_mib: 256,
        file_prefix: format!("ring_read_{}", std::process::id()),
        vdevs: vec!["net_ring0".to_owned()],
        log_level: Some("error".to_owned()),
        pin_calling_thread: false,
        ..EalOptions::default()
    })
}

/// Where the bytes of a file lie in the page cache, in order.
fn cache_addresses(rig: &mut Rig<Station, Ring>, handle: &[u8], len: usize) -> Vec<Range<usize>> {
    let now = rig.now;
    let volumes = rig.server.shard.programs_mut().volumes_mut();
    let (_, object) = volumes.seal().open(handle).unwrap();
    let caller = Credential { uid: 0, gid: 0, groups: Default::default() };
    let operation = Operation::Read { object, offset: 0, count: len as u32 };
    let mut pages = Vec::new();
    let start = volumes.stores_mut()[0].start(now, &caller, &operation, Token(0), &mut pages);
    assert!(matches!(start, Start::Done(Ok(_))));
    pages.iter().map(|page| page.address()..page.address() + page.len()).collect()
}

/// Bytes among `received` (places in stream order, `head` bytes of which are not file data) that lie where the cache has them;
/// a piece that lies in the cache must lie at the address of just its place in the file.
fn bytes_in_place(received: &[(usize, usize)], head: usize, cache: &[Range<usize>]) -> usize {
    let address_of = |offset: usize| cache[offset / BLOCK].start + offset % BLOCK;
    let mut stream = 0;
    let mut in_place = 0;
    for &(address, len) in received {
        if cache.iter().any(|page| page.contains(&address)) {
            assert_eq!(address, address_of(stream - head), "byte {} of the file", stream - head);
            in_place += len;
        }
        stream += len;
    }
    in_place
}

fn a_read_arrives_from_the_page_cache(rig: &mut Rig<Station, Ring>, hub: &Rc<RefCell<Hub>>) {
    let stream = rig.connect();
    let file = rig.create(stream, b"file");
    let bytes: Vec<u8> = (0..MIB).map(|at| (at * 7 + at / 509) as u8).collect();
    rig.write(stream, &file, 0, &bytes);
    let cache = cache_addresses(rig, &file, MIB);
    assert_eq!(cache.len(), MIB / BLOCK);
    for _ in 0..5 {
        rig.client.received_at = Some(Vec::new());
        let (frames, packets) = (hub.borrow().device.counters().frames_scattered, rig.server.shard.counters().packets_out);
        let reply = rig.call(stream, nfs::READ, &nfs::read(&file, 0, MIB as u32));
        let message = reply.bytes.len();
        assert!(reply.ok().data() == bytes);
        let received = rig.client.received_at.take().unwrap();
        let head = 4 + message - MIB;
        let in_place = bytes_in_place(&received, head, &cache);
        let frames = (hub.borrow().device.counters().frames_scattered - frames) as usize;
        let packets = rig.server.shard.counters().packets_out - packets;
        println!(
            "1 MiB READ: {in_place} bytes received at the cache's own addresses, {packets} packets, {frames} of several buffers"
        );
        // The receiver copies the front of a frame together so that headers are contiguous; everything else lies where it lay.
        assert!(frames > 0 && in_place + frames * HEADERS_CONTIGUOUS >= MIB, "{in_place} bytes in place, {frames} frames");
        // What is still unacknowledged or held by a late acknowledgement goes with the clock.
        rig.pass(nfsplice::time::Duration::from_secs(1));
    }
    let mut hub = hub.borrow_mut();
    assert_eq!(hub.device.counters().payload_octets_copied, 0);
    let counters = hub.device.tx().counters();
    assert_eq!(counters.payload_bytes_copied, 0);
    assert!(counters.payload_bytes_referenced >= 6 * MIB as u64, "five READs and a WRITE: {}", counters.payload_bytes_referenced);
}

#[test]
fn a_read_reply_is_received_at_the_addresses_of_the_page_cache() {
    let eal = match start() {
        Ok(eal) => eal,
        Err(error) => {
            eprintln!("skipped: DPDK does not start here: {error}");
            return;
        }
    };
    let pool =
        |name, blocks: usize| PagePool::from_zones(vec![Zone::reserve(&eal, name, blocks * BLOCK, BLOCK, -1).unwrap()], BLOCK);
    let (cache, fragments) = (pool("cache", 64), pool("fragments", 64));
    let mut port = Port::open(&eal, "net_ring0", &PortOptions { mtu: MTU, ..PortOptions::default() }).unwrap();
    let device = {
        let (rx, tx) = (port.take_rx_queue(0).unwrap(), port.take_tx_queue(0).unwrap());
        DpdkDevice::new(port.capabilities(), rx, tx, TransmitMode::Splice)
    };
    let capabilities = *device.capabilities();
    let hub = Rc::new(RefCell::new(Hub { device, inboxes: Default::default(), frames: Vec::new() }));
    let station = |side, mac| Station { hub: hub.clone(), side, capabilities: DeviceCapabilities { mac, ..capabilities } };
    let setup = Setup { mtu: MTU, cache: Some(cache), fragments: Some(fragments), ..Setup::default() };
    let mut rig = Rig::new(&setup, Ring, station(CLIENT, CLIENT_MAC), station(SERVER, SERVER_MAC));
    a_read_arrives_from_the_page_cache(&mut rig, &hub);

    let stream = rig.connect();
    rig.remove(stream, b"file");
    rig.close_all();
    assert_eq!(rig.server.pages_out(), (0, 0), "every reference came back");
    assert_eq!(hub.borrow_mut().device.tx().holds_outstanding(), 0);
}
