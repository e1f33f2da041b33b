//! The control plane: everything that happens outside the cores' loops.
//!
//! `config` (the TOML file), `cli`, `load_cli` (the command line), `logging`, `signals`, `threads` (names and CPUs of non-EAL threads),
//! `metrics` (counters out of the cores), `stats` (the socket that gives them away), `report` and `cost` (how `nfsplice stats` shows
//! them), `inquiry` (what cores are asked while they run: `connections`, `capture`), `reload` (SIGHUP), `plane` (all of it started at once).
//!
//! Imports: `counters` and nothing else of the data path. No room below knows this one; `serve` translates the
//! configuration into each layer's `Options`.

pub mod capture;
pub mod cli;
pub mod config;
pub mod connections;
pub mod cost;
pub mod inquiry;
pub mod load_cli;
pub mod logging;
pub mod metrics;
pub mod plane;
pub mod reload;
pub mod report;
pub mod signals;
pub mod stats;
pub mod threads;
