//! Calls of NFSv3, MOUNT and rpcbind, mostly well formed, some spoilt, with handles that earlier replies gave.
//!
//! Oracles: at most one reply for a call, with its xid, and exactly one for a call whose header is good, once everything that
//! waits is done; each reply decodes to the last byte with a status that exists; a repeated call gets the same reply again if
//! the duplicate request cache answers; limits hold; no page is lost.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use nfsplice::rpc::Destination;
use nfsplice::time::Duration;

use super::input::Input;
use super::reply::{Answer, Header};
use super::server::{CLIENT, Parking, READ_BYTES_MAX, Reply, Server};

const NFS: u32 = 100_003;
const MOUNT: u32 = 100_005;
const RPCBIND: u32 = 100_000;
/// Handles remembered from replies.
const HANDLES_MAX: usize = 32;

const NAMES: &[&[u8]] =
    &[b"file", b"dir", b"link", b"hard", b"a", b"b", b"c", b".", b"..", b"", b"x/y", b"n\0l", &[b'l'; 255], &[b'l'; 256]];
const PATHS: &[&[u8]] =
    &[b"/export", b"/export/dir", b"/export/file", b"/export/read only", b"/private", b"/", b"", b"/export/../x", &[b'p'; 1025]];

/// Arguments in XDR.
#[derive(Default)]
struct Args(Vec<u8>);

impl Args {
    fn u32(&mut self, value: u32) -> &mut Args {
        self.0.extend(value.to_be_bytes());
        self
    }

    fn u64(&mut self, value: u64) -> &mut Args {
        self.0.extend(value.to_be_bytes());
        self
    }

    fn opaque(&mut self, bytes: &[u8]) -> &mut Args {
        self.u32(bytes.len() as u32);
        self.0.extend(bytes);
        self.0.resize(self.0.len().next_multiple_of(4), 0);
        self
    }
}

/// A call that may still be answered.
struct Waiting {
    program: u32,
    version: u32,
    procedure: u32,
    /// Offset and count of a READ, if it is sent as made.
    read: Option<(u64, u32)>,
    /// Its header is good, so an answer is due.
    certain: bool,
    datagram: bool,
    /// Times it was sent: so many answers it may get.
    sent: u32,
    /// What it has to get, because the duplicate request cache said so.
    replayed: Option<Vec<u8>>,
}

/// The call sent last, to be sent again.
struct Last {
    xid: u32,
    message: Vec<u8>,
    reply: Option<Vec<u8>>,
    program: u32,
    version: u32,
    procedure: u32,
    read: Option<(u64, u32)>,
    certain: bool,
    datagram: bool,
}

struct Client {
    server: Server,
    address: SocketAddr,
    handles: Vec<Vec<u8>>,
    waiting: BTreeMap<u32, Waiting>,
    xid: u32,
    last: Option<Last>,
    /// Completions come only when asked for.
    hold: bool,
    /// AUTH_SYS as this user; `None`: AUTH_NONE.
    user: Option<u32>,
}

impl Client {
    fn new(how: u8) -> Client {
        let address: SocketAddr = CLIENT.parse().expect("an address");
        let mut server = Server::new(Parking::from_bits(how));
        assert!(server.connect(1, address));
        let handles = vec![server.parts.root_handle(1), server.parts.root_handle(2), server.parts.root_handle(3)];
        let hold = how & 4 != 0;
        Client { server, address, handles, waiting: BTreeMap::new(), xid: 0, last: None, hold, user: Some(0) }
    }

    fn handle(&self, input: &mut Input<'_>, args: &mut Args) {
        let which = input.byte();
        match which {
            0..=0xdf => {
                let at = usize::from(which) % self.handles.len();
                args.opaque(&self.handles[at]);
            }
            0xe0..=0xef => {
                let mut handle = self.handles[usize::from(which & 15) % self.handles.len()].clone();
                let (at, value) = (usize::from(input.byte()), input.byte());
                let at = at % handle.len();
                handle[at] ^= value;
                args.opaque(&handle);
            }
            _ => {
                let len = usize::from(input.byte() % 72);
                args.opaque(input.bytes(len));
            }
        };
    }

    fn name(&self, input: &mut Input<'_>, args: &mut Args) {
        let which = usize::from(input.byte());
        match NAMES.get(which % 16) {
            Some(name) => args.opaque(name),
            None => args.opaque(input.bytes(which >> 4)),
        };
    }

    fn directory_and_name(&self, input: &mut Input<'_>, args: &mut Args) {
        self.handle(input, args);
        self.name(input, args);
    }

    /// A position in a file: near, far, or beyond everything.
    fn offset(input: &mut Input<'_>) -> u64 {
        match input.byte() {
            how @ 0..=0x7f => u64::from(how) * 256,
            how @ 0x80..=0xdf => u64::from(input.u16()) << (how & 31),
            _ => input.u64(),
        }
    }

    fn sattr(input: &mut Input<'_>, args: &mut Args) {
        let which = input.byte();
        for bit in 0..3 {
            let set = u32::from(which >> bit & 1);
            args.u32(set);
            if set == 1 {
                args.u32(input.u16().into());
            }
        }
        if which & 8 != 0 {
            args.u32(1).u64(Client::offset(input));
        } else {
            args.u32(0);
        }
        for shift in [4, 6] {
            let how = u32::from(which >> shift & 3);
            args.u32(how);
            if how == 2 {
                args.u32(input.u32()).u32(input.u32());
            }
        }
    }

    /// Arguments of an NFSv3 procedure, and what a READ asks for.
    fn nfs3_arguments(&self, procedure: u32, input: &mut Input<'_>, args: &mut Args) -> (u64, u32) {
        let mut read = (0, 0);
        match procedure {
            1 | 5 | 18..=20 => self.handle(input, args),
            2 => {
                self.handle(input, args);
                Client::sattr(input, args);
                let guard = u32::from(input.byte() & 1);
                args.u32(guard);
                if guard == 1 {
                    args.u64(input.u64());
                }
            }
            3 | 12 | 13 => self.directory_and_name(input, args),
            4 => {
                self.handle(input, args);
                args.u32(input.byte().into());
            }
            6 => {
                self.handle(input, args);
                read = (Client::offset(input), u32::from(input.u16()) << (input.byte() & 16));
                args.u64(read.0).u32(read.1);
            }
            7 => {
                self.handle(input, args);
                let offset = Client::offset(input);
                let (fill, len) = (input.byte(), usize::from(input.u16() % 10_000));
                let claimed = (len as u32).wrapping_add(u32::from(input.byte() >> 6));
                args.u64(offset).u32(claimed).u32(u32::from(fill & 3)).opaque(&vec![fill; len]);
            }
            8 => {
                self.directory_and_name(input, args);
                let how = u32::from(input.byte() & 3);
                args.u32(how);
                if how == 2 {
                    args.u64(u64::from(input.byte()));
                } else {
                    Client::sattr(input, args);
                }
            }
            9 => {
                self.directory_and_name(input, args);
                Client::sattr(input, args);
            }
            10 => {
                self.directory_and_name(input, args);
                Client::sattr(input, args);
                let len = usize::from(input.u16() % 4200);
                args.opaque(&vec![b't'; len]);
            }
            11 => {
                self.directory_and_name(input, args);
                let kind = u32::from(input.byte() % 9);
                args.u32(kind);
                if kind == 3 || kind == 4 || kind == 6 || kind == 7 {
                    Client::sattr(input, args);
                }
                if kind == 3 || kind == 4 {
                    args.u64(input.u64());
                }
            }
            14 => {
                self.directory_and_name(input, args);
                self.directory_and_name(input, args);
            }
            15 => {
                self.handle(input, args);
                self.directory_and_name(input, args);
            }
            16 | 17 => {
                self.handle(input, args);
                args.u64(u64::from(input.byte() & 0x1f)).u64(if input.byte() & 1 == 0 { 0 } else { input.u64() });
                args.u32(u32::from(input.u16()));
                if procedure == 17 {
                    args.u32(u32::from(input.u16()));
                }
            }
            21 => {
                self.handle(input, args);
                args.u64(Client::offset(input)).u32(input.u16().into());
            }
            _ => {}
        }
        read
    }

    fn header(&self, xid: u32, program: u32, version: u32, procedure: u32) -> Args {
        let mut message = Args::default();
        message.u32(xid).u32(0).u32(2).u32(program).u32(version).u32(procedure);
        match self.user {
            None => message.u32(0).u32(0),
            Some(user) => {
                let mut body = Args::default();
                body.u32(0).opaque(b"fuzz").u32(user).u32(user).u32(2).u32(100).u32(0);
                message.u32(1).opaque(&body.0)
            }
        };
        message.u32(0).u32(0);
        message
    }

    /// A new call: which, how it is spoilt, and how it travels follow from the input.
    fn call(&mut self, op: u8, input: &mut Input<'_>) {
        let how = input.byte();
        self.xid += 1;
        let mut args = Args::default();
        let mut read = (0, 0);
        let (program, version, procedure) = match op {
            0..=21 => {
                read = self.nfs3_arguments(op.into(), input, &mut args);
                (NFS, 3, u32::from(op))
            }
            22 => {
                let which = usize::from(input.byte());
                match PATHS.get(which % 16) {
                    Some(path) => args.opaque(path),
                    None => args.opaque(input.bytes(which)),
                };
                (MOUNT, 3, 1 + 2 * u32::from(how >> 7))
            }
            23 => (MOUNT, 3, u32::from(input.byte() % 7)),
            24 => {
                let (version, procedure) = (u32::from(input.byte() % 6), u32::from(input.byte() % 14));
                if version == 2 {
                    args.u32(NFS).u32(3).u32(6).u32(0);
                } else {
                    args.u32(NFS).u32(3).opaque(b"tcp").opaque(b"10.77.0.2.8.1").opaque(b"me");
                }
                (RPCBIND, version, procedure)
            }
            _ => {
                let program = [NFS, MOUNT, RPCBIND, input.u32()][usize::from(input.byte() & 3)];
                let (version, procedure) = (u32::from(input.byte() & 7), u32::from(input.byte()));
                let len = usize::from(input.byte());
                args.0.extend(input.bytes(len));
                (program, version, procedure)
            }
        };
        let mut message = self.header(self.xid, program, version, procedure);
        let arguments_at = message.0.len();
        message.0.append(&mut args.0);
        // A datagram may be dropped, and rpcbind's CALLIT is not answered.
        let datagram = how & 4 != 0;
        let mut certain = !(datagram || program == RPCBIND && procedure == 5);
        let mut known = (program, version);
        if how & 3 == 3 {
            spoil(&mut message.0, 4, input);
            (certain, known) = (false, (0, 0));
        } else if how & 1 != 0 {
            spoil(&mut message.0, arguments_at, input);
        }
        let read = (how & 1 == 0).then_some(read);
        let (xid, message, (program, version)) = (self.xid, message.0, known);
        self.last = Some(Last { xid, message, reply: None, program, version, procedure, read, certain, datagram });
        self.send_last(how >> 3 & 15);
    }

    /// Sends what was sent last, for the first time or again.
    fn send_last(&mut self, pieces: u8) {
        let Some(last) = &self.last else { return };
        let waiting = self.waiting.entry(last.xid).or_insert_with(|| Waiting {
            program: last.program,
            version: last.version,
            procedure: last.procedure,
            read: last.read,
            certain: last.certain,
            datagram: last.datagram,
            sent: 0,
            replayed: None,
        });
        waiting.sent += 1;
        if last.datagram {
            self.server.datagram(self.address, &last.message);
            return;
        }
        let marker = (1 << 31 | last.message.len() as u32).to_be_bytes();
        let record = [&marker[..], &last.message].concat();
        let size = if pieces == 0 { record.len() } else { usize::from(pieces) * 5 };
        for piece in record.chunks(size) {
            self.server.push(0, piece);
        }
        let replayed = |client: &Client| client.server.parts.rpc.counters().duplicates_replayed;
        let before = replayed(self);
        self.server.read(0);
        if replayed(self) == before + 1
            && let Some(Last { xid, reply: Some(reply), .. }) = &self.last
            && let Some(waiting) = self.waiting.get_mut(xid)
            && waiting.sent == 1
        {
            waiting.replayed = Some(reply.clone());
        }
    }

    fn take_replies(&mut self, replies: Vec<Reply>) {
        for reply in replies {
            let message = match reply.destination {
                Destination::Stream(_) => &reply.bytes[4..],
                Destination::Datagram { .. } => &reply.bytes[..],
            };
            let mut answer = Answer::new(message);
            let xid = answer.u32();
            let waiting = self.waiting.get_mut(&xid).expect("nobody asked, or the answer was there already");
            waiting.sent -= 1;
            waiting.certain = false;
            assert_eq!(waiting.datagram, matches!(reply.destination, Destination::Datagram { .. }));
            let mut found = Vec::new();
            if answer.header() == Header::Success {
                match (waiting.program, waiting.version) {
                    (NFS, 3) => {
                        answer.nfs3(waiting.procedure, waiting.read, READ_BYTES_MAX, &mut found);
                    }
                    (MOUNT, 3) => answer.mount(waiting.procedure, &mut found),
                    _ => {}
                }
            }
            if let Some(replayed) = waiting.replayed.take() {
                assert_eq!(replayed, message, "another answer to the same call");
            }
            if waiting.sent == 0 {
                self.waiting.remove(&xid);
            }
            for handle in found {
                if !self.handles.contains(&handle) && self.handles.len() < HANDLES_MAX {
                    self.handles.push(handle);
                }
            }
            if let Some(last) = &mut self.last
                && last.xid == xid
            {
                last.reply = Some(message.to_vec());
            }
        }
    }

    fn step(&mut self, input: &mut Input<'_>) {
        match input.byte() {
            op @ 0..=0x9f => self.call(op % 32, input),
            0xa0..=0xaf => self.send_last(0),
            0xb0..=0xbf => self.server.now += Duration::from_millis(u64::from(input.u16())),
            0xc0..=0xcf => {
                self.server.complete();
            }
            op @ 0xd0..=0xdf => self.user = [Some(0), Some(1000), Some(100), None][usize::from(op & 3)],
            _ => self.server.acknowledge(0),
        }
        let replies = if self.hold { self.server.turn() } else { self.server.settle() };
        self.take_replies(replies);
        if let Some(stream) = self.server.streams.last()
            && stream.closed.is_some()
        {
            self.reconnect();
        }
    }

    /// A new connection in place of one that the server closed.
    fn reconnect(&mut self) {
        let Some(stream) = self.server.streams.pop() else { return };
        self.server.parts.rpc.closed(stream.key);
        self.waiting.retain(|_, waiting| waiting.datagram);
        self.last = None;
        assert!(self.server.connect(stream.key.0 + 1, self.address));
    }

    fn finish(mut self) {
        let replies = self.server.settle();
        self.take_replies(replies);
        let unanswered = self.waiting.iter().find(|(_, waiting)| waiting.certain);
        assert!(
            unanswered.is_none() || self.server.streams[0].closed.is_some(),
            "no answer to call {:?}",
            unanswered.map(|x| x.0)
        );
        self.server.streams.clear();
        self.server.parts.check_and_drop();
    }
}

/// Damages a message behind `from`.
fn spoil(message: &mut Vec<u8>, from: usize, input: &mut Input<'_>) {
    let (kind, at) = (input.byte(), usize::from(input.byte()));
    let at = from + at % (message.len() - from).max(1);
    match kind & 3 {
        0 => message.truncate(at),
        1 => message.extend(input.bytes(at & 63)),
        2 => {
            if let Some(byte) = message.get_mut(at) {
                *byte ^= kind | 1;
            }
        }
        _ => {
            let word = [0, 1, u32::MAX, 1 << 31][usize::from(kind >> 6)].to_be_bytes();
            if let Some(place) = message.get_mut(at & !3..(at & !3) + 4) {
                place.copy_from_slice(&word);
            }
        }
    }
}

pub fn fuzz(data: &[u8]) {
    let mut input = Input::new(data);
    let mut client = Client::new(input.byte());
    while !input.is_empty() {
        client.step(&mut input);
    }
    client.finish();
}
