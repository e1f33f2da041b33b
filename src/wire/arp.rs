//! ARP for IPv4 over Ethernet.
//!
//! Read first: RFC 826 (the packet and its reception), RFC 5227 section 1.1 and 2 (probes, announcements).
//! Deliberately not here: other hardware or protocol types (malformed to us), RARP, and what to do with a packet
//! (`net::interface`).

use std::net::Ipv4Addr;

use crate::wire::ethernet::Address;
use crate::wire::{Malformed, array_at, u16_at};

/// Bytes of a packet for Ethernet and IPv4. Frames are padded behind it.
pub const PACKET_LEN: usize = 28;

const HARDWARE_ETHERNET: u16 = 1;
const PROTOCOL_IPV4: u16 = 0x0800;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    Request,
    Reply,
}

/// A view of a packet. Getters never panic: `new` has checked the length.
#[derive(Clone, Copy)]
pub struct Packet<'a> {
    bytes: &'a [u8],
}

impl<'a> Packet<'a> {
    pub fn new(bytes: &'a [u8]) -> Result<Packet<'a>, Malformed> {
        Ok(Packet { bytes: bytes.get(..PACKET_LEN).ok_or(Malformed)? })
    }

    pub fn hardware_type(&self) -> u16 {
        u16_at(self.bytes, 0)
    }

    pub fn protocol_type(&self) -> u16 {
        u16_at(self.bytes, 2)
    }

    /// Bytes of a hardware and of a protocol address.
    pub fn address_lengths(&self) -> [u8; 2] {
        array_at(self.bytes, 4)
    }

    pub fn operation(&self) -> u16 {
        u16_at(self.bytes, 6)
    }

    pub fn sender_hardware(&self) -> Address {
        Address(array_at(self.bytes, 8))
    }

    pub fn sender_protocol(&self) -> Ipv4Addr {
        array_at::<4>(self.bytes, 14).into()
    }

    pub fn target_hardware(&self) -> Address {
        Address(array_at(self.bytes, 18))
    }

    pub fn target_protocol(&self) -> Ipv4Addr {
        array_at::<4>(self.bytes, 24).into()
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Repr {
    pub operation: Operation,
    pub sender_hardware: Address,
    pub sender_protocol: Ipv4Addr,
    pub target_hardware: Address,
    pub target_protocol: Ipv4Addr,
}

impl Repr {
    pub fn parse(packet: &Packet<'_>) -> Result<Repr, Malformed> {
        // RFC 826, packet reception: "?Do I have the hardware type", "?Do I speak the protocol", the lengths.
        if packet.hardware_type() != HARDWARE_ETHERNET
            || packet.protocol_type() != PROTOCOL_IPV4
            || packet.address_lengths() != [6, 4]
        {
            return Err(Malformed);
        }
        let operation = match packet.operation() {
            1 => Operation::Request,
            2 => Operation::Reply,
            _ => return Err(Malformed),
        };
        Ok(Repr {
            operation,
            sender_hardware: packet.sender_hardware(),
            sender_protocol: packet.sender_protocol(),
            target_hardware: packet.target_hardware(),
            target_protocol: packet.target_protocol(),
        })
    }

    pub fn emit(&self) -> [u8; PACKET_LEN] {
        let mut packet = [0; PACKET_LEN];
        packet[..2].copy_from_slice(&HARDWARE_ETHERNET.to_be_bytes());
        packet[2..4].copy_from_slice(&PROTOCOL_IPV4.to_be_bytes());
        packet[4..6].copy_from_slice(&[6, 4]);
        packet[7] = match self.operation {
            Operation::Request => 1,
            Operation::Reply => 2,
        };
        packet[8..14].copy_from_slice(&self.sender_hardware.0);
        packet[14..18].copy_from_slice(&self.sender_protocol.octets());
        packet[18..24].copy_from_slice(&self.target_hardware.0);
        packet[24..].copy_from_slice(&self.target_protocol.octets());
        packet
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn other_types_lengths_and_operations_are_refused() {
        let good = Repr {
            operation: Operation::Reply,
            sender_hardware: Address([2, 0, 0, 0, 0, 1]),
            sender_protocol: Ipv4Addr::new(10, 0, 0, 1),
            target_hardware: Address([2, 0, 0, 0, 0, 2]),
            target_protocol: Ipv4Addr::new(10, 0, 0, 2),
        }
        .emit();
        assert!(Repr::parse(&Packet::new(&good).unwrap()).is_ok());
        for (at, value) in [(1, 6), (2, 0x86), (4, 8), (5, 16), (7, 0), (7, 3), (6, 1)] {
            let mut bad = good;
            bad[at] = value;
            assert_eq!(Repr::parse(&Packet::new(&bad).unwrap()), Err(Malformed), "byte {at}");
        }
        assert!(Packet::new(&good[..27]).is_err());
    }

    proptest! {
        #[test]
        fn random_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..60)) {
            if let Ok(packet) = Packet::new(&bytes) {
                let _ = Repr::parse(&packet);
            }
        }

        #[test]
        fn what_parses_emits_the_same_bytes(mut bytes in any::<[u8; PACKET_LEN]>(), reply: bool) {
            bytes[..8].copy_from_slice(&[0, 1, 8, 0, 6, 4, 0, 1 + u8::from(reply)]);
            let repr = Repr::parse(&Packet::new(&bytes).unwrap()).unwrap();
            prop_assert_eq!(repr.emit(), bytes);
        }
    }
}
