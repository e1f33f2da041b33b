//! One core: its shard, its thread's loop, how it sleeps, drains and ends.
//!
//! Every core has what it needs for itself: a queue pair of each port it shares, connections, calls, fragment pages, driver caches,
//! a handle on each store. What the cores share is listed in docs/decisions/0003-many-cores.md.

use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::{Context as _, anyhow};
use crossbeam::channel::Receiver;

use super::board::{self, CoreCounters, PageCounters, Pools};
use super::clock::Clock;
use super::engine::Seed;
use super::inquiries::Inquiries;
use super::sleep::{NAP, NAP_BEFORE_FULL, SLEEP_MAX, Waker};
use super::state::random;
use super::{assemble, stores};
use crate::buf::{FragmentArena, PagePool};
use crate::control::inquiry::Inquiry;
use crate::control::metrics::{PUBLISH_INTERVAL_MS, Publisher};
use crate::control::signals::Stop;
use crate::net::capture::Captured;
use crate::net::dpdk_device::DpdkDevice;
use crate::net::interface::InterfaceEvent;
use crate::program::ProgramTable;
use crate::program::mount::MountList;
use crate::rpc::drc::SharedDrc;
use crate::shard::steering::Steering;
use crate::shard::{Lane, Shard};
use crate::store::Store;
use crate::time::{Duration, Instant};
use crate::{rpc, tcp};

/// Empty turns before a core thinks of sleeping: a few microseconds, in which the next frame of a busy client usually comes.
const TURNS_BEFORE_SLEEP: u32 = 64;

/// How often the ports are asked whether their links are up: some drivers answer with a system call.
const LINK_INTERVAL: Duration = Duration::from_secs(1);

/// The longest that a server which ends goes on sending resets, and how long it waits for what its devices have taken to leave their queues.
const RESETS_TIME_MAX: Duration = Duration::from_millis(500);
const RESETS_QUIET: Duration = Duration::from_millis(2);

/// A queue pair whose frames can be seen.
pub type ServingDevice = Captured<DpdkDevice>;

pub type ServingShard = Shard<ServingDevice, ProgramTable>;

/// What all cores have in common.
pub struct Common {
    pub seed: Seed,
    pub clock: Clock,
    pub handle_key: [u8; 16],
    pub drc: SharedDrc,
    pub mounts: Arc<MountList>,
    pub pools: Pools,
    /// Received buffers that the connections of one core may hold.
    pub driver_buffers_max: usize,
    /// A core with nothing to do sleeps (`cores.idle`).
    pub may_sleep: bool,
    pub cores: usize,
    /// Cores that have answered all they took.
    pub drained: AtomicUsize,
}

/// What one core is made of.
pub struct Parts {
    pub index: usize,
    /// The queue pairs that are this core's.
    pub lanes: Vec<Lane<ServingDevice>>,
    /// The lane of each port, if the core shares it.
    pub lane_of_port: Vec<Option<usize>>,
    /// By number of the store.
    pub stores: Vec<Box<dyn Store>>,
    /// Where there are other cores.
    pub steering: Option<Steering>,
    pub waker: Arc<Waker>,
    /// What the control plane asks.
    pub mailbox: Receiver<Inquiry>,
}

/// One core, ready to run on the thread that made it.
pub struct Core {
    common: Arc<Common>,
    index: usize,
    shard: ServingShard,
    lane_of_port: Vec<Option<usize>>,
    waker: Arc<Waker>,
    inquiries: Inquiries,
    publisher: Option<Publisher>,
    sleeps: u64,
    rules_seen: u64,
    /// When the links are looked at again.
    links_at: Instant,
}

impl Core {
    pub fn new(common: &Arc<Common>, parts: Parts) -> anyhow::Result<Core> {
        let Parts { index, lanes, lane_of_port, stores, steering, waker, mailbox } = parts;
        let mut shard = build_shard(common, lanes, stores)?;
        shard.set_cycle_counter(dpdk::cycles);
        if let Some(steering) = steering {
            shard.set_steering(steering);
        }
        Ok(Core {
            common: Arc::clone(common),
            index,
            shard,
            lane_of_port,
            waker,
            inquiries: Inquiries::new(index, mailbox),
            publisher: None,
            sleeps: 0,
            // The rules that the shard was built with are the first ones.
            rules_seen: 1,
            links_at: Instant::ZERO,
        })
    }

    pub fn shard(&self) -> &ServingShard {
        &self.shard
    }

    /// From now on the core's counters go there.
    pub fn publish_to(&mut self, publisher: Publisher) {
        self.publisher = Some(publisher);
    }

    /// Serves until asked to stop, then drains.
    pub fn run(&mut self) {
        let common = Arc::clone(&self.common);
        let mut idle_turns = 0;
        let mut publish_at = Instant::ZERO;
        while common.seed.stop.get() == Stop::No {
            let now = common.clock.now();
            if now >= publish_at {
                publish_at = now + Duration::from_millis(PUBLISH_INTERVAL_MS);
                self.housekeeping(now);
            }
            let listing = self.inquiries.is_listing();
            if listing {
                self.inquiries.step(&self.shard, now);
            }
            if self.shard.turn(now) > 0 || listing {
                idle_turns = 0;
                continue;
            }
            idle_turns += 1;
            if idle_turns >= TURNS_BEFORE_SLEEP && common.may_sleep {
                self.sleep(publish_at);
            } else {
                std::hint::spin_loop();
            }
        }
        self.drain();
    }

    /// What need not happen in every turn: links, counters, questions, changed export rules, events for the log.
    fn housekeeping(&mut self, now: Instant) {
        self.look_at_links(now);
        self.publish();
        self.inquiries.look(self.shard.lanes_mut(), &self.lane_of_port);
        if let Some(exports) = self.common.seed.rules.changed(&mut self.rules_seen) {
            match stores::export_table(&exports) {
                Ok(table) => self.shard.programs_mut().volumes_mut().set_exports(table),
                // The configuration was checked; if the table sees more than that, the old rules stay.
                Err(error) => tracing::error!(core = self.index, "the new export rules are not used: {error:#}"),
            }
        }
        let ports = self.common.seed.config.ports.iter().zip(&self.lane_of_port);
        for (port, lane) in ports.filter_map(|(port, lane)| Some((port, (*lane)?))) {
            while let Some(event) = self.shard.lanes_mut()[lane].interface.poll_event() {
                log(&port.device.name, event);
            }
        }
    }

    /// The first core has a queue of each port, and speaks for it. The first time is before anything is sent.
    fn look_at_links(&mut self, now: Instant) {
        if self.index > 0 || now < self.links_at {
            return;
        }
        self.links_at = now + LINK_INTERVAL;
        for lane in self.shard.lanes_mut() {
            let told = lane.device.inner().rx().link().map(|link| link.up);
            lane.interface.observe_link(now, told);
        }
    }

    /// Waits for a frame, a completion, another core, a timer or `until`, whichever is first.
    fn sleep(&mut self, until: Instant) {
        self.waker.prepare();
        let mut all_signal = true;
        for lane in self.shard.lanes_mut() {
            all_signal &= lane.device.inner().rx().arm_interrupt().is_ok();
        }
        // Something may have come before the devices were armed.
        let now = self.common.clock.now();
        if self.shard.turn(now) == 0 {
            let timer = self.shard.poll_timeout().unwrap_or(until).min(until);
            let has_backlog = self.shard.lanes_mut().iter_mut().any(|lane| lane.device.inner().tx().backlog() > 0);
            let is_held_up = has_backlog || self.shard.waits_for_device();
            let longest = match (all_signal, is_held_up) {
                (false, _) => NAP,
                (true, true) => NAP_BEFORE_FULL,
                (true, false) => SLEEP_MAX,
            };
            let wait = timer.since(now).min(longest);
            if !wait.is_zero() {
                self.sleeps += 1;
                let descriptors: smallvec::SmallVec<[BorrowedFd<'_>; 8]> =
                    self.shard.lanes_mut().iter_mut().filter_map(|lane| lane.device.inner().rx().event_fd()).collect();
                self.waker.sleep(&descriptors, wait);
            }
        }
        self.waker.cancel();
        for lane in self.shard.lanes_mut() {
            lane.device.inner().rx().disarm_interrupt();
        }
    }

    /// Answers what was taken, within the time the configuration gives, then resets what is left. A core that has nothing
    /// left still hands over what others wait for, until all are done.
    fn drain(&mut self) {
        let common = Arc::clone(&self.common);
        self.shard.drain();
        let deadline = common.clock.now() + Duration::from_millis(common.seed.config.limits.drain_ms_max.into());
        let mut told = false;
        loop {
            let now = common.clock.now();
            let worked = self.shard.turn(now) > 0;
            if !told && self.shard.is_drained() {
                told = true;
                common.drained.fetch_add(1, Ordering::Relaxed);
            }
            let all = common.drained.load(Ordering::Relaxed) >= common.cores;
            if all || now >= deadline || common.seed.stop.get() == Stop::Now {
                break;
            }
            if !worked {
                std::thread::sleep(NAP);
            }
        }
        self.send_resets();
        self.publish();
    }

    /// Tells the clients that are left. A device that is slower than this loop is waited for, one that takes nothing not for long.
    fn send_resets(&mut self) {
        let begun = self.common.clock.now();
        self.shard.abort_all(begun);
        let (mut now, mut last_work) = (begun, begun);
        while now.since(begun) < RESETS_TIME_MAX && (self.shard.has_transmit() || now.since(last_work) < RESETS_QUIET) {
            if self.shard.turn(now) > 0 {
                last_work = now;
            } else {
                std::thread::sleep(NAP);
            }
            now = self.common.clock.now();
        }
    }

    fn publish(&mut self) {
        if let Some(publisher) = &mut self.publisher {
            let core = CoreCounters { sleeps: self.sleeps };
            let pages = if self.index == 0 { self.common.pools.counters() } else { PageCounters::default() };
            let ports = self.common.seed.config.ports.iter();
            let lanes = self.lane_of_port.iter().copied().zip(ports.map(|port| port.has_ipv6()));
            board::publish(publisher, &mut self.shard, lanes, &core, &pages);
        }
    }
}

fn log(port: &str, event: InterfaceEvent) {
    match event {
        InterfaceEvent::AddressConflict { address, mac } => {
            tracing::error!(%address, ?mac, "another station uses this server's address");
        }
        InterfaceEvent::AddressDuplicate { address, mac } => {
            tracing::error!(%address, ?mac, "another station had this address first: it is not used");
        }
        InterfaceEvent::AddressAssigned { address } => tracing::info!(%address, "address is ready"),
        InterfaceEvent::AddressExpired { address } => {
            tracing::warn!(%address, "address no longer in use: no router tells its prefix")
        }
        InterfaceEvent::LinkUp => tracing::info!(%port, "the link is up"),
        InterfaceEvent::LinkDown => tracing::warn!(%port, "the link is down: nobody can reach this server there"),
    }
}

fn arena(fragments: &PagePool) -> anyhow::Result<FragmentArena> {
    FragmentArena::new(fragments.clone()).ok_or_else(|| anyhow!("memory.eal_mib is too small for reply heads"))
}

fn build_shard(common: &Common, lanes: Vec<Lane<ServingDevice>>, stores: Vec<Box<dyn Store>>) -> anyhow::Result<ServingShard> {
    let config = &common.seed.config;
    let fragments = &common.pools.fragments;
    let mut tcp = tcp::Endpoint::new(assemble::tcp_options(config, common.driver_buffers_max), random()?);
    // Bytes of records that peers do not complete must not take the room that everybody's replies need.
    let copy_out = FragmentArena::leaving(fragments.clone(), fragments.blocks() / 2);
    tcp.set_copy_out(copy_out.ok_or_else(|| anyhow!("memory.eal_mib is too small to copy received bytes"))?);
    for port in assemble::STREAM_PORTS {
        tcp.listen(port).with_context(|| format!("cannot listen on TCP port {port}"))?;
    }
    let rpc = rpc::Server::sharing(assemble::rpc_options(config, [0; 2]), arena(fragments)?, common.drc.clone());
    let programs = assemble::programs(config, stores, common.handle_key, Arc::clone(&common.mounts))?;
    Ok(Shard::new(lanes, tcp, rpc, programs, assemble::DATAGRAM_PORTS.to_vec()))
}
