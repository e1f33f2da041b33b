//! Per-core space for reply heads and tails: fragments of pages, filled front to back, one page after the other.

use super::{Fragment, PagePool, Slice};

/// Hands out room for encoded pieces; a page returns to the pool when the last piece in it was acknowledged.
pub struct FragmentArena {
    pool: PagePool,
    current: Option<Fragment>,
    zeroes: Slice,
    /// Pages of the pool that are left to others.
    leaves: usize,
}

impl FragmentArena {
    /// `None` if the pool cannot spare the two pages an arena starts with.
    pub fn new(pool: PagePool) -> Option<FragmentArena> {
        let mut zeroes = pool.allocate()?;
        zeroes.fill(0);
        let current = pool.allocate()?.into_fragment();
        Some(FragmentArena { pool, current: Some(current), zeroes: zeroes.freeze(), leaves: 0 })
    }

    /// The same, but it takes no page while the pool has no more than `pages` left: what others need the pool for has
    /// precedence.
    pub fn leaving(pool: PagePool, pages: usize) -> Option<FragmentArena> {
        FragmentArena::new(pool).map(|arena| FragmentArena { leaves: pages, ..arena })
    }

    /// The largest piece that can ever be reserved, bytes.
    pub fn piece_max(&self) -> usize {
        self.pool.block_size()
    }

    /// A fragment with at least `len` bytes of room: write into its `spare`, then `commit` what was used.
    /// `None`: the pool is exhausted, or `len` is larger than a page; the caller refuses the work.
    #[inline]
    pub fn reserve(&mut self, len: usize) -> Option<&mut Fragment> {
        if self.current.as_ref().is_none_or(|fragment| fragment.room() < len) {
            self.turn_page(len)?;
        }
        self.current.as_mut()
    }

    /// Whether `len` bytes in pieces of `piece_max` are to be had, each with a page to itself.
    pub fn has_room_for(&self, len: usize) -> bool {
        let free = self.pool.blocks().saturating_sub(self.pool.outstanding()).saturating_sub(self.leaves);
        len.div_ceil(self.piece_max()) <= free
    }

    /// Goes back to the front of the page if it can, else to another one.
    #[cold]
    fn turn_page(&mut self, len: usize) -> Option<()> {
        if len > self.pool.block_size() {
            return None;
        }
        if !self.current.as_mut().is_some_and(Fragment::recycle) {
            if self.leaves > 0 && self.pool.blocks().saturating_sub(self.pool.outstanding()) <= self.leaves {
                return None;
            }
            self.current = Some(self.pool.allocate()?.into_fragment());
        }
        Some(())
    }

    /// `len` zero bytes that live for ever: XDR padding, holes in sparse files. At most a page.
    pub fn zeroes(&self, len: usize) -> Slice {
        self.zeroes.slice(0..len.min(self.zeroes.len()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_follow_each_other_and_return() {
        let pool = PagePool::anonymous(4, 512).unwrap();
        let mut arena = FragmentArena::new(pool.clone()).unwrap();
        let mut pieces = Vec::new();
        for _ in 0..6 {
            pieces.push(arena.reserve(200).unwrap().commit(200));
        }
        assert_eq!(pool.outstanding(), 4, "zeroes and three pages of two pieces each");
        assert!(arena.reserve(200).is_none(), "exhausted");
        assert!(!arena.has_room_for(1));
        pieces.clear();
        assert!(arena.reserve(200).is_some());
        assert!(arena.has_room_for(2 * 512) && !arena.has_room_for(2 * 512 + 1), "pages of 512 octets");
        assert!(arena.reserve(513).is_none(), "larger than a page");
    }

    #[test]
    fn an_arena_that_leaves_pages_to_others_does() {
        let pool = PagePool::anonymous(6, 512).unwrap();
        let mut arena = FragmentArena::leaving(pool.clone(), 2).unwrap();
        let pieces: Vec<_> = std::iter::from_fn(|| arena.reserve(512).map(|fragment| fragment.commit(512))).collect();
        assert_eq!((pieces.len(), pool.outstanding()), (3, 4));
        let other = FragmentArena::new(pool.clone());
        assert!(other.is_some() && pool.outstanding() == 6);
        drop((pieces, other));
        assert!(arena.reserve(512).is_some());
    }
}
