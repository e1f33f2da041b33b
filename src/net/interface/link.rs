//! The link below: up, down, and up again.
//!
//! Read first: RFC 5227 sections 2.1 (a host also looks for its address when the link has come up) and 2.3 (announcing), RFC 4862
//! section 5.4, RFC 4861 sections 6.3.7 (asking for routers) and 7.2.6.
//!
//! While the link is down nothing is looked for or announced: nobody would hear it, and an address that nobody could claim would pass for
//! free. When it is up all of that starts over, since this may be another link. An address that is in use stays in use: a link that is back
//! after a second must cut no connection, and who has the address on this link now is found by asking while it is served (`arp` and
//! `ipv6::address` say why such a conflict is told, and nothing given up).
//!
//! Deliberately not here: when a device is asked. A link that is down for less than two questions lie apart is not noticed.

use super::{Interface, InterfaceEvent};
use crate::time::Instant;

/// What is known of the link.
pub(super) struct LinkState {
    pub up: bool,
    /// The driver's last word was "down".
    told_down: bool,
    /// It said so while frames came in.
    disbelieved: bool,
    /// Frames that had come in by then.
    frames: u64,
}

impl LinkState {
    /// Until the first word of it.
    pub fn new() -> LinkState {
        LinkState { up: true, told_down: false, disbelieved: false, frames: 0 }
    }

    /// Whether it is up, after the driver's next word.
    fn learn(&mut self, told: Option<bool>, frames: u64) -> bool {
        let arrived = frames != std::mem::replace(&mut self.frames, frames);
        let told_down = told == Some(false);
        // What came before it was down proves nothing.
        self.disbelieved = told_down && (self.disbelieved || (self.told_down && arrived));
        self.told_down = told_down;
        !told_down || self.disbelieved
    }
}

impl Interface {
    /// What the driver says of the link, to be told now and then (`None`: it cannot say), and for the first time before the first
    /// `handle_timeout`. A link of which nothing is known is up, and so is one that frames come in from.
    pub fn observe_link(&mut self, now: Instant, told: Option<bool>) {
        let up = self.link.learn(told, self.counters.frames_in);
        self.counters.link_up = u64::from(up);
        if up == std::mem::replace(&mut self.link.up, up) {
            return;
        }
        self.routes.forget();
        if !up {
            self.counters.link_downs += 1;
            self.tell(InterfaceEvent::LinkDown);
            return;
        }
        self.counters.link_ups += 1;
        self.tell(InterfaceEvent::LinkUp);
        self.look_again(now);
        if let Some(ipv6) = &mut self.ipv6 {
            ipv6.look_again(now);
        }
    }
}
