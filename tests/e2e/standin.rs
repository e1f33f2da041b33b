//! NFS-Ganesha in the server's place (`NFSPLICE_E2E_SERVER=ganesha`): the cases are tried on a server known to work, so that a
//! failure with nfsplice is nfsplice's. It sits in a second namespace behind a veth pair whose near end is named like the TAP.

use std::path::Path;
use std::process::Command;

use anyhow::Result;

use crate::net::Netns;
use crate::process::{self, Daemon};
use crate::report;
use crate::server::{DEVICE, SERVER_ADDRESS};

pub fn chosen() -> bool {
    std::env::var("NFSPLICE_E2E_SERVER").is_ok_and(|value| value == "ganesha")
}

/// For cases that ask nfsplice's own command line or drivers.
pub fn only_nfsplice() -> Result<()> {
    if chosen() { report::skip("asks for nfsplice itself, a stand-in was chosen") } else { Ok(()) }
}

/// The far namespace, with the server's address.
pub fn far_side(near: &Netns, mtu: u16) -> Result<Netns> {
    let far = Netns::new()?;
    near.ip(&format!("link add {DEVICE} type veth peer name eth0 netns {}", far.name))?;
    near.ip(&format!("link set {DEVICE} mtu {mtu}"))?;
    far.ip(&format!("link set eth0 mtu {mtu} up"))?;
    far.ip(&format!("addr add {SERVER_ADDRESS}/24 dev eth0"))?;
    Ok(far)
}

pub fn spawn(far: &Netns, folder: &Path) -> Result<Daemon> {
    let config = folder.join("ganesha.conf");
    std::fs::write(
        &config,
        format!(
            "NFS_CORE_PARAM {{ Protocols = 3; MNT_Port = 20048; Enable_NLM = false; Enable_RQUOTA = false;\n\
             mount_path_pseudo = true; }}\n\
             NFSV4 {{ Graceless = true; }}\n\
             EXPORT {{ Export_Id = 1; Path = \"{}\"; Pseudo = /export; Access_Type = RW; Squash = No_Root_Squash;\n\
             SecType = sys; Protocols = 3; FSAL {{ Name = VFS; }} }}\n",
            folder.join("export").display()
        ),
    )?;
    for program in ["ganesha.nfsd", "rpcbind"] {
        if process::find(program).is_none() {
            return report::skip(format!("{program} is not installed"));
        }
    }
    // Its own /run and /var/lib/nfs, and a pid namespace: one kill ends rpcbind too.
    let script = format!(
        "mount -t tmpfs none /run && mount -t tmpfs none /var/lib/nfs && mkdir -p /run/ganesha /var/lib/nfs/ganesha && \
         rpcbind -f & sleep 0.3; exec ganesha.nfsd -F -f {} -L {} -N NIV_EVENT -p /run/ganesha.pid",
        config.display(),
        folder.join("ganesha.log").display()
    );
    let mut command: Command = far.command("unshare");
    command.args(["--mount", "--pid", "--fork", "--kill-child", "sh", "-c", &script]);
    Daemon::spawn(command, &folder.join("server.log"))
}

/// testpmd as a patch cable between a vhost-user socket and the bridge: for a stand-in that has no vhost port of its own.
pub fn vhost_to_bridge(near: &Netns, socket: &Path, log: &Path) -> Result<Daemon> {
    near.ip("tuntap add dev patch0 mode tap multi_queue")?;
    near.ip("link set patch0 master br0")?;
    let mut command = near.command("dpdk-testpmd");
    command.args(["-l", "0,1", "--no-huge", "-m", "256", "--no-pci", "--no-telemetry"]);
    command.arg(format!("--file-prefix={}", near.name));
    command.arg(format!("--vdev=net_vhost0,iface={},queues=1", socket.display())).arg("--vdev=net_tap0,iface=patch0");
    // Without a terminal testpmd stays only when it prints figures.
    command.args(["--", "--auto-start", "--forward-mode=io", "--stats-period=60", "--total-num-mbufs=16384"]);
    Daemon::spawn(command, log)
}
