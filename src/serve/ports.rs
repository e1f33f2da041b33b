//! The ports: opened with a queue pair for each core that shares them, and how each spreads frames over them.

use std::sync::Arc;

use anyhow::{Context as _, bail};
use dpdk::{Eal, Port, PortOptions, RssSpread, Wanted};

use super::assemble;
use super::core::ServingDevice;
use crate::buf::{FragmentArena, PagePool, Slice};
use crate::control::config::{Config, Lro, Port as PortConfig, Transmit, Tso};
use crate::net::Interface;
use crate::net::dpdk_device::{DpdkDevice, TransmitMode};
use crate::net::spread::{Hashed, Spread};
use crate::shard::Lane;
use crate::shard::steering::{self, SteeredPort};
use crate::time::Instant;

/// Buffers of a receive pool: what connections may hold, and what is bound elsewhere.
const RX_BUFFERS: u32 = 8192;
/// Buffers that the driver's ring binds, and each thread's cache of a pool.
const RX_RING_BUFFERS: u32 = 1024;
const CACHED_BUFFERS: u32 = 768;

/// A port that runs, with its queues by core.
pub struct OpenedPort {
    pub port: Port<Slice>,
    /// One for each core that shares it, from core 0 on.
    pub lanes: Vec<Lane<ServingDevice>>,
    pub spread: Arc<Spread>,
    /// The device itself sends each connection to the core that `spread` names.
    pub spread_by_device: bool,
}

impl OpenedPort {
    /// The port as the steering sees it.
    pub fn steered(&self, number: usize) -> SteeredPort {
        SteeredPort { port: number as u16, spread: Arc::clone(&self.spread), cores: self.lanes.len() as u16 }
    }
}

/// Buffers of one receive pool. Each further core has a cache of every pool, and an inbox that may be full of one pool's.
fn rx_pool_buffers(cores: usize) -> u32 {
    RX_BUFFERS + (cores as u32 - 1) * (CACHED_BUFFERS + steering::Options::default().inbox_frames_max as u32)
}

/// Received buffers that the connections of one core may hold. Where the device does not bring segments to their own core, the
/// buffers of one pool may all end up with any of them.
pub fn driver_buffers_max(cores: usize, spread_by_devices: bool) -> usize {
    let free = (RX_BUFFERS - RX_RING_BUFFERS - 2 * CACHED_BUFFERS) as usize;
    if spread_by_devices { free } else { free / cores }
}

/// `address_key`: what the identifiers of IPv6 addresses are made from.
pub fn open(
    config: &Config,
    port: &PortConfig,
    eal: &Eal,
    fragments: &PagePool,
    address_key: [u8; 16],
    now: Instant,
) -> anyhow::Result<OpenedPort> {
    let name = &port.device.name;
    let cores = config.cores.engine.len();
    let options = PortOptions {
        mtu: port.mtu,
        mac: port.mac.map(|mac| mac.0),
        // Neighbour discovery goes to groups; which of them are ours, the interface knows.
        all_multicast: port.has_ipv6(),
        tso: match port.tso {
            Tso::Auto => Wanted::Auto,
            Tso::On => Wanted::On,
            Tso::Off => Wanted::Off,
        },
        lro: match port.lro {
            Lro::Auto => Wanted::Auto,
            Lro::On => Wanted::On,
            Lro::Off => Wanted::Off,
        },
        rx_queues: port.queues,
        tx_queues: port.queues,
        rx_pool_mbufs: rx_pool_buffers(cores),
        ..PortOptions::default()
    };
    let mut opened = Port::<Slice>::open(eal, name, &options).with_context(|| format!("port {name} does not start"))?;
    let capabilities = opened.capabilities().clone();
    if let Some(frames) = capabilities.deaf_to {
        tracing::warn!(
            port = %name, driver = %capabilities.driver_name,
            "the device refuses to receive {frames}: some clients may not find this server (a virtual function may need `trust on` at its host)"
        );
    }
    let mode = match config.server.transmit {
        Transmit::Splice => TransmitMode::Splice,
        Transmit::Copy => TransmitMode::Copy,
    };
    let mtu = port.mtu.min(capabilities.mtu);
    let mut lanes = Vec::new();
    for queue in 0..port.queues {
        let (Some(rx), Some(tx)) = (opened.take_rx_queue(queue), opened.take_tx_queue(queue)) else {
            bail!("port {name} has no queue pair {queue}");
        };
        let device = DpdkDevice::new(&capabilities, rx, tx, mode);
        if device.mode() != mode && queue == 0 {
            tracing::warn!(port = %name, driver = %capabilities.driver_name, "the driver takes no chains of buffers: payload is copied");
        }
        let mut options = assemble::interface_options(config, port, capabilities.mac, mtu, address_key);
        if queue > 0 {
            // One core speaks for the port; the others learn what it hears.
            options.announcements = 0;
            options.ipv6.follows = true;
        }
        // Answers to anybody who asks must not take the room that everybody's replies need.
        let answers = FragmentArena::leaving(fragments.clone(), fragments.blocks() / 2);
        let answers = answers.context("memory.eal_mib is too small for answers of the port itself")?;
        let interface = Interface::new(options, answers, now).with_context(|| format!("port {name}"))?;
        lanes.push(Lane { device: ServingDevice::new(device), interface });
    }
    let by_device = capabilities.spread.as_ref().and_then(|spread| spread_of(spread, port.queues));
    let spread_by_device = by_device.is_some() || port.queues == 1;
    let addresses: Vec<String> = port.addresses.iter().map(ToString::to_string).collect();
    tracing::info!(
        port = %name, driver = %capabilities.driver_name, addresses = addresses.join(" "), vlan = port.vlan, mtu, tso = capabilities.tso,
        lro = capabilities.lro,
        checksums = capabilities.tx_tcp_checksum, segments = capabilities.max_segments_per_packet, queues = port.queues,
        rss = by_device.is_some(), "port started"
    );
    let spread = Arc::new(by_device.unwrap_or_else(|| Spread::in_software(port.queues)));
    Ok(OpenedPort { port: opened, lanes, spread, spread_by_device })
}

/// The device's own spread, if it can be computed and reaches only queues that exist.
fn spread_of(spread: &RssSpread, queues: u16) -> Option<Spread> {
    let hashed = Hashed { ipv4_ports: spread.ipv4_tcp_ports, ipv6_ports: spread.ipv6_tcp_ports };
    Spread::of_device(&spread.key, hashed, &spread.table).filter(|spread| spread.queues() <= queues)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pool_holds_what_its_users_may_have_of_it() {
        for cores in [1, 2, 8, 128] {
            let inboxes = (cores - 1) * steering::Options::default().inbox_frames_max;
            let caches = (cores + 1) * CACHED_BUFFERS as usize;
            let bound = RX_RING_BUFFERS as usize + caches + inboxes;
            assert!(bound + cores * driver_buffers_max(cores, false) <= rx_pool_buffers(cores) as usize, "{cores} cores");
        }
    }
}
