//! The judge of a simulated link: what TCP's rules say about each segment that an end sends, given what has reached it.
//!
//! Read first: RFC 9293 section 3.8, RFC 7323 sections 2 to 4, RFC 2018 section 4, RFC 2883 section 4, RFC 3168 section 6.1.
//! It reads octets by itself and knows nothing of the stack: all of std, nothing of the crate. The simulator tells it of each segment
//! twice, when it is sent (and then whether it was lost) and when it is handed over; so it knows exactly what an end can know. The rules:
//!
//! | rule | broken by |
//! |---|---|
//! | checksum | a segment with a wrong checksum |
//! | size | a packet beyond the link's MTU, or text beyond the peer's MSS less the options |
//! | handshake | a SYN-ACK with an option that the SYN did not have, or a window scale beyond 14 |
//! | sequence | text behind a gap; an empty segment elsewhere than at SND.NXT, or, as a probe, in front of SND.UNA |
//! | text | other octets than were sent before at the same place |
//! | flood | more new text than a window makes that begins as RFC 6928 section 2 says and grows by what arrives (RFC 5681 section 3.1) |
//! | window | text right of every edge that the peer has advertised |
//! | unarrived | an ACK of what has not arrived without a hole |
//! | regress | an ACK below an earlier one |
//! | shrunk | a right edge of the window left of an earlier one by more than scaling explains |
//! | clock | a timestamp lower than one before it |
//! | echo | a timestamp echoed that no segment at or before the ACK carried, or older than one echoed before |
//! | options | timestamps or SACK blocks without agreement, or no timestamps in spite of it |
//! | blocks | a SACK block with an octet that had not arrived, or below the ACK and not the first |
//! | silent | an empty ACK that tells nothing of text that waits behind a hole (RFC 2018 section 4), where memory is ample |
//! | ecn | ECT without agreement, on text that is repeated or an empty segment; new text without it in spite of one |
//! | marks | a congestion mark whose ACK carries no ECE before the peer's CWR, where memory is ample |
//! | needless | an empty ACK that says what the last segment said, with nothing come in that it could answer; probes within 100 ms |
//! | repeated | on a link that keeps the order: text sent again although the last copy of it arrived, unless only what came later was reported, or a timer asked for it |
//!
//! Somebody on the path may make segments up, or change some (`intrudes`). From then on an end may know less than has reached it, since it
//! throws away what no peer of its would send, and may be asked more than its peer asks: `silent`, `flood`, `marks`, `repeated` and `needless`,
//! but for probes, are not looked at any more. The others hold against whatever comes.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;

const FIN: u8 = 0x01;
const SYN: u8 = 0x02;
const RST: u8 = 0x04;
const ACK: u8 = 0x10;
const ECE: u8 = 0x40;
const CWR: u8 = 0x80;

/// The mark of RFC 3168 section 5.
const CONGESTION_EXPERIENCED: u8 = 3;

/// The shortest retransmission timeout, less the tick of a timer.
const RTO_MIN: u64 = 198_000_000;
/// What goes beyond the congestion window, packets: limited transmit's two (RFC 3042), a tail probe and one of the MTU.
const FLOOD_PACKETS: i64 = 4;
/// The least between two probes of a window.
const PROBE_MIN: u64 = 100_000_000;

/// What the ends and the link between them are like.
#[derive(Clone, Copy, Debug)]
pub struct Terms {
    /// Of each end's link, octets of IP packet.
    pub mtu: [usize; 2],
    /// Of each end: memory for everything that the peer may send.
    pub ample: [bool; 2],
    /// The link neither duplicates nor overtakes nor refuses long packets, and it tells what it loses.
    pub orderly: bool,
    /// Nothing lies between TCP and the link: all that it sends is seen, and what comes is answered before anything else comes. Otherwise
    /// `sequence`, `text`, `ecn` and `needless` are not looked at.
    pub bare: bool,
}

/// A rule that was broken, and by what.
#[derive(Debug)]
pub struct Fault {
    pub rule: &'static str,
    pub what: String,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.rule, self.what)
    }
}

/// What one end sent, in segments.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    pub new: u64,
    /// Text sent again: after a loss of any of it, and otherwise.
    pub repaired: u64,
    pub repeated: u64,
    pub empty: u64,
    pub lost: u64,
    /// Bytes of text of what was new, repeated, repaired and lost: a chain that a device cuts is lost as one and may be repaired packet by
    /// packet, and behind a path that has become narrower there are more packets, so their numbers cannot be compared.
    pub new_bytes: u64,
    pub repeated_bytes: u64,
    /// The longest segment.
    pub text_max: u64,
    pub repaired_bytes: u64,
    pub lost_bytes: u64,
}

impl Tally {
    /// How much may be sent again because a part of it was lost, bytes: each byte that was lost once, and what lies in a packet with it. The
    /// packets that have no memory to go to (a receiver's, which no link has lost) are in the first term.
    pub fn repaired_bytes_max(&self) -> u64 {
        20 * 9000 + 2 * self.lost_bytes
    }

    /// How much may be sent again although it arrived. What makes a sender err is bounded by what it sent and by what was lost on the
    /// way to the peer and back. All text twice is beyond it.
    pub fn repeated_max(&self, peer: &Tally) -> u64 {
        20 + self.new / 2 + (self.lost + peer.lost) / 2
    }

    /// Where that is in no proportion, since a peer without memory forgets what it has, or a path that reorders and gets narrower makes a
    /// sender take for lost what was not: ten copies of each segment and twenty more, by bytes, and by packets if each was cut into those of
    /// the narrowest path.
    pub fn repeats_without_end(&self) -> bool {
        const TIMES: u64 = 10;
        const BEYOND: u64 = 20;
        const TEXT_MIN: u64 = 512;
        let bytes_max = BEYOND * self.text_max + TIMES * self.new_bytes;
        let packets_max = (BEYOND + TIMES * self.new) * self.text_max.div_ceil(TEXT_MIN).max(1);
        self.repeated_bytes > bytes_max || self.repeated > packets_max
    }
}

/// A segment as it stands on the wire.
#[derive(Clone, Debug, Default)]
struct Segment<'a> {
    seq: u32,
    ack: u32,
    flags: u8,
    window: u16,
    options_len: usize,
    text: &'a [u8],
    mss: Option<u16>,
    scale: Option<u8>,
    sack_permitted: bool,
    timestamps: Option<(u32, u32)>,
    blocks: Vec<(u32, u32)>,
}

impl<'a> Segment<'a> {
    fn read(bytes: &'a [u8]) -> Option<Segment<'a>> {
        let header_len = usize::from(bytes.get(12)? >> 4) * 4;
        let (header, text) = (bytes.get(..header_len)?, &bytes[header_len..]);
        let word = |at: usize| header.get(at..at + 4).map(|w| u32::from_be_bytes(w.try_into().expect("four octets")));
        let mut segment = Segment { seq: word(4)?, ack: word(8)?, flags: *header.get(13)?, text, ..Segment::default() };
        segment.window = u16::from_be_bytes([*header.get(14)?, *header.get(15)?]);
        segment.options_len = header_len.checked_sub(20)?;
        let mut at = 20;
        while let Some(kind) = header.get(at) {
            let len = match kind {
                0 => break,
                1 => 1,
                _ => usize::from(*header.get(at + 1)?).max(2),
            };
            match kind {
                2 => segment.mss = Some(u16::from_be_bytes([*header.get(at + 2)?, *header.get(at + 3)?])),
                3 => segment.scale = header.get(at + 2).copied(),
                4 => segment.sack_permitted = true,
                5 => {
                    let edges = (at + 2..at + len).step_by(8).map(|at| word(at).zip(word(at + 4)));
                    segment.blocks = edges.collect::<Option<_>>()?;
                }
                8 => segment.timestamps = word(at + 2).zip(word(at + 6)),
                _ => {}
            }
            at += len;
        }
        Some(segment)
    }

    fn has(&self, flags: u8) -> bool {
        self.flags & flags == flags
    }

    fn len(&self) -> i64 {
        self.text.len() as i64
    }

    /// Sequence numbers that it takes.
    fn space(&self) -> i64 {
        self.len() + i64::from(self.has(SYN)) + i64::from(self.has(FIN))
    }
}

/// Whether a segment's checksum over pseudo-header and octets comes to nothing (RFC 9293 section 3.1).
pub fn checksum_is_right(src: IpAddr, dst: IpAddr, bytes: &[u8]) -> bool {
    let address = |ip: IpAddr| match ip {
        IpAddr::V4(ip) => octets_sum(&ip.octets()),
        IpAddr::V6(ip) => octets_sum(&ip.octets()),
    };
    let sum = address(src) + address(dst) + bytes.len() as u64 + 6 + octets_sum(bytes);
    // Ones' complement: the carries come back in.
    sum != 0 && sum % 0xffff == 0
}

/// Of 16-bit words, two at a time: 2^16 is 1 where carries come back in.
fn octets_sum(octets: &[u8]) -> u64 {
    let word = |octets: &[u8]| u64::from(u32::from_be_bytes(octets.try_into().expect("four octets")));
    // Eight at once: of each step of a loop the fuzzer takes note.
    let (blocks, rest) = (octets.chunks_exact(32), octets.chunks_exact(32).remainder());
    let of_blocks: u64 = blocks.map(|block| (0..8).map(|at| word(&block[4 * at..4 * at + 4])).sum::<u64>()).sum();
    let (words, rest) = (rest.chunks_exact(4), rest.chunks_exact(4).remainder());
    let mut last = [0; 4];
    last[..rest.len()].copy_from_slice(rest);
    of_blocks + words.map(word).sum::<u64>() + u64::from(u32::from_be_bytes(last))
}

/// Ranges of a stream.
#[derive(Clone, Debug, Default)]
struct Spans {
    /// Where each starts and ends; none touches another.
    ranges: BTreeMap<i64, i64>,
    /// Octets in all of them.
    len: i64,
}

impl Spans {
    fn insert(&mut self, mut start: i64, mut end: i64) {
        let touched: Vec<i64> =
            self.ranges.range(..=end).rev().take_while(|(_, stop)| **stop >= start).map(|(s, _)| *s).collect();
        for other in touched {
            let stop = self.ranges.remove(&other).expect("just seen");
            self.len -= stop - other;
            (start, end) = (start.min(other), end.max(stop));
        }
        self.len += end - start;
        self.ranges.insert(start, end);
    }

    fn covers(&self, start: i64, end: i64) -> bool {
        self.ranges.range(..=start).next_back().is_some_and(|(_, stop)| *stop >= end)
    }

    /// Where the first hole begins.
    fn without_hole(&self) -> i64 {
        self.ranges.range(..=0).next_back().map_or(0, |(_, end)| (*end).max(0))
    }
}

/// One transmission of sequence space.
#[derive(Clone, Copy)]
struct Sent {
    start: i64,
    end: i64,
    at: u64,
    lost: bool,
}

/// What a segment says besides its text: ACK, right edge, blocks, ECE.
type Said = (i64, i64, Vec<(u32, u32)>, bool);

/// One end: what it has sent, and what it can know.
#[derive(Default)]
struct End {
    // Of its SYN.
    isn: Option<u32>,
    mss: usize,
    scale: Option<u8>,
    sack: bool,
    timestamps: bool,
    syn_flags: u8,
    syns: u32,
    // Its stream, the SYN at 0.
    sent: Vec<Sent>,
    sent_end: i64,
    /// Where its FIN ends, whether it has sent or got a reset, and whether another connection has taken this one's place since.
    fin_end: Option<i64>,
    reset: bool,
    succeeded: bool,
    text: Vec<u8>,
    /// The right edge that the peer has advertised, as far as this end has heard.
    edge: i64,
    /// The largest window among them.
    window_max: i64,
    /// The same of the peer's ACKs, and when it moved.
    acknowledged: i64,
    advanced_at: u64,
    /// What the peer has acknowledged in any way, as far as this end has heard.
    heard: Spans,
    /// A probe of what was acknowledged so far was seen.
    probed_at: Option<i64>,
    /// A timeout's text ends here, and was acknowledged.
    timeout_until: i64,
    timeout_over_at: u64,
    window_probe_at: Option<u64>,
    // The peer's stream, as far as it has come.
    arrived: Spans,
    arrived_end: i64,
    /// The same with what looks overtaken: an end that has not taken note of the newer timestamp (RFC 7323 section 4.3) believes it.
    believed_end: i64,
    /// Segments with text that came, again or not.
    arrivals: i64,
    stamps: Vec<(u32, i64)>,
    /// Ends of marked segments that no ECE has answered.
    marked: Vec<i64>,
    /// Segments that came and that an ACK could answer.
    unanswered: u64,
    /// Empty ACKs in a row that said nothing new and had nothing to answer.
    surplus: u64,
    // What it has said.
    receive_edge: i64,
    said: Option<Said>,
    last_ack: i64,
    last_value: Option<u32>,
    last_echo: Option<u32>,
    tally: Tally,
}

/// One connection before the judge.
pub struct Judge {
    terms: Terms,
    ends: [End; 2],
    /// Some segments were nobody's, or an end threw away what came.
    deceived: bool,
    pub faults: Vec<Fault>,
}

impl Judge {
    pub fn new(terms: Terms) -> Judge {
        Judge { terms, ends: Default::default(), deceived: false, faults: Vec::new() }
    }

    /// The ends, or the link, are different from now on.
    pub fn set_terms(&mut self, terms: Terms) {
        self.terms = terms;
    }

    pub fn tally(&self, end: usize) -> Tally {
        self.ends[end].tally
    }

    fn fault(&mut self, rule: &'static str, at: u64, from: usize, what: String) {
        self.faults.push(Fault { rule, what: format!("{} us, end {from}: {what}", at / 1000) });
    }

    /// End `from` sends a segment at `at` nanoseconds.
    pub fn sends(&mut self, at: u64, from: usize, addresses: [IpAddr; 2], bytes: &[u8], ecn: u8) {
        if !checksum_is_right(addresses[0], addresses[1], bytes) {
            self.fault("checksum", at, from, "wrong checksum".into());
        }
        let Some(segment) = Segment::read(bytes) else {
            return self.fault("checksum", at, from, "not a segment".into());
        };
        let ip_len = bytes.len() + if addresses[0].is_ipv4() { 20 } else { 40 };
        let most = if self.ends[1 - from].isn.is_some() { self.ends[1 - from].mss } else { usize::MAX };
        if ip_len > self.terms.mtu[from] {
            self.fault("size", at, from, format!("{ip_len} octets where {} go", self.terms.mtu[from]));
        } else if !segment.text.is_empty() && segment.text.len() + segment.options_len > most {
            self.fault("size", at, from, format!("{} octets of text for an MSS of {most}", segment.text.len()));
        }
        let own = &mut self.ends[from];
        if segment.has(RST) {
            own.reset = true;
            return;
        }
        // An end that has closed or was reset, as far as it knows, takes an old SYN for a new connection's (RFC 9293 section 3.5, figure 9): what it
        // says in that is not of this one.
        let is_over = own.reset || own.fin_end.is_some_and(|end| own.acknowledged >= end);
        own.succeeded |= is_over && segment.has(SYN) && own.isn.is_some_and(|isn| isn != segment.seq);
        if own.succeeded {
            return;
        }
        if segment.has(SYN) {
            self.sends_syn(at, from, &segment, addresses[0].is_ipv4());
        }
        let Some(isn) = self.ends[from].isn else { return };
        let start = place(segment.seq, isn);
        let end = start + segment.space();
        let repeated = segment.space() > 0 && start < self.ends[from].sent_end;
        self.check_text(at, from, &segment, start);
        if let Some(peer) = self.ends[1 - from].isn.filter(|_| segment.has(ACK)) {
            self.check_timestamps(at, from, &segment, peer);
            self.check_blocks(at, from, &segment, peer);
            self.check_marks(at, from, &segment, peer, ecn, repeated);
            self.check_acknowledgement(at, from, &segment, peer);
        }
        if repeated {
            self.check_repetition(at, from, start, end);
        }
        let own = &mut self.ends[from];
        if segment.space() > 0 {
            own.tally.new += u64::from(!repeated);
            own.tally.new_bytes += (end - own.sent_end).max(0) as u64;
            own.tally.text_max = own.tally.text_max.max(segment.space() as u64);
            own.fin_end = own.fin_end.or(segment.has(FIN).then_some(end));
            own.sent.push(Sent { start, end, at, lost: false });
            own.sent_end = own.sent_end.max(end);
        }
    }

    /// The latest of what `from` has sent in these octets' place does not arrive.
    pub fn loses(&mut self, from: usize, bytes: &[u8]) {
        let end = &mut self.ends[from];
        end.tally.lost += 1;
        let Some(segment) = Segment::read(bytes).filter(|segment| segment.space() > 0 && !segment.has(RST)) else { return };
        end.tally.lost_bytes += segment.space() as u64;
        let Some(isn) = end.isn else { return };
        let start = place(segment.seq, isn);
        let same = |sent: &&mut Sent| !sent.lost && (sent.start, sent.end) == (start, start + segment.space());
        if let Some(sent) = end.sent.iter_mut().rev().find(same) {
            sent.lost = true;
        }
    }

    fn sends_syn(&mut self, at: u64, from: usize, syn: &Segment, ipv4: bool) {
        let peer = &self.ends[1 - from];
        if syn.has(ACK) {
            let options = [
                ("timestamps", peer.timestamps, syn.timestamps.is_some()),
                ("SACK-permitted", peer.sack, syn.sack_permitted),
                ("window scale", peer.scale.is_some(), syn.scale.is_some()),
                ("ECN", peer.syn_flags & (ECE | CWR) == ECE | CWR, syn.has(ECE)),
            ];
            for (option, asked, given) in options {
                if given && !asked {
                    self.fault("handshake", at, from, format!("{option}, which nobody asked for"));
                }
            }
        }
        if syn.scale.is_some_and(|scale| scale > 14) {
            self.fault("handshake", at, from, format!("a window scale of {:?}", syn.scale));
        }
        let own = &mut self.ends[from];
        own.isn.get_or_insert(syn.seq);
        // The MTU may have fallen since an earlier one, which may be what has arrived.
        own.mss = own.mss.max(usize::from(syn.mss.unwrap_or(if ipv4 { 536 } else { 1220 })));
        (own.scale, own.sack, own.timestamps) = (syn.scale, syn.sack_permitted, syn.timestamps.is_some());
        own.last_value = own.last_value.or(syn.timestamps.map(|(value, _)| value));
        own.syns += 1;
        if own.syns == 1 {
            own.syn_flags = syn.flags;
        }
    }

    fn check_text(&mut self, at: u64, from: usize, segment: &Segment, start: i64) {
        let own = &self.ends[from];
        let (len, next, edge, una) = (segment.len(), own.sent_end, own.edge, own.acknowledged);
        let bare = self.terms.bare;
        if bare && segment.space() > 0 && start > next {
            return self.fault("sequence", at, from, format!("{} numbers were left out before {start}", start - next));
        }
        if bare && segment.space() == 0 && start != next && start >= una {
            return self.fault("sequence", at, from, format!("an empty segment at {start}, SND.NXT is {next}"));
        }
        if len > 0 && start + len > next && !self.deceived {
            let peer = &self.ends[1 - from];
            let (mss, mtu) = (peer.mss as i64, self.terms.mtu[from] as i64);
            let initial_window = (10 * mss).min(14_600.max(2 * mss));
            // Without SACK each duplicate ACK stands for a full segment (RFC 5681 section 3.2, step 4), however short that was.
            let agreed = self.ends.iter().all(|end| end.sack);
            let arrived = if agreed { peer.arrived.len } else { peer.arrived.len.max(peer.arrivals * mss) };
            if start + len > initial_window + 2 * arrived + FLOOD_PACKETS * mtu {
                self.fault("flood", at, from, format!("{} octets were sent, and {arrived} of them arrived", start + len));
            }
        }
        if len > 0 && start + len > edge {
            self.fault("window", at, from, format!("{} octets right of the peer's window", start + len - edge));
        }
        if len > 0 && bare {
            let own = &mut self.ends[from];
            // The first octet stands at 1.
            let place = (start - 1).max(0) as usize;
            let known = own.text.len().min(place + segment.text.len());
            let same = own.text[place.min(known)..known] == segment.text[..known - place.min(known)];
            own.text.extend(&segment.text[known - place.min(known)..]);
            if !same {
                self.fault("text", at, from, format!("the text at {start} is not what it was"));
            }
        }
    }

    /// Numbers of the peer's stream that this end has to shift its windows by.
    fn scale(&self, from: usize, segment: &Segment) -> u8 {
        let agreed = self.ends[1 - from].scale.is_some() && !segment.has(SYN);
        self.ends[from].scale.filter(|_| agreed).unwrap_or(0)
    }

    fn check_acknowledgement(&mut self, at: u64, from: usize, segment: &Segment, peer: u32) {
        let ack = place(segment.ack, peer);
        let scale = self.scale(from, segment);
        let edge = ack + (i64::from(segment.window) << scale);
        let agreed = self.ends.iter().all(|end| end.sack);
        let own = &mut self.ends[from];
        let empty = segment.space() == 0;
        let (whole, last, old_edge) = (own.arrived.without_hole(), own.last_ack, own.receive_edge);
        own.tally.empty += u64::from(empty);
        own.last_ack = last.max(ack);
        own.receive_edge = old_edge.max(edge);
        let is_probe = empty && place(segment.seq, own.isn.unwrap_or(0)) < own.sent_end;
        // A probe is dropped unread (RFC 9293 section 3.10.7.4, first step): it says nothing, and answers nothing.
        if !is_probe {
            let said = (ack, edge, segment.blocks.clone(), segment.has(ECE));
            let nothing_new = own.said.as_ref() == Some(&said);
            let unanswered = own.unanswered;
            let nothing_said = empty && nothing_new && unanswered == 0;
            own.surplus = if nothing_said { own.surplus + 1 } else { 0 };
            // A SYN-ACK may come out of no memory and answers one SYN.
            let answers_all = ack >= own.believed_end && !nothing_new && !segment.has(SYN);
            own.unanswered = if answers_all { 0 } else { unanswered.saturating_sub(1) };
            own.said = Some(said);
        }
        // Without SACK each segment behind a hole has its own ACK, and which of a burst's is whose cannot be told.
        let too_many = own.surplus > u64::from(!agreed);
        let too_soon = own.window_probe_at.is_some_and(|last| at.saturating_sub(last) < PROBE_MIN);
        if is_probe {
            own.window_probe_at = Some(at);
        }
        let waits = own.arrived_end > ack;
        if ack > whole {
            self.fault("unarrived", at, from, format!("acknowledges {} numbers that have not arrived", ack - whole));
        }
        // What SYNs are answered with may come out of no memory at all (RFC 4987 section 3.6), and leave behind the ACK of what came after them.
        if ack < last && !segment.has(SYN) {
            self.fault("regress", at, from, format!("acknowledges {} less than before", last - ack));
        }
        // A SYN that is sent again cannot tell of a window beyond 65,535, which an ACK since may have. RFC 7323 section 2.4: by less than one
        // count of the field it may go back.
        if edge + (1 << scale) <= old_edge && !segment.has(SYN) {
            self.fault("shrunk", at, from, format!("the window's edge went back by {}", old_edge - edge));
        }
        // One that has waited for its neighbour's address leaves with the next.
        if is_probe && too_soon && self.terms.bare {
            self.fault("needless", at, from, "a probe right after another one".into());
        } else if self.terms.bare && !self.deceived && !is_probe && too_many {
            self.fault("needless", at, from, format!("says what the last segment said: ACK {ack}, edge {edge}"));
        }
        // DCTCP's ACKs of single marks may have been made before what came behind in the same burst.
        let may_have_dropped = !self.terms.ample[from] || self.deceived;
        let tells = !segment.blocks.is_empty() || !agreed || may_have_dropped || self.ecn() != Some(false);
        if empty && !tells && waits && ack == whole {
            self.fault("silent", at, from, format!("ACK {ack} tells nothing of what came behind"));
        }
    }

    fn check_timestamps(&mut self, at: u64, from: usize, segment: &Segment, peer: u32) {
        let agreed = self.ends.iter().all(|end| end.timestamps);
        if segment.timestamps.is_some() != agreed {
            self.fault("options", at, from, format!("timestamps: {:?}, agreed: {agreed}", segment.timestamps));
        }
        let Some((value, echo)) = segment.timestamps else { return };
        let ack = place(segment.ack, peer);
        let own = &mut self.ends[from];
        let (last, last_echo) = (own.last_value.replace(value), own.last_echo.replace(echo));
        let carried = own.stamps.iter().rev().any(|(stamp, place)| *stamp == echo && *place <= ack);
        // What SYNs are answered with may come out of no memory at all (RFC 4987 section 3.6): each is for itself.
        let (last, last_echo) = if segment.has(SYN) { (None, None) } else { (last, last_echo) };
        if last.is_some_and(|last| is_before(value, last)) {
            self.fault("clock", at, from, format!("timestamp {value} after {last:?}"));
        }
        if !carried {
            self.fault("echo", at, from, format!("echoes {echo}, which nothing up to ACK {ack} carried"));
        } else if last_echo.is_some_and(|last| is_before(echo, last)) {
            self.fault("echo", at, from, format!("echoes {echo} after {last_echo:?}"));
        }
    }

    fn check_blocks(&mut self, at: u64, from: usize, segment: &Segment, peer: u32) {
        if !segment.blocks.is_empty() && !self.ends.iter().all(|end| end.sack) {
            self.fault("options", at, from, "SACK blocks without agreement".into());
        }
        let ack = place(segment.ack, peer);
        for (index, (left, right)) in segment.blocks.iter().enumerate() {
            let (left, right) = (place(*left, peer), place(*right, peer));
            let has_place = left >= ack || index == 0;
            if left >= right || !has_place || !self.ends[from].arrived.covers(left, right) {
                self.fault("blocks", at, from, format!("block {index}, {left}..{right}, with ACK {ack}"));
            }
        }
    }

    /// Whether both ends agreed on ECN; unknown where a SYN was repeated, which may go without.
    fn ecn(&self) -> Option<bool> {
        let asks = |end: &End| end.syn_flags & (SYN | ACK | ECE | CWR) == SYN | ECE | CWR;
        let grants = |end: &End| end.syn_flags & (SYN | ACK | ECE | CWR) == SYN | ACK | ECE;
        let [a, b] = &self.ends;
        (a.syns == 1 && b.syns == 1).then(|| (asks(a) && grants(b)) || (asks(b) && grants(a)))
    }

    fn check_marks(&mut self, at: u64, from: usize, segment: &Segment, peer: u32, ecn: u8, repeated: bool) {
        let Some(agreed) = self.ecn().filter(|_| !segment.has(SYN)) else { return };
        let due = agreed && !segment.text.is_empty() && !repeated;
        if self.terms.bare && (ecn != 0) != due {
            self.fault("ecn", at, from, format!("codepoint {ecn}; agreed {agreed}, repeated {repeated}"));
        }
        let ack = place(segment.ack, peer);
        let marked = &mut self.ends[from].marked;
        if segment.has(ECE) {
            marked.clear();
        } else if agreed && marked.iter().any(|end| *end <= ack) {
            marked.retain(|end| *end > ack);
            if self.terms.ample[from] && !self.deceived {
                self.fault("marks", at, from, "acknowledges a marked segment without ECE".into());
            }
        }
    }

    /// Why was `start..end` sent again?
    fn check_repetition(&mut self, at: u64, from: usize, start: i64, end: i64) {
        let orderly = self.terms.orderly && !self.deceived;
        let segment_max = self.ends[1 - from].mss as i64;
        let own = &mut self.ends[from];
        let (mut left, mut lost, mut last_at) = (vec![(start, end)], false, 0);
        for sent in own.sent.iter().rev() {
            if left.is_empty() {
                break;
            }
            let rest: Vec<(i64, i64)> = left
                .iter()
                .flat_map(|(a, b)| [(*a, (*b).min(sent.start)), ((*a).max(sent.end), *b)])
                .filter(|(a, b)| a < b)
                .collect();
            if rest != left {
                lost |= sent.lost;
                last_at = last_at.max(sent.at);
            }
            left = rest;
        }
        own.tally.repaired += u64::from(lost);
        own.tally.repaired_bytes += if lost { (end - start) as u64 } else { 0 };
        own.tally.repeated += u64::from(!lost);
        own.tally.repeated_bytes += if lost { 0 } else { (end - start) as u64 };
        let quiet = at.saturating_sub(last_at.max(own.advanced_at));
        let in_timeout = own.acknowledged < own.timeout_until || (end <= own.timeout_until && at == own.timeout_over_at);
        // The last segment (RFC 8985 section 7.3), or as much of it as the device takes at once.
        // What comes in a segment that is not acceptable acknowledges nothing, and the next probe is the first.
        let heard = own.heard.without_hole();
        let is_probe = own.sent_end - start <= segment_max && own.probed_at != Some(heard);
        if quiet >= RTO_MIN {
            own.timeout_until = own.timeout_until.max(own.sent_end);
        }
        // Blocks do not tell of everything that arrived: what was not heard of looks lost once something later was.
        let later = |sent: &Sent| (sent.at, sent.end) > (last_at, end) && own.heard.covers(sent.start, sent.end);
        let looks_lost = !own.heard.covers(start, end) && own.sent.iter().rev().any(later);
        if lost || looks_lost || in_timeout || quiet >= RTO_MIN {
            return;
        }
        if is_probe {
            own.probed_at = Some(heard);
        } else if orderly && start > 0 {
            let since = (at - last_at) / 1000;
            self.fault("repeated", at, from, format!("{start}..{end} again {since} us after a copy that arrived"));
        }
    }

    /// A segment is handed to end `to`.
    pub fn delivers(&mut self, at: u64, to: usize, addresses: [IpAddr; 2], bytes: &[u8], ecn: u8) {
        let Some(segment) = Segment::read(bytes) else { return };
        let Some(peer) = self.ends[1 - to].isn else { return };
        // What was spoilt on the way counts as lost.
        if !checksum_is_right(addresses[0], addresses[1], bytes) {
            return;
        }
        if segment.has(RST) {
            // One that is not where the next text would be is challenged (RFC 5961 section 3.2).
            self.ends[to].unanswered += 1;
            self.ends[to].reset = true;
            return;
        }
        let scale = self.scale(1 - to, &segment);
        let agreed = self.ecn() == Some(true);
        let of_successor = self.ends[1 - to].succeeded && segment.has(SYN) && segment.seq != peer;
        let own = &mut self.ends[to];
        own.window_max = own.window_max.max(i64::from(segment.window) << scale);
        // RFC 5961 section 5.2: with an ACK from further back than a window all of it may be discarded, and its mark with it. "May", for an
        // end takes less for acknowledged than has come, if what came was not acceptable.
        // (After a forgery it is not known what an end takes for acknowledged.)
        let known = own.isn.filter(|_| !self.deceived);
        let very_old = known.is_some_and(|isn| segment.has(ACK) && place(segment.ack, isn) + own.window_max < own.acknowledged);
        if of_successor {
            own.unanswered += 1;
            return;
        }
        let start = place(segment.seq, peer);
        let end = start + segment.space();
        let overtaken = segment
            .timestamps
            .is_some_and(|(value, _)| own.stamps.iter().rev().take(64).any(|(last, _)| is_before(value, *last)));
        // Old numbers are answered (RFC 9293 section 3.10.7.4), old timestamps (RFC 7323 section 5.3), very old ACKs (RFC 5961 section 5.2).
        let old_ack = own.isn.is_some_and(|isn| segment.has(ACK) && place(segment.ack, isn) < own.acknowledged);
        // An end that had no room for what came finds what comes next beyond its window.
        let may_be_beyond = !self.terms.ample[to] && start != own.last_ack;
        let unexpected = start != own.arrived.without_hole() || may_be_beyond;
        own.unanswered += u64::from(segment.space() > 0 || unexpected || overtaken || old_ack);
        let known = segment.space() > 0 && own.arrived.covers(start, end);
        // What is not acceptable is dropped, and its ACK with it (RFC 9293 section 3.10.7.4).
        let acceptable = (start >= own.arrived.without_hole() || end > own.arrived.without_hole()) && !overtaken;
        if let Some((value, _)) = segment.timestamps
            && own.stamps.last() != Some(&(value, start))
        {
            own.stamps.push((value, start));
        }
        if segment.space() > 0 {
            own.arrived.insert(start, end);
        }
        own.arrivals += i64::from(segment.len() > 0);
        if segment.len() > 0 {
            own.believed_end = own.believed_end.max(start + segment.len());
        }
        if segment.len() > 0 && !overtaken && !very_old {
            own.arrived_end = own.arrived_end.max(start + segment.len());
        }
        if agreed {
            if segment.has(CWR) {
                own.marked.clear();
            }
            // What was overtaken is dropped (RFC 7323 section 5.3), and its mark with it.
            if ecn == CONGESTION_EXPERIENCED && segment.len() > 0 && !known && !overtaken && !very_old {
                own.marked.push(end);
            }
        }
        if let Some(isn) = own.isn.filter(|_| segment.has(ACK)) {
            let ack = place(segment.ack, isn);
            if acceptable {
                own.heard.insert(0, ack);
                segment.blocks.iter().for_each(|(left, right)| own.heard.insert(place(*left, isn), place(*right, isn)));
            }
            own.edge = own.edge.max(ack + (i64::from(segment.window) << scale));
            if ack > own.acknowledged {
                if (own.acknowledged..ack).contains(&(own.timeout_until - 1)) {
                    own.timeout_over_at = at;
                }
                own.acknowledged = ack;
                if acceptable {
                    own.advanced_at = at;
                }
            }
        }
    }

    /// An end was closed in both directions and keeps no text (RFC 9293 section 3.6.1): it knows less than has reached it.
    pub fn refuses_text(&mut self) {
        self.deceived = true;
    }

    /// A segment of a later connection between the same ports is handed to end `to`. Where this one is not gone yet it answers that
    /// (RFC 9293 section 3.10.7.4) and believes nothing of it.
    pub fn is_succeeded(&mut self, to: usize) {
        self.ends[to].unanswered += 1;
    }

    /// A segment is handed to end `to` that the peer has not sent, or not like that. All that it says may be believed, or nothing.
    /// `false`: it cannot be read, and there is no saying what an end makes of it.
    pub fn intrudes(&mut self, to: usize, bytes: &[u8]) -> bool {
        self.deceived = true;
        let Some(segment) = Segment::read(bytes) else { return false };
        let scale = self.scale(1 - to, &segment);
        let peer = self.ends[1 - to].isn;
        let own = &mut self.ends[to];
        let Some(peer) = peer.filter(|_| !segment.has(RST)) else { return true };
        let start = place(segment.seq, peer);
        if let Some((value, _)) = segment.timestamps {
            own.stamps.push((value, i64::MIN));
        }
        if segment.space() > 0 {
            own.arrived.insert(start, start + segment.space());
        }
        if let Some(isn) = own.isn.filter(|_| segment.has(ACK)) {
            let ack = place(segment.ack, isn);
            own.edge = own.edge.max(ack + (i64::from(segment.window) << scale));
            own.acknowledged = own.acknowledged.max(ack);
        }
        true
    }
}

/// Where a sequence number lies behind the SYN; a little in front of it is negative. Streams here are shorter than the space.
fn place(seq: u32, isn: u32) -> i64 {
    const IN_FRONT: u32 = 1 << 16;
    let distance = seq.wrapping_sub(isn);
    if distance > u32::MAX - IN_FRONT { i64::from(distance) - (1 << 32) } else { i64::from(distance) }
}

/// Timestamps wrap.
fn is_before(a: u32, b: u32) -> bool {
    (a.wrapping_sub(b) as i32) < 0
}
