//! Calls that wait: from the ticket back to the caller.

use super::connection::ConnectionId;
use super::drc::SharedEntry;
use super::programs::{Peer, Ticket};

/// Where a call came from and its reply goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    Stream(ConnectionId),
    Datagram,
}

/// What must be known of a call to answer it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pending {
    pub origin: Origin,
    pub peer: Peer,
    pub xid: u32,
    pub head_bytes_max: u32,
    pub drc: Option<SharedEntry>,
    /// Bytes held against the connection's send queue while it waits.
    pub reserved: u64,
}

struct Slot {
    generation: u32,
    pending: Option<Pending>,
}

/// A slab of waiting calls; a ticket is slot and generation, so a ticket that was answered stays void.
pub struct ParkedCalls {
    slots: Vec<Slot>,
    free: Vec<u32>,
}

impl ParkedCalls {
    pub fn new(calls_max: u32) -> ParkedCalls {
        ParkedCalls {
            slots: (0..calls_max).map(|_| Slot { generation: 0, pending: None }).collect(),
            free: (0..calls_max).rev().collect(),
        }
    }

    /// Calls that wait.
    pub fn len(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    /// The ticket that `park` will take next; `None` if all slots wait.
    pub fn next_ticket(&self) -> Option<Ticket> {
        let slot = *self.free.last()?;
        let generation = self.slots.get(slot as usize)?.generation;
        Some(Ticket(u64::from(generation) << 32 | u64::from(slot)))
    }

    /// Parks a call under the ticket that `next_ticket` gave.
    pub fn park(&mut self, pending: Pending) {
        if let Some(slot) = self.free.pop() {
            self.slots[slot as usize].pending = Some(pending);
        }
    }

    /// Voids the ticket that `next_ticket` gave for a call that was answered at once.
    pub fn void_next(&mut self) {
        if let Some(&slot) = self.free.last() {
            self.slots[slot as usize].generation = self.slots[slot as usize].generation.wrapping_add(1);
        }
    }

    pub fn get(&mut self, ticket: Ticket) -> Option<&mut Pending> {
        let slot = self.slots.get_mut((ticket.0 & u64::from(u32::MAX)) as usize)?;
        if u64::from(slot.generation) == ticket.0 >> 32 { slot.pending.as_mut() } else { None }
    }

    pub fn remove(&mut self, ticket: Ticket) -> Option<Pending> {
        let pending = *self.get(ticket)?;
        let at = (ticket.0 & u64::from(u32::MAX)) as u32;
        let slot = &mut self.slots[at as usize];
        slot.pending = None;
        slot.generation = slot.generation.wrapping_add(1);
        self.free.push(at);
        Some(pending)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rpc::programs::Transport;

    #[test]
    fn tickets_are_good_once() {
        let address = "10.0.0.1:1".parse().unwrap();
        let peer = Peer { address, local: address, transport: Transport::Udp };
        let pending = |xid| Pending { origin: Origin::Datagram, peer, xid, head_bytes_max: 0, drc: None, reserved: 0 };
        let mut parked = ParkedCalls::new(2);
        let a = parked.next_ticket().unwrap();
        parked.park(pending(1));
        let b = parked.next_ticket().unwrap();
        parked.void_next();
        let c = parked.next_ticket().unwrap();
        assert!(a != b && b != c);
        parked.park(pending(2));
        assert!(parked.next_ticket().is_none() && parked.len() == 2);
        assert!(parked.get(b).is_none(), "answered at once");
        assert_eq!(parked.remove(a).unwrap().xid, 1);
        assert!(parked.remove(a).is_none() && parked.get(Ticket(u64::MAX)).is_none());
        assert_ne!(parked.next_ticket(), Some(a));
        assert_eq!(parked.get(c).unwrap().xid, 2);
    }
}
