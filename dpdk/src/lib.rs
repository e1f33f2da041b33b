//! The safe face of DPDK 22.11 for nfsplice.
//!
//! In the order a program meets it:
//! - [`eal`]: start DPDK once per process; thread registration; the cycle counter.
//! - [`memory`]: page memory from memzones, which every driver can reach.
//! - [`port`]: find a device, negotiate its offloads and limits, hand out its queues.
//! - [`rx`], [`mbuf`]: receive bursts of owned, read-only buffers.
//! - [`chain`], [`tx`]: send a header and payload by reference ([`chain::TxPayload`]), or copied as a baseline.
//! - [`pool`], [`capability`], [`stats`], [`error`]: mempools, what a driver can do, counters, errors.
//! - `hold`, `setup`, `tap`: what a chain keeps alive, how a port is configured, net_tap's signals.
//!
//! The rule of this crate: no safe call writes into memory that a NIC may be reading. Received bytes are given out as
//! `&[u8]` only, headers are copied into fresh buffers before the driver sees them, and payload is promised unchanged
//! by the one unsafe trait, [`chain::TxPayload`].
//!
//! Deliberately not here: protocol headers, segmentation, page reference counts, configuration files.

#![deny(missing_docs)]

pub mod capability;
pub mod chain;
pub mod eal;
pub mod error;
mod hold;
pub mod mbuf;
pub mod memory;
pub mod pool;
pub mod port;
pub mod rx;
mod setup;
pub mod stats;
mod tap;
pub mod tx;

pub use capability::{PortCapabilities, RssSpread};
pub use chain::{TxOffload, TxPayload, TxRefused};
pub use eal::{Eal, EalOptions, cycles, cycles_hz, register_thread};
pub use error::Error;
pub use mbuf::{Checksum, Mbuf};
pub use memory::{Zone, ZoneSet};
pub use port::{Port, PortOptions, Wanted};
pub use rx::RxQueue;
pub use tx::TxQueue;
