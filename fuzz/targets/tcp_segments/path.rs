//! What is on its way: packets as a device makes them, joins them and hands them over.

use std::net::IpAddr;

use nfsplice::buf::{RxBuf, RxPacket};
use nfsplice::tcp::Transmit;
use nfsplice::time::Instant;
use nfsplice::wire::checksum::Sum;
use nfsplice::wire::protocol;
use nfsplice::wire::tcp::{CHECKSUM_OFFSET, Flags, Repr};

/// Octets of an IPv4 header without options.
pub const IPV4_HEADER: usize = 20;
/// The codepoints of RFC 3168 section 5.
pub const CONGESTION_EXPERIENCED: u8 = 3;
const FLAGS_AT: usize = 13;

/// A segment on the path.
#[derive(Clone)]
pub struct Packet {
    pub src: IpAddr,
    pub bytes: Vec<u8>,
    pub ecn: u8,
    /// Which of the conversation's connections it is of.
    pub connection: Option<usize>,
    /// The attacker has made or changed it.
    pub forged: bool,
    pub sent_at: Instant,
}

impl Packet {
    pub fn header_len(&self) -> usize {
        self.bytes.get(12).map_or(0, |offset| usize::from(offset >> 4) * 4)
    }

    /// As one received packet, its text from `cut` octets on in a second buffer; 0: in one.
    pub fn received(&self, cut: usize) -> RxPacket {
        let at = self.header_len() + cut;
        if cut == 0 || at >= self.bytes.len() {
            return RxPacket::from_vec(self.bytes.clone());
        }
        let (first, more) = self.bytes.split_at(at);
        RxPacket { first: RxBuf::from_vec(first.to_vec()), more: std::iter::once(RxBuf::from_vec(more.to_vec())).collect() }
    }

    /// Whether a device that joins segments takes `next` for the continuation of this one, of `len` octets of text so far.
    /// `strictly`: only if the headers say the same of everything else; otherwise the later one counts.
    fn continues(&self, next: &Packet, len: usize, strictly: bool) -> bool {
        let (header_len, flags) = (self.header_len(), |packet: &Packet| packet.bytes.get(FLAGS_AT).copied().unwrap_or(0));
        let (Ok((first, _)), Ok((second, _))) = (Repr::parse(&self.bytes), Repr::parse(&next.bytes)) else { return false };
        let alike = first.options.timestamps.is_some() == second.options.timestamps.is_some()
            && first.options.sack.is_empty()
            && second.options.sack.is_empty();
        let same = [0..4, 8..13, 14..16, 20..header_len]
            .iter()
            .all(|place| self.bytes.get(place.clone()) == next.bytes.get(place.clone()));
        (self.src, self.ecn, self.connection) == (next.src, next.ecn, next.connection)
            && !self.forged
            && !next.forged
            && header_len == next.header_len()
            && self.bytes.get(..4) == next.bytes.get(..4)
            && [self, next].iter().all(|packet| flags(packet) & !Flags::PSH.0 == Flags::ACK.0 && packet.bytes.len() > header_len)
            && second.seq == first.seq + len as u32
            && alike
            && (!strictly || same)
    }
}

/// How many of `packets`, of the first `most`, a device joins.
pub fn joinable<'a>(mut packets: impl Iterator<Item = &'a Packet>, most: usize, strictly: bool) -> usize {
    let Some(first) = packets.next() else { return 0 };
    let (mut count, mut len) = (1, first.bytes.len().saturating_sub(first.header_len()));
    for next in packets.take(most.saturating_sub(1)) {
        if !first.continues(next, len, strictly) || len > 60_000 {
            break;
        }
        (count, len) = (count + 1, len + next.bytes.len() - next.header_len());
    }
    count
}

/// What a device with LRO makes of packets that `joinable` has counted: the first's sequence number, the last's acknowledgement,
/// window and options, each text in its own buffer.
pub fn joined(packets: &[Packet]) -> RxPacket {
    let (first, last) = (&packets[0], &packets[packets.len() - 1]);
    let header_len = first.header_len();
    let mut header = last.bytes[..header_len].to_vec();
    header[4..8].copy_from_slice(&first.bytes[4..8]);
    header[FLAGS_AT] |= packets.iter().fold(0, |flags, packet| flags | packet.bytes[FLAGS_AT]);
    header.extend(&first.bytes[header_len..]);
    let more = packets[1..].iter().map(|packet| RxBuf::from_vec(packet.bytes[header_len..].to_vec())).collect();
    RxPacket { first: RxBuf::from_vec(header), more }
}

/// The packets that leave for one `Transmit`: what a device with segmentation offload makes of it, checksums out of the sum that
/// TCP has left in the header.
pub fn packets(transmit: &mut Transmit) -> Vec<Vec<u8>> {
    transmit.fill_pseudo_header_sum();
    // In one piece each: of a loop over octets the fuzzer watches every step.
    let mut payload = Vec::with_capacity(transmit.payload_len());
    transmit.payload.iter().for_each(|slice| payload.extend_from_slice(slice));
    let (repr, _) = Repr::parse(transmit.header()).expect("our own header");
    let mss = transmit.tso_mss.map_or(payload.len().max(1), usize::from);
    let count = payload.len().div_ceil(mss).max(1);
    let packet = |at: usize| {
        let part = &payload[at * mss..payload.len().min((at + 1) * mss)];
        let mut bytes = [transmit.header(), part].concat();
        bytes[4..8].copy_from_slice(&(repr.seq + (at * mss) as u32).0.to_be_bytes());
        if at + 1 < count {
            bytes[FLAGS_AT] &= !(Flags::FIN.0 | Flags::PSH.0);
        }
        let mut sum = Sum::new();
        if transmit.tso_mss.is_some() {
            // The sum over a chain's pseudo-header is without its length.
            sum.add(&(bytes.len() as u16).to_be_bytes());
        }
        sum.add(&bytes);
        bytes[CHECKSUM_OFFSET..CHECKSUM_OFFSET + 2].copy_from_slice(&sum.finish().to_be_bytes());
        bytes
    };
    (0..count).map(packet).collect()
}

/// A whole segment with its checksum.
pub fn with_checksum(src: IpAddr, dst: IpAddr, mut bytes: Vec<u8>) -> Vec<u8> {
    if let Some(field) = bytes.get_mut(CHECKSUM_OFFSET..CHECKSUM_OFFSET + 2) {
        field.fill(0);
        let mut sum = Sum::pseudo_header(src, dst, protocol::TCP, bytes.len());
        sum.add(&bytes);
        bytes[CHECKSUM_OFFSET..CHECKSUM_OFFSET + 2].copy_from_slice(&sum.finish().to_be_bytes());
    }
    bytes
}
