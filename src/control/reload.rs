//! Reading the configuration again while serving: SIGHUP.
//!
//! A file with any problem changes nothing. Otherwise what can change at run time does: the log level, and of each export its
//! clients, read_only, squash, anonuid and anongid. Everything else (ports, cores, memory, limits, exports that come, go or move)
//! is named in the log as waiting for a restart, and the running values stay.
//!
//! The cores see new export rules through [`ExportRules`]: one atomic load per look, and the list only when it has changed.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use super::config::{Config, Export, LogLevel, Machine, Problems, own_networks};

/// The exports' rules as they are now, shared by all cores.
#[derive(Debug)]
pub struct ExportRules {
    generation: AtomicU64,
    current: Mutex<Arc<[Export]>>,
}

impl ExportRules {
    /// Starts with the rules of the configuration file.
    pub fn new(exports: &[Export]) -> Arc<Self> {
        Arc::new(Self { generation: AtomicU64::new(1), current: Mutex::new(exports.into()) })
    }

    /// The exports, when they have changed since `seen`, which is brought up to date. Start with 0 to get them for the first
    /// time. The number, order, names, ids and stores of the exports are always those of the start.
    pub fn changed(&self, seen: &mut u64) -> Option<Arc<[Export]>> {
        let generation = self.generation.load(Ordering::Acquire);
        if generation == *seen {
            return None;
        }
        *seen = generation;
        Some(Arc::clone(&self.current.lock().unwrap_or_else(PoisonError::into_inner)))
    }

    fn set(&self, exports: &[Export]) {
        *self.current.lock().unwrap_or_else(PoisonError::into_inner) = exports.into();
        self.generation.fetch_add(1, Ordering::Release);
    }
}

/// What a new configuration changes, as `key: old -> new`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Changes {
    /// In effect now.
    pub applied: Vec<String>,
    /// In effect after a restart.
    pub after_restart: Vec<String>,
}

/// Reads the file again when asked.
pub struct Reloader {
    file: PathBuf,
    machine: Machine,
    running: Config,
    rules: Arc<ExportRules>,
    set_level: Box<dyn Fn(LogLevel) + Send>,
}

impl Reloader {
    /// For a server that runs `config`, which was read from `file` on `machine`. `set_level` changes the log's level.
    pub fn new(
        file: &Path,
        machine: Machine,
        config: &Config,
        rules: Arc<ExportRules>,
        set_level: impl Fn(LogLevel) + Send + 'static,
    ) -> Self {
        Self { file: file.to_owned(), machine, running: config.clone(), rules, set_level: Box::new(set_level) }
    }

    /// Reads the file and applies what can be applied.
    ///
    /// # Errors
    /// What is wrong with the file; nothing has changed then.
    pub fn reload(&mut self) -> Result<Changes, Problems> {
        let wanted = Config::load(&self.file, Some(&self.machine))?;
        let next = merge(&self.running, &wanted);
        let changes = Changes { applied: differences(&self.running, &next), after_restart: differences(&next, &wanted) };
        if next.server.log_level != self.running.server.log_level {
            (self.set_level)(next.server.log_level);
        }
        if next.exports != self.running.exports {
            self.rules.set(&next.exports);
        }
        self.running = next;
        Ok(changes)
    }

    /// [`Reloader::reload`], told in the log.
    pub fn reload_and_log(&mut self) {
        match self.reload() {
            Err(problems) => {
                for problem in &problems.0 {
                    tracing::error!("{problem}");
                }
                tracing::error!("the configuration was not reloaded: the running one stays");
            }
            Ok(changes) => {
                for change in &changes.applied {
                    tracing::info!("reloaded {change}");
                }
                for change in &changes.after_restart {
                    tracing::warn!("needs a restart: {change}");
                }
                if changes == Changes::default() {
                    tracing::info!("the configuration has not changed");
                }
            }
        }
    }
}

/// `running` with those values of `wanted` that can change at run time. An export is the same one when its id, name and
/// store are.
fn merge(running: &Config, wanted: &Config) -> Config {
    let mut next = running.clone();
    next.server.log_level = wanted.server.log_level;
    for export in &mut next.exports {
        let same = |other: &&Export| (other.id, &other.name, &other.store) == (export.id, &export.name, &export.store);
        if let Some(other) = wanted.exports.iter().find(same) {
            *export = other.clone();
            if export.clients_by_default {
                // The ports stay as they are until a restart, and with them whose networks are the server's own.
                export.clients = own_networks(running.ports.iter());
            }
        }
    }
    next
}

fn differences(from: &Config, to: &Config) -> Vec<String> {
    let (from, to) = (settings(from), settings(to));
    let keys = from.keys().chain(to.keys().filter(|key| !from.contains_key(*key)));
    let value =
        |settings: &BTreeMap<String, String>, key: &String| settings.get(key).map_or("nothing", String::as_str).to_owned();
    keys.filter(|key| from.get(*key) != to.get(*key))
        .map(|key| format!("{key}: {} -> {}", value(&from, key), value(&to, key)))
        .collect()
}

/// Every setting by its path; ports and exports by what names them, so that their order in the file does not matter.
fn settings(config: &Config) -> BTreeMap<String, String> {
    let mut settings = BTreeMap::new();
    let mut table = String::new();
    for line in config.to_toml().lines() {
        if line.starts_with('[') {
            table = line.trim_matches(['[', ']']).to_owned();
        } else if let Some((key, value)) = line.split_once(" = ") {
            if (table.as_str(), key) == ("port", "device") || (table.as_str(), key) == ("export", "name") {
                table = format!("{table}[{value}]");
            }
            settings.insert(format!("{table}.{key}"), value.to_owned());
        }
    }
    settings
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicUsize;

    const FILE: &str = "
[[port]]
device = 'net_tap0'
address = '10.77.0.2/24'
[[export]]
name = '/a'
store = 'memory'
[[export]]
name = '/b'
store = 'memory'
";

    struct Server {
        file: PathBuf,
        reloader: Reloader,
        rules: Arc<ExportRules>,
        level: Arc<AtomicUsize>,
    }

    impl Server {
        fn start(name: &str) -> Self {
            let file = std::env::temp_dir().join(format!("nfsplice-reload-{name}-{}.toml", std::process::id()));
            std::fs::write(&file, FILE).unwrap();
            let machine = Machine::this();
            let config = Config::load(&file, Some(&machine)).unwrap();
            let rules = ExportRules::new(&config.exports);
            let level = Arc::new(AtomicUsize::new(99));
            let seen = Arc::clone(&level);
            let set_level = move |level: LogLevel| seen.store(level as usize, Ordering::Relaxed);
            let reloader = Reloader::new(&file, machine, &config, Arc::clone(&rules), set_level);
            Self { file, reloader, rules, level }
        }

        fn reload(&mut self, text: &str) -> Result<Changes, Problems> {
            std::fs::write(&self.file, text).unwrap();
            self.reloader.reload()
        }
    }

    impl Drop for Server {
        fn drop(&mut self) {
            let _ = std::fs::remove_file(&self.file);
        }
    }

    #[test]
    fn the_cores_see_new_rules_once() {
        let mut server = Server::start("rules");
        let mut seen = 0;
        let first = server.rules.changed(&mut seen).unwrap();
        assert!(!first[0].read_only);
        assert!(server.rules.changed(&mut seen).is_none());
        let text = FILE.replace("name = '/a'", "name = '/a'\nread_only = true\nclients = ['10.77.0.9']");
        let changes = server.reload(&text).unwrap();
        let expected =
            ["export[\"/a\"].clients: [\"10.77.0.0/24\"] -> [\"10.77.0.9/32\"]", "export[\"/a\"].read_only: false -> true"];
        assert_eq!(changes, Changes { applied: expected.map(str::to_owned).to_vec(), after_restart: vec![] });
        let second = server.rules.changed(&mut seen).unwrap();
        assert!(second[0].read_only && !second[0].allows("10.77.0.1".parse().unwrap()));
        assert!(!second[1].read_only);
        assert!(server.rules.changed(&mut seen).is_none());
        assert_eq!(server.reload(&text).unwrap(), Changes::default());
        assert!(server.rules.changed(&mut seen).is_none());
    }

    #[test]
    fn what_cannot_change_is_told_and_stays() {
        let mut server = Server::start("restart");
        let text = FILE
            .replace("name = '/b'\nstore = 'memory'", "name = '/c'\nstore = 'memory'\nid = 9")
            .replace("address", "mtu = 9000\naddress");
        let text = format!("[server]\nlog_level = 'debug'\n[limits]\nconnections_max = 300\n{text}");
        let changes = server.reload(&text).unwrap();
        assert_eq!(changes.applied, ["server.log_level: \"info\" -> \"debug\""]);
        assert_eq!(server.level.load(Ordering::Relaxed), LogLevel::Debug as usize);
        for expected in [
            "limits.connections_max: 4096 -> 300",
            "port[\"net_tap0\"].mtu: 1500 -> 9000",
            "export[\"/b\"].name: \"/b\" -> nothing",
            "export[\"/c\"].id: nothing -> 9",
        ] {
            assert!(changes.after_restart.iter().any(|change| change == expected), "{expected}: {changes:?}");
        }
        let mut seen = 1;
        assert!(server.rules.changed(&mut seen).is_none(), "/b is still served");
        // Asked again, it says the same again: it is still waiting for a restart.
        assert_eq!(server.reload(&text).unwrap(), Changes { applied: vec![], after_restart: changes.after_restart });
    }

    /// Otherwise an address for the next start locks out everybody who has an export mounted now.
    #[test]
    fn whom_an_export_is_for_by_default_stays_with_the_ports() {
        let mut server = Server::start("default-clients");
        let changes = server.reload(&FILE.replace("10.77.0.2", "10.88.0.2")).unwrap();
        assert_eq!(changes.applied, [""; 0]);
        assert!(changes.after_restart.iter().any(|change| change.starts_with("export[\"/a\"].clients")), "{changes:?}");
        let mut seen = 1;
        assert!(server.rules.changed(&mut seen).is_none());
        // What is named applies.
        let text = FILE.replace("10.77.0.2", "10.88.0.2").replace("name = '/a'", "name = '/a'\nclients = ['10.88.0.9']");
        let changes = server.reload(&text).unwrap();
        assert_eq!(changes.applied, ["export[\"/a\"].clients: [\"10.77.0.0/24\"] -> [\"10.88.0.9/32\"]"]);
    }

    #[test]
    fn a_broken_file_changes_nothing() {
        let mut server = Server::start("broken");
        let text = format!("[server]\nlog_level = 'debug'\n[limits]\nconnections_max = 0\n{FILE}");
        let problems = server.reload(&text).unwrap_err().to_string();
        assert!(problems.ends_with(":4:19: limits.connections_max: found 0, allowed 1..=1048576"), "{problems}");
        assert_eq!(server.level.load(Ordering::Relaxed), 99);
    }

    #[test]
    fn the_order_of_exports_in_the_file_does_not_matter() {
        let mut server = Server::start("order");
        let (head, exports) = FILE.split_once("[[export]]").unwrap();
        let (a, b) = exports.split_once("[[export]]").unwrap();
        assert_eq!(server.reload(&format!("{head}[[export]]{b}[[export]]{a}")).unwrap(), Changes::default());
    }
}
