//! The RPC server of one core: takes records and datagrams, calls the programs, queues the replies.
//!
//! Read first: RFC 5531 sections 9 to 11; sunrpc's svc_xprt.c for what back-pressure and connection limits must do.
//! Everything a caller does, in this order, each time round its loop:
//! 1. `accept`, `closed`, `handle_stream`, `handle_end`, `handle_datagram` for what TCP and UDP brought, `set_backlog` for
//!    what was acknowledged, `handle_timeout` when `poll_timeout` is due;
//! 2. `poll_completions`;
//! 3. `poll_resumable`, `resumable_len` times, with `handle_stream` for each key (one that has used its turn up queues again);
//! 4. `poll_reply` until `None`, each gather list into TCP's send queue as a whole;
//! 5. `poll_close` until `None`.
//!
//! Back-pressure acts before a record is taken: a connection that owes too much, or a core that has no room, leaves its
//! records in the chain, and TCP's window closes. Nothing is allocated per call: tables are sized at the start, queues are reused.
//! Deliberately not here: sockets, timers, the encoding of any result.

#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::net::SocketAddr;

use super::call::{self, Admitted, Message};
use super::connection::{Connection, ConnectionId, ConnectionKey, ConnectionTable, Stall};
use super::drc::{DuplicateRequestCache, Lookup};
use super::options::{Options, RpcCounters};
use super::parked::{Origin, ParkedCalls, Pending};
use super::programs::{Call, Disposition, Peer, Programs, Results, Ticket, Transport};
use super::record::{BadRecord, MARKER_LEN, RecordState};
use super::reply::{REJECTION_LEN_MAX, Rejection, SUCCESS_LEN, encode_rejection, encode_success};
use super::xdr::Encoder;
use super::xdr_buf::{Framing, XdrBuf};
use crate::buf::{FragmentArena, RxChain, Slice, View};
use crate::time::{Duration, Instant};

/// How often connections are looked at for `idle_timeout` and `record_timeout`.
const SWEEP_INTERVAL: Duration = Duration::from_secs(1);

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

/// What to do after looking at one record.
enum Step {
    Taken,
    Stall(Stall),
    Close(CloseReason),
}

struct QueuedReply {
    origin: Origin,
    peer: Peer,
    pieces: u32,
    bytes: u64,
}

/// What a program did with the room it was given.
struct Written {
    disposition: Disposition,
    /// Bytes of the head, header included; `None` if it did not fit.
    head: Option<usize>,
    peer_valid: bool,
    pages_expected: Option<u32>,
}

pub struct Server {
    options: Options,
    arena: FragmentArena,
    zeroes: Slice,
    connections: ConnectionTable,
    parked: ParkedCalls,
    datagram_calls_in_flight: u32,
    drc: DuplicateRequestCache,
    replies: VecDeque<QueuedReply>,
    /// The pieces of all queued replies, in order.
    pieces: VecDeque<Slice>,
    datagram_replies: u32,
    closes: VecDeque<(ConnectionKey, CloseReason)>,
    resumable: VecDeque<ConnectionId>,
    /// Connections that wait for room of the core's.
    starved: Vec<ConnectionId>,
    retry_at: Option<Instant>,
    /// Reused by each sweep.
    overdue: Vec<(ConnectionId, CloseReason)>,
    next_sweep: Instant,
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
    pub fn new(options: Options, arena: FragmentArena) -> Server {
        let zeroes = arena.zeroes(4);
        Server {
            options,
            arena,
            zeroes,
            connections: ConnectionTable::new(options.connections_max),
            parked: ParkedCalls::new(options.calls_in_flight_total_max),
            datagram_calls_in_flight: 0,
            drc: DuplicateRequestCache::new(options.drc),
            replies: VecDeque::new(),
            pieces: VecDeque::new(),
            datagram_replies: 0,
            closes: VecDeque::new(),
            resumable: VecDeque::new(),
            starved: Vec::new(),
            retry_at: None,
            overdue: Vec::new(),
            next_sweep: Instant::ZERO,
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
        let (unauthenticated, oldest) = self.connections.unauthenticated();
        if let Some(oldest) = oldest
            && (unauthenticated >= self.options.connections_unauthenticated_max || self.connections.is_full())
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
            connection.backlog = bytes;
        }
        self.resume_if_possible(id);
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
        while self.take_record(now, id, chain, &mut assembly, programs) {
            turns = turns.saturating_sub(1);
            if turns == 0 {
                // Others first.
                self.push_resumable(id);
                break;
            }
        }
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

    /// Looks at the record at the front of the stream; whether it makes sense to look for another one at once.
    fn take_record(
        &mut self,
        now: Instant,
        id: ConnectionId,
        chain: &mut RxChain,
        assembly: &mut Vec<u8>,
        programs: &mut impl Programs,
    ) -> bool {
        let limits = self.options.connection();
        let Some(connection) = self.connections.get(id) else {
            chain.clear();
            return false;
        };
        let still_stalled = !matches!(connection.stalled, None | Some(Stall::Core)) && !connection.may_resume(&limits);
        if self.draining || still_stalled {
            return false;
        }
        connection.stalled = None;
        let peer = connection.peer;
        let step = match connection.reader.poll(&self.options.record(), chain) {
            RecordState::Incomplete => {
                self.wait_for_more(now, id, chain);
                return false;
            }
            RecordState::Bad(bad) => Step::Close(CloseReason::BadRecord(bad)),
            RecordState::Complete => {
                let record = connection.reader.record(chain, assembly);
                self.handle_message(now, Origin::Stream(id), peer, record, programs)
            }
        };
        match step {
            Step::Taken => {
                self.counters.netcnt += 1;
                self.counters.nettcpcnt += 1;
                if let Some(connection) = self.connections.get(id) {
                    connection.reader.consume(chain);
                    connection.record_since = None;
                    connection.last_active = now;
                }
                true
            }
            Step::Stall(stall) => {
                self.stall(now, id, stall);
                false
            }
            Step::Close(reason) => {
                self.count_bad_record(reason);
                self.close(id, reason);
                chain.clear();
                false
            }
        }
    }

    fn wait_for_more(&mut self, now: Instant, id: ConnectionId, chain: &mut RxChain) {
        let Some(connection) = self.connections.get(id) else { return };
        if connection.finished {
            connection.drained = true;
            self.counters.streams_truncated += u64::from(!chain.is_empty());
            chain.clear();
        } else if chain.is_empty() {
            connection.record_since = None;
        } else {
            connection.record_since.get_or_insert(now);
        }
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
            Stall::SendQueue { .. } => self.counters.stalls_send_queue += 1,
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

    fn push_resumable(&mut self, id: ConnectionId) {
        if let Some(connection) = self.connections.get(id)
            && !connection.resumable
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

    // ---- Calls ----

    fn handle_message(
        &mut self,
        now: Instant,
        origin: Origin,
        peer: Peer,
        message: View<'_>,
        programs: &mut impl Programs,
    ) -> Step {
        let (xid, header) = match call::parse(message) {
            Ok(Message::Call { xid, rest }) => (xid, rest),
            Ok(Message::NotACall) => {
                // sunrpc demultiplexes replies to backchannel calls here and drops the unknown ones (RFC 8881 section 2.10.3.1).
                self.counters.not_calls += 1;
                return Step::Taken;
            }
            Err(_) => return Step::Close(CloseReason::ShortCall),
        };
        let pending = Pending { origin, peer, xid, head_bytes_max: 0, drc: None, reserved: 0 };
        match call::admit(header, peer.transport, programs) {
            Ok(Ok(admitted)) => self.execute(now, pending, admitted, programs),
            Ok(Err(rejection)) => match self.room(origin, REJECTION_LEN_MAX, 0) {
                Ok(()) => {
                    let bad_auth = matches!(rejection, Rejection::AuthError(_));
                    self.counters.rpcbadauth += u64::from(bad_auth);
                    self.counters.rpcbadfmt += u64::from(!bad_auth);
                    self.reject(&pending, rejection);
                    Step::Taken
                }
                Err(stall) => Step::Stall(stall),
            },
            Err(_) => Step::Close(CloseReason::ShortCall),
        }
    }

    /// Whether a reply of `head` bytes of head and `pages` bytes of pages may be started.
    fn room(&mut self, origin: Origin, head: usize, pages: u32) -> Result<(), Stall> {
        match origin {
            Origin::Stream(id) => {
                let limits = self.options.connection();
                let need = (MARKER_LEN + head) as u64 + u64::from(pages);
                self.connections.get(id).map_or(Ok(()), |connection| connection.admits(&limits, need))?;
            }
            Origin::Datagram => {
                let full = self.datagram_replies >= self.options.datagram_replies_max
                    || self.datagram_calls_in_flight >= self.options.datagram_calls_in_flight_max;
                if full {
                    return Err(Stall::Core);
                }
            }
        }
        let room = self.parked.next_ticket().is_some() && self.arena.reserve(MARKER_LEN + head).is_some();
        if room { Ok(()) } else { Err(Stall::Core) }
    }

    fn execute(&mut self, now: Instant, mut pending: Pending, admitted: Admitted<'_>, programs: &mut impl Programs) -> Step {
        let info = admitted.info;
        let head = head_room(info.head_bytes_max);
        if MARKER_LEN + head > self.arena.piece_max() {
            // A procedure that announces more head than a page has can never be answered.
            self.counters.results_overflowed += 1;
            return match self.room(pending.origin, REJECTION_LEN_MAX, 0) {
                Ok(()) => {
                    self.reject(&pending, Rejection::SystemError);
                    Step::Taken
                }
                Err(stall) => Step::Stall(stall),
            };
        }
        if let Err(stall) = self.room(pending.origin, head, info.pages_bytes_max) {
            return Step::Stall(stall);
        }
        let Some(ticket) = self.parked.next_ticket() else { return Step::Stall(Stall::Core) };
        if !info.caches_reply {
            self.counters.rcnocache += 1;
        } else if self.is_duplicate(now, &mut pending, &admitted) {
            return Step::Taken;
        }
        self.counters.rpccnt += 1;
        pending.head_bytes_max = info.head_bytes_max;
        let call = Call {
            xid: pending.xid,
            program: admitted.program,
            version: admitted.version,
            procedure: admitted.procedure,
            peer: pending.peer,
            credential: admitted.credential,
            arguments: admitted.arguments,
        };
        let mut pages = std::mem::take(&mut self.pages);
        let written = self.write_results(&pending, &mut pages, |results| programs.call(now, &call, ticket, results));
        if written.disposition == Disposition::Parked {
            let expected = written.pages_expected.unwrap_or(info.pages_bytes_max).min(info.pages_bytes_max);
            pending.reserved = (MARKER_LEN + head) as u64 + u64::from(expected);
            self.park(pending);
        } else {
            self.parked.void_next();
            self.conclude(now, &pending, &written, &mut pages);
        }
        pages.clear();
        self.pages = pages;
        Step::Taken
    }

    /// Asks the duplicate request cache; `true` if the call was dealt with.
    fn is_duplicate(&mut self, now: Instant, pending: &mut Pending, admitted: &Admitted<'_>) -> bool {
        let Admitted { program, version, procedure, ref arguments, .. } = *admitted;
        let key = self.drc.key(&pending.peer, pending.xid, program, version, procedure, arguments.rest());
        match self.drc.lookup(now, key) {
            Lookup::Miss(entry) => {
                self.counters.rcmisses += u64::from(entry.is_some());
                self.counters.rcnocache += u64::from(entry.is_none());
                pending.drc = entry;
                false
            }
            Lookup::InProgress => {
                self.counters.rchits += 1;
                self.counters.duplicates_dropped += 1;
                true
            }
            Lookup::Done(reply) => {
                self.counters.rchits += 1;
                // The reply was once written into the same room that `room` has just found.
                if let Some(fragment) = self.arena.reserve(MARKER_LEN + reply.len())
                    && let Some(into) = fragment.spare().get_mut(MARKER_LEN..MARKER_LEN + reply.len())
                {
                    into.copy_from_slice(reply);
                    let head = reply.len();
                    self.counters.duplicates_replayed += 1;
                    self.seal(pending, head, &mut Vec::new());
                }
                true
            }
        }
    }

    /// Lets a program write its results behind a success header at the front of the arena's spare. There is room: the
    /// callers have asked `arena.reserve` before.
    fn write_results(
        &mut self,
        pending: &Pending,
        pages: &mut Vec<Slice>,
        program: impl FnOnce(&mut Results<'_>) -> Disposition,
    ) -> Written {
        let room = head_room(pending.head_bytes_max);
        let spare = self.arena.reserve(MARKER_LEN + room).map(|fragment| fragment.spare());
        let Some(behind_mark) = spare.and_then(|spare| spare.get_mut(MARKER_LEN..)) else {
            let mut results = Results::new(Encoder::new(&mut []), pages);
            return Written { disposition: program(&mut results), head: None, peer_valid: false, pages_expected: None };
        };
        let (header, rest) = behind_mark.split_at_mut(SUCCESS_LEN);
        encode_success(&mut Encoder::new(header), pending.xid);
        let len = rest.len().min(pending.head_bytes_max as usize);
        let mut results = Results::new(Encoder::new(&mut rest[..len]), pages);
        let disposition = program(&mut results);
        let fits = !results.head.overflowed();
        let head = fits.then_some(SUCCESS_LEN + results.head.position());
        Written { disposition, head, peer_valid: results.peer_valid, pages_expected: results.pages_expected }
    }

    fn park(&mut self, pending: Pending) {
        self.counters.calls_parked += 1;
        match pending.origin {
            Origin::Stream(id) => {
                if let Some(connection) = self.connections.get(id) {
                    connection.in_flight += 1;
                    connection.reserved += pending.reserved;
                }
            }
            Origin::Datagram => self.datagram_calls_in_flight += 1,
        }
        self.parked.park(pending);
        self.counters.calls_in_flight = self.parked.len() as u64;
    }

    fn unpark(&mut self, ticket: Ticket) {
        let Some(pending) = self.parked.remove(ticket) else { return };
        self.counters.calls_in_flight = self.parked.len() as u64;
        match pending.origin {
            Origin::Stream(id) => {
                if let Some(connection) = self.connections.get(id) {
                    connection.in_flight = connection.in_flight.saturating_sub(1);
                    connection.reserved = connection.reserved.saturating_sub(pending.reserved);
                }
            }
            Origin::Datagram => self.datagram_calls_in_flight = self.datagram_calls_in_flight.saturating_sub(1),
        }
    }

    /// Turns what a program decided into a reply, or none, and tells the duplicate request cache.
    fn conclude(&mut self, now: Instant, pending: &Pending, written: &Written, pages: &mut Vec<Slice>) {
        if written.peer_valid
            && let Some(connection) = self.connection(pending)
        {
            connection.valid = true;
        }
        let rejection = match written.disposition {
            Disposition::Replied => match written.head {
                Some(head) if self.fits_transport(pending, head, pages) => {
                    self.remember(now, pending, head, pages);
                    self.seal(pending, head, pages);
                    return;
                }
                Some(_) => {
                    self.counters.datagram_replies_too_long += 1;
                    Some(Rejection::SystemError)
                }
                None => {
                    self.counters.results_overflowed += 1;
                    Some(Rejection::SystemError)
                }
            },
            Disposition::GarbageArgs => {
                self.counters.rpcbadfmt += 1;
                Some(Rejection::GarbageArguments)
            }
            Disposition::SystemError => Some(Rejection::SystemError),
            Disposition::AuthError(stat) => {
                self.counters.rpcbadclnt += 1;
                Some(Rejection::AuthError(stat))
            }
            Disposition::Dropped | Disposition::Parked => {
                self.counters.calls_dropped += 1;
                None
            }
        };
        if let Some(entry) = pending.drc {
            self.drc.forget(entry);
        }
        pages.clear();
        if let Some(rejection) = rejection {
            self.reject(pending, rejection);
        }
    }

    fn fits_transport(&self, pending: &Pending, head: usize, pages: &[Slice]) -> bool {
        pending.origin != Origin::Datagram || head + crate::buf::gather_len(pages) <= self.options.datagram_bytes_max as usize
    }

    fn remember(&mut self, now: Instant, pending: &Pending, head: usize, pages: &[Slice]) {
        let Some(entry) = pending.drc else { return };
        let spare = self.arena.reserve(MARKER_LEN + head).map(|fragment| &*fragment.spare());
        let kept = match spare.and_then(|spare| spare.get(MARKER_LEN..MARKER_LEN + head)) {
            Some(reply) if pages.is_empty() => self.drc.complete(now, entry, reply),
            _ => {
                self.drc.forget(entry);
                false
            }
        };
        self.counters.drc_reply_too_long += u64::from(!kept);
    }

    fn connection(&mut self, pending: &Pending) -> Option<&mut Connection> {
        match pending.origin {
            Origin::Stream(id) => self.connections.get(id),
            Origin::Datagram => None,
        }
    }

    fn reject(&mut self, pending: &Pending, rejection: Rejection) {
        self.counters.system_errors += u64::from(rejection == Rejection::SystemError);
        let Some(fragment) = self.arena.reserve(MARKER_LEN + REJECTION_LEN_MAX) else { return };
        let mut encoder = Encoder::new(&mut fragment.spare()[MARKER_LEN..]);
        encode_rejection(&mut encoder, pending.xid, rejection);
        let head = encoder.position();
        self.seal(pending, head, &mut Vec::new());
    }

    /// Seals the reply whose head stands at the front of the arena's spare and queues it, if its connection still lives.
    fn seal(&mut self, pending: &Pending, head: usize, pages: &mut Vec<Slice>) {
        let framing = match pending.origin {
            Origin::Stream(id) if self.connections.get(id).is_none() => {
                self.counters.replies_orphaned += 1;
                return;
            }
            Origin::Stream(_) => Framing::Stream,
            Origin::Datagram => Framing::Datagram,
        };
        let Some(fragment) = self.arena.reserve(MARKER_LEN + head) else { return };
        let before = self.pieces.len();
        let bytes = XdrBuf::new(fragment, head, pages, &self.zeroes).seal(framing, &mut self.pieces) as u64;
        let pieces = (self.pieces.len() - before) as u32;
        self.replies.push_back(QueuedReply { origin: pending.origin, peer: pending.peer, pieces, bytes });
        self.counters.replies += 1;
        self.counters.reply_bytes += bytes;
        match pending.origin {
            Origin::Stream(id) => {
                if let Some(connection) = self.connections.get(id) {
                    connection.queued += bytes;
                }
            }
            Origin::Datagram => self.datagram_replies += 1,
        }
    }

    // ---- Completions and replies ----

    /// Answers calls whose wait is over; returns how many were looked at.
    pub fn poll_completions(&mut self, now: Instant, programs: &mut impl Programs) -> usize {
        let mut pages = std::mem::take(&mut self.completion_pages);
        let mut handled = 0;
        while handled < self.options.completions_per_turn_max as usize {
            let Some(ticket) = self.deferred.take().or_else(|| programs.poll_completion(now, &mut pages)) else { break };
            let Some(pending) = self.parked.get(ticket).copied() else {
                self.counters.tickets_unknown += 1;
                pages.clear();
                handled += 1;
                continue;
            };
            if self.arena.reserve(MARKER_LEN + head_room(pending.head_bytes_max)).is_none() {
                self.counters.stalls_core += 1;
                self.retry_at.get_or_insert(now + self.options.retry_after);
                self.deferred = Some(ticket);
                break;
            }
            handled += 1;
            let written = self.write_results(&pending, &mut pages, |results| programs.complete(now, ticket, results));
            if written.disposition != Disposition::Parked {
                self.unpark(ticket);
                self.conclude(now, &pending, &written, &mut pages);
                if let Origin::Stream(id) = pending.origin {
                    self.resume_if_possible(id);
                    self.close_if_finished(id);
                }
            }
            pages.clear();
        }
        self.completion_pages = pages;
        handled
    }

    /// Takes the next reply: `gather` is cleared and gets the whole of it, record mark included for a stream.
    pub fn poll_reply(&mut self, gather: &mut Vec<Slice>) -> Option<Destination> {
        loop {
            gather.clear();
            let reply = self.replies.pop_front()?;
            gather.extend(self.pieces.drain(..reply.pieces as usize));
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
        let mut overdue = std::mem::take(&mut self.overdue);
        overdue.extend(self.connections.iter().filter_map(|(id, connection)| {
            let slow = connection.record_since.is_some_and(|since| now.since(since) >= self.options.record_timeout);
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
}

/// Bytes behind the mark that a reply to a procedure may need: its results, or a rejection instead.
fn head_room(head_bytes_max: u32) -> usize {
    (SUCCESS_LEN + head_bytes_max as usize).max(REJECTION_LEN_MAX)
}
