//! All connections of one core: the tables, listening ports, stateless replies, timers and the fair order of sending.
//!
//! Read first: RFC 9293 section 3.10.7, RFC 6528, RFC 6056, RFC 5927. A segment finds its connection here; what it does to it
//! is `connection`'s. Every call ends in `settle`, the one place that turns a connection's wishes into table changes, or in those of its parts
//! that sending may ask for, `queue` and `arm`.
//! - `listen`: ports, half-open connections, SYN cookies, what a SYN may do to a TIME-WAIT.
//! - `settings`: what can be told one connection.
//! - `transmit`: a packet or chain that leaves, and what the layers below can carry.

mod listen;
mod settings;
mod transmit;

use std::collections::{HashMap, VecDeque};
use std::hash::{Hash, Hasher};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::num::NonZeroU32;
use std::ops::Range;

use siphasher::sip::SipHasher24;

pub use transmit::{Transmit, TransmitLimits};

use super::connection::{CONGESTION_EXPERIENCED, Connection, Header, Shared, Train};
use super::counters::TcpCounters;
use super::remotes::Remotes;
use super::syn_cookie::SynCookies;
use super::syn_queue::{PER_TURN, SynQueue};
use super::tuple_hash::TupleHash;
use super::{ConnectError, Event, Options, SendError, State, TcpInfo};
use crate::buf::{Checksum, FragmentArena, RxBuf, RxChain, RxPacket, Slice};
use crate::time::{Instant, TICK, TimerWheel};
use crate::wire::checksum::transport_is_valid;
use crate::wire::protocol;
use crate::wire::tcp::{HEADER_LEN, Repr, SeqNumber};

/// RFC 6056 section 3.2 asks for the whole ephemeral range; this is IANA's (RFC 6335 section 6).
const EPHEMERAL_FIRST: u16 = 49_152;
const EPHEMERAL_COUNT: u32 = 16_384;
/// Connections whose buffers are looked at per segment while the endpoint's driver buffers are short.
const RELIEF_STEPS: usize = 4;

/// Names a connection; refused once its `Event::Closed` has been polled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ConnectionId {
    pub(crate) index: u32,
    pub(crate) generation: u32,
}

impl ConnectionId {
    /// One word, for tables of layers above that name connections by a number of their own.
    pub fn to_bits(self) -> u64 {
        u64::from(self.generation) << 32 | u64::from(self.index)
    }

    /// What `to_bits` gave. A word that it never gave names no connection.
    pub fn from_bits(bits: u64) -> ConnectionId {
        ConnectionId { index: bits as u32, generation: (bits >> 32) as u32 }
    }
}

/// Both ends of a connection, as seen from here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FourTuple {
    /// Our address.
    pub local_ip: IpAddr,
    /// The peer's, of the same family.
    pub remote_ip: IpAddr,
    /// Our port.
    pub local_port: u16,
    /// The peer's.
    pub remote_port: u16,
}

impl FourTuple {
    /// Our address and port.
    pub fn local(&self) -> SocketAddr {
        SocketAddr::new(self.local_ip, self.local_port)
    }

    /// The peer's address and port.
    pub fn remote(&self) -> SocketAddr {
        SocketAddr::new(self.remote_ip, self.remote_port)
    }

    /// Bytes of the IP and TCP headers without options.
    pub(crate) fn headers_len(&self) -> u16 {
        let ip = if self.remote_ip.is_ipv4() { 20 } else { 40 };
        ip + HEADER_LEN as u16
    }
}

impl Hash for FourTuple {
    /// Few whole words, which is what the hash functions are fast at.
    fn hash<H: Hasher>(&self, state: &mut H) {
        match (self.local_ip, self.remote_ip) {
            (IpAddr::V4(local), IpAddr::V4(remote)) => {
                state.write_u64(u64::from(local.to_bits()) << 32 | u64::from(remote.to_bits()));
            }
            addresses => {
                for address in [addresses.0, addresses.1] {
                    let bits = match address {
                        IpAddr::V4(v4) => v4.to_ipv6_mapped().to_bits(),
                        IpAddr::V6(v6) => v6.to_bits(),
                    };
                    state.write_u64((bits >> 64) as u64);
                    state.write_u64(bits as u64);
                }
            }
        }
        state.write_u64(u64::from(self.local_port) << 16 | u64::from(self.remote_port));
    }
}

/// What an ICMP error that quotes one of our segments says (RFC 1122 section 4.2.3.9, RFC 1191, RFC 8201).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IcmpError {
    /// Port or protocol unreachable: hard for a handshake, soft afterwards.
    Unreachable,
    /// Network or host unreachable, administratively prohibited, time exceeded: soft.
    Transient,
    /// A packet was longer than a link of the path takes.
    PacketTooBig {
        /// The MTU of the next hop, bytes of IP packet. Where the router does not tell it, the caller's guess (RFC 1191 section 5).
        mtu: u16,
    },
}

/// An answer that needs no connection.
pub(crate) struct Reply {
    pub tuple: FourTuple,
    pub repr: Repr,
}

/// Never given again, so that what is left of an ended listener counts among nobody's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ListenerId(NonZeroU32);

pub(crate) struct Listener {
    pub id: ListenerId,
    /// `None`: any.
    pub address: Option<IpAddr>,
    pub port: u16,
    pub half_open: usize,
    pub accept_pending: usize,
    /// The half-open ones, oldest first, among some that are not any more.
    pub waiting: VecDeque<ConnectionId>,
}

#[derive(Default)]
struct Slot {
    generation: u32,
    connection: Option<Box<Connection>>,
}

/// All connections of one core. See the module for the order in which to call.
pub struct Endpoint {
    shared: Shared,
    slots: Vec<Slot>,
    free: Vec<u32>,
    table: HashMap<FourTuple, u32, TupleHash>,
    /// Whose segment came last: the next one is likely to be its, too.
    recent: u32,
    /// What its latest segments come to, until something else is asked or told.
    train: Option<Train>,
    wheel: TimerWheel,
    ready: VecDeque<u32>,
    /// Ready as well, but passed over: see `hold`.
    held: VecDeque<u32>,
    time_wait: VecDeque<ConnectionId>,
    /// What was closed for good, oldest first, among some that has ended.
    orphans: VecDeque<ConnectionId>,
    cookies: SynCookies,
    syns: SynQueue,
    /// How many more strays are reset in this turn; some have waited since the one before.
    resets_left: usize,
    resets_late: bool,
    /// Of connections that peers opened, TIME-WAIT aside.
    remotes: Remotes<TupleHash>,
    secret: [u8; 16],
    next_listener: NonZeroU32,
    ephemeral: u32,
    relief_cursor: usize,
}

impl Endpoint {
    /// `secret` keys the sequence numbers, port choice and tables: 16 unpredictable bytes.
    pub fn new(options: Options, secret: [u8; 16]) -> Endpoint {
        Endpoint {
            shared: Shared::new(options),
            slots: Vec::new(),
            free: Vec::new(),
            table: HashMap::with_hasher(TupleHash::new(secret)),
            recent: 0,
            train: None,
            wheel: TimerWheel::new(),
            ready: VecDeque::new(),
            held: VecDeque::new(),
            time_wait: VecDeque::new(),
            orphans: VecDeque::new(),
            cookies: SynCookies::new(secret),
            syns: SynQueue::new(TupleHash::new(secret)),
            resets_left: PER_TURN,
            resets_late: false,
            remotes: Remotes::new(TupleHash::new(secret)),
            secret,
            next_listener: NonZeroU32::MIN,
            ephemeral: 0,
            relief_cursor: 0,
        }
    }

    /// Gives the endpoint room to copy received bytes to when driver buffers are short. Without it, segments that need
    /// copying are dropped instead once the limits are reached.
    pub fn set_copy_out(&mut self, arena: FragmentArena) {
        self.shared.copy_out = Some(arena);
    }

    #[cfg(test)]
    pub(super) fn set_prediction(&mut self, on: bool) {
        self.shared.prediction = on;
    }

    #[cfg(test)]
    pub(super) fn set_coupling(&mut self, on: bool) {
        self.shared.coupling = on;
    }

    /// What is wrong with the timers of any connection.
    #[cfg(test)]
    pub(super) fn timer_fault(&self) -> Option<&'static str> {
        self.slots.iter().filter_map(|slot| slot.connection.as_ref()).find_map(|connection| connection.timer_fault())
    }

    #[cfg(test)]
    pub(super) fn forget_timers(&mut self) {
        self.slots.iter_mut().filter_map(|slot| slot.connection.as_mut()).for_each(|connection| connection.forget_timers());
    }

    /// Some connection keeps memory for what it may send or receive next.
    #[cfg(test)]
    pub(super) fn has_spare(&self) -> bool {
        self.slots.iter().filter_map(|slot| slot.connection.as_ref()).any(|connection| connection.has_spare())
    }

    /// As they were handed to `new`.
    pub fn options(&self) -> &Options {
        &self.shared.options
    }

    /// Of all connections since `new`.
    pub fn counters(&self) -> &TcpCounters {
        &self.shared.counters
    }

    /// Opens a connection. A local port of 0 is replaced by one of RFC 6056's choice.
    pub fn connect(&mut self, now: Instant, local: SocketAddr, remote: SocketAddr) -> Result<ConnectionId, ConnectError> {
        self.end_train();
        // RFC 9293 section 3.9.2.3, MUST-46 and MUST-57.
        if !is_host(local.ip()) || !is_host(remote.ip()) || local.is_ipv4() != remote.is_ipv4() || remote.port() == 0 {
            return Err(ConnectError::InvalidAddress);
        }
        let mut tuple =
            FourTuple { local_ip: local.ip(), remote_ip: remote.ip(), local_port: local.port(), remote_port: remote.port() };
        if tuple.local_port == 0 {
            tuple.local_port = self.choose_port(tuple).ok_or(ConnectError::NoPort)?;
        } else if self.table.contains_key(&tuple) {
            return Err(ConnectError::InUse);
        }
        if !self.make_place() {
            return Err(ConnectError::TooMany);
        }
        self.shared.counters.active_opens += 1;
        let (iss, timestamp_offset) = self.initial_sequence(now, &tuple);
        let index = self.insert(tuple, |id, shared| Connection::open_active(now, id, tuple, iss, timestamp_offset, shared));
        self.settle(index);
        Ok(ConnectionId { index, generation: self.slots[index as usize].generation })
    }

    /// RFC 6056 section 3.3.3: a keyed offset per destination plus a counter.
    fn choose_port(&mut self, mut tuple: FourTuple) -> Option<u16> {
        let mut hasher = SipHasher24::new_with_key(&self.secret);
        tuple.hash(&mut hasher);
        hasher.write_u8(1);
        let offset = hasher.finish() as u32;
        for _ in 0..EPHEMERAL_COUNT {
            self.ephemeral = self.ephemeral.wrapping_add(1);
            tuple.local_port = EPHEMERAL_FIRST + (offset.wrapping_add(self.ephemeral) % EPHEMERAL_COUNT) as u16;
            if !self.table.contains_key(&tuple) {
                return Some(tuple.local_port);
            }
        }
        None
    }

    /// RFC 6528 section 3: M + F(four-tuple, secret), M being a 4 us timer; and RFC 7323 section 7.1's offset of the
    /// timestamp clock.
    fn initial_sequence(&self, now: Instant, tuple: &FourTuple) -> (SeqNumber, u32) {
        let mut hasher = SipHasher24::new_with_key(&self.secret);
        tuple.hash(&mut hasher);
        let hash = hasher.finish();
        (SeqNumber((now.nanos() / 4_000) as u32) + hash as u32, (hash >> 32) as u32)
    }

    fn insert(&mut self, tuple: FourTuple, make: impl FnOnce(ConnectionId, &mut Shared) -> Connection) -> u32 {
        let index = self.free.pop().unwrap_or_else(|| {
            self.slots.push(Slot::default());
            (self.slots.len() - 1) as u32
        });
        let slot = &mut self.slots[index as usize];
        let id = ConnectionId { index, generation: slot.generation };
        slot.connection = Some(Box::new(make(id, &mut self.shared)));
        self.table.insert(tuple, index);
        self.shared.counters.curr_connections += 1;
        index
    }

    /// `handle_segment` with the two ECN bits of the IP header, which a layer below that knows them hands in (RFC 3168).
    pub fn handle_marked_segment(
        &mut self,
        now: Instant,
        src: IpAddr,
        dst: IpAddr,
        packet: RxPacket,
        checksum: Checksum,
        ecn: u8,
    ) {
        self.shared.marked = ecn & 3 == CONGESTION_EXPERIENCED;
        self.handle_segment(now, src, dst, packet, checksum);
        self.shared.marked = false;
    }

    /// One received segment. `packet` starts at the TCP header, which is contiguous, and ends with the IP payload.
    ///
    /// Those that follow each other in one connection are handled as one, once something else comes or is asked: until then its
    /// `info`, `queued` and `send_room` are of before.
    #[inline]
    pub fn handle_segment(&mut self, now: Instant, src: IpAddr, dst: IpAddr, mut packet: RxPacket, checksum: Checksum) {
        self.shared.counters.in_segs += 1;
        let checksum = match checksum {
            Checksum::Unknown if transport_is_valid(src, dst, protocol::TCP, &packet) => Checksum::Good,
            Checksum::Unknown => Checksum::Bad,
            known => known,
        };
        if checksum == Checksum::Good
            && let Some(header) = Header::plain(&packet)
            && self.joins_train(now, src, dst, &header)
        {
            if header.text > 0
                && let Some(connection) = &mut self.slots[self.recent as usize].connection
            {
                packet.advance(header.len);
                connection.take_text(packet);
            }
            #[cfg(test)]
            if !self.shared.coupling {
                self.end_train();
            }
            return;
        }
        self.end_train();
        self.handle_apart(now, src, dst, packet, checksum);
    }

    /// Takes a segment over IPv4 where it lies, in octets `range` of `buf`, if it continues a train: `handle_segment` for most of a
    /// burst, without moving anything. `false`: it does not, and nothing was done.
    #[inline(always)]
    pub fn continue_train(
        &mut self,
        now: Instant,
        (src, dst): (Ipv4Addr, Ipv4Addr),
        buf: &mut RxBuf,
        range: Range<usize>,
        checksum: Checksum,
    ) -> bool {
        let Some(train) = &mut self.train else { return false };
        let Some(octets) = buf.get(range.clone()) else { return false };
        if checksum != Checksum::Good {
            return false;
        }
        let Some(header) = train.next_in_place(now, src, dst, octets) else { return false };
        train.couple(&header);
        self.shared.counters.in_segs += 1;
        if header.text > 0
            && let Some(connection) = &mut self.slots[self.recent as usize].connection
        {
            connection.take_text_of_one(buf.take_part(range.start + header.len, range.end));
        }
        #[cfg(test)]
        if !self.shared.coupling {
            self.end_train();
        }
        true
    }

    /// Whether the segment continues a train, or starts one; it is counted with it then.
    #[inline]
    fn joins_train(&mut self, now: Instant, src: IpAddr, dst: IpAddr, header: &Header) -> bool {
        if let Some(train) = &mut self.train {
            if train.continues_with(now, src, dst, header) {
                train.couple(header);
                return true;
            }
            self.unload_train();
        }
        self.starts_train(now, src, dst, header)
    }

    fn starts_train(&mut self, now: Instant, src: IpAddr, dst: IpAddr, header: &Header) -> bool {
        let (remote_port, local_port) = header.ports();
        let Some(index) = self.index_of(&FourTuple { local_ip: dst, remote_ip: src, local_port, remote_port }) else {
            return false;
        };
        self.recent = index;
        let Some(connection) = &self.slots[index as usize].connection else { return false };
        self.train = connection.predict(now, &self.shared, header);
        match &mut self.train {
            Some(train) => {
                train.couple(header);
                true
            }
            None => false,
        }
    }

    /// The rest of what the segments of a train ask for.
    #[inline]
    fn end_train(&mut self) {
        if self.train.is_some() {
            self.unload_train();
        }
    }

    fn unload_train(&mut self) {
        if let Some(connection) = &mut self.slots[self.recent as usize].connection
            && let Some(train) = &self.train
        {
            connection.handle_train(&mut self.shared, train);
        }
        self.train = None;
        self.settle(self.recent);
    }

    fn handle_apart(&mut self, now: Instant, src: IpAddr, dst: IpAddr, mut packet: RxPacket, checksum: Checksum) {
        let Some((repr, header_len)) = self.check_segment(&packet, checksum) else { return };
        packet.advance(header_len);
        let tuple = FourTuple { local_ip: dst, remote_ip: src, local_port: repr.dst_port, remote_port: repr.src_port };
        let mut known = self.index_of(&tuple);
        let mut iss_min = None;
        if let Some(index) = known {
            iss_min = self.time_wait_gives_way(index, &repr);
            known = known.filter(|_| iss_min.is_none());
        }
        match known {
            Some(index) => {
                self.recent = index;
                self.relieve();
                let half_open = self.is_half_open(index);
                if half_open && (self.cookie_takes_over(now, index, &repr) || self.begins_anew(index, &repr)) {
                    return self.handle_without_connection(now, tuple, &repr, packet, None);
                }
                if half_open && !self.may_establish(index, &repr) {
                    return;
                }
                if let Some(connection) = &mut self.slots[index as usize].connection {
                    // The options are laid out unusually, or there are driver buffers again.
                    let header = Header::of(&repr, &packet);
                    if repr.options.sack.is_empty()
                        && let Some(mut train) = connection.predict(now, &self.shared, &header)
                    {
                        train.couple(&header);
                        if header.text > 0 {
                            connection.take_text(packet);
                        }
                        self.train = Some(train);
                        #[cfg(test)]
                        if !self.shared.coupling {
                            self.end_train();
                        }
                        return;
                    }
                    connection.handle_segment(now, &mut self.shared, &repr, packet);
                }
                if half_open {
                    self.join_remote(index);
                }
                self.settle(index);
            }
            // RFC 9293 section 3.9.2.3, MUST-57: only between hosts. No connection is between others.
            None if src.is_unspecified() || is_group(src) || is_group(dst) => self.shared.counters.in_addr_errors += 1,
            None => self.handle_without_connection(now, tuple, &repr, packet, iss_min),
        }
    }

    fn is_half_open(&self, index: u32) -> bool {
        self.slots[index as usize].connection.as_ref().is_some_and(|connection| connection.state == State::SynReceived)
    }

    fn index_of(&self, tuple: &FourTuple) -> Option<u32> {
        let recent = self.slots.get(self.recent as usize).and_then(|slot| slot.connection.as_deref());
        match recent {
            Some(connection) if connection.tuple == *tuple && !connection.removed => Some(self.recent),
            _ => self.table.get(tuple).copied(),
        }
    }

    /// The header, if the segment is one: checksum (which is known by now), format, ports.
    fn check_segment(&mut self, packet: &RxPacket, checksum: Checksum) -> Option<(Repr, usize)> {
        let counters = &mut self.shared.counters;
        if checksum != Checksum::Good {
            // RFC 9293 section 3.1, MUST-3.
            counters.in_csum_errors += 1;
            return None;
        }
        match Repr::parse(&packet.first) {
            Ok((repr, header_len)) if repr.src_port != 0 && repr.dst_port != 0 => Some((repr, header_len)),
            _ => {
                counters.in_errs += 1;
                None
            }
        }
    }

    /// An ICMP error that quotes a segment of ours with sequence number `seq`.
    pub fn handle_icmp(&mut self, now: Instant, tuple: &FourTuple, seq: SeqNumber, error: IcmpError) {
        self.end_train();
        let Some(index) = self.table.get(tuple).copied() else {
            self.shared.counters.icmp_ignored += 1;
            return;
        };
        if let Some(connection) = &mut self.slots[index as usize].connection {
            connection.handle_icmp(now, &mut self.shared, seq, error);
        }
        self.settle(index);
    }

    /// Lets every timer that is due do its work.
    pub fn handle_timeout(&mut self, now: Instant) {
        self.end_train();
        while let Some(index) = self.wheel.poll(now) {
            if let Some(connection) = self.slots.get_mut(index as usize).and_then(|slot| slot.connection.as_mut()) {
                connection.armed = Instant::FAR_FUTURE;
                connection.handle_timeout(now, &mut self.shared);
            }
            self.settle(index);
        }
    }

    /// When to call `handle_timeout`; may be early, never late.
    pub fn poll_timeout(&self) -> Option<Instant> {
        let strangers = self.syns.latest().into_iter().chain(self.resets_late.then_some(Instant::ZERO));
        strangers.chain(self.poll_connections_timeout()).min()
    }

    /// The same without those who wait for another turn and have no connection: for who has no room to send them anything.
    pub(crate) fn poll_connections_timeout(&self) -> Option<Instant> {
        // What a train arms is not known yet, but it is armed from then on, and for more than a tick.
        let train = self.train.as_ref().map_or(Instant::FAR_FUTURE, |train| train.now() + TICK);
        self.wheel.next_timeout().map_or_else(|| self.train.as_ref().map(|_| train), |next| Some(next.min(train)))
    }

    /// What happened, in order.
    pub fn poll_event(&mut self) -> Option<Event> {
        self.end_train();
        let Some(event) = self.shared.events.pop_front() else {
            self.begin_to_send();
            return None;
        };
        match event {
            Event::Accepted { id, .. } => {
                let by = self.connection(id).and_then(|connection| connection.listener);
                if let Some(listener) = by.and_then(|by| self.shared.listener(by)) {
                    listener.accept_pending = listener.accept_pending.saturating_sub(1);
                }
            }
            Event::Readable(id) => {
                if let Some(connection) = self.connection(id) {
                    connection.readable_pending = false;
                }
            }
            Event::Writable(id) => {
                if let Some(connection) = self.connection(id) {
                    connection.writable_pending = false;
                }
            }
            Event::Closed(id, _) => {
                if let Some(connection) = self.connection(id) {
                    connection.release();
                }
                self.settle(id.index);
            }
            Event::Connected(_) | Event::PeerClosed(_) => {}
        }
        Some(event)
    }

    /// Fills `out` with the next packet or chain; `false`: nothing to send now, and `out` is empty. Few of the SYNs that ask
    /// for a cookie are answered, and few strays reset, until `poll_event` or this has nothing more to tell; for the rest `poll_timeout` asks
    /// for another turn at once.
    pub fn poll_transmit(&mut self, now: Instant, limits: &TransmitLimits, out: &mut Transmit) -> bool {
        self.end_train();
        out.clear();
        if self.shared.waiting_apart > 0 && self.transmit_apart(now, limits, out) {
            return true;
        }
        while let Some(index) = self.ready.pop_front() {
            let Some(connection) = &mut self.slots[index as usize].connection else { continue };
            connection.queued = false;
            let sent = connection.transmit(now, &mut self.shared, limits, out);
            // If there is more: to the back of the queue, behind everybody else.
            connection.wake |= sent && connection.may_transmit_more();
            // Nothing else can have changed.
            queue(connection, &mut self.ready, index);
            arm(connection, &mut self.wheel, index);
            if sent {
                return true;
            }
        }
        self.begin_to_send();
        false
    }

    /// Connections whose local address has no room on its device are passed over until `resume_held`: those that are ready now. What becomes ready
    /// later, and what needs no connection, such as resets, is not.
    pub fn hold(&mut self, is_full: impl Fn(IpAddr) -> bool) {
        for _ in 0..self.ready.len() {
            let Some(index) = self.ready.pop_front() else { return };
            let Some(connection) = &self.slots[index as usize].connection else { continue };
            let queue = if is_full(connection.tuple.local_ip) { &mut self.held } else { &mut self.ready };
            queue.push_back(index);
        }
        // Of connections that have ended meanwhile the places stay, and others are put there, and held: each once is enough.
        if self.held.len() > 2 * self.slots.len() {
            let mut held = Vec::from(std::mem::take(&mut self.held));
            held.sort_unstable();
            held.dedup();
            self.held = held.into();
        }
    }

    #[cfg(test)]
    pub(crate) fn held_len(&self) -> usize {
        self.held.len()
    }

    /// Those that `hold` has passed over have their turn again, before all others.
    pub fn resume_held(&mut self) {
        if !self.held.is_empty() {
            self.held.append(&mut self.ready);
            std::mem::swap(&mut self.held, &mut self.ready);
        }
    }

    /// Whether there may be something to transmit.
    pub fn has_transmit(&self) -> bool {
        self.shared.waiting_apart > 0 || !self.ready.is_empty() || !self.held.is_empty()
    }

    /// Queues a gather list, whole or not at all. Taken: `gather` is empty and has room for as many slices again. Refused: it is untouched.
    pub fn send(&mut self, now: Instant, id: ConnectionId, gather: &mut Vec<Slice>) -> Result<(), SendError> {
        self.end_train();
        let Endpoint { slots, shared, ready, .. } = self;
        let connection = find(slots, id).ok_or(SendError::Closed)?;
        connection.send(now, shared, gather)?;
        // All that there is to settle.
        queue(connection, ready, id.index);
        Ok(())
    }

    /// Bytes `send` would take now; 0 for an unknown or closed connection.
    pub fn send_room(&self, id: ConnectionId) -> usize {
        self.peek(id).map_or(0, |connection| connection.send_room(&self.shared.options))
    }

    /// Bytes queued and not acknowledged.
    pub fn queued(&self, id: ConnectionId) -> usize {
        self.peek(id).map_or(0, |connection| connection.queued_bytes())
    }

    /// The received stream, to be consumed from the front; call `received` afterwards.
    pub fn receive(&mut self, id: ConnectionId) -> Option<&mut RxChain> {
        self.end_train();
        self.connection(id).map(|connection| connection.received_chain())
    }

    /// Some of `receive`'s bytes were consumed: the window may open.
    pub fn received(&mut self, now: Instant, id: ConnectionId) {
        self.end_train();
        let Endpoint { slots, shared, .. } = self;
        if let Some(connection) = find(slots, id) {
            connection.on_consumed(now, shared);
            self.settle(id.index);
        }
    }

    /// Closes our direction once the queue is sent. The other stays open until the peer closes it, however long that takes (RFC 9293
    /// section 3.6); keepalive finds a peer that is gone. Who will read no more calls `close_both`, now or later.
    pub fn close(&mut self, now: Instant, id: ConnectionId) {
        self.end_train();
        let Endpoint { slots, shared, .. } = self;
        if let Some(connection) = find(slots, id) {
            connection.close(now, shared);
            self.settle(id.index);
        }
    }

    /// Closes both directions: nothing more will be read. Text that was not read, or comes still, is answered with a reset once
    /// the peer has everything that was queued (RFC 1122 section 4.2.2.13, RFC 9293 SHLD-3), so that it knows. A peer that does not
    /// close its side is waited for during `Options::fin_wait_2_timeout`.
    pub fn close_both(&mut self, now: Instant, id: ConnectionId) {
        self.end_train();
        let Endpoint { slots, shared, .. } = self;
        if let Some(connection) = find(slots, id) {
            let was_orphan = connection.is_orphan();
            connection.close_both(now, shared);
            let is_orphan = connection.is_orphan();
            self.settle(id.index);
            if is_orphan && !was_orphan {
                self.note_orphan(id);
            }
        }
    }

    /// Drops everything queued and resets the connection; `Event::Closed` follows.
    pub fn abort(&mut self, now: Instant, id: ConnectionId) {
        self.end_train();
        let Endpoint { slots, shared, .. } = self;
        if let Some(connection) = find(slots, id) {
            connection.abort(now, shared);
            self.settle(id.index);
        }
    }

    /// A connection's figures; `None` for an unknown id.
    pub fn info(&self, id: ConnectionId) -> Option<TcpInfo> {
        self.peek(id).map(|connection| connection.info(&self.shared.options))
    }

    /// Tells `each` the figures of the connections in `places_max` places of the table from `place` on, and where to go on; `None`
    /// behind the last. A table of any size is looked through in bounded steps: a connection that lives all the while is told once.
    pub fn visit_from(&self, place: usize, places_max: usize, mut each: impl FnMut(TcpInfo)) -> Option<usize> {
        let slots = self.slots.get(place..)?;
        let connections = slots.iter().take(places_max).filter_map(|slot| slot.connection.as_ref());
        connections.for_each(|connection| each(connection.info(&self.shared.options)));
        (slots.len() > places_max).then_some(place + places_max)
    }

    /// Every connection.
    pub fn connections(&self) -> impl Iterator<Item = ConnectionId> + '_ {
        self.slots.iter().filter_map(|slot| slot.connection.as_ref()).map(|connection| connection.id)
    }

    fn connection(&mut self, id: ConnectionId) -> Option<&mut Connection> {
        find(&mut self.slots, id)
    }

    fn peek(&self, id: ConnectionId) -> Option<&Connection> {
        let slot = self.slots.get(id.index as usize).filter(|slot| slot.generation == id.generation)?;
        slot.connection.as_deref().filter(|connection| !connection.released)
    }

    /// Copies received bytes out of driver buffers where they have lain longest, a few connections at a time, while the
    /// endpoint's share of the driver's pool runs short.
    fn relieve(&mut self) {
        if !self.shared.driver_buffers_short() {
            return;
        }
        for _ in 0..RELIEF_STEPS.min(self.slots.len()) {
            self.relief_cursor = (self.relief_cursor + 1) % self.slots.len();
            let index = self.relief_cursor;
            if let Some(connection) = &mut self.slots[index].connection
                && connection.accounted_buffers > 0
            {
                connection.copy_out_held(&mut self.shared);
                self.settle(index as u32);
            }
        }
    }

    /// Carries out what a connection wants after a call: readiness, timer, buffer accounting, TIME-WAIT, removal.
    fn settle(&mut self, index: u32) {
        let Some(connection) = self.slots.get_mut(index as usize).and_then(|slot| slot.connection.as_deref_mut()) else { return };
        let held = connection.driver_buffers();
        self.shared.driver_buffers = self.shared.driver_buffers + held - connection.accounted_buffers as usize;
        connection.accounted_buffers = held as u32;
        self.shared.counters.driver_buffers_held = self.shared.driver_buffers as u64;
        if connection.state == State::Closed {
            self.remove(index);
            return;
        }
        queue(connection, &mut self.ready, index);
        arm(connection, &mut self.wheel, index);
        if std::mem::take(&mut connection.entered_time_wait) {
            let id = connection.id;
            self.enter_time_wait(id);
        }
    }

    fn enter_time_wait(&mut self, id: ConnectionId) {
        self.shared.counters.time_wait_entered += 1;
        self.leave_remote(id.index);
        self.time_wait.push_back(id);
        let time_wait_max = self.shared.options.time_wait_max;
        while self.forget_ended_time_waits() && self.shared.counters.curr_time_wait > time_wait_max as u64 {
            self.evict_time_wait();
        }
        if self.time_wait.len() >= 2 * time_wait_max {
            // At most half of them are in TIME-WAIT still, so this comes once in that many ends.
            self.time_wait.retain(|id| is_in_time_wait(&self.slots, *id));
        }
    }

    /// Takes what is in TIME-WAIT no more off the front of its queue; tells whether there is one left.
    fn forget_ended_time_waits(&mut self) -> bool {
        while let Some(oldest) = self.time_wait.front() {
            if is_in_time_wait(&self.slots, *oldest) {
                return true;
            }
            self.time_wait.pop_front();
        }
        false
    }

    /// Ends the oldest TIME-WAIT, whose place is needed; tells whether there was one.
    fn evict_time_wait(&mut self) -> bool {
        if !self.forget_ended_time_waits() {
            return false;
        }
        let Some(oldest) = self.time_wait.pop_front() else { return false };
        if let Some(connection) = &mut self.slots[oldest.index as usize].connection {
            self.shared.counters.time_wait_overflows += 1;
            connection.give_up_time_wait(&mut self.shared);
        }
        self.settle(oldest.index);
        true
    }

    /// Room for another connection (`Options::connections_max`), at the cost of a TIME-WAIT, or of what was closed for good.
    fn make_place(&mut self) -> bool {
        self.places_taken() < self.shared.options.connections_max || self.evict_time_wait() || self.evict_orphan()
    }

    fn note_orphan(&mut self, id: ConnectionId) {
        while self.orphans.front().is_some_and(|oldest| !is_orphan(&self.slots, *oldest)) {
            self.orphans.pop_front();
        }
        if self.orphans.len() >= 2 * self.shared.options.connections_max {
            // At most half of them are still there, so this comes once in that many ends.
            self.orphans.retain(|id| is_orphan(&self.slots, *id));
        }
        self.orphans.push_back(id);
    }

    /// Resets the connection that was closed for good longest ago: what is left of it lasts as long as its peer likes, up to the user timeout,
    /// and must not keep out others. Tells whether there was one.
    fn evict_orphan(&mut self) -> bool {
        while let Some(oldest) = self.orphans.pop_front() {
            if !is_orphan(&self.slots, oldest) {
                continue;
            }
            if let Some(connection) = find(&mut self.slots, oldest) {
                self.shared.counters.abort_on_memory += 1;
                connection.reset(&mut self.shared);
                self.settle(oldest.index);
                return true;
            }
        }
        false
    }

    /// Takes a closed connection out of the tables, and out of memory once the application knows.
    fn remove(&mut self, index: u32) {
        self.leave_remote(index);
        let slot = &mut self.slots[index as usize];
        let Some(connection) = &mut slot.connection else { return };
        if !std::mem::replace(&mut connection.removed, true) {
            self.table.remove(&connection.tuple);
            self.wheel.cancel(index);
            self.shared.counters.curr_connections -= 1;
        }
        if connection.released {
            self.shared.driver_buffers -= connection.accounted_buffers as usize;
            self.shared.counters.driver_buffers_held = self.shared.driver_buffers as u64;
            slot.connection = None;
            slot.generation = slot.generation.wrapping_add(1);
            self.free.push(index);
        }
    }
}

/// Puts a connection that wants to transmit into the queue of those.
#[inline]
fn queue(connection: &mut Connection, ready: &mut VecDeque<u32>, index: u32) {
    if std::mem::take(&mut connection.wake) && !connection.queued {
        connection.queued = true;
        ready.push_back(index);
    }
}

/// Arms the wheel for a connection's next deadline. One that moved back is found out when the wheel fires: re-arming per ACK would cost more.
#[inline]
fn arm(connection: &mut Connection, wheel: &mut TimerWheel, index: u32) {
    let deadline = connection.next_deadline();
    if deadline < connection.armed {
        connection.armed = deadline;
        wheel.arm(index, deadline);
    }
}

fn find(slots: &mut [Slot], id: ConnectionId) -> Option<&mut Connection> {
    let slot = slots.get_mut(id.index as usize).filter(|slot| slot.generation == id.generation)?;
    slot.connection.as_deref_mut().filter(|connection| !connection.released)
}

fn is_orphan(slots: &[Slot], id: ConnectionId) -> bool {
    let slot = slots.get(id.index as usize).filter(|slot| slot.generation == id.generation);
    slot.and_then(|slot| slot.connection.as_ref()).is_some_and(|connection| connection.is_orphan())
}

fn is_in_time_wait(slots: &[Slot], id: ConnectionId) -> bool {
    let slot = slots.get(id.index as usize).filter(|slot| slot.generation == id.generation);
    slot.and_then(|slot| slot.connection.as_ref()).is_some_and(|connection| connection.state == State::TimeWait)
}

fn is_host(ip: IpAddr) -> bool {
    !ip.is_unspecified() && !is_group(ip)
}

/// Multicast and broadcast: nobody to talk TCP with. A directed broadcast is known to `net` only.
fn is_group(ip: IpAddr) -> bool {
    ip.is_multicast() || matches!(ip, IpAddr::V4(v4) if v4.is_broadcast())
}

/// Copies a buffer into a fragment page; `None` if there is no room.
pub(crate) fn copied(arena: &mut FragmentArena, buf: &RxBuf) -> Option<RxBuf> {
    let fragment = arena.reserve(buf.len())?;
    fragment.spare()[..buf.len()].copy_from_slice(buf);
    Some(RxBuf::from_slice(fragment.commit(buf.len())))
}
