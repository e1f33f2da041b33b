//! Several cores: to which of them a connection belongs, and how its segments get there.
//!
//! A connection belongs to the core whose queue its hash names (`net::spread`), from its SYN on and whatever the NIC does. Where
//! the NIC hashes the same way, every segment comes to its owner and the check is all that is left of this; where it does
//! not (no RSS, a key or a table of its own), the segment is handed over: the owner's inbox gets the received buffers
//! themselves, nothing is copied. Order within a connection is kept, as all its segments come through the same queues.
//!
//! - TCP, and ICMP errors about TCP: to the owner.
//! - UDP, ICMP: served where they come in; a call over UDP needs no state that belongs to a core.
//! - ARP and neighbour discovery: each core has a table of neighbours of its own, so that sending takes no lock. What comes in on one
//!   core is copied to all others that share the port: all learn from it. ARP is answered by the one that received it.
//! - What concerns a port's addresses as a whole (duplicates; of IPv6 also routers, groups, answers to solicitations) is core 0's: it
//!   leads, and tells the others what has come of it, through a place for one message each, in which the newest takes the place of what
//!   was not read yet.
//!
//! An inbox is bounded. When it is full the frame is dropped and counted, as by a NIC whose queue is full: TCP sends it again,
//! neighbours ask again. Copies may fill a quarter of it, whatever else is in it: whoever floods the link with ARP takes no segment's place, and
//! many segments do not keep a core from learning its neighbours.
//!
//! Deliberately not here: threads, sleeping; a `Wake` is called when there is something in an inbox.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use crossbeam::queue::ArrayQueue;

use crate::buf::{RxBuf, RxPacket};
use crate::counters;
use crate::net::spread::{Spread, concerns_every_core};
use crate::net::{Ingress, PortLead, RxFrame};
use crate::wire::protocol;

/// What a core does with frames that come to another core than their own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Options {
    /// Frames that wait in one core's inbox; beyond it, frames for that core are dropped. Each may hold a driver's buffer.
    pub inbox_frames_max: usize,
    /// Frames taken from the inbox in one turn, so that the core's own queues get theirs.
    pub frames_per_turn_max: usize,
}

impl Default for Options {
    fn default() -> Options {
        Options { inbox_frames_max: 1024, frames_per_turn_max: 128 }
    }
}

/// Bytes of a frame that are copied for the other cores: what ARP and neighbour discovery need.
const COPY_BYTES_MAX: usize = 1514;

/// Part of an inbox that copies of frames about neighbours may fill.
const COPIES_SHARE: usize = 4;

/// Tells another core that its inbox holds something.
pub type Wake = Arc<dyn Fn() + Send + Sync>;

counters! {
    /// What one core counts of frames that came to another core than their own.
    pub struct SteeringCounters {
        /// Segments and ICMP errors that belong to another core and were handed over.
        handed_over,
        /// Frames dropped because the other core's inbox was full.
        inbox_full,
        /// Segments and ICMP errors taken from other cores.
        taken_over,
        /// Frames about neighbours copied to other cores, counted for each copy.
        neighbour_copies,
        /// Such copies dropped because they would have filled more than a quarter of the other core's inbox.
        neighbour_copies_dropped,
    }
}

/// What one core gives another.
enum Handed {
    /// For the transport.
    Ingress(Ingress),
    /// A copy of a frame about neighbours, received on a port that is shared.
    Neighbour { port: u16, frame: RxFrame },
}

/// The newest that the leader of a port has told one follower.
type LeadPlace = Arc<ArrayQueue<Arc<PortLead>>>;

/// What `Steering::take` found.
pub enum Taken {
    Ingress(Ingress),
    /// For the lane of this port.
    Neighbour {
        port: u16,
        frame: RxFrame,
    },
}

/// One port as one core sees it.
#[derive(Clone)]
pub struct SteeredPort {
    /// The port's number, the same on all cores.
    pub port: u16,
    /// Queue n belongs to core n.
    pub spread: Arc<Spread>,
    /// Cores that share it: those below.
    pub cores: u16,
}

struct Peer {
    inbox: Arc<Inbox>,
    wake: Wake,
    /// Something was put into its inbox since it was last woken.
    told: bool,
}

struct Inbox {
    queue: ArrayQueue<Handed>,
    /// Of what is in it.
    copies: AtomicUsize,
}

/// One core's part in it.
pub struct Steering {
    options: Options,
    core: u16,
    inbox: Arc<Inbox>,
    /// By number, this core among them.
    peers: Vec<Peer>,
    /// By lane.
    ports: Vec<SteeredPort>,
    /// By lane: the others, if this core leads the port.
    followers: Vec<Vec<(usize, LeadPlace)>>,
    /// By lane: where this core hears of the leader, if it follows.
    leads: Vec<Option<LeadPlace>>,
    counters: SteeringCounters,
}

impl Steering {
    /// One for each of `ports`, the lanes of each core; `wakes` of the same length.
    ///
    /// # Panics
    /// If the lengths differ, or a spread leads to a core that does not share the port: mistakes in the wiring.
    pub fn mesh(options: Options, ports: Vec<Vec<SteeredPort>>, wakes: &[Wake]) -> Vec<Steering> {
        assert_eq!(ports.len(), wakes.len(), "a wake-up for each core");
        let inbox = |_| Arc::new(Inbox { queue: ArrayQueue::new(options.inbox_frames_max.max(1)), copies: AtomicUsize::new(0) });
        let inboxes: Vec<Arc<Inbox>> = wakes.iter().map(inbox).collect();
        let all = ports.iter().flatten();
        assert!(all.clone().all(|port| usize::from(port.cores) <= ports.len() && port.spread.queues() <= port.cores));
        let peers = || {
            let pairs = inboxes.iter().zip(wakes);
            pairs.map(|(inbox, wake)| Peer { inbox: Arc::clone(inbox), wake: Arc::clone(wake), told: false }).collect()
        };
        let (followers, leads) = lead_places(&ports);
        let lanes = ports.into_iter().zip(followers).zip(leads);
        let cores = lanes.zip(&inboxes).enumerate();
        cores
            .map(|(core, (((ports, followers), leads), inbox))| Steering {
                options,
                core: core as u16,
                inbox: Arc::clone(inbox),
                peers: peers(),
                ports,
                followers,
                leads,
                counters: SteeringCounters::default(),
            })
            .collect()
    }

    pub fn counters(&self) -> &SteeringCounters {
        &self.counters
    }

    /// The lane of a port, by its number.
    pub fn lane_of(&self, port: u16) -> Option<usize> {
        self.ports.iter().position(|steered| steered.port == port)
    }

    /// Copies a received frame to the other cores if it says something about neighbours.
    #[inline]
    pub fn copy_to_others(&mut self, lane: usize, frame: &RxFrame) {
        if concerns_every_core(&frame.packet.first) {
            self.copy_neighbour(lane, frame);
        }
    }

    fn copy_neighbour(&mut self, lane: usize, frame: &RxFrame) {
        let Some(SteeredPort { port, cores, .. }) = self.ports.get(lane) else { return };
        let (port, cores, own) = (*port, usize::from(*cores), usize::from(self.core));
        let bufs = std::iter::once(&frame.packet.first).chain(&frame.packet.more);
        let bytes: Vec<u8> = bufs.flat_map(|buf| buf.iter().copied()).take(COPY_BYTES_MAX).collect();
        for core in (0..cores).filter(|core| *core != own) {
            let Some(inbox) = self.peers.get(core).map(|peer| Arc::clone(&peer.inbox)) else { continue };
            // Counted before it is there, so that whoever takes it has something to count down.
            if inbox.copies.fetch_add(1, Ordering::Relaxed) * COPIES_SHARE < inbox.queue.capacity() {
                let packet = RxPacket::single(RxBuf::from_vec(bytes.clone()));
                let frame = RxFrame { packet, ip_checksum: frame.ip_checksum, l4_checksum: frame.l4_checksum };
                if self.hand_over(core, Handed::Neighbour { port, frame }) {
                    self.counters.neighbour_copies += 1;
                    continue;
                }
            } else {
                self.counters.neighbour_copies_dropped += 1;
            }
            inbox.copies.fetch_sub(1, Ordering::Relaxed);
        }
    }

    /// What this core has to handle itself; anything else is on its way to its owner.
    #[inline]
    pub fn keep(&mut self, lane: usize, ingress: Ingress) -> Option<Ingress> {
        let Some(owner) = self.owner_of(lane, &ingress).filter(|owner| *owner != self.core) else { return Some(ingress) };
        if self.hand_over(usize::from(owner), Handed::Ingress(ingress)) {
            self.counters.handed_over += 1;
        }
        None
    }

    /// The core that a segment, or an error about one, belongs to; `None`: whichever has it.
    #[inline]
    fn owner_of(&self, lane: usize, ingress: &Ingress) -> Option<u16> {
        let spread = &self.ports.get(lane)?.spread;
        match ingress {
            Ingress::Tcp { src, dst, packet, .. } => {
                let [a, b, c, d] = *packet.first.first_chunk()?;
                let (from, to) = (u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d]));
                Some(spread.queue_of((*src, from), (*dst, to)))
            }
            Ingress::IcmpError(error) if error.protocol == protocol::TCP => {
                let (remote, local) = (error.remote, error.local);
                Some(spread.queue_of((remote.ip(), remote.port()), (local.ip(), local.port())))
            }
            _ => None,
        }
    }

    fn hand_over(&mut self, core: usize, handed: Handed) -> bool {
        let Some(peer) = self.peers.get_mut(core) else { return false };
        let taken = peer.inbox.queue.push(handed).is_ok();
        peer.told |= taken;
        self.counters.inbox_full += u64::from(!taken);
        taken
    }

    /// Tells the cores that follow this one on a lane's port. The newest is all that counts.
    pub fn tell_followers(&mut self, lane: usize, lead: &Arc<PortLead>) {
        for (core, place) in self.followers.get(lane).into_iter().flatten() {
            place.force_push(Arc::clone(lead));
            if let Some(peer) = self.peers.get_mut(*core) {
                peer.told = true;
            }
        }
    }

    /// What the leader of a lane's port has to tell.
    pub fn poll_lead(&mut self) -> Option<(usize, Arc<PortLead>)> {
        let heard = |place: &Option<LeadPlace>| place.as_ref()?.pop();
        self.leads.iter().enumerate().find_map(|(lane, place)| Some((lane, heard(place)?)))
    }

    /// Wakes the cores that were given something since the last call: once for a whole burst.
    pub fn wake_others(&mut self) {
        for peer in &mut self.peers {
            if std::mem::take(&mut peer.told) {
                (peer.wake)();
            }
        }
    }

    /// How many frames to take from the inbox in this turn.
    pub fn waiting(&self) -> usize {
        self.inbox.queue.len().min(self.options.frames_per_turn_max)
    }

    /// The next frame that another core has handed over.
    pub fn take(&mut self) -> Option<Taken> {
        match self.inbox.queue.pop()? {
            Handed::Ingress(ingress) => {
                self.counters.taken_over += 1;
                Some(Taken::Ingress(ingress))
            }
            Handed::Neighbour { port, frame } => {
                self.inbox.copies.fetch_sub(1, Ordering::Relaxed);
                Some(Taken::Neighbour { port, frame })
            }
        }
    }
}

/// For each core, by lane: those that follow it, and where it hears of the core it follows. A port's first core leads.
#[allow(clippy::type_complexity, reason = "both ends of the same places, by core and lane")]
fn lead_places(ports: &[Vec<SteeredPort>]) -> (Vec<Vec<Vec<(usize, LeadPlace)>>>, Vec<Vec<Option<LeadPlace>>>) {
    let mut followers: Vec<Vec<Vec<_>>> = ports.iter().map(|lanes| vec![Vec::new(); lanes.len()]).collect();
    let mut leads: Vec<Vec<Option<LeadPlace>>> = ports.iter().map(|lanes| vec![None; lanes.len()]).collect();
    let Some(first) = ports.first() else { return (followers, leads) };
    for (core, lanes) in ports.iter().enumerate().skip(1) {
        for (lane, steered) in lanes.iter().enumerate() {
            let Some(led) = first.iter().position(|port| port.port == steered.port) else { continue };
            let place: LeadPlace = Arc::new(ArrayQueue::new(1));
            followers[0][led].push((core, Arc::clone(&place)));
            leads[core][lane] = Some(place);
        }
    }
    (followers, leads)
}
