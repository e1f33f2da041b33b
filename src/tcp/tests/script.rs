//! Runs the text scripts in `scripts/`, in the manner of packetdrill: the script is the peer, the application and the clock.
//!
//! A file holds scripts, each introduced by `=== RFC ...: what it holds`. Lines, numbers relative to the initial sequence numbers:
//! ```text
//! option NAME VALUE        before anything else: one of the endpoint's options (milliseconds for times)
//! mtu N | tso N            the limits below; N bytes
//! pieces N                 a packet's payload may consist of so many, its header apart
//! link busy | link free    until it is free nothing leaves, whatever happens meanwhile
//! family ipv6              both ends have IPv6 addresses
//! rtt N                    the path's round trip, milliseconds: how long the handshakes below take, and each of the `rounds`; else 10
//! accept [OPTIONS] [win N] the peer opens a connection and it is accepted; mss 1000 and SACK unless told
//! open [OPTIONS] [win N]   connect, and the peer accepts
//! < FLAGS SEQ(LEN) [ack N] [win N] [ecn N] [urg N] [<OPTIONS>]   a segment arrives; ecn: the bits of the IP header; urg: the urgent pointer
//! > FLAGS SEQ(LEN) [ack N] [win N] [<OPTIONS>]     the next segment that leaves; what is not named is not compared
//! >> A-B                   the next segments that leave are the bytes A to B (B not included) in order, in full segments or not
//! > nothing | > anything     nothing leaves; whatever has left is not compared
//! wait N | micros N        N milliseconds, or microseconds, pass
//! rounds N                 N round trips of an application that always has more to send; each segment is acknowledged by itself
//! recoveries N             N times: of two segments the first is lost, the other is reported, and the first one's copy arrives
//! holes N [SEQ]            N segments of one byte from SEQ (or 1) on, each behind a hole of one; of the answers only the last is kept
//! peer N                   what follows is another peer, with this port
//! nagle on | keepalive on | usertimeout N          for this connection (or off)
//! refuse N                 the application asks to send N bytes, for which there is no room
//! listen | connect | send N | read N | close | closeboth | abort | icmp unreachable SEQ | icmp transient SEQ | icmp mtu N SEQ
//! event NAME               the next event; `event none`
//! state NAME | counter NAME N | closed REASON
//! info NAME N | info NAME A-B    one of the figures of `Runner::figure`: bytes, bytes a second, milliseconds, or how many
//! timer NAME N | timer none      the next of the timers that repair, and in how many milliseconds it fires
//! iss N | iss far          by how much our last initial sequence number lies above the one before; far: no attacker's guess
//! localport A-B | localport new  where our port of the last SYN lies; it is not the port before
//! ```
//! OPTIONS: `mss N`, `ws N`, `sackok`, `nosack`, `ts N` (echoing our last), `late N` (echoing one 100 ms before), `tsecr N`, `sack A-B`, separated by commas.

use std::collections::VecDeque;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;

use super::pair::{encode, segments};
use crate::buf::{Checksum, FragmentArena, PagePool, RxPacket, Slice};
use crate::counters::Counters;
use crate::tcp::{
    CongestionControl, ConnectionId, Ecn, Endpoint, Event, FourTuple, IcmpError, Keepalive, Options, SendError, Transmit,
    TransmitLimits,
};
use crate::time::{Duration, Instant};
use crate::wire::tcp::{Flags, Repr, SeqNumber, Timestamps};

const PEER_ISS: u32 = 0xffff_fff0;
/// What one of the `rounds` keeps queued, bytes: more than any window of theirs.
const SOURCE: usize = 1 << 20;
const PEER_PORT: u16 = 1023;
const PORT: u16 = 2049;
/// `rtt` unless told: RTO 210 ms, PTO 20 ms (70 ms for a single segment).
const RTT: Duration = Duration::from_millis(10);

struct Runner {
    endpoint: Endpoint,
    pool: PagePool,
    now: Instant,
    rtt: Duration,
    /// The addresses of the peer and ours.
    addresses: [IpAddr; 2],
    limits: TransmitLimits,
    busy: bool,
    out: VecDeque<(Repr, usize, u8)>,
    events: VecDeque<Event>,
    id: Option<ConnectionId>,
    iss: Option<SeqNumber>,
    iss_before: Option<SeqNumber>,
    last_ts: u32,
    local_port: u16,
    local_port_before: u16,
    peer_port: u16,
    sent: usize,
    read: usize,
}

fn addresses(ipv6: bool) -> [IpAddr; 2] {
    if ipv6 { [1, 2].map(|n| IpAddr::from([0xfd00, 0, 0, 0, 0, 0, 0, n])) } else { [1, 2].map(|n| IpAddr::from([10, 0, 0, n])) }
}

/// What both streams consist of.
fn byte_at(position: usize) -> u8 {
    (position % 251) as u8
}

fn options_from(lines: &[&str]) -> Options {
    let mut options = Options { quick_acks: 0, congestion: crate::tcp::CongestionControl::NewReno, ..Options::default() };
    for line in lines {
        let words: Vec<&str> = line.split_whitespace().collect();
        let ["option", name, value] = words[..] else { continue };
        let number: u64 = value.parse().unwrap_or(0);
        let time = Duration::from_millis(number);
        match name {
            "receive_window_initial" => options.receive_window_initial = number as u32,
            "receive_window_max" => options.receive_window_max = number as u32,
            "receive_buffers_max" => options.receive_buffers_max = number as usize,
            "driver_buffers_max" => options.driver_buffers_max = number as usize,
            "driver_buffers_unshared" => options.driver_buffers_unshared = number as usize,
            "send_queue_bytes_max" => options.send_queue_bytes_max = number as usize,
            "connections_max" => options.connections_max = number as usize,
            "connections_per_remote_max" => options.connections_per_remote_max = number as usize,
            "syn_cookies" => options.syn_cookies = value == "on",
            "syn_received_max" => options.syn_received_max = number as usize,
            "accept_queue_max" => options.accept_queue_max = number as usize,
            "time_wait_max" => options.time_wait_max = number as usize,
            "time_wait" => options.time_wait = time,
            "user_timeout" => options.user_timeout = time,
            "rto_initial" => options.rto_initial = time,
            "rto_min" => options.rto_min = time,
            "rto_max" => options.rto_max = time,
            "delayed_ack" => options.delayed_ack = time,
            "push_ack_delay" => options.push_ack_delay = time,
            "challenge_ack_interval" => options.challenge_ack_interval = time,
            "fin_wait_2_timeout" => options.fin_wait_2_timeout = time,
            "quick_acks" => options.quick_acks = number as u8,
            "syn_retries_max" => options.syn_retries_max = number as u8,
            "syn_ack_retries_max" => options.syn_ack_retries_max = number as u8,
            "replies_max" => options.replies_max = number as usize,
            "syns_waiting_max" => options.syns_waiting_max = number as usize,
            "path_mtu_raise" => options.path_mtu_raise = time,
            "ecn" => {
                options.ecn = match value {
                    "off" => Ecn::Off,
                    "request" => Ecn::Request,
                    _ => Ecn::Accept,
                };
            }
            "congestion" => {
                options.congestion = match value {
                    "cubic" => CongestionControl::Cubic,
                    "dctcp" => CongestionControl::Dctcp,
                    _ => CongestionControl::NewReno,
                };
            }
            "pacing" => options.pacing = value == "on",
            "nagle" => options.nagle = value == "on",
            "sack" => options.sack = value == "on",
            "timestamps" => options.timestamps = value == "on",
            "window_scaling" => options.window_scaling = value == "on",
            "keepalive" => {
                options.keepalive = Some(Keepalive { idle: time, interval: Duration::from_millis(1000), probes_max: 2 });
            }
            _ => panic!("unknown option {name}"),
        }
    }
    options
}

impl Runner {
    fn new(lines: &[&str]) -> Runner {
        let pool = PagePool::anonymous(1024, 4096).unwrap();
        let mut endpoint = Endpoint::new(options_from(lines), *b"a key of 16 byte");
        endpoint.set_copy_out(FragmentArena::new(pool.clone()).unwrap());
        Runner {
            endpoint,
            pool,
            now: Instant::from_millis(10_000),
            rtt: RTT,
            addresses: addresses(false),
            limits: TransmitLimits::default(),
            busy: false,
            out: VecDeque::new(),
            events: VecDeque::new(),
            id: None,
            iss: None,
            iss_before: None,
            last_ts: 0,
            local_port: PORT,
            local_port_before: 0,
            peer_port: PEER_PORT,
            sent: 0,
            read: 0,
        }
    }

    /// Collects what the endpoint has to say.
    fn collect(&mut self) {
        while let Some(event) = self.endpoint.poll_event() {
            if let Event::Accepted { id, .. } | Event::Connected(id) = event {
                self.id = Some(id);
            }
            self.events.push_back(event);
        }
        let mut transmit = Transmit::default();
        while !self.busy && self.endpoint.poll_transmit(self.now, &self.limits, &mut transmit) {
            for bytes in segments(&mut transmit) {
                let (repr, len) = Repr::parse(&bytes).unwrap();
                // RFC 9293 section 3.8.5, MUST-62: nothing that leaves is urgent.
                assert!(!repr.flags.contains(Flags::URG) && repr.urgent == 0, "urgent: {repr:?}");
                for (at, byte) in bytes[len..].iter().enumerate() {
                    let position = repr.seq.distance(self.iss.unwrap() + 1) as usize + at;
                    assert_eq!(*byte, byte_at(position), "payload at {position}");
                }
                if repr.flags.contains(Flags::SYN) && self.iss != Some(repr.seq) {
                    (self.iss_before, self.iss) = (self.iss, Some(repr.seq));
                    (self.local_port_before, self.local_port) = (self.local_port, repr.src_port);
                }
                if let Some(timestamps) = repr.options.timestamps {
                    self.last_ts = timestamps.value;
                }
                self.out.push_back((repr, bytes.len() - len, transmit.ecn));
            }
        }
    }

    fn wait(&mut self, time: Duration) {
        let end = self.now + time;
        while let Some(next) = self.endpoint.poll_timeout().filter(|next| *next <= end) {
            self.now = self.now.max(next);
            self.endpoint.handle_timeout(self.now);
            self.collect();
        }
        self.now = end;
        self.collect();
    }

    fn inject(&mut self, text: &str) {
        let (mut repr, len, named) = self.parse(text, true);
        repr.src_port = self.peer_port;
        repr.dst_port = self.local_port;
        if !named.window {
            repr.window = 65_535;
        }
        let syn = i32::from(repr.flags.contains(Flags::SYN));
        let start = repr.seq.distance(SeqNumber(PEER_ISS) + 1) + syn;
        let payload: Vec<u8> = (0..len).map(|at| byte_at((start as i64 + at as i64).max(0) as usize)).collect();
        let [peer, own] = self.addresses;
        let bytes = encode(peer, own, &repr, &payload);
        let (packet, ecn) = (RxPacket::from_vec(bytes), named.ecn.unwrap_or(0));
        self.endpoint.handle_marked_segment(self.now, peer, own, packet, Checksum::Unknown, ecn);
        self.collect();
    }

    fn expect(&mut self, text: &str) {
        if text == "anything" {
            self.out.clear();
            return;
        }
        if text == "nothing" {
            assert!(self.out.is_empty(), "left: {:?}", self.show());
            return;
        }
        let (repr, len, ecn) = *self.out.front().unwrap_or_else(|| panic!("nothing left"));
        let (wanted, wanted_len, named) = self.parse(text, false);
        if let Some(wanted) = named.ecn {
            assert_eq!(ecn, wanted, "ECN bits; left: {:?}", self.show());
        }
        let shown = self.show();
        self.out.pop_front();
        // PSH is compared only when it is asked for.
        let ignore = if wanted.flags.contains(Flags::PSH) { 0 } else { Flags::PSH.0 };
        assert_eq!(Flags(repr.flags.0 & !ignore), wanted.flags, "flags; left: {shown:?}");
        assert_eq!((repr.seq, len), (wanted.seq, wanted_len), "sequence number and length; left: {shown:?}");
        if repr.flags.contains(Flags::ACK) && named.ack {
            assert_eq!(repr.ack, wanted.ack, "acknowledgement; left: {shown:?}");
        }
        if named.window {
            assert_eq!(repr.window, wanted.window, "window; left: {shown:?}");
        }
        if named.options {
            let (mut got, mut want) = (repr.options, wanted.options);
            if let (Some(got), Some(want)) = (&mut got.timestamps, &mut want.timestamps) {
                got.value = 0;
                want.value = 0;
            }
            assert_eq!(got, want, "options; left: {shown:?}");
        }
    }

    /// As a script would write it.
    fn show(&self) -> Vec<String> {
        let iss = self.iss.unwrap_or_default();
        let line = |(repr, len, _): &(Repr, usize, u8)| {
            let (seq, ack) = (repr.seq.distance(iss), repr.ack.distance(SeqNumber(PEER_ISS)));
            format!("{:?} {seq}({len}) ack {ack} win {} {:?}", repr.flags, repr.window, repr.options)
        };
        self.out.iter().map(line).collect()
    }

    fn parse(&self, text: &str, from_peer: bool) -> (Repr, usize, Named) {
        let (text, options) = text.split_once('<').map_or((text, None), |(a, b)| (a, Some(b.trim_end_matches('>'))));
        let mut words = text.split_whitespace();
        let mut repr = Repr::default();
        let mut named = Named::default();
        for letter in words.next().unwrap().chars() {
            repr.flags |= match letter {
                'S' => Flags::SYN,
                'F' => Flags::FIN,
                'R' => Flags::RST,
                'P' => Flags::PSH,
                'U' => Flags::URG,
                'E' => Flags::ECE,
                'W' => Flags::CWR,
                '.' => Flags::ACK,
                other => panic!("flag {other}"),
            };
        }
        let iss = self.iss.unwrap_or_default();
        let (own, other) = if from_peer { (SeqNumber(PEER_ISS), iss) } else { (iss, SeqNumber(PEER_ISS)) };
        let (seq, len) = words.next().unwrap().trim_end_matches(')').split_once('(').unwrap();
        repr.seq = own + seq.parse::<i64>().unwrap() as u32;
        while let (Some(name), Some(value)) = (words.next(), words.next()) {
            let value: i64 = value.parse().unwrap();
            match name {
                "ack" => (repr.ack, named.ack) = (other + value as u32, true),
                "ecn" => named.ecn = Some(value as u8),
                "win" => (repr.window, named.window) = (value as u16, true),
                "urg" => repr.urgent = value as u16,
                other => panic!("field {other}"),
            }
        }
        if let Some(options) = options {
            named.options = true;
            self.parse_options(options, other, &mut repr);
        }
        (repr, len.parse().unwrap(), named)
    }

    fn parse_options(&self, text: &str, sack_base: SeqNumber, repr: &mut Repr) {
        for option in text.split(',').map(str::trim).filter(|option| !option.is_empty()) {
            let words: Vec<&str> = option.split_whitespace().collect();
            let number = || words[1].parse::<u32>().unwrap();
            match words[0] {
                "mss" => repr.options.mss = Some(number() as u16),
                "ws" => repr.options.window_scale = Some(number() as u8),
                "sackok" => repr.options.sack_permitted = true,
                "nosack" => repr.options.sack_permitted = false,
                "ts" => repr.options.timestamps = Some(Timestamps { value: number(), echo_reply: self.last_ts }),
                "late" => {
                    let echo_reply = self.last_ts.wrapping_sub(100);
                    repr.options.timestamps = Some(Timestamps { value: number(), echo_reply });
                }
                "tsecr" => repr.options.timestamps = Some(Timestamps { value: 0, echo_reply: number() }),
                "sack" => {
                    let (left, right) = words[1].split_once('-').unwrap();
                    let at = |text: &str| sack_base + text.parse::<u32>().unwrap();
                    assert!(repr.options.sack.push((at(left), at(right))));
                }
                other => panic!("option {other}"),
            }
        }
    }

    /// The handshake of `accept` and `open`: `OPTIONS [win N]`.
    fn handshake(&mut self, arguments: &str, active: bool) {
        let (options, window) = arguments.split_once("win").unwrap_or((arguments, "65535"));
        let has = |name: &str| options.split(',').any(|option| option.split_whitespace().next() == Some(name));
        let mut all: Vec<&str> = options.split(',').map(str::trim).filter(|o| !o.is_empty() && *o != "nosack").collect();
        if !has("mss") {
            all.push("mss 1000");
        }
        if !has("sackok") && !has("nosack") {
            all.push("sackok");
        }
        let syn = all.join(",");
        let ts = all.iter().find(|option| option.starts_with("ts")).copied().unwrap_or("");
        if active {
            self.run("connect");
            self.out.pop_front().expect("a SYN");
            self.wait(self.rtt);
            self.inject(&format!("S. 0(0) ack 1 win {window} <{syn}>"));
            self.expect(". 1(0) ack 1");
            self.run("event Connected");
        } else {
            self.run("listen");
            self.inject(&format!("S 0(0) win {window} <{syn}>"));
            self.expect("S. 0(0) ack 1");
            self.wait(self.rtt);
            self.inject(&format!(". 1(0) ack 1 win {window} <{ts}>"));
            self.run("event Accepted");
        }
    }

    fn run(&mut self, line: &str) {
        let (verb, rest) = line.split_once(' ').unwrap_or((line, ""));
        let rest = rest.trim();
        if !matches!(verb, ">" | ">>" | "event" | "state" | "counter" | "closed" | "info" | "timer" | "iss" | "localport") {
            assert!(self.out.is_empty(), "not expected: {:?}", self.show());
        }
        let number = |text: &str| text.parse::<usize>().unwrap();
        match verb {
            "option" => {}
            "mtu" => self.limits.mtu = number(rest) as u16,
            "tso" => self.limits.tso_bytes_max = number(rest) as u32,
            "pieces" => self.limits.segments_per_packet_max = number(rest) as u16 + 1,
            "link" => self.busy = rest == "busy",
            "<" => self.inject(rest),
            ">" => self.expect(rest),
            ">>" => self.expect_range(rest),
            "family" => self.addresses = addresses(rest == "ipv6"),
            "rtt" => self.rtt = Duration::from_millis(number(rest) as u64),
            "rounds" => (0..number(rest)).for_each(|_| self.round()),
            "recoveries" => (0..number(rest)).for_each(|_| self.recovery()),
            "holes" => {
                let (count, start) = rest.split_once(' ').unwrap_or((rest, "1"));
                self.holes(number(count), number(start));
            }
            "info" => self.info(rest),
            "timer" => self.timer(rest),
            "iss" => {
                let above = self.iss.unwrap().distance(self.iss_before.expect("one before"));
                match rest {
                    "far" => assert!(above.unsigned_abs() > 1 << 20, "{above} above the one before"),
                    _ => assert_eq!(above, rest.parse::<i32>().unwrap()),
                }
            }
            "localport" => match rest.split_once('-') {
                Some((least, most)) => assert!((number(least)..=number(most)).contains(&usize::from(self.local_port))),
                None => assert_ne!(self.local_port, self.local_port_before),
            },
            "wait" => self.wait(Duration::from_millis(number(rest) as u64)),
            "micros" => self.wait(Duration::from_micros(number(rest) as u64)),
            "accept" => self.handshake(rest, false),
            "open" => self.handshake(rest, true),
            "listen" => self.endpoint.listen(PORT).unwrap(),
            "connect" => {
                let [peer, own] = self.addresses;
                let (local, remote) = (SocketAddr::new(own, 0), SocketAddr::new(peer, self.peer_port));
                self.id = Some(self.endpoint.connect(self.now, local, remote).unwrap());
            }
            "send" => self.send(number(rest)),
            "refuse" => self.refuse(number(rest)),
            "read" => self.read(number(rest)),
            "close" => self.endpoint.close(self.now, self.id.unwrap()),
            "closeboth" => self.endpoint.close_both(self.now, self.id.unwrap()),
            "nagle" => self.endpoint.set_nagle(self.id.unwrap(), rest == "on"),
            "keepalive" => self.endpoint.set_keepalive(self.now, self.id.unwrap(), rest == "on"),
            "usertimeout" => {
                self.endpoint.set_user_timeout(self.now, self.id.unwrap(), Duration::from_millis(number(rest) as u64));
            }
            "peer" => self.peer_port = number(rest) as u16,
            "abort" => self.endpoint.abort(self.now, self.id.unwrap()),
            "icmp" => self.icmp(rest),
            "event" => {
                let event = self.events.pop_front().map_or("none".to_string(), |event| format!("{event:?}"));
                let name = event.split(|c: char| !c.is_alphanumeric()).next().unwrap();
                assert_eq!(name, rest, "{event}");
            }
            "closed" => match self.events.pop_front() {
                Some(Event::Closed(_, reason)) => assert_eq!(format!("{reason:?}"), rest),
                other => panic!("{other:?} instead of Closed"),
            },
            "state" => {
                let id = self.id.or_else(|| self.endpoint.connections().next());
                let state = id.and_then(|id| self.endpoint.info(id)).map_or("none".into(), |info| format!("{:?}", info.state));
                assert_eq!(state, rest);
            }
            "counter" => {
                let (name, value) = rest.split_once(' ').unwrap();
                let mut found = None;
                self.endpoint.counters().visit(&mut |field, count| found = found.or((field == name).then_some(count)));
                assert_eq!(found, Some(number(value) as u64), "counter {name}");
            }
            other => panic!("unknown verb {other}"),
        }
        self.collect();
    }

    /// `A-B` in as many segments as it takes.
    fn expect_range(&mut self, text: &str) {
        let (start, end) = text.split_once('-').map(|(a, b)| (a.parse::<i32>().unwrap(), b.parse::<i32>().unwrap())).unwrap();
        let mut at = start;
        while at < end {
            let shown = self.show();
            let (repr, len, _) = self.out.pop_front().unwrap_or_else(|| panic!("nothing left at {at}"));
            assert!(repr.seq.distance(self.iss.unwrap()) == at && len > 0, "{at} expected; left: {shown:?}");
            at += len as i32;
        }
        assert_eq!(at, end, "ends elsewhere");
    }

    /// One round trip later the peer acknowledges, one by one, the segments that had left at its beginning.
    fn round(&mut self) {
        while self.endpoint.queued(self.id.unwrap()) < SOURCE {
            self.send(1 << 16);
        }
        self.collect();
        let info = self.endpoint.info(self.id.unwrap()).unwrap();
        let (mut una, mss) = (self.sent as u64 - info.queued_bytes as u64 + 1, u64::from(info.mss));
        let next = una + info.outstanding_bytes;
        self.wait(self.rtt);
        while una < next {
            una = next.min(una + mss);
            self.inject(&format!(". 1(0) ack {una}"));
        }
        self.out.clear();
    }

    /// A loss that SACK tells of, and its repair.
    fn recovery(&mut self) {
        let (una, end) = (self.sent + 1, self.sent + 2001);
        self.send(2000);
        self.collect();
        self.expect_range(&format!("{una}-{end}"));
        self.wait(self.rtt);
        self.inject(&format!(". 1(0) ack {una} <sack {}-{end}>", una + 1000));
        // The reordering window is a round trip at most.
        self.wait(self.rtt + Duration::from_millis(1));
        self.expect(&format!(". {una}(1000)"));
        self.wait(self.rtt);
        self.inject(&format!(". 1(0) ack {end}"));
    }

    fn holes(&mut self, count: usize, start: usize) {
        for n in 0..count {
            self.out.clear();
            self.inject(&format!(". {}(1) ack 1", start + 2 + 2 * n));
        }
    }

    fn info(&self, text: &str) {
        let (name, wanted) = text.split_once(' ').unwrap();
        let value = self.figure(name);
        let (least, most) = wanted.split_once('-').unwrap_or((wanted, wanted));
        let range = least.parse::<u64>().unwrap()..=most.parse::<u64>().unwrap();
        assert!(range.contains(&value), "{name} is {value}");
    }

    /// What `TcpInfo` says; of points in time, how long ago.
    fn figure(&self, name: &str) -> u64 {
        let info = self.endpoint.info(self.id.unwrap()).expect("a connection");
        let millis = |time: Duration| time.as_millis() as u64;
        match name {
            "cwnd" => info.congestion_window,
            "ssthresh" => info.slow_start_threshold,
            "flight" => info.in_flight_bytes,
            "outstanding" => info.outstanding_bytes,
            "sacked" => info.sacked_bytes,
            "lost" => info.lost_bytes,
            "again_in_flight" => info.retransmitted_in_flight,
            "queued" => info.queued_bytes as u64,
            "unread" => info.unread_bytes as u64,
            "out_of_order" => info.out_of_order_bytes as u64,
            "send_window" => info.send_window,
            "receive_window" => info.receive_window,
            "mss" => u64::from(info.mss),
            "peer_mss" => u64::from(info.peer_mss),
            "announced_mss" => u64::from(info.announced_mss),
            "path_mtu" => u64::from(info.path_mtu.unwrap_or(0)),
            "rto" => millis(info.rto),
            "srtt" => millis(info.smoothed_rtt.unwrap_or_default()),
            "minrtt" => millis(info.min_rtt.unwrap_or_default()),
            "rttvar" => millis(info.rtt_variance),
            "backoff" => u64::from(info.backoff),
            "last_sent" => millis(self.now.since(info.last_sent_at)),
            "last_received" => millis(self.now.since(info.last_received_at)),
            "last_heard" => millis(self.now.since(info.last_heard_at)),
            "reordering" => u64::from(info.reordering_seen),
            "ecn" => u64::from(info.ecn),
            "pacing_rate" => info.pacing_rate.unwrap_or(0),
            "bytes_acknowledged" => info.bytes_acknowledged,
            "bytes_received" => info.bytes_received,
            "bytes_sent" => info.bytes_sent,
            "bytes_again" => info.retransmitted_bytes,
            "segments_in" => info.segments_in,
            "segments_out" => info.segments_out,
            "text_segments_in" => info.text_segments_in,
            "text_segments_out" => info.text_segments_out,
            "retransmitted" => info.retransmitted_segments,
            other => panic!("{other} is not in TcpInfo"),
        }
    }

    fn timer(&self, wanted: &str) {
        let info = self.endpoint.info(self.id.unwrap()).expect("a connection");
        let shown = info.timer.map_or("none".into(), |(name, at)| format!("{name} {}", at.since(self.now).as_millis()));
        assert_eq!(shown, wanted);
    }

    fn send(&mut self, len: usize) {
        let mut gather = self.text(self.sent, len);
        self.sent += len;
        self.endpoint.send(self.now, self.id.unwrap(), &mut gather).unwrap();
    }

    fn refuse(&mut self, len: usize) {
        let mut gather = self.text(self.sent, len);
        let slices = gather.len();
        assert_eq!(self.endpoint.send(self.now, self.id.unwrap(), &mut gather), Err(SendError::Full));
        assert_eq!(gather.len(), slices, "nothing of it was taken");
    }

    /// The stream's bytes from `start` on.
    fn text(&self, start: usize, len: usize) -> Vec<Slice> {
        let mut gather = Vec::new();
        let mut at = start;
        while at < start + len {
            let n = (start + len - at).min(4096);
            let mut page = self.pool.allocate().unwrap();
            for byte in &mut page[..n] {
                *byte = byte_at(at);
                at += 1;
            }
            let mut slice = page.freeze();
            slice.truncate(n);
            gather.push(slice);
        }
        gather
    }

    fn read(&mut self, len: usize) {
        let chain = self.endpoint.receive(self.id.unwrap()).unwrap();
        let bytes = chain.view(0, len).unwrap_or_else(|| panic!("only {} bytes", chain.len())).to_vec();
        for (at, byte) in bytes.iter().enumerate() {
            assert_eq!(*byte, byte_at(self.read + at), "byte {}", self.read + at);
        }
        self.read += len;
        chain.consume(len);
        self.endpoint.received(self.now, self.id.unwrap());
    }

    fn icmp(&mut self, text: &str) {
        let words: Vec<&str> = text.split_whitespace().collect();
        let (error, seq) = match words[..] {
            ["unreachable", seq] => (IcmpError::Unreachable, seq),
            ["transient", seq] => (IcmpError::Transient, seq),
            ["mtu", mtu, seq] => (IcmpError::PacketTooBig { mtu: mtu.parse().unwrap() }, seq),
            _ => panic!("icmp {text}"),
        };
        let [remote_ip, local_ip] = self.addresses;
        let tuple = FourTuple { local_ip, remote_ip, local_port: self.local_port, remote_port: self.peer_port };
        let seq = self.iss.unwrap_or_default() + seq.parse::<i64>().unwrap() as u32;
        self.endpoint.handle_icmp(self.now, &tuple, seq, error);
    }
}

#[derive(Default)]
struct Named {
    ecn: Option<u8>,
    ack: bool,
    window: bool,
    options: bool,
}

/// Tells where and how it failed, if it did.
fn run_script(title: &str, lines: &[(usize, &str)]) -> Option<String> {
    let texts: Vec<&str> = lines.iter().map(|(_, line)| *line).collect();
    let mut runner = Runner::new(&texts);
    let mut at = 0;
    let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        for (number, line) in lines {
            at = *number;
            runner.run(line);
        }
        runner.expect("nothing");
    }));
    let said = |panic: Box<dyn std::any::Any + Send>| match panic.downcast::<String>() {
        Ok(text) => *text,
        Err(panic) => panic.downcast::<&str>().map_or(String::new(), |text| text.to_string()),
    };
    outcome.err().map(|panic| format!("{title}, line {at}: {}", said(panic)))
}

#[test]
fn scripts() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/tcp/tests/scripts");
    let mut files: Vec<_> = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    let mut count = 0;
    let mut failed = Vec::new();
    for file in files {
        let text = std::fs::read_to_string(&file).unwrap();
        let mut script: Option<(String, Vec<(usize, &str)>)> = None;
        for (number, line) in text.lines().enumerate().chain([(0, "=== RFC end")]) {
            let line = line.split('#').next().unwrap().trim();
            if let Some(title) = line.strip_prefix("=== ") {
                assert!(title.starts_with("RFC "), "{title} names no RFC");
                if let Some((title, lines)) = script.replace((format!("{}: {title}", file.display()), Vec::new())) {
                    count += 1;
                    failed.extend(run_script(&title, &lines));
                }
            } else if !line.is_empty() {
                script.as_mut().expect("a title first").1.push((number + 1, line));
            }
        }
    }
    assert!(failed.is_empty(), "{} of {count} scripts failed: {failed:#?}", failed.len());
    assert!(count >= 40, "{count} scripts");
}
