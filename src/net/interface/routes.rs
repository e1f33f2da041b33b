//! Which MAC address a packet goes to: the route and the neighbour behind it, remembered for a moment with the headers that follow from
//! them.
//!
//! Read first: RFC 1122 section 3.3.1 (the route cache of section 3.3.1.3 is this one). An answer is believed for `BELIEVED`, so that
//! the neighbour table still learns which of its entries are in use, and asks again in time; anything the table hears or
//! gives up empties the cache.

use std::net::Ipv4Addr;

use super::{Interface, SendRefused};
use crate::net::neighbour::Lookup;
use crate::time::{Duration, Instant, nanos_of};
use crate::wire::checksum::Sum;
use crate::wire::ethernet::{self, ethertype};
use crate::wire::ipv4;

/// Destinations that are remembered, each in the place that its address says: a power of two.
const ROUTES: usize = 64;

/// How long an answer of the neighbour table is used without asking it again.
const BELIEVED: Duration = Duration::from_millis(10);

/// Octets of a link header with a tag, and of an IPv4 header.
const TEMPLATE_MAX: usize = ethernet::TAGGED_HEADER_LEN + ipv4::HEADER_LEN;

/// The headers of the link and of IPv4 that all packets to one destination have, but for what is each packet's own.
#[derive(Clone, Copy)]
pub(super) struct Template {
    octets: [u8; TEMPLATE_MAX],
    link_len: u8,
    /// RFC 1071's sum over what of the IPv4 header is filled in, not folded.
    header_sum: u32,
    /// The same over both addresses.
    pub addresses_sum: u32,
}

impl Template {
    fn new(link: &[u8], ip: &ipv4::Repr) -> Template {
        let header = ip.emit_without_checksum();
        let mut octets = [0; TEMPLATE_MAX];
        let link_len = link.len().min(ethernet::TAGGED_HEADER_LEN);
        octets[..link_len].copy_from_slice(&link[..link_len]);
        octets[link_len..link_len + ipv4::HEADER_LEN].copy_from_slice(&header);
        // The length is the packet's own.
        octets[link_len + 2..link_len + 4].fill(0);
        let sum = |octets: &[u8]| {
            let mut sum = Sum::new();
            sum.add(octets);
            u32::from(sum.partial())
        };
        let header_sum = sum(&octets[link_len..link_len + ipv4::HEADER_LEN]);
        let addresses_sum = sum(&ip.src.octets()) + sum(&ip.dst.octets());
        Template { octets, link_len: link_len as u8, header_sum, addresses_sum }
    }

    /// Writes both headers in front; tells the length of the link's. `total_len` in octets, IPv4 header included.
    #[inline]
    pub fn put<const N: usize>(
        &self,
        out: &mut [u8; N],
        traffic_class: u8,
        total_len: u16,
        protocol: u8,
        with_checksum: bool,
    ) -> usize {
        const { assert!(N >= TEMPLATE_MAX) };
        out[..TEMPLATE_MAX].copy_from_slice(&self.octets);
        let link_len = usize::from(self.link_len);
        if let Some(ip) = out[link_len..].first_chunk_mut::<{ ipv4::HEADER_LEN }>() {
            ip[1] = traffic_class;
            [ip[2], ip[3]] = total_len.to_be_bytes();
            ip[9] = protocol;
            if with_checksum {
                let sum = self.header_sum + u32::from(traffic_class) + u32::from(total_len) + u32::from(protocol);
                [ip[10], ip[11]] = (!fold(sum)).to_be_bytes();
            }
        }
        link_len
    }
}

/// RFC 1071 section 4.1: carries come round.
#[inline]
pub(super) fn fold(sum: u32) -> u16 {
    let sum = (sum >> 16) + (sum & 0xffff);
    ((sum >> 16) + (sum & 0xffff)) as u16
}

#[derive(Clone, Copy)]
struct Route {
    src: Ipv4Addr,
    dst: Ipv4Addr,
    until: Instant,
    template: Template,
}

/// The latest answers.
pub(super) struct Routes([Route; ROUTES]);

impl Default for Routes {
    fn default() -> Routes {
        let (src, dst) = (Ipv4Addr::UNSPECIFIED, Ipv4Addr::UNSPECIFIED);
        let template = Template { octets: [0; TEMPLATE_MAX], link_len: 0, header_sum: 0, addresses_sum: 0 };
        Routes([Route { src, dst, until: Instant::ZERO, template }; ROUTES])
    }
}

impl Routes {
    #[inline]
    fn place(dst: Ipv4Addr) -> usize {
        // The last octet says most.
        usize::from(dst.octets()[3]) % ROUTES
    }

    #[inline]
    pub(super) fn knows(&self, now: Instant, src: Ipv4Addr, dst: Ipv4Addr) -> bool {
        let route = &self.0[Routes::place(dst)];
        route.dst == dst && route.src == src && now < route.until
    }

    /// Of the destination that was asked for last.
    #[inline]
    pub(super) fn template(&self, dst: Ipv4Addr) -> &Template {
        &self.0[Routes::place(dst)].template
    }

    fn remember(&mut self, now: Instant, src: Ipv4Addr, dst: Ipv4Addr, template: Template) {
        self.0[Routes::place(dst)] = Route { src, dst, until: now.after_nanos(nanos_of(BELIEVED)), template };
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
    /// The headers to it are in `Routes::template`.
    Known,
    /// The next hop, which is being asked for its MAC address: park the packet.
    Unresolved(Ipv4Addr),
}

impl Interface {
    #[inline]
    pub(super) fn hop(&mut self, now: Instant, src: Ipv4Addr, dst: Ipv4Addr) -> Result<Hop, SendRefused> {
        if self.routes.knows(now, src, dst) { Ok(Hop::Known) } else { self.find_hop(now, src, dst) }
    }

    fn find_hop(&mut self, now: Instant, src: Ipv4Addr, dst: Ipv4Addr) -> Result<Hop, SendRefused> {
        let next_hop = self.next_hop(src, dst).ok_or(SendRefused::NoRoute)?;
        match self.neighbours.lookup(now, next_hop.into()) {
            Lookup::Resolved(mac) => {
                let mut link = [0; super::send::HEADERS_MAX];
                let link_len = self.put_link_header(&mut link, mac, ethertype::IPV4);
                let ip = ipv4::Repr {
                    src,
                    dst,
                    protocol: 0,
                    traffic_class: 0,
                    // RFC 6864 section 4.1: a packet that must not be fragmented may carry any value; 0 tells nobody how much we send.
                    identification: 0,
                    // RFC 1191 section 3 for TCP; the rest fits the MTU and is not worth a reassembly either.
                    dont_fragment: true,
                    time_to_live: self.options.time_to_live,
                    payload_len: 0,
                };
                self.routes.remember(now, src, dst, Template::new(&link[..link_len], &ip));
                Ok(Hop::Known)
            }
            Lookup::Unresolved => Ok(Hop::Unresolved(next_hop)),
            Lookup::Failed => Err(SendRefused::NeighbourUnreachable),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_template_makes_the_header_that_ipv4_makes() {
        for link in [&[7; ethernet::HEADER_LEN][..], &[9; ethernet::TAGGED_HEADER_LEN]] {
            for (traffic_class, payload_len, protocol) in [(0, 0, 6), (2, 1480, 6), (0xff, 65_515, 255), (1, 8, 17)] {
                let whole = ipv4::Repr {
                    src: [10, 255, 255, 2].into(),
                    dst: [203, 0, 113, 255].into(),
                    protocol,
                    traffic_class,
                    identification: 0,
                    dont_fragment: true,
                    time_to_live: 255,
                    payload_len,
                };
                let template = Template::new(link, &ipv4::Repr { protocol: 0, traffic_class: 0, payload_len: 0, ..whole });
                for with_checksum in [false, true] {
                    let mut out = [0; 64];
                    let total_len = payload_len + ipv4::HEADER_LEN as u16;
                    assert_eq!(template.put(&mut out, traffic_class, total_len, protocol, with_checksum), link.len());
                    let expected = if with_checksum { whole.emit() } else { whole.emit_without_checksum() };
                    assert_eq!((&out[..link.len()], &out[link.len()..link.len() + 20]), (link, &expected[..]));
                }
            }
        }
    }
}
