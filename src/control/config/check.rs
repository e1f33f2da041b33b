//! Rules across keys, and the rules that need the machine: CPUs, directories, PCI devices.
//!
//! Each check speaks only when the keys it looks at were readable, so that one mistake is reported once.

use std::fmt::Display;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use super::source::Document;
use super::{Bus, Cidr, Config, Congestion, Cores, Ecn, Export, Limits, Memory, Port, Server, Store, Tcp};

/// A call's RPC header, credential, verifier and NFS arguments besides a WRITE's data: 400 bytes each for credential and verifier
/// (RFC 5531 section 8.2), a handle, and room.
const CALL_HEADER_BYTES: u32 = 4096;
/// A reply's marker, header, attributes and padding besides a READ's data.
const REPLY_HEADER_BYTES: u32 = 4096;
/// The mark in front of each fragment of a record (RFC 5531 section 11).
const MARK_BYTES: u32 = 4;
/// The page cache holds at least this many blocks whatever the limits say.
const PAGE_CACHE_BLOCKS_MIN: u64 = 64;

/// MiB that the packet buffers of one queue pair take, and more for each engine core after the first, which has caches of them and
/// an inbox.
const QUEUE_MIB: u32 = 37;
const QUEUE_MIB_PER_OTHER_CORE: u32 = 5;

/// What the configuration is checked against besides itself.
#[derive(Clone, Debug)]
pub struct Machine {
    /// CPUs this process may run on. Taken before EAL starts, because EAL pins its caller to one.
    pub cpus: Vec<usize>,
    /// Where the kernel lists PCI devices.
    pub pci_devices: PathBuf,
}

impl Machine {
    /// This machine, as this thread may use it.
    pub fn this() -> Self {
        let cpus = core_affinity::get_core_ids().unwrap_or_default();
        Self { cpus: cpus.into_iter().map(|core| core.id).collect(), pci_devices: PathBuf::from("/sys/bus/pci/devices") }
    }
}

/// A configuration whose ports and exports may have holes where they could not be read.
pub struct Draft {
    pub server: Server,
    pub cores: Cores,
    pub memory: Memory,
    pub tcp: Tcp,
    pub ports: Vec<Option<Port>>,
    pub exports: Vec<Option<Export>>,
    pub limits: Limits,
}

impl Draft {
    /// The configuration, when nothing is missing.
    pub fn into_config(self) -> Option<Config> {
        Some(Config {
            server: self.server,
            cores: self.cores,
            memory: self.memory,
            tcp: self.tcp,
            ports: self.ports.into_iter().collect::<Option<_>>()?,
            exports: self.exports.into_iter().collect::<Option<_>>()?,
            limits: self.limits,
        })
    }

    /// Everything that can be told from the file alone.
    pub fn check(&self, document: &mut Document<'_>) {
        self.check_counts(document);
        self.check_cores(document);
        self.check_tcp(document);
        self.check_ports(document);
        self.check_exports(document);
        self.check_limits(document);
        self.check_page_cache(document);
    }

    fn check_counts(&self, document: &mut Document<'_>) {
        for (key, count, max) in
            [("port", self.ports.len(), super::PORTS_MAX), ("export", self.exports.len(), super::EXPORTS_MAX)]
        {
            if !(1..=max).contains(&count) && document.sound(&[key]) {
                let found = if count == 0 { "none".to_owned() } else { count.to_string() };
                document.refuse_found(key, &found, &format!("1 to {max} tables [[{key}]]"));
            }
        }
    }

    fn check_cores(&self, document: &mut Document<'_>) {
        // Two packet loops on one CPU are slow but right; `serve` warns.
        if let Some(repeated) = first_repeated(&self.cores.io) {
            document.refuse_found("cores.io", &format!("CPU {repeated} twice"), "each CPU once");
        }
    }

    /// DCTCP lives on marks (RFC 8257 section 3). No timeout is below the least.
    fn check_tcp(&self, document: &mut Document<'_>) {
        let blind = self.tcp.congestion == Congestion::Dctcp && self.tcp.ecn == Ecn::Off;
        if blind && document.sound(&["tcp.congestion", "tcp.ecn"]) {
            document.refuse_found("tcp.ecn", "\"off\" with congestion = \"dctcp\"", "\"accept\", or another congestion");
        }
        at_least(
            document,
            ("tcp.rto_initial_ms", self.tcp.rto_initial_ms),
            ("limits.tcp_rto_min_ms", self.limits.tcp_rto_min_ms, 0),
        );
    }

    fn check_ports(&self, document: &mut Document<'_>) {
        for (index, port) in present(&self.ports) {
            check_addresses(document, index, port);
            let key = format!("port[{index}].queues");
            let engines = self.cores.engine.len();
            if usize::from(port.queues) > engines && document.sound(&[&key, "cores.engine"]) {
                document.refuse(&key, &format!("1..={engines}: each queue needs its own core in cores.engine"));
            }
        }
        self.check_queue_memory(document);
        let ports = || present(&self.ports);
        unique(document, "port", "device", ports().map(|(index, port)| (index, port.device.name.clone())));
        unique_addresses(document, ports());
        unique(document, "port", "mac", ports().filter_map(|(index, port)| Some((index, port.mac?))));
    }

    /// Each queue pair has pools of its own.
    fn check_queue_memory(&self, document: &mut Document<'_>) {
        let engines = self.cores.engine.len() as u32;
        let queues: u32 = present(&self.ports).map(|(_, port)| u32::from(port.queues)).sum();
        // A quarter of it becomes pages for reply heads.
        let needed = queues * (QUEUE_MIB + QUEUE_MIB_PER_OTHER_CORE * (engines - 1)) * 4 / 3;
        if self.memory.eal_mib < needed && document.sound(&["memory.eal_mib", "cores.engine"]) {
            let found = self.memory.eal_mib.to_string();
            let allowed = format!("at least {needed}, which {queues} queue pairs and {engines} engine cores need");
            document.refuse_found("memory.eal_mib", &found, &allowed);
        }
    }

    fn check_exports(&self, document: &mut Document<'_>) {
        let exports = || present(&self.exports);
        unique(document, "export", "name", exports().map(|(index, export)| (index, export.name.clone())));
        unique(document, "export", "id", exports().map(|(index, export)| (index, export.id)));
        for (index, export) in exports() {
            let Store::Directory(path) = &export.store else {
                continue;
            };
            // The key that signs file handles must not be readable through an export.
            if self.server.state_dir.starts_with(path) && document.sound(&["server.state_dir"]) {
                document.refuse_found(
                    &format!("export[{index}].path"),
                    &format!("{path:?} around server.state_dir {:?}", self.server.state_dir),
                    "a directory that does not contain server.state_dir",
                );
            }
        }
    }

    fn check_limits(&self, document: &mut Document<'_>) {
        let limits = &self.limits;
        at_least(
            document,
            ("limits.record_bytes_max", limits.record_bytes_max),
            ("limits.write_bytes_max", limits.write_bytes_max, CALL_HEADER_BYTES),
        );
        // A record that does not fit into the window with its fragments' marks would never be complete.
        at_least(
            document,
            ("limits.tcp_receive_window_bytes_max", limits.tcp_receive_window_bytes_max),
            ("limits.record_bytes_max", limits.record_bytes_max, MARK_BYTES * limits.record_fragments_max),
        );
        at_least(
            document,
            ("limits.send_queue_bytes_max", limits.send_queue_bytes_max),
            ("limits.read_bytes_max", limits.read_bytes_max, REPLY_HEADER_BYTES),
        );
        at_least(
            document,
            ("limits.connections_max", limits.connections_max),
            ("limits.connections_unauthenticated_max", limits.connections_unauthenticated_max, 0),
        );
    }

    /// Enough blocks for the largest READ and WRITE at once with reading ahead, or the cache would evict what it is reading.
    fn check_page_cache(&self, document: &mut Document<'_>) {
        let keys = [
            "memory.page_cache_mib",
            "memory.block_kib",
            "limits.read_bytes_max",
            "limits.write_bytes_max",
            "limits.readahead_blocks",
        ];
        let block = u64::from(self.memory.block_bytes());
        let blocks = u64::from(self.limits.read_bytes_max).div_ceil(block)
            + u64::from(self.limits.write_bytes_max).div_ceil(block)
            + u64::from(self.limits.readahead_blocks);
        let needed_mib = (2 * blocks).max(PAGE_CACHE_BLOCKS_MIN).saturating_mul(block).div_ceil(1 << 20);
        if u64::from(self.memory.page_cache_mib) < needed_mib && document.sound(&keys) {
            document.refuse_found(
                "memory.page_cache_mib",
                &self.memory.page_cache_mib.to_string(),
                &format!(
                    "at least {needed_mib} with block_kib = {}, read_bytes_max = {}, write_bytes_max = {}, readahead_blocks = {}",
                    self.memory.block_kib, self.limits.read_bytes_max, self.limits.write_bytes_max, self.limits.readahead_blocks
                ),
            );
        }
    }

    /// What only this machine can tell.
    pub fn check_machine(&self, document: &mut Document<'_>, machine: &Machine) {
        for (key, list) in [("cores.engine", &self.cores.engine), ("cores.io", &self.cores.io)] {
            for cpu in list {
                if !machine.cpus.contains(&(*cpu as usize)) {
                    document.refuse_found(
                        key,
                        &format!("CPU {cpu}"),
                        &format!("CPUs that this process may run on: {}", ranges(&machine.cpus)),
                    );
                }
            }
        }
        for (index, port) in present(&self.ports) {
            if port.device.bus == Bus::Pci && !machine.pci_devices.join(&port.device.name).exists() {
                let allowed = format!("a device listed in {}", machine.pci_devices.display());
                document.refuse(&format!("port[{index}].device"), &allowed);
            }
        }
        for (index, export) in present(&self.exports) {
            if let Store::Directory(path) = &export.store {
                self.check_directory(document, &format!("export[{index}].path"), path);
            }
        }
    }

    fn check_directory(&self, document: &mut Document<'_>, key: &str, path: &Path) {
        if let Err(error) = std::fs::read_dir(path) {
            document.refuse_found(key, &format!("{path:?}: {error}"), "a directory that the server can read");
            return;
        }
        // The same rule as in check_exports, now with symbolic links and relative paths followed.
        let (Ok(export), Ok(state)) = (path.canonicalize(), self.server.state_dir.canonicalize()) else {
            return;
        };
        if state.starts_with(&export) && !self.server.state_dir.starts_with(path) {
            document.refuse_found(
                key,
                &format!("{export:?} around server.state_dir {state:?}"),
                "a directory that does not contain server.state_dir",
            );
        }
    }
}

fn check_addresses(document: &mut Document<'_>, index: usize, port: &Port) {
    for cidr in &port.addresses {
        if is_special(*cidr, cidr.address) {
            let allowed = match cidr.address {
                IpAddr::V4(_) => format!("a host address between {} and {}", cidr.network().address, cidr.last_address()),
                IpAddr::V6(_) => "a host's address: this one is that of the network's routers".to_owned(),
            };
            document.refuse_found(&addresses_key(document, index), &format!("'{cidr}'"), &allowed);
        }
    }
    let key = format!("port[{index}].mtu");
    if port.has_ipv6() && port.mtu < super::MTU_IPV6_MIN && document.sound(&[&key]) {
        document.refuse_found(&key, &port.mtu.to_string(), &format!("at least {} on a port with IPv6", super::MTU_IPV6_MIN));
    }
    if let Some(gateway) = port.gateway {
        check_gateway(document, index, port, "gateway", gateway.into());
    }
    if let Some(gateway) = port.gateway_ipv6 {
        check_gateway(document, index, port, "gateway_ipv6", gateway.into());
    }
}

fn check_gateway(document: &mut Document<'_>, index: usize, port: &Port, name: &str, gateway: IpAddr) {
    let key = format!("port[{index}].{name}");
    let family = || port.addresses.iter().filter(|cidr| cidr.address.is_ipv4() == gateway.is_ipv4());
    if family().any(|cidr| cidr.address == gateway) {
        document.refuse(&key, "a router's address, not the port's own");
        return;
    }
    // A router's link-local address is always on the link.
    if port.has_ipv6() && super::value::LINK_LOCAL.contains(gateway) {
        return;
    }
    match family().find(|cidr| cidr.contains(gateway)) {
        Some(cidr) if is_special(*cidr, gateway) && gateway.is_ipv4() => {
            let allowed = format!("a host address between {} and {}", cidr.network().address, cidr.last_address());
            document.refuse(&key, &allowed);
        }
        Some(_) => {}
        None => {
            let mut networks: Vec<String> = family().map(|cidr| cidr.network().to_string()).collect();
            networks.dedup();
            let allowed = match networks.is_empty() {
                true => format!("nothing: the port has no {} address", if gateway.is_ipv4() { "IPv4" } else { "IPv6" }),
                false => format!("an address in {}, the network of {}", networks.join(" or "), addresses_key(document, index)),
            };
            document.refuse(&key, &allowed);
        }
    }
}

/// Under which key a port's addresses stand.
fn addresses_key(document: &Document<'_>, index: usize) -> String {
    let single = format!("port[{index}].address");
    if document.line(&single).is_some() { single } else { format!("port[{index}].addresses") }
}

/// Whether an address is its network's own or its broadcast address (RFC 3021: a network of two addresses or one has neither), or, in
/// IPv6, that of the network's routers (RFC 4291 section 2.6.1).
fn is_special(cidr: Cidr, address: IpAddr) -> bool {
    let network = cidr.network().address == address;
    match address {
        IpAddr::V4(_) => cidr.prefix_length < 31 && (network || cidr.last_address() == address),
        IpAddr::V6(_) => cidr.prefix_length < 127 && network,
    }
}

/// Refuses every address that an earlier port, or the same one, has already.
fn unique_addresses<'p>(document: &mut Document<'_>, ports: impl Iterator<Item = (usize, &'p Port)>) {
    let mut seen: Vec<(usize, IpAddr)> = Vec::new();
    for (index, port) in ports {
        let key = addresses_key(document, index);
        for cidr in &port.addresses {
            match seen.iter().find(|(_, other)| *other == cidr.address).map(|(first, _)| *first) {
                Some(first) if first == index => {
                    document.refuse_found(&key, &format!("{} twice", cidr.address), "each address once");
                }
                Some(first) => {
                    let line = document.line(&addresses_key(document, first)).unwrap_or(0);
                    let allowed = format!("one that port[{first}] (line {line}) does not have");
                    document.refuse_found(&key, &cidr.address.to_string(), &allowed);
                }
                None => seen.push((index, cidr.address)),
            }
        }
    }
}

/// The tables of a list that could be read, with their indexes in the file.
fn present<T>(tables: &[Option<T>]) -> impl Iterator<Item = (usize, &T)> {
    tables.iter().enumerate().filter_map(|(index, table)| Some((index, table.as_ref()?)))
}

/// Refuses every value of `table[..].key` that an earlier table already has.
fn unique<T: PartialEq + Display>(document: &mut Document<'_>, table: &str, key: &str, values: impl Iterator<Item = (usize, T)>) {
    let mut seen: Vec<(usize, T)> = Vec::new();
    for (index, value) in values {
        if let Some((first, _)) = seen.iter().find(|(_, other)| *other == value) {
            let earlier = format!("{table}[{first}]");
            let line = document.line(&format!("{earlier}.{key}")).or_else(|| document.line(&earlier)).unwrap_or(0);
            let allowed = format!("one that {earlier} (line {line}) does not have");
            document.refuse_found(&format!("{table}[{index}].{key}"), &value.to_string(), &allowed);
        } else {
            seen.push((index, value));
        }
    }
}

/// Refuses `large` when it is smaller than `small` with its `room`.
fn at_least(document: &mut Document<'_>, large: (&str, u32), small: (&str, u32, u32)) {
    let needed = small.1.saturating_add(small.2);
    if large.1 < needed && document.sound(&[large.0, small.0]) {
        let allowed = match small.2 {
            0 => format!("at least {needed}, which is {}", small.0),
            room => format!("at least {needed}, which is {} + {room}", small.0),
        };
        // The mistake may be in either key: point at the one that stands in the file.
        let key = if document.line(large.0).is_none() && document.line(small.0).is_some() { small.0 } else { large.0 };
        if key == large.0 {
            document.refuse_found(key, &large.1.to_string(), &allowed);
        } else {
            let allowed = format!("at most {}, which fits into {} = {}", large.1.saturating_sub(small.2), large.0, large.1);
            document.refuse_found(key, &small.1.to_string(), &allowed);
        }
    }
}

pub fn first_repeated(list: &[u32]) -> Option<u32> {
    list.iter().enumerate().find(|(index, value)| list[..*index].contains(value)).map(|(_, value)| *value)
}

/// `0-3, 8`: how the kernel writes lists of CPUs.
fn ranges(cpus: &[usize]) -> String {
    let mut parts: Vec<(usize, usize)> = Vec::new();
    for cpu in cpus {
        match parts.last_mut() {
            Some((_, last)) if *last + 1 == *cpu => *last = *cpu,
            _ => parts.push((*cpu, *cpu)),
        }
    }
    let parts: Vec<String> = parts.iter().map(|(a, b)| if a == b { a.to_string() } else { format!("{a}-{b}") }).collect();
    if parts.is_empty() { "none".to_owned() } else { parts.join(", ") }
}
