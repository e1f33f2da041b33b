//! IPv4 headers.
//!
//! Read first: RFC 791 section 3.1, RFC 1122 section 3.2.1 (what a host must check), RFC 6864 (the identification field),
//! RFC 7126 (which options to refuse).
//! Deliberately not here: reassembly (fragments are recognised so that they can be counted and dropped) and emitting options.

use std::net::Ipv4Addr;

use crate::wire::checksum::Sum;
use crate::wire::{Malformed, array_at, u16_at};

/// Bytes of a header without options.
pub const HEADER_LEN: usize = 20;
/// Bytes of the longest header there can be.
pub const HEADER_LEN_MAX: usize = 60;

const DONT_FRAGMENT: u16 = 0x4000;
const MORE_FRAGMENTS: u16 = 0x2000;
const FRAGMENT_OFFSET: u16 = 0x1fff;

const OPTION_END: u8 = 0;
const OPTION_NO_OPERATION: u8 = 1;
const OPTION_LOOSE_SOURCE_ROUTE: u8 = 131;
const OPTION_STRICT_SOURCE_ROUTE: u8 = 137;

/// What the options of a header amount to. All are skipped (RFC 1122 section 3.2.1.8).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Options {
    Skippable,
    /// Asks for replies along a recorded path; RFC 7126 sections 4.3 and 4.4 advise to drop such packets.
    SourceRoute,
}

/// A view of a packet. Getters never panic: `new` has checked that the header is all there and what its lengths say.
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
        let (header_len, total_len) = (packet.header_len(), packet.total_len());
        // RFC 1122 section 3.2.1.1: a version other than 4 is silently discarded.
        if packet.version() != 4
            || header_len < HEADER_LEN
            || header_len > bytes.len()
            || total_len < header_len
            || total_len > available
        {
            return Err(Malformed);
        }
        Ok(packet)
    }

    /// A header inside an ICMP error, whose packet is cut short: all checks but that of the total length.
    pub fn new_quoted(bytes: &'a [u8]) -> Result<Packet<'a>, Malformed> {
        Packet::new(bytes, usize::MAX)
    }

    pub fn version(&self) -> u8 {
        self.bytes[0] >> 4
    }

    /// Bytes of the header, options included.
    pub fn header_len(&self) -> usize {
        usize::from(self.bytes[0] & 0x0f) * 4
    }

    /// Differentiated services and ECN.
    pub fn traffic_class(&self) -> u8 {
        self.bytes[1]
    }

    /// Bytes of header and payload; what lies behind is the link's padding.
    pub fn total_len(&self) -> usize {
        usize::from(u16_at(self.bytes, 2))
    }

    pub fn identification(&self) -> u16 {
        u16_at(self.bytes, 4)
    }

    pub fn dont_fragment(&self) -> bool {
        u16_at(self.bytes, 6) & DONT_FRAGMENT != 0
    }

    pub fn is_fragment(&self) -> bool {
        u16_at(self.bytes, 6) & (MORE_FRAGMENTS | FRAGMENT_OFFSET) != 0
    }

    /// Whether the transport header is not in this packet.
    pub fn is_later_fragment(&self) -> bool {
        u16_at(self.bytes, 6) & FRAGMENT_OFFSET != 0
    }

    pub fn time_to_live(&self) -> u8 {
        self.bytes[8]
    }

    pub fn protocol(&self) -> u8 {
        self.bytes[9]
    }

    pub fn src(&self) -> Ipv4Addr {
        array_at::<4>(self.bytes, 12).into()
    }

    pub fn dst(&self) -> Ipv4Addr {
        array_at::<4>(self.bytes, 16).into()
    }

    /// The header, options included.
    pub fn header(&self) -> &'a [u8] {
        self.bytes.get(..self.header_len()).unwrap_or(&[])
    }

    /// What of the payload is contiguous with the header, the link's padding cut off.
    pub fn payload(&self) -> &'a [u8] {
        let end = self.total_len().min(self.bytes.len());
        self.bytes.get(self.header_len()..end).unwrap_or(&[])
    }

    pub fn checksum_is_valid(&self) -> bool {
        let mut sum = Sum::new();
        sum.add(self.header());
        sum.is_valid()
    }

    /// Walks the options: each must have a length of at least 2 that stays inside the header (RFC 791 section 3.1).
    pub fn options(&self) -> Result<Options, Malformed> {
        let mut rest = self.header().get(HEADER_LEN..).unwrap_or(&[]);
        let mut found = Options::Skippable;
        while let [kind, after @ ..] = rest {
            rest = match *kind {
                OPTION_END => break,
                OPTION_NO_OPERATION => after,
                kind => {
                    let len = usize::from(*after.first().ok_or(Malformed)?);
                    if len < 2 {
                        return Err(Malformed);
                    }
                    if kind == OPTION_LOOSE_SOURCE_ROUTE || kind == OPTION_STRICT_SOURCE_ROUTE {
                        found = Options::SourceRoute;
                    }
                    rest.get(len..).ok_or(Malformed)?
                }
            };
        }
        Ok(found)
    }
}

/// A header without options, of a packet that is no fragment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Repr {
    pub src: Ipv4Addr,
    pub dst: Ipv4Addr,
    pub protocol: u8,
    /// Differentiated services and ECN.
    pub traffic_class: u8,
    pub identification: u16,
    pub dont_fragment: bool,
    pub time_to_live: u8,
    /// Bytes behind the header.
    pub payload_len: u16,
}

impl Repr {
    /// Options are left out; fragments are refused.
    pub fn parse(packet: &Packet<'_>) -> Result<Repr, Malformed> {
        if packet.is_fragment() {
            return Err(Malformed);
        }
        Ok(Repr {
            src: packet.src(),
            dst: packet.dst(),
            protocol: packet.protocol(),
            traffic_class: packet.traffic_class(),
            identification: packet.identification(),
            dont_fragment: packet.dont_fragment(),
            time_to_live: packet.time_to_live(),
            // total_len >= header_len by `Packet::new`.
            payload_len: packet.total_len().saturating_sub(packet.header_len()) as u16,
        })
    }

    /// The header with a checksum field of 0, for devices that fill it in. A payload that no packet can have (more than
    /// 65,515 bytes) is emitted with the largest length there is.
    #[inline]
    pub fn emit_without_checksum(&self) -> [u8; HEADER_LEN] {
        let mut header = [0; HEADER_LEN];
        header[0] = 0x45;
        header[1] = self.traffic_class;
        header[2..4].copy_from_slice(&self.payload_len.saturating_add(HEADER_LEN as u16).to_be_bytes());
        header[4..6].copy_from_slice(&self.identification.to_be_bytes());
        if self.dont_fragment {
            header[6..8].copy_from_slice(&DONT_FRAGMENT.to_be_bytes());
        }
        header[8] = self.time_to_live;
        header[9] = self.protocol;
        header[12..16].copy_from_slice(&self.src.octets());
        header[16..].copy_from_slice(&self.dst.octets());
        header
    }

    /// The header, checksum included.
    pub fn emit(&self) -> [u8; HEADER_LEN] {
        let mut header = self.emit_without_checksum();
        let mut sum = Sum::new();
        sum.add(&header);
        header[10..12].copy_from_slice(&sum.finish().to_be_bytes());
        header
    }
}

/// Allows routers to cut the packet of a finished header without options, under this identification (RFC 6864 section 4.3). The checksum is
/// computed anew, unless its field is left to the device.
pub fn allow_fragments(header: &mut [u8; HEADER_LEN], identification: u16, with_checksum: bool) {
    header[4..6].copy_from_slice(&identification.to_be_bytes());
    header[6..8].fill(0);
    if with_checksum {
        header[10..12].fill(0);
        let mut sum = Sum::new();
        sum.add(&*header);
        header[10..12].copy_from_slice(&sum.finish().to_be_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn repr() -> Repr {
        Repr {
            src: Ipv4Addr::new(192, 168, 0, 1),
            dst: Ipv4Addr::new(192, 168, 0, 199),
            protocol: 17,
            traffic_class: 0,
            identification: 0,
            dont_fragment: true,
            time_to_live: 64,
            payload_len: 95,
        }
    }

    /// A header with these option bytes.
    fn with_options(options: &[u8]) -> Vec<u8> {
        assert_eq!(options.len() % 4, 0);
        let mut bytes = repr().emit().to_vec();
        bytes.extend(options);
        let len = bytes.len() as u16;
        bytes[0] = 0x40 | (len / 4) as u8;
        bytes[2..4].copy_from_slice(&len.to_be_bytes());
        bytes
    }

    #[test]
    fn a_known_header_and_its_checksum() {
        let header = repr().emit();
        assert_eq!(header[..12], [0x45, 0, 0, 115, 0, 0, 0x40, 0, 64, 17, 0xb8, 0x61]);
        assert!(Packet::new(&header, 115).unwrap().checksum_is_valid());
    }

    #[test]
    fn lengths_that_contradict_each_other_are_malformed() {
        let good = repr().emit();
        let check = |at: usize, value: u8, available: usize| {
            let mut bytes = good;
            bytes[at] = value;
            Packet::new(&bytes, available).is_ok()
        };
        assert!(check(0, 0x45, 115));
        assert!(!check(0, 0x65, 115), "version");
        assert!(!check(0, 0x44, 115), "header shorter than any");
        assert!(!check(0, 0x46, 115), "header longer than the bytes");
        assert!(!check(3, 19, 115), "total shorter than the header");
        assert!(!check(3, 116, 115), "total longer than what came");
        assert!(Packet::new(&good[..19], 115).is_err());
        assert!(Packet::new_quoted(&good).is_ok());
    }

    #[test]
    fn options_are_walked() {
        let parsed = |options: &[u8]| {
            let bytes = with_options(options);
            Packet::new(&bytes, bytes.len()).unwrap().options()
        };
        assert_eq!(parsed(&[]), Ok(Options::Skippable));
        assert_eq!(parsed(&[1, 1, 1, 0]), Ok(Options::Skippable));
        assert_eq!(parsed(&[148, 4, 0, 0]), Ok(Options::Skippable), "router alert");
        assert_eq!(parsed(&[0, 99, 0, 0]), Ok(Options::Skippable), "nothing counts after the end");
        assert_eq!(parsed(&[131, 7, 4, 10, 0, 0, 1, 0]), Ok(Options::SourceRoute));
        assert_eq!(parsed(&[137, 7, 4, 10, 0, 0, 1, 0]), Ok(Options::SourceRoute));
        assert_eq!(parsed(&[7, 0, 0, 0]), Err(Malformed), "length 0 would loop");
        assert_eq!(parsed(&[7, 1, 0, 0]), Err(Malformed));
        assert_eq!(parsed(&[7, 5, 0, 0]), Err(Malformed), "beyond the header");
        assert_eq!(parsed(&[1, 1, 1, 7]), Err(Malformed), "no length byte");
    }

    #[test]
    fn fragments_are_recognised() {
        let mut bytes = repr().emit();
        bytes[6..8].copy_from_slice(&MORE_FRAGMENTS.to_be_bytes());
        let packet = Packet::new(&bytes, 115).unwrap();
        assert!(packet.is_fragment() && !packet.is_later_fragment());
        assert_eq!(Repr::parse(&packet), Err(Malformed));
        bytes[6..8].copy_from_slice(&3u16.to_be_bytes());
        let packet = Packet::new(&bytes, 115).unwrap();
        assert!(packet.is_fragment() && packet.is_later_fragment());
    }

    proptest! {
        #[test]
        fn random_bytes_never_panic(mut bytes in prop::collection::vec(any::<u8>(), 0..100), ip: bool, available in 0usize..70_000) {
            if let (true, Some(first)) = (ip, bytes.first_mut()) {
                *first = 0x40 | *first & 0x0f;
            }
            if let Ok(packet) = Packet::new(&bytes, available) {
                prop_assert!(packet.header().len() >= HEADER_LEN);
                let _ = (packet.options(), packet.payload(), packet.checksum_is_valid(), Repr::parse(&packet));
            }
        }

        #[test]
        fn what_is_emitted_parses_back(
            src in any::<[u8; 4]>(), dst in any::<[u8; 4]>(), protocol: u8, traffic_class: u8, identification: u16,
            dont_fragment: bool, time_to_live: u8, payload_len in 0u16..65_516,
        ) {
            let repr = Repr {
                src: src.into(), dst: dst.into(), protocol, traffic_class, identification, dont_fragment, time_to_live, payload_len,
            };
            let bytes = repr.emit();
            let packet = Packet::new(&bytes, usize::MAX).unwrap();
            prop_assert!(packet.checksum_is_valid());
            prop_assert_eq!(Repr::parse(&packet), Ok(repr));
        }
    }
}
