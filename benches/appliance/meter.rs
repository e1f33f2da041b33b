//! Is the busy-cycle meter right? Two checks that do not ask the meter what work is:
//!
//! - By the rate: where the server's core is the bottleneck a call costs TSC rate / rate. Work that copies makes it one.
//! - By the empty turns: what an empty turn costs is known from a server that is asked next to nothing. In a loaded run the core
//!   spends the rest of its time at work: (cycles elapsed - empty turns x their cost) / calls. Only for work that fills a good part of the
//!   core; what is left of a core that is nearly idle is the difference of two large numbers.

use anyhow::{Result, bail};
use serde::Serialize;

use crate::measure::{Pace, Sample};
use crate::peers::Bed;
use crate::workload::{GETATTR, NULL, READ_4K, READ_64K, Set, WRITE_64K, Workload};

/// How far the two figures may lie apart.
pub const TOLERANCE: f64 = 0.10;
/// Busy share from which on the core is the bottleneck.
const SATURATED: f64 = 0.95;
/// Runs until one is not slowed down by the generator: on a shared machine its core is sometimes taken away.
const TRIES: usize = 3;
/// Calls a second of a server that counts as idle.
const NEXT_TO_NOTHING: f64 = 100.0;

#[derive(Clone, Debug, Serialize)]
pub struct Check {
    pub workload: String,
    pub how: &'static str,
    /// Cycles per call by the meter, and the share of the core that it shows as busy.
    pub metered: f64,
    pub busy: f64,
    /// Cycles per call without it.
    pub otherwise: f64,
}

impl Check {
    pub fn ratio(&self) -> f64 {
        self.metered / self.otherwise
    }

    pub fn passed(&self) -> bool {
        (self.ratio() - 1.0).abs() <= TOLERANCE
    }
}

/// What the server does with payload, and the work.
const SATURATING: [(&str, Workload); 2] = [("copy", READ_64K), ("splice", WRITE_64K)];

/// All checks; what could not be checked is an error of its own.
pub fn checks(bed: &Bed, pace: &Pace) -> Vec<Result<Check>> {
    let mut checks: Vec<_> = SATURATING.iter().map(|(transmit, workload)| by_rate(bed, transmit, workload, pace)).collect();
    let idle = bed.nfsplice("splice", &NULL.with_pace(1, 1), &Pace { rate: Some(NEXT_TO_NOTHING), ..*pace });
    match idle {
        Ok(idle) => {
            let empty_turn = idle.elapsed / idle.empty_turns;
            let workloads = [NULL, GETATTR, Workload { set: Set::Hot, ..READ_4K }];
            checks.extend(workloads.iter().map(|workload| by_empty_turns(bed, workload, pace, empty_turn)));
        }
        Err(error) => checks.push(Err(error)),
    }
    checks
}

fn check(transmit: &str, workload: &Workload, how: &'static str, sample: &Sample, otherwise: f64) -> Check {
    let copying = if transmit == "copy" { ", copying" } else { "" };
    let workload = format!("{}{copying}", workload.full_name());
    Check { workload, how, metered: sample.cycles, busy: sample.busy, otherwise }
}

fn by_rate(bed: &Bed, transmit: &str, workload: &Workload, pace: &Pace) -> Result<Check> {
    for _ in 0..TRIES {
        let sample = bed.nfsplice(transmit, workload, pace)?;
        if sample.busy > SATURATED {
            return Ok(check(transmit, workload, "rate", &sample, bed.hz / sample.operations_per_s));
        }
    }
    bail!("{}: the server's core was not the bottleneck in {TRIES} runs", workload.full_name())
}

fn by_empty_turns(bed: &Bed, workload: &Workload, pace: &Pace, empty_turn: f64) -> Result<Check> {
    let sample = bed.nfsplice("splice", workload, pace)?;
    let at_work = sample.elapsed - sample.empty_turns * empty_turn;
    // `cycles` is what the meter counted for each of the same calls.
    let calls = sample.busy * sample.elapsed / sample.cycles;
    Ok(check("splice", workload, "empty turns", &sample, at_work / calls))
}
