//! XDR in place: a decoder over received bytes that may straddle buffers, an encoder over room that somebody reserved.
//!
//! Read first: RFC 4506 section 3 (units of four bytes) and section 4. No allocation: variable-length items come back as
//! views of the received bytes. Deliberately not here: generated types, floating point, anything that needs recursion.

use crate::buf::View;

/// Why bytes could not be read as what the protocol says is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum XdrError {
    #[error("the data end inside an item")]
    Short,
    #[error("a counted item is longer than the protocol allows")]
    TooLong,
    #[error("a value is outside its enumeration")]
    BadValue,
}

/// Bytes of padding behind `len` bytes of opaque data (RFC 4506 section 4.10).
pub const fn padding(len: usize) -> usize {
    len.wrapping_neg() & 3
}

/// Reads XDR items from the front of a view. `Copy`: reading ahead on a copy leaves the original where it was.
#[derive(Clone, Copy)]
pub struct Decoder<'a> {
    rest: View<'a>,
}

impl<'a> Decoder<'a> {
    pub fn new(view: View<'a>) -> Decoder<'a> {
        Decoder { rest: view }
    }

    /// Bytes not read yet.
    pub fn remaining(&self) -> usize {
        self.rest.len()
    }

    /// The bytes not read yet.
    pub fn rest(&self) -> View<'a> {
        self.rest
    }

    #[inline]
    fn take(&mut self, len: usize) -> Result<View<'a>, XdrError> {
        self.rest.take(len).ok_or(XdrError::Short)
    }

    #[inline]
    pub fn skip(&mut self, bytes: usize) -> Result<(), XdrError> {
        self.take(bytes).map(|_| ())
    }

    #[inline]
    fn array<const N: usize>(&mut self) -> Result<[u8; N], XdrError> {
        self.rest.take_chunk().ok_or(XdrError::Short)
    }

    #[inline]
    pub fn u32(&mut self) -> Result<u32, XdrError> {
        self.array().map(u32::from_be_bytes)
    }

    /// `N` words in a row: all of them or `Short`.
    #[inline]
    pub fn words<const N: usize>(&mut self) -> Result<[u32; N], XdrError> {
        let mut words = [0; N];
        let Some(bytes) = self.rest.peek(4 * N) else {
            let mut taken = Decoder { rest: self.take(4 * N)? };
            for word in &mut words {
                *word = taken.u32()?;
            }
            return Ok(words);
        };
        for (word, bytes) in words.iter_mut().zip(bytes.chunks_exact(4).filter_map(<[u8]>::first_chunk)) {
            *word = u32::from_be_bytes(*bytes);
        }
        self.skip(4 * N)?;
        Ok(words)
    }

    pub fn i32(&mut self) -> Result<i32, XdrError> {
        self.array().map(i32::from_be_bytes)
    }

    #[inline]
    pub fn u64(&mut self) -> Result<u64, XdrError> {
        self.array().map(u64::from_be_bytes)
    }

    pub fn i64(&mut self) -> Result<i64, XdrError> {
        self.array().map(i64::from_be_bytes)
    }

    /// RFC 4506 section 4.4: FALSE is 0, TRUE is 1, nothing else is a boolean.
    pub fn bool(&mut self) -> Result<bool, XdrError> {
        match self.u32()? {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err(XdrError::BadValue),
        }
    }

    /// An enumeration or discriminant: `known` maps the values that exist (RFC 4506 sections 4.3 and 4.15).
    pub fn enumeration<T>(&mut self, known: impl FnOnce(u32) -> Option<T>) -> Result<T, XdrError> {
        known(self.u32()?).ok_or(XdrError::BadValue)
    }

    /// Optional data (RFC 4506 section 4.19): whether it follows, then itself.
    pub fn optional<T>(&mut self, item: impl FnOnce(&mut Decoder<'a>) -> Result<T, XdrError>) -> Result<Option<T>, XdrError> {
        if self.bool()? { item(self).map(Some) } else { Ok(None) }
    }

    /// Fixed-length opaque data, `N` bytes and their padding (RFC 4506 section 4.9).
    pub fn opaque_fixed<const N: usize>(&mut self) -> Result<[u8; N], XdrError> {
        let bytes = self.array()?;
        self.skip(const { padding(N) })?;
        Ok(bytes)
    }

    /// Variable-length opaque data of at most `max` bytes (RFC 4506 section 4.10). The length is checked against what is
    /// there before anything else is done with it. Padding must be present; that it is zero is not checked, because
    /// clients exist that leave old bytes in it and no meaning depends on it.
    #[inline]
    pub fn opaque(&mut self, max: usize) -> Result<View<'a>, XdrError> {
        let len = self.u32()? as usize;
        if len > max {
            return Err(XdrError::TooLong);
        }
        let view = self.take(len)?;
        self.skip(padding(len))?;
        Ok(view)
    }

    /// A string of at most `max` bytes (RFC 4506 section 4.11); which bytes it may hold is the caller's matter.
    pub fn string(&mut self, max: usize) -> Result<View<'a>, XdrError> {
        self.opaque(max)
    }

    /// The count of a variable-length array whose elements take at least `element_bytes_min` bytes each: a count that the
    /// rest of the data cannot hold is refused before anybody loops over it (RFC 4506 section 4.13).
    pub fn array_len(&mut self, max: usize, element_bytes_min: usize) -> Result<usize, XdrError> {
        let count = self.u32()? as usize;
        if count > max {
            return Err(XdrError::TooLong);
        }
        match count.checked_mul(element_bytes_min) {
            Some(bytes) if bytes <= self.remaining() => Ok(count),
            _ => Err(XdrError::Short),
        }
    }
}

/// Writes XDR items into reserved room. Running out of room is remembered, not reported item by item: whoever sends the
/// bytes asks `overflowed` once.
pub struct Encoder<'a> {
    buffer: &'a mut [u8],
    position: usize,
    overflowed: bool,
}

impl<'a> Encoder<'a> {
    pub fn new(buffer: &'a mut [u8]) -> Encoder<'a> {
        Encoder { buffer, position: 0, overflowed: false }
    }

    /// Bytes written so far.
    pub fn position(&self) -> usize {
        self.position
    }

    /// Bytes that can still be written.
    pub fn room(&self) -> usize {
        self.buffer.len() - self.position
    }

    /// Whether an item did not fit. Nothing of that item, and nothing after it, was written.
    pub fn overflowed(&self) -> bool {
        self.overflowed
    }

    /// What was written.
    pub fn written(&self) -> &[u8] {
        &self.buffer[..self.position]
    }

    /// Takes back everything from `position` on, an overflow included; a later position changes nothing.
    pub fn truncate(&mut self, position: usize) {
        if position <= self.position {
            self.position = position;
            self.overflowed = false;
        }
    }

    /// Replaces the word at `position`, which must have been written already.
    pub fn patch_u32(&mut self, position: usize, value: u32) {
        let written = &mut self.buffer[..self.position];
        let Some(word) = position.checked_add(4).and_then(|end| written.get_mut(position..end)) else {
            self.overflowed = true;
            return;
        };
        word.copy_from_slice(&value.to_be_bytes());
    }

    #[inline]
    fn grow(&mut self, len: usize) -> Option<&mut [u8]> {
        if self.overflowed || len > self.room() {
            self.overflowed = true;
            return None;
        }
        let start = self.position;
        self.position += len;
        Some(&mut self.buffer[start..start + len])
    }

    fn put(&mut self, bytes: &[u8]) {
        if let Some(into) = self.grow(bytes.len()) {
            into.copy_from_slice(bytes);
        }
    }

    #[inline]
    pub fn u32(&mut self, value: u32) {
        self.put(&value.to_be_bytes());
    }

    /// `N` words in a row: all of them or nothing.
    #[inline]
    pub fn words<const N: usize>(&mut self, words: [u32; N]) {
        if let Some(into) = self.grow(4 * N) {
            for (into, word) in into.chunks_exact_mut(4).zip(words) {
                into.copy_from_slice(&word.to_be_bytes());
            }
        }
    }

    pub fn i32(&mut self, value: i32) {
        self.put(&value.to_be_bytes());
    }

    pub fn u64(&mut self, value: u64) {
        self.put(&value.to_be_bytes());
    }

    pub fn i64(&mut self, value: i64) {
        self.put(&value.to_be_bytes());
    }

    pub fn bool(&mut self, value: bool) {
        self.u32(u32::from(value));
    }

    /// Fixed-length opaque data and its padding (RFC 4506 section 4.9); all of it or nothing.
    pub fn opaque_fixed(&mut self, bytes: &[u8]) {
        let padding = padding(bytes.len());
        if let Some(into) = self.grow(bytes.len() + padding) {
            let (data, pad) = into.split_at_mut(bytes.len());
            data.copy_from_slice(bytes);
            pad.fill(0);
        }
    }

    /// Variable-length opaque data or a string (RFC 4506 sections 4.10 and 4.11); all of it or nothing.
    pub fn opaque(&mut self, bytes: &[u8]) {
        let Ok(len) = u32::try_from(bytes.len()) else {
            self.overflowed = true;
            return;
        };
        let start = self.position;
        self.u32(len);
        self.opaque_fixed(bytes);
        if self.overflowed {
            self.position = start.min(self.position);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::buf::{RxBuf, RxChain};
    use proptest::prelude::*;

    fn decoder(bytes: &[u8]) -> Decoder<'_> {
        Decoder::new(View::from(bytes))
    }

    #[test]
    fn items_come_back_as_they_went_in_from_single_byte_buffers() {
        let mut room = [0xaa; 128];
        let mut encoder = Encoder::new(&mut room);
        encoder.u32(7);
        encoder.i32(-7);
        encoder.u64(1 << 40);
        encoder.i64(-1);
        encoder.bool(true);
        encoder.opaque(b"hello");
        encoder.opaque_fixed(b"xyz");
        encoder.words([1, 2]);
        let mut chain = RxChain::new();
        for byte in encoder.written() {
            chain.push(RxBuf::from_vec(vec![*byte]));
        }
        let mut decoder = Decoder::new(chain.view(0, chain.len()).unwrap());
        assert_eq!(decoder.u32(), Ok(7));
        assert_eq!(decoder.i32(), Ok(-7));
        assert_eq!(decoder.u64(), Ok(1 << 40));
        assert_eq!(decoder.i64(), Ok(-1));
        assert_eq!(decoder.optional(|d| d.string(5)).unwrap().unwrap().to_vec(), b"hello");
        assert_eq!(decoder.opaque_fixed::<3>(), Ok(*b"xyz"));
        assert_eq!((decoder.words::<3>(), decoder.words()), (Err(XdrError::Short), Ok([1, 2])), "all or none");
        assert_eq!((decoder.remaining(), decoder.u32()), (0, Err(XdrError::Short)));
    }

    #[test]
    fn hostile_lengths_and_values_are_refused() {
        assert_eq!(decoder(&[0xff; 8]).opaque(usize::MAX).err(), Some(XdrError::Short));
        assert_eq!(decoder(&[0, 0, 0, 5, 1, 2, 3, 4, 5, 6, 7, 8]).opaque(4).err(), Some(XdrError::TooLong));
        assert_eq!(decoder(&[0, 0, 0, 1, 9]).opaque(4).err(), Some(XdrError::Short), "padding is missing");
        assert_eq!(decoder(&[0, 0, 0, 1, 9, 1, 1, 1]).opaque(4).unwrap().to_vec(), [9], "padding need not be zero");
        assert_eq!(decoder(&[0, 0, 0, 2]).bool(), Err(XdrError::BadValue));
        assert_eq!(decoder(&[0xff; 8]).array_len(usize::MAX, usize::MAX), Err(XdrError::Short));
        assert_eq!(decoder(&[0, 0, 0, 2, 0, 0, 0, 0]).array_len(16, 4), Err(XdrError::Short));
        assert_eq!(decoder(&[0, 0, 0, 9]).enumeration(|v| (v < 9).then_some(v)), Err(XdrError::BadValue));
    }

    #[test]
    fn overflow_is_sticky_and_truncate_takes_it_back() {
        let mut room = [0; 12];
        let mut encoder = Encoder::new(&mut room);
        encoder.u32(1);
        let mark = encoder.position();
        encoder.opaque(&[9; 5]);
        assert!(encoder.overflowed());
        encoder.u32(2);
        assert_eq!(encoder.written(), [0, 0, 0, 1], "nothing after the overflow");
        encoder.truncate(mark);
        encoder.words([4, 5, 6]);
        assert_eq!((encoder.overflowed(), encoder.position()), (true, mark));
        encoder.truncate(mark);
        encoder.u64(3);
        assert!(!encoder.overflowed() && encoder.room() == 0);
        encoder.patch_u32(0, 5);
        assert_eq!(encoder.written(), [0, 0, 0, 5, 0, 0, 0, 0, 0, 0, 0, 3]);
        encoder.patch_u32(9, 5);
        assert!(encoder.overflowed());
    }

    proptest! {
        #[test]
        fn no_input_makes_the_decoder_panic(bytes in proptest::collection::vec(any::<u8>(), 0..64), max in 0usize..80) {
            let mut d = decoder(&bytes);
            while d.remaining() > 0 {
                let before = d.remaining();
                let _ = (d.optional(|d| d.opaque(max)), d.array_len(max, 4), d.opaque_fixed::<5>(), d.bool());
                if d.remaining() == before { break; }
            }
        }
    }
}
