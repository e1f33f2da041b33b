//! Attributes, file data and status of the memory store.
//!
//! Read first: RFC 1813 sections 3.3.1, 3.3.2, 3.3.4 to 3.3.7, 3.3.18, 3.3.20, 3.3.21.

use super::inode::{Body, Table};
use super::{FILE_SIZE_MAX, MemoryCounters};
use crate::buf::{Slice, View};
use crate::store::permission;
use crate::store::{
    AttributeChanges, Credential, Failure, FileSystemStatus, NAME_MAX, ObjectId, ObjectKind, Outcome, PathLimits, SetTime,
    Stability, Status, Timestamp, Wcc,
};

/// What READ, WRITE and COMMIT answer to an object that is no regular file, as the Linux server does.
fn not_a_file(kind: ObjectKind) -> Status {
    if kind == ObjectKind::Directory { Status::IsDirectory } else { Status::InvalidArgument }
}

impl Table {
    pub fn set_attributes(
        &mut self,
        caller: &Credential,
        object: ObjectId,
        changes: &AttributeChanges,
        guard: Option<Timestamp>,
    ) -> Result<Outcome, Failure> {
        let ((), wcc) = self.with_wcc(object, |table, index| {
            // RFC 1813 section 3.3.2: the guard is compared before anything changes.
            if guard.is_some_and(|guard| guard != table.inode(index).changed) {
                return Err(Status::NotSync);
            }
            table.change(caller, index, changes)
        })?;
        Ok(Outcome::Changed { wcc })
    }

    /// Makes changes to attributes after checking that `caller` may.
    pub fn change(&mut self, caller: &Credential, index: u32, changes: &AttributeChanges) -> Result<(), Status> {
        if *changes == AttributeChanges::default() {
            return Ok(());
        }
        let changes = permission::may_change(&self.attributes(index), caller, changes)?;
        if let Some(size) = changes.size {
            self.resize(index, size)?;
        }
        let now = self.stamp();
        let inode = self.inode_mut(index);
        inode.mode = changes.mode.unwrap_or(inode.mode);
        inode.uid = changes.uid.unwrap_or(inode.uid);
        inode.gid = changes.gid.unwrap_or(inode.gid);
        let time = |set| match set {
            SetTime::ServerTime => now,
            SetTime::To(time) => time,
        };
        if changes.size.is_some() {
            inode.modified = now;
        }
        inode.accessed = changes.accessed.map_or(inode.accessed, time);
        inode.modified = changes.modified.map_or(inode.modified, time);
        inode.changed = now;
        Ok(())
    }

    fn resize(&mut self, index: u32, new_size: u64) -> Result<(), Status> {
        if new_size > FILE_SIZE_MAX {
            return Err(Status::FileTooLarge);
        }
        let block_size = self.options.pool.block_size();
        let kind = self.inode(index).kind();
        let Body::File { blocks, size, .. } = &mut self.inode_mut(index).body else { return Err(not_a_file(kind)) };
        let freed = if new_size < *size { blocks.truncate(block_size, new_size) } else { 0 };
        *size = new_size;
        self.blocks -= freed;
        Ok(())
    }

    pub fn access(&self, caller: &Credential, object: ObjectId, mask: u32) -> Result<Outcome, Failure> {
        let attributes = self.attributes(self.find(object)?);
        Ok(Outcome::Granted { mask: permission::granted(&attributes, caller, mask), attributes })
    }

    pub fn read_link(&self, object: ObjectId) -> Result<Outcome, Failure> {
        let index = self.find(object)?;
        let attributes = self.attributes(index);
        match &self.inode(index).body {
            Body::Symlink(target) => Ok(Outcome::LinkTarget { target: target.to_vec(), attributes }),
            _ => Err(self.failure(Status::InvalidArgument, index)),
        }
    }

    /// As the attributes were: `stamp_access` follows if they are `stale_access`.
    pub fn read(
        &self,
        caller: &Credential,
        object: ObjectId,
        offset: u64,
        count: u32,
        pages: &mut Vec<Slice>,
    ) -> Result<Outcome, Failure> {
        let index = self.find(object)?;
        let attributes = self.attributes(index);
        if attributes.kind != ObjectKind::File {
            return Err(self.failure(not_a_file(attributes.kind), index));
        }
        if let Err(status) = permission::may_read(&attributes, caller) {
            return Err(self.failure(status, index));
        }
        let left = attributes.size.saturating_sub(offset);
        let count = count.min(u32::try_from(left).unwrap_or(u32::MAX));
        if let Body::File { blocks, .. } = &self.inode(index).body
            && count > 0
        {
            blocks.read(offset, count, &self.zeroes, pages);
        }
        Ok(Outcome::Data { count, end_of_file: u64::from(count) >= left, attributes })
    }

    /// After a READ that found the time of the last access older than the last change; the new one, if the object is still there.
    pub fn stamp_access(&mut self, object: ObjectId) -> Option<Timestamp> {
        let index = self.find(object).ok()?;
        let now = self.stamp();
        self.inode_mut(index).accessed = now;
        Some(now)
    }

    /// A READ will probably come.
    pub fn expect_read(&self, object: ObjectId, offset: u64) {
        if let Ok(index) = self.find(object)
            && let Body::File { blocks, .. } = &self.inode(index).body
        {
            blocks.prefetch(self.options.pool.block_size(), offset);
        }
    }

    pub fn write(
        &mut self,
        caller: &Credential,
        object: ObjectId,
        offset: u64,
        data: View<'_>,
        stability: Stability,
        counters: &mut MemoryCounters,
    ) -> Result<Outcome, Failure> {
        let (count, wcc) = self.with_wcc(object, |table, index| {
            let attributes = table.attributes(index);
            if attributes.kind != ObjectKind::File {
                return Err(not_a_file(attributes.kind));
            }
            permission::may_write(&attributes, caller)?;
            // RFC 1813 section 3.3.7: a write of nothing succeeds after these checks and changes nothing.
            if data.is_empty() {
                return Ok(0);
            }
            let end = offset.checked_add(data.len() as u64).filter(|end| *end <= FILE_SIZE_MAX);
            if end.is_none() {
                return Err(Status::FileTooLarge);
            }
            let mode = permission::mode_after_write(&attributes, caller);
            table.write_blocks(index, offset, data, mode, counters)
        })?;
        // Memory is as stable as this store gets: COMMIT has nothing to do, and the verifier changes with the process.
        let stability = stability.max(Stability::FileSync);
        Ok(Outcome::Written { count, stability, verifier: self.verifier(), wcc })
    }

    fn write_blocks(
        &mut self,
        index: u32,
        offset: u64,
        data: View<'_>,
        mode: u32,
        counters: &mut MemoryCounters,
    ) -> Result<u32, Status> {
        let pool = self.options.pool.clone();
        let budget = self.options.bytes_max / pool.block_size() as u64;
        let blocks_left = budget.saturating_sub(self.blocks);
        let Body::File { blocks, size, .. } = &mut self.inode_mut(index).body else { return Err(Status::InvalidArgument) };
        let wrote = blocks.write(&pool, offset, data, blocks_left);
        if wrote.bytes > 0 {
            *size = (*size).max(offset + wrote.bytes as u64);
        }
        self.blocks += wrote.blocks_added;
        counters.blocks_copied += wrote.blocks_copied;
        counters.out_of_space += u64::from(wrote.bytes < data.len());
        if wrote.bytes == 0 {
            return Err(Status::NoSpace);
        }
        let now = self.stamp();
        let inode = self.inode_mut(index);
        inode.mode = mode;
        inode.modified = now;
        inode.changed = now;
        // A short count tells the client to go on from there (RFC 1813 section 3.3.7); the next one is told NOSPC.
        Ok(wrote.bytes as u32)
    }

    fn verifier(&self) -> [u8; 8] {
        self.options.instance.to_be_bytes()
    }

    pub fn commit(&mut self, caller: &Credential, object: ObjectId) -> Result<Outcome, Failure> {
        let ((), wcc) = self.with_wcc(object, |table, index| {
            let attributes = table.attributes(index);
            if attributes.kind != ObjectKind::File {
                return Err(not_a_file(attributes.kind));
            }
            permission::may_write(&attributes, caller)
        })?;
        Ok(Outcome::Committed { verifier: self.verifier(), wcc })
    }

    pub fn status(&self, object: ObjectId) -> Result<Outcome, Failure> {
        let attributes = self.attributes(self.find(object)?);
        let options = &self.options;
        let block_size = options.pool.block_size() as u64;
        let in_pool = (options.pool.blocks() - options.pool.outstanding().min(options.pool.blocks())) as u64 * block_size;
        let free = options.bytes_max.saturating_sub(self.blocks * block_size).min(in_pool);
        let files_free = options.entries_max.saturating_sub(self.entries);
        let status = FileSystemStatus {
            bytes_total: options.bytes_max,
            bytes_free: free,
            bytes_available: free,
            files_total: self.objects() + files_free,
            files_free,
            files_available: files_free,
        };
        Ok(Outcome::FileSystemStatus { status, attributes })
    }

    pub fn path_limits(&self, object: ObjectId) -> Result<Outcome, Failure> {
        let attributes = self.attributes(self.find(object)?);
        let limits = PathLimits { links_max: self.options.links_max, name_max: NAME_MAX as u32 };
        Ok(Outcome::PathLimits { limits, attributes })
    }

    /// wcc data of an object that did not change.
    pub fn unchanged(&self, index: u32) -> Wcc {
        Wcc { before: Some(self.pre(index)), after: Some(self.attributes(index)) }
    }
}
