//! Two endpoints over an in-memory link with seeded faults, on a clock that jumps to the next thing that happens.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::net::{IpAddr, SocketAddr};

use crate::buf::{Checksum, FragmentArena, PagePool, RxPacket, Slice};
use crate::tcp::{
    CongestionControl, ConnectionId, Ecn, Endpoint, Event, FourTuple, IcmpError, Options, Reason, Transmit, TransmitLimits,
};
use crate::time::{Duration, Instant};
use crate::wire::checksum::Sum;
use crate::wire::protocol;
use crate::wire::tcp::{CHECKSUM_OFFSET, Flags, Repr};

/// SplitMix64: small, seedable, good enough to disturb a link.
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub fn below(&mut self, n: u64) -> u64 {
        self.next() % n.max(1)
    }

    /// True `permille` times of 1000.
    pub fn chance(&mut self, permille: u32) -> bool {
        self.below(1000) < u64::from(permille)
    }
}

/// What the link does to packets, in packets of 1000.
#[derive(Clone, Copy, Debug)]
pub struct Faults {
    pub loss: u32,
    pub duplicate: u32,
    pub reorder: u32,
    pub corrupt: u32,
    /// Congestion marks on what is ECN-capable.
    pub mark: u32,
    /// Steps of the clock in which nothing ran for up to five seconds.
    pub jump: u32,
    /// Longer IP packets vanish, from the hundredth packet on; with `icmp` the sender is told.
    pub path_mtu: u16,
    pub icmp: bool,
    pub delay: Duration,
    /// Each packet takes up to this much longer, and so may be overtaken.
    pub jitter: Duration,
    /// Steps of the clock after which nothing gets through for up to ten seconds, in one direction or both.
    pub cut: u32,
}

pub const CLEAN: Faults = Faults {
    loss: 0,
    duplicate: 0,
    reorder: 0,
    corrupt: 0,
    mark: 0,
    jump: 0,
    path_mtu: u16::MAX,
    icmp: true,
    delay: Duration::from_millis(1),
    jitter: Duration::ZERO,
    cut: 0,
};

pub struct Side {
    pub endpoint: Endpoint,
    pub ip: IpAddr,
    pub limits: TransmitLimits,
    pub pool: PagePool,
    transmit: Transmit,
    pub id: Option<ConnectionId>,
    pub connected: bool,
    pub peer_closed: bool,
    pub closed: Option<Reason>,
    pub received: Vec<u8>,
    /// Bytes to be sent, and how far.
    pub script: Vec<u8>,
    pub queued: usize,
    pub close_when_done: bool,
    /// Bytes taken per visit; 0: does not read.
    pub appetite: usize,
    pub packets: u64,
}

#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct InFlight {
    at: Instant,
    number: u64,
    to: usize,
    bytes: Vec<u8>,
    ecn: u8,
}

pub struct Pair {
    pub now: Instant,
    pub sides: [Side; 2],
    pub faults: Faults,
    pub random: Random,
    link: BinaryHeap<Reverse<InFlight>>,
    number: u64,
    /// Until when nothing reaches a side.
    cut_until: [Instant; 2],
    /// Draws what came to the simulator later, so that the rest of a seed stays what it was.
    later: Random,
}

pub const PORT: u16 = 2049;

impl Side {
    fn new(options: Options, ip: &str, key: u8) -> Side {
        let pool = PagePool::anonymous(1500, 4096).unwrap();
        let mut endpoint = Endpoint::new(options, [key; 16]);
        endpoint.set_copy_out(FragmentArena::new(pool.clone()).unwrap());
        Side {
            endpoint,
            ip: ip.parse().unwrap(),
            limits: TransmitLimits::default(),
            pool,
            transmit: Transmit::default(),
            id: None,
            connected: false,
            peer_closed: false,
            closed: None,
            received: Vec::new(),
            script: Vec::new(),
            queued: 0,
            close_when_done: true,
            appetite: usize::MAX,
            packets: 0,
        }
    }

    /// What an application does when it is woken.
    fn act(&mut self, now: Instant, random: &mut Random) {
        while let Some(event) = self.endpoint.poll_event() {
            match event {
                Event::Accepted { id, .. } | Event::Connected(id) => (self.id, self.connected) = (Some(id), true),
                Event::PeerClosed(_) => {
                    self.drain(now, usize::MAX);
                    self.peer_closed = true;
                }
                Event::Closed(id, reason) => {
                    assert!(self.endpoint.info(id).is_none(), "a closed id is refused");
                    self.closed = Some(reason);
                    self.id = None;
                }
                Event::Readable(_) => self.drain(now, self.appetite),
                Event::Writable(_) => {}
            }
        }
        self.feed(now, random);
    }

    pub fn drain(&mut self, now: Instant, most: usize) {
        let Some(id) = self.id else { return };
        let Some(chain) = self.endpoint.receive(id) else { return };
        let n = chain.len().min(most);
        self.received.extend(chain.view(0, n).unwrap().to_vec());
        chain.consume(n);
        self.endpoint.received(now, id);
    }

    /// Queues records of random sizes in random slices while there is room.
    fn feed(&mut self, now: Instant, random: &mut Random) {
        let Some(id) = self.id else { return };
        while self.queued < self.script.len() {
            let len = (1 + random.below(20_000) as usize).min(self.script.len() - self.queued);
            let mut gather: Vec<Slice> = Vec::new();
            let mut at = self.queued;
            while at < self.queued + len {
                let n = (1 + random.below(4096) as usize).min(self.queued + len - at);
                let Some(mut page) = self.pool.allocate() else { return };
                page[..n].copy_from_slice(&self.script[at..at + n]);
                let mut slice = page.freeze();
                slice.truncate(n);
                gather.push(slice);
                at += n;
            }
            if self.endpoint.send(now, id, &mut gather).is_err() {
                return;
            }
            assert!(gather.is_empty());
            self.queued += len;
        }
        if self.close_when_done && self.connected {
            self.endpoint.close(now, id);
        }
    }
}

impl Pair {
    pub fn new(seed: u64, faults: Faults, options: [Options; 2]) -> Pair {
        let [a, b] = options;
        let mut sides = [Side::new(a, "10.0.0.1", 1), Side::new(b, "10.0.0.2", 2)];
        sides[1].endpoint.listen(PORT).unwrap();
        let (random, later) = (Random(seed), Random(!seed));
        let cut_until = [Instant::ZERO; 2];
        Pair { now: Instant::from_millis(1_000), sides, faults, random, link: BinaryHeap::new(), number: 0, cut_until, later }
    }

    pub fn connect(&mut self) {
        let local = SocketAddr::new(self.sides[0].ip, 0);
        let remote = SocketAddr::new(self.sides[1].ip, PORT);
        let id = self.sides[0].endpoint.connect(self.now, local, remote).unwrap();
        self.sides[0].id = Some(id);
    }

    /// Hands everything both sides want to send to the link.
    pub fn flush(&mut self) {
        for from in 0..2 {
            loop {
                let side = &mut self.sides[from];
                if !side.endpoint.poll_transmit(self.now, &side.limits, &mut side.transmit) {
                    break;
                }
                check_transmit(&side.transmit, &side.limits);
                side.packets += 1;
                for bytes in segments(&side.transmit) {
                    if std::env::var_os("TCP_TRACE").is_some() {
                        let (repr, len) = Repr::parse(&bytes).unwrap();
                        let info = self.sides[from].id.and_then(|id| self.sides[from].endpoint.info(id));
                        eprintln!(
                            "{:>12} {from}> {:?} seq {} len {} ack {} win {} {:?} cwnd {:?} srtt {:?}",
                            self.now.nanos() / 1000,
                            repr.flags,
                            repr.seq.0,
                            bytes.len() - len,
                            repr.ack.0,
                            repr.window,
                            repr.options.sack.as_slice(),
                            info.as_ref().map(|info| (info.congestion_window, info.slow_start_threshold)),
                            info.and_then(|info| info.smoothed_rtt)
                        );
                    }
                    let ecn = self.sides[from].transmit.ecn;
                    self.carry(1 - from, bytes, ecn);
                }
            }
        }
    }

    /// A packet too long for the path: gone, and its sender hears of it or not.
    fn refuse(&mut self, to: usize, bytes: &[u8]) {
        let (repr, _) = Repr::parse(bytes).unwrap();
        let tuple = FourTuple {
            local_ip: self.sides[1 - to].ip,
            remote_ip: self.sides[to].ip,
            local_port: repr.src_port,
            remote_port: repr.dst_port,
        };
        if self.faults.icmp {
            let error = IcmpError::PacketTooBig { mtu: self.faults.path_mtu };
            self.sides[1 - to].endpoint.handle_icmp(self.now, &tuple, repr.seq, error);
        }
    }

    fn carry(&mut self, to: usize, bytes: Vec<u8>, ecn: u8) {
        let Faults { loss, duplicate, reorder, corrupt, delay, mark, path_mtu, jitter, .. } = self.faults;
        if self.now < self.cut_until[to] {
            return;
        }
        if self.number > 100 && 20 + bytes.len() > usize::from(path_mtu) {
            return self.refuse(to, &bytes);
        }
        let ecn = if ecn == 2 && self.random.chance(mark) { 3 } else { ecn };
        if self.random.chance(loss) {
            return;
        }
        let copies = if self.random.chance(duplicate) { 2 } else { 1 };
        for _ in 0..copies {
            let mut bytes = bytes.clone();
            if self.random.chance(corrupt) {
                let bit = self.random.below(8 * bytes.len() as u64) as usize;
                bytes[bit / 8] ^= 1 << (bit % 8);
            }
            let late = if self.random.chance(reorder) { delay * self.random.below(4) as u32 } else { Duration::ZERO };
            self.number += 1;
            let late = late + Duration::from_nanos(self.later.below(jitter.as_nanos() as u64));
            self.link.push(Reverse(InFlight { at: self.now + delay + late, number: self.number, to, bytes, ecn }));
        }
    }

    fn next_time(&self) -> Option<Instant> {
        let link = self.link.peek().map(|next| next.0.at);
        let timers = self.sides.iter().filter_map(|side| side.endpoint.poll_timeout());
        timers.chain(link).min()
    }

    /// One jump of the clock; `false`: nothing will ever happen again.
    pub fn step(&mut self) -> bool {
        let Some(next) = self.next_time() else { return false };
        self.now = self.now.max(next);
        if self.random.chance(self.faults.jump) {
            self.now += Duration::from_millis(self.random.below(5_000));
        }
        if self.later.chance(self.faults.cut) {
            let until = self.now + Duration::from_millis(self.later.below(10_000));
            let sides = [0..1, 1..2, 0..2][self.later.below(3) as usize].clone();
            self.cut_until[sides].fill(until);
        }
        while self.link.peek().is_some_and(|first| first.0.at <= self.now) {
            let Reverse(InFlight { to, bytes, ecn, .. }) = self.link.pop().unwrap();
            let (src, dst) = (self.sides[1 - to].ip, self.sides[to].ip);
            let packet = RxPacket::from_vec(bytes);
            self.sides[to].endpoint.handle_marked_segment(self.now, src, dst, packet, Checksum::Unknown, ecn);
        }
        for side in &mut self.sides {
            side.endpoint.handle_timeout(self.now);
            side.act(self.now, &mut self.random);
        }
        self.flush();
        true
    }

    pub fn run_until(&mut self, limit: Duration, mut done: impl FnMut(&Pair) -> bool) -> bool {
        let end = self.now + limit;
        for side in &mut self.sides {
            side.act(self.now, &mut self.random);
        }
        self.flush();
        while !done(self) {
            if self.now > end || !self.step() {
                return done(self);
            }
        }
        true
    }
}

/// What every transmission must satisfy.
fn check_transmit(transmit: &Transmit, limits: &TransmitLimits) {
    let header = usize::from(transmit.header_len);
    let payload = transmit.payload_len();
    match transmit.tso_mss {
        None => {
            assert!(20 + header + payload <= usize::from(limits.mtu), "a packet longer than the MTU");
            assert!(transmit.payload.len() < usize::from(limits.segments_per_packet_max));
        }
        Some(mss) => {
            let mss = usize::from(mss);
            assert!(payload > mss && payload <= limits.tso_bytes_max as usize);
            assert!(20 + header + mss <= usize::from(limits.mtu));
            assert!(transmit.payload.len() < usize::from(limits.segments_tso_max));
            let mut owner = Vec::new();
            for (index, slice) in transmit.payload.iter().enumerate() {
                owner.extend(std::iter::repeat_n(index, slice.len()));
            }
            for packet in owner.chunks(mss) {
                assert!(packet[packet.len() - 1] - packet[0] + 2 <= usize::from(limits.segments_per_packet_max));
            }
        }
    }
}

/// What a device makes of a transmission: packets with checksums.
pub fn segments(transmit: &Transmit) -> Vec<Vec<u8>> {
    let payload: Vec<u8> = transmit.payload.iter().flat_map(|slice| slice.to_vec()).collect();
    let (repr, _) = Repr::parse(transmit.header()).unwrap();
    let mss = transmit.tso_mss.map_or(payload.len().max(1), usize::from);
    let count = payload.len().div_ceil(mss).max(1);
    (0..count)
        .map(|n| {
            let part = &payload[n * mss..((n + 1) * mss).min(payload.len())];
            let mut flags = repr.flags;
            if n + 1 < count {
                flags = Flags(flags.0 & !(Flags::FIN.0 | Flags::PSH.0));
            }
            let repr = Repr { seq: repr.seq + (n * mss) as u32, flags, ..repr };
            encode(transmit.src, transmit.dst, &repr, part)
        })
        .collect()
}

pub fn encode(src: IpAddr, dst: IpAddr, repr: &Repr, payload: &[u8]) -> Vec<u8> {
    let mut header = [0; 60];
    let len = repr.emit(&mut header);
    let mut bytes = header[..len].to_vec();
    bytes.extend_from_slice(payload);
    let mut sum = Sum::pseudo_header(src, dst, protocol::TCP, bytes.len());
    sum.add(&bytes);
    bytes[CHECKSUM_OFFSET..CHECKSUM_OFFSET + 2].copy_from_slice(&sum.finish().to_be_bytes());
    bytes
}

fn script(seed: u64, len: usize) -> Vec<u8> {
    let mut random = Random(seed);
    (0..len).map(|_| random.next() as u8).collect()
}

fn both(options: Options) -> [Options; 2] {
    [options.clone(), options]
}

#[test]
fn data_goes_both_ways_and_both_close() {
    let mut pair = Pair::new(1, CLEAN, both(Options::default()));
    pair.sides[0].script = script(1, 300_000);
    pair.sides[1].script = script(2, 500_000);
    pair.connect();
    let over = |pair: &Pair| pair.sides.iter().all(|side| side.closed.is_some());
    assert!(pair.run_until(Duration::from_secs(30), over));
    for (side, peer) in [(0, 1), (1, 0)] {
        assert!(pair.sides[side].received == pair.sides[peer].script, "side {side}");
        assert_eq!(pair.sides[side].closed, Some(Reason::Finished));
        assert_eq!(pair.sides[side].endpoint.counters().retrans_segs, 0);
    }
}

/// Memory that a transfer, and its losses, have left is given back once nothing is sent for long, and nothing else is.
#[test]
fn a_silent_connection_keeps_no_memory_for_its_next_call() {
    let mut pair = Pair::new(7, Faults { loss: 50, ..CLEAN }, both(Options::default()));
    pair.sides.iter_mut().for_each(|side| side.close_when_done = false);
    pair.connect();
    for round in 1..4 {
        for (number, side) in pair.sides.iter_mut().enumerate() {
            side.script.extend(script(2 * round + number as u64, 200_000));
        }
        let there = |pair: &Pair| pair.sides.iter().all(|side| side.received.len() == round as usize * 200_000);
        assert!(pair.run_until(Duration::from_secs(60), there), "round {round}");
        assert!(pair.sides.iter().all(|side| side.endpoint.has_spare()), "it is kept for what may follow");
        pair.run_until(Duration::from_secs(30), |_| false);
        assert!(!pair.sides.iter().any(|side| side.endpoint.has_spare()), "round {round}");
    }
    for (side, peer) in [(0, 1), (1, 0)] {
        assert!(pair.sides[side].received == pair.sides[peer].script, "side {side}");
    }
}

/// What can be told apart from outside: when it was over, and what both sides sent and counted.
type Course = (Instant, [(u64, crate::tcp::TcpCounters); 2]);

/// Faults of a seed that came to the simulator later than the others, from random numbers of their own.
fn later_faults(seed: u64) -> Faults {
    let mut random = Random(seed ^ 0x1a7e);
    Faults {
        jitter: Duration::from_micros([0, 0, 30, 3_000][random.below(4) as usize]),
        cut: [0, 0, 0, 3][random.below(4) as usize],
        ..CLEAN
    }
}

/// A quarter of the sides have hardly any pages, for what they send and for what is copied out of the driver's buffers.
fn press(pair: &mut Pair) {
    for side in &mut pair.sides {
        if pair.later.chance(250) {
            side.pool = PagePool::anonymous(16, 4096).unwrap();
            side.endpoint.set_copy_out(FragmentArena::new(side.pool.clone()).unwrap());
        }
    }
}

/// Packets that both sides together may send: one for every twenty bytes. Pieces of a few hundred bytes, an ACK for each and
/// a receiver without memory that forgets what it had selectively acknowledged stay below it, an endless exchange does not.
fn packets_max(pair: &Pair) -> u64 {
    let bytes: usize = pair.sides.iter().map(|side| side.script.len()).sum();
    2_000 + bytes as u64 / 20
}

/// A whole conversation under a seed's faults, limits and options; every invariant of a finished one.
fn simulate(seed: u64, prediction: bool, coupling: bool) -> Course {
    let mut random = Random(seed ^ 0x5eed);
    let faults = Faults {
        loss: [0, 1, 10, 30, 100][random.below(5) as usize],
        duplicate: [0, 10, 50][random.below(3) as usize],
        reorder: [0, 10, 200][random.below(3) as usize],
        corrupt: [0, 0, 10][random.below(3) as usize],
        mark: [0, 20, 300][random.below(3) as usize],
        jump: [0, 0, 0, 2][random.below(4) as usize],
        path_mtu: [u16::MAX, u16::MAX, 1_400, 600][random.below(4) as usize],
        icmp: random.chance(500),
        delay: Duration::from_micros([50, 1_000, 20_000, 100_000][random.below(4) as usize]),
        ..later_faults(seed)
    };
    let mut option = || Options {
        timestamps: !random.chance(250),
        sack: !random.chance(250),
        window_scaling: !random.chance(250),
        nagle: random.chance(250),
        congestion: [CongestionControl::NewReno, CongestionControl::Cubic, CongestionControl::Dctcp][random.below(3) as usize],
        ecn: [Ecn::Off, Ecn::Accept, Ecn::Request][random.below(3) as usize],
        pacing: random.chance(250),
        receive_window_initial: [2_000, 65_536][random.below(2) as usize],
        receive_window_max: [4_000, 100_000, 2 << 20][random.below(3) as usize],
        receive_buffers_max: [20, 2048][random.below(2) as usize],
        driver_buffers_max: [30, 4096][random.below(2) as usize],
        send_queue_bytes_max: [30_000, 1 << 20][random.below(2) as usize],
        // Linux' 15 retries come to as much. Without timestamps and SACK a timeout that was backed off during a cut stays so while all
        // that is acknowledged was sent again (RFC 6298 section 3): two minutes are two retries then.
        user_timeout: Duration::from_secs(924),
        fin_wait_2_timeout: Duration::from_secs(924),
        ..Options::default()
    };
    let options = [option(), option()];
    let mut pair = Pair::new(seed, faults, options.clone());
    for side in &mut pair.sides {
        side.endpoint.set_prediction(prediction);
        side.endpoint.set_coupling(coupling);
        side.limits = TransmitLimits {
            mtu: [576, 1500, 9000][random.below(3) as usize],
            tso_bytes_max: [0, 20_000, 65_000][random.below(3) as usize],
            tso_ipv6_bytes_max: 0,
            segments_per_packet_max: [2, 3, 8, 64][random.below(4) as usize],
            segments_tso_max: [2, 17, 255][random.below(3) as usize],
        };
        let most = [0, 2_000, 200_000, 400_000][random.below(4) as usize];
        let len = random.below(most + 1) as usize;
        side.script = script(seed, len);
        side.appetite = [usize::MAX, 700][random.below(2) as usize];
    }
    press(&mut pair);
    pair.connect();
    let over = |pair: &Pair| pair.sides.iter().all(|side| side.closed.is_some());
    // Those that read a little per event get the rest when the clock stands still.
    let mut finished = false;
    for _ in 0..4_000 {
        finished = pair.run_until(Duration::from_secs(1), over);
        for side in &mut pair.sides {
            let appetite = side.appetite.saturating_mul(20);
            side.drain(pair.now, appetite);
        }
        if finished || pair.sides.iter().any(|side| side.closed.is_some_and(|reason| reason != Reason::Finished)) {
            break;
        }
    }
    let told = |pair: &Pair| {
        let info = |side: &Side| side.id.and_then(|id| side.endpoint.info(id));
        format!(
            "seed {seed} {faults:?} at {:?}\n{:#?}\n{:#?}",
            pair.now,
            info(&pair.sides[0]).map_or_else(|| format!("{:?}", pair.sides[0].closed), |info| format!("{info:?}")),
            info(&pair.sides[1]).map_or_else(|| format!("{:?}", pair.sides[1].closed), |info| format!("{info:?}")),
        )
    };
    assert!(finished, "stuck: {}", told(&pair));
    for (side, peer) in [(0, 1), (1, 0)] {
        assert!(pair.sides[side].received == pair.sides[peer].script, "bytes differ: side {side} {}", told(&pair));
        assert_eq!(pair.sides[side].closed, Some(Reason::Finished), "{}", told(&pair));
    }
    let packets: u64 = pair.sides.iter().map(|side| side.packets).sum();
    assert!(packets <= packets_max(&pair), "{packets} packets: {}", told(&pair));
    // TIME-WAIT ends, and then nothing is left: no timer, no page, no driver buffer.
    pair.run_until(Duration::from_secs(300), |_| false);
    for side in &mut pair.sides {
        assert_eq!(side.endpoint.connections().count(), 0);
        assert_eq!(side.endpoint.poll_timeout(), None);
        let counters = side.endpoint.counters();
        assert_eq!((counters.curr_connections, counters.curr_estab, counters.curr_time_wait), (0, 0, 0));
        assert_eq!(counters.driver_buffers_held, 0);
        // The link's and the transmit buffer's last packet, and the arena's two pages.
        side.transmit.payload.clear();
        assert!(side.pool.outstanding() <= 2, "pages left: {}", side.pool.outstanding());
    }
    let [a, b] = &pair.sides;
    (pair.now, [(a.packets, *a.endpoint.counters()), (b.packets, *b.endpoint.counters())])
}

#[test]
fn header_prediction_changes_nothing() {
    for seed in (0..200).step_by(3) {
        assert_eq!(simulate(seed, true, false), simulate(seed, false, false), "seed {seed}");
    }
}

/// A train's text, and what the peer is told of it, is what one segment after the other comes to: also at limits of all kinds.
#[test]
fn a_receiver_of_trains_looks_like_one_of_segments() {
    for seed in 0..60 {
        let course = |coupling| {
            let mut random = Random(seed);
            let faults = Faults { loss: [0, 5][random.below(2) as usize], delay: Duration::from_millis(2), ..CLEAN };
            let options = Options {
                timestamps: random.chance(700),
                sack: random.chance(700),
                receive_window_initial: [2_000, 65_536][random.below(2) as usize],
                receive_window_max: [4_000, 100_000, 2 << 20][random.below(3) as usize],
                receive_buffers_max: [20, 2048][random.below(2) as usize],
                driver_buffers_max: [30, 4096][random.below(2) as usize],
                quick_acks: [0, 16][random.below(2) as usize],
                ..Options::default()
            };
            let mut pair = Pair::new(seed, faults, both(options));
            for side in &mut pair.sides {
                side.endpoint.set_coupling(false);
                side.limits.segments_per_packet_max = [2, 8][random.below(2) as usize];
            }
            pair.sides[1].endpoint.set_coupling(coupling);
            pair.sides[1].appetite = [usize::MAX, 3_000][random.below(2) as usize];
            pair.sides[0].script = script(seed, 300_000);
            pair.connect();
            let mut at = Vec::new();
            for _ in 0..20_000 {
                if pair.sides[1].received.len() == 300_000 || !pair.step() {
                    break;
                }
                at.push((pair.now, pair.sides[1].received.len(), pair.sides[1].packets));
            }
            at.dedup_by_key(|(_, received, packets)| (*received, *packets));
            (at, [0, 1].map(|side| *pair.sides[side].endpoint.counters()))
        };
        assert!(course(true) == course(false), "seed {seed}");
    }
}

/// Seeds from the environment (`TCP_SEEDS=first..last`), or a few that fit a unit test.
#[test]
fn any_seed_delivers_every_byte_once_and_closes() {
    let range = std::env::var("TCP_SEEDS").ok();
    let (first, last) = range
        .as_deref()
        .and_then(|range| range.split_once(".."))
        .and_then(|(first, last)| Some((first.parse().ok()?, last.parse().ok()?)))
        .unwrap_or((0u64, 200u64));
    for seed in first..last {
        simulate(seed, true, true);
    }
}

/// Bulk one way; returns how long it took and the sender's counters.
fn bulk(faults: Faults, options: Options, bytes: usize) -> (Duration, crate::tcp::TcpCounters) {
    let mut pair = Pair::new(7, faults, both(options));
    pair.sides[0].script = script(3, bytes);
    pair.connect();
    let start = pair.now;
    assert!(pair.run_until(Duration::from_secs(600), |pair| pair.sides[1].received.len() == bytes));
    (pair.now.since(start), *pair.sides[0].endpoint.counters())
}

#[test]
fn random_loss_is_repaired_without_timeouts() {
    for delay in [Duration::from_micros(50), Duration::from_millis(5), Duration::from_millis(50)] {
        for loss in [0, 1, 10, 30] {
            let (took, counters) = bulk(Faults { loss, delay, ..CLEAN }, Options::default(), 2_000_000);
            let told = format!("{:?} {loss} of 1000: {took:?} {counters:?}", delay * 2);
            assert!(counters.rto_timeouts <= 1, "{told}");
            // NewReno's average window at this loss is 1.22 / sqrt(p) segments (RFC 5681's, by Mathis et al.); CUBIC must
            // not need more round trips than that for these 1,382 segments, one second for a lost SYN aside.
            let window = if loss == 0 { 150.0 } else { 1.22 / (f64::from(loss) / 1000.0).sqrt() };
            let round_trips = (took.as_secs_f64() - 1.2).max(0.0) / (2.0 * delay.as_secs_f64());
            assert!(round_trips < 1.25 * 1382.0 / window, "{told}");
            assert!(counters.retrans_segs < 20 + 1500 * u64::from(loss) / 500, "{told}");
        }
    }
}

/// RFC 9293 section 3.7.4 against section 3.8.6.3: a client with Nagle's algorithm writes a marker, then a body.
#[test]
fn marker_and_body_written_apart_do_not_wait_for_the_delayed_ack() {
    let options = Options { quick_acks: 0, ..Options::default() };
    let mut pair = Pair::new(1, CLEAN, [Options { nagle: true, ..Options::default() }, options]);
    for side in &mut pair.sides {
        side.close_when_done = false;
    }
    pair.connect();
    assert!(pair.run_until(Duration::from_secs(1), |pair| pair.sides[1].connected));
    for round in 1..=50 {
        let start = pair.now;
        let client = pair.sides[0].id.unwrap();
        for len in [4, 120] {
            let mut slice = pair.sides[0].pool.allocate().unwrap().freeze();
            slice.truncate(len);
            pair.sides[0].endpoint.send(pair.now, client, &mut vec![slice]).unwrap();
            pair.flush();
        }
        assert!(pair.run_until(Duration::from_secs(1), |pair| pair.sides[1].received.len() == round * 124));
        // Three trips of 1 ms and the short delay.
        assert!(pair.now.since(start) < Duration::from_millis(5), "round {round}: {:?}", pair.now.since(start));
    }
}

/// RFC 4821 section 7.7: a path that swallows large packets without a word delays a transfer, and does not stop it.
#[test]
fn a_black_hole_on_the_path_is_survived() {
    for path_mtu in [1_400, 600] {
        let faults = Faults { path_mtu, icmp: false, ..CLEAN };
        let (took, counters) = bulk(faults, Options::default(), 1_000_000);
        assert!(took < Duration::from_secs(10), "{path_mtu}: {took:?}");
        assert!(counters.pmtu_black_holes > 0 && counters.rto_timeouts < 12, "{path_mtu}: {counters:?}");
    }
}

/// RFC 3168: marks slow a sender down without a retransmission.
#[test]
fn marks_reduce_the_window_and_lose_nothing() {
    for congestion in [CongestionControl::Cubic, CongestionControl::NewReno, CongestionControl::Dctcp] {
        let options = Options { ecn: Ecn::Request, congestion, ..Options::default() };
        let (_, counters) = bulk(Faults { mark: 30, ..CLEAN }, options, 2_000_000);
        assert!(counters.ecn_reductions > 3 && counters.retrans_segs == 0, "{congestion:?}: {counters:?}");
    }
}

/// Pacing: no burst is longer than a millisecond's worth, and the transfer takes no longer for it.
#[test]
fn a_paced_window_leaves_in_pieces() {
    let faults = Faults { delay: Duration::from_millis(20), ..CLEAN };
    let (unpaced, _) = bulk(faults, Options::default(), 3_000_000);
    let (paced, counters) = bulk(faults, Options { pacing: true, ..Options::default() }, 3_000_000);
    assert!(paced < unpaced * 5 / 4, "{paced:?} and {unpaced:?}");
    assert_eq!(counters.retrans_segs, 0);
}
