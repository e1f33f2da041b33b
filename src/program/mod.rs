//! The programs behind the RPC server: rpcbind, MOUNT, NFSv3.
//!
//! - `exports`: what is served, to whom, as whom.
//! - `rpcbind`: where the programs listen.
//!
//! May import: `rpc`, `store`, `buf`, `time`, `counters`. Knows neither TCP nor record marks.

pub mod exports;
pub mod rpcbind;
