//! What one endpoint promises outside of any conversation: addresses, ports, numbers, limits that span peers.

use std::collections::HashSet;
use std::net::{IpAddr, SocketAddr};

use super::pair::encode;
use crate::buf::{Checksum, PagePool, RxPacket};
use crate::tcp::syn_queue::{PER_TURN, PER_TURN_FLOODED};
use crate::tcp::{
    CongestionControl, ConnectError, ConnectionId, Endpoint, Event, Keepalive, ListenError, Options, Reason, Transmit,
    TransmitLimits,
};
use crate::time::{Duration, Instant};
use crate::wire::checksum::Sum;
use crate::wire::protocol;
use crate::wire::tcp::{Flags, Repr, SeqNumber, TcpOptions, Timestamps};

const START: Instant = Instant::from_millis(1_000);

fn address(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

fn endpoint(options: Options) -> Endpoint {
    Endpoint::new(options, *b"a key of 16 byte")
}

/// The headers of everything that leaves now.
fn sent(endpoint: &mut Endpoint, now: Instant) -> Vec<Repr> {
    let mut transmit = Transmit::default();
    let mut all = Vec::new();
    while endpoint.poll_transmit(now, &TransmitLimits::default(), &mut transmit) {
        all.push(Repr::parse(transmit.header()).unwrap().0);
    }
    all
}

/// What each turn sends until none is due at once.
fn turns(endpoint: &mut Endpoint, now: Instant) -> Vec<Vec<Repr>> {
    let mut turns = Vec::new();
    while turns.is_empty() || endpoint.poll_timeout().is_some_and(|at| at <= now) {
        endpoint.handle_timeout(now);
        turns.push(sent(endpoint, now));
        assert!(turns.len() < 1000, "no rest");
    }
    turns
}

fn inject(endpoint: &mut Endpoint, now: Instant, from: IpAddr, to: IpAddr, repr: &Repr) {
    let packet = RxPacket::from_vec(encode(from, to, repr, &[]));
    endpoint.handle_segment(now, from, to, packet, Checksum::Unknown);
}

fn syn(port: u16) -> Repr {
    let timestamps = Some(Timestamps { value: 1, echo_reply: 0 });
    let options =
        TcpOptions { mss: Some(1460), window_scale: Some(7), sack_permitted: true, timestamps, ..TcpOptions::default() };
    Repr { src_port: port, dst_port: 2049, seq: SeqNumber(9), flags: Flags::SYN, window: 1000, options, ..Repr::default() }
}

#[test]
fn connect_takes_only_addresses_of_hosts() {
    let mut tcp = endpoint(Options::default());
    let mut connect = |local, remote| tcp.connect(START, address(local), address(remote)).map(|_| ());
    for (local, remote) in [
        ("10.0.0.2:0", "0.0.0.0:2049"),
        ("10.0.0.2:0", "224.0.0.1:2049"),
        ("10.0.0.2:0", "255.255.255.255:2049"),
        ("10.0.0.2:0", "10.0.0.1:0"),
        ("0.0.0.0:0", "10.0.0.1:2049"),
        ("10.0.0.2:0", "[2001:db8::1]:2049"),
        ("[2001:db8::2]:0", "[ff02::1]:2049"),
    ] {
        assert_eq!(connect(local, remote), Err(ConnectError::InvalidAddress), "{local} {remote}");
    }
    assert_eq!(connect("10.0.0.2:700", "10.0.0.1:2049"), Ok(()));
    assert_eq!(connect("10.0.0.2:700", "10.0.0.1:2049"), Err(ConnectError::InUse));
    assert_eq!(connect("10.0.0.3:700", "10.0.0.1:2049"), Ok(()), "another address of ours");
}

#[test]
fn segments_of_groups_are_counted_and_dropped() {
    let mut tcp = endpoint(Options::default());
    tcp.listen(2049).unwrap();
    let pairs = [("224.0.0.1", "10.0.0.2"), ("255.255.255.255", "10.0.0.2"), ("0.0.0.0", "10.0.0.2"), ("10.0.0.1", "224.0.0.1")];
    for (from, to) in pairs {
        inject(&mut tcp, START, from.parse().unwrap(), to.parse().unwrap(), &syn(700));
    }
    assert_eq!((tcp.counters().in_addr_errors, tcp.connections().count()), (4, 0));
    assert!(sent(&mut tcp, START).is_empty());
}

/// `Options::connections_max` says who gives way.
#[test]
fn a_connection_that_is_opened_takes_the_place_of_a_time_wait_and_of_what_was_closed_for_good() {
    let mut tcp = endpoint(Options { connections_max: 2, ..Options::default() });
    let (peer, us): (IpAddr, IpAddr) = ("10.0.0.1".parse().unwrap(), "10.0.0.2".parse().unwrap());
    let open = |tcp: &mut Endpoint| {
        let id = tcp.connect(START, address("10.0.0.2:0"), address("10.0.0.1:2049"))?;
        let opener = sent(tcp, START).pop().unwrap();
        let head = Repr { src_port: 2049, dst_port: opener.src_port, seq: SeqNumber(9), window: 1000, ..Repr::default() };
        let answer = Repr { ack: opener.seq + 1, flags: Flags::SYN | Flags::ACK, ..head };
        inject(tcp, START, peer, us, &answer);
        sent(tcp, START);
        Ok::<_, ConnectError>((id, Repr { seq: answer.seq + 1, flags: Flags::FIN | Flags::ACK, ack: opener.seq + 2, ..head }))
    };
    let (first, fin) = open(&mut tcp).unwrap();
    let (second, _) = open(&mut tcp).unwrap();
    assert_eq!(open(&mut tcp).unwrap_err(), ConnectError::TooMany);
    tcp.close(START, first);
    sent(&mut tcp, START);
    inject(&mut tcp, START, peer, us, &fin);
    assert_eq!(tcp.counters().curr_time_wait, 1);
    assert!(open(&mut tcp).is_ok());
    assert_eq!((tcp.counters().curr_time_wait, tcp.counters().time_wait_overflows), (0, 1));
    assert_eq!(open(&mut tcp).unwrap_err(), ConnectError::TooMany);
    tcp.close_both(START, second);
    assert!(open(&mut tcp).is_ok());
    assert_eq!(tcp.counters().abort_on_memory, 1);
}

#[test]
fn initial_sequence_numbers_follow_a_clock_and_differ_by_connection() {
    let iss = |options: Options, secret: [u8; 16], now, remote: &str| {
        let mut tcp = Endpoint::new(options, secret);
        tcp.connect(now, address("10.0.0.2:700"), address(remote)).unwrap();
        sent(&mut tcp, now)[0].seq
    };
    let of = |secret, now, remote| iss(Options::default(), secret, now, remote);
    let first = of([1; 16], START, "10.0.0.1:2049");
    // RFC 9293 section 3.4.1: a clock of 4 us.
    let later = of([1; 16], START + Duration::from_secs(1), "10.0.0.1:2049");
    assert_eq!(later.distance(first), 250_000);
    let others = [of([2; 16], START, "10.0.0.1:2049"), of([1; 16], START, "10.0.0.1:2050"), of([1; 16], START, "10.0.0.3:2049")];
    let near = others.iter().filter(|other| other.distance(first).unsigned_abs() < 1 << 20).count();
    assert_eq!(near, 0, "{first:?} {others:?}");
}

/// RFC 6056 section 3.3.3.
#[test]
fn local_ports_are_spread_and_not_used_twice() {
    let mut tcp = endpoint(Options::default());
    for _ in 0..500 {
        tcp.connect(START, address("10.0.0.2:0"), address("10.0.0.1:2049")).unwrap();
    }
    let ports: Vec<u16> = sent(&mut tcp, START).iter().map(|repr| repr.src_port).collect();
    assert_eq!(ports.iter().collect::<HashSet<_>>().len(), 500);
    assert!(ports.iter().all(|port| *port >= 49_152));
    let first = |secret: u8, remote: &str| {
        let mut tcp = Endpoint::new(Options::default(), [secret; 16]);
        tcp.connect(START, address("10.0.0.2:0"), address(remote)).unwrap();
        sent(&mut tcp, START)[0].src_port
    };
    let firsts = HashSet::from([first(1, "10.0.0.1:2049"), first(2, "10.0.0.1:2049"), first(1, "10.0.0.3:2049")]);
    assert_eq!(firsts.len(), 3, "neither the secret nor the destination tells another's port");
}

/// RFC 6056 section 3.3.3: all of the dynamic range is used, and what became free is found.
#[test]
fn with_every_local_port_taken_there_is_none_left() {
    let mut tcp = endpoint(Options::default());
    let connect = |tcp: &mut Endpoint, remote| tcp.connect(START, address("10.0.0.2:0"), address(remote));
    let ids: Vec<ConnectionId> = (49_152..=u16::MAX).map(|_| connect(&mut tcp, "10.0.0.1:2049").unwrap()).collect();
    let before = *tcp.counters();
    assert_eq!(connect(&mut tcp, "10.0.0.1:2049"), Err(ConnectError::NoPort));
    assert_eq!((tcp.counters().active_opens, tcp.counters().curr_connections), (before.active_opens, before.curr_connections));
    // Neither a port of one's own choice below the range, nor another destination, needs one of these.
    tcp.connect(START, address("10.0.0.2:700"), address("10.0.0.1:2049")).unwrap();
    for remote in ["10.0.0.1:2050", "10.0.0.3:2049"] {
        connect(&mut tcp, remote).unwrap();
    }
    let port = tcp.info(ids[5_000]).unwrap().local.port();
    tcp.abort(START, ids[5_000]);
    while tcp.poll_event().is_some() {}
    let again = connect(&mut tcp, "10.0.0.1:2049").unwrap();
    assert_eq!(tcp.info(again).unwrap().local.port(), port);
    assert_eq!(connect(&mut tcp, "10.0.0.1:2049"), Err(ConnectError::NoPort));
}

/// RFC 9293 section 3.8.4: only on an idle connection, also when the timer of a closed window's probes is due at the same time and no
/// answer can be newer than the last of them.
#[test]
fn a_connection_whose_closed_window_is_probed_is_not_given_up_by_keepalive() {
    let keepalive = Keepalive { idle: Duration::from_secs(30), interval: Duration::from_secs(5), probes_max: 3 };
    let mut tcp = endpoint(Options { keepalive: Some(keepalive), ..Options::default() });
    tcp.listen(2049).unwrap();
    let (peer, us): (IpAddr, IpAddr) = ("10.0.0.1".parse().unwrap(), "10.0.0.2".parse().unwrap());
    inject(&mut tcp, START, peer, us, &syn(700));
    let answer = sent(&mut tcp, START)[0];
    let ack = |window| Repr {
        src_port: 700,
        dst_port: 2049,
        seq: SeqNumber(10),
        ack: answer.seq + 1,
        flags: Flags::ACK,
        window,
        options: TcpOptions { timestamps: Some(Timestamps { value: 2, echo_reply: 0 }), ..TcpOptions::default() },
        ..Repr::default()
    };
    inject(&mut tcp, START, peer, us, &ack(0));
    let Some(Event::Accepted { id, .. }) = tcp.poll_event() else { panic!("no connection") };
    let page = PagePool::anonymous(1, 512).unwrap().allocate().unwrap();
    tcp.send(START, id, &mut vec![page.freeze()]).unwrap();
    assert!(sent(&mut tcp, START).is_empty());
    let mut now = START;
    for _ in 0..20 {
        // Late enough for whatever may be armed.
        now += Duration::from_secs(61);
        tcp.handle_timeout(now);
        assert_eq!(sent(&mut tcp, now).len(), 1, "a probe of the window");
        inject(&mut tcp, now, peer, us, &ack(0));
    }
    assert_eq!((tcp.counters().keep_alives, tcp.counters().win_probes, tcp.poll_event()), (0, 20, None));
}

/// RFC 1122 section 4.2.3.5, also where no retry is allowed: that a SYN's peer has told no window yet is no answer of a closed one.
#[test]
fn a_syn_without_retries_is_sent_once() {
    let mut tcp = endpoint(Options { syn_retries_max: 0, ..Options::default() });
    let id = tcp.connect(START, address("10.0.0.2:700"), address("10.0.0.1:2049")).unwrap();
    assert_eq!(sent(&mut tcp, START).len(), 1);
    let now = START + Duration::from_secs(2);
    tcp.handle_timeout(now);
    assert_eq!((sent(&mut tcp, now).len(), tcp.poll_event()), (0, Some(Event::Closed(id, Reason::TimedOut))));
}

/// RFC 9293 section 3.10.5: each peer hears of an abort, also where all are aborted at once.
#[test]
fn every_connection_that_is_aborted_is_reset() {
    let mut tcp = endpoint(Options::default());
    let connections = 2 * u16::try_from(tcp.options().replies_max).unwrap();
    tcp.listen(2049).unwrap();
    let us: IpAddr = "10.0.0.2".parse().unwrap();
    let mut ids = Vec::new();
    for port in 1..=connections {
        let peer: IpAddr = "10.0.0.1".parse().unwrap();
        inject(&mut tcp, START, peer, us, &syn(port));
        let answer = sent(&mut tcp, START)[0];
        let timestamps = Some(Timestamps { value: 2, echo_reply: 0 });
        let options = TcpOptions { timestamps, ..TcpOptions::default() };
        let (seq, ack, flags) = (SeqNumber(10), answer.seq + 1, Flags::ACK);
        let repr = Repr { src_port: port, dst_port: 2049, seq, ack, flags, window: 1000, options, ..Repr::default() };
        inject(&mut tcp, START, peer, us, &repr);
        let Some(Event::Accepted { id, .. }) = tcp.poll_event() else { panic!("no connection") };
        ids.push(id);
    }
    ids.into_iter().for_each(|id| tcp.abort(START, id));
    let resets = sent(&mut tcp, START).iter().filter(|repr| repr.flags.contains(Flags::RST)).count();
    assert_eq!((resets, tcp.counters().replies_dropped), (usize::from(connections), 0));
}

#[test]
fn the_timestamp_clock_ticks_in_milliseconds() {
    let mut tcp = endpoint(Options::default());
    let mut value = |now, remote: &str| {
        tcp.connect(now, address("10.0.0.2:0"), address(remote)).unwrap();
        sent(&mut tcp, now)[0].options.timestamps.unwrap().value
    };
    // The offset is the connection's: another remote port, another offset.
    assert_ne!(value(START, "10.0.0.1:1"), value(START, "10.0.0.1:2"));
    let at = |now| {
        let mut tcp = endpoint(Options::default());
        tcp.connect(now, address("10.0.0.2:700"), address("10.0.0.1:1")).unwrap();
        sent(&mut tcp, now)[0].options.timestamps.unwrap().value
    };
    assert_eq!(at(START + Duration::from_millis(1_500)).wrapping_sub(at(START)), 1_500);
}

#[test]
fn keepalive_is_off_by_default() {
    let options = Options::default();
    assert!(options.keepalive.is_none());
    // RFC 9293 sections 3.8.3 (SHLD-11) and 3.8.4 (MUST-28).
    assert!(options.user_timeout >= Duration::from_secs(100));
    assert!(crate::tcp::Keepalive::default().idle >= Duration::from_secs(7200));
}

#[test]
fn listeners_are_bounded_and_can_be_closed() {
    let mut tcp = endpoint(Options { listeners_max: 2, ..Options::default() });
    assert_eq!(tcp.listen(0), Err(ListenError::InvalidPort));
    assert_eq!((tcp.listen(111), tcp.listen(111)), (Ok(()), Err(ListenError::InUse)));
    assert_eq!((tcp.listen(2049), tcp.listen(2050)), (Ok(()), Err(ListenError::TooMany)));
    let (from, to) = ([10, 0, 0, 1].into(), [10, 0, 0, 2].into());
    inject(&mut tcp, START, from, to, &syn(700));
    sent(&mut tcp, START);
    assert!(tcp.unlisten(2049) && !tcp.unlisten(2049));
    assert_eq!(tcp.connections().count(), 0, "the half-open one is gone");
    assert!(sent(&mut tcp, START)[0].flags.contains(Flags::RST));
}

/// RFC 9293 section 3.9.1.1, MUST-43.
#[test]
fn listeners_may_take_one_address_only() {
    let mut tcp = endpoint(Options::default());
    let local = |text: &str| address(&format!("{text}:2049"));
    assert_eq!(tcp.listen_at(local("10.0.0.2")), Ok(()));
    assert_eq!(tcp.listen_at(local("10.0.0.2")), Err(ListenError::InUse));
    for nobody in ["0.0.0.0", "224.0.0.1", "255.255.255.255", "[::]", "[ff02::1]"] {
        assert_eq!(tcp.listen_at(local(nobody)), Err(ListenError::InvalidAddress), "{nobody}");
    }
    let answer = |tcp: &mut Endpoint, to: &str, port: u16| {
        inject(tcp, START, "10.0.0.1".parse().unwrap(), to.parse().unwrap(), &syn(port));
        sent(tcp, START).first().map(|repr| repr.flags)
    };
    assert_eq!(answer(&mut tcp, "10.0.0.2", 700), Some(Flags::SYN | Flags::ACK));
    assert_eq!(answer(&mut tcp, "10.0.0.3", 700), Some(Flags::RST | Flags::ACK), "another address of ours");
    // Any other address, beside it.
    assert_eq!(tcp.listen(2049), Ok(()));
    assert_eq!(answer(&mut tcp, "10.0.0.3", 700), Some(Flags::SYN | Flags::ACK));
    // Each ends what is its own.
    assert!(tcp.unlisten(2049) && !tcp.unlisten(2049));
    assert_eq!(tcp.connections().count(), 1);
    assert_eq!(answer(&mut tcp, "10.0.0.3", 701).map(|flags| flags.contains(Flags::RST)), Some(true));
    assert_eq!(answer(&mut tcp, "10.0.0.2", 701), Some(Flags::SYN | Flags::ACK));
    assert!(tcp.unlisten_at(local("10.0.0.2")) && !tcp.unlisten_at(local("10.0.0.2")));
    assert_eq!(tcp.connections().count(), 0);
}

/// RFC 9293 section 3.9.1.1, MUST-41 and MUST-42: also on a port from which one connection is being opened, and to which another is.
#[test]
fn listening_begins_beside_connections_of_the_same_port_in_syn_sent_and_syn_received() {
    let mut tcp = endpoint(Options::default());
    let (peer, own): (IpAddr, IpAddr) = ([10, 0, 0, 1].into(), [10, 0, 0, 2].into());
    let opened = tcp.connect(START, address("10.0.0.2:2049"), address("10.0.0.1:700")).unwrap();
    let other = tcp.connect(START, address("10.0.0.2:2049"), address("10.0.0.1:701")).unwrap();
    let numbers: Vec<SeqNumber> = sent(&mut tcp, START).iter().map(|repr| repr.seq).collect();
    // A simultaneous open.
    inject(&mut tcp, START, peer, own, &syn(701));
    assert_eq!(sent(&mut tcp, START)[0].flags, Flags::SYN | Flags::ACK);
    let state = |tcp: &Endpoint, id| format!("{:?}", tcp.info(id).unwrap().state);
    assert_eq!([opened, other].map(|id| state(&tcp, id)), ["SynSent", "SynReceived"]);
    assert_eq!((tcp.listen(2049), tcp.listen_at(address("10.0.0.2:2049"))), (Ok(()), Ok(())));
    assert_eq!([opened, other].map(|id| state(&tcp, id)), ["SynSent", "SynReceived"]);
    // A newcomer, and the answers to the two of before.
    inject(&mut tcp, START, peer, own, &syn(702));
    assert_eq!(sent(&mut tcp, START)[0].flags, Flags::SYN | Flags::ACK);
    for (port, number) in [(700, numbers[0]), (701, numbers[1])] {
        inject(&mut tcp, START, peer, own, &Repr { ack: number + 1, flags: Flags::SYN | Flags::ACK, ..syn(port) });
    }
    assert_eq!([opened, other].map(|id| state(&tcp, id)), ["Established", "Established"]);
    assert_eq!([tcp.poll_event(), tcp.poll_event()], [Some(Event::Connected(opened)), Some(Event::Connected(other))]);
}

/// Whoever opens and resets connections through a port that sends nothing must not make the list of those that wait for it grow.
#[test]
fn connections_that_end_while_they_are_held_leave_a_bounded_list() {
    let mut tcp = endpoint(Options::default());
    let (peer, own): (IpAddr, IpAddr) = ([10, 0, 0, 1].into(), [10, 0, 0, 2].into());
    tcp.listen(2049).unwrap();
    for round in 0..1_000 {
        let syn = syn(700 + round % 3);
        inject(&mut tcp, START, peer, own, &syn);
        tcp.hold(|_| true);
        assert!(tcp.held_len() <= 3, "{} held in round {round}", tcp.held_len());
        inject(&mut tcp, START, peer, own, &Repr { seq: syn.seq + 1, flags: Flags::RST, ..syn });
        assert_eq!(tcp.connections().count(), 0);
    }
    inject(&mut tcp, START, peer, own, &syn(900));
    tcp.hold(|_| true);
    assert!(sent(&mut tcp, START).is_empty(), "it is held");
    tcp.resume_held();
    assert_eq!(sent(&mut tcp, START).len(), 1, "its answer, once");
}

/// RFC 9293 section 3.1, MUST-5 and MUST-64: a segment whose timestamps stand elsewhere than most senders put them is as good.
#[test]
fn timestamps_that_begin_on_no_word_are_believed() {
    for (layout, taken) in [("nop nop ts", true), ("nop ts nop", true), ("ts eol", true), ("none", false)] {
        let mut tcp = endpoint(Options::default());
        tcp.listen(2049).unwrap();
        let (peer, to): (IpAddr, IpAddr) = ([10, 0, 0, 1].into(), [10, 0, 0, 2].into());
        let (id, ack) = accept(&mut tcp, peer, to);
        let text = encode(peer, to, &ack, b"text");
        let stamps = &text[22..32];
        let options = match layout {
            "nop nop ts" => [&[1, 1], stamps].concat(),
            "nop ts nop" => [&[1], stamps, &[1]].concat(),
            "ts eol" => [stamps, &[0, 0]].concat(),
            _ => vec![1; 12],
        };
        let mut bytes = [&text[..20], &options, &text[32..]].concat();
        bytes[16..18].fill(0);
        let mut sum = Sum::pseudo_header(peer, to, protocol::TCP, bytes.len());
        sum.add(&bytes);
        bytes[16..18].copy_from_slice(&sum.finish().to_be_bytes());
        tcp.handle_segment(START, peer, to, RxPacket::from_vec(bytes), Checksum::Unknown);
        assert_eq!(tcp.poll_event(), taken.then_some(Event::Readable(id)), "{layout}");
    }
}

/// What is left of a listener that has ended counts among nobody's, not even of the next on its port.
#[test]
fn a_listener_s_queue_ends_with_it() {
    let mut tcp = endpoint(Options { accept_queue_max: 1, ..Options::default() });
    let (from, to) = ("10.0.0.1".parse().unwrap(), "10.0.0.2".parse().unwrap());
    let open = |tcp: &mut Endpoint, port: u16| {
        inject(tcp, START, from, to, &syn(port));
        let syn_ack = sent(tcp, START).into_iter().find(|repr| repr.flags.contains(Flags::SYN)).unwrap();
        let options = TcpOptions { timestamps: syn(port).options.timestamps, ..TcpOptions::default() };
        let ack = Repr { flags: Flags::ACK, seq: syn_ack.ack, ack: syn_ack.seq + 1, options, ..syn(port) };
        inject(tcp, START, from, to, &ack);
    };
    tcp.listen(2049).unwrap();
    open(&mut tcp, 700);
    assert!(tcp.unlisten(2049));
    tcp.listen(2049).unwrap();
    // The first is still in the queue of events, and the new listener's maximum is one.
    open(&mut tcp, 701);
    let accepted = std::iter::from_fn(|| tcp.poll_event()).filter(|event| matches!(event, Event::Accepted { .. })).count();
    assert_eq!(accepted, 2);
    assert_eq!(tcp.counters().listen_overflows, 0);
}

/// A flood of SYNs from everywhere, and honest peers in it: nothing is kept of the flood, everybody honest gets in.
#[test]
fn honest_peers_get_in_during_a_flood() {
    let options = Options { syn_received_max: 8, ..Options::default() };
    let mut tcp = endpoint(options);
    tcp.listen(2049).unwrap();
    let to: IpAddr = [10, 0, 0, 2].into();
    let mut now = START;
    let mut accepted = 0;
    for round in 0..200u32 {
        for n in 0..20u32 {
            let from = IpAddr::from((0x0b00_0000 + round * 64 + n).to_be_bytes());
            inject(&mut tcp, now, from, to, &syn(1_000));
        }
        let from: IpAddr = [10, 0, 1, round as u8].into();
        inject(&mut tcp, now, from, to, &syn(700));
        let answers = turns(&mut tcp, now);
        let answer = answers.into_iter().flatten().find(|repr| repr.dst_port == 700).unwrap();
        let options = TcpOptions {
            timestamps: answer.options.timestamps.map(|ours| Timestamps { value: 2, echo_reply: ours.value }),
            ..TcpOptions::default()
        };
        now += Duration::from_millis(20);
        let ack = Repr { seq: SeqNumber(10), ack: answer.seq + 1, flags: Flags::ACK, options, ..syn(700) };
        inject(&mut tcp, now, from, to, &ack);
        while let Some(event) = tcp.poll_event() {
            if let Event::Accepted { id, .. } = event {
                let info = tcp.info(id).unwrap();
                assert!(info.sack && info.timestamps && info.window_scale.is_some());
                accepted += 1;
            }
        }
        assert!(tcp.connections().count() <= accepted + 8);
        now += Duration::from_millis(20);
        tcp.handle_timeout(now);
    }
    assert_eq!(accepted, 200);
    let counters = tcp.counters();
    assert_eq!((counters.half_open_evicted, counters.syncookies_failed), (0, 0));
    assert!(counters.syncookies_sent > 3_000 && counters.syncookies_recv > 190, "{counters:?}");
}

/// RFC 4987 section 3.6: a SYN that came twice may have been answered by a cookie and then, when there was a place, by a half-open connection.
/// The peer has taken the first answer.
#[test]
fn the_answer_to_a_cookie_counts_also_while_its_syn_has_a_half_open_connection() {
    let mut tcp = endpoint(Options { syn_received_max: 1, ..Options::default() });
    tcp.listen(2049).unwrap();
    let (peer, to): (IpAddr, IpAddr) = ([10, 0, 0, 1].into(), [10, 0, 0, 2].into());
    let plain = |port| Repr { options: TcpOptions { mss: Some(1000), ..TcpOptions::default() }, ..syn(port) };
    let answered = |tcp: &mut Endpoint, repr| {
        inject(tcp, START, peer, to, &repr);
        while tcp.poll_event().is_some_and(|event| !matches!(event, Event::Accepted { .. })) {}
        sent(tcp, START)
    };
    // Another has the only place, and gives it back.
    answered(&mut tcp, plain(700));
    let cookie = answered(&mut tcp, plain(701))[0];
    answered(&mut tcp, Repr { seq: SeqNumber(10), flags: Flags::RST, ..plain(700) });
    let syn_ack = answered(&mut tcp, plain(701))[0];
    assert!(tcp.counters().syncookies_sent == 1 && cookie.seq != syn_ack.seq);
    let ack = |seq, ack| Repr { seq: SeqNumber(seq), ack, flags: Flags::ACK, options: TcpOptions::default(), ..plain(701) };
    // Not even a SYN-ACK of another SYN's, or a guess, is taken for it.
    for (seq, number) in [(11, cookie.seq + 1), (10, cookie.seq + 2)] {
        assert_eq!(answered(&mut tcp, ack(seq, number)).iter().filter(|repr| repr.flags == Flags::RST).count(), 1);
    }
    assert_eq!(tcp.counters().curr_estab, 0);
    assert_eq!(answered(&mut tcp, ack(10, cookie.seq + 1)), []);
    let counters = tcp.counters();
    assert_eq!((counters.curr_estab, counters.curr_connections, counters.syncookies_recv), (1, 1, 1));
    let text = answered(&mut tcp, Repr { flags: Flags::ACK | Flags::FIN, ..ack(10, cookie.seq + 1) })[0];
    assert_eq!((text.seq, text.ack), (cookie.seq + 1, SeqNumber(11)));
}

/// A connection of `peer`'s port 700 with timestamps, and the ACK that completed its handshake.
fn accept(tcp: &mut Endpoint, peer: IpAddr, to: IpAddr) -> (ConnectionId, Repr) {
    inject(tcp, START, peer, to, &syn(700));
    let syn_ack = sent(tcp, START)[0];
    let echo_reply = syn_ack.options.timestamps.unwrap().value;
    let options = TcpOptions { timestamps: Some(Timestamps { value: 2, echo_reply }), ..TcpOptions::default() };
    let ack = Repr { seq: SeqNumber(10), ack: syn_ack.seq + 1, flags: Flags::ACK, options, ..syn(700) };
    inject(tcp, START, peer, to, &ack);
    let Some(Event::Accepted { id, .. }) = tcp.poll_event() else { panic!("not accepted") };
    (id, ack)
}

/// What the peer says next: so much more is acknowledged, at a later time.
fn advance(ack: &mut Repr, bytes: u32, value: u32) {
    ack.ack = ack.ack + bytes;
    ack.options.timestamps = ack.options.timestamps.map(|stamps| Timestamps { value, ..stamps });
}

/// Few of a flood are answered in a turn, whether a connection has something to send in it or not; a new peer gets in at its second SYN.
#[test]
fn few_of_a_flood_are_answered_in_a_turn_and_first_who_comes_again() {
    const FLOOD: u32 = 40;
    let options = Options { syn_received_max: 0, syns_waiting_max: 16, ..Options::default() };
    let mut tcp = endpoint(options);
    tcp.listen(2049).unwrap();
    let (peer, to): (IpAddr, IpAddr) = ([10, 0, 0, 1].into(), [10, 0, 0, 2].into());
    let (id, mut ack) = accept(&mut tcp, peer, to);
    let pool = PagePool::anonymous(1, 4096).unwrap();
    let page = pool.allocate().unwrap().freeze();
    sent(&mut tcp, START);

    let newcomer: IpAddr = [10, 0, 0, 9].into();
    let (mut answered, mut let_in) = (0, Vec::new());
    for turn in 0..200u32 {
        let now = START + Duration::from_millis(u64::from(turn) * 10);
        let works = turn % 2 == 0;
        if works {
            inject(&mut tcp, now, peer, to, &ack);
        }
        for n in 0..FLOOD {
            let from = IpAddr::from((0x0b00_0000 + turn * FLOOD + n).to_be_bytes());
            inject(&mut tcp, now, from, to, &syn(1_000));
        }
        if turn == 50 || turn == 150 {
            inject(&mut tcp, now, newcomer, to, &syn(701));
        }
        while tcp.poll_event().is_some() {}
        if works {
            tcp.send(now, id, &mut vec![page.slice(0..100)]).unwrap();
            advance(&mut ack, 100, 3 + turn);
        }
        let out = sent(&mut tcp, now);
        assert_eq!(
            out.iter().filter(|repr| repr.dst_port == 700).count(),
            usize::from(works),
            "the connection's text is among it"
        );
        answered += out.len() - usize::from(works);
        // Who comes again is answered beside them.
        assert_eq!(out.len(), usize::from(works) + PER_TURN_FLOODED + usize::from(turn == 150), "turn {turn}");
        let_in.extend(out.iter().filter(|repr| repr.dst_port == 701).map(|_| turn));
        assert!(tcp.poll_timeout().is_some_and(|at| at <= now), "some wait for the next turn");
    }
    assert_eq!(let_in, [150], "dropped at first, and answered at once when it came again");
    assert_eq!(answered, 200 * PER_TURN_FLOODED + 1);
    // Once nobody is refused, more; and there is another turn at once until all have their answer.
    let now = START + Duration::from_secs(3);
    let strangers = |turn: Vec<Repr>| turn.iter().filter(|repr| repr.dst_port != 700).count();
    let answers: Vec<usize> = turns(&mut tcp, now).into_iter().map(strangers).collect();
    assert_eq!((answers.iter().max(), answers.iter().sum()), (Some(&PER_TURN), 16 - PER_TURN_FLOODED), "{answers:?}");
    let counters = tcp.counters();
    assert_eq!(counters.syncookies_sent + counters.syn_queue_drops, u64::from(200 * FLOOD) + 3);
}

/// RFC 9293 section 3.5.2 has a segment of no connection reset. A turn resets few, so that a flood of such segments does not take all that it
/// may send; and a connection's own reset stands behind none.
#[test]
fn few_strays_are_reset_in_a_turn_and_the_rest_in_the_next() {
    const STRAYS: u32 = 70;
    const PACKETS_PER_TURN: usize = 64;
    let mut tcp = endpoint(Options::default());
    tcp.listen(2049).unwrap();
    let (peer, to): (IpAddr, IpAddr) = ([10, 0, 0, 1].into(), [10, 0, 0, 2].into());
    let (id, mut ack) = accept(&mut tcp, peer, to);
    let page = PagePool::anonymous(1, 4096).unwrap().allocate().unwrap().freeze();
    sent(&mut tcp, START);

    let stray = Repr { flags: Flags::ACK, options: TcpOptions::default(), ..syn(1_000) };
    let flood = |tcp: &mut Endpoint, now| {
        for n in 0..STRAYS {
            inject(tcp, now, IpAddr::from((0x0b00_0000 + n).to_be_bytes()), to, &stray);
        }
        while tcp.poll_event().is_some() {}
    };
    for turn in 0..20 {
        let now = START + Duration::from_millis(u64::from(turn) * 10);
        inject(&mut tcp, now, peer, to, &ack);
        flood(&mut tcp, now);
        tcp.send(now, id, &mut vec![page.slice(0..100)]).unwrap();
        let mut transmit = Transmit::default();
        let mut out = Vec::new();
        while out.len() < PACKETS_PER_TURN && tcp.poll_transmit(now, &TransmitLimits::default(), &mut transmit) {
            out.push(Repr::parse(transmit.header()).unwrap().0);
        }
        let resets = out.iter().filter(|repr| repr.flags == Flags::RST).count();
        assert_eq!((out.len(), resets), (1 + PER_TURN, PER_TURN), "turn {turn}: the connection's text is among it");
        assert!(tcp.poll_timeout().is_some_and(|at| at <= now), "some wait for the next turn");
        advance(&mut ack, 100, 3 + turn);
    }
    assert!(tcp.counters().replies_dropped > 0, "it is a flood");
    let now = START + Duration::from_millis(200);
    inject(&mut tcp, now, peer, to, &ack);
    flood(&mut tcp, now);
    tcp.abort(now, id);
    // There is another turn at once until all are reset.
    let turns = turns(&mut tcp, now);
    assert_eq!(turns[0][0].dst_port, 700, "before all of those that wait");
    let fits = |turn: &Vec<Repr>, own| turn.len() <= own + PER_TURN;
    assert!(fits(&turns[0], 1) && turns[1..].iter().all(|turn| fits(turn, 0)), "also in turns without other work");
    assert_eq!(turns.concat().len(), 1 + tcp.options().replies_max);
    let counters = tcp.counters();
    assert_eq!(counters.out_rsts + counters.replies_dropped, u64::from(21 * STRAYS) + 1);
}

/// RFC 2883 section 4; RFC 8257 section 3.2. What could not be said is said later, and counted then.
#[test]
fn a_duplicate_that_an_ack_could_not_report_is_reported_by_the_next() {
    let options = Options { replies_max: 0, congestion: CongestionControl::Dctcp, ..Options::default() };
    let mut tcp = endpoint(options);
    tcp.listen(2049).unwrap();
    let (peer, to): (IpAddr, IpAddr) = ([10, 0, 0, 1].into(), [10, 0, 0, 2].into());
    let opening = Repr { flags: Flags::SYN | Flags::ECE | Flags::CWR, ..syn(700) };
    inject(&mut tcp, START, peer, to, &opening);
    let iss = sent(&mut tcp, START)[0].seq;
    let timestamps = |value| TcpOptions { timestamps: Some(Timestamps { value, echo_reply: 0 }), ..TcpOptions::default() };
    let text = |seq: u32| Repr { seq: SeqNumber(10 + seq), ack: iss + 1, flags: Flags::ACK, options: timestamps(2), ..syn(700) };
    let mut arrive = |seq: u32, ecn: u8| {
        let packet = RxPacket::from_vec(encode(peer, to, &text(seq), &[0; 100]));
        tcp.handle_marked_segment(START, peer, to, packet, Checksum::Unknown, ecn);
    };
    // Twice the same, and a mark that wants an ACK of before apart, for which there is no room.
    arrive(0, 2);
    arrive(0, 2);
    arrive(100, 3);
    assert_eq!((tcp.counters().dsack_sent, tcp.counters().replies_dropped), (0, 1));
    let acks = sent(&mut tcp, START);
    assert_eq!(acks.len(), 1);
    assert_eq!(acks[0].options.sack.as_slice(), [(SeqNumber(10), SeqNumber(110))]);
    assert_eq!(tcp.counters().dsack_sent, 1);
}

/// RFC 7323 section 2.4: the field cannot tell every edge, and rounding up each time would move it for ever.
#[test]
fn a_window_that_nobody_reads_closes() {
    const WINDOW: u32 = 16 << 20;
    const TEXT: [u8; 267] = [b'.'; 267];
    let options = Options {
        receive_window_initial: WINDOW,
        receive_window_max: WINDOW,
        receive_buffers_max: 1 << 20,
        driver_buffers_max: 1 << 20,
        ..Options::default()
    };
    let (peer, own) = ([10, 0, 0, 1].into(), [10, 0, 0, 2].into());
    let mut tcp = endpoint(options);
    tcp.listen(2049).unwrap();
    let mut opening = syn(700);
    opening.options.timestamps = None;
    inject(&mut tcp, START, peer, own, &opening);
    let answer = sent(&mut tcp, START)[0];
    let scale = answer.options.window_scale.unwrap();
    assert_eq!(scale, 9);
    let mut segment =
        Repr { seq: SeqNumber(10), ack: answer.seq + 1, flags: Flags::ACK, options: TcpOptions::default(), ..opening };
    inject(&mut tcp, START, peer, own, &segment);
    let (mut edge, granule) = (segment.seq + u32::from(answer.window), 1 << scale);
    while edge.distance(segment.seq) >= TEXT.len() as i32 {
        let packet = RxPacket::from_vec(encode(peer, own, &segment, &TEXT));
        tcp.handle_segment(START, peer, own, packet, Checksum::Unknown);
        segment.seq = segment.seq + TEXT.len() as u32;
        for ack in sent(&mut tcp, START) {
            let told = ack.ack + (u32::from(ack.window) << scale);
            assert!(told.distance(edge) > -granule, "back by {}", edge.distance(told));
            edge = if told.distance(edge) > 0 { told } else { edge };
        }
        assert!(segment.seq.distance(SeqNumber(10)) <= (WINDOW + WINDOW / 8) as i32 + 2 * granule, "it does not close");
    }
}
