//! One line per case with its duration, and the sum at the end.
//! A case that cannot run on this machine is skipped with its reason; nothing is skipped silently.

use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Instant;

pub struct Group {
    pub name: &'static str,
    pub run: fn(&mut Report),
}

/// The error with which a case says that this machine cannot run it.
#[derive(Debug)]
pub struct Skip(pub String);

impl fmt::Display for Skip {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

impl std::error::Error for Skip {}

pub fn skip<T>(reason: impl Into<String>) -> anyhow::Result<T> {
    Err(anyhow::Error::new(Skip(reason.into())))
}

/// Whether the sizes of the acceptance run are asked for, instead of those for every change.
pub fn full() -> bool {
    std::env::var("NFSPLICE_E2E").is_ok_and(|value| value == "full")
}

pub struct Report {
    filters: Vec<String>,
    list: bool,
    group: &'static str,
    passed: u32,
    failures: Vec<String>,
    skipped: u32,
    started: Instant,
}

impl Report {
    pub fn new(filters: Vec<String>, list: bool) -> Report {
        Report { filters, list, group: "", passed: 0, failures: Vec::new(), skipped: 0, started: Instant::now() }
    }

    pub fn enter(&mut self, group: &'static str) {
        self.group = group;
    }

    /// Runs one case if the filters let it through. A panic in it is a failure of this case only.
    pub fn case(&mut self, name: &str, run: impl FnOnce() -> anyhow::Result<()>) {
        let name = format!("{}::{name}", self.group);
        if !self.filters.is_empty() && !self.filters.iter().any(|filter| name.contains(filter.as_str())) {
            return;
        }
        if self.list {
            println!("{name}");
            return;
        }
        let started = Instant::now();
        let outcome = catch_unwind(AssertUnwindSafe(run)).unwrap_or_else(|_| Err(anyhow::anyhow!("panicked")));
        let seconds = started.elapsed().as_secs_f32();
        match outcome {
            Ok(()) => {
                self.passed += 1;
                println!("e2e {name} ... ok ({seconds:.1} s)");
            }
            Err(error) => match error.downcast_ref::<Skip>() {
                Some(reason) => {
                    self.skipped += 1;
                    println!("e2e {name} ... skipped: {reason}");
                }
                None => {
                    println!("e2e {name} ... FAILED ({seconds:.1} s)\n    {}", format!("{error:#}").replace('\n', "\n    "));
                    self.failures.push(name);
                }
            },
        }
    }

    /// Prints the sum in the form that scripts/test.sh adds up, and gives the exit code.
    pub fn finish(&self) -> i32 {
        if self.list {
            return 0;
        }
        for name in &self.failures {
            println!("failed: {name}");
        }
        println!(
            "end-to-end result: {} passed; {} failed; {} skipped; finished in {:.0} s",
            self.passed,
            self.failures.len(),
            self.skipped,
            self.started.elapsed().as_secs_f32()
        );
        i32::from(!self.failures.is_empty())
    }
}
