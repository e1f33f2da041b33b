//! ONC RPC, the server's side, sans-IO: record marks, XDR, calls and replies, authentication, duplicate requests.
//!
//! - `xdr`: decoder and encoder.
//! - `auth`: credentials.
//! - `programs`: the contract with `program`.
//!
//! May import: `buf`, `raw`, `time`, `counters`. Knows neither TCP nor any program.

pub mod auth;
pub mod programs;
pub mod xdr;

pub use auth::{AuthStat, AuthSys, Credential};
pub use programs::{Call, Disposition, Peer, ProcedureInfo, Programs, Results, Ticket, Transport};
