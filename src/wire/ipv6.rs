//! IPv6 headers and the walk through extension headers.
//!
//! Read first: RFC 8200 section 3 (the header), 4 (extension headers, what to do with unknown options), RFC 5095 (type 0
//! routing headers are dead), RFC 6946 (atomic fragments), RFC 8504 section 5.3 (a host may bound the chain).
//! Deliberately not here: reassembly (fragments are recognised so that they can be counted and dropped), jumbograms
//! (RFC 2675), IPsec (AH and ESP are protocols nobody here speaks).

use std::net::Ipv6Addr;

use crate::wire::ethernet::Address;
use crate::wire::{Malformed, array_at, u16_at};

/// Bytes of the fixed header.
pub const HEADER_LEN: usize = 40;
/// RFC 8200 section 5: every link carries packets of this many bytes.
pub const MTU_MIN: u16 = 1280;
/// Extension headers of one packet that are walked; a packet with more is dropped.
pub const EXTENSION_HEADERS_MAX: usize = 8;
/// Options of one extension header that are looked at; a packet with more is dropped. A chain of one-byte paddings would
/// otherwise cost 2,000 steps (RFC 8504 section 5.3).
pub const EXTENSION_OPTIONS_MAX: usize = 64;

/// `ff02::1`.
pub const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
/// `ff02::2`.
pub const ALL_ROUTERS: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 2);
/// `ff02::16`: where MLDv2 reports go (RFC 3810 section 5.2.14).
pub const ALL_MLDV2_ROUTERS: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 0x16);

/// Numbers of extension headers (IANA). Those of the layers above are in `wire::protocol`.
pub mod extension {
    pub const HOP_BY_HOP: u8 = 0;
    pub const ROUTING: u8 = 43;
    pub const FRAGMENT: u8 = 44;
    pub const NO_NEXT_HEADER: u8 = 59;
    pub const DESTINATION_OPTIONS: u8 = 60;
}

const OPTION_PAD1: u8 = 0;
const OPTION_PADN: u8 = 1;
const OPTION_ROUTER_ALERT: u8 = 5;

/// The group that everybody who has `address` is a member of (RFC 4291 section 2.7.1).
pub fn solicited_node(address: Ipv6Addr) -> Ipv6Addr {
    let [.., a, b, c] = address.octets();
    Ipv6Addr::new(0xff02, 0, 0, 0, 0, 1, 0xff00 | u16::from(a), u16::from_be_bytes([b, c]))
}

/// The MAC address of a group (RFC 2464 section 7).
pub fn multicast_mac(group: Ipv6Addr) -> Address {
    let [.., a, b, c, d] = group.octets();
    Address([0x33, 0x33, a, b, c, d])
}

/// fe80::/10 (RFC 4291 section 2.5.6).
pub fn is_link_local(address: Ipv6Addr) -> bool {
    address.segments()[0] & 0xffc0 == 0xfe80
}

/// Whether it can be the address of one host on a network: not unspecified, loopback, multicast or IPv4-mapped
/// (RFC 4291 sections 2.5.2, 2.5.3, 2.5.5.2, 2.7).
pub fn is_host(address: Ipv6Addr) -> bool {
    !address.is_unspecified() && !address.is_loopback() && !address.is_multicast() && address.to_ipv4_mapped().is_none()
}

/// Whether two addresses have their first `prefix` bits in common.
pub fn same_prefix(a: Ipv6Addr, b: Ipv6Addr, prefix: u8) -> bool {
    let mask = u128::MAX.checked_shl(128 - u32::from(prefix.min(128))).unwrap_or(0);
    (a.to_bits() ^ b.to_bits()) & mask == 0
}

/// A view of a packet. Getters never panic: `new` has checked that the fixed header is all there.
#[derive(Clone, Copy)]
pub struct Packet<'a> {
    /// From the first byte of the header; at least the header.
    bytes: &'a [u8],
}

impl<'a> Packet<'a> {
    /// `bytes`: the packet, or as much of its front as is contiguous, link padding included; `available`: bytes of all its pieces.
    pub fn new(bytes: &'a [u8], available: usize) -> Result<Packet<'a>, Malformed> {
        if bytes.len() < HEADER_LEN {
            return Err(Malformed);
        }
        let packet = Packet { bytes };
        if packet.version() != 6 || packet.total_len() > available {
            return Err(Malformed);
        }
        Ok(packet)
    }

    /// A header inside an ICMP error, whose packet is cut short: all checks but that of the length.
    pub fn new_quoted(bytes: &'a [u8]) -> Result<Packet<'a>, Malformed> {
        Packet::new(bytes, usize::MAX)
    }

    pub fn version(&self) -> u8 {
        self.bytes[0] >> 4
    }

    /// Differentiated services and ECN.
    pub fn traffic_class(&self) -> u8 {
        (u16_at(self.bytes, 0) >> 4) as u8
    }

    /// 20 bits.
    pub fn flow_label(&self) -> u32 {
        u32::from(self.bytes[1] & 0x0f) << 16 | u32::from(u16_at(self.bytes, 2))
    }

    /// Bytes behind the fixed header, extension headers included.
    pub fn payload_len(&self) -> usize {
        usize::from(u16_at(self.bytes, 4))
    }

    /// Bytes of header and payload; what lies behind is the link's padding.
    pub fn total_len(&self) -> usize {
        HEADER_LEN + self.payload_len()
    }

    pub fn next_header(&self) -> u8 {
        self.bytes[6]
    }

    pub fn hop_limit(&self) -> u8 {
        self.bytes[7]
    }

    pub fn src(&self) -> Ipv6Addr {
        array_at::<16>(self.bytes, 8).into()
    }

    pub fn dst(&self) -> Ipv6Addr {
        array_at::<16>(self.bytes, 24).into()
    }

    /// What is contiguous of the packet, the link's padding cut off.
    fn contiguous(&self) -> &'a [u8] {
        self.bytes.get(..self.total_len().min(self.bytes.len())).unwrap_or(&[])
    }

    /// Walks the extension headers to the protocol above (RFC 8200 section 4). All of them must lie in the contiguous front.
    pub fn chain(&self) -> Result<Chain, Refused> {
        let mut chain = Chain {
            protocol: self.next_header(),
            next_header_at: NEXT_HEADER_AT as u16,
            offset: HEADER_LEN,
            fragment: None,
            fragment_header: false,
            router_alert: false,
        };
        // By far the most packets have none.
        if !is_extension(chain.protocol) {
            return Ok(chain);
        }
        self.walk(&mut chain)?;
        Ok(chain)
    }

    /// What stands behind all extension headers, whatever is in them, and where. `None`: it is cut off, or too far behind.
    pub fn last_header(&self) -> Option<(u8, usize)> {
        let bytes = self.contiguous();
        let (mut protocol, mut offset) = (self.next_header(), HEADER_LEN);
        for _ in 0..=EXTENSION_HEADERS_MAX {
            if !is_extension(protocol) || (protocol == extension::HOP_BY_HOP && offset != HEADER_LEN) {
                return Some((protocol, offset));
            }
            let [next, units, high, low] = *bytes.get(offset..)?.first_chunk()?;
            let is_fragment = protocol == extension::FRAGMENT;
            if is_fragment && u16::from_be_bytes([high, low]) & !7 != 0 {
                return None;
            }
            offset += if is_fragment { FRAGMENT_HEADER_LEN } else { 8 + 8 * usize::from(units) };
            protocol = next;
        }
        None
    }

    fn walk(&self, chain: &mut Chain) -> Result<(), Refused> {
        let bytes = self.contiguous();
        for _ in 0..EXTENSION_HEADERS_MAX {
            let first = chain.next_header_at == NEXT_HEADER_AT as u16;
            // RFC 8200 section 4: hop-by-hop options anywhere but in front are an unrecognised header.
            if !is_extension(chain.protocol) || (chain.protocol == extension::HOP_BY_HOP && !first) {
                return Ok(());
            }
            let rest = bytes.get(chain.offset..).ok_or(Refused::Malformed)?;
            let len = match chain.protocol {
                extension::FRAGMENT => FRAGMENT_HEADER_LEN,
                // In units of 8 bytes, not counting the first.
                _ => 8 + 8 * usize::from(*rest.get(1).ok_or(Refused::Malformed)?),
            };
            let header = rest.get(..len).ok_or(Refused::Malformed)?;
            match chain.protocol {
                extension::FRAGMENT => {
                    chain.fragment_header = true;
                    let field = u16_at(header, 2);
                    // RFC 6946: offset 0 and no more to come is a whole packet.
                    if field & !FRAGMENT_RESERVED != 0 {
                        chain.fragment = Some(Fragment { offset: field & !7, more: field & 1 != 0 });
                        return Ok(());
                    }
                }
                extension::ROUTING => {
                    // RFC 8200 section 4.4 for types nobody knows, RFC 5095 section 3 for type 0: with segments left the packet
                    // is refused, without the header is skipped.
                    if header[3] != 0 {
                        return Err(Refused::ParameterProblem {
                            code: 0,
                            pointer: (chain.offset + 2) as u32,
                            also_multicast: false,
                        });
                    }
                }
                _ => chain.router_alert |= options(header, chain.offset)?,
            }
            chain.next_header_at = chain.offset as u16;
            chain.protocol = header[0];
            chain.offset += len;
        }
        match is_extension(chain.protocol) {
            true => Err(Refused::TooLong),
            false => Ok(()),
        }
    }
}

const NEXT_HEADER_AT: usize = 6;
const FRAGMENT_HEADER_LEN: usize = 8;
const FRAGMENT_RESERVED: u16 = 0b110;

fn is_extension(protocol: u8) -> bool {
    matches!(protocol, extension::HOP_BY_HOP | extension::ROUTING | extension::FRAGMENT | extension::DESTINATION_OPTIONS)
}

/// Walks the options of one header, which lies `at` bytes into the packet (RFC 8200 section 4.2); tells whether a router
/// alert was among them.
fn options(header: &[u8], at: usize) -> Result<bool, Refused> {
    let mut router_alert = false;
    let mut offset = 2;
    for _ in 0..EXTENSION_OPTIONS_MAX {
        let Some(&kind) = header.get(offset) else { return Ok(router_alert) };
        if kind == OPTION_PAD1 {
            offset += 1;
            continue;
        }
        let len = usize::from(*header.get(offset + 1).ok_or(Refused::Malformed)?);
        if offset + 2 + len > header.len() {
            return Err(Refused::Malformed);
        }
        match (kind, kind >> 6) {
            (OPTION_PADN, _) => {}
            (OPTION_ROUTER_ALERT, _) => router_alert = true,
            (_, 0) => {}
            (_, 1) => return Err(Refused::Discard),
            (_, action) => {
                let pointer = (at + offset) as u32;
                return Err(Refused::ParameterProblem { code: 2, pointer, also_multicast: action == 2 });
            }
        }
        offset += 2 + len;
    }
    match offset < header.len() {
        true => Err(Refused::TooLong),
        false => Ok(router_alert),
    }
}

/// What the walk found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Chain {
    /// `wire::protocol`, `extension::NO_NEXT_HEADER`, or something nobody here speaks.
    pub protocol: u8,
    /// Where in the packet that number stands: what a "parameter problem" points to.
    pub next_header_at: u16,
    /// Bytes from the start of the packet to what `protocol` names.
    pub offset: usize,
    /// A piece of a packet; the walk ends there.
    pub fragment: Option<Fragment>,
    /// There was a fragment header, also if this is all of the packet.
    pub fragment_header: bool,
    pub router_alert: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fragment {
    /// Bytes.
    pub offset: u16,
    pub more: bool,
}

/// Why a packet's extension headers were not accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    /// Longer than the packet, or than its contiguous front.
    Malformed,
    /// More than `EXTENSION_HEADERS_MAX`, or `EXTENSION_OPTIONS_MAX`.
    TooLong,
    /// An option says so, and that nobody is to be told.
    Discard,
    /// The sender is to be told, with this code and pointer (RFC 4443 section 3.4); if the packet went to a group only where
    /// the option says so.
    ParameterProblem { code: u8, pointer: u32, also_multicast: bool },
}

/// A header without extension headers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Repr {
    pub src: Ipv6Addr,
    pub dst: Ipv6Addr,
    /// `wire::protocol`.
    pub next_header: u8,
    /// Differentiated services and ECN.
    pub traffic_class: u8,
    /// The low 20 bits count.
    pub flow_label: u32,
    pub hop_limit: u8,
    /// Bytes behind the header.
    pub payload_len: u16,
}

impl Repr {
    pub fn parse(packet: &Packet<'_>) -> Repr {
        Repr {
            src: packet.src(),
            dst: packet.dst(),
            next_header: packet.next_header(),
            traffic_class: packet.traffic_class(),
            flow_label: packet.flow_label(),
            hop_limit: packet.hop_limit(),
            // 16 bits on the wire.
            payload_len: packet.payload_len() as u16,
        }
    }

    pub fn emit(&self) -> [u8; HEADER_LEN] {
        let mut header = [0; HEADER_LEN];
        let word = 6 << 28 | u32::from(self.traffic_class) << 20 | self.flow_label & 0x000f_ffff;
        header[..4].copy_from_slice(&word.to_be_bytes());
        header[4..6].copy_from_slice(&self.payload_len.to_be_bytes());
        header[6] = self.next_header;
        header[7] = self.hop_limit;
        header[8..24].copy_from_slice(&self.src.octets());
        header[24..].copy_from_slice(&self.dst.octets());
        header
    }
}

/// The hop-by-hop header that MLD messages carry: a router alert (RFC 2711 section 2.1, RFC 3810 section 5) and padding.
pub fn router_alert_header(next_header: u8) -> [u8; 8] {
    [next_header, 0, OPTION_ROUTER_ALERT, 2, 0, 0, OPTION_PADN, 0]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::protocol;
    use proptest::prelude::*;

    fn repr(next_header: u8, payload_len: u16) -> Repr {
        Repr {
            src: "2001:db8::1".parse().unwrap(),
            dst: "2001:db8::2".parse().unwrap(),
            next_header,
            traffic_class: 0x2e,
            flow_label: 0x12345,
            hop_limit: 64,
            payload_len,
        }
    }

    /// What the walk says of these extension headers, each with its own number in front of it and `last` behind.
    fn walk(headers: &[(u8, &[u8])], last: u8) -> Result<Chain, Refused> {
        let mut payload = Vec::new();
        for (at, (_, body)) in headers.iter().enumerate() {
            let start = payload.len();
            payload.extend_from_slice(body);
            payload[start] = headers.get(at + 1).map_or(last, |(number, _)| *number);
        }
        payload.extend([0; 8]);
        let first = headers.first().map_or(last, |(number, _)| *number);
        let bytes = [&repr(first, payload.len() as u16).emit()[..], &payload].concat();
        Packet::new(&bytes, bytes.len()).unwrap().chain()
    }

    const PAD: &[u8] = &[0, 0, 1, 4, 0, 0, 0, 0];

    #[test]
    fn a_known_header() {
        let header = repr(6, 20).emit();
        assert_eq!(header[..8], [0x62, 0xe1, 0x23, 0x45, 0, 20, 6, 64]);
        assert!(Packet::new(&header, 60).is_ok());
        assert!(Packet::new(&header, 59).is_err(), "longer than what came");
        assert!(Packet::new(&header[..39], 60).is_err());
        let mut wrong = header;
        wrong[0] = 0x45;
        assert!(Packet::new(&wrong, 60).is_err(), "version");
        assert!(Packet::new_quoted(&header).is_ok());
    }

    #[test]
    fn groups_and_their_mac_addresses() {
        let address: Ipv6Addr = "2001:db8::aa12:3456".parse().unwrap();
        assert_eq!(solicited_node(address), "ff02::1:ff12:3456".parse::<Ipv6Addr>().unwrap());
        assert_eq!(multicast_mac(solicited_node(address)).to_string(), "33:33:ff:12:34:56");
        assert!(is_link_local("febf::1".parse().unwrap()) && !is_link_local("fec0::1".parse().unwrap()));
        assert!(!is_host("::ffff:10.0.0.1".parse().unwrap()) && !is_host(ALL_NODES) && is_host(address));
        assert!(same_prefix(address, "2001:db8::".parse().unwrap(), 64) && same_prefix(address, ALL_NODES, 0));
        assert!(!same_prefix(address, "2001:db9::".parse().unwrap(), 64));
    }

    #[test]
    fn extension_headers_are_skipped_to_the_protocol() {
        let plain = walk(&[], protocol::TCP).unwrap();
        assert_eq!((plain.protocol, plain.offset, plain.next_header_at), (protocol::TCP, 40, 6));
        let long: Vec<u8> = [0, 1, 1, 12].into_iter().chain([0; 12]).collect();
        let all = walk(&[(0, PAD), (60, &long), (43, &[0, 0, 4, 0, 0, 0, 0, 0]), (44, &[0; 8])], protocol::UDP).unwrap();
        assert_eq!((all.protocol, all.offset, all.next_header_at), (protocol::UDP, 80, 72), "an atomic fragment is a packet");
        assert!(all.fragment_header && !plain.fragment_header);
        assert!(walk(&[(0, &router_alert_header(0))], protocol::ICMPV6).unwrap().router_alert);
    }

    #[test]
    fn what_is_no_chain_is_told_apart() {
        let problem = |code, pointer, also_multicast| Err(Refused::ParameterProblem { code, pointer, also_multicast });
        assert_eq!(walk(&[(60, PAD), (0, PAD)], 6).map(|c| (c.protocol, c.next_header_at)), Ok((0, 40)), "only in front");
        assert_eq!(walk(&[(43, &[0, 0, 0, 1, 0, 0, 0, 0])], 6), problem(0, 42, false), "a route to follow");
        assert_eq!(walk(&[(60, &[0, 0, 0x3f, 4, 0, 0, 0, 0])], 6).map(|c| c.protocol), Ok(6), "00: skip");
        assert_eq!(walk(&[(60, &[0, 0, 0x7f, 4, 0, 0, 0, 0])], 6), Err(Refused::Discard), "01: discard");
        assert_eq!(walk(&[(60, &[0, 0, 1, 0, 0xbf, 2, 0, 0])], 6), problem(2, 44, true), "10: tell");
        assert_eq!(
            walk(&[(60, &[0, 0, 0xff, 4, 0, 0, 0, 0])], 6),
            problem(2, 42, false),
            "11: tell, but not to a group's sender"
        );
        assert_eq!(walk(&[(60, &[0, 0, 1, 5, 0, 0, 0, 0])], 6), Err(Refused::Malformed), "an option beyond its header");
        assert_eq!(walk(&[(60, &[0, 9, 1, 4, 0, 0, 0, 0])], 6), Err(Refused::Malformed), "a header beyond the packet");
        assert_eq!(walk(&[(60, PAD); 9], 6), Err(Refused::TooLong));
        assert_eq!(walk(&[(60, PAD); 8], 6).map(|c| c.offset), Ok(104));
        let paddings = [&[0, 9, 0][..], &[0; 77]].concat();
        assert_eq!(walk(&[(60, &paddings)], 6), Err(Refused::TooLong));
        assert_eq!(walk(&[], extension::NO_NEXT_HEADER).map(|c| c.protocol), Ok(59));
    }

    #[test]
    fn fragments_are_recognised() {
        let fragment = |high, low| walk(&[(44, &[0, 0, high, low, 0, 0, 0, 7])], 6).map(|c| c.fragment);
        assert_eq!(fragment(0, 0), Ok(None));
        assert_eq!(fragment(0, 6), Ok(None), "reserved bits");
        assert_eq!(fragment(0, 1), Ok(Some(Fragment { offset: 0, more: true })));
        assert_eq!(fragment(5, 0xa8), Ok(Some(Fragment { offset: 1448, more: false })));
    }

    proptest! {
        #[test]
        fn random_bytes_never_panic(mut bytes in prop::collection::vec(any::<u8>(), 0..200), next in 0usize..6, available in 0usize..70_000) {
            if let [first, ..] = &mut bytes[..] {
                *first = 0x60 | *first & 0x0f;
            }
            if let Some(byte) = bytes.get_mut(6) {
                *byte = [0, 43, 44, 60, 59, *byte][next];
            }
            if let Ok(packet) = Packet::new(&bytes, available) {
                if let Ok(chain) = packet.chain() {
                    prop_assert!(chain.offset <= bytes.len());
                    if chain.fragment.is_none() {
                        prop_assert_eq!(packet.last_header(), Some((chain.protocol, chain.offset)));
                    }
                }
                let _ = packet.last_header();
            }
        }

        #[test]
        fn what_is_emitted_parses_back(
            src in any::<[u8; 16]>(), dst in any::<[u8; 16]>(), next_header: u8, traffic_class: u8, flow_label in 0u32..1 << 20,
            hop_limit: u8, payload_len: u16,
        ) {
            let repr = Repr { src: src.into(), dst: dst.into(), next_header, traffic_class, flow_label, hop_limit, payload_len };
            prop_assert_eq!(Repr::parse(&Packet::new_quoted(&repr.emit()).unwrap()), repr);
        }
    }
}
