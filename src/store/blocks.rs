//! The data of a file as a table of blocks of page memory, copied on write.
//!
//! A block is a `Slice` from the front of its page; it may be shorter than the page (nothing was written further back, or
//! the file was truncated there), and what is missing reads as zeroes. So truncating never touches bytes, which a reader or
//! a send queue may still hold, and never needs memory.
//!
//! Not here: the size of the file, locks, where clean blocks can be read again from (the local store's page cache).

use super::block_table::BlockTable;
use crate::buf::{PagePool, Slice, View};

/// Bytes from which on a WRITE goes to memory past the caches. What is smaller is often metadata, and read again soon.
const PAST_CACHES_MIN: usize = 16 << 10;

/// Writes `data` at byte `at` of a block (`None`: a hole) and gives the block back: in place if nobody else refers to its
/// page, else in a fresh page, so that bytes which somebody can see never change. Tells whether old bytes had to be copied.
///
/// `Err`: the pool is exhausted; the block comes back unchanged. The caller keeps `at + data.len()` within the page.
pub fn write_block(block: Option<Slice>, pool: &PagePool, at: usize, data: View<'_>) -> Result<(Slice, bool), Option<Slice>> {
    let end = at + data.len();
    let valid = block.as_ref().map_or(0, |block| block.len());
    let (mut page, copied) = match block.map(Slice::try_into_mut) {
        Some(Ok(page)) => (page, false),
        Some(Err(shared)) => {
            let Some(mut page) = pool.allocate() else { return Err(Some(shared)) };
            // Only what the new data leaves standing.
            let front = at.min(valid);
            page[..front].copy_from_slice(&shared[..front]);
            if end < valid {
                page[end..valid].copy_from_slice(&shared[end..]);
            }
            (page, front > 0 || end < valid)
        }
        None => match pool.allocate() {
            Some(page) => (page, false),
            None => return Err(None),
        },
    };
    if valid < at {
        page[valid..at].fill(0);
    }
    if data.len() < PAST_CACHES_MIN {
        data.copy_to(&mut page[at..end]);
    } else {
        data.copy_past_caches(&mut page[at..end]);
    }
    let mut block = page.freeze();
    block.truncate(valid.max(end));
    Ok((block, copied))
}

/// What became of a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Wrote {
    /// Bytes from the front of the data that are in the file now; fewer than asked: memory or budget ran out.
    pub bytes: usize,
    /// Blocks the file has more than before.
    pub blocks_added: u64,
    /// Blocks whose old bytes had to be copied because somebody held their page.
    pub blocks_copied: u64,
}

/// The blocks of one file. All blocks have the block size of the pool that is passed to `write`.
#[derive(Default)]
pub struct Blocks {
    table: BlockTable<Slice>,
}

impl Blocks {
    /// Blocks that hold memory.
    pub fn count(&self) -> u64 {
        self.table.len()
    }

    /// Writes `data` at `offset`, at most `blocks_left` new blocks of it. The caller has checked that the end fits in 64 bits.
    pub fn write(&mut self, pool: &PagePool, offset: u64, data: View<'_>, blocks_left: u64) -> Wrote {
        let block_size = pool.block_size();
        let mut wrote = Wrote::default();
        while wrote.bytes < data.len() {
            let position = offset + wrote.bytes as u64;
            let (number, at) = (position / block_size as u64, (position % block_size as u64) as usize);
            let len = (block_size - at).min(data.len() - wrote.bytes);
            let Some(part) = data.part(wrote.bytes, len) else { break };
            if let Some(entry) = self.table.entry(number) {
                match write_block(entry.take(), pool, at, part) {
                    Ok((block, copied)) => {
                        *entry = Some(block);
                        wrote.blocks_copied += u64::from(copied);
                    }
                    Err(old) => {
                        *entry = old;
                        break;
                    }
                }
            } else if wrote.blocks_added < blocks_left {
                let Ok((block, _)) = write_block(None, pool, at, part) else { break };
                self.table.insert(number, block);
                wrote.blocks_added += 1;
            } else {
                break;
            }
            wrote.bytes += len;
        }
        wrote
    }

    /// Appends `count` bytes from `offset` on to `pages`, by reference. `zeroes` is one whole block of zero bytes, its length
    /// the block size; holes are made of it. The caller has checked that the end fits in 64 bits.
    pub fn read(&self, offset: u64, count: u32, zeroes: &Slice, pages: &mut Vec<Slice>) {
        let block_size = zeroes.len() as u64;
        let (mut number, mut at) = (offset / block_size, (offset % block_size) as usize);
        let mut left = count as usize;
        while left > 0 {
            for block in self.table.run(number) {
                let to = (at + left).min(block_size as usize);
                left -= to - at;
                let valid = match block {
                    Some(block) => {
                        let valid = block.len().min(to);
                        if at < valid {
                            pages.push(block.slice(at..valid));
                        }
                        valid
                    }
                    None => 0,
                };
                if valid.max(at) < to {
                    pages.push(zeroes.slice(valid.max(at)..to));
                }
                (number, at) = (number + 1, 0);
                if left == 0 {
                    break;
                }
            }
        }
    }

    /// A read at `offset` is about to come.
    pub fn prefetch(&self, block_size: usize, offset: u64) {
        self.table.prefetch(offset / block_size as u64);
    }

    /// Forgets everything from `size` on; tells how many blocks the file has less.
    pub fn truncate(&mut self, block_size: usize, size: u64) -> u64 {
        let before = self.table.len();
        self.table.remove_from(size.div_ceil(block_size as u64), drop);
        let keep = (size % block_size as u64) as usize;
        if keep != 0
            && let Some(last) = self.table.get_mut(size / block_size as u64)
        {
            last.truncate(keep);
        }
        before - self.table.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BLOCK: usize = 512;

    fn pool(blocks: usize) -> (PagePool, Slice) {
        let pool = PagePool::anonymous(blocks, BLOCK).unwrap();
        let mut zeroes = pool.allocate().unwrap();
        zeroes.fill(0);
        (pool, zeroes.freeze())
    }

    fn bytes(blocks: &Blocks, offset: u64, count: u32, zeroes: &Slice) -> Vec<u8> {
        let mut pages = Vec::new();
        blocks.read(offset, count, zeroes, &mut pages);
        pages.iter().flat_map(|page| page.to_vec()).collect()
    }

    #[test]
    fn reads_see_writes_holes_and_truncation() {
        let (pool, zeroes) = pool(16);
        let mut blocks = Blocks::default();
        let mut model = vec![0u8; 3000];
        let writes: [(usize, usize, u8); 6] =
            [(10, 20, 1), (500, 600, 2), (2000, 100, 3), (0, 512, 4), (1024, 512, 5), (2100, 1, 6)];
        for (at, len, value) in writes {
            let data = vec![value; len];
            let wrote = blocks.write(&pool, at as u64, View::from(&data[..]), u64::MAX);
            assert_eq!(wrote.bytes, len);
            model[at..at + len].fill(value);
            assert_eq!(bytes(&blocks, 0, 3000, &zeroes), model);
            assert_eq!(bytes(&blocks, 505, 1600, &zeroes), model[505..2105]);
        }
        for size in [2050usize, 1024, 700, 5] {
            blocks.truncate(BLOCK, size as u64);
            model[size..].fill(0);
            assert_eq!(bytes(&blocks, 0, 3000, &zeroes), model, "size {size}");
        }
        let wrote = blocks.write(&pool, 20, View::from(&b"x"[..]), u64::MAX);
        model[20] = b'x';
        assert_eq!((wrote.bytes, wrote.blocks_added), (1, 0));
        assert_eq!(bytes(&blocks, 0, 600, &zeroes), model[..600], "bytes cut off do not come back");
        assert_eq!(blocks.truncate(BLOCK, 0), 1);
        assert_eq!(pool.outstanding(), 1, "the zero page");
    }

    #[test]
    fn a_held_page_never_changes() {
        let (pool, zeroes) = pool(16);
        let mut blocks = Blocks::default();
        blocks.write(&pool, 0, View::from(&[1u8; 600][..]), u64::MAX);
        let mut held = Vec::new();
        blocks.read(0, 600, &zeroes, &mut held);
        let wrote = blocks.write(&pool, 100, View::from(&[2u8; 300][..]), u64::MAX);
        assert_eq!((wrote.blocks_added, wrote.blocks_copied), (0, 1));
        blocks.truncate(BLOCK, 50);
        blocks.write(&pool, 300, View::from(&[3u8; 10][..]), u64::MAX);
        assert!(held.iter().all(|slice| slice.iter().all(|byte| *byte == 1)));
        let mut expected = vec![1; 50];
        expected.resize(300, 0);
        expected.resize(310, 3);
        assert_eq!(bytes(&blocks, 0, 310, &zeroes), expected);
        drop(held);
        let before = bytes(&blocks, 0, 1, &zeroes);
        let mut address = Vec::new();
        blocks.read(0, 1, &zeroes, &mut address);
        let address = address.pop().map(|slice| slice.address());
        assert_eq!(blocks.write(&pool, 0, View::from(&[9u8][..]), u64::MAX).blocks_copied, 0);
        let mut after = Vec::new();
        blocks.read(0, 1, &zeroes, &mut after);
        assert_eq!(after.pop().map(|slice| slice.address()), address, "in place when nobody holds it");
        assert_eq!(before, [1]);
    }

    #[test]
    fn running_out_writes_what_fits() {
        let (pool, zeroes) = pool(3);
        let mut blocks = Blocks::default();
        let data = [7u8; 4 * BLOCK];
        let wrote = blocks.write(&pool, 0, View::from(&data[..]), u64::MAX);
        assert_eq!((wrote.bytes, wrote.blocks_added), (2 * BLOCK, 2), "three pages, one of them zeroes");
        let mut held = Vec::new();
        blocks.read(0, 1, &zeroes, &mut held);
        assert_eq!(blocks.write(&pool, 0, View::from(&data[..]), u64::MAX).bytes, 0);
        assert_eq!(bytes(&blocks, 0, 1024, &zeroes), data[..1024], "a failed write loses nothing");
        let mut budgeted = Blocks::default();
        assert_eq!(budgeted.write(&pool, 0, View::from(&data[..]), 0), Wrote::default());
    }

    #[test]
    fn offsets_far_beyond_four_gibibytes() {
        let (pool, zeroes) = pool(4);
        let mut blocks = Blocks::default();
        let offset = i64::MAX as u64 - 600;
        blocks.write(&pool, offset, View::from(&[5u8; 600][..]), u64::MAX);
        assert_eq!(blocks.count(), 2);
        assert_eq!(bytes(&blocks, offset, 600, &zeroes), [5u8; 600]);
        assert_eq!(bytes(&blocks, 1 << 40, 10, &zeroes), [0; 10]);
    }
}
