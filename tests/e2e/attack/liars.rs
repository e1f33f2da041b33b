//! Peers that lie: ACKs of what they did not get, one ACK in a hundred pieces, windows that shrink or hardly open.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use super::raw::{Peer, RST};
use super::{Case, FILE_BYTES, Ground, grown};
use crate::report::full;

pub const CASES: &[Case] = &[
    ("optimistic_acks", optimistic_acks),
    ("ack_division", ack_division),
    ("shrinking_windows", shrinking_windows),
    ("a_byte_a_second", a_byte_a_second),
];

const WINDOW: u16 = 65_535;
/// RFC 6928: what may be sent before anything is acknowledged, in segments.
const INITIAL_SEGMENTS: u32 = 10;

/// How far behind `from` a sequence number lies.
fn ahead(seq: u32, from: u32) -> i32 {
    seq.wrapping_sub(from) as i32
}

/// Takes everything that comes until it is quiet; the end of the furthest text, from `start` on.
fn furthest(peer: &mut Peer, start: u32, quiet: Duration) -> Result<i32> {
    let mut end = 0;
    while let Some(segment) = peer.receive(quiet)? {
        ensure!(segment.flags & RST == 0, "the server reset the connection");
        end = end.max(ahead(segment.seq.wrapping_add(segment.space()), start));
    }
    Ok(end)
}

/// ACKs of what was never sent move nothing and are answered a few times; ACKs of what was sent and not received yet do get more out
/// of the server, but not more than the peer's window, and nobody else waits for it.
fn optimistic_acks(ground: &mut Ground) -> Result<()> {
    let before = ground.counters()?;
    let mut peer = ground.peer(0, 40_001, WINDOW)?;
    peer.send(&ground.read_call(1, FILE_BYTES as u32), WINDOW)?;
    let start = peer.expected;
    let first = furthest(&mut peer, start, Duration::from_millis(150))?;
    ensure!(first > 0 && first <= (INITIAL_SEGMENTS * peer.mss) as i32, "{first} bytes before any ACK");
    let mut witness = ground.rpc()?;
    for step in 1..=1000u32 {
        if step % 200 == 0 {
            // The TAP's queue holds 500: the server is to see all of them.
            witness.null()?;
        }
        peer.acknowledge(start.wrapping_add(first as u32 + step * 1000), WINDOW)?;
    }
    let moved = furthest(&mut peer, start, Duration::from_millis(100))?;
    ensure!(moved <= first, "ACKs of what was not sent brought {} bytes", moved - first);
    let middle = ground.counters()?;
    let counted = grown(&before, &middle, "tcp.unacceptable_acks")?;
    ensure!(counted >= 990.0, "{counted} of 1000 ACKs of unsent data were counted");
    // In step with what it is sent, whatever was lost: it gets all of it, as fast as it asks for.
    let (mut end, mut most) = (first as u32, 0);
    while let Some(segment) = peer.receive(Duration::from_millis(300))? {
        ensure!(segment.flags & RST == 0, "reset");
        end = end.max(ahead(segment.seq.wrapping_add(segment.space()), start) as u32);
        most = most.max(segment.payload.len());
        peer.acknowledge(start.wrapping_add(end), WINDOW)?;
    }
    println!("    1000 ACKs of unsent data moved nothing; {end} bytes of {FILE_BYTES} came for ACKs ahead of their data");
    peer.reset()?;
    ground.still_serves()
}

/// RFC 3465: the window grows with the bytes that are acknowledged, not with the ACKs.
fn ack_division(ground: &mut Ground) -> Result<()> {
    let mut peer = ground.peer(1, 40_002, WINDOW)?;
    peer.send(&ground.read_call(1, FILE_BYTES as u32), WINDOW)?;
    let start = peer.expected;
    let first = furthest(&mut peer, start, Duration::from_millis(150))?;
    // One segment in a hundred pieces.
    let pieces = 100;
    for piece in 1..=pieces {
        peer.acknowledge(start.wrapping_add(peer.mss * piece / pieces), WINDOW)?;
    }
    let second = furthest(&mut peer, start, Duration::from_millis(30))?;
    println!("    {first} bytes at first, {} more for {pieces} ACKs of one segment", second - first);
    // What was acknowledged, and as much again for slow start; a tail loss probe sends one more.
    ensure!(second - first <= 3 * peer.mss as i32, "{} bytes for one segment's ACKs", second - first);
    peer.reset()?;
    ground.still_serves()
}

/// The edge goes back, closes, and opens again: nothing right of the edge, and everything in the end.
fn shrinking_windows(ground: &mut Ground) -> Result<()> {
    let mut peer = ground.peer(2, 40_003, WINDOW)?;
    peer.send(&ground.read_call(1, FILE_BYTES as u32), WINDOW)?;
    let start = peer.expected;
    let mut end = furthest(&mut peer, start, Duration::from_millis(150))?;
    for (window, wait) in [(2000u16, 150), (300, 150), (0, 700)] {
        // Everything so far is taken, and the room for more is smaller each time.
        peer.acknowledge(start.wrapping_add(end as u32), window)?;
        let next = furthest(&mut peer, start, Duration::from_millis(wait))?.max(end);
        ensure!(next - end <= i32::from(window), "{} bytes into a window of {window}", next - end);
        // The edge goes back over what was just sent, if anything was: a little is held back for a while (RFC 9293 section 3.8.6.2.1).
        peer.acknowledge(start.wrapping_add(end as u32), window / 4)?;
        let again = furthest(&mut peer, start, Duration::from_millis(wait))?.max(next);
        let allowed = next.max(end + i32::from(window / 4));
        ensure!(again <= allowed, "{} bytes beyond an edge that went back", again - allowed);
        end = again;
    }
    let whole = FILE_BYTES as i32;
    let deadline = Instant::now() + Duration::from_secs(10);
    while end < whole {
        peer.acknowledge(start.wrapping_add(end as u32), WINDOW)?;
        // In order, since nothing is lost here but what did not fit.
        while let Some(segment) = peer.receive(Duration::from_millis(20))? {
            ensure!(segment.flags & RST == 0, "reset");
            let (from, to) = (ahead(segment.seq, start), ahead(segment.seq.wrapping_add(segment.space()), start));
            if from <= end && to > end {
                end = to;
                peer.acknowledge(start.wrapping_add(end as u32), WINDOW)?;
            }
        }
        ensure!(Instant::now() < deadline, "stuck at {end} of {whole} bytes after the window opened again");
    }
    peer.reset()?;
    ground.still_serves()
}

/// A window of one byte that opens once a second: the server neither stalls others nor holds more than one reply for it.
fn a_byte_a_second(ground: &mut Ground) -> Result<()> {
    let seconds = if full() { 60 } else { 4 };
    let before = ground.counters()?;
    let mut peer = ground.peer(3, 40_004, 1)?;
    peer.send(&ground.read_call(1, FILE_BYTES as u32), 1)?;
    let start = peer.expected;
    let (mut end, mut worst) = (0, Duration::ZERO);
    for _ in 0..seconds {
        let until = Instant::now() + Duration::from_secs(1);
        while let Some(segment) = peer.receive(until.saturating_duration_since(Instant::now()))? {
            let to = ahead(segment.seq.wrapping_add(segment.space()), start);
            ensure!(to <= end + 1, "{to} bytes sent, {end} taken and a window of one");
            if to > end {
                end = to;
                break;
            }
        }
        let asked = Instant::now();
        let mut rpc = ground.rpc().context("another client")?;
        rpc.getattr(&ground.root)?;
        worst = worst.max(asked.elapsed());
        std::thread::sleep(until.saturating_duration_since(Instant::now()));
        peer.acknowledge(start.wrapping_add(end as u32), 1)?;
    }
    let after = ground.counters()?;
    println!(
        "    {end} bytes in {seconds} s; another client's connection and call took {worst:.1?} at most; {:.0} packets in all",
        grown(&before, &after, "tcp.out_segs")?
    );
    ensure!(end >= 1, "not a byte came");
    ensure!(worst < Duration::from_secs(2), "another client waited {worst:?}");
    peer.reset()?;
    Ok(())
}
