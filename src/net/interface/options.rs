//! What an interface is configured with, and what it counts.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::ipv6::{Ipv6Options, is_assignable};
use super::probe::ProbeOptions;
use crate::net::neighbour::NeighbourOptions;
use crate::time::Duration;
use crate::wire::{ethernet, ipv6};

/// RFC 791 section 3.2: every link carries 68 bytes; below 576 a host cannot take what others may send (RFC 1122 section 3.3.2).
const MTU_MIN: u16 = 576;

#[derive(Clone, Debug)]
pub struct InterfaceOptions {
    pub mac: [u8; 6],
    /// Largest IP packet, bytes.
    pub mtu: u16,
    /// The 802.1Q VLAN that the port is in: frames go out with its tag, and others are dropped. `None`: no tags.
    pub vlan: Option<u16>,
    /// Own addresses of both families with the length of their subnet's prefix, bits. At least one, unless IPv6 makes its own
    /// (`ipv6.slaac`).
    pub addresses: Vec<(IpAddr, u8)>,
    /// For every IPv4 address outside those subnets; must lie in one of them.
    pub gateway: Option<Ipv4Addr>,
    /// There is IPv6 if there is an address of it, or `slaac`.
    pub ipv6: Ipv6Options,
    /// Time to live of packets sent, hops (RFC 1122 section 3.2.1.7).
    pub time_to_live: u8,
    /// ARP's.
    pub neighbours: NeighbourOptions,
    /// How an IPv4 address is looked for before it is used.
    pub probe: ProbeOptions,
    /// Announcements of an address that is used now (RFC 5227 section 1.1: 2); 0: none.
    pub announcements: u32,
    /// Between them (RFC 5227 section 1.1: 2 s).
    pub announce_interval: Duration,
    /// Between two announcements that defend an address (RFC 5227 section 1.1: 10 s).
    pub defend_interval: Duration,
    /// ICMP errors sent (RFC 1812 section 4.3.2.8); 0: none.
    pub icmp_errors_per_second: u32,
    /// ICMP errors sent at once after a quiet time.
    pub icmp_errors_burst: u32,
    /// Answers (ARP, ICMP; as many again of IPv6's discovery) that wait for `poll_transmit`; more are dropped. What is asked or announced
    /// has places of its own.
    pub control_packets_max: usize,
}

impl InterfaceOptions {
    /// One address, used at once; everything else as recommended by the RFCs.
    pub fn new(mac: [u8; 6], mtu: u16, address: IpAddr, prefix: u8) -> InterfaceOptions {
        InterfaceOptions {
            mac,
            mtu,
            vlan: None,
            addresses: vec![(address, prefix)],
            gateway: None,
            ipv6: Ipv6Options::default(),
            time_to_live: 64,
            neighbours: NeighbourOptions::default(),
            probe: ProbeOptions::none(),
            announcements: 2,
            announce_interval: Duration::from_secs(2),
            defend_interval: Duration::from_secs(10),
            icmp_errors_per_second: 100,
            icmp_errors_burst: 20,
            control_packets_max: 64,
        }
    }

    /// The addresses, if everything makes sense.
    pub(super) fn check(&self) -> Result<CheckedAddresses, InterfaceError> {
        if !ethernet::Address(self.mac).is_unicast() {
            return Err(InterfaceError::Mac);
        }
        if self.mtu < MTU_MIN {
            return Err(InterfaceError::Mtu { mtu: self.mtu, mtu_min: MTU_MIN });
        }
        if self.vlan.is_some_and(|vlan| !(1..=ethernet::VLAN_ID_MAX).contains(&vlan)) {
            return Err(InterfaceError::Vlan { vlan: self.vlan.unwrap_or(0) });
        }
        if self.addresses.is_empty() && !self.ipv6.slaac {
            return Err(InterfaceError::NoAddress);
        }
        let mut addresses: Vec<(Ipv4Addr, u8)> = Vec::new();
        let mut addresses_v6: Vec<(Ipv6Addr, u8)> = Vec::new();
        for (at, &(address, prefix)) in self.addresses.iter().enumerate() {
            if self.addresses[..at].iter().any(|(other, _)| *other == address) {
                return Err(InterfaceError::Twice { address });
            }
            match address {
                IpAddr::V4(v4) if (1..=32).contains(&prefix) && is_host(v4) && !is_subnet_broadcast(v4, v4, prefix) => {
                    addresses.push((v4, prefix));
                }
                IpAddr::V6(v6) if is_assignable(v6, prefix) => addresses_v6.push((v6, prefix)),
                _ => return Err(InterfaceError::Address { address, prefix }),
            }
        }
        if let Some(gateway) = self.gateway {
            let reachable = |(address, prefix): &(Ipv4Addr, u8)| {
                same_subnet(*address, gateway, *prefix) && *address != gateway && !is_subnet_broadcast(*address, gateway, *prefix)
            };
            if !addresses.iter().any(reachable) {
                return Err(InterfaceError::Gateway { gateway: gateway.into() });
            }
        }
        let ipv6 = (!addresses_v6.is_empty() || self.ipv6.slaac).then_some(addresses_v6);
        self.check_ipv6(ipv6.as_deref())?;
        Ok(CheckedAddresses { addresses, gateway: self.gateway, ipv6 })
    }

    /// `addresses`: those of IPv6, if it is there at all.
    fn check_ipv6(&self, addresses: Option<&[(Ipv6Addr, u8)]>) -> Result<(), InterfaceError> {
        if addresses.is_some() && self.mtu < ipv6::MTU_MIN {
            return Err(InterfaceError::Mtu { mtu: self.mtu, mtu_min: ipv6::MTU_MIN });
        }
        let Some(gateway) = self.ipv6.gateway else { return Ok(()) };
        let addresses = addresses.unwrap_or(&[]);
        let is_own = addresses.iter().any(|(address, _)| *address == gateway);
        // A router's link-local address is always on the link (RFC 4861 section 2.1).
        let on_link = ipv6::is_link_local(gateway) && (!addresses.is_empty() || self.ipv6.slaac)
            || addresses.iter().any(|(address, prefix)| ipv6::same_prefix(*address, gateway, *prefix));
        match ipv6::is_host(gateway) && on_link && !is_own {
            true => Ok(()),
            false => Err(InterfaceError::Gateway { gateway: gateway.into() }),
        }
    }
}

/// Own addresses with their prefix lengths, and IPv4's gateway.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct CheckedAddresses {
    pub addresses: Vec<(Ipv4Addr, u8)>,
    pub gateway: Option<Ipv4Addr>,
    /// `None`: there is no IPv6 here.
    pub ipv6: Option<Vec<(Ipv6Addr, u8)>>,
}

/// What is wrong with the options.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InterfaceError {
    #[error("the MAC address is not that of one station")]
    Mac,
    #[error("an MTU of {mtu} bytes; at least {mtu_min} are needed")]
    Mtu { mtu: u16, mtu_min: u16 },
    #[error("no address")]
    NoAddress,
    #[error("{address} is given twice")]
    Twice { address: IpAddr },
    #[error("{address}/{prefix} is not the address of a host")]
    Address { address: IpAddr, prefix: u8 },
    #[error("the gateway {gateway} is in none of the interface's subnets, or is itself")]
    Gateway { gateway: IpAddr },
    #[error("there is no VLAN {vlan}; 1 to 4094 are possible")]
    Vlan { vlan: u16 },
}

/// Whether an address can be one host's, as far as one can tell without a subnet (RFC 1122 section 3.2.1.3, RFC 6890).
pub(super) fn is_host(address: Ipv4Addr) -> bool {
    // 0/8 "this network", 127/8 loopback, 224/4 multicast, 240/4 reserved and broadcast.
    !matches!(address.octets()[0], 0 | 127 | 224..=255)
}

fn mask(prefix: u8) -> u32 {
    u32::MAX.checked_shl(32 - u32::from(prefix.min(32))).unwrap_or(0)
}

pub(super) fn same_subnet(a: Ipv4Addr, b: Ipv4Addr, prefix: u8) -> bool {
    (a.to_bits() ^ b.to_bits()) & mask(prefix) == 0
}

/// Whether `address` is all ones or all zeroes in the host part of the subnet of `local`. Subnets of one or two addresses
/// have none (RFC 3021).
pub(super) fn is_subnet_broadcast(local: Ipv4Addr, address: Ipv4Addr, prefix: u8) -> bool {
    let host = !mask(prefix);
    prefix < 31 && same_subnet(local, address, prefix) && (address.to_bits() & host == host || address.to_bits() & host == 0)
}

crate::counters! {
    /// What one interface counts. Each received frame that goes no further adds to exactly one of the counters that say "dropped".
    pub struct InterfaceCounters {
        /// Frames received.
        frames_in,
        /// Dropped: shorter than an Ethernet header.
        ethernet_malformed,
        /// Dropped: the source MAC address is a group's, or our own (a loop, or a twin).
        ethernet_bad_source,
        /// Dropped: sent to another station.
        ethernet_not_ours,
        /// Dropped: of another VLAN, or without a tag where the port's VLAN has one.
        ethernet_other_vlan,
        /// Dropped: IPv6, of which this port has no address.
        ethernet_ipv6,
        /// Dropped: another EtherType.
        ethernet_unknown_type,
        /// ARP requests for our addresses, answered.
        arp_requests_in,
        /// ARP replies to us.
        arp_replies_in,
        /// ARP packets that were about others; learned from where RFC 826 says so.
        arp_other_in,
        /// Dropped: ARP packets too short or of other kinds.
        arp_malformed,
        /// Dropped: ARP packets whose sender cannot be a station on this link.
        arp_bad_sender,
        /// ARP packets from others that claim one of our addresses, or one that is being looked for.
        arp_conflicts,
        /// Announcements sent because of those.
        arp_defences,
        /// ARP probes sent for addresses that are not used yet.
        arp_probes,
        /// Times that another station had an address before it was used.
        arp_duplicates,
        /// ARP packets sent.
        arp_out,
        /// Dropped: IPv4 version or lengths wrong.
        ipv4_malformed,
        /// Dropped: IPv4 header checksum wrong.
        ipv4_bad_checksum,
        /// Dropped: IPv4 options malformed.
        ipv4_bad_options,
        /// Dropped: IPv4 source routes.
        ipv4_source_routed,
        /// Dropped: the source cannot be one host's address, or is ours.
        ipv4_martian_source,
        /// Dropped: IPv4 packets to a broadcast address; nothing here is served by broadcast.
        ipv4_broadcast,
        /// Dropped: IPv4 packets to a multicast address.
        ipv4_multicast,
        /// Dropped: IPv4 packets to somebody else, or to an address of ours not (yet) in use.
        ipv4_not_ours,
        /// Dropped: our address inside a link-layer broadcast.
        ipv4_link_broadcast,
        /// Dropped: fragments.
        ipv4_fragments,
        /// Dropped: protocols that are not served (answered with an ICMP error).
        ipv4_unknown_protocol,
        /// TCP segments handed up.
        tcp_in,
        /// UDP datagrams handed up.
        udp_in,
        /// Dropped: UDP header or length wrong.
        udp_malformed,
        /// Dropped: UDP checksum wrong.
        udp_bad_checksum,
        /// UDP datagrams to a port where nobody listens.
        udp_unreachable,
        /// UDP datagrams refused because they were longer than the MTU, over IPv6 than 1,280 bytes.
        udp_too_long,
        /// ICMP echo requests, answered.
        icmp_echo_in,
        /// ICMP errors handed up.
        icmp_errors_in,
        /// Dropped: ICMP messages too short.
        icmp_malformed,
        /// Dropped: ICMP checksum wrong.
        icmp_bad_checksum,
        /// Dropped: ICMP errors whose quoted packet is cut too short or is not ours.
        icmp_bad_quote,
        /// Dropped: ICMP messages of other types.
        icmp_ignored,
        /// ICMP errors queued.
        icmp_errors_out,
        /// ICMP errors not sent because of the rate limit.
        icmp_errors_limited,
        /// Own ICMP messages not made because there was no page for their payload.
        icmp_no_buffer,
        /// IP packets given to the device.
        packets_out,
        /// Packets refused: no route to the address.
        no_route,
        /// Packets refused: the neighbour does not answer.
        neighbour_unreachable,
        /// Packets refused: longer than the MTU, or than the device takes.
        too_long,
        /// Packets refused: more buffers than the device takes.
        too_many_segments,
        /// Packets refused for now: the device was full.
        device_full,
        /// Checksummed in software, bytes: the device does not offer it.
        software_checksum_octets,
        /// Own ICMP messages and datagrams dropped because their next hop was being asked for, and too many waited already.
        answers_not_parked,
        /// Own packets (ARP, ICMP) dropped because too many were waiting.
        control_overflow,
        /// Own or waiting packets dropped because they were refused when their turn came.
        own_packets_refused,
        /// Events lost because nobody fetched them.
        events_lost,
        /// Times the link came up.
        link_ups,
        /// Times the link went down.
        link_downs,
    }
    gauges {
        /// 1: the link is up, or its driver cannot tell.
        link_up,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options() -> InterfaceOptions {
        InterfaceOptions::new([2, 0, 0, 0, 0, 1], 1500, "10.0.0.1".parse().unwrap(), 24)
    }

    #[test]
    fn options_that_make_no_sense_are_refused_with_the_reason() {
        let addresses = vec![(Ipv4Addr::new(10, 0, 0, 1), 24)];
        assert_eq!(options().check(), Ok(CheckedAddresses { addresses, gateway: None, ipv6: None }));
        let with = |change: &dyn Fn(&mut InterfaceOptions)| {
            let mut options = options();
            change(&mut options);
            options.check().unwrap_err().to_string()
        };
        let ip = |text: &str| -> IpAddr { text.parse().unwrap() };
        assert_eq!(with(&|o| o.mac[0] = 3), "the MAC address is not that of one station");
        assert_eq!(with(&|o| o.mtu = 575), "an MTU of 575 bytes; at least 576 are needed");
        assert_eq!(with(&|o| o.addresses.clear()), "no address");
        assert_eq!(with(&|o| o.addresses.push(o.addresses[0])), "10.0.0.1 is given twice");
        for (text, prefix) in
            [("10.0.0.255", 24), ("10.0.0.0", 24), ("127.0.0.1", 8), ("224.0.0.1", 24), ("10.0.0.1", 33), ("10.0.0.1", 0)]
        {
            let message = format!("{text}/{prefix} is not the address of a host");
            assert_eq!(with(&|o| o.addresses = vec![(ip(text), prefix)]), message);
        }
        for (text, prefix) in [("::1", 64), ("ff02::1", 64), ("::ffff:10.0.0.9", 96), ("2001:db8::", 64), ("2001:db8::1", 0)] {
            let message = format!("{}/{prefix} is not the address of a host", ip(text));
            assert_eq!(with(&|o| o.addresses.push((ip(text), prefix))), message);
        }
        for gateway in ["10.0.1.1", "10.0.0.1", "10.0.0.255"] {
            let message = format!("the gateway {gateway} is in none of the interface's subnets, or is itself");
            assert_eq!(with(&|o| o.gateway = Some(gateway.parse().unwrap())), message);
        }
        assert_eq!(with(&|o| o.vlan = Some(0)), "there is no VLAN 0; 1 to 4094 are possible");
        assert_eq!(with(&|o| o.vlan = Some(4095)), "there is no VLAN 4095; 1 to 4094 are possible");
    }

    #[test]
    fn ipv6_has_rules_of_its_own() {
        let dual = |change: &dyn Fn(&mut InterfaceOptions)| {
            let mut options = options();
            options.addresses.push(("2001:db8::2".parse().unwrap(), 64));
            change(&mut options);
            options.check().map(|checked| checked.ipv6).map_err(|error| error.to_string())
        };
        assert_eq!(dual(&|_| ()), Ok(Some(vec![("2001:db8::2".parse().unwrap(), 64)])));
        assert_eq!(dual(&|o| o.mtu = 1279).unwrap_err(), "an MTU of 1279 bytes; at least 1280 are needed");
        for (gateway, good) in
            [("2001:db8::1", true), ("fe80::1", true), ("2001:db9::1", false), ("2001:db8::2", false), ("ff02::2", false)]
        {
            assert_eq!(dual(&|o| o.ipv6.gateway = Some(gateway.parse().unwrap())).is_ok(), good, "{gateway}");
        }
        let only_slaac = InterfaceOptions { addresses: Vec::new(), ..options() };
        assert_eq!(only_slaac.check(), Err(InterfaceError::NoAddress));
        let only_slaac = InterfaceOptions { ipv6: Ipv6Options { slaac: true, ..Ipv6Options::default() }, ..only_slaac };
        assert_eq!(only_slaac.check().map(|checked| checked.ipv6), Ok(Some(Vec::new())));
    }

    #[test]
    fn subnets_of_every_size() {
        let [a, b] = ["10.0.0.0", "10.0.0.1"].map(|text| text.parse().unwrap());
        assert!(same_subnet(a, b, 31) && !same_subnet(a, b, 32) && same_subnet(a, b, 0));
        assert!(!is_subnet_broadcast(b, a, 31) && is_subnet_broadcast(b, a, 30));
    }
}
