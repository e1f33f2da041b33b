//! The contract between the RPC server and the programs it carries: what a call is, what an answer is written into, and
//! what may become of it.
//!
//! Read first: RFC 5531 section 9. A program never sees record marks, reply headers or sockets; the server never sees a
//! program's arguments. A call that has to wait parks under the ticket it came with; the ticket comes back through
//! `poll_completion` exactly once, and only then is room for its reply taken.

use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;

use super::auth::{AuthStat, Credential};
use super::xdr::{Decoder, Encoder};
use crate::buf::Slice;
use crate::time::Instant;

/// How a call came.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Transport {
    Tcp,
    Udp,
}

/// Who called, and under which of the server's addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Peer {
    pub address: SocketAddr,
    pub local: SocketAddr,
    pub transport: Transport,
}

impl Peer {
    pub fn ip(&self) -> IpAddr {
        self.address.ip()
    }
}

/// A call with a good header and an accepted credential, for a procedure that exists.
#[derive(Clone)]
pub struct Call<'a> {
    pub xid: u32,
    pub program: u32,
    pub version: u32,
    pub procedure: u32,
    pub peer: Peer,
    pub credential: &'a Credential,
    /// The procedure's arguments, in place in the received buffers: copy the decoder (`let mut args = call.arguments`).
    pub arguments: Decoder<'a>,
}

/// Names a call that is being answered, from `call` to the end of `complete`. Chosen by the server, opaque to programs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Ticket(pub u64);

/// What the server must know about a procedure before it lets a program decode its arguments.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProcedureInfo {
    /// For counters and logs: "READ".
    pub name: &'static str,
    /// Not idempotent: its replies go through the duplicate request cache.
    pub caches_reply: bool,
    /// Most bytes of results it encodes into `Results::head`; with the reply header at most a fragment page.
    pub head_bytes_max: u32,
    /// Most bytes it appends to `Results::pages`; 0 for all but the bulk readers. Held against the connection's send queue
    /// until the reply is sealed; a call that parks lowers it with `Results::expect_pages`.
    pub pages_bytes_max: u32,
}

/// Where the results of a successful call go: `head`, then the bytes of `pages`, then XDR padding that the server adds.
pub struct Results<'a> {
    /// Room for exactly `ProcedureInfo::head_bytes_max` bytes behind the reply header. Overflow answers SYSTEM_ERR.
    pub head: Encoder<'a>,
    /// Bulk data that follows the head, by reference. Empty when `call` gets it; in `complete` it holds what
    /// `poll_completion` appended for this ticket. What is left in it with any disposition but `Replied` is discarded.
    pub pages: &'a mut Vec<Slice>,
    pub(super) peer_valid: bool,
    pub(super) pages_expected: Option<u32>,
}

impl<'a> Results<'a> {
    /// For a program's own tests; the server makes them from its fragment arena.
    pub fn new(head: Encoder<'a>, pages: &'a mut Vec<Slice>) -> Results<'a> {
        Results { head, pages, peer_valid: false, pages_expected: None }
    }

    /// The caller presented a file handle it may use: its connection no longer counts as unauthenticated.
    pub fn mark_peer_valid(&mut self) {
        self.peer_valid = true;
    }

    /// A call that parks says how many bytes of pages its reply can have at most (a READ's count), so that only those are
    /// held against the connection's send queue while it waits.
    pub fn expect_pages(&mut self, bytes: u32) {
        self.pages_expected = Some(bytes);
    }
}

/// What became of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Disposition {
    /// The results are written (a program's own error status is a result like any other).
    Replied,
    /// It waits; its ticket comes (again) through `poll_completion`.
    Parked,
    /// No answer at all, as for a duplicate of a call in progress.
    Dropped,
    /// The arguments do not decode (RFC 5531 GARBAGE_ARGS).
    GarbageArgs,
    /// RFC 5531 SYSTEM_ERR.
    SystemError,
    /// The credential does not do for this procedure: MSG_DENIED, AUTH_ERROR.
    AuthError(AuthStat),
}

/// The programs of a server, as one value that a core owns.
pub trait Programs {
    /// The lowest and the highest version served over `transport`; `None`: PROG_UNAVAIL.
    fn versions(&self, program: u32, transport: Transport) -> Option<RangeInclusive<u32>>;

    /// `None`: PROC_UNAVAIL. Only called with a version in the range of `versions`; a version inside the range that is not
    /// served at all answers `None` as well.
    fn procedure(&self, program: u32, version: u32, procedure: u32) -> Option<ProcedureInfo>;

    /// This call, of which nothing is checked, will probably come after the one that is given to `call` next: a program may
    /// ask for memory that it will need. Nothing else may come of it.
    fn expect(&self, _program: u32, _procedure: u32, _arguments: Decoder<'_>) {}

    /// Answers or parks one call. The call's bytes are gone when this returns.
    fn call(&mut self, now: Instant, call: &Call<'_>, ticket: Ticket, results: &mut Results<'_>) -> Disposition;

    /// Takes one parked call that can be completed; bulk data it got is appended to `pages` and will be in
    /// `Results::pages` when `complete` is called for it (next, but possibly not at once).
    fn poll_completion(&mut self, now: Instant, pages: &mut Vec<Slice>) -> Option<Ticket>;

    /// Finishes a call that `poll_completion` named. May answer `Parked` again (it needs another operation); `pages` is
    /// then discarded. Also called when the caller is gone, so that the program lets go of what it holds.
    fn complete(&mut self, now: Instant, ticket: Ticket, results: &mut Results<'_>) -> Disposition;

    /// Calls refused, or answered in part, because no page was free, ever.
    fn pages_refused(&self) -> u64 {
        0
    }
}
