//! The calls that are outstanding on one core, by xid.
//!
//! Read first: RFC 5531 section 9 (a reply is matched to its call by the xid alone). Xids of one core count up in steps of the number
//! of cores, so that none is used twice by anybody within 2^32 calls, and the low bits find the slot: no hashing. A slot that
//! is still taken when the count comes round is skipped, with its xid.

use super::protocol::Operation;
use crate::time::Instant;

/// A call without a reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Outstanding {
    pub operation: Operation,
    /// Number of the connection it was sent on.
    pub stream: u32,
    /// When it was to be sent: what its latency counts from.
    pub intended: Instant,
    /// When it was sent.
    pub sent: Instant,
}

struct Slot {
    xid: u32,
    call: Option<Outstanding>,
}

/// The table. Its size is fixed: twice as many slots as calls may be outstanding.
pub struct CallTable {
    slots: Box<[Slot]>,
    next: u32,
    first_xid: u32,
    step: u32,
    len: usize,
    max: usize,
}

impl CallTable {
    /// Room for `max` calls. The xids are `first_xid`, `first_xid + step` and so on.
    pub fn new(max: usize, first_xid: u32, step: u32) -> CallTable {
        let size = (2 * max.max(1)).next_power_of_two();
        let slots = (0..size).map(|_| Slot { xid: 0, call: None }).collect();
        CallTable { slots, next: 0, first_xid, step, len: 0, max: max.max(1) }
    }

    pub fn len(&self) -> usize {
        self.len
    }

    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    fn index_of(&self, xid: u32) -> usize {
        let count = xid.wrapping_sub(self.first_xid) / self.step;
        count as usize & (self.slots.len() - 1)
    }

    /// Takes a call in and gives its xid; `None`: `max` are outstanding.
    pub fn insert(&mut self, call: Outstanding) -> Option<u32> {
        if self.len >= self.max {
            return None;
        }
        // Half of the slots are free at least.
        loop {
            let count = self.next;
            // Round before `count * step` passes 2^32, where the slot could not be told from the xid any more.
            self.next = if count >= u32::MAX / self.step - 1 { 0 } else { count + 1 };
            let index = count as usize & (self.slots.len() - 1);
            let slot = &mut self.slots[index];
            if slot.call.is_none() {
                slot.xid = self.first_xid.wrapping_add(count * self.step);
                slot.call = Some(call);
                self.len += 1;
                return Some(slot.xid);
            }
        }
    }

    /// The call that a reply on `stream` answers. `None`: nobody asked.
    pub fn remove(&mut self, xid: u32, stream: u32) -> Option<Outstanding> {
        let index = self.index_of(xid);
        let slot = &mut self.slots[index];
        let call = slot.call.filter(|call| slot.xid == xid && call.stream == stream)?;
        slot.call = None;
        self.len -= 1;
        Some(call)
    }

    /// Forgets the calls of a connection that is gone; how many.
    pub fn forget(&mut self, stream: u32) -> usize {
        self.forget_if(|call| call.stream == stream)
    }

    /// Forgets the calls sent before `instant`, telling the connection of each.
    pub fn expire(&mut self, instant: Instant, mut each: impl FnMut(&Outstanding)) -> usize {
        self.forget_if(|call| {
            let late = call.sent < instant;
            if late {
                each(call);
            }
            late
        })
    }

    fn forget_if(&mut self, mut condition: impl FnMut(&Outstanding) -> bool) -> usize {
        let mut forgotten = 0;
        for slot in &mut self.slots {
            if slot.call.as_ref().is_some_and(&mut condition) {
                slot.call = None;
                forgotten += 1;
            }
        }
        self.len -= forgotten;
        forgotten
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::load::protocol::Verb;
    use proptest::prelude::*;
    use std::collections::{HashMap, HashSet};

    fn call(stream: u32, sent: u64) -> Outstanding {
        let at = Instant::from_nanos(sent);
        Outstanding { operation: Operation::of(Verb::Null, 0), stream, intended: at, sent: at }
    }

    #[test]
    fn a_reply_on_another_connection_answers_nothing() {
        let mut table = CallTable::new(4, 100, 1);
        let xid = table.insert(call(1, 0)).unwrap();
        assert_eq!(table.remove(xid, 2), None);
        assert_eq!(table.remove(xid + 1, 1), None);
        assert!(table.remove(xid, 1).is_some());
        assert_eq!((table.remove(xid, 1), table.len()), (None, 0), "a second reply answers nothing");
    }

    #[test]
    fn an_old_call_keeps_its_slot_while_others_come_and_go() {
        let mut table = CallTable::new(2, u32::MAX - 5, 3);
        let old = table.insert(call(0, 7)).unwrap();
        let mut seen = HashSet::from([old]);
        for _ in 0..1000 {
            let xid = table.insert(call(0, 9)).unwrap();
            assert!(seen.insert(xid), "xid {xid} twice");
            assert_eq!(table.insert(call(0, 9)), None, "two are outstanding");
            assert!(table.remove(xid, 0).is_some());
        }
        assert_eq!(table.remove(old, 0).map(|call| call.sent.nanos()), Some(7));
    }

    #[test]
    fn what_is_late_and_what_is_lost_is_forgotten() {
        let mut table = CallTable::new(8, 0, 1);
        let xids: Vec<u32> = (0..8).map(|n| table.insert(call(n % 2, u64::from(n))).unwrap()).collect();
        let mut late = Vec::new();
        assert_eq!(table.expire(Instant::from_nanos(4), |call| late.push(call.stream)), 4);
        assert_eq!((late, table.len()), (vec![0, 1, 0, 1], 4));
        assert_eq!((table.forget(1), table.len()), (2, 2));
        assert!(table.remove(xids[4], 0).is_some() && table.remove(xids[5], 1).is_none());
    }

    proptest! {
        #[test]
        fn it_agrees_with_a_map(steps in proptest::collection::vec((any::<bool>(), 0usize..16), 1..400), first: u32, step in 1u32..5) {
            let mut table = CallTable::new(12, first, step);
            let mut model: HashMap<u32, u32> = HashMap::new();
            for (n, (insert, pick)) in steps.into_iter().enumerate() {
                if insert {
                    match table.insert(call(n as u32, 0)) {
                        Some(xid) => prop_assert!(model.insert(xid, n as u32).is_none(), "xid reused while outstanding"),
                        None => prop_assert_eq!(model.len(), 12),
                    }
                } else if let Some((&xid, &stream)) = model.iter().nth(pick) {
                    prop_assert!(table.remove(xid, stream).is_some());
                    model.remove(&xid);
                }
                prop_assert_eq!(table.len(), model.len());
            }
        }
    }
}
