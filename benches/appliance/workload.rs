//! What is measured: the rows of the goal table, and over which files.

/// Which part of the files is touched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Set {
    /// 1 GiB: far more than the caches of the CPU hold.
    Large,
    /// 4 MiB: in the last-level cache.
    Hot,
}

impl Set {
    /// Files and bytes of each.
    pub fn shape(self) -> (u32, u64) {
        match self {
            Set::Large => (16, 64 << 20),
            Set::Hot => (1, 4 << 20),
        }
    }

    pub fn name(self) -> &'static str {
        match self {
            Set::Large => "1 GiB",
            Set::Hot => "4 MiB",
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Workload {
    pub name: &'static str,
    /// As `nfsplice load --workload` takes it.
    pub mix: &'static str,
    /// A mix over the same files whose every byte read is compared.
    pub verified_mix: Option<&'static str>,
    pub bytes: u32,
    pub connections: u32,
    pub depth: u32,
    pub set: Set,
    /// Busy cycles of the server's core per operation that are aimed at.
    pub goal_cycles: Option<u32>,
    /// Whether the sendfile loop has something to compare with.
    pub sendfile: bool,
}

const fn read(name: &'static str, bytes: u32, depth: u32, set: Set, goal_cycles: Option<u32>) -> Workload {
    let verified_mix = Some("randread");
    Workload { name, mix: "randread", verified_mix, bytes, connections: 4, depth, set, goal_cycles, sendfile: true }
}

const fn small(name: &'static str, mix: &'static str, goal_cycles: Option<u32>, sendfile: bool) -> Workload {
    Workload { name, mix, verified_mix: None, bytes: 4096, connections: 4, depth: 32, set: Set::Hot, goal_cycles, sendfile }
}

pub const NULL: Workload = small("NULL", "null", Some(600), true);
pub const GETATTR: Workload = small("GETATTR", "getattr", Some(900), false);
pub const READ_4K: Workload = read("READ 4 KiB", 4 << 10, 32, Set::Large, Some(1_300));
pub const READ_64K: Workload = read("READ 64 KiB", 64 << 10, 8, Set::Large, Some(2_600));

pub const WRITE_64K: Workload = Workload {
    name: "WRITE 64 KiB",
    mix: "randwrite",
    verified_mix: Some("randread=50,randwrite=50"),
    bytes: 64 << 10,
    connections: 4,
    depth: 8,
    set: Set::Large,
    goal_cycles: Some(12_000),
    sendfile: false,
};

/// A connection opened, one call on it, and reset.
pub const CONNECT: Workload = Workload {
    name: "CONNECT",
    mix: "connect",
    verified_mix: None,
    bytes: 4096,
    connections: 64,
    depth: 1,
    set: Set::Hot,
    goal_cycles: None,
    sendfile: false,
};

/// The goal table, then the same READs out of a working set that stays in the CPU's cache.
pub const TABLE: [Workload; 9] = [
    NULL,
    GETATTR,
    READ_4K,
    READ_64K,
    read("READ 1 MiB", 1 << 20, 2, Set::Large, Some(26_000)),
    WRITE_64K,
    read("READ 4 KiB", 4 << 10, 32, Set::Hot, None),
    read("READ 64 KiB", 64 << 10, 8, Set::Hot, None),
    read("READ 1 MiB", 1 << 20, 2, Set::Hot, None),
];

/// READs of these sizes for the curves.
pub const SIZES: [u32; 6] = [4 << 10, 16 << 10, 64 << 10, 128 << 10, 256 << 10, 1 << 20];

impl Workload {
    pub fn full_name(&self) -> String {
        format!("{} ({})", self.name, self.set.name())
    }

    pub fn with_pace(self, connections: u32, depth: u32) -> Workload {
        Workload { connections, depth, ..self }
    }
}
