//! A whole server and a client in one thread, on a virtual clock: the rig of the integration tests, the simulator, the fuzz
//! targets and the benchmarks.
//!
//! - `server`: a `Shard` with all programs over a memory store, as `serve` builds it, on any device.
//! - `cores`: several shards behind one address, on a link whose NIC shares frames out rightly or wrongly.
//! - `client`: the same network stack in the other role, cutting replies out of its streams.
//! - `nfs`: calls and replies as bytes. `load`: the load generator instead of `client`.
//! - `reference_nic`: two devices that carry chains by reference and allocate nothing.
//! - `judge`: TCP's rules for each segment, as the simulator of TCP alone has them; `court` brings a link's frames before it.
//! - `witness`: looks at frames on their way and holds the server to never changing what it has sent once.
//!
//! [`Rig`] is both ends and what is between them. Everything that happens follows from the setup, its seed and the calls made.
#![allow(dead_code, reason = "each test file uses a part of it")]

pub mod client;
pub mod cores;
pub mod court;
#[path = "../../src/tcp/tests/judge.rs"]
pub mod judge;
pub mod load;
pub mod nfs;
pub mod reference_nic;
pub mod server;
pub mod witness;

use nfsplice::net::Device;
use nfsplice::net::memory_link::{EndOptions, Impairments, MemoryEnd, MemoryLink};
use nfsplice::time::{Duration, Instant};

use client::Client;
use nfs::{Answer, Args};
use server::{Server, Setup};

pub const CLIENT_MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];
pub const SERVER_MAC: [u8; 6] = [2, 0, 0, 0, 0, 2];
/// Sides of a memory link.
pub const CLIENT: usize = 0;
pub const SERVER: usize = 1;

/// Rounds in which something happens without the clock moving; more is a livelock.
const ROUNDS_MAX: usize = 100_000;
/// How soon a store that has parked operations is asked again.
const COMPLETION_POLL: Duration = Duration::from_micros(50);
/// Virtual time after which a call of the blocking kind has failed.
const CALL_TIMEOUT: Duration = Duration::from_secs(1000);

/// What is between the two devices.
pub trait Cable {
    fn set_now(&self, now: Instant);
    /// When the next frame arrives.
    fn poll_timeout(&self) -> Option<Instant>;
}

impl Cable for MemoryLink {
    fn set_now(&self, now: Instant) {
        MemoryLink::set_now(self, now);
    }

    fn poll_timeout(&self) -> Option<Instant> {
        MemoryLink::poll_timeout(self)
    }
}

/// What is called before a turn and what after it.
pub type Probe = (fn(), fn());

pub struct Rig<D, C> {
    pub now: Instant,
    pub cable: C,
    pub server: Server<D>,
    pub client: Client<D>,
    /// Called before and after every turn of the server: measuring.
    pub probe: Option<Probe>,
    /// Turns of the server are to be found by a profiler, as `measured_turn`.
    pub measured: bool,
}

pub type LinkRig = Rig<MemoryEnd, MemoryLink>;

/// A rig on a perfect link of this MTU between NICs without offloads.
pub fn plain(setup: &Setup) -> LinkRig {
    let mtu = setup.mtu;
    on_link(setup, 0, [Impairments::default(); 2], [EndOptions::plain(CLIENT_MAC, mtu), EndOptions::plain(SERVER_MAC, mtu)])
}

pub fn on_link(setup: &Setup, seed: u64, impairments: [Impairments; 2], ends: [EndOptions; 2]) -> LinkRig {
    let (link, client, server) = MemoryLink::new(seed, impairments, ends);
    Rig::new(setup, link, client, server)
}

impl<D: Device, C: Cable> Rig<D, C> {
    pub fn new(setup: &Setup, cable: C, client: D, server: D) -> Rig<D, C> {
        let (server, client) = (Server::new(setup, server), Client::new(setup, client));
        Rig { now: Instant::ZERO, cable, server, client, probe: None, measured: false }
    }

    /// One turn of the server's loop.
    pub fn server_turn(&mut self) -> usize {
        let probe = self.probe;
        if let Some((before, _)) = probe {
            before();
        }
        let work = if self.measured { self.measured_turn() } else { self.server.shard.turn(self.now) };
        if let Some((_, after)) = probe {
            after();
        }
        work
    }

    /// Not inlined, so that a profiler finds it.
    #[inline(never)]
    fn measured_turn(&mut self) -> usize {
        self.server.shard.turn(self.now)
    }

    /// Lets both ends work until nothing happens any more at this instant.
    pub fn settle(&mut self) {
        for _ in 0..ROUNDS_MAX {
            if self.server_turn() + self.client.turn(self.now) == 0 {
                return;
            }
        }
        panic!("both ends are busy for ever at {:?}", self.now);
    }

    fn next_time(&self) -> Option<Instant> {
        let parked = (self.server.shard.programs().parked() > 0).then(|| self.now + COMPLETION_POLL);
        [self.cable.poll_timeout(), self.server.shard.poll_timeout(), self.client.poll_timeout(), parked]
            .into_iter()
            .flatten()
            .min()
    }

    /// Everything at this instant, then the clock jumps to the next thing that happens; `false`: nothing ever will.
    pub fn step(&mut self) -> bool {
        self.settle();
        let Some(next) = self.next_time() else { return false };
        self.now = self.now.max(next);
        self.cable.set_now(self.now);
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

    /// Lets this much virtual time pass.
    pub fn pass(&mut self, time: Duration) {
        let end = self.now + time;
        while self.next_time().is_some_and(|next| next <= end) {
            self.step();
        }
        self.now = end;
        self.cable.set_now(end);
        self.settle();
    }

    /// A connection to the NFS port; its number.
    pub fn connect(&mut self) -> usize {
        let stream = self.client.connect(self.now);
        assert!(self.run(CALL_TIMEOUT, |rig| rig.client.streams[stream].connected), "no connection");
        stream
    }

    /// Makes one NFSv3 call and waits for its results.
    pub fn call(&mut self, stream: usize, procedure: u32, arguments: &Args) -> Answer {
        let xid = self.client.call(self.now, stream, procedure, arguments);
        self.wait(stream, xid)
    }

    /// Waits for the reply to a call that was made before.
    pub fn wait(&mut self, stream: usize, xid: u32) -> Answer {
        assert!(
            self.run(CALL_TIMEOUT, |rig| rig.client.streams[stream].has_reply(xid)),
            "no reply to {xid} at {:?}: {}",
            self.now,
            self.describe(stream)
        );
        self.client.streams[stream].take_reply(xid).expect("it is there")
    }

    /// Both ends' view of a connection, for the message of a test that failed.
    pub fn describe(&self, stream: usize) -> String {
        let stream = &self.client.streams[stream];
        let tcp = self.server.shard.tcp();
        let infos = tcp.connections().filter_map(|id| tcp.info(id));
        let server: Vec<_> = infos.filter(|info| info.remote.port() == stream.port).collect();
        let client = self.client.tcp.info(stream.id);
        format!("closed {:?}, {} bytes unfinished; client {client:#?}, server {server:#?}", stream.closed, stream.unfinished())
    }

    /// CREATE (UNCHECKED) in the root; the handle.
    pub fn create(&mut self, stream: usize, name: &[u8]) -> Vec<u8> {
        let root = self.server.root.clone();
        self.call(stream, nfs::CREATE, &nfs::create(&root, name)).ok().created()
    }

    pub fn write(&mut self, stream: usize, file: &[u8], offset: u64, data: &[u8]) {
        let mut answer = self.call(stream, nfs::WRITE, &nfs::write(file, offset, data)).ok();
        answer.wcc();
        assert_eq!(answer.u32() as usize, data.len());
    }

    pub fn truncate(&mut self, stream: usize, file: &[u8], size: u64) {
        self.call(stream, nfs::SETATTR, &nfs::set_size(file, size)).ok();
    }

    pub fn remove(&mut self, stream: usize, name: &[u8]) {
        let root = self.server.root.clone();
        self.call(stream, nfs::REMOVE, &Args::new().opaque(&root).opaque(name)).ok();
    }

    pub fn read(&mut self, stream: usize, file: &[u8], offset: u64, count: u32) -> Vec<u8> {
        self.call(stream, nfs::READ, &nfs::read(file, offset, count)).ok().data()
    }

    /// Closes every stream that is left in good order and waits until both ends have forgotten them.
    pub fn close_all(&mut self) {
        for stream in 0..self.client.streams.len() {
            self.client.close(self.now, stream);
        }
        let over =
            |rig: &mut Self| rig.client.streams.iter().all(|stream| stream.closed.is_some()) && rig.server.connections() == 0;
        // One whose reset was lost is closed once it is idle.
        let closed = self.run(Duration::from_secs(10_000), over);
        let mut left = Vec::new();
        self.server.shard.tcp().visit_from(0, usize::MAX, |info| left.push(info));
        assert!(closed, "connections are left: {} at the server, {left:?}", self.server.connections());
    }
}
