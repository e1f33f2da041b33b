//! `nfsplice load compare`: two results side by side.
//!
//! The ratio of two means has a spread because each was measured in intervals that differ. Read: the relative standard errors of
//! both means add up as squares (the delta method for the logarithm of a ratio); the interval is ratio * exp(+-z * error), z = 1.96
//! for 95 %. Intervals of one run follow each other and are not quite independent: take the spread as the least there is.

use std::fmt::Write as _;

use super::report::{Figures, Interval, Report, time};

/// Two-sided 95 % of a normal distribution.
const Z: f64 = 1.96;
/// Intervals shorter than this share of the longest are no sample of a rate.
const SHORT_INTERVAL: f64 = 0.5;

/// The ratio of B to A.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Ratio {
    pub ratio: f64,
    /// Where it is with a confidence of 95 %; `None`: fewer than two intervals on a side.
    pub between: Option<(f64, f64)>,
}

impl Ratio {
    /// Of the means of two series.
    pub fn of(a: &[f64], b: &[f64]) -> Option<Ratio> {
        let (mean_a, error_a) = mean_and_error(a)?;
        let (mean_b, error_b) = mean_and_error(b)?;
        if mean_a <= 0.0 || mean_b <= 0.0 {
            return None;
        }
        let ratio = mean_b / mean_a;
        let between = error_a.zip(error_b).map(|(error_a, error_b)| {
            let spread = (Z * (error_a.powi(2) + error_b.powi(2)).sqrt()).exp();
            (ratio / spread, ratio * spread)
        });
        Some(Ratio { ratio, between })
    }
}

/// Mean, and its relative standard error if there are two values at least.
fn mean_and_error(values: &[f64]) -> Option<(f64, Option<f64>)> {
    let n = values.len() as f64;
    if values.is_empty() {
        return None;
    }
    let mean = values.iter().sum::<f64>() / n;
    if values.len() < 2 || mean <= 0.0 {
        return Some((mean, None));
    }
    let variance = values.iter().map(|value| (value - mean).powi(2)).sum::<f64>() / (n - 1.0);
    Some((mean, Some((variance / n).sqrt() / mean)))
}

/// One line of the comparison.
struct Row {
    name: &'static str,
    of: fn(&Interval) -> f64,
    whole: fn(&Figures) -> f64,
    show: fn(f64) -> String,
}

fn plain(value: f64) -> String {
    format!("{value:.0}")
}

fn gib(value: f64) -> String {
    format!("{:.3}", value / f64::from(1u32 << 30))
}

fn nanos(value: f64) -> String {
    time(value as u64)
}

const ROWS: [Row; 5] = [
    Row { name: "calls/s", of: |i| i.calls_per_s, whole: |f| f.calls_per_s, show: plain },
    Row { name: "GiB/s", of: |i| i.bytes_per_s, whole: |f| f.bytes_per_s, show: gib },
    Row { name: "p50", of: |i| i.p50_ns as f64, whole: |f| f.latency_ns.p50 as f64, show: nanos },
    Row { name: "p99", of: |i| i.p99_ns as f64, whole: |f| f.latency_ns.p99 as f64, show: nanos },
    Row { name: "p99.9", of: |i| i.p99_9_ns as f64, whole: |f| f.latency_ns.p99_9 as f64, show: nanos },
];

/// The intervals that are long enough to stand for a rate.
fn series(report: &Report, of: fn(&Interval) -> f64) -> Vec<f64> {
    let longest = report.intervals.iter().map(|interval| interval.seconds).fold(0.0, f64::max);
    report.intervals.iter().filter(|interval| interval.seconds >= SHORT_INTERVAL * longest).map(of).collect()
}

/// B's value of a row in terms of A's.
pub fn ratio(a: &Report, b: &Report, name: &str) -> Option<Ratio> {
    let row = ROWS.iter().find(|row| row.name == name)?;
    Ratio::of(&series(a, row.of), &series(b, row.of))
}

/// The table, with what makes it questionable. `names` are the files'.
pub fn to_text(a: &Report, b: &Report, names: [&str; 2]) -> String {
    let mut text = format!("A: {}\nB: {}\n", names[0], names[1]);
    for (side, report) in [("A", a), ("B", b)] {
        if !report.clean {
            let _ = writeln!(text, "WARNING: {side} is not clean");
        }
        if !report.complete {
            let _ = writeln!(text, "WARNING: {side} was ended before its time");
        }
    }
    for (field, of_a, of_b) in differences(a, b) {
        let _ = writeln!(text, "differs: {field}: {of_a} | {of_b}");
    }
    let _ = writeln!(text, "{:<20} {:>14} {:>14} {:>8}  95 % interval", "", "A", "B", "B/A");
    for row in &ROWS {
        let (value_a, value_b) = ((row.whole)(&a.total), (row.whole)(&b.total));
        let found = Ratio::of(&series(a, row.of), &series(b, row.of));
        line(&mut text, row.name, [value_a, value_b].map(row.show), found);
    }
    for (verb, of_a) in a.operations.iter().filter(|_| a.operations.len() > 1) {
        let Some(of_b) = b.operations.get(verb) else { continue };
        let rates = [of_a.calls_per_s, of_b.calls_per_s];
        line(&mut text, &format!("{verb} calls/s"), rates.map(plain), Ratio::of(&rates[..1], &rates[1..]));
        let medians = [of_a.latency_ns.p50 as f64, of_b.latency_ns.p50 as f64];
        line(&mut text, &format!("{verb} p50"), medians.map(nanos), Ratio::of(&medians[..1], &medians[1..]));
    }
    text
}

fn line(text: &mut String, name: &str, [a, b]: [String; 2], ratio: Option<Ratio>) {
    let (ratio, spread) = match ratio {
        None => ("-".to_owned(), String::new()),
        Some(Ratio { ratio, between: None }) => (format!("{ratio:.3}"), "unknown: too few intervals".to_owned()),
        Some(Ratio { ratio, between: Some((low, high)) }) => (format!("{ratio:.3}"), format!("{low:.3} .. {high:.3}")),
    };
    let _ = writeln!(text, "{name:<20} {a:>14} {b:>14} {ratio:>8}  {spread}");
}

/// Fields of the configurations that are not the same; the seed is no difference.
fn differences(a: &Report, b: &Report) -> Vec<(String, String, String)> {
    let fields = |report: &Report| match serde_json::to_value(&report.configuration) {
        Ok(serde_json::Value::Object(fields)) => fields,
        _ => serde_json::Map::new(),
    };
    let (of_a, of_b) = (fields(a), fields(b));
    let differ = of_a.iter().filter_map(|(field, value)| {
        let other = of_b.get(field)?;
        (field != "seed" && value != other).then(|| (field.clone(), value.to_string(), other.to_string()))
    });
    differ.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(rates: &[f64]) -> Report {
        let interval =
            |rate: &f64| Interval { seconds: 1.0, calls_per_s: *rate, p50_ns: 1_000_000 / *rate as u64, ..Interval::default() };
        Report { clean: true, complete: true, intervals: rates.iter().map(interval).collect(), ..Report::default() }
    }

    #[test]
    fn the_spread_is_that_of_the_intervals() {
        let steady = ratio(&report(&[100.0; 5]), &report(&[200.0; 5]), "calls/s").unwrap();
        assert_eq!(steady, Ratio { ratio: 2.0, between: Some((2.0, 2.0)) });
        // Relative standard errors: sqrt(200 / 2) / 100 for A: 10 %; 0 for B.
        let noisy = ratio(&report(&[90.0, 110.0]), &report(&[200.0; 5]), "calls/s").unwrap();
        let (low, high) = noisy.between.unwrap();
        assert!((noisy.ratio - 2.0).abs() < 1e-9);
        assert!((high - 2.0 * (1.96f64 * 0.1).exp()).abs() < 1e-9 && (low * high - 4.0).abs() < 1e-9, "{low} {high}");
    }

    #[test]
    fn one_interval_has_no_spread_and_none_no_ratio() {
        assert_eq!(ratio(&report(&[100.0]), &report(&[50.0, 50.0]), "calls/s"), Some(Ratio { ratio: 0.5, between: None }));
        assert_eq!(ratio(&report(&[]), &report(&[50.0]), "calls/s"), None);
    }

    #[test]
    fn a_short_last_interval_does_not_count() {
        let mut short = report(&[100.0, 100.0]);
        short.intervals.push(Interval { seconds: 0.01, calls_per_s: 9_000.0, ..Interval::default() });
        assert_eq!(ratio(&short, &report(&[100.0, 100.0]), "calls/s").unwrap().ratio, 1.0);
    }

    #[test]
    fn what_makes_a_comparison_questionable_is_said() {
        let (a, mut b) = (report(&[100.0, 100.0]), report(&[300.0, 300.0]));
        b.clean = false;
        b.configuration.depth = 7;
        b.configuration.seed = 7;
        let text = to_text(&a, &b, ["a.json", "b.json"]);
        assert!(text.contains("WARNING: B is not clean") && text.contains("differs: depth: 0 | 7"), "{text}");
        assert!(!text.contains("seed"), "{text}");
        assert!(text.lines().any(|line| line.starts_with("calls/s") && line.contains("3.000  3.000 .. 3.000")), "{text}");
    }
}
