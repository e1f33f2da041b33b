//! Packets with TCP segments made by hand, sent from any address and received at those that the kernel leaves to us. Raw sockets of
//! both families: the kernel routes and resolves, and everything above the Ethernet header is ours.
//!
//! Read first: raw(7), ipv6(7), RFC 9293 section 3.1, RFC 8200 section 8.1.

use std::net::{IpAddr, SocketAddr};
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use rustix::net::{AddressFamily, Protocol, RecvFlags, SendFlags, SocketType, bind, ipproto, recv, sendto, socket, sockopt};

use crate::net::Netns;
use crate::server::NFS_PORT;

pub const FIN: u8 = 0x01;
pub const SYN: u8 = 0x02;
pub const RST: u8 = 0x04;
pub const PSH: u8 = 0x08;
pub const ACK: u8 = 0x10;

/// What tells our packets from the kernel's own, which may not answer for our addresses: the TTL, IPv6's hop limit.
pub const TTL: u8 = 77;
const IPV4_HEADER: usize = 20;
const IPV6_HEADER: usize = 40;
const TCP_HEADER: usize = 20;
const ETHERNET_MTU: u16 = 1500;
const RECEIVE_BYTES: usize = 32 << 20;

/// A segment to or from the server's NFS port.
#[derive(Clone, Debug, Default)]
pub struct Segment {
    /// The other end than the server's.
    pub port: u16,
    pub seq: u32,
    pub ack: u32,
    pub flags: u8,
    pub window: u16,
    pub options: Vec<u8>,
    pub payload: Vec<u8>,
}

impl Segment {
    /// Sequence space.
    pub fn space(&self) -> u32 {
        self.payload.len() as u32 + u32::from(self.flags & SYN != 0) + u32::from(self.flags & FIN != 0)
    }

    fn packet(&self, from: IpAddr, to: IpAddr, ttl: u8, packet: &mut Vec<u8>) {
        let options = self.options.len().next_multiple_of(4);
        let tcp_len = TCP_HEADER + options + self.payload.len();
        packet.clear();
        let addresses = match (from, to) {
            (IpAddr::V4(from), IpAddr::V4(to)) => {
                packet.extend_from_slice(&[0x45, 0]);
                packet.extend_from_slice(&((IPV4_HEADER + tcp_len) as u16).to_be_bytes());
                // The kernel fills in the identification and the header's checksum.
                packet.extend_from_slice(&[0, 0, 0x40, 0, ttl, 6, 0, 0]);
                [from.octets(), to.octets()].concat()
            }
            (IpAddr::V6(from), IpAddr::V6(to)) => {
                packet.extend_from_slice(&[0x60, 0, 0, 0]);
                packet.extend_from_slice(&(tcp_len as u16).to_be_bytes());
                packet.extend_from_slice(&[6, ttl]);
                [from.octets(), to.octets()].concat()
            }
            _ => panic!("a packet from {from} to {to}"),
        };
        packet.extend_from_slice(&addresses);
        let ip_header = packet.len();
        packet.extend_from_slice(&self.port.to_be_bytes());
        packet.extend_from_slice(&NFS_PORT.to_be_bytes());
        packet.extend_from_slice(&self.seq.to_be_bytes());
        packet.extend_from_slice(&self.ack.to_be_bytes());
        packet.extend_from_slice(&[((TCP_HEADER + options) / 4 << 4) as u8, self.flags]);
        packet.extend_from_slice(&self.window.to_be_bytes());
        packet.extend_from_slice(&[0, 0, 0, 0]);
        packet.extend_from_slice(&self.options);
        packet.resize(ip_header + TCP_HEADER + options, 0);
        packet.extend_from_slice(&self.payload);
        let checksum = checksum(&[&addresses, &6u16.to_be_bytes(), &(tcp_len as u16).to_be_bytes(), &packet[ip_header..]]);
        packet[ip_header + 16..ip_header + 18].copy_from_slice(&checksum.to_be_bytes());
    }

    /// `None`: not TCP from the server's NFS port.
    fn parse(tcp: &[u8]) -> Option<Segment> {
        let long = |at: usize| Some(u32::from_be_bytes(tcp.get(at..at + 4)?.try_into().ok()?));
        let short = |at: usize| Some(u16::from_be_bytes(tcp.get(at..at + 2)?.try_into().ok()?));
        let header = usize::from(*tcp.get(12)? >> 4) * 4;
        let segment = Segment {
            port: short(2)?,
            seq: long(4)?,
            ack: long(8)?,
            flags: *tcp.get(13)?,
            window: short(14)?,
            options: tcp.get(TCP_HEADER..header)?.to_vec(),
            payload: tcp.get(header..)?.to_vec(),
        };
        (short(0)? == NFS_PORT).then_some(segment)
    }
}

/// RFC 1071, of big-endian words. Only the last part may have an odd length.
fn checksum(parts: &[&[u8]]) -> u16 {
    let mut sum = 0u32;
    for pair in parts.iter().flat_map(|part| part.chunks(2)) {
        sum += u32::from(u16::from_be_bytes([pair[0], pair.get(1).copied().unwrap_or(0)]));
    }
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

fn raw_socket(net: &Netns, family: IpAddr, protocol: Protocol) -> Result<OwnedFd> {
    let family = if family.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    Ok(net.inside(|| socket(family, SocketType::RAW, Some(protocol)))??)
}

/// Sends segments from any address.
pub struct Sender {
    socket: OwnedFd,
    server: IpAddr,
    pub ttl: u8,
    packet: Vec<u8>,
}

impl Sender {
    pub fn new(net: &Netns, server: IpAddr) -> Result<Sender> {
        Ok(Sender { socket: raw_socket(net, server, ipproto::RAW)?, server, ttl: TTL, packet: Vec::new() })
    }

    /// `false`: the way was full, and it is gone.
    pub fn send(&mut self, from: IpAddr, segment: &Segment) -> Result<bool> {
        segment.packet(from, self.server, self.ttl, &mut self.packet);
        match sendto(&self.socket, &self.packet, SendFlags::empty(), &SocketAddr::new(self.server, 0)) {
            Ok(_) => Ok(true),
            // A rule that drops what leaves says the latter.
            Err(rustix::io::Errno::NOBUFS | rustix::io::Errno::PERM) => Ok(false),
            Err(error) => Err(error).context("sending a packet"),
        }
    }
}

/// Hears what the server sends to one address.
pub struct Receiver {
    socket: OwnedFd,
    ipv4: bool,
    buffer: Vec<u8>,
}

impl Receiver {
    pub fn new(net: &Netns, address: IpAddr) -> Result<Receiver> {
        let socket = raw_socket(net, address, ipproto::TCP)?;
        sockopt::set_socket_recv_buffer_size_force(&socket, RECEIVE_BYTES)?;
        bind(&socket, &SocketAddr::new(address, 0))?;
        Ok(Receiver { socket, ipv4: address.is_ipv4(), buffer: vec![0; 65_536] })
    }

    /// The next segment to `port`; `None`: there was none.
    pub fn receive(&mut self, port: u16, within: Duration) -> Result<Option<Segment>> {
        self.receive_where(within, |segment| segment.port == port)
    }

    /// The next segment.
    pub fn receive_any(&mut self, within: Duration) -> Result<Option<Segment>> {
        self.receive_where(within, |_| true)
    }

    fn receive_where(&mut self, within: Duration, wanted: impl Fn(&Segment) -> bool) -> Result<Option<Segment>> {
        let deadline = Instant::now() + within;
        loop {
            let left = deadline.saturating_duration_since(Instant::now()).max(Duration::from_micros(1));
            sockopt::set_socket_timeout(&self.socket, sockopt::Timeout::Recv, Some(left))?;
            match recv(&self.socket, &mut self.buffer[..], RecvFlags::empty()) {
                Ok((len, _)) => {
                    // Before IPv4's payload is its header, before IPv6's nothing (RFC 3542 section 3).
                    let header = if self.ipv4 { usize::from(self.buffer[0] & 15) * 4 } else { 0 };
                    let segment = self.buffer[..len].get(header..).and_then(Segment::parse).filter(&wanted);
                    if segment.is_some() {
                        return Ok(segment);
                    }
                }
                Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
            if Instant::now() >= deadline {
                return Ok(None);
            }
        }
    }
}

/// A TCP end made by hand: it acknowledges what it is told to, and offers the windows that it is told to.
pub struct Peer {
    sender: Sender,
    receiver: Receiver,
    pub address: IpAddr,
    pub port: u16,
    /// What it sends next, and expects next.
    pub next: u32,
    pub expected: u32,
    /// The segment size that was agreed on.
    pub mss: u32,
}

impl Peer {
    /// A connection without timestamps, SACK or window scale.
    pub fn open(net: &Netns, server: IpAddr, address: IpAddr, port: u16, window: u16) -> Result<Peer> {
        let mss = ETHERNET_MTU - (if address.is_ipv4() { IPV4_HEADER } else { IPV6_HEADER } + TCP_HEADER) as u16;
        let (sender, receiver) = (Sender::new(net, server)?, Receiver::new(net, address)?);
        let mut peer = Peer { sender, receiver, address, port, next: 0x1000_0000, expected: 0, mss: mss.into() };
        let [high, low] = mss.to_be_bytes();
        let syn = Segment { flags: SYN, window, options: vec![2, 4, high, low], ..peer.segment(window) };
        for _ in 0..5 {
            peer.put(&syn)?;
            if let Some(answer) = peer.receive(Duration::from_secs(1))? {
                ensure!(answer.flags & (SYN | ACK | RST) == SYN | ACK, "a SYN was answered by {answer:?}");
                peer.next = peer.next.wrapping_add(1);
                ensure!(answer.ack == peer.next, "a SYN-ACK of {}", answer.ack);
                peer.expected = answer.seq.wrapping_add(1);
                peer.acknowledge(peer.expected, window)?;
                return Ok(peer);
            }
        }
        anyhow::bail!("no answer to a SYN from {address}")
    }

    fn segment(&self, window: u16) -> Segment {
        Segment { port: self.port, seq: self.next, ack: self.expected, window, ..Segment::default() }
    }

    pub fn put(&mut self, segment: &Segment) -> Result<()> {
        self.sender.send(self.address, segment).map(drop)
    }

    /// Sends text, which is short.
    pub fn send(&mut self, payload: &[u8], window: u16) -> Result<()> {
        let segment = Segment { flags: PSH | ACK, payload: payload.to_vec(), ..self.segment(window) };
        self.put(&segment)?;
        self.next = self.next.wrapping_add(segment.space());
        Ok(())
    }

    /// An ACK of `ack`, right or not.
    pub fn acknowledge(&mut self, ack: u32, window: u16) -> Result<()> {
        let segment = Segment { flags: ACK, ack, ..self.segment(window) };
        self.put(&segment)
    }

    pub fn reset(&mut self) -> Result<()> {
        let segment = Segment { flags: RST | ACK, ..self.segment(0) };
        self.put(&segment)
    }

    pub fn receive(&mut self, within: Duration) -> Result<Option<Segment>> {
        self.receiver.receive(self.port, within)
    }
}
