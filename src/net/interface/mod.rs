//! One port's IP layer: frames in, transport packets out, and back. Sans-IO: the device and the clock are handed in.
//!
//! Read first: RFC 1122 section 3 (what a host's IP layer owes), RFC 826 and RFC 5227 (ARP), RFC 1812 section 4.3.2
//! (ICMP errors); for IPv6 `ipv6`.
//!
//! A turn of the core's loop: `handle_frame` for each received frame, `handle_timeout` when `poll_timeout` is due, `send`
//! for what the transports have, `poll_transmit` for what the interface itself has to say, then `Device::flush`;
//! `poll_event` for what a person should read.
//!
//! - `options`: what it is configured with, what it counts.
//! - `receive`: the checks a frame passes, in order. - `recognised`: frames that need not pass them again.
//! - `probe`: IPv4 addresses before they are used. - `arp`: neighbours, announcements, conflicts.
//! - `link`: what starts over when the link comes up.
//! - `icmp`: echo, errors received and sent. - `routes`: where a packet goes. - `send`: headers, checksums.
//! - `ipv6`: all of that for IPv6, and how its addresses come about.
//!
//! Deliberately not here: forwarding, reassembly (fragments are counted and dropped: RFC 1122 asks for it, but a peer that
//! respects our MSS never needs it, and it is memory that strangers fill), IPv4 multicast.

mod arp;
mod icmp;
mod ipv6;
mod link;
mod options;
mod probe;
mod receive;
mod recognised;
mod routes;
mod send;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;

use super::device::{Checksum, Device};
use super::neighbour::{NeighbourCounters, NeighbourTable};
use crate::buf::{FragmentArena, RxPacket};
use crate::time::Instant;
use crate::wire::ethernet::Address;

use icmp::TokenBucket;
use ipv6::Ipv6;
use ipv6::Ipv6Lead;
pub use ipv6::{Ipv6Counters, Ipv6Options};
use link::LinkState;
use options::CheckedAddresses;
pub use options::{InterfaceCounters, InterfaceError, InterfaceOptions};
use probe::Probed;
pub use probe::{PortLead, ProbeOptions};
use recognised::Recognised;
pub use recognised::SegmentInPlace;
use routes::Routes;
use send::{Control, ParkedPacket};
pub use send::{OutgoingPacket, SendRefused};

/// Octets of an IPv4 header with all options, and of what an ICMP error must quote behind it.
const QUOTED_HEADERS_MAX: usize = 60 + 8;

/// Events that wait for `poll_event`; more are counted and lost.
const EVENTS_MAX: usize = 16;

/// Places of a queue of own packets, beyond those for answers, where only what we ask, announce and report goes: anybody can have as many
/// answers made as there are places, and a probe that is lost would make an address of ours that nobody was asked about.
const OWN_PLACES: usize = 64;

/// What a frame turned out to be.
pub enum Ingress {
    /// A TCP segment, from its TCP header to the end of its payload. Its checksum is verified by `tcp` if `Unknown`.
    Tcp {
        src: IpAddr,
        dst: IpAddr,
        packet: RxPacket,
        checksum: Checksum,
        /// The two ECN bits of the IP header (RFC 3168 section 5).
        ecn: u8,
    },
    Udp(UdpDatagram),
    /// An ICMP error about a packet of ours.
    IcmpError(IcmpError),
    /// Nothing for the layers above: answered, learned from, or dropped and counted.
    Consumed,
}

/// A UDP datagram with good length and checksum.
pub struct UdpDatagram {
    pub src: SocketAddr,
    pub dst: SocketAddr,
    /// The payload.
    pub packet: RxPacket,
    /// The headers it came with, for an ICMP error to quote.
    headers: QuotedHeaders,
}

struct QuotedHeaders {
    bytes: [u8; QUOTED_HEADERS_MAX],
    len: u8,
}

/// What a router or the peer says about a packet we sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IcmpError {
    pub kind: IcmpErrorKind,
    /// Who says so. Anybody can: `tcp` checks `tcp_sequence` against its window before it acts (RFC 5927 section 4).
    pub reporter: IpAddr,
    /// The packet's source, one of our addresses.
    pub local: SocketAddr,
    pub remote: SocketAddr,
    /// The packet's protocol: `wire::protocol`.
    pub protocol: u8,
    /// The segment's sequence number if the protocol is TCP.
    pub tcp_sequence: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IcmpErrorKind {
    /// Codes: `wire::icmpv4::unreachable`.
    Unreachable {
        code: u8,
    },
    /// The largest packet, in bytes with its IP header, that will pass; at least 68. Estimated by RFC 1191 section 7 if
    /// the router does not tell.
    FragmentationNeeded {
        mtu: u16,
    },
    TimeExceeded,
    ParameterProblem,
}

/// What a person should know.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InterfaceEvent {
    /// Another station uses one of our addresses (RFC 5227 section 2.4, RFC 4862 section 5.4.4). Told at most once per defence
    /// interval and address.
    AddressConflict {
        address: IpAddr,
        mac: Address,
    },
    /// Another station had an address first, and it is not used (RFC 4862 section 5.4.5, RFC 5227 section 2.1.1).
    AddressDuplicate {
        address: IpAddr,
        mac: Address,
    },
    /// Nobody else has it: the address is used from now on.
    AddressAssigned {
        address: IpAddr,
    },
    /// The life that a router gave the address is over.
    AddressExpired {
        address: IpAddr,
    },
    /// The cable is in and there is somebody at its other end, again or for the first time.
    LinkUp,
    LinkDown,
}

struct LocalAddress {
    address: Ipv4Addr,
    prefix: u8,
    /// When we last announced it because somebody else used it.
    defended: Option<Instant>,
}

/// See the head of this file for the order of calls.
pub struct Interface {
    options: InterfaceOptions,
    mac: Address,
    /// In use.
    addresses: Vec<LocalAddress>,
    /// Not in use yet.
    probing: Vec<Probed>,
    /// Random times drawn so far.
    draws: u64,
    link: LinkState,
    /// Packets sent that routers may cut.
    fragmentable: u16,
    /// The others who share the port may not know all of `addresses` yet.
    lead_due: bool,
    gateway: Option<Ipv4Addr>,
    neighbours: NeighbourTable<ParkedPacket>,
    ipv6: Option<Ipv6>,
    /// What `poll_transmit` sends.
    control: VecDeque<Control>,
    /// Where the payload of our own ICMP messages lies.
    arena: FragmentArena,
    /// Each answer that waits for a neighbour has a reference to it, too.
    answers: Arc<()>,
    icmp_errors: TokenBucket,
    /// When the next announcement is due and how many are left (RFC 5227 section 2.3).
    announcements: Option<(Instant, u32)>,
    events: VecDeque<InterfaceEvent>,
    recognised: Recognised,
    routes: Routes,
    /// Of the packet that is sent.
    headers: send::Headers,
    counters: InterfaceCounters,
}

impl Interface {
    /// Looks for its addresses, or announces them, from the first `handle_timeout` on. `arena` holds its own ICMP messages until they are sent.
    pub fn new(options: InterfaceOptions, arena: FragmentArena, now: Instant) -> Result<Interface, InterfaceError> {
        let CheckedAddresses { addresses, gateway, ipv6 } = options.check()?;
        let mac = Address(options.mac);
        let start_ipv6 = |addresses: Vec<_>| {
            let InterfaceOptions { mtu, time_to_live, control_packets_max, .. } = options;
            Ipv6::new(options.ipv6.clone(), mac, mtu, time_to_live, control_packets_max, &addresses, now)
        };
        let mut interface = Interface {
            mac,
            ipv6: ipv6.map(start_ipv6),
            addresses: Vec::new(),
            probing: Vec::new(),
            draws: 0,
            link: LinkState::new(),
            fragmentable: 0,
            lead_due: false,
            gateway,
            neighbours: NeighbourTable::new(options.neighbours.clone()),
            control: VecDeque::new(),
            arena,
            answers: Arc::new(()),
            icmp_errors: TokenBucket::new(options.icmp_errors_per_second, options.icmp_errors_burst, now),
            announcements: (options.announcements > 0).then_some((now, options.announcements)),
            events: VecDeque::new(),
            recognised: Recognised::default(),
            routes: Routes::default(),
            headers: send::Headers::new(),
            counters: InterfaceCounters::default(),
            options,
        };
        interface.start_addresses(now, addresses);
        Ok(interface)
    }

    /// When `handle_timeout` is due; may be earlier than needed.
    pub fn poll_timeout(&self) -> Option<Instant> {
        let announcement = self.announcements.map(|(at, _)| at);
        let spoken = [announcement, self.probes_timeout()].into_iter().flatten().filter(|_| self.link.up);
        let ipv6 = self.ipv6.as_ref().and_then(|ipv6| ipv6.poll_timeout(self.link.up));
        spoken.chain(self.neighbours.poll_timeout()).chain(ipv6).min()
    }

    /// Looks for addresses, announces, asks again, forgets. `poll_transmit` sends what comes of it.
    pub fn handle_timeout(&mut self, now: Instant) {
        if self.link.up {
            self.probe_if_due(now);
            self.announce_if_due(now);
        }
        self.neighbours.handle_timeout(now);
        self.routes.forget();
        if let Some(ipv6) = &mut self.ipv6 {
            ipv6.handle_timeout(now, self.link.up);
        }
    }

    /// Whether `poll_transmit` has something to send: also after it stopped because the device was full.
    pub fn has_transmit(&self) -> bool {
        !self.control.is_empty()
            || self.neighbours.has_ready()
            || self.neighbours.has_solicitation()
            || self.ipv6.as_ref().is_some_and(Ipv6::has_transmit)
    }

    /// Sends what the interface itself has to say, and packets whose neighbour has been found, until there is nothing or
    /// the device is full. Returns the frames queued; the caller flushes.
    pub fn poll_transmit<D: Device + ?Sized>(&mut self, now: Instant, device: &mut D) -> usize {
        let mut sent = 0;
        if !self.transmit_ready(now, device, &mut sent) || !self.transmit_ipv6(now, device, &mut sent) {
            return sent;
        }
        loop {
            // What strangers make us ask takes no more room than their answers.
            while self.control.len() < self.options.control_packets_max
                && let Some(solicitation) = self.neighbours.poll_solicitation()
            {
                self.queue_solicitation(solicitation);
            }
            let Some(control) = self.control.pop_front() else { return sent };
            let result = match &control {
                Control::Arp { dst, packet } => self.send_arp(device, *dst, packet),
                Control::Ip(packet) => self.send(now, device, &packet.as_outgoing()),
            };
            match result {
                Ok(()) => sent += 1,
                Err(SendRefused::Full) => {
                    self.control.push_front(control);
                    return sent;
                }
                Err(_) => self.counters.own_packets_refused += 1,
            }
        }
    }

    /// Packets whose neighbour has been found; false: the device is full.
    fn transmit_ready<D: Device + ?Sized>(&mut self, now: Instant, device: &mut D, sent: &mut usize) -> bool {
        while let Some(packet) = self.neighbours.next_ready() {
            match self.send(now, device, &packet.as_outgoing()) {
                Ok(()) => *sent += 1,
                Err(SendRefused::Full) => {
                    self.neighbours.return_ready(packet);
                    return false;
                }
                Err(_) => self.counters.own_packets_refused += 1,
            }
        }
        true
    }

    /// The same for IPv6, then what IPv6 has to say itself; false: the device is full.
    fn transmit_ipv6<D: Device + ?Sized>(&mut self, now: Instant, device: &mut D, sent: &mut usize) -> bool {
        while let Some(packet) = self.ipv6.as_mut().and_then(|ipv6| ipv6.neighbours.next_ready()) {
            match self.send(now, device, &packet.as_outgoing()) {
                Ok(()) => *sent += 1,
                Err(SendRefused::Full) => {
                    if let Some(ipv6) = &mut self.ipv6 {
                        ipv6.neighbours.return_ready(packet);
                    }
                    return false;
                }
                Err(_) => self.counters.own_packets_refused += 1,
            }
        }
        while let Some(own) = self.ipv6.as_mut().and_then(|ipv6| ipv6.poll_own(now)) {
            match self.send_own_v6(device, &own) {
                Ok(()) => *sent += 1,
                Err(SendRefused::Full) => {
                    if let Some(ipv6) = &mut self.ipv6 {
                        ipv6.return_own(own);
                    }
                    return false;
                }
                Err(_) => self.counters.own_packets_refused += 1,
            }
        }
        true
    }

    /// The next thing a person should know.
    pub fn poll_event(&mut self) -> Option<InterfaceEvent> {
        let ipv6 = self.ipv6.as_mut();
        self.events.pop_front().or_else(|| ipv6.and_then(Ipv6::poll_event))
    }

    pub fn counters(&self) -> &InterfaceCounters {
        &self.counters
    }

    pub fn neighbour_counters(&self) -> &NeighbourCounters {
        self.neighbours.counters()
    }

    /// `None`: no IPv6 here.
    pub fn ipv6_counters(&self) -> Option<&Ipv6Counters> {
        self.ipv6.as_ref().map(|ipv6| &ipv6.counters)
    }

    /// Of the neighbour cache of IPv6; `None`: no IPv6 here.
    pub fn ipv6_neighbour_counters(&self) -> Option<&NeighbourCounters> {
        self.ipv6.as_ref().map(|ipv6| ipv6.neighbours.counters())
    }

    /// The MAC address known for a neighbour.
    pub fn neighbour(&self, address: IpAddr) -> Option<Address> {
        match address {
            IpAddr::V4(_) => self.neighbours.get(address),
            IpAddr::V6(_) => self.ipv6.as_ref()?.neighbours.get(address),
        }
    }

    /// Whether this is one of the interface's addresses, and may be used.
    pub fn is_own(&self, address: IpAddr) -> bool {
        match address {
            IpAddr::V4(address) => self.is_own_v4(address),
            IpAddr::V6(address) => self.ipv6.as_ref().is_some_and(|ipv6| ipv6.is_own(address)),
        }
    }

    /// The addresses in use, of both families.
    pub fn addresses(&self) -> impl Iterator<Item = IpAddr> {
        let ipv6 = self.ipv6.iter().flat_map(Ipv6::addresses);
        self.addresses.iter().map(|local| local.address.into()).chain(ipv6)
    }

    /// Largest IP packet, bytes.
    pub fn mtu(&self) -> u16 {
        self.options.mtu
    }

    /// Largest IP packet to this address, as far as the link goes: of IPv6 a router may have told.
    pub(super) fn mtu_to(&self, address: IpAddr) -> u16 {
        match &self.ipv6 {
            Some(ipv6) if address.is_ipv6() => ipv6.link_mtu,
            _ => self.options.mtu,
        }
    }

    fn is_own_v4(&self, address: Ipv4Addr) -> bool {
        self.addresses.iter().any(|local| local.address == address)
    }

    /// Whether packets to it go directly, not through the gateway.
    fn is_on_link(&self, address: Ipv4Addr) -> bool {
        self.addresses.iter().any(|local| options::same_subnet(local.address, address, local.prefix))
    }

    /// 255.255.255.255, or the broadcast address, new style or old, of a subnet of ours (RFC 1122 section 3.2.1.3).
    fn is_broadcast(&self, address: Ipv4Addr) -> bool {
        address.is_broadcast()
            || self.addresses.iter().any(|local| options::is_subnet_broadcast(local.address, address, local.prefix))
    }

    fn tell(&mut self, event: InterfaceEvent) {
        if self.events.len() >= EVENTS_MAX {
            self.counters.events_lost += 1;
            return;
        }
        self.events.push_back(event);
    }

    pub(super) fn count_udp_too_long(&mut self) {
        self.counters.udp_too_long += 1;
    }

    /// What was made because of a packet received.
    fn queue_answer(&mut self, answer: Control) {
        self.queue_below(self.options.control_packets_max, answer);
    }

    /// What we ask or announce ourselves.
    fn queue_own(&mut self, control: Control) {
        self.queue_below(self.options.control_packets_max + OWN_PLACES, control);
    }

    fn queue_below(&mut self, places: usize, control: Control) {
        if self.control.len() >= places {
            self.counters.control_overflow += 1;
            return;
        }
        self.control.push_back(control);
    }
}
