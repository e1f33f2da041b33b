//! Two devices that are connected directly and do what a good NIC does, at no cost that grows with bytes: a chain is taken by
//! cloning its slices, checksums and TSO are the device's. What one end sends is made into frames when the other end asks,
//! and neither `transmit` nor `flush` allocates once it is warm: what a turn of the server costs is the server's.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::rc::Rc;

use nfsplice::buf::{Checksum, RxPacket, Slice};
use nfsplice::net::device::{Device, DeviceCapabilities, RxFrame, TxOffload, TxRefused};
use nfsplice::net::memory_link::EndOptions;
use nfsplice::net::memory_offload;
use nfsplice::time::Instant;

use super::Cable;

/// Chains in a ring.
const RING: usize = 1024;
const HEADER_MAX: usize = 160;
/// Frames prepared for a `receive`.
const BURST: usize = 64;

struct Sent {
    header: [u8; HEADER_MAX],
    header_len: usize,
    payload: Vec<Slice>,
    offload: TxOffload,
}

/// What one direction did since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Frames and TSO chains.
    pub chains: u64,
    /// Buffers of these, headers included.
    pub segments: u64,
    pub payload_bytes: u64,
}

#[derive(Default)]
struct Direction {
    ring: VecDeque<Sent>,
    /// Records whose memory is used again.
    spare: Vec<Sent>,
    /// Made by `Wire::deliver`, outside the receiver's turn.
    frames: VecDeque<RxFrame>,
    /// A chain arrives as one frame, as from a receiver that coalesces (LRO, GRO): one acknowledgement for each.
    coalesced: bool,
    traffic: Traffic,
}

/// The two directions; direction `n` is what side `n` sends.
#[derive(Clone, Default)]
pub struct Wire {
    directions: Rc<RefCell<[Direction; 2]>>,
}

pub struct ReferenceNic {
    wire: Wire,
    side: usize,
    capabilities: DeviceCapabilities,
    /// Chains since the last flush.
    queued: usize,
}

impl Wire {
    pub fn pair(ends: [EndOptions; 2]) -> (Wire, ReferenceNic, ReferenceNic) {
        let wire = Wire::default();
        for direction in wire.directions.borrow_mut().iter_mut() {
            direction.ring.reserve(RING);
            direction.frames.reserve(RING);
            direction.spare.extend((0..RING).map(|_| Sent {
                header: [0; HEADER_MAX],
                header_len: 0,
                payload: Vec::with_capacity(256),
                offload: TxOffload::default(),
            }));
        }
        let end = |side: usize, options: &EndOptions| ReferenceNic {
            wire: wire.clone(),
            side,
            capabilities: options.capabilities,
            queued: 0,
        };
        let (a, b) = (end(0, &ends[0]), end(1, &ends[1]));
        (wire, a, b)
    }

    pub fn traffic(&self, side: usize) -> Traffic {
        self.directions.borrow()[side].traffic
    }

    /// From now on what `side` sends arrives in as few frames as it was sent in.
    pub fn coalesce(&self, side: usize) {
        self.directions.borrow_mut()[side].coalesced = true;
    }

    /// Makes frames of what `from` has sent: the DMA. To be called outside of what is measured; `receive` of the other side
    /// does it where it was not.
    pub fn deliver(&self, from: usize) {
        let direction = &mut self.directions.borrow_mut()[from];
        while let Some(mut sent) = direction.ring.pop_front() {
            let payload = sent.payload.iter().map(|slice| &slice[..]).collect::<Vec<_>>().concat();
            if direction.coalesced {
                // The checksums are not filled in; the receiving device says that they are good.
                sent.offload = TxOffload::default();
            }
            for bytes in memory_offload::complete(&sent.header[..sent.header_len], &payload, &sent.offload) {
                let packet = RxPacket::from_vec(bytes);
                direction.frames.push_back(RxFrame { packet, ip_checksum: Checksum::Good, l4_checksum: Checksum::Good });
            }
            sent.payload.clear();
            direction.spare.push(sent);
        }
    }
}

impl Cable for Wire {
    fn set_now(&self, _: Instant) {}

    fn poll_timeout(&self) -> Option<Instant> {
        None
    }
}

impl Device for ReferenceNic {
    fn capabilities(&self) -> &DeviceCapabilities {
        &self.capabilities
    }

    fn receive(&mut self, out: &mut Vec<RxFrame>) -> usize {
        // The client's frames are put together here; the server's have been by the client's `flush`.
        if self.side == super::CLIENT {
            self.wire.deliver(super::SERVER);
        }
        let direction = &mut self.wire.directions.borrow_mut()[1 - self.side];
        let count = direction.frames.len().min(BURST);
        out.extend(direction.frames.drain(..count));
        count
    }

    fn transmit(&mut self, header: &[u8], payload: &[Slice], offload: &TxOffload) -> Result<(), TxRefused> {
        let capabilities = &self.capabilities;
        let segments = 1 + payload.len();
        let segments_max = match offload.tso_mss {
            Some(_) => capabilities.segments_tso_max,
            None => capabilities.segments_per_packet_max,
        };
        if segments > usize::from(segments_max) {
            return Err(TxRefused::TooManySegments);
        }
        let direction = &mut self.wire.directions.borrow_mut()[self.side];
        let Some(mut sent) = direction.spare.pop() else { return Err(TxRefused::Full) };
        sent.header[..header.len()].copy_from_slice(header);
        (sent.header_len, sent.offload) = (header.len(), *offload);
        sent.payload.extend(payload.iter().cloned());
        direction.traffic.chains += 1;
        direction.traffic.segments += segments as u64;
        direction.traffic.payload_bytes += payload.iter().map(|slice| slice.len() as u64).sum::<u64>();
        direction.ring.push_back(sent);
        self.queued += 1;
        Ok(())
    }

    fn flush(&mut self) -> usize {
        if self.side == super::CLIENT {
            self.wire.deliver(super::CLIENT);
        }
        std::mem::take(&mut self.queued)
    }
}
