//! The load generator as it is shipped, against this server: over virtio-user and vhost with both ends on our own stack, over kernel
//! sockets through a TAP, and on our own stack to kernel sockets. What is wrong has to show in the JSON and in the exit code.

use std::io;
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rustix::process::Signal;
use serde_json::Value;

use crate::bed::Bed;
use crate::process::{self, Daemon};
use crate::report::{Report, full};
use crate::server::{self, NFS_PORT, SERVER_ADDRESS, SERVER_ADDRESS_V6, Setup, binary};
use crate::standin;

const LIMIT: Duration = Duration::from_secs(90);
const MOUNT_PORT: u16 = 20_048;
/// A busy machine delays acknowledgements past their timeout: that is no fault of either end here.
const ANY_RETRANSMISSIONS: [&str; 2] = ["--retransmissions-max", "1000000"];

pub fn run(report: &mut Report) {
    report.case("dpdk_pair_verifies_every_byte", || dpdk_pair(false, &[]));
    report.case("dpdk_pair_from_ordinary_pages_with_large_frames", || dpdk_pair(false, &["--size", "1m", "--depth", "2"]));
    report.case("dpdk_pair_over_ipv6", || dpdk_pair(true, &["--size", "64k", "--depth", "4"]));
    report.case("kernel_sockets_over_a_tap", kernel_sockets);
    report.case("own_stack_to_the_kernels", || own_stack_to_kernel(0));
    report.case("own_stack_to_the_kernels_loss_1_percent", || own_stack_to_kernel(1));
    report.case("wrong_bytes_fail_the_run", wrong_bytes);
    report.case("interrupted_run_has_a_result", interrupted);
}

fn target(server: &str) -> String {
    if server.contains(':') { format!("[{server}]:/export") } else { format!("{server}:/export") }
}

fn json_of(path: &Path) -> Result<Value> {
    Ok(serde_json::from_slice(&std::fs::read(path).with_context(|| format!("reading {}", path.display()))?)?)
}

/// Runs `nfsplice load WORDS`; its exit code, its JSON, and what it said.
fn load(command: Command, json: &Path, words: &[&str]) -> Result<(i32, Value, String)> {
    load_from(command, json, words, SERVER_ADDRESS)
}

fn load_from(mut command: Command, json: &Path, words: &[&str], server: &str) -> Result<(i32, Value, String)> {
    command.arg("load").args(words).arg("--json").arg(json).args(["--quiet", &target(server)]);
    let output = process::output(command, LIMIT)?;
    let said = output.text() + &output.stderr;
    let code = output.status.code().with_context(|| format!("ended by a signal: {said}"))?;
    let result = json_of(json).with_context(|| said.clone())?;
    Ok((code, result, said))
}

fn check_clean(code: i32, result: &Value, said: &str) -> Result<()> {
    ensure!(code == 0 && result["clean"] == true, "exit code {code}:\n{said}");
    let faults = result["faults"].as_object().context("faults")?;
    ensure!(faults.len() > 10 && faults.values().all(|count| *count == 0), "faults: {faults:?}");
    let total = &result["total"];
    ensure!(total["calls"].as_u64() > Some(100) && total["calls_per_s"].as_f64() > Some(1.0), "{total}");
    ensure!(total["latency_ns"]["p99"].as_u64() >= total["latency_ns"]["p50"].as_u64(), "{total}");
    Ok(())
}

/// Two processes, each on our own stack; no kernel between them. Chains leave whole: the other end has TSO.
fn dpdk_pair(ipv6: bool, more: &[&str]) -> Result<()> {
    standin::only_nfsplice()?;
    let mut bed = Bed::prepare(Setup { device: "net_null0".into(), page_cache_mib: 256, ipv6, ..Setup::default() })?;
    let (server, client) = if ipv6 { (SERVER_ADDRESS_V6, "fd4e:6673::1/64") } else { (SERVER_ADDRESS, "10.77.0.1/24") };
    let socket = bed.folder().join("port.sock");
    bed.setup.device = format!("net_virtio_user0,path={},server=1,queues=1", socket.display());
    bed.start()?;
    process::wait_for_file(&socket, Duration::from_secs(20))?;
    let device = format!("net_vhost0,iface={},queues=1,tso=1,client=1", socket.display());
    let duration = if full() { "20s" } else { "2s" };
    let words = [
        &["--device", &device, "--address", client, "--mac", "02:00:0a:4d:00:01", "--no-huge"][..],
        &["--workload", "randread=40,read=20,randwrite=20,getattr=10,null=10", "--verify", "--commit-every", "16"],
        &["--size", "16k", "--files", "3", "--file-size", "8m", "--ramp", "200ms", "--duration", duration],
        &ANY_RETRANSMISSIONS,
    ]
    .concat();
    // The last of an option that is given twice does not win: take the default away.
    let words: Vec<&str> = match more {
        [] => words,
        _ => {
            let size = words.iter().position(|word| *word == "--size").context("--size")?;
            [&words[..size], &words[size + 2..], more].concat()
        }
    };
    let json = bed.folder().join("pair.json");
    let (code, result, said) = load_from(Command::new(binary()?), &json, &words, server)?;
    check_clean(code, &result, &said)?;
    let read = &result["operations"]["READ"];
    let stats = server::stats(bed.folder())?;
    let (segments, chains) = (stats["tcp.out_segs"], stats["port0.tx_chains"]);
    ensure!(segments > 2.0 * chains, "{segments} segments in {chains} chains: the device did not cut them");
    ensure!(read["bytes"].as_u64() > Some(1 << 20), "{read}");
    ensure!(result["verified_bytes"].as_u64() >= read["bytes"].as_u64(), "READs that were not verified: {result}");
    ensure!(result["generator"]["figures"]["tx_payload_bytes_copied"] == 0, "the generator copies what it writes");
    bed.finish()
}

/// Ports from rpcbind, mixed calls, and two results compared.
fn kernel_sockets() -> Result<()> {
    standin::only_nfsplice()?;
    let bed = Bed::new(Setup::default())?;
    let program = binary()?.display().to_string();
    let results: [PathBuf; 2] = ["closed", "open"].map(|name| bed.folder().join(format!("{name}.json")));
    let common = [
        &["--transport", "kernel", "--files", "2", "--file-size", "4m", "--verify", "--interval", "200ms"][..],
        &["--ramp", "100ms", "--duration", "2s"],
        &["--workload", "randread=50,write=20,lookup=10,readdirplus=10,commit=10"],
        &ANY_RETRANSMISSIONS,
    ]
    .concat();
    let (code, result, said) = load(bed.net.command(&program), &results[0], &common)?;
    check_clean(code, &result, &said)?;
    ensure!(result["intervals"].as_array().is_some_and(|intervals| intervals.len() >= 8), "{}", result["intervals"]);
    let open = [&common[..], &["--rate", "200"]].concat();
    let (code, result, said) = load(bed.net.command(&program), &results[1], &open)?;
    check_clean(code, &result, &said)?;
    let calls = result["total"]["calls"].as_u64().context("calls")?;
    ensure!((300..=500).contains(&calls), "{calls} calls at 200 a second in 2 s");
    let mut compare = Command::new(&program);
    compare.args(["load", "compare"]).args(&results);
    let said = process::run(compare, LIMIT)?.text();
    for needle in ["B/A", "calls/s", "p99.9", "differs: rate: null | 200.0"] {
        ensure!(said.contains(needle), "the comparison lacks {needle:?}:\n{said}");
    }
    let script = bed.folder().join("script");
    std::fs::write(&script, "repeat 50\nread 0 0 8k\ngetattr 1\nend\n")?;
    let script = script.display().to_string();
    let words = ["--transport", "kernel", "--files", "2", "--file-size", "4m", "--ramp", "0s", "--script", &script];
    let (code, result, said) = load(bed.net.command(&program), &results[0], &[&words[..], &ANY_RETRANSMISSIONS].concat())?;
    check_clean(code, &result, &said)?;
    ensure!(result["total"]["calls"] == 400, "100 calls on each of 4 connections: {}", result["total"]);
    bed.finish()
}

/// Our own stack opens the connections and the kernel accepts them: a relay on kernel sockets between the generator's TAP and the server's.
fn own_stack_to_kernel(loss_percent: u32) -> Result<()> {
    standin::only_nfsplice()?;
    const DEVICE: &str = "gen0";
    const RELAY: Ipv4Addr = Ipv4Addr::new(10, 78, 0, 1);
    let bed = Bed::new(Setup::default())?;
    bed.net.ip(&format!("tuntap add dev {DEVICE} mode tap multi_queue"))?;
    bed.net.ip(&format!("addr add {RELAY}/24 dev {DEVICE}"))?;
    if loss_percent > 0 {
        bed.net.lose(DEVICE, loss_percent)?;
    }
    let json = bed.folder().join("own.json");
    let device = format!("net_tap0,iface={DEVICE}");
    let [nfs_port, mount_port] = [NFS_PORT, MOUNT_PORT].map(|port| port.to_string());
    let words = [
        &["--device", &device, "--address", "10.78.0.2/24", "--mac", "02:00:0a:4e:00:02", "--no-huge"][..],
        &["--cores", "1", "--nfs-port", &nfs_port, "--mount-port", &mount_port],
        &["--workload", "randread=40,randwrite=40,getattr=20", "--verify", "--size", "64k", "--connections", "8"],
        &["--files", "2", "--file-size", "4m", "--ramp", "200ms", "--duration", if full() { "20s" } else { "2s" }],
        &ANY_RETRANSMISSIONS,
    ]
    .concat();
    let command = bed.net.command(&binary()?.display().to_string());
    let listeners = [NFS_PORT, MOUNT_PORT].map(|port| -> Result<TcpListener> {
        let listener = bed.net.inside(|| TcpListener::bind((RELAY, port)))??;
        listener.set_nonblocking(true)?;
        Ok(listener)
    });
    let [nfs, mount] = listeners;
    let (nfs, mount) = (nfs?, mount?);
    let (stop, reached) = (AtomicBool::new(false), AtomicBool::new(false));
    let outcome = thread::scope(|scope| {
        let relays = [&nfs, &mount].map(|listener| scope.spawn(|| relay(&bed, listener, &stop, &reached)));
        // The driver gives the kernel's end the port's own address when it opens it, and takes the link down and up.
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) && !reached.load(Ordering::Relaxed) {
                let _ = bed.net.ip(&format!("link set {DEVICE} address 02:00:0a:4e:00:01 up"));
                thread::sleep(Duration::from_millis(100));
            }
        });
        let outcome = load_from(command, &json, &words, &RELAY.to_string());
        stop.store(true, Ordering::Relaxed);
        for relay in relays {
            relay.join().expect("a relay does not panic").context("the relay")?;
        }
        outcome
    });
    let (code, result, said) = outcome?;
    check_clean(code, &result, &said)?;
    for name in ["READ", "WRITE"] {
        let operation = &result["operations"][name];
        ensure!(operation["bytes"].as_u64() > Some(1 << 20), "{name}: {operation}");
    }
    println!("    {} calls, {} packets sent again", result["total"]["calls"], result["retransmissions"]);
    if loss_percent > 0 {
        let (from_generator, to_generator) = bed.net.lost()?;
        ensure!(from_generator > 0 && to_generator > 0, "nothing was lost on its way: {from_generator}, {to_generator}");
        ensure!(result["retransmissions"].as_u64() > Some(0), "{from_generator} packets were lost and none was sent again");
    }
    bed.finish()
}

/// Each connection that comes gets one of its own to the same port of the server, until it is told to stop.
fn relay(bed: &Bed, listener: &TcpListener, stop: &AtomicBool, reached: &AtomicBool) -> Result<()> {
    let to = SocketAddr::new(SERVER_ADDRESS.parse()?, listener.local_addr()?.port());
    let mut ends = Vec::new();
    thread::scope(|scope| {
        let mut pair = |near: TcpStream| -> Result<()> {
            near.set_nonblocking(false)?;
            near.set_nodelay(true)?;
            let far = bed.net.connect(to, Duration::from_secs(5))?;
            let ways = [(near.try_clone()?, far.try_clone()?), (far.try_clone()?, near.try_clone()?)];
            ends.extend([near, far]);
            for (mut from, mut to) in ways {
                scope.spawn(move || {
                    let _ = io::copy(&mut from, &mut to);
                    let _ = to.shutdown(Shutdown::Write);
                });
            }
            Ok(())
        };
        let mut outcome = Ok(());
        while outcome.is_ok() && !stop.load(Ordering::Relaxed) {
            match listener.accept() {
                Ok((near, _)) => {
                    reached.store(true, Ordering::Relaxed);
                    outcome = pair(near);
                }
                Err(_) => thread::sleep(Duration::from_millis(5)),
            }
        }
        // Whatever happened: the threads above wait for these.
        ends.iter().for_each(|end| drop(end.shutdown(Shutdown::Both)));
        outcome
    })
}

/// One byte of a file is changed behind the server's back.
fn wrong_bytes() -> Result<()> {
    standin::only_nfsplice()?;
    let bed = Bed::new(Setup::default())?;
    let program = binary()?.display().to_string();
    let json = bed.folder().join("wrong.json");
    let words = [
        &["--transport", "kernel", "--files", "1", "--file-size", "256k", "--workload", "read", "--verify"][..],
        &["--connections", "1", "--ramp", "0s", "--count", "128"],
        &ANY_RETRANSMISSIONS,
    ]
    .concat();
    let (code, result, said) = load(bed.net.command(&program), &json, &words)?;
    check_clean(code, &result, &said)?;
    let path = bed.export().join("nfsplice-load/f000000");
    let mut bytes = std::fs::read(&path)?;
    bytes[5000] ^= 1;
    std::fs::write(&path, &bytes)?;
    // Past the time in which the server answers from attributes it knows.
    thread::sleep(Duration::from_millis(1500));
    let (code, result, said) = load(bed.net.command(&program), &json, &words)?;
    ensure!(code == 1 && result["clean"] == false, "exit code {code}:\n{said}");
    // 128 READs of 64 blocks by one connection: each twice. Several share the READs as it happens.
    ensure!(result["faults"]["verify_failures"] == 2 && result["faults"]["wrong_bytes"] == 2, "{}", result["faults"]);
    bed.finish()
}

/// Ctrl-C in the middle: the result so far, and an exit code of 0.
fn interrupted() -> Result<()> {
    standin::only_nfsplice()?;
    let bed = Bed::new(Setup::default())?;
    let json = bed.folder().join("interrupted.json");
    let log = bed.folder().join("load.log");
    let mut command = bed.net.command(&binary()?.display().to_string());
    command.args(["load", "--transport", "kernel", "--workload", "null", "--ramp", "0s", "--duration", "10m"]);
    command.args(["--interval", "100ms", "--json"]).arg(&json).arg(target(SERVER_ADDRESS)).args(ANY_RETRANSMISSIONS);
    let mut running = Daemon::spawn(command, &log)?;
    let deadline = std::time::Instant::now() + LIMIT;
    // Measuring: there are live lines.
    while !std::fs::read_to_string(&log).unwrap_or_default().contains("calls/s") {
        ensure!(std::time::Instant::now() < deadline, "no live line\n{}", running.tail());
        thread::sleep(Duration::from_millis(50));
    }
    running.signal(Signal::INT);
    let status = running.wait(Duration::from_secs(20))?;
    ensure!(status.code() == Some(0), "{status}\n{}", running.tail());
    let result = json_of(&json)?;
    ensure!(result["complete"] == false && result["clean"] == true, "{result}");
    ensure!(result["total"]["calls"].as_u64() > Some(0), "{result}");
    bed.finish()
}
