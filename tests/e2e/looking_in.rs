//! Looking into a running server: its connections, and a capture of its port that is switched on and off during a transfer.

use std::process::Command;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::bed::Bed;
use crate::client::FILE_SYNC;
use crate::hostile::export_root;
use crate::libnfs::Random;
use crate::process;
use crate::report::Report;
use crate::server::{Setup, binary, stats_socket};
use crate::standin;

const CLIENTS: usize = 10;
const READ_BYTES: usize = 64 << 10;

pub fn run(report: &mut Report) {
    report.case("connections_are_listed", list);
    report.case("a_capture_does_not_disturb", capture);
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
