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
            Some(rest) if rest.split(' ').nth(1) == Some("=") && !rest.starts_with("memory_mib") => format!("{rest}\n"),
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
}
