//! File handles: an export and an object, sealed so that only handles this server gave out are taken back.
//!
//! Read first: RFC 1813 section 2.3.3 (nfs_fh3, at most 64 bytes, opaque to clients).
//!
//! ```text
//! version (1) | length of the identity (1) | export id (4) | identity (..44) | SipHash-2-4 of all before (8)
//! ```
//!
//! The key is the control plane's to persist: with the same key, export ids and object identities a handle survives a
//! restart. A handle whose seal does not fit is a bad handle; one that fits but leads nowhere is a stale one, which callers
//! find out. Not here: whether the client may use the export.

use std::fmt;
use std::hash::Hasher;

use siphasher::sip::SipHasher24;
use smallvec::SmallVec;

use super::exports::FILE_HANDLE_MAX;
use crate::store::ObjectId;

const VERSION: u8 = 1;
const HEAD_LEN: usize = 6;
const SEAL_LEN: usize = 8;

const _: () = assert!(HEAD_LEN + ObjectId::LEN_MAX + SEAL_LEN <= FILE_HANDLE_MAX);

/// A handle as it goes over the wire.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct FileHandle {
    len: u8,
    bytes: [u8; FILE_HANDLE_MAX],
}

impl FileHandle {
    /// Bytes that a client sent as a handle; `None` if there are more than a handle can have.
    pub fn new(bytes: &[u8]) -> Option<FileHandle> {
        let mut handle = FileHandle { len: u8::try_from(bytes.len()).ok()?, bytes: [0; FILE_HANDLE_MAX] };
        handle.bytes.get_mut(..bytes.len())?.copy_from_slice(bytes);
        Some(handle)
    }

    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes[..usize::from(self.len)]
    }

    pub fn to_smallvec(self) -> SmallVec<[u8; FILE_HANDLE_MAX]> {
        SmallVec::from_slice(self.as_bytes())
    }
}

impl fmt::Debug for FileHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("FileHandle(")?;
        for byte in self.as_bytes() {
            write!(f, "{byte:02x}")?;
        }
        f.write_str(")")
    }
}

/// Seals and opens handles under one key.
#[derive(Clone, Copy)]
pub struct HandleSeal {
    hasher: SipHasher24,
}

impl fmt::Debug for HandleSeal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("HandleSeal(secret)")
    }
}

impl HandleSeal {
    pub fn new(key: [u8; 16]) -> HandleSeal {
        HandleSeal { hasher: SipHasher24::new_with_key(&key) }
    }

    fn code(&self, bytes: &[u8]) -> u64 {
        let mut hasher = self.hasher;
        hasher.write(bytes);
        hasher.finish()
    }

    /// The handle of an object of an export.
    pub fn seal(&self, export: u32, object: ObjectId) -> FileHandle {
        let identity = object.as_bytes();
        let mut bytes = [0; FILE_HANDLE_MAX];
        bytes[0] = VERSION;
        bytes[1] = identity.len() as u8;
        bytes[2..HEAD_LEN].copy_from_slice(&export.to_be_bytes());
        let end = HEAD_LEN + identity.len();
        bytes[HEAD_LEN..end].copy_from_slice(identity);
        let code = self.code(&bytes[..end]);
        bytes[end..end + SEAL_LEN].copy_from_slice(&code.to_be_bytes());
        FileHandle { len: (end + SEAL_LEN) as u8, bytes }
    }

    /// The export id and the object of a handle that `seal` made under the same key; `None`: NFS3ERR_BADHANDLE.
    pub fn open(&self, handle: &FileHandle) -> Option<(u32, ObjectId)> {
        let bytes = handle.as_bytes();
        let (sealed, code) = bytes.split_last_chunk::<SEAL_LEN>()?;
        // One comparison of words: how much of a guess was right does not show in the time.
        if self.code(sealed) != u64::from_be_bytes(*code) {
            return None;
        }
        let (head, identity) = sealed.split_first_chunk::<HEAD_LEN>()?;
        let [version, len, export @ ..] = *head;
        if version != VERSION || usize::from(len) != identity.len() {
            return None;
        }
        Some((u32::from_be_bytes(export), ObjectId::new(identity)?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn seal() -> HandleSeal {
        HandleSeal::new(*b"0123456789abcdef")
    }

    #[test]
    fn handles_open_under_the_key_that_sealed_them() {
        for len in [0, 16, ObjectId::LEN_MAX] {
            let object = ObjectId::new(&[7; ObjectId::LEN_MAX][..len]).unwrap();
            let handle = seal().seal(9, object);
            assert!(handle.as_bytes().len() <= FILE_HANDLE_MAX);
            assert_eq!(seal().open(&handle), Some((9, object)));
            assert_eq!(HandleSeal::new([0; 16]).open(&handle), None, "another server's handle");
        }
    }

    #[test]
    fn the_layout_is_fixed() {
        let handle = seal().seal(0x0102_0304, ObjectId::new(b"id").unwrap());
        assert_eq!(handle.as_bytes()[..8], [1, 2, 1, 2, 3, 4, b'i', b'd']);
        assert_eq!(handle.as_bytes().len(), 16);
    }

    #[test]
    fn every_changed_cut_or_longer_handle_is_bad() {
        let handle = seal().seal(1, ObjectId::new(&[3; 16]).unwrap());
        let good = handle.as_bytes();
        for at in 0..good.len() {
            for bit in 0..8 {
                let mut forged = good.to_vec();
                forged[at] ^= 1 << bit;
                assert_eq!(seal().open(&FileHandle::new(&forged).unwrap()), None);
            }
            assert_eq!(seal().open(&FileHandle::new(&good[..at]).unwrap()), None);
        }
        assert_eq!(seal().open(&FileHandle::new(&[good, &[0]].concat()).unwrap()), None);
        assert!(FileHandle::new(&[0; FILE_HANDLE_MAX + 1]).is_none());
    }

    proptest! {
        #[test]
        fn random_bytes_are_bad(bytes in proptest::collection::vec(any::<u8>(), 0..=64)) {
            prop_assert_eq!(seal().open(&FileHandle::new(&bytes).unwrap()), None);
        }
    }
}
