//! What a router behind the in-memory link says to the sender of a packet that is too long for what comes next.
//!
//! Read first: RFC 1191 section 4, RFC 4443 section 3.2. An IPv4 error quotes as little as RFC 792 allows, an IPv6 one as much as fits the
//! least MTU. The router bears the address of the packet's destination, so it needs none of its own.

use crate::wire::{ethernet, icmpv4, icmpv6, ipv4, ipv6, protocol};

const TIME_TO_LIVE: u8 = 64;

/// The frame that tells the sender of `frame` an MTU of `mtu` bytes; `None` where a router would say nothing: to what it may cut, or does
/// not understand.
pub fn too_long(frame: &[u8], mtu: u16) -> Option<Vec<u8>> {
    let link = ethernet::Frame::new(frame).ok()?;
    let (link_header, packet) = frame.split_at_checked(link.header_len())?;
    let answer = match link.ethertype() {
        ethernet::ethertype::IPV4 => too_long_v4(packet, mtu)?,
        ethernet::ethertype::IPV6 => too_long_v6(packet, mtu)?,
        _ => return None,
    };
    let (dst, rest) = link_header.split_at_checked(6)?;
    let (src, rest) = rest.split_at_checked(6)?;
    Some([src, dst, rest, &answer].concat())
}

fn too_long_v4(packet: &[u8], mtu: u16) -> Option<Vec<u8>> {
    let ip = ipv4::Repr::parse(&ipv4::Packet::new(packet, packet.len()).ok()?).ok().filter(|ip| ip.dont_fragment)?;
    let quote = packet.get(..ipv4::HEADER_LEN + 8)?;
    let icmp = icmpv4::Repr::DestinationUnreachable { code: icmpv4::unreachable::FRAGMENTATION_NEEDED, mtu }.emit([quote]);
    let ip = ipv4::Repr {
        src: ip.dst,
        dst: ip.src,
        protocol: protocol::ICMPV4,
        traffic_class: 0,
        identification: 0,
        dont_fragment: true,
        time_to_live: TIME_TO_LIVE,
        payload_len: (icmp.len() + quote.len()) as u16,
    };
    Some([&ip.emit()[..], &icmp, quote].concat())
}

fn too_long_v6(packet: &[u8], mtu: u16) -> Option<Vec<u8>> {
    let view = ipv6::Packet::new(packet, packet.len()).ok()?;
    let quote_len_max = usize::from(ipv6::MTU_MIN) - ipv6::HEADER_LEN - icmpv6::HEADER_LEN;
    let quote = packet.get(..packet.len().min(quote_len_max))?;
    let icmp = icmpv6::Repr::PacketTooBig { mtu: mtu.into() }.emit(view.dst(), view.src(), &[quote]);
    let ip = ipv6::Repr {
        src: view.dst(),
        dst: view.src(),
        next_header: protocol::ICMPV6,
        traffic_class: 0,
        flow_label: 0,
        hop_limit: TIME_TO_LIVE,
        payload_len: (icmp.len() + quote.len()) as u16,
    };
    Some([&ip.emit()[..], &icmp, quote].concat())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `link` and a packet from 10.0.0.1 to 10.0.0.2 with eight bytes behind its header that an error quotes, and more.
    fn frame(link: &[u8], dont_fragment: bool) -> Vec<u8> {
        let ip = ipv4::Repr {
            src: [10, 0, 0, 1].into(),
            dst: [10, 0, 0, 2].into(),
            protocol: protocol::TCP,
            traffic_class: 2,
            identification: 9,
            dont_fragment,
            time_to_live: 7,
            payload_len: 40,
        };
        [link, &ip.emit(), &[5; 40]].concat()
    }

    #[test]
    fn who_sent_too_much_is_told_in_the_vlan_it_came_from() {
        let plain = [1, 1, 1, 1, 1, 1, 2, 2, 2, 2, 2, 2, 8, 0];
        let tagged = [1, 1, 1, 1, 1, 1, 2, 2, 2, 2, 2, 2, 0x81, 0, 0, 42, 8, 0];
        for link in [&plain[..], &tagged] {
            let sent = frame(link, true);
            let told = too_long(&sent, 1400).unwrap();
            assert_eq!((&told[..6], &told[6..12], &told[12..link.len()]), (&[2; 6][..], &[1; 6][..], &link[12..]));
            let view = ipv4::Packet::new(&told[link.len()..], told.len() - link.len()).unwrap();
            assert_eq!((view.src(), view.dst(), view.protocol()), ([10, 0, 0, 2].into(), [10, 0, 0, 1].into(), protocol::ICMPV4));
            let error = icmpv4::Packet::new(view.payload()).unwrap();
            let kind = icmpv4::Repr::DestinationUnreachable { code: icmpv4::unreachable::FRAGMENTATION_NEEDED, mtu: 1400 };
            assert_eq!((icmpv4::Repr::parse(&error), error.data()), (kind, &sent[link.len()..link.len() + 28]));
        }
    }

    #[test]
    fn what_may_be_cut_or_is_no_packet_is_no_reason_to_speak() {
        let link = [1, 1, 1, 1, 1, 1, 2, 2, 2, 2, 2, 2, 8, 0];
        let sent = frame(&link, true);
        assert_eq!(too_long(&frame(&link, false), 1400), None);
        assert_eq!(too_long(&[&sent[..12], &[8, 6], &sent[14..]].concat(), 1400), None, "ARP");
        assert!((0..41).all(|len| too_long(&sent[..len], 1400).is_none()));
    }
}
