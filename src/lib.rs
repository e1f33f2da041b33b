//! nfsplice: an NFS server with its own TCP/IP stack. The rooms, in the order one READ passes through them:
//!
//! - [`net`]: frames in from a device, neighbours, IP, ICMP; frames out.
//! - [`wire`]: bytes <-> representations of Ethernet, ARP, IPv4, ICMP, UDP, TCP.
//! - [`tcp`]: sans-IO TCP: an endpoint full of connections, on a clock that is handed in.
//! - [`rpc`]: record marking, XDR, calls and replies, authentication, the duplicate request cache.
//! - [`program`]: rpcbind, MOUNT, NFSv3; file handles.
//! - [`store`]: the page cache, and where files live: in memory, or in a directory of the host.
//! - [`buf`]: pages, slices of pages, received packets: the only currency between the rooms.
//! - [`raw`]: the one room with `unsafe`.
//! - [`time`]: instants and timers.
//! - [`counters`]: how every layer counts.
//! - [`control`]: configuration, metrics, logging, the command line.
//! - [`shard`]: one core's loop, which wires the rooms above together.
//! - [`serve`]: builds what a configuration asks for, and runs it.
//! - [`load`]: the load generator: the same stack as a client that measures.
//!
//! `ARCHITECTURE.md` follows one READ by function names and states which room may import which; a test holds it to that.
#![deny(unsafe_code)]

pub mod buf;
pub mod control;
pub mod counters;
pub mod load;
pub mod net;
pub mod program;
#[allow(unsafe_code)]
pub mod raw;
pub mod rpc;
pub mod serve;
pub mod shard;
pub mod store;
pub mod tcp;
pub mod time;
pub mod wire;
