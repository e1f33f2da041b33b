//! What the byte at (file, offset) has to be, so that every byte read can be checked, and every byte written is known.
//!
//! A buffer of random bytes repeats every [`PERIOD`] bytes; a file starts in it at a place of its own. So the data of any range of
//! any file are a few contiguous pieces of the buffer: a WRITE refers to them without a copy, a READ is checked by comparing
//! memory. The period is a prime: two blocks of one file, at offsets that are multiples of 4 KiB, have the same bytes only
//! if they are more than 4 GiB apart, and two blocks of different files with a probability of one in a million. A block in a
//! wrong place, a block shifted by any number of bytes, and a hole (zeroes) therefore show.
//!
//! Not here: what was there before. A READ that returns the bytes of an older WRITE of the same range returns the right bytes.

use crate::buf::{PageMut, PagePool, Slice, View};

/// Bytes after which the pattern repeats: the largest prime below 2^20.
pub const PERIOD: u64 = 1_048_573;

/// Bytes of the buffer: from every place in the period a contiguous MiB follows.
const BUFFER: usize = 2 << 20;

/// How far apart the starts of two files are in the period. Random, and less than the period, so that every file has its own start.
const FILE_STRIDE: u64 = 669_259;

/// The buffer, in memory that the transport can send from.
#[derive(Clone)]
pub struct Pattern {
    bytes: Slice,
}

impl Pattern {
    /// The size of the block that `in_pool` takes, bytes.
    pub const BLOCK: usize = BUFFER;

    /// `None`: the pool has no block, or its blocks are smaller than [`Pattern::BLOCK`].
    pub fn in_pool(pool: &PagePool) -> Option<Pattern> {
        let mut page = pool.allocate()?;
        if page.len() < BUFFER {
            return None;
        }
        fill(&mut page);
        Some(Pattern { bytes: page.freeze() })
    }

    fn start(file: u32, offset: u64) -> usize {
        // Each term is reduced first: no overflow for any file and offset.
        ((u64::from(file) * FILE_STRIDE % PERIOD + offset % PERIOD) % PERIOD) as usize
    }

    /// Calls `each` with the contiguous ranges of the buffer that make up `len` bytes from `offset` of `file`.
    fn ranges(file: u32, offset: u64, len: usize, mut each: impl FnMut(std::ops::Range<usize>)) {
        let mut done = 0;
        while done < len {
            let start = Pattern::start(file, offset + done as u64);
            let piece = (len - done).min(BUFFER - start);
            each(start..start + piece);
            done += piece;
        }
    }

    /// Appends the bytes of a range by reference.
    pub fn gather(&self, file: u32, offset: u64, len: usize, out: &mut Vec<Slice>) {
        Pattern::ranges(file, offset, len, |range| out.push(self.bytes.slice(range)));
    }

    /// How many bytes of `data`, read from `offset` of `file`, are not what they have to be.
    pub fn wrong_bytes(&self, file: u32, offset: u64, data: View<'_>) -> u64 {
        let mut at = offset;
        let mut wrong = 0;
        for piece in data.pieces() {
            let mut rest = piece;
            Pattern::ranges(file, at, piece.len(), |range| {
                let expected = &self.bytes[range];
                let (found, behind) = rest.split_at(expected.len());
                // Comparing whole memory is what a CPU is fastest at; counting is only for what is wrong.
                if found != expected {
                    wrong += found.iter().zip(expected).filter(|(a, b)| a != b).count() as u64;
                }
                rest = behind;
            });
            at += piece.len() as u64;
        }
        wrong
    }
}

/// The same bytes in every process: what one run writes, another can check.
fn fill(page: &mut PageMut) {
    let mut random = crate::net::memory_link::Random::new(0x6e66_7370_6c69_6365);
    let (period, repeated) = page.split_at_mut(PERIOD as usize);
    for chunk in period.chunks_mut(8) {
        let word = random.draw().to_le_bytes();
        chunk.copy_from_slice(&word[..chunk.len()]);
    }
    for (to, from) in repeated.chunks_mut(PERIOD as usize).map(|chunk| (chunk, &*period)) {
        let len = to.len();
        to.copy_from_slice(&from[..len]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn pattern() -> Pattern {
        Pattern::in_pool(&PagePool::anonymous(1, BUFFER).unwrap()).unwrap()
    }

    fn bytes(pattern: &Pattern, file: u32, offset: u64, len: usize) -> Vec<u8> {
        let mut out = Vec::new();
        pattern.gather(file, offset, len, &mut out);
        out.iter().flat_map(|slice| slice.to_vec()).collect()
    }

    #[test]
    fn any_range_is_a_part_of_the_whole() {
        let pattern = pattern();
        let whole = bytes(&pattern, 3, 0, 3 << 20);
        proptest!(ProptestConfig::with_cases(64), |(offset in 0usize..2 << 20, len in 0usize..1 << 20)| {
            prop_assert!(bytes(&pattern, 3, offset as u64, len) == whole[offset..offset + len]);
        });
        let at = u64::MAX - (4 << 20);
        assert_eq!(bytes(&pattern, u32::MAX, at, 100)[50..], bytes(&pattern, u32::MAX, at + 50, 50));
    }

    #[test]
    fn a_mebibyte_is_sent_as_one_piece() {
        let pattern = pattern();
        for offset in [0, 1 << 20, PERIOD - 1] {
            let mut out = Vec::new();
            pattern.gather(0, offset, 1 << 20, &mut out);
            assert_eq!(out.len(), 1);
        }
    }

    #[test]
    fn a_wrong_byte_anywhere_is_found_and_counted() {
        let pattern = pattern();
        let mut data = bytes(&pattern, 9, 4096, 10_000);
        assert_eq!(pattern.wrong_bytes(9, 4096, View::from(&data[..])), 0);
        for at in [0, 5000, 9999] {
            data[at] ^= 1;
        }
        assert_eq!(pattern.wrong_bytes(9, 4096, View::from(&data[..])), 3);
    }

    #[test]
    fn blocks_in_wrong_places_shifted_blocks_and_holes_show() {
        let pattern = pattern();
        let data = bytes(&pattern, 1, 0, 4096);
        for file in 0..64 {
            for block in 0..64u64 {
                let same = (file, block) == (1, 0);
                assert_eq!(pattern.wrong_bytes(file, block * 4096, View::from(&data[..])) == 0, same, "{file} {block}");
            }
        }
        assert!(pattern.wrong_bytes(1, 1, View::from(&data[..])) > 3000);
        assert!(pattern.wrong_bytes(1, 0, View::from(&[0; 4096][..])) > 3000);
    }
}
