//! The command line: serve, check-config, stats, load.

use std::io::{Read as _, Write as _};
use std::net::Shutdown;
use std::path::Path;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use clap::Parser as _;
use mimalloc::MiMalloc;
use nfsplice::control::capture::{self, Wanted};
use nfsplice::control::cli::{Cli, Command, Exit};
use nfsplice::control::config::{Config, Machine, Problems};
use nfsplice::control::{connections, report, stats};

/// The allocator of everything outside the data path, which does not allocate: a server runs for months and should not fragment.
#[global_allocator]
static GLOBAL: MiMalloc = MiMalloc;

fn main() -> ExitCode {
    let cli = Cli::parse();
    let exit = match cli.command {
        Command::Serve { config } => serve(&config),
        Command::CheckConfig { config, elsewhere } => check_config(&config, elsewhere),
        Command::Stats { socket, json, connections: true, .. } => show_connections(&socket, json),
        Command::Stats { socket, json, watch, .. } => show_stats(&socket, json, watch),
        Command::Capture { port, out, seconds, snaplen, only_port, socket } => {
            capture_frames(&socket, &Wanted { port, seconds, snaplen, transport_port: only_port }, &out)
        }
        Command::Load(load) => nfsplice::load::run(&load),
    };
    exit.into()
}

fn serve(file: &Path) -> Exit {
    // The modes of new files come from the clients, which have applied their users' umasks already.
    rustix::process::umask(rustix::fs::Mode::empty());
    // Before EAL starts: it pins this thread to one CPU.
    let machine = Machine::this();
    match Config::load(file, Some(&machine)) {
        Err(problems) => refuse(&problems),
        Ok(config) => done(nfsplice::serve::run(config, file, machine)),
    }
}

fn check_config(file: &Path, elsewhere: bool) -> Exit {
    let machine = (!elsewhere).then(Machine::this);
    match Config::load(file, machine.as_ref()) {
        Err(problems) => refuse(&problems),
        Ok(config) => done(print(&config.to_toml())),
    }
}

fn show_stats(socket: &Path, json: bool, watch: Option<u32>) -> Exit {
    done(report::show(&mut std::io::stdout().lock(), &|| stats::fetch(socket), json, watch))
}

fn show_connections(socket: &Path, json: bool) -> Exit {
    let show = || -> anyhow::Result<()> {
        let mut server = stats::ask(socket, stats::CONNECTIONS_REQUEST, Duration::ZERO)?;
        // All of it first: the server waits for no pager.
        let mut rows = Vec::new();
        server.read_to_end(&mut rows)?;
        connections::show(&mut std::io::stdout().lock(), &mut rows.as_slice(), json)
    };
    done(show())
}

fn capture_frames(socket: &Path, wanted: &Wanted, file: &Path) -> Exit {
    let save = || -> anyhow::Result<()> {
        let mut server = stats::ask(socket, wanted.request().as_bytes(), Duration::from_secs(wanted.seconds.into()))?;
        // The server sends what is left, and how many frames found no room, to one who says nothing more.
        let asking = server.try_clone()?;
        let asked = AtomicBool::new(false);
        ctrlc::set_handler(move || {
            // A server that does not answer is not waited for twice.
            if asked.swap(true, Ordering::Relaxed) || asking.shutdown(Shutdown::Write).is_err() {
                std::process::exit(Exit::Failure as i32);
            }
        })?;
        let captured = capture::save(&mut server, file)?;
        eprintln!("{} frames in {}, {} found no room", captured.frames, file.display(), captured.dropped);
        Ok(())
    };
    done(save())
}

fn refuse(problems: &Problems) -> Exit {
    eprintln!("{problems}");
    Exit::Usage
}

fn done(result: anyhow::Result<()>) -> Exit {
    match result {
        Ok(()) => Exit::Success,
        // The reader of our output has seen enough: `nfsplice stats | head`.
        Err(error) if is_broken_pipe(&error) => Exit::Success,
        Err(error) => {
            eprintln!("nfsplice: {error:#}");
            Exit::Failure
        }
    }
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error.downcast_ref::<std::io::Error>().is_some_and(|error| error.kind() == std::io::ErrorKind::BrokenPipe)
}

fn print(text: &str) -> anyhow::Result<()> {
    Ok(std::io::stdout().lock().write_all(text.as_bytes())?)
}
