//! What a network device is to this stack: frames in, frames out, and what it can do for us.
//!
//! `net::Interface` is written against this trait; `net::memory_link` implements it for tests and the simulator,
//! `net::dpdk_device` for DPDK ports.

use crate::buf::{RxPacket, Slice};

pub use crate::buf::Checksum;

/// One received Ethernet frame, without its FCS.
pub struct RxFrame {
    pub packet: RxPacket,
    pub ip_checksum: Checksum,
    pub l4_checksum: Checksum,
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
    /// Largest TCP payload of one frame to be cut by the device, bytes; 0: no TSO.
    pub tso_bytes_max: u32,
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

    /// Hands everything queued to the hardware.
    fn flush(&mut self);
}
