//! The bench that anyone can repeat: `make bench` (docs/benchmarks.md). On one machine with two cores and no NIC, in one run and in
//! turn: nfsplice, nfsplice copying, NFS-Ganesha, a sendfile loop, and testpmd as the driver's ceiling.
//!
//! - `workload`: the rows. `peers`: who is measured, how each is started. `measure`: one run and the server's meter around it.
//! - `driver`: testpmd against this project's transmit queue. `cores`: two server cores against one. `meter`: whether the meter is right. `tap`: what `make run` gives.
//! - `sendfile`: the kernel's own splice path. `machine`, `table`, `plot`: what is written down.
//!
//! It fails if any figure was taken with errors, wrong bytes, or more packets sent again than `measure::RETRANSMISSIONS_PER_CALL_MAX`.
//! Goals that are missed do not make it fail: they are in the table.

#[path = "../../tests/e2e/net.rs"]
#[allow(dead_code, reason = "shared with the end-to-end tests")]
mod net;
#[path = "../../tests/e2e/process.rs"]
#[allow(dead_code, reason = "shared with the end-to-end tests")]
mod process;

#[path = "../../tests/support/mod.rs"]
mod support;

mod cores;
mod driver;
mod machine;
mod measure;
mod meter;
mod peers;
mod plot;
mod sendfile;
mod table;
mod tap;
mod workload;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::rc::Rc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use machine::{Hugepages, Machine};
use measure::{Pace, Sample};
use peers::{Bed, Ganesha, Peer};
use table::{CURVE_SET, Cell, Point, Results};
use workload::{CONNECT, NULL, READ_4K, SIZES, Set, TABLE, Workload};

/// The appliance's allocator, which shards in `cores` are measured with.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const USAGE: &str = "appliance [--rounds N] [--seconds S] [--parts PART,..] [--no-huge]
parts: verify table accept driver cores latency curves meter tap";
const PARTS: [&str; 9] = ["verify", "table", "accept", "driver", "cores", "latency", "curves", "meter", "tap"];
/// Two MiB each: the server's 1.6 GiB, the generator's 512 MiB, testpmd's, and some slack.
const HUGEPAGES: u64 = 1280;
/// Shares of the closed loop's rate that are offered for the latency curve.
const LOADS: [f64; 6] = [0.1, 0.25, 0.5, 0.7, 0.8, 0.9];

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let result = match words.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["sendfile-serve", file, cpu] => cpu.parse().context(USAGE).and_then(|cpu| sendfile::serve(Path::new(file), cpu)),
        ["chains"] => driver::chains(),
        ["cores"] => serde_json::to_string(&cores::scaling()).map(|text| println!("{text}")).context("figures"),
        // `cargo test --benches` runs every benchmark without an argument: this one takes 12 minutes and root.
        _ if !words.iter().any(|word| word == "--bench") => {
            println!("{USAGE}\nrun by `make bench`");
            Ok(())
        }
        _ => Options::parse(&words).and_then(|options| bench(&options)),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}

struct Options {
    rounds: usize,
    duration: Duration,
    parts: Vec<String>,
    hugepages: bool,
}

impl Options {
    fn parse(words: &[String]) -> Result<Options> {
        let parts = PARTS.map(str::to_owned).to_vec();
        let mut options = Options { rounds: 3, duration: Duration::from_millis(2500), parts, hugepages: true };
        let mut words = words.iter().filter(|word| *word != "--bench");
        while let Some(word) = words.next() {
            let mut value = || words.next().context(USAGE);
            match word.as_str() {
                "--rounds" => options.rounds = value()?.parse().context(USAGE)?,
                "--seconds" => options.duration = Duration::from_secs_f64(value()?.parse().context(USAGE)?),
                "--parts" => options.parts = value()?.split(',').map(str::to_owned).collect(),
                "--no-huge" => options.hugepages = false,
                _ => bail!("{USAGE}"),
            }
        }
        match options.parts.iter().find(|part| !PARTS.contains(&part.as_str())) {
            Some(part) => bail!("no part {part}\n{USAGE}"),
            None => Ok(options),
        }
    }
}

/// A run in progress.
struct Bench<'o> {
    options: &'o Options,
    bed: Rc<Bed>,
    results: Results,
    ganesha: bool,
    started: Instant,
}

fn bench(options: &Options) -> Result<()> {
    if !rustix::process::getuid().is_root() {
        bail!("root is needed, for the network namespaces");
    }
    if std::thread::available_parallelism().map_or(0, usize::from) < 2 {
        bail!("two CPUs are needed: one for the server, one for the generator");
    }
    process::clean_up_on_interrupt();
    net::sweep_leftovers();
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/bench");
    let files = root.join("files");
    std::fs::create_dir_all(&files)?;
    process::remember_folder(&files);
    let hugepages = if options.hugepages { Hugepages::reserve(HUGEPAGES) } else { None };
    let hz = machine::measure_tsc_hz();
    let bed = Bed {
        binary: binary(),
        out: root.clone(),
        scratch: process::TempDir::new("bench")?,
        files: files.clone(),
        hz,
        hugepages: hugepages.is_some(),
    };
    let results = Results {
        machine: Machine::this(hz, hugepages.is_some()),
        rounds: options.rounds,
        seconds: options.duration.as_secs_f64(),
        cells: Vec::new(),
        depth_one: None,
        tap: None,
        ceilings: Vec::new(),
        scaling: Vec::new(),
        checks: Vec::new(),
        by_size: Vec::new(),
        by_load: Vec::new(),
        skipped: Vec::new(),
        faults: Vec::new(),
    };
    let mut bench = Bench { options, bed: Rc::new(bed), results, ganesha: true, started: Instant::now() };
    if options.hugepages && !bench.works_with_hugepages() {
        bench.without_hugepages();
        bench.skip("hugepages: the kernel has too few free, or virtio_user does not start on them: ordinary pages");
    }
    if let Some(program) = Ganesha::missing() {
        bench.ganesha = false;
        bench.skip(&format!("NFS-Ganesha: {program} is not installed (scripts/install.sh bench)"));
    }
    for part in &options.parts {
        bench.part(part);
    }
    // 2 GiB that the next run would only make again.
    let _ = std::fs::remove_dir_all(&files);
    drop(hugepages);
    bench.finish(&root)
}

fn binary() -> PathBuf {
    std::env::var_os("NFSPLICE_BENCH_BINARY").map_or_else(|| env!("CARGO_BIN_EXE_nfsplice").into(), PathBuf::from)
}

impl Bench<'_> {
    /// virtio_user can share only a few regions of memory with its other end, and hugepages may be too many.
    fn works_with_hugepages(&self) -> bool {
        let pace = Pace { duration: Duration::from_millis(1100), rate: None, verify: false };
        self.bed.hugepages && self.bed.nfsplice("splice", &NULL, &pace).is_ok()
    }

    fn without_hugepages(&mut self) {
        if let Some(bed) = Rc::get_mut(&mut self.bed) {
            bed.hugepages = false;
        }
        self.results.machine.hugepages = false;
    }

    fn pace(&self) -> Pace {
        Pace { duration: self.options.duration, rate: None, verify: false }
    }

    fn say(&self, text: &str) {
        eprintln!("bench: {:>4} s  {text}", self.started.elapsed().as_secs());
    }

    fn skip(&mut self, what: &str) {
        self.say(&format!("skipped: {what}"));
        self.results.skipped.push(what.to_owned());
    }

    /// Takes a figure, or the reason why there is none.
    fn taken<T>(&mut self, what: &str, result: Result<T>) -> Option<T> {
        match result {
            Ok(value) => Some(value),
            Err(error) if error.is::<measure::Overloaded>() => {
                self.skip(&format!("{what}: {error:#}"));
                None
            }
            Err(error) => {
                self.say(&format!("{what}: NOT VALID: {error:#}"));
                self.results.faults.push(format!("{what}: {error:#}"));
                None
            }
        }
    }

    fn part(&mut self, part: &str) {
        match part {
            "verify" => self.verify(),
            "table" => (0..self.options.rounds).for_each(|round| self.round(round)),
            "accept" => (0..self.options.rounds).for_each(|_| self.accept()),
            "driver" => self.driver(),
            "cores" => {
                self.say("two server cores");
                self.results.scaling = self.taken("two cores", cores::measure()).unwrap_or_default();
            }
            "latency" => {
                let result = self.bed.nfsplice("splice", &Workload { set: Set::Hot, ..READ_4K }.with_pace(1, 1), &self.pace());
                self.results.depth_one = self.taken("READ 4 KiB at depth 1", result);
            }
            "curves" => self.curves(),
            "meter" => self.meter(),
            _ => {
                let result = tap::measure(&self.bed, self.options.duration);
                self.results.tap = self.taken("TAP", result);
            }
        }
    }

    /// All rows of one peer after the other. `None`: the peer did not start.
    fn with_peer(&mut self, peer: Peer, rows: &[(Workload, Pace)], mut each: impl FnMut(&mut Self, &Workload, &Pace, Sample)) {
        let bed = Rc::clone(&self.bed);
        let ganesha = (peer == Peer::Ganesha).then(|| bed.ganesha());
        let sendfile = (peer == Peer::Sendfile).then(|| bed.sendfile());
        for (workload, pace) in rows.iter().filter(|(workload, _)| peer.takes(workload)) {
            let result = match (peer, &ganesha, &sendfile) {
                (Peer::Copy, ..) => bed.nfsplice("copy", workload, pace),
                (_, Some(Ok(ganesha)), _) => ganesha.run(workload, pace),
                (_, _, Some(Ok(sendfile))) => sendfile.run(workload, pace),
                (_, Some(Err(error)), _) | (_, _, Some(Err(error))) => Err(anyhow::anyhow!("{error:#}")),
                _ => bed.nfsplice("splice", workload, pace),
            };
            let what = format!("{}, {}", peer.name(), workload.full_name());
            if let Some(sample) = self.taken(&what, result) {
                self.say(&format!(
                    "{what}: {:.0} cycles, {:.0} ops/s, core {:.0} % busy",
                    sample.cycles,
                    sample.operations_per_s,
                    100.0 * sample.busy
                ));
                each(self, workload, pace, sample);
            }
        }
    }

    fn peers(&self) -> Vec<Peer> {
        Peer::ALL.into_iter().filter(|peer| *peer != Peer::Ganesha || self.ganesha).collect()
    }

    /// Every byte that a READ brings is compared once, for each peer and size.
    fn verify(&mut self) {
        self.say("comparing every byte");
        let pace = Pace { duration: Duration::from_millis(1200), rate: None, verify: true };
        let rows: Vec<(Workload, Pace)> = TABLE
            .iter()
            .filter(|workload| workload.verified_mix.is_some() && workload.set == Set::Large)
            .map(|workload| (*workload, pace))
            .collect();
        for peer in self.peers() {
            self.with_peer(peer, &rows, |_, _, _, _| {});
        }
    }

    fn round(&mut self, round: usize) {
        self.say(&format!("round {} of {}", round + 1, self.options.rounds));
        let rows = TABLE.map(|workload| (workload, self.pace()));
        for peer in self.peers() {
            self.with_peer(peer, &rows, |bench, workload, _, sample| bench.results.add(peer, workload, sample));
        }
    }

    /// Connections that come and go, each for one call.
    fn accept(&mut self) {
        let rows = [(CONNECT, self.pace())];
        for peer in self.peers().into_iter().filter(|peer| matches!(peer, Peer::Splice | Peer::Ganesha)) {
            self.with_peer(peer, &rows, |bench, workload, _, sample| bench.results.add(peer, workload, sample));
        }
    }

    fn driver(&mut self) {
        if let Some(program) = driver::missing() {
            return self.skip(&format!("testpmd: {program} is not installed (scripts/install.sh bench)"));
        }
        if let Some(ceilings) = self.taken("driver", driver::measure()) {
            self.results.ceilings = ceilings;
        }
    }

    fn curves(&mut self) {
        let pace = self.pace();
        let reads: Vec<(Workload, Pace)> = SIZES
            .iter()
            .map(|&bytes| {
                (Workload { bytes, set: CURVE_SET, ..READ_4K }.with_pace(4, (512 << 10 >> bytes.ilog2()).clamp(2, 32)), pace)
            })
            .collect();
        for peer in self.peers() {
            self.with_peer(peer, &reads, |bench, workload, _, sample| {
                bench.results.by_size.push(Point { peer: peer.name(), x: workload.bytes.into(), sample });
            });
        }
        let hot = Workload { set: Set::Hot, ..READ_4K };
        for peer in self.peers().into_iter().filter(|peer| matches!(peer, Peer::Splice | Peer::Ganesha)) {
            let mut most = 0.0;
            self.with_peer(peer, &[(hot, pace)], |_, _, _, sample| most = sample.operations_per_s);
            let rows: Vec<(Workload, Pace)> =
                LOADS.iter().map(|share| (hot, Pace { rate: Some((share * most).max(1.0)), ..pace })).collect();
            self.with_peer(peer, &rows, |bench, _, pace, sample| {
                let x = pace.rate.unwrap_or(0.0);
                bench.results.by_load.push(Point { peer: peer.name(), x, sample });
            });
        }
    }

    fn meter(&mut self) {
        for result in meter::checks(&self.bed, &self.pace()) {
            match result {
                Ok(check) => {
                    self.say(&format!(
                        "meter: {}: {:.0} cycles, by {} {:.0}",
                        check.workload, check.metered, check.how, check.otherwise
                    ));
                    self.results.checks.push(check);
                }
                Err(error) => self.skip(&format!("the meter's check: {error:#}")),
            }
        }
    }

    fn finish(&mut self, out: &Path) -> Result<()> {
        for cell in &self.results.cells {
            if cell.peer == Peer::Splice.name() && cell.median.payload_bytes_copied > 0 {
                let fault = format!("{}, {}: payload bytes were copied", cell.peer, cell.workload);
                self.results.faults.push(fault);
            }
        }
        let markdown = self.results.to_markdown();
        std::fs::write(out.join("results.json"), serde_json::to_vec_pretty(&self.results)?)?;
        std::fs::write(out.join("results.md"), &markdown)?;
        for (name, svg) in self.results.plots() {
            std::fs::write(out.join(name), svg)?;
        }
        println!("{markdown}");
        self.say(&format!("results.md, results.json and plots are in {}", peers::shown(out)));
        match self.results.faults.len() {
            0 => Ok(()),
            faults => bail!("{faults} figures are not valid: see above"),
        }
    }
}

impl Results {
    fn add(&mut self, peer: Peer, workload: &Workload, sample: Sample) {
        let name = workload.full_name();
        let at = self.cells.iter().position(|cell| cell.peer == peer.name() && cell.workload == name).unwrap_or_else(|| {
            self.cells.push(Cell { peer: peer.name(), workload: name, median: Sample::default(), samples: Vec::new() });
            self.cells.len() - 1
        });
        let cell = &mut self.cells[at];
        cell.samples.push(sample);
        cell.median = Sample::median(&cell.samples);
    }
}
