//! ONC RPC, the server's side, sans-IO: record marks, XDR, calls and replies, authentication, duplicate requests.
//!
//! - `server`: takes records and datagrams, calls the programs, queues replies; start here.
//! - `programs`: the contract with `program`.
//! - `record`, `call`, `auth`: a message on its way in. `reply`, `xdr_buf`: on its way out. `xdr`: both.
//! - `connection`, `parked`: who is owed what. `drc`: who was already answered.
//! - `options`: limits and counters.
//!
//! May import: `buf`, `raw`, `time`, `counters`. Knows neither TCP nor any program.

pub mod auth;
pub mod call;
mod connection;
pub mod drc;
mod options;
mod parked;
pub mod programs;
pub mod record;
pub mod reply;
pub mod server;
pub mod xdr;
pub mod xdr_buf;

pub use auth::{AuthStat, AuthSys, Credential};
pub use connection::ConnectionKey;
pub use options::{Options, RpcCounters};
pub use programs::{Call, Disposition, Peer, ProcedureInfo, Programs, Results, Ticket, Transport};
pub use server::{CloseReason, Destination, Refused, Server};
