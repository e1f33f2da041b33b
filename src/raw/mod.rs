//! The one room of this crate where `unsafe` is allowed.
//!
//! - `page`: blocks of DMA-able memory, their reference counts, and the views through which the rest of the crate sees them.
//! - `dma`: page pools in DPDK's memory, slices as transmit payload.
//! - `prefetch`: asking for memory before it is needed.
//! - `rx_buf`: received buffers, read where the driver has put them.
//! - `stream`: copying past the caches.
//! - `syscall`: file handles and the file-system identity of a thread.
//! - `uring`: reads and writes of files straight into and out of pages.
//!
//! The rules the types here enforce, so that nobody else has to think about them:
//! 1. Bytes that a `Slice` covers never change while that `Slice`, or any clone of it, lives. A NIC holds clones.
//! 2. Memory can be written only through a `PageMut` (the single reference to its page) or through the part of a
//!    `Fragment` that no `Slice` covers yet.
//! 3. A page goes back to its pool when the last view of it is dropped, on whatever thread that happens.
//!
//! Imports nothing of this crate.

#[cfg(feature = "dpdk")]
mod dma;
mod page;
mod prefetch;
mod rx_buf;
mod stream;
pub mod syscall;
pub mod uring;

pub use page::{Fragment, PageMut, PagePool, Region, Slice, clone_onto};
pub use prefetch::prefetch;
pub use rx_buf::RxBuf;
pub use stream::copy_past_caches;
