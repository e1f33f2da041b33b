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

    /// No two values alike, and none that a division by the MSS makes so.
    fn info() -> TcpInfo {
        let micros = std::time::Duration::from_micros;
        TcpInfo {
            state: State::CloseWait,
            local: "10.0.0.1:2049".parse().unwrap(),
            remote: "10.0.0.2:700".parse().unwrap(),
            smoothed_rtt: Some(micros(101)),
            rtt_variance: micros(102),
            min_rtt: Some(micros(103)),
            rto: micros(104),
            backoff: 5,
            timer: Some(("persist", Instant::from_millis(1_006))),
            congestion_control: "dctcp",
            last_sent_at: Instant::from_millis(993),
            last_received_at: Instant::from_millis(992),
            last_heard_at: Instant::from_millis(991),
            reordering_seen: true,
            mss: 1_000,
            peer_mss: 1_001,
            announced_mss: 1_002,
            path_mtu: Some(1_042),
            congestion_window: 20_000,
            slow_start_threshold: 20_001,
            in_flight_bytes: 22_001,
            outstanding_bytes: 23_001,
            sacked_bytes: 24_001,
            lost_bytes: 25_001,
            send_window: 26_001,
            receive_window: 27_001,
            queued_bytes: 28_001,
            unread_bytes: 29_001,
            out_of_order_bytes: 30_001,
            bytes_acknowledged: 31_001,
            bytes_received: 32_001,
            bytes_sent: 33_001,
            segments_in: 41,
            segments_out: 42,
            text_segments_in: 43,
            text_segments_out: 44,
            retransmitted_segments: 45,
            retransmitted_bytes: 46_001,
            retransmitted_in_flight: 47_001,
            window_scale: Some((7, 6)),
            timestamps: true,
            sack: true,
            ecn: true,
            pacing_rate: Some(48_001),
        }
    }

    #[test]
    fn each_column_of_a_row_shows_its_own_value() {
        let row = Connection {
            state: "CLOSE-WAIT".into(),
            recv_q: 29_001,
            send_q: 28_001,
            local: "10.0.0.1:2049".into(),
            peer: "10.0.0.2:700".into(),
            core: 3,
            options: "ts sack ecn wscale:7,6".into(),
            cwnd: 20,
            ssthresh: Some(21),
            rtt_us: Some(101),
            rttvar_us: 102,
            minrtt_us: Some(103),
            rto_us: 104,
            backoff: 5,
            timer: Some("persist".into()),
            timer_us: Some(6_000),
            congestion: "dctcp".into(),
            lastsnd_us: 7_000,
            lastrcv_us: 8_000,
            lastack_us: 9_000,
            reordering: true,
            mss: 1_000,
            rcvmss: 1_001,
            advmss: 1_002,
            pmtu: Some(1_042),
            retrans: 45,
            retrans_in_flight: 48,
            unacked: 24,
            sacked: 25,
            lost: 26,
            // What was acknowledged in order, and behind a hole: 55,002 bytes.
            delivered: 56,
            bytes_sent: 33_001,
            bytes_retrans: 46_001,
            bytes_acked: 31_001,
            bytes_received: 32_001,
            segs_out: 42,
            segs_in: 41,
            data_segs_out: 44,
            data_segs_in: 43,
            // A window for each round trip.
            send_rate: Some(20_000 * 8 * 1_000_000 / 101),
            snd_wnd: 26_001,
            rcv_wnd: 27_001,
            rcv_ooo: 30_001,
            pacing_rate: Some(8 * 48_001),
        };
        assert_eq!(row_of(&info(), 3, Instant::from_millis(1_000)), row);
    }

    #[test]
    fn what_is_not_known_or_not_agreed_on_is_left_out_of_a_row() {
        let info = TcpInfo {
            smoothed_rtt: None,
            min_rtt: None,
            timer: None,
            path_mtu: None,
            slow_start_threshold: u64::MAX,
            window_scale: None,
            timestamps: false,
            ecn: false,
            pacing_rate: None,
            mss: 0,
            ..info()
        };
        let row = row_of(&info, 3, Instant::from_millis(1_000));
        assert_eq!((row.rtt_us, row.minrtt_us, row.timer, row.timer_us), (None, None, None, None));
        assert_eq!((row.pmtu, row.ssthresh, row.pacing_rate, row.send_rate), (None, None, None, None));
        assert_eq!((row.options.as_str(), row.cwnd), ("sack", 20_000), "no division by an MSS of 0");
    }

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
