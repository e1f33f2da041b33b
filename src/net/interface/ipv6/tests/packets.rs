//! Packets up and down: the checks of RFC 8200 and 4291, ICMP by RFC 4443, VLANs, what devices are asked to do.

use super::*;
use crate::net::device::{Device, DeviceCapabilities, TxOffload, TxRefused};
use crate::net::udp::UdpRefused;
use proptest::prelude::*;

// ---- up ----

/// What a packet is counted as when it is dropped, and what is said about it.
fn dropped(bench: &mut Bench, frame: Vec<u8>, counter: fn(&Ipv6Counters) -> u64) -> Vec<String> {
    let before = counter(&bench.counters());
    assert!(matches!(bench.receive(frame), Ingress::Consumed));
    assert_eq!(counter(&bench.counters()), before + 1);
    bench.said()
}

#[test]
fn tcp_segments_and_datagrams_go_up() {
    let mut bench = bench();
    match bench.receive(packet(peer(), ours(), protocol::TCP, 64, &tcp_header())) {
        Ingress::Tcp { src, dst, packet, .. } => {
            assert_eq!((src, dst), (peer().into(), ours().into()));
            assert_eq!(&packet.first[..], tcp_header(), "the link's padding is cut off");
        }
        _ => panic!(),
    }
    let frame = packet(peer(), ours(), protocol::UDP, 64, &udp_bytes(peer(), ours(), 111, b"call"));
    match bench.receive(frame) {
        Ingress::Udp(datagram) => {
            assert_eq!((datagram.src, datagram.dst), (SocketAddr::new(peer().into(), 700), SocketAddr::new(ours().into(), 111)));
            assert_eq!(&datagram.packet.first[..], b"call");
        }
        _ => panic!(),
    }
}

#[test]
fn extension_headers_are_skipped_wherever_the_buffers_end() {
    let mut bench = bench();
    let options: Vec<u8> = [protocol::TCP, 11, 1, 90].into_iter().chain([0; 92]).collect();
    let frame = packet(peer(), ours(), 60, 64, &[&options[..], &tcp_header()].concat());
    for cut in [frame.len(), 138, 160] {
        let mut packet = RxPacket::from_vec(frame[..cut].to_vec());
        if cut < frame.len() {
            packet.more.push(crate::buf::RxBuf::from_vec(frame[cut..].to_vec()));
        }
        let frame = RxFrame { packet, ip_checksum: Checksum::Unknown, l4_checksum: Checksum::Unknown };
        match bench.interface.handle_frame(bench.now, frame) {
            Ingress::Tcp { packet, .. } if cut >= 150 => assert_eq!(&packet.first[..20], tcp_header()),
            // The chain itself must lie in the contiguous front.
            Ingress::Consumed if cut < 150 => assert_eq!(bench.counters().bad_chain, 1),
            _ => panic!("cut at {cut}"),
        }
    }
}

/// RFC 9293 section 3.9.1, MUST-49.
#[test]
fn packets_leave_with_the_hop_limit_that_is_set() {
    let mut bench = bench_with(|options| options.time_to_live = 7);
    bench.introduce();
    bench.out();
    bench.send(peer(), &[]).unwrap();
    assert_eq!(bench.out().remove(0)[ethernet::HEADER_LEN + 7], 7);
}

/// RFC 8200 section 5: what a node that learns no path's MTU restricts itself to.
#[test]
fn a_datagram_fits_every_path_whatever_the_link_takes() {
    for mtu in [1280, 1500, 9000] {
        let mut bench = bench_at(EndOptions::plain(OUR_MAC.0, mtu), |_| {});
        bench.introduce();
        bench.out();
        let [from, to] = [ours(), peer()].map(|address| SocketAddr::new(address.into(), 111));
        let mut send =
            |octets: usize| bench.interface.send_udp(bench.now, &mut bench.device, from, to, &[slice(&vec![0; octets])]);
        assert_eq!(send(1232), Ok(()), "{mtu}");
        assert_eq!(send(1233), Err(UdpRefused::TooLong { octets: 1233, octets_max: 1232 }), "{mtu}");
        assert_eq!(bench.interface.counters().udp_too_long, 1);
        let sent: Vec<usize> = bench.out().iter().map(|frame| frame.len() - ethernet::HEADER_LEN).collect();
        assert_eq!(sent, [1280], "{mtu}");
    }
}

#[test]
fn packets_that_go_no_further() {
    let mut bench = bench();
    let tcp = |src: &str, dst: &str| packet(ip(src), ip(dst), protocol::TCP, 64, &tcp_header());
    for (src, dst) in [
        ("::1", "2001:db8::1"),
        ("ff02::1", "2001:db8::1"),
        ("::", "2001:db8::1"),
        ("2001:db8::1", "2001:db8::1"),
        ("::ffff:10.0.0.1", "2001:db8::1"),
    ] {
        assert!(dropped(&mut bench, tcp(src, dst), |c| c.martian_source).is_empty(), "{src}");
    }
    dropped(&mut bench, tcp("2001:db8::2", "2001:db8::7"), |c| c.not_ours);
    dropped(&mut bench, tcp("2001:db8::2", "ff02::1:ff00:7"), |c| c.multicast);
    dropped(&mut bench, tcp("2001:db8::2", "ff02::1"), |c| c.multicast);
    let unicast_in_group = frame_to(ipv6::multicast_mac(ipv6::ALL_NODES), PEER_MAC, &tcp("2001:db8::2", "2001:db8::1")[14..]);
    dropped(&mut bench, unicast_in_group, |c| c.link_broadcast);
    dropped(&mut bench, packet(peer(), ours(), 59, 64, &[0; 8]), |c| c.no_next_header);
    dropped(&mut bench, packet(peer(), ours(), 44, 64, &[6, 0, 0, 1, 0, 0, 0, 1, 0, 0]), |c| c.fragments);
    dropped(&mut bench, packet(peer(), ours(), 60, 64, &[6, 0, 0x41, 4, 0, 0, 0, 0]), |c| c.discarded_by_option);
    dropped(&mut bench, packet(peer(), ours(), 60, 64, &[6, 9, 1, 4, 0, 0, 0, 0]), |c| c.bad_chain);
    dropped(&mut bench, packet(peer(), ours(), 60, 64, &[60, 0, 1, 4, 0, 0, 0, 0].repeat(20)), |c| c.chain_too_long);
    let mut short = packet(peer(), ours(), protocol::TCP, 64, &[0; 100]);
    short.truncate(100);
    dropped(&mut bench, short, |c| c.malformed);
    let mut frame = packet(peer(), ours(), protocol::UDP, 64, &udp_bytes(peer(), ours(), 111, b"call"));
    frame[14 + 40 + 6..14 + 40 + 8].fill(0);
    dropped(&mut bench, frame, |c| c.udp_bad_checksum);
}

#[test]
fn an_interface_without_ipv6_counts_it() {
    let mut bench =
        bench_on(EndOptions::plain(OUR_MAC.0, 1500), |options| options.addresses = vec![("10.0.0.1".parse().unwrap(), 24)]);
    bench.receive(packet(peer(), ours(), protocol::TCP, 64, &tcp_header()));
    assert_eq!(bench.interface.counters().ethernet_ipv6, 1);
    assert!(bench.interface.ipv6_counters().is_none());
    assert_eq!(bench.send(peer(), &[]), Err(SendRefused::NoRoute));
}

// ---- ICMP ----

#[test]
fn an_echo_is_answered_from_the_address_that_was_asked() {
    let mut bench = bench();
    bench.introduce();
    let request = icmpv6::Repr::EchoRequest { identifier: 7, sequence: 1 };
    bench.receive(icmp(peer(), ours(), request, &[1; 1200]));
    let reply = "EchoReply { identifier: 7, sequence: 1 } 2001:db8::1 > 2001:db8::2 via 02:00:00:00:00:02, 1200 bytes";
    assert_eq!(bench.said(), [reply]);
    // A group was asked: from one of ours (RFC 4443 section 4.2).
    bench.receive(icmp(peer(), ipv6::ALL_NODES, request, b""));
    assert_eq!(bench.said().len(), 1);
    let mut bad = icmp(peer(), ours(), request, b"x");
    bad[60] ^= 1;
    dropped(&mut bench, bad, |c| c.icmp_bad_checksum);
}

#[test]
fn errors_are_told_with_as_much_of_the_packet_as_fits_the_least_mtu() {
    let mut bench = bench();
    bench.introduce();
    let payload = vec![7; 1_400];
    let told = |kind: &str, bytes: usize| format!("{kind} 2001:db8::1 > 2001:db8::2 via 02:00:00:00:00:02, {bytes} bytes");
    let unknown = packet(peer(), ours(), 132, 64, &payload);
    assert_eq!(
        dropped(&mut bench, unknown, |c| c.unknown_protocol),
        [told("ParameterProblem { code: 1, pointer: 6 }", 1280 - 48)],
        "RFC 4443 sections 3.4 and 2.4(c)"
    );
    let option = packet(peer(), ours(), 60, 64, &[6, 0, 1, 0, 0x80, 2, 0, 0]);
    assert_eq!(dropped(&mut bench, option, |c| c.parameter_problems), [told("ParameterProblem { code: 2, pointer: 44 }", 48)]);
    let route = packet(peer(), ours(), 43, 64, &[6, 0, 0, 1, 0, 0, 0, 0]);
    assert_eq!(dropped(&mut bench, route, |c| c.parameter_problems), [told("ParameterProblem { code: 0, pointer: 42 }", 48)]);
    let Ingress::Udp(datagram) = bench.receive(packet(peer(), ours(), protocol::UDP, 64, &udp_bytes(peer(), ours(), 9, b"?")))
    else {
        panic!()
    };
    bench.interface.udp_unreachable(bench.now, datagram);
    assert_eq!(bench.said(), [told("DestinationUnreachable { code: 4 }", 49)]);
}

#[test]
fn who_must_not_hear_errors_does_not() {
    // RFC 4443 section 2.4(e).
    let mut bench = bench();
    bench.introduce();
    let group = ipv6::ALL_NODES;
    let silent = |bench: &mut Bench, frame: Vec<u8>, counter: fn(&Ipv6Counters) -> u64| {
        let forbidden = bench.counters().icmp_errors_forbidden;
        assert!(dropped(bench, frame, counter).is_empty());
        assert_eq!(bench.counters().icmp_errors_forbidden, forbidden + 1);
    };
    silent(&mut bench, packet(peer(), group, 132, 64, &[0; 8]), |c| c.unknown_protocol);
    silent(&mut bench, packet(peer(), group, 60, 64, &[6, 0, 0xc1, 4, 0, 0, 0, 0]), |c| c.parameter_problems);
    assert!(dropped(&mut bench, packet(Ipv6Addr::UNSPECIFIED, group, 132, 64, &[0; 8]), |c| c.martian_source).is_empty());
    // (e.3): the exception, which the option asks for.
    let asks = packet(peer(), group, 60, 64, &[6, 0, 0x81, 4, 0, 0, 0, 0]);
    assert_eq!(dropped(&mut bench, asks, |c| c.parameter_problems).len(), 1);
    // (e.1): an error inside a packet whose hop-by-hop options are in the wrong place.
    let error = icmpv6::Repr::TimeExceeded { code: 0 }.emit(peer(), ours(), &[]);
    let frame = packet(peer(), ours(), protocol::ICMPV6, 64, &error);
    dropped(&mut bench, frame, |c| c.icmp_bad_quote);
}

#[test]
fn errors_are_limited() {
    let mut bench = bench_with(|options| (options.icmp_errors_per_second, options.icmp_errors_burst) = (1, 3));
    bench.introduce();
    for _ in 0..10 {
        bench.receive(packet(peer(), ours(), 132, 64, &[0; 8]));
    }
    assert_eq!((bench.out().len(), bench.counters().icmp_errors_limited), (3, 7));
}

/// An error about a TCP segment from us to the peer.
fn error_about(src: Ipv6Addr, repr: icmpv6::Repr) -> Vec<u8> {
    let header =
        ipv6::Repr { src, dst: peer(), next_header: 6, traffic_class: 0, flow_label: 0, hop_limit: 1, payload_len: 1_460 };
    let quote = [&header.emit()[..], &tcp_header()].concat();
    icmp(router(), ours(), repr, &quote)
}

/// RFC 4443 section 2.4 (e.1), (e.2): also if the error stands behind the option that is complained about.
#[test]
fn no_error_is_told_about_an_error_behind_a_bad_option() {
    let bad_option = |next| [next, 0, 0xff, 4, 0, 0, 0, 0];
    let answers = |kind: u8, headers: usize| {
        let mut bench = bench();
        bench.introduce();
        let mut payload = Vec::new();
        (1..headers).for_each(|_| payload.extend(bad_option(60)));
        payload.extend(bad_option(protocol::ICMPV6));
        payload.extend([kind, 0, 0, 0, 0, 0, 0, 0]);
        bench.receive(packet(peer(), ours(), 60, 64, &payload));
        assert_eq!(bench.counters().parameter_problems, 1);
        let answers = bench.out().len();
        assert_eq!(bench.counters().icmp_errors_forbidden, 1 - answers as u64);
        answers
    };
    assert_eq!((answers(1, 1), answers(4, 3), answers(137, 1)), (0, 0, 0));
    assert_eq!((answers(128, 1), answers(128, 8)), (1, 1), "an echo request is none");
    assert_eq!(answers(128, 9), 0, "too far behind to be told");
}

/// RFC 8201 section 4.
#[test]
fn a_report_of_an_mtu_that_no_link_has_is_discarded() {
    let mut bench = bench();
    for mtu in [0, 68, 1279] {
        assert!(matches!(bench.receive(error_about(ours(), icmpv6::Repr::PacketTooBig { mtu })), Ingress::Consumed), "{mtu}");
    }
    assert_eq!((bench.counters().icmp_bad_mtu, bench.counters().icmp_errors_in), (3, 0));
}

#[test]
fn errors_about_our_packets_go_up_in_the_terms_of_both_families() {
    let mut bench = bench();
    let mut kind = |repr| match bench.receive(error_about(ours(), repr)) {
        Ingress::IcmpError(error) => {
            assert_eq!((error.local, error.remote), (SocketAddr::new(ours().into(), 2049), SocketAddr::new(peer().into(), 700)));
            assert_eq!((error.protocol, error.tcp_sequence, error.reporter), (protocol::TCP, 1000, router().into()));
            error.kind
        }
        _ => panic!("{repr:?}"),
    };
    use icmpv6::Repr::*;
    assert_eq!(kind(PacketTooBig { mtu: 1400 }), IcmpErrorKind::FragmentationNeeded { mtu: 1400 });
    assert_eq!(kind(PacketTooBig { mtu: 1280 }), IcmpErrorKind::FragmentationNeeded { mtu: 1280 });
    assert_eq!(kind(PacketTooBig { mtu: 70_000 }), IcmpErrorKind::FragmentationNeeded { mtu: u16::MAX });
    for (code, v4) in [(0, icmpv4::unreachable::HOST), (1, 10), (3, 1), (4, icmpv4::unreachable::PORT)] {
        assert_eq!(kind(DestinationUnreachable { code }), IcmpErrorKind::Unreachable { code: v4 });
    }
    assert_eq!(
        kind(ParameterProblem { code: 1, pointer: 6 }),
        IcmpErrorKind::Unreachable { code: icmpv4::unreachable::PROTOCOL }
    );
    assert_eq!(kind(ParameterProblem { code: 0, pointer: 6 }), IcmpErrorKind::ParameterProblem);
    assert_eq!(kind(TimeExceeded { code: 0 }), IcmpErrorKind::TimeExceeded);
    dropped(&mut bench, error_about(ip("2001:db8::7"), TimeExceeded { code: 0 }), |c| c.icmp_bad_quote);
}

// ---- down ----

#[test]
fn every_kind_of_device_gets_what_it_asks_for() {
    for end in [EndOptions::plain(OUR_MAC.0, 1500), EndOptions::offloading(OUR_MAC.0, 1500)] {
        for vlan in [None, Some(7)] {
            let mut bench = bench_at(end, |_| {});
            bench.introduce();
            bench.interface.options.vlan = vlan;
            bench.send(peer(), &[slice(&[5; 701])]).unwrap();
            let header = udp::Repr { src_port: 111, dst_port: 700, payload_len: 3, checksum: 0 }.emit();
            let payload = [slice(b"abc")];
            let datagram = OutgoingPacket { protocol: protocol::UDP, ..outgoing(peer(), &header, &payload) };
            bench.interface.send(bench.now, &mut bench.device, &datagram).unwrap();
            // `tell` verifies the checksums.
            let frames = bench.out();
            assert_eq!(Frame::new(&frames[0]).unwrap().vlan(), vlan);
            let told: Vec<String> = frames.iter().map(|frame| tell(frame)).collect();
            let way = "2001:db8::1 > 2001:db8::2 via 02:00:00:00:00:02";
            assert_eq!(told, [format!("protocol 6 {way}, 721 bytes"), format!("protocol 17 {way}, 11 bytes")]);
        }
    }
}

#[test]
fn a_device_that_cuts_ipv6_gets_chains_and_one_that_does_not_refuses_them() {
    let header = tcp_header();
    let payload = [slice(&(0..4_000u32).map(|n| n as u8).collect::<Vec<_>>())];
    let mut bench = bench_at(EndOptions::offloading(OUR_MAC.0, 1500), |_| {});
    bench.introduce();
    let chain = OutgoingPacket { tso_mss: Some(1440), ..outgoing(peer(), &header, &payload) };
    bench.interface.send(bench.now, &mut bench.device, &chain).unwrap();
    let frames = bench.out();
    let told: Vec<String> = frames.iter().map(|frame| tell(frame)).collect();
    assert_eq!(
        told.iter().map(|line| line.rsplit(", ").next().unwrap()).collect::<Vec<_>>(),
        ["1460 bytes", "1460 bytes", "1140 bytes"]
    );
    let too_long = OutgoingPacket { tso_mss: Some(1441), ..chain };
    assert_eq!(bench.interface.send(bench.now, &mut bench.device, &too_long), Err(SendRefused::TooLong));
    bench.device.capabilities_mut().tso_ipv6 = false;
    assert_eq!(bench.interface.send(bench.now, &mut bench.device, &chain), Err(SendRefused::TooLong));
}

/// Takes what it is given, and nothing by reference.
struct Taker {
    capabilities: DeviceCapabilities,
    taken: Vec<Slice>,
}

impl Device for Taker {
    fn capabilities(&self) -> &DeviceCapabilities {
        &self.capabilities
    }

    fn receive(&mut self, _: &mut Vec<RxFrame>) -> usize {
        0
    }

    fn transmit(&mut self, _: &[u8], _: &[Slice], _: &TxOffload) -> Result<(), TxRefused> {
        panic!("references were counted on the way");
    }

    fn transmit_taking(&mut self, _: &[u8], payload: &mut Vec<Slice>, _: &TxOffload) -> Result<(), TxRefused> {
        self.taken.append(payload);
        Ok(())
    }

    fn flush(&mut self) -> usize {
        0
    }
}

#[test]
fn what_a_device_takes_reaches_it_without_another_reference() {
    let mut bench = bench_at(EndOptions::offloading(OUR_MAC.0, 1500), |_| {});
    bench.introduce();
    let mut device = Taker { capabilities: *bench.device.capabilities(), taken: Vec::new() };
    let header = tcp_header();
    let packet = outgoing(peer(), &header, &[]);
    let mut payload = vec![slice(&[5; 700])];
    bench.interface.send_taking(bench.now, &mut device, &packet, &mut payload, 700).unwrap();
    assert!(payload.is_empty());
    assert!(device.taken.len() == 1 && device.taken[0].is_unique());
}

#[test]
fn what_cannot_be_sent_is_refused() {
    let mut bench = bench();
    bench.introduce();
    assert_eq!(bench.send(peer(), &[slice(&[0; 1_440])]), Ok(()));
    assert_eq!(bench.send(peer(), &[slice(&[0; 1_441])]), Err(SendRefused::TooLong));
    for dst in ["2001:db9::1", "ff02::1", "::", "2001:db8::1", "::1"] {
        assert_eq!(bench.send(ip(dst), &[]), Err(SendRefused::NoRoute), "{dst}");
    }
    let header = tcp_header();
    let foreign = OutgoingPacket { src: ip("2001:db8::7").into(), ..outgoing(peer(), &header, &[]) };
    assert_eq!(bench.interface.send(bench.now, &mut bench.device, &foreign), Err(SendRefused::NoRoute));
    let mixed = OutgoingPacket { src: "10.0.0.1".parse().unwrap(), ..foreign };
    assert_eq!(bench.interface.send(bench.now, &mut bench.device, &mixed), Err(SendRefused::NoRoute));
}

#[test]
fn a_full_device_keeps_own_packets_for_later() {
    let mut end = EndOptions::plain(OUR_MAC.0, 1500);
    end.ring_frames = 1;
    let mut bench = bench_at(end, |_| {});
    for last in 2..5 {
        let src = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, last);
        bench.receive(solicitation(src, ipv6::solicited_node(ours()), ours(), Some(PEER_MAC)));
    }
    let counts: Vec<usize> = (0..4).map(|_| bench.out().len()).collect();
    assert_eq!(counts, [1, 1, 1, 0]);
}

// ---- VLAN ----

#[test]
fn a_port_in_a_vlan_hears_and_speaks_only_there() {
    let tagged = |vlan: u16| {
        let frame = solicitation(peer(), ipv6::solicited_node(ours()), ours(), Some(PEER_MAC));
        let repr = ethernet::Repr::parse(&Frame::new(&frame).unwrap());
        [&repr.emit_tagged(vlan)[..], &frame[14..]].concat()
    };
    let untagged = solicitation(peer(), ipv6::solicited_node(ours()), ours(), Some(PEER_MAC));
    let mut bench = bench_with(|options| options.vlan = Some(42));
    bench.receive(tagged(42));
    let answer = bench.out().remove(0);
    assert_eq!(Frame::new(&answer).unwrap().vlan(), Some(42));
    for other in [tagged(43), tagged(0), untagged.clone()] {
        bench.receive(other);
    }
    assert_eq!((bench.out().len(), bench.interface.counters().ethernet_other_vlan), (0, 3));
    // Without a VLAN: no tag, or one that carries only a priority.
    let mut bench = self::bench();
    for (frame, answers) in [(tagged(42), 0), (tagged(0), 1), (untagged, 1)] {
        bench.receive(frame);
        assert_eq!(bench.out().len(), answers);
    }
    assert_eq!(bench.interface.counters().ethernet_other_vlan, 1);
}

proptest! {
    #[test]
    fn random_packets_never_panic(
        bytes in prop::collection::vec(any::<u8>(), 0..200), kind in 0usize..9, keep in 0usize..120, slaac: bool, cut in 0usize..200,
    ) {
        let mut bench = bench_with(|options| options.ipv6.slaac = slaac);
        // Steer most of them past the first checks: the front is a good packet's, the rest is random.
        let good = match kind {
            0 => packet(peer(), ours(), protocol::TCP, 64, &tcp_header()),
            1 => packet(peer(), ours(), protocol::UDP, 64, &udp_bytes(peer(), ours(), 111, b"")),
            2 => icmp(peer(), ours(), icmpv6::Repr::EchoRequest { identifier: 1, sequence: 1 }, b""),
            3 => error_about(ours(), icmpv6::Repr::PacketTooBig { mtu: 1280 }),
            4 => solicitation(peer(), ipv6::solicited_node(ours()), ours(), Some(PEER_MAC)),
            5 => advertisement(peer(), Some(PEER_MAC), true),
            6 => router_says(|said| said.prefixes.push(prefix("2001:db8:1::", 100, 50))),
            7 => packet(peer(), ours(), 60, 64, &[0; 64]),
            _ => packet(router(), ipv6::ALL_NODES, 0, 1, &ipv6::router_alert_header(58)),
        };
        let mut frame = [&good[..keep.min(good.len())], &bytes].concat();
        // A good checksum where it is ICMP, so that random bytes get through to the parsers behind it.
        if frame.len() > 58 && frame[20] == 58 {
            let (src, dst): ([u8; 16], [u8; 16]) = (frame[22..38].try_into().unwrap(), frame[38..54].try_into().unwrap());
            let len = (frame.len() - 54) as u16;
            frame[18..20].copy_from_slice(&len.to_be_bytes());
            icmpv6::fill_checksum(src.into(), dst.into(), &mut frame[54..]);
        }
        let mut packet = RxPacket::from_vec(frame[..cut.min(frame.len())].to_vec());
        if cut < frame.len() {
            packet.more.push(crate::buf::RxBuf::from_vec(frame[cut..].to_vec()));
        }
        let frame = RxFrame { packet, ip_checksum: Checksum::Good, l4_checksum: Checksum::Good };
        if let Ingress::Udp(datagram) = bench.interface.handle_frame(bench.now, frame) {
            bench.interface.udp_unreachable(bench.now, datagram);
        }
        bench.out();
        bench.interface.handle_timeout(bench.now + Duration::from_secs(100));
        bench.out();
    }
}
