//! Network namespaces: made, entered by one thread, given loss, and removed.
//! Not here: what runs in them.

use std::fs::File;
use std::io::Write;
use std::net::{Ipv6Addr, SocketAddr, TcpStream, UdpSocket};
use std::os::fd::AsFd;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::process::Signal;
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::process;

const PREFIX: &str = "nfsplice-e2e-";
const FOUND_LIMIT: Duration = Duration::from_secs(15);

pub struct Netns {
    pub name: String,
}

impl Netns {
    pub fn new() -> Result<Netns> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("{PREFIX}{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        process::run_words(&format!("ip netns add {name}"))?;
        process::remember_namespace(&name);
        let net = Netns { name };
        net.ip("link set lo up")?;
        Ok(net)
    }

    /// A command that runs inside. `ip` replaces itself by it, so the child's pid is the command's.
    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.name, program]);
        command
    }

    /// Runs `ip -n NAMESPACE WORDS`.
    pub fn ip(&self, words: &str) -> Result<()> {
        process::run_words(&format!("ip -n {} {words}", self.name)).map(drop)
    }

    /// Calls `f` on a thread inside the namespace. Sockets opened there stay in it.
    pub fn inside<T: Send>(&self, f: impl FnOnce() -> T + Send) -> Result<T> {
        let file = File::open(format!("/run/netns/{}", self.name))?;
        thread::scope(|scope| {
            let inside = scope.spawn(|| {
                move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network))?;
                Ok(f())
            });
            inside.join().expect("the thread does not panic")
        })
    }

    pub fn connect(&self, to: SocketAddr, limit: Duration) -> Result<TcpStream> {
        let stream = self.inside(|| TcpStream::connect_timeout(&to, limit))?.with_context(|| format!("connecting to {to}"))?;
        stream.set_nodelay(true)?;
        Ok(stream)
    }

    /// The same for an address that has just come up: its owner looks for it, and others find it, for some seconds.
    pub fn connect_once_found(&self, to: SocketAddr, limit: Duration) -> Result<TcpStream> {
        let deadline = Instant::now() + FOUND_LIMIT;
        loop {
            match self.connect(to, limit) {
                Ok(stream) => return Ok(stream),
                Err(error) if Instant::now() > deadline => return Err(error),
                Err(_) => thread::sleep(Duration::from_millis(100)),
            }
        }
    }

    pub fn udp(&self, to: SocketAddr) -> Result<UdpSocket> {
        let any = if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
        let socket = self.inside(|| UdpSocket::bind(any))??;
        socket.connect(to)?;
        Ok(socket)
    }

    /// The number of a device inside.
    pub fn index(&self, device: &str) -> Result<u32> {
        let listing = process::run_words(&format!("ip -n {} -o link show {device}", self.name))?;
        let text = listing.text();
        text.split(':').next().and_then(|number| number.trim().parse().ok()).with_context(|| format!("no number in {text}"))
    }

    /// Whether the kernel has this address inside.
    pub fn has_address(&self, address: Ipv6Addr) -> Result<bool> {
        Ok(process::run_words(&format!("ip -n {} -6 -o addr show to {address}", self.name))?
            .text()
            .contains(&address.to_string()))
    }

    /// Drops `percent` % of the packets in each direction on `device`, at random.
    pub fn lose(&self, device: &str, percent: u32) -> Result<()> {
        let rules = format!(
            "table ip loss {{
                counter inward {{ }}
                counter outward {{ }}
                chain inward {{
                    type filter hook input priority 0;
                    iifname \"{device}\" numgen random mod 100 < {percent} counter name inward drop
                }}
                chain outward {{
                    type filter hook output priority 0;
                    oifname \"{device}\" numgen random mod 100 < {percent} counter name outward drop
                }}
            }}\n"
        );
        self.nft(&rules)
    }

    /// Loads rules of nftables.
    pub fn nft(&self, rules: &str) -> Result<()> {
        let mut child = self.command("nft").args(["-f", "-"]).stdin(Stdio::piped()).stderr(Stdio::inherit()).spawn()?;
        child.stdin.take().context("stdin is piped")?.write_all(rules.as_bytes())?;
        if !child.wait()?.success() {
            bail!("nft refused the rules {rules}");
        }
        Ok(())
    }

    /// How many packets were dropped on their way (from the server, to the server).
    pub fn lost(&self) -> Result<(u64, u64)> {
        Ok((self.counted("inward")?, self.counted("outward")?))
    }

    /// The packets of a counter of nftables.
    pub fn counted(&self, counter: &str) -> Result<u64> {
        let mut command = self.command("nft");
        command.args(["-j", "list", "counters"]);
        let listing: serde_json::Value = serde_json::from_slice(&process::run(command, Duration::from_secs(5))?.stdout)?;
        let entries = listing["nftables"].as_array().into_iter().flatten();
        let mut named = entries.filter(|entry| entry["counter"]["name"] == counter);
        named.next().and_then(|entry| entry["counter"]["packets"].as_u64()).with_context(|| format!("counter {counter}"))
    }
}

impl Drop for Netns {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["netns", "del", &self.name]).stderr(Stdio::null()).status();
        process::forget_namespace(&self.name);
    }
}

/// Removes what a runner that was killed has left: namespaces that carry the pid of a process which is gone.
pub fn sweep_leftovers() {
    let Ok(listing) = process::run_words("ip netns list") else { return };
    for name in listing.text().lines().filter_map(|line| line.split_whitespace().next()) {
        let Some(owner) = name.strip_prefix(PREFIX).and_then(|rest| rest.split('-').next()) else { continue };
        if std::path::Path::new("/proc").join(owner).exists() {
            continue;
        }
        if let Ok(pids) = process::run_words(&format!("ip netns pids {name}")) {
            pids.text().split_whitespace().filter_map(|pid| pid.parse().ok()).for_each(|pid| process::signal(pid, Signal::KILL));
        }
        let _ = process::run_words(&format!("ip netns del {name}"));
        println!("e2e: removed {name}, left by a run that was killed");
    }
}
