//! Header prediction below TCP: a frame whose headers say what those of an earlier good frame said passes without its checks.
//!
//! Read first: `receive`, whose checks this stands for, and Van Jacobson's header prediction. Only what cannot differ between frames
//! of one sender is remembered: addresses on the link, EtherType, version and header length, protocol, IP addresses. What can differ
//! is looked at each time: the checksum, the length, fragmentation.

use std::net::{IpAddr, Ipv4Addr};
use std::ops::Range;

use super::{Ingress, Interface};
use crate::buf::RxBuf;
use crate::net::device::{Checksum, RxFrame};
use crate::wire::ethernet;
use crate::wire::ipv4;
use crate::wire::protocol;

/// Senders that are remembered, each in the place that its address says: a power of two.
const SENDERS: usize = 64;

/// Octets of the two headers, without tag and options.
const HEADERS: usize = ethernet::HEADER_LEN + ipv4::HEADER_LEN;

// Words here are octets as they lie: they are compared, not computed with, so nothing turns them round.

/// EtherType and the first octet of an IPv4 header without options, in octets 8 to 15.
const IPV4_WITHOUT_OPTIONS: u64 = 0x0800_4500_u64.to_be();
const IPV4_MASK: u64 = 0xffff_ff00_u64.to_be();
/// The last of them: differentiated services and ECN.
const TRAFFIC_CLASS: u64 = 0xff_u64.to_be();

/// No more fragments, offset 0, and the protocol, in octets 16 to 23.
const TCP_UNFRAGMENTED: u64 = (protocol::TCP as u64).to_be();
const TCP_MASK: u64 = 0x3fff_00ff_u64.to_be();

/// What all TCP frames of one sender to one of our addresses have in common.
#[derive(Clone, Copy, Default)]
struct Sender {
    /// Octets 0 to 7: destination, and the first two of the source.
    link: u64,
    /// Octets 8 to 14: the rest of the source, EtherType, version and header length; then 0.
    link_rest: u64,
    /// Octets 26 to 33: source and destination.
    addresses: u64,
}

/// The senders of frames that passed all checks.
pub(super) struct Recognised([Sender; SENDERS]);

impl Default for Recognised {
    fn default() -> Recognised {
        // No frame's: there the traffic class is left out.
        Recognised([Sender { link_rest: TRAFFIC_CLASS, ..Sender::default() }; SENDERS])
    }
}

/// A TCP frame over IPv4, in so far as its headers are of the plain kind.
#[derive(Clone, Copy)]
pub(super) struct PlainTcp {
    sender: Sender,
    traffic_class: u8,
    /// Where in the frame the IP packet ends.
    end: usize,
}

impl PlainTcp {
    /// `None`: tagged, with options, a fragment, not TCP, too short, or with a wrong checksum of the header.
    pub(super) fn of(frame: &RxFrame) -> Option<PlainTcp> {
        let headers: &[u8; HEADERS] = frame.packet.first.first_chunk()?;
        let link_rest = word(headers, 8);
        if (link_rest ^ IPV4_WITHOUT_OPTIONS) & IPV4_MASK != 0 {
            return None;
        }
        let sender = Sender { link: word(headers, 0), link_rest: link_rest & !TRAFFIC_CLASS, addresses: word(headers, 26) };
        PlainTcp::from(frame, headers, sender)
    }

    /// The same of a frame of which it is known that all that `sender` says is right.
    #[inline(always)]
    fn from(frame: &RxFrame, headers: &[u8; HEADERS], sender: Sender) -> Option<PlainTcp> {
        let total_len = usize::from(u16::from_be_bytes([headers[16], headers[17]]));
        let end = ethernet::HEADER_LEN + total_len;
        if (word(headers, 16) ^ TCP_UNFRAGMENTED) & TCP_MASK != 0
            || end < HEADERS
            || (end > frame.packet.first.len() && end > frame.packet.len())
        {
            return None;
        }
        let intact = match frame.ip_checksum {
            Checksum::Good => true,
            Checksum::Bad => false,
            Checksum::Unknown => header_sum(headers) == 0xffff,
        };
        intact.then_some(PlainTcp { sender, traffic_class: headers[15], end })
    }

    #[inline]
    fn addresses(&self) -> (Ipv4Addr, Ipv4Addr) {
        let [a, b, c, d, rest @ ..] = self.sender.addresses.to_ne_bytes();
        (Ipv4Addr::new(a, b, c, d), rest.into())
    }
}

/// Eight octets of the headers as they lie.
#[inline(always)]
fn word(headers: &[u8; HEADERS], at: usize) -> u64 {
    headers[at..].first_chunk().map_or(0, |octets| u64::from_ne_bytes(*octets))
}

/// RFC 1071 over the IPv4 header: 0xffff if it is intact. Many devices do not look (virtio never does), and of a header without
/// options five words are quickly summed.
#[inline]
fn header_sum(headers: &[u8; HEADERS]) -> u16 {
    // RFC 1071 section 2(B): a sum in the other byte order is the sum with its octets exchanged, and 0xffff stays what it is.
    let words = headers[ethernet::HEADER_LEN..].chunks_exact(4);
    let sum: u64 = words.map(|word| u64::from(u32::from_ne_bytes([word[0], word[1], word[2], word[3]]))).sum();
    let sum = (sum >> 32) + (sum & 0xffff_ffff);
    let sum = (sum >> 32) + (sum & 0xffff_ffff);
    let sum = (sum >> 16) + (sum & 0xffff);
    let sum = (sum >> 16) + (sum & 0xffff);
    ((sum >> 16) + (sum & 0xffff)) as u16
}

impl Recognised {
    /// The frame, if it is one of a sender that is known.
    #[inline(always)]
    pub(super) fn find(&self, frame: &RxFrame) -> Option<PlainTcp> {
        let headers: &[u8; HEADERS] = frame.packet.first.first_chunk()?;
        let addresses = word(headers, 26);
        let known = &self.0[Recognised::place(addresses)];
        let link_rest = word(headers, 8) & !TRAFFIC_CLASS;
        // One branch, not three.
        if (known.link ^ word(headers, 0)) | (known.link_rest ^ link_rest) | (known.addresses ^ addresses) != 0 {
            return None;
        }
        PlainTcp::from(frame, headers, *known)
    }

    /// The last octet of the source.
    #[inline(always)]
    fn place(addresses: u64) -> usize {
        usize::from(addresses.to_ne_bytes()[3]) % SENDERS
    }

    /// The frame has passed all checks.
    pub(super) fn remember(&mut self, tcp: &PlainTcp) {
        self.0[Recognised::place(tcp.sender.addresses)] = tcp.sender;
    }
}

/// A TCP segment over IPv4 where the device put it, in one buffer.
pub struct SegmentInPlace<'a> {
    pub src: Ipv4Addr,
    pub dst: Ipv4Addr,
    pub buf: &'a mut RxBuf,
    /// Where it is in `buf`.
    pub range: Range<usize>,
    pub checksum: Checksum,
}

impl Interface {
    /// What `receive_ethernet` makes of a frame from a recognised sender, unless `take` takes it as it lies.
    #[inline]
    pub(super) fn receive_recognised(
        &mut self,
        tcp: &PlainTcp,
        frame: &mut RxFrame,
        take: impl FnOnce(SegmentInPlace<'_>) -> bool,
    ) -> Option<Ingress> {
        self.counters.tcp_in += 1;
        let (src, dst) = tcp.addresses();
        let (checksum, end) = (frame.l4_checksum, tcp.end);
        if frame.packet.more.is_empty()
            && take(SegmentInPlace { src, dst, buf: &mut frame.packet.first, range: HEADERS..end, checksum })
        {
            return None;
        }
        let mut packet = frame.packet.take();
        packet.truncate(end);
        packet.advance(HEADERS);
        Some(Ingress::Tcp { src: IpAddr::V4(src), dst: IpAddr::V4(dst), packet, checksum, ecn: tcp.traffic_class & 3 })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::buf::{FragmentArena, PagePool, RxPacket};
    use crate::counters::Counters;
    use crate::net::InterfaceOptions;
    use crate::time::Instant;

    const MAC: [u8; 6] = [2, 0, 0, 0, 0, 2];

    fn interface() -> Interface {
        let arena = FragmentArena::new(PagePool::anonymous(4, 4096).unwrap()).unwrap();
        let options = InterfaceOptions::new(MAC, 1500, [10, 0, 0, 2].into(), 24);
        Interface::new(options, arena, Instant::ZERO).unwrap()
    }

    fn good_frame() -> Vec<u8> {
        let link = ethernet::Repr {
            dst: ethernet::Address(MAC),
            src: ethernet::Address([2, 0, 0, 0, 0, 1]),
            ethertype: ethernet::ethertype::IPV4,
        };
        let ip = ipv4::Repr {
            src: [10, 0, 0, 1].into(),
            dst: [10, 0, 0, 2].into(),
            protocol: protocol::TCP,
            traffic_class: 2,
            identification: 7,
            dont_fragment: true,
            time_to_live: 64,
            payload_len: 24,
        };
        // Four octets of padding behind the packet.
        [&link.emit()[..], &ip.emit(), &[0x5a; 28]].concat()
    }

    type Outcome = (Option<(IpAddr, IpAddr, Vec<u8>, u8)>, Vec<u64>);

    /// What comes of a frame, and what it adds to the counters.
    fn outcome(interface: &mut Interface, bytes: Vec<u8>, ip_checksum: Checksum) -> Outcome {
        let values = |interface: &Interface| {
            let mut values = Vec::new();
            interface.counters().visit(&mut |_, value| values.push(value));
            values
        };
        let before = values(interface);
        let frame = RxFrame { packet: RxPacket::from_vec(bytes), ip_checksum, l4_checksum: Checksum::Good };
        let tcp = match interface.handle_frame(Instant::ZERO, frame) {
            Ingress::Tcp { src, dst, packet, ecn, .. } => {
                Some((src, dst, packet.into_bufs().flat_map(|buf| buf.to_vec()).collect(), ecn))
            }
            _ => None,
        };
        (tcp, values(interface).iter().zip(before).map(|(after, before)| after - before).collect())
    }

    #[test]
    fn a_recognised_sender_gets_away_with_nothing() {
        let good = good_frame();
        assert!(
            outcome(&mut interface(), good.clone(), Checksum::Good)
                .0
                .is_some_and(|(.., bytes, ecn)| bytes.len() == 24 && ecn == 2)
        );
        for checksum in [Checksum::Good, Checksum::Unknown, Checksum::Bad] {
            for (at, flip) in (0..HEADERS).flat_map(|at| (0..8).map(move |bit| (at, 1u8 << bit))) {
                let mut knows = interface();
                outcome(&mut knows, good.clone(), Checksum::Good);
                let mut bytes = good.clone();
                bytes[at] ^= flip;
                let expected = outcome(&mut interface(), bytes.clone(), checksum);
                assert_eq!(outcome(&mut knows, bytes, checksum), expected, "bit {flip:#x} of octet {at}, {checksum:?}");
            }
            for len in 0..good.len() {
                let mut knows = interface();
                outcome(&mut knows, good.clone(), Checksum::Good);
                let expected = outcome(&mut interface(), good[..len].to_vec(), checksum);
                assert_eq!(outcome(&mut knows, good[..len].to_vec(), checksum), expected, "{len} octets, {checksum:?}");
            }
        }
    }
}
