//! Who has which MAC address: the table behind ARP, and the neighbour cache of neighbour discovery.
//!
//! Read first: RFC 826, RFC 1122 section 2.3.2 (validation, flooding, the packet queue), RFC 4861 sections 7.2 and 7.3 (the
//! states and what changes them), RFC 6583 section 7 (floods).
//!
//! The table decides when to ask and for whom; the packets that ask are made by `net::interface`. It keeps packets
//! (`P`) that wait for an answer. The two protocols differ in `NeighbourOptions` and in how they tell the table what they
//! heard: `learned` for ARP, `hinted` and `advertised` for neighbour discovery. RFC 4861's STALE is `Reachable` whose time
//! is over. Entries live in a `BTreeMap`: the order of its walk, and so the whole run, is the same
//! every time, and no peer can choose keys that collide. What to evict from a full table is found without walking it, and a lookup
//! pays nothing for that (`Line`).
//!
//! Deliberately not here: learning from IP traffic. A peer that opens a connection to us has had to ask for our address
//! before, and that request is where its own was learned (RFC 826); if the entry was evicted meanwhile, one exchange
//! brings it back. Taking MAC addresses from IP frames would let anybody who can send us one frame with a forged source
//! redirect a neighbour's traffic without even answering ARP.

use std::collections::{BTreeMap, VecDeque};
use std::net::IpAddr;

use crate::time::{Duration, Instant};
use crate::wire::ethernet::Address;

#[derive(Clone, Debug)]
pub struct NeighbourOptions {
    /// Entries in any state; beyond it one is evicted that has not been used for long.
    pub neighbours_max: usize,
    /// Entries that wait for an answer; beyond it the oldest of them gives up.
    pub incomplete_max: usize,
    /// Unknown addresses that may be asked for at once, and how long until there is room for another one; beyond it what wants to go there is
    /// dropped. Whoever makes us answer many addresses makes us ask the whole link for each (RFC 6583 section 7.1; RFC 1122 section 2.3.2.1).
    pub asks_burst: u32,
    pub ask_interval: Duration,
    /// How long an answer is believed. Then the next use asks again, by unicast, and goes on using it meanwhile.
    pub reachable: Duration,
    /// An entry unused for this long is forgotten once it is no longer believed.
    pub idle: Duration,
    /// How long a use of an entry no longer believed waits for somebody to confirm it before it is asked again (RFC 4861
    /// section 10: DELAY_FIRST_PROBE_TIME); 0: it is asked at once.
    pub delay_first_probe: Duration,
    /// From the first request to the second. RFC 1122 section 2.3.2.1: at most one a second.
    pub retry_first: Duration,
    /// Each wait is twice the one before.
    pub retry_doubles: bool,
    /// Requests for one address before it is given up.
    pub attempts_max: u32,
    /// How long an address that did not answer is refused without asking.
    pub failed: Duration,
    /// Packets that may wait for one neighbour; the oldest is dropped for a newer one.
    pub parked_per_neighbour_max: usize,
    /// Packets that may wait for all neighbours together; beyond it new ones are dropped.
    pub parked_total_max: usize,
}

impl Default for NeighbourOptions {
    fn default() -> NeighbourOptions {
        NeighbourOptions {
            neighbours_max: 1024,
            incomplete_max: 64,
            asks_burst: 256,
            ask_interval: Duration::from_millis(2),
            reachable: Duration::from_secs(60),
            idle: Duration::from_secs(600),
            delay_first_probe: Duration::ZERO,
            retry_first: Duration::from_secs(1),
            retry_doubles: true,
            attempts_max: 3,
            failed: Duration::from_secs(1),
            parked_per_neighbour_max: 8,
            parked_total_max: 256,
        }
    }
}

impl NeighbourOptions {
    /// RFC 4861 section 10: a neighbour is believed for 30 s, then confirmed 5 s after its next use, three times a second apart.
    pub fn discovery() -> NeighbourOptions {
        NeighbourOptions {
            reachable: Duration::from_secs(30),
            delay_first_probe: Duration::from_secs(5),
            retry_doubles: false,
            ..NeighbourOptions::default()
        }
    }
}

crate::counters! {
    /// What one neighbour table counts.
    pub struct NeighbourCounters {
        /// Requests for an unknown address.
        solicitations,
        /// Requests that confirm a known address.
        confirmations,
        /// Requests not sent because too many were sent before, or waiting to be.
        solicitations_dropped,
        /// Addresses that did not answer.
        resolutions_failed,
        /// Entries whose MAC address changed.
        changed,
        /// Entries evicted because the table was full: nobody had asked for them yet.
        evicted_unused,
        /// Entries evicted because the table was full and all its entries had been in use.
        evicted,
        /// Places looked at to find what to evict.
        eviction_steps,
        /// Addresses given up because too many were being asked for.
        incomplete_evicted,
        /// Packets that had to wait for an answer.
        parked,
        /// Waiting packets dropped because a limit was reached.
        parked_overflow,
        /// Waiting packets dropped because the address did not answer.
        parked_failed,
    }
    gauges {
        /// Entries in any state.
        entries,
        /// Packets that wait.
        parked_now,
    }
}

enum State<P> {
    /// Asked, not answered.
    Incomplete { attempts: u32, next: Instant, parked: VecDeque<P> },
    /// Answered; believed until then, usable after it until it is used (then `Probing`) or idle.
    Reachable { mac: Address, until: Instant },
    /// Used again after it was believed; asked then, unless confirmed before (RFC 4861 section 7.3.2: DELAY).
    Delay { mac: Address, probe_at: Instant },
    /// Being asked again, by unicast, while still in use (RFC 1122 section 2.3.2.1, "unicast poll"; RFC 4861: PROBE).
    Probing { mac: Address, attempts: u32, next: Instant },
    /// Did not answer.
    Failed { until: Instant },
}

impl<P> State<P> {
    fn mac(&self) -> Option<Address> {
        match *self {
            State::Reachable { mac, .. } | State::Delay { mac, .. } | State::Probing { mac, .. } => Some(mac),
            State::Incomplete { .. } | State::Failed { .. } => None,
        }
    }
}

struct Neighbour<P> {
    state: State<P>,
    used: Instant,
    /// Somebody had a packet for it. What only spoke to us may be a forgery, and goes first when the table is full.
    wanted: bool,
    /// Its place in the `Line` where it stands: other places with its address are left over.
    place: u64,
}

/// What may be evicted together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Unwanted,
    Wanted,
    /// Being asked for.
    Asked,
}

impl<P> Neighbour<P> {
    fn kind(&self) -> Kind {
        match self.state {
            State::Incomplete { .. } => Kind::Asked,
            _ if self.wanted => Kind::Wanted,
            _ => Kind::Unwanted,
        }
    }
}

struct Place {
    address: IpAddr,
    number: u64,
    /// When the entry had been used last as it came here.
    used: Instant,
}

/// Entries in the order in which they are evicted, unless used meanwhile: a use changes nothing here.
type Line = VecDeque<Place>;

/// The answer to "where do I send this".
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lookup {
    Resolved(Address),
    /// Being asked for: `park` the packet.
    Unresolved,
    /// It did not answer a moment ago.
    Failed,
}

/// A request to be sent: to `unicast` if that is known, else to everybody.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Solicitation {
    pub address: IpAddr,
    pub unicast: Option<Address>,
}

/// Order: `lookup`/`park`/`learned`/`handle_timeout`, then `poll_solicitation` and `next_ready` until they are empty.
pub struct NeighbourTable<P> {
    options: NeighbourOptions,
    entries: BTreeMap<IpAddr, Neighbour<P>>,
    solicitations: VecDeque<Solicitation>,
    /// When all that was asked for would have been asked for at one `ask_interval` after another.
    asked_until: Instant,
    /// Packets whose neighbour has been found.
    ready: VecDeque<P>,
    /// Not later than the earliest thing to do.
    timeout: Option<Instant>,
    /// Each entry stands in one, by its kind: but for those that became wanted since they came.
    lines: [Line; 3],
    /// Places given so far.
    places: u64,
    /// Entries that are being asked for.
    incomplete: usize,
    counters: NeighbourCounters,
}

impl<P> NeighbourTable<P> {
    pub fn new(options: NeighbourOptions) -> NeighbourTable<P> {
        NeighbourTable {
            options,
            entries: BTreeMap::new(),
            solicitations: VecDeque::new(),
            asked_until: Instant::ZERO,
            ready: VecDeque::new(),
            timeout: None,
            lines: [Line::new(), Line::new(), Line::new()],
            places: 0,
            incomplete: 0,
            counters: NeighbourCounters::default(),
        }
    }

    /// The MAC address for a next hop. Starts asking for it where needed.
    pub fn lookup(&mut self, now: Instant, address: IpAddr) -> Lookup {
        let Some(entry) = self.entries.get_mut(&address) else {
            self.ask(now, address);
            return Lookup::Unresolved;
        };
        entry.used = now;
        entry.wanted = true;
        match entry.state {
            State::Reachable { mac, until } => {
                if now >= until {
                    self.confirm_later(now, address, mac);
                }
                Lookup::Resolved(mac)
            }
            State::Delay { mac, .. } | State::Probing { mac, .. } => Lookup::Resolved(mac),
            State::Incomplete { .. } => Lookup::Unresolved,
            State::Failed { until } if now < until => Lookup::Failed,
            State::Failed { .. } => {
                self.entries.remove(&address);
                self.ask(now, address);
                Lookup::Unresolved
            }
        }
    }

    /// Keeps a packet until its neighbour, just found `Unresolved`, answers.
    pub fn park(&mut self, address: IpAddr, packet: P) {
        let parked_now = self.counters.parked_now;
        let Some(Neighbour { state: State::Incomplete { parked, .. }, .. }) = self.entries.get_mut(&address) else {
            self.counters.parked_overflow += 1;
            return;
        };
        self.counters.parked += 1;
        if parked.len() >= self.options.parked_per_neighbour_max {
            // RFC 1122 section 2.3.2.2: save at least the latest packet.
            parked.pop_front();
            self.counters.parked_overflow += 1;
        } else if parked_now >= self.options.parked_total_max as u64 {
            self.counters.parked_overflow += 1;
            return;
        } else {
            self.counters.parked_now += 1;
        }
        parked.push_back(packet);
    }

    /// A neighbour has told its MAC address. Updates an entry; makes one only if `add` (RFC 826: "if the target is me").
    pub fn learned(&mut self, now: Instant, address: IpAddr, mac: Address, add: bool) {
        let until = now + self.options.reachable;
        match self.entries.get_mut(&address) {
            Some(entry) => {
                let old = std::mem::replace(&mut entry.state, State::Reachable { mac, until });
                match old {
                    State::Incomplete { parked, .. } => {
                        self.ready.extend(parked);
                        self.found(address);
                    }
                    State::Reachable { mac: old, .. } | State::Delay { mac: old, .. } | State::Probing { mac: old, .. }
                        if old != mac =>
                    {
                        self.counters.changed += 1
                    }
                    _ => {}
                }
            }
            None if add => self.add(now, address, mac, until),
            None => return,
        }
        self.wake_at(until + self.options.idle);
    }

    /// A neighbour's message came with its MAC address (RFC 4861 section 7.2.3: solicitations; 6.3.4: router advertisements).
    /// That does not show that it hears us: a new or changed entry is STALE, an unchanged one stays what it is.
    pub fn hinted(&mut self, now: Instant, address: IpAddr, mac: Address) {
        if self.get(address) == Some(mac) {
            return;
        }
        match self.entries.contains_key(&address) {
            true => self.replace(now, address, mac, now),
            false => self.add(now, address, mac, now),
        }
        self.wake_at(now + self.options.idle);
    }

    /// A neighbour advertisement (RFC 4861 section 7.2.5). Makes no entry. `solicited`, `replace`: its S and O flags. Tells whether
    /// what else it says (the R flag) counts: not without an entry, and not if it may not replace the address that is known.
    pub fn advertised(&mut self, now: Instant, address: IpAddr, link: Option<Address>, solicited: bool, replace: bool) -> bool {
        if !self.entries.contains_key(&address) {
            return false;
        }
        let mut counts = true;
        let until = if solicited { now + self.options.reachable } else { now };
        match (self.get(address), link) {
            // INCOMPLETE, or given up: only an address helps.
            (None, None) => return false,
            (None, Some(mac)) => self.replace(now, address, mac, until),
            // Somebody else's address without the right to replace: what was believed is believed no longer, that is all.
            (Some(known), Some(mac)) if mac != known && !replace => {
                counts = false;
                if let Some(entry) = self.entries.get_mut(&address) {
                    if matches!(entry.state, State::Reachable { until, .. } if until > now) {
                        entry.state = State::Reachable { mac: known, until: now };
                    }
                }
            }
            (Some(known), link) => {
                let mac = link.unwrap_or(known);
                if solicited || mac != known {
                    self.replace(now, address, mac, until);
                }
            }
        }
        self.wake_at(until + self.options.idle);
        counts
    }

    /// How long answers are believed from now on, and how long to wait for one (RFC 4861 section 6.3.4).
    pub fn set_times(&mut self, reachable: Duration, retry: Duration) {
        self.options.reachable = reachable;
        self.options.retry_first = retry;
    }

    /// Gives an entry that is there an address, and releases what waited for one.
    fn replace(&mut self, now: Instant, address: IpAddr, mac: Address, until: Instant) {
        let Some(entry) = self.entries.get_mut(&address) else { return };
        let known = entry.state.mac();
        if let State::Incomplete { parked, .. } = std::mem::replace(&mut entry.state, State::Reachable { mac, until }) {
            self.ready.extend(parked);
            self.found(address);
            // RFC 4861 section 7.3.3: packets go out to a STALE entry: it has to be confirmed.
            if until <= now {
                self.confirm_later(now, address, mac);
            }
        }
        if known.is_some_and(|known| known != mac) {
            self.counters.changed += 1;
        }
    }

    fn add(&mut self, now: Instant, address: IpAddr, mac: Address, until: Instant) {
        self.insert(now, address, State::Reachable { mac, until }, false);
    }

    fn insert(&mut self, now: Instant, address: IpAddr, state: State<P>, wanted: bool) {
        self.make_room();
        self.incomplete += usize::from(matches!(state, State::Incomplete { .. }));
        self.entries.insert(address, Neighbour { state, used: now, wanted, place: 0 });
        self.counters.entries = self.entries.len() as u64;
        self.line_up(address);
    }

    /// An entry that was asked for is so no longer.
    fn found(&mut self, address: IpAddr) {
        self.incomplete -= 1;
        self.line_up(address);
    }

    /// Puts an entry at the end of the line that is its kind's.
    fn line_up(&mut self, address: IpAddr) {
        let Some(entry) = self.entries.get_mut(&address) else { return };
        self.places += 1;
        entry.place = self.places;
        let (kind, place) = (entry.kind(), Place { address, number: entry.place, used: entry.used });
        self.append(kind, place);
    }

    fn append(&mut self, kind: Kind, place: Place) {
        let line = &mut self.lines[kind as usize];
        line.push_back(place);
        if line.len() > 2 * self.options.neighbours_max {
            // Half of them at least are left over.
            line.retain(|place| self.entries.get(&place.address).is_some_and(|entry| entry.place == place.number));
        }
    }

    /// An entry no longer believed is being used.
    fn confirm_later(&mut self, now: Instant, address: IpAddr, mac: Address) {
        let delay = self.options.delay_first_probe;
        let (state, wake) = if delay.is_zero() {
            self.counters.confirmations += 1;
            self.solicit(Solicitation { address, unicast: Some(mac) });
            let next = now + self.options.retry_first;
            (State::Probing { mac, attempts: 1, next }, next)
        } else {
            (State::Delay { mac, probe_at: now + delay }, now + delay)
        };
        if let Some(entry) = self.entries.get_mut(&address) {
            entry.state = state;
        }
        self.wake_at(wake);
    }

    /// The MAC address an entry has now, for tests and statistics.
    pub fn get(&self, address: IpAddr) -> Option<Address> {
        self.entries.get(&address)?.state.mac()
    }

    /// Whether it did not answer a moment ago.
    pub fn is_failed(&self, now: Instant, address: IpAddr) -> bool {
        matches!(self.entries.get(&address).map(|entry| &entry.state), Some(State::Failed { until }) if now < *until)
    }

    /// The next request to send.
    pub fn poll_solicitation(&mut self) -> Option<Solicitation> {
        self.solicitations.pop_front()
    }

    pub fn has_solicitation(&self) -> bool {
        !self.solicitations.is_empty()
    }

    /// The next packet whose neighbour has been found.
    pub fn next_ready(&mut self) -> Option<P> {
        let packet = self.ready.pop_front()?;
        self.counters.parked_now = self.counters.parked_now.saturating_sub(1);
        Some(packet)
    }

    /// Puts back a packet that could not be sent yet.
    pub fn return_ready(&mut self, packet: P) {
        self.counters.parked_now += 1;
        self.ready.push_front(packet);
    }

    pub fn has_ready(&self) -> bool {
        !self.ready.is_empty()
    }

    /// When `handle_timeout` is due; may be earlier than needed.
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.timeout
    }

    /// Asks again, gives up, forgets. Walks the table, which happens once per due time, not per packet.
    pub fn handle_timeout(&mut self, now: Instant) {
        if self.timeout.is_none_or(|timeout| now < timeout) {
            return;
        }
        self.timeout = None;
        let mut entries = std::mem::take(&mut self.entries);
        let mut failed = Vec::new();
        entries.retain(|address, entry| {
            let was_asked = entry.kind() == Kind::Asked;
            let stays = self.age(now, *address, entry);
            if was_asked && entry.kind() != Kind::Asked {
                failed.push(*address);
            }
            stays
        });
        self.entries = entries;
        for address in failed {
            self.found(address);
        }
        self.counters.entries = self.entries.len() as u64;
    }

    pub fn counters(&self) -> &NeighbourCounters {
        &self.counters
    }

    /// What time does to one entry; false: it is forgotten.
    fn age(&mut self, now: Instant, address: IpAddr, entry: &mut Neighbour<P>) -> bool {
        let attempts_max = self.options.attempts_max;
        let wait = |attempts| match self.options.retry_doubles {
            true => backoff(self.options.retry_first, attempts),
            false => self.options.retry_first,
        };
        match &mut entry.state {
            State::Incomplete { attempts, next, .. } | State::Probing { attempts, next, .. } if now < *next => {
                let next = *next;
                self.wake_at(next);
            }
            State::Incomplete { attempts, next, .. } if *attempts < attempts_max => {
                *attempts += 1;
                *next = now + wait(*attempts);
                let next = *next;
                self.counters.solicitations += 1;
                self.solicit(Solicitation { address, unicast: None });
                self.wake_at(next);
            }
            State::Incomplete { parked, .. } => {
                let lost = parked.len() as u64;
                self.counters.parked_failed += lost;
                self.counters.parked_now -= lost.min(self.counters.parked_now);
                self.counters.resolutions_failed += 1;
                let until = now + self.options.failed;
                entry.state = State::Failed { until };
                self.wake_at(until);
            }
            State::Probing { mac, attempts, next } if *attempts < attempts_max => {
                *attempts += 1;
                *next = now + wait(*attempts);
                let (next, unicast) = (*next, Some(*mac));
                self.counters.confirmations += 1;
                self.solicit(Solicitation { address, unicast });
                self.wake_at(next);
            }
            State::Delay { probe_at, .. } if now < *probe_at => {
                let probe_at = *probe_at;
                self.wake_at(probe_at);
            }
            State::Delay { mac, .. } => {
                let (mac, next) = (*mac, now + wait(1));
                entry.state = State::Probing { mac, attempts: 1, next };
                self.counters.confirmations += 1;
                self.solicit(Solicitation { address, unicast: Some(mac) });
                self.wake_at(next);
            }
            // The next use asks everybody.
            State::Probing { .. } => return false,
            State::Reachable { until, .. } => {
                let forget_at = (*until).max(entry.used) + self.options.idle;
                if now >= forget_at {
                    return false;
                }
                self.wake_at(forget_at);
            }
            State::Failed { until } => {
                let until = *until;
                if now >= until {
                    return false;
                }
                self.wake_at(until);
            }
        }
        true
    }

    fn ask(&mut self, now: Instant, address: IpAddr) {
        let asked_until = self.asked_until.max(now) + self.options.ask_interval;
        if asked_until > now + self.options.ask_interval * self.options.asks_burst {
            self.counters.solicitations_dropped += 1;
            return;
        }
        self.asked_until = asked_until;
        if self.incomplete >= self.options.incomplete_max {
            self.counters.incomplete_evicted += 1;
            self.evict(Kind::Asked);
        }
        let next = now + self.options.retry_first;
        self.insert(now, address, State::Incomplete { attempts: 1, next, parked: VecDeque::new() }, true);
        self.counters.solicitations += 1;
        self.solicit(Solicitation { address, unicast: None });
        self.wake_at(next);
    }

    fn make_room(&mut self) {
        if self.entries.len() < self.options.neighbours_max {
            return;
        }
        // RFC 6583 section 7.1: what strangers can add as fast as they like must not push out what is in use.
        if self.evict(Kind::Unwanted) {
            self.counters.evicted_unused += 1;
            return;
        }
        self.counters.evicted += 1;
        // Entries being asked for are few (`incomplete_max`) and somebody waits for them: they go last.
        if !self.evict(Kind::Wanted) {
            self.evict(Kind::Asked);
        }
    }

    /// Removes the entry of a kind that has not been used for long: the first in its line, but those that were used since they came go to the
    /// end. Each that this looks at was added or used since it was looked at last, so a flood costs no more than its own packets.
    fn evict(&mut self, kind: Kind) -> bool {
        let mut unseen = self.lines[kind as usize].len();
        while let Some(place) = self.lines[kind as usize].pop_front() {
            self.counters.eviction_steps += 1;
            unseen = unseen.saturating_sub(1);
            if let Some(entry) = self.entries.get(&place.address).filter(|entry| entry.place == place.number) {
                match (entry.kind(), entry.used) {
                    // It has become wanted: its uses count there.
                    (other, _) if other != kind => self.append(other, place),
                    (_, used) if used > place.used => self.append(kind, Place { used, ..place }),
                    _ => {
                        self.remove(place.address);
                        return true;
                    }
                }
            }
            if unseen == 0 {
                // All were used: the least recent goes.
                self.lines[kind as usize].make_contiguous().sort_by_key(|place| (place.used, place.number));
            }
        }
        false
    }

    fn remove(&mut self, address: IpAddr) {
        if let Some(Neighbour { state: State::Incomplete { parked, .. }, .. }) = self.entries.remove(&address) {
            self.incomplete -= 1;
            let lost = parked.len() as u64;
            self.counters.parked_overflow += lost;
            self.counters.parked_now -= lost.min(self.counters.parked_now);
        }
    }

    fn solicit(&mut self, solicitation: Solicitation) {
        if self.solicitations.len() >= self.options.neighbours_max {
            self.counters.solicitations_dropped += 1;
            return;
        }
        self.solicitations.push_back(solicitation);
    }

    fn wake_at(&mut self, at: Instant) {
        self.timeout = Some(self.timeout.map_or(at, |timeout| timeout.min(at)));
    }
}

/// The wait after the `attempts`-th request.
fn backoff(first: Duration, attempts: u32) -> Duration {
    first.saturating_mul(1 << attempts.saturating_sub(1).min(16))
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAC: Address = Address([2, 0, 0, 0, 0, 1]);
    const OTHER: Address = Address([2, 0, 0, 0, 0, 2]);

    fn ip(last: u8) -> IpAddr {
        IpAddr::from([10, 0, 0, last])
    }

    fn at(ms: u64) -> Instant {
        Instant::from_millis(ms)
    }

    fn table() -> NeighbourTable<u32> {
        NeighbourTable::new(NeighbourOptions {
            neighbours_max: 4,
            incomplete_max: 2,
            parked_per_neighbour_max: 2,
            parked_total_max: 3,
            ..NeighbourOptions::default()
        })
    }

    /// Runs the clock up to `until` and tells when requests were made.
    fn requests(table: &mut NeighbourTable<u32>, until: Instant) -> Vec<(u64, Solicitation)> {
        let mut seen = Vec::new();
        let mut now = Instant::ZERO;
        loop {
            while let Some(solicitation) = table.poll_solicitation() {
                seen.push((now.millis(), solicitation));
            }
            match table.poll_timeout() {
                Some(timeout) if timeout <= until => now = timeout.max(now),
                _ => return seen,
            }
            table.handle_timeout(now);
        }
    }

    #[test]
    fn an_unknown_address_is_asked_for_with_backoff_then_refused_for_a_second() {
        let mut table = table();
        assert_eq!(table.lookup(at(0), ip(1)), Lookup::Unresolved);
        table.park(ip(1), 7);
        let broadcast = Solicitation { address: ip(1), unicast: None };
        assert_eq!(requests(&mut table, at(6_999)), [(0, broadcast), (1_000, broadcast), (3_000, broadcast)]);
        assert_eq!(table.lookup(at(6_999), ip(1)), Lookup::Unresolved);
        table.handle_timeout(at(7_000));
        assert_eq!(table.lookup(at(7_000), ip(1)), Lookup::Failed);
        assert_eq!((table.counters().resolutions_failed, table.counters().parked_failed), (1, 1));
        assert_eq!(table.counters().parked_now, 0);
        assert_eq!(table.lookup(at(7_999), ip(1)), Lookup::Failed);
        assert_eq!(table.lookup(at(8_000), ip(1)), Lookup::Unresolved, "asks again");
        assert!(table.has_solicitation());
    }

    #[test]
    fn an_answer_releases_what_waits_in_order() {
        let mut table = table();
        table.lookup(at(0), ip(1));
        table.park(ip(1), 1);
        table.park(ip(1), 2);
        table.learned(at(5), ip(1), MAC, false);
        assert_eq!(table.lookup(at(5), ip(1)), Lookup::Resolved(MAC));
        assert_eq!([table.next_ready(), table.next_ready(), table.next_ready()], [Some(1), Some(2), None]);
        assert_eq!(table.counters().parked_now, 0);
    }

    #[test]
    fn waiting_packets_are_bounded_per_neighbour_and_in_total() {
        let mut table = table();
        table.lookup(at(0), ip(1));
        for packet in 1..=3 {
            table.park(ip(1), packet);
        }
        assert_eq!((table.counters().parked_overflow, table.counters().parked_now), (1, 2), "the oldest went");
        table.lookup(at(0), ip(2));
        table.park(ip(2), 4);
        table.park(ip(2), 5);
        assert_eq!((table.counters().parked_overflow, table.counters().parked_now), (2, 3), "the newest did not come in");
        table.learned(at(1), ip(1), MAC, false);
        table.learned(at(1), ip(2), MAC, false);
        let ready: Vec<_> = std::iter::from_fn(|| table.next_ready()).collect();
        assert_eq!(ready, [2, 3, 4]);
    }

    #[test]
    fn nobody_is_added_unasked_but_known_ones_are_updated() {
        let mut table = table();
        table.learned(at(0), ip(1), MAC, false);
        assert_eq!(table.get(ip(1)), None);
        table.learned(at(0), ip(1), MAC, true);
        table.learned(at(0), ip(1), OTHER, false);
        assert_eq!((table.get(ip(1)), table.counters().changed), (Some(OTHER), 1));
    }

    #[test]
    fn an_old_entry_is_confirmed_by_unicast_while_in_use() {
        let mut table = table();
        table.learned(at(0), ip(1), MAC, true);
        assert_eq!(table.lookup(at(59_999), ip(1)), Lookup::Resolved(MAC));
        assert!(!table.has_solicitation());
        assert_eq!(table.lookup(at(60_000), ip(1)), Lookup::Resolved(MAC));
        assert_eq!(table.poll_solicitation(), Some(Solicitation { address: ip(1), unicast: Some(MAC) }));
        table.learned(at(60_001), ip(1), MAC, false);
        assert_eq!(table.lookup(at(60_002), ip(1)), Lookup::Resolved(MAC));
        assert!(!table.has_solicitation(), "believed again");
        // Unanswered: three polls, then forgotten, and the next use asks everybody.
        table.lookup(at(200_000), ip(1));
        let unicast = Solicitation { address: ip(1), unicast: Some(MAC) };
        assert_eq!(requests(&mut table, at(206_999)).iter().map(|(_, s)| *s).collect::<Vec<_>>(), [unicast; 3]);
        table.handle_timeout(at(207_000));
        assert_eq!(table.lookup(at(207_000), ip(1)), Lookup::Unresolved);
    }

    #[test]
    fn an_idle_entry_is_forgotten() {
        let mut table = table();
        table.learned(at(0), ip(1), MAC, true);
        table.handle_timeout(at(659_999));
        assert_eq!(table.get(ip(1)), Some(MAC));
        table.handle_timeout(at(660_000));
        assert_eq!((table.get(ip(1)), table.counters().entries), (None, 0));
    }

    #[test]
    fn a_full_table_evicts_the_least_recently_used() {
        let mut table = table();
        for last in 1..=4 {
            table.learned(at(last.into()), ip(last), MAC, true);
        }
        for last in [2, 3, 4, 1] {
            table.lookup(at(9), ip(last));
            table.lookup(at(20 - u64::from(last)), ip(last));
        }
        table.learned(at(21), ip(5), MAC, true);
        assert_eq!((table.get(ip(4)), table.get(ip(1))), (None, Some(MAC)));
        assert_eq!((table.counters().evicted, table.counters().entries), (1, 4));
    }

    #[test]
    fn a_flood_of_strangers_does_not_push_out_what_is_in_use() {
        let mut table = table();
        table.learned(at(0), ip(1), MAC, true);
        table.lookup(at(0), ip(1));
        for last in 10..200 {
            table.hinted(at(last.into()), ip(last), OTHER);
        }
        assert_eq!(table.get(ip(1)), Some(MAC));
        assert_eq!((table.counters().evicted, table.counters().evicted_unused, table.counters().entries), (0, 187, 4));
    }

    /// RFC 6583 section 7.1: what a flood of forged questions costs.
    #[test]
    fn finding_what_to_evict_costs_a_few_steps_for_each_packet() {
        let max = 1024;
        let options =
            NeighbourOptions { asks_burst: u32::MAX, ask_interval: Duration::from_nanos(1), ..NeighbourOptions::default() };
        let host = |number: u32| IpAddr::from((0x0a00_0000 + number).to_be_bytes());
        let steps = |table: &NeighbourTable<u32>| table.counters().eviction_steps;
        let mut table = NeighbourTable::new(options);
        for number in 0..max {
            table.learned(at(0), host(number), MAC, true);
            table.lookup(at(1), host(number));
        }
        // Strangers take one place of those in use, and then each other's.
        let mut next = max;
        for _ in 0..10_000 {
            table.hinted(at(2), host(next), OTHER);
            next += 1;
        }
        assert_eq!((table.counters().evicted, table.counters().evicted_unused), (1, 9_999));
        assert!(steps(&table) <= 10_000 + 2 * u64::from(max), "{}", steps(&table));
        // Each of them is answered, too, while all others are busy: as many steps more as there were uses.
        let before = steps(&table);
        for round in 0..100 {
            for number in 1..max {
                table.lookup(at(3 + round), host(number));
            }
            table.hinted(at(3 + round), host(next), OTHER);
            table.lookup(at(3 + round), host(next));
            next += 1;
        }
        let busy = (1..max).filter(|number| table.get(host(*number)) == Some(MAC)).count();
        assert!(busy >= 1020, "{busy} of those in use are left");
        assert!(steps(&table) - before <= 2 * 101 * u64::from(max), "{}", steps(&table) - before);
        // What nobody has is asked for.
        let before = steps(&table);
        for _ in 0..10_000 {
            table.lookup(at(200), host(next));
            next += 1;
        }
        assert_eq!((table.counters().entries, table.incomplete), (u64::from(max), 64));
        assert!(steps(&table) - before <= 2 * 10_000 + 2 * u64::from(max), "{}", steps(&table) - before);
    }

    /// The lines do not grow with what was forgotten, and none of what is there is missing from them.
    #[test]
    fn every_entry_stands_in_line_once() {
        let mut table = table();
        let mut random = 1u32;
        for round in 0..20_000u64 {
            random = random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            let (address, now) = (ip((random >> 24) as u8 % 9), at(round * 100));
            match random >> 20 & 7 {
                0 => table.learned(now, address, MAC, true),
                1 => table.hinted(now, address, OTHER),
                2 => {
                    table.advertised(now, address, Some(MAC), true, true);
                }
                3 => table.handle_timeout(now),
                _ => {
                    table.lookup(now, address);
                }
            }
            let stands = |address: &IpAddr, entry: &Neighbour<u32>| {
                let here = |line: &Line| line.iter().filter(|p| p.address == *address && p.number == entry.place).count();
                table.lines.iter().map(here).sum::<usize>() == 1
            };
            assert!(table.entries.iter().all(|(address, entry)| stands(address, entry)), "round {round}");
            let asked = table.entries.values().filter(|entry| entry.kind() == Kind::Asked).count();
            assert_eq!(asked, table.incomplete, "round {round}");
            assert!(asked <= 2 && table.entries.len() <= 4 && table.lines.iter().all(|line| line.len() <= 9), "round {round}");
        }
    }

    fn discovery() -> NeighbourTable<u32> {
        NeighbourTable::new(NeighbourOptions::discovery())
    }

    #[test]
    fn unreachability_is_detected_as_in_rfc_4861_section_7_3_3() {
        let mut table = discovery();
        table.hinted(at(0), ip(1), MAC);
        assert_eq!(table.lookup(at(100), ip(1)), Lookup::Resolved(MAC), "STALE is used");
        assert!(!table.has_solicitation(), "DELAY: nobody is asked for 5 s");
        let unicast = Solicitation { address: ip(1), unicast: Some(MAC) };
        assert_eq!(requests(&mut table, at(8_099)), [(5_100, unicast), (6_100, unicast), (7_100, unicast)]);
        assert_eq!(table.get(ip(1)), Some(MAC), "PROBE: still in use");
        table.handle_timeout(at(8_100));
        assert_eq!(table.get(ip(1)), None, "and given up");
        let multicast = Solicitation { address: ip(1), unicast: None };
        assert_eq!(table.lookup(at(9_000), ip(1)), Lookup::Unresolved);
        assert_eq!(table.poll_solicitation(), Some(multicast));
    }

    #[test]
    fn an_advertisement_in_answer_makes_reachable_and_a_hint_does_not() {
        let mut table = discovery();
        table.lookup(at(0), ip(1));
        table.park(ip(1), 7);
        table.advertised(at(1), ip(1), None, true, true);
        assert_eq!(table.get(ip(1)), None, "INCOMPLETE needs an address");
        table.advertised(at(2), ip(1), Some(MAC), true, false);
        assert_eq!((table.get(ip(1)), table.next_ready()), (Some(MAC), Some(7)));
        while table.poll_solicitation().is_some() {}
        table.lookup(at(30_001), ip(1));
        table.handle_timeout(at(35_000));
        assert!(!table.has_solicitation(), "REACHABLE for 30 s");
        table.lookup(at(30_002), ip(1));
        table.handle_timeout(at(35_002));
        assert!(table.has_solicitation(), "DELAY is over: PROBE");
        table.advertised(at(35_003), ip(1), None, true, false);
        while table.poll_solicitation().is_some() {}
        table.handle_timeout(at(60_000));
        assert!(!table.has_solicitation(), "confirmed, without an address too");
    }

    #[test]
    fn an_address_sweep_is_asked_for_at_a_bounded_rate() {
        let options = NeighbourOptions { asks_burst: 10, ask_interval: Duration::from_millis(5), ..NeighbourOptions::default() };
        let mut table: NeighbourTable<u32> = NeighbourTable::new(options);
        let asked = |table: &mut NeighbourTable<u32>| std::iter::from_fn(|| table.poll_solicitation()).count();
        for host in 0..100u32 {
            let address = IpAddr::from((0x0a00_0000 + host).to_be_bytes());
            assert_eq!(table.lookup(at(1000), address), Lookup::Unresolved);
            table.park(address, host);
        }
        assert_eq!((asked(&mut table), table.counters().solicitations_dropped), (10, 90));
        assert_eq!((table.counters().parked_now, table.counters().parked_overflow), (10, 90));
        // There is room for two more, whoever wants them, and what is known is not asked for.
        for host in 200..210u32 {
            table.lookup(at(1010), IpAddr::from((0x0a00_0000 + host).to_be_bytes()));
        }
        assert_eq!((asked(&mut table), table.counters().solicitations_dropped), (2, 98));
        table.lookup(at(60_000), IpAddr::from([10, 0, 1, 1]));
        assert_eq!(asked(&mut table), 1);
    }

    #[test]
    fn a_solicitation_releases_what_waits_and_is_confirmed_afterwards() {
        let mut table = discovery();
        table.lookup(at(0), ip(1));
        table.park(ip(1), 7);
        table.hinted(at(10), ip(1), MAC);
        assert_eq!(table.next_ready(), Some(7));
        while table.poll_solicitation().is_some() {}
        assert_eq!(requests(&mut table, at(5_010)).len(), 1);
    }

    #[test]
    fn another_address_replaces_only_with_the_override_flag() {
        let mut table = discovery();
        table.advertised(at(0), ip(1), Some(MAC), true, true);
        assert_eq!(table.get(ip(1)), None, "makes no entry");
        table.hinted(at(0), ip(1), MAC);
        table.advertised(at(1), ip(1), None, true, false);
        table.advertised(at(2), ip(1), Some(OTHER), false, false);
        assert_eq!(table.get(ip(1)), Some(MAC));
        table.lookup(at(3), ip(1));
        table.handle_timeout(at(5_003));
        assert!(table.has_solicitation(), "but REACHABLE became STALE");
        table.advertised(at(5_004), ip(1), Some(OTHER), true, true);
        assert_eq!((table.get(ip(1)), table.counters().changed), (Some(OTHER), 1));
        // Unsolicited with the address we know: changes nothing.
        table.advertised(at(5_005), ip(1), Some(OTHER), false, true);
        table.lookup(at(35_003), ip(1));
        table.handle_timeout(at(40_000));
        assert_eq!(table.get(ip(1)), Some(OTHER));
    }

    #[test]
    fn too_many_unanswered_evict_the_oldest_of_them() {
        let mut table = table();
        for last in 1..=3 {
            table.lookup(at(last.into()), ip(last));
            table.park(ip(last), last.into());
        }
        assert_eq!(table.counters().incomplete_evicted, 1);
        assert_eq!((table.counters().parked_overflow, table.counters().parked_now), (1, 2));
        table.learned(at(9), ip(1), MAC, false);
        assert_eq!(table.get(ip(1)), None, "given up");
    }

    #[test]
    fn requests_that_nobody_fetches_are_bounded() {
        let mut table = table();
        for round in 0..10u64 {
            table.lookup(at(round), ip(round as u8 + 1));
        }
        assert_eq!(table.counters().solicitations_dropped, 6);
    }
}
