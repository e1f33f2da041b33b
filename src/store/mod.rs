//! Where files live. A `Store` answers `Operation`s; what it cannot answer at once it parks and completes later.
//!
//! - `types`: objects, attributes, operations, outcomes.
//! - `permission`: who may do what, as pure functions that every store asks.
//! - `block_table`: what is known of each block of a file, by number.
//! - `blocks`: the data of a file as a table of pages that are copied on write.
//! - `memory`: a store that lives in memory.
//! - `cache`: which blocks of a host's files are in memory, and which go first.
//! - `local`: a store over a directory of the host.
//! - `conformance`: what every store must do, as a test.
//! - `model`: random operations compared with a model, as a test.
//!
//! May import: `buf`, `raw`, `time`, `counters`.
#![allow(clippy::result_large_err, reason = "a failure carries two wcc_data on the stack; a box would allocate per failing call")]

mod block_table;
pub mod blocks;
pub mod cache;
#[cfg(test)]
pub mod conformance;
pub mod local;
pub mod memory;
#[cfg(test)]
pub mod model;
pub mod permission;
pub mod types;

pub use types::*;

use crate::buf::Slice;
use crate::counters::Counters;
use crate::time::Instant;

/// Names a parked operation to the core that started it. Chosen by the caller, given back by `poll_completion`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Token(pub u64);

/// What became of an operation when it was started.
#[derive(Debug)]
#[allow(clippy::large_enum_variant, reason = "lives on the stack of the call that matches it; a box would allocate per call")]
pub enum Start {
    /// Answered without waiting.
    Done(Result<Outcome, Failure>),
    /// It waits for I/O: `poll_completion` will bring its token exactly once.
    Parked,
}

/// One core's handle on a store. Shared state lies behind it; nothing here blocks.
pub trait Store: Send {
    /// The object at the root of the export.
    fn root(&self) -> ObjectId;

    /// Starts `operation` for `caller`. The data of a READ that is answered at once is appended to `pages`.
    /// A bounded queue that is full answers `Done(Err(Status::Delay))`.
    fn start(
        &mut self,
        now: Instant,
        caller: &Credential,
        operation: &Operation<'_>,
        token: Token,
        pages: &mut Vec<Slice>,
    ) -> Start;

    /// A READ of this object at `offset` will probably be started next: a store may ask for the memory it will need. Nothing
    /// else may come of it; the object may be none, and the caller may not be allowed to read it.
    fn expect_read(&self, _object: &ObjectId, _offset: u64) {}

    /// Takes one finished operation; for a READ its data is appended to `pages`.
    fn poll_completion(&mut self, now: Instant, pages: &mut Vec<Slice>) -> Option<(Token, Result<Outcome, Failure>)>;

    /// Whether operations are parked: the caller's loop must keep polling (or sleep on the store's wake-up).
    fn parked(&self) -> usize;

    /// Operations refused, or done in part, because no page was free, ever.
    fn pages_refused(&self) -> u64 {
        0
    }

    /// What this handle counts, for the control plane; `None` if nothing.
    fn counters(&self) -> Option<&dyn Counters> {
        None
    }
}
