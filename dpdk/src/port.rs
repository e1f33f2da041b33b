//! A port: found by name, set up with no more than it offers, then taken apart into its queues.
//!
//! The device runs until the [`Port`] and all its queues are dropped; the last of them stops and closes it. Only then
//! has the driver let go of every buffer.
//!
//! Deliberately not here: link-state interrupts (poll [`Port::link`]), VLANs, flow rules.

use std::{
    collections::HashSet,
    ffi::{CStr, CString},
    marker::PhantomData,
    os::raw::c_char,
    sync::{Arc, Mutex, PoisonError},
};

use dpdk_sys as sys;

use crate::{
    capability::{PortCapabilities, TxLimits, tx_limits},
    chain::{TxOffload, TxPayload, TxRefused, segments_per_mss},
    eal::{Eal, Running},
    error::{Errno, Error},
    pool::{HEADROOM, Pool, Shape},
    rx::RxQueue,
    stats::{Link, PortStats},
    tx::{MAX_QUEUED_CHAINS, TxQueue},
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
    /// Segmentation by the device. Auto leaves it off where the driver does it in software (net_tap).
    pub tso: Wanted,
    /// Checksums by the device, both ways.
    pub checksum: Wanted,
    /// Receive coalescing by the device. Auto is off: it holds several buffers per packet.
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
    rx_pools: Vec<Pool>,
    capabilities: PortCapabilities,
    _running: Arc<Running>,
}

/// A started port. `H` is what transmitted payload is held by.
pub struct Port<H: TxPayload> {
    open: Arc<OpenPort>,
    rx: Vec<Option<RxQueue>>,
    tx: Vec<Option<TxQueue<H>>>,
    payload: PhantomData<H>,
}

/// Bytes of an Ethernet header, and with a VLAN tag.
const ETHERNET_BYTES: u32 = 14;
const ETHERNET_VLAN_BYTES: u32 = 18;
/// An IP packet's length has 16 bits.
const IP_PACKET_BYTES_MAX: u32 = 65_535;
/// Buffers that per-thread caches of a pool may hold: cache × 1.5, for the queue's thread and one more.
const CACHED_BUFFERS: u32 = 2 * 768;

/// What a net_tap port with a larger MTU is configured with at first.
const TAP_MTU_CLAIMED: u16 = 1500;

/// A Toeplitz key that gives both directions of a connection the same hash: 16 bits, repeated. Static because drivers
/// keep the pointer.
static SYMMETRIC_KEY: [u8; 128] = {
    let mut key = [0x6d; 128];
    let mut at = 1;
    while at < key.len() {
        key[at] = 0x5a;
        at += 2;
    }
    key
};
const RSS_KEY_BYTES_USUAL: u8 = 40;

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

    /// The device's counters.
    pub fn stats(&self) -> PortStats {
        let mut raw = sys::rte_eth_stats::default();
        // SAFETY: an open port; room for the result. On failure the counters stay 0.
        unsafe { sys::rte_eth_stats_get(self.open.id, &mut raw) };
        PortStats {
            ipackets: raw.ipackets,
            opackets: raw.opackets,
            ibytes: raw.ibytes,
            obytes: raw.obytes,
            imissed: raw.imissed,
            ierrors: raw.ierrors,
            oerrors: raw.oerrors,
            rx_nombuf: raw.rx_nombuf,
        }
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

    /// The link's state, without waiting for it.
    pub fn link(&self) -> Link {
        let mut raw = sys::rte_eth_link::default();
        // SAFETY: an open port; room for the result. On failure the link reads as down.
        unsafe { sys::rte_eth_link_get_nowait(self.open.id, &mut raw) };
        Link { up: raw.link_status() != 0, speed_mbit: raw.link_speed, full_duplex: raw.link_duplex() != 0 }
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
    /// The descriptor flags for a checked offload request, if the device was set up for it.
    pub(crate) fn offload_flags(&self, offload: &TxOffload) -> Result<u64, TxRefused> {
        if offload.is_none() {
            return Ok(0);
        }
        let can = &self.capabilities;
        let tso = offload.tso_mss.is_some();
        let tcp = offload.tcp_checksum || tso;
        let ip = offload.ip_checksum || (tso && !offload.ipv6);
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

/// A port being set up.
struct Setup<'a> {
    id: u16,
    name: &'a str,
    driver: String,
    options: &'a PortOptions,
    info: sys::rte_eth_dev_info,
    limits: TxLimits,
    tx_offloads: u64,
    rx_offloads: u64,
    rss: bool,
    rx_descriptors: u16,
    tx_descriptors: u16,
    socket: i32,
}

impl<'a> Setup<'a> {
    fn new(id: u16, name: &'a str, options: &'a PortOptions) -> Result<Setup<'a>, Error> {
        if options.rx_queues == 0 || options.tx_queues == 0 {
            return Err(Error::Invalid(format!("port {name}: at least one queue each way is needed")));
        }
        let mut info = sys::rte_eth_dev_info::default();
        // SAFETY: a port DPDK knows; room for the result.
        check(name, "rte_eth_dev_info_get", unsafe { sys::rte_eth_dev_info_get(id, &mut info) })?;
        // SAFETY: the driver's name is a static string.
        let driver = unsafe { CStr::from_ptr(info.driver_name) }.to_string_lossy().into_owned();
        if options.rx_queues > info.max_rx_queues || options.tx_queues > info.max_tx_queues {
            let what = format!("it has {} rx and {} tx queues at most", info.max_rx_queues, info.max_tx_queues);
            return Err(unsupported(name, &driver, &what));
        }
        if options.mtu < info.min_mtu || options.mtu > info.max_mtu {
            let what = format!("an MTU from {} to {} is possible, not {}", info.min_mtu, info.max_mtu, options.mtu);
            return Err(unsupported(name, &driver, &what));
        }
        // SAFETY: a port DPDK knows.
        let socket = unsafe { sys::rte_eth_dev_socket_id(id) };
        let multi_segs = info.tx_offload_capa & u64::from(sys::RTE_ETH_TX_OFFLOAD_MULTI_SEGS) != 0;
        let mut setup = Setup {
            limits: tx_limits(&driver, multi_segs),
            tx_offloads: 0,
            rx_offloads: 0,
            rss: false,
            rx_descriptors: options.rx_descriptors,
            tx_descriptors: options.tx_descriptors,
            id,
            name,
            driver,
            options,
            info,
            socket,
        };
        setup.negotiate()?;
        Ok(setup)
    }

    /// Offloads: what is wanted, of what is offered. Never MBUF_FAST_FREE: with it, drivers put buffers back without
    /// detaching the external payload, and the free callback never runs.
    fn negotiate(&mut self) -> Result<(), Error> {
        use sys::*;
        let auto_tso = !self.limits.tso_in_software;
        let options = self.options;
        let tx = self.info.tx_offload_capa;
        let rx = self.info.rx_offload_capa;
        self.tx_offloads = tx & u64::from(RTE_ETH_TX_OFFLOAD_MULTI_SEGS);
        for (bit, what) in [
            (RTE_ETH_TX_OFFLOAD_IPV4_CKSUM, "IPv4 checksums on transmit"),
            (RTE_ETH_TX_OFFLOAD_TCP_CKSUM, "TCP checksums on transmit"),
            (RTE_ETH_TX_OFFLOAD_UDP_CKSUM, "UDP checksums on transmit"),
        ] {
            self.tx_offloads |= self.choose(options.checksum, true, tx, bit, what)?;
        }
        for (bit, what) in [
            (RTE_ETH_RX_OFFLOAD_IPV4_CKSUM, "IPv4 checksums on receive"),
            (RTE_ETH_RX_OFFLOAD_TCP_CKSUM, "TCP checksums on receive"),
            (RTE_ETH_RX_OFFLOAD_UDP_CKSUM, "UDP checksums on receive"),
        ] {
            self.rx_offloads |= self.choose(options.checksum, true, rx, bit, what)?;
        }
        // A device that segments must also fill in what each segment needs.
        let sums = u64::from(RTE_ETH_TX_OFFLOAD_IPV4_CKSUM | RTE_ETH_TX_OFFLOAD_TCP_CKSUM);
        if options.tso == Wanted::On || self.tx_offloads & sums == sums {
            let tso = self.choose(options.tso, auto_tso, tx, RTE_ETH_TX_OFFLOAD_TCP_TSO, "TSO")?;
            if tso != 0 {
                self.tx_offloads |= tso | (tx & sums);
            }
        }
        self.rx_offloads |= self.choose(options.lro, false, rx, RTE_ETH_RX_OFFLOAD_TCP_LRO, "LRO")?;
        self.rx_offloads |= rx & u64::from(RTE_ETH_RX_OFFLOAD_SCATTER);
        let spread = self.info.flow_type_rss_offloads & rss_types() != 0;
        self.rss = options.rss != Wanted::Off && options.rx_queues > 1 && spread;
        if options.rss == Wanted::On && options.rx_queues > 1 && !spread {
            return Err(unsupported(self.name, &self.driver, "RSS is not offered"));
        }
        if self.rss {
            self.rx_offloads |= rx & u64::from(RTE_ETH_RX_OFFLOAD_RSS_HASH);
        }
        Ok(())
    }

    fn choose(&self, wanted: Wanted, auto: bool, offered: u64, bit: u32, what: &str) -> Result<u64, Error> {
        let offered = offered & u64::from(bit);
        match wanted {
            Wanted::Off => Ok(0),
            Wanted::Auto => Ok(if auto { offered } else { 0 }),
            Wanted::On if offered == 0 => Err(unsupported(self.name, &self.driver, &format!("{what}: not offered"))),
            Wanted::On => Ok(offered),
        }
    }

    fn start(mut self, eal: &Eal) -> Result<OpenPort, Error> {
        let first = self.options.rx_interrupts != Wanted::Off;
        let (interrupts_configured, pools) = match self.configure(first) {
            Ok(pools) => (first, pools),
            // Some drivers fail to start with interrupts they do not have.
            Err(_) if first => (false, self.configure(false)?),
            Err(error) => return Err(error),
        };
        let (rx_pools, tx_pools) = pools;
        let narrowed = self.limits.narrowed(&self.info.tx_desc_lim, self.tx_descriptors);
        let capabilities = self.capabilities(narrowed)?;
        let mut open = OpenPort {
            id: self.id,
            name: self.name.to_owned(),
            driver: self.driver.clone(),
            interrupts_configured,
            tx_pools,
            rx_pools,
            capabilities,
            _running: Arc::clone(&eal.running),
        };
        if interrupts_configured {
            open.capabilities.rx_interrupts = crate::rx::interrupts_work(&open);
        }
        Ok(open)
    }

    /// Configures and starts the device; on failure it can be configured again.
    fn configure(&mut self, interrupts: bool) -> Result<(Vec<Pool>, Vec<TxPools>), Error> {
        let (id, name, options) = (self.id, self.name, self.options);
        let mut conf = sys::rte_eth_conf::default();
        let claimed = if self.tap_jumbo() {
            TAP_MTU_CLAIMED
        } else {
            options.mtu
        };
        conf.rxmode.mtu = u32::from(claimed);
        conf.rxmode.offloads = self.rx_offloads;
        if self.rx_offloads & u64::from(sys::RTE_ETH_RX_OFFLOAD_TCP_LRO) != 0 {
            conf.rxmode.max_lro_pkt_size = self.info.max_lro_pkt_size;
        }
        conf.txmode.offloads = self.tx_offloads;
        conf.intr_conf.set_rxq(u32::from(interrupts));
        if self.rss {
            conf.rxmode.mq_mode = sys::rte_eth_rx_mq_mode_RTE_ETH_MQ_RX_RSS;
            let key_bytes = match self.info.hash_key_size {
                0 => RSS_KEY_BYTES_USUAL,
                bytes => bytes.min(SYMMETRIC_KEY.len() as u8),
            };
            conf.rx_adv_conf.rss_conf = sys::rte_eth_rss_conf {
                // Drivers only read it; the field is not const.
                rss_key: SYMMETRIC_KEY.as_ptr().cast_mut(),
                rss_key_len: key_bytes,
                rss_hf: self.info.flow_type_rss_offloads & rss_types(),
            };
        }
        // SAFETY: a stopped port that this process has opened; `conf` outlives the call, its key the process.
        let result = unsafe { sys::rte_eth_dev_configure(id, options.rx_queues, options.tx_queues, &conf) };
        check(name, "rte_eth_dev_configure", result)?;
        // SAFETY: as above; both counts are in and out.
        let result = unsafe { sys::rte_eth_dev_adjust_nb_rx_tx_desc(id, &mut self.rx_descriptors, &mut self.tx_descriptors) };
        check(name, "rte_eth_dev_adjust_nb_rx_tx_desc", result)?;
        if let Some(bytes) = options.mac {
            let mut mac = sys::rte_ether_addr { addr_bytes: bytes };
            // SAFETY: a configured port, a valid address.
            let result = unsafe { sys::rte_eth_dev_default_mac_addr_set(id, &mut mac) };
            check(name, "rte_eth_dev_default_mac_addr_set", result)?;
        }
        let rx_pools = (0..options.rx_queues).map(|queue| self.set_up_rx(queue)).collect::<Result<_, _>>()?;
        let tx_pools = (0..options.tx_queues).map(|queue| self.set_up_tx(queue)).collect::<Result<_, _>>()?;
        self.set_mtu()?;
        // SAFETY: a configured port with all its queues set up.
        check(name, "rte_eth_dev_start", unsafe { sys::rte_eth_dev_start(id) })?;
        if options.promiscuous {
            // SAFETY: a started port. Devices that cannot are those that get every frame anyway.
            unsafe { sys::rte_eth_promiscuous_enable(id) };
        }
        if options.all_multicast {
            // SAFETY: as above.
            unsafe { sys::rte_eth_allmulticast_enable(id) };
        }
        Ok((rx_pools, tx_pools))
    }

    fn set_mtu(&self) -> Result<(), Error> {
        const ENOTSUP: i32 = 95;
        if self.tap_jumbo() {
            // SAFETY: a configured, stopped port of the driver this call is for; nobody polls it yet.
            let result =
                unsafe { sys::nfsplice_tap_mtu(self.id, self.info.if_index, self.options.mtu) };
            let refused = || unsupported(self.name, &self.driver, "no MTU above 1504 bytes");
            return if result == 0 { Ok(()) } else { Err(refused()) };
        }
        // SAFETY: a configured, stopped port.
        let result = unsafe { sys::rte_eth_dev_set_mtu(self.id, self.options.mtu) };
        // Devices without the call (net_ring, net_null) have no MTU.
        if result == -ENOTSUP { Ok(()) } else { check(self.name, "rte_eth_dev_set_mtu", result) }
    }

    /// net_tap claims less than it does; see the shim.
    fn tap_jumbo(&self) -> bool {
        let frame = u32::from(self.options.mtu) + ETHERNET_VLAN_BYTES;
        self.driver == "net_tap" && frame > self.info.max_rx_pktlen
    }

    fn set_up_rx(&self, queue: u16) -> Result<Pool, Error> {
        let scatter = self.rx_offloads & u64::from(sys::RTE_ETH_RX_OFFLOAD_SCATTER) != 0;
        let frame = u32::from(self.options.mtu) + ETHERNET_VLAN_BYTES + 4;
        let mut room = u32::from(self.options.rx_room).max(self.info.min_rx_bufsize.min(16 << 10));
        if !scatter {
            room = room.max(frame);
        }
        let room = u16::try_from(room.min(u32::from(u16::MAX - HEADROOM))).unwrap_or(u16::MAX - HEADROOM);
        let bound = u32::from(self.rx_descriptors) + CACHED_BUFFERS;
        let shape = Shape { buffers: self.options.rx_pool_mbufs.max(bound), room, socket: self.socket };
        let pool = Pool::take("receive", shape)?;
        let mut conf = self.info.default_rxconf;
        conf.offloads = self.rx_offloads;
        // SAFETY: a configured port; the pool outlives it; `conf` outlives the call.
        let result = unsafe {
            let socket = self.socket as u32;
            sys::rte_eth_rx_queue_setup(self.id, queue, self.rx_descriptors, socket, &conf, pool.as_ptr())
        };
        check(self.name, "rte_eth_rx_queue_setup", result)?;
        Ok(pool)
    }

    fn set_up_tx(&self, queue: u16) -> Result<TxPools, Error> {
        let in_flight = u32::from(self.tx_descriptors) + MAX_QUEUED_CHAINS as u32 + CACHED_BUFFERS;
        let pieces = self.options.tx_pool_mbufs.unwrap_or(in_flight + 2048);
        let copy_room = if self.limits.chains {
            self.options.copy_room
        } else {
            self.options.copy_room.max(self.options.mtu.saturating_add(ETHERNET_VLAN_BYTES as u16))
        };
        let take = |what, buffers, room| Pool::take(what, Shape { buffers, room, socket: self.socket });
        let pools = TxPools {
            header: take("header", self.options.tx_pool_mbufs.unwrap_or(in_flight), self.options.header_room.max(64))?,
            piece: take("payload", pieces, 0)?,
            copy: take("copy", pieces, copy_room.clamp(256, u16::MAX - HEADROOM))?,
        };
        let mut conf = self.info.default_txconf;
        conf.offloads = self.tx_offloads;
        // SAFETY: a configured port; `conf` outlives the call.
        let result = unsafe { sys::rte_eth_tx_queue_setup(self.id, queue, self.tx_descriptors, self.socket as u32, &conf) };
        check(self.name, "rte_eth_tx_queue_setup", result)?;
        Ok(pools)
    }

    fn capabilities(&self, limits: TxLimits) -> Result<PortCapabilities, Error> {
        let mut mac = sys::rte_ether_addr::default();
        let mut mtu = self.options.mtu;
        // SAFETY: an open port; room for the results.
        unsafe {
            check(self.name, "rte_eth_macaddr_get", sys::rte_eth_macaddr_get(self.id, &mut mac))?;
            sys::rte_eth_dev_get_mtu(self.id, &mut mtu);
        }
        let tx = |bit: u32| self.tx_offloads & u64::from(bit) != 0;
        let rx = |bit: u32| self.rx_offloads & u64::from(bit) != 0;
        let wire = u32::from(mtu) + ETHERNET_VLAN_BYTES;
        let tso_frame = if limits.tso_frame_within_mtu { 0 } else { ETHERNET_BYTES };
        Ok(PortCapabilities {
            mac: mac.addr_bytes,
            mtu,
            tso: tx(sys::RTE_ETH_TX_OFFLOAD_TCP_TSO) && limits.chains,
            tso_offered: self.info.tx_offload_capa & u64::from(sys::RTE_ETH_TX_OFFLOAD_TCP_TSO) != 0,
            tx_ip_checksum: tx(sys::RTE_ETH_TX_OFFLOAD_IPV4_CKSUM),
            tx_tcp_checksum: tx(sys::RTE_ETH_TX_OFFLOAD_TCP_CKSUM),
            tx_udp_checksum: tx(sys::RTE_ETH_TX_OFFLOAD_UDP_CKSUM),
            rx_ip_checksum: rx(sys::RTE_ETH_RX_OFFLOAD_IPV4_CKSUM),
            rx_tcp_checksum: rx(sys::RTE_ETH_RX_OFFLOAD_TCP_CKSUM),
            rx_udp_checksum: rx(sys::RTE_ETH_RX_OFFLOAD_UDP_CKSUM),
            max_segments_per_packet: limits.per_packet,
            max_segments_tso: limits.per_tso,
            max_frame_bytes: limits.frame_bytes.map_or(wire, |bytes| if bytes == u32::MAX { bytes } else { bytes.min(wire) }),
            max_tso_bytes: IP_PACKET_BYTES_MAX,
            max_tso_frames: limits.tso_frames,
            max_tso_frame_bytes: u32::from(mtu) + tso_frame,
            accepts_chains: limits.chains,
            rx_interrupts: false,
            driver_name: self.driver.clone(),
            rx_queues: self.options.rx_queues,
            tx_queues: self.options.tx_queues,
            rx_descriptors: self.rx_descriptors,
            tx_descriptors: self.tx_descriptors,
            rss: self.rss,
            socket: self.socket,
        })
    }
}

fn rss_types() -> u64 {
    u64::from(
        sys::RTE_ETH_RSS_IPV4
            | sys::RTE_ETH_RSS_NONFRAG_IPV4_TCP
            | sys::RTE_ETH_RSS_NONFRAG_IPV4_UDP
            | sys::RTE_ETH_RSS_IPV6
            | sys::RTE_ETH_RSS_NONFRAG_IPV6_TCP
            | sys::RTE_ETH_RSS_NONFRAG_IPV6_UDP,
    )
}

fn check(port: &str, call: &'static str, result: i32) -> Result<(), Error> {
    if result >= 0 {
        return Ok(());
    }
    Err(Error::Port { port: port.to_owned(), call, errno: Errno::from_return(result) })
}

fn unsupported(port: &str, driver: &str, what: &str) -> Error {
    Error::Unsupported { port: port.to_owned(), driver: driver.to_owned(), what: what.to_owned() }
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
