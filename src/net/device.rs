//! What a network device is to this stack: frames in, frames out, and what it can do for us.
//!
//! `net::Interface` is written against this trait; `net::memory_link` implements it for tests and the simulator,
//! `net::dpdk_device` for DPDK ports.

use crate::buf::{RxBuf, RxPacket, Slice};

pub use crate::buf::Checksum;

/// Octets of the longest headers of a frame: Ethernet with a tag, IPv4 with options (IPv6 without extensions is shorter),
/// TCP with options. A device delivers that much of a frame, or all of it, in `RxPacket::first`.
pub const HEADERS_CONTIGUOUS: usize = 18 + 60 + 60;

/// One received Ethernet frame, without its FCS. The first HEADERS_CONTIGUOUS bytes, or all there are, lie in
/// `packet.first`.
pub struct RxFrame {
    pub packet: RxPacket,
    pub ip_checksum: Checksum,
    pub l4_checksum: Checksum,
}

impl RxFrame {
    /// The frame, and an empty one in its place.
    #[inline]
    pub fn take(&mut self) -> RxFrame {
        RxFrame { packet: self.packet.take(), ip_checksum: self.ip_checksum, l4_checksum: self.l4_checksum }
    }
}

/// What the device is asked to do to a frame on its way out. Lengths in bytes, in the frame's header part.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct TxOffload {
    pub l2_len: u8,
    pub l3_len: u8,
    pub l4_len: u8,
    pub ipv6: bool,
    /// Fill in the IPv4 header checksum.
    pub ip_checksum: bool,
    /// Fill in the TCP checksum; its field holds the pseudo-header sum (without the length when `tso_mss` is set).
    pub tcp_checksum: bool,
    /// Fill in the UDP checksum; as for TCP.
    pub udp_checksum: bool,
    /// Cut the TCP payload into segments of this many bytes.
    pub tso_mss: Option<u16>,
}

/// What a device offers and where it ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeviceCapabilities {
    pub mac: [u8; 6],
    /// Largest IP packet, bytes.
    pub mtu: u16,
    pub ip_checksum: bool,
    pub tcp_checksum: bool,
    pub udp_checksum: bool,
    /// Largest TCP payload of one frame to be cut by the device, bytes; 0: no TSO. With TSO the device fills in the TCP checksums of
    /// such frames, and the IPv4 checksums of what it cuts them into: from 0 if `ip_checksum` is asked for, otherwise from the
    /// right checksum of the whole frame.
    pub tso_bytes_max: u32,
    /// TSO is for IPv6 too.
    pub tso_ipv6: bool,
    /// Buffers (header included) one non-TSO frame, or the bytes of one MSS of a TSO frame, may be made of.
    pub segments_per_packet_max: u16,
    /// Buffers (header included) a TSO frame may be made of.
    pub segments_tso_max: u16,
}

/// Why a frame was not taken. It was not sent and nothing of it is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TxRefused {
    /// The ring or a pool is full now: try again after the next `flush`.
    Full,
    /// The frame is beyond the device's limits: a planning error above, counted there.
    TooManySegments,
    TooLong,
}

pub trait Device {
    fn capabilities(&self) -> &DeviceCapabilities;

    /// Appends received frames to `out`, a bounded burst at a time; returns how many.
    fn receive(&mut self, out: &mut Vec<RxFrame>) -> usize;

    /// Queues one frame: `header` is copied, the slices of `payload` are referenced (cloned) until the device is done.
    fn transmit(&mut self, header: &[u8], payload: &[Slice], offload: &TxOffload) -> Result<(), TxRefused>;

    /// `transmit` of all of `payload`, which is left empty, its capacity with the caller. Refused: it is untouched.
    fn transmit_taking(&mut self, header: &[u8], payload: &mut Vec<Slice>, offload: &TxOffload) -> Result<(), TxRefused> {
        self.transmit(header, payload, offload)?;
        payload.clear();
        Ok(())
    }

    /// Hands what is queued to the hardware, as far as it has room; how many frames it took.
    fn flush(&mut self) -> usize;
}

/// Copies the front of a scattered packet out of its buffers so that `headers_len` bytes (or all there are) lie in `first`.
/// Tells whether it had to.
pub fn make_headers_contiguous(packet: &mut RxPacket, headers_len: usize) -> bool {
    if packet.first.len() >= headers_len || packet.more.is_empty() {
        return false;
    }
    let more = packet.more.iter().flat_map(|buf| buf.iter());
    let front: Vec<u8> = packet.first.iter().chain(more).take(headers_len).copied().collect();
    packet.advance(front.len());
    // `first` was shorter than what was taken, so nothing is left in it.
    packet.first = RxBuf::from_vec(front);
    packet.more.retain(|buf| !buf.is_empty());
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_are_gathered_only_where_they_are_scattered() {
        let bytes: Vec<u8> = (0..30).collect();
        for cut in 0..30 {
            for next in cut..30 {
                let buf = |range: std::ops::Range<usize>| RxBuf::from_vec(bytes[range].to_vec());
                let mut packet = RxPacket { first: buf(0..cut), more: [buf(cut..next), buf(next..30)].into_iter().collect() };
                assert_eq!(make_headers_contiguous(&mut packet, 10), cut < 10);
                assert!(packet.first.len() >= 10);
                assert_eq!(packet.into_bufs().flat_map(|buf| buf.to_vec()).collect::<Vec<_>>(), bytes);
            }
        }
        let mut short = RxPacket { first: RxBuf::from_vec(vec![1]), more: std::iter::once(RxBuf::from_vec(vec![2])).collect() };
        assert!(make_headers_contiguous(&mut short, 10));
        assert_eq!((&short.first[..], short.more.len()), (&[1, 2][..], 0));
        let mut single = RxPacket::from_vec(vec![1, 2]);
        assert!(!make_headers_contiguous(&mut single, 10));
    }
}
