//! A server of several cores and a client in one thread, on a virtual clock: the shards share one address, one store and one
//! duplicate request cache as `serve` builds them, and a port with a queue for each.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use nfsplice::buf::{PagePool, Slice};
use nfsplice::net::memory_link::{EndOptions, Impairments, MemoryEnd, MemoryLink};
use nfsplice::net::spread::Spread;
use nfsplice::net::{Device, DeviceCapabilities, Interface, RxFrame, TxOffload, TxRefused};
use nfsplice::program::ProgramTable;
use nfsplice::program::mount::{self, Mount, MountList};
use nfsplice::program::nfs3::Nfs3;
use nfsplice::program::rpcbind::Rpcbind;
use nfsplice::rpc;
use nfsplice::rpc::drc::SharedDrc;
use nfsplice::shard::steering::{self, SteeredPort, Steering, Wake};
use nfsplice::shard::{Lane, Shard};
use nfsplice::tcp;
use nfsplice::time::{Duration, Instant};

use super::client::Client;
use super::nfs::{Answer, Args};
use super::server::{EXPORT, NFS_PORT, SERVER_ADDRESS, SERVER_ADDRESS_V6, Setup, arena, memory, volumes};
use super::{CLIENT_MAC, SERVER_MAC};

/// Rounds in which something happens without the clock moving; more is a livelock.
const ROUNDS_MAX: usize = 100_000;
const CALL_TIMEOUT: Duration = Duration::from_secs(1000);

/// Which queue a NIC puts a frame into.
pub type Choose = Box<dyn FnMut(&[u8]) -> usize>;

struct Wire {
    end: MemoryEnd,
    waiting: Vec<VecDeque<RxFrame>>,
    choose: Choose,
}

/// One queue of the server's port.
pub struct Queue {
    wire: Rc<RefCell<Wire>>,
    index: usize,
    capabilities: DeviceCapabilities,
}

impl Device for Queue {
    fn capabilities(&self) -> &DeviceCapabilities {
        &self.capabilities
    }

    fn receive(&mut self, out: &mut Vec<RxFrame>) -> usize {
        let Wire { end, waiting, choose } = &mut *self.wire.borrow_mut();
        let mut frames = Vec::new();
        end.receive(&mut frames);
        for frame in frames {
            let queue = choose(&frame.packet.first);
            waiting[queue].push_back(frame);
        }
        let count = waiting[self.index].len();
        out.extend(waiting[self.index].drain(..));
        count
    }

    fn transmit(&mut self, header: &[u8], payload: &[Slice], offload: &TxOffload) -> Result<(), TxRefused> {
        self.wire.borrow_mut().end.transmit(header, payload, offload)
    }

    fn flush(&mut self) -> usize {
        self.wire.borrow_mut().end.flush()
    }
}

pub struct Cores {
    pub now: Instant,
    pub link: MemoryLink,
    pub shards: Vec<Shard<Queue, ProgramTable>>,
    pub client: Client<MemoryEnd>,
    pub root: Vec<u8>,
    pub cache: PagePool,
    pub fragments: PagePool,
    /// Times each core was told that its inbox holds something.
    pub woken: Vec<Arc<AtomicUsize>>,
    at_rest: (usize, usize),
    /// Cores that do not run for now.
    pub stopped: Vec<bool>,
}

impl Cores {
    /// `choose`: the NIC's idea of who gets a frame.
    pub fn new(setup: &Setup, count: u16, choose: Choose) -> Cores {
        Cores::with_inboxes(setup, count, choose, steering::Options::default())
    }

    pub fn with_inboxes(setup: &Setup, count: u16, choose: Choose, options: steering::Options) -> Cores {
        let ends = [EndOptions::plain(CLIENT_MAC, setup.mtu), EndOptions::plain(SERVER_MAC, setup.mtu)];
        let (link, client, server) = MemoryLink::new(0, [Impairments::default(); 2], ends);
        let capabilities = *server.capabilities();
        let waiting = (0..count).map(|_| VecDeque::new()).collect();
        let wire = Rc::new(RefCell::new(Wire { end: server, waiting, choose }));
        let cache = PagePool::anonymous(setup.cache_blocks, setup.block_bytes).unwrap();
        let fragments = PagePool::anonymous(256, 64 << 10).unwrap();
        let store = memory(&cache);
        let (drc, mounts) = (SharedDrc::new(setup.rpc.drc, count.into()), Arc::new(MountList::default()));
        let woken: Vec<_> = (0..count).map(|_| Arc::new(AtomicUsize::new(0))).collect();
        let wake = |count: &Arc<AtomicUsize>| -> Wake {
            let count = Arc::clone(count);
            Arc::new(move || {
                count.fetch_add(1, Ordering::Relaxed);
            })
        };
        let wakes: Vec<Wake> = woken.iter().map(wake).collect();
        let port = SteeredPort { port: 0, spread: Arc::new(Spread::in_software(count)), cores: count };
        let steerings = Steering::mesh(options, vec![vec![port]; count.into()], &wakes);
        let mut root = Vec::new();
        let shard = |(index, steering)| {
            let device = Queue { wire: Rc::clone(&wire), index, capabilities };
            let volumes = volumes(setup, &store);
            root = volumes.seal().seal(EXPORT, volumes.stores()[0].root()).as_bytes().to_vec();
            let mut tcp = tcp::Endpoint::new(setup.tcp.clone(), [2 + index as u8; 16]);
            tcp.set_copy_out(arena(&fragments));
            tcp.listen(NFS_PORT).unwrap();
            let mut options = setup.interface(SERVER_MAC, SERVER_ADDRESS, SERVER_ADDRESS_V6);
            if index > 0 {
                options.announcements = 0;
                options.ipv6.follows = true;
            }
            let interface = Interface::new(options, arena(&fragments), Instant::ZERO).unwrap();
            let rpc = rpc::Server::sharing(setup.rpc, arena(&fragments), drc.clone());
            let mount = Mount::new(mount::Options::default(), Arc::clone(&mounts));
            let rpcbind = Rpcbind::new(Vec::new(), Duration::ZERO).unwrap();
            let programs = ProgramTable::new(volumes, rpcbind, mount, Nfs3::new(setup.nfs3));
            let mut shard = Shard::new(vec![Lane { device, interface }], tcp, rpc, programs, Vec::new());
            shard.set_steering(steering);
            shard
        };
        let shards: Vec<_> = steerings.into_iter().enumerate().map(shard).collect();
        let at_rest = (cache.outstanding(), fragments.outstanding());
        Cores {
            now: Instant::ZERO,
            link,
            stopped: vec![false; shards.len()],
            shards,
            client: Client::new(setup, client),
            root,
            cache,
            fragments,
            woken,
            at_rest,
        }
    }

    /// The core that a stream belongs to.
    pub fn owner(&self, stream: usize) -> usize {
        let spread = Spread::in_software(self.shards.len() as u16);
        let [remote, local] = self.client.addresses();
        spread.queue_of((remote, self.client.streams[stream].port), (local, NFS_PORT)).into()
    }

    pub fn settle(&mut self) {
        for _ in 0..ROUNDS_MAX {
            let running = self.shards.iter_mut().zip(&self.stopped).filter(|(_, stopped)| !**stopped);
            let work: usize = running.map(|(shard, _)| shard.turn(self.now)).sum();
            if work + self.client.turn(self.now) == 0 {
                return;
            }
        }
        panic!("busy for ever at {:?}", self.now);
    }

    /// Everything at this instant, then the clock jumps; `false`: nothing will ever happen again.
    pub fn step(&mut self) -> bool {
        self.settle();
        let running = self.shards.iter().zip(&self.stopped).filter(|(_, stopped)| !**stopped);
        let shards = running.filter_map(|(shard, _)| shard.poll_timeout()).min();
        let next = [self.link.poll_timeout(), self.client.poll_timeout(), shards].into_iter().flatten().min();
        let Some(next) = next else { return false };
        self.now = self.now.max(next);
        self.link.set_now(self.now);
        true
    }

    /// Steps until `done`, for at most `limit` of virtual time; whether it is done.
    pub fn run(&mut self, limit: Duration, mut done: impl FnMut(&mut Self) -> bool) -> bool {
        let end = self.now + limit;
        self.settle();
        while !done(self) {
            if self.now > end || !self.step() {
                return done(self);
            }
        }
        true
    }

    pub fn connect(&mut self) -> usize {
        let stream = self.client.connect(self.now);
        assert!(self.run(CALL_TIMEOUT, |cores| cores.client.streams[stream].connected), "no connection");
        stream
    }

    /// Connections of which each core has at least one; by core.
    pub fn connect_to_each(&mut self) -> Vec<usize> {
        let mut found = vec![None; self.shards.len()];
        while found.iter().any(Option::is_none) {
            let stream = self.connect();
            let owner = self.owner(stream);
            found[owner].get_or_insert(stream);
        }
        found.into_iter().map(|stream| stream.expect("checked above")).collect()
    }

    pub fn wait(&mut self, stream: usize, xid: u32) -> Answer {
        let there = |cores: &mut Self| cores.client.streams[stream].has_reply(xid);
        assert!(self.run(CALL_TIMEOUT, there), "no reply to {xid} at {:?}", self.now);
        self.client.streams[stream].take_reply(xid).expect("it is there")
    }

    pub fn call(&mut self, stream: usize, procedure: u32, arguments: &Args) -> Answer {
        let xid = self.client.call(self.now, stream, procedure, arguments);
        self.wait(stream, xid)
    }

    /// Closes every stream and waits until nothing is left of them; then no page may be out but those of an empty server and
    /// of the files.
    pub fn close_all(&mut self) {
        for stream in 0..self.client.streams.len() {
            self.client.close(self.now, stream);
        }
        let over = |cores: &mut Self| cores.shards.iter().all(|shard| shard.tcp().connections().count() == 0);
        assert!(self.run(Duration::from_secs(600), over), "connections are left");
        assert_eq!(self.fragments.outstanding(), self.at_rest.1, "pages of replies and requests");
    }

    /// Pages of file data beyond those of an empty store.
    pub fn data_pages(&self) -> usize {
        self.cache.outstanding() - self.at_rest.0
    }
}
