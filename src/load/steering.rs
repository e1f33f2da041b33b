//! Several cores on one port: which core a received frame belongs to.
//!
//! A connection lives on the core that opened it, with a local port that says so: the n-th core uses every n-th port. Among those it
//! takes ports that the device's hash brings to its queue (the symmetric Toeplitz key of the `dpdk` package, a table of queues filled in
//! turn, which is what drivers set up). Where a device hashes otherwise, or not at all (net_vhost: the peer chooses the queue), the
//! frame is handed to its core here, and counted. What every core needs to know, ARP and neighbour discovery, each gets a copy of.
//!
//! Read first: Microsoft's specification of RSS (Toeplitz hash over addresses and ports), RFC 826.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use crossbeam::queue::ArrayQueue;

use crate::buf::RxPacket;
use crate::net::RxFrame;
use crate::wire::{ethernet, protocol};

/// Where ports begin (RFC 6335 section 6), and how many there are.
const PORT_FIRST: u16 = 49_152;
const PORT_COUNT: u16 = 16_384;
/// Frames waiting for another core; one more is dropped, as by a full ring.
const INBOX_FRAMES: usize = 4096;
/// Frames taken from the inbox in one turn.
const INBOX_BURST: usize = 64;
/// Entries of the device's table of queues: the usual number. A power of two as any.
const TABLE_ENTRIES: u32 = 128;

const ETHERNET: usize = ethernet::HEADER_LEN;
const ICMPV6: u8 = 58;

crate::counters! {
    /// What steering counts.
    pub struct SteeringCounters {
        /// Frames handed to another core: those that came to the wrong queue, and copies of what everybody needs.
        frames_steered,
        /// Of these, dropped because that core did not keep up.
        steering_drops,
    }
}

/// One core's part.
pub struct Steering {
    own: usize,
    inboxes: Vec<Arc<ArrayQueue<RxFrame>>>,
    next_port: u16,
    pub counters: SteeringCounters,
}

enum Owner {
    Core(usize),
    Everybody,
}

impl Steering {
    /// For each of `cores`. `first_port` is a random number: where the search for ports begins.
    pub fn for_cores(cores: usize, first_port: u16) -> Vec<Steering> {
        let inboxes: Vec<_> = (0..cores).map(|_| Arc::new(ArrayQueue::new(INBOX_FRAMES))).collect();
        let of_core = |own| Steering {
            own,
            inboxes: inboxes.clone(),
            next_port: first_port % PORT_COUNT,
            counters: SteeringCounters::default(),
        };
        (0..cores).map(of_core).collect()
    }

    fn cores(&self) -> usize {
        self.inboxes.len()
    }

    fn core_of_port(&self, port: u16) -> usize {
        usize::from(port.wrapping_sub(PORT_FIRST)) % self.cores()
    }

    /// A local port of this core for a connection to `remote`; different at each call until all were given out.
    pub fn port_for(&mut self, local: IpAddr, remote: SocketAddr) -> u16 {
        let mut first_own = None;
        for _ in 0..PORT_COUNT {
            let port = PORT_FIRST + self.next_port;
            self.next_port = (self.next_port + 1) % PORT_COUNT;
            if self.core_of_port(port) != self.own {
                continue;
            }
            first_own.get_or_insert(port);
            let hash = toeplitz(SocketAddr::new(local, port), remote);
            if (hash % TABLE_ENTRIES) as usize % self.cores() == self.own {
                return port;
            }
        }
        first_own.unwrap_or(PORT_FIRST)
    }

    fn owner(&self, packet: &RxPacket) -> Owner {
        let bytes = &packet.first[..];
        let word = |at: usize| bytes.get(at..at + 2).map_or(0, |word| u16::from_be_bytes([word[0], word[1]]));
        let byte = |at: usize| bytes.get(at).copied().unwrap_or(0);
        let port = |at: usize| Owner::Core(self.core_of_port(word(at + 2)));
        match word(12) {
            0x0800 if byte(ETHERNET + 9) == protocol::TCP => port(ETHERNET + 4 * usize::from(byte(ETHERNET) & 0x0f)),
            0x86dd if byte(ETHERNET + 6) == protocol::TCP => port(ETHERNET + 40),
            0x0806 => Owner::Everybody,
            0x86dd if byte(ETHERNET + 6) == ICMPV6 => Owner::Everybody,
            _ => Owner::Core(self.own),
        }
    }

    /// Leaves this core's frames in `frames`, hands the others on, and adds what others have handed over.
    pub fn steer(&mut self, frames: &mut Vec<RxFrame>) {
        let mut at = 0;
        while at < frames.len() {
            match self.owner(&frames[at].packet) {
                Owner::Core(core) if core == self.own => at += 1,
                // The order among this core's frames does not change.
                Owner::Core(core) => {
                    let frame = frames.remove(at);
                    self.hand_over(core, frame);
                }
                Owner::Everybody => {
                    let own = self.own;
                    for core in (0..self.cores()).filter(|core| *core != own) {
                        let copy = copy_of(&frames[at]);
                        self.hand_over(core, copy);
                    }
                    at += 1;
                }
            }
        }
        let inbox = &self.inboxes[self.own];
        frames.extend(std::iter::from_fn(|| inbox.pop()).take(INBOX_BURST));
    }

    fn hand_over(&mut self, core: usize, frame: RxFrame) {
        self.counters.frames_steered += 1;
        if self.inboxes[core].push(frame).is_err() {
            self.counters.steering_drops += 1;
        }
    }
}

fn copy_of(frame: &RxFrame) -> RxFrame {
    let more = frame.packet.more.iter().flat_map(|buf| buf.iter());
    let bytes = frame.packet.first.iter().chain(more).copied().collect();
    RxFrame { packet: RxPacket::from_vec(bytes), ip_checksum: frame.ip_checksum, l4_checksum: frame.l4_checksum }
}

/// The hash of a connection's frames, the same in both directions: the key repeats every 16 bits, so each 16-bit word of the input
/// contributes alike wherever it stands.
fn toeplitz(a: SocketAddr, b: SocketAddr) -> u32 {
    const KEY: u32 = 0x6d5a_6d5a;
    let mut words = 0u16;
    let mut fold = |address: SocketAddr| {
        match address.ip() {
            IpAddr::V4(ip) => ip.octets().chunks_exact(2).for_each(|pair| words ^= u16::from_be_bytes([pair[0], pair[1]])),
            IpAddr::V6(ip) => ip.segments().iter().for_each(|segment| words ^= segment),
        }
        words ^= address.port();
    };
    fold(a);
    fold(b);
    (0..16).filter(|bit| words & (0x8000 >> bit) != 0).fold(0, |hash, bit| hash ^ KEY.rotate_left(bit))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::device::Checksum;

    /// The definition: for each set bit of the input, the 32 bits of the key from that bit on.
    fn toeplitz_by_definition(input: &[u8]) -> u32 {
        let key: Vec<u8> = [0x6d, 0x5a].into_iter().cycle().take(64).collect();
        let mut hash = 0u32;
        for bit in 0..input.len() * 8 {
            if input[bit / 8] & (0x80 >> (bit % 8)) != 0 {
                let window = u64::from_be_bytes(key[bit / 8..bit / 8 + 8].try_into().unwrap());
                hash ^= (window << (bit % 8) >> 32) as u32;
            }
        }
        hash
    }

    #[test]
    fn the_hash_is_toeplitz_and_the_same_both_ways() {
        for port in (1..65_535).step_by(777) {
            let (a, b) = (SocketAddr::new([10, 77, 0, 1].into(), port), SocketAddr::new([10, 77, 3, 2].into(), 2049));
            let mut input = vec![10, 77, 0, 1, 10, 77, 3, 2];
            input.extend(port.to_be_bytes());
            input.extend(2049u16.to_be_bytes());
            assert_eq!(toeplitz(a, b), toeplitz_by_definition(&input));
            assert_eq!(toeplitz(a, b), toeplitz(b, a));
        }
    }

    #[test]
    fn every_core_has_ports_of_its_own_that_its_queue_receives() {
        let server = SocketAddr::new([10, 0, 0, 2].into(), 2049);
        for cores in 1..=5 {
            let mut seen = std::collections::HashSet::new();
            for mut steering in Steering::for_cores(cores, 12_345) {
                for _ in 0..50 {
                    let port = steering.port_for([10, 0, 0, 1].into(), server);
                    assert!(port >= PORT_FIRST && seen.insert(port), "{port} twice");
                    assert_eq!(steering.core_of_port(port), steering.own);
                    let hash = toeplitz(SocketAddr::new([10, 0, 0, 1].into(), port), server);
                    assert_eq!((hash % TABLE_ENTRIES) as usize % cores, steering.own);
                }
            }
        }
    }

    fn frame(ethertype: u16, protocol: u8, port: u16) -> RxFrame {
        let mut bytes = vec![0; 60];
        bytes[12..14].copy_from_slice(&ethertype.to_be_bytes());
        let (protocol_at, port_at) = if ethertype == 0x0800 { (23, 14 + 20 + 2) } else { (20, 14 + 40 + 2) };
        bytes[14] = 0x45;
        bytes[protocol_at] = protocol;
        bytes[port_at..port_at + 2].copy_from_slice(&port.to_be_bytes());
        let packet = RxPacket::from_vec(bytes);
        RxFrame { packet, ip_checksum: Checksum::Unknown, l4_checksum: Checksum::Unknown }
    }

    #[test]
    fn frames_come_to_their_core_in_order_and_arp_to_all() {
        let [mut first, mut second] = <[Steering; 2]>::try_from(Steering::for_cores(2, 0)).ok().unwrap();
        let (own, other) = (PORT_FIRST, PORT_FIRST + 1);
        let port_of = |frame: &RxFrame| u16::from_be_bytes([frame.packet.first[36], frame.packet.first[37]]);
        let mut frames = vec![
            frame(0x0800, protocol::TCP, other),
            frame(0x0800, protocol::TCP, own),
            frame(0x0806, 0, 0),
            frame(0x0800, protocol::TCP, own + 2),
            frame(0x86dd, protocol::TCP, other),
            frame(0x86dd, ICMPV6, 0),
        ];
        first.steer(&mut frames);
        assert_eq!(frames.len(), 4);
        assert_eq!((port_of(&frames[0]), port_of(&frames[2])), (own, own + 2));
        let mut handed = Vec::new();
        second.steer(&mut handed);
        assert_eq!((handed.len(), port_of(&handed[0])), (4, other));
        assert_eq!(first.counters.frames_steered, 4);
    }

    #[test]
    fn a_core_that_does_not_keep_up_loses_frames_that_are_counted() {
        let mut steering = Steering::for_cores(2, 0).swap_remove(0);
        for _ in 0..INBOX_FRAMES + 3 {
            steering.steer(&mut vec![frame(0x0800, protocol::TCP, PORT_FIRST + 1)]);
        }
        assert_eq!(steering.counters.steering_drops, 3);
    }
}
