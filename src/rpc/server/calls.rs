//! A call's way from its header to its queued reply: judged, looked up, executed or parked, sealed.
//!
//! Read first: RFC 5531 section 9; sunrpc's `svc_process_common` for the order. Whatever can make a call wait (`room`) is asked
//! before anything of it has an effect, because a record that stays unread is looked at again from its first byte.

use std::net::SocketAddr;

use super::CloseReason;
use super::{QueuedReplies, Server, Step};
use crate::buf::{Slice, View, gather_len};
use crate::rpc::call::{self, Admitted, Message};
use crate::rpc::connection::Stall;
use crate::rpc::drc::SharedLookup;
use crate::rpc::options::DATAGRAM_BYTES_MAX_V6;
use crate::rpc::parked::{Origin, Pending};
use crate::rpc::programs::{Call, Disposition, Peer, Programs, Results, Ticket};
use crate::rpc::record::MARKER_LEN;
use crate::rpc::reply::{REJECTION_LEN_MAX, Rejection, SUCCESS_LEN, encode_rejection, encode_success};
use crate::rpc::xdr::Encoder;
use crate::rpc::xdr_buf::{Framing, XdrBuf};
use crate::time::Instant;

/// What a program did with the room it was given.
struct Written {
    disposition: Disposition,
    /// Bytes of the head, header included; `None` if it did not fit.
    head: Option<usize>,
    peer_valid: bool,
    pages_expected: Option<u32>,
}

impl Server {
    pub(super) fn handle_message(
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
        let last = match origin {
            Origin::Stream(id) => self.connections.get(id).map(|connection| &mut connection.last_credential),
            Origin::Datagram => None,
        };
        match call::admit(header, peer.transport, last.unwrap_or(&mut self.datagram_credential), programs) {
            Ok(Ok(admitted)) => self.execute(now, pending, admitted, programs),
            Ok(Err(rejection)) => match self.room(origin, REJECTION_LEN_MAX, 0) {
                Ok(_) => {
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

    /// Whether a reply of `head` bytes of head and `pages` bytes of pages may be started, and the ticket for it.
    fn room(&mut self, origin: Origin, head: usize, pages: u32) -> Result<Ticket, Stall> {
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
        let ticket = self.parked.next_ticket().ok_or(Stall::Core)?;
        self.arena.reserve(MARKER_LEN + head).map(|_| ticket).ok_or(Stall::Core)
    }

    fn execute(&mut self, now: Instant, mut pending: Pending, admitted: Admitted<'_>, programs: &mut impl Programs) -> Step {
        let info = admitted.info;
        let head = head_room(info.head_bytes_max);
        if MARKER_LEN + head > self.arena.piece_max() {
            // A procedure that announces more head than a page has can never be answered.
            self.counters.results_overflowed += 1;
            return match self.room(pending.origin, REJECTION_LEN_MAX, 0) {
                Ok(_) => {
                    self.reject(&pending, Rejection::SystemError);
                    Step::Taken
                }
                Err(stall) => Step::Stall(stall),
            };
        }
        let ticket = match self.room(pending.origin, head, info.pages_bytes_max) {
            Ok(ticket) => ticket,
            Err(stall) => return Step::Stall(stall),
        };
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
            credential: &admitted.credential,
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
        let Admitted { program, version, procedure, ref credential, ref arguments, .. } = *admitted;
        let key = self.drc.key(&pending.peer, credential, pending.xid, (program, version, procedure), arguments.rest());
        // The reply was once written into the same room that `room` has just found.
        let arena = &mut self.arena;
        let replay = |reply: &[u8]| {
            let into = arena.reserve(MARKER_LEN + reply.len())?.spare().get_mut(MARKER_LEN..MARKER_LEN + reply.len())?;
            into.copy_from_slice(reply);
            Some(reply.len())
        };
        match self.drc.lookup(now, key, replay) {
            SharedLookup::Miss(entry) => {
                self.counters.rcmisses += u64::from(entry.is_some());
                self.counters.rcnocache += u64::from(entry.is_none());
                pending.drc = entry;
                false
            }
            SharedLookup::InProgress => {
                self.counters.rchits += 1;
                self.counters.duplicates_dropped += 1;
                true
            }
            SharedLookup::Done(replayed) => {
                self.counters.rchits += 1;
                if let Some(head) = replayed {
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
            && let Origin::Stream(id) = pending.origin
        {
            self.connections.mark_valid(id);
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
        let bytes_max = match pending.peer.address {
            SocketAddr::V4(_) => self.options.datagram_bytes_max,
            SocketAddr::V6(_) => self.options.datagram_bytes_max.min(DATAGRAM_BYTES_MAX_V6),
        };
        pending.origin != Origin::Datagram || head + gather_len(pages) <= bytes_max as usize
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
        let Some(fragment) = self.arena.reserve(MARKER_LEN + head) else { return };
        let (framing, queued) = match pending.origin {
            Origin::Stream(id) => {
                let Some(connection) = self.connections.get(id) else {
                    self.counters.replies_orphaned += 1;
                    return;
                };
                (Framing::Stream, Some(&mut connection.queued))
            }
            Origin::Datagram => (Framing::Datagram, None),
        };
        let reply = XdrBuf::new(fragment, head, pages, &self.zeroes);
        let last = self.replies.back_mut().filter(|last| framing == Framing::Stream && last.origin == pending.origin);
        let bytes = match last {
            Some(last) => {
                let bytes = reply.seal(framing, true, &mut last.pieces) as u64;
                last.bytes += bytes;
                bytes
            }
            None => {
                let mut pieces = self.lists.pop().unwrap_or_default();
                let bytes = reply.seal(framing, false, &mut pieces) as u64;
                self.replies.push_back(QueuedReplies { origin: pending.origin, peer: pending.peer, pieces, bytes });
                bytes
            }
        };
        self.counters.replies += 1;
        self.counters.reply_bytes += bytes;
        match queued {
            Some(queued) => *queued += bytes,
            None => self.datagram_replies += 1,
        }
    }

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
}

/// Bytes behind the mark that a reply to a procedure may need: its results, or a rejection instead.
fn head_room(head_bytes_max: u32) -> usize {
    (SUCCESS_LEN + head_bytes_max as usize).max(REJECTION_LEN_MAX)
}
