//! Two endpoints over an in-memory link with seeded faults, on a clock that jumps to the next thing that happens.
//!
//! Every segment goes before the judge (`judge`) when it is sent and when it arrives, and after every step the timers are looked at:
//! none is overdue, and what waits for an answer has one. Octets go from end to end as the stack made them, checksum included.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::net::{IpAddr, SocketAddr};
use std::sync::LazyLock;

use super::judge::{Judge, Terms};
use crate::buf::{Checksum, FragmentArena, PagePool, RxPacket, Slice};
use crate::tcp::{
    CongestionControl, ConnectionId, Ecn, Endpoint, Event, FourTuple, IcmpError, Options, Reason, Transmit, TransmitLimits,
};
use crate::time::{Duration, Instant};
use crate::wire::checksum::Sum;
use crate::wire::protocol;
use crate::wire::tcp::{CHECKSUM_OFFSET, Flags, Repr, TSO_FRAMES_MAX, TSO_MSS_MIN};

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

/// What one direction of the link does to packets, in packets of 1000.
#[derive(Clone, Copy, Debug)]
pub struct Faults {
    pub loss: u32,
    /// Packets at which a burst begins in which all are lost, until two in five end it.
    pub burst: u32,
    pub duplicate: u32,
    pub reorder: u32,
    pub corrupt: u32,
    /// Congestion marks on what is ECN-capable.
    pub mark: u32,
    /// Steps of the clock in which nothing ran for up to five seconds. Of both directions the first one's counts.
    pub jump: u32,
    /// From which packet of the link on which length of an IP packet is the largest: longer ones vanish. With `icmp` the sender is told.
    pub path_mtus: [(u64, u16); 3],
    pub icmp: bool,
    pub delay: Duration,
    /// Each packet takes up to this much longer, and so may be overtaken.
    pub jitter: Duration,
    /// Steps of the clock after which nothing gets through for up to ten seconds, in one direction or both. Again the first one's.
    pub cut: u32,
}

/// No packet is too long.
pub const ANY_LENGTH: (u64, u16) = (0, u16::MAX);

pub const CLEAN: Faults = Faults {
    loss: 0,
    burst: 0,
    duplicate: 0,
    reorder: 0,
    corrupt: 0,
    mark: 0,
    jump: 0,
    path_mtus: [ANY_LENGTH; 3],
    icmp: true,
    delay: Duration::from_millis(1),
    jitter: Duration::ZERO,
    cut: 0,
};

impl Faults {
    /// The length of the longest IP packet that gets through as the link's packet `number`.
    pub fn path_mtu(&self, number: u64) -> u16 {
        self.path_mtus.iter().rev().find(|(from, _)| number >= *from).map_or(u16::MAX, |(_, mtu)| *mtu)
    }

    /// Whether what is sent first arrives first, if it arrives, and once.
    pub fn keep_order(&self) -> bool {
        let any_length = self.path_mtus.iter().all(|(_, mtu)| *mtu == u16::MAX);
        self.duplicate == 0 && self.reorder == 0 && self.jitter == Duration::ZERO && any_length
    }
}

pub struct Side {
    pub endpoint: Endpoint,
    pub ip: IpAddr,
    pub limits: TransmitLimits,
    pub pool: PagePool,
    pub transmit: Transmit,
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
    /// There is memory for all that the peer may send.
    pub ample: bool,
}

/// What the judge is told of: a segment that is sent or handed over, or that what was sent last is lost.
#[derive(Clone)]
pub enum Told {
    Sends { at: u64, from: usize, bytes: Vec<u8>, ecn: u8 },
    Loses { from: usize, bytes: Vec<u8> },
    Delivers { at: u64, to: usize, bytes: Vec<u8>, ecn: u8 },
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
    /// Of what the first side sends, and the second.
    pub faults: [Faults; 2],
    pub random: Random,
    link: BinaryHeap<Reverse<InFlight>>,
    number: u64,
    /// Packets that routers had to cut.
    cut: u64,
    /// Until when nothing reaches a side.
    cut_until: [Instant; 2],
    in_burst: [bool; 2],
    /// Draws what came to the simulator later, so that the rest of a seed stays what it was.
    pub later: Random,
    pub judge: Judge,
    /// All that the judge was told, where a test asks for it.
    pub told: Option<Vec<Told>>,
}

pub const PORT: u16 = 2049;

impl Side {
    fn new(options: Options, ip: &str, key: u8) -> Side {
        let pool = PagePool::anonymous(1500, 4096).unwrap();
        let ample = options.receive_buffers_max >= 2048 && options.driver_buffers_max >= 4096;
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
            ample,
        }
    }

    /// What an application does when it is woken.
    pub fn act(&mut self, now: Instant, random: &mut Random) {
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
        let judge = Judge::new(Terms { mtu: [0; 2], ample: [false; 2], orderly: false, bare: true });
        Pair {
            now: Instant::from_millis(1_000),
            sides,
            faults: [faults; 2],
            random,
            link: BinaryHeap::new(),
            number: 0,
            cut: 0,
            cut_until: [Instant::ZERO; 2],
            in_burst: [false; 2],
            later,
            judge,
            told: None,
        }
    }

    pub fn terms(&self) -> Terms {
        let [a, b] = &self.sides;
        let orderly = self.faults.iter().all(Faults::keep_order) && a.ample && b.ample;
        Terms { mtu: [a, b].map(|side| usize::from(side.limits.mtu)), ample: [a.ample, b.ample], orderly, bare: true }
    }

    /// From here on faults and limits stay what they are.
    pub fn connect(&mut self) {
        self.judge = Judge::new(self.terms());
        let local = SocketAddr::new(self.sides[0].ip, 0);
        let remote = SocketAddr::new(self.sides[1].ip, PORT);
        let id = self.sides[0].endpoint.connect(self.now, local, remote).unwrap();
        self.sides[0].id = Some(id);
    }

    pub fn addresses(&self, from: usize) -> [IpAddr; 2] {
        [self.sides[from].ip, self.sides[1 - from].ip]
    }

    /// The judge hears of a segment, and whoever wants to know all that it was told.
    fn tell(&mut self, hear: impl FnOnce(&mut Judge), told: impl FnOnce() -> Told) {
        hear(&mut self.judge);
        if let Some(fault) = self.judge.faults.first() {
            panic!("at {:?}: {fault}", self.now);
        }
        if let Some(all) = &mut self.told {
            all.push(told());
        }
    }

    fn tell_sent(&mut self, from: usize, bytes: &[u8], ecn: u8) {
        let (at, addresses) = (self.now.nanos(), self.addresses(from));
        let told = || Told::Sends { at, from, bytes: bytes.to_vec(), ecn };
        self.tell(|judge| judge.sends(at, from, addresses, bytes, ecn), told);
    }

    fn tell_lost(&mut self, from: usize, bytes: &[u8]) {
        self.tell(|judge| judge.loses(from, bytes), || Told::Loses { from, bytes: bytes.to_vec() });
    }

    fn tell_delivered(&mut self, to: usize, bytes: &[u8], ecn: u8) {
        let (at, addresses) = (self.now.nanos(), self.addresses(1 - to));
        let told = || Told::Delivers { at, to, bytes: bytes.to_vec(), ecn };
        self.tell(|judge| judge.delivers(at, to, addresses, bytes, ecn), told);
    }

    /// Hands everything both sides want to send to the link.
    pub fn flush(&mut self) {
        for from in 0..2 {
            let mut sent = false;
            loop {
                let side = &mut self.sides[from];
                if !side.endpoint.poll_transmit(self.now, &side.limits, &mut side.transmit) {
                    // A turn resets few strays, and leaves the rest to the next.
                    if !std::mem::take(&mut sent) {
                        break;
                    }
                    continue;
                }
                sent = true;
                check_transmit(&side.transmit, &side.limits);
                side.packets += 1;
                // A device without checksums, and one with.
                let packets = match side.transmit.tso_mss {
                    None if side.packets.is_multiple_of(2) => {
                        side.transmit.fill_checksum();
                        vec![[side.transmit.header(), &payload(&side.transmit)].concat()]
                    }
                    _ => segments(&mut side.transmit),
                };
                let (ecn, may_fragment) = (side.transmit.ecn, side.transmit.may_fragment);
                for bytes in packets {
                    self.trace(from, '>', &bytes, ecn);
                    self.tell_sent(from, &bytes, ecn);
                    if !self.carry(1 - from, &bytes, ecn, may_fragment) {
                        self.tell_lost(from, &bytes);
                    }
                }
            }
        }
    }

    fn trace(&self, from: usize, way: char, bytes: &[u8], ecn: u8) {
        if !*TRACE {
            return;
        }
        let Ok((repr, len)) = Repr::parse(bytes) else { return };
        let info = self.sides[from].id.and_then(|id| self.sides[from].endpoint.info(id));
        eprintln!(
            "{:>12} {from}{way} {:?} ecn {ecn} seq {} len {} ack {} win {} {:?} cwnd {:?} srtt {:?}",
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

    /// A packet too long for the path: gone, and its sender hears of it or not.
    fn refuse(&mut self, to: usize, bytes: &[u8], mtu: u16) {
        let (repr, _) = Repr::parse(bytes).unwrap();
        let tuple = FourTuple {
            local_ip: self.sides[1 - to].ip,
            remote_ip: self.sides[to].ip,
            local_port: repr.src_port,
            remote_port: repr.dst_port,
        };
        if self.faults[1 - to].icmp {
            self.sides[1 - to].endpoint.handle_icmp(self.now, &tuple, repr.seq, IcmpError::PacketTooBig { mtu });
        }
    }

    fn is_in_burst(&mut self, from: usize) -> bool {
        let change = if self.in_burst[from] { 400 } else { self.faults[from].burst };
        if change > 0 && self.later.chance(change) {
            self.in_burst[from] = !self.in_burst[from];
        }
        self.in_burst[from]
    }

    /// Whether it will arrive, once at least and as it is. What may be cut and is too long arrives as if its pieces had been joined.
    fn carry(&mut self, to: usize, bytes: &[u8], ecn: u8, may_fragment: bool) -> bool {
        let faults = self.faults[1 - to];
        let Faults { loss, duplicate, reorder, corrupt, delay, mark, jitter, .. } = faults;
        if self.now < self.cut_until[to] {
            return false;
        }
        let mtu = faults.path_mtu(self.number);
        let ip_header = if self.sides[to].ip.is_ipv4() { 20 } else { 40 };
        let too_long = ip_header + bytes.len() > usize::from(mtu);
        if may_fragment {
            assert!(self.sides[to].ip.is_ipv4(), "nobody cuts packets of IPv6");
            self.cut += u64::from(too_long);
        } else if too_long {
            self.refuse(to, bytes, mtu);
            return false;
        }
        let ecn = if ecn == 2 && self.random.chance(mark) { 3 } else { ecn };
        if self.random.chance(loss) | self.is_in_burst(1 - to) {
            return false;
        }
        let copies = if self.random.chance(duplicate) { 2 } else { 1 };
        let mut whole = false;
        for _ in 0..copies {
            let mut bytes = bytes.to_vec();
            let corrupted = self.random.chance(corrupt);
            if corrupted {
                let bit = self.random.below(8 * bytes.len() as u64) as usize;
                bytes[bit / 8] ^= 1 << (bit % 8);
            }
            whole |= !corrupted;
            let late = if self.random.chance(reorder) { delay * self.random.below(4) as u32 } else { Duration::ZERO };
            self.number += 1;
            let late = late + Duration::from_nanos(self.later.below(jitter.as_nanos() as u64));
            self.link.push(Reverse(InFlight { at: self.now + delay + late, number: self.number, to, bytes, ecn }));
        }
        whole
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
        if self.random.chance(self.faults[0].jump) {
            self.now += Duration::from_millis(self.random.below(5_000));
        }
        if self.later.chance(self.faults[0].cut) {
            let until = self.now + Duration::from_millis(self.later.below(10_000));
            let sides = [0..1, 1..2, 0..2][self.later.below(3) as usize].clone();
            self.cut_until[sides].fill(until);
        }
        while self.link.peek().is_some_and(|first| first.0.at <= self.now) {
            let Reverse(InFlight { to, bytes, ecn, .. }) = self.link.pop().unwrap();
            let (src, dst) = (self.sides[1 - to].ip, self.sides[to].ip);
            self.trace(to, '<', &bytes, ecn);
            self.tell_delivered(to, &bytes, ecn);
            let packet = RxPacket::from_vec(bytes);
            self.sides[to].endpoint.handle_marked_segment(self.now, src, dst, packet, Checksum::Unknown, ecn);
        }
        for side in &mut self.sides {
            side.endpoint.handle_timeout(self.now);
            let next = side.endpoint.poll_timeout();
            assert!(next.is_none_or(|next| next > self.now), "a timer is overdue: {next:?} at {:?}", self.now);
            side.act(self.now, &mut self.random);
        }
        self.flush();
        for (number, side) in self.sides.iter().enumerate() {
            assert_eq!(side.endpoint.timer_fault(), None, "side {number} at {:?}", self.now);
        }
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

static TRACE: LazyLock<bool> = LazyLock::new(|| std::env::var_os("TCP_TRACE").is_some());

/// What every transmission must satisfy.
fn check_transmit(transmit: &Transmit, limits: &TransmitLimits) {
    assert!(transmit.tso_mss.is_none() || !transmit.may_fragment, "a chain that routers may cut");
    let header = usize::from(transmit.header_len) + if transmit.dst.is_ipv4() { 20 } else { 40 };
    let payload = transmit.payload_len();
    match transmit.tso_mss {
        None => {
            assert!(header + payload <= usize::from(limits.mtu), "a packet longer than the MTU");
            assert!(transmit.payload.len() < usize::from(limits.segments_per_packet_max));
        }
        Some(mss) => {
            let mss = usize::from(mss);
            let most = if transmit.dst.is_ipv4() { limits.tso_bytes_max } else { limits.tso_ipv6_bytes_max };
            assert!(payload > mss && payload <= most as usize);
            assert!(header + mss <= usize::from(limits.mtu));
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

fn payload(transmit: &Transmit) -> Vec<u8> {
    transmit.payload.iter().flat_map(|slice| slice.to_vec()).collect()
}

/// What a device makes of a transmission: packets, and their checksums out of the pseudo-header's sum, as it is.
pub fn segments(transmit: &mut Transmit) -> Vec<Vec<u8>> {
    transmit.fill_pseudo_header_sum();
    let payload = payload(transmit);
    let mss = transmit.tso_mss.map_or(payload.len().max(1), usize::from);
    let count = payload.len().div_ceil(mss).max(1);
    if transmit.tso_mss.is_some() {
        assert!(mss >= usize::from(TSO_MSS_MIN), "cut into pieces of {mss} bytes, which devices refuse");
        assert!(count <= usize::from(TSO_FRAMES_MAX), "cut into {count} packets, more than devices make");
    }
    (0..count)
        .map(|n| {
            let part = &payload[n * mss..((n + 1) * mss).min(payload.len())];
            let mut bytes = [transmit.header(), part].concat();
            let seq = u32::from_be_bytes(bytes[4..8].try_into().unwrap()).wrapping_add((n * mss) as u32);
            bytes[4..8].copy_from_slice(&seq.to_be_bytes());
            if n + 1 < count {
                bytes[13] &= !(Flags::FIN.0 | Flags::PSH.0);
            }
            // The sum over a chain's pseudo-header is without its length.
            let len = if transmit.tso_mss.is_some() { bytes.len() as u64 } else { 0 };
            let words = bytes.chunks(2).map(|pair| u64::from(pair[0]) << 8 | u64::from(pair.get(1).copied().unwrap_or(0)));
            let mut sum = len + words.sum::<u64>();
            while sum > 0xffff {
                sum = (sum >> 16) + (sum & 0xffff);
            }
            bytes[CHECKSUM_OFFSET..CHECKSUM_OFFSET + 2].copy_from_slice(&(!sum as u16).to_be_bytes());
            bytes
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

pub fn script(seed: u64, len: usize) -> Vec<u8> {
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
            // Of three in a hundred a tail and the one probe of it may both be among them.
            assert!(counters.rto_timeouts <= 1 + u64::from(loss) / 30, "{told}");
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
        let path_mtus = [ANY_LENGTH, (100, path_mtu), (100, path_mtu)];
        let faults = Faults { path_mtus, icmp: false, ..CLEAN };
        let (took, counters) = bulk(faults, Options::default(), 1_000_000);
        assert!(took < Duration::from_secs(10), "{path_mtu}: {took:?}");
        assert!(counters.pmtu_black_holes > 0 && counters.rto_timeouts < 12, "{path_mtu}: {counters:?}");
    }
}

/// RFC 1191 section 3: a path that takes less than 552 bytes gets packets that its routers may cut, and none that they must drop for ever.
#[test]
fn a_path_below_the_least_mtu_has_its_packets_cut() {
    let options = |timestamps| Options { timestamps, path_mtu_raise: Duration::from_millis(20), ..Options::default() };
    let delay = Duration::from_millis(20);
    for (timestamps, loss, mtu) in [(true, 0, 1500), (false, 0, 1500), (true, 20, 1500), (false, 20, 9000)] {
        // From the 100th packet on 300 bytes pass, and from the 700th all again.
        let faults = Faults { path_mtus: [ANY_LENGTH, (100, 300), (700, u16::MAX)], loss, delay, ..CLEAN };
        let mut pair = Pair::new(5, faults, both(options(timestamps)));
        for side in &mut pair.sides {
            (side.limits.mtu, side.limits.tso_bytes_max) = (mtu, 65_000);
        }
        pair.sides[0].script = script(3, 4_000_000);
        pair.connect();
        let told = |pair: &Pair| format!("timestamps {timestamps}, loss {loss}: {:?}", pair.sides[0].endpoint.counters());
        let ends = pair.run_until(Duration::from_secs(120), |pair| pair.sides[1].received.len() == 4_000_000);
        assert!(ends, "{}", told(&pair));
        let counters = *pair.sides[0].endpoint.counters();
        assert!(pair.cut > 100 && counters.pmtu_below_least == 1, "{} cut, {}", pair.cut, told(&pair));
        assert!(counters.mtup_success >= 1 && counters.rto_timeouts < 10, "{}", told(&pair));
        let info = pair.sides[0].endpoint.info(pair.sides[0].id.unwrap()).unwrap();
        assert!(info.mss > 512, "a larger packet went through: {}", told(&pair));
    }
}

/// The same of a peer whose own packets are shorter than the least of RFC 1191, and longer than what passes.
#[test]
fn a_small_mss_on_a_smaller_path_is_no_dead_end() {
    let faults = Faults { path_mtus: [ANY_LENGTH, (20, 200), (20, 200)], ..CLEAN };
    let mut pair = Pair::new(5, faults, both(Options::default()));
    pair.sides[1].limits.mtu = 400;
    pair.sides[0].script = script(3, 100_000);
    pair.connect();
    assert!(pair.run_until(Duration::from_secs(60), |pair| pair.sides[1].received.len() == 100_000));
    assert_eq!(pair.sides[0].endpoint.counters().pmtu_below_least, 1);
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

/// Pacing: at once leaves what the rate allows in the millisecond that may have been saved up, and one chain, which is no longer than that
/// either unless it is two segments; and the transfer takes no longer for it.
#[test]
fn a_paced_window_leaves_in_pieces() {
    const LEN: usize = 3_000_000;
    let faults = Faults { delay: Duration::from_millis(20), ..CLEAN };
    let (unpaced, _) = bulk(faults, Options::default(), LEN);
    for tso_bytes_max in [0, 65_000] {
        let mut pair = Pair::new(7, faults, both(Options { pacing: true, ..Options::default() }));
        pair.sides[0].limits.tso_bytes_max = tso_bytes_max;
        pair.sides[0].close_when_done = false;
        pair.sides[0].script = script(3, LEN);
        pair.connect();
        let start = pair.now;
        assert!(pair.run_until(Duration::from_secs(1), |pair| pair.sides[0].connected));
        let info = |pair: &Pair| pair.sides[0].endpoint.info(pair.sides[0].id.unwrap()).unwrap();
        // What had left before this moment. The first window leaves in the step that connects.
        let (mut at, mut before, mut bursts) = (start, 0, 0);
        while pair.sides[1].received.len() < LEN {
            let info = info(&pair);
            let burst = info.bytes_sent - before;
            let in_time = info.pacing_rate.unwrap() / 1_000;
            let most = in_time + in_time.max(2 * u64::from(info.mss));
            assert!(burst <= most, "tso {tso_bytes_max}, at {:?}: {burst} bytes at once, {most} may be", pair.now);
            bursts += u64::from(burst > 0);
            assert!(pair.step() && pair.now.since(start) < Duration::from_secs(60));
            if pair.now > at {
                (at, before) = (pair.now, info.bytes_sent);
            }
        }
        let paced = pair.now.since(start);
        assert!(paced < unpaced * 5 / 4, "tso {tso_bytes_max}: {paced:?} and {unpaced:?}");
        assert_eq!(pair.sides[0].endpoint.counters().retrans_segs, 0);
        assert!(bursts > 100, "{bursts}");
    }
}
