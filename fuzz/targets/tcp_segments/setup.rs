//! What the two endpoints and the link between them are like, out of the first octets of an input.

use std::net::{IpAddr, Ipv6Addr};

use nfsplice::tcp::{CongestionControl, Ecn, Keepalive, Options};
use nfsplice::time::Duration;

use super::super::input::Input;

/// Longer than any run: an end that gives up would look like one that hangs.
pub const NEVER: Duration = Duration::from_secs(100_000_000);

/// Both ends and the link.
pub struct Setup {
    pub options: [Options; 2],
    pub ipv6: bool,
    /// The first handshake is the attacker's to disturb, too.
    pub opens_on_path: bool,
    /// The device has not looked at checksums: TCP does.
    pub verifies: bool,
    /// There is memory for whatever the window promises.
    pub ample: [bool; 2],
    /// Received text can be copied out of the driver's buffers.
    pub copies_out: [bool; 2],
}

fn options(how: u8) -> Options {
    Options {
        receive_window_initial: 4096,
        receive_window_max: 16 << 10,
        receive_buffers_max: 32,
        driver_buffers_max: 48,
        driver_buffers_unshared: 4,
        copy_out_below_bytes: 64,
        send_queue_bytes_max: 16 << 10,
        connections_max: 4,
        listeners_max: 2,
        syn_received_max: 2,
        accept_queue_max: 2,
        time_wait_max: 2,
        time_wait: Duration::from_secs(1),
        user_timeout: NEVER,
        fin_wait_2_timeout: NEVER,
        replies_max: 8,
        congestion: if how & 1 != 0 { CongestionControl::NewReno } else { CongestionControl::Cubic },
        sack: how & 2 == 0,
        timestamps: how & 4 == 0,
        window_scaling: how & 8 == 0,
        nagle: how & 16 != 0,
        ecn: if how & 64 != 0 { Ecn::Request } else { Ecn::Accept },
        pacing: how & 128 != 0,
        keepalive: (how & 32 != 0).then_some(Keepalive {
            idle: Duration::from_secs(10),
            interval: Duration::from_secs(1),
            probes_max: 3,
        }),
        ..Options::default()
    }
}

impl Setup {
    /// Both ends alike, over IPv4, with an established connection to begin with.
    pub fn plain(how: u8) -> Setup {
        Setup {
            options: [options(how), options(how)],
            ipv6: false,
            opens_on_path: false,
            verifies: false,
            ample: [false; 2],
            copies_out: [true; 2],
        }
    }

    /// Seven octets more: network and opening, how the second end differs, congestion control and ECN of each, windows and
    /// memory, places, patience, small segments.
    pub fn read(how: u8, input: &mut Input<'_>) -> Setup {
        let [network, other, congestion, windows, places, patience, small] = std::array::from_fn(|_| input.byte());
        let bit = |octet: u8, n: u8| octet >> n & 1 != 0;
        let mut setup = Setup::plain(how);
        setup.options = [options(how), options(how ^ other)];
        (setup.ipv6, setup.opens_on_path, setup.verifies) = (bit(network, 0), bit(network, 1), bit(network, 7));
        setup.ample = [bit(windows, 5), bit(windows, 6)];
        setup.copies_out = [!bit(small, 4), !bit(small, 5)];
        for (side, options) in setup.options.iter_mut().enumerate() {
            options.syn_cookies = !bit(network, 2);
            options.syn_received_max = [2, 0, 1, 4][usize::from(network >> 3 & 3)].max(usize::from(bit(network, 2)));
            options.connections_per_remote_max = [2048, 1, 2, 3][usize::from(network >> 5 & 3)];
            match congestion >> (2 * side) & 3 {
                0 => {}
                1 => options.congestion = CongestionControl::Dctcp,
                2 => options.congestion = CongestionControl::NewReno,
                _ => options.congestion = CongestionControl::Cubic,
            }
            match congestion >> (4 + 2 * side) & 3 {
                0 => {}
                1 => options.ecn = Ecn::Off,
                2 => options.ecn = Ecn::Request,
                _ => options.ecn = Ecn::Accept,
            }
            options.receive_window_max = [16 << 10, 64 << 10, 256 << 10, 3000][usize::from(windows & 3)];
            options.receive_window_initial = [4096, 64 << 10, 2000, 16 << 10][usize::from(windows >> 2 & 3)];
            options.quick_acks = if bit(windows, 4) { 0 } else { options.quick_acks };
            options.send_queue_bytes_max = if bit(windows, 7) { 64 << 10 } else { options.send_queue_bytes_max };
            options.connections_max = [4, 8, 2, 3][usize::from(places & 3)];
            options.time_wait_max = [2, 8, 1, 4][usize::from(places >> 2 & 3)];
            options.time_wait = Duration::from_secs(if bit(places, 4) { 60 } else { 1 });
            options.syns_waiting_max = if bit(places, 5) { 1 } else { options.syns_waiting_max };
            options.accept_queue_max = if bit(places, 6) { 1 } else { 8 };
            options.path_mtu_raise = Duration::from_secs(if bit(places, 7) { 1 } else { 600 });
            options.fin_wait_2_timeout = if bit(patience, 0) { Duration::from_secs(5) } else { NEVER };
            options.delayed_ack = Duration::from_millis(if bit(patience, 1) { 100 } else { 40 });
            options.copy_out_below_bytes = [64, 512, 0, 2000][usize::from(small & 3)];
            options.driver_buffers_unshared = [4, 0, 16, 1][usize::from(small >> 2 & 3)];
            if setup.ample[side] {
                // A buffer for each octet of the largest window.
                (options.receive_buffers_max, options.driver_buffers_max) = (1 << 20, 8 << 20);
            }
        }
        setup
    }

    pub fn address(&self, side: usize) -> IpAddr {
        match self.ipv6 {
            true => IpAddr::V6(Ipv6Addr::new(0xfd00, 0, 0, side as u16, 0, 0, 0, 1)),
            false => IpAddr::from([10, 0, 0, 1 + side as u8]),
        }
    }

    /// Somebody who is not there.
    pub fn stranger(&self, number: u8) -> IpAddr {
        match self.ipv6 {
            true => IpAddr::V6(Ipv6Addr::new(0xfd01, 0, 0, u16::from(number >> 4), 0, 0, 0, u16::from(number & 15) + 1)),
            false => IpAddr::from([10, 0, 1, number.max(1)]),
        }
    }
}
