//! One store used by two cores at once, on two threads: whole blocks only, nothing that is held ever changes, no page is lost.
//!
//! Every WRITE covers one block and repeats one stamp, so a block that mixes two writes shows. What is read is held for a while, as a
//! send queue does, and looked at again before it is let go.

use std::collections::VecDeque;
use std::path::PathBuf;
use std::thread;

use nfsplice::buf::{PagePool, Slice, View};
use nfsplice::store::local::{LocalOptions, LocalStore};
use nfsplice::store::memory::{self, MemoryStore};
use nfsplice::store::{
    AttributeChanges, CreateHow, Credential, ObjectId, Operation, Outcome, Stability, Start, Status, Store, Timestamp, Token,
};
use nfsplice::time::{Duration, Instant};

const CORES: usize = 2;
const BLOCK: usize = 4096;
const BLOCKS: u64 = 8;
const FILES: u64 = 4;
const ROUNDS: u64 = 20_000;
/// Readings held at a time by each core.
const HELD: usize = 24;
/// Longest wait for a parked operation; only a lost one waits that long.
const LOST: std::time::Duration = std::time::Duration::from_secs(30);

fn root() -> Credential {
    Credential { uid: 0, gid: 0, groups: Default::default() }
}

struct Core {
    store: Box<dyn Store>,
    token: u64,
    origin: std::time::Instant,
}

impl Core {
    fn new(store: Box<dyn Store>) -> Core {
        Core { store, token: 0, origin: std::time::Instant::now() }
    }

    fn now(&self) -> Instant {
        Instant::from_nanos(self.origin.elapsed().as_nanos() as u64) + Duration::from_millis(1)
    }

    fn perform(&mut self, operation: &Operation<'_>, pages: &mut Vec<Slice>) -> Result<Outcome, Status> {
        loop {
            pages.clear();
            self.token += 1;
            let now = self.now();
            let result = match self.store.start(now, &root(), operation, Token(self.token), pages) {
                Start::Done(result) => result.map_err(|failure| failure.status),
                Start::Parked => self.wait(pages),
            };
            // A queue that is full asks to come again, as a client would.
            match result {
                Err(Status::Delay) => thread::yield_now(),
                result => return result,
            }
        }
    }

    fn wait(&mut self, pages: &mut Vec<Slice>) -> Result<Outcome, Status> {
        let started = std::time::Instant::now();
        loop {
            let now = self.now();
            if let Some((token, result)) = self.store.poll_completion(now, pages) {
                assert_eq!(token, Token(self.token), "another core's completion");
                return result.map_err(|failure| failure.status);
            }
            assert!(started.elapsed() < LOST, "an operation was lost");
            thread::yield_now();
        }
    }
}

fn draw(state: &mut u64) -> u64 {
    // xorshift64: any full-period generator does.
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    *state
}

/// A whole block of one stamp, or of zeroes where nothing was written.
fn stamp_of(bytes: &[u8]) -> u64 {
    let stamp = u64::from_ne_bytes(bytes[..8].try_into().unwrap());
    assert!(bytes.chunks_exact(8).all(|chunk| chunk == &bytes[..8]), "a block of two writes");
    stamp
}

struct Reading {
    slices: Vec<Slice>,
    stamps: Vec<u64>,
}

fn stamps(slices: &[Slice]) -> Vec<u64> {
    let bytes: Vec<u8> = slices.iter().flat_map(|slice| slice.iter().copied()).collect();
    bytes.chunks_exact(BLOCK).map(stamp_of).collect()
}

fn work(core: &mut Core, number: u64, files: &[ObjectId]) {
    let mut random = 0x9e37_79b9_7f4a_7c15 ^ (number + 1);
    let mut held: VecDeque<Reading> = VecDeque::new();
    let mut pages = Vec::new();
    for round in 0..ROUNDS {
        let object = files[(draw(&mut random) % FILES) as usize];
        let index = draw(&mut random) % BLOCKS;
        match draw(&mut random) % 16 {
            0..6 => {
                let stamp = (number + 1) << 32 | round;
                let data = stamp.to_ne_bytes().repeat(BLOCK / 8);
                let write = Operation::Write {
                    object,
                    offset: index * BLOCK as u64,
                    data: View::from(&data[..]),
                    stability: Stability::Unstable,
                };
                core.perform(&write, &mut pages).expect("a WRITE");
            }
            6 if draw(&mut random) % 8 == 0 => {
                let changes = AttributeChanges { size: Some(index * BLOCK as u64), ..Default::default() };
                core.perform(&Operation::SetAttributes { object, changes, guard: None }, &mut pages).expect("a truncation");
            }
            _ => {
                let count = (1 + draw(&mut random) % BLOCKS) as u32 * BLOCK as u32;
                let read = Operation::Read { object, offset: index * BLOCK as u64, count };
                core.perform(&read, &mut pages).expect("a READ");
                held.push_back(Reading { stamps: stamps(&pages), slices: std::mem::take(&mut pages) });
            }
        }
        while held.len() > HELD {
            let oldest = held.pop_front().expect("not empty");
            assert_eq!(stamps(&oldest.slices), oldest.stamps, "what was read has changed");
        }
    }
}

/// Runs both cores over the same files, then removes them.
fn stress(handles: Vec<Box<dyn Store>>) {
    let mut cores: Vec<Core> = handles.into_iter().map(Core::new).collect();
    let mut pages = Vec::new();
    let directory = cores[0].store.root();
    let name = |nth: u64| format!("file{nth}");
    let how = || CreateHow::Unchecked(AttributeChanges { mode: Some(0o644), ..Default::default() });
    let files: Vec<ObjectId> = (0..FILES)
        .map(|nth| {
            let name = name(nth);
            let create = Operation::Create { directory, name: name.as_bytes(), how: how() };
            let Ok(Outcome::Created { object, .. }) = cores[0].perform(&create, &mut pages) else { panic!("no file") };
            object
        })
        .collect();
    thread::scope(|scope| {
        for (number, core) in cores.iter_mut().enumerate() {
            let files = &files;
            scope.spawn(move || work(core, number as u64, files));
        }
    });
    for nth in 0..FILES {
        // The other core than the one that made it.
        let name = name(nth);
        let remove = Operation::Remove { directory, name: name.as_bytes() };
        cores[1].perform(&remove, &mut pages).expect("a REMOVE");
    }
    assert!(cores.iter().all(|core| core.store.parked() == 0));
}

#[test]
fn two_cores_on_one_memory_store() {
    let pool = PagePool::anonymous(512, BLOCK).unwrap();
    let store = MemoryStore::new(memory::Options::new(pool.clone()), Instant::ZERO, Timestamp::default()).unwrap();
    let empty = pool.outstanding();
    stress((0..CORES).map(|_| Box::new(store.handle()) as Box<dyn Store>).collect());
    assert_eq!(pool.outstanding(), empty, "pages are lost");
    drop(store);
    assert_eq!(pool.outstanding(), 0);
}

/// An empty directory that goes away with the test.
struct Scratch(PathBuf);

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn local(what: &str, adjust: impl FnOnce(&mut LocalOptions)) {
    let scratch = Scratch(std::env::temp_dir().join(format!("nfsplice-shared-{what}-{}", std::process::id())));
    std::fs::create_dir_all(&scratch.0).unwrap();
    let pool = PagePool::anonymous(512, BLOCK).unwrap();
    let mut options = LocalOptions::new(&scratch.0, 7, pool.clone(), [1; 8]);
    options.cores = CORES;
    options.sync_metadata = false;
    adjust(&mut options);
    let store = match LocalStore::open(options) {
        Ok(store) => store,
        // Opening by handle needs a capability.
        Err(error) if !rustix::process::geteuid().is_root() => return println!("skipped, not root: {error}"),
        Err(error) => panic!("{error}"),
    };
    stress((0..CORES).map(|core| Box::new(store.handle_for_core(core, None)) as Box<dyn Store>).collect());
    store.shutdown();
    assert_eq!(pool.outstanding(), 0, "pages are lost");
}

#[test]
fn two_cores_on_one_local_store() {
    local("roomy", |_| {});
}

#[test]
fn two_cores_on_one_local_store_that_evicts() {
    // Less than the files have.
    local("tight", |options| options.cache_blocks_max = 12);
}
