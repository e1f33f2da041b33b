//! The judge before the court: a conversation made by hand that is right in every way, and then with one fault for each rule. A judge
//! that finds nothing in the first and each fault by its name in the others can fail.

use anyhow::{Result, bail, ensure};

use super::judge::{Fault, Rule, Terms, judge};
use super::packet::{ACK, CE, CWR, ECE, Expert, FIN, Packet, SYN};
use super::{Inconclusive, at_most_twice, check_faults, happens};

const CLIENT_ISN: u32 = 0xffff_ff00;
const SERVER_ISN: u32 = 7_000;
const MSS: u32 = 1448;
const TERMS: Terms = Terms { mtu: 1500, drops: true, ecn: true, took_all: true };

/// Microseconds between two packets.
const STEP: u64 = 2_000;

/// A conversation as it grows: each packet takes its numbers from what was said so far.
struct Talk {
    packets: Vec<Packet>,
    client_next: u32,
    server_next: u32,
    /// The newest timestamp of the peer's that the server echoes.
    recent: u32,
}

impl Talk {
    /// With everything agreed on.
    fn open() -> Talk {
        let mut talk = Talk { packets: Vec::new(), client_next: CLIENT_ISN, server_next: SERVER_ISN, recent: 0 };
        let options = Packet { scale: Some(7), mss: Some(1460), sack_permitted: true, window: 64_000, ..Packet::default() };
        talk.client(0, Packet { flags: SYN | ECE | CWR, ..options.clone() });
        talk.server(0, Packet { flags: SYN | ACK | ECE, scale: Some(6), ..options });
        talk.client(0, Packet::default());
        talk
    }

    fn now(&self) -> u64 {
        self.packets.last().map_or(1_000_000, |last| last.at + STEP)
    }

    /// `packet` has what is unusual about it.
    fn client(&mut self, len: u32, packet: Packet) -> usize {
        let flags = if packet.flags & SYN != 0 { packet.flags } else { packet.flags | ACK };
        let at = self.now();
        let value = (at / 1000) as u32;
        self.recent = value;
        let window = if packet.window > 0 { packet.window } else { 500 };
        let ack = if flags & ACK != 0 { self.server_next } else { 0 };
        let ecn = if packet.ecn > 0 || len == 0 { packet.ecn } else { 2 };
        let seq = self.client_next;
        self.packets.push(Packet { flags, at, seq, ack, len, window, ecn, timestamps: Some((value, 0)), ..packet });
        self.complete();
        self.client_next = self.client_next.wrapping_add(self.packets.last().map_or(0, Packet::space));
        self.packets.len() - 1
    }

    fn server(&mut self, len: u32, packet: Packet) -> usize {
        let at = self.now();
        let window = if packet.window > 0 { packet.window } else { 1000 };
        let timestamps = Some(((at / 1000) as u32 + 77_000, self.recent));
        let (seq, ack) = (self.server_next, self.client_next);
        let flags = packet.flags | ACK;
        let ecn = if len > 0 { 2 } else { 0 };
        self.packets.push(Packet { from_server: true, at, flags, seq, ack, len, window, ecn, timestamps, ..packet });
        self.complete();
        self.server_next = self.server_next.wrapping_add(self.packets.last().map_or(0, Packet::space));
        self.packets.len() - 1
    }

    /// Repeats what the server sent as packet `of`, now.
    fn again(&mut self, of: usize) -> usize {
        let len = self.packets[of].len;
        let next = std::mem::replace(&mut self.server_next, self.packets[of].seq);
        let at = self.server(len, Packet::default());
        self.packets[at].ecn = 0;
        self.server_next = next;
        at
    }

    fn complete(&mut self) {
        let packet = self.packets.last_mut().expect("just pushed");
        (packet.server_port, packet.client_port) = (2049, 40_000);
        packet.ip_len = 20 + 32 + packet.len;
    }

    /// A later packet by so many microseconds, and all behind it.
    fn delay(&mut self, from: usize, by: u64) {
        for packet in &mut self.packets[from..] {
            packet.at += by;
            if let Some((value, _)) = &mut packet.timestamps {
                *value = value.wrapping_add((by / 1000) as u32);
            }
        }
    }
}

/// Calls and replies, a mark each way, a hole with SACK, a repair of what was lost, a probe, a timeout, the close. Gives the
/// conversation at the server, at the peer, and where things stand in it.
struct Right {
    here: Vec<Packet>,
    there: Vec<Packet>,
    /// The last packets of the server's first flight, and the call before it.
    data: usize,
    syn_ack: usize,
    /// An empty ACK of the server's.
    ack: usize,
    /// What reports a hole.
    sack: usize,
    /// The ACK of the peer's marked segment.
    echo: usize,
    /// The text that answers the peer's ECE.
    answer: usize,
    /// The repetition of what was lost.
    repair: usize,
    /// The repetitions that timers asked for.
    probe: usize,
    timeout: usize,
}

fn right() -> Right {
    let mut talk = Talk::open();
    talk.client(200, Packet::default());
    let ack = talk.server(0, Packet::default());
    let data = talk.server(MSS, Packet::default());
    talk.server(700, Packet::default());
    talk.client(0, Packet::default());
    // The peer's text with a hole: the first of two segments comes second.
    let first = talk.client(MSS, Packet::default());
    let mut late = talk.packets.remove(first);
    let hole = late.seq;
    talk.client(MSS, Packet::default());
    let left = hole.wrapping_add(MSS);
    let sack = talk.server(0, Packet { sack: vec![(left, left.wrapping_add(MSS))], ..Packet::default() });
    talk.packets[sack].ack = hole;
    talk.packets[sack].timestamps =
        talk.packets[sack].timestamps.map(|(value, _)| (value, talk.packets[first - 1].timestamps.expect("agreed").0));
    late.at = talk.now();
    late.timestamps = Some(((late.at / 1000) as u32, 0));
    talk.recent = (late.at / 1000) as u32;
    talk.packets.push(late);
    talk.server(0, Packet::default());
    // A marked segment of the peer's, and its CWR.
    talk.client(MSS, Packet { ecn: CE, ..Packet::default() });
    let echo = talk.server(0, Packet { flags: ECE, ..Packet::default() });
    talk.client(MSS, Packet { flags: CWR, ..Packet::default() });
    talk.server(0, Packet::default());
    // The peer reports a mark.
    talk.server(MSS, Packet::default());
    talk.client(0, Packet { flags: ECE, ..Packet::default() });
    let answer = talk.server(MSS, Packet { flags: CWR, ..Packet::default() });
    talk.client(0, Packet::default());
    // One of three is lost, and comes again.
    let lost = talk.server(MSS, Packet::default());
    let known = talk.packets[lost].seq;
    for _ in 0..2 {
        talk.server(MSS, Packet::default());
        let right = talk.server_next;
        let report = talk.client(0, Packet { sack: vec![(known.wrapping_add(MSS), right)], ..Packet::default() });
        talk.packets[report].ack = known;
    }
    let repair = talk.again(lost);
    talk.client(0, Packet::default());
    // The last segment again as a probe, and by timeout.
    let last = talk.server(MSS, Packet::default());
    let probe = talk.again(last);
    talk.delay(probe, 20_000);
    let timeout = talk.again(last);
    talk.delay(timeout, 300_000);
    talk.client(0, Packet::default());
    talk.server(0, Packet { flags: FIN, ..Packet::default() });
    talk.client(0, Packet { flags: FIN, ..Packet::default() });
    talk.server(0, Packet::default());
    let here = talk.packets;
    let mut there = here.clone();
    there.remove(lost);
    Right { here, there, data, syn_ack: 1, ack, sack, echo, answer, repair, probe, timeout }
}

pub fn no_fault() -> Result<()> {
    let right = right();
    let verdict = judge(&right.here, Some(&right.there), TERMS);
    ensure!(verdict.faults.is_empty(), "faults in what is right: {:#?}", verdict.faults);
    let counted = (verdict.dropped, verdict.repaired, verdict.probes, verdict.timeouts, verdict.marks_in, verdict.answers);
    ensure!(counted == (1, 1, 1, 1, 1, 1), "counted {counted:?}: {verdict}");
    Ok(())
}

/// Rule, what is done, and how.
type Doctor = fn(&mut Right);

const FAULTS: &[(Rule, &str, Doctor)] = &[
    (Rule::Checksum, "a wrong checksum", |r| r.here[r.data].bad_checksum = true),
    (Rule::Size, "a packet beyond the MTU", |r| r.here[r.data].ip_len = 1501),
    (Rule::Size, "text beyond the MSS", |r| r.here[r.data].len = MSS + 1),
    (Rule::Handshake, "a window scale nobody asked for", |r| r.here[0].scale = None),
    (Rule::Handshake, "no window scale in spite of the peer's", |r| r.here[r.syn_ack].scale = None),
    (Rule::Handshake, "timestamps nobody asked for", |r| r.here[0].timestamps = None),
    (Rule::Handshake, "SACK nobody asked for", |r| r.here[0].sack_permitted = false),
    (Rule::Handshake, "no SACK in spite of the peer's", |r| r.here[r.syn_ack].sack_permitted = false),
    (Rule::Handshake, "ECN nobody asked for", |r| r.here[0].flags = SYN),
    (Rule::Handshake, "no ECN in spite of the peer's", |r| r.here[r.syn_ack].flags = SYN | ACK),
    (Rule::Handshake, "no MSS", |r| r.here[r.syn_ack].mss = None),
    (Rule::Window, "text beyond the peer's window", |r| {
        // The peer's windows are of 20 bytes from the handshake on, but the SYN's own, which is not scaled.
        r.here.iter_mut().filter(|p| !p.from_server).for_each(|p| p.window = if p.has(SYN) { 20 << 7 } else { 20 });
    }),
    (Rule::Window, "text beyond a window that is not scaled", |r| {
        r.here[0].scale = None;
        r.here[r.syn_ack].scale = None;
    }),
    (Rule::Unsent, "an ACK of what the peer had not sent", |r| r.here[r.ack].ack = r.here[r.ack].ack.wrapping_add(1)),
    (Rule::Shrunk, "a window whose edge goes back", |r| r.here[r.data].window -= 1),
    (Rule::Clock, "a timestamp that goes back", |r| {
        r.here[r.data].timestamps = r.here[r.data].timestamps.map(|(v, e)| (v - 100, e))
    }),
    (Rule::Echo, "an echo of nothing", |r| r.here[r.data].timestamps = r.here[r.data].timestamps.map(|(v, e)| (v, e + 1))),
    (Rule::Echo, "an echo of a segment behind a hole", |r| {
        let ahead = r.here[r.sack - 1].timestamps.expect("agreed").0;
        r.here[r.sack].timestamps = r.here[r.sack].timestamps.map(|(v, _)| (v, ahead));
    }),
    (Rule::Echo, "an echo older than one before", |r| {
        let old = r.here[0].timestamps.expect("agreed").0;
        r.here[r.data].timestamps = r.here[r.data].timestamps.map(|(v, _)| (v, old));
    }),
    (Rule::Options, "no timestamps in spite of the agreement", |r| r.here[r.data].timestamps = None),
    (Rule::Options, "SACK blocks without agreement", |r| {
        r.here[0].sack_permitted = false;
        r.here[r.syn_ack].sack_permitted = false;
    }),
    (Rule::Blocks, "a block of what did not arrive", |r| r.here[r.sack].sack[0].1 = r.here[r.sack].sack[0].1.wrapping_add(1)),
    (Rule::Blocks, "a block over the hole", |r| r.here[r.sack].sack[0].0 = r.here[r.sack].sack[0].0.wrapping_sub(1)),
    (Rule::Blocks, "a second block below the ACK", |r| {
        let below = r.here[r.sack].ack.wrapping_sub(100);
        r.here[r.sack].sack.push((below, below.wrapping_add(50)));
    }),
    (Rule::Ecn, "new text that cannot be marked", |r| r.here[r.data].ecn = 0),
    (Rule::Ecn, "an empty segment that can be marked", |r| r.here[r.ack].ecn = 2),
    (Rule::Ecn, "repeated text that can be marked", |r| r.here[r.repair].ecn = 2),
    (Rule::Marks, "a mark without an echo", |r| r.here[r.echo].flags = ACK),
    (Rule::Answer, "an ECE without CWR", |r| r.here[r.answer].flags = ACK),
    (Rule::Repeated, "text that arrived is sent again", |r| {
        // What was lost arrives after all; nothing else changes.
        r.there = r.here.clone();
    }),
    (Rule::Repeated, "a second probe without news", |r| {
        let mut second = r.here[r.probe].clone();
        second.at += 10_000;
        for copy in [&mut r.here, &mut r.there] {
            let place = copy.iter().position(|p| p.at > second.at).expect("the close is later");
            copy.insert(place, second.clone());
        }
    }),
    (Rule::Repeated, "a timeout that comes too early", |r| {
        let early = r.here[r.probe].at + 150_000;
        let late = r.here[r.timeout].clone();
        for copy in [&mut r.here, &mut r.there] {
            copy.iter_mut().filter(|p| **p == late).for_each(|p| p.at = early);
        }
    }),
    (Rule::Expert, "tshark sees a retransmission", |r| {
        r.here[r.data].expert = Expert { retransmission: true, ..Expert::default() }
    }),
    (Rule::Expert, "tshark sees disorder", |r| r.here[r.data].expert = Expert { out_of_order: true, ..Expert::default() }),
    (Rule::Expert, "tshark misses a segment", |r| r.here[r.data].expert = Expert { lost_segment: true, ..Expert::default() }),
    (Rule::Expert, "tshark misses what is acknowledged", |r| {
        r.here[r.ack].expert = Expert { ack_of_lost: true, ..Expert::default() }
    }),
];

pub fn each_fault() -> Result<()> {
    for (rule, what, doctor) in FAULTS {
        let mut case = right();
        doctor(&mut case);
        let verdict = judge(&case.here, Some(&case.there), TERMS);
        ensure!(verdict.faults.iter().any(|fault| fault.rule == *rule), "{what}: not found, but {:#?}", verdict.faults);
    }
    // A packet that vanishes where nothing drops any.
    let case = right();
    let verdict = judge(&case.here, Some(&case.there), Terms { drops: false, ..TERMS });
    ensure!(verdict.faults.iter().any(|fault| fault.rule == Rule::Repeated), "a loss where there is none is not seen");
    // Each rule of the table has its fault, and the other way round.
    let table = include_str!("judge.rs");
    let rules = table.lines().filter_map(|line| line.strip_prefix("//! | ")?.split(" | ").next()).filter(|rule| *rule != "rule");
    for rule in rules {
        ensure!(FAULTS.iter().any(|(broken, _, _)| broken.to_string() == rule), "no doctored packet breaks the rule {rule}");
    }
    Ok(())
}

/// What the judge finds after `doctor`, and by which terms.
fn found(doctor: Doctor, terms: Terms) -> Vec<Fault> {
    let mut case = right();
    doctor(&mut case);
    judge(&case.here, Some(&case.there), terms).faults
}

/// A second SYN, which does without ECN, and the SYN-ACK to the first again.
fn repeat_the_handshake(r: &mut Right) {
    let (mut syn, mut syn_ack) = (r.here[0].clone(), r.here[r.syn_ack].clone());
    syn.flags = SYN;
    (syn.at, syn_ack.at) = (syn_ack.at + 10, syn_ack.at + 20);
    for (place, packet) in [(2, syn), (3, syn_ack)] {
        r.here.insert(place, packet.clone());
        r.there.insert(place, packet);
    }
}

/// Which runs are carried out again: those in which nothing happened, and those whose every fault may come from the captures.
pub fn second_tries() -> Result<()> {
    for (rule, what, doctor) in FAULTS {
        let tried_again = check_faults(&found(*doctor, TERMS)).is_err_and(|error| error.is::<Inconclusive>());
        ensure!(tried_again == (*rule == Rule::Repeated), "{what}: {}", if tried_again { "tried again" } else { "certain" });
    }
    // The same fault is certain or not by what else is known.
    let unmarked: Doctor = |r| r.here[r.echo].flags = ACK;
    for (what, doctor, terms) in [
        ("a mark that the port's queue may have dropped", unmarked, Terms { took_all: false, ..TERMS }),
        ("a SYN that came again with less in it", repeat_the_handshake, TERMS),
        ("a loss where there is none", |_| (), Terms { drops: false, ..TERMS }),
    ] {
        let faults = found(doctor, terms);
        ensure!(check_faults(&faults).is_err_and(|error| error.is::<Inconclusive>()), "{what}: {faults:#?}");
    }
    // One that is certain decides, whatever others there are.
    let both = found(
        |r| {
            r.there = r.here.clone();
            r.here[r.data].bad_checksum = true;
        },
        TERMS,
    );
    ensure!(both.iter().any(|fault| !fault.certain), "only certain faults: {both:#?}");
    ensure!(check_faults(&both).is_err_and(|error| !error.is::<Inconclusive>()), "{both:#?}");

    type Run = fn() -> Result<()>;
    let nothing: Run = || Ok(happens(false, || "nothing was lost".into())?);
    let blurred: Run = || check_faults(&found(|r| r.there = r.here.clone(), TERMS));
    let wrong: Run = || check_faults(&found(|r| r.here[r.data].bad_checksum = true, TERMS));
    let broken: Run = || bail!("call 3 failed");
    for (runs, right, count) in [
        ([|| Ok(()), broken], true, 1),
        ([nothing, || Ok(())], true, 2),
        ([blurred, || Ok(())], true, 2),
        ([nothing, nothing], false, 2),
        ([nothing, wrong], false, 2),
        ([wrong, || Ok(())], false, 1),
        ([broken, || Ok(())], false, 1),
    ] {
        let mut done = 0;
        let outcome = at_most_twice(|| {
            done += 1;
            runs[done - 1]()
        });
        ensure!((outcome.is_ok(), done) == (right, count), "{done} runs, {outcome:?}; {count} and {right} were due");
    }
    Ok(())
}
