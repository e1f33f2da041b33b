//! Is the busy-cycle meter right? Where the server's core is the bottleneck the rate tells what a call costs, TSC rate / rate, with no
//! meter in it. Work that copies makes it one by itself. For the rest a thief takes a known share of the core, so much that it
//! becomes the bottleneck: a call costs (1 - share) x TSC rate / rate then. The meter's figure is taken without the thief, where the
//! core is idle part of the time and everything depends on telling work from waiting.
//!
//! The thief is a real-time process that spins for a part of each period and sleeps for the rest; its share is its own CPU time. The
//! period is short and many calls are outstanding, so that the core finds work whenever it is given back; the same number
//! without the thief, so that both runs serve calls in batches of about the same size.

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde::Serialize;

use crate::measure::Pace;
use crate::peers::{Bed, SERVER_CPU};
use crate::process::{self, find};
use crate::workload::{NULL, READ_4K, READ_64K, Set, WRITE_64K, Workload};

/// How far the two figures may lie apart.
pub const TOLERANCE: f64 = 0.10;
/// Shares that the thief tries, in percent: the first with which the core has nothing left counts.
const SHARES: [u32; 4] = [30, 50, 65, 80];
/// Busy share of the rest of the core from which on it is the bottleneck.
const SATURATED: f64 = 0.95;
const PERIOD: Duration = Duration::from_micros(100);

#[derive(Clone, Debug, Serialize)]
pub struct Check {
    pub workload: String,
    /// Cycles per call by the meter, and the share of the core that it shows as busy, without a thief.
    pub metered: f64,
    pub metered_busy: f64,
    /// Cycles per call by the rate, and what the thief had taken.
    pub by_rate: f64,
    pub stolen: f64,
    /// Whether the core had nothing left: otherwise the rate tells nothing.
    pub saturated: bool,
}

impl Check {
    pub fn ratio(&self) -> f64 {
        self.metered / self.by_rate
    }

    pub fn passed(&self) -> bool {
        self.saturated && (self.ratio() - 1.0).abs() <= TOLERANCE
    }
}

/// What is missing on this machine.
pub fn missing() -> Option<&'static str> {
    ["chrt"].into_iter().find(|program| find(program).is_none())
}

/// What the server does with payload, and the work.
pub fn workloads() -> [(&'static str, Workload); 5] {
    let hot = |workload: Workload| Workload { set: Set::Hot, ..workload };
    [
        ("copy", READ_64K),
        ("splice", WRITE_64K),
        ("splice", hot(NULL).with_pace(4, 128)),
        ("splice", hot(READ_4K).with_pace(4, 128)),
        ("splice", hot(READ_64K).with_pace(4, 32)),
    ]
}

pub fn check(bed: &Bed, transmit: &str, workload: &Workload, duration: Duration) -> Result<Check> {
    let pace = Pace { duration, rate: None, verify: false };
    let alone = bed.nfsplice(transmit, workload, &pace)?;
    let copying = if transmit == "copy" { ", copying" } else { "" };
    let mut check = Check {
        workload: format!("{}{copying}, {} outstanding", workload.name, workload.connections * workload.depth),
        metered: alone.cycles,
        metered_busy: alone.busy,
        by_rate: bed.hz / alone.operations_per_s,
        stolen: 0.0,
        saturated: alone.busy > SATURATED,
    };
    if check.saturated {
        return Ok(check);
    }
    for share in SHARES {
        let thief = Thief::start(share)?;
        let robbed = bed.nfsplice(transmit, workload, &pace);
        let stolen = thief.stop()?;
        let robbed = robbed?;
        check.stolen = stolen;
        check.by_rate = (1.0 - stolen) * bed.hz / robbed.operations_per_s;
        // A turn that the thief interrupts takes the thief's time too: saturated, the meter shows all of the core.
        check.saturated = robbed.busy > SATURATED;
        // A thief that takes still more only makes batches larger and calls cheaper.
        if check.saturated {
            break;
        }
    }
    Ok(check)
}

struct Thief {
    child: std::process::Child,
    _guard: process::Guard,
    started: Instant,
    cpu_before: f64,
}

impl Thief {
    fn start(percent: u32) -> Result<Thief> {
        let mut command = Command::new("chrt");
        command.args(["-f", "50"]).arg(std::env::current_exe()?).args(["steal", &percent.to_string()]);
        let child = command.stdin(Stdio::null()).spawn().context("chrt")?;
        let guard = process::Guard::new(&child);
        std::thread::sleep(Duration::from_millis(100));
        let cpu_before = cpu_seconds(child.id())?;
        Ok(Thief { child, _guard: guard, started: Instant::now(), cpu_before })
    }

    /// The share of the core it had.
    fn stop(mut self) -> Result<f64> {
        let used = cpu_seconds(self.child.id())? - self.cpu_before;
        let elapsed = self.started.elapsed().as_secs_f64();
        self.child.kill()?;
        self.child.wait()?;
        Ok(used / elapsed)
    }
}

fn cpu_seconds(pid: u32) -> Result<f64> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/schedstat"))?;
    let nanoseconds: f64 = text.split_whitespace().next().context("schedstat is empty")?.parse()?;
    Ok(nanoseconds * 1e-9)
}

/// In a process of its own: takes so many percent of the server's core until it is killed.
pub fn steal(percent: u32) -> ! {
    core_affinity::set_for_current(core_affinity::CoreId { id: SERVER_CPU });
    let share = PERIOD * percent / 100;
    let mut next = Instant::now();
    loop {
        let until = next + share;
        while Instant::now() < until {
            std::hint::spin_loop();
        }
        next += PERIOD;
        std::thread::sleep(next.saturating_duration_since(Instant::now()));
    }
}
