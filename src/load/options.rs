//! What a run does, everything decided: the command line, then the configuration file, then defaults.
//!
//! Values that make no sense together are refused here, in the words of the command line.

use std::net::IpAddr;
use std::path::PathBuf;

use std::sync::Arc;

use super::protocol::{Caller, Operation, Verb};
use super::script;
use super::workload::{Mix, Shape};
use crate::control::config::{Device, LoadConfig, LoadPort, MacAddress};
use crate::control::load_cli::{Arrival, LoadArguments, TransportKind};
use crate::time::Duration;

/// Most connections of one run.
pub const CONNECTIONS_MAX: u32 = 4096;
/// Most calls outstanding on one connection.
pub const DEPTH_MAX: u32 = 4096;
/// Largest READ or WRITE, bytes.
pub const IO_BYTES_MAX: u64 = 64 << 20;
/// Most files of the working set.
pub const FILES_MAX: u32 = 1_000_000;

/// The generator's end of the network.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TransportOptions {
    Kernel,
    /// Ports and the memory for them.
    Dpdk(LoadConfig),
}

/// What is done.
#[derive(Clone, Debug, PartialEq)]
pub enum Work {
    Mix(Mix),
    /// A script: its name, and its calls.
    Script(String, Arc<[Operation]>),
}

impl Work {
    /// Whether it is about files, or only about the server's root.
    pub fn needs_files(&self) -> bool {
        match self {
            Work::Mix(mix) => mix.needs_files(),
            Work::Script(_, calls) => calls.iter().any(|call| call.verb != Verb::Null),
        }
    }

    /// Whether each call has a connection of its own.
    pub fn reconnects(&self) -> bool {
        matches!(self, Work::Mix(mix) if mix.reconnects())
    }

    /// In the words of the command line.
    pub fn to_text(&self) -> String {
        match self {
            Work::Mix(mix) => mix.to_text(),
            Work::Script(name, _) => format!("script {name}"),
        }
    }
}

/// One run.
#[derive(Clone, Debug, PartialEq)]
pub struct Options {
    pub server: IpAddr,
    pub export: String,
    pub transport: TransportOptions,
    /// CPUs, one thread each, in the order of the ports.
    pub cores: Vec<u32>,
    pub nfs_port: Option<u16>,
    pub mount_port: Option<u16>,
    pub work: Work,
    pub shape: Shape,
    pub directory: String,
    pub refill: bool,
    pub verify: bool,
    pub seed: u64,
    pub caller: Caller,
    pub connections: u32,
    pub depth: u32,
    /// Calls per second; `None`: a closed loop.
    pub rate: Option<f64>,
    pub arrival: Arrival,
    pub duration: Option<Duration>,
    pub count: Option<u64>,
    pub ramp: Duration,
    pub timeout: Duration,
    pub json: Option<PathBuf>,
    pub histogram: Option<PathBuf>,
    pub interval: Duration,
    pub quiet: bool,
    pub retransmissions_max: u64,
}

fn within<T: PartialOrd + std::fmt::Display>(option: &str, value: T, least: T, most: T) -> Result<T, String> {
    if value < least || value > most {
        return Err(format!("--{option}: found {value}, allowed {least}..={most}"));
    }
    Ok(value)
}

impl Options {
    /// `file`: the configuration file, if one was named. `cpus`: those this process may use.
    ///
    /// # Errors
    /// Which option, what was found, what is allowed.
    pub fn new(arguments: &LoadArguments, file: Option<&LoadConfig>, cpus: &[usize]) -> Result<Options, String> {
        let a = arguments;
        let Some((server, export)) = a.target.clone() else { return Err("ADDRESS:/EXPORT: found nothing".into()) };
        let shape = shape(a)?;
        let (work, shape) = work(a, shape)?;
        let open = a.rate.is_some();
        // A call for each connection, and a connection for each call.
        let reconnects = work.reconnects();
        let (depth, depth_max) = if reconnects { (1, 1) } else { (if open { 128 } else { 8 }, DEPTH_MAX) };
        let directory = a.directory.clone().unwrap_or_else(|| "nfsplice-load".into());
        if !super::prepare::is_name(&directory) {
            return Err(format!("--directory: found {directory:?}, allowed one name without '/', at most 255 bytes"));
        }
        let connections = within("connections", a.connections.unwrap_or(4), 1, CONNECTIONS_MAX)?;
        let transport = transport(a, file, cpus)?;
        let cores = match &transport {
            TransportOptions::Kernel => cores(a, cpus)?,
            TransportOptions::Dpdk(config) => config.ports.iter().flat_map(|port| port.cores.clone()).collect(),
        };
        if cores.len() > connections as usize {
            return Err(format!("--connections: found {connections}, allowed at least one for each of {} cores", cores.len()));
        }
        let duration = match (a.duration, a.count) {
            // A script without either is replayed once.
            (None, None) if a.script.is_none() => Some(Duration::from_secs(10)),
            (duration, _) => duration,
        };
        if duration.is_some_and(|duration| duration.is_zero()) {
            return Err("--duration: found 0, allowed more".into());
        }
        Ok(Options {
            server,
            export,
            transport,
            cores,
            nfs_port: a.nfs_port,
            mount_port: a.mount_port,
            work,
            shape,
            directory,
            refill: a.refill,
            verify: a.verify,
            seed: a.seed.unwrap_or(1),
            caller: Caller { uid: a.uid.unwrap_or(0), gid: a.gid.unwrap_or(0) },
            connections,
            depth: within("depth", a.depth.unwrap_or(depth), 1, depth_max)?,
            rate: a.rate.map(|rate| within("rate", rate, 0.001, 1e9)).transpose()?,
            arrival: a.arrival.unwrap_or_default(),
            duration,
            count: a.count.map(|count| within("count", count, 1, u64::MAX)).transpose()?,
            ramp: a.ramp.unwrap_or(Duration::from_secs(1)),
            timeout: a.timeout.unwrap_or(Duration::from_secs(30)),
            json: a.json.clone(),
            histogram: a.histogram.clone(),
            interval: a.interval.unwrap_or(Duration::from_secs(1)).max(Duration::from_millis(10)),
            quiet: a.quiet,
            retransmissions_max: a.retransmissions_max.unwrap_or(0),
        })
    }
}

fn shape(a: &LoadArguments) -> Result<Shape, String> {
    let io_bytes = within("size", a.size.unwrap_or(4096), 1, IO_BYTES_MAX)?;
    let file_bytes = within("file-size", a.file_size.unwrap_or(64 << 20), 1, 1 << 50)?;
    if io_bytes > file_bytes {
        return Err(format!("--size: found {io_bytes}, allowed at most the file size, {file_bytes}"));
    }
    Ok(Shape {
        files: within("files", a.files.unwrap_or(16), 1, FILES_MAX)?,
        file_bytes,
        io_bytes: io_bytes as u32,
        stable: a.stable.unwrap_or_default() as u32,
        commit_every: a.commit_every.unwrap_or(0),
    })
}

/// The calls, and the shape with the size of the largest of them.
fn work(a: &LoadArguments, shape: Shape) -> Result<(Work, Shape), String> {
    let Some(path) = &a.script else {
        let mix = Mix::parse(a.workload.as_deref().unwrap_or("randread")).map_err(|wrong| format!("--workload: {wrong}"))?;
        return Ok((Work::Mix(mix), shape));
    };
    let name = path.display().to_string();
    let text = std::fs::read_to_string(path).map_err(|error| format!("--script: {name}: {error}"))?;
    let calls = script::parse(&text, shape.files).map_err(|wrong| format!("{name}:{wrong}"))?;
    let largest = calls.iter().filter(|call| call.verb != Verb::Commit).map(|call| call.count).max().unwrap_or(0);
    Ok((Work::Script(name, calls.into()), Shape { io_bytes: largest, ..shape }))
}

fn cores(a: &LoadArguments, cpus: &[usize]) -> Result<Vec<u32>, String> {
    // The first CPU has the interrupts and, on a machine of two, the server.
    let last = cpus.last().copied().unwrap_or(0) as u32;
    let cores = if a.cores.is_empty() { vec![last] } else { a.cores.clone() };
    check_cores("--cores", &cores, cpus)?;
    Ok(cores)
}

fn check_cores(key: &str, cores: &[u32], cpus: &[usize]) -> Result<(), String> {
    for (at, core) in cores.iter().enumerate() {
        if !cpus.contains(&(*core as usize)) {
            return Err(format!("{key}: found CPU {core}, allowed one of this process's: {cpus:?}"));
        }
        if cores[..at].contains(core) {
            return Err(format!("{key}: found CPU {core} twice, allowed each once"));
        }
    }
    Ok(())
}

fn transport(a: &LoadArguments, file: Option<&LoadConfig>, cpus: &[usize]) -> Result<TransportOptions, String> {
    if a.transport.unwrap_or_default() == TransportKind::Kernel {
        return Ok(TransportOptions::Kernel);
    }
    let mut config = match file {
        Some(file) => file.clone(),
        None => LoadConfig { ports: Vec::new(), hugepages: true, mib: 512 },
    };
    config.hugepages &= !a.no_huge;
    if let Some(mib) = a.memory_mib {
        config.mib = within("memory-mib", mib, 64, 65_536)?;
    }
    if a.device.is_some() || file.is_none() {
        config.ports = vec![port(a, cpus)?];
    } else {
        let given = [("address", a.address.is_some()), ("gateway", a.gateway.is_some()), ("mac", a.mac.is_some())];
        let more = [("mtu", a.mtu.is_some()), ("cores", !a.cores.is_empty())];
        if let Some((option, _)) = given.iter().chain(&more).find(|(_, given)| *given) {
            return Err(format!("--{option}: found beside --config, allowed with --device: the file says it for each port"));
        }
    }
    let all: Vec<u32> = config.ports.iter().flat_map(|port| port.cores.clone()).collect();
    check_cores("cores", &all, cpus)?;
    Ok(TransportOptions::Dpdk(config))
}

/// The one port that the command line describes.
fn port(a: &LoadArguments, cpus: &[usize]) -> Result<LoadPort, String> {
    let device = a
        .device
        .as_deref()
        .ok_or("--device: found nothing, allowed a PCI address or a vdev (or --config, or --transport kernel)")?;
    let address = a.address.ok_or("--address: found nothing, allowed the generator's own address, such as 10.77.0.1/24")?;
    let mac = a.mac.as_deref().map(|text| {
        MacAddress::parse(text)
            .ok_or(format!("--mac: found {text:?}, allowed a unicast Ethernet address such as 02:00:00:00:00:01"))
    });
    Ok(LoadPort {
        device: Device::parse(device).ok_or(format!("--device: found {device:?}, allowed {}", Device::ALLOWED))?,
        address,
        gateway: a.gateway,
        mac: mac.transpose()?,
        mtu: within("mtu", a.mtu.unwrap_or(1500), 576, 9702)?,
        cores: cores(a, cpus)?,
        server: None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::config::Cidr;

    fn arguments() -> LoadArguments {
        LoadArguments {
            target: Some(("10.77.0.2".parse().unwrap(), "/export".into())),
            transport: Some(TransportKind::Kernel),
            ..LoadArguments::default()
        }
    }

    fn wrong(arguments: LoadArguments) -> String {
        Options::new(&arguments, None, &[0, 1]).unwrap_err()
    }

    #[test]
    fn defaults_are_a_gibibyte_of_random_reads() {
        let options = Options::new(&arguments(), None, &[0, 1]).unwrap();
        assert_eq!(u64::from(options.shape.files) * options.shape.file_bytes, 1 << 30);
        assert_eq!((options.work.to_text().as_str(), options.depth, options.cores), ("randread", 8, vec![1]));
        let open = Options::new(&LoadArguments { rate: Some(1000.0), ..arguments() }, None, &[0]).unwrap();
        assert_eq!(open.depth, 128);
        let counted = Options::new(&LoadArguments { count: Some(5), ..arguments() }, None, &[0]).unwrap();
        assert_eq!((counted.duration, counted.count), (None, Some(5)));
    }

    #[test]
    fn what_makes_no_sense_names_the_option_what_was_found_and_what_is_allowed() {
        assert!(wrong(LoadArguments { depth: Some(0), ..arguments() }).contains("--depth: found 0, allowed 1..="));
        assert!(wrong(LoadArguments { size: Some(128 << 20), ..arguments() }).contains("--size: found"));
        let larger = LoadArguments { size: Some(8192), file_size: Some(4096), ..arguments() };
        assert!(wrong(larger).contains("allowed at most the file size, 4096"));
        assert!(wrong(LoadArguments { cores: vec![2], ..arguments() }).contains("--cores: found CPU 2"));
        assert!(wrong(LoadArguments { cores: vec![1, 1], ..arguments() }).contains("twice"));
        assert!(wrong(LoadArguments { directory: Some("a/b".into()), ..arguments() }).contains("--directory"));
        let few = LoadArguments { cores: vec![0, 1], connections: Some(1), ..arguments() };
        assert!(wrong(few).contains("--connections: found 1"));
        let dpdk = LoadArguments { transport: None, ..arguments() };
        assert!(wrong(dpdk).contains("--device: found nothing"));
        let missing = LoadArguments { script: Some("/nowhere/s".into()), ..arguments() };
        assert!(wrong(missing).starts_with("--script: /nowhere/s: "));
        let af_xdp = LoadArguments {
            device: Some("net_af_xdp0,iface=x".into()),
            address: Cidr::new([10, 0, 0, 1].into(), 24),
            transport: None,
            ..arguments()
        };
        assert!(wrong(af_xdp).contains("--device: found \"net_af_xdp0"));
    }

    #[test]
    fn a_file_gives_the_ports_and_the_command_line_may_replace_them() {
        let text = "[[port]]\ndevice = \"net_null0\"\naddress = \"10.0.0.1/24\"\ncores = [1]\n\
                    [[port]]\ndevice = \"net_null1\"\naddress = \"10.1.0.1/24\"\ncores = [0]\n";
        let file = LoadConfig::parse("load.toml", text).unwrap();
        let dpdk = LoadArguments { transport: None, ..arguments() };
        let options = Options::new(&dpdk, Some(&file), &[0, 1]).unwrap();
        assert_eq!(options.cores, [1, 0]);
        let error = Options::new(&dpdk, Some(&file), &[0]).unwrap_err();
        assert!(error.contains("cores: found CPU 1"), "{error}");
        let mtu = LoadArguments { mtu: Some(9000), ..dpdk };
        assert!(Options::new(&mtu, Some(&file), &[0, 1]).unwrap_err().contains("--mtu: found beside --config"));
        let device = LoadArguments { device: Some("net_null7".into()), address: Cidr::new([10, 0, 0, 9].into(), 24), ..mtu };
        let options = Options::new(&device, Some(&file), &[0, 1]).unwrap();
        let TransportOptions::Dpdk(config) = options.transport else { panic!("a port") };
        assert_eq!((config.ports.len(), config.ports[0].mtu), (1, 9000));
    }
}
