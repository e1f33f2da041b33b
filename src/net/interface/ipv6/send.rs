//! The way down for IPv6: route, neighbour, headers, checksums.
//!
//! Read first: RFC 4861 section 5.2 (next hop), RFC 8200 section 8.1 (checksums), RFC 6437 section 3 (a flow label of zero is
//! allowed), `device::TxOffload` (who fills in what).

use std::net::{IpAddr, Ipv6Addr};

use super::OwnPacket;
use crate::buf::gather_len;
use crate::net::device::{Device, TxOffload};
use crate::net::interface::send::{HEADERS_MAX, ParkedPacket, TRANSPORT_HEADER_MAX, transport_checksum};
use crate::net::interface::{Interface, OutgoingPacket, SendRefused};
use crate::net::neighbour::Lookup;
use crate::time::Instant;
use crate::wire::ethernet::{Address, ethertype};
use crate::wire::ipv6;

impl Interface {
    pub(in crate::net::interface) fn try_send_v6<D: Device + ?Sized>(
        &mut self,
        now: Instant,
        device: &mut D,
        (src, dst): (Ipv6Addr, Ipv6Addr),
        packet: &OutgoingPacket<'_>,
    ) -> Result<(), SendRefused> {
        let octets = packet.transport_header.len() + gather_len(packet.payload);
        self.check_length(device.capabilities(), packet, octets, ipv6::HEADER_LEN)?;
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
                ipv6.neighbours.park(next_hop, ParkedPacket::of(packet));
                return Ok(());
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
        self.transmit_v6(device, mac, &header, packet, octets)?;
        self.counters.packets_out += 1;
        Ok(())
    }

    fn transmit_v6<D: Device + ?Sized>(
        &mut self,
        device: &mut D,
        mac: Address,
        header: &ipv6::Repr,
        packet: &OutgoingPacket<'_>,
        octets: usize,
    ) -> Result<(), SendRefused> {
        let mut transport = [0; TRANSPORT_HEADER_MAX];
        let transport_len = packet.transport_header.len().min(TRANSPORT_HEADER_MAX);
        let transport = &mut transport[..transport_len];
        transport.copy_from_slice(&packet.transport_header[..transport_len]);
        let mut offload = TxOffload { tso_mss: packet.tso_mss, ipv6: true, ..TxOffload::default() };
        let capabilities = *device.capabilities();
        transport_checksum(&mut self.counters, &capabilities, packet, packet.payload, octets, transport, &mut offload);
        let mut bytes = [0; HEADERS_MAX];
        let l2_len = self.put_link_header(&mut bytes, mac, ethertype::IPV6);
        let l4_at = l2_len + ipv6::HEADER_LEN;
        bytes[l2_len..l4_at].copy_from_slice(&header.emit());
        bytes[l4_at..l4_at + transport_len].copy_from_slice(transport);
        if offload.tcp_checksum || offload.udp_checksum {
            offload.l2_len = l2_len as u8;
            offload.l3_len = ipv6::HEADER_LEN as u8;
            offload.l4_len = transport_len as u8;
        }
        Ok(device.transmit(&bytes[..l4_at + transport_len], packet.payload, &offload)?)
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
