//! Packets from nowhere: SYNs from random sources beside 64 readers, and forged segments into a connection that stands.

use std::net::Ipv4Addr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use super::raw::{ACK, PSH, RST, Receiver, SYN, Segment, Sender};
use super::{Case, FILE_BYTES, Ground, content, grown};
use crate::client::{NFS, Received, Reply, Rpc, Xdr, parse_read, parse_reply, procedure, split_status};
use crate::libnfs::Random;
use crate::report::full;
use crate::server::{self, CLIENT_ADDRESS, DEVICE};

pub const CASES: &[Case] = &[
    ("syn_flood_beside_64_readers", syn_flood),
    ("blind_injection", |ground| blind_injection(ground, true)),
    ("blind_injection_without_timestamps", |ground| blind_injection(ground, false)),
];

const READERS: usize = 64;
const READ_BYTES: u32 = 32 << 10;
/// What a flood at the highest rate must leave of the goodput that the same generator leaves with its packets dropped on the way. The
/// readers, the generator and the server share two CPUs here: the figure that is printed says more than the bound.
const LEFT_MIN: f64 = 0.1;
/// The TAP's queue drops what comes while the server is elsewhere, a SYN or a call among it: then it is sent again, later each time.
const PATIENCE: Duration = Duration::from_secs(60);

/// Forged segments at once.
const BURST: u32 = 256;

/// What the flooder does while it is watched.
#[derive(Clone, Copy, PartialEq)]
enum Flood {
    None,
    /// Its packets are dropped before the TAP: what the generator itself takes from the readers.
    Dropped,
    /// SYNs a second; 0: as fast as it can.
    Rate(u64),
}

fn syn_flood(ground: &mut Ground) -> Result<()> {
    let span = Duration::from_millis(if full() { 6000 } else { 1500 });
    let (stop, bytes) = (AtomicBool::new(false), AtomicU64::new(0));
    let mut readers = (0..READERS).map(|_| ground.bed.rpc()).collect::<Result<Vec<_>>>()?;
    let expected = content();
    thread::scope(|scope| -> Result<()> {
        let running: Vec<_> = readers
            .iter_mut()
            .enumerate()
            .map(|(index, rpc)| {
                let (stop, bytes, file, expected) = (&stop, &bytes, &ground.file, &expected);
                scope.spawn(move || -> Result<()> {
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
        let outcome = compare(ground, &bytes, span);
        stop.store(true, Ordering::Relaxed);
        for reader in running {
            reader.join().expect("a reader does not panic").context("a connection of the 64 did not survive")?;
        }
        outcome
    })?;
    for rpc in &mut readers {
        rpc.null().context("a connection of the 64 afterwards")?;
    }
    Ok(())
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

/// Goodput under each kind of flood.
fn compare(ground: &Ground, bytes: &AtomicU64, span: Duration) -> Result<()> {
    let mut kinds = vec![Flood::None, Flood::Dropped, Flood::Rate(10_000), Flood::Rate(50_000), Flood::Rate(0)];
    if !full() {
        kinds.remove(3);
    }
    let (mut quiet, mut busy) = (0.0, 0.0);
    thread::sleep(span / 3);
    for kind in kinds {
        let before = ground.counters()?;
        let (goodput, rate) = watch(ground, bytes, span, kind)?;
        let after = ground.counters()?;
        let cookies = grown(&before, &after, "tcp.syncookies_sent")? / span.as_secs_f64();
        let held = after["tcp.curr_connections"];
        match kind {
            Flood::None => {
                quiet = goodput;
                println!("    {READERS} readers: {goodput:.0} MB/s");
                continue;
            }
            Flood::Dropped => {
                busy = goodput;
                println!("    with {rate:.0} SYNs/s dropped before the TAP: {goodput:.0} MB/s, {:.0} %", 100.0 * goodput / quiet);
                continue;
            }
            Flood::Rate(_) => println!(
                "    with {rate:.0} SYNs/s: {goodput:.0} MB/s, {:.0} % of it alone, {:.0} % of it beside the generator; {cookies:.0} \
                 cookies/s, {held:.0} connections",
                100.0 * goodput / quiet,
                100.0 * goodput / busy
            ),
        }
        if kind == Flood::Rate(0) {
            ensure!(goodput >= LEFT_MIN * busy.min(quiet), "{goodput:.0} MB/s of {busy:.0} are left");
            ensure!(cookies > 0.0, "no cookie was sent");
            // Half open or established, not more than the limits allow.
            ensure!(held <= 1024.0 + READERS as f64 + 16.0, "{held} connections");
        }
    }
    Ok(())
}

/// MB/s of the readers and SYNs/s of the flooder for a while. A new client gets in meanwhile.
fn watch(ground: &Ground, bytes: &AtomicU64, span: Duration, flood: Flood) -> Result<(f64, f64)> {
    if flood == Flood::Dropped {
        ground.bed.net.nft(&format!(
            "table netdev wall {{ chain out {{ type filter hook egress device \"{DEVICE}\" priority 0; ip ttl 77 drop; }}\n }}\n"
        ))?;
    }
    let stop = AtomicBool::new(false);
    let watched = thread::scope(|scope| -> Result<(f64, f64)> {
        let stop = &stop;
        let flooder = (flood != Flood::None).then(|| scope.spawn(move || pour(ground, flood, stop)));
        // The half-open connections are there before it counts.
        thread::sleep(span / 5);
        let (started, first) = (Instant::now(), bytes.load(Ordering::Relaxed));
        if matches!(flood, Flood::Rate(_)) {
            let mut newcomer = ground.bed.rpc_within(PATIENCE).context("a new client during the flood")?;
            newcomer.getattr(&ground.root).context("a call of a new client during the flood")?;
        }
        thread::sleep(span.saturating_sub(started.elapsed()));
        let goodput = (bytes.load(Ordering::Relaxed) - first) as f64 / 1e6 / started.elapsed().as_secs_f64();
        stop.store(true, Ordering::Relaxed);
        let rate = match flooder {
            Some(flooder) => flooder.join().expect("the flooder does not panic")?,
            None => 0.0,
        };
        Ok((goodput, rate))
    });
    if flood == Flood::Dropped {
        ground.bed.net.nft("delete table netdev wall\n")?;
    }
    watched
}

/// SYNs of random sources; how many a second.
fn pour(ground: &Ground, flood: Flood, stop: &AtomicBool) -> Result<f64> {
    const BATCH: u64 = 64;
    // The server has a CPU of its own, as it would behind a wire.
    if let Some(core) = core_affinity::get_core_ids().unwrap_or_default().into_iter().find(|core| core.id == 1) {
        core_affinity::set_for_current(core);
    }
    let mut sender = Sender::new(&ground.bed.net)?;
    let mut random = Random(0x51d);
    let mut segment = Segment { flags: SYN, window: 64_240, options: vec![2, 4, 5, 0xb4, 1, 3, 3, 7], ..Segment::default() };
    let (started, mut sent) = (Instant::now(), 0u64);
    while !stop.load(Ordering::Relaxed) {
        for _ in 0..BATCH {
            let bits = random.next();
            // 128.0.0.0 to 191.255.255.255: hosts of anywhere but here.
            let source = Ipv4Addr::from_bits(0x8000_0000 | (bits as u32 & 0x3fff_ffff));
            (segment.seq, segment.port) = ((bits >> 32) as u32, 1024 + (bits >> 17) as u16 % 60_000);
            sent += u64::from(sender.send(source, &segment)?);
        }
        if let Flood::Rate(rate) = flood
            && rate > 0
        {
            let due = Duration::from_secs_f64(sent as f64 / rate as f64);
            thread::sleep(due.saturating_sub(started.elapsed()));
        }
    }
    Ok(sent as f64 / started.elapsed().as_secs_f64())
}

/// Forged segments of a client that is there, from out of its window and from within: nothing happens to it, and challenges are few.
/// The forger does not know timestamps; where the client has them, that alone keeps out what is no RST or SYN (RFC 7323 section 3.2).
fn blind_injection(ground: &mut Ground, timestamps: bool) -> Result<()> {
    let client: Ipv4Addr = CLIENT_ADDRESS.parse()?;
    let setting = if timestamps { "1" } else { "0" };
    ground.bed.net.inside(|| std::fs::write("/proc/sys/net/ipv4/tcp_timestamps", setting))??;
    let mut heard = Receiver::new(&ground.bed.net, client)?;
    let mut rpc = ground.bed.rpc()?;
    let port = rpc.stream.local_addr()?.port();
    rpc.null()?;
    let mut last = heard.receive(port, Duration::from_secs(2))?.context("nothing was heard of the connection")?;
    while let Some(next) = heard.receive(port, Duration::from_millis(100))? {
        last = next;
    }
    // What the server expects next, and what it will send next: better than an attacker could guess.
    let (expected, next) = (last.ack, last.seq.wrapping_add(last.space()));
    let mut sender = Sender::new(&ground.bed.net)?;
    let mut witness = ground.bed.rpc()?;
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
