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
