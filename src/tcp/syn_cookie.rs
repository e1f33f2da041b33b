//! SYN cookies: while a listener's half-open connections are at their maximum, a handshake's state lies with the peer.
//!
//! Read first: RFC 4987 section 3.6 and appendix A, RFC 7323 section 3.2. The sequence number of the SYN-ACK tells, to the holder of the
//! secret, who was answered, when, and which MSS was asked for; window scale and SACK travel in the low bits of its
//! timestamp, which the peer echoes. Without timestamps a cookie's connection has neither. Not here: when a cookie is sent
//! (`endpoint::listen`).

use std::hash::{Hash, Hasher};

use siphasher::sip::SipHasher24;

use super::Options;
use super::connection::{default_mss, is_ecn_asked_for, scale_for};
use super::endpoint::FourTuple;
use crate::time::{Duration, Instant};
use crate::wire::tcp::{Flags, Repr, SeqNumber, Timestamps, WINDOW_SCALE_MAX};

/// How long one value of the slow counter lasts. A cookie is good in its own period and the next.
const PERIOD: Duration = Duration::from_secs(64);
const PERIODS_VALID: u32 = 2;
/// What three bits can say of the peer's MSS: the largest that is not beyond it is used. The Internet's usual ones: without the
/// option (RFC 9293 section 3.7.1), IPv6's least, tunnels, PPPoE, Ethernet, FDDI and jumbo frames.
const MSS: [u16; 8] = [88, 536, 1220, 1360, 1440, 1460, 4312, 8960];
/// Bits of the sequence number that the keyed hash and the MSS share; above them lies the counter.
const HASH_BITS: u32 = 24;
const HASH_MASK: u32 = (1 << HASH_BITS) - 1;
const MSS_MASK: u32 = MSS.len() as u32 - 1;

/// The low bits of the timestamp: the peer's window scale (15: not offered), SACK permitted, ECN.
const OPTION_BITS: u32 = 6;
const SCALE_MASK: u32 = 0x0f;
const NO_SCALE: u32 = 0x0f;
const SACK_BIT: u32 = 0x10;
const ECN_BIT: u32 = 0x20;

/// Makes cookies and knows them again.
pub(crate) struct SynCookies {
    secret: [u8; 16],
    last_sent: Option<Instant>,
}

/// Bytes that the SYN-ACK of a cookie advertises, and its connection starts with. The window of a SYN is never scaled.
pub(crate) fn window(options: &Options) -> u16 {
    let limit = options.receive_window_initial.min(options.receive_window_max);
    limit.min(u32::from(u16::MAX)) as u16
}

impl SynCookies {
    pub fn new(secret: [u8; 16]) -> SynCookies {
        SynCookies { secret, last_sent: None }
    }

    /// F of RFC 6528 for a cookie's connection.
    fn base(&self, tuple: &FourTuple, irs: SeqNumber) -> u32 {
        let mut hasher = SipHasher24::new_with_key(&self.secret);
        tuple.hash(&mut hasher);
        hasher.write_u8(2);
        (hasher.finish() as u32).wrapping_add(irs.0)
    }

    /// The low bits: proof of all that the cookie stands for, and which MSS.
    fn proof(&self, tuple: &FourTuple, irs: SeqNumber, period: u32, mss_index: u32) -> u32 {
        let mut hasher = SipHasher24::new_with_key(&self.secret);
        tuple.hash(&mut hasher);
        hasher.write_u8(3);
        for word in [period, irs.0, mss_index] {
            hasher.write_u32(word);
        }
        hasher.finish() as u32 & HASH_MASK & !MSS_MASK | mss_index
    }

    fn period(now: Instant) -> u32 {
        (now.nanos() / PERIOD.as_nanos() as u64) as u32
    }

    fn cookie(&self, now: Instant, tuple: &FourTuple, irs: SeqNumber, mss: u16) -> SeqNumber {
        let period = SynCookies::period(now);
        let index = MSS.iter().rposition(|known| *known <= mss).unwrap_or(0) as u32;
        // Added to a hash of the connection and the peer's own number: it grows with time, as RFC 6528 asks of an ISN.
        let high = self.base(tuple, irs).wrapping_add(period << HASH_BITS);
        SeqNumber(high.wrapping_add(self.proof(tuple, irs, period, index)))
    }

    /// The MSS of the SYN that `cookie` answered, if it is one of ours and not too old.
    fn mss_of(&self, now: Instant, tuple: &FourTuple, irs: SeqNumber, cookie: SeqNumber) -> Option<u16> {
        let period = SynCookies::period(now);
        let rest = cookie.0.wrapping_sub(self.base(tuple, irs));
        let age = period.wrapping_sub(rest >> HASH_BITS) & (u32::MAX >> HASH_BITS);
        let index = rest & MSS_MASK;
        let known = age < PERIODS_VALID && rest & HASH_MASK == self.proof(tuple, irs, period.wrapping_sub(age), index);
        MSS.get(index as usize).copied().filter(|_| known)
    }

    /// The SYN-ACK for `syn`. `timestamp` is what our clock shows this peer; the MSS option is filled in where the MTU is known.
    pub fn answer(&mut self, now: Instant, tuple: &FourTuple, syn: &Repr, options: &Options, timestamp: u32) -> Repr {
        self.last_sent = Some(now);
        let mut repr = Repr {
            src_port: tuple.local_port,
            dst_port: tuple.remote_port,
            seq: self.cookie(now, tuple, syn.seq, syn.options.mss.unwrap_or(default_mss(tuple))),
            ack: syn.seq + 1,
            flags: Flags::SYN | Flags::ACK,
            window: window(options),
            ..Repr::default()
        };
        repr.options.mss = Some(0);
        if let Some(peer) = syn.options.timestamps.filter(|_| options.timestamps) {
            let scale = syn.options.window_scale.filter(|_| options.window_scaling);
            repr.options.sack_permitted = syn.options.sack_permitted && options.sack;
            repr.options.window_scale = scale.map(|_| scale_for(options.receive_window_max));
            let mut bits = scale.map_or(NO_SCALE, |scale| u32::from(scale.min(WINDOW_SCALE_MAX)));
            bits |= if repr.options.sack_permitted { SACK_BIT } else { 0 };
            if is_ecn_asked_for(options, syn) {
                bits |= ECN_BIT;
                repr.flags |= Flags::ECE;
            }
            // Never ahead of the clock: later segments would look old to the peer (RFC 7323 section 5.3).
            let mut value = timestamp & !((1 << OPTION_BITS) - 1) | bits;
            if (timestamp.wrapping_sub(value) as i32) < 0 {
                value = value.wrapping_sub(1 << OPTION_BITS);
            }
            repr.options.timestamps = Some(Timestamps { value, echo_reply: peer.value });
        }
        repr
    }

    /// The SYN that `ack` completes the handshake of, if a cookie was sent for it; `None`: it was not.
    pub fn syn_of(&self, now: Instant, tuple: &FourTuple, ack: &Repr, options: &Options) -> Option<Repr> {
        let (irs, cookie) = (ack.seq - 1, ack.ack - 1);
        let mut syn = Repr { seq: irs, flags: Flags::SYN, window: ack.window, ..Repr { options: Default::default(), ..*ack } };
        syn.options.mss = Some(self.mss_of(now, tuple, irs, cookie)?);
        if let Some(timestamps) = ack.options.timestamps.filter(|_| options.timestamps) {
            let bits = timestamps.echo_reply;
            syn.options.timestamps = Some(timestamps);
            syn.options.window_scale = Some(bits & SCALE_MASK).filter(|scale| *scale != NO_SCALE).map(|scale| scale as u8);
            syn.options.sack_permitted = bits & SACK_BIT != 0;
            if bits & ECN_BIT != 0 {
                syn.flags |= Flags::ECE | Flags::CWR;
            }
        }
        Some(syn)
    }

    /// Whether a segment that answers none may lie behind text of a cookie's connection that was lost on the way. The proof needs the
    /// peer's first number, which is not known then; of the cookie only the slow counter can be made out: 3 of 256 strangers have it, too.
    pub fn may_be_followed(&self, now: Instant, tuple: &FourTuple, ack: &Repr) -> bool {
        let rest = (ack.ack - 1).0.wrapping_sub(self.base(tuple, ack.seq - 1));
        // The text, no more than the unscaled window of a SYN-ACK, takes its length from the proof below the counter, which may have to borrow one.
        SynCookies::period(now).wrapping_sub(rest >> HASH_BITS) & (u32::MAX >> HASH_BITS) <= PERIODS_VALID
    }

    /// Whether an ACK may answer one: without this each stray ACK would be tried, and guesses would cost nothing.
    pub fn may_be_answered(&self, now: Instant) -> bool {
        self.last_sent.is_some_and(|at| now.since(at) < PERIOD * PERIODS_VALID)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn tuple(port: u16) -> FourTuple {
        FourTuple { local_ip: [10, 0, 0, 2].into(), remote_ip: [10, 0, 0, 1].into(), local_port: 2049, remote_port: port }
    }

    fn syn(mss: u16, scale: Option<u8>, sack: bool, timestamp: u32) -> Repr {
        let mut syn = Repr { seq: SeqNumber(77), flags: Flags::SYN, ..Repr::default() };
        syn.options.mss = Some(mss);
        syn.options.window_scale = scale;
        syn.options.sack_permitted = sack;
        syn.options.timestamps = Some(Timestamps { value: timestamp, echo_reply: 0 });
        syn
    }

    /// What a peer answers to `syn_ack`.
    fn ack_of(syn_ack: &Repr) -> Repr {
        let mut ack = Repr { seq: syn_ack.ack, ack: syn_ack.seq + 1, flags: Flags::ACK, ..Repr::default() };
        ack.options.timestamps =
            syn_ack.options.timestamps.map(|ours| Timestamps { value: ours.echo_reply + 1, echo_reply: ours.value });
        ack
    }

    proptest! {
        #[test]
        fn a_cookie_keeps_what_the_syn_asked_for(
            mss in 1u16.., scale in proptest::option::of(0u8..20), sack: bool, at in 0u64..1 << 40, clock: u32, age in 0u64..64_000,
        ) {
            let (options, now) = (Options::default(), Instant::from_millis(at));
            let mut cookies = SynCookies::new([3; 16]);
            let syn = syn(mss, scale, sack, 5);
            let answer = cookies.answer(now, &tuple(9), &syn, &options, clock);
            let sent = answer.options.timestamps.unwrap().value;
            prop_assert!((clock.wrapping_sub(sent) as i32) >= 0 && clock.wrapping_sub(sent) < 128, "a little behind the clock");
            let back = cookies.syn_of(now + Duration::from_millis(age), &tuple(9), &ack_of(&answer), &options).unwrap();
            prop_assert_eq!(back.options.window_scale, scale.map(|scale| scale.min(WINDOW_SCALE_MAX)));
            prop_assert_eq!(back.options.sack_permitted, sack);
            prop_assert_eq!(back.seq, syn.seq);
            let kept = back.options.mss.unwrap();
            prop_assert!(kept <= mss.max(88) && MSS.contains(&kept));
        }
    }

    #[test]
    fn it_is_good_for_its_peer_and_its_time_only() {
        let (options, now) = (Options::default(), Instant::from_millis(1_000_000));
        let mut cookies = SynCookies::new([3; 16]);
        assert!(!cookies.may_be_answered(now));
        let ack = ack_of(&cookies.answer(now, &tuple(9), &syn(1460, Some(7), true, 5), &options, 0));
        assert!(cookies.may_be_answered(now) && cookies.syn_of(now, &tuple(9), &ack, &options).is_some());
        assert!(cookies.syn_of(now, &tuple(10), &ack, &options).is_none(), "another port");
        let other = Repr { seq: ack.seq + 1, ..ack };
        assert!(cookies.syn_of(now, &tuple(9), &other, &options).is_none(), "another sequence number of the peer");
        assert!(SynCookies::new([4; 16]).syn_of(now, &tuple(9), &ack, &options).is_none(), "another secret");
        let later = now + PERIOD * PERIODS_VALID;
        assert!(cookies.syn_of(later, &tuple(9), &ack, &options).is_none() && !cookies.may_be_answered(later), "too old");
    }

    #[test]
    fn guesses_do_not_hit() {
        let (options, now) = (Options::default(), Instant::from_millis(1_000_000));
        let cookies = SynCookies::new([3; 16]);
        // 16 of 2^32 numbers are good at any time.
        let guess = |n: u32| Repr { ack: SeqNumber(n.wrapping_mul(0x9e37_79b9)), flags: Flags::ACK, ..Repr::default() };
        assert_eq!((0..100_000).filter(|n| cookies.syn_of(now, &tuple(9), &guess(*n), &options).is_some()).count(), 0);
    }
}
