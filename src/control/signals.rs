//! Signals: finish, stop now, read the configuration again.
//!
//! `ctrlc` (feature `termination`) takes SIGINT, SIGTERM and SIGHUP with one handler that cannot tell them apart. For SIGINT and
//! SIGTERM that is right: the first one drains, the second one stops at once. SIGHUP means two things:
//! - The server has a controlling terminal, which went away: drain, like ctrlc does, unless it was started to ignore that (nohup).
//! - The server is a daemon without one: read the configuration again. Then SIGHUP is blocked, in this thread and in those it
//!   starts from now on, so that ctrlc's handler never runs for it, and one thread waits for it with sigwait(3).
//!
//! The real-time signals are blocked, too: DPDK's net_tap asks the kernel for one with each packet, which would interrupt some thread, in
//! a system call or in the packet loop, only to tell it to look where it looks anyway. Where all threads block them, `dpdk` asks the
//! kernel to send none. SIGIO, which the kernel sends where such a signal finds no room, would end the process.
//!
//! `nix` is what ctrlc is built on; its sigmask is the safe one.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use nix::sys::signal::{SigSet, Signal};

/// What the signals so far ask for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Stop {
    /// Go on.
    No = 0,
    /// Take no new calls, finish those in progress, then stop.
    Drain = 1,
    /// Stop now.
    Now = 2,
}

/// Whether to stop: set by signals or by the server itself, read by every loop. Clones share one state.
#[derive(Clone, Debug, Default)]
pub struct StopFlag(Arc<AtomicU8>);

impl StopFlag {
    /// What is asked for; cheap enough for each turn of a loop.
    pub fn get(&self) -> Stop {
        match self.0.load(Ordering::Relaxed) {
            0 => Stop::No,
            1 => Stop::Drain,
            _ => Stop::Now,
        }
    }

    /// One more request to stop: the first one drains, the next one stops at once.
    pub fn request(&self) -> Stop {
        let before = self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |state| Some(state.saturating_add(1).min(2)));
        match before {
            Ok(0) => Stop::Drain,
            _ => Stop::Now,
        }
    }
}

/// What SIGHUP does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hangup {
    /// The terminal went away: drain.
    Drains,
    /// Read the configuration again.
    Reloads,
}

impl Hangup {
    /// By whether this process has a controlling terminal.
    pub fn of_this_process() -> Self {
        // tty(4): opening /dev/tty fails with ENXIO when the process has no controlling terminal.
        if std::fs::File::open("/dev/tty").is_ok() { Self::Drains } else { Self::Reloads }
    }
}

/// Installs the handlers. Call once, early on the main thread: the threads started before it would still take the signals of devices, and
/// with [`Hangup::Reloads`] let SIGHUP through to ctrlc.
///
/// `on_stop` runs on ctrlc's thread after each SIGINT or SIGTERM, `on_hangup` on its own thread after each SIGHUP.
pub fn install(
    stop: StopFlag,
    hangup: Hangup,
    on_stop: impl Fn(Stop) + Send + 'static,
    on_hangup: impl FnMut() + Send + 'static,
) -> io::Result<()> {
    signals_of_devices().thread_block()?;
    match hangup {
        Hangup::Reloads => wait_for_hangups(on_hangup)?,
        // nohup(1): ctrlc would take it all the same.
        Hangup::Drains if is_ignored(Signal::SIGHUP)? => drop(block(Signal::SIGHUP)?),
        Hangup::Drains => {}
    }
    ctrlc::set_handler(move || on_stop(stop.request())).map_err(io::Error::other)
}

/// Whether whoever started this process wants it to ignore a signal. Bit 0 of the kernel's mask is signal 1.
fn is_ignored(signal: Signal) -> io::Result<bool> {
    let status = std::fs::read_to_string("/proc/thread-self/status")?;
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let mask = mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0);
    Ok(mask >> (signal as i32 - 1) & 1 == 1)
}

fn wait_for_hangups(mut on_hangup: impl FnMut() + Send + 'static) -> io::Result<()> {
    let hangup = block(Signal::SIGHUP)?;
    let body = move || {
        // sigwait fails only for a set that it does not know.
        while hangup.wait().is_ok() {
            on_hangup();
        }
    };
    std::thread::Builder::new().name("sighup".to_owned()).spawn(body)?;
    Ok(())
}

/// What the kernel may be asked to send when a descriptor is readable (`F_SETSIG` of fcntl(2)).
fn signals_of_devices() -> SigSet {
    let mut set = SigSet::all();
    // Signal has no names for the real-time ones: they are what is left of all.
    Signal::iterator().for_each(|named| set.remove(named));
    set.add(Signal::SIGIO);
    set
}

/// Blocks a signal in this thread and those it starts from now on; tells which, to be waited for.
fn block(signal: Signal) -> io::Result<SigSet> {
    let mut set = SigSet::empty();
    set.add(signal);
    set.thread_block()?;
    Ok(set)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_request_drains_and_the_second_stops() {
        let flag = StopFlag::default();
        let seen_elsewhere = flag.clone();
        assert_eq!(flag.get(), Stop::No);
        assert_eq!(flag.request(), Stop::Drain);
        assert_eq!(seen_elsewhere.get(), Stop::Drain);
        assert_eq!(flag.request(), Stop::Now);
        assert_eq!(flag.request(), Stop::Now);
        assert_eq!(seen_elsewhere.get(), Stop::Now);
    }

    #[test]
    fn what_is_ignored_is_known() {
        // Rust's own start ignores SIGPIPE.
        assert!(is_ignored(Signal::SIGPIPE).unwrap());
        assert!(!is_ignored(Signal::SIGTERM).unwrap());
    }

    /// By what the kernel says: a hexadecimal mask, bit 0 for signal 1.
    #[test]
    fn threads_started_afterwards_do_not_take_what_devices_send() {
        const SIGTERM: u32 = 15;
        const SIGIO: u32 = 29;
        // The C library keeps the first two of the kernel's real-time signals, 32 and 33, for itself.
        const REAL_TIME: std::ops::RangeInclusive<u32> = 34..=64;
        let blocked = || {
            let status = std::fs::read_to_string("/proc/thread-self/status").unwrap();
            let mask = status.lines().find_map(|line| line.strip_prefix("SigBlk:")).unwrap();
            u64::from_str_radix(mask.trim(), 16).unwrap()
        };
        let server = move || {
            signals_of_devices().thread_block().unwrap();
            std::thread::spawn(blocked).join().unwrap()
        };
        let mask = std::thread::spawn(server).join().unwrap();
        let has = |signal: u32| mask >> (signal - 1) & 1 == 1;
        assert!(REAL_TIME.chain([SIGIO]).all(has), "{mask:x}");
        assert!(!has(SIGTERM), "{mask:x}");
    }

    #[test]
    fn threads_started_afterwards_do_not_take_sighup() {
        let blocked = || SigSet::thread_get_mask().unwrap().contains(Signal::SIGHUP);
        let server = move || {
            assert!(!blocked());
            wait_for_hangups(|| ()).unwrap();
            (blocked(), std::thread::spawn(blocked).join().unwrap())
        };
        assert_eq!(std::thread::spawn(server).join().unwrap(), (true, true));
    }
}
