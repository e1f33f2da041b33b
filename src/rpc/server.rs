//! The RPC server of one core: takes records and datagrams, calls the programs, queues the replies.
//!
//! Read first: RFC 5531 sections 9 to 11; sunrpc's svc_xprt.c for what back-pressure and connection limits must do.
//! Everything a caller does, in this order, each time round its loop:
//! 1. `accept`, `closed`, `handle_stream`, `handle_end`, `handle_datagram` for what TCP and UDP brought, `handle_timeout` when
//!    `poll_timeout` is due, and `relieve` if it `needs_relief` then;
//! 2. `poll_completions`, `refresh_backlogs`;
//! 3. `poll_resumable`, `resumable_len` times, with `handle_stream` for each key (one that has used its turn up queues again);
//! 4. `poll_reply` until `None`, each gather list (whole replies) into TCP's send queue as a whole;
//! 5. `poll_close` until `None`.
//!
//! Back-pressure acts before a record is taken: a connection that owes too much, or a core that has no room, leaves its
//! records in the chain, and TCP's window closes. Nothing is allocated per call: tables are sized at the start, queues are reused.
//! Deliberately not here: sockets, timers, the encoding of any result.

mod calls;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::net::SocketAddr;

use super::auth::LastCredential;
use super::call;
use super::connection::{ConnectionId, ConnectionKey, ConnectionTable, Stall};
use super::drc::SharedDrc;
use super::options::{Options, RpcCounters};
use super::parked::{Origin, ParkedCalls};
use super::programs::{Peer, Programs, Ticket, Transport};
use super::record::{BadRecord, MARKER_LEN, RecordState};
use crate::buf::{FragmentArena, RxChain, Slice, View};
use crate::time::{Duration, Instant};

/// How often connections are looked at for `idle_timeout` and `record_timeout`.
const SWEEP_INTERVAL: Duration = Duration::from_secs(1);

/// Sweeps in a row that found no free page, after which whoever holds pages for long loses them.
const SHORT_SWEEPS: u32 = 2;

/// How long a peer may leave a reply unacknowledged while pages are short. Shorter waits have their reasons: a packet that was lost twice.
const HOLDS_PAGES_MAX: Duration = Duration::from_secs(5);

/// Of those that do, this many of the oldest are reset at least, or half of them: more than that may not be needed.
const RESET_FOR_PAGES_MIN: usize = 8;

/// Connections whose backlog is looked at in one `refresh_backlogs`; the others' turn comes in the next.
const BACKLOGS_PER_TURN_MAX: usize = 256;

/// Where a reply goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Destination {
    /// All of the gather list, behind what was queued before.
    Stream(ConnectionKey),
    Datagram {
        to: SocketAddr,
        from: SocketAddr,
    },
}

/// Why the server wants a connection closed. The server has forgotten it already.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CloseReason {
    /// The peer's side is closed, every reply was handed over: close in good order behind what is queued.
    Finished,
    Idle,
    /// Pushed out by `connections_unauthenticated_max` or `connections_max`.
    Unauthenticated,
    RecordTimeout,
    BadRecord(BadRecord),
    /// A record that is too short for the header of a call.
    ShortCall,
    /// It has left replies unacknowledged for `HOLDS_PAGES_MAX` while there were no pages for anybody else's.
    HoldsPages,
}

impl CloseReason {
    /// Whether what is queued in TCP should still be sent (FIN); otherwise reset.
    pub fn is_graceful(self) -> bool {
        matches!(self, CloseReason::Finished | CloseReason::Idle)
    }
}

/// The connection was not taken: reset it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("connections_max reached by authenticated peers, the server is draining, or the key is in use")]
pub struct Refused;

/// What became of the front of a stream.
enum Front {
    /// A record of so many bytes, markers included, was taken.
    Taken(usize),
    /// Nothing can be taken now.
    Waits,
    /// Nothing will be taken any more: what there is belongs to nobody.
    Dead,
}

/// What to do after looking at one record.
enum Step {
    Taken,
    Stall(Stall),
    Close(CloseReason),
}

/// Replies that go out together: one, or several in a row to the same connection.
struct QueuedReplies {
    origin: Origin,
    peer: Peer,
    pieces: Vec<Slice>,
    bytes: u64,
}

pub struct Server {
    options: Options,
    arena: FragmentArena,
    zeroes: Slice,
    connections: ConnectionTable,
    parked: ParkedCalls,
    datagram_calls_in_flight: u32,
    drc: SharedDrc,
    replies: VecDeque<QueuedReplies>,
    /// Empty lists for the pieces of replies, reused.
    lists: Vec<Vec<Slice>>,
    datagram_replies: u32,
    datagram_credential: LastCredential,
    closes: VecDeque<(ConnectionKey, CloseReason)>,
    resumable: VecDeque<ConnectionId>,
    /// Connections that wait for room in their send queues.
    backlogged: VecDeque<ConnectionId>,
    /// Connections that wait for room of the core's.
    starved: Vec<ConnectionId>,
    retry_at: Option<Instant>,
    /// Reused by each sweep.
    overdue: Vec<(ConnectionId, CloseReason)>,
    next_sweep: Instant,
    /// Sweeps in a row that found pages short; the last one was not followed by `relieve` yet.
    short_sweeps: u32,
    relief_due: bool,
    /// What the programs have refused for want of pages: by now, and by the last sweep.
    pages_refused: [u64; 2],
    /// Records of several fragments; grows to `record_bytes_max` at most.
    assembly: Vec<u8>,
    pages: Vec<Slice>,
    completion_pages: Vec<Slice>,
    /// A completion that waits for room; its pages are in `completion_pages`.
    deferred: Option<Ticket>,
    draining: bool,
    counters: RpcCounters,
}

impl Server {
    /// A server with a duplicate request cache of its own.
    pub fn new(options: Options, arena: FragmentArena) -> Server {
        Server::sharing(options, arena, SharedDrc::new(options.drc, 1))
    }

    /// One of several, whose cores share the duplicate request cache.
    pub fn sharing(options: Options, arena: FragmentArena, drc: SharedDrc) -> Server {
        let zeroes = arena.zeroes(4);
        Server {
            options,
            arena,
            zeroes,
            connections: ConnectionTable::new(options.connections_max),
            parked: ParkedCalls::new(options.calls_in_flight_total_max),
            datagram_calls_in_flight: 0,
            drc,
            replies: VecDeque::new(),
            lists: Vec::new(),
            datagram_replies: 0,
            datagram_credential: LastCredential::default(),
            closes: VecDeque::new(),
            resumable: VecDeque::new(),
            backlogged: VecDeque::new(),
            starved: Vec::new(),
            retry_at: None,
            overdue: Vec::new(),
            next_sweep: Instant::ZERO,
            short_sweeps: 0,
            relief_due: false,
            pages_refused: [0; 2],
            assembly: Vec::new(),
            pages: Vec::new(),
            completion_pages: Vec::new(),
            deferred: None,
            draining: false,
            counters: RpcCounters::default(),
        }
    }

    pub fn counters(&self) -> &RpcCounters {
        &self.counters
    }

    // ---- Connections ----

    /// A connection was established. May ask (through `poll_close`) for another one to be closed.
    pub fn accept(&mut self, now: Instant, key: ConnectionKey, address: SocketAddr, local: SocketAddr) -> Result<(), Refused> {
        if self.draining || self.connections.find(key).is_some() {
            self.counters.connections_refused += 1;
            return Err(Refused);
        }
        let crowded = self.connections.unauthenticated() >= self.options.connections_unauthenticated_max;
        if (crowded || self.connections.is_full())
            && let Some(oldest) = self.connections.oldest_unauthenticated()
        {
            self.counters.closed_unauthenticated += 1;
            self.close(oldest, CloseReason::Unauthenticated);
        }
        let peer = Peer { address, local, transport: Transport::Tcp };
        if self.connections.insert(now, key, peer).is_none() {
            self.counters.connections_refused += 1;
            return Err(Refused);
        }
        if self.connections.len() == 1 {
            self.next_sweep = now + SWEEP_INTERVAL;
        }
        self.counters.nettcpconn += 1;
        self.counters.connections = self.connections.len() as u64;
        Ok(())
    }

    /// The connection is gone, whoever ended it. Its calls run on, their replies are dropped.
    pub fn closed(&mut self, key: ConnectionKey) {
        if let Some(id) = self.connections.find(key) {
            self.connections.remove(id);
            self.counters.connections = self.connections.len() as u64;
        }
        self.closes.retain(|(closing, _)| *closing != key);
    }

    /// TCP has `bytes` of the connection's replies that the peer has not acknowledged.
    pub fn set_backlog(&mut self, now: Instant, key: ConnectionKey, bytes: u64) {
        let Some(id) = self.connections.find(key) else { return };
        if let Some(connection) = self.connections.get(id) {
            // A peer that takes what it asked for is not idle.
            if bytes < connection.backlog {
                connection.last_active = now;
            }
            connection.note_backlog(now, bytes);
        }
        self.resume_if_possible(id);
    }

    /// Looks at what TCP still has queued of the connections that wait for room there; once a turn, before
    /// `poll_resumable`. Events of TCP alone would not do: it knows its own limit, not how much the next reply needs.
    pub fn refresh_backlogs(&mut self, now: Instant, mut queued: impl FnMut(ConnectionKey) -> u64) {
        for _ in 0..self.backlogged.len().min(BACKLOGS_PER_TURN_MAX) {
            let Some(id) = self.backlogged.pop_front() else { return };
            let Some(connection) = self.connections.get(id) else { continue };
            connection.backlogged = false;
            if !matches!(connection.stalled, Some(Stall::SendQueue { .. })) {
                continue;
            }
            let key = connection.key;
            self.set_backlog(now, key, queued(key));
            self.push_backlogged(id);
        }
    }

    /// Notes a connection that waits for room in its send queue.
    fn push_backlogged(&mut self, id: ConnectionId) {
        if let Some(connection) = self.connections.get(id)
            && !connection.backlogged
        {
            connection.backlogged = true;
            self.backlogged.push_back(id);
        }
    }

    fn close(&mut self, id: ConnectionId, reason: CloseReason) {
        if let Some(connection) = self.connections.remove(id) {
            self.closes.push_back((connection.key, reason));
            self.counters.connections = self.connections.len() as u64;
        }
    }

    /// A connection that the server has given up and the caller must close.
    pub fn poll_close(&mut self) -> Option<(ConnectionKey, CloseReason)> {
        self.closes.pop_front()
    }

    /// Takes no further record, datagram or connection. What was taken is still answered.
    pub fn drain(&mut self) {
        self.draining = true;
    }

    /// Whether every call that was taken is answered and its reply handed over.
    pub fn is_drained(&self) -> bool {
        self.parked.len() == 0 && self.replies.is_empty()
    }

    // ---- Records ----

    /// Takes complete records from the front of a connection's stream, as many as limits allow. To be called when bytes
    /// arrived, and for each key of `poll_resumable`.
    pub fn handle_stream(&mut self, now: Instant, key: ConnectionKey, chain: &mut RxChain, programs: &mut impl Programs) {
        let Some(id) = self.connections.find(key) else {
            chain.clear();
            return;
        };
        let mut assembly = std::mem::take(&mut self.assembly);
        let mut turns = self.options.calls_per_turn_max;
        let arrived = chain.len();
        let mut stream = chain.all();
        let end = loop {
            match self.take_record(now, id, &stream, &mut assembly, programs) {
                Front::Taken(len) => _ = stream.take(len),
                end => break end,
            }
            turns = turns.saturating_sub(1);
            if turns == 0 {
                // Others first.
                self.push_resumable(id);
                break Front::Waits;
            }
        };
        let left = stream.len();
        chain.consume(if matches!(end, Front::Dead) { arrived } else { arrived - left });
        self.assembly = assembly;
        self.close_if_finished(id);
    }

    /// The peer has closed its side: what it sent before is still answered, then the connection is closed.
    pub fn handle_end(&mut self, now: Instant, key: ConnectionKey, chain: &mut RxChain, programs: &mut impl Programs) {
        if let Some(connection) = self.connections.find(key).and_then(|id| self.connections.get(id)) {
            connection.finished = true;
        }
        self.handle_stream(now, key, chain, programs);
    }

    /// Looks at the record at the front of the stream.
    fn take_record(
        &mut self,
        now: Instant,
        id: ConnectionId,
        stream: &View<'_>,
        assembly: &mut Vec<u8>,
        programs: &mut impl Programs,
    ) -> Front {
        let limits = self.options.connection();
        let Some(connection) = self.connections.get(id) else { return Front::Dead };
        let still_stalled = !matches!(connection.stalled, None | Some(Stall::Core)) && !connection.may_resume(&limits);
        if self.draining || still_stalled {
            return Front::Waits;
        }
        connection.stalled = None;
        let peer = connection.peer;
        let limits = self.options.record();
        let whole = connection.reader.whole(&limits, stream);
        if let Some(record) = whole
            && let Some((_, behind)) = stream.split_at(MARKER_LEN + record.len())
            && let Some(next) = connection.reader.whole(&limits, &behind)
        {
            // While this call is answered, the memory for the next one is on its way.
            call::expect(next, &connection.last_credential, programs);
        }
        let step = match whole {
            Some(record) => self.handle_message(now, Origin::Stream(id), peer, View::from(record), programs),
            None => match connection.reader.poll(&limits, stream) {
                RecordState::Incomplete => return self.wait_for_more(now, id, stream.len()),
                RecordState::Bad(bad) => Step::Close(CloseReason::BadRecord(bad)),
                RecordState::Complete => {
                    let record = connection.reader.record(stream, assembly);
                    self.handle_message(now, Origin::Stream(id), peer, record, programs)
                }
            },
        };
        match step {
            Step::Taken => {
                self.counters.netcnt += 1;
                self.counters.nettcpcnt += 1;
                let Some(connection) = self.connections.get(id) else { return Front::Dead };
                connection.record_since = None;
                connection.last_active = now;
                Front::Taken(whole.map_or_else(|| connection.reader.finish(), |record| MARKER_LEN + record.len()))
            }
            Step::Stall(stall) => {
                self.stall(now, id, stall);
                Front::Waits
            }
            Step::Close(reason) => {
                self.count_bad_record(reason);
                self.close(id, reason);
                Front::Dead
            }
        }
    }

    /// A record has not come to its end: `waiting` bytes of it are there.
    fn wait_for_more(&mut self, now: Instant, id: ConnectionId, waiting: usize) -> Front {
        let Some(connection) = self.connections.get(id) else { return Front::Dead };
        if connection.finished {
            connection.drained = true;
            self.counters.streams_truncated += u64::from(waiting > 0);
            return Front::Dead;
        }
        if waiting == 0 {
            connection.record_since = None;
        } else {
            connection.record_since.get_or_insert(now);
            connection.record_bytes = waiting as u64;
        }
        Front::Waits
    }

    fn count_bad_record(&mut self, reason: CloseReason) {
        let counters = &mut self.counters;
        counters.rpcbadfmt += 1;
        match reason {
            CloseReason::BadRecord(BadRecord::TooLong) => counters.closed_record_too_long += 1,
            CloseReason::BadRecord(BadRecord::TooManyFragments) => counters.closed_too_many_fragments += 1,
            _ => counters.closed_record_too_short += 1,
        }
    }

    fn stall(&mut self, now: Instant, id: ConnectionId, stall: Stall) {
        let Some(connection) = self.connections.get(id) else { return };
        connection.stalled = Some(stall);
        // The record is all there; it is not the peer that keeps us waiting.
        connection.record_since = None;
        match stall {
            Stall::CallsInFlight => self.counters.stalls_calls_in_flight += 1,
            Stall::SendQueue { .. } => {
                self.counters.stalls_send_queue += 1;
                self.push_backlogged(id);
            }
            Stall::Core => {
                self.counters.stalls_core += 1;
                if !connection.starved {
                    connection.starved = true;
                    self.starved.push(id);
                }
                self.retry_at.get_or_insert(now + self.options.retry_after);
            }
        }
    }

    fn resume_if_possible(&mut self, id: ConnectionId) {
        let limits = self.options.connection();
        if self.connections.get(id).is_some_and(|connection| connection.may_resume(&limits)) {
            self.push_resumable(id);
        }
    }

    /// Queues a connection to be read again; not while nothing is taken any more, or it would be queued again for ever.
    fn push_resumable(&mut self, id: ConnectionId) {
        if let Some(connection) = self.connections.get(id)
            && !connection.resumable
            && !self.draining
        {
            connection.resumable = true;
            self.resumable.push_back(id);
        }
    }

    /// How many connections `poll_resumable` has at this moment.
    pub fn resumable_len(&self) -> usize {
        self.resumable.len()
    }

    /// A connection whose chain may be read again: call `handle_stream` for it.
    pub fn poll_resumable(&mut self) -> Option<ConnectionKey> {
        while let Some(id) = self.resumable.pop_front() {
            if let Some(connection) = self.connections.get(id) {
                connection.resumable = false;
                return Some(connection.key);
            }
        }
        None
    }

    fn close_if_finished(&mut self, id: ConnectionId) {
        if self.connections.get(id).is_some_and(|connection| connection.drained && connection.settled()) {
            self.counters.closed_finished += 1;
            self.close(id, CloseReason::Finished);
        }
    }

    // ---- Datagrams ----

    /// Takes one datagram. There is nobody to stall: without room to answer it is dropped.
    pub fn handle_datagram(
        &mut self,
        now: Instant,
        address: SocketAddr,
        local: SocketAddr,
        datagram: View<'_>,
        programs: &mut impl Programs,
    ) {
        self.counters.netcnt += 1;
        self.counters.netudpcnt += 1;
        let peer = Peer { address, local, transport: Transport::Udp };
        if self.draining {
            self.counters.datagrams_dropped += 1;
            return;
        }
        match self.handle_message(now, Origin::Datagram, peer, datagram, programs) {
            Step::Taken => {}
            Step::Stall(_) => self.counters.datagrams_dropped += 1,
            Step::Close(_) => {
                self.counters.rpcbadfmt += 1;
                self.counters.datagrams_dropped += 1;
            }
        }
    }

    // ---- Replies ----

    /// Takes the next replies: `gather` is cleared and gets the whole of one reply by datagram, or of one or several to the
    /// same connection, with their record marks.
    pub fn poll_reply(&mut self, gather: &mut Vec<Slice>) -> Option<Destination> {
        loop {
            gather.clear();
            let mut reply = self.replies.pop_front()?;
            std::mem::swap(gather, &mut reply.pieces);
            self.lists.push(reply.pieces);
            let id = match reply.origin {
                Origin::Stream(id) => id,
                Origin::Datagram => {
                    self.datagram_replies = self.datagram_replies.saturating_sub(1);
                    return Some(Destination::Datagram { to: reply.peer.address, from: reply.peer.local });
                }
            };
            let Some(connection) = self.connections.get(id) else {
                self.counters.replies_orphaned += 1;
                continue;
            };
            connection.queued = connection.queued.saturating_sub(reply.bytes);
            connection.backlog += reply.bytes;
            connection.handed += reply.bytes;
            let key = connection.key;
            self.close_if_finished(id);
            return Some(Destination::Stream(key));
        }
    }

    // ---- Time ----

    /// When `handle_timeout` wants to be called.
    pub fn poll_timeout(&self) -> Option<Instant> {
        let sweep = (self.connections.len() > 0).then_some(self.next_sweep);
        [sweep, self.retry_at].into_iter().flatten().min()
    }

    /// Closes connections that are idle or keep a record incomplete; lets what the core had no room for try again.
    pub fn handle_timeout(&mut self, now: Instant) {
        if self.retry_at.is_some_and(|at| at <= now) {
            self.retry_at = None;
            while let Some(id) = self.starved.pop() {
                if let Some(connection) = self.connections.get(id) {
                    connection.starved = false;
                }
                self.push_resumable(id);
            }
        }
        if now < self.next_sweep {
            return;
        }
        self.next_sweep = now + SWEEP_INTERVAL;
        self.look_for_pages();
        let mut overdue = std::mem::take(&mut self.overdue);
        overdue.extend(self.connections.iter().filter_map(|(id, connection)| {
            let slow = connection.record_is_overdue(now, &self.options);
            let idle = connection.in_flight == 0 && now.since(connection.last_active) >= self.options.idle_timeout;
            let reason = if slow { CloseReason::RecordTimeout } else { CloseReason::Idle };
            (slow || idle).then_some((id, reason))
        }));
        for (id, reason) in overdue.drain(..) {
            match reason {
                CloseReason::RecordTimeout => self.counters.closed_record_timeout += 1,
                _ => self.counters.closed_idle += 1,
            }
            self.close(id, reason);
        }
        self.overdue = overdue;
    }

    fn look_for_pages(&mut self) {
        let [refused, before] = self.pages_refused;
        let short = refused != before || !self.arena.has_room_for(1);
        self.pages_refused = [refused; 2];
        self.short_sweeps = if short { self.short_sweeps.saturating_add(1) } else { 0 };
        self.relief_due = self.short_sweeps >= SHORT_SWEEPS;
    }

    /// How many calls the programs have refused for want of pages, ever; to be told before `handle_timeout`.
    pub fn note_pages_refused(&mut self, refused: u64) {
        self.pages_refused[0] = refused;
    }

    /// Whether `relieve` is to be called.
    pub fn needs_relief(&self) -> bool {
        self.relief_due
    }

    /// Pages are short, and replies that a peer does not acknowledge hold some: a few bytes in a page are enough, and the peer may keep its
    /// window closed for as long as it likes (RFC 9293 section 3.8.6.1 leaves it to the application to end that). Whoever has done so for long
    /// is reset, oldest first. A client comes back and asks again.
    pub fn relieve(&mut self, now: Instant, mut queued: impl FnMut(ConnectionKey) -> u64) {
        self.relief_due = false;
        let ids: Vec<ConnectionId> = self.connections.iter().map(|(id, _)| id).collect();
        let mut holders = Vec::new();
        for id in ids {
            let Some(connection) = self.connections.get(id) else { continue };
            connection.note_backlog(now, queued(connection.key));
            let age = connection.owes_for(now);
            if age >= HOLDS_PAGES_MAX {
                holders.push((age, id));
            }
        }
        holders.sort_by_key(|(age, _)| std::cmp::Reverse(*age));
        holders.truncate((holders.len() / 2).max(RESET_FOR_PAGES_MIN));
        for (_, id) in holders {
            self.counters.closed_holding_pages += 1;
            self.close(id, CloseReason::HoldsPages);
        }
    }
}
