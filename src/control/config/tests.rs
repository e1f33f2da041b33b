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
engine = [1, 3]
io = [5]
io_threads = 2
[memory]
hugepages = false
block_kib = 1024
[[port]]
device = "03:00.1"
mac = "02:00:00:00:0A:01"
mtu = 9000
address = "192.168.7.9/22"
gateway = "192.168.4.1"
queues = 2
tso = "off"
[[port]]
device = "net_vhost0,iface=/run/v.sock,tso=1"
address = "10.1.0.1/31"
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
        assert_eq!(parse(&printed), config, "{printed}");
        assert_eq!(parse(&printed).to_toml(), printed);
    }
}
