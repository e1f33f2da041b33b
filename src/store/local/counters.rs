//! What the local store counts. One core's fast path counts in a plain struct; the I/O threads, which share what they
//! count, in atomics with the same names.

use std::sync::atomic::{AtomicU64, Ordering};

macro_rules! local_counters {
    ($( $(#[doc = $help:literal])+ $name:ident, )*) => {
        crate::counters! {
            /// What the local store counts.
            pub struct LocalCounters { $( $(#[doc = $help])+ $name, )* }
        }

        /// The same, shared between threads.
        #[derive(Default)]
        pub struct Shared { $( pub $name: AtomicU64, )* }

        impl Shared {
            pub fn snapshot(&self) -> LocalCounters {
                LocalCounters { $( $name: self.$name.load(Ordering::Relaxed), )* }
            }
        }
    };
}

local_counters! {
    /// READs answered from memory in the core's own loop.
    read_hits,
    /// READs that had to wait for I/O.
    read_misses,
    /// Other operations answered from memory in the core's own loop.
    attribute_hits,
    /// Operations that waited for an I/O thread.
    operations_parked,
    /// Operations refused with DELAY because too many were parked or queued.
    queue_full_delays,
    /// Operations refused with DELAY, or READs cut short, because no page was free and none could be evicted.
    pool_exhausted,
    /// Blocks read from files.
    blocks_filled,
    /// Blocks read from files before somebody asked.
    readahead_issued,
    /// Blocks read ahead that were used.
    readahead_used,
    /// Blocks read ahead that were evicted unused.
    readahead_wasted,
    /// Blocks evicted.
    evictions,
    /// Reads of blocks that met the end of the file earlier than expected, or failed.
    fills_short,
    /// WRITEs done.
    writes,
    /// Bytes written.
    write_bytes,
    /// Rounds of writes to one file; within one round nothing is told apart from changes made on the host.
    write_batches,
    /// Blocks written past the cache because the rest of them was not in memory.
    writes_around,
    /// COMMITs and stable WRITEs that waited for storage.
    commits,
    /// fsync and fdatasync calls made for them.
    syncs,
    /// fsync calls that failed: the write verifier changed.
    sync_errors,
    /// Objects put out of the inode table to make room.
    inode_evictions,
    /// Descriptors closed to stay below `open_files_max`.
    file_evictions,
    /// Descriptors of files removed on the host that were closed because it had no space left.
    removed_files_closed,
    /// Handles of objects that are gone.
    stale_handles,
    /// Changes made on the host, past the server, that cost a file its cached blocks.
    foreign_changes,
}

pub fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

pub fn add(counter: &AtomicU64, n: u64) {
    counter.fetch_add(n, Ordering::Relaxed);
}
