//! UDP headers.
//!
//! Read first: RFC 768, RFC 1122 section 4.1.3.4 (checksums).
//! Deliberately not here: the checksum itself, which covers the payload (`wire::checksum`), and sockets (`net::udp`).

use crate::wire::{Malformed, u16_at};

pub const HEADER_LEN: usize = 8;

/// A view of a header. Getters never panic: `new` has checked the length.
#[derive(Clone, Copy)]
pub struct Packet<'a> {
    bytes: &'a [u8],
}

impl<'a> Packet<'a> {
    pub fn new(bytes: &'a [u8]) -> Result<Packet<'a>, Malformed> {
        if bytes.len() < HEADER_LEN {
            return Err(Malformed);
        }
        Ok(Packet { bytes })
    }

    pub fn src_port(&self) -> u16 {
        u16_at(self.bytes, 0)
    }

    pub fn dst_port(&self) -> u16 {
        u16_at(self.bytes, 2)
    }

    /// Bytes of header and payload, as the sender says.
    pub fn length(&self) -> u16 {
        u16_at(self.bytes, 4)
    }

    /// 0: the sender made none (IPv4 only).
    pub fn checksum(&self) -> u16 {
        u16_at(self.bytes, 6)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Repr {
    pub src_port: u16,
    pub dst_port: u16,
    /// Bytes behind the header.
    pub payload_len: u16,
    /// 0: none (IPv4 only).
    pub checksum: u16,
}

impl Repr {
    /// `available`: bytes of header and payload that the IP packet holds.
    pub fn parse(packet: &Packet<'_>, available: usize) -> Result<Repr, Malformed> {
        let len = usize::from(packet.length());
        // RFC 768: "the minimum value of the length is eight"; more than came is a lie or a truncation.
        if len < HEADER_LEN || len > available {
            return Err(Malformed);
        }
        Ok(Repr {
            src_port: packet.src_port(),
            dst_port: packet.dst_port(),
            payload_len: (len - HEADER_LEN) as u16,
            checksum: packet.checksum(),
        })
    }

    /// The header. A payload longer than any datagram's (65,527 bytes) is emitted with the largest length there is.
    pub fn emit(&self) -> [u8; HEADER_LEN] {
        let mut header = [0; HEADER_LEN];
        header[..2].copy_from_slice(&self.src_port.to_be_bytes());
        header[2..4].copy_from_slice(&self.dst_port.to_be_bytes());
        header[4..6].copy_from_slice(&self.payload_len.saturating_add(HEADER_LEN as u16).to_be_bytes());
        header[6..].copy_from_slice(&self.checksum.to_be_bytes());
        header
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_length_below_the_header_or_beyond_the_packet_is_malformed() {
        let parse = |len: u16, available| {
            let mut header = Repr { src_port: 1, dst_port: 2, payload_len: 0, checksum: 0 }.emit();
            header[4..6].copy_from_slice(&len.to_be_bytes());
            Repr::parse(&Packet::new(&header).unwrap(), available)
        };
        assert_eq!(parse(7, 100), Err(Malformed));
        assert_eq!(parse(101, 100), Err(Malformed));
        assert_eq!(parse(8, 8).unwrap().payload_len, 0);
        assert_eq!(parse(50, 100).unwrap().payload_len, 42);
    }

    proptest! {
        #[test]
        fn random_bytes_never_panic_and_round_trip(bytes in prop::collection::vec(any::<u8>(), 0..20), available in 0usize..70_000) {
            if let Ok(packet) = Packet::new(&bytes) {
                if let Ok(repr) = Repr::parse(&packet, available) {
                    prop_assert_eq!(&repr.emit()[..], &bytes[..HEADER_LEN]);
                }
            }
        }
    }
}
