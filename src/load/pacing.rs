//! When the next call is to be made.
//!
//! Closed loop: as soon as there is room below the depth; a call's latency counts from when it is sent. Open loop: at instants that
//! do not depend on the server. A call that cannot be sent at its instant, because the depth is reached or the generator is
//! late, is sent later, and its latency still counts from that instant: a server that stalls is charged for every call
//! that would have come meanwhile (no coordinated omission).
//!
//! During the ramp the depth, or the rate, grows linearly from next to nothing.

use crate::control::load_cli::Arrival;
use crate::net::memory_link::Random;
use crate::time::{Duration, Instant};

/// One core's pace.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Pace {
    Closed,
    Open {
        /// Calls per second of this core.
        rate: f64,
        arrival: Arrival,
    },
}

/// Gives out permissions to send.
pub struct Pacing {
    pace: Pace,
    random: Random,
    start: Instant,
    ramp: Duration,
    /// The open loop's next arrival.
    next: Instant,
}

impl Pacing {
    /// `ramp` follows `start`.
    pub fn new(pace: Pace, seed: u64, start: Instant, ramp: Duration) -> Pacing {
        let mut pacing = Pacing { pace, random: Random::new(seed), start, ramp, next: start };
        if matches!(pace, Pace::Open { .. }) {
            pacing.next = start + pacing.gap();
        }
        pacing
    }

    /// Share of the full load at `at`: 0 to 1.
    fn level(&self, at: Instant) -> f64 {
        if self.ramp.is_zero() {
            return 1.0;
        }
        (at.since(self.start).as_secs_f64() / self.ramp.as_secs_f64()).min(1.0)
    }

    /// Calls that may be outstanding now, of `full`: the closed loop's ramp. At least one.
    pub fn outstanding_max(&self, now: Instant, full: usize) -> usize {
        match self.pace {
            Pace::Open { .. } => full,
            Pace::Closed => ((full as f64 * self.level(now)).ceil() as usize).clamp(1, full.max(1)),
        }
    }

    /// If a call is due at `now`: from when its latency counts.
    pub fn take(&mut self, now: Instant) -> Option<Instant> {
        match self.pace {
            Pace::Closed => Some(now),
            Pace::Open { .. } if self.next > now => None,
            Pace::Open { .. } => {
                let due = self.next;
                self.next = due + self.gap();
                Some(due)
            }
        }
    }

    /// When the next call is due; `None` for a closed loop.
    pub fn poll_timeout(&self) -> Option<Instant> {
        matches!(self.pace, Pace::Open { .. }).then_some(self.next)
    }

    /// How late the generator is: time since the arrival that it has not sent yet.
    pub fn behind(&self, now: Instant) -> Duration {
        self.poll_timeout().map_or(Duration::ZERO, |next| now.since(next))
    }

    /// From `next` to the arrival behind it: until the rate, which grows in proportion to the time while the ramp lasts, has added
    /// up to one call (or, for Poisson arrivals, to as much as the exponential distribution gives).
    fn gap(&mut self) -> Duration {
        let Pace::Open { rate, arrival } = self.pace else { return Duration::ZERO };
        let rate = rate.max(1e-6);
        let calls = match arrival {
            Arrival::Uniform => 1.0,
            // Inverse transform; 53 random bits, never 0.
            Arrival::Poisson => -(((self.random.draw() >> 11) + 1) as f64 / (1u64 << 53) as f64).ln(),
        };
        let (since, ramp) = (self.next.since(self.start).as_secs_f64(), self.ramp.as_secs_f64());
        let gap = if since < ramp {
            // The calls of the ramp's first t seconds are rate * t^2 / (2 * ramp).
            let left_in_ramp = rate * (ramp * ramp - since * since) / (2.0 * ramp);
            match calls < left_in_ramp {
                true => (since * since + 2.0 * ramp * calls / rate).sqrt() - since,
                false => ramp - since + (calls - left_in_ramp) / rate,
            }
        } else {
            calls / rate
        };
        // A nanosecond at least: arrivals must not stand still.
        Duration::from_secs_f64(gap.clamp(1e-9, 1e6))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(micros: u64) -> Instant {
        Instant::from_nanos(micros * 1000)
    }

    fn open(rate: f64, arrival: Arrival, ramp: Duration) -> Pacing {
        Pacing::new(Pace::Open { rate, arrival }, 5, at(0), ramp)
    }

    #[test]
    fn equal_gaps_keep_their_instants_however_late_they_are_asked_for() {
        let mut pacing = open(1e6, Arrival::Uniform, Duration::ZERO);
        assert_eq!(pacing.take(at(0)), None);
        assert_eq!(pacing.poll_timeout(), Some(at(1)));
        // The generator stalls: the arrivals of the stall are all there, each with its own instant.
        let due: Vec<u64> = std::iter::from_fn(|| pacing.take(at(10))).map(Instant::nanos).collect();
        assert_eq!(due, (1..=10).map(|n| n * 1000).collect::<Vec<_>>());
        assert_eq!(pacing.behind(at(15)), Duration::from_micros(4));
    }

    #[test]
    fn poisson_arrivals_have_the_rate_and_the_spread() {
        let mut pacing = open(1e5, Arrival::Poisson, Duration::ZERO);
        let arrivals: Vec<u64> = std::iter::from_fn(|| pacing.take(at(1_000_000))).map(Instant::nanos).collect();
        assert!((99_000..101_000).contains(&arrivals.len()), "{}", arrivals.len());
        let gaps: Vec<f64> = arrivals.windows(2).map(|pair| (pair[1] - pair[0]) as f64).collect();
        let mean = gaps.iter().sum::<f64>() / gaps.len() as f64;
        let deviation = (gaps.iter().map(|gap| (gap - mean).powi(2)).sum::<f64>() / gaps.len() as f64).sqrt();
        // An exponential distribution's standard deviation is its mean.
        assert!((deviation / mean - 1.0).abs() < 0.02, "{deviation} {mean}");
    }

    #[test]
    fn a_ramp_sends_half_as_much() {
        let mut pacing = open(1e5, Arrival::Uniform, Duration::from_secs(1));
        let ramped = std::iter::from_fn(|| pacing.take(at(1_000_000))).count();
        assert!((49_000..51_000).contains(&ramped), "{ramped}");
    }

    #[test]
    fn a_ramp_that_is_short_beside_the_gaps_does_not_hold_up_the_first_call() {
        let mut pacing = open(200.0, Arrival::Uniform, Duration::from_millis(100));
        let due: Vec<u64> = std::iter::from_fn(|| pacing.take(at(500_000))).map(|due| due.nanos() / 1_000_000).collect();
        // sqrt(2 * 0.1 s / 200) = 31.6 ms; ten calls in the ramp, then one every 5 ms.
        assert_eq!((due[0], due[9], due.len()), (31, 100, 90));
    }

    #[test]
    fn a_closed_loop_grows_to_its_depth() {
        let pacing = Pacing::new(Pace::Closed, 1, at(0), Duration::from_micros(100));
        let allowed: Vec<usize> = [0, 1, 25, 50, 100, 900].map(|now| pacing.outstanding_max(at(now), 8)).into();
        assert_eq!(allowed, [1, 1, 2, 4, 8, 8]);
    }
}
