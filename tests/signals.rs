//! SIGINT, SIGTERM and SIGHUP as a process gets them: this test starts itself as a child and sends it real signals.

use std::io::{BufRead, BufReader, Lines, Write};
use std::process::{Child, ChildStdout, Command, Stdio};

use nfsplice::control::signals::{Hangup, Stop, StopFlag, install};
use rustix::process::{Pid, Signal, kill_process};

const ROLE: &str = "NFSPLICE_TEST_SIGNALS_ROLE";

/// In the child: tells on stdout what the handlers were called with, until it is told to stop now.
#[test]
fn child() {
    let hangup = match std::env::var(ROLE).as_deref() {
        Ok("drains") => Hangup::Drains,
        Ok("reloads") => Hangup::Reloads,
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

struct Server {
    child: Child,
    lines: Lines<BufReader<ChildStdout>>,
}

impl Server {
    fn start(role: &str) -> Self {
        // The harness has threads from before `install`, which a server has not. Masks are inherited: give all of them what
        // `install` gives those that come after it.
        let mut command = Command::new("env");
        if role == "reloads" {
            command.arg("--block-signal=HUP");
        }
        let mut child = command
            .arg(std::env::current_exe().unwrap())
            .args(["--exact", "child", "--nocapture", "--test-threads=1"])
            .env(ROLE, role)
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
