//! How an idle core waits: for a frame, for an I/O thread's completion, or for the next timer.
//!
//! A core that found nothing to do spins a little, then says that it is about to sleep, looks once more, and waits on file
//! descriptors: its ports' and one of its own that `Waker::wake` writes to. On a port without a descriptor it naps instead.

use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};

use crate::time::Duration;

/// The longest wait: counters are published and stop requests are seen at least this often.
pub const SLEEP_MAX: Duration = Duration::from_millis(50);

/// The wait of a core with a port that cannot signal.
pub const NAP: Duration = Duration::from_micros(100);

/// Descriptors one core can wait on, its own included.
const DESCRIPTORS_MAX: usize = 32;

/// Wakes one core from any thread.
pub struct Waker {
    descriptor: OwnedFd,
    /// Whether the core sleeps or is about to: otherwise it will look by itself, and waking would be a wasted system call.
    sleeping: AtomicBool,
}

impl Waker {
    pub fn new() -> io::Result<Arc<Waker>> {
        let descriptor = eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC)?;
        Ok(Arc::new(Waker { descriptor, sleeping: AtomicBool::new(false) }))
    }

    /// To be called after the thing to look at is in place.
    pub fn wake(&self) {
        // Sequentially consistent with `prepare`: either the core sees the thing, or this sees that it sleeps.
        std::sync::atomic::fence(Ordering::SeqCst);
        if self.sleeping.load(Ordering::Relaxed) && self.sleeping.swap(false, Ordering::Relaxed) {
            // Fails only if the counter is at its maximum: then the core is awake already.
            let _ = rustix::io::write(&self.descriptor, &1u64.to_ne_bytes());
        }
    }

    /// The core is about to sleep: look for work once more after this, then `sleep` or `cancel`.
    pub fn prepare(&self) {
        self.sleeping.store(true, Ordering::Relaxed);
        std::sync::atomic::fence(Ordering::SeqCst);
    }

    pub fn cancel(&self) {
        self.sleeping.store(false, Ordering::Relaxed);
    }

    /// Waits until woken, until one of `ports` is readable, or for `timeout`. Call `prepare` first.
    pub fn sleep(&self, ports: &[BorrowedFd<'_>], timeout: Duration) {
        let mut descriptors: smallvec::SmallVec<[PollFd<'_>; DESCRIPTORS_MAX]> = smallvec::SmallVec::new();
        descriptors.push(PollFd::from_borrowed_fd(self.descriptor.as_fd(), PollFlags::IN));
        for port in ports.iter().take(DESCRIPTORS_MAX - 1) {
            descriptors.push(PollFd::from_borrowed_fd(*port, PollFlags::IN));
        }
        let timeout = Timespec { tv_sec: timeout.as_secs() as i64, tv_nsec: i64::from(timeout.subsec_nanos()) };
        // An error is an interruption by a signal: the loop looks around and comes back.
        let _ = poll(&mut descriptors, Some(&timeout));
        self.cancel();
        let mut count = [0; 8];
        let _ = rustix::io::read(&self.descriptor, &mut count);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;

    #[test]
    fn a_sleeping_core_is_woken() {
        let waker = Waker::new().unwrap();
        let (slept, woke) = mpsc::channel();
        let core = Arc::clone(&waker);
        waker.prepare();
        let thread = std::thread::spawn(move || {
            core.sleep(&[], Duration::from_secs(3600));
            slept.send(()).unwrap();
        });
        waker.wake();
        woke.recv().unwrap();
        thread.join().unwrap();
    }

    #[test]
    fn waking_a_busy_core_leaves_nothing_behind() {
        let waker = Waker::new().unwrap();
        waker.wake();
        waker.prepare();
        let started = std::time::Instant::now();
        waker.sleep(&[], Duration::from_millis(5));
        assert!(started.elapsed() >= Duration::from_millis(5), "an old wake-up ended the sleep");
    }
}
