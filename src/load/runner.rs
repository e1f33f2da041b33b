//! One core's loop: replies in, the next calls out. Works on any transport, on the transport's clock.
//!
//! A turn takes in a burst, finishes the calls that were answered, and sends the next ones; the calls of one connection in one turn
//! are encoded into one piece and leave together. Latency is from when a call was to be sent (`pacing`) to the turn in which its
//! reply was taken in. Calls made during the ramp are not measured; calls outstanding at the end are waited for, and count with
//! their latency but not in any interval's rate.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::Arc;

use super::calls::{CallTable, Outstanding};
use super::pacing::{Pace, Pacing};
use super::pattern::Pattern;
use super::protocol::{self, CALL_BYTES_MAX, Caller, Calls3, FileSet, Operation, Verb};
use super::statistics::Sample;
use super::transport::{StreamEvent, StreamKey, Transport, TransportError};
use super::workload::Source;
use crate::buf::{FragmentArena, Slice, View};
use crate::rpc::record::{RecordLimits, RecordReader, RecordState};
use crate::rpc::xdr::padding;
use crate::time::{Duration, Instant};

/// Calls of one connection encoded into one piece at most; more follow in the next.
const CALLS_PER_PIECE: usize = 64;
/// Bytes of a reply besides a READ's data.
const REPLY_SLACK: u32 = 64 << 10;
/// How often late calls are looked for.
const TIMEOUT_CHECK: Duration = Duration::from_millis(100);

/// What one runner does.
#[derive(Clone)]
pub struct Job {
    pub server: SocketAddr,
    pub connections: usize,
    /// Calls outstanding on each connection at most.
    pub depth: usize,
    pub caller: Caller,
    /// Largest READ or WRITE, bytes.
    pub io_bytes: u32,
    /// Bytes of each file: a READ that ends there is not short.
    pub file_bytes: u64,
    pub verify: bool,
    pub timeout: Duration,
    pub seed: u64,
    /// The first xid, and the step to the next: 1 for a runner that is alone.
    pub xids: (u32, u32),
    /// Each call has a connection of its own, opened for it and reset when the next one is due. Its latency begins with the SYN. With a
    /// depth of 1.
    pub reconnect: bool,
}

/// When a runner does it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Schedule {
    pub pace: Pace,
    pub start: Instant,
    /// Measured from `start + ramp` on.
    pub ramp: Duration,
    /// Measured for so long.
    pub duration: Option<Duration>,
    /// Calls measured at most.
    pub count: Option<u64>,
}

impl Schedule {
    /// Whether a call that was to be made then is measured.
    fn measures(&self, intended: Instant) -> bool {
        intended >= self.start + self.ramp
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// Connecting, or connected and waiting for the start.
    Ready,
    Running,
    /// No more calls; answers are waited for.
    Draining,
    Done,
}

struct Stream {
    key: StreamKey,
    reader: RecordReader,
    outstanding: usize,
    open: bool,
    /// The source has no more calls for it.
    finished: bool,
    /// In `self.hungry`.
    hungry: bool,
    verifier: Option<u64>,
}

/// The connections of one core.
pub struct Runner<T, S> {
    transport: T,
    source: S,
    job: Job,
    set: Arc<FileSet>,
    pattern: Pattern,
    calls: Calls3,
    table: CallTable,
    arena: FragmentArena,
    streams: Vec<Stream>,
    /// A transport's stream to a number here.
    by_key: Vec<u32>,
    /// Connections with room for another call.
    hungry: VecDeque<usize>,
    connected: usize,
    limits: RecordLimits,
    schedule: Option<Schedule>,
    pacing: Option<Pacing>,
    phase: Phase,
    exhausted: bool,
    /// Measured calls that were made.
    issued: u64,
    sample: Sample,
    next_timeout_check: Instant,
    end: Option<Instant>,
    // Reused.
    gather: Vec<Slice>,
    assembly: Vec<u8>,
}

impl<T: Transport, S: Source> Runner<T, S> {
    /// Connects; call `turn` until `is_ready`, then `start`.
    ///
    /// # Errors
    /// A connection that cannot even be begun, or no memory.
    pub fn new(mut transport: T, source: S, job: Job, set: Arc<FileSet>, pattern: Pattern) -> Result<Self, TransportError> {
        let mut streams = Vec::new();
        let mut by_key = Vec::new();
        for number in 0..job.connections {
            let key = transport.connect(job.server)?;
            by_key.resize(by_key.len().max(key.0 as usize + 1), u32::MAX);
            by_key[key.0 as usize] = number as u32;
            let stream = Stream {
                key,
                reader: RecordReader::default(),
                outstanding: 0,
                open: false,
                finished: false,
                hungry: false,
                verifier: None,
            };
            streams.push(stream);
        }
        let arena = FragmentArena::new(transport.pools().0).ok_or(TransportError::Full)?;
        Ok(Runner {
            calls: Calls3::new(&job.caller),
            table: CallTable::new(job.connections * job.depth, job.xids.0, job.xids.1),
            limits: RecordLimits {
                record_bytes_max: job.io_bytes + REPLY_SLACK,
                // A server may cut its replies into fragments (RFC 5531 section 11).
                fragments_max: 1024,
                empty_fragments_max: 16,
            },
            transport,
            source,
            set,
            pattern,
            arena,
            streams,
            by_key,
            hungry: VecDeque::new(),
            connected: 0,
            schedule: None,
            pacing: None,
            phase: Phase::Ready,
            exhausted: false,
            issued: 0,
            sample: Sample::default(),
            next_timeout_check: Instant::ZERO,
            end: None,
            gather: Vec::new(),
            assembly: Vec::new(),
            job,
        })
    }

    /// Whether every connection stands.
    pub fn is_ready(&self) -> bool {
        self.connected == self.streams.len()
    }

    /// Whether a connection is gone, or never came to be.
    pub fn has_lost(&self) -> bool {
        self.sample.faults.connections_lost > 0
    }

    pub fn server(&self) -> SocketAddr {
        self.job.server
    }

    /// Whether nothing is left to do: all was answered, or the connections are gone.
    pub fn is_done(&self) -> bool {
        self.phase == Phase::Done
    }

    pub fn start(&mut self, schedule: Schedule) {
        self.pacing = Some(Pacing::new(schedule.pace, self.job.seed, schedule.start, schedule.ramp));
        self.end = schedule.duration.map(|duration| schedule.start + schedule.ramp + duration);
        self.schedule = Some(schedule);
        self.phase = Phase::Running;
        for number in 0..self.streams.len() {
            self.mark_hungry(number);
        }
    }

    /// No more calls from now on.
    pub fn stop(&mut self) {
        if matches!(self.phase, Phase::Ready | Phase::Running) {
            self.phase = Phase::Draining;
        }
    }

    /// What was measured since the last call, exchanged for `empty`.
    pub fn take_sample(&mut self, empty: Sample) -> Sample {
        std::mem::replace(&mut self.sample, empty)
    }

    pub fn transport(&mut self) -> &mut T {
        &mut self.transport
    }

    /// Whether calls are still made.
    pub fn is_running(&self) -> bool {
        self.phase == Phase::Running
    }

    /// Closes the connections and gives back the transport and what was measured last.
    pub fn finish(mut self) -> (T, Sample) {
        for stream in &self.streams {
            self.transport.close(stream.key);
        }
        self.transport.transmit();
        (self.transport, self.sample)
    }

    /// One turn; how many things it found to do.
    pub fn turn(&mut self) -> usize {
        let begin = self.transport.now();
        let mut work = self.transport.receive();
        let now = if work > 0 { self.transport.now() } else { begin };
        while let Some(event) = self.transport.poll_event() {
            self.handle_event(now, event);
            work += 1;
        }
        if self.phase == Phase::Running {
            work += self.issue(now);
        }
        self.check_end(now);
        work += self.transport.transmit();
        if now >= self.next_timeout_check {
            self.next_timeout_check = now + TIMEOUT_CHECK;
            self.expire(now);
        }
        if work > 0 {
            self.sample.busy_ns += self.transport.now().since(begin).as_nanos() as u64;
        }
        work
    }

    /// Until when nothing needs to be done if nothing arrives.
    pub fn poll_timeout(&self) -> Instant {
        let due = self.pacing.as_ref().and_then(Pacing::poll_timeout);
        let start = self.schedule.filter(|_| self.phase == Phase::Running).map(|schedule| schedule.start);
        [Some(self.next_timeout_check), self.end, due.or(start)].into_iter().flatten().min().unwrap_or(Instant::FAR_FUTURE)
    }

    fn check_end(&mut self, now: Instant) {
        if self.phase == Phase::Running {
            let late = self.end.is_some_and(|end| now >= end);
            if late || self.exhausted || self.connected == 0 {
                self.phase = Phase::Draining;
                self.count_unsent();
            }
        }
        if self.phase == Phase::Draining && self.table.is_empty() {
            self.phase = Phase::Done;
        }
    }

    /// The arrivals of an open loop that the generator did not come to: their latency is unknown, but not small.
    fn count_unsent(&mut self) {
        let (Some(pacing), Some(end)) = (&mut self.pacing, self.end) else { return };
        if pacing.poll_timeout().is_none() {
            return;
        }
        while pacing.take(end).is_some() {
            self.sample.faults.unsent += 1;
        }
    }

    // ---- Replies ----

    fn handle_event(&mut self, now: Instant, event: StreamEvent) {
        let (StreamEvent::Connected(key) | StreamEvent::Readable(key) | StreamEvent::Closed(key)) = event;
        let Some(number) = self.by_key.get(key.0 as usize).map(|&number| number as usize) else { return };
        if number >= self.streams.len() {
            return;
        }
        match event {
            // Anew, for a call that is on its way.
            StreamEvent::Connected(_) if self.streams[number].open => {}
            StreamEvent::Connected(_) => {
                self.streams[number].open = true;
                self.connected += 1;
                self.mark_hungry(number);
            }
            StreamEvent::Readable(_) => self.read_replies(now, number),
            StreamEvent::Closed(_) => {
                self.read_replies(now, number);
                self.lose(number);
            }
        }
    }

    fn lose(&mut self, number: usize) {
        let stream = &mut self.streams[number];
        if stream.open {
            stream.open = false;
            self.connected -= 1;
        }
        stream.outstanding = 0;
        self.sample.faults.connections_lost += 1;
        self.sample.faults.calls_lost += self.table.forget(number as u32) as u64;
    }

    fn read_replies(&mut self, now: Instant, number: usize) {
        let mut assembly = std::mem::take(&mut self.assembly);
        let key = self.streams[number].key;
        let mut bad = false;
        while let Some(chain) = self.transport.chain(key) {
            let stream = &mut self.streams[number];
            let received = chain.all();
            match stream.reader.poll(&self.limits, &received) {
                RecordState::Incomplete => break,
                RecordState::Bad(_) => {
                    bad = true;
                    break;
                }
                RecordState::Complete => {}
            }
            let reply = stream.reader.record(&received, &mut assembly);
            let call = reply.u32_at(0).and_then(|xid| self.table.remove(xid, number as u32));
            match call {
                None => self.sample.faults.unknown_xids += 1,
                Some(call) => {
                    stream.outstanding -= 1;
                    let checks = Checks {
                        pattern: self.job.verify.then_some(&self.pattern),
                        file_bytes: self.job.file_bytes,
                        schedule: self.schedule.as_ref(),
                        now,
                    };
                    let verifier = &mut stream.verifier;
                    checks.finish(&call, reply, verifier, &mut self.sample);
                }
            }
            chain.consume(stream.reader.finish());
        }
        self.assembly = assembly;
        self.transport.received(key);
        if bad {
            self.sample.faults.bad_records += 1;
            self.transport.close(key);
            self.lose(number);
        }
        self.mark_hungry(number);
    }

    fn expire(&mut self, now: Instant) {
        let deadline = Instant::from_nanos(now.nanos().saturating_sub(self.job.timeout.as_nanos() as u64));
        let streams = &mut self.streams;
        let late = self.table.expire(deadline, |call| {
            if let Some(stream) = streams.get_mut(call.stream as usize) {
                stream.outstanding = stream.outstanding.saturating_sub(1);
            }
        });
        if late > 0 {
            self.sample.faults.timeouts += late as u64;
            (0..self.streams.len()).for_each(|number| self.mark_hungry(number));
        }
    }

    // ---- Calls ----

    fn mark_hungry(&mut self, number: usize) {
        let depth = self.job.depth;
        let stream = &mut self.streams[number];
        if stream.open && !stream.finished && !stream.hungry && stream.outstanding < depth {
            stream.hungry = true;
            self.hungry.push_back(number);
        }
    }

    fn issue(&mut self, now: Instant) -> usize {
        if self.schedule.is_none_or(|schedule| now < schedule.start) {
            return 0;
        }
        // What was to be sent before the end is sent, be it late.
        let due_by = now.min(self.end.unwrap_or(Instant::FAR_FUTURE));
        let mut issued = 0;
        let open_loop = self.pacing.as_ref().is_some_and(|pacing| pacing.poll_timeout().is_some());
        if !open_loop && due_by < now {
            return 0;
        }
        let mut left = self.hungry.len();
        while left > 0 && !self.exhausted {
            left -= 1;
            // In turn: the connection that waited longest first.
            let Some(number) = self.hungry.pop_front() else { break };
            self.streams[number].hungry = false;
            // An open loop deals its arrivals out one by one; a closed loop fills the connection up.
            let most = if open_loop { 1 } else { self.job.depth };
            let sent = self.issue_on(now, due_by, number, most);
            issued += sent;
            self.mark_hungry(number);
            if open_loop {
                if sent == 0 && !self.streams[number].finished {
                    break;
                }
                left = self.hungry.len();
            }
        }
        issued
    }

    /// Makes up to `most` calls on one connection.
    fn issue_on(&mut self, now: Instant, due_by: Instant, number: usize, most: usize) -> usize {
        let mut gather = std::mem::take(&mut self.gather);
        let allowed = match &self.pacing {
            Some(pacing) => pacing.outstanding_max(now, self.streams.len() * self.job.depth),
            None => 0,
        };
        let mut sent = 0;
        while sent < most {
            let depth_left = self.job.depth - self.streams[number].outstanding;
            let batch = (most - sent).min(depth_left).min(allowed.saturating_sub(self.table.len())).min(CALLS_PER_PIECE);
            let made = self.issue_batch((now, due_by), number, batch, &mut gather);
            sent += made;
            if made < batch || batch == 0 {
                break;
            }
        }
        if !gather.is_empty() {
            let connected = !self.job.reconnect || self.reconnect(number);
            if !connected || self.transport.send(self.streams[number].key, &mut gather).is_err() {
                // The queue holds a connection's whole depth: it is closed, and its `Closed` follows.
                gather.clear();
            }
        }
        self.gather = gather;
        sent
    }

    /// A new connection in place of one whose call was answered. What is sent on it waits for the handshake.
    fn reconnect(&mut self, number: usize) -> bool {
        self.streams[number].reader = RecordReader::default();
        let reopened = self.transport.reopen(self.streams[number].key, self.job.server).is_ok();
        if !reopened {
            self.lose(number);
        }
        reopened
    }

    /// Encodes up to `batch` calls behind each other in one fragment; how many were due.
    fn issue_batch(&mut self, (now, due_by): (Instant, Instant), number: usize, batch: usize, gather: &mut Vec<Slice>) -> usize {
        if batch == 0 || self.arena.reserve(batch * CALL_BYTES_MAX).is_none() {
            return 0;
        }
        let mut encoded = 0;
        let mut made = 0;
        while made < batch {
            if self.schedule.and_then(|schedule| schedule.count).is_some_and(|count| self.issued >= count) {
                self.exhausted = true;
                break;
            }
            let Some(intended) = self.pacing.as_mut().and_then(|pacing| pacing.take(due_by)) else { break };
            let Some(operation) = self.source.next(number) else {
                self.streams[number].finished = true;
                self.exhausted = self.streams.iter().all(|stream| stream.finished || !stream.open);
                break;
            };
            let call = Outstanding { operation, stream: number as u32, intended, sent: now };
            // There is room: the table holds as many as all connections' depths.
            let Some(xid) = self.table.insert(call) else { break };
            self.issued += u64::from(self.schedule.is_some_and(|schedule| schedule.measures(intended)));
            self.streams[number].outstanding += 1;
            made += 1;
            encoded = self.encode(xid, &operation, encoded, gather);
        }
        self.share(encoded, gather);
        made
    }

    /// Encodes a call behind `encoded` bytes of the current fragment, which has room for it; how many there are then that are not
    /// shared yet. Data follow by reference.
    fn encode(&mut self, xid: u32, operation: &Operation, encoded: usize, gather: &mut Vec<Slice>) -> usize {
        let mut encoded = encoded;
        if let Some(fragment) = self.arena.reserve(encoded + CALL_BYTES_MAX) {
            let room = &mut fragment.spare()[encoded..];
            encoded += self.calls.encode(room, xid, operation, &self.set).unwrap_or(0);
        }
        let payload = operation.payload();
        if payload > 0 {
            encoded = self.share(encoded, gather);
            self.pattern.gather(operation.file, operation.offset, payload, gather);
            if padding(payload) > 0 {
                gather.push(self.arena.zeroes(padding(payload)));
            }
        }
        encoded
    }

    /// Moves what is encoded into the gather list.
    fn share(&mut self, encoded: usize, gather: &mut Vec<Slice>) -> usize {
        if encoded > 0
            && let Some(fragment) = self.arena.reserve(encoded)
        {
            gather.push(fragment.commit(encoded));
        }
        0
    }
}

/// What a reply is judged by.
struct Checks<'a> {
    pattern: Option<&'a Pattern>,
    file_bytes: u64,
    schedule: Option<&'a Schedule>,
    now: Instant,
}

impl Checks<'_> {
    /// Judges and records the reply to `call`.
    fn finish(&self, call: &Outstanding, reply: View<'_>, verifier: &mut Option<u64>, sample: &mut Sample) {
        let operation = &call.operation;
        let outcome = match protocol::outcome(reply, operation) {
            Ok(outcome) => outcome,
            Err(fault) => {
                sample.fault(fault);
                return;
            }
        };
        match operation.verb {
            Verb::Read => {
                let left = self.file_bytes.saturating_sub(operation.offset);
                sample.faults.short_reads += u64::from(u64::from(outcome.count) < left.min(operation.count.into()));
                if let Some(pattern) = self.pattern {
                    let wrong = pattern.wrong_bytes(operation.file, operation.offset, outcome.data);
                    sample.verified_bytes += u64::from(outcome.count);
                    sample.faults.wrong_bytes += wrong;
                    sample.faults.verify_failures += u64::from(wrong > 0);
                }
            }
            Verb::Write => sample.faults.short_writes += u64::from(outcome.count < operation.count),
            _ => {}
        }
        if let Some(new) = outcome.verifier {
            // RFC 1813 section 3.3.7: it changes when the server may have lost uncommitted data.
            sample.faults.verifier_changes += u64::from(verifier.is_some_and(|old| old != new));
            *verifier = Some(new);
        }
        if self.schedule.is_some_and(|schedule| schedule.measures(call.intended)) {
            sample.record(operation.verb, self.now.since(call.intended), outcome.count.into());
        }
    }
}
