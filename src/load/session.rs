//! A whole run: transports, one thread a core, the common start, signals, the live line, the result.
//!
//! The first core prepares the working set while the others wait. All start at one instant. At the end of each interval every core
//! hands its sample to this thread, which adds up, prints and gives the memory back.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{self, Receiver, Sender};
use std::time::SystemTime;

use anyhow::{Context as _, anyhow, bail};
use crossbeam::queue::ArrayQueue;

use super::compare;
use super::kernel::KernelTransport;
use super::options::{Options, TransportOptions, Work};
use super::pacing::Pace;
use super::pattern::Pattern;
use super::prepare::{self, Target, Wanted, WantedFiles};
use super::protocol::FileSet;
use super::report::{Interval, Measured, Report, time};
use super::runner::{Job, Runner, Schedule};
use super::script::Replay;
use super::statistics::Sample;
use super::transport::{Figure, Transport};
use super::workload::{CommitAll, Fill, Shape, Source, Workload};
use crate::control::cli::Exit;
use crate::control::config::{LoadConfig, Machine};
use crate::control::load_cli::{Load, LoadAction, LoadArguments};
use crate::control::signals::{self, Hangup, Stop, StopFlag};
use crate::control::threads::{self, Placement};
use crate::time::{Duration, Instant};

/// From when the last core is ready to the common start.
const START_DELAY: Duration = Duration::from_millis(20);
/// Calls outstanding while the files are filled.
const FILL_DEPTH: usize = 8;
const FILL_IO_BYTES_MAX: u32 = 1 << 20;
/// Turns between two looks at the stop flag and the interval's end, while there is work.
const TURNS_PER_LOOK: u32 = 16;

/// `nfsplice load`.
pub fn run(load: &Load) -> Exit {
    match &load.action {
        Some(LoadAction::Compare { a, b }) => compare(a, b),
        None => {
            let options = match options_of(&load.run) {
                Ok(options) => options,
                Err(wrong) => {
                    eprintln!("nfsplice load: {wrong}");
                    return Exit::Usage;
                }
            };
            match measure(&options) {
                Ok(report) if report.clean => Exit::Success,
                Ok(_) => Exit::Failure,
                Err(error) => {
                    eprintln!("nfsplice load: {error:#}");
                    Exit::Failure
                }
            }
        }
    }
}

fn options_of(arguments: &LoadArguments) -> Result<Options, String> {
    let file = arguments.config.as_deref().map(LoadConfig::load).transpose().map_err(|problems| problems.to_string())?;
    // Before EAL starts: it pins threads.
    Options::new(arguments, file.as_ref(), &Machine::this().cpus)
}

/// Shows two results. One that is not clean makes the comparison a failure, so that no script takes it for a result.
fn compare(a: &Path, b: &Path) -> Exit {
    let (a_report, b_report) = match (Report::load(a), Report::load(b)) {
        (Ok(a), Ok(b)) => (a, b),
        (Err(error), _) | (_, Err(error)) => {
            eprintln!("nfsplice load compare: {error}");
            return Exit::Usage;
        }
    };
    let text = compare::to_text(&a_report, &b_report, [&a.display().to_string(), &b.display().to_string()]);
    match std::io::stdout().lock().write_all(text.as_bytes()) {
        Ok(()) if a_report.clean && b_report.clean => Exit::Success,
        _ => Exit::Failure,
    }
}

fn measure(options: &Options) -> anyhow::Result<Report> {
    check_results(options)?;
    let stop = StopFlag::default();
    let on_stop = |request| {
        if request == Stop::Now {
            eprintln!("nfsplice load: stopped at once, no result");
            std::process::exit(Exit::Failure as i32);
        }
    };
    signals::install(stop.clone(), Hangup::Drains, on_stop, || ()).context("cannot install the signal handlers")?;
    let origin = std::time::Instant::now();
    let measured = match &options.transport {
        TransportOptions::Kernel => {
            let per_core = options.connections as usize / options.cores.len() + 2;
            let transport = |_| {
                let pools = KernelTransport::pools_for(per_core, options.depth as usize).context("no memory for calls")?;
                Ok(KernelTransport::new(origin, per_core, pools)?)
            };
            let transports = options.cores.iter().map(transport).collect::<anyhow::Result<Vec<_>>>()?;
            Session::new(options, origin, stop).run(transports, || Ok(()))
        }
        #[cfg(feature = "dpdk")]
        TransportOptions::Dpdk(config) => {
            let call = super::protocol::CALL_BYTES_MAX + options.shape.io_bytes as usize;
            let depth = options.depth as usize;
            let queued = 2 * call * depth.max(FILL_DEPTH);
            let expected = 2 * (options.shape.io_bytes as usize + 512) * depth + (2 << 20);
            let fill = 2 * FILL_DEPTH * (FILL_IO_BYTES_MAX as usize + 1024);
            let bytes = super::dpdk::StreamBytes { queued: queued.max(fill), expected };
            let (ground, transports) = super::dpdk::start(config, origin, bytes)?;
            let measured = Session::new(options, origin, stop).run(transports, super::dpdk::register);
            drop(ground);
            measured
        }
        #[cfg(not(feature = "dpdk"))]
        TransportOptions::Dpdk(_) => bail!("this build has no DPDK: use --transport kernel"),
    }?;
    let report = Report::new(options, &measured);
    write_results(options, &report)?;
    Ok(report)
}

/// Results that cannot be written are told before they are measured. What is there already stays until there is something better; who
/// reads a pipe would take this for the end.
fn check_results(options: &Options) -> anyhow::Result<()> {
    for path in options.json.iter().chain(&options.histogram).filter(|path| path.metadata().map_or(true, |file| file.is_file())) {
        std::fs::File::options()
            .create(true)
            .append(true)
            .open(path)
            .with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(())
}

fn write_results(options: &Options, report: &Report) -> anyhow::Result<()> {
    std::io::stdout().lock().write_all(report.to_text().as_bytes())?;
    if let Some(path) = &options.json {
        let text = serde_json::to_string_pretty(report)? + "\n";
        std::fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))?;
    }
    if let Some(path) = &options.histogram {
        std::fs::write(path, report.to_hgrm()).with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(())
}

/// What a core tells the session.
enum Message {
    Note(String),
    /// One interval, the last one included.
    Sample {
        core: usize,
        number: usize,
        end: Instant,
        sample: Sample,
        retransmissions: u64,
    },
    /// Everything is answered.
    Done {
        after: Sample,
        figures: Vec<Figure>,
        retransmissions: u64,
        cpu_s: f64,
    },
    Failed(anyhow::Error),
}

/// What all cores see.
struct Common {
    options: Options,
    stop: StopFlag,
    target: std::sync::OnceLock<Arc<Target>>,
    ready: AtomicUsize,
    /// ns of the common start; 0: not decided yet, `u64::MAX`: there will be none.
    start_ns: AtomicU64,
    /// Emptied samples for the cores to use again.
    spare: ArrayQueue<Sample>,
    first_xid: u32,
}

struct Session {
    common: Arc<Common>,
    origin: std::time::Instant,
}

impl Session {
    fn new(options: &Options, origin: std::time::Instant, stop: StopFlag) -> Session {
        let since_epoch = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let common = Common {
            options: options.clone(),
            stop,
            target: std::sync::OnceLock::new(),
            ready: AtomicUsize::new(0),
            start_ns: AtomicU64::new(0),
            spare: ArrayQueue::new(4 * options.cores.len()),
            // Another start than the last run's: the server's reply cache may still hold that.
            first_xid: (since_epoch.as_nanos() >> 10) as u32,
        };
        Session { common: Arc::new(common), origin }
    }

    fn run<T, G>(
        &self,
        transports: Vec<T>,
        enter: impl Fn() -> anyhow::Result<G> + Send + Copy + 'static,
    ) -> anyhow::Result<Measured>
    where
        T: Transport + Send + 'static,
    {
        let (sender, receiver) = mpsc::channel();
        let mut threads = Vec::new();
        for (core, transport) in transports.into_iter().enumerate() {
            let (common, sender) = (Arc::clone(&self.common), sender.clone());
            let placement = Placement::Cpu(self.common.options.cores[core] as usize);
            let body = move || {
                let result = enter().and_then(|_guard| Core { number: core, common: &common, sender: &sender }.run(transport));
                if let Err(error) = result {
                    common.start_ns.store(u64::MAX, Ordering::Release);
                    let _ = sender.send(Message::Failed(error));
                }
            };
            threads.push(threads::spawn(&format!("load-{core}"), placement, body)?);
        }
        drop(sender);
        let measured = self.collect(&receiver);
        for thread in threads {
            thread.join().map_err(|_| anyhow!("a core panicked"))?;
        }
        measured
    }

    fn now(&self) -> Instant {
        Instant::from_nanos(self.origin.elapsed().as_nanos() as u64)
    }

    fn collect(&self, receiver: &Receiver<Message>) -> anyhow::Result<Measured> {
        let options = &self.common.options;
        let cores = options.cores.len();
        let mut tally = Tally::new(cores, options);
        let mut failed = None;
        loop {
            if self.common.start_ns.load(Ordering::Acquire) == 0 && self.common.ready.load(Ordering::Acquire) == cores {
                let start = self.now() + START_DELAY;
                tally.measured_from = start + options.ramp;
                tally.started = SystemTime::now();
                self.common.start_ns.store(start.nanos(), Ordering::Release);
            }
            let message = match receiver.recv_timeout(std::time::Duration::from_millis(5)) {
                Ok(message) => message,
                Err(mpsc::RecvTimeoutError::Timeout) => continue,
                Err(mpsc::RecvTimeoutError::Disconnected) => break,
            };
            match message {
                Message::Note(note) if options.quiet => drop(note),
                Message::Note(note) => eprintln!("{note}"),
                Message::Failed(error) => {
                    self.common.stop.request();
                    failed.get_or_insert(error);
                }
                Message::Sample { core, number, end, mut sample, retransmissions } => {
                    tally.add_interval(core, number, end, &sample, retransmissions);
                    sample.clear();
                    let _ = self.common.spare.push(sample);
                }
                Message::Done { after, figures, retransmissions, cpu_s } => {
                    tally.add_rest(&after, &figures, retransmissions, cpu_s);
                }
            }
        }
        match failed {
            Some(error) => Err(error),
            None if tally.done < cores => bail!("a core ended without a result"),
            None => Ok(tally.finish(self.common.stop.get() == Stop::No)),
        }
    }
}

/// Adds up what the cores tell.
struct Tally<'o> {
    options: &'o Options,
    cores: usize,
    measured_from: Instant,
    started: SystemTime,
    within: Sample,
    after: Sample,
    /// Intervals that not all cores have told yet: cores heard, end, sum.
    open: BTreeMap<usize, (usize, Instant, Sample)>,
    intervals: Vec<Interval>,
    last_end: Instant,
    retransmissions: Vec<u64>,
    retransmissions_end: u64,
    figures: BTreeMap<String, u64>,
    cpu_s: f64,
    done: usize,
}

impl<'o> Tally<'o> {
    fn new(cores: usize, options: &'o Options) -> Tally<'o> {
        Tally {
            options,
            cores,
            measured_from: Instant::ZERO,
            started: SystemTime::UNIX_EPOCH,
            within: Sample::default(),
            after: Sample::default(),
            open: BTreeMap::new(),
            intervals: Vec::new(),
            last_end: Instant::ZERO,
            retransmissions: vec![0; cores],
            retransmissions_end: 0,
            figures: BTreeMap::new(),
            cpu_s: 0.0,
            done: 0,
        }
    }

    fn add_interval(&mut self, core: usize, number: usize, end: Instant, sample: &Sample, retransmissions: u64) {
        self.within.add(sample);
        self.last_end = self.last_end.max(end);
        self.retransmissions[core] = retransmissions;
        let (heard, latest, sum) = self.open.entry(number).or_insert_with(|| (0, end, Sample::default()));
        *heard += 1;
        *latest = end.max(*latest);
        sum.add(sample);
        if *heard == self.cores
            && let Some((_, end, sum)) = self.open.remove(&number)
        {
            self.close_interval(end, &sum);
        }
    }

    fn close_interval(&mut self, end: Instant, sum: &Sample) {
        let begin = self.intervals.last().map_or(0.0, |last| last.at_s + last.seconds);
        let seconds = end.since(self.measured_from).as_secs_f64() - begin;
        let interval = Interval::new(begin, seconds, sum);
        if !self.options.quiet {
            eprintln!(
                "{:>7.1} s  {:>11.0} calls/s  {:>8.3} GiB/s  p50 {:>9}  p99 {:>9}  p99.9 {:>9}  retransmissions {}{}",
                begin + seconds,
                interval.calls_per_s,
                interval.bytes_per_s / f64::from(1u32 << 30),
                time(interval.p50_ns),
                time(interval.p99_ns),
                time(interval.p99_9_ns),
                self.retransmissions.iter().sum::<u64>(),
                if self.within.faults.is_clean() { "" } else { "  FAULTS" },
            );
        }
        // What is left when a count is reached can be too short to say anything.
        if seconds > 0.0 {
            self.intervals.push(interval);
        }
    }

    fn add_rest(&mut self, after: &Sample, figures: &[Figure], retransmissions: u64, cpu_s: f64) {
        self.after.add(after);
        for (name, value) in figures {
            *self.figures.entry((*name).to_owned()).or_default() += value;
        }
        self.retransmissions_end += retransmissions;
        self.cpu_s += cpu_s;
        self.done += 1;
    }

    fn finish(self, complete: bool) -> Measured {
        let since_epoch = self.started.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        Measured {
            seconds: self.last_end.since(self.measured_from).as_secs_f64(),
            within: self.within,
            after: self.after,
            intervals: self.intervals,
            retransmissions: self.retransmissions_end,
            figures: self.figures,
            cpu_s: self.cpu_s,
            complete,
            started_unix_s: since_epoch.as_secs(),
        }
    }
}

/// One core's thread.
struct Core<'s> {
    number: usize,
    common: &'s Common,
    sender: &'s Sender<Message>,
}

impl Core<'_> {
    fn run<T: Transport>(&self, mut transport: T) -> anyhow::Result<()> {
        let pattern = Pattern::in_pool(&transport.pools().1).context("no memory for file data")?;
        if self.number == 0 {
            transport = self.prepare(transport, &pattern)?;
        }
        let Some(target) = self.await_target() else { return Ok(()) };
        self.check_sizes(&target)?;
        let (first, count) = self.share();
        let o = &self.common.options;
        let job = Job { connections: count, ..self.job(target.nfs) };
        let set = Arc::new(target.set.clone());
        match &o.work {
            Work::Mix(mix) => {
                let source = Workload::new(mix.clone(), o.shape, o.seed, first, count, o.connections as usize);
                self.measure(Runner::new(transport, source, job, set, pattern)?)
            }
            Work::Script(_, calls) => {
                let once = o.duration.is_none() && o.count.is_none();
                let source = Replay::new(Arc::clone(calls), count, once);
                self.measure(Runner::new(transport, source, job, set, pattern)?)
            }
        }
    }

    /// The connections of this core: number of the first, and how many.
    fn share(&self) -> (usize, usize) {
        let (total, cores) = (self.common.options.connections as usize, self.common.options.cores.len());
        let begin = |core: usize| total * core / cores;
        (begin(self.number), begin(self.number + 1) - begin(self.number))
    }

    fn job(&self, server: SocketAddr) -> Job {
        let o = &self.common.options;
        Job {
            server,
            connections: 1,
            depth: o.depth as usize,
            caller: o.caller.clone(),
            io_bytes: o.shape.io_bytes,
            file_bytes: o.shape.file_bytes,
            verify: o.verify,
            timeout: o.timeout,
            seed: o.seed.wrapping_add(1 + self.number as u64),
            xids: (self.common.first_xid.wrapping_add(self.number as u32), o.cores.len() as u32),
            reconnect: o.work.reconnects(),
        }
    }

    fn await_target(&self) -> Option<Arc<Target>> {
        loop {
            if let Some(target) = self.common.target.get() {
                return Some(Arc::clone(target));
            }
            if self.common.start_ns.load(Ordering::Acquire) == u64::MAX || self.common.stop.get() != Stop::No {
                return None;
            }
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
    }

    fn check_sizes(&self, target: &Target) -> anyhow::Result<()> {
        let o = &self.common.options;
        let needs_files = o.work.needs_files();
        let most = target.read_max.min(target.write_max);
        if needs_files && o.shape.io_bytes > most {
            bail!("--size: found {}, allowed at most {most}, the rtmax or wtmax of the server's FSINFO", o.shape.io_bytes);
        }
        Ok(())
    }

    // ---- Before ----

    fn prepare<T: Transport>(&self, mut transport: T, pattern: &Pattern) -> anyhow::Result<T> {
        let o = &self.common.options;
        let files = WantedFiles { directory: o.directory.clone(), count: o.shape.files, bytes: o.shape.file_bytes };
        let wanted = Wanted {
            server: o.server,
            export: o.export.clone(),
            nfs_port: o.nfs_port,
            mount_port: o.mount_port,
            caller: o.caller.clone(),
            timeout: o.timeout,
            files: o.work.needs_files().then_some(files),
        };
        let target = prepare::prepare(&mut transport, &wanted)?;
        let unfilled: Vec<u32> = match o.refill {
            true => (0..target.set.files.len() as u32).collect(),
            false => target.unfilled.clone(),
        };
        if !unfilled.is_empty() {
            let gib = unfilled.len() as f64 * o.shape.file_bytes as f64 / f64::from(1u32 << 30);
            let note = format!("writing {} files, {gib:.2} GiB", unfilled.len());
            let _ = self.sender.send(Message::Note(note));
            let shape = Shape { io_bytes: FILL_IO_BYTES_MAX.min(target.write_max), ..o.shape };
            let set = Arc::new(target.set.clone());
            let fill = Fill::new(unfilled.clone(), shape);
            transport = self.carry_out(transport, fill, &target, &set, pattern)?;
            transport = self.carry_out(transport, CommitAll(unfilled.into_iter()), &target, &set, pattern)?;
        }
        let _ = self.common.target.set(Arc::new(target));
        Ok(transport)
    }

    /// Makes every call of a source, none of which may fail.
    fn carry_out<T: Transport, S: Source>(
        &self,
        transport: T,
        source: S,
        target: &Target,
        set: &Arc<FileSet>,
        pattern: &Pattern,
    ) -> anyhow::Result<T> {
        let job = Job { depth: FILL_DEPTH, io_bytes: FILL_IO_BYTES_MAX, reconnect: false, ..self.job(target.nfs) };
        let mut runner = Runner::new(transport, source, job, Arc::clone(set), pattern.clone())?;
        self.connect(&mut runner)?;
        let start = runner.transport().now();
        runner.start(Schedule { pace: Pace::Closed, start, ramp: Duration::ZERO, duration: None, count: None });
        while !runner.is_done() {
            if self.common.stop.get() != Stop::No {
                bail!("stopped while the files were written");
            }
            if runner.turn() == 0 {
                let until = runner.poll_timeout();
                runner.transport().wait(until);
            }
        }
        let (transport, sample) = runner.finish();
        let statuses: Vec<String> =
            sample.statuses.keys().map(|status| format!("nfsstat3 {status}{}", prepare::nfs_status(*status))).collect();
        if !sample.faults.is_clean() {
            bail!("the files could not be written: {} {:?}", statuses.join(", "), sample.faults);
        }
        Ok(transport)
    }

    fn connect<T: Transport, S: Source>(&self, runner: &mut Runner<T, S>) -> anyhow::Result<()> {
        let deadline = runner.transport().now() + self.common.options.timeout;
        while !runner.is_ready() {
            if runner.turn() == 0 {
                runner.transport().wait(deadline);
            }
            if runner.transport().now() > deadline || runner.has_lost() {
                bail!("the server at {} does not accept the connections", runner.server());
            }
        }
        Ok(())
    }

    // ---- The measurement ----

    fn measure<T: Transport, S: Source>(&self, mut runner: Runner<T, S>) -> anyhow::Result<()> {
        let o = &self.common.options;
        let cores = o.cores.len() as u64;
        self.connect(&mut runner)?;
        self.common.ready.fetch_add(1, Ordering::AcqRel);
        let start = loop {
            runner.turn();
            match self.common.start_ns.load(Ordering::Acquire) {
                0 => std::thread::yield_now(),
                u64::MAX => return Ok(()),
                start => break Instant::from_nanos(start),
            }
        };
        let share = |count: u64| count / cores + u64::from((self.number as u64) < count % cores);
        let pace = match o.rate {
            None => Pace::Closed,
            Some(rate) => Pace::Open { rate: rate / cores as f64, arrival: o.arrival },
        };
        runner.start(Schedule { pace, start, ramp: o.ramp, duration: o.duration, count: o.count.map(share) });
        let end = o.duration.map_or(Instant::FAR_FUTURE, |duration| start + o.ramp + duration);
        let mut clerk = Clerk { core: self, number: 0, next: start + o.ramp, end, before: None };
        let mut looks = 0;
        while !runner.is_done() {
            let worked = runner.turn() > 0;
            looks += 1;
            if !worked || looks >= TURNS_PER_LOOK {
                looks = 0;
                if self.common.stop.get() != Stop::No {
                    runner.stop();
                }
                clerk.look(&mut runner);
            }
            if !worked {
                let until = runner.poll_timeout().min(clerk.next);
                runner.transport().wait(until);
            }
        }
        clerk.finish(runner);
        Ok(())
    }
}

/// What a core's thread has used of the CPU, s.
fn thread_cpu_s() -> f64 {
    let used = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    used.tv_sec as f64 + used.tv_nsec as f64 / 1e9
}

/// The transport's counts at the beginning of what is measured.
struct Before {
    figures: Vec<Figure>,
    retransmissions: u64,
    cpu_s: f64,
}

/// Hands a core's samples on.
struct Clerk<'c, 's> {
    core: &'c Core<'s>,
    /// Of the interval.
    number: usize,
    /// Its end. Before the first: the end of the ramp.
    next: Instant,
    /// Of what is measured: the last interval goes on to the turn in which no more calls are made.
    end: Instant,
    before: Option<Before>,
}

impl Clerk<'_, '_> {
    fn look<T: Transport, S: Source>(&mut self, runner: &mut Runner<T, S>) {
        if self.next == Instant::FAR_FUTURE {
            return;
        }
        let now = runner.transport().now();
        let over = !runner.is_running();
        if now < self.next && !over {
            return;
        }
        if self.before.is_none() {
            self.begin(runner);
            if !over {
                self.next += self.core.common.options.interval;
                return;
            }
        }
        if !over && self.next >= self.end {
            return;
        }
        self.hand_on(now, runner);
        self.next = if over { Instant::FAR_FUTURE } else { self.next + self.core.common.options.interval };
    }

    /// The ramp is over. What went wrong in it stays in the sample.
    fn begin<T: Transport, S: Source>(&mut self, runner: &mut Runner<T, S>) {
        let mut figures = Vec::new();
        runner.transport().figures(&mut figures);
        let retransmissions = runner.transport().retransmissions();
        self.before = Some(Before { figures, retransmissions, cpu_s: thread_cpu_s() });
    }

    fn since_before<T: Transport>(&self, transport: &mut T) -> (Vec<Figure>, u64, f64) {
        let Some(before) = &self.before else { return (Vec::new(), 0, 0.0) };
        let mut figures = Vec::new();
        transport.figures(&mut figures);
        for ((_, now), (_, then)) in figures.iter_mut().zip(&before.figures) {
            *now = now.wrapping_sub(*then);
        }
        (figures, transport.retransmissions().saturating_sub(before.retransmissions), thread_cpu_s() - before.cpu_s)
    }

    fn hand_on<T: Transport, S: Source>(&mut self, end: Instant, runner: &mut Runner<T, S>) {
        let empty = self.core.common.spare.pop().unwrap_or_default();
        let sample = runner.take_sample(empty);
        let before = self.before.as_ref().map_or(0, |before| before.retransmissions);
        let retransmissions = runner.transport().retransmissions().saturating_sub(before);
        let message = Message::Sample { core: self.core.number, number: self.number, end, sample, retransmissions };
        let _ = self.core.sender.send(message);
        self.number += 1;
    }

    fn finish<T: Transport, S: Source>(&mut self, mut runner: Runner<T, S>) {
        // A run that ended within a turn's time of its last reply.
        self.look(&mut runner);
        let (figures, retransmissions, cpu_s) = self.since_before(runner.transport());
        let (_, after) = runner.finish();
        let _ = self.core.sender.send(Message::Done { after, figures, retransmissions, cpu_s });
    }
}
