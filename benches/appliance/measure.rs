//! One measurement: the generator runs, and while it does the server's meter is read twice, at live lines of the generator, so that
//! starting, filling the files and ramping up are not in between.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nfsplice::control::stats;
use serde::Serialize;
use serde_json::Value;

use crate::process;
use crate::workload::Workload;

/// Packets sent again that a run may have for each call: more, and its figures are not taken. A virtual machine whose CPUs are taken away
/// for a moment has some: TCP probes for the loss that a silence may mean.
pub const RETRANSMISSIONS_PER_CALL_MAX: f64 = 0.005;
/// And this many besides, for runs of few calls.
pub const RETRANSMISSIONS_MAX: f64 = 8.0;
/// Between two live lines of the generator.
const INTERVAL: Duration = Duration::from_millis(500);
/// What a run may take besides its own duration: starting, filling 1 GiB, ramping up.
const SETUP_MAX: Duration = Duration::from_secs(60);
/// The stages of a server's turn, as its counters name them.
pub const STAGES: [&str; 4] = ["receive", "serve", "transmit", "flush"];

/// What the server had used when it was asked.
#[derive(Clone, Debug, Default)]
pub struct Reading {
    pub at: Option<Instant>,
    /// CPU cycles, all threads.
    pub cycles: f64,
    /// A server that counts for itself.
    pub counters: BTreeMap<String, u64>,
}

#[derive(Clone, Debug, Default, Serialize)]
pub struct Sample {
    pub operations_per_s: f64,
    pub bytes_per_s: f64,
    pub p50_ns: f64,
    pub p99_ns: f64,
    pub p99_9_ns: f64,
    /// Of the server's core, per operation.
    pub cycles: f64,
    /// The same by stage; empty for servers that do not tell.
    pub stages: Vec<f64>,
    /// Of the server's core.
    pub busy: f64,
    pub segments_per_chain: f64,
    pub chains_per_burst: f64,
    pub payload_bytes_copied: u64,
    pub retransmissions: u64,
    /// Cycles between the meter's readings, and turns of a polling core that found nothing; 0 for servers that do not tell.
    pub elapsed: f64,
    pub empty_turns: f64,
}

/// An open loop whose server, or whose generator's own core, could not keep up: not a figure, and nobody's fault.
#[derive(Debug)]
pub struct Overloaded;

impl std::fmt::Display for Overloaded {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("not all of the offered calls could be sent")
    }
}

impl std::error::Error for Overloaded {}

impl Sample {
    /// Field by field the median; retransmissions and copies are added up.
    pub fn median(samples: &[Sample]) -> Sample {
        let of = |field: fn(&Sample) -> f64| median(samples.iter().map(field).collect());
        let stages = samples.first().map_or(0, |sample| sample.stages.len());
        Sample {
            operations_per_s: of(|sample| sample.operations_per_s),
            bytes_per_s: of(|sample| sample.bytes_per_s),
            p50_ns: of(|sample| sample.p50_ns),
            p99_ns: of(|sample| sample.p99_ns),
            p99_9_ns: of(|sample| sample.p99_9_ns),
            cycles: of(|sample| sample.cycles),
            stages: (0..stages).map(|at| median(samples.iter().filter_map(|s| s.stages.get(at).copied()).collect())).collect(),
            busy: of(|sample| sample.busy),
            segments_per_chain: of(|sample| sample.segments_per_chain),
            chains_per_burst: of(|sample| sample.chains_per_burst),
            payload_bytes_copied: samples.iter().map(|sample| sample.payload_bytes_copied).sum(),
            retransmissions: samples.iter().map(|sample| sample.retransmissions).sum(),
            elapsed: of(|sample| sample.elapsed),
            empty_turns: of(|sample| sample.empty_turns),
        }
    }
}

pub fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(0.0)
}

/// How long and at which pace.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    pub duration: Duration,
    /// Calls per second of an open loop.
    pub rate: Option<f64>,
    pub verify: bool,
}

/// The generator's options for a workload; what it talks to stands in `command` already, except the export.
pub fn ask(command: &mut Command, workload: &Workload, pace: &Pace, json: &Path, target: &str) {
    let (files, file_bytes) = workload.set.shape();
    let mix = if pace.verify { workload.verified_mix.unwrap_or(workload.mix) } else { workload.mix };
    command.args(["--workload", mix, "--size", &workload.bytes.to_string()]);
    command.args(["--files", &files.to_string(), "--file-size", &file_bytes.to_string()]);
    command.args(["--connections", &workload.connections.to_string(), "--depth", &workload.depth.to_string()]);
    command.args(["--duration", &format!("{}ms", pace.duration.as_millis()), "--ramp", "500ms"]);
    command.args(["--interval", &format!("{}ms", INTERVAL.as_millis())]);
    // Judged here, by the number of calls.
    command.args(["--retransmissions-max", &u32::MAX.to_string()]);
    if let Some(rate) = pace.rate {
        command.args(["--rate", &rate.to_string()]);
    }
    if pace.verify {
        command.arg("--verify");
    }
    command.arg("--json").arg(json).arg(target);
}

/// What a run of the generator gave.
pub struct Run {
    pub json: Value,
    readings: Vec<Reading>,
}

/// Runs the generator to its end and reads the meter at each of its live lines.
///
/// # Errors
/// When the run is not clean, with what it said.
pub fn run(mut command: Command, pace: &Pace, json: &Path, mut read: impl FnMut() -> Result<Reading>) -> Result<Run> {
    let _ = std::fs::remove_file(json);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut child = command.spawn().with_context(|| format!("starting {command:?}"))?;
    let guard = process::Guard::new(&child);
    let limit = Deadline::after(child.id(), SETUP_MAX + 2 * pace.duration);
    let mut readings = Vec::new();
    let mut said = String::new();
    for line in BufReader::new(child.stderr.take().context("stderr is piped")?).lines() {
        let line = line?;
        if line.contains(" calls/s ") {
            readings.push(Reading { at: Some(Instant::now()), ..read()? });
        }
        said += &line;
        said.push('\n');
    }
    let status = child.wait()?;
    drop((limit, guard));
    let text = std::fs::read(json).with_context(|| format!("{command:?} left no result\n{said}"))?;
    let result = Run { json: serde_json::from_slice(&text)?, readings };
    let faults = result.json["faults"].as_object().into_iter().flatten();
    let mut others = faults.filter(|(name, count)| *name != "unsent" && **count != 0);
    if pace.rate.is_some() && result.number("/faults/unsent") > 0.0 && others.next().is_none() {
        return Err(Overloaded.into());
    }
    if !status.success() || result.json["clean"] != true {
        bail!("not clean: {}, retransmissions {}\n{said}", result.json["faults"], result.json["retransmissions"]);
    }
    let (again, calls) = (result.number("/retransmissions"), result.number("/total/calls"));
    if again > RETRANSMISSIONS_MAX + RETRANSMISSIONS_PER_CALL_MAX * calls {
        bail!("{again} packets were sent again in {calls} calls\n{said}");
    }
    Ok(result)
}

impl Run {
    fn number(&self, path: &str) -> f64 {
        self.json.pointer(path).and_then(Value::as_f64).unwrap_or(0.0)
    }

    /// Operations between the first and the last live line.
    fn operations(&self) -> f64 {
        let intervals = self.json["intervals"].as_array().map_or(&[][..], Vec::as_slice);
        intervals.iter().take(self.readings.len()).skip(1).filter_map(|interval| interval["calls"].as_f64()).sum()
    }

    pub fn sample(&self, hz: f64) -> Result<Sample> {
        let [first, .., last] = &self.readings[..] else { bail!("the run was too short to read the server's meter twice") };
        let grown = |name: &str| {
            let value = |reading: &Reading| reading.counters.get(name).copied().unwrap_or(0);
            (value(last) - value(first)) as f64
        };
        let ratio = |above: f64, below: f64| if below > 0.0 { above / below } else { 0.0 };
        // A server that counts for itself tells calls and cycles of the same moments.
        let own = grown("rpc.rpccnt");
        let operations = if own > 0.0 { own } else { self.operations() };
        let cycles = last.cycles - first.cycles;
        let elapsed = last.at.zip(first.at).map_or(0.0, |(last, first)| (last - first).as_secs_f64() * hz);
        let elapsed = if own > 0.0 { grown("cycles.elapsed") } else { elapsed };
        Ok(Sample {
            operations_per_s: self.number("/total/calls_per_s"),
            bytes_per_s: self.number("/total/bytes_per_s"),
            p50_ns: self.number("/total/latency_ns/p50"),
            p99_ns: self.number("/total/latency_ns/p99"),
            p99_9_ns: self.number("/total/latency_ns/p99_9"),
            cycles: ratio(cycles, operations),
            stages: match own > 0.0 {
                true => STAGES.iter().map(|stage| ratio(grown(&format!("cycles.{stage}")), operations)).collect(),
                false => Vec::new(),
            },
            busy: ratio(cycles, elapsed),
            segments_per_chain: ratio(grown("port0.tx_segments"), grown("port0.tx_chains")),
            chains_per_burst: ratio(grown("port0.tx_chains"), grown("port0.tx_bursts")),
            payload_bytes_copied: grown("port0.tx_payload_bytes_copied") as u64,
            retransmissions: self.number("/retransmissions") as u64,
            elapsed,
            empty_turns: grown("shard.turns_idle"),
        })
    }
}

/// The meter of an nfsplice server.
pub fn own_meter(socket: &Path) -> Result<Reading> {
    let report = stats::fetch(socket)?;
    let cycles = report.counters.get("cycles.busy").copied().unwrap_or(0) as f64;
    Ok(Reading { at: None, cycles, counters: report.counters })
}

/// CPU time of processes, all threads, as cycles of a counter that runs at `hz`. The kernel books the softirq work that interrupts
/// or ends a system call on the thread that it interrupts.
pub fn cpu_meter(pids: &[u32], hz: f64) -> Result<Reading> {
    let mut nanoseconds = 0.0;
    for pid in pids {
        for task in std::fs::read_dir(format!("/proc/{pid}/task"))? {
            let text = std::fs::read_to_string(task?.path().join("schedstat")).unwrap_or_default();
            nanoseconds += text.split_whitespace().next().and_then(|word| word.parse::<f64>().ok()).unwrap_or(0.0);
        }
    }
    Ok(Reading { cycles: nanoseconds * 1e-9 * hz, ..Reading::default() })
}

/// Kills a process that takes too long.
struct Deadline {
    _cancel: std::sync::mpsc::Sender<()>,
}

impl Deadline {
    fn after(pid: u32, limit: Duration) -> Deadline {
        let (cancel, cancelled) = std::sync::mpsc::channel::<()>();
        std::thread::spawn(move || {
            if cancelled.recv_timeout(limit) == Err(std::sync::mpsc::RecvTimeoutError::Timeout) {
                process::signal(pid, rustix::process::Signal::KILL);
            }
        });
        Deadline { _cancel: cancel }
    }
}
