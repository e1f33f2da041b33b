//! The end of a run: SIGTERM and SIGINT with a transfer running, a restart on the same configuration, and what idling costs.

use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rustix::process::Signal;

use crate::bed::Bed;
use crate::client::{FILE_SYNC, NFS, Received, Reply, Xdr, parse_read, parse_reply, procedure, split_status};
use crate::hostile::export_root;
use crate::libnfs::Random;
use crate::report::Report;
use crate::server::{STOP_LIMIT, Setup, check_no_copies, stats};
use crate::standin;

const READ_BYTES: usize = 128 << 10;
const CALLS: u32 = 64;

pub fn run(report: &mut Report) {
    report.case("sigterm_with_a_transfer_running", || stop_while_reading(Signal::TERM));
    report.case("sigint_with_a_transfer_running", || stop_while_reading(Signal::INT));
    report.case("sigterm_before_a_virtio_user_port_has_its_other_end", stop_while_starting);
    report.case("restart_on_the_same_configuration", restart);
    report.case("idle_cpu_is_reported", idle_cpu);
}

/// Every reply that arrives is whole and right, then the connection ends; the exit code is 0 within the limit.
fn stop_while_reading(signal: Signal) -> Result<()> {
    standin::only_nfsplice()?;
    let mut bed = Bed::new(Setup::default())?;
    let root = export_root(&bed)?;
    let mut rpc = bed.rpc()?;
    let handle = rpc.create(&root, b"transfer")?;
    let data = Random(7).bytes(READ_BYTES);
    rpc.write(&handle, 0, FILE_SYNC, &data)?;
    for _ in 0..CALLS {
        rpc.send(NFS, 3, procedure::READ, &Xdr::default().opaque(&handle).u64(0).u32(READ_BYTES as u32).0)?;
    }
    rpc.receive()?;
    check_no_copies(&stats(bed.folder())?)?;
    bed.running()?.signal(signal);
    let started = Instant::now();
    let mut replies = 1;
    loop {
        match rpc.receive_within(STOP_LIMIT * 2)? {
            Received::Record(bytes) => {
                let (_, Reply::Success(body)) = parse_reply(&bytes)? else { bail!("a READ was refused during the drain") };
                let (status, body) = split_status(&body)?;
                ensure!(status == 0 && data.starts_with(&parse_read(&body)?.0), "a reply sent during the drain has other bytes");
                replies += 1;
            }
            Received::Closed => break,
            Received::Silence => bail!("the connection hangs after {replies} replies"),
        }
    }
    let status = bed.running()?.wait(STOP_LIMIT.saturating_sub(started.elapsed()))?;
    ensure!(status.success(), "the server ended with {status}\n{}", bed.running()?.tail());
    println!("    {replies} of {CALLS} replies came, stopped after {:.2?}", started.elapsed());
    Ok(())
}

/// DPDK waits for the other end without looking at signals.
fn stop_while_starting() -> Result<()> {
    standin::only_nfsplice()?;
    let mut bed = Bed::prepare(Setup { device: "net_null0".into(), ..Setup::default() })?;
    let socket = bed.folder().join("port.sock");
    bed.setup.device = format!("net_virtio_user0,path={},server=1,queues=1", socket.display());
    bed.start()?;
    crate::process::wait_for_file(&socket, Duration::from_secs(20))?;
    bed.running()?.signal(Signal::TERM);
    let status = bed.running()?.wait(STOP_LIMIT)?;
    ensure!(status.success(), "the server ended with {status}\n{}", bed.running()?.tail());
    Ok(())
}

fn restart() -> Result<()> {
    standin::only_nfsplice()?;
    let mut bed = Bed::new(Setup::default())?;
    let root = export_root(&bed)?;
    for round in 0..3 {
        let name = format!("round {round}");
        bed.rpc()?.create(&root, name.as_bytes())?;
        crate::server::stop(bed.running()?)?;
        bed.start().with_context(|| format!("start number {}", round + 2))?;
        bed.rpc()?.lookup(&root, name.as_bytes()).context("the same root handle after a restart")?;
    }
    bed.finish()
}

/// A figure for the log, not an assertion: a poll-mode server may spend a core.
fn idle_cpu() -> Result<()> {
    const SPAN: Duration = Duration::from_secs(2);
    const TICKS_PER_SECOND: f64 = 100.0;
    standin::only_nfsplice()?;
    let mut bed = Bed::new(Setup::default())?;
    let pid = bed.running()?.pid();
    let ticks = || -> Result<f64> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
        // The name in parentheses may hold blanks; utime and stime are the 12th and 13th fields after it.
        let fields: Vec<&str> = stat.rsplit(')').next().context("stat")?.split_whitespace().collect();
        Ok(fields.get(11).context("utime")?.parse::<f64>()? + fields.get(12).context("stime")?.parse::<f64>()?)
    };
    let before = ticks()?;
    std::thread::sleep(SPAN);
    let share = (ticks()? - before) / TICKS_PER_SECOND / SPAN.as_secs_f64();
    println!("    idle: {:.0} % of a core", share * 100.0);
    bed.finish()
}
