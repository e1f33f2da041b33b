//! The stores that the exports are kept in: opened at the start, one handle for each core, closed at the end.

use std::sync::Arc;

use anyhow::{Context as _, bail};
use dpdk::Eal;

use super::clock::Clock;
use super::sleep::Waker;
use super::{assemble, engine};
use crate::buf::PagePool;
use crate::control::config::{Config, Export as ExportConfig, Machine, Store as StoreConfig};
use crate::control::metrics::LayoutBuilder;
use crate::program::exports::ExportTable;
use crate::store::Store;
use crate::store::memory::{self, MemoryStore};

enum Opened {
    Memory(MemoryStore),
}

/// All stores, in the order of the exports.
pub struct Stores {
    opened: Vec<Opened>,
}

impl Stores {
    pub fn open(
        config: &Config,
        _machine: &Machine,
        eal: &Eal,
        _cache: &PagePool,
        _waker: &Arc<Waker>,
        clock: &Clock,
    ) -> anyhow::Result<Stores> {
        let mut opened = Vec::new();
        for export in &config.exports {
            opened.push(match &export.store {
                StoreConfig::Memory { mib } => Opened::Memory(open_memory(config, export, *mib, eal, clock)?),
                StoreConfig::Directory(path) => bail!("{}: not yet", path.display()),
            });
        }
        Ok(Stores { opened })
    }

    /// One core's handles, in the numbering of the export table.
    pub fn handles(&self) -> Vec<Box<dyn Store>> {
        let handle = |store: &Opened| match store {
            Opened::Memory(store) => Box::new(store.handle()) as Box<dyn Store>,
        };
        self.opened.iter().map(handle).collect()
    }

    pub fn export_table(&self, exports: &[ExportConfig]) -> anyhow::Result<Arc<ExportTable>> {
        let exports = exports.iter().enumerate().map(|(at, export)| assemble::export(export, at)).collect();
        Ok(Arc::new(ExportTable::new(exports)?))
    }

    pub fn add_to(&self, layout: LayoutBuilder) -> LayoutBuilder {
        layout
    }

    /// Waits for what is under way. The cores' handles are gone by now.
    pub fn shutdown(&mut self) {
        self.opened.clear();
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
