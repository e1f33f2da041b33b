//! Two server cores against one, on a machine that has only two.
//!
//! There is no third CPU for clients, so the load is simulated: each of two threads, pinned to a CPU, runs a whole server shard
//! and its clients (the rig of `tests/support/`, on the reference NIC), and only the cycles of the shard's turns are counted, by the
//! server's own meter. The shards are what the cores of one server are: one store, one duplicate request cache, the same page
//! pools. Both threads begin each stretch of serving together, so that what they share is fought over as it would be by cores
//! that do nothing else; while the clients work neither serves.
//!
//! A core that does nothing but serve answers 1 / (cycles of a call) calls a cycle: the figure is the sum of both over the same of
//! one core alone. Not in it: what the CPUs share by nature (last-level cache, memory bandwidth) is, a NIC's share is not.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use anyhow::{Context, Result};
use nfsplice::buf::PagePool;
use nfsplice::net::memory_link::EndOptions;
use nfsplice::rpc::drc::SharedDrc;
use nfsplice::time::Duration;
use serde::{Deserialize, Serialize};

use crate::measure::median;
use crate::process;
use crate::support::nfs::{self, Args};
use crate::support::reference_nic::{ReferenceNic, Wire};
use crate::support::server::{Setup, Shared, memory};
use crate::support::{CLIENT_MAC, Rig, SERVER, SERVER_MAC};

/// How many times the calls of one core two of them have to answer.
pub const TIMES_WANTED: f64 = 1.8;

const MTU: u16 = 1500;
const BLOCK_BYTES: usize = 64 << 10;
/// The files of both cores together: 256 MiB, well beyond what a CPU's own caches hold.
const FILES: usize = 16;
const FILE_BYTES: usize = 16 << 20;
/// For the replies in flight and blocks that are being written.
const SPARE_BLOCKS: usize = 512;
const CONNECTIONS: usize = 4;
/// Stretches of serving that are counted, after as many that are not.
const STRETCHES: usize = 1500;
/// Of the virtual clock, for each stretch: acknowledgements are never late.
const STRETCH: Duration = Duration::from_micros(50);
const ROUNDS: usize = 3;
/// What all of it may take.
const TIME_MAX: std::time::Duration = std::time::Duration::from_secs(240);
/// Turns in one stretch; more would be a livelock.
const TURNS_MAX: usize = 1000;

#[derive(Clone, Copy)]
struct Workload {
    name: &'static str,
    procedure: u32,
    bytes: usize,
    depth: usize,
}

const WORKLOADS: [Workload; 5] = [
    Workload { name: "NULL", procedure: nfs::NULL, bytes: 0, depth: 32 },
    Workload { name: "GETATTR", procedure: nfs::GETATTR, bytes: 0, depth: 32 },
    Workload { name: "READ 4 KiB", procedure: nfs::READ, bytes: 4 << 10, depth: 32 },
    Workload { name: "READ 64 KiB", procedure: nfs::READ, bytes: 64 << 10, depth: 8 },
    Workload { name: "WRITE 64 KiB", procedure: nfs::WRITE, bytes: 64 << 10, depth: 2 },
];

/// Lets the threads of a measurement go on together. Spins: a sleeper would come late.
struct Gate {
    parties: usize,
    arrived: AtomicUsize,
}

impl Gate {
    fn new(parties: usize) -> Gate {
        Gate { parties, arrived: AtomicUsize::new(0) }
    }

    fn pass(&self) {
        let mine = self.arrived.fetch_add(1, Ordering::AcqRel);
        let all = (mine / self.parties + 1) * self.parties;
        while self.arrived.load(Ordering::Acquire) < all {
            std::hint::spin_loop();
        }
    }
}

/// One core and its clients.
struct Core {
    rig: Rig<ReferenceNic, Wire>,
    streams: Vec<usize>,
    files: Vec<Vec<u8>>,
    random: u64,
    payload: Vec<u8>,
}

impl Core {
    /// Makes its part of the files; the others' it knows later.
    fn new(setup: &Setup, index: usize, active: usize) -> Core {
        let mut end = EndOptions::offloading(SERVER_MAC, MTU);
        end.capabilities.segments_per_packet_max = 8;
        end.capabilities.segments_tso_max = 255;
        let (wire, client, server) = Wire::pair([EndOptions::offloading(CLIENT_MAC, MTU), end]);
        wire.coalesce(SERVER);
        let mut rig = Rig::new(setup, wire, client, server);
        rig.server.shard.set_cycle_counter(dpdk::cycles);
        let streams: Vec<usize> = (0..CONNECTIONS).map(|_| rig.connect()).collect();
        let files = (0..FILES / active)
            .map(|nth| {
                let file = rig.create(streams[0], format!("core{index}-{nth}").as_bytes());
                let chunk = vec![nth as u8; 1 << 20];
                (0..FILE_BYTES >> 20).for_each(|at| rig.write(streams[0], &file, (at << 20) as u64, &chunk));
                file
            })
            .collect();
        Core { rig, streams, files, random: 0x9e37_79b9_7f4a_7c15 ^ index as u64, payload: vec![7; 64 << 10] }
    }

    fn below(&mut self, bound: usize) -> usize {
        // xorshift64: places in files, the same in every run.
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        (self.random % bound as u64) as usize
    }

    fn arguments(&mut self, workload: &Workload) -> Args {
        let file = self.below(self.files.len());
        let offset = (self.below(FILE_BYTES / workload.bytes.max(4096)) * workload.bytes.max(4096)) as u64;
        match workload.procedure {
            nfs::NULL => Args::new(),
            nfs::GETATTR => Args::new().opaque(&self.files[file]),
            nfs::READ => nfs::read(&self.files[file], offset, workload.bytes as u32),
            _ => nfs::write_unstable(&self.files[file], offset, &self.payload),
        }
    }

    /// The clients take their replies and make the calls that are not outstanding.
    fn ask(&mut self, workload: &Workload, outstanding: &mut [usize]) {
        let now = self.rig.now;
        self.rig.client.turn(now);
        for (nth, outstanding) in outstanding.iter_mut().enumerate() {
            let stream = self.streams[nth];
            for reply in self.rig.client.streams[stream].replies.drain(..) {
                let (_, mut results) = nfs::accepted(reply).expect("an accepted call");
                assert!(workload.procedure == nfs::NULL || results.u32() == nfs::NFS3_OK);
                *outstanding -= 1;
            }
            let mut records = Vec::new();
            while *outstanding < workload.depth {
                let arguments = self.arguments(workload);
                records.extend(nfs::record(&nfs::call(self.rig.client.next_xid(), workload.procedure, &arguments)));
                *outstanding += 1;
            }
            self.rig.client.send(now, stream, &records);
        }
        self.rig.client.turn(now);
    }

    /// Cycles of the shard for each call.
    fn run(&mut self, workload: &Workload, gate: &Gate) -> f64 {
        let mut outstanding = [0; CONNECTIONS];
        let sample = |core: &Core| (core.rig.server.shard.cycles().busy, core.rig.server.shard.rpc().counters().rpccnt);
        let mut before = sample(self);
        for stretch in 0..2 * STRETCHES {
            if stretch == STRETCHES {
                before = sample(self);
            }
            self.ask(workload, &mut outstanding);
            gate.pass();
            let mut turns = 0;
            while self.rig.server.shard.turn(self.rig.now) > 0 {
                turns += 1;
                assert!(turns < TURNS_MAX, "the shard is busy for ever");
            }
            gate.pass();
            self.rig.now += STRETCH;
        }
        let after = sample(self);
        // What is outstanding ends with this run.
        self.rig.settle();
        for &stream in &self.streams {
            self.rig.client.streams[stream].replies.clear();
        }
        (after.0 - before.0) as f64 / (after.1 - before.1).max(1) as f64
    }
}

fn setup() -> Setup {
    let blocks = FILES * FILE_BYTES / BLOCK_BYTES + SPARE_BLOCKS;
    let cache = PagePool::anonymous(blocks, BLOCK_BYTES).expect("memory");
    let fragments = PagePool::anonymous(1024, BLOCK_BYTES).expect("memory");
    let mut setup =
        Setup { mtu: MTU, block_bytes: BLOCK_BYTES, cache: Some(cache.clone()), fragments: Some(fragments), ..Setup::default() };
    setup.shared = Some(Shared { store: memory(&cache), drc: SharedDrc::new(setup.rpc.drc, 2) });
    setup
}

/// Each core's cycles for a call of each workload, `active` cores serving at a time.
fn cycles(setup: &Setup, active: usize) -> Vec<Vec<f64>> {
    let gate = Arc::new(Gate::new(active));
    let files = Arc::new(Mutex::new(Vec::new()));
    let threads: Vec<_> = (0..active)
        .map(|index| {
            let (setup, gate, files) = (setup.clone(), Arc::clone(&gate), Arc::clone(&files));
            std::thread::spawn(move || {
                core_affinity::set_for_current(core_affinity::CoreId { id: index });
                let mut core = Core::new(&setup, index, active);
                files.lock().expect("no thread panicked").extend(core.files.clone());
                gate.pass();
                // Every core asks for everybody's files.
                core.files = files.lock().expect("no thread panicked").clone();
                WORKLOADS.iter().map(|workload| core.run(workload, &gate)).collect()
            })
        })
        .collect();
    threads.into_iter().map(|thread| thread.join().expect("a core's thread")).collect()
}

/// One workload's figures.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Scaling {
    pub workload: String,
    /// Cycles of a call on one core alone, and on each of two.
    pub one: f64,
    pub two: f64,
    /// Calls that two cores answer for each call of one.
    pub times: f64,
}

/// In a process of its own, so that its memory goes with it.
pub fn measure() -> Result<Vec<Scaling>> {
    let mut command = std::process::Command::new(std::env::current_exe()?);
    command.arg("cores");
    let output = process::run(command, TIME_MAX)?;
    serde_json::from_slice(&output.stdout).context("figures of two cores")
}

/// Alone and together in turn, so that noise hits both alike. Each measurement starts with an empty store.
pub fn scaling() -> Vec<Scaling> {
    let mut alone = vec![Vec::new(); WORKLOADS.len()];
    let mut together = vec![Vec::new(); WORKLOADS.len()];
    for _ in 0..ROUNDS {
        let one = cycles(&setup(), 1);
        let two = cycles(&setup(), 2);
        for at in 0..WORKLOADS.len() {
            alone[at].push(1.0 / one[0][at]);
            together[at].push(1.0 / two[0][at] + 1.0 / two[1][at]);
        }
    }
    let figures = |(at, workload): (usize, &Workload)| Scaling {
        workload: workload.name.to_owned(),
        one: 1.0 / median(alone[at].clone()),
        two: 2.0 / median(together[at].clone()),
        times: median(together[at].iter().zip(&alone[at]).map(|(two, one)| two / one).collect()),
    };
    WORKLOADS.iter().enumerate().map(figures).collect()
}
