//! The heap is not touched by a READ that the store answers at once, nor by a GETATTR, once everything has its size.
//!
//! The programs' part of the way: arguments to results. What RPC, TCP and the device do around it is not counted here.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::sync::Arc;

use nfsplice::buf::{PagePool, Slice, View};
use nfsplice::program::ProgramTable;
use nfsplice::program::exports::{Export, ExportTable, Squash};
use nfsplice::program::handle::HandleSeal;
use nfsplice::program::mount::{self, Mount};
use nfsplice::program::nfs3::{self, Nfs3};
use nfsplice::program::rpcbind::Rpcbind;
use nfsplice::program::volumes::Volumes;
use nfsplice::rpc::xdr::{Decoder, Encoder};
use nfsplice::rpc::{AuthSys, Call, Credential, Disposition, Peer, Programs, Results, Ticket, Transport};
use nfsplice::store::memory::{self, MemoryStore};
use nfsplice::store::{AttributeChanges, CreateHow, Operation, Outcome, Stability, Start, Store, Timestamp, Token};
use nfsplice::time::{Duration, Instant};

struct Counting;

thread_local! {
    /// Of this thread only: the test harness allocates on others.
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
}

fn count() {
    // A thread that is ending has no counter any more.
    let _ = ALLOCATIONS.try_with(|count| count.set(count.get() + 1));
}

// SAFETY: hands every request on to the system's allocator as it came.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: the caller's promises are `System`'s conditions.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        // SAFETY: `at` came from `System` with this layout.
        unsafe { System.dealloc(at, layout) }
    }

    unsafe fn realloc(&self, at: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count();
        // SAFETY: `at` came from `System` with this layout, and the caller vouches for `size`.
        unsafe { System.realloc(at, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

const FILE_BYTES: usize = 1 << 20;

/// A table over a memory store with one file of 1 MiB, and that file's handle as an XDR argument.
fn table() -> (ProgramTable, Vec<u8>) {
    let pool = PagePool::anonymous(64, 64 << 10).unwrap();
    let store = MemoryStore::new(memory::Options::new(pool), Instant::ZERO, Timestamp::default()).unwrap();
    let mut handle = store.handle();
    let root_user = nfsplice::store::Credential { uid: 0, gid: 0, groups: Default::default() };
    let mut run = |operation: &Operation<'_>| match handle.start(Instant::ZERO, &root_user, operation, Token(0), &mut Vec::new())
    {
        Start::Done(result) => result.unwrap(),
        Start::Parked => panic!("memory never parks"),
    };
    let attributes = AttributeChanges { mode: Some(0o644), ..Default::default() };
    let directory = store.handle().root();
    let Outcome::Created { object, .. } = run(&Operation::Create { directory, name: b"f", how: CreateHow::Guarded(attributes) })
    else {
        panic!("not created")
    };
    let data = vec![7; FILE_BYTES];
    run(&Operation::Write { object, offset: 0, data: View::from(&data[..]), stability: Stability::FileSync });
    let export = Export {
        id: 1,
        name: "/export".into(),
        read_only: false,
        squash: Squash::Root,
        anon_uid: 65534,
        anon_gid: 65534,
        clients: vec!["0.0.0.0/0".parse().unwrap()],
        store: 0,
    };
    let exports = Arc::new(ExportTable::new(vec![export]).unwrap());
    let volumes = Volumes::new(exports, vec![Box::new(store.handle())], HandleSeal::new([1; 16]));
    let sealed = volumes.seal().seal(1, object);
    let mut arguments = (sealed.as_bytes().len() as u32).to_be_bytes().to_vec();
    arguments.extend(sealed.as_bytes());
    arguments.resize(arguments.len().next_multiple_of(4), 0);
    let rpcbind = Rpcbind::new(Vec::new(), Duration::ZERO).unwrap();
    let mount = Mount::new(mount::Options::default(), Default::default());
    (ProgramTable::new(volumes, rpcbind, mount, Nfs3::new(nfs3::Options::default())), arguments)
}

/// Makes the same call `times` times with everything reused; heap allocations after the first few.
fn allocations(procedure: u32, more: &[u8], reply_bytes: usize) -> u64 {
    let (mut table, mut arguments) = table();
    arguments.extend(more);
    let caller = Credential::Sys(AuthSys { stamp: 0, uid: 1000, gid: 100, groups: (0..16).collect() });
    let call = Call {
        xid: 1,
        program: nfs3::PROGRAM,
        version: nfs3::VERSION,
        procedure,
        peer: Peer {
            address: "10.0.0.9:900".parse().unwrap(),
            local: "10.0.0.1:2049".parse().unwrap(),
            transport: Transport::Tcp,
        },
        credential: &caller,
        arguments: Decoder::new(View::from(&arguments[..])),
    };
    let mut room = vec![0; 1024];
    let mut pages: Vec<Slice> = Vec::new();
    let mut before = 0;
    for turn in 0..1000u64 {
        if turn == 10 {
            before = ALLOCATIONS.get();
        }
        pages.clear();
        let mut results = Results::new(Encoder::new(&mut room), &mut pages);
        let now = Instant::from_millis(turn);
        assert_eq!(table.call(now, &call, Ticket(turn), &mut results), Disposition::Replied);
        assert_eq!(results.head.written()[..4], [0; 4], "NFS3_OK");
        assert_eq!(nfsplice::buf::gather_len(results.pages), reply_bytes);
    }
    ALLOCATIONS.get() - before
}

#[test]
fn a_getattr_allocates_nothing() {
    assert_eq!(allocations(1, &[], 0), 0);
}

#[test]
fn a_read_hit_allocates_nothing() {
    let whole = [&0u64.to_be_bytes()[..], &(FILE_BYTES as u32).to_be_bytes()].concat();
    assert_eq!(allocations(6, &whole, FILE_BYTES), 0);
    let part = [&5000u64.to_be_bytes()[..], &4096u32.to_be_bytes()].concat();
    assert_eq!(allocations(6, &part, 4096), 0);
}

#[test]
fn the_counter_counts() {
    let before = ALLOCATIONS.get();
    drop(std::hint::black_box(vec![1u8; 100]));
    assert_eq!(ALLOCATIONS.get() - before, 1);
}
