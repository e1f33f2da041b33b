//! A cell with our two endpoints, on a virtual clock: one sender that never runs dry, one receiver that reads at once.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use nfsplice::buf::{Checksum, PagePool, RxPacket, Slice};
use nfsplice::net::memory_link::{EndOptions, MemoryEnd, MemoryLink};
use nfsplice::tcp::{ConnectionId, Endpoint, Event, Options, TcpCounters, Transmit, TransmitLimits};
use nfsplice::time::{Duration, Instant};

use crate::cell::{Cell, MTU};
use crate::results::Run;

const PORT: u16 = 2049;
/// Of an IPv4 header, which nobody reads here: only its length counts.
const IP_HEADER_LEN: usize = 20;
const LIST_BYTES: usize = 64 << 10;
/// Buffers as large as the kernel's of the other half.
const BUFFERS_BYTES: u32 = 32 << 20;

fn options(cell: &Cell) -> Options {
    Options {
        congestion: cell.control.ours(),
        receive_window_max: BUFFERS_BYTES,
        receive_buffers_max: BUFFERS_BYTES as usize / 1024,
        driver_buffers_max: BUFFERS_BYTES as usize / 1024,
        send_queue_bytes_max: BUFFERS_BYTES as usize,
        ..Options::default()
    }
}

struct Side {
    ip: IpAddr,
    endpoint: Endpoint,
    end: MemoryEnd,
}

struct Simulation {
    now: Instant,
    link: MemoryLink,
    sides: [Side; 2],
    list: Vec<Slice>,
    sender: Option<ConnectionId>,
    delivered: u64,
    transmit: Transmit,
}

/// `trace` prints the sender's state so often.
pub fn run(cell: &Cell, seed: u64, trace: Option<Duration>) -> Run {
    let ends = [EndOptions::plain([2, 0, 0, 0, 0, 1], MTU), EndOptions::plain([2, 0, 0, 0, 0, 2], MTU)];
    let (link, a, b) = MemoryLink::new(seed, cell.impairments(), ends);
    let side = |end, key: u8| Side {
        ip: IpAddr::V4(Ipv4Addr::new(10, 0, 0, key)),
        endpoint: Endpoint::new(options(cell), [key; 16]),
        end,
    };
    let pool = PagePool::anonymous(2, LIST_BYTES).expect("memory");
    let list = vec![pool.allocate().expect("a page").freeze()];
    let sides = [side(a, 1), side(b, 2)];
    let mut simulation =
        Simulation { now: Instant::from_millis(1), link, sides, list, sender: None, delivered: 0, transmit: Transmit::default() };
    simulation.go(cell, seed, trace)
}

impl Simulation {
    fn go(&mut self, cell: &Cell, seed: u64, trace: Option<Duration>) -> Run {
        let began = self.now;
        let end = began + Duration::from_secs(cell.seconds());
        let (local, remote) = (SocketAddr::new(self.sides[0].ip, 0), SocketAddr::new(self.sides[1].ip, PORT));
        self.link.set_now(began);
        self.sides[1].endpoint.listen(PORT).expect("a free port");
        let id = self.sides[0].endpoint.connect(began, local, remote).expect("to connect");
        self.sender = Some(id);
        self.fill();
        let mut traced = began;
        loop {
            self.act();
            self.flush();
            let timers = self.sides.iter().filter_map(|side| side.endpoint.poll_timeout());
            let Some(next) = timers.chain(self.link.poll_timeout()).min() else { break };
            if next > end {
                break;
            }
            self.now = self.now.max(next);
            if let Some(every) = trace
                && self.now >= traced + every
            {
                traced = self.now;
                self.print(id);
            }
            self.link.set_now(self.now);
            self.deliver();
            self.sides.iter_mut().for_each(|side| side.endpoint.handle_timeout(self.now));
        }
        let counters = *self.sides[0].endpoint.counters();
        Run {
            seed,
            mbit_per_second: self.delivered as f64 * 8.0 / cell.seconds() as f64 / 1e6,
            stands_for: 1,
            retransmitted: counters.retrans_segs,
            notes: notes(&counters, self.sides[1].endpoint.counters(), &self.link),
            carrier: None,
        }
    }

    fn fill(&mut self) {
        let Some(id) = self.sender else { return };
        loop {
            let mut list = self.list.clone();
            if self.sides[0].endpoint.send(self.now, id, &mut list).is_err() {
                return;
            }
        }
    }

    /// What the two applications do.
    fn act(&mut self) {
        for side in 0..2 {
            while let Some(event) = self.sides[side].endpoint.poll_event() {
                match event {
                    Event::Writable(_) | Event::Connected(_) => self.fill(),
                    Event::Readable(id) => {
                        let endpoint = &mut self.sides[side].endpoint;
                        let Some(chain) = endpoint.receive(id) else { continue };
                        self.delivered += chain.len() as u64;
                        chain.consume(usize::MAX);
                        endpoint.received(self.now, id);
                    }
                    Event::Closed(_, reason) => panic!("a connection ended: {reason:?} at {:?}", self.now),
                    Event::Accepted { .. } | Event::PeerClosed(_) => {}
                }
            }
        }
    }

    fn flush(&mut self) {
        let limits = TransmitLimits { mtu: MTU, ..TransmitLimits::default() };
        for side in &mut self.sides {
            while side.endpoint.poll_transmit(self.now, &limits, &mut self.transmit) {
                let mut frame = vec![0; IP_HEADER_LEN];
                frame.reserve_exact(usize::from(MTU));
                frame.extend_from_slice(self.transmit.header());
                self.transmit.payload.iter().for_each(|slice| frame.extend_from_slice(slice));
                side.end.inject(frame);
            }
        }
    }

    fn deliver(&mut self) {
        for to in 0..2 {
            let (src, dst) = (self.sides[1 - to].ip, self.sides[to].ip);
            while let Some(frame) = self.sides[to].end.take_frame() {
                let mut packet = RxPacket::from_vec(frame);
                packet.advance(IP_HEADER_LEN);
                self.sides[to].endpoint.handle_segment(self.now, src, dst, packet, Checksum::Good);
            }
        }
    }

    fn print(&self, id: ConnectionId) {
        let Some(info) = self.sides[0].endpoint.info(id) else { return };
        let mss = u64::from(info.mss);
        println!(
            "{:>9.4} s cwnd {:>5} ssthresh {:>5} flight {:>5} lost {:>4} sacked {:>5} window {:>6} srtt {:?} rto {:?} min {:?} delivered {} {}",
            self.now.nanos() as f64 / 1e9,
            info.congestion_window / mss,
            if info.slow_start_threshold == u64::MAX { 0 } else { info.slow_start_threshold / mss },
            info.in_flight_bytes / mss,
            info.lost_bytes / mss,
            info.sacked_bytes / mss,
            info.send_window / mss,
            info.smoothed_rtt.unwrap_or_default(),
            info.rto,
            info.min_rtt.unwrap_or_default(),
            self.delivered,
            notes(self.sides[0].endpoint.counters(), self.sides[1].endpoint.counters(), &self.link),
        );
    }
}

fn notes(sender: &TcpCounters, receiver: &TcpCounters, link: &MemoryLink) -> String {
    let wire = link.counters(0);
    format!(
        "rto {} recoveries {} probes {} (repaired {}) spurious {} dsack-undone {} resent {} of {}; lost {} queue-dropped {} reordered {}; receiver: ofo-refused {} dsacks {} acks {} paws-rejected {}",
        sender.rto_timeouts,
        sender.sack_recoveries,
        sender.loss_probes,
        sender.loss_probe_recoveries,
        sender.spurious_repairs,
        sender.dsack_undos,
        sender.retrans_segs,
        sender.out_segs,
        wire.lost,
        wire.queue_dropped,
        wire.reordered,
        receiver.ofo_drops,
        receiver.dsack_sent,
        receiver.out_segs,
        receiver.paws_estab_rejected,
    )
}
