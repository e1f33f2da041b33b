//! What a NIC does to a frame on request, in software, for the in-memory link: fill in checksums, cut TCP payload into
//! segments, verify what arrives.
//!
//! Read first: dpdk's "generic TCP segmentation offload" contract as told at `device::TxOffload`; RFC 3168 section 6.1.2
//! (CWR goes into the first segment only).
//!
//! It trusts the pseudo-header sum it finds in the checksum field, as hardware does: a stack that puts a wrong one there
//! sends wrong frames, and tests see them.

use std::net::IpAddr;

use super::device::{Checksum, TxOffload};
use crate::wire::checksum::{Sum, transport_field_offset, udp_field};
use crate::wire::{ethernet, ipv4, ipv6, protocol, u16_at, u32_at};

const TCP_FLAGS_AT: usize = 13;
const FIN: u8 = 0x01;
const PSH: u8 = 0x08;
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
