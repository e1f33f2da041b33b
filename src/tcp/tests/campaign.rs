//! Many seeds of a simulator, shared out among threads: a seed that fails does not end the run, how far it is is said now and then, and at
//! the end all that failed are listed with how to run each again.
//!
//! Both simulators have it, this crate's and `tests/simulation.rs`: all of std, nothing of the crate.

use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;
use std::thread;
use std::time::{Duration, Instant};

/// How often a run says how far it is.
const SAY_EVERY: Duration = Duration::from_secs(60);

/// What the environment asks for, `X` being the simulator's name: seed `X_SEED` alone, or `X_SEEDS` of them from `X_FIRST` on.
pub fn seeds(name: &str, usual: u64) -> Range<u64> {
    let number = |what: &str| {
        let name = format!("{name}_{what}");
        let text = std::env::var(&name).ok()?;
        Some(text.parse::<u64>().unwrap_or_else(|_| panic!("{name}={text} is not a number")))
    };
    let (first, count) = match number("SEED") {
        Some(seed) => (seed, 1),
        None => (number("FIRST").unwrap_or(0), number("SEEDS").unwrap_or(usual)),
    };
    first..first.saturating_add(count)
}

/// How far a run is.
struct Course {
    next: u64,
    /// Of each thread, the seed that it is at.
    at: Vec<u64>,
    failed: Vec<u64>,
    said: Instant,
}

/// Runs `what` on each seed. `again` is the command that runs one alone.
pub fn run(seeds: Range<u64>, again: impl Fn(u64) -> String + Sync, what: impl Fn(u64) + Sync) {
    let threads = thread::available_parallelism().map_or(1, |n| n.get());
    let (started, total) = (Instant::now(), seeds.end - seeds.start);
    let course = Mutex::new(Course { next: seeds.start, at: vec![seeds.end; threads], failed: Vec::new(), said: started });
    let take = |thread: usize| {
        let mut course = course.lock().expect("no seed runs under the lock");
        let seed = course.next.min(seeds.end);
        course.next = seed.saturating_add(1);
        course.at[thread] = seed;
        if course.said.elapsed() >= SAY_EVERY {
            course.said = Instant::now();
            let whole = course.at.iter().copied().min().unwrap_or(seed);
            let (done, failed, elapsed) = (whole - seeds.start, course.failed.len(), started.elapsed().as_secs());
            eprintln!("{done} of {total} seeds, {failed} failed, {elapsed} s; seed {whole} is the first that is not done");
        }
        (seed < seeds.end).then_some(seed)
    };
    thread::scope(|scope| {
        for thread in 0..threads {
            let (take, again, what, course) = (&take, &again, &what, &course);
            scope.spawn(move || {
                while let Some(seed) = take(thread) {
                    if catch_unwind(AssertUnwindSafe(|| what(seed))).is_err() {
                        eprintln!("seed {seed} failed; again: {}", again(seed));
                        course.lock().expect("no seed runs under the lock").failed.push(seed);
                    }
                }
            });
        }
    });
    let mut failed = course.into_inner().expect("no seed runs under the lock").failed;
    failed.sort_unstable();
    let list: String = failed.iter().map(|seed| format!("\n    {}", again(*seed))).collect();
    assert!(failed.is_empty(), "{} of {total} seeds failed, each again with:{list}", failed.len());
    println!("{total} seeds, {} s", started.elapsed().as_secs());
}
