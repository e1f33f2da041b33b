//! Conversations with a server whose programs are a script: procedure numbers choose what happens.

use std::collections::VecDeque;
use std::ops::RangeInclusive;

use proptest::prelude::*;

use super::*;
use crate::buf::{PagePool, RxBuf};
use crate::rpc::drc::DrcOptions;
use crate::rpc::programs::{Call, Disposition, ProcedureInfo, Results};
use crate::rpc::record::LAST_FRAGMENT;

const PROGRAM: u32 = 200_001;
const NULL: u32 = 0;
/// Gives its argument word back.
const ECHO: u32 = 1;
/// Bulk data of as many bytes as its argument says.
const READ: u32 = 2;
/// Waits until the test releases it, then gives its argument word back.
const WAIT: u32 = 3;
/// Counts its executions and gives the count back; not idempotent.
const COUNT: u32 = 4;
/// Waits, then counts; not idempotent.
const WAIT_COUNT: u32 = 5;
/// The disposition its argument names.
const DISPOSE: u32 = 6;
/// Writes more than it announced.
const OVERFLOW: u32 = 7;
/// Marks its peer valid.
const VALID: u32 = 8;
/// Announces more head than a page has.
const HUGE: u32 = 9;

struct Script {
    pool: PagePool,
    waiting: Vec<(Ticket, u32, bool)>,
    ready: VecDeque<(Ticket, u32, bool)>,
    executions: u32,
    /// `complete` parks once more so many times.
    park_again: u32,
}

impl Script {
    /// Lets the waiting call with this argument go on.
    fn release(&mut self, argument: u32) {
        let at = self.waiting.iter().position(|(_, waiting, _)| *waiting == argument).expect("is waiting");
        self.ready.push_back(self.waiting.remove(at));
    }
}

impl Programs for Script {
    fn versions(&self, program: u32, transport: Transport) -> Option<RangeInclusive<u32>> {
        match program {
            PROGRAM => Some(2..=4),
            // Over TCP only.
            200_002 => (transport == Transport::Tcp).then_some(1..=1),
            _ => None,
        }
    }

    fn procedure(&self, _: u32, version: u32, procedure: u32) -> Option<ProcedureInfo> {
        let pages_bytes_max = if procedure == READ { 4096 } else { 0 };
        let head_bytes_max = if procedure == HUGE { 1 << 20 } else { 8 };
        let caches_reply = matches!(procedure, COUNT | WAIT_COUNT);
        (version != 3 && procedure <= HUGE).then_some(ProcedureInfo {
            name: "TEST",
            caches_reply,
            head_bytes_max,
            pages_bytes_max,
        })
    }

    fn call(&mut self, _: Instant, call: &Call<'_>, ticket: Ticket, results: &mut Results<'_>) -> Disposition {
        let mut arguments = call.arguments;
        if call.procedure == NULL {
            return Disposition::Replied;
        }
        let Ok(argument) = arguments.u32() else { return Disposition::GarbageArgs };
        match call.procedure {
            ECHO => results.head.u32(argument),
            READ => {
                results.head.u32(argument);
                let mut page = self.pool.allocate().unwrap();
                page.fill(0x5a);
                results.pages.push(page.freeze().slice(0..argument as usize));
            }
            WAIT | WAIT_COUNT => {
                self.waiting.push((ticket, argument, call.procedure == WAIT_COUNT));
                return Disposition::Parked;
            }
            COUNT => {
                self.executions += 1;
                results.head.u32(self.executions);
            }
            DISPOSE => match argument {
                0 => return Disposition::Dropped,
                1 => return Disposition::SystemError,
                _ => return Disposition::AuthError(crate::rpc::AuthStat::TooWeak),
            },
            OVERFLOW => (0..3).for_each(|_| results.head.u32(argument)),
            _ => results.mark_peer_valid(),
        }
        Disposition::Replied
    }

    fn poll_completion(&mut self, _: Instant, _: &mut Vec<Slice>) -> Option<Ticket> {
        self.ready.front().map(|(ticket, _, _)| *ticket)
    }

    fn complete(&mut self, _: Instant, ticket: Ticket, results: &mut Results<'_>) -> Disposition {
        let (ready, argument, counts) = self.ready.pop_front().expect("was announced");
        assert_eq!(ready, ticket);
        if self.park_again > 0 {
            self.park_again -= 1;
            self.waiting.push((ticket, argument, counts));
            return Disposition::Parked;
        }
        if counts {
            self.executions += 1;
            results.head.u32(self.executions);
        } else {
            results.head.u32(argument);
        }
        Disposition::Replied
    }
}

struct Rig {
    server: Server,
    script: Script,
    chain: RxChain,
    now: Instant,
    replies: Vec<(Destination, Vec<u32>)>,
    closes: Vec<(u64, CloseReason)>,
}

const KEY: ConnectionKey = ConnectionKey(1);

fn address(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

impl Rig {
    fn with(pages: usize, options: Options) -> Rig {
        let arena = FragmentArena::new(PagePool::anonymous(pages, 4096).unwrap()).unwrap();
        let script = Script {
            pool: PagePool::anonymous(64, 4096).unwrap(),
            waiting: Vec::new(),
            ready: VecDeque::new(),
            executions: 0,
            park_again: 0,
        };
        let mut rig = Rig {
            server: Server::new(options, arena),
            script,
            chain: RxChain::new(),
            now: Instant::from_millis(1000),
            replies: Vec::new(),
            closes: Vec::new(),
        };
        rig.accept(1).unwrap();
        rig
    }

    fn new() -> Rig {
        Rig::with(16, Options::default())
    }

    fn accept(&mut self, key: u64) -> Result<(), Refused> {
        let (peer, local) = (address("10.0.0.1:700"), address("10.0.0.9:2049"));
        self.server.accept(self.now, ConnectionKey(key), peer, local)
    }

    /// One turn of a shard's loop for connection 1.
    fn turn(&mut self) -> &mut Rig {
        self.server.handle_stream(self.now, KEY, &mut self.chain, &mut self.script);
        self.server.poll_completions(self.now, &mut self.script);
        for _ in 0..self.server.resumable_len() {
            if self.server.poll_resumable() == Some(KEY) {
                self.server.handle_stream(self.now, KEY, &mut self.chain, &mut self.script);
            }
        }
        self.collect();
        self
    }

    fn collect(&mut self) {
        let mut gather = Vec::new();
        while let Some(destination) = self.server.poll_reply(&mut gather) {
            let bytes: Vec<u8> = gather.iter().flat_map(|slice| slice.iter().copied()).collect();
            let words: Vec<u32> = bytes.chunks(4).map(|word| u32::from_be_bytes(word.try_into().unwrap())).collect();
            let mut rest = &words[..];
            while let Some(&mark) = rest.first() {
                let is_stream = matches!(destination, Destination::Stream(_));
                let len = if is_stream { 1 + (mark & !LAST_FRAGMENT) as usize / 4 } else { rest.len() };
                let (reply, behind) = rest.split_at(len);
                self.replies.push((destination, reply.to_vec()));
                rest = behind;
            }
        }
        while let Some((key, reason)) = self.server.poll_close() {
            self.closes.push((key.0, reason));
        }
    }

    fn send(&mut self, bytes: &[u8]) -> &mut Rig {
        self.chain.push(RxBuf::from_vec(bytes.to_vec()));
        self.turn()
    }

    /// What connection 1 got since the last look, one reply after the other, their marks checked and taken off.
    fn heard(&mut self) -> Vec<Vec<u32>> {
        let replies = std::mem::take(&mut self.replies).into_iter();
        replies
            .map(|(destination, words)| {
                assert_eq!(destination, Destination::Stream(KEY));
                assert_eq!(words[0], LAST_FRAGMENT | (words.len() as u32 * 4 - 4), "the record mark");
                words[1..].to_vec()
            })
            .collect()
    }

    fn advance(&mut self, duration: Duration) -> &mut Rig {
        self.now += duration;
        self.server.handle_timeout(self.now);
        self.turn()
    }

    fn datagram(&mut self, message: &[u8]) -> Vec<Vec<u32>> {
        self.datagram_from("10.0.0.1:999", "10.0.0.9:111", message)
    }

    fn datagram_from(&mut self, peer: &str, local: &str, message: &[u8]) -> Vec<Vec<u32>> {
        let (peer, local) = (address(peer), address(local));
        self.server.handle_datagram(self.now, peer, local, View::from(message), &mut self.script);
        self.collect();
        let replies = std::mem::take(&mut self.replies).into_iter();
        replies
            .map(|(destination, words)| {
                assert_eq!(destination, Destination::Datagram { to: peer, from: local });
                words
            })
            .collect()
    }
}

fn bytes(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_be_bytes()).collect()
}

fn record(words: &[u32]) -> Vec<u8> {
    [bytes(&[LAST_FRAGMENT | (words.len() as u32 * 4)]), bytes(words)].concat()
}

/// A call with AUTH_NONE.
fn message(xid: u32, procedure: u32, arguments: &[u32]) -> Vec<u32> {
    [&[xid, 0, 2, PROGRAM, 2, procedure, 0, 0, 0, 0], arguments].concat()
}

fn call(xid: u32, procedure: u32, arguments: &[u32]) -> Vec<u8> {
    record(&message(xid, procedure, arguments))
}

fn success(xid: u32, results: &[u32]) -> Vec<u32> {
    [&[xid, 1, 0, 0, 0, 0], results].concat()
}

fn accepted(xid: u32, stat: u32) -> Vec<u32> {
    vec![xid, 1, 0, 0, 0, stat]
}

#[test]
fn a_call_is_answered() {
    let mut rig = Rig::new();
    rig.send(&call(7, ECHO, &[42]));
    assert_eq!(rig.heard(), [success(7, &[42])]);
    let counters = rig.server.counters();
    assert_eq!((counters.netcnt, counters.nettcpcnt, counters.rpccnt, counters.rcnocache), (1, 1, 1, 1));
    assert_eq!((counters.replies, counters.reply_bytes, counters.nettcpconn), (1, 32, 1));
}

#[test]
fn bulk_data_goes_by_reference_and_is_padded() {
    let mut rig = Rig::new();
    rig.send(&call(7, READ, &[6]));
    assert_eq!(rig.heard(), [success(7, &[6, 0x5a5a_5a5a, 0x5a5a_0000])]);
    rig.send(&call(8, READ, &[4000]));
    assert_eq!(rig.heard()[0].len(), 6 + 1 + 1000);
}

#[test]
fn calls_cut_into_single_bytes_and_pipelined_calls_are_answered() {
    let mut rig = Rig::new();
    for byte in [call(1, ECHO, &[1]), call(2, NULL, &[])].concat() {
        rig.send(&[byte]);
    }
    assert_eq!(rig.heard(), [success(1, &[1]), success(2, &[])]);
    rig.send(&(10..60).flat_map(|xid| call(xid, ECHO, &[xid])).collect::<Vec<u8>>());
    assert_eq!(rig.heard(), (10..60).map(|xid| success(xid, &[xid])).collect::<Vec<_>>());
    assert!(rig.chain.is_empty());
}

#[test]
fn a_record_of_several_fragments_is_a_call() {
    let mut rig = Rig::new();
    let whole = bytes(&message(5, ECHO, &[77]));
    for (index, piece) in whole.chunks(7).enumerate() {
        let last = if (index + 1) * 7 >= whole.len() { LAST_FRAGMENT } else { 0 };
        rig.send(&[bytes(&[piece.len() as u32 | last]), piece.to_vec()].concat());
    }
    assert_eq!(rig.heard(), [success(5, &[77])]);
}

#[test]
fn every_rejection_byte_for_byte_and_the_connection_lives_on() {
    let mut rig = Rig::new();
    let mut ask = |words: &[u32]| {
        rig.send(&record(words));
        let mut heard = rig.heard();
        assert_eq!(heard.len(), 1);
        heard.remove(0)
    };
    assert_eq!(ask(&[9, 0, 3, PROGRAM, 2, 0, 0, 0, 0, 0]), [9, 1, 1, 0, 2, 2], "RPC_MISMATCH");
    assert_eq!(ask(&[9, 0, 3, PROGRAM, 2, 0]), [9, 1, 1, 0, 2, 2], "RPC_MISMATCH comes before the credential");
    assert_eq!(ask(&[9, 0, 2, PROGRAM, 2, 0, 6, 0, 0, 0]), [9, 1, 1, 1, 1], "AUTH_BADCRED for RPCSEC_GSS");
    assert_eq!(ask(&[9, 0, 2, PROGRAM, 2, 0]), [9, 1, 1, 1, 1], "AUTH_BADCRED without a credential");
    assert_eq!(ask(&[9, 0, 2, 5, 2, 0, 6, 0, 0, 0]), [9, 1, 1, 1, 1], "the credential comes before the program");
    assert_eq!(ask(&[9, 0, 2, PROGRAM, 2, 0, 0, 0, 1, 0]), [9, 1, 1, 1, 3], "AUTH_BADVERF");
    assert_eq!(ask(&[9, 0, 2, PROGRAM, 2, 0, 1, 0xffff_fff0, 0, 0]), [9, 1, 1, 1, 1], "credential of 4 GiB");
    assert_eq!(ask(&[9, 0, 2, 5, 2, 0, 0, 0, 0, 0]), accepted(9, 1), "PROG_UNAVAIL");
    assert_eq!(ask(&[9, 0, 2, PROGRAM, 5, 0, 0, 0, 0, 0]), [9, 1, 0, 0, 0, 2, 2, 4], "PROG_MISMATCH");
    assert_eq!(ask(&[9, 0, 2, PROGRAM, 2, 99, 0, 0, 0, 0]), accepted(9, 3), "PROC_UNAVAIL");
    assert_eq!(ask(&message(9, ECHO, &[])), accepted(9, 4), "GARBAGE_ARGS");
    assert_eq!(ask(&message(9, DISPOSE, &[1])), accepted(9, 5), "SYSTEM_ERR");
    assert_eq!(ask(&message(9, DISPOSE, &[2])), [9, 1, 1, 1, 5], "AUTH_TOOWEAK by the program");
    assert_eq!(ask(&message(9, OVERFLOW, &[2])), accepted(9, 5), "SYSTEM_ERR for results that do not fit");
    assert_eq!(ask(&message(9, HUGE, &[2])), accepted(9, 5), "SYSTEM_ERR for results that never can");
    assert_eq!(ask(&message(9, ECHO, &[3])), success(9, &[3]), "still there");
    let counters = rig.server.counters();
    assert_eq!((counters.rpcbadfmt, counters.rpcbadauth, counters.rpcbadclnt), (6, 5, 1));
    assert_eq!((counters.system_errors, counters.results_overflowed, counters.connections), (3, 2, 1));
}

#[test]
fn messages_that_are_not_calls_are_dropped_and_dropped_calls_are_not_answered() {
    let mut rig = Rig::new();
    rig.send(&record(&[9, 1, 0, 0, 0, 0]));
    rig.send(&record(&[9, 77]));
    rig.send(&call(10, DISPOSE, &[0]));
    rig.send(&call(11, NULL, &[]));
    assert_eq!(rig.heard(), [success(11, &[])]);
    assert_eq!((rig.server.counters().not_calls, rig.server.counters().calls_dropped), (2, 1));
}

#[test]
fn streams_that_cannot_go_on_are_closed() {
    let cases: [(&str, Vec<u8>, CloseReason); 6] = [
        ("2 GiB marker", vec![0x7f, 0xff, 0xff, 0xff], CloseReason::BadRecord(BadRecord::TooLong)),
        ("last fragment of 2 GiB", vec![0xff; 4], CloseReason::BadRecord(BadRecord::TooLong)),
        ("endless empty fragments", vec![0; 4000], CloseReason::BadRecord(BadRecord::TooManyFragments)),
        ("empty record", bytes(&[LAST_FRAGMENT]), CloseReason::BadRecord(BadRecord::TooShort)),
        ("no call header", record(&[1, 0, 2, PROGRAM, 2]), CloseReason::ShortCall),
        ("only xid and direction", record(&[1, 0]), CloseReason::ShortCall),
    ];
    for (what, stream, reason) in cases {
        let mut rig = Rig::new();
        rig.send(&stream);
        assert_eq!(rig.closes, [(1, reason)], "{what}");
        assert!(rig.heard().is_empty() && rig.chain.is_empty(), "{what}");
        assert!(!reason.is_graceful());
        let counters = *rig.server.counters();
        let closed = counters.closed_record_too_long + counters.closed_too_many_fragments + counters.closed_record_too_short;
        assert_eq!((counters.rpcbadfmt, counters.connections, closed), (1, 0, 1), "{what}");
        rig.send(&call(1, NULL, &[]));
        assert!(rig.heard().is_empty() && rig.chain.is_empty(), "the server has forgotten it");
    }
}

#[test]
fn replies_leave_in_the_order_of_completion() {
    let mut rig = Rig::new();
    rig.send(&[call(1, WAIT, &[1]), call(2, WAIT, &[2]), call(3, ECHO, &[3])].concat());
    assert_eq!(rig.heard(), [success(3, &[3])]);
    assert_eq!(rig.server.counters().calls_in_flight, 2);
    rig.script.release(2);
    assert_eq!(rig.turn().heard(), [success(2, &[2])]);
    rig.script.park_again = 1;
    rig.script.release(1);
    assert!(rig.turn().heard().is_empty(), "parked once more");
    rig.script.release(1);
    assert_eq!(rig.turn().heard(), [success(1, &[1])]);
    assert_eq!((rig.server.counters().calls_in_flight, rig.server.counters().calls_parked), (0, 2));
}

#[test]
fn a_completion_for_a_lost_connection_or_a_void_ticket_harms_nobody() {
    let mut rig = Rig::new();
    rig.send(&call(1, WAIT, &[1]));
    rig.server.closed(KEY);
    rig.accept(2).unwrap();
    rig.script.release(1);
    assert!(rig.turn().heard().is_empty());
    assert_eq!(rig.server.counters().replies_orphaned, 1);
    rig.script.ready.push_back((Ticket(0), 5, false));
    struct Void(bool);
    impl Programs for Void {
        fn versions(&self, _: u32, _: Transport) -> Option<RangeInclusive<u32>> {
            None
        }
        fn procedure(&self, _: u32, _: u32, _: u32) -> Option<ProcedureInfo> {
            None
        }
        fn call(&mut self, _: Instant, _: &Call<'_>, _: Ticket, _: &mut Results<'_>) -> Disposition {
            Disposition::Dropped
        }
        fn poll_completion(&mut self, _: Instant, _: &mut Vec<Slice>) -> Option<Ticket> {
            std::mem::replace(&mut self.0, false).then_some(Ticket(0))
        }
        fn complete(&mut self, _: Instant, _: Ticket, _: &mut Results<'_>) -> Disposition {
            panic!("no such call")
        }
    }
    rig.server.poll_completions(rig.now, &mut Void(true));
    assert_eq!(rig.server.counters().tickets_unknown, 1);
}

#[test]
fn a_reply_queued_for_a_lost_connection_is_dropped() {
    let mut rig = Rig::new();
    rig.chain.push(RxBuf::from_vec(call(1, ECHO, &[1])));
    rig.server.handle_stream(rig.now, KEY, &mut rig.chain, &mut rig.script);
    rig.server.closed(KEY);
    rig.collect();
    assert!(rig.replies.is_empty() && rig.server.is_drained());
    assert_eq!(rig.server.counters().replies_orphaned, 1);
}

#[test]
fn calls_in_flight_are_bounded_before_the_next_record_is_taken() {
    let mut rig = Rig::with(16, Options { calls_in_flight_max: 2, ..Options::default() });
    rig.send(&(1..=3).flat_map(|n| call(n, WAIT, &[n])).collect::<Vec<u8>>());
    assert_eq!((rig.script.waiting.len(), rig.chain.len()), (2, call(3, WAIT, &[3]).len()), "the third is unread");
    rig.turn();
    assert_eq!(rig.server.counters().stalls_calls_in_flight, 1, "counted once, not per look");
    rig.script.release(1);
    assert_eq!(rig.turn().heard(), [success(1, &[1])]);
    assert_eq!((rig.script.waiting.len(), rig.chain.len()), (2, 0), "resumed by the completion");
}

#[test]
fn a_peer_that_never_reads_is_not_read_from() {
    let mut rig = Rig::with(16, Options { send_queue_bytes_max: 10_000, ..Options::default() });
    rig.send(&(1..=9).flat_map(|xid| call(xid, READ, &[4000])).collect::<Vec<u8>>());
    assert_eq!(rig.heard().len(), 2, "two replies of 4,032 bytes, a third one might be 4,132");
    let unread = rig.chain.len();
    rig.turn().turn();
    assert_eq!((rig.heard().len(), rig.chain.len()), (0, unread));
    assert_eq!(rig.server.counters().stalls_send_queue, 1);
    rig.server.set_backlog(rig.now, KEY, 6_000);
    assert_eq!(rig.turn().heard().len(), 0, "not enough");
    rig.server.set_backlog(rig.now, KEY, 5_000);
    assert_eq!(rig.server.resumable_len(), 1);
    assert_eq!(rig.turn().heard().len(), 1);
    let mut rig = Rig::with(16, Options { send_queue_bytes_max: 10_000, ..Options::default() });
    // Rejections need room as well.
    rig.server.set_backlog(rig.now, KEY, 10_000);
    rig.send(&record(&[9, 0, 2, 5, 2, 0, 0, 0, 0, 0]));
    assert_eq!((rig.heard().len(), rig.chain.is_empty()), (0, false));
    rig.server.set_backlog(rig.now, KEY, 0);
    assert_eq!(rig.turn().heard(), [accepted(9, 1)]);
}

#[test]
fn a_stranger_may_owe_less_than_a_peer_with_a_file_handle() {
    let mut rig = Rig::new();
    rig.server.set_backlog(rig.now, KEY, 70_000);
    assert_eq!(rig.send(&call(1, ECHO, &[1])).heard().len(), 0);
    rig.server.set_backlog(rig.now, KEY, 60_000);
    assert_eq!(rig.turn().heard(), [success(1, &[1])]);
    rig.send(&call(2, VALID, &[1]));
    rig.server.set_backlog(rig.now, KEY, 4_000_000);
    rig.replies.clear();
    assert_eq!(rig.send(&call(3, ECHO, &[3])).heard(), [success(3, &[3])]);
}

#[test]
fn room_that_nobody_announces_is_found() {
    let mut rig = Rig::with(16, Options { send_queue_bytes_max: 10_000, ..Options::default() });
    rig.accept(2).unwrap();
    rig.send(&(1..=5).flat_map(|xid| call(xid, READ, &[4000])).collect::<Vec<u8>>());
    assert_eq!(rig.heard().len(), 2);
    let mut asked = Vec::new();
    rig.server.refresh_backlogs(rig.now, |key| {
        asked.push(key);
        8_064
    });
    assert_eq!((asked, rig.turn().heard().len()), (vec![KEY], 0), "only the one that waits, and it still does");
    rig.server.refresh_backlogs(rig.now, |_| 0);
    assert_eq!(rig.turn().heard().len(), 2);
    rig.server.refresh_backlogs(rig.now, |_| 0);
    assert_eq!((rig.turn().heard().len(), rig.chain.len()), (1, 0));
    rig.server.refresh_backlogs(rig.now, |_| panic!("nobody waits"));
    rig.send(&(1..=5).flat_map(|xid| call(xid, READ, &[4000])).collect::<Vec<u8>>());
    rig.server.closed(KEY);
    rig.server.refresh_backlogs(rig.now, |_| panic!("the one that waited is gone"));
}

/// A peer that acknowledges nothing holds a page with a few bytes; enough of them, and nobody is answered any more.
#[test]
fn who_holds_pages_for_long_is_reset_when_they_are_short() {
    let mut rig = Rig::with(4, Options::default());
    let (patient, holder) = (KEY, ConnectionKey(2));
    rig.accept(2).unwrap();
    let mut stream = RxChain::new();
    let mut held: Vec<Slice> = Vec::new();
    while rig.server.counters().stalls_core == 0 {
        stream.push(RxBuf::from_vec(call(7, ECHO, &[7])));
        rig.server.handle_stream(rig.now, holder, &mut stream, &mut rig.script);
        let mut gather = Vec::new();
        while rig.server.poll_reply(&mut gather).is_some() {
            held.append(&mut gather);
        }
    }
    let owed: u64 = held.iter().map(|slice| slice.len() as u64).sum();
    rig.server.set_backlog(rig.now, holder, owed);
    rig.send(&call(1, ECHO, &[1]));
    let mut seconds = 0;
    while rig.closes.is_empty() {
        assert!(rig.turn().heard().is_empty(), "there is no page");
        rig.advance(Duration::from_secs(1));
        if rig.server.needs_relief() {
            rig.server.relieve(rig.now, |key| if key == holder { owed } else { 0 });
            rig.collect();
        }
        seconds += 1;
    }
    assert_eq!((rig.closes.clone(), seconds), (vec![(holder.0, CloseReason::HoldsPages)], 5));
    assert!(!rig.server.needs_relief(), "until the next sweep");
    held.clear();
    rig.advance(Duration::from_millis(1));
    assert_eq!(rig.heard(), [success(1, &[1])]);
    rig.advance(Duration::from_secs(3));
    assert!(!rig.server.needs_relief(), "pages are not short any more");
    assert_eq!(rig.server.counters().closed_holding_pages, 1);
    assert!(rig.server.connections.find(patient).is_some());
}

#[test]
fn as_many_are_reset_as_may_be_needed_the_oldest_first() {
    let mut rig = Rig::with(16, Options::default());
    let begun = rig.now;
    for key in 2..=40 {
        rig.accept(key).unwrap();
        let id = rig.server.connections.find(ConnectionKey(key)).unwrap();
        rig.server.connections.get(id).unwrap().handed = 10;
        rig.server.set_backlog(begun + Duration::from_millis(key), ConnectionKey(key), 10);
    }
    rig.now = begun + Duration::from_millis(5021);
    // Not the pages of replies, but those of the programs: refused in each second.
    rig.server.relieve(rig.now, |_| 10);
    rig.collect();
    assert_eq!(rig.closes.iter().map(|(key, _)| *key).collect::<Vec<_>>(), (2..=11).collect::<Vec<u64>>(), "half of twenty");
    rig.server.relieve(rig.now, |_| 10);
    rig.server.relieve(rig.now, |_| 10);
    rig.collect();
    assert_eq!(
        rig.closes.iter().map(|(key, _)| *key).collect::<Vec<_>>(),
        (2..=21).collect::<Vec<u64>>(),
        "eight, and the last two"
    );
}

#[test]
fn pages_are_short_when_programs_say_so_twice() {
    let mut rig = Rig::new();
    let mut seen = Vec::new();
    for refused in [0, 5, 5, 6, 7, 7] {
        rig.server.note_pages_refused(refused);
        rig.advance(Duration::from_secs(1));
        seen.push(rig.server.needs_relief());
    }
    assert_eq!(seen, [false, false, false, false, true, false]);
}

#[test]
fn a_core_without_pages_waits_and_goes_on() {
    // Zeroes, one page to write into, and nothing to move on to while its replies are unacknowledged.
    let mut rig = Rig::with(2, Options::default());
    rig.chain.push(RxBuf::from_vec((0..200).flat_map(|xid| call(xid, ECHO, &[xid])).collect::<Vec<u8>>()));
    let mut held = Vec::new();
    for _ in 0..10 {
        rig.server.handle_stream(rig.now, KEY, &mut rig.chain, &mut rig.script);
        let mut gather = Vec::new();
        while rig.server.poll_reply(&mut gather).is_some() {
            held.append(&mut gather);
        }
    }
    let answered = rig.server.counters().replies;
    assert!(answered < 200 && !rig.chain.is_empty() && rig.server.counters().stalls_core > 0);
    assert_eq!(rig.server.poll_timeout(), Some(rig.now + Options::default().retry_after));
    held.clear();
    rig.advance(Duration::from_millis(1));
    assert!(!rig.heard().is_empty());
    for _ in 0..10 {
        rig.advance(Duration::from_millis(1));
    }
    assert_eq!(rig.server.counters().replies, 200, "{answered} before the shortage");
}

#[test]
fn a_completion_without_pages_waits_and_is_not_lost() {
    let mut rig = Rig::with(2, Options::default());
    rig.send(&call(1000, WAIT, &[1000]));
    rig.chain.push(RxBuf::from_vec((0..200).flat_map(|xid| call(xid, ECHO, &[xid])).collect::<Vec<u8>>()));
    let mut held: Vec<Slice> = Vec::new();
    let mut gather = Vec::new();
    for _ in 0..10 {
        rig.server.handle_stream(rig.now, KEY, &mut rig.chain, &mut rig.script);
        while rig.server.poll_reply(&mut gather).is_some() {
            held.append(&mut gather);
        }
    }
    rig.chain.clear();
    rig.script.release(1000);
    assert_eq!(rig.server.poll_completions(rig.now, &mut rig.script), 0);
    drop((held, gather));
    assert_eq!(rig.turn().heard(), [success(1000, &[1000])]);
}

#[test]
fn one_connection_does_not_starve_the_others() {
    let mut rig = Rig::with(16, Options { calls_per_turn_max: 3, ..Options::default() });
    rig.chain.push(RxBuf::from_vec((0..5).flat_map(|xid| call(xid, NULL, &[])).collect::<Vec<u8>>()));
    rig.server.handle_stream(rig.now, KEY, &mut rig.chain, &mut rig.script);
    rig.collect();
    assert_eq!((rig.heard().len(), rig.server.resumable_len()), (3, 1));
    assert_eq!(rig.turn().heard().len(), 2);
}

#[test]
fn a_duplicate_is_dropped_while_the_call_is_in_progress_and_replayed_after() {
    let mut rig = Rig::new();
    rig.send(&call(1, WAIT_COUNT, &[5]));
    rig.send(&call(1, WAIT_COUNT, &[5]));
    assert_eq!((rig.script.waiting.len(), rig.server.counters().duplicates_dropped), (1, 1));
    rig.script.release(5);
    assert_eq!(rig.turn().heard(), [success(1, &[1])]);
    // The client comes back over a new connection.
    rig.server.closed(KEY);
    rig.accept(1).unwrap();
    rig.send(&call(1, WAIT_COUNT, &[5]));
    assert_eq!((rig.heard(), rig.script.executions), (vec![success(1, &[1])], 1));
    rig.send(&call(1, COUNT, &[5]));
    rig.send(&call(1, COUNT, &[6]));
    rig.send(&call(2, COUNT, &[5]));
    assert_eq!(rig.heard(), [success(1, &[2]), success(1, &[3]), success(2, &[4])], "other calls");
    rig.advance(Duration::from_secs(120));
    rig.send(&call(1, COUNT, &[5]));
    assert_eq!(rig.heard(), [success(1, &[5])], "forgotten after 120 s");
    let counters = rig.server.counters();
    assert_eq!((counters.rchits, counters.rcmisses, counters.duplicates_replayed), (2, 5, 1));
}

#[test]
fn the_answer_to_a_lost_connection_is_remembered() {
    let mut rig = Rig::new();
    rig.send(&call(1, WAIT_COUNT, &[5]));
    rig.server.closed(KEY);
    rig.script.release(5);
    rig.turn();
    rig.accept(1).unwrap();
    rig.send(&call(1, WAIT_COUNT, &[5]));
    assert_eq!((rig.heard(), rig.script.executions), (vec![success(1, &[1])], 1));
}

#[test]
fn errors_are_not_cached_and_long_replies_are_counted() {
    let mut rig = Rig::with(16, {
        let mut options = Options::default();
        options.drc.reply_bytes_max = 27;
        options
    });
    rig.send(&[call(1, COUNT, &[]), call(1, COUNT, &[])].concat());
    assert_eq!(rig.heard(), [accepted(1, 4), accepted(1, 4)], "GARBAGE_ARGS twice");
    rig.send(&[call(1, COUNT, &[5]), call(1, COUNT, &[5])].concat());
    assert_eq!(rig.heard(), [success(1, &[1]), success(1, &[2])], "28 bytes do not fit");
    let counters = rig.server.counters();
    assert_eq!((counters.rchits, counters.rcmisses, counters.drc_reply_too_long), (0, 4, 2));
}

#[test]
fn a_half_closed_connection_gets_its_replies_and_is_then_closed() {
    let mut rig = Rig::new();
    rig.send(&call(1, WAIT, &[1]));
    rig.chain.push(RxBuf::from_vec([call(2, ECHO, &[2]), vec![0x80, 0, 0, 0x40, 1]].concat()));
    rig.server.handle_end(rig.now, KEY, &mut rig.chain, &mut rig.script);
    assert_eq!(rig.turn().heard(), [success(2, &[2])]);
    assert!(rig.closes.is_empty(), "a reply is pending");
    rig.script.release(1);
    assert_eq!(rig.turn().heard(), [success(1, &[1])]);
    assert_eq!(rig.closes, [(1, CloseReason::Finished)]);
    assert!(CloseReason::Finished.is_graceful());
    let counters = rig.server.counters();
    assert_eq!((counters.closed_finished, counters.streams_truncated, counters.connections), (1, 1, 0));
}

#[test]
fn a_half_closed_connection_that_is_stalled_is_still_read_to_its_end() {
    let mut rig = Rig::with(16, Options { calls_in_flight_max: 1, ..Options::default() });
    rig.chain.push(RxBuf::from_vec([call(1, WAIT, &[1]), call(2, ECHO, &[2])].concat()));
    rig.server.handle_end(rig.now, KEY, &mut rig.chain, &mut rig.script);
    rig.script.release(1);
    rig.turn();
    assert_eq!(rig.heard(), [success(1, &[1]), success(2, &[2])]);
    assert_eq!(rig.closes, [(1, CloseReason::Finished)]);
}

#[test]
fn an_incomplete_record_has_a_time_limit() {
    let mut rig = Rig::new();
    rig.send(&call(1, NULL, &[])[..20]);
    rig.advance(Duration::from_secs(59));
    rig.send(&[0]);
    assert!(rig.closes.is_empty());
    rig.advance(Duration::from_secs(1));
    assert_eq!(rig.closes, [(1, CloseReason::RecordTimeout)], "however it trickles");
    assert_eq!(rig.server.counters().closed_record_timeout, 1);
}

#[test]
fn a_record_that_makes_progress_outlasts_the_time_limit() {
    let options = Options { record_bytes_per_second_min: 100, ..Options::default() };
    let mut rig = Rig::with(16, options);
    let record = call(1, ECHO, &vec![7; 9000]);
    // 200 bytes a second: 180 s for the whole.
    for piece in record.chunks(2000).take(18) {
        rig.send(piece);
        rig.advance(Duration::from_secs(10));
        assert_eq!(rig.closes, []);
    }
    rig.send(&record[36_000..]);
    assert_eq!(rig.turn().heard(), [success(1, &[7])]);
    // As fast at first, then nothing: 60 s and 100 bytes for each second more.
    rig.send(&record[..2000]);
    rig.advance(Duration::from_secs(79));
    assert_eq!(rig.closes, []);
    rig.advance(Duration::from_secs(1));
    assert_eq!(rig.closes, [(1, CloseReason::RecordTimeout)]);
}

#[test]
fn an_idle_connection_is_closed_and_a_busy_one_is_not() {
    let mut rig = Rig::new();
    assert_eq!(rig.server.poll_timeout(), Some(rig.now + Duration::from_secs(1)));
    rig.advance(Duration::from_secs(359));
    rig.send(&call(1, WAIT, &[1]));
    rig.advance(Duration::from_secs(3600));
    assert!(rig.closes.is_empty(), "a call is waiting");
    rig.script.release(1);
    rig.turn();
    rig.server.set_backlog(rig.now, KEY, 10);
    rig.advance(Duration::from_secs(359));
    rig.server.set_backlog(rig.now, KEY, 5);
    rig.advance(Duration::from_secs(359));
    assert_eq!(rig.closes, [], "it still takes what it asked for");
    rig.advance(Duration::from_secs(1));
    assert_eq!(rig.closes, [(1, CloseReason::Idle)]);
    assert_eq!((rig.server.counters().closed_idle, rig.server.poll_timeout()), (1, None));
}

#[test]
fn unauthenticated_connections_are_limited_and_valid_ones_are_not_touched() {
    let mut rig = Rig::with(16, Options { connections_unauthenticated_max: 2, connections_max: 4, ..Options::default() });
    rig.send(&call(1, VALID, &[0]));
    rig.heard();
    for key in 2..=3 {
        rig.accept(key).unwrap();
    }
    rig.collect();
    assert!(rig.closes.is_empty());
    rig.accept(4).unwrap();
    rig.collect();
    assert_eq!(rig.closes, [(2, CloseReason::Unauthenticated)], "the oldest that is not valid");
    assert_eq!((rig.server.counters().closed_unauthenticated, rig.server.counters().connections), (1, 3));
}

#[test]
fn connections_are_limited() {
    let mut rig = Rig::with(16, Options { connections_max: 1, ..Options::default() });
    rig.send(&call(1, VALID, &[0]));
    assert_eq!(rig.accept(2), Err(Refused));
    assert_eq!(rig.server.counters().connections_refused, 1);
    rig.server.closed(KEY);
    assert_eq!(rig.accept(3), Ok(()));
    assert_eq!(rig.accept(3), Err(Refused), "the key is in use");
    assert_eq!(rig.accept(4), Ok(()), "pushes out 3, which is unauthenticated");
    rig.collect();
    assert_eq!(rig.closes, [(3, CloseReason::Unauthenticated)]);
}

#[test]
fn datagrams_are_answered_without_a_mark() {
    let mut rig = Rig::new();
    assert_eq!(rig.datagram(&bytes(&message(5, ECHO, &[6]))), [success(5, &[6])]);
    assert_eq!(rig.datagram(&bytes(&[5, 0, 2, 200_002, 1, 0, 0, 0, 0, 0])), [accepted(5, 1)], "over TCP only");
    assert!(rig.datagram(&bytes(&[5, 0, 2])).is_empty() && rig.datagram(&[]).is_empty());
    assert_eq!(rig.datagram(&bytes(&message(5, READ, &[1400])))[0].len(), 6 + 1 + 350);
    assert_eq!(rig.datagram(&bytes(&message(5, READ, &[1500]))), [accepted(5, 5)], "does not fit a frame");
    let counters = *rig.server.counters();
    assert_eq!((counters.netcnt, counters.netudpcnt, counters.datagrams_dropped), (6, 6, 2));
    assert_eq!(counters.datagram_replies_too_long, 1);
}

/// RFC 8200 section 5: 1,280 bytes, less the headers of IPv6 and UDP; 24 bytes are the reply's head, 4 the length.
#[test]
fn a_reply_by_datagram_over_ipv6_fits_every_path() {
    for (datagram_bytes_max, read_max) in [(1472, 1204), (1000, 972)] {
        let mut rig = Rig::with(16, Options { datagram_bytes_max, ..Options::default() });
        let mut ask = |xid, len| rig.datagram_from("[fd00::1]:999", "[fd00::9]:111", &bytes(&message(xid, READ, &[len])));
        assert_eq!(ask(1, read_max)[0].len() * 4, 24 + 4 + read_max as usize);
        assert_eq!(ask(2, read_max + 4), [accepted(2, 5)]);
        assert_eq!(rig.server.counters().datagram_replies_too_long, 1);
    }
}

#[test]
fn datagrams_that_cannot_be_answered_are_dropped() {
    let mut rig = Rig::with(16, Options { datagram_calls_in_flight_max: 1, datagram_replies_max: 2, ..Options::default() });
    let peer = address("10.0.0.1:999");
    for xid in 0..3 {
        let datagram = bytes(&message(xid, ECHO, &[xid]));
        rig.server.handle_datagram(rig.now, peer, peer, View::from(&datagram[..]), &mut rig.script);
    }
    assert_eq!(rig.server.counters().datagrams_dropped, 1);
    rig.collect();
    assert_eq!(std::mem::take(&mut rig.replies).len(), 2);
    assert!(rig.datagram(&bytes(&message(7, WAIT, &[7]))).is_empty());
    assert!(rig.datagram(&bytes(&message(8, ECHO, &[8]))).is_empty());
    assert_eq!(rig.server.counters().datagrams_dropped, 2);
    rig.script.release(7);
    rig.server.poll_completions(rig.now, &mut rig.script);
    assert_eq!(rig.datagram(&bytes(&message(9, ECHO, &[9]))), [success(7, &[7]), success(9, &[9])]);
}

#[test]
fn a_draining_server_answers_what_it_took_and_takes_nothing_more() {
    let mut rig = Rig::new();
    rig.send(&call(1, WAIT, &[1]));
    rig.server.drain();
    rig.send(&call(2, NULL, &[]));
    assert!(rig.heard().is_empty() && !rig.server.is_drained());
    assert_eq!(rig.accept(2), Err(Refused));
    rig.script.release(1);
    assert_eq!(rig.turn().heard(), [success(1, &[1])]);
    assert!(rig.server.is_drained());
}

proptest! {
    #[test]
    fn no_bytes_make_the_server_panic(
        pieces in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..60), 0..12),
    ) {
        let mut rig = Rig::new();
        for piece in &pieces {
            rig.send(piece);
            rig.datagram(piece);
        }
        rig.server.handle_end(rig.now, KEY, &mut rig.chain, &mut rig.script);
    }

    /// Nearly right calls: words from a small alphabet behind a good mark reach every check.
    #[test]
    fn no_nearly_right_call_makes_the_server_panic(
        calls in proptest::collection::vec(proptest::collection::vec(
            prop_oneof![0u32..10, Just(PROGRAM), Just(400), Just(u32::MAX)], 2..24), 1..8),
    ) {
        let mut rig = Rig::new();
        for words in &calls {
            let words: Vec<u32> = [&words[..1], &[0, 2, PROGRAM, 2][..], &words[1..]].concat();
            rig.send(&record(&words));
            rig.script.pool = PagePool::anonymous(4, 4096).unwrap();
            rig.server.handle_datagram(rig.now, address("10.0.0.1:9"), address("10.0.0.9:111"),
                View::from(&bytes(&words)[..]), &mut rig.script);
            rig.collect();
        }
        while let Some((_, argument, _)) = rig.script.waiting.first().copied() {
            rig.script.release(argument);
        }
        rig.turn();
        prop_assert!(rig.server.is_drained());
    }
}

#[derive(Clone, Debug)]
enum Deed {
    /// Calls of one procedure, cut into buffers of so many bytes.
    Call(u32, usize, usize),
    Release,
    /// The peer acknowledges so many bytes.
    Acknowledge(u64),
    Turn,
}

proptest! {
    /// However calls, completions and acknowledgements mix, each call is answered once and nothing waits for ever.
    #[test]
    fn every_call_is_answered_exactly_once(deeds in proptest::collection::vec(prop_oneof![
        (prop_oneof![Just(ECHO), Just(READ), Just(WAIT), Just(WAIT_COUNT), Just(COUNT)], 1usize..6, 1usize..90)
            .prop_map(|(procedure, calls, cut)| Deed::Call(procedure, calls, cut)),
        Just(Deed::Release), (0u64..6000).prop_map(Deed::Acknowledge), Just(Deed::Turn)], 1..60)) {
        let mut rig = Rig::with(3, Options {
            calls_in_flight_max: 3, calls_in_flight_total_max: 4, send_queue_bytes_max: 9000, calls_per_turn_max: 2,
            drc: DrcOptions { entries: 3, ..Options::default().drc }, ..Options::default()
        });
        let (mut sent, mut queued, mut answered) = (0u32, 0u64, Vec::new());
        let mut turn = |rig: &mut Rig, queued: &mut u64| {
            rig.now += Duration::from_millis(1);
            rig.server.handle_timeout(rig.now);
            rig.server.refresh_backlogs(rig.now, |_| *queued);
            for reply in rig.turn().heard() {
                *queued += 4 + 4 * reply.len() as u64;
                answered.push(reply[0]);
            }
        };
        for deed in deeds {
            match deed {
                Deed::Call(procedure, calls, cut) => {
                    let argument = |xid| if procedure == READ { 4000 } else { xid };
                    let range = sent..sent + calls as u32;
                    let stream: Vec<u8> = range.flat_map(|xid| call(xid, procedure, &[argument(xid)])).collect();
                    stream.chunks(cut).for_each(|piece| rig.chain.push(RxBuf::from_vec(piece.to_vec())));
                    sent += calls as u32;
                }
                Deed::Release => rig.script.ready.extend(rig.script.waiting.pop()),
                Deed::Acknowledge(bytes) => queued = queued.saturating_sub(bytes),
                Deed::Turn => {}
            }
            turn(&mut rig, &mut queued);
        }
        for _ in 0..2 * sent + 20 {
            queued = 0;
            rig.script.ready.extend(rig.script.waiting.pop());
            turn(&mut rig, &mut queued);
        }
        prop_assert!(rig.closes.is_empty() && rig.chain.is_empty() && rig.server.is_drained());
        answered.sort_unstable();
        prop_assert_eq!(answered, (0..sent).collect::<Vec<_>>());
        prop_assert_eq!(rig.server.counters().calls_in_flight, 0);
    }
}
