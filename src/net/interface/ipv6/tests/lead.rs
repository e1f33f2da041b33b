//! Two cores of one port: one leads, the other follows. Each frame comes in on one of them, and as a copy on the other if it concerns both,
//! as `shard::steering` does it.

use super::*;
use crate::net::spread::concerns_every_core;
use crate::wire::mld;

struct Pair {
    leader: Bench,
    follower: Bench,
}

fn pair(change: impl Fn(&mut InterfaceOptions)) -> Pair {
    let bench = |follows| {
        bench_on(EndOptions::plain(OUR_MAC.0, 1500), |options| {
            options.ipv6.follows = follows;
            change(options);
        })
    };
    Pair { leader: bench(false), follower: bench(true) }
}

impl Pair {
    /// What the leader has to tell reaches the follower.
    fn tell(&mut self) -> usize {
        let told = std::iter::from_fn(|| self.leader.interface.poll_lead()).map(|lead| self.follower.interface.follow(&lead));
        told.count()
    }

    /// Both until `until` ms; what goes out, which must be the leader's, but for questions about neighbours that a follower has used.
    fn run(&mut self, until: u64) -> Vec<(u64, String)> {
        let mut sent = Vec::new();
        for at in (self.leader.now.millis()..=until).step_by(10) {
            for bench in [&mut self.leader, &mut self.follower] {
                bench.now = Instant::from_millis(at);
                bench.link.set_now(bench.now);
                bench.interface.handle_timeout(bench.now);
            }
            sent.extend(self.leader.said().into_iter().map(|line| (at, line)));
            self.tell();
            let said = self.follower.said();
            assert!(said.iter().all(|line| line.starts_with("who has ") && !line.contains(", :: > ")), "at {at}: {said:?}");
        }
        sent
    }

    /// The port receives a frame on the follower's queue. What both say.
    fn receive_at_follower(&mut self, frame: Vec<u8>) -> (Vec<String>, Vec<String>) {
        assert!(concerns_every_core(&frame));
        self.leader.copy(frame.clone());
        self.follower.receive(frame);
        self.tell();
        (self.leader.said(), self.follower.said())
    }

    fn receive_at_leader(&mut self, frame: Vec<u8>) -> (Vec<String>, Vec<String>) {
        assert!(concerns_every_core(&frame));
        self.follower.copy(frame.clone());
        self.leader.receive(frame);
        self.tell();
        (self.leader.said(), self.follower.said())
    }
}

impl Bench {
    fn copy(&mut self, frame: Vec<u8>) {
        let (ip_checksum, l4_checksum) = (Checksum::Unknown, Checksum::Unknown);
        self.interface.handle_copy(self.now, RxFrame { packet: RxPacket::from_vec(frame), ip_checksum, l4_checksum });
    }
}

#[test]
fn the_leader_alone_looks_for_duplicates_and_speaks() {
    let mut pair = pair(|_| {});
    assert!(!pair.follower.interface.is_own(ours().into()), "nobody has looked yet");
    let sent = pair.run(10_000);
    for text in ["who has 2001:db8::1, :: > ", "2001:db8::1 is here", "MLD 143"] {
        assert!(sent.iter().any(|(_, line)| line.starts_with(text)), "{text} in {sent:#?}");
    }
    assert_eq!(pair.leader.addresses(), pair.follower.addresses());
    assert_eq!(pair.follower.addresses().len(), 2, "the link-local one, too");
    assert_eq!(pair.follower.interface.poll_timeout(), None);
    // A person hears of each address once.
    assert_eq!(pair.leader.events().len(), 2);
    assert_eq!(pair.follower.events(), []);
    assert_eq!(pair.follower.counters(), Ipv6Counters::default());
}

#[test]
fn the_leader_alone_answers_whoever_received_the_question() {
    let mut pair = pair(|_| {});
    pair.run(10_000);
    let question = || solicitation(peer(), ipv6::solicited_node(ours()), ours(), Some(PEER_MAC));
    let answer = "2001:db8::1 is here (solicited), 2001:db8::1 > 2001:db8::2 via 02:00:00:00:00:02";
    let before = (pair.leader.counters(), pair.follower.counters());
    assert_eq!(pair.receive_at_follower(question()), (vec![answer.to_owned()], vec![]));
    assert_eq!(pair.receive_at_leader(question()), (vec![answer.to_owned()], vec![]));
    let after = (pair.leader.counters(), pair.follower.counters());
    assert_eq!(after.0.nd_solicitations_in - before.0.nd_solicitations_in, 2);
    // Each packet where it came in.
    assert_eq!((after.0.packets_in - before.0.packets_in, after.1.packets_in - before.1.packets_in), (1, 1));
    assert_eq!((after.1.nd_solicitations_in, after.1.nd_advertisements_out), (0, 0));
    // Both have learned where the peer is.
    for bench in [&mut pair.leader, &mut pair.follower] {
        bench.send(peer(), &[]).unwrap();
        assert_eq!(bench.said(), ["protocol 6 2001:db8::1 > 2001:db8::2 via 02:00:00:00:00:02, 20 bytes"]);
    }
}

#[test]
fn a_follower_asks_for_its_own_neighbours_and_hears_the_answer_from_the_leader() {
    let mut pair = pair(|_| {});
    pair.run(10_000);
    pair.follower.send(peer(), &[]).unwrap();
    let asked = pair.follower.said();
    assert!(asked.len() == 1 && asked[0].starts_with("who has 2001:db8::2"), "{asked:?}");
    let (leader, follower) = pair.receive_at_leader(advertisement(peer(), Some(PEER_MAC), true));
    assert_eq!(leader, [""; 0]);
    assert_eq!(follower, ["protocol 6 2001:db8::1 > 2001:db8::2 via 02:00:00:00:00:02, 20 bytes"]);
    assert_eq!((pair.leader.counters().nd_advertisements_in, pair.follower.counters().nd_advertisements_in), (1, 0));
}

#[test]
fn a_duplicate_that_a_follower_hears_of_is_used_by_none() {
    let mut pair = pair(|_| {});
    pair.run(1_000);
    pair.receive_at_follower(advertisement(ours(), Some(PEER_MAC), false));
    pair.run(10_000);
    for bench in [&mut pair.leader, &mut pair.follower] {
        assert!(!bench.interface.is_own(ours().into()));
        assert_eq!(bench.addresses().len(), 1, "the link-local one");
    }
    let events = pair.leader.events();
    assert!(events.contains(&InterfaceEvent::AddressDuplicate { address: ours().into(), mac: PEER_MAC }), "{events:?}");
    assert_eq!(pair.follower.events(), []);
    assert_eq!((pair.leader.counters().duplicates, pair.follower.counters().duplicates), (1, 0));
}

#[test]
fn a_conflict_that_a_follower_hears_of_is_told_and_answered_once() {
    let mut pair = pair(|_| {});
    pair.run(10_000);
    pair.leader.events();
    let (leader, follower) = pair.receive_at_follower(advertisement(ours(), Some(PEER_MAC), false));
    assert_eq!((leader, follower), (vec![], vec![]));
    let defended = pair.run(11_000);
    assert_eq!(defended.len(), 1, "{defended:?}");
    assert!(defended[0].1.starts_with("2001:db8::1 is here, 2001:db8::1 > ff02::1"));
    assert_eq!(pair.leader.events(), [InterfaceEvent::AddressConflict { address: ours().into(), mac: PEER_MAC }]);
    assert_eq!((pair.follower.events(), pair.follower.counters().conflicts), (vec![], 0));
}

#[test]
fn addresses_and_routes_from_a_router_reach_the_follower_and_end_there_as_well() {
    let mut pair = pair(|options| options.ipv6.slaac = true);
    pair.run(10_000);
    let far = ip("2001:db8:ffff::1");
    assert_eq!(pair.follower.send(far, &[]), Err(SendRefused::NoRoute));
    let said = || {
        router_says(|says| {
            says.prefixes.push(prefix("2001:db8:7::", 60, 30));
            says.retransmit_ms = 500;
        })
    };
    pair.receive_at_follower(said());
    pair.run(20_000);
    let made = |bench: &Bench| bench.addresses().into_iter().find(|address| address.starts_with("2001:db8:7:"));
    assert_eq!(made(&pair.leader), made(&pair.follower));
    assert!(made(&pair.follower).is_some());
    assert_eq!((pair.leader.counters().router_advertisements_in, pair.follower.counters().router_advertisements_in), (1, 0));
    // Through the router, whose MAC address the follower has learned from the advertisement itself.
    pair.follower.send(far, &[]).unwrap();
    assert_eq!(pair.follower.said(), ["protocol 6 2001:db8::1 > 2001:db8:ffff::1 via 02:00:00:00:00:09, 20 bytes"]);
    pair.run(75_000);
    assert_eq!((made(&pair.leader), made(&pair.follower)), (None, None), "its life is over");
}

#[test]
fn a_listener_query_to_a_follower_is_answered_once() {
    let mut pair = pair(|_| {});
    pair.run(10_000);
    // RFC 3810 section 5.1: version 1's query is the first 24 octets; a maximum response delay of 100 ms.
    let dst = ipv6::ALL_NODES;
    let mut body = vec![130, 0, 0, 0, 0, 100, 0, 0];
    body.extend([0; 16]);
    let mut sum = Sum::pseudo_header(router().into(), dst.into(), protocol::ICMPV6, body.len());
    sum.add(&body);
    body[2..4].copy_from_slice(&sum.finish().to_be_bytes());
    assert!(mld::Query::parse(&body).is_ok());
    let options = ipv6::router_alert_header(protocol::ICMPV6);
    let query = packet(router(), dst, 0, 1, &[&options[..], &body].concat());
    pair.receive_at_follower(query);
    let sent = pair.run(11_000);
    assert_eq!(sent.len(), pair.leader.interface.addresses().count(), "each group once: {sent:?}");
    assert!(sent.iter().all(|(_, line)| line.starts_with("MLD 131")));
    assert_eq!((pair.leader.counters().mld_queries_in, pair.follower.counters().mld_queries_in), (1, 0));
}

#[test]
fn what_is_not_for_the_port_is_counted_by_who_received_it() {
    let mut pair = pair(|_| {});
    pair.run(10_000);
    let before = pair.leader.counters();
    pair.receive_at_follower(router_says(|_| {}));
    pair.receive_at_follower(packet(peer(), ours(), protocol::ICMPV6, 255, &[135, 0, 0, 0, 0, 0, 0, 0]));
    let after = pair.follower.counters();
    assert_eq!((after.router_advertisements_ignored, after.icmp_bad_checksum), (1, 1));
    assert_eq!(pair.leader.counters(), before);
}

#[test]
fn the_follower_is_told_when_something_has_changed_and_not_otherwise() {
    let mut pair = pair(|options| options.ipv6.slaac = true);
    pair.run(10_000);
    for _ in 0..3 {
        pair.leader.receive(solicitation(peer(), ipv6::solicited_node(ours()), ours(), Some(PEER_MAC)));
        assert_eq!(pair.tell(), 0);
    }
    pair.leader.receive(router_says(|says| says.hop_limit = 9));
    assert_eq!(pair.tell(), 1);
    pair.leader.receive(router_says(|says| says.hop_limit = 9));
    assert_eq!(pair.tell(), 0, "the same at the same time");
}
