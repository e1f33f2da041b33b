//! IPv6 and VLANs through the TAP: calls over TCP and UDP, what rpcbind tells, ping, libnfs, a port in
//! a VLAN, addresses from a router. The kernel is the peer: it resolves, is resolved, and routes.

use std::fs;
use std::net::{IpAddr, Ipv6Addr, SocketAddr, SocketAddrV6};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketType, ipproto, sockopt};

use crate::bed::Bed;
use crate::client::{FILE_SYNC, MOUNT, NFS, RPCBIND, Reader, Reply, Rpc, Xdr, call_bytes, parse_reply, procedure};
use crate::libnfs;
use crate::net::Netns;
use crate::report::{Report, skip};
use crate::server::{self, CLIENT_ADDRESS_V6, DEVICE, NFS_PORT, SERVER_ADDRESS, SERVER_ADDRESS_V6, Setup};
use crate::standin;

const VLAN: u16 = 42;
const MOUNT_PORT: u16 = 20_048;
const RPCBIND_PORT: u16 = 111;
const CONNECT_LIMIT: Duration = Duration::from_secs(5);
/// A READ of the server's largest size: many full packets one after the other.
const LARGE: usize = 1 << 20;

pub fn run(report: &mut Report) {
    report.case("calls_over_tcp_and_udp", || on_bed(dual(), calls));
    report.case("rpcbind_tells_addresses_of_the_callers_family", || on_bed(dual(), rpcbind));
    report.case("no_answer_goes_where_no_route_leads", || on_bed(dual(), no_route));
    report.case("ping", || on_bed(dual(), ping));
    report.case("two_cores_share_a_tap", || on_bed(Setup { engine: "0, 1", ..dual() }, two_cores));
    report.case("two_cores_one_queue", || on_bed(Setup { engine: "0, 1", queues: Some(1), ..dual() }, calls));
    report.case("libnfs", || on_bed(dual(), libnfs_tree));
    report.case("large_file_mtu9000", || on_bed(Setup { mtu: 9000, ..dual() }, large_reads));
    report.case("link_that_comes_back", || on_bed(dual(), link_comes_back));
    report.case("port_in_a_vlan", || match on_bed(Setup { vlan: Some(VLAN), ..dual() }, in_a_vlan) {
        // What `ip link add ... type vlan` says where the kernel was built without 802.1Q.
        Err(error) if format!("{error:#}").contains("Unknown device type") => skip("this kernel has no VLAN interfaces"),
        result => result,
    });
    report.case("address_from_a_router", || address_from_a_router("0"));
    report.case("address_from_a_router_two_cores", || address_from_a_router("0, 1"));
}

fn dual() -> Setup {
    Setup { ipv6: true, ..Setup::default() }
}

fn on_bed(setup: Setup, case: impl FnOnce(&mut Bed) -> Result<()>) -> Result<()> {
    if standin::chosen() {
        return skip("the stand-in's network is IPv4");
    }
    let mut bed = Bed::new(setup)?;
    case(&mut bed)?;
    bed.finish()
}

fn server(port: u16) -> SocketAddr {
    SocketAddr::new(SERVER_ADDRESS_V6.parse().expect("a constant"), port)
}

fn rpc(net: &Netns, to: SocketAddr) -> Result<Rpc> {
    Rpc::new(net.connect_once_found(to, CONNECT_LIMIT)?)
}

fn root(net: &Netns, to: SocketAddr) -> Result<Vec<u8>> {
    rpc(net, to)?.mount(b"/export")?.map_err(|status| anyhow::anyhow!("mountstat3 {status}"))
}

/// Writes a file of `LARGE` bytes and reads it in one READ.
fn exchange(rpc: &mut Rpc, root: &[u8], name: &[u8]) -> Result<()> {
    let data = libnfs::Random(0x6673).bytes(LARGE);
    let file = rpc.create(root, name)?;
    for (piece, at) in data.chunks(256 << 10).zip((0u64..).step_by(256 << 10)) {
        rpc.write(&file, at, FILE_SYNC, piece)?;
    }
    for round in 0..4 {
        ensure!(rpc.read(&file, 0, LARGE as u32)? == data, "READ {round} gives other bytes than were written");
    }
    Ok(())
}

fn calls(bed: &mut Bed) -> Result<()> {
    let root = root(&bed.net, server(MOUNT_PORT))?;
    let mut nfs = rpc(&bed.net, server(NFS_PORT))?;
    nfs.null()?;
    exchange(&mut nfs, &root, b"six")?;
    ensure!(fs::read(bed.export().join("six"))?.len() == LARGE, "on the host");
    // The same file over the other family.
    let over_ipv4 = bed.rpc()?.lookup(&root, b"six")?;
    ensure!(over_ipv4 == nfs.lookup(&root, b"six")?);
    for port in [RPCBIND_PORT, MOUNT_PORT] {
        let program = if port == RPCBIND_PORT { RPCBIND } else { MOUNT };
        let socket = bed.net.udp(server(port))?;
        socket.set_read_timeout(Some(CONNECT_LIMIT))?;
        socket.send(&call_bytes(7, program, 3, 0, &crate::client::Credential::unix(0, 0, &[]), &[]))?;
        let mut reply = [0; 2048];
        let len = socket.recv(&mut reply).with_context(|| format!("NULL over UDP to port {port}"))?;
        ensure!(parse_reply(&reply[..len])? == (7, Reply::Success(Vec::new())));
    }
    let closed = bed.net.udp(server(NFS_PORT))?;
    closed.set_read_timeout(Some(CONNECT_LIMIT))?;
    closed.send(b"nobody listens")?;
    let error = closed.recv(&mut [0; 8]).err().context("an answer from a closed port")?;
    ensure!(error.kind() == std::io::ErrorKind::ConnectionRefused, "the port unreachable message was not heard: {error}");
    let refused = bed.net.connect(server(9), CONNECT_LIMIT).err().context("a connection to a closed port")?;
    ensure!(format!("{refused:#}").contains("refused"), "{refused:#}");
    Ok(())
}

/// The TAP spreads what it receives over two queues in its own way: connections on both cores, discovery said once.
fn two_cores(bed: &mut Bed) -> Result<()> {
    let root = root(&bed.net, server(MOUNT_PORT))?;
    let clients = (0..12).map(|_| rpc(&bed.net, server(NFS_PORT))).collect::<Result<Vec<_>>>()?;
    for (number, mut rpc) in clients.into_iter().enumerate() {
        exchange(&mut rpc, &root, format!("file {number}").as_bytes())?;
    }
    // The kernel asks for the server again, from whatever queue the answer has to come.
    for _ in 0..4 {
        bed.net.ip(&format!("-6 neigh flush dev {DEVICE}"))?;
        ping(bed)?;
    }
    std::thread::sleep(Duration::from_millis(500));
    let cores = server::stats_by_core(bed.folder())?;
    ensure!(cores.len() == 2, "{} cores tell", cores.len());
    let count = |core: usize, name: &str| cores[core].get(name).copied().unwrap_or(-1.0);
    for core in 0..2 {
        println!(
            "    core {core}: {} connections, {} handed over, {} neighbour copies, {} solicitations, {} advertisements sent, {} reports",
            count(core, "tcp.passive_opens"),
            count(core, "steering.handed_over"),
            count(core, "steering.neighbour_copies"),
            count(core, "port0.ip6.nd_solicitations_in"),
            count(core, "port0.ip6.nd_advertisements_out"),
            count(core, "port0.ip6.mld_reports_out"),
        );
        ensure!(count(core, "tcp.passive_opens") > 0.0 && count(core, "nfs3.calls_read") > 0.0, "core {core} served nobody");
    }
    ensure!(count(0, "port0.ip6.mld_reports_out") > 0.0 && count(0, "port0.ip6.nd_advertisements_out") > 0.0);
    ensure!(count(1, "port0.ip6.mld_reports_out") == 0.0 && count(1, "port0.ip6.nd_advertisements_out") == 0.0, "both speak");
    ensure!(count(0, "port0.ip6.nd_solicitations_in") > 0.0 && count(1, "port0.ip6.nd_solicitations_in") == 0.0, "who was asked");
    Ok(())
}

fn rpcbind(bed: &mut Bed) -> Result<()> {
    for (version, address) in
        [(3, server(RPCBIND_PORT)), (4, server(RPCBIND_PORT)), (3, format!("{SERVER_ADDRESS}:111").parse()?)]
    {
        let (netid, host) = if address.is_ipv6() { ("tcp6", SERVER_ADDRESS_V6) } else { ("tcp", SERVER_ADDRESS) };
        let mut rpcbind = rpc(&bed.net, address)?;
        let ask = |program: u32| Xdr::default().u32(program).u32(3).opaque(netid.as_bytes()).opaque(b"").opaque(b"").0;
        for (program, port) in [(NFS, NFS_PORT), (MOUNT, MOUNT_PORT)] {
            let Reply::Success(body) = rpcbind.call(RPCBIND, version, 3, &ask(program))? else { bail!("GETADDR was refused") };
            let told = String::from_utf8(Reader(&body).opaque()?.to_vec())?;
            // RFC 5665 section 5.2.3.3: the port's two bytes behind the address.
            let expected = format!("{host}.{}.{}", port >> 8, port & 255);
            ensure!(told == expected, "version {version} tells {told:?} for program {program}, expected {expected:?}");
        }
    }
    Ok(())
}

fn no_route(bed: &mut Bed) -> Result<()> {
    bed.net.ip(&format!("-6 addr add fd4e:6699::1/64 dev {DEVICE} nodad"))?;
    // The server is on another network than this source, and has no router: it hears, and cannot answer. A busy machine's TAP may lose
    // a datagram, so it is asked until it has heard.
    for _ in 0..5 {
        let from_foreign = bed.net.inside(|| -> Result<()> {
            let socket = std::net::UdpSocket::bind("[fd4e:6699::1]:0")?;
            socket.connect(server(RPCBIND_PORT))?;
            socket.set_read_timeout(Some(Duration::from_secs(1)))?;
            socket.send(&call_bytes(9, RPCBIND, 3, 0, &crate::client::Credential::unix(0, 0, &[]), &[]))?;
            ensure!(socket.recv(&mut [0; 512]).is_err(), "an answer without a route");
            Ok(())
        })?;
        from_foreign?;
        if published(bed)?["port0.ip.no_route"] >= 1.0 {
            return Ok(());
        }
    }
    bail!("no_route was not counted")
}

/// Echo requests over a raw socket; Debian has no ping by default.
fn echo(net: &Netns, to: Ipv6Addr, scope: u32, len: usize) -> Result<Ipv6Addr> {
    net.inside(|| -> Result<Ipv6Addr> {
        let socket = rustix::net::socket(AddressFamily::INET6, SocketType::RAW, Some(ipproto::ICMPV6))?;
        sockopt::set_socket_timeout(&socket, sockopt::Timeout::Recv, Some(Duration::from_secs(5)))?;
        let mut request = vec![128, 0, 0, 0, 0x6e, 0x66, 0, 7];
        request.resize(8 + len, 0xa5);
        // The kernel fills in the checksum (RFC 3542 section 3.1).
        rustix::net::sendto(&socket, &request, SendFlags::empty(), &SocketAddrV6::new(to, 0, 0, scope))?;
        let mut reply = vec![0; 65_536];
        loop {
            let (got, _, from) = rustix::net::recvfrom(&socket, &mut reply[..], RecvFlags::empty())?;
            let from = SocketAddrV6::try_from(from.context("a sender")?)?;
            if got >= 8 && reply[0] == 129 && reply[4..8] == request[4..8] {
                ensure!(reply[8..got] == request[8..], "the echo of {len} bytes differs");
                return Ok(*from.ip());
            }
        }
    })?
}

fn ping(bed: &mut Bed) -> Result<()> {
    let ours: Ipv6Addr = SERVER_ADDRESS_V6.parse()?;
    drop(rpc(&bed.net, server(NFS_PORT))?);
    for len in [0, 56, 1452] {
        ensure!(echo(&bed.net, ours, 0, len)? == ours, "answered from another address");
    }
    // All nodes on the link: answered from its link-local address, which answers too.
    let index = bed.net.index(DEVICE)?;
    let all_nodes = "ff02::1".parse()?;
    let mut link_local = echo(&bed.net, all_nodes, index, 8)?;
    // The kernel may have heard itself first.
    for _ in 0..5 {
        if !bed.net.has_address(link_local)? {
            break;
        }
        link_local = echo(&bed.net, all_nodes, index, 8)?;
    }
    if !bed.net.has_address(link_local)? {
        ensure!(link_local.segments()[0] == 0xfe80, "{link_local} is not link-local");
        ensure!(echo(&bed.net, link_local, index, 8)? == link_local);
    }
    ensure!(published(bed)?["port0.ip6.icmp_echo_in"] >= 4.0);
    Ok(())
}

/// Debian's libnfs takes the address as it is between `nfs://` and the path.
fn libnfs_tree(bed: &mut Bed) -> Result<()> {
    drop(rpc(&bed.net, server(NFS_PORT))?);
    let local = bed.folder().join("local");
    libnfs::random_file(&local, 24 << 20)?;
    let url = format!("nfs://{SERVER_ADDRESS_V6}/export/copied");
    let path = local.to_str().context("a plain path")?;
    libnfs::copy(bed, path, &url, Duration::from_secs(60))?;
    libnfs::compare_files(&local, &bed.export().join("copied"))?;
    let back = bed.folder().join("back");
    libnfs::copy(bed, &url, back.to_str().context("a plain path")?, Duration::from_secs(60))?;
    libnfs::compare_files(&local, &back)?;
    let stats = published(bed)?;
    ensure!(stats["port0.ip6.tcp_in"] > 1_000.0, "libnfs did not come over IPv6: {} segments", stats["port0.ip6.tcp_in"]);
    Ok(())
}

fn large_reads(bed: &mut Bed) -> Result<()> {
    let root = root(&bed.net, server(MOUNT_PORT))?;
    exchange(&mut rpc(&bed.net, server(NFS_PORT))?, &root, b"large")
}

/// The counters, once the cores have published what happened so far: they do so a few times a second.
fn published(bed: &Bed) -> Result<server::Counters> {
    std::thread::sleep(Duration::from_millis(500));
    server::stats(bed.folder())
}

/// A TAP that is switched off and on: what nobody heard is said again, and a connection of before goes on (RFC 5227 section 2.3, RFC 4861
/// section 7.2.6).
fn link_comes_back(bed: &mut Bed) -> Result<()> {
    let root = root(&bed.net, server(MOUNT_PORT))?;
    let mut of_before = bed.rpc()?;
    exchange(&mut of_before, &root, b"before")?;
    // Replies that its client does not take: the server goes on asking whether it does.
    let mut untaken = bed.rpc()?;
    let file = untaken.lookup(&root, b"before")?;
    let asked = (0..16).map(|_| untaken.send(NFS, 3, procedure::READ, &Xdr::default().opaque(&file).u64(0).u32(LARGE as u32).0));
    let asked = asked.collect::<Result<Vec<u32>>>()?;
    let at_start = published(bed)?;
    ensure!(at_start["port0.ip.link_up"] == 1.0, "{:?}", at_start.get("port0.ip.link_up"));
    bed.net.ip(&format!("link set {DEVICE} down"))?;
    until(bed, |counters| counters["port0.ip.link_up"] == 0.0)?;
    // The driver's word for what the interface did not take.
    until(bed, |counters| counters["port0.tx_errors"] > at_start["port0.tx_errors"])?;
    bed.net.ip(&format!("link set {DEVICE} up"))?;
    // The kernel has forgotten its own.
    bed.net.ip(&format!("-6 addr add {CLIENT_ADDRESS_V6}/64 dev {DEVICE} nodad"))?;
    until(bed, |counters| counters["port0.ip.link_up"] == 1.0)?;
    exchange(&mut of_before, &root, b"after")?;
    let mut answered = (0..asked.len()).map(|_| Ok(untaken.receive()?.0)).collect::<Result<Vec<u32>>>()?;
    answered.sort_unstable();
    ensure!(answered == asked, "replies of before are missing");
    exchange(&mut rpc(&bed.net, server(NFS_PORT))?, &root, b"after6")?;
    until(bed, |counters| counters["port0.ip6.nd_advertisements_out"] > at_start["port0.ip6.nd_advertisements_out"])?;
    let at_end = published(bed)?;
    let grown = |name: &str| at_end[name] - at_start[name];
    ensure!(grown("port0.ip.link_downs") == 1.0 && grown("port0.ip.link_ups") == 1.0, "down and up once");
    ensure!(grown("tcp.estab_resets") == 0.0 && grown("tcp.abort_on_timeout") == 0.0, "a connection was cut");
    Ok(())
}

/// Waits for what the counters have to tell.
fn until(bed: &Bed, holds: impl Fn(&server::Counters) -> bool) -> Result<()> {
    let deadline = Instant::now() + Duration::from_secs(10);
    while !holds(&published(bed)?) {
        ensure!(Instant::now() < deadline, "the counters do not tell it within 10 s");
    }
    Ok(())
}

fn in_a_vlan(bed: &mut Bed) -> Result<()> {
    let root = root(&bed.net, server(MOUNT_PORT))?;
    exchange(&mut rpc(&bed.net, server(NFS_PORT))?, &root, b"tagged6")?;
    exchange(&mut bed.rpc()?, &root, b"tagged4")?;
    ensure!(echo(&bed.net, SERVER_ADDRESS_V6.parse()?, 0, 1452)? == SERVER_ADDRESS_V6.parse::<Ipv6Addr>()?);
    // Without the tag nobody answers.
    let before = published(bed)?["port0.ip.ethernet_other_vlan"];
    bed.net.ip(&format!("-6 addr add fd4e:6673:1::1/64 dev {DEVICE} nodad"))?;
    ensure!(bed.net.connect("[fd4e:6673:1::2]:2049".parse()?, Duration::from_secs(2)).is_err());
    let after = published(bed)?["port0.ip.ethernet_other_vlan"];
    ensure!(after > before, "frames without the tag were not counted: {before}, then {after}");
    Ok(())
}

/// The kernel's end advertises nothing by itself: one advertisement over a raw socket is the router. The server makes an
/// address from its prefix and serves there.
fn address_from_a_router(engine: &'static str) -> Result<()> {
    if standin::chosen() {
        return skip("the stand-in's network is IPv4");
    }
    let setup = Setup { engine, port_keys: "slaac = true\n".into(), more_clients: vec!["fd4e:6675::/64".into()], ..dual() };
    let bed = Bed::new(setup)?;
    bed.net.ip(&format!("-6 addr add fd4e:6675::1/64 dev {DEVICE} nodad"))?;
    let index = bed.net.index(DEVICE)?;
    let deadline = Instant::now() + Duration::from_secs(20);
    let address = loop {
        advertise(&bed.net, index)?;
        std::thread::sleep(Duration::from_millis(500));
        if let Some(address) = logged_address(&bed)? {
            break address;
        }
        ensure!(Instant::now() < deadline, "no address was made from the prefix");
    };
    // Enough for each core to get one.
    let clients = (0..12).map(|_| rpc(&bed.net, SocketAddr::new(IpAddr::V6(address), NFS_PORT))).collect::<Result<Vec<_>>>()?;
    clients.into_iter().try_for_each(|mut rpc| rpc.null())?;
    let stats = published(&bed)?;
    ensure!(stats["port0.ip6.routers"] == 1.0 && stats["port0.ip6.prefixes"] == 1.0);
    bed.finish()
}

/// RFC 4861 section 4.2: a router for half an hour, with the prefix fd4e:6675::/64 for an hour.
fn advertise(net: &Netns, index: u32) -> Result<()> {
    let mut message = vec![134, 0, 0, 0, 64, 0, 0x07, 0x08, 0, 0, 0, 0, 0, 0, 0, 0];
    message.extend([3, 4, 64, 0xc0, 0, 0, 0x0e, 0x10, 0, 0, 0x02, 0x58, 0, 0, 0, 0, 0xfd, 0x4e, 0x66, 0x75]);
    message.resize(48, 0);
    net.inside(|| -> Result<()> {
        let socket = rustix::net::socket(AddressFamily::INET6, SocketType::RAW, Some(ipproto::ICMPV6))?;
        sockopt::set_ipv6_multicast_hops(&socket, 255)?;
        let to = SocketAddrV6::new("ff02::1".parse()?, 0, 0, index);
        rustix::net::sendto(&socket, &message, SendFlags::empty(), &to)?;
        Ok(())
    })?
}

/// The address that the server says it uses, from its log.
fn logged_address(bed: &Bed) -> Result<Option<Ipv6Addr>> {
    let log = fs::read_to_string(bed.folder().join("server.log"))?;
    let words = log.split(|c: char| !c.is_ascii_hexdigit() && c != ':');
    Ok(words.filter_map(|word| word.parse().ok()).find(|address: &Ipv6Addr| address.segments()[..4] == [0xfd4e, 0x6675, 0, 0]))
}
