//! Several engine cores on one TAP, which has no RSS: connections are spread over the cores, data is right whichever core has
//! them, a call repeated over another core gets its first answer, SIGTERM ends all cores.

use std::thread;

use anyhow::{Result, bail, ensure};

use crate::bed::Bed;
use crate::client::{FILE_SYNC, NFS, Reply, Rpc, Xdr, call_bytes, procedure, record};
use crate::hostile::export_root;
use crate::libnfs::Random;
use crate::report::Report;
use crate::server::{Setup, stats_by_core};
use crate::standin;

const CLIENTS: usize = 12;
const FILE_BYTES: usize = 2 << 20;
const CHUNK: usize = 128 << 10;

pub fn run(report: &mut Report) {
    report.case("two_cores_share_a_tap", || share("0, 1"));
    report.case("two_loops_on_one_cpu", || share("0, 0"));
    report.case("call_repeated_over_another_core", repeat);
}

fn setup(engine: &'static str) -> Setup {
    Setup { engine, ..Setup::default() }
}

/// Writes a file and reads it back; the bytes follow from the number.
fn transfer(mut rpc: Rpc, root: &[u8], number: usize) -> Result<()> {
    let data = Random(number as u64 + 1).bytes(FILE_BYTES);
    let file = rpc.create(root, format!("file {number}").as_bytes())?;
    for (at, chunk) in data.chunks(CHUNK).enumerate() {
        rpc.write(&file, (at * CHUNK) as u64, FILE_SYNC, chunk)?;
    }
    for round in 0..3 {
        for (at, chunk) in data.chunks(CHUNK).enumerate() {
            let read = rpc.read(&file, (at * CHUNK) as u64, CHUNK as u32)?;
            ensure!(read == chunk, "client {number}, round {round}: other bytes at {}", at * CHUNK);
        }
    }
    Ok(())
}

fn share(engine: &'static str) -> Result<()> {
    standin::only_nfsplice()?;
    let mut bed = Bed::new(setup(engine))?;
    let root = export_root(&bed)?;
    let clients = (0..CLIENTS).map(|_| bed.rpc()).collect::<Result<Vec<_>>>()?;
    thread::scope(|scope| {
        let root = &root;
        let running: Vec<_> =
            clients.into_iter().enumerate().map(|(number, rpc)| scope.spawn(move || transfer(rpc, root, number))).collect();
        running.into_iter().try_for_each(|client| client.join().map_err(|_| anyhow::anyhow!("a client panicked"))?)
    })?;
    let cores = stats_by_core(bed.folder())?;
    ensure!(cores.len() == 2, "{} cores tell", cores.len());
    for (number, core) in cores.iter().enumerate() {
        let count = |name: &str| core.get(name).copied().unwrap_or(-1.0);
        println!(
            "    core {number}: {} connections, {} calls, {} segments handed over, {} taken over, {} inbox full",
            count("tcp.passive_opens"),
            count("rpc.rpccnt"),
            count("steering.handed_over"),
            count("steering.taken_over"),
            count("steering.inbox_full"),
        );
        ensure!(count("tcp.passive_opens") > 0.0 && count("nfs3.calls_read") > 0.0, "core {number} served nobody");
        ensure!(count("port0.tx_chains") > 0.0, "core {number} sent nothing through its own queue");
    }
    let warned = bed.running()?.tail().contains("two packet loops share a CPU");
    ensure!(warned == (engine == "0, 0"), "the warning about a shared CPU");
    for number in 0..CLIENTS {
        let found = std::fs::read(bed.export().join(format!("file {number}")))?;
        ensure!(found == Random(number as u64 + 1).bytes(FILE_BYTES), "file {number} on the host");
    }
    bed.finish()
}

/// REMOVE of one file over one connection after the other: all get the first answer, whichever core they belong to.
fn repeat() -> Result<()> {
    standin::only_nfsplice()?;
    let mut bed = Bed::new(setup("0, 1"))?;
    let root = export_root(&bed)?;
    let mut clients = (0..CLIENTS).map(|_| bed.rpc()).collect::<Result<Vec<_>>>()?;
    clients[0].create(&root, b"removed once")?;
    let arguments = Xdr::default().opaque(&root).opaque(b"removed once");
    let call = record(&call_bytes(0x7777, NFS, 3, procedure::REMOVE, &clients[0].credential, &arguments.0));
    for (number, rpc) in clients.iter_mut().enumerate() {
        rpc.send_raw(&call)?;
        match rpc.receive()?.1 {
            Reply::Success(body) if body.starts_with(&[0; 4]) => {}
            other => bail!("connection {number} got {other:?}"),
        }
    }
    let replays = |core: &crate::server::Counters| core.get("rpc.duplicates_replayed").copied().unwrap_or(0.0);
    // Counters are published every 100 ms.
    thread::sleep(std::time::Duration::from_millis(300));
    let cores = stats_by_core(bed.folder())?;
    let sum: f64 = cores.iter().map(replays).sum();
    ensure!(sum == (CLIENTS - 1) as f64, "{sum} replays");
    ensure!(cores.iter().all(|core| core.get("tcp.passive_opens").is_some_and(|opens| *opens > 0.0)), "one core had them all");
    bed.check()?;
    bed.finish()
}
