//! The path of a real appliance, in QEMU with a virtual IOMMU: deploy/nfsplice-bind gives the network card to vfio-pci, the same
//! binary serves from it out of hugepages, and a client outside the guest lists the export and reads 64 MiB.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use crate::bed::Bed;
use crate::libnfs;
use crate::process;
use crate::qemu::{self, Guest};
use crate::report::{Report, skip};
use crate::server::{CLIENT_ADDRESS, SERVER_ADDRESS, Setup, binary, check_no_copies, parse_stats};
use crate::standin;

const SCRIPT: &str = include_str!("guest/vfio.sh");
const FILE_BYTES: u64 = 64 << 20;
const BOOT_LIMIT: Duration = Duration::from_secs(120);
const ANSWER_LIMIT: Duration = Duration::from_secs(60);
const COPY_LIMIT: Duration = Duration::from_secs(180);

struct Card {
    /// QEMU's device and what it needs under a virtual IOMMU.
    device: &'static str,
    module: &'static str,
    /// The kernel's driver, which it has before and after.
    driver: &'static str,
}

pub fn run(report: &mut Report) {
    report.case("vmxnet3", || serve_from(&Card { device: "vmxnet3", module: "vmxnet3", driver: "vmxnet3" }));
    // Without the two options a modern virtio card behind an IOMMU hangs at its start.
    let device = "virtio-net-pci,disable-legacy=on,iommu_platform=on";
    report.case("virtio", || serve_from(&Card { device, module: "virtio_net", driver: "virtio-pci" }));
    report.case("e1000", || serve_from(&Card { device: "e1000", module: "e1000", driver: "e1000" }));
}

fn serve_from(card: &Card) -> Result<()> {
    let kernel = qemu::kernel()?;
    let project = Path::new(env!("CARGO_MANIFEST_DIR"));
    if !project.join("deploy/nfsplice-bind").is_file() {
        return skip("deploy/nfsplice-bind is missing");
    }
    let setup = Setup { device: "GUEST-CARD".into(), hugepages: true, ..Setup::default() };
    let bed = Bed::prepare(setup)?;
    if !standin::chosen() {
        bed.net.ip("tuntap add dev guest0 mode tap")?;
        bed.net.ip(&format!("addr add {CLIENT_ADDRESS}/24 dev guest0"))?;
    } else {
        // The stand-in of the other cases is not there: the card's own answers are asked for.
        bed.net.ip("link del nfs0")?;
        bed.net.ip("tuntap add dev guest0 mode tap")?;
        bed.net.ip(&format!("addr add {CLIENT_ADDRESS}/24 dev guest0"))?;
    }
    bed.net.ip("link set guest0 up")?;
    let local = bed.folder().join("large");
    libnfs::random_file(&local, FILE_BYTES)?;
    fs::write(bed.folder().join("guest.toml"), guest_config(&bed))?;

    let initrd = kernel.initrd(
        bed.folder(),
        &["virtio_pci", "9pnet_virtio", "9p", "overlay", card.module, "vfio_iommu_type1"],
        false,
        SCRIPT,
    )?;
    let mut guest = boot(&bed, &kernel, card, &initrd)?;
    guest.wait_for("GUEST-SERVING", BOOT_LIMIT)?;
    let outcome = use_from_outside(&bed, &local);
    fs::write(bed.folder().join("stop"), "")?;
    let log = process::tail(&bed.folder().join("server.log"));
    if let Err(error) = outcome {
        // What the guest has to say comes first: a server that did not start explains itself there.
        let guest_says = guest.finish(BOOT_LIMIT, SCRIPT).err().map_or(String::new(), |error| format!("{error:#}\n"));
        bail!("{error:#}\n{guest_says}{log}");
    }
    guest.finish(BOOT_LIMIT, SCRIPT).context(log)?;
    if !standin::chosen() {
        check_no_copies(&parse_stats(&fs::read(bed.folder().join("stats.json"))?)?)?;
    }
    Ok(())
}

/// The same configuration as elsewhere, with the folders that the guest has.
fn guest_config(bed: &Bed) -> String {
    bed.setup.to_toml(Path::new("/srv")).replace("/srv/stats.sock", "/run/nfsplice.sock")
}

fn boot(bed: &Bed, kernel: &qemu::Kernel, card: &Card, initrd: &Path) -> Result<Guest> {
    let nic = format!("{},netdev=n0,mac=02:00:0a:4d:00:02,romfile=", card.device);
    let shared = format!("local,id=shared,path={},security_model=none", bed.folder().display());
    let devices = [
        "-machine",
        "q35",
        "-smp",
        "2",
        "-m",
        "1536",
        "-device",
        "intel-iommu,intremap=on,caching-mode=on",
        "-fsdev",
        "local,id=host,path=/,security_model=none,readonly=on,multidevs=remap",
        "-device",
        "virtio-9p-pci,fsdev=host,mount_tag=host",
        "-fsdev",
        &shared,
        "-device",
        "virtio-9p-pci,fsdev=shared,mount_tag=shared",
        "-netdev",
        "tap,id=n0,ifname=guest0,script=no,downscript=no",
        "-device",
        &nic,
    ];
    let project = env!("CARGO_MANIFEST_DIR");
    let program: PathBuf = if standin::chosen() { "/none".into() } else { binary()? };
    let words = format!(
        "intel_iommu=on iommu=pt t_folder={} t_project={project} t_binary={} t_driver={}{}",
        bed.folder().display(),
        program.display(),
        card.driver,
        if standin::chosen() { " t_standin=1" } else { "" }
    );
    qemu::boot(&bed.net, bed.folder(), kernel, initrd, &devices, &words)
}

fn use_from_outside(bed: &Bed, local: &Path) -> Result<()> {
    let started = Instant::now();
    if standin::chosen() {
        loop {
            let mut command = bed.net.command("busybox");
            command.args(["ping", "-c", "1", "-W", "1", SERVER_ADDRESS]);
            if process::output(command, COPY_LIMIT)?.status.success() {
                break;
            }
            ensure!(started.elapsed() < ANSWER_LIMIT, "no ping from testpmd on the card within {ANSWER_LIMIT:?}");
        }
        return Ok(());
    }
    while bed.rpc_within(Duration::from_secs(1)).and_then(|mut rpc| rpc.null()).is_err() {
        ensure!(started.elapsed() < ANSWER_LIMIT, "no answer from the guest's card within {ANSWER_LIMIT:?}");
        std::thread::sleep(Duration::from_millis(200));
    }
    let listed = libnfs::list(bed, "")?;
    ensure!(listed.contains("large"), "nfs-ls shows {listed:?}");
    let back = bed.folder().join("large.back");
    let started = Instant::now();
    libnfs::copy(bed, &bed.url("/large"), back.to_str().context("a plain path")?, COPY_LIMIT)?;
    let rate = FILE_BYTES as f64 / 1e6 / started.elapsed().as_secs_f64();
    libnfs::compare_files(local, &back)?;
    println!("    {} MiB read at {rate:.0} MB/s out of the emulated machine", FILE_BYTES >> 20);
    Ok(())
}
