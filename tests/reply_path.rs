//! The reply path of the whole server: what was queued for a client is what the client gets, once, whole, in order, however
//! late, and whatever happens to the file meanwhile; and a client that does not take it harms nobody else.

mod support;

use std::cell::Cell;
use std::rc::Rc;

use nfsplice::buf::RxPacket;
use nfsplice::net::memory_link::{EndOptions, Impairments};
use nfsplice::net::{Checksum, RxFrame};
use nfsplice::tcp::Reason;
use nfsplice::time::Duration;
use nfsplice::wire::ethernet::{self, ethertype};
use nfsplice::wire::ndp::{self, RouterAdvertisement};
use nfsplice::wire::{ipv6, protocol};
use support::nfs::{self, Args};
use support::server::Setup;
use support::witness::{Witness, segment};
use support::{CLIENT, CLIENT_MAC, LinkRig, SERVER, SERVER_MAC};

const MIB: usize = 1 << 20;

fn pattern(seed: u8, len: usize) -> Vec<u8> {
    (0..len).map(|at| (at as u8).wrapping_mul(31).wrapping_add((at >> 8) as u8).wrapping_add(seed)).collect()
}

/// Everything was given back: no page of a reply or a request is out, and after the files are gone no page at all.
fn assert_nothing_is_left(rig: &mut LinkRig, files: &[&[u8]]) {
    let stream = rig.connect();
    for name in files {
        rig.remove(stream, name);
    }
    rig.close_all();
    assert_eq!(rig.server.pages_out(), (0, 0), "pages of files, of fragments");
    assert_eq!(rig.server.shard.counters().replies_refused, 0);
}

/// A router says how long packets on the link may be.
fn router_says_mtu(mtu: u32) -> RxFrame {
    let router = "fe80::9".parse().unwrap();
    let said = RouterAdvertisement {
        hop_limit: 0,
        managed: false,
        other: false,
        lifetime_s: 1800,
        reachable_ms: 0,
        retransmit_ms: 0,
        source: None,
        mtu: Some(mtu),
        prefixes: Default::default(),
    };
    let message = ndp::Repr::RouterAdvertisement(said).emit(router, ipv6::ALL_NODES);
    let link = ethernet::Repr {
        dst: ipv6::multicast_mac(ipv6::ALL_NODES),
        src: ethernet::Address([2, 0, 0, 0, 0, 9]),
        ethertype: ethertype::IPV6,
    };
    let header = ipv6::Repr {
        src: router,
        dst: ipv6::ALL_NODES,
        next_header: protocol::ICMPV6,
        traffic_class: 0,
        flow_label: 0,
        hop_limit: 255,
        payload_len: message.len() as u16,
    };
    let frame = [&link.emit()[..], &header.emit(), &message].concat();
    RxFrame { packet: RxPacket::from_vec(frame), ip_checksum: Checksum::Unknown, l4_checksum: Checksum::Unknown }
}

/// RFC 4861 section 6.3.4: TCP follows at its first packet that is longer, and nothing waits for a timer.
#[test]
fn replies_keep_to_the_mtu_that_a_router_has_told() {
    const LEN: usize = 100_000;
    for end in [EndOptions::plain, EndOptions::offloading] {
        let ends = [EndOptions::plain(CLIENT_MAC, 1500), end(SERVER_MAC, 1500)];
        let setup = Setup { ipv6: true, slaac: true, ..Setup::default() };
        let mut rig = support::on_link(&setup, 0, [Impairments::default(); 2], ends);
        let stream = rig.connect();
        let old = pattern(1, LEN);
        let file = rig.create(stream, b"file");
        rig.write(stream, &file, 0, &old);
        let longest = Rc::new(Cell::new(0));
        let seen = Rc::clone(&longest);
        let look = move |frame: &[u8]| {
            seen.set(seen.get().max(frame.len()));
            true
        };
        rig.cable.set_filter(SERVER, Some(Box::new(look)));
        assert!(rig.read(stream, &file, 0, LEN as u32) == old);
        assert_eq!(longest.replace(0), 14 + 1500);
        let now = rig.now;
        rig.server.shard.lanes_mut()[0].interface.handle_frame(now, router_says_mtu(1400));
        assert!(rig.read(stream, &file, 0, LEN as u32) == old);
        assert_eq!(longest.get(), 14 + 1400);
        assert!(rig.now - now < Duration::from_millis(100), "{:?}", rig.now - now);
        // A connection that knows nothing of it, too.
        let another = rig.connect();
        assert!(rig.read(another, &file, 0, LEN as u32) == old);
        assert_eq!(longest.get(), 14 + 1400);
        assert_eq!(rig.server.shard.counters().packets_undeliverable, 0);
        rig.cable.set_filter(SERVER, None);
        assert_nothing_is_left(&mut rig, &[b"file"]);
    }
}

#[derive(Clone, Copy, PartialEq)]
enum Lost {
    /// The reply itself.
    Data,
    /// The client's acknowledgements of it.
    Acknowledgements,
}

#[derive(Clone, Copy, PartialEq)]
enum Change {
    Write,
    Truncate,
    /// A part of a page, which is copied on write.
    WritePart,
}

/// A READ reply is held unacknowledged while the file changes; its retransmission is the old bytes.
fn a_held_reply(lost: Lost, change: Change, tso: bool) {
    const LEN: usize = 100_000;
    let end = if tso { EndOptions::offloading } else { EndOptions::plain };
    let ends = [EndOptions::plain(CLIENT_MAC, 1500), end(SERVER_MAC, 1500)];
    let mut rig = support::on_link(&Setup::default(), 0, [Impairments::default(); 2], ends);
    rig.server.device().hold_transmitted();
    let (reader, writer) = (rig.connect(), rig.connect());
    let (old, new) = (pattern(1, LEN), pattern(99, LEN));
    let file = rig.create(writer, b"file");
    rig.write(writer, &file, 0, &old);
    // Opens the congestion window, so that all of the reply leaves at once.
    for _ in 0..6 {
        assert!(rig.read(reader, &file, 0, LEN as u32) == old);
    }
    rig.pass(Duration::from_secs(1));

    let witness = Witness::default();
    let (cut, port) = (Rc::new(Cell::new(true)), rig.client.streams[reader].port);
    let cut_here = cut.clone();
    rig.cable.set_filter(
        SERVER,
        Some(witness.filter(move |repr, payload| {
            !(cut_here.get() && lost == Lost::Data && repr.dst_port == port && !payload.is_empty())
        })),
    );
    let cut_here = cut.clone();
    rig.cable.set_filter(
        CLIENT,
        Some(Box::new(move |frame| match segment(frame) {
            Some((repr, payload)) => {
                !(cut_here.get() && lost == Lost::Acknowledgements && repr.src_port == port && payload.is_empty())
            }
            None => true,
        })),
    );
    let rto_timeouts = rig.server.shard.tcp().counters().rto_timeouts;
    let xid = rig.client.call(rig.now, reader, nfs::READ, &nfs::read(&file, 0, LEN as u32));
    rig.pass(Duration::from_millis(1));
    assert!(rig.server.queued_bytes() > LEN, "the reply is queued, not acknowledged");

    let after = match change {
        Change::Write => {
            rig.write(writer, &file, 0, &new);
            new.clone()
        }
        Change::WritePart => {
            rig.write(writer, &file, 70_000, &new[..1000]);
            [&old[..70_000], &new[..1000], &old[71_000..]].concat()
        }
        Change::Truncate => {
            rig.truncate(writer, &file, 10);
            rig.truncate(writer, &file, LEN as u64);
            [&old[..10], &vec![0; LEN - 10][..]].concat()
        }
    };
    rig.pass(Duration::from_secs(3));
    assert!(rig.server.shard.tcp().counters().rto_timeouts > rto_timeouts, "no retransmission timeout");
    assert!(rig.server.queued_bytes() > LEN, "still not acknowledged");
    cut.set(false);
    let data = rig.wait(reader, xid).ok().data();
    assert!(data == old, "the reply that was queued before the change");
    // Longer than any retransmission would take.
    rig.pass(Duration::from_secs(100));
    assert!(witness.repeated(port) > 0, "nothing was sent twice");
    assert_eq!((rig.client.streams[reader].replies.len(), rig.client.streams[reader].unfinished()), (0, 0), "exactly once");
    assert!(rig.read(reader, &file, 0, LEN as u32) == after, "the next READ");
    assert!(rig.server.device().release_transmitted(), "a page changed under the device");
    rig.pass(Duration::from_secs(1));
    assert!(rig.server.device().release_transmitted());
    for stream in [reader, writer] {
        rig.client.close(rig.now, stream);
    }
    rig.pass(Duration::from_secs(5));
    assert!(rig.server.device().release_transmitted());
    let last = rig.connect();
    rig.remove(last, b"file");
    rig.close_all();
    assert!(rig.server.device().release_transmitted());
    assert_eq!(rig.server.pages_out(), (0, 0));
}

#[test]
fn a_reply_that_was_lost_is_sent_again_with_the_old_bytes() {
    for tso in [false, true] {
        a_held_reply(Lost::Data, Change::Write, tso);
        a_held_reply(Lost::Data, Change::WritePart, tso);
        a_held_reply(Lost::Data, Change::Truncate, tso);
    }
}

#[test]
fn a_reply_whose_acknowledgement_was_lost_is_sent_again_with_the_old_bytes_and_taken_once() {
    for tso in [false, true] {
        a_held_reply(Lost::Acknowledgements, Change::Write, tso);
        a_held_reply(Lost::Acknowledgements, Change::WritePart, tso);
        a_held_reply(Lost::Acknowledgements, Change::Truncate, tso);
    }
}

/// Lengths of a reply's record by its parts: head (24 bytes of RPC, 4 + 88 + 12 of READ3resok up to the data), pages, tail.
fn read_reply_len(data: usize) -> usize {
    24 + 4 + 88 + 4 + 4 + 4 + data.next_multiple_of(4)
}

#[test]
fn pipelined_replies_do_not_interleave_and_are_as_long_as_their_parts() {
    let mut rig = support::plain(&Setup::default());
    let stream = rig.connect();
    let bytes = pattern(3, 300_000);
    let file = rig.create(stream, b"file");
    rig.write(stream, &file, 0, &bytes);
    let lens = [1usize, 2, 3, 4, 5, 4096, 65_535, 65_536, 65_537, 200_001, 7];
    let xids: Vec<(u32, usize)> = lens
        .iter()
        .map(|&len| (rig.client.call(rig.now, stream, nfs::READ, &nfs::read(&file, len as u64, len as u32)), len))
        .collect();
    assert!(rig.run(Duration::from_secs(10), |rig| rig.client.streams[stream].replies.len() == lens.len()));
    for ((xid, len), reply) in xids.into_iter().zip(rig.client.streams[stream].replies.clone()) {
        assert_eq!(reply[..4], xid.to_be_bytes(), "in the order of the calls, since nothing waited");
        let have = len.min(bytes.len() - len);
        assert_eq!(reply.len(), read_reply_len(have), "len == head + pages + tail");
        assert!(nfs::accepted(reply).unwrap().1.ok().data() == bytes[len..len + have]);
    }
    assert_nothing_is_left(&mut rig, &[b"file"]);
}

#[test]
fn replies_out_of_order_are_matched_by_xid() {
    let mut rig = support::plain(&Setup { parking: Some(1), ..Setup::default() });
    let stream = rig.connect();
    let bytes = pattern(4, 200_000);
    let file = rig.create(stream, b"file");
    rig.write(stream, &file, 0, &bytes);
    let calls: Vec<(u32, usize)> = (0..60)
        .map(|n| (rig.client.call(rig.now, stream, nfs::READ, &nfs::read(&file, 3000 * n as u64, 2500)), 3000 * n))
        .collect();
    assert!(rig.run(Duration::from_secs(10), |rig| rig.client.streams[stream].replies.len() == calls.len()));
    let order: Vec<u32> =
        rig.client.streams[stream].replies.iter().map(|r| u32::from_be_bytes(r[..4].try_into().unwrap())).collect();
    assert!(!order.is_sorted(), "nothing was overtaken");
    for (xid, at) in calls {
        let data = rig.client.streams[stream].take_reply(xid).expect("one reply for each call").ok().data();
        assert!(data == bytes[at..at + 2500]);
    }
    assert_nothing_is_left(&mut rig, &[b"file"]);
}

#[test]
fn a_client_that_never_reads_is_asked_no_further_and_harms_nobody() {
    const LIMIT: u64 = 512 << 10;
    const CALLS: usize = 200;
    let mut rig = support::plain(&Setup::default().send_queue_bytes_max(LIMIT));
    let (greedy, modest) = (rig.connect(), rig.connect());
    let bytes = pattern(5, 64 << 10);
    let file = rig.create(modest, b"file");
    rig.write(modest, &file, 0, &bytes);
    let idle_pages = rig.server.pages_out();
    rig.client.streams[greedy].reads = false;
    let xids: Vec<u32> =
        (0..CALLS).map(|_| rig.client.call(rig.now, greedy, nfs::READ, &nfs::read(&file, 0, 64 << 10))).collect();
    for _ in 0..60 {
        rig.pass(Duration::from_secs(2));
        let queued = rig.server.queued_bytes() as u64;
        assert!(queued <= LIMIT, "{queued} bytes queued");
        assert!(rig.read(modest, &file, 0, 64 << 10) == bytes, "others are served");
    }
    let executed = rig.server.shard.rpc().counters().rpccnt;
    let (_, fragments) = rig.server.pages_out();
    assert!(rig.server.shard.rpc().counters().stalls_send_queue > 0);
    // What lies in the client's receive window is not queued here any more: 2 MiB are 32 replies.
    assert!(rig.client.streams[greedy].replies.is_empty() && executed < 60 + CALLS as u64 / 2, "{executed} calls were executed");
    assert!(fragments < idle_pages.1 + 8, "{fragments} fragment pages");
    rig.pass(Duration::from_secs(30));
    assert_eq!(rig.client.streams[greedy].closed, None, "waiting is not a reason to be cut off");

    rig.client.resume(rig.now, greedy);
    assert!(rig.run(Duration::from_secs(600), |rig| rig.client.streams[greedy].replies.len() == CALLS), "everything arrives");
    for xid in xids {
        assert!(rig.client.streams[greedy].take_reply(xid).unwrap().ok().data() == bytes);
    }
    assert_nothing_is_left(&mut rig, &[b"file"]);
}

#[test]
fn a_client_that_closes_its_side_gets_all_its_replies_and_then_the_end() {
    for parking in [None, Some(9)] {
        let mut rig = support::plain(&Setup { parking, ..Setup::default() });
        let (stream, other) = (rig.connect(), rig.connect());
        let bytes = pattern(6, 500_000);
        let file = rig.create(other, b"file");
        rig.write(other, &file, 0, &bytes);
        let xids: Vec<u32> =
            (0..20).map(|_| rig.client.call(rig.now, stream, nfs::READ, &nfs::read(&file, 0, 500_000))).collect();
        rig.client.close(rig.now, stream);
        assert!(rig.run(Duration::from_secs(60), |rig| rig.client.streams[stream].closed.is_some()));
        assert_eq!(rig.client.streams[stream].closed, Some(Reason::Finished), "an end in good order");
        for xid in xids {
            assert!(rig.client.streams[stream].take_reply(xid).expect("every reply").ok().data() == bytes);
        }
        assert_eq!(rig.client.streams[stream].unfinished(), 0);
        assert_nothing_is_left(&mut rig, &[b"file"]);
    }
}

#[test]
fn a_call_of_single_bytes_is_answered() {
    let mut rig = support::plain(&Setup::default());
    let stream = rig.connect();
    let root = rig.server.root.clone();
    let record = nfs::record(&nfs::call(77, nfs::GETATTR, &Args::new().opaque(&root)));
    let before = rig.server.shard.tcp().counters().in_segs;
    for byte in &record {
        rig.client.send(rig.now, stream, &[*byte]);
        // Until the congestion window admits the next.
        let want = rig.server.shard.tcp().counters().in_bytes + 1;
        assert!(rig.run(Duration::from_secs(1), |rig| rig.server.shard.tcp().counters().in_bytes >= want));
    }
    assert!(rig.server.shard.tcp().counters().in_segs - before >= record.len() as u64, "each byte in its own segment");
    rig.wait(stream, 77).ok();
    assert_nothing_is_left(&mut rig, &[]);
}

#[test]
fn a_thousand_calls_in_few_segments_are_all_answered_in_order() {
    let setup = Setup { mtu: 9000, ..Setup::default() };
    let mut rig = support::plain(&setup);
    let stream = rig.connect();
    let root = rig.server.root.clone();
    let records: Vec<u8> = (1..=1000u32)
        .flat_map(|xid| {
            nfs::record(&nfs::call(xid, if xid % 2 == 0 { nfs::NULL } else { nfs::GETATTR }, &Args::new().opaque(&root)))
        })
        .collect();
    let before = rig.server.shard.tcp().counters().in_segs;
    rig.client.send(rig.now, stream, &records);
    assert!(rig.run(Duration::from_secs(10), |rig| rig.client.streams[stream].replies.len() == 1000));
    let segments = rig.server.shard.tcp().counters().in_segs - before;
    assert!(segments < 100, "{segments} segments for {} bytes", records.len());
    let xids: Vec<u32> =
        rig.client.streams[stream].replies.drain(..).map(|reply| nfs::accepted(reply).expect("accepted").0).collect();
    assert_eq!(xids, (1..=1000).collect::<Vec<u32>>());
    assert_nothing_is_left(&mut rig, &[]);
}

#[test]
fn the_largest_write_and_read_go_through_at_every_mtu_with_and_without_offloads() {
    for (mtu, offloads) in [(1500, false), (1500, true), (9000, false), (9000, true)] {
        let end = |mac| if offloads { EndOptions::offloading(mac, mtu) } else { EndOptions::plain(mac, mtu) };
        let setup = Setup { mtu, ..Setup::default() };
        let mut rig = support::on_link(&setup, 0, [Impairments::default(); 2], [end(CLIENT_MAC), end(SERVER_MAC)]);
        let stream = rig.connect();
        let bytes = pattern(8, MIB);
        let file = rig.create(stream, b"file");
        rig.write(stream, &file, 0, &bytes);
        assert!(rig.read(stream, &file, 0, MIB as u32) == bytes);
        assert!(rig.read(stream, &file, 12_345, MIB as u32) == bytes[12_345..], "from within a block");
        assert_nothing_is_left(&mut rig, &[b"file"]);
    }
}
