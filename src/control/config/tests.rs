//! What the configuration accepts, what it refuses and in which words.

use super::*;

/// The shortest configuration: everything else has a default.
const MINIMAL: &str = r#"
[[port]]
device = "net_tap0,iface=nfs0"
address = "10.77.0.2/24"
[[export]]
name = "/export"
path = "/srv/data"
"#;

fn parse(text: &str) -> Config {
    match Config::parse("t.toml", text, None) {
        Ok(config) => config,
        Err(problems) => panic!("{problems}"),
    }
}

fn problems(text: &str) -> String {
    match Config::parse("t.toml", text, None) {
        Ok(config) => panic!("accepted: {}", config.to_toml()),
        Err(problems) => problems.to_string(),
    }
}

#[test]
fn a_minimal_file_gets_every_default() {
    let config = parse(MINIMAL);
    assert_eq!(config.limits, Limits::default());
    assert_eq!(config.memory.eal_total_mib(), 1280);
    assert_eq!((config.tcp.congestion, config.tcp.ecn, config.tcp.keepalive_s), (Congestion::Cubic, Ecn::Accept, 0));
    assert_eq!(config.ports[0].device.to_string(), "net_tap0,iface=nfs0");
    assert_eq!(config.exports[0].squash, Squash::Root);
    assert_eq!(config.exports[0].clients[0].to_string(), "10.77.0.0/24");
}

#[test]
fn the_effective_configuration_parses_back_to_itself() {
    let full = r#"
[server]
state_dir = "/var/lib/n \"q\" \\ é"
log_level = "trace"
transmit = "copy"
[cores]
engine = [1]
io = [5]
io_threads = 2
idle = "poll"
[memory]
hugepages = false
block_kib = 1024
[tcp]
congestion = "dctcp"
pacing = true
nagle = true
keepalive_s = 30
keepalive_interval_s = 5
keepalive_probes_max = 3
syn_cookies = false
syn_ack_retries_max = 2
rto_initial_ms = 300
challenge_ack_interval_ms = 1
path_mtu_raise_s = 300
sack = false
timestamps = false
window_scaling = false
[[port]]
device = "03:00.1"
mac = "02:00:00:00:0A:01"
mtu = 9000
time_to_live = 255
address = "192.168.7.9/22"
gateway = "192.168.4.1"
address_probe = "rfc5227"
queues = 1
tso = "off"
lro = "on"
[[port]]
device = "net_vhost0,iface=/run/v.sock,tso=1"
address = "10.1.0.1/31"
[[port]]
device = "net_tap1"
vlan = 100
addresses = ["10.2.0.1/24", "2001:db8::2/64", "10.3.0.1/32"]
gateway_ipv6 = "fe80::1"
[[port]]
device = "net_tap2"
slaac = true
[[export]]
name = "/"
store = "memory"
memory_mib = 64
id = 7
squash = "all"
anonuid = 1000
anongid = 0
clients = ["any", "192.168.4.7", "fd00::/8"]
[[export]]
name = "/b"
path = "relative/dir"
read_only = true
[limits]
readahead_blocks = 0
attribute_cache_ms = 0
"#;
    for text in [MINIMAL, full] {
        let config = parse(text);
        let printed = config.to_toml();
        // What was derived stands there by name.
        let mut named = config.clone();
        named.exports.iter_mut().for_each(|export| export.clients_by_default = false);
        assert_eq!(parse(&printed), named, "{printed}");
        assert_eq!(parse(&printed).to_toml(), printed);
    }
}

/// The keys of the schema, as reading a file with every kind of table meets them.
fn schema() -> Vec<source::Key> {
    let text = format!("{MINIMAL}\n[[export]]\nname = \"/m\"\nstore = \"memory\"\n");
    let mut document = Document::new("t.toml", &text);
    Config::read(&mut document, None).unwrap();
    document.keys
}

/// The comment lines directly above `key` in `[section]` of the annotated file, and the line with the key, commented out or not.
fn annotation(text: &str, path: &str) -> Option<(String, String)> {
    let (section, key) = path.split_once('.')?;
    let mut current = "";
    let mut comments = String::new();
    for line in text.lines() {
        if let Some(header) = line.strip_prefix('[') {
            current = header.trim_matches(['[', ']']);
        }
        let bare = line.trim_start_matches("# ");
        if current == section && bare.strip_prefix(key).is_some_and(|rest| rest.starts_with(" = ")) {
            return Some((comments, line.to_owned()));
        }
        match line.strip_prefix("# ") {
            Some(comment) => comments = format!("{comments}{comment}\n"),
            None => comments.clear(),
        }
    }
    None
}

#[test]
fn the_annotated_file_tells_every_key_with_its_default_and_range() {
    let text = include_str!("../../../config/appliance.toml");
    for key in schema() {
        let (comments, line) = annotation(text, &key.path).unwrap_or_else(|| panic!("{} is missing", key.path));
        let default = key.default.map(|default| format!("Default {default}. ")).unwrap_or_default();
        let facts = format!("{default}Allowed: {}.\n", key.allowed);
        assert!(comments.ends_with(&facts), "{}: the comment must end with\n{facts}but is\n{comments}", key.path);
        assert!(comments.len() > facts.len(), "{}: says nothing but its range", key.path);
        assert!(!line.is_empty());
    }
}

#[test]
fn the_annotated_file_sets_every_key_to_its_default() {
    let text = include_str!("../../../config/appliance.toml");
    let required = "
[[port]]
device = \"0000:03:00.0\"
address = \"10.77.0.2/24\"
[[export]]
name = \"/export\"
path = \"/srv/data\"
";
    assert_eq!(parse(text), parse(required));
    // With what is commented out switched on, it still is a good file.
    let all: String = text
        .lines()
        .map(|line| match line.strip_prefix("# ") {
            // Those do not go with what is set.
            Some(rest) if ["memory_mib", "address ", "gateway_ipv6"].iter().any(|key| rest.starts_with(key)) => String::new(),
            Some(rest) if rest.split(' ').nth(1) == Some("=") => format!("{rest}\n"),
            _ => format!("{line}\n"),
        })
        .collect();
    assert_eq!(parse(&all).exports[0].id, 1);
    assert!(parse(&all).ports[0].mac.is_some());
}

#[test]
fn the_tap_file_is_good() {
    let config = parse(include_str!("../../../config/tap.toml"));
    assert_eq!(config.ports[0].device, Device { bus: Bus::Vdev, name: "net_tap0".into(), arguments: "iface=nfs0".into() });
    assert!(!config.memory.hugepages);
    assert!(config.exports[0].allows("10.77.0.1".parse().unwrap()));
    assert!(!config.exports[0].allows("10.78.0.1".parse().unwrap()));
    assert!(config.exports[0].allows("fd4e:6673::1".parse().unwrap()));
}

/// A file with one mistake: the minimal file's tables with some lines replaced or added.
struct Broken {
    /// `[server]`, `[cores]`, `[memory]` or `[limits]` and its keys: comes first.
    top: &'static str,
    port: &'static str,
    export: &'static str,
}

const GOOD_PORT: &str = "device = 'net_tap0'\naddress = '10.77.0.2/24'";
const GOOD_EXPORT: &str = "name = '/e'\npath = '/srv'";

impl Broken {
    fn text(&self) -> String {
        format!("{}\n[[port]]\n{}\n[[export]]\n{}\n", self.top, self.port, self.export)
    }
}

fn top(top: &'static str) -> Broken {
    Broken { top, port: GOOD_PORT, export: GOOD_EXPORT }
}

fn port(port: &'static str) -> Broken {
    Broken { top: "", port, export: GOOD_EXPORT }
}

fn export(export: &'static str) -> Broken {
    Broken { top: "", port: GOOD_PORT, export }
}

const DEVICE: &str = "a PCI address such as \"0000:03:00.0\" or a DPDK vdev such as \"net_tap0,iface=nfs0\" (not net_af_xdp: it cannot send segmented packets)";
const ADDRESS: &str = "a unicast address with its prefix length, such as \"10.77.0.2/24\" or \"fd4e:6673::2/64\"";
const NAME: &str =
    "a path such as \"/export\": begins with '/', no empty, \".\" or \"..\" part, no '/' at the end, at most 1024 bytes";

#[test]
fn each_broken_file_gets_its_message() {
    let cases: Vec<(Broken, String)> = vec![
        (top("[server]\nlog_level = 'loud'"), "t.toml:2:13: server.log_level: found 'loud', allowed one of \"error\", \"warn\", \"info\", \"debug\", \"trace\"".into()),
        (top("[server]\nlog_level = 3"), "t.toml:2:13: server.log_level: found 3, allowed one of \"error\", \"warn\", \"info\", \"debug\", \"trace\"".into()),
        (top("[server]\ntransmit = 'zerocopy'"), "t.toml:2:12: server.transmit: found 'zerocopy', allowed one of \"splice\", \"copy\"".into()),
        (top("[server]\nstate_dir = ''"), "t.toml:2:13: server.state_dir: found '', allowed a path without NUL, at most 4095 bytes".into()),
        (top("[server]\nstats_socket = '/xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx'"), "t.toml:2:16: server.stats_socket: found '/xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx..., allowed a path without NUL, at most 96 bytes".into()),
        (top("[server]\nlogs = 1"), "t.toml:2:1: server.logs: found an unknown key, allowed one of state_dir, stats_socket, log_level, transmit".into()),
        (top("[server]\nlog_levle = 'info'"), "t.toml:2:1: server.log_levle: found an unknown key, allowed one of this table's keys; did you mean log_level?".into()),
        (top("[sever]\nlog_level = 'info'"), "t.toml:1:2: sever: found an unknown key, allowed one of this table's keys; did you mean server?".into()),
        (top("server = 5"), "t.toml:1:10: server: found 5, allowed a table: [server]".into()),
        (top("limits = [1]"), "t.toml:1:10: limits: found [1], allowed a table: [limits]".into()),
        (top("[server"), "t.toml:1:8: not TOML: unclosed table, expected `]`".into()),
        (top("[server]\nstate_dir = /var"), "t.toml:2:13: not TOML: found /var: string values must be quoted, expected literal string".into()),
        (top("[server]\nlog_level = 'info'\nlog_level = 'warn'"), "t.toml:3:1: not TOML: found log_level: duplicate key".into()),
        (top("[cores]\nengine = []"), "t.toml:2:10: cores.engine: found [], allowed a list of 1 to 128 elements, each 0..=1023".into()),
        (top("[cores]\nengine = 0"), "t.toml:2:10: cores.engine: found 0, allowed a list of 1 to 128 elements, each 0..=1023".into()),
        (top("[cores]\nengine = [0, 1, 2, 3, 4]"), "t.toml:1:1: memory.eal_mib: found 256, allowed at least 380, which 5 queue pairs and 5 engine cores need".into()),
        (top("[cores]\nengine = [-1]"), "t.toml:2:11: cores.engine[0]: found -1, allowed 0..=1023".into()),
        (top("[cores]\nengine = [0, 1024, 5000]"), "t.toml:2:14: cores.engine[1]: found 1024, allowed 0..=1023\nt.toml:2:20: cores.engine[2]: found 5000, allowed 0..=1023".into()),
        (top("[cores]\nio = [3, 3]"), "t.toml:2:6: cores.io: found CPU 3 twice, allowed each CPU once".into()),
        (top("[cores]\nidle = 'spin'"), "t.toml:2:8: cores.idle: found 'spin', allowed one of \"auto\", \"poll\", \"sleep\"".into()),
        (top("[cores]\nio_threads = 0"), "t.toml:2:14: cores.io_threads: found 0, allowed 1..=64".into()),
        (top("[memory]\nhugepages = 'yes'"), "t.toml:2:13: memory.hugepages: found 'yes', allowed true or false".into()),
        (top("[memory]\nblock_kib = 48"), "t.toml:2:13: memory.block_kib: found 48, allowed a power of two in 4..=1024".into()),
        (top("[memory]\nblock_kib = 2048"), "t.toml:2:13: memory.block_kib: found 2048, allowed a power of two in 4..=1024".into()),
        (top("[memory]\neal_mib = 1.5"), "t.toml:2:11: memory.eal_mib: found 1.5, allowed 64..=65536".into()),
        (top("[memory]\npage_cache_mib = 16\nblock_kib = 1024"), "t.toml:2:18: memory.page_cache_mib: found 16, allowed at least 64 with block_kib = 1024, read_bytes_max = 1048576, write_bytes_max = 1048576, readahead_blocks = 16".into()),
        (top("[memory]\npage_cache_mib = 99999999999999999999"), "t.toml:2:18: memory.page_cache_mib: found 99999999999999999999, allowed 16..=16777216".into()),
        (top("[tcp]\ncongestion = 'bbr'"), "t.toml:2:14: tcp.congestion: found 'bbr', allowed one of \"cubic\", \"newreno\", \"dctcp\"".into()),
        (top("[tcp]\necn = 2"), "t.toml:2:7: tcp.ecn: found 2, allowed one of \"off\", \"accept\"".into()),
        (top("[tcp]\ncongestion = 'dctcp'\necn = 'off'"), "t.toml:3:7: tcp.ecn: found \"off\" with congestion = \"dctcp\", allowed \"accept\", or another congestion".into()),
        (top("[tcp]\nnagle = 'on'"), "t.toml:2:9: tcp.nagle: found 'on', allowed true or false".into()),
        (top("[tcp]\nkeepalive_s = 86401"), "t.toml:2:15: tcp.keepalive_s: found 86401, allowed 0..=86400".into()),
        (top("[tcp]\nkeepalive_probes_max = 1"), "t.toml:2:24: tcp.keepalive_probes_max: found 1, allowed 2..=127".into()),
        (top("[tcp]\nsyn_cookies = 1"), "t.toml:2:15: tcp.syn_cookies: found 1, allowed true or false".into()),
        (top("[tcp]\nsyn_ack_retries_max = 0"), "t.toml:2:23: tcp.syn_ack_retries_max: found 0, allowed 1..=16".into()),
        (top("[tcp]\nchallenge_ack_interval_ms = 0"), "t.toml:2:29: tcp.challenge_ack_interval_ms: found 0, allowed 1..=60000".into()),
        (top("[tcp]\npath_mtu_raise_s = 60"), "t.toml:2:20: tcp.path_mtu_raise_s: found 60, allowed 300..=86400".into()),
        (top("[tcp]\nsack = 'off'"), "t.toml:2:8: tcp.sack: found 'off', allowed true or false".into()),
        (top("[tcp]\nrto_initial_ms = 100"), "t.toml:2:18: tcp.rto_initial_ms: found 100, allowed at least 200, which is limits.tcp_rto_min_ms".into()),
        (top("[limits]\ntcp_rto_min_ms = 5000"), "t.toml:2:18: limits.tcp_rto_min_ms: found 5000, allowed at most 1000, which fits into tcp.rto_initial_ms = 1000".into()),
        (top("[limits]\ntcp_accept_queue_max = 0"), "t.toml:2:24: limits.tcp_accept_queue_max: found 0, allowed 16..=65536".into()),
        (top("[limits]\nread_bytes_max = 5000"), "t.toml:2:18: limits.read_bytes_max: found 5000, allowed a multiple of 4096 in 4096..=1048576".into()),
        (top("[limits]\nread_bytes_max = 2097152"), "t.toml:2:18: limits.read_bytes_max: found 2097152, allowed a multiple of 4096 in 4096..=1048576".into()),
        (top("[limits]\nrecord_bytes_max = 1048576"), "t.toml:2:20: limits.record_bytes_max: found 1048576, allowed at least 1052672, which is limits.write_bytes_max + 4096".into()),
        (top("[limits]\nwrite_bytes_max = 65536\nrecord_bytes_max = 66000"), "t.toml:3:20: limits.record_bytes_max: found 66000, allowed at least 69632, which is limits.write_bytes_max + 4096".into()),
        (
            top("[limits]\ntcp_receive_window_bytes_max = 65536"),
            "t.toml:2:32: limits.tcp_receive_window_bytes_max: found 65536, allowed at least 1118208, which is limits.record_bytes_max + 4096".into(),
        ),
        (
            top("[limits]\nrecord_bytes_max = 16777216"),
            "t.toml:2:20: limits.record_bytes_max: found 16777216, allowed at most 2093056, which fits into limits.tcp_receive_window_bytes_max = 2097152".into(),
        ),
        (top("[limits]\nsend_queue_bytes_max = 65536"), "t.toml:2:24: limits.send_queue_bytes_max: found 65536, allowed at least 1052672, which is limits.read_bytes_max + 4096".into()),
        (top("[limits]\nconnections_max = 10"), "t.toml:2:19: limits.connections_max: found 10, allowed at least 64, which is limits.connections_unauthenticated_max".into()),
        (top("[limits]\nconnections_max = 100\nconnections_unauthenticated_max = 101"), "t.toml:2:19: limits.connections_max: found 100, allowed at least 101, which is limits.connections_unauthenticated_max".into()),
        (top("[limits]\ntcp_rto_min_ms = 1"), "t.toml:2:18: limits.tcp_rto_min_ms: found 1, allowed 10..=10000".into()),
        (top("[limits]\nconnections = 100"), "t.toml:2:1: limits.connections: found an unknown key, allowed one of this table's keys; did you mean connections_max?".into()),
        (port("address = '10.77.0.2/24'"), format!("t.toml:2:1: port[0].device: found nothing, allowed {DEVICE}")),
        (port("device = 'net_tap0'"), format!("t.toml:2:1: port[0].address: found nothing, allowed {ADDRESS}")),
        (port("device = 'eth0'\naddress = '10.77.0.2/24'"), format!("t.toml:3:10: port[0].device: found 'eth0', allowed {DEVICE}")),
        (port("device = '0000:03:20.0'\naddress = '10.77.0.2/24'"), format!("t.toml:3:10: port[0].device: found '0000:03:20.0', allowed {DEVICE}")),
        (port("device = 'net_af_xdp0,iface=eth0'\naddress = '10.77.0.2/24'"), format!("t.toml:3:10: port[0].device: found 'net_af_xdp0,iface=eth0', allowed {DEVICE}")),
        (port("device = 'net_tap0, iface=x'\naddress = '10.77.0.2/24'"), format!("t.toml:3:10: port[0].device: found 'net_tap0, iface=x', allowed {DEVICE}")),
        (port("device = 'net_tap0'\naddress = '10.77.0.2'"), format!("t.toml:4:11: port[0].address: found '10.77.0.2', allowed {ADDRESS}")),
        (port("device = 'net_tap0'\naddress = '10.77.0.2/33'"), format!("t.toml:4:11: port[0].address: found '10.77.0.2/33', allowed {ADDRESS}")),
        (port("device = 'net_tap0'\naddress = '10.77.0.256/24'"), format!("t.toml:4:11: port[0].address: found '10.77.0.256/24', allowed {ADDRESS}")),
        (port("device = 'net_tap0'\naddress = '127.0.0.1/8'"), format!("t.toml:4:11: port[0].address: found '127.0.0.1/8', allowed {ADDRESS}")),
        (port("device = 'net_tap0'\naddress = '224.0.0.1/8'"), format!("t.toml:4:11: port[0].address: found '224.0.0.1/8', allowed {ADDRESS}")),
        (port("device = 'net_tap0'\naddress = 'ff02::1/64'"), format!("t.toml:4:11: port[0].address: found 'ff02::1/64', allowed {ADDRESS}")),
        (port("device = 'net_tap0'\naddress = '::ffff:10.77.0.2/96'"), format!("t.toml:4:11: port[0].address: found '::ffff:10.77.0.2/96', allowed {ADDRESS}")),
        (port("device = 'net_tap0'\naddress = 'fd00::/64'"), "t.toml:4:11: port[0].address: found 'fd00::/64', allowed a host's address: this one is that of the network's routers".into()),
        (port("device = 'net_tap0'\naddresses = ['10.77.0.2/24', 'fd00::2']"), format!("t.toml:4:30: port[0].addresses[1]: found 'fd00::2', allowed {ADDRESS}")),
        (port("device = 'net_tap0'\naddresses = []"), format!("t.toml:4:13: port[0].addresses: found [], allowed a list of 1 to 16 elements, each {ADDRESS}")),
        (port("device = 'net_tap0'\naddresses = ['10.77.0.2/24', '10.77.0.2/16']"), "t.toml:4:13: port[0].addresses: found 10.77.0.2 twice, allowed each address once".into()),
        (port("device = 'net_tap0'\naddresses = ['10.77.0.0/24']"), "t.toml:4:13: port[0].addresses: found '10.77.0.0/24', allowed a host address between 10.77.0.0 and 10.77.0.255".into()),
        (port("device = 'net_tap0'\naddresses = ['10.77.0.2/24']\naddress = '10.77.0.2/24'"), "t.toml:5:11: port[0].address: found '10.77.0.2/24', allowed only without the key addresses, which takes all of them".into()),
        (port("device = 'net_tap0'\naddress = 'fd00::2/64'\nmtu = 1279"), "t.toml:5:7: port[0].mtu: found 1279, allowed at least 1280 on a port with IPv6".into()),
        (port("device = 'net_tap0'\naddress = 'fd00::2/64'\ngateway = '10.77.0.1'"), "t.toml:5:11: port[0].gateway: found '10.77.0.1', allowed nothing: the port has no IPv4 address".into()),
        (port("device = 'net_tap0'\naddress = 'fd00::2/64'\ngateway_ipv6 = 'fd01::1'"), "t.toml:5:16: port[0].gateway_ipv6: found 'fd01::1', allowed an address in fd00::/64, the network of port[0].address".into()),
        (port("device = 'net_tap0'\naddress = 'fd00::2/64'\ngateway_ipv6 = 'fd00::2'"), "t.toml:5:16: port[0].gateway_ipv6: found 'fd00::2', allowed a router's address, not the port's own".into()),
        (port("device = 'net_tap0'\naddress = '10.77.0.2/24'\nvlan = 0"), "t.toml:5:8: port[0].vlan: found 0, allowed 1..=4094".into()),
        (port("device = 'net_tap0'\naddress = '10.77.0.2/24'\nvlan = 4095"), "t.toml:5:8: port[0].vlan: found 4095, allowed 1..=4094".into()),
        (port("device = 'net_tap0'\naddress = '10.77.0.0/24'"), "t.toml:4:11: port[0].address: found '10.77.0.0/24', allowed a host address between 10.77.0.0 and 10.77.0.255".into()),
        (port("device = 'net_tap0'\naddress = '10.77.0.255/24'"), "t.toml:4:11: port[0].address: found '10.77.0.255/24', allowed a host address between 10.77.0.0 and 10.77.0.255".into()),
        (port("device = 'net_tap0'\naddress = '10.77.0.2/24'\ngateway = '10.77.0.2'"), "t.toml:5:11: port[0].gateway: found '10.77.0.2', allowed a router's address, not the port's own".into()),
        (port("device = 'net_tap0'\naddress = '10.77.0.2/24'\ngateway = '10.78.0.1'"), "t.toml:5:11: port[0].gateway: found '10.78.0.1', allowed an address in 10.77.0.0/24, the network of port[0].address".into()),
        (port("device = 'net_tap0'\naddress = '10.77.0.2/24'\ngateway = '10.77.0.255'"), "t.toml:5:11: port[0].gateway: found '10.77.0.255', allowed a host address between 10.77.0.0 and 10.77.0.255".into()),
        (port("device = 'net_tap0'\naddress = '10.77.0.2/24'\ngateway = 'router'"), "t.toml:5:11: port[0].gateway: found 'router', allowed a unicast IPv4 address, such as \"10.77.0.1\"".into()),
        (port("device = 'net_tap0'\naddress = '10.77.0.2/24'\nmtu = 99999"), "t.toml:5:7: port[0].mtu: found 99999, allowed 576..=9702".into()),
        (port("device = 'net_tap0'\naddress = '10.77.0.2/24'\nmac = '01:00:5e:00:00:01'"), "t.toml:5:7: port[0].mac: found '01:00:5e:00:00:01', allowed a unicast Ethernet address such as \"02:00:00:00:00:01\"".into()),
        (port("device = 'net_tap0'\naddress = '10.77.0.2/24'\nmac = '02:00:00:00:01'"), "t.toml:5:7: port[0].mac: found '02:00:00:00:01', allowed a unicast Ethernet address such as \"02:00:00:00:00:01\"".into()),
        (port("device = 'net_tap0'\naddress = '10.77.0.2/24'\nqueues = 2"), "t.toml:5:10: port[0].queues: found 2, allowed 1..=1: each queue needs its own core in cores.engine".into()),
        (port("device = 'net_tap0'\naddress = '10.77.0.2/24'\nlro = 1"), "t.toml:5:7: port[0].lro: found 1, allowed one of \"auto\", \"on\", \"off\"".into()),
        (port("device = 'net_tap0'\naddress = '10.77.0.2/24'\ntso = true"), "t.toml:5:7: port[0].tso: found true, allowed one of \"auto\", \"on\", \"off\"".into()),
        (port("device = 'net_tap0'\naddress = '10.77.0.2/24'\n[[port]]\ndevice = 'net_tap1'\naddress = '10.77.0.2/16'"), "t.toml:7:11: port[1].address: found 10.77.0.2, allowed one that port[0] (line 4) does not have".into()),
        (port("device = 'net_tap0,iface=a'\naddress = '10.77.0.2/24'\n[[port]]\ndevice = 'net_tap0,iface=b'\naddress = '10.78.0.2/24'"), "t.toml:6:10: port[1].device: found net_tap0, allowed one that port[0] (line 3) does not have".into()),
        (port("device = '03:00.0'\naddress = '10.77.0.2/24'\n[[port]]\ndevice = '0000:03:00.0'\naddress = '10.78.0.2/24'"), "t.toml:6:10: port[1].device: found 0000:03:00.0, allowed one that port[0] (line 3) does not have".into()),
        (export("path = '/srv'"), format!("t.toml:5:1: export[0].name: found nothing, allowed {NAME}")),
        (export("name = '/e'"), "t.toml:5:1: export[0].path: found nothing, allowed a path without NUL, at most 4095 bytes".into()),
        (export("name = 'e'\npath = '/srv'"), format!("t.toml:6:8: export[0].name: found 'e', allowed {NAME}")),
        (export("name = '/e/../f'\npath = '/srv'"), format!("t.toml:6:8: export[0].name: found '/e/../f', allowed {NAME}")),
        (export("name = '/e/'\npath = '/srv'"), format!("t.toml:6:8: export[0].name: found '/e/', allowed {NAME}")),
        (export("name = '/e'\npath = '/srv'\nid = 0"), "t.toml:8:6: export[0].id: found 0, allowed 1..=4294967295".into()),
        (export("name = '/e'\npath = '/srv'\nsquash = 'some'"), "t.toml:8:10: export[0].squash: found 'some', allowed one of \"none\", \"root\", \"all\"".into()),
        (export("name = '/e'\npath = '/srv'\nanonuid = -2"), "t.toml:8:11: export[0].anonuid: found -2, allowed 0..=4294967294".into()),
        (export("name = '/e'\npath = '/srv'\nanongid = 4294967295"), "t.toml:8:11: export[0].anongid: found 4294967295, allowed 0..=4294967294".into()),
        (export("name = '/e'\npath = '/srv'\nclients = []"), "t.toml:8:11: export[0].clients: found [], allowed a list of 1 to 1024 elements, each a network without host bits such as \"10.0.0.0/8\", an address, or \"any\"".into()),
        (export("name = '/e'\npath = '/srv'\nclients = 'any'"), "t.toml:8:11: export[0].clients: found 'any', allowed a list of 1 to 1024 elements, each a network without host bits such as \"10.0.0.0/8\", an address, or \"any\"".into()),
        (export("name = '/e'\npath = '/srv'\nclients = ['10.0.0.0/8', '10.77.0.2/24', 'host']"), "t.toml:8:26: export[0].clients[1]: found '10.77.0.2/24', allowed a network without host bits such as \"10.0.0.0/8\", an address, or \"any\"\nt.toml:8:42: export[0].clients[2]: found 'host', allowed a network without host bits such as \"10.0.0.0/8\", an address, or \"any\"".into()),
        (export("name = '/e'\npath = '/srv'\nmemory_mib = 5"), "t.toml:8:14: export[0].memory_mib: found 5, allowed only with store = \"memory\"".into()),
        (export("name = '/e'\nstore = 'memory'\npath = '/srv'"), "t.toml:8:8: export[0].path: found '/srv', allowed only with store = \"directory\"".into()),
        (export("name = '/e'\nstore = 'disk'"), "t.toml:7:9: export[0].store: found 'disk', allowed one of \"directory\", \"memory\"".into()),
        (export("name = '/e'\npath = '/srv'\n[[export]]\nname = '/e'\npath = '/b'\nid = 5"), "t.toml:9:8: export[1].name: found /e, allowed one that export[0] (line 6) does not have".into()),
        (export("name = '/e'\npath = '/srv'\nid = 5\n[[export]]\nname = '/f'\npath = '/b'\nid = 5"), "t.toml:12:6: export[1].id: found 5, allowed one that export[0] (line 8) does not have".into()),
        (export("name = '/e'\npath = '/srv'\nid = 3922857256\n[[export]]\nname = '/f'\npath = '/b'"), "t.toml:9:1: export[1].id: found 3922857256, allowed one that export[0] (line 8) does not have".into()),
        (export("name = '/e'\npath = '/var/lib'"), "t.toml:7:8: export[0].path: found \"/var/lib\" around server.state_dir \"/var/lib/nfsplice\", allowed a directory that does not contain server.state_dir".into()),
        (export("name = '/e'\npath = '/srv'\nreadonly = true"), "t.toml:8:1: export[0].readonly: found an unknown key, allowed one of this table's keys; did you mean read_only?".into()),
    ];
    for (broken, expected) in &cases {
        let text = broken.text();
        assert_eq!(&problems(&text), expected, "\n{text}");
    }
    assert!(cases.len() >= 60, "{}", cases.len());
}

#[test]
fn all_problems_are_told_at_once_in_the_order_of_the_lines() {
    let text = "
[memory]
block_kib = 5
[[port]]
device = 'net_tap0'
address = '10.77.0.2/24'
mtu = 9
[port.extra]
[[export]]
path = '/srv'
[[export]]
name = '/b'
path = '/srv'
ID = 3
";
    let told: Vec<String> = problems(text).lines().map(|line| line.split(": found").next().unwrap_or("").to_owned()).collect();
    let expected = [
        "t.toml:3:13: memory.block_kib",
        "t.toml:7:7: port[0].mtu",
        "t.toml:8:7: port[0].extra",
        "t.toml:9:1: export[0].name",
        "t.toml:14:1: export[1].ID",
    ];
    assert_eq!(told, expected);
}

#[test]
fn a_file_without_ports_and_exports_serves_nobody() {
    let expected = "t.toml:1:1: port: found none, allowed 1 to 32 tables [[port]]\n\
                    t.toml:1:1: export: found none, allowed 1 to 256 tables [[export]]";
    assert_eq!(problems(""), expected);
    let single = "[port]\ndevice = 'net_tap0'\n[[export]]\nname = '/e'\npath = '/srv'";
    assert_eq!(
        problems(single).lines().next(),
        Some("t.toml:1:1: port: found [port], allowed tables, each under its own [[port]]")
    );
}

#[test]
fn the_machine_has_its_say() {
    let directory = std::env::temp_dir().join(format!("nfsplice-config-{}", std::process::id()));
    std::fs::create_dir_all(directory.join("pci/0000:03:00.0")).unwrap();
    std::fs::create_dir_all(directory.join("export/state")).unwrap();
    std::fs::write(directory.join("file"), "").unwrap();
    let machine = Machine { cpus: vec![0, 1, 2, 5], pci_devices: directory.join("pci") };
    let root = directory.display();
    let text = format!(
        "[server]
state_dir = '{root}/pci/../export/state'
[cores]
engine = [0, 3]
io = [6]
[[port]]
device = '03:00.0'
address = '10.77.0.2/24'
[[port]]
device = '04:00.0'
address = '10.78.0.2/24'
[[export]]
name = '/missing'
path = '{root}/missing'
[[export]]
name = '/file'
path = '{root}/file'
[[export]]
name = '/state'
path = '{root}/file/../export'
[[export]]
name = '/around'
path = '{root}/./export'
"
    );
    parse(&text);
    let told = Config::parse("t.toml", &text, Some(&machine)).unwrap_err().to_string().replace(&root.to_string(), "ROOT");
    std::fs::remove_dir_all(&directory).unwrap();
    let expected = "\
t.toml:4:10: cores.engine: found CPU 3, allowed CPUs that this process may run on: 0-2, 5
t.toml:5:6: cores.io: found CPU 6, allowed CPUs that this process may run on: 0-2, 5
t.toml:10:10: port[1].device: found '04:00.0', allowed a device listed in ROOT/pci
t.toml:14:8: export[0].path: found \"ROOT/missing\": No such file or directory (os error 2), allowed a directory that the server can read
t.toml:17:8: export[1].path: found \"ROOT/file\": Not a directory (os error 20), allowed a directory that the server can read
t.toml:20:8: export[2].path: found \"ROOT/file/../export\": Not a directory (os error 20), allowed a directory that the server can read
t.toml:23:8: export[3].path: found \"ROOT/export\" around server.state_dir \"ROOT/export/state\", allowed a directory that does not contain server.state_dir";
    assert_eq!(told, expected);
}

#[test]
fn a_file_that_cannot_be_read_is_a_problem_too() {
    let file = std::env::temp_dir().join(format!("nfsplice-config-{}.toml", std::process::id()));
    let told = |bytes: &[u8]| {
        std::fs::write(&file, bytes).unwrap();
        let problem = Config::load(&file, None).unwrap_err().0.remove(0);
        assert_eq!(problem.file, file.display().to_string());
        problem.message
    };
    assert_eq!(told(b"# caf\xe9"), "found a byte that is not UTF-8 at offset 5, allowed UTF-8 text");
    let large = vec![b'#'; CONFIG_FILE_BYTES_MAX as usize + 1];
    assert_eq!(told(&large), "found more than 1048576 bytes, allowed at most 1048576");
    std::fs::remove_file(&file).unwrap();
    let missing = Config::load(&file, None).unwrap_err().to_string();
    assert_eq!(missing, format!("{}: cannot be read: No such file or directory (os error 2)", file.display()));
}

#[test]
fn networks_contain_their_own_addresses_only() {
    let contains = |network: &str, address: &str| {
        let text = format!("{MINIMAL}clients = ['{network}']");
        parse(&text).exports[0].allows(address.parse().unwrap())
    };
    assert!(contains("10.0.0.0/8", "10.255.255.255"));
    assert!(!contains("10.0.0.0/8", "11.0.0.0"));
    assert!(contains("10.77.0.4/31", "10.77.0.5"));
    assert!(!contains("10.77.0.4", "10.77.0.5"));
    assert!(contains("any", "203.0.113.9") && contains("any", "2001:db8::1"));
    assert!(!contains("0.0.0.0/0", "2001:db8::1"));
    assert!(contains("fd00::/8", "fdff::1") && !contains("fd00::/8", "fe00::1"));
    assert!(contains("::/0", "::1") && !contains("::/0", "10.0.0.1"));
}

#[test]
fn a_port_may_have_addresses_of_both_families_and_its_networks_may_use_the_exports() {
    let config = parse(&MINIMAL.replace("address = \"10.77.0.2/24\"", "addresses = [\"10.77.0.2/24\", \"fd00:1::2/64\"]"));
    let clients: Vec<String> = config.exports[0].clients.iter().map(ToString::to_string).collect();
    assert_eq!(clients, ["10.77.0.0/24", "fd00:1::/64", "fe80::/64"]);
    assert!(config.ports[0].has_ipv6());
    assert!(!parse(MINIMAL).ports[0].has_ipv6());
    let slaac = parse(&MINIMAL.replace("address = \"10.77.0.2/24\"", "slaac = true"));
    assert!(slaac.ports[0].addresses.is_empty() && slaac.ports[0].has_ipv6());
    assert_eq!(slaac.exports[0].clients[0].to_string(), "fe80::/64");
}

#[test]
fn an_export_keeps_its_derived_id_wherever_it_stands() {
    let one = parse(&format!("{MINIMAL}[[export]]\nname = '/b'\npath = '/b'"));
    let other = parse(&format!("[[export]]\nname = '/b'\npath = '/b'\n{MINIMAL}"));
    assert_eq!(one.exports[0].id, other.exports[1].id);
    assert_eq!(one.exports[1].id, other.exports[0].id);
    // Handles that clients hold depend on it: this number must never change.
    assert_eq!(one.exports[0].id, 0xe4db_8904);
}

#[test]
fn ipv6_goes_with_several_engine_cores() {
    for port in ["address = 'fd00::2/64'", "addresses = ['10.77.0.2/24', 'fd00::2/64']", "address = '10.77.0.2/24'\nslaac = true"]
    {
        let text = format!(
            "[cores]\nengine = [0, 1]\n[memory]\neal_mib = 512\n[[port]]\ndevice = 'net_tap0'\n{port}\n[[export]]\nname = '/e'\npath = '/srv'\n"
        );
        let config = Config::parse("t.toml", &text, None).unwrap();
        assert!(config.ports[0].has_ipv6() && config.ports[0].queues == 2);
    }
}
