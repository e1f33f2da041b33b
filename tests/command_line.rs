//! The binary from outside: exit codes, what goes to stdout and what to stderr.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

fn nfsplice(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_nfsplice")).args(arguments).current_dir(env!("CARGO_MANIFEST_DIR")).output().unwrap()
}

fn told(output: &Output) -> (i32, String, String) {
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    (output.status.code().unwrap(), text(&output.stdout), text(&output.stderr))
}

struct File(PathBuf);

impl File {
    fn new(name: &str, text: &str) -> Self {
        let path = std::env::temp_dir().join(format!("nfsplice-cli-{name}-{}.toml", std::process::id()));
        std::fs::write(&path, text).unwrap();
        Self(path)
    }
    fn path(&self) -> &str {
        self.0.to_str().unwrap()
    }
}

impl Drop for File {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

#[test]
fn check_config_prints_a_configuration_that_checks_again() {
    let (code, first, err) = told(&nfsplice(&["check-config", "--elsewhere", "config/appliance.toml"]));
    assert_eq!((code, err.as_str()), (0, ""));
    assert!(first.contains("\nread_bytes_max = 1048576\n"), "{first}");
    let file = File::new("again", &first);
    let (code, second, err) = told(&nfsplice(&["check-config", "--elsewhere", file.path()]));
    assert_eq!((code, second, err), (0, first, String::new()));
}

#[test]
fn a_wrong_configuration_ends_with_2_and_says_why_on_stderr() {
    let text =
        "[[port]]\ndevice = 'net_tap0'\naddress = '10.77.0.2/24'\nmtu = 99999\n[[export]]\nname = '/e'\nstore = 'memory'\n";
    let file = File::new("wrong", text);
    for verb in ["check-config", "serve"] {
        let (code, out, err) = told(&nfsplice(&[verb, file.path()]));
        assert_eq!((code, out.as_str()), (2, ""));
        assert_eq!(err, format!("{}:4:7: port[0].mtu: found 99999, allowed 576..=9702\n", file.path()));
    }
    let (code, _, err) = told(&nfsplice(&["serve", "/nonexistent/a.toml"]));
    assert_eq!((code, err.as_str()), (2, "/nonexistent/a.toml: cannot be read: No such file or directory (os error 2)\n"));
}

#[test]
fn unless_told_otherwise_a_configuration_is_for_this_machine() {
    let text = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("config/tap.toml")).unwrap();
    let file = File::new("here", &text.replace("./export", "/nonexistent/export"));
    assert_eq!(nfsplice(&["check-config", "--elsewhere", file.path()]).status.code(), Some(0));
    let (code, _, err) = told(&nfsplice(&["check-config", file.path()]));
    assert_eq!(code, 2);
    assert!(err.contains("export[0].path: found \"/nonexistent/export\": No such file or directory"), "{err}");
}

#[test]
fn stats_without_a_server_fails_with_1() {
    let (code, out, err) = told(&nfsplice(&["stats", "--socket", "/nonexistent/s.sock"]));
    assert_eq!((code, out.as_str()), (1, ""));
    assert!(err.starts_with("nfsplice: /nonexistent/s.sock: no server has this stats_socket"), "{err}");
}

#[test]
fn load_refuses_what_makes_no_sense_with_2_and_says_what_is_allowed() {
    let (code, out, err) = told(&nfsplice(&["load", "--transport", "kernel", "127.0.0.1:/e", "--depth", "0"]));
    assert_eq!((code, out.as_str(), err.as_str()), (2, "", "nfsplice load: --depth: found 0, allowed 1..=4096\n"));
    let (code, _, err) = told(&nfsplice(&["load", "127.0.0.1:/e", "--workload", "reed"]));
    assert!(code == 2 && err.contains("--workload: found \"reed\", allowed one of null, getattr"), "{err}");
    let file = File::new("load", "[[port]]\ndevice = 'net_null0'\naddress = '10.77.0.1/24'\ncors = [0]\n");
    let (code, _, err) = told(&nfsplice(&["load", "--config", file.path(), "127.0.0.1:/e"]));
    assert_eq!(code, 2);
    let expected =
        format!("{}:4:1: port[0].cors: found an unknown key, allowed one of this table's keys; did you mean cores?", file.path());
    assert!(err.contains(&expected), "{err}");
    let script = File::new("script", "null\nread 99 0 4k\n");
    let (code, _, err) = told(&nfsplice(&["load", "--transport", "kernel", "127.0.0.1:/e", "--script", script.path()]));
    assert_eq!(code, 2);
    assert!(err.contains(&format!("{}:2: found \"read 99 0 4k\", allowed a file below 16", script.path())), "{err}");
    let (code, _, err) = told(&nfsplice(&["load", "compare", "/nonexistent/a.json", "/nonexistent/b.json"]));
    assert!(code == 2 && err.starts_with("nfsplice load compare: /nonexistent/a.json: "), "{err}");
}

#[test]
fn load_without_a_server_fails_with_1() {
    let words = ["load", "--transport", "kernel", "--timeout", "2s", "--nfs-port", "1", "--mount-port", "1", "127.0.0.1:/e"];
    let (code, out, err) = told(&nfsplice(&words));
    assert_eq!((code, out.as_str()), (1, ""));
    assert!(err.contains("nfsplice load: MOUNT: 127.0.0.1:1 refused or closed the connection"), "{err}");
}

#[test]
fn help_and_version_are_on_stdout_and_wrong_usage_is_2() {
    let (code, out, _) = told(&nfsplice(&["--help"]));
    assert_eq!(code, 0);
    for word in ["serve", "check-config", "stats", "Examples:", "Exit codes:"] {
        assert!(out.contains(word), "{word}: {out}");
    }
    let (code, out, _) = told(&nfsplice(&["--version"]));
    assert_eq!((code, out), (0, format!("nfsplice {}\n", env!("CARGO_PKG_VERSION"))));
    assert_eq!(nfsplice(&[]).status.code(), Some(2));
    assert_eq!(nfsplice(&["serve"]).status.code(), Some(2));
    assert_eq!(nfsplice(&["stats", "--watch", "0"]).status.code(), Some(2));
}
