//! A device that copies its frames to somebody who wants to see them, and is the device itself otherwise.
//!
//! Frames are copied as the stack sees them: received ones as the driver gave them, sent ones as they are given to the driver, so that a
//! checksum that the device fills in is not there yet and a chain that the device cuts is one frame. Off, it costs a branch for each burst
//! received and for each frame sent.
//!
//! Deliberately not here: clocks and files; a `Sink` has them.

use super::device::{Device, DeviceCapabilities, RxFrame, TxOffload, TxRefused};
use crate::buf::Slice;
use crate::wire::ethernet::{Frame, ethertype};
use crate::wire::protocol;

/// Which way a frame went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    In,
    Out,
}

/// Takes copies of frames. Called on the core's own way: must not wait.
pub trait Sink: Send {
    /// Bytes of a frame that are copied at most.
    fn bytes_max(&self) -> usize;
    /// Whether the frame that starts like this is to be copied.
    fn wants(&self, headers: &[u8]) -> bool;
    /// `original_len`: bytes of the whole frame.
    fn take(&mut self, direction: Direction, original_len: usize, bytes: Vec<u8>);
}

pub struct Captured<D> {
    device: D,
    sink: Option<Box<dyn Sink>>,
}

impl<D> Captured<D> {
    pub fn new(device: D) -> Captured<D> {
        Captured { device, sink: None }
    }

    /// The device itself.
    pub fn inner(&mut self) -> &mut D {
        &mut self.device
    }

    /// Who gets copies from now on; `None`: nobody.
    pub fn set_sink(&mut self, sink: Option<Box<dyn Sink>>) {
        self.sink = sink;
    }
}

/// Hands a frame in pieces to a sink, cut to what it takes.
#[cold]
fn copy<'a>(sink: &mut dyn Sink, direction: Direction, pieces: impl Iterator<Item = &'a [u8]> + Clone) {
    let Some(front) = pieces.clone().next() else { return };
    if !sink.wants(front) {
        return;
    }
    let len: usize = pieces.clone().map(<[u8]>::len).sum();
    let mut room = sink.bytes_max().min(len);
    let mut bytes = Vec::with_capacity(room);
    for piece in pieces {
        let taken = piece.len().min(room);
        bytes.extend_from_slice(&piece[..taken]);
        room -= taken;
    }
    sink.take(direction, len, bytes);
}

impl<D: Device> Device for Captured<D> {
    fn capabilities(&self) -> &DeviceCapabilities {
        self.device.capabilities()
    }

    #[inline]
    fn receive(&mut self, out: &mut Vec<RxFrame>) -> usize {
        let before = out.len();
        let count = self.device.receive(out);
        if let Some(sink) = &mut self.sink {
            for frame in &out[before..] {
                let bufs = std::iter::once(&frame.packet.first).chain(&frame.packet.more);
                copy(sink.as_mut(), Direction::In, bufs.map(|buf| &buf[..]));
            }
        }
        count
    }

    #[inline]
    fn transmit(&mut self, header: &[u8], payload: &[Slice], offload: &TxOffload) -> Result<(), TxRefused> {
        let result = self.device.transmit(header, payload, offload);
        if let Some(sink) = &mut self.sink
            && result.is_ok()
        {
            copy(sink.as_mut(), Direction::Out, std::iter::once(header).chain(payload.iter().map(|slice| &slice[..])));
        }
        result
    }

    #[inline]
    fn transmit_taking(&mut self, header: &[u8], payload: &mut Vec<Slice>, offload: &TxOffload) -> Result<(), TxRefused> {
        if self.sink.is_none() {
            return self.device.transmit_taking(header, payload, offload);
        }
        self.transmit(header, payload, offload)?;
        payload.clear();
        Ok(())
    }

    #[inline]
    fn flush(&mut self) -> usize {
        self.device.flush()
    }
}

/// Whether a frame is TCP or UDP from or to this port, by its headers alone. Extension headers of IPv6 are not looked through.
pub fn has_port(headers: &[u8], port: u16) -> bool {
    let Ok(frame) = Frame::new(headers) else { return false };
    let packet = frame.payload();
    let transport = match (frame.ethertype(), packet.first()) {
        (ethertype::IPV4, Some(version)) => packet.get(9).map(|protocol| (*protocol, usize::from(version & 15) * 4)),
        (ethertype::IPV6, _) => packet.get(6).map(|next| (*next, 40)),
        _ => None,
    };
    let Some((protocol::TCP | protocol::UDP, at)) = transport else { return false };
    let port_at = |at: usize| packet.get(at..at + 2).map(|bytes| u16::from_be_bytes([bytes[0], bytes[1]]));
    port_at(at) == Some(port) || port_at(at + 2) == Some(port)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::buf::PagePool;
    use crate::net::memory_link::MemoryLink;
    use std::sync::{Arc, Mutex};

    type Seen = Arc<Mutex<Vec<(Direction, usize, Vec<u8>)>>>;

    struct Keep(Seen);

    impl Sink for Keep {
        fn bytes_max(&self) -> usize {
            20
        }

        fn wants(&self, headers: &[u8]) -> bool {
            headers[0] != 0xee
        }

        fn take(&mut self, direction: Direction, original_len: usize, bytes: Vec<u8>) {
            self.0.lock().unwrap().push((direction, original_len, bytes));
        }
    }

    #[test]
    fn what_passes_is_copied_while_somebody_wants_it() {
        let (_link, left, mut right) = MemoryLink::perfect(1500);
        let mut left = Captured::new(left);
        let pool = PagePool::anonymous(1, 512).unwrap();
        let mut page = pool.allocate().unwrap();
        page.fill(7);
        let payload = [page.freeze().slice(0..100)];
        let send = |device: &mut dyn Device, first: u8| {
            device.transmit(&[first; 14], &payload, &TxOffload::default()).unwrap();
            device.flush();
        };
        let seen: Seen = Arc::default();
        send(&mut left, 1);
        left.set_sink(Some(Box::new(Keep(Arc::clone(&seen)))));
        send(&mut left, 2);
        send(&mut left, 0xee);
        send(&mut right, 3);
        let mut frames = Vec::new();
        assert_eq!(left.receive(&mut frames), 1);
        left.set_sink(None);
        send(&mut left, 4);
        let cut = |first: u8| [[first; 14].as_slice(), &[7; 6]].concat();
        let seen = std::mem::take(&mut *seen.lock().unwrap());
        assert_eq!(seen, [(Direction::Out, 114, cut(2)), (Direction::In, 114, cut(3))]);
        frames.clear();
        assert_eq!(right.receive(&mut frames), 4, "captured or not, it is sent");
    }

    #[test]
    fn a_port_is_found_behind_ipv4_options_and_in_ipv6() {
        let frame = |ethertype: u16, packet: Vec<u8>| [&[2; 12][..], &ethertype.to_be_bytes(), &packet].concat();
        let mut ipv4 = vec![0; 32];
        (ipv4[0], ipv4[9]) = (0x46, 6);
        ipv4[24..28].copy_from_slice(&[0x08, 0x01, 0, 80]);
        let ipv4 = frame(ethertype::IPV4, ipv4);
        assert!(has_port(&ipv4, 2049) && has_port(&ipv4, 80) && !has_port(&ipv4, 81));
        let mut ipv6 = vec![0; 44];
        ipv6[6] = 17;
        ipv6[42..].copy_from_slice(&[0, 111]);
        assert!(has_port(&frame(ethertype::IPV6, ipv6), 111));
        assert!(!has_port(&frame(ethertype::ARP, vec![0; 28]), 0));
        assert!(!has_port(&[0; 3], 0));
    }
}
