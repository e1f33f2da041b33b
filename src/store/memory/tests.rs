use super::inode::Body;
use super::*;
use crate::store::conformance::{Driver, root_user};
use crate::store::{AttributeChanges, CreateHow, Status};
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

fn with_options(change: impl FnOnce(&mut Options)) -> MemoryStore {
    let mut options = Options::new(PagePool::anonymous(64, 4096).unwrap());
    change(&mut options);
    MemoryStore::new(options, Instant::ZERO, Timestamp { seconds: 1000, nanoseconds: 0 }).unwrap()
}

fn status(driver: &mut Driver<'_>, operation: &Operation<'_>) -> Option<Status> {
    driver.run(&root_user(), operation).err().map(|failure| failure.status)
}

fn create(directory: ObjectId, name: &[u8]) -> Operation<'_> {
    Operation::Create { directory, name, how: CreateHow::Guarded(AttributeChanges::default()) }
}

#[test]
fn the_byte_budget_ends_in_a_short_write_and_then_no_space() {
    let store = with_options(|options| options.bytes_max = 5 * 4096 + 100);
    let (mut handle, mut idle) = (store.handle(), || {});
    let mut driver = Driver::new(&mut handle, &mut idle);
    let root = driver.root();
    let file = driver.file(&root_user(), root, b"f", 0o644);
    assert_eq!(driver.write(&root_user(), file, 0, &[1; 4 * 4096]), Ok(4 * 4096));
    assert_eq!(driver.write(&root_user(), file, 4 * 4096, &[2; 3 * 4096]), Ok(4096), "whole blocks only");
    assert_eq!(driver.write(&root_user(), file, 5 * 4096, b"x"), Err(Status::NoSpace));
    assert_eq!(driver.write(&root_user(), file, 10, b"over"), Ok(4), "rewriting needs no space");
    let truncate = AttributeChanges { size: Some(4096), ..Default::default() };
    assert_eq!(status(&mut driver, &Operation::SetAttributes { object: file, changes: truncate, guard: None }), None);
    assert_eq!(driver.write(&root_user(), file, 5 * 4096, b"x"), Ok(1));
    assert_eq!(status(&mut driver, &Operation::Remove { directory: root, name: b"f" }), None);
    let Ok(Outcome::FileSystemStatus { status, .. }) = driver.run(&root_user(), &Operation::FileSystemStatus { object: root })
    else {
        panic!("no status")
    };
    assert_eq!((status.bytes_total, status.bytes_free), (5 * 4096 + 100, 5 * 4096 + 100), "all came back");
    assert_eq!(handle.counters.out_of_space, 2);
}

#[test]
fn an_exhausted_pool_is_no_space_and_changes_nothing() {
    let store = with_options(|options| options.pool = PagePool::anonymous(3, 4096).unwrap());
    let (mut handle, mut idle) = (store.handle(), || {});
    let mut driver = Driver::new(&mut handle, &mut idle);
    let root = driver.root();
    let file = driver.file(&root_user(), root, b"f", 0o644);
    assert_eq!(driver.write(&root_user(), file, 0, &[1; 2 * 4096]), Ok(2 * 4096));
    driver.read(&root_user(), file, 0, 8192).unwrap();
    let held = std::mem::take(&mut driver.pages);
    let before = driver.attributes(file);
    assert_eq!(driver.write(&root_user(), file, 1, b"x"), Err(Status::NoSpace), "copy on write needs a page");
    assert_eq!(driver.attributes(file), before);
    let truncate = AttributeChanges { size: Some(5), ..Default::default() };
    let set = Operation::SetAttributes { object: file, changes: truncate, guard: None };
    assert_eq!(status(&mut driver, &set), None, "truncating never needs one");
    assert_eq!(driver.read(&root_user(), file, 0, 100), Ok((vec![1; 5], true)));
    drop(held);
    driver.pages.clear();
    assert_eq!(driver.write(&root_user(), file, 1, b"x"), Ok(1));
}

#[test]
fn entries_and_links_have_an_end() {
    let store = with_options(|options| (options.entries_max, options.links_max) = (4, 3));
    let (mut handle, mut idle) = (store.handle(), || {});
    let mut driver = Driver::new(&mut handle, &mut idle);
    let root = driver.root();
    driver.directory(&root_user(), root, b"d", 0o755);
    let attributes = AttributeChanges::default();
    let mkdir = Operation::MakeDirectory { directory: root, name: b"e", attributes };
    assert_eq!(status(&mut driver, &mkdir), Some(Status::TooManyLinks), "the root has three: itself, its parent, d");
    let file = driver.file(&root_user(), root, b"f", 0o644);
    for name in [&b"g"[..], b"h"] {
        assert_eq!(status(&mut driver, &Operation::Link { object: file, directory: root, name }), None);
    }
    assert_eq!(status(&mut driver, &create(root, b"i")), Some(Status::NoSpace));
    assert_eq!(status(&mut driver, &Operation::Remove { directory: root, name: b"g" }), None);
    assert_eq!(status(&mut driver, &create(root, b"i")), None);
    assert_eq!(status(&mut driver, &Operation::Remove { directory: root, name: b"i" }), None);
    assert_eq!(status(&mut driver, &Operation::Link { object: file, directory: root, name: b"g" }), None);
    assert_eq!(status(&mut driver, &Operation::Remove { directory: root, name: b"d" }), Some(Status::IsDirectory));
    let rename = Operation::Rename { from_directory: root, from_name: b"h", to_directory: root, to_name: b"k" };
    assert_eq!(status(&mut driver, &rename), None, "moving a name needs no room");
    assert_eq!(status(&mut driver, &Operation::RemoveDirectory { directory: root, name: b"d" }), None);
    let more = Operation::Link { object: file, directory: root, name: b"l" };
    assert_eq!(status(&mut driver, &more), Some(Status::TooManyLinks));
}

#[test]
fn a_directory_of_100_000_entries_pages_by_cookie() {
    let store = with_options(|_| {});
    let (mut handle, mut idle) = (store.handle(), || {});
    let mut driver = Driver::new(&mut handle, &mut idle);
    let root = driver.root();
    let names: Vec<String> = (0..100_000).map(|i| format!("file-{i:06}")).collect();
    for name in &names {
        driver.run(&root_user(), &create(root, name.as_bytes())).unwrap();
    }
    let listed = driver.list(root, 4096, false);
    assert_eq!(listed.len(), 100_002);
    assert!(listed.iter().skip(2).zip(&names).all(|(entry, name)| entry.name[..] == *name.as_bytes()), "in order of making");
    assert!(listed.windows(2).all(|pair| pair[0].cookie < pair[1].cookie));
    // A seek to each cookie is a tree descent, not a walk: 100,000 walks would take minutes.
    let Ok(Outcome::Entries { verifier, .. }) = driver.run(
        &root_user(),
        &Operation::ReadDirectory {
            directory: root,
            cookie: 0,
            verifier: [0; 8],
            bytes_max: 100,
            entries_max: 1,
            with_attributes: false,
        },
    ) else {
        panic!("no entries")
    };
    for entry in &listed {
        let next = Operation::ReadDirectory {
            directory: root,
            cookie: entry.cookie,
            verifier,
            bytes_max: 100,
            entries_max: 1,
            with_attributes: true,
        };
        assert!(driver.run(&root_user(), &next).is_ok());
    }
}

#[test]
fn handles_of_an_earlier_life_are_stale() {
    let earlier = with_options(|options| options.instance = 1).handle().root();
    let later = with_options(|options| options.instance = 2);
    let (mut handle, mut idle) = (later.handle(), || {});
    let mut driver = Driver::new(&mut handle, &mut idle);
    assert_eq!(status(&mut driver, &Operation::GetAttributes { object: earlier }), Some(Status::Stale));
    let foreign = ObjectId::new(b"short").unwrap();
    assert_eq!(status(&mut driver, &Operation::GetAttributes { object: foreign }), Some(Status::BadHandle));
}

#[test]
fn time_stamps_go_on_when_the_clock_goes_back() {
    let store = with_options(|_| {});
    let (mut handle, mut idle) = (store.handle(), || {});
    let mut driver = Driver::new(&mut handle, &mut idle);
    let root = driver.root();
    driver.file(&root_user(), root, b"a", 0o644);
    let first = driver.attributes(root).changed;
    assert_eq!(first.seconds, 1000);
    store.set_wall_clock(Instant::from_millis(1), Timestamp { seconds: 500, nanoseconds: 0 });
    driver.file(&root_user(), root, b"b", 0o644);
    let second = driver.attributes(root).changed;
    assert!(second > first, "each change shows");
    store.set_wall_clock(Instant::from_millis(1), Timestamp { seconds: 2000, nanoseconds: 0 });
    driver.file(&root_user(), root, b"c", 0o644);
    assert_eq!(driver.attributes(root).changed.seconds, 2000);
}

#[test]
fn cores_see_one_file_system_and_whole_writes() {
    let store = store(256);
    let (mut handle, mut idle) = (store.handle(), || {});
    let mut driver = Driver::new(&mut handle, &mut idle);
    let root = driver.root();
    let file = driver.file(&root_user(), root, b"f", 0o644);
    driver.write(&root_user(), file, 0, &[0; 8192]).unwrap();
    std::thread::scope(|scope| {
        for core in 1..4u8 {
            let store = &store;
            scope.spawn(move || {
                let (mut handle, mut idle) = (store.handle(), || {});
                let mut driver = Driver::new(&mut handle, &mut idle);
                for _ in 0..300 {
                    driver.write(&root_user(), file, 0, &[core; 8192]).unwrap();
                    let (bytes, _) = driver.read(&root_user(), file, 0, 8192).unwrap();
                    assert!(bytes.iter().all(|byte| *byte == bytes[0]), "a torn write");
                }
            });
        }
    });
}

#[test]
fn a_slot_whose_generations_are_used_up_is_given_up() {
    let store = with_options(|_| {});
    let mut table = store.shared.change();
    let owner = crate::store::permission::Ownership { mode: 0, uid: 0, gid: 0 };
    let node = || Body::Node(crate::store::ObjectKind::Fifo, (0, 0));
    let first = table.insert(owner, 1, node());
    let stale = table.id(first);
    table.unlink(first);
    let second = table.insert(owner, 1, node());
    assert_eq!(first, second, "slots are used again");
    assert_eq!(table.find(stale), Err(Status::Stale));
    table.exhaust_generations(second);
    let last = table.id(second);
    table.unlink(second);
    let third = table.insert(owner, 1, node());
    assert_ne!(second, third);
    assert_eq!((table.find(last), table.objects()), (Err(Status::Stale), 2));
}
