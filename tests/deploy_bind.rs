//! deploy/nfsplice-bind against a made-up /sys and /proc: what it changes, what it refuses, and that it undoes itself.
//!
//! The script writes plain files; a small program of this test plays the kernel's part after each write: it moves driver
//! links, hands out hugepages and can be told to refuse.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

const KERNEL: &str = r#"#!/bin/bash
set -eu
sys=$NFSPLICE_BIND_ROOT/sys
case $1 in
    */driver_override)
        if [ -z "$2" ]; then printf '(null)\n' >"$1"; fi ;;
    */driver/unbind)
        rm "$sys/bus/pci/devices/$2/driver"
        : >"$sys/unbind-empty" ;;
    */drivers_probe)
        device=$sys/bus/pci/devices/$2
        wanted=$(cat "$device/driver_override")
        [ "$wanted" = '(null)' ] && wanted=$(cat "$device/native")
        if [ -d "$sys/bus/pci/drivers/$wanted" ] && [ ! -e "$NFSPLICE_BIND_ROOT/refuse-$wanted" ] && [ ! -e "$device/driver" ]; then
            ln -s "../../drivers/$wanted" "$device/driver"
        fi ;;
    */nr_hugepages)
        most=$(cat "$NFSPLICE_BIND_ROOT/hugepages-most")
        total=$2
        [ "$total" -gt "$most" ] && total=$most
        printf '%s\n' "$total" >"$1"
        printf '%s\n' "$total" >"${1%/*}/free_hugepages" ;;
esac
# Files that only take writes have no content of their own.
rm -f "$sys/unbind-empty"
for file in "$sys"/bus/pci/drivers/*/unbind "$sys/bus/pci/drivers_probe"; do : >"$file"; done
"#;

/// A machine made of files. Removed when dropped.
struct Machine {
    root: PathBuf,
}

struct Outcome {
    code: i32,
    out: String,
    err: String,
}

impl Machine {
    fn new(name: &str) -> Self {
        let root = std::env::temp_dir().join(format!("nfsplice-bind-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&root);
        let machine = Self { root };
        for driver in ["ixgbe", "vmxnet3", "e1000", "nvme", "vfio-pci", "uio_pci_generic"] {
            machine.file(&format!("sys/bus/pci/drivers/{driver}/unbind"), "");
        }
        machine.file("sys/bus/pci/drivers_probe", "");
        machine.file("sys/module/vfio/parameters/enable_unsafe_noiommu_mode", "N\n");
        machine.device("0000:01:00.0", "0x020000", "ixgbe", Some(1), Some("eth0"));
        machine.device("0000:03:00.0", "0x020000", "vmxnet3", Some(7), Some("ens3"));
        machine.device("0000:04:00.0", "0x020000", "e1000", Some(8), Some("ens4"));
        machine.device("0000:04:00.1", "0x020000", "e1000", Some(8), Some("ens5"));
        machine.device("0000:05:00.0", "0x010802", "nvme", Some(9), None);
        machine.device("0000:06:00.0", "0x020000", "e1000", Some(10), Some("ens6"));
        machine.device("0000:07:00.0", "0x020000", "e1000", None, Some("ens7"));
        // ens6 is in a bond which is in a bridge that has a default route.
        machine.file("sys/class/net/ens6/upper_bond0/ifindex", "9\n");
        machine.file("sys/class/net/bond0/upper_br0/ifindex", "10\n");
        for kb in ["2048", "1048576"] {
            let directory = format!("sys/kernel/mm/hugepages/hugepages-{kb}kB");
            machine.file(&format!("{directory}/nr_hugepages"), "16\n");
            machine.file(&format!("{directory}/free_hugepages"), "16\n");
        }
        machine.file("hugepages-most", "4096\n");
        let columns = "Iface\tDestination\tGateway\tFlags\tRefCnt\tUse\tMetric\tMask\tMTU\tWindow\tIRTT\n";
        let routes = "eth0\t00000000\t0100000A\t0003\t0\t0\t0\t00000000\t0\t0\t0\n\
                      br0\t00000000\t0100010A\t0003\t0\t0\t9\t00000000\t0\t0\t0\n\
                      ens3\t0000000A\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\t0\t0\n";
        machine.file("proc/net/route", &format!("{columns}{routes}"));
        machine.file("proc/mounts", "proc /proc proc rw 0 0\n");
        machine.program("kernel", KERNEL);
        machine.program("bin/modprobe", "#!/bin/bash\nexit 0\n");
        machine.program("bin/ip", "#!/bin/bash\necho '3: ens4    inet 192.168.5.9/24 brd 192.168.5.255 scope global ens4'\n");
        let mount = "#!/bin/bash\necho \"nodev ${@: -1} hugetlbfs rw 0 0\" >>\"$NFSPLICE_BIND_ROOT/proc/mounts\"\n";
        machine.program("bin/mount", mount);
        machine.program("bin/umount", "#!/bin/bash\nsed -i '/hugetlbfs/d' \"$NFSPLICE_BIND_ROOT/proc/mounts\"\n");
        machine
    }

    fn file(&self, path: &str, text: &str) {
        let path = self.root.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    fn program(&self, path: &str, text: &str) {
        self.file(path, text);
        fs::set_permissions(self.root.join(path), fs::Permissions::from_mode(0o755)).unwrap();
    }

    fn device(&self, address: &str, class: &str, driver: &str, group: Option<u32>, interface: Option<&str>) {
        let device = format!("sys/bus/pci/devices/{address}");
        self.file(&format!("{device}/class"), &format!("{class}\n"));
        self.file(&format!("{device}/native"), driver);
        self.file(&format!("{device}/driver_override"), "(null)\n");
        self.file(&format!("{device}/numa_node"), "-1\n");
        symlink(format!("../../drivers/{driver}"), self.root.join(&device).join("driver")).unwrap();
        if let Some(group) = group {
            self.file(&format!("sys/kernel/iommu_groups/{group}/devices/{address}/x"), "");
            let target = format!("../../../../kernel/iommu_groups/{group}");
            symlink(target, self.root.join(&device).join("iommu_group")).unwrap();
        }
        if let Some(interface) = interface {
            self.file(&format!("{device}/net/{interface}/ifindex"), "3\n");
        }
    }

    fn bind(&self, arguments: &[&str]) -> Outcome {
        self.bind_from("", arguments)
    }

    fn bind_from(&self, ssh_connection: &str, arguments: &[&str]) -> Outcome {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/nfsplice-bind");
        let path = format!("{}:{}", self.root.join("bin").display(), std::env::var("PATH").unwrap());
        let output = Command::new("bash")
            .arg(script)
            .args(arguments)
            .env("PATH", path)
            .env("NFSPLICE_BIND_ROOT", &self.root)
            .env("NFSPLICE_BIND_KERNEL", self.root.join("kernel"))
            .env("SSH_CONNECTION", ssh_connection)
            .output()
            .unwrap();
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap().replace(&self.root.display().to_string(), "");
        Outcome { code: output.status.code().unwrap(), out: text(output.stdout), err: text(output.stderr) }
    }

    fn driver(&self, address: &str) -> String {
        let link = self.root.join("sys/bus/pci/devices").join(address).join("driver");
        fs::read_link(link).map_or("none".into(), |link| link.file_name().unwrap().to_str().unwrap().to_owned())
    }

    fn read(&self, path: &str) -> String {
        fs::read_to_string(self.root.join(path)).unwrap_or_else(|error| format!("{path}: {error}"))
    }

    /// Every file and link below /sys and /proc, and the state.
    fn snapshot(&self) -> BTreeMap<String, String> {
        let mut all = BTreeMap::new();
        let mut todo: Vec<PathBuf> = ["sys", "proc", "var"].map(|name| self.root.join(name)).to_vec();
        while let Some(path) = todo.pop() {
            let Ok(meta) = fs::symlink_metadata(&path) else { continue };
            if meta.is_symlink() {
                all.insert(path.display().to_string(), format!("-> {}", fs::read_link(&path).unwrap().display()));
            } else if meta.is_dir() {
                todo.extend(fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
            } else {
                all.insert(path.display().to_string(), fs::read_to_string(&path).unwrap());
            }
        }
        all
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.root);
    }
}

const HUGEPAGES: &str = "sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages";
const STATE: &str = "var/lib/nfsplice/bind-state";

#[test]
fn a_dry_run_says_everything_and_changes_nothing() {
    let machine = Machine::new("dry");
    let before = machine.snapshot();
    let dry = machine.bind(&["--hugepages", "1280", "03:00.0"]);
    assert_eq!((dry.code, dry.err.as_str()), (0, ""), "{}", dry.out);
    assert_eq!(machine.snapshot(), before);
    let expected = "\
Dry run: nothing is changed. --apply does it.
hugepages of 2048 kB: 16 free, 640 wanted
  would write '640' to /sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages
hugetlbfs is not mounted
  would run: mkdir -p /dev/hugepages
  would run: mount -t hugetlbfs nodev /dev/hugepages
  would run: modprobe vfio-pci
0000:03:00.0: vmxnet3 -> vfio-pci
  would write 'vfio-pci' to /sys/bus/pci/devices/0000:03:00.0/driver_override
  would write '0000:03:00.0' to /sys/bus/pci/devices/0000:03:00.0/driver/unbind
  would write '0000:03:00.0' to /sys/bus/pci/drivers_probe
";
    assert_eq!(dry.out, expected);
}

#[test]
fn binding_and_undoing_leaves_the_machine_as_it_was() {
    let machine = Machine::new("undo");
    let before = machine.snapshot();
    // Two devices of one IOMMU group, in two runs of which the second repeats the first.
    let bound = machine.bind(&["--apply", "--hugepages", "64", "0000:03:00.0"]);
    assert_eq!(bound.code, 0, "{}{}", bound.out, bound.err);
    let bound = machine.bind(&["--apply", "--hugepages", "1280", "0000:03:00.0", "0000:04:00.0", "0000:04:00.1"]);
    assert_eq!(bound.code, 0, "{}{}", bound.out, bound.err);
    assert_eq!(machine.driver("0000:03:00.0"), "vfio-pci");
    assert_eq!(machine.driver("0000:04:00.1"), "vfio-pci");
    assert_eq!(machine.read(HUGEPAGES), "640\n");
    assert!(machine.read("proc/mounts").contains("hugetlbfs"));
    let recorded = machine.read(STATE).replace(&machine.root.display().to_string(), "");
    let expected = "\
hugepages /sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages 16
mount /dev/hugepages
device 0000:03:00.0 vmxnet3 -
device 0000:04:00.0 e1000 -
device 0000:04:00.1 e1000 -
";
    assert_eq!(recorded, expected);
    let status = machine.bind(&["status"]);
    assert!(status.out.contains("0000:03:00.0  driver vfio-pci "), "{}", status.out);
    assert!(status.out.contains("device 0000:04:00.0 e1000 -"), "{}", status.out);

    let while_bound = machine.snapshot();
    let dry = machine.bind(&["--undo"]);
    assert_eq!(dry.code, 0);
    assert!(dry.out.contains("0000:04:00.1: vfio-pci -> e1000"), "{}", dry.out);
    assert_eq!(machine.snapshot(), while_bound);
    let undone = machine.bind(&["--undo", "--apply"]);
    assert_eq!(undone.code, 0, "{}{}", undone.out, undone.err);
    assert_eq!(machine.snapshot(), before);
    assert!(machine.bind(&["--undo", "--apply"]).out.contains("nothing to undo"));
}

#[test]
fn a_card_that_the_machine_lives_on_is_refused() {
    let machine = Machine::new("refuse");
    let before = machine.snapshot();
    let ssh = "203.0.113.7 50000 192.168.5.9 22";
    for (device, reason) in [
        ("0000:01:00.0", "0000:01:00.0 (eth0) carries the default route"),
        ("0000:06:00.0", "0000:06:00.0 (br0) carries the default route"),
        ("0000:04:00.0", "0000:04:00.0 (ens4) carries this SSH session"),
        ("0000:05:00.0", "0000:05:00.0 is not a network card (class 0x010802)"),
        ("0000:07:00.0", "0000:07:00.0 has no IOMMU group"),
    ] {
        for apply in [&[device][..], &["--apply", device]] {
            let refused = machine.bind_from(ssh, apply);
            assert_eq!(refused.code, 3, "{device}: {}{}", refused.out, refused.err);
            assert!(refused.err.starts_with(&format!("nfsplice-bind: refused: {reason}")), "{}", refused.err);
        }
    }
    // sudo does not hand the variable on: it is looked for where the script was started from, in the end this process.
    let own = format!("proc/{}/environ", std::process::id());
    machine.file(&own, &format!("HOME=/root\0SSH_CONNECTION={ssh}\0LANG=C\0"));
    let refused = machine.bind(&["--apply", "0000:04:00.0"]);
    assert_eq!(refused.code, 3);
    assert!(refused.err.contains("0000:04:00.0 (ens4) carries this SSH session"), "{}", refused.err);
    fs::remove_dir_all(machine.root.join("proc").join(std::process::id().to_string())).unwrap();
    let shared = machine.bind(&["--apply", "0000:04:00.0"]);
    assert_eq!(shared.code, 3);
    assert!(shared.err.contains("shares its IOMMU group with 0000:04:00.1 (driver e1000)"), "{}", shared.err);
    assert_eq!(machine.snapshot(), before);

    let forced = machine.bind_from(ssh, &["--apply", "--force", "0000:01:00.0"]);
    assert_eq!(forced.code, 0, "{}", forced.err);
    assert!(forced.err.contains("warning: 0000:01:00.0 (eth0) carries the default route"), "{}", forced.err);
    assert_eq!(machine.driver("0000:01:00.0"), "vfio-pci");
}

#[test]
fn a_driver_that_does_not_take_the_card_leaves_it_with_the_old_one() {
    let machine = Machine::new("rollback");
    let before = machine.snapshot();
    machine.file("refuse-vfio-pci", "");
    let failed = machine.bind(&["--apply", "0000:03:00.0"]);
    assert_eq!(failed.code, 1);
    let expected = "nfsplice-bind: 0000:03:00.0: after binding its driver is 'none', not vfio-pci; going back\n";
    assert_eq!(failed.err, expected);
    assert_eq!(machine.snapshot(), before);
}

#[test]
fn a_card_that_cannot_be_given_back_stays_on_record() {
    let machine = Machine::new("stuck");
    assert_eq!(machine.bind(&["--apply", "0000:03:00.0"]).code, 0);
    machine.file("refuse-vmxnet3", "");
    let stuck = machine.bind(&["--undo", "--apply"]);
    assert_eq!(stuck.code, 1);
    assert!(stuck.err.contains("its driver is 'none', not 'vmxnet3' as before"), "{}", stuck.err);
    assert!(machine.read(STATE).contains("device 0000:03:00.0 vmxnet3 -"));
    fs::remove_file(machine.root.join("refuse-vmxnet3")).unwrap();
    assert_eq!(machine.bind(&["--undo", "--apply"]).code, 0);
    assert_eq!(machine.driver("0000:03:00.0"), "vmxnet3");
}

#[test]
fn too_few_hugepages_are_given_back_and_no_card_is_touched() {
    let machine = Machine::new("hugepages");
    let before = machine.snapshot();
    machine.file("hugepages-most", "100\n");
    let short = machine.bind(&["--apply", "--hugepages", "1280", "0000:03:00.0"]);
    assert_eq!(short.code, 1);
    assert!(short.err.contains("the kernel found only 100 of 640 hugepages"), "{}", short.err);
    assert_eq!(machine.snapshot(), before);
    // A gigabyte page is rounded up to; the NUMA node is the card's.
    machine.file("sys/bus/pci/devices/0000:03:00.0/numa_node", "1\n");
    for file in ["nr_hugepages", "free_hugepages"] {
        machine.file(&format!("sys/devices/system/node/node1/hugepages/hugepages-1048576kB/{file}"), "0\n");
    }
    let node = machine.bind(&["--apply", "--hugepage-size", "1G", "--hugepages", "1280", "0000:03:00.0"]);
    assert_eq!(node.code, 0, "{}", node.err);
    assert_eq!(machine.read("sys/devices/system/node/node1/hugepages/hugepages-1048576kB/nr_hugepages"), "2\n");
}

#[test]
fn without_an_iommu_the_risk_must_be_named() {
    let machine = Machine::new("noiommu");
    let before = machine.snapshot();
    assert_eq!(machine.bind(&["--apply", "--no-iommu", "0000:07:00.0"]).code, 0);
    assert_eq!(machine.read("sys/module/vfio/parameters/enable_unsafe_noiommu_mode"), "Y\n");
    assert_eq!(machine.driver("0000:07:00.0"), "vfio-pci");
    assert_eq!(machine.bind(&["--undo", "--apply"]).code, 0);
    assert_eq!(machine.bind(&["--apply", "--driver", "uio_pci_generic", "0000:07:00.0"]).code, 0);
    assert_eq!(machine.driver("0000:07:00.0"), "uio_pci_generic");
    assert_eq!(machine.bind(&["--undo", "--apply"]).code, 0);
    assert_eq!(machine.snapshot(), before);
}

#[test]
fn wrong_usage_is_told_apart() {
    let machine = Machine::new("usage");
    for arguments in [
        &["eth0"][..],
        &[],
        &["--hugepages"],
        &["--hugepages", "lots"],
        &["--driver", "igb_uio", "0000:03:00.0"],
        &["--undo", "0000:03:00.0"],
        &["--apply", "0000:99:00.0"],
        &["--frobnicate"],
    ] {
        let wrong = machine.bind(arguments);
        assert_eq!(wrong.code, 2, "{arguments:?}: {}{}", wrong.out, wrong.err);
        assert!(wrong.err.starts_with("nfsplice-bind: "), "{arguments:?}: {}", wrong.err);
    }
    let help = machine.bind(&["--help"]);
    assert_eq!((help.code, help.err.as_str()), (0, ""));
}
