//! What an interface's IPv6 is configured with, and what it counts.

use std::net::Ipv6Addr;

use crate::net::neighbour::NeighbourOptions;
use crate::time::Duration;
use crate::wire::ipv6;

#[derive(Clone, Debug)]
pub struct Ipv6Options {
    /// Listen to routers: take prefixes, default routers and timers from their advertisements, and make addresses (RFC 4862).
    /// Otherwise advertisements are ignored: what was configured is all there is.
    pub slaac: bool,
    /// For everything that is not on the link; goes before routers that advertise themselves.
    pub gateway: Option<Ipv6Addr>,
    /// Another core runs an interface on the same port, and leads: addresses, routers and prefixes come from it
    /// (`Interface::follow`), those of IPv4 too. Nothing is looked for, reported or answered that concerns the port as a whole.
    pub follows: bool,
    /// Key of the interface identifiers (RFC 7217 section 5: `secret_key`) and of random delays. The same after each restart,
    /// or addresses change.
    pub secret: [u8; 16],
    /// Tells this interface from the others of this server, the same after each restart (RFC 7217 section 5: `Net_Iface`).
    pub interface_name: String,
    pub neighbours: NeighbourOptions,
    /// Solicitations that look for another station with an address of ours (RFC 4862 section 5.1: DupAddrDetectTransmits); 0: none,
    /// addresses are used at once.
    pub duplicate_detections: u32,
    /// Between them, and between solicitations of a neighbour, until a router says otherwise (RFC 4861 section 10: RETRANS_TIMER).
    pub retransmit: Duration,
    /// A configured address that another station has is tried again after this long.
    pub duplicate_retry: Duration,
    /// Unsolicited advertisements of an address just assigned (RFC 4861 section 7.2.6: at most 3).
    pub announcements: u32,
    /// First wait for an answer to a router solicitation (RFC 7559 section 2: 4 s); doubled each time.
    pub router_solicitation_first: Duration,
    /// Longest wait (RFC 7559 section 2: 3600 s).
    pub router_solicitation_max: Duration,
    /// Addresses, configured and made; no more are made from prefixes.
    pub addresses_max: usize,
    /// Prefixes on the link that routers have told; more are ignored.
    pub prefixes_max: usize,
    /// Default routers; more are ignored.
    pub routers_max: usize,
}

impl Default for Ipv6Options {
    fn default() -> Ipv6Options {
        Ipv6Options {
            slaac: false,
            follows: false,
            gateway: None,
            secret: [0; 16],
            interface_name: String::new(),
            neighbours: NeighbourOptions::discovery(),
            duplicate_detections: 1,
            retransmit: Duration::from_secs(1),
            duplicate_retry: Duration::from_secs(60),
            announcements: 2,
            router_solicitation_first: Duration::from_secs(4),
            router_solicitation_max: Duration::from_secs(3600),
            addresses_max: 16,
            prefixes_max: 16,
            routers_max: 8,
        }
    }
}

/// Whether an address with this prefix length can be one of ours: a host's, which is not its subnet's router anycast address
/// (RFC 4291 section 2.6.1; links of two, RFC 6164, have none).
pub(in crate::net::interface) fn is_assignable(address: Ipv6Addr, prefix: u8) -> bool {
    let host_bits = address.to_bits() & u128::MAX.checked_shr(prefix.into()).unwrap_or(0);
    ipv6::is_host(address) && (1..=128).contains(&prefix) && (prefix >= 127 || host_bits != 0)
}

crate::counters! {
    /// What one interface's IPv6 counts. Each received packet that goes no further adds to exactly one of the counters that say
    /// "dropped".
    pub struct Ipv6Counters {
        /// IPv6 packets received.
        packets_in,
        /// Dropped: version or lengths wrong.
        malformed,
        /// Dropped: extension headers that do not fit the packet.
        bad_chain,
        /// Dropped: more extension headers or options than are walked.
        chain_too_long,
        /// Dropped: an unknown option that asks for it.
        discarded_by_option,
        /// Dropped: an unknown option, or a route to follow (answered with an ICMP error where that is allowed).
        parameter_problems,
        /// Dropped: nothing behind the headers.
        no_next_header,
        /// Dropped: the source cannot be one host's address, or is ours.
        martian_source,
        /// Dropped: to a group of which this host is no member, or for which it serves nothing.
        multicast,
        /// Dropped: to somebody else, or to an address of ours not (yet) assigned.
        not_ours,
        /// Dropped: our address inside a link-layer multicast.
        link_broadcast,
        /// Dropped: fragments.
        fragments,
        /// Dropped: protocols that are not served (answered with an ICMP error).
        unknown_protocol,
        /// TCP segments handed up.
        tcp_in,
        /// UDP datagrams handed up.
        udp_in,
        /// Dropped: UDP header or length wrong.
        udp_malformed,
        /// Dropped: UDP checksum wrong, or none.
        udp_bad_checksum,
        /// UDP datagrams to a port where nobody listens.
        udp_unreachable,
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
        /// Dropped: "packet too big" with an MTU below 1280, which no link has.
        icmp_bad_mtu,
        /// Dropped: ICMP messages of other types.
        icmp_ignored,
        /// ICMP errors queued.
        icmp_errors_out,
        /// ICMP errors not sent because of the rate limit.
        icmp_errors_limited,
        /// ICMP errors not sent because RFC 4443 section 2.4(e) forbids them.
        icmp_errors_forbidden,
        /// Own ICMP messages not made because there was no page for their payload.
        icmp_no_buffer,
        /// Dropped: neighbour discovery from beyond the link (a hop limit below 255).
        nd_bad_hop_limit,
        /// Dropped: neighbour discovery behind a fragment header.
        nd_fragments,
        /// Dropped: neighbour discovery messages that RFC 4861 says to discard.
        nd_malformed,
        /// Neighbour solicitations for our addresses, answered.
        nd_solicitations_in,
        /// Neighbour advertisements.
        nd_advertisements_in,
        /// Neighbour discovery messages that were for others.
        nd_other_in,
        /// Router advertisements heard.
        router_advertisements_in,
        /// Router advertisements ignored: `slaac` is off.
        router_advertisements_ignored,
        /// MTUs in router advertisements that are not followed: below 1280, or above the port's.
        router_mtus_ignored,
        /// Packets refused: longer than the MTU that a router has told (TCP sends them again, in smaller ones).
        beyond_link_mtu,
        /// Redirects, which are ignored.
        redirects_ignored,
        /// Addresses of ours that another station had before.
        duplicates,
        /// Advertisements by others of addresses that are ours.
        conflicts,
        /// Prefixes, routers and addresses that were not taken because a maximum was reached.
        advertised_overflow,
        /// Neighbour solicitations sent.
        nd_solicitations_out,
        /// Neighbour advertisements sent.
        nd_advertisements_out,
        /// Router solicitations sent.
        router_solicitations_out,
        /// Multicast listener queries.
        mld_queries_in,
        /// Multicast listener reports sent.
        mld_reports_out,
        /// Own packets (discovery, listener reports) dropped because too many were waiting.
        control_overflow,
    }
    gauges {
        /// Addresses in use.
        addresses,
        /// Largest packet sent, bytes: the port's MTU, or what a router has told.
        link_mtu,
        /// Addresses being looked for, or that another station has.
        addresses_unassigned,
        /// Default routers that routers have told.
        routers,
        /// Prefixes on the link that routers have told.
        prefixes,
    }
}
