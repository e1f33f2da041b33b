//! What is sent: a header that is copied, payload that is not, and what the device shall do with both.

/// Payload pieces of one chain at most (the header's buffer comes on top).
pub const MAX_CHAIN_PIECES: usize = 64;

/// A piece of payload is at most this long, in bytes: DPDK's buffer lengths have 16 bits.
pub const MAX_PIECE_BYTES: usize = 65_535;

/// A value that keeps a range of bytes readable for a device: a counted reference to a page, with an offset and a
/// length. It is dropped when the device (or a peer on net_ring) has let go of the bytes, on whatever thread that
/// happens; dropping must not panic, block or allocate.
///
/// # Safety
/// From the moment the value is given to a queue until it is dropped:
/// - `as_ptr() .. as_ptr() + len()` is mapped, readable memory,
/// - the device can reach it, contiguously, at `iova()` (memory of a [`crate::memory::Zone`]; see there what is
///   contiguous),
/// - **nobody changes the bytes**,
/// - the three methods return the same values each time, also after the value itself was moved.
pub unsafe trait TxPayload: Send + 'static {
    /// The first byte.
    fn as_ptr(&self) -> *const u8;
    /// How many bytes.
    fn len(&self) -> usize;
    /// The first byte's address as the device sees it.
    fn iova(&self) -> u64;
    /// True when there are no bytes. Empty pieces are released at once and not sent.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// What the device is asked to do. Checksum fields must hold what the offload expects: 0 for IPv4; the pseudo-header
/// sum for TCP and UDP (without the length when `tso_mss` is set).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct TxOffload {
    /// Ethernet header bytes.
    pub l2_len: u8,
    /// IP header bytes.
    pub l3_len: u16,
    /// TCP or UDP header bytes, options included.
    pub l4_len: u8,
    /// The packet is IPv6, otherwise IPv4.
    pub ipv6: bool,
    /// Fill in the IPv4 header checksum.
    pub ip_checksum: bool,
    /// Fill in the TCP checksum.
    pub tcp_checksum: bool,
    /// Fill in the UDP checksum.
    pub udp_checksum: bool,
    /// Cut the TCP payload into segments of this many bytes (MSS less options). Implies `tcp_checksum`, and
    /// `ip_checksum` for IPv4 where the port has it. Where it has not (virtio, vmxnet3), the header carries the IPv4
    /// checksum of the whole chain's packet, and the device redoes it per segment.
    pub tso_mss: Option<u16>,
}

/// Why a chain was not queued. Everything that was given is released; the caller still has its own references.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TxRefused {
    /// The queue's own backlog is full: flush, try again later.
    #[error("the transmit backlog is full")]
    QueueFull,
    /// No free buffer or hold: the device has not finished with earlier chains. Flush, try again later.
    #[error("no free transmit buffer")]
    NoBuffer,
    /// More segments than the device takes per packet, or per MSS; the planner above must cut the chain.
    #[error("{segments} segments, the device takes {limit}")]
    TooManySegments {
        /// Segments the chain has, the header's included.
        segments: usize,
        /// The limit that was passed.
        limit: usize,
    },
    /// The header is longer than a header buffer.
    #[error("a header of {bytes} bytes, {limit} fit")]
    HeaderTooLong {
        /// The header's length.
        bytes: usize,
        /// The room there is.
        limit: usize,
    },
    /// A payload piece is longer than [`MAX_PIECE_BYTES`].
    #[error("a payload piece of {bytes} bytes")]
    PieceTooLong {
        /// Its length.
        bytes: usize,
    },
    /// The whole frame is longer than the device takes.
    #[error("a frame of {bytes} bytes, the device takes {limit}")]
    FrameTooLong {
        /// Its length.
        bytes: usize,
        /// The limit that was passed.
        limit: usize,
    },
    /// The device was not set up for this offload; see [`crate::capability::PortCapabilities`].
    #[error("the offload is not available")]
    OffloadUnavailable,
    /// Header lengths that contradict the header or each other.
    #[error("header lengths do not fit the header")]
    OffloadInvalid,
    /// The device takes no chains: copy the payload.
    #[error("the device takes single buffers only")]
    ChainsUnsupported,
}

impl TxRefused {
    /// True when the same chain may be accepted after a flush.
    pub fn is_temporary(self) -> bool {
        matches!(self, TxRefused::QueueFull | TxRefused::NoBuffer)
    }
}

const TCP_HEADER_BYTES_MIN: usize = 20;
const UDP_HEADER_BYTES: usize = 8;
const IPV4_HEADER_BYTES_MIN: usize = 20;
const IPV6_HEADER_BYTES: usize = 40;

impl TxOffload {
    /// True when nothing is asked of the device.
    pub fn is_none(&self) -> bool {
        !(self.ip_checksum || self.tcp_checksum || self.udp_checksum || self.tso_mss.is_some())
    }

    /// Drivers read and write header fields at the offsets given here, without looking at the buffer's length. All
    /// that they may touch must lie within the header's buffer.
    pub(crate) fn check(&self, header_bytes: usize) -> Result<(), TxRefused> {
        if self.is_none() {
            return Ok(());
        }
        let l3_min = if self.ipv6 { IPV6_HEADER_BYTES } else { IPV4_HEADER_BYTES_MIN };
        let tcp = self.tcp_checksum || self.tso_mss.is_some();
        let l4_min = match (tcp, self.udp_checksum) {
            (true, true) => return Err(TxRefused::OffloadInvalid),
            (true, false) => TCP_HEADER_BYTES_MIN,
            (false, true) => UDP_HEADER_BYTES,
            (false, false) => 0,
        };
        let lengths = usize::from(self.l2_len) + usize::from(self.l3_len) + usize::from(self.l4_len);
        let valid = usize::from(self.l3_len) >= l3_min
            && usize::from(self.l4_len) >= l4_min
            && lengths <= header_bytes
            // Widths of the descriptor's fields: 7 and 9 bits.
            && self.l2_len < 128
            && self.l3_len < 512
            && !(self.ipv6 && self.ip_checksum)
            && self.tso_mss != Some(0);
        if valid { Ok(()) } else { Err(TxRefused::OffloadInvalid) }
    }
}

/// The largest number of segments that one MSS of a TSO chain touches, the header's included: what devices with a
/// limit per MSS (i40e, ice: 8) count. `lengths` are the payload pieces' lengths.
pub fn segments_per_mss(lengths: impl IntoIterator<Item = usize>, mss: usize) -> usize {
    // Bytes of the current MSS already filled, and pieces that it touches.
    let (mut filled, mut touched, mut most) = (0, 0, 0);
    for mut length in lengths {
        while length > 0 {
            touched += 1;
            most = most.max(touched);
            let step = length.min(mss - filled);
            length -= step;
            filled += step;
            if filled == mss {
                (filled, touched) = (0, 0);
                // Whole MSS inside one piece touch one segment each.
                length -= length / mss * mss;
            }
        }
    }
    most + 1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn segments_per_mss_counts_the_fullest_window() {
        assert_eq!(segments_per_mss([4096, 4096], 1448), 3);
        assert_eq!(segments_per_mss([512; 8], 1448), 1 + 4);
        assert_eq!(segments_per_mss([1448], 1448), 2);
        assert_eq!(segments_per_mss([100; 30], 1448), 1 + 15);
        assert_eq!(segments_per_mss([], 1448), 1);
    }

    #[test]
    fn whole_mss_inside_a_piece_are_skipped_without_a_lost_byte() {
        // 1 byte, then 3 MSS + 1: windows are [1 + 9], [10], [10], [2 ...]: never more than two pieces.
        assert_eq!(segments_per_mss([1, 31, 1, 1], 10), 1 + 3);
        assert_eq!(segments_per_mss([1, 39, 1, 1], 10), 1 + 2);
    }

    #[test]
    fn offload_lengths_must_lie_in_the_header() {
        let tcp = TxOffload { l2_len: 14, l3_len: 20, l4_len: 32, tcp_checksum: true, ..TxOffload::default() };
        assert_eq!(tcp.check(66), Ok(()));
        assert_eq!(tcp.check(65), Err(TxRefused::OffloadInvalid));
        assert_eq!(TxOffload { l4_len: 0, ..tcp }.check(66), Err(TxRefused::OffloadInvalid));
        assert_eq!(TxOffload { ipv6: true, ..tcp }.check(66), Err(TxRefused::OffloadInvalid));
        assert_eq!(TxOffload { udp_checksum: true, ..tcp }.check(66), Err(TxRefused::OffloadInvalid));
        assert_eq!(TxOffload { tso_mss: Some(0), ..tcp }.check(66), Err(TxRefused::OffloadInvalid));
        assert_eq!(TxOffload::default().check(0), Ok(()));
    }
}
