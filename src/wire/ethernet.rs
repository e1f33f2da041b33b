//! Ethernet II frames.
//!
//! Read first: RFC 894 (IP over Ethernet), RFC 1122 section 2.3.3 (encapsulations a host must take).
//! One 802.1Q tag is understood (IEEE 802.1Q-2018 section 9.6): it lengthens the header, so everybody asks `header_len` and nobody
//! assumes 14; the EtherType is the one behind it.
//! Deliberately not here: IEEE 802.3 length-encoded frames (RFC 1042) and a second tag (802.1ad), which arrive as an unknown
//! EtherType.

use std::fmt;

use crate::wire::{Malformed, array_at, u16_at};

/// Bytes of an untagged header.
pub const HEADER_LEN: usize = 14;
/// Bytes that a tag adds.
pub const TAG_LEN: usize = 4;
/// Bytes of a header with a tag.
pub const TAGGED_HEADER_LEN: usize = HEADER_LEN + TAG_LEN;
/// The largest number of a VLAN; 0 is none (a tag with it carries a priority only), 4095 is reserved.
pub const VLAN_ID_MAX: u16 = 4094;

pub mod ethertype {
    pub const IPV4: u16 = 0x0800;
    pub const ARP: u16 = 0x0806;
    pub const VLAN: u16 = 0x8100;
    pub const IPV6: u16 = 0x86dd;
}

/// A MAC address.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Address(pub [u8; 6]);

impl Address {
    pub const BROADCAST: Address = Address([0xff; 6]);

    pub fn is_broadcast(self) -> bool {
        self == Address::BROADCAST
    }

    /// A group address: broadcast or multicast.
    pub fn is_group(self) -> bool {
        self.0[0] & 1 == 1
    }

    /// An address that one station can have.
    pub fn is_unicast(self) -> bool {
        !self.is_group() && self.0 != [0; 6]
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl fmt::Debug for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A view of a frame. Getters never panic: `new` has checked the length.
#[derive(Clone, Copy)]
pub struct Frame<'a> {
    bytes: &'a [u8],
}

impl<'a> Frame<'a> {
    /// `bytes`: the frame, or as much of its front as is contiguous.
    pub fn new(bytes: &'a [u8]) -> Result<Frame<'a>, Malformed> {
        if bytes.len() < HEADER_LEN {
            return Err(Malformed);
        }
        let frame = Frame { bytes };
        if bytes.len() < frame.header_len() {
            return Err(Malformed);
        }
        Ok(frame)
    }

    pub fn dst(&self) -> Address {
        Address(array_at(self.bytes, 0))
    }

    pub fn src(&self) -> Address {
        Address(array_at(self.bytes, 6))
    }

    fn is_tagged(&self) -> bool {
        u16_at(self.bytes, 12) == ethertype::VLAN
    }

    /// What the payload is, a tag skipped.
    pub fn ethertype(&self) -> u16 {
        u16_at(self.bytes, self.header_len() - 2)
    }

    /// The number in the tag, if there is one: 0..=4095.
    pub fn vlan(&self) -> Option<u16> {
        self.is_tagged().then(|| u16_at(self.bytes, 14) & 0x0fff)
    }

    /// Where the payload starts.
    pub fn header_len(&self) -> usize {
        if self.is_tagged() { TAGGED_HEADER_LEN } else { HEADER_LEN }
    }

    pub fn payload(&self) -> &'a [u8] {
        self.bytes.get(self.header_len()..).unwrap_or(&[])
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Repr {
    pub dst: Address,
    pub src: Address,
    /// What the payload is.
    pub ethertype: u16,
}

impl Repr {
    pub fn parse(frame: &Frame<'_>) -> Repr {
        Repr { dst: frame.dst(), src: frame.src(), ethertype: frame.ethertype() }
    }

    #[inline]
    pub fn emit(&self) -> [u8; HEADER_LEN] {
        let mut header = [0; HEADER_LEN];
        header[..6].copy_from_slice(&self.dst.0);
        header[6..12].copy_from_slice(&self.src.0);
        header[12..].copy_from_slice(&self.ethertype.to_be_bytes());
        header
    }

    /// With a tag of priority 0 for this VLAN, of which the low 12 bits count.
    pub fn emit_tagged(&self, vlan: u16) -> [u8; TAGGED_HEADER_LEN] {
        let mut header = [0; TAGGED_HEADER_LEN];
        header[..HEADER_LEN].copy_from_slice(&Repr { ethertype: ethertype::VLAN, ..*self }.emit());
        header[14..16].copy_from_slice(&(vlan & 0x0fff).to_be_bytes());
        header[16..].copy_from_slice(&self.ethertype.to_be_bytes());
        header
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn addresses_know_their_kind() {
        assert!(Address::BROADCAST.is_broadcast() && Address::BROADCAST.is_group());
        assert!(Address([1, 0, 0x5e, 0, 0, 1]).is_group());
        assert!(Address([2, 0, 0, 0, 0, 1]).is_unicast());
        assert!(!Address([0; 6]).is_unicast());
        assert_eq!(Address([2, 0, 0, 0, 0xab, 1]).to_string(), "02:00:00:00:ab:01");
    }

    #[test]
    fn a_tag_lengthens_the_header_and_hides_nothing() {
        let repr = Repr { dst: Address([2, 0, 0, 0, 0, 1]), src: Address([2, 0, 0, 0, 0, 2]), ethertype: ethertype::IPV6 };
        let mut bytes = repr.emit_tagged(100).to_vec();
        assert_eq!(bytes[12..], [0x81, 0, 0, 100, 0x86, 0xdd]);
        assert!(Frame::new(&bytes[..17]).is_err(), "half a tag");
        bytes[14] |= 0xf0;
        bytes.push(7);
        let frame = Frame::new(&bytes).unwrap();
        assert_eq!(
            (frame.vlan(), frame.header_len(), frame.payload()),
            (Some(100), 18, &[7][..]),
            "priority bits are not the number"
        );
        assert_eq!(Repr::parse(&frame), repr);
        assert_eq!(Frame::new(&repr.emit()).unwrap().vlan(), None);
    }

    proptest! {
        #[test]
        fn random_bytes_never_panic_and_round_trip(mut bytes in prop::collection::vec(any::<u8>(), 0..40), tagged: bool) {
            if let (true, Some(ethertype)) = (tagged, bytes.get_mut(12..14)) {
                ethertype.copy_from_slice(&ethertype::VLAN.to_be_bytes());
            }
            match Frame::new(&bytes) {
                Err(Malformed) => prop_assert!(bytes.len() < HEADER_LEN || tagged && bytes.len() < TAGGED_HEADER_LEN),
                Ok(frame) => {
                    let repr = Repr::parse(&frame);
                    match frame.vlan() {
                        None => prop_assert_eq!(&repr.emit()[..], &bytes[..HEADER_LEN]),
                        Some(vlan) => {
                            prop_assert_eq!(&repr.emit_tagged(vlan)[16..], &bytes[16..18]);
                            prop_assert!(vlan < 4096);
                        }
                    }
                    prop_assert_eq!(frame.payload(), &bytes[frame.header_len()..]);
                }
            }
        }
    }
}
