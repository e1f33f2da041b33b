//! CUBIC: RFC 9438, with HyStart++ (RFC 9406). Windows are bytes at the interface and segments (as f64) in the cubic function.

use super::hystart::{CSS_GROWTH_DIVISOR, Growth, HyStart};
use super::{AckSample, Congestion, initial_window};
use crate::time::{Duration, Instant};

/// RFC 9438 section 5: C, segments per second cubed.
const C: f64 = 0.4;
/// RFC 9438 section 4.6: beta_cubic.
const BETA: f64 = 0.7;
/// RFC 9438 section 4.3: additive increase that matches Reno's average with this beta.
const ALPHA: f64 = 3.0 * (1.0 - BETA) / (1.0 + BETA);

#[derive(Clone, Copy)]
struct Curve {
    /// W_max, segments: where the last reduction began.
    max: f64,
    /// cwnd_prior, segments: the window when the threshold was last set.
    prior: f64,
    /// When this congestion avoidance stage began; `None` until its first ACK.
    epoch: Option<Instant>,
    /// K, seconds from the epoch to W_max.
    k: f64,
    /// W_est, segments: what Reno would have.
    estimate: f64,
}

#[derive(Clone, Copy)]
struct State {
    window: f64,
    threshold: f64,
    curve: Curve,
}

pub(crate) struct Cubic {
    mss: f64,
    state: State,
    /// Before the last reduction, as long as that may be taken back.
    before: Option<Box<State>>,
    hystart: HyStart,
}

impl Cubic {
    pub fn new(mss: u64) -> Cubic {
        let mss = mss as f64;
        let curve = Curve { max: 0.0, prior: 0.0, epoch: None, k: 0.0, estimate: 0.0 };
        let window = initial_window(mss as u64) as f64 / mss;
        let state = State { window, threshold: f64::INFINITY, curve };
        Cubic { mss, state, before: None, hystart: HyStart::new() }
    }

    fn remember(&mut self) {
        match &mut self.before {
            Some(before) => **before = self.state,
            None => self.before = Some(Box::new(self.state)),
        }
    }

    fn avoid_congestion(&mut self, now: Instant, acked: f64, rtt: Duration) {
        let State { window, curve, .. } = &mut self.state;
        let epoch = *curve.epoch.get_or_insert_with(|| {
            // RFC 9438 section 4.2: K from the window at the start of the stage.
            curve.max = curve.max.max(*window);
            curve.k = ((curve.max - *window) / C).cbrt();
            curve.estimate = *window;
            now
        });
        let at = |t: f64| C * (t - curve.k).powi(3) + curve.max;
        let t = now.since(epoch).as_secs_f64();
        // RFC 9438 section 4.3.
        let alpha = if curve.estimate >= curve.prior { 1.0 } else { ALPHA };
        curve.estimate += alpha * acked / *window;
        if at(t) < curve.estimate {
            *window = window.max(curve.estimate);
            return;
        }
        // RFC 9438 sections 4.4 and 4.5: towards the curve one round trip ahead, at most by half a window.
        let target = at(t + rtt.as_secs_f64()).clamp(*window, 1.5 * *window);
        *window += (target - *window) / *window * acked;
    }
}

impl Congestion for Cubic {
    fn name(&self) -> &'static str {
        "cubic"
    }

    fn window(&self) -> u64 {
        (self.state.window * self.mss) as u64
    }

    fn slow_start_threshold(&self) -> u64 {
        // A saturating cast: infinity is u64::MAX.
        (self.state.threshold * self.mss) as u64
    }

    fn is_in_slow_start(&self) -> bool {
        self.state.window < self.state.threshold
    }

    fn set_mss(&mut self, mss: u64) {
        let mss = mss as f64;
        let untouched = self.window() == initial_window(self.mss as u64);
        let scale = self.mss / mss;
        self.state.window *= scale;
        self.state.threshold *= scale;
        self.state.curve.max *= scale;
        self.state.curve.prior *= scale;
        self.state.curve.epoch = None;
        self.mss = mss;
        if untouched {
            self.state.window = initial_window(mss as u64) as f64 / mss;
        }
        self.state.window = self.state.window.max(1.0);
        if let Some(before) = &mut self.before {
            **before = self.state;
        }
    }

    fn on_ack(&mut self, sample: &AckSample) {
        if !sample.window_limited {
            // RFC 9438 section 5.8: time in which the window was not used does not count; the stage starts again.
            self.state.curve.epoch = None;
            return;
        }
        let mut acked = sample.acked as f64 / self.mss;
        if self.state.window < self.state.threshold {
            let mut grow = acked.min(self.state.threshold - self.state.window);
            acked -= grow;
            if self.state.threshold.is_infinite() {
                match self.hystart.on_ack(sample) {
                    Growth::SlowStart => {}
                    Growth::Conservative => grow /= CSS_GROWTH_DIVISOR as f64,
                    Growth::End => self.state.threshold = self.state.window + grow,
                }
            }
            self.state.window += grow;
        }
        if acked > 0.0 {
            self.avoid_congestion(sample.now, acked, sample.smoothed_rtt);
        }
    }

    fn on_loss(&mut self, _now: Instant, in_flight: u64) {
        self.remember();
        let State { window, threshold, curve } = &mut self.state;
        // RFC 9438 section 4.7, fast convergence.
        curve.max = if *window < curve.max { *window * (1.0 + BETA) / 2.0 } else { *window };
        (curve.prior, curve.epoch) = (*window, None);
        // RFC 9438 section 4.6: from the flight, not from a window that was not used.
        let used = (in_flight as f64 / self.mss).min(*window);
        *threshold = (used * BETA).max(2.0);
        *window = *threshold;
    }

    fn on_timeout(&mut self, now: Instant, in_flight: u64, first: bool) {
        if first {
            self.on_loss(now, in_flight);
        } else if self.before.is_none() {
            self.remember();
        }
        // RFC 9438 section 4.8: as RFC 5681; and the stage that follows begins at its W_max, with K = 0.
        self.state.window = 1.0;
        (self.state.curve.max, self.state.curve.epoch) = (0.0, None);
    }

    fn on_idle(&mut self) {
        let initial = initial_window(self.mss as u64) as f64 / self.mss;
        self.state.window = self.state.window.min(initial);
        self.state.curve.epoch = None;
    }

    fn undo(&mut self) {
        // RFC 9438 section 4.9.
        if let Some(before) = self.before.as_deref().filter(|before| self.state.window < before.window) {
            self.state = *before;
        }
    }

    fn has_spare(&self) -> bool {
        self.before.is_some()
    }

    fn rest(&mut self) {
        self.before = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ack(cubic: &mut Cubic, now: Instant) {
        let acked = cubic.window();
        let smoothed_rtt = Duration::from_millis(100);
        cubic.on_ack(&AckSample { now, acked, window_limited: true, smoothed_rtt, ..AckSample::default() });
    }

    #[test]
    fn it_returns_to_the_old_window_after_k_and_then_probes() {
        let mut cubic = Cubic::new(1000);
        cubic.state.window = 100.0;
        cubic.on_loss(Instant::ZERO, 100_000);
        assert_eq!(cubic.window(), 70_000);
        // K = cbrt(30 / 0.4) = 4.2 s.
        let mut now = Instant::ZERO;
        let mut windows = Vec::new();
        for _ in 0..80 {
            now += Duration::from_millis(100);
            ack(&mut cubic, now);
            windows.push(cubic.window());
        }
        assert!(windows.windows(2).all(|pair| pair[0] <= pair[1]));
        assert!((95_000..=101_000).contains(&windows[38]), "{}", windows[38]);
        assert!((99_000..=101_500).contains(&windows[44]), "flat around W_max: {}", windows[44]);
        assert!(windows[79] > 115_000, "probing beyond: {}", windows[79]);
    }

    #[test]
    fn undo_brings_the_window_back() {
        let mut cubic = Cubic::new(1000);
        let before = cubic.window();
        cubic.on_timeout(Instant::ZERO, before, true);
        assert_eq!(cubic.window(), 1000);
        cubic.undo();
        assert_eq!((cubic.window(), cubic.slow_start_threshold()), (before, u64::MAX));
    }

    /// RFC 9438 section 4.8.
    #[test]
    fn after_a_timeout_the_old_maximum_is_forgotten() {
        let mut cubic = Cubic::new(1000);
        cubic.state.window = 100.0;
        cubic.on_timeout(Instant::ZERO, 100_000, true);
        cubic.on_timeout(Instant::ZERO, 1000, false);
        assert_eq!((cubic.window(), cubic.slow_start_threshold()), (1000, 70_000));
        let mut now = Instant::ZERO;
        while cubic.window() < 70_000 {
            now += Duration::from_millis(100);
            ack(&mut cubic, now);
        }
        let (stage, mut windows) = (now, Vec::new());
        for _ in 0..20 {
            now += Duration::from_millis(100);
            ack(&mut cubic, now);
            windows.push(cubic.window());
        }
        assert_eq!((cubic.state.curve.k, cubic.state.curve.max), (0.0, 70.0));
        // W_est grows by 0.53 segments a round trip; the curve from K = 4.2 s would be at 97,000 by now.
        assert!((75_000..83_000).contains(&windows[19]), "{windows:?} since {stage:?}");
    }

    /// RFC 9438 section 4.3: from cwnd_prior on, which fast convergence does not lower.
    #[test]
    fn the_estimate_catches_up_with_the_window_before_the_reduction_only() {
        let mut cubic = Cubic::new(1000);
        cubic.state.window = 100.0;
        cubic.on_loss(Instant::ZERO, 100_000);
        cubic.on_loss(Instant::ZERO, 70_000);
        let curve = cubic.state.curve;
        assert_eq!((curve.max, curve.prior), (59.5, 70.0));
        cubic.avoid_congestion(Instant::ZERO, 1.0, Duration::from_millis(1));
        cubic.state.curve.estimate = 65.0;
        cubic.avoid_congestion(Instant::ZERO, 1.0, Duration::from_millis(1));
        let grown = cubic.state.curve.estimate - 65.0;
        assert!(grown < 0.6 / 49.0, "above W_max and below cwnd_prior it grows as before: {grown}");
    }

    /// RFC 9438 section 4.7, fast convergence.
    #[test]
    fn a_smaller_maximum_gives_way_to_others() {
        let mut cubic = Cubic::new(1000);
        cubic.state.window = 100.0;
        cubic.on_loss(Instant::ZERO, 100_000);
        assert_eq!(cubic.state.curve.max, 100.0);
        cubic.on_loss(Instant::ZERO, 70_000);
        assert_eq!((cubic.state.curve.max, cubic.window()), (70.0 * 0.85, 49_000));
    }

    /// RFC 9438 section 5.8.
    #[test]
    fn an_unused_window_starts_the_stage_again() {
        let mut cubic = Cubic::new(1000);
        cubic.state.window = 100.0;
        cubic.on_loss(Instant::ZERO, 100_000);
        ack(&mut cubic, Instant::from_millis(100));
        let before = cubic.window();
        let idle = Instant::from_millis(60_000);
        cubic.on_ack(&AckSample { now: idle, acked: 1000, window_limited: false, ..AckSample::default() });
        ack(&mut cubic, idle + Duration::from_millis(100));
        assert!(cubic.window() < before + 10_000, "a minute of silence is no growth: {}", cubic.window());
    }

    /// RFC 5681 section 4.1; RFC 9438 section 5.8 of the stage.
    #[test]
    fn silence_takes_the_window_back_to_the_initial_one_and_starts_the_stage_again() {
        let mut cubic = Cubic::new(1000);
        cubic.state.window = 100.0;
        cubic.on_loss(Instant::ZERO, 100_000);
        ack(&mut cubic, Instant::from_millis(100));
        assert!(cubic.state.curve.epoch.is_some());
        cubic.on_idle();
        assert_eq!((cubic.window(), cubic.slow_start_threshold()), (10_000, 70_000));
        assert!(cubic.state.curve.epoch.is_none());
        // A smaller one is not made larger.
        cubic.on_timeout(Instant::ZERO, 10_000, true);
        cubic.on_idle();
        assert_eq!(cubic.window(), 1_000);
    }

    /// RFC 9438 section 4.2.
    #[test]
    fn the_target_is_at_most_half_a_window_away() {
        let mut cubic = Cubic::new(1000);
        cubic.state.window = 100.0;
        cubic.on_loss(Instant::ZERO, 100_000);
        ack(&mut cubic, Instant::ZERO);
        let before = cubic.window();
        // The curve of a minute later is at 69,000 segments.
        ack(&mut cubic, Instant::from_millis(60_000));
        assert_eq!(cubic.window(), before * 3 / 2);
    }

    /// RFC 9438 section 4.9.2.
    #[test]
    fn a_window_that_has_grown_beyond_is_not_undone() {
        let mut cubic = Cubic::new(1000);
        cubic.state.window = 100.0;
        cubic.on_loss(Instant::ZERO, 100_000);
        cubic.state.window = 120.0;
        cubic.undo();
        assert_eq!((cubic.window(), cubic.slow_start_threshold()), (120_000, 70_000));
    }

    /// RFC 9438 section 4.10: HyStart++ ends slow start without a loss.
    #[test]
    fn a_stage_without_a_loss_before_it_begins_at_its_own_window() {
        let mut cubic = Cubic::new(1000);
        (cubic.state.window, cubic.state.threshold) = (50.0, 50.0);
        ack(&mut cubic, Instant::ZERO);
        let curve = cubic.state.curve;
        assert_eq!((curve.k, curve.max), (0.0, 50.0));
        // As Reno's, one segment a round trip.
        assert!((50_900..51_100).contains(&cubic.window()), "{}", cubic.window());
    }
}
