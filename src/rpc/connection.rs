//! What the RPC server knows of each connection: its place in the stream, what it owes, whether it may ask for more.
//!
//! Read first: include/linux/sunrpc/svc_xprt.h for the shape (`xpt_reserved`, XPT_PEER_VALID). Deliberately not here: bytes,
//! which stay in TCP's chain, and replies, which go through the server's one queue.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};

use super::auth::LastCredential;
use super::options::Options;
use super::programs::Peer;
use super::record::RecordReader;
use crate::time::{Duration, Instant};

/// Names a connection between the shard and the RPC server. Chosen by the shard, never used twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ConnectionKey(pub u64);

/// For keys that are the shard's own numbers, which no peer can steer: one multiplication (Fibonacci hashing) spreads the few
/// bits in which they differ over the whole word.
#[derive(Clone, Copy, Default)]
pub struct OwnNumberHasher(u64);

impl Hasher for OwnNumberHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.write_u64(u64::from(*byte));
        }
    }

    fn write_u64(&mut self, number: u64) {
        self.0 = (self.0 ^ number).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(32);
    }
}

/// A slot and its generation: stays dead when the slot is used again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConnectionId {
    slot: u32,
    generation: u32,
}

/// Why no further record is taken from a connection for now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stall {
    /// The connection has `calls_in_flight_max` calls waiting.
    CallsInFlight,
    /// The reply might need this many bytes more than the connection's send queue may hold.
    SendQueue { need: u64 },
    /// The core has no room: fragment pages or call slots are used up. Tried again after a while.
    Core,
}

/// Bytes of replies that a connection may owe before its peer has presented a usable file handle. Anybody can make calls and
/// acknowledge none of the replies, and what holds those is the room that everybody's replies need.
const UNAUTHENTICATED_BYTES_MAX: u64 = 64 << 10;

/// The two limits of one connection.
#[derive(Clone, Copy, Debug)]
pub struct ConnectionLimits {
    pub calls_in_flight_max: u32,
    pub send_queue_bytes_max: u64,
}

pub struct Connection {
    pub key: ConnectionKey,
    pub peer: Peer,
    pub reader: RecordReader,
    pub last_credential: LastCredential,
    /// When the first byte of a record that is still incomplete was seen.
    pub record_since: Option<Instant>,
    /// Bytes of it that have come.
    pub record_bytes: u64,
    pub last_active: Instant,
    /// Parked calls.
    pub in_flight: u32,
    /// Bytes that the replies of parked calls may need.
    pub reserved: u64,
    /// Bytes of replies in the server's queue.
    pub queued: u64,
    /// Bytes in TCP's send queue, as far as known.
    pub backlog: u64,
    /// Bytes of replies that were handed to TCP, ever.
    pub handed: u64,
    /// How many of them had been by `marked_at`. Until they are acknowledged, some reply has waited for so long at least.
    mark: u64,
    marked_at: Instant,
    /// The peer has presented a file handle it may use (XPT_PEER_VALID).
    valid: bool,
    /// Neighbours in the list of connections that are not valid, in order of arrival.
    previous: u32,
    next: u32,
    pub stalled: Option<Stall>,
    /// Stands in the queue of connections to be resumed.
    pub resumable: bool,
    /// Stands in the queue of connections that wait for room in their send queues.
    pub backlogged: bool,
    /// Stands in the list of connections that wait for the core.
    pub starved: bool,
    /// The peer will send nothing more.
    pub finished: bool,
    /// ... and everything it sent was taken.
    pub drained: bool,
}

impl Connection {
    fn new(now: Instant, key: ConnectionKey, peer: Peer) -> Connection {
        Connection {
            key,
            peer,
            reader: RecordReader::default(),
            last_credential: LastCredential::default(),
            record_since: None,
            record_bytes: 0,
            last_active: now,
            in_flight: 0,
            reserved: 0,
            queued: 0,
            backlog: 0,
            handed: 0,
            mark: 0,
            marked_at: now,
            valid: false,
            previous: NONE,
            next: NONE,
            stalled: None,
            resumable: false,
            backlogged: false,
            starved: false,
            finished: false,
            drained: false,
        }
    }

    /// Bytes of replies that are, or may come to be, somewhere between the programs and the peer's acknowledgement.
    pub fn outstanding(&self) -> u64 {
        self.reserved + self.queued + self.backlog
    }

    /// TCP has `bytes` of its replies that the peer has not acknowledged.
    pub fn note_backlog(&mut self, now: Instant, bytes: u64) {
        self.backlog = bytes;
        if self.handed.saturating_sub(bytes) >= self.mark {
            (self.mark, self.marked_at) = (self.handed, now);
        }
    }

    /// For how long, at least, its peer has left a reply unacknowledged, as far as the backlog is known.
    pub fn owes_for(&self, now: Instant) -> Duration {
        let acknowledged = self.handed.saturating_sub(self.backlog);
        if acknowledged < self.mark { now.since(self.marked_at) } else { Duration::ZERO }
    }

    /// Whether a call may be taken whose reply has at most `need` bytes. A connection that owes nothing may always ask:
    /// a single reply larger than the limit must not block it for ever.
    #[inline]
    pub fn admits(&self, limits: &ConnectionLimits, need: u64) -> Result<(), Stall> {
        if self.in_flight >= limits.calls_in_flight_max {
            return Err(Stall::CallsInFlight);
        }
        let outstanding = self.outstanding();
        let max =
            if self.valid { limits.send_queue_bytes_max } else { limits.send_queue_bytes_max.min(UNAUTHENTICATED_BYTES_MAX) };
        if outstanding > 0 && outstanding + need > max {
            return Err(Stall::SendQueue { need });
        }
        Ok(())
    }

    /// Whether the reason it was stalled for is gone. The core's own shortage is not the connection's to judge: a retry finds out.
    pub fn may_resume(&self, limits: &ConnectionLimits) -> bool {
        match self.stalled {
            None => false,
            Some(Stall::CallsInFlight) => self.in_flight < limits.calls_in_flight_max,
            Some(Stall::SendQueue { need }) => self.admits(limits, need).is_ok(),
            Some(Stall::Core) => false,
        }
    }

    /// Whether a record has stayed incomplete for longer than its bytes may take.
    pub fn record_is_overdue(&self, now: Instant, options: &Options) -> bool {
        let earned = Duration::from_secs(self.record_bytes / u64::from(options.record_bytes_per_second_min.max(1)));
        self.record_since.is_some_and(|since| now.since(since) >= options.record_timeout + earned)
    }

    /// Whether nothing is owed to the peer by the layers from here up.
    pub fn settled(&self) -> bool {
        self.in_flight == 0 && self.queued == 0
    }
}

struct Slot {
    generation: u32,
    connection: Option<Connection>,
}

/// The connections of one core. Memory for all of them is taken at the start.
pub struct ConnectionTable {
    slots: Vec<Slot>,
    free: Vec<u32>,
    index: HashMap<ConnectionKey, u32, BuildHasherDefault<OwnNumberHasher>>,
    /// Ends and length of the list of connections that are not valid.
    oldest: u32,
    newest: u32,
    unauthenticated: u32,
}

const NONE: u32 = u32::MAX;

impl ConnectionTable {
    pub fn new(connections_max: u32) -> ConnectionTable {
        ConnectionTable {
            slots: (0..connections_max).map(|_| Slot { generation: 0, connection: None }).collect(),
            free: (0..connections_max).rev().collect(),
            index: HashMap::with_capacity_and_hasher(2 * connections_max as usize, BuildHasherDefault::default()),
            oldest: NONE,
            newest: NONE,
            unauthenticated: 0,
        }
    }

    pub fn len(&self) -> usize {
        self.index.len()
    }

    pub fn is_full(&self) -> bool {
        self.free.is_empty()
    }

    /// `None` if the table is full or the key is taken.
    pub fn insert(&mut self, now: Instant, key: ConnectionKey, peer: Peer) -> Option<ConnectionId> {
        if self.index.contains_key(&key) {
            return None;
        }
        let slot = self.free.pop()?;
        self.index.insert(key, slot);
        let at = &mut self.slots[slot as usize];
        at.connection = Some(Connection { previous: self.newest, ..Connection::new(now, key, peer) });
        let id = ConnectionId { slot, generation: at.generation };
        match self.at(self.newest) {
            Some(newest) => newest.next = slot,
            None => self.oldest = slot,
        }
        self.newest = slot;
        self.unauthenticated += 1;
        Some(id)
    }

    pub fn find(&self, key: ConnectionKey) -> Option<ConnectionId> {
        let slot = *self.index.get(&key)?;
        Some(ConnectionId { slot, generation: self.slots[slot as usize].generation })
    }

    #[inline]
    pub fn get(&mut self, id: ConnectionId) -> Option<&mut Connection> {
        let slot = self.slots.get_mut(id.slot as usize)?;
        if slot.generation == id.generation { slot.connection.as_mut() } else { None }
    }

    fn at(&mut self, slot: u32) -> Option<&mut Connection> {
        self.slots.get_mut(slot as usize)?.connection.as_mut()
    }

    /// The peer has presented a file handle it may use: the connection no longer counts as unauthenticated.
    pub fn mark_valid(&mut self, id: ConnectionId) {
        let Some(connection) = self.get(id) else { return };
        if std::mem::replace(&mut connection.valid, true) {
            return;
        }
        let (previous, next) = (connection.previous, connection.next);
        match self.at(previous) {
            Some(connection) => connection.next = next,
            None => self.oldest = next,
        }
        match self.at(next) {
            Some(connection) => connection.previous = previous,
            None => self.newest = previous,
        }
        self.unauthenticated -= 1;
    }

    pub fn remove(&mut self, id: ConnectionId) -> Option<Connection> {
        // Takes it off the list of those that are not.
        self.mark_valid(id);
        let slot = self.slots.get_mut(id.slot as usize)?;
        if slot.generation != id.generation {
            return None;
        }
        let connection = slot.connection.take()?;
        slot.generation = slot.generation.wrapping_add(1);
        self.free.push(id.slot);
        self.index.remove(&connection.key);
        Some(connection)
    }

    /// Every connection, in no particular but a repeatable order.
    pub fn iter(&self) -> impl Iterator<Item = (ConnectionId, &Connection)> {
        self.slots.iter().enumerate().filter_map(|(slot, at)| {
            let id = ConnectionId { slot: slot as u32, generation: at.generation };
            Some((id, at.connection.as_ref()?))
        })
    }

    /// Connections whose peers have not presented a usable file handle.
    pub fn unauthenticated(&self) -> u32 {
        self.unauthenticated
    }

    pub fn oldest_unauthenticated(&self) -> Option<ConnectionId> {
        let generation = self.slots.get(self.oldest as usize)?.generation;
        Some(ConnectionId { slot: self.oldest, generation })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rpc::programs::Transport;

    #[test]
    fn the_age_of_a_reply_that_is_not_acknowledged_is_known_from_below() {
        let mut table = table();
        let id = insert(&mut table, 1).unwrap();
        let connection = table.get(id).unwrap();
        let at = Instant::from_millis;
        connection.handed = 100;
        connection.note_backlog(at(1000), 100);
        assert_eq!(connection.owes_for(at(1000)), Duration::ZERO);
        // More replies, and some are taken, but not all of those of the first second.
        for millis in [2000, 3000, 4000] {
            connection.handed += 100;
            connection.note_backlog(at(millis), connection.handed - 90);
        }
        assert_eq!(connection.owes_for(at(6000)), Duration::from_secs(5));
        connection.note_backlog(at(7000), connection.handed - 100);
        assert_eq!(connection.owes_for(at(7000)), Duration::ZERO, "later ones may have come a moment ago");
        connection.note_backlog(at(8000), connection.handed - 100);
        assert_eq!(connection.owes_for(at(9000)), Duration::from_secs(2));
        connection.note_backlog(at(9000), 0);
        assert_eq!(connection.owes_for(at(20_000)), Duration::ZERO);
    }

    fn table() -> ConnectionTable {
        ConnectionTable::new(3)
    }

    fn insert(table: &mut ConnectionTable, key: u64) -> Option<ConnectionId> {
        let address = "10.0.0.1:700".parse().unwrap();
        table.insert(Instant::ZERO, ConnectionKey(key), Peer { address, local: address, transport: Transport::Tcp })
    }

    #[test]
    fn a_dead_id_stays_dead_when_its_slot_lives_again() {
        let mut table = table();
        let first = insert(&mut table, 1).unwrap();
        assert!(insert(&mut table, 1).is_none(), "key taken");
        table.remove(first).unwrap();
        let second = insert(&mut table, 2).unwrap();
        assert!(table.get(first).is_none() && table.remove(first).is_none());
        assert_eq!(table.get(second).unwrap().key, ConnectionKey(2));
        assert_eq!((table.find(ConnectionKey(1)), table.find(ConnectionKey(2))), (None, Some(second)));
        insert(&mut table, 3).unwrap();
        insert(&mut table, 4).unwrap();
        assert!(table.is_full() && insert(&mut table, 5).is_none());
    }

    #[test]
    fn the_oldest_unauthenticated_is_found() {
        let mut table = table();
        let ids: Vec<_> = (1..=3).map(|key| insert(&mut table, key).unwrap()).collect();
        let oldest = |table: &ConnectionTable| (table.unauthenticated(), table.oldest_unauthenticated());
        table.mark_valid(ids[0]);
        table.mark_valid(ids[0]);
        assert_eq!(oldest(&table), (2, Some(ids[1])));
        table.remove(ids[1]);
        let younger = insert(&mut table, 9).unwrap();
        assert_eq!(oldest(&table), (2, Some(ids[2])), "not the one in the reused slot");
        table.remove(ids[2]);
        assert_eq!(oldest(&table), (1, Some(younger)));
        table.mark_valid(younger);
        assert_eq!(oldest(&table), (0, None));
        table.remove(ids[0]);
        let last = insert(&mut table, 10).unwrap();
        assert_eq!(oldest(&table), (1, Some(last)));
    }

    #[test]
    fn a_connection_that_owes_nothing_may_always_ask() {
        let mut table = table();
        let id = insert(&mut table, 1).unwrap();
        let connection = table.get(id).unwrap();
        let limits = ConnectionLimits { calls_in_flight_max: 2, send_queue_bytes_max: 100 };
        assert_eq!(connection.admits(&limits, 1000), Ok(()));
        connection.backlog = 40;
        assert_eq!(connection.admits(&limits, 60), Ok(()));
        assert_eq!(connection.admits(&limits, 61), Err(Stall::SendQueue { need: 61 }));
        connection.in_flight = 2;
        assert_eq!(connection.admits(&limits, 0), Err(Stall::CallsInFlight));
    }
}
