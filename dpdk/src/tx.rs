//! A transmit queue: headers copied in, payload by reference, chains handed to the driver in bursts.
//!
//! A chain's payload is released by DPDK when its last buffer is freed, through the object of `hold`. When that is, the
//! driver decides: most free finished buffers only while sending more, so **an idle queue keeps the pages of the last
//! chains** (measured on virtio-user: 4 to 16 pages long after the peer had everything). [`TxQueue::reclaim`] asks the
//! driver to hurry; no virtual device, mlx5 or vmxnet3 can. Nothing may wait for these pages without sending.
//!
//! Deliberately not here: segmentation and the choice of what fits; what does not fit is refused.

use std::sync::Arc;

use dpdk_sys as sys;

use crate::{
    chain::{MAX_CHAIN_PIECES, MAX_PIECE_BYTES, TxOffload, TxPayload, TxRefused},
    hold::HoldList,
    port::{OpenPort, TxPools},
    stats::TxCounters,
};

/// Chains the backlog holds at most, between `push` and the driver.
pub const MAX_QUEUED_CHAINS: usize = 512;
/// Chains per call to the driver at most.
pub const MAX_BURST_CHAINS: usize = 32;
/// Segments per call to the driver at most: freed together, they must not overflow the pools' per-core caches (512).
pub const MAX_BURST_SEGMENTS: usize = 256;

/// One transmit queue. `Send`, not `Sync`: one core feeds it. Dropping it releases the backlog; what the driver has is
/// released at the latest when the port is closed.
pub struct TxQueue<H: TxPayload> {
    port: Arc<OpenPort>,
    queue: u16,
    holds: HoldList<H>,
    /// The driver frees the buffers of a chain together: only the last one tells that it is done.
    freed_whole: bool,
    /// Scratch for `push`.
    given: Vec<H>,
    /// Scratch for the chain being built.
    pieces: Vec<sys::nfsplice_piece>,
    /// Built chains the driver has not taken, oldest first.
    backlog: Vec<*mut sys::rte_mbuf>,
    /// Their segments: a chain may not be looked at once the driver has it.
    backlog_segments: Vec<u16>,
    /// How many of the oldest have passed the driver's prepare step.
    prepared: usize,
    counters: TxCounters,
}

// SAFETY: the backlog's mbufs are owned by this value and may be used from any one thread at a time; payload is Send.
unsafe impl<H: TxPayload> Send for TxQueue<H> {}

impl<H: TxPayload> TxQueue<H> {
    pub(crate) fn new(port: Arc<OpenPort>, queue: u16) -> TxQueue<H> {
        let holds = HoldList::new(port.tx_pools[usize::from(queue)].header.shape().buffers as usize);
        TxQueue {
            freed_whole: port.capabilities.frees_chains_whole,
            port,
            queue,
            holds,
            given: Vec::new(),
            pieces: Vec::with_capacity(MAX_CHAIN_PIECES),
            backlog: Vec::with_capacity(MAX_QUEUED_CHAINS),
            backlog_segments: Vec::with_capacity(MAX_QUEUED_CHAINS),
            prepared: 0,
            counters: TxCounters::default(),
        }
    }

    /// Queues `header` (copied) and `payload` (by reference) as one packet for the next [`TxQueue::flush`]. Empty pieces
    /// are released at once. On refusal everything given is released and nothing is queued.
    pub fn push(&mut self, header: &[u8], payload: impl IntoIterator<Item = H>, offload: &TxOffload) -> Result<(), TxRefused> {
        self.queue_all(header, payload, offload, How::ByReference)
    }

    /// `push` of all of `payload`, which is left empty, its capacity with the caller. Refused: it is untouched.
    pub fn push_taking(&mut self, header: &[u8], payload: &mut Vec<H>, offload: &TxOffload) -> Result<(), TxRefused> {
        let result = self.queue_chain(header, payload, offload, How::ByReference);
        self.count_refusal(result)
    }

    /// The same packet as by `push`, with the payload copied into fresh buffers and released at once: the baseline to measure
    /// `push` against, and the only way on devices that take no chains.
    pub fn push_copy(
        &mut self,
        header: &[u8],
        payload: impl IntoIterator<Item = H>,
        offload: &TxOffload,
    ) -> Result<(), TxRefused> {
        self.queue_all(header, payload, offload, How::Copied)
    }

    fn queue_all(
        &mut self,
        header: &[u8],
        payload: impl IntoIterator<Item = H>,
        offload: &TxOffload,
        how: How,
    ) -> Result<(), TxRefused> {
        let mut given = std::mem::take(&mut self.given);
        given.extend(payload);
        let result = self.queue_chain(header, &mut given, offload, how);
        given.clear();
        self.given = given;
        self.count_refusal(result)
    }

    fn count_refusal(&mut self, result: Result<(), TxRefused>) -> Result<(), TxRefused> {
        if let Err(refused) = result {
            if refused.is_temporary() {
                self.counters.refused_for_room += 1;
            } else {
                self.counters.refused_for_shape += 1;
            }
        }
        result
    }

    /// Takes all of `payload`, or refuses and leaves it as it is.
    fn queue_chain(&mut self, header: &[u8], payload: &mut Vec<H>, offload: &TxOffload, how: How) -> Result<(), TxRefused> {
        if self.backlog.len() >= MAX_QUEUED_CHAINS {
            return Err(TxRefused::QueueFull);
        }
        offload.check(header.len())?;
        let flags = self.port.offload_flags(offload)?;
        let pools = &self.port.tx_pools[usize::from(self.queue)];
        let header_room = usize::from(how.header_room(pools));
        if header.len() > header_room {
            return Err(TxRefused::HeaderTooLong { bytes: header.len(), limit: header_room });
        }

        self.pieces.clear();
        let mut payload_bytes = 0;
        for piece in payload.iter() {
            let bytes = piece.len();
            if bytes > MAX_PIECE_BYTES {
                return Err(TxRefused::PieceTooLong { bytes });
            }
            if bytes == 0 {
                continue;
            }
            if self.pieces.len() == MAX_CHAIN_PIECES {
                return Err(TxRefused::TooManySegments { segments: MAX_CHAIN_PIECES + 2, limit: MAX_CHAIN_PIECES + 1 });
            }
            // Where the bytes lie does not depend on where `piece` does, by TxPayload's contract.
            self.pieces.push(sys::nfsplice_piece { address: piece.as_ptr().cast(), iova: piece.iova(), length: bytes as u32 });
            payload_bytes += bytes;
        }

        let segments = match how {
            How::ByReference => self.pieces.len() + 1,
            How::Copied => (header.len() + payload_bytes).div_ceil(usize::from(pools.copy.shape().room)).max(1),
        };
        let lengths = self.pieces.iter().map(|piece| piece.length as usize);
        self.port.check_shape(segments, header.len() + payload_bytes, lengths, offload)?;

        let count = self.pieces.len() as u16;
        let request = sys::nfsplice_offload {
            flags,
            l2_len: u16::from(offload.l2_len),
            l3_len: offload.l3_len,
            l4_len: u16::from(offload.l4_len),
            tso_segsz: offload.tso_mss.unwrap_or(0),
        };
        let mut hold = match how {
            How::ByReference if count > 0 => Some(self.holds.take().ok_or(TxRefused::NoBuffer)?),
            _ => None,
        };
        let info = hold.as_mut().map_or(std::ptr::null_mut(), |hold| hold.info());
        // SAFETY: the pools live as long as the process uses DPDK; the header fits its room; `pieces` describes bytes
        // that `payload` keeps valid by TxPayload's contract, and the hold once this has succeeded, each 1..=65535 long; `info`
        // is the hold's own and non-null when there are pieces. Nothing of it is kept when NULL comes back.
        let chain = unsafe {
            let (header_at, header_bytes) = (header.as_ptr().cast(), header.len() as u16);
            let pieces = self.pieces.as_ptr();
            match how {
                How::ByReference => sys::nfsplice_chain_ext(
                    pools.header.as_ptr(),
                    pools.piece.as_ptr(),
                    header_at,
                    header_bytes,
                    pieces,
                    count,
                    info,
                    self.freed_whole,
                    &request,
                ),
                How::Copied => sys::nfsplice_chain_copy(
                    pools.copy.as_ptr(),
                    pools.copy.shape().room,
                    header_at,
                    header_bytes,
                    pieces,
                    count,
                    &request,
                ),
            }
        };
        if chain.is_null() {
            return Err(TxRefused::NoBuffer);
        }
        match hold {
            Some(mut hold) => {
                if payload.len() > usize::from(count) {
                    payload.retain(|piece| !piece.is_empty());
                }
                let taken = hold.take_all(payload);
                debug_assert!(taken, "as many as there are pieces");
                // The chain's free callback releases the payload from here on.
                hold.given_away();
                self.counters.payload_bytes_referenced += payload_bytes as u64;
            }
            None => {
                payload.clear();
                self.counters.payload_bytes_copied += payload_bytes as u64;
            }
        }
        self.backlog.push(chain);
        self.backlog_segments.push(segments as u16);
        Ok(())
    }

    /// Hands the backlog to the driver, as far as its ring has room; the rest stays queued. Returns how many chains went.
    pub fn flush(&mut self) -> usize {
        if self.backlog.is_empty() {
            return 0;
        }
        let (mut at, mut sent_in_all) = (0, 0);
        while at < self.backlog.len() {
            let mut count = self.burst_from(at);
            if self.prepared < at + count && !self.prepare(at + count) {
                count = self.prepared - at;
                if count == 0 {
                    continue;
                }
            }
            let burst = self.backlog[at..at + count].as_mut_ptr();
            let _sending = self.holds.sending();
            // SAFETY: `count` chains owned by this value; those the driver takes are its own from here on and are
            // taken off the backlog below. The queue is set up and fed by this value alone.
            let sent = unsafe { sys::nfsplice_tx_burst(self.port.id, self.queue, burst, count as u16) };
            let sent = usize::from(sent);
            if sent > 0 {
                let segments = &self.backlog_segments[at..at + sent];
                self.counters.segments += segments.iter().map(|&count| u64::from(count)).sum::<u64>();
                self.counters.chains += sent as u64;
                self.counters.bursts += 1;
            }
            at += sent;
            sent_in_all += sent;
            if sent < count {
                self.counters.descriptors_full += 1;
                break;
            }
        }
        self.backlog.drain(..at);
        self.backlog_segments.drain(..at);
        self.prepared = self.prepared.saturating_sub(at);
        sent_in_all
    }

    /// How many chains from `at` on go into one call.
    fn burst_from(&self, at: usize) -> usize {
        let mut segments = 0;
        let fits = |&&count: &&u16| {
            segments += usize::from(count);
            segments <= MAX_BURST_SEGMENTS
        };
        self.backlog_segments[at..].iter().take(MAX_BURST_CHAINS).take_while(fits).count().max(1)
    }

    /// Lets the driver check and complete the chains up to `end`. False when it refused one: that one is released and
    /// those before it are prepared.
    fn prepare(&mut self, end: usize) -> bool {
        let burst = &mut self.backlog[self.prepared..end];
        // SAFETY: chains owned by this value; the driver edits headers in their first segments, which were copied in.
        let passed = unsafe { sys::nfsplice_tx_prepare(self.port.id, self.queue, burst.as_mut_ptr(), burst.len() as u16) };
        self.prepared += usize::from(passed).min(burst.len());
        if self.prepared == end {
            return true;
        }
        self.counters.refused_by_prepare += 1;
        let refused = self.backlog.remove(self.prepared);
        self.backlog_segments.remove(self.prepared);
        // SAFETY: owned, and just taken off the backlog.
        unsafe { sys::nfsplice_mbuf_free(refused) };
        false
    }

    /// Asks the driver to release what it has finished sending; how many packets that were, or None when the driver
    /// cannot (see the head of this file).
    pub fn reclaim(&mut self) -> Option<usize> {
        // SAFETY: a started port and one of its queues, fed by this value alone.
        let freed = unsafe { sys::rte_eth_tx_done_cleanup(self.port.id, self.queue, 0) };
        usize::try_from(freed).ok()
    }

    /// Chains waiting for the driver.
    pub fn backlog(&self) -> usize {
        self.backlog.len()
    }

    /// Chains [`TxQueue::push`] will still take before a flush.
    pub fn backlog_room(&self) -> usize {
        MAX_QUEUED_CHAINS - self.backlog.len()
    }

    /// Chains whose payload is still referenced by this queue, its driver or a peer on net_ring. Walks the free lists.
    pub fn holds_outstanding(&mut self) -> usize {
        self.holds.outstanding()
    }

    /// Buffers of this queue's pools that are not home: (header, payload, copy). Slow; for statistics and tests.
    pub fn buffers_in_use(&self) -> (u32, u32, u32) {
        let pools = &self.port.tx_pools[usize::from(self.queue)];
        (pools.header.in_use(), pools.piece.in_use(), pools.copy.in_use())
    }

    /// This queue's number.
    pub fn index(&self) -> u16 {
        self.queue
    }

    /// Counters since the queue was made.
    pub fn counters(&self) -> TxCounters {
        self.counters
    }
}

#[derive(Clone, Copy)]
enum How {
    ByReference,
    Copied,
}

impl How {
    fn header_room(self, pools: &TxPools) -> u16 {
        match self {
            How::ByReference => pools.header.shape().room,
            How::Copied => pools.copy.shape().room,
        }
    }
}

impl<H: TxPayload> Drop for TxQueue<H> {
    fn drop(&mut self) {
        for chain in self.backlog.drain(..) {
            // SAFETY: owned: the driver has not taken it.
            unsafe { sys::nfsplice_mbuf_free(chain) };
        }
    }
}

impl<H: TxPayload> std::fmt::Debug for TxQueue<H> {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("TxQueue")
            .field("port", &self.port.name)
            .field("queue", &self.queue)
            .field("backlog", &self.backlog.len())
            .finish()
    }
}
