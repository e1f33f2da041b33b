//! What the control plane asks of the cores while they run: their connections, a copy of a port's frames.
//!
//! Each core has a bounded mailbox that it looks into ten times a second, beside publishing its counters. What it answers goes
//! through bounded queues which it never waits for.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64};

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
    pub frames: Arc<ArrayQueue<CapturedFrame>>,
    /// Frames for which there was no room.
    pub dropped: Arc<AtomicU64>,
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
