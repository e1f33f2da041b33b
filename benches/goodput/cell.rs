//! One cell of the table: what the link does, for how long, and what theory allows.
//!
//! Read first: RFC 5681, Mathis et al. (ACM CCR 27(3), 1997), RFC 9438 section 5.1.

use nfsplice::net::memory_link::Impairments;
use nfsplice::tcp::CongestionControl;
use nfsplice::time::Duration;
use serde::{Deserialize, Serialize};

/// Bytes of an IPv4 packet, and of the payload in it beside 12 bytes of timestamps.
pub const MTU: u16 = 1500;
pub const MSS: u64 = 1448;
/// Bits a second of IP packets. A forwarder in user space carries it with a third of a core.
pub const RATE: u64 = 200_000_000;
const QUEUE_PACKETS_MIN: u64 = 100;

pub const LOSSES_PPM: [u32; 6] = [0, 100, 1_000, 10_000, 30_000, 100_000];
pub const RTTS_US: [u64; 4] = [100, 1_000, 10_000, 100_000];
pub const REORDERS_PPM: [u32; 2] = [0, 10_000];
pub const CONTROLS: [Control; 2] = [Control::Cubic, Control::NewReno];

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Control {
    Cubic,
    NewReno,
}

impl Control {
    pub fn name(self) -> &'static str {
        match self {
            Control::Cubic => "cubic",
            Control::NewReno => "newreno",
        }
    }

    pub fn title(self) -> &'static str {
        match self {
            Control::Cubic => "CUBIC",
            Control::NewReno => "NewReno",
        }
    }

    pub fn ours(self) -> CongestionControl {
        match self {
            Control::Cubic => CongestionControl::Cubic,
            Control::NewReno => CongestionControl::NewReno,
        }
    }

    /// For TCP_CONGESTION.
    pub fn of_linux(self) -> &'static str {
        match self {
            Control::Cubic => "cubic",
            Control::NewReno => "reno",
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Cell {
    pub control: Control,
    pub reorder_ppm: u32,
    pub rtt_us: u64,
    pub loss_ppm: u32,
}

pub fn all() -> impl Iterator<Item = Cell> {
    CONTROLS.into_iter().flat_map(|control| {
        REORDERS_PPM.into_iter().flat_map(move |reorder_ppm| {
            RTTS_US.into_iter().flat_map(move |rtt_us| {
                LOSSES_PPM.into_iter().map(move |loss_ppm| Cell { control, reorder_ppm, rtt_us, loss_ppm })
            })
        })
    })
}

impl Cell {
    /// As in `--cells cubic/0/10ms/1%`.
    pub fn name(&self) -> String {
        format!("{}/{}%/{}/{}%", self.control.name(), percent(self.reorder_ppm), self.rtt_text(), percent(self.loss_ppm))
    }

    pub fn rtt_text(&self) -> String {
        format!("{}ms", self.rtt_us as f64 / 1e3)
    }

    pub fn seconds(&self) -> u64 {
        match self.rtt_us {
            ..10_000 => 8,
            10_000..100_000 => 15,
            100_000.. => 60,
        }
    }

    fn bandwidth_delay_bytes(&self) -> u64 {
        RATE / 8 * self.rtt_us / 1_000_000
    }

    /// What happens to what the sender sends, and to what the receiver sends.
    pub fn impairments(&self) -> [Impairments; 2] {
        let back = Impairments {
            delay: Duration::from_micros(self.rtt_us / 2),
            rate_bits_per_second: RATE,
            queue_bytes_max: self.bandwidth_delay_bytes().max(QUEUE_PACKETS_MIN * u64::from(MTU)),
            ..Impairments::default()
        };
        let reorder_delay = Duration::from_micros((self.rtt_us / 8).max(500));
        let forth = Impairments { loss_ppm: self.loss_ppm, reorder_ppm: self.reorder_ppm, reorder_delay, ..back };
        [forth, back]
    }

    /// Mbit/s of payload that the link can deliver, and that the controller's response function gives at this loss; the limit is
    /// the lower one.
    pub fn limit(&self) -> f64 {
        self.link_limit().min(self.response_limit())
    }

    pub fn link_limit(&self) -> f64 {
        let loss = f64::from(self.loss_ppm) / 1e6;
        RATE as f64 / 1e6 * (1.0 - loss) * MSS as f64 / f64::from(MTU)
    }

    /// Windows in segments, each round trip: the larger of Reno's sqrt(3/2p) (Mathis et al.) and, for CUBIC, (C (3+beta) / (4 (1-beta)))^(1/4)
    /// RTT^(3/4) / p^(3/4) (RFC 9438 section 5.1).
    fn response_limit(&self) -> f64 {
        if self.loss_ppm == 0 {
            return f64::INFINITY;
        }
        let (loss, rtt) = (f64::from(self.loss_ppm) / 1e6, self.rtt_us as f64 / 1e6);
        let reno = (1.5 / loss).sqrt();
        let window = match self.control {
            Control::NewReno => reno,
            Control::Cubic => reno.max((0.4f64 * 3.7 / 1.2).powf(0.25) * (rtt / loss).powf(0.75)),
        };
        window * MSS as f64 * 8.0 / rtt / 1e6 * (1.0 - loss)
    }
}

pub fn percent(ppm: u32) -> String {
    format!("{}", f64::from(ppm) / 1e4)
}
