//! DPDK, the ports, the page pools and the stores, and the loop of the core that drives them.
//!
//! Everything is made on the engine's own thread, because DPDK ties its start to a core, and taken down there in the reverse
//! order: the shard (what is in flight comes back), the ports (the driver lets go of the last pages), the pools, DPDK.

use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::sync::mpsc::SyncSender;

use anyhow::{Context as _, anyhow, bail};
use dpdk::{Eal, EalOptions, Port, PortOptions, Wanted, ZoneSet};

use super::sleep::{NAP, SLEEP_MAX, Waker};
use super::state::{StateDirectory, random};
use super::stores::Stores;
use super::{assemble, clock};
use crate::buf::{FragmentArena, PagePool, Slice};
use crate::control::config::{Bus, Config, LogLevel, Machine, Port as PortConfig, Store as StoreConfig, Transmit, Tso};
use crate::control::metrics::{Board, LayoutBuilder, PUBLISH_INTERVAL_MS, Publisher};
use crate::control::reload::ExportRules;
use crate::control::signals::{Stop, StopFlag};
use crate::counters;
use crate::net::Interface;
use crate::net::dpdk_device::{DpdkDevice, TransmitMode};
use crate::net::interface::InterfaceEvent;
use crate::program::ProgramTable;
use crate::program::mount::MountList;
use crate::shard::{Lane, Shard};
use crate::time::{Duration, Instant};
use crate::{rpc, tcp};

/// Empty turns before a core thinks of sleeping: a few microseconds, in which the next frame of a busy client usually comes.
const TURNS_BEFORE_SLEEP: u32 = 64;

/// Share of `eal_mib` that becomes pages for reply heads and copied-out requests; the rest is packet buffers.
const FRAGMENT_SHARE: usize = 4;

/// Buffers of a receive pool that the driver's ring and the per-core caches bind, and which connections must leave alone.
const RX_BUFFERS_BOUND: usize = 1024 + 2 * 768;

type ServingShard = Shard<DpdkDevice, ProgramTable>;

/// What a server starts from.
pub struct Seed {
    pub config: Config,
    pub machine: Machine,
    pub rules: Arc<ExportRules>,
    pub state: StateDirectory,
    pub stop: StopFlag,
}

/// Starts everything, tells how it went, and serves until asked to stop.
pub fn run(seed: Seed, started: &SyncSender<anyhow::Result<Arc<Board>>>) {
    match Engine::start(&seed) {
        Ok((mut engine, board)) => {
            // The receiver waits for exactly this message.
            let _ = started.send(Ok(board));
            engine.serve(&seed);
            engine.stop();
        }
        Err(error) => {
            let _ = started.send(Err(error));
        }
    }
}

counters! {
    /// What the device and the queues of one port count.
    pub struct PortCounters {
        /// Frames received from the device.
        rx_frames,
        /// Polls of the device that found some.
        rx_bursts,
        /// Polls of the device that found none.
        rx_polls_empty,
        /// Frames and TSO chains the device took.
        tx_chains,
        /// mbufs of these chains.
        tx_segments,
        /// Calls to the driver that sent something.
        tx_bursts,
        /// Calls to the driver that found its ring full.
        tx_ring_full,
        /// Frames the driver refused.
        tx_refused,
        /// Payload bytes sent by reference.
        tx_payload_bytes_referenced,
        /// Payload bytes copied to be sent: 0 with transmit = "splice".
        tx_payload_bytes_copied,
        /// Frames whose headers lay in several buffers and were copied together.
        rx_headers_copied,
    }
    gauges {
        /// Receive buffers in use, the driver's ring included.
        rx_buffers_in_use,
        /// Buffers for chains' headers in use: one for each chain that the driver has not released.
        tx_headers_in_use,
        /// Buffers that refer to pages in use: one for each piece of such a chain.
        tx_pieces_in_use,
        /// Buffers that hold copied payload in use: 0 with transmit = "splice".
        tx_copies_in_use,
    }
}

counters! {
    /// The page pools and how the core spends its time.
    pub struct CoreCounters {
        /// Times the core went to sleep.
        sleeps,
    }
    gauges {
        /// Blocks of the page cache that hold something.
        cache_pages_used,
        /// Blocks the page cache has.
        cache_pages,
        /// Blocks in use for reply heads and copied-out requests.
        fragment_pages_used,
        /// Blocks there are for them.
        fragment_pages,
    }
}

counters! {
    /// What is the same for every core.
    pub struct MachineCounters {}
    gauges {
        /// What every core's cycles are counted with: its rate per second.
        tsc_hz,
    }
}

struct Pools {
    cache: PagePool,
    fragments: PagePool,
}

struct Engine {
    // In the order in which they must go.
    shard: Option<ServingShard>,
    stores: Stores,
    ports: Vec<Port<Slice>>,
    pools: Pools,
    _eal: Eal,
    publisher: Publisher,
    waker: Arc<Waker>,
    may_sleep: bool,
    sleeps: u64,
    rules_seen: u64,
    state: clock::Clock,
}

impl Engine {
    fn start(seed: &Seed) -> anyhow::Result<(Engine, Arc<Board>)> {
        let config = &seed.config;
        let eal = Eal::init(&eal_options(config)).context("DPDK does not start")?;
        let pools = Pools {
            cache: reserve(&eal, "cache", config.memory.page_cache_bytes() as usize, config.memory.block_bytes() as usize)?,
            fragments: reserve(
                &eal,
                "fragments",
                ((config.memory.eal_mib as usize) << 20) / FRAGMENT_SHARE,
                assemble::fragment_bytes(config),
            )?,
        };
        let clock = clock::Clock::start();
        let waker = Waker::new().context("no event descriptor")?;
        let stores = Stores::open(config, &seed.machine, &eal, &pools.cache, &waker, &clock)?;
        let mut ports = Vec::new();
        let mut lanes = Vec::new();
        for port in &config.ports {
            let (port, lane) = open_port(config, port, &eal, &pools.fragments, clock.now())?;
            ports.push(port);
            lanes.push(lane);
        }
        let mut shard = build_shard(seed, lanes, &stores, &pools.fragments)?;
        shard.set_cycle_counter(dpdk::cycles);
        let board = layout(&shard, &stores).build(1);
        let publisher = board.publisher(0).context("the board has no core")?;
        let may_sleep = config.ports.iter().all(|port| port.device.bus == Bus::Vdev);
        let engine = Engine {
            shard: Some(shard),
            stores,
            ports,
            pools,
            _eal: eal,
            publisher,
            waker,
            may_sleep,
            sleeps: 0,
            // The table the shard was built with.
            rules_seen: 1,
            state: clock,
        };
        Ok((engine, board))
    }

    fn serve(&mut self, seed: &Seed) {
        let mut idle_turns = 0;
        let mut publish_at = Instant::ZERO;
        while seed.stop.get() == Stop::No {
            let now = self.state.now();
            if now >= publish_at {
                publish_at = now + Duration::from_millis(PUBLISH_INTERVAL_MS);
                self.housekeeping(seed);
            }
            let Some(shard) = &mut self.shard else { return };
            if shard.turn(now) > 0 {
                idle_turns = 0;
                continue;
            }
            idle_turns += 1;
            if idle_turns >= TURNS_BEFORE_SLEEP && self.may_sleep {
                self.sleep(publish_at);
            } else {
                std::hint::spin_loop();
            }
        }
        self.drain(seed);
    }

    /// What need not happen in every turn: counters, changed export rules, events for the log.
    fn housekeeping(&mut self, seed: &Seed) {
        self.publish();
        let Some(shard) = &mut self.shard else { return };
        if let Some(exports) = seed.rules.changed(&mut self.rules_seen) {
            match self.stores.export_table(&exports) {
                Ok(table) => shard.programs_mut().volumes_mut().set_exports(table),
                // The configuration was checked; if the table sees more than that, the old rules stay.
                Err(error) => tracing::error!("the new export rules are not used: {error:#}"),
            }
        }
        for lane in shard.lanes_mut() {
            while let Some(InterfaceEvent::AddressConflict { address, mac }) = lane.interface.poll_event() {
                tracing::error!(%address, ?mac, "another station uses this server's address");
            }
        }
    }

    /// Waits for a frame, a completion, a timer or `until`, whichever is first.
    fn sleep(&mut self, until: Instant) {
        let Some(shard) = &mut self.shard else { return };
        self.waker.prepare();
        let mut all_signal = true;
        for lane in shard.lanes_mut() {
            all_signal &= lane.device.rx().arm_interrupt().is_ok();
        }
        // A frame or a completion may have come before the devices were armed.
        let now = self.state.now();
        if shard.turn(now) == 0 {
            let timer = shard.poll_timeout().unwrap_or(until).min(until);
            let longest = if all_signal { SLEEP_MAX } else { NAP };
            let wait = timer.since(now).min(longest);
            if !wait.is_zero() {
                self.sleeps += 1;
                let descriptors: smallvec::SmallVec<[BorrowedFd<'_>; 8]> =
                    shard.lanes_mut().iter_mut().filter_map(|lane| lane.device.rx().event_fd()).collect();
                self.waker.sleep(&descriptors, wait);
            }
        }
        self.waker.cancel();
        for lane in shard.lanes_mut() {
            lane.device.rx().disarm_interrupt();
        }
    }

    /// Answers what was taken, within the time the configuration gives, then resets what is left.
    fn drain(&mut self, seed: &Seed) {
        let Some(shard) = &mut self.shard else { return };
        shard.drain();
        let deadline = self.state.now() + Duration::from_millis(seed.config.limits.drain_ms_max.into());
        loop {
            let now = self.state.now();
            let worked = shard.turn(now) > 0;
            if shard.is_drained() || now >= deadline || seed.stop.get() == Stop::Now {
                break;
            }
            if !worked {
                std::thread::sleep(NAP);
            }
        }
        let now = self.state.now();
        shard.abort_all(now);
        shard.turn(now);
        self.publish();
    }

    fn publish(&mut self) {
        let Some(shard) = &mut self.shard else { return };
        let ports: Vec<PortCounters> =
            shard.lanes_mut().iter_mut().zip(&self.ports).map(|(lane, port)| port_counters(lane, port)).collect();
        let core = CoreCounters {
            sleeps: self.sleeps,
            cache_pages_used: self.pools.cache.outstanding() as u64,
            cache_pages: self.pools.cache.blocks() as u64,
            fragment_pages_used: self.pools.fragments.outstanding() as u64,
            fragment_pages: self.pools.fragments.blocks() as u64,
        };
        let cycles = shard.cycles();
        let mut layers: Vec<&dyn counters::Counters> =
            vec![&core, &cycles, shard.counters(), shard.tcp().counters(), shard.rpc().counters()];
        layers.push(shard.programs().nfs3().counters());
        for (lane, port) in shard.lanes().iter().zip(&ports) {
            layers.extend([port as &dyn counters::Counters, lane.interface.counters(), lane.interface.neighbour_counters()]);
        }
        self.publisher.publish(&layers);
    }

    fn stop(mut self) {
        dpdk::memory::keep_zones_until_exit();
        self.shard = None;
        self.stores.shutdown();
        self.ports.clear();
    }
}

/// The same layers in the same order as `Engine::publish`.
fn layout(shard: &ServingShard, stores: &Stores) -> LayoutBuilder {
    let mut layout = LayoutBuilder::new()
        .shared("machine", || MachineCounters { tsc_hz: dpdk::cycles_hz() })
        .per_core("core", &CoreCounters::default())
        .per_core("cycles", &shard.cycles())
        .per_core("shard", shard.counters())
        .per_core("tcp", shard.tcp().counters())
        .per_core("rpc", shard.rpc().counters())
        .per_core("nfs3", shard.programs().nfs3().counters());
    for (at, lane) in shard.lanes().iter().enumerate() {
        layout = layout
            .per_core(&format!("port{at}"), &PortCounters::default())
            .per_core(&format!("port{at}.ip"), lane.interface.counters())
            .per_core(&format!("port{at}.arp"), lane.interface.neighbour_counters());
    }
    stores.add_to(layout)
}

fn port_counters(lane: &mut Lane<DpdkDevice>, port: &Port<Slice>) -> PortCounters {
    let rx = lane.device.rx().counters();
    let tx = lane.device.tx().counters();
    let (tx_headers, tx_pieces, tx_copies) = lane.device.tx().buffers_in_use();
    PortCounters {
        rx_frames: rx.packets,
        rx_bursts: rx.bursts,
        rx_polls_empty: rx.empty_polls,
        tx_chains: tx.chains,
        tx_segments: tx.segments,
        tx_bursts: tx.bursts,
        tx_ring_full: tx.descriptors_full,
        tx_refused: tx.refused_by_prepare + tx.refused_for_shape,
        tx_payload_bytes_referenced: tx.payload_bytes_referenced,
        tx_payload_bytes_copied: tx.payload_bytes_copied,
        rx_headers_copied: lane.device.counters().headers_copied,
        rx_buffers_in_use: port.rx_buffers_in_use(0).unwrap_or(0).into(),
        tx_headers_in_use: tx_headers.into(),
        tx_pieces_in_use: tx_pieces.into(),
        tx_copies_in_use: tx_copies.into(),
    }
}

fn eal_options(config: &Config) -> EalOptions {
    let of_bus = |bus: Bus| config.ports.iter().filter(move |port| port.device.bus == bus).map(|port| port.device.to_string());
    let memory_stores: u32 = config.exports.iter().map(|export| memory_mib(&export.store)).sum();
    EalOptions {
        lcores: vec![config.cores.engine[0] as u16],
        hugepages: config.memory.hugepages,
        memory_mib: config.memory.eal_total_mib() + memory_stores,
        file_prefix: file_prefix(config),
        vdevs: of_bus(Bus::Vdev).collect(),
        allow: of_bus(Bus::Pci).collect(),
        log_level: Some(dpdk_log_level(config.server.log_level).to_owned()),
        extra_arguments: extra_arguments(config),
        ..EalOptions::default()
    }
}

fn extra_arguments(config: &Config) -> Vec<String> {
    let mut arguments = Vec::new();
    if config.memory.hugepages {
        // Their files are unlinked once mapped: however the process ends, the kernel takes the memory back.
        arguments.push("--huge-unlink=always".to_owned());
    }
    if config.server.log_level < LogLevel::Debug {
        // The TAP driver reports as errors that the kernel lacks a queueing discipline it does not need here. What keeps it
        // from starting, EAL reports itself.
        arguments.push("--log-level=pmd.net.tap:critical".to_owned());
    }
    arguments
}

fn memory_mib(store: &StoreConfig) -> u32 {
    match store {
        StoreConfig::Memory { mib } => *mib,
        StoreConfig::Directory(_) => 0,
    }
}

/// DPDK writes to stderr by itself, and its notices at a normal start would bury the server's own lines.
fn dpdk_log_level(level: LogLevel) -> &'static str {
    match level {
        LogLevel::Trace => "debug",
        LogLevel::Debug => "info",
        LogLevel::Error | LogLevel::Warn | LogLevel::Info => "error",
    }
}

/// Unique among the DPDK processes of the machine (the state directory is locked), and the same after a restart: DPDK then
/// finds and frees the hugepages of a server that was killed.
fn file_prefix(config: &Config) -> String {
    use std::hash::Hasher as _;
    let directory = &config.server.state_dir;
    let path = directory.canonicalize().unwrap_or_else(|_| directory.clone());
    let mut hasher = siphasher::sip::SipHasher13::new();
    hasher.write(path.as_os_str().as_encoded_bytes());
    format!("nfsplice-{:016x}", hasher.finish())
}

pub(super) fn reserve(eal: &Eal, name: &str, bytes: usize, block: usize) -> anyhow::Result<PagePool> {
    // A zone may start anywhere; blocks that devices reach must not straddle two pages of memory.
    let zones = ZoneSet::reserve(eal, name, bytes, block, -1)
        .with_context(|| format!("no {} MiB of memory for {name}", bytes >> 20))?
        .into_zones();
    Ok(PagePool::from_zones(zones, block))
}

fn open_port(
    config: &Config,
    port: &PortConfig,
    eal: &Eal,
    fragments: &PagePool,
    now: Instant,
) -> anyhow::Result<(Port<Slice>, Lane<DpdkDevice>)> {
    let name = &port.device.name;
    let options = PortOptions {
        mtu: port.mtu,
        mac: port.mac.map(|mac| mac.0),
        tso: match port.tso {
            Tso::Auto => Wanted::Auto,
            Tso::On => Wanted::On,
            Tso::Off => Wanted::Off,
        },
        ..PortOptions::default()
    };
    let mut opened = Port::<Slice>::open(eal, name, &options).with_context(|| format!("port {name} does not start"))?;
    let capabilities = opened.capabilities().clone();
    let (Some(rx), Some(tx)) = (opened.take_rx_queue(0), opened.take_tx_queue(0)) else {
        bail!("port {name} has no queues");
    };
    let mode = match config.server.transmit {
        Transmit::Splice => TransmitMode::Splice,
        Transmit::Copy => TransmitMode::Copy,
    };
    let device = DpdkDevice::new(&capabilities, rx, tx, mode);
    if device.mode() != mode {
        tracing::warn!(port = %name, driver = %capabilities.driver_name, "the driver takes no chains of buffers: payload is copied");
    }
    let mtu = port.mtu.min(capabilities.mtu);
    let arena = arena(fragments)?;
    let interface = Interface::new(assemble::interface_options(config, port, capabilities.mac, mtu), arena, now)
        .with_context(|| format!("port {name}"))?;
    tracing::info!(
        port = %name, driver = %capabilities.driver_name, address = %port.address, mtu, tso = capabilities.tso,
        checksums = capabilities.tx_tcp_checksum, segments = capabilities.max_segments_per_packet, "port started"
    );
    Ok((opened, Lane { device, interface }))
}

fn arena(fragments: &PagePool) -> anyhow::Result<FragmentArena> {
    FragmentArena::new(fragments.clone()).ok_or_else(|| anyhow!("memory.eal_mib is too small for reply heads"))
}

fn build_shard(seed: &Seed, lanes: Vec<Lane<DpdkDevice>>, stores: &Stores, fragments: &PagePool) -> anyhow::Result<ServingShard> {
    let config = &seed.config;
    let driver_buffers_max = PortOptions::default().rx_pool_mbufs as usize - RX_BUFFERS_BOUND;
    let mut tcp = tcp::Endpoint::new(assemble::tcp_options(config, driver_buffers_max), random()?);
    // Bytes of records that peers do not complete must not take the room that everybody's replies need.
    let copy_out = FragmentArena::leaving(fragments.clone(), fragments.blocks() / 2);
    tcp.set_copy_out(copy_out.ok_or_else(|| anyhow!("memory.eal_mib is too small to copy received bytes"))?);
    for port in assemble::STREAM_PORTS {
        tcp.listen(port).with_context(|| format!("cannot listen on TCP port {port}"))?;
    }
    let drc_seed: [u8; 16] = random()?;
    let drc_seed = [0, 8].map(|at| u64::from_ne_bytes(std::array::from_fn(|byte| drc_seed[at + byte])));
    let rpc = rpc::Server::new(assemble::rpc_options(config, drc_seed), arena(fragments)?);
    let programs = assemble::programs(config, stores, seed.state.handle_key()?, Arc::new(MountList::default()))?;
    Ok(Shard::new(lanes, tcp, rpc, programs, assemble::DATAGRAM_PORTS.to_vec()))
}
