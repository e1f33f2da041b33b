//! One port, several cores: one of them leads, the others follow.
//!
//! The leader looks for duplicates of the port's addresses, hears routers, makes addresses from their prefixes, reports groups, and
//! answers solicitations. Followers take over what has come of it, as a whole and each time it has changed; what is lost on the way is in
//! what comes next. Neighbours each core knows for itself, from copies of what any of them receives (`Interface::handle_copy`).
//! Deliberately not here: how it gets from one core to another (`shard::steering`).

use std::net::Ipv6Addr;
use std::sync::Arc;

use super::address::{LocalAddress, Origin};
use super::discovery::{self, DefaultRouter, OnLink};
use super::{Facts, Ipv6, Reason6};
use crate::time::{Duration, Instant};
use crate::wire::ndp::Repr;

/// What the leader of a port has found out.
#[derive(Debug, PartialEq, Eq)]
pub struct Ipv6Lead {
    /// Those in use.
    addresses: Vec<Led>,
    on_link: Vec<OnLink>,
    routers: Vec<DefaultRouter>,
    hop_limit: u8,
    link_mtu: u16,
    base_reachable: Duration,
    retransmit: Duration,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Led {
    address: Ipv6Addr,
    prefix_len: u8,
    origin: Origin,
    preferred_until: Option<Instant>,
}

impl Led {
    fn of(local: &LocalAddress) -> Led {
        let LocalAddress { address, prefix_len, origin, preferred_until, .. } = *local;
        Led { address, prefix_len, origin, preferred_until }
    }
}

impl Ipv6 {
    fn led(&self) -> impl Iterator<Item = Led> {
        self.addresses.iter().filter(|local| local.is_assigned()).map(Led::of)
    }

    fn is_told(&self, lead: &Ipv6Lead) -> bool {
        self.led().eq(lead.addresses.iter().copied())
            && self.on_link == lead.on_link
            && self.routers == lead.routers
            && (self.hop_limit, self.link_mtu) == (lead.hop_limit, lead.link_mtu)
            && (self.base_reachable, self.retransmit) == (lead.base_reachable, lead.retransmit)
    }

    /// What followers are to take over, if that is not what they were told last.
    pub(in crate::net::interface) fn poll_lead(&mut self) -> Option<Arc<Ipv6Lead>> {
        if !std::mem::take(&mut self.lead_due) || self.told.as_ref().is_some_and(|told| self.is_told(told)) {
            return None;
        }
        let lead = Arc::new(Ipv6Lead {
            addresses: self.led().collect(),
            on_link: self.on_link.clone(),
            routers: self.routers.clone(),
            hop_limit: self.hop_limit,
            link_mtu: self.link_mtu,
            base_reachable: self.base_reachable,
            retransmit: self.retransmit,
        });
        self.told = Some(Arc::clone(&lead));
        Some(lead)
    }

    /// What followers were told last.
    pub(in crate::net::interface) fn told(&self) -> Option<Arc<Ipv6Lead>> {
        self.told.clone()
    }

    pub(in crate::net::interface) fn follow(&mut self, lead: &Ipv6Lead) {
        self.addresses.clear();
        for led in &lead.addresses {
            self.addresses.push(LocalAddress::led(led.address, led.prefix_len, led.origin, led.preferred_until));
        }
        self.on_link.clone_from(&lead.on_link);
        self.routers.clone_from(&lead.routers);
        (self.hop_limit, self.link_mtu) = (lead.hop_limit, lead.link_mtu);
        if (self.base_reachable, self.retransmit) != (lead.base_reachable, lead.retransmit) {
            (self.base_reachable, self.retransmit) = (lead.base_reachable, lead.retransmit);
            self.set_neighbour_times();
        }
    }

    /// `receive_discovery` of a follower: learns of neighbours, and leaves the rest, counters too, to the leader, who gets a copy or the
    /// original. Only what is dropped is counted: by who received it.
    pub(super) fn follow_discovery(&mut self, now: Instant, facts: &Facts, message: &Repr) -> Result<(), Reason6> {
        match message {
            Repr::NeighbourSolicitation { target, source } => {
                discovery::check_solicitation(facts, *target, *source)?;
                if !self.is_own(*target) {
                    return Err(|c| &mut c.nd_other_in);
                }
                if let Some(source) = discovery::unicast(*source) {
                    self.neighbours.hinted(now, facts.src.into(), source);
                }
            }
            Repr::NeighbourAdvertisement { target, solicited, replace, link, .. } => {
                discovery::check_advertisement(facts, *solicited)?;
                self.neighbours.advertised(now, (*target).into(), discovery::unicast(*link), *solicited, *replace);
            }
            Repr::RouterAdvertisement(said) => {
                discovery::check_router_advertisement(facts, self.options.slaac)?;
                if let Some(source) = discovery::unicast(said.source) {
                    self.neighbours.hinted(now, facts.src.into(), source);
                }
            }
            Repr::Redirect { .. } => return Err(|c| &mut c.redirects_ignored),
            Repr::RouterSolicitation { .. } => return Err(|c| &mut c.nd_other_in),
        }
        Ok(())
    }
}
