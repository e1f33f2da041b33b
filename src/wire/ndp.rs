//! Neighbour discovery messages: router and neighbour solicitations and advertisements, redirects.
//!
//! Read first: RFC 4861 section 4 (the messages and options), 6.1, 7.1 and 8.1 (what must be checked; what needs the IP header
//! too, `net::interface` checks), RFC 4862 section 5.5.3 (prefixes).
//! Deliberately not here: options that nobody here needs (redirected header, DNS servers, route information): skipped.

use std::net::Ipv6Addr;

use smallvec::SmallVec;

use crate::wire::ethernet::Address;
use crate::wire::icmpv6::{fill_checksum, kind};
use crate::wire::{Malformed, array_at, u16_at, u32_at};

/// Prefixes of one router advertisement that are kept; more are left out.
pub const PREFIXES_MAX: usize = 8;
/// Options of one message that are looked at; a message with more is malformed.
const OPTIONS_MAX: usize = 64;

const OPTION_SOURCE_LINK: u8 = 1;
const OPTION_TARGET_LINK: u8 = 2;
const OPTION_PREFIX: u8 = 3;
const OPTION_MTU: u8 = 5;

/// RFC 4861 section 4.6.2: all ones is for ever.
pub const LIFETIME_INFINITE: u32 = u32::MAX;

/// One prefix that a router tells (RFC 4861 section 4.6.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Prefix {
    pub prefix: Ipv6Addr,
    /// Bits.
    pub len: u8,
    /// Addresses in it are neighbours.
    pub on_link: bool,
    /// Addresses may be made from it.
    pub autonomous: bool,
    /// Seconds; `LIFETIME_INFINITE`: for ever.
    pub valid_s: u32,
    pub preferred_s: u32,
}

/// What a router tells (RFC 4861 section 4.2). 0 in a field: unspecified by this router.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RouterAdvertisement {
    pub hop_limit: u8,
    /// M and O: there is DHCPv6, which this stack does not speak.
    pub managed: bool,
    pub other: bool,
    /// Seconds as a default router; 0: it is none.
    pub lifetime_s: u16,
    pub reachable_ms: u32,
    pub retransmit_ms: u32,
    pub source: Option<Address>,
    pub mtu: Option<u32>,
    pub prefixes: SmallVec<[Prefix; 2]>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Repr {
    RouterSolicitation {
        source: Option<Address>,
    },
    RouterAdvertisement(RouterAdvertisement),
    NeighbourSolicitation {
        target: Ipv6Addr,
        source: Option<Address>,
    },
    NeighbourAdvertisement {
        target: Ipv6Addr,
        router: bool,
        solicited: bool,
        /// The link-layer address replaces a known one (the O flag).
        replace: bool,
        link: Option<Address>,
    },
    Redirect {
        target: Ipv6Addr,
        destination: Ipv6Addr,
    },
}

/// What the options of a message amount to.
#[derive(Default)]
struct Options {
    source: Option<Address>,
    target: Option<Address>,
    mtu: Option<u32>,
    prefixes: SmallVec<[Prefix; 2]>,
}

impl Options {
    /// RFC 4861 section 4.6: type, length in units of 8 bytes; "Nodes MUST silently discard an ND packet that contains an
    /// option with length zero"; unknown ones are ignored.
    fn parse(mut bytes: &[u8]) -> Result<Options, Malformed> {
        let mut options = Options::default();
        for _ in 0..OPTIONS_MAX {
            let [kind, units, ..] = *bytes else {
                return if bytes.is_empty() { Ok(options) } else { Err(Malformed) };
            };
            let len = usize::from(units) * 8;
            if len == 0 || len > bytes.len() {
                return Err(Malformed);
            }
            let (option, rest) = bytes.split_at(len);
            options.take(kind, option);
            bytes = rest;
        }
        if bytes.is_empty() { Ok(options) } else { Err(Malformed) }
    }

    fn take(&mut self, kind: u8, option: &[u8]) {
        match (kind, option.len()) {
            (OPTION_SOURCE_LINK, 8) => self.source = Some(Address(array_at(option, 2))),
            (OPTION_TARGET_LINK, 8) => self.target = Some(Address(array_at(option, 2))),
            (OPTION_MTU, 8) => self.mtu = Some(u32_at(option, 4)),
            (OPTION_PREFIX, 32) if self.prefixes.len() < PREFIXES_MAX => self.prefixes.push(Prefix {
                len: option[2],
                on_link: option[3] & 0x80 != 0,
                autonomous: option[3] & 0x40 != 0,
                valid_s: u32_at(option, 4),
                preferred_s: u32_at(option, 8),
                prefix: array_at::<16>(option, 16).into(),
            }),
            _ => {}
        }
    }
}

impl Repr {
    /// `message`: all of it, from the ICMPv6 type on. Its checksum and the IP header are the caller's to check.
    pub fn parse(message: &[u8]) -> Result<Repr, Malformed> {
        let [kind, code, ..] = *message else { return Err(Malformed) };
        // RFC 4861 sections 6.1.1, 6.1.2, 7.1.1, 7.1.2, 8.1: "ICMP Code is 0".
        if code != 0 {
            return Err(Malformed);
        }
        let options = |at: usize| message.get(at..).ok_or(Malformed).and_then(Options::parse);
        match kind {
            kind::ROUTER_SOLICITATION => Ok(Repr::RouterSolicitation { source: options(8)?.source }),
            kind::ROUTER_ADVERTISEMENT => {
                let Options { source, mtu, prefixes, .. } = options(16)?;
                Ok(Repr::RouterAdvertisement(RouterAdvertisement {
                    hop_limit: message[4],
                    managed: message[5] & 0x80 != 0,
                    other: message[5] & 0x40 != 0,
                    lifetime_s: u16_at(message, 6),
                    reachable_ms: u32_at(message, 8),
                    retransmit_ms: u32_at(message, 12),
                    source,
                    mtu,
                    prefixes,
                }))
            }
            kind::NEIGHBOUR_SOLICITATION => {
                Ok(Repr::NeighbourSolicitation { source: options(24)?.source, target: target_of(message)? })
            }
            kind::NEIGHBOUR_ADVERTISEMENT => Ok(Repr::NeighbourAdvertisement {
                link: options(24)?.target,
                target: target_of(message)?,
                router: message[4] & 0x80 != 0,
                solicited: message[4] & 0x40 != 0,
                replace: message[4] & 0x20 != 0,
            }),
            kind::REDIRECT => {
                options(40)?;
                let destination = array_at::<16>(message, 24).into();
                Ok(Repr::Redirect { target: array_at::<16>(message, 8).into(), destination })
            }
            _ => Err(Malformed),
        }
    }

    /// The message with its checksum.
    pub fn emit(&self, src: Ipv6Addr, dst: Ipv6Addr) -> SmallVec<[u8; 32]> {
        let mut out: SmallVec<[u8; 32]> = SmallVec::new();
        match self {
            Repr::RouterSolicitation { source } => {
                out.extend_from_slice(&[kind::ROUTER_SOLICITATION, 0, 0, 0, 0, 0, 0, 0]);
                emit_link(&mut out, OPTION_SOURCE_LINK, *source);
            }
            Repr::RouterAdvertisement(advertisement) => advertisement.emit(&mut out),
            Repr::NeighbourSolicitation { target, source } => {
                out.extend_from_slice(&[kind::NEIGHBOUR_SOLICITATION, 0, 0, 0, 0, 0, 0, 0]);
                out.extend_from_slice(&target.octets());
                emit_link(&mut out, OPTION_SOURCE_LINK, *source);
            }
            Repr::NeighbourAdvertisement { target, router, solicited, replace, link } => {
                let flags = u8::from(*router) << 7 | u8::from(*solicited) << 6 | u8::from(*replace) << 5;
                out.extend_from_slice(&[kind::NEIGHBOUR_ADVERTISEMENT, 0, 0, 0, flags, 0, 0, 0]);
                out.extend_from_slice(&target.octets());
                emit_link(&mut out, OPTION_TARGET_LINK, *link);
            }
            Repr::Redirect { target, destination } => {
                out.extend_from_slice(&[kind::REDIRECT, 0, 0, 0, 0, 0, 0, 0]);
                out.extend_from_slice(&target.octets());
                out.extend_from_slice(&destination.octets());
            }
        }
        fill_checksum(src, dst, &mut out);
        out
    }
}

impl RouterAdvertisement {
    fn emit(&self, out: &mut SmallVec<[u8; 32]>) {
        let flags = u8::from(self.managed) << 7 | u8::from(self.other) << 6;
        out.extend_from_slice(&[kind::ROUTER_ADVERTISEMENT, 0, 0, 0, self.hop_limit, flags]);
        out.extend_from_slice(&self.lifetime_s.to_be_bytes());
        out.extend_from_slice(&self.reachable_ms.to_be_bytes());
        out.extend_from_slice(&self.retransmit_ms.to_be_bytes());
        emit_link(out, OPTION_SOURCE_LINK, self.source);
        if let Some(mtu) = self.mtu {
            out.extend_from_slice(&[OPTION_MTU, 1, 0, 0]);
            out.extend_from_slice(&mtu.to_be_bytes());
        }
        for prefix in &self.prefixes {
            let flags = u8::from(prefix.on_link) << 7 | u8::from(prefix.autonomous) << 6;
            out.extend_from_slice(&[OPTION_PREFIX, 4, prefix.len, flags]);
            out.extend_from_slice(&prefix.valid_s.to_be_bytes());
            out.extend_from_slice(&prefix.preferred_s.to_be_bytes());
            out.extend_from_slice(&[0; 4]);
            out.extend_from_slice(&prefix.prefix.octets());
        }
    }
}

/// The target of a solicitation or advertisement, which must be one host's (RFC 4861 sections 7.1.1, 7.1.2). The options have
/// been looked at, so the 24 bytes are there.
fn target_of(message: &[u8]) -> Result<Ipv6Addr, Malformed> {
    let target: Ipv6Addr = array_at::<16>(message, 8).into();
    if target.is_multicast() { Err(Malformed) } else { Ok(target) }
}

fn emit_link(out: &mut SmallVec<[u8; 32]>, kind: u8, link: Option<Address>) {
    if let Some(Address(mac)) = link {
        out.extend_from_slice(&[kind, 1]);
        out.extend_from_slice(&mac);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const MAC: Address = Address([2, 0, 0, 0, 0, 9]);

    fn ip(text: &str) -> Ipv6Addr {
        text.parse().unwrap()
    }

    fn solicitation() -> Vec<u8> {
        let repr = Repr::NeighbourSolicitation { target: ip("fe80::2"), source: Some(MAC) };
        repr.emit(ip("fe80::1"), ip("fe80::2")).to_vec()
    }

    #[test]
    fn a_known_message() {
        let bytes = solicitation();
        assert_eq!(bytes.len(), 32);
        assert_eq!(bytes[..2], [135, 0]);
        assert_eq!(bytes[24..], [1, 1, 2, 0, 0, 0, 0, 9]);
    }

    #[test]
    fn messages_that_must_be_discarded() {
        let with = |change: &dyn Fn(&mut Vec<u8>)| {
            let mut bytes = solicitation();
            change(&mut bytes);
            Repr::parse(&bytes)
        };
        assert!(with(&|_| ()).is_ok());
        assert_eq!(with(&|b| b[1] = 1), Err(Malformed), "code");
        assert_eq!(with(&|b| b[25] = 0), Err(Malformed), "an option of length zero");
        assert_eq!(with(&|b| b[25] = 2), Err(Malformed), "an option beyond the message");
        assert_eq!(with(&|b| b.truncate(23)), Err(Malformed), "less than 24 bytes");
        assert_eq!(with(&|b| b[8] = 0xff), Err(Malformed), "a group as the target");
        assert_eq!(with(&|b| b.push(1)), Err(Malformed), "half an option");
        assert!(with(&|b| b[24] = 200).is_ok(), "an unknown option is skipped");
        assert_eq!(with(&|b| b[0] = 140), Err(Malformed));
        let many = [&[133, 0, 0, 0, 0, 0, 0, 0][..], &[14, 1, 0, 0, 0, 0, 0, 0].repeat(OPTIONS_MAX + 1)].concat();
        assert_eq!(Repr::parse(&many), Err(Malformed), "more options than anybody needs");
    }

    fn any_prefix() -> impl Strategy<Value = Prefix> {
        (any::<[u8; 16]>(), any::<u8>(), any::<(bool, bool)>(), any::<(u32, u32)>()).prop_map(
            |(prefix, len, (on_link, autonomous), (valid_s, preferred_s))| Prefix {
                prefix: prefix.into(),
                len,
                on_link,
                autonomous,
                valid_s,
                preferred_s,
            },
        )
    }

    fn any_mac() -> impl Strategy<Value = Option<Address>> {
        any::<Option<[u8; 6]>>().prop_map(|mac| mac.map(Address))
    }

    fn any_repr() -> impl Strategy<Value = Repr> {
        let unicast = || {
            any::<[u8; 16]>().prop_map(|mut octets| {
                octets[0] &= 0x7f;
                Ipv6Addr::from(octets)
            })
        };
        prop_oneof![
            any_mac().prop_map(|source| Repr::RouterSolicitation { source }),
            (unicast(), any_mac()).prop_map(|(target, source)| Repr::NeighbourSolicitation { target, source }),
            (unicast(), any_mac(), any::<(bool, bool, bool)>()).prop_map(|(target, link, (router, solicited, replace))| {
                Repr::NeighbourAdvertisement { target, router, solicited, replace, link }
            }),
            (unicast(), unicast()).prop_map(|(target, destination)| Repr::Redirect { target, destination }),
            (
                any::<(u8, bool, bool, u16, u32, u32)>(),
                any_mac(),
                any::<Option<u32>>(),
                prop::collection::vec(any_prefix(), 0..PREFIXES_MAX),
            )
                .prop_map(
                    |((hop_limit, managed, other, lifetime_s, reachable_ms, retransmit_ms), source, mtu, prefixes)| {
                        Repr::RouterAdvertisement(RouterAdvertisement {
                            hop_limit,
                            managed,
                            other,
                            lifetime_s,
                            reachable_ms,
                            retransmit_ms,
                            source,
                            mtu,
                            prefixes: prefixes.into(),
                        })
                    }
                ),
        ]
    }

    proptest! {
        #[test]
        fn random_bytes_never_panic(mut bytes in prop::collection::vec(any::<u8>(), 0..120), kind in 133u8..138) {
            if let [first, second, ..] = &mut bytes[..] {
                (*first, *second) = (kind, 0);
            }
            let _ = Repr::parse(&bytes);
        }

        #[test]
        fn what_is_emitted_parses_back(repr in any_repr()) {
            let bytes = repr.emit(ip("fe80::1"), ip("ff02::1"));
            prop_assert_eq!(Repr::parse(&bytes), Ok(repr));
        }
    }
}
