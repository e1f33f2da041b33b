//! The whole server under seeded faults of the link, against a model of what is in its files.
//!
//! `SIM_SEEDS=n` runs so many seeds (`make sim SEEDS=n`), `SIM_FIRST=s` begins there, `SIM_SEED=s` runs one again, `SIM_TRACE=1` prints a
//! line per event, `SIM_TRACE=segments` one per segment, too.
//! A seed decides everything: faults, devices, limits, IPv4 or IPv6, a VLAN, congestion control and marks, what clients ask; when the
//! link is cut, in one direction or both, when its MTU falls or rises and whether senders are told, when the clock leaps, how little memory there is. Seeds are shared out among threads. What must hold in each:
//! - every call gets one answer, and a right one: a READ shows the file as it was at some moment between call and reply;
//! - what the server has sent once at a place of a stream never changes, nor does a page that a device still holds;
//! - packets stay in proportion to what both ends had to say;
//! - each TCP segment of either end is right, given what had reached it (`support::judge`), and no timer is overdue or missing;
//! - nobody is cut off, everything is answered in the end, and then nothing is held any more.

#[path = "../src/tcp/tests/campaign.rs"]
mod campaign;
mod support;

use std::cell::RefCell;
use std::collections::{BTreeMap, HashSet};
use std::rc::Rc;

use nfsplice::buf::PagePool;
use nfsplice::counters::Counters;
use nfsplice::net::memory_link::{EndOptions, Impairments, Random};
use nfsplice::tcp::{self, CongestionControl, Ecn};
use nfsplice::time::{Duration, Instant};
use nfsplice::wire::tcp::Flags;
use support::court::Court;
use support::judge::Tally;
use support::nfs::{self, Answer, Args};
use support::server::Setup;
use support::witness::{Witness, segment};
use support::{CLIENT, CLIENT_MAC, LinkRig, SERVER, SERVER_MAC};

/// As the server's binary has it; large vectors come and go all the time here.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Seeds of a plain test run.
const SEEDS: u64 = 1000;
const FILES: usize = 3;
const CLIENTS: usize = 3;
const FILE_BYTES_MAX: u64 = 300_000;
const CALLS: usize = 250;
/// Calls of one client that wait for answers.
const CALLS_WAITING_MAX: usize = 6;
/// A call that is not answered for so long is sent again, as clients do.
const RETRANSMIT: Duration = Duration::from_secs(15);
/// Each time it waits twice as long, up to 16 minutes: calls that are repeated faster than a poor link takes the answers away would never
/// all be answered.
const RETRANSMIT_DOUBLINGS_MAX: u32 = 6;
/// Virtual time in which everything must have been answered.
const DEADLINE: Duration = Duration::from_secs(3600);

fn pick<T: Copy>(random: &mut Random, from: &[T]) -> T {
    from[random.below(from.len() as u64) as usize]
}

/// A shared file: all contents it ever had. At most one change is under way.
struct File {
    name: Vec<u8>,
    handle: Vec<u8>,
    versions: Vec<Rc<Vec<u8>>>,
    /// The newest version whose change was answered.
    confirmed: usize,
}

impl File {
    fn changing(&self) -> bool {
        self.confirmed + 1 < self.versions.len()
    }

    /// What the file may have been since version `from`.
    fn since(&self, from: usize) -> impl Iterator<Item = &Rc<Vec<u8>>> {
        self.versions[from..].iter()
    }
}

#[derive(Clone, Debug)]
enum Kind {
    Null,
    Attributes {
        file: usize,
        from: usize,
    },
    Lookup {
        file: usize,
        from: usize,
    },
    Read {
        file: usize,
        from: usize,
        offset: usize,
        count: usize,
    },
    Change {
        file: usize,
        data: Option<usize>,
    },
    /// An operation on the client's own names, and the status it must have.
    Own {
        status: u32,
    },
}

struct Waiting {
    client: usize,
    procedure: u32,
    message: Vec<u8>,
    kind: Kind,
    sent: Instant,
    repeats: u32,
}

struct SimClient {
    stream: usize,
    waiting: usize,
    /// The client's own name exists; `None` while that is being changed.
    own: Option<bool>,
    own_next: bool,
}

/// What one side has sent, over all connections.
#[derive(Clone, Copy, Debug)]
struct Traffic {
    /// Of every kind.
    packets: u64,
    /// With text that was not sent before, and bytes of it.
    new: u64,
    new_bytes: u64,
    /// With text, new or sent again; how often it may be sent again is `check_repetitions`' part.
    text: u64,
    /// The other side's packets with text, lost or not, and copies that the link made.
    text_in: u64,
    /// Calls or replies.
    records: u64,
}

impl Traffic {
    /// Packets that go with no call: handshakes, neighbours, probes, windows that open.
    const BEYOND: u64 = 200;
    /// Text of a full packet on the narrowest path (`Outages::path_mtus`), less what options take.
    const TEXT_MIN: u64 = 512;

    fn check(&self) -> Result<(), &'static str> {
        // The end of each record, and what a window that is as good as full cuts off of it.
        if self.new > Self::BEYOND + 2 * self.records + self.new_bytes / Self::TEXT_MIN {
            return Err("too many packets for this much text");
        }
        // An ACK is due for text, and for hardly anything else (RFC 9293 section 3.8.6.3): an end that answers ACKs with ACKs, or says one
        // twice, is beyond it.
        if self.packets > Self::BEYOND + self.text + self.text_in {
            return Err("too many packets without text");
        }
        Ok(())
    }
}

struct Simulation {
    seed: u64,
    trace: bool,
    random: Random,
    rig: LinkRig,
    files: Vec<File>,
    clients: Vec<SimClient>,
    waiting: BTreeMap<u32, Waiting>,
    /// Calls that were sent more than once: a second answer may come.
    repeated: HashSet<u32>,
    may_abort: bool,
    outages: Outages,
    court: Court,
    made: usize,
    answered: usize,
}

fn impairments(random: &mut Random) -> Impairments {
    let delay = Duration::from_micros(pick(random, &[20, 500, 5_000, 40_000]));
    Impairments {
        loss_ppm: pick(random, &[0, 1_000, 10_000, 50_000]),
        burst_start_ppm: pick(random, &[0, 0, 500, 3_000]),
        burst_end_ppm: 300_000,
        duplicate_ppm: pick(random, &[0, 2_000, 30_000]),
        corrupt_ppm: pick(random, &[0, 1_000, 10_000]),
        reorder_ppm: pick(random, &[0, 5_000, 100_000]),
        // Shorter than a handshake: nothing of an old connection comes after the calls of the next one.
        reorder_delay: delay * 7 / 10,
        delay,
        rate_bits_per_second: pick(random, &[0, 0, 100_000_000]),
        queue_bytes_max: pick(random, &[0, 64_000]),
        ..Impairments::default()
    }
}

fn setup(random: &mut Random) -> (Setup, bool) {
    let small = random.chance(300_000);
    let limit = if small { 150_000 } else { 4 << 20 };
    let congestion = pick(random, &[CongestionControl::NewReno, CongestionControl::Cubic]);
    let block_bytes = pick(random, &[4096, 65_536]);
    let mut setup = Setup {
        mtu: pick(random, &[1500, 9000, 600]),
        block_bytes,
        // Small pools: a page is used again soon, and what is wrong with that shows.
        cache_blocks: (12 << 20) / block_bytes,
        fragments: PagePool::anonymous(128, 64 << 10),
        parking: random.chance(500_000).then(|| random.draw()),
        ..Setup::default()
    }
    .send_queue_bytes_max(limit);
    setup.tcp.congestion = congestion;
    setup.tcp.sack = random.chance(800_000);
    setup.tcp.timestamps = random.chance(800_000);
    // A burst of loss is counted in frames, so a lone retransmission now and then can take long to get through one.
    (setup.tcp.user_timeout, setup.client_tcp.user_timeout) = (DEADLINE, DEADLINE);
    setup.rpc.record_timeout = DEADLINE;
    // A server that a cut link keeps from hearing anything cannot tell that from a client with nothing to ask.
    setup.rpc.idle_timeout = 2 * DEADLINE;
    // Nor does a call that is repeated behind cuts of the link run twice because its first answer was forgotten.
    setup.rpc.drc.expiry = DEADLINE;
    (setup.tcp.syn_ack_retries_max, setup.client_tcp.syn_retries_max) = (12, 12);
    setup.client_tcp = tcp::Options {
        receive_window_max: pick(random, &[20_000, 200_000, 2 << 20]),
        sack: random.chance(800_000),
        nagle: random.chance(300_000),
        ..setup.client_tcp
    };
    // A call that waits unread at the server when its connection is given up may run after its repetition did, and then undo a
    // later change. That is NFS over TCP, not this server: only where no call waits are connections given up.
    (setup, !small)
}

/// Half the seeds run over IPv6, a quarter in a VLAN.
fn network(seed: u64, setup: &mut Setup) {
    // Random numbers of its own: the rest of a seed stays what it is.
    let mut random = Random::new(!seed);
    setup.ipv6 = random.chance(500_000);
    setup.vlan = random.chance(250_000).then_some(42);
    if setup.ipv6 {
        setup.mtu = setup.mtu.max(1280);
    }
}

/// A quarter of the seeds have hardly any memory for reply heads and for what is copied out of the driver's buffers.
fn memory(seed: u64, setup: &mut Setup) {
    let mut random = Random::new(seed ^ 0x3e3);
    if random.chance(250_000) {
        setup.fragments = PagePool::anonymous(40, 16 << 10);
    }
}

/// Congestion control, marks, pacing, jitter, windows of a few segments.
fn congestion(seed: u64, faults: &mut [Impairments; 2], setup: &mut Setup) {
    // Random numbers of its own, as in `network`.
    let mut random = Random::new(seed ^ 0xec9);
    let near = faults.iter().all(|faults| faults.delay <= Duration::from_micros(500));
    for faults in faults {
        // Shorter than a handshake, together with what takes longer to be overtaken.
        faults.jitter = pick(&mut random, &[Duration::ZERO, Duration::ZERO, faults.delay / 10, faults.delay / 2]);
        faults.mark_ppm = pick(&mut random, &[0, 10_000, 200_000]);
    }
    for options in [&mut setup.tcp, &mut setup.client_tcp] {
        options.ecn = pick(&mut random, &[Ecn::Off, Ecn::Accept, Ecn::Request, Ecn::Request]);
        options.pacing = random.chance(250_000);
        options.path_mtu_raise = Duration::from_secs(pick(&mut random, &[2, 600]));
        if random.chance(250_000) {
            options.congestion = CongestionControl::Dctcp;
        }
    }
    if near && random.chance(500_000) {
        setup.client_tcp.receive_window_max = pick(&mut random, &[3_000, 6_000]);
    }
}

/// A third of the devices join segments on their way in, in buffers of many sizes.
fn coalescing(seed: u64, ends: &mut [EndOptions; 2]) {
    // Random numbers of its own, as in `network`.
    let mut random = Random::new(seed.rotate_left(32));
    for end in ends {
        let buffer_bytes = 16 << random.below(9);
        end.rx_coalesce = random.chance(333_333).then_some(buffer_bytes as usize);
    }
}

/// What happens to a link and a clock for a while, in a part of the seeds.
struct Outages {
    /// Random numbers of its own, as in `network`.
    random: Random,
    /// Cuts per million acts, leaps of the clock per million.
    cut_ppm: u32,
    leap_ppm: u32,
    /// Changes of a direction's MTU per million acts, and to what.
    narrow_ppm: u32,
    path_mtus: [u16; 3],
    /// What to go back to, and when.
    usual: [Impairments; 2],
    mends: Option<Instant>,
}

/// How long a link stays cut, at most.
const CUT_MAX: Duration = Duration::from_secs(20);
/// How far the clock leaps, at most: nothing runs meanwhile.
const LEAP_MAX: Duration = Duration::from_secs(5);
impl Outages {
    fn new(seed: u64, usual: [Impairments; 2], ipv6: bool) -> Outages {
        let mut random = Random::new(seed ^ 0x0c07);
        let cut_ppm = pick(&mut random, &[0, 0, 3_000]);
        let leap_ppm = pick(&mut random, &[0, 0, 3_000]);
        let narrow_ppm = pick(&mut random, &[0, 0, 5_000]);
        // No link with IPv6 takes less.
        let path_mtus = if ipv6 { [0, 1400, 1280] } else { [0, 1400, 600] };
        Outages { random, cut_ppm, leap_ppm, narrow_ppm, path_mtus, usual, mends: None }
    }

    /// Cuts the link, one direction or both, or mends it.
    fn cut_or_mend(&mut self, rig: &LinkRig) {
        if self.mends.is_none() && self.random.chance(self.cut_ppm) {
            let dead = Impairments { loss_ppm: 1_000_000, ..Impairments::default() };
            let sides = pick(&mut self.random, &[0..1, 1..2, 0..2].map(|sides| (sides.start, sides.end)));
            (sides.0..sides.1).for_each(|side| rig.cable.set_impairments(side, dead));
            self.mends = Some(rig.now + Duration::from_nanos(self.random.below(CUT_MAX.as_nanos() as u64)));
        } else if self.mends.is_some_and(|at| rig.now >= at) {
            self.mend(rig);
        }
    }

    fn mend(&mut self, rig: &LinkRig) {
        self.mends = None;
        (0..2).for_each(|side| rig.cable.set_impairments(side, self.usual[side]));
    }

    /// The MTU of the path changes in one direction. Half of the paths tell it.
    fn narrow_or_widen(&mut self, rig: &LinkRig) {
        if self.random.chance(self.narrow_ppm) {
            let side = self.random.below(2) as usize;
            self.usual[side].path_mtu = pick(&mut self.random, &self.path_mtus);
            self.usual[side].tells_mtu = self.random.chance(500_000);
            if self.mends.is_none() {
                rig.cable.set_impairments(side, self.usual[side]);
            }
        }
    }

    fn leap(&mut self) -> Duration {
        match self.random.chance(self.leap_ppm) {
            true => Duration::from_nanos(self.random.below(LEAP_MAX.as_nanos() as u64)),
            false => Duration::ZERO,
        }
    }
}

impl Simulation {
    fn new(seed: u64) -> Simulation {
        let mut random = Random::new(seed);
        let mut faults = [impairments(&mut random), impairments(&mut random)];
        let (mut setup, may_abort) = setup(&mut random);
        network(seed, &mut setup);
        memory(seed, &mut setup);
        congestion(seed, &mut faults, &mut setup);
        let mut end = |mac| match random.chance(500_000) {
            true => EndOptions::offloading(mac, setup.mtu),
            false => EndOptions::plain(mac, setup.mtu),
        };
        let mut ends = [end(CLIENT_MAC), end(SERVER_MAC)];
        coalescing(seed, &mut ends);
        let mut rig = support::on_link(&setup, random.draw(), faults, ends);
        let court = Court::of(&rig.cable, setup.mtu);
        rig.server.device().hold_transmitted();
        rig.cable.set_filter(SERVER, Some(Witness::default().filter(|_, _| true)));
        let trace = std::env::var_os("SIM_TRACE").is_some();
        if trace {
            eprintln!("seed {seed}: mtu {} IPv6 {} VLAN {:?} {faults:?}", setup.mtu, setup.ipv6, setup.vlan);
        }
        let (clients, files) = (Vec::new(), Vec::new());
        let (waiting, repeated) = (BTreeMap::new(), HashSet::new());
        let outages = Outages::new(seed, faults, setup.ipv6);
        Simulation {
            seed,
            trace,
            random,
            rig,
            files,
            clients,
            waiting,
            repeated,
            may_abort,
            outages,
            court,
            made: 0,
            answered: 0,
        }
    }

    fn say(&self, text: std::fmt::Arguments<'_>) {
        if self.trace {
            eprintln!("{:>12} {text}", self.rig.now.nanos() / 1000);
        }
    }

    fn bytes(&mut self, len: usize) -> Vec<u8> {
        let mut word = Random::new(self.random.draw());
        let mut bytes = vec![0; len];
        for part in bytes.chunks_mut(8) {
            part.copy_from_slice(&word.draw().to_be_bytes()[..part.len()]);
        }
        bytes
    }

    fn prepare(&mut self) {
        for _ in 0..CLIENTS {
            let stream = self.rig.connect();
            self.clients.push(SimClient { stream, waiting: 0, own: Some(false), own_next: false });
        }
        let stream = self.clients[0].stream;
        for number in 0..FILES {
            let name = format!("file{number}").into_bytes();
            let handle = self.rig.create(stream, &name);
            self.files.push(File { name, handle, versions: vec![Rc::new(Vec::new())], confirmed: 0 });
        }
    }

    // ---- Calls ----

    fn issue(&mut self, client: usize, procedure: u32, arguments: &Args, kind: Kind) {
        let xid = self.rig.client.next_xid();
        let message = nfs::call(xid, procedure, arguments);
        self.say(format_args!("client {client} calls {xid}: procedure {procedure} {kind:?}"));
        self.rig.client.send(self.rig.now, self.clients[client].stream, &nfs::record(&message));
        self.clients[client].waiting += 1;
        self.made += 1;
        self.waiting.insert(xid, Waiting { client, procedure, message, kind, sent: self.rig.now, repeats: 0 });
    }

    fn issue_random(&mut self, client: usize) {
        let at = self.random.below(FILES as u64) as usize;
        let (handle, from, changing) = (self.files[at].handle.clone(), self.files[at].confirmed, self.files[at].changing());
        let root = self.rig.server.root.clone();
        match self.random.below(20) {
            0 => self.issue(client, nfs::NULL, &Args::new(), Kind::Null),
            1 => self.issue(client, nfs::GETATTR, &Args::new().opaque(&handle), Kind::Attributes { file: at, from }),
            2 => {
                let arguments = Args::new().opaque(&root).opaque(&self.files[at].name);
                self.issue(client, nfs::LOOKUP, &arguments, Kind::Lookup { file: at, from });
            }
            3..=5 => self.issue_own(client),
            6..=8 if !changing => self.issue_write(client, at),
            9 if !changing => {
                let size = self.random.below(FILE_BYTES_MAX);
                let mut content = self.files[at].versions[from].to_vec();
                content.resize(size as usize, 0);
                self.files[at].versions.push(Rc::new(content));
                self.issue(client, nfs::SETATTR, &nfs::set_size(&handle, size), Kind::Change { file: at, data: None });
            }
            _ => {
                let offset = self.random.below(FILE_BYTES_MAX) as usize;
                let count = pick(&mut self.random, &[1usize, 500, 4096, 30_000, 200_000]);
                let kind = Kind::Read { file: at, from, offset, count };
                self.issue(client, nfs::READ, &nfs::read(&handle, offset as u64, count as u32), kind);
            }
        }
    }

    fn issue_write(&mut self, client: usize, at: usize) {
        let len = pick(&mut self.random, &[1usize, 100, 4096, 20_000, 100_000]);
        let offset = self.random.below(FILE_BYTES_MAX - len as u64) as usize;
        let data = self.bytes(len);
        let file = &mut self.files[at];
        let mut content = file.versions[file.confirmed].to_vec();
        content.resize(content.len().max(offset + len), 0);
        content[offset..offset + len].copy_from_slice(&data);
        file.versions.push(Rc::new(content));
        let arguments = nfs::write(&file.handle, offset as u64, &data);
        self.issue(client, nfs::WRITE, &arguments, Kind::Change { file: at, data: Some(len) });
    }

    /// CREATE (GUARDED), REMOVE and LOOKUP of a name nobody else uses: a second execution would show in the status.
    fn issue_own(&mut self, client: usize) {
        let Some(exists) = self.clients[client].own else { return };
        let root = self.rig.server.root.clone();
        let name = format!("own{client}").into_bytes();
        let what = Args::new().opaque(&root).opaque(&name);
        if self.random.chance(300_000) {
            // Nothing changes it meanwhile only if nothing else is allowed to begin.
            (self.clients[client].own, self.clients[client].own_next) = (None, exists);
            let status = if exists { nfs::NFS3_OK } else { nfs::NFS3ERR_NOENT };
            return self.issue(client, nfs::LOOKUP, &what, Kind::Own { status });
        }
        (self.clients[client].own, self.clients[client].own_next) = (None, !exists);
        let kind = Kind::Own { status: nfs::NFS3_OK };
        if exists {
            self.issue(client, nfs::REMOVE, &what, kind);
        } else {
            let create = what.u32(1).u32(0).u32(0).u32(0).u32(0).u32(0).u32(0);
            self.issue(client, nfs::CREATE, &create, kind);
        }
    }

    // ---- Answers ----

    fn collect(&mut self) {
        for client in 0..self.clients.len() {
            let stream = self.clients[client].stream;
            while let Some(reply) = self.rig.client.streams[stream].replies.pop_front() {
                self.check(client, reply);
            }
        }
    }

    fn check(&mut self, client: usize, reply: Vec<u8>) {
        let (xid, mut answer) = nfs::accepted(reply).unwrap_or_else(|reply| panic!("not accepted: {reply:?}"));
        self.say(format_args!("client {client} gets {xid}: {} bytes", answer.bytes.len()));
        let Some(waiting) = self.waiting.remove(&xid) else {
            assert!(self.repeated.contains(&xid), "a second answer to {xid}");
            return;
        };
        assert_eq!(waiting.client, client, "the answer to {xid} came to another client");
        self.clients[client].waiting -= 1;
        self.answered += 1;
        match waiting.kind {
            Kind::Null => assert_eq!(answer.rest(), b""),
            Kind::Own { status } => {
                assert_eq!(answer.u32(), status, "status of {xid}, procedure {}", waiting.procedure);
                self.clients[client].own = Some(self.clients[client].own_next);
            }
            Kind::Change { file, data } => {
                let mut answer = answer.ok();
                answer.wcc();
                if let Some(len) = data {
                    assert_eq!(answer.u32() as usize, len, "all was written");
                }
                self.files[file].confirmed = self.files[file].versions.len() - 1;
            }
            Kind::Attributes { file, from } => {
                let size = answer.ok().fattr();
                assert!(self.files[file].since(from).any(|content| content.len() as u64 == size), "size {size}");
            }
            Kind::Lookup { file, from } => {
                let mut answer = answer.ok();
                assert_eq!(answer.opaque(), self.files[file].handle);
                let size = answer.attributes().expect("attributes");
                assert!(self.files[file].since(from).any(|content| content.len() as u64 == size), "size {size}");
            }
            Kind::Read { file, from, offset, count } => self.check_read(xid, &self.files[file], from, offset, count, answer),
        }
    }

    fn check_read(&self, xid: u32, file: &File, from: usize, offset: usize, count: usize, answer: Answer) {
        let data = answer.ok().data();
        let part = |content: &Rc<Vec<u8>>| {
            let start = offset.min(content.len());
            content[start..content.len().min(start + count)] == data
        };
        assert!(file.since(from).any(part), "READ {xid}: {} bytes that the file never had there meanwhile", data.len());
    }

    // ---- What clients do besides ----

    /// Gives the connection up and goes on with a new one, repeating every call that was not answered.
    fn reconnect(&mut self, client: usize) {
        self.say(format_args!("client {client} reconnects"));
        let now = self.rig.now;
        self.rig.client.abort(now, self.clients[client].stream);
        let stream = self.rig.client.connect(now);
        self.clients[client].stream = stream;
        self.repeat(client, Duration::ZERO);
    }

    fn repeat(&mut self, client: usize, older_than: Duration) {
        let now = self.rig.now;
        let stream = self.clients[client].stream;
        for (xid, waiting) in self.waiting.iter_mut() {
            if waiting.client == client && now.since(waiting.sent) >= older_than * (1 << waiting.repeats) {
                waiting.sent = now;
                waiting.repeats = (waiting.repeats + 1).min(RETRANSMIT_DOUBLINGS_MAX);
                self.repeated.insert(*xid);
                self.rig.client.send(now, stream, &nfs::record(&waiting.message));
            }
        }
    }

    fn act(&mut self) {
        let client = self.random.below(CLIENTS as u64) as usize;
        let stream = self.clients[client].stream;
        match self.random.below(100) {
            0 if self.may_abort => self.reconnect(client),
            1..=3 => self.rig.client.streams[stream].reads = false,
            4..=20 => self.rig.client.resume(self.rig.now, stream),
            _ if self.made < CALLS && self.clients[client].waiting < CALLS_WAITING_MAX => self.issue_random(client),
            _ => {}
        }
    }

    fn run(&mut self) {
        self.run_with(|_| ());
    }

    /// `meddle` has its say each time that both ends have been busy.
    fn run_with(&mut self, mut meddle: impl FnMut(&mut LinkRig)) {
        self.prepare();
        let end = self.rig.now + DEADLINE;
        while self.made < CALLS || !self.waiting.is_empty() {
            if self.rig.now >= end {
                let ends: Vec<String> = self.clients.iter().map(|client| self.rig.describe(client.stream)).collect();
                panic!("{} calls are not answered: {:?}\n{}", self.waiting.len(), self.waiting.keys(), ends.join("\n"));
            }
            self.act();
            self.outages.cut_or_mend(&self.rig);
            self.outages.narrow_or_widen(&self.rig);
            self.rig.now += self.outages.leap();
            let pause = Duration::from_micros(self.random.below(pick(&mut self.random.clone(), &[50, 3_000, 100_000])));
            let until = self.rig.now + pause;
            self.rig.run(pause, |rig| rig.now >= until);
            meddle(&mut self.rig);
            self.collect();
            for client in 0..CLIENTS {
                let stream = &self.rig.client.streams[self.clients[client].stream];
                assert_eq!(stream.closed, None, "client {client} was cut off: {}", self.counters());
                self.repeat(client, RETRANSMIT);
            }
            assert!(self.rig.server.device().release_transmitted(), "a page changed while a device held it");
            self.check_timers();
        }
        self.finish();
    }

    /// Once everything at this instant has happened, no timer is overdue, and what was sent waits for one.
    fn check_timers(&mut self) {
        self.rig.settle();
        let now = self.rig.now;
        let (server, client) = (&self.rig.server.shard, &self.rig.client.tcp);
        for (tcp, next) in [(server.tcp(), server.poll_timeout()), (client, client.poll_timeout())] {
            assert!(next.is_none_or(|next| next > now), "a timer is overdue: {next:?} at {now:?}");
            let waits = tcp.connections().filter_map(|id| tcp.info(id)).any(|info| info.outstanding_bytes > 0);
            assert!(tcp.poll_timeout().is_some() || !waits, "nothing will send again what is on its way");
        }
    }

    /// What was sent again although it had arrived stays in proportion, by the measure of ends without memory, and so does what was sent
    /// again because it had not.
    fn check_repetitions(&self) {
        for ends in self.court.repetitions() {
            for own in ends {
                assert!(own.repaired_bytes <= own.repaired_bytes_max(), "{ends:?}");
                assert!(!own.repeats_without_end(), "{ends:?}");
            }
        }
    }

    /// What both ends have sent stays in proportion to what they had to say.
    fn check_packets(&self) {
        let ends = self.court.repetitions();
        let sum = |side: usize, part: fn(&Tally) -> u64| ends.iter().map(|end| part(&end[side])).sum::<u64>();
        let text = |tally: &Tally| tally.new + tally.repaired + tally.repeated;
        for (side, name) in [(CLIENT, "clients"), (SERVER, "server")] {
            let traffic = Traffic {
                packets: self.rig.cable.counters(side).sent,
                new: sum(side, |tally| tally.new),
                new_bytes: sum(side, |tally| tally.new_bytes),
                text: sum(side, text),
                text_in: sum(1 - side, text) + self.rig.cable.counters(1 - side).duplicated,
                records: self.made as u64,
            };
            if let Err(complaint) = traffic.check() {
                panic!("{complaint}, of the {name}: {traffic:?}");
            }
        }
    }

    /// What the server counted that is not zero, for the message of a seed that failed.
    fn counters(&self) -> String {
        let shard = &self.rig.server.shard;
        let layers: [&dyn Counters; 4] =
            [shard.tcp().counters(), shard.rpc().counters(), shard.counters(), shard.programs().nfs3().counters()];
        let mut text = String::new();
        for layer in layers {
            layer.visit(&mut |name, value| {
                if value != 0 {
                    text += &format!("{name} {value} ");
                }
            });
        }
        text
    }

    fn finish(&mut self) {
        assert_eq!(self.answered, self.made);
        self.outages.mend(&self.rig);
        let stream = self.rig.connect();
        for client in &self.clients {
            self.rig.client.resume(self.rig.now, client.stream);
        }
        for at in 0..FILES {
            let want = self.files[at].versions.last().expect("one at least").clone();
            let handle = self.files[at].handle.clone();
            assert!(self.rig.read(stream, &handle, 0, 1 << 20) == *want, "the last version of file {at}");
            let name = self.files[at].name.clone();
            self.rig.remove(stream, &name);
        }
        for client in 0..CLIENTS {
            if self.clients[client].own == Some(true) {
                self.rig.remove(stream, format!("own{client}").as_bytes());
            }
        }
        self.rig.close_all();
        self.check_packets();
        self.check_repetitions();
        assert!(self.rig.server.device().release_transmitted());
        assert_eq!(self.rig.server.pages_out(), (0, 0), "pages of files, of fragments");
        assert_eq!(self.rig.server.shard.counters().replies_refused, 0);
        self.say(format_args!("seed {} is done: {:?}", self.seed, self.rig.server.shard.tcp().counters()));
    }
}

/// RFC 1191 section 4, RFC 8201 section 4: what a router says finds its way through interface and shard into TCP.
#[test]
fn a_link_that_takes_less_and_says_so_costs_each_end_no_timeout() {
    for (ipv6, vlan, path_mtu) in [(false, None, 600), (false, Some(42), 1400), (true, None, 1280)] {
        let setup = Setup { ipv6, vlan, ..Setup::default() };
        let narrow = Impairments { path_mtu, tells_mtu: true, delay: Duration::from_millis(1), ..Impairments::default() };
        let ends = [EndOptions::plain(CLIENT_MAC, setup.mtu), EndOptions::offloading(SERVER_MAC, setup.mtu)];
        let mut rig = support::on_link(&setup, 0, [narrow; 2], ends);
        let stream = rig.connect();
        let file = rig.create(stream, b"file");
        let data: Vec<u8> = (0..100_000).map(|n| (n % 251) as u8).collect();
        rig.write(stream, &file, 0, &data);
        assert!(rig.read(stream, &file, 0, 100_000) == data);
        for (side, tcp) in [&rig.client.tcp, rig.server.shard.tcp()].into_iter().enumerate() {
            let path_mtus: Vec<_> = tcp.connections().filter_map(|id| tcp.info(id)).map(|info| info.path_mtu).collect();
            assert_eq!(path_mtus, [Some(path_mtu)], "side {side}");
            let tcp::TcpCounters { pmtu_reductions, pmtu_black_holes, rto_timeouts, .. } = *tcp.counters();
            assert_eq!((pmtu_reductions, pmtu_black_holes, rto_timeouts), (1, 0, 0), "side {side}, {path_mtu}");
            assert!(rig.cable.counters(side).too_long_told > 0);
        }
    }
}

#[test]
fn every_call_gets_one_right_answer_whatever_the_link_does() {
    let again = |seed| format!("SIM_SEED={seed} SIM_TRACE=1 cargo test --no-default-features --test simulation");
    campaign::run(campaign::seeds("SIM", SEEDS), again, |seed| Simulation::new(seed).run());
}

/// The server says the last thing again that it has said, if that was an empty ACK.
#[test]
#[should_panic(expected = "too many packets without text, of the server")]
fn a_storm_of_empty_acks_is_seen() {
    let mut simulation = Simulation::new(0);
    let last = Rc::new(RefCell::new(Vec::new()));
    let heard = last.clone();
    let remember = move |frame: &[u8]| {
        let empty = segment(frame).is_some_and(|(repr, text)| repr.flags == Flags::ACK && text.is_empty());
        *heard.borrow_mut() = if empty { frame.to_vec() } else { Vec::new() };
        true
    };
    simulation.rig.cable.set_filter(SERVER, Some(Box::new(remember)));
    simulation.run_with(|rig| {
        let frame = last.borrow().clone();
        if !frame.is_empty() {
            (0..5).for_each(|_| rig.server.device().inject(frame.clone()));
        }
    });
}

#[test]
fn packets_can_be_out_of_proportion() {
    let right = Traffic { packets: 2_200, new: 700, new_bytes: 204_800, text: 800, text_in: 1_200, records: 50 };
    assert_eq!(right.check(), Ok(()));
    let bytewise = Traffic { new: 204_800, text: 204_800, packets: 204_800, ..right };
    for wrong in
        [Traffic { new: 701, ..right }, bytewise, Traffic { packets: 2_201, ..right }, Traffic { text_in: 1_199, ..right }]
    {
        assert!(wrong.check().is_err(), "{wrong:?}");
    }
}

/// Every frame of both ends, and what became of it when.
#[test]
fn a_seed_is_the_same_run_each_time() {
    let frames = |seed| {
        let mut simulation = Simulation::new(seed);
        simulation.court.write_down();
        simulation.run();
        simulation.court.written_down()
    };
    let mut last = Vec::new();
    for seed in 0..4 {
        let (one, other) = (frames(seed), frames(seed));
        assert!(one.len() > 1_000, "{} frames", one.len());
        if let Some(at) = one.iter().zip(&other).position(|(one, other)| one != other) {
            panic!("seed {seed}: {:?}, and then {:?}", one[at], other[at]);
        }
        assert_eq!(one.len(), other.len(), "seed {seed}");
        assert!(last != one, "seed {seed} is like the one before");
        last = one;
    }
}
