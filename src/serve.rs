//! `nfsplice serve`: puts the layers together and runs them until asked to stop.

use crate::control::config::{Config, Machine};

/// Serves `config`, which was read from `file` on `machine`, until a signal says stop.
///
/// # Errors
/// What kept the server from starting, or made it stop.
pub fn run(_config: Config, _file: &std::path::Path, _machine: Machine) -> anyhow::Result<()> {
    anyhow::bail!("this build has no data path: it was made without the feature \"dpdk\"")
}
