//! Which MAC address a packet goes to: the route and the neighbour behind it, remembered for a moment.
//!
//! Read first: RFC 1122 section 3.3.1 (the route cache of section 3.3.1.3 is this one). An answer is believed for `BELIEVED`, so that
//! the neighbour table still learns which of its entries are in use, and asks again in time; anything the table hears or
//! gives up empties the cache.

use std::net::Ipv4Addr;

use super::{Interface, SendRefused};
use crate::net::neighbour::Lookup;
use crate::time::{Duration, Instant, nanos_of};
use crate::wire::ethernet::Address;

/// Destinations that are remembered, each in the place that its address says: a power of two.
const ROUTES: usize = 64;

/// How long an answer of the neighbour table is used without asking it again.
const BELIEVED: Duration = Duration::from_millis(10);

#[derive(Clone, Copy)]
struct Route {
    src: Ipv4Addr,
    dst: Ipv4Addr,
    mac: Address,
    until: Instant,
}

/// The latest answers.
pub(super) struct Routes([Route; ROUTES]);

impl Default for Routes {
    fn default() -> Routes {
        let nowhere = Ipv4Addr::UNSPECIFIED;
        Routes([Route { src: nowhere, dst: nowhere, mac: Address([0; 6]), until: Instant::ZERO }; ROUTES])
    }
}

impl Routes {
    fn place(dst: Ipv4Addr) -> usize {
        dst.to_bits() as usize % ROUTES
    }

    fn get(&self, now: Instant, src: Ipv4Addr, dst: Ipv4Addr) -> Option<Address> {
        let route = &self.0[Routes::place(dst)];
        (route.dst == dst && route.src == src && now < route.until).then_some(route.mac)
    }

    fn remember(&mut self, now: Instant, src: Ipv4Addr, dst: Ipv4Addr, mac: Address) {
        self.0[Routes::place(dst)] = Route { src, dst, mac, until: now.after_nanos(nanos_of(BELIEVED)) };
    }

    /// The neighbour table may answer otherwise now.
    pub(super) fn forget(&mut self) {
        for route in &mut self.0 {
            route.until = Instant::ZERO;
        }
    }
}

/// Where a packet goes.
pub(super) enum Hop {
    Known(Address),
    /// The next hop, which is being asked for its MAC address: park the packet.
    Unresolved(Ipv4Addr),
}

impl Interface {
    pub(super) fn hop(&mut self, now: Instant, src: Ipv4Addr, dst: Ipv4Addr) -> Result<Hop, SendRefused> {
        if let Some(mac) = self.routes.get(now, src, dst) {
            return Ok(Hop::Known(mac));
        }
        let next_hop = self.next_hop(src, dst).ok_or(SendRefused::NoRoute)?;
        match self.neighbours.lookup(now, next_hop.into()) {
            Lookup::Resolved(mac) => {
                self.routes.remember(now, src, dst, mac);
                Ok(Hop::Known(mac))
            }
            Lookup::Unresolved => Ok(Hop::Unresolved(next_hop)),
            Lookup::Failed => Err(SendRefused::NeighbourUnreachable),
        }
    }
}
