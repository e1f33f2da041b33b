//! `nfsplice stats`: a server's report as text, as JSON, once or again and again.
//!
//! The text begins with what the server costs (`cost.rs`) and the lines that `/proc/net/rpc/nfsd` has (`net`, `rpc`, `proc3`), for
//! people and scripts that know them, followed by every value, grouped by layer.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::{self, Write};
use std::time::{Duration, Instant};

use super::cost;
use super::stats::Report;

/// The lines of `/proc/net/rpc/nfsd` and the counters they are made of: each number is the sum of the named ones.
const NFSD_LINES: &[(&str, &[&[&str]])] = &[
    ("rc", &[&["rpc.rchits"], &["rpc.rcmisses"], &["rpc.rcnocache"]]),
    ("io", &[&["nfs3.read_bytes"], &["nfs3.write_bytes"]]),
    ("net", &[&["rpc.netcnt"], &["rpc.netudpcnt"], &["rpc.nettcpcnt"], &["rpc.nettcpconn"]]),
    (
        "rpc",
        &[
            &["rpc.rpccnt"],
            &["rpc.rpcbadfmt", "rpc.rpcbadauth", "rpc.rpcbadclnt"],
            &["rpc.rpcbadfmt"],
            &["rpc.rpcbadauth"],
            &["rpc.rpcbadclnt"],
        ],
    ),
];

/// The 22 procedures of NFS version 3, in the order of their numbers (RFC 1813 section 3.3).
const NFS3_PROCEDURES: [&str; 22] = [
    "null",
    "getattr",
    "setattr",
    "lookup",
    "access",
    "readlink",
    "read",
    "write",
    "create",
    "mkdir",
    "symlink",
    "mknod",
    "remove",
    "rmdir",
    "rename",
    "link",
    "readdir",
    "readdirplus",
    "fsstat",
    "fsinfo",
    "pathconf",
    "commit",
];

/// Writes the report that `fetch` gets, once or every `watch` seconds until writing or fetching fails.
pub fn show(out: &mut dyn Write, fetch: &dyn Fn() -> io::Result<Report>, json: bool, watch: Option<u32>) -> anyhow::Result<()> {
    let mut before: Option<(Instant, Report)> = None;
    loop {
        let (now, report) = (Instant::now(), fetch()?);
        let text = match (&before, json) {
            (_, true) => serde_json::to_string(&report)? + "\n",
            (Some((then, earlier)), false) => rates(earlier, &report, now - *then),
            (None, false) => totals(&report),
        };
        out.write_all(text.as_bytes())?;
        out.flush()?;
        let Some(seconds) = watch else { return Ok(()) };
        before = Some((now, report));
        std::thread::sleep(Duration::from_secs(seconds.into()));
    }
}

/// The values of one layer, by field.
type Layers<'r> = BTreeMap<&'r str, Vec<(&'r str, u64)>>;

fn layers(report: &Report) -> Layers<'_> {
    let mut layers = Layers::new();
    for (name, value) in &report.counters {
        let (layer, field) = name.split_once('.').unwrap_or(("", name));
        layers.entry(layer).or_default().push((field, *value));
    }
    layers
}

/// Everything since the server's start.
pub fn totals(report: &Report) -> String {
    let mut text = head(report) + &cost::lines(None, report);
    for (word, columns) in NFSD_LINES {
        if let Some(numbers) = nfsd_numbers(report, columns) {
            let _ = writeln!(text, "{word} {}", numbers.join(" "));
        }
    }
    let procedures: Vec<String> =
        NFS3_PROCEDURES.iter().filter_map(|name| Some(report.counters.get(&format!("nfs3.calls_{name}"))?.to_string())).collect();
    if procedures.len() == NFS3_PROCEDURES.len() {
        let _ = writeln!(text, "proc3 {} {}", procedures.len(), procedures.join(" "));
    }
    for (layer, values) in layers(report) {
        let _ = writeln!(text, "\n{layer}");
        for (field, value) in values {
            let _ = write!(text, "  {field:<36} {value:>20}");
            let name = format!("{layer}.{field}");
            // Behind the sum what each core has of it, where there are several that count it.
            for value in report.by_core.iter().filter_map(|core| core.get(&name)) {
                let _ = write!(text, " {value:>16}");
            }
            text.push('\n');
        }
    }
    text
}

/// What changed between two reports: counters per second, gauges as they are; what stands still is left out.
pub fn rates(before: &Report, now: &Report, elapsed: Duration) -> String {
    let mut text = format!("\n{}{}", head(now), cost::lines(Some(before), now));
    let seconds = elapsed.as_secs_f64().max(f64::MIN_POSITIVE);
    for (layer, values) in layers(now) {
        for (field, value) in values {
            let name = format!("{layer}.{field}");
            let earlier = before.counters.get(&name).copied().unwrap_or(0);
            if now.gauges.contains(&name) {
                let _ = writeln!(text, "  {name:<44} {value:>16}");
            } else if value != earlier {
                // A restarted server counts from 0 again.
                let grown = if value >= earlier { value - earlier } else { value };
                let _ = writeln!(text, "  {name:<44} {:>16.1}/s", grown as f64 / seconds);
            }
        }
    }
    text
}

fn head(report: &Report) -> String {
    let about = &report.server;
    let (hours, minutes, seconds) = (about.uptime_s / 3600, about.uptime_s / 60 % 60, about.uptime_s % 60);
    format!("nfsplice {}  pid {}  up {hours}:{minutes:02}:{seconds:02}  {}\n", about.version, about.pid, about.config)
}

/// The line's numbers; none when the server has none of its counters.
fn nfsd_numbers(report: &Report, columns: &[&[&str]]) -> Option<Vec<String>> {
    let value = |name: &&str| report.counters.get(*name).copied();
    columns.iter().flat_map(|names| names.iter()).find_map(value)?;
    let sum = |names: &&[&str]| names.iter().filter_map(value).sum::<u64>().to_string();
    Some(columns.iter().map(sum).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::stats::About;

    fn report(values: &[(&str, u64)]) -> Report {
        Report {
            server: About { version: "0.1.0".into(), config: "tap.toml".into(), pid: 42, uptime_s: 3725 },
            counters: values.iter().map(|(name, value)| ((*name).to_owned(), *value)).collect(),
            gauges: vec!["tcp.connections_open".into()],
            cores: Vec::new(),
            by_core: Vec::new(),
        }
    }

    #[test]
    fn text_has_the_lines_of_nfsd_and_then_every_value() {
        let mut values: Vec<(String, u64)> =
            NFS3_PROCEDURES.iter().zip(1..).map(|(name, n)| (format!("nfs3.calls_{name}"), n)).collect();
        let rpc = ["netcnt", "netudpcnt", "nettcpcnt", "nettcpconn", "rpccnt", "rpcbadfmt", "rpcbadauth", "rpcbadclnt"];
        values.extend(rpc.iter().zip(100..).map(|(name, n)| (format!("rpc.{name}"), n)));
        let values: Vec<(&str, u64)> = values.iter().map(|(name, value)| (name.as_str(), *value)).collect();
        let text = totals(&report(&values));
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines[0], "nfsplice 0.1.0  pid 42  up 1:02:05  tap.toml");
        assert_eq!(lines[1], "net 100 101 102 103");
        assert_eq!(lines[2], "rpc 104 318 105 106 107");
        assert_eq!(lines[3], "proc3 22 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20 21 22");
        assert_eq!(lines[5], "nfs3");
        assert!(lines.contains(&"  rpccnt                                                104"), "{text}");
        let counted = lines.iter().filter(|line| line.starts_with("  ")).count();
        assert_eq!(counted, values.len());
    }

    #[test]
    fn a_server_without_those_counters_has_no_such_lines() {
        let text = totals(&report(&[("net.frames_in", 1)]));
        assert!(!text.contains("\nrpc ") && !text.contains("proc3"), "{text}");
    }

    #[test]
    fn what_each_core_counts_stands_behind_the_sum() {
        let mut report = report(&[("tcp.in", 30), ("machine.tsc_hz", 7)]);
        report.by_core = [10, 20].map(|value| [("tcp.in".to_owned(), value)].into()).to_vec();
        let text = totals(&report);
        let lines: Vec<Vec<&str>> = text.lines().map(|line| line.split_whitespace().collect()).collect();
        assert!(lines.contains(&vec!["in", "30", "10", "20"]) && lines.contains(&vec!["tsc_hz", "7"]), "{text}");
    }

    #[test]
    fn watching_shows_rates_of_what_moved_and_levels() {
        let before = report(&[("rpc.calls", 10), ("rpc.bad", 3), ("tcp.connections_open", 5), ("tcp.in", 900)]);
        let now = report(&[("rpc.calls", 40), ("rpc.bad", 3), ("tcp.connections_open", 5), ("tcp.in", 50)]);
        let text = rates(&before, &now, Duration::from_secs(2));
        let lines: Vec<Vec<&str>> = text.lines().skip(2).map(|line| line.split_whitespace().collect()).collect();
        assert_eq!(lines, [["rpc.calls", "15.0/s"], ["tcp.connections_open", "5"], ["tcp.in", "25.0/s"]]);
    }

    #[test]
    fn json_is_one_line_that_reads_back() {
        let wanted = report(&[("rpc.calls", 10)]);
        let mut out = Vec::new();
        show(&mut out, &|| Ok(report(&[("rpc.calls", 10)])), true, None).unwrap();
        assert_eq!(out.iter().filter(|byte| **byte == b'\n').count(), 1);
        assert_eq!(serde_json::from_slice::<Report>(&out).unwrap(), wanted);
    }

    #[test]
    fn watching_ends_with_the_server() {
        let answers = std::cell::Cell::new(0);
        let fetch = || {
            answers.set(answers.get() + 1);
            if answers.get() == 1 { Ok(report(&[])) } else { Err(io::ErrorKind::ConnectionRefused.into()) }
        };
        let mut out = Vec::new();
        assert!(show(&mut out, &fetch, false, Some(0)).is_err());
        assert_eq!(answers.get(), 2);
    }
}
