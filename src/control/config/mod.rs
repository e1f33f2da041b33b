//! The configuration file: TOML in, one validated [`Config`] out.
//!
//! [`Config::load`] reads a file and checks it against this machine, [`Config::parse`] only reads a text. Both report every
//! problem they can find at once, each with file, line, column, key, what was found and what is allowed. [`Config::to_toml`]
//! writes the effective configuration, all defaults filled in, such that it parses back to the same value.
//!
//! Inside: `source` (positions, problems, unknown keys), `value` (types and rules of single values), `limits` (`[limits]`),
//! `check` (rules across keys, and against the machine), `load` (the load generator's file). The annotated list of all keys is `config/appliance.toml`.
//! Not here: the `Options` of the layers. They do not know this file; the wiring translates.

mod check;
mod limits;
mod load;
mod source;
#[cfg(test)]
mod tests;
mod value;

use std::fmt::Write as _;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};

pub use check::Machine;
pub use limits::Limits;
pub use load::{LoadConfig, LoadPort};
pub use source::{Problem, Problems};
pub use value::{Bus, Cidr, Device, MacAddress};

use source::{Document, Section};
use value::{Bool, ClientNetworks, Toml, list, number, one_of, path, words};

/// Largest configuration file that is read, in bytes.
pub const CONFIG_FILE_BYTES_MAX: u64 = 1 << 20;
/// Most ports: DPDK's RTE_MAX_ETHPORTS.
pub const PORTS_MAX: usize = 32;
/// Most addresses of one port.
pub const ADDRESSES_MAX: usize = 16;
/// Least MTU of a port with IPv6 (RFC 8200 section 5).
pub const MTU_IPV6_MIN: u16 = 1280;
/// Most exports.
pub const EXPORTS_MAX: usize = 256;
/// Most engine cores: DPDK's RTE_MAX_LCORE.
pub const ENGINE_CORES_MAX: usize = 128;
/// Queue pairs of one port.
pub const QUEUES_MAX: u16 = 64;
/// Most I/O threads.
pub const IO_THREADS_MAX: u32 = 64;

words! {
    /// How much the log tells.
    pub enum LogLevel {
        /// Only what stops the server or loses data.
        Error = "error",
        /// What an operator should look at.
        Warn = "warn",
        /// Start, stop, reload, link changes.
        Info = "info",
        /// Each connection.
        Debug = "debug",
        /// Everything; for developers.
        Trace = "trace",
    }
}

words! {
    /// How the data of a READ gets into the packets.
    pub enum Transmit {
        /// By reference from the page cache.
        Splice = "splice",
        /// Copied into fresh buffers: the baseline for measurements.
        Copy = "copy",
    }
}

words! {
    /// What a packet loop does that finds nothing to do.
    pub enum Idle {
        /// Sleeps if every port is a virtual device, else polls.
        Auto = "auto",
        /// Never sleeps: the least latency and the warmest caches, for a whole CPU.
        Poll = "poll",
        /// Sleeps until something happens; on a device without receive interrupts in short naps.
        Sleep = "sleep",
    }
}

words! {
    /// Whether the NIC cuts large TCP segments.
    pub enum Tso {
        /// When the NIC can.
        Auto = "auto",
        /// Always; a NIC that cannot is an error at start.
        On = "on",
        /// Never: segments are cut by the server.
        Off = "off",
    }
}

words! {
    /// How long a port looks for another station with one of its IPv4 addresses before it uses it.
    pub enum AddressProbe {
        /// For half a second.
        Quick = "quick",
        /// For four to seven seconds, as RFC 5227 has it.
        Rfc5227 = "rfc5227",
        /// Not at all.
        Off = "off",
    }
}

words! {
    /// Whether the NIC joins the segments of a connection on their way in.
    pub enum Lro {
        /// When the NIC can.
        Auto = "auto",
        /// Always; a NIC that cannot is an error at start.
        On = "on",
        /// Never.
        Off = "off",
    }
}

words! {
    /// How fast TCP sends: the congestion control of every connection.
    pub enum Congestion {
        /// RFC 9438.
        Cubic = "cubic",
        /// RFC 5681.
        NewReno = "newreno",
        /// RFC 8257: for networks whose switches mark early.
        Dctcp = "dctcp",
    }
}

words! {
    /// Explicit congestion notification. The server opens no connections, so it never asks.
    pub enum Ecn {
        /// Not granted.
        Off = "off",
        /// Granted to clients that ask, as Linux does.
        Accept = "accept",
    }
}

words! {
    /// Whose rights a caller loses.
    pub enum Squash {
        /// Nobody's: root on the client is root on the export.
        None = "none",
        /// uid 0 and gid 0 become anonuid and anongid.
        Root = "root",
        /// Everybody becomes anonuid and anongid.
        All = "all",
    }
}

words! {
    /// Where an export's files are: the key `store`.
    pub enum StoreKind {
        /// A directory of the host.
        Directory = "directory",
        /// Memory; gone after a restart.
        Memory = "memory",
    }
}

/// The whole configuration, valid in itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// `[server]`
    pub server: Server,
    /// `[cores]`
    pub cores: Cores,
    /// `[memory]`
    pub memory: Memory,
    /// `[tcp]`
    pub tcp: Tcp,
    /// `[[port]]`, at least one.
    pub ports: Vec<Port>,
    /// `[[export]]`, at least one.
    pub exports: Vec<Export>,
    /// `[limits]`
    pub limits: Limits,
}

/// `[server]`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Server {
    /// Directory of the state that outlives a restart: the keys of the file handles and of the addresses.
    pub state_dir: PathBuf,
    /// Unix socket that `nfsplice stats` talks to.
    pub stats_socket: PathBuf,
    /// How much is logged.
    pub log_level: LogLevel,
    /// Zero copy, or copies for comparison.
    pub transmit: Transmit,
}

/// `[cores]`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cores {
    /// CPUs of the packet loops, one each. Not empty. A CPU that is named twice has two loops.
    pub engine: Vec<u32>,
    /// CPUs of the I/O threads, dealt out in turn; empty: wherever no engine runs.
    pub io: Vec<u32>,
    /// Number of I/O threads.
    pub io_threads: u32,
    /// What a packet loop does that finds nothing to do.
    pub idle: Idle,
}

impl Cores {
    /// A CPU that two packet loops share.
    pub fn shared_cpu(&self) -> Option<u32> {
        check::first_repeated(&self.engine)
    }
}

/// `[memory]`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Memory {
    /// Whether DPDK's memory is made of hugepages.
    pub hugepages: bool,
    /// Memory for packet buffers and drivers, in MiB; the page cache comes on top.
    pub eal_mib: u32,
    /// The page cache's budget, in MiB.
    pub page_cache_mib: u32,
    /// Size of one page-cache block, in KiB.
    pub block_kib: u32,
}

impl Memory {
    /// The page cache's budget in bytes.
    pub fn page_cache_bytes(&self) -> u64 {
        u64::from(self.page_cache_mib) << 20
    }

    /// Size of one page-cache block in bytes.
    pub fn block_bytes(&self) -> u32 {
        self.block_kib << 10
    }

    /// What EAL is asked for in all (`-m`), in MiB.
    pub fn eal_total_mib(&self) -> u32 {
        self.eal_mib + self.page_cache_mib
    }
}

/// `[tcp]`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tcp {
    /// The congestion control.
    pub congestion: Congestion,
    /// Explicit congestion notification.
    pub ecn: Ecn,
    /// Whether new data leave spread over the round trip.
    pub pacing: bool,
    /// Whether what is less than a full segment waits for the acknowledgement of what is in flight.
    pub nagle: bool,
    /// Silence before a client is probed, in seconds; 0: never.
    pub keepalive_s: u32,
    /// Time between two probes, in seconds.
    pub keepalive_interval_s: u32,
    /// Probes without an answer that end the connection.
    pub keepalive_probes_max: u32,
    /// Whether a SYN beyond the half-open connections' maximum is answered with a cookie (RFC 4987).
    pub syn_cookies: bool,
    /// SYN-ACKs that are sent again before a handshake is given up.
    pub syn_ack_retries_max: u32,
    /// Retransmission timeout before the first round trip was measured, in milliseconds.
    pub rto_initial_ms: u32,
    /// Least time between two challenge ACKs of a connection, in milliseconds.
    pub challenge_ack_interval_ms: u32,
    /// After how long a larger packet is tried where the path took none, in seconds.
    pub path_mtu_raise_s: u32,
    /// Whether selective acknowledgement is granted (RFC 2018).
    pub sack: bool,
    /// Whether timestamps are granted (RFC 7323).
    pub timestamps: bool,
    /// Whether window scaling is granted (RFC 7323).
    pub window_scaling: bool,
}

/// `[[port]]`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Port {
    /// The NIC or virtual device.
    pub device: Device,
    /// Ethernet address; none: the device's own.
    pub mac: Option<MacAddress>,
    /// Largest IP packet, in bytes.
    pub mtu: u16,
    /// IPv4's time to live and IPv6's hop limit of what is sent, in hops.
    pub time_to_live: u8,
    /// 802.1Q VLAN of the port's frames; none: they carry no tag.
    pub vlan: Option<u16>,
    /// The server's addresses on this port and their networks. Not empty without `slaac`.
    pub addresses: Vec<Cidr>,
    /// Router for every IPv4 address outside those networks.
    pub gateway: Option<Ipv4Addr>,
    /// The same for IPv6.
    pub gateway_ipv6: Option<Ipv6Addr>,
    /// Whether routers tell IPv6 prefixes, which addresses are made from, and offer themselves.
    pub slaac: bool,
    /// What is done before an IPv4 address is used.
    pub address_probe: AddressProbe,
    /// Receive/transmit queue pairs, one for each core from the first on.
    pub queues: u16,
    /// Segmentation offload.
    pub tso: Tso,
    /// Receive coalescing.
    pub lro: Lro,
}

impl Port {
    /// Whether there is IPv6 on this port.
    pub fn has_ipv6(&self) -> bool {
        self.slaac || self.addresses.iter().any(|address| address.address.is_ipv6())
    }

    /// The networks that this port is in, as far as the file tells.
    fn networks(&self) -> impl Iterator<Item = Cidr> {
        let link_local = self.has_ipv6().then_some(value::LINK_LOCAL);
        self.addresses.iter().map(|address| address.network()).chain(link_local)
    }
}

/// `[[export]]`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Export {
    /// Path under which clients mount it.
    pub name: String,
    /// Where the files are.
    pub store: Store,
    /// Number of the export in file handles; unique, and the same after each restart.
    pub id: u32,
    /// Refuse every change with NFS3ERR_ROFS.
    pub read_only: bool,
    /// Whose rights a caller loses.
    pub squash: Squash,
    /// uid of squashed callers.
    pub anonuid: u32,
    /// gid of squashed callers.
    pub anongid: u32,
    /// Networks that may use the export. Never empty.
    pub clients: Vec<Cidr>,
    /// The file does not name them: they are those of the ports.
    pub clients_by_default: bool,
}

/// Whom an export without `clients` is for, the server's own networks: never the whole Internet by omission.
pub fn own_networks<'a>(ports: impl Iterator<Item = &'a Port>) -> Vec<Cidr> {
    let mut networks: Vec<Cidr> = Vec::new();
    for network in ports.flat_map(Port::networks) {
        if !networks.contains(&network) {
            networks.push(network);
        }
    }
    networks
}

/// Where an export's files are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Store {
    /// A directory of the host; a relative path starts at the server's working directory.
    Directory(PathBuf),
    /// Memory of at most so many MiB.
    Memory {
        /// Limit in MiB.
        mib: u32,
    },
}

impl Store {
    /// Memory of the store's own, in MiB.
    pub fn memory_mib(&self) -> u32 {
        match self {
            Store::Directory(_) => 0,
            Store::Memory { mib } => *mib,
        }
    }
}

impl Export {
    /// Whether a client at `address` may use this export.
    pub fn allows(&self, address: IpAddr) -> bool {
        self.clients.iter().any(|network| network.contains(address))
    }
}

impl Config {
    /// Reads `file` and checks it, also against `machine` when one is given. All problems at once.
    pub fn load(file: &Path, machine: Option<&Machine>) -> Result<Config, Problems> {
        let name = file.display().to_string();
        let text = read_file(file)
            .map_err(|message| Problems(vec![Problem { file: name.clone(), position: None, key: String::new(), message }]))?;
        Config::parse(&name, &text, machine)
    }

    /// Reads `text`; `file` names it in the problems.
    pub fn parse(file: &str, text: &str, machine: Option<&Machine>) -> Result<Config, Problems> {
        let mut document = Document::new(file, text);
        Config::read(&mut document, machine)
    }

    fn read(document: &mut Document<'_>, machine: Option<&Machine>) -> Result<Config, Problems> {
        let table = document.syntax()?;
        let mut root = Section::root(document, table.get_ref());
        let server = root.table("server", Server::read);
        let cores = root.table("cores", Cores::read);
        let memory = root.table("memory", Memory::read);
        let tcp = root.table("tcp", Tcp::read);
        let ports = root.tables("port", |section, _| Port::read(section, cores.engine.len()));
        let own_networks = own_networks(ports.iter().flatten());
        let exports = root.tables("export", |section, _| Export::read(section, &own_networks));
        let limits = root.table("limits", Limits::read);
        root.finish();
        let draft = check::Draft { server, cores, memory, tcp, ports, exports, limits };
        draft.check(document);
        if let Some(machine) = machine {
            draft.check_machine(document, machine);
        }
        match draft.into_config() {
            Some(config) if document.is_clean() => Ok(config),
            _ => Err(document.take_problems()),
        }
    }

    /// The effective configuration as TOML, every key written out.
    pub fn to_toml(&self) -> String {
        let mut out = String::new();
        self.server.write(&mut out);
        self.cores.write(&mut out);
        self.memory.write(&mut out);
        self.tcp.write(&mut out);
        self.ports.iter().for_each(|port| port.write(&mut out));
        self.exports.iter().for_each(|export| export.write(&mut out));
        out.push_str("\n[limits]\n");
        self.limits.write(&mut out);
        out
    }
}

fn read_file(file: &Path) -> Result<String, String> {
    use std::io::Read as _;
    let cannot = |error: std::io::Error| format!("cannot be read: {error}");
    let mut bytes = Vec::new();
    let opened = std::fs::File::open(file).map_err(cannot)?;
    opened.take(CONFIG_FILE_BYTES_MAX + 1).read_to_end(&mut bytes).map_err(cannot)?;
    if bytes.len() as u64 > CONFIG_FILE_BYTES_MAX {
        return Err(format!("found more than {CONFIG_FILE_BYTES_MAX} bytes, allowed at most {CONFIG_FILE_BYTES_MAX}"));
    }
    String::from_utf8(bytes).map_err(|error| {
        format!("found a byte that is not UTF-8 at offset {}, allowed UTF-8 text", error.utf8_error().valid_up_to())
    })
}

fn key(out: &mut String, name: &str, value: &dyn Toml) {
    let _ = writeln!(out, "{name} = {}", value.toml());
}

impl Server {
    fn read(section: &mut Section<'_, '_>) -> Self {
        Self {
            state_dir: section.or("state_dir", path(), PathBuf::from("/var/lib/nfsplice")),
            stats_socket: section.or("stats_socket", value::socket_path(), PathBuf::from(DEFAULT_STATS_SOCKET)),
            log_level: section.or("log_level", one_of(), LogLevel::Info),
            transmit: section.or("transmit", one_of(), Transmit::Splice),
        }
    }

    fn write(&self, out: &mut String) {
        out.push_str("[server]\n");
        key(out, "state_dir", &self.state_dir);
        key(out, "stats_socket", &self.stats_socket);
        key(out, "log_level", &self.log_level);
        key(out, "transmit", &self.transmit);
    }
}

/// Where `nfsplice stats` looks when nothing else is said.
pub const DEFAULT_STATS_SOCKET: &str = "/run/nfsplice.sock";

impl Cores {
    fn read(section: &mut Section<'_, '_>) -> Self {
        let cpu = || number::<u32>(0..=1023);
        Self {
            engine: section.or("engine", list(cpu(), 1..=ENGINE_CORES_MAX), vec![0]),
            io: section.or("io", list(cpu(), 0..=IO_THREADS_MAX as usize), Vec::new()),
            io_threads: section.or("io_threads", number(1..=IO_THREADS_MAX), 4),
            idle: section.or("idle", one_of(), Idle::Auto),
        }
    }

    fn write(&self, out: &mut String) {
        out.push_str("\n[cores]\n");
        key(out, "engine", &self.engine);
        key(out, "io", &self.io);
        key(out, "io_threads", &self.io_threads);
        key(out, "idle", &self.idle);
    }
}

impl Memory {
    fn read(section: &mut Section<'_, '_>) -> Self {
        Self {
            hugepages: section.or("hugepages", Bool, true),
            eal_mib: section.or("eal_mib", number(64..=65_536), 256),
            page_cache_mib: section.or("page_cache_mib", number(16..=16_777_216), 1024),
            block_kib: section.or("block_kib", number(4..=1024).power_of_two(), 64),
        }
    }

    fn write(&self, out: &mut String) {
        out.push_str("\n[memory]\n");
        key(out, "hugepages", &self.hugepages);
        key(out, "eal_mib", &self.eal_mib);
        key(out, "page_cache_mib", &self.page_cache_mib);
        key(out, "block_kib", &self.block_kib);
    }
}

impl Tcp {
    fn read(section: &mut Section<'_, '_>) -> Self {
        Self {
            congestion: section.or("congestion", one_of(), Congestion::Cubic),
            ecn: section.or("ecn", one_of(), Ecn::Accept),
            pacing: section.or("pacing", Bool, false),
            nagle: section.or("nagle", Bool, false),
            keepalive_s: section.or("keepalive_s", number(0..=86_400), 0),
            keepalive_interval_s: section.or("keepalive_interval_s", number(1..=3600), 75),
            // RFC 9293 section 3.8.4, MUST-29: that no specific probe is answered means no dead connection.
            keepalive_probes_max: section.or("keepalive_probes_max", number(2..=127), 9),
            syn_cookies: section.or("syn_cookies", Bool, true),
            syn_ack_retries_max: section.or("syn_ack_retries_max", number(1..=16), 5),
            rto_initial_ms: section.or("rto_initial_ms", number(10..=60_000), 1000),
            challenge_ack_interval_ms: section.or("challenge_ack_interval_ms", number(1..=60_000), 500),
            // RFC 1191 section 6.3: not before five minutes have passed.
            path_mtu_raise_s: section.or("path_mtu_raise_s", number(300..=86_400), 600),
            sack: section.or("sack", Bool, true),
            timestamps: section.or("timestamps", Bool, true),
            window_scaling: section.or("window_scaling", Bool, true),
        }
    }

    fn write(&self, out: &mut String) {
        out.push_str("\n[tcp]\n");
        key(out, "congestion", &self.congestion);
        key(out, "ecn", &self.ecn);
        key(out, "pacing", &self.pacing);
        key(out, "nagle", &self.nagle);
        key(out, "keepalive_s", &self.keepalive_s);
        key(out, "keepalive_interval_s", &self.keepalive_interval_s);
        key(out, "keepalive_probes_max", &self.keepalive_probes_max);
        key(out, "syn_cookies", &self.syn_cookies);
        key(out, "syn_ack_retries_max", &self.syn_ack_retries_max);
        key(out, "rto_initial_ms", &self.rto_initial_ms);
        key(out, "challenge_ack_interval_ms", &self.challenge_ack_interval_ms);
        key(out, "path_mtu_raise_s", &self.path_mtu_raise_s);
        key(out, "sack", &self.sack);
        key(out, "timestamps", &self.timestamps);
        key(out, "window_scaling", &self.window_scaling);
    }
}

impl Port {
    /// None when a key that it cannot do without is missing or refused.
    fn read(section: &mut Section<'_, '_>, engines: usize) -> Option<Self> {
        let device = section.required("device", value::device());
        let mac = section.optional("mac", value::mac_address());
        // 576 is what every host must take (RFC 1122 section 3.3.3); 9702 is the largest that common NICs take.
        let mtu = section.or("mtu", number(576..=9702), 1500);
        // RFC 1122 section 3.2.1.7: a packet with 0 must not be sent.
        let time_to_live = section.or("time_to_live", number(1..=u8::MAX), 64);
        let vlan = section.optional("vlan", number(1..=4094));
        let slaac = section.or("slaac", Bool, false);
        let addresses = Self::read_addresses(section, slaac);
        let gateway = section.optional("gateway", value::gateway());
        let gateway_ipv6 = section.optional("gateway_ipv6", value::gateway_ipv6());
        let address_probe = section.or("address_probe", one_of(), AddressProbe::Quick);
        let queues = section.optional("queues", number(1..=QUEUES_MAX)).unwrap_or((engines as u16).min(QUEUES_MAX));
        let tso = section.or("tso", one_of(), Tso::Auto);
        let lro = section.or("lro", one_of(), Lro::Auto);
        let (device, addresses) = (device?, addresses?);
        Some(Self {
            device,
            mac,
            mtu,
            time_to_live,
            vlan,
            addresses,
            gateway,
            gateway_ipv6,
            slaac,
            address_probe,
            queues,
            tso,
            lro,
        })
    }

    /// `addresses`, or `address`, which is the same with one.
    fn read_addresses(section: &mut Section<'_, '_>, slaac: bool) -> Option<Vec<Cidr>> {
        let addresses = section.optional("addresses", list(value::interface_address(), 1..=ADDRESSES_MAX));
        if section.refused("addresses") || addresses.is_some() {
            section.forbidden("address", value::interface_address(), "only without the key addresses, which takes all of them");
            return addresses;
        }
        let address = match slaac {
            true => section.optional("address", value::interface_address()),
            false => section.required("address", value::interface_address()),
        };
        match address {
            Some(address) => Some(vec![address]),
            None => (slaac && !section.refused("address")).then(Vec::new),
        }
    }

    fn write(&self, out: &mut String) {
        out.push_str("\n[[port]]\n");
        key(out, "device", &self.device);
        if let Some(mac) = &self.mac {
            key(out, "mac", mac);
        }
        key(out, "mtu", &self.mtu);
        key(out, "time_to_live", &self.time_to_live);
        if let Some(vlan) = &self.vlan {
            key(out, "vlan", vlan);
        }
        if !self.addresses.is_empty() {
            key(out, "addresses", &self.addresses);
        }
        if let Some(gateway) = &self.gateway {
            key(out, "gateway", gateway);
        }
        if let Some(gateway) = &self.gateway_ipv6 {
            key(out, "gateway_ipv6", gateway);
        }
        key(out, "slaac", &self.slaac);
        key(out, "address_probe", &self.address_probe);
        key(out, "queues", &self.queues);
        key(out, "tso", &self.tso);
        key(out, "lro", &self.lro);
    }
}

impl Export {
    /// None when a key that it cannot do without is missing or refused.
    fn read(section: &mut Section<'_, '_>, own_networks: &[Cidr]) -> Option<Self> {
        let name = section.required("name", value::export_name());
        let store = Self::read_store(section);
        let id = section.optional("id", number(1..=u32::MAX));
        let read_only = section.or("read_only", Bool, false);
        let squash = section.or("squash", one_of(), Squash::Root);
        let anonuid = section.or("anonuid", number(0..=u32::MAX - 1), 65_534);
        let anongid = section.or("anongid", number(0..=u32::MAX - 1), 65_534);
        let clients = section.optional("clients", ClientNetworks);
        let clients_by_default = clients.is_none();
        let clients = clients.unwrap_or_else(|| own_networks.to_vec());
        let name = name?;
        let id = id.unwrap_or_else(|| id_from_name(&name));
        Some(Self { name, store: store?, id, read_only, squash, anonuid, anongid, clients, clients_by_default })
    }

    fn read_store(section: &mut Section<'_, '_>) -> Option<Store> {
        match section.or("store", one_of(), StoreKind::Directory) {
            // Which of the other keys belong to it cannot be told.
            _ if section.refused("store") => {
                section.optional("path", path());
                section.optional("memory_mib", number::<u32>(1..=MEMORY_STORE_MIB_MAX));
                None
            }
            StoreKind::Directory => {
                section.forbidden("memory_mib", number::<u32>(1..=MEMORY_STORE_MIB_MAX), "only with store = \"memory\"");
                section.required("path", path()).map(Store::Directory)
            }
            StoreKind::Memory => {
                section.forbidden("path", path(), "only with store = \"directory\"");
                let mib = section.or("memory_mib", number(1..=MEMORY_STORE_MIB_MAX), 256);
                Some(Store::Memory { mib })
            }
        }
    }

    fn write(&self, out: &mut String) {
        out.push_str("\n[[export]]\n");
        key(out, "name", &self.name);
        match &self.store {
            Store::Directory(path) => {
                key(out, "store", &StoreKind::Directory);
                key(out, "path", path);
            }
            Store::Memory { mib } => {
                key(out, "store", &StoreKind::Memory);
                key(out, "memory_mib", mib);
            }
        }
        key(out, "id", &self.id);
        key(out, "read_only", &self.read_only);
        key(out, "squash", &self.squash);
        key(out, "anonuid", &self.anonuid);
        key(out, "anongid", &self.anongid);
        key(out, "clients", &self.clients);
    }
}

/// Largest memory export, in MiB.
const MEMORY_STORE_MIB_MAX: u32 = 16_777_216;

/// The id of an export that was given none: FNV-1a of its name, with the top bit set so that it stays clear of the small
/// numbers people choose. It depends on nothing but the name, so exports may be reordered, added and removed; an export
/// that is to be renamed without its clients' handles going stale needs an explicit id.
fn id_from_name(name: &str) -> u32 {
    const OFFSET_BASIS: u32 = 0x811c_9dc5;
    const PRIME: u32 = 0x0100_0193;
    let hash = name.bytes().fold(OFFSET_BASIS, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(PRIME));
    hash | 0x8000_0000
}
