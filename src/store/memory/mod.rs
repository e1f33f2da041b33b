//! A store that lives in memory: for tests and benchmarks, and the model the other store is tested against.
//!
//! - `inode`: objects, directories, the table of them, time stamps.
//! - `names`: operations on directories and what is in them.
//! - `data`: attributes, file data, status.
//!
//! Read first: RFC 1813 section 3 for what each operation does; `store::blocks` for why a READ's pages never change.
//!
//! Everything is under one lock that is held for one operation, never across I/O: there is none. What only looks (READ, which
//! takes page references, GETATTR, ACCESS) shares it with others that do, each core through a cache line of its own; what changes
//! something has it alone, a WRITE for one copy of its payload. Nothing survives the process: object identities carry the
//! `instance` number, so that handles of an earlier life are stale and not somebody else's file, and the write verifier is
//! the instance, so that clients write again what they had not committed.

mod data;
mod inode;
mod names;

use std::sync::{Arc, PoisonError};

use crossbeam::sync::{ShardedLock, ShardedLockReadGuard, ShardedLockWriteGuard};

use crate::buf::{PagePool, Slice};
use crate::counters;
use crate::store::{Credential, Failure, ObjectId, Operation, Outcome, Start, Store, Timestamp, Token};
use crate::time::Instant;

use inode::Table;

/// Most links an object may have unless Options say otherwise: what XFS allows.
pub const LINKS_MAX_DEFAULT: u32 = i32::MAX as u32;
/// Most directory entries in the store unless Options say otherwise.
pub const ENTRIES_MAX_DEFAULT: u64 = 4 << 20;
/// Largest size of a file, bytes: what a signed offset can name, as on Linux.
pub const FILE_SIZE_MAX: u64 = i64::MAX as u64;

/// Where a memory store takes its room and what it is called.
#[derive(Clone, Debug)]
pub struct Options {
    /// File data lives in its blocks. May be shared with others, who may then exhaust it.
    pub pool: PagePool,
    /// Most bytes of file data, counted in whole blocks.
    pub bytes_max: u64,
    /// Most directory entries, which bounds objects, names and link targets.
    pub entries_max: u64,
    /// Most links of one object.
    pub links_max: u32,
    /// fsid of every object: the export's number.
    pub file_system: u64,
    /// Differs from that of every earlier life of the same export (a start time will do): see the module.
    pub instance: u64,
    /// Permission bits of the root directory.
    pub root_mode: u32,
    pub root_uid: u32,
    pub root_gid: u32,
}

impl Options {
    /// A store over all of `pool` with an open root directory.
    pub fn new(pool: PagePool) -> Options {
        Options {
            bytes_max: pool.blocks() as u64 * pool.block_size() as u64,
            pool,
            entries_max: ENTRIES_MAX_DEFAULT,
            links_max: LINKS_MAX_DEFAULT,
            file_system: 1,
            instance: 1,
            root_mode: 0o777,
            root_uid: 0,
            root_gid: 0,
        }
    }
}

counters! {
    /// What one core's handle on a memory store counts.
    pub struct MemoryCounters {
        /// Operations answered.
        operations,
        /// Operations that failed.
        failures,
        /// Blocks whose old bytes were copied for a write because a reader or a send queue held their page.
        blocks_copied,
        /// Writes cut short or refused because the page pool or the byte budget was used up.
        out_of_space,
    }
}

struct Shared {
    table: ShardedLock<Table>,
}

impl Shared {
    // A panic while the table was locked is a bug that has been reported; each step leaves the table usable.
    fn look(&self) -> ShardedLockReadGuard<'_, Table> {
        self.table.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn change(&self) -> ShardedLockWriteGuard<'_, Table> {
        self.table.write().unwrap_or_else(PoisonError::into_inner)
    }

    fn change_at(&self, now: Instant) -> ShardedLockWriteGuard<'_, Table> {
        let mut table = self.change();
        table.tick(now);
        table
    }
}

/// The store itself; each core takes a handle.
#[derive(Clone)]
pub struct MemoryStore {
    shared: Arc<Shared>,
}

impl MemoryStore {
    /// An empty store. `wall` is the time of day at `now`. `None` if the pool cannot spare the one block of zeroes.
    pub fn new(options: Options, now: Instant, wall: Timestamp) -> Option<MemoryStore> {
        let table = ShardedLock::new(Table::new(options, now, wall)?);
        Some(MemoryStore { shared: Arc::new(Shared { table }) })
    }

    /// One core's way in.
    pub fn handle(&self) -> MemoryHandle {
        MemoryHandle { shared: Arc::clone(&self.shared), counters: MemoryCounters::default() }
    }

    /// Tells the time of day at `now` again (the host's clock was stepped). Time stamps never go back for that.
    pub fn set_wall_clock(&self, now: Instant, wall: Timestamp) {
        self.shared.change().set_wall_clock(now, wall);
    }
}

/// One core's handle on a `MemoryStore`. Answers everything at once.
pub struct MemoryHandle {
    shared: Arc<Shared>,
    counters: MemoryCounters,
}

impl Store for MemoryHandle {
    fn root(&self) -> ObjectId {
        self.shared.look().root()
    }

    fn start(
        &mut self,
        now: Instant,
        caller: &Credential,
        operation: &Operation<'_>,
        _token: Token,
        pages: &mut Vec<Slice>,
    ) -> Start {
        self.counters.operations += 1;
        let done = Start::Done(self.perform(now, caller, operation, pages));
        self.counters.failures += u64::from(matches!(done, Start::Done(Err(_))));
        done
    }

    fn expect_read(&self, object: &ObjectId, offset: u64) {
        // Somebody else's turn at the lock is not worth waiting for.
        if let Ok(table) = self.shared.table.try_read() {
            table.expect_read(*object, offset);
        }
    }

    fn poll_completion(&mut self, _now: Instant, _pages: &mut Vec<Slice>) -> Option<(Token, Result<Outcome, Failure>)> {
        None
    }

    fn parked(&self) -> usize {
        0
    }

    fn counters(&self) -> Option<&dyn counters::Counters> {
        Some(&self.counters)
    }
}

impl MemoryHandle {
    fn perform(
        &mut self,
        now: Instant,
        caller: &Credential,
        operation: &Operation<'_>,
        pages: &mut Vec<Slice>,
    ) -> Result<Outcome, Failure> {
        let look = || self.shared.look();
        let change = || self.shared.change_at(now);
        match *operation {
            Operation::Read { object, offset, count } => self.read(now, caller, (object, offset, count), pages),
            Operation::GetAttributes { object } => {
                let table = look();
                Ok(Outcome::Attributes(table.attributes(table.find(object)?)))
            }
            Operation::Access { object, mask } => look().access(caller, object, mask),
            Operation::ReadLink { object } => look().read_link(object),
            Operation::FileSystemStatus { object } => look().status(object),
            Operation::PathLimits { object } => look().path_limits(object),
            Operation::SetAttributes { object, changes, guard } => change().set_attributes(caller, object, &changes, guard),
            Operation::Lookup { directory, name } => look().lookup(caller, directory, name),
            Operation::Write { object, offset, data, stability } => {
                change().write(caller, object, offset, data, stability, &mut self.counters)
            }
            Operation::Create { directory, name, how } => change().create(caller, directory, name, &how),
            Operation::MakeDirectory { directory, name, attributes } => {
                change().make_directory(caller, directory, name, &attributes)
            }
            Operation::Symlink { directory, name, target, attributes } => {
                change().symlink(caller, directory, name, target, &attributes)
            }
            Operation::MakeNode { directory, name, kind, attributes } => {
                change().make_node(caller, directory, name, kind, &attributes)
            }
            Operation::Remove { directory, name } => change().remove(caller, directory, name),
            Operation::RemoveDirectory { directory, name } => change().remove_directory(caller, directory, name),
            Operation::Rename { from_directory, from_name, to_directory, to_name } => {
                change().rename(caller, (from_directory, from_name), (to_directory, to_name))
            }
            Operation::Link { object, directory, name } => change().link(caller, object, directory, name),
            Operation::ReadDirectory { directory, cookie, verifier, bytes_max, entries_max, with_attributes } => {
                let bounds = names::Bounds { bytes_max, entries_max, with_attributes };
                change().read_directory(caller, directory, cookie, verifier, bounds)
            }
            Operation::Commit { object, .. } => change().commit(caller, object),
        }
    }

    fn read(
        &self,
        now: Instant,
        caller: &Credential,
        (object, offset, count): (ObjectId, u64, u32),
        pages: &mut Vec<Slice>,
    ) -> Result<Outcome, Failure> {
        let mut outcome = self.shared.look().read(caller, object, offset, count, pages);
        // As with the relatime mount option: one stamp after each change is all that anybody asks of it.
        if let Ok(Outcome::Data { count: 1.., attributes, .. }) = &mut outcome
            && attributes.accessed <= attributes.modified
        {
            let mut table = self.shared.change_at(now);
            attributes.accessed = table.stamp_access(object).unwrap_or(attributes.accessed);
        }
        outcome
    }
}

#[cfg(test)]
mod tests;
