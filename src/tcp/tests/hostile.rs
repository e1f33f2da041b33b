//! Arbitrary bytes against an endpoint with a connection: nothing panics, nothing grows without bound.

use std::net::IpAddr;

use super::pair::{Random, encode};
use crate::buf::{Checksum, FragmentArena, PagePool, RxBuf, RxPacket};
use crate::tcp::{Endpoint, Event, Options, Transmit, TransmitLimits};
use crate::time::{Duration, Instant};
use crate::wire::tcp::{Flags, Repr, SeqNumber, TcpOptions, Timestamps};

fn ip(n: u8) -> IpAddr {
    IpAddr::from([10, 0, 0, n])
}

/// An endpoint with one established connection, and the sequence numbers an attacker would love to know.
struct Victim {
    endpoint: Endpoint,
    pool: PagePool,
    now: Instant,
    transmit: Transmit,
    last: Repr,
}

impl Victim {
    fn new(options: Options) -> Victim {
        let pool = PagePool::anonymous(256, 4096).unwrap();
        let mut endpoint = Endpoint::new(options, [7; 16]);
        endpoint.set_copy_out(FragmentArena::new(pool.clone()).unwrap());
        endpoint.listen(2049).unwrap();
        let mut victim =
            Victim { endpoint, pool, now: Instant::from_millis(1), transmit: Transmit::default(), last: Repr::default() };
        let options = TcpOptions {
            mss: Some(1460),
            window_scale: Some(7),
            sack_permitted: true,
            timestamps: Some(Timestamps { value: 1, echo_reply: 0 }),
            ..TcpOptions::default()
        };
        let syn = Repr { src_port: 1023, dst_port: 2049, flags: Flags::SYN, window: 1000, options, ..Repr::default() };
        victim.inject(&encode(ip(1), ip(2), &syn, &[]));
        let answer = victim.last;
        let options = TcpOptions { timestamps: options.timestamps, ..TcpOptions::default() };
        let ack = Repr { seq: SeqNumber(1), ack: answer.seq + 1, flags: Flags::ACK, options, ..syn };
        victim.inject(&encode(ip(1), ip(2), &ack, &[]));
        let Some(Event::Accepted { id, .. }) = victim.endpoint.poll_event() else { panic!("no connection") };
        let page = victim.pool.allocate().unwrap().freeze();
        victim.endpoint.send(victim.now, id, &mut vec![page.clone(), page]).unwrap();
        victim.flush();
        victim
    }

    fn inject(&mut self, bytes: &[u8]) {
        self.endpoint.handle_segment(self.now, ip(1), ip(2), RxPacket::from_vec(bytes.to_vec()), Checksum::Good);
        self.flush();
    }

    fn flush(&mut self) {
        while self.endpoint.poll_transmit(self.now, &TransmitLimits::default(), &mut self.transmit) {
            (self.last, _) = Repr::parse(self.transmit.header()).unwrap();
        }
    }
}

/// Feeds `bytes` to an endpoint with one established connection: each segment is a length byte, then what follows. The bytes
/// choose how near to the connection's own numbers a segment is. What a fuzzer calls.
pub fn fuzz(bytes: &[u8]) {
    let mut victim = Victim::new(Options { time_wait: Duration::from_millis(500), ..Options::default() });
    let mut rest = bytes;
    while let [len, how, more @ ..] = rest {
        let (segment, after) = more.split_at(usize::from(*len).min(more.len()));
        rest = after;
        let mut segment = segment.to_vec();
        if how & 1 != 0 && segment.len() >= 20 {
            // A segment of this connection: right ports, numbers near the window.
            segment[..4].copy_from_slice(&[0x03, 0xff, 0x08, 0x01]);
            let near =
                |at: &[u8], base: u32| base.wrapping_add(i32::from(i16::from_be_bytes([at[0], at[1]]) >> (how >> 4)) as u32);
            let seq = near(&segment[4..6], victim.last.ack.0);
            let ack = near(&segment[8..10], victim.last.seq.0);
            segment[4..8].copy_from_slice(&seq.to_be_bytes());
            segment[8..12].copy_from_slice(&ack.to_be_bytes());
            if how & 2 != 0 {
                segment[12] = 0x50;
                segment[13] |= 0x10;
            }
        }
        victim.inject(&segment);
        if how & 4 != 0 {
            victim.now += Duration::from_millis(u64::from(*how));
            victim.endpoint.handle_timeout(victim.now);
            victim.flush();
        }
        while let Some(event) = victim.endpoint.poll_event() {
            if let Event::Readable(id) = event
                && let Some(chain) = victim.endpoint.receive(id)
            {
                chain.consume(usize::from(*len));
                victim.endpoint.received(victim.now, id);
            }
        }
        assert!(victim.endpoint.connections().count() < 10);
    }
}

#[test]
fn arbitrary_segments_do_no_harm() {
    for seed in 0..300 {
        let mut random = Random(seed);
        let bytes: Vec<u8> = (0..4_000).map(|_| random.next() as u8).collect();
        fuzz(&bytes);
    }
}

#[test]
fn one_byte_segments_cannot_pin_the_receive_pool() {
    let options = Options { driver_buffers_max: 64, receive_buffers_max: 256, quick_acks: 0, ..Options::default() };
    let mut victim = Victim::new(options);
    let (seq, ack) = (victim.last.ack, victim.last.seq);
    let timestamps = Some(Timestamps { value: 2, echo_reply: 0 });
    let segment = |at: u32| Repr {
        src_port: 1023,
        dst_port: 2049,
        seq: seq + at,
        ack,
        flags: Flags::ACK,
        window: 1000,
        options: TcpOptions { timestamps, ..TcpOptions::default() },
        ..Repr::default()
    };
    // In order, then with holes; nobody reads.
    for n in 0..20_000 {
        victim.inject(&encode(ip(1), ip(2), &segment(n), &[n as u8]));
        assert!(victim.endpoint.counters().driver_buffers_held <= 64);
    }
    for n in (20_002..40_000).step_by(2) {
        victim.inject(&encode(ip(1), ip(2), &segment(n), &[n as u8]));
        assert!(victim.endpoint.counters().driver_buffers_held <= 64);
    }
    let id = victim.endpoint.connections().next().unwrap();
    assert_eq!(victim.endpoint.info(id).unwrap().unread_bytes, 20_000);
    assert!(victim.endpoint.counters().copied_out_bytes > 0 && victim.endpoint.counters().ofo_drops > 0);
    assert!(victim.pool.outstanding() < 64, "{:?}", victim.pool);
    let chain = victim.endpoint.receive(id).unwrap();
    assert!(chain.buffers() <= 256);
    let bytes = chain.view(0, 20_000).unwrap().to_vec();
    assert!(bytes.iter().enumerate().all(|(n, byte)| *byte == n as u8));
}

/// A record in more pieces than there are buffers comes whole: its reader waits for the last one, and the peer for a window.
#[test]
fn small_segments_do_not_close_the_window() {
    let mut victim = Victim::new(Options { receive_buffers_max: 64, timestamps: false, ..Options::default() });
    let (seq, ack) = (victim.last.ack, victim.last.seq);
    let mut edge = seq + 1000;
    for n in 0..300 {
        let segment = Repr {
            src_port: 1023,
            dst_port: 2049,
            seq: seq + 100 * n,
            ack,
            flags: Flags::ACK | Flags::PSH,
            window: 1000,
            ..Repr::default()
        };
        assert!(edge.distance(segment.seq) >= 100, "a window of {} after {n} segments", edge.distance(segment.seq));
        victim.inject(&encode(ip(1), ip(2), &segment, &[n as u8; 100]));
        victim.now += Duration::from_millis(50);
        victim.endpoint.handle_timeout(victim.now);
        victim.flush();
        edge = victim.last.ack + u32::from(victim.last.window);
    }
    let id = victim.endpoint.connections().next().unwrap();
    let bytes = victim.endpoint.receive(id).unwrap().all().to_vec();
    assert!(bytes.len() == 30_000 && bytes.iter().enumerate().all(|(at, byte)| *byte == (at / 100) as u8));
}

/// What a device has coalesced may be more than what is left: it is copied, and what waits for a hole stays.
#[test]
fn a_train_that_would_make_buffers_short_is_copied() {
    let options = Options { driver_buffers_max: 64, timestamps: false, ..Options::default() };
    let mut victim = Victim::new(options);
    let (seq, ack) = (victim.last.ack, victim.last.seq);
    let segment =
        |at: u32| Repr { src_port: 1023, dst_port: 2049, seq: seq + at, ack, flags: Flags::ACK, window: 1000, ..Repr::default() };
    const TRAIN: u32 = 16 * 800;
    for n in 0..40 {
        victim.inject(&encode(ip(1), ip(2), &segment(TRAIN + 800 * n), &[0; 800]));
    }
    assert_eq!(victim.endpoint.counters().driver_buffers_held, 40);
    let mut packet = RxPacket::from_vec(encode(ip(1), ip(2), &segment(0), &[0; 800]));
    (1..16).for_each(|_| packet.more.push(RxBuf::from_vec(vec![0; 800])));
    victim.endpoint.handle_segment(victim.now, ip(1), ip(2), packet, Checksum::Good);
    victim.flush();
    let counters = victim.endpoint.counters();
    assert_eq!((counters.ofo_pruned, counters.rcv_buffer_drops, counters.copied_out_bytes), (0, 0, u64::from(TRAIN)));
    assert_eq!(victim.last.ack, seq + TRAIN + 40 * 800);
}

#[test]
fn forged_syns_do_not_keep_an_honest_peer_out() {
    let mut victim = Victim::new(Options { syn_received_max: 16, syn_cookies: false, ..Options::default() });
    let syn = |port| Repr { src_port: port, dst_port: 2049, flags: Flags::SYN, window: 1000, ..Repr::default() };
    for n in 0..1_000 {
        victim.inject(&encode(ip(1), ip(2), &syn(2_000 + n), &[]));
        assert!(victim.endpoint.connections().count() <= 17);
    }
    victim.inject(&encode(ip(1), ip(2), &syn(700), &[]));
    let ack = Repr { seq: SeqNumber(1), ack: victim.last.seq + 1, flags: Flags::ACK, ..syn(700) };
    victim.inject(&encode(ip(1), ip(2), &ack, &[]));
    let accepted = std::iter::from_fn(|| victim.endpoint.poll_event())
        .any(|event| matches!(event, Event::Accepted { remote, .. } if remote.port() == 700));
    assert!(accepted);
    assert_eq!(victim.endpoint.counters().half_open_evicted, 1_000 - 16 + 1);
}

#[test]
fn a_peer_that_is_not_read_leaves_driver_buffers_to_others() {
    let options = Options { driver_buffers_max: 64, timestamps: false, ..Options::default() };
    let mut victim = Victim::new(options);
    // No room to copy to.
    victim.endpoint.set_copy_out(FragmentArena::leaving(victim.pool.clone(), 256).unwrap());
    let (seq, ack) = (victim.last.ack, victim.last.seq);
    let segment =
        |port, seq, ack| Repr { src_port: port, dst_port: 2049, seq, ack, flags: Flags::ACK, window: 1000, ..Repr::default() };
    for n in 0..75 {
        victim.inject(&encode(ip(1), ip(2), &segment(1023, seq + 800 * n, ack), &[0; 800]));
    }
    let drops = victim.endpoint.counters().rcv_buffer_drops;
    assert!(drops > 0);
    let syn = Repr { flags: Flags::SYN, ..segment(700, SeqNumber(0), SeqNumber(0)) };
    victim.inject(&encode(ip(1), ip(2), &syn, &[]));
    let ack = victim.last.seq + 1;
    victim.inject(&encode(ip(1), ip(2), &segment(700, SeqNumber(1), ack), &[0; 800]));
    assert_eq!(victim.endpoint.counters().rcv_buffer_drops, drops);
    assert_eq!(victim.last.ack, SeqNumber(801));
}
