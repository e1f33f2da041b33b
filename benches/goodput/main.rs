//! Goodput over a lossy, late and reordering link: our two endpoints in the simulator, the kernel's over the same link in real
//! time, and what theory allows (docs/goodput.md).
//!
//! - `cell`: the table's cells and limits. `simulated`: our half. `kernel`: the other one. `results`: what is kept between runs,
//!   and the page.

mod cell;
mod kernel;
mod page;
mod results;
mod simulated;

use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use nfsplice::time::Duration;

use cell::Cell;
use results::{Half, Results, Side};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const USAGE: &str = "goodput ours|kernel|compare|page [--cells CONTROL/REORDER/RTT/LOSS,..] [--first N] [--seeds N] [--fast N] \
[--limit SECONDS] [--trace MILLISECONDS]";

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    match go(&words) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("goodput: {error:#}");
            ExitCode::FAILURE
        }
    }
}

struct Options {
    verb: String,
    cells: Vec<Cell>,
    first: u64,
    seeds: u64,
    /// Runs of the kernel in cells that fill the link.
    fast: u64,
    /// Seconds.
    limit: u64,
    trace: Option<Duration>,
}

impl Options {
    fn parse(words: &[String]) -> Result<Options> {
        let mut options =
            Options { verb: String::new(), cells: cell::all().collect(), first: 1, seeds: 5, fast: 1, limit: 3600, trace: None };
        let mut words = words.iter();
        while let Some(word) = words.next() {
            let mut value = || words.next().with_context(|| format!("{word} wants a value; {USAGE}"));
            match word.as_str() {
                "--bench" => {}
                "--cells" => {
                    let wanted = value()?;
                    let matches = |cell: &Cell| {
                        wanted
                            .split(',')
                            .any(|part| part.split('/').zip(cell.name().split('/')).all(|(a, b)| a.is_empty() || a == b))
                    };
                    options.cells.retain(matches);
                }
                "--fast" => options.fast = value()?.parse()?,
                "--limit" => options.limit = value()?.parse()?,
                "--first" => options.first = value()?.parse()?,
                "--seeds" => options.seeds = value()?.parse()?,
                "--trace" => options.trace = Some(Duration::from_micros((value()?.parse::<f64>()? * 1e3) as u64)),
                verb if !verb.starts_with('-') => options.verb = verb.to_owned(),
                _ => bail!("{USAGE}"),
            }
        }
        Ok(options)
    }
}

fn go(words: &[String]) -> Result<()> {
    let options = Options::parse(words)?;
    match options.verb.as_str() {
        "ours" => ours(&options),
        "kernel" => kernel(&options),
        "page" => page::write(),
        "compare" => compare(&options),
        _ => bail!("{USAGE}"),
    }
}

fn ours(options: &Options) -> Result<()> {
    let mut results = Results::load();
    for cell in &options.cells {
        let runs: Vec<_> = (options.first..=options.seeds).map(|seed| simulated::run(cell, seed, options.trace)).collect();
        results.half_mut(Side::Ours, cell).runs = runs;
        results.save(Side::Ours)?;
        print(&results, cell);
    }
    Ok(())
}

/// Mbit/s that one forwarder may have to carry.
const LOAD_MAX: f64 = 150.0;

/// Runs that are tried again because something else was on the forwarder's core.
const REFUSED_MAX: usize = 40;

/// Cells that have fewer runs than wanted, several at once where they are slow.
fn kernel(options: &Options) -> Result<()> {
    let mut results = Results::load();
    let expected = |results: &Results, cell: &Cell| results.half(Side::Ours, cell).and_then(Half::median).unwrap_or(200.0);
    let mut jobs: Vec<(Cell, u64)> = Vec::new();
    for cell in &options.cells {
        let done = results.half(Side::Kernel, cell).map_or(0, |half| half.runs());
        let wanted = if expected(&results, cell) > 60.0 { options.seeds.min(options.fast) } else { options.seeds };
        jobs.extend((done + 1..=wanted).map(|seed| (*cell, seed)));
    }
    jobs.sort_by_key(|(cell, seed)| (cell.seconds(), cell.rtt_us, *seed, *cell));
    let mut refused = 0;
    let until = std::time::Instant::now() + std::time::Duration::from_secs(options.limit);
    while !jobs.is_empty() {
        let seconds = jobs[0].0.seconds();
        if std::time::Instant::now() + std::time::Duration::from_secs(seconds) > until {
            println!("{} runs are left", jobs.len());
            break;
        }
        let (mut load, mut batch) = (0.0, Vec::new());
        jobs.retain(|(cell, seed)| {
            let more = 1.3 * expected(&results, cell);
            let fits = batch.is_empty() || (cell.seconds() == seconds && load + more <= LOAD_MAX && batch.len() < 40);
            if fits {
                load += more;
                batch.push((*cell, *seed));
            }
            !fits
        });
        let mut again = Vec::new();
        for (cell, run) in kernel::run(&batch)? {
            match run.carrier.as_ref().is_some_and(|carrier| carrier.is_exact_for(&cell)) {
                true => results.half_mut(Side::Kernel, &cell).runs.push(run),
                false => again.push((cell, run)),
            }
        }
        for (cell, run) in again {
            println!("{:<22} not exact enough: {:?}", cell.name(), run.carrier);
            refused += 1;
            if refused <= REFUSED_MAX {
                jobs.push((cell, run.seed));
            }
        }
        results.save(Side::Kernel)?;
        batch.dedup_by_key(|(cell, _)| *cell);
        batch.iter().for_each(|(cell, _)| print(&results, cell));
    }
    Ok(())
}

fn compare(options: &Options) -> Result<()> {
    let results = Results::load();
    options.cells.iter().for_each(|cell| print(&results, cell));
    Ok(())
}

fn print(results: &Results, cell: &Cell) {
    let text = |half: Option<&Half>| {
        let Some(half) = half else { return format!("{:>28}", "-") };
        let rates = half.runs.iter().map(|run| run.mbit_per_second);
        let (low, high) = rates.fold((f64::MAX, 0f64), |(low, high), rate| (low.min(rate), high.max(rate)));
        format!("{:>8.3} ({low:>7.3}..{high:>7.3}) {}", half.median().unwrap_or_default(), half.runs())
    };
    let (ours, kernel) = (results.half(Side::Ours, cell), results.half(Side::Kernel, cell));
    let ratio =
        ours.and_then(Half::median).zip(kernel.and_then(Half::median)).map_or(String::new(), |(a, b)| format!("{:.2}", a / b));
    println!("{:<22} {} | {} | {ratio:>5} | limit {:.2}", cell.name(), text(ours), text(kernel), cell.limit());
    if std::env::var_os("NOTES").is_some() {
        for half in [ours, kernel].into_iter().flatten() {
            if let Some(run) = half.runs.last() {
                println!("      {} {:?}", run.notes, run.carrier);
            }
        }
    }
}
