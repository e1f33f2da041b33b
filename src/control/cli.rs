//! The command line: what `nfsplice` is asked to do.
//!
//! Only the definition; `main` carries the commands out. Exit codes are [`Exit`].

use std::path::PathBuf;

use clap::{Parser, Subcommand};

use super::capture::{SECONDS_MAX, SNAPLEN_MAX};
use super::config::DEFAULT_STATS_SOCKET;
use super::load_cli::Load;

/// How the process ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    /// The command did what it was asked.
    Success = 0,
    /// Something failed while running: no such server, a port that does not start.
    Failure = 1,
    /// The command line or the configuration is wrong; nothing was started.
    Usage = 2,
}

impl From<Exit> for std::process::ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}

const AFTER_HELP: &str = "\
Examples:
  nfsplice check-config /etc/nfsplice/appliance.toml   Is the file right? Print every setting that will be used.
  nfsplice serve /etc/nfsplice/appliance.toml          Serve until SIGTERM or Ctrl-C.
  nfsplice stats                                       Counters of the running server.
  nfsplice stats --watch 5                             The same every 5 seconds, with rates.
  nfsplice stats --connections                         Every TCP connection, as `ss -ti` shows them.
  nfsplice capture net_tap0 --out a.pcapng             Ten seconds of a port's frames, for Wireshark.
  nfsplice stats --json | jq .counters                 For a monitoring system.
  nfsplice load --transport kernel 10.0.0.2:/export    How fast does that server answer?

A client mounts an export with:
  mount -t nfs -o vers=3,nolock 10.77.0.2:/export /mnt

Exit codes:
  0  done   1  failed while running   2  wrong command line or configuration, nothing was started";

/// A network file server (NFS version 3) with its own TCP/IP stack: it drives network cards directly through DPDK and sends
/// file data from its cache without copying it.
#[derive(Debug, Parser)]
#[command(name = "nfsplice", version, after_help = AFTER_HELP, arg_required_else_help = true)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The verbs.
#[derive(Debug, PartialEq, Subcommand)]
pub enum Command {
    /// Serve the exports of a configuration file until stopped.
    ///
    /// SIGTERM or Ctrl-C finishes the calls in progress and stops; a second one stops at once. SIGHUP reads the configuration
    /// again (in a terminal: stops, because the terminal is going away).
    Serve {
        /// The configuration file; config/appliance.toml explains every key.
        #[arg(value_name = "CONFIG.toml")]
        config: PathBuf,
    },
    /// Check a configuration file and print the effective configuration, every default filled in.
    ///
    /// Problems go to stderr, one a line: file, line, column, key, what was found, what is allowed.
    CheckConfig {
        /// The configuration file.
        #[arg(value_name = "CONFIG.toml")]
        config: PathBuf,
        /// The file is for another machine: do not look for its CPUs, network cards and directories here.
        #[arg(long)]
        elsewhere: bool,
    },
    /// Show the counters of a running server.
    Stats {
        /// The server's stats_socket.
        #[arg(long, value_name = "PATH", default_value = DEFAULT_STATS_SOCKET)]
        socket: PathBuf,
        /// One JSON object instead of text.
        #[arg(long)]
        json: bool,
        /// Repeat every so many seconds, counters as rates per second; stop with Ctrl-C.
        #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u32).range(1..=3600))]
        watch: Option<u32>,
        /// Every TCP connection instead of counters, with columns of `ss -ti`; with --json one object a line.
        #[arg(long, conflicts_with = "watch")]
        connections: bool,
    },
    /// Copy the frames of a port of the running server into a pcapng file.
    ///
    /// Frames are seen as the stack sees them: before the card cuts large segments and fills in checksums. The server does not
    /// wait for the capture; frames that find no room are counted. Ctrl-C ends it early.
    Capture {
        /// The port: its device as in the configuration, such as net_tap0 or 0000:03:00.0, or its number, from 0.
        port: String,
        /// The file to write.
        #[arg(long, value_name = "FILE.pcapng")]
        out: PathBuf,
        /// How long.
        #[arg(long, default_value = "10", value_parser = clap::value_parser!(u32).range(1..=i64::from(SECONDS_MAX)))]
        seconds: u32,
        /// Bytes of each frame.
        #[arg(long, default_value = "262144", value_parser = clap::value_parser!(u32).range(64..=i64::from(SNAPLEN_MAX)))]
        snaplen: u32,
        /// Only TCP and UDP with this port on either side.
        #[arg(long, value_name = "PORT", value_parser = clap::value_parser!(u16).range(1..))]
        only_port: Option<u16>,
        /// The server's stats_socket.
        #[arg(long, value_name = "PATH", default_value = DEFAULT_STATS_SOCKET)]
        socket: PathBuf,
    },
    /// Put load on an NFS server, this one or another, and measure how it answers.
    Load(Box<Load>),
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_definition_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn verbs_and_options_are_read() {
        let parse = |args: &[&str]| Cli::try_parse_from(args).map(|cli| cli.command);
        let serve = Command::Serve { config: "a.toml".into() };
        assert_eq!(parse(&["nfsplice", "serve", "a.toml"]).ok(), Some(serve));
        let check = Command::CheckConfig { config: "a.toml".into(), elsewhere: true };
        assert_eq!(parse(&["nfsplice", "check-config", "--elsewhere", "a.toml"]).ok(), Some(check));
        let stats = Command::Stats { socket: "/run/nfsplice.sock".into(), json: true, watch: Some(5), connections: false };
        assert_eq!(parse(&["nfsplice", "stats", "--json", "--watch", "5"]).ok(), Some(stats));
        assert!(parse(&["nfsplice", "stats", "--watch", "0"]).is_err());
        assert!(parse(&["nfsplice", "stats", "--watch", "5", "--connections"]).is_err());
        let capture = Command::Capture {
            port: "net_tap0".into(),
            out: "a.pcapng".into(),
            seconds: 3,
            snaplen: 128,
            only_port: Some(2049),
            socket: DEFAULT_STATS_SOCKET.into(),
        };
        let words =
            ["nfsplice", "capture", "net_tap0", "--out", "a.pcapng", "--seconds", "3", "--snaplen", "128", "--only-port", "2049"];
        assert_eq!(parse(&words).ok(), Some(capture));
        assert!(parse(&["nfsplice", "serve"]).is_err());
        let Ok(Command::Load(load)) = parse(&["nfsplice", "load", "10.0.0.2:/e", "--depth", "4", "--cores", "1,2"]) else {
            panic!("a run")
        };
        assert_eq!((load.run.depth, load.run.cores, load.action), (Some(4), vec![1, 2], None));
        let Ok(Command::Load(load)) = parse(&["nfsplice", "load", "compare", "a.json", "b.json"]) else { panic!("a comparison") };
        assert!(load.action.is_some());
        assert!(parse(&["nfsplice", "load"]).is_err());
    }

    #[test]
    fn wrong_usage_ends_with_the_documented_code() {
        let error = Cli::try_parse_from(["nfsplice", "server"]).map(|_| ()).unwrap_err();
        assert_eq!(error.exit_code(), Exit::Usage as i32);
    }
}
