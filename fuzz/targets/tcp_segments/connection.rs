//! What is known of one connection from outside: what either application has done and been told, and the judge of its segments.

use std::sync::LazyLock;
use std::time::Duration;

use nfsplice::tcp::{ConnectionId, Reason};
use nfsplice::time::Instant;
use nfsplice::wire::tcp::{Flags, Repr};

use super::super::judge::{Judge, Terms};

/// The text that a side sends in a conversation's connection `number`, from `offset` on, in pieces of which the whole is endless. Pieces, for of a
/// loop over octets the fuzzer watches every step: the octets that only differ in the low eight bits of their offset stand in a table.
pub fn text(number: usize, side: usize, offset: u64) -> impl Iterator<Item = &'static [u8]> {
    static TABLE: LazyLock<Vec<u8>> = LazyLock::new(|| (0..=255u8).flat_map(|of| (0..=255u8).map(move |low| low ^ of)).collect());
    let of_stream = (side as u8).wrapping_mul(0x55) ^ (number as u8).wrapping_mul(0x1d);
    let (first, low) = (offset >> 8, (offset & 0xff) as usize);
    (first..).map(move |high| {
        let row = usize::from((high ^ high >> 8) as u8 ^ of_stream) * 256;
        &TABLE[row + if high == first { low } else { 0 }..row + 256]
    })
}

/// Writes the text from `offset` on.
pub fn put_text(number: usize, side: usize, offset: u64, mut out: &mut [u8]) {
    for piece in text(number, side, offset) {
        let (front, rest) = out.split_at_mut(piece.len().min(out.len()));
        front.copy_from_slice(&piece[..front.len()]);
        out = rest;
        if out.is_empty() {
            return;
        }
    }
}

/// Whether `bytes` are the text from `offset` on.
pub fn is_text(number: usize, side: usize, offset: u64, mut bytes: &[u8]) -> bool {
    text(number, side, offset)
        .map_while(|piece| {
            let (front, rest) = bytes.split_at(piece.len().min(bytes.len()));
            bytes = rest;
            (!front.is_empty()).then(|| *front == piece[..front.len()])
        })
        .all(|same| same)
}

#[derive(Default)]
pub struct End {
    pub id: Option<ConnectionId>,
    /// By `connect`.
    pub opened: bool,
    /// `Accepted` or `Connected` was told.
    pub established: bool,
    /// Bytes the send queue took.
    pub sent: u64,
    pub received: u64,
    /// Bytes of which `Readable` was told.
    pub told: u64,
    /// A list was refused, and `Writable` not told since.
    pub refused: bool,
    pub peer_closed: bool,
    pub closing: bool,
    pub closed: Option<Reason>,
    /// Closed with bytes that were not read.
    pub lost_unread: bool,
    /// Its first sequence number, once it has sent a SYN.
    isn: Option<u32>,
}

pub struct Connection {
    /// Of each side.
    pub ports: [u16; 2],
    pub ends: [End; 2],
    /// `None`: nobody can tell any more what an end knows.
    pub judge: Option<Judge>,
    pub opened_at: Instant,
    /// Its predecessor between these ports was not closed by both ends, or the attacker had a hand in it.
    pub after_disorder: bool,
    /// A segment that the attacker has made was handed to an end: there is no saying what arrives.
    pub tampered: bool,
    /// What was sent in good faith, but not in this connection, was handed to an end: it may be reset.
    pub strayed: bool,
    /// An application has thrown the rest away.
    pub aborted: bool,
    /// An application gives up by itself when nothing comes for long.
    pub impatient: bool,
    /// A router has said that there is no way.
    pub lied_to: bool,
    /// Nobody listens at the other end, as far as it knows.
    pub uninvited: bool,
}

impl End {
    /// It has sent its SYN.
    pub fn is_known(&self) -> bool {
        self.isn.is_some()
    }

    /// Of another connection, and begins with the same number.
    pub fn is_twin_of(&self, other: &End) -> bool {
        self.isn.is_some() && self.isn == other.isn
    }
}

impl Connection {
    pub fn new(ports: [u16; 2], terms: Terms, now: Instant) -> Connection {
        Connection {
            ports,
            ends: Default::default(),
            judge: Some(Judge::new(terms)),
            opened_at: now,
            after_disorder: false,
            tampered: false,
            strayed: false,
            aborted: false,
            impatient: false,
            lied_to: false,
            uninvited: false,
        }
    }

    /// Whether a segment that `from` sends between these ports is of this connection and not of one before; `None`: it is of none that
    /// an application has asked for.
    pub fn is_sender(&mut self, from: usize, segment: &Repr) -> Option<bool> {
        let peer = self.ends[1 - from].isn;
        let end = &mut self.ends[from];
        let (syn, answers) = (segment.flags.contains(Flags::SYN), segment.flags.contains(Flags::ACK));
        match end.isn {
            Some(isn) if syn && isn != segment.seq.0 => {
                // A SYN is answered anew, with other numbers, when its half-open connection was given up or was a cookie of long ago.
                self.judge = None;
                self.strayed = true;
                if answers { None } else { Some(true) }
            }
            Some(_) => {
                if syn && end.closed.is_some() {
                    self.judge = None;
                    self.strayed = true;
                }
                Some(true)
            }
            None if syn && (end.opened || !answers || peer.is_some_and(|isn| isn.wrapping_add(1) == segment.ack.0)) => {
                end.isn = Some(segment.seq.0);
                Some(true)
            }
            None => Some(false),
        }
    }

    /// Nothing but the two ends and the link had a say in what became of it.
    pub fn is_undisturbed(&self) -> bool {
        !self.tampered && !self.aborted && !self.strayed && !self.impatient
    }

    /// Each end that there is has closed.
    pub fn is_over(&self) -> bool {
        self.ends.iter().all(|end| end.closed.is_some() || !(end.opened || end.established))
    }

    /// Nobody but the two ends may end a connection.
    pub fn check_reason(&self, side: usize, reason: Reason) {
        let (own, other) = (&self.ends[side], &self.ends[1 - side]);
        let disturbed = self.tampered || self.strayed;
        match reason {
            Reason::Finished => assert!(disturbed || own.closing, "finished before it was closed"),
            // The other end is past TIME-WAIT, never got a probe, or has given up a handshake whose last part was lost.
            Reason::Reset => {
                let excused = disturbed || self.aborted || other.closed.is_some() || !other.established;
                assert!(excused, "reset by nobody");
            }
            Reason::Aborted => assert!(disturbed || self.aborted),
            Reason::TimedOut => assert!(disturbed || self.impatient || !own.established, "timed out"),
            Reason::Refused => assert!(disturbed || self.uninvited || other.closed.is_some(), "refused"),
            Reason::Unreachable => assert!(disturbed || self.lied_to, "unreachable"),
        }
    }
}

/// Half of TIME-WAIT: nothing is on the Internet's path for longer (RFC 9293 section 3.4.2).
pub fn segment_lifetime_max(time_wait: Duration) -> Duration {
    time_wait / 2
}
