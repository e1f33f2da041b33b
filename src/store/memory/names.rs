//! Directories of the memory store: making, finding, moving, removing and listing names.
//!
//! Read first: RFC 1813 sections 3.3.3, 3.3.8 to 3.3.17; rename(2), link(2), rmdir(2) for what the RFC leaves open.

use smallvec::SmallVec;

use super::inode::{Body, COOKIE_FIRST, Directory, Table};
use crate::store::blocks::Blocks;
use crate::store::permission;
use crate::store::{
    AttributeChanges, Attributes, CreateHow, Credential, DirectoryEntry, Failure, LINK_TARGET_MAX, NAME_MAX, NodeKind, ObjectId,
    ObjectKind, Outcome, SetTime, Status, Wcc,
};

/// Cookies of the entries every directory has.
const COOKIE_SELF: u64 = 1;
const COOKIE_PARENT: u64 = 2;
/// What an entry counts beside its name towards `bytes_max`, bytes (see `Operation::ReadDirectory`).
const ENTRY_OVERHEAD: u32 = 24;

/// How much one answer of READDIR may bring.
pub struct Bounds {
    pub bytes_max: u32,
    pub entries_max: u32,
    pub with_attributes: bool,
}

impl Table {
    pub fn lookup(&self, caller: &Credential, directory: ObjectId, name: &[u8]) -> Result<Outcome, Failure> {
        let parent = self.find(directory)?;
        let found = self.lookup_in(caller, parent, name).map_err(|status| self.failure(status, parent))?;
        let (object, attributes) = (self.id(found), self.attributes(found));
        Ok(Outcome::Found { object, attributes, directory: Some(self.attributes(parent)) })
    }

    fn lookup_in(&self, caller: &Credential, parent: u32, name: &[u8]) -> Result<u32, Status> {
        let directory = self.directory(parent)?;
        permission::may_search(&self.attributes(parent), caller)?;
        match name {
            b"." => Ok(parent),
            b".." => Ok(directory.parent),
            _ if name.len() > NAME_MAX => Err(Status::NameTooLong),
            _ => directory.get(name).ok_or(Status::NoEntry),
        }
    }

    /// Whether `caller` may add `name`, which must not be there.
    fn may_create(&self, caller: &Credential, parent: u32, name: &[u8]) -> Result<(), Status> {
        match self.lookup_in(caller, parent, name) {
            Ok(_) => return Err(Status::Exists),
            Err(Status::NoEntry) => {}
            Err(status) => return Err(status),
        }
        permission::may_add(&self.attributes(parent), caller)?;
        if self.entries >= self.options.entries_max {
            return Err(Status::NoSpace);
        }
        Ok(())
    }

    /// Adds a name for `child` and stamps the directory.
    fn add_name(&mut self, parent: u32, name: &[u8], child: u32) -> Result<(), Status> {
        self.directory_mut(parent)?.put(name, child);
        self.entries += 1;
        self.touch(parent);
        Ok(())
    }

    fn remove_name(&mut self, parent: u32, name: &[u8]) -> Result<(), Status> {
        self.directory_mut(parent)?.take(name);
        self.entries -= 1;
        self.touch(parent);
        Ok(())
    }

    /// The contents of a directory changed.
    fn touch(&mut self, directory: u32) {
        let now = self.stamp();
        let inode = self.inode_mut(directory);
        inode.modified = now;
        inode.changed = now;
    }

    /// Makes an object with `body` called `name`.
    fn make(
        &mut self,
        caller: &Credential,
        directory: ObjectId,
        name: &[u8],
        changes: &AttributeChanges,
        body: impl FnOnce(u32) -> Body,
    ) -> Result<Outcome, Failure> {
        let (child, directory) = self.with_wcc(directory, |table, parent| {
            table.may_create(caller, parent, name)?;
            table.make_in(caller, parent, name, changes, body(parent))
        })?;
        Ok(Outcome::Created { object: self.id(child), attributes: self.attributes(child), directory })
    }

    fn make_in(
        &mut self,
        caller: &Credential,
        parent: u32,
        name: &[u8],
        changes: &AttributeChanges,
        body: Body,
    ) -> Result<u32, Status> {
        let kind = match &body {
            Body::File { .. } => ObjectKind::File,
            Body::Directory(_) => ObjectKind::Directory,
            Body::Symlink(_) => ObjectKind::Symlink,
            Body::Node(kind, _) => *kind,
        };
        let is_directory = kind == ObjectKind::Directory;
        if is_directory && self.inode(parent).links >= self.options.links_max {
            return Err(Status::TooManyLinks);
        }
        let owner = permission::ownership(&self.attributes(parent), caller, kind, changes);
        let child = self.insert(owner, if is_directory { 2 } else { 1 }, body);
        self.add_name(parent, name, child)?;
        if is_directory {
            self.inode_mut(parent).links += 1;
        }
        let times = |set| if let Some(SetTime::To(time)) = set { Some(time) } else { None };
        let inode = self.inode_mut(child);
        inode.accessed = times(changes.accessed).unwrap_or(inode.accessed);
        inode.modified = times(changes.modified).unwrap_or(inode.modified);
        Ok(child)
    }

    pub fn create(&mut self, caller: &Credential, directory: ObjectId, name: &[u8], how: &CreateHow) -> Result<Outcome, Failure> {
        let (child, directory) = self.with_wcc(directory, |table, parent| {
            match table.lookup_in(caller, parent, name) {
                Ok(found) => return table.create_existing(caller, found, how).map(|()| found),
                Err(Status::NoEntry) => {}
                Err(status) => return Err(status),
            }
            table.may_create(caller, parent, name)?;
            let (changes, exclusive) = match how {
                CreateHow::Unchecked(changes) | CreateHow::Guarded(changes) => (*changes, None),
                CreateHow::Exclusive(verifier) => (AttributeChanges::default(), Some(*verifier)),
            };
            let body = Body::File { blocks: Blocks::default(), size: 0, exclusive };
            let child = table.make_in(caller, parent, name, &changes, body)?;
            // Creating with a size extends the empty file; its owner may.
            if changes.size.is_some_and(|size| size > 0) {
                let size = AttributeChanges { size: changes.size, ..Default::default() };
                if let Err(status) = table.change(caller, child, &size) {
                    table.remove_name(parent, name)?;
                    table.unlink(child);
                    return Err(status);
                }
            }
            Ok(child)
        })?;
        Ok(Outcome::Created { object: self.id(child), attributes: self.attributes(child), directory })
    }

    /// RFC 1813 section 3.3.8, the name exists: UNCHECKED takes the file as it is but for its size, GUARDED fails, EXCLUSIVE
    /// succeeds if the same request made the file.
    fn create_existing(&mut self, caller: &Credential, found: u32, how: &CreateHow) -> Result<(), Status> {
        let Body::File { exclusive, .. } = &self.inode(found).body else { return Err(Status::Exists) };
        match how {
            CreateHow::Unchecked(changes) => {
                let size = AttributeChanges { size: changes.size, ..Default::default() };
                self.change(caller, found, &size)
            }
            CreateHow::Exclusive(verifier) if *exclusive == Some(*verifier) => Ok(()),
            CreateHow::Guarded(_) | CreateHow::Exclusive(_) => Err(Status::Exists),
        }
    }

    pub fn make_directory(
        &mut self,
        caller: &Credential,
        directory: ObjectId,
        name: &[u8],
        changes: &AttributeChanges,
    ) -> Result<Outcome, Failure> {
        self.make(caller, directory, name, changes, |parent| Body::Directory(Directory::new(parent)))
    }

    pub fn symlink(
        &mut self,
        caller: &Credential,
        directory: ObjectId,
        name: &[u8],
        target: &[u8],
        changes: &AttributeChanges,
    ) -> Result<Outcome, Failure> {
        if target.is_empty() || target.len() > LINK_TARGET_MAX {
            let status = if target.is_empty() { Status::InvalidArgument } else { Status::NameTooLong };
            let parent = self.find(directory)?;
            return Err(self.failure(status, parent));
        }
        self.make(caller, directory, name, changes, |_| Body::Symlink(target.into()))
    }

    pub fn make_node(
        &mut self,
        caller: &Credential,
        directory: ObjectId,
        name: &[u8],
        kind: NodeKind,
        changes: &AttributeChanges,
    ) -> Result<Outcome, Failure> {
        if let Err(status) = permission::may_make_node(kind, caller) {
            let parent = self.find(directory)?;
            return Err(self.failure(status, parent));
        }
        let body = match kind {
            NodeKind::BlockDevice { major, minor } => Body::Node(ObjectKind::BlockDevice, (major, minor)),
            NodeKind::CharacterDevice { major, minor } => Body::Node(ObjectKind::CharacterDevice, (major, minor)),
            NodeKind::Socket => Body::Node(ObjectKind::Socket, (0, 0)),
            NodeKind::Fifo => Body::Node(ObjectKind::Fifo, (0, 0)),
        };
        self.make(caller, directory, name, changes, |_| body)
    }

    pub fn remove(&mut self, caller: &Credential, directory: ObjectId, name: &[u8]) -> Result<Outcome, Failure> {
        let ((), directory) = self.with_wcc(directory, |table, parent| {
            let child = table.lookup_in(caller, parent, name)?;
            permission::may_delete(&table.attributes(parent), &table.attributes(child), caller)?;
            if table.inode(child).is_directory() {
                return Err(Status::IsDirectory);
            }
            table.remove_name(parent, name)?;
            table.unlink(child);
            Ok(())
        })?;
        Ok(Outcome::Removed { directory })
    }

    pub fn remove_directory(&mut self, caller: &Credential, directory: ObjectId, name: &[u8]) -> Result<Outcome, Failure> {
        let ((), directory) = self.with_wcc(directory, |table, parent| {
            let child = table.lookup_in(caller, parent, name)?;
            permission::may_delete(&table.attributes(parent), &table.attributes(child), caller)?;
            if !table.directory(child)?.names.is_empty() {
                return Err(Status::NotEmpty);
            }
            table.remove_name(parent, name)?;
            table.inode_mut(parent).links -= 1;
            table.unlink(child);
            Ok(())
        })?;
        Ok(Outcome::Removed { directory })
    }

    pub fn link(&mut self, caller: &Credential, object: ObjectId, directory: ObjectId, name: &[u8]) -> Result<Outcome, Failure> {
        let child = self.find(object)?;
        let linked = self.with_wcc(directory, |table, parent| {
            if table.inode(child).is_directory() {
                return Err(Status::IsDirectory);
            }
            table.may_create(caller, parent, name)?;
            if table.inode(child).links >= table.options.links_max {
                return Err(Status::TooManyLinks);
            }
            table.add_name(parent, name, child)?;
            let now = table.stamp();
            let inode = table.inode_mut(child);
            inode.links += 1;
            inode.changed = now;
            Ok(())
        });
        match linked {
            Ok(((), directory)) => Ok(Outcome::Linked { attributes: Some(self.attributes(child)), directory }),
            Err(Failure { status, wcc: [directory, _] }) => Err(Failure { status, wcc: [self.unchanged(child), directory] }),
        }
    }

    pub fn rename(
        &mut self,
        caller: &Credential,
        (from_directory, from_name): (ObjectId, &[u8]),
        (to_directory, to_name): (ObjectId, &[u8]),
    ) -> Result<Outcome, Failure> {
        let from = self.find(from_directory)?;
        let to = match self.find(to_directory) {
            Ok(to) => to,
            Err(status) => return Err(self.failure(status, from)),
        };
        let before = (self.pre(from), self.pre(to));
        let result = self.rename_in(caller, from, from_name, to, to_name);
        let from = Wcc { before: Some(before.0), after: Some(self.attributes(from)) };
        let to = Wcc { before: Some(before.1), after: Some(self.attributes(to)) };
        match result {
            Ok(()) => Ok(Outcome::Renamed { from, to }),
            Err(status) => Err(Failure { status, wcc: [from, to] }),
        }
    }

    fn rename_in(&mut self, caller: &Credential, from: u32, from_name: &[u8], to: u32, to_name: &[u8]) -> Result<(), Status> {
        let child = self.lookup_in(caller, from, from_name)?;
        let target = match self.lookup_in(caller, to, to_name) {
            Ok(target) => Some(target),
            Err(Status::NoEntry) => None,
            Err(status) => return Err(status),
        };
        self.may_rename(caller, from, child, to, target)?;
        // rename(2): two names of one object: nothing happens.
        if target == Some(child) {
            return Ok(());
        }
        let is_directory = self.inode(child).is_directory();
        if is_directory && from != to && target.is_none() && self.inode(to).links >= self.options.links_max {
            return Err(Status::TooManyLinks);
        }
        if let Some(target) = target {
            // Same kind as `child` (may_rename): the parent keeps the link of the directory that goes.
            self.directory_mut(to)?.put(to_name, child);
            self.unlink(target);
            self.touch(to);
        } else {
            self.add_name(to, to_name, child)?;
            if is_directory {
                self.inode_mut(to).links += 1;
            }
        }
        self.remove_name(from, from_name)?;
        if is_directory {
            self.inode_mut(from).links -= 1;
            self.directory_mut(child)?.parent = to;
        }
        let now = self.stamp();
        self.inode_mut(child).changed = now;
        Ok(())
    }

    /// The conditions of rename(2), in the order in which Linux reports them.
    fn may_rename(&self, caller: &Credential, from: u32, child: u32, to: u32, target: Option<u32>) -> Result<(), Status> {
        // A directory cannot move below itself, and nothing can replace a directory it lies in.
        if self.is_within(to, child) {
            return Err(Status::InvalidArgument);
        }
        if target.is_some_and(|target| self.is_within(from, target)) {
            return Err(Status::NotEmpty);
        }
        if target == Some(child) {
            return Ok(());
        }
        let is_directory = self.inode(child).is_directory();
        permission::may_delete(&self.attributes(from), &self.attributes(child), caller)?;
        match target {
            None => permission::may_add(&self.attributes(to), caller)?,
            Some(target) => {
                permission::may_delete(&self.attributes(to), &self.attributes(target), caller)?;
                match (is_directory, self.directory(target)) {
                    (true, Err(_)) => return Err(Status::NotDirectory),
                    (false, Ok(_)) => return Err(Status::IsDirectory),
                    (true, Ok(directory)) if !directory.names.is_empty() => return Err(Status::NotEmpty),
                    _ => {}
                }
            }
        }
        if is_directory && from != to {
            permission::may_reparent(&self.attributes(child), caller)?;
        }
        Ok(())
    }

    /// Whether directory `inner` is `outer` or lies below it.
    fn is_within(&self, inner: u32, outer: u32) -> bool {
        let mut at = inner;
        loop {
            if at == outer {
                return true;
            }
            match self.directory(at) {
                // The root is its own parent; the walk is as long as the path is deep.
                Ok(directory) if directory.parent != at => at = directory.parent,
                _ => return false,
            }
        }
    }

    pub fn read_directory(
        &mut self,
        caller: &Credential,
        directory: ObjectId,
        cookie: u64,
        verifier: [u8; 8],
        mut bounds: Bounds,
    ) -> Result<Outcome, Failure> {
        let index = self.find(directory)?;
        let own_verifier = self.options.instance.to_be_bytes();
        let listed = self.directory(index).map(|_| ()).and_then(|()| {
            permission::may_list(&self.attributes(index), caller)?;
            // Cookies are never given out twice, so they hold as long as the store: its instance is the verifier.
            if cookie != 0 && verifier != own_verifier { Err(Status::BadCookie) } else { Ok(()) }
        });
        listed.map_err(|status| self.failure(status, index))?;
        // A handle opens its object without a walk: who may not search the directory gets none, as from the Linux server.
        bounds.with_attributes &= permission::may_search(&self.attributes(index), caller).is_ok();
        let (entries, end) = self.list(index, cookie, &bounds)?;
        Ok(Outcome::Entries { entries, verifier: own_verifier, end, directory: self.attributes(index) })
    }

    fn list(&self, index: u32, cookie: u64, bounds: &Bounds) -> Result<(Vec<DirectoryEntry>, bool), Status> {
        let directory = self.directory(index)?;
        let fixed: [(u64, &[u8], u32); 2] = [(COOKIE_SELF, b".", index), (COOKIE_PARENT, b"..", directory.parent)];
        let fixed = fixed.into_iter().filter(|(at, _, _)| *at > cookie);
        let from = cookie.saturating_add(1).max(COOKIE_FIRST);
        let named = directory.entries.range(from..).map(|(at, (name, child))| (*at, &name[..], *child));
        let mut entries = Vec::new();
        let mut bytes_left = bounds.bytes_max;
        for (cookie, name, child) in fixed.chain(named) {
            let cost = name.len() as u32 + ENTRY_OVERHEAD;
            if cost > bytes_left || entries.len() as u64 >= u64::from(bounds.entries_max) {
                return Ok((entries, false));
            }
            bytes_left -= cost;
            let attributes: Attributes = self.attributes(child);
            entries.push(DirectoryEntry {
                file_id: attributes.file_id,
                name: SmallVec::from_slice(name),
                cookie,
                object: bounds.with_attributes.then(|| (self.id(child), attributes)),
            });
        }
        Ok((entries, true))
    }
}
