//! A hierarchical timer wheel: arm, cancel and expire in O(1), no allocation per arm.
//!
//! Read first: Varghese and Lauck, "Hashed and Hierarchical Timing Wheels" (1987). One timer per key (a slab index); arming
//! it again moves it. A timer never fires early and at most one `TICK` late. Not here: what a timer means, and the clock.

use super::{Duration, Instant};

/// Nanoseconds per tick as a power of two: 131 us, finer than any timer of TCP.
const TICK_SHIFT: u32 = 17;
/// The wheel's resolution.
pub const TICK: Duration = Duration::from_nanos(1 << TICK_SHIFT);
/// Bits of the tick count each level resolves: 64 slots.
const SLOT_BITS: u32 = 6;
const SLOTS: usize = 1 << SLOT_BITS;
/// 47 bits of ticks at 131 us: all of `Instant`'s range.
const LEVELS: usize = 8;
const NONE: u32 = u32::MAX;

#[derive(Clone, Copy)]
struct Entry {
    previous: u32,
    next: u32,
    /// `level * SLOTS + slot`, or `NONE` when not armed.
    bucket: u32,
    when: u64,
}

/// Timers keyed by small integers.
pub struct TimerWheel {
    entries: Vec<Entry>,
    heads: Box<[u32]>,
    occupied: [u64; LEVELS],
    /// The tick up to which everything has expired.
    elapsed: u64,
    armed: usize,
}

impl Default for TimerWheel {
    fn default() -> Self {
        TimerWheel::new()
    }
}

impl TimerWheel {
    pub fn new() -> TimerWheel {
        let heads = vec![NONE; LEVELS * SLOTS].into_boxed_slice();
        TimerWheel { entries: Vec::new(), heads, occupied: [0; LEVELS], elapsed: 0, armed: 0 }
    }

    /// Timers armed now.
    pub fn armed(&self) -> usize {
        self.armed
    }

    /// Makes `key` fire at `deadline`, whatever it was armed for before. Memory grows with the largest key ever used.
    pub fn arm(&mut self, key: u32, deadline: Instant) {
        let index = key as usize;
        if index >= self.entries.len() {
            self.entries.resize(index + 1, Entry { previous: NONE, next: NONE, bucket: NONE, when: 0 });
        }
        self.cancel(key);
        // Rounded up, and never into what has passed: the next `poll` fires it.
        let when = (deadline.nanos() >> TICK_SHIFT) + u64::from(deadline.nanos() & ((1 << TICK_SHIFT) - 1) != 0);
        self.entries[index].when = when.max(self.elapsed);
        self.insert(key);
        self.armed += 1;
    }

    /// Disarms `key`; nothing happens if it is not armed.
    pub fn cancel(&mut self, key: u32) {
        if self.entries.get(key as usize).is_some_and(|entry| entry.bucket != NONE) {
            self.unlink(key);
            self.armed -= 1;
        }
    }

    /// A key whose deadline has come by `now`, disarmed; call until `None`.
    pub fn poll(&mut self, now: Instant) -> Option<u32> {
        let now = now.nanos() >> TICK_SHIFT;
        loop {
            let Some((level, slot, deadline)) = self.next_slot() else {
                self.elapsed = self.elapsed.max(now);
                return None;
            };
            if deadline > now {
                self.elapsed = self.elapsed.max(now);
                return None;
            }
            self.elapsed = self.elapsed.max(deadline);
            let mut key = self.heads[level * SLOTS + slot];
            if level == 0 {
                self.unlink(key);
                self.armed -= 1;
                return Some(key);
            }
            // A coarse slot was reached: all its timers move to finer ones, each at most LEVELS times in its life.
            while key != NONE {
                let next = self.entries[key as usize].next;
                self.unlink(key);
                self.insert(key);
                key = next;
            }
        }
    }

    /// When to `poll` next. May be earlier than the next timer (never later): a coarse slot has to be spread then.
    pub fn next_timeout(&self) -> Option<Instant> {
        let (_, _, deadline) = self.next_slot()?;
        Some(Instant::from_nanos(deadline.saturating_mul(1 << TICK_SHIFT)))
    }

    fn next_slot(&self) -> Option<(usize, usize, u64)> {
        for level in 0..LEVELS {
            let occupied = self.occupied[level];
            if occupied == 0 {
                continue;
            }
            // Finer levels only hold slots of the current coarser slot, so the first occupied level has the earliest.
            let shift = level as u32 * SLOT_BITS;
            let current = (self.elapsed >> shift) as usize % SLOTS;
            let ahead = occupied.rotate_right(current as u32).trailing_zeros() as u64;
            let base = (self.elapsed >> shift) + ahead;
            return Some((level, base as usize % SLOTS, base << shift));
        }
        None
    }

    fn insert(&mut self, key: u32) {
        let when = self.entries[key as usize].when;
        // The highest digit in which `when` differs from `elapsed` decides the level.
        let differ = (when ^ self.elapsed) | (SLOTS as u64 - 1);
        let level = (((63 - differ.leading_zeros()) / SLOT_BITS) as usize).min(LEVELS - 1);
        let slot = (when >> (level as u32 * SLOT_BITS)) as usize % SLOTS;
        let bucket = level * SLOTS + slot;
        let head = self.heads[bucket];
        if head != NONE {
            self.entries[head as usize].previous = key;
        }
        let entry = &mut self.entries[key as usize];
        (entry.previous, entry.next, entry.bucket) = (NONE, head, bucket as u32);
        self.heads[bucket] = key;
        self.occupied[level] |= 1 << slot;
    }

    fn unlink(&mut self, key: u32) {
        let Entry { previous, next, bucket, .. } = self.entries[key as usize];
        if previous == NONE {
            self.heads[bucket as usize] = next;
        } else {
            self.entries[previous as usize].next = next;
        }
        if next != NONE {
            self.entries[next as usize].previous = previous;
        }
        self.entries[key as usize].bucket = NONE;
        if self.heads[bucket as usize] == NONE {
            self.occupied[bucket as usize / SLOTS] &= !(1 << (bucket as usize % SLOTS));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    fn fired(wheel: &mut TimerWheel, now: Instant) -> Vec<u32> {
        let mut keys: Vec<u32> = std::iter::from_fn(|| wheel.poll(now)).collect();
        keys.sort_unstable();
        keys
    }

    #[test]
    fn a_timer_fires_once_and_not_early() {
        let mut wheel = TimerWheel::new();
        wheel.arm(3, Instant::from_millis(200));
        assert!(fired(&mut wheel, Instant::from_millis(199)).is_empty());
        assert_eq!(fired(&mut wheel, Instant::from_millis(201)), [3]);
        assert!(fired(&mut wheel, Instant::from_millis(9_000)).is_empty());
        assert_eq!((wheel.armed(), wheel.next_timeout()), (0, None));
    }

    #[test]
    fn a_deadline_in_the_past_fires_at_once() {
        let mut wheel = TimerWheel::new();
        assert!(fired(&mut wheel, Instant::from_millis(5_000)).is_empty());
        wheel.arm(0, Instant::from_millis(1));
        assert_eq!(fired(&mut wheel, Instant::from_millis(5_000)), [0]);
    }

    #[test]
    fn the_end_of_time_does_not_overflow() {
        let mut wheel = TimerWheel::new();
        wheel.arm(0, Instant::FAR_FUTURE);
        assert!(wheel.next_timeout().is_some());
        assert!(wheel.poll(Instant::from_millis(1 << 40)).is_none());
    }

    proptest! {
        #[test]
        fn it_agrees_with_a_sorted_map(
            steps in proptest::collection::vec((0u32..40, 0u64..5_000_000, 0u8..8), 1..300)
        ) {
            let mut wheel = TimerWheel::new();
            let mut model: BTreeMap<u32, Instant> = BTreeMap::new();
            let mut now = Instant::ZERO;
            for (key, micros, what) in steps {
                match what {
                    0..=4 => {
                        let deadline = now + Duration::from_micros(micros >> (what * 4));
                        wheel.arm(key, deadline);
                        model.insert(key, deadline);
                    }
                    5 => {
                        wheel.cancel(key);
                        model.remove(&key);
                    }
                    _ => {
                        now += Duration::from_micros(micros / 8);
                        let keys = fired(&mut wheel, now);
                        for key in keys {
                            let deadline = model.remove(&key);
                            prop_assert!(deadline.is_some_and(|deadline| deadline <= now), "fired early or unarmed");
                        }
                        for deadline in model.values() {
                            prop_assert!(*deadline + TICK > now, "overdue by more than a tick");
                        }
                    }
                }
                prop_assert_eq!(wheel.armed(), model.len());
                if let (Some(next), Some(first)) = (wheel.next_timeout(), model.values().min()) {
                    prop_assert!(next <= (*first).max(now) + TICK);
                }
            }
        }
    }
}
