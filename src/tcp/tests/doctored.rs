//! The judge before the court: what two endpoints really said is right in every way, and with one thing changed it is not, by the name of
//! the rule. A judge that finds nothing in the first and each fault in the others can fail. The same for what looks at timers.

use std::net::IpAddr;

use super::judge::{Judge, Terms};
use super::pair::{CLEAN, Faults, Pair, Told, encode, script};
use crate::tcp::{Ecn, Options};
use crate::time::Duration;
use crate::wire::tcp::{Flags, Repr, SackBlocks, SeqNumber};

/// What was said, in which terms, and from which address to which.
struct Case {
    terms: Terms,
    addresses: [IpAddr; 2],
    told: Vec<Told>,
}

/// Text both ways with losses each way, and marks if the ends agree on ECN.
fn right(ecn: Ecn) -> Case {
    let options = Options { ecn, ..Options::default() };
    let faults = Faults { mark: 100, delay: Duration::from_millis(5), ..CLEAN };
    let mut pair = Pair::new(5, faults, [options.clone(), options]);
    pair.sides[0].script = script(1, 150_000);
    pair.sides[1].script = script(2, 30_000);
    pair.told = Some(Vec::new());
    pair.connect();
    // Not the SYN: ECN is not asked for twice.
    assert!(pair.run_until(Duration::from_secs(1), |pair| pair.sides.iter().all(|side| side.connected)));
    pair.faults = [Faults { loss: 40, ..faults }; 2];
    assert!(pair.run_until(Duration::from_secs(60), |pair| pair.sides.iter().all(|side| side.closed.is_some())));
    Case { terms: pair.terms(), addresses: pair.addresses(0), told: pair.told.take().unwrap() }
}

impl Case {
    fn judged(&self) -> Judge {
        self.judged_with(|_, _| {})
    }

    /// `between` is called after each thing that the judge is told, with its number.
    fn judged_with(&self, between: impl Fn(&mut Judge, usize)) -> Judge {
        let mut judge = Judge::new(self.terms);
        let [a, b] = self.addresses;
        let addresses = [[a, b], [b, a]];
        for (number, told) in self.told.iter().enumerate() {
            match told {
                Told::Sends { at, from, bytes, ecn } => judge.sends(*at, *from, addresses[*from], bytes, *ecn),
                Told::Loses { from, bytes } => judge.loses(*from, bytes),
                Told::Delivers { at, to, bytes, ecn } => judge.delivers(*at, *to, addresses[1 - to], bytes, *ecn),
            }
            between(&mut judge, number);
        }
        judge
    }

    /// Changes the segments that `is` chooses, at most so many of them; what is handed over stays as it was.
    fn edit(&mut self, most: usize, is: impl Fn(usize, &Repr, &[u8]) -> bool, change: impl Fn(&mut Repr, &mut Vec<u8>, &mut u8)) {
        let [a, b] = self.addresses;
        let mut left = most;
        for told in &mut self.told {
            let Told::Sends { from, bytes, ecn, .. } = told else { continue };
            let (mut repr, len) = Repr::parse(bytes).unwrap();
            let mut text = bytes[len..].to_vec();
            if left > 0 && is(*from, &repr, &text) {
                left -= 1;
                change(&mut repr, &mut text, ecn);
                let (src, dst) = if *from == 0 { (a, b) } else { (b, a) };
                *bytes = encode(src, dst, &repr, &text);
            }
        }
        assert!(left < most, "nothing was changed");
    }

    /// Sends what `is` chooses twice.
    fn repeat(&mut self, is: impl Fn(&Repr, &[u8]) -> bool) {
        let twice = |told: Told| match &told {
            Told::Sends { bytes, .. } => {
                let (repr, len) = Repr::parse(bytes).unwrap();
                if is(&repr, &bytes[len..]) { vec![told.clone(), told] } else { vec![told] }
            }
            _ => vec![told],
        };
        self.told = std::mem::take(&mut self.told).into_iter().flat_map(twice).collect();
    }
}

fn is_syn(repr: &Repr) -> bool {
    repr.flags.contains(Flags::SYN)
}

fn is_empty(repr: &Repr, text: &[u8]) -> bool {
    text.is_empty() && repr.flags.0 & (Flags::SYN | Flags::FIN | Flags::RST).0 == 0
}

/// Text of the first side; empty ACKs without blocks, and with some.
const TEXT: fn(usize, &Repr, &[u8]) -> bool = |from, _, text| from == 0 && !text.is_empty();
const EMPTY: fn(usize, &Repr, &[u8]) -> bool = |_, repr, text| is_empty(repr, text) && repr.options.sack.is_empty();
const BLOCKS: fn(usize, &Repr, &[u8]) -> bool = |_, repr, text| is_empty(repr, text) && !repr.options.sack.is_empty();

/// Rule, what is done, whether the ends agreed on ECN, and how.
type Doctor = (&'static str, &'static str, Ecn, fn(&mut Case));

const DOCTORS: &[Doctor] = &[
    ("checksum", "a flipped bit", Ecn::Off, |case| {
        let text = |told: &&mut Told| matches!(told, Told::Sends { bytes, .. } if bytes.len() > 1000);
        if let Some(Told::Sends { bytes, .. }) = case.told.iter_mut().find(text) {
            bytes[900] ^= 1;
        }
    }),
    ("size", "packets beyond the MTU", Ecn::Off, |case| case.terms.mtu = [1400; 2]),
    ("size", "text beyond the peer's MSS", Ecn::Off, |case| {
        case.edit(usize::MAX, |from, repr, _| from == 1 && is_syn(repr), |repr, _, _| repr.options.mss = Some(1000));
    }),
    ("handshake", "timestamps that nobody asked for", Ecn::Off, |case| {
        case.edit(usize::MAX, |from, repr, _| from == 0 && is_syn(repr), |repr, _, _| repr.options.timestamps = None);
    }),
    ("handshake", "ECN that nobody asked for", Ecn::Request, |case| {
        case.edit(usize::MAX, |from, repr, _| from == 0 && is_syn(repr), |repr, _, _| repr.flags = Flags::SYN);
    }),
    ("handshake", "a window scale of 15", Ecn::Off, |case| {
        case.edit(usize::MAX, |from, repr, _| from == 1 && is_syn(repr), |repr, _, _| repr.options.window_scale = Some(15));
    }),
    ("sequence", "text behind a gap", Ecn::Off, |case| case.edit(1, TEXT, |repr, _, _| repr.seq = repr.seq + 1)),
    ("sequence", "an empty segment beyond SND.NXT", Ecn::Off, |case| case.edit(1, EMPTY, |repr, _, _| repr.seq = repr.seq + 1)),
    ("text", "another octet where one was sent already", Ecn::Off, |case| {
        case.repeat(|_, text| !text.is_empty());
        let mut even = 0;
        for told in &mut case.told {
            if let Told::Sends { from: 0, bytes, .. } = told
                && bytes.len() > 1000
            {
                even += 1;
                if even == 2 {
                    *bytes.last_mut().unwrap() ^= 1;
                }
            }
        }
    }),
    ("flood", "nothing arrives, and more is sent", Ecn::Off, |case| {
        case.told.retain(|told| !matches!(told, Told::Delivers { to: 1, bytes, .. } if bytes.len() > 1000));
    }),
    ("window", "text beyond the window", Ecn::Off, |case| {
        let [a, b] = case.addresses;
        for told in &mut case.told {
            if let Told::Delivers { to: 0, bytes, .. } = told {
                let (repr, len) = Repr::parse(bytes).unwrap();
                *bytes = encode(b, a, &Repr { window: 8, ..repr }, &bytes[len..]);
            }
        }
    }),
    ("unarrived", "an ACK of what did not come", Ecn::Off, |case| case.edit(1, EMPTY, |repr, _, _| repr.ack = repr.ack + 1)),
    ("unarrived", "an ACK over a hole", Ecn::Off, |case| {
        case.edit(usize::MAX, BLOCKS, |repr, _, _| repr.ack = repr.options.sack.as_slice()[0].1);
    }),
    ("regress", "an ACK that goes back", Ecn::Off, |case| case.edit(9, EMPTY, |repr, _, _| repr.ack = repr.ack - 40_000)),
    ("shrunk", "a window that is taken back", Ecn::Off, |case| case.edit(9, EMPTY, |repr, _, _| repr.window = 0)),
    ("clock", "a timestamp that goes back", Ecn::Off, |case| {
        case.edit(1, TEXT, |repr, _, _| {
            repr.options.timestamps = repr.options.timestamps.map(|mut stamps| {
                stamps.value -= 10_000;
                stamps
            });
        });
    }),
    ("echo", "an echo of nothing", Ecn::Off, |case| {
        case.edit(1, TEXT, |repr, _, _| {
            repr.options.timestamps = repr.options.timestamps.map(|mut stamps| {
                stamps.echo_reply += 10_000;
                stamps
            });
        });
    }),
    ("options", "no timestamps in spite of the agreement", Ecn::Off, |case| {
        case.edit(1, TEXT, |repr, _, _| repr.options.timestamps = None);
    }),
    ("options", "SACK blocks without agreement", Ecn::Off, |case| {
        case.edit(usize::MAX, |_, repr, _| is_syn(repr), |repr, _, _| repr.options.sack_permitted = false);
    }),
    ("blocks", "a block of what did not come", Ecn::Off, |case| {
        case.edit(usize::MAX, BLOCKS, |repr, _, _| {
            let (left, right) = repr.options.sack.as_slice()[0];
            repr.options.sack = SackBlocks::default();
            repr.options.sack.push((left, SeqNumber(right.0.wrapping_add(1_000_000))));
        });
    }),
    ("blocks", "a second block below the ACK", Ecn::Off, |case| {
        case.edit(usize::MAX, BLOCKS, |repr, _, _| {
            repr.options.sack.truncate(1);
            repr.options.sack.push((repr.ack - 10, repr.ack - 5));
        });
    }),
    ("silent", "nothing is told of a hole", Ecn::Off, |case| {
        case.edit(usize::MAX, BLOCKS, |repr, _, _| repr.options.sack = SackBlocks::default());
    }),
    ("ecn", "new text that cannot be marked", Ecn::Request, |case| case.edit(1, TEXT, |_, _, ecn| *ecn = 0)),
    ("ecn", "an empty segment that can be marked", Ecn::Request, |case| case.edit(1, EMPTY, |_, _, ecn| *ecn = 2)),
    ("marks", "marks without an echo", Ecn::Request, |case| {
        let echo = |_: usize, repr: &Repr, _: &[u8]| !is_syn(repr) && repr.flags.contains(Flags::ECE);
        case.edit(usize::MAX, echo, |repr, _, _| repr.flags = Flags(repr.flags.0 & !Flags::ECE.0));
    }),
    ("needless", "every ACK twice", Ecn::Off, |case| case.repeat(is_empty)),
    ("needless", "every ACK twice and as a probe", Ecn::Off, |case| {
        case.repeat(is_empty);
        case.edit(usize::MAX, EMPTY, |repr, _, _| repr.seq = repr.seq - 1);
    }),
    ("repeated", "all text twice", Ecn::Off, |case| case.repeat(|_, text| !text.is_empty())),
];

#[test]
fn the_judge_finds_nothing_in_what_is_right() {
    for ecn in [Ecn::Off, Ecn::Request] {
        let judge = right(ecn).judged();
        assert!(judge.faults.is_empty(), "{:?}", judge.faults);
        let [text, acks] = [judge.tally(0), judge.tally(1)];
        assert!(text.new > 100 && text.repaired > 0 && text.lost > 0 && acks.empty > 2, "{text:?} {acks:?}");
    }
}

#[test]
fn the_judge_finds_each_fault() {
    let missed = DOCTORS.iter().filter_map(|(rule, what, ecn, doctor)| {
        let mut case = right(*ecn);
        doctor(&mut case);
        let faults = case.judged().faults;
        (!faults.iter().any(|fault| fault.rule == *rule)).then(|| format!("{what}: {:?}", faults.first()))
    });
    assert_eq!(missed.collect::<Vec<_>>(), [""; 0]);
    // Each rule of the table has its doctor.
    let table = include_str!("judge.rs");
    let rules = table.lines().filter_map(|line| line.strip_prefix("//! | ")?.split(" | ").next()).filter(|rule| *rule != "rule");
    for rule in rules {
        assert!(DOCTORS.iter().any(|(name, ..)| *name == rule), "nothing breaks the rule {rule}");
    }
}

/// A segment that nobody sent is handed to the second end: it may believe it, and from then on it may throw text away, but what it says
/// must still be true of what has reached it.
#[test]
fn an_intruder_excuses_what_an_end_believes_and_nothing_else() {
    let judged = |case: &Case, intrudes: bool| {
        let [a, b] = case.addresses;
        let judge = case.judged_with(|judge, number| {
            if intrudes && number == 6 {
                let forged = Repr { flags: Flags::ACK, ..Repr::default() };
                assert!(judge.intrudes(1, &encode(a, b, &forged, b"forged")));
                assert!(!judge.intrudes(1, b"short"));
            }
        });
        judge.faults.iter().map(|fault| fault.rule).collect::<Vec<_>>()
    };
    assert_eq!(judged(&right(Ecn::Off), true), [""; 0]);
    for (rule, what, excused) in [
        ("silent", "nothing is told of a hole", true),
        ("needless", "every ACK twice", true),
        ("repeated", "all text twice", true),
        ("flood", "nothing arrives, and more is sent", true),
        ("unarrived", "an ACK over a hole", false),
        ("window", "text beyond the window", false),
        ("regress", "an ACK that goes back", false),
    ] {
        let mut case = right(Ecn::Off);
        let (.., doctor) = DOCTORS.iter().find(|(of, name, ..)| (*of, *name) == (rule, what)).expect("a doctor");
        doctor(&mut case);
        assert!(judged(&case, false).contains(&rule), "{what}");
        assert_eq!(judged(&case, true).contains(&rule), !excused, "{what}");
    }
}

/// An end that was closed in both directions keeps nothing, and one in TIME-WAIT answers whoever takes its place.
#[test]
fn what_ends_and_successors_excuse() {
    let faults = |what: &str, excuse: fn(&mut Judge)| {
        let mut case = right(Ecn::Off);
        let (.., doctor) = DOCTORS.iter().find(|(_, name, ..)| *name == what).expect("a doctor");
        doctor(&mut case);
        let judge = case.judged_with(|judge, _| excuse(judge));
        judge.faults.iter().map(|fault| fault.rule).collect::<Vec<_>>()
    };
    for (rule, what) in [("silent", "nothing is told of a hole"), ("repeated", "all text twice")] {
        assert!(faults(what, |_| {}).contains(&rule), "{what}");
        assert!(!faults(what, Judge::refuses_text).contains(&rule), "{what}");
    }
    assert!(faults("every ACK twice", |_| {}).contains(&"needless"));
    let of_one_end = faults("every ACK twice", |judge| judge.is_succeeded(0));
    assert!(of_one_end.contains(&"needless"), "the other one answers nobody");
    let of_both = faults("every ACK twice", |judge| [0, 1].into_iter().for_each(|end| judge.is_succeeded(end)));
    assert!(!of_both.contains(&"needless"), "{of_both:?}");
}

/// Who was reset may take an old SYN for a new connection's, and what it says in that is not judged; who was not has one number.
#[test]
fn only_a_reset_makes_room_for_another_number() {
    let case = right(Ecn::Off);
    let [a, b] = case.addresses;
    let faults = |reset: bool| {
        let mut judge = Judge::new(case.terms);
        // The handshake, of which everything arrives.
        for (at, told) in case.told.iter().enumerate().take_while(|(at, _)| *at < 4) {
            match told {
                Told::Sends { from, bytes, .. } => {
                    judge.sends(at as u64, *from, if *from == 0 { [a, b] } else { [b, a] }, bytes, 0)
                }
                Told::Loses { .. } => {}
                Told::Delivers { to, bytes, .. } => {
                    judge.delivers(at as u64, *to, if *to == 1 { [a, b] } else { [b, a] }, bytes, 0)
                }
            }
        }
        if reset {
            judge.delivers(5, 1, [a, b], &encode(a, b, &Repr { flags: Flags::RST, ..Repr::default() }, &[]), 0);
        }
        let other =
            Repr { seq: SeqNumber(0x1234_5678), ack: SeqNumber(0x7654_3210), flags: Flags::SYN | Flags::ACK, ..Repr::default() };
        judge.sends(6, 1, [b, a], &encode(b, a, &other, &[]), 0);
        judge.faults.len()
    };
    assert!(faults(false) > 0);
    assert_eq!(faults(true), 0);
}

/// The path, or the device, may take less than it did.
#[test]
fn terms_change_while_a_connection_lives() {
    let case = right(Ecn::Off);
    let mut judge = case.judged();
    judge.set_terms(Terms { mtu: [1400; 2], ..case.terms });
    let Some(Told::Sends { at, from, bytes, ecn }) =
        case.told.iter().find(|told| matches!(told, Told::Sends { from: 0, bytes, .. } if bytes.len() > 1400))
    else {
        panic!("full segments were sent");
    };
    judge.sends(*at, *from, case.addresses, bytes, *ecn);
    assert!(judge.faults.iter().any(|fault| fault.rule == "size"));
}

/// Where the link does not keep the order the judge only counts.
#[test]
fn all_text_twice_is_too_much_on_any_link() {
    let mut case = right(Ecn::Off);
    case.terms.orderly = false;
    let [before, peer] = [0, 1].map(|side| case.judged().tally(side));
    assert!(before.repeated <= before.repeated_max(&peer), "{before:?}");
    case.repeat(|_, text| !text.is_empty());
    let judge = case.judged();
    let [after, peer] = [0, 1].map(|side| judge.tally(side));
    assert!(after.repeated > after.repeated_max(&peer), "{after:?}");
    assert!(!after.repeats_without_end(), "{after:?}");
    (0..4).for_each(|_| case.repeat(|_, text| !text.is_empty()));
    let often = case.judged().tally(0);
    assert!(often.repeats_without_end(), "{often:?}");
}

#[test]
fn a_timer_that_is_missing_is_seen() {
    let mut pair = Pair::new(1, CLEAN, [Options::default(), Options::default()]);
    pair.sides[0].script = script(1, 100_000);
    pair.connect();
    assert!(pair.run_until(Duration::from_secs(1), |pair| pair.sides[1].received.len() > 10_000));
    assert_eq!(pair.sides[0].endpoint.timer_fault(), None);
    pair.sides[0].endpoint.forget_timers();
    assert_eq!(pair.sides[0].endpoint.timer_fault(), Some("something is in flight and nothing will send it again"));
}
