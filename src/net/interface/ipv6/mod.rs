//! IPv6 on one interface: addresses, neighbours, routers, groups. `Interface` asks it, and sends what it has to say.
//!
//! Read first: RFC 8504 (what an IPv6 node must do), which names the rest; each file names its own.
//!
//! - `options`: what it is configured with, what it counts.
//! - `receive`: the checks a packet passes. - `icmp`: echo and errors. - `send`: the way down.
//! - `lead`: several cores of one port.
//! - `discovery`: neighbours and routers. - `address`: duplicate detection, addresses made from prefixes. - `listener`: groups.
//!
//! Deliberately not here: DHCPv6 (configure the address, or let routers tell the prefix), redirects, privacy addresses
//! (RFC 8981: a server wants to be found), reassembly and jumbograms.

mod address;
mod discovery;
mod icmp;
mod lead;
mod listener;
mod options;
mod receive;
mod send;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::hash::Hasher as _;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;

use siphasher::sip::SipHasher24;
use smallvec::SmallVec;

use super::send::ParkedPacket;
use super::{EVENTS_MAX, InterfaceEvent, OWN_PLACES};
use crate::net::neighbour::NeighbourTable;
use crate::time::{Duration, Instant};
use crate::wire::ethernet::Address;

use address::{LocalAddress, Origin};
use discovery::{DefaultRouter, OnLink, RouterSearch};
pub use lead::Ipv6Lead;
use listener::Listener;
pub(super) use options::is_assignable;
pub use options::{Ipv6Counters, Ipv6Options};

/// The counter of a reason to drop.
type Reason6 = fn(&mut Ipv6Counters) -> &mut u64;

/// A whole IPv6 packet of our own, and where its frame goes: discovery and listener reports, which need no route.
pub(super) struct OwnPacket {
    pub mac: Address,
    pub bytes: SmallVec<[u8; 96]>,
}

/// What the layers above need to know of a good header.
struct Facts {
    src: Ipv6Addr,
    dst: Ipv6Addr,
    hop_limit: u8,
    ecn: u8,
    /// Sent to a group, of IP or of the link: errors are not told then (RFC 4443 section 2.4(e)).
    group: bool,
}

/// See the head of this file.
pub(super) struct Ipv6 {
    options: Ipv6Options,
    mac: Address,
    /// Largest IP packet of the port, bytes.
    mtu: u16,
    /// Largest packet sent, bytes: what routers say of the link, or the port's (RFC 4861 section 6.3.2: LinkMTU).
    pub(super) link_mtu: u16,
    /// Of packets sent (RFC 4861 section 6.3.2: CurHopLimit).
    hop_limit: u8,
    retransmit: Duration,
    /// RFC 4861 section 6.3.2: BaseReachableTime.
    base_reachable: Duration,
    addresses: Vec<LocalAddress>,
    on_link: Vec<OnLink>,
    routers: Vec<DefaultRouter>,
    router_search: Option<RouterSearch>,
    pub(super) neighbours: NeighbourTable<ParkedPacket>,
    listener: Listener,
    /// What `Interface::poll_transmit` sends.
    own: VecDeque<OwnPacket>,
    own_max: usize,
    events: VecDeque<InterfaceEvent>,
    pub(super) events_lost: u64,
    /// Not later than the earliest thing to do but for the neighbours'.
    timeout: Option<Instant>,
    /// What the others who share the port may not know yet, and what they were told last.
    lead_due: bool,
    told: Option<Arc<Ipv6Lead>>,
    /// What is being received is a copy: where it came in it was counted.
    pub(super) of_copy: bool,
    /// Random delays drawn so far.
    draws: u64,
    pub(super) counters: Ipv6Counters,
}

impl Ipv6 {
    /// `addresses`: configured ones, checked. Begins to look for duplicates at the first `handle_timeout`.
    pub(super) fn new(
        options: Ipv6Options,
        mac: Address,
        mtu: u16,
        hop_limit: u8,
        own_max: usize,
        addresses: &[(Ipv6Addr, u8)],
        now: Instant,
    ) -> Ipv6 {
        let mut ipv6 = Ipv6 {
            mac,
            mtu,
            link_mtu: mtu,
            hop_limit,
            retransmit: options.retransmit,
            base_reachable: options.neighbours.reachable,
            addresses: Vec::new(),
            on_link: Vec::new(),
            routers: Vec::new(),
            router_search: None,
            neighbours: NeighbourTable::new(options.neighbours.clone()),
            listener: Listener::default(),
            own: VecDeque::new(),
            own_max,
            events: VecDeque::new(),
            events_lost: 0,
            timeout: None,
            lead_due: false,
            told: None,
            of_copy: false,
            draws: 0,
            counters: Ipv6Counters::default(),
            options,
        };
        ipv6.set_neighbour_times();
        if ipv6.options.follows {
            return ipv6;
        }
        // RFC 4291 section 2.1: every interface has a link-local address.
        if !addresses.iter().any(|(address, _)| crate::wire::ipv6::is_link_local(*address)) {
            let address = ipv6.stable_address(address::LINK_LOCAL_PREFIX, 0);
            ipv6.add_address(now, address, 64, Origin::LinkLocal);
        }
        for &(address, prefix_len) in addresses {
            ipv6.add_address(now, address, prefix_len, Origin::Configured);
        }
        if ipv6.options.slaac && !ipv6.addresses.iter().any(|local| local.origin == Origin::LinkLocal) {
            ipv6.solicit_routers(now);
        }
        ipv6.schedule();
        ipv6
    }

    /// When `handle_timeout` is due; may be earlier than needed.
    pub(super) fn poll_timeout(&self, link_up: bool) -> Option<Instant> {
        [self.timeout.filter(|_| link_up), self.neighbours.poll_timeout()].into_iter().flatten().min()
    }

    /// Without a link only the neighbours age: what else is due waits for it.
    pub(super) fn handle_timeout(&mut self, now: Instant, link_up: bool) {
        self.neighbours.handle_timeout(now);
        if link_up && self.timeout.is_some_and(|at| at <= now) {
            // Reports go before the questions whose answers they let through.
            self.age_listener(now);
            self.age_addresses(now);
            self.age_routers(now);
            self.schedule();
        }
    }

    /// To be called when anything with a time has changed.
    fn schedule(&mut self) {
        if self.options.follows {
            return;
        }
        self.lead_due = true;
        let addresses = self.addresses.iter().filter_map(LocalAddress::poll_timeout);
        self.timeout = addresses.chain(self.routers_timeout()).chain(self.listener.poll_timeout()).min();
        let assigned = self.addresses.iter().filter(|local| local.is_assigned()).count();
        self.counters.addresses = assigned as u64;
        self.counters.link_mtu = self.link_mtu.into();
        self.counters.addresses_unassigned = (self.addresses.len() - assigned) as u64;
    }

    /// Whether this is one of the interface's addresses, and may be used.
    pub(super) fn is_own(&self, address: Ipv6Addr) -> bool {
        self.addresses.iter().any(|local| local.address == address && local.is_assigned())
    }

    /// Addresses in use.
    pub(super) fn addresses(&self) -> impl Iterator<Item = IpAddr> {
        self.addresses.iter().filter(|local| local.is_assigned()).map(|local| local.address.into())
    }

    pub(super) fn has_transmit(&self) -> bool {
        !self.own.is_empty() || self.neighbours.has_ready() || self.neighbours.has_solicitation()
    }

    pub(super) fn poll_event(&mut self) -> Option<InterfaceEvent> {
        self.events.pop_front()
    }

    /// The next packet of its own, the neighbour cache's questions included.
    pub(super) fn poll_own(&mut self, now: Instant) -> Option<OwnPacket> {
        // What strangers make us ask takes no more room than their answers.
        while self.own.len() < self.own_max
            && let Some(solicitation) = self.neighbours.poll_solicitation()
        {
            self.queue_solicitation(now, solicitation);
        }
        self.own.pop_front()
    }

    /// Puts back a packet that could not be sent yet.
    pub(super) fn return_own(&mut self, packet: OwnPacket) {
        self.own.push_front(packet);
    }

    /// `answer`: because of a packet received.
    fn queue_own(&mut self, mac: Address, pieces: &[&[u8]], answer: bool) {
        let places = if answer { self.own_max } else { self.own_max + OWN_PLACES };
        if self.own.len() >= places {
            self.counters.control_overflow += 1;
            return;
        }
        let mut bytes = SmallVec::new();
        pieces.iter().for_each(|piece| bytes.extend_from_slice(piece));
        self.own.push_back(OwnPacket { mac, bytes });
    }

    fn tell(&mut self, event: InterfaceEvent) {
        if self.events.len() >= EVENTS_MAX {
            self.events_lost += 1;
            return;
        }
        self.events.push_back(event);
    }

    /// A time below `max`, which nobody without the key can foresee.
    fn draw(&mut self, max: Duration) -> Duration {
        let mut hasher = SipHasher24::new_with_key(&self.options.secret);
        hasher.write(&self.mac.0);
        hasher.write_u64(self.draws);
        self.draws += 1;
        let nanos = u64::try_from(max.as_nanos()).unwrap_or(u64::MAX);
        Duration::from_nanos(hasher.finish().checked_rem(nanos).unwrap_or(0))
    }
}
