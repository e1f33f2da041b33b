//! Two TCP endpoints, connections between them, and an attacker on the path.
//!
//! Operations are numbered by an octet's low half, with the side in bit 4. 0xcf and 0xdf stand for another octet, which is the number of
//! one of `more`; as the first operation 0xcf gives the ends and the link (`setup`).
//!
//! Oracles: no panic; memory, connections and half-open ones stay within `Options`; a core comes to rest; nobody but the two ends ends a
//! connection; applications are told of text and room; every segment is right by the judge of `src/tcp/tests`, who knows what has
//! reached its sender; no page is left in use at the end. As long as the attacker only dropped, repeated, delayed, reordered and
//! marked what is of a connection, what is delivered of it is a prefix of what was sent, and all of it arrives once the path is left alone.
//! `TCP_TRACE=1` prints each segment.
//! - `setup`: the ends and the link. - `path`: packets. - `connection`: what is known of one from outside.

mod connection;
mod path;
mod setup;

use std::collections::VecDeque;
use std::net::{IpAddr, SocketAddr};
use std::sync::LazyLock;

use nfsplice::buf::{Checksum, FragmentArena, PagePool, RxBuf, RxPacket, Slice};
use nfsplice::tcp::{
    ConnectionId, Endpoint, Event, FourTuple, IcmpError, SendError, State, TcpCounters, Transmit, TransmitLimits,
};
use nfsplice::time::{Duration, Instant};
use nfsplice::wire::tcp::{Flags, HEADER_LEN_MAX, Repr, SeqNumber, Timestamps};

use super::input::Input;
use super::judge::{Judge, Terms};
use connection::{Connection, End, is_text, put_text, segment_lifetime_max};
use path::{CONGESTION_EXPERIENCED, IPV4_HEADER, Packet, joinable, joined, packets, with_checksum};
use setup::{NEVER, Setup};

const BLOCK: usize = 2048;
/// Both ends listen on them.
const PORTS: [u16; 2] = [2049, 20048];
/// From which is connected to those, and between which both ends connect.
const CLIENT_PORT: u16 = 900;
const COMMON_PORT: u16 = 700;
/// Between them the fuzzer has all numbers but the first of an input, which is for `setup`.
const MORE: u8 = 0xcf;
/// Packets one end may send without an event in between, and turns after which it must rest.
const BURST_MAX: usize = 2_000;
const TURNS_MAX: usize = 200;
/// Segments on the path in one direction; what does not fit is lost. Were it the oldest, a burst of more than these, repeated after each
/// timeout, would never get its first segment across.
const PATH_MAX: usize = 256;
const HELD_MAX: usize = 32;
const CONNECTIONS_MAX: usize = 12;
/// Deliveries and timers after which everything must have arrived on a path left alone.
/// By such a part, and two counts of its field, may a window that is not read grow.
const WINDOW_SLACK: usize = 8;
const STEPS_TO_FINISH: usize = 5_000;

static TRACE: LazyLock<bool> = LazyLock::new(|| std::env::var_os("TCP_TRACE").is_some());

/// What became of a packet that reached an endpoint.
#[derive(Clone, Copy, PartialEq)]
enum Fate {
    Taken,
    /// It would complete a handshake while the accept queue is full: nothing of it is kept but its timestamp.
    Waits,
    /// It answers a cookie while there is no place for a connection, or follows what answers one: nobody knows of it.
    Lost,
}

struct Side {
    endpoint: Endpoint,
    pool: PagePool,
}

struct Conversation {
    setup: Setup,
    sides: [Side; 2],
    /// Of each side, at each of `PORTS`.
    listening: [[bool; 2]; 2],
    connections: Vec<Connection>,
    /// The one that is dealt with.
    at: usize,
    /// Segments on their way to each side.
    path: [VecDeque<Packet>; 2],
    held: Vec<(usize, Packet)>,
    now: Instant,
    limits: TransmitLimits,
    transmit: Transmit,
    /// Nothing was repeated, overtaken or refused yet.
    orderly: bool,
    /// Received packets come in two buffers, cut so many bytes behind the header.
    cut: usize,
}

impl Conversation {
    /// A connection from side 0 to side 1, established unless its opening is the attacker's, too.
    fn new(setup: Setup) -> Conversation {
        let now = Instant::from_millis(1);
        let sides = [0, 1].map(|side| {
            let mut endpoint = Endpoint::new(setup.options[side].clone(), [side as u8; 16]);
            let pool = PagePool::anonymous(if setup.ample[side] { 256 } else { 64 }, BLOCK).expect("memory");
            if setup.copies_out[side] {
                endpoint.set_copy_out(FragmentArena::new(pool.clone()).expect("two pages"));
            }
            for port in PORTS {
                endpoint.listen(port).expect("a free port");
            }
            Side { endpoint, pool }
        });
        let opens_on_path = setup.opens_on_path;
        let mut conversation = Conversation {
            setup,
            sides,
            listening: [[true; 2]; 2],
            connections: Vec::new(),
            at: 0,
            path: Default::default(),
            held: Vec::new(),
            now,
            limits: TransmitLimits::default(),
            transmit: Transmit::default(),
            orderly: true,
            cut: 0,
        };
        conversation.connect(0, CLIENT_PORT, PORTS[0]);
        conversation.settle();
        if !opens_on_path {
            for side in [1, 0, 1] {
                conversation.deliver_all(side);
                conversation.settle();
            }
            assert!(conversation.connections[0].ends[1].established, "established");
        }
        conversation
    }

    fn terms(&self) -> Terms {
        let orderly = self.orderly && self.setup.ample == [true; 2];
        Terms { mtu: [usize::from(self.limits.mtu); 2], ample: self.setup.ample, orderly, bare: true }
    }

    fn renew_terms(&mut self) {
        let terms = self.terms();
        self.connections.iter_mut().filter_map(|connection| connection.judge.as_mut()).for_each(|judge| judge.set_terms(terms));
    }

    fn disorder(&mut self) {
        if self.orderly {
            self.orderly = false;
            self.renew_terms();
        }
    }

    fn connect(&mut self, side: usize, local: u16, remote: u16) {
        let (from, to) =
            (SocketAddr::new(self.setup.address(side), local), SocketAddr::new(self.setup.address(1 - side), remote));
        let ports = if side == 0 { [local, remote] } else { [remote, local] };
        if self.connections.len() >= CONNECTIONS_MAX {
            return;
        }
        let Ok(id) = self.sides[side].endpoint.connect(self.now, from, to) else { return };
        let latest = self.latest(ports);
        // The other end of a simultaneous open (RFC 9293 section 3.5, figure 7).
        let both = latest.filter(|at| {
            let ends = &self.connections[*at].ends;
            !ends[side].opened && ends[1 - side].opened && ends[side].id.is_none() && ends[1 - side].closed.is_none()
        });
        let at = both.unwrap_or(self.connections.len());
        let mut ended_by_halves = None;
        if both.is_none() {
            let mut connection = Connection::new(ports, self.terms(), self.now);
            let finished = |end: &End| end.closed == Some(nfsplice::tcp::Reason::Finished);
            if let Some(before) = latest.map(|at| &self.connections[at]) {
                connection.after_disorder = !before.is_undisturbed() || !before.ends.iter().all(finished);
                connection.tampered = before.tampered;
                connection.strayed = before.strayed;
                if !before.is_over() {
                    // Whose the other end's segments are, and its text, is anybody's guess.
                    (connection.judge, connection.strayed, connection.tampered) = (None, true, true);
                    ended_by_halves = latest;
                }
            }
            if let Some(before) = ended_by_halves {
                (self.connections[before].judge, self.connections[before].tampered) = (None, true);
            }
            connection.impatient =
                self.setup.options.iter().any(|options| options.keepalive.is_some() || options.fin_wait_2_timeout < NEVER);
            self.connections.push(connection);
        }
        let connection = &mut self.connections[at];
        let invited = PORTS.iter().zip(self.listening[1 - side]).any(|(port, listening)| *port == remote && listening);
        connection.uninvited |= !invited;
        (connection.ends[side].id, connection.ends[side].opened) = (Some(id), true);
        self.at = at;
    }

    fn latest(&self, ports: [u16; 2]) -> Option<usize> {
        self.connections.iter().rposition(|connection| connection.ports == ports)
    }

    /// What applications and devices do at any time: timers, events, packets.
    fn settle(&mut self) {
        for side in 0..2 {
            for turn in 0.. {
                self.sides[side].endpoint.handle_timeout(self.now);
                self.handle_events(side);
                for burst in 0.. {
                    if !self.sides[side].endpoint.poll_transmit(self.now, &self.limits, &mut self.transmit) {
                        break;
                    }
                    assert!(burst < BURST_MAX, "endless transmission");
                    self.dispatch(side);
                }
                self.transmit.payload.clear();
                self.handle_events(side);
                if self.sides[side].endpoint.poll_timeout().is_none_or(|next| next > self.now) {
                    break;
                }
                assert!(turn < TURNS_MAX, "no rest");
            }
            self.check_bounds(side);
        }
    }

    /// What was just transmitted, onto the path.
    fn dispatch(&mut self, side: usize) {
        let Transmit { src, dst, ecn, .. } = self.transmit;
        let gone = dst != self.setup.address(1 - side);
        for bytes in packets(&mut self.transmit) {
            self.trace(side, '>', &bytes, ecn);
            if gone {
                continue;
            }
            let connection = self.sender(side, &bytes);
            let judge = connection.and_then(|at| self.connections[at].judge.as_mut());
            if let Some(judge) = judge {
                judge.sends(self.now.nanos(), side, [src, dst], &bytes, ecn);
                if let Some(fault) = judge.faults.first() {
                    panic!("{fault}");
                }
            }
            self.path[1 - side].push_back(Packet { src, bytes, ecn, connection, forged: false, sent_at: self.now });
        }
        let path = &mut self.path[1 - side];
        for lost in path.split_off(PATH_MAX.min(path.len())) {
            self.tell_lost(1 - side, &lost);
        }
    }

    /// Which connection a segment of a side is of.
    fn sender(&mut self, side: usize, bytes: &[u8]) -> Option<usize> {
        let (segment, _) = Repr::parse(bytes).expect("our own header");
        let ports = if side == 0 { [segment.src_port, segment.dst_port] } else { [segment.dst_port, segment.src_port] };
        if segment.flags.contains(Flags::RST) {
            return self.latest(ports);
        }
        let latest_first = (0..self.connections.len()).rev().filter(|at| self.connections[*at].ports == ports);
        for at in latest_first.collect::<Vec<_>>() {
            match self.connections[at].is_sender(side, &segment) {
                Some(true) => {
                    self.mix_twins(at, side);
                    return Some(at);
                }
                Some(false) => {}
                None => return None,
            }
        }
        None
    }

    /// Connections that begin at one instant have one number (RFC 6528 section 3): a half-open end of the earlier one goes on with the later.
    fn mix_twins(&mut self, at: usize, side: usize) {
        let (earlier, later) = self.connections.split_at_mut(at);
        for before in earlier {
            if before.ports == later[0].ports && before.ends[side].is_twin_of(&later[0].ends[side]) {
                (before.judge, later[0].judge, later[0].strayed) = (None, None, true);
            }
        }
    }

    /// The first packet on its way to a side does not arrive.
    fn lose(&mut self, to: usize) -> Option<Packet> {
        let packet = self.path[to].pop_front()?;
        self.tell_lost(to, &packet);
        Some(packet)
    }

    fn tell_lost(&mut self, to: usize, packet: &Packet) {
        if let Some(judge) = packet.connection.filter(|_| !packet.forged).and_then(|at| self.connections[at].judge.as_mut()) {
            judge.loses(1 - to, &packet.bytes);
        }
    }

    fn trace(&self, side: usize, way: char, bytes: &[u8], ecn: u8) {
        if *TRACE && let Ok((segment, header_len)) = Repr::parse(bytes) {
            eprintln!(
                "{:>12} {side}{way} {}-{} {:?} ecn {ecn} seq {} len {} ack {} win {} {:?} {:?}",
                self.now.nanos() / 1000,
                segment.src_port,
                segment.dst_port,
                segment.flags,
                segment.seq.0,
                bytes.len() - header_len,
                segment.ack.0,
                segment.window,
                segment.options.timestamps,
                segment.options.sack.as_slice(),
            );
        }
    }

    fn handle_events(&mut self, side: usize) {
        loop {
            let endpoint = &mut self.sides[side].endpoint;
            let unread = |end: &End| end.id.and_then(|id| endpoint.info(id)).is_some_and(|info| info.unread_bytes > 0);
            let unread: Vec<bool> = self.connections.iter().map(|connection| unread(&connection.ends[side])).collect();
            let Some(event) = endpoint.poll_event() else { break };
            if *TRACE {
                eprintln!("{:>12} {side} {event:?}", self.now.nanos() / 1000);
            }
            if let Event::Accepted { id, port, remote } = event {
                self.accepted(side, id, port, remote);
                continue;
            }
            let (Event::Connected(id) | Event::Readable(id) | Event::Writable(id) | Event::PeerClosed(id) | Event::Closed(id, _)) =
                event
            else {
                continue;
            };
            let Some(at) = self.connections.iter().position(|connection| connection.ends[side].id == Some(id)) else { continue };
            let info = self.sides[side].endpoint.info(id);
            let connection = &mut self.connections[at];
            let end = &mut connection.ends[side];
            assert!(end.closed.is_none(), "told after it was closed");
            match event {
                Event::Connected(_) => assert!(!std::mem::replace(&mut end.established, true), "connected twice"),
                Event::Readable(_) => end.told = info.expect("it lives").bytes_received,
                Event::Writable(_) => end.refused = false,
                Event::PeerClosed(_) => assert!(!std::mem::replace(&mut end.peer_closed, true), "closed by the peer twice"),
                Event::Closed(_, reason) => {
                    assert!(info.is_none(), "a closed id is refused");
                    (end.closed, end.lost_unread) = (Some(reason), unread[at]);
                    connection.check_reason(side, reason);
                }
                Event::Accepted { .. } => {}
            }
        }
        self.check_told(side);
    }

    fn accepted(&mut self, side: usize, id: ConnectionId, port: u16, remote: SocketAddr) {
        let ports = if side == 0 { [port, remote.port()] } else { [remote.port(), port] };
        if remote.ip() != self.setup.address(1 - side) {
            return;
        }
        let Some(connection) = self.latest(ports).map(|at| &mut self.connections[at]) else { return };
        let end = &mut connection.ends[side];
        if end.id.is_some() || end.opened || !end.is_known() {
            self.mix_handshakes(ports);
        } else {
            (end.id, end.established) = (Some(id), true);
        }
    }

    /// A handshake that was over is repeated: a cookie is good for two minutes (RFC 4987 section 3.6).
    fn mix_handshakes(&mut self, ports: [u16; 2]) {
        for connection in self.connections.iter_mut().filter(|connection| connection.ports == ports) {
            (connection.judge, connection.strayed, connection.tampered) = (None, true, true);
        }
    }

    /// Of all that is there to be read and of all room to write the application has been told.
    fn check_told(&self, side: usize) {
        for end in self.connections.iter().map(|connection| &connection.ends[side]).filter(|end| end.established) {
            let Some(info) = end.id.and_then(|id| self.sides[side].endpoint.info(id)) else { continue };
            assert_eq!(info.bytes_received, end.told, "text of which nobody was told");
            assert!(!end.refused || info.queued_bytes > 0, "room of which nobody was told");
        }
    }

    fn check_bounds(&mut self, side: usize) {
        let endpoint = &mut self.sides[side].endpoint;
        let options = &self.setup.options[side];
        let ids: Vec<ConnectionId> = endpoint.connections().collect();
        assert!(ids.len() <= options.connections_max + options.time_wait_max + PORTS.len() * options.syn_received_max);
        assert!(endpoint.counters().driver_buffers_held <= options.driver_buffers_max as u64);
        let opened: Vec<ConnectionId> = self
            .connections
            .iter()
            .map(|connection| &connection.ends[side])
            .filter(|end| end.opened)
            .filter_map(|end| end.id)
            .collect();
        let (mut established, mut half_open, mut of_peer) = (0, [0; 2], 0);
        for id in ids {
            let Some(info) = endpoint.info(id) else { continue };
            established += u64::from(matches!(info.state, State::Established | State::CloseWait));
            assert!(info.queued_bytes <= options.send_queue_bytes_max);
            let window_max = options.receive_window_max as usize;
            let beyond = window_max / WINDOW_SLACK + (2 << info.window_scale.map_or(0, |(_, ours)| ours));
            assert!(info.unread_bytes + info.out_of_order_bytes <= window_max + beyond, "{info:?}");
            let chain = endpoint.receive(id).expect("it lives");
            assert_eq!(chain.len(), info.unread_bytes);
            assert!(chain.buffers() <= options.receive_buffers_max);
            if !opened.contains(&id) && info.state != State::TimeWait {
                let counts = info.state != State::SynReceived && info.remote.ip() == self.setup.address(1 - side);
                of_peer += usize::from(counts);
                if info.state == State::SynReceived {
                    half_open[usize::from(info.local.port() == PORTS[1])] += 1;
                }
            }
        }
        assert_eq!(endpoint.counters().curr_estab, established);
        assert!(of_peer <= options.connections_per_remote_max, "{of_peer} of one remote");
        assert!(half_open.iter().all(|count| *count <= options.syn_received_max), "{half_open:?} half-open");
    }

    /// Whether an endpoint has a connection between these ports.
    fn has(&self, side: usize, ports: [u16; 2]) -> bool {
        let endpoint = &self.sides[side].endpoint;
        let is =
            |id| endpoint.info(id).is_some_and(|info| (info.local.port(), info.remote.port()) == (ports[side], ports[1 - side]));
        endpoint.connections().any(is)
    }

    /// Whether an endpoint has a connection between these ports whose handshake is over, and of which nobody has been told.
    fn awaits_acceptance(&self, side: usize, ports: [u16; 2]) -> bool {
        let endpoint = &self.sides[side].endpoint;
        let is = |id| {
            let Some(info) = endpoint.info(id) else { return false };
            let told = self.connections.iter().any(|connection| connection.ends[side].id == Some(id));
            let over = !matches!(info.state, State::SynSent | State::SynReceived | State::TimeWait);
            (info.local.port(), info.remote.port()) == (ports[side], ports[1 - side]) && over && !told
        };
        endpoint.connections().any(is)
    }

    fn deliver(&mut self, to: usize, packet: &Packet) {
        self.trace(to, '<', &packet.bytes, packet.ecn);
        // What the attacker has made has any checksum: a device may be wrong.
        let checksum = if self.setup.verifies && !packet.forged { Checksum::Unknown } else { Checksum::Good };
        let fate = self.hand_over(to, packet, packet.received(self.cut), checksum);
        self.tell_fate_of(to, packet, fate);
    }

    /// `packet`, or what begins with it, reaches an endpoint.
    fn hand_over(&mut self, to: usize, packet: &Packet, received: RxPacket, checksum: Checksum) -> Fate {
        let dst = self.setup.address(to);
        let endpoint = &mut self.sides[to].endpoint;
        let before = *endpoint.counters();
        endpoint.handle_marked_segment(self.now, packet.src, dst, received, checksum, packet.ecn);
        let after = endpoint.counters();
        let without_place = |counters: &TcpCounters| counters.listen_drops + counters.remote_drops + counters.syncookies_failed;
        let is_syn = Repr::parse(&packet.bytes).is_ok_and(|(segment, _)| segment.flags.contains(Flags::SYN));
        if after.listen_overflows != before.listen_overflows {
            Fate::Waits
        } else if without_place(after) != without_place(&before) && !packet.forged && !is_syn {
            Fate::Lost
        } else {
            Fate::Taken
        }
    }

    fn tell_fate_of(&mut self, to: usize, packet: &Packet, fate: Fate) {
        let judge = packet.connection.and_then(|at| self.connections[at].judge.as_mut());
        match (fate, judge) {
            (Fate::Waits, Some(judge)) => drop(judge.intrudes(to, &packet.bytes)),
            (Fate::Lost, Some(judge)) => judge.loses(1 - to, &packet.bytes),
            (Fate::Lost, None) => {}
            (Fate::Taken, _) | (Fate::Waits, None) => self.tell_of(to, packet),
        }
    }

    /// As `Shard` does it: where the device put it, if it continues a train.
    fn deliver_in_place(&mut self, to: usize, packet: &Packet) {
        if let (IpAddr::V4(src), IpAddr::V4(dst)) = (packet.src, self.setup.address(to)) {
            let mut buf = RxBuf::from_vec([&[0x45; IPV4_HEADER][..], &packet.bytes, &[0x5a; 4]].concat());
            let range = IPV4_HEADER..IPV4_HEADER + packet.bytes.len();
            if self.sides[to].endpoint.continue_train(self.now, (src, dst), &mut buf, range, Checksum::Good) {
                self.trace(to, '(', &packet.bytes, packet.ecn);
                return self.tell_of(to, packet);
            }
        }
        self.deliver(to, packet);
    }

    fn deliver_joined(&mut self, to: usize, most: usize, strictly: bool) {
        let count = joinable(self.path[to].iter(), most, strictly);
        let packets: Vec<Packet> = self.path[to].drain(..count).collect();
        match &packets[..] {
            [] => {}
            [one] => self.deliver(to, one),
            [first, ..] => {
                let dst = self.setup.address(to);
                self.trace(to, '[', &first.bytes, first.ecn);
                let fate = self.hand_over(to, first, joined(&packets), Checksum::Good);
                let judge = first.connection.and_then(|at| self.connections[at].judge.as_mut());
                if let Some(judge) = judge.filter(|_| fate == Fate::Taken) {
                    // The device has put the last one's timestamp in the first one's place.
                    let header = joined(&packets).first[..first.header_len()].to_vec();
                    let header = with_checksum(first.src, dst, header);
                    judge.delivers(self.now.nanos(), to, [first.src, dst], &header, 0);
                }
                packets.iter().for_each(|packet| self.tell_fate_of(to, packet, fate));
            }
        }
    }

    /// Tells the judges what has reached a side.
    fn tell_of(&mut self, to: usize, packet: &Packet) {
        let Ok((segment, _)) = Repr::parse(&packet.bytes) else { return };
        let ports = if to == 0 { [segment.dst_port, segment.src_port] } else { [segment.src_port, segment.dst_port] };
        let Some(latest) = self.latest(ports).filter(|_| packet.src == self.setup.address(1 - to)) else { return };
        let known = self.has(to, ports);
        let lifetime = segment_lifetime_max(self.setup.options.iter().map(|options| options.time_wait).min().unwrap_or_default());
        let addresses = [packet.src, self.setup.address(to)];
        if packet.forged {
            for connection in self.connections.iter_mut().filter(|connection| connection.ports == ports) {
                // Before both ends know each other anything may have been agreed on.
                let agreed = connection.ends.iter().all(|end| end.established);
                connection.tampered = true;
                if !agreed || !connection.judge.as_mut().is_some_and(|judge| judge.intrudes(to, &packet.bytes)) {
                    connection.judge = None;
                }
            }
            return;
        }
        if let Some(judge) = packet.connection.filter(|at| *at != latest).and_then(|at| self.connections[at].judge.as_mut()) {
            judge.delivers(self.now.nanos(), to, addresses, &packet.bytes, packet.ecn);
        }
        // An end may be in an earlier connection's TIME-WAIT yet.
        let of = packet.connection.unwrap_or(latest);
        let earlier = self.connections[..of].iter_mut().filter(|connection| connection.ports == ports);
        earlier.filter_map(|connection| connection.judge.as_mut()).for_each(|judge| judge.is_succeeded(to));
        if of != latest && !self.connections[latest].ends[to].opened && self.awaits_acceptance(to, ports) {
            self.mix_handshakes(ports);
            return;
        }
        // An end may be in any later one, or on its way to the latest.
        let strays_from = if packet.connection.is_some() { of + 1 } else { latest };
        for connection in self.connections[strays_from..].iter_mut().filter(|connection| connection.ports == ports) {
            // An earlier connection's, or nobody's. What is too old, or of one that was not closed in order, may do harm.
            connection.strayed = true;
            connection.tampered |=
                packet.connection.is_none() || connection.after_disorder || self.now.since(packet.sent_at) > lifetime;
            // Until then an earlier connection's SYN may be taken for the peer's.
            let knows_peer =
                connection.ends[1 - to].is_known() && (connection.ends[to].established || !segment.flags.contains(Flags::SYN));
            if !knows_peer || connection.judge.as_mut().is_some_and(|judge| !judge.intrudes(to, &packet.bytes)) {
                connection.judge = None;
            }
        }
        if packet.connection != Some(latest) {
            return;
        }
        let connection = &mut self.connections[latest];
        let end = &connection.ends[to];
        // Without a connection, or a cookie that makes one, it is lost.
        if end.opened || end.established || known || segment.flags.contains(Flags::SYN) {
            if let Some(judge) = &mut connection.judge {
                judge.delivers(self.now.nanos(), to, addresses, &packet.bytes, packet.ecn);
            }
        }
    }

    fn deliver_next(&mut self, to: usize) {
        if let Some(packet) = self.path[to].pop_front() {
            self.deliver(to, &packet);
        }
    }

    fn deliver_all(&mut self, to: usize) {
        while !self.path[to].is_empty() {
            self.deliver_next(to);
        }
    }

    /// Queues `len` bytes in slices of at most `piece`.
    fn send(&mut self, side: usize, len: usize, piece: usize) {
        let (at, Side { endpoint, pool }) = (self.at, &mut self.sides[side]);
        let end = &mut self.connections[at].ends[side];
        let Some(id) = end.id else { return };
        let mut gather: Vec<Slice> = Vec::new();
        let mut offset = end.sent;
        let stop = offset + len as u64;
        while offset < stop {
            let Some(mut page) = pool.allocate() else { return };
            let n = piece.clamp(1, BLOCK).min((stop - offset) as usize);
            put_text(at, side, offset, &mut page[..n]);
            let mut slice = page.freeze();
            slice.truncate(n);
            gather.push(slice);
            offset += n as u64;
        }
        match endpoint.send(self.now, id, &mut gather) {
            Ok(()) => {
                assert!(gather.is_empty());
                end.sent = stop;
            }
            Err(SendError::Full) => end.refused = true,
            Err(SendError::Closed) => {}
        }
    }

    fn read(&mut self, side: usize, len: usize) {
        self.read_of(self.at, side, len);
    }

    fn read_of(&mut self, at: usize, side: usize, len: usize) {
        let connection = &mut self.connections[at];
        let (good, tampered) = (connection.ends[1 - side].sent, connection.tampered);
        let (end, endpoint) = (&mut connection.ends[side], &mut self.sides[side].endpoint);
        let Some(id) = end.id else { return };
        let Some(chain) = endpoint.receive(id) else { return };
        let n = len.min(chain.len());
        let bytes = chain.view(0, n).expect("they are there").to_vec();
        chain.consume(n);
        let right = is_text(at, 1 - side, end.received, &bytes);
        assert!(tampered || right, "side {side} got other bytes than were sent, from {} on", end.received);
        end.received += n as u64;
        endpoint.received(self.now, id);
        assert!(tampered || end.received <= good);
    }

    fn close(&mut self, at: usize, side: usize) {
        let connection = &mut self.connections[at];
        let end = &mut connection.ends[side];
        end.closing = true;
        // RFC 9293 section 3.10.4: in SYN-SENT nothing is left of it.
        connection.aborted |= !end.established;
        if let Some(id) = end.id {
            self.sides[side].endpoint.close(self.now, id);
        }
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
                for at in 0..self.connections.len() {
                    self.read_of(at, side, usize::MAX);
                    let [this, other] = [side, 1 - side].map(|side| &self.connections[at].ends[side]);
                    if this.received == other.sent && !other.closing && other.established {
                        self.close(at, 1 - side);
                    }
                }
            }
            self.settle();
            if self.connections.iter().all(|connection| connection.is_over() || !connection.is_undisturbed()) {
                return;
            }
            if self.path.iter().all(|path| path.is_empty()) {
                self.skip_to_timeout();
                self.settle();
            }
        }
        for (at, connection) in self.connections.iter().enumerate().filter(|(_, connection)| !connection.is_over()) {
            for (side, end) in connection.ends.iter().enumerate() {
                let info = end.id.and_then(|id| self.sides[side].endpoint.info(id));
                eprintln!("connection {at} side {side}: sent {} received {} {info:?}", end.sent, end.received);
            }
        }
        panic!("stuck");
    }

    /// Of the connection that is dealt with.
    fn ports(&self) -> [u16; 2] {
        self.connections[self.at].ports
    }

    /// A segment of the connection, near the numbers that `to` expects.
    fn forge(&self, to: usize, input: &mut Input<'_>) -> Vec<u8> {
        let ports = (self.ports()[1 - to], self.ports()[to]);
        let is = |packet: &&Packet| packet.connection == Some(self.at);
        let other = self.path[1 - to].iter().rfind(is).or(self.path[to].iter().rfind(is));
        let seen = other.and_then(|packet| Repr::parse(&packet.bytes).ok()).map(|(repr, _)| repr).unwrap_or_default();
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
        let Some(mut packet) = self.lose(to) else { return };
        packet.forged = true;
        let (at, value) = (usize::from(input.byte()), input.byte());
        let bytes = &mut packet.bytes;
        match value & 3 {
            0 => bytes.truncate(at),
            _ if bytes.is_empty() => {}
            _ => {
                let at = at % bytes.len().min(64);
                bytes[at] ^= value;
            }
        }
        self.path[to].push_front(packet);
    }

    fn forged(&self, src: IpAddr, bytes: Vec<u8>) -> Packet {
        Packet { src, bytes, ecn: 0, connection: None, forged: true, sent_at: self.now }
    }

    /// Lies of a router. Whoever is on the path can tell them, and data must not suffer.
    fn lie(&mut self, to: usize, input: &mut Input<'_>) {
        let (kind, mtu) = (input.byte(), input.u16());
        let seen = self.path[1 - to].iter().rfind(|packet| packet.connection == Some(self.at));
        let seq = seen.and_then(|packet| Repr::parse(&packet.bytes).ok()).map_or(SeqNumber(0), |(repr, _)| repr.seq);
        let (local_port, remote_port) = (self.ports()[to], self.ports()[1 - to]);
        let (local_ip, remote_ip) = (self.setup.address(to), self.setup.address(1 - to));
        let tuple = FourTuple { local_ip, remote_ip, local_port, remote_port };
        let error = match kind & 3 {
            0 => IcmpError::Unreachable,
            1 => IcmpError::Transient,
            _ => IcmpError::PacketTooBig { mtu },
        };
        self.disorder();
        for connection in self
            .connections
            .iter_mut()
            .filter(|connection| connection.ports == [local_port, remote_port] || connection.ports == [remote_port, local_port])
        {
            connection.lied_to |= error == IcmpError::Unreachable;
        }
        self.sides[to].endpoint.handle_icmp(self.now, &tuple, seq, error);
    }

    /// SYNs from nobody who is there, or who would answer.
    fn flood(&mut self, to: usize, count: u8, how: u8) {
        for number in 0..count {
            let mut segment = Repr {
                src_port: 1_000 + u16::from(number),
                dst_port: PORTS[usize::from(how & 1)],
                seq: SeqNumber(u32::from(number) << 20 | u32::from(how)),
                flags: Flags::SYN,
                window: 1000,
                ..Repr::default()
            };
            segment.options.mss = (how & 2 != 0).then_some(1460);
            let src = if how & 4 != 0 { self.setup.stranger(how >> 3) } else { self.setup.stranger(number) };
            let mut header = [0; HEADER_LEN_MAX];
            let len = segment.emit(&mut header);
            let packet = self.forged(src, with_checksum(src, self.setup.address(to), header[..len].to_vec()));
            self.deliver(to, &packet);
        }
    }

    /// Round trips of a link that works: both ends send what they can, if they shall, and read; some packets are marked.
    fn round_trips(&mut self, input: &mut Input<'_>) {
        let (count, trip, how) = (input.byte() & 31, Duration::from_micros(u64::from(input.u16())), input.byte());
        for _ in 0..=count {
            for side in 0..2 {
                if how >> side & 1 != 0 {
                    self.send(side, 4096, if how & 4 != 0 { 700 } else { BLOCK });
                }
            }
            self.settle();
            self.now += trip / 2;
            for to in 0..2 {
                let every = usize::from(how >> 4);
                if every > 0 {
                    self.path[to].iter_mut().step_by(every).for_each(mark);
                }
                while let Some(packet) = self.path[to].pop_front() {
                    self.deliver_in_place(to, &packet);
                }
                if how & 8 == 0 {
                    self.read(to, usize::MAX);
                }
            }
            self.settle();
        }
    }

    /// The operations behind 0xcf and 0xdf.
    fn more(&mut self, side: usize, input: &mut Input<'_>) {
        let at = self.at;
        match input.byte() & 31 {
            0 => self.at = usize::from(input.byte()) % self.connections.len(),
            1 => {
                let how = input.byte();
                let number = u16::from(how & 3);
                match how >> 2 & 3 {
                    port @ (0 | 1) => self.connect(side, CLIENT_PORT + number, PORTS[usize::from(port)]),
                    _ => self.connect(side, COMMON_PORT + number, COMMON_PORT + number),
                }
            }
            2 => self.path[side].iter_mut().take(1).for_each(mark),
            3 => {
                let (count, ecn) = (input.byte(), input.byte());
                // RFC 3168 section 18: a router can say what it likes. Marks on what cannot be marked are still marks.
                self.path[side].iter_mut().take(usize::from(count)).for_each(|packet| packet.ecn = ecn & 3);
            }
            4 => {
                for _ in 0..input.byte() {
                    let Some(packet) = self.path[side].pop_front() else { break };
                    self.deliver_in_place(side, &packet);
                }
            }
            5 => {
                let how = input.byte();
                self.deliver_joined(side, usize::from(how >> 1), how & 1 != 0);
            }
            6 => {
                let on = input.byte() & 1 != 0;
                self.connections[at].impatient |= on;
                if let Some(id) = self.connections[at].ends[side].id {
                    self.sides[side].endpoint.set_keepalive(self.now, id, on);
                }
            }
            7 => {
                let timeout = Duration::from_millis(u64::from(input.byte()) * 100);
                self.connections[at].impatient = true;
                if let Some(id) = self.connections[at].ends[side].id {
                    self.sides[side].endpoint.set_user_timeout(self.now, id, timeout);
                }
            }
            8 => {
                let on = input.byte() & 1 != 0;
                if let Some(id) = self.connections[at].ends[side].id {
                    self.sides[side].endpoint.set_nagle(id, on);
                }
            }
            9 => {
                let connection = &mut self.connections[at];
                (connection.aborted, connection.ends[side].closing) = (true, true);
                if let Some(id) = connection.ends[side].id {
                    // What was not read is gone.
                    connection.tampered = true;
                    connection.judge.iter_mut().for_each(Judge::refuses_text);
                    self.sides[side].endpoint.close_both(self.now, id);
                }
            }
            10 => {
                let (count, len, piece) = (input.byte() & 15, input.byte(), input.byte());
                for _ in 0..=count {
                    self.send(side, usize::from(len) * 8, usize::from(piece) * 8);
                }
            }
            11 => self.now += Duration::from_micros(u64::from(input.u16())),
            12 => {
                let which = usize::from(input.byte() & 1);
                let port = PORTS[which];
                self.listening[side][which] ^= true;
                let endpoint = &mut self.sides[side].endpoint;
                if endpoint.unlisten(port) {
                    // Half-open ones are reset, and who comes later is refused.
                    for connection in self.connections.iter_mut().filter(|connection| connection.ports[side] == port) {
                        connection.strayed |= !connection.ends[side].established;
                        connection.uninvited = true;
                    }
                } else {
                    endpoint.listen(port).expect("a free port");
                }
            }
            13 => while self.lose(side).is_some() {},
            14 => {
                self.disorder();
                self.path[side].make_contiguous().reverse();
            }
            15 => self.round_trips(input),
            16 => {
                let (count, how) = (input.byte() & 15, input.byte());
                self.flood(side, count, how);
            }
            17 => {
                let count = input.byte();
                for _ in 0..count {
                    self.skip_to_timeout();
                    self.settle();
                }
            }
            _ => {}
        }
    }

    fn step(&mut self, input: &mut Input<'_>) {
        let op = input.byte();
        let side = usize::from(op >> 4 & 1);
        match op & 15 {
            0 => self.deliver_next(side),
            1 => self.deliver_all(side),
            2 => drop(self.lose(side)),
            3 => {
                self.disorder();
                let copy = self.path[side].front().cloned();
                self.path[side].extend(copy);
            }
            4 => {
                let at = usize::from(input.byte());
                self.disorder();
                if let Some(packet) = self.path[side].pop_front() {
                    let at = at % (self.path[side].len() + 1);
                    self.path[side].insert(at, packet);
                }
            }
            5 => {
                if let Some(packet) = self.path[side].front()
                    && self.held.len() < HELD_MAX
                {
                    self.held.push((side, packet.clone()));
                }
            }
            6 => {
                let at = usize::from(input.byte());
                self.disorder();
                if let Some((to, packet)) = self.held.get(at % self.held.len().max(1)).cloned() {
                    self.deliver(to, &packet);
                }
            }
            7 => self.edit(side, input),
            8 => {
                let bytes = self.forge(side, input);
                let packet = self.forged(self.setup.address(1 - side), bytes);
                self.deliver(side, &packet);
            }
            9 => {
                let len = usize::from(input.u16() % 9_000);
                self.send(side, len, BLOCK);
            }
            10 => {
                let len = usize::from(input.byte()) << (op >> 5);
                self.read(side, len);
            }
            11 => self.now += Duration::from_millis(u64::from(input.byte()) << (op >> 5)),
            12 => self.skip_to_timeout(),
            13 => self.close(self.at, side),
            14 => {
                let (mtu, how) = (input.u16(), input.byte());
                self.cut = usize::from(how >> 3);
                self.limits = TransmitLimits {
                    // RFC 8200 section 5: no link takes less.
                    mtu: mtu.clamp(if self.setup.ipv6 { 1280 } else { 576 }, 9000),
                    tso_bytes_max: if how & 1 != 0 { 65_000 } else { 0 },
                    tso_ipv6_bytes_max: if how & 1 != 0 { 65_000 } else { 0 },
                    segments_per_packet_max: if how & 2 != 0 { 2 } else { 32 },
                    segments_tso_max: if how & 4 != 0 { 3 } else { 32 },
                };
                self.renew_terms();
            }
            _ if op >> 5 == 7 => {
                let connection = &mut self.connections[self.at];
                connection.aborted = true;
                if let Some(id) = connection.ends[side].id {
                    self.sides[side].endpoint.abort(self.now, id);
                }
            }
            _ if op & !0x10 == MORE => self.more(side, input),
            _ => self.lie(side, input),
        }
        self.settle();
    }

    /// Ends every connection of both ends, whoever has opened it.
    fn abort_all(&mut self, mut is: impl FnMut(usize, ConnectionId, &[Connection]) -> bool) {
        for side in 0..2 {
            let ids: Vec<ConnectionId> = self.sides[side].endpoint.connections().collect();
            for id in ids.into_iter().filter(|id| is(side, *id, &self.connections)) {
                self.sides[side].endpoint.abort(self.now, id);
            }
        }
        self.settle();
    }
}

/// A router's, on what can be marked (RFC 3168 section 5).
fn mark(packet: &mut Packet) {
    if packet.ecn != 0 {
        packet.ecn = CONGESTION_EXPERIENCED;
    }
}

pub fn fuzz(data: &[u8]) {
    let mut input = Input::new(data);
    let how = input.byte();
    let setup = match data.get(1) {
        Some(&MORE) => {
            input.byte();
            Setup::read(how, &mut input)
        }
        _ => Setup::plain(how),
    };
    let mut conversation = Conversation::new(setup);
    while !input.is_empty() {
        conversation.step(&mut input);
    }
    if conversation.connections.iter().any(Connection::is_undisturbed) {
        // What the attacker has opened holds memory that others need.
        conversation.abort_all(|side, id, connections| {
            !connections.iter().any(|connection| connection.ends[side].id == Some(id) || !connection.ends[side].established)
        });
        conversation.finish();
        for connection in conversation.connections.iter().filter(|connection| connection.is_undisturbed()) {
            for (this, other) in [(0, 1), (1, 0)].map(|(this, other)| (&connection.ends[this], &connection.ends[other])) {
                let whole = this.lost_unread || this.received == other.sent || !this.established || !other.established;
                assert!(whole, "got {} bytes of {}", this.received, other.sent);
            }
        }
    }
    conversation.connections.iter_mut().for_each(|connection| connection.aborted = true);
    conversation.abort_all(|_, _, _| true);
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
