//! Copying past the caches: for bytes that this core will not look at, into memory that is not in a cache.
//!
//! An ordinary store first fetches the line that it is going to overwrite. A page that a WRITE fills is cold, and nobody reads it
//! soon, or a device does: stores that do not fetch (`movntdq`) save half of the memory's traffic. They are only good if whole
//! lines are written at once, and what arrives comes in pieces that end anywhere: the line in which one piece ends and the next
//! begins is put together first. Figures: docs/performance.md.

/// What a store that does not fetch should fill, in bytes: a cache line.
const LINE: usize = 64;

/// Copies `pieces`, one behind the other, to the front of `into`, as many bytes as there are or fit; tells how many.
pub fn copy_past_caches<'a>(pieces: impl Iterator<Item = &'a [u8]>, into: &mut [u8]) -> usize {
    let mut filler = Filler::new(into);
    for piece in pieces {
        filler.add(piece);
    }
    filler.finish()
}

/// Lines not of `into` but of memory: its first bytes may belong to a line that begins before it.
struct Filler<'a> {
    into: &'a mut [u8],
    /// Bytes of `into` that are written.
    done: usize,
    /// Bytes that wait for the rest of their line, and how many; they belong at `done`.
    line: [u8; LINE],
    waiting: usize,
}

impl<'a> Filler<'a> {
    fn new(into: &'a mut [u8]) -> Filler<'a> {
        Filler { into, done: 0, line: [0; LINE], waiting: 0 }
    }

    fn add(&mut self, piece: &[u8]) {
        let room = self.into.len() - self.done - self.waiting;
        let mut piece = &piece[..piece.len().min(room)];
        let before_line = self.into[self.done..].as_ptr().align_offset(LINE);
        if self.waiting == 0 && before_line > 0 {
            let (front, rest) = piece.split_at(before_line.min(piece.len()));
            self.into[self.done..self.done + front.len()].copy_from_slice(front);
            self.done += front.len();
            piece = rest;
        }
        if self.waiting > 0 {
            let (front, rest) = piece.split_at((LINE - self.waiting).min(piece.len()));
            self.line[self.waiting..self.waiting + front.len()].copy_from_slice(front);
            self.waiting += front.len();
            piece = rest;
            if self.waiting < LINE {
                return;
            }
            let line = self.line;
            store_lines(&mut self.into[self.done..self.done + LINE], &line);
            (self.done, self.waiting) = (self.done + LINE, 0);
        }
        let whole = piece.len() / LINE * LINE;
        let (lines, rest) = piece.split_at(whole);
        store_lines(&mut self.into[self.done..self.done + whole], lines);
        self.done += whole;
        self.line[..rest.len()].copy_from_slice(rest);
        self.waiting = rest.len();
    }

    fn finish(self) -> usize {
        let end = self.done + self.waiting;
        self.into[self.done..end].copy_from_slice(&self.line[..self.waiting]);
        fence();
        end
    }
}

/// Whole lines, if `to` is at the beginning of one; else an ordinary copy. Both are of one length.
#[cfg(target_arch = "x86_64")]
#[inline]
fn store_lines(to: &mut [u8], from: &[u8]) {
    use std::arch::x86_64::{__m128i, _mm_loadu_si128, _mm_stream_si128};
    const QUARTER: usize = LINE / 4;
    if to.as_ptr().align_offset(LINE) != 0 || to.len() != from.len() {
        return to.copy_from_slice(from);
    }
    for (to, from) in to.chunks_exact_mut(LINE).zip(from.chunks_exact(LINE)) {
        let (to, from) = (to.as_mut_ptr(), from.as_ptr());
        // SAFETY: SSE2 is part of x86-64. Both chunks have LINE bytes; loads may be unaligned, and the stores are aligned: `to`
        // is at the beginning of a line. `fence` is called before anybody else may see the bytes.
        unsafe {
            let quarters = [0, 1, 2, 3].map(|n| _mm_loadu_si128(from.add(n * QUARTER).cast::<__m128i>()));
            for (n, quarter) in quarters.into_iter().enumerate() {
                _mm_stream_si128(to.add(n * QUARTER).cast::<__m128i>(), quarter);
            }
        }
    }
}

#[cfg(not(target_arch = "x86_64"))]
fn store_lines(to: &mut [u8], from: &[u8]) {
    to.copy_from_slice(from);
}

/// These stores are not ordered with those that follow, such as the one by which a page changes hands.
fn fence() {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: SSE is part of x86-64; the instruction has no operands.
    unsafe {
        std::arch::x86_64::_mm_sfence()
    };
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn the_bytes_are_those_of_the_pieces(
            lengths in proptest::collection::vec(0usize..200, 0..12),
            start in 0usize..70,
            room in 0usize..1200,
        ) {
            let mut next = 0u8;
            let mut byte = || { next = next.wrapping_mul(5).wrapping_add(1); next };
            let pieces: Vec<Vec<u8>> = lengths.iter().map(|len| (0..*len).map(|_| byte()).collect()).collect();
            let mut memory = vec![0xee; start + room + 64];
            let copied = copy_past_caches(pieces.iter().map(|piece| &piece[..]), &mut memory[start..start + room]);
            let all = pieces.concat();
            prop_assert_eq!(copied, all.len().min(room));
            prop_assert_eq!(&memory[start..start + copied], &all[..copied]);
            prop_assert!(memory[..start].iter().chain(&memory[start + copied..]).all(|byte| *byte == 0xee));
        }
    }
}
