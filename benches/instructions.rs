//! What one call costs the server in instructions: run by `scripts/instructions.sh` under callgrind, which collects inside
//! `Rig::measured_turn` only: the server's turns once everything is warm.
//!
//! A round is DEPTH calls on each of CONNECTIONS connections, queued together, and all of their replies: with more than one
//! call outstanding several come in one segment and several replies leave in one chain. Everything between frames received
//! and chains handed to the device is in it: interface, TCP, RPC, NFSv3, store, and acknowledgements coming in. The device is
//! the rig's reference NIC: it takes chains by reference, fills in checksums and cuts (TSO), as DPDK drivers do; the client's
//! share, and making frames of chains, lie outside of what is collected. Turns that find nothing to do are collected too; they
//! are counted apart, and `idle` measures what one costs.

#[path = "../tests/support/mod.rs"]
mod support;

use nfsplice::net::memory_link::EndOptions;
use nfsplice::shard::ShardCounters;
use nfsplice::time::Duration;
use support::nfs::{self, Args};
use support::reference_nic::{ReferenceNic, Traffic, Wire};
use support::server::Setup;
use support::{CLIENT_MAC, Rig, SERVER, SERVER_MAC};

/// The appliance's allocator: received frames are given back to it.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const USAGE: &str = "instructions null|getattr|read|write|idle ROUNDS [BYTES BLOCK_BYTES coalesced|single DEPTH CONNECTIONS]";
/// Calls of each connection before those that are counted: the congestion window opens, every table has its size.
const WARM_UP: usize = 50;
const FILE_BYTES: usize = 1 << 20;
/// Virtual time after which a round has failed.
const ROUND_TIMEOUT: Duration = Duration::from_secs(100);

struct Load {
    rig: Rig<ReferenceNic, Wire>,
    wire: Wire,
    streams: Vec<usize>,
    depth: usize,
    procedure: u32,
    arguments: Args,
}

#[derive(Clone, Copy)]
struct Sample {
    out: Traffic,
    turns: ShardCounters,
}

impl Load {
    /// `depth` calls on each connection, and all their replies.
    fn round(&mut self) {
        let now = self.rig.now;
        for &stream in &self.streams {
            let records: Vec<Vec<u8>> = (0..self.depth)
                .map(|_| nfs::record(&nfs::call(self.rig.client.next_xid(), self.procedure, &self.arguments)))
                .collect();
            self.rig.client.send(now, stream, &records.concat());
        }
        let (streams, depth) = (&self.streams, self.depth);
        let answered = self.rig.run(ROUND_TIMEOUT, |rig| streams.iter().all(|&at| rig.client.streams[at].replies.len() == depth));
        assert!(answered, "replies are missing at {:?}", self.rig.now);
        for &stream in streams {
            for reply in self.rig.client.streams[stream].replies.drain(..) {
                let (_, mut results) = nfs::accepted(reply).expect("an accepted call");
                assert!(self.procedure == nfs::NULL || results.u32() == nfs::NFS3_OK);
            }
        }
    }

    fn sample(&self) -> Sample {
        Sample { out: self.wire.traffic(SERVER), turns: *self.rig.server.shard.counters() }
    }
}

fn load(words: &[&str]) -> Load {
    let number = |at: usize, default: usize| words.get(at).map_or(default, |word| word.parse().expect(USAGE));
    let (bytes, block_bytes) = (number(2, 0), number(3, 64 << 10));
    let (depth, connections) = (number(5, 1), number(6, 1));
    let mtu = 1500;
    let setup = Setup { mtu, block_bytes, cache_blocks: (4 << 20) / block_bytes, ..Setup::default() };
    let mut end = EndOptions::offloading(SERVER_MAC, mtu);
    // As ice and i40e: a descriptor for each buffer, hundreds of them per chain.
    end.capabilities.segments_per_packet_max = 8;
    end.capabilities.segments_tso_max = 255;
    let (wire, client, server) = Wire::pair([EndOptions::offloading(CLIENT_MAC, mtu), end]);
    if words.get(4) != Some(&"single") {
        wire.coalesce(SERVER);
    }
    let mut rig = Rig::new(&setup, wire.clone(), client, server);
    let streams: Vec<usize> = (0..connections).map(|_| rig.connect()).collect();
    let file = rig.create(streams[0], b"file");
    rig.write(streams[0], &file, 0, &vec![0x5a; FILE_BYTES]);
    let (procedure, arguments) = match words[0] {
        "null" | "idle" => (nfs::NULL, Args::new()),
        "getattr" => (nfs::GETATTR, Args::new().opaque(&file)),
        "read" => (nfs::READ, nfs::read(&file, 0, bytes as u32)),
        "write" => (nfs::WRITE, nfs::write_unstable(&file, 0, &vec![0xa5; bytes])),
        _ => panic!("{USAGE}"),
    };
    Load { rig, wire, streams, depth, procedure, arguments }
}

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).filter(|argument| argument != "--bench").collect();
    // `cargo bench` and `cargo test --benches` without the script: one short run shows that it works.
    let words: Vec<&str> = match arguments.is_empty() {
        true => vec!["read", "2", "65536", "65536", "coalesced", "4", "2"],
        false => arguments.iter().map(String::as_str).collect(),
    };
    let rounds: usize = words.get(1).map_or(0, |word| word.parse().expect(USAGE));
    let mut load = load(&words);
    for _ in 0..WARM_UP.div_ceil(load.depth) {
        load.round();
    }
    load.rig.measured = true;
    let before = load.sample();
    for _ in 0..rounds {
        match words[0] {
            "idle" => assert_eq!(load.rig.server_turn(), 0, "there was something to do"),
            _ => load.round(),
        }
    }
    let after = load.sample();
    let calls = (rounds * load.depth * load.streams.len()).max(1);
    let per_call = |value: fn(&Sample) -> u64| (value(&after) - value(&before)) as f64 / calls as f64;
    println!(
        "calls {calls} chains {:.2} segments {:.2} payload {:.0} frames_in {:.2} turns {:.2} idle {:.2}",
        per_call(|sample| sample.out.chains),
        per_call(|sample| sample.out.segments),
        per_call(|sample| sample.out.payload_bytes),
        per_call(|sample| sample.turns.frames_in),
        per_call(|sample| sample.turns.turns_busy),
        per_call(|sample| sample.turns.turns_idle),
    );
}
