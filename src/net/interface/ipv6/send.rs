//! The way down for IPv6: route, neighbour, headers, checksums.
//!
//! Read first: RFC 4861 section 5.2 (next hop), RFC 8200 section 8.1 (checksums), RFC 6437 section 3 (a flow label of zero is
//! allowed), `device::TxOffload` (who fills in what).

use std::net::{IpAddr, Ipv6Addr};

use super::OwnPacket;
use crate::buf::Slice;
use crate::net::device::{Device, DeviceCapabilities, TxOffload};
use crate::net::interface::send::{HEADERS_MAX, transport_checksum};
use crate::net::interface::{Interface, OutgoingPacket, SendRefused};
use crate::net::neighbour::Lookup;
use crate::time::Instant;
use crate::wire::ethernet::{Address, ethertype};
use crate::wire::ipv6;

impl Interface {
    /// `Interface::prepare` for IPv6.
    pub(in crate::net::interface) fn prepare_v6(
        &mut self,
        now: Instant,
        capabilities: &DeviceCapabilities,
        (src, dst): (Ipv6Addr, Ipv6Addr),
        packet: &OutgoingPacket<'_>,
        payload: &[Slice],
        octets: usize,
    ) -> Result<bool, SendRefused> {
        self.check_length(capabilities, packet, octets, ipv6::HEADER_LEN)?;
        let ipv6 = self.ipv6.as_mut().ok_or(SendRefused::NoRoute)?;
        let longest = packet.tso_mss.map_or(octets, |mss| packet.transport_header.len() + usize::from(mss));
        if ipv6::HEADER_LEN + longest > usize::from(ipv6.link_mtu) {
            ipv6.counters.beyond_link_mtu += 1;
            return Err(SendRefused::BeyondLinkMtu { mtu: ipv6.link_mtu });
        }
        if !ipv6.is_own(src) || !ipv6::is_host(dst) || ipv6.is_own(dst) {
            return Err(SendRefused::NoRoute);
        }
        let next_hop = IpAddr::V6(ipv6.next_hop(now, dst).ok_or(SendRefused::NoRoute)?);
        let mac = match ipv6.neighbours.lookup(now, next_hop) {
            Lookup::Resolved(mac) => mac,
            Lookup::Unresolved => {
                self.park(next_hop, &OutgoingPacket { payload, ..*packet });
                return Ok(false);
            }
            Lookup::Failed => return Err(SendRefused::NeighbourUnreachable),
        };
        let header = ipv6::Repr {
            src,
            dst,
            next_header: packet.protocol,
            traffic_class: packet.traffic_class,
            flow_label: 0,
            hop_limit: ipv6.hop_limit,
            // At most 65,535 - 40 by `check_length`.
            payload_len: octets as u16,
        };
        self.put_headers_v6(capabilities, mac, &header, packet, payload, octets);
        Ok(true)
    }

    fn put_headers_v6(
        &mut self,
        capabilities: &DeviceCapabilities,
        mac: Address,
        header: &ipv6::Repr,
        packet: &OutgoingPacket<'_>,
        payload: &[Slice],
        octets: usize,
    ) {
        let mut link = [0; HEADERS_MAX];
        let l2_len = self.put_link_header(&mut link, mac, ethertype::IPV6);
        let l4_at = l2_len + ipv6::HEADER_LEN;
        // At most TRANSPORT_HEADER_MAX by `check_length`.
        let l4_len = packet.transport_header.len();
        let Interface { headers, counters, .. } = self;
        headers.bytes[..l2_len].copy_from_slice(&link[..l2_len]);
        headers.bytes[l2_len..l4_at].copy_from_slice(&header.emit());
        let transport = &mut headers.bytes[l4_at..l4_at + l4_len];
        transport.copy_from_slice(packet.transport_header);
        let offload = TxOffload { tso_mss: packet.tso_mss, ipv6: true, ..TxOffload::default() };
        let mut offload = transport_checksum(counters, capabilities, *packet, payload, octets, transport, offload);
        if offload.tcp_checksum || offload.udp_checksum {
            (offload.l2_len, offload.l3_len, offload.l4_len) = (l2_len as u8, ipv6::HEADER_LEN as u8, l4_len as u8);
        }
        (headers.len, headers.offload) = (l4_at + l4_len, offload);
    }

    /// Discovery, a listener report: a packet that is whole.
    pub(in crate::net::interface) fn send_own_v6<D: Device + ?Sized>(
        &mut self,
        device: &mut D,
        packet: &OwnPacket,
    ) -> Result<(), SendRefused> {
        let mut frame: smallvec::SmallVec<[u8; 128]> = smallvec::SmallVec::new();
        let mut link = [0; HEADERS_MAX];
        let l2_len = self.put_link_header(&mut link, packet.mac, ethertype::IPV6);
        frame.extend_from_slice(&link[..l2_len]);
        frame.extend_from_slice(&packet.bytes);
        device.transmit(&frame, &[], &TxOffload::default())?;
        self.counters.packets_out += 1;
        Ok(())
    }
}
