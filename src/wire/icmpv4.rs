//! ICMP for IPv4.
//!
//! Read first: RFC 792 (the messages), RFC 1122 section 3.2.2 (what a host does with them), RFC 1191 section 4 (the MTU in
//! "fragmentation needed"), RFC 1812 section 4.3.2.3 (how much of a packet an error quotes).
//! Deliberately not here: redirects, router discovery, timestamps, address masks: parsed as `Other` and ignored.

use std::net::Ipv4Addr;

use crate::wire::checksum::Sum;
use crate::wire::{Malformed, array_at, ipv4, u16_at, u32_at};

/// Bytes before a message's data: the same for all messages here.
pub const HEADER_LEN: usize = 8;

/// An error message with its IP header is at most this long (RFC 1812 section 4.3.2.3), so it quotes up to
/// 576 - 20 - 8 bytes.
pub const QUOTE_LEN_MAX: usize = 576 - ipv4::HEADER_LEN - HEADER_LEN;

/// Codes of "destination unreachable".
pub mod unreachable {
    pub const NET: u8 = 0;
    pub const HOST: u8 = 1;
    pub const PROTOCOL: u8 = 2;
    pub const PORT: u8 = 3;
    pub const FRAGMENTATION_NEEDED: u8 = 4;
    /// Administratively prohibited.
    pub const HOST_PROHIBITED: u8 = 10;
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
    /// `mtu`: of the next hop, 0 if the router does not tell; only with FRAGMENTATION_NEEDED.
    DestinationUnreachable {
        code: u8,
        mtu: u16,
    },
    TimeExceeded {
        code: u8,
    },
    ParameterProblem {
        code: u8,
        pointer: u8,
    },
    /// Ignored, whatever it is.
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
            0 if code == 0 => Repr::EchoReply { identifier, sequence },
            3 => Repr::DestinationUnreachable { code, mtu: if code == unreachable::FRAGMENTATION_NEEDED { sequence } else { 0 } },
            8 if code == 0 => Repr::EchoRequest { identifier, sequence },
            11 => Repr::TimeExceeded { code },
            12 => Repr::ParameterProblem { code, pointer: packet.bytes[4] },
            _ => Repr::Other { kind, code },
        }
    }

    /// The header with its checksum; `data` are the pieces that follow it, whose bytes the checksum covers.
    pub fn emit<'d>(&self, data: impl IntoIterator<Item = &'d [u8]>) -> [u8; HEADER_LEN] {
        let (kind, code, [a, b, c, d]) = match *self {
            Repr::EchoReply { identifier, sequence } => (0, 0, halves(identifier, sequence)),
            Repr::EchoRequest { identifier, sequence } => (8, 0, halves(identifier, sequence)),
            Repr::DestinationUnreachable { code, mtu } => (3, code, halves(0, mtu)),
            Repr::TimeExceeded { code } => (11, code, [0; 4]),
            Repr::ParameterProblem { code, pointer } => (12, code, [pointer, 0, 0, 0]),
            Repr::Other { kind, code } => (kind, code, [0; 4]),
        };
        let mut header = [kind, code, 0, 0, a, b, c, d];
        let mut sum = Sum::new();
        sum.add(&header);
        for piece in data {
            sum.add(piece);
        }
        header[2..4].copy_from_slice(&sum.finish().to_be_bytes());
        header
    }
}

fn halves(high: u16, low: u16) -> [u8; 4] {
    let ([a, b], [c, d]) = (high.to_be_bytes(), low.to_be_bytes());
    [a, b, c, d]
}

/// The packet that an error is about, as far as RFC 792 promises it: the IP header and 8 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Quote {
    pub src: Ipv4Addr,
    pub dst: Ipv4Addr,
    pub protocol: u8,
    /// Total length of the packet, bytes.
    pub total_len: u16,
    pub src_port: u16,
    pub dst_port: u16,
    /// The word behind the ports: TCP's sequence number.
    pub word: u32,
}

impl Quote {
    /// `data`: what follows an error's header.
    pub fn parse(data: &[u8]) -> Result<Quote, Malformed> {
        let packet = ipv4::Packet::new_quoted(data)?;
        if packet.is_later_fragment() {
            return Err(Malformed);
        }
        let transport: [u8; 8] = match data.get(packet.header_len()..packet.header_len() + 8) {
            Some(_) => array_at(data, packet.header_len()),
            None => return Err(Malformed),
        };
        Ok(Quote {
            src: packet.src(),
            dst: packet.dst(),
            protocol: packet.protocol(),
            total_len: packet.total_len() as u16,
            src_port: u16_at(&transport, 0),
            dst_port: u16_at(&transport, 2),
            word: u32_at(&transport, 4),
        })
    }
}

/// The MTU to try when a router reports "fragmentation needed" without one: the next plateau below the packet that was
/// refused (RFC 1191 section 7.1).
pub fn plateau_below(total_len: u16) -> u16 {
    const PLATEAUS: [u16; 10] = [32_000, 17_914, 8_166, 4_352, 2_002, 1_492, 1_006, 508, 296, 68];
    PLATEAUS.into_iter().find(|plateau| *plateau < total_len).unwrap_or(68)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_quote_gives_ports_and_sequence() {
        let ip = ipv4::Repr {
            src: Ipv4Addr::new(10, 0, 0, 1),
            dst: Ipv4Addr::new(10, 0, 0, 2),
            protocol: 6,
            traffic_class: 0,
            identification: 7,
            dont_fragment: true,
            time_to_live: 1,
            payload_len: 1480,
        };
        let mut data = ip.emit().to_vec();
        data.extend([0x08, 0x01, 0x02, 0xbc, 0xde, 0xad, 0xbe, 0xef]);
        let quote = Quote::parse(&data).unwrap();
        assert_eq!((quote.src_port, quote.dst_port, quote.word), (2049, 700, 0xdead_beef));
        assert_eq!((quote.src, quote.dst, quote.protocol, quote.total_len), (ip.src, ip.dst, 6, 1500));
        assert_eq!(Quote::parse(&data[..27]), Err(Malformed));
        data[7] = 1;
        assert_eq!(Quote::parse(&data), Err(Malformed), "a later fragment has no ports");
    }

    #[test]
    fn plateaus_step_down_and_end() {
        assert_eq!(plateau_below(1500), 1492);
        assert_eq!(plateau_below(9000), 8166);
        assert_eq!(plateau_below(68), 68);
        assert_eq!(plateau_below(0), 68);
    }

    fn any_repr() -> impl Strategy<Value = Repr> {
        prop_oneof![
            any::<(u16, u16)>().prop_map(|(identifier, sequence)| Repr::EchoRequest { identifier, sequence }),
            any::<(u16, u16)>().prop_map(|(identifier, sequence)| Repr::EchoReply { identifier, sequence }),
            any::<u16>().prop_map(|mtu| Repr::DestinationUnreachable { code: 4, mtu }),
            any::<u8>()
                .prop_filter("4 has an MTU", |code| *code != 4)
                .prop_map(|code| Repr::DestinationUnreachable { code, mtu: 0 }),
            any::<u8>().prop_map(|code| Repr::TimeExceeded { code }),
            any::<(u8, u8)>().prop_map(|(code, pointer)| Repr::ParameterProblem { code, pointer }),
        ]
    }

    proptest! {
        #[test]
        fn random_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..80)) {
            if let Ok(packet) = Packet::new(&bytes) {
                let _ = (Repr::parse(&packet), Quote::parse(packet.data()));
            }
        }

        #[test]
        fn what_is_emitted_parses_back_with_a_good_checksum(repr in any_repr(), data in prop::collection::vec(any::<u8>(), 0..50)) {
            let mut bytes = repr.emit([&data[..]]).to_vec();
            bytes.extend(&data);
            let mut sum = Sum::new();
            sum.add(&bytes);
            prop_assert!(sum.is_valid());
            let packet = Packet::new(&bytes).unwrap();
            prop_assert_eq!(Repr::parse(&packet), repr);
            prop_assert_eq!(packet.data(), &data[..]);
        }
    }
}
