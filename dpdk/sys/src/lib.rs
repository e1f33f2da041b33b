//! Raw bindings to the system's libdpdk 22.11, allow-listed in build.rs, and the shim's chain- and burst-level calls
//! (shim.h). Nothing here is safe to call without reading DPDK's documentation; use the `dpdk` crate.
//!
//! Two traps for readers: `RTE_ETH_*_OFFLOAD_*` constants may come as narrower integers than the u64 fields they go
//! into, and `rte_errno` is thread-local, read with `nfsplice_errno()`.

#![allow(non_camel_case_types, non_snake_case, non_upper_case_globals)]
#![allow(clippy::all, clippy::undocumented_unsafe_blocks, unsafe_op_in_unsafe_fn, dead_code)]

include!(concat!(env!("OUT_DIR"), "/bindings.rs"));
