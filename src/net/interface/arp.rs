//! ARP: answering, learning, announcing, defending.
//!
//! Read first: RFC 826 "Packet Reception"; RFC 5227 sections 2.3 (announcing) and 2.4 (conflicts).
//! Deliberately not here: giving up an address that is in use (RFC 5227 section 2.4 (a)). Clients retry against it for ever, and a
//! server that goes away because a stranger has answered for its address is worse than one that says so and defends it. Before it is
//! used is another matter: `probe`.

use std::net::{IpAddr, Ipv4Addr};

use super::receive::Reason;
use super::send::Control;
use super::{Ingress, Interface, InterfaceEvent, options};
use crate::net::neighbour::Solicitation;
use crate::time::Instant;
use crate::wire::arp::{Operation, Packet, Repr};
use crate::wire::ethernet::Address;

impl Interface {
    pub(super) fn receive_arp(&mut self, now: Instant, bytes: &[u8]) -> Result<Ingress, Reason> {
        let malformed: Reason = |c| &mut c.arp_malformed;
        let packet = Repr::parse(&Packet::new(bytes).map_err(|_| malformed)?).map_err(|_| malformed)?;
        let (mac, sender) = (packet.sender_hardware, packet.sender_protocol);
        // RFC 1812 section 3.3.2: never believe that an address belongs to a group. Our own MAC in a frame that did not come
        // from us is a forgery.
        if !mac.is_unicast() || mac == self.mac {
            return Err(|c| &mut c.arp_bad_sender);
        }
        if !self.probing.is_empty() && self.takes_probed(&packet) {
            return Ok(Ingress::Consumed);
        }
        if self.is_own_v4(sender) {
            self.conflict(now, sender, mac);
            return Ok(Ingress::Consumed);
        }
        let for_us = self.is_own_v4(packet.target_protocol);
        // RFC 5227 section 2.1.1: a probe has no sender address yet; it is answered and teaches nothing.
        if !sender.is_unspecified() {
            if !options::is_host(sender) || self.is_broadcast(sender) {
                return Err(|c| &mut c.arp_bad_sender);
            }
            // An entry outside our subnets would never be asked for: the route goes through the gateway.
            if self.is_on_link(sender) {
                // RFC 826: update an entry in any case, add one only if we are the target.
                self.neighbours.learned(now, IpAddr::V4(sender), mac, for_us);
                self.routes.forget();
            }
        }
        match packet.operation {
            Operation::Request if for_us => {
                self.counters.arp_requests_in += 1;
                let reply = Repr {
                    operation: Operation::Reply,
                    sender_hardware: self.mac,
                    sender_protocol: packet.target_protocol,
                    target_hardware: mac,
                    target_protocol: sender,
                };
                self.queue_answer(Control::Arp { dst: mac, packet: reply });
            }
            Operation::Reply if for_us => self.counters.arp_replies_in += 1,
            Operation::Request | Operation::Reply => self.counters.arp_other_in += 1,
        }
        Ok(Ingress::Consumed)
    }

    /// RFC 5227 section 2.4 (c): a host that must keep its address defends it, not more often than every interval.
    fn conflict(&mut self, now: Instant, address: Ipv4Addr, mac: Address) {
        self.counters.arp_conflicts += 1;
        let interval = self.options.defend_interval;
        let Some(local) = self.addresses.iter_mut().find(|local| local.address == address) else { return };
        if local.defended.is_some_and(|at| now < at + interval) {
            return;
        }
        local.defended = Some(now);
        self.counters.arp_defences += 1;
        self.queue_announcement(address);
        self.tell(InterfaceEvent::AddressConflict { address: address.into(), mac });
    }

    pub(super) fn announce_if_due(&mut self, now: Instant) {
        let Some((at, left)) = self.announcements.filter(|(at, _)| *at <= now) else { return };
        self.announcements = (left > 1).then_some((at.max(now) + self.options.announce_interval, left - 1));
        for index in 0..self.addresses.len() {
            if let Some(address) = self.addresses.get(index).map(|local| local.address) {
                self.queue_announcement(address);
            }
        }
    }

    /// RFC 5227 section 2.3: a request whose sender and target address are both the announced one.
    fn queue_announcement(&mut self, address: Ipv4Addr) {
        let packet = Repr {
            operation: Operation::Request,
            sender_hardware: self.mac,
            sender_protocol: address,
            target_hardware: Address::default(),
            target_protocol: address,
        };
        self.queue_own(Control::Arp { dst: Address::BROADCAST, packet });
    }

    pub(super) fn queue_solicitation(&mut self, solicitation: Solicitation) {
        let IpAddr::V4(target) = solicitation.address else { return };
        // From the address whose subnet the target is in: the peer learns from the sender fields.
        let local = self.addresses.iter().find(|local| options::same_subnet(local.address, target, local.prefix));
        let Some(sender) = local.map(|local| local.address) else { return };
        let packet = Repr {
            operation: Operation::Request,
            sender_hardware: self.mac,
            sender_protocol: sender,
            target_hardware: solicitation.unicast.unwrap_or_default(),
            target_protocol: target,
        };
        self.queue_own(Control::Arp { dst: solicitation.unicast.unwrap_or(Address::BROADCAST), packet });
    }
}
