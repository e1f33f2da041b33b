//! The result of a run: as JSON, as a table, as an HDR percentile file.
//!
//! The JSON's fields are described in docs/load.md; `compare` reads it back. Latencies are ns, times are seconds, sizes bytes.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io;

use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};

use super::options::{Options, TransportOptions};
use super::prepare::nfs_status;
use super::statistics::{Sample, VerbSample};
use crate::counters::Counters as _;

/// Names the format and its version.
pub const FORMAT: &str = "nfsplice-load/1";

/// What was asked for, in the words of the command line.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Configuration {
    pub server: String,
    pub export: String,
    pub transport: String,
    pub device: Option<String>,
    pub cores: Vec<u32>,
    pub workload: String,
    pub size: u32,
    pub files: u32,
    pub file_size: u64,
    pub working_set_bytes: u64,
    pub connections: u32,
    pub depth: u32,
    /// Calls per second; none: a closed loop.
    pub rate: Option<f64>,
    pub arrival: Option<String>,
    pub duration_s: Option<f64>,
    pub count: Option<u64>,
    pub ramp_s: f64,
    pub stable: String,
    pub commit_every: u32,
    pub verify: bool,
    pub seed: u64,
}

impl From<&Options> for Configuration {
    fn from(o: &Options) -> Configuration {
        let (transport, device) = match &o.transport {
            TransportOptions::Kernel => ("kernel", None),
            TransportOptions::Dpdk(config) => {
                let devices: Vec<String> = config.ports.iter().map(|port| port.device.to_string()).collect();
                ("dpdk", Some(devices.join(" ")))
            }
        };
        let stable = ["unstable", "data-sync", "file-sync"];
        Configuration {
            server: o.server.to_string(),
            export: o.export.clone(),
            transport: transport.into(),
            device,
            cores: o.cores.clone(),
            workload: o.work.to_text(),
            size: o.shape.io_bytes,
            files: o.shape.files,
            file_size: o.shape.file_bytes,
            working_set_bytes: u64::from(o.shape.files) * o.shape.file_bytes,
            connections: o.connections,
            depth: o.depth,
            rate: o.rate,
            arrival: o.rate.map(|_| format!("{:?}", o.arrival).to_lowercase()),
            duration_s: o.duration.map(|duration| duration.as_secs_f64()),
            count: o.count,
            ramp_s: o.ramp.as_secs_f64(),
            stable: stable.get(o.shape.stable as usize).copied().unwrap_or("").into(),
            commit_every: o.shape.commit_every,
            verify: o.verify,
            seed: o.seed,
        }
    }
}

/// Percentiles of a latency, ns.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Latency {
    pub min: u64,
    pub mean: f64,
    pub stddev: f64,
    pub p50: u64,
    pub p90: u64,
    pub p99: u64,
    pub p99_9: u64,
    pub p99_99: u64,
    pub max: u64,
}

impl From<&Histogram<u64>> for Latency {
    fn from(h: &Histogram<u64>) -> Latency {
        if h.is_empty() {
            return Latency::default();
        }
        let at = |quantile| h.value_at_quantile(quantile);
        Latency {
            min: h.min(),
            mean: h.mean(),
            stddev: h.stdev(),
            p50: at(0.5),
            p90: at(0.9),
            p99: at(0.99),
            p99_9: at(0.999),
            p99_99: at(0.9999),
            max: h.max(),
        }
    }
}

/// Calls of one kind, or of all.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Figures {
    /// Answered, those after the end included.
    pub calls: u64,
    pub bytes: u64,
    /// Of what was answered before the end.
    pub calls_per_s: f64,
    pub bytes_per_s: f64,
    pub latency_ns: Latency,
}

/// One interval of all cores.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Interval {
    /// Since the beginning of what is measured.
    pub at_s: f64,
    pub seconds: f64,
    pub calls: u64,
    pub bytes: u64,
    pub calls_per_s: f64,
    pub bytes_per_s: f64,
    pub p50_ns: u64,
    pub p99_ns: u64,
    pub p99_9_ns: u64,
}

impl Interval {
    pub fn new(at_s: f64, seconds: f64, sample: &Sample) -> Interval {
        let all = sample.all();
        let latency = Latency::from(&all.latency_ns);
        Interval {
            at_s,
            seconds,
            calls: all.calls,
            bytes: all.bytes,
            calls_per_s: all.calls as f64 / seconds.max(1e-9),
            bytes_per_s: all.bytes as f64 / seconds.max(1e-9),
            p50_ns: latency.p50,
            p99_ns: latency.p99,
            p99_9_ns: latency.p99_9,
        }
    }
}

/// How the generator itself did.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Generator {
    /// Share of the time that went into turns which found work: near 1, the generator is the bottleneck.
    pub busy: f64,
    /// CPU time of the cores' threads while measuring, s.
    pub cpu_s: f64,
    /// What the transport counted while measuring.
    pub figures: BTreeMap<String, u64>,
}

/// Everything.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Report {
    pub format: String,
    pub version: String,
    pub started_unix_s: u64,
    /// Nothing went wrong: the exit code is 0.
    pub clean: bool,
    /// It was not ended before its time.
    pub complete: bool,
    pub configuration: Configuration,
    /// Time measured.
    pub seconds: f64,
    pub total: Figures,
    /// By procedure.
    pub operations: BTreeMap<String, Figures>,
    pub intervals: Vec<Interval>,
    pub faults: BTreeMap<String, u64>,
    /// nfsstat3 other than NFS3_OK, and how often.
    pub statuses: BTreeMap<u32, u64>,
    /// Packets sent again while measuring.
    pub retransmissions: u64,
    pub verified_bytes: u64,
    pub generator: Generator,
    /// All latencies: pairs of (ns, calls), the value being the upper end of its bucket.
    pub histogram_ns: Vec<(u64, u64)>,
}

/// What a session hands over to be reported.
pub struct Measured {
    /// Until the end, over all cores.
    pub within: Sample,
    /// Answered after the end.
    pub after: Sample,
    pub seconds: f64,
    pub intervals: Vec<Interval>,
    pub retransmissions: u64,
    pub figures: BTreeMap<String, u64>,
    pub cpu_s: f64,
    pub complete: bool,
    pub started_unix_s: u64,
}

fn figures(within: Option<&VerbSample>, whole: &VerbSample, seconds: f64) -> Figures {
    let rate = |count: u64| count as f64 / seconds.max(1e-9);
    Figures {
        calls: whole.calls,
        bytes: whole.bytes,
        calls_per_s: rate(within.map_or(0, |sample| sample.calls)),
        bytes_per_s: rate(within.map_or(0, |sample| sample.bytes)),
        latency_ns: Latency::from(&whole.latency_ns),
    }
}

impl Report {
    pub fn new(options: &Options, measured: &Measured) -> Report {
        let mut whole = measured.within.clone();
        whole.add(&measured.after);
        let all = whole.all();
        let of_verb = |verb| measured.within.verbs().find(|(other, _)| *other == verb).map(|(_, sample)| sample);
        let operations =
            whole.verbs().map(|(verb, sample)| (verb.name().to_owned(), figures(of_verb(verb), sample, measured.seconds)));
        let mut faults = BTreeMap::new();
        whole.faults.visit(&mut |name, value| {
            faults.insert(name.to_owned(), value);
        });
        let within = &measured.within;
        Report {
            format: FORMAT.into(),
            version: env!("CARGO_PKG_VERSION").into(),
            started_unix_s: measured.started_unix_s,
            clean: whole.faults.is_clean() && measured.retransmissions <= options.retransmissions_max && all.calls > 0,
            complete: measured.complete,
            configuration: Configuration::from(options),
            seconds: measured.seconds,
            total: figures(Some(&within.all()), &all, measured.seconds),
            operations: operations.collect(),
            intervals: measured.intervals.clone(),
            faults,
            statuses: whole.statuses.clone(),
            retransmissions: measured.retransmissions,
            verified_bytes: whole.verified_bytes,
            generator: Generator {
                busy: within.busy_ns as f64 / 1e9 / (measured.seconds * options.cores.len() as f64).max(1e-9),
                cpu_s: measured.cpu_s,
                figures: measured.figures.clone(),
            },
            histogram_ns: all.latency_ns.iter_recorded().map(|v| (v.value_iterated_to(), v.count_at_value())).collect(),
        }
    }

    /// For people.
    pub fn to_text(&self) -> String {
        let mut text = String::new();
        let c = &self.configuration;
        let loop_of = match c.rate {
            Some(rate) => format!("open loop, {rate} calls/s"),
            None => "closed loop".to_owned(),
        };
        let _ = writeln!(
            text,
            "{} of {} bytes on {}:{} over {}: {} connections, depth {}, {loop_of}, {:.1} s",
            c.workload, c.size, c.server, c.export, c.transport, c.connections, c.depth, self.seconds
        );
        let _ = writeln!(
            text,
            "{:<12} {:>12} {:>12} {:>9} {:>10} {:>10} {:>10} {:>10} {:>10} {:>10}",
            "procedure", "calls", "calls/s", "GiB/s", "mean", "p50", "p90", "p99", "p99.9", "max"
        );
        let mut row = |name: &str, f: &Figures| {
            let l = &f.latency_ns;
            let _ = writeln!(
                text,
                "{name:<12} {:>12} {:>12.0} {:>9.3} {:>10} {:>10} {:>10} {:>10} {:>10} {:>10}",
                f.calls,
                f.calls_per_s,
                f.bytes_per_s / f64::from(1u32 << 30),
                time(l.mean as u64),
                time(l.p50),
                time(l.p90),
                time(l.p99),
                time(l.p99_9),
                time(l.max),
            );
        };
        self.operations.iter().for_each(|(name, figures)| row(name, figures));
        if self.operations.len() != 1 {
            row("all", &self.total);
        }
        if self.verified_bytes > 0 {
            let _ = writeln!(text, "verified: {} bytes", self.verified_bytes);
        }
        let _ = writeln!(
            text,
            "retransmissions: {}; generator: {:.0} % busy, {:.2} s of CPU",
            self.retransmissions,
            100.0 * self.generator.busy,
            self.generator.cpu_s
        );
        for (name, count) in self.faults.iter().filter(|(_, count)| **count > 0) {
            let _ = writeln!(text, "FAULT {name}: {count}");
        }
        for (status, count) in &self.statuses {
            let _ = writeln!(text, "FAULT nfsstat3 {status}{}: {count}", nfs_status(*status));
        }
        if !self.complete {
            text.push_str("ended before its time\n");
        }
        let verdict = if self.clean { "clean" } else { "NOT CLEAN: do not use these figures" };
        let _ = writeln!(text, "{verdict}");
        text
    }

    /// The latencies of all calls in the text form of HdrHistogram's percentile plots (`.hgrm`), values in microseconds.
    pub fn to_hgrm(&self) -> String {
        let total: u64 = self.histogram_ns.iter().map(|(_, count)| count).sum();
        let mut text = format!("{:>12} {:>14} {:>10} {:>14}\n\n", "Value", "Percentile", "TotalCount", "1/(1-Percentile)");
        let mut so_far = 0;
        for (value, count) in &self.histogram_ns {
            so_far += count;
            let quantile = so_far as f64 / total.max(1) as f64;
            let value = *value as f64 / 1000.0;
            let _ = if so_far < total {
                writeln!(text, "{value:>12.3} {quantile:>14.12} {so_far:>10} {:>14.2}", 1.0 / (1.0 - quantile))
            } else {
                writeln!(text, "{value:>12.3} {quantile:>14.12} {so_far:>10}")
            };
        }
        let l = &self.total.latency_ns;
        let (mean, deviation, max) = (l.mean / 1000.0, l.stddev / 1000.0, l.max as f64 / 1000.0);
        let _ = writeln!(text, "#[Mean    = {mean:>12.3}, StdDeviation   = {deviation:>12.3}]");
        let _ = writeln!(text, "#[Max     = {max:>12.3}, Total count    = {total:>12}]");
        text
    }

    /// Reads a report.
    ///
    /// # Errors
    /// If the file cannot be read, or holds something else.
    pub fn load(path: &std::path::Path) -> io::Result<Report> {
        let named = |error: io::Error| io::Error::new(error.kind(), format!("{}: {error}", path.display()));
        let bytes = std::fs::read(path).map_err(named)?;
        let report: Report = serde_json::from_slice(&bytes).map_err(|error| named(error.into()))?;
        if report.format != FORMAT {
            let found = format!("found format {:?}, allowed {FORMAT:?}", report.format);
            return Err(named(io::Error::new(io::ErrorKind::InvalidData, found)));
        }
        Ok(report)
    }
}

/// ns as people read them.
pub fn time(ns: u64) -> String {
    match ns {
        0..10_000 => format!("{ns} ns"),
        10_000..10_000_000 => format!("{:.1} us", ns as f64 / 1e3),
        10_000_000..10_000_000_000 => format!("{:.1} ms", ns as f64 / 1e6),
        _ => format!("{:.1} s", ns as f64 / 1e9),
    }
}
