//! The TCP header and its options: bytes <-> `Repr`.
//!
//! Read first: RFC 9293 section 3.1 and 3.2, RFC 7323 section 2.2 and 3.2, RFC 2018 section 2 and 3. No function here panics,
//! whatever the bytes. Not here: the meaning of a segment (`tcp`), and its checksum (`checksum`).

use std::fmt;

/// Bytes of a header without options.
pub const HEADER_LEN: usize = 20;
/// Bytes of the longest header: a data offset of 15 words.
pub const HEADER_LEN_MAX: usize = 60;
/// Where the control bits lie in the header.
const FLAGS_OFFSET: usize = 13;
/// Where the checksum lies in the header.
pub const CHECKSUM_OFFSET: usize = 16;
/// RFC 7323 section 2.3: a larger shift count is used as 14.
pub const WINDOW_SCALE_MAX: u8 = 14;
/// The smallest pieces that a device is asked to cut a chain into, payload bytes: what RFC 1191's least packet of 552 carries. Devices have
/// limits of their own that they do not tell (DPDK's i40e and iavf: I40E_MIN_TSO_MSS, IAVF_MIN_TSO_MSS, 256), and refuse the chain.
pub const TSO_MSS_MIN: u16 = 512;
/// The most pieces a chain is cut into. What cuts in software has places for so many (DPDK's net_tap: MAX_GSO_MBUFS).
pub const TSO_FRAMES_MAX: u16 = 64;

/// A sequence number on the wire. It wraps, so it has no order of its own: compare distances.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Hash)]
pub struct SeqNumber(pub u32);

impl SeqNumber {
    /// How far `self` lies after `other`, negative if before (RFC 9293 section 3.4).
    pub fn distance(self, other: SeqNumber) -> i32 {
        self.0.wrapping_sub(other.0) as i32
    }
}

impl std::ops::Add<u32> for SeqNumber {
    type Output = SeqNumber;
    fn add(self, n: u32) -> SeqNumber {
        SeqNumber(self.0.wrapping_add(n))
    }
}

impl std::ops::Sub<u32> for SeqNumber {
    type Output = SeqNumber;
    fn sub(self, n: u32) -> SeqNumber {
        SeqNumber(self.0.wrapping_sub(n))
    }
}

/// The control bits (RFC 9293 section 3.1, RFC 3168 section 6.1).
#[derive(Clone, Copy, PartialEq, Eq, Default)]
pub struct Flags(pub u8);

impl Flags {
    pub const FIN: Flags = Flags(0x01);
    pub const SYN: Flags = Flags(0x02);
    pub const RST: Flags = Flags(0x04);
    pub const PSH: Flags = Flags(0x08);
    pub const ACK: Flags = Flags(0x10);
    pub const URG: Flags = Flags(0x20);
    pub const ECE: Flags = Flags(0x40);
    pub const CWR: Flags = Flags(0x80);

    pub fn contains(self, other: Flags) -> bool {
        self.0 & other.0 == other.0
    }
}

/// Whether a header asks for a connection, or answers that: its SYN bit. `false` for what is too short.
pub fn is_syn(header: &[u8]) -> bool {
    header.get(FLAGS_OFFSET).is_some_and(|flags| Flags(*flags).contains(Flags::SYN))
}

impl std::ops::BitOr for Flags {
    type Output = Flags;
    fn bitor(self, other: Flags) -> Flags {
        Flags(self.0 | other.0)
    }
}

impl std::ops::BitOrAssign for Flags {
    fn bitor_assign(&mut self, other: Flags) {
        self.0 |= other.0;
    }
}

impl fmt::Debug for Flags {
    /// As tcpdump writes them: `S.`, `P.`, `F.`, `R`, `.`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (bit, letter) in
            [(0x02, 'S'), (0x01, 'F'), (0x04, 'R'), (0x08, 'P'), (0x20, 'U'), (0x40, 'E'), (0x80, 'W'), (0x10, '.')]
        {
            if self.0 & bit != 0 {
                write!(f, "{letter}")?;
            }
        }
        Ok(())
    }
}

/// RFC 7323 section 3.2.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Timestamps {
    pub value: u32,
    pub echo_reply: u32,
}

/// One contiguous range of received sequence space: left edge and the number after the last (RFC 2018 section 3).
pub type SackBlock = (SeqNumber, SeqNumber);

/// Blocks that fit into the option space.
pub const SACK_BLOCKS_MAX: usize = 4;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct SackBlocks {
    blocks: [SackBlock; SACK_BLOCKS_MAX],
    len: u8,
}

impl SackBlocks {
    /// Appends a block; `false` if four are there already.
    pub fn push(&mut self, block: SackBlock) -> bool {
        match self.blocks.get_mut(self.len as usize) {
            Some(slot) => {
                *slot = block;
                self.len += 1;
                true
            }
            None => false,
        }
    }

    pub fn as_slice(&self) -> &[SackBlock] {
        self.blocks.get(..self.len as usize).unwrap_or(&[])
    }

    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Keeps the first `n` blocks.
    pub fn truncate(&mut self, n: usize) {
        self.len = self.len.min(n as u8);
    }
}

/// The options this stack knows; others are skipped (RFC 9293 section 3.1, MUST-6).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct TcpOptions {
    pub mss: Option<u16>,
    /// As received, possibly beyond `WINDOW_SCALE_MAX`.
    pub window_scale: Option<u8>,
    pub sack_permitted: bool,
    pub timestamps: Option<Timestamps>,
    pub sack: SackBlocks,
}

/// A TCP header in the host's terms.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Repr {
    pub src_port: u16,
    pub dst_port: u16,
    pub seq: SeqNumber,
    /// Meaningful with `Flags::ACK`.
    pub ack: SeqNumber,
    pub flags: Flags,
    /// Unscaled, as on the wire.
    pub window: u16,
    pub urgent: u16,
    pub options: TcpOptions,
}

/// Why bytes are not a TCP header. The segment is dropped and counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Malformed {
    /// Fewer bytes than a header, or than its data offset says.
    Truncated,
    /// A data offset below five words.
    DataOffset,
    /// An option whose length passes the option space or is too small to be one (RFC 9293 section 3.1, MUST-7).
    Option,
}

impl Repr {
    /// Reads a header from the front of `bytes`; gives its length too. The checksum is not looked at.
    #[inline]
    pub fn parse(bytes: &[u8]) -> Result<(Repr, usize), Malformed> {
        let fixed: &[u8; HEADER_LEN] = bytes.first_chunk().ok_or(Malformed::Truncated)?;
        let header_len = usize::from(fixed[12] >> 4) * 4;
        if header_len < HEADER_LEN {
            return Err(Malformed::DataOffset);
        }
        let options = bytes.get(HEADER_LEN..header_len).ok_or(Malformed::Truncated)?;
        let u16_at = |at: usize| u16::from_be_bytes([fixed[at], fixed[at + 1]]);
        let u32_at = |at: usize| u32::from_be_bytes([fixed[at], fixed[at + 1], fixed[at + 2], fixed[at + 3]]);
        let repr = Repr {
            src_port: u16_at(0),
            dst_port: u16_at(2),
            seq: SeqNumber(u32_at(4)),
            ack: SeqNumber(u32_at(8)),
            flags: Flags(fixed[13]),
            window: u16_at(14),
            urgent: u16_at(18),
            options: TcpOptions::parse(options)?,
        };
        Ok((repr, header_len))
    }

    /// Writes the header with a zero checksum; returns its length. SACK blocks that do not fit any more are left out.
    pub fn emit(&self, out: &mut [u8; HEADER_LEN_MAX]) -> usize {
        out[0..2].copy_from_slice(&self.src_port.to_be_bytes());
        out[2..4].copy_from_slice(&self.dst_port.to_be_bytes());
        out[4..8].copy_from_slice(&self.seq.0.to_be_bytes());
        out[8..12].copy_from_slice(&self.ack.0.to_be_bytes());
        out[13] = self.flags.0;
        out[14..16].copy_from_slice(&self.window.to_be_bytes());
        out[16..18].copy_from_slice(&[0, 0]);
        out[18..20].copy_from_slice(&self.urgent.to_be_bytes());
        let len = self.options.emit(out);
        // A multiple of four of at most 60.
        out[12] = ((len / 4) as u8) << 4;
        len
    }
}

/// What differs between the headers of a connection that carry timestamps or no options.
#[derive(Clone, Copy, Debug)]
pub struct PlainRepr {
    pub src_port: u16,
    pub dst_port: u16,
    pub seq: SeqNumber,
    pub ack: SeqNumber,
    pub flags: Flags,
    pub window: u16,
    pub timestamps: Option<Timestamps>,
}

impl PlainRepr {
    /// What `Repr::emit` makes of the same.
    #[inline]
    pub fn emit(&self, out: &mut [u8; HEADER_LEN_MAX]) -> usize {
        let mut put = |at: usize, word: u32| out[at..at + 4].copy_from_slice(&word.to_be_bytes());
        let len = if self.timestamps.is_some() { HEADER_LEN + 12 } else { HEADER_LEN };
        put(0, u32::from(self.src_port) << 16 | u32::from(self.dst_port));
        put(4, self.seq.0);
        put(8, self.ack.0);
        put(12, (len as u32 / 4) << 28 | u32::from(self.flags.0) << 16 | u32::from(self.window));
        put(16, 0);
        if let Some(timestamps) = self.timestamps {
            put(20, u32::from_be_bytes([1, 1, 8, 10]));
            put(24, timestamps.value);
            put(28, timestamps.echo_reply);
        }
        len
    }
}

impl TcpOptions {
    /// Bytes the options take in a header, padding included.
    pub fn len(&self) -> usize {
        let mut len = 0usize;
        len += if self.mss.is_some() { 4 } else { 0 };
        len += if self.window_scale.is_some() { 4 } else { 0 };
        len += match (self.sack_permitted, self.timestamps.is_some()) {
            (true, false) => 4,
            (_, true) => 12,
            (false, false) => 0,
        };
        let blocks = self.sack.as_slice().len().min((40 - len).saturating_sub(4) / 8);
        len + if blocks > 0 { 4 + 8 * blocks } else { 0 }
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    #[inline]
    fn parse(bytes: &[u8]) -> Result<TcpOptions, Malformed> {
        // RFC 7323 appendix A: how timestamps alone are laid out, as in nearly every segment.
        if let [1, 1, 8, 10, a, b, c, d, e, f, g, h] = *bytes {
            let (value, echo_reply) = (u32::from_be_bytes([a, b, c, d]), u32::from_be_bytes([e, f, g, h]));
            return Ok(TcpOptions { timestamps: Some(Timestamps { value, echo_reply }), ..TcpOptions::default() });
        }
        TcpOptions::parse_each(bytes)
    }

    fn parse_each(mut bytes: &[u8]) -> Result<TcpOptions, Malformed> {
        let mut options = TcpOptions::default();
        while let [kind, rest @ ..] = bytes {
            match kind {
                0 => break,
                1 => {
                    bytes = rest;
                    continue;
                }
                _ => {}
            }
            let len = usize::from(*rest.first().ok_or(Malformed::Option)?);
            if len < 2 || len > bytes.len() {
                return Err(Malformed::Option);
            }
            let (option, after) = bytes.split_at(len);
            match (kind, &option[2..]) {
                (2, [a, b]) => options.mss = Some(u16::from_be_bytes([*a, *b])),
                (3, [shift]) => options.window_scale = Some(*shift),
                (4, []) => options.sack_permitted = true,
                (5, blocks) if blocks.len() % 8 == 0 => {
                    for block in blocks.chunks_exact(8) {
                        let left = u32::from_be_bytes([block[0], block[1], block[2], block[3]]);
                        let right = u32::from_be_bytes([block[4], block[5], block[6], block[7]]);
                        options.sack.push((SeqNumber(left), SeqNumber(right)));
                    }
                }
                (8, [a, b, c, d, e, f, g, h]) => {
                    let value = u32::from_be_bytes([*a, *b, *c, *d]);
                    let echo_reply = u32::from_be_bytes([*e, *f, *g, *h]);
                    options.timestamps = Some(Timestamps { value, echo_reply });
                }
                // Unknown, or known with a foreign length: ignored (RFC 9293 section 3.1, MUST-6).
                _ => {}
            }
            bytes = after;
        }
        Ok(options)
    }

    fn emit(&self, out: &mut [u8; HEADER_LEN_MAX]) -> usize {
        if let TcpOptions { mss: None, window_scale: None, sack_permitted: false, timestamps: Some(timestamps), sack } = self
            && sack.is_empty()
        {
            out[20..24].copy_from_slice(&[1, 1, 8, 10]);
            out[24..28].copy_from_slice(&timestamps.value.to_be_bytes());
            out[28..32].copy_from_slice(&timestamps.echo_reply.to_be_bytes());
            return HEADER_LEN + 12;
        }
        let mut at = HEADER_LEN;
        let mut put = |bytes: &[u8]| {
            if let Some(room) = out.get_mut(at..at + bytes.len()) {
                room.copy_from_slice(bytes);
                at += bytes.len();
            }
        };
        if let Some(mss) = self.mss {
            let mss = mss.to_be_bytes();
            put(&[2, 4, mss[0], mss[1]]);
        }
        match (self.sack_permitted, self.timestamps) {
            (true, None) => put(&[1, 1, 4, 2]),
            (false, None) => {}
            (sack, Some(timestamps)) => {
                put(if sack { &[4, 2, 8, 10] } else { &[1, 1, 8, 10] });
                put(&timestamps.value.to_be_bytes());
                put(&timestamps.echo_reply.to_be_bytes());
            }
        }
        if let Some(shift) = self.window_scale {
            put(&[1, 3, 3, shift]);
        }
        let blocks = (self.len() - (at_after(self))) / 8;
        if blocks > 0 {
            put(&[1, 1, 5, 2 + 8 * blocks as u8]);
            for (left, right) in &self.sack.as_slice()[..blocks] {
                put(&left.0.to_be_bytes());
                put(&right.0.to_be_bytes());
            }
        }
        at
    }
}

/// Bytes of every option before the SACK blocks, and the 4 that introduce those if there are any.
fn at_after(options: &TcpOptions) -> usize {
    let without = TcpOptions { sack: SackBlocks::default(), ..*options }.len();
    if options.len() > without { without + 4 } else { without }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn syn() -> Repr {
        Repr {
            src_port: 1023,
            dst_port: 2049,
            seq: SeqNumber(0xdead_beef),
            flags: Flags::SYN,
            window: 65_535,
            options: TcpOptions {
                mss: Some(1460),
                window_scale: Some(7),
                sack_permitted: true,
                timestamps: Some(Timestamps { value: 1, echo_reply: 0 }),
                sack: SackBlocks::default(),
            },
            ..Repr::default()
        }
    }

    #[test]
    fn a_syn_is_laid_out_as_linux_does() {
        let mut bytes = [0; 60];
        assert_eq!(syn().emit(&mut bytes), 40);
        assert_eq!(bytes[12], 0xa0);
        assert_eq!(&bytes[20..40], [2, 4, 5, 180, 4, 2, 8, 10, 0, 0, 0, 1, 0, 0, 0, 0, 1, 3, 3, 7]);
        assert_eq!(Repr::parse(&bytes[..40]), Ok((syn(), 40)));
    }

    #[test]
    fn a_plain_header_is_the_same_by_both_ways() {
        for timestamps in [None, Some(Timestamps { value: 0x0102_0304, echo_reply: 0x0506_0708 })] {
            let (seq, ack, flags) = (SeqNumber(0xdead_beef), SeqNumber(0x1234_5678), Flags::ACK | Flags::PSH | Flags::FIN);
            let (src_port, dst_port, window) = (2049, 1023, 0xfedc);
            let options = TcpOptions { timestamps, ..TcpOptions::default() };
            let repr = Repr { src_port, dst_port, seq, ack, flags, window, options, ..Repr::default() };
            let plain = PlainRepr { src_port, dst_port, seq, ack, flags, window, timestamps };
            let (mut one, mut other) = ([0; HEADER_LEN_MAX], [0; HEADER_LEN_MAX]);
            assert_eq!((repr.emit(&mut one), one), (plain.emit(&mut other), other));
        }
    }

    #[test]
    fn sack_blocks_beyond_the_option_space_are_left_out() {
        let mut repr = Repr { flags: Flags::ACK, ..Repr::default() };
        repr.options.timestamps = Some(Timestamps::default());
        for n in 0..4 {
            assert!(repr.options.sack.push((SeqNumber(n * 10), SeqNumber(n * 10 + 5))));
        }
        assert!(!repr.options.sack.push((SeqNumber(0), SeqNumber(0))));
        let mut bytes = [0; 60];
        // RFC 2018 section 3: three blocks beside timestamps.
        assert_eq!(repr.emit(&mut bytes), 20 + 12 + 4 + 24);
        let (back, len) = Repr::parse(&bytes).unwrap();
        assert_eq!((len, back.options.sack.as_slice().len()), (60, 3));
    }

    #[test]
    fn malformed_headers_are_named() {
        let mut bytes = [0; 60];
        let len = syn().emit(&mut bytes);
        assert_eq!(Repr::parse(&bytes[..19]), Err(Malformed::Truncated));
        assert_eq!(Repr::parse(&bytes[..len - 1]), Err(Malformed::Truncated));
        bytes[12] = 0x40;
        assert_eq!(Repr::parse(&bytes), Err(Malformed::DataOffset));
        bytes[12] = 0x60;
        // RFC 9293 section 3.1, MUST-7: lengths 0 and beyond the header.
        for option in [[9, 0, 0, 0], [9, 1, 0, 0], [9, 5, 0, 0], [1, 1, 1, 9]] {
            bytes[20..24].copy_from_slice(&option);
            assert_eq!(Repr::parse(&bytes), Err(Malformed::Option), "{option:?}");
        }
        // Unknown and ill-sized known ones are ignored; what follows the end of the list is not read.
        for option in [[9, 4, 0, 0], [2, 3, 0, 0], [0, 9, 0, 0], [3, 4, 0, 0]] {
            bytes[20..24].copy_from_slice(&option);
            assert_eq!(Repr::parse(&bytes).unwrap().0.options, TcpOptions::default(), "{option:?}");
        }
    }

    /// RFC 9293 section 3.1, MUST-5 and MUST-64.
    #[test]
    fn options_are_found_in_any_segment_and_on_any_byte() {
        const TIMESTAMPS: [u8; 10] = [8, 10, 0, 0, 0, 7, 0, 0, 0, 9];
        const SACK: [u8; 10] = [5, 10, 0, 0, 0, 20, 0, 0, 0, 30];
        const UNKNOWN: [u8; 3] = [253, 3, 1];
        let (timestamps, mut sack) = (Some(Timestamps { value: 7, echo_reply: 9 }), SackBlocks::default());
        assert!(sack.push((SeqNumber(20), SeqNumber(30))));
        let wanted = TcpOptions { timestamps, sack, ..TcpOptions::default() };
        for flags in [Flags::ACK, Flags::ACK | Flags::FIN, Flags::RST, Flags::SYN | Flags::ACK] {
            for before in [&[][..], &[1], &[1, 1, 1], &UNKNOWN] {
                let mut options = [before, &TIMESTAMPS, &UNKNOWN, &SACK, &[0]].concat();
                options.resize(options.len().next_multiple_of(4), 0);
                let mut bytes = [0; 60];
                Repr { flags, ..Repr::default() }.emit(&mut bytes);
                let len = 20 + options.len();
                bytes[12] = ((len / 4) << 4) as u8;
                bytes[20..len].copy_from_slice(&options);
                let (repr, header_len) = Repr::parse(&bytes[..len]).unwrap();
                assert_eq!((repr.flags, repr.options, header_len), (flags, wanted, len), "{before:?}");
            }
        }
        // The MSS of a SYN likewise.
        let mut bytes = [0; 60];
        Repr { flags: Flags::SYN, ..Repr::default() }.emit(&mut bytes);
        bytes[12] = 0x70;
        bytes[20..28].copy_from_slice(&[1, 2, 4, 5, 180, 1, 1, 0]);
        assert_eq!(Repr::parse(&bytes[..28]).unwrap().0.options.mss, Some(1460));
    }

    /// RFC 9293 section 3.1, MUST-69: an end of the list with anything but zeros behind it never leaves.
    #[test]
    fn the_option_space_is_filled_to_its_last_byte_or_with_zeros() {
        for bits in 0..16 {
            for blocks in 0..=SACK_BLOCKS_MAX {
                let has = |bit: u32| (bits >> bit) & 1 == 1;
                let mut options = TcpOptions {
                    mss: has(0).then_some(1460),
                    window_scale: has(1).then_some(7),
                    sack_permitted: has(2),
                    timestamps: has(3).then_some(Timestamps { value: 1, echo_reply: 2 }),
                    ..TcpOptions::default()
                };
                (0..blocks as u32).for_each(|n| assert!(options.sack.push((SeqNumber(n), SeqNumber(n + 1)))));
                let mut bytes = [0xff; 60];
                let len = Repr { options, ..Repr::default() }.emit(&mut bytes);
                let mut at = 20;
                while at < len && bytes[at] != 0 {
                    at += if bytes[at] == 1 { 1 } else { usize::from(bytes[at + 1]) };
                }
                assert!(at <= len && bytes[at..len].iter().all(|byte| *byte == 0), "{options:?}: {:?}", &bytes[20..len]);
                assert_eq!(usize::from(bytes[12] >> 4) * 4, len);
            }
        }
    }

    proptest! {
        #[test]
        fn any_bytes_parse_or_are_refused(bytes in proptest::collection::vec(any::<u8>(), 0..80)) {
            if let Ok((repr, len)) = Repr::parse(&bytes) {
                prop_assert!(len <= bytes.len());
                let mut out = [0; 60];
                let emitted = repr.emit(&mut out);
                prop_assert!(emitted % 4 == 0 && emitted == 20 + repr.options.len());
                let (again, _) = Repr::parse(&out[..emitted]).unwrap();
                prop_assert_eq!(Repr { options: TcpOptions::default(), ..again }, Repr { options: TcpOptions::default(), ..repr });
            }
        }
    }
}
