//! A million chains, dropped by two other threads while the sender goes on: every reference comes back.

mod common;

use common::{Memory, NO_OFFLOAD};
use dpdk::{Mbuf, PortOptions};

const CHAINS: usize = 1_000_000;

#[test]
fn a_million_chains_leave_no_reference() {
    let eal = common::eal("ring_million", &["net_ring0"]);
    let memory = Memory::new(&eal, 1 << 20);
    let mut port = common::open(&eal, "net_ring0", &PortOptions::default());
    let mut tx = port.take_tx_queue(0).expect("a queue");
    let mut rx = port.take_rx_queue(0).expect("a queue");
    let (sender, receiver) = crossbeam::channel::bounded::<Vec<Mbuf>>(64);
    std::thread::scope(|scope| {
        for _ in 0..2 {
            let receiver = receiver.clone();
            scope.spawn(move || {
                let _known = dpdk::register_thread().expect("an lcore id is free");
                receiver.iter().for_each(drop);
            });
        }
        drop(receiver);
        let mut queued = 0;
        let mut received = 0;
        while received < CHAINS {
            while queued < CHAINS && queued % 32 != 31 {
                let pieces = memory.pieces(1 + queued % 5, 1448, 4096);
                // NoBuffer: the other threads still have them all.
                if tx.push(&[1; 66], pieces, &NO_OFFLOAD).is_err() {
                    break;
                }
                queued += 1;
            }
            if queued < CHAINS && queued % 32 == 31 && tx.push(&[1; 66], [], &NO_OFFLOAD).is_ok() {
                queued += 1;
            }
            tx.flush();
            let mut burst = Vec::with_capacity(64);
            received += rx.receive(&mut burst);
            if burst.is_empty() {
                std::thread::yield_now();
            } else {
                sender.send(burst).expect("threads are waiting");
            }
        }
        drop(sender);
    });
    assert_eq!(tx.counters().chains, CHAINS as u64);
    assert_eq!((memory.live(), tx.holds_outstanding(), tx.buffers_in_use()), (0, 0, (0, 0, 0)));
    assert_eq!(tx.counters().payload_bytes_copied, 0);
}
