//! NewReno's window: RFC 5681 with appropriate byte counting (RFC 3465), and HyStart++ (RFC 9406).

use super::hystart::{CSS_GROWTH_DIVISOR, Growth, HyStart};
use super::{AckSample, Congestion, initial_window};
use crate::time::Instant;

pub(crate) struct NewReno {
    mss: u64,
    window: u64,
    threshold: u64,
    /// Bytes acknowledged towards the next increase in congestion avoidance.
    acked: u64,
    before: (u64, u64),
    hystart: HyStart,
}

impl NewReno {
    pub fn new(mss: u64) -> NewReno {
        let window = initial_window(mss);
        NewReno { mss, window, threshold: u64::MAX, acked: 0, before: (window, u64::MAX), hystart: HyStart::new() }
    }

    /// For controllers that only reduce otherwise.
    pub(super) fn reduce_to(&mut self, window: u64) {
        self.before = (self.window, self.threshold);
        self.threshold = window.max(2 * self.mss);
        self.window = self.threshold;
        self.acked = 0;
    }
}

impl Congestion for NewReno {
    fn name(&self) -> &'static str {
        "newreno"
    }

    fn window(&self) -> u64 {
        self.window
    }

    fn slow_start_threshold(&self) -> u64 {
        self.threshold
    }

    fn set_mss(&mut self, mss: u64) {
        if self.window == initial_window(self.mss) {
            self.window = initial_window(mss);
        }
        self.mss = mss;
        self.window = self.window.max(mss);
    }

    fn on_ack(&mut self, sample: &AckSample) {
        if !sample.window_limited {
            return;
        }
        let mut acked = sample.acked;
        if self.window < self.threshold {
            // RFC 5681 equation 2; the ACK of a whole TSO chain counts as the segments it covers.
            let mut grow = acked.min(self.threshold - self.window);
            acked -= grow;
            if self.threshold == u64::MAX {
                match self.hystart.on_ack(sample) {
                    Growth::SlowStart => {}
                    Growth::Conservative => grow /= CSS_GROWTH_DIVISOR,
                    Growth::End => self.threshold = self.window + grow,
                }
            }
            self.window += grow;
        }
        self.acked += acked;
        // RFC 5681 section 3.1: one segment per window of acknowledged bytes.
        if self.acked >= self.window {
            self.acked -= self.window;
            self.window += self.mss;
        }
    }

    fn on_loss(&mut self, _now: Instant, in_flight: u64) {
        self.before = (self.window, self.threshold);
        // RFC 5681 equation 4. What was reported to have arrived (RFC 6675) counts in FlightSize until its hole is filled, and is
        // not in the network: behind a long recovery there is more of it than of the window.
        self.threshold = (in_flight.min(self.window) / 2).max(2 * self.mss);
        self.window = self.threshold;
        self.acked = 0;
    }

    fn on_timeout(&mut self, now: Instant, in_flight: u64, first: bool) {
        if first {
            self.on_loss(now, in_flight);
        }
        // RFC 5681 section 3.1: the loss window.
        self.window = self.mss;
        self.acked = 0;
    }

    fn on_idle(&mut self) {
        self.window = self.window.min(initial_window(self.mss));
    }

    fn undo(&mut self) {
        self.window = self.window.max(self.before.0);
        self.threshold = self.before.1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::time::Duration;

    fn ack(acked: u64, window_limited: bool) -> AckSample {
        AckSample { acked, window_limited, smoothed_rtt: Duration::from_millis(10), ..AckSample::default() }
    }

    #[test]
    fn it_doubles_then_adds_one_segment_per_window() {
        let mut reno = NewReno::new(1000);
        assert_eq!(reno.window(), 10_000);
        reno.on_ack(&ack(10_000, true));
        assert_eq!(reno.window(), 20_000);
        reno.on_loss(Instant::ZERO, 20_000);
        assert_eq!((reno.window(), reno.slow_start_threshold()), (10_000, 10_000));
        reno.on_ack(&ack(9_999, true));
        assert_eq!(reno.window(), 10_000);
        reno.on_ack(&ack(1, true));
        assert_eq!(reno.window(), 11_000);
    }

    /// A recovery that ends with holes behind its point leaves much outstanding that has arrived.
    #[test]
    fn each_loss_halves_the_window_whatever_is_outstanding() {
        let mut reno = NewReno::new(1000);
        reno.on_loss(Instant::ZERO, 10_000);
        reno.on_loss(Instant::ZERO, 100_000);
        assert_eq!((reno.window(), reno.slow_start_threshold()), (2_500, 2_500));
    }

    #[test]
    fn an_unused_window_does_not_grow() {
        let mut reno = NewReno::new(1000);
        reno.on_ack(&ack(10_000, false));
        assert_eq!(reno.window(), 10_000);
    }

    #[test]
    fn timeouts_in_a_row_halve_the_threshold_once() {
        let mut reno = NewReno::new(1000);
        reno.on_timeout(Instant::ZERO, 10_000, true);
        reno.on_timeout(Instant::ZERO, 1_000, false);
        assert_eq!((reno.window(), reno.slow_start_threshold()), (1_000, 5_000));
        reno.undo();
        assert_eq!((reno.window(), reno.slow_start_threshold()), (10_000, u64::MAX));
    }
}
