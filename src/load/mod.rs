//! `nfsplice load`: the load generator, an NFS client that measures.
//!
//! Sans-IO, on a clock that is handed in, and deterministic from a seed:
//! - `protocol`: calls and replies of NFSv3 as the client writes and reads them. `calls`: what is outstanding, xids.
//! - `pattern`: what the byte at (file, offset) has to be.
//! - `workload`, `script`: which call comes next. `pacing`: when.
//! - `statistics`: latencies, intervals, what went wrong.
//! - `transport`: what a runner needs of a network; `stack` is this project's own TCP/IP over any device,
//!   `steering` brings each frame to its core.
//! - `runner`: the loop that puts these together for the connections of one core.
//! - `conversation`, `prepare`: one call at a time: rpcbind, MOUNT, the files of the working set.
//!
//! Around them: `kernel` (sockets), `dpdk` (ports), `session` (threads, signals, the live line), `options`, `report`
//! (JSON, tables), `compare`.
//!
//! The server's code is shared where client and server do the same: `rpc::record`, `rpc::xdr`, `tcp`, `net`, `buf`.

pub mod calls;
pub mod compare;
pub mod conversation;
#[cfg(feature = "dpdk")]
mod dpdk;
mod kernel;
pub mod options;
pub mod pacing;
pub mod pattern;
pub mod prepare;
pub mod protocol;
pub mod report;
pub mod runner;
pub mod script;
mod session;
pub mod stack;
pub mod statistics;
pub mod steering;
pub mod transport;
pub mod workload;

pub use session::run;
