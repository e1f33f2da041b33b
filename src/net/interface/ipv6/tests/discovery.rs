//! Duplicate detection, neighbours, routers, prefixes, groups: RFC 4861, 4862, 7217, 7559, 3810.

use super::*;

fn slaac(options: &mut InterfaceOptions) {
    options.ipv6.slaac = true;
    options.ipv6.secret = [7; 16];
    options.ipv6.interface_name = "0000:03:00.0".to_owned();
}

// ---- RFC 4862 section 5.4: duplicate address detection ----

#[test]
fn an_address_is_looked_for_before_it_is_used() {
    let mut bench = bench_on(EndOptions::plain(OUR_MAC.0, 1500), |_| {});
    assert!(!bench.interface.is_own(ours().into()));
    let said = bench.run(10_000);
    let about = |line: &&(u64, String)| line.1.contains("2001:db8::1");
    let [(asked, question), (told, first), (_, again)] = &said.iter().filter(about).collect::<Vec<_>>()[..] else {
        panic!("{said:?}")
    };
    assert_eq!(question, "who has 2001:db8::1, :: > ff02::1:ff00:1 via 33:33:ff:00:00:01, tells no address");
    assert!(*asked <= 1_000, "within MAX_RTR_SOLICITATION_DELAY");
    assert_eq!(told - asked, 1_000, "RetransTimer later it is assigned and announced");
    assert_eq!(first, "2001:db8::1 is here, 2001:db8::1 > ff02::1 via 33:33:00:00:00:01");
    assert_eq!(again, first, "RFC 4861 section 7.2.6: more than once");
    assert!(bench.events().contains(&InterfaceEvent::AddressAssigned { address: ours().into() }));
}

/// RFC 4862 section 5.4 on a link that comes up late, and RFC 4861 section 6.3.7.
#[test]
fn nothing_is_said_before_the_link_is_up() {
    let mut bench = bench_on(EndOptions::plain(OUR_MAC.0, 1500), slaac);
    bench.interface.observe_link(bench.now, Some(false));
    bench.interface.handle_timeout(Instant::from_millis(20_000));
    bench.now = Instant::from_millis(20_000);
    assert_eq!(bench.out(), Vec::<Vec<u8>>::new());
    assert_eq!(bench.run(60_000), []);
    assert_eq!(bench.interface.poll_timeout(), None, "nothing to wake up for");
    bench.interface.observe_link(bench.now, Some(true));
    let said = bench.run(70_000);
    let times = |what: &str| -> Vec<u64> { said.iter().filter(|(_, line)| line.starts_with(what)).map(|(at, _)| *at).collect() };
    assert_eq!(times("who has").len(), 2, "both addresses: {said:?}");
    assert_eq!(times("2001:db8::1 is here").len(), 2, "{said:?}");
    assert!(bench.interface.is_own(ours().into()));
    assert!(bench.counters().router_solicitations_out >= 1 && said[0].0 >= 60_000, "{said:?}");
}

#[test]
fn addresses_outlive_a_link_that_comes_back_and_are_announced_again() {
    let mut bench = bench_on(EndOptions::plain(OUR_MAC.0, 1500), slaac);
    bench.run(10_000);
    bench.receive(router_says(|said| said.prefixes.push(prefix("2001:db8:1::", 3_600, 600))));
    bench.run(20_000);
    let (addresses, solicitations) = (bench.addresses(), bench.counters().router_solicitations_out);
    assert_eq!(addresses.len(), 3);
    bench.interface.observe_link(bench.now, Some(false));
    assert_eq!(bench.addresses(), addresses);
    assert_eq!(bench.run(25_000), []);
    bench.interface.observe_link(bench.now, Some(true));
    assert_eq!(bench.addresses(), addresses, "no connection is cut");
    let asked = bench.said();
    for address in &addresses {
        assert!(asked.iter().any(|line| line.starts_with(&format!("who has {address}, :: >"))), "{address}: {asked:?}");
    }
    bench.introduce();
    assert_eq!(bench.send(peer(), &[]), Ok(()));
    bench.events();
    let said = bench.run(40_000);
    for address in &addresses {
        let announced = said.iter().filter(|(_, line)| line.starts_with(&format!("{address} is here"))).count();
        assert!(announced >= 1, "{address}: {said:?}");
    }
    assert!(bench.counters().router_solicitations_out > solicitations, "this may be another link");
    assert_eq!(bench.events(), [], "nothing was lost");
}

#[test]
fn an_address_that_another_had_on_the_old_link_is_looked_for_on_the_new_one() {
    let mut bench = bench_on(EndOptions::plain(OUR_MAC.0, 1500), |_| {});
    bench.run(900);
    bench.receive(advertisement(ours(), Some(PEER_MAC), false));
    bench.run(5_000);
    bench.interface.observe_link(bench.now, Some(false));
    bench.interface.observe_link(bench.now, Some(true));
    bench.run(8_000);
    assert!(bench.interface.is_own(ours().into()));
}

#[test]
fn a_tentative_address_takes_no_packet_and_answers_nobody() {
    let mut bench = bench_on(EndOptions::plain(OUR_MAC.0, 1500), |_| {});
    bench.receive(icmp(peer(), ours(), icmpv6::Repr::EchoRequest { identifier: 1, sequence: 1 }, b""));
    // RFC 4862 section 5.4.3: a question from an address is somebody who wants to speak, not a duplicate.
    bench.receive(solicitation(peer(), ipv6::solicited_node(ours()), ours(), Some(PEER_MAC)));
    assert_eq!((bench.counters().not_ours, bench.counters().nd_other_in, bench.counters().duplicates), (1, 1, 0));
    assert!(!bench.said().iter().any(|line| line.contains("is here") || line.contains("Echo")));
    assert_eq!(bench.send(peer(), &[]), Err(SendRefused::NoRoute));
    bench.run(5_000);
    assert!(bench.interface.is_own(ours().into()));
}

#[test]
fn an_answer_or_the_same_question_of_another_means_that_it_is_taken() {
    let question = solicitation(Ipv6Addr::UNSPECIFIED, ipv6::solicited_node(ours()), ours(), None);
    for frame in [advertisement(ours(), Some(PEER_MAC), false), question] {
        let mut bench = bench_on(EndOptions::plain(OUR_MAC.0, 1500), |_| {});
        bench.run(900);
        bench.receive(frame);
        assert_eq!(bench.events(), [InterfaceEvent::AddressDuplicate { address: ours().into(), mac: PEER_MAC }]);
        bench.run(59_000);
        assert!(!bench.interface.is_own(ours().into()));
        assert_eq!(bench.counters().addresses_unassigned, 1);
        // It is tried again after a minute, and the other has gone.
        bench.run(63_000);
        assert!(bench.interface.is_own(ours().into()));
    }
}

#[test]
fn a_duplicate_made_from_the_key_is_answered_with_the_next_identifier_three_times() {
    let mut bench = bench_on(EndOptions::plain(OUR_MAC.0, 1500), slaac);
    let mut tried = Vec::new();
    for round in 0..4 {
        let said = bench.run(1_000 + 1_500 * round);
        let asked = said.iter().rev().find_map(|(_, line)| line.strip_prefix("who has fe80").map(str::to_owned)).unwrap();
        let target = ip(&format!("fe80{}", asked.split(',').next().unwrap()));
        tried.push(target);
        let repr =
            ndp::Repr::NeighbourAdvertisement { target, router: false, solicited: false, replace: true, link: Some(PEER_MAC) };
        bench.receive(discovery(target, ipv6::ALL_NODES, &repr));
    }
    tried.dedup();
    assert_eq!(tried.len(), 4, "RFC 7217 section 6: IDGEN_RETRIES");
    assert!(bench.run(100_000).iter().all(|(_, line)| !line.contains("fe80")), "and then no more");
    assert_eq!(bench.counters().duplicates, 4);
}

#[test]
fn another_station_with_our_address_is_told_and_talked_down() {
    let mut bench = bench();
    bench.receive(advertisement(ours(), Some(PEER_MAC), false));
    bench.receive(advertisement(ours(), Some(PEER_MAC), false));
    assert_eq!(bench.events(), [InterfaceEvent::AddressConflict { address: ours().into(), mac: PEER_MAC }]);
    assert_eq!(bench.counters().conflicts, 2);
    // It asks from it, too: it is not answered, nor believed.
    bench.receive(solicitation(ours(), ipv6::solicited_node(peer()), peer(), Some(PEER_MAC)));
    bench.receive(solicitation(ours(), ipv6::solicited_node(ours()), ours(), Some(PEER_MAC)));
    assert_eq!((bench.counters().conflicts, bench.interface.neighbour(ours().into())), (3, None));
    assert_eq!(bench.run(3_000).len(), 1, "one advertisement of our own");
    assert!(bench.interface.is_own(ours().into()));
}

#[test]
fn a_flood_of_questions_does_not_crowd_out_our_own() {
    let mut bench = bench_on(EndOptions::plain(OUR_MAC.0, 1500), slaac);
    bench.run(10_000);
    bench.receive(router_says(|said| said.prefixes.push(prefix("2001:db8:1::", 86_400, 14_400))));
    let (mut said, mut answered) = (Vec::new(), 0);
    while let Some(at) = bench.interface.poll_timeout().filter(|at| at.millis() <= 15_000) {
        bench.now = at.max(bench.now);
        for _ in 0..100 {
            bench.receive(solicitation(peer(), ipv6::solicited_node(ours()), ours(), Some(PEER_MAC)));
        }
        bench.interface.handle_timeout(bench.now);
        said.extend(bench.said());
        answered += 64;
    }
    let times = |text: &str| said.iter().filter(|line| line.contains(text)).count();
    assert_eq!((times("who has 2001:db8:1:"), times("is here, 2001:db8:1:")), (1, 2), "looked for, then announced twice");
    assert_eq!(times("(solicited)"), answered, "and as many answers as may wait");
}

// ---- RFC 4861 section 7: neighbours ----

#[test]
fn questions_are_answered_to_who_asks() {
    let mut bench = bench();
    bench.receive(solicitation(peer(), ipv6::solicited_node(ours()), ours(), Some(PEER_MAC)));
    assert_eq!(bench.said(), ["2001:db8::1 is here (solicited), 2001:db8::1 > 2001:db8::2 via 02:00:00:00:00:02"]);
    assert_eq!(bench.interface.neighbour(peer().into()), Some(PEER_MAC), "and learned from");
    bench.receive(solicitation(ip("2001:db8::3"), ours(), ours(), None));
    assert_eq!(bench.said(), ["2001:db8::1 is here (solicited), 2001:db8::1 > 2001:db8::3 via 02:00:00:00:00:02"]);
    assert_eq!(bench.interface.neighbour(ip("2001:db8::3").into()), None, "told no address");
    // Somebody looks for duplicates.
    bench.receive(solicitation(Ipv6Addr::UNSPECIFIED, ipv6::solicited_node(ours()), ours(), None));
    assert_eq!(bench.said(), ["2001:db8::1 is here, 2001:db8::1 > ff02::1 via 33:33:00:00:00:01"]);
    bench.receive(solicitation(peer(), ipv6::solicited_node(ours()), ip("2001:db8::77:0:1"), Some(PEER_MAC)));
    assert_eq!((bench.said().len(), bench.counters().nd_other_in), (0, 1), "the same group, another address");
}

#[test]
fn discovery_that_must_be_discarded() {
    let mut bench = bench();
    let mut refused = |frame: Vec<u8>, counter: fn(&Ipv6Counters) -> u64| {
        let before = counter(&bench.counters());
        bench.receive(frame);
        assert_eq!(counter(&bench.counters()), before + 1);
        assert_eq!(bench.said(), Vec::<String>::new());
    };
    let group = ipv6::solicited_node(ours());
    let message = ndp::Repr::NeighbourSolicitation { target: ours(), source: Some(PEER_MAC) }.emit(peer(), group);
    refused(packet(peer(), group, protocol::ICMPV6, 254, &message), |c| c.nd_bad_hop_limit);
    refused(solicitation(Ipv6Addr::UNSPECIFIED, group, ours(), Some(PEER_MAC)), |c| c.nd_malformed);
    refused(solicitation(Ipv6Addr::UNSPECIFIED, ipv6::ALL_NODES, ours(), None), |c| c.nd_malformed);
    let solicited =
        ndp::Repr::NeighbourAdvertisement { target: peer(), router: false, solicited: true, replace: true, link: Some(PEER_MAC) };
    refused(discovery(peer(), ipv6::ALL_NODES, &solicited), |c| c.nd_malformed);
    // RFC 6980 section 5: in one piece, but behind a fragment header.
    let atomic = [&[protocol::ICMPV6, 0, 0, 0, 0, 0, 0, 7][..], &message].concat();
    refused(packet(peer(), group, 44, 255, &atomic), |c| c.nd_fragments);
    let redirect = ndp::Repr::Redirect { target: peer(), destination: ip("2001:db9::1") };
    refused(discovery(router(), ours(), &redirect), |c| c.redirects_ignored);
    refused(router_says(|_| ()), |c| c.router_advertisements_ignored);
    refused(discovery(peer(), ipv6::ALL_NODES, &ndp::Repr::RouterSolicitation { source: None }), |c| c.nd_other_in);
}

#[test]
fn a_packet_waits_for_its_neighbour_and_the_neighbour_is_confirmed_later() {
    let mut bench = bench();
    bench.send(peer(), &[slice(b"one")]).unwrap();
    assert_eq!(bench.said(), ["who has 2001:db8::2, 2001:db8::1 > ff02::1:ff00:2 via 33:33:ff:00:00:02"]);
    bench.receive(advertisement(peer(), Some(PEER_MAC), true));
    assert_eq!(bench.said(), ["protocol 6 2001:db8::1 > 2001:db8::2 via 02:00:00:00:00:02, 23 bytes"]);
    // REACHABLE for 15 to 45 s; then the next use leads to a question 5 s later, by unicast, three times (section 7.3.3).
    bench.run(50_000);
    bench.send(peer(), &[slice(b"two")]).unwrap();
    let said = bench.run(70_000);
    let questions: Vec<u64> = said.iter().filter(|(_, line)| line.contains("who has")).map(|(at, _)| *at).collect();
    assert_eq!(questions, [55_000, 56_000, 57_000]);
    assert_eq!(said.last().unwrap().1, "who has 2001:db8::2, 2001:db8::1 > 2001:db8::2 via 02:00:00:00:00:02");
    assert_eq!(bench.interface.neighbour(peer().into()), None, "unreachable: forgotten at 58 s");
}

#[test]
fn a_neighbour_that_does_not_exist_is_asked_for_three_times() {
    let mut bench = bench();
    bench.send(peer(), &[]).unwrap();
    let asked: Vec<u64> = bench.run(10_000).into_iter().map(|(at, _)| at).collect();
    assert_eq!(asked, [1_500, 2_500, 3_500], "MAX_MULTICAST_SOLICIT, RETRANS_TIMER apart");
    let counters = bench.interface.ipv6_neighbour_counters().unwrap();
    assert_eq!((counters.resolutions_failed, counters.parked_failed), (1, 1));
}

#[test]
fn a_flood_of_forged_neighbours_changes_nothing_for_the_real_ones() {
    let mut bench = bench_with(|options| options.ipv6.neighbours.neighbours_max = 8);
    bench.introduce();
    bench.send(peer(), &[]).unwrap();
    bench.out();
    for n in 0..1_000u16 {
        let src = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 1, 0, 0, n);
        bench.receive(solicitation(src, ipv6::solicited_node(ours()), ours(), Some(Address([2, 1, 0, 0, 0, 0]))));
        assert!(bench.out().len() <= 1);
    }
    assert_eq!(bench.interface.neighbour(peer().into()), Some(PEER_MAC));
    let counters = bench.interface.ipv6_neighbour_counters().unwrap();
    assert_eq!((counters.entries, counters.evicted, counters.solicitations), (8, 0, 0), "nobody was asked for");
}

// ---- RFC 4861 section 6, RFC 4862 section 5.5: routers and prefixes ----

#[test]
fn routers_are_asked_for_more_and_more_rarely_until_one_answers() {
    let mut bench = bench_with(slaac);
    bench.run(1_000);
    let said = bench.run(70_000);
    let asked: Vec<u64> = said.iter().filter(|(_, line)| line.starts_with("any routers?")).map(|(at, _)| *at).collect();
    let gaps: Vec<u64> = asked.windows(2).map(|pair| pair[1] - pair[0]).collect();
    assert_eq!(gaps, [8_000, 16_000, 32_000], "RFC 7559 section 2 (the first question was heard before)");
    // RFC 4861 section 6.3.7: one that only tells prefixes, or says that it is no router any more, does not end the search.
    bench.receive(router_says(|said| said.lifetime_s = 0));
    assert_eq!(bench.run(140_000).iter().filter(|(_, line)| line.starts_with("any")).count(), 1);
    bench.receive(router_says(|_| ()));
    assert_eq!(bench.run(10_000_000).iter().filter(|(_, line)| line.starts_with("any")).count(), 0);
}

#[test]
fn an_address_is_made_from_a_prefix_and_stays_the_same() {
    let made = |mac: Address, name: &str| {
        let mut bench = bench_at(EndOptions::plain(mac.0, 1500), |options| {
            slaac(options);
            options.ipv6.interface_name = name.to_owned();
        });
        bench.receive(router_says(|said| said.prefixes.push(prefix("2001:db8:1::", 86_400, 14_400))));
        bench.interface.handle_timeout(bench.now);
        bench.addresses().into_iter().find(|address| address.starts_with("2001:db8:1:")).unwrap()
    };
    let address = made(OUR_MAC, "0000:03:00.0");
    assert_eq!(address, made(OUR_MAC, "0000:03:00.0"), "after a restart");
    assert_ne!(address, made(OUR_MAC, "0000:04:00.0"), "the other port's differs");
    assert!(!address.contains("ff:fe"), "not from the MAC address");
}

#[test]
fn a_router_and_its_prefix_end_with_their_lifetimes() {
    let mut bench = bench_with(slaac);
    let far = ip("2001:db9::1");
    assert_eq!(bench.send(far, &[]), Err(SendRefused::NoRoute));
    bench.receive(router_says(|said| {
        said.lifetime_s = 1_800;
        said.prefixes.push(prefix("2001:db8:1::", 3_600, 600));
    }));
    bench.run(2_000);
    assert_eq!((bench.counters().routers, bench.counters().prefixes, bench.counters().addresses), (1, 1, 3));
    bench.send(far, &[]).unwrap();
    assert_eq!(bench.said(), ["protocol 6 2001:db8::1 > 2001:db9::1 via 02:00:00:00:00:09, 20 bytes"]);
    bench.send(ip("2001:db8:1::7"), &[]).unwrap();
    let [line] = &bench.said()[..] else { panic!() };
    assert!(line.starts_with("who has 2001:db8:1::7"), "on the link: {line}");
    bench.run(1_801_400);
    assert_eq!(bench.send(far, &[]).err(), None);
    bench.run(1_801_600);
    assert_eq!((bench.send(far, &[]), bench.counters().routers), (Err(SendRefused::NoRoute), 0), "AdvDefaultLifetime");
    bench.events();
    bench.run(3_601_600);
    assert_eq!((bench.counters().prefixes, bench.counters().addresses), (0, 2), "the valid lifetime");
    assert!(matches!(bench.events()[..], [InterfaceEvent::AddressExpired { .. }]));
}

#[test]
fn a_router_that_says_so_is_none_any_more() {
    let mut bench = bench_with(slaac);
    bench.receive(router_says(|_| ()));
    assert_eq!(bench.counters().routers, 1);
    bench.receive(router_says(|said| said.lifetime_s = 0));
    assert_eq!(bench.counters().routers, 0, "section 6.3.4");
    bench.receive(router_says(|_| ()));
    bench.receive(advertisement(router(), Some(ROUTER_MAC), false));
    assert_eq!(bench.send(ip("2001:db9::1"), &[]), Err(SendRefused::NoRoute), "section 7.2.5: the router flag is gone");
    assert_eq!(bench.counters().routers, 0);
}

/// RFC 4861 section 7.2.5: an advertisement that must not update the cache says nothing about the router either, nor does one of a
/// neighbour without an entry.
#[test]
fn an_advertisement_that_does_not_count_takes_no_router_away() {
    let says = |link| {
        let repr = ndp::Repr::NeighbourAdvertisement { target: router(), router: false, solicited: false, replace: false, link };
        discovery(ip("fe80::77"), ipv6::ALL_NODES, &repr)
    };
    let mut bench = bench_with(slaac);
    bench.receive(router_says(|_| ()));
    bench.receive(says(Some(PEER_MAC)));
    assert_eq!((bench.counters().routers, bench.interface.neighbour(router().into())), (1, Some(ROUTER_MAC)));
    let mut bench = bench_with(slaac);
    bench.receive(router_says(|said| said.source = None));
    bench.receive(says(Some(PEER_MAC)));
    assert_eq!((bench.counters().routers, bench.interface.neighbour(router().into())), (1, None));
}

#[test]
fn an_unreachable_router_is_passed_over_for_another() {
    let mut bench = bench_with(slaac);
    bench.receive(router_says(|said| said.source = None));
    let other = ndp::Repr::RouterAdvertisement(RouterAdvertisement {
        hop_limit: 9,
        managed: false,
        other: false,
        lifetime_s: 1800,
        reachable_ms: 0,
        retransmit_ms: 0,
        source: Some(PEER_MAC),
        mtu: None,
        prefixes: Default::default(),
    });
    bench.receive(discovery(ip("fe80::a"), ipv6::ALL_NODES, &other));
    // RFC 4861 section 6.3.6: always the one that is known, though the other is first in the list and was never asked.
    for at in [0, 4_600, 6_000] {
        bench.run(at.max(bench.now.millis()));
        bench.send(ip("2001:db9::1"), &[]).unwrap();
        assert_eq!(bench.said(), ["protocol 6 2001:db8::1 > 2001:db9::1 via 02:00:00:00:00:02, 20 bytes"], "at {at}");
    }
}

#[test]
fn of_routers_that_nobody_knows_each_is_tried_in_turn() {
    let mut bench = bench_with(slaac);
    bench.receive(router_says(|said| said.source = None));
    let other = ndp::Repr::RouterAdvertisement(RouterAdvertisement {
        hop_limit: 0,
        managed: false,
        other: false,
        lifetime_s: 1800,
        reachable_ms: 0,
        retransmit_ms: 0,
        source: None,
        mtu: None,
        prefixes: Default::default(),
    });
    bench.receive(discovery(ip("fe80::a"), ipv6::ALL_NODES, &other));
    bench.send(ip("2001:db9::1"), &[]).unwrap();
    assert!(bench.said()[0].starts_with("who has fe80::9,"));
    bench.run(4_600);
    bench.send(ip("2001:db9::1"), &[]).unwrap();
    assert!(bench.said()[0].starts_with("who has fe80::a,"), "the first did not answer");
}

#[test]
fn a_configured_gateway_goes_before_routers_and_rogues_are_not_heard() {
    let mut bench = bench_with(|options| options.ipv6.gateway = Some(peer()));
    bench.introduce();
    bench.receive(router_says(|said| said.prefixes.push(prefix("2001:db9::", 3_600, 600))));
    bench.send(ip("2001:db9::1"), &[]).unwrap();
    assert_eq!(bench.said(), ["protocol 6 2001:db8::1 > 2001:db9::1 via 02:00:00:00:00:02, 20 bytes"]);
    assert_eq!(bench.counters().router_advertisements_ignored, 1);
}

#[test]
fn nobody_shortens_the_life_of_an_address_below_two_hours() {
    let mut bench = bench_with(slaac);
    let say = |bench: &mut Bench, valid, preferred| {
        bench.receive(router_says(|said| said.prefixes.push(prefix("2001:db8:1::", valid, preferred))));
    };
    say(&mut bench, 86_400, 86_400);
    bench.run(2_000);
    say(&mut bench, 0, 0);
    bench.run(7_201_000);
    assert_eq!(bench.counters().addresses, 3, "RFC 4862 section 5.5.3 (e)");
    say(&mut bench, 0, 0);
    bench.run(7_204_000);
    assert_eq!(bench.counters().addresses, 2, "what remained was less than two hours: not touched");
}

#[test]
fn prefixes_that_make_no_address() {
    let mut bench = bench_with(slaac);
    let mut made = |change: &dyn Fn(&mut Prefix)| {
        let mut told = prefix("2001:db8:1::", 3_600, 600);
        change(&mut told);
        bench.receive(router_says(|said| said.prefixes.push(told)));
        bench.run(bench.now.millis());
        bench.counters().addresses
    };
    assert_eq!(made(&|p| p.autonomous = false), 2);
    assert_eq!(made(&|p| p.len = 63), 2, "RFC 4862 section 5.5.3 (d)");
    assert_eq!(made(&|p| p.preferred_s = 3_601), 2, "(c)");
    assert_eq!(made(&|p| p.valid_s = 0), 2);
    assert_eq!(made(&|p| p.prefix = ip("fe80::")), 2, "(b)");
    assert_eq!(made(&|p| p.prefix = ip("ff00::")), 2);
}

#[test]
fn what_routers_tell_is_bounded() {
    let mut bench = bench_with(slaac);
    for n in 0..100u16 {
        let told = prefix(&format!("2001:db8:{n:x}::"), u32::MAX, u32::MAX);
        bench.receive(router_says(|said| said.prefixes.push(told)));
        let repr = RouterAdvertisement {
            hop_limit: 0,
            managed: false,
            other: false,
            lifetime_s: 9000,
            reachable_ms: 0,
            retransmit_ms: 0,
            source: None,
            mtu: Some(1279),
            prefixes: Default::default(),
        };
        let src = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 1, n);
        bench.receive(discovery(src, ipv6::ALL_NODES, &ndp::Repr::RouterAdvertisement(repr)));
    }
    bench.run(5_000);
    let counters = bench.counters();
    let limits = Ipv6Options::default();
    assert_eq!(
        (counters.routers, counters.prefixes, counters.addresses),
        (limits.routers_max as u64, limits.prefixes_max as u64, limits.addresses_max as u64)
    );
    assert!(counters.advertised_overflow > 100);
    assert_eq!(counters.router_mtus_ignored, 100);
}

/// RFC 4861 sections 4.6.4 and 6.3.4.
#[test]
fn the_mtu_that_a_router_tells_bounds_what_is_sent_between_1280_and_the_ports() {
    let mut bench = bench_at(EndOptions::offloading(OUR_MAC.0, 1500), slaac);
    bench.introduce();
    let say = |bench: &mut Bench, mtu| {
        bench.receive(router_says(|said| said.mtu = mtu));
        bench.counters().link_mtu
    };
    assert_eq!(say(&mut bench, None), 1500);
    assert_eq!(bench.send(peer(), &[slice(&[0; 1_440])]), Ok(()));
    assert_eq!(say(&mut bench, Some(1400)), 1400);
    assert_eq!(say(&mut bench, None), 1400, "one that tells none leaves it");
    for wrong in [0, 1279, 1501, 0x1_0000 + 1300] {
        assert_eq!(say(&mut bench, Some(wrong)), 1400, "{wrong}");
    }
    assert_eq!(bench.counters().router_mtus_ignored, 4);
    let refused = Err(SendRefused::BeyondLinkMtu { mtu: 1400 });
    assert_eq!(bench.send(peer(), &[slice(&[0; 1_340])]), Ok(()));
    assert_eq!(bench.send(peer(), &[slice(&[0; 1_341])]), refused);
    let (header, payload) = (tcp_header(), [slice(&[0; 4_000])]);
    for (mss, result) in [(1_340, Ok(())), (1_341, refused)] {
        let chain = OutgoingPacket { tso_mss: Some(mss), ..outgoing(peer(), &header, &payload) };
        assert_eq!(bench.interface.send(bench.now, &mut bench.device, &chain), result);
    }
    assert_eq!((bench.counters().beyond_link_mtu, bench.interface.counters().too_long), (2, 0));
    assert_eq!(say(&mut bench, Some(1500)), 1500, "and back");
    assert_eq!(bench.send(peer(), &[slice(&[0; 1_440])]), Ok(()));
    let mut deaf = self::bench();
    assert_eq!(say(&mut deaf, Some(1400)), 1500, "without slaac routers are not heard");
}

#[test]
fn timers_and_hop_limit_come_from_the_router_within_reason() {
    let mut bench = bench_with(slaac);
    bench.receive(router_says(|said| {
        said.hop_limit = 7;
        said.retransmit_ms = 200;
    }));
    bench.send(ip("2001:db9::1"), &[]).unwrap();
    let frame = bench.out().remove(0);
    assert_eq!(frame[ethernet::HEADER_LEN + 7], 7);
    bench.receive(router_says(|said| said.retransmit_ms = 1));
    let start = bench.now.millis();
    bench.send(peer(), &[]).unwrap();
    let asked: Vec<u64> = bench
        .run(5_000)
        .into_iter()
        .filter(|(_, line)| line.starts_with("who has 2001:db8::2"))
        .map(|(at, _)| at - start)
        .collect();
    assert_eq!(asked, [0, 200, 400], "200 ms, not 1");
}

// ---- RFC 3810: groups ----

#[test]
fn groups_are_reported_when_joined_and_when_asked() {
    let mut bench = bench_on(EndOptions::plain(OUR_MAC.0, 1500), |_| {});
    let mut said = Vec::new();
    while let Some(at) = bench.interface.poll_timeout().filter(|at| at.millis() < 900) {
        bench.now = at;
        bench.interface.handle_timeout(at);
        said.extend(bench.said());
    }
    let report = said.iter().position(|line| line == "MLD 143 :: > ff02::16").unwrap();
    assert!(report < said.iter().position(|line| line.starts_with("who has")).unwrap(), "RFC 4862 section 5.4.2: before");
    let mut bench = self::bench();
    let link_local = bench.link_local();
    let query = |kind_len: usize, hop_limit| {
        let src = router();
        let mut message = vec![130, 0, 0, 0, 0x03, 0xe8, 0, 0];
        message.resize(kind_len, 0);
        icmpv6::fill_checksum(src, ipv6::ALL_NODES, &mut message);
        let header = ipv6::router_alert_header(protocol::ICMPV6);
        packet(src, ipv6::ALL_NODES, 0, hop_limit, &[&header[..], &message].concat())
    };
    bench.receive(query(28, 2));
    assert_eq!((bench.counters().icmp_ignored, bench.counters().mld_queries_in), (1, 0), "from beyond the link");
    let reports = |bench: &mut Bench| {
        let until = bench.now + Duration::from_secs(1);
        let mut said = Vec::new();
        while let Some(at) = bench.interface.poll_timeout().filter(|at| *at <= until) {
            bench.now = at.max(bench.now);
            bench.interface.handle_timeout(bench.now);
            said.extend(bench.said());
        }
        said
    };
    bench.receive(query(28, 1));
    bench.receive(query(28, 1));
    assert_eq!(reports(&mut bench), [format!("MLD 143 {link_local} > ff02::16")], "one answer within a second");
    bench.receive(query(24, 1));
    let groups = reports(&mut bench);
    assert!(groups.contains(&format!("MLD 131 {link_local} > ff02::1:ff00:1")), "in version 1: {groups:?}");
    assert_eq!(groups.len(), 2);
}
