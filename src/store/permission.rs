//! Who may do what to an object: permission checks as pure functions of attributes and credential, shared by the stores.
//!
//! Read first: RFC 1813 section 3.3.4 (ACCESS) and section 4.4 (permission issues); POSIX.1-2017 section 4.5 (file access
//! permissions), chmod, chown, utimensat. Where those leave a choice, what Linux and its NFS server do is done.
//!
//! Not here: squashing and export rules (`program`), access control lists (there are none in NFSv3).

use super::{AttributeChanges, Attributes, Credential, NodeKind, ObjectKind, SetTime, Status, access};

const READ: u32 = 0o4;
const WRITE: u32 = 0o2;
const EXECUTE: u32 = 0o1;

pub const SET_UID: u32 = 0o4000;
pub const SET_GID: u32 = 0o2000;
pub const STICKY: u32 = 0o1000;
const GROUP_EXECUTE: u32 = 0o010;
/// All the bits of a mode that NFSv3 carries.
pub const MODE_ALL: u32 = 0o7777;

/// Whether the permission bits give `caller` all of `wanted` (POSIX 4.5: exactly one class decides).
fn permitted(attributes: &Attributes, caller: &Credential, wanted: u32) -> bool {
    let mode = attributes.mode;
    if caller.is_root() {
        // Root executes a file only if somebody may; it searches any directory.
        let executable = attributes.kind == ObjectKind::Directory || mode & 0o111 != 0;
        return wanted & EXECUTE == 0 || executable;
    }
    let bits = if caller.uid == attributes.uid {
        mode >> 6
    } else if caller.in_group(attributes.gid) {
        mode >> 3
    } else {
        mode
    };
    bits & wanted == wanted
}

fn is_owner(attributes: &Attributes, caller: &Credential) -> bool {
    caller.is_root() || caller.uid == attributes.uid
}

/// The subset of `mask` (bits of `access`) that is granted. Bits that mean nothing for the kind of object are refused
/// (RFC 1813 section 3.3.4). No owner override here: ACCESS tells what open(2) would say.
pub fn granted(attributes: &Attributes, caller: &Credential, mask: u32) -> u32 {
    let table: &[(u32, u32)] = if attributes.kind == ObjectKind::Directory {
        &[
            (access::READ, READ),
            (access::LOOKUP, EXECUTE),
            (access::MODIFY, WRITE | EXECUTE),
            (access::EXTEND, WRITE | EXECUTE),
            (access::DELETE, WRITE | EXECUTE),
        ]
    } else {
        &[(access::READ, READ), (access::MODIFY, WRITE), (access::EXTEND, WRITE), (access::EXECUTE, EXECUTE)]
    };
    table
        .iter()
        .filter(|(bit, wanted)| mask & bit != 0 && permitted(attributes, caller, *wanted))
        .fold(0, |sum, (bit, _)| sum | bit)
}

/// Reading a file's data. The owner always may: the client checked at open(2), which this stateless protocol does not see,
/// and the mode may have changed since (RFC 1813 section 4.4). Execute permission suffices: programs are paged in by READ.
pub fn may_read(file: &Attributes, caller: &Credential) -> Result<(), Status> {
    let allowed = is_owner(file, caller) || permitted(file, caller, READ) || permitted(file, caller, EXECUTE);
    allowed.then_some(()).ok_or(Status::AccessDenied)
}

/// Writing a file's data or changing its size; the owner always may, as for `may_read`.
pub fn may_write(file: &Attributes, caller: &Credential) -> Result<(), Status> {
    let allowed = is_owner(file, caller) || permitted(file, caller, WRITE);
    allowed.then_some(()).ok_or(Status::AccessDenied)
}

/// Looking a name up.
pub fn may_search(directory: &Attributes, caller: &Credential) -> Result<(), Status> {
    permitted(directory, caller, EXECUTE).then_some(()).ok_or(Status::AccessDenied)
}

/// Listing the names of a directory.
pub fn may_list(directory: &Attributes, caller: &Credential) -> Result<(), Status> {
    permitted(directory, caller, READ).then_some(()).ok_or(Status::AccessDenied)
}

/// Making a name.
pub fn may_add(directory: &Attributes, caller: &Credential) -> Result<(), Status> {
    permitted(directory, caller, WRITE | EXECUTE).then_some(()).ok_or(Status::AccessDenied)
}

/// Removing or replacing the name of `child`. In a sticky directory only the owner of the child or of the directory may.
pub fn may_delete(directory: &Attributes, child: &Attributes, caller: &Credential) -> Result<(), Status> {
    may_add(directory, caller)?;
    if directory.mode & STICKY != 0 && !is_owner(child, caller) && !is_owner(directory, caller) {
        return Err(Status::NotOwner);
    }
    Ok(())
}

/// Moving a directory to another parent writes its "..": the mode of the directory itself must allow that.
pub fn may_reparent(child: &Attributes, caller: &Credential) -> Result<(), Status> {
    permitted(child, caller, WRITE).then_some(()).ok_or(Status::AccessDenied)
}

/// Block and character devices are for root (mknod(2)); sockets and FIFOs for everybody who may add a name.
pub fn may_make_node(kind: NodeKind, caller: &Credential) -> Result<(), Status> {
    match kind {
        NodeKind::Socket | NodeKind::Fifo => Ok(()),
        NodeKind::BlockDevice { .. } | NodeKind::CharacterDevice { .. } => caller.is_root().then_some(()).ok_or(Status::NotOwner),
    }
}

/// Checks SETATTR (RFC 1813 section 3.3.2) and answers with the changes to make: what was asked for, plus the bits of the
/// mode that a change of owner or size takes away.
pub fn may_change(object: &Attributes, caller: &Credential, changes: &AttributeChanges) -> Result<AttributeChanges, Status> {
    if changes.size.is_some() {
        match object.kind {
            ObjectKind::File => may_write(object, caller)?,
            ObjectKind::Directory => return Err(Status::IsDirectory),
            _ => return Err(Status::InvalidArgument),
        }
    }
    for time in [changes.accessed, changes.modified].into_iter().flatten() {
        match time {
            // utimensat(2): setting both to now needs write permission or ownership, anything else ownership.
            SetTime::ServerTime => may_write(object, caller)?,
            SetTime::To(_) => is_owner(object, caller).then_some(()).ok_or(Status::NotOwner)?,
        }
    }
    if changes.mode.is_some() && !is_owner(object, caller) {
        return Err(Status::NotOwner);
    }
    may_give(object, caller, changes)?;
    Ok(AttributeChanges { mode: mode_after(object, caller, changes), ..*changes })
}

/// chown(2) with _POSIX_CHOWN_RESTRICTED: root gives files away; an owner changes the group to one of its own.
fn may_give(object: &Attributes, caller: &Credential, changes: &AttributeChanges) -> Result<(), Status> {
    if caller.is_root() {
        return Ok(());
    }
    let uid_allowed = changes.uid.is_none_or(|uid| caller.uid == object.uid && uid == object.uid);
    let gid_allowed = changes.gid.is_none_or(|gid| caller.uid == object.uid && (gid == object.gid || caller.in_group(gid)));
    (uid_allowed && gid_allowed).then_some(()).ok_or(Status::NotOwner)
}

/// The mode after `changes`; `None` if it stays as it is.
fn mode_after(object: &Attributes, caller: &Credential, changes: &AttributeChanges) -> Option<u32> {
    let mut mode = changes.mode.unwrap_or(object.mode) & MODE_ALL;
    let gid = changes.gid.unwrap_or(object.gid);
    // chmod(2): a set-group-id bit for a group that is not the caller's own is dropped silently.
    if changes.mode.is_some() && !caller.is_root() && !caller.in_group(gid) {
        mode &= !SET_GID;
    }
    if object.kind != ObjectKind::Directory && (changes.uid.is_some() || changes.gid.is_some()) {
        mode = without_privileges(mode);
    }
    if changes.size.is_some() && changes.mode.is_none() && !caller.is_root() {
        mode = without_privileges(mode);
    }
    (changes.mode.is_some() || mode != object.mode).then_some(mode)
}

/// Set-user-id goes; set-group-id too if it means that (without group execute it once meant mandatory locking).
fn without_privileges(mode: u32) -> u32 {
    if mode & GROUP_EXECUTE != 0 { mode & !(SET_UID | SET_GID) } else { mode & !SET_UID }
}

/// The mode of a file after somebody wrote to it: an ordinary user's write takes the set-id bits away.
pub fn mode_after_write(file: &Attributes, caller: &Credential) -> u32 {
    if caller.is_root() { file.mode } else { without_privileges(file.mode) }
}

/// Owner, group and mode of a new object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ownership {
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
}

/// What a new object of `kind` in `directory` starts with. In a set-group-id directory it takes the directory's group, and
/// a directory the bit too. Owner and group asked for by anybody but root are ignored, as the Linux server does; without a
/// mode it is 0 (EXCLUSIVE create: the client's SETATTR follows, RFC 1813 section 3.3.8).
pub fn ownership(directory: &Attributes, caller: &Credential, kind: ObjectKind, changes: &AttributeChanges) -> Ownership {
    let inherits = directory.mode & SET_GID != 0;
    let mut gid = if inherits { directory.gid } else { caller.gid };
    let mut uid = caller.uid;
    let mut mode = if kind == ObjectKind::Symlink { 0o777 } else { changes.mode.unwrap_or(0) & MODE_ALL };
    if caller.is_root() {
        uid = changes.uid.unwrap_or(uid);
        gid = changes.gid.unwrap_or(gid);
    } else if !caller.in_group(gid) {
        mode &= !SET_GID;
    }
    if inherits && kind == ObjectKind::Directory {
        mode |= SET_GID;
    }
    Ownership { mode, uid, gid }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::Timestamp;

    fn object(kind: ObjectKind, mode: u32, uid: u32, gid: u32) -> Attributes {
        let t = Timestamp::default();
        let (accessed, modified, changed) = (t, t, t);
        let (links, size, used, device, file_system, file_id) = (1, 0, 0, (0, 0), 1, 2);
        Attributes { kind, mode, links, uid, gid, size, used, device, file_system, file_id, accessed, modified, changed }
    }

    fn user(uid: u32, gid: u32, groups: &[u32]) -> Credential {
        Credential { uid, gid, groups: groups.iter().copied().collect() }
    }

    #[test]
    fn exactly_one_class_decides() {
        use access::*;
        let file = object(ObjectKind::File, 0o074, 10, 20);
        assert_eq!(granted(&file, &user(10, 20, &[]), ALL), 0, "the owner gets the owner's bits even if the group has more");
        assert_eq!(granted(&file, &user(11, 20, &[]), ALL), READ | MODIFY | EXTEND | EXECUTE);
        assert_eq!(granted(&file, &user(11, 5, &[1, 20]), ALL), READ | MODIFY | EXTEND | EXECUTE);
        assert_eq!(granted(&file, &user(11, 5, &[1]), ALL), READ);
        assert_eq!(granted(&file, &user(11, 20, &[]), MODIFY), MODIFY, "only what was asked");
    }

    #[test]
    fn root_executes_only_what_somebody_may_execute() {
        use access::*;
        let root = user(0, 0, &[]);
        assert_eq!(granted(&object(ObjectKind::File, 0, 10, 20), &root, ALL), READ | MODIFY | EXTEND);
        assert_eq!(granted(&object(ObjectKind::File, 0o001, 10, 20), &root, ALL), READ | MODIFY | EXTEND | EXECUTE);
        let directory = object(ObjectKind::Directory, 0, 10, 20);
        assert_eq!(granted(&directory, &root, ALL), READ | LOOKUP | MODIFY | EXTEND | DELETE);
    }

    #[test]
    fn data_access_of_owners_and_executors() {
        let file = object(ObjectKind::File, 0o001, 10, 20);
        assert_eq!(may_read(&file, &user(10, 20, &[])), Ok(()));
        assert_eq!(may_write(&file, &user(10, 20, &[])), Ok(()));
        assert_eq!(may_read(&file, &user(11, 20, &[])), Err(Status::AccessDenied));
        assert_eq!(may_read(&file, &user(11, 21, &[])), Ok(()), "execute is enough to read");
        assert_eq!(may_write(&file, &user(11, 21, &[])), Err(Status::AccessDenied));
    }

    #[test]
    fn sticky_directories_protect_other_peoples_files() {
        let directory = object(ObjectKind::Directory, 0o1777, 1, 1);
        let child = object(ObjectKind::File, 0o666, 10, 20);
        assert_eq!(may_delete(&directory, &child, &user(11, 20, &[])), Err(Status::NotOwner));
        for allowed in [0, 1, 10] {
            assert_eq!(may_delete(&directory, &child, &user(allowed, 20, &[])), Ok(()));
        }
        let closed = object(ObjectKind::Directory, 0o755, 1, 1);
        assert_eq!(may_delete(&closed, &child, &user(10, 20, &[])), Err(Status::AccessDenied));
    }

    #[test]
    fn only_owners_change_and_only_root_gives_away() {
        let file = object(ObjectKind::File, 0o666, 10, 20);
        let changes = AttributeChanges::default();
        let owner = user(10, 20, &[21]);
        let other = user(11, 20, &[]);
        let chmod = AttributeChanges { mode: Some(0o600), ..changes };
        assert_eq!(may_change(&file, &owner, &chmod), Ok(chmod));
        assert_eq!(may_change(&file, &other, &chmod), Err(Status::NotOwner));
        for (gid, answer) in [(20, Ok(())), (21, Ok(())), (22, Err(Status::NotOwner))] {
            let chgrp = AttributeChanges { gid: Some(gid), ..changes };
            assert_eq!(may_change(&file, &owner, &chgrp).map(|_| ()), answer);
            assert_eq!(may_change(&file, &other, &chgrp), Err(Status::NotOwner));
        }
        let chown = AttributeChanges { uid: Some(11), ..changes };
        assert_eq!(may_change(&file, &owner, &chown), Err(Status::NotOwner));
        assert_eq!(may_change(&file, &user(0, 0, &[]), &chown), Ok(chown));
        let touch = AttributeChanges { modified: Some(SetTime::ServerTime), ..changes };
        assert_eq!(may_change(&file, &other, &touch), Ok(touch));
        let set = AttributeChanges { modified: Some(SetTime::To(Timestamp::default())), ..changes };
        assert_eq!(may_change(&file, &other, &set), Err(Status::NotOwner));
    }

    #[test]
    fn set_id_bits_go_when_they_must() {
        let owner = user(10, 20, &[]);
        let root = user(0, 0, &[]);
        let program = object(ObjectKind::File, 0o6755, 10, 20);
        let chown = AttributeChanges { gid: Some(20), ..Default::default() };
        assert_eq!(may_change(&program, &root, &chown).unwrap().mode, Some(0o755));
        let truncate = AttributeChanges { size: Some(0), ..Default::default() };
        assert_eq!(may_change(&program, &owner, &truncate).unwrap().mode, Some(0o755));
        assert_eq!(may_change(&program, &root, &truncate).unwrap().mode, None);
        assert_eq!(mode_after_write(&program, &owner), 0o755);
        assert_eq!(mode_after_write(&program, &root), 0o6755);
        assert_eq!(mode_after_write(&object(ObjectKind::File, 0o2644, 10, 20), &owner), 0o2644, "no group execute");
        let foreign_group = object(ObjectKind::File, 0o755, 10, 30);
        let chmod = AttributeChanges { mode: Some(0o2755), ..Default::default() };
        assert_eq!(may_change(&foreign_group, &owner, &chmod).unwrap().mode, Some(0o755));
        assert_eq!(may_change(&foreign_group, &root, &chmod).unwrap().mode, Some(0o2755));
    }

    #[test]
    fn new_objects_inherit_from_set_group_id_directories() {
        let caller = user(10, 20, &[]);
        let changes = AttributeChanges { mode: Some(0o755), uid: Some(99), gid: Some(98), ..Default::default() };
        let plain = object(ObjectKind::Directory, 0o777, 1, 2);
        let inheriting = object(ObjectKind::Directory, 0o2777, 1, 2);
        let own = |directory, caller, kind| ownership(directory, caller, kind, &changes);
        assert_eq!(own(&plain, &caller, ObjectKind::File), Ownership { mode: 0o755, uid: 10, gid: 20 });
        assert_eq!(own(&inheriting, &caller, ObjectKind::File), Ownership { mode: 0o755, uid: 10, gid: 2 });
        assert_eq!(own(&inheriting, &caller, ObjectKind::Directory), Ownership { mode: 0o2755, uid: 10, gid: 2 });
        assert_eq!(own(&plain, &user(0, 0, &[]), ObjectKind::File), Ownership { mode: 0o755, uid: 99, gid: 98 });
    }

    #[test]
    fn sizes_are_for_files() {
        let truncate = AttributeChanges { size: Some(0), ..Default::default() };
        let root = user(0, 0, &[]);
        let ask = |kind| may_change(&object(kind, 0o777, 0, 0), &root, &truncate).err();
        assert_eq!(ask(ObjectKind::File), None);
        assert_eq!(ask(ObjectKind::Directory), Some(Status::IsDirectory));
        assert_eq!(ask(ObjectKind::Fifo), Some(Status::InvalidArgument));
        assert_eq!(may_make_node(NodeKind::BlockDevice { major: 1, minor: 1 }, &user(1, 1, &[])), Err(Status::NotOwner));
        assert_eq!(may_make_node(NodeKind::Fifo, &user(1, 1, &[])), Ok(()));
    }
}
