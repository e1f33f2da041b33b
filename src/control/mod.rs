//! The control plane: everything that happens outside the cores' loops.
//!
//! `config` (the TOML file), `cli` (the command line), `logging`, `signals`, `threads` (names and CPUs of non-EAL threads),
//! `metrics` (counters out of the cores), `stats` (the socket that shows them), `reload` (SIGHUP).
//!
//! Imports: `counters` and nothing else of the data path. No room below knows this one; `serve` translates the
//! configuration into each layer's `Options`.

pub mod config;
