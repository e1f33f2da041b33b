//! What every store must do, as a test that any store can be put through: scripts for each operation, and random
//! operations compared with a model of a file system that is too simple to be wrong.
//!
//! Compiled for tests only. The root of the store must be empty, writable for root, and on one file system. Read first:
//! RFC 1813 section 3, and `store::types` for the words.

use std::collections::BTreeMap;

use super::*;
use crate::buf::View;
use crate::time::{Duration, Instant};

/// Polls without a completion before a parked operation counts as lost.
const POLLS_MAX: u32 = 1_000_000;

/// Runs operations one at a time, polling those that park.
pub struct Driver<'a> {
    pub store: &'a mut dyn Store,
    /// Called between polls that brought nothing: yield or sleep there.
    pub idle: &'a mut dyn FnMut(),
    now: Instant,
    token: u64,
    /// The pages of the last READ.
    pub pages: Vec<Slice>,
}

pub fn root_user() -> Credential {
    Credential { uid: 0, gid: 0, groups: Default::default() }
}

/// The bytes of a gather list.
pub fn joined(pages: &[Slice]) -> Vec<u8> {
    pages.iter().map(|page| &page[..]).collect::<Vec<_>>().concat()
}

pub fn user(uid: u32, gid: u32) -> Credential {
    Credential { uid, gid, groups: Default::default() }
}

impl<'a> Driver<'a> {
    pub fn new(store: &'a mut dyn Store, idle: &'a mut dyn FnMut()) -> Driver<'a> {
        Driver { store, idle, now: Instant::from_millis(1), token: 0, pages: Vec::new() }
    }

    pub fn run(&mut self, caller: &Credential, operation: &Operation<'_>) -> Result<Outcome, Failure> {
        self.pages.clear();
        self.token += 1;
        self.now += Duration::from_millis(1);
        let token = Token(self.token);
        if let Start::Done(result) = self.store.start(self.now, caller, operation, token, &mut self.pages) {
            return result;
        }
        assert!(self.store.parked() > 0, "a parked operation must show in parked()");
        for _ in 0..POLLS_MAX {
            if let Some((done, result)) = self.store.poll_completion(self.now, &mut self.pages) {
                assert_eq!(done, token, "the token that was parked");
                return result;
            }
            (self.idle)();
        }
        panic!("a parked operation was never completed");
    }

    pub fn root(&self) -> ObjectId {
        self.store.root()
    }

    fn status(&mut self, caller: &Credential, operation: &Operation<'_>) -> Option<Status> {
        self.run(caller, operation).err().map(|failure| failure.status)
    }

    /// Makes something as `caller`.
    fn made(&mut self, caller: &Credential, operation: &Operation<'_>) -> (ObjectId, Attributes) {
        match self.run(caller, operation) {
            Ok(Outcome::Created { object, attributes, directory }) => {
                assert!(directory.after.is_some());
                (object, attributes)
            }
            other => panic!("not created: {other:?}"),
        }
    }

    pub fn file(&mut self, caller: &Credential, directory: ObjectId, name: &[u8], mode: u32) -> ObjectId {
        let how = CreateHow::Guarded(AttributeChanges { mode: Some(mode), ..Default::default() });
        self.made(caller, &Operation::Create { directory, name, how }).0
    }

    pub fn directory(&mut self, caller: &Credential, directory: ObjectId, name: &[u8], mode: u32) -> ObjectId {
        let attributes = AttributeChanges { mode: Some(mode), ..Default::default() };
        self.made(caller, &Operation::MakeDirectory { directory, name, attributes }).0
    }

    pub fn attributes(&mut self, object: ObjectId) -> Attributes {
        match self.run(&root_user(), &Operation::GetAttributes { object }) {
            Ok(Outcome::Attributes(attributes)) => attributes,
            other => panic!("no attributes: {other:?}"),
        }
    }

    pub fn write(&mut self, caller: &Credential, object: ObjectId, offset: u64, data: &[u8]) -> Result<u32, Status> {
        let operation = Operation::Write { object, offset, data: View::from(data), stability: Stability::Unstable };
        match self.run(caller, &operation) {
            Ok(Outcome::Written { count, wcc, .. }) => {
                assert!(wcc.after.is_some());
                Ok(count)
            }
            Ok(other) => panic!("not a write's outcome: {other:?}"),
            Err(failure) => Err(failure.status),
        }
    }

    pub fn read(&mut self, caller: &Credential, object: ObjectId, offset: u64, count: u32) -> Result<(Vec<u8>, bool), Status> {
        match self.run(caller, &Operation::Read { object, offset, count }) {
            Ok(Outcome::Data { count, end_of_file, .. }) => {
                let bytes = joined(&self.pages);
                assert_eq!(bytes.len(), count as usize, "the pages hold `count` bytes");
                Ok((bytes, end_of_file))
            }
            Ok(other) => panic!("not a read's outcome: {other:?}"),
            Err(failure) => Err(failure.status),
        }
    }

    pub fn lookup(&mut self, directory: ObjectId, name: &[u8]) -> Result<ObjectId, Status> {
        match self.run(&root_user(), &Operation::Lookup { directory, name }) {
            Ok(Outcome::Found { object, .. }) => Ok(object),
            Ok(other) => panic!("not a lookup's outcome: {other:?}"),
            Err(failure) => Err(failure.status),
        }
    }

    /// Lists a directory in answers of at most `bytes_max`; every entry in the order it came.
    pub fn list(&mut self, directory: ObjectId, bytes_max: u32, with_attributes: bool) -> Vec<DirectoryEntry> {
        let (mut cookie, mut verifier, mut all) = (0, [0; 8], Vec::new());
        loop {
            let operation =
                Operation::ReadDirectory { directory, cookie, verifier, bytes_max, entries_max: u32::MAX, with_attributes };
            match self.run(&root_user(), &operation) {
                Ok(Outcome::Entries { entries, verifier: new, end, .. }) => {
                    let cost: usize = entries.iter().map(|entry| entry.name.len() + 24).sum();
                    assert!(cost <= bytes_max as usize, "an answer within its bounds");
                    assert!(end || !entries.is_empty(), "an answer that gets on");
                    all.extend(entries);
                    if end {
                        return all;
                    }
                    verifier = new;
                    cookie = all.last().map_or(0, |entry: &DirectoryEntry| entry.cookie);
                    assert_ne!(cookie, 0);
                }
                other => panic!("no entries: {other:?}"),
            }
        }
    }

    fn remove(&mut self, directory: ObjectId, name: &[u8]) -> Option<Status> {
        self.status(&root_user(), &Operation::Remove { directory, name })
    }

    fn rename(&mut self, from: (ObjectId, &[u8]), to: (ObjectId, &[u8])) -> Option<Status> {
        let (from_directory, from_name) = from;
        let (to_directory, to_name) = to;
        self.status(&root_user(), &Operation::Rename { from_directory, from_name, to_directory, to_name })
    }
}

/// Every operation, its main successes and failures. `devices`: whether the store can make device nodes (a host without
/// CAP_MKNOD cannot).
pub fn conformance(store: &mut dyn Store, devices: bool, idle: &mut dyn FnMut()) {
    let mut driver = Driver::new(store, idle);
    let root = driver.root();
    type Script = fn(&mut Driver<'_>, ObjectId);
    let scripts: [(&[u8], Script); 9] = [
        (b"data", data),
        (b"create", create),
        (b"links", links),
        (b"rename", rename),
        (b"removal", removal),
        (b"attributes", attributes),
        (b"permissions", permissions),
        (b"listing", listing),
        (b"limits", limits),
    ];
    for (name, script) in scripts {
        let directory = driver.directory(&root_user(), root, name, 0o777);
        script(&mut driver, directory);
    }
    let directory = driver.directory(&root_user(), root, b"nodes", 0o777);
    nodes(&mut driver, directory, devices);
}

fn data(d: &mut Driver<'_>, dir: ObjectId) {
    let me = root_user();
    let file = d.file(&me, dir, b"f", 0o644);
    assert_eq!(d.read(&me, file, 0, 100), Ok((vec![], true)));
    let big: Vec<u8> = (0..200_000u32).map(|i| (i % 251) as u8).collect();
    assert_eq!(d.write(&me, file, 0, &big), Ok(big.len() as u32));
    assert_eq!(d.read(&me, file, 12_345, 100_000), Ok((big[12_345..112_345].to_vec(), false)));
    assert_eq!(d.read(&me, file, 199_990, 10), Ok((big[199_990..].to_vec(), true)), "the last byte is the end");
    assert_eq!(d.read(&me, file, 199_990, 100), Ok((big[199_990..].to_vec(), true)));
    assert_eq!(d.read(&me, file, 200_000, 1), Ok((vec![], true)));
    assert_eq!(d.read(&me, file, u64::MAX, u32::MAX), Ok((vec![], true)));
    // A reader's pages do not change, whatever happens to the file.
    d.read(&me, file, 0, 150_000).unwrap();
    let held = std::mem::take(&mut d.pages);
    d.write(&me, file, 5, &[0xee; 130_000]).unwrap();
    let truncate = AttributeChanges { size: Some(1000), ..Default::default() };
    d.run(&me, &Operation::SetAttributes { object: file, changes: truncate, guard: None }).unwrap();
    let seen = joined(&held);
    assert!(seen == big[..150_000], "a held page changed");
    let now = d.read(&me, file, 0, 2000).unwrap().0;
    assert_eq!((now.len(), now[4], now[5], now[999]), (1000, big[4], 0xee, 0xee));
    // What was cut off does not come back, and holes read as zeroes, far beyond 4 GiB too.
    let extend = AttributeChanges { size: Some(3000), ..Default::default() };
    d.run(&me, &Operation::SetAttributes { object: file, changes: extend, guard: None }).unwrap();
    assert_eq!(d.read(&me, file, 1000, 2000), Ok((vec![0; 2000], true)));
    let far = 5 << 30;
    assert_eq!(d.write(&me, file, far, b"far"), Ok(3));
    assert_eq!(d.attributes(file).size, far + 3);
    assert!(d.attributes(file).used < 1 << 30, "sparse");
    assert_eq!(d.read(&me, file, far - 2, 10), Ok((b"\0\0far".to_vec(), true)));
    // Nothing written changes nothing.
    let before = d.attributes(file);
    assert_eq!(d.write(&me, file, 0, b""), Ok(0));
    assert_eq!(d.attributes(file).modified, before.modified);
    // Not for directories, and not past what an offset can say.
    assert_eq!(d.read(&me, dir, 0, 1), Err(Status::IsDirectory));
    assert_eq!(d.write(&me, dir, 0, b"x"), Err(Status::IsDirectory));
    assert_eq!(d.write(&me, file, u64::MAX - 1, b"xyz"), Err(Status::FileTooLarge));
    match d.run(&me, &Operation::Commit { object: file, offset: 0, count: 0 }) {
        Ok(Outcome::Committed { wcc, .. }) => assert!(wcc.after.is_some()),
        other => panic!("{other:?}"),
    }
    for stability in [Stability::Unstable, Stability::DataSync, Stability::FileSync] {
        match d.run(&me, &Operation::Write { object: file, offset: 0, data: View::from(&b"s"[..]), stability }) {
            Ok(Outcome::Written { stability: done, count: 1, .. }) => assert!(done >= stability),
            other => panic!("{other:?}"),
        }
    }
}

fn create(d: &mut Driver<'_>, dir: ObjectId) {
    let me = root_user();
    let changes = AttributeChanges { mode: Some(0o640), ..Default::default() };
    let make = |name, how| Operation::Create { directory: dir, name, how };
    let (first, attributes) = d.made(&me, &make(b"a", CreateHow::Unchecked(changes)));
    assert_eq!((attributes.kind, attributes.mode, attributes.links, attributes.size), (ObjectKind::File, 0o640, 1, 0));
    d.write(&me, first, 0, b"hello").unwrap();
    // UNCHECKED on an existing file: the same file, of which only the size may change.
    let other = AttributeChanges { mode: Some(0o777), ..Default::default() };
    let (again, attributes) = d.made(&me, &make(b"a", CreateHow::Unchecked(other)));
    assert_eq!((again, attributes.mode, attributes.size), (first, 0o640, 5));
    let empty = AttributeChanges { size: Some(0), ..Default::default() };
    assert_eq!(d.made(&me, &make(b"a", CreateHow::Unchecked(empty))).1.size, 0);
    assert_eq!(d.status(&me, &make(b"a", CreateHow::Guarded(changes))), Some(Status::Exists));
    // EXCLUSIVE: the same verifier finds the same file, another finds it taken.
    let (exclusive, _) = d.made(&me, &make(b"x", CreateHow::Exclusive(*b"verifier")));
    assert_eq!(d.made(&me, &make(b"x", CreateHow::Exclusive(*b"verifier"))).0, exclusive);
    assert_eq!(d.status(&me, &make(b"x", CreateHow::Exclusive(*b"other123"))), Some(Status::Exists));
    assert_eq!(d.status(&me, &make(b"a", CreateHow::Exclusive(*b"verifier"))), Some(Status::Exists));
    // Not in a file.
    let in_file = Operation::Create { directory: first, name: b"n", how: CreateHow::Guarded(changes) };
    assert_eq!(d.status(&me, &in_file), Some(Status::NotDirectory));
    assert_eq!(d.lookup(dir, b"nothing"), Err(Status::NoEntry));
    assert_eq!(d.lookup(first, b"nothing"), Err(Status::NotDirectory));
    assert_eq!(d.lookup(dir, b"."), Ok(dir));
    let sub = d.directory(&me, dir, b"sub", 0o755);
    assert_eq!(d.lookup(sub, b".."), Ok(dir));
    let root = d.root();
    assert_eq!(d.lookup(root, b".."), Ok(root), "nothing lies above the root");
}

fn links(d: &mut Driver<'_>, dir: ObjectId) {
    let me = root_user();
    let file = d.file(&me, dir, b"f", 0o644);
    let sub = d.directory(&me, dir, b"sub", 0o755);
    match d.run(&me, &Operation::Link { object: file, directory: sub, name: b"g" }) {
        Ok(Outcome::Linked { attributes: Some(attributes), .. }) => assert_eq!(attributes.links, 2),
        other => panic!("{other:?}"),
    }
    assert_eq!(d.lookup(sub, b"g"), Ok(file));
    assert_eq!(d.status(&me, &Operation::Link { object: file, directory: sub, name: b"g" }), Some(Status::Exists));
    assert_eq!(d.status(&me, &Operation::Link { object: sub, directory: dir, name: b"h" }), Some(Status::IsDirectory));
    d.write(&me, file, 0, b"shared").unwrap();
    assert_eq!(d.remove(dir, b"f"), None);
    assert_eq!(d.attributes(file).links, 1);
    assert_eq!(d.read(&me, file, 0, 10), Ok((b"shared".to_vec(), true)));
    let target = b"../some/where";
    let symlink = Operation::Symlink { directory: dir, name: b"s", target, attributes: AttributeChanges::default() };
    let (link, attributes) = d.made(&me, &symlink);
    assert_eq!((attributes.kind, attributes.size), (ObjectKind::Symlink, target.len() as u64));
    match d.run(&me, &Operation::ReadLink { object: link }) {
        Ok(Outcome::LinkTarget { target: found, .. }) => assert_eq!(found, target),
        other => panic!("{other:?}"),
    }
    assert_eq!(d.status(&me, &Operation::ReadLink { object: file }), Some(Status::InvalidArgument));
    assert_eq!(d.status(&me, &symlink), Some(Status::Exists));
    assert_eq!(d.read(&me, link, 0, 1), Err(Status::InvalidArgument));
    assert_eq!(d.remove(dir, b"s"), None);
}

fn rename(d: &mut Driver<'_>, dir: ObjectId) {
    let me = root_user();
    let a = d.directory(&me, dir, b"a", 0o755);
    let b = d.directory(&me, a, b"b", 0o755);
    let file = d.file(&me, a, b"f", 0o644);
    assert_eq!(d.rename((a, b"f"), (b, b"g")), None);
    assert_eq!((d.lookup(b, b"g"), d.lookup(a, b"f")), (Ok(file), Err(Status::NoEntry)));
    assert_eq!(d.rename((a, b"f"), (b, b"h")), Some(Status::NoEntry));
    // Over an existing file: that one is gone, its identity never comes back.
    let victim = d.file(&me, a, b"v", 0o644);
    assert_eq!(d.rename((b, b"g"), (a, b"v")), None);
    assert_eq!(d.lookup(a, b"v"), Ok(file));
    assert_eq!(d.status(&me, &Operation::GetAttributes { object: victim }), Some(Status::Stale));
    // Into itself, over a parent, over the other kind, over something that is not empty.
    assert_eq!(d.rename((dir, b"a"), (b, b"x")), Some(Status::InvalidArgument));
    assert_eq!(d.rename((a, b"b"), (dir, b"a")), Some(Status::NotEmpty));
    let empty = d.directory(&me, dir, b"empty", 0o755);
    assert_eq!(d.rename((a, b"v"), (dir, b"empty")), Some(Status::IsDirectory));
    assert_eq!(d.rename((dir, b"empty"), (a, b"v")), Some(Status::NotDirectory));
    assert_eq!(d.rename((dir, b"empty"), (dir, b"a")), Some(Status::NotEmpty));
    // A directory over an empty one, into another parent: link counts and ".." follow.
    let links = |d: &mut Driver<'_>, object| d.attributes(object).links;
    let before = (links(d, dir), links(d, a));
    assert_eq!(d.rename((a, b"b"), (dir, b"empty")), None);
    assert_eq!((links(d, dir), links(d, a)), (before.0, before.1 - 1));
    assert_eq!(d.lookup(b, b".."), Ok(dir));
    assert_eq!(d.status(&me, &Operation::GetAttributes { object: empty }), Some(Status::Stale));
    // Onto itself, and onto another name of the same file: nothing happens.
    assert_eq!(d.rename((a, b"v"), (a, b"v")), None);
    d.run(&me, &Operation::Link { object: file, directory: a, name: b"w" }).unwrap();
    assert_eq!(d.rename((a, b"v"), (a, b"w")), None);
    assert_eq!((d.lookup(a, b"v"), d.lookup(a, b"w")), (Ok(file), Ok(file)));
}

fn removal(d: &mut Driver<'_>, dir: ObjectId) {
    let me = root_user();
    let file = d.file(&me, dir, b"f", 0o644);
    let sub = d.directory(&me, dir, b"sub", 0o755);
    d.file(&me, sub, b"in", 0o644);
    let rmdir = |name| Operation::RemoveDirectory { directory: dir, name };
    assert_eq!(d.status(&me, &rmdir(b"f")), Some(Status::NotDirectory));
    assert_eq!(d.status(&me, &rmdir(b"sub")), Some(Status::NotEmpty));
    assert_eq!(d.status(&me, &rmdir(b"none")), Some(Status::NoEntry));
    assert_eq!(d.remove(dir, b"none"), Some(Status::NoEntry));
    assert_eq!(d.remove(dir, b"sub"), Some(Status::IsDirectory));
    let links = d.attributes(dir).links;
    assert_eq!(d.remove(sub, b"in"), None);
    assert_eq!(d.status(&me, &rmdir(b"sub")), None);
    assert_eq!(d.attributes(dir).links, links - 1);
    assert_eq!(d.remove(dir, b"f"), None);
    for gone in [file, sub] {
        assert_eq!(d.status(&me, &Operation::GetAttributes { object: gone }), Some(Status::Stale));
    }
    assert_eq!(d.read(&me, file, 0, 1), Err(Status::Stale));
    // New objects may get the old numbers, never the old identities.
    for i in 0..10u8 {
        let name = [b'n', b'0' + i];
        let new = d.file(&me, dir, &name, 0o644);
        assert!(new != file && new != sub);
    }
}

fn attributes(d: &mut Driver<'_>, dir: ObjectId) {
    let me = root_user();
    let file = d.file(&me, dir, b"f", 0o600);
    let time = |seconds| Timestamp { seconds, nanoseconds: 5000 };
    let changes = AttributeChanges {
        mode: Some(0o4751),
        uid: Some(1000),
        gid: Some(1001),
        size: Some(7),
        accessed: Some(SetTime::To(time(100))),
        modified: Some(SetTime::To(time(200))),
    };
    // chown takes the set-user-id bit away (chown(2)).
    match d.run(&me, &Operation::SetAttributes { object: file, changes, guard: None }) {
        Ok(Outcome::Changed { wcc: Wcc { after: Some(after), .. } }) => {
            assert_eq!((after.mode, after.uid, after.gid, after.size), (0o751, 1000, 1001, 7));
            assert_eq!((after.accessed, after.modified), (time(100), time(200)));
        }
        other => panic!("{other:?}"),
    }
    let before = d.attributes(file);
    let chmod = AttributeChanges { mode: Some(0o644), ..Default::default() };
    let guarded = |guard| Operation::SetAttributes { object: file, changes: chmod, guard: Some(guard) };
    assert_eq!(d.status(&me, &guarded(time(1))), Some(Status::NotSync));
    assert_eq!(d.attributes(file), before);
    assert_eq!(d.status(&me, &guarded(before.changed)), None);
    let after = d.attributes(file);
    assert_eq!((after.mode, after.modified), (0o644, before.modified));
    let touch = AttributeChanges { modified: Some(SetTime::ServerTime), ..Default::default() };
    d.run(&me, &Operation::SetAttributes { object: file, changes: touch, guard: None }).unwrap();
    assert!(d.attributes(file).modified > before.modified);
    let resize = AttributeChanges { size: Some(0), ..Default::default() };
    let on_directory = Operation::SetAttributes { object: dir, changes: resize, guard: None };
    assert_eq!(d.status(&me, &on_directory), Some(Status::IsDirectory));
    assert!(matches!(
        d.run(&me, &Operation::FileSystemStatus { object: dir }),
        Ok(Outcome::FileSystemStatus { status, .. }) if status.bytes_total >= status.bytes_available
    ));
    assert!(matches!(
        d.run(&me, &Operation::PathLimits { object: dir }),
        Ok(Outcome::PathLimits { limits, .. }) if limits.name_max as usize <= NAME_MAX && limits.links_max > 1
    ));
}

fn permissions(d: &mut Driver<'_>, dir: ObjectId) {
    let (root, alice, bob) = (root_user(), user(1000, 100), user(1001, 101));
    let denied = Some(Status::AccessDenied);
    let home = d.directory(&alice, dir, b"home", 0o755);
    let secret = d.file(&alice, home, b"secret", 0o600);
    assert_eq!((d.attributes(secret).uid, d.attributes(secret).gid), (1000, 100));
    d.write(&alice, secret, 0, b"mine").unwrap();
    assert_eq!(d.read(&bob, secret, 0, 4), Err(Status::AccessDenied));
    assert_eq!(d.write(&bob, secret, 0, b"x"), Err(Status::AccessDenied));
    let create = |name| Operation::Create { directory: home, name, how: CreateHow::Guarded(AttributeChanges::default()) };
    assert_eq!(d.status(&bob, &create(b"n")), denied);
    assert_eq!(d.status(&bob, &Operation::Remove { directory: home, name: b"secret" }), denied);
    let chmod = AttributeChanges { mode: Some(0), ..Default::default() };
    let set = Operation::SetAttributes { object: secret, changes: chmod, guard: None };
    assert_eq!(d.status(&bob, &set), Some(Status::NotOwner));
    assert_eq!(d.status(&alice, &set), None);
    assert_eq!(d.read(&alice, secret, 0, 4), Ok((b"mine".to_vec(), true)), "the owner had it open");
    let ask =
        |d: &mut Driver<'_>, caller: &Credential, object| match d.run(caller, &Operation::Access { object, mask: access::ALL }) {
            Ok(Outcome::Granted { mask, .. }) => mask,
            other => panic!("{other:?}"),
        };
    assert_eq!(ask(d, &bob, home), access::READ | access::LOOKUP);
    assert_eq!(ask(d, &alice, secret), 0);
    assert_eq!(ask(d, &root, secret), access::READ | access::MODIFY | access::EXTEND);
    // A directory nobody else may search or list.
    let closed = d.directory(&alice, dir, b"closed", 0o700);
    d.file(&alice, closed, b"f", 0o666);
    assert_eq!(d.status(&bob, &Operation::Lookup { directory: closed, name: b"f" }), denied);
    let (cookie, verifier, with_attributes) = (0, [0; 8], false);
    let (bytes_max, entries_max) = (4096, 100);
    let list = Operation::ReadDirectory { directory: closed, cookie, verifier, bytes_max, entries_max, with_attributes };
    assert_eq!(d.status(&bob, &list), denied);
    // One that may be listed and not searched gives its names away, and no handles.
    let listed = d.directory(&alice, dir, b"listed", 0o744);
    d.file(&alice, listed, b"f", 0o666);
    let list = Operation::ReadDirectory { directory: listed, cookie, verifier, bytes_max, entries_max, with_attributes: true };
    match d.run(&bob, &list) {
        Ok(Outcome::Entries { entries, .. }) => {
            assert!(entries.iter().any(|entry| &entry.name[..] == b"f"), "{entries:?}");
            assert!(entries.iter().all(|entry| entry.object.is_none()), "{entries:?}");
        }
        other => panic!("{other:?}"),
    }
    // A sticky directory: only owners remove.
    let shared = d.directory(&root, dir, b"tmp", 0o1777);
    d.file(&alice, shared, b"f", 0o666);
    assert_eq!(d.status(&bob, &Operation::Remove { directory: shared, name: b"f" }), Some(Status::NotOwner));
    assert_eq!(d.status(&alice, &Operation::Remove { directory: shared, name: b"f" }), None);
    // A set-group-id directory hands its group on.
    let group = d.directory(&root, dir, b"group", 0o2777);
    let inherited = d.file(&bob, group, b"f", 0o644);
    let parent_gid = d.attributes(group).gid;
    assert_eq!(d.attributes(inherited).gid, parent_gid);
    // An ordinary user's write takes the set-user-id bit away.
    let program = d.file(&bob, dir, b"program", 0o4777);
    assert_eq!(d.attributes(program).mode, 0o4777);
    d.write(&alice, program, 0, b"new").unwrap();
    assert_eq!(d.attributes(program).mode, 0o777);
    // Who may write may empty a file, and touch it, without owning it: O_TRUNC comes as a size and a time (RFC 1813 section 3.3.2).
    let shared = d.file(&alice, dir, b"shared", 0o666);
    d.write(&alice, shared, 0, b"content").unwrap();
    let now = AttributeChanges { modified: Some(SetTime::ServerTime), ..Default::default() };
    for changes in
        [AttributeChanges { size: Some(0), ..now }, now, AttributeChanges { accessed: now.modified, modified: None, ..now }]
    {
        let before = d.attributes(shared);
        assert_eq!(d.status(&bob, &Operation::SetAttributes { object: shared, changes, guard: None }), None, "{changes:?}");
        let after = d.attributes(shared);
        assert_eq!((after.uid, after.mode, after.size), (1000, 0o666, 0));
        assert!(after.changed >= before.changed && (changes.modified.is_none() || after.modified >= before.modified));
    }
    let program = d.file(&alice, dir, b"shared program", 0o4777);
    let changes = AttributeChanges { size: Some(3), ..Default::default() };
    assert_eq!(d.status(&bob, &Operation::SetAttributes { object: program, changes, guard: None }), None);
    assert_eq!((d.attributes(program).size, d.attributes(program).mode), (3, 0o777));
    // Not to any other time, nor what may only be read.
    let then = AttributeChanges { modified: Some(SetTime::To(Timestamp { seconds: 1, nanoseconds: 0 })), ..Default::default() };
    assert_eq!(d.status(&bob, &Operation::SetAttributes { object: shared, changes: then, guard: None }), Some(Status::NotOwner));
    let readable = d.file(&alice, dir, b"readable", 0o644);
    assert_eq!(d.status(&bob, &Operation::SetAttributes { object: readable, changes: now, guard: None }), denied);
}

fn listing(d: &mut Driver<'_>, dir: ObjectId) {
    let me = root_user();
    let mut expected: BTreeMap<Vec<u8>, ObjectId> = BTreeMap::new();
    for i in 0..300 {
        let name = format!("entry-{i}").into_bytes();
        let id = d.file(&me, dir, &name, 0o644);
        expected.insert(name, id);
    }
    for bytes_max in [40, 333, 100_000] {
        for with_attributes in [false, true] {
            let entries = d.list(dir, bytes_max, with_attributes);
            let names: Vec<&[u8]> = entries.iter().map(|entry| &entry.name[..]).collect();
            assert_eq!(entries.len(), 302, "all, \".\", \"..\", each once");
            assert!(names.contains(&&b"."[..]) && names.contains(&&b".."[..]));
            for entry in &entries {
                match (expected.get(&entry.name[..]), &entry.object) {
                    (Some(id), Some((object, attributes))) => {
                        assert_eq!((object, attributes.file_id), (id, entry.file_id));
                    }
                    (_, object) => assert!(!with_attributes || object.is_some() || entry.name[0] == b'.'),
                }
            }
        }
    }
    // Removing what was listed neither hides nor repeats what was not.
    let (cookie, verifier, bytes_max, entries_max, with_attributes) = (0, [0; 8], 100_000, 100, false);
    let list = Operation::ReadDirectory { directory: dir, cookie, verifier, bytes_max, entries_max, with_attributes };
    let Ok(Outcome::Entries { entries, verifier, end: false, .. }) = d.run(&me, &list) else { panic!("a first page") };
    assert_eq!(entries.len(), 100, "entries_max");
    let cookie = entries[99].cookie;
    for entry in entries.iter().filter(|entry| entry.name[0] != b'.') {
        assert_eq!(d.remove(dir, &entry.name), None);
        expected.remove(&entry.name[..]);
    }
    let list = Operation::ReadDirectory { directory: dir, cookie, verifier, bytes_max, entries_max: u32::MAX, with_attributes };
    let Ok(Outcome::Entries { entries, end: true, .. }) = d.run(&me, &list) else { panic!("the rest") };
    let mut rest: Vec<Vec<u8>> = entries.iter().map(|entry| entry.name.to_vec()).collect();
    rest.retain(|name| name != b"." && name != b"..");
    rest.sort();
    assert_eq!(rest, expected.into_keys().collect::<Vec<_>>());
    let in_file = d.file(&me, dir, b"f", 0o644);
    let wrong = Operation::ReadDirectory { directory: in_file, cookie: 0, verifier, bytes_max, entries_max, with_attributes };
    assert_eq!(d.status(&me, &wrong), Some(Status::NotDirectory));
}

fn limits(d: &mut Driver<'_>, dir: ObjectId) {
    let me = root_user();
    let longest = [b'n'; NAME_MAX];
    let file = d.file(&me, dir, &longest, 0o644);
    assert_eq!(d.lookup(dir, &longest), Ok(file));
    assert_eq!(d.list(dir, 4096, true).len(), 3);
    assert_eq!(d.lookup(dir, &[b'n'; NAME_MAX + 1]), Err(Status::NameTooLong));
    let odd: Vec<u8> = (1..=255u8).filter(|byte| *byte != b'/').take(200).collect();
    let file = d.file(&me, dir, &odd, 0o644);
    assert_eq!(d.lookup(dir, &odd), Ok(file), "names are bytes");
    let target = [b't'; LINK_TARGET_MAX];
    let symlink = Operation::Symlink { directory: dir, name: b"s", target: &target, attributes: AttributeChanges::default() };
    let (link, _) = d.made(&me, &symlink);
    match d.run(&me, &Operation::ReadLink { object: link }) {
        Ok(Outcome::LinkTarget { target: found, .. }) => assert_eq!(found, target),
        other => panic!("{other:?}"),
    }
}

fn nodes(d: &mut Driver<'_>, dir: ObjectId, devices: bool) {
    let me = root_user();
    let changes = AttributeChanges { mode: Some(0o644), ..Default::default() };
    let device = NodeKind::BlockDevice { major: 8, minor: 300 };
    let terminal = NodeKind::CharacterDevice { major: 5, minor: 1 };
    let mut kinds =
        vec![(&b"fifo"[..], NodeKind::Fifo, ObjectKind::Fifo, (0, 0)), (b"socket", NodeKind::Socket, ObjectKind::Socket, (0, 0))];
    if devices {
        kinds.push((b"block", device, ObjectKind::BlockDevice, (8, 300)));
        kinds.push((b"character", terminal, ObjectKind::CharacterDevice, (5, 1)));
    }
    for (name, kind, expected, numbers) in kinds {
        let make = Operation::MakeNode { directory: dir, name, kind, attributes: changes };
        let (node, attributes) = d.made(&me, &make);
        assert_eq!((attributes.kind, attributes.device, attributes.mode), (expected, numbers, 0o644));
        assert_eq!(d.read(&me, node, 0, 1), Err(Status::InvalidArgument));
        assert_eq!(d.status(&me, &make), Some(Status::Exists));
        assert_eq!(d.remove(dir, name), None);
    }
    let make = Operation::MakeNode { directory: dir, name: b"no", kind: device, attributes: changes };
    assert_eq!(d.status(&user(1000, 100), &make), Some(Status::NotOwner));
}
