//! The command line of `nfsplice load`: what is asked for, in the words of the person who asks.
//!
//! Only the definition and the reading of single values. What the values mean together, what the configuration file adds and
//! which defaults apply is decided in `load::options`.

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand, ValueEnum};

use super::config::Cidr;

/// How the generator reaches the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, ValueEnum)]
pub enum TransportKind {
    /// This project's own TCP/IP stack on a DPDK port.
    #[default]
    Dpdk,
    /// The kernel's TCP sockets.
    Kernel,
}

/// Distribution of the time between two arrivals of an open loop.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, ValueEnum)]
pub enum Arrival {
    /// Independent arrivals: exponentially distributed gaps.
    #[default]
    Poisson,
    /// Equal gaps.
    Uniform,
}

/// How stable a WRITE has to be before it is answered (stable_how of RFC 1813 section 3.3.7).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, ValueEnum)]
#[repr(u32)]
pub enum Stability {
    /// A COMMIT makes it so later.
    #[default]
    Unstable = 0,
    /// The data, and what is needed to find them.
    DataSync = 1,
    /// Data and all metadata.
    FileSync = 2,
}

const LOAD_HELP: &str = "\
Examples:
  nfsplice load --transport kernel 10.0.0.2:/export --workload randread --size 4k --connections 4 --depth 32
  nfsplice load --config load.toml 10.0.0.2:/export --workload randread=70,randwrite=20,getattr=10 --rate 50000 --json out.json
  nfsplice load --device 'net_vhost0,iface=/tmp/s,queues=1,tso=1' --address 10.77.0.1/24 --no-huge 10.77.0.2:/export
  nfsplice load compare before.json after.json

docs/load.md explains every option and the JSON; deploy/load-test.md is a test between two machines, step by step.

Exit codes:
  0  done   1  failed, or the result is not clean (errors, retransmissions, short transfers, wrong bytes)   2  wrong usage";

/// `nfsplice load`.
#[derive(Debug, PartialEq, Args)]
#[command(after_help = LOAD_HELP, args_conflicts_with_subcommands = true, arg_required_else_help = true)]
pub struct Load {
    /// Work on results instead of making one.
    #[command(subcommand)]
    pub action: Option<LoadAction>,
    /// What is measured and how.
    #[command(flatten)]
    pub run: LoadArguments,
}

/// What can be done with results.
#[derive(Debug, PartialEq, Eq, Subcommand)]
pub enum LoadAction {
    /// Show two results side by side, with the ratio and its spread.
    Compare {
        /// The result that counts as 1.
        #[arg(value_name = "A.json")]
        a: PathBuf,
        /// The result that is compared with it.
        #[arg(value_name = "B.json")]
        b: PathBuf,
    },
}

/// The options of a run. `None` and empty: the configuration file's value, or the default.
#[derive(Debug, Default, PartialEq, Args)]
pub struct LoadArguments {
    /// The server and the export: ADDRESS:/EXPORT.
    #[arg(value_name = "ADDRESS:/EXPORT", value_parser = parse_target)]
    pub target: Option<(IpAddr, String)>,
    /// TOML file for ports, cores and memory; options given here have precedence.
    #[arg(long, value_name = "FILE", help_heading = "Transport")]
    pub config: Option<PathBuf>,
    /// How to reach the server [default: dpdk].
    #[arg(long, value_enum, help_heading = "Transport")]
    pub transport: Option<TransportKind>,
    /// DPDK port: a PCI address, or a vdev such as net_vhost0,iface=/tmp/s,queues=1,tso=1.
    #[arg(long, help_heading = "Transport")]
    pub device: Option<String>,
    /// The generator's own address on that port, with the length of the network's prefix.
    #[arg(long, value_name = "ADDRESS/PREFIX", value_parser = parse_cidr, help_heading = "Transport")]
    pub address: Option<Cidr>,
    /// Router, if the server is on another network.
    #[arg(long, help_heading = "Transport")]
    pub gateway: Option<IpAddr>,
    /// Ethernet address of the port [default: the device's].
    #[arg(long, help_heading = "Transport")]
    pub mac: Option<String>,
    /// Largest IP packet, bytes [default: 1500].
    #[arg(long, help_heading = "Transport")]
    pub mtu: Option<u16>,
    /// CPUs to run on, one thread each [default: the last CPU].
    #[arg(long, value_name = "CPU,..", value_delimiter = ',', help_heading = "Transport")]
    pub cores: Vec<u32>,
    /// Take DPDK's memory from ordinary pages.
    #[arg(long, help_heading = "Transport")]
    pub no_huge: bool,
    /// Memory for packet buffers and data, MiB [default: 512].
    #[arg(long, value_name = "MIB", help_heading = "Transport")]
    pub memory_mib: Option<u32>,
    /// Port of NFS [default: ask rpcbind].
    #[arg(long, value_name = "PORT", help_heading = "Transport")]
    pub nfs_port: Option<u16>,
    /// Port of MOUNT [default: ask rpcbind].
    #[arg(long, value_name = "PORT", help_heading = "Transport")]
    pub mount_port: Option<u16>,

    /// What to do: null, connect, getattr, lookup, read, randread, write, randwrite, commit, readdirplus, or a mix by per cent such as
    /// randread=70,randwrite=30 [default: randread].
    #[arg(long, help_heading = "Workload")]
    pub workload: Option<String>,
    /// A text script of calls to replay instead (docs/load.md).
    #[arg(long, value_name = "FILE", conflicts_with = "workload", help_heading = "Workload")]
    pub script: Option<PathBuf>,
    /// Bytes of a READ or WRITE [default: 4k].
    #[arg(long, value_name = "BYTES", value_parser = parse_size, help_heading = "Workload")]
    pub size: Option<u64>,
    /// Files in the working set [default: 16].
    #[arg(long, help_heading = "Workload")]
    pub files: Option<u32>,
    /// Bytes of each file [default: 64m: with 16 files a working set of 1 GiB].
    #[arg(long, value_name = "BYTES", value_parser = parse_size, help_heading = "Workload")]
    pub file_size: Option<u64>,
    /// Directory of the export in which the files are made [default: nfsplice-load].
    #[arg(long, value_name = "NAME", help_heading = "Workload")]
    pub directory: Option<String>,
    /// Write the files anew even if they are there with their size.
    #[arg(long, help_heading = "Workload")]
    pub refill: bool,
    /// How stable a WRITE has to be [default: unstable].
    #[arg(long, value_enum, help_heading = "Workload")]
    pub stable: Option<Stability>,
    /// A COMMIT of the file after so many WRITEs of a connection; 0: never [default: 0].
    #[arg(long, value_name = "N", help_heading = "Workload")]
    pub commit_every: Option<u32>,
    /// Compare every byte read with the pattern that its file and offset give.
    #[arg(long, help_heading = "Workload")]
    pub verify: bool,
    /// Of everything random [default: 1].
    #[arg(long, help_heading = "Workload")]
    pub seed: Option<u64>,
    /// uid of the calls (AUTH_SYS) [default: 0].
    #[arg(long, help_heading = "Workload")]
    pub uid: Option<u32>,
    /// gid of the calls [default: 0].
    #[arg(long, help_heading = "Workload")]
    pub gid: Option<u32>,

    /// Connections over all cores [default: 4].
    #[arg(long, help_heading = "Pace")]
    pub connections: Option<u32>,
    /// Calls one connection has outstanding [default: 8; open loop: 128 at most].
    #[arg(long, help_heading = "Pace")]
    pub depth: Option<u32>,
    /// Open loop: calls that arrive per second whether or not earlier ones were answered; latency counts from the arrival.
    #[arg(long, value_name = "CALLS_PER_SECOND", help_heading = "Pace")]
    pub rate: Option<f64>,
    /// Gaps between arrivals [default: poisson].
    #[arg(long, value_enum, help_heading = "Pace")]
    pub arrival: Option<Arrival>,
    /// How long is measured [default: 10s, or for ever with --count].
    #[arg(long, value_name = "TIME", value_parser = parse_time, help_heading = "Pace")]
    pub duration: Option<Duration>,
    /// How many calls are measured at most.
    #[arg(long, value_name = "CALLS", help_heading = "Pace")]
    pub count: Option<u64>,
    /// Time in which the load grows from nothing; not measured [default: 1s].
    #[arg(long, value_name = "TIME", value_parser = parse_time, help_heading = "Pace")]
    pub ramp: Option<Duration>,
    /// A call that is not answered for so long is an error [default: 30s].
    #[arg(long, value_name = "TIME", value_parser = parse_time, help_heading = "Pace")]
    pub timeout: Option<Duration>,

    /// Write the result as JSON.
    #[arg(long, value_name = "FILE", help_heading = "Output")]
    pub json: Option<PathBuf>,
    /// Write the latencies as percentiles of an HDR histogram, as text (.hgrm).
    #[arg(long, value_name = "FILE", help_heading = "Output")]
    pub histogram: Option<PathBuf>,
    /// Between two live lines and two entries of `intervals` in the JSON [default: 1s].
    #[arg(long, value_name = "TIME", value_parser = parse_time, help_heading = "Output")]
    pub interval: Option<Duration>,
    /// No live line.
    #[arg(long, help_heading = "Output")]
    pub quiet: bool,
    /// Retransmitted packets that still count as a clean result [default: 0].
    #[arg(long, value_name = "PACKETS", help_heading = "Output")]
    pub retransmissions_max: Option<u64>,
}

fn parse_target(text: &str) -> Result<(IpAddr, String), String> {
    let allowed = "ADDRESS:/EXPORT, such as 10.77.0.2:/export";
    let (address, export) = text.split_once(":/").ok_or(format!("found {text:?}, allowed {allowed}"))?;
    let address = address.trim_start_matches('[').trim_end_matches(']');
    let address = address.parse().map_err(|_| format!("found {address:?}, allowed an IP address"))?;
    Ok((address, format!("/{export}")))
}

fn parse_cidr(text: &str) -> Result<Cidr, String> {
    let (address, length) = text.split_once('/').ok_or("allowed ADDRESS/PREFIX, such as 10.77.0.1/24")?;
    let address = address.parse().map_err(|_| format!("found {address:?}, allowed an IP address"))?;
    let length = length.parse().map_err(|_| format!("found {length:?}, allowed the length of a prefix"))?;
    Cidr::new(address, length).ok_or(format!("found {length}, allowed at most the bits of the address"))
}

/// Bytes: a number with k, m, g or t for powers of 1024.
pub fn parse_size(text: &str) -> Result<u64, String> {
    let lower = text.to_ascii_lowercase();
    let digits = lower.trim_end_matches(['k', 'm', 'g', 't']);
    let shift = match &lower[digits.len()..] {
        "" => 0,
        "k" => 10,
        "m" => 20,
        "g" => 30,
        "t" => 40,
        _ => return Err(format!("found {text:?}, allowed bytes such as 65536, 64k or 1m")),
    };
    let number: u64 = digits.parse().map_err(|_| format!("found {text:?}, allowed bytes such as 65536, 64k or 1m"))?;
    number.checked_mul(1 << shift).ok_or(format!("found {text:?}, allowed less than 2^64"))
}

/// A time: a number with us, ms, s or m; seconds without a unit.
pub fn parse_time(text: &str) -> Result<Duration, String> {
    let wrong = || format!("found {text:?}, allowed a time such as 10s, 500ms, 2m");
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let scale = match &text[digits.len()..] {
        "us" => 1e-6,
        "ms" => 1e-3,
        "" | "s" => 1.0,
        "m" => 60.0,
        _ => return Err(wrong()),
    };
    let number: f64 = digits.parse().map_err(|_| wrong())?;
    Duration::try_from_secs_f64(number * scale).map_err(|_| wrong())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_and_times_have_units() {
        assert_eq!(parse_size("4096"), Ok(4096));
        assert_eq!(parse_size("64K"), Ok(65_536));
        assert_eq!(parse_size("3g"), Ok(3 << 30));
        for wrong in ["", "k", "4kk", "-1", "4x", "99999999t", "1.5m"] {
            assert!(parse_size(wrong).is_err(), "{wrong:?}");
        }
        assert_eq!(parse_time("1.5s"), Ok(Duration::from_millis(1500)));
        assert_eq!(parse_time("2m"), Ok(Duration::from_secs(120)));
        assert_eq!(parse_time("250us"), Ok(Duration::from_micros(250)));
        for wrong in ["", "s", "-1s", "3h", "1e400"] {
            assert!(parse_time(wrong).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn a_target_is_an_address_and_an_export() {
        assert_eq!(parse_target("10.77.0.2:/export/a"), Ok(("10.77.0.2".parse().unwrap(), "/export/a".to_owned())));
        assert_eq!(parse_target("[fd00::2]:/e"), Ok(("fd00::2".parse().unwrap(), "/e".to_owned())));
        assert!(parse_target("10.77.0.2").is_err() && parse_target("server:/export").is_err());
    }
}
