//! DCTCP: the window falls by as much as the path is congested. For data centres whose switches mark early, and with ECN only.
//!
//! Read first: RFC 8257 sections 3.3 to 3.5. It grows, and takes losses, as NewReno does. The receiver's part (exact echoes) is
//! `connection::ecn`'s.

use super::{AckSample, Congestion, NewReno};
use crate::time::Instant;

/// RFC 8257 section 4.2: g, the weight of a new observation.
const GAIN: f64 = 1.0 / 16.0;

pub(crate) struct Dctcp {
    reno: NewReno,
    /// The estimated fraction of bytes that were marked; at first the worst is assumed (section 3.3).
    alpha: f64,
    acked: u64,
    marked: u64,
    /// SND.NXT when this observation window began.
    window_end: u64,
}

impl Dctcp {
    pub fn new(mss: u64) -> Dctcp {
        Dctcp { reno: NewReno::new(mss), alpha: 1.0, acked: 0, marked: 0, window_end: 0 }
    }
}

impl Congestion for Dctcp {
    fn name(&self) -> &'static str {
        "dctcp"
    }

    fn window(&self) -> u64 {
        self.reno.window()
    }

    fn slow_start_threshold(&self) -> u64 {
        self.reno.slow_start_threshold()
    }

    fn set_mss(&mut self, mss: u64) {
        self.reno.set_mss(mss);
    }

    fn on_ack(&mut self, sample: &AckSample) {
        self.acked += sample.acked;
        if sample.marked {
            self.marked += sample.acked;
        }
        if sample.acknowledged > self.window_end && self.acked > 0 {
            // Section 3.3, steps 5 to 8.
            let fraction = self.marked as f64 / self.acked as f64;
            self.alpha = self.alpha * (1.0 - GAIN) + GAIN * fraction;
            (self.acked, self.marked, self.window_end) = (0, 0, sample.next);
        }
        if !sample.marked {
            self.reno.on_ack(sample);
        }
    }

    fn on_loss(&mut self, now: Instant, in_flight: u64) {
        self.reno.on_loss(now, in_flight);
    }

    fn on_congestion_experienced(&mut self, _now: Instant, _in_flight: u64) {
        // Section 3.3, step 9: cwnd = cwnd * (1 - alpha / 2).
        let window = self.reno.window() as f64 * (1.0 - self.alpha / 2.0);
        self.reno.reduce_to(window as u64);
    }

    fn on_timeout(&mut self, now: Instant, in_flight: u64, first: bool) {
        self.reno.on_timeout(now, in_flight, first);
    }

    fn on_idle(&mut self) {
        self.reno.on_idle();
    }

    fn undo(&mut self) {
        self.reno.undo();
    }

    fn wants_exact_marks(&self) -> bool {
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One window's ACKs, of which the first `marked` of ten are marked.
    fn window(dctcp: &mut Dctcp, number: u64, marked: u64) {
        for n in 0..10 {
            dctcp.on_ack(&AckSample {
                acked: 1000,
                acknowledged: number * 10 + n + 1,
                next: number * 10 + 10,
                marked: n < marked,
                ..AckSample::default()
            });
        }
    }

    #[test]
    fn the_window_falls_with_the_share_of_marked_bytes() {
        let mut dctcp = Dctcp::new(1000);
        dctcp.on_congestion_experienced(Instant::ZERO, 10_000);
        assert_eq!(dctcp.window(), 5_000, "the worst is assumed at first");
        for number in 1..200 {
            window(&mut dctcp, number, 1);
        }
        assert!((0.09..0.11).contains(&dctcp.alpha), "{}", dctcp.alpha);
        let before = dctcp.window();
        dctcp.on_congestion_experienced(Instant::ZERO, before);
        let left = dctcp.window() as f64 / before as f64;
        assert!((0.94..0.96).contains(&left), "a twentieth for a tenth: {left}");
    }

    /// With a window of 20,000 bytes, in slow start.
    fn grown() -> Dctcp {
        let mut dctcp = Dctcp::new(1000);
        let sample = AckSample { acked: 10_000, acknowledged: 1, next: 9, window_limited: true, ..AckSample::default() };
        dctcp.on_ack(&sample);
        assert_eq!((dctcp.window(), dctcp.slow_start_threshold()), (20_000, u64::MAX));
        dctcp
    }

    /// RFC 8257 section 3.5: a loss is a loss, whatever the share of marks.
    #[test]
    fn losses_and_timeouts_are_taken_as_new_reno_does_and_taken_back() {
        let mut dctcp = grown();
        dctcp.on_loss(Instant::ZERO, 12_000);
        assert_eq!((dctcp.window(), dctcp.slow_start_threshold()), (6_000, 6_000));
        dctcp.undo();
        assert_eq!((dctcp.window(), dctcp.slow_start_threshold()), (20_000, u64::MAX));
        dctcp.on_timeout(Instant::ZERO, 16_000, true);
        assert_eq!((dctcp.window(), dctcp.slow_start_threshold()), (1_000, 8_000));
        dctcp.on_timeout(Instant::ZERO, 1_000, false);
        assert_eq!((dctcp.window(), dctcp.slow_start_threshold()), (1_000, 8_000));
        dctcp.undo();
        assert_eq!((dctcp.window(), dctcp.slow_start_threshold()), (20_000, u64::MAX));
        let alpha = dctcp.alpha;
        dctcp.on_congestion_experienced(Instant::ZERO, 20_000);
        assert_eq!(dctcp.window(), (20_000.0 * (1.0 - alpha / 2.0)) as u64);
        dctcp.undo();
        assert_eq!((dctcp.window(), dctcp.slow_start_threshold()), (20_000, u64::MAX));
    }

    /// RFC 5681 section 4.1.
    #[test]
    fn silence_takes_the_window_back_to_the_initial_one() {
        let mut dctcp = grown();
        dctcp.on_idle();
        assert_eq!((dctcp.window(), dctcp.slow_start_threshold()), (10_000, u64::MAX));
        dctcp.on_loss(Instant::ZERO, 8_000);
        dctcp.on_idle();
        assert_eq!((dctcp.window(), dctcp.slow_start_threshold()), (4_000, 4_000));
    }

    /// RFC 3168 section 6.1.2.
    #[test]
    fn a_marked_ack_does_not_open_the_window() {
        let mut dctcp = grown();
        let sample = AckSample { acked: 1000, acknowledged: 2, next: 9, window_limited: true, ..AckSample::default() };
        dctcp.on_ack(&AckSample { marked: true, ..sample });
        assert_eq!(dctcp.window(), 20_000);
        dctcp.on_ack(&sample);
        assert_eq!(dctcp.window(), 21_000);
    }
}
