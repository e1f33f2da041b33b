//! Page pools in DPDK's memory, and slices as transmit payload.

use dpdk::chain::TxPayload;
use dpdk::memory::Zone;

use super::page::{PagePool, Region, Slice};

impl PagePool {
    /// A pool over zones that this call takes over. The zones should be aligned to `block_size`, so that no block
    /// straddles two pages of memory whose device addresses need not follow each other.
    ///
    /// # Panics
    /// As [`PagePool::from_regions`]; also if a zone is not aligned to `block_size` while device addresses are physical.
    pub fn from_zones(zones: Vec<Zone>, block_size: usize) -> PagePool {
        let regions = zones
            .into_iter()
            .map(|zone| {
                let zone = std::sync::Arc::new(zone);
                let aligned = zone.as_ptr().as_ptr() as usize % block_size == 0;
                assert!(aligned || zone.iova_of(0) == zone.as_ptr().as_ptr() as u64, "a zone is not aligned to its blocks");
                let lookup = std::sync::Arc::clone(&zone);
                Region {
                    base: zone.as_ptr(),
                    len: zone.len(),
                    iova_of: Box::new(move |offset| lookup.iova_of(offset)),
                    owner: Box::new(zone),
                }
            })
            .collect();
        // SAFETY: a zone is initialised memory that only its owner may use; ownership passed to this call, the zones do
        // not overlap (DPDK reserves each byte once) and live until the pool drops its owners. Blocks are aligned, or
        // device addresses are linear, by the assertion above.
        unsafe { PagePool::from_regions(regions, block_size) }
    }
}

// SAFETY: `address`/`iova` name `len` bytes of one block of a pool whose memory devices reach (`from_zones`); rule 1 of this
// room keeps them valid and unchanged until the `Slice` is dropped.
unsafe impl TxPayload for Slice {
    fn as_ptr(&self) -> *const u8 {
        self.address() as *const u8
    }
    fn len(&self) -> usize {
        std::ops::Deref::deref(self).len()
    }
    fn iova(&self) -> u64 {
        Slice::iova(self)
    }
}
