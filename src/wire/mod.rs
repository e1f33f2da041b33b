//! Bytes <-> representations of what is on the wire. Nothing here panics on input.

pub mod tcp;
