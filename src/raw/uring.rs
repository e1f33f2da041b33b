//! Data I/O over pages: one thread's io_uring, and the same calls without it.
//!
//! Read first: io_uring(7), io_uring_enter(2). The kernel reads and writes memory while nobody here looks, so everything an
//! operation names (descriptor, pages, the array of pieces) lives in a table from submission to completion, and dropping the
//! ring waits until the table is empty.
//!
//! Not here: what is read and written, and in which order (`store::local`).

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use io_uring::{IoUring, opcode, squeue, types};

use super::syscall;
use super::{PageMut, Slice};

/// The memory of an operation. It comes back with the completion.
pub enum Buffers {
    /// Filled front to back.
    Read(Vec<PageMut>),
    /// Written front to back, contiguous in the file.
    Write(Vec<Slice>),
    /// fdatasync (`true`) or fsync.
    Sync { data_only: bool },
}

/// A finished operation.
pub struct Completion {
    pub tag: u64,
    /// Bytes moved; fewer than asked for is not an error here.
    pub result: io::Result<usize>,
    pub buffers: Buffers,
}

/// Wakes the thread that waits in `DataRing::wait`. A system call is made only if it sleeps.
#[derive(Clone)]
pub struct RingWaker {
    event: Arc<OwnedFd>,
    sleeping: Arc<AtomicBool>,
}

impl RingWaker {
    /// Call it after the work was made visible to the sleeper.
    pub fn wake(&self) {
        if self.sleeping.swap(false, Ordering::SeqCst) {
            syscall::signal(&*self.event);
        }
    }
}

struct Flight {
    tag: u64,
    offset: u64,
    /// Kept open until the completion.
    fd: Arc<OwnedFd>,
    buffers: Buffers,
    /// What the submission entry points to.
    pieces: Box<[libc::iovec]>,
}

impl Flight {
    /// `result`: bytes moved, or an errno below 0.
    fn complete(self, result: i32) -> Completion {
        let Flight { tag, offset, fd, mut buffers, pieces } = self;
        drop(pieces);
        let result = match -result {
            // Nobody here cancels anything: the kernel got no thread to do it on, as happens to the first operations of a busy
            // machine, or a signal came. It has an offset, so doing it (again) in place is right whatever became of it.
            libc::ECANCELED | libc::EINTR => loop {
                match perform(&fd, offset, &mut buffers) {
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                    result => break result,
                }
            },
            _ => usize::try_from(result).map_err(|_| io::Error::from_raw_os_error(-result)),
        };
        Completion { tag, result, buffers }
    }
}

/// Completions carry this instead of a slot when the event descriptor was read.
const EVENT_TAG: u64 = u64::MAX;

/// Read, write and sync of files by one thread: through an io_uring, or with ordinary calls if the kernel has none.
pub struct DataRing {
    ring: Option<IoUring>,
    flights: Vec<Option<Flight>>,
    free: Vec<usize>,
    in_flight: usize,
    finished: VecDeque<Completion>,
    waker: RingWaker,
    /// Where the read of the event descriptor lands; boxed so that it stays where the kernel knows it.
    event_value: Box<u64>,
    event_armed: bool,
}

// SAFETY: the raw pointers in `pieces` name page memory that the same `Flight` owns; everything moves together.
unsafe impl Send for DataRing {}

impl DataRing {
    /// `entries`: operations in flight at most. Without io_uring (`want_uring` false, or the kernel refuses) the operations
    /// are done in place by `push`.
    pub fn new(entries: usize, want_uring: bool) -> io::Result<DataRing> {
        let waker = RingWaker { event: Arc::new(syscall::event()?), sleeping: Arc::new(AtomicBool::new(false)) };
        // One entry more for the event descriptor.
        let ring = if want_uring { IoUring::new((entries as u32 + 1).next_power_of_two()).ok() } else { None };
        Ok(DataRing {
            ring,
            flights: (0..entries).map(|_| None).collect(),
            free: (0..entries).rev().collect(),
            in_flight: 0,
            finished: VecDeque::new(),
            waker,
            event_value: Box::new(0),
            event_armed: false,
        })
    }

    pub fn uses_uring(&self) -> bool {
        self.ring.is_some()
    }

    pub fn waker(&self) -> RingWaker {
        self.waker.clone()
    }

    /// Operations submitted and not yet taken with `poll`.
    pub fn in_flight(&self) -> usize {
        self.in_flight + self.finished.len()
    }

    /// Whether `push` has room.
    pub fn has_room(&self) -> bool {
        !self.free.is_empty()
    }

    /// Starts an operation at `offset`; `tag` comes back with its completion. The buffers come back at once if there is no
    /// room: ask `has_room` first.
    pub fn push(&mut self, fd: Arc<OwnedFd>, offset: u64, mut buffers: Buffers, tag: u64) -> Result<(), Buffers> {
        let Some(slot) = self.free.pop() else { return Err(buffers) };
        if self.ring.is_none() {
            let result = perform(&fd, offset, &mut buffers);
            self.free.push(slot);
            self.finished.push_back(Completion { tag, result, buffers });
            return Ok(());
        }
        let pieces: Box<[libc::iovec]> = match &mut buffers {
            Buffers::Read(pages) => {
                pages.iter_mut().map(|page| libc::iovec { iov_base: page.as_mut_ptr().cast(), iov_len: page.len() }).collect()
            }
            Buffers::Write(slices) => slices
                .iter()
                // The kernel only reads what WRITEV points to.
                .map(|slice| libc::iovec { iov_base: slice.as_ptr().cast_mut().cast(), iov_len: slice.len() })
                .collect(),
            Buffers::Sync { .. } => Box::default(),
        };
        let target = types::Fd(fd.as_raw_fd());
        let entry = match &buffers {
            Buffers::Read(_) => opcode::Readv::new(target, pieces.as_ptr(), pieces.len() as u32).offset(offset).build(),
            Buffers::Write(_) => opcode::Writev::new(target, pieces.as_ptr(), pieces.len() as u32).offset(offset).build(),
            Buffers::Sync { data_only } => {
                let flags = if *data_only { types::FsyncFlags::DATASYNC } else { types::FsyncFlags::empty() };
                opcode::Fsync::new(target).flags(flags).build()
            }
        };
        // The pages' addresses and the boxed pieces do not move with the struct.
        self.flights[slot] = Some(Flight { tag, offset, fd, buffers, pieces });
        self.in_flight += 1;
        self.enqueue(&entry.user_data(slot as u64));
        Ok(())
    }

    fn enqueue(&mut self, entry: &squeue::Entry) {
        let Some(ring) = &mut self.ring else { return };
        loop {
            // SAFETY: descriptor, pieces and pages of the entry are owned by its `Flight` (or are fields of `self` for the
            // event) and stay there until its completion was taken, also when `self` is dropped.
            if unsafe { ring.submission().push(entry) }.is_ok() {
                return;
            }
            let _ = ring.submit();
        }
    }

    /// Hands what was pushed to the kernel.
    pub fn submit(&mut self) {
        if let Some(ring) = &mut self.ring {
            let empty = ring.submission().is_empty();
            if !empty {
                // EBUSY and EINTR leave the entries queued for the next call.
                let _ = ring.submit();
            }
        }
    }

    /// Takes a finished operation.
    pub fn poll(&mut self) -> Option<Completion> {
        if let Some(completion) = self.finished.pop_front() {
            return Some(completion);
        }
        loop {
            let entry = self.ring.as_mut()?.completion().next()?;
            if entry.user_data() == EVENT_TAG {
                self.event_armed = false;
                continue;
            }
            let slot = usize::try_from(entry.user_data()).unwrap_or(usize::MAX);
            let Some(flight) = self.flights.get_mut(slot).and_then(Option::take) else { continue };
            self.free.push(slot);
            self.in_flight -= 1;
            return Some(flight.complete(entry.result()));
        }
    }

    /// Sleeps until an operation finishes or the waker is called. `nothing_to_do` is asked once after the thread is marked
    /// as sleeping, so that work handed over just before is not slept through.
    pub fn wait(&mut self, nothing_to_do: impl FnOnce() -> bool) {
        self.submit();
        if !self.finished.is_empty() {
            return;
        }
        self.waker.sleeping.store(true, Ordering::SeqCst);
        if nothing_to_do() {
            self.sleep();
        }
        self.waker.sleeping.store(false, Ordering::SeqCst);
    }

    fn sleep(&mut self) {
        if self.ring.is_none() {
            let mut value = [0; 8];
            let _ = rustix::io::read(&*self.waker.event, &mut value);
            return;
        }
        if !self.event_armed {
            let into = (&raw mut *self.event_value).cast::<u8>();
            let read = opcode::Read::new(types::Fd(self.waker.event.as_raw_fd()), into, 8).build().user_data(EVENT_TAG);
            self.event_armed = true;
            self.enqueue(&read);
        }
        if let Some(ring) = &self.ring {
            let _ = ring.submit_and_wait(1);
        }
    }
}

impl Drop for DataRing {
    fn drop(&mut self) {
        // The kernel may still use the pages of what is in flight, and `event_value`.
        if self.event_armed {
            syscall::signal(&*self.waker.event);
        }
        while self.in_flight > 0 || self.event_armed {
            let Some(ring) = &self.ring else { return };
            if ring
                .submit_and_wait(1)
                .is_err_and(|error| !matches!(error.raw_os_error(), Some(libc::EINTR | libc::EBUSY | libc::EAGAIN)))
            {
                // Memory that the kernel may write must not be freed.
                std::mem::forget(std::mem::take(&mut self.flights));
                std::mem::forget(std::mem::take(&mut self.event_value));
                return;
            }
            while self.poll().is_some() {}
        }
    }
}

/// The same without io_uring.
fn perform(fd: &OwnedFd, offset: u64, buffers: &mut Buffers) -> io::Result<usize> {
    Ok(match buffers {
        Buffers::Read(pages) => {
            let mut pieces: Vec<_> = pages.iter_mut().map(|page| io::IoSliceMut::new(page)).collect();
            rustix::io::preadv(fd, &mut pieces, offset)?
        }
        Buffers::Write(slices) => {
            let pieces: Vec<_> = slices.iter().map(|slice| io::IoSlice::new(slice)).collect();
            rustix::io::pwritev(fd, &pieces, offset)?
        }
        Buffers::Sync { data_only: true } => rustix::fs::fdatasync(fd).map(|()| 0)?,
        Buffers::Sync { data_only: false } => rustix::fs::fsync(fd).map(|()| 0)?,
    })
}

#[cfg(test)]
mod tests {
    use super::super::PagePool;
    use super::*;

    fn write_then_read(want_uring: bool) {
        let path = std::env::temp_dir().join(format!("nfsplice-ring-{}-{want_uring}", std::process::id()));
        let file = std::fs::File::options().read(true).write(true).create(true).truncate(true).open(&path).unwrap();
        let fd = Arc::new(OwnedFd::from(file));
        let pool = PagePool::anonymous(4, 4096).unwrap();
        let mut ring = DataRing::new(4, want_uring).unwrap();
        assert_eq!(ring.uses_uring(), want_uring);
        let mut page = pool.allocate().unwrap();
        page.fill(7);
        let page = page.freeze();
        let pieces = vec![page.slice(0..4096), page.slice(0..100)];
        assert!(ring.push(fd.clone(), 0, Buffers::Write(pieces), 1).is_ok());
        let next = |ring: &mut DataRing| loop {
            if let Some(done) = ring.poll() {
                return done;
            }
            ring.wait(|| true);
        };
        let done = next(&mut ring);
        assert_eq!((done.tag, done.result.unwrap()), (1, 4196));
        assert!(ring.push(fd.clone(), 0, Buffers::Sync { data_only: true }, 2).is_ok());
        assert_eq!(next(&mut ring).tag, 2);
        let pages = vec![pool.allocate().unwrap(), pool.allocate().unwrap()];
        assert!(ring.push(fd.clone(), 0, Buffers::Read(pages), 3).is_ok());
        let done = next(&mut ring);
        assert_eq!(done.result.unwrap(), 4196);
        let Buffers::Read(pages) = done.buffers else { panic!("a read") };
        assert!(pages[0].iter().all(|byte| *byte == 7));
        let _ = std::fs::remove_file(&path);
    }

    #[test]
    fn pages_go_to_a_file_and_come_back() {
        write_then_read(true);
    }

    #[test]
    fn what_the_kernel_cancelled_or_interrupted_is_done_in_place() {
        let path = std::env::temp_dir().join(format!("nfsplice-ring-{}-cancelled", std::process::id()));
        let file = std::fs::File::options().read(true).write(true).create(true).truncate(true).open(&path).unwrap();
        let fd = Arc::new(OwnedFd::from(file));
        let mut page = PagePool::anonymous(1, 4096).unwrap().allocate().unwrap();
        page.fill(9);
        let buffers = Buffers::Write(vec![page.freeze().slice(0..300)]);
        let flight = |buffers| Flight { tag: 5, offset: 100, fd: fd.clone(), buffers, pieces: Box::default() };
        let done = flight(buffers).complete(-libc::ECANCELED);
        assert_eq!((done.tag, done.result.unwrap()), (5, 300));
        let synced = flight(Buffers::Sync { data_only: true }).complete(-libc::EINTR);
        assert_eq!(synced.result.unwrap(), 0);
        let written = std::fs::read(&path).unwrap();
        assert!(written.len() == 400 && written[..100] == [0; 100] && written[100..] == [9; 300]);
        let refused = flight(Buffers::Sync { data_only: true }).complete(-libc::EDQUOT);
        assert_eq!(refused.result.unwrap_err().raw_os_error(), Some(libc::EDQUOT));
        let _ = std::fs::remove_file(&path);
    }

    #[test]
    fn without_io_uring_it_is_the_same() {
        write_then_read(false);
    }

    #[test]
    fn a_waker_ends_the_sleep_and_dropping_drains() {
        let mut ring = DataRing::new(4, true).unwrap();
        let waker = ring.waker();
        let thread = std::thread::spawn(move || {
            ring.wait(|| true);
            drop(ring);
        });
        while !thread.is_finished() {
            waker.wake();
            std::thread::yield_now();
        }
        thread.join().unwrap();
    }
}
