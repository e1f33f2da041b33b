//! Datagrams through an interface: no sockets, no queues. What comes in is `Ingress::Udp`; this is the way out.
//!
//! Read first: RFC 768; RFC 8085 section 3.2 (do not send what must be fragmented). Our link does not have to; a router on the way may, as
//! nobody here would hear that it must not: a client that asks again would get the same answer, and never see it. Over IPv6 no router
//! does: what is sent there fits every path (RFC 8200 section 5).

use std::net::{IpAddr, SocketAddr};

use super::device::Device;
use super::interface::{Interface, OutgoingPacket, SendRefused};
use crate::buf::{Slice, gather_len};
use crate::time::Instant;
use crate::wire::{ipv4, ipv6, protocol, udp};

/// Longer IPv4 packets may be cut by routers, bytes: what every path carries that hosts are on (RFC 1122 section 3.3.3). Shorter ones need no
/// value that tells their pieces apart (RFC 6864 section 4.1).
const UNCUT_MAX: usize = 576;

/// The largest payload of a datagram to this address on a link with this MTU, bytes.
pub fn payload_max(mtu: u16, to: IpAddr) -> usize {
    let (packet_max, ip_len) = match to {
        IpAddr::V4(_) => (mtu, ipv4::HEADER_LEN),
        IpAddr::V6(_) => (mtu.min(ipv6::MTU_MIN), ipv6::HEADER_LEN),
    };
    usize::from(packet_max).saturating_sub(ip_len + udp::HEADER_LEN)
}

/// Why a datagram was not sent. Nothing of it is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UdpRefused {
    /// We never fragment: answer with something shorter, or not at all.
    #[error("a payload of {octets} bytes, {octets_max} fit")]
    TooLong { octets: usize, octets_max: usize },
    #[error(transparent)]
    Refused(#[from] SendRefused),
}

impl Interface {
    /// Sends one datagram from one of the interface's addresses.
    pub fn send_udp<D: Device + ?Sized>(
        &mut self,
        now: Instant,
        device: &mut D,
        src: SocketAddr,
        dst: SocketAddr,
        payload: &[Slice],
    ) -> Result<(), UdpRefused> {
        let octets = gather_len(payload);
        let octets_max = payload_max(self.mtu_to(dst.ip()).min(device.capabilities().mtu), dst.ip());
        if octets > octets_max {
            self.count_udp_too_long();
            return Err(UdpRefused::TooLong { octets, octets_max });
        }
        // octets <= octets_max < 65,535.
        let header = udp::Repr { src_port: src.port(), dst_port: dst.port(), payload_len: octets as u16, checksum: 0 }.emit();
        let packet = OutgoingPacket {
            src: src.ip(),
            dst: dst.ip(),
            protocol: protocol::UDP,
            traffic_class: 0,
            transport_header: &header,
            payload,
            tso_mss: None,
            may_fragment: dst.is_ipv4() && ipv4::HEADER_LEN + udp::HEADER_LEN + octets > UNCUT_MAX,
        };
        Ok(self.send(now, device, &packet)?)
    }
}
