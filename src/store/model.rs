//! Random operations on a store, compared step by step with a model of a file system: a table of nodes, each a byte vector,
//! a map of names or a link target. Compiled for tests only; deterministic from its seed.

use std::collections::BTreeMap;

use super::conformance::{Driver, joined, root_user};
use super::*;
use crate::buf::View;

/// Names are drawn from few, so that operations meet.
const NAMES: [&[u8]; 6] = [b"a", b"b", b"c", b"d", b"e", b"long-name-that-is-not-so-short"];
/// Largest file, bytes: a few blocks of any block size tests use.
const SIZE_MAX: u64 = 300_000;
/// Readings kept to see that their pages never change.
const HELD_MAX: usize = 8;

enum Body {
    File(Vec<u8>),
    Directory { parent: usize, names: BTreeMap<Vec<u8>, usize> },
    Symlink(Vec<u8>),
}

struct Node {
    body: Body,
    mode: u32,
    links: u32,
    object: ObjectId,
}

/// SplitMix64 (Steele, Lea, Flood 2014).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }

    fn name(&mut self) -> &'static [u8] {
        NAMES[self.below(NAMES.len() as u64) as usize]
    }
}

struct Model<'d, 's> {
    driver: &'d mut Driver<'s>,
    random: Random,
    /// Live nodes by number; node 0 is the directory everything happens in.
    nodes: BTreeMap<usize, Node>,
    next: usize,
    removed: Vec<ObjectId>,
    held: Vec<(Vec<Slice>, Vec<u8>)>,
}

/// Runs `steps` random operations below a fresh directory called `name` in the root of the store.
pub fn random_operations(store: &mut dyn Store, name: &[u8], seed: u64, steps: u32, idle: &mut dyn FnMut()) {
    let mut driver = Driver::new(store, idle);
    let root = driver.root();
    let object = driver.directory(&root_user(), root, name, 0o755);
    let body = Body::Directory { parent: 0, names: BTreeMap::new() };
    let nodes = BTreeMap::from([(0, Node { body, mode: 0o755, links: 2, object })]);
    let random = Random(seed);
    let mut model = Model { driver: &mut driver, random, nodes, next: 1, removed: Vec::new(), held: Vec::new() };
    for step in 0..steps {
        model.step();
        if step % 64 == 63 {
            model.compare_all();
        }
    }
    model.compare_all();
}

impl Model<'_, '_> {
    fn run(&mut self, operation: &Operation<'_>) -> Result<Outcome, Status> {
        self.driver.run(&root_user(), operation).map_err(|failure| failure.status)
    }

    fn pick(&mut self, want: impl Fn(&Body) -> bool) -> Option<usize> {
        let fitting: Vec<usize> = self.nodes.iter().filter(|(_, node)| want(&node.body)).map(|(at, _)| *at).collect();
        (!fitting.is_empty()).then(|| fitting[self.random.below(fitting.len() as u64) as usize])
    }

    fn pick_directory(&mut self) -> usize {
        self.pick(|body| matches!(body, Body::Directory { .. })).expect("node 0 is a directory")
    }

    fn pick_file(&mut self) -> Option<usize> {
        self.pick(|body| matches!(body, Body::File(_)))
    }

    fn names(&self, directory: usize) -> &BTreeMap<Vec<u8>, usize> {
        match &self.nodes[&directory].body {
            Body::Directory { names, .. } => names,
            _ => panic!("not a directory"),
        }
    }

    fn names_mut(&mut self, directory: usize) -> &mut BTreeMap<Vec<u8>, usize> {
        match &mut self.nodes.get_mut(&directory).expect("live").body {
            Body::Directory { names, .. } => names,
            _ => panic!("not a directory"),
        }
    }

    fn is_directory(&self, node: usize) -> bool {
        matches!(self.nodes[&node].body, Body::Directory { .. })
    }

    fn links_mut(&mut self, node: usize) -> &mut u32 {
        &mut self.nodes.get_mut(&node).expect("live").links
    }

    fn step(&mut self) {
        match self.random.below(16) {
            0 | 1 => self.make(),
            2..=4 => self.write(),
            5 | 6 => self.read(),
            7 => self.truncate(),
            8 | 9 => self.rename(),
            10 => self.link(),
            11 => self.remove(),
            12 => self.remove_directory(),
            13 => self.chmod(),
            14 => self.lookup(),
            _ => self.stale(),
        }
    }

    fn make(&mut self) {
        let directory = self.pick_directory();
        let name = self.random.name();
        let object = self.nodes[&directory].object;
        let mode = self.random.below(0o1000) as u32;
        let attributes = AttributeChanges { mode: Some(mode), ..Default::default() };
        let kind = self.random.below(4);
        let operation = match kind {
            0 => Operation::MakeDirectory { directory: object, name, attributes },
            1 => Operation::Symlink { directory: object, name, target: b"to/nowhere", attributes },
            _ => Operation::Create { directory: object, name, how: CreateHow::Guarded(attributes) },
        };
        let result = self.run(&operation);
        if self.names(directory).contains_key(name) {
            assert_eq!(result, Err(Status::Exists));
            return;
        }
        let Ok(Outcome::Created { object, attributes, .. }) = result else { panic!("{result:?}") };
        assert!(!self.removed.contains(&object), "an identity came back");
        let (body, links, mode) = match kind {
            0 => (Body::Directory { parent: directory, names: BTreeMap::new() }, 2, mode),
            1 => (Body::Symlink(b"to/nowhere".to_vec()), 1, attributes.mode),
            _ => (Body::File(Vec::new()), 1, mode),
        };
        let number = self.next;
        self.next += 1;
        self.nodes.insert(number, Node { body, mode, links, object });
        self.names_mut(directory).insert(name.to_vec(), number);
        if kind == 0 {
            *self.links_mut(directory) += 1;
        }
    }

    fn write(&mut self) {
        let Some(file) = self.pick_file() else { return };
        let offset = self.random.below(SIZE_MAX / 2);
        let len_max = if self.random.below(4) == 0 { SIZE_MAX / 2 } else { 5000 };
        let len = self.random.below(len_max) as usize;
        let value = self.random.next() as u8;
        let data: Vec<u8> = (0..len).map(|i| value.wrapping_add((i % 7) as u8)).collect();
        let stability = [Stability::Unstable, Stability::DataSync, Stability::FileSync][self.random.below(3) as usize];
        let object = self.nodes[&file].object;
        let result = self.run(&Operation::Write { object, offset, data: View::from(&data[..]), stability });
        let Ok(Outcome::Written { count, .. }) = result else { panic!("{result:?}") };
        assert_eq!(count as usize, len);
        let Body::File(bytes) = &mut self.nodes.get_mut(&file).expect("live").body else { panic!("not a file") };
        let end = offset as usize + len;
        if len > 0 {
            bytes.resize(bytes.len().max(end), 0);
            bytes[offset as usize..end].copy_from_slice(&data);
        }
    }

    fn read(&mut self) {
        let Some(file) = self.pick_file() else { return };
        let offset = self.random.below(SIZE_MAX);
        let count = self.random.below(SIZE_MAX) as u32;
        let object = self.nodes[&file].object;
        let (bytes, end) = self.driver.read(&root_user(), object, offset, count).expect("readable");
        let Body::File(model) = &self.nodes[&file].body else { panic!("not a file") };
        let from = (offset as usize).min(model.len());
        let to = (from + count as usize).min(model.len());
        assert!(bytes == model[from..to], "bytes {from}..{to} of node {file}");
        assert_eq!(end, offset as usize + bytes.len() >= model.len());
        if self.held.len() == HELD_MAX {
            let (pages, expected) = self.held.remove(0);
            let seen = joined(&pages);
            assert!(seen == expected, "a held page changed");
        }
        self.held.push((std::mem::take(&mut self.driver.pages), bytes));
    }

    fn truncate(&mut self) {
        let Some(file) = self.pick_file() else { return };
        let size = self.random.below(SIZE_MAX);
        let changes = AttributeChanges { size: Some(size), ..Default::default() };
        let object = self.nodes[&file].object;
        self.run(&Operation::SetAttributes { object, changes, guard: None }).expect("truncated");
        if let Body::File(bytes) = &mut self.nodes.get_mut(&file).expect("live").body {
            bytes.resize(size as usize, 0);
        }
    }

    fn chmod(&mut self) {
        let node = self.pick(|body| !matches!(body, Body::Symlink(_))).expect("node 0");
        let mode = self.random.below(0o1000) as u32;
        let changes = AttributeChanges { mode: Some(mode), ..Default::default() };
        let object = self.nodes[&node].object;
        self.run(&Operation::SetAttributes { object, changes, guard: None }).expect("changed");
        self.nodes.get_mut(&node).expect("live").mode = mode;
    }

    fn lookup(&mut self) {
        let directory = self.pick_directory();
        let name = self.random.name();
        let found = self.driver.lookup(self.nodes[&directory].object, name);
        let expected = self.names(directory).get(name).map(|node| self.nodes[node].object);
        assert_eq!(found, expected.ok_or(Status::NoEntry));
    }

    fn stale(&mut self) {
        if let Some(&object) = self.removed.get(self.random.below(self.removed.len().max(1) as u64) as usize) {
            assert_eq!(self.run(&Operation::GetAttributes { object }), Err(Status::Stale));
        }
    }

    /// A node lost a name.
    fn unlinked(&mut self, node: usize) {
        let gone = if self.is_directory(node) { 2 } else { 1 };
        *self.links_mut(node) -= gone;
        if self.nodes[&node].links == 0
            && let Some(node) = self.nodes.remove(&node)
        {
            self.removed.push(node.object);
        }
    }

    fn remove(&mut self) {
        let directory = self.pick_directory();
        let name = self.random.name();
        let result = self.run(&Operation::Remove { directory: self.nodes[&directory].object, name }).map(|_| ());
        match self.names(directory).get(name).copied() {
            None => assert_eq!(result, Err(Status::NoEntry)),
            Some(node) if self.is_directory(node) => assert_eq!(result, Err(Status::IsDirectory)),
            Some(node) => {
                assert_eq!(result, Ok(()));
                self.names_mut(directory).remove(name);
                self.unlinked(node);
            }
        }
    }

    fn remove_directory(&mut self) {
        let directory = self.pick_directory();
        let name = self.random.name();
        let operation = Operation::RemoveDirectory { directory: self.nodes[&directory].object, name };
        let result = self.run(&operation).map(|_| ());
        match self.names(directory).get(name).copied() {
            None => assert_eq!(result, Err(Status::NoEntry)),
            Some(node) if !self.is_directory(node) => assert_eq!(result, Err(Status::NotDirectory)),
            Some(node) if !self.names(node).is_empty() => assert_eq!(result, Err(Status::NotEmpty)),
            Some(node) => {
                assert_eq!(result, Ok(()));
                self.names_mut(directory).remove(name);
                *self.links_mut(directory) -= 1;
                self.unlinked(node);
            }
        }
    }

    fn link(&mut self) {
        let directory = self.pick_directory();
        let name = self.random.name();
        let Some(file) = self.pick_file() else { return };
        let (object, into) = (self.nodes[&file].object, self.nodes[&directory].object);
        let result = self.run(&Operation::Link { object, directory: into, name }).map(|_| ());
        if self.names(directory).contains_key(name) {
            assert_eq!(result, Err(Status::Exists));
        } else {
            assert_eq!(result, Ok(()));
            self.names_mut(directory).insert(name.to_vec(), file);
            *self.links_mut(file) += 1;
        }
    }

    fn is_within(&self, mut inner: usize, outer: usize) -> bool {
        while inner != outer && inner != 0 {
            let Body::Directory { parent, .. } = &self.nodes[&inner].body else { panic!("not a directory") };
            inner = *parent;
        }
        inner == outer
    }

    fn rename_expected(&self, from: usize, child: Option<usize>, to: usize, target: Option<usize>) -> Result<(), Status> {
        let child = child.ok_or(Status::NoEntry)?;
        if self.is_directory(child) && self.is_within(to, child) {
            return Err(Status::InvalidArgument);
        }
        let Some(target) = target else { return Ok(()) };
        if self.is_directory(target) && self.is_within(from, target) {
            return Err(Status::NotEmpty);
        }
        match (self.is_directory(child), self.is_directory(target)) {
            _ if child == target => Ok(()),
            (true, false) => Err(Status::NotDirectory),
            (false, true) => Err(Status::IsDirectory),
            (true, true) if !self.names(target).is_empty() => Err(Status::NotEmpty),
            _ => Ok(()),
        }
    }

    fn rename(&mut self) {
        let (from, to) = (self.pick_directory(), self.pick_directory());
        let (from_name, to_name) = (self.random.name(), self.random.name());
        let (from_directory, to_directory) = (self.nodes[&from].object, self.nodes[&to].object);
        let result = self.run(&Operation::Rename { from_directory, from_name, to_directory, to_name }).map(|_| ());
        let child = self.names(from).get(from_name).copied();
        let target = self.names(to).get(to_name).copied();
        let expected = self.rename_expected(from, child, to, target);
        assert_eq!(result, expected);
        let (Ok(()), Some(child)) = (expected, child) else { return };
        if target == Some(child) {
            return;
        }
        self.names_mut(from).remove(from_name);
        if self.is_directory(child) {
            *self.links_mut(from) -= 1;
            *self.links_mut(to) += 1;
            if let Body::Directory { parent, .. } = &mut self.nodes.get_mut(&child).expect("live").body {
                *parent = to;
            }
        }
        if let Some(target) = target {
            if self.is_directory(target) {
                *self.links_mut(to) -= 1;
            }
            self.unlinked(target);
        }
        self.names_mut(to).insert(to_name.to_vec(), child);
    }

    /// Walks everything and compares.
    fn compare_all(&mut self) {
        let bytes_max = 64 + self.random.below(400) as u32;
        let numbers: Vec<usize> = self.nodes.keys().copied().collect();
        for number in numbers {
            let object = self.nodes[&number].object;
            let attributes = self.driver.attributes(object);
            let node = &self.nodes[&number];
            assert_eq!((attributes.mode, attributes.links), (node.mode, node.links), "node {number}");
            match &node.body {
                Body::File(bytes) => {
                    assert_eq!((attributes.kind, attributes.size), (ObjectKind::File, bytes.len() as u64));
                    let (found, end) = self.driver.read(&root_user(), object, 0, u32::MAX).expect("readable");
                    assert!(end && found == *bytes, "contents of node {number}");
                }
                Body::Symlink(target) => {
                    assert_eq!((attributes.kind, attributes.size), (ObjectKind::Symlink, target.len() as u64));
                }
                Body::Directory { names, .. } => {
                    assert_eq!(attributes.kind, ObjectKind::Directory);
                    let mut expected: Vec<(Vec<u8>, Option<ObjectId>)> =
                        names.iter().map(|(name, node)| (name.clone(), Some(self.nodes[node].object))).collect();
                    expected.sort_by(|a, b| a.0.cmp(&b.0));
                    let mut found: Vec<(Vec<u8>, Option<ObjectId>)> = self
                        .driver
                        .list(object, bytes_max, true)
                        .into_iter()
                        .map(|entry| (entry.name.to_vec(), entry.object.map(|(object, _)| object)))
                        .filter(|(name, _)| name != b"." && name != b"..")
                        .collect();
                    found.sort_by(|a, b| a.0.cmp(&b.0));
                    assert_eq!(found, expected, "names in node {number}");
                }
            }
        }
    }
}
