//! Looks at the frames that the server sends and holds it to this: what was sent once at a place of a stream is what is sent
//! there ever after, however late and however cut.

use std::cell::RefCell;
use std::collections::{BTreeSet, HashMap};
use std::rc::Rc;

use nfsplice::net::memory_link::Filter;
use nfsplice::wire::tcp::{Flags, Repr};
use nfsplice::wire::{ethernet, ipv4, ipv6, protocol};

/// Most bytes of one connection that are looked at.
const BYTES_MAX: usize = 1 << 30;

/// One connection's bytes from the server, by place.
#[derive(Default)]
struct Sent {
    /// The sequence number before the first byte; that of the SYN, or what stands in for it where it was not seen.
    initial: Option<u32>,
    bytes: Vec<u8>,
    /// Places within that were passed over so far.
    unseen: BTreeSet<usize>,
    repeated: u64,
}

#[derive(Clone, Default)]
pub struct Witness {
    /// By the client's port.
    streams: Rc<RefCell<HashMap<u16, Sent>>>,
}

/// Header and payload of a TCP segment in a frame.
pub fn segment(frame: &[u8]) -> Option<(Repr, &[u8])> {
    let link = ethernet::Frame::new(frame).ok()?;
    let payload = frame.get(link.header_len()..)?;
    let tcp = match link.ethertype() {
        ethernet::ethertype::IPV4 => {
            let packet = ipv4::Packet::new(payload, payload.len()).ok()?;
            payload.get(packet.header_len()..packet.total_len())?
        }
        ethernet::ethertype::IPV6 => {
            let packet = ipv6::Packet::new(payload, payload.len()).ok()?;
            let chain = packet.chain().ok().filter(|chain| chain.protocol == protocol::TCP)?;
            payload.get(chain.offset..packet.total_len())?
        }
        _ => return None,
    };
    let (repr, header_len) = Repr::parse(tcp).ok()?;
    Some((repr, &tcp[header_len..]))
}

impl Witness {
    /// A filter for the server's side: everything passes that `pass` lets pass, and is looked at first.
    pub fn filter(&self, mut pass: impl FnMut(&Repr, &[u8]) -> bool + 'static) -> Filter {
        let witness = self.clone();
        Box::new(move |frame| match segment(frame) {
            Some((repr, payload)) => {
                witness.see(&repr, payload);
                pass(&repr, payload)
            }
            None => true,
        })
    }

    fn see(&self, repr: &Repr, payload: &[u8]) {
        let mut streams = self.streams.borrow_mut();
        let sent = streams.entry(repr.dst_port).or_default();
        if repr.flags.contains(Flags::SYN) {
            if sent.initial != Some(repr.seq.0) {
                *sent = Sent { initial: Some(repr.seq.0), ..Sent::default() };
            }
            return;
        }
        if payload.is_empty() {
            return;
        }
        let initial = *sent.initial.get_or_insert(repr.seq.0.wrapping_sub(1));
        let start = repr.seq.0.wrapping_sub(initial).wrapping_sub(1) as usize;
        // Before the place where looking began.
        if start > BYTES_MAX {
            return;
        }
        let known = sent.bytes.len();
        if start > known {
            sent.unseen.extend(known..start);
            sent.bytes.resize(start, 0);
        }
        let (again, new) = payload.split_at(payload.len().min(known.saturating_sub(start)));
        for place in start..start + again.len() {
            if !sent.unseen.is_empty() && sent.unseen.remove(&place) {
                sent.bytes[place] = again[place - start];
            } else {
                sent.repeated += 1;
            }
        }
        assert!(sent.bytes[start..start + again.len()] == *again, "what was sent to port {} has changed", repr.dst_port);
        sent.bytes.extend_from_slice(new);
    }

    /// Bytes that were sent to a port more than once.
    pub fn repeated(&self, port: u16) -> u64 {
        self.streams.borrow().get(&port).map_or(0, |sent| sent.repeated)
    }
}
