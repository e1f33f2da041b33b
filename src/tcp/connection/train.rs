//! A train: segments of one burst that follow each other in one connection, handled as one.
//!
//! Read first: `predicted`; RFC 9293 section 3.10.7.4. The first segment went through header prediction, which also says what may follow
//! it: the same header but for SEG.SEQ, which must be the next, SEG.ACK, PSH and the timestamps. What follows is recognised by its
//! octets, without being parsed. Text is in the stream at once; all else (the acknowledgement, one sample of the round-trip
//! time, timers, the event, whether to acknowledge) is decided once, when the train ends: with the first segment that is not of it, or
//! the next call of the endpoint. Of a receiver that decided after each segment the peer would see the same.

use std::net::{IpAddr, Ipv4Addr};

use super::segment::is_before;
use crate::buf::RxPacket;
use crate::time::Instant;
use crate::wire::tcp::{Flags, HEADER_LEN, Repr, SeqNumber};

/// RFC 7323 appendix A: two NOPs, kind and length of the timestamps.
const TIMESTAMPS_ALONE: u32 = 0x0101_080a;
const LEN_WITH_TIMESTAMPS: usize = HEADER_LEN + 12;
/// PSH in octets 12 to 15 of the header.
const PUSH: u32 = (Flags::PSH.0 as u32) << 16;

/// What the connection can take without anything but the sum being decided.
pub(super) struct Room {
    /// Bytes up to the edge of the window, and in one segment.
    pub text: u64,
    pub segment: u64,
    /// Buffers until one of their limits comes into play, and until small segments are copied, which are those below so many bytes
    /// in each buffer.
    pub buffers: usize,
    pub small_buffers: usize,
    pub small_below: usize,
}

/// A segment's header as far as prediction looks at it, and how long its text is.
pub(crate) struct Header {
    /// Octets 4 to 7, then 0 to 3: sequence number and ports, so that what is added to the one does not reach the other.
    place: u64,
    pub ack: SeqNumber,
    /// Octets 12 to 15, without PSH: data offset, flags, window.
    look: u32,
    /// TSval; 0 where there are none.
    pub timestamp: u32,
    pub has_timestamps: bool,
    pub len: usize,
    pub text: usize,
    buffers: usize,
    push: bool,
}

impl Header {
    /// Of a header without options, or with timestamps laid out as in nearly every segment.
    #[inline]
    pub fn plain(packet: &RxPacket) -> Option<Header> {
        let octets = &packet.first;
        let fixed: &[u8; HEADER_LEN] = octets.first_chunk()?;
        let word = |at: usize| u32::from_be_bytes([fixed[at], fixed[at + 1], fixed[at + 2], fixed[at + 3]]);
        let place = place_of(fixed);
        let look = word(12);
        let (mut len, mut timestamp) = (HEADER_LEN, 0);
        let has_timestamps = look >> 28 == LEN_WITH_TIMESTAMPS as u32 / 4;
        if has_timestamps {
            let all: &[u8; LEN_WITH_TIMESTAMPS] = octets.first_chunk()?;
            let word = |at: usize| u32::from_be_bytes([all[at], all[at + 1], all[at + 2], all[at + 3]]);
            if word(HEADER_LEN) != TIMESTAMPS_ALONE {
                return None;
            }
            (len, timestamp) = (LEN_WITH_TIMESTAMPS, word(HEADER_LEN + 4));
        } else if look >> 28 != HEADER_LEN as u32 / 4 {
            return None;
        }
        Some(Header {
            place,
            ack: SeqNumber(word(8)),
            look: look & !PUSH,
            timestamp,
            has_timestamps,
            len,
            text: packet.len() - len,
            buffers: 1 + packet.more.len(),
            push: look & PUSH != 0,
        })
    }

    /// The same of a header that was parsed and cut off, whatever its layout.
    pub fn of(repr: &Repr, payload: &RxPacket) -> Header {
        let ports = u32::from(repr.src_port) << 16 | u32::from(repr.dst_port);
        let timestamp = repr.options.timestamps;
        let len = if timestamp.is_some() { LEN_WITH_TIMESTAMPS } else { HEADER_LEN };
        Header {
            place: u64::from(repr.seq.0) << 32 | u64::from(ports),
            ack: repr.ack,
            look: (len as u32 / 4) << 28 | u32::from(repr.flags.0) << 16 & !PUSH | u32::from(repr.window),
            timestamp: timestamp.map_or(0, |timestamps| timestamps.value),
            has_timestamps: timestamp.is_some(),
            len,
            text: payload.len(),
            buffers: 1 + payload.more.len(),
            push: repr.flags.contains(Flags::PSH),
        }
    }

    pub fn ports(&self) -> (u16, u16) {
        ((self.place >> 16) as u16, self.place as u16)
    }

    pub fn seq(&self) -> SeqNumber {
        SeqNumber((self.place >> 32) as u32)
    }

    /// Nothing but ACK, and PSH or not.
    pub fn is_plain_ack(&self) -> bool {
        self.look >> 16 & 0xff == u32::from(Flags::ACK.0)
    }

    pub fn window(&self) -> u16 {
        self.look as u16
    }
}

#[inline(always)]
fn place_of(header: &[u8; HEADER_LEN]) -> u64 {
    let [p0, p1, p2, p3, s0, s1, s2, s3, ..] = *header;
    u64::from_be_bytes([p0, p1, p2, p3, s0, s1, s2, s3]).rotate_left(32)
}

/// Two addresses, to be compared in one piece.
#[inline]
pub(super) fn word_of(src: Ipv4Addr, dst: Ipv4Addr) -> u64 {
    let ([a, b, c, d], [e, f, g, h]) = (src.octets(), dst.octets());
    u64::from_ne_bytes([a, b, c, d, e, f, g, h])
}

/// Where the connection stood when the train came.
pub(super) struct Departure {
    pub now: Instant,
    pub src: IpAddr,
    pub dst: IpAddr,
    /// Both as one word, if they are of IPv4.
    pub ipv4: Option<u64>,
    /// SND.UNA and SND.NXT.
    pub una: SeqNumber,
    pub nxt: SeqNumber,
    /// The header's layout: with timestamps and nothing else, or without any option.
    pub has_timestamps: bool,
    /// 0 without timestamps, as is the first header's and all that follow.
    pub ts_recent: u32,
    /// RFC 7323 section 4.3 (2) remembers the first timestamp, and further ones until text comes.
    pub remembers: bool,
    pub room: Room,
}

pub(crate) struct Train {
    pub(super) from: Departure,
    /// `place` and `look` of the next header.
    place: u64,
    look: u32,
    /// The next timestamp is to be remembered.
    remembers: bool,
    /// SEG.ACK so far.
    pub(super) ack: SeqNumber,
    pub(super) segments: u32,
    /// Of them, such as acknowledge something new.
    pub(super) acks: u32,
    /// And such as carry text, which comes to `text` bytes.
    pub(super) text_segments: u32,
    pub(super) text: u64,
    /// Buffers that the text is in.
    buffers: usize,
    /// Of the last one; the shortest and the longest of those with text.
    pub(super) last_len: u64,
    pub(super) shortest: u64,
    pub(super) longest: u64,
    pub(super) push: bool,
}

impl Train {
    /// One that a predicted segment may start.
    #[inline]
    pub(super) fn new(from: Departure, first: &Header) -> Train {
        Train {
            remembers: from.remembers,
            ack: from.una,
            from,
            place: first.place,
            look: first.look,
            segments: 0,
            acks: 0,
            text_segments: 0,
            text: 0,
            buffers: 0,
            last_len: 0,
            shortest: u64::MAX,
            longest: 0,
            push: false,
        }
    }

    pub(crate) fn now(&self) -> Instant {
        self.from.now
    }

    /// Whether the segment is the next one.
    #[inline]
    pub(crate) fn continues_with(&self, now: Instant, src: IpAddr, dst: IpAddr, header: &Header) -> bool {
        src == self.from.src && dst == self.from.dst && self.expects(now, header)
    }

    /// The header of a segment over IPv4 in one buffer, if it is the next one. Most of a burst come by here: what is compared is compared
    /// in one piece, and a header whose layout is not the first one's is nobody's.
    #[inline(always)]
    pub(crate) fn next_in_place(&self, now: Instant, src: Ipv4Addr, dst: Ipv4Addr, octets: &[u8]) -> Option<Header> {
        let (fixed, len, timestamp): (&[u8; HEADER_LEN], _, _) = match self.from.has_timestamps {
            true => {
                let all: &[u8; LEN_WITH_TIMESTAMPS] = octets.first_chunk()?;
                let [.., n0, n1, kind, len, v0, v1, v2, v3, _, _, _, _] = *all;
                if u32::from_be_bytes([n0, n1, kind, len]) != TIMESTAMPS_ALONE {
                    return None;
                }
                (all.first_chunk()?, LEN_WITH_TIMESTAMPS, u32::from_be_bytes([v0, v1, v2, v3]))
            }
            false => (octets.first_chunk()?, HEADER_LEN, 0),
        };
        let [_, _, _, _, _, _, _, _, a0, a1, a2, a3, l0, l1, l2, l3, ..] = *fixed;
        let (place, look) = (place_of(fixed), u32::from_be_bytes([l0, l1, l2, l3]));
        if (place ^ self.place) | u64::from((look & !PUSH) ^ self.look) != 0
            || self.from.ipv4 != Some(word_of(src, dst))
            || now != self.from.now
        {
            return None;
        }
        let header = Header {
            place,
            ack: SeqNumber(u32::from_be_bytes([a0, a1, a2, a3])),
            look: self.look,
            timestamp,
            has_timestamps: self.from.has_timestamps,
            len,
            text: octets.len() - len,
            buffers: 1,
            push: look & PUSH != 0,
        };
        self.has_room_for(&header).then_some(header)
    }

    #[inline]
    fn expects(&self, now: Instant, header: &Header) -> bool {
        header.place == self.place && header.look == self.look && now == self.from.now && self.has_room_for(header)
    }

    /// Whether it says something, and nothing but what was expected.
    #[inline(always)]
    pub(super) fn has_room_for(&self, header: &Header) -> bool {
        let acked = header.ack.0.wrapping_sub(self.ack.0);
        // RFC 7323 section 5.3, R1 (PAWS).
        if acked > self.from.nxt.0.wrapping_sub(self.ack.0) || is_before(header.timestamp, self.from.ts_recent) {
            return false;
        }
        if header.text == 0 {
            // Without text or news it is a duplicate, a probe, or says something about the window.
            return acked > 0;
        }
        let Room { text, segment, buffers, small_buffers, small_below } = self.from.room;
        let len = header.text as u64;
        let held = self.buffers + header.buffers;
        self.text + len <= text
            && len <= segment
            && held <= buffers
            && (self.buffers < small_buffers || header.text >= header.buffers * small_below)
    }

    #[inline]
    pub(crate) fn couple(&mut self, header: &Header) {
        self.segments += 1;
        self.acks += u32::from(header.ack != self.ack);
        self.ack = header.ack;
        if self.remembers {
            self.from.ts_recent = header.timestamp;
        }
        let len = header.text as u64;
        let alike = len == std::mem::replace(&mut self.last_len, len);
        if len > 0 {
            self.remembers = false;
            self.text_segments += 1;
            self.text += len;
            self.place = self.place.wrapping_add(len << 32);
            if !alike {
                self.shortest = self.shortest.min(len);
                self.longest = self.longest.max(len);
            }
            self.push |= header.push;
            self.buffers += header.buffers;
        }
    }
}
