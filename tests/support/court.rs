//! Brings the frames of a memory link before the judge of the simulator of TCP alone (`judge`): one for each connection.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hasher};
use std::net::IpAddr;
use std::rc::Rc;

use nfsplice::net::memory_link::{Fate, MemoryLink, Tap};
use nfsplice::time::Instant;
use nfsplice::wire::{ethernet, ipv4, ipv6, protocol};

use super::judge::{Judge, Terms};
use super::{CLIENT, SERVER};

/// Everything is lenient that memory at the ends, the order of frames, what lies between TCP and the link (neighbours that are not known
/// yet, a full ring) or the turns of a loop have a say in.
#[derive(Clone)]
pub struct Court {
    mtu: usize,
    /// By the client's port: the SYN's number, and the judge.
    judges: Rc<RefCell<BTreeMap<u16, (u32, Judge)>>>,
    seen: Rc<RefCell<Option<Vec<Seen>>>>,
    /// Every segment is printed.
    traces: bool,
}

/// A frame of one end, what became of it, and when.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seen {
    pub at: Instant,
    pub from: usize,
    pub fate: Fate,
    /// Of its bytes.
    pub hash: u64,
}

/// Addresses, TCP octets and ECN bits of a frame.
fn segment(frame: &[u8]) -> Option<([IpAddr; 2], &[u8], u8)> {
    let link = ethernet::Frame::new(frame).ok()?;
    let payload = frame.get(link.header_len()..)?;
    match link.ethertype() {
        ethernet::ethertype::IPV4 => {
            let packet = ipv4::Packet::new(payload, payload.len()).ok()?;
            let tcp = payload.get(packet.header_len()..packet.total_len())?;
            let addresses = [packet.src().into(), packet.dst().into()];
            (packet.protocol() == protocol::TCP).then_some((addresses, tcp, packet.traffic_class() & 3))
        }
        ethernet::ethertype::IPV6 => {
            let packet = ipv6::Packet::new(payload, payload.len()).ok()?;
            let chain = packet.chain().ok().filter(|chain| chain.protocol == protocol::TCP)?;
            let tcp = payload.get(chain.offset..packet.total_len())?;
            Some(([packet.src().into(), packet.dst().into()], tcp, packet.traffic_class() & 3))
        }
        _ => None,
    }
}

impl Court {
    /// Looks at both directions of the link from now on.
    pub fn of(link: &MemoryLink, mtu: u16) -> Court {
        let court = Court {
            mtu: usize::from(mtu),
            judges: Rc::default(),
            seen: Rc::default(),
            traces: std::env::var_os("SIM_TRACE").is_some_and(|how| how == "segments"),
        };
        for side in [CLIENT, SERVER] {
            link.set_tap(side, Some(court.tap(side)));
        }
        court
    }

    fn tap(&self, from: usize) -> Tap {
        let court = self.clone();
        Box::new(move |fate, now, frame| {
            if let Some(seen) = &mut *court.seen.borrow_mut() {
                let mut hasher = DefaultHasher::new();
                hasher.write(frame);
                seen.push(Seen { at: now, from, fate, hash: hasher.finish() });
            }
            let Some((addresses, tcp, ecn)) = segment(frame) else { return };
            let (Some(ports), Some(seq), Some(flags)) = (tcp.get(..4), tcp.get(4..8), tcp.get(13)) else { return };
            let at = if from == CLIENT { 0 } else { 2 };
            let port = u16::from_be_bytes([ports[at], ports[at + 1]]);
            let seq = u32::from_be_bytes([seq[0], seq[1], seq[2], seq[3]]);
            if court.traces {
                let (name, header) = (["client", "server"][from], (usize::from(tcp[12] >> 4) * 4).clamp(20, tcp.len()));
                let number = |at: usize| u32::from_be_bytes([tcp[at], tcp[at + 1], tcp[at + 2], tcp[at + 3]]);
                let window = u16::from_be_bytes([tcp[14], tcp[15]]);
                eprintln!(
                    "{:>12} {fate:?} from {name} {port} flags {flags:02x} seq {seq} len {} ack {} win {window} ecn {ecn} {:02x?}",
                    now.nanos() / 1000,
                    tcp.len() - header,
                    number(8),
                    &tcp[20..header],
                    seq = number(4),
                );
            }
            let mut judges = court.judges.borrow_mut();
            let opens = fate == Fate::Sent && from == CLIENT && flags & 0x12 == 0x02;
            if opens && judges.get(&port).is_none_or(|(first, _)| *first != seq) {
                let terms = Terms { mtu: [court.mtu; 2], ample: [false; 2], orderly: false, bare: false };
                judges.insert(port, (seq, Judge::new(terms)));
            }
            // What was spoilt on the way may have any port.
            let Some((_, judge)) = judges.get_mut(&port) else { return };
            match fate {
                Fate::Sent => judge.sends(now.nanos(), from, addresses, tcp, ecn),
                Fate::Lost => judge.loses(from, tcp),
                Fate::Delivered => judge.delivers(now.nanos(), 1 - from, addresses, tcp, ecn),
            }
            if let Some(fault) = judge.faults.first() {
                panic!("port {port}: {fault}");
            }
        })
    }

    /// From now on each frame is written down, whatever it carries.
    pub fn write_down(&self) {
        self.seen.borrow_mut().get_or_insert_default();
    }

    /// What was.
    pub fn written_down(&self) -> Vec<Seen> {
        self.seen.borrow_mut().take().unwrap_or_default()
    }

    /// Of each connection: segments with new text, and repeated ones that had arrived, of both ends.
    pub fn repetitions(&self) -> Vec<[super::judge::Tally; 2]> {
        self.judges.borrow().values().map(|(_, judge)| [CLIENT, SERVER].map(|end| judge.tally(end))).collect()
    }
}
