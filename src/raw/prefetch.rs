//! Asking for memory before it is needed.

/// Starts to bring what is at `value` into the core's cache, and does not wait for it. Has no other effect.
#[inline]
pub fn prefetch<T>(value: &T) {
    // SAFETY: a prefetch reads and writes nothing, and the address is that of a live value.
    #[cfg(target_arch = "x86_64")]
    unsafe {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        _mm_prefetch::<_MM_HINT_T0>(std::ptr::from_ref(value).cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = value;
}
