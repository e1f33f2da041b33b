//! This project's own TCP/IP as a client, over any device. Sans-IO: the clock is handed in.
//!
//! The same layers as in `shard`, in the other role: frames go up through `net` and `tcp`, what TCP has to send goes down, one
//! burst a turn. Deliberately not here: RPC, and what a frame or a segment means.

use std::net::{IpAddr, SocketAddr};

use super::steering::Steering;
use super::transport::{Figure, StreamEvent, StreamKey, TransportError, append_figures};
use crate::buf::{RxChain, Slice};
use crate::net::interface::IcmpErrorKind;
use crate::net::{Device, Ingress, Interface, OutgoingPacket, RxFrame, SendRefused};
use crate::tcp::{self, ConnectionId, Event, FourTuple, SendError, Transmit, TransmitLimits};
use crate::time::Instant;
use crate::wire::icmpv4::unreachable;
use crate::wire::protocol;
use crate::wire::tcp::SeqNumber;

crate::counters! {
    /// What the client's loop counts.
    pub struct StackCounters {
        /// Frames received.
        frames_in,
        /// Packets and TSO chains handed to the interface.
        packets_out,
        /// Times a packet waited for a full device.
        device_full,
        /// Packets dropped on their way out.
        packets_undeliverable,
    }
}

/// One core's client end of the network.
pub struct Stack<D> {
    device: D,
    interface: Interface,
    tcp: tcp::Endpoint,
    address: IpAddr,
    limits: TransmitLimits,
    streams: Vec<ConnectionId>,
    /// A connection's slot in TCP to its number here.
    by_slot: Vec<u32>,
    /// With several cores on the port.
    steering: Option<Steering>,
    counters: StackCounters,
    // Reused from turn to turn.
    frames: Vec<RxFrame>,
    transmit: Transmit,
    /// `transmit` holds a packet that the device had no room for.
    transmit_waits: bool,
}

fn slot(id: ConnectionId) -> usize {
    // The low half of `to_bits` is the slot.
    id.to_bits() as u32 as usize
}

impl<D: Device> Stack<D> {
    /// `address` is the interface's own.
    pub fn new(device: D, interface: Interface, tcp: tcp::Endpoint, address: IpAddr, steering: Option<Steering>) -> Stack<D> {
        let capabilities = *device.capabilities();
        Stack {
            limits: TransmitLimits {
                mtu: interface.mtu().min(capabilities.mtu),
                tso_bytes_max: capabilities.tso_bytes_max,
                tso_ipv6_bytes_max: if capabilities.tso_ipv6 { capabilities.tso_bytes_max } else { 0 },
                segments_per_packet_max: capabilities.segments_per_packet_max,
                segments_tso_max: capabilities.segments_tso_max,
            },
            device,
            interface,
            tcp,
            address,
            streams: Vec::new(),
            by_slot: Vec::new(),
            steering,
            counters: StackCounters::default(),
            frames: Vec::new(),
            transmit: Transmit::default(),
            transmit_waits: false,
        }
    }

    /// One burst of frames, and the timers that are due.
    pub fn receive(&mut self, now: Instant) -> usize {
        let mut frames = std::mem::take(&mut self.frames);
        self.device.receive(&mut frames);
        if let Some(steering) = &mut self.steering {
            steering.steer(&mut frames);
        }
        let mut work = frames.len();
        self.counters.frames_in += work as u64;
        for frame in &mut frames {
            let tcp = &mut self.tcp;
            let ingress = self.interface.handle_frame_in_place(now, frame, |segment| {
                tcp.continue_train(now, (segment.src, segment.dst), segment.buf, segment.range, segment.checksum)
            });
            match ingress {
                Some(Ingress::Tcp { src, dst, packet, checksum, .. }) => self.tcp.handle_segment(now, src, dst, packet, checksum),
                Some(Ingress::IcmpError(error)) if error.protocol == protocol::TCP => {
                    let tuple = FourTuple {
                        local_ip: error.local.ip(),
                        remote_ip: error.remote.ip(),
                        local_port: error.local.port(),
                        remote_port: error.remote.port(),
                    };
                    self.tcp.handle_icmp(now, &tuple, SeqNumber(error.tcp_sequence), icmp_meaning(error.kind));
                }
                Some(Ingress::Udp(_) | Ingress::IcmpError(_) | Ingress::Consumed) | None => {}
            }
        }
        frames.clear();
        self.frames = frames;
        if self.interface.poll_timeout().is_some_and(|at| at <= now) {
            self.interface.handle_timeout(now);
            work += 1;
        }
        if self.tcp_timeout().is_some_and(|at| at <= now) {
            self.tcp.handle_timeout(now);
            work += 1;
        }
        work
    }

    pub fn poll_event(&mut self, now: Instant) -> Option<StreamEvent> {
        loop {
            let event = self.tcp.poll_event()?;
            let (id, make): (ConnectionId, fn(StreamKey) -> StreamEvent) = match event {
                Event::Connected(id) => (id, StreamEvent::Connected),
                Event::Readable(id) => (id, StreamEvent::Readable),
                Event::Closed(id, _) => (id, StreamEvent::Closed),
                // A server that says no more will not answer: `Closed` follows the end of our side.
                Event::PeerClosed(id) => {
                    self.tcp.abort(now, id);
                    continue;
                }
                Event::Writable(_) | Event::Accepted { .. } => continue,
            };
            if let Some(&stream) = self.by_slot.get(slot(id))
                && self.streams.get(stream as usize) == Some(&id)
            {
                return Some(make(StreamKey(stream)));
            }
        }
    }

    /// From a port that belongs to this core.
    pub fn connect(&mut self, now: Instant, remote: SocketAddr) -> Result<StreamKey, TransportError> {
        let id = self.open(now, remote)?;
        let stream = self.streams.len() as u32;
        self.streams.push(id);
        self.by_slot[slot(id)] = stream;
        Ok(StreamKey(stream))
    }

    /// Resets a stream and connects it again, from another port.
    pub fn reopen(&mut self, now: Instant, stream: StreamKey, remote: SocketAddr) -> Result<(), TransportError> {
        let before = self.id(stream).ok_or(TransportError::Closed)?;
        // Its `Closed` is no stream's event any more.
        self.tcp.abort(now, before);
        let id = self.open(now, remote)?;
        self.streams[stream.0 as usize] = id;
        self.by_slot[slot(id)] = stream.0;
        Ok(())
    }

    /// A connection, and a place for its number.
    fn open(&mut self, now: Instant, remote: SocketAddr) -> Result<ConnectionId, TransportError> {
        // Alone on the device, any port does: TCP chooses.
        let port = self.steering.as_mut().map_or(0, |steering| steering.port_for(self.address, remote));
        let local = SocketAddr::new(self.address, port);
        let id = self.tcp.connect(now, local, remote).map_err(|error| TransportError::Connect(remote, error.to_string()))?;
        if self.by_slot.len() <= slot(id) {
            self.by_slot.resize(slot(id) + 1, u32::MAX);
        }
        Ok(id)
    }

    fn id(&self, stream: StreamKey) -> Option<ConnectionId> {
        self.streams.get(stream.0 as usize).copied()
    }

    pub fn chain(&mut self, stream: StreamKey) -> Option<&mut RxChain> {
        let id = self.id(stream)?;
        self.tcp.receive(id)
    }

    pub fn received(&mut self, now: Instant, stream: StreamKey) {
        if let Some(id) = self.id(stream) {
            self.tcp.received(now, id);
        }
    }

    pub fn send(&mut self, now: Instant, stream: StreamKey, gather: &mut Vec<Slice>) -> Result<(), TransportError> {
        let id = self.id(stream).ok_or(TransportError::Closed)?;
        self.tcp.send(now, id, gather).map_err(|error| match error {
            SendError::Full => TransportError::Full,
            SendError::Closed => TransportError::Closed,
        })
    }

    pub fn close(&mut self, now: Instant, stream: StreamKey) {
        if let Some(id) = self.id(stream) {
            // No reply is waited for any more, as `shutdown` of both directions of a kernel socket says.
            self.tcp.close_both(now, id);
        }
    }

    /// Everything TCP and the interface have to send, then one burst.
    pub fn transmit(&mut self, now: Instant) -> usize {
        // What has waited for its neighbour's address goes before what TCP has made since.
        let mut sent = self.transmit_of_interface(now);
        while self.transmit_waits || self.tcp.poll_transmit(now, &self.limits, &mut self.transmit) {
            if !self.send_packet(now) {
                break;
            }
            sent += 1;
        }
        sent += self.transmit_of_interface(now);
        self.device.flush();
        self.counters.packets_out += sent as u64;
        sent
    }

    fn transmit_of_interface(&mut self, now: Instant) -> usize {
        if self.interface.has_transmit() { self.interface.poll_transmit(now, &mut self.device) } else { 0 }
    }

    /// Whether there is room for more.
    fn send_packet(&mut self, now: Instant) -> bool {
        self.transmit_waits = false;
        let Transmit { src, dst, ecn, tso_mss, may_fragment, payload_len, .. } = self.transmit;
        // The payload is the device's from here on.
        let (transport_header, payload) = self.transmit.parts();
        let packet = OutgoingPacket {
            src,
            dst,
            protocol: protocol::TCP,
            traffic_class: ecn,
            transport_header,
            payload: &[],
            tso_mss,
            may_fragment,
        };
        let mut result = self.interface.send_taking(now, &mut self.device, &packet, payload, payload_len as usize);
        if result == Err(SendRefused::Full) {
            self.device.flush();
            result = self.interface.send_taking(now, &mut self.device, &packet, payload, payload_len as usize);
        }
        match result {
            Ok(()) => true,
            Err(SendRefused::Full) => {
                self.counters.device_full += 1;
                self.transmit_waits = true;
                false
            }
            Err(_) => {
                self.counters.packets_undeliverable += 1;
                true
            }
        }
    }

    /// When something is due even if nothing arrives.
    pub fn poll_timeout(&self) -> Option<Instant> {
        [self.interface.poll_timeout(), self.tcp_timeout()].into_iter().flatten().min()
    }

    /// While the device has no room, strangers do not ask for turns that could answer nobody.
    fn tcp_timeout(&self) -> Option<Instant> {
        match self.transmit_waits {
            true => self.tcp.poll_connections_timeout(),
            false => self.tcp.poll_timeout(),
        }
    }

    pub fn retransmissions(&self) -> u64 {
        self.tcp.counters().retrans_segs
    }

    pub fn figures(&self, out: &mut Vec<Figure>) {
        append_figures(&self.counters, out);
        if let Some(steering) = &self.steering {
            append_figures(&steering.counters, out);
        }
        append_figures(self.tcp.counters(), out);
    }

    pub fn device_mut(&mut self) -> &mut D {
        &mut self.device
    }

    pub fn tcp(&self) -> &tcp::Endpoint {
        &self.tcp
    }
}

/// RFC 1122 section 4.2.3.9: which errors are hard.
fn icmp_meaning(kind: IcmpErrorKind) -> tcp::IcmpError {
    match kind {
        IcmpErrorKind::FragmentationNeeded { mtu } => tcp::IcmpError::PacketTooBig { mtu },
        IcmpErrorKind::Unreachable { code: unreachable::PROTOCOL | unreachable::PORT } => tcp::IcmpError::Unreachable,
        IcmpErrorKind::Unreachable { .. } | IcmpErrorKind::TimeExceeded | IcmpErrorKind::ParameterProblem => {
            tcp::IcmpError::Transient
        }
    }
}
