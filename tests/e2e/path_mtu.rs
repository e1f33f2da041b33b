//! A link behind a router that carries less than the server's: the kernel routes, cuts and reports, or says nothing.
//!
//! The client is in a namespace of its own behind the first one; the link between them is narrow, and the client does not know.
//! Read first: RFC 1191, RFC 8201, RFC 4821 section 7.7. Not here: narrow ports (`interop`), segments by hand (`tcp::tests`).

use std::fs;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use crate::bed::Bed;
use crate::client::{FILE_SYNC, Rpc};
use crate::libnfs;
use crate::net::Netns;
use crate::process;
use crate::report::Report;
use crate::server::{self, CLIENT_ADDRESS, CLIENT_ADDRESS_V6, NFS_PORT, SERVER_ADDRESS, SERVER_ADDRESS_V6, Setup};
use crate::standin;

const MOUNT_PORT: u16 = 20_048;
/// A READ of the server's largest size: many full packets one after the other.
const FILE_BYTES: usize = 1 << 20;
const WRITE_BYTES: usize = 256 << 10;
const CONNECT_LIMIT: Duration = Duration::from_secs(5);

/// Where the server, the router and the client are, in the words of ip(8) and of the configuration.
struct Family {
    ip: &'static str,
    server: &'static str,
    /// The router's address on the server's side.
    gateway: &'static str,
    gateway_key: &'static str,
    /// Behind the router.
    network: &'static str,
    router: &'static str,
    client: &'static str,
    /// What the client offers to take, which is more than the narrow link carries.
    mss: u16,
    forwarding: &'static str,
}

const V4: Family = Family {
    ip: "",
    server: SERVER_ADDRESS,
    gateway: CLIENT_ADDRESS,
    gateway_key: "gateway",
    network: "10.77.1.0/24",
    router: "10.77.1.1",
    client: "10.77.1.2/24",
    mss: 1460,
    forwarding: "/proc/sys/net/ipv4/ip_forward",
};

const V6: Family = Family {
    ip: "-6 ",
    server: SERVER_ADDRESS_V6,
    gateway: CLIENT_ADDRESS_V6,
    gateway_key: "gateway_ipv6",
    network: "fd4e:6674::/64",
    router: "fd4e:6674::1",
    client: "fd4e:6674::2/64",
    mss: 1440,
    forwarding: "/proc/sys/net/ipv6/conf/all/forwarding",
};

pub fn run(report: &mut Report) {
    for (name, family) in [("ipv4", V4), ("ipv6", V6)] {
        report.case(&format!("router_tells_{name}"), || {
            through(&family, 1280, false, |stats, port| {
                let (reports, reductions) = (stats[&format!("{port}.icmp_errors_in")], stats["tcp.pmtu_reductions"]);
                ensure!(
                    reports >= 1.0 && reductions >= 1.0,
                    "{reports} reports of a router, {reductions} reductions of the path MTU"
                );
                Ok(())
            })
        });
        report.case(&format!("router_is_silent_{name}"), || {
            through(&family, 1280, true, |stats, port| {
                let (reports, holes) = (stats[&format!("{port}.icmp_errors_in")], stats["tcp.pmtu_black_holes"]);
                ensure!(reports == 0.0, "{reports} reports of a router that is silent");
                ensure!(holes >= 1.0, "nobody found the black hole");
                Ok(())
            })
        });
    }
    // RFC 1191 section 3: 500 is less than the least that is planned with, so the router cuts what the server lets it cut.
    report.case("router_cuts_ipv4", || {
        through(&V4, 500, false, |stats, _| {
            ensure!(stats["tcp.pmtu_below_least"] >= 1.0, "the path was not seen to take less than the least");
            Ok(())
        })
    });
}

/// Files there and back over a link of `mtu`; then what the counters have to tell, those of the port with the name of its family.
fn through(family: &Family, mtu: u16, silent: bool, told: impl FnOnce(&server::Counters, &str) -> Result<()>) -> Result<()> {
    standin::only_nfsplice()?;
    let Family { ip, gateway, gateway_key, network, router, client, mss, forwarding, .. } = family;
    let bed = Bed::new(Setup {
        ipv6: true,
        port_keys: format!("{gateway_key} = \"{gateway}\"\n"),
        more_clients: vec![(*network).into()],
        ..Setup::default()
    })?;
    let far = Netns::new()?;
    process::run_words(&format!("ip -n {} link add narrow mtu 1500 type veth peer name wide netns {}", bed.net.name, far.name))?;
    let (router_prefix, nodad) = (client.split_once('/').expect("a constant").1, if ip.is_empty() { "" } else { "nodad" });
    bed.net.ip("link set narrow up")?;
    bed.net.ip(&format!("{ip}addr add {router}/{router_prefix} dev narrow {nodad}"))?;
    far.ip("link set wide up")?;
    far.ip(&format!("{ip}addr add {client} dev wide {nodad}"))?;
    // Out in packets that the link carries; in, as much as Ethernet's: the server cannot know.
    far.ip(&format!("{ip}route add default via {router} mtu lock {mtu} advmss {mss}"))?;
    // Only now, as IPv6 is switched off on a link below its least.
    bed.net.ip(&format!("link set narrow mtu {mtu}"))?;
    bed.net.inside(|| fs::write(forwarding, "1"))??;
    if silent {
        bed.net.nft(
            "table inet silence {
                counter reports { }
                chain outward {
                    type filter hook output priority 0;
                    icmp type destination-unreachable counter name reports drop
                    icmpv6 type packet-too-big counter name reports drop
                }
            }\n",
        )?;
    }
    let root = match connect(&far, family, MOUNT_PORT)?.mount(b"/export")? {
        Ok(root) => root,
        Err(status) => anyhow::bail!("mountstat3 {status}"),
    };
    let data = libnfs::Random(0x6d7475).bytes(FILE_BYTES);
    let mut rpc = connect(&far, family, NFS_PORT)?;
    let file = rpc.create(&root, b"narrow")?;
    for (piece, at) in data.chunks(WRITE_BYTES).zip((0u64..).step_by(WRITE_BYTES)) {
        rpc.write(&file, at, FILE_SYNC, piece)?;
    }
    let started = Instant::now();
    for round in 0..4 {
        ensure!(rpc.read(&file, 0, FILE_BYTES as u32)? == data, "READ {round} gives other bytes than were written");
        if round == 0 {
            println!("    the first READ of 1 MiB took {:.1?}", started.elapsed());
        }
    }
    if silent {
        ensure!(bed.net.counted("reports")? >= 1, "the router had nothing to keep for itself");
    }
    // The cores publish a few times a second.
    std::thread::sleep(Duration::from_millis(500));
    told(&server::stats(bed.folder())?, if ip.is_empty() { "port0.ip" } else { "port0.ip6" })?;
    bed.finish()
}

fn connect(far: &Netns, family: &Family, port: u16) -> Result<Rpc> {
    Rpc::new(far.connect_once_found(SocketAddr::new(family.server.parse()?, port), CONNECT_LIMIT)?)
}
