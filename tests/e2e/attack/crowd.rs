//! Many connections: 10,000 that are opened and abandoned, and how many a second come and go.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use rustix::net::sockopt;

use super::raw::{ACK, RST, Receiver, SYN, Segment};
use super::{ADDRESSES, CONNECT_LIMIT, Case, Ground, grown};
use crate::report::full;
use crate::server::{Counters, Setup};

pub const CASES: &[Case] = &[("ten_thousand_connections_abandoned", abandoned), ("connections_that_come_and_go", come_and_go)];

/// Handshakes, or resets, at once.
const BURST: usize = 64;
const CONNECTIONS: usize = 10_000;
/// Longer than `setup`'s keepalive gives a silent peer.
const SILENCE_LIMIT: Duration = Duration::from_secs(20);

/// Room for all of them at once, also from one network of IPv6, and a keepalive that finds out soon who is gone.
pub fn setup() -> Setup {
    Setup {
        limits: "connections_max = 20000\nconnections_unauthenticated_max = 20000\ntcp_time_wait_s = 1\ntcp_connections_per_address_max = 16384"
            .into(),
        tcp: "keepalive_s = 3\nkeepalive_interval_s = 1\nkeepalive_probes_max = 2".into(),
        ..Ground::setup()
    }
}

/// Half of them end by a reset, half by silence. The second round must not take more memory than the first has.
fn abandoned(ground: &mut Ground) -> Result<()> {
    let at_start = ground.counters()?;
    let mut resident = vec![resident_kib(ground)?];
    for round in 0..if full() { 5 } else { 2 } {
        let started = Instant::now();
        let held = open_and_leave(ground, 20_000 + 7000 * round as u16)?;
        let took = started.elapsed();
        let most = held["tcp.curr_connections"];
        resident.push(resident_kib(ground)?);
        println!(
            "    round {round}: {most:.0} connections at once after {took:.1?}; {} KiB resident, {} before the first",
            resident[resident.len() - 1],
            resident[0]
        );
        ensure!(most >= CONNECTIONS as f64 * 0.99, "only {most} connections were open at once");
        let deadline = Instant::now() + SILENCE_LIMIT;
        loop {
            let now = ground.counters()?;
            if now["tcp.curr_connections"] <= at_start["tcp.curr_connections"] {
                break;
            }
            ensure!(Instant::now() < deadline, "{} connections still after {SILENCE_LIMIT:?}", now["tcp.curr_connections"]);
        }
        ground.still_serves()?;
    }
    let at_end = ground.counters()?;
    for gauge in ["tcp.curr_connections", "tcp.curr_estab", "tcp.driver_buffers_held"] {
        ensure!(at_end[gauge] <= at_start[gauge], "{gauge}: {} at the start, {} now", at_start[gauge], at_end[gauge]);
    }
    let silent = grown(&at_start, &at_end, "tcp.abort_on_timeout")?;
    let reset = grown(&at_start, &at_end, "tcp.estab_resets")?;
    println!("    {reset:.0} ended by reset, {silent:.0} by keepalive");
    let (first, last) = (resident[1], resident[resident.len() - 1]);
    // A few pages of an allocator are no leak: 10,000 connections of one would be 40 MiB.
    ensure!(last <= first + 4096, "{first} KiB with the first crowd, {last} KiB with the last");
    Ok(())
}

/// Opens all of them, resets every other one and forgets the rest; the counters with all of them open.
fn open_and_leave(ground: &Ground, first_port: u16) -> Result<Counters> {
    let each = CONNECTIONS / usize::from(ADDRESSES);
    let mut open = Vec::new();
    for index in 0..ADDRESSES {
        let from = ground.family.attacker(index);
        let (mut sender, mut receiver) = (ground.sender()?, Receiver::new(&ground.bed.net, from)?);
        let ports: Vec<u16> = (0..each).map(|offset| first_port + offset as u16).collect();
        for burst in ports.chunks(BURST) {
            let mut waiting: Vec<u16> = burst.to_vec();
            for _ in 0..10 {
                for port in &waiting {
                    let syn = Segment { port: *port, seq: 99, flags: SYN, window: 1000, ..Segment::default() };
                    sender.send(from, &syn)?;
                }
                while !waiting.is_empty() {
                    let Some(answer) = receiver.receive_any(Duration::from_millis(200))? else { break };
                    if answer.flags == SYN | ACK && waiting.contains(&answer.port) {
                        waiting.retain(|port| *port != answer.port);
                        let (seq, ack) = (100, answer.seq.wrapping_add(1));
                        let segment = Segment { port: answer.port, seq, ack, flags: ACK, window: 1000, ..Segment::default() };
                        sender.send(from, &segment)?;
                        open.push((from, segment));
                    }
                }
            }
            ensure!(waiting.is_empty(), "{} of {BURST} SYNs were not answered", waiting.len());
        }
    }
    let held = ground.counters()?;
    let (mut sender, mut witness) = (ground.sender()?, ground.rpc()?);
    for (count, (from, segment)) in open.into_iter().step_by(2).enumerate() {
        if count % BURST == 0 {
            // The TAP's queue holds 500: the server is to see all of them.
            witness.null()?;
        }
        sender.send(from, &Segment { flags: RST, ..segment })?;
    }
    Ok(held)
}

fn resident_kib(ground: &mut Ground) -> Result<u64> {
    let pid = ground.bed.running()?.pid();
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("VmRSS")?;
    Ok(line.trim().trim_end_matches(" kB").parse()?)
}

/// Handshakes a second, by clients that reset at once and by clients that close; kernel sockets, so the kernel's cost is in it.
fn come_and_go(ground: &mut Ground) -> Result<()> {
    let span = Duration::from_secs(if full() { 10 } else { 2 });
    let to = ground.family.server();
    for (name, linger) in [("reset", Some(Duration::ZERO)), ("closed", None)] {
        let before = ground.counters()?;
        let rate = churn(ground, to, span, linger)?;
        let after = ground.counters()?;
        let accepted = grown(&before, &after, "tcp.passive_opens")?;
        println!("    {rate:.0} connections/s opened and {name} over the TAP by two threads; {accepted:.0} accepted");
        ensure!(accepted >= rate * span.as_secs_f64() * 0.99, "{accepted} accepted");
    }
    Ok(())
}

fn churn(ground: &Ground, to: SocketAddr, span: Duration, linger: Option<Duration>) -> Result<f64> {
    let (stop, count) = (AtomicBool::new(false), AtomicU64::new(0));
    let started = Instant::now();
    thread::scope(|scope| {
        let threads: Vec<_> = (0..2)
            .map(|_| {
                scope.spawn(|| {
                    ground.bed.net.inside(|| -> Result<()> {
                        while !stop.load(Ordering::Relaxed) {
                            let stream = std::net::TcpStream::connect_timeout(&to, CONNECT_LIMIT)?;
                            sockopt::set_socket_linger(&stream, linger)?;
                            drop(stream);
                            count.fetch_add(1, Ordering::Relaxed);
                        }
                        Ok(())
                    })
                })
            })
            .collect();
        thread::sleep(span);
        stop.store(true, Ordering::Relaxed);
        threads.into_iter().try_for_each(|thread| thread.join().expect("no panic")?)
    })?;
    Ok(count.load(Ordering::Relaxed) as f64 / started.elapsed().as_secs_f64())
}
