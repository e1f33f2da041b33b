//! Several cores behind one address, on a virtual clock: whatever the NIC does with a frame, it reaches the core that its
//! connection belongs to, and what clients are promised does not depend on the core they meet.

mod support;

use std::cell::RefCell;
use std::net::{IpAddr, Ipv6Addr};
use std::rc::Rc;

use nfsplice::net::interface::Ipv6Counters;
use nfsplice::net::spread::Spread;
use nfsplice::net::{Device, TxOffload};
use nfsplice::shard::steering::{self, SteeringCounters};
use nfsplice::time::Duration;
use nfsplice::wire::{ethernet, icmpv6, ipv6, protocol};
use support::cores::{Choose, Cores};
use support::nfs::{self, Args, CREATE, GETATTR, NFS3ERR_NOENT, READ, REMOVE, WRITE};
use support::server::{NFS_PORT, Setup};
use support::{CLIENT_MAC, SERVER_MAC};

const CORES: u16 = 2;

/// As a NIC with the right key: TCP by the hash, everything else to queue 0.
fn right(frame: &[u8]) -> usize {
    let v4 = |at: usize| IpAddr::from(<[u8; 4]>::try_from(&frame[at..at + 4]).unwrap());
    let v6 = |at: usize| IpAddr::from(<[u8; 16]>::try_from(&frame[at..at + 16]).unwrap());
    let (source, destination, ports) = match &frame[12..14] {
        [0x08, 0x00] if frame[23] == protocol::TCP => (v4(26), v4(30), 34),
        [0x86, 0xdd] if frame[20] == protocol::TCP => (v6(22), v6(38), 54),
        _ => return 0,
    };
    let port = |at: usize| u16::from_be_bytes([frame[at], frame[at + 1]]);
    assert_eq!(port(ports + 2), NFS_PORT);
    Spread::in_software(CORES).queue_of((source, port(ports)), (destination, NFS_PORT)).into()
}

fn over_ipv6() -> Setup {
    Setup { ipv6: true, ..Setup::default() }
}

fn every_other() -> Choose {
    let mut count = 0;
    Box::new(move |_| {
        count += 1;
        count % usize::from(CORES)
    })
}

fn pattern(stream: usize, len: usize) -> Vec<u8> {
    (0..len).map(|at| (at * 31 + stream * 7 + at / 251) as u8).collect()
}

/// A file for each of several connections, written and read through it, and read through the next one.
fn use_files(cores: &mut Cores) {
    let mut streams = cores.connect_to_each();
    streams.extend((0..4).map(|_| cores.connect()));
    let root = cores.root.clone();
    let mut files = Vec::new();
    for (nth, stream) in streams.iter().enumerate() {
        let name = format!("file{nth}");
        let file = cores.call(*stream, CREATE, &nfs::create(&root, name.as_bytes())).ok().created();
        for chunk in 0..4 {
            let data = pattern(nth + chunk, 200_000);
            cores.call(*stream, WRITE, &nfs::write(&file, chunk as u64 * 200_000, &data)).ok();
        }
        files.push(file);
    }
    // All at once, each file through another connection than the one that wrote it.
    let calls: Vec<(usize, usize, u32)> = (0..files.len() * 4)
        .map(|nth| {
            let (file, chunk) = (nth / 4, nth % 4);
            let stream = streams[(file + 1) % streams.len()];
            let read = nfs::read(&files[file], chunk as u64 * 200_000, 200_000);
            (stream, file + chunk, cores.client.call(cores.now, stream, READ, &read))
        })
        .collect();
    for (stream, seed, xid) in calls {
        assert!(cores.wait(stream, xid).ok().data() == pattern(seed, 200_000), "wrong bytes");
    }
}

fn handed_over(cores: &Cores) -> u64 {
    cores.shards.iter().map(|shard| shard.steering_counters().handed_over).sum()
}

#[test]
fn a_nic_that_hashes_as_we_do_leaves_nothing_to_hand_over() {
    let mut cores = Cores::new(&Setup::default(), CORES, Box::new(right));
    use_files(&mut cores);
    assert_eq!(handed_over(&cores), 0);
    for shard in &cores.shards {
        assert!(shard.tcp().counters().passive_opens > 0, "each core has connections");
    }
    cores.close_all();
}

#[test]
fn whatever_the_nic_does_segments_reach_their_owner() {
    let wrong: [(&str, Choose); 3] = [
        ("no RSS: one queue gets all", Box::new(|_| 0)),
        ("another key: always the other core", Box::new(|frame| 1 - right(frame))),
        ("every other frame", every_other()),
    ];
    for (what, choose) in wrong {
        let mut cores = Cores::new(&Setup::default(), CORES, choose);
        use_files(&mut cores);
        let opens: Vec<u64> = cores.shards.iter().map(|shard| shard.tcp().counters().passive_opens).collect();
        assert!(opens.iter().all(|opens| *opens > 0), "{what}: {opens:?}");
        let counters: Vec<_> = cores.shards.iter().map(|shard| shard.steering_counters()).collect();
        let sum = |of: fn(&SteeringCounters) -> u64| counters.iter().map(of).sum::<u64>();
        assert!(sum(|c| c.handed_over) > 0, "{what}");
        assert_eq!((sum(|c| c.handed_over), sum(|c| c.inbox_full)), (sum(|c| c.taken_over), 0), "{what}");
        // A segment that is not its owner's is not answered with a reset by anybody.
        let resets: u64 = cores.shards.iter().map(|shard| shard.tcp().counters().out_rsts).sum();
        assert_eq!(resets, 0, "{what}");
        let woken = cores.woken.iter().map(|count| count.load(std::sync::atomic::Ordering::Relaxed)).sum::<usize>();
        assert!(woken > 0, "{what}: nobody was woken");
        cores.close_all();
    }
}

#[test]
fn every_core_learns_the_neighbour_that_one_of_them_met() {
    // Requests for the server's address come to queue 0 only.
    let mut cores = Cores::new(&Setup::default(), CORES, Box::new(right));
    cores.connect_to_each();
    for shard in &cores.shards {
        let interface = &shard.lanes()[0].interface;
        assert!(interface.neighbour(support::client::CLIENT_ADDRESS.into()).is_some());
        assert_eq!(interface.neighbour_counters().solicitations, 0, "it had to ask");
    }
    let answered: u64 = cores.shards.iter().map(|shard| shard.lanes()[0].interface.counters().arp_requests_in).sum();
    assert_eq!(answered, 1, "one core answers, and counts");
    assert!(cores.shards[0].steering_counters().neighbour_copies > 0);
}

#[test]
fn a_full_inbox_drops_and_counts_and_the_connection_goes_on() {
    let small = steering::Options { inbox_frames_max: 4, ..steering::Options::default() };
    let mut cores = Cores::with_inboxes(&Setup::default(), CORES, Box::new(|_| 0), small);
    let streams = cores.connect_to_each();
    let root = cores.root.clone();
    let file = cores.call(streams[1], CREATE, &nfs::create(&root, b"f")).ok().created();
    cores.stopped[1] = true;
    let data = pattern(3, 300_000);
    let xid = cores.client.call(cores.now, streams[1], WRITE, &nfs::write(&file, 0, &data));
    cores.run(Duration::from_secs(2), |_| false);
    let dropped = cores.shards[0].steering_counters().inbox_full;
    assert!(dropped > 0, "the inbox took everything");
    cores.stopped[1] = false;
    cores.wait(streams[1], xid).ok();
    let read = cores.call(streams[0], READ, &nfs::read(&file, 0, 300_000)).ok().data();
    assert!(read == data);
    cores.close_all();
}

/// A request of a host for somebody's address: every core is to see it.
fn arp_request(host: u8) -> Vec<u8> {
    let arp = [&[0, 1, 8, 0, 6, 4, 0, 1, 2, 0, 0, 0, 1, host, 10, 77, 0, host][..], &[0; 6], &[10, 77, 0, 99]].concat();
    [&[0xff; 6][..], &[2, 0, 0, 0, 1, host], &[8, 6], &arp].concat()
}

fn send_arp_requests(cores: &mut Cores, hosts: std::ops::Range<u8>) {
    for host in hosts {
        cores.client.device.transmit(&arp_request(host), &[], &TxOffload::default()).unwrap();
    }
    cores.client.device.flush();
    cores.settle();
}

/// An overloaded core's inbox is never empty: it must learn its neighbours all the same.
#[test]
fn segments_in_an_inbox_keep_no_copies_out() {
    let small = steering::Options { inbox_frames_max: 32, ..steering::Options::default() };
    let mut cores = Cores::with_inboxes(&Setup::default(), CORES, Box::new(|_| 0), small);
    let streams = cores.connect_to_each();
    let root = cores.root.clone();
    let file = cores.call(streams[1], CREATE, &nfs::create(&root, b"f")).ok().created();
    cores.stopped[1] = true;
    let xid = cores.client.call(cores.now, streams[1], WRITE, &nfs::write(&file, 0, &pattern(3, 60_000)));
    cores.settle();
    let before = cores.shards[0].steering_counters();
    assert!(before.handed_over - before.taken_over >= 9 && before.inbox_full == 0, "{before:?}");
    send_arp_requests(&mut cores, 100..105);
    let after = cores.shards[0].steering_counters();
    assert_eq!((after.neighbour_copies - before.neighbour_copies, after.neighbour_copies_dropped), (5, 0));
    cores.stopped[1] = false;
    cores.wait(streams[1], xid).ok();
    cores.close_all();
}

/// Whoever floods the link with ARP must not take the place of segments that are handed over.
#[test]
fn copies_of_frames_about_neighbours_fill_a_quarter_of_an_inbox() {
    let small = steering::Options { inbox_frames_max: 64, ..steering::Options::default() };
    let mut cores = Cores::with_inboxes(&Setup::default(), CORES, Box::new(|_| 0), small);
    let streams = cores.connect_to_each();
    let root = cores.root.clone();
    cores.stopped[1] = true;
    let before = cores.shards[0].steering_counters();
    send_arp_requests(&mut cores, 100..200);
    let counters = cores.shards[0].steering_counters();
    assert_eq!(counters.neighbour_copies - before.neighbour_copies, 16);
    assert_eq!(counters.neighbour_copies_dropped - before.neighbour_copies_dropped, 84);
    let xid = cores.client.call(cores.now, streams[1], GETATTR, &Args::new().opaque(&root));
    cores.settle();
    let counters = cores.shards[0].steering_counters();
    assert!(counters.handed_over > before.handed_over, "the segment has a place");
    assert_eq!(counters.inbox_full, 0);
    cores.stopped[1] = false;
    cores.wait(streams[1], xid).ok();
    cores.close_all();
}

#[test]
fn a_call_repeated_over_another_core_gets_its_first_answer() {
    let mut cores = Cores::new(&Setup::default(), CORES, Box::new(right));
    let streams = cores.connect_to_each();
    let root = cores.root.clone();
    // GUARDED: done twice it would fail with NFS3ERR_EXIST.
    let create = Args::new().opaque(&root).opaque(b"once").u32(1).u32(1).u32(0o644).u32(0).u32(0).u32(0).u32(0).u32(0);
    let remove = Args::new().opaque(&root).opaque(b"once");
    for (procedure, arguments) in [(CREATE, &create), (REMOVE, &remove)] {
        let xid = cores.client.next_xid();
        let record = nfs::record(&nfs::call(xid, procedure, arguments));
        let answers = [0, 1].map(|core: usize| {
            cores.client.send(cores.now, streams[core], &record);
            cores.wait(streams[core], xid).ok().rest().to_vec()
        });
        assert_eq!(answers[0], answers[1], "procedure {procedure}");
    }
    assert_eq!(cores.shards[1].rpc().counters().duplicates_replayed, 2);
    assert_eq!(cores.shards[0].rpc().counters().duplicates_replayed, 0);
    let mut again = cores.call(streams[1], REMOVE, &remove);
    assert_eq!(again.u32(), NFS3ERR_NOENT, "a call of its own");
    cores.close_all();
    assert_eq!(cores.data_pages(), 0);
}

fn ipv6_counters(cores: &Cores, core: usize) -> Ipv6Counters {
    *cores.shards[core].lanes()[0].interface.ipv6_counters().expect("it has IPv6")
}

#[test]
fn ipv6_segments_reach_their_owner_whatever_the_nic_does() {
    let nics: [(&str, Choose); 4] = [
        ("right", Box::new(right)),
        ("no RSS: one queue gets all", Box::new(|_| 0)),
        ("the other core, neighbours too", Box::new(|frame| 1 - right(frame))),
        ("every other frame", every_other()),
    ];
    for (what, choose) in nics {
        let mut cores = Cores::new(&over_ipv6(), CORES, choose);
        use_files(&mut cores);
        let opens: Vec<u64> = cores.shards.iter().map(|shard| shard.tcp().counters().passive_opens).collect();
        assert!(opens.iter().all(|opens| *opens > 0), "{what}: {opens:?}");
        let counters: Vec<_> = cores.shards.iter().map(|shard| shard.steering_counters()).collect();
        let sum = |of: fn(&SteeringCounters) -> u64| counters.iter().map(of).sum::<u64>();
        assert_eq!(sum(|c| c.handed_over) > 0, what != "right");
        assert_eq!((sum(|c| c.handed_over), sum(|c| c.inbox_full)), (sum(|c| c.taken_over), 0), "{what}");
        let resets: u64 = cores.shards.iter().map(|shard| shard.tcp().counters().out_rsts).sum();
        assert_eq!(resets, 0, "{what}");
        cores.close_all();
    }
}

/// Duplicates are looked for, groups reported and solicitations answered by core 0, wherever what is about them comes in.
#[test]
fn one_core_speaks_for_the_ports_ipv6() {
    let nics: [Choose; 3] = [Box::new(right), Box::new(|frame| 1 - right(frame)), every_other()];
    for choose in nics {
        let mut cores = Cores::new(&over_ipv6(), CORES, choose);
        let streams = cores.connect_to_each();
        for stream in streams {
            cores.call(stream, nfs::NULL, &Args::new());
        }
        cores.run(Duration::from_secs(100), |_| false);
        let own = |core: usize| cores.shards[core].lanes()[0].interface.addresses().collect::<Vec<_>>();
        assert_eq!(own(0), own(1));
        assert_eq!(own(1).iter().filter(|address| address.is_ipv6()).count(), 2, "the link-local one, too");
        let (leader, follower) = (ipv6_counters(&cores, 0), ipv6_counters(&cores, 1));
        let asked = cores.client.interface.ipv6_counters().unwrap().nd_solicitations_out;
        assert!(asked > 0 && leader.nd_solicitations_in == asked, "{asked} questions, {} heard", leader.nd_solicitations_in);
        // An answer each, and the announcements of two addresses.
        assert_eq!(leader.nd_advertisements_out, asked + 4);
        assert!(leader.mld_reports_out > 0);
        assert_eq!((follower.nd_solicitations_in, follower.nd_advertisements_out, follower.mld_reports_out), (0, 0, 0));
        cores.close_all();
    }
}

/// A router's "packet too big", which no hash leads to its connection's core.
#[test]
fn packet_too_big_reaches_the_owner() {
    for wrong in [0, 1] {
        let mut cores = Cores::new(&over_ipv6(), CORES, Box::new(move |frame| wrong ^ right(frame)));
        let streams = cores.connect_to_each();
        let root = cores.root.clone();
        let file = cores.call(streams[0], CREATE, &nfs::create(&root, b"file")).ok().created();
        cores.call(streams[0], WRITE, &nfs::write(&file, 0, &pattern(5, 100_000))).ok();
        for (owner, stream) in streams.into_iter().enumerate() {
            // The link behind the router takes 1,300 bytes.
            let refused = Rc::new(RefCell::new(None));
            let last = Rc::clone(&refused);
            cores.link.set_filter(
                1,
                Some(Box::new(move |frame| {
                    let fits = frame.len() <= 14 + 1_300;
                    if !fits {
                        *last.borrow_mut() = Some(frame[14..].to_vec());
                    }
                    fits
                })),
            );
            let xid = cores.client.call(cores.now, stream, READ, &nfs::read(&file, 0, 100_000));
            assert!(cores.run(Duration::from_millis(50), |_| refused.borrow().is_some()));
            let packet = refused.borrow_mut().take().unwrap();
            cores.client.device.inject(too_big(&packet[..600]));
            assert!(cores.wait(stream, xid).ok().data() == pattern(5, 100_000), "wrong bytes");
            let reductions = |core: usize| cores.shards[core].tcp().counters().pmtu_reductions;
            assert_eq!((reductions(owner), reductions(1 - owner)), (1, owner as u64), "NIC {wrong}, owner {owner}");
        }
        cores.close_all();
    }
}

/// RFC 4443 section 3.2 about a packet of the server's, from a router with the client's MAC address.
fn too_big(quoted: &[u8]) -> Vec<u8> {
    let router: Ipv6Addr = "fd4e:6673::99".parse().unwrap();
    let server: Ipv6Addr = <[u8; 16]>::try_from(&quoted[8..24]).unwrap().into();
    let message = icmpv6::Repr::PacketTooBig { mtu: 1_300 }.emit(router, server, &[quoted]);
    let header = ipv6::Repr {
        src: router,
        dst: server,
        next_header: protocol::ICMPV6,
        traffic_class: 0,
        flow_label: 0,
        hop_limit: 60,
        payload_len: (message.len() + quoted.len()) as u16,
    };
    let link = ethernet::Repr {
        dst: ethernet::Address(SERVER_MAC),
        src: ethernet::Address(CLIENT_MAC),
        ethertype: ethernet::ethertype::IPV6,
    };
    [&link.emit()[..], &header.emit(), &message, quoted].concat()
}
