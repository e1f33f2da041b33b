//! Record marking, the receiving side, directly on a view of the received stream.
//!
//! Read first: RFC 5531 section 11. A record of one fragment, which is what every client of today sends, is a view in
//! place. A record of several fragments is assembled, once it is complete, with one copy into a buffer its core reuses; until
//! then its bytes stay in the chain, so nothing is allocated for a length that only a marker claims. Deliberately not here:
//! time (the server closes connections whose record stays incomplete) and the sending side (`xdr_buf`: always one fragment).

use crate::buf::View;

/// Bytes of a fragment header.
pub const MARKER_LEN: usize = 4;
/// The bit of a fragment header that says the record ends with this fragment (RFC 5531 section 11).
pub const LAST_FRAGMENT: u32 = 1 << 31;
/// A record holds at least xid and direction; a shorter one is no RPC message (as sunrpc).
pub const RECORD_BYTES_MIN: usize = 8;

/// What one record may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RecordLimits {
    /// Bytes of all its fragments, markers apart; checked at each marker, before the bytes it announces arrive.
    pub record_bytes_max: u32,
    /// Fragments of one record. sunrpc clients of the 1990s cut a 1 MiB WRITE into fragments of 4,000 bytes.
    pub fragments_max: u32,
    /// Fragments of one record that carry no byte.
    pub empty_fragments_max: u32,
}

/// Why a stream cannot go on: where its next record starts is unknown or does not matter any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BadRecord {
    TooLong,
    TooShort,
    TooManyFragments,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RecordState {
    /// Bytes are missing.
    Incomplete,
    /// `RecordReader::record` gives it, `RecordReader::consume` ends it.
    Complete,
    Bad(BadRecord),
}

/// Finds the records at the front of one connection's stream. Remembers how far it has looked, so that markers are read
/// once however the bytes trickle in.
#[derive(Debug, Default)]
pub struct RecordReader {
    /// Bytes of the chain, markers included, that belong to fragments whose markers were read.
    scanned: usize,
    /// Bytes of those fragments, markers apart.
    payload: usize,
    fragments: u32,
    empty_fragments: u32,
    last_seen: bool,
}

impl RecordReader {
    /// Looks at the record at the front of `stream`, which is all that has come of it and of what follows it.
    pub fn poll(&mut self, limits: &RecordLimits, stream: &View<'_>) -> RecordState {
        while !self.last_seen {
            let Some(marker) = stream.u32_at(self.scanned) else {
                return RecordState::Incomplete;
            };
            if let Err(bad) = self.read_marker(limits, marker) {
                return RecordState::Bad(bad);
            }
        }
        if stream.len() < self.scanned { RecordState::Incomplete } else { RecordState::Complete }
    }

    /// The record at the front of `stream`, if nothing of it was looked at before and it is one fragment in one buffer, as
    /// nearly every call is: what `poll` and `record` come to, in one step. It takes up `MARKER_LEN` bytes more than it has.
    #[inline]
    pub fn whole<'s>(&self, limits: &RecordLimits, stream: &View<'s>) -> Option<&'s [u8]> {
        if self.fragments > 0 || limits.fragments_max == 0 {
            return None;
        }
        let marker = u32::from_be_bytes(*stream.peek(MARKER_LEN)?.first_chunk()?);
        let len = (marker & !LAST_FRAGMENT) as usize;
        if marker & LAST_FRAGMENT == 0 || !(RECORD_BYTES_MIN..=limits.record_bytes_max as usize).contains(&len) {
            return None;
        }
        stream.peek(MARKER_LEN + len)?.get(MARKER_LEN..)
    }

    fn read_marker(&mut self, limits: &RecordLimits, marker: u32) -> Result<(), BadRecord> {
        let last = marker & LAST_FRAGMENT != 0;
        let len = (marker & !LAST_FRAGMENT) as usize;
        // Cumulative, and before the bytes arrive: a record that cannot be taken must not fill memory first.
        if self.payload + len > limits.record_bytes_max as usize {
            return Err(BadRecord::TooLong);
        }
        self.fragments += 1;
        self.empty_fragments += u32::from(len == 0);
        if self.fragments > limits.fragments_max || self.empty_fragments > limits.empty_fragments_max {
            return Err(BadRecord::TooManyFragments);
        }
        self.scanned += MARKER_LEN + len;
        self.payload += len;
        self.last_seen = last;
        if last && self.payload < RECORD_BYTES_MIN {
            return Err(BadRecord::TooShort);
        }
        Ok(())
    }

    /// Bytes in the complete record, markers apart.
    pub fn len(&self) -> usize {
        self.payload
    }

    /// Whether no marker of the next record was read yet.
    pub fn is_empty(&self) -> bool {
        self.fragments == 0
    }

    /// The record that `poll` called complete: in place, or assembled in `assembly` if it has several fragments.
    pub fn record<'s>(&self, stream: &View<'s>, assembly: &'s mut Vec<u8>) -> View<'s> {
        if self.fragments == 1 {
            return stream.part(MARKER_LEN, self.payload).unwrap_or(View::from(&[][..]));
        }
        assembly.clear();
        let mut rest = stream.part(0, self.scanned);
        while let Some((marker, behind)) = rest.and_then(|view| view.split_at(MARKER_LEN)) {
            let len = (marker.u32_at(0).unwrap_or(0) & !LAST_FRAGMENT) as usize;
            let Some((fragment, behind)) = behind.split_at(len) else { break };
            for piece in fragment.pieces() {
                assembly.extend_from_slice(piece);
            }
            rest = Some(behind);
        }
        View::from(&assembly[..])
    }

    /// Ends the record: its bytes, markers included, are to be taken off the stream, and the next record begins.
    pub fn finish(&mut self) -> usize {
        std::mem::take(self).scanned
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::buf::{RxBuf, RxChain};
    use proptest::prelude::*;

    const LIMITS: RecordLimits = RecordLimits { record_bytes_max: 1000, fragments_max: 8, empty_fragments_max: 2 };

    fn fragment(bytes: &[u8], last: bool) -> Vec<u8> {
        let marker = bytes.len() as u32 | if last { LAST_FRAGMENT } else { 0 };
        [&marker.to_be_bytes()[..], bytes].concat()
    }

    fn push(chain: &mut RxChain, bytes: &[u8]) {
        chain.push(RxBuf::from_vec(bytes.to_vec()));
    }

    fn poll_once(bytes: &[u8]) -> RecordState {
        let mut chain = RxChain::new();
        push(&mut chain, bytes);
        RecordReader::default().poll(&LIMITS, &chain.all())
    }

    #[test]
    fn a_single_fragment_is_a_view_in_place() {
        let mut chain = RxChain::new();
        push(&mut chain, &[fragment(b"12345678abc", true), fragment(b"next one", true)].concat());
        let mut reader = RecordReader::default();
        let mut assembly = Vec::new();
        assert_eq!(reader.poll(&LIMITS, &chain.all()), RecordState::Complete);
        let inside = chain.view(4, 11).unwrap().contiguous().unwrap();
        let record = reader.record(&chain.all(), &mut assembly).contiguous().unwrap();
        assert!(std::ptr::eq(inside, record), "no copy");
        chain.consume(reader.finish());
        assert_eq!(reader.poll(&LIMITS, &chain.all()), RecordState::Complete);
        assert_eq!(reader.record(&chain.all(), &mut assembly).to_vec(), b"next one");
        assert_eq!(assembly.capacity(), 0);
    }

    #[test]
    fn fragments_byte_by_byte_make_one_record() {
        let stream = [fragment(b"1234", false), fragment(b"", false), fragment(b"5678", false), fragment(b"9", true)].concat();
        let mut chain = RxChain::new();
        let mut reader = RecordReader::default();
        for (at, byte) in stream.iter().enumerate() {
            assert_eq!(reader.poll(&LIMITS, &chain.all()), RecordState::Incomplete, "before byte {at}");
            push(&mut chain, &[*byte]);
        }
        assert_eq!(reader.poll(&LIMITS, &chain.all()), RecordState::Complete);
        assert_eq!((reader.len(), reader.record(&chain.all(), &mut Vec::new()).to_vec()), (9, b"123456789".to_vec()));
        chain.consume(reader.finish());
        assert!(chain.is_empty() && reader.is_empty());
    }

    #[test]
    fn limits_are_checked_at_the_marker() {
        assert_eq!(poll_once(&0x7fff_ffffu32.to_be_bytes()), RecordState::Bad(BadRecord::TooLong), "2 GiB");
        assert_eq!(poll_once(&0xffff_ffffu32.to_be_bytes()), RecordState::Bad(BadRecord::TooLong));
        assert_eq!(poll_once(&(1000 | LAST_FRAGMENT).to_be_bytes()), RecordState::Incomplete, "exactly the limit");
        assert_eq!(poll_once(&(1001 | LAST_FRAGMENT).to_be_bytes()), RecordState::Bad(BadRecord::TooLong));
        let cumulative = [fragment(&[0; 900], false), (101 | LAST_FRAGMENT).to_be_bytes().to_vec()].concat();
        assert_eq!(poll_once(&cumulative), RecordState::Bad(BadRecord::TooLong));
        assert_eq!(poll_once(&fragment(b"1234567", true)), RecordState::Bad(BadRecord::TooShort));
        assert_eq!(poll_once(&fragment(b"", true)), RecordState::Bad(BadRecord::TooShort));
    }

    #[test]
    fn fragments_are_bounded_in_number() {
        assert_eq!(poll_once(&[0; 8]), RecordState::Incomplete, "two empty fragments are allowed");
        assert_eq!(poll_once(&[0; 4096]), RecordState::Bad(BadRecord::TooManyFragments), "endless empty ones are not");
        let ones = fragment(b"x", false);
        assert_eq!(poll_once(&ones.repeat(8)), RecordState::Incomplete);
        assert_eq!(poll_once(&ones.repeat(9)), RecordState::Bad(BadRecord::TooManyFragments));
    }

    proptest! {
        #[test]
        fn any_cut_into_fragments_and_buffers_gives_the_record(
            pieces in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 1..40), 1..8),
            cuts in proptest::collection::vec(1usize..17, 1..20),
        ) {
            let record: Vec<u8> = [&[7; 8][..], &pieces.concat()[..]].concat();
            let mut stream = fragment(&[7; 8], false);
            for (index, piece) in pieces.iter().take(6).enumerate() {
                stream.extend(fragment(piece, index + 1 == pieces.len()));
            }
            if let Some(rest) = pieces.get(6) {
                stream.extend(fragment(rest, true));
            }
            let mut chain = RxChain::new();
            let mut reader = RecordReader::default();
            let mut sizes = cuts.iter().cycle();
            let mut rest = &stream[..];
            while !rest.is_empty() {
                prop_assert_eq!(reader.poll(&LIMITS, &chain.all()), RecordState::Incomplete);
                let (now, later) = rest.split_at((*sizes.next().unwrap()).min(rest.len()));
                push(&mut chain, now);
                rest = later;
            }
            prop_assert_eq!(reader.poll(&LIMITS, &chain.all()), RecordState::Complete);
            prop_assert_eq!(reader.record(&chain.all(), &mut Vec::new()).to_vec(), record);
        }
    }
}
