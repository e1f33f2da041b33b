//! Several cores behind one address, on a virtual clock: whatever the NIC does with a frame, it reaches the core that its
//! connection belongs to, and what clients are promised does not depend on the core they meet.

mod support;

use nfsplice::net::spread::Spread;
use nfsplice::shard::steering::{self, SteeringCounters};
use nfsplice::time::Duration;
use support::cores::{Choose, Cores};
use support::nfs::{self, Args, CREATE, NFS3ERR_NOENT, READ, REMOVE, WRITE};
use support::server::{NFS_PORT, SERVER_ADDRESS, Setup};

const CORES: u16 = 2;

/// As a NIC with the right key: TCP by the hash, everything else to queue 0.
fn right(frame: &[u8]) -> usize {
    let is_tcp = frame[12..14] == [8, 0] && frame[23] == 6;
    let port = |at: usize| u16::from_be_bytes([frame[at], frame[at + 1]]);
    let source: [u8; 4] = frame[26..30].try_into().unwrap();
    if !is_tcp {
        return 0;
    }
    assert_eq!(port(36), NFS_PORT);
    Spread::in_software(CORES).queue_of((source.into(), port(34)), (SERVER_ADDRESS.into(), NFS_PORT)).into()
}

fn every_other() -> Choose {
    let mut count = 0;
    Box::new(move |_| {
        count += 1;
        count % usize::from(CORES)
    })
}

fn pattern(stream: usize, len: usize) -> Vec<u8> {
    (0..len).map(|at| (at * 31 + stream * 7 + at / 251) as u8).collect()
}

/// A file for each of several connections, written and read through it, and read through the next one.
fn use_files(cores: &mut Cores) {
    let mut streams = cores.connect_to_each();
    streams.extend((0..4).map(|_| cores.connect()));
    let root = cores.root.clone();
    let mut files = Vec::new();
    for (nth, stream) in streams.iter().enumerate() {
        let name = format!("file{nth}");
        let file = cores.call(*stream, CREATE, &nfs::create(&root, name.as_bytes())).ok().created();
        for chunk in 0..4 {
            let data = pattern(nth + chunk, 200_000);
            cores.call(*stream, WRITE, &nfs::write(&file, chunk as u64 * 200_000, &data)).ok();
        }
        files.push(file);
    }
    // All at once, each file through another connection than the one that wrote it.
    let calls: Vec<(usize, usize, u32)> = (0..files.len() * 4)
        .map(|nth| {
            let (file, chunk) = (nth / 4, nth % 4);
            let stream = streams[(file + 1) % streams.len()];
            let read = nfs::read(&files[file], chunk as u64 * 200_000, 200_000);
            (stream, file + chunk, cores.client.call(cores.now, stream, READ, &read))
        })
        .collect();
    for (stream, seed, xid) in calls {
        assert!(cores.wait(stream, xid).ok().data() == pattern(seed, 200_000), "wrong bytes");
    }
}

fn handed_over(cores: &Cores) -> u64 {
    cores.shards.iter().map(|shard| shard.steering_counters().handed_over).sum()
}

#[test]
fn a_nic_that_hashes_as_we_do_leaves_nothing_to_hand_over() {
    let mut cores = Cores::new(&Setup::default(), CORES, Box::new(right));
    use_files(&mut cores);
    assert_eq!(handed_over(&cores), 0);
    for shard in &cores.shards {
        assert!(shard.tcp().counters().passive_opens > 0, "each core has connections");
    }
    cores.close_all();
}

#[test]
fn whatever_the_nic_does_segments_reach_their_owner() {
    let wrong: [(&str, Choose); 3] = [
        ("no RSS: one queue gets all", Box::new(|_| 0)),
        ("another key: always the other core", Box::new(|frame| 1 - right(frame))),
        ("every other frame", every_other()),
    ];
    for (what, choose) in wrong {
        let mut cores = Cores::new(&Setup::default(), CORES, choose);
        use_files(&mut cores);
        let opens: Vec<u64> = cores.shards.iter().map(|shard| shard.tcp().counters().passive_opens).collect();
        assert!(opens.iter().all(|opens| *opens > 0), "{what}: {opens:?}");
        let counters: Vec<_> = cores.shards.iter().map(|shard| shard.steering_counters()).collect();
        let sum = |of: fn(&SteeringCounters) -> u64| counters.iter().map(of).sum::<u64>();
        assert!(sum(|c| c.handed_over) > 0, "{what}");
        assert_eq!((sum(|c| c.handed_over), sum(|c| c.inbox_full)), (sum(|c| c.taken_over), 0), "{what}");
        // A segment that is not its owner's is not answered with a reset by anybody.
        let resets: u64 = cores.shards.iter().map(|shard| shard.tcp().counters().out_rsts).sum();
        assert_eq!(resets, 0, "{what}");
        let woken = cores.woken.iter().map(|count| count.load(std::sync::atomic::Ordering::Relaxed)).sum::<usize>();
        assert!(woken > 0, "{what}: nobody was woken");
        cores.close_all();
    }
}

#[test]
fn every_core_learns_the_neighbour_that_one_of_them_met() {
    // Requests for the server's address come to queue 0 only.
    let mut cores = Cores::new(&Setup::default(), CORES, Box::new(right));
    cores.connect_to_each();
    for shard in &cores.shards {
        let interface = &shard.lanes()[0].interface;
        assert!(interface.neighbour(support::client::CLIENT_ADDRESS.into()).is_some());
        assert_eq!(interface.neighbour_counters().solicitations, 0, "it had to ask");
    }
    let answered: u64 = cores.shards.iter().map(|shard| shard.lanes()[0].interface.counters().arp_requests_in).sum();
    assert_eq!(answered, 1, "one core answers, and counts");
    assert!(cores.shards[0].steering_counters().neighbour_copies > 0);
}

#[test]
fn a_full_inbox_drops_and_counts_and_the_connection_goes_on() {
    let small = steering::Options { inbox_frames_max: 4, ..steering::Options::default() };
    let mut cores = Cores::with_inboxes(&Setup::default(), CORES, Box::new(|_| 0), small);
    let streams = cores.connect_to_each();
    let root = cores.root.clone();
    let file = cores.call(streams[1], CREATE, &nfs::create(&root, b"f")).ok().created();
    cores.stopped[1] = true;
    let data = pattern(3, 300_000);
    let xid = cores.client.call(cores.now, streams[1], WRITE, &nfs::write(&file, 0, &data));
    cores.run(Duration::from_secs(2), |_| false);
    let dropped = cores.shards[0].steering_counters().inbox_full;
    assert!(dropped > 0, "the inbox took everything");
    cores.stopped[1] = false;
    cores.wait(streams[1], xid).ok();
    let read = cores.call(streams[0], READ, &nfs::read(&file, 0, 300_000)).ok().data();
    assert!(read == data);
    cores.close_all();
}

#[test]
fn a_call_repeated_over_another_core_gets_its_first_answer() {
    let mut cores = Cores::new(&Setup::default(), CORES, Box::new(right));
    let streams = cores.connect_to_each();
    let root = cores.root.clone();
    // GUARDED: done twice it would fail with NFS3ERR_EXIST.
    let create = Args::new().opaque(&root).opaque(b"once").u32(1).u32(1).u32(0o644).u32(0).u32(0).u32(0).u32(0).u32(0);
    let remove = Args::new().opaque(&root).opaque(b"once");
    for (procedure, arguments) in [(CREATE, &create), (REMOVE, &remove)] {
        let xid = cores.client.next_xid();
        let record = nfs::record(&nfs::call(xid, procedure, arguments));
        let answers = [0, 1].map(|core: usize| {
            cores.client.send(cores.now, streams[core], &record);
            cores.wait(streams[core], xid).ok().rest().to_vec()
        });
        assert_eq!(answers[0], answers[1], "procedure {procedure}");
    }
    assert_eq!(cores.shards[1].rpc().counters().duplicates_replayed, 2);
    assert_eq!(cores.shards[0].rpc().counters().duplicates_replayed, 0);
    let mut again = cores.call(streams[1], REMOVE, &remove);
    assert_eq!(again.u32(), NFS3ERR_NOENT, "a call of its own");
    cores.close_all();
    assert_eq!(cores.data_pages(), 0);
}
