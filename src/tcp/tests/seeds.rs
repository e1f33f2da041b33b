//! Whole conversations under many seeds: faults, limits, options and the network are drawn from the seed, and everything that must
//! hold of a finished conversation is looked at.
//!
//! `TCP_SEEDS=n` runs so many (`make sim SEEDS=n`), `TCP_FIRST=s` begins there, `TCP_SEED=s` runs one again, `TCP_TRACE=1` prints each
//! segment.

use super::campaign;
use super::pair::{ANY_LENGTH, CLEAN, Faults, Pair, Random, Side, script};
use crate::buf::{FragmentArena, PagePool};
use crate::tcp::{CongestionControl, Ecn, Options, Reason, TcpCounters, TransmitLimits};
use crate::time::{Duration, Instant};

/// Seeds of a plain test run.
const SEEDS: u64 = 1000;

fn pick<T: Copy>(random: &mut Random, from: &[T]) -> T {
    from[random.below(from.len() as u64) as usize]
}

/// What can be told apart from outside: when it was over, and what both sides sent and counted.
type Course = (Instant, [(u64, TcpCounters); 2]);

/// Faults of both directions.
fn faults(seed: u64) -> [Faults; 2] {
    let mut random = Random(seed ^ 0x5eed);
    let mut faults = Faults {
        loss: pick(&mut random, &[0, 1, 10, 30, 100]),
        duplicate: pick(&mut random, &[0, 10, 50]),
        reorder: pick(&mut random, &[0, 10, 200]),
        corrupt: pick(&mut random, &[0, 0, 10]),
        mark: pick(&mut random, &[0, 20, 300]),
        jump: pick(&mut random, &[0, 0, 0, 2]),
        icmp: random.chance(500),
        delay: Duration::from_micros(pick(&mut random, &[50, 1_000, 20_000, 100_000])),
        jitter: Duration::from_micros(pick(&mut random, &[0, 0, 30, 3_000])),
        cut: pick(&mut random, &[0, 0, 0, 3]),
        burst: pick(&mut random, &[0, 0, 1, 5]),
        ..CLEAN
    };
    // A third keeps the order, and there the judge asks for a reason for whatever is sent again.
    if random.chance(333) {
        (faults.duplicate, faults.reorder, faults.jitter) = (0, 0, Duration::ZERO);
        return [faults; 2];
    }
    // Each way for itself.
    [faults; 2].map(|faults| Faults {
        loss: pick(&mut random, &[0, faults.loss]),
        burst: pick(&mut random, &[0, faults.burst]),
        path_mtus: path_mtus(&mut random),
        delay: faults.delay * pick(&mut random, &[1, 1, 3]),
        ..faults
    })
}

/// The path's MTU falls, or falls and rises.
fn path_mtus(random: &mut Random) -> [(u64, u16); 3] {
    let low = pick(random, &[u16::MAX, u16::MAX, 1_400, 600]);
    let second = pick(random, &[low, u16::MAX, 1_450, 560]);
    [ANY_LENGTH, (100, low), (100 + random.below(500), second)]
}

fn options(random: &mut Random) -> Options {
    Options {
        timestamps: !random.chance(250),
        sack: !random.chance(250),
        window_scaling: !random.chance(250),
        nagle: random.chance(250),
        congestion: pick(random, &[CongestionControl::NewReno, CongestionControl::Cubic, CongestionControl::Dctcp]),
        ecn: pick(random, &[Ecn::Off, Ecn::Accept, Ecn::Request]),
        pacing: random.chance(250),
        receive_window_initial: pick(random, &[2_000, 65_536]),
        receive_window_max: pick(random, &[4_000, 100_000, 2 << 20]),
        receive_buffers_max: pick(random, &[20, 2048, 2048]),
        driver_buffers_max: pick(random, &[30, 4096, 4096]),
        send_queue_bytes_max: pick(random, &[30_000, 1 << 20]),
        path_mtu_raise: Duration::from_secs(pick(random, &[1, 600])),
        // A burst of loss is counted in packets, so a lone retransmission now and then can take long to get through one.
        user_timeout: Duration::from_secs(4_000),
        fin_wait_2_timeout: Duration::from_secs(4_000),
        syn_retries_max: 12,
        syn_ack_retries_max: 12,
        ..Options::default()
    }
}

fn limits(random: &mut Random) -> TransmitLimits {
    TransmitLimits {
        mtu: pick(random, &[576, 1500, 9000]),
        tso_bytes_max: pick(random, &[0, 20_000, 65_000]),
        tso_ipv6_bytes_max: pick(random, &[0, 65_000]),
        segments_per_packet_max: pick(random, &[2, 3, 8, 64]),
        segments_tso_max: pick(random, &[2, 17, 255]),
    }
}

/// Half of the seeds run over IPv6, where no link takes less than 1,280 octets.
fn use_ipv6(pair: &mut Pair) {
    for (number, side) in pair.sides.iter_mut().enumerate() {
        side.ip = if number == 0 { "fd00::1" } else { "fd00::2" }.parse().unwrap();
        side.limits.mtu = side.limits.mtu.max(1280);
    }
    for (_, mtu) in pair.faults.iter_mut().flat_map(|faults| &mut faults.path_mtus) {
        *mtu = (*mtu).max(1280);
    }
}

/// A quarter of the sides have hardly any pages, for what they send and for what is copied out of the driver's buffers.
fn press(pair: &mut Pair) {
    for side in &mut pair.sides {
        if pair.later.chance(250) {
            side.pool = PagePool::anonymous(16, 4096).unwrap();
            side.endpoint.set_copy_out(FragmentArena::new(side.pool.clone()).unwrap());
            side.ample = false;
        }
    }
}

/// Packets that both sides together may send: one for every twenty bytes. Pieces of a few hundred bytes, an ACK for each and
/// a receiver without memory that forgets what it had selectively acknowledged stay below it, an endless exchange does not.
fn packets_max(pair: &Pair) -> u64 {
    let bytes: usize = pair.sides.iter().map(|side| side.script.len()).sum();
    2_000 + bytes as u64 / 20
}

fn state(seed: u64, pair: &Pair) -> String {
    let told = |side: &Side| match side.id.and_then(|id| side.endpoint.info(id)) {
        Some(info) => format!("{info:#?}"),
        None => format!("{:?}", side.closed),
    };
    let [a, b] = &pair.sides;
    format!("seed {seed} {:?} at {:?}\n{}\n{}", pair.faults, pair.now, told(a), told(b))
}

/// A whole conversation under a seed's faults, limits and options; every invariant of a finished one.
fn simulate(seed: u64, prediction: bool, coupling: bool) -> Course {
    let mut random = Random(seed ^ 0x0b71);
    let faults = faults(seed);
    let mut ends = [options(&mut random), options(&mut random)];
    let orderly = faults.iter().all(Faults::keep_order);
    if orderly {
        ends.iter_mut().for_each(|end| (end.receive_buffers_max, end.driver_buffers_max) = (2048, 4096));
    }
    let mut pair = Pair::new(seed, CLEAN, ends);
    pair.faults = faults;
    for side in &mut pair.sides {
        side.endpoint.set_prediction(prediction);
        side.endpoint.set_coupling(coupling);
        side.limits = limits(&mut random);
        let most = pick(&mut random, &[0, 2_000, 200_000, 400_000]);
        let len = random.below(most + 1) as usize;
        side.script = script(seed, len);
        side.appetite = pick(&mut random, &[usize::MAX, 700]);
    }
    if random.chance(500) {
        use_ipv6(&mut pair);
    }
    if !orderly {
        press(&mut pair);
    }
    pair.connect();
    let began = pair.now;
    let over = |pair: &Pair| pair.sides.iter().all(|side| side.closed.is_some());
    // Those that read a little per event get the rest when the clock stands still.
    let mut finished = false;
    for _ in 0..4_000 {
        finished = pair.run_until(Duration::from_secs(1), over);
        for side in &mut pair.sides {
            let appetite = side.appetite.saturating_mul(20);
            side.drain(pair.now, appetite);
        }
        if finished || pair.sides.iter().any(|side| side.closed.is_some_and(|reason| reason != Reason::Finished)) {
            break;
        }
    }
    assert!(finished, "stuck: {}", state(seed, &pair));
    for (side, peer) in [(0, 1), (1, 0)] {
        assert!(pair.sides[side].received == pair.sides[peer].script, "bytes differ: side {side} {}", state(seed, &pair));
        // A peer that has heard nothing for all of its TIME-WAIT has forgotten the connection: one that still waits for an ACK of what
        // has arrived is reset then, and cannot know that it has (the RTO grows to as much as TIME-WAIT lasts).
        let forgotten = pair.sides[peer].closed == Some(Reason::Finished) && pair.now.since(began) > Options::default().time_wait;
        let expected = if forgotten { [Reason::Finished, Reason::Reset] } else { [Reason::Finished; 2] };
        assert!(pair.sides[side].closed.is_some_and(|reason| expected.contains(&reason)), "{}", state(seed, &pair));
    }
    let packets: u64 = pair.sides.iter().map(|side| side.packets).sum();
    assert!(packets <= packets_max(&pair), "{packets} packets: {}", state(seed, &pair));
    check_repetitions(seed, &pair);
    // TIME-WAIT ends, and then nothing is left: no timer, no page, no driver buffer.
    pair.run_until(Duration::from_secs(300), |_| false);
    for side in &mut pair.sides {
        assert_eq!(side.endpoint.connections().count(), 0);
        assert_eq!(side.endpoint.poll_timeout(), None);
        let counters = side.endpoint.counters();
        assert_eq!((counters.curr_connections, counters.curr_estab, counters.curr_time_wait), (0, 0, 0));
        assert_eq!(counters.driver_buffers_held, 0);
        // What reached an endpoint had its checksum, but for what was spoilt on the way.
        assert!(counters.in_csum_errors == 0 || pair.faults.iter().any(|faults| faults.corrupt > 0), "a wrong checksum");
        // The link's and the transmit buffer's last packet, and the arena's two pages.
        side.transmit.payload.clear();
        assert!(side.pool.outstanding() <= 2, "pages left: {}", side.pool.outstanding());
    }
    let [a, b] = &pair.sides;
    (pair.now, [(a.packets, *a.endpoint.counters()), (b.packets, *b.endpoint.counters())])
}

/// What was sent again stays in proportion to what the link did.
fn check_repetitions(seed: u64, pair: &Pair) {
    let tallies = [0, 1].map(|side| pair.judge.tally(side));
    for (side, peer) in [(0, 1), (1, 0)] {
        let (own, other) = (&tallies[side], &tallies[peer]);
        assert!(own.repaired_bytes <= own.repaired_bytes_max(), "side {side} {own:?} {}", state(seed, pair));
        // What reordering or a narrower path makes a sender take for lost is in no proportion to what was.
        let calm =
            pair.faults.iter().all(|faults| faults.reorder == 0 && faults.path_mtus.iter().all(|(_, mtu)| *mtu == u16::MAX));
        let too_much = match pair.sides[peer].ample && calm {
            true => own.repeated > own.repeated_max(other),
            false => own.repeats_without_end(),
        };
        assert!(!too_much, "side {side} {own:?}, the peer {other:?} {}", state(seed, pair));
    }
}

fn again(seed: u64) -> String {
    format!("TCP_SEED={seed} TCP_TRACE=1 cargo test --no-default-features --lib tcp::tests::seeds::any_seed")
}

#[test]
fn any_seed_delivers_every_byte_once_and_closes() {
    campaign::run(campaign::seeds("TCP", SEEDS), again, |seed| {
        simulate(seed, true, true);
    });
}

#[test]
fn header_prediction_changes_nothing() {
    let compare = |seed| assert_eq!(simulate(3 * seed, true, false), simulate(3 * seed, false, false));
    campaign::run(0..70, |_| "cargo test --no-default-features --lib header_prediction".to_owned(), compare);
}
