//! The stores that the exports are kept in: opened at the start, one handle for each core, closed at the end.

use std::sync::Arc;

use anyhow::{Context as _, anyhow};
use dpdk::Eal;

use super::clock::Clock;
use super::sleep::Waker;
use super::{assemble, engine, state};
use crate::buf::PagePool;
use crate::control::config::{Config, Export as ExportConfig, Machine, Store as StoreConfig};
use crate::control::metrics::LayoutBuilder;
use crate::control::threads::Placement;
use crate::program::exports::ExportTable;
use crate::store::Store;
use crate::store::local::{LocalOptions, LocalStore, Wake};
use crate::store::memory::{self, MemoryStore};

enum Opened {
    Memory(MemoryStore),
    Local(LocalStore),
}

/// All stores, in the order of the exports.
pub struct Stores {
    opened: Vec<Opened>,
}

impl Stores {
    pub fn open(config: &Config, machine: &Machine, eal: &Eal, cache: &PagePool, clock: &Clock) -> anyhow::Result<Stores> {
        let mut opened = Vec::new();
        let directories = config.exports.iter().filter(|export| matches!(export.store, StoreConfig::Directory(_))).count();
        // Random: what an earlier life of the server had not committed may be lost (RFC 1813 section 3.3.7).
        let verifier = state::random()?;
        for export in &config.exports {
            opened.push(match &export.store {
                StoreConfig::Memory { mib } => Opened::Memory(open_memory(config, export, *mib, eal, clock)?),
                StoreConfig::Directory(path) => {
                    let options = LocalOptions {
                        // The page cache and the files a process may have open are shared out evenly.
                        cores: config.cores.engine.len(),
                        cache_blocks_max: (cache.blocks() * 7 / 8 / directories).max(1),
                        open_files_max: (config.limits.open_files_max as usize / directories).max(1),
                        attribute_cache_ms: config.limits.attribute_cache_ms.into(),
                        readahead_blocks_max: config.limits.readahead_blocks.into(),
                        // Calls that wait for this store; beyond, it refuses them.
                        parked_max: config.limits.io_queue_entries as usize,
                        queue_max: config.limits.io_queue_entries as usize * config.cores.engine.len(),
                        metadata_threads: config.cores.io_threads as usize,
                        pin: io_cpus(config, machine),
                        ..LocalOptions::new(path, export.id.into(), cache.clone(), verifier)
                    };
                    let store = LocalStore::open(options).map_err(|error| anyhow!("export {}: {error}", export.name))?;
                    if !store.uses_io_uring() {
                        tracing::warn!(export = %export.name, "io_uring is not available: data goes through plain reads and writes");
                    }
                    Opened::Local(store)
                }
            });
        }
        Ok(Stores { opened })
    }

    /// One core's handles, in the numbering of the export table. Completions come back to that core, whom they wake.
    pub fn handles(&self, core: usize, waker: &Arc<Waker>) -> Vec<Box<dyn Store>> {
        let handle = |store: &Opened| match store {
            Opened::Memory(store) => Box::new(store.handle()) as Box<dyn Store>,
            Opened::Local(store) => {
                let waker = Arc::clone(waker);
                let wake: Wake = Arc::new(move || waker.wake());
                Box::new(store.handle_for_core(core, Some(wake)))
            }
        };
        self.opened.iter().map(handle).collect()
    }

    /// The stores' shared counters, one group for each export that is kept in a directory.
    pub fn add_to(&self, mut layout: LayoutBuilder) -> LayoutBuilder {
        for (at, store) in self.opened.iter().enumerate() {
            if let Opened::Local(store) = store {
                let source = store.counter_source();
                layout = layout.shared(&format!("store{at}"), move || source.read());
            }
        }
        layout
    }

    /// Waits for what is under way. The cores' handles are gone by now.
    pub fn shutdown(&mut self) {
        for store in self.opened.drain(..) {
            if let Opened::Local(store) = store {
                store.shutdown();
            }
        }
    }
}

/// The stores are numbered in the order of the exports.
pub fn export_table(exports: &[ExportConfig]) -> anyhow::Result<Arc<ExportTable>> {
    let exports = exports.iter().enumerate().map(|(at, export)| assemble::export(export, at)).collect();
    Ok(Arc::new(ExportTable::new(exports)?))
}

/// Where the I/O threads run: as configured, or wherever no packet loop does.
fn io_cpus(config: &Config, machine: &Machine) -> Vec<usize> {
    if !config.cores.io.is_empty() {
        return config.cores.io.iter().map(|cpu| *cpu as usize).collect();
    }
    match Placement::off_engine(&config.cores.engine, &machine.cpus) {
        Placement::Any(cpus) => cpus,
        Placement::Cpu(cpu) => vec![cpu],
    }
}

fn open_memory(config: &Config, export: &ExportConfig, mib: u32, eal: &Eal, clock: &Clock) -> anyhow::Result<MemoryStore> {
    let pool = engine::reserve(eal, "memory", (mib as usize) << 20, config.memory.block_bytes() as usize)
        .with_context(|| format!("export {}", export.name))?;
    let wall = Clock::wall();
    let options = memory::Options {
        file_system: export.id.into(),
        // Handles from before a restart must be stale: the files are gone.
        instance: (wall.seconds as u64) << 30 | u64::from(wall.nanoseconds),
        ..memory::Options::new(pool)
    };
    MemoryStore::new(options, clock.now(), wall).with_context(|| format!("export {}: {mib} MiB are too little", export.name))
}
