//! What a NIC does to a frame on request, in software, for the in-memory link: fill in checksums, cut TCP payload into
//! segments, verify what arrives.
//!
//! Read first: dpdk's "generic TCP segmentation offload" contract as told at `device::TxOffload`; RFC 3168 section 6.1.2
//! (CWR goes into the first segment only).
//!
//! It trusts the pseudo-header sum it finds in the checksum field, as hardware does: a stack that puts a wrong one there
//! sends wrong frames, and tests see them.

use std::net::IpAddr;

use super::device::{Checksum, HEADERS_CONTIGUOUS, RxFrame, TxOffload, make_headers_contiguous};
use crate::buf::{RxBuf, RxPacket};
use crate::wire::checksum::{Sum, transport_field_offset, udp_field};
use crate::wire::{ethernet, ipv4, ipv6, protocol, u16_at, u32_at};

const TCP_FLAGS_AT: usize = 13;
const FIN: u8 = 0x01;
const PSH: u8 = 0x08;
const ACK: u8 = 0x10;
const CWR: u8 = 0x80;

/// The frames that go on the wire for one that was queued.
///
/// # Panics
/// If the header is shorter than the offload says: the caller is a test.
pub fn complete(header: &[u8], payload: &[u8], offload: &TxOffload) -> Vec<Vec<u8>> {
    let Some(mss) = offload.tso_mss.map(usize::from).filter(|mss| *mss > 0) else {
        let mut frame = [header, payload].concat();
        checksums(&mut frame, offload);
        return vec![frame];
    };
    let (l3, l4) = (usize::from(offload.l2_len), usize::from(offload.l2_len) + usize::from(offload.l3_len));
    let sequence = u32_at(header, l4 + 4);
    let identification = u16_at(header, l3 + 4);
    let pseudo_header = u16_at(header, l4 + 16);
    if !offload.ip_checksum && !offload.ipv6 {
        let mut whole = Sum::new();
        whole.add(&header[l3..l4]);
        assert_eq!(whole.finish(), 0, "IPv4 checksums were not asked for, and that of the whole packet is wrong");
    }
    let count = payload.len().div_ceil(mss).max(1);
    (0..count)
        .map(|n| {
            let part = &payload[n * mss..payload.len().min((n + 1) * mss)];
            let mut frame = [header, part].concat();
            if offload.ipv6 {
                let payload_len = (frame.len() - l3 - ipv6::HEADER_LEN) as u16;
                frame[l3 + 4..l3 + 6].copy_from_slice(&payload_len.to_be_bytes());
            } else {
                let ip_len = (frame.len() - l3) as u16;
                frame[l3 + 2..l3 + 4].copy_from_slice(&ip_len.to_be_bytes());
                frame[l3 + 4..l3 + 6].copy_from_slice(&identification.wrapping_add(n as u16).to_be_bytes());
                frame[l3 + 10..l3 + 12].fill(0);
            }
            frame[l4 + 4..l4 + 8].copy_from_slice(&sequence.wrapping_add((n * mss) as u32).to_be_bytes());
            if n + 1 < count {
                frame[l4 + TCP_FLAGS_AT] &= !(FIN | PSH);
            }
            if n > 0 {
                frame[l4 + TCP_FLAGS_AT] &= !CWR;
            }
            // The pseudo-header sum came without the length: the device adds each segment's own.
            let mut sum = Sum::new();
            sum.add(&pseudo_header.to_be_bytes());
            sum.add(&((frame.len() - l4) as u16).to_be_bytes());
            frame[l4 + 16..l4 + 18].copy_from_slice(&sum.partial().to_be_bytes());
            checksums(&mut frame, &TxOffload { ip_checksum: !offload.ipv6, tcp_checksum: true, ..*offload });
            frame
        })
        .collect()
}

fn checksums(frame: &mut [u8], offload: &TxOffload) {
    let (l3, l4) = (usize::from(offload.l2_len), usize::from(offload.l2_len) + usize::from(offload.l3_len));
    if offload.ip_checksum {
        let mut sum = Sum::new();
        sum.add(&frame[l3..l4]);
        frame[l3 + 10..l3 + 12].copy_from_slice(&sum.finish().to_be_bytes());
    }
    if offload.tcp_checksum || offload.udp_checksum {
        let mut sum = Sum::new();
        sum.add(&frame[l4..]);
        let (at, field) = if offload.tcp_checksum { (l4 + 16, sum.finish()) } else { (l4 + 6, udp_field(&sum)) };
        frame[at..at + 2].copy_from_slice(&field.to_be_bytes());
    }
}

/// What a receiving device says about the checksums of a frame: IP (IPv4's header), then TCP or UDP.
pub fn verify(frame: &[u8]) -> (Checksum, Checksum) {
    let unknown = (Checksum::Unknown, Checksum::Unknown);
    let Ok(link) = ethernet::Frame::new(frame) else { return unknown };
    if link.ethertype() == ethernet::ethertype::IPV6 {
        return (Checksum::Unknown, verify_ipv6(link.payload()));
    }
    if link.ethertype() != ethernet::ethertype::IPV4 {
        return unknown;
    }
    let Ok(packet) = ipv4::Packet::new(link.payload(), link.payload().len()) else { return unknown };
    let ip = verdict(packet.checksum_is_valid());
    let payload = packet.payload();
    let Some(field_at) = transport_field_offset(packet.protocol()).filter(|at| at + 2 <= payload.len()) else {
        return (ip, Checksum::Unknown);
    };
    let none = packet.protocol() == protocol::UDP && u16_at(payload, field_at) == 0;
    if packet.is_fragment() || none {
        return (ip, Checksum::Unknown);
    }
    let mut sum = Sum::pseudo_header(IpAddr::V4(packet.src()), IpAddr::V4(packet.dst()), packet.protocol(), payload.len());
    sum.add(payload);
    (ip, verdict(sum.is_valid()))
}

fn verdict(good: bool) -> Checksum {
    if good { Checksum::Good } else { Checksum::Bad }
}

/// Where the parts of a TCP frame lie that may be joined to others.
struct Joinable {
    l3: usize,
    l4: usize,
    text: std::ops::Range<usize>,
    sequence: u32,
}

impl Joinable {
    /// Intact, with nothing in its headers that joining would lose.
    fn of(frame: &[u8]) -> Option<Joinable> {
        let link = ethernet::Frame::new(frame).ok()?;
        let l3 = link.header_len();
        let (l4, end) = match link.ethertype() {
            ethernet::ethertype::IPV4 => {
                let packet = ipv4::Packet::new(link.payload(), link.payload().len()).ok()?;
                let plain =
                    packet.header_len() == ipv4::HEADER_LEN && !packet.is_fragment() && packet.protocol() == protocol::TCP;
                plain.then_some((l3 + ipv4::HEADER_LEN, l3 + packet.total_len()))?
            }
            ethernet::ethertype::IPV6 => {
                let packet = ipv6::Packet::new(link.payload(), link.payload().len()).ok()?;
                (packet.next_header() == protocol::TCP).then_some((l3 + ipv6::HEADER_LEN, l3 + packet.total_len()))?
            }
            _ => return None,
        };
        let text = l4 + usize::from(*frame.get(l4 + 12)? >> 4) * 4;
        let only_ack = frame.get(l4 + TCP_FLAGS_AT)? & !PSH == ACK;
        let (ip, tcp) = verify(frame);
        let intact = ip != Checksum::Bad && tcp == Checksum::Good;
        (only_ack && intact && text >= l4 + 20 && text < end).then(|| Joinable {
            l3,
            l4,
            text: text..end,
            sequence: u32_at(frame, l4 + 4),
        })
    }

    /// Whether `next` continues `frame`, which is this, and says the same of everything else: addresses, traffic class, ports,
    /// acknowledgement, window, options. Nothing is joined behind a push.
    fn continues(&self, frame: &[u8], next: &[u8], other: &Joinable) -> bool {
        let (l3, l4) = (self.l3, self.l4);
        let addresses = if is_ipv6(frame, l3) { l3 + 8..l4 } else { l3 + 12..l4 };
        let places = [0..l3 + 2, addresses, l4..l4 + 4, l4 + 8..l4 + 13, l4 + 14..l4 + 16, l4 + 20..self.text.start];
        (l3, l4) == (other.l3, other.l4)
            && self.text.start == other.text.start
            && places.into_iter().all(|place| frame[place.clone()] == next[place])
            && frame[l4 + TCP_FLAGS_AT] & PSH == 0
            && other.sequence == self.sequence.wrapping_add(self.text.len() as u32)
            && self.text.end - l3 + other.text.len() <= usize::from(u16::MAX)
    }
}

fn is_ipv6(frame: &[u8], l3: usize) -> bool {
    frame[l3] >> 4 == 6
}

/// What a device with LRO makes of frames that it finds together: those that follow each other in a connection are one packet, in
/// buffers of `buffer_bytes`. The lengths are those of the whole; its TCP checksum is nobody's, and the device vouches for it, as
/// virtio's does for a packet that its host has never cut.
pub fn coalesce(frames: Vec<Vec<u8>>, buffer_bytes: usize) -> Vec<RxFrame> {
    let mut packets: Vec<(Vec<u8>, Option<Joinable>, bool)> = Vec::new();
    for frame in frames {
        let joinable = Joinable::of(&frame);
        if let (Some(next), Some((front, Some(first), joined))) = (&joinable, packets.last_mut())
            && first.continues(front, &frame, next)
        {
            front.truncate(first.text.end);
            front.extend_from_slice(&frame[next.text.clone()]);
            front[first.l4 + TCP_FLAGS_AT] |= frame[next.l4 + TCP_FLAGS_AT];
            first.text.end = front.len();
            *joined = true;
            continue;
        }
        packets.push((frame, joinable, false));
    }
    packets.into_iter().map(|(frame, first, joined)| in_buffers(frame, first.filter(|_| joined), buffer_bytes)).collect()
}

fn in_buffers(mut frame: Vec<u8>, joined: Option<Joinable>, buffer_bytes: usize) -> RxFrame {
    let (mut ip_checksum, mut l4_checksum) = verify(&frame);
    if let Some(Joinable { l3, l4, .. }) = joined {
        let len = frame.len() - l3;
        if is_ipv6(&frame, l3) {
            frame[l3 + 4..l3 + 6].copy_from_slice(&((len - ipv6::HEADER_LEN) as u16).to_be_bytes());
        } else {
            frame[l3 + 2..l3 + 4].copy_from_slice(&(len as u16).to_be_bytes());
            frame[l3 + 10..l3 + 12].fill(0);
            let ip = TxOffload { l2_len: l3 as u8, l3_len: (l4 - l3) as u8, ip_checksum: true, ..TxOffload::default() };
            checksums(&mut frame, &ip);
        }
        (ip_checksum, l4_checksum) = (Checksum::Unknown, Checksum::Good);
    }
    let mut buffers = frame.chunks(buffer_bytes.max(1)).map(|bytes| RxBuf::from_vec(bytes.to_vec()));
    let first = buffers.next().unwrap_or_else(|| RxBuf::from_vec(Vec::new()));
    let mut packet = RxPacket { first, more: buffers.collect() };
    make_headers_contiguous(&mut packet, HEADERS_CONTIGUOUS);
    RxFrame { packet, ip_checksum, l4_checksum }
}

/// As cheap NICs do it: not behind extension headers.
fn verify_ipv6(bytes: &[u8]) -> Checksum {
    let Ok(packet) = ipv6::Packet::new(bytes, bytes.len()) else { return Checksum::Unknown };
    let payload = bytes.get(ipv6::HEADER_LEN..packet.total_len()).unwrap_or(&[]);
    if transport_field_offset(packet.next_header()).is_none_or(|at| at + 2 > payload.len()) {
        return Checksum::Unknown;
    }
    let mut sum = Sum::pseudo_header(packet.src().into(), packet.dst().into(), packet.next_header(), payload.len());
    sum.add(payload);
    verdict(sum.is_valid())
}
