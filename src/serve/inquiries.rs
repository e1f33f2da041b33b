//! What a core answers while it runs: its connections piece by piece, and copies of a port's frames.

use std::sync::atomic::Ordering;

use crossbeam::channel::{Receiver, Sender, TrySendError};

use super::clock::Clock;
use super::core::ServingShard;
use crate::control::connections::Connection;
use crate::control::inquiry::{Capture, CapturedFrame, Inquiry};
use crate::net::capture::{Captured, Direction, Sink};
use crate::shard::Lane;
use crate::tcp::{State, TcpInfo};
use crate::time::Instant;

/// Places of the connection table looked at between two turns of the loop: some microseconds.
const PLACES_PER_TURN_MAX: usize = 64;

/// One core's mailbox and what it is about to answer.
pub struct Inquiries {
    core: usize,
    mailbox: Receiver<Inquiry>,
    listing: Option<Listing>,
    captures: Vec<Capture>,
}

/// A listing under way.
struct Listing {
    place: usize,
    to: Sender<Vec<Connection>>,
    /// A piece for which the channel had no room.
    piece: Option<Vec<Connection>>,
}

impl Inquiries {
    pub fn new(core: usize, mailbox: Receiver<Inquiry>) -> Inquiries {
        Inquiries { core, mailbox, listing: None, captures: Vec::new() }
    }

    /// Looks into the mailbox; ten times a second. `lane_of_port`: the core's lane of each port.
    pub fn look<D>(&mut self, lanes: &mut [Lane<Captured<D>>], lane_of_port: &[Option<usize>]) {
        while let Ok(inquiry) = self.mailbox.try_recv() {
            match inquiry {
                Inquiry::Connections(to) => self.listing = Some(Listing { place: 0, to, piece: None }),
                Inquiry::Capture(capture) => {
                    let lane = lane_of_port.get(capture.port).copied().flatten();
                    if let Some(lane) = lane.and_then(|lane| lanes.get_mut(lane)) {
                        let core = self.core;
                        // The end of an earlier one, which was not seen yet, would end this one.
                        self.captures.retain(|earlier| earlier.port != capture.port);
                        lane.device.set_sink(Some(Box::new(Tap { core, capture: capture.clone() })));
                        self.captures.push(capture);
                    }
                }
            }
        }
        self.captures.retain(|capture| {
            let over = capture.over.load(Ordering::Relaxed);
            let lane = lane_of_port.get(capture.port).copied().flatten();
            if let Some(lane) = lane.filter(|_| over).and_then(|lane| lanes.get_mut(lane)) {
                lane.device.set_sink(None);
            }
            !over
        });
    }

    /// Whether `step` has something to do.
    pub fn is_listing(&self) -> bool {
        self.listing.is_some()
    }

    /// Tells the next piece; between two turns of the loop.
    pub fn step(&mut self, shard: &ServingShard, now: Instant) {
        let Some(listing) = &mut self.listing else { return };
        let piece = match listing.piece.take() {
            Some(piece) => piece,
            None => {
                let mut piece = Vec::with_capacity(PLACES_PER_TURN_MAX);
                let next =
                    shard.tcp().visit_from(listing.place, PLACES_PER_TURN_MAX, |info| piece.push(row_of(&info, self.core, now)));
                // Behind the last place nothing is found, which ends the listing once this piece is sent.
                listing.place = next.unwrap_or(usize::MAX);
                piece
            }
        };
        match listing.to.try_send(piece) {
            Ok(()) if listing.place == usize::MAX => self.listing = None,
            Ok(()) => {}
            Err(TrySendError::Full(piece)) => listing.piece = Some(piece),
            // Whoever asked has gone.
            Err(TrySendError::Disconnected(_)) => self.listing = None,
        }
    }
}

fn row_of(info: &TcpInfo, core: usize, now: Instant) -> Connection {
    let micros = |duration: std::time::Duration| u64::try_from(duration.as_micros()).unwrap_or(u64::MAX);
    let mss = u64::from(info.mss.max(1));
    let segments = |bytes: u64| bytes.div_ceil(mss);
    let mut options = Vec::new();
    options.extend(info.timestamps.then(|| "ts".to_owned()));
    options.extend(info.sack.then(|| "sack".to_owned()));
    options.extend(info.ecn.then(|| "ecn".to_owned()));
    options.extend(info.window_scale.map(|(theirs, ours)| format!("wscale:{theirs},{ours}")));
    Connection {
        state: state_name(info.state).to_owned(),
        recv_q: info.unread_bytes as u64,
        send_q: info.queued_bytes as u64,
        local: info.local.to_string(),
        peer: info.remote.to_string(),
        core,
        options: options.join(" "),
        cwnd: segments(info.congestion_window),
        ssthresh: (info.slow_start_threshold < u64::MAX).then(|| segments(info.slow_start_threshold)),
        rtt_us: info.smoothed_rtt.map(micros),
        rttvar_us: micros(info.rtt_variance),
        minrtt_us: info.min_rtt.map(micros),
        rto_us: micros(info.rto),
        backoff: info.backoff,
        timer: info.timer.map(|(name, _)| name.to_owned()),
        timer_us: info.timer.map(|(_, at)| micros(at.since(now))),
        congestion: info.congestion_control.to_owned(),
        lastsnd_us: micros(now.since(info.last_sent_at)),
        lastrcv_us: micros(now.since(info.last_received_at)),
        lastack_us: micros(now.since(info.last_heard_at)),
        reordering: info.reordering_seen,
        mss: info.mss.into(),
        rcvmss: info.peer_mss.into(),
        advmss: info.announced_mss.into(),
        pmtu: info.path_mtu.map(u32::from),
        retrans: info.retransmitted_segments,
        retrans_in_flight: segments(info.retransmitted_in_flight),
        unacked: segments(info.outstanding_bytes),
        sacked: segments(info.sacked_bytes),
        lost: segments(info.lost_bytes),
        delivered: segments(info.bytes_acknowledged + info.sacked_bytes),
        bytes_sent: info.bytes_sent,
        bytes_retrans: info.retransmitted_bytes,
        bytes_acked: info.bytes_acknowledged,
        bytes_received: info.bytes_received,
        segs_out: info.segments_out,
        segs_in: info.segments_in,
        data_segs_out: info.text_segments_out,
        data_segs_in: info.text_segments_in,
        send_rate: info.smoothed_rtt.map(|rtt| info.congestion_window.saturating_mul(8_000_000) / micros(rtt).max(1)),
        snd_wnd: info.send_window,
        rcv_wnd: info.receive_window,
        rcv_ooo: info.out_of_order_bytes as u64,
        pacing_rate: info.pacing_rate.map(|bytes| bytes.saturating_mul(8)),
    }
}

fn state_name(state: State) -> &'static str {
    match state {
        State::SynSent => "SYN-SENT",
        State::SynReceived => "SYN-RECV",
        State::Established => "ESTAB",
        State::FinWait1 => "FIN-WAIT-1",
        State::FinWait2 => "FIN-WAIT-2",
        State::CloseWait => "CLOSE-WAIT",
        State::Closing => "CLOSING",
        State::LastAck => "LAST-ACK",
        State::TimeWait => "TIME-WAIT",
        State::Closed => "UNCONN",
    }
}

/// Where a device copies its frames to.
struct Tap {
    core: usize,
    capture: Capture,
}

impl Sink for Tap {
    fn bytes_max(&self) -> usize {
        self.capture.snaplen
    }

    fn wants(&self, headers: &[u8]) -> bool {
        let of_port = self.capture.transport_port.is_none_or(|port| crate::net::capture::has_port(headers, port));
        of_port && !self.capture.frames.turns_away()
    }

    fn take(&mut self, direction: Direction, original_len: usize, bytes: Vec<u8>) {
        let wall = Clock::wall();
        let frame = CapturedFrame {
            at_ns: (wall.seconds as u64) * 1_000_000_000 + u64::from(wall.nanoseconds),
            outgoing: direction == Direction::Out,
            core: self.core,
            original_len: original_len as u32,
            bytes,
        };
        self.capture.frames.push(frame);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::buf::{FragmentArena, PagePool};
    use crate::control::inquiry::{CapturedFrames, Inquiries as Asking};
    use crate::net::memory_link::{EndOptions, Impairments, MemoryLink};
    use crate::net::{Device, Interface, InterfaceOptions, TxOffload};
    use std::sync::Arc;

    fn capture() -> Capture {
        Capture {
            port: 0,
            snaplen: 128,
            transport_port: None,
            frames: Arc::new(CapturedFrames::new(4, 4096)),
            over: Arc::default(),
        }
    }

    #[test]
    fn a_capture_that_follows_an_aborted_one_sees_its_frames_and_ends_too() {
        let ends = [1, 2].map(|last| EndOptions::plain([2, 0, 0, 0, 0, last], 1500));
        let (_link, device, _wire) = MemoryLink::new(0, [Impairments::default(); 2], ends);
        let options = InterfaceOptions::new([2, 0, 0, 0, 0, 1], 1500, [10, 0, 0, 1].into(), 24);
        let arena = FragmentArena::new(PagePool::anonymous(2, 4096).unwrap()).unwrap();
        let interface = Interface::new(options, arena, Instant::ZERO).unwrap();
        let mut lanes = [Lane { device: Captured::new(device), interface }];
        let (asking, mailboxes) = Asking::new(1, vec!["net_tap0".into()]);
        let mut inquiries = Inquiries::new(0, mailboxes[0].clone());
        let (aborted, next) = (capture(), capture());
        let mut step = |lanes: &mut [Lane<_>], new: Option<&Capture>| {
            new.into_iter().for_each(|capture| assert!(asking.ask(&Inquiry::Capture(capture.clone()))));
            inquiries.look(lanes, &[Some(0)]);
            lanes[0].device.transmit(&[0; 60], &[], &TxOffload::default()).unwrap();
        };
        step(&mut lanes, Some(&aborted));
        aborted.over.store(true, Ordering::Relaxed);
        step(&mut lanes, Some(&next));
        step(&mut lanes, None);
        assert_eq!((aborted.frames.waiting(), next.frames.waiting()), (1, 2));
        next.over.store(true, Ordering::Relaxed);
        step(&mut lanes, None);
        assert_eq!((next.frames.waiting(), Arc::strong_count(&next.frames), Arc::strong_count(&aborted.frames)), (2, 1, 1));
    }
}
