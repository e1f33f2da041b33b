//! Attackers on the packet level, beside honest clients: floods of SYNs, blind injection, peers that lie about what they got, that
//! close their windows, that read a byte a second, and thousands that go away. docs/testing.md has the figures that the cases print.
//!
//! The attacker has addresses on the kernel's end of the TAP that the kernel resolves for it and otherwise leaves alone (`raw`). Each
//! case runs over both families; those who are to be served beside it are of the attacker's.
//! Read first: RFC 4987, RFC 5961, RFC 3465 section 2, Savage et al. "TCP Congestion Control with a Misbehaving Receiver".
//! Not here: what is wrong inside the stream (`hostile`).

mod crowd;
mod flood;
mod liars;
mod raw;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use crate::bed::Bed;
use crate::client::{FILE_SYNC, Handle, NFS, Rpc, Xdr, call_bytes, procedure, record};
use crate::hostile::export_root;
use crate::report::Report;
use crate::server::{
    self, CLIENT_ADDRESS, CLIENT_ADDRESS_V6, Counters, DEVICE, NFS_PORT, SERVER_ADDRESS, SERVER_ADDRESS_V6, Setup,
};
use crate::standin;
use raw::{Peer, Sender};

type Case = (&'static str, fn(&mut Ground) -> Result<()>);

/// Addresses of the attacker's, from these on; all of them are in 10.77.0.64/26 and fd4e:6673::40/122.
const FIRST_ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 66);
const FIRST_ADDRESS_V6: Ipv6Addr = Ipv6Addr::new(0xfd4e, 0x6673, 0, 0, 0, 0, 0, 0x42);
const ADDRESSES: u8 = 4;
/// How long a client of the kernel's waits for a connection.
const CONNECT_LIMIT: Duration = Duration::from_secs(5);
/// The file that everybody reads.
const FILE_BYTES: usize = 1 << 20;

/// What an attack may fill for as long as it lasts. Half-open connections are not among it: they keep their places until their SYN-ACKs
/// were repeated or newer ones need them, hold no buffers, and have their own bound.
const GAUGES: &[&str] = &[
    "tcp.curr_estab",
    "tcp.driver_buffers_held",
    "rpc.connections",
    "rpc.calls_in_flight",
    "port0.rx_buffers_in_use",
    "port0.tx_headers_in_use",
    "port0.tx_pieces_in_use",
    "port0.tx_copies_in_use",
    "port0.arp.parked_now",
    "port0.nd.parked_now",
    "pages.cache_used",
    "pages.fragments_used",
];
/// Until then a server at rest has given back what it can.
const REST_LIMIT: Duration = Duration::from_secs(20);

pub struct Ground {
    bed: Bed,
    /// Of the attacker and of those who are to be served.
    family: Family,
    root: Handle,
    file: Handle,
}

#[derive(Clone, Copy, PartialEq)]
enum Family {
    V4,
    V6,
}

pub fn run(report: &mut Report) {
    let ground = |setup: Setup, family: Family, case: fn(&mut Ground) -> Result<()>| {
        standin::only_nfsplice()?;
        let mut ground = Ground::new(setup, family)?;
        ground.still_serves()?;
        let at_rest = ground.at_rest(&|_, _| true)?;
        if let Err(error) = case(&mut ground) {
            bail!("{error:#}\n{}", ground.bed.running()?.tail());
        }
        ground.still_serves()?;
        ground.at_rest(&|gauge, level| level <= at_rest[gauge]).context("what the attack filled is not empty again")?;
        ground.bed.finish()
    };
    for (family, suffix) in [(Family::V4, ""), (Family::V6, "_over_ipv6")] {
        for (name, case) in flood::CASES.iter().chain(liars::CASES) {
            report.case(&format!("{name}{suffix}"), || ground(Ground::setup(), family, *case));
        }
        for (name, case) in crowd::CASES {
            report.case(&format!("{name}{suffix}"), || ground(crowd::setup(), family, *case));
        }
    }
}

impl Ground {
    /// Answers to anywhere have a way: the kernel's end is the router, which throws them away.
    fn setup() -> Setup {
        let port_keys = format!("gateway = \"{CLIENT_ADDRESS}\"\ngateway_ipv6 = \"{CLIENT_ADDRESS_V6}\"\n");
        Setup { port_keys, ipv6: true, ..Setup::default() }
    }

    fn new(setup: Setup, family: Family) -> Result<Ground> {
        let bed = Bed::new(setup)?;
        for index in 0..ADDRESSES {
            bed.net.ip(&match family {
                Family::V4 => format!("addr add {}/32 dev {DEVICE}", family.attacker(index)),
                // Deprecated, or the kernel would take it for its own connections (RFC 6724 section 5, rule 3).
                Family::V6 => format!("-6 addr add {}/128 dev {DEVICE} nodad preferred_lft 0", family.attacker(index)),
            })?;
        }
        // The kernel knows of no connection of ours and would reset them. What we make has another TTL.
        let ours = match family {
            Family::V4 => format!("ip saddr 10.77.0.64/26 ip ttl != {}", raw::TTL),
            Family::V6 => format!("ip6 saddr fd4e:6673::40/122 ip6 hoplimit != {}", raw::TTL),
        };
        bed.net.nft(&format!(
            "table inet ours {{ chain out {{ type filter hook output priority 0; meta l4proto tcp {ours} drop; }}\n }}\n"
        ))?;
        let root = export_root(&bed)?;
        let mut rpc = bed.rpc()?;
        let file = rpc.create(&root, b"watched")?;
        rpc.write(&file, 0, FILE_SYNC, &content())?;
        bed.net.connect_once_found(family.server(), Duration::from_millis(300))?;
        Ok(Ground { bed, family, root, file })
    }

    /// A client of the kernel's, of the attacker's family.
    fn rpc(&self) -> Result<Rpc> {
        self.rpc_within(CONNECT_LIMIT)
    }

    fn rpc_within(&self, limit: Duration) -> Result<Rpc> {
        Rpc::new(self.bed.net.connect(self.family.server(), limit)?)
    }

    fn sender(&self) -> Result<Sender> {
        Sender::new(&self.bed.net, self.family.server().ip())
    }

    fn peer(&self, index: u8, port: u16, window: u16) -> Result<Peer> {
        Peer::open(&self.bed.net, self.family.server().ip(), self.family.attacker(index), port, window)
    }

    /// Others are served, with the right bytes and without a wait.
    fn still_serves(&mut self) -> Result<()> {
        self.bed.check()?;
        let started = Instant::now();
        let mut rpc = self.rpc().context("a new connection")?;
        for _ in 0..20 {
            rpc.getattr(&self.root)?;
        }
        ensure!(rpc.read(&self.file, 0, FILE_BYTES as u32)? == content(), "other bytes than were written");
        let took = started.elapsed();
        ensure!(took < Duration::from_secs(5), "21 calls of others took {took:?}");
        Ok(())
    }

    /// The counters, once the cores have published what happened so far.
    fn counters(&self) -> Result<Counters> {
        std::thread::sleep(Duration::from_millis(500));
        server::stats(self.bed.folder())
    }

    /// The counters once nothing is under way and every gauge is as it `should` be.
    fn at_rest(&self, should: &dyn Fn(&str, f64) -> bool) -> Result<Counters> {
        let deadline = Instant::now() + REST_LIMIT;
        loop {
            let now = self.counters()?;
            let level = |gauge: &str| now.get(gauge).copied().with_context(|| format!("no gauge {gauge}"));
            let mut held = Vec::new();
            for gauge in GAUGES {
                if !should(gauge, level(gauge)?) {
                    held.push(format!("{gauge} {}", level(gauge)?));
                }
            }
            if held.is_empty() && level("rpc.calls_in_flight")? == 0.0 && level("tcp.curr_estab")? == 0.0 {
                return Ok(now);
            }
            ensure!(
                Instant::now() < deadline,
                "after {REST_LIMIT:?}: {} connections, {}",
                now["tcp.curr_estab"],
                held.join(", ")
            );
        }
    }

    /// A READ of `count` bytes as a record on the wire.
    fn read_call(&self, xid: u32, count: u32) -> Vec<u8> {
        let arguments = Xdr::default().opaque(&self.file).u64(0).u32(count);
        let credential = crate::client::Credential::unix(0, 0, &[]);
        record(&call_bytes(xid, NFS, 3, procedure::READ, &credential, &arguments.0))
    }
}

impl Family {
    fn server(self) -> SocketAddr {
        let address = if self == Family::V4 { SERVER_ADDRESS } else { SERVER_ADDRESS_V6 };
        SocketAddr::new(address.parse().expect("a constant"), NFS_PORT)
    }

    /// The kernel's end.
    fn client(self) -> IpAddr {
        if self == Family::V4 { CLIENT_ADDRESS } else { CLIENT_ADDRESS_V6 }.parse().expect("a constant")
    }

    fn attacker(self, index: u8) -> IpAddr {
        match self {
            Family::V4 => Ipv4Addr::from_bits(FIRST_ADDRESS.to_bits() + u32::from(index)).into(),
            Family::V6 => Ipv6Addr::from_bits(FIRST_ADDRESS_V6.to_bits() + u128::from(index)).into(),
        }
    }

    /// A host of anywhere but here: 128.0.0.0 to 191.255.255.255, or of 2000::/3.
    fn stranger(self, bits: u32) -> IpAddr {
        match self {
            Family::V4 => Ipv4Addr::from_bits(0x8000_0000 | bits & 0x3fff_ffff).into(),
            Family::V6 => {
                // The network and the host both differ.
                let spread = u128::from(bits).wrapping_mul(0x9e37_79b9_7f4a_7c15_f39c_c060_5ced_c835);
                Ipv6Addr::from_bits(0x2 << 124 | spread >> 4).into()
            }
        }
    }
}

fn content() -> Vec<u8> {
    crate::libnfs::Random(0xa77ac).bytes(FILE_BYTES)
}

fn grown(before: &Counters, after: &Counters, name: &str) -> Result<f64> {
    Ok(after.get(name).with_context(|| format!("no counter {name}"))? - before[name])
}
