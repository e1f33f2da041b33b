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

    /// Whether it is these bytes; takes as long wherever they differ.
    fn is(&self, bytes: &[u8]) -> bool {
        // The length is no secret. No handle that opens is shorter than a word.
        let own = self.as_bytes();
        let (Some(own_end), Some(end)) = (own.last_chunk(), bytes.last_chunk()) else { return false };
        let difference = u64::from_ne_bytes(*own_end) ^ u64::from_ne_bytes(*end);
        own.len() == bytes.len() && words(own).zip(words(bytes)).fold(difference, |sum, (a, b)| sum | (a ^ b)) == 0
    }

    pub fn to_smallvec(self) -> SmallVec<[u8; FILE_HANDLE_MAX]> {
        SmallVec::from_slice(self.as_bytes())
    }
}

/// Bytes as words of eight; what does not fill one is left out.
fn words(bytes: &[u8]) -> impl Iterator<Item = u64> {
    bytes.chunks_exact(8).filter_map(<[u8]>::first_chunk).map(|word| u64::from_ne_bytes(*word))
}

/// Handles that were opened lately, so that the same bytes are not authenticated again.
///
/// Only what `HandleSeal::open` has accepted is in it, and a handle is found by all of its bytes, compared in a time that does not
/// tell how many of them were right. Its place follows from its last byte, which is a part of the code: who does not know the key
/// cannot choose it, and two good handles that meet there only push each other out.
pub struct OpenedHandles {
    places: Box<[OpenedHandle; OPENED_HANDLES]>,
}

#[derive(Clone, Copy)]
struct OpenedHandle {
    /// Empty: none; no handle that opens is.
    handle: FileHandle,
    export: u32,
    object: ObjectId,
}

/// Places in `OpenedHandles`: as many as its index, one byte, can tell apart.
const OPENED_HANDLES: usize = 1 << u8::BITS;

impl OpenedHandles {
    pub fn new() -> OpenedHandles {
        let none = OpenedHandle {
            handle: FileHandle { len: 0, bytes: [0; FILE_HANDLE_MAX] },
            export: 0,
            object: ObjectId::new(&[]).expect("nothing fits"),
        };
        OpenedHandles { places: Box::new([none; OPENED_HANDLES]) }
    }

    /// What a handle was found to name, if it was opened lately: a guess, for the handle is not compared.
    pub fn guess(&self, handle: &[u8]) -> Option<(u32, &ObjectId)> {
        let place = &self.places[usize::from(*handle.last()?)];
        Some((place.export, &place.object))
    }

    /// `seal.open(handle)`, remembered. Always asked with the same seal.
    pub fn open(&mut self, seal: &HandleSeal, handle: &[u8]) -> Option<(u32, ObjectId)> {
        let place = &mut self.places[usize::from(*handle.last()?)];
        if !place.handle.is(handle) {
            let (export, object) = seal.open(handle)?;
            *place = OpenedHandle { handle: FileHandle::new(handle)?, export, object };
        }
        Some((place.export, place.object))
    }
}

impl Default for OpenedHandles {
    fn default() -> OpenedHandles {
        OpenedHandles::new()
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
    pub fn open(&self, handle: &[u8]) -> Option<(u32, ObjectId)> {
        let (sealed, code) = handle.split_last_chunk::<SEAL_LEN>()?;
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
            assert_eq!(seal().open(handle.as_bytes()), Some((9, object)));
            assert_eq!(HandleSeal::new([0; 16]).open(handle.as_bytes()), None, "another server's handle");
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
                assert_eq!(seal().open(&forged), None);
            }
            assert_eq!(seal().open(&good[..at]), None);
        }
        assert_eq!(seal().open(&[good, &[0]].concat()), None);
        assert!(FileHandle::new(&[0; FILE_HANDLE_MAX + 1]).is_none());
    }

    #[test]
    fn a_handle_that_was_opened_makes_no_other_one_good() {
        let mut opened = OpenedHandles::new();
        let objects: Vec<ObjectId> = (0..2000u32).map(|n| ObjectId::new(&n.to_be_bytes()).unwrap()).collect();
        for _ in 0..2 {
            for object in &objects {
                let handle = seal().seal(5, *object);
                assert_eq!(opened.open(&seal(), handle.as_bytes()), Some((5, *object)), "also where two share a place");
                assert_eq!(opened.open(&seal(), handle.as_bytes()), Some((5, *object)), "from memory");
            }
        }
        let good = seal().seal(5, objects[0]);
        assert!(opened.open(&seal(), good.as_bytes()).is_some());
        for at in 0..good.as_bytes().len() {
            let mut forged = good.as_bytes().to_vec();
            forged[at] ^= 1;
            assert_eq!(opened.open(&seal(), &forged), None, "byte {at}");
            assert_eq!(opened.open(&seal(), &good.as_bytes()[..at]), None);
        }
        assert_eq!(opened.open(&seal(), good.as_bytes()), Some((5, objects[0])), "forgeries push nothing out");
    }

    proptest! {
        #[test]
        fn random_bytes_are_bad(bytes in proptest::collection::vec(any::<u8>(), 0..=64)) {
            prop_assert_eq!(seal().open(&bytes), None);
        }
    }
}
