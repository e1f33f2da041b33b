//! Setting a port up: negotiating offloads, sizes and interrupts with the device, then starting it.

use std::{ffi::CStr, sync::Arc};

use dpdk_sys as sys;

use crate::{
    capability::{PortCapabilities, RssSpread, TxLimits, spreads_by_hash, tx_limits},
    eal::Eal,
    error::{Errno, Error},
    pool::{HEADROOM, Pool, Shape},
    port::{OpenPort, PortOptions, TxPools, Wanted},
    tx::MAX_QUEUED_CHAINS,
};

/// Bytes of an Ethernet header with a VLAN tag.
const ETHERNET_VLAN_BYTES: u32 = 18;
/// Ethernet header, VLAN tag and check sequence, the most a driver may want room for.
const FRAME_OVERHEAD_BYTES: u32 = 22;
/// Buffers that per-thread caches of a pool may hold: cache × 1.5, for the queue's thread and one more.
const CACHED_BUFFERS: u32 = 2 * 768;

/// Packets done with that are worth a look by a driver that releases early: few enough to be in the caches still.
const RELEASED_AT_LEAST: u16 = 16;

/// What a net_tap port with a larger MTU is configured with at first.
const TAP_MTU_CLAIMED: u16 = 1500;

/// What ethdev returns, negated, for a call that the driver does not have.
const ENOTSUP: i32 = 95;

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

/// The receive pool and the transmit pools of each queue pair.
type QueuePools = (Vec<Pool>, Vec<TxPools>);

/// A port being set up.
pub(crate) struct Setup<'a> {
    id: u16,
    name: &'a str,
    driver: String,
    options: &'a PortOptions,
    info: sys::rte_eth_dev_info,
    limits: TxLimits,
    tx_offloads: u64,
    rx_offloads: u64,
    /// Chains go to a peer that cuts them, or needs no cutting.
    tso_by_peer: bool,
    rss: bool,
    /// The device takes a key of ours; else it keeps its own.
    rss_key: bool,
    rx_descriptors: u16,
    tx_descriptors: u16,
    socket: i32,
    /// An address that the device was not told because it cannot be.
    unfiltered_mac: Option<[u8; 6]>,
    /// See [`PortCapabilities::deaf_to`].
    deaf_to: Option<&'static str>,
}

impl<'a> Setup<'a> {
    pub(crate) fn new(id: u16, name: &'a str, options: &'a PortOptions) -> Result<Setup<'a>, Error> {
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
            tso_by_peer: false,
            rss: false,
            rss_key: true,
            rx_descriptors: options.rx_descriptors,
            tx_descriptors: options.tx_descriptors,
            id,
            name,
            driver,
            options,
            info,
            socket,
            unfiltered_mac: None,
            deaf_to: None,
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
        // A device that segments must also fill in each segment's TCP checksum. IPv4 checksums are used if offered:
        // virtio and vmxnet3 segment without offering them, and refuse a packet that asks.
        let sums = tx & u64::from(RTE_ETH_TX_OFFLOAD_IPV4_CKSUM | RTE_ETH_TX_OFFLOAD_TCP_CKSUM);
        let tcp = self.tx_offloads & u64::from(RTE_ETH_TX_OFFLOAD_TCP_CKSUM) != 0;
        self.tso_by_peer = self.limits.tso_by_peer && options.tso == Wanted::On && tcp;
        if (options.tso == Wanted::On || tcp) && !self.tso_by_peer {
            let tso = self.choose(options.tso, auto_tso, tx, RTE_ETH_TX_OFFLOAD_TCP_TSO, "TSO")?;
            if tso != 0 {
                self.tx_offloads |= tso | sums;
            }
        }
        let spread = self.info.flow_type_rss_offloads & rss_types() != 0 && spreads_by_hash(&self.driver);
        self.rss = options.rss != Wanted::Off && options.rx_queues > 1 && spread;
        if options.rss == Wanted::On && options.rx_queues > 1 && !spread {
            return Err(unsupported(self.name, &self.driver, "RSS is not offered"));
        }
        // Where queues are shared out in software, packets wait for their core, counted as packets.
        let auto_lro = options.rx_queues == 1 || self.rss;
        self.rx_offloads |= self.choose(options.lro, auto_lro, rx, RTE_ETH_RX_OFFLOAD_TCP_LRO, "LRO")?;
        // Only when needed: some drivers have a faster receive path without it.
        let frame = u32::from(options.mtu) + FRAME_OVERHEAD_BYTES;
        let lro = self.rx_offloads & u64::from(RTE_ETH_RX_OFFLOAD_TCP_LRO) != 0;
        if lro || frame > u32::from(options.rx_room) {
            self.rx_offloads |= rx & u64::from(RTE_ETH_RX_OFFLOAD_SCATTER);
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

    pub(crate) fn start(mut self, eal: &Eal) -> Result<OpenPort, Error> {
        let (interrupts_configured, pools) = self.configure_with_what_works()?;
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
        if open.driver == "net_tap" {
            crate::tap::end_signals()
                .map_err(|error| Error::Invalid(format!("port {}: the signals of its driver: {error}", open.name)))?;
        }
        Ok(open)
    }

    /// Some drivers fail to start with interrupts they do not have, some with an RSS key that is not their own, and what one
    /// needs for LRO beyond offering it (sizes of buffers, other offloads) is not told in advance.
    fn configure_with_what_works(&mut self) -> Result<(bool, QueuePools), Error> {
        let lro = u64::from(sys::RTE_ETH_RX_OFFLOAD_TCP_LRO);
        let result = self.configure_with_these_offloads();
        if result.is_err() && self.options.lro == Wanted::Auto && self.rx_offloads & lro != 0 {
            self.rx_offloads &= !lro;
            return self.configure_with_these_offloads();
        }
        result
    }

    fn configure_with_these_offloads(&mut self) -> Result<(bool, QueuePools), Error> {
        let interrupts: &[bool] = if self.options.rx_interrupts == Wanted::Off { &[false] } else { &[true, false] };
        let keys: &[bool] = if self.rss { &[true, false] } else { &[true] };
        let mut first_error = None;
        for own_key in keys {
            self.rss_key = *own_key;
            for interrupts in interrupts {
                match self.configure(*interrupts) {
                    Ok(pools) => return Ok((*interrupts, pools)),
                    Err(error) => first_error = Some(error),
                }
            }
        }
        Err(first_error.unwrap_or_else(|| unsupported(self.name, &self.driver, "it cannot be configured")))
    }

    /// Configures and starts the device; on failure it can be configured again.
    fn configure(&mut self, interrupts: bool) -> Result<QueuePools, Error> {
        let (id, name, options) = (self.id, self.name, self.options);
        let mut conf = sys::rte_eth_conf::default();
        let claimed = if self.tap_jumbo() { TAP_MTU_CLAIMED } else { options.mtu };
        conf.rxmode.mtu = u32::from(claimed);
        conf.rxmode.offloads = self.rx_offloads;
        if self.rx_offloads & u64::from(sys::RTE_ETH_RX_OFFLOAD_TCP_LRO) != 0 {
            conf.rxmode.max_lro_pkt_size = self.info.max_lro_pkt_size;
        }
        conf.txmode.offloads = self.tx_offloads;
        conf.intr_conf.set_rxq(u32::from(interrupts));
        if self.rss {
            conf.rxmode.mq_mode = sys::rte_eth_rx_mq_mode_RTE_ETH_MQ_RX_RSS;
            conf.rx_adv_conf.rss_conf = sys::rte_eth_rss_conf {
                // Drivers only read it; the field is not const. NULL: the driver's own.
                rss_key: if self.rss_key { SYMMETRIC_KEY.as_ptr().cast_mut() } else { std::ptr::null_mut() },
                rss_key_len: if self.rss_key { self.rss_key_bytes() } else { 0 },
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
            // A device without the call (net_vhost) filters no addresses: the port's address is the stack's alone.
            if result == -ENOTSUP {
                self.unfiltered_mac = Some(bytes);
            } else {
                check(name, "rte_eth_dev_default_mac_addr_set", result)?;
            }
        }
        let rx_pools = (0..options.rx_queues).map(|queue| self.set_up_rx(queue)).collect::<Result<_, _>>()?;
        let tx_pools = (0..options.tx_queues).map(|queue| self.set_up_tx(queue)).collect::<Result<_, _>>()?;
        self.set_mtu()?;
        // SAFETY: a configured port with all its queues set up.
        check(name, "rte_eth_dev_start", unsafe { sys::rte_eth_dev_start(id) })?;
        self.deaf_to = None;
        if options.all_multicast {
            // SAFETY: a started port.
            let result = unsafe { sys::rte_eth_allmulticast_enable(id) };
            self.note_refusal(result, "groups");
        }
        if options.promiscuous || self.unfiltered_mac.is_some() {
            // SAFETY: as above.
            let result = unsafe { sys::rte_eth_promiscuous_enable(id) };
            self.note_refusal(result, "frames for other addresses than its own");
        }
        Ok((rx_pools, tx_pools))
    }

    /// Drivers without the operation are those of devices that get every frame anyway.
    fn note_refusal(&mut self, result: i32, what: &'static str) {
        if result != 0 && result != -ENOTSUP {
            self.deaf_to = Some(what);
        }
    }

    fn rss_key_bytes(&self) -> u8 {
        match self.info.hash_key_size {
            0 => RSS_KEY_BYTES_USUAL,
            bytes => bytes.min(SYMMETRIC_KEY.len() as u8),
        }
    }

    /// What the started device says of its own spreading; `None` when it does not say all of it.
    fn spread(&self) -> Option<RssSpread> {
        const GROUP: usize = sys::RTE_ETH_RETA_GROUP_SIZE as usize;
        if !self.rss {
            return None;
        }
        let mut key = vec![0; usize::from(self.rss_key_bytes())];
        let mut conf = sys::rte_eth_rss_conf { rss_key: key.as_mut_ptr(), rss_key_len: key.len() as u8, rss_hf: 0 };
        // SAFETY: a started port; the key has room for the length that the device gave for its own.
        let told = unsafe { sys::rte_eth_dev_rss_hash_conf_get(self.id, &mut conf) } == 0;
        let entries = usize::from(self.info.reta_size);
        if !told || entries == 0 || key.iter().all(|byte| *byte == 0) {
            return None;
        }
        let all = sys::rte_eth_rss_reta_entry64 { mask: u64::MAX, reta: [0; GROUP] };
        let mut groups = vec![all; entries.div_ceil(GROUP)];
        // SAFETY: a started port; room for as many entries as the device has.
        let told = unsafe { sys::rte_eth_dev_rss_reta_query(self.id, groups.as_mut_ptr(), self.info.reta_size) } == 0;
        let table: Vec<u16> = groups.iter().flat_map(|group| group.reta).take(entries).collect();
        let hashed = |bit: u32| conf.rss_hf & u64::from(bit) != 0;
        told.then_some(RssSpread {
            key,
            ipv4_tcp_ports: hashed(sys::RTE_ETH_RSS_NONFRAG_IPV4_TCP),
            ipv6_tcp_ports: hashed(sys::RTE_ETH_RSS_NONFRAG_IPV6_TCP),
            table,
        })
    }

    fn set_mtu(&self) -> Result<(), Error> {
        if self.tap_jumbo() {
            // SAFETY: a configured, stopped port of the driver this call is for; nobody polls it yet.
            let result = unsafe { sys::nfsplice_tap_mtu(self.id, self.info.if_index, self.options.mtu) };
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
        let frame = u32::from(self.options.mtu) + FRAME_OVERHEAD_BYTES;
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
            header: take(
                "header",
                self.options.tx_pool_mbufs.unwrap_or(in_flight),
                self.options.header_room.clamp(64, u16::MAX - HEADROOM),
            )?,
            piece: take("payload", pieces, 0)?,
            copy: take("copy", pieces, copy_room.clamp(256, u16::MAX - HEADROOM))?,
        };
        let mut conf = self.info.default_txconf;
        conf.offloads = self.tx_offloads;
        let set_up = |conf: &sys::rte_eth_txconf| {
            // SAFETY: a configured port; `conf` outlives the call.
            unsafe { sys::rte_eth_tx_queue_setup(self.id, queue, self.tx_descriptors, self.socket as u32, conf) }
        };
        // Buffers, and the pages' counts, are used again while they are in the caches, and fewer pages wait for their release. The
        // driver measures with the size of its ring, which it does not tell, and refuses what is more.
        let early = sys::rte_eth_txconf { tx_free_thresh: self.tx_descriptors.saturating_sub(RELEASED_AT_LEAST), ..conf };
        if !self.limits.release_early || early.tx_free_thresh == 0 || set_up(&early) < 0 {
            check(self.name, "rte_eth_tx_queue_setup", set_up(&conf))?;
        }
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
        let tso_frame = if limits.tso_frame_within_mtu { 0 } else { ETHERNET_VLAN_BYTES };
        Ok(PortCapabilities {
            mac: self.unfiltered_mac.unwrap_or(mac.addr_bytes),
            mtu,
            tso: (tx(sys::RTE_ETH_TX_OFFLOAD_TCP_TSO) || self.tso_by_peer) && limits.chains,
            tso_ipv6: limits.tso_ipv6,
            tso_offered: self.info.tx_offload_capa & u64::from(sys::RTE_ETH_TX_OFFLOAD_TCP_TSO) != 0,
            tx_ip_checksum: tx(sys::RTE_ETH_TX_OFFLOAD_IPV4_CKSUM),
            tx_tcp_checksum: tx(sys::RTE_ETH_TX_OFFLOAD_TCP_CKSUM),
            tx_udp_checksum: tx(sys::RTE_ETH_TX_OFFLOAD_UDP_CKSUM),
            rx_ip_checksum: rx(sys::RTE_ETH_RX_OFFLOAD_IPV4_CKSUM),
            rx_tcp_checksum: rx(sys::RTE_ETH_RX_OFFLOAD_TCP_CKSUM),
            rx_udp_checksum: rx(sys::RTE_ETH_RX_OFFLOAD_UDP_CKSUM),
            lro: rx(sys::RTE_ETH_RX_OFFLOAD_TCP_LRO),
            max_segments_per_packet: limits.per_packet,
            max_segments_tso: limits.per_tso,
            max_frame_bytes: limits.frame_bytes.map_or(wire, |bytes| if bytes == u32::MAX { bytes } else { bytes.min(wire) }),
            max_tso_bytes: limits.tso_bytes,
            max_tso_frames: limits.tso_frames,
            max_tso_frame_bytes: u32::from(mtu) + tso_frame,
            accepts_chains: limits.chains,
            frees_chains_whole: limits.frees_chains_whole,
            rx_interrupts: false,
            driver_name: self.driver.clone(),
            rx_queues: self.options.rx_queues,
            tx_queues: self.options.tx_queues,
            rx_descriptors: self.rx_descriptors,
            tx_descriptors: self.tx_descriptors,
            rss: self.rss,
            spread: self.spread(),
            socket: self.socket,
            deaf_to: self.deaf_to,
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

pub(crate) fn unsupported(port: &str, driver: &str, what: &str) -> Error {
    Error::Unsupported { port: port.to_owned(), driver: driver.to_owned(), what: what.to_owned() }
}
