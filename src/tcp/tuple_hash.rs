//! The hash of the tables that peers choose keys for: one multiplication for each eight bytes.
//!
//! Keyed with the endpoint's secret, so that a peer cannot aim at one bucket: which keys collide follows from numbers that it does
//! not know, and a table's answers tell it nothing of them (Linux hashes its connections by a keyed jhash for the same reason).
//! Not for what a peer gets to see: sequence numbers, ports and cookies are made by SipHash.

use std::hash::{BuildHasher, Hasher};

/// The key.
#[derive(Clone, Copy)]
pub(crate) struct TupleHash {
    start: u64,
    factor: u64,
}

impl TupleHash {
    pub fn new(secret: [u8; 16]) -> TupleHash {
        let [start, factor] = [0, 8].map(|at| {
            let mut half = [0; 8];
            half.copy_from_slice(&secret[at..at + 8]);
            u64::from_ne_bytes(half)
        });
        // An even factor would lose bits.
        TupleHash { start, factor: factor | 1 }
    }
}

impl BuildHasher for TupleHash {
    type Hasher = FoldedMultiply;

    fn build_hasher(&self) -> FoldedMultiply {
        FoldedMultiply { state: self.start, factor: self.factor }
    }
}

pub(crate) struct FoldedMultiply {
    state: u64,
    factor: u64,
}

impl Hasher for FoldedMultiply {
    #[inline]
    fn write_u64(&mut self, word: u64) {
        let product = u128::from(self.state ^ word) * u128::from(self.factor);
        // Both halves: every bit of the word reaches every bit of the state.
        self.state = product as u64 ^ (product >> 64) as u64;
    }

    fn write(&mut self, bytes: &[u8]) {
        for chunk in bytes.chunks(8) {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            self.write_u64(u64::from_le_bytes(word));
        }
        self.write_u64(bytes.len() as u64);
    }

    #[inline]
    fn finish(&self) -> u64 {
        // The last word went through one multiplication only.
        let product = u128::from(self.state) * u128::from(self.factor);
        product as u64 ^ (product >> 64) as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tcp::FourTuple;
    use std::collections::HashSet;

    /// Buckets that hold the most, of as many as there are keys.
    fn fullest(hash: &TupleHash, tuples: impl Iterator<Item = FourTuple>) -> usize {
        let mut buckets = vec![0; 4096];
        tuples.for_each(|tuple| buckets[hash.hash_one(tuple) as usize % 4096] += 1);
        buckets.into_iter().max().unwrap()
    }

    #[test]
    fn neighbouring_tuples_spread_under_any_key() {
        for seed in 0..16u8 {
            let hash = TupleHash::new(std::array::from_fn(|at| seed.wrapping_mul(37).wrapping_add(at as u8 * 11)));
            let tuple = |address: u32, port: u16| FourTuple {
                local_ip: [10, 77, 0, 2].into(),
                remote_ip: std::net::Ipv4Addr::from(0x0a4d_0000 + address).into(),
                local_port: 2049,
                remote_port: port,
            };
            // A random function has about 7 in the fullest of as many buckets as keys.
            let ports = fullest(&hash, (0..4096).map(|n| tuple(1, n * 16 + 3)));
            let addresses = fullest(&hash, (0..4096).map(|n| tuple(n, 1023)));
            assert!(ports <= 16 && addresses <= 16, "{ports}, {addresses} under key {seed}");
        }
    }

    #[test]
    fn length_and_family_count() {
        let hash = TupleHash::new([7; 16]);
        let keys: [&[u8]; 4] = [b"", b"\0", b"\0\0", b"\0\0\0\0\0\0\0\0\0"];
        assert_eq!(keys.iter().map(|key| hash.hash_one(key)).collect::<HashSet<_>>().len(), 4);
    }
}
