//! The load generator against the real server, in one thread on a virtual clock.

mod support;

use nfsplice::control::load_cli::Arrival;
use nfsplice::load::pacing::Pace;
use nfsplice::load::prepare::{PrepareError, prepare};
use nfsplice::load::protocol::Verb;
use nfsplice::load::runner::{Job, Schedule};
use nfsplice::load::statistics::Sample;
use nfsplice::load::workload::{Mix, Shape, Workload};
use nfsplice::net::memory_link::Impairments;
use nfsplice::time::{Duration, Instant};
use support::load::{RigTransport, carry_out, job, prepared, wanted};
use support::server::Setup;

const SHAPE: Shape = Shape { files: 3, file_bytes: 300_000, io_bytes: 10_000, stable: 0, commit_every: 0 };

fn rig() -> RigTransport {
    RigTransport::new(&Setup::default(), 1, [Impairments::default(); 2])
}

fn workload(mix: &str, shape: Shape, connections: usize) -> Workload {
    Workload::new(Mix::parse(mix).unwrap(), shape, 9, 0, connections, connections)
}

fn counted(count: u64) -> impl Fn(Instant) -> Schedule {
    move |start| Schedule { pace: Pace::Closed, start, ramp: Duration::ZERO, duration: None, count: Some(count) }
}

fn calls(sample: &Sample, verb: Verb) -> u64 {
    sample.verbs().find(|(made, _)| *made == verb).map_or(0, |(_, sample)| sample.calls)
}

#[test]
fn every_kind_of_call_is_answered_and_every_byte_is_right() {
    let shape = Shape { commit_every: 5, ..SHAPE };
    let (transport, target) = prepared(rig(), &shape);
    let mix = "null=10,getattr=10,lookup=10,read=15,randread=15,write=10,randwrite=10,commit=10,readdirplus=10";
    let (transport, sample) = carry_out(transport, workload(mix, shape, 3), &target, job(&target, &shape, 3, 7), counted(2000));
    assert!(sample.faults.is_clean(), "{:?} {:?}", sample.faults, sample.statuses);
    assert_eq!(sample.calls(), 2000);
    for verb in Verb::ALL.into_iter().filter(|verb| *verb != Verb::Connect) {
        assert!(calls(&sample, verb) > 100, "{verb:?}: {}", calls(&sample, verb));
    }
    assert_eq!(sample.verified_bytes, calls(&sample, Verb::Read) * u64::from(shape.io_bytes));
    // What the server counted is what was made.
    let counters = transport.server.shard.programs().nfs3().counters();
    assert_eq!(counters.calls_read, calls(&sample, Verb::Read));
    assert_eq!(counters.calls_getattr, calls(&sample, Verb::Getattr));
}

#[test]
fn files_that_are_there_are_taken_as_they_are() {
    let (mut transport, target) = prepared(rig(), &SHAPE);
    let again = prepare(&mut transport, &wanted(&SHAPE)).unwrap();
    assert_eq!((again.unfilled.len(), &again.set), (0, &target.set));
    let larger = Shape { file_bytes: SHAPE.file_bytes + 1, files: 4, ..SHAPE };
    let again = prepare(&mut transport, &wanted(&larger)).unwrap();
    assert_eq!(again.unfilled, [0, 1, 2, 3]);
}

#[test]
fn an_export_that_is_not_there_is_told() {
    let mut transport = rig();
    let wanted = nfsplice::load::prepare::Wanted { export: "/nothing".into(), ..wanted(&SHAPE) };
    let error = prepare(&mut transport, &wanted).unwrap_err();
    assert!(matches!(error, PrepareError::MountRefused { status: 2, .. }), "{error}");
    assert!(error.to_string().contains("MOUNT of /nothing: mountstat3 2 (MNT3ERR_NOENT"), "{error}");
}

#[test]
fn wrong_bytes_are_found_and_counted() {
    let (transport, target) = prepared(rig(), &SHAPE);
    // Another order of the files: each holds the pattern of another.
    let mut swapped = target.clone();
    swapped.set.files.swap(0, 1);
    let (_, sample) = carry_out(transport, workload("read", SHAPE, 1), &swapped, job(&target, &SHAPE, 1, 4), counted(90));
    assert_eq!(sample.calls(), 90, "a wrong answer is an answer");
    assert_eq!(sample.faults.verify_failures, 60, "30 READs of each of the two files");
    assert!(sample.faults.wrong_bytes > 60 * 9_900, "{}", sample.faults.wrong_bytes);
}

#[test]
fn a_file_that_is_too_short_makes_short_reads_and_a_stale_handle_an_error() {
    let (transport, target) = prepared(rig(), &SHAPE);
    let believed = Shape { file_bytes: 2 * SHAPE.file_bytes, ..SHAPE };
    let source = workload("read", Shape { files: 1, ..believed }, 1);
    let (transport, sample) = carry_out(transport, source, &target, job(&target, &believed, 1, 4), counted(60));
    assert_eq!(sample.faults.short_reads, 30);
    let mut stale = target.clone();
    stale.set.files[0].handle.reverse();
    let source = workload("getattr", Shape { files: 1, ..SHAPE }, 1);
    let (_, sample) = carry_out(transport, source, &stale, job(&target, &SHAPE, 1, 4), counted(10));
    assert_eq!((sample.calls(), sample.faults.status_errors), (0, 10));
    assert_eq!(sample.statuses.values().sum::<u64>(), 10);
}

#[test]
fn loss_costs_retransmissions_and_nothing_else() {
    let lossy = Impairments { loss_ppm: 10_000, ..Impairments::default() };
    let (transport, target) = prepared(RigTransport::new(&Setup::default(), 4, [lossy; 2]), &SHAPE);
    let source = workload("randread=50,randwrite=50", SHAPE, 4);
    let (mut transport, sample) = carry_out(transport, source, &target, job(&target, &SHAPE, 4, 8), counted(1500));
    assert!(sample.faults.is_clean(), "{:?}", sample.faults);
    assert_eq!(sample.calls(), 1500);
    use nfsplice::load::transport::Transport as _;
    assert!(transport.retransmissions() > 0);
}

#[test]
fn a_connection_for_each_call_is_opened_answered_and_gone() {
    let (transport, target) = prepared(rig(), &SHAPE);
    let before = *transport.server.shard.tcp().counters();
    let job = Job { reconnect: true, ..job(&target, &SHAPE, 5, 1) };
    // More than there are ephemeral ports.
    let (transport, sample) = carry_out(transport, workload("connect", SHAPE, 5), &target, job, counted(20_000));
    assert!(sample.faults.is_clean(), "{:?}", sample.faults);
    assert_eq!((sample.calls(), calls(&sample, Verb::Connect)), (20_000, 20_000));
    let after = transport.server.shard.tcp().counters();
    // Five stand at the start, and end like the others.
    assert_eq!(after.passive_opens - before.passive_opens, 20_005);
    assert!(after.curr_connections <= before.curr_connections + 5 && after.time_wait_entered == before.time_wait_entered);
}

/// A server that stands still for 100 ms of a second with 1,000 arrivals: a tenth of the calls wait, the first of them 100 ms.
/// Sending only after the answer, and measuring from there, would show a single late call.
#[test]
fn an_open_loop_charges_every_arrival_of_a_stall() {
    let (mut transport, target) = prepared(rig(), &SHAPE);
    let stall = transport.now + Duration::from_millis(500);
    transport.stall = Some((stall, stall + Duration::from_millis(100)));
    let schedule = |start| Schedule {
        pace: Pace::Open { rate: 1000.0, arrival: Arrival::Uniform },
        start,
        ramp: Duration::ZERO,
        duration: Some(Duration::from_secs(1)),
        count: None,
    };
    // One call at a time: the generator itself cannot send during the stall.
    let (_, sample) = carry_out(transport, workload("null", SHAPE, 1), &target, job(&target, &SHAPE, 1, 1), schedule);
    let all = sample.all();
    assert!(sample.faults.is_clean(), "{:?}", sample.faults);
    assert!((998..=1000).contains(&all.calls), "{}", all.calls);
    let late = all.latency_ns.count_between(5_000_000, u64::MAX);
    assert!((90..=100).contains(&late), "{late} calls were late");
    let at = |quantile| all.latency_ns.value_at_quantile(quantile);
    assert!((40_000_000..60_000_000).contains(&at(0.95)), "the middle of the stall: {}", at(0.95));
    assert!((95_000_000..102_000_000).contains(&all.latency_ns.max()), "{}", all.latency_ns.max());
    assert!(at(0.5) < 1_000_000);
}

#[test]
fn a_run_ends_with_its_time_and_waits_for_what_is_outstanding() {
    let (transport, target) = prepared(rig(), &SHAPE);
    let begin = transport.now;
    let schedule = |start| Schedule {
        pace: Pace::Closed,
        start,
        ramp: Duration::from_millis(5),
        duration: Some(Duration::from_millis(20)),
        count: None,
    };
    let (transport, sample) = carry_out(transport, workload("randread", SHAPE, 2), &target, job(&target, &SHAPE, 2, 8), schedule);
    let took = transport.now - begin;
    assert!(took >= Duration::from_millis(25) && took < Duration::from_millis(60), "{took:?}");
    let counters = transport.server.shard.programs().nfs3().counters();
    assert!(sample.calls() < counters.calls_read, "the ramp is not measured");
    assert!(sample.faults.is_clean() && sample.calls() > 0);
}

#[test]
fn one_seed_makes_one_run() {
    let run = || {
        let (transport, target) = prepared(rig(), &SHAPE);
        let source = workload("randread=60,getattr=40", SHAPE, 2);
        let (transport, sample) = carry_out(transport, source, &target, job(&target, &SHAPE, 2, 4), counted(500));
        (transport.now, sample.calls(), sample.bytes(), sample.all().latency_ns)
    };
    assert!(run() == run());
}
