//! NFS version 3, all 22 procedures (RFC 1813), over whatever stores the exports name.
//!
//! - `procedures`: the table: decode, encode, what is cached, sizes.
//! - `decode`, `encode`: the types that arguments and results are made of.
//! - `attributes`, `data`, `names`, `directories`, `filesystem`: the procedures, by group.
//! - `counters`: calls, errors, bytes.
//!
//! One call's way: decode, check the handle and the export (client, read-only, squash), start one operation of the store,
//! and encode what it answered, at once or when the parked operation comes back. The ticket of the call is the token of the
//! operation. Not here: RPC headers, the duplicate request cache, MOUNT.

mod attributes;
mod counters;
mod data;
mod decode;
mod directories;
mod encode;
mod filesystem;
mod names;
mod procedures;
#[cfg(test)]
mod tests;

use std::collections::HashMap;

pub use counters::Nfs3Counters;

use self::decode::{Listing, Refusal, Request, Scratch, Verb};
use self::procedures::{Procedure, Reply, is_listing, procedure};
use super::exports::{Export, FILE_HANDLE_MAX};
use super::volumes::Volumes;
use crate::buf::{Slice, gather_len};
use crate::rpc::xdr::Decoder;
use crate::rpc::{Call, Disposition, ProcedureInfo, Results, Ticket};
use crate::store::{Failure, ObjectId, Outcome, Start, Status, Token, access};
use crate::time::Instant;

pub const PROGRAM: u32 = 100_003;
pub const VERSION: u32 = 3;

/// Limits of one core's NFSv3.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Options {
    /// Most bytes of data in one READ reply (FSINFO's rtmax and rtpref).
    pub read_bytes_max: u32,
    /// Most bytes of data taken from one WRITE call (wtmax and wtpref); the rest of a longer one is left to the client.
    pub write_bytes_max: u32,
    /// Most bytes of a READDIR or READDIRPLUS reply (dtpref); with the reply header it must fit in a fragment page.
    pub directory_bytes_max: u32,
    /// Most calls that may wait for stores; one more is answered JUKEBOX.
    pub parked_max: usize,
}

impl Default for Options {
    fn default() -> Options {
        Options { read_bytes_max: 1 << 20, write_bytes_max: 1 << 20, directory_bytes_max: 32 << 10, parked_max: 4096 }
    }
}

/// What a parked call's reply needs.
struct Parked {
    number: u32,
    export: u32,
    listing: Option<Listing>,
    result: Option<Result<Outcome, Failure>>,
}

/// One core's NFSv3 server.
pub struct Nfs3 {
    options: Options,
    counters: Nfs3Counters,
    scratch: Box<Scratch>,
    parked: HashMap<Ticket, Parked>,
}

impl Nfs3 {
    pub fn new(options: Options) -> Nfs3 {
        Nfs3 {
            scratch: Box::new(Scratch::new()),
            parked: HashMap::with_capacity(options.parked_max),
            counters: Nfs3Counters::default(),
            options,
        }
    }

    pub fn counters(&self) -> &Nfs3Counters {
        &self.counters
    }

    pub fn options(&self) -> &Options {
        &self.options
    }

    pub fn procedure(&self, number: u32) -> Option<ProcedureInfo> {
        if number == 0 {
            return Some(ProcedureInfo { name: "NULL", caches_reply: false, head_bytes_max: 0, pages_bytes_max: 0 });
        }
        let procedure = procedure(number)?;
        let listing = if is_listing(number) { self.options.directory_bytes_max } else { 0 };
        Some(ProcedureInfo {
            name: procedure.name,
            caches_reply: procedure.caches_reply,
            head_bytes_max: procedure.head_bytes_max + listing,
            pages_bytes_max: if number == procedures::READ { self.options.read_bytes_max } else { 0 },
        })
    }

    /// The arguments of the call that comes next: if it is a READ, what it will need of memory is asked for.
    #[inline]
    pub fn expect(&self, volumes: &Volumes, number: u32, mut arguments: Decoder<'_>) {
        if number == procedures::READ
            && let Ok(handle) = arguments.opaque(FILE_HANDLE_MAX)
            && let Some(handle) = handle.contiguous()
            && let Ok(offset) = arguments.u64()
        {
            volumes.expect_read(handle, offset);
        }
    }

    pub fn call(
        &mut self,
        volumes: &mut Volumes,
        now: Instant,
        call: &Call<'_>,
        ticket: Ticket,
        results: &mut Results<'_>,
    ) -> Disposition {
        self.counters.count_call(call.procedure);
        let Some(procedure) = procedure(call.procedure) else {
            return Disposition::Replied;
        };
        // Looked at in place from here on: a request and an outcome are hundreds of bytes, and moving them costs more than what
        // is done with them.
        let mut arguments = call.arguments;
        let mut decoded = (procedure.decode)(&mut arguments, &mut self.scratch);
        let request = match &mut decoded {
            Ok(request) => request,
            Err(Refusal::Garbage) => {
                self.counters.garbage_arguments += 1;
                return Disposition::GarbageArgs;
            }
            Err(Refusal::Status(status)) => return refuse(&mut self.counters, procedure, *status, results),
        };
        let Prepared { export, store, credential, object, second } = match prepare(volumes, &self.options, call, request) {
            Ok(prepared) => prepared,
            Err(status) => return refuse(&mut self.counters, procedure, status, results),
        };
        results.mark_peer_valid();
        if self.parked.len() >= self.options.parked_max {
            self.counters.parked_full += 1;
            return refuse(&mut self.counters, procedure, Status::Delay, results);
        }
        let operation = request.operation(object, second);
        let listing = if let Verb::ReadDirectory(listing) = request.verb { Some(listing) } else { None };
        let Some(store) = volumes.stores_mut().get_mut(store) else {
            return refuse(&mut self.counters, procedure, Status::Stale, results);
        };
        match &store.start(now, &credential, &operation, Token(ticket.0), results.pages) {
            Start::Done(result) => {
                let reply = Reply { seal: volumes.seal(), export, options: &self.options, listing };
                write_reply(&mut self.counters, procedure, result, &reply, results)
            }
            Start::Parked => {
                results.expect_pages(if let Verb::Read { count, .. } = request.verb { count } else { 0 });
                self.parked.insert(ticket, Parked { number: call.procedure, export, listing, result: None });
                self.counters.parked = self.parked.len() as u64;
                Disposition::Parked
            }
        }
    }

    /// Takes a finished operation if a call waits for it: that call is to be completed. Otherwise gives it back.
    pub fn deliver(&mut self, token: Token, result: Result<Outcome, Failure>) -> Result<Ticket, Result<Outcome, Failure>> {
        let ticket = Ticket(token.0);
        match self.parked.get_mut(&ticket) {
            Some(parked) => {
                parked.result = Some(result);
                Ok(ticket)
            }
            None => Err(result),
        }
    }

    /// Whether a parked call is one of NFSv3's.
    pub fn owns(&self, ticket: Ticket) -> bool {
        self.parked.contains_key(&ticket)
    }

    pub fn complete(&mut self, volumes: &Volumes, ticket: Ticket, results: &mut Results<'_>) -> Disposition {
        let parked = self.parked.remove(&ticket);
        self.counters.parked = self.parked.len() as u64;
        let Some(Parked { number, export, listing, result: Some(result) }) = &parked else { return Disposition::SystemError };
        let Some(procedure) = procedure(*number) else { return Disposition::SystemError };
        let reply = Reply { seal: volumes.seal(), export: *export, options: &self.options, listing: *listing };
        write_reply(&mut self.counters, procedure, result, &reply, results)
    }
}

/// Encodes the answer to an operation.
fn write_reply(
    counters: &mut Nfs3Counters,
    procedure: &Procedure,
    result: &Result<Outcome, Failure>,
    reply: &Reply<'_>,
    results: &mut Results<'_>,
) -> Disposition {
    let start = results.head.position();
    let encoded = match result {
        Ok(outcome) => {
            results.head.u32(encode::NFS3_OK);
            (procedure.encode)(&mut results.head, outcome, reply).map(|()| outcome)
        }
        Err(failure) => Err(*failure),
    };
    match encoded {
        Ok(outcome) => {
            count_data(counters, outcome, results.pages);
            counters.count_status(None);
        }
        Err(failure) => {
            results.head.truncate(start);
            results.pages.clear();
            procedure.encode_failure(&mut results.head, &failure);
            counters.count_status(Some(failure.status));
        }
    }
    Disposition::Replied
}

fn count_data(counters: &mut Nfs3Counters, outcome: &Outcome, pages: &[Slice]) {
    match outcome {
        Outcome::Data { count, .. } => {
            debug_assert_eq!(gather_len(pages), *count as usize, "a store's pages and its count");
            counters.read_bytes += u64::from(*count);
        }
        Outcome::Written { count, .. } => counters.write_bytes += u64::from(*count),
        _ => {}
    }
}

fn refuse(counters: &mut Nfs3Counters, procedure: &Procedure, status: Status, results: &mut Results<'_>) -> Disposition {
    procedure.encode_failure(&mut results.head, &status.into());
    counters.count_status(Some(status));
    Disposition::Replied
}

/// Where the handles of a request lead, and as whom.
struct Prepared {
    export: u32,
    store: usize,
    credential: crate::store::Credential,
    object: ObjectId,
    second: ObjectId,
}

fn prepare(volumes: &mut Volumes, options: &Options, call: &Call<'_>, request: &mut Request<'_>) -> Result<Prepared, Status> {
    let client = call.peer.ip();
    let (export, object) = volumes.open(request.handle)?;
    let second = match request.second {
        None => object,
        Some(handle) => {
            volumes.admit(export, client)?;
            let (second_export, second) = volumes.open(handle)?;
            volumes.admit(second_export, client)?;
            // RFC 1813 sections 3.3.14 and 3.3.15: both on one file system.
            if second_export != export {
                return Err(Status::CrossDevice);
            }
            second
        }
    };
    let export = volumes.admit(export, client)?;
    if export.read_only && request.modifies() {
        return Err(Status::ReadOnly);
    }
    clamp(&mut request.verb, options, export);
    Ok(Prepared { export: export.id, store: export.store, credential: export.squash(call.credential), object, second })
}

/// Brings what the client asks for within the server's limits.
fn clamp(verb: &mut Verb<'_>, options: &Options, export: &Export) {
    match verb {
        Verb::Read { count, .. } => *count = (*count).min(options.read_bytes_max),
        Verb::Write { data, .. } => {
            // RFC 1813 section 3.3.7: the server may write less; the count of the reply says how much.
            if let Some((front, _)) = data.split_at(options.write_bytes_max as usize) {
                *data = front;
            }
        }
        Verb::ReadDirectory(listing) => {
            listing.reply_max = listing.reply_max.min(options.directory_bytes_max);
            listing.names_max = listing.names_max.min(listing.reply_max);
        }
        Verb::Access { mask } if export.read_only => {
            *mask &= !(access::MODIFY | access::EXTEND | access::DELETE);
        }
        _ => {}
    }
}
