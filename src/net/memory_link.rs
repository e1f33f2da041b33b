//! Two in-memory devices with a faulty cable between them, for tests and the simulator.
//!
//! Everything that happens on the link follows from its options, its seed and the calls made: the same run again is the
//! same bytes at the same instants. The clock is handed in (`MemoryLink::set_now`).
//!
//! A frame's bytes are copied when it is put on the wire, at `flush`, and its slices released, as a NIC does after DMA. An end can
//! be told to record where the slices lay (to show that nothing was copied above it) and to hold them longer, as lazy
//! drivers do; what changed meanwhile is found when they are let go.
//!
//! Deliberately not here: what a NIC does to a frame on request (`memory_offload`), what a router answers (`memory_router`); threads (an
//! end is not `Send`).

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;

use super::device::{Checksum, Device, DeviceCapabilities, RxFrame, TxOffload, TxRefused};
use super::{memory_offload, memory_router};
use crate::buf::{RxPacket, Slice};
use crate::time::{Duration, Instant};
use crate::wire::checksum::Sum;
use crate::wire::tcp::{TSO_FRAMES_MAX, TSO_MSS_MIN};
use crate::wire::{ethernet, ipv4};

/// Frames one `receive` hands over at most.
const RECEIVE_BURST: usize = 32;

/// SplitMix64 (Steele, Lea, Flood 2014): small, fast, and good enough to lose packets with.
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Random {
        Random(seed)
    }

    pub fn draw(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Below `bound`; 0 if that is 0.
    pub fn below(&mut self, bound: u64) -> u64 {
        self.draw().checked_rem(bound).unwrap_or(0)
    }

    /// True in `ppm` of a million calls. Draws a number in any case, so that changing one rate does not shift the others.
    pub fn chance(&mut self, ppm: u32) -> bool {
        self.below(1_000_000) < u64::from(ppm)
    }
}

/// What one direction of the link does to frames. Rates are in parts per million of the frames.
#[derive(Clone, Copy, Debug, Default)]
pub struct Impairments {
    /// Frames lost, each for itself.
    pub loss_ppm: u32,
    /// Frames at which a burst of loss begins; within it every frame is lost.
    pub burst_start_ppm: u32,
    /// Frames of a burst at which it ends: the mean length is 1,000,000 / this. 0 with a start: the link goes dead.
    pub burst_end_ppm: u32,
    pub duplicate_ppm: u32,
    /// Frames in which one bit is flipped.
    pub corrupt_ppm: u32,
    /// Frames that take `reorder_delay` longer and so may be overtaken.
    pub reorder_ppm: u32,
    pub reorder_delay: Duration,
    pub delay: Duration,
    /// Each frame takes up to this much longer.
    pub jitter: Duration,
    /// Frames that are marked "congestion experienced", of those that may be (RFC 3168).
    pub mark_ppm: u32,
    /// Longer IP packets vanish. 0: any length goes.
    pub path_mtu: u16,
    /// Who sent one is told by ICMP, unless the other direction loses the message. false: without a word.
    pub tells_mtu: bool,
    /// 0: infinite.
    pub rate_bits_per_second: u64,
    /// Frames waiting for the rate, bytes; more are dropped. 0: no limit.
    pub queue_bytes_max: u64,
}

/// One end: the device it pretends to be.
#[derive(Clone, Copy, Debug)]
pub struct EndOptions {
    pub capabilities: DeviceCapabilities,
    /// The device verifies checksums of what it receives and says so.
    pub rx_checksums: bool,
    /// Frames between two flushes.
    pub ring_frames: usize,
    /// The device joins the segments of a connection that arrive together (LRO), in buffers of this many bytes.
    pub rx_coalesce: Option<usize>,
}

impl EndOptions {
    /// A NIC that can do nothing but send chains of buffers.
    pub fn plain(mac: [u8; 6], mtu: u16) -> EndOptions {
        let capabilities = DeviceCapabilities {
            mac,
            mtu,
            ip_checksum: false,
            tcp_checksum: false,
            udp_checksum: false,
            tso_bytes_max: 0,
            tso_ipv6: false,
            segments_per_packet_max: 64,
            segments_tso_max: 64,
        };
        EndOptions { capabilities, rx_checksums: false, ring_frames: 1024, rx_coalesce: None }
    }

    /// A NIC that can do everything.
    pub fn offloading(mac: [u8; 6], mtu: u16) -> EndOptions {
        let mut options = EndOptions::plain(mac, mtu);
        options.rx_checksums = true;
        let capabilities = &mut options.capabilities;
        capabilities.ip_checksum = true;
        capabilities.tcp_checksum = true;
        capabilities.udp_checksum = true;
        capabilities.tso_bytes_max = 65_000;
        capabilities.tso_ipv6 = true;
        capabilities.segments_tso_max = 256;
        options
    }
}

crate::counters! {
    /// What one direction of a link did.
    pub struct LinkCounters {
        /// Frames put on the wire.
        sent,
        /// Frames handed to the other end.
        delivered,
        /// Bytes of those.
        delivered_octets,
        /// Frames lost at random or in a burst.
        lost,
        /// Frames dropped because the queue before the rate was full.
        queue_dropped,
        /// Frames dropped by a test's filter.
        filtered,
        /// Frames delivered twice.
        duplicated,
        /// Frames with a flipped bit.
        corrupted,
        /// Frames held back.
        reordered,
        /// Frames whose packet was marked.
        marked,
        /// Frames dropped because they were too long for the path.
        too_long,
        /// Those whose sender is being told.
        too_long_told,
    }
}

/// A test's say over each frame: false drops it.
pub type Filter = Box<dyn FnMut(&[u8]) -> bool>;

/// What became of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// It is put on the wire.
    Sent,
    /// The one that was sent last will not arrive, or not as it was.
    Lost,
    /// It is handed to the other end.
    Delivered,
}

/// A test's look at each frame. It must not touch the link.
pub type Tap = Box<dyn FnMut(Fate, Instant, &[u8])>;

struct Direction {
    impairments: Impairments,
    random: Random,
    /// Draws what came later, so that the rest of a seed stays what it was.
    later: Random,
    in_burst: bool,
    /// When the last bit of what was sent so far has left.
    busy_until: Instant,
    /// By arrival, then by order of sending.
    in_flight: BTreeMap<(Instant, u64), Vec<u8>>,
    serial: u64,
    filter: Option<Filter>,
    tap: Option<Tap>,
    /// What the sender of the last frame is to be told.
    told: Option<Vec<u8>>,
    counters: LinkCounters,
}

struct Wire {
    now: Instant,
    directions: [Direction; 2],
}

/// The cable: the clock and the faults. Sides are 0 and 1; direction `n` is what side `n` sends.
pub struct MemoryLink {
    wire: Rc<RefCell<Wire>>,
}

impl MemoryLink {
    /// A link and its two ends, side 0 first.
    pub fn new(seed: u64, impairments: [Impairments; 2], ends: [EndOptions; 2]) -> (MemoryLink, MemoryEnd, MemoryEnd) {
        let direction = |side: u64, impairments| Direction {
            impairments,
            random: Random::new(Random::new(seed ^ side).draw()),
            later: Random::new(Random::new(!seed ^ side).draw()),
            in_burst: false,
            busy_until: Instant::ZERO,
            in_flight: BTreeMap::new(),
            serial: 0,
            filter: None,
            tap: None,
            told: None,
            counters: LinkCounters::default(),
        };
        let [a, b] = impairments;
        let wire = Rc::new(RefCell::new(Wire { now: Instant::ZERO, directions: [direction(0, a), direction(1, b)] }));
        let end = |side, options| MemoryEnd {
            wire: wire.clone(),
            side,
            options,
            queued: Vec::new(),
            recorded: None,
            held: None,
            payload_octets: 0,
        };
        let [a, b] = ends;
        let (a, b) = (end(0, a), end(1, b));
        (MemoryLink { wire }, a, b)
    }

    /// A perfect link between two plain ends with MAC addresses 02:..:01 and 02:..:02.
    pub fn perfect(mtu: u16) -> (MemoryLink, MemoryEnd, MemoryEnd) {
        let ends = [EndOptions::plain([2, 0, 0, 0, 0, 1], mtu), EndOptions::plain([2, 0, 0, 0, 0, 2], mtu)];
        MemoryLink::new(0, [Impairments::default(); 2], ends)
    }

    /// Moves the clock. It never goes back.
    pub fn set_now(&self, now: Instant) {
        let mut wire = self.wire.borrow_mut();
        wire.now = wire.now.max(now);
    }

    /// When the next frame arrives at either end.
    pub fn poll_timeout(&self) -> Option<Instant> {
        let wire = self.wire.borrow();
        wire.directions.iter().filter_map(|direction| direction.in_flight.keys().next()).map(|(at, _)| *at).min()
    }

    /// Frames on their way, both directions.
    pub fn in_flight(&self) -> usize {
        self.wire.borrow().directions.iter().map(|direction| direction.in_flight.len()).sum()
    }

    /// Changes what happens to the frames that `side` sends from now on.
    ///
    /// # Panics
    /// If `side` is not 0 or 1; so do the next three.
    pub fn set_impairments(&self, side: usize, impairments: Impairments) {
        self.wire.borrow_mut().directions[side].impairments = impairments;
    }

    /// Lets a test drop chosen frames that `side` sends, before anything else happens to them. It must not touch the link.
    pub fn set_filter(&self, side: usize, filter: Option<Filter>) {
        self.wire.borrow_mut().directions[side].filter = filter;
    }

    /// Lets a test see each frame that `side` sends, and what becomes of it.
    pub fn set_tap(&self, side: usize, tap: Option<Tap>) {
        self.wire.borrow_mut().directions[side].tap = tap;
    }

    pub fn counters(&self, side: usize) -> LinkCounters {
        self.wire.borrow().directions[side].counters
    }
}

impl Wire {
    /// A frame of `side` leaves, and what a router has to say about it comes back.
    fn send(&mut self, side: usize, frame: Vec<u8>) {
        self.directions[side].send(self.now, frame);
        let Some(told) = self.directions[side].told.take() else { return };
        let back = &mut self.directions[1 - side];
        if back.later.chance(back.impairments.loss_ppm) {
            return;
        }
        back.fly(self.now + back.impairments.delay, told);
        self.directions[side].counters.too_long_told += 1;
    }
}

impl Direction {
    /// A frame leaves; what becomes of it.
    fn send(&mut self, now: Instant, frame: Vec<u8>) {
        self.counters.sent += 1;
        let Some(tap) = &mut self.tap else {
            self.carry(now, frame);
            return;
        };
        tap(Fate::Sent, now, &frame);
        let told = frame.clone();
        if !self.carry(now, frame)
            && let Some(tap) = &mut self.tap
        {
            tap(Fate::Lost, now, &told);
        }
    }

    /// Whether the frame will arrive as it is.
    fn carry(&mut self, now: Instant, mut frame: Vec<u8>) -> bool {
        if let Some(filter) = &mut self.filter {
            if !filter(&frame) {
                self.counters.filtered += 1;
                return false;
            }
        }
        let Impairments { delay, reorder_delay, path_mtu, tells_mtu, mark_ppm, jitter, .. } = self.impairments;
        let link_len = ethernet::Frame::new(&frame).map_or(ethernet::HEADER_LEN, |frame| frame.header_len());
        if path_mtu > 0 && frame.len() > link_len + usize::from(path_mtu) {
            self.counters.too_long += 1;
            self.told = tells_mtu.then(|| memory_router::too_long(&frame, path_mtu)).flatten();
            return false;
        }
        let Some(left_at) = self.serialise(now, frame.len()) else {
            self.counters.queue_dropped += 1;
            return false;
        };
        if self.is_lost() {
            self.counters.lost += 1;
            return false;
        }
        if mark_ppm > 0 && self.later.chance(mark_ppm) && mark(&mut frame, link_len) {
            self.counters.marked += 1;
        }
        let corrupted = self.random.chance(self.impairments.corrupt_ppm);
        if corrupted {
            let bit = self.random.below(frame.len() as u64 * 8) as usize;
            if let Some(byte) = frame.get_mut(bit / 8) {
                *byte ^= 1 << (bit % 8);
                self.counters.corrupted += 1;
            }
        }
        let mut arrives = left_at + delay;
        if jitter > Duration::ZERO {
            arrives += Duration::from_nanos(self.later.below(jitter.as_nanos() as u64));
        }
        if self.random.chance(self.impairments.reorder_ppm) {
            self.counters.reordered += 1;
            arrives += reorder_delay;
        }
        if self.random.chance(self.impairments.duplicate_ppm) {
            self.counters.duplicated += 1;
            self.fly(arrives, frame.clone());
        }
        self.fly(arrives, frame);
        !corrupted
    }

    fn fly(&mut self, arrives: Instant, frame: Vec<u8>) {
        self.serial += 1;
        self.in_flight.insert((arrives, self.serial), frame);
    }

    /// When the frame's last bit has left; `None` if there is no room to wait for that.
    fn serialise(&mut self, now: Instant, len: usize) -> Option<Instant> {
        let rate = u128::from(self.impairments.rate_bits_per_second);
        if rate == 0 {
            return Some(now);
        }
        let nanos = |octets: u128| octets * 8 * 1_000_000_000 / rate;
        let waiting = self.busy_until.since(now).as_nanos();
        let limit = u128::from(self.impairments.queue_bytes_max);
        if limit > 0 && waiting + nanos(len as u128) > nanos(limit) {
            return None;
        }
        let start = self.busy_until.max(now);
        self.busy_until = start + Duration::from_nanos(u64::try_from(nanos(len as u128)).unwrap_or(u64::MAX));
        Some(self.busy_until)
    }

    fn is_lost(&mut self) -> bool {
        let change = if self.in_burst { self.impairments.burst_end_ppm } else { self.impairments.burst_start_ppm };
        if self.random.chance(change) {
            self.in_burst = !self.in_burst;
        }
        // Both are drawn in any case: see `Random::chance`.
        self.random.chance(self.impairments.loss_ppm) | self.in_burst
    }
}

/// Marks an IP packet whose sender understands marks; whether it is one.
fn mark(frame: &mut [u8], link_len: usize) -> bool {
    let Some(packet) = frame.get_mut(link_len..) else { return false };
    match packet.first().map(|first| first >> 4) {
        Some(4) if packet.len() >= ipv4::HEADER_LEN && matches!(packet[1] & 3, 1 | 2) => {
            packet[1] |= 3;
            let header = &mut packet[..ipv4::HEADER_LEN];
            header[10..12].fill(0);
            let mut sum = Sum::new();
            sum.add(header);
            header[10..12].copy_from_slice(&sum.finish().to_be_bytes());
            true
        }
        Some(6) if packet.len() > 1 && matches!(packet[1] >> 4 & 3, 1 | 2) => {
            packet[1] |= 0x30;
            true
        }
        _ => false,
    }
}

struct Queued {
    header: Vec<u8>,
    payload: Vec<Slice>,
    offload: TxOffload,
}

/// A frame that was sent while its slices are still held, and what they held then.
struct Held {
    payload: Vec<Slice>,
    bytes: Vec<u8>,
}

/// One end of a link.
pub struct MemoryEnd {
    wire: Rc<RefCell<Wire>>,
    side: usize,
    options: EndOptions,
    queued: Vec<Queued>,
    recorded: Option<Vec<Vec<(usize, usize)>>>,
    held: Option<Vec<Held>>,
    payload_octets: u64,
}

impl MemoryEnd {
    /// From now on (or no more) the address and length of every payload slice is written down, a list per frame.
    pub fn record_addresses(&mut self, on: bool) {
        self.recorded = on.then(Vec::new);
    }

    /// What was written down since the last call.
    pub fn take_recorded(&mut self) -> Vec<Vec<(usize, usize)>> {
        self.recorded.as_mut().map(std::mem::take).unwrap_or_default()
    }

    /// From now on slices are kept after they were sent, as a NIC that completes late does.
    pub fn hold_transmitted(&mut self) {
        self.held.get_or_insert_default();
    }

    /// Lets the held slices go and says whether all still had the bytes that were sent.
    pub fn release_transmitted(&mut self) -> bool {
        let held = self.held.as_mut().map(std::mem::take).unwrap_or_default();
        held.iter().all(|held| gather(&held.payload) == held.bytes)
    }

    /// Payload bytes that were given as slices.
    pub fn payload_octets(&self) -> u64 {
        self.payload_octets
    }

    /// Changes what the device can do, between connections of a test.
    pub fn capabilities_mut(&mut self) -> &mut DeviceCapabilities {
        &mut self.options.capabilities
    }

    /// Puts raw bytes on the wire as if this end had sent them.
    pub fn inject(&mut self, frame: Vec<u8>) {
        let wire = &mut *self.wire.borrow_mut();
        wire.send(self.side, frame);
    }

    /// The next frame that has arrived, as raw bytes.
    pub fn take_frame(&mut self) -> Option<Vec<u8>> {
        let wire = &mut *self.wire.borrow_mut();
        let direction = &mut wire.directions[1 - self.side];
        let entry = direction.in_flight.first_entry()?;
        if entry.key().0 > wire.now {
            return None;
        }
        let frame = entry.remove();
        if let Some(tap) = &mut direction.tap {
            tap(Fate::Delivered, wire.now, &frame);
        }
        direction.counters.delivered += 1;
        direction.counters.delivered_octets += frame.len() as u64;
        Some(frame)
    }

    fn check(&self, header: &[u8], payload: &[Slice], offload: &TxOffload) -> Result<(), TxRefused> {
        let capabilities = &self.options.capabilities;
        if self.queued.len() >= self.options.ring_frames {
            return Err(TxRefused::Full);
        }
        let octets: usize = payload.iter().map(|slice| slice.len()).sum();
        match offload.tso_mss {
            None => {
                // A tag does not count into the MTU (IEEE 802.3-2018 section 3.2.7).
                let link_len = ethernet::Frame::new(header).map_or(ethernet::HEADER_LEN, |frame| frame.header_len());
                if header.len() + octets > link_len + usize::from(capabilities.mtu) {
                    return Err(TxRefused::TooLong);
                }
                if 1 + payload.len() > usize::from(capabilities.segments_per_packet_max) {
                    return Err(TxRefused::TooManySegments);
                }
            }
            Some(mss) => {
                let frames = octets.div_ceil(usize::from(mss).max(1));
                let cuts = mss >= TSO_MSS_MIN && frames <= usize::from(TSO_FRAMES_MAX);
                if octets > capabilities.tso_bytes_max as usize || !cuts {
                    return Err(TxRefused::TooLong);
                }
                if 1 + payload.len() > usize::from(capabilities.segments_tso_max) {
                    return Err(TxRefused::TooManySegments);
                }
            }
        }
        // A request for something that was not offered is a bug of the caller, and a wrong frame on a real device.
        assert!(capabilities.ip_checksum || !offload.ip_checksum, "IPv4 checksum offload was not offered");
        assert!(capabilities.tcp_checksum || !offload.tcp_checksum, "TCP checksum offload was not offered");
        assert!(capabilities.udp_checksum || !offload.udp_checksum, "UDP checksum offload was not offered");
        Ok(())
    }
}

impl Device for MemoryEnd {
    fn capabilities(&self) -> &DeviceCapabilities {
        &self.options.capabilities
    }

    fn receive(&mut self, out: &mut Vec<RxFrame>) -> usize {
        let frames: Vec<Vec<u8>> = std::iter::from_fn(|| self.take_frame()).take(RECEIVE_BURST).collect();
        let before = out.len();
        if let Some(buffer_bytes) = self.options.rx_coalesce {
            out.extend(memory_offload::coalesce(frames, buffer_bytes));
            return out.len() - before;
        }
        for frame in frames {
            let (ip_checksum, l4_checksum) =
                if self.options.rx_checksums { memory_offload::verify(&frame) } else { (Checksum::Unknown, Checksum::Unknown) };
            out.push(RxFrame { packet: RxPacket::from_vec(frame), ip_checksum, l4_checksum });
        }
        out.len() - before
    }

    fn transmit(&mut self, header: &[u8], payload: &[Slice], offload: &TxOffload) -> Result<(), TxRefused> {
        self.check(header, payload, offload)?;
        self.queued.push(Queued { header: header.to_vec(), payload: payload.to_vec(), offload: *offload });
        Ok(())
    }

    fn flush(&mut self) -> usize {
        let queued = std::mem::take(&mut self.queued);
        let count = queued.len();
        for queued in queued {
            let bytes = gather(&queued.payload);
            self.payload_octets += bytes.len() as u64;
            if let Some(recorded) = &mut self.recorded {
                recorded.push(queued.payload.iter().map(|slice| (slice.address(), slice.len())).collect());
            }
            for frame in memory_offload::complete(&queued.header, &bytes, &queued.offload) {
                self.inject(frame);
            }
            if let Some(held) = &mut self.held {
                held.push(Held { payload: queued.payload, bytes });
            }
        }
        count
    }
}

fn gather(slices: &[Slice]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(slices.iter().map(|slice| slice.len()).sum());
    slices.iter().for_each(|slice| bytes.extend_from_slice(slice));
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::buf::PagePool;

    /// Sends 1,000 numbered frames a microsecond apart and tells what arrived when.
    fn run(seed: u64, impairments: Impairments) -> (Vec<(u64, Vec<u8>)>, LinkCounters) {
        let ends = [EndOptions::plain([2; 6], 1500); 2];
        let (link, mut a, mut b) = MemoryLink::new(seed, [impairments, Impairments::default()], ends);
        let mut arrived = Vec::new();
        for frame in 0..1_000u32 {
            link.set_now(Instant::from_nanos(u64::from(frame) * 1_000));
            a.transmit(&[&frame.to_be_bytes()[..], &[0; 96]].concat(), &[], &TxOffload::default()).unwrap();
            a.flush();
        }
        while let Some(at) = link.poll_timeout() {
            link.set_now(at);
            // One at a time: what is due later may have been passed by the clock already.
            arrived.extend(b.take_frame().map(|frame| (at.nanos(), frame)));
        }
        (arrived, link.counters(0))
    }

    fn numbers(arrived: &[(u64, Vec<u8>)]) -> Vec<u32> {
        arrived.iter().map(|(_, frame)| u32::from_be_bytes(frame[..4].try_into().unwrap())).collect()
    }

    #[test]
    fn the_same_seed_is_the_same_run_and_another_is_not() {
        let faulty = Impairments {
            loss_ppm: 50_000,
            burst_start_ppm: 10_000,
            burst_end_ppm: 200_000,
            duplicate_ppm: 30_000,
            corrupt_ppm: 30_000,
            reorder_ppm: 50_000,
            reorder_delay: Duration::from_micros(5),
            delay: Duration::from_micros(100),
            ..Impairments::default()
        };
        let (first, counters) = run(1, faulty);
        assert_eq!((&first, counters), (&run(1, faulty).0, run(1, faulty).1));
        assert_ne!(first, run(2, faulty).0);
        for count in [counters.lost, counters.duplicated, counters.corrupted, counters.reordered] {
            assert!(count > 0 && count < 300, "{counters:?}");
        }
        assert_eq!(counters.delivered, counters.sent - counters.lost + counters.duplicated);
    }

    #[test]
    fn a_perfect_link_keeps_order_and_the_delay_is_exact() {
        let (arrived, counters) = run(3, Impairments { delay: Duration::from_millis(1), ..Impairments::default() });
        assert_eq!(numbers(&arrived), (0..1_000).collect::<Vec<_>>());
        assert!(arrived.iter().zip(0..).all(|((at, _), n)| *at == n * 1_000 + 1_000_000));
        assert_eq!(counters.delivered_octets, 100_000);
    }

    #[test]
    fn loss_comes_near_its_rate_and_bursts_come_in_runs() {
        let (_, single) = run(4, Impairments { loss_ppm: 100_000, ..Impairments::default() });
        assert!((60..140).contains(&single.lost), "{single:?}");
        let (arrived, burst) = run(5, Impairments { burst_start_ppm: 5_000, burst_end_ppm: 100_000, ..Impairments::default() });
        let gaps = numbers(&arrived).windows(2).filter(|pair| pair[1] - pair[0] > 1).count();
        assert!(gaps > 0 && burst.lost > 3 * gaps as u64, "{} lost in {gaps} gaps", burst.lost);
    }

    #[test]
    fn held_back_frames_are_overtaken() {
        let late = Impairments { reorder_ppm: 100_000, reorder_delay: Duration::from_micros(3), ..Impairments::default() };
        let mut order = numbers(&run(6, late).0);
        assert!(!order.is_sorted());
        order.sort_unstable();
        assert_eq!(order, (0..1_000).collect::<Vec<_>>());
    }

    #[test]
    fn the_rate_spaces_frames_and_its_queue_is_bounded() {
        // 100 bytes take 10 us; one frame comes every us; 5 fit into the queue.
        let slow = Impairments { rate_bits_per_second: 80_000_000, queue_bytes_max: 500, ..Impairments::default() };
        let (arrived, counters) = run(7, slow);
        assert!(arrived.windows(2).all(|pair| pair[1].0 - pair[0].0 >= 10_000));
        assert_eq!(counters.delivered + counters.queue_dropped, 1_000);
        assert!((95..110).contains(&counters.delivered), "{counters:?}");
    }

    #[test]
    fn a_corrupt_frame_differs_in_one_bit() {
        let (arrived, counters) = run(8, Impairments { corrupt_ppm: 1_000_000, ..Impairments::default() });
        assert_eq!(counters.corrupted, 1_000);
        for ((_, frame), n) in arrived.iter().zip(0u32..) {
            let sent = [&n.to_be_bytes()[..], &[0; 96]].concat();
            let bits: u32 = frame.iter().zip(&sent).map(|(a, b)| (a ^ b).count_ones()).sum();
            assert_eq!(bits, 1);
        }
    }

    #[test]
    fn a_filter_drops_what_a_test_chooses() {
        let (link, mut a, mut b) = MemoryLink::perfect(1500);
        let mut seen = 0;
        link.set_filter(
            0,
            Some(Box::new(move |_| {
                seen += 1;
                seen != 2
            })),
        );
        for n in 0..3 {
            a.inject(vec![n; 20]);
        }
        assert_eq!([b.take_frame(), b.take_frame(), b.take_frame()], [Some(vec![0; 20]), Some(vec![2; 20]), None]);
        assert_eq!(link.counters(0).filtered, 1);
    }

    /// A TSO chain of 5,000 bytes in segments of 1,000, and what arrives of it.
    fn through_a_coalescing_end(change: impl Fn(&mut MemoryEnd, Vec<Vec<u8>>)) -> Vec<(Vec<u8>, usize, Checksum)> {
        use crate::wire::checksum::Sum;
        use crate::wire::{ipv4, protocol};
        let mut ends = [EndOptions::offloading([2; 6], 1500); 2];
        ends[1].rx_coalesce = Some(300);
        let (_link, mut a, mut b) = MemoryLink::new(0, [Impairments::default(); 2], ends);
        let (src, dst) = ([10, 0, 0, 1], [10, 0, 0, 2]);
        let address = |last| ethernet::Address([2, 0, 0, 0, 0, last]);
        let link = ethernet::Repr { dst: address(2), src: address(1), ethertype: ethernet::ethertype::IPV4 };
        let ip = ipv4::Repr {
            src: src.into(),
            dst: dst.into(),
            protocol: protocol::TCP,
            traffic_class: 0,
            identification: 1,
            dont_fragment: true,
            time_to_live: 64,
            payload_len: 5020,
        };
        let sum = Sum::pseudo_header_without_length(src.into(), dst.into(), protocol::TCP).partial().to_be_bytes();
        let tcp = [0, 1, 8, 1, 0xff, 0xff, 0xff, 0xff, 0, 0, 0, 9, 0x50, 0x18, 1, 0, sum[0], sum[1], 0, 0];
        let header = [&link.emit()[..], &ip.emit(), &tcp].concat();
        let payload: Vec<u8> = (0..5000).map(|n| (n % 251) as u8).collect();
        let offload = TxOffload {
            l2_len: 14,
            l3_len: 20,
            l4_len: 20,
            ip_checksum: true,
            tcp_checksum: true,
            tso_mss: Some(1000),
            ..TxOffload::default()
        };
        change(&mut a, memory_offload::complete(&header, &payload, &offload));
        let mut frames = Vec::new();
        b.receive(&mut frames);
        let flat = |frame: RxFrame| {
            let buffers = 1 + frame.packet.more.len();
            assert!(frame.packet.first.len() >= crate::net::device::HEADERS_CONTIGUOUS.min(frame.packet.len()));
            (frame.packet.into_bufs().flat_map(|buf| buf.to_vec()).collect(), buffers, frame.l4_checksum)
        };
        frames.into_iter().map(flat).collect()
    }

    #[test]
    fn a_coalescing_end_joins_what_follows_each_other() {
        let joined = through_a_coalescing_end(|a, frames| frames.into_iter().for_each(|frame| a.inject(frame)));
        let [(bytes, buffers, checksum)] = &joined[..] else { panic!("{} frames", joined.len()) };
        assert_eq!((bytes.len(), *buffers, *checksum), (5054, 17, Checksum::Good));
        assert_eq!(u16::from_be_bytes([bytes[16], bytes[17]]), 5040);
        assert!(bytes[54..].iter().enumerate().all(|(n, byte)| *byte == (n % 251) as u8));
        let mut sum = crate::wire::checksum::Sum::new();
        sum.add(&bytes[14..34]);
        assert!(sum.is_valid(), "the IPv4 header is right for the whole");
    }

    #[test]
    fn a_coalescing_end_joins_nothing_else() {
        let lens = |arrived: Vec<(Vec<u8>, usize, Checksum)>| {
            arrived.iter().map(|(bytes, _, checksum)| (bytes.len() - 54, *checksum)).collect::<Vec<_>>()
        };
        let (good, bad) = (Checksum::Good, Checksum::Bad);
        let corrupt = through_a_coalescing_end(|a, mut frames| {
            frames[2][500] ^= 1;
            frames.into_iter().for_each(|frame| a.inject(frame));
        });
        assert_eq!(lens(corrupt), [(2000, good), (1000, bad), (2000, good)]);
        let missing = through_a_coalescing_end(|a, mut frames| {
            frames.remove(1);
            frames.into_iter().for_each(|frame| a.inject(frame));
        });
        assert_eq!(lens(missing), [(1000, good), (3000, good)]);
    }

    #[test]
    fn limits_refuse_and_keep_nothing() {
        let mut end = EndOptions::plain([2; 6], 100);
        end.ring_frames = 1;
        end.capabilities.segments_per_packet_max = 2;
        let (_link, mut a, _b) = MemoryLink::new(0, [Impairments::default(); 2], [end; 2]);
        let pool = PagePool::anonymous(1, 512).unwrap();
        let slice = pool.allocate().unwrap().freeze().slice(0..50);
        let none = TxOffload::default();
        assert_eq!(a.transmit(&[0; 65], std::slice::from_ref(&slice), &none), Err(TxRefused::TooLong));
        assert_eq!(a.transmit(&[0; 14], &[slice.slice(0..1), slice.slice(1..2)], &none), Err(TxRefused::TooManySegments));
        assert_eq!(a.transmit(&[0; 64], std::slice::from_ref(&slice), &none), Ok(()));
        assert_eq!(a.transmit(&[0; 64], &[], &none), Err(TxRefused::Full));
        assert!(!slice.is_unique(), "referenced until flushed");
        a.flush();
        assert!(slice.is_unique());
        assert_eq!(a.transmit(&[0; 64], &[], &none), Ok(()));
    }

    #[test]
    fn what_is_longer_than_the_path_takes_vanishes_and_jitter_is_bounded() {
        let narrow = Impairments { path_mtu: 85, ..Impairments::default() };
        assert_eq!(run(9, narrow).1.too_long, 1_000);
        let jitter = Impairments { path_mtu: 86, jitter: Duration::from_micros(50), ..Impairments::default() };
        let (arrived, counters) = run(9, jitter);
        assert_eq!((counters.too_long, arrived.len()), (0, 1_000));
        assert!(numbers(&arrived).windows(2).any(|pair| pair[0] > pair[1]), "some are overtaken");
        assert!(
            arrived
                .iter()
                .all(|(at, frame)| *at < u64::from(u32::from_be_bytes(frame[..4].try_into().unwrap())) * 1_000 + 50_000)
        );
    }

    #[test]
    fn marks_are_for_those_who_understand_them() {
        let mut header = [0x45, 2, 0, 20, 0, 0, 0, 0, 64, 6, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2];
        let mut frame = [vec![0; 14], header.to_vec()].concat();
        assert!(mark(&mut frame, 14));
        assert_eq!(frame[15], 3);
        let mut sum = Sum::new();
        sum.add(&frame[14..]);
        assert!(sum.is_valid());
        header[1] = 0;
        let mut frame = header.to_vec();
        assert!(!mark(&mut frame, 0) && frame == header);
        let mut frame = [vec![0x60, 0x10], vec![0; 38]].concat();
        assert!(mark(&mut frame, 0) && frame[1] == 0x30 && !mark(&mut frame, 0));
    }

    #[test]
    fn addresses_are_recorded_and_slices_held_until_released() {
        let (_link, mut a, mut b) = MemoryLink::perfect(1500);
        a.record_addresses(true);
        a.hold_transmitted();
        let pool = PagePool::anonymous(1, 512).unwrap();
        let slice = pool.allocate().unwrap().freeze();
        a.transmit(&[1; 14], &[slice.slice(8..16), slice.slice(32..40)], &TxOffload::default()).unwrap();
        a.flush();
        assert_eq!(a.take_recorded(), [vec![(slice.address() + 8, 8), (slice.address() + 32, 8)]]);
        assert_eq!(b.take_frame().map(|frame| frame.len()), Some(30));
        assert!(!slice.is_unique());
        assert!(a.release_transmitted());
        assert!(slice.is_unique());
        assert_eq!(a.payload_octets(), 16);
    }
}
