//! The stats socket: a running server's counters for `nfsplice stats` and for monitoring systems.
//!
//! One exchange per connection: the client sends a line, the server answers and closes.
//! - [`REQUEST`]: one JSON object, [`Report`].
//! - [`CONNECTIONS_REQUEST`]: a line of JSON for each TCP connection ([`Connection`](super::connections::Connection)), then an empty one.
//! - `capture ...` ([`capture::Wanted`]): pcapng, on a thread of its own; one at a time.
//!
//! The socket's mode is 0600: who may read it may see the clients' habits. A peer that sends too much, too slowly or nothing, or does not
//! read, is cut off after [`EXCHANGE_MS_MAX`] (a list of connections may take longer as long as it goes on); peers are served one after the other.
//!
//! Deliberately not here: how the text form looks (`report.rs`), how values are collected (`metrics.rs`).

use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam::channel::{RecvTimeoutError, bounded};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use serde::{Deserialize, Serialize};

use super::capture::{self, Listener};
use super::inquiry::{Inquiries, Inquiry};
use super::metrics::Board;
use super::threads::{self, Placement};
use crate::counters::Kind;

/// What a client sends.
pub const REQUEST: &[u8] = b"stats\n";
/// What a client sends that wants to know the connections.
pub const CONNECTIONS_REQUEST: &[u8] = b"connections\n";
/// Pieces of a list that may wait for the client.
const PIECES_MAX: usize = 16;
/// Longest request that is read, in bytes.
pub const REQUEST_BYTES_MAX: usize = 128;
/// Longest answer that a client takes, in bytes.
pub const ANSWER_BYTES_MAX: u64 = 4 << 20;
/// Longest time for one exchange, in milliseconds.
pub const EXCHANGE_MS_MAX: u64 = 2000;
/// How often the thread looks whether it should end, in milliseconds.
const STOP_POLL_MS: i64 = 100;

/// The answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// About the server itself.
    pub server: About,
    /// Every value by its name, `layer.field`, summed over the cores.
    pub counters: BTreeMap<String, u64>,
    /// Which of them are levels; all others only grow.
    pub gauges: Vec<String>,
    /// How each core spends its time.
    #[serde(default)]
    pub cores: Vec<CoreTime>,
    /// What each core counts for itself. Empty where there is one core.
    #[serde(default)]
    pub by_core: Vec<BTreeMap<String, u64>>,
}

/// One core's time since its start, in cycles: `machine.tsc_hz` of them are a second.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CoreTime {
    /// All of it.
    pub elapsed: u64,
    /// In turns of its loop that found work.
    pub busy: u64,
}

/// About a running server.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct About {
    /// Version of the program.
    pub version: String,
    /// The configuration file as given.
    pub config: String,
    /// Process id.
    pub pid: u32,
    /// Seconds since the start.
    pub uptime_s: u64,
}

/// A running stats socket. Ends, and removes its socket, when dropped.
#[derive(Debug)]
pub struct StatsServer {
    path: PathBuf,
    /// Device and inode of the socket, so that only our own is removed.
    identity: Option<(u64, u64)>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl StatsServer {
    /// Binds `path` and answers on a thread of its own.
    ///
    /// # Errors
    /// When another server answers on `path`, or something that is not a socket is there.
    pub fn start(path: &Path, config: &str, board: Arc<Board>, inquiries: Inquiries, placement: Placement) -> io::Result<Self> {
        let listener = bind(path)?;
        listener.set_nonblocking(true)?;
        let stop = Arc::new(AtomicBool::new(false));
        let answering = Answering {
            listener,
            board,
            inquiries,
            config: config.to_owned(),
            started: Instant::now(),
            stop: Arc::clone(&stop),
            placement: placement.clone(),
            capture: Mutex::new(None),
        };
        let thread = threads::spawn("stats", placement, move || answering.run())?;
        Ok(Self { path: path.to_owned(), identity: identity(path), stop, thread: Some(thread) })
    }
}

impl Drop for StatsServer {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
        if self.identity.is_some() && identity(&self.path) == self.identity {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

fn identity(path: &Path) -> Option<(u64, u64)> {
    std::fs::symlink_metadata(path).ok().map(|meta| (meta.dev(), meta.ino()))
}

/// Binds under a temporary name, sets the mode and renames: nobody can connect before the mode is right, and a dead server's
/// socket is replaced in one step.
fn bind(path: &Path) -> io::Result<UnixListener> {
    let explain = |error: io::Error| io::Error::new(error.kind(), format!("{}: {error}", path.display()));
    match std::fs::symlink_metadata(path) {
        Ok(meta) if !meta.file_type().is_socket() => {
            let text = format!("{}: exists and is not a socket; remove it or set another stats_socket", path.display());
            return Err(io::Error::new(io::ErrorKind::AlreadyExists, text));
        }
        Ok(_) if UnixStream::connect(path).is_ok() => {
            let text = format!("{}: another server answers there; set another stats_socket", path.display());
            return Err(io::Error::new(io::ErrorKind::AddrInUse, text));
        }
        _ => {}
    }
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(format!(".{}", std::process::id()));
    let temporary = PathBuf::from(temporary);
    let _ = std::fs::remove_file(&temporary);
    let listener = UnixListener::bind(&temporary).map_err(explain)?;
    let placed = std::fs::set_permissions(&temporary, std::fs::Permissions::from_mode(0o600))
        .and_then(|()| std::fs::rename(&temporary, path));
    if let Err(error) = placed {
        let _ = std::fs::remove_file(&temporary);
        return Err(explain(error));
    }
    Ok(listener)
}

/// Whether the other end is closed, or says nothing more, with or without something left to read from it.
fn listener(peer: &UnixStream) -> Listener {
    let mut watched = [PollFd::new(peer, PollFlags::RDHUP)];
    match poll(&mut watched, Some(&Timespec::default())).map(|_| watched[0].revents()) {
        Ok(seen) if seen.intersects(PollFlags::HUP | PollFlags::ERR) => Listener::Gone,
        Ok(seen) if seen.intersects(PollFlags::RDHUP) => Listener::HasEnough,
        _ => Listener::Listens,
    }
}

/// What is captured, on its way to one who may stand still for a while: it is waited for, but not at the end of the server.
struct Patient {
    peer: UnixStream,
    stop: Arc<AtomicBool>,
}

impl Write for Patient {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let until = Instant::now() + capture::IDLE_MAX;
        loop {
            match self.peer.write(bytes) {
                Err(error)
                    if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut)
                        && Instant::now() < until
                        && !self.stop.load(Ordering::Relaxed) => {}
                other => return other,
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        self.peer.flush()
    }
}

/// What the stats thread owns.
struct Answering {
    listener: UnixListener,
    board: Arc<Board>,
    inquiries: Inquiries,
    config: String,
    started: Instant,
    stop: Arc<AtomicBool>,
    placement: Placement,
    /// The thread of the capture that runs, or ran last.
    capture: Mutex<Option<JoinHandle<()>>>,
}

impl Answering {
    fn run(&self) {
        let tick = Timespec { tv_sec: 0, tv_nsec: STOP_POLL_MS * 1_000_000 };
        while !self.stop.load(Ordering::Relaxed) {
            let mut waiting = [PollFd::new(&self.listener, PollFlags::IN)];
            if !matches!(poll(&mut waiting, Some(&tick)), Ok(1..)) {
                continue;
            }
            if let Ok((peer, _)) = self.listener.accept() {
                // A peer that misbehaves has only itself to blame; there is nobody to tell.
                let _ = self.answer(peer);
            }
        }
        let mut capture = self.capture.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(thread) = capture.take() {
            let _ = thread.join();
        }
    }

    fn answer(&self, mut peer: UnixStream) -> io::Result<()> {
        let deadline = Deadline::start();
        peer.set_nonblocking(false)?;
        let mut request = [0; REQUEST_BYTES_MAX];
        let mut length = 0;
        while !request[..length].ends_with(b"\n") {
            if length == request.len() {
                return Err(io::ErrorKind::InvalidData.into());
            }
            peer.set_read_timeout(Some(deadline.left()?))?;
            match peer.read(&mut request[length..]) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(more) => length += more,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        match &request[..length] {
            REQUEST => write_within(&mut peer, &serde_json::to_vec(&self.report())?, &deadline),
            CONNECTIONS_REQUEST => self.list_connections(&mut peer),
            request if request.starts_with(b"capture ") => self.capture(peer, &String::from_utf8_lossy(request)),
            _ => Err(io::ErrorKind::InvalidData.into()),
        }
    }

    /// The pieces as the cores tell them. A core that does not go on, or a client that does not read, ends it.
    fn list_connections(&self, peer: &mut UnixStream) -> io::Result<()> {
        let (sender, pieces) = bounded(PIECES_MAX);
        if !self.inquiries.ask(&Inquiry::Connections(sender)) {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        loop {
            let deadline = Deadline::start();
            let mut lines = Vec::new();
            match pieces.recv_timeout(deadline.left()?) {
                Ok(piece) => {
                    for connection in piece {
                        serde_json::to_writer(&mut lines, &connection)?;
                        lines.push(b'\n');
                    }
                    write_within(peer, &lines, &deadline)?;
                }
                // Every core has told all.
                Err(RecvTimeoutError::Disconnected) => return write_within(peer, b"\n", &deadline),
                Err(RecvTimeoutError::Timeout) => return Err(io::ErrorKind::TimedOut.into()),
            }
        }
    }

    fn capture(&self, mut peer: UnixStream, request: &str) -> io::Result<()> {
        let Some(wanted) = capture::Wanted::parse(request) else { return Err(io::ErrorKind::InvalidData.into()) };
        peer.set_write_timeout(Some(Duration::from_millis(STOP_POLL_MS as u64)))?;
        let mut running = self.capture.lock().unwrap_or_else(PoisonError::into_inner);
        if running.as_ref().is_some_and(|thread| !thread.is_finished()) {
            return peer.write_all(b"another capture runs\n");
        }
        let (inquiries, stop) = (self.inquiries.clone(), Arc::clone(&self.stop));
        let watched = peer.try_clone()?;
        *running = Some(threads::spawn("capture", self.placement.clone(), move || {
            let mut out = io::BufWriter::new(Patient { peer, stop: Arc::clone(&stop) });
            // Whoever asked has gone: there is nobody to tell.
            let _ = capture::serve(&mut out, &|| listener(&watched), &wanted, &inquiries, &stop);
        })?);
        Ok(())
    }

    fn report(&self) -> Report {
        let values = self.board.read();
        let gauges = values.iter().filter(|(metric, _)| metric.kind == Kind::Gauge);
        Report {
            server: About {
                version: env!("CARGO_PKG_VERSION").to_owned(),
                config: self.config.clone(),
                pid: std::process::id(),
                uptime_s: self.started.elapsed().as_secs(),
            },
            cores: (0..self.board.cores()).map(|core| core_time(&self.board, core)).collect(),
            by_core: self.by_core(),
            gauges: gauges.map(|(metric, _)| metric.name.clone()).collect(),
            counters: values.iter().map(|(metric, value)| (metric.name.clone(), *value)).collect(),
        }
    }
}

impl Answering {
    fn by_core(&self) -> Vec<BTreeMap<String, u64>> {
        let cores = if self.board.cores() > 1 { self.board.cores() } else { 0 };
        let values = |core| self.board.core(core).into_iter().map(|(metric, value)| (metric.name.clone(), value)).collect();
        (0..cores).map(values).collect()
    }
}

/// All zero when the cores do not publish it.
fn core_time(board: &Board, core: usize) -> CoreTime {
    let values = board.core(core);
    let value = |name: &str| values.iter().find(|(metric, _)| metric.name == name).map_or(0, |(_, value)| *value);
    CoreTime { elapsed: value("cycles.elapsed"), busy: value("cycles.busy") }
}

fn write_within(peer: &mut UnixStream, mut rest: &[u8], deadline: &Deadline) -> io::Result<()> {
    while !rest.is_empty() {
        peer.set_write_timeout(Some(deadline.left()?))?;
        match peer.write(rest) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(written) => rest = &rest[written..],
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// The time one exchange may still take.
struct Deadline(Instant);

impl Deadline {
    fn start() -> Self {
        Self(Instant::now() + Duration::from_millis(EXCHANGE_MS_MAX))
    }

    fn left(&self) -> io::Result<Duration> {
        let left = self.0.saturating_duration_since(Instant::now());
        if left.is_zero() { Err(io::ErrorKind::TimedOut.into()) } else { Ok(left) }
    }
}

/// Sends `request` to the server at `path`; its answer may take `more` longer than usual.
pub fn ask(path: &Path, request: &[u8], more: Duration) -> io::Result<UnixStream> {
    let exchange = || {
        // The server serves one peer after the other, so an answer may have to wait for others' exchanges.
        let patience = Duration::from_millis(3 * EXCHANGE_MS_MAX);
        let mut server = UnixStream::connect(path)?;
        server.set_read_timeout(Some(patience + more))?;
        server.set_write_timeout(Some(patience))?;
        server.write_all(request)?;
        Ok(server)
    };
    exchange().map_err(|error| explain(path, error))
}

/// Asks the server at `path` for its report.
pub fn fetch(path: &Path) -> io::Result<Report> {
    let server = ask(path, REQUEST, Duration::ZERO)?;
    let read = || {
        let mut answer = Vec::new();
        server.take(ANSWER_BYTES_MAX).read_to_end(&mut answer)?;
        Ok(serde_json::from_slice(&answer)?)
    };
    read().map_err(|error| explain(path, error))
}

fn explain(path: &Path, error: io::Error) -> io::Error {
    let hint = match error.kind() {
        io::ErrorKind::NotFound => "no server has this stats_socket",
        io::ErrorKind::ConnectionRefused => "its server is gone",
        io::ErrorKind::PermissionDenied => "only the server's user and root may ask",
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => "the server does not answer",
        io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset => "the server hung up",
        _ => "cannot ask the server",
    };
    // A broken pipe is what the reader of our output leaves behind who has seen enough: not this.
    let kind = if error.kind() == io::ErrorKind::BrokenPipe { io::ErrorKind::ConnectionReset } else { error.kind() };
    io::Error::new(kind, format!("{}: {hint} ({error})", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::connections::Connection;
    use crate::control::metrics::LayoutBuilder;

    crate::counters! {
        /// A layer.
        struct Tcp {
            /// Segments.
            segments_in,
        }
        gauges {
            /// Open.
            connections_open,
        }
    }

    struct Directory(PathBuf);

    impl Directory {
        fn new(name: &str) -> Self {
            let path = std::env::temp_dir().join(format!("nfsplice-stats-{name}-{}", std::process::id()));
            let _ = std::fs::remove_dir_all(&path);
            std::fs::create_dir(&path).unwrap();
            Self(path)
        }
        fn socket(&self) -> PathBuf {
            self.0.join("s.sock")
        }
    }

    impl Drop for Directory {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }

    fn start(path: &Path) -> io::Result<StatsServer> {
        start_with(path, Inquiries::new(0, Vec::new()).0)
    }

    fn start_with(path: &Path, inquiries: Inquiries) -> io::Result<StatsServer> {
        let board = LayoutBuilder::new().per_core("tcp", &Tcp::default()).build(1);
        board.publisher(0).unwrap().publish(&[&Tcp { segments_in: 7, connections_open: 2 }]);
        let cpus = core_affinity::get_core_ids().unwrap().iter().map(|core| core.id).collect();
        StatsServer::start(path, "tap.toml", board, inquiries, Placement::Any(cpus))
    }

    #[test]
    fn a_client_gets_the_report_and_the_socket_goes_with_the_server() {
        let directory = Directory::new("report");
        let server = start(&directory.socket()).unwrap();
        let mode = std::fs::metadata(directory.socket()).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let report = fetch(&directory.socket()).unwrap();
        assert_eq!(report.server.config, "tap.toml");
        assert_eq!(report.counters["tcp.segments_in"], 7);
        assert_eq!(report.gauges, ["tcp.connections_open"]);
        drop(server);
        assert_eq!(std::fs::read_dir(&directory.0).unwrap().count(), 0);
        let error = fetch(&directory.socket()).unwrap_err().to_string();
        assert!(error.contains("no server has this stats_socket"), "{error}");
    }

    #[test]
    fn a_dead_servers_socket_is_replaced_and_a_live_one_is_not() {
        let directory = Directory::new("stale");
        drop(UnixListener::bind(directory.socket()).unwrap());
        assert!(fetch(&directory.socket()).unwrap_err().to_string().contains("its server is gone"));
        let live = start(&directory.socket()).unwrap();
        let error = start(&directory.socket()).unwrap_err();
        assert!(error.to_string().contains("another server answers there"), "{error}");
        assert_eq!(fetch(&directory.socket()).unwrap().counters.len(), 2);
        drop(live);
        std::fs::write(directory.socket(), "precious").unwrap();
        let error = start(&directory.socket()).unwrap_err();
        assert!(error.to_string().contains("is not a socket"), "{error}");
        assert_eq!(std::fs::read(directory.socket()).unwrap(), b"precious");
    }

    /// `nfsplice stats | head` may end in silence; a server that hangs up may not.
    #[test]
    fn a_server_that_hangs_up_is_an_error_of_its_own() {
        let error = explain(Path::new("stats.sock"), io::ErrorKind::BrokenPipe.into());
        assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
        assert_eq!(error.to_string(), "stats.sock: the server hung up (broken pipe)");
    }

    #[test]
    fn bad_and_slow_peers_are_cut_off_and_others_are_served() {
        let directory = Directory::new("slow");
        let _server = start(&directory.socket()).unwrap();
        let mut long = UnixStream::connect(directory.socket()).unwrap();
        long.write_all(&[b'x'; REQUEST_BYTES_MAX]).unwrap();
        let mut wrong = UnixStream::connect(directory.socket()).unwrap();
        wrong.write_all(b"reboot\n").unwrap();
        let mut silent = UnixStream::connect(directory.socket()).unwrap();
        // Waits behind the silent one's deadline at most.
        assert_eq!(fetch(&directory.socket()).unwrap().counters.len(), 2);
        for peer in [&mut long, &mut wrong, &mut silent] {
            peer.set_read_timeout(Some(Duration::from_millis(4 * EXCHANGE_MS_MAX))).unwrap();
            let mut answer = Vec::new();
            // A reset is as good as an end: what counts is that there is no answer and no waiting.
            let _ = peer.read_to_end(&mut answer);
            assert!(answer.is_empty(), "{answer:?}");
        }
    }

    #[test]
    fn a_peer_that_does_not_read_is_cut_off() {
        // An answer that no socket buffer holds.
        let mut layout = LayoutBuilder::new();
        for layer in 0..10_000 {
            layout = layout.per_core(&format!("a_layer_with_a_long_name_{layer}"), &Tcp::default());
        }
        let directory = Directory::new("deaf");
        let cpus = core_affinity::get_core_ids().unwrap().iter().map(|core| core.id).collect();
        let _server = StatsServer::start(
            &directory.socket(),
            "tap.toml",
            layout.build(1),
            Inquiries::new(0, Vec::new()).0,
            Placement::Any(cpus),
        )
        .unwrap();
        let mut deaf = UnixStream::connect(directory.socket()).unwrap();
        deaf.write_all(REQUEST).unwrap();
        assert_eq!(fetch(&directory.socket()).unwrap().counters.len(), 20_000);
        let mut cut = Vec::new();
        let _ = deaf.read_to_end(&mut cut);
        assert!(!cut.is_empty() && serde_json::from_slice::<Report>(&cut).is_err(), "{} bytes", cut.len());
    }

    #[test]
    fn a_capture_ends_when_its_client_has_gone_though_no_frame_came() {
        let directory = Directory::new("capture");
        let (inquiries, mailboxes) = Inquiries::new(1, vec!["net_tap0".into()]);
        let _server = start_with(&directory.socket(), inquiries).unwrap();
        let request = b"capture 0 60 128 0\n";
        let mut first = ask(&directory.socket(), request, Duration::ZERO).unwrap();
        let Ok(Inquiry::Capture(capture)) = mailboxes[0].recv() else { panic!("no capture") };
        let mut block = [0; 4];
        first.read_exact(&mut block).unwrap();
        assert_eq!(block, [0x0a, 0x0d, 0x0d, 0x0a]);
        assert!(!capture.over.load(Ordering::Relaxed));
        drop(first);
        let deadline = Instant::now() + Duration::from_secs(5);
        while !capture.over.load(Ordering::Relaxed) {
            assert!(Instant::now() < deadline, "the capture goes on for nobody");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    #[test]
    fn a_capture_is_ended_early_by_one_who_says_nothing_more() {
        let directory = Directory::new("enough");
        let (inquiries, mailboxes) = Inquiries::new(1, vec!["net_tap0".into()]);
        let _server = start_with(&directory.socket(), inquiries).unwrap();
        let mut asking = ask(&directory.socket(), b"capture 0 60 128 0\n", Duration::ZERO).unwrap();
        let Ok(Inquiry::Capture(capture)) = mailboxes[0].recv() else { panic!("no capture") };
        capture.frames.push(crate::control::inquiry::CapturedFrame {
            at_ns: 1,
            outgoing: true,
            core: 0,
            original_len: 60,
            bytes: vec![7; 60],
        });
        drop(capture);
        asking.shutdown(std::net::Shutdown::Write).unwrap();
        let file = directory.0.join("enough.pcapng");
        let captured = capture::save(&mut asking, &file).unwrap();
        assert_eq!((captured.frames, captured.dropped), (1, 0));
    }

    #[test]
    fn connections_come_from_every_core_and_the_end_is_told() {
        let directory = Directory::new("connections");
        let board = LayoutBuilder::new().per_core("tcp", &Tcp::default()).build(2);
        let cpus = core_affinity::get_core_ids().unwrap().iter().map(|core| core.id).collect();
        let (inquiries, mailboxes) = Inquiries::new(2, Vec::new());
        let _server = StatsServer::start(&directory.socket(), "tap.toml", board, inquiries, Placement::Any(cpus)).unwrap();
        let cores: Vec<_> = (mailboxes.into_iter().enumerate())
            .map(|(core, mailbox)| {
                std::thread::spawn(move || {
                    let Ok(Inquiry::Connections(to)) = mailbox.recv() else { panic!("another question") };
                    for peer in 0..3 {
                        let row = Connection { core, peer: peer.to_string(), ..Connection::default() };
                        to.send(vec![row; 2]).unwrap();
                    }
                })
            })
            .collect();
        let mut answer = String::new();
        ask(&directory.socket(), CONNECTIONS_REQUEST, Duration::ZERO).unwrap().read_to_string(&mut answer).unwrap();
        cores.into_iter().for_each(|core| core.join().unwrap());
        let rows: Vec<Connection> =
            answer.lines().filter(|line| !line.is_empty()).map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!(rows.iter().filter(|row| row.core == 1).count(), 6);
        assert_eq!(rows.len(), 12);
        assert!(answer.ends_with("}\n\n"), "{answer}");
    }
}
