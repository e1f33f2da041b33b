//! Which receive queue a connection belongs to: receive-side scaling, computed in software.
//!
//! A NIC with RSS hashes a frame's addresses and ports under a key and looks the queue up in its redirection table. [`Spread`]
//! knows key, table and what is hashed, and so computes the same queue for any connection; where a device spreads frames in a
//! way of its own, or not at all, the same function simply says to whom a connection belongs.
//!
//! Read first: the Toeplitz hash as Microsoft's "RSS hashing functions" defines it: for every bit of the input that is set, the 32
//! bits of the key that begin at the bit's position are added (exclusive or). The input is source address, destination address,
//! source port, destination port, as they stand in the received packet.
//!
//! A key of 16 bits over and over (`SYMMETRIC_KEY_WORD`) gives both directions of a connection one hash, and a short
//! computation: a bit's place matters modulo 16 only, so the input is folded into one word first. Other keys (a driver's own) cost a table
//! of a kilobyte for each byte of the input.
//!
//! Anybody can compute which queue a connection will get, as with every RSS key that is published: a client that opens many connections
//! may choose to load one core. The limits of a core are there for that.

use std::net::IpAddr;

use crate::wire::ethernet::{Frame, ethertype};

/// 16 bits that spread well when repeated: S. Woo and K. Park, "Scalable TCP Session Monitoring with Symmetric Receive-side
/// Scaling", 2012.
pub const SYMMETRIC_KEY_WORD: u16 = 0x6d5a;

/// The next header of ICMPv6 (RFC 4443 section 1) and of hop-by-hop options (RFC 8200 section 4.3), and the types and hop limits that
/// neighbour discovery (RFC 4861 sections 4.1 to 4.5) and a listener query (RFC 3810 section 5.1, behind a router alert) have: others' hop limits
/// say that they come from behind a router, and no core would believe them.
const ICMPV6: u8 = 58;
const HOP_BY_HOP: u8 = 0;
const LISTENER_QUERY: u8 = 130;
const LISTENER_HOP_LIMIT: u8 = 1;
const NEIGHBOUR_DISCOVERY: std::ops::RangeInclusive<u8> = 133..=137;
const DISCOVERY_HOP_LIMIT: u8 = 255;

/// Bytes of the longest input: two IPv6 addresses and two ports.
const INPUT_BYTES_MAX: usize = 36;
/// Bytes of key that such an input reaches.
pub const KEY_BYTES_MAX: usize = INPUT_BYTES_MAX + 4;
/// Entries of the table when there is no device's own; 128 is what most NICs have.
const TABLE_ENTRIES: u16 = 128;

/// What of a TCP segment a device hashes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hashed {
    /// The ports of a segment over IPv4 too, not its addresses alone.
    pub ipv4_ports: bool,
    /// The same over IPv6.
    pub ipv6_ports: bool,
}

/// A connection's way to its queue.
#[derive(Clone, Debug)]
pub struct Spread {
    hash: Toeplitz,
    hashed: Hashed,
    /// The queue for each hash modulo the length, which is a power of two.
    table: Box<[u16]>,
}

#[derive(Clone, Debug)]
enum Toeplitz {
    /// What the high and the low byte of the folded input add.
    Periodic(Box<[[u32; 256]; 2]>),
    /// What each byte of the input adds, by its place and value.
    Any(Vec<[u32; 256]>),
}

impl Spread {
    /// Spreads evenly over `queues` (at least 1), by addresses and ports, under the symmetric key.
    pub fn in_software(queues: u16) -> Spread {
        let key = SYMMETRIC_KEY_WORD.to_be_bytes().repeat(KEY_BYTES_MAX / 2);
        let entries = TABLE_ENTRIES.max(queues.next_power_of_two());
        Spread {
            hash: Toeplitz::new(&key),
            hashed: Hashed { ipv4_ports: true, ipv6_ports: true },
            table: (0..entries).map(|at| at % queues.max(1)).collect(),
        }
    }

    /// As a device does. `None` if the key is too short for an IPv4 connection, or the table's length is not a power of two.
    pub fn of_device(key: &[u8], hashed: Hashed, table: &[u16]) -> Option<Spread> {
        let usable = key.len() >= 16 && table.len().is_power_of_two();
        usable.then(|| Spread { hash: Toeplitz::new(key), hashed, table: table.into() })
    }

    /// Queues it leads to: all are below this number.
    pub fn queues(&self) -> u16 {
        self.table.iter().max().map_or(1, |queue| queue + 1)
    }

    /// The queue of the connection between `remote` and `local`: where the peer's segments should arrive.
    #[inline]
    pub fn queue_of(&self, remote: (IpAddr, u16), local: (IpAddr, u16)) -> u16 {
        let hash = match (remote.0, local.0) {
            (IpAddr::V4(from), IpAddr::V4(to)) => {
                let words = [u32::from(from), u32::from(to), ports(self.hashed.ipv4_ports, remote.1, local.1)];
                self.hash.of_words(&words)
            }
            (from, to) => {
                let mut words = [0; INPUT_BYTES_MAX / 4];
                for (at, address) in [(0, from), (4, to)] {
                    for (word, bytes) in words[at..at + 4].iter_mut().zip(octets(address).chunks_exact(4)) {
                        *word = bytes.iter().fold(0, |word, byte| word << 8 | u32::from(*byte));
                    }
                }
                words[8] = ports(self.hashed.ipv6_ports, remote.1, local.1);
                self.hash.of_words(&words)
            }
        };
        // The length is a power of two, and not 0.
        self.table[hash as usize & (self.table.len() - 1)]
    }
}

/// Whether a frame tells about neighbours or routers, or asks for groups, which every core that shares the port has to know: ARP (RFC 826),
/// neighbour discovery (RFC 4861 section 4: ICMPv6 types 133 to 137, which no extension header may precede in practice), and queries of
/// multicast listeners.
pub fn concerns_every_core(frame: &[u8]) -> bool {
    let Ok(frame) = Frame::new(frame) else { return false };
    let packet = frame.payload();
    match frame.ethertype() {
        ethertype::ARP => true,
        ethertype::IPV6 => match packet.get(6..8) {
            Some([ICMPV6, DISCOVERY_HOP_LIMIT]) => packet.get(40).is_some_and(|kind| NEIGHBOUR_DISCOVERY.contains(kind)),
            Some([HOP_BY_HOP, LISTENER_HOP_LIMIT]) => is_listener_query(packet),
            _ => false,
        },
        _ => false,
    }
}

/// `packet` begins with the IPv6 header, which hop-by-hop options follow.
fn is_listener_query(packet: &[u8]) -> bool {
    let Some([ICMPV6, units]) = packet.get(40..42) else { return false };
    packet.get(48 + 8 * usize::from(*units)) == Some(&LISTENER_QUERY)
}

/// Ports that are not hashed count as 0, which adds nothing.
fn ports(hashed: bool, source: u16, destination: u16) -> u32 {
    if hashed { u32::from(source) << 16 | u32::from(destination) } else { 0 }
}

fn octets(address: IpAddr) -> [u8; 16] {
    match address {
        IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
        IpAddr::V6(v6) => v6.octets(),
    }
}

impl Toeplitz {
    /// Bits beyond the key's end are 0.
    fn new(key: &[u8]) -> Toeplitz {
        let byte = |at: usize| u64::from(key.get(at).copied().unwrap_or(0));
        // The 32 bits of the key that begin at bit `at`.
        let window = |at: usize| {
            let five = (0..5).fold(0, |five, nth| five << 8 | byte(at / 8 + nth));
            (five >> (8 - at % 8)) as u32
        };
        let table_of = |place: usize| -> [u32; 256] {
            std::array::from_fn(|value| {
                let set = (0..8).filter(|bit| value & (0x80 >> bit) != 0);
                set.fold(0, |sum, bit| sum ^ window(8 * place + bit))
            })
        };
        let reach = key.len().min(KEY_BYTES_MAX);
        if reach == KEY_BYTES_MAX && (2..reach).all(|at| key[at] == key[at - 2]) {
            Toeplitz::Periodic(Box::new([table_of(0), table_of(1)]))
        } else {
            Toeplitz::Any((0..INPUT_BYTES_MAX).map(table_of).collect())
        }
    }

    #[inline]
    fn of_words(&self, words: &[u32]) -> u32 {
        match self {
            Toeplitz::Periodic(tables) => {
                let folded = words.iter().fold(0, |folded, word| folded ^ word);
                let [_, _, high, low] = (folded ^ folded >> 16).to_be_bytes();
                tables[0][usize::from(high)] ^ tables[1][usize::from(low)]
            }
            Toeplitz::Any(tables) => {
                let bytes = words.iter().flat_map(|word| word.to_be_bytes());
                bytes.zip(tables).fold(0, |sum, (byte, table)| sum ^ table[usize::from(byte)])
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::SocketAddr;

    /// The key of the published verification suite.
    const KEY: [u8; 40] = [
        0x6d, 0x5a, 0x56, 0xda, 0x25, 0x5b, 0x0e, 0xc2, 0x41, 0x67, 0x25, 0x3d, 0x43, 0xa3, 0x8f, 0xb0, 0xd0, 0xca, 0x2b, 0xcb,
        0xae, 0x7b, 0x30, 0xb4, 0x77, 0xcb, 0x2d, 0xa3, 0x80, 0x30, 0xf2, 0x0c, 0x6a, 0x42, 0xb7, 0x3b, 0xbe, 0xac, 0x01, 0xfa,
    ];

    fn symmetric() -> Vec<u8> {
        SYMMETRIC_KEY_WORD.to_be_bytes().repeat(KEY_BYTES_MAX / 2)
    }

    /// The hash itself, sixteen bits at a time, through tables that give them away.
    fn hash(key: &[u8], ports: bool, from: &str, to: &str) -> u32 {
        let (from, to): (SocketAddr, SocketAddr) = (from.parse().unwrap(), to.parse().unwrap());
        let part = |table: Vec<u16>| {
            let hashed = Hashed { ipv4_ports: ports, ipv6_ports: ports };
            let spread = Spread::of_device(key, hashed, &table).unwrap();
            spread.queue_of((from.ip(), from.port()), (to.ip(), to.port()))
        };
        // 2^15 entries give the low 15 bits.
        u32::from(part((0..1 << 15).collect()))
    }

    #[test]
    fn the_published_vectors() {
        // "Verifying the RSS hash calculation": destination, source, hash with and without ports.
        let vectors = [
            ("66.9.149.187:2794", "161.142.100.80:1766", 0x51cc_c178, 0x323e_8fc2),
            ("199.92.111.2:14230", "65.69.140.83:4739", 0xc626_b0ea, 0xd718_262a),
            ("24.19.198.95:12898", "12.22.207.184:38024", 0x5c2b_394a, 0xd2d0_a5de),
            ("38.27.205.30:48228", "209.142.163.6:2217", 0xafc7_327f, 0x8298_9176),
            ("153.39.163.191:44251", "202.188.127.2:1303", 0x10e8_28a2, 0x5d18_09c5),
            ("[3ffe:2501:200:1fff::7]:2794", "[3ffe:2501:200:3::1]:1766", 0x4020_7d3d, 0x2cc1_8cd5),
            ("[3ffe:501:8::260:97ff:fe40:efab]:14230", "[ff02::1]:4739", 0xdde5_1bbf, 0x0f0c_461c),
        ];
        for (source, destination, with_ports, without) in vectors {
            assert_eq!(hash(&KEY, true, source, destination), with_ports & 0x7fff, "{source}");
            assert_eq!(hash(&KEY, false, source, destination), without & 0x7fff, "{source}");
        }
    }

    #[test]
    fn the_short_computation_is_the_long_one_and_symmetric() {
        // One byte short of what the short computation asks for.
        let long = &symmetric()[..KEY_BYTES_MAX - 1];
        for nth in 0..2000u32 {
            let mixed = nth.wrapping_mul(0x9e37_79b9);
            let from = format!("10.{}.{}.1:{}", mixed >> 24, mixed >> 16 & 255, mixed & 0xffff);
            let to = format!("192.168.{}.9:2049", nth & 255);
            assert_eq!(hash(&symmetric(), true, &from, &to), hash(long, true, &from, &to));
            assert_eq!(hash(&symmetric(), true, &from, &to), hash(&symmetric(), true, &to, &from));
        }
        let (from, to) = ("[fd00::1:2]:700", "[fd00::9]:2049");
        assert_eq!(hash(&symmetric(), true, from, to), hash(&symmetric(), true, to, from));
    }

    #[test]
    fn the_ports_of_one_client_reach_every_queue_about_as_often() {
        for queues in [1, 2, 3, 8] {
            let spread = Spread::in_software(queues);
            let mut counts = vec![0; usize::from(queues)];
            for port in 600..1624 {
                let queue = spread.queue_of((IpAddr::from([10, 0, 0, 7]), port), (IpAddr::from([10, 0, 0, 1]), 2049));
                counts[usize::from(queue)] += 1;
            }
            let even = 1024 / i32::from(queues);
            assert!(counts.iter().all(|count| (count - even).abs() <= even / 4), "{counts:?}");
        }
    }

    #[test]
    fn arp_and_neighbour_discovery_concern_every_core() {
        let frame = |ethertype: u16, payload: &[u8]| [&[2; 12][..], &ethertype.to_be_bytes(), payload].concat();
        assert!(concerns_every_core(&frame(ethertype::ARP, &[0; 28])));
        let mut ipv6 = [0; 48];
        (ipv6[6], ipv6[7], ipv6[40]) = (58, 255, 135);
        assert!(concerns_every_core(&frame(ethertype::IPV6, &ipv6)));
        ipv6[7] = 254;
        assert!(!concerns_every_core(&frame(ethertype::IPV6, &ipv6)), "from behind a router");
        (ipv6[7], ipv6[40]) = (255, 128);
        assert!(!concerns_every_core(&frame(ethertype::IPV6, &ipv6)), "echo");
        (ipv6[6], ipv6[40]) = (6, 135);
        assert!(!concerns_every_core(&frame(ethertype::IPV6, &ipv6)), "TCP");
        assert!(!concerns_every_core(&frame(ethertype::IPV6, &ipv6[..6])));
        // A listener query behind eight and sixteen octets of hop-by-hop options.
        for len in [8, 16] {
            let mut ipv6 = vec![0; 64];
            (ipv6[7], ipv6[40], ipv6[41], ipv6[40 + len]) = (1, 58, len as u8 / 8 - 1, 130);
            assert!(concerns_every_core(&frame(ethertype::IPV6, &ipv6)));
            ipv6[7] = 64;
            assert!(!concerns_every_core(&frame(ethertype::IPV6, &ipv6)), "from behind a router");
            ipv6[7] = 1;
            ipv6[40 + len] = 143;
            assert!(!concerns_every_core(&frame(ethertype::IPV6, &ipv6)), "a report");
            assert!(!concerns_every_core(&frame(ethertype::IPV6, &ipv6[..40 + len])), "cut short");
        }
        assert!(!concerns_every_core(&frame(ethertype::IPV4, &ipv6)));
        assert!(!concerns_every_core(&[0; 5]));
    }

    #[test]
    fn a_table_or_key_that_cannot_be_used_is_refused() {
        let hashed = Hashed { ipv4_ports: true, ipv6_ports: true };
        assert!(Spread::of_device(&KEY, hashed, &[0, 1, 0]).is_none());
        assert!(Spread::of_device(&KEY, hashed, &[]).is_none());
        assert!(Spread::of_device(&KEY[..15], hashed, &[0, 1]).is_none());
        assert!(Spread::of_device(&KEY, hashed, &[0, 1]).is_some());
    }
}
