//! Page memory from DPDK memzones, which every driver can reach: mapped for VFIO, shared with vhost-user peers, in
//! hugepages when EAL has them. Memory that is only registered with DPDK lacks both (measured, virtio-user refuses it).
//!
//! What holds for addresses: a zone is contiguous for the process. For a device it is contiguous within one page of the
//! underlying memory ([`Zone::page_bytes`]) and everywhere when IOVAs are virtual addresses. A block whose size is a
//! power of two, that lies at a multiple of its size and is no larger than `page_bytes` therefore has one IOVA:
//! 64 KiB blocks in zones aligned to 64 KiB, on 2 MiB or 1 GiB hugepages. Without hugepages IOVAs are always virtual.
//!
//! Deliberately not here: handing out blocks, reference counts, writing. A zone gives an address, nothing more.

use std::{
    ffi::CString,
    ptr::NonNull,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
};

use dpdk_sys as sys;

use crate::{
    eal::{Eal, Running},
    error::{Errno, Error},
};

/// The largest alignment a zone can have, in bytes.
pub const ALIGN_BYTES_MAX: usize = 1 << 30;

/// [`ZoneSet`] never takes pieces smaller than this (or than one block), in bytes: DPDK has 2,560 zones in all.
pub const PIECE_BYTES_MIN: usize = 8 << 20;

/// A range of memory that devices can reach. Contents are unspecified (zero at first use). Returned on drop.
#[derive(Debug)]
pub struct Zone {
    raw: NonNull<sys::rte_memzone>,
    address: NonNull<u8>,
    bytes: usize,
    page_bytes: usize,
    /// IOVA of each underlying page the zone touches; empty when IOVAs are virtual addresses.
    page_iovas: Vec<u64>,
    _running: Arc<Running>,
}

// SAFETY: a zone is an address range; it has no thread affinity and no interior state.
unsafe impl Send for Zone {}
// SAFETY: all methods read fields that never change.
unsafe impl Sync for Zone {}

impl Zone {
    /// Reserves `bytes` on NUMA node `socket` (−1: any), aligned to `align` bytes (a power of two up to 1 GiB).
    /// `name` is for DPDK's lists; it is cut and numbered to be unique.
    pub fn reserve(eal: &Eal, name: &str, bytes: usize, align: usize, socket: i32) -> Result<Zone, Error> {
        if bytes == 0 || !align.is_power_of_two() || align > ALIGN_BYTES_MAX {
            return Err(Error::Invalid(format!("a zone of {bytes} bytes aligned to {align} bytes")));
        }
        static SERIAL: AtomicU32 = AtomicU32::new(0);
        let serial = SERIAL.fetch_add(1, Ordering::Relaxed);
        let short: String = name.chars().filter(char::is_ascii_graphic).take(16).collect();
        let unique = CString::new(format!("{short}_{serial}")).map_err(|_| Error::Invalid("a zone name with NUL".to_owned()))?;
        // SAFETY: EAL is running (`eal`); the name is a valid string shorter than RTE_MEMZONE_NAMESIZE.
        let raw = unsafe { sys::rte_memzone_reserve_aligned(unique.as_ptr(), bytes, socket, 0, align as u32) };
        let refused = || Error::Memory {
            what: format!("memory zone {name}"),
            wanted_bytes: bytes,
            available_bytes: 0,
            errno: Errno::current(),
        };
        let raw = NonNull::new(raw.cast_mut()).ok_or_else(refused)?;
        // SAFETY: DPDK returned a valid descriptor; it is packed, so fields are copied, and never changes until freed.
        let (address, page_bytes) = unsafe {
            let zone = raw.as_ptr();
            ((*zone).__bindgen_anon_1.addr, (*zone).hugepage_sz as usize)
        };
        let address = NonNull::new(address.cast::<u8>()).ok_or_else(refused)?;
        let mut zone = Zone { raw, address, bytes, page_bytes, page_iovas: Vec::new(), _running: Arc::clone(&eal.running) };
        if !eal.iova_is_virtual() {
            zone.page_iovas = zone.look_up_pages()?;
        }
        Ok(zone)
    }

    fn look_up_pages(&self) -> Result<Vec<u64>, Error> {
        let start = self.address.as_ptr() as usize;
        let first_page = start & !(self.page_bytes - 1);
        (first_page..start + self.bytes)
            .step_by(self.page_bytes)
            .map(|page| {
                // SAFETY: an address lookup in EAL's tables; NULL when unknown.
                let segment = unsafe { sys::rte_mem_virt2memseg(page as *const _, std::ptr::null()) };
                if segment.is_null() {
                    return Err(Error::Invalid("a zone page that DPDK has no IOVA for".to_owned()));
                }
                // SAFETY: non-null, valid while the zone holds the page; packed, so fields are copied.
                let (iova, at) = unsafe { ((*segment).iova, (*segment).__bindgen_anon_1.addr_64) };
                Ok(iova + (page as u64 - at))
            })
            .collect()
    }

    /// The first byte. Writing through it is the caller's unsafe business.
    pub fn as_ptr(&self) -> NonNull<u8> {
        self.address
    }

    /// Size in bytes.
    #[expect(clippy::len_without_is_empty, reason = "a zone is never empty")]
    pub fn len(&self) -> usize {
        self.bytes
    }

    /// Size of the pages beneath, in bytes: within one, device addresses are contiguous.
    pub fn page_bytes(&self) -> usize {
        self.page_bytes
    }

    /// The address at which devices see the byte at `offset`. Panics when `offset` is outside the zone.
    pub fn iova_of(&self, offset: usize) -> u64 {
        assert!(offset < self.bytes, "offset {offset} outside a zone of {} bytes", self.bytes);
        let address = self.address.as_ptr() as usize + offset;
        if self.page_iovas.is_empty() {
            return address as u64;
        }
        let first_page = self.address.as_ptr() as usize & !(self.page_bytes - 1);
        let from_first = address - first_page;
        self.page_iovas[from_first / self.page_bytes] + (from_first % self.page_bytes) as u64
    }
}

/// Whether zones are left to the end of the process.
static KEPT_UNTIL_EXIT: AtomicBool = AtomicBool::new(false);

/// From now on a zone that is dropped keeps its memory until the process ends. Giving a zone back clears it, which takes
/// seconds per hundred GiB: wasted in a process that is about to end.
pub fn keep_zones_until_exit() {
    KEPT_UNTIL_EXIT.store(true, Ordering::Relaxed);
}

impl Drop for Zone {
    fn drop(&mut self) {
        if KEPT_UNTIL_EXIT.load(Ordering::Relaxed) {
            return;
        }
        // SAFETY: reserved by this value and freed once. A device cannot be reading it any more: whoever gave the
        // memory to a TxPayload has promised to keep the zone as long as the payload lives.
        unsafe { sys::rte_memzone_free(self.raw.as_ptr()) };
    }
}

/// Several zones that add up to a wanted size, for when memory is fragmented.
#[derive(Debug)]
pub struct ZoneSet {
    zones: Vec<Zone>,
}

impl ZoneSet {
    /// Reserves `bytes` (rounded up to whole blocks) in as few zones as possible, each a multiple of `block_bytes`
    /// and aligned to it. `block_bytes` is a power of two up to 1 GiB.
    pub fn reserve(eal: &Eal, name: &str, bytes: usize, block_bytes: usize, socket: i32) -> Result<ZoneSet, Error> {
        if bytes == 0 || !block_bytes.is_power_of_two() || block_bytes > ALIGN_BYTES_MAX {
            return Err(Error::Invalid(format!("{bytes} bytes of memory in blocks of {block_bytes}")));
        }
        let wanted =
            bytes.checked_next_multiple_of(block_bytes).ok_or_else(|| Error::Invalid(format!("{bytes} bytes of memory")))?;
        let smallest = PIECE_BYTES_MIN.max(block_bytes);
        let mut set = ZoneSet { zones: Vec::new() };
        let (mut left, mut piece) = (wanted, wanted);
        while left > 0 {
            piece = piece.min(left);
            match Zone::reserve(eal, name, piece, block_bytes, socket) {
                Ok(zone) => {
                    left -= piece;
                    set.zones.push(zone);
                }
                Err(Error::Memory { .. }) if piece > smallest => {
                    piece = (piece / 2).next_multiple_of(block_bytes).max(smallest);
                }
                Err(Error::Memory { errno, .. }) => {
                    return Err(Error::Memory {
                        what: name.to_owned(),
                        wanted_bytes: wanted,
                        available_bytes: wanted - left,
                        errno,
                    });
                }
                Err(other) => return Err(other),
            }
        }
        Ok(set)
    }

    /// The zones, largest first in the usual case.
    pub fn zones(&self) -> &[Zone] {
        &self.zones
    }

    /// The zones themselves.
    pub fn into_zones(self) -> Vec<Zone> {
        self.zones
    }

    /// Bytes in all.
    #[expect(clippy::len_without_is_empty, reason = "a set is never empty")]
    pub fn len(&self) -> usize {
        self.zones.iter().map(Zone::len).sum()
    }
}
