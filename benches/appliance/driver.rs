//! The driver's ceiling: cycles per chain of `testpmd txonly` and of this project's transmit queue, same device (net_null, which
//! frees at once), same segments. testpmd sends its own buffers and builds no references, so what lies between the two is the price
//! of sending pages that somebody else owns. net_null does not offer FAST_FREE, which would not release such pages.

use std::io::Write as _;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use dpdk::{Eal, EalOptions, Port, PortOptions, TxOffload, TxQueue};
use nfsplice::buf::{PagePool, Slice};
use serde::Serialize;

use crate::peers::{GENERATOR_CPU, SERVER_CPU};
use crate::process;

/// Segments of a chain: headers, whole pages, a tail.
pub const LAYOUTS: [usize; 2] = [4, 16];
const HEADER_BYTES: usize = 82;
const PIECE_BYTES: usize = 4096;
const TAIL_BYTES: usize = 12;
const BURST: usize = 32;
/// How long testpmd sends each layout.
const TESTPMD_SENDS: Duration = Duration::from_millis(1500);
const CHAINS: usize = 400_000;

/// Cycles per chain.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Ceiling {
    pub segments: usize,
    pub testpmd: f64,
    pub own: f64,
}

fn lengths(segments: usize) -> Vec<usize> {
    let mut lengths = vec![PIECE_BYTES; segments];
    lengths[0] = HEADER_BYTES;
    lengths[segments - 1] = TAIL_BYTES;
    lengths
}

/// What is missing on this machine.
pub fn missing() -> Option<&'static str> {
    process::find("dpdk-testpmd").is_none().then_some("dpdk-testpmd")
}

/// Both, one after the other.
pub fn measure() -> Result<Vec<Ceiling>> {
    let mut own = Command::new(std::env::current_exe()?);
    own.arg("chains");
    let text = process::run(own, Duration::from_secs(60))?.text();
    let own: Vec<f64> = serde_json::from_str(text.trim()).with_context(|| format!("found {text:?}"))?;
    let testpmd = testpmd()?;
    let all = LAYOUTS.iter().zip(own.iter().zip(testpmd));
    Ok(all.map(|(&segments, (&own, testpmd))| Ceiling { segments, testpmd, own }).collect())
}

fn testpmd() -> Result<Vec<f64>> {
    let mut command = Command::new(process::find("dpdk-testpmd").context("dpdk-testpmd is not installed")?);
    command.args(["-l", &format!("{GENERATOR_CPU},{SERVER_CPU}"), &format!("--main-lcore={GENERATOR_CPU}")]);
    command.args(["--no-huge", "-m", "512", "--no-pci", "--no-telemetry"]);
    command.arg(format!("--file-prefix=nfsplice-bench-{}", std::process::id())).arg("--vdev=net_null0");
    command.args(["--", "-i", "--mbuf-size=4352", "--mbcache=512", "--tx-offloads=0x0", "--total-num-mbufs=40000"]);
    command.arg(format!("--burst={BURST}"));
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut child = command.spawn()?;
    let _guard = process::Guard::new(&child);
    let mut say = child.stdin.take().context("stdin is piped")?;
    say.write_all(b"set fwd txonly\nset record-core-cycles on\n")?;
    for segments in LAYOUTS {
        let words: Vec<String> = lengths(segments).iter().map(usize::to_string).collect();
        write!(say, "set txpkts {}\nstart\n", words.join(","))?;
        std::thread::sleep(TESTPMD_SENDS);
        say.write_all(b"stop\n")?;
    }
    say.write_all(b"quit\n")?;
    drop(say);
    let output = child.wait_with_output()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let figures = text.split("CPU cycles/packet=").skip(1);
    let figures: Vec<f64> = figures.filter_map(|rest| rest.split([' ', '(']).next()?.trim().parse().ok()).collect();
    if figures.len() != LAYOUTS.len() {
        bail!("testpmd told {} figures instead of {}\n{text}", figures.len(), LAYOUTS.len());
    }
    Ok(figures)
}

/// In a process of its own (DPDK starts once): prints the figures of this project's queue.
pub fn chains() -> Result<()> {
    let eal = Eal::init(&EalOptions {
        lcores: vec![SERVER_CPU as u16],
        hugepages: false,
        memory_mib: 256,
        file_prefix: format!("nfsplice-bench-{}", std::process::id()),
        vdevs: vec!["net_null0".to_owned()],
        log_level: Some("error".to_owned()),
        ..EalOptions::default()
    })?;
    let zones = dpdk::ZoneSet::reserve(&eal, "pages", 64 << 20, 64 << 10, -1)?.into_zones();
    let pool = PagePool::from_zones(zones, 64 << 10);
    let mut port: Port<Slice> = Port::open(&eal, "net_null0", &PortOptions::default())?;
    let mut tx = port.take_tx_queue(0).context("the queue is there")?;
    let mut blocks = Vec::new();
    while let Some(mut page) = pool.allocate() {
        page[..8].copy_from_slice(&(blocks.len() as u64).to_ne_bytes());
        blocks.push(page.freeze());
    }
    let figures: Vec<f64> =
        LAYOUTS.iter().map(|&segments| (0..3).map(|_| run(&mut tx, &blocks, segments)).fold(f64::MAX, f64::min)).collect();
    println!("{}", serde_json::to_string(&figures)?);
    dpdk::memory::keep_zones_until_exit();
    Ok(())
}

/// Cycles per chain: cloning the references, building the chain, the driver, releasing.
fn run(tx: &mut TxQueue<Slice>, blocks: &[Slice], segments: usize) -> f64 {
    let header = [0; HEADER_BYTES];
    let pieces: Vec<Vec<Slice>> = blocks
        .chunks(segments)
        .filter(|chunk| chunk.len() == segments)
        .map(|chunk| chunk.iter().zip(&lengths(segments)[1..]).map(|(block, &bytes)| block.slice(0..bytes)).collect())
        .collect();
    let (mut at, mut payload) = (0, Vec::new());
    let start = dpdk::cycles();
    for _ in 0..CHAINS / BURST {
        for _ in 0..BURST {
            at = (at + 1) % pieces.len();
            payload.extend(pieces[at].iter().cloned());
            tx.push_taking(&header, &mut payload, &TxOffload::default()).expect("net_null frees at once");
        }
        tx.flush();
    }
    (dpdk::cycles() - start) as f64 / (CHAINS / BURST * BURST) as f64
}
