//! One server per network device, held by a lock that goes with the process however it ends.
//!
//! VFIO guards a PCI function by itself. The kernel, however, lets a second process attach to a TAP that net_tap has opened (it asks
//! for IFF_MULTI_QUEUE) and spreads the frames over both: each server would miss half of every conversation.
//! And a killed server leaves the socket of its net_vhost port behind, on which DPDK cannot listen again.
//!
//! Not here: two ports of one configuration on one device; the configuration's check refuses them.

use std::io::ErrorKind;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::fs::FileTypeExt as _;
use std::os::unix::net::{SocketAddr, UnixDatagram, UnixStream};
use std::path::Path;

use anyhow::{Context as _, bail};

use crate::control::config::{Bus, Device};

/// A device that no other server of this network namespace can have at the same time.
pub struct Claim {
    /// Bound to a name without a file, which the kernel frees with the process. Such names belong to a network namespace, as
    /// interfaces do (unix(7)).
    _name: UnixDatagram,
}

/// Claims the device if its driver would let two processes have it.
pub fn claim(device: &Device) -> anyhow::Result<Option<Claim>> {
    let argument =
        |key: &str| device.arguments.split(',').find_map(|pair| pair.split_once('=').filter(|(found, _)| *found == key));
    let Some((_, interface)) = argument("iface").filter(|_| device.bus == Bus::Vdev) else { return Ok(None) };
    if device.name.starts_with("net_tap") {
        return take(device, format!("nfsplice-tap-{interface}")).map(Some);
    }
    let connects = argument("client").is_some_and(|(_, value)| value != "0");
    if device.name.starts_with("net_vhost") && !connects {
        remove_dead_socket(Path::new(interface)).with_context(|| format!("device \"{device}\""))?;
    }
    Ok(None)
}

fn take(device: &Device, name: String) -> anyhow::Result<Claim> {
    let address = SocketAddr::from_abstract_name(&name).with_context(|| format!("no name for device \"{device}\""))?;
    match UnixDatagram::bind_addr(&address) {
        Ok(name) => Ok(Claim { _name: name }),
        Err(error) if error.kind() == ErrorKind::AddrInUse => {
            bail!("another server uses device \"{device}\"; give each server a device of its own")
        }
        Err(error) => Err(error).with_context(|| format!("cannot claim device \"{device}\"")),
    }
}

/// Removes a socket that nobody listens on. Any other file there stays, and DPDK refuses it.
fn remove_dead_socket(path: &Path) -> anyhow::Result<()> {
    if !path.symlink_metadata().is_ok_and(|metadata| metadata.file_type().is_socket()) {
        return Ok(());
    }
    match UnixStream::connect(path) {
        Ok(_) => bail!("another process listens on {}; give each server a device of its own", path.display()),
        Err(error) if error.kind() == ErrorKind::ConnectionRefused => std::fs::remove_file(path)
            .with_context(|| format!("cannot remove the socket {} of a server that is gone", path.display())),
        Err(error) => Err(error).with_context(|| format!("cannot ask who listens on {}", path.display())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixListener;
    use std::path::PathBuf;

    fn vdev(name: &str, arguments: String) -> Device {
        Device { bus: Bus::Vdev, name: name.into(), arguments }
    }

    fn socket(test: &str) -> (Device, PathBuf) {
        let path = std::env::temp_dir().join(format!("nfsplice-claim-{test}-{}", std::process::id()));
        let _ = std::fs::remove_file(&path);
        (vdev("net_vhost0", format!("iface={},queues=1", path.display())), path)
    }

    #[test]
    fn a_tap_is_had_once_at_a_time_whatever_its_port_is_called() {
        let own = std::process::id();
        let held = claim(&vdev("net_tap0", format!("iface=c{own}"))).unwrap();
        assert!(held.is_some());
        let error = claim(&vdev("net_tap1", format!("remote=x,iface=c{own}"))).err().unwrap();
        assert!(error.to_string().contains("another server uses device \"net_tap1"), "{error}");
        assert!(claim(&vdev("net_tap0", format!("iface=d{own}"))).unwrap().is_some());
        drop(held);
        assert!(claim(&vdev("net_tap0", format!("iface=c{own}"))).unwrap().is_some());
    }

    #[test]
    fn a_tap_without_a_name_gets_one_from_the_kernel_and_needs_no_claim() {
        assert!(claim(&vdev("net_tap0", String::new())).unwrap().is_none());
    }

    #[test]
    fn the_socket_of_a_killed_server_is_removed() {
        let (device, path) = socket("dead");
        drop(UnixListener::bind(&path).unwrap());
        assert!(path.exists());
        claim(&device).unwrap();
        assert!(!path.exists());
        claim(&device).unwrap();
    }

    #[test]
    fn a_socket_that_is_served_stays() {
        let (device, path) = socket("live");
        let listener = UnixListener::bind(&path).unwrap();
        let error = claim(&device).err().unwrap();
        assert!(format!("{error:#}").contains("another process listens"), "{error:#}");
        assert!(path.exists());
        drop(listener);
        std::fs::remove_file(&path).unwrap();
    }

    #[test]
    fn files_that_are_no_socket_and_sockets_of_the_peer_stay() {
        let (mut device, path) = socket("file");
        std::fs::write(&path, "precious").unwrap();
        claim(&device).unwrap();
        assert!(path.exists());
        std::fs::remove_file(&path).unwrap();
        drop(UnixListener::bind(&path).unwrap());
        device.arguments.push_str(",client=1");
        claim(&device).unwrap();
        assert!(path.exists());
        std::fs::remove_file(&path).unwrap();
    }
}
