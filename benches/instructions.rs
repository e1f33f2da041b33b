//! What one call costs the server in instructions: run by `scripts/instructions.sh` under callgrind, which collects inside
//! `Rig::server_turn` only, once with COUNT calls and once with twice as many; the difference is the calls'.
//!
//! Everything between frames received and chains handed to the device is in it: interface, TCP, RPC, NFSv3, store, and
//! acknowledgements coming in. The device is the rig's reference NIC: it takes chains by reference, fills in checksums and
//! cuts (TSO), as DPDK drivers do; the client's share, and making frames of chains, lie outside of what is collected.

#[path = "../tests/support/mod.rs"]
mod support;

use nfsplice::net::memory_link::EndOptions;
use support::nfs::{self, Args};
use support::reference_nic::Wire;
use support::server::Setup;
use support::{CLIENT, CLIENT_MAC, Rig, SERVER, SERVER_MAC};

const USAGE: &str = "instructions null|getattr|read COUNT [BYTES BLOCK_BYTES coalesced|single]";
/// Calls before those that are counted: the congestion window opens, every table has its size.
const WARM_UP: usize = 50;
const FILE_BYTES: usize = 1 << 20;

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).filter(|argument| argument != "--bench").collect();
    // `cargo bench` and `cargo test --benches` without the script: one short run shows that it works.
    let words: Vec<&str> = match arguments.is_empty() {
        true => vec!["read", "10", "65536", "65536", "coalesced"],
        false => arguments.iter().map(String::as_str).collect(),
    };
    let number = |at: usize, default: usize| words.get(at).map_or(default, |word| word.parse().expect(USAGE));
    let (count, bytes, block_bytes) = (number(1, 0), number(2, 0), number(3, 64 << 10));
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
    let stream = rig.connect();
    let file = rig.create(stream, b"file");
    rig.write(stream, &file, 0, &vec![0x5a; FILE_BYTES]);
    let (procedure, call) = match words[0] {
        "null" => (nfs::NULL, Args::new()),
        "getattr" => (nfs::GETATTR, Args::new().opaque(&file)),
        "read" => (nfs::READ, nfs::read(&file, 0, bytes as u32)),
        _ => panic!("{USAGE}"),
    };
    for _ in 0..WARM_UP {
        rig.call(stream, procedure, &call);
    }
    let before = (wire.traffic(SERVER), wire.traffic(CLIENT));
    for _ in 0..count {
        rig.call(stream, procedure, &call);
    }
    let after = (wire.traffic(SERVER), wire.traffic(CLIENT));
    let per_call = |before: u64, after: u64| (after - before) as f64 / count.max(1) as f64;
    println!(
        "chains {:.1} segments {:.1} payload {:.0} frames_in {:.1}",
        per_call(before.0.chains, after.0.chains),
        per_call(before.0.segments, after.0.segments),
        per_call(before.0.payload_bytes, after.0.payload_bytes),
        per_call(before.1.chains, after.1.chains),
    );
}
