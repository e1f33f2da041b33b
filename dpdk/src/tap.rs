//! net_tap's signals.
//!
//! The driver has the kernel send the process a signal with each packet (`O_ASYNC`, the first real-time signal that nobody handles), and
//! once one came it looks into an empty queue no more until the next. It interrupts a system call of whichever thread takes it. Where
//! every thread blocks them, the driver asks the kernel at each poll instead, which is wanted; but then they pile up until the user may
//! have no more (`RLIMIT_SIGPENDING`), and thread cancellation and timers fail, in other processes of the user, too. So in such a process
//! the kernel is told to send none.

use std::{fs, io, os::fd::BorrowedFd};

use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};

const DEVICE: &str = "/dev/net/tun";
/// `O_ASYNC`, for which rustix has no name.
const ASYNC: OFlags = OFlags::from_bits_retain(0o20000);
/// The real-time signals that the C library leaves to others, 34 to 64, as bits of a mask whose lowest is signal 1.
const REAL_TIME: u64 = u64::MAX << 33;

/// Tells the kernel to send none, unless some thread could have taken one: then the driver waits for the next.
pub(crate) fn end_signals() -> io::Result<()> {
    if !all_threads_block()? {
        return Ok(());
    }
    for entry in fs::read_dir("/proc/self/fd")? {
        let entry = entry?;
        let number = entry.file_name().to_str().and_then(|name| name.parse().ok());
        let Some(number) = number.filter(|_| fs::read_link(entry.path()).is_ok_and(|target| target.as_os_str() == DEVICE)) else {
            continue;
        };
        // SAFETY: it is open: a TAP's descriptors are the driver's, which closes them with its port; ports are opened and closed by
        // the thread that started EAL.
        let descriptor = unsafe { BorrowedFd::borrow_raw(number) };
        fcntl_setfl(descriptor, fcntl_getfl(descriptor)?.difference(ASYNC))?;
    }
    Ok(())
}

fn all_threads_block() -> io::Result<bool> {
    for task in fs::read_dir("/proc/self/task")? {
        // One that has ended takes no signals.
        let Ok(status) = fs::read_to_string(task?.path().join("status")) else { continue };
        let mask = status.lines().find_map(|line| line.strip_prefix("SigBlk:"));
        let mask = mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0);
        if mask & REAL_TIME != REAL_TIME {
            return Ok(false);
        }
    }
    Ok(true)
}
