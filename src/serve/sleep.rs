//! How an idle core waits: for a frame, for an I/O thread's completion, or for the next timer.
//!
//! A core that found nothing to do spins a little, then says that it is about to sleep, looks once more, and waits on file
//! descriptors: its ports' and one of its own that `Waker::wake` writes to. On a port without a descriptor it naps instead.

use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};

use crate::control::config::PORTS_MAX;
use crate::time::Duration;

/// The longest wait: counters are published and stop requests are seen at least this often.
pub const SLEEP_MAX: Duration = Duration::from_millis(50);

/// The wait of a core with a port that cannot signal.
pub const NAP: Duration = Duration::from_micros(100);

/// The longest wait of a core with a packet for which a device had no room: no device tells when it has again.
pub const NAP_BEFORE_FULL: Duration = Duration::from_millis(1);

/// The longest wait beside a port whose descriptor says that its device is gone, as that of a TAP that was deleted: it would end each wait at
/// once. Other ports and wake-ups end it as ever.
const NAP_BESIDE_BROKEN: Duration = Duration::from_millis(10);

/// Descriptors that need no allocation, the core's own included: all ports but the last of as many as there may be.
const DESCRIPTORS_INLINE: usize = PORTS_MAX;

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
        let mut descriptors: smallvec::SmallVec<[PollFd<'_>; DESCRIPTORS_INLINE]> = smallvec::SmallVec::new();
        descriptors.push(PollFd::from_borrowed_fd(self.descriptor.as_fd(), PollFlags::IN));
        for port in ports {
            descriptors.push(PollFd::from_borrowed_fd(*port, PollFlags::IN));
        }
        let timespec = |time: Duration| Timespec { tv_sec: time.as_secs() as i64, tv_nsec: i64::from(time.subsec_nanos()) };
        // An error is an interruption by a signal: the loop looks around and comes back.
        let _ = poll(&mut descriptors, Some(&timespec(timeout)));
        if !descriptors.iter().any(|descriptor| descriptor.revents().contains(PollFlags::IN)) {
            let broken = PollFlags::ERR | PollFlags::HUP | PollFlags::NVAL;
            let before = descriptors.len();
            descriptors.retain(|descriptor| !descriptor.revents().intersects(broken));
            if descriptors.len() < before {
                let _ = poll(&mut descriptors, Some(&timespec(timeout.min(NAP_BESIDE_BROKEN))));
            }
        }
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

    /// Each wait would end at once, and an idle core take all of its CPU.
    #[test]
    fn a_device_that_is_gone_does_not_keep_the_core_awake() {
        let waker = Waker::new().unwrap();
        // As the descriptor of a deleted TAP: an error, and nothing to read.
        let (reader, broken) = std::io::pipe().unwrap();
        drop(reader);
        let (alive, _writer) = std::io::pipe().unwrap();
        for _ in 0..5 {
            waker.prepare();
            let begun = std::time::Instant::now();
            waker.sleep(&[broken.as_fd(), alive.as_fd()], Duration::from_secs(3600));
            assert!(begun.elapsed() >= NAP_BESIDE_BROKEN);
        }
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
