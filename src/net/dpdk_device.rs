//! One queue pair of a DPDK port as a `Device`.
//!
//! Frames in: the driver's buffers themselves, taken apart so that each is given back as soon as it has been read. Frames out:
//! slices by reference (`TransmitMode::Splice`), or copied as a baseline to measure against and on devices that take
//! no chains (`TransmitMode::Copy`).
//!
//! Read first: the heads of `dpdk::tx` (when payload is released) and `dpdk::capability` (what drivers do not say).
//! Deliberately not here: opening ports, interrupts (the shard reaches the queues through `rx` and `tx`).

use dpdk::{Mbuf, PortCapabilities, RxQueue, TxQueue};

use super::device::{
    Checksum, Device, DeviceCapabilities, HEADERS_CONTIGUOUS, RxFrame, TxOffload, TxRefused, make_headers_contiguous,
};
use crate::buf::{RxBuf, RxPacket, Slice};
use crate::wire::tcp::TSO_MSS_MIN;

/// Frames taken from the driver at once, as many as it gives (`dpdk::rx::RX_BURST`).
const BURST: usize = 64;

/// Octets of the longest IP and TCP headers, which a driver's limit for TSO includes and ours does not.
const TSO_HEADERS_MAX: u32 = 40 + 60;

/// How payload leaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum TransmitMode {
    /// By reference.
    #[default]
    Splice,
    /// Copied into the driver's own buffers.
    Copy,
}

crate::counters! {
    /// What one device counts beyond what the port and its queues do.
    pub struct DpdkDeviceCounters {
        /// Frames whose headers lay in several buffers and were copied together.
        headers_copied,
        /// Frames of several buffers.
        frames_scattered,
        /// Payload bytes copied on transmit.
        payload_octets_copied,
        /// Frames refused for now: backlog or pools full.
        transmit_full,
        /// Frames refused because they are beyond what the device takes.
        transmit_refused,
    }
}

/// One receive and one transmit queue of a port; belongs to one core.
pub struct DpdkDevice {
    rx: RxQueue,
    tx: TxQueue<Slice>,
    port: PortCapabilities,
    capabilities: DeviceCapabilities,
    mode: TransmitMode,
    burst: Vec<Mbuf>,
    counters: DpdkDeviceCounters,
}

impl DpdkDevice {
    /// On a device that takes no chains the mode becomes `Copy`: see `mode`.
    pub fn new(port: &PortCapabilities, rx: RxQueue, tx: TxQueue<Slice>, mode: TransmitMode) -> DpdkDevice {
        let counters = DpdkDeviceCounters::default();
        let capabilities = capabilities_of(port, mode);
        let device = DpdkDevice { rx, tx, port: port.clone(), capabilities, mode, burst: Vec::with_capacity(BURST), counters };
        device.with_mode(mode)
    }

    /// The same device sending the other way, between two measurements.
    pub fn with_mode(mut self, mode: TransmitMode) -> DpdkDevice {
        self.mode = if self.port.accepts_chains { mode } else { TransmitMode::Copy };
        self.capabilities = capabilities_of(&self.port, self.mode);
        self
    }

    pub fn mode(&self) -> TransmitMode {
        self.mode
    }

    pub fn counters(&self) -> &DpdkDeviceCounters {
        &self.counters
    }

    #[cold]
    fn refused(&mut self, refused: dpdk::TxRefused) -> TxRefused {
        if refused.is_temporary() {
            self.counters.transmit_full += 1;
            return TxRefused::Full;
        }
        self.counters.transmit_refused += 1;
        match refused {
            dpdk::TxRefused::TooManySegments { .. } | dpdk::TxRefused::ChainsUnsupported => TxRefused::TooManySegments,
            _ => TxRefused::TooLong,
        }
    }

    /// The receive queue, to sleep on.
    pub fn rx(&mut self) -> &mut RxQueue {
        &mut self.rx
    }

    /// The transmit queue, to reclaim pages and read counters.
    pub fn tx(&mut self) -> &mut TxQueue<Slice> {
        &mut self.tx
    }
}

/// What the port can do, in the terms that `net` and `tcp` plan with.
fn capabilities_of(port: &PortCapabilities, mode: TransmitMode) -> DeviceCapabilities {
    let tso_bytes_max = match port.tso {
        // Short enough for the smallest pieces that a chain is cut into: others are not asked for.
        true => port
            .max_tso_bytes
            .saturating_sub(TSO_HEADERS_MAX)
            .min(u32::from(port.max_tso_frames).saturating_mul(u32::from(TSO_MSS_MIN))),
        false => 0,
    };
    // A driver that counts the Ethernet header (with a tag, if there is one) into the MTU when it cuts (net_tap): the MSS follows
    // from the MTU we report.
    let mtu = match port.tso {
        true => u16::try_from(port.max_tso_frame_bytes.saturating_sub(crate::wire::ethernet::TAGGED_HEADER_LEN as u32))
            .unwrap_or(u16::MAX),
        false => u16::MAX,
    };
    // When copying, pieces are not segments; what is left is how many pieces the queue looks at.
    let pieces = |segments: usize| match mode {
        TransmitMode::Splice => u16::try_from(segments).unwrap_or(u16::MAX),
        TransmitMode::Copy => dpdk::chain::MAX_CHAIN_PIECES as u16 + 1,
    };
    DeviceCapabilities {
        mac: port.mac,
        mtu: port.mtu.min(mtu),
        ip_checksum: port.tx_ip_checksum,
        tcp_checksum: port.tx_tcp_checksum,
        udp_checksum: port.tx_udp_checksum,
        tso_bytes_max,
        tso_ipv6: port.tso && port.tso_ipv6,
        segments_per_packet_max: pieces(port.max_segments_per_packet),
        segments_tso_max: pieces(port.max_segments_tso),
    }
}

fn checksum_of(checksum: dpdk::Checksum) -> Checksum {
    match checksum {
        dpdk::Checksum::Unknown => Checksum::Unknown,
        dpdk::Checksum::Good => Checksum::Good,
        dpdk::Checksum::Bad => Checksum::Bad,
    }
}

fn offload_of(offload: &TxOffload) -> dpdk::TxOffload {
    dpdk::TxOffload {
        l2_len: offload.l2_len,
        l3_len: u16::from(offload.l3_len),
        l4_len: offload.l4_len,
        ipv6: offload.ipv6,
        ip_checksum: offload.ip_checksum,
        tcp_checksum: offload.tcp_checksum,
        udp_checksum: offload.udp_checksum,
        tso_mss: offload.tso_mss,
    }
}

fn frame_of(mut mbuf: Mbuf, counters: &mut DpdkDeviceCounters) -> RxFrame {
    let (ip_checksum, l4_checksum) = (checksum_of(mbuf.ip_checksum()), checksum_of(mbuf.l4_checksum()));
    let rest = mbuf.split_off_rest();
    let mut packet = RxPacket::single(RxBuf::from_mbuf(mbuf));
    if let Some(rest) = rest {
        counters.frames_scattered += 1;
        packet.more = rest.into_segments().map(RxBuf::from_mbuf).collect();
        if make_headers_contiguous(&mut packet, HEADERS_CONTIGUOUS) {
            counters.headers_copied += 1;
        }
    }
    RxFrame { packet, ip_checksum, l4_checksum }
}

impl Device for DpdkDevice {
    fn capabilities(&self) -> &DeviceCapabilities {
        &self.capabilities
    }

    fn receive(&mut self, out: &mut Vec<RxFrame>) -> usize {
        let count = self.rx.receive(&mut self.burst);
        out.extend(self.burst.drain(..).map(|mbuf| frame_of(mbuf, &mut self.counters)));
        count
    }

    fn transmit(&mut self, header: &[u8], payload: &[Slice], offload: &TxOffload) -> Result<(), TxRefused> {
        let offload = offload_of(offload);
        let result = match self.mode {
            TransmitMode::Splice => self.tx.push(header, payload.iter().cloned(), &offload),
            TransmitMode::Copy => self.tx.push_copy(header, payload.iter().cloned(), &offload),
        };
        if self.mode == TransmitMode::Copy && result.is_ok() {
            self.counters.payload_octets_copied += crate::buf::gather_len(payload) as u64;
        }
        result.map_err(|refused| self.refused(refused))
    }

    fn transmit_taking(&mut self, header: &[u8], payload: &mut Vec<Slice>, offload: &TxOffload) -> Result<(), TxRefused> {
        if self.mode == TransmitMode::Copy {
            self.transmit(header, payload, offload)?;
            payload.clear();
            return Ok(());
        }
        let result = self.tx.push_taking(header, payload, &offload_of(offload));
        result.map_err(|refused| self.refused(refused))
    }

    fn flush(&mut self) -> usize {
        self.tx.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn port() -> PortCapabilities {
        PortCapabilities {
            mac: [2, 0, 0, 0, 0, 1],
            mtu: 1500,
            tso: true,
            tso_offered: true,
            tso_ipv6: true,
            tx_ip_checksum: true,
            tx_tcp_checksum: true,
            tx_udp_checksum: false,
            rx_ip_checksum: true,
            rx_tcp_checksum: true,
            rx_udp_checksum: true,
            lro: false,
            max_segments_per_packet: 16,
            max_segments_tso: 65,
            max_frame_bytes: 1518,
            max_tso_bytes: 65_535,
            max_tso_frames: u16::MAX,
            max_tso_frame_bytes: 1518,
            accepts_chains: true,
            frees_chains_whole: false,
            rx_interrupts: false,
            driver_name: "net_vmxnet3".to_owned(),
            rx_queues: 1,
            tx_queues: 1,
            rx_descriptors: 1024,
            tx_descriptors: 1024,
            rss: false,
            spread: None,
            socket: -1,
            deaf_to: None,
        }
    }

    #[test]
    fn capabilities_are_told_in_the_stacks_own_terms() {
        let can = capabilities_of(&port(), TransmitMode::Splice);
        assert_eq!((can.mtu, can.tso_bytes_max), (1500, 65_435));
        assert_eq!((can.segments_per_packet_max, can.segments_tso_max), (16, 65));
        assert_eq!((can.ip_checksum, can.tcp_checksum, can.udp_checksum), (true, true, false));
        let copying = capabilities_of(&port(), TransmitMode::Copy);
        assert_eq!((copying.segments_per_packet_max, copying.segments_tso_max), (65, 65));
        let none = capabilities_of(&PortCapabilities { tso: false, max_tso_frame_bytes: 0, ..port() }, TransmitMode::Splice);
        assert_eq!((none.mtu, none.tso_bytes_max), (1500, 0));
    }

    #[test]
    fn the_limits_of_net_taps_segmentation_become_a_shorter_packet_and_a_smaller_mtu() {
        let tap = PortCapabilities { max_tso_frames: 64, max_tso_frame_bytes: 1500, ..port() };
        let can = capabilities_of(&tap, TransmitMode::Splice);
        assert_eq!((can.mtu, can.tso_bytes_max), (1482, 64 * 512));
    }
}
