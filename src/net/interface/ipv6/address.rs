//! Own addresses: how they are made, looked for by others, assigned, and how they end.
//!
//! Read first: RFC 4862 sections 5.3 (link-local), 5.4 (duplicate address detection), 5.5 (addresses from prefixes), RFC 7217
//! sections 5 and 6 (stable identifiers; what to do about a duplicate), RFC 8064 (why not the MAC address).
//!
//! Identifiers are made by RFC 7217 and not from the MAC address (EUI-64): a card can be replaced without the server's
//! address changing, the address does not tell the card's make, and a duplicate can be answered with the next identifier.

use std::hash::Hasher as _;
use std::net::{IpAddr, Ipv6Addr};

use siphasher::sip128::{Hasher128 as _, SipHasher24};

use super::Ipv6;
use crate::net::interface::InterfaceEvent;
use crate::time::{Duration, Instant};
use crate::wire::ethernet::Address;
use crate::wire::ipv6::{ALL_NODES, solicited_node};
use crate::wire::ndp;

/// RFC 7217 section 6: IDGEN_RETRIES, IDGEN_DELAY.
const IDENTIFIER_RETRIES: u8 = 3;
const IDENTIFIER_DELAY: Duration = Duration::from_secs(1);
/// RFC 4861 section 10: MAX_RTR_SOLICITATION_DELAY, which RFC 4862 section 5.4.2 takes over.
pub(super) const RANDOM_DELAY_MAX: Duration = Duration::from_secs(1);
/// RFC 4861 section 10: RETRANS_TIMER between unsolicited advertisements (section 7.2.6).
const ANNOUNCE_INTERVAL: Duration = Duration::from_secs(1);
/// RFC 4862 section 5.5.3 (e): nobody may shorten a lifetime to less than this.
const TWO_HOURS: Duration = Duration::from_secs(2 * 3600);
/// Between two events about the same stolen address, as for IPv4 (RFC 5227 section 1.1).
const CONFLICT_INTERVAL: Duration = Duration::from_secs(10);
/// fe80::/64.
pub(super) const LINK_LOCAL_PREFIX: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0);

/// Where an address comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Origin {
    Configured,
    LinkLocal,
    /// This /64 from a router.
    Prefix(Ipv6Addr),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    /// Being looked for: so many solicitations are sent, the next thing happens then.
    Tentative {
        sent: u32,
        next: Instant,
    },
    Assigned,
    /// Another station has it; tried again then.
    Duplicate {
        retry: Option<Instant>,
    },
}

pub(super) struct LocalAddress {
    pub address: Ipv6Addr,
    pub prefix_len: u8,
    pub origin: Origin,
    pub state: State,
    /// Then it is deprecated (RFC 4862 section 5.5.4), or invalid. `None`: never.
    pub preferred_until: Option<Instant>,
    pub valid_until: Option<Instant>,
    /// RFC 7217 section 5: DAD_Counter.
    duplicates: u8,
    /// The next unsolicited advertisement, and how many are left.
    announcements: Option<(Instant, u32)>,
    conflict_told: Option<Instant>,
}

impl LocalAddress {
    /// One that another core has found free, and looks after.
    pub(super) fn led(address: Ipv6Addr, prefix_len: u8, origin: Origin, preferred_until: Option<Instant>) -> LocalAddress {
        LocalAddress {
            address,
            prefix_len,
            origin,
            state: State::Assigned,
            preferred_until,
            valid_until: None,
            duplicates: 0,
            announcements: None,
            conflict_told: None,
        }
    }

    pub(super) fn is_assigned(&self) -> bool {
        self.state == State::Assigned
    }

    pub(super) fn is_deprecated(&self, now: Instant) -> bool {
        self.preferred_until.is_some_and(|until| until <= now)
    }

    /// When it has something to do.
    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        let state = match self.state {
            State::Tentative { next, .. } => Some(next),
            State::Assigned => None,
            State::Duplicate { retry } => retry,
        };
        [state, self.valid_until, self.announcements.map(|(at, _)| at)].into_iter().flatten().min()
    }
}

impl Ipv6 {
    /// Starts looking whether another station has the address; it is assigned when none is found.
    pub(super) fn add_address(&mut self, now: Instant, address: Ipv6Addr, prefix_len: u8, origin: Origin) -> &mut LocalAddress {
        // RFC 4862 section 5.4.2: after a random delay, so that hosts that start together do not speak together.
        let next = if self.options.duplicate_detections == 0 { now } else { now + self.draw(RANDOM_DELAY_MAX) };
        self.addresses.push(LocalAddress {
            address,
            prefix_len,
            origin,
            state: State::Tentative { sent: 0, next },
            preferred_until: None,
            valid_until: None,
            duplicates: 0,
            announcements: None,
            conflict_told: None,
        });
        self.join(next, solicited_node(address));
        let last = self.addresses.len() - 1;
        &mut self.addresses[last]
    }

    /// The link has come up, and may be another one: who has our addresses, and who routes?
    pub(in crate::net::interface) fn look_again(&mut self, now: Instant) {
        if self.options.follows {
            return;
        }
        let detections = self.options.duplicate_detections;
        // Before the questions, so that their answers get through a switch that snoops.
        self.report_again(now);
        self.age_listener(now);
        for index in 0..self.addresses.len() {
            if self.addresses[index].is_assigned() {
                // It is used meanwhile: an answer is a conflict.
                let announcements = self.options.announcements;
                self.addresses[index].announcements = (announcements > 0).then_some((now, announcements));
                if detections > 0 {
                    self.ask_who_has(self.addresses[index].address);
                }
                continue;
            }
            let next = if detections == 0 { now } else { now + self.draw(RANDOM_DELAY_MAX) };
            self.addresses[index].state = State::Tentative { sent: 0, next };
        }
        // Without an address to ask from it is for `assigned` to begin.
        self.router_search = None;
        let waits = self.addresses.iter().any(|local| local.origin == Origin::LinkLocal && !local.is_assigned());
        if self.options.slaac && !waits {
            self.solicit_routers(now);
        }
        self.schedule();
    }

    /// RFC 4862 section 5.4.2: from nobody, so that nobody learns it yet.
    fn ask_who_has(&mut self, address: Ipv6Addr) {
        let message = ndp::Repr::NeighbourSolicitation { target: address, source: None };
        self.counters.nd_solicitations_out += 1;
        self.queue_discovery(Ipv6Addr::UNSPECIFIED, solicited_node(address), &message);
    }

    /// RFC 7217 section 5: an identifier that only the key's owner can tell from a random one.
    pub(super) fn stable_address(&self, prefix: Ipv6Addr, duplicates: u8) -> Ipv6Addr {
        let mut counter = u64::from(duplicates) << 32;
        loop {
            let mut hasher = SipHasher24::new_with_key(&self.options.secret);
            hasher.write(&prefix.octets()[..8]);
            hasher.write(&(self.options.interface_name.len() as u64).to_be_bytes());
            hasher.write(self.options.interface_name.as_bytes());
            hasher.write(&counter.to_be_bytes());
            let identifier = hasher.finish128().h1;
            if !is_reserved(identifier) {
                return Ipv6Addr::from_bits(prefix.to_bits() >> 64 << 64 | u128::from(identifier));
            }
            counter += 1;
        }
    }

    /// What time does to the addresses.
    pub(super) fn age_addresses(&mut self, now: Instant) {
        let mut index = 0;
        while index < self.addresses.len() {
            if self.addresses[index].valid_until.is_some_and(|until| until <= now) {
                self.remove_address(now, index);
                continue;
            }
            self.step_address(now, index);
            index += 1;
        }
    }

    fn remove_address(&mut self, now: Instant, index: usize) {
        let removed = self.addresses.remove(index);
        self.leave(now, solicited_node(removed.address));
        if removed.is_assigned() {
            self.tell(InterfaceEvent::AddressExpired { address: removed.address.into() });
        }
    }

    fn step_address(&mut self, now: Instant, index: usize) {
        let (transmits, retransmit) = (self.options.duplicate_detections, self.retransmit);
        let announcements = self.options.announcements;
        let Some(local) = self.addresses.get_mut(index) else { return };
        match local.state {
            State::Tentative { sent, next } if next <= now && sent < transmits => {
                local.state = State::Tentative { sent: sent + 1, next: now + retransmit };
                let address = local.address;
                self.ask_who_has(address);
            }
            State::Tentative { next, .. } if next <= now => {
                local.state = State::Assigned;
                local.announcements = (announcements > 0).then_some((now, announcements));
                let (address, origin) = (local.address, local.origin);
                self.assigned(now, address, origin);
                self.announce(now, index);
            }
            State::Duplicate { retry: Some(retry) } if retry <= now => {
                local.state = State::Tentative { sent: 0, next: now };
                self.step_address(now, index);
            }
            State::Assigned => self.announce(now, index),
            State::Tentative { .. } | State::Duplicate { .. } => {}
        }
    }

    fn assigned(&mut self, now: Instant, address: Ipv6Addr, origin: Origin) {
        self.tell(InterfaceEvent::AddressAssigned { address: address.into() });
        // RFC 3590 section 4: reports sent from no address may have been ignored.
        self.report_again(now);
        if origin == Origin::LinkLocal && self.options.slaac {
            self.solicit_routers(now);
        }
    }

    /// RFC 4861 section 7.2.6: tells everybody, who may remember the MAC address of a station that had it before.
    fn announce(&mut self, now: Instant, index: usize) {
        let Some(local) = self.addresses.get_mut(index) else { return };
        let Some((_, left)) = local.announcements.filter(|(at, _)| *at <= now) else { return };
        local.announcements = (left > 1).then_some((now + ANNOUNCE_INTERVAL, left - 1));
        let address = local.address;
        let link = Some(self.mac);
        let message = ndp::Repr::NeighbourAdvertisement { target: address, router: false, solicited: false, replace: true, link };
        self.counters.nd_advertisements_out += 1;
        self.queue_discovery(address, ALL_NODES, &message);
    }

    /// Another station has, or is looking for, an address that is not assigned yet (RFC 4862 section 5.4.5, RFC 7217 section 6).
    pub(super) fn duplicate(&mut self, now: Instant, address: Ipv6Addr, mac: Address) {
        let Some(index) = self.addresses.iter().position(|local| local.address == address) else { return };
        self.counters.duplicates += 1;
        self.tell(InterfaceEvent::AddressDuplicate { address: IpAddr::V6(address), mac });
        let local = &mut self.addresses[index];
        let prefix = match local.origin {
            Origin::Configured => {
                local.state = State::Duplicate { retry: Some(now + self.options.duplicate_retry) };
                return;
            }
            Origin::LinkLocal => LINK_LOCAL_PREFIX,
            Origin::Prefix(prefix) => prefix,
        };
        if local.duplicates >= IDENTIFIER_RETRIES {
            local.state = State::Duplicate { retry: None };
            return;
        }
        local.duplicates += 1;
        let duplicates = local.duplicates;
        let another = self.stable_address(prefix, duplicates);
        let local = &mut self.addresses[index];
        (local.address, local.state) = (another, State::Tentative { sent: 0, next: now + IDENTIFIER_DELAY });
        self.leave(now, solicited_node(address));
        self.join(now, solicited_node(another));
    }

    /// Another station claims an assigned address: a person has to hear of it (RFC 4862 section 5.4.4).
    pub(super) fn conflict(&mut self, now: Instant, address: Ipv6Addr, mac: Address) {
        self.counters.conflicts += 1;
        let Some(local) = self.addresses.iter_mut().find(|local| local.address == address) else { return };
        if local.conflict_told.is_some_and(|at| now < at + CONFLICT_INTERVAL) {
            return;
        }
        local.conflict_told = Some(now);
        // Whoever listened to the other hears us last.
        local.announcements = Some((now, 1));
        self.tell(InterfaceEvent::AddressConflict { address: IpAddr::V6(address), mac });
    }

    /// A prefix to make an address from (RFC 4862 section 5.5.3).
    pub(super) fn take_prefix(&mut self, now: Instant, prefix: &ndp::Prefix) {
        let lifetime = |seconds: u32| match seconds {
            ndp::LIFETIME_INFINITE => None,
            seconds => Some(now + Duration::from_secs(seconds.into())),
        };
        // (c); and (d): the prefix and an identifier of 64 bits are an address.
        if prefix.preferred_s > prefix.valid_s || prefix.len != 64 {
            return;
        }
        let base = Ipv6Addr::from_bits(prefix.prefix.to_bits() >> 64 << 64);
        let (preferred, valid) = (lifetime(prefix.preferred_s), lifetime(prefix.valid_s));
        if let Some(local) = self.addresses.iter_mut().find(|local| local.origin == Origin::Prefix(base)) {
            local.preferred_until = preferred;
            // (e): an unauthenticated router may lengthen a life, or shorten it to two hours.
            let remaining = local.valid_until.map(|until| until.since(now));
            let longer = valid.is_none() || remaining.is_some_and(|remaining| valid.is_some_and(|v| v.since(now) > remaining));
            if longer || valid.is_some_and(|valid| valid.since(now) > TWO_HOURS) {
                local.valid_until = valid;
            } else if remaining.is_none_or(|remaining| remaining > TWO_HOURS) {
                local.valid_until = Some(now + TWO_HOURS);
            }
            return;
        }
        if prefix.valid_s == 0 {
            return;
        }
        if self.addresses.len() >= self.options.addresses_max {
            self.counters.advertised_overflow += 1;
            return;
        }
        let address = self.stable_address(base, 0);
        let local = self.add_address(now, address, 64, Origin::Prefix(base));
        (local.preferred_until, local.valid_until) = (preferred, valid);
    }

    /// The address to speak to `dst` from (RFC 6724 section 5, the rules that apply to one interface: scope, not deprecated,
    /// longest matching prefix).
    pub(super) fn source_for(&self, now: Instant, dst: Ipv6Addr) -> Option<Ipv6Addr> {
        use crate::wire::ipv6::is_link_local;
        let local_scope = is_link_local(dst) || dst.is_multicast();
        let rank = |local: &&LocalAddress| {
            let common = (local.address.to_bits() ^ dst.to_bits()).leading_zeros();
            (is_link_local(local.address) == local_scope, !local.is_deprecated(now), common)
        };
        self.addresses.iter().filter(|local| local.is_assigned()).max_by_key(rank).map(|local| local.address)
    }
}

/// Identifiers that are nobody's (RFC 5453, IANA): the subnet-router anycast, those made from IANA's own MAC addresses, and
/// the reserved anycasts.
fn is_reserved(identifier: u64) -> bool {
    identifier == 0
        || (0x0200_5eff_fe00_0000..=0x0200_5eff_feff_ffff).contains(&identifier)
        || (0xfdff_ffff_ffff_ff80..=0xfdff_ffff_ffff_ffff).contains(&identifier)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reserved_identifiers_are_not_used() {
        assert!(is_reserved(0) && is_reserved(0xfdff_ffff_ffff_ff80) && is_reserved(0x0200_5eff_fe12_3456));
        assert!(!is_reserved(1) && !is_reserved(0xfdff_ffff_ffff_ff7f));
    }
}
