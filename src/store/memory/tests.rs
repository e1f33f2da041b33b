use super::*;
use crate::store::{conformance, model};

fn store(blocks: usize) -> MemoryStore {
    let pool = PagePool::anonymous(blocks, 4096).unwrap();
    MemoryStore::new(Options::new(pool), Instant::ZERO, Timestamp { seconds: 1_700_000_000, nanoseconds: 0 }).unwrap()
}

#[test]
fn it_does_what_every_store_must() {
    conformance::conformance(&mut store(512).handle(), true, &mut || {});
}

#[test]
fn random_operations_agree_with_the_model() {
    for seed in 0..8 {
        model::random_operations(&mut store(16384).handle(), b"model", seed, 600, &mut || {});
    }
}
