//! Pacing: a window leaves spread over its round trip, not in one burst.
//!
//! Read first: RFC 9406 section 4.3, RFC 7661 section 4.4.2; the rates are those of Linux (tcp_pacing_ss_ratio, tcp_pacing_ca_ratio). New data
//! only: repairs are small, and PRR spreads them. Not here: how large the window is (`congestion`).

use super::timers::Timer;
use super::*;

/// Percent of a window for each round trip: enough to double it in slow start, and not to fall behind it later.
const SLOW_START_PERCENT: u64 = 200;
const AVOIDANCE_PERCENT: u64 = 120;
/// What leaves at once is what the rate allows in this time, so that chains for a device stay worth their while.
const BURST: Duration = Duration::from_millis(1);

impl Connection {
    /// Whether new data have to wait; a timer runs then.
    pub(super) fn is_paced(&mut self, now: Instant) -> bool {
        let waits = now < self.send.paced_until;
        if waits {
            self.timers.arm(Timer::Pace, self.send.paced_until);
        }
        waits
    }

    /// Bytes each second; nothing is known before the first round trip.
    pub(super) fn pacing_rate(&self) -> Option<u64> {
        let rtt = self.rtt.smoothed()?.as_nanos().max(1);
        let window = self.congestion.window();
        // As Linux does, slow start counts as over when the window is near its threshold.
        let percent = if window < self.congestion.slow_start_threshold() / 2 { SLOW_START_PERCENT } else { AVOIDANCE_PERCENT };
        let rate = u128::from(window) * u128::from(percent) * 10_000_000 / rtt;
        Some(u64::try_from(rate).unwrap_or(u64::MAX).max(1))
    }

    /// The longest chain.
    pub(super) fn pacing_quantum(&self) -> u64 {
        let burst = |rate: u64| (u128::from(rate) * BURST.as_nanos() / 1_000_000_000) as u64;
        self.pacing_rate().map_or(u64::MAX, |rate| burst(rate).max(2 * u64::from(self.send.mss)))
    }

    /// `len` bytes of new data left.
    pub(super) fn pace(&mut self, now: Instant, len: u64) {
        let Some(rate) = self.pacing_rate() else { return };
        let nanos = u128::from(len) * 1_000_000_000 / u128::from(rate);
        let earliest = Instant::from_nanos(now.nanos().saturating_sub(BURST.as_nanos() as u64));
        self.send.paced_until = self.send.paced_until.max(earliest) + Duration::from_nanos(nanos as u64);
    }
}
