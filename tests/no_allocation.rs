//! No heap allocation per READ hit and per GETATTR in steady state: a counting allocator around the turns of the server.
//!
//! Only what happens inside `Shard::turn` is counted. The device is the rig's reference NIC, which allocates nothing there:
//! frames to be received were made outside the turn, chains to be sent go into records that are used again. Nothing has to be
//! left out, so the count is the whole server's: interface, TCP, RPC, NFSv3, the store and the loop itself. Each store is measured; what
//! the I/O threads of the local one allocate is not counted, and a hit never asks them.

mod support;

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};

use nfsplice::net::memory_link::EndOptions;
use nfsplice::time::Duration;
use support::nfs::{self, Args};
use support::reference_nic::{ReferenceNic, Wire};
use support::server::Setup;
use support::{CLIENT_MAC, Rig, SERVER_MAC};

struct Counting;

thread_local! {
    static COUNTED: Cell<u64> = const { Cell::new(0) };
    static ON: Cell<bool> = const { Cell::new(false) };
    static TRACE: Cell<bool> = const { Cell::new(false) };
}

fn count() {
    if ON.get() {
        COUNTED.set(COUNTED.get() + 1);
        if TRACE.get() {
            ON.set(false);
            eprintln!("allocation at\n{}", std::backtrace::Backtrace::force_capture());
            ON.set(true);
        }
    }
}

// SAFETY: every call is handed to the system's allocator unchanged; counting touches only thread-local cells, which neither
// allocate nor unwind.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: the caller's promises are those of `System.alloc`.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: as above.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count();
        // SAFETY: as above; `pointer` came from `System` because nothing else is ever returned.
        unsafe { System.realloc(pointer, layout, size) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: as above.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn on() {
    ON.set(true);
}

fn off() {
    ON.set(false);
}

const WARM_UP: usize = 300;
const MEASURED: usize = 300;

/// A folder of the host that goes away with the test.
struct Folder(PathBuf);

impl Folder {
    fn new() -> Folder {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("nfsplice-no-allocation-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let path = std::env::temp_dir().join(name);
        std::fs::create_dir_all(&path).unwrap();
        // The rig's caller is nobody in particular.
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o777)).unwrap();
        Folder(path)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn rig(mtu: u16, directory: Option<&Folder>) -> Rig<ReferenceNic, Wire> {
    let setup = Setup { mtu, directory: directory.map(|folder| folder.0.clone()), ..Setup::default() };
    let (wire, client, server) = Wire::pair([EndOptions::offloading(CLIENT_MAC, mtu), EndOptions::offloading(SERVER_MAC, mtu)]);
    Rig::new(&setup, wire, client, server)
}

/// Allocations in `MEASURED` calls of a kind, after as many as it takes to warm up.
fn allocations(directory: Option<&Folder>, procedure: u32, arguments: &dyn Fn(&[u8]) -> Args) -> u64 {
    let mut rig = rig(1500, directory);
    let stream = rig.connect();
    let file = rig.create(stream, b"file");
    rig.write(stream, &file, 0, &vec![0x5a; 1 << 20]);
    let arguments = arguments(&file);
    for at in 0..WARM_UP {
        rig.call(stream, procedure, &arguments).ok();
        if at % 16 == 0 {
            rig.pass(Duration::from_millis(100));
        }
    }
    COUNTED.set(0);
    TRACE.set(std::env::var_os("TRACE_ALLOCATIONS").is_some());
    rig.probe = Some((on, off));
    for at in 0..MEASURED {
        rig.call(stream, procedure, &arguments).ok();
        // Timers run too: delayed acknowledgements, the sweep over connections.
        if at % 16 == 0 {
            rig.pass(Duration::from_millis(100));
        }
    }
    COUNTED.get()
}

#[test]
fn the_counter_counts() {
    COUNTED.set(0);
    on();
    drop(std::hint::black_box(vec![1u8; 100]));
    off();
    drop(std::hint::black_box(vec![1u8; 100]));
    assert_eq!(COUNTED.get(), 1);
    // And it stands around the server's turns: a new connection is known to allocate.
    let mut rig = rig(1500, None);
    rig.probe = Some((on, off));
    rig.connect();
    assert!(COUNTED.get() > 1);
}

fn reads_allocate_nothing(directory: Option<&Folder>) {
    for count in [4 << 10, 64 << 10, 1 << 20] {
        let allocated = allocations(directory, nfs::READ, &|file| nfs::read(file, 0, count));
        assert_eq!(allocated, 0, "in {MEASURED} READs of {count} bytes");
    }
}

fn getattrs_allocate_nothing(directory: Option<&Folder>) {
    let allocated = allocations(directory, nfs::GETATTR, &|file| Args::new().opaque(file));
    assert_eq!(allocated, 0, "in {MEASURED} GETATTRs");
}

#[test]
fn a_read_hit_allocates_nothing() {
    reads_allocate_nothing(None);
}

#[test]
fn a_getattr_allocates_nothing() {
    getattrs_allocate_nothing(None);
}

#[test]
fn a_read_hit_of_the_local_store_allocates_nothing() {
    reads_allocate_nothing(Some(&Folder::new()));
}

#[test]
fn a_getattr_of_the_local_store_allocates_nothing() {
    getattrs_allocate_nothing(Some(&Folder::new()));
}
