//! The programs behind the RPC server: rpcbind, MOUNT, NFSv3.
//!
//! - `exports`: what is served, to whom, as whom.
//! - `handle`: file handles, sealed under a key.
//! - `volumes`: exports, stores and handles together, as one core has them.
//! - `rpcbind`: where the programs listen.
//! - `nfs3`: the NFS version 3 program.
//!
//! May import: `rpc`, `store`, `buf`, `time`, `counters`. Knows neither TCP nor record marks.

pub mod exports;
pub mod handle;
pub mod nfs3;
pub mod rpcbind;
pub mod volumes;
