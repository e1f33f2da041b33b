//! Are the users of `make run` punished? The same server on a TAP device: what it takes when nobody asks, and how long a READ of 4 KiB
//! through the kernel's TCP takes.

use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::Result;
use nfsplice::control::stats;
use serde::Serialize;

use crate::measure::{self, Pace};
use crate::net::Netns;
use crate::peers::{Bed, GENERATOR_CPU};
use crate::workload::{READ_4K, Set, Workload};

pub const IDLE_MAX: f64 = 0.05;
pub const READ_P50_MAX_NS: f64 = 200_000.0;

#[derive(Clone, Debug, Serialize)]
pub struct Tap {
    /// Share of a core that the idle server takes.
    pub idle: f64,
    pub read_p50_ns: f64,
    pub read_p99_ns: f64,
}

/// A network of its own with the TAP, as scripts/run.sh makes it.
pub fn measure(bed: &Bed, duration: Duration) -> Result<Tap> {
    let namespace = Netns::new()?;
    namespace.ip("tuntap add dev nfs0 mode tap multi_queue")?;
    namespace.ip("addr add 10.77.0.1/24 dev nfs0")?;
    let server = bed.serve(Some(&namespace), "splice", "net_tap0,iface=nfs0", || stats::fetch(&bed.socket()).is_ok())?;
    // The driver gave the kernel's end its own address.
    namespace.ip("link set nfs0 address 02:00:0a:4d:00:01 up")?;
    let workload = Workload { set: Set::Hot, ..READ_4K }.with_pace(1, 1);
    let pace = Pace { duration, rate: None, verify: false };
    let json = bed.out.join("load-tap.json");
    let mut load = namespace.command(&bed.binary.display().to_string());
    load.args(["load", "--transport", "kernel", "--cores", &GENERATOR_CPU.to_string()]);
    measure::ask(&mut load, &workload, &pace, &json, "10.77.0.2:/export");
    let sample = measure::run(load, &pace, &json, || measure::own_meter(&bed.socket()))?.sample(bed.hz)?;
    // Its timers of the connections that have just ended are done by then.
    sleep(Duration::from_secs(1));
    let pids = [server.pid()];
    let (began, before) = (Instant::now(), measure::cpu_meter(&pids, 1.0)?);
    sleep(2 * duration);
    let after = measure::cpu_meter(&pids, 1.0)?;
    let idle = (after.cycles - before.cycles) / began.elapsed().as_secs_f64();
    Ok(Tap { idle, read_p50_ns: sample.p50_ns, read_p99_ns: sample.p99_ns })
}
