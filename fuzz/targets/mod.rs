//! What the fuzzers run: one function of bytes for each target. Everything a target does follows from the bytes: the clock is
//! virtual and nothing is random, so an input that failed once fails again, here and in `tests/fuzz_corpus.rs`.
//!
//! - `packet`: frames into a whole core.
//! - `tcp_segments`: an attacker between two TCP endpoints.
//! - `rpc_record`: byte streams and datagrams into the RPC server with its programs.
//! - `nfs3_call`: calls of NFS, MOUNT and rpcbind, mostly well formed.

mod input;
#[path = "../../src/tcp/tests/judge.rs"]
mod judge;
pub mod nfs3_call;
pub mod packet;
pub mod reply;
pub mod rpc_record;
pub mod server;
pub mod tcp_segments;
