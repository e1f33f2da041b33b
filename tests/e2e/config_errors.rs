//! Wrong configurations: the exit code is not 0, and the message names the file, the line, the key, what was found and what is allowed.

use std::process::Command;
use std::time::Duration;

use anyhow::{Result, bail, ensure};

use crate::bed::Bed;
use crate::process::{self, TempDir};
use crate::report::Report;
use crate::server::{Setup, binary};
use crate::standin;

const LIMIT: Duration = Duration::from_secs(10);

/// One edit of a good file: `find` is replaced by `put`; the message has to hold the line of `put` and all of `says`.
struct Wrong {
    name: &'static str,
    find: &'static str,
    put: &'static str,
    says: &'static [&'static str],
}

const WRONG: &[Wrong] = &[
    Wrong { name: "unknown_key", find: "log_level = \"info\"", put: "log_levle = \"info\"", says: &["log_levle", "log_level"] },
    Wrong { name: "unknown_section", find: "[memory]", put: "[memry]", says: &["memry", "memory"] },
    Wrong { name: "unknown_key_in_a_port", find: "queues = 1", put: "queue = 1", says: &["queue", "queues"] },
    Wrong { name: "mtu_not_a_number", find: "mtu = 1500", put: "mtu = \"big\"", says: &["mtu", "big"] },
    Wrong { name: "mtu_too_large", find: "mtu = 1500", put: "mtu = 70000", says: &["mtu", "70000"] },
    Wrong { name: "mtu_too_small", find: "mtu = 1500", put: "mtu = 60", says: &["mtu", "60"] },
    Wrong { name: "mtu_negative", find: "mtu = 1500", put: "mtu = -1", says: &["mtu", "-1"] },
    Wrong {
        name: "address_with_a_bad_prefix",
        find: "address = \"10.77.0.2/24\"",
        put: "address = \"10.77.0.2/33\"",
        says: &["address", "10.77.0.2/33"],
    },
    Wrong {
        name: "address_without_a_prefix",
        find: "address = \"10.77.0.2/24\"",
        put: "address = \"10.77.0.2\"",
        says: &["address", "10.77.0.2"],
    },
    Wrong {
        name: "address_of_five_numbers",
        find: "address = \"10.77.0.2/24\"",
        put: "address = \"10.77.0.2.1/24\"",
        says: &["address", "10.77.0.2.1/24"],
    },
    Wrong {
        name: "gateway_outside_the_network",
        find: "queues = 1",
        put: "gateway = \"10.78.0.1\"",
        says: &["gateway", "10.78.0.1", "10.77.0"],
    },
    Wrong {
        name: "mac_too_short",
        find: "mac = \"02:00:0a:4d:00:02\"",
        put: "mac = \"02:00:0a:4d:00\"",
        says: &["mac", "02:00:0a:4d:00"],
    },
    Wrong {
        name: "mac_of_a_group",
        find: "mac = \"02:00:0a:4d:00:02\"",
        put: "mac = \"01:00:5e:00:00:02\"",
        says: &["mac", "01:00:5e:00:00:02"],
    },
    Wrong { name: "no_queues", find: "queues = 1", put: "queues = 0", says: &["queues", "0"] },
    Wrong {
        name: "squash_unknown",
        find: "squash = \"none\"",
        put: "squash = \"most\"",
        says: &["squash", "most", "none", "root", "all"],
    },
    Wrong {
        name: "transmit_unknown",
        find: "transmit = \"splice\"",
        put: "transmit = \"teleport\"",
        says: &["transmit", "teleport", "splice", "copy"],
    },
    Wrong {
        name: "log_level_unknown",
        find: "log_level = \"info\"",
        put: "log_level = \"loud\"",
        says: &["log_level", "loud", "info"],
    },
    Wrong {
        name: "client_network_bad",
        find: "clients = [\"10.77.0.0/24\"]",
        put: "clients = [\"10.77.0.0/240\"]",
        says: &["clients", "10.77.0.0/240"],
    },
    Wrong {
        name: "export_path_missing",
        find: "/export\"\nread_only",
        put: "/nowhere\"\nread_only",
        says: &["path", "/nowhere"],
    },
    Wrong {
        name: "export_path_is_a_file",
        find: "/export\"\nread_only",
        put: "/plain_file\"\nread_only",
        says: &["path", "/plain_file", "directory"],
    },
    Wrong {
        name: "export_name_without_a_slash",
        find: "name = \"/export\"",
        put: "name = \"export\"",
        says: &["name", "export", "/"],
    },
    Wrong { name: "read_only_not_a_boolean", find: "read_only = false", put: "read_only = \"no\"", says: &["read_only", "no"] },
    Wrong { name: "block_not_a_power_of_two", find: "block_kib = 64", put: "block_kib = 63", says: &["block_kib", "63"] },
    Wrong {
        name: "page_cache_of_nothing",
        find: "page_cache_mib = 128",
        put: "page_cache_mib = 0",
        says: &["page_cache_mib", "0"],
    },
    Wrong { name: "no_io_threads", find: "io_threads = 2", put: "io_threads = 0", says: &["io_threads", "0"] },
    Wrong { name: "engine_core_missing", find: "engine = [0]", put: "engine = [4095]", says: &["engine", "4095"] },
    Wrong {
        name: "unknown_congestion_control",
        find: "[memory]",
        put: "[tcp]\ncongestion = \"bbr\"\n[memory]",
        says: &["tcp.congestion", "bbr", "cubic"],
    },
    Wrong {
        name: "dctcp_without_ecn",
        find: "[memory]",
        put: "[tcp]\ncongestion = \"dctcp\"\necn = \"off\"\n[memory]",
        says: &["tcp.ecn", "off", "dctcp"],
    },
    Wrong { name: "toml_syntax", find: "[cores]", put: "[cores", says: &[] },
    Wrong { name: "key_twice", find: "mtu = 1500", put: "mtu = 1500\nmtu = 9000", says: &["mtu"] },
    Wrong {
        name: "two_ports_with_one_address",
        find: "tso = \"auto\"",
        put: "tso = \"auto\"\n[[port]]\ndevice = \"net_tap1,iface=nfs1\"\naddress = \"10.77.0.2/24\"",
        says: &["address", "10.77.0.2"],
    },
    Wrong {
        name: "two_ports_on_one_device",
        find: "tso = \"auto\"",
        put: "tso = \"auto\"\n[[port]]\ndevice = \"net_tap0,iface=nfs0\"\naddress = \"10.78.0.2/24\"",
        says: &["device", "net_tap0"],
    },
    Wrong {
        name: "two_exports_with_one_name",
        find: "squash = \"none\"",
        put: "squash = \"none\"\n[[export]]\nname = \"/export\"\nstore = \"memory\"",
        says: &["name", "/export"],
    },
    Wrong {
        name: "export_without_a_store",
        find: "squash = \"none\"",
        put: "squash = \"none\"\n[[export]]\nname = \"/other\"",
        says: &["path", "store"],
    },
    Wrong {
        name: "export_with_two_stores",
        find: "name = \"/export\"",
        put: "name = \"/export\"\nstore = \"memory\"",
        says: &["path", "store"],
    },
];

pub fn run(report: &mut Report) {
    for wrong in WRONG {
        report.case(wrong.name, || refused(wrong));
    }
    report.case("file_missing", || {
        let said = run_failing(&["check-config", "/nonexistent/nfsplice.toml"])?;
        says_all(&said, &["/nonexistent/nfsplice.toml"])
    });
    report.case("file_not_utf8", || {
        let dir = TempDir::new("config-utf8")?;
        let path = dir.path().join("bad.toml");
        std::fs::write(&path, b"[server]\nlog_level = \"\xff\xfe\"\n")?;
        says_all(&run_failing(&["check-config", &path.display().to_string()])?, &["bad.toml"])
    });
    report.case("good_file_is_shown", good_file);
    report.case("second_server_on_the_same_configuration", || second_server(false));
    report.case("second_server_on_the_same_device", || second_server(true));
}

/// Runs the binary, which has to fail, and gives what it said.
fn run_failing(arguments: &[&str]) -> Result<String> {
    standin::only_nfsplice()?;
    let mut command = Command::new(binary()?);
    command.args(arguments);
    let output = process::output(command, LIMIT)?;
    let said = output.text() + &output.stderr;
    match output.status.code() {
        Some(0) => bail!("accepted: {said}"),
        Some(101) | None => bail!("died with {}: {said}", output.status),
        Some(_) => Ok(said),
    }
}

fn says_all(said: &str, needles: &[&str]) -> Result<()> {
    for needle in needles {
        ensure!(said.contains(needle), "the message does not say \"{needle}\":\n{said}");
    }
    Ok(())
}

fn refused(wrong: &Wrong) -> Result<()> {
    standin::only_nfsplice()?;
    let dir = TempDir::new(wrong.name)?;
    std::fs::create_dir_all(dir.path().join("export"))?;
    std::fs::write(dir.path().join("plain_file"), "")?;
    let good = Setup::default().to_toml(dir.path());
    ensure!(good.contains(wrong.find), "the good file has no {:?}", wrong.find);
    let bad = good.replacen(wrong.find, wrong.put, 1);
    let path = dir.path().join("wrong.toml");
    std::fs::write(&path, &bad)?;
    let path = path.display().to_string();
    // The line of the edit's last line: for a repeated section, a line inside the second one.
    let first = bad[..bad.find(wrong.put).unwrap_or(0)].lines().count().max(1);
    let lines = first..=first + wrong.put.lines().count() + 1;
    for verb in ["check-config", "serve"] {
        let said = run_failing(&[verb, &path])?;
        says_all(&said, &["wrong.toml"])?;
        says_all(&said, wrong.says)?;
        let named = lines.clone().any(|line| said.contains(&format!(":{line}")) || said.contains(&format!("line {line}")));
        ensure!(named, "the message names no line of {lines:?}:\n{said}");
    }
    Ok(())
}

fn good_file() -> Result<()> {
    standin::only_nfsplice()?;
    let dir = TempDir::new("good")?;
    std::fs::create_dir_all(dir.path().join("export"))?;
    let path = dir.path().join("good.toml");
    std::fs::write(&path, Setup::default().to_toml(dir.path()))?;
    let mut command = Command::new(binary()?);
    command.arg("check-config").arg(&path);
    let shown = process::run(command, LIMIT)?.text();
    says_all(&shown, &["10.77.0.2/24", "mtu", "1500", "squash", "none"])
}

/// What is taken already is refused with a message, and the server that has it goes on to serve.
fn second_server(own_state: bool) -> Result<()> {
    standin::only_nfsplice()?;
    let bed = Bed::new(Setup::default())?;
    let second = bed.folder().join("second");
    std::fs::create_dir_all(second.join("export"))?;
    std::fs::create_dir_all(second.join("state"))?;
    let config = second.join("nfsplice.toml");
    std::fs::write(&config, bed.setup.to_toml(if own_state { &second } else { bed.folder() }))?;
    let mut command = bed.net.command("timeout");
    command.arg("5").arg(binary()?).arg("serve").arg(&config);
    let output = process::output(command, LIMIT)?;
    let said = output.text() + &output.stderr;
    ensure!(
        !matches!(output.status.code(), Some(0 | 101 | 124) | None),
        "the second server ended with {}:\n{said}",
        output.status
    );
    says_all(&said, if own_state { &["another server", "nfs0"] } else { &["another server", "state"] })?;
    bed.rpc()?.null()?;
    bed.finish()
}
