//! What the server costs, as the first lines of `nfsplice stats`: cycles per call and by stage, how busy each core is, how much
//! one burst carries. All of it follows from the counters of one report, or from what two of them differ in.

use std::fmt::Write as _;

use super::stats::{CoreTime, Report};

/// The stages of a turn as the counters name them, in their order.
const STAGES: [&str; 4] = ["receive", "serve", "transmit", "flush"];

/// Since `before`, or since the server's start. Lines whose counters the server does not have, or that nothing happened for, are
/// left out.
pub fn lines(before: Option<&Report>, now: &Report) -> String {
    let span = Span { before, now };
    let mut text = String::new();
    span.write_cycles(&mut text);
    span.write_busy(&mut text);
    span.write_bursts(&mut text);
    text
}

struct Span<'r> {
    before: Option<&'r Report>,
    now: &'r Report,
}

/// A restarted server counts from 0 again.
fn grown(earlier: u64, later: u64) -> u64 {
    later.checked_sub(earlier).unwrap_or(later)
}

impl Span<'_> {
    /// How much a counter has grown; 0 when the server does not have it.
    fn growth(&self, name: &str) -> u64 {
        let value = |report: &Report| report.counters.get(name).copied().unwrap_or(0);
        grown(self.before.map_or(0, value), value(self.now))
    }

    fn ratio(&self, above: &str, below: &str) -> Option<f64> {
        match self.growth(below) {
            0 => None,
            below => Some(self.growth(above) as f64 / below as f64),
        }
    }

    fn write_cycles(&self, text: &mut String) {
        let calls = self.growth("rpc.rpccnt");
        let busy = self.growth("cycles.busy");
        if calls == 0 || busy == 0 {
            return;
        }
        let per_call = |cycles: u64| cycles as f64 / calls as f64;
        let _ = write!(text, "cycles/call {:.0}:", per_call(busy));
        for stage in STAGES {
            let _ = write!(text, " {stage} {:.0}", per_call(self.growth(&format!("cycles.{stage}"))));
        }
        let mhz = self.now.counters.get("machine.tsc_hz").copied().unwrap_or(0) / 1_000_000;
        let _ = writeln!(text, "; {calls} calls, {mhz} MHz");
    }

    fn write_busy(&self, text: &mut String) {
        let earlier = |core: usize| self.before.and_then(|report| report.cores.get(core).copied()).unwrap_or_default();
        let mut words = String::new();
        for (core, time) in self.now.cores.iter().enumerate() {
            let before = earlier(core);
            // Of a restarted server only its own time counts.
            let before = if time.elapsed < before.elapsed { CoreTime::default() } else { before };
            let elapsed = time.elapsed - before.elapsed;
            if elapsed > 0 {
                let share = time.busy.saturating_sub(before.busy) as f64 / elapsed as f64;
                let _ = write!(words, " core{core} {:.1}%", 100.0 * share);
            }
        }
        if !words.is_empty() {
            let _ = writeln!(text, "busy{words}");
        }
    }

    fn write_bursts(&self, text: &mut String) {
        for port in (0..).map(|at| format!("port{at}")) {
            if !self.now.counters.contains_key(&format!("{port}.tx_chains")) {
                return;
            }
            let of = |above: &str, below: &str| self.ratio(&format!("{port}.{above}"), &format!("{port}.{below}")).unwrap_or(0.0);
            let _ = writeln!(
                text,
                "{port} frames/rx-burst {:.1} chains/tx-burst {:.1} segments/chain {:.1} bytes-copied {}",
                of("rx_frames", "rx_bursts"),
                of("tx_chains", "tx_bursts"),
                of("tx_segments", "tx_chains"),
                self.growth(&format!("{port}.tx_payload_bytes_copied")),
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::stats::About;

    fn report(values: &[(&str, u64)], cores: &[(u64, u64)]) -> Report {
        Report {
            server: About { version: "0.1.0".into(), config: "tap.toml".into(), pid: 42, uptime_s: 1 },
            counters: values.iter().map(|(name, value)| ((*name).to_owned(), *value)).collect(),
            gauges: Vec::new(),
            cores: cores.iter().map(|&(elapsed, busy)| CoreTime { elapsed, busy }).collect(),
            by_core: Vec::new(),
        }
    }

    fn busy_server() -> Report {
        let values = [
            ("rpc.rpccnt", 10),
            ("cycles.busy", 20_000),
            ("cycles.receive", 5_000),
            ("cycles.serve", 9_000),
            ("cycles.transmit", 4_000),
            ("cycles.flush", 2_000),
            ("machine.tsc_hz", 2_600_000_000),
            ("port0.rx_frames", 30),
            ("port0.rx_bursts", 10),
            ("port0.tx_chains", 20),
            ("port0.tx_bursts", 8),
            ("port0.tx_segments", 90),
            ("port0.tx_payload_bytes_copied", 0),
        ];
        report(&values, &[(100_000, 20_000), (100_000, 0)])
    }

    #[test]
    fn a_report_tells_cycles_per_call_busy_shares_and_bursts() {
        let expected = "cycles/call 2000: receive 500 serve 900 transmit 400 flush 200; 10 calls, 2600 MHz\n\
            busy core0 20.0% core1 0.0%\n\
            port0 frames/rx-burst 3.0 chains/tx-burst 2.5 segments/chain 4.5 bytes-copied 0\n";
        assert_eq!(lines(None, &busy_server()), expected);
    }

    #[test]
    fn two_reports_tell_what_happened_between_them() {
        let mut later = busy_server();
        *later.counters.get_mut("rpc.rpccnt").unwrap() += 2;
        *later.counters.get_mut("cycles.busy").unwrap() += 600;
        *later.counters.get_mut("cycles.serve").unwrap() += 600;
        later.cores[0] = CoreTime { elapsed: 101_000, busy: 20_600 };
        let text = lines(Some(&busy_server()), &later);
        assert!(text.starts_with("cycles/call 300: receive 0 serve 300 transmit 0 flush 0; 2 calls"), "{text}");
        assert!(text.contains("busy core0 60.0%\n"), "{text}");
    }

    #[test]
    fn a_restarted_server_is_not_compared_with_the_one_before() {
        let before = report(&[("rpc.rpccnt", 50), ("cycles.busy", 900_000)], &[(9_000_000, 900_000)]);
        let text = lines(Some(&before), &busy_server());
        assert!(text.starts_with("cycles/call 2000:") && text.contains("busy core0 20.0%"), "{text}");
    }

    #[test]
    fn a_server_without_those_counters_has_no_such_lines() {
        assert_eq!(lines(None, &report(&[("net.frames_in", 1)], &[])), "");
    }
}
