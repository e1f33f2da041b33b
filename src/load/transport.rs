//! What a runner needs of a network: byte streams to the server, and the clock.
//!
//! A turn: [`Transport::receive`], [`Transport::poll_event`] until `None`, the verbs, [`Transport::transmit`]. Nothing blocks
//! but [`Transport::wait`]. Implemented by the stack over a DPDK port (`dpdk`), by kernel sockets (`kernel`), and by tests over an
//! in-memory link with a virtual clock.

use std::net::SocketAddr;

use crate::buf::{PagePool, RxChain, Slice};
use crate::counters::{Counters, Kind};
use crate::time::Instant;

/// Names a stream of one transport; counts from 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct StreamKey(pub u32);

/// What happened to a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StreamEvent {
    Connected(StreamKey),
    /// There are bytes that were not there before.
    Readable(StreamKey),
    /// Gone, or closed by the server: no more replies. The last event of a stream.
    Closed(StreamKey),
}

/// Why a stream could not be opened, or took nothing.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TransportError {
    #[error("cannot connect to {0}: {1}")]
    Connect(SocketAddr, String),
    #[error("the stream is closed")]
    Closed,
    #[error("the send queue is full")]
    Full,
}

/// A named number for the report.
pub type Figure = (&'static str, u64);

/// Appends what only ever grows, so that two moments can be subtracted.
pub fn append_figures(counters: &dyn Counters, out: &mut Vec<Figure>) {
    let kinds = counters.fields();
    let mut at = 0;
    counters.visit(&mut |name, value| {
        if kinds.get(at).is_some_and(|field| field.kind == Kind::Counter) {
            out.push((name, value));
        }
        at += 1;
    });
}

/// See the module for the order of calls.
pub trait Transport {
    fn now(&self) -> Instant;

    /// Takes in what has arrived; how many things happened.
    fn receive(&mut self) -> usize;

    fn poll_event(&mut self) -> Option<StreamEvent>;

    /// Begins to connect; `Connected` or `Closed` follows.
    fn connect(&mut self, remote: SocketAddr) -> Result<StreamKey, TransportError>;

    /// Resets a stream and begins to connect it again, under the same key; `Connected` or `Closed` follows.
    fn reopen(&mut self, stream: StreamKey, remote: SocketAddr) -> Result<(), TransportError>;

    /// The received bytes, to be consumed from the front; then call `received`.
    fn chain(&mut self, stream: StreamKey) -> Option<&mut RxChain>;

    fn received(&mut self, stream: StreamKey);

    /// Queues a gather list, whole or not at all.
    fn send(&mut self, stream: StreamKey, gather: &mut Vec<Slice>) -> Result<(), TransportError>;

    fn close(&mut self, stream: StreamKey);

    /// Sends what is queued; how many things were done.
    fn transmit(&mut self) -> usize;

    /// Nothing happened in this turn: waits until something may, at most until `until`. May return at once.
    fn wait(&mut self, until: Instant);

    /// Memory that this transport sends from: for calls, and (in blocks of `Pattern::BLOCK`) for file data.
    fn pools(&self) -> (PagePool, PagePool);

    /// Packets sent more than once since the start, connection establishment included.
    fn retransmissions(&mut self) -> u64;

    /// Whatever else it counts.
    fn figures(&mut self, out: &mut Vec<Figure>);
}
