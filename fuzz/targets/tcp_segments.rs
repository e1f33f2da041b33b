//! Two TCP endpoints with a connection, and an attacker on the path between them.
//!
//! Oracles: no panic; memory stays within `Options`; what is delivered is a prefix of what was sent, and all of it arrives once
//! the path is left alone, as long as the attacker only dropped, repeated, delayed or reordered; no page is left in use at the end.

use std::collections::VecDeque;
use std::net::{IpAddr, SocketAddr};

use nfsplice::buf::{Checksum, FragmentArena, PagePool, RxBuf, RxPacket, Slice};
use nfsplice::tcp::{
    CongestionControl, ConnectionId, Ecn, Endpoint, Event, FourTuple, IcmpError, Keepalive, Options, Reason, Transmit,
    TransmitLimits,
};
use nfsplice::time::{Duration, Instant};
use nfsplice::wire::tcp::{Flags, HEADER_LEN_MAX, Repr, SeqNumber, Timestamps};

use super::input::Input;

const BLOCK: usize = 2048;
const PORT: u16 = 2049;
/// Longer than any run: an end that gives up would look like one that hangs.
const NEVER: Duration = Duration::from_secs(100_000_000);
/// Packets one end may send without an event in between.
const BURST_MAX: usize = 1_000;
/// Segments on the path in one direction; the oldest is lost.
const PATH_MAX: usize = 256;
const HELD_MAX: usize = 32;
/// Deliveries and timers after which everything must have arrived on a path left alone.
const STEPS_TO_FINISH: usize = 5_000;

fn address(side: usize) -> IpAddr {
    IpAddr::from([10, 0, 0, 1 + side as u8])
}

/// The byte at `offset` of what a side sends.
fn pattern(side: usize, offset: u64) -> u8 {
    (offset ^ offset >> 8 ^ offset >> 16) as u8 ^ (side as u8).wrapping_mul(0x55)
}

struct Side {
    endpoint: Endpoint,
    pool: PagePool,
    id: ConnectionId,
    /// Bytes the send queue took.
    sent: u64,
    received: u64,
    closing: bool,
    closed: Option<Reason>,
    /// Closed with bytes that were not read.
    lost_unread: bool,
}

struct Conversation {
    sides: [Side; 2],
    /// Segments on their way to each side.
    path: [VecDeque<Vec<u8>>; 2],
    held: Vec<(usize, Vec<u8>)>,
    now: Instant,
    limits: TransmitLimits,
    transmit: Transmit,
    keepalive: bool,
    aborted: bool,
    /// The attacker has changed or made up a segment: there is no saying what arrives.
    tampered: bool,
    /// Received packets come in two buffers, cut so many bytes behind the header.
    cut: usize,
}

fn options(how: u8) -> Options {
    Options {
        receive_window_initial: 4096,
        receive_window_max: 16 << 10,
        receive_buffers_max: 32,
        driver_buffers_max: 48,
        driver_buffers_unshared: 4,
        copy_out_below_bytes: 64,
        send_queue_bytes_max: 16 << 10,
        connections_max: 4,
        listeners_max: 2,
        syn_received_max: 2,
        accept_queue_max: 2,
        time_wait_max: 2,
        time_wait: Duration::from_secs(1),
        user_timeout: NEVER,
        fin_wait_2_timeout: NEVER,
        replies_max: 8,
        congestion: if how & 1 != 0 { CongestionControl::NewReno } else { CongestionControl::Cubic },
        sack: how & 2 == 0,
        timestamps: how & 4 == 0,
        window_scaling: how & 8 == 0,
        nagle: how & 16 != 0,
        ecn: if how & 64 != 0 { Ecn::Request } else { Ecn::Accept },
        pacing: how & 128 != 0,
        keepalive: (how & 32 != 0).then_some(Keepalive {
            idle: Duration::from_secs(10),
            interval: Duration::from_secs(1),
            probes_max: 3,
        }),
        ..Options::default()
    }
}

/// The packets that leave for one `Transmit`: what a device with segmentation offload makes of it.
fn packets(transmit: &Transmit) -> Vec<Vec<u8>> {
    let payload: Vec<u8> = transmit.payload.iter().flat_map(|slice| slice.iter().copied()).collect();
    let Some(mss) = transmit.tso_mss else { return vec![[transmit.header(), &payload].concat()] };
    let (repr, _) = Repr::parse(transmit.header()).expect("our own header");
    let count = payload.len().div_ceil(usize::from(mss));
    let cut = |(at, piece): (usize, &[u8])| {
        let mut header = transmit.header().to_vec();
        let seq = repr.seq + (at * usize::from(mss)) as u32;
        header[4..8].copy_from_slice(&seq.0.to_be_bytes());
        if at + 1 < count {
            header[13] &= !(Flags::FIN.0 | Flags::PSH.0);
        }
        [&header, piece].concat()
    };
    payload.chunks(usize::from(mss)).enumerate().map(cut).collect()
}

impl Conversation {
    /// A connection that is established, from side 0 to side 1.
    fn new(how: u8) -> Conversation {
        let now = Instant::from_millis(1);
        let mut sides = [0, 1].map(|side| {
            let mut endpoint = Endpoint::new(options(how), [side as u8; 16]);
            let pool = PagePool::anonymous(64, BLOCK).expect("memory");
            endpoint.set_copy_out(FragmentArena::new(pool.clone()).expect("two pages"));
            let id = ConnectionId::from_bits(u64::MAX);
            Side { endpoint, pool, id, sent: 0, received: 0, closing: false, closed: None, lost_unread: false }
        });
        sides[1].endpoint.listen(PORT).expect("a free port");
        let (from, to) = (SocketAddr::new(address(0), 900), SocketAddr::new(address(1), PORT));
        sides[0].id = sides[0].endpoint.connect(now, from, to).expect("a connection");
        let mut conversation = Conversation {
            sides,
            path: Default::default(),
            held: Vec::new(),
            now,
            limits: TransmitLimits::default(),
            transmit: Transmit::default(),
            keepalive: how & 32 != 0,
            aborted: false,
            tampered: false,
            cut: 0,
        };
        conversation.settle();
        for side in [1, 0, 1] {
            conversation.deliver_all(side);
            conversation.settle();
        }
        assert_ne!(conversation.sides[1].id.to_bits(), u64::MAX, "established");
        conversation
    }

    /// What an application and a device do at any time: events, packets.
    fn settle(&mut self) {
        for side in 0..2 {
            self.sides[side].endpoint.handle_timeout(self.now);
            self.handle_events(side);
            let mut burst = 0;
            while self.sides[side].endpoint.poll_transmit(self.now, &self.limits, &mut self.transmit) {
                burst += 1;
                assert!(burst < BURST_MAX, "endless transmission");
                let path = &mut self.path[1 - side];
                path.extend(packets(&self.transmit));
                path.drain(..path.len().saturating_sub(PATH_MAX));
            }
            self.transmit.payload.clear();
            self.handle_events(side);
            self.check_bounds(side);
        }
    }

    fn handle_events(&mut self, side: usize) {
        loop {
            let this = &mut self.sides[side];
            let unread = this.endpoint.info(this.id).is_some_and(|info| info.unread_bytes > 0);
            let Some(event) = this.endpoint.poll_event() else { return };
            match event {
                Event::Accepted { id, .. } if this.id.to_bits() == u64::MAX => this.id = id,
                Event::Closed(id, reason) if id == this.id => {
                    assert!(this.closed.is_none(), "closed twice");
                    this.closed = Some(reason);
                    this.lost_unread = unread;
                    self.check_reason(side, reason);
                }
                _ => {}
            }
        }
    }

    /// Nobody but the two ends may end a connection.
    fn check_reason(&self, side: usize, reason: Reason) {
        match reason {
            Reason::Finished => assert!(self.tampered || self.sides[side].closing, "finished before it was closed"),
            // The other end is past TIME-WAIT, or never got a probe.
            Reason::Reset => assert!(self.tampered || self.aborted || self.sides[1 - side].closed.is_some(), "reset by nobody"),
            Reason::Aborted => assert!(self.aborted),
            Reason::TimedOut => assert!(self.keepalive, "timed out"),
            Reason::Refused | Reason::Unreachable => assert!(self.tampered, "{reason:?}"),
        }
    }

    fn check_bounds(&mut self, side: usize) {
        let Side { endpoint, id, .. } = &mut self.sides[side];
        let options = endpoint.options().clone();
        assert!(endpoint.connections().count() <= options.connections_max + options.time_wait_max);
        assert!(endpoint.counters().driver_buffers_held <= options.driver_buffers_max as u64);
        let Some(info) = endpoint.info(*id) else { return };
        assert!(info.queued_bytes <= options.send_queue_bytes_max);
        assert!(info.unread_bytes + info.out_of_order_bytes <= options.receive_window_max as usize, "{info:?}");
        let chain = endpoint.receive(*id).expect("it lives");
        assert_eq!(chain.len(), info.unread_bytes);
        assert!(chain.buffers() <= options.receive_buffers_max);
    }

    fn deliver(&mut self, to: usize, bytes: Vec<u8>) {
        let header_len = bytes.get(12).map_or(0, |offset| usize::from(offset >> 4) * 4);
        let at = header_len + self.cut;
        let packet = if self.cut > 0 && at < bytes.len() {
            let (first, more) = bytes.split_at(at);
            RxPacket { first: RxBuf::from_vec(first.to_vec()), more: std::iter::once(RxBuf::from_vec(more.to_vec())).collect() }
        } else {
            RxPacket::from_vec(bytes)
        };
        self.sides[to].endpoint.handle_segment(self.now, address(1 - to), address(to), packet, Checksum::Good);
    }

    fn deliver_all(&mut self, to: usize) {
        while let Some(bytes) = self.path[to].pop_front() {
            self.deliver(to, bytes);
        }
    }

    fn send(&mut self, side: usize, len: usize) {
        let this = &mut self.sides[side];
        let mut gather: Vec<Slice> = Vec::new();
        let mut at = this.sent;
        let end = at + len as u64;
        while at < end {
            let Some(mut page) = this.pool.allocate() else { return };
            let n = BLOCK.min((end - at) as usize);
            for (byte, offset) in page[..n].iter_mut().zip(at..) {
                *byte = pattern(side, offset);
            }
            let mut slice = page.freeze();
            slice.truncate(n);
            gather.push(slice);
            at += n as u64;
        }
        if this.endpoint.send(self.now, this.id, &mut gather).is_ok() {
            assert!(gather.is_empty());
            this.sent = end;
        }
    }

    fn read(&mut self, side: usize, len: usize) {
        let this = &mut self.sides[side];
        let Some(chain) = this.endpoint.receive(this.id) else { return };
        let n = len.min(chain.len());
        let bytes = chain.view(0, n).expect("they are there").to_vec();
        chain.consume(n);
        if !self.tampered {
            let good = bytes.iter().zip(this.received..).all(|(byte, offset)| *byte == pattern(1 - side, offset));
            assert!(good, "side {side} got other bytes than were sent, from {} on", this.received);
        }
        this.received += n as u64;
        let endpoint = &mut this.endpoint;
        endpoint.received(self.now, this.id);
        if !self.tampered {
            assert!(self.sides[side].received <= self.sides[1 - side].sent);
        }
    }

    fn close(&mut self, side: usize) {
        let this = &mut self.sides[side];
        this.closing = true;
        this.endpoint.close(self.now, this.id);
    }

    /// Jumps to the next timer; not to one that stands for never.
    fn skip_to_timeout(&mut self) {
        let next = self.sides.iter().filter_map(|side| side.endpoint.poll_timeout()).min();
        if let Some(next) = next
            && next.since(self.now) < NEVER / 2
        {
            self.now = self.now.max(next);
        }
    }

    /// The path is left alone, both sides read and close: everything sent has to arrive.
    fn finish(&mut self) {
        for _ in 0..STEPS_TO_FINISH {
            for side in 0..2 {
                self.deliver_all(side);
                self.read(side, usize::MAX);
                let arrived = self.sides[side].received == self.sides[1 - side].sent;
                if arrived && !self.sides[1 - side].closing {
                    self.close(1 - side);
                }
            }
            self.settle();
            if self.sides.iter().all(|side| side.closed.is_some()) {
                return;
            }
            if self.path.iter().all(|path| path.is_empty()) {
                self.skip_to_timeout();
                self.settle();
            }
        }
        let state = |side: &Side| format!("sent {} received {} {:?}", side.sent, side.received, side.endpoint.info(side.id));
        panic!("stuck:\n{}\n{}", state(&self.sides[0]), state(&self.sides[1]));
    }

    /// A segment of the connection, near the numbers that `to` expects.
    fn forge(&self, to: usize, input: &mut Input<'_>) -> Vec<u8> {
        let other = self.path[1 - to].back().or(self.path[to].back()).and_then(|bytes| Repr::parse(bytes).ok());
        let seen = other.map(|(repr, _)| repr).unwrap_or_default();
        let ports = if to == 1 { (900, PORT) } else { (PORT, 900) };
        let near = |base: SeqNumber, by: u16, shift: u8| base + ((by as i16 as i32) << (shift & 15)) as u32;
        let shift = input.byte();
        let from_same_side = seen.src_port == ports.0;
        let (seq, ack) = if from_same_side { (seen.seq, seen.ack) } else { (seen.ack, seen.seq) };
        let mut repr = Repr {
            src_port: ports.0,
            dst_port: ports.1,
            seq: near(seq, input.u16(), shift >> 4),
            ack: near(ack, input.u16(), shift),
            flags: Flags(input.byte()),
            window: input.u16(),
            urgent: 0,
            options: Default::default(),
        };
        let which = input.byte();
        if which & 1 != 0 {
            let (value, echo_reply) = seen.options.timestamps.map_or((0, 0), |seen| (seen.value, seen.echo_reply));
            let by = i32::from(input.byte() as i8) as u32;
            repr.options.timestamps = Some(Timestamps { value: value.wrapping_add(by), echo_reply: echo_reply.wrapping_sub(by) });
        }
        if which & 2 != 0 {
            repr.options.mss = Some(input.u16());
            repr.options.window_scale = Some(input.byte());
            repr.options.sack_permitted = true;
        }
        for _ in 0..(which >> 2 & 3) {
            let left = near(repr.ack, input.u16(), shift);
            repr.options.sack.push((left, near(left, input.u16(), shift)));
        }
        let mut header = [0; HEADER_LEN_MAX];
        let len = repr.emit(&mut header);
        let payload = input.byte();
        [&header[..len], &vec![which; usize::from(payload) << (which >> 6)][..]].concat()
    }

    fn edit(&mut self, to: usize, input: &mut Input<'_>) {
        let Some(bytes) = self.path[to].front_mut() else { return };
        self.tampered = true;
        let (at, value) = (usize::from(input.byte()), input.byte());
        match value & 3 {
            0 => bytes.truncate(at),
            _ if bytes.is_empty() => {}
            _ => {
                let at = at % bytes.len().min(64);
                bytes[at] ^= value;
            }
        }
    }

    /// Lies of a router. Whoever is on the path can tell them, and data must not suffer.
    fn lie(&mut self, to: usize, input: &mut Input<'_>) {
        let (kind, mtu) = (input.byte(), input.u16());
        let seen = self.path[1 - to].back().and_then(|bytes| Repr::parse(bytes).ok());
        let seq = seen.map_or(SeqNumber(0), |(repr, _)| repr.seq);
        let ports = if to == 0 { (900, PORT) } else { (PORT, 900) };
        let tuple = FourTuple { local_ip: address(to), remote_ip: address(1 - to), local_port: ports.0, remote_port: ports.1 };
        let error = match kind & 3 {
            0 => IcmpError::Unreachable,
            1 => IcmpError::Transient,
            _ => IcmpError::PacketTooBig { mtu },
        };
        self.sides[to].endpoint.handle_icmp(self.now, &tuple, seq, error);
    }

    fn step(&mut self, input: &mut Input<'_>) {
        let op = input.byte();
        let side = usize::from(op >> 4 & 1);
        match op & 15 {
            0 => {
                if let Some(bytes) = self.path[side].pop_front() {
                    self.deliver(side, bytes);
                }
            }
            1 => self.deliver_all(side),
            2 => drop(self.path[side].pop_front()),
            3 => {
                let copy = self.path[side].front().cloned();
                self.path[side].extend(copy);
            }
            4 => {
                let at = usize::from(input.byte());
                if let Some(bytes) = self.path[side].pop_front() {
                    let at = at % (self.path[side].len() + 1);
                    self.path[side].insert(at, bytes);
                }
            }
            5 => {
                if let Some(bytes) = self.path[side].front()
                    && self.held.len() < HELD_MAX
                {
                    self.held.push((side, bytes.clone()));
                }
            }
            6 => {
                let at = usize::from(input.byte());
                if let Some((to, bytes)) = self.held.get(at % self.held.len().max(1)).cloned() {
                    self.deliver(to, bytes);
                }
            }
            7 => self.edit(side, input),
            8 => {
                self.tampered = true;
                let bytes = self.forge(side, input);
                self.deliver(side, bytes);
            }
            9 => {
                let len = usize::from(input.u16() % 9_000);
                self.send(side, len);
            }
            10 => {
                let len = usize::from(input.byte()) << (op >> 5);
                self.read(side, len);
            }
            11 => self.now += Duration::from_millis(u64::from(input.byte()) << (op >> 5)),
            12 => self.skip_to_timeout(),
            13 => self.close(side),
            14 => {
                let (mtu, how) = (input.u16(), input.byte());
                self.cut = usize::from(how >> 3);
                self.limits = TransmitLimits {
                    mtu: mtu.clamp(576, 9000),
                    tso_bytes_max: if how & 1 != 0 { 65_000 } else { 0 },
                    tso_ipv6_bytes_max: 0,
                    segments_per_packet_max: if how & 2 != 0 { 2 } else { 32 },
                    segments_tso_max: if how & 4 != 0 { 3 } else { 32 },
                };
            }
            _ if op >> 5 == 7 => {
                self.aborted = true;
                let this = &mut self.sides[side];
                this.endpoint.abort(self.now, this.id);
            }
            _ => self.lie(side, input),
        }
        self.settle();
    }
}

pub fn fuzz(data: &[u8]) {
    let mut input = Input::new(data);
    let mut conversation = Conversation::new(input.byte());
    while !input.is_empty() {
        conversation.step(&mut input);
    }
    let undisturbed = !conversation.tampered && !conversation.aborted && !conversation.keepalive;
    if undisturbed {
        conversation.finish();
        for side in 0..2 {
            let [this, other] = [&conversation.sides[side], &conversation.sides[1 - side]];
            assert!(this.lost_unread || this.received == other.sent, "got {} bytes of {}", this.received, other.sent);
        }
    }
    conversation.aborted = true;
    for side in 0..2 {
        // A forged SYN may have opened further ones.
        let endpoint = &mut conversation.sides[side].endpoint;
        let ids: Vec<ConnectionId> = endpoint.connections().collect();
        for id in ids {
            endpoint.abort(conversation.now, id);
        }
    }
    conversation.settle();
    let Conversation { sides, transmit, .. } = conversation;
    drop(transmit);
    for side in sides {
        // What the application has been told is over may be in TIME-WAIT.
        assert!(side.endpoint.connections().all(|id| side.endpoint.info(id).is_none()), "there after abort");
        assert_eq!(side.endpoint.counters().driver_buffers_held, 0);
        // The arena's page of zeroes and the one it fills.
        assert!(side.pool.outstanding() <= 2, "{} pages left", side.pool.outstanding());
        drop(side.endpoint);
        assert_eq!(side.pool.outstanding(), 0);
    }
}
