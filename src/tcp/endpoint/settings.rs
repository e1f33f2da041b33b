//! What one connection can be told, where it shall differ from the endpoint's `Options`.
//!
//! Read first: RFC 9293 sections 3.7.4 (MUST-17), 3.8.3 (MUST-21) and 3.8.4 (MUST-24); RFC 5482.

use super::*;
use crate::time::Duration;

impl Endpoint {
    /// Whether small segments wait for the acknowledgement of what is in flight (RFC 9293 section 3.7.4).
    pub fn set_nagle(&mut self, id: ConnectionId, on: bool) {
        self.end_train();
        if let Some(connection) = self.connection(id) {
            connection.nagle = on;
            // What waited may go.
            connection.wake = true;
            self.settle(id.index);
        }
    }

    /// How long data may stay unacknowledged before the connection ends: RFC 5482's USER_TIMEOUT as it is without the
    /// option, decided here alone. Not less than a retransmission timeout (its L_LIMIT), which what waits now has in any case.
    pub fn set_user_timeout(&mut self, now: Instant, id: ConnectionId, timeout: Duration) {
        self.end_train();
        let rto_min = self.shared.options.rto_min;
        if let Some(connection) = self.connection(id) {
            connection.set_user_timeout(now, timeout.max(rto_min));
            self.settle(id.index);
        }
    }

    /// Whether an idle peer is probed (RFC 9293 section 3.8.4), at the intervals of `Options::keepalive`, or of
    /// `Keepalive::default()`.
    pub fn set_keepalive(&mut self, now: Instant, id: ConnectionId, on: bool) {
        self.end_train();
        let Endpoint { slots, shared, .. } = self;
        if let Some(connection) = find(slots, id) {
            connection.set_keepalive(now, shared, on);
            self.settle(id.index);
        }
    }
}
