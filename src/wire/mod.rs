//! Bytes <-> representations, one file a format. Nothing here keeps state, knows a clock or touches a device.
//!
//! Each format comes as a pair. `Packet` (or `Frame`) is a borrowed view: its constructor checks every length that its
//! getters rely on, so a getter of a constructed view never panics, whatever the bytes are. `Repr` is the parsed, owned
//! form: `Repr::parse` takes a view and checks what the format demands, `emit` gives the bytes back. `emit` of fixed
//! formats returns an array, so it has no buffer to overrun.
//!
//! - `ethernet`, `arp`, `ipv4`, `icmpv4`, `ipv6`, `icmpv6`, `ndp`, `mld`, `udp`, `tcp`: the formats.
//! - `checksum`: the Internet checksum over scattered pieces, pseudo-headers.
//!
//! May import: `buf`.

pub mod arp;
pub mod checksum;
pub mod ethernet;
pub mod icmpv4;
pub mod icmpv6;
pub mod ipv4;
pub mod ipv6;
pub mod mld;
pub mod ndp;
pub mod tcp;
pub mod udp;

/// The bytes are not what their format says: too short, a wrong length field, a wrong constant.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("malformed header")]
pub struct Malformed;

/// IP protocol numbers (IANA), the ones this stack speaks.
pub mod protocol {
    pub const ICMPV4: u8 = 1;
    pub const TCP: u8 = 6;
    pub const UDP: u8 = 17;
    pub const ICMPV6: u8 = 58;
}

/// The big-endian half-word at `at`. The callers' constructors have proven `at + 2 <= bytes.len()`; if that proof is
/// ever wrong the answer is 0, not a panic.
pub(crate) fn u16_at(bytes: &[u8], at: usize) -> u16 {
    match bytes.get(at..at + 2) {
        Some(&[a, b]) => u16::from_be_bytes([a, b]),
        _ => 0,
    }
}

/// The big-endian word at `at`; as [`u16_at`].
pub(crate) fn u32_at(bytes: &[u8], at: usize) -> u32 {
    match bytes.get(at..at + 4) {
        Some(&[a, b, c, d]) => u32::from_be_bytes([a, b, c, d]),
        _ => 0,
    }
}

/// The `N` bytes at `at`; as [`u16_at`].
pub(crate) fn array_at<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    bytes.get(at..at + N).and_then(|part| part.try_into().ok()).unwrap_or([0; N])
}
