//! Ethernet II frames.
//!
//! Read first: RFC 894 (IP over Ethernet), RFC 1122 section 2.3.3 (encapsulations a host must take).
//! Deliberately not here: IEEE 802.3 length-encoded frames (RFC 1042), which arrive as an unknown EtherType, and 802.1Q
//! tags. A tag lengthens the header: everybody asks `header_len` and nobody assumes 14.

use std::fmt;

use crate::wire::{Malformed, array_at, u16_at};

/// Bytes of an untagged header.
pub const HEADER_LEN: usize = 14;

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
        Ok(Frame { bytes })
    }

    pub fn dst(&self) -> Address {
        Address(array_at(self.bytes, 0))
    }

    pub fn src(&self) -> Address {
        Address(array_at(self.bytes, 6))
    }

    pub fn ethertype(&self) -> u16 {
        u16_at(self.bytes, 12)
    }

    /// Where the payload starts.
    pub fn header_len(&self) -> usize {
        HEADER_LEN
    }

    pub fn payload(&self) -> &'a [u8] {
        self.bytes.get(HEADER_LEN..).unwrap_or(&[])
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Repr {
    pub dst: Address,
    pub src: Address,
    pub ethertype: u16,
}

impl Repr {
    pub fn parse(frame: &Frame<'_>) -> Repr {
        Repr { dst: frame.dst(), src: frame.src(), ethertype: frame.ethertype() }
    }

    pub fn emit(&self) -> [u8; HEADER_LEN] {
        let mut header = [0; HEADER_LEN];
        header[..6].copy_from_slice(&self.dst.0);
        header[6..12].copy_from_slice(&self.src.0);
        header[12..].copy_from_slice(&self.ethertype.to_be_bytes());
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

    proptest! {
        #[test]
        fn random_bytes_never_panic_and_round_trip(bytes in prop::collection::vec(any::<u8>(), 0..40)) {
            match Frame::new(&bytes) {
                Err(Malformed) => prop_assert!(bytes.len() < HEADER_LEN),
                Ok(frame) => {
                    prop_assert_eq!(&Repr::parse(&frame).emit()[..], &bytes[..HEADER_LEN]);
                    prop_assert_eq!(frame.payload(), &bytes[frame.header_len()..]);
                }
            }
        }
    }
}
