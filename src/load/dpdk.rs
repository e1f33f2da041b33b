//! This project's own stack on a DPDK port as a transport: one queue pair, one `Stack` for each core.
//!
//! EAL runs on the thread that starts it and does no work there; every core's thread makes itself known with [`register`]. What is
//! made first goes last: the transports, the port, the pools, EAL.

use std::net::SocketAddr;

use anyhow::{Context as _, anyhow, bail};
use dpdk::{Eal, EalOptions, Port, PortOptions, ZoneSet};

use super::options;
use super::pattern::Pattern;
use super::stack::Stack;
use super::transport::{Figure, StreamEvent, StreamKey, Transport, TransportError};
use crate::buf::{FragmentArena, PagePool, RxChain, Slice};
use crate::control::config::Bus;
use crate::net::dpdk_device::{DpdkDevice, TransmitMode};
use crate::net::{Interface, InterfaceOptions};
use crate::tcp;
use crate::time::{Duration, Instant};

/// Bytes of a block for calls.
const CALL_BLOCK: usize = 256 << 10;
/// Share of the memory that becomes such blocks; the rest is packet buffers.
const CALL_SHARE: usize = 4;
/// Buffers of a receive pool that the driver's ring and the per-core caches bind.
const RX_BUFFERS_BOUND: usize = 1024 + 2 * 768;
/// How long the link may take to come up: a peer of net_vhost connects when it starts.
const LINK_WAIT: std::time::Duration = std::time::Duration::from_secs(10);
/// The receive window of one connection at most, bytes: more than any server has outstanding.
const RECEIVE_WINDOW_MAX: usize = 64 << 20;

/// What the transports stand on.
pub struct Ground {
    // In the order in which they must go.
    _port: Port<Slice>,
    _pools: (PagePool, PagePool),
    _eal: Eal,
}

/// One core's.
pub struct DpdkTransport {
    stack: Stack<DpdkDevice>,
    origin: std::time::Instant,
    pools: (PagePool, PagePool),
}

/// Makes the calling thread known to DPDK until the guard is dropped.
pub fn register() -> anyhow::Result<dpdk::eal::RegisteredThread> {
    dpdk::register_thread().context("DPDK does not take the thread")
}

/// Starts EAL on the calling thread, opens the port and makes one transport for each core. `queued` are the bytes one connection may
/// have to send, `expected` those it may have outstanding in replies.
pub fn start(
    port: &options::Port,
    cores: &[u32],
    origin: std::time::Instant,
    queued: usize,
    expected: usize,
) -> anyhow::Result<(Ground, Vec<DpdkTransport>)> {
    let eal = Eal::init(&eal_options(port, cores)).context("DPDK does not start")?;
    let calls = reserve(&eal, "calls", ((port.memory_mib as usize) << 20) / CALL_SHARE, CALL_BLOCK)?;
    let data = reserve(&eal, "pattern", cores.len() * Pattern::BLOCK, Pattern::BLOCK)?;
    let queues = u16::try_from(cores.len()).context("too many cores")?;
    let options = PortOptions {
        mtu: port.mtu,
        mac: port.mac.map(|mac| mac.0),
        rx_queues: queues,
        tx_queues: queues,
        ..PortOptions::default()
    };
    let name = &port.device.name;
    let mut opened = Port::<Slice>::open(&eal, name, &options).with_context(|| format!("port {name} does not start"))?;
    let mut transports = Vec::new();
    for queue in 0..queues {
        let capabilities = opened.capabilities().clone();
        let (Some(rx), Some(tx)) = (opened.take_rx_queue(queue), opened.take_tx_queue(queue)) else {
            bail!("port {name} has no queue {queue}");
        };
        let device = DpdkDevice::new(&capabilities, rx, tx, TransmitMode::Splice);
        let mtu = port.mtu.min(capabilities.mtu);
        let arena = || FragmentArena::new(calls.clone()).ok_or_else(|| anyhow!("--memory-mib is too small"));
        let interface_options = InterfaceOptions {
            gateway: port.gateway,
            ..InterfaceOptions::new(capabilities.mac, mtu, port.address.address, port.address.prefix_length)
        };
        let interface = Interface::new(interface_options, arena()?, Instant::ZERO).with_context(|| format!("port {name}"))?;
        let mut endpoint = tcp::Endpoint::new(tcp_options(&options, queued, expected), secret()?);
        endpoint.set_copy_out(arena()?);
        let stack = Stack::new(device, interface, endpoint, port.address.address);
        transports.push(DpdkTransport { stack, origin, pools: (calls.clone(), data.clone()) });
    }
    wait_for_link(&opened)?;
    Ok((Ground { _port: opened, _pools: (calls, data), _eal: eal }, transports))
}

fn secret() -> anyhow::Result<[u8; 16]> {
    let mut secret = [0; 16];
    getrandom::fill(&mut secret).context("the operating system gives no random bytes")?;
    Ok(secret)
}

fn tcp_options(port: &PortOptions, queued: usize, expected: usize) -> tcp::Options {
    let defaults = tcp::Options::default();
    tcp::Options {
        receive_window_max: expected.clamp(defaults.receive_window_max as usize, RECEIVE_WINDOW_MAX) as u32,
        driver_buffers_max: port.rx_pool_mbufs as usize - RX_BUFFERS_BOUND,
        receive_buffers_max: port.rx_pool_mbufs as usize / 2,
        // A connection's whole depth is queued at once.
        send_queue_bytes_max: queued.max(defaults.send_queue_bytes_max),
        // The next run must not find this one's ports taken.
        time_wait: Duration::from_secs(1),
        ..defaults
    }
}

fn eal_options(port: &options::Port, cores: &[u32]) -> EalOptions {
    let device = port.device.to_string();
    let (vdevs, allow) = match port.device.bus {
        Bus::Vdev => (vec![device], Vec::new()),
        Bus::Pci => (Vec::new(), vec![device]),
    };
    EalOptions {
        lcores: vec![cores[0] as u16],
        hugepages: port.hugepages,
        // The pattern's blocks, with what aligning them costs.
        memory_mib: port.memory_mib + 4 + 2 * cores.len() as u32,
        file_prefix: format!("nfsplice-load-{}", std::process::id()),
        vdevs,
        allow,
        log_level: Some("error".to_owned()),
        pin_calling_thread: false,
        extra_arguments: if port.hugepages { vec!["--huge-unlink=always".to_owned()] } else { Vec::new() },
        ..EalOptions::default()
    }
}

fn reserve(eal: &Eal, name: &str, bytes: usize, block: usize) -> anyhow::Result<PagePool> {
    let zones = ZoneSet::reserve(eal, name, bytes, block, -1)
        .with_context(|| format!("no {} MiB of memory for {name}: raise --memory-mib", bytes >> 20))?
        .into_zones();
    Ok(PagePool::from_zones(zones, block))
}

fn wait_for_link(port: &Port<Slice>) -> anyhow::Result<()> {
    let deadline = std::time::Instant::now() + LINK_WAIT;
    while !port.link().up {
        if std::time::Instant::now() > deadline {
            bail!("the link of port {} is down after {LINK_WAIT:?}", port.name());
        }
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    Ok(())
}

impl Transport for DpdkTransport {
    fn now(&self) -> Instant {
        Instant::from_nanos(u64::try_from(self.origin.elapsed().as_nanos()).unwrap_or(u64::MAX))
    }

    fn receive(&mut self) -> usize {
        let now = self.now();
        self.stack.receive(now)
    }

    fn poll_event(&mut self) -> Option<StreamEvent> {
        self.stack.poll_event(self.now())
    }

    fn connect(&mut self, remote: SocketAddr) -> Result<StreamKey, TransportError> {
        self.stack.connect(self.now(), 0, remote)
    }

    fn chain(&mut self, stream: StreamKey) -> Option<&mut RxChain> {
        self.stack.chain(stream)
    }

    fn received(&mut self, stream: StreamKey) {
        let now = self.now();
        self.stack.received(now, stream);
    }

    fn send(&mut self, stream: StreamKey, gather: &mut Vec<Slice>) -> Result<(), TransportError> {
        let now = self.now();
        self.stack.send(now, stream, gather)
    }

    fn close(&mut self, stream: StreamKey) {
        let now = self.now();
        self.stack.close(now, stream);
    }

    fn transmit(&mut self) -> usize {
        let now = self.now();
        self.stack.transmit(now)
    }

    /// A core that drives a port has nothing else to do.
    fn wait(&mut self, _: Instant) {
        std::hint::spin_loop();
    }

    fn pools(&self) -> (PagePool, PagePool) {
        self.pools.clone()
    }

    fn retransmissions(&mut self) -> u64 {
        self.stack.retransmissions()
    }

    fn figures(&mut self, out: &mut Vec<Figure>) {
        self.stack.figures(out);
        let tx = self.stack.device_mut().tx().counters();
        out.extend([
            ("tx_bursts", tx.bursts),
            ("tx_chains", tx.chains),
            ("tx_segments", tx.segments),
            ("tx_ring_full", tx.descriptors_full),
            ("tx_payload_bytes_copied", tx.payload_bytes_copied),
        ]);
    }
}
