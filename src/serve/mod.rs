//! `nfsplice serve`: puts the layers together as the configuration says and runs them until asked to stop.
//!
//! - `engine`: DPDK, what all cores share, a thread for each. `ports`: queues for each core. `core`: one core's loop.
//! - `board`: what the cores publish. `inquiries`: what they answer.
//! - `assemble`: the configuration's words into each layer's `Options`.
//! - `stores`: where the exports are kept. `state`: what outlives a restart.
//! - `claim`: one server per network device. `hugepages`: whether there are enough.
//! - `clock`: the one clock. `sleep`: how an idle core waits.
//!
//! The only room besides `shard` that sees every layer, and the only one that sees both them and the configuration.

#[cfg(feature = "dpdk")]
mod assemble;
#[cfg(feature = "dpdk")]
mod board;
#[cfg(feature = "dpdk")]
mod claim;
#[cfg(feature = "dpdk")]
mod clock;
#[cfg(feature = "dpdk")]
mod core;
#[cfg(feature = "dpdk")]
mod engine;
#[cfg(feature = "dpdk")]
mod hugepages;
#[cfg(feature = "dpdk")]
mod inquiries;
#[cfg(feature = "dpdk")]
mod ports;
#[cfg(feature = "dpdk")]
mod sleep;
#[cfg(feature = "dpdk")]
mod state;
#[cfg(feature = "dpdk")]
mod stores;

use std::path::Path;

use crate::control::config::{Config, Machine};

/// Serves `config`, which was read from `file` on `machine`, until a signal says stop.
///
/// # Errors
/// What kept the server from starting, or made it stop.
#[cfg(feature = "dpdk")]
pub fn run(config: Config, file: &Path, machine: Machine) -> anyhow::Result<()> {
    use crate::control::inquiry::Inquiries;
    use crate::control::logging::{self, Target};
    use crate::control::reload::{ExportRules, Reloader};
    use crate::control::signals::{self, Hangup, Stop, StopFlag};
    use crate::control::stats::StatsServer;
    use crate::control::threads::{self, Placement};
    use anyhow::{Context as _, anyhow};
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::sync::{Arc, mpsc};

    let level = logging::start(config.server.log_level, Target::of_this_process());
    if let Some(cpu) = config.cores.shared_cpu() {
        tracing::warn!(cpu, "two packet loops share a CPU: good for a trial, slow for anything else");
    }
    let rules = ExportRules::new(&config.exports);
    let mut reloader = Reloader::new(file, machine.clone(), &config, Arc::clone(&rules), move |new| level.set(new));
    let stop = StopFlag::default();
    let serving = Arc::new(AtomicBool::new(false));
    let is_serving = Arc::clone(&serving);
    let hurried = AtomicBool::new(false);
    signals::install(
        stop.clone(),
        Hangup::of_this_process(),
        move |request| match request {
            // DPDK's start cannot be interrupted, and a virtio-user port waits in it for its other end. Nobody is served yet,
            // and whatever has been taken until now (locks, memory, devices) the kernel takes back.
            _ if !is_serving.load(Ordering::Acquire) => {
                tracing::info!("stopped before it served");
                std::process::exit(0);
            }
            // What was acknowledged as stable is on the disk; what waits for a disk that does not answer was not.
            Stop::Now if hurried.swap(true, Ordering::Relaxed) => {
                tracing::warn!("ended as it is");
                std::process::exit(1);
            }
            Stop::Now => tracing::warn!("stopping at once: only writes under way to a disk are waited for; once more does not"),
            _ => tracing::info!("stopping: calls in progress are answered first; once more stops at once"),
        },
        move || reloader.reload_and_log(),
    )
    .context("cannot install the signal handlers")?;
    let state = state::StateDirectory::open(&config.server.state_dir)?;
    let _claims = config.ports.iter().map(|port| claim::claim(&port.device)).collect::<anyhow::Result<Vec<_>>>()?;

    let (started, start) = mpsc::sync_channel(1);
    let placement = Placement::Cpu(config.cores.engine[0] as usize);
    let off_engine = Placement::off_engine(&config.cores.engine, &machine.cpus);
    let seed = engine::Seed { config: config.clone(), machine, rules, state, stop: stop.clone() };
    let names = config.ports.iter().map(|port| port.device.name.clone()).collect();
    let (inquiries, mailboxes) = Inquiries::new(config.cores.engine.len(), names);
    let engine = threads::spawn("engine-0", placement, move || engine::run(seed, mailboxes, &started))?;
    let board = match start.recv() {
        Ok(Ok(board)) => board,
        Ok(Err(error)) => {
            let _ = engine.join();
            return Err(error);
        }
        Err(_) => {
            let _ = engine.join();
            return Err(anyhow!("the engine ended before it had started"));
        }
    };
    serving.store(true, Ordering::Release);
    let stats = match StatsServer::start(&config.server.stats_socket, &file.display().to_string(), board, inquiries, off_engine) {
        Ok(stats) => stats,
        Err(error) => {
            // Twice: at once.
            stop.request();
            stop.request();
            let _ = engine.join();
            return Err(error).context("cannot answer `nfsplice stats`");
        }
    };
    for export in &config.exports {
        tracing::info!(export = %export.name, id = export.id, "serving");
    }
    tracing::info!("ready");
    let ended = engine.join();
    drop(stats);
    ended.map_err(|_| anyhow!("the engine panicked"))?;
    tracing::info!("stopped");
    Ok(())
}

/// See the other one: this build has no data path.
#[cfg(not(feature = "dpdk"))]
pub fn run(_config: Config, _file: &Path, _machine: Machine) -> anyhow::Result<()> {
    anyhow::bail!("this build has no data path: it was made without the feature \"dpdk\"")
}
