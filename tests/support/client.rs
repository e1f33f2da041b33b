//! The client of the rig: the server's own network stack in the other role, and replies cut out of its streams.

use std::collections::VecDeque;
use std::net::{IpAddr, SocketAddr};

use nfsplice::buf::{FragmentArena, PagePool, Slice};
use nfsplice::net::interface::{IcmpError, IcmpErrorKind};
use nfsplice::net::{Device, Ingress, Interface, OutgoingPacket, SendRefused};
use nfsplice::tcp::{self, ConnectionId, Endpoint, Event, FourTuple, Reason, Transmit, TransmitLimits};
use nfsplice::time::Instant;
use nfsplice::wire::protocol;
use nfsplice::wire::tcp::SeqNumber;

use super::nfs::{self, Answer, Args};
use super::server::{NFS_PORT, Setup};

pub const CLIENT_ADDRESS: [u8; 4] = [10, 77, 0, 1];
/// fd4e:6673::1
pub const CLIENT_ADDRESS_V6: [u16; 8] = [0xfd4e, 0x6673, 0, 0, 0, 0, 0, 1];

/// Bytes of a page of what the client sends.
const PAGE: usize = 16 << 10;
const PAGES: usize = 512;

/// One connection.
pub struct Stream {
    pub id: ConnectionId,
    pub port: u16,
    pub connected: bool,
    pub peer_closed: bool,
    pub closed: Option<Reason>,
    /// Off: what arrives stays in TCP and closes its window.
    pub reads: bool,
    outbox: VecDeque<u8>,
    input: Vec<u8>,
    /// Whole messages, without their marks, in order of arrival.
    pub replies: VecDeque<Vec<u8>>,
}

impl Stream {
    pub fn has_reply(&self, xid: u32) -> bool {
        self.replies.iter().any(|reply| reply.starts_with(&xid.to_be_bytes()))
    }

    /// The results of the reply to a call that must have been accepted.
    pub fn take_reply(&mut self, xid: u32) -> Option<Answer> {
        let at = self.replies.iter().position(|reply| reply.starts_with(&xid.to_be_bytes()))?;
        let reply = self.replies.remove(at)?;
        Some(nfs::accepted(reply).expect("an accepted call").1)
    }

    /// Bytes of a message that is not complete.
    pub fn unfinished(&self) -> usize {
        self.input.len()
    }

    fn cut(&mut self) {
        let mut at = 0;
        while let Some(mark) = self.input.get(at..at + 4) {
            let mark = u32::from_be_bytes(mark.try_into().expect("four bytes"));
            assert!(mark & 1 << 31 != 0, "the server sends one fragment per record: {mark:#x}");
            let len = (mark & !(1 << 31)) as usize;
            let Some(message) = self.input.get(at + 4..at + 4 + len) else { break };
            self.replies.push_back(message.to_vec());
            at += 4 + len;
        }
        self.input.drain(..at);
    }
}

pub struct Client<D> {
    pub device: D,
    pub interface: Interface,
    pub tcp: Endpoint,
    pub streams: Vec<Stream>,
    /// Where the bytes lay that were received, as (address, length), if wanted.
    pub received_at: Option<Vec<(usize, usize)>>,
    pool: PagePool,
    next_xid: u32,
    transmit: Transmit,
    limits: TransmitLimits,
    /// Its own and the server's.
    addresses: [IpAddr; 2],
}

impl<D: Device> Client<D> {
    pub fn new(setup: &Setup, device: D) -> Client<D> {
        let pool = PagePool::anonymous(PAGES, PAGE).unwrap();
        let capabilities = *device.capabilities();
        let options = setup.interface(capabilities.mac, CLIENT_ADDRESS, CLIENT_ADDRESS_V6);
        Client {
            interface: Interface::new(options, FragmentArena::new(pool.clone()).unwrap(), Instant::ZERO).unwrap(),
            tcp: Endpoint::new(setup.client_tcp.clone(), [1; 16]),
            streams: Vec::new(),
            received_at: None,
            pool,
            next_xid: 0,
            transmit: Transmit::default(),
            limits: TransmitLimits {
                mtu: setup.mtu.min(capabilities.mtu),
                tso_bytes_max: capabilities.tso_bytes_max,
                tso_ipv6_bytes_max: if capabilities.tso_ipv6 { capabilities.tso_bytes_max } else { 0 },
                segments_per_packet_max: capabilities.segments_per_packet_max,
                segments_tso_max: capabilities.segments_tso_max,
            },
            addresses: setup.addresses(),
            device,
        }
    }

    /// Its own address and the server's.
    pub fn addresses(&self) -> [IpAddr; 2] {
        self.addresses
    }

    /// Opens a connection to the NFS port; its number.
    pub fn connect(&mut self, now: Instant) -> usize {
        let [local, remote] = self.addresses;
        let id = self.tcp.connect(now, SocketAddr::new(local, 0), SocketAddr::new(remote, NFS_PORT)).unwrap();
        let port = self.tcp.info(id).unwrap().local.port();
        self.streams.push(Stream {
            id,
            port,
            connected: false,
            peer_closed: false,
            closed: None,
            reads: true,
            outbox: VecDeque::new(),
            input: Vec::new(),
            replies: VecDeque::new(),
        });
        self.streams.len() - 1
    }

    pub fn next_xid(&mut self) -> u32 {
        self.next_xid += 1;
        self.next_xid
    }

    /// Queues an NFSv3 call; its xid.
    pub fn call(&mut self, now: Instant, stream: usize, procedure: u32, arguments: &Args) -> u32 {
        let xid = self.next_xid();
        self.send(now, stream, &nfs::record(&nfs::call(xid, procedure, arguments)));
        xid
    }

    /// Queues bytes as they are.
    pub fn send(&mut self, now: Instant, stream: usize, bytes: &[u8]) {
        self.streams[stream].outbox.extend(bytes);
        self.feed(now, stream);
    }

    pub fn close(&mut self, now: Instant, stream: usize) {
        self.tcp.close(now, self.streams[stream].id);
    }

    pub fn abort(&mut self, now: Instant, stream: usize) {
        self.tcp.abort(now, self.streams[stream].id);
    }

    /// Begins to read, or to read again.
    pub fn resume(&mut self, now: Instant, stream: usize) {
        self.streams[stream].reads = true;
        self.drain(now, stream);
    }

    pub fn poll_timeout(&self) -> Option<Instant> {
        [self.interface.poll_timeout(), self.tcp.poll_timeout()].into_iter().flatten().min()
    }

    fn feed(&mut self, now: Instant, at: usize) {
        let Stream { id, outbox, .. } = &mut self.streams[at];
        while !outbox.is_empty() {
            let Some(mut page) = self.pool.allocate() else { return };
            let len = outbox.len().min(PAGE).min(self.tcp.send_room(*id));
            if len == 0 {
                return;
            }
            for (to, from) in page.iter_mut().zip(outbox.drain(..len)) {
                *to = from;
            }
            let mut gather: Vec<Slice> = vec![page.freeze().slice(0..len)];
            self.tcp.send(now, *id, &mut gather).expect("there was room");
        }
    }

    fn drain(&mut self, now: Instant, at: usize) {
        let stream = &mut self.streams[at];
        if !stream.reads {
            return;
        }
        let Some(chain) = self.tcp.receive(stream.id) else { return };
        let view = chain.view(0, chain.len()).expect("all there is");
        for piece in view.pieces() {
            stream.input.extend_from_slice(piece);
            if let Some(places) = &mut self.received_at {
                places.push((piece.as_ptr() as usize, piece.len()));
            }
        }
        let len = chain.len();
        chain.consume(len);
        self.tcp.received(now, stream.id);
        stream.cut();
    }

    fn handle_event(&mut self, now: Instant, event: Event) {
        let (Event::Connected(id) | Event::Readable(id) | Event::Writable(id) | Event::PeerClosed(id) | Event::Closed(id, _)) =
            event
        else {
            panic!("a client does not listen")
        };
        let Some(at) = self.streams.iter().rposition(|stream| stream.id == id) else { return };
        match event {
            Event::Connected(_) => self.streams[at].connected = true,
            Event::PeerClosed(_) => self.streams[at].peer_closed = true,
            Event::Closed(_, reason) => self.streams[at].closed = Some(reason),
            _ => {}
        }
        if !matches!(event, Event::Closed(..)) {
            self.drain(now, at);
            self.feed(now, at);
        }
    }

    /// Of what routers say only that a packet was too long matters here.
    fn handle_icmp(&mut self, now: Instant, error: &IcmpError) {
        let IcmpErrorKind::FragmentationNeeded { mtu } = error.kind else { return };
        let tuple = FourTuple {
            local_ip: error.local.ip(),
            remote_ip: error.remote.ip(),
            local_port: error.local.port(),
            remote_port: error.remote.port(),
        };
        self.tcp.handle_icmp(now, &tuple, SeqNumber(error.tcp_sequence), tcp::IcmpError::PacketTooBig { mtu });
    }

    /// One turn; how many things it found to do.
    pub fn turn(&mut self, now: Instant) -> usize {
        let mut frames = Vec::new();
        let mut work = self.device.receive(&mut frames);
        for frame in frames {
            match self.interface.handle_frame(now, frame) {
                Ingress::Tcp { src, dst, packet, checksum, .. } => self.tcp.handle_segment(now, src, dst, packet, checksum),
                Ingress::IcmpError(error) => self.handle_icmp(now, &error),
                _ => {}
            }
        }
        if self.interface.poll_timeout().is_some_and(|at| at <= now) {
            self.interface.handle_timeout(now);
            work += 1;
        }
        if self.tcp.poll_timeout().is_some_and(|at| at <= now) {
            self.tcp.handle_timeout(now);
            work += 1;
        }
        while let Some(event) = self.tcp.poll_event() {
            self.handle_event(now, event);
            work += 1;
        }
        // What found no page or no room before.
        for at in 0..self.streams.len() {
            self.feed(now, at);
        }
        work + self.send_packets(now)
    }

    fn send_packets(&mut self, now: Instant) -> usize {
        // What has waited for its neighbour's address first, as in the server.
        let mut sent = self.interface.poll_transmit(now, &mut self.device);
        while self.tcp.poll_transmit(now, &self.limits, &mut self.transmit) {
            let packet = OutgoingPacket {
                src: self.transmit.src,
                dst: self.transmit.dst,
                protocol: protocol::TCP,
                traffic_class: self.transmit.ecn,
                transport_header: self.transmit.header(),
                payload: &self.transmit.payload,
                tso_mss: self.transmit.tso_mss,
                may_fragment: self.transmit.may_fragment,
            };
            if self.interface.send(now, &mut self.device, &packet) == Err(SendRefused::Full) {
                self.device.flush();
                // Lost if it is refused again, like any packet.
                let _ = self.interface.send(now, &mut self.device, &packet);
            }
            sent += 1;
        }
        sent += self.interface.poll_transmit(now, &mut self.device);
        self.device.flush();
        sent
    }
}
