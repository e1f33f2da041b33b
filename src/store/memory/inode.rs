//! Objects of the memory store: inodes, the table that names them, time stamps, wcc data.
//!
//! An `ObjectId` is (instance, slot, generation). A slot's generation grows each time its object goes away, so an identity
//! never comes to mean another object; a slot whose generation is used up is not used again.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::Options;
use crate::buf::Slice;
use crate::store::blocks::Blocks;
use crate::store::permission::Ownership;
use crate::store::{Attributes, Failure, ObjectId, ObjectKind, PreAttributes, Status, Timestamp, Wcc};
use crate::time::Instant;

const NANOS: u64 = 1_000_000_000;
const ID_LEN: usize = 16;
/// Cookie of the first entry that is not "." or "..".
pub const COOKIE_FIRST: u64 = 3;
/// What a directory entry counts towards the size of its directory, bytes.
const ENTRY_SIZE: u64 = 64;

/// The entries of a directory, by name and by cookie. A cookie is given out once and stays with its name.
pub struct Directory {
    pub parent: u32,
    pub names: BTreeMap<Arc<[u8]>, u64>,
    pub entries: BTreeMap<u64, (Arc<[u8]>, u32)>,
    next_cookie: u64,
}

impl Directory {
    pub fn new(parent: u32) -> Directory {
        Directory { parent, names: BTreeMap::new(), entries: BTreeMap::new(), next_cookie: COOKIE_FIRST }
    }

    pub fn get(&self, name: &[u8]) -> Option<u32> {
        let cookie = self.names.get(name)?;
        self.entries.get(cookie).map(|(_, index)| *index)
    }

    /// Adds an entry, or makes an existing one mean `index` (its cookie stays).
    pub fn put(&mut self, name: &[u8], index: u32) {
        if let Some(entry) = self.names.get(name).and_then(|cookie| self.entries.get_mut(cookie)) {
            entry.1 = index;
            return;
        }
        let name: Arc<[u8]> = Arc::from(name);
        self.names.insert(Arc::clone(&name), self.next_cookie);
        self.entries.insert(self.next_cookie, (name, index));
        self.next_cookie += 1;
    }

    pub fn take(&mut self, name: &[u8]) {
        if let Some(cookie) = self.names.remove(name) {
            self.entries.remove(&cookie);
        }
    }
}

pub enum Body {
    File {
        blocks: Blocks,
        size: u64,
        /// Verifier of the EXCLUSIVE create that made it.
        exclusive: Option<[u8; 8]>,
    },
    Directory(Directory),
    Symlink(Box<[u8]>),
    Node(ObjectKind, (u32, u32)),
}

pub struct Inode {
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    pub links: u32,
    pub accessed: Timestamp,
    pub modified: Timestamp,
    pub changed: Timestamp,
    pub body: Body,
}

impl Inode {
    pub fn kind(&self) -> ObjectKind {
        match &self.body {
            Body::File { .. } => ObjectKind::File,
            Body::Directory(_) => ObjectKind::Directory,
            Body::Symlink(_) => ObjectKind::Symlink,
            Body::Node(kind, _) => *kind,
        }
    }

    pub fn is_directory(&self) -> bool {
        matches!(self.body, Body::Directory(_))
    }
}

struct Slot {
    generation: u32,
    inode: Option<Inode>,
}

/// Every object of a store and what they share.
pub struct Table {
    slots: Vec<Slot>,
    free: Vec<u32>,
    slots_given_up: u64,
    pub options: Options,
    pub zeroes: Slice,
    /// Entries in all directories, "." and ".." apart.
    pub entries: u64,
    /// Blocks in all files.
    pub blocks: u64,
    /// Nanoseconds since the epoch at instant zero of the caller's clock; may lie before the epoch.
    wall_base: i128,
    now: Instant,
    last_stamp: Timestamp,
}

fn timestamp(nanos: i128) -> Timestamp {
    let nanos_per_second = i128::from(NANOS);
    Timestamp { seconds: nanos.div_euclid(nanos_per_second) as i64, nanoseconds: nanos.rem_euclid(nanos_per_second) as u32 }
}

impl Table {
    pub fn new(options: Options, now: Instant, wall: Timestamp) -> Option<Table> {
        let mut zeroes = options.pool.allocate()?;
        zeroes.fill(0);
        let mut table = Table {
            slots: Vec::new(),
            free: Vec::new(),
            slots_given_up: 0,
            zeroes: zeroes.freeze(),
            entries: 0,
            blocks: 0,
            wall_base: 0,
            now,
            last_stamp: Timestamp::default(),
            options,
        };
        table.set_wall_clock(now, wall);
        let Options { root_mode: mode, root_uid: uid, root_gid: gid, .. } = table.options;
        table.insert(Ownership { mode, uid, gid }, 2, Body::Directory(Directory::new(0)));
        Some(table)
    }

    pub fn set_wall_clock(&mut self, now: Instant, wall: Timestamp) {
        let wall = i128::from(wall.seconds) * i128::from(NANOS) + i128::from(wall.nanoseconds);
        self.wall_base = wall - i128::from(now.nanos());
        self.now = now;
    }

    pub fn tick(&mut self, now: Instant) {
        // Another core may have read the clock a moment later.
        self.now = self.now.max(now);
    }

    /// The time of day, but always later than the time before: clients see every change (RFC 1813 section 2.6, wcc).
    pub fn stamp(&mut self) -> Timestamp {
        let wall = timestamp(self.wall_base + i128::from(self.now.nanos()));
        let last = self.last_stamp;
        let next = if last.nanoseconds + 1 < NANOS as u32 {
            Timestamp { nanoseconds: last.nanoseconds + 1, ..last }
        } else {
            Timestamp { seconds: last.seconds + 1, nanoseconds: 0 }
        };
        self.last_stamp = wall.max(next);
        self.last_stamp
    }

    pub fn root(&self) -> ObjectId {
        self.id(0)
    }

    pub fn id(&self, index: u32) -> ObjectId {
        let mut bytes = [0; ID_LEN];
        bytes[..8].copy_from_slice(&self.options.instance.to_be_bytes());
        bytes[8..12].copy_from_slice(&index.to_be_bytes());
        bytes[12..].copy_from_slice(&self.slots[index as usize].generation.to_be_bytes());
        ObjectId::new(&bytes).expect("16 bytes fit in an ObjectId")
    }

    /// The slot of a live object. An identity of another life or of a removed object is stale; one that this kind of store
    /// never gave out is a bad handle.
    pub fn find(&self, id: ObjectId) -> Result<u32, Status> {
        let bytes: &[u8; ID_LEN] = id.as_bytes().try_into().map_err(|_| Status::BadHandle)?;
        let number = u128::from_be_bytes(*bytes);
        let (instance, index, generation) = ((number >> 64) as u64, (number >> 32) as u32, number as u32);
        if instance != self.options.instance {
            return Err(Status::Stale);
        }
        match self.slots.get(index as usize) {
            Some(Slot { generation: now, inode: Some(_) }) if *now == generation => Ok(index),
            _ => Err(Status::Stale),
        }
    }

    /// The inode at a slot that `find` or a directory entry named. Both name only live objects: an entry's object has a link.
    pub fn inode(&self, index: u32) -> &Inode {
        self.slots[index as usize].inode.as_ref().expect("entries name live objects")
    }

    pub fn inode_mut(&mut self, index: u32) -> &mut Inode {
        self.slots[index as usize].inode.as_mut().expect("entries name live objects")
    }

    pub fn directory(&self, index: u32) -> Result<&Directory, Status> {
        match &self.inode(index).body {
            Body::Directory(directory) => Ok(directory),
            _ => Err(Status::NotDirectory),
        }
    }

    pub fn directory_mut(&mut self, index: u32) -> Result<&mut Directory, Status> {
        match &mut self.inode_mut(index).body {
            Body::Directory(directory) => Ok(directory),
            _ => Err(Status::NotDirectory),
        }
    }

    pub fn insert(&mut self, owner: Ownership, links: u32, body: Body) -> u32 {
        let now = self.stamp();
        let Ownership { mode, uid, gid } = owner;
        let inode = Inode { mode, uid, gid, links, accessed: now, modified: now, changed: now, body };
        if let Some(index) = self.free.pop() {
            self.slots[index as usize].inode = Some(inode);
            return index;
        }
        self.slots.push(Slot { generation: 1, inode: Some(inode) });
        // Bounded by `entries_max`, which `names` checks first; 4 G inodes do not fit in any memory.
        u32::try_from(self.slots.len() - 1).expect("fewer than 2^32 objects")
    }

    /// Takes a link away from an object that lost a name, and the object with the last one.
    pub fn unlink(&mut self, index: u32) {
        let now = self.stamp();
        let inode = self.inode_mut(index);
        inode.changed = now;
        // A directory has its name and its own "."; one name is all it can have.
        inode.links -= if inode.is_directory() { 2 } else { 1 };
        if inode.links > 0 {
            return;
        }
        if let Body::File { blocks, .. } = &inode.body {
            self.blocks -= blocks.count();
        }
        let slot = &mut self.slots[index as usize];
        slot.inode = None;
        if let Some(next) = slot.generation.checked_add(1) {
            slot.generation = next;
            self.free.push(index);
        } else {
            self.slots_given_up += 1;
        }
    }

    #[cfg(test)]
    pub fn exhaust_generations(&mut self, index: u32) {
        self.slots[index as usize].generation = u32::MAX;
    }

    /// Objects that live.
    pub fn objects(&self) -> u64 {
        // Slots are live, free, or (after 2^32 generations) given up.
        (self.slots.len() - self.free.len()) as u64 - self.slots_given_up
    }

    pub fn attributes(&self, index: u32) -> Attributes {
        let inode = self.inode(index);
        let block_size = self.options.pool.block_size() as u64;
        let (size, used, device) = match &inode.body {
            Body::File { blocks, size, .. } => (*size, blocks.count() * block_size, (0, 0)),
            Body::Directory(directory) => {
                let size = (directory.names.len() as u64 + 2) * ENTRY_SIZE;
                (size, size, (0, 0))
            }
            Body::Symlink(target) => (target.len() as u64, target.len() as u64, (0, 0)),
            Body::Node(_, device) => (0, 0, *device),
        };
        Attributes {
            kind: inode.kind(),
            mode: inode.mode,
            links: inode.links,
            uid: inode.uid,
            gid: inode.gid,
            size,
            used,
            device,
            file_system: self.options.file_system,
            file_id: u64::from(self.slots[index as usize].generation) << 32 | u64::from(index + 1),
            accessed: inode.accessed,
            modified: inode.modified,
            changed: inode.changed,
        }
    }

    pub fn pre(&self, index: u32) -> PreAttributes {
        PreAttributes::from(&self.attributes(index))
    }

    /// Runs `change` on one live object and wraps what comes of it in the object's wcc data.
    pub fn with_wcc<T>(
        &mut self,
        object: ObjectId,
        change: impl FnOnce(&mut Table, u32) -> Result<T, Status>,
    ) -> Result<(T, Wcc), Failure> {
        let index = self.find(object)?;
        let before = Some(self.pre(index));
        let result = change(self, index);
        let wcc = Wcc { before, after: Some(self.attributes(index)) };
        match result {
            Ok(value) => Ok((value, wcc)),
            Err(status) => Err(Failure { status, wcc: [wcc, Wcc::default()] }),
        }
    }

    /// A failure that tells what is known of one object.
    pub fn failure(&self, status: Status, index: u32) -> Failure {
        let wcc = Wcc { before: Some(self.pre(index)), after: Some(self.attributes(index)) };
        Failure { status, wcc: [wcc, Wcc::default()] }
    }
}
