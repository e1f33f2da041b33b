//! What does not fit is refused with its reason, releases everything, and leaves the queue usable.

mod common;

use common::{Memory, NO_OFFLOAD};
use dpdk::{
    PortOptions, TxOffload, TxRefused,
    chain::{MAX_CHAIN_PIECES, MAX_PIECE_BYTES},
    tx::MAX_QUEUED_CHAINS,
};

#[test]
fn limits_are_refused_and_nothing_leaks() {
    let eal = common::eal("ring_limits", &["net_ring0"]);
    let memory = Memory::new(&eal, 1 << 20);
    let options = PortOptions { tx_pool_mbufs: Some(1024), ..PortOptions::default() };
    let mut port = common::open(&eal, "net_ring0", &options);
    let mut tx = port.take_tx_queue(0).expect("a queue");
    let mut rx = port.take_rx_queue(0).expect("a queue");
    let capabilities = port.capabilities().clone();
    assert!(capabilities.accepts_chains && !capabilities.tso && !capabilities.rx_interrupts);
    assert_eq!(capabilities.max_segments_per_packet, MAX_CHAIN_PIECES + 1);
    assert!(rx.event_fd().is_none() && rx.arm_interrupt().is_err());
    assert_eq!(tx.reclaim(), None);

    let refused = [
        tx.push(&[0; 257], [], &NO_OFFLOAD),
        tx.push(&[0; 80], [memory.piece(0, 100), memory.piece(0, MAX_PIECE_BYTES + 1)], &NO_OFFLOAD),
        tx.push(&[0; 80], memory.pieces(MAX_CHAIN_PIECES + 1, 10, 10), &NO_OFFLOAD),
        tx.push(
            &[0; 80],
            memory.pieces(1, 10, 10),
            &TxOffload { l2_len: 14, l3_len: 20, l4_len: 20, tso_mss: Some(1448), ..NO_OFFLOAD },
        ),
        tx.push(&[0; 80], memory.pieces(1, 10, 10), &TxOffload { l2_len: 14, tcp_checksum: true, ..NO_OFFLOAD }),
        tx.push_copy(&[0; 80], memory.pieces(40, 4096, 4096), &NO_OFFLOAD),
    ];
    let expected = [
        TxRefused::HeaderTooLong { bytes: 257, limit: 256 },
        TxRefused::PieceTooLong { bytes: MAX_PIECE_BYTES + 1 },
        TxRefused::TooManySegments { segments: MAX_CHAIN_PIECES + 2, limit: MAX_CHAIN_PIECES + 1 },
        TxRefused::OffloadUnavailable,
        TxRefused::OffloadInvalid,
        TxRefused::TooManySegments { segments: 81, limit: MAX_CHAIN_PIECES + 1 },
    ];
    assert_eq!(refused.map(Result::unwrap_err), expected);
    assert_eq!(tx.counters().refused_for_shape, expected.len() as u64);
    assert_eq!((memory.live(), tx.holds_outstanding(), tx.backlog()), (0, 0, 0));

    // The longest chain there is still passes.
    tx.push(&[0; 256], memory.pieces(MAX_CHAIN_PIECES, 10, 10), &NO_OFFLOAD).expect("at the limit");
    assert_eq!(tx.flush(), 1);

    // The pool runs out before the ring does.
    let mut taken = 1;
    let why = loop {
        match tx.push(&[0; 80], memory.pieces(64, 100, 100), &NO_OFFLOAD) {
            Ok(()) => taken += 1,
            Err(why) => break why,
        }
        tx.flush();
    };
    assert_eq!((why, taken), (TxRefused::NoBuffer, 1024 / 64));
    assert_eq!((memory.live(), tx.holds_outstanding()), (taken * 64, taken));
    assert_eq!(tx.counters().refused_for_room, 1);

    // A small one still goes out as a copy; then all come back and the queue works as before.
    tx.push_copy(&[0; 80], memory.pieces(2, 100, 100), &NO_OFFLOAD).expect("copies have their own pool");
    assert_eq!(tx.flush(), 1);
    let mut received = Vec::new();
    while rx.receive(&mut received) > 0 {}
    assert_eq!(received.len(), taken + 1);
    received.clear();
    assert_eq!((memory.live(), tx.holds_outstanding(), tx.buffers_in_use()), (0, 0, (0, 0, 0)));
    assert_eq!(rx.counters().packets, taken as u64 + 1);

    // The backlog's own limit.
    for _ in 0..MAX_QUEUED_CHAINS {
        tx.push(&[0; 60], [], &NO_OFFLOAD).expect("room");
    }
    assert_eq!(tx.backlog_room(), 0);
    assert_eq!(tx.push(&[0; 60], memory.pieces(1, 1, 1), &NO_OFFLOAD), Err(TxRefused::QueueFull));
    assert_eq!(tx.flush(), MAX_QUEUED_CHAINS);
    // The ring takes 1,023 packets in all; the rest stays queued, in order, and goes later.
    for _ in 0..MAX_QUEUED_CHAINS {
        tx.push(&[0; 60], [], &NO_OFFLOAD).expect("room");
    }
    assert_eq!(tx.flush(), MAX_QUEUED_CHAINS - 1);
    assert_eq!((tx.backlog(), tx.counters().descriptors_full), (1, 1));
    while rx.receive(&mut received) > 0 {}
    received.clear();
    assert_eq!((tx.flush(), tx.backlog()), (1, 0));
    assert_eq!(rx.receive(&mut received), 1);
}
