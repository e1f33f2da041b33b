//! IPv4 addresses before they are used: does another station have them?
//!
//! Read first: RFC 5227 sections 1.1 (times), 2.1 (probing), 2.1.1 (what is a conflict), 2.3 (announcing, which follows).
//!
//! An address is in `Interface::probing` until nobody has claimed it, and then in `Interface::addresses` for good: from there on it is
//! defended (`arp`). One that another station has is told, not used, and looked for again later. Where several cores share a port, its
//! leader looks, and the others take over what it has found free (`PortLead`).

use std::hash::Hasher as _;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use siphasher::sip::SipHasher24;

use super::send::Control;
use super::{Interface, InterfaceEvent, Ipv6, Ipv6Lead, LocalAddress};
use crate::time::{Duration, Instant};
use crate::wire::arp::{Operation, Repr};
use crate::wire::ethernet::Address;

/// How an address is looked for before it is used. The names are RFC 5227's (section 1.1).
#[derive(Clone, Debug)]
pub struct ProbeOptions {
    /// PROBE_NUM; 0: addresses are used at once.
    pub probes: u32,
    /// PROBE_WAIT: the longest wait before the first; it is drawn.
    pub wait_max: Duration,
    /// PROBE_MIN: from one probe to the next at least.
    pub interval_min: Duration,
    /// PROBE_MAX: and at most; it is drawn.
    pub interval_max: Duration,
    /// ANNOUNCE_WAIT: from the last probe to the address's use.
    pub announce_wait: Duration,
    /// An address that another station has is looked for again after this long, and a drawn part of a quarter more: of two that have
    /// found each other looking, one comes first the next time. RATE_LIMIT_INTERVAL: at least 60 s.
    pub retry: Duration,
}

impl ProbeOptions {
    /// Nobody is asked: where a network was made for this, and nobody waits.
    pub fn none() -> ProbeOptions {
        ProbeOptions { probes: 0, ..ProbeOptions::quick() }
    }

    /// In use after 450 ms. A station on a wired link answers within a few; RFC 5227's times allow for bridges that still learn.
    pub fn quick() -> ProbeOptions {
        let interval = Duration::from_millis(150);
        ProbeOptions {
            probes: 3,
            wait_max: Duration::ZERO,
            interval_min: interval,
            interval_max: interval,
            announce_wait: interval,
            retry: Duration::from_secs(60),
        }
    }

    /// RFC 5227 section 1.1 to the letter: in use after 4 to 7 s.
    pub fn rfc5227() -> ProbeOptions {
        let seconds = Duration::from_secs;
        ProbeOptions {
            wait_max: seconds(1),
            interval_min: seconds(1),
            interval_max: seconds(2),
            announce_wait: seconds(2),
            ..ProbeOptions::quick()
        }
    }
}

enum State {
    /// So many probes are sent; the next thing happens then.
    Looking { sent: u32, next: Instant },
    /// Another station has it, which is yet to be told. Not at once: the frame may be a copy of what another core received, and
    /// nothing that comes of handling one is kept but what is learned.
    Taken { mac: Address },
    /// Looked for again then.
    Waiting { retry: Instant },
}

/// A configured address that is not used yet.
pub(super) struct Probed {
    address: Ipv4Addr,
    prefix: u8,
    state: State,
}

impl Probed {
    fn poll_timeout(&self) -> Instant {
        match self.state {
            State::Looking { next, .. } => next,
            State::Taken { .. } => Instant::ZERO,
            State::Waiting { retry } => retry,
        }
    }
}

/// What the leader of a port has found out: all that those who follow need.
#[derive(Debug, PartialEq, Eq)]
pub struct PortLead {
    /// IPv4 addresses in use, with their prefix lengths.
    addresses: Vec<(Ipv4Addr, u8)>,
    ipv6: Option<Arc<Ipv6Lead>>,
}

impl Interface {
    /// The configured addresses: to be looked for, or those in use.
    pub(super) fn start_addresses(&mut self, now: Instant, addresses: Vec<(Ipv4Addr, u8)>) {
        let in_use = |(address, prefix)| LocalAddress { address, prefix, defended: None };
        if self.options.probe.probes == 0 {
            self.addresses = addresses.into_iter().map(in_use).collect();
            return;
        }
        // Announced when they are in use.
        self.announcements = None;
        if self.options.ipv6.follows {
            return;
        }
        for (address, prefix) in addresses {
            let next = now + self.draw(self.options.probe.wait_max);
            self.probing.push(Probed { address, prefix, state: State::Looking { sent: 0, next } });
        }
    }

    /// The link has come up, and may be another one: what is not in use is looked for from the beginning, and what is, announced, which
    /// also asks who else has it (RFC 5227 section 2.3: an announcement is a request for the address).
    pub(super) fn look_again(&mut self, now: Instant) {
        for index in 0..self.probing.len() {
            // What is to be told of it first has its turn at once.
            if !matches!(self.probing[index].state, State::Taken { .. }) {
                let next = now + self.draw(self.options.probe.wait_max);
                self.probing[index].state = State::Looking { sent: 0, next };
            }
        }
        let announces = self.options.announcements > 0 && !self.addresses.is_empty();
        self.announcements = announces.then_some((now, self.options.announcements));
    }

    pub(super) fn probes_timeout(&self) -> Option<Instant> {
        self.probing.iter().map(Probed::poll_timeout).min()
    }

    pub(super) fn probe_if_due(&mut self, now: Instant) {
        let mut index = 0;
        while let Some(probed) = self.probing.get(index) {
            if probed.poll_timeout() > now || self.step_probe(now, index) {
                index += 1;
            }
        }
    }

    /// The next thing to do about an address, which is due; false: it is in use, and no longer at this place.
    fn step_probe(&mut self, now: Instant, index: usize) -> bool {
        let options = self.options.probe.clone();
        let Probed { address, prefix, state } = &self.probing[index];
        let (address, prefix) = (*address, *prefix);
        let sent = match *state {
            State::Looking { sent, .. } => sent,
            State::Waiting { .. } => 0,
            State::Taken { mac } => {
                let retry = now + options.retry + self.draw(options.retry / 4);
                self.probing[index].state = State::Waiting { retry };
                self.counters.arp_duplicates += 1;
                self.tell(InterfaceEvent::AddressDuplicate { address: address.into(), mac });
                return true;
            }
        };
        if sent >= options.probes {
            self.probing.remove(index);
            self.addresses.push(LocalAddress { address, prefix, defended: None });
            // RFC 5227 section 2.3: now it may be claimed.
            self.announcements = (self.options.announcements > 0).then_some((now, self.options.announcements));
            self.lead_due = true;
            self.tell(InterfaceEvent::AddressAssigned { address: address.into() });
            return false;
        }
        let wait = match sent + 1 == options.probes {
            true => options.announce_wait,
            false => options.interval_min + self.draw(options.interval_max.saturating_sub(options.interval_min)),
        };
        self.probing[index].state = State::Looking { sent: sent + 1, next: now + wait };
        self.counters.arp_probes += 1;
        // RFC 5227 section 2.1.1: from nobody, so that nobody's cache learns an address that may be another's.
        let packet = Repr {
            operation: Operation::Request,
            sender_hardware: self.mac,
            sender_protocol: Ipv4Addr::UNSPECIFIED,
            target_hardware: Address::default(),
            target_protocol: address,
        };
        self.queue_own(Control::Arp { dst: Address::BROADCAST, packet });
        true
    }

    /// RFC 5227 section 2.1.1: any packet of another from an address that is being looked for, and another's probe for it, mean that
    /// it is taken. Tells whether this was one.
    pub(super) fn takes_probed(&mut self, packet: &Repr) -> bool {
        let is_probe = packet.operation == Operation::Request && packet.sender_protocol.is_unspecified();
        let claimed = if is_probe { packet.target_protocol } else { packet.sender_protocol };
        let Some(probed) = self.probing.iter_mut().find(|probed| probed.address == claimed) else { return false };
        if !matches!(probed.state, State::Looking { .. }) {
            return false;
        }
        probed.state = State::Taken { mac: packet.sender_hardware };
        self.counters.arp_conflicts += 1;
        true
    }

    /// What the interfaces of the other cores on this port are to `follow`, whenever it has changed.
    #[inline]
    pub fn poll_lead(&mut self) -> Option<Arc<PortLead>> {
        let ipv6 = self.ipv6.as_mut().and_then(Ipv6::poll_lead);
        if ipv6.is_none() && !self.lead_due {
            return None;
        }
        self.lead_due = false;
        let addresses = self.addresses.iter().map(|local| (local.address, local.prefix)).collect();
        // All of it each time: a message takes the place of an older one that was not read.
        let ipv6 = self.ipv6.as_ref().and_then(Ipv6::told);
        Some(Arc::new(PortLead { addresses, ipv6 }))
    }

    /// Takes over what the interface that leads the port has found out.
    pub fn follow(&mut self, lead: &PortLead) {
        for &(address, prefix) in &lead.addresses {
            // An address that is in use stays so.
            if !self.is_own(IpAddr::V4(address)) {
                self.addresses.push(LocalAddress { address, prefix, defended: None });
            }
        }
        if let (Some(ipv6), Some(lead)) = (&mut self.ipv6, &lead.ipv6) {
            ipv6.follow(lead);
        }
        self.routes.forget();
    }

    /// A time below `max`, which nobody without the key can foresee.
    fn draw(&mut self, max: Duration) -> Duration {
        let mut hasher = SipHasher24::new_with_key(&self.options.ipv6.secret);
        hasher.write(&self.mac.0);
        hasher.write(b"probe");
        hasher.write_u64(self.draws);
        self.draws += 1;
        let nanos = u64::try_from(max.as_nanos()).unwrap_or(u64::MAX);
        Duration::from_nanos(hasher.finish().checked_rem(nanos).unwrap_or(0))
    }
}
