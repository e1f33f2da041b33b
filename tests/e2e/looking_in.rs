//! Looking into a running server: its connections, and a capture of its port that is switched on and off during a transfer.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rustix::process::Signal;

use crate::bed::Bed;
use crate::client::FILE_SYNC;
use crate::hostile::{export_root, mount_port};
use crate::libnfs::Random;
use crate::process::{self, Daemon};
use crate::report::Report;
use crate::server::{Setup, binary, stats_socket};
use crate::standin;

const CLIENTS: usize = 10;
const READ_BYTES: usize = 64 << 10;
/// Clients that read without a pause, beside a capture.
const READERS: usize = 8;
const PAUSE: Duration = Duration::from_millis(1500);
/// A core tells what it has counted ten times a second.
const PUBLISHED_LIMIT: Duration = Duration::from_secs(5);

pub fn run(report: &mut Report) {
    report.case("connections_are_listed", list);
    report.case("a_refused_mount_is_told", refused_mount);
    report.case("stats_answer_a_busy_server_each_time", asked_while_busy);
    report.case("a_capture_does_not_disturb", capture);
    report.case("a_capture_that_hangs_or_dies_does_not_disturb", hanging_capture);
}

fn nfsplice(bed: &Bed, words: &[&str], limit: Duration) -> Result<String> {
    let mut command = Command::new(binary()?);
    command.args(words).arg("--socket").arg(stats_socket(bed.folder()));
    let output = process::run(command, limit)?;
    Ok(String::from_utf8(output.stdout)?)
}

fn list() -> Result<()> {
    standin::only_nfsplice()?;
    let bed = Bed::new(Setup { engine: "0, 1", ..Setup::default() })?;
    let root = export_root(&bed)?;
    let mut clients = (0..CLIENTS).map(|_| bed.rpc()).collect::<Result<Vec<_>>>()?;
    for rpc in &mut clients {
        rpc.getattr(&root)?;
    }
    let text = nfsplice(&bed, &["stats", "--connections", "--json"], Duration::from_secs(10))?;
    let rows = text.lines().map(serde_json::from_str).collect::<Result<Vec<serde_json::Value>, _>>()?;
    let open: Vec<_> = rows.iter().filter(|row| row["state"] == "ESTAB").collect();
    ensure!(open.len() >= CLIENTS, "{} of {CLIENTS} connections: {text}", open.len());
    for core in [0, 1] {
        ensure!(open.iter().any(|row| row["core"] == core), "core {core} has none: {text}");
    }
    for row in open {
        ensure!(row["local"] == "10.77.0.2:2049" && row["peer"].as_str().is_some_and(|peer| peer.starts_with("10.77.0.1:")));
        ensure!(row["mss"].as_u64().is_some_and(|mss| (1000..1500).contains(&mss)), "{row}");
        ensure!(row["rtt_us"].as_u64().is_some() && row["cwnd"].as_u64().is_some_and(|cwnd| cwnd >= 2), "{row}");
    }
    let table = nfsplice(&bed, &["stats", "--connections"], Duration::from_secs(10))?;
    ensure!(table.lines().filter(|line| line.starts_with("ESTAB")).count() >= CLIENTS, "{table}");
    ensure!(table.contains(" rtt:") && table.contains("sack"), "{table}");
    bed.finish()
}

fn refused_mount() -> Result<()> {
    standin::only_nfsplice()?;
    let bed = Bed::new(Setup::default())?;
    export_root(&bed)?;
    ensure!(bed.rpc_to(mount_port(&bed)?)?.mount(b"/nowhere")?.is_err(), "what nobody exports is mounted");
    let expected =
        [("mount.mounts", 2), ("mount.mounts_refused", 1), ("mount.mounts_not_allowed", 0), ("programs.lists_refused", 0)];
    let deadline = Instant::now() + PUBLISHED_LIMIT;
    loop {
        let told: serde_json::Value = serde_json::from_str(&nfsplice(&bed, &["stats", "--json"], Duration::from_secs(10))?)?;
        let wrong = expected.iter().find(|(name, count)| told["counters"][name] != *count);
        let Some((name, count)) = wrong else { break };
        ensure!(Instant::now() < deadline, "{name} is {}, not {count}", told["counters"][name]);
        thread::sleep(Duration::from_millis(50));
    }
    bed.finish()
}

fn capture() -> Result<()> {
    standin::only_nfsplice()?;
    let mut bed = Bed::new(Setup { engine: "0, 1", ..Setup::default() })?;
    let root = export_root(&bed)?;
    let mut rpc = bed.rpc()?;
    let file = rpc.create(&root, b"watched")?;
    let data = Random(5).bytes(READ_BYTES);
    rpc.write(&file, 0, FILE_SYNC, &data)?;
    let path = bed.folder().join("port.pcapng");
    let words = ["capture", "net_tap0", "--seconds", "3", "--snaplen", "256", "--only-port", "2049", "--out"];
    let mut words = words.to_vec();
    words.push(path.to_str().context("a path in UTF-8")?);
    thread::scope(|scope| {
        let capturing = scope.spawn(|| nfsplice(&bed, &words, Duration::from_secs(15)));
        let mut reads = 0;
        while !capturing.is_finished() {
            ensure!(rpc.read(&file, 0, READ_BYTES as u32)? == data, "other bytes while captured");
            reads += 1;
            thread::sleep(Duration::from_millis(20));
        }
        capturing.join().map_err(|_| anyhow::anyhow!("the capture panicked"))??;
        println!("    {reads} reads meanwhile, {} bytes captured", std::fs::metadata(&path)?.len());
        Ok(())
    })?;
    ensure!(rpc.read(&file, 0, READ_BYTES as u32)? == data, "after the capture");
    let mut tshark = Command::new("tshark");
    tshark.arg("-r").arg(&path).args(["-T", "fields", "-e", "ip.src", "-e", "tcp.port", "-e", "frame.cap_len"]);
    let frames = String::from_utf8(process::run(tshark, Duration::from_secs(60))?.stdout)?;
    for address in ["10.77.0.1", "10.77.0.2"] {
        ensure!(frames.lines().filter(|line| line.starts_with(address)).count() > 20, "few frames from {address}");
    }
    ensure!(frames.lines().all(|line| line.contains("2049")), "a frame of another port");
    let lengths = frames.lines().filter_map(|line| line.rsplit('\t').next()?.parse::<u32>().ok());
    ensure!(lengths.max().is_some_and(|longest| longest == 256), "snaplen");
    bed.check()?;
    bed.finish()
}

/// Clients that read a file without a pause while `work` is done, which can ask how many reads there were; the bytes have to be right.
fn beside_readers(bed: &Bed, work: impl FnOnce(&AtomicU64) -> Result<()>) -> Result<()> {
    let root = export_root(bed)?;
    let data = Random(6).bytes(READ_BYTES);
    let mut readers = (0..READERS).map(|_| bed.rpc()).collect::<Result<Vec<_>>>()?;
    let file = readers[0].create(&root, b"busy")?;
    readers[0].write(&file, 0, FILE_SYNC, &data)?;
    let (stop, reads) = (AtomicBool::new(false), AtomicU64::new(0));
    thread::scope(|scope| -> Result<()> {
        let running: Vec<_> = readers
            .iter_mut()
            .map(|rpc| {
                let (stop, reads, file, data) = (&stop, &reads, &file, &data);
                scope.spawn(move || -> Result<()> {
                    while !stop.load(Ordering::Relaxed) {
                        ensure!(rpc.read(file, 0, READ_BYTES as u32)? == *data, "other bytes");
                        reads.fetch_add(1, Ordering::Relaxed);
                    }
                    Ok(())
                })
            })
            .collect();
        let outcome = work(&reads);
        stop.store(true, Ordering::Relaxed);
        running.into_iter().try_for_each(|reader| reader.join().expect("a reader does not panic").context("a reader"))?;
        outcome
    })
}

/// net_tap's signals once interrupted every eighth exchange, which then ended without a word.
fn asked_while_busy() -> Result<()> {
    standin::only_nfsplice()?;
    let mut bed = Bed::new(Setup::default())?;
    beside_readers(&bed, |_| {
        for _ in 0..100 {
            let text = nfsplice(&bed, &["stats", "--json"], Duration::from_secs(10))?;
            ensure!(text.contains("\"tcp.in_segs\""), "stats says {text:?}");
        }
        Ok(())
    })?;
    // fcntl(2): O_ASYNC asks for them. Those that wait count for all of the user's processes (getrlimit(2), RLIMIT_SIGPENDING).
    const O_ASYNC: u32 = 0o20000;
    let process = Path::new("/proc").join(bed.running()?.pid().to_string());
    let mut devices = 0;
    for entry in std::fs::read_dir(process.join("fd"))? {
        let entry = entry?;
        if std::fs::read_link(entry.path()).is_ok_and(|target| target.as_os_str() == "/dev/net/tun") {
            devices += 1;
            let told = std::fs::read_to_string(process.join("fdinfo").join(entry.file_name()))?;
            let flags = told.lines().find_map(|line| line.strip_prefix("flags:")).context("flags")?;
            ensure!(u32::from_str_radix(flags.trim(), 8)? & O_ASYNC == 0, "the TAP sends signals: flags {flags}");
        }
    }
    ensure!(devices > 0, "no TAP is open");
    bed.check()?;
    bed.finish()
}

/// Whole frames of a port that does all it can: the file holds what there was room for and says what there was not. Who takes them stands
/// still, then is killed: the readers go on, with the right bytes, and another capture begins.
fn hanging_capture() -> Result<()> {
    standin::only_nfsplice()?;
    let mut bed = Bed::new(Setup::default())?;
    beside_readers(&bed, |reads| {
        // Nobody waits for a capture.
        let go_on = |when: &str| {
            reads.store(0, Ordering::Relaxed);
            thread::sleep(PAUSE);
            let count = reads.load(Ordering::Relaxed);
            println!("    {count} reads {when}");
            ensure!(count as usize > READERS, "{count} reads {when}");
            Ok(())
        };
        go_on("without a capture")?;
        let (mut hangs, path) = begin_capture(&bed, "hangs", 8)?;
        go_on("beside one of whole frames")?;
        hangs.signal(Signal::STOP);
        go_on("while nobody takes what is captured")?;
        go_on("while that goes on")?;
        hangs.signal(Signal::CONT);
        ensure!(hangs.wait(Duration::from_secs(20))?.success(), "{}", hangs.tail());
        let said = hangs.tail();
        println!("    {}", said.lines().last().unwrap_or_default());
        let numbers: Vec<u64> = said.split_whitespace().filter_map(|word| word.parse().ok()).collect();
        let [frames, dropped] = numbers[..] else { bail!("two numbers are missing: {said}") };
        let held = read_capture(&path)?;
        ensure!(held == frames && frames > 1000 && dropped > 0, "the file holds {held} frames: {said}");
        let (mut dies, _) = begin_capture(&bed, "dies", 60)?;
        go_on("beside another")?;
        dies.kill();
        go_on("after it was killed")?;
        let (mut last, path) = begin_capture(&bed, "last", 600)?;
        go_on("beside the last")?;
        // Ctrl-C.
        last.signal(Signal::INT);
        ensure!(last.wait(Duration::from_secs(20))?.success(), "{}", last.tail());
        ensure!(read_capture(&path)? > 100, "few frames in the last");
        Ok(())
    })?;
    bed.check()?;
    bed.finish()
}

fn begin_capture(bed: &Bed, name: &str, seconds: u32) -> Result<(Daemon, PathBuf)> {
    let path = bed.folder().join(name).with_extension("pcapng");
    let mut command = Command::new(binary()?);
    command.args(["capture", "net_tap0", "--seconds", &seconds.to_string(), "--out"]).arg(&path);
    command.arg("--socket").arg(stats_socket(bed.folder()));
    Ok((Daemon::spawn(command, &path.with_extension("log"))?, path))
}

/// How many frames there are, once all of it was taken apart.
fn read_capture(path: &Path) -> Result<u64> {
    let mut capinfos = Command::new("capinfos");
    capinfos.args(["-Mcr"]).arg(path);
    let said = process::run(capinfos, Duration::from_secs(120))?.text();
    let count = said.split_whitespace().rev().find_map(|word| word.parse().ok());
    count.with_context(|| format!("capinfos says {said:?}"))
}
