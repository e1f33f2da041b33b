//! SIGINT, SIGTERM and SIGHUP as a process gets them: this test starts itself as a child and sends it real signals.

use std::io::{BufRead, BufReader, Lines, Write};
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Stdio};

use nfsplice::control::config::{Config, Machine};
use nfsplice::control::inquiry::Inquiries;
use nfsplice::control::metrics::LayoutBuilder;
use nfsplice::control::plane::ControlPlane;
use nfsplice::control::signals::{Hangup, Stop, StopFlag, install};
use nfsplice::control::stats;
use rustix::process::{Pid, Signal, kill_process};

const ROLE: &str = "NFSPLICE_TEST_SIGNALS_ROLE";
const FILE: &str = "NFSPLICE_TEST_SIGNALS_FILE";

/// In the child: tells on stdout what the handlers were called with, until it is told to stop now.
#[test]
fn child() {
    let hangup = match std::env::var(ROLE).as_deref() {
        Ok("drains") => Hangup::Drains,
        Ok("reloads") => Hangup::Reloads,
        Ok("serves") => return serve(),
        _ => return,
    };
    let flag = StopFlag::default();
    let tell = |word: &str| {
        let mut out = std::io::stdout().lock();
        writeln!(out, "told {word}").and_then(|()| out.flush()).unwrap();
    };
    install(flag.clone(), hangup, move |stop| tell(&format!("{stop:?}")), move || tell("Hangup")).unwrap();
    tell("ready");
    while flag.get() != Stop::Now {
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
}

/// In the child: a whole control plane, without a data path.
fn serve() {
    let file = std::path::PathBuf::from(std::env::var_os(FILE).unwrap());
    let machine = Machine::this();
    let config = Config::load(&file, Some(&machine)).unwrap();
    let plane =
        ControlPlane::start(&config, &file, &machine, LayoutBuilder::new().build(1), Inquiries::new(0, Vec::new()).0).unwrap();
    println!("told ready");
    let mut seen = 0;
    while plane.stop.get() != Stop::Drain {
        if let Some(exports) = plane.rules.changed(&mut seen) {
            println!("told read_only={}", exports[0].read_only);
        }
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    drop(plane);
    println!("told drained");
}

struct Server {
    child: Child,
    lines: Lines<BufReader<ChildStdout>>,
}

impl Server {
    fn start(role: &str) -> Self {
        Self::start_with(role, Path::new(""))
    }

    fn start_with(role: &str, file: &Path) -> Self {
        // The harness has threads from before `install`, which a server has not. Masks are inherited: give all of them what
        // `install` gives those that come after it.
        let mut command = Command::new("env");
        if role != "drains" {
            command.arg("--block-signal=HUP");
        }
        // A daemon has no controlling terminal, and a test may have one.
        command.arg("setsid");
        let mut child = command
            .arg(std::env::current_exe().unwrap())
            .args(["--exact", "child", "--nocapture", "--test-threads=1"])
            .env(ROLE, role)
            .env(FILE, file)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut server = Self { child, lines };
        assert_eq!(server.next(), "ready");
        server
    }

    /// Sends `signal` and gives back what the child says to it.
    fn says_to(&mut self, signal: Signal) -> String {
        let pid = Pid::from_child(&self.child);
        kill_process(pid, signal).unwrap();
        self.next()
    }

    fn next(&mut self) -> String {
        loop {
            let line = self.lines.next().expect("the child has gone").unwrap();
            if let Some((_, word)) = line.split_once("told ") {
                return word.to_owned();
            }
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn the_first_signal_drains_and_the_second_stops() {
    for (first, second) in [(Signal::INT, Signal::TERM), (Signal::TERM, Signal::TERM)] {
        let mut server = Server::start("reloads");
        assert_eq!(server.says_to(first), "Drain");
        assert_eq!(server.says_to(second), "Now");
        assert!(server.child.wait().unwrap().success());
    }
}

#[test]
fn a_daemon_reloads_on_sighup_as_often_as_it_is_asked() {
    let mut server = Server::start("reloads");
    assert_eq!(server.says_to(Signal::HUP), "Hangup");
    assert_eq!(server.says_to(Signal::HUP), "Hangup");
    assert_eq!(server.says_to(Signal::TERM), "Drain");
    assert_eq!(server.says_to(Signal::HUP), "Hangup");
    assert_eq!(server.says_to(Signal::TERM), "Now");
}

#[test]
fn a_server_in_a_terminal_drains_when_the_terminal_goes() {
    let mut server = Server::start("drains");
    assert_eq!(server.says_to(Signal::HUP), "Drain");
    assert_eq!(server.says_to(Signal::INT), "Now");
}

#[test]
fn a_serving_process_answers_stats_reloads_and_drains() {
    let folder = std::env::temp_dir().join(format!("nfsplice-plane-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let (file, socket) = (folder.join("a.toml"), folder.join("stats.sock"));
    let text = |read_only: bool| {
        format!(
            "[server]\nstats_socket = '{}'\n[[port]]\ndevice = 'net_tap0'\naddress = '10.77.0.2/24'\n\
             [[export]]\nname = '/m'\nstore = 'memory'\nread_only = {read_only}\n",
            socket.display()
        )
    };
    std::fs::write(&file, text(false)).unwrap();
    let mut server = Server::start_with("serves", &file);
    assert_eq!(server.next(), "read_only=false");
    assert_eq!(stats::fetch(&socket).unwrap().server.config, file.display().to_string());
    std::fs::write(&file, text(true)).unwrap();
    assert_eq!(server.says_to(Signal::HUP), "read_only=true");
    assert_eq!(server.says_to(Signal::TERM), "drained");
    assert!(server.child.wait().unwrap().success());
    assert!(!socket.exists());
    std::fs::remove_dir_all(&folder).unwrap();
}
