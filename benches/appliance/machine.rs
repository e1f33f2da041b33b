//! The machine: what stands in the table's head, and hugepages for the time of the run.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use serde::Serialize;

use crate::{peers, process};

const NR_HUGEPAGES: &str = "/proc/sys/vm/nr_hugepages";

#[derive(Clone, Debug, Serialize)]
pub struct Machine {
    pub cpu: String,
    pub cpus: usize,
    pub tsc_mhz: u64,
    pub cache_l3: String,
    pub memory_gib: u64,
    pub kernel: String,
    pub dpdk: String,
    pub rustc: String,
    pub ganesha: String,
    pub commit: String,
    pub hugepages: bool,
    pub date: String,
}

fn first_line(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output();
    let text = output.map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default();
    text.lines().next().unwrap_or("unknown").trim().to_owned()
}

fn field(path: &str, name: &str) -> String {
    let text = fs::read_to_string(path).unwrap_or_default();
    let line = text.lines().find(|line| line.starts_with(name)).unwrap_or_default();
    line.split_once(':').map_or(String::new(), |(_, value)| value.trim().to_owned())
}

impl Machine {
    pub fn this(hz: f64, hugepages: bool) -> Machine {
        let kib: u64 = field("/proc/meminfo", "MemTotal").split(' ').next().and_then(|word| word.parse().ok()).unwrap_or(0);
        Machine {
            cpu: field("/proc/cpuinfo", "model name"),
            cpus: std::thread::available_parallelism().map_or(0, usize::from),
            tsc_mhz: (hz / 1e6).round() as u64,
            cache_l3: fs::read_to_string("/sys/devices/system/cpu/cpu0/cache/index3/size").unwrap_or_default().trim().to_owned(),
            memory_gib: kib.div_ceil(1 << 20),
            kernel: first_line("uname", &["-r"]).split('-').next().unwrap_or_default().to_owned(),
            dpdk: dpdk::eal::version(),
            rustc: first_line("rustc", &["--version"]),
            ganesha: peers::ganesha_version(),
            commit: first_line("git", &["rev-parse", "--short", "HEAD"]),
            hugepages,
            date: first_line("date", &["-u", "+%Y-%m-%d %H:%M UTC"]),
        }
    }
}

/// How fast the time-stamp counter runs, against the system's clock.
pub fn measure_tsc_hz() -> f64 {
    let (began, before) = (Instant::now(), dpdk::cycles());
    std::thread::sleep(Duration::from_millis(200));
    let (elapsed, after) = (began.elapsed(), dpdk::cycles());
    // The hardware's rates are multiples of a megahertz.
    ((after - before) as f64 / elapsed.as_secs_f64() / 1e6).round() * 1e6
}

/// Hugepages that were reserved for the run; given back when dropped.
pub struct Hugepages {
    before: u64,
}

impl Hugepages {
    /// None when the kernel has not that many free: then ordinary pages have to do.
    pub fn reserve(pages: u64) -> Option<Hugepages> {
        let read = || fs::read_to_string(NR_HUGEPAGES).ok()?.trim().parse::<u64>().ok();
        let before = read()?;
        process::remember_setting(Path::new(NR_HUGEPAGES), &format!("{before}\n"));
        fs::write(NR_HUGEPAGES, format!("{}\n", before + pages)).ok()?;
        let reserved = Hugepages { before };
        (read()? >= before + pages).then_some(reserved)
    }
}

impl Drop for Hugepages {
    fn drop(&mut self) {
        let _ = fs::write(NR_HUGEPAGES, format!("{}\n", self.before));
    }
}
