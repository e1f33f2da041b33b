//! What a port can do: what DPDK says, corrected by a table of what it does not say (read in, or measured with, the
//! drivers of 22.11).

use dpdk_sys as sys;

use crate::chain::MAX_CHAIN_PIECES;

/// What was negotiated with a port. Sizes in bytes, segments counted with the header's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PortCapabilities {
    /// Ethernet address.
    pub mac: [u8; 6],
    /// Bytes of an IP packet.
    pub mtu: u16,
    /// `tso_mss` may be set.
    pub tso: bool,
    /// It may be set for IPv6 too.
    pub tso_ipv6: bool,
    /// The device offers TSO, whether or not it is switched on.
    pub tso_offered: bool,
    /// `ip_checksum` may be set.
    pub tx_ip_checksum: bool,
    /// `tcp_checksum` may be set.
    pub tx_tcp_checksum: bool,
    /// `udp_checksum` may be set.
    pub tx_udp_checksum: bool,
    /// Received IPv4 headers are verified.
    pub rx_ip_checksum: bool,
    /// Received TCP segments are verified.
    pub rx_tcp_checksum: bool,
    /// Received UDP datagrams are verified.
    pub rx_udp_checksum: bool,
    /// Segments of a connection may arrive as one packet, as long as an IP packet can be, in many buffers.
    pub lro: bool,
    /// Segments of a packet without TSO; with TSO, of any one MSS of it.
    pub max_segments_per_packet: usize,
    /// Segments of a TSO chain.
    pub max_segments_tso: usize,
    /// Bytes of a frame without TSO, Ethernet header included. `u32::MAX` on devices without a wire.
    pub max_frame_bytes: u32,
    /// Bytes of a TSO chain's IP packet.
    pub max_tso_bytes: u32,
    /// Frames one TSO chain may become.
    pub max_tso_frames: u16,
    /// l2_len + l3_len + l4_len + tso_mss may not pass this.
    pub max_tso_frame_bytes: u32,
    /// Payload by reference works. False: use `push_copy`, every frame in one buffer.
    pub accepts_chains: bool,
    /// The driver gives a chain's buffers back together, the last one last: only that one needs a reference to the payload.
    pub frees_chains_whole: bool,
    /// An idle receive queue can be slept on.
    pub rx_interrupts: bool,
    /// DPDK's driver name.
    pub driver_name: String,
    /// Receive queues set up.
    pub rx_queues: u16,
    /// Transmit queues set up.
    pub tx_queues: u16,
    /// Descriptors per receive queue, after the device's limits.
    pub rx_descriptors: u16,
    /// Descriptors per transmit queue, after the device's limits.
    pub tx_descriptors: u16,
    /// Packets are spread over the receive queues by a symmetric RSS hash.
    pub rss: bool,
    /// How it does that, as far as the device tells; `None`: not known, or not by a hash.
    pub spread: Option<RssSpread>,
    /// NUMA node, −1 when unknown.
    pub socket: i32,
    /// Frames that the device goes on filtering out although it was asked not to, as a virtual function does that its host does not trust.
    pub deaf_to: Option<&'static str>,
}

/// How a device spreads packets over its receive queues: the Toeplitz hash of addresses and ports under `key` names an entry of
/// `table` (hash modulo its length), which names the queue.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RssSpread {
    /// As the device holds it.
    pub key: Vec<u8>,
    /// The ports of TCP over IPv4 are hashed too.
    pub ipv4_tcp_ports: bool,
    /// The same over IPv6.
    pub ipv6_tcp_ports: bool,
    /// Queues.
    pub table: Vec<u16>,
}

/// Whether a driver that offers RSS does what it is told. net_tap leaves the choice of the queue to the kernel, which follows
/// the queue that a flow was last answered from; net_null makes packets up.
pub(crate) fn spreads_by_hash(driver: &str) -> bool {
    !matches!(driver, "net_tap" | "net_null")
}

/// What a driver takes per transmitted packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct TxLimits {
    pub per_packet: usize,
    pub per_tso: usize,
    /// None: MTU + Ethernet header + VLAN tag.
    pub frame_bytes: Option<u32>,
    pub chains: bool,
    pub tso_frames: u16,
    /// Bytes of a TSO chain's IP packet.
    pub tso_bytes: u32,
    /// The driver counts the Ethernet header into the MTU when it cuts TSO chains.
    pub tso_frame_within_mtu: bool,
    /// TSO in this driver is software of its own; the stack's own segmentation is as good and has no such limits.
    pub tso_in_software: bool,
    /// The driver cuts IPv6 too. DPDK's offload flag is one for both.
    pub tso_ipv6: bool,
    /// It hands chains on as they are, without offering TSO: see `Port::peer_takes_tso`.
    pub tso_by_peer: bool,
    /// A chain's buffers are freed together, by `rte_pktmbuf_free` of its first; none is cloned, handed on one by one, or judged by
    /// the pool it comes from. Read in the driver, not guessed: where it is wrong, pages change under the device.
    pub frees_chains_whole: bool,
    /// The driver lets what was sent lie until its ring is full, unless `tx_free_thresh` says otherwise, which there means: release
    /// when more than all but this many descriptors are done with.
    pub release_early: bool,
}

const ANY: usize = usize::MAX;

/// An IP packet's length has 16 bits.
const IP_PACKET_BYTES_MAX: u32 = 65_535;
/// A segment's length has 14 bits in the descriptors of vmxnet3 and enic. vmxnet3's driver writes a longer one over the bits behind
/// it, which say whose the descriptor is (a read fault of the IOMMU was seen with longer ones); enic's cuts it
/// (read). No segment is longer than its packet.
const SEGMENT_BYTES_OF_14_BITS: u32 = (1 << 14) - 1;

/// The table. Unknown drivers get what DPDK says.
pub(crate) fn tx_limits(driver: &str, multi_segs_offered: bool) -> TxLimits {
    let mut limits = TxLimits {
        per_packet: ANY,
        per_tso: ANY,
        frame_bytes: None,
        chains: multi_segs_offered,
        tso_frames: u16::MAX,
        tso_bytes: IP_PACKET_BYTES_MAX,
        tso_frame_within_mtu: false,
        tso_in_software: false,
        tso_ipv6: true,
        tso_by_peer: driver == "net_vhost",
        frees_chains_whole: matches!(driver, "net_null" | "net_virtio" | "net_virtio_user" | "net_vhost"),
        release_early: matches!(driver, "net_virtio" | "net_virtio_user"),
    };
    let mut segments = |per_packet, per_tso| (limits.per_packet, limits.per_tso) = (per_packet, per_tso);
    match driver {
        "net_i40e" | "net_i40e_vf" => segments(8, 255),
        "net_ice" | "net_ice_dcf" | "net_iavf" => segments(8, ANY),
        "net_ixgbe" | "net_ixgbe_vf" => segments(40, 40),
        "net_e1000_em" | "net_e1000_igb" | "net_e1000_igb_vf" => segments(255, 255),
        // The driver drops nb_segs >= its 17-entry list.
        "net_ena" => segments(16, 16),
        "net_vmxnet3" => segments(16, 255),
        "net_hns3" | "net_hns3_vf" => segments(8, 63),
        "net_enic" => segments(64, 64),
        // 2 to 58, depending on how much the driver inlines; what its defaults leave with room to spare.
        "mlx5_pci" => segments(16, 16),
        _ => {}
    }
    match driver {
        // No wire: frames of any size. net_null does not claim MULTI_SEGS, but frees whatever chain it gets.
        "net_null" | "net_ring" => (limits.chains, limits.frame_bytes) = (true, Some(u32::MAX)),
        // Not claimed either; measured: longer chains are cut short in the file.
        "net_pcap" => (limits.chains, limits.frame_bytes) = (true, Some(16_128)),
        // Reads pkt_len bytes from the first segment, past its end.
        "net_af_xdp" => limits.chains = false,
        "net_vmxnet3" | "net_enic" => limits.tso_bytes = SEGMENT_BYTES_OF_14_BITS,
        "net_tap" => {
            limits.tso_frames = 64;
            limits.tso_frame_within_mtu = true;
            limits.tso_in_software = true;
            // It cuts with rte_gso, which knows only IPv4.
            limits.tso_ipv6 = false;
        }
        _ => {}
    }
    limits
}

impl TxLimits {
    /// Takes the smaller of the table's, the device's and the queue's own limits.
    pub(crate) fn narrowed(mut self, lim: &sys::rte_eth_desc_lim, tx_descriptors: u16) -> TxLimits {
        // Room for context descriptors, and for the one that some rings keep empty.
        const SPARE_DESCRIPTORS: u16 = 4;
        let ring = usize::from(tx_descriptors.saturating_sub(SPARE_DESCRIPTORS)).max(1);
        let common = ring.min(MAX_CHAIN_PIECES + 1);
        let said = |limit: u16| if limit == 0 { ANY } else { usize::from(limit) };
        self.per_tso = self.per_tso.min(said(lim.nb_seg_max)).min(common);
        self.per_packet = self.per_packet.min(said(lim.nb_mtu_seg_max)).min(said(lim.nb_seg_max)).min(common);
        if !self.chains {
            (self.per_packet, self.per_tso) = (1, 1);
        }
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(nb_seg_max: u16, nb_mtu_seg_max: u16) -> sys::rte_eth_desc_lim {
        sys::rte_eth_desc_lim { nb_seg_max, nb_mtu_seg_max, ..Default::default() }
    }

    #[test]
    fn the_smaller_of_table_device_and_ring_holds() {
        let vmxnet3 = tx_limits("net_vmxnet3", true).narrowed(&said(255, 16), 512);
        assert_eq!((vmxnet3.per_packet, vmxnet3.per_tso), (16, MAX_CHAIN_PIECES + 1));
        let i40e = tx_limits("net_i40e", true).narrowed(&said(u16::MAX, u16::MAX), 1024);
        assert_eq!(i40e.per_packet, 8);
        let tiny = tx_limits("net_unknown", true).narrowed(&said(0, 0), 32);
        assert_eq!((tiny.per_packet, tiny.per_tso), (28, 28));
    }

    #[test]
    fn a_chain_for_vmxnet3_has_no_segment_that_its_descriptor_cannot_say() {
        assert_eq!(tx_limits("net_vmxnet3", true).tso_bytes, 0x3fff);
        assert_eq!(tx_limits("net_virtio", true).tso_bytes, 65_535);
    }

    #[test]
    fn only_drivers_that_were_read_need_one_reference_for_a_chain() {
        for driver in ["net_null", "net_virtio", "net_virtio_user", "net_vhost"] {
            assert!(tx_limits(driver, true).frees_chains_whole, "{driver}");
        }
        for driver in ["net_ring", "net_tap", "net_vmxnet3", "mlx5_pci", "net_unknown"] {
            assert!(!tx_limits(driver, true).frees_chains_whole, "{driver}");
        }
    }

    #[test]
    fn drivers_that_would_read_past_a_segment_get_single_buffers() {
        let xdp = tx_limits("net_af_xdp", true).narrowed(&said(u16::MAX, u16::MAX), 1024);
        assert!(!xdp.chains);
        assert_eq!((xdp.per_packet, xdp.per_tso), (1, 1));
        assert!(tx_limits("net_null", false).chains);
        assert!(!tx_limits("net_unknown", false).chains);
    }
}
