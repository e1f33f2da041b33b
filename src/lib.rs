#![deny(unsafe_code)]

pub mod counters;
