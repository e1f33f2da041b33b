//! Attackers on the packet level, beside honest clients: floods of SYNs, blind injection, peers that lie about what they got, that
//! close their windows, that read a byte a second, and thousands that go away. docs/testing.md has the figures that the cases print.
//!
//! The attacker has addresses on the kernel's end of the TAP that the kernel resolves for it and otherwise leaves alone (`raw`).
//! Read first: RFC 4987, RFC 5961, RFC 3465 section 2, Savage et al. "TCP Congestion Control with a Misbehaving Receiver".
//! Not here: what is wrong inside the stream (`hostile`).

mod crowd;
mod flood;
mod liars;
mod raw;

use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use crate::bed::Bed;
use crate::client::{FILE_SYNC, Handle, NFS, Xdr, call_bytes, procedure, record};
use crate::hostile::export_root;
use crate::report::Report;
use crate::server::{self, Counters, DEVICE, Setup};
use crate::standin;

type Case = (&'static str, fn(&mut Ground) -> Result<()>);

/// Addresses of the attacker's, from this one on; all of them are in 10.77.0.64/26.
const FIRST_ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 66);
const ADDRESSES: u8 = 4;
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
    "pages.cache_used",
    "pages.fragments_used",
];
/// Until then a server at rest has given back what it can.
const REST_LIMIT: Duration = Duration::from_secs(20);

pub struct Ground {
    bed: Bed,
    root: Handle,
    file: Handle,
}

pub fn run(report: &mut Report) {
    let ground = |setup: Setup, case: fn(&mut Ground) -> Result<()>| {
        standin::only_nfsplice()?;
        let mut ground = Ground::new(setup)?;
        ground.still_serves()?;
        let at_rest = ground.at_rest(&|_, _| true)?;
        if let Err(error) = case(&mut ground) {
            bail!("{error:#}\n{}", ground.bed.running()?.tail());
        }
        ground.still_serves()?;
        ground.at_rest(&|gauge, level| level <= at_rest[gauge]).context("what the attack filled is not empty again")?;
        ground.bed.finish()
    };
    for (name, case) in flood::CASES.iter().chain(liars::CASES) {
        report.case(name, || ground(Ground::setup(), *case));
    }
    for (name, case) in crowd::CASES {
        report.case(name, || ground(crowd::setup(), *case));
    }
}

impl Ground {
    /// Answers to anywhere have a way: the kernel's end is the router, which throws them away.
    fn setup() -> Setup {
        Setup { port_keys: "gateway = \"10.77.0.1\"\n".into(), ..Setup::default() }
    }

    fn new(setup: Setup) -> Result<Ground> {
        let bed = Bed::new(setup)?;
        for index in 0..ADDRESSES {
            bed.net.ip(&format!("addr add {}/32 dev {DEVICE}", address(index)))?;
        }
        // The kernel knows of no connection of ours and would reset them. What we make has another TTL.
        bed.net.nft(
            "table ip ours { chain out { type filter hook output priority 0; ip saddr 10.77.0.64/26 ip ttl != 77 drop; }\n }\n",
        )?;
        let root = export_root(&bed)?;
        let mut rpc = bed.rpc()?;
        let file = rpc.create(&root, b"watched")?;
        rpc.write(&file, 0, FILE_SYNC, &content())?;
        Ok(Ground { bed, root, file })
    }

    /// Others are served, with the right bytes and without a wait.
    fn still_serves(&mut self) -> Result<()> {
        self.bed.check()?;
        let started = Instant::now();
        let mut rpc = self.bed.rpc().context("a new connection")?;
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

fn address(index: u8) -> Ipv4Addr {
    Ipv4Addr::from_bits(FIRST_ADDRESS.to_bits() + u32::from(index))
}

fn content() -> Vec<u8> {
    crate::libnfs::Random(0xa77ac).bytes(FILE_BYTES)
}

fn grown(before: &Counters, after: &Counters, name: &str) -> Result<f64> {
    Ok(after.get(name).with_context(|| format!("no counter {name}"))? - before[name])
}
