//! The judge of a capture: what TCP's rules say about each packet that the server sent, given what the peer had sent.
//!
//! Read first: RFC 9293 section 3.8, RFC 7323 sections 2 to 4, RFC 2018 section 4, RFC 3168 section 6.1, RFC 8985 section 7.
//! The capture is taken at the server's own port, before anything on the way could drop what it sends and behind everything that
//! drops what is sent to it. So a packet of the peer's that stands before one of the server's may be unknown to the server still,
//! but one that stands behind it certainly was. A second capture at the peer tells what did not arrive. The rules, by name:
//!
//! | rule | broken by |
//! |---|---|
//! | checksum | a packet of the server's with a wrong IP or TCP checksum |
//! | size | a packet beyond the path's MTU, or text beyond the peer's MSS less the options |
//! | handshake | a SYN-ACK with an option that the SYN did not have, or without one that both know |
//! | window | text right of the last byte that the peer has ever advertised |
//! | unsent | an ACK of what the peer had not sent |
//! | shrunk | a right edge of the server's window left of an earlier one |
//! | clock | a timestamp lower than one before it |
//! | echo | a timestamp echoed that no segment at or before the ACK carried, or older than one echoed before |
//! | options | timestamps or SACK blocks without agreement, or no timestamps in spite of it |
//! | blocks | a SACK block with a byte that had not arrived, or below the ACK and not the first (RFC 2883) |
//! | ecn | ECT without agreement, on a retransmission or an empty segment; new text without it in spite of one |
//! | marks | a congestion mark whose ACK carries no ECE before the peer's CWR |
//! | answer | new text without CWR that was sent in knowledge of an ECE that asks for one |
//! | repeated | text sent again although the last copy of all of it arrived, unless a timer asked for it: one tail loss probe for each advance, or a retransmission timeout, and what follows until the data of then are acknowledged |
//! | expert | tshark sees an ACK of a lost segment, a lost segment, or more retransmissions and disorder than there are repetitions |
//!
//! Whether a fault is the server's, and not the captures', goes by what its rule looks at (`Bench::is_certain`). A packet to the server is
//! captured before the driver gets it, and one of the server's while it is written, so in the one capture at its port nothing that it
//! knew of stands behind what it said, and what it said stands in order:
//!
//! - checksum: a packet of the server's itself. Certain.
//! - size, handshake, options, ecn: the same, against what was agreed on. Certain where there is one SYN to agree with; one that was lost is
//!   repeated with less in it, and either may be answered.
//! - clock, echo (older than one before): the order of the server's own packets. Certain. So is shrunk where the scale is: see above.
//! - unsent, blocks, echo (that nothing carried), expert: what had come to the server's port by then, of which the server may know less,
//!   never more. Certain. So are window and answer where scale and ECN are.
//! - marks: the same, and all of what came must have got in: a marked segment that the port's queue had no room for is acknowledged for its
//!   repetition's sake, which has no mark.
//! - repeated: what was dropped is known from two captures, and what a timer asked for from their times. On a busy machine packets pass each
//!   other between the two, and the server is elsewhere for longer than `UNREAD_US`. In doubt.

use std::collections::{BTreeMap, HashMap};
use std::fmt;

use super::packet::{ACK, CE, CWR, ECE, Identity, Packet, RST, SYN};

/// Linux' and the server's shortest retransmission timeout, less what a clock of milliseconds and one of microseconds differ by.
const RTO_MIN_US: u64 = 198_000;

/// How long the server may be elsewhere between an ACK's arrival and its reading.
const UNREAD_US: u64 = 20_000;

/// What the way and the peer are like.
#[derive(Clone, Copy, Debug)]
pub struct Terms {
    /// Of the path, both ways.
    pub mtu: u32,
    /// Something on the way drops packets.
    pub drops: bool,
    /// The server grants ECN to who asks.
    pub ecn: bool,
    /// What was captured on its way to the server got in.
    pub took_all: bool,
}

/// How often what happened, and what must not have.
#[derive(Debug, Default)]
pub struct Verdict {
    pub faults: Vec<Fault>,
    pub connections: u32,
    /// Packets with text.
    pub data: u32,
    pub client_data: u32,
    /// Of the server's, dropped on the way.
    pub dropped: u32,
    /// Of the peer's, dropped on the way.
    pub client_dropped: u32,
    /// Packets with repeated text, because the last copy was dropped.
    pub repaired: u32,
    /// As tail loss probes.
    pub probes: u32,
    /// By a retransmission timeout, though the copy had arrived, and what followed of it.
    pub timeouts: u32,
    /// Repeated text of the peer's, and text that came late: the kernel's ways over two CPUs overtake each other.
    pub client_repeated: u32,
    pub client_late: u32,
    /// D-SACKs of the peer's.
    pub dsacks: u32,
    /// Marked packets of the peer's; of the server's.
    pub marks_in: u32,
    pub echoes: u32,
    pub marks_out: u32,
    pub answers: u32,
}

/// See the table above.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rule {
    Checksum,
    Size,
    Handshake,
    Window,
    Unsent,
    Shrunk,
    Clock,
    Echo,
    Options,
    Blocks,
    Ecn,
    Marks,
    Answer,
    Repeated,
    Expert,
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", format!("{self:?}").to_lowercase())
    }
}

/// A rule that was broken, and by what.
#[derive(Debug)]
pub struct Fault {
    pub rule: Rule,
    pub what: String,
    /// The server's for sure; otherwise the captures may be to blame.
    pub certain: bool,
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} connections; {} packets of text from the server, {} dropped, {} repaired, {} probes, {} by timeout; {} to it, {} \
             dropped, {} repeated, {} late",
            self.connections,
            self.data,
            self.dropped,
            self.repaired,
            self.probes,
            self.timeouts,
            self.client_data,
            self.client_dropped,
            self.client_repeated,
            self.client_late
        )?;
        if self.marks_in + self.marks_out + self.echoes + self.answers > 0 {
            let Verdict { marks_in, echoes, marks_out, answers, .. } = self;
            write!(f, "; marks: {marks_in} in, {echoes} ACKs with ECE, {marks_out} out, {answers} CWRs")?;
        }
        Ok(())
    }
}

/// Judges `here`, captured at the server. `there`: the same captured at the peer, if it is known what was dropped between.
pub fn judge(here: &[Packet], there: Option<&[Packet]>, terms: Terms) -> Verdict {
    let mut verdict = Verdict::default();
    let there = there.map(by_connection);
    for (ports, packets) in by_connection(here) {
        verdict.connections += 1;
        let dropped = match &there {
            Some(there) => {
                let others = there.get(&ports).map_or(&[][..], Vec::as_slice);
                verdict.marks_out += others.iter().filter(|packet| packet.from_server && packet.ecn == CE).count() as u32;
                verdict.client_dropped += missing(others, &packets, false).iter().filter(|gone| **gone).count() as u32;
                missing(&packets, others, true)
            }
            None => vec![false; packets.len()],
        };
        let gone = dropped.iter().filter(|gone| **gone).count() as u32;
        verdict.dropped += gone;
        let mut bench = Bench::new(&packets, terms, &mut verdict);
        if gone > 0 && !terms.drops {
            bench.fault(Rule::Repeated, &packets[0], format!("{gone} packets of the server's vanished where nothing drops any"));
        }
        for (index, packet) in packets.iter().enumerate() {
            match packet.from_server {
                true => bench.server_sends(packet, dropped[index]),
                false => bench.client_sends(packet),
            }
        }
    }
    verdict
}

fn by_connection(packets: &[Packet]) -> BTreeMap<(u16, u16), Vec<&Packet>> {
    let mut connections: BTreeMap<_, Vec<&Packet>> = BTreeMap::new();
    for packet in packets {
        connections.entry((packet.server_port, packet.client_port)).or_default().push(packet);
    }
    connections
}

/// Which of `sent` did not come to the other place, where `arrived` was captured by the same clock. Of equal packets, as a quick
/// repetition is one, the last that can have come by then is the one that came.
fn missing(sent: &[&Packet], arrived: &[&Packet], from_server: bool) -> Vec<bool> {
    let mut others: HashMap<Identity, Vec<u64>> = HashMap::new();
    for packet in arrived.iter().filter(|packet| packet.from_server == from_server) {
        others.entry(packet.identity()).or_default().push(packet.at);
    }
    let mut came = |packet: &Packet| {
        let times = others.get_mut(&packet.identity()).filter(|times| times.last().is_some_and(|at| *at >= packet.at));
        times.and_then(Vec::pop).is_some()
    };
    let mut gone: Vec<bool> = sent.iter().rev().map(|packet| packet.from_server == from_server && !came(packet)).collect();
    gone.reverse();
    gone
}

/// Ranges of a stream that have arrived.
#[derive(Default)]
struct Spans(BTreeMap<i64, i64>);

impl Spans {
    fn insert(&mut self, mut start: i64, mut end: i64) {
        let touched: Vec<i64> = self.0.range(..=end).rev().take_while(|(_, e)| **e >= start).map(|(s, _)| *s).collect();
        for other in touched {
            let stop = self.0.remove(&other).expect("just seen");
            (start, end) = (start.min(other), end.max(stop));
        }
        self.0.insert(start, end);
    }

    fn covers(&self, start: i64, end: i64) -> bool {
        self.0.range(..=start).next_back().is_some_and(|(_, stop)| *stop >= end)
    }
}

/// One transmission of text.
struct Sent {
    start: i64,
    end: i64,
    at: u64,
    dropped: bool,
}

/// One connection before the judge.
struct Bench<'a> {
    verdict: &'a mut Verdict,
    terms: Terms,
    /// The newest of the peer's, and whether an earlier one asked for something else.
    syn: Option<Packet>,
    syns_differ: bool,
    /// Known once the SYN-ACK was seen.
    agreed: Option<Agreed>,
    client_isn: u32,
    server_isn: u32,
    /// What arrived of the peer's stream, the SYN at 0.
    arrived: Spans,
    client_end: i64,
    /// The right edge that the peer advertised last or ever, whichever is further, in the server's stream.
    send_edge: i64,
    unacknowledged: i64,
    /// When that moved last.
    advanced_at: u64,
    /// The server's advertised edge in the peer's stream.
    receive_edge: i64,
    last_value: Option<u32>,
    last_echo: Option<u32>,
    /// Timestamps that arrived, each with the place of its segment.
    stamps: Vec<(u32, i64)>,
    sent: Vec<Sent>,
    sent_end: i64,
    probed_at: Option<i64>,
    /// A timeout's data end here.
    timeout_until: i64,
    /// When they were acknowledged.
    timeout_over_at: u64,
    /// Ends of marked segments that no ECE has answered.
    marked: Vec<i64>,
    /// The timestamp of the ECE that asks for a CWR.
    answer_due: Option<u32>,
    /// What had been sent with the last CWR.
    answered_until: i64,
    /// Packets of repeated text so far.
    repetitions: u32,
    /// And what tshark took for such.
    suspected: u32,
}

#[derive(Clone, Copy)]
struct Agreed {
    timestamps: bool,
    sack: bool,
    client_scale: u8,
    server_scale: u8,
    ecn: bool,
    client_mss: u32,
}

impl<'a> Bench<'a> {
    fn new(packets: &[&Packet], terms: Terms, verdict: &'a mut Verdict) -> Bench<'a> {
        let isn = |from_server: bool| packets.iter().find(|p| p.from_server == from_server && p.has(SYN)).map_or(0, |p| p.seq);
        Bench {
            verdict,
            terms,
            syn: None,
            syns_differ: false,
            agreed: None,
            client_isn: isn(false),
            server_isn: isn(true),
            arrived: Spans::default(),
            client_end: 0,
            send_edge: 0,
            unacknowledged: 0,
            advanced_at: 0,
            receive_edge: 0,
            last_value: None,
            last_echo: None,
            stamps: Vec::new(),
            sent: Vec::new(),
            sent_end: 0,
            probed_at: None,
            timeout_until: 0,
            timeout_over_at: 0,
            marked: Vec::new(),
            answer_due: None,
            answered_until: 0,
            repetitions: 0,
            suspected: 0,
        }
    }

    fn fault(&mut self, rule: Rule, packet: &Packet, what: String) {
        let side = if packet.from_server { "server" } else { "client" };
        let Packet { frame, client_port, at, seq, len, .. } = *packet;
        let what = format!("frame {frame}, port {client_port} at {at} us, {side} seq {seq} len {len}: {what}");
        self.verdict.faults.push(Fault { rule, what, certain: self.is_certain(rule) });
    }

    /// The reasons are at the top.
    fn is_certain(&self, rule: Rule) -> bool {
        match rule {
            Rule::Checksum | Rule::Clock | Rule::Echo | Rule::Unsent | Rule::Blocks | Rule::Expert => true,
            Rule::Size | Rule::Handshake | Rule::Options | Rule::Ecn => !self.syns_differ,
            Rule::Window | Rule::Shrunk | Rule::Answer => !self.syns_differ,
            Rule::Marks => !self.syns_differ && self.terms.took_all,
            Rule::Repeated => false,
        }
    }

    fn client_sends(&mut self, packet: &Packet) {
        if packet.has(SYN) {
            let asks = |syn: &Packet| (syn.flags, syn.timestamps.is_some(), syn.sack_permitted, syn.scale, syn.mss);
            self.syns_differ |= self.syn.as_ref().is_some_and(|syn| asks(syn) != asks(packet));
            self.syn = Some(packet.clone());
        }
        let start = place(packet.seq, self.client_isn);
        let end = start + i64::from(packet.space());
        let repeated = packet.len > 0 && self.arrived.covers(start, end);
        self.verdict.client_data += u32::from(packet.len > 0);
        self.verdict.client_repeated += u32::from(repeated);
        self.verdict.client_late += u32::from(packet.len > 0 && start < self.client_end && !repeated);
        if let Some((value, _)) = packet.timestamps {
            self.stamps.push((value, start));
        }
        if packet.space() > 0 {
            self.arrived.insert(start, end);
            self.client_end = self.client_end.max(end);
        }
        if packet.has(ACK) && !packet.has(RST) {
            self.client_acknowledges(packet);
        }
        if self.agreed.is_some_and(|agreed| agreed.ecn) {
            if packet.has(CWR) {
                self.marked.clear();
            }
            if packet.ecn == CE && packet.len > 0 && !repeated {
                self.verdict.marks_in += 1;
                self.marked.push(end);
            }
        }
    }

    fn client_acknowledges(&mut self, packet: &Packet) {
        let ack = place(packet.ack, self.server_isn);
        let scale = if packet.has(SYN) { 0 } else { self.agreed.map_or(0, |agreed| agreed.client_scale) };
        self.send_edge = self.send_edge.max(ack + (i64::from(packet.window) << scale));
        if ack > self.unacknowledged {
            if (self.unacknowledged..ack).contains(&(self.timeout_until - 1)) {
                self.timeout_over_at = packet.at;
            }
            (self.unacknowledged, self.advanced_at) = (ack, packet.at);
        }
        let duplicate = packet.sack.first().is_some_and(|(_, right)| place(*right, self.server_isn) <= ack);
        self.verdict.dsacks += u32::from(duplicate);
        let asks = packet.has(ECE) && !packet.has(SYN) && ack > self.answered_until;
        if asks && self.answer_due.is_none() && self.agreed.is_some_and(|agreed| agreed.ecn) {
            self.answer_due = packet.timestamps.map(|(value, _)| value);
        }
    }

    fn server_sends(&mut self, packet: &Packet, dropped: bool) {
        if packet.bad_checksum {
            self.fault(Rule::Checksum, packet, "wrong checksum".into());
        }
        self.check_size(packet);
        if packet.has(RST) {
            return;
        }
        if packet.has(SYN) {
            self.check_handshake(packet);
        }
        let Some(agreed) = self.agreed else { return };
        self.check_acknowledgement(packet, agreed);
        self.check_timestamps(packet, agreed);
        self.check_blocks(packet, agreed);
        let start = place(packet.seq, self.server_isn);
        let end = start + i64::from(packet.space());
        let new = end > self.sent_end;
        if packet.len > 0 {
            self.verdict.data += 1;
            if start + i64::from(packet.len) > self.send_edge {
                let beyond = start + i64::from(packet.len) - self.send_edge;
                self.fault(Rule::Window, packet, format!("{beyond} bytes right of the peer's window"));
            }
        }
        let repeated = packet.space() > 0 && start < self.sent_end;
        self.check_marks(packet, agreed, repeated);
        if repeated {
            self.repetitions += 1;
            self.check_repetition(packet, start, end);
        }
        if packet.space() > 0 {
            self.sent.push(Sent { start, end, at: packet.at, dropped });
        }
        if new {
            self.sent_end = end;
        }
        self.check_expert(packet);
    }

    fn check_size(&mut self, packet: &Packet) {
        if packet.ip_len > self.terms.mtu {
            self.fault(Rule::Size, packet, format!("{} bytes where {} go", packet.ip_len, self.terms.mtu));
        }
        if let Some(agreed) = self.agreed {
            // RFC 9293 section 3.7.1: the MSS counts the options.
            let most = agreed.client_mss - if agreed.timestamps { 12 } else { 0 };
            if packet.len > most {
                self.fault(Rule::Size, packet, format!("{} bytes of text, the peer's MSS leaves {most}", packet.len));
            }
        }
    }

    fn check_handshake(&mut self, packet: &Packet) {
        let Some(syn) = self.syn.clone() else {
            return self.fault(Rule::Handshake, packet, "no SYN was seen".into());
        };
        let asked = syn.has(ECE | CWR);
        let granted = packet.has(ECE) && !packet.has(CWR);
        let options = [
            ("timestamps", syn.timestamps.is_some(), packet.timestamps.is_some()),
            ("SACK-permitted", syn.sack_permitted, packet.sack_permitted),
            ("window scale", syn.scale.is_some(), packet.scale.is_some()),
            ("ECN", asked && self.terms.ecn, granted),
            ("MSS", true, packet.mss.is_some()),
        ];
        for (option, theirs, ours) in options {
            if theirs != ours {
                self.fault(Rule::Handshake, packet, format!("{option}: the peer {theirs}, the server {ours}"));
            }
        }
        self.agreed = Some(Agreed {
            timestamps: syn.timestamps.is_some() && packet.timestamps.is_some(),
            sack: syn.sack_permitted && packet.sack_permitted,
            client_scale: syn.scale.filter(|_| packet.scale.is_some()).unwrap_or(0),
            server_scale: packet.scale.filter(|_| syn.scale.is_some()).unwrap_or(0),
            ecn: asked && granted,
            client_mss: u32::from(syn.mss.unwrap_or(536)),
        });
    }

    fn check_acknowledgement(&mut self, packet: &Packet, agreed: Agreed) {
        if !packet.has(ACK) {
            return;
        }
        let ack = place(packet.ack, self.client_isn);
        if ack > self.client_end {
            self.fault(Rule::Unsent, packet, format!("acknowledges {} bytes that were not sent", ack - self.client_end));
        }
        let scale = if packet.has(SYN) { 0 } else { agreed.server_scale };
        let edge = ack + (i64::from(packet.window) << scale);
        if edge < self.receive_edge {
            self.fault(Rule::Shrunk, packet, format!("the window's edge went back by {}", self.receive_edge - edge));
        }
        self.receive_edge = self.receive_edge.max(edge);
    }

    fn check_timestamps(&mut self, packet: &Packet, agreed: Agreed) {
        if packet.timestamps.is_some() != agreed.timestamps {
            self.fault(Rule::Options, packet, format!("timestamps: {:?}, agreed: {}", packet.timestamps, agreed.timestamps));
        }
        let Some((value, echo)) = packet.timestamps else { return };
        if self.last_value.is_some_and(|last| is_before(value, last)) {
            self.fault(Rule::Clock, packet, format!("timestamp {value} after {:?}", self.last_value));
        }
        self.last_value = Some(value);
        let ack = place(packet.ack, self.client_isn);
        // Nothing in front of the last echo counts any more.
        let fits = |(stamp, at): &(u32, i64)| *stamp == echo && *at <= ack;
        if !self.stamps.iter().rev().take(4096).any(fits) && !self.stamps.iter().any(fits) {
            self.fault(Rule::Echo, packet, format!("echoes {echo}, which nothing up to ACK {ack} carried"));
        }
        if self.last_echo.is_some_and(|last| is_before(echo, last)) {
            self.fault(Rule::Echo, packet, format!("echoes {echo} after {:?}", self.last_echo));
        }
        self.last_echo = Some(echo);
    }

    fn check_blocks(&mut self, packet: &Packet, agreed: Agreed) {
        if !packet.sack.is_empty() && !agreed.sack {
            self.fault(Rule::Options, packet, "SACK blocks without agreement".into());
        }
        let ack = place(packet.ack, self.client_isn);
        for (index, (left, right)) in packet.sack.iter().enumerate() {
            let (left, right) = (place(*left, self.client_isn), place(*right, self.client_isn));
            let has_place = left >= ack || index == 0;
            if left >= right || !has_place || !self.arrived.covers(left, right) {
                self.fault(Rule::Blocks, packet, format!("block {index}, {left}..{right}, with ACK {ack}"));
            }
        }
    }

    fn check_marks(&mut self, packet: &Packet, agreed: Agreed, repeated: bool) {
        let capable = packet.ecn != 0;
        let due = agreed.ecn && packet.len > 0 && !repeated;
        if capable != due {
            let what = if capable { "is" } else { "is not" };
            self.fault(Rule::Ecn, packet, format!("{what} ECN-capable; agreed {}, repeated {repeated}", agreed.ecn));
        }
        if !agreed.ecn || packet.has(SYN) {
            return;
        }
        self.verdict.echoes += u32::from(packet.has(ECE));
        let ack = place(packet.ack, self.client_isn);
        if packet.has(ECE) {
            // What came ahead of its turn is reported by the block that it is in; under DCTCP the ACK of the hole that goes out for the
            // segment that fills it says nothing of marks any more.
            let isn = self.client_isn;
            let blocks = packet.sack.iter().map(|(left, right)| (place(*left, isn), place(*right, isn)));
            let reported: Vec<_> = std::iter::once((i64::MIN, ack)).chain(blocks).collect();
            self.marked.retain(|end| !reported.iter().any(|(left, right)| left < end && end <= right));
        } else if self.marked.iter().any(|end| *end <= ack) {
            self.marked.retain(|end| *end > ack);
            self.fault(Rule::Marks, packet, "acknowledges a marked segment without ECE".into());
        }
        if packet.has(CWR) {
            self.verdict.answers += 1;
            self.answer_due = None;
            self.answered_until = self.sent_end.max(place(packet.seq, self.server_isn) + i64::from(packet.len));
        } else if let (Some(due), Some((_, echo))) = (self.answer_due, packet.timestamps)
            && packet.len > 0
            && !repeated
            && is_before(due, echo)
        {
            self.answer_due = None;
            self.fault(Rule::Answer, packet, format!("new text without CWR, in knowledge of the ECE with timestamp {due}"));
        }
    }

    /// Why was `start..end` sent again?
    fn check_repetition(&mut self, packet: &Packet, start: i64, end: i64) {
        let (mut left, mut dropped, mut last_at) = (vec![(start, end)], false, 0);
        for sent in self.sent.iter().rev() {
            if left.is_empty() {
                break;
            }
            let rest: Vec<(i64, i64)> = left
                .iter()
                .flat_map(|(a, b)| [(*a, (*b).min(sent.start)), ((*a).max(sent.end), *b)])
                .filter(|(a, b)| a < b)
                .collect();
            if rest != left {
                dropped |= sent.dropped;
                last_at = last_at.max(sent.at);
            }
            left = rest;
        }
        let quiet_since = last_at.max(self.advanced_at);
        // What is captured may not be read yet.
        let after_timeout = end <= self.timeout_until && packet.at.saturating_sub(self.timeout_over_at) < UNREAD_US;
        if dropped {
            self.verdict.repaired += 1;
        } else if self.unacknowledged < self.timeout_until || after_timeout {
            self.verdict.timeouts += 1;
        } else if end == self.sent_end && self.probed_at != Some(self.unacknowledged) {
            self.verdict.probes += 1;
            self.probed_at = Some(self.unacknowledged);
        } else if packet.at.saturating_sub(quiet_since) >= RTO_MIN_US {
            self.verdict.timeouts += 1;
        } else {
            let since = packet.at.saturating_sub(last_at);
            self.fault(Rule::Repeated, packet, format!("sent again {since} us after a copy that arrived"));
        }
        if packet.at.saturating_sub(quiet_since) >= RTO_MIN_US {
            self.timeout_until = self.timeout_until.max(self.sent_end);
        }
    }

    fn check_expert(&mut self, packet: &Packet) {
        let expert = packet.expert;
        if expert.ack_of_lost {
            self.fault(Rule::Expert, packet, "tshark: ACK of a segment that was not captured".into());
        }
        if expert.lost_segment {
            self.fault(Rule::Expert, packet, "tshark: a segment before it was not captured".into());
        }
        self.suspected += u32::from(expert.retransmission || expert.out_of_order);
        if self.suspected > self.repetitions {
            self.suspected = self.repetitions;
            self.fault(Rule::Expert, packet, "tshark: a retransmission or disorder where nothing was repeated".into());
        }
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
