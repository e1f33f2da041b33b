//! Buffer pools. A pool is never freed: a buffer may be dropped by any thread at any time after its port was closed, so
//! a pool that nobody uses any more waits in a registry for the next one of the same shape.

use std::{
    ffi::CString,
    ptr::NonNull,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU32, Ordering},
    },
};

use dpdk_sys as sys;

use crate::error::{Errno, Error};

/// Space in front of the data that drivers may use for their own headers (virtio does). In bytes.
pub const HEADROOM: u16 = sys::RTE_PKTMBUF_HEADROOM as u16;

/// Buffers kept per thread and pool. DPDK's maximum is 512; a burst must stay below it (see [`crate::tx`]).
const CACHE_BUFFERS_MAX: u32 = 512;

/// What a pool is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Shape {
    /// How many buffers.
    pub buffers: u32,
    /// Data bytes per buffer, without headroom. 0: buffers that only carry external data.
    pub room: u16,
    /// NUMA node, −1 for any.
    pub socket: i32,
}

struct Entry {
    shape: Shape,
    raw: NonNull<sys::rte_mempool>,
    in_use: bool,
}

// SAFETY: a mempool may be used from any thread (multi-producer, multi-consumer).
unsafe impl Send for Entry {}

static REGISTRY: Mutex<Vec<Entry>> = Mutex::new(Vec::new());
static SERIAL: AtomicU32 = AtomicU32::new(0);

/// A pool of buffers, lent from the registry.
#[derive(Debug)]
pub(crate) struct Pool {
    raw: NonNull<sys::rte_mempool>,
    shape: Shape,
}

// SAFETY: as for Entry.
unsafe impl Send for Pool {}
// SAFETY: as for Entry; all methods only read counters.
unsafe impl Sync for Pool {}

impl Pool {
    /// Takes an unused pool of this shape or makes one.
    pub(crate) fn take(what: &str, shape: Shape) -> Result<Pool, Error> {
        let mut registry = REGISTRY.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(entry) = registry.iter_mut().find(|entry| !entry.in_use && entry.shape == shape) {
            entry.in_use = true;
            return Ok(Pool { raw: entry.raw, shape });
        }
        // DPDK wants cache × 1.5 ≤ buffers; a quarter leaves most of a small pool for the other threads.
        let cache = (shape.buffers / 4).min(CACHE_BUFFERS_MAX);
        let serial = SERIAL.fetch_add(1, Ordering::Relaxed);
        let name = CString::new(format!("nfsplice_{serial}")).map_err(|_| Error::Invalid("a pool name with NUL".to_owned()))?;
        let data_room = if shape.room == 0 { 0 } else { shape.room + HEADROOM };
        // SAFETY: a valid name; plain numbers otherwise. EAL is running: callers come through Port::open(&Eal).
        let raw = unsafe { sys::rte_pktmbuf_pool_create(name.as_ptr(), shape.buffers, cache, 0, data_room, shape.socket) };
        let Some(raw) = NonNull::new(raw) else {
            let per_buffer = usize::from(data_room) + size_of::<sys::rte_mbuf>() + 64;
            return Err(Error::Memory {
                what: format!("{} {what} buffers", shape.buffers),
                wanted_bytes: per_buffer * shape.buffers as usize,
                available_bytes: 0,
                errno: Errno::current(),
            });
        };
        registry.push(Entry { shape, raw, in_use: true });
        Ok(Pool { raw, shape })
    }

    pub(crate) fn as_ptr(&self) -> *mut sys::rte_mempool {
        self.raw.as_ptr()
    }

    /// Buffers that are not in the pool: with the program, the driver or a peer of net_ring. Slow; for statistics.
    pub(crate) fn in_use(&self) -> u32 {
        // SAFETY: pools are never freed while EAL runs; reads counters.
        unsafe { sys::rte_mempool_in_use_count(self.raw.as_ptr()) }
    }

    pub(crate) fn shape(&self) -> Shape {
        self.shape
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        let mut registry = REGISTRY.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(entry) = registry.iter_mut().find(|entry| entry.raw == self.raw) {
            entry.in_use = false;
        }
    }
}

/// True when every buffer of every pool is back.
pub(crate) fn all_home() -> bool {
    let registry = REGISTRY.lock().unwrap_or_else(PoisonError::into_inner);
    // SAFETY: pools are never freed while EAL runs.
    registry.iter().all(|entry| unsafe { sys::rte_mempool_in_use_count(entry.raw.as_ptr()) } == 0)
}

/// Called just before EAL goes away, with all pools home and none lent.
pub(crate) fn forget_all() {
    REGISTRY.lock().unwrap_or_else(PoisonError::into_inner).clear();
}
