//! A small server: the real programs over a memory store, with limits low enough for a short input to reach them.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::Arc;

use nfsplice::buf::{FragmentArena, PagePool, RxBuf, RxChain, Slice, View};
use nfsplice::program::ProgramTable;
use nfsplice::program::exports::{Export, ExportTable, Squash};
use nfsplice::program::handle::HandleSeal;
use nfsplice::program::mount::{self, Mount};
use nfsplice::program::nfs3::{self, Nfs3};
use nfsplice::program::rpcbind::{self, Rpcbind, Service};
use nfsplice::program::volumes::Volumes;
use nfsplice::rpc::drc::DrcOptions;
use nfsplice::rpc::{self, CloseReason, ConnectionKey, Destination, Transport};
use nfsplice::store::memory::{self, MemoryHandle, MemoryStore};
use nfsplice::store::{
    self, AttributeChanges, CreateHow, Failure, ObjectId, Operation, Outcome, Stability, Start, Store, Timestamp, Token,
};
use nfsplice::time::{Duration, Instant};

pub const BLOCK: usize = 1024;
const BLOCKS: usize = 64;
pub const READ_BYTES_MAX: u32 = 8 << 10;
const KEY: [u8; 16] = *b"key of a fuzzer ";
/// What the store may use of its pool; the rest is for blocks that are held while they are written.
const STORE_BLOCKS: usize = 32;

pub const CLIENT: &str = "10.77.0.1:900";
pub const NFS_ADDRESS: &str = "10.77.0.2:2049";

/// Whether operations of the store wait, and in which order they are done then.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Parking {
    Never,
    FirstInFirstOut,
    LastInFirstOut,
}

impl Parking {
    pub fn from_bits(bits: u8) -> Parking {
        match bits & 3 {
            1 => Parking::FirstInFirstOut,
            2 => Parking::LastInFirstOut,
            _ => Parking::Never,
        }
    }
}

type Done = (Token, Result<Outcome, Failure>, Vec<Slice>);

struct ParkingStore {
    inner: MemoryHandle,
    parking: Parking,
    done: VecDeque<Done>,
}

impl Store for ParkingStore {
    fn root(&self) -> ObjectId {
        self.inner.root()
    }

    fn start(
        &mut self,
        now: Instant,
        caller: &store::Credential,
        operation: &Operation<'_>,
        token: Token,
        pages: &mut Vec<Slice>,
    ) -> Start {
        if self.parking == Parking::Never {
            return self.inner.start(now, caller, operation, token, pages);
        }
        let mut data = Vec::new();
        match self.inner.start(now, caller, operation, token, &mut data) {
            Start::Done(result) => self.done.push_back((token, result, data)),
            Start::Parked => unreachable!("a memory store answers at once"),
        }
        Start::Parked
    }

    fn poll_completion(&mut self, _: Instant, pages: &mut Vec<Slice>) -> Option<(Token, Result<Outcome, Failure>)> {
        let done = match self.parking {
            Parking::LastInFirstOut => self.done.pop_back(),
            _ => self.done.pop_front(),
        };
        let (token, result, data) = done?;
        pages.extend(data);
        Some((token, result))
    }

    fn parked(&self) -> usize {
        self.done.len()
    }
}

fn export(id: u32, name: &str, clients: &str) -> Export {
    Export {
        id,
        name: name.into(),
        read_only: id == 2,
        squash: if id == 2 { Squash::Root } else { Squash::None },
        anon_uid: 65534,
        anon_gid: 65534,
        clients: vec![clients.parse().expect("a network")],
        store: 0,
    }
}

fn services() -> Vec<Service> {
    let service = |program, version, transport, port| Service { program, version, transport, port };
    vec![
        service(rpcbind::PROGRAM, 2, Transport::Tcp, 111),
        service(rpcbind::PROGRAM, 2, Transport::Udp, 111),
        service(mount::PROGRAM, mount::VERSION, Transport::Udp, 20048),
        service(nfs3::PROGRAM, nfs3::VERSION, Transport::Tcp, 2049),
    ]
}

/// A file, a directory, a symbolic link and a hard link to find.
fn populate(store: &mut MemoryHandle) {
    let root = store::Credential { uid: 0, gid: 0, groups: Default::default() };
    let directory = store.root();
    let mut run = |operation: &Operation<'_>| match store.start(Instant::ZERO, &root, operation, Token(0), &mut Vec::new()) {
        Start::Done(Ok(Outcome::Created { object, .. })) => Some(object),
        Start::Done(Ok(_)) => None,
        _ => panic!("an empty store takes it"),
    };
    let attributes = AttributeChanges { mode: Some(0o777), ..AttributeChanges::default() };
    let how = CreateHow::Guarded(attributes);
    let file = run(&Operation::Create { directory, name: b"file", how }).expect("a file");
    let data = View::from(&[7; 3000][..]);
    run(&Operation::Write { object: file, offset: 0, data, stability: Stability::FileSync });
    let sub = run(&Operation::MakeDirectory { directory, name: b"dir", attributes }).expect("a directory");
    run(&Operation::Symlink { directory, name: b"link", target: b"dir/hard", attributes });
    run(&Operation::Link { object: file, directory: sub, name: b"hard" });
}

pub fn rpc_options() -> rpc::Options {
    rpc::Options {
        record_bytes_max: 12 << 10,
        fragments_max: 32,
        empty_fragments_max: 4,
        record_timeout: Duration::from_secs(60),
        connections_max: 4,
        connections_unauthenticated_max: 3,
        calls_in_flight_max: 4,
        calls_in_flight_total_max: 6,
        datagram_calls_in_flight_max: 2,
        send_queue_bytes_max: 16 << 10,
        calls_per_turn_max: 4,
        completions_per_turn_max: 4,
        datagram_replies_max: 4,
        drc: DrcOptions { entries: 16, reply_bytes_max: 512, expiry: Duration::from_secs(120), seed: [1, 2] },
        ..rpc::Options::default()
    }
}

/// What a core has above TCP and UDP, and the memory it takes.
pub struct Parts {
    pub rpc: rpc::Server,
    pub programs: ProgramTable,
    pub store: MemoryStore,
    /// For reply heads.
    pub fragments: PagePool,
    /// For file data.
    pub blocks: PagePool,
}

impl Parts {
    pub fn new(parking: Parking) -> Parts {
        let blocks = PagePool::anonymous(BLOCKS, BLOCK).expect("memory");
        // The largest head is that of MOUNT's lists, 32 KiB.
        let fragments = PagePool::anonymous(12, 64 << 10).expect("memory");
        let options = memory::Options {
            bytes_max: (STORE_BLOCKS * BLOCK) as u64,
            entries_max: 64,
            links_max: 8,
            ..memory::Options::new(blocks.clone())
        };
        let wall = Timestamp { seconds: 1_000_000_000, nanoseconds: 0 };
        let store = MemoryStore::new(options, Instant::ZERO, wall).expect("a block of zeroes");
        populate(&mut store.handle());
        let exports = vec![
            export(1, "/export", "10.0.0.0/8"),
            export(2, "/export/read only", "10.77.0.0/16"),
            export(3, "/private", "192.168.0.0/16"),
        ];
        let exports = Arc::new(ExportTable::new(exports).expect("good exports"));
        let handle = ParkingStore { inner: store.handle(), parking, done: VecDeque::new() };
        let volumes = Volumes::new(exports, vec![Box::new(handle)], HandleSeal::new(KEY));
        let nfs3 = nfs3::Options {
            read_bytes_max: READ_BYTES_MAX,
            write_bytes_max: 8 << 10,
            directory_bytes_max: 4 << 10,
            parked_max: 5,
        };
        let mount = Mount::new(mount::Options { walks_max: 2, mounts_max: 4 }, Default::default());
        let rpcbind = Rpcbind::new(services(), Duration::ZERO).expect("a short table");
        let programs = ProgramTable::new(volumes, rpcbind, mount, Nfs3::new(nfs3));
        let rpc = rpc::Server::new(rpc_options(), FragmentArena::new(fragments.clone()).expect("two pages"));
        Parts { rpc, programs, store, fragments, blocks }
    }

    /// The sealed handle of the root of an export.
    pub fn root_handle(&self, export: u32) -> Vec<u8> {
        let volumes = self.programs.volumes();
        volumes.seal().seal(export, volumes.stores()[0].root()).as_bytes().to_vec()
    }

    /// Blocks that files occupy, by the store's own books.
    fn blocks_booked(&self) -> usize {
        let mut store = self.store.handle();
        let root = store::Credential { uid: 0, gid: 0, groups: Default::default() };
        let object = store.root();
        let operation = Operation::FileSystemStatus { object };
        match store.start(Instant::ZERO, &root, &operation, Token(0), &mut Vec::new()) {
            Start::Done(Ok(Outcome::FileSystemStatus { status, .. })) => {
                ((status.bytes_total - status.bytes_free) as usize).div_ceil(BLOCK)
            }
            _ => panic!("the root is always there"),
        }
    }

    /// Nothing waits and nobody holds a reply: every page in use is in a file or in the arena, and all go at the end.
    pub fn check_and_drop(self) {
        assert_eq!(self.programs.parked(), 0);
        assert_eq!(self.rpc.counters().calls_in_flight, 0);
        assert_eq!(self.blocks.outstanding(), self.blocks_booked() + 1, "blocks in files, and one of zeroes");
        assert!(self.fragments.outstanding() <= 2, "{} pages of reply heads left", self.fragments.outstanding());
        let Parts { rpc, programs, store, fragments, blocks } = self;
        drop((rpc, programs, store));
        assert_eq!((fragments.outstanding(), blocks.outstanding()), (0, 0));
    }
}

/// One connection's end of TCP, as the RPC server sees it.
pub struct Stream {
    pub key: ConnectionKey,
    pub chain: RxChain,
    /// Bytes of replies taken and not acknowledged.
    pub backlog: u64,
    pub closed: Option<CloseReason>,
}

pub struct Reply {
    pub destination: Destination,
    pub bytes: Vec<u8>,
}

/// `Parts` with connections, driven in the order that `rpc::server` asks for.
pub struct Server {
    pub parts: Parts,
    pub now: Instant,
    pub streams: Vec<Stream>,
    gather: Vec<Slice>,
}

impl Server {
    pub fn new(parking: Parking) -> Server {
        Server { parts: Parts::new(parking), now: Instant::from_millis(1), streams: Vec::new(), gather: Vec::new() }
    }

    /// A new connection; `false` if it was refused.
    pub fn connect(&mut self, key: u64, address: SocketAddr) -> bool {
        let key = ConnectionKey(key);
        let local = NFS_ADDRESS.parse().expect("an address");
        let taken = self.parts.rpc.accept(self.now, key, address, local).is_ok();
        if taken {
            self.streams.push(Stream { key, chain: RxChain::new(), backlog: 0, closed: None });
        }
        taken
    }

    pub fn push(&mut self, stream: usize, bytes: &[u8]) {
        if let Some(stream) = self.streams.get_mut(stream)
            && stream.closed.is_none()
        {
            stream.chain.push(RxBuf::from_vec(bytes.to_vec()));
        }
    }

    pub fn read(&mut self, stream: usize) {
        let Parts { rpc, programs, .. } = &mut self.parts;
        if let Some(stream) = self.streams.get_mut(stream) {
            rpc.set_backlog(self.now, stream.key, stream.backlog);
            rpc.handle_stream(self.now, stream.key, &mut stream.chain, programs);
        }
    }

    pub fn end(&mut self, stream: usize) {
        let Parts { rpc, programs, .. } = &mut self.parts;
        if let Some(stream) = self.streams.get_mut(stream) {
            rpc.handle_end(self.now, stream.key, &mut stream.chain, programs);
        }
    }

    /// The peer has everything that was sent to it.
    pub fn acknowledge(&mut self, stream: usize) {
        if let Some(stream) = self.streams.get_mut(stream) {
            stream.backlog = 0;
            self.parts.rpc.set_backlog(self.now, stream.key, 0);
        }
    }

    pub fn datagram(&mut self, from: SocketAddr, bytes: &[u8]) {
        let local = NFS_ADDRESS.parse().expect("an address");
        let Parts { rpc, programs, .. } = &mut self.parts;
        rpc.handle_datagram(self.now, from, local, View::from(bytes), programs);
    }

    pub fn complete(&mut self) -> usize {
        let Parts { rpc, programs, .. } = &mut self.parts;
        rpc.poll_completions(self.now, programs)
    }

    /// One round of everything but completions. Returns the replies.
    pub fn turn(&mut self) -> Vec<Reply> {
        if self.parts.rpc.poll_timeout().is_some_and(|at| at <= self.now) {
            self.parts.rpc.handle_timeout(self.now);
        }
        let streams = &self.streams;
        let backlog = |key| streams.iter().find(|stream| stream.key == key).map_or(0, |stream| stream.backlog);
        self.parts.rpc.refresh_backlogs(self.now, backlog);
        for _ in 0..self.parts.rpc.resumable_len() {
            let Some(key) = self.parts.rpc.poll_resumable() else { break };
            if let Some(at) = self.streams.iter().position(|stream| stream.key == key) {
                self.read(at);
            }
        }
        let mut replies = Vec::new();
        while let Some(destination) = self.parts.rpc.poll_reply(&mut self.gather) {
            let bytes: Vec<u8> = self.gather.iter().flat_map(|slice| slice.iter().copied()).collect();
            let Destination::Stream(key) = destination else {
                assert!(bytes.len() <= rpc_options().datagram_bytes_max as usize);
                replies.push(Reply { destination, bytes });
                continue;
            };
            let stream = self.streams.iter_mut().find(|stream| stream.key == key).expect("a connection of ours");
            assert!(stream.closed.is_none(), "a reply behind the close");
            stream.backlog += bytes.len() as u64;
            replies.extend(records(&bytes).into_iter().map(|bytes| Reply { destination, bytes }));
        }
        self.gather.clear();
        while let Some((key, reason)) = self.parts.rpc.poll_close() {
            let stream = self.streams.iter_mut().find(|stream| stream.key == key).expect("a connection of ours");
            assert!(stream.closed.is_none(), "closed twice");
            stream.closed = Some(reason);
            stream.chain.clear();
        }
        self.check_bounds();
        replies
    }

    fn check_bounds(&self) {
        let options = rpc_options();
        let counters = self.parts.rpc.counters();
        assert!(counters.calls_in_flight <= u64::from(options.calls_in_flight_total_max));
        assert!(counters.connections <= u64::from(options.connections_max));
        assert!(self.parts.programs.parked() <= options.calls_in_flight_total_max as usize);
        for stream in &self.streams {
            // One reply is always allowed, and no reply is longer than this.
            let most = options.send_queue_bytes_max.max(u64::from(READ_BYTES_MAX) + 512);
            assert!(stream.backlog <= most, "{} bytes of replies not acknowledged", stream.backlog);
        }
    }

    /// Everything that waits is completed and acknowledged, until nothing happens any more.
    pub fn settle(&mut self) -> Vec<Reply> {
        let mut replies = Vec::new();
        let mut patience = 3;
        loop {
            let completed = self.complete();
            let before = replies.len();
            replies.extend(self.turn());
            let mut progress = completed > 0 || replies.len() > before;
            for stream in 0..self.streams.len() {
                if self.streams[stream].closed.is_none() {
                    self.acknowledge(stream);
                    let waiting = self.streams[stream].chain.len();
                    self.read(stream);
                    progress |= self.streams[stream].chain.len() != waiting;
                }
            }
            if progress {
                continue;
            }
            // A record that found no room is looked at again a little later; a call that `turn` took may have parked just now.
            let idle = self.parts.programs.parked() == 0 && self.streams.iter().all(|stream| stream.chain.is_empty());
            if patience == 0 || idle {
                return replies;
            }
            patience -= 1;
            self.now += rpc_options().retry_after;
        }
    }
}

/// One record: a marker that says "last fragment" and the right length, a reply, whole words.
/// What one gather list holds: whole records.
fn records(mut bytes: &[u8]) -> Vec<Vec<u8>> {
    let mut records = Vec::new();
    while let Some(marker) = bytes.first_chunk::<4>() {
        let (record, rest) = bytes.split_at(4 + (u32::from_be_bytes(*marker) & !(1 << 31)) as usize);
        check_record(record);
        records.push(record.to_vec());
        bytes = rest;
    }
    assert!(bytes.is_empty(), "a part of a record");
    records
}

fn check_record(bytes: &[u8]) {
    let (marker, message) = bytes.split_first_chunk::<4>().expect("a marker");
    assert_eq!(u32::from_be_bytes(*marker), 1 << 31 | message.len() as u32, "the marker");
    assert_eq!(message.len() % 4, 0, "XDR is made of words");
}
