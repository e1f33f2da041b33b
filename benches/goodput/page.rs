//! The tables of docs/goodput.md, between two marks; the words around them are written by hand.

use std::fmt::Write;
use std::fs;
use std::process::Command;

use anyhow::{Context, Result};

use crate::cell::{self, Cell};
use crate::results::{Half, Results, Side};

const PAGE: &str = "docs/goodput.md";
const BEGIN: &str = "<!-- figures -->";
const END: &str = "<!-- end of figures -->";
/// The goal: not below this share of the kernel's.
const SHARE_MIN: f64 = 0.9;

pub fn write() -> Result<()> {
    let page = fs::read_to_string(PAGE).context(PAGE)?;
    let (before, rest) = page.split_once(BEGIN).context("no mark where the figures begin")?;
    let (_, after) = rest.split_once(END).context("no mark where the figures end")?;
    let text = format!("{before}{BEGIN}\n{}{END}{after}", tables(&Results::load())?);
    Ok(fs::write(PAGE, text)?)
}

fn first_line(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output();
    let text = output.map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default();
    text.lines().next().unwrap_or("unknown").trim().to_owned()
}

fn cpu() -> String {
    let text = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let line = text.lines().find(|line| line.starts_with("model name")).unwrap_or_default();
    line.split_once(':').map_or("unknown", |(_, name)| name).trim().to_owned()
}

fn tables(results: &Results) -> Result<String> {
    let mut text = String::new();
    let cpus = std::thread::available_parallelism().map_or(0, usize::from);
    let release = first_line("uname", &["-r"]);
    let kernel = release.split('-').next().unwrap_or_default();
    let (commit, date) = (first_line("git", &["rev-parse", "--short", "HEAD"]), first_line("date", &["-u", "+%Y-%m-%d"]));
    writeln!(text, "Commit {commit}, {date}; {cpus} CPUs \"{}\", Linux {kernel}. {}\n", cpu(), summary(results))?;
    for control in cell::CONTROLS {
        for reorder_ppm in cell::REORDERS_PPM {
            let cells: Vec<Cell> =
                cell::all().filter(|cell| (cell.control, cell.reorder_ppm) == (control, reorder_ppm)).collect();
            writeln!(text, "### {}, {} % of the packets late\n", control.title(), cell::percent(reorder_ppm))?;
            writeln!(text, "| RTT, ms | loss, % | ours | kernel | limit | ours/kernel | runs | late, us |")?;
            writeln!(text, "|---:|---:|---:|---:|---:|---:|---:|---:|")?;
            for cell in cells {
                writeln!(text, "{}", row(results, &cell))?;
            }
            writeln!(text)?;
        }
    }
    Ok(text)
}

fn row(results: &Results, cell: &Cell) -> String {
    let (ours, kernel) = (results.half(Side::Ours, cell), results.half(Side::Kernel, cell));
    let rate = |half: Option<&Half>| half.and_then(Half::median).map_or("not measurable".to_owned(), figure);
    let share = share(results, cell).map_or(String::new(), |share| match share < SHARE_MIN {
        true => format!("**{share:.2}**"),
        false => format!("{share:.2}"),
    });
    let late = kernel.map_or(String::new(), |half| {
        let carriers = half.runs.iter().filter_map(|run| run.carrier.as_ref());
        format!("{:.0}", carriers.map(|carrier| carrier.late_us_mean).fold(0.0, f64::max))
    });
    let count = |half: Option<&Half>| half.map_or(0, Half::runs);
    format!(
        "| {} | {} | {} | {} | {} | {share} | {}, {} | {late} |",
        cell.rtt_us as f64 / 1e3,
        cell::percent(cell.loss_ppm),
        rate(ours),
        rate(kernel),
        figure(cell.limit()),
        count(ours),
        count(kernel),
    )
}

fn figure(rate: f64) -> String {
    match rate {
        100.0.. => format!("{rate:.0}"),
        10.0..100.0 => format!("{rate:.1}"),
        _ => format!("{rate:.2}"),
    }
}

fn share(results: &Results, cell: &Cell) -> Option<f64> {
    let median = |side| results.half(side, cell).and_then(Half::median);
    Some(median(Side::Ours)? / median(Side::Kernel)?)
}

fn summary(results: &Results) -> String {
    let mut shares: Vec<f64> = cell::all().filter_map(|cell| share(results, &cell)).collect();
    shares.sort_by(f64::total_cmp);
    let (all, low) = (cell::all().count(), shares.iter().filter(|share| **share < SHARE_MIN).count());
    let lowest = shares.first().map_or(String::new(), |share| format!(", the lowest {share:.2}"));
    format!("{} of {all} cells have both halves; {low} of them below {SHARE_MIN} of the kernel's{lowest}.", shares.len())
}
