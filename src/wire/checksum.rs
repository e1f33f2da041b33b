//! The Internet checksum over any number of pieces.
//!
//! Read first: RFC 1071 section 1 and 2 (byte order, odd pieces), RFC 768 and RFC 9293 section 3.1 (pseudo-headers),
//! RFC 8200 section 8.1 (the IPv6 pseudo-header).
//!
//! Deliberately not here: incremental update of a changed field (RFC 1624); nothing in this stack forwards packets.

use std::net::IpAddr;

use crate::buf::{RxPacket, Slice};
use crate::wire::protocol;

/// A running ones' complement sum. Pieces are added in order; a piece may have an odd length.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sum {
    /// Sum of 16-bit words in network order, carries not yet folded in. Each addition adds less than 2^16.
    words: u64,
    /// An odd number of bytes was added: the next byte is the low half of a word.
    odd: bool,
}

impl Sum {
    pub fn new() -> Sum {
        Sum::default()
    }

    /// The pseudo-header that TCP, UDP and ICMPv6 cover. `transport_len` in bytes, transport header included.
    ///
    /// One function for both families: the layouts differ, but a sum does not depend on the order of its words, and the
    /// IPv6 header's wider fields add nothing but zeroes (RFC 1071 section 2(A), RFC 8200 section 8.1).
    #[inline]
    pub fn pseudo_header(src: IpAddr, dst: IpAddr, protocol: u8, transport_len: usize) -> Sum {
        let mut sum = Sum::pseudo_header_without_length(src, dst, protocol);
        // At most 32 bits (RFC 8200): the two halves are two words.
        sum.words += (transport_len as u64 >> 16 & 0xffff) + (transport_len as u64 & 0xffff);
        sum
    }

    /// The pseudo-header as TSO wants it: the device adds each segment's own length.
    #[inline]
    pub fn pseudo_header_without_length(src: IpAddr, dst: IpAddr, protocol: u8) -> Sum {
        if let (IpAddr::V4(src), IpAddr::V4(dst)) = (src, dst) {
            let halves = |bits: u32| u64::from(bits >> 16) + u64::from(bits & 0xffff);
            return Sum { words: halves(src.to_bits()) + halves(dst.to_bits()) + u64::from(protocol), odd: false };
        }
        let mut sum = Sum::new();
        for address in [src, dst] {
            match address {
                IpAddr::V4(address) => sum.words += u64::from(address.to_bits() >> 16) + u64::from(address.to_bits() & 0xffff),
                IpAddr::V6(address) => sum.add(&address.octets()),
            }
        }
        sum.words += u64::from(protocol);
        sum
    }

    /// Adds the next bytes.
    pub fn add(&mut self, bytes: &[u8]) {
        let sum = fold(sum_native(bytes));
        // RFC 1071 section 2(B): words summed at the wrong parity are the right sum with its bytes swapped.
        let sum = if self.odd { sum.swap_bytes() } else { sum };
        self.words += u64::from(sum);
        self.odd ^= bytes.len() % 2 == 1;
    }

    /// Adds the next pieces.
    pub fn add_slices(&mut self, pieces: &[Slice]) {
        for piece in pieces {
            self.add(piece);
        }
    }

    /// Adds a received packet, from where it starts now.
    pub fn add_packet(&mut self, packet: &RxPacket) {
        self.add(&packet.first);
        for buf in &packet.more {
            self.add(buf);
        }
    }

    /// The sum itself: what goes into a checksum field whose device completes it.
    #[inline]
    pub fn partial(&self) -> u16 {
        fold(self.words)
    }

    /// The complement: what goes into a checksum field.
    pub fn finish(&self) -> u16 {
        !self.partial()
    }

    /// Whether bytes that include their own checksum field are intact (RFC 1071 section 1(3)).
    pub fn is_valid(&self) -> bool {
        self.partial() == 0xffff
    }
}

/// Whether a TCP or UDP packet, given from its transport header to its end, has a good checksum.
pub fn transport_is_valid(src: IpAddr, dst: IpAddr, protocol: u8, packet: &RxPacket) -> bool {
    let mut sum = Sum::pseudo_header(src, dst, protocol, packet.len());
    sum.add_packet(packet);
    sum.is_valid()
}

/// The field's value for UDP, where 0 on the wire means "none": the other zero of ones' complement (RFC 768).
pub fn udp_field(sum: &Sum) -> u16 {
    match sum.finish() {
        0 => 0xffff,
        checksum => checksum,
    }
}

/// Where the checksum field lies in a transport header; `None` for a protocol without a pseudo-header.
pub fn transport_field_offset(protocol: u8) -> Option<usize> {
    match protocol {
        protocol::TCP => Some(16),
        protocol::UDP => Some(6),
        // ICMPv6 has a pseudo-header too, but no device fills its checksum in: such a message is made whole.
        _ => None,
    }
}

/// Sums words in the machine's own order; the result needs one swap on little-endian machines (RFC 1071 section 2(B)).
fn sum_native(bytes: &[u8]) -> u64 {
    let mut even: u64 = 0;
    let mut odd: u64 = 0;
    let mut chunks = bytes.chunks_exact(8);
    for chunk in &mut chunks {
        let word = u64::from_ne_bytes(chunk.try_into().unwrap_or([0; 8]));
        // A piece is shorter than 2^32 bytes, so these cannot wrap: 2^29 chunks of less than 2^32 each.
        even += word & 0xffff_ffff;
        odd += word >> 32;
    }
    let mut tail = [0; 8];
    let rest = chunks.remainder();
    tail[..rest.len()].copy_from_slice(rest);
    let word = u64::from_ne_bytes(tail);
    // Fold each before adding, so that the sum of the parts cannot wrap either.
    let native = u64::from(fold(even)) + u64::from(fold(odd)) + u64::from(fold(word & 0xffff_ffff)) + u64::from(fold(word >> 32));
    u64::from(u16::from_be(fold(native)))
}

/// Adds the carries back in (RFC 1071 section 1).
#[inline]
fn fold(mut sum: u64) -> u16 {
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::buf::RxBuf;
    use proptest::prelude::*;

    /// The RFC's definition, word by word.
    fn reference(bytes: &[u8]) -> u16 {
        let mut sum: u32 = 0;
        for pair in bytes.chunks(2) {
            sum += u32::from(u16::from_be_bytes([pair[0], pair.get(1).copied().unwrap_or(0)]));
            sum = (sum & 0xffff) + (sum >> 16);
        }
        sum as u16
    }

    #[test]
    fn the_rfcs_own_example() {
        // RFC 1071 section 3.
        let mut sum = Sum::new();
        sum.add(&[0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7]);
        assert_eq!(sum.partial(), 0xddf2);
        assert_eq!(sum.finish(), !0xddf2);
    }

    #[test]
    fn pseudo_headers_of_both_families() {
        let sum = Sum::pseudo_header("10.0.0.1".parse().unwrap(), "10.0.0.2".parse().unwrap(), 6, 0x1_0003);
        let mut bytes = vec![10, 0, 0, 1, 10, 0, 0, 2, 0, 6];
        bytes.extend([0, 1, 0, 3]);
        assert_eq!(sum.partial(), reference(&bytes));
        let (src, dst): (std::net::Ipv6Addr, std::net::Ipv6Addr) = ("fe80::1".parse().unwrap(), "2001:db8::2".parse().unwrap());
        let sum = Sum::pseudo_header(src.into(), dst.into(), 17, 9000);
        let mut bytes = [src.octets(), dst.octets()].concat();
        bytes.extend(9000u32.to_be_bytes());
        bytes.extend([0, 0, 0, 17]);
        assert_eq!(sum.partial(), reference(&bytes));
    }

    #[test]
    fn a_udp_checksum_of_zero_is_sent_as_ones() {
        let mut sum = Sum::new();
        sum.add(&[0xff, 0xff]);
        assert_eq!((sum.finish(), udp_field(&sum)), (0, 0xffff));
    }

    #[test]
    fn a_scattered_packet_is_verified_and_a_flipped_bit_found() {
        let (src, dst) = ("192.0.2.1".parse().unwrap(), "192.0.2.2".parse().unwrap());
        let mut bytes: Vec<u8> = (0..61).collect();
        bytes[16..18].fill(0);
        let mut sum = Sum::pseudo_header(src, dst, protocol::TCP, bytes.len());
        sum.add(&bytes);
        bytes[16..18].copy_from_slice(&sum.finish().to_be_bytes());
        for cut in 0..bytes.len() {
            let packet = |bytes: &[u8]| RxPacket {
                first: RxBuf::from_vec(bytes[..cut].to_vec()),
                more: std::iter::once(RxBuf::from_vec(bytes[cut..].to_vec())).collect(),
            };
            assert!(transport_is_valid(src, dst, protocol::TCP, &packet(&bytes)));
            let mut wrong = bytes.clone();
            wrong[cut] ^= 0x10;
            assert!(!transport_is_valid(src, dst, protocol::TCP, &packet(&wrong)));
        }
    }

    proptest! {
        #[test]
        fn any_cut_sums_like_the_definition(bytes in prop::collection::vec(any::<u8>(), 0..300), a in 0usize..300, b in 0usize..300) {
            let (a, b) = (a.min(b).min(bytes.len()), a.max(b).min(bytes.len()));
            let mut sum = Sum::new();
            for piece in [&bytes[..a], &bytes[a..b], &bytes[b..]] {
                sum.add(piece);
            }
            // 0 and 0xffff are the same number; the definition above keeps 0 only for all zeroes, as does ours.
            prop_assert_eq!(sum.partial(), reference(&bytes));
        }
    }
}
