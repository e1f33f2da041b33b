//! The Linux kernel as the peer: bulk both ways over links of all kinds, captured at the server's port and at the peer, and judged
//! packet by packet (`judge`, whose rules are the point of it) beside tshark's expert.
//!
//! The peer has a namespace of its own behind a veth pair and a bridge, so that what is dropped on the way is lost as on a wire:
//! a packet that nftables drops where it is sent from comes back to its sender as an error.
//!
//!     far: peer ── far0 ═ near0 ── br0 ── nfs0 (TAP): server
//!
//! Not here: faults beyond loss (the simulator's part), and attackers (`attack`).

mod doctored;
mod judge;
mod packet;

use std::fmt;
use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use crate::bed::Bed;
use crate::client::{NFS, Reply, Rpc, UNSTABLE, Written, Xdr, parse_read, procedure, split_status, write_arguments};
use crate::libnfs::Random;
use crate::net::Netns;
use crate::report::{Report, full};
use crate::server::{self, DEVICE, SERVER_ADDRESS, SERVER_ADDRESS_V6, Setup};
use crate::standin;
use judge::{Fault, Terms, Verdict, judge};
use packet::{Capture, SYN};

const FAR: &str = "far0";
const NEAR: &str = "near0";
const FAR_ADDRESS: &str = "10.77.0.3";
const FAR_ADDRESS_V6: &str = "fd4e:6673::3";
const MOUNT_PORT: u16 = 20_048;
/// Bytes of a call's data, and calls under way.
const PIECE: usize = 256 << 10;
const DEPTH: usize = 4;
/// A loss test in which nothing was lost is no test.
const LOST_MIN: u32 = 3;

/// One way the link and the peer may be.
struct Case {
    name: &'static str,
    /// What carries it.
    ipv6: bool,
    mib: usize,
    mtu: u16,
    /// The peer's, where it is another one.
    far_mtu: Option<u16>,
    /// Percent of the packets that vanish, in each direction.
    loss: u32,
    /// Percent of the ECN-capable packets that are marked, in each direction.
    marks: u32,
    /// tc's words for a bottleneck in each direction.
    bottleneck: Option<&'static str>,
    /// `net.ipv4.` settings of the peer.
    settings: &'static [(&'static str, &'static str)],
    /// Lines for the server's section `[tcp]`.
    tcp: &'static str,
}

const PLAIN: Case = Case {
    name: "plain",
    ipv6: false,
    mib: 16,
    mtu: 1500,
    far_mtu: None,
    loss: 0,
    marks: 0,
    bottleneck: None,
    settings: &[],
    tcp: "",
};
const OVER_IPV6: Case = Case { ipv6: true, ..PLAIN };

const CASES: &[Case] = &[
    PLAIN,
    Case { name: "mtu576", mib: 4, mtu: 576, ..PLAIN },
    Case { name: "mtu9000", mib: 32, mtu: 9000, ..PLAIN },
    Case { name: "mtu9000_of_the_server_alone", mib: 8, mtu: 9000, far_mtu: Some(1500), ..PLAIN },
    Case { name: "loss1", mib: 8, loss: 1, ..PLAIN },
    Case { name: "loss5", mib: 2, loss: 5, ..PLAIN },
    Case { name: "loss1_mtu9000", mib: 16, mtu: 9000, loss: 1, ..PLAIN },
    Case { name: "loss1_mtu576", mib: 2, mtu: 576, loss: 1, ..PLAIN },
    Case { name: "ecn", mib: 16, marks: 1, settings: &[("tcp_ecn", "1")], ..PLAIN },
    Case { name: "ecn_off", mib: 4, settings: &[("tcp_ecn", "1")], tcp: "ecn = \"off\"", ..PLAIN },
    Case { name: "ecn_loss1", mib: 8, marks: 1, loss: 1, settings: &[("tcp_ecn", "1")], ..PLAIN },
    Case { name: "timestamps_off", mib: 8, settings: &[("tcp_timestamps", "0")], ..PLAIN },
    Case { name: "timestamps_off_loss1", mib: 4, loss: 1, settings: &[("tcp_timestamps", "0")], ..PLAIN },
    Case { name: "sack_off", mib: 8, settings: &[("tcp_sack", "0")], ..PLAIN },
    Case { name: "sack_off_loss1", mib: 4, loss: 1, settings: &[("tcp_sack", "0")], ..PLAIN },
    Case { name: "window_scaling_off", mib: 8, settings: &[("tcp_window_scaling", "0")], ..PLAIN },
    Case {
        name: "everything_off_loss1",
        mib: 4,
        loss: 1,
        settings: &[("tcp_timestamps", "0"), ("tcp_sack", "0"), ("tcp_window_scaling", "0")],
        ..PLAIN
    },
    Case { name: "bottleneck", mib: 8, bottleneck: Some("rate 100mbit burst 16k limit 64k"), ..PLAIN },
    Case { name: "newreno_loss1", mib: 4, loss: 1, tcp: "congestion = \"newreno\"", ..PLAIN },
    Case { name: "dctcp", mib: 8, marks: 1, settings: &[("tcp_ecn", "1")], tcp: "congestion = \"dctcp\"", ..PLAIN },
    Case {
        name: "pacing_bottleneck",
        mib: 8,
        bottleneck: Some("rate 100mbit burst 16k limit 64k"),
        tcp: "pacing = true",
        ..PLAIN
    },
    Case { name: "ipv6", ..OVER_IPV6 },
    Case { name: "ipv6_mtu1280_loss1", mib: 4, mtu: 1280, loss: 1, ..OVER_IPV6 },
    Case { name: "ipv6_mtu9000", mib: 32, mtu: 9000, ..OVER_IPV6 },
    Case { name: "ipv6_loss1", mib: 8, loss: 1, ..OVER_IPV6 },
    Case { name: "ipv6_loss5", mib: 2, loss: 5, ..OVER_IPV6 },
    Case { name: "ipv6_ecn_loss1", mib: 8, marks: 1, loss: 1, settings: &[("tcp_ecn", "1")], ..OVER_IPV6 },
    Case {
        name: "ipv6_everything_off_loss1",
        mib: 4,
        loss: 1,
        settings: &[("tcp_timestamps", "0"), ("tcp_sack", "0"), ("tcp_window_scaling", "0")],
        ..OVER_IPV6
    },
    Case { name: "ipv6_bottleneck", mib: 8, bottleneck: Some("rate 100mbit burst 16k limit 64k"), ..OVER_IPV6 },
];

pub fn run(report: &mut Report) {
    report.case("the_judge_sees_each_fault", doctored::each_fault);
    report.case("the_judge_accepts_what_is_right", doctored::no_fault);
    report.case("what_is_certain_fails_at_once", doctored::second_tries);
    for case in CASES {
        report.case(case.name, || at_most_twice(|| carry_out(case)));
    }
}

/// The error of a run that shows nothing of the server. Every other error is the server's.
#[derive(Debug)]
enum Inconclusive {
    /// Drops at random may hit a SYN, whose repetition then does without the option that the case is about, or hardly anything else.
    DidNotHappen(String),
    /// A busy machine lets packets pass each other between the two captures, or tcpdump miss some.
    Captures(String),
}

impl fmt::Display for Inconclusive {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Inconclusive::DidNotHappen(what) => write!(f, "the case did not happen: {what}"),
            Inconclusive::Captures(what) => write!(f, "the captures may be to blame: {what}"),
        }
    }
}

impl std::error::Error for Inconclusive {}

/// Once more after a run that shows nothing; what came of the first is told in any case.
fn at_most_twice(mut run: impl FnMut() -> Result<()>) -> Result<()> {
    match run() {
        Err(error) if error.is::<Inconclusive>() => {
            println!("    once more: {error:#}");
            run()
        }
        other => other,
    }
}

/// What the case is about has to happen.
fn happens(condition: bool, what: impl FnOnce() -> String) -> Result<(), Inconclusive> {
    if condition { Ok(()) } else { Err(Inconclusive::DidNotHappen(what())) }
}

impl Case {
    fn drops(&self) -> bool {
        self.loss > 0 || self.bottleneck.is_some()
    }

    fn refuses_ecn(&self) -> bool {
        self.tcp.contains("ecn = \"off\"")
    }

    fn path_mtu(&self) -> u16 {
        self.far_mtu.unwrap_or(self.mtu).min(self.mtu)
    }

    fn bytes(&self) -> usize {
        (self.mib << 20) * if full() { 8 } else { 1 }
    }
}

/// The server behind its bridge, and the peer.
struct Link {
    bed: Bed,
    far: Netns,
    server: IpAddr,
}

impl Link {
    fn new(case: &Case) -> Result<Link> {
        let setup = Setup { mtu: case.mtu, ipv6: case.ipv6, bridge: true, tcp: case.tcp.into(), ..Setup::default() };
        let bed = Bed::new(setup)?;
        let far = Netns::new()?;
        let far_mtu = case.far_mtu.unwrap_or(case.mtu);
        bed.net.ip(&format!("link add {NEAR} mtu {} type veth peer name {FAR} netns {}", case.mtu, far.name))?;
        bed.net.ip(&format!("link set {NEAR} master br0 up"))?;
        // Packets of the size of the wire's, not chains of the kernel's.
        far.ip(&format!("link set {FAR} gso_max_segs 1"))?;
        far.ip(&format!("addr add {FAR_ADDRESS}/24 dev {FAR}"))?;
        if case.ipv6 {
            far.ip(&format!("-6 addr add {FAR_ADDRESS_V6}/64 dev {FAR} nodad"))?;
        }
        far.ip(&format!("link set {FAR} mtu {far_mtu} up"))?;
        far.inside(|| -> Result<()> {
            for (name, value) in case.settings {
                fs::write(format!("/proc/sys/net/ipv4/{name}"), value).with_context(|| format!("net.ipv4.{name}"))?;
            }
            Ok(())
        })??;
        let server = if case.ipv6 { SERVER_ADDRESS_V6 } else { SERVER_ADDRESS }.parse()?;
        let link = Link { bed, far, server };
        // Neighbours are found before anything is dropped.
        link.rpc(server::NFS_PORT)?.null()?;
        link.impair(case)?;
        Ok(link)
    }

    fn rpc(&self, port: u16) -> Result<Rpc> {
        let stream = self.far.connect(SocketAddr::new(self.server, port), Duration::from_secs(20))?;
        // Whatever is this machine's default.
        rustix::net::sockopt::set_tcp_congestion(&stream, "cubic")?;
        Rpc::new(stream)
    }

    /// What the TAP's queue had no room for while the server was elsewhere.
    fn overflows(&self) -> Result<u64> {
        let listing = crate::process::run_words(&format!("ip -n {} -j -s link show {DEVICE}", self.bed.net.name))?;
        let listing: serde_json::Value = serde_json::from_slice(&listing.stdout)?;
        listing[0]["stats64"]["tx"]["dropped"].as_u64().context("tx dropped")
    }

    /// Drops and marks what comes in from either end.
    fn impair(&self, case: &Case) -> Result<()> {
        let (loss, marks) = (case.loss, case.marks);
        let (of_tcp, family) = if case.ipv6 { ("ip6 nexthdr tcp", "ip6") } else { ("ip protocol tcp", "ip") };
        let mut rules = String::new();
        for device in [DEVICE, NEAR] {
            let mut lines = String::new();
            if loss > 0 {
                lines += &format!("{of_tcp} numgen random mod 100 < {loss} counter drop\n");
            }
            if marks > 0 {
                lines += &format!("{family} ecn ect0 numgen random mod 100 < {marks} {family} ecn set ce counter\n");
            }
            rules += &format!("chain {device} {{ type filter hook ingress device \"{device}\" priority 0; {lines} }}\n");
        }
        self.bed.net.nft(&format!("table netdev way {{ {rules} }}\n"))?;
        if let Some(words) = case.bottleneck {
            for device in [DEVICE, NEAR] {
                let command = format!("tc -n {} qdisc add dev {device} root tbf {words}", self.bed.net.name);
                crate::process::run_words(&command)?;
            }
        }
        Ok(())
    }
}

fn carry_out(case: &Case) -> Result<()> {
    standin::only_nfsplice()?;
    let link = Link::new(case)?;
    let at_server = Capture::start(&link.bed.net, DEVICE, &link.bed.folder().join("server.pcap"), 0)?;
    let at_peer = Capture::start(&link.far, FAR, &link.bed.folder().join("peer.pcap"), 128)?;
    let (written, read) = transfer(&link, case.bytes()).with_context(|| store_counters(&link))?;
    Capture::settle();
    let (here, there) = (at_server.finish()?, at_peer.finish()?);
    let overflows = link.overflows()?;
    // The driver has thrown away what has a wrong checksum.
    let took_all = overflows == 0 && here.iter().all(|packet| packet.from_server || !packet.bad_checksum);
    let terms = Terms { mtu: case.path_mtu().into(), drops: case.drops(), ecn: !case.refuses_ecn(), took_all };
    let verdict = judge(&here, Some(&there), terms);
    let rate = |time: Duration| case.bytes() as f64 / 1e6 / time.as_secs_f64();
    println!("    {} MiB: written at {:.0} MB/s, read at {:.0} MB/s", case.bytes() >> 20, rate(written), rate(read));
    println!("    {verdict}; {overflows} dropped by the TAP's queue");
    check_faults(&verdict.faults)?;
    check_conditions(case, &here)?;
    let wrong = server::stats(link.bed.folder())?["tcp.in_csum_errors"];
    ensure!(wrong == 0.0, "the server took {wrong} checksums for wrong, and tshark none");
    check_counts(case, &verdict)?;
    link.bed.finish()
}

/// One certain fault decides.
fn check_faults(faults: &[Fault]) -> Result<()> {
    let (certain, doubtful): (Vec<&Fault>, Vec<&Fault>) = faults.iter().partition(|fault| fault.certain);
    let list = |faults: &[&Fault]| {
        let lines = faults.iter().take(10).map(|fault| format!("\n{}: {}", fault.rule, fault.what));
        format!("{} faults{}", faults.len(), lines.collect::<String>())
    };
    if !certain.is_empty() {
        bail!("{}", list(&certain));
    }
    if !doubtful.is_empty() {
        bail!(Inconclusive::Captures(list(&doubtful)));
    }
    Ok(())
}

/// The peer is as the case says, and its packets are of the wire's size: a case that does not happen shows nothing.
fn check_conditions(case: &Case, packets: &[packet::Packet]) -> Result<(), Inconclusive> {
    let is = |name: &str, value: &str| case.settings.contains(&(name, value));
    let of_peer: Vec<_> = packets.iter().filter(|packet| !packet.from_server).collect();
    for syn in of_peer.iter().filter(|packet| packet.has(SYN)) {
        let options = [
            ("timestamps", syn.timestamps.is_none() == is("tcp_timestamps", "0")),
            ("SACK", syn.sack_permitted != is("tcp_sack", "0")),
            ("window scale", syn.scale.is_none() == is("tcp_window_scaling", "0")),
            ("ECN", syn.has(packet::ECE | packet::CWR) == is("tcp_ecn", "1")),
        ];
        options.iter().try_for_each(|(option, right)| happens(*right, || format!("{option} of the peer's SYN")))?;
    }
    happens(of_peer.len() > 100, || format!("the peer said little: {} packets", of_peer.len()))?;
    let longest = of_peer.iter().map(|packet| packet.ip_len).max().unwrap_or(0);
    happens(longest <= case.path_mtu().into(), || format!("a packet of {longest} bytes was captured"))?;
    let bad = of_peer.iter().filter(|packet| packet.bad_checksum).count();
    happens(bad == 0, || format!("{bad} wrong checksums of the peer's"))
}

/// Enough of what the case is about happened, and the server did its part of it.
fn check_counts(case: &Case, verdict: &Verdict) -> Result<()> {
    happens(verdict.data > 1000 && verdict.client_data > 1000, || format!("little was sent: {verdict}"))?;
    if case.loss > 0 {
        let dropped = verdict.dropped >= LOST_MIN && verdict.client_dropped >= LOST_MIN;
        happens(dropped, || format!("little was dropped: {verdict}"))?;
        // Empty ACKs count as dropped, too, and nobody repairs them.
        happens(verdict.repaired >= LOST_MIN, || format!("little was repaired: {verdict}"))?;
    }
    if case.bottleneck.is_some() {
        happens(verdict.dropped >= LOST_MIN, || format!("the bottleneck was none: {verdict}"))?;
    }
    if case.marks > 0 {
        let Verdict { marks_in, echoes, marks_out, answers, .. } = *verdict;
        happens(marks_in >= 3 && marks_out >= 3, || format!("few marks: {verdict}"))?;
        ensure!(echoes >= 1, "no mark was echoed: {verdict}");
        ensure!(answers >= 1, "no mark was answered: {verdict}");
    } else if case.refuses_ecn() {
        ensure!(verdict.echoes + verdict.answers == 0, "ECN is off: {verdict}");
    }
    Ok(())
}

/// Writes a file and reads it back, a connection for each, with several calls under way; how long each took. Then a quarter of it is read
/// while as much is written, on one connection.
fn transfer(link: &Link, bytes: usize) -> Result<(Duration, Duration)> {
    let root = link.rpc(MOUNT_PORT)?.mount(b"/export")?.map_err(|status| anyhow::anyhow!("mountstat3 {status}"))?;
    let data = Random(0x1e7e).bytes(PIECE + 4096);
    // Each piece of the file is another part of the bytes.
    let piece = |index: usize| &data[index * 8 % 4096..][..PIECE];
    let pieces = bytes / PIECE;

    let mut rpc = link.rpc(server::NFS_PORT)?;
    let file = rpc.create(&root, b"bulk")?;
    let started = Instant::now();
    let mut send = |rpc: &mut Rpc, index: usize| {
        let arguments = write_arguments(&file, (index * PIECE) as u64, UNSTABLE, piece(index));
        rpc.send(NFS, 3, procedure::WRITE, &arguments.0)
    };
    let write = pipeline(&mut rpc, pieces, &mut send, &mut |_, body| {
        let written = Written::parse(&body)?;
        ensure!(written.count as usize == PIECE, "a WRITE took {} bytes", written.count);
        Ok(())
    });
    write.context("WRITE")?;
    rpc.commit(&file)?;
    let written = started.elapsed();
    drop(rpc);

    let mut rpc = link.rpc(server::NFS_PORT)?;
    let started = Instant::now();
    let mut send = |rpc: &mut Rpc, index: usize| {
        let arguments = Xdr::default().opaque(&file).u64((index * PIECE) as u64).u32(PIECE as u32);
        rpc.send(NFS, 3, procedure::READ, &arguments.0)
    };
    let read = pipeline(&mut rpc, pieces, &mut send, &mut |index, body| {
        ensure!(parse_read(&body)?.0 == piece(index), "piece {index} has other bytes than were written");
        Ok(())
    });
    read.context("READ")?;
    let elapsed = started.elapsed();
    drop(rpc);

    // Both directions of one connection at once: text of ours must not hide what its ACKs have to tell.
    let mut rpc = link.rpc(server::NFS_PORT)?;
    let other = rpc.create(&root, b"both")?;
    let mut send = |rpc: &mut Rpc, index: usize| {
        let at = (index / 2 * PIECE) as u64;
        if index % 2 == 0 {
            rpc.send(NFS, 3, procedure::WRITE, &write_arguments(&other, at, UNSTABLE, piece(index / 2)).0)
        } else {
            rpc.send(NFS, 3, procedure::READ, &Xdr::default().opaque(&file).u64(at).u32(PIECE as u32).0)
        }
    };
    let both = pipeline(&mut rpc, pieces / 4 * 2, &mut send, &mut |index, body| {
        if index % 2 == 0 {
            ensure!(Written::parse(&body)?.count as usize == PIECE, "a WRITE took less");
        } else {
            ensure!(parse_read(&body)?.0 == piece(index / 2), "piece {} has other bytes than were written", index / 2);
        }
        Ok(())
    });
    both.context("READ and WRITE at once")?;
    Ok((written, elapsed))
}

/// What the store counted, for a call that failed.
fn store_counters(link: &Link) -> String {
    let counters = server::stats(link.bed.folder()).unwrap_or_default();
    let told = counters.iter().filter(|(name, value)| name.starts_with("store") && **value != 0.0);
    told.map(|(name, value)| format!("{name} {value}")).collect::<Vec<_>>().join(", ")
}

type Send<'a> = &'a mut dyn FnMut(&mut Rpc, usize) -> Result<u32>;
type Take<'a> = &'a mut dyn FnMut(usize, Vec<u8>) -> Result<()>;

/// `count` calls, `DEPTH` at a time; replies may come in any order.
fn pipeline(rpc: &mut Rpc, count: usize, send: Send<'_>, take: Take<'_>) -> Result<()> {
    let mut waiting: Vec<(u32, usize)> = Vec::new();
    let mut next = 0;
    while next < count || !waiting.is_empty() {
        while next < count && waiting.len() < DEPTH {
            waiting.push((send(rpc, next)?, next));
            next += 1;
        }
        let (xid, reply) = rpc.receive()?;
        let at = waiting.iter().position(|(known, _)| *known == xid).context("a reply to no call")?;
        let (_, index) = waiting.swap_remove(at);
        match reply {
            Reply::Success(body) => {
                let (status, body) = split_status(&body)?;
                ensure!(status == 0, "call {index} failed with nfsstat3 {status}");
                take(index, body)?;
            }
            other => anyhow::bail!("call {index} was answered by {other:?}"),
        }
    }
    Ok(())
}
