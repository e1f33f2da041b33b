//! `net` over a real DPDK port: net_ring hands what is sent straight back, so the receiver sees the sender's own pages.
//! Needs no privilege and no hugepages. DPDK can be started once per process: one test in this file.
#![cfg(feature = "dpdk")]

use std::net::SocketAddr;

use dpdk::{Eal, EalOptions, Port, PortOptions, Zone};
use nfsplice::buf::{FragmentArena, PagePool, Slice};
use nfsplice::net::device::HEADERS_CONTIGUOUS;
use nfsplice::net::dpdk_device::{DpdkDevice, TransmitMode};
use nfsplice::net::{Device, Ingress, Interface, InterfaceOptions, RxFrame, TxOffload};
use nfsplice::time::Instant;

const MTU: u16 = 9000;
const BLOCK: usize = 16_384;

fn start() -> (Eal, PagePool, Port<Slice>) {
    let affinity = std::fs::read_to_string("/proc/thread-self/status").unwrap();
    let allowed = affinity.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:")).unwrap().trim();
    let first: String = allowed.chars().take_while(char::is_ascii_digit).collect();
    let eal = Eal::init(&EalOptions {
        lcores: vec![first.parse().unwrap()],
        hugepages: false,
        memory_mib: 256,
        file_prefix: format!("ring_device_{}", std::process::id()),
        vdevs: vec!["net_ring0".to_owned()],
        log_level: Some("error".to_owned()),
        pin_calling_thread: false,
        ..EalOptions::default()
    })
    .unwrap();
    let zone = Zone::reserve(&eal, "pages", 64 * BLOCK, BLOCK, -1).unwrap();
    let pool = PagePool::from_zones(vec![zone], BLOCK);
    let port = Port::open(&eal, "net_ring0", &PortOptions { mtu: MTU, ..PortOptions::default() }).unwrap();
    (eal, pool, port)
}

fn filled(pool: &PagePool, len: usize) -> Slice {
    let mut page = pool.allocate().unwrap();
    page[..len].iter_mut().enumerate().for_each(|(at, byte)| *byte = (at % 251) as u8);
    page.freeze().slice(0..len)
}

fn received(device: &mut DpdkDevice) -> Vec<RxFrame> {
    let mut frames = Vec::new();
    device.flush();
    device.receive(&mut frames);
    frames
}

/// A header shorter than what must be contiguous is completed by a copy; the rest of the page arrives where it lies.
fn pages_arrive_in_place(device: &mut DpdkDevice, pool: &PagePool) {
    let page = filled(pool, 8000);
    device.transmit(&[9; 54], &[page.slice(0..4000), page.slice(4000..8000)], &TxOffload::default()).unwrap();
    assert!(!page.is_unique());
    let frame = received(device).pop().unwrap();
    assert_eq!(frame.packet.first.len(), HEADERS_CONTIGUOUS);
    let lies_at: Vec<usize> = frame.packet.more.iter().map(|buf| buf.as_ptr() as usize).collect();
    assert_eq!(lies_at, [page.address() + HEADERS_CONTIGUOUS - 54, page.address() + 4000]);
    let bytes: Vec<u8> = frame.packet.into_bufs().flat_map(|buf| buf.to_vec()).collect();
    assert_eq!(bytes, [&[9; 54][..], &page].concat());
    assert!(page.is_unique(), "given back when the last buffer was read");
    assert_eq!((device.counters().frames_scattered, device.counters().headers_copied), (1, 1));
    assert_eq!(device.counters().payload_octets_copied, 0);
}

fn copied_frames_hold_nothing(device: &mut DpdkDevice, pool: &PagePool) {
    let page = filled(pool, 8000);
    device.transmit(&[9; 54], std::slice::from_ref(&page), &TxOffload::default()).unwrap();
    assert!(page.is_unique());
    let bytes: Vec<u8> = received(device).pop().unwrap().packet.into_bufs().flat_map(|buf| buf.to_vec()).collect();
    assert_eq!(bytes, [&[9; 54][..], &page].concat());
    assert_eq!(device.counters().payload_octets_copied, 8000);
}

/// Two interfaces share the loop: each drops what it sent itself.
fn interfaces_find_each_other(device: &mut DpdkDevice, pool: &PagePool) {
    let interface = |last: u8| {
        let options = InterfaceOptions::new([2, 0, 0, 0, 0, last], MTU, [10, 0, 0, last].into(), 24);
        Interface::new(options, FragmentArena::new(pool.clone()).unwrap(), Instant::ZERO).unwrap()
    };
    let mut interfaces = [interface(1), interface(2)];
    let [client, server]: [SocketAddr; 2] = ["10.0.0.1:700", "10.0.0.2:111"].map(|text| text.parse().unwrap());
    let call = filled(pool, 8000);
    interfaces[0].send_udp(Instant::ZERO, device, client, server, std::slice::from_ref(&call)).unwrap();
    let mut answer = None;
    for turn in 0..10 {
        let now = Instant::from_millis(turn);
        for frame in received(device) {
            // One wire, two stations: both get the frame, as copies.
            let bytes: Vec<u8> = frame.packet.into_bufs().flat_map(|buf| buf.to_vec()).collect();
            for (at, interface) in interfaces.iter_mut().enumerate() {
                let packet = nfsplice::buf::RxPacket::from_vec(bytes.clone());
                let frame = RxFrame { packet, ip_checksum: frame.ip_checksum, l4_checksum: frame.l4_checksum };
                let Ingress::Udp(datagram) = interface.handle_frame(now, frame) else { continue };
                match at {
                    0 => answer = Some(datagram.packet.first.to_vec()),
                    _ => {
                        assert_eq!(&datagram.packet.first[..], &call[..]);
                        let reply = call.slice(0..5);
                        interface.send_udp(now, device, datagram.dst, datagram.src, &[reply]).unwrap();
                    }
                }
            }
        }
        for interface in &mut interfaces {
            interface.poll_transmit(now, device);
        }
    }
    assert_eq!(answer.as_deref(), Some(&call[..5]));
}

#[test]
fn net_works_over_net_ring() {
    let (_eal, pool, mut port) = start();
    let mut device = {
        let (rx, tx) = (port.take_rx_queue(0).unwrap(), port.take_tx_queue(0).unwrap());
        DpdkDevice::new(port.capabilities(), rx, tx, TransmitMode::Splice)
    };
    assert_eq!((device.capabilities().mtu, device.mode()), (MTU, TransmitMode::Splice));
    pages_arrive_in_place(&mut device, &pool);
    interfaces_find_each_other(&mut device, &pool);
    let mut device = device.with_mode(TransmitMode::Copy);
    copied_frames_hold_nothing(&mut device, &pool);
}
