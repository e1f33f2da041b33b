//! A link that goes down and comes up, on a virtual clock: RFC 5227 sections 2.1 and 2.3, RFC 4861 section 6.3.7, RFC 4862 section 5.4.

use super::probe::{asked, at, events, probing};
use super::*;
use crate::net::interface::ProbeOptions;

const NOBODY: Ipv4Addr = Ipv4Addr::UNSPECIFIED;

fn link(bench: &Bench) -> [u64; 3] {
    let counters = bench.interface.counters();
    [counters.link_up, counters.link_ups, counters.link_downs]
}

#[test]
fn nothing_is_asked_or_announced_before_the_link_is_up() {
    let mut bench = probing(ProbeOptions::quick(), |_| {});
    bench.interface.observe_link(bench.now, Some(false));
    assert_eq!(bench.run(at(30_000)), []);
    assert_eq!(bench.interface.poll_timeout(), None, "nothing to wake up for");
    assert!(!bench.interface.is_own(OURS.into()));
    bench.interface.observe_link(bench.now, Some(true));
    let sent = asked(bench.run(at(60_000)));
    let probes = [30_000, 30_150, 30_300].map(|at| (at, NOBODY, OURS));
    assert_eq!(sent, [&probes[..], &[(30_450, OURS, OURS), (32_450, OURS, OURS)]].concat());
    let assigned = InterfaceEvent::AddressAssigned { address: OURS.into() };
    assert_eq!(events(&mut bench), [InterfaceEvent::LinkDown, InterfaceEvent::LinkUp, assigned]);
    assert_eq!(link(&bench), [1, 1, 1]);
}

#[test]
fn a_search_that_the_link_interrupts_starts_over() {
    let mut bench = probing(ProbeOptions::quick(), |_| {});
    assert_eq!(bench.run(at(200)).len(), 2);
    bench.interface.observe_link(bench.now, Some(false));
    assert_eq!(bench.run(at(5_000)), []);
    bench.interface.observe_link(bench.now, Some(true));
    let times: Vec<u64> = bench.run(at(60_000)).iter().map(|(at, _)| *at).collect();
    assert_eq!(times, [5_000, 5_150, 5_300, 5_450, 7_450]);
}

#[test]
fn an_address_in_use_stays_so_and_is_announced_again() {
    for probe in [ProbeOptions::quick(), ProbeOptions::none()] {
        let mut bench = probing(probe, |_| {});
        bench.run(at(10_000));
        bench.introduce();
        events(&mut bench);
        bench.interface.observe_link(bench.now, Some(false));
        // What a connection still sends leaves, as far as the device takes it.
        assert!(bench.interface.is_own(OURS.into()));
        assert_eq!(bench.send(PEER, &[]), Ok(()));
        bench.out();
        assert_eq!(bench.run(at(12_000)), []);
        bench.interface.observe_link(bench.now, Some(true));
        assert!(bench.interface.is_own(OURS.into()));
        assert_eq!(bench.send(PEER, &[]), Ok(()), "the neighbour is known");
        let (_, tcp) = ip_payload(&bench.out().remove(0));
        assert_eq!(tcp.len(), 20);
        let mut sent = asked(bench.run(at(60_000)).into_iter().filter(|(_, frame)| is_broadcast(frame)).collect());
        sent.retain(|(_, _, target)| *target == OURS);
        assert_eq!(sent, [(12_000, OURS, OURS), (14_000, OURS, OURS)]);
        assert_eq!(events(&mut bench), [InterfaceEvent::LinkDown, InterfaceEvent::LinkUp]);
    }
}

/// What asks a single neighbour is its table's matter.
fn is_broadcast(frame: &[u8]) -> bool {
    Frame::new(frame).is_ok_and(|frame| frame.dst() == Address::BROADCAST)
}

#[test]
fn an_address_that_was_another_stations_is_looked_for_again_at_once() {
    let mut bench = probing(ProbeOptions::quick(), |_| {});
    bench.run(at(100));
    bench.receive(arp_frame(Operation::Reply, TWIN_MAC, OURS, OURS));
    bench.run(at(1_000));
    assert!(!bench.interface.is_own(OURS.into()));
    // The cable goes into another switch.
    bench.interface.observe_link(bench.now, Some(false));
    bench.interface.observe_link(bench.now, Some(true));
    bench.run(at(2_000));
    assert!(bench.interface.is_own(OURS.into()));
}

#[test]
fn a_driver_that_cannot_tell_has_a_link_that_is_up() {
    let mut bench = probing(ProbeOptions::quick(), |_| {});
    bench.interface.observe_link(bench.now, None);
    assert_eq!(bench.run(at(60_000)).len(), 5);
    bench.interface.observe_link(bench.now, None);
    assert_eq!(bench.run(at(90_000)), []);
    assert_eq!(events(&mut bench).len(), 1, "the address");
    assert_eq!(link(&bench), [1, 0, 0]);
}

/// Some drivers say "down" of a link that works: what arrives says more.
#[test]
fn frames_that_arrive_prove_that_the_link_is_up() {
    let mut bench = probing(ProbeOptions::quick(), |_| {});
    for second in 0..5 {
        bench.interface.observe_link(bench.now, Some(false));
        assert_eq!(bench.run(at(1_000 * (second + 1))), []);
    }
    bench.receive(arp_frame(Operation::Request, PEER_MAC, PEER, OURS));
    bench.interface.observe_link(bench.now, Some(false));
    assert_eq!(link(&bench), [1, 1, 1]);
    bench.run(at(10_000));
    assert!(bench.interface.is_own(OURS.into()));
    // And it stays so, though nothing arrives for long: this driver is not to be believed.
    bench.interface.observe_link(bench.now, Some(false));
    bench.interface.observe_link(bench.now, Some(false));
    assert_eq!(link(&bench), [1, 1, 1]);
    // Until it says "up" itself.
    bench.interface.observe_link(bench.now, Some(true));
    bench.interface.observe_link(bench.now, Some(false));
    assert_eq!(link(&bench), [0, 1, 2]);
}

/// What arrived before the link went down is no proof.
#[test]
fn frames_of_before_prove_nothing() {
    let mut bench = probing(ProbeOptions::none(), |_| {});
    bench.interface.observe_link(bench.now, Some(true));
    bench.receive(arp_frame(Operation::Request, PEER_MAC, PEER, OURS));
    bench.interface.observe_link(bench.now, Some(false));
    assert_eq!(link(&bench), [0, 0, 1]);
}
