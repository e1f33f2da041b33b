//! Child processes with an end: a time limit, a log file, and no survivor after a panic or Ctrl-C.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Mutex;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, kill_process};

const POLL: Duration = Duration::from_millis(10);

/// What Ctrl-C has to take with it: drop guards do not run then.
static LIVE: Mutex<Vec<u32>> = Mutex::new(Vec::new());
static NAMESPACES: Mutex<Vec<String>> = Mutex::new(Vec::new());
static FOLDERS: Mutex<Vec<PathBuf>> = Mutex::new(Vec::new());
/// Files of /proc/sys and what has to stand in them again.
static SETTINGS: Mutex<Vec<(PathBuf, String)>> = Mutex::new(Vec::new());

pub fn clean_up_on_interrupt() {
    let outcome = ctrlc::set_handler(|| {
        for pid in LIVE.lock().expect("no holder panics").iter() {
            signal(*pid, Signal::KILL);
        }
        for name in NAMESPACES.lock().expect("no holder panics").iter() {
            let _ = Command::new("ip").args(["netns", "del", name]).stderr(Stdio::null()).status();
        }
        for folder in FOLDERS.lock().expect("no holder panics").iter() {
            let _ = std::fs::remove_dir_all(folder);
        }
        for (file, text) in SETTINGS.lock().expect("no holder panics").iter() {
            let _ = std::fs::write(file, text);
        }
        std::process::exit(130);
    });
    outcome.expect("one handler");
}

pub fn remember_namespace(name: &str) {
    NAMESPACES.lock().expect("no holder panics").push(name.to_owned());
}

pub fn forget_namespace(name: &str) {
    NAMESPACES.lock().expect("no holder panics").retain(|known| known != name);
}

pub fn signal(pid: u32, signal: Signal) {
    if let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) {
        let _ = kill_process(pid, signal);
    }
}

/// A running process that is killed when dropped. Its output goes to a file.
pub struct Daemon {
    child: Child,
    pub log: PathBuf,
    what: String,
}

impl Daemon {
    pub fn spawn(mut command: Command, log: &Path) -> Result<Daemon> {
        let what = format!("{:?}", command.get_program());
        let out = File::options().create(true).append(true).open(log)?;
        command.stdin(Stdio::null()).stdout(out.try_clone()?).stderr(out);
        let child = command.spawn().with_context(|| format!("starting {command:?}"))?;
        LIVE.lock().expect("no holder panics").push(child.id());
        Ok(Daemon { child, log: log.to_owned(), what })
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn signal(&self, which: Signal) {
        signal(self.child.id(), which);
    }

    pub fn exited(&mut self) -> Result<Option<ExitStatus>> {
        Ok(self.child.try_wait()?)
    }

    pub fn wait(&mut self, limit: Duration) -> Result<ExitStatus> {
        let deadline = Instant::now() + limit;
        loop {
            if let Some(status) = self.child.try_wait()? {
                return Ok(status);
            }
            if Instant::now() >= deadline {
                bail!("{} still runs after {limit:?}\n{}", self.what, self.tail());
            }
            thread::sleep(POLL);
        }
    }

    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// The last lines of its output, for a failure's message.
    pub fn tail(&self) -> String {
        tail(&self.log)
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        self.kill();
        LIVE.lock().expect("no holder panics").retain(|pid| *pid != self.child.id());
    }
}

/// A folder that goes on Ctrl-C.
#[allow(dead_code, reason = "the benchmark needs it, which shares this file")]
pub fn remember_folder(folder: &Path) {
    FOLDERS.lock().expect("no holder panics").push(folder.to_owned());
}

/// A setting of the kernel that is put back on Ctrl-C.
#[allow(dead_code, reason = "as above")]
pub fn remember_setting(file: &Path, text: &str) {
    SETTINGS.lock().expect("no holder panics").push((file.to_owned(), text.to_owned()));
}

/// Keeps a child that its owner waits for among those that end with this process.
#[allow(dead_code, reason = "the benchmark needs it, which shares this file")]
pub struct Guard(u32);

impl Guard {
    #[allow(dead_code, reason = "as above")]
    pub fn new(child: &Child) -> Guard {
        LIVE.lock().expect("no holder panics").push(child.id());
        Guard(child.id())
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        LIVE.lock().expect("no holder panics").retain(|pid| *pid != self.0);
    }
}

pub fn tail(log: &Path) -> String {
    const LINES: usize = 25;
    let text = String::from_utf8_lossy(&std::fs::read(log).unwrap_or_default()).into_owned();
    let lines: Vec<&str> = text.lines().collect();
    format!("--- {} ---\n{}", log.display(), lines[lines.len().saturating_sub(LINES)..].join("\n"))
}

pub struct Output {
    pub status: ExitStatus,
    pub stdout: Vec<u8>,
    pub stderr: String,
}

impl Output {
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }
}

/// Runs a command to its end, whatever its exit code.
pub fn output(mut command: Command, limit: Duration) -> Result<Output> {
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().with_context(|| format!("starting {command:?}"))?;
    LIVE.lock().expect("no holder panics").push(child.id());
    let pid = child.id();
    let mut out = child.stdout.take().context("stdout is piped")?;
    let mut err = child.stderr.take().context("stderr is piped")?;
    let out_reader = thread::spawn(move || {
        let mut bytes = Vec::new();
        out.read_to_end(&mut bytes).map(|_| bytes)
    });
    let err_reader = thread::spawn(move || {
        let mut bytes = Vec::new();
        err.read_to_end(&mut bytes).map(|_| bytes)
    });
    let deadline = Instant::now() + limit;
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break Some(status);
        }
        if Instant::now() >= deadline {
            let _ = child.kill();
            let _ = child.wait();
            break None;
        }
        thread::sleep(Duration::from_millis(2));
    };
    LIVE.lock().expect("no holder panics").retain(|live| *live != pid);
    let Some(status) = status else { bail!("{command:?} took longer than {limit:?}") };
    let stdout = out_reader.join().expect("a reader does not panic")?;
    let stderr = String::from_utf8_lossy(&err_reader.join().expect("a reader does not panic")?).into_owned();
    Ok(Output { status, stdout, stderr })
}

/// Runs a command that has to succeed.
pub fn run(command: Command, limit: Duration) -> Result<Output> {
    let shown = format!("{command:?}");
    let result = output(command, limit)?;
    if !result.status.success() {
        bail!("{shown}: {}\n{}{}", result.status, result.text(), result.stderr);
    }
    Ok(result)
}

/// `sh`-like shorthand for fixed commands: words separated by spaces.
pub fn run_words(words: &str) -> Result<Output> {
    let mut parts = words.split_whitespace();
    let mut command = Command::new(parts.next().context("a command")?);
    command.args(parts);
    run(command, Duration::from_secs(20))
}

/// Where a program is, or `None`; the folders of administrators included.
pub fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var("PATH").unwrap_or_default() + ":/usr/sbin:/sbin";
    path.split(':').map(|folder| Path::new(folder).join(program)).find(|candidate| candidate.is_file())
}

/// A folder under the system's temporary folder, removed when dropped.
pub struct TempDir(PathBuf);

impl TempDir {
    pub fn new(label: &str) -> Result<TempDir> {
        let path = std::env::temp_dir().join(format!("nfsplice-e2e-{}-{label}", std::process::id()));
        std::fs::create_dir_all(&path)?;
        FOLDERS.lock().expect("no holder panics").push(path.clone());
        Ok(TempDir(path))
    }

    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for TempDir {
    fn drop(&mut self) {
        // NFSPLICE_E2E_KEEP leaves logs and captures behind for a look.
        if std::env::var_os("NFSPLICE_E2E_KEEP").is_none() {
            let _ = std::fs::remove_dir_all(&self.0);
        }
        FOLDERS.lock().expect("no holder panics").retain(|folder| *folder != self.0);
    }
}

pub fn wait_for_file(path: &Path, limit: Duration) -> Result<()> {
    let deadline = Instant::now() + limit;
    while !path.exists() {
        if Instant::now() > deadline {
            bail!("{} did not appear within {limit:?}", path.display());
        }
        thread::sleep(POLL);
    }
    Ok(())
}
