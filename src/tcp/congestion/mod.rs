//! Congestion control: how much may be in flight.
//!
//! Read first: RFC 5681, RFC 6928, RFC 9438. A controller is one file that implements `Congestion`, a name in
//! `CongestionControl`, and a line in `controllers!`.
//! It sees acknowledgements and losses; it does not know which segments are lost (`recovery`) nor how the window is
//! approached during recovery (PRR, `recovery`).

mod cubic;
mod dctcp;
mod hystart;
mod new_reno;

pub(crate) use cubic::Cubic;
pub(crate) use dctcp::Dctcp;
pub(crate) use new_reno::NewReno;

use crate::time::{Duration, Instant};

/// Which controller new connections get.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum CongestionControl {
    /// RFC 9438.
    #[default]
    Cubic,
    /// RFC 5681.
    NewReno,
    /// RFC 8257: needs `Ecn::Request` or a peer that asks for ECN, and switches that mark.
    Dctcp,
}

/// What an ACK of new data tells a controller.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct AckSample {
    pub now: Instant,
    /// Bytes newly acknowledged that may open the window: all that it was first heard of, cumulatively or selectively, but for `connection::ack`'s
    /// exceptions.
    pub acked: u64,
    /// Acknowledgements that came together and are told as one; 0 is 1.
    pub acks: u32,
    /// The window limited the sender, so it may grow (RFC 7661's concern).
    pub window_limited: bool,
    pub smoothed_rtt: Duration,
    /// Of this ACK, if it can be told (RFC 6298 section 3).
    pub rtt: Option<Duration>,
    /// SND.UNA and SND.NXT: where rounds end and begin.
    pub acknowledged: u64,
    pub next: u64,
    /// It carries ECN-Echo.
    pub marked: bool,
}

pub(crate) trait Congestion: Send {
    /// As in the configuration.
    fn name(&self) -> &'static str;
    /// The congestion window, bytes.
    fn window(&self) -> u64;
    /// Bytes; `u64::MAX` before the first loss.
    fn slow_start_threshold(&self) -> u64;
    /// The window is below the threshold. Each transmission asks.
    fn is_in_slow_start(&self) -> bool {
        self.window() < self.slow_start_threshold()
    }
    /// The sender's MSS changed (or became known), bytes.
    fn set_mss(&mut self, mss: u64);
    fn on_ack(&mut self, sample: &AckSample);
    /// A loss was detected, once per window: `window` falls to the new threshold.
    fn on_loss(&mut self, now: Instant, in_flight: u64);
    /// The peer reported a congestion mark, once per window (RFC 3168 section 6.1.2: as for a loss).
    fn on_congestion_experienced(&mut self, now: Instant, in_flight: u64) {
        self.on_loss(now, in_flight);
    }
    /// The retransmission timer expired: `window` falls to one segment. `first`: not a repetition for the same data.
    fn on_timeout(&mut self, now: Instant, in_flight: u64, first: bool);
    /// Nothing was sent for a retransmission timeout (RFC 5681 section 4.1).
    fn on_idle(&mut self);
    /// The last reduction was for a loss that did not happen.
    fn undo(&mut self);
    /// Something is kept on the heap for `undo`.
    fn has_spare(&self) -> bool {
        false
    }

    /// Nothing was sent for long: the last reduction is not taken back any more.
    fn rest(&mut self) {}

    /// Each mark is to be echoed as it came (RFC 8257 section 3.2), not until an answer (RFC 3168 section 6.1.3).
    fn wants_exact_marks(&self) -> bool {
        false
    }
}

/// One of them, in its connection's own memory: an allocation of its own would take more than what the largest leaves unused in the others.
macro_rules! controllers {
    ($($name:ident),+) => {
        enum Chosen {
            $($name($name)),+
        }

        impl Chosen {
            fn new(control: CongestionControl, mss: u64) -> Chosen {
                match control {
                    $(CongestionControl::$name => Chosen::$name($name::new(mss))),+
                }
            }

            #[inline]
            fn get(&self) -> &dyn Congestion {
                match self {
                    $(Chosen::$name(chosen) => chosen),+
                }
            }

            #[inline]
            fn get_mut(&mut self) -> &mut dyn Congestion {
                match self {
                    $(Chosen::$name(chosen) => chosen),+
                }
            }
        }
    };
}

controllers!(Cubic, NewReno, Dctcp);

/// A controller, and what each transmission asks it.
pub(crate) struct Controller {
    chosen: Chosen,
    /// Less than 4 GiB: a send queue holds half of that.
    window: u32,
    slow_start: bool,
}

impl Controller {
    pub fn new(control: CongestionControl, mss: u64) -> Controller {
        let mut controller = Controller { chosen: Chosen::new(control, mss), window: 0, slow_start: false };
        controller.tell(|_| {});
        controller
    }

    pub fn window(&self) -> u64 {
        u64::from(self.window)
    }

    pub fn is_in_slow_start(&self) -> bool {
        self.slow_start
    }

    pub fn name(&self) -> &'static str {
        self.chosen.get().name()
    }

    pub fn slow_start_threshold(&self) -> u64 {
        self.chosen.get().slow_start_threshold()
    }

    pub fn set_mss(&mut self, mss: u64) {
        self.tell(|chosen| chosen.set_mss(mss));
    }

    pub fn on_ack(&mut self, sample: &AckSample) {
        self.tell(|chosen| chosen.on_ack(sample));
    }

    pub fn on_loss(&mut self, now: Instant, in_flight: u64) {
        self.tell(|chosen| chosen.on_loss(now, in_flight));
    }

    pub fn on_congestion_experienced(&mut self, now: Instant, in_flight: u64) {
        self.tell(|chosen| chosen.on_congestion_experienced(now, in_flight));
    }

    pub fn on_timeout(&mut self, now: Instant, in_flight: u64, first: bool) {
        self.tell(|chosen| chosen.on_timeout(now, in_flight, first));
    }

    pub fn on_idle(&mut self) {
        self.tell(|chosen| chosen.on_idle());
    }

    pub fn undo(&mut self) {
        self.tell(|chosen| chosen.undo());
    }

    pub fn has_spare(&self) -> bool {
        self.chosen.get().has_spare()
    }

    pub fn rest(&mut self) {
        self.tell(|chosen| chosen.rest());
    }

    pub fn wants_exact_marks(&self) -> bool {
        self.chosen.get().wants_exact_marks()
    }

    #[inline]
    fn tell(&mut self, what: impl FnOnce(&mut dyn Congestion)) {
        let chosen = self.chosen.get_mut();
        what(chosen);
        self.window = u32::try_from(chosen.window()).unwrap_or(u32::MAX);
        self.slow_start = chosen.is_in_slow_start();
    }
}

/// RFC 6928 section 2: ten segments, less for huge ones.
pub(crate) fn initial_window(mss: u64) -> u64 {
    (10 * mss).min((2 * mss).max(14_600))
}
