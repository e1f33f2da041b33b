//! Counters on their way from the cores to whoever asks.
//!
//! At start a [`Layout`] is made from one sample of each layer's counters struct: it fixes names and indexes. A [`Board`] has one
//! array of atomics per core. A core's loop calls [`Publisher::publish`] every [`PUBLISH_INTERVAL_MS`]: plain stores, no lock,
//! no allocation, and no cache line that another core writes. Readers sum over the cores.
//!
//! What a reader sees of one core may be torn between two publishes (some fields new, some old); each single value is right
//! and counters never run backwards. Figures that are not kept per core (the page cache, I/O threads) come from a
//! [shared source](LayoutBuilder::shared), which is asked when somebody reads.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use crate::counters::{Counters, Kind};

/// How often a core should publish, in milliseconds: what `stats` shows is at most this old.
pub const PUBLISH_INTERVAL_MS: u64 = 100;

/// One published value's name and meaning.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Metric {
    /// Layer and field: `tcp.segments_in`.
    pub name: String,
    /// For people.
    pub help: &'static str,
    /// Counter or gauge.
    pub kind: Kind,
}

type Shared = Box<dyn Fn(&mut dyn FnMut(u64)) + Send + Sync>;

/// Collects the layers' counters structs in the order in which they will be published.
#[derive(Default)]
pub struct LayoutBuilder {
    per_core: Vec<Metric>,
    shared: Vec<(Vec<Metric>, Shared)>,
}

impl LayoutBuilder {
    /// Starts with nothing.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a struct that each core owns one of; `sample` is any value of it.
    pub fn per_core(mut self, layer: &str, sample: &dyn Counters) -> Self {
        self.per_core.extend(metrics_of(layer, sample));
        self
    }

    /// Adds a struct that is made when somebody asks, from atomics of its own. `read` runs on the stats thread and must not
    /// wait for a core.
    pub fn shared<C: Counters + Default>(mut self, layer: &str, read: impl Fn() -> C + Send + Sync + 'static) -> Self {
        let source: Shared = Box::new(move |f| read().visit(&mut |_, value| f(value)));
        self.shared.push((metrics_of(layer, &C::default()), source));
        self
    }

    /// Fixes the layout for `cores` publishers.
    ///
    /// # Panics
    /// When two layers publish one name: a mistake in the wiring, found by the first test that starts a server.
    pub fn build(self, cores: usize) -> Arc<Board> {
        let mut names: Vec<&str> = self.per_core.iter().map(|metric| metric.name.as_str()).collect();
        names.extend(self.shared.iter().flat_map(|(metrics, _)| metrics.iter().map(|m| m.name.as_str())));
        names.sort_unstable();
        if let Some(pair) = names.windows(2).find(|pair| pair[0] == pair[1]) {
            panic!("two layers publish {}", pair[0]);
        }
        let slots = (0..cores).map(|_| self.per_core.iter().map(|_| AtomicU64::new(0)).collect()).collect();
        Arc::new(Board { per_core: self.per_core, shared: self.shared, slots })
    }
}

fn metrics_of(layer: &str, sample: &dyn Counters) -> Vec<Metric> {
    let metric =
        |field: &crate::counters::Field| Metric { name: format!("{layer}.{}", field.name), help: field.help, kind: field.kind };
    sample.fields().iter().map(metric).collect()
}

/// Where the cores' counters can be read.
pub struct Board {
    per_core: Vec<Metric>,
    shared: Vec<(Vec<Metric>, Shared)>,
    slots: Box<[Box<[AtomicU64]>]>,
}

impl fmt::Debug for Board {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Board").field("cores", &self.slots.len()).field("per_core", &self.per_core.len()).finish()
    }
}

impl Board {
    /// The publishing end for one core. None when there is no such core.
    pub fn publisher(self: &Arc<Self>, core: usize) -> Option<Publisher> {
        (core < self.slots.len()).then(|| Publisher { board: Arc::clone(self), core })
    }

    /// Every metric with its value summed over all cores, in the layout's order.
    pub fn read(&self) -> Vec<(&Metric, u64)> {
        let mut all = Vec::with_capacity(self.per_core.len());
        for (index, metric) in self.per_core.iter().enumerate() {
            let total = self.slots.iter().fold(0u64, |sum, core| sum.wrapping_add(core[index].load(Relaxed)));
            all.push((metric, total));
        }
        for (metrics, source) in &self.shared {
            let mut values = Vec::with_capacity(metrics.len());
            source(&mut |value| values.push(value));
            all.extend(metrics.iter().zip(values));
        }
        all
    }

    /// One core's own values, in the layout's order; empty when there is no such core.
    pub fn core(&self, core: usize) -> Vec<(&Metric, u64)> {
        let Some(slots) = self.slots.get(core) else {
            return Vec::new();
        };
        self.per_core.iter().zip(slots.iter().map(|slot| slot.load(Relaxed))).collect()
    }

    /// Number of cores that publish.
    pub fn cores(&self) -> usize {
        self.slots.len()
    }
}

/// One core's end of the [`Board`].
#[derive(Debug)]
pub struct Publisher {
    board: Arc<Board>,
    core: usize,
}

impl Publisher {
    /// Copies the layers' counters to the board: the same structs in the same order as [`LayoutBuilder::per_core`] got them.
    ///
    /// # Panics
    /// When they are not as many fields as in the layout.
    pub fn publish(&mut self, layers: &[&dyn Counters]) {
        let slots = &self.board.slots[self.core];
        let mut next = 0;
        for layer in layers {
            layer.visit(&mut |_, value| {
                if let Some(slot) = slots.get(next) {
                    slot.store(value, Relaxed);
                }
                next += 1;
            });
        }
        assert!(next == slots.len(), "published {next} fields into a layout of {}", slots.len());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    crate::counters! {
        /// A layer.
        struct Tcp {
            /// Segments.
            segments_in,
            /// Octets.
            octets_in,
        }
        gauges {
            /// Open.
            connections_open,
        }
    }

    crate::counters! {
        /// A shared one.
        struct Cache {
            /// Hits.
            hits,
        }
    }

    fn values(board: &Board) -> Vec<(String, u64)> {
        board.read().into_iter().map(|(metric, value)| (metric.name.clone(), value)).collect()
    }

    #[test]
    fn values_of_all_cores_are_summed_and_shared_ones_are_asked_for() {
        let board = LayoutBuilder::new().per_core("tcp", &Tcp::default()).shared("cache", || Cache { hits: 99 }).build(2);
        let mut first = board.publisher(0).unwrap();
        let mut second = board.publisher(1).unwrap();
        assert!(board.publisher(2).is_none());
        first.publish(&[&Tcp { segments_in: 1, octets_in: 100, connections_open: 5 }]);
        second.publish(&[&Tcp { segments_in: 2, octets_in: 200, connections_open: 1 }]);
        first.publish(&[&Tcp { segments_in: 4, octets_in: 400, connections_open: 2 }]);
        let expected = [("tcp.segments_in", 6), ("tcp.octets_in", 600), ("tcp.connections_open", 3), ("cache.hits", 99)];
        assert_eq!(values(&board), expected.map(|(name, value)| (name.to_owned(), value)));
        assert_eq!(board.core(1)[0].1, 2);
        assert_eq!(board.read()[2].0.kind, Kind::Gauge);
    }

    #[test]
    #[should_panic(expected = "published 4 fields into a layout of 3")]
    fn publishing_other_structs_than_the_layout_has_is_a_bug() {
        let board = LayoutBuilder::new().per_core("tcp", &Tcp::default()).build(1);
        board.publisher(0).unwrap().publish(&[&Tcp::default(), &Cache::default()]);
    }

    #[test]
    #[should_panic(expected = "two layers publish tcp.")]
    fn one_name_for_two_values_is_a_bug() {
        let tcp = Tcp::default();
        LayoutBuilder::new().per_core("tcp", &tcp).per_core("tcp", &tcp).build(1);
    }
}
