//! The control plane of a running server in one piece: log, signals, reload, stats socket.
//!
//! Start it before EAL, on the main thread: signals are masked for the threads that come after it, and its own threads should
//! not inherit the one CPU that EAL pins its caller to.

use std::io;
use std::path::Path;
use std::sync::Arc;

use super::config::{Config, Machine};
use super::inquiry::Inquiries;
use super::logging::{self, Target};
use super::metrics::Board;
use super::reload::{ExportRules, Reloader};
use super::signals::{self, Hangup, Stop, StopFlag};
use super::stats::StatsServer;
use super::threads::Placement;

/// What the data path needs from the control plane. The stats socket goes when this is dropped.
#[derive(Debug)]
pub struct ControlPlane {
    /// Whether to drain or to stop: for each core's loop to read.
    pub stop: StopFlag,
    /// The exports' rules as the last reload left them.
    pub rules: Arc<ExportRules>,
    /// Where the cores publish their counters: [`Board::publisher`].
    pub board: Arc<Board>,
    _stats: StatsServer,
}

impl ControlPlane {
    /// Starts everything for `config`, which was read from `file` on `machine`. Once in a process.
    ///
    /// # Errors
    /// When the stats socket is taken or cannot be bound, or a thread cannot be made.
    pub fn start(config: &Config, file: &Path, machine: &Machine, board: Arc<Board>, inquiries: Inquiries) -> io::Result<Self> {
        let level = logging::start(config.server.log_level, Target::of_this_process());
        let rules = ExportRules::new(&config.exports);
        let stop = StopFlag::default();
        let set_level = move |wanted| level.set(wanted);
        let mut reloader = Reloader::new(file, machine.clone(), config, Arc::clone(&rules), set_level);
        // Before any thread that lives on: with a reload on SIGHUP, no thread may take that signal.
        let on_stop = |stop| match stop {
            Stop::Now => tracing::warn!("stopping at once"),
            _ => tracing::info!("draining; another signal stops at once"),
        };
        signals::install(stop.clone(), Hangup::of_this_process(), on_stop, move || reloader.reload_and_log())?;
        let placement = Placement::off_engine(&config.cores.engine, &machine.cpus);
        let stats = StatsServer::start(
            &config.server.stats_socket,
            &file.display().to_string(),
            Arc::clone(&board),
            inquiries,
            placement,
        )?;
        Ok(Self { stop, rules, board, _stats: stats })
    }
}
