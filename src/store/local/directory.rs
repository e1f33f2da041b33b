//! READDIR and READDIRPLUS.
//!
//! Read first: RFC 1813 sections 3.3.16 and 3.3.17; getdents64(2).
//!
//! A cookie is the kernel's own position behind an entry (`d_off`): on ext4, XFS, btrfs and tmpfs it names a place that
//! stays while entries come and go, also over restarts. So the verifier never changes, and one that is not ours is refused.

use std::ffi::CStr;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;

use rustix::fs::{Mode, OFlags, RawDir, SeekFrom};

use super::worker::{PageOfEntries, Worker};
use super::{Answer, failure, sys};
use crate::store::{Attributes, Credential, DirectoryEntry, ObjectId, Outcome, Status, permission};
use crate::time::Instant;

/// What an entry counts beside its name towards `bytes_max`, bytes (see `Operation::ReadDirectory`).
const ENTRY_OVERHEAD: usize = 24;
/// Room for entries from the kernel in one call, bytes; the longest entry takes 280.
const BUFFER: usize = 32 * 1024;
/// Entries in one answer, whatever the client allows.
const ENTRIES_MAX: u32 = 4096;
/// The verifier of every directory.
const VERIFIER: [u8; 8] = *b"d_off\0\0\x01";

impl Worker<'_> {
    pub(super) fn read_directory(&self, now: Instant, caller: &Credential, directory: &ObjectId, page: &PageOfEntries) -> Answer {
        let fd = self.open_directory(directory, now, OFlags::RDONLY | OFlags::DIRECTORY)?;
        let since = self.shared.epochs.now();
        let attributes = sys::attributes(&fd, self.shared.options.file_system)?;
        if attributes.links == 0 {
            self.shared.forget(directory);
            return Err(Status::Stale.into());
        }
        self.saw(directory, since, attributes, now);
        let listed = permission::may_list(&attributes, caller).and_then(|()| {
            if page.cookie != 0 && page.verifier != VERIFIER {
                return Err(Status::BadCookie);
            }
            // A handle opens its object without a walk: who may not search the directory gets none, as from the Linux server.
            let searches = permission::may_search(&attributes, caller).is_ok();
            let page = PageOfEntries { with_attributes: page.with_attributes && searches, ..*page };
            self.list(now, directory, &fd, &attributes, &page)
        });
        let (entries, end) = listed.map_err(|status| failure(status, Some(&attributes)))?;
        Ok(Outcome::Entries { entries, verifier: VERIFIER, end, directory: attributes })
    }

    fn list(
        &self,
        now: Instant,
        directory: &ObjectId,
        fd: &OwnedFd,
        attributes: &Attributes,
        page: &PageOfEntries,
    ) -> Result<(Vec<DirectoryEntry>, bool), Status> {
        if page.cookie != 0 {
            let position = i64::try_from(page.cookie).map_err(|_| Status::BadCookie)?;
            rustix::fs::seek(fd, SeekFrom::Start(position as u64)).map_err(|_| Status::BadCookie)?;
        }
        let is_root = *directory == self.shared.root_id;
        let entries_max = page.entries_max.min(ENTRIES_MAX) as usize;
        let mut buffer = vec![MaybeUninit::uninit(); BUFFER];
        let mut source = RawDir::new(fd, &mut buffer);
        let mut entries = Vec::new();
        let mut bytes = 0;
        while let Some(entry) = source.next() {
            let entry = entry?;
            let name = entry.file_name();
            bytes += name.count_bytes() + ENTRY_OVERHEAD;
            if bytes > page.bytes_max as usize || entries.len() >= entries_max {
                return Ok((entries, false));
            }
            let above_root = is_root && name == c"..";
            let object =
                if page.with_attributes { self.entry_object(now, fd, if above_root { c"." } else { name }) } else { None };
            let file_id = match &object {
                Some((_, attributes)) => attributes.file_id,
                None if above_root => attributes.file_id,
                None => entry.ino(),
            };
            let name = name.to_bytes().into();
            entries.push(DirectoryEntry { file_id, name, cookie: entry.next_entry_cookie(), object });
        }
        Ok((entries, true))
    }

    /// Identity and attributes of an entry; nothing for what is mounted there, has gone, or lies outside the export.
    fn entry_object(&self, now: Instant, directory: &OwnedFd, name: &CStr) -> Option<(ObjectId, Attributes)> {
        let entry = if name == c".." {
            let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
            let parent = rustix::fs::openat(directory, name, flags, Mode::empty()).ok()?;
            self.is_inside(&parent).ok()?.then_some(parent)?
        } else {
            // By descriptor: between two calls by name another object could take the name.
            sys::open_name(directory, name).ok()?
        };
        self.object(&entry, now).ok()
    }
}
