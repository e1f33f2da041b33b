//! ICMP for IPv6: errors and echo.
//!
//! Read first: RFC 4443 sections 2.4 (rules), 3 (errors), 4 (echo), RFC 8201 section 4 (the MTU in "packet too big").
//! Deliberately not here: neighbour discovery (`ndp`) and multicast listener discovery (`mld`), which use the same header;
//! node information, extended echo: parsed as `Other` and ignored.

use std::net::Ipv6Addr;

use crate::wire::checksum::Sum;
use crate::wire::{Malformed, array_at, ipv6, protocol, u16_at, u32_at};

/// Bytes before a message's data: the same for all messages here.
pub const HEADER_LEN: usize = 8;

/// RFC 4443 section 3: an error quotes "as much of invoking packet as possible without the ICMPv6 packet exceeding the minimum
/// IPv6 MTU".
pub const QUOTE_LEN_MAX: usize = ipv6::MTU_MIN as usize - ipv6::HEADER_LEN - HEADER_LEN;

/// Types of the messages that other files parse.
pub mod kind {
    pub const MLD_QUERY: u8 = 130;
    pub const MLDV1_REPORT: u8 = 131;
    pub const MLDV1_DONE: u8 = 132;
    pub const ROUTER_SOLICITATION: u8 = 133;
    pub const ROUTER_ADVERTISEMENT: u8 = 134;
    pub const NEIGHBOUR_SOLICITATION: u8 = 135;
    pub const NEIGHBOUR_ADVERTISEMENT: u8 = 136;
    pub const REDIRECT: u8 = 137;
    pub const MLDV2_REPORT: u8 = 143;
}

/// Codes of "destination unreachable" (RFC 4443 section 3.1).
pub mod unreachable {
    pub const NO_ROUTE: u8 = 0;
    pub const PROHIBITED: u8 = 1;
    pub const BEYOND_SCOPE: u8 = 2;
    pub const ADDRESS: u8 = 3;
    pub const PORT: u8 = 4;
}

/// Codes of "parameter problem" (RFC 4443 section 3.4).
pub mod parameter_problem {
    pub const HEADER_FIELD: u8 = 0;
    pub const NEXT_HEADER: u8 = 1;
    pub const OPTION: u8 = 2;
}

/// A view of a message's header. Getters never panic: `new` has checked the length.
#[derive(Clone, Copy)]
pub struct Packet<'a> {
    bytes: &'a [u8],
}

impl<'a> Packet<'a> {
    /// `bytes`: the message, or as much of its front as is contiguous.
    pub fn new(bytes: &'a [u8]) -> Result<Packet<'a>, Malformed> {
        if bytes.len() < HEADER_LEN {
            return Err(Malformed);
        }
        Ok(Packet { bytes })
    }

    pub fn kind(&self) -> u8 {
        self.bytes[0]
    }

    pub fn code(&self) -> u8 {
        self.bytes[1]
    }

    pub fn data(&self) -> &'a [u8] {
        self.bytes.get(HEADER_LEN..).unwrap_or(&[])
    }
}

/// RFC 4443 section 2.1: types below 128 are errors.
pub fn is_error(kind: u8) -> bool {
    kind < 128
}

/// A message without its data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Repr {
    EchoRequest {
        identifier: u16,
        sequence: u16,
    },
    EchoReply {
        identifier: u16,
        sequence: u16,
    },
    DestinationUnreachable {
        code: u8,
    },
    /// The MTU of the next link, bytes.
    PacketTooBig {
        mtu: u32,
    },
    TimeExceeded {
        code: u8,
    },
    /// Where in the invoking packet the problem lies, bytes.
    ParameterProblem {
        code: u8,
        pointer: u32,
    },
    /// Not an error or echo this stack knows.
    Other {
        kind: u8,
        code: u8,
    },
}

impl Repr {
    pub fn parse(packet: &Packet<'_>) -> Repr {
        let (kind, code) = (packet.kind(), packet.code());
        let (identifier, sequence) = (u16_at(packet.bytes, 4), u16_at(packet.bytes, 6));
        match kind {
            1 => Repr::DestinationUnreachable { code },
            // RFC 4443 section 3.2: the code is ignored by the receiver.
            2 => Repr::PacketTooBig { mtu: u32_at(packet.bytes, 4) },
            3 => Repr::TimeExceeded { code },
            4 => Repr::ParameterProblem { code, pointer: u32_at(packet.bytes, 4) },
            128 if code == 0 => Repr::EchoRequest { identifier, sequence },
            129 if code == 0 => Repr::EchoReply { identifier, sequence },
            _ => Repr::Other { kind, code },
        }
    }

    /// The header with its checksum; `data` are the pieces that follow it, whose bytes the checksum covers.
    pub fn emit(&self, src: Ipv6Addr, dst: Ipv6Addr, data: &[&[u8]]) -> [u8; HEADER_LEN] {
        let (kind, code, word) = match *self {
            Repr::EchoRequest { identifier, sequence } => (128, 0, halves(identifier, sequence)),
            Repr::EchoReply { identifier, sequence } => (129, 0, halves(identifier, sequence)),
            Repr::DestinationUnreachable { code } => (1, code, 0),
            Repr::PacketTooBig { mtu } => (2, 0, mtu),
            Repr::TimeExceeded { code } => (3, code, 0),
            Repr::ParameterProblem { code, pointer } => (4, code, pointer),
            Repr::Other { kind, code } => (kind, code, 0),
        };
        let [a, b, c, d] = word.to_be_bytes();
        let mut header = [kind, code, 0, 0, a, b, c, d];
        let len = HEADER_LEN + data.iter().map(|piece| piece.len()).sum::<usize>();
        let mut sum = Sum::pseudo_header(src.into(), dst.into(), protocol::ICMPV6, len);
        sum.add(&header);
        data.iter().for_each(|piece| sum.add(piece));
        header[2..4].copy_from_slice(&sum.finish().to_be_bytes());
        header
    }
}

fn halves(high: u16, low: u16) -> u32 {
    u32::from(high) << 16 | u32::from(low)
}

/// Fills in the checksum of a whole message (RFC 4443 section 2.3).
pub fn fill_checksum(src: Ipv6Addr, dst: Ipv6Addr, message: &mut [u8]) {
    if let Some(field) = message.get_mut(2..4) {
        field.fill(0);
    }
    let mut sum = Sum::pseudo_header(src.into(), dst.into(), protocol::ICMPV6, message.len());
    sum.add(message);
    if let Some(field) = message.get_mut(2..4) {
        field.copy_from_slice(&sum.finish().to_be_bytes());
    }
}

/// The packet that an error is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Quote {
    pub src: Ipv6Addr,
    pub dst: Ipv6Addr,
    pub protocol: u8,
    pub src_port: u16,
    pub dst_port: u16,
    /// The word behind the ports: TCP's sequence number.
    pub word: u32,
}

impl Quote {
    /// `data`: what follows an error's header.
    pub fn parse(data: &[u8]) -> Result<Quote, Malformed> {
        let packet = ipv6::Packet::new_quoted(data)?;
        let chain = packet.chain().map_err(|_| Malformed)?;
        if chain.fragment.is_some() {
            return Err(Malformed);
        }
        let transport: [u8; 8] = match data.get(chain.offset..chain.offset + 8) {
            Some(_) => array_at(data, chain.offset),
            None => return Err(Malformed),
        };
        Ok(Quote {
            src: packet.src(),
            dst: packet.dst(),
            protocol: chain.protocol,
            src_port: u16_at(&transport, 0),
            dst_port: u16_at(&transport, 2),
            word: u32_at(&transport, 4),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn addresses() -> [Ipv6Addr; 2] {
        ["2001:db8::1", "2001:db8::2"].map(|text| text.parse().unwrap())
    }

    #[test]
    fn a_quote_gives_ports_and_sequence() {
        let [src, dst] = addresses();
        let ip =
            ipv6::Repr { src, dst, next_header: 60, traffic_class: 0, flow_label: 0, hop_limit: 1, payload_len: 1460 }.emit();
        let mut data = [&ip[..], &[6, 0, 1, 4, 0, 0, 0, 0], &[0x08, 0x01, 0x02, 0xbc, 0xde, 0xad, 0xbe, 0xef]].concat();
        let quote = Quote::parse(&data).unwrap();
        assert_eq!((quote.src_port, quote.dst_port, quote.word, quote.protocol), (2049, 700, 0xdead_beef, 6));
        assert_eq!((quote.src, quote.dst), (src, dst));
        assert_eq!(Quote::parse(&data[..55]), Err(Malformed));
        data[6] = 44;
        data[43] = 1;
        assert_eq!(Quote::parse(&data), Err(Malformed), "a fragment");
    }

    #[test]
    fn errors_and_informational_messages_are_told_apart() {
        assert!(is_error(1) && is_error(127) && !is_error(128) && !is_error(kind::REDIRECT));
    }

    fn any_repr() -> impl Strategy<Value = Repr> {
        prop_oneof![
            any::<(u16, u16)>().prop_map(|(identifier, sequence)| Repr::EchoRequest { identifier, sequence }),
            any::<(u16, u16)>().prop_map(|(identifier, sequence)| Repr::EchoReply { identifier, sequence }),
            any::<u8>().prop_map(|code| Repr::DestinationUnreachable { code }),
            any::<u32>().prop_map(|mtu| Repr::PacketTooBig { mtu }),
            any::<u8>().prop_map(|code| Repr::TimeExceeded { code }),
            any::<(u8, u32)>().prop_map(|(code, pointer)| Repr::ParameterProblem { code, pointer }),
        ]
    }

    proptest! {
        #[test]
        fn random_bytes_never_panic(mut bytes in prop::collection::vec(any::<u8>(), 0..120)) {
            if let Some(byte) = bytes.get_mut(HEADER_LEN) {
                *byte = 0x60;
            }
            if let Ok(packet) = Packet::new(&bytes) {
                let _ = (Repr::parse(&packet), Quote::parse(packet.data()));
            }
        }

        #[test]
        fn what_is_emitted_parses_back_with_a_good_checksum(repr in any_repr(), data in prop::collection::vec(any::<u8>(), 0..50)) {
            let [src, dst] = addresses();
            let mut bytes = repr.emit(src, dst, &[&data[..]]).to_vec();
            bytes.extend(&data);
            let mut sum = Sum::pseudo_header(src.into(), dst.into(), protocol::ICMPV6, bytes.len());
            sum.add(&bytes);
            prop_assert!(sum.is_valid());
            let before = bytes.clone();
            fill_checksum(src, dst, &mut bytes);
            prop_assert_eq!(&bytes, &before);
            let packet = Packet::new(&bytes).unwrap();
            prop_assert_eq!(Repr::parse(&packet), repr);
            prop_assert_eq!(packet.data(), &data[..]);
        }
    }
}
