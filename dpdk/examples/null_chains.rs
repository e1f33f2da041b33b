//! Cycles per transmitted chain on net_null: header mbuf + N pieces of 4 KiB, by reference and copied.
//!
//! `cargo run --release -p dpdk --example null_chains [CHAINS]`. net_null frees at once, so this is the cost of
//! building a chain, the driver call, and releasing it. For comparison, the same layout in C with one shared info per
//! reply took 126 to 136 cycles for 4 segments and 1,024 to 1,101 for 16 on an EPYC at 2.6 GHz.

use dpdk::{Eal, EalOptions, Port, PortOptions, TxOffload, TxPayload, TxQueue, Zone, cycles};

const PIECE_BYTES: usize = 4096;
const BURST: usize = 32;

/// A piece of memory that lives as long as the process.
struct Forever(&'static Zone, u32);

// SAFETY: the zone is leaked and never written; one 4 KiB piece lies within one page of it.
unsafe impl TxPayload for Forever {
    fn as_ptr(&self) -> *const u8 {
        self.0.as_ptr().as_ptr().wrapping_add(self.1 as usize)
    }
    fn len(&self) -> usize {
        PIECE_BYTES
    }
    fn iova(&self) -> u64 {
        self.0.iova_of(self.1 as usize)
    }
}

fn main() -> Result<(), dpdk::Error> {
    let chains = std::env::args().nth(1).and_then(|text| text.parse().ok()).unwrap_or(1_000_000);
    let eal = Eal::init(&EalOptions {
        hugepages: false,
        memory_mib: 256,
        file_prefix: format!("null_chains_{}", std::process::id()),
        vdevs: vec!["net_null0".to_owned()],
        log_level: Some("error".to_owned()),
        ..EalOptions::default()
    })?;
    let zone = Box::leak(Box::new(Zone::reserve(&eal, "pages", 64 << 20, 64 << 10, -1)?));
    let mut port: Port<Forever> = Port::open(&eal, "net_null0", &PortOptions::default())?;
    let mut tx = port.take_tx_queue(0).expect("not given out yet");
    println!("{:>8} {:>10} {:>14} {:>14}", "pieces", "how", "cycles/chain", "ns/chain");
    for pieces in [1, 4, 16] {
        for copy in [false, true] {
            let best = (0..3).map(|_| run(&mut tx, zone, chains, pieces, copy)).fold(f64::MAX, f64::min);
            let nanoseconds = best * 1e9 / dpdk::cycles_hz() as f64;
            let how = if copy { "copy" } else { "reference" };
            println!("{pieces:>8} {how:>10} {best:>14.0} {nanoseconds:>14.1}");
        }
    }
    Ok(())
}

/// Cycles per chain.
fn run(tx: &mut TxQueue<Forever>, zone: &'static Zone, chains: usize, pieces: usize, copy: bool) -> f64 {
    let header = [0u8; 82];
    let (mut at, mut taken) = (0, Vec::new());
    let start = cycles();
    for _ in 0..chains / BURST {
        for _ in 0..BURST {
            let payload = (0..pieces).map(|_| {
                at = (at + PIECE_BYTES) % zone.len();
                Forever(zone, at as u32)
            });
            let queued = if copy {
                tx.push_copy(&header, payload, &TxOffload::default())
            } else {
                taken.extend(payload);
                tx.push_taking(&header, &mut taken, &TxOffload::default())
            };
            queued.expect("net_null frees at once");
        }
        tx.flush();
    }
    (cycles() - start) as f64 / (chains / BURST * BURST) as f64
}
