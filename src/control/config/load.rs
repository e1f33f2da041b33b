//! The configuration file of the load generator: ports, cores, memory. What is measured stands on its command line.
//!
//! Read with the same rules, and the same messages, as the server's file. The annotated list of all keys is `config/load.toml`.

use std::net::IpAddr;
use std::path::Path;

use super::source::{Document, Problem, Problems, Section};
use super::value::{self, Bool, Cidr, Device, MacAddress, list, number};
use super::{PORTS_MAX, read_file};

/// Most cores of one port: the queues that a port may have.
pub const CORES_PER_PORT_MAX: usize = 64;

/// `[[port]]` of the generator.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LoadPort {
    pub device: Device,
    pub address: Cidr,
    pub gateway: Option<IpAddr>,
    pub mac: Option<MacAddress>,
    pub mtu: u16,
    /// CPUs that drive it, one queue pair each.
    pub cores: Vec<u32>,
    /// The server's address as this port reaches it; `None`: that of the command line.
    pub server: Option<IpAddr>,
}

/// The whole file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LoadConfig {
    pub ports: Vec<LoadPort>,
    pub hugepages: bool,
    /// Memory for packet buffers and data, MiB.
    pub mib: u32,
}

impl LoadConfig {
    /// Reads `file`. All problems at once.
    pub fn load(file: &Path) -> Result<LoadConfig, Problems> {
        let name = file.display().to_string();
        let text = read_file(file)
            .map_err(|message| Problems(vec![Problem { file: name.clone(), position: None, key: String::new(), message }]))?;
        LoadConfig::parse(&name, &text)
    }

    /// Reads `text`; `file` names it in the problems.
    pub fn parse(file: &str, text: &str) -> Result<LoadConfig, Problems> {
        let mut document = Document::new(file, text);
        let table = document.syntax()?;
        let mut root = Section::root(&mut document, table.get_ref());
        let (hugepages, mib) =
            root.table("memory", |section| (section.or("hugepages", Bool, true), section.or("mib", number(64..=65_536), 512)));
        let ports = root.tables("port", |section, _| LoadPort::read(section));
        root.finish();
        check(&mut document, &ports);
        let ports: Option<Vec<LoadPort>> = ports.into_iter().collect();
        match ports {
            Some(ports) if document.is_clean() => Ok(LoadConfig { ports, hugepages, mib }),
            _ => Err(document.take_problems()),
        }
    }
}

impl LoadPort {
    fn read(section: &mut Section<'_, '_>) -> Option<LoadPort> {
        let device = section.required("device", value::device());
        let address = section.required("address", value::interface_address());
        let gateway = section.optional("gateway", value::host_address());
        let mac = section.optional("mac", value::mac_address());
        let mtu = section.or("mtu", number(576..=9702), 1500);
        let cores = section.required("cores", list(number::<u32>(0..=1023), 1..=CORES_PER_PORT_MAX));
        let server = section.optional("server", value::host_address());
        Some(LoadPort { device: device?, address: address?, gateway, mac, mtu, cores: cores?, server })
    }
}

/// What one port cannot tell: how many there are, and that no core and no device is used twice.
fn check(document: &mut Document<'_>, ports: &[Option<LoadPort>]) {
    if !(1..=PORTS_MAX).contains(&ports.len()) && document.sound(&["port"]) {
        let found = if ports.is_empty() { "none".to_owned() } else { ports.len().to_string() };
        document.refuse_found("port", &found, &format!("1 to {PORTS_MAX} tables [[port]]"));
    }
    let mut cores = Vec::new();
    let mut devices = Vec::new();
    for (at, port) in ports.iter().enumerate() {
        let Some(port) = port else { continue };
        for core in &port.cores {
            if cores.contains(core) {
                document.refuse_found(&format!("port[{at}].cores"), &format!("CPU {core} twice"), "each CPU once");
            }
            cores.push(*core);
        }
        if devices.contains(&&port.device.name) {
            document.refuse(&format!("port[{at}].device"), "a device of its own for each port");
        }
        devices.push(&port.device.name);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "[memory]\nhugepages = false\n\n[[port]]\ndevice = \"net_vhost0,iface=/tmp/s\"\n\
                        address = \"10.77.0.1/24\"\ncores = [1, 2]\n";

    fn wrong(find: &str, put: &str) -> String {
        assert!(GOOD.contains(find));
        LoadConfig::parse("load.toml", &GOOD.replacen(find, put, 1)).unwrap_err().to_string()
    }

    #[test]
    fn a_good_file_is_read_with_its_defaults() {
        let config = LoadConfig::parse("load.toml", GOOD).unwrap();
        assert_eq!((config.hugepages, config.mib, config.ports.len()), (false, 512, 1));
        assert_eq!((config.ports[0].mtu, &config.ports[0].cores[..]), (1500, &[1, 2][..]));
    }

    #[test]
    fn the_sample_file_is_good_once_its_keys_are_in_force() {
        let sample = include_str!("../../../config/load.toml");
        LoadConfig::parse("load.toml", sample).unwrap();
        // Commented keys are `# key = value`: prose has no such form.
        let all: Vec<&str> = sample
            .lines()
            .map(|line| match line.strip_prefix("# ") {
                Some(key) if key.split_once(" = ").is_some_and(|(name, _)| name.bytes().all(|b| b.is_ascii_lowercase())) => key,
                _ => line,
            })
            .collect();
        let config = LoadConfig::parse("load.toml", &all.join("\n")).unwrap();
        let port = &config.ports[0];
        assert!(port.mac.is_some() && port.gateway.is_some() && port.server.is_some());
    }

    #[test]
    fn errors_name_file_line_key_what_was_found_and_what_is_allowed() {
        let said = wrong("cores = [1, 2]", "core = [1, 2]");
        assert!(said.contains("load.toml:7:1: port[0].core: found an unknown key, allowed"), "{said}");
        assert!(said.contains("did you mean cores?") && said.contains("port[0].cores: found nothing, allowed a list"), "{said}");
        let said = wrong("hugepages = false", "hugepages = \"no\"");
        assert!(said.starts_with("load.toml:2:13: memory.hugepages: found \"no\", allowed true or false"), "{said}");
        assert!(wrong("[1, 2]", "[1, 1]").contains("load.toml:7:9: port[0].cores: found CPU 1 twice, allowed each CPU once"));
        assert!(wrong("/24", "").contains("load.toml:6:11: port[0].address: found \"10.77.0.1\", allowed"));
        assert!(wrong("[memory]", "[memry]").contains("load.toml:1:2: memry: found an unknown key"));
        let none = LoadConfig::parse("load.toml", "").unwrap_err().to_string();
        assert!(none.contains("port: found none, allowed 1 to"), "{none}");
        let twice = format!("{GOOD}{}", GOOD.split_once("\n\n").unwrap().1.replace("[1, 2]", "[3]"));
        let twice = LoadConfig::parse("load.toml", &twice).unwrap_err().to_string();
        assert!(twice.contains("port[1].device: found"), "{twice}");
    }
}
