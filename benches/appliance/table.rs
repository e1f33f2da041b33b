//! Results as a person reads them: Markdown with the goals beside them, and plots.

use std::fmt::Write as _;

use serde::Serialize;

use crate::cores::{self, Scaling};
use crate::driver::Ceiling;
use crate::machine::Machine;
use crate::measure::Sample;
use crate::meter::{Check, TOLERANCE};
use crate::peers::Peer;
use crate::plot::Chart;
use crate::tap::{IDLE_MAX, READ_P50_MAX_NS, Tap};
use crate::workload::{CONNECT, READ_64K, Set, TABLE, Workload};

/// What the project asks of itself, as ratios within one run.
const GANESHA_TIMES: f64 = 40.0;
const SENDFILE_TIMES: f64 = 12.0;
const COPY_TIMES: f64 = 3.0;
const CEILING_TIMES: [(usize, f64); 2] = [(4, 2.0), (16, 3.0)];
const REPLY_TIMES: f64 = 6.0;
const LATENCY_P50_NS: f64 = 15_000.0;
const LATENCY_P99_NS: f64 = 40_000.0;

#[derive(Clone, Debug, Serialize)]
pub struct Cell {
    pub peer: &'static str,
    pub workload: String,
    pub median: Sample,
    pub samples: Vec<Sample>,
}

/// A point of a curve.
#[derive(Clone, Debug, Serialize)]
pub struct Point {
    pub peer: &'static str,
    /// Bytes of a READ, or calls offered per second.
    pub x: f64,
    pub sample: Sample,
}

#[derive(Clone, Debug, Serialize)]
pub struct Results {
    pub machine: Machine,
    pub rounds: usize,
    pub seconds: f64,
    pub cells: Vec<Cell>,
    pub depth_one: Option<Sample>,
    pub tap: Option<Tap>,
    pub ceilings: Vec<Ceiling>,
    pub scaling: Vec<Scaling>,
    pub checks: Vec<Check>,
    pub by_size: Vec<Point>,
    pub by_load: Vec<Point>,
    /// What this machine lacks.
    pub skipped: Vec<String>,
    /// Why the figures must not be used; empty in a good run.
    pub faults: Vec<String>,
}

fn count(value: f64) -> String {
    let digits = format!("{value:.0}");
    let mut text = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at) % 3 == 0 {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

fn time(ns: f64) -> String {
    match ns {
        ns if ns <= 0.0 => "-".to_owned(),
        ns if ns < 1e6 => format!("{:.1} us", ns / 1e3),
        _ => format!("{:.2} ms", ns / 1e6),
    }
}

fn bytes_text(value: f64) -> String {
    if value >= f64::from(1 << 20) { format!("{} MiB", value / f64::from(1 << 20)) } else { format!("{} KiB", value / 1024.0) }
}

impl Results {
    fn cell(&self, peer: Peer, workload: &Workload) -> Option<&Sample> {
        let name = workload.full_name();
        self.cells.iter().find(|cell| cell.peer == peer.name() && cell.workload == name).map(|cell| &cell.median)
    }

    /// How many times more `peer` takes than nfsplice.
    fn times(&self, peer: Peer, workload: &Workload) -> Option<f64> {
        let (own, other) = (self.cell(Peer::Splice, workload)?, self.cell(peer, workload)?);
        (own.cycles > 0.0).then(|| other.cycles / own.cycles)
    }

    pub fn to_markdown(&self) -> String {
        let mut text = String::new();
        self.write_head(&mut text);
        self.write_goals(&mut text);
        self.write_costs(&mut text);
        self.write_rates(&mut text);
        self.write_stages(&mut text);
        self.write_connections(&mut text);
        self.write_scaling(&mut text);
        self.write_checks(&mut text);
        for (title, list) in [("Skipped", &self.skipped), ("Not valid", &self.faults)] {
            if !list.is_empty() {
                let _ = writeln!(text, "\n{title}:\n");
                list.iter().for_each(|line| {
                    let _ = writeln!(text, "- {}", line.lines().next().unwrap_or_default());
                });
            }
        }
        text
    }

    fn write_head(&self, text: &mut String) {
        let m = &self.machine;
        let pages = if m.hugepages { "hugepages" } else { "ordinary pages (--no-huge)" };
        let _ = writeln!(
            text,
            "Commit {}, {}. {} CPUs \"{}\", TSC {} MHz, L3 {}, {} GiB, Linux {}, {}, {}, NFS-Ganesha {}, DPDK's memory from {pages}. \
             Each figure is the median of {} runs of {:.1} s, taken in turn.",
            m.commit,
            m.date,
            m.cpus,
            m.cpu,
            m.tsc_mhz,
            m.cache_l3,
            m.memory_gib,
            m.kernel,
            m.dpdk,
            m.rustc,
            m.ganesha,
            self.rounds,
            self.seconds
        );
    }

    fn write_costs(&self, text: &mut String) {
        text.push_str("\nCycles of the server's core per operation, and how many times nfsplice's the others take:\n\n");
        text.push_str("| work | goal | nfsplice | copying | NFS-Ganesha | sendfile | copying / nfsplice | Ganesha / nfsplice | sendfile / nfsplice |\n");
        text.push_str("|---|---:|---:|---:|---:|---:|---:|---:|---:|\n");
        for workload in &TABLE {
            let cycles = |peer| self.cell(peer, workload).map_or("-".to_owned(), |sample| count(sample.cycles));
            let times = |peer| self.times(peer, workload).map_or("-".to_owned(), |times| format!("{times:.1}"));
            let _ = writeln!(
                text,
                "| {} | {} | {} | {} | {} | {} | {} | {} | {} |",
                workload.full_name(),
                workload.goal_cycles.map_or("-".to_owned(), |goal| count(goal.into())),
                cycles(Peer::Splice),
                cycles(Peer::Copy),
                cycles(Peer::Ganesha),
                cycles(Peer::Sendfile),
                times(Peer::Copy),
                times(Peer::Ganesha),
                times(Peer::Sendfile),
            );
        }
    }

    fn write_rates(&self, text: &mut String) {
        text.push_str("\nRates and latencies (all calls outstanding at once: connections x depth):\n\n");
        text.push_str("| work | connections x depth | server | ops/s | GiB/s | p50 | p99 | p99.9 | server's core busy |\n");
        text.push_str("|---|---|---|---:|---:|---:|---:|---:|---:|\n");
        for workload in &TABLE {
            for peer in Peer::ALL {
                let Some(s) = self.cell(peer, workload) else { continue };
                let _ = writeln!(
                    text,
                    "| {} | {} x {} | {} | {} | {:.2} | {} | {} | {} | {:.0} % |",
                    workload.full_name(),
                    workload.connections,
                    workload.depth,
                    peer.name(),
                    count(s.operations_per_s),
                    s.bytes_per_s / f64::from(1 << 30),
                    time(s.p50_ns),
                    time(s.p99_ns),
                    time(s.p99_9_ns),
                    100.0 * s.busy
                );
            }
        }
    }

    fn write_stages(&self, text: &mut String) {
        text.push_str("\nnfsplice by stage, cycles per operation, and what a chain and a burst carry:\n\n");
        text.push_str(
            "| work | receive | serve | transmit | flush | segments / chain | chains / burst | payload bytes copied |\n",
        );
        text.push_str("|---|---:|---:|---:|---:|---:|---:|---:|\n");
        for workload in &TABLE {
            let Some(s) = self.cell(Peer::Splice, workload) else { continue };
            let [receive, serve, transmit, flush] = s.stages[..] else { continue };
            let _ = writeln!(
                text,
                "| {} | {} | {} | {} | {} | {:.1} | {:.1} | {} |",
                workload.full_name(),
                count(receive),
                count(serve),
                count(transmit),
                count(flush),
                s.segments_per_chain,
                s.chains_per_burst,
                s.payload_bytes_copied
            );
        }
    }

    fn write_connections(&self, text: &mut String) {
        let measured = Peer::ALL.into_iter().filter_map(|peer| Some((peer, self.cell(peer, &CONNECT)?)));
        for (nth, (peer, s)) in measured.enumerate() {
            if nth == 0 {
                let _ = writeln!(text, "\nConnections opened, asked one NULL and reset, {} at once:\n", CONNECT.connections);
                text.push_str(
                    "| server | connections/s | cycles each | p50 | p99 | server's core busy |\n|---|---:|---:|---:|---:|---:|\n",
                );
            }
            let _ = writeln!(
                text,
                "| {} | {} | {} | {} | {} | {:.0} % |",
                peer.name(),
                count(s.operations_per_s),
                count(s.cycles),
                time(s.p50_ns),
                time(s.p99_ns),
                100.0 * s.busy
            );
        }
    }

    fn write_scaling(&self, text: &mut String) {
        if self.scaling.is_empty() {
            return;
        }
        text.push_str("\nTwo cores of one server, each with simulated clients on its own CPU; cycles of the server alone:\n\n");
        text.push_str("| work | one core, cycles | two cores, cycles each | calls of two / of one |\n|---|---:|---:|---:|\n");
        for s in &self.scaling {
            let _ = writeln!(text, "| {} | {} | {} | {:.2} |", s.workload, count(s.one), count(s.two), s.times);
        }
    }

    fn write_checks(&self, text: &mut String) {
        if self.checks.is_empty() {
            return;
        }
        text.push_str("\nThe meter against what does not ask it (benches/appliance/meter.rs):\n\n");
        text.push_str("| work | metered, cycles | core busy | by | cycles | metered / these |\n|---|---:|---:|---|---:|---:|\n");
        for c in &self.checks {
            let (metered, busy, otherwise) = (count(c.metered), 100.0 * c.busy, count(c.otherwise));
            let _ = writeln!(text, "| {} | {metered} | {busy:.0} % | {} | {otherwise} | {:.2} |", c.workload, c.how, c.ratio());
        }
    }

    fn write_goals(&self, text: &mut String) {
        text.push_str("\n| goal | wanted | measured | |\n|---|---:|---:|---|\n");
        let mut line = |goal: String, wanted: String, measured: String, met: bool| {
            let _ = writeln!(text, "| {goal} | {wanted} | {measured} | {} |", if met { "met" } else { "**missed**" });
        };
        for workload in TABLE.iter().filter(|workload| workload.goal_cycles.is_some()) {
            let (Some(goal), Some(s)) = (workload.goal_cycles, self.cell(Peer::Splice, workload)) else { continue };
            line(
                format!("{}: busy cycles per op", workload.full_name()),
                format!("<= {}", count(goal.into())),
                count(s.cycles),
                s.cycles <= f64::from(goal),
            );
        }
        let rows = || TABLE.iter().filter(|workload| workload.sendfile && workload.goal_cycles.is_some());
        for (peer, wanted) in [(Peer::Ganesha, GANESHA_TIMES), (Peer::Sendfile, SENDFILE_TIMES)] {
            for workload in rows().filter(|workload| peer == Peer::Ganesha || workload.mix != "null") {
                let Some(times) = self.times(peer, workload) else { continue };
                let goal = format!("{}: {} / nfsplice", workload.full_name(), peer.name());
                line(goal, format!(">= {wanted:.0} x"), format!("{times:.1} x"), times >= wanted);
            }
        }
        if let Some(times) = self.times(Peer::Copy, &READ_64K) {
            let goal = format!("{}: copying / nfsplice", READ_64K.full_name());
            line(goal, format!(">= {COPY_TIMES:.0} x"), format!("{times:.1} x"), times >= COPY_TIMES);
        }
        for ceiling in &self.ceilings {
            let times = ceiling.own / ceiling.testpmd;
            let wanted =
                CEILING_TIMES.iter().find(|(segments, _)| *segments == ceiling.segments).map_or(0.0, |(_, times)| *times);
            let goal = format!("chain of {} segments, built, sent, freed / testpmd txonly", ceiling.segments);
            let measured = format!("{times:.1} x ({} / {} cycles)", count(ceiling.own), count(ceiling.testpmd));
            line(goal, format!("<= {wanted:.1} x"), measured, times <= wanted);
        }
        if let (Some(ceiling), Some(s)) = (self.ceilings.last(), self.cell(Peer::Splice, &READ_64K)) {
            let times = s.cycles / ceiling.testpmd;
            let goal = "READ 64 KiB as a whole / testpmd txonly of 16 segments".to_owned();
            line(goal, format!("<= {REPLY_TIMES:.0} x"), format!("{times:.1} x"), times <= REPLY_TIMES);
        }
        if let Some(s) = &self.depth_one {
            line("READ 4 KiB at depth 1: p50".into(), "<= 15 us".into(), time(s.p50_ns), s.p50_ns <= LATENCY_P50_NS);
            line("READ 4 KiB at depth 1: p99".into(), "<= 40 us".into(), time(s.p99_ns), s.p99_ns <= LATENCY_P99_NS);
        }
        if let Some(tap) = &self.tap {
            let idle = format!("{:.1} %", 100.0 * tap.idle);
            line("idle server on a TAP: share of a core".into(), "< 5 %".into(), idle, tap.idle < IDLE_MAX);
            let met = tap.read_p50_ns < READ_P50_MAX_NS;
            line("READ 4 KiB through the TAP: p50".into(), "< 200 us".into(), time(tap.read_p50_ns), met);
        }
        for scaling in &self.scaling {
            let met = scaling.times >= cores::TIMES_WANTED;
            let goal = format!("two server cores / one, {} (simulated load)", scaling.workload);
            line(goal, format!(">= {:.1} x", cores::TIMES_WANTED), format!("{:.2} x", scaling.times), met);
        }
        for check in &self.checks {
            let off = format!("{:+.1} %", 100.0 * (check.ratio() - 1.0));
            line(
                format!("meter, {}, by {}", check.workload, check.how),
                format!("within {:.0} %", 100.0 * TOLERANCE),
                off,
                check.passed(),
            );
        }
    }

    /// Name of the file and its content.
    pub fn plots(&self) -> Vec<(&'static str, String)> {
        let lines = |points: &[Point], y: fn(&Sample) -> f64| {
            let mut lines: Vec<(String, Vec<(f64, f64)>)> = Vec::new();
            for point in points {
                let place = (point.x, y(&point.sample));
                match lines.iter_mut().find(|(name, _)| name == point.peer) {
                    Some((_, points)) => points.push(place),
                    None => lines.push((point.peer.to_owned(), vec![place])),
                }
            }
            lines
        };
        let chart = |title, x, y, x_text: fn(f64) -> String, y_text: fn(f64) -> String, lines: Vec<(String, Vec<(f64, f64)>)>| {
            (!lines.is_empty()).then(|| Chart { title, x, y, x_text, y_text, lines }.to_svg())
        };
        let cost = lines(&self.by_size, |sample| sample.cycles);
        let rate = lines(&self.by_size, |sample| sample.bytes_per_s / f64::from(1 << 30));
        let latency = lines(&self.by_load, |sample| sample.p99_ns / 1e3);
        let plots = [
            (
                "cost-by-size.svg",
                chart("Cost of a READ", "bytes of a READ", "cycles of the server's core", bytes_text, count, cost),
            ),
            ("rate-by-size.svg", chart("Throughput of READs", "bytes of a READ", "GiB/s", bytes_text, |y| format!("{y}"), rate)),
            (
                "latency-by-load.svg",
                chart("Latency of READ 4 KiB, p99", "calls offered per second", "us", count, |y| format!("{y}"), latency),
            ),
        ];
        plots.into_iter().filter_map(|(name, svg)| svg.map(|svg| (name, svg))).collect()
    }
}

/// The set of the curves.
pub const CURVE_SET: Set = Set::Large;
