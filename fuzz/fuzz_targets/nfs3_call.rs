#![no_main]

#[allow(dead_code, reason = "each fuzzer runs one of the targets")]
#[path = "../targets/mod.rs"]
mod targets;

libfuzzer_sys::fuzz_target!(|data: &[u8]| targets::nfs3_call::fuzz(data));
