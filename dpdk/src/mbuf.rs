//! Received buffers: owned, read-only, freed on drop by whatever thread drops them.
//!
//! Deliberately not here: any way to write into a buffer. What net_ring delivers is the sender's own page memory.

use std::{marker::PhantomData, ptr::NonNull};

use dpdk_sys as sys;

/// What the device found out about a checksum.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Checksum {
    /// Not looked at: verify in software.
    Unknown,
    /// Right, or known to be intact although the field is not filled in (virtio between guests): no need to verify.
    Good,
    /// Wrong.
    Bad,
}

/// A received packet, or one segment of it: a chain of one or more buffers. Not `Clone`: it owns its buffers.
#[derive(Debug)]
#[repr(transparent)]
pub struct Mbuf {
    raw: NonNull<sys::rte_mbuf>,
    owned: PhantomData<sys::rte_mbuf>,
}

// SAFETY: an mbuf may be freed by any thread; a thread without an lcore id bypasses the per-lcore caches. External
// payload in it is `Send` by TxPayload's bound.
unsafe impl Send for Mbuf {}
// SAFETY: shared access only reads the descriptor and the data, and nobody writes either while the mbuf is owned here.
unsafe impl Sync for Mbuf {}

impl Mbuf {
    fn descriptor(&self) -> &sys::rte_mbuf {
        // SAFETY: owned and valid until drop; the driver has let go of it.
        unsafe { self.raw.as_ref() }
    }

    /// Bytes of the first segment.
    #[inline]
    pub fn data(&self) -> &[u8] {
        // SAFETY: the first segment of a chain this value owns.
        unsafe { segment_data(self.descriptor()) }
    }

    /// Bytes of each segment in order.
    #[inline]
    pub fn segments(&self) -> Segments<'_> {
        Segments { next: Some(self.descriptor()) }
    }

    /// Bytes in all segments.
    #[inline]
    #[expect(clippy::len_without_is_empty, reason = "a length in bytes, not a collection")]
    pub fn len(&self) -> usize {
        self.descriptor().pkt_len as usize
    }

    /// Number of segments.
    #[inline]
    pub fn segment_count(&self) -> usize {
        usize::from(self.descriptor().nb_segs)
    }

    /// Keeps the first segment here and returns the rest, so that a chain can be taken apart into buffers that are
    /// dropped each on its own. Flags and the RSS hash stay with the first.
    pub fn split_off_rest(&mut self) -> Option<Mbuf> {
        // SAFETY: the chain is owned through &mut self, hence every descriptor in it; pointers come from DPDK.
        unsafe {
            let first = self.raw.as_mut();
            let mut rest = NonNull::new(first.next)?;
            let second = rest.as_mut();
            second.nb_segs = first.nb_segs - 1;
            second.pkt_len = first.pkt_len - u32::from(first.data_len);
            first.next = std::ptr::null_mut();
            first.nb_segs = 1;
            first.pkt_len = u32::from(first.data_len);
            Some(Mbuf { raw: rest, owned: PhantomData })
        }
    }

    /// The chain as single-segment buffers, in order.
    pub fn into_segments(self) -> impl Iterator<Item = Mbuf> {
        let mut rest = Some(self);
        std::iter::from_fn(move || {
            let mut first = rest.take()?;
            rest = first.split_off_rest();
            Some(first)
        })
    }

    /// The IPv4 header checksum, as the device saw it.
    #[inline]
    pub fn ip_checksum(&self) -> Checksum {
        match self.descriptor().ol_flags & u64::from(sys::RTE_MBUF_F_RX_IP_CKSUM_MASK) {
            flags if flags == u64::from(sys::RTE_MBUF_F_RX_IP_CKSUM_UNKNOWN) => Checksum::Unknown,
            flags if flags == u64::from(sys::RTE_MBUF_F_RX_IP_CKSUM_BAD) => Checksum::Bad,
            _ => Checksum::Good,
        }
    }

    /// The TCP or UDP checksum, as the device saw it.
    #[inline]
    pub fn l4_checksum(&self) -> Checksum {
        match self.descriptor().ol_flags & u64::from(sys::RTE_MBUF_F_RX_L4_CKSUM_MASK) {
            flags if flags == u64::from(sys::RTE_MBUF_F_RX_L4_CKSUM_UNKNOWN) => Checksum::Unknown,
            flags if flags == u64::from(sys::RTE_MBUF_F_RX_L4_CKSUM_BAD) => Checksum::Bad,
            _ => Checksum::Good,
        }
    }

    /// The RSS hash the device put the packet on this queue by.
    #[inline]
    pub fn rss_hash(&self) -> Option<u32> {
        let descriptor = self.descriptor();
        let present = descriptor.ol_flags & u64::from(sys::RTE_MBUF_F_RX_RSS_HASH) != 0;
        // SAFETY: reading a union of plain integers; the flag says which one is meant.
        present.then_some(unsafe { descriptor.__bindgen_anon_2.hash.rss })
    }

    /// True when the first segment's bytes lie in memory that is not the buffer's own (a sender's page, over net_ring).
    pub fn is_external(&self) -> bool {
        self.descriptor().ol_flags & sys::RTE_MBUF_F_EXTERNAL != 0
    }
}

impl Drop for Mbuf {
    fn drop(&mut self) {
        // SAFETY: owned, and freed once. Pools outlive every buffer.
        unsafe { sys::nfsplice_mbuf_free(self.raw.as_ptr()) };
    }
}

/// # Safety
/// `segment` is a valid descriptor whose data nobody writes for the returned lifetime.
unsafe fn segment_data(segment: &sys::rte_mbuf) -> &[u8] {
    if segment.data_len == 0 {
        return &[];
    }
    // SAFETY: data_off and data_len lie within the buffer: set by the driver, or by the shim for external data.
    unsafe {
        let start = segment.buf_addr.cast::<u8>().add(usize::from(segment.data_off));
        std::slice::from_raw_parts(start, usize::from(segment.data_len))
    }
}

/// Iterator over the segments' bytes.
#[derive(Clone)]
pub struct Segments<'a> {
    next: Option<&'a sys::rte_mbuf>,
}

impl<'a> Iterator for Segments<'a> {
    type Item = &'a [u8];

    #[inline]
    fn next(&mut self) -> Option<&'a [u8]> {
        let segment = self.next?;
        // SAFETY: `next` is NULL or a descriptor of the same chain, owned by the Mbuf borrowed for 'a.
        self.next = unsafe { segment.next.as_ref() };
        // SAFETY: as above; the Mbuf is borrowed, so nothing takes the chain apart.
        Some(unsafe { segment_data(segment) })
    }
}

impl std::fmt::Debug for Segments<'_> {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_list().entries(self.clone().map(<[u8]>::len)).finish()
    }
}
