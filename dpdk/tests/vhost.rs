//! net_vhost cannot be told an Ethernet address, and passes every frame: the port has the address it was given all the same.

mod common;

use dpdk::{Port, PortOptions};

const MAC: [u8; 6] = [2, 0, 10, 77, 0, 2];

#[test]
fn a_device_that_filters_no_addresses_takes_any() {
    let socket = std::env::temp_dir().join(format!("nfsplice-vhost-{}", std::process::id()));
    let _ = std::fs::remove_file(&socket);
    let vdev = format!("net_vhost0,iface={},queues=1", socket.display());
    let eal = common::eal("vhost", &[&vdev]);
    let options = PortOptions { mac: Some(MAC), ..PortOptions::default() };
    let port = Port::<common::Piece>::open(&eal, "net_vhost0", &options).expect("a port");
    assert_eq!(port.capabilities().mac, MAC);
    assert!(socket.exists());
    drop(port);
    assert!(!socket.exists(), "the driver leaves its socket behind");
}
