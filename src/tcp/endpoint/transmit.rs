//! What the layers below get to send, and what they can carry.

use std::net::{IpAddr, Ipv4Addr};

use super::FourTuple;
use crate::buf::Slice;
use crate::wire::checksum::Sum;
use crate::wire::protocol;
use crate::wire::tcp::{CHECKSUM_OFFSET, HEADER_LEN_MAX, PlainRepr, Repr};

/// What the layers below can carry; may differ between calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TransmitLimits {
    /// Largest IP packet, bytes.
    pub mtu: u16,
    /// Largest TCP payload of one chain to be cut by the device, bytes; 0: no TSO.
    pub tso_bytes_max: u32,
    /// The same over IPv6, which not every device with TSO can cut.
    pub tso_ipv6_bytes_max: u32,
    /// Buffers (header included) one packet, or the bytes of one MSS of a chain, may be made of.
    pub segments_per_packet_max: u16,
    /// Buffers (header included) a chain may be made of.
    pub segments_tso_max: u16,
}

impl Default for TransmitLimits {
    fn default() -> TransmitLimits {
        TransmitLimits { mtu: 1500, tso_bytes_max: 0, tso_ipv6_bytes_max: 0, segments_per_packet_max: 32, segments_tso_max: 32 }
    }
}

/// One packet, or one chain to be cut by the device. The caller keeps it and hands it in again: its memory is reused.
#[derive(Debug)]
pub struct Transmit {
    /// The IP header's source address.
    pub src: IpAddr,
    /// Its destination address.
    pub dst: IpAddr,
    /// The TCP header lies at its front: `header()` is that part.
    pub header: [u8; HEADER_LEN_MAX],
    /// Bytes of the TCP header with its options.
    pub header_len: u8,
    /// The payload, by reference.
    pub payload: Vec<Slice>,
    /// Bytes of the payload.
    pub payload_len: u32,
    /// Cut the payload into packets of this many bytes each; `None`: it is one packet.
    pub tso_mss: Option<u16>,
    /// For the two ECN bits of the IP header.
    pub ecn: u8,
    /// Routers may cut it (RFC 1191 section 3): the path takes less than can be planned with.
    pub may_fragment: bool,
}

impl Default for Transmit {
    fn default() -> Transmit {
        let nowhere = IpAddr::V4(Ipv4Addr::UNSPECIFIED);
        Transmit {
            src: nowhere,
            dst: nowhere,
            header: [0; HEADER_LEN_MAX],
            header_len: 0,
            payload: Vec::new(),
            payload_len: 0,
            tso_mss: None,
            ecn: 0,
            may_fragment: false,
        }
    }
}

impl Transmit {
    /// The TCP header. Its checksum field is 0: call `fill_checksum`, or `fill_pseudo_header_sum` for a device that does the rest.
    pub fn header(&self) -> &[u8] {
        &self.header[..usize::from(self.header_len)]
    }

    /// The header, and the payload for a device to take.
    pub fn parts(&mut self) -> (&[u8], &mut Vec<Slice>) {
        (&self.header[..usize::from(self.header_len)], &mut self.payload)
    }

    /// Bytes of the payload, of a chain all of them.
    pub fn payload_len(&self) -> usize {
        self.payload_len as usize
    }

    /// As how many packets a payload of `payload_len` bytes reaches the wire (Linux: tcp_skb_pcount).
    #[inline]
    pub(crate) fn packets(&self, payload_len: usize) -> u64 {
        match self.tso_mss {
            // A chain is below 64 KiB: the short division.
            Some(mss) => u64::from((payload_len as u32).div_ceil(u32::from(mss))),
            None => 1,
        }
    }

    /// Computes the checksum in software. Not for chains.
    pub fn fill_checksum(&mut self) {
        debug_assert!(self.tso_mss.is_none());
        let len = usize::from(self.header_len);
        self.set_checksum(0);
        let mut sum = Sum::pseudo_header(self.src, self.dst, protocol::TCP, len + self.payload_len());
        sum.add(&self.header[..len]);
        sum.add_slices(&self.payload);
        self.set_checksum(sum.finish());
    }

    /// Puts the folded, not complemented sum over the pseudo-header in the checksum's place: with the length for one packet, without it
    /// for a chain, which is what devices ask for.
    pub fn fill_pseudo_header_sum(&mut self) {
        let sum = match self.tso_mss {
            Some(_) => Sum::pseudo_header_without_length(self.src, self.dst, protocol::TCP),
            None => Sum::pseudo_header(self.src, self.dst, protocol::TCP, usize::from(self.header_len) + self.payload_len()),
        };
        self.set_checksum(sum.partial());
    }

    fn set_checksum(&mut self, checksum: u16) {
        self.header[CHECKSUM_OFFSET..CHECKSUM_OFFSET + 2].copy_from_slice(&checksum.to_be_bytes());
    }

    /// Writes the header; the payload, of `payload_len` bytes, and `tso_mss` are in place already.
    pub(crate) fn seal(&mut self, tuple: &FourTuple, repr: &Repr, payload_len: usize) {
        self.header_len = repr.emit(&mut self.header) as u8;
        self.address(tuple, payload_len);
    }

    /// The same with a plain header.
    #[inline]
    pub(crate) fn seal_plain(&mut self, tuple: &FourTuple, repr: &PlainRepr, payload_len: usize) {
        self.header_len = repr.emit(&mut self.header) as u8;
        self.address(tuple, payload_len);
    }

    #[inline]
    fn address(&mut self, tuple: &FourTuple, payload_len: usize) {
        (self.src, self.dst, self.ecn) = (tuple.local_ip, tuple.remote_ip, 0);
        self.payload_len = payload_len as u32;
        debug_assert_eq!(crate::buf::gather_len(&self.payload), payload_len);
    }

    pub(crate) fn clear(&mut self) {
        if !self.payload.is_empty() {
            self.payload.clear();
        }
        (self.tso_mss, self.may_fragment) = (None, false);
    }
}
