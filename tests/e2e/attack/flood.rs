//! Packets from nowhere: SYNs from random sources beside 64 readers, and forged segments into a connection that stands.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use super::raw::{ACK, PSH, RST, Receiver, SYN, Segment, TTL};
use super::{Case, FILE_BYTES, Family, Ground, content, grown};
use crate::client::{NFS, Received, Reply, Rpc, Xdr, parse_read, parse_reply, procedure, split_status};
use crate::libnfs::Random;
use crate::report::full;
use crate::server::{self, DEVICE};

pub const CASES: &[Case] = &[
    ("syn_flood_beside_64_readers", syn_flood),
    ("blind_injection", |ground| blind_injection(ground, true)),
    ("blind_injection_without_timestamps", |ground| blind_injection(ground, false)),
];

const READERS: usize = 64;
const READ_BYTES: u32 = 32 << 10;
/// What a flood must leave of the goodput beside the same generator whose packets end before the TAP: the median of rounds.
/// Asked for in full mode only, on a machine that does nothing else. Server, generator and readers share two CPUs and whatever is below
/// them, so elsewhere the ratio says more about the machine than about the server, and is printed. tests/syn_flood.rs holds the server
/// to it everywhere, on a clock of its own.
const LEFT_MIN: f64 = 0.8;
/// SYNs a second at which that is asked for; 0: as many as the generator reaches beside the readers while its packets end before the TAP. The last is
/// as fast as it can: it shares its CPU with the readers, so what a flood takes from them makes it faster, up to more frames than one core can
/// read from a TAP.
const RATES_HELD: [u64; 3] = [20_000, 0, u64::MAX];
/// What may be measured again, and says so: whatever else the machine does falls on one half of a round or the other.
const TRIES: u32 = 4;
/// SYNs a second that are tried beside them.
const RATES: [u64; 5] = [5_000, 10_000, 30_000, 40_000, 50_000];
/// Of a rate that is held, and of each other.
const ROUNDS: usize = 5;
const ROUNDS_BESIDE: usize = 3;
/// How long is looked, and before that waited.
const SPAN: Duration = Duration::from_millis(900);
const SETTLE: Duration = Duration::from_millis(100);
/// New clients, one after the other, during the flood at the highest rate; each is to be in within `NEWCOMER_LIMIT`.
const NEWCOMERS: usize = 5;
/// A dropped SYN is repeated after a second, then by the kernel's version each second or at 3, 7, 15 s.
const NEWCOMER_LIMIT: Duration = Duration::from_secs(20);
/// The TAP's queue drops what comes while the server is elsewhere, a call among it: then it is sent again, later each time.
const PATIENCE: Duration = Duration::from_secs(60);
/// Packets that live so long are dropped before the TAP.
const DROPPED_TTL: u8 = TTL + 1;
/// Where everything but the server runs: it has a CPU of its own, as it would behind a wire.
const OUR_CPU: usize = 1;

/// Forged segments at once.
const BURST: u32 = 256;

/// What a generator does while it is watched.
#[derive(Clone, Copy, PartialEq)]
enum Flood {
    None,
    /// Its packets are dropped before the TAP: what the generator itself takes from the readers.
    Dropped(u64),
    /// SYNs a second, if it can.
    Poured(u64),
}

/// One look: MB/s of the readers, SYNs/s of the generator, and frames/s for which the TAP's queue had no room.
#[derive(Clone, Copy, Default)]
struct Look {
    goodput: f64,
    rate: f64,
    overflow: f64,
}

fn syn_flood(ground: &mut Ground) -> Result<()> {
    let hops = if ground.family == Family::V4 { "ip ttl" } else { "ip6 hoplimit" };
    ground.bed.net.nft(&format!(
        "table netdev wall {{ chain out {{ type filter hook egress device \"{DEVICE}\" priority 0; {hops} {DROPPED_TTL} drop; }}\n }}\n"
    ))?;
    let (stop, bytes) = (AtomicBool::new(false), AtomicU64::new(0));
    let mut readers = (0..READERS).map(|_| ground.rpc()).collect::<Result<Vec<_>>>()?;
    let expected = content();
    thread::scope(|scope| -> Result<()> {
        let running: Vec<_> = readers
            .iter_mut()
            .enumerate()
            .map(|(index, rpc)| {
                let (stop, bytes, file, expected) = (&stop, &bytes, &ground.file, &expected);
                scope.spawn(move || -> Result<()> {
                    stay_off_the_server();
                    let mut at = index * READ_BYTES as usize % FILE_BYTES;
                    while !stop.load(Ordering::Relaxed) {
                        let data = read(rpc, file, at as u64).with_context(|| format!("reader {index}"))?;
                        ensure!(data == expected[at..at + data.len()], "reader {index} got other bytes");
                        bytes.fetch_add(data.len() as u64, Ordering::Relaxed);
                        at = (at + READ_BYTES as usize) % FILE_BYTES;
                    }
                    Ok(())
                })
            })
            .collect();
        let outcome = compare(ground, &bytes).and_then(|()| let_in(ground));
        stop.store(true, Ordering::Relaxed);
        for reader in running {
            reader.join().expect("a reader does not panic").context("a connection of the 64 did not survive")?;
        }
        outcome
    })?;
    for rpc in &mut readers {
        rpc.null().context("a connection of the 64 afterwards")?;
    }
    ground.bed.net.nft("delete table netdev wall\n")
}

fn stay_off_the_server() {
    if let Some(core) = core_affinity::get_core_ids().unwrap_or_default().into_iter().find(|core| core.id == OUR_CPU) {
        core_affinity::set_for_current(core);
    }
}

/// A READ whose reply may take its time.
fn read(rpc: &mut Rpc, file: &[u8], offset: u64) -> Result<Vec<u8>> {
    let arguments = Xdr::default().opaque(file).u64(offset).u32(READ_BYTES);
    rpc.send(NFS, 3, procedure::READ, &arguments.0)?;
    let Received::Record(record) = rpc.receive_within(PATIENCE)? else { bail!("no reply, or the connection was closed") };
    let Reply::Success(body) = parse_reply(&record)?.1 else { bail!("not a success") };
    let (status, body) = split_status(&body)?;
    ensure!(status == 0, "nfsstat3 {status}");
    Ok(parse_read(&body)?.0)
}

/// Goodput beside generators of several rates, and what of it their floods leave.
fn compare(ground: &Ground, bytes: &AtomicU64) -> Result<()> {
    if !full() {
        return rounds_at(ground, bytes, ROUNDS_BESIDE, RATES_HELD[0]).map(|_| ());
    }
    for rate in RATES {
        rounds_at(ground, bytes, ROUNDS_BESIDE, rate)?;
    }
    RATES_HELD.iter().try_for_each(|rate| hold(ground, bytes, *rate))
}

fn hold(ground: &Ground, bytes: &AtomicU64, rate: u64) -> Result<()> {
    for attempt in 1..=TRIES {
        let left = rounds_at(ground, bytes, ROUNDS, rate)?;
        if left >= LEFT_MIN {
            return Ok(());
        }
        println!("    try {attempt} of {TRIES}: {:.0} % are left, {:.0} % are asked for", 100.0 * left, 100.0 * LEFT_MIN);
    }
    bail!(
        "{rate} SYNs/s (0: as many as it reaches beside the readers; the largest: as fast as it can) do not leave {:.0} % of the goodput",
        100.0 * LEFT_MIN
    )
}

/// Alone, beside the generator, under its flood, and again: what the flood leaves of the second in the median round.
fn rounds_at(ground: &Ground, bytes: &AtomicU64, rounds: usize, rate: u64) -> Result<f64> {
    let before = ground.counters()?;
    let (mut alone, mut beside, mut under, mut left) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for _ in 0..rounds {
        alone.push(watch(ground, bytes, Flood::None)?);
        let dropped = watch(ground, bytes, Flood::Dropped(if rate == 0 { u64::MAX } else { rate }))?;
        beside.push(dropped);
        under.push(watch(ground, bytes, Flood::Poured(if rate == 0 { (dropped.rate as u64).max(1) } else { rate }))?);
        left.push(under[under.len() - 1].goodput / beside[beside.len() - 1].goodput);
    }
    let after = ground.counters()?;
    let seconds = (SETTLE + SPAN).as_secs_f64() * rounds as f64;
    let cookies = grown(&before, &after, "tcp.syncookies_sent")?;
    let dropped = grown(&before, &after, "tcp.syn_queue_drops").unwrap_or(0.0);
    let held = after["tcp.curr_connections"];
    let of = |looks: &[Look], what: fn(&Look) -> f64| median(looks.iter().map(what).collect());
    let (alone, quiet, loud) = (of(&alone, |l| l.goodput), of(&beside, |l| l.goodput), of(&under, |l| l.goodput));
    let (least, most) = left.iter().fold((f64::MAX, 0.0f64), |(least, most), left| (least.min(*left), most.max(*left)));
    let left = median(left);
    println!(
        "    {:.0} SYNs/s ({:.0} dropped before the TAP): {alone:.0} MB/s alone, {quiet:.0} beside the generator, {loud:.0} under its \
         flood: {:.0} % ({:.0} to {:.0} %) of it beside the generator, {:.0} % of it alone; {:.0} cookies/s, {:.0} SYNs/s dropped by the server, {:.0} frames/s \
         by the TAP ({:.0} beside the generator), {held:.0} connections",
        of(&under, |l| l.rate),
        of(&beside, |l| l.rate),
        100.0 * left,
        100.0 * least,
        100.0 * most,
        100.0 * loud / alone,
        cookies / seconds,
        dropped / seconds,
        of(&under, |l| l.overflow),
        of(&beside, |l| l.overflow),
    );
    ensure!(cookies > 0.0, "no cookie was sent");
    // Half open or established, not more than the limits allow.
    ensure!(held <= 1024.0 + READERS as f64 + 16.0, "{held} connections");
    Ok(left)
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// What the readers and the generator reach for a while.
fn watch(ground: &Ground, bytes: &AtomicU64, flood: Flood) -> Result<Look> {
    beside(ground, flood, || {
        // The half-open connections are there, and what was queued before is gone.
        thread::sleep(SETTLE);
        let (started, first, lost) = (Instant::now(), bytes.load(Ordering::Relaxed), dropped_by_tap(ground)?);
        thread::sleep(SPAN);
        let seconds = started.elapsed().as_secs_f64();
        let goodput = (bytes.load(Ordering::Relaxed) - first) as f64 / 1e6 / seconds;
        Ok((goodput, (dropped_by_tap(ground)? - lost) / seconds))
    })
    .map(|((goodput, overflow), rate)| Look { goodput, rate, overflow })
}

/// Frames to the server that found the TAP's queue full.
fn dropped_by_tap(ground: &Ground) -> Result<f64> {
    let table = ground.bed.net.inside(|| std::fs::read_to_string("/proc/thread-self/net/dev"))??;
    let line = table.lines().find_map(|line| line.trim().strip_prefix(DEVICE)?.strip_prefix(':'));
    // netdev(7)'s order: eight figures of what was received, then octets, packets, errors and drops of what was sent.
    let dropped = line.and_then(|figures| figures.split_whitespace().nth(11)?.parse().ok());
    dropped.context("no line of the TAP in /proc/net/dev")
}

/// Does something beside a generator; tells its rate.
fn beside<T>(ground: &Ground, flood: Flood, work: impl FnOnce() -> Result<T>) -> Result<(T, f64)> {
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let stop = &stop;
        let generator = (flood != Flood::None).then(|| scope.spawn(move || pour(ground, flood, stop)));
        let done = work();
        stop.store(true, Ordering::Relaxed);
        let rate = match generator {
            Some(generator) => generator.join().expect("the generator does not panic")?,
            None => 0.0,
        };
        Ok((done?, rate))
    })
}

/// New clients get in while the flood is at its highest.
fn let_in(ground: &Ground) -> Result<()> {
    let (times, rate) = beside(ground, Flood::Poured(u64::MAX), || {
        thread::sleep(Duration::from_millis(300));
        (0..NEWCOMERS)
            .map(|_| {
                let started = Instant::now();
                let mut newcomer = ground.rpc_within(NEWCOMER_LIMIT).context("a new client during the flood")?;
                let connected = started.elapsed();
                newcomer.getattr(&ground.root).context("a call of a new client during the flood")?;
                Ok(connected)
            })
            .collect::<Result<Vec<_>>>()
    })?;
    println!("    during {rate:.0} SYNs/s {NEWCOMERS} new clients connected after {times:.1?}");
    Ok(())
}

/// SYNs of random sources; how many a second.
fn pour(ground: &Ground, flood: Flood, stop: &AtomicBool) -> Result<f64> {
    const BATCH: u64 = 32;
    stay_off_the_server();
    let mut sender = ground.sender()?;
    let (Flood::Dropped(rate) | Flood::Poured(rate)) = flood else { return Ok(0.0) };
    if let Flood::Dropped(_) = flood {
        sender.ttl = DROPPED_TTL;
    }
    // No flood repeats an earlier one's SYNs: those who come again are let in first.
    static FLOODS: AtomicU64 = AtomicU64::new(1);
    let mut random = Random(FLOODS.fetch_add(1, Ordering::Relaxed).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    let mut segment = Segment { flags: SYN, window: 64_240, options: vec![2, 4, 5, 0xb4, 1, 3, 3, 7], ..Segment::default() };
    let (started, mut sent) = (Instant::now(), 0u64);
    while !stop.load(Ordering::Relaxed) {
        for _ in 0..BATCH {
            let bits = random.next();
            let source = ground.family.stranger(bits as u32);
            (segment.seq, segment.port) = ((bits >> 32) as u32, 1024 + (bits >> 17) as u16 % 60_000);
            sent += u64::from(sender.send(source, &segment)?);
        }
        let due = Duration::from_secs_f64(sent as f64 / rate as f64);
        thread::sleep(due.saturating_sub(started.elapsed()));
    }
    Ok(sent as f64 / started.elapsed().as_secs_f64())
}

/// Forged segments of a client that is there, from out of its window and from within: nothing happens to it, and challenges are few.
/// The forger does not know timestamps; where the client has them, that alone keeps out what is no RST or SYN (RFC 7323 section 3.2).
fn blind_injection(ground: &mut Ground, timestamps: bool) -> Result<()> {
    let client = ground.family.client();
    let setting = if timestamps { "1" } else { "0" };
    ground.bed.net.inside(|| std::fs::write("/proc/sys/net/ipv4/tcp_timestamps", setting))??;
    let mut heard = Receiver::new(&ground.bed.net, client)?;
    let mut rpc = ground.rpc()?;
    let port = rpc.stream.local_addr()?.port();
    rpc.null()?;
    let mut last = heard.receive(port, Duration::from_secs(2))?.context("nothing was heard of the connection")?;
    while let Some(next) = heard.receive(port, Duration::from_millis(100))? {
        last = next;
    }
    // What the server expects next, and what it will send next: better than an attacker could guess.
    let (expected, next) = (last.ack, last.seq.wrapping_add(last.space()));
    let mut sender = ground.sender()?;
    let mut witness = ground.rpc()?;
    let mut random = Random(0xb11d);
    let mut inject = |what: &str, count: u32, make: &mut dyn FnMut(&mut Random) -> Segment| -> Result<(f64, f64)> {
        let before = ground.counters()?;
        let started = Instant::now();
        for index in 0..count {
            if index % BURST == 0 {
                // The TAP's queue holds 500: the server is to see all of it.
                witness.null()?;
            }
            let segment = Segment { port, window: 500, ..make(&mut random) };
            sender.send(client, &segment)?;
        }
        rpc.null().with_context(|| format!("the connection after {what}"))?;
        let after = ground.counters()?;
        let challenges = grown(&before, &after, "tcp.challenge_acks")?;
        let skipped = grown(&before, &after, "tcp.challenge_acks_skipped")?;
        let resets = grown(&before, &after, "tcp.estab_resets")?;
        println!("    {count} of {what}: {challenges} challenge ACKs, {skipped} not sent");
        ensure!(resets == 0.0, "{what}: a connection was reset");
        // One for each interval of half a second, of each connection; and the time around it.
        let most = 2.0 + started.elapsed().as_secs_f64() * 2.0;
        ensure!(challenges <= most, "{what}: {challenges} challenge ACKs in {:?}", started.elapsed());
        Ok((challenges, skipped))
    };
    let within = |random: &mut Random| expected.wrapping_add(1 + random.next() as u32 % 30_000);
    let outside = |random: &mut Random| expected.wrapping_add(0x1000_0000 + random.next() as u32 % 0xe000_0000);
    let text = || vec![0xee; 64];

    let (challenges, _) =
        inject("RST out of the window", 2000, &mut |r| Segment { flags: RST, seq: outside(r), ..Segment::default() })?;
    ensure!(challenges == 0.0, "an RST out of the window was answered");
    let (challenges, skipped) =
        inject("RST in the window", 2000, &mut |r| Segment { flags: RST, seq: within(r), ..Segment::default() })?;
    ensure!(challenges >= 1.0 && skipped > 1000.0, "{challenges} and {skipped}: RSTs in the window are challenged, but not all");
    let (challenges, skipped) =
        inject("SYN anywhere", 2000, &mut |r| Segment { flags: SYN, seq: r.next() as u32, ..Segment::default() })?;
    ensure!(challenges >= 1.0 && skipped > 1000.0, "{challenges} and {skipped}: SYNs are challenged, but not all");
    let before = ground.counters()?;
    inject("text in the window, its ACK out of it", 2000, &mut |r| {
        let ack = next.wrapping_add(0x1000_0000 + r.next() as u32 % 0xe000_0000);
        Segment { flags: ACK | PSH, seq: within(r), ack, payload: text(), ..Segment::default() }
    })?;
    inject("text out of the window", 2000, &mut |r| Segment {
        flags: ACK | PSH,
        seq: outside(r),
        ack: next,
        payload: text(),
        ..Segment::default()
    })?;
    let after = ground.counters()?;
    let kept_out = |name: &str| grown(&before, &after, name);
    if timestamps {
        ensure!(kept_out("tcp.timestamps_missing")? >= 3990.0, "text without timestamps was let in");
    } else {
        ensure!(kept_out("tcp.unacceptable_acks")? >= 1990.0, "forged ACKs were not counted");
        ensure!(kept_out("tcp.out_of_window")? >= 1990.0, "text out of the window was not counted");
    }
    ensure!(kept_out("tcp.ofo_queued")? == 0.0, "forged text was kept");
    // All of the sequence space in steps of a small window, and the transfer goes on.
    let mut at = expected.wrapping_add(7);
    inject("RST through all of the sequence space", 1 << 16, &mut |_| {
        at = at.wrapping_add(1 << 16);
        Segment { flags: RST, seq: at, ..Segment::default() }
    })?;
    ensure!(rpc.read(&ground.file, 0, FILE_BYTES as u32)? == content(), "other bytes after the injections");
    let listed = server::stats(ground.bed.folder())?["tcp.curr_estab"];
    ensure!(listed >= 1.0, "{listed} connections are left");
    Ok(())
}
