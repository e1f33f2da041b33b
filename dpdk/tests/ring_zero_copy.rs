//! Over net_ring the receiver sees the sender's own pages, and they are released once, when it lets go of them; also
//! after the queue and the port have gone. Copied payload is counted, and released at once.

mod common;

use std::sync::Barrier;

use common::{Memory, NO_OFFLOAD, pattern};
use dpdk::{Checksum, Error, PortOptions, mbuf::Mbuf};

#[test]
fn the_receiver_sees_the_senders_own_pages() {
    let eal = common::eal("ring_zero_copy", &["net_ring0"]);
    assert!(matches!(dpdk::Eal::init(&dpdk::EalOptions::default()), Err(Error::AlreadyInitialised)));
    let memory = Memory::new(&eal, 1 << 20);
    let mut port = common::open(&eal, "net_ring0", &PortOptions::default());
    assert!(matches!(dpdk::Port::<common::Piece>::open(&eal, "net_ring0", &PortOptions::default()), Err(Error::PortBusy(_))));
    assert!(matches!(
        dpdk::Port::<common::Piece>::open(&eal, "net_none", &PortOptions::default()),
        Err(Error::NoSuchPort { known, .. }) if known == "net_ring0"
    ));
    let mut tx = port.take_tx_queue(0).expect("a queue");
    let mut rx = port.take_rx_queue(0).expect("a queue");
    assert!(port.take_tx_queue(0).is_none());
    let mut received = Vec::with_capacity(64);

    // By reference, with an empty piece among the others.
    let header = [7u8; 82];
    let pieces = memory.pieces(4, 4096, 8192).chain([memory.piece(0, 0), memory.piece(99, 12)]);
    tx.push(&header, pieces, &NO_OFFLOAD).expect("room");
    assert_eq!((tx.backlog(), memory.live(), tx.holds_outstanding()), (1, 5, 1));
    assert_eq!(tx.flush(), 1);
    assert_eq!(rx.receive(&mut received), 1);
    let packet = received.pop().expect("received");
    assert_eq!((packet.len(), packet.segment_count()), (82 + 4 * 4096 + 12, 6));
    assert_eq!((packet.ip_checksum(), packet.rss_hash()), (Checksum::Unknown, None));
    assert!(!packet.is_external());
    let segments: Vec<&[u8]> = packet.segments().collect();
    assert_eq!(segments[0], header);
    let addresses: Vec<usize> = segments[1..].iter().map(|bytes| bytes.as_ptr() as usize).collect();
    let expected: Vec<usize> = [0, 8192, 16384, 24576, 99].map(|at| memory.address(at)).to_vec();
    assert_eq!(addresses, expected);
    assert!(segments[2].iter().enumerate().all(|(at, &byte)| byte == pattern(8192 + at)));
    assert_eq!(tx.counters().payload_bytes_copied, 0);
    assert_eq!(tx.counters().payload_bytes_referenced, 4 * 4096 + 12);
    assert_eq!((tx.counters().chains, tx.counters().segments), (1, 6));

    // Taken apart and dropped piece by piece: the last one releases the payload.
    let mut parts: Vec<Mbuf> = packet.into_segments().collect();
    assert_eq!(parts.iter().map(Mbuf::len).collect::<Vec<_>>(), [82, 4096, 4096, 4096, 4096, 12]);
    assert!(parts.iter().skip(1).all(|part| part.is_external() && part.segment_count() == 1));
    while parts.len() > 1 {
        parts.remove(0);
        assert_eq!(memory.live(), 5);
    }
    parts.clear();
    assert_eq!((memory.live(), tx.holds_outstanding(), tx.buffers_in_use()), (0, 0, (0, 0, 0)));

    // Copied: other addresses, same bytes, counted, payload free before the packet is sent.
    tx.push_copy(&header, memory.pieces(3, 4096, 4096), &NO_OFFLOAD).expect("room");
    assert_eq!((memory.live(), tx.counters().payload_bytes_copied), (0, 3 * 4096));
    assert_eq!(tx.flush(), 1);
    assert_eq!(rx.receive(&mut received), 1);
    let packet = received.pop().expect("received");
    let bytes: Vec<u8> = packet.segments().flatten().copied().collect();
    assert_eq!(bytes[..82], header);
    assert!(bytes[82..].iter().enumerate().all(|(at, &byte)| byte == pattern(at)));
    assert_eq!(bytes.len(), 82 + 3 * 4096);
    drop(packet);

    // A header alone needs no hold.
    tx.push(&header, [], &NO_OFFLOAD).expect("room");
    assert_eq!((tx.flush(), tx.holds_outstanding()), (1, 0));
    assert_eq!(rx.receive(&mut received), 1);
    received.clear();

    foreign_thread(&memory, &mut tx, &mut rx);
    assert_eq!(tx.buffers_in_use(), (0, 0, 0));

    // A backlog that was never flushed is released with the queue; a packet outlives queue, port and hold list.
    tx.push(&header, memory.pieces(2, 100, 100), &NO_OFFLOAD).expect("room");
    assert_eq!(tx.flush(), 1);
    tx.push(&header, memory.pieces(3, 100, 100), &NO_OFFLOAD).expect("room");
    assert_eq!(rx.receive(&mut received), 1);
    assert_eq!(memory.live(), 5);
    drop(tx);
    assert_eq!(memory.live(), 2);
    drop((rx, port));
    assert_eq!(memory.live(), 2);
    received.clear();
    assert_eq!(memory.live(), 0);
}

/// Packets dropped by threads that DPDK does not know, and by one that it does.
fn foreign_thread(memory: &Memory, tx: &mut dpdk::TxQueue<common::Piece>, rx: &mut dpdk::RxQueue) {
    let mut received = Vec::with_capacity(64);
    for register in [false, true] {
        for _ in 0..30 {
            tx.push(b"header", memory.pieces(16, 1000, 1000), &NO_OFFLOAD).expect("room");
        }
        tx.flush();
        while rx.receive(&mut received) > 0 {}
        assert_eq!((received.len(), memory.live()), (30, 480));
        let packets = std::mem::take(&mut received);
        let (half, other) =
            (packets.into_iter().flat_map(Mbuf::into_segments)).enumerate().partition::<Vec<_>, _>(|(at, _)| at % 2 == 0);
        let start = Barrier::new(2);
        std::thread::scope(|scope| {
            for part in [half, other] {
                let start = &start;
                scope.spawn(move || {
                    let known = register.then(|| dpdk::register_thread().expect("an lcore id is free"));
                    start.wait();
                    drop(part);
                    drop(known);
                });
            }
        });
        assert_eq!((memory.live(), tx.holds_outstanding()), (0, 0));
    }
}
