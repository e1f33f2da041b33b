//! The programs behind the RPC server: rpcbind, MOUNT, NFSv3.
//!
//! - `exports`: what is served, to whom, as whom.
//! - `mount`: from a path to the first file handle.
//! - `rpcbind`: where the programs listen.
//!
//! May import: `rpc`, `store`, `buf`, `time`, `counters`. Knows neither TCP nor record marks.

pub mod exports;
pub mod mount;
pub mod rpcbind;
