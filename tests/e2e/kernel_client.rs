//! Debian's stock kernel, in QEMU, mounts the export and works on it: over a bridge to the TAP (IPv4 and IPv6), and over vhost-user.
//! What it wrote is compared with the exported folder on the host too.

use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::bed::Bed;
use crate::process;
use crate::qemu;
use crate::report::{Report, full, skip};
use crate::server::{CLIENT_ADDRESS, SERVER_ADDRESS, SERVER_ADDRESS_V6, Setup};
use crate::standin;

const GUEST_ADDRESS: &str = "10.77.0.3";
const GUEST_ADDRESS_V6: &str = "fd4e:6673::3";
const SCRIPT: &str = include_str!("guest/nfs.sh");
const MODULES: &[&str] = &["virtio_pci", "virtio_net", "nfsv3"];
const LIMIT: Duration = Duration::from_secs(420);

pub fn run(report: &mut Report) {
    report.case("over_a_bridge", || over_a_bridge("vers=3,nolock", MANY_FILES));
    report.case("over_a_bridge_tcp_mountproto", || {
        over_a_bridge("vers=3,nolock,proto=tcp,mountproto=tcp,rsize=65536,wsize=65536", many_files())
    });
    report.case("over_ipv6", over_ipv6);
    report.case("over_vhost_user", over_vhost_user);
}

fn words(address: &str, options: &str, files: u32) -> String {
    format!("t_server={SERVER_ADDRESS} t_address={address} t_options={options} t_files={files} t_interface=eth0")
}

/// One case takes them all; under emulation they need most of its time.
const MANY_FILES: u32 = 10_000;

fn many_files() -> u32 {
    if full() { MANY_FILES } else { 500 }
}

fn over_a_bridge(options: &str, files: u32) -> Result<()> {
    on_the_bridge(Setup { bridge: true, ..Setup::default() }, &words(GUEST_ADDRESS, options, files))
}

fn over_ipv6() -> Result<()> {
    if standin::chosen() {
        return skip("the stand-in's network is IPv4");
    }
    let options = "vers=3,nolock,proto=tcp6,mountproto=tcp6";
    let words =
        format!("{} t_server6={SERVER_ADDRESS_V6} t_address6={GUEST_ADDRESS_V6}", words(GUEST_ADDRESS, options, many_files()));
    on_the_bridge(Setup { bridge: true, ipv6: true, ..Setup::default() }, &words)
}

fn on_the_bridge(setup: Setup, words: &str) -> Result<()> {
    let kernel = qemu::kernel()?;
    let bed = Bed::new(setup)?;
    bed.net.ip("tuntap add dev guest0 mode tap")?;
    bed.net.ip("link set guest0 master br0")?;
    bed.net.ip("link set guest0 up")?;
    let initrd = kernel.initrd(bed.folder(), MODULES, true, SCRIPT)?;
    let devices = [
        "-m",
        "512",
        "-netdev",
        "tap,id=n0,ifname=guest0,script=no,downscript=no",
        "-device",
        "virtio-net-pci,netdev=n0,romfile=,mac=02:00:0a:4d:00:03",
    ];
    let mut guest = qemu::boot(&bed.net, bed.folder(), &kernel, &initrd, &devices, words)?;
    guest.finish(LIMIT, SCRIPT)?;
    compare_on_host(&bed)?;
    bed.finish()
}

/// The guest's checksums, run again on the exported folder past the server.
fn compare_on_host(bed: &Bed) -> Result<()> {
    let mut command = Command::new("md5sum");
    command.args(["--check", "--quiet", "--strict", "manifest.md5"]).current_dir(bed.export());
    process::run(command, Duration::from_secs(60)).context("the guest's checksums on the host")?;
    Ok(())
}

/// No kernel on the server's side: the guest's virtio rings are the server's port.
fn over_vhost_user() -> Result<()> {
    let kernel = qemu::kernel()?;
    let mut bed = Bed::prepare(Setup { bridge: standin::chosen(), ..Setup::default() })?;
    let socket = bed.folder().join("vhost.sock");
    let mut patch = None;
    let mut address = CLIENT_ADDRESS;
    if standin::chosen() {
        patch = Some(standin::vhost_to_bridge(&bed.net, &socket, &bed.folder().join("testpmd.log"))?);
        address = GUEST_ADDRESS;
    } else {
        bed.setup.device = format!("net_vhost0,iface={},queues=1", socket.display());
    }
    bed.start()?;
    process::wait_for_file(&socket, Duration::from_secs(10)).context("the vhost-user socket")?;
    let initrd = kernel.initrd(bed.folder(), MODULES, true, SCRIPT)?;
    let chardev = format!("socket,id=c0,path={}", socket.display());
    let devices = [
        "-object",
        "memory-backend-memfd,id=mem,size=512M,share=on",
        "-numa",
        "node,memdev=mem",
        "-m",
        "512",
        "-chardev",
        &chardev,
        "-netdev",
        "vhost-user,id=n0,chardev=c0",
        // QEMU 7.2 under software emulation crashes with vhost-user when the guest uses MSI-X.
        "-device",
        "virtio-net-pci,netdev=n0,romfile=,vectors=0,mac=02:00:0a:4d:00:03",
    ];
    let words = words(address, "vers=3,nolock", many_files());
    let mut guest = qemu::boot(&bed.net, bed.folder(), &kernel, &initrd, &devices, &words)?;
    guest.finish(LIMIT, SCRIPT)?;
    drop(patch);
    compare_on_host(&bed)?;
    bed.finish()
}
