//! SYNs that wait for their cookie: a turn answers few of them, and who comes again goes before who came once.
//!
//! Read first: RFC 4987 section 3.6. A cookie costs more than it takes to ask for it, most of all where sending is a system call. Beside
//! connections that have work, it takes their time; where none has, a turn that answered all would leave unread what comes meanwhile, text
//! and ACKs of connections among it: they fall silent, so the next turn answers all, too. So each turn answers few, the rest wait, and
//! beyond `syns_waiting_max` they are dropped. A turn of few is short where there is nothing else to do: hardly fewer are answered in a second.
//! An honest peer repeats a SYN that was not answered, a flood from forged addresses does not: what was dropped leaves a
//! mark, and a SYN that finds its own is answered before those that do not. So with up to some 400,000 others a second four in five peers are let
//! in at their second SYN, unless the flood repeats itself, too: then all have the same chance.
//! Not here: what a cookie is (`syn_cookie`), when one is due (`endpoint::listen`).

use std::collections::VecDeque;
use std::hash::{BuildHasher, Hash, Hasher};

use super::endpoint::FourTuple;
use super::tuple_hash::TupleHash;
use crate::time::Instant;
use crate::wire::tcp::Repr;

/// SYNs answered in a turn, and as many strays reset: each a sixteenth of what a turn may send.
pub(crate) const PER_TURN: usize = 4;
/// Of those that came once, if some were dropped since the turn before: none of them is worth a connection's packets then.
pub(crate) const PER_TURN_FLOODED: usize = 1;

/// Marks by a keyed hash of the SYN: a power of two. A first repetition comes after a second (RFC 6298): of as many SYNs as this dropped in
/// that time a third keep their mark, of a fifth of it (400,000) four in five.
const MARKS: usize = 1 << 21;
/// A mark. They stay until others take their places, so once all are taken, one SYN in 32,768 finds one that is not its own.
type Mark = u16;

/// A SYN that asks for a cookie.
pub(crate) struct Waiting {
    pub tuple: FourTuple,
    pub syn: Repr,
}

pub(crate) struct SynQueue {
    first: VecDeque<Waiting>,
    again: VecDeque<Waiting>,
    hash: TupleHash,
    /// Of SYNs that were dropped; none until one was.
    marks: Box<[Mark]>,
    /// When the newest of those that wait came.
    latest: Instant,
    /// How many more are answered in this turn, and how many of those that came once.
    left: usize,
    first_left: usize,
    /// Some of those that came once were dropped since the turn began.
    flooded: bool,
}

impl SynQueue {
    pub fn new(hash: TupleHash) -> SynQueue {
        let latest = Instant::ZERO;
        SynQueue {
            first: VecDeque::new(),
            again: VecDeque::new(),
            hash,
            marks: Box::default(),
            latest,
            left: PER_TURN,
            first_left: PER_TURN,
            flooded: false,
        }
    }

    /// `false`: `waiting_max` of its kind wait already, and it was dropped.
    pub fn push(&mut self, now: Instant, tuple: &FourTuple, syn: &Repr, waiting_max: usize) -> bool {
        let (place, mark) = self.mark_of(tuple, syn);
        let repeated = self.marks.get(place) == Some(&mark);
        let queue = if repeated { &mut self.again } else { &mut self.first };
        if queue.len() < waiting_max {
            queue.push_back(Waiting { tuple: *tuple, syn: *syn });
            self.latest = now;
            return true;
        }
        if self.marks.is_empty() {
            self.marks = vec![0; MARKS].into_boxed_slice();
        }
        self.marks[place] = mark;
        self.flooded |= !repeated;
        false
    }

    /// Where the SYN's mark is, and what it is; never 0. A repetition has the same sequence number (RFC 9293 section 3.8.1).
    fn mark_of(&self, tuple: &FourTuple, syn: &Repr) -> (usize, Mark) {
        let mut hasher = self.hash.build_hasher();
        tuple.hash(&mut hasher);
        hasher.write_u64(u64::from(syn.seq.0));
        let hash = hasher.finish();
        (hash as usize & (MARKS - 1), (hash >> 48) as Mark | 1)
    }

    /// The next one to answer in this turn.
    #[inline]
    pub fn pop(&mut self) -> Option<Waiting> {
        if self.left == 0 {
            return None;
        }
        let next = match self.again.pop_front() {
            Some(next) => next,
            None if self.first_left == 0 => return None,
            None => {
                let next = self.first.pop_front()?;
                self.first_left -= 1;
                next
            }
        };
        self.left -= 1;
        Some(next)
    }

    pub fn begin_turn(&mut self) {
        self.left = PER_TURN;
        self.first_left = if std::mem::take(&mut self.flooded) { PER_TURN_FLOODED } else { PER_TURN };
    }

    fn is_empty(&self) -> bool {
        self.again.is_empty() && self.first.is_empty()
    }

    /// When the newest of those that wait came; `None`: none waits.
    pub fn latest(&self) -> Option<Instant> {
        (!self.is_empty()).then_some(self.latest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::tcp::{Flags, SeqNumber};

    const WAITING_MAX: usize = 4;

    fn queue() -> SynQueue {
        SynQueue::new(TupleHash::new(*b"a key of 16 byte"))
    }

    fn push(queue: &mut SynQueue, port: u16) -> bool {
        let tuple =
            FourTuple { local_ip: [10, 0, 0, 2].into(), remote_ip: [10, 0, 0, 1].into(), local_port: 2049, remote_port: port };
        let syn = Repr { seq: SeqNumber(u32::from(port)), flags: Flags::SYN, ..Repr::default() };
        queue.push(Instant::from_millis(1), &tuple, &syn, WAITING_MAX)
    }

    /// Of one turn.
    fn popped(queue: &mut SynQueue) -> Vec<u16> {
        std::iter::from_fn(|| queue.pop()).map(|waiting| waiting.tuple.remote_port).collect()
    }

    #[test]
    fn a_turn_answers_few_in_their_order() {
        let mut queue = queue();
        for port in 0..2 * PER_TURN as u16 {
            let syn = Repr::default();
            let tuple = FourTuple {
                local_ip: [10, 0, 0, 2].into(),
                remote_ip: [10, 0, 0, 1].into(),
                local_port: 2049,
                remote_port: port,
            };
            assert!(queue.push(Instant::from_millis(7), &tuple, &syn, 2 * PER_TURN));
        }
        assert_eq!(queue.latest(), Some(Instant::from_millis(7)));
        assert_eq!(popped(&mut queue), [0, 1, 2, 3]);
        assert_eq!(popped(&mut queue).len(), 0, "until the turn ends");
        queue.begin_turn();
        assert_eq!(popped(&mut queue), [4, 5, 6, 7]);
        queue.begin_turn();
        assert_eq!((popped(&mut queue).len(), queue.latest()), (0, None));
    }

    #[test]
    fn who_was_dropped_and_comes_again_goes_first() {
        let mut queue = queue();
        assert!((0..4).all(|port| push(&mut queue, port)));
        assert!(!push(&mut queue, 700) && !push(&mut queue, 701), "it is full");
        assert!(push(&mut queue, 701), "but not for who comes again");
        assert!(!push(&mut queue, 702));
        assert_eq!(popped(&mut queue), [701, 0, 1, 2]);
        queue.begin_turn();
        assert_eq!(popped(&mut queue), [3], "the last");
        assert!((10..14).all(|port| push(&mut queue, port)) && (14..17).all(|port| !push(&mut queue, port)));
        queue.begin_turn();
        assert_eq!(popped(&mut queue), [10], "one, as some were dropped since the turn before");
        assert!(push(&mut queue, 18) && !push(&mut queue, 19) && push(&mut queue, 15) && push(&mut queue, 16));
        queue.begin_turn();
        assert_eq!(popped(&mut queue), [15, 16, 11], "not of those that come again");
        queue.begin_turn();
        assert_eq!(popped(&mut queue), [12, 13, 18]);
    }

    /// What `MARKS` and `Mark` say: four in five of those that were dropped are known after 400,000 more, and few others are taken for them.
    #[test]
    fn a_mark_outlives_many_others_and_is_nobody_elses() {
        const CLIENTS: u32 = 1000;
        let mut queue = queue();
        assert!((0..4).all(|port| push(&mut queue, port)), "it is full from here on");
        let mut is_known = |from: u32| {
            let tuple = FourTuple {
                local_ip: [10, 0, 0, 2].into(),
                remote_ip: from.to_be_bytes().into(),
                local_port: 2049,
                remote_port: 700,
            };
            let syn = Repr { seq: SeqNumber(from.wrapping_mul(0x9e37_79b9)), flags: Flags::SYN, ..Repr::default() };
            let known = queue.push(Instant::from_millis(1), &tuple, &syn, WAITING_MAX);
            queue.again.clear();
            known
        };
        assert_eq!((0..CLIENTS).filter(|client| is_known(*client)).count(), 0);
        for stranger in CLIENTS..CLIENTS + 400_000 {
            is_known(stranger);
        }
        let known = (0..CLIENTS).filter(|client| is_known(*client)).count();
        assert!((800..860).contains(&known), "{known} of {CLIENTS} are known");
        // Until hardly a place is free.
        for stranger in 1_000_000..6_000_000 {
            is_known(stranger);
        }
        let others = (6_000_000..7_000_000).filter(|stranger| is_known(*stranger)).count();
        assert!(others < 100, "{others} of a million were taken for others");
    }

    #[test]
    fn those_that_come_again_are_bounded_too() {
        let mut queue = queue();
        (0..100).for_each(|port| {
            push(&mut queue, port);
        });
        let taken = (4..100).filter(|port| push(&mut queue, *port)).count();
        assert_eq!(taken, WAITING_MAX);
    }
}
