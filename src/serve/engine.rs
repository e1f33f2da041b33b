//! DPDK, the ports, the page pools and the stores, and one thread for each core that runs on them.
//!
//! Everything shared is made on the first engine thread, because DPDK ties its start to a core, and taken down there in the
//! reverse order: the cores (what is in flight comes back), the stores, the ports (the driver lets go of the last pages), the pools, DPDK.

use std::sync::atomic::AtomicUsize;
use std::sync::mpsc::{self, SyncSender};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use anyhow::{Context as _, anyhow};
use crossbeam::channel::Receiver;
use dpdk::{Eal, EalOptions, ZoneSet};

use super::board::{self, AskedPort, Pools};
use super::core::{Common, Core, Parts};
use super::ports::{self, OpenedPort};
use super::sleep::Waker;
use super::state::{StateDirectory, random};
use super::stores::Stores;
use super::{assemble, clock, hugepages};
use crate::buf::PagePool;
use crate::control::config::{Bus, Config, Idle, LogLevel, Machine, Store as StoreConfig};
use crate::control::inquiry::Inquiry;
use crate::control::metrics::{Board, Publisher};
use crate::control::reload::ExportRules;
use crate::control::signals::StopFlag;
use crate::control::threads::{self, Placement};
use crate::program::mount::MountList;
use crate::rpc::drc::SharedDrc;
use crate::shard::steering::{self, Steering, Wake};

/// Share of `eal_mib` that becomes pages for reply heads and copied-out requests; the rest is packet buffers.
const FRAGMENT_SHARE: usize = 4;

/// What a server starts from.
pub struct Seed {
    pub config: Config,
    pub machine: Machine,
    pub rules: Arc<ExportRules>,
    pub state: StateDirectory,
    pub stop: StopFlag,
}

/// Starts everything, tells how it went, and serves until asked to stop. Runs on the first core's thread.
pub fn run(seed: Seed, mailboxes: Vec<Receiver<Inquiry>>, started: &SyncSender<anyhow::Result<Arc<Board>>>) {
    let _alarm = Alarm(seed.stop.clone());
    match Engine::start(seed, mailboxes) {
        Ok((mut engine, board)) => {
            // The receiver waits for exactly this message.
            let _ = started.send(Ok(board));
            engine.first.run();
            engine.stop();
        }
        Err(error) => {
            let _ = started.send(Err(error));
        }
    }
}

/// Stops the whole server when its thread panics: a core less would leave its connections without an answer.
struct Alarm(StopFlag);

impl Drop for Alarm {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.request();
            self.0.request();
        }
    }
}

struct Engine {
    first: Core,
    others: Vec<JoinHandle<()>>,
    stores: Stores,
    ports: board::Ports,
    _eal: Eal,
}

impl Engine {
    fn start(seed: Seed, mailboxes: Vec<Receiver<Inquiry>>) -> anyhow::Result<(Engine, Arc<Board>)> {
        let config = seed.config.clone();
        let options = eal_options(&config);
        if options.hugepages {
            hugepages::check(options.memory_mib)?;
        }
        let eal = Eal::init(&options).context("DPDK does not start")?;
        let pools = Pools {
            cache: reserve(&eal, "cache", config.memory.page_cache_bytes() as usize, config.memory.block_bytes() as usize)?,
            fragments: reserve(
                &eal,
                "fragments",
                ((config.memory.eal_mib as usize) << 20) / FRAGMENT_SHARE,
                assemble::fragment_bytes(&config),
            )?,
        };
        let clock = clock::Clock::start();
        let cores = config.cores.engine.len();
        let wakers = (0..cores).map(|_| Waker::new()).collect::<Result<Vec<_>, _>>().context("no event descriptor")?;
        let stores = Stores::open(&config, &seed.machine, &eal, &pools.cache, &clock)?;
        let mut opened = Vec::new();
        let address_key = seed.state.address_key()?;
        for port in &config.ports {
            opened.push(ports::open(&config, port, &eal, &pools.fragments, address_key, clock.now())?);
        }
        let common = common(seed, &opened, pools, clock)?;
        let (ports, parts) = share_out(opened, &stores, &wakers, mailboxes);
        let (engine, board) = start_cores(&common, parts, stores, ports, eal)?;
        Ok((engine, board))
    }

    /// Waits for the other cores, then takes everything down.
    fn stop(self) {
        let Engine { first, others, mut stores, ports, .. } = self;
        let panicked = others.into_iter().map(JoinHandle::join).filter(Result::is_err).count();
        dpdk::memory::keep_zones_until_exit();
        drop(first);
        stores.shutdown();
        // Whoever is asking them now is waited for.
        ports.lock().unwrap_or_else(PoisonError::into_inner).clear();
        // Each has said so on its way; this thread's end is what the caller asks for.
        assert!(panicked == 0, "{panicked} cores panicked");
    }
}

/// What all cores have in common.
fn common(seed: Seed, ports: &[OpenedPort], pools: Pools, clock: clock::Clock) -> anyhow::Result<Arc<Common>> {
    let cores = seed.config.cores.engine.len();
    let drc_seed: [u8; 16] = random()?;
    let drc_seed = [0, 8].map(|at| u64::from_ne_bytes(std::array::from_fn(|byte| drc_seed[at + byte])));
    let drc = SharedDrc::new(assemble::rpc_options(&seed.config, drc_seed).drc, cores);
    Ok(Arc::new(Common {
        clock,
        handle_key: seed.state.handle_key()?,
        drc,
        mounts: Arc::new(MountList::default()),
        pools,
        driver_buffers_max: ports::driver_buffers_max(cores, ports.iter().all(|port| port.spread_by_device)),
        may_sleep: match seed.config.cores.idle {
            // A virtual device has no CPU set aside for it.
            Idle::Auto => seed.config.ports.iter().all(|port| port.device.bus == Bus::Vdev),
            Idle::Poll => false,
            Idle::Sleep => true,
        },
        cores,
        drained: AtomicUsize::new(0),
        seed,
    }))
}

/// Queue n of a port goes to core n.
fn share_out(
    opened: Vec<OpenedPort>,
    stores: &Stores,
    wakers: &[Arc<Waker>],
    mailboxes: Vec<Receiver<Inquiry>>,
) -> (board::Ports, Vec<Parts>) {
    let mut steered: Vec<Vec<_>> = wakers.iter().map(|_| Vec::new()).collect();
    let mut parts: Vec<Parts> = (wakers.iter().zip(mailboxes).enumerate())
        .map(|(index, (waker, mailbox))| Parts {
            index,
            lanes: Vec::new(),
            lane_of_port: vec![None; opened.len()],
            stores: stores.handles(index, waker),
            steering: None,
            waker: Arc::clone(waker),
            mailbox,
        })
        .collect();
    let mut ports = Vec::new();
    for (number, opened) in opened.into_iter().enumerate() {
        let port = opened.steered(number);
        for (core, lane) in opened.lanes.into_iter().enumerate() {
            steered[core].push(port.clone());
            parts[core].lane_of_port[number] = Some(parts[core].lanes.len());
            parts[core].lanes.push(lane);
        }
        ports.push(AskedPort::new(opened.port));
    }
    if wakers.len() > 1 {
        let wake = |waker: &Arc<Waker>| -> Wake {
            let waker = Arc::clone(waker);
            Arc::new(move || waker.wake())
        };
        let wakes: Vec<Wake> = wakers.iter().map(wake).collect();
        let mesh = Steering::mesh(steering::Options::default(), steered, &wakes);
        for (parts, steering) in parts.iter_mut().zip(mesh) {
            parts.steering = Some(steering);
        }
    }
    (Arc::new(Mutex::new(ports)), parts)
}

/// Makes the first core on this thread and each other one on its own. When one cannot be made, those that run are stopped.
fn start_cores(
    common: &Arc<Common>,
    parts: Vec<Parts>,
    stores: Stores,
    ports: board::Ports,
    eal: Eal,
) -> anyhow::Result<(Engine, Arc<Board>)> {
    let mut parts = parts.into_iter();
    let mut first = Core::new(common, parts.next().ok_or_else(|| anyhow!("no core"))?)?;
    let board = board::layout(first.shard(), &stores, &ports).build(common.cores);
    let publisher = |core: usize| board.publisher(core).context("the board has no such core");
    first.publish_to(publisher(0)?);
    let mut others = Vec::new();
    let start_others = || -> anyhow::Result<()> {
        for parts in parts {
            let publisher = publisher(parts.index)?;
            others.push(start_other(common, parts, publisher)?);
        }
        Ok(())
    };
    if let Err(error) = start_others() {
        common.seed.stop.request();
        common.seed.stop.request();
        for other in others {
            let _ = other.join();
        }
        return Err(error);
    }
    Ok((Engine { first, others, stores, ports, _eal: eal }, board))
}

fn start_other(common: &Arc<Common>, parts: Parts, publisher: Publisher) -> anyhow::Result<JoinHandle<()>> {
    let index = parts.index;
    let cpu = common.seed.config.cores.engine[index] as usize;
    let (started, start) = mpsc::sync_channel(1);
    let common = Arc::clone(common);
    let run = move || {
        let _alarm = Alarm(common.seed.stop.clone());
        // Gives the thread its own caches of the driver's buffers; they are given back when this is dropped, after the core.
        let registered = dpdk::register_thread().map_err(anyhow::Error::from);
        let core = registered.and_then(|registered| Ok((registered, Core::new(&common, parts)?)));
        match core {
            Ok((registered, mut core)) => {
                core.publish_to(publisher);
                // The receiver waits for exactly this message.
                let _ = started.send(Ok(()));
                core.run();
                drop(core);
                drop(registered);
            }
            Err(error) => {
                let _ = started.send(Err(error));
            }
        }
    };
    let thread = threads::spawn(&format!("engine-{index}"), Placement::Cpu(cpu), run)?;
    match start.recv() {
        Ok(Ok(())) => Ok(thread),
        Ok(Err(error)) => {
            let _ = thread.join();
            Err(error.context(format!("core {index}")))
        }
        Err(_) => {
            let _ = thread.join();
            Err(anyhow!("core {index} ended before it had started"))
        }
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

/// Unique among the DPDK processes of the machine: the state directory is locked.
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
