//! RFC 5227 section 2.1: an address before it is used, on a virtual clock.

use super::*;
use crate::net::interface::ProbeOptions;

pub(super) fn probing(probe: ProbeOptions, change: impl FnOnce(&mut InterfaceOptions)) -> Bench {
    bench_on(EndOptions::plain(OUR_MAC.0, 1500), |options| {
        options.announcements = 2;
        options.probe = probe;
        change(options);
    })
}

/// When an ARP request left, who it says it is from and what it asks for.
pub(super) fn asked(sent: Vec<(u64, Vec<u8>)>) -> Vec<(u64, Ipv4Addr, Ipv4Addr)> {
    let line = |(at, frame): (u64, Vec<u8>)| {
        let (dst, repr) = parse_arp(&frame);
        assert_eq!((dst, repr.operation, repr.sender_hardware), (Address::BROADCAST, Operation::Request, OUR_MAC));
        assert_eq!(repr.target_hardware, Address::default(), "section 2.1.1: all zeroes");
        (at, repr.sender_protocol, repr.target_protocol)
    };
    sent.into_iter().map(line).collect()
}

pub(super) fn events(bench: &mut Bench) -> Vec<InterfaceEvent> {
    std::iter::from_fn(|| bench.interface.poll_event()).collect()
}

pub(super) fn at(ms: u64) -> Instant {
    Instant::from_millis(ms)
}

const NOBODY: Ipv4Addr = Ipv4Addr::UNSPECIFIED;

#[test]
fn an_address_is_looked_for_then_used_and_announced() {
    let mut bench = probing(ProbeOptions::quick(), |_| {});
    assert!(!bench.interface.is_own(OURS.into()));
    let sent = asked(bench.run(at(60_000)));
    let probes = [0, 150, 300].map(|at| (at, NOBODY, OURS));
    assert_eq!(sent, [&probes[..], &[(450, OURS, OURS), (2_450, OURS, OURS)]].concat());
    assert!(bench.interface.is_own(OURS.into()));
    assert_eq!(events(&mut bench), [InterfaceEvent::AddressAssigned { address: OURS.into() }]);
    assert_eq!((bench.interface.counters().arp_probes, bench.interface.counters().arp_duplicates), (3, 0));
    assert_eq!(bench.interface.poll_timeout(), None);
}

#[test]
fn the_rfcs_own_times() {
    let mut bench = probing(ProbeOptions::rfc5227(), |_| {});
    let sent = asked(bench.run(at(60_000)));
    let times: Vec<u64> = sent.iter().map(|(at, ..)| *at).collect();
    let [first, second, third, announced, again] = times[..] else { panic!("{times:?}") };
    assert!(first < 1_000, "PROBE_WAIT");
    assert!((1_000..=2_000).contains(&(second - first)) && (1_000..=2_000).contains(&(third - second)), "PROBE_MIN, PROBE_MAX");
    assert_eq!((announced - third, again - announced), (2_000, 2_000), "ANNOUNCE_WAIT, ANNOUNCE_INTERVAL");
}

#[test]
fn an_address_that_is_looked_for_takes_nothing_and_says_nothing() {
    let mut bench = probing(ProbeOptions::quick(), |_| {});
    bench.run(at(100));
    bench.receive(arp_frame(Operation::Request, PEER_MAC, PEER, OURS));
    bench.receive(icmp_frame(icmpv4::Repr::EchoRequest { identifier: 1, sequence: 1 }, b""));
    assert_eq!((bench.out().len(), bench.interface.counters().ipv4_not_ours), (0, 1));
    assert_eq!(bench.send(PEER, &[]), Err(SendRefused::NoRoute));
    // Who merely asks for it has not got it.
    bench.run(at(500));
    assert!(bench.interface.is_own(OURS.into()));
}

#[test]
fn an_address_of_another_is_told_and_tried_again_after_a_minute() {
    let claims = [
        arp_frame(Operation::Reply, TWIN_MAC, OURS, NOBODY),
        arp_frame(Operation::Request, TWIN_MAC, OURS, PEER),
        arp_frame(Operation::Request, TWIN_MAC, OURS, OURS),
        // Looked for by another at the same time.
        arp_frame(Operation::Request, TWIN_MAC, NOBODY, OURS),
    ];
    for claim in claims {
        let mut bench = probing(ProbeOptions::quick(), |_| {});
        bench.run(at(400));
        bench.receive(claim.clone());
        bench.receive(claim);
        assert_eq!(bench.run(at(59_000)), []);
        assert!(!bench.interface.is_own(OURS.into()));
        assert_eq!(events(&mut bench), [InterfaceEvent::AddressDuplicate { address: OURS.into(), mac: TWIN_MAC }]);
        let counters = *bench.interface.counters();
        assert_eq!((counters.arp_probes, counters.arp_duplicates, counters.arp_defences), (3, 1, 0));
        // RATE_LIMIT_INTERVAL, and up to a quarter more.
        let sent = asked(bench.run(at(76_000)));
        assert!((60_400..75_500).contains(&sent[0].0), "{sent:?}");
        assert!(bench.interface.is_own(OURS.into()), "the other has gone");
    }
}

#[test]
fn a_flood_of_questions_does_not_crowd_out_our_own() {
    let second = Ipv4Addr::new(10, 1, 0, 1);
    let mut bench = probing(ProbeOptions::quick(), |options| options.addresses.push((second.into(), 24)));
    bench.run(at(100));
    bench.receive(arp_frame(Operation::Reply, TWIN_MAC, second, second));
    bench.run(at(30_000));
    let (mut asked, mut answers) = (Vec::new(), Vec::new());
    while let Some(due) = bench.interface.poll_timeout().filter(|due| *due < at(80_000)) {
        bench.now = due.max(bench.now);
        for _ in 0..100 {
            bench.receive(arp_frame(Operation::Request, PEER_MAC, PEER, OURS));
        }
        bench.interface.handle_timeout(bench.now);
        let said: Vec<_> = bench.out().iter().map(|frame| parse_arp(frame).1).collect();
        answers.push(said.iter().filter(|repr| repr.operation == Operation::Reply).count());
        asked.extend(said.iter().filter(|repr| repr.operation == Operation::Request).map(|repr| repr.target_protocol));
    }
    // Three probes, then the first announcement of both addresses, and the second.
    assert_eq!(asked, [second, second, second, OURS, second, OURS, second]);
    assert!(answers.iter().all(|count| *count == 64), "{answers:?}");
}

#[test]
fn what_is_no_claim_of_ours_is_none() {
    let mut bench = probing(ProbeOptions::quick(), |_| {});
    bench.run(at(100));
    // Our own probe comes back, another address is probed, a reply to somebody who probes.
    bench.receive(arp_with_mac(OUR_MAC));
    bench.receive(arp_frame(Operation::Request, TWIN_MAC, NOBODY, PEER));
    bench.receive(arp_frame(Operation::Reply, TWIN_MAC, NOBODY, OURS));
    bench.run(at(500));
    assert!(bench.interface.is_own(OURS.into()));
}

#[test]
fn one_of_two_addresses_may_be_taken() {
    let second = Ipv4Addr::new(10, 1, 0, 1);
    let mut bench = probing(ProbeOptions::quick(), |options| options.addresses.push((second.into(), 24)));
    bench.run(at(100));
    bench.receive(arp_frame(Operation::Reply, TWIN_MAC, OURS, OURS));
    bench.run(at(1_000));
    assert_eq!(bench.interface.addresses().collect::<Vec<_>>(), [IpAddr::V4(second)]);
    // From here on it is defended.
    bench.receive(arp_frame(Operation::Reply, TWIN_MAC, second, second));
    assert_eq!(asked(bench.run(at(1_100))), [(1_000, second, second)]);
    assert_eq!(bench.interface.counters().arp_defences, 1);
}

/// Two cores of one port: the leader looks, also at what the other receives, and the follower takes over what is free.
#[test]
fn one_core_looks_for_all() {
    let pair = || [false, true].map(|follows| probing(ProbeOptions::quick(), |options| options.ipv6.follows = follows));
    let [mut leader, mut follower] = pair();
    assert_eq!(follower.run(at(10_000)), []);
    assert!(!follower.interface.is_own(OURS.into()));
    leader.run(at(10_000));
    let lead = leader.interface.poll_lead().unwrap();
    assert!(leader.interface.poll_lead().is_none(), "nothing new");
    (0..2).for_each(|_| follower.interface.follow(&lead));
    assert_eq!(follower.interface.addresses().collect::<Vec<_>>(), [IpAddr::V4(OURS)]);
    follower.receive(arp_frame(Operation::Request, PEER_MAC, PEER, OURS));
    assert_eq!(follower.out().len(), 1, "answers who asked it");

    let [mut leader, mut follower] = pair();
    leader.run(at(100));
    let claim = arp_frame(Operation::Reply, TWIN_MAC, OURS, OURS);
    follower.receive(claim.clone());
    let (ip_checksum, l4_checksum) = (Checksum::Unknown, Checksum::Unknown);
    leader.interface.handle_copy(leader.now, RxFrame { packet: RxPacket::from_vec(claim), ip_checksum, l4_checksum });
    leader.run(at(1_000));
    assert_eq!(events(&mut leader), [InterfaceEvent::AddressDuplicate { address: OURS.into(), mac: TWIN_MAC }]);
    assert!(leader.interface.poll_lead().is_none() && !leader.interface.is_own(OURS.into()));
}
