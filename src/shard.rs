//! One core's loop: frames in, answers out. The only room that wires the layers together, and the way of every request.
//!
//! A turn is run to completion: a burst of frames goes up through IP and TCP, the records in it are answered by the programs,
//! the replies go down again, and one burst leaves. What cannot be answered at once is parked in its program and comes back
//! through `poll_completions`. Nothing here waits, and the clock is handed in: the same shard runs on a DPDK port and on an
//! in-memory link with a virtual clock.
//!
//! Deliberately not here: what a frame, a segment, a record or a call means; sleeping when there is nothing to do (`serve`).

mod meter;
pub mod steering;

use std::net::{IpAddr, SocketAddr};

use crate::buf::{RxChain, Slice};
use crate::counters;
use crate::net::interface::IcmpErrorKind;
use crate::net::{Device, Ingress, Interface, OutgoingPacket, RxFrame, SendRefused, UdpDatagram};
use crate::rpc::{self, CloseReason, ConnectionKey, Destination, Programs};
use crate::tcp::{self, ConnectionId, Event, FourTuple, SendError, Transmit, TransmitLimits};
use crate::time::Instant;
use crate::wire::icmpv4::unreachable;
use crate::wire::protocol;
use crate::wire::tcp::SeqNumber;
use meter::{Meter, Stage};
use steering::{Steering, SteeringCounters, Taken};

pub use meter::{CycleCounter, CycleCounters};

/// Packets and TSO chains of TCP's in one turn, as many as a turn takes frames in. Where sending one is a system call, as on a TAP, a turn
/// without a bound would last until the device's queue has overflowed with what is to be received.
const PACKETS_PER_TURN: usize = 64;

/// Bursts of frames that the turn after one with so many packets takes in at most: it lasted long, and a queue that overflows drops calls
/// and acknowledgements as well as a flood's SYNs.
const BURSTS_AFTER_FULL_TURN: usize = 4;

/// One queue of one port, with the addresses behind it.
pub struct Lane<D> {
    pub device: D,
    pub interface: Interface,
}

counters! {
    /// What one core's loop counts.
    pub struct ShardCounters {
        /// Turns that found work.
        turns_busy,
        /// Turns that found none.
        turns_idle,
        /// Frames received.
        frames_in,
        /// Packets and TSO chains handed to an interface.
        packets_out,
        /// Packets that waited for a full device.
        device_full,
        /// Resets and answers to SYNs dropped because another packet waited for their device.
        device_full_drops,
        /// Packets dropped on their way out: no route, no neighbour, or a limit of the device (TCP sends them again).
        packets_undeliverable,
        /// Replies whose connection could not take them: the connection was reset.
        replies_refused,
        /// Datagrams for a port on which nothing listens.
        datagrams_unclaimed,
    }
}

/// Everything one core owns.
pub struct Shard<D, P> {
    lanes: Vec<Lane<D>>,
    tcp: tcp::Endpoint,
    rpc: rpc::Server,
    programs: P,
    /// UDP ports that are served; others are answered with an ICMP error.
    datagram_ports: Vec<u16>,
    limits: TransmitLimits,
    counters: ShardCounters,
    meter: Meter,
    /// Where there are other cores.
    steering: Option<Steering>,
    // Reused from turn to turn.
    frames: Vec<RxFrame>,
    gather: Vec<Slice>,
    datagram: RxChain,
    transmit: Transmit,
    /// By lane: the packet that its device had no room for.
    waiting: Vec<Option<Transmit>>,
    /// Lanes for which one waits.
    lanes_full: usize,
    /// Where the next one is put together when `transmit` waits.
    spare: Vec<Transmit>,
    /// The last turn sent as much as one may.
    was_full: bool,
}

/// The lane's device has no room for the packet at hand.
struct Full {
    lane: usize,
}

fn key_of(id: ConnectionId) -> ConnectionKey {
    ConnectionKey(id.to_bits())
}

fn id_of(key: ConnectionKey) -> ConnectionId {
    ConnectionId::from_bits(key.0)
}

/// The lane through which packets from an own address leave.
#[inline]
fn lane_of<D: Device>(lanes: &[Lane<D>], address: IpAddr) -> Option<usize> {
    lanes.iter().position(|lane| lane.interface.is_own(address))
}

/// What every lane can carry: TCP plans its packets before it is known through which they leave.
fn common_limits<D: Device>(lanes: &[Lane<D>]) -> TransmitLimits {
    let of_lane = |lane: &Lane<D>| {
        let device = lane.device.capabilities();
        TransmitLimits {
            mtu: lane.interface.mtu().min(device.mtu),
            tso_bytes_max: device.tso_bytes_max,
            tso_ipv6_bytes_max: if device.tso_ipv6 { device.tso_bytes_max } else { 0 },
            segments_per_packet_max: device.segments_per_packet_max,
            segments_tso_max: device.segments_tso_max,
        }
    };
    let narrower = |a: TransmitLimits, b: TransmitLimits| TransmitLimits {
        mtu: a.mtu.min(b.mtu),
        tso_bytes_max: a.tso_bytes_max.min(b.tso_bytes_max),
        tso_ipv6_bytes_max: a.tso_ipv6_bytes_max.min(b.tso_ipv6_bytes_max),
        segments_per_packet_max: a.segments_per_packet_max.min(b.segments_per_packet_max),
        segments_tso_max: a.segments_tso_max.min(b.segments_tso_max),
    };
    lanes.iter().map(of_lane).reduce(narrower).unwrap_or_default()
}

impl<D: Device, P: Programs> Shard<D, P> {
    pub fn new(lanes: Vec<Lane<D>>, tcp: tcp::Endpoint, rpc: rpc::Server, programs: P, datagram_ports: Vec<u16>) -> Shard<D, P> {
        let limits = common_limits(&lanes);
        Shard {
            waiting: lanes.iter().map(|_| None).collect(),
            lanes_full: 0,
            spare: lanes.iter().map(|_| Transmit::default()).collect(),
            lanes,
            tcp,
            rpc,
            programs,
            datagram_ports,
            limits,
            counters: ShardCounters::default(),
            meter: Meter::new(|| 0),
            steering: None,
            frames: Vec::new(),
            gather: Vec::new(),
            datagram: RxChain::new(),
            transmit: Transmit::default(),
            was_full: false,
        }
    }

    /// One turn of the loop. Returns how many things it found to do: 0 means that nothing will happen before
    /// `poll_timeout`, a frame, or a completion.
    pub fn turn(&mut self, now: Instant) -> usize {
        self.meter.begin();
        let received = self.receive(now) + self.expire(now);
        self.meter.lap(Stage::Receive, received);
        let served = self.serve(now);
        self.meter.lap(Stage::Serve, served);
        let sent = self.send(now);
        self.meter.lap(Stage::Transmit, sent);
        let flushed = self.flush();
        self.meter.lap(Stage::Flush, flushed);
        let work = received + served + sent + flushed;
        self.meter.end(work);
        match work {
            0 => self.counters.turns_idle += 1,
            _ => self.counters.turns_busy += 1,
        }
        work
    }

    /// When `turn` must be called even if nothing arrives.
    pub fn poll_timeout(&self) -> Option<Instant> {
        let interfaces = self.lanes.iter().filter_map(|lane| lane.interface.poll_timeout());
        interfaces.chain(self.tcp_timeout()).chain(self.rpc.poll_timeout()).min()
    }

    /// Where no device has room, strangers do not ask for turns that could answer nobody.
    fn tcp_timeout(&self) -> Option<Instant> {
        match self.lanes_full == self.lanes.len() {
            true => self.tcp.poll_connections_timeout(),
            false => self.tcp.poll_timeout(),
        }
    }

    // ---- Up: frames to layers ----

    fn receive(&mut self, now: Instant) -> usize {
        let taken = if self.steering.is_some() { self.follow() + self.take_handed(now) + self.lead() } else { 0 };
        let mut received = 0;
        let mut frames = std::mem::take(&mut self.frames);
        for at in 0..self.lanes.len() {
            received += self.receive_from(at, &mut frames);
            for frame in &mut frames {
                if let Some(steering) = &mut self.steering {
                    steering.copy_to_others(at, frame);
                }
                let tcp = &mut self.tcp;
                let ingress = self.lanes[at].interface.handle_frame_in_place(now, frame, |segment| {
                    tcp.continue_train(now, (segment.src, segment.dst), segment.buf, segment.range, segment.checksum)
                });
                let Some(ingress) = ingress else { continue };
                let kept = match &mut self.steering {
                    Some(steering) => steering.keep(at, ingress),
                    None => Some(ingress),
                };
                if let Some(ingress) = kept {
                    self.handle_ingress(now, at, ingress);
                }
            }
            frames.clear();
        }
        self.frames = frames;
        self.counters.frames_in += received as u64;
        if let Some(steering) = &mut self.steering {
            steering.wake_others();
        }
        taken + received
    }

    /// Frames of one lane: a burst, or more after a turn that was full.
    fn receive_from(&mut self, lane: usize, frames: &mut Vec<RxFrame>) -> usize {
        let device = &mut self.lanes[lane].device;
        let mut received = device.receive(frames);
        for _ in 1..if self.was_full { BURSTS_AFTER_FULL_TURN } else { 1 } {
            match device.receive(frames) {
                0 => break,
                more => received += more,
            }
        }
        received
    }

    /// What other cores have received for this one.
    fn take_handed(&mut self, now: Instant) -> usize {
        let waiting = self.steering.as_ref().map_or(0, Steering::waiting);
        for _ in 0..waiting {
            match self.steering.as_mut().and_then(Steering::take) {
                // Only datagrams, which are never handed over, are answered through the lane they came by.
                Some(Taken::Ingress(ingress)) => self.handle_ingress(now, 0, ingress),
                Some(Taken::Neighbour { port, frame }) => {
                    let lane = self.steering.as_ref().and_then(|steering| steering.lane_of(port));
                    if let Some(lane) = lane.and_then(|lane| self.lanes.get_mut(lane)) {
                        lane.interface.handle_copy(now, frame);
                    }
                }
                None => break,
            }
        }
        waiting
    }

    /// Takes over what the core that leads a port has found out.
    fn follow(&mut self) -> usize {
        let mut followed = 0;
        while let Some((lane, lead)) = self.steering.as_mut().and_then(Steering::poll_lead) {
            if let Some(lane) = self.lanes.get_mut(lane) {
                lane.interface.follow(&lead);
            }
            followed += 1;
        }
        followed
    }

    /// Tells the cores that follow this one on a port what its interface has found out by the last turn, after which there is another:
    /// whatever brought it was work.
    fn lead(&mut self) -> usize {
        let Some(steering) = &mut self.steering else { return 0 };
        let mut told = 0;
        for (at, lane) in self.lanes.iter_mut().enumerate() {
            if let Some(lead) = lane.interface.poll_lead() {
                steering.tell_followers(at, &lead);
                told += 1;
            }
        }
        told
    }

    fn handle_ingress(&mut self, now: Instant, lane: usize, ingress: Ingress) {
        match ingress {
            Ingress::Tcp { src, dst, packet, checksum, ecn } => {
                self.tcp.handle_marked_segment(now, src, dst, packet, checksum, ecn);
            }
            Ingress::Udp(datagram) => self.handle_datagram(now, lane, datagram),
            Ingress::IcmpError(error) if error.protocol == protocol::TCP => {
                let tuple = FourTuple {
                    local_ip: error.local.ip(),
                    remote_ip: error.remote.ip(),
                    local_port: error.local.port(),
                    remote_port: error.remote.port(),
                };
                self.tcp.handle_icmp(now, &tuple, SeqNumber(error.tcp_sequence), icmp_meaning(error.kind));
            }
            Ingress::IcmpError(_) | Ingress::Consumed => {}
        }
    }

    fn handle_datagram(&mut self, now: Instant, lane: usize, datagram: UdpDatagram) {
        if !self.datagram_ports.contains(&datagram.dst.port()) {
            self.counters.datagrams_unclaimed += 1;
            self.lanes[lane].interface.udp_unreachable(now, datagram);
            return;
        }
        let (from, to) = (datagram.src, datagram.dst);
        for buf in datagram.packet.into_bufs() {
            self.datagram.push(buf);
        }
        if let Some(view) = self.datagram.view(0, self.datagram.len()) {
            self.rpc.handle_datagram(now, from, to, view, &mut self.programs);
        }
        self.datagram.clear();
    }

    fn expire(&mut self, now: Instant) -> usize {
        let due = |at: Option<Instant>| at.is_some_and(|at| at <= now);
        let mut expired = 0;
        for lane in &mut self.lanes {
            if due(lane.interface.poll_timeout()) {
                lane.interface.handle_timeout(now);
                expired += 1;
            }
        }
        if due(self.tcp_timeout()) {
            self.tcp.handle_timeout(now);
            expired += 1;
        }
        if due(self.rpc.poll_timeout()) {
            self.rpc.note_pages_refused(self.programs.pages_refused());
            self.rpc.handle_timeout(now);
            if self.rpc.needs_relief() {
                let tcp = &self.tcp;
                self.rpc.relieve(now, |key| tcp.queued(id_of(key)) as u64);
            }
            expired += 1;
        }
        expired
    }

    // ---- Across: TCP to RPC and back ----

    fn serve(&mut self, now: Instant) -> usize {
        let mut work = 0;
        while let Some(event) = self.tcp.poll_event() {
            self.handle_event(now, event);
            work += 1;
        }
        work += self.rpc.poll_completions(now, &mut self.programs);
        let tcp = &self.tcp;
        self.rpc.refresh_backlogs(now, |key| tcp.queued(id_of(key)) as u64);
        // Connections that may be read again; each at most once a turn, so that none keeps the others waiting.
        for _ in 0..self.rpc.resumable_len() {
            let Some(key) = self.rpc.poll_resumable() else { break };
            self.read_records(now, id_of(key));
            work += 1;
        }
        work += self.queue_replies(now);
        while let Some((key, reason)) = self.rpc.poll_close() {
            self.close(now, id_of(key), reason);
            work += 1;
        }
        work
    }

    fn handle_event(&mut self, now: Instant, event: Event) {
        match event {
            Event::Accepted { id, remote, .. } => self.accept(now, id, remote),
            Event::Readable(id) => self.read_records(now, id),
            Event::PeerClosed(id) => {
                if let Some(chain) = self.tcp.receive(id) {
                    self.rpc.handle_end(now, key_of(id), chain, &mut self.programs);
                }
                self.tcp.received(now, id);
            }
            Event::Writable(id) => self.rpc.set_backlog(now, key_of(id), self.tcp.queued(id) as u64),
            Event::Closed(id, _) => self.rpc.closed(key_of(id)),
            // A server that opens no connection has nothing to hear here.
            Event::Connected(_) => {}
        }
    }

    fn accept(&mut self, now: Instant, id: ConnectionId, remote: SocketAddr) {
        // Gone again already: its `Closed` follows.
        let Some(info) = self.tcp.info(id) else { return };
        if self.rpc.accept(now, key_of(id), remote, info.local).is_err() {
            self.tcp.abort(now, id);
        }
    }

    /// Hands what TCP has received in order to the RPC server, which takes whole records from its front.
    fn read_records(&mut self, now: Instant, id: ConnectionId) {
        self.rpc.set_backlog(now, key_of(id), self.tcp.queued(id) as u64);
        if let Some(chain) = self.tcp.receive(id) {
            self.rpc.handle_stream(now, key_of(id), chain, &mut self.programs);
        }
        self.tcp.received(now, id);
    }

    /// Moves replies into the send queues: each a whole record or not at all.
    fn queue_replies(&mut self, now: Instant) -> usize {
        let mut replies = 0;
        while let Some(destination) = self.rpc.poll_reply(&mut self.gather) {
            replies += 1;
            match destination {
                Destination::Stream(key) => self.queue_reply(now, id_of(key)),
                Destination::Datagram { to, from } => self.send_datagram(now, to, from),
            }
            self.gather.clear();
        }
        replies
    }

    fn queue_reply(&mut self, now: Instant, id: ConnectionId) {
        match self.tcp.send(now, id, &mut self.gather) {
            Ok(()) => {}
            // Closed on our side already: nobody waits for the reply.
            Err(SendError::Closed) => {}
            // The RPC server keeps within less than the queue holds, so this is not expected; a reply that is lost while its
            // connection lives would leave the client waiting for ever.
            Err(SendError::Full) => {
                self.counters.replies_refused += 1;
                self.tcp.abort(now, id);
            }
        }
    }

    fn close(&mut self, now: Instant, id: ConnectionId, reason: CloseReason) {
        if reason.is_graceful() {
            self.tcp.close_both(now, id);
        } else {
            self.tcp.abort(now, id);
        }
    }

    // ---- Down: packets to devices ----

    fn send_datagram(&mut self, now: Instant, to: SocketAddr, from: SocketAddr) {
        let Some(at) = lane_of(&self.lanes, from.ip()) else {
            self.counters.packets_undeliverable += 1;
            return;
        };
        let Lane { device, interface } = &mut self.lanes[at];
        if interface.send_udp(now, device, from, to, &self.gather).is_err() {
            // UDP is unreliable: the client asks again.
            self.counters.packets_undeliverable += 1;
        }
    }

    /// Queues with the devices what TCP and the interfaces have to send; of TCP's at most `PACKETS_PER_TURN`, the rest in the next turn.
    fn send(&mut self, now: Instant) -> usize {
        // What has waited for its neighbour's address goes before what TCP has made since: behind it, it would look reordered.
        let waited = self.send_of_interfaces(now);
        let mut sent = if self.lanes_full > 0 { self.send_waiting(now) } else { 0 };
        while sent < PACKETS_PER_TURN && self.poll_tcp(now) {
            match self.send_segment(now) {
                Ok(()) => sent += 1,
                Err(Full { lane }) => {
                    self.counters.device_full += 1;
                    self.let_wait(lane);
                    self.hold_full_lanes();
                }
            }
        }
        sent += self.send_of_interfaces(now);
        self.was_full = sent >= PACKETS_PER_TURN;
        sent += waited;
        self.counters.packets_out += sent as u64;
        sent
    }

    /// The next packet of TCP's for a device that has room.
    #[inline]
    fn poll_tcp(&mut self, now: Instant) -> bool {
        match self.lanes_full {
            0 => self.tcp.poll_transmit(now, &self.limits, &mut self.transmit),
            _ => self.poll_tcp_for_others(now),
        }
    }

    /// A port whose device is slow, or takes nothing because its cable is pulled, does not keep the others' clients waiting: its connections
    /// are passed over until its packet has left.
    #[cold]
    fn poll_tcp_for_others(&mut self, now: Instant) -> bool {
        if self.lanes_full == self.lanes.len() {
            return false;
        }
        while self.tcp.poll_transmit(now, &self.limits, &mut self.transmit) {
            let lane = lane_of(&self.lanes, self.transmit.src);
            if lane.is_none_or(|lane| self.waiting[lane].is_none()) {
                return true;
            }
            // Of no connection that `hold` could have passed over: who it is for asks again.
            self.counters.device_full_drops += 1;
        }
        false
    }

    /// Passes over the connections of full lanes, if there are others.
    #[cold]
    fn hold_full_lanes(&mut self) {
        if self.lanes_full < self.lanes.len() {
            let Shard { lanes, waiting, tcp, .. } = self;
            tcp.hold(|address| lane_of(lanes, address).is_some_and(|lane| waiting[lane].is_some()));
        }
    }

    /// Tries again to send what has waited; how many went.
    #[cold]
    fn send_waiting(&mut self, now: Instant) -> usize {
        let mut sent = 0;
        for lane in 0..self.waiting.len() {
            let Some(waiting) = self.waiting[lane].take() else { continue };
            self.lanes_full -= 1;
            let mut spare = std::mem::replace(&mut self.transmit, waiting);
            spare.clear();
            self.spare.push(spare);
            match self.send_segment(now) {
                Ok(()) => sent += 1,
                Err(Full { lane }) => self.let_wait(lane),
            }
        }
        if sent > 0 {
            self.tcp.resume_held();
        }
        if self.lanes_full > 0 {
            self.hold_full_lanes();
        }
        sent
    }

    /// `transmit` waits until the lane's device has room.
    #[cold]
    fn let_wait(&mut self, lane: usize) {
        let next = self.spare.pop().unwrap_or_default();
        let waiting = std::mem::replace(&mut self.transmit, next);
        // One that was there has lost its place: an address has moved from one lane to another in between.
        match self.waiting[lane].replace(waiting) {
            Some(_) => self.counters.packets_undeliverable += 1,
            None => self.lanes_full += 1,
        }
    }

    fn send_of_interfaces(&mut self, now: Instant) -> usize {
        let lanes = self.lanes.iter_mut().filter(|lane| lane.interface.has_transmit());
        lanes.map(|lane| lane.interface.poll_transmit(now, &mut lane.device)).sum()
    }

    /// One burst for each device; how many frames went, among them those that an earlier burst had no room for.
    fn flush(&mut self) -> usize {
        self.lanes.iter_mut().map(|lane| lane.device.flush()).sum()
    }

    /// Sends `transmit`, which stays there if the device has no room for it.
    fn send_segment(&mut self, now: Instant) -> Result<(), Full> {
        let Some(at) = lane_of(&self.lanes, self.transmit.src) else {
            self.counters.packets_undeliverable += 1;
            return Ok(());
        };
        let Lane { device, interface } = &mut self.lanes[at];
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
        let mut result = interface.send_taking(now, device, &packet, payload, payload_len as usize);
        if result == Err(SendRefused::Full) {
            device.flush();
            result = interface.send_taking(now, device, &packet, payload, payload_len as usize);
        }
        match result {
            Ok(()) => {}
            Err(SendRefused::Full) => return Err(Full { lane: at }),
            Err(SendRefused::BeyondLinkMtu { mtu }) => self.narrow(now, mtu),
            Err(_) => self.counters.packets_undeliverable += 1,
        }
        Ok(())
    }

    /// TCP plans with what the ports carry. That a router has told less (RFC 4861 section 6.3.4) it hears at the first packet that is
    /// longer, as if a router behind the link had told it (RFC 8201 section 4): of its connection, which sends the text again.
    fn narrow(&mut self, now: Instant, mtu: u16) {
        let Transmit { src, dst, header, .. } = &self.transmit;
        let [a, b, c, d, e, f, g, h, ..] = *header;
        let tuple = FourTuple {
            local_ip: *src,
            remote_ip: *dst,
            local_port: u16::from_be_bytes([a, b]),
            remote_port: u16::from_be_bytes([c, d]),
        };
        let seq = SeqNumber(u32::from_be_bytes([e, f, g, h]));
        self.tcp.handle_icmp(now, &tuple, seq, tcp::IcmpError::PacketTooBig { mtu });
    }

    // ---- The end, and looking in ----

    /// Takes no new connection, call or datagram; what was taken is still answered.
    pub fn drain(&mut self) {
        self.rpc.drain();
    }

    /// Whether every call is answered and every answer acknowledged.
    pub fn is_drained(&self) -> bool {
        self.rpc.is_drained() && self.tcp.connections().all(|id| self.tcp.queued(id) == 0)
    }

    /// Resets every connection that is left: the turns that follow send the resets.
    pub fn abort_all(&mut self, now: Instant) {
        let ids: Vec<ConnectionId> = self.tcp.connections().collect();
        for id in ids {
            self.tcp.abort(now, id);
        }
    }

    /// Whether a packet waits for a turn, or for its device.
    pub fn has_transmit(&self) -> bool {
        self.waits_for_device() || self.tcp.has_transmit()
    }

    /// Whether a packet waits for room on its device.
    pub fn waits_for_device(&self) -> bool {
        self.lanes_full > 0
    }

    pub fn lanes(&self) -> &[Lane<D>] {
        &self.lanes
    }

    pub fn lanes_mut(&mut self) -> &mut [Lane<D>] {
        &mut self.lanes
    }

    pub fn tcp(&self) -> &tcp::Endpoint {
        &self.tcp
    }

    pub fn rpc(&self) -> &rpc::Server {
        &self.rpc
    }

    pub fn programs(&self) -> &P {
        &self.programs
    }

    pub fn programs_mut(&mut self) -> &mut P {
        &mut self.programs
    }

    pub fn counters(&self) -> &ShardCounters {
        &self.counters
    }

    /// What the core's cycles are counted with; nothing until then.
    pub fn set_cycle_counter(&mut self, read: CycleCounter) {
        self.meter = Meter::new(read);
    }

    /// Where the core's cycles went.
    pub fn cycles(&self) -> CycleCounters {
        self.meter.counters()
    }

    /// From now on frames are shared out with other cores. Its lanes are this shard's, in the same order.
    pub fn set_steering(&mut self, steering: Steering) {
        self.steering = Some(steering);
    }

    /// What was shared out; all 0 without other cores.
    pub fn steering_counters(&self) -> SteeringCounters {
        self.steering.as_ref().map(|steering| *steering.counters()).unwrap_or_default()
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::interface::IcmpErrorKind::{FragmentationNeeded, ParameterProblem, TimeExceeded, Unreachable};
    use crate::tcp::IcmpError::{self, PacketTooBig, Transient};

    /// RFC 1122 section 4.2.3.9, RFC 9293 section 3.9.2.2: of "unreachable" protocol and port are hard, 4 is about the path MTU, all else is soft
    /// (MUST-56).
    #[test]
    fn protocol_and_port_unreachable_are_hard_errors_and_no_others() {
        for code in 0..=15 {
            let meant = if matches!(code, 2 | 3) { IcmpError::Unreachable } else { Transient };
            assert_eq!(icmp_meaning(Unreachable { code }), meant, "code {code}");
        }
        assert_eq!([TimeExceeded, ParameterProblem].map(icmp_meaning), [Transient, Transient]);
        assert_eq!(icmp_meaning(FragmentationNeeded { mtu: 1400 }), PacketTooBig { mtu: 1400 });
    }
}
