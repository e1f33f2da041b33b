//! One core with two ports, on a virtual clock: what happens to one port's device does not stop the other's clients.

mod support;

use std::cell::Cell;
use std::net::SocketAddr;
use std::rc::Rc;

use nfsplice::buf::Slice;
use nfsplice::net::memory_link::{EndOptions, Impairments, MemoryEnd, MemoryLink};
use nfsplice::net::{Device, DeviceCapabilities, RxFrame, TxOffload, TxRefused};
use nfsplice::time::{Duration, Instant};
use support::client::Client;
use support::nfs::{self, Answer, Args, CREATE, GETATTR, READ, WRITE};
use support::server::{Server, Setup};
use support::{CLIENT_MAC, SERVER_MAC};

/// Frames that a shut device holds.
const RING_FRAMES: usize = 4;
const ROUNDS_MAX: usize = 100_000;
const CALL_TIMEOUT: Duration = Duration::from_secs(100);

/// Takes as many frames as its ring has room for.
struct Valve {
    end: MemoryEnd,
    bursts: Bursts,
}

/// How many bursts may leave.
type Bursts = Rc<Cell<usize>>;
const OPEN: usize = usize::MAX;

impl Device for Valve {
    fn capabilities(&self) -> &DeviceCapabilities {
        self.end.capabilities()
    }

    fn receive(&mut self, out: &mut Vec<RxFrame>) -> usize {
        self.end.receive(out)
    }

    fn transmit(&mut self, header: &[u8], payload: &[Slice], offload: &TxOffload) -> Result<(), TxRefused> {
        self.end.transmit(header, payload, offload)
    }

    fn flush(&mut self) -> usize {
        let left = self.bursts.get();
        if left == 0 {
            return 0;
        }
        let taken = self.end.flush();
        if taken > 0 && left != OPEN {
            self.bursts.set(left - 1);
        }
        taken
    }
}

/// A server, and a client behind each of its ports.
struct Rig {
    now: Instant,
    server: Server<Valve>,
    ports: Vec<Port>,
}

struct Port {
    link: MemoryLink,
    client: Client<MemoryEnd>,
    bursts: Bursts,
}

impl Rig {
    /// A port with IPv4 alone, if `count` is 2 before one whose client uses IPv6: each call goes by the port that has its address.
    fn new(count: usize) -> Rig {
        let setups = [Setup::default(), Setup { ipv6: true, ..Setup::default() }];
        let (mut ports, mut devices) = (Vec::new(), Vec::new());
        for setup in &setups[2 - count..] {
            let mut own = EndOptions::plain(SERVER_MAC, setup.mtu);
            own.ring_frames = RING_FRAMES;
            let ends = [EndOptions::plain(CLIENT_MAC, setup.mtu), own];
            let (link, client, end) = MemoryLink::new(0, [Impairments::default(); 2], ends);
            let bursts = Rc::new(Cell::new(OPEN));
            devices.push((setup, Valve { end, bursts: Rc::clone(&bursts) }));
            ports.push(Port { link, client: Client::new(setup, client), bursts });
        }
        Rig { now: Instant::ZERO, server: Server::on_ports(&setups[0], devices), ports }
    }

    fn settle(&mut self) {
        for _ in 0..ROUNDS_MAX {
            let clients: usize = self.ports.iter_mut().map(|port| port.client.turn(self.now)).sum();
            if self.server.shard.turn(self.now) + clients == 0 {
                return;
            }
        }
        panic!("busy for ever at {:?}", self.now);
    }

    /// Everything until `end`, or until `done`; whether it is.
    fn run(&mut self, limit: Duration, mut done: impl FnMut(&mut Rig) -> bool) -> bool {
        let end = self.now + limit;
        loop {
            self.settle();
            if done(self) {
                return true;
            }
            let ports = self.ports.iter().flat_map(|port| [port.link.poll_timeout(), port.client.poll_timeout()]);
            let next = ports.chain([self.server.shard.poll_timeout()]).flatten().min().unwrap_or(end);
            self.now = self.now.max(next.min(end));
            for port in &self.ports {
                port.link.set_now(self.now);
            }
            if next > end || self.now == end {
                self.settle();
                return done(self);
            }
        }
    }

    fn pass(&mut self, time: Duration) {
        self.run(time, |_| false);
    }

    fn connect(&mut self, port: usize) -> usize {
        let stream = self.ports[port].client.connect(self.now);
        assert!(self.run(CALL_TIMEOUT, |rig| rig.ports[port].client.streams[stream].connected), "no connection");
        stream
    }

    fn start(&mut self, port: usize, stream: usize, procedure: u32, arguments: &Args) -> u32 {
        self.ports[port].client.call(self.now, stream, procedure, arguments)
    }

    fn answer(&mut self, port: usize, stream: usize, xid: u32, limit: Duration) -> Option<Answer> {
        let there = self.run(limit, |rig| rig.ports[port].client.streams[stream].has_reply(xid));
        there.then(|| self.ports[port].client.streams[stream].take_reply(xid).expect("it is there"))
    }

    fn call(&mut self, port: usize, stream: usize, procedure: u32, arguments: &Args) -> Answer {
        let xid = self.start(port, stream, procedure, arguments);
        self.answer(port, stream, xid, CALL_TIMEOUT).expect("a reply")
    }

    /// A file with this in it.
    fn file(&mut self, port: usize, stream: usize, data: &[u8]) -> Vec<u8> {
        let root = self.server.root.clone();
        let file = self.call(port, stream, CREATE, &nfs::create(&root, b"file")).ok().created();
        self.call(port, stream, WRITE, &nfs::write(&file, 0, data)).ok();
        file
    }

    /// Closes all connections; no page may be out then but the file's.
    fn end(mut self) {
        for port in &mut self.ports {
            for stream in 0..port.client.streams.len() {
                port.client.close(self.now, stream);
            }
        }
        assert!(self.run(Duration::from_secs(600), |rig| rig.server.connections() == 0), "connections are left");
        assert_eq!(self.server.pages_out().1, 0, "pages of replies");
    }
}

fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|at| (at * 31 + at / 251) as u8).collect()
}

/// A call over port 0 is answered at once, whatever port 1 does.
fn ask_at_once(rig: &mut Rig, stream: usize) {
    let asked = rig.start(0, stream, GETATTR, &Args::new().opaque(&rig.server.root.clone()));
    rig.answer(0, stream, asked, Duration::ZERO).expect("an answer without any wait").ok();
}

/// The port takes nothing any more, and a reply of 500,000 bytes fills its ring and waits: the call.
fn shut(rig: &mut Rig, port: usize, stream: usize) -> u32 {
    let file = rig.file(port, stream, &pattern(500_000));
    rig.ports[port].bursts.set(0);
    let asked = rig.start(port, stream, READ, &nfs::read(&file, 0, 500_000));
    rig.pass(Duration::from_millis(1));
    asked
}

fn is_whole(reply: Option<Answer>) -> bool {
    reply.expect("a reply").ok().data() == pattern(500_000)
}

const STRANGERS: usize = 50;

/// So many ask for a port that nobody listens at: more than a turn answers.
fn knock(rig: &mut Rig, port: usize) {
    let client = &mut rig.ports[port].client;
    let [local, remote] = client.addresses();
    for _ in 0..STRANGERS {
        client.tcp.connect(rig.now, SocketAddr::new(local, 0), SocketAddr::new(remote, 9)).unwrap();
    }
}

/// A pulled cable, or a guest that has stopped: the ring stays full.
#[test]
fn a_port_whose_device_takes_nothing_does_not_stop_the_other() {
    let mut rig = Rig::new(2);
    let stream = rig.connect(0);
    let of_other: Vec<usize> = (0..8).map(|_| rig.connect(1)).collect();
    let data = pattern(500_000);
    let file = rig.file(1, of_other[0], &data);
    rig.ports[1].bursts.set(0);
    let read = nfs::read(&file, 0, 500_000);
    let asked: Vec<u32> = of_other.iter().map(|stream| rig.start(1, *stream, READ, &read)).collect();
    rig.pass(Duration::from_millis(1));
    assert_eq!(rig.server.shard.counters().device_full, 1, "its ring is full");
    for _ in 0..2_000 {
        ask_at_once(&mut rig, stream);
        rig.pass(Duration::from_millis(1));
    }
    assert_eq!(rig.server.shard.counters().device_full, 1, "one packet waits");
    rig.ports[1].bursts.set(OPEN);
    for (stream, xid) in of_other.into_iter().zip(asked) {
        let reply = rig.answer(1, stream, xid, CALL_TIMEOUT).expect("a reply");
        assert!(reply.ok().data() == data, "wrong bytes");
    }
    rig.end();
}

/// One burst of four frames every 5 ms.
#[test]
fn a_port_whose_device_is_slow_does_not_slow_the_other_down() {
    let mut rig = Rig::new(2);
    let (stream, of_other) = (rig.connect(0), rig.connect(1));
    let data = pattern(100_000);
    let file = rig.file(1, of_other, &data);
    let read = nfs::read(&file, 0, 100_000);
    rig.ports[1].bursts.set(0);
    let asked = rig.start(1, of_other, READ, &read);
    let mut rounds = 0;
    loop {
        let fast = rig.start(0, stream, READ, &read);
        assert!(rig.answer(0, stream, fast, Duration::ZERO).expect("without any wait").ok().data() == data);
        if let Some(reply) = rig.answer(1, of_other, asked, Duration::ZERO) {
            assert!(reply.ok().data() == data, "wrong bytes");
            break;
        }
        rig.pass(Duration::from_millis(5));
        rig.ports[1].bursts.set(1);
        rounds += 1;
        assert!(rounds < 1_000, "the slow port starves");
    }
    let counters = *rig.server.shard.counters();
    assert!(rounds >= 10 && counters.device_full >= 10, "{rounds} rounds, {counters:?}");
    rig.ports[1].bursts.set(OPEN);
    rig.end();
}

/// What is of no connection, such as a reset, is not kept for a device that has no room.
#[test]
fn resets_for_a_full_device_are_dropped_and_counted() {
    let mut rig = Rig::new(2);
    let (stream, of_other) = (rig.connect(0), rig.connect(1));
    shut(&mut rig, 1, of_other);
    rig.server.shard.abort_all(rig.now);
    rig.settle();
    let counters = *rig.server.shard.counters();
    assert_eq!((counters.device_full, counters.device_full_drops), (1, 1));
    assert!(rig.ports[0].client.streams[stream].closed.is_some(), "the other's reset has left");
    assert!(rig.server.shard.has_transmit(), "a packet waits yet");
    rig.ports[1].bursts.set(OPEN);
    rig.settle();
    assert!(!rig.server.shard.has_transmit());
}

/// The core is not kept awake for them (`Rig::settle` comes to rest), and they have their answers afterwards.
#[test]
fn strangers_of_a_full_device_wait_and_do_not_keep_the_core_busy() {
    let mut rig = Rig::new(1);
    let stream = rig.connect(0);
    let asked = shut(&mut rig, 0, stream);
    let before = rig.server.shard.tcp().counters().out_rsts;
    knock(&mut rig, 0);
    rig.pass(Duration::from_millis(500));
    assert_eq!(rig.server.shard.tcp().counters().out_rsts - before, STRANGERS as u64, "they wait");
    assert!(rig.server.shard.poll_timeout().is_none_or(|at| at > rig.now));
    rig.ports[0].bursts.set(OPEN);
    assert!(is_whole(rig.answer(0, stream, asked, CALL_TIMEOUT)));
    assert_eq!(rig.ports[0].client.tcp.counters().attempt_fails, STRANGERS as u64, "all were refused");
    rig.end();
}

/// Beside another port they are not kept: their answers are dropped, a few in each turn, until none waits.
#[test]
fn strangers_of_one_full_device_of_two_are_dropped_and_do_not_keep_the_core_busy() {
    let mut rig = Rig::new(2);
    let (stream, of_other) = (rig.connect(0), rig.connect(1));
    let asked = shut(&mut rig, 1, of_other);
    knock(&mut rig, 1);
    rig.settle();
    assert_eq!(rig.server.shard.counters().device_full_drops, STRANGERS as u64);
    assert!(rig.server.shard.poll_timeout().is_none_or(|at| at > rig.now));
    ask_at_once(&mut rig, stream);
    rig.ports[1].bursts.set(OPEN);
    assert!(is_whole(rig.answer(1, of_other, asked, CALL_TIMEOUT)));
    rig.end();
}

#[test]
fn the_only_port_of_a_core_is_waited_for_as_long_as_it_takes() {
    let mut rig = Rig::new(1);
    let stream = rig.connect(0);
    let asked = shut(&mut rig, 0, stream);
    rig.pass(Duration::from_secs(2));
    let counters = *rig.server.shard.counters();
    assert_eq!((counters.device_full, counters.device_full_drops), (1, 0));
    rig.ports[0].bursts.set(OPEN);
    assert!(is_whole(rig.answer(0, stream, asked, CALL_TIMEOUT)));
    rig.end();
}
