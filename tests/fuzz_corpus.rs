//! Replays what the fuzzers found worth keeping: the corpora and the inputs that once failed. See docs/testing.md.

use std::fs;
use std::path::{Path, PathBuf};

#[allow(dead_code, reason = "some of it serves to make seeds")]
#[path = "../fuzz/targets/mod.rs"]
mod targets;

/// The files of a folder in order of their names; a folder that git does not have is empty.
fn files(folder: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(folder) else { return Vec::new() };
    let mut files: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).filter(|path| path.is_file()).collect();
    files.sort();
    files
}

fn replay(target: &str, fuzz: fn(&[u8])) {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz");
    let corpus = files(&root.join("corpus").join(target));
    assert!(!corpus.is_empty(), "no corpus for {target}");
    let regressions = files(&root.join("regressions").join(target));
    for file in corpus.iter().chain(&regressions) {
        let data = fs::read(file).unwrap();
        if std::panic::catch_unwind(|| fuzz(&data)).is_err() {
            panic!("{target} fails on {}", file.display());
        }
    }
    fuzz(&[]);
}

#[test]
fn packet() {
    replay("packet", targets::packet::fuzz);
}

#[test]
fn tcp_segments() {
    replay("tcp_segments", targets::tcp_segments::fuzz);
}

#[test]
fn rpc_record() {
    replay("rpc_record", targets::rpc_record::fuzz);
}

#[test]
fn nfs3_call() {
    replay("nfs3_call", targets::nfs3_call::fuzz);
}
