//! The currency between the rooms.
//!
//! Going out: `Slice`s of pages, gathered in a `Vec<Slice>` that the caller reuses (a reply is marker + head, pages, tail).
//! Coming in: an `RxPacket` is what one frame brought, an `RxChain` is a byte stream of such buffers in order, a `View` is a
//! borrowed range of a chain that may straddle buffers; nothing is copied until somebody asks for it.
//!
//! May import: `raw`.

mod arena;
mod rx;

pub use crate::raw::{Fragment, PageMut, PagePool, RxBuf, Slice, clone_onto};
pub use arena::FragmentArena;
pub use rx::{Checksum, RxChain, RxPacket, RxRest, View};

/// Total bytes of a gather list, and how many of its slices are shorter `than` so many.
#[inline]
pub(crate) fn survey(gather: &[Slice], than: usize) -> (usize, u32) {
    // The long ones are counted: an instruction less each.
    let (mut len, mut long) = (0, 0);
    let mut add = |slice: &Slice| {
        len += slice.len();
        long += usize::from(slice.len() >= than);
    };
    let mut fours = gather.chunks_exact(4);
    for four in &mut fours {
        four.iter().for_each(&mut add);
    }
    fours.remainder().iter().for_each(add);
    (len, (gather.len() - long) as u32)
}

/// Total bytes of a gather list.
pub fn gather_len(gather: &[Slice]) -> usize {
    gather.iter().map(|slice| slice.len()).sum()
}
