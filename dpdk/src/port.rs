//! A port: found by name, set up with no more than it offers, then taken apart into its queues.
//!
//! The device runs until the [`Port`] and all its queues are dropped; the last of them stops and closes it. Only then
//! has the driver let go of every buffer.
//!
//! Deliberately not here: link-state interrupts (poll [`Port::link`]), VLANs, flow rules.

use std::{
    collections::HashSet,
    ffi::CString,
    marker::PhantomData,
    os::raw::c_char,
    sync::{Arc, Mutex, PoisonError},
};

use dpdk_sys as sys;

use crate::{
    capability::PortCapabilities,
    chain::{TxOffload, TxPayload, TxRefused, segments_per_mss},
    eal::{Eal, Running},
    error::Error,
    pool::Pool,
    rx::RxQueue,
    setup::{Setup, unsupported},
    stats::{Link, PortStats},
    tx::TxQueue,
};

/// Whether a feature is used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Wanted {
    /// If the device has it and it is known to be worth it.
    #[default]
    Auto,
    /// Yes; it is an error when the device does not have it.
    On,
    /// No.
    Off,
}

/// How a port is set up.
#[derive(Debug, Clone)]
pub struct PortOptions {
    /// Bytes of an IP packet.
    pub mtu: u16,
    /// Ethernet address to take instead of the device's own.
    pub mac: Option<[u8; 6]>,
    /// Receive queues.
    pub rx_queues: u16,
    /// Transmit queues.
    pub tx_queues: u16,
    /// Descriptors per receive queue; clamped to what the device takes.
    pub rx_descriptors: u16,
    /// Descriptors per transmit queue; clamped to what the device takes (vmxnet3: 512 at least).
    pub tx_descriptors: u16,
    /// Buffers per receive queue; raised to what descriptors and caches bind.
    pub rx_pool_mbufs: u32,
    /// Data bytes of a receive buffer.
    pub rx_room: u16,
    /// Payload references (and copy buffers) per transmit queue in flight; None: from the descriptors.
    pub tx_pool_mbufs: Option<u32>,
    /// Data bytes of a header buffer: headers, and small pieces of payload put behind them.
    pub header_room: u16,
    /// Data bytes of a buffer that `push_copy` fills; raised to a whole frame on devices that take no chains.
    pub copy_room: u16,
    /// Segmentation by the device. Auto leaves it off where the driver does it in software (net_tap), and where it depends on the
    /// peer (net_vhost): see [`Port::peer_takes_tso`].
    pub tso: Wanted,
    /// Checksums by the device, both ways.
    pub checksum: Wanted,
    /// Receive coalescing by the device: packets of up to 64 KiB in many buffers.
    pub lro: Wanted,
    /// Sleeping on an idle receive queue.
    pub rx_interrupts: Wanted,
    /// Receive every frame, whomever it is for.
    pub promiscuous: bool,
    /// Receive every multicast frame (IPv6 neighbour discovery needs it, or filters).
    pub all_multicast: bool,
    /// With several receive queues: spread by a symmetric hash, so that both directions agree.
    pub rss: Wanted,
}

impl Default for PortOptions {
    fn default() -> PortOptions {
        PortOptions {
            mtu: 1500,
            mac: None,
            rx_queues: 1,
            tx_queues: 1,
            rx_descriptors: 1024,
            tx_descriptors: 1024,
            rx_pool_mbufs: 8192,
            rx_room: 2048,
            tx_pool_mbufs: None,
            header_room: 256,
            copy_room: 2048,
            tso: Wanted::Auto,
            checksum: Wanted::Auto,
            lro: Wanted::Off,
            rx_interrupts: Wanted::Auto,
            promiscuous: false,
            all_multicast: false,
            rss: Wanted::Auto,
        }
    }
}

/// The pools of one transmit queue.
#[derive(Debug)]
pub(crate) struct TxPools {
    pub header: Pool,
    pub piece: Pool,
    pub copy: Pool,
}

/// What the port and its queues share. The last of them stops and closes the device.
#[derive(Debug)]
pub(crate) struct OpenPort {
    pub id: u16,
    pub name: String,
    pub driver: String,
    pub interrupts_configured: bool,
    pub tx_pools: Vec<TxPools>,
    pub rx_pools: Vec<Pool>,
    pub capabilities: PortCapabilities,
    pub _running: Arc<Running>,
}

/// A started port. `H` is what transmitted payload is held by.
pub struct Port<H: TxPayload> {
    open: Arc<OpenPort>,
    rx: Vec<Option<RxQueue>>,
    tx: Vec<Option<TxQueue<H>>>,
    payload: PhantomData<H>,
}

static OPEN: Mutex<Option<HashSet<u16>>> = Mutex::new(None);

impl<H: TxPayload> Port<H> {
    /// Sets up and starts the port called `name`: a vdev's name (`net_tap0`) or a PCI address (`0000:00:04.0`, the
    /// domain may be left out).
    pub fn open(eal: &Eal, name: &str, options: &PortOptions) -> Result<Port<H>, Error> {
        let id = find(name)?;
        let mut ports = OPEN.lock().unwrap_or_else(PoisonError::into_inner);
        if !ports.get_or_insert_default().insert(id) {
            return Err(Error::PortBusy(name.to_owned()));
        }
        drop(ports);
        let started = Setup::new(id, name, options).and_then(|setup| setup.start(eal));
        let open = match started {
            Ok(open) => Arc::new(open),
            Err(error) => {
                mark_closed(id);
                return Err(error);
            }
        };
        let mut port = Port {
            rx: (0..options.rx_queues).map(|queue| Some(RxQueue::new(Arc::clone(&open), queue))).collect(),
            tx: (0..options.tx_queues).map(|queue| Some(TxQueue::new(Arc::clone(&open), queue))).collect(),
            open,
            payload: PhantomData,
        };
        if options.rx_interrupts == Wanted::On && !port.capabilities().rx_interrupts {
            port.rx.clear();
            return Err(unsupported(&port.open.name, &port.open.driver, "no receive interrupts"));
        }
        Ok(port)
    }

    /// Gives out a receive queue, once.
    pub fn take_rx_queue(&mut self, queue: u16) -> Option<RxQueue> {
        self.rx.get_mut(usize::from(queue))?.take()
    }

    /// Gives out a transmit queue, once.
    pub fn take_tx_queue(&mut self, queue: u16) -> Option<TxQueue<H>> {
        self.tx.get_mut(usize::from(queue))?.take()
    }

    /// What was negotiated.
    pub fn capabilities(&self) -> &PortCapabilities {
        &self.open.capabilities
    }

    /// The name it was opened by.
    pub fn name(&self) -> &str {
        &self.open.name
    }

    /// The device's counters; `None`: the driver cannot tell now. May wait for the device's firmware or host: not for a packet loop.
    pub fn stats(&self) -> Option<PortStats> {
        let mut raw = sys::rte_eth_stats::default();
        // SAFETY: an open port; room for the result.
        let told = unsafe { sys::rte_eth_stats_get(self.open.id, &mut raw) };
        (told == 0).then_some(PortStats {
            ipackets: raw.ipackets,
            opackets: raw.opackets,
            ibytes: raw.ibytes,
            obytes: raw.obytes,
            imissed: raw.imissed,
            ierrors: raw.ierrors,
            oerrors: raw.oerrors,
            rx_nombuf: raw.rx_nombuf,
        })
    }

    /// The driver's own counters with their names.
    pub fn xstats(&self) -> Vec<(String, u64)> {
        let id = self.open.id;
        // SAFETY: with no room given, the call only tells how many there are.
        let count = unsafe { sys::rte_eth_xstats_get_names_by_id(id, std::ptr::null_mut(), 0, std::ptr::null_mut()) };
        let Ok(count) = usize::try_from(count) else {
            return Vec::new();
        };
        let mut names = vec![sys::rte_eth_xstat_name::default(); count];
        let mut values = vec![0; count];
        // SAFETY: room for `count` names and values; without ids the calls give all of them in the same order.
        let filled = unsafe {
            let named = sys::rte_eth_xstats_get_names_by_id(id, names.as_mut_ptr(), count as u32, std::ptr::null_mut());
            let valued = sys::rte_eth_xstats_get_by_id(id, std::ptr::null(), values.as_mut_ptr(), count as u32);
            usize::try_from(named.min(valued)).unwrap_or(0).min(count)
        };
        names.iter().zip(values).take(filled).map(|(name, value)| (text(&name.name), value)).collect()
    }

    /// One of the driver's own counters.
    pub fn xstat(&self, name: &str) -> Option<u64> {
        let name = CString::new(name).ok()?;
        let (mut which, mut value) = (0, 0);
        // SAFETY: an open port, a valid string, room for one id and one value.
        let found = unsafe {
            sys::rte_eth_xstats_get_id_by_name(self.open.id, name.as_ptr(), &mut which) == 0
                && sys::rte_eth_xstats_get_by_id(self.open.id, &which, &mut value, 1) == 1
        };
        found.then_some(value)
    }

    /// Whether the guest at the other end of a net_vhost port, once its link is up, takes TCP packets that nobody has cut and
    /// whose checksum nobody has filled in. The driver hands them on without asking, and without offering TSO: with `tso` on,
    /// what is sent must follow this answer. Other devices do what their capabilities say.
    pub fn peer_takes_tso(&self) -> bool {
        // SAFETY: an open port of that driver.
        self.open.driver != "net_vhost" || unsafe { sys::nfsplice_vhost_guest_tso(self.open.id) } == 1
    }

    /// The link's state, without waiting for it; `None`: the driver cannot tell.
    pub fn link(&self) -> Option<Link> {
        self.open.link()
    }

    /// Receive buffers of queue `queue` that are with the program or the driver. Slow; for statistics and tests.
    pub fn rx_buffers_in_use(&self, queue: u16) -> Option<u32> {
        self.open.rx_pools.get(usize::from(queue)).map(Pool::in_use)
    }
}

impl<H: TxPayload> std::fmt::Debug for Port<H> {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Port").field("capabilities", &self.open.capabilities).finish_non_exhaustive()
    }
}

impl OpenPort {
    pub(crate) fn link(&self) -> Option<Link> {
        let mut raw = sys::rte_eth_link::default();
        // SAFETY: an open port; room for the result.
        let told = unsafe { sys::rte_eth_link_get_nowait(self.id, &mut raw) };
        (told == 0).then(|| Link { up: raw.link_status() != 0, speed_mbit: raw.link_speed, full_duplex: raw.link_duplex() != 0 })
    }

    /// The descriptor flags for a checked offload request, if the device was set up for it.
    pub(crate) fn offload_flags(&self, offload: &TxOffload) -> Result<u64, TxRefused> {
        if offload.is_none() {
            return Ok(0);
        }
        let can = &self.capabilities;
        let tso = offload.tso_mss.is_some();
        let tcp = offload.tcp_checksum || tso;
        let ip = offload.ip_checksum || (tso && !offload.ipv6 && can.tx_ip_checksum);
        if (tso && !can.tso)
            || (tcp && !can.tx_tcp_checksum)
            || (offload.udp_checksum && !can.tx_udp_checksum)
            || (ip && !can.tx_ip_checksum)
        {
            return Err(TxRefused::OffloadUnavailable);
        }
        let mut flags = if offload.ipv6 { sys::RTE_MBUF_F_TX_IPV6 } else { sys::RTE_MBUF_F_TX_IPV4 };
        if ip {
            flags |= sys::RTE_MBUF_F_TX_IP_CKSUM;
        }
        if tso {
            flags |= sys::RTE_MBUF_F_TX_TCP_SEG;
        }
        if tcp {
            flags |= sys::RTE_MBUF_F_TX_TCP_CKSUM;
        }
        if offload.udp_checksum {
            flags |= sys::RTE_MBUF_F_TX_UDP_CKSUM;
        }
        Ok(flags)
    }

    /// Refuses what the device would drop, misread or hang on.
    pub(crate) fn check_shape(
        &self,
        segments: usize,
        bytes: usize,
        lengths: impl Iterator<Item = usize>,
        offload: &TxOffload,
    ) -> Result<(), TxRefused> {
        let can = &self.capabilities;
        if segments > 1 && !can.accepts_chains {
            return Err(TxRefused::ChainsUnsupported);
        }
        let too_many = |segments, limit| Err(TxRefused::TooManySegments { segments, limit });
        let Some(mss) = offload.tso_mss else {
            if segments > can.max_segments_per_packet {
                return too_many(segments, can.max_segments_per_packet);
            }
            if bytes > can.max_frame_bytes as usize {
                return Err(TxRefused::FrameTooLong { bytes, limit: can.max_frame_bytes as usize });
            }
            return Ok(());
        };
        let mss = usize::from(mss);
        let headers = usize::from(offload.l2_len) + usize::from(offload.l3_len) + usize::from(offload.l4_len);
        if headers + mss > can.max_tso_frame_bytes as usize {
            return Err(TxRefused::FrameTooLong { bytes: headers + mss, limit: can.max_tso_frame_bytes as usize });
        }
        let limit =
            (can.max_tso_bytes as usize + usize::from(offload.l2_len)).min(headers + mss * usize::from(can.max_tso_frames));
        if bytes > limit {
            return Err(TxRefused::FrameTooLong { bytes, limit });
        }
        if segments > can.max_segments_tso {
            return too_many(segments, can.max_segments_tso);
        }
        if segments > can.max_segments_per_packet {
            let fullest = segments_per_mss(lengths, mss);
            if fullest > can.max_segments_per_packet {
                return too_many(fullest, can.max_segments_per_packet);
            }
        }
        Ok(())
    }
}

impl Drop for OpenPort {
    fn drop(&mut self) {
        // SAFETY: the port and all its queues are gone, so nobody polls it. Closing makes the driver free every buffer
        // it has, which runs the free callbacks; pools and hold objects are still there for them.
        unsafe {
            sys::rte_eth_dev_stop(self.id);
            sys::rte_eth_dev_close(self.id);
        }
        mark_closed(self.id);
    }
}

fn mark_closed(id: u16) {
    let mut ports = OPEN.lock().unwrap_or_else(PoisonError::into_inner);
    ports.get_or_insert_default().remove(&id);
}

/// The port with this name, or with this PCI address in domain 0000.
fn find(name: &str) -> Result<u16, Error> {
    for candidate in [name.to_owned(), format!("0000:{name}")] {
        let Ok(candidate) = CString::new(candidate) else {
            break;
        };
        let mut id = 0;
        // SAFETY: a valid string, room for the result.
        if unsafe { sys::rte_eth_dev_get_port_by_name(candidate.as_ptr(), &mut id) } == 0 {
            return Ok(id);
        }
    }
    Err(Error::NoSuchPort { name: name.to_owned(), known: names().join(", ") })
}

/// Names of all ports DPDK knows.
pub(crate) fn names() -> Vec<String> {
    let mut names = Vec::new();
    let mut id = 0;
    loop {
        // SAFETY: any number may be asked for.
        id = unsafe { sys::rte_eth_find_next(id) };
        if u32::from(id) >= sys::RTE_MAX_ETHPORTS {
            return names;
        }
        let mut name = [0 as c_char; sys::RTE_ETH_NAME_MAX_LEN as usize];
        // SAFETY: a port DPDK knows; the buffer has the size it documents.
        if unsafe { sys::rte_eth_dev_get_name_by_port(id, name.as_mut_ptr()) } == 0 {
            names.push(text(&name));
        }
        id += 1;
    }
}

/// A C string in a fixed array.
fn text(chars: &[c_char]) -> String {
    let bytes: Vec<u8> = chars.iter().take_while(|&&byte| byte != 0).map(|&byte| byte as u8).collect();
    String::from_utf8_lossy(&bytes).into_owned()
}
