//! What the cores publish, in which order: the layout of the board and the one place that fills it.

use std::sync::{Arc, Mutex, PoisonError};

use dpdk::Port;

use crate::buf::{PagePool, Slice};
use crate::control::metrics::{LayoutBuilder, Publisher};
use crate::counters;
use crate::net::interface::{InterfaceCounters, Ipv6Counters};
use crate::net::neighbour::NeighbourCounters;
use crate::shard::Lane;

use super::core::{ServingDevice, ServingShard};
use super::stores::Stores;

counters! {
    /// What one core's queues of one port count.
    pub struct PortCounters {
        /// Frames received from the device.
        rx_frames,
        /// Polls of the device that found some.
        rx_bursts,
        /// Polls of the device that found none.
        rx_polls_empty,
        /// Frames and TSO chains the device took.
        tx_chains,
        /// mbufs of these chains.
        tx_segments,
        /// Calls to the driver that sent something.
        tx_bursts,
        /// Calls to the driver that found its ring full.
        tx_ring_full,
        /// Frames the driver refused.
        tx_refused,
        /// Payload bytes sent by reference.
        tx_payload_bytes_referenced,
        /// Payload bytes copied to be sent: 0 with transmit = "splice" and a driver that takes chains.
        tx_payload_bytes_copied,
        /// Frames whose headers lay in several buffers and were copied together.
        rx_headers_copied,
    }
    gauges {
        /// Receive buffers in use, the driver's ring included.
        rx_buffers_in_use,
        /// Buffers for chains' headers in use: one for each chain that the driver has not released.
        tx_headers_in_use,
        /// Buffers that refer to pages in use: one for each piece of such a chain.
        tx_pieces_in_use,
        /// Buffers that hold copied payload in use: 0 with transmit = "splice" and a driver that takes chains.
        tx_copies_in_use,
    }
}

counters! {
    /// What a port's device counts itself.
    pub struct DeviceCounters {
        /// Frames that the device dropped because no receive descriptor was free: the core was too slow.
        rx_missed,
        /// Frames that the driver dropped because the receive pool was empty.
        rx_no_buffer,
        /// Frames that came with an error, such as a wrong FCS: a bad cable or port.
        rx_errors,
        /// Frames that the device could not send.
        tx_errors,
    }
}

counters! {
    /// How the core spends its time.
    pub struct CoreCounters {
        /// Times the core went to sleep.
        sleeps,
    }
}

counters! {
    /// The page pools, which all cores share: the first core tells.
    pub struct PageCounters {}
    gauges {
        /// Blocks of the page cache that hold something.
        cache_used,
        /// Blocks the page cache has.
        cache,
        /// Blocks in use for reply heads and copied-out requests.
        fragments_used,
        /// Blocks there are for them.
        fragments,
    }
}

counters! {
    /// What is the same for every core.
    pub struct MachineCounters {}
    gauges {
        /// What every core's cycles are counted with: its rate per second.
        tsc_hz,
    }
}

/// The pools that all cores share.
pub struct Pools {
    /// File data.
    pub cache: PagePool,
    /// Reply heads and copied-out requests.
    pub fragments: PagePool,
}

impl Pools {
    pub fn counters(&self) -> PageCounters {
        PageCounters {
            cache_used: self.cache.outstanding() as u64,
            cache: self.cache.blocks() as u64,
            fragments_used: self.fragments.outstanding() as u64,
            fragments: self.fragments.blocks() as u64,
        }
    }
}

/// The ports, which whoever reads the counters asks for their devices': a driver may wait for a card's firmware or the host of a virtual function,
/// and no core may. Emptied when they are closed.
pub type Ports = Arc<Mutex<Vec<AskedPort>>>;

pub struct AskedPort {
    port: Port<Slice>,
    /// What it said last: counters must not go back when it cannot tell.
    last: DeviceCounters,
}

impl AskedPort {
    pub fn new(port: Port<Slice>) -> AskedPort {
        AskedPort { port, last: DeviceCounters::default() }
    }

    fn ask(&mut self) -> DeviceCounters {
        if let Some(stats) = self.port.stats() {
            self.last = DeviceCounters {
                rx_missed: stats.imissed,
                rx_no_buffer: stats.rx_nombuf,
                rx_errors: stats.ierrors,
                tx_errors: stats.oerrors,
            };
        }
        self.last
    }
}

/// The same layers in the same order as `publish`. `shard` is a core's that has a lane of every port.
pub fn layout(shard: &ServingShard, stores: &Stores, ports: &Ports) -> LayoutBuilder {
    let mut layout = LayoutBuilder::new()
        .shared("machine", || MachineCounters { tsc_hz: dpdk::cycles_hz() })
        .per_core("core", &CoreCounters::default())
        .per_core("pages", &PageCounters::default())
        .per_core("cycles", &shard.cycles())
        .per_core("shard", shard.counters())
        .per_core("steering", &shard.steering_counters())
        .per_core("tcp", shard.tcp().counters())
        .per_core("rpc", shard.rpc().counters())
        .per_core("nfs3", shard.programs().nfs3().counters())
        .per_core("mount", shard.programs().mount().counters())
        .per_core("programs", shard.programs().counters());
    for (at, lane) in shard.lanes().iter().enumerate() {
        layout = layout
            .per_core(&format!("port{at}"), &PortCounters::default())
            .per_core(&format!("port{at}.ip"), lane.interface.counters())
            .per_core(&format!("port{at}.arp"), lane.interface.neighbour_counters());
        let ports = Arc::clone(ports);
        layout = layout.shared(&format!("port{at}"), move || {
            let mut ports = ports.lock().unwrap_or_else(PoisonError::into_inner);
            ports.get_mut(at).map(AskedPort::ask).unwrap_or_default()
        });
        if let (Some(ipv6), Some(neighbours)) = (lane.interface.ipv6_counters(), lane.interface.ipv6_neighbour_counters()) {
            layout = layout.per_core(&format!("port{at}.ip6"), ipv6).per_core(&format!("port{at}.nd"), neighbours);
        }
    }
    stores.add_to(layout)
}

/// `lanes`: for each port, the core's lane if it shares the port, and whether the port has IPv6.
pub fn publish(
    publisher: &mut Publisher,
    shard: &mut ServingShard,
    lanes: impl Iterator<Item = (Option<usize>, bool)>,
    core: &CoreCounters,
    pages: &PageCounters,
) {
    let ports: Vec<PortCounters> = shard.lanes_mut().iter_mut().map(port_counters).collect();
    let (cycles, steering) = (shard.cycles(), shard.steering_counters());
    let mut layers: Vec<&dyn counters::Counters> = vec![
        core,
        pages,
        &cycles,
        shard.counters(),
        &steering,
        shard.tcp().counters(),
        shard.rpc().counters(),
        shard.programs().nfs3().counters(),
        shard.programs().mount().counters(),
        shard.programs().counters(),
    ];
    let none = (PortCounters::default(), InterfaceCounters::default(), NeighbourCounters::default());
    let none_of_ipv6 = Ipv6Counters::default();
    for (lane, has_ipv6) in lanes {
        match lane.and_then(|lane| Some((ports.get(lane)?, shard.lanes().get(lane)?))) {
            Some((port, lane)) => {
                layers.extend([port as &dyn counters::Counters, lane.interface.counters(), lane.interface.neighbour_counters()]);
                layers.extend(lane.interface.ipv6_counters().map(|counters| counters as &dyn counters::Counters));
                layers.extend(lane.interface.ipv6_neighbour_counters().map(|counters| counters as &dyn counters::Counters));
            }
            // A port with fewer queues than there are cores.
            None => {
                layers.extend([&none.0 as &dyn counters::Counters, &none.1, &none.2]);
                if has_ipv6 {
                    layers.extend([&none_of_ipv6 as &dyn counters::Counters, &none.2]);
                }
            }
        }
    }
    publisher.publish(&layers);
}

fn port_counters(lane: &mut Lane<ServingDevice>) -> PortCounters {
    let device = lane.device.inner();
    let rx = device.rx().counters();
    let tx = device.tx().counters();
    let (tx_headers, tx_pieces, tx_copies) = device.tx().buffers_in_use();
    PortCounters {
        rx_frames: rx.packets,
        rx_bursts: rx.bursts,
        rx_polls_empty: rx.empty_polls,
        tx_chains: tx.chains,
        tx_segments: tx.segments,
        tx_bursts: tx.bursts,
        tx_ring_full: tx.descriptors_full,
        tx_refused: tx.refused_by_prepare + tx.refused_for_shape,
        tx_payload_bytes_referenced: tx.payload_bytes_referenced,
        tx_payload_bytes_copied: tx.payload_bytes_copied,
        rx_headers_copied: device.counters().headers_copied,
        rx_buffers_in_use: device.rx().buffers_in_use().into(),
        tx_headers_in_use: tx_headers.into(),
        tx_pieces_in_use: tx_pieces.into(),
        tx_copies_in_use: tx_copies.into(),
    }
}
