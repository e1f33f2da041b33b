//! Neighbour discovery: solicitations and advertisements, routers and their prefixes, the next hop.
//!
//! Read first: RFC 4861 sections 5.2 (next hop), 6.1 and 6.3 (routers), 7.1 and 7.2 (neighbours), 8 (redirects), RFC 7559
//! (asking for routers), RFC 4191 is not followed.
//!
//! Redirects are ignored and counted: RFC 4861 section 8.3 has a host follow them, but they let anybody on the link take over
//! the traffic to a destination, and all they save is a hop (RFC 6980 and RFC 3756 section 4.2.3 tell the attack).

use std::net::{IpAddr, Ipv6Addr};

use super::address::{LINK_LOCAL_PREFIX, RANDOM_DELAY_MAX};
use super::{Facts, Ipv6, Reason6};
use crate::net::neighbour::Solicitation;
use crate::time::{Duration, Instant};
use crate::wire::ethernet::Address;
use crate::wire::ipv6::{self, ALL_NODES, ALL_ROUTERS, is_link_local, multicast_mac, same_prefix, solicited_node};
use crate::wire::ndp::{self, Repr, RouterAdvertisement};
use crate::wire::protocol;

/// RFC 4861 section 6.1: a packet that a router has forwarded cannot have it any more.
const HOP_LIMIT: u8 = 255;
/// RFC 4861 section 6.2.1: the longest reachable time there is, one hour.
const REACHABLE_MS_MAX: u32 = 3_600_000;
/// What a router may set the retransmission timer to: less would be a flood, more would never find anybody.
const RETRANSMIT_MS: std::ops::RangeInclusive<u32> = 100..=60_000;

/// A prefix whose addresses are neighbours, told by a router.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct OnLink {
    prefix: Ipv6Addr,
    len: u8,
    /// `None`: for ever.
    until: Option<Instant>,
}

/// A router that offers itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct DefaultRouter {
    address: Ipv6Addr,
    until: Instant,
}

/// The search for routers: the next question, and how long to wait after it.
pub(super) struct RouterSearch {
    next: Instant,
    wait: Duration,
}

impl Ipv6 {
    /// `message`: a whole neighbour discovery message with a good checksum, from the ICMPv6 type on; `mac`: who sent the frame.
    pub(super) fn receive_discovery(&mut self, now: Instant, facts: &Facts, mac: Address, message: &[u8]) -> Result<(), Reason6> {
        if facts.hop_limit != HOP_LIMIT {
            return Err(|c| &mut c.nd_bad_hop_limit);
        }
        let malformed: Reason6 = |c| &mut c.nd_malformed;
        let message = Repr::parse(message).map_err(|_| malformed)?;
        if self.is_own(facts.src) && !matches!(message, Repr::NeighbourAdvertisement { .. }) {
            // Another station speaks from our address.
            if !self.options.follows {
                self.conflict(now, facts.src, mac);
            }
            return Err(|c| &mut c.martian_source);
        }
        if self.options.follows {
            return self.follow_discovery(now, facts, &message);
        }
        match message {
            Repr::NeighbourSolicitation { target, source } => self.solicited(now, facts, mac, target, source),
            Repr::NeighbourAdvertisement { target, router, solicited, replace, link } => {
                check_advertisement(facts, solicited)?;
                self.counters.nd_advertisements_in += 1;
                self.advertised(now, mac, target, link);
                let counts = self.neighbours.advertised(now, target.into(), unicast(link), solicited, replace);
                if counts && !router {
                    // RFC 4861 section 7.2.5: it is no router any more. Not if somebody answers for it (section 7.2.8: a proxy's
                    // answer does not replace), or nobody asked.
                    self.routers.retain(|known| known.address != target);
                    self.counters.routers = self.routers.len() as u64;
                }
                Ok(())
            }
            Repr::RouterAdvertisement(advertisement) => {
                check_router_advertisement(facts, self.options.slaac)?;
                self.counters.router_advertisements_in += 1;
                self.router_advertised(now, facts.src, &advertisement);
                Ok(())
            }
            Repr::Redirect { .. } => Err(|c| &mut c.redirects_ignored),
            // Hosts have nothing to say to those (RFC 4861 section 6.2.6).
            Repr::RouterSolicitation { .. } => Err(|c| &mut c.nd_other_in),
        }
    }

    /// RFC 4861 section 7.2.3 and RFC 4862 section 5.4.3.
    fn solicited(
        &mut self,
        now: Instant,
        facts: &Facts,
        mac: Address,
        target: Ipv6Addr,
        source: Option<Address>,
    ) -> Result<(), Reason6> {
        check_solicitation(facts, target, source)?;
        let nobody = facts.src.is_unspecified();
        let Some(local) = self.addresses.iter().find(|local| local.address == target) else {
            return Err(|c| &mut c.nd_other_in);
        };
        if !local.is_assigned() {
            // Somebody else looks for it as we do; who merely wants to speak to it is of no interest yet.
            if nobody && matches!(local.state, super::address::State::Tentative { .. }) {
                self.duplicate(now, target, mac);
            }
            return Err(|c| &mut c.nd_other_in);
        }
        self.counters.nd_solicitations_in += 1;
        let source = unicast(source);
        if let Some(source) = source {
            self.neighbours.hinted(now, facts.src.into(), source);
        }
        let dst = if nobody { ALL_NODES } else { facts.src };
        let message =
            Repr::NeighbourAdvertisement { target, router: false, solicited: !nobody, replace: true, link: Some(self.mac) };
        self.counters.nd_advertisements_out += 1;
        // Straight to who asked: a flood of forged questions must not start questions of our own. One without its MAC
        // address comes from a station that knows ours and checks it; its frame's source is where it listens.
        let to = if nobody { multicast_mac(dst) } else { source.unwrap_or(mac) };
        self.queue_discovery_to(to, target, dst, &message, true);
        Ok(())
    }

    /// An advertisement of an address of ours by another (RFC 4862 section 5.4.4).
    fn advertised(&mut self, now: Instant, mac: Address, target: Ipv6Addr, link: Option<Address>) {
        let Some(local) = self.addresses.iter().find(|local| local.address == target) else { return };
        let mac = link.unwrap_or(mac);
        match local.state {
            super::address::State::Tentative { .. } => self.duplicate(now, target, mac),
            super::address::State::Assigned => self.conflict(now, target, mac),
            super::address::State::Duplicate { .. } => {}
        }
    }

    /// RFC 4861 section 6.3.4.
    fn router_advertised(&mut self, now: Instant, router: Ipv6Addr, said: &RouterAdvertisement) {
        // RFC 4861 section 6.3.7: the search ends with one that is a default router. One that is none may have answered first.
        if said.lifetime_s != 0 {
            self.router_search = None;
        }
        if said.hop_limit != 0 {
            self.hop_limit = said.hop_limit;
        }
        if (1..=REACHABLE_MS_MAX).contains(&said.reachable_ms) {
            self.base_reachable = Duration::from_millis(said.reachable_ms.into());
        }
        if RETRANSMIT_MS.contains(&said.retransmit_ms) {
            self.retransmit = Duration::from_millis(said.retransmit_ms.into());
        }
        self.set_neighbour_times();
        // RFC 4861 sections 4.6.4 and 6.3.4: not less than every link carries, not more than the port does.
        match said.mtu.map(u16::try_from) {
            None => {}
            Some(Ok(mtu)) if (ipv6::MTU_MIN..=self.mtu).contains(&mtu) => self.link_mtu = mtu,
            Some(_) => self.counters.router_mtus_ignored += 1,
        }
        if let Some(source) = unicast(said.source) {
            self.neighbours.hinted(now, router.into(), source);
        }
        self.take_router(now, router, said.lifetime_s);
        for prefix in &said.prefixes {
            // RFC 4861 section 6.3.4 and RFC 4862 section 5.5.3 (b): the link-local prefix is nobody's to tell.
            if same_prefix(prefix.prefix, LINK_LOCAL_PREFIX, 10) || prefix.prefix.is_multicast() || prefix.len > 128 {
                continue;
            }
            if prefix.on_link {
                self.take_on_link(now, prefix);
            }
            if prefix.autonomous {
                self.take_prefix(now, prefix);
            }
        }
        self.counters.routers = self.routers.len() as u64;
        self.counters.prefixes = self.on_link.len() as u64;
    }

    fn take_router(&mut self, now: Instant, address: Ipv6Addr, lifetime_s: u16) {
        let until = now + Duration::from_secs(lifetime_s.into());
        let known = self.routers.iter().position(|router| router.address == address);
        match (known, lifetime_s) {
            (Some(at), 0) => {
                self.routers.remove(at);
            }
            (Some(at), _) => self.routers[at].until = until,
            (None, 0) => {}
            (None, _) if self.routers.len() < self.options.routers_max => self.routers.push(DefaultRouter { address, until }),
            (None, _) => self.counters.advertised_overflow += 1,
        }
    }

    fn take_on_link(&mut self, now: Instant, said: &ndp::Prefix) {
        let until = (said.valid_s != ndp::LIFETIME_INFINITE).then(|| now + Duration::from_secs(said.valid_s.into()));
        let known =
            self.on_link.iter().position(|known| known.len == said.len && same_prefix(known.prefix, said.prefix, said.len));
        match (known, said.valid_s) {
            (Some(at), 0) => {
                self.on_link.remove(at);
            }
            (Some(at), _) => self.on_link[at].until = until,
            (None, 0) => {}
            (None, _) if self.on_link.len() < self.options.prefixes_max => {
                self.on_link.push(OnLink { prefix: said.prefix, len: said.len, until });
            }
            (None, _) => self.counters.advertised_overflow += 1,
        }
    }

    /// RFC 4861 section 6.3.2: so that hosts do not probe in step, a time drawn between half and one and a half of the base.
    pub(super) fn set_neighbour_times(&mut self) {
        let reachable = self.base_reachable / 2 + self.draw(self.base_reachable);
        self.neighbours.set_times(reachable, self.retransmit);
    }

    pub(super) fn solicit_routers(&mut self, now: Instant) {
        let next = now + self.draw(RANDOM_DELAY_MAX);
        self.router_search = Some(RouterSearch { next, wait: self.options.router_solicitation_first });
    }

    /// What time does to routers and prefixes.
    pub(super) fn age_routers(&mut self, now: Instant) {
        self.routers.retain(|router| router.until > now);
        self.on_link.retain(|prefix| prefix.until.is_none_or(|until| until > now));
        (self.counters.routers, self.counters.prefixes) = (self.routers.len() as u64, self.on_link.len() as u64);
        let max = self.options.router_solicitation_max;
        let Some(search) = self.router_search.as_mut().filter(|search| search.next <= now) else { return };
        // RFC 7559 section 2: again and again, more and more rarely, until one answers.
        (search.next, search.wait) = (now + search.wait, search.wait.saturating_mul(2).min(max));
        let src = self.source_for(now, ALL_ROUTERS).unwrap_or(Ipv6Addr::UNSPECIFIED);
        let message = Repr::RouterSolicitation { source: (!src.is_unspecified()).then_some(self.mac) };
        self.counters.router_solicitations_out += 1;
        self.queue_discovery(src, ALL_ROUTERS, &message);
    }

    pub(super) fn routers_timeout(&self) -> Option<Instant> {
        let search = self.router_search.as_ref().map(|search| search.next);
        let routers = self.routers.iter().map(|router| router.until);
        let prefixes = self.on_link.iter().filter_map(|prefix| prefix.until);
        routers.chain(prefixes).chain(search).min()
    }

    /// RFC 4861 section 5.2: the destination itself if it is on the link, else a router.
    pub(super) fn next_hop(&self, now: Instant, dst: Ipv6Addr) -> Option<Ipv6Addr> {
        let configured = |local: &super::LocalAddress| {
            local.origin == super::address::Origin::Configured && same_prefix(local.address, dst, local.prefix_len)
        };
        let told = |prefix: &OnLink| same_prefix(prefix.prefix, dst, prefix.len);
        if is_link_local(dst) || self.addresses.iter().any(configured) || self.on_link.iter().any(told) {
            return Some(dst);
        }
        if let Some(gateway) = self.options.gateway {
            return Some(gateway);
        }
        let live = || self.routers.iter().filter(|router| router.until > now).map(|router| router.address);
        // RFC 4861 section 6.3.6: one whose address is known, believed or not, goes before one that is being asked for or has not
        // been; else what is sent would wait behind a dead router each time that it is asked for again.
        let known = |router: &Ipv6Addr| self.neighbours.get(IpAddr::V6(*router)).is_some();
        // If none is known, each is tried in turn as its refusal ends.
        let may_answer = |router: &Ipv6Addr| !self.neighbours.is_failed(now, IpAddr::V6(*router));
        live().find(known).or_else(|| live().find(may_answer)).or_else(|| live().next())
    }

    /// A question of the neighbour cache (RFC 4861 sections 7.2.2 and 7.3.3).
    pub(super) fn queue_solicitation(&mut self, now: Instant, solicitation: Solicitation) {
        let IpAddr::V6(target) = solicitation.address else { return };
        let Some(src) = self.source_for(now, target) else { return };
        let message = Repr::NeighbourSolicitation { target, source: Some(self.mac) };
        self.counters.nd_solicitations_out += 1;
        match solicitation.unicast {
            Some(mac) => self.queue_discovery_to(mac, src, target, &message, false),
            None => self.queue_discovery(src, solicited_node(target), &message),
        }
    }

    /// To a group.
    pub(super) fn queue_discovery(&mut self, src: Ipv6Addr, group: Ipv6Addr, message: &Repr) {
        self.queue_discovery_to(multicast_mac(group), src, group, message, false);
    }

    fn queue_discovery_to(&mut self, mac: Address, src: Ipv6Addr, dst: Ipv6Addr, message: &Repr, answer: bool) {
        let message = message.emit(src, dst);
        let header = ipv6::Repr {
            src,
            dst,
            next_header: protocol::ICMPV6,
            traffic_class: 0,
            flow_label: 0,
            hop_limit: HOP_LIMIT,
            payload_len: message.len() as u16,
        };
        self.queue_own(mac, &[&header.emit(), &message], answer);
    }
}

/// RFC 4861 section 7.1.1: nobody's question goes to the solicited-node group and tells no address.
pub(super) fn check_solicitation(facts: &Facts, target: Ipv6Addr, source: Option<Address>) -> Result<(), Reason6> {
    if facts.src.is_unspecified() && (source.is_some() || facts.dst != solicited_node(target)) {
        return Err(|c| &mut c.nd_malformed);
    }
    Ok(())
}

/// RFC 4861 section 7.1.2.
pub(super) fn check_advertisement(facts: &Facts, solicited: bool) -> Result<(), Reason6> {
    if facts.src.is_unspecified() || (facts.dst.is_multicast() && solicited) {
        return Err(|c| &mut c.nd_malformed);
    }
    Ok(())
}

/// RFC 4861 section 6.1.2; and whether routers are heard at all.
pub(super) fn check_router_advertisement(facts: &Facts, heard: bool) -> Result<(), Reason6> {
    if !is_link_local(facts.src) {
        return Err(|c| &mut c.nd_malformed);
    }
    if !heard {
        return Err(|c| &mut c.router_advertisements_ignored);
    }
    Ok(())
}

/// A MAC address that can be believed: never a group's (RFC 1812 section 3.3.2).
pub(super) fn unicast(mac: Option<Address>) -> Option<Address> {
    mac.filter(|mac| mac.is_unicast())
}
