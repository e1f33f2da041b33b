//! Threads that are not EAL's: each has a name, and a CPU of its own or every CPU that no engine runs on.
//!
//! A new thread inherits its parent's CPUs, and EAL pins the thread that starts it to one. So what this process may use is asked
//! once, before EAL ([`Machine::this`](super::config::Machine::this)), and each thread is told where to run, instead of
//! all of them ending up on a core whose packet loop never sleeps.

use std::io;
use std::sync::mpsc;
use std::thread::{Builder, JoinHandle};

use core_affinity::CoreId;
use rustix::thread::{CpuSet, sched_setaffinity};

/// Where a thread runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Placement {
    /// On this CPU only.
    Cpu(usize),
    /// On any of these CPUs.
    Any(Vec<usize>),
}

impl Placement {
    /// Placement of the `index`-th I/O thread: dealt out over `io` in turn, or, when that is empty, wherever no engine runs.
    pub fn of_io_thread(index: usize, io: &[u32], engine: &[u32], available: &[usize]) -> Self {
        match io {
            [] => Self::off_engine(engine, available),
            _ => Self::Cpu(io[index % io.len()] as usize),
        }
    }

    /// Every available CPU that no engine runs on; all of them when the engines take everything.
    pub fn off_engine(engine: &[u32], available: &[usize]) -> Self {
        let free: Vec<usize> =
            available.iter().copied().filter(|cpu| !engine.iter().any(|taken| *taken as usize == *cpu)).collect();
        Self::Any(if free.is_empty() { available.to_vec() } else { free })
    }

    /// Moves the calling thread there.
    pub fn apply(&self) -> io::Result<()> {
        match self {
            // core_affinity indexes a set of 1024 bits without a check.
            Self::Cpu(cpu) if *cpu < CpuSet::MAX_CPU && core_affinity::set_for_current(CoreId { id: *cpu }) => Ok(()),
            Self::Cpu(cpu) => Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                format!("CPU {cpu} does not exist or is not this process's to use"),
            )),
            Self::Any(cpus) => {
                let mut set = CpuSet::new();
                cpus.iter().filter(|cpu| **cpu < CpuSet::MAX_CPU).for_each(|cpu| set.set(*cpu));
                Ok(sched_setaffinity(None, &set)?)
            }
        }
    }
}

/// Starts a thread called `name` (15 bytes are shown by the kernel) at `placement`, and waits until it is there.
///
/// # Errors
/// When the thread cannot be made, or cannot run where it should; `run` is not called then.
pub fn spawn(name: &str, placement: Placement, run: impl FnOnce() + Send + 'static) -> io::Result<JoinHandle<()>> {
    let (report, placed) = mpsc::sync_channel(1);
    let thread = Builder::new().name(name.to_owned()).spawn(move || {
        let result = placement.apply();
        let there = result.is_ok();
        // The receiver waits in the function below; it cannot be gone.
        let _ = report.send(result);
        if there {
            run();
        }
    })?;
    match placed.recv() {
        Ok(Ok(())) => Ok(thread),
        Ok(Err(error)) => Err(io::Error::new(error.kind(), format!("thread {name}: {error}"))),
        Err(_) => Err(io::Error::other(format!("thread {name}: ended before it was placed"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cpus_here() -> Vec<usize> {
        core_affinity::get_core_ids().unwrap().into_iter().map(|core| core.id).collect()
    }

    #[test]
    fn a_thread_runs_where_it_was_placed_under_its_name() {
        let last = *cpus_here().last().unwrap();
        let (tell, told) = mpsc::channel();
        let body = move || {
            let name = std::thread::current().name().map(str::to_owned);
            tell.send((name, cpus_here())).unwrap();
        };
        spawn("io-3", Placement::Cpu(last), body).unwrap().join().unwrap();
        assert_eq!(told.recv().unwrap(), (Some("io-3".to_owned()), vec![last]));
    }

    #[test]
    fn a_thread_may_leave_the_cpu_its_parent_is_pinned_to() {
        let all = cpus_here();
        let (tell, told) = mpsc::channel();
        let everywhere = Placement::Any(all.clone());
        let parent = move || {
            spawn("child", everywhere, move || tell.send(cpus_here()).unwrap()).unwrap().join().unwrap();
        };
        spawn("parent", Placement::Cpu(all[0]), parent).unwrap().join().unwrap();
        assert_eq!(told.recv().unwrap(), all);
    }

    #[test]
    fn a_cpu_that_does_not_exist_is_an_error_and_nothing_runs() {
        for cpu in [1023, 1024, usize::MAX] {
            let error = spawn("io-0", Placement::Cpu(cpu), || unreachable!()).unwrap_err();
            assert!(error.to_string().starts_with(&format!("thread io-0: CPU {cpu} does not exist")), "{error}");
        }
    }

    #[test]
    fn io_threads_are_dealt_out_or_kept_off_the_engines() {
        let place = |index, io: &[u32]| Placement::of_io_thread(index, io, &[0, 2], &[0, 1, 2, 3]);
        assert_eq!(place(0, &[5, 6]), Placement::Cpu(5));
        assert_eq!(place(3, &[5, 6]), Placement::Cpu(6));
        assert_eq!(place(1, &[]), Placement::Any(vec![1, 3]));
        assert_eq!(Placement::off_engine(&[0, 1], &[0, 1]), Placement::Any(vec![0, 1]));
    }
}
