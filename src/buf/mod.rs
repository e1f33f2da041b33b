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
    let (mut len, mut short) = (0, 0);
    let (fours, rest) = gather.as_chunks::<4>();
    for [a, b, c, d] in fours {
        len += a.len() + b.len() + c.len() + d.len();
        short += u32::from(a.len() < than) + u32::from(b.len() < than) + u32::from(c.len() < than) + u32::from(d.len() < than);
    }
    for slice in rest {
        len += slice.len();
        short += u32::from(slice.len() < than);
    }
    (len, short)
}

/// Total bytes of a gather list.
pub fn gather_len(gather: &[Slice]) -> usize {
    gather.iter().map(|slice| slice.len()).sum()
}
