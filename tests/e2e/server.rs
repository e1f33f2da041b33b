//! The server under test: its configuration file, start, readiness, counters and end.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use rustix::process::Signal;

use crate::process::{self, Daemon};

pub const SERVER_ADDRESS: &str = "10.77.0.2";
pub const CLIENT_ADDRESS: &str = "10.77.0.1";
pub const SERVER_ADDRESS_V6: &str = "fd4e:6673::2";
pub const CLIENT_ADDRESS_V6: &str = "fd4e:6673::1";
/// The kernel's end of the TAP, or of the stand-in's veth pair.
pub const DEVICE: &str = "nfs0";
pub const NFS_PORT: u16 = 2049;
/// What SIGTERM may take, with and without a transfer running.
pub const STOP_LIMIT: Duration = Duration::from_secs(2);

pub struct Export {
    pub name: String,
    /// `None` is the memory store.
    pub path: Option<PathBuf>,
    pub read_only: bool,
    pub squash: &'static str,
}

/// What a case wants from the server; `Setup::default()` is what `make run` serves.
pub struct Setup {
    pub device: String,
    /// CPUs of the packet loops, as the file has them; a queue pair for each.
    pub engine: &'static str,
    pub mtu: u16,
    pub transmit: &'static str,
    pub page_cache_mib: u32,
    pub hugepages: bool,
    /// Besides `/export` on the case's own folder.
    pub more_exports: Vec<Export>,
    /// Lines for the section `[limits]`.
    pub limits: String,
    /// Lines for the section `[tcp]`.
    pub tcp: String,
    /// Puts the kernel's end into a bridge, for a guest beside it.
    pub bridge: bool,
    /// Both ends have addresses of IPv6 too.
    pub ipv6: bool,
    /// Instead of one for each core.
    pub queues: Option<usize>,
    /// The port is in this VLAN, and the kernel's end has its addresses there.
    pub vlan: Option<u16>,
    /// Lines for the section `[[port]]`.
    pub port_keys: String,
    /// Networks that may use the exports besides the client's.
    pub more_clients: Vec<String>,
}

impl Default for Setup {
    fn default() -> Setup {
        Setup {
            device: format!("net_tap0,iface={DEVICE}"),
            engine: "0",
            mtu: 1500,
            transmit: "splice",
            page_cache_mib: 128,
            hugepages: false,
            more_exports: Vec::new(),
            limits: String::new(),
            tcp: String::new(),
            bridge: false,
            ipv6: false,
            queues: None,
            vlan: None,
            port_keys: String::new(),
            more_clients: Vec::new(),
        }
    }
}

impl Setup {
    /// The configuration in the server's own words. `folder` holds everything that belongs to this run.
    pub fn to_toml(&self, folder: &Path) -> String {
        let mut text = format!(
            "[server]\nstate_dir = \"{state}\"\nstats_socket = \"{socket}\"\nlog_level = \"info\"\ntransmit = \"{transmit}\"\n\n\
             [cores]\nengine = [{engine}]\nio = []\nio_threads = 2\n\n\
             [memory]\nhugepages = {hugepages}\neal_mib = 256\npage_cache_mib = {cache}\nblock_kib = 64\n\n\
             [[port]]\ndevice = \"{device}\"\nmac = \"02:00:0a:4d:00:02\"\nmtu = {mtu}\n{addresses}\nqueues = {queues}\ntso = \"auto\"\n{vlan}{port_keys}",
            addresses = match self.ipv6 {
                false => format!("address = \"{SERVER_ADDRESS}/24\""),
                true => format!("addresses = [\"{SERVER_ADDRESS}/24\", \"{SERVER_ADDRESS_V6}/64\"]"),
            },
            vlan = self.vlan.map(|vlan| format!("vlan = {vlan}\n")).unwrap_or_default(),
            port_keys = self.port_keys,
            state = folder.join("state").display(),
            socket = stats_socket(folder).display(),
            transmit = self.transmit,
            hugepages = self.hugepages,
            cache = self.page_cache_mib,
            device = self.device,
            engine = self.engine,
            queues = self.queues.unwrap_or_else(|| self.engine.split(',').count()),
            mtu = self.mtu,
        );
        let own = Export {
            name: "/export".into(),
            path: (!memory_store()).then(|| folder.join("export")),
            read_only: false,
            squash: "none",
        };
        let networks = ["10.77.0.0/24".to_owned(), "fd4e:6673::/64".to_owned()];
        let clients: Vec<&String> = networks.iter().take(1 + usize::from(self.ipv6)).chain(&self.more_clients).collect();
        for export in std::iter::once(&own).chain(&self.more_exports) {
            let store = match &export.path {
                Some(path) => format!("path = \"{}\"", path.display()),
                None => "store = \"memory\"".to_owned(),
            };
            write!(
                text,
                "\n[[export]]\nname = \"{}\"\n{store}\nread_only = {}\nsquash = \"{}\"\nclients = {clients:?}\n",
                export.name, export.read_only, export.squash
            )
            .expect("writing to a String");
        }
        if !self.limits.is_empty() {
            write!(text, "\n[limits]\n{}\n", self.limits).expect("writing to a String");
        }
        if !self.tcp.is_empty() {
            write!(text, "\n[tcp]\n{}\n", self.tcp).expect("writing to a String");
        }
        text
    }
}

/// `NFSPLICE_E2E_STORE=memory`: for the cases that do not look at the exported folder on the host.
fn memory_store() -> bool {
    std::env::var("NFSPLICE_E2E_STORE").is_ok_and(|value| value == "memory")
}

pub fn stats_socket(folder: &Path) -> PathBuf {
    folder.join("stats.sock")
}

/// The binary under test. The release build is used: it is what is shipped, and what keeps the time limits honest.
pub fn binary() -> Result<PathBuf> {
    if let Some(path) = std::env::var_os("NFSPLICE_E2E_BINARY") {
        return Ok(path.into());
    }
    // This runner is target/debug/deps/e2e-*.
    let own = std::env::current_exe()?;
    let target = own.ancestors().nth(3).context("the runner is in target/debug/deps")?;
    let binary = target.join("release/nfsplice");
    if !binary.is_file() {
        bail!("{} is missing: cargo build --release", binary.display());
    }
    Ok(binary)
}

/// `nfsplice serve CONFIG` under `wrapper` (which enters a namespace).
pub fn spawn(mut wrapper: Command, config: &Path, log: &Path) -> Result<Daemon> {
    wrapper.arg(binary()?).arg("serve").arg(config);
    Daemon::spawn(wrapper, log)
}

pub type Counters = BTreeMap<String, f64>;

pub fn stats(folder: &Path) -> Result<Counters> {
    let ask = || -> Result<Counters> {
        let mut command = Command::new(binary()?);
        command.arg("stats").arg("--socket").arg(stats_socket(folder)).arg("--json");
        let output = process::run(command, Duration::from_secs(5))?;
        parse_stats(&output.stdout).with_context(|| format!("stats says {:?}", output.stderr))
    };
    // A server under attack on a busy machine may take longer than the command waits.
    ask().or_else(|_| ask()).or_else(|_| ask())
}

/// What `nfsplice stats --json` prints: facts of the server, its counters, and which of them are gauges.
pub fn parse_stats(text: &[u8]) -> Result<Counters> {
    #[derive(serde::Deserialize)]
    struct Printed {
        counters: Counters,
    }
    let printed: Printed =
        serde_json::from_slice(text).with_context(|| format!("stats printed {}", String::from_utf8_lossy(text)))?;
    Ok(printed.counters)
}

/// What each core counts for itself, of a server that has several.
pub fn stats_by_core(folder: &Path) -> Result<Vec<Counters>> {
    #[derive(serde::Deserialize)]
    struct Printed {
        by_core: Vec<Counters>,
    }
    let mut command = Command::new(binary()?);
    command.arg("stats").arg("--socket").arg(stats_socket(folder)).arg("--json");
    let printed: Printed = serde_json::from_slice(&process::run(command, Duration::from_secs(5))?.stdout)?;
    Ok(printed.by_core)
}

/// Each port counts the payload bytes it copied on transmit: the counters have to exist, and to be 0 where replies are spliced.
pub fn check_no_copies(counters: &Counters) -> Result<()> {
    let mut ports = 0;
    for (name, copied) in counters.iter().filter(|(name, _)| name.ends_with("tx_payload_bytes_copied")) {
        ports += 1;
        if *copied != 0.0 {
            bail!("{name} is {copied}: payload was copied on transmit");
        }
    }
    if ports == 0 {
        bail!("stats has no counter tx_payload_bytes_copied");
    }
    Ok(())
}

/// SIGTERM, then the exit code 0 within the limit.
pub fn stop(server: &mut Daemon) -> Result<()> {
    server.signal(Signal::TERM);
    let status = server.wait(STOP_LIMIT)?;
    if !status.success() {
        bail!("the server ended with {status} after SIGTERM\n{}", server.tail());
    }
    Ok(())
}
