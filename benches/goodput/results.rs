//! What is kept between runs, so that a table can be made in pieces.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use anyhow::Result;
use serde::{Deserialize, Serialize};

use crate::cell::Cell;

/// Ours takes three minutes to make again. The kernel's takes a quiet machine, root and most of an hour: it is in git.
const FILES: [&str; 2] = ["target/goodput/ours.json", "benches/goodput/kernel.json"];

/// What one run came to.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Run {
    pub seed: u64,
    pub mbit_per_second: f64,
    /// Runs that this one stands for: their median is all that is left of some.
    #[serde(default = "one")]
    pub stands_for: u64,
    pub retransmitted: u64,
    /// Counters, for whoever asks why.
    pub notes: String,
    /// Of the kernel's runs.
    #[serde(default)]
    pub carrier: Option<Carrier>,
}

fn one() -> u64 {
    1
}

/// How exact the forwarder was.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Carrier {
    /// Packets left it so much later than they should.
    pub late_us_mean: f64,
    pub late_us_p99: f64,
    pub late_us_max: f64,
    /// It did not look at the devices for so long.
    pub gap_us_p99: f64,
    pub gap_us_max: f64,
    /// Share of its time in which it had something to do.
    pub busy: f64,
}

impl Carrier {
    /// What the forwarder added is small beside the round trip, or beside a packet's time on the link where that is longer.
    pub fn is_exact_for(&self, cell: &Cell) -> bool {
        self.late_us_mean <= (cell.rtt_us as f64 / 10.0).max(30.0) && self.busy < 0.8
    }
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Half {
    pub runs: Vec<Run>,
}

impl Half {
    pub fn runs(&self) -> u64 {
        self.runs.iter().map(|run| run.stands_for).sum()
    }

    pub fn median(&self) -> Option<f64> {
        let mut sorted: Vec<f64> = self.runs.iter().map(|run| run.mbit_per_second).collect();
        sorted.sort_by(f64::total_cmp);
        match sorted.len() {
            0 => None,
            len if len % 2 == 1 => Some(sorted[len / 2]),
            len => Some((sorted[len / 2 - 1] + sorted[len / 2]) / 2.0),
        }
    }
}

/// One half of the table, in a file of its own.
#[derive(Clone, Copy)]
pub enum Side {
    Ours,
    Kernel,
}

#[derive(Clone, Debug, Default)]
pub struct Results {
    /// By side, then by the cell's name.
    halves: [BTreeMap<String, Half>; 2],
}

fn file(side: Side) -> &'static Path {
    Path::new(FILES[side as usize])
}

impl Results {
    pub fn load() -> Results {
        let read =
            |side| fs::read_to_string(file(side)).ok().and_then(|text| serde_json::from_str(&text).ok()).unwrap_or_default();
        Results { halves: [read(Side::Ours), read(Side::Kernel)] }
    }

    pub fn save(&self, side: Side) -> Result<()> {
        if let Some(folder) = file(side).parent() {
            fs::create_dir_all(folder)?;
        }
        let fresh = file(side).with_extension("new");
        fs::write(&fresh, serde_json::to_string_pretty(&self.halves[side as usize])?)?;
        Ok(fs::rename(fresh, file(side))?)
    }

    pub fn half(&self, side: Side, cell: &Cell) -> Option<&Half> {
        self.halves[side as usize].get(&cell.name()).filter(|half| !half.runs.is_empty())
    }

    pub fn half_mut(&mut self, side: Side, cell: &Cell) -> &mut Half {
        self.halves[side as usize].entry(cell.name()).or_default()
    }
}
