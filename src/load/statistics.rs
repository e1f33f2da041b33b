//! What a run has measured: latencies by kind of call, intervals, and everything that went wrong.
//!
//! A core records into a [`Sample`]; at the end of each interval it hands the sample on and goes on with an empty one, so that nothing
//! is shared while it measures. [`Totals`] adds samples up, over cores and over intervals.

use std::collections::BTreeMap;

use hdrhistogram::Histogram;

use super::protocol::{Fault, Verb};
use crate::time::Duration;

/// The longest latency that is told apart, ns: an hour.
const LATENCY_MAX_NS: u64 = 3_600_000_000_000;
/// Decimal digits to which latencies are kept.
const DIGITS: u8 = 3;

crate::counters! {
    /// What went wrong. A clean run has 0 everywhere.
    pub struct Faults {
        /// Replies in which the server's RPC refused the call.
        rejected,
        /// Replies with a status other than NFS3_OK.
        status_errors,
        /// Replies that do not decode.
        malformed,
        /// Replies to calls that nobody made.
        unknown_xids,
        /// Streams in which the start of the next reply was lost.
        bad_records,
        /// Calls that were not answered in time.
        timeouts,
        /// Connections that ended.
        connections_lost,
        /// Calls that were outstanding on them.
        calls_lost,
        /// READs that returned less than was asked for and is in the file.
        short_reads,
        /// WRITEs that took less than was sent.
        short_writes,
        /// READs whose data are not the pattern.
        verify_failures,
        /// Bytes of these that are wrong.
        wrong_bytes,
        /// Times the write verifier changed: the server lost what was not committed.
        verifier_changes,
        /// Arrivals of an open loop that were not sent when the run ended.
        unsent,
    }
}

impl Faults {
    pub fn add(&mut self, other: &Faults) {
        let sum = |a: &mut u64, b: u64| *a += b;
        sum(&mut self.rejected, other.rejected);
        sum(&mut self.status_errors, other.status_errors);
        sum(&mut self.malformed, other.malformed);
        sum(&mut self.unknown_xids, other.unknown_xids);
        sum(&mut self.bad_records, other.bad_records);
        sum(&mut self.timeouts, other.timeouts);
        sum(&mut self.connections_lost, other.connections_lost);
        sum(&mut self.calls_lost, other.calls_lost);
        sum(&mut self.short_reads, other.short_reads);
        sum(&mut self.short_writes, other.short_writes);
        sum(&mut self.verify_failures, other.verify_failures);
        sum(&mut self.wrong_bytes, other.wrong_bytes);
        sum(&mut self.verifier_changes, other.verifier_changes);
        sum(&mut self.unsent, other.unsent);
    }

    pub fn is_clean(&self) -> bool {
        *self == Faults::default()
    }

    pub fn count(&mut self, fault: Fault) {
        match fault {
            Fault::Rejected { .. } => self.rejected += 1,
            Fault::Status(_) => self.status_errors += 1,
            Fault::Malformed => self.malformed += 1,
        }
    }
}

/// Latencies in ns.
pub fn latencies() -> Histogram<u64> {
    // The bounds are constants that the constructor accepts.
    Histogram::new_with_bounds(1, LATENCY_MAX_NS, DIGITS).expect("valid bounds")
}

/// One kind of call.
#[derive(Clone)]
pub struct VerbSample {
    pub calls: u64,
    /// Bytes of file data read or written.
    pub bytes: u64,
    pub latency_ns: Histogram<u64>,
}

impl VerbSample {
    fn new() -> VerbSample {
        VerbSample { calls: 0, bytes: 0, latency_ns: latencies() }
    }

    fn add(&mut self, other: &VerbSample) {
        self.calls += other.calls;
        self.bytes += other.bytes;
        // Both have the same bounds, so there is nothing that does not fit.
        let _ = self.latency_ns.add(&other.latency_ns);
    }
}

/// What was measured in some time, by one core or by all.
#[derive(Clone, Default)]
pub struct Sample {
    /// By `Verb as usize`; `None`: none was made.
    verbs: [Option<Box<VerbSample>>; Verb::ALL.len()],
    pub faults: Faults,
    /// nfsstat3 to how often.
    pub statuses: BTreeMap<u32, u64>,
    /// Bytes compared with the pattern.
    pub verified_bytes: u64,
    /// Time of the loop's turns in which something happened.
    pub busy_ns: u64,
}

impl Sample {
    /// A call was answered.
    #[inline]
    pub fn record(&mut self, verb: Verb, latency: Duration, bytes: u64) {
        let slot = self.verbs[verb as usize].get_or_insert_with(|| Box::new(VerbSample::new()));
        slot.calls += 1;
        slot.bytes += bytes;
        slot.latency_ns.saturating_record(u64::try_from(latency.as_nanos()).unwrap_or(u64::MAX).max(1));
    }

    pub fn fault(&mut self, fault: Fault) {
        self.faults.count(fault);
        if let Fault::Status(status) = fault {
            *self.statuses.entry(status).or_default() += 1;
        }
    }

    pub fn add(&mut self, other: &Sample) {
        for (own, others) in self.verbs.iter_mut().zip(&other.verbs) {
            let Some(others) = others else { continue };
            own.get_or_insert_with(|| Box::new(VerbSample::new())).add(others);
        }
        self.faults.add(&other.faults);
        for (status, count) in &other.statuses {
            *self.statuses.entry(*status).or_default() += count;
        }
        self.verified_bytes += other.verified_bytes;
        self.busy_ns += other.busy_ns;
    }

    /// Empties the sample, keeping its memory.
    pub fn clear(&mut self) {
        for verb in self.verbs.iter_mut().flatten() {
            (verb.calls, verb.bytes) = (0, 0);
            verb.latency_ns.reset();
        }
        self.faults = Faults::default();
        self.statuses.clear();
        (self.verified_bytes, self.busy_ns) = (0, 0);
    }

    /// The kinds of calls that were made.
    pub fn verbs(&self) -> impl Iterator<Item = (Verb, &VerbSample)> {
        let made = Verb::ALL.into_iter().zip(&self.verbs);
        made.filter_map(|(verb, sample)| Some((verb, sample.as_deref()?))).filter(|(_, sample)| sample.calls > 0)
    }

    /// All kinds together.
    pub fn all(&self) -> VerbSample {
        let mut all = VerbSample::new();
        self.verbs().for_each(|(_, sample)| all.add(sample));
        all
    }

    pub fn calls(&self) -> u64 {
        self.verbs().map(|(_, sample)| sample.calls).sum()
    }

    pub fn bytes(&self) -> u64 {
        self.verbs().map(|(_, sample)| sample.bytes).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(verb: Verb, latencies_us: &[u64]) -> Sample {
        let mut sample = Sample::default();
        for &micros in latencies_us {
            sample.record(verb, Duration::from_micros(micros), 10);
        }
        sample
    }

    #[test]
    fn adding_samples_is_as_if_one_had_recorded_everything() {
        let parts: [&[u64]; 3] = [&[1, 2, 3], &[10, 20, 30_000], &[7]];
        let mut sum = Sample::default();
        for part in parts {
            sum.add(&sample(Verb::Read, part));
        }
        sum.add(&sample(Verb::Null, &[5]));
        let whole = sample(Verb::Read, &parts.concat());
        let (_, read) = sum.verbs().find(|(verb, _)| *verb == Verb::Read).unwrap();
        let (_, expected) = whole.verbs().next().unwrap();
        assert_eq!(read.latency_ns, expected.latency_ns);
        assert_eq!((sum.calls(), sum.bytes(), sum.all().latency_ns.len()), (8, 80, 8));
    }

    #[test]
    fn a_cleared_sample_is_an_empty_one() {
        let mut sample = sample(Verb::Write, &[1, 2]);
        sample.fault(Fault::Status(70));
        sample.clear();
        assert_eq!((sample.calls(), sample.faults, sample.verbs().count()), (0, Faults::default(), 0));
        assert!(sample.statuses.is_empty() && sample.faults.is_clean());
    }

    #[test]
    fn faults_add_up_field_by_field() {
        use crate::counters::Counters;
        let mut one = Faults::default();
        one.count(Fault::Malformed);
        let all_ones = Faults {
            rejected: 1,
            status_errors: 1,
            malformed: 1,
            unknown_xids: 1,
            bad_records: 1,
            timeouts: 1,
            connections_lost: 1,
            calls_lost: 1,
            short_reads: 1,
            short_writes: 1,
            verify_failures: 1,
            wrong_bytes: 1,
            verifier_changes: 1,
            unsent: 1,
        };
        let mut sum = all_ones;
        sum.add(&all_ones);
        sum.visit(&mut |name, value| assert_eq!(value, 2, "{name}"));
        assert!(!one.is_clean());
    }

    #[test]
    fn latencies_beyond_the_longest_are_counted_as_the_longest() {
        let mut sample = Sample::default();
        sample.record(Verb::Null, Duration::from_secs(1 << 40), 0);
        sample.record(Verb::Null, Duration::ZERO, 0);
        assert_eq!(sample.all().latency_ns.len(), 2);
    }
}
