//! The load generator in the rig: its transport over an in-memory link, with the server behind it, on the rig's virtual clock.
//!
//! What a live transport does by waiting, this one does by letting the server work and moving the clock.

use std::net::SocketAddr;

use nfsplice::buf::{FragmentArena, PagePool, RxChain, Slice};
use nfsplice::load::pattern::Pattern;
use nfsplice::load::prepare::{Target, Wanted, WantedFiles, prepare};
use nfsplice::load::protocol::Caller;
use nfsplice::load::runner::{Job, Runner, Schedule};
use nfsplice::load::stack::Stack;
use nfsplice::load::statistics::Sample;
use nfsplice::load::transport::{Figure, StreamEvent, StreamKey, Transport, TransportError};
use nfsplice::load::workload::{CommitAll, Fill, Shape, Source};
use nfsplice::net::memory_link::{EndOptions, Impairments, MemoryEnd, MemoryLink};
use nfsplice::net::{Device, Interface, InterfaceOptions};
use nfsplice::tcp::Endpoint;
use nfsplice::time::{Duration, Instant};

use super::client::CLIENT_ADDRESS;
use super::server::{NFS_PORT, SERVER_ADDRESS, Server, Setup};
use super::{CLIENT_MAC, SERVER_MAC};

/// What one look at the server costs in virtual time: the clock must move even if nobody waits.
const TURN: Duration = Duration::from_micros(1);

pub struct RigTransport {
    pub now: Instant,
    link: MemoryLink,
    pub server: Server<MemoryEnd>,
    stack: Stack<MemoryEnd>,
    pools: (PagePool, PagePool),
    /// From when to when the server does nothing.
    pub stall: Option<(Instant, Instant)>,
}

impl RigTransport {
    pub fn new(setup: &Setup, seed: u64, impairments: [Impairments; 2]) -> RigTransport {
        let ends = [EndOptions::plain(CLIENT_MAC, setup.mtu), EndOptions::plain(SERVER_MAC, setup.mtu)];
        let (link, client, server) = MemoryLink::new(seed, impairments, ends);
        let calls = PagePool::anonymous(64, 256 << 10).unwrap();
        let options = InterfaceOptions::new(client.capabilities().mac, setup.mtu, CLIENT_ADDRESS.into(), 24);
        let interface = Interface::new(options, FragmentArena::new(calls.clone()).unwrap(), Instant::ZERO).unwrap();
        RigTransport {
            now: Instant::ZERO,
            link,
            server: Server::new(setup, server),
            stack: Stack::new(client, interface, Endpoint::new(setup.client_tcp.clone(), [1; 16]), CLIENT_ADDRESS.into(), None),
            pools: (calls, PagePool::anonymous(1, Pattern::BLOCK).unwrap()),
            stall: None,
        }
    }

    fn advance(&mut self, to: Instant) {
        self.now = self.now.max(to);
        self.link.set_now(self.now);
    }

    fn stalled(&self) -> bool {
        self.stall.is_some_and(|(from, until)| self.now >= from && self.now < until)
    }
}

impl Transport for RigTransport {
    fn now(&self) -> Instant {
        self.now
    }

    fn receive(&mut self) -> usize {
        self.advance(self.now + TURN);
        if !self.stalled() {
            self.server.shard.turn(self.now);
        }
        self.stack.receive(self.now)
    }

    fn poll_event(&mut self) -> Option<StreamEvent> {
        self.stack.poll_event(self.now)
    }

    fn connect(&mut self, remote: SocketAddr) -> Result<StreamKey, TransportError> {
        self.stack.connect(self.now, remote)
    }

    fn reopen(&mut self, stream: StreamKey, remote: SocketAddr) -> Result<(), TransportError> {
        self.stack.reopen(self.now, stream, remote)
    }

    fn chain(&mut self, stream: StreamKey) -> Option<&mut RxChain> {
        self.stack.chain(stream)
    }

    fn received(&mut self, stream: StreamKey) {
        self.stack.received(self.now, stream);
    }

    fn send(&mut self, stream: StreamKey, gather: &mut Vec<Slice>) -> Result<(), TransportError> {
        self.stack.send(self.now, stream, gather)
    }

    fn close(&mut self, stream: StreamKey) {
        self.stack.close(self.now, stream);
    }

    fn transmit(&mut self) -> usize {
        self.stack.transmit(self.now)
    }

    fn wait(&mut self, until: Instant) {
        if !self.stalled() && self.server.shard.turn(self.now) > 0 {
            return;
        }
        let stall_end = self.stall.filter(|_| self.stalled()).map(|(_, end)| end);
        let server = if stall_end.is_some() { stall_end } else { self.server.shard.poll_timeout() };
        let next = [Some(until), server, self.link.poll_timeout(), self.stack.poll_timeout()].into_iter().flatten().min();
        self.advance(next.unwrap_or(self.now + TURN));
    }

    fn pools(&self) -> (PagePool, PagePool) {
        self.pools.clone()
    }

    fn retransmissions(&mut self) -> u64 {
        self.stack.retransmissions()
    }

    fn figures(&mut self, out: &mut Vec<Figure>) {
        self.stack.figures(out);
    }
}

pub const CALLER: Caller = Caller { uid: 0, gid: 0 };

pub fn wanted(shape: &Shape) -> Wanted {
    Wanted {
        server: SERVER_ADDRESS.into(),
        export: "/export".into(),
        nfs_port: Some(NFS_PORT),
        // The rig's server answers every program on every port.
        mount_port: Some(NFS_PORT),
        caller: CALLER,
        timeout: Duration::from_secs(60),
        files: Some(WantedFiles { directory: "load".into(), count: shape.files, bytes: shape.file_bytes }),
    }
}

pub fn job(target: &Target, shape: &Shape, connections: usize, depth: usize) -> Job {
    Job {
        server: target.nfs,
        connections,
        depth,
        caller: CALLER,
        io_bytes: shape.io_bytes,
        file_bytes: shape.file_bytes,
        verify: true,
        timeout: Duration::from_secs(100),
        seed: 3,
        xids: (77, 1),
        reconnect: false,
    }
}

/// Everything that a source has, in a run.
pub fn carry_out<S: Source>(
    transport: RigTransport,
    source: S,
    target: &Target,
    job: Job,
    schedule: impl Fn(Instant) -> Schedule,
) -> (RigTransport, Sample) {
    let pattern = Pattern::in_pool(&transport.pools().1).unwrap();
    let mut runner = Runner::new(transport, source, job, target.set.clone().into(), pattern).unwrap();
    let mut started = false;
    while !runner.is_done() {
        if !started && runner.is_ready() {
            started = true;
            let now = runner.transport().now();
            runner.start(schedule(now));
        }
        if runner.turn() == 0 {
            let until = runner.poll_timeout();
            runner.transport().wait(until);
        }
        assert!(runner.transport().now < Instant::from_millis(10_000_000), "it does not end");
    }
    runner.finish()
}

/// The files of `shape`, made and filled.
pub fn prepared(mut transport: RigTransport, shape: &Shape) -> (RigTransport, Target) {
    use nfsplice::load::pacing::Pace;
    let target = prepare(&mut transport, &wanted(shape)).unwrap();
    let now_on = |start| Schedule { pace: Pace::Closed, start, ramp: Duration::ZERO, duration: None, count: None };
    let fill = Fill::new(target.unfilled.clone(), *shape);
    let (transport, sample) = carry_out(transport, fill, &target, job(&target, shape, 1, 8), now_on);
    assert!(sample.faults.is_clean(), "{:?}", sample.faults);
    let commits = CommitAll(target.unfilled.clone().into_iter());
    let (transport, sample) = carry_out(transport, commits, &target, job(&target, shape, 1, 8), now_on);
    assert!(sample.faults.is_clean(), "{:?}", sample.faults);
    (transport, target)
}
