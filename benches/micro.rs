//! The pieces of a call one by one: time by criterion (`cargo bench --bench micro`), instructions by callgrind
//! (`scripts/instructions.sh pieces`), which collects inside of [`measured`] only.
//!
//! - `decode`: record mark, call header, AUTH_SYS. `seal`: record mark, head, pages, tail into one gather list. `lookup`: 64 KiB out
//!   of the blocks of a file of 1 GiB, at random places. `call`: from received bytes to the gather list of the reply, with the
//!   program, its store and encoding.
//! - TCP and IP in and out, gathering from the send queue included: the operations of `segments`.
//! - Building chains on the driver needs DPDK, which starts once a process: part `driver` of `make bench`, and
//!   `cargo run --release -p dpdk --example null_chains`.
//!
//! Figures of one piece alone are best cases: its code and data stay in the first-level caches.

#[allow(dead_code, reason = "its operations are run from here, its `main` is not")]
#[path = "segments.rs"]
mod segments;

use std::hint::black_box;
use std::net::SocketAddr;
use std::sync::Arc;

use criterion::{Criterion, criterion_group};
use nfsplice::buf::{PagePool, RxBuf, RxChain, Slice, View};
use nfsplice::program::ProgramTable;
use nfsplice::program::mount::{self, Mount, MountList};
use nfsplice::program::nfs3::{self, Nfs3};
use nfsplice::program::rpcbind::Rpcbind;
use nfsplice::rpc::auth::LastCredential;
use nfsplice::rpc::call::{self, Message};
use nfsplice::rpc::record::RecordReader;
use nfsplice::rpc::xdr_buf::{Framing, XdrBuf};
use nfsplice::rpc::{self, ConnectionKey, Transport};
use nfsplice::store::blocks::Blocks;
use nfsplice::time::{Duration, Instant};
use segments::support::nfs::{self, Args};
use segments::support::server::{EXPORT, NFS_PORT, Setup, arena, memory, volumes};

const BLOCK: usize = 64 << 10;
const KEY: ConnectionKey = ConnectionKey(1);
/// Blocks of the file of `lookup`; its pages are small, it is the table that counts.
const LOOKUP_BLOCKS: usize = 16 << 10;

/// What callgrind collects.
#[inline(never)]
fn measured(piece: &mut dyn FnMut()) {
    piece();
}

/// One connection's calls on a server with everything above TCP.
struct Above {
    rpc: rpc::Server,
    programs: ProgramTable,
    root: Vec<u8>,
    gather: Vec<Slice>,
    chain: RxChain,
    now: Instant,
}

impl Above {
    fn new() -> Above {
        let setup = Setup::default();
        let (cache, fragments) = (PagePool::anonymous(64, BLOCK).unwrap(), PagePool::anonymous(64, BLOCK).unwrap());
        let volumes = volumes(&setup, &memory(&cache));
        let root = volumes.seal().seal(EXPORT, volumes.stores()[0].root()).as_bytes().to_vec();
        let mount = Mount::new(mount::Options::default(), Arc::new(MountList::default()));
        let rpcbind = Rpcbind::new(Vec::new(), Duration::ZERO).unwrap();
        let programs = ProgramTable::new(volumes, rpcbind, mount, Nfs3::new(nfs3::Options::default()));
        let mut rpc = rpc::Server::new(setup.rpc, arena(&fragments));
        let [client, server] = setup.addresses().map(|address| SocketAddr::new(address, NFS_PORT));
        assert!(rpc.accept(Instant::ZERO, KEY, client, server).is_ok());
        Above { rpc, programs, root, gather: Vec::new(), chain: RxChain::new(), now: Instant::ZERO }
    }

    /// The reply to one record, which is released as an acknowledgement would.
    fn answer(&mut self, received: RxBuf) -> usize {
        self.chain.push(received);
        self.rpc.set_backlog(self.now, KEY, 0);
        self.rpc.handle_stream(self.now, KEY, &mut self.chain, &mut self.programs);
        assert!(self.rpc.poll_reply(&mut self.gather).is_some(), "no reply");
        let len = self.gather.iter().map(|slice| slice.len()).sum();
        self.gather.clear();
        len
    }

    fn call(&mut self, xid: u32, procedure: u32, arguments: &Args) -> Vec<u8> {
        let record = nfs::record(&nfs::call(xid, procedure, arguments));
        self.chain.push(RxBuf::from_vec(record));
        self.rpc.handle_stream(self.now, KEY, &mut self.chain, &mut self.programs);
        assert!(self.rpc.poll_reply(&mut self.gather).is_some(), "no reply");
        let bytes: Vec<u8> = self.gather.iter().flat_map(|slice| slice.to_vec()).collect();
        self.gather.clear();
        bytes[4..].to_vec()
    }
}

/// A file of one block, and the record of a call on it.
fn call_on_a_file(above: &mut Above, name: &str) -> Vec<u8> {
    let root = above.root.clone();
    let reply = above.call(1, nfs::CREATE, &nfs::create(&root, b"file"));
    let (_, results) = nfs::accepted(reply).expect("accepted");
    let file = results.ok().created();
    above.call(2, nfs::WRITE, &nfs::write_unstable(&file, 0, &[7; BLOCK]));
    let (procedure, arguments) = match name {
        "call-null" => (nfs::NULL, Args::new()),
        "call-getattr" => (nfs::GETATTR, Args::new().opaque(&file)),
        _ => (nfs::READ, nfs::read(&file, 0, BLOCK as u32)),
    };
    nfs::record(&nfs::call(3, procedure, &arguments))
}

/// Received bytes are read in place: the same page again and again, by reference.
fn received(record: &[u8]) -> Slice {
    let mut page = PagePool::anonymous(1, 4096).unwrap().allocate().unwrap();
    page[..record.len()].copy_from_slice(record);
    page.freeze().slice(0..record.len())
}

const PIECES: [&str; 6] = ["decode", "seal", "lookup", "call-null", "call-getattr", "call-read-64k"];

fn piece(name: &str) -> Box<dyn FnMut()> {
    match name {
        "decode" => {
            let mut above = Above::new();
            let record = call_on_a_file(&mut above, "call-read-64k");
            let (limits, mut last) = (rpc::Options::default(), LastCredential::default());
            let limits = limits.record();
            Box::new(move || {
                let message = RecordReader::default().whole(&limits, &View::from(&record[..])).expect("a whole record");
                let Ok(Message::Call { rest, .. }) = call::parse(View::from(message)) else { panic!("a call") };
                let admitted = call::admit(rest, Transport::Tcp, &mut last, &above.programs);
                assert!(matches!(black_box(admitted), Ok(Ok(_))), "an admitted call");
            })
        }
        "seal" => {
            let pool = PagePool::anonymous(16, BLOCK).unwrap();
            let (mut heads, page) = (arena(&pool), pool.allocate().unwrap().freeze());
            let (mut pages, mut out) = (Vec::with_capacity(4), Vec::with_capacity(8));
            let zeroes = heads.zeroes(3);
            Box::new(move || {
                pages.push(page.clone());
                let fragment = heads.reserve(128).expect("room");
                XdrBuf::new(fragment, 124, &mut pages, &zeroes).seal(Framing::Stream, false, &mut out);
                black_box(&out);
                out.clear();
            })
        }
        "lookup" => {
            let pool = PagePool::anonymous(LOOKUP_BLOCKS + 1, 512).unwrap();
            let mut blocks = Blocks::default();
            for number in 0..LOOKUP_BLOCKS {
                blocks.write(&pool, number as u64 * 512, View::from(&[1u8; 512][..]), u64::MAX);
            }
            let mut zeroes = pool.allocate().unwrap();
            zeroes.fill(0);
            let (zeroes, mut pages, mut random) = (zeroes.freeze(), Vec::with_capacity(4), 0x9e37_79b9_7f4a_7c15u64);
            Box::new(move || {
                random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                blocks.read((random >> 33) % LOOKUP_BLOCKS as u64 * 512, 512, &zeroes, &mut pages);
                black_box(&pages);
                pages.clear();
            })
        }
        _ => {
            let mut above = Above::new();
            let record = received(&call_on_a_file(&mut above, name));
            Box::new(move || {
                black_box(above.answer(RxBuf::from_slice(record.clone())));
            })
        }
    }
}

fn pieces(criterion: &mut Criterion) {
    for name in PIECES {
        let mut run = piece(name);
        criterion.bench_function(name, |bencher| bencher.iter(&mut run));
    }
    for name in segments::names() {
        criterion.bench_function(name, |bencher| bencher.iter_custom(|count| segments::time(name, count)));
    }
}

criterion_group! {
    name = group;
    config = Criterion::default().sample_size(20).warm_up_time(std::time::Duration::from_millis(300))
        .measurement_time(std::time::Duration::from_millis(1200));
    targets = pieces
}

fn main() {
    let words: Vec<String> = std::env::args().skip(1).collect();
    // scripts/instructions.sh: this piece, so many times.
    if let [word, name, count] = &words[..]
        && word == "--count"
    {
        let mut run = piece(name);
        (0..50).for_each(|_| run());
        (0..count.parse::<u32>().expect("a number")).for_each(|_| measured(&mut run));
        return;
    }
    group();
    Criterion::default().configure_from_args().final_summary();
}
