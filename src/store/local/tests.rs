use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use super::data::DataJob;
use super::*;
use crate::buf::View;
use crate::store::conformance::{self, joined, root_user, user};
use crate::store::{
    AttributeChanges, CreateHow, Credential, DirectoryEntry, Operation, SetTime, Stability, Start, Store, Timestamp, Wcc, model,
};

/// Longest wait for a parked operation. Only a lost one waits that long.
const LOST_MS: u32 = 20_000;

/// An empty directory that goes away with the test.
struct Scratch(PathBuf);

impl Scratch {
    fn new() -> Scratch {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("nfsplice-local-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let path = std::env::temp_dir().join(name);
        std::fs::create_dir_all(&path).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o777)).unwrap();
        Scratch(path)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn options(path: &Path, blocks: usize, block_size: usize) -> LocalOptions {
    let pool = PagePool::anonymous(blocks, block_size).unwrap();
    let options = LocalOptions::new(path, 77, pool, [1; 8]);
    LocalOptions { metadata_threads: 2, sync_metadata: false, readahead_blocks_max: 0, ..options }
}

/// A store, one handle, and a clock that moves when told to.
struct Rig {
    scratch: Scratch,
    pool: PagePool,
    store: Option<LocalStore>,
    handle: LocalHandle,
    now: Instant,
    token: u64,
    pages: Vec<Slice>,
}

impl Rig {
    fn new(adjust: impl FnOnce(&mut LocalOptions)) -> Rig {
        Rig::sized(256, 4096, adjust)
    }

    fn sized(blocks: usize, block_size: usize, adjust: impl FnOnce(&mut LocalOptions)) -> Rig {
        let scratch = Scratch::new();
        let mut options = options(&scratch.0, blocks, block_size);
        adjust(&mut options);
        let pool = options.pool.clone();
        let store = LocalStore::open(options).unwrap();
        let handle = store.handle_for_core(0, None);
        Rig { scratch, pool, store: Some(store), handle, now: Instant::from_millis(1), token: 0, pages: Vec::new() }
    }

    fn store(&self) -> &LocalStore {
        self.store.as_ref().unwrap()
    }

    fn start(&mut self, caller: &Credential, operation: &Operation<'_>) -> Start {
        self.pages.clear();
        self.token += 1;
        self.handle.start(self.now, caller, operation, Token(self.token), &mut self.pages)
    }

    fn next(&mut self) -> (Token, Answer) {
        for _ in 0..LOST_MS * 10 {
            if let Some(done) = self.handle.poll_completion(self.now, &mut self.pages) {
                return done;
            }
            std::thread::sleep(std::time::Duration::from_micros(100));
        }
        panic!("a parked operation was never completed");
    }

    fn run(&mut self, caller: &Credential, operation: &Operation<'_>) -> Answer {
        match self.start(caller, operation) {
            Start::Done(answer) => answer,
            Start::Parked => self.next().1,
        }
    }

    fn root(&self) -> ObjectId {
        self.handle.root()
    }

    fn status(&mut self, caller: &Credential, operation: &Operation<'_>) -> Option<Status> {
        self.run(caller, operation).err().map(|failure| failure.status)
    }

    fn lookup(&mut self, directory: ObjectId, name: &[u8]) -> Result<(ObjectId, Attributes), Status> {
        match self.run(&root_user(), &Operation::Lookup { directory, name }) {
            Ok(Outcome::Found { object, attributes, .. }) => Ok((object, attributes)),
            Ok(other) => panic!("{other:?}"),
            Err(failure) => Err(failure.status),
        }
    }

    fn file(&mut self, name: &str) -> ObjectId {
        let root = self.root();
        self.lookup(root, name.as_bytes()).unwrap().0
    }

    fn read(&mut self, object: ObjectId, offset: u64, count: u32) -> Result<(Vec<u8>, bool), Status> {
        match self.run(&root_user(), &Operation::Read { object, offset, count }) {
            Ok(Outcome::Data { end_of_file, count, .. }) => {
                let bytes = joined(&self.pages);
                assert_eq!(bytes.len(), count as usize);
                Ok((bytes, end_of_file))
            }
            Ok(other) => panic!("{other:?}"),
            Err(failure) => Err(failure.status),
        }
    }

    fn write(&mut self, object: ObjectId, offset: u64, data: &[u8], stability: Stability) -> Result<Wcc, Status> {
        match self.run(&root_user(), &Operation::Write { object, offset, data: View::from(data), stability }) {
            Ok(Outcome::Written { count, wcc, .. }) => {
                assert_eq!(count as usize, data.len());
                Ok(wcc)
            }
            Ok(other) => panic!("{other:?}"),
            Err(failure) => Err(failure.status),
        }
    }

    fn attributes(&mut self, object: ObjectId) -> Result<Attributes, Status> {
        match self.run(&root_user(), &Operation::GetAttributes { object }) {
            Ok(Outcome::Attributes(attributes)) => Ok(attributes),
            Ok(other) => panic!("{other:?}"),
            Err(failure) => Err(failure.status),
        }
    }

    fn set(&mut self, caller: &Credential, object: ObjectId, changes: AttributeChanges) -> Option<Status> {
        self.status(caller, &Operation::SetAttributes { object, changes, guard: None })
    }

    fn create(
        &mut self,
        caller: &Credential,
        directory: ObjectId,
        name: &[u8],
        how: CreateHow,
    ) -> Result<(ObjectId, Attributes), Status> {
        match self.run(caller, &Operation::Create { directory, name, how }) {
            Ok(Outcome::Created { object, attributes, .. }) => Ok((object, attributes)),
            Ok(other) => panic!("{other:?}"),
            Err(failure) => Err(failure.status),
        }
    }

    fn entries(
        &mut self,
        directory: ObjectId,
        cookie: u64,
        verifier: [u8; 8],
        bytes_max: u32,
    ) -> (Vec<DirectoryEntry>, [u8; 8], bool) {
        let entries_max = u32::MAX;
        let operation = Operation::ReadDirectory { directory, cookie, verifier, bytes_max, entries_max, with_attributes: false };
        match self.run(&root_user(), &operation) {
            Ok(Outcome::Entries { entries, verifier, end, .. }) => (entries, verifier, end),
            other => panic!("{other:?}"),
        }
    }

    fn later(&mut self, ms: u64) {
        self.now += Duration::from_millis(ms);
    }

    /// Waits until nothing is on its way: in a network's round trip read-ahead would arrive too.
    fn quiet(&self) {
        while self.store().shared.busy.load(Ordering::SeqCst) > 0 {
            idle();
        }
    }

    /// Ends the store; every page must be back.
    fn end(mut self) {
        self.pages.clear();
        if let Some(store) = self.store.take() {
            store.shutdown();
        }
        assert_eq!(self.pool.outstanding(), 0, "pages leaked");
    }
}

fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|i| (i % 251) as u8).collect()
}

fn idle() {
    std::thread::sleep(std::time::Duration::from_micros(20));
}

#[test]
fn it_does_what_every_store_must() {
    for io_uring in [true, false] {
        let mut rig = Rig::new(|options| options.io_uring = io_uring);
        assert_eq!(rig.store().uses_io_uring(), io_uring);
        conformance::conformance(&mut rig.handle, true, &mut idle);
        rig.end();
    }
}

#[test]
fn random_operations_agree_with_the_model() {
    for seed in 0..4 {
        let mut rig = Rig::sized(4096, 4096, |options| options.readahead_blocks_max = 8);
        model::random_operations(&mut rig.handle, b"model", seed, 400, &mut idle);
        rig.end();
    }
}

#[test]
fn a_second_read_comes_from_memory_and_the_host_sees_what_was_written() {
    let mut rig = Rig::new(|_| {});
    let data = pattern(100_000);
    std::fs::write(rig.scratch.path("f"), &data).unwrap();
    let f = rig.file("f");
    assert_eq!(rig.read(f, 10, 50_000), Ok((data[10..50_010].to_vec(), false)));
    let again = rig.start(&root_user(), &Operation::Read { object: f, offset: 10, count: 50_000 });
    assert!(matches!(again, Start::Done(Ok(Outcome::Data { count: 50_000, end_of_file: false, .. }))), "{again:?}");
    assert_eq!(joined(&rig.pages), data[10..50_010]);
    // The last, short block.
    assert_eq!(rig.read(f, 99_990, 4096), Ok((data[99_990..].to_vec(), true)));
    // A write over cached and uncached blocks, then both sides agree.
    let wcc = rig.write(f, 40_000, &[9; 30_000], Stability::FileSync).unwrap();
    assert!(wcc.before.is_some() && wcc.after.is_some());
    let mut expected = data.clone();
    expected[40_000..70_000].fill(9);
    assert!(std::fs::read(rig.scratch.path("f")).unwrap() == expected);
    assert_eq!(rig.read(f, 0, 200_000).unwrap(), (expected, true));
    rig.end();
}

#[test]
fn a_held_reply_keeps_the_old_bytes() {
    let mut rig = Rig::new(|_| {});
    std::fs::write(rig.scratch.path("f"), [1; 8192]).unwrap();
    let f = rig.file("f");
    rig.read(f, 0, 8192).unwrap();
    let held = std::mem::take(&mut rig.pages);
    rig.write(f, 100, &[2; 5000], Stability::Unstable).unwrap();
    assert_eq!(rig.set(&root_user(), f, AttributeChanges { size: Some(4000), ..Default::default() }), None);
    assert!(joined(&held) == [1; 8192], "a page changed under its holder");
    let now = rig.read(f, 0, 8192).unwrap();
    assert_eq!((now.0.len(), now.0[99], now.0[100], now.1), (4000, 1, 2, true));
    drop(held);
    rig.end();
}

#[test]
fn a_tiny_pool_still_serves_and_says_delay_when_everything_is_held() {
    let mut rig = Rig::sized(16, 4096, |options| options.readahead_blocks_max = 4);
    let data = pattern(400_000);
    std::fs::write(rig.scratch.path("f"), &data).unwrap();
    let f = rig.file("f");
    let mut offset = 0;
    while offset < data.len() {
        let (bytes, _) = rig.read(f, offset as u64, 16_384).unwrap();
        assert!(!bytes.is_empty() && bytes[..] == data[offset..offset + bytes.len()]);
        offset += bytes.len();
    }
    assert!(rig.store().counters().evictions > 0);
    rig.pages.clear();
    rig.quiet();
    let hoard: Vec<_> = std::iter::from_fn(|| rig.store().shared.allocate()).collect();
    assert_eq!(rig.read(f, 0, 4096), Err(Status::Delay));
    assert_eq!(rig.write(f, 0, b"x", Stability::Unstable), Err(Status::Delay));
    assert!(rig.store().counters().pool_exhausted > 0);
    drop(hoard);
    assert!(rig.read(f, 0, 4096).is_ok());
    rig.end();
}

#[test]
fn more_than_the_pool_is_answered_short() {
    let mut rig = Rig::sized(8, 4096, |_| {});
    std::fs::write(rig.scratch.path("f"), pattern(100_000)).unwrap();
    let f = rig.file("f");
    let (bytes, end) = rig.read(f, 0, 100_000).unwrap();
    assert!(!end && !bytes.is_empty() && bytes[..] == pattern(100_000)[..bytes.len()]);
    rig.end();
}

#[test]
fn sequential_reading_is_read_ahead() {
    let mut rig = Rig::new(|options| options.readahead_blocks_max = 16);
    std::fs::write(rig.scratch.path("f"), pattern(400_000)).unwrap();
    let f = rig.file("f");
    for block in 0..40 {
        rig.read(f, block * 4096, 4096).unwrap();
        rig.quiet();
    }
    let counters = rig.store().counters();
    assert!(counters.readahead_issued > 30, "{counters:?}");
    assert!(counters.blocks_filled < 10, "{counters:?}");
    rig.end();
}

#[test]
fn sparse_files_beyond_four_gigabytes() {
    let mut rig = Rig::new(|_| {});
    let root = rig.root();
    let how = CreateHow::Guarded(AttributeChanges { mode: Some(0o644), ..Default::default() });
    let (f, _) = rig.create(&root_user(), root, b"f", how).unwrap();
    let far = (5 << 30) + 123;
    rig.write(f, far, b"far", Stability::Unstable).unwrap();
    assert_eq!(rig.read(f, far - 5, 100), Ok((b"\0\0\0\0\0far".to_vec(), true)));
    assert_eq!(rig.read(f, 1 << 32, 3), Ok((vec![0; 3], false)));
    let host = std::fs::metadata(rig.scratch.path("f")).unwrap();
    assert_eq!(host.len(), far + 3);
    assert!(host.blocks() < 1000, "sparse");
    let big = AttributeChanges { size: Some(u64::MAX), ..Default::default() };
    assert_eq!(rig.set(&root_user(), f, big), Some(Status::FileTooLarge));
    rig.end();
}

#[test]
fn handles_survive_restarts_and_renames_and_die_with_their_object() {
    let mut rig = Rig::new(|_| {});
    std::fs::create_dir(rig.scratch.path("d")).unwrap();
    std::fs::write(rig.scratch.path("d/f"), b"x").unwrap();
    let d = rig.file("d");
    let (f, _) = rig.lookup(d, b"f").unwrap();
    let options = rig.store().shared.options.clone();
    std::fs::rename(rig.scratch.path("d/f"), rig.scratch.path("g")).unwrap();
    rig.store.take().unwrap().shutdown();
    let store = LocalStore::open(options).unwrap();
    rig.handle = store.handle_for_core(0, None);
    rig.store = Some(store);
    assert_eq!(rig.read(f, 0, 10), Ok((b"x".to_vec(), true)));
    let root = rig.root();
    assert_eq!(rig.lookup(root, b"g").unwrap().0, f);
    std::fs::remove_file(rig.scratch.path("g")).unwrap();
    rig.later(1000);
    // Its data was read, so a descriptor of ours keeps it alive: it must be gone all the same.
    assert_eq!(rig.attributes(f), Err(Status::Stale));
    assert_eq!(rig.read(f, 0, 10), Err(Status::Stale));
    assert_eq!(rig.write(f, 0, b"y", Stability::Unstable), Err(Status::Stale));
    assert!(rig.store().counters().stale_handles >= 3);
    rig.end();
}

#[test]
fn a_file_removed_on_the_host_gives_its_space_back_when_there_is_none_left() {
    let mut rig = Rig::new(|_| {});
    let (root, caller) = (rig.root(), root_user());
    let how = || CreateHow::Unchecked(AttributeChanges::default());
    for name in ["removed", "kept"] {
        let file = rig.create(&caller, root, name.as_bytes(), how()).unwrap().0;
        rig.write(file, 0, b"data", Stability::Unstable).unwrap();
    }
    rig.quiet();
    assert_eq!(rig.store().shared.close_removed(), 0);
    std::fs::remove_file(rig.scratch.path("removed")).unwrap();
    let open_and_removed = || {
        let link = |entry: std::io::Result<std::fs::DirEntry>| std::fs::read_link(entry.ok()?.path()).ok();
        let removed = format!("{} (deleted)", rig.scratch.path("removed").display());
        std::fs::read_dir("/proc/self/fd").unwrap().filter_map(link).filter(|path| path.as_os_str() == removed.as_str()).count()
    };
    assert_eq!(open_and_removed(), 1);
    assert_eq!(rig.store().shared.close_removed(), 1);
    assert_eq!((open_and_removed(), rig.store().counters().removed_files_closed), (0, 1));
    rig.end();
}

#[test]
fn changes_made_on_the_host_are_seen_in_time() {
    let mut rig = Rig::new(|_| {});
    let path = rig.scratch.path("f");
    std::fs::write(&path, b"old data").unwrap();
    let f = rig.file("f");
    assert_eq!(rig.read(f, 0, 100).unwrap().0, b"old data");
    std::fs::write(&path, b"new").unwrap();
    assert_eq!(rig.read(f, 0, 100).unwrap().0, b"old data", "believed until then");
    rig.later(999);
    assert_eq!(rig.read(f, 0, 100).unwrap().0, b"old data");
    rig.later(1);
    assert_eq!(rig.read(f, 0, 100), Ok((b"new".to_vec(), true)));
    // A write of our own does not hide a change made before it: cached blocks it does not touch are read again.
    std::fs::write(&path, [1; 10_000]).unwrap();
    rig.later(1000);
    assert_eq!(rig.read(f, 0, 10_000).unwrap().0, [1; 10_000]);
    std::fs::File::options().write(true).open(&path).unwrap().write_all_at(&[2; 10_000], 0).unwrap();
    rig.write(f, 9_999, &[3], Stability::Unstable).unwrap();
    let mut expected = [2; 10_000];
    expected[9_999] = 3;
    assert_eq!(rig.read(f, 0, 10_000).unwrap().0, expected);
    assert!(rig.store().counters().foreign_changes >= 2);
    // Our own writes do not look foreign.
    let before = rig.store().counters();
    for _ in 0..20 {
        rig.write(f, 0, &[4; 10_000], Stability::Unstable).unwrap();
        rig.later(1000);
        assert_eq!(rig.read(f, 0, 10_000).unwrap().0, [4; 10_000]);
    }
    let after = rig.store().counters();
    assert_eq!((after.foreign_changes, after.blocks_filled), (before.foreign_changes, before.blocks_filled));
    rig.end();
}

#[test]
fn exclusive_create_recognises_its_repeat() {
    let mut rig = Rig::new(|_| {});
    let root = rig.root();
    let (first, _) = rig.create(&root_user(), root, b"x", CreateHow::Exclusive(*b"verifier")).unwrap();
    rig.store.take().unwrap().shutdown();
    let store = LocalStore::open(LocalOptions { sync_metadata: true, ..options(&rig.scratch.0, 16, 4096) }).unwrap();
    rig.handle = store.handle_for_core(0, None);
    rig.store = Some(store);
    let (repeat, _) = rig.create(&root_user(), root, b"x", CreateHow::Exclusive(*b"verifier")).unwrap();
    assert_eq!(repeat, first, "also after a restart");
    assert_eq!(rig.create(&root_user(), root, b"x", CreateHow::Exclusive(*b"verifies")), Err(Status::Exists));
    rig.write(first, 0, b"data", Stability::Unstable).unwrap();
    assert_eq!(rig.create(&root_user(), root, b"x", CreateHow::Exclusive(*b"verifier")), Err(Status::Exists));
}

#[test]
fn an_existing_file_is_cut_while_it_is_written() {
    let mut rig = Rig::new(|_| {});
    let root = rig.root();
    std::fs::write(rig.scratch.path("f"), [7; 20_000]).unwrap();
    let f = rig.file("f");
    rig.read(f, 0, 20_000).unwrap();
    let mut parked = Vec::new();
    for i in 0..20u8 {
        let data = [i; 6000];
        let operation = Operation::Write {
            object: f,
            offset: 100 * u64::from(i),
            data: View::from(&data[..]),
            stability: Stability::Unstable,
        };
        assert!(matches!(rig.start(&root_user(), &operation), Start::Parked));
        parked.push(rig.token);
        if i == 10 {
            let how = CreateHow::Unchecked(AttributeChanges { size: Some(0), ..Default::default() });
            assert!(matches!(rig.start(&root_user(), &Operation::Create { directory: root, name: b"f", how }), Start::Parked));
            parked.push(rig.token);
        }
    }
    for _ in 0..parked.len() {
        let (token, answer) = rig.next();
        assert!(answer.is_ok(), "{answer:?}");
        parked.retain(|other| Token(*other) != token);
    }
    assert!(parked.is_empty());
    // The cut falls before, between or behind rounds of writes, never into one.
    let host = std::fs::read(rig.scratch.path("f")).unwrap();
    assert!(host.is_empty() || (host.len() == 7900 && host[1900..].iter().all(|byte| *byte == 19)), "{} bytes", host.len());
    assert!(rig.read(f, 0, 20_000).unwrap() == (host, true), "cache and file agree");
    rig.end();
}

#[test]
fn overlapping_writes_end_in_the_order_of_their_arrival() {
    let mut rig = Rig::sized(256, 4096, |_| {});
    std::fs::write(rig.scratch.path("f"), [0; 9000]).unwrap();
    let f = rig.file("f");
    for round in 0..20u8 {
        for i in 0..10u8 {
            let data = vec![round * 10 + i; 5000];
            let offset = u64::from(i) * 300;
            let operation = Operation::Write { object: f, offset, data: View::from(&data[..]), stability: Stability::Unstable };
            assert!(matches!(rig.start(&root_user(), &operation), Start::Parked));
        }
        for _ in 0..10 {
            assert!(rig.next().1.is_ok());
        }
        let host = std::fs::read(rig.scratch.path("f")).unwrap();
        for i in 0..9u8 {
            assert_eq!(host[usize::from(i) * 300], round * 10 + i);
        }
        assert!(host[2700..7700].iter().all(|byte| *byte == round * 10 + 9));
        assert!(rig.read(f, 0, 9000).unwrap().0 == host);
    }
    rig.end();
}

#[test]
fn commits_of_one_file_share_an_fsync() {
    let mut rig = Rig::new(|_| {});
    std::fs::write(rig.scratch.path("f"), b"").unwrap();
    let f = rig.file("f");
    rig.write(f, 0, &[1; 5000], Stability::Unstable).unwrap();
    for _ in 0..20 {
        assert!(matches!(rig.start(&root_user(), &Operation::Commit { object: f, offset: 0, count: 0 }), Start::Parked));
    }
    for _ in 0..20 {
        match rig.next().1 {
            Ok(Outcome::Committed { verifier, wcc }) => assert!(verifier == [1; 8] && wcc.after.is_some()),
            other => panic!("{other:?}"),
        }
    }
    let counters = rig.store().counters();
    assert_eq!(counters.commits, 20);
    assert!(counters.syncs < 20, "{counters:?}");
    rig.store().shared.data_lost();
    match rig.run(&root_user(), &Operation::Commit { object: f, offset: 0, count: 0 }) {
        Ok(Outcome::Committed { verifier, .. }) => assert_ne!(verifier, [1; 8]),
        other => panic!("{other:?}"),
    }
    rig.end();
}

#[test]
fn a_directory_of_100_000_entries_in_pages_while_it_changes() {
    let mut rig = Rig::new(|_| {});
    let big = rig.scratch.path("big");
    std::fs::create_dir(&big).unwrap();
    for i in 0..100_000 {
        std::fs::hard_link(first_link(&big, i), big.join(format!("name-{i:06}"))).unwrap();
    }
    let root = rig.root();
    let (dir, _) = rig.lookup(root, b"big").unwrap();
    let mut seen = std::collections::HashSet::new();
    let (mut cookie, mut verifier) = (0, [0; 8]);
    for page in 0.. {
        let (entries, new, end) = rig.entries(dir, cookie, verifier, 32 * 1024);
        assert!(!entries.is_empty() || end);
        cookie = entries.last().map_or(cookie, |entry| entry.cookie);
        verifier = new;
        for entry in entries {
            assert!(seen.insert(entry.name.clone()), "twice: {:?}", entry.name);
        }
        if end {
            break;
        }
        std::fs::write(big.join(format!("new-{page}")), b"").unwrap();
        std::fs::remove_file(big.join(format!("name-{:06}", page * 7))).unwrap();
    }
    for i in 0..100_000 {
        let name = format!("name-{i:06}");
        assert!(seen.contains(name.as_bytes()) || !big.join(&name).exists(), "missed: {name}");
    }
    let bad = Operation::ReadDirectory {
        directory: dir,
        cookie,
        verifier: [9; 8],
        bytes_max: 4096,
        entries_max: 10,
        with_attributes: false,
    };
    assert_eq!(rig.status(&root_user(), &bad), Some(Status::BadCookie));
    rig.end();
}

/// Hard links are cheaper than files; a file has at most 65,000.
fn first_link(big: &Path, i: usize) -> PathBuf {
    let first = big.parent().unwrap().join(format!("link-{}", i / 50_000));
    if !first.exists() {
        std::fs::write(&first, b"").unwrap();
    }
    first
}

#[test]
fn entries_carry_attributes_and_the_root_has_no_parent() {
    let mut rig = Rig::new(|_| {});
    std::fs::write(rig.scratch.path("f"), b"12345").unwrap();
    std::fs::create_dir(rig.scratch.path("d")).unwrap();
    let root = rig.root();
    let d = rig.file("d");
    for (directory, parent) in [(root, root), (d, root)] {
        let operation = Operation::ReadDirectory {
            directory,
            cookie: 0,
            verifier: [0; 8],
            bytes_max: 9999,
            entries_max: 99,
            with_attributes: true,
        };
        let Ok(Outcome::Entries { entries, end: true, .. }) = rig.run(&root_user(), &operation) else { panic!() };
        for entry in entries {
            let (object, attributes) = entry.object.unwrap();
            assert_eq!(entry.file_id, attributes.file_id);
            match &entry.name[..] {
                b"." => assert_eq!(object, directory),
                b".." => assert_eq!(object, parent),
                b"f" => assert_eq!(attributes.size, 5),
                _ => assert_eq!(object, d),
            }
        }
        assert_eq!(rig.lookup(directory, b"..").unwrap().0, parent);
    }
    assert!(matches!(rig.attributes(root), Ok(Attributes { file_system: 77, .. })));
    rig.end();
}

#[test]
fn links_are_not_followed_and_nobody_climbs_out() {
    let mut rig = Rig::new(|_| {});
    std::os::unix::fs::symlink("/etc", rig.scratch.path("l")).unwrap();
    std::fs::create_dir_all(rig.scratch.path("a/b")).unwrap();
    let root = rig.root();
    let (link, attributes) = rig.lookup(root, b"l").unwrap();
    assert_eq!(attributes.kind, ObjectKind::Symlink);
    assert_eq!(rig.lookup(link, b"passwd"), Err(Status::NotDirectory));
    assert!(
        matches!(rig.run(&root_user(), &Operation::ReadLink { object: link }), Ok(Outcome::LinkTarget { target, .. }) if target == b"/etc")
    );
    assert_eq!(rig.lookup(root, b"a/b"), Err(Status::InvalidArgument));
    assert_eq!(rig.lookup(root, b".."), Ok(rig.lookup(root, b".").unwrap()));
    // A directory that the host moves out keeps its handle, but its ".." leads nowhere.
    let a = rig.file("a");
    let (b, _) = rig.lookup(a, b"b").unwrap();
    let outside = Scratch::new();
    std::fs::rename(rig.scratch.path("a"), outside.path("a")).unwrap();
    assert_eq!(rig.lookup(a, b".."), Err(Status::Stale));
    assert_eq!(rig.lookup(b, b".."), Err(Status::Stale));
    assert_eq!(rig.attributes(ObjectId::new(b"\x01nonsense").unwrap()), Err(Status::Stale));
    assert_eq!(rig.attributes(ObjectId::new(b"").unwrap()), Err(Status::BadHandle));
    rig.end();
}

#[test]
fn permissions_are_the_callers() {
    let mut rig = Rig::new(|_| {});
    let root = rig.root();
    let alice = user(4001, 4100);
    let bob = Credential { groups: [4200, 4300].into_iter().collect(), ..user(4002, 4101) };
    let create = |mode| CreateHow::Guarded(AttributeChanges { mode: Some(mode), ..Default::default() });
    let (f, attributes) = rig.create(&alice, root, b"f", create(0o640)).unwrap();
    assert_eq!((attributes.uid, attributes.gid, attributes.mode), (4001, 4100, 0o640), "no umask, the caller's own");
    let read = Operation::Read { object: f, offset: 0, count: 1 };
    let chmod = AttributeChanges { mode: Some(0o600), ..Default::default() };
    assert_eq!(rig.status(&bob, &read), Some(Status::AccessDenied));
    assert_eq!(rig.set(&bob, f, chmod), Some(Status::NotOwner));
    let to_group = AttributeChanges { gid: Some(4300), ..Default::default() };
    assert_eq!(rig.set(&alice, f, to_group), Some(Status::NotOwner), "not a group of hers");
    assert_eq!(rig.set(&root_user(), f, to_group), None);
    assert_eq!(rig.status(&bob, &read), None, "a supplementary group");
    // The kernel's own checks, by supplementary group, on names.
    std::fs::create_dir(rig.scratch.path("d")).unwrap();
    std::os::unix::fs::chown(rig.scratch.path("d"), Some(0), Some(4200)).unwrap();
    std::fs::set_permissions(rig.scratch.path("d"), std::fs::Permissions::from_mode(0o2770)).unwrap();
    let d = rig.file("d");
    assert_eq!(rig.create(&alice, d, b"x", create(0o644)), Err(Status::AccessDenied));
    let (_, inherited) = rig.create(&bob, d, b"x", create(0o644)).unwrap();
    assert_eq!((inherited.uid, inherited.gid), (4002, 4200), "a set-group-id directory gives its group");
    assert_eq!(rig.status(&alice, &Operation::Lookup { directory: d, name: b"x" }), Some(Status::AccessDenied));
    assert_eq!(rig.status(&alice, &Operation::Remove { directory: d, name: b"x" }), Some(Status::AccessDenied));
    let list = Operation::ReadDirectory {
        directory: d,
        cookie: 0,
        verifier: [0; 8],
        bytes_max: 999,
        entries_max: 9,
        with_attributes: false,
    };
    assert_eq!(rig.status(&alice, &list), Some(Status::AccessDenied));
    // Root is root again afterwards, on every thread.
    for _ in 0..8 {
        assert_eq!(rig.lookup(d, b"x").map(|_| ()), Ok(()));
    }
    // The owner writes whatever the mode says; somebody else's write takes set-id bits away.
    assert_eq!(rig.set(&alice, f, AttributeChanges { mode: Some(0o4466), ..Default::default() }), None);
    let write =
        |data: &'static [u8]| Operation::Write { object: f, offset: 0, data: View::from(data), stability: Stability::Unstable };
    assert_eq!(rig.status(&alice, &write(b"a")), None);
    assert_eq!(rig.attributes(f).unwrap().mode, 0o466);
    let nobody = user(4009, 4009);
    assert_eq!(rig.status(&nobody, &write(b"b")), None, "others may write");
    let device = Operation::MakeNode {
        directory: root,
        name: b"dev",
        kind: crate::store::NodeKind::BlockDevice { major: 7, minor: 300 },
        attributes: AttributeChanges::default(),
    };
    assert_eq!(rig.status(&alice, &device), Some(Status::NotOwner));
    assert!(matches!(
        rig.run(&root_user(), &device),
        Ok(Outcome::Created { attributes: Attributes { device: (7, 300), .. }, .. })
    ));
    rig.end();
}

#[test]
fn times_and_guards() {
    let mut rig = Rig::new(|_| {});
    std::fs::write(rig.scratch.path("f"), b"").unwrap();
    let f = rig.file("f");
    let time = Timestamp { seconds: 1_000_000_000, nanoseconds: 123_456_789 };
    let changes =
        AttributeChanges { modified: Some(SetTime::To(time)), accessed: Some(SetTime::ServerTime), ..Default::default() };
    assert_eq!(rig.set(&root_user(), f, changes), None);
    let attributes = rig.attributes(f).unwrap();
    assert_eq!(attributes.modified, time);
    let guarded = |guard| Operation::SetAttributes { object: f, changes, guard: Some(guard) };
    assert_eq!(rig.status(&root_user(), &guarded(time)), Some(Status::NotSync));
    assert_eq!(rig.status(&root_user(), &guarded(attributes.changed)), None);
    rig.end();
}

#[test]
fn limits_answer_delay_and_evict() {
    let mut rig = Rig::new(|options| {
        options.parked_max = 2;
        options.inodes_max = 16;
        options.open_files_max = 4;
    });
    let mut data = Vec::new();
    for i in 0..200u32 {
        std::fs::write(rig.scratch.path(&format!("f{i}")), i.to_be_bytes()).unwrap();
    }
    for i in 0..200u32 {
        let f = rig.file(&format!("f{i}"));
        data.push((f, i));
        assert_eq!(rig.read(f, 0, 4).unwrap().0, i.to_be_bytes());
        rig.write(f, 4, b"more", Stability::Unstable).unwrap();
    }
    for (f, i) in data {
        assert_eq!(rig.read(f, 0, 8).unwrap().0, [&i.to_be_bytes()[..], b"more"].concat());
    }
    let counters = rig.store().counters();
    assert!(counters.inode_evictions > 100, "{counters:?}");
    assert!(counters.file_evictions > 0, "{counters:?}");
    assert!(rig.store().inodes() <= 48, "{} inodes", rig.store().inodes());
    let root = rig.root();
    let lookup = Operation::Lookup { directory: root, name: b"f1" };
    assert!(matches!(rig.start(&root_user(), &lookup), Start::Parked));
    assert!(matches!(rig.start(&root_user(), &lookup), Start::Parked));
    assert!(matches!(rig.start(&root_user(), &lookup), Start::Done(Err(Failure { status: Status::Delay, .. }))));
    assert_eq!(rig.handle.parked(), 2);
    assert!(rig.next().1.is_ok() && rig.next().1.is_ok());
    rig.end();
}

#[test]
fn the_wake_up_is_called_and_shutdown_drains() {
    let mut rig = Rig::new(|_| {});
    let woken = Arc::new(AtomicU32::new(0));
    let counter = woken.clone();
    rig.handle = rig.store().handle_for_core(0, Some(Arc::new(move || counter.store(1, Ordering::SeqCst))));
    std::fs::write(rig.scratch.path("f"), pattern(100_000)).unwrap();
    let f = rig.file("f");
    assert!(woken.load(Ordering::SeqCst) > 0);
    for i in 0..10 {
        rig.start(&root_user(), &Operation::Read { object: f, offset: i * 8192, count: 8192 });
        let data = [5; 1000];
        let operation =
            Operation::Write { object: f, offset: i * 999, data: View::from(&data[..]), stability: Stability::FileSync };
        assert!(matches!(rig.start(&root_user(), &operation), Start::Parked));
    }
    rig.store.take().unwrap().shutdown();
    while rig.handle.parked() > 0 {
        assert!(rig.next().1.is_ok());
    }
    let refused = rig.start(&root_user(), &Operation::GetAttributes { object: f });
    assert!(matches!(refused, Start::Done(Err(Failure { status: Status::Delay, .. }))));
    rig.end();
}

#[test]
fn many_readers_and_a_writer_agree() {
    let scratch = Scratch::new();
    std::fs::write(scratch.path("f"), [0; 65_536]).unwrap();
    let options = LocalOptions { cores: 3, attribute_cache_ms: 5, ..options(&scratch.0, 64, 4096) };
    let pool = options.pool.clone();
    let store = LocalStore::open(options).unwrap();
    std::thread::scope(|scope| {
        for core in 0..3 {
            let mut handle = store.handle_for_core(core, None);
            scope.spawn(move || {
                let mut driver_idle = idle;
                let mut driver = conformance::Driver::new(&mut handle, &mut driver_idle);
                let root = driver.root();
                let f = driver.lookup(root, b"f").unwrap();
                for round in 1..=100u8 {
                    if core == 0 {
                        // Each block holds one value: a torn block would show two.
                        for block in 0..16 {
                            driver.write(&root_user(), f, block * 4096, &[round; 4096]).unwrap();
                        }
                    } else if let Ok((bytes, _)) = driver.read(&root_user(), f, 0, 65_536) {
                        let held = std::mem::take(&mut driver.pages);
                        assert!(bytes.chunks(4096).all(|block| block.iter().all(|byte| *byte == block[0])));
                        assert!(joined(&held) == bytes);
                    }
                }
            });
        }
    });
    assert!(std::fs::read(scratch.path("f")).unwrap() == [100; 65_536]);
    store.shutdown();
    assert_eq!(pool.outstanding(), 0);
}

#[test]
fn opening_says_what_is_wrong() {
    let scratch = Scratch::new();
    let missing = LocalStore::open(options(&scratch.path("missing"), 4, 4096)).err().unwrap();
    assert!(missing.to_string().contains("missing"), "{missing}");
    let zero = LocalStore::open(LocalOptions { data_threads: 0, ..options(&scratch.0, 4, 4096) }).err().unwrap();
    assert!(zero.to_string().contains("data_threads"), "{zero}");
    let files = LocalStore::open(LocalOptions { open_files_max: usize::MAX / 2, ..options(&scratch.0, 4, 4096) }).err().unwrap();
    assert!(matches!(files, OpenError::OpenFiles { .. }), "{files}");
    let none = LocalStore::open(options(Path::new("/proc/self"), 4, 4096)).err().unwrap();
    assert!(matches!(none, OpenError::Handles { .. }), "{none}");
}

#[test]
fn names_are_on_storage_before_the_reply_if_asked() {
    let mut rig = Rig::new(|options| options.sync_metadata = true);
    let root = rig.root();
    for i in 0..50 {
        let how = CreateHow::Unchecked(AttributeChanges { mode: Some(0o644), ..Default::default() });
        let (f, _) = rig.create(&root_user(), root, format!("f{i}").as_bytes(), how).unwrap();
        assert_eq!(rig.set(&root_user(), f, AttributeChanges { mode: Some(0o600), ..Default::default() }), None);
    }
    rig.end();
}

/// Shares the store's insides with a test that holds its threads up.
fn insides(rig: &Rig) -> Arc<Shared> {
    rig.store().shared.clone()
}

#[test]
fn a_full_cache_does_not_keep_what_a_read_brought_before_a_write() {
    let mut rig = Rig::sized(64, 4096, |options| options.cache_blocks_max = 3);
    for (name, blocks) in [("e", 3), ("f", 1), ("g", 1), ("h", 1)] {
        std::fs::write(rig.scratch.path(name), vec![1; blocks * 4096]).unwrap();
    }
    let [e, f, g, h] = ["e", "f", "g", "h"].map(|name| rig.file(name));
    let shared = insides(&rig);
    let read = |object| Operation::Read { object, offset: 0, count: 4096 };
    // The cache is full of what somebody holds: it has no room for what is written.
    rig.read(e, 0, 3 * 4096).unwrap();
    let held = std::mem::take(&mut rig.pages);
    // The data thread stands still while it opens h; behind it a WRITE to f, and a READ of g.
    let opening = lock(&shared.open_files);
    rig.start(&root_user(), &read(h));
    let data = View::from(&[2; 4096][..]);
    let write = Operation::Write { object: f, offset: 0, data, stability: Stability::Unstable };
    rig.start(&root_user(), &write);
    rig.start(&root_user(), &read(g));
    let (f_inode, g_inode) = (shared.table.get(&f).unwrap(), shared.table.get(&g).unwrap());
    // It stands still again at g, with the WRITE prepared and not submitted.
    let at_g = lock(&g_inode.state);
    drop(opening);
    while !lock(&f_inode.state).dirty {
        idle();
    }
    // Now there is room. A READ of f goes to the kernel together with the WRITE, and may see the file before it.
    drop(held);
    shared.forget(&e);
    rig.start(&root_user(), &read(f));
    drop(at_g);
    for _ in 0..4 {
        assert!(rig.next().1.is_ok());
    }
    assert!(rig.read(f, 0, 4096).unwrap().0 == [2; 4096], "older than the write");
    drop((f_inode, g_inode, shared));
    rig.end();
}

#[test]
fn a_short_file_gives_up_all_its_blocks() {
    let mut rig = Rig::new(|_| {});
    std::fs::write(rig.scratch.path("f"), [1; 8 * 4096]).unwrap();
    let f = rig.file("f");
    rig.read(f, 0, 4 * 4096).unwrap();
    // Somebody on the host replaces what is in the file by less. A READ behind its new end finds out before its time.
    std::fs::write(rig.scratch.path("f"), [2; 2 * 4096]).unwrap();
    assert_eq!(rig.read(f, 6 * 4096, 4096), Ok((Vec::new(), true)));
    assert!(rig.read(f, 0, 8 * 4096) == Ok((vec![2; 2 * 4096], true)), "blocks of the old file");
    rig.later(1000);
    assert!(rig.read(f, 0, 8 * 4096) == Ok((vec![2; 2 * 4096], true)), "blocks of the old file");
    rig.end();
}

#[test]
fn a_write_made_before_data_was_lost_does_not_carry_the_new_verifier() {
    let mut rig = Rig::new(|_| {});
    std::fs::write(rig.scratch.path("f"), b"old").unwrap();
    let f = rig.file("f");
    let shared = insides(&rig);
    let inode = shared.table.get(&f).unwrap();
    let opening = lock(&shared.open_files);
    let data = View::from(&b"new"[..]);
    rig.start(&root_user(), &Operation::Write { object: f, offset: 0, data, stability: Stability::Unstable });
    while lock(&inode.state).fd.is_none() {
        idle();
    }
    // An fsync fails while the WRITE is under way: what it wrote may be among what is lost.
    shared.data_lost();
    drop(opening);
    let answer = rig.next().1;
    assert!(matches!(answer, Ok(Outcome::Written { verifier: [1, 1, 1, 1, 1, 1, 1, 1], .. })), "{answer:?}");
    let commit = rig.run(&root_user(), &Operation::Commit { object: f, offset: 0, count: 0 });
    assert!(matches!(commit, Ok(Outcome::Committed { verifier: [1, 1, 1, 1, 1, 1, 1, 2], .. })), "{commit:?}");
    drop((inode, shared));
    rig.end();
}

/// The kernel tells of an error of write-back once: the fsync that fails may have had a later WRITE's pages, which are clean then, and the one
/// that is made for that WRITE finds nothing wrong.
#[test]
fn a_stable_write_made_before_an_fsync_failed_is_not_told_stable() {
    let mut rig = Rig::new(|_| {});
    std::fs::write(rig.scratch.path("f"), b"old").unwrap();
    let f = rig.file("f");
    let shared = insides(&rig);
    let inode = shared.table.get(&f).unwrap();
    for stability in [Stability::DataSync, Stability::FileSync] {
        // As if an fsync were on its way: the WRITE waits for the next one.
        lock(&inode.state).syncing = true;
        let data = View::from(&b"new"[..]);
        rig.start(&root_user(), &Operation::Write { object: f, offset: 0, data, stability });
        while lock(&inode.state).sync_waiters.is_empty() {
            idle();
        }
        shared.data_lost_of(&inode);
        lock(&inode.state).syncing = false;
        shared.send_data(&inode, DataJob::Sync(inode.clone()));
        let answer = rig.next().1;
        assert!(matches!(answer, Err(Failure { status: Status::Io, .. })), "{answer:?}");
        assert!(rig.write(f, 0, b"new", stability).is_ok(), "one that began later");
    }
    drop((inode, shared));
    rig.end();
}

/// Such a file is synced before it is closed, or an error of its write-back would be lost with its descriptor.
#[test]
fn a_write_that_ends_while_an_fsync_is_under_way_leaves_the_file_dirty() {
    let mut rig = Rig::new(|_| {});
    for name in ["f", "other"] {
        std::fs::write(rig.scratch.path(name), b"old").unwrap();
    }
    let (f, other) = (rig.file("f"), rig.file("other"));
    let shared = insides(&rig);
    rig.read(f, 0, 1).unwrap();
    // The data thread stands still at the other file: the WRITE and the COMMIT begin together.
    let opening = lock(&shared.open_files);
    rig.start(&root_user(), &Operation::Read { object: other, offset: 0, count: 1 });
    while shared.table.get(&other).is_none_or(|inode| lock(&inode.state).fd.is_none()) {
        idle();
    }
    let data = View::from(&b"new"[..]);
    rig.start(&root_user(), &Operation::Write { object: f, offset: 0, data, stability: Stability::Unstable });
    rig.start(&root_user(), &Operation::Commit { object: f, offset: 0, count: 0 });
    drop(opening);
    for _ in 0..3 {
        rig.next().1.unwrap();
    }
    let inode = shared.table.get(&f).unwrap();
    assert!(lock(&inode.state).dirty);
    rig.run(&root_user(), &Operation::Commit { object: f, offset: 0, count: 0 }).unwrap();
    assert!(!lock(&inode.state).dirty);
    drop((inode, shared));
    rig.end();
}

#[test]
fn a_file_that_is_read_can_be_executed_on_the_host() {
    let mut rig = Rig::new(|_| {});
    let path = rig.scratch.path("true");
    std::fs::copy("/bin/true", &path).unwrap();
    let f = rig.file("true");
    assert!(rig.read(f, 0, 4096).unwrap().0.starts_with(b"\x7fELF"));
    assert!(std::process::Command::new(&path).status().unwrap().success());
    assert!(rig.write(f, 0, b"\x7f", Stability::FileSync).is_ok());
    rig.end();
}

/// Ends with the test, also one that fails: what it has inherited keeps whoever reads the test's output waiting.
struct Program(std::process::Child);

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn a_program_can_be_written_when_it_has_ended() {
    let mut rig = Rig::new(|_| {});
    let path = rig.scratch.path("f");
    std::fs::copy("/bin/sleep", &path).unwrap();
    let running = Program(std::process::Command::new(&path).arg("1000").spawn().unwrap());
    let f = rig.file("f");
    assert!(rig.read(f, 0, 4096).unwrap().0.starts_with(b"\x7fELF"));
    let refused = rig.write(f, 0, b"new", Stability::Unstable);
    drop(running);
    assert_eq!(refused, Err(Status::AccessDenied));
    assert!(rig.write(f, 0, b"new", Stability::Unstable).is_ok(), "the descriptor that only reads is still used");
    assert!(rig.read(f, 0, 4096).unwrap().0.starts_with(b"newF"));
    rig.end();
}

#[test]
fn data_descriptors_wait_for_storage() {
    let mut rig = Rig::new(|_| {});
    std::fs::write(rig.scratch.path("f"), b"x").unwrap();
    let f = rig.file("f");
    rig.read(f, 0, 1).unwrap();
    let fd = insides(&rig).table.get(&f).and_then(|inode| lock(&inode.state).fd.clone()).unwrap();
    let flags = rustix::fs::fcntl_getfl(&*fd).unwrap();
    assert!(!flags.contains(rustix::fs::OFlags::NONBLOCK), "{flags:?}");
    drop(fd);
    rig.end();
}
