//! What the control plane asks of the cores while they run: their connections, a copy of a port's frames.
//!
//! Each core has a bounded mailbox that it looks into ten times a second, beside publishing its counters. What it answers goes
//! through bounded queues which it never waits for.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

use crossbeam::channel::{Receiver, Sender, bounded};
use crossbeam::queue::ArrayQueue;

use super::connections::Connection;

/// Inquiries that wait for one core.
const INQUIRIES_MAX: usize = 4;

/// One question.
#[derive(Clone)]
pub enum Inquiry {
    /// Its connections, in pieces; dropping the sender ends them.
    Connections(Sender<Vec<Connection>>),
    /// Copies of a port's frames until told otherwise.
    Capture(Capture),
}

/// A capture that runs. All clones are the same.
#[derive(Clone)]
pub struct Capture {
    /// The port's number in the configuration.
    pub port: usize,
    /// Bytes kept of each frame.
    pub snaplen: usize,
    /// Only TCP and UDP with this port on either side.
    pub transport_port: Option<u16>,
    pub frames: Arc<CapturedFrames>,
    /// No more frames are wanted.
    pub over: Arc<AtomicBool>,
}

/// One frame as it was received, or given to the driver.
pub struct CapturedFrame {
    /// Nanoseconds since 1970.
    pub at_ns: u64,
    pub outgoing: bool,
    pub core: usize,
    /// Bytes on the wire; of a chain that the card cuts, all of it.
    pub original_len: u32,
    pub bytes: Vec<u8>,
}

/// Frames on their way from the cores to who writes them, bounded in number and bytes. Nobody waits: what finds no room is counted.
pub struct CapturedFrames {
    ring: ArrayQueue<CapturedFrame>,
    bytes: AtomicUsize,
    bytes_max: usize,
    dropped: AtomicU64,
}

impl CapturedFrames {
    pub fn new(frames_max: usize, bytes_max: usize) -> CapturedFrames {
        CapturedFrames { ring: ArrayQueue::new(frames_max), bytes: AtomicUsize::new(0), bytes_max, dropped: AtomicU64::new(0) }
    }

    pub fn push(&self, frame: CapturedFrame) {
        let len = frame.bytes.len();
        // What others put in at this moment counts already, so the bound holds.
        let fits = self.bytes.fetch_add(len, Ordering::Relaxed) + len <= self.bytes_max;
        if !fits || self.ring.push(frame).is_err() {
            self.bytes.fetch_sub(len, Ordering::Relaxed);
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Whether a frame is not even worth a copy: then it is counted as one that found no room.
    pub fn turns_away(&self) -> bool {
        let full = self.ring.is_full() || self.bytes.load(Ordering::Relaxed) >= self.bytes_max;
        self.dropped.fetch_add(u64::from(full), Ordering::Relaxed);
        full
    }

    pub fn pop(&self) -> Option<CapturedFrame> {
        let frame = self.ring.pop()?;
        self.bytes.fetch_sub(frame.bytes.len(), Ordering::Relaxed);
        Some(frame)
    }

    pub fn waiting(&self) -> usize {
        self.ring.len()
    }

    /// How many frames found no room.
    pub fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }
}

/// The asking end, of all cores.
#[derive(Clone)]
pub struct Inquiries {
    cores: Vec<Sender<Inquiry>>,
    /// Names of the ports, by number.
    pub ports: Vec<String>,
}

impl Inquiries {
    /// With the mailbox of each core.
    pub fn new(cores: usize, ports: Vec<String>) -> (Inquiries, Vec<Receiver<Inquiry>>) {
        let (senders, receivers) = (0..cores).map(|_| bounded(INQUIRIES_MAX)).unzip();
        (Inquiries { cores: senders, ports }, receivers)
    }

    /// Asks every core; `false` if one has no room for more questions (then nothing may be expected of those before it either).
    pub fn ask(&self, inquiry: &Inquiry) -> bool {
        self.cores.iter().all(|core| core.try_send(inquiry.clone()).is_ok())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(len: usize) -> CapturedFrame {
        CapturedFrame { at_ns: 0, outgoing: false, core: 0, original_len: len as u32, bytes: vec![0; len] }
    }

    #[test]
    fn captured_frames_are_bounded_in_number_and_bytes() {
        let frames = CapturedFrames::new(3, 1000);
        frames.push(frame(600));
        frames.push(frame(401));
        assert_eq!((frames.waiting(), frames.dropped()), (1, 1), "a byte too many");
        frames.push(frame(400));
        assert!(frames.turns_away());
        assert_eq!((frames.waiting(), frames.dropped()), (2, 2));
        assert_eq!(frames.pop().map(|frame| frame.bytes.len()), Some(600));
        assert!(!frames.turns_away());
        (0..3).for_each(|_| frames.push(frame(0)));
        assert_eq!((frames.waiting(), frames.dropped()), (3, 3), "a frame too many");
        assert!(frames.turns_away());
    }
}
