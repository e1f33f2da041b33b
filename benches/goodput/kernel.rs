//! The same cells with the kernel's sockets at both ends, in real time. Two network namespaces have a TUN device each; one thread
//! carries packets between them through the very link of the simulator, one for each connection.
//!
//! The thread has a core to itself and the highest priority, as far as the machine allows, and waits in a loop when
//! something is due soon. What it adds is in every run: how late packets left it, and how long it did not look at the devices.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, OwnedFd};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant as Clock};

use anyhow::{Context, Result, bail};
use hdrhistogram::Histogram;
use nfsplice::net::memory_link::{EndOptions, MemoryEnd, MemoryLink};
use nfsplice::raw::syscall;
use nfsplice::time::Instant;
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::net::sockopt;
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::cell::{Cell, MTU};
use crate::results::{Carrier, Run};

const ADDRESSES: [Ipv4Addr; 2] = [Ipv4Addr::new(10, 99, 0, 1), Ipv4Addr::new(10, 99, 0, 2)];
const PORT_FIRST: u16 = 5_000;
const READ_BURST: usize = 32;
/// Wakes from a timer are that late: what is due sooner is waited for in a loop.
const SPIN: Duration = Duration::from_micros(150);
/// As the buffers of the simulator's endpoints.
const SYSCTLS: [(&str, &str); 4] = [
    ("ipv4/tcp_rmem", "4096 131072 33554432"),
    ("ipv4/tcp_wmem", "4096 131072 33554432"),
    ("ipv4/tcp_no_metrics_save", "1"),
    ("ipv4/tcp_ecn", "0"),
];

struct Namespace {
    name: String,
}

impl Namespace {
    fn new(name: String) -> Result<Namespace> {
        ip(&format!("netns add {name}"))?;
        Ok(Namespace { name })
    }

    fn enter(&self) -> Result<()> {
        let file = File::open(format!("/run/netns/{}", self.name))?;
        Ok(move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network))?)
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let _ = ip(&format!("netns del {}", self.name));
    }
}

fn ip(words: &str) -> Result<String> {
    let output = Command::new("ip").args(words.split_whitespace()).output().context("ip")?;
    if !output.status.success() {
        bail!("ip {words}: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Two namespaces and the devices between them.
struct Bed {
    spaces: [Namespace; 2],
    tuns: [OwnedFd; 2],
}

impl Bed {
    fn new() -> Result<Bed> {
        let pid = std::process::id();
        let spaces = [Namespace::new(format!("nfsplice-goodput-{pid}-0"))?, Namespace::new(format!("nfsplice-goodput-{pid}-1"))?];
        let open = |side: usize| -> Result<OwnedFd> {
            let (device, space) = (format!("gp{side}t{}", pid % 1_000_000), &spaces[side].name);
            let tun = syscall::open_tun(&device).context("a TUN device")?;
            ip(&format!("link set {device} netns {space}"))?;
            ip(&format!("-n {space} link set {device} mtu {MTU} txqueuelen 10000 gso_max_segs 1 up"))?;
            ip(&format!("-n {space} addr add {} peer {} dev {device}", ADDRESSES[side], ADDRESSES[1 - side]))?;
            Ok(tun)
        };
        let tuns = [open(0)?, open(1)?];
        for space in &spaces {
            thread::scope(|scope| {
                let set = scope.spawn(|| -> Result<()> {
                    space.enter()?;
                    SYSCTLS.iter().try_for_each(|(key, value)| {
                        fs::write(format!("/proc/sys/net/{key}"), value).with_context(|| format!("sysctl {key}"))
                    })
                });
                set.join().expect("no panic")
            })?;
        }
        Ok(Bed { spaces, tuns })
    }

    /// Packets that a device had no room for.
    fn device_drops(&self) -> Result<u64> {
        let mut sum = 0;
        for space in &self.spaces {
            let listing: serde_json::Value = serde_json::from_str(&ip(&format!("-n {} -s -j link show", space.name))?)?;
            for device in listing.as_array().into_iter().flatten() {
                sum += ["rx", "tx"].iter().filter_map(|way| device["stats64"][way]["dropped"].as_u64()).sum::<u64>();
            }
        }
        Ok(sum)
    }

    /// Lines of TcpExt that say how the sender repaired.
    fn counters(&self, side: usize) -> Result<Vec<(String, u64)>> {
        thread::scope(|scope| {
            let read = scope.spawn(|| -> Result<Vec<(String, u64)>> {
                self.spaces[side].enter()?;
                let text = fs::read_to_string("/proc/thread-self/net/netstat")?;
                let lines: Vec<&str> = text.lines().collect();
                let pair = lines.chunks(2).find(|pair| pair[0].starts_with("TcpExt")).context("TcpExt")?;
                let names = pair[0].split_whitespace().skip(1).map(str::to_owned);
                Ok(names.zip(pair[1].split_whitespace().skip(1).map(|n| n.parse().unwrap_or(0))).collect())
            });
            read.join().expect("no panic")
        })
    }
}

/// One connection's link.
struct Flow {
    link: MemoryLink,
    ends: [MemoryEnd; 2],
}

impl Flow {
    fn new(cell: &Cell, seed: u64) -> Flow {
        let ends = [EndOptions::plain([2, 0, 0, 0, 0, 1], MTU), EndOptions::plain([2, 0, 0, 0, 0, 2], MTU)];
        let (link, a, b) = MemoryLink::new(seed, cell.impairments(), ends);
        Flow { link, ends: [a, b] }
    }
}

struct Forwarder<'a> {
    tuns: &'a [OwnedFd; 2],
    flows: Vec<Flow>,
    epoch: Clock,
    lateness: Histogram<u64>,
    gaps: Histogram<u64>,
    busy: Duration,
    buffer: Vec<u8>,
}

impl Forwarder<'_> {
    fn now(&self) -> Instant {
        // Not at zero, where a link's clock starts.
        Instant::from_nanos(1_000_000 + self.epoch.elapsed().as_nanos() as u64)
    }

    fn run(&mut self, stop: &AtomicBool) -> Result<()> {
        let mut looked = self.now();
        while !stop.load(Ordering::Relaxed) {
            let start = self.now();
            // Nanoseconds since the devices were looked at last, what was slept on purpose aside.
            self.gaps.saturating_record(start.nanos_since(looked));
            looked = start;
            let mut worked = false;
            for side in 0..2 {
                worked |= self.take(side)?;
            }
            let (handed, next) = self.hand_over()?;
            worked |= handed;
            let now = self.now();
            if worked {
                self.busy += now.since(start);
                continue;
            }
            let wait = next.map_or(Duration::from_millis(20), |next| next.since(now).min(Duration::from_millis(20)));
            if wait > SPIN {
                let timeout = Timespec { tv_sec: 0, tv_nsec: (wait - SPIN).as_nanos() as i64 };
                let mut fds = [PollFd::new(&self.tuns[0], PollFlags::IN), PollFd::new(&self.tuns[1], PollFlags::IN)];
                let woken = rustix::event::poll(&mut fds, Some(&timeout))?;
                let after = self.now();
                // When a packet woke us, nobody can tell when it came.
                looked = if woken > 0 { after } else { (now + (wait - SPIN)).min(after) };
            }
        }
        Ok(())
    }

    /// What the kernel of this side has sent.
    fn take(&mut self, side: usize) -> Result<bool> {
        for taken in 0..READ_BURST {
            let len = match rustix::io::read(&self.tuns[side], &mut self.buffer) {
                Ok(len) => len,
                Err(rustix::io::Errno::AGAIN) => return Ok(taken > 0),
                Err(error) => return Err(error).context("a TUN device"),
            };
            let now = self.now();
            let packet = &self.buffer[..len];
            // IPv6 sends some of its own.
            let [0x45, _, _, _, _, _, _, _, _, 6, ..] = packet else { continue };
            let at = if side == 0 { 22 } else { 20 };
            let port = u16::from_be_bytes([packet[at], packet[at + 1]]);
            if let Some(flow) = self.flows.get_mut(usize::from(port.wrapping_sub(PORT_FIRST))) {
                flow.link.set_now(now);
                flow.ends[side].inject(packet.to_vec());
            }
        }
        Ok(true)
    }

    /// What has arrived; and when the next will.
    fn hand_over(&mut self) -> Result<(bool, Option<Instant>)> {
        let mut handed = false;
        let mut next: Option<Instant> = None;
        for flow in 0..self.flows.len() {
            while let Some(due) = self.flows[flow].link.poll_timeout() {
                let now = self.now();
                if due > now {
                    next = Some(next.map_or(due, |other| other.min(due)));
                    break;
                }
                handed = true;
                self.lateness.saturating_record(now.nanos_since(due));
                self.flows[flow].link.set_now(due);
                for to in 0..2 {
                    while let Some(frame) = self.flows[flow].ends[to].take_frame() {
                        rustix::io::write(&self.tuns[to], &frame).context("a TUN device")?;
                    }
                }
            }
        }
        Ok((handed, next))
    }
}

/// One connection's application ends.
#[derive(Default)]
struct Progress {
    received: AtomicU64,
    /// Of the sender, once it is over.
    retransmitted: AtomicU64,
}

fn receive(listener: TcpListener, over: &AtomicBool, progress: &Progress) -> Result<()> {
    let (mut stream, _) = listener.accept()?;
    stream.set_read_timeout(Some(Duration::from_millis(200)))?;
    let mut buffer = vec![0; 256 << 10];
    loop {
        match stream.read(&mut buffer) {
            // The reset that ends the connection crosses the link, too, and may be lost on it.
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock && !over.load(Ordering::Relaxed) => continue,
            Ok(0) | Err(_) => return Ok(()),
            Ok(len) => progress.received.fetch_add(len as u64, Ordering::Relaxed),
        };
    }
}

fn send(cell: &Cell, port: u16, stop: &AtomicBool, progress: &Progress) -> Result<()> {
    let socket = rustix::net::socket(rustix::net::AddressFamily::INET, rustix::net::SocketType::STREAM, None)?;
    sockopt::set_tcp_congestion(&socket, cell.control.of_linux()).context("TCP_CONGESTION")?;
    rustix::net::connect(&socket, &SocketAddr::from((ADDRESSES[1], port)))?;
    let mut stream = TcpStream::from(socket);
    stream.set_write_timeout(Some(Duration::from_millis(200)))?;
    let data = vec![0; 64 << 10];
    while !stop.load(Ordering::Relaxed) {
        match stream.write(&data) {
            Ok(_) => {}
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error).context("a sender"),
        }
    }
    progress.retransmitted.store(syscall::tcp_retransmissions(stream.as_fd())?.into(), Ordering::Relaxed);
    // Nothing of it is to be in the next run's way: no linger, no TIME-WAIT.
    sockopt::set_socket_linger(&stream, Some(Duration::ZERO))?;
    Ok(())
}

fn pin(core: usize) {
    core_affinity::set_for_current(core_affinity::CoreId { id: core });
}

/// The applications go before everything that is not real-time. They mostly sleep.
fn go_first() -> Result<()> {
    let tid = rustix::thread::gettid().as_raw_nonzero().to_string();
    let status = Command::new("chrt").args(["-f", "-p", "40", &tid]).status().context("chrt")?;
    if !status.success() {
        bail!("no real-time scheduling");
    }
    Ok(())
}

/// Runs these at the same time, each over a link of its own; all take equally long.
pub fn run(jobs: &[(Cell, u64)]) -> Result<Vec<(Cell, Run)>> {
    let bed = Bed::new()?;
    let duration = Duration::from_secs(jobs.first().context("a job")?.0.seconds());
    let (stop, over) = (AtomicBool::new(false), AtomicBool::new(false));
    let progress: Vec<Arc<Progress>> = jobs.iter().map(|_| Arc::default()).collect();
    let before = bed.counters(0)?;
    let mut received = Vec::new();
    let carrier = thread::scope(|scope| -> Result<Carrier> {
        let forwarder = scope.spawn(|| forward(&bed, jobs, &over));
        thread::sleep(Duration::from_millis(50));
        let (bed, stop, over) = (&bed, &stop, &over);
        for (index, progress) in progress.iter().enumerate() {
            let (ready, listens) = std::sync::mpsc::channel();
            scope.spawn(move || -> Result<()> {
                pin(1);
                go_first()?;
                bed.spaces[1].enter()?;
                let listener = TcpListener::bind((ADDRESSES[1], PORT_FIRST + index as u16))?;
                ready.send(()).context("nobody waits")?;
                receive(listener, over, progress)
            });
            listens.recv().context("a listener")?;
        }
        let began = Clock::now();
        let senders: Vec<_> = progress
            .iter()
            .zip(jobs)
            .enumerate()
            .map(|(index, (progress, (cell, _)))| {
                scope.spawn(move || -> Result<()> {
                    pin(1);
                    go_first()?;
                    bed.spaces[0].enter()?;
                    send(cell, PORT_FIRST + index as u16, stop, progress)
                })
            })
            .collect();
        thread::sleep(duration.saturating_sub(began.elapsed()));
        let elapsed = began.elapsed();
        received =
            progress.iter().map(|p| p.received.load(Ordering::Relaxed) as f64 * 8.0 / elapsed.as_secs_f64() / 1e6).collect();
        stop.store(true, Ordering::Relaxed);
        for sender in senders {
            sender.join().expect("no panic")?;
        }
        thread::sleep(Duration::from_millis(300));
        over.store(true, Ordering::Relaxed);
        forwarder.join().expect("no panic")
    })?;
    let after = bed.counters(0)?;
    let notes: String = after
        .iter()
        .zip(&before)
        .filter(|((name, now), (_, then))| {
            now > then
                && ["Recov", "Timeout", "Undo", "Loss", "DSACK", "SpuriousR", "Fail", "Hystart"]
                    .iter()
                    .any(|part| name.contains(part))
        })
        .map(|((name, now), (_, then))| format!("{name} {} ", now - then))
        .collect();
    let drops = bed.device_drops()?;
    if drops > 0 {
        bail!("{drops} packets did not fit into a device's queue");
    }
    let runs = jobs.iter().zip(received).zip(&progress).map(|(((cell, seed), mbit_per_second), progress)| {
        let retransmitted = progress.retransmitted.load(Ordering::Relaxed);
        (
            *cell,
            Run {
                seed: *seed,
                mbit_per_second,
                stands_for: 1,
                retransmitted,
                notes: notes.clone(),
                carrier: Some(carrier.clone()),
            },
        )
    });
    Ok(runs.collect())
}

fn forward(bed: &Bed, jobs: &[(Cell, u64)], over: &AtomicBool) -> Result<Carrier> {
    pin(0);
    // Not real-time: the kernel takes 50 ms of each second from a real-time thread that does not sleep.
    rustix::process::setpriority_process(None, -20).context("a priority")?;
    let mut forwarder = Forwarder {
        tuns: &bed.tuns,
        flows: jobs.iter().map(|(cell, seed)| Flow::new(cell, *seed)).collect(),
        epoch: Clock::now(),
        lateness: Histogram::new_with_bounds(1, 1_000_000_000, 2)?,
        gaps: Histogram::new_with_bounds(1, 1_000_000_000, 2)?,
        busy: Duration::ZERO,
        buffer: vec![0; 65_536],
    };
    forwarder.run(over)?;
    let us = |nanos: u64| nanos as f64 / 1e3;
    let (lateness, gaps) = (&forwarder.lateness, &forwarder.gaps);
    Ok(Carrier {
        late_us_mean: lateness.mean() / 1e3,
        late_us_p99: us(lateness.value_at_quantile(0.99)),
        late_us_max: us(lateness.max()),
        gap_us_p99: us(gaps.value_at_quantile(0.99)),
        gap_us_max: us(gaps.max()),
        busy: forwarder.busy.as_secs_f64() / forwarder.epoch.elapsed().as_secs_f64(),
    })
}
