//! The round-trip time and the retransmission timeout made from it.
//!
//! Read first: RFC 6298; RFC 7323 section 4. Not here: which segments may be sampled (`recovery`), and the timer itself.

use crate::time::{Duration, Instant, nanos_of};

/// How long a minimum is believed (Linux: tcp_min_rtt_wlen), nanoseconds: 300 s.
const MIN_RTT_WINDOW: u64 = 300_000_000_000;
/// G of RFC 6298 section 2: the resolution of the timer wheel, rounded up to 1 ms; nanoseconds.
const CLOCK_GRANULARITY: u64 = 1_000_000;

const UNKNOWN: u64 = u64::MAX;

/// Nanoseconds inside: every acknowledgement comes by.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RttEstimator {
    /// `UNKNOWN` before the first sample, which no sample comes to.
    smoothed: u64,
    variance: u64,
    min: u64,
    min_at: Instant,
    /// Without backoff.
    rto: u64,
    /// With it.
    timeout: u64,
    backoff: u16,
    /// A sample was taken since the last tail loss probe.
    sampled_since_probe: bool,
}

impl RttEstimator {
    pub fn new(rto_initial: Duration, rto_max: Duration) -> RttEstimator {
        let rto = nanos_of(rto_initial);
        let timeout = rto.min(nanos_of(rto_max));
        RttEstimator {
            smoothed: UNKNOWN,
            variance: 0,
            min: u64::MAX,
            min_at: Instant::ZERO,
            rto,
            timeout,
            backoff: 0,
            sampled_since_probe: true,
        }
    }

    /// `rtt` in nanoseconds.
    pub fn sample(&mut self, now: Instant, rtt: u64, rto_min: Duration, rto_max: Duration) {
        self.observe(now, rtt);
        let smoothed = match self.smoothed_nanos() {
            // RFC 6298 section 2.2.
            None => {
                self.variance = rtt / 2;
                rtt
            }
            // RFC 6298 section 2.3: RTTVAR first, with the old SRTT.
            Some(smoothed) => {
                self.variance = self.variance - self.variance / 4 + smoothed.abs_diff(rtt) / 4;
                smoothed - smoothed / 8 + rtt / 8
            }
        };
        self.smoothed = smoothed.min(UNKNOWN - 1);
        // As Linux does, the floor bounds the variance term: RTO >= SRTT + floor, which leaves room for a delayed ACK.
        let margin = self.variance.saturating_mul(4).max(CLOCK_GRANULARITY).max(nanos_of(rto_min));
        self.rto = smoothed.saturating_add(margin).min(nanos_of(rto_max));
        // RFC 6298 section 5.7 and Karn: a fresh sample ends the backoff.
        (self.timeout, self.backoff) = (self.rto, 0);
        self.sampled_since_probe = true;
    }

    /// A round trip that took so long, for the minimum alone.
    #[inline]
    pub fn observe(&mut self, now: Instant, rtt: u64) {
        if rtt <= self.min || now.nanos_since(self.min_at) > MIN_RTT_WINDOW {
            (self.min, self.min_at) = (rtt, now);
        }
    }

    /// A sample from a timestamp on something sent more than once. If the original arrived and its ACK was lost, the echo
    /// is the original's and the time includes the backoff: such a sample may double the timeout, not set it to minutes.
    pub fn sample_ambiguous(&mut self, now: Instant, rtt: Duration, rto_min: Duration, rto_max: Duration) {
        let limit = if self.smoothed != UNKNOWN { self.rto.saturating_mul(2) } else { nanos_of(rto_max) };
        self.sample(now, nanos_of(rtt).min(limit), rto_min, rto_max);
    }

    /// RFC 6298 section 5.5.
    pub fn back_off(&mut self, rto_max: Duration) {
        self.backoff = (self.backoff + 1).min(16);
        self.timeout = self.rto.saturating_mul(1 << self.backoff).min(nanos_of(rto_max));
    }

    /// What was backed off were probes of a closed window, which has opened. An ACK of what was sent again ends no backoff (RFC 6298
    /// section 3, Karn): the timeout may be shorter than the round trip.
    pub fn end_backoff(&mut self, rto_max: Duration) {
        (self.timeout, self.backoff) = (self.rto.min(nanos_of(rto_max)), 0);
    }

    /// How often the timeout was doubled.
    pub fn backoff(&self) -> u32 {
        self.backoff.into()
    }

    /// RFC 8985 section 7.3: a tail loss probe has left; the next wants a sample first.
    pub fn on_probe_sent(&mut self) {
        self.sampled_since_probe = false;
    }

    #[inline]
    pub fn is_sampled_since_probe(&self) -> bool {
        self.sampled_since_probe
    }

    pub fn rto(&self) -> Duration {
        Duration::from_nanos(self.timeout)
    }

    pub fn rto_nanos(&self) -> u64 {
        self.timeout
    }

    /// When the retransmission timer expires that is started now.
    pub fn deadline(&self, now: Instant) -> Instant {
        now.after_nanos(self.timeout)
    }

    /// The same, as if it had not expired before.
    pub fn first_deadline(&self, now: Instant) -> Instant {
        now.after_nanos(self.rto)
    }

    /// RFC 6298 section 5.7: if the SYN had to be retransmitted and no sample exists, start over with 3 seconds.
    pub fn restart_after_syn_loss(&mut self, rto_max: Duration) {
        if self.smoothed == UNKNOWN {
            self.rto = self.rto.max(3_000_000_000);
        }
        self.end_backoff(rto_max);
    }

    pub fn smoothed(&self) -> Option<Duration> {
        self.smoothed_nanos().map(Duration::from_nanos)
    }

    pub fn smoothed_nanos(&self) -> Option<u64> {
        (self.smoothed != UNKNOWN).then_some(self.smoothed)
    }

    pub fn variance(&self) -> Duration {
        Duration::from_nanos(self.variance)
    }

    pub fn min(&self) -> Option<Duration> {
        self.min_nanos().map(Duration::from_nanos)
    }

    pub fn min_nanos(&self) -> Option<u64> {
        (self.smoothed != UNKNOWN).then_some(self.min)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FLOOR: Duration = Duration::from_millis(200);
    const MAX: Duration = Duration::from_secs(60);
    const MS: u64 = 1_000_000;

    fn ms(n: u64) -> Duration {
        Duration::from_millis(n)
    }

    #[test]
    fn the_first_sample_sets_and_later_ones_smooth() {
        let mut rtt = RttEstimator::new(ms(1000), MAX);
        assert_eq!(rtt.rto(), ms(1000));
        rtt.sample(Instant::ZERO, 100 * MS, FLOOR, MAX);
        assert_eq!((rtt.smoothed(), rtt.variance(), rtt.rto()), (Some(ms(100)), ms(50), ms(300)));
        rtt.sample(Instant::ZERO, 180 * MS, FLOOR, MAX);
        assert_eq!((rtt.smoothed(), rtt.variance()), (Some(ms(110)), Duration::from_micros(57_500)));
        assert_eq!((rtt.rto(), rtt.min()), (ms(340), Some(ms(100))));
    }

    #[test]
    fn an_ambiguous_sample_at_most_doubles_the_timeout() {
        let mut rtt = RttEstimator::new(ms(1000), MAX);
        rtt.sample(Instant::ZERO, 100 * MS, FLOOR, MAX);
        rtt.sample_ambiguous(Instant::ZERO, ms(50_000), FLOOR, MAX);
        assert_eq!(rtt.smoothed(), Some(ms(100) * 7 / 8 + ms(600) / 8));
    }

    #[test]
    fn backoff_doubles_up_to_the_maximum_and_ends_with_a_sample() {
        let mut rtt = RttEstimator::new(ms(1000), MAX);
        for expected in [2000, 4000, 8000, 16_000, 32_000, 60_000, 60_000] {
            rtt.back_off(MAX);
            assert_eq!(rtt.rto(), ms(expected));
        }
        rtt.sample(Instant::ZERO, MS, FLOOR, MAX);
        assert_eq!(rtt.rto(), ms(201));
    }
}
