//! The one clock of the server. Only the core's loop reads it; everything below is handed an `Instant`.

use crate::store::Timestamp;
use crate::time::Instant;

/// Nanoseconds since the server started, monotonic.
#[derive(Clone, Copy)]
pub struct Clock {
    origin: std::time::Instant,
}

impl Clock {
    pub fn start() -> Clock {
        Clock { origin: std::time::Instant::now() }
    }

    pub fn now(&self) -> Instant {
        Instant::from_nanos(u64::try_from(self.origin.elapsed().as_nanos()).unwrap_or(u64::MAX))
    }

    /// The time of day.
    pub fn wall() -> Timestamp {
        let since_epoch = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        Timestamp { seconds: since_epoch.as_secs() as i64, nanoseconds: since_epoch.subsec_nanos() }
    }
}
