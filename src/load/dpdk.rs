//! This project's own stack on a DPDK port as a transport: one queue pair, one `Stack` for each core.
//!
//! EAL runs on the thread that starts it and does no work there; every core's thread makes itself known with [`register`]. What is
//! made first goes last: the transports, the port, the pools, EAL.

use std::net::{IpAddr, SocketAddr};

use anyhow::{Context as _, anyhow, bail};
use dpdk::{Eal, EalOptions, Port, PortOptions, Wanted, ZoneSet};

use super::pattern::Pattern;
use super::stack::Stack;
use super::steering::Steering;
use super::transport::{Figure, StreamEvent, StreamKey, Transport, TransportError};
use crate::buf::{FragmentArena, PagePool, RxChain, Slice};
use crate::control::config::{Bus, LoadConfig, LoadPort};
use crate::net::dpdk_device::{DpdkDevice, TransmitMode};
use crate::net::interface::Ipv6Options;
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
    _ports: Vec<Port<Slice>>,
    _pools: (PagePool, PagePool),
    _eal: Eal,
}

/// One core's.
pub struct DpdkTransport {
    stack: Stack<DpdkDevice>,
    origin: std::time::Instant,
    /// The server's address through this port, if it is another than the run's.
    server: Option<IpAddr>,
    pools: (PagePool, PagePool),
}

/// Makes the calling thread known to DPDK until the guard is dropped.
pub fn register() -> anyhow::Result<dpdk::eal::RegisteredThread> {
    dpdk::register_thread().context("DPDK does not take the thread")
}

/// What one connection needs of TCP, bytes.
#[derive(Clone, Copy, Debug)]
pub struct StreamBytes {
    /// To send, before the first acknowledgement.
    pub queued: usize,
    /// Outstanding in replies.
    pub expected: usize,
}

/// Starts EAL on the calling thread, opens the ports and makes one transport for each of their cores, in order.
pub fn start(
    config: &LoadConfig,
    origin: std::time::Instant,
    bytes: StreamBytes,
) -> anyhow::Result<(Ground, Vec<DpdkTransport>)> {
    let cores: usize = config.ports.iter().map(|port| port.cores.len()).sum();
    let eal = Eal::init(&eal_options(config, cores)).context("DPDK does not start")?;
    let calls = reserve(&eal, "calls", ((config.mib as usize) << 20) / CALL_SHARE, CALL_BLOCK)?;
    let data = reserve(&eal, "pattern", cores * Pattern::BLOCK, Pattern::BLOCK)?;
    let pools = (calls, data);
    let mut ports = Vec::new();
    let mut transports = Vec::new();
    for port in &config.ports {
        let (opened, of_port) = open(&eal, port, origin, bytes, &pools).with_context(|| format!("port {}", port.device.name))?;
        ports.push(opened);
        transports.extend(of_port);
    }
    Ok((Ground { _ports: ports, _pools: pools, _eal: eal }, transports))
}

fn open(
    eal: &Eal,
    port: &LoadPort,
    origin: std::time::Instant,
    bytes: StreamBytes,
    pools: &(PagePool, PagePool),
) -> anyhow::Result<(Port<Slice>, Vec<DpdkTransport>)> {
    let queues = u16::try_from(port.cores.len()).context("too many cores")?;
    let options = PortOptions {
        mtu: port.mtu,
        mac: port.mac.map(|mac| mac.0),
        rx_queues: queues,
        tx_queues: queues,
        all_multicast: port.address.address.is_ipv6(),
        // As drivers do, and over net_vhost if the server takes it, as a guest's kernel does.
        tso: if port.device.to_string().starts_with("net_vhost") { Wanted::On } else { Wanted::Auto },
        ..PortOptions::default()
    };
    let mut opened = Port::<Slice>::open(eal, &port.device.name, &options)?;
    wait_for_link(&opened)?;
    let mut capabilities = opened.capabilities().clone();
    capabilities.tso &= opened.peer_takes_tso();
    let own = port.address.address;
    let first_port: [u8; 2] = random()?;
    let mut steering = Steering::for_cores(port.cores.len(), u16::from_ne_bytes(first_port)).into_iter();
    let mut transports = Vec::new();
    for queue in 0..queues {
        let (Some(rx), Some(tx)) = (opened.take_rx_queue(queue), opened.take_tx_queue(queue)) else {
            bail!("no queue {queue}");
        };
        let device = DpdkDevice::new(&capabilities, rx, tx, TransmitMode::Splice);
        let arena = || FragmentArena::new(pools.0.clone()).ok_or_else(|| anyhow!("too little memory for calls"));
        let (gateway, gateway_ipv6) = match port.gateway {
            Some(IpAddr::V4(gateway)) => (Some(gateway), None),
            Some(IpAddr::V6(gateway)) => (None, Some(gateway)),
            None => (None, None),
        };
        let interface_options = InterfaceOptions {
            gateway,
            // A generator is there for a moment, on a network made for it: it does not wait to see who else has its address.
            ipv6: Ipv6Options { gateway: gateway_ipv6, secret: random()?, duplicate_detections: 0, ..Ipv6Options::default() },
            ..InterfaceOptions::new(capabilities.mac, port.mtu.min(capabilities.mtu), own, port.address.prefix_length)
        };
        let interface = Interface::new(interface_options, arena()?, Instant::ZERO)?;
        let mut endpoint = tcp::Endpoint::new(tcp_options(&options, bytes), random()?);
        endpoint.set_copy_out(arena()?);
        let stack = Stack::new(device, interface, endpoint, own, steering.next().filter(|_| queues > 1));
        transports.push(DpdkTransport { stack, origin, server: port.server, pools: pools.clone() });
    }
    Ok((opened, transports))
}

fn random<const N: usize>() -> anyhow::Result<[u8; N]> {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).context("the operating system gives no random bytes")?;
    Ok(bytes)
}

fn tcp_options(port: &PortOptions, bytes: StreamBytes) -> tcp::Options {
    let defaults = tcp::Options::default();
    tcp::Options {
        receive_window_max: bytes.expected.clamp(defaults.receive_window_max as usize, RECEIVE_WINDOW_MAX) as u32,
        driver_buffers_max: port.rx_pool_mbufs as usize - RX_BUFFERS_BOUND,
        receive_buffers_max: port.rx_pool_mbufs as usize / 2,
        // A connection's whole depth is queued at once.
        send_queue_bytes_max: bytes.queued.max(defaults.send_queue_bytes_max),
        // The next run must not find this one's ports taken.
        time_wait: Duration::from_secs(1),
        ..defaults
    }
}

fn eal_options(config: &LoadConfig, cores: usize) -> EalOptions {
    let of_bus = |bus: Bus| config.ports.iter().filter(move |port| port.device.bus == bus).map(|port| port.device.to_string());
    let first = config.ports.first().and_then(|port| port.cores.first()).copied().unwrap_or(0);
    EalOptions {
        lcores: vec![first as u16],
        hugepages: config.hugepages,
        // The pattern's blocks, with what aligning them costs.
        memory_mib: config.mib + 4 + 2 * cores as u32,
        file_prefix: format!("nfsplice-load-{}", std::process::id()),
        vdevs: of_bus(Bus::Vdev).collect(),
        allow: of_bus(Bus::Pci).collect(),
        log_level: Some("critical".to_owned()),
        pin_calling_thread: false,
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
    while port.link().is_some_and(|link| !link.up) {
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
        let remote = SocketAddr::new(self.server.unwrap_or(remote.ip()), remote.port());
        self.stack.connect(self.now(), remote)
    }

    fn reopen(&mut self, stream: StreamKey, remote: SocketAddr) -> Result<(), TransportError> {
        let remote = SocketAddr::new(self.server.unwrap_or(remote.ip()), remote.port());
        self.stack.reopen(self.now(), stream, remote)
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
