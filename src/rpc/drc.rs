//! The duplicate request cache: a retransmitted call that is not idempotent gets its first answer again.
//!
//! Read first: RFC 1813 section 4.5 (duplicate request cache), fs/nfsd/nfscache.c for the shape. A call in progress makes its
//! duplicate disappear, an answered one replays the stored reply for 120 s after it was last used.
//!
//! Replies are copied into storage of fixed size per entry. Holding the sealed reply's slices instead would be free of the
//! copy but would pin a fragment page of 64 KiB for 120 s per stray 200-byte reply; the replies of all NFSv3 procedures that are
//! not idempotent fit in 512 bytes, and only those procedures pay the copy. Memory is taken once, at the start.
//!
//! The key follows nfsd (xid, program, version, procedure, address, length and checksum of the first 256 bytes of the
//! arguments), with one difference: over TCP the client's port does not count, because a client that reconnects from
//! another port repeats its calls just as well; and uid and gid of the credential do count, because
//! xids of different programs on one client may meet, and one user must not be given another's answer.
//!
//! All cores share it: the connection on which a client repeats a call may belong to another core than the first one did.
//! [`SharedDrc`] is the cache cut into parts, each under a lock of its own that is held for one look-up or one copy of a reply of
//! 512 bytes, never while a call is executed. Only procedures that are not idempotent take a lock, twice a call; with as many
//! parts as there are, two cores seldom want the same one.

use std::collections::HashMap;
use std::hash::{BuildHasher, Hasher};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crossbeam::utils::CachePadded;

use siphasher::sip::SipHasher13;

use super::auth::Credential;
use super::programs::{Peer, Transport};
use crate::buf::View;
use crate::time::{Duration, Instant};

/// Bytes of the arguments that the checksum covers (RC_CSUMLEN of nfsd).
pub const CHECKSUM_BYTES: usize = 256;
const NONE: u32 = u32::MAX;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DrcOptions {
    /// Entries, in progress or answered; 0 switches the cache off.
    pub entries: u32,
    /// Longest reply that is kept, bytes; a longer one is sent but not remembered.
    pub reply_bytes_max: u32,
    /// How long an answer is remembered after it was last used.
    pub expiry: Duration,
    /// Key of the hashes; random per process, so that clients cannot steer them.
    pub seed: [u64; 2],
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct DrcKey {
    xid: u32,
    program: u32,
    version: u32,
    procedure: u32,
    ip: IpAddr,
    /// uid and gid.
    caller: Option<(u32, u32)>,
    /// 0 over TCP.
    port: u16,
    transport: Transport,
    arguments_len: u32,
    checksum: u64,
}

/// An entry in progress: whoever executes the call owns it until `complete` or `forget`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DrcEntry(u32);

/// What the cache knows about a call.
#[derive(Debug, PartialEq, Eq)]
pub enum Lookup<'a> {
    /// Never seen, or forgotten: execute it, then `complete` the entry. `None`: every entry is in progress, execute uncached.
    Miss(Option<DrcEntry>),
    /// Being executed: drop the duplicate.
    InProgress,
    /// The reply, from its xid on.
    Done(&'a [u8]),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Free,
    InProgress,
    Done { len: u32, used: Instant },
}

struct Entry {
    key: Option<DrcKey>,
    state: State,
    /// Neighbours in the list of answered entries, least recently used first, or in the free list (`next` only).
    previous: u32,
    next: u32,
}

#[derive(Clone, Copy)]
struct Seeded([u64; 2]);

impl BuildHasher for Seeded {
    type Hasher = SipHasher13;
    fn build_hasher(&self) -> SipHasher13 {
        SipHasher13::new_with_keys(self.0[0], self.0[1])
    }
}

/// One part of the cache; the whole of it where there is one core.
pub struct DuplicateRequestCache {
    options: DrcOptions,
    entries: Vec<Entry>,
    replies: Box<[u8]>,
    index: HashMap<DrcKey, u32, Seeded>,
    free: u32,
    oldest: u32,
    newest: u32,
}

impl DuplicateRequestCache {
    pub fn new(options: DrcOptions) -> DuplicateRequestCache {
        let count = options.entries;
        let entries = (0..count)
            .map(|index| Entry {
                key: None,
                state: State::Free,
                previous: NONE,
                next: if index + 1 < count { index + 1 } else { NONE },
            })
            .collect();
        DuplicateRequestCache {
            options,
            entries,
            replies: vec![0; count as usize * options.reply_bytes_max as usize].into_boxed_slice(),
            // Twice the entries: a table that is more than half full of live and dead keys would grow on an insert.
            index: HashMap::with_capacity_and_hasher(2 * count as usize, Seeded(options.seed)),
            free: if count > 0 { 0 } else { NONE },
            oldest: NONE,
            newest: NONE,
        }
    }

    /// Entries that hold a call.
    pub fn len(&self) -> usize {
        self.index.len()
    }

    pub fn is_empty(&self) -> bool {
        self.index.is_empty()
    }
}

impl DrcOptions {
    /// The identity of a call.
    pub fn key(
        &self,
        peer: &Peer,
        credential: &Credential,
        xid: u32,
        (program, version, procedure): (u32, u32, u32),
        arguments: View<'_>,
    ) -> DrcKey {
        let mut first = [0; CHECKSUM_BYTES];
        let len = arguments.copy_to(&mut first);
        let mut hasher = Seeded(self.seed).build_hasher();
        hasher.write(&first[..len]);
        DrcKey {
            xid,
            program,
            version,
            procedure,
            ip: peer.ip().to_canonical(),
            // Not the stamp: some clients take it from the clock for each transmission.
            caller: match credential {
                Credential::None => None,
                Credential::Sys(caller) => Some((caller.uid, caller.gid)),
            },
            port: if peer.transport == Transport::Udp { peer.address.port() } else { 0 },
            transport: peer.transport,
            arguments_len: u32::try_from(arguments.len()).unwrap_or(u32::MAX),
            checksum: hasher.finish(),
        }
    }
}

impl DuplicateRequestCache {
    /// Looks a call up and, if it is new, notes that it is in progress.
    pub fn lookup(&mut self, now: Instant, key: DrcKey) -> Lookup<'_> {
        self.expire(now);
        let Some(&found) = self.index.get(&key) else {
            return Lookup::Miss(self.insert(key));
        };
        match self.entries[found as usize].state {
            State::Done { len, .. } => {
                self.unlink(found);
                self.link_newest(found);
                self.entries[found as usize].state = State::Done { len, used: now };
                let start = found as usize * self.options.reply_bytes_max as usize;
                Lookup::Done(&self.replies[start..start + len as usize])
            }
            State::InProgress | State::Free => Lookup::InProgress,
        }
    }

    fn insert(&mut self, key: DrcKey) -> Option<DrcEntry> {
        if self.free == NONE && self.oldest != NONE {
            self.evict(self.oldest);
        }
        let at = self.free;
        let entry = self.entries.get_mut(at as usize)?;
        self.free = entry.next;
        *entry = Entry { key: Some(key), state: State::InProgress, previous: NONE, next: NONE };
        self.index.insert(key, at);
        Some(DrcEntry(at))
    }

    /// Remembers the answer of a call in progress. `reply` is the message from its xid on, without a record mark.
    /// `false`: it is too long to be kept and the call is forgotten.
    pub fn complete(&mut self, now: Instant, entry: DrcEntry, reply: &[u8]) -> bool {
        if reply.len() > self.options.reply_bytes_max as usize {
            self.forget(entry);
            return false;
        }
        let start = entry.0 as usize * self.options.reply_bytes_max as usize;
        self.replies[start..start + reply.len()].copy_from_slice(reply);
        self.entries[entry.0 as usize].state = State::Done { len: reply.len() as u32, used: now };
        self.link_newest(entry.0);
        true
    }

    /// Forgets a call in progress: it was not executed, or its answer is not worth keeping.
    pub fn forget(&mut self, entry: DrcEntry) {
        self.release(entry.0);
    }

    /// Forgets what has not been used for `expiry`.
    fn expire(&mut self, now: Instant) {
        while let Some(entry) = self.entries.get(self.oldest as usize) {
            match entry.state {
                State::Done { used, .. } if now.since(used) >= self.options.expiry => self.evict(self.oldest),
                _ => return,
            }
        }
    }

    fn evict(&mut self, at: u32) {
        self.unlink(at);
        self.release(at);
    }

    fn release(&mut self, at: u32) {
        let entry = &mut self.entries[at as usize];
        if let Some(key) = entry.key.take() {
            self.index.remove(&key);
        }
        *entry = Entry { key: None, state: State::Free, previous: NONE, next: self.free };
        self.free = at;
    }

    fn link_newest(&mut self, at: u32) {
        self.entries[at as usize].previous = self.newest;
        self.entries[at as usize].next = NONE;
        match self.entries.get_mut(self.newest as usize) {
            Some(newest) => newest.next = at,
            None => self.oldest = at,
        }
        self.newest = at;
    }

    fn unlink(&mut self, at: u32) {
        let Entry { previous, next, .. } = self.entries[at as usize];
        match self.entries.get_mut(previous as usize) {
            Some(entry) => entry.next = next,
            None => self.oldest = next,
        }
        match self.entries.get_mut(next as usize) {
            Some(entry) => entry.previous = previous,
            None => self.newest = previous,
        }
    }
}

/// Parts for each core: the chance that a core finds a part locked by another is about one in this many.
const PARTS_PER_CORE: usize = 8;

/// A call in progress, in one part of the shared cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SharedEntry {
    part: u32,
    entry: DrcEntry,
}

/// What the shared cache knows about a call; see [`Lookup`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SharedLookup<R> {
    Miss(Option<SharedEntry>),
    InProgress,
    /// What the caller made of the reply.
    Done(R),
}

/// The cache of all cores. A clone is the same cache.
#[derive(Clone)]
pub struct SharedDrc {
    options: DrcOptions,
    parts: Arc<[CachePadded<Mutex<DuplicateRequestCache>>]>,
}

impl SharedDrc {
    /// `options.entries` are for all cores together, cut into equal parts.
    pub fn new(options: DrcOptions, cores: usize) -> SharedDrc {
        let parts = if cores > 1 { PARTS_PER_CORE * cores } else { 1 };
        let each = DrcOptions { entries: options.entries.div_ceil(parts as u32), ..options };
        let part = |_| CachePadded::new(Mutex::new(DuplicateRequestCache::new(each)));
        SharedDrc { options, parts: (0..parts).map(part).collect() }
    }

    fn part(&self, part: u32) -> MutexGuard<'_, DuplicateRequestCache> {
        // Nothing in here panics half way; if it did, a list may have lost entries, which is what expiry does too.
        self.parts[part as usize % self.parts.len()].lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The identity of a call.
    pub fn key(&self, peer: &Peer, credential: &Credential, xid: u32, procedure: (u32, u32, u32), arguments: View<'_>) -> DrcKey {
        self.options.key(peer, credential, xid, procedure, arguments)
    }

    /// Looks a call up and, if it is new, notes that it is in progress. `replay` gets the reply of one that is answered,
    /// with the part locked: a copy, nothing longer.
    pub fn lookup<R>(&self, now: Instant, key: DrcKey, replay: impl FnOnce(&[u8]) -> R) -> SharedLookup<R> {
        // Clients number their calls one by one, so the xid spreads them; the checksum keeps them from choosing.
        let part = (key.checksum as u32).wrapping_add(key.xid) % self.parts.len() as u32;
        match self.part(part).lookup(now, key) {
            Lookup::Miss(entry) => SharedLookup::Miss(entry.map(|entry| SharedEntry { part, entry })),
            Lookup::InProgress => SharedLookup::InProgress,
            Lookup::Done(reply) => SharedLookup::Done(replay(reply)),
        }
    }

    /// See [`DuplicateRequestCache::complete`].
    pub fn complete(&self, now: Instant, entry: SharedEntry, reply: &[u8]) -> bool {
        self.part(entry.part).complete(now, entry.entry, reply)
    }

    /// See [`DuplicateRequestCache::forget`].
    pub fn forget(&self, entry: SharedEntry) {
        self.part(entry.part).forget(entry.entry);
    }

    /// Entries that hold a call.
    pub fn len(&self) -> usize {
        (0..self.parts.len()).map(|part| self.part(part as u32).len()).sum()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cache(entries: u32) -> DuplicateRequestCache {
        let expiry = Duration::from_secs(120);
        DuplicateRequestCache::new(DrcOptions { entries, reply_bytes_max: 16, expiry, seed: [1, 2] })
    }

    fn peer(address: &str, transport: Transport) -> Peer {
        Peer { address: address.parse().unwrap(), local: "10.0.0.9:2049".parse().unwrap(), transport }
    }

    fn user(uid: u32, stamp: u32) -> Credential {
        Credential::Sys(crate::rpc::AuthSys { stamp, uid, gid: 100, groups: Default::default() })
    }

    fn key(cache: &DuplicateRequestCache, xid: u32) -> DrcKey {
        cache.options.key(
            &peer("10.0.0.1:700", Transport::Tcp),
            &Credential::None,
            xid,
            (100003, 3, 8),
            View::from(&b"arguments"[..]),
        )
    }

    fn miss(cache: &mut DuplicateRequestCache, now: Instant, xid: u32) -> Option<DrcEntry> {
        let key = key(cache, xid);
        match cache.lookup(now, key) {
            Lookup::Miss(entry) => entry,
            other => panic!("{xid}: {other:?}"),
        }
    }

    fn done(cache: &mut DuplicateRequestCache, now: Instant, xid: u32) -> bool {
        let key = key(cache, xid);
        matches!(cache.lookup(now, key), Lookup::Done(_))
    }

    #[test]
    fn in_progress_then_done_then_expired() {
        let mut cache = cache(4);
        let now = Instant::from_millis(5);
        let entry = miss(&mut cache, now, 1).unwrap();
        let key = key(&cache, 1);
        assert_eq!(cache.lookup(now, key), Lookup::InProgress);
        assert!(cache.complete(now, entry, b"the reply"));
        let later = now + Duration::from_secs(119);
        assert_eq!(cache.lookup(later, key), Lookup::Done(b"the reply"));
        assert_eq!(cache.lookup(later + Duration::from_secs(119), key), Lookup::Done(b"the reply"), "used: lives on");
        miss(&mut cache, later + Duration::from_secs(119 + 120), 1).unwrap();
        assert_eq!(cache.len(), 1);
    }

    #[test]
    fn the_least_recently_used_answer_goes_first_and_calls_in_progress_stay() {
        let mut cache = cache(3);
        let now = Instant::ZERO;
        let in_progress = miss(&mut cache, now, 1).unwrap();
        for xid in [2, 3] {
            let entry = miss(&mut cache, now, xid).unwrap();
            cache.complete(now, entry, b"r");
        }
        assert!(done(&mut cache, now, 2), "2 is now younger than 3");
        let four = miss(&mut cache, now, 4).unwrap();
        assert!(done(&mut cache, now, 2));
        let three = miss(&mut cache, now, 3).unwrap();
        assert_eq!(miss(&mut cache, now, 5), None, "all in progress");
        assert_eq!(cache.len(), 3);
        cache.forget(three);
        cache.complete(now, in_progress, b"one");
        cache.complete(now, four, b"four");
        assert!(miss(&mut cache, now, 5).is_some());
        assert!(done(&mut cache, now, 1) && done(&mut cache, now, 4));
    }

    #[test]
    fn what_makes_a_call_another_call() {
        let cache = cache(1);
        let tcp = peer("10.0.0.1:700", Transport::Tcp);
        let long = [7; 300];
        let mut longer_tail = long;
        longer_tail[299] = 8;
        let key = |peer: &Peer, xid, procedure, arguments: &[u8]| {
            cache.options.key(peer, &user(1000, 5), xid, (100003, 3, procedure), View::from(arguments))
        };
        let base = key(&tcp, 1, 8, &long);
        assert_eq!(base, key(&peer("10.0.0.1:900", Transport::Tcp), 1, 8, &long), "reconnected");
        assert_eq!(base, key(&tcp, 1, 8, &longer_tail), "beyond the checksum");
        let by = |credential: &Credential| cache.options.key(&tcp, credential, 1, (100003, 3, 8), View::from(&long[..]));
        assert_eq!(base, by(&user(1000, 6)), "a stamp that goes on");
        assert_ne!(base, by(&user(1001, 6)), "another user");
        assert_ne!(base, by(&Credential::None));
        assert_ne!(base, key(&tcp, 2, 8, &long));
        assert_ne!(base, key(&tcp, 1, 9, &long));
        assert_ne!(base, key(&tcp, 1, 8, &long[..299]));
        assert_ne!(base, key(&tcp, 1, 8, &[8; 300]));
        assert_ne!(base, key(&peer("10.0.0.2:700", Transport::Tcp), 1, 8, &long));
        let udp = key(&peer("10.0.0.1:700", Transport::Udp), 1, 8, &long);
        assert_ne!(base, udp);
        assert_ne!(udp, key(&peer("10.0.0.1:701", Transport::Udp), 1, 8, &long));
    }

    #[test]
    fn a_reply_that_is_too_long_is_not_kept_and_no_entries_means_no_cache() {
        let mut cache = cache(1);
        let entry = miss(&mut cache, Instant::ZERO, 1).unwrap();
        assert!(!cache.complete(Instant::ZERO, entry, &[0; 17]));
        assert!(cache.is_empty());
        let mut off = super::DuplicateRequestCache::new(DrcOptions { entries: 0, ..cache.options });
        assert_eq!(miss(&mut off, Instant::ZERO, 1), None);
    }

    #[test]
    fn two_cores_see_one_cache() {
        let options = DrcOptions { entries: 64, reply_bytes_max: 16, expiry: Duration::from_secs(120), seed: [1, 2] };
        let one = SharedDrc::new(options, 2);
        let other = one.clone();
        let now = Instant::from_millis(5);
        let key = |xid, address: &str| {
            let peer = peer(address, Transport::Tcp);
            one.key(&peer, &Credential::None, xid, (100003, 3, 8), View::from(&b"arguments"[..]))
        };
        for xid in 0..32 {
            let SharedLookup::Miss(Some(entry)) = one.lookup(now, key(xid, "10.0.0.1:700"), |_| ()) else { panic!("{xid}") };
            assert_eq!(other.lookup(now, key(xid, "10.0.0.1:900"), |_| ()), SharedLookup::InProgress);
            assert!(one.complete(now, entry, &xid.to_be_bytes()));
            // The other core's clock may have been read a little earlier.
            let replayed = other.lookup(Instant::ZERO, key(xid, "10.0.0.1:900"), <[u8]>::to_vec);
            assert_eq!(replayed, SharedLookup::Done(xid.to_be_bytes().to_vec()));
        }
        assert_eq!(one.len(), 32);
    }
}
