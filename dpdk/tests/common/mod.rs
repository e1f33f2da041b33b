//! What the tests of this folder share. DPDK can be started once per process: one test per file.
#![allow(dead_code, reason = "each test uses a part")]

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use dpdk::{Eal, EalOptions, Port, PortOptions, TxOffload, TxPayload, Zone};

/// A piece of a zone, counted: `live` is how many exist.
pub struct Piece {
    zone: Arc<Zone>,
    offset: usize,
    length: usize,
    live: Arc<AtomicUsize>,
}

impl Drop for Piece {
    fn drop(&mut self) {
        let before = self.live.fetch_sub(1, Ordering::SeqCst);
        assert!(before > 0, "a piece was dropped twice");
    }
}

// SAFETY: the range lies in the zone, which the piece keeps; nothing writes to the zone after `Memory::new`; within one
// page of the zone the IOVA is contiguous, and tests run with virtual IOVAs anyway.
unsafe impl TxPayload for Piece {
    fn as_ptr(&self) -> *const u8 {
        self.zone.as_ptr().as_ptr().wrapping_add(self.offset)
    }
    fn len(&self) -> usize {
        self.length
    }
    fn iova(&self) -> u64 {
        self.zone.iova_of(self.offset)
    }
}

/// A zone filled with a pattern, and a count of the pieces of it that exist.
pub struct Memory {
    zone: Arc<Zone>,
    pub live: Arc<AtomicUsize>,
}

impl Memory {
    pub fn new(eal: &Eal, bytes: usize) -> Memory {
        let zone = Zone::reserve(eal, "test", bytes, 64 << 10, -1).expect("memory");
        for at in 0..bytes {
            // SAFETY: inside the zone, before anything else knows it.
            unsafe { zone.as_ptr().add(at).write(pattern(at)) };
        }
        Memory { zone: Arc::new(zone), live: Arc::default() }
    }

    pub fn piece(&self, offset: usize, length: usize) -> Piece {
        assert!(offset + length.max(1) <= self.zone.len());
        self.live.fetch_add(1, Ordering::SeqCst);
        Piece { zone: Arc::clone(&self.zone), offset, length, live: Arc::clone(&self.live) }
    }

    /// `count` pieces of `length` bytes, one behind the other, `stride` apart.
    pub fn pieces(&self, count: usize, length: usize, stride: usize) -> impl Iterator<Item = Piece> {
        (0..count).map(move |at| self.piece(at * stride, length))
    }

    pub fn address(&self, offset: usize) -> usize {
        self.zone.as_ptr().as_ptr() as usize + offset
    }

    pub fn live(&self) -> usize {
        self.live.load(Ordering::SeqCst)
    }
}

pub fn pattern(at: usize) -> u8 {
    (at.wrapping_mul(31) ^ (at >> 8)) as u8
}

/// Starts DPDK without hugepages, on the first CPU this process may use.
pub fn eal(name: &str, vdevs: &[&str]) -> Eal {
    let status = std::fs::read_to_string("/proc/self/status").expect("procfs");
    let allowed = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:")).expect("a CPU list");
    let first: String = allowed.trim().chars().take_while(char::is_ascii_digit).collect();
    Eal::init(&EalOptions {
        lcores: vec![first.parse().expect("a CPU number")],
        hugepages: false,
        memory_mib: 256,
        file_prefix: format!("{name}_{}", std::process::id()),
        vdevs: vdevs.iter().map(|&device| device.to_owned()).collect(),
        log_level: Some("error".to_owned()),
        pin_calling_thread: false,
        ..EalOptions::default()
    })
    .expect("DPDK starts")
}

pub fn open(eal: &Eal, name: &str, options: &PortOptions) -> Port<Piece> {
    Port::open(eal, name, options).expect("the port opens")
}

pub const NO_OFFLOAD: TxOffload = TxOffload {
    l2_len: 0,
    l3_len: 0,
    l4_len: 0,
    ipv6: false,
    ip_checksum: false,
    tcp_checksum: false,
    udp_checksum: false,
    tso_mss: None,
};
