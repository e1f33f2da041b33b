//! HyStart++: leaves slow start when the round-trip time grows, before the queue overflows.
//!
//! Read first: RFC 9406 section 4. Only in the initial slow start (section 4.3). Growth is not capped at L segments for each ACK: the
//! ACK of a whole TSO chain counts as the segments it covers, as everywhere here. Not here: the window (each controller's own).

use super::AckSample;
use crate::time::Duration;

/// RFC 9406 section 4.3. Microseconds where they are times.
const MIN_RTT_THRESH: u32 = 4_000;
const MAX_RTT_THRESH: u32 = 16_000;
const MIN_RTT_DIVISOR: u32 = 8;
const N_RTT_SAMPLE: u8 = 8;
pub(super) const CSS_GROWTH_DIVISOR: u64 = 4;
const CSS_ROUNDS: u8 = 5;
const INFINITE: u32 = u32::MAX;

/// How the window may grow on this ACK.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Growth {
    SlowStart,
    /// Conservative slow start: by a `CSS_GROWTH_DIVISOR`th.
    Conservative,
    /// Slow start is over.
    End,
}

#[derive(Clone, Copy, Debug)]
struct Css {
    baseline: u32,
    rounds: u8,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct HyStart {
    /// SND.NXT when this round began; 0 before the first ACK.
    window_end: u64,
    last_round_min: u32,
    current_round_min: u32,
    samples: u8,
    css: Option<Css>,
}

impl HyStart {
    pub fn new() -> HyStart {
        HyStart { window_end: 0, last_round_min: INFINITE, current_round_min: INFINITE, samples: 0, css: None }
    }

    /// For each ACK of new data in slow start (section 4.2).
    pub fn on_ack(&mut self, sample: &AckSample) -> Growth {
        if self.window_end == 0 {
            self.window_end = sample.next;
        }
        if let Some(rtt) = sample.rtt {
            self.current_round_min = self.current_round_min.min(micros(rtt));
            self.samples = self.samples.saturating_add(u8::try_from(sample.acks.max(1)).unwrap_or(u8::MAX));
            self.judge();
        }
        if sample.acknowledged >= self.window_end {
            (self.last_round_min, self.current_round_min, self.samples) = (self.current_round_min, INFINITE, 0);
            self.window_end = sample.next;
            if let Some(css) = &mut self.css {
                css.rounds += 1;
            }
        }
        match self.css {
            None => Growth::SlowStart,
            Some(css) if css.rounds >= CSS_ROUNDS => Growth::End,
            Some(_) => Growth::Conservative,
        }
    }

    fn judge(&mut self) {
        if self.samples < N_RTT_SAMPLE || self.current_round_min == INFINITE {
            return;
        }
        match self.css {
            // The growth was a passing one.
            Some(css) if self.current_round_min < css.baseline => self.css = None,
            Some(_) => {}
            None if self.last_round_min == INFINITE => {}
            None => {
                let threshold = (self.last_round_min / MIN_RTT_DIVISOR).clamp(MIN_RTT_THRESH, MAX_RTT_THRESH);
                if self.current_round_min >= self.last_round_min.saturating_add(threshold) {
                    self.css = Some(Css { baseline: self.current_round_min, rounds: 0 });
                }
            }
        }
    }
}

fn micros(time: Duration) -> u32 {
    u32::try_from(time.as_micros()).unwrap_or(INFINITE - 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A round of ten ACKs that took `rtt` ms each; how the window may grow after each.
    fn round(hystart: &mut HyStart, number: u64, rtt: u64) -> Vec<Growth> {
        let ack = |n| AckSample {
            rtt: Some(Duration::from_millis(rtt)),
            acknowledged: number * 10 + n,
            // Each ACK lets one more go.
            next: number * 10 + 10 + n,
            ..AckSample::default()
        };
        (1..=10).map(|n| hystart.on_ack(&ack(n))).collect()
    }

    #[test]
    fn a_steady_round_trip_never_ends_slow_start() {
        let mut hystart = HyStart::new();
        for number in 1..30 {
            // Less than an eighth, and less than 4 ms where that is more.
            let rtt = if number % 2 == 0 { 20 } else { 23 };
            assert!(round(&mut hystart, number, rtt).iter().all(|growth| *growth == Growth::SlowStart), "round {number}");
        }
    }

    #[test]
    fn a_growing_one_ends_it_after_five_careful_rounds() {
        let mut hystart = HyStart::new();
        for number in 1..4 {
            round(&mut hystart, number, 40);
        }
        // An eighth more, seen at the eighth sample of the round, whose first ACK ended the one before.
        let growth = round(&mut hystart, 4, 45);
        assert_eq!((growth[7], growth[8]), (Growth::SlowStart, Growth::Conservative));
        let mut ended = None;
        for number in 5..12 {
            if round(&mut hystart, number, 46).contains(&Growth::End) {
                ended = ended.or(Some(number));
            }
        }
        assert_eq!(ended, Some(9), "CSS_ROUNDS, the round of the discovery included");
    }

    #[test]
    fn a_passing_one_resumes_slow_start() {
        let mut hystart = HyStart::new();
        for number in 1..4 {
            round(&mut hystart, number, 40);
        }
        round(&mut hystart, 4, 60);
        assert_eq!(round(&mut hystart, 5, 40)[9], Growth::SlowStart);
    }
}
