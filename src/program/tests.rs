use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::Arc;

use super::exports::{Export, ExportTable, Squash};
use super::handle::HandleSeal;
use super::*;
use crate::buf::{PagePool, View};
use crate::rpc::xdr::{Decoder, Encoder};
use crate::rpc::{Credential, Peer, Transport};
use crate::store::memory::{self, MemoryHandle, MemoryStore};
use crate::store::{self, Failure, ObjectId, Operation, Outcome, Start, Store, Timestamp, Token};
use crate::time::Duration;

/// Parks every operation; completions come last in, first out, after one that nobody asked for.
struct Parking {
    inner: MemoryHandle,
    done: VecDeque<(Token, Result<Outcome, Failure>)>,
    stray: bool,
}

impl Store for Parking {
    fn root(&self) -> ObjectId {
        self.inner.root()
    }

    fn start(
        &mut self,
        now: Instant,
        caller: &store::Credential,
        operation: &Operation<'_>,
        token: Token,
        pages: &mut Vec<Slice>,
    ) -> Start {
        let Start::Done(result) = self.inner.start(now, caller, operation, token, pages) else { panic!("memory parks") };
        self.done.push_back((token, result));
        Start::Parked
    }

    fn poll_completion(&mut self, _: Instant, _: &mut Vec<Slice>) -> Option<(Token, Result<Outcome, Failure>)> {
        if std::mem::take(&mut self.stray) {
            return Some((Token(u64::MAX), Err(store::Status::Io.into())));
        }
        self.done.pop_back()
    }

    fn parked(&self) -> usize {
        self.done.len()
    }
}

fn table() -> ProgramTable {
    let pool = PagePool::anonymous(16, 4096).unwrap();
    let options = memory::Options::new(pool);
    let inner = MemoryStore::new(options, Instant::ZERO, Timestamp::default()).unwrap().handle();
    let export = Export {
        id: 7,
        name: "/export".into(),
        read_only: false,
        squash: Squash::None,
        anon_uid: 65534,
        anon_gid: 65534,
        clients: vec!["10.0.0.0/8".parse().unwrap()],
        store: 0,
    };
    let exports = Arc::new(ExportTable::new(vec![export]).unwrap());
    let parking = Parking { inner, done: VecDeque::new(), stray: true };
    let volumes = Volumes::new(exports, vec![Box::new(parking)], HandleSeal::new([1; 16]));
    let rpcbind = Rpcbind::new(Vec::new(), Duration::ZERO).unwrap();
    let mount = Mount::new(mount::Options::default(), Default::default());
    ProgramTable::new(volumes, rpcbind, mount, Nfs3::new(nfs3::Options::default()))
}

fn call<'a>(program: u32, version: u32, procedure: u32, arguments: &'a [u8]) -> Call<'a> {
    let address: SocketAddr = "10.0.0.9:900".parse().unwrap();
    let peer = Peer { address, local: "10.0.0.1:2049".parse().unwrap(), transport: Transport::Tcp };
    let arguments = Decoder::new(View::from(arguments));
    Call { xid: 1, program, version, procedure, peer, credential: &Credential::None, arguments }
}

fn run(table: &mut ProgramTable, call: &Call<'_>, ticket: u64, room: &mut [u8]) -> (Disposition, usize) {
    let mut pages = Vec::new();
    let mut results = Results::new(Encoder::new(room), &mut pages);
    let disposition = table.call(Instant::ZERO, call, Ticket(ticket), &mut results);
    (disposition, results.head.position())
}

fn finish(table: &mut ProgramTable, ticket: Ticket) -> (Disposition, Vec<u8>) {
    let (mut room, mut pages) = ([0; 1024], Vec::new());
    let mut results = Results::new(Encoder::new(&mut room), &mut pages);
    let disposition = table.complete(Instant::ZERO, ticket, &mut results);
    (disposition, results.head.written().to_vec())
}

#[test]
fn only_what_is_served_has_versions_and_procedures() {
    let table = table();
    assert_eq!(table.versions(100_000, Transport::Tcp), Some(2..=4));
    assert_eq!(table.versions(100_003, Transport::Tcp), Some(3..=3));
    assert_eq!(table.versions(100_005, Transport::Tcp), Some(3..=3));
    assert_eq!(table.versions(100_021, Transport::Tcp), None, "no lock manager");
    assert_eq!(table.versions(100_003, Transport::Udp), None, "NFS is for TCP");
    assert_eq!(table.versions(100_005, Transport::Udp), Some(3..=3));
    assert_eq!(table.procedure(100_003, 3, 6).map(|info| info.name), Some("READ"));
    assert_eq!(table.procedure(100_003, 3, 22), None);
    assert_eq!(table.procedure(100_005, 3, 1).map(|info| info.name), Some("MNT"));
    assert_eq!(table.procedure(100_021, 4, 0), None);
}

#[test]
fn parked_calls_of_different_programs_find_their_way_back() {
    let mut table = table();
    let mut room = [0; 1024];
    // MNT of a directory below the export, which needs a lookup; GETATTR of the root.
    let path = b"\0\0\0\x0b/export/sub\0";
    assert_eq!(run(&mut table, &call(100_005, 3, 1, path), 41, &mut room), (Disposition::Parked, 0));
    let root = table.volumes().stores()[0].root();
    let handle = table.volumes().seal().seal(7, root);
    let mut arguments = vec![0, 0, 0, handle.as_bytes().len() as u8];
    arguments.extend(handle.as_bytes());
    arguments.resize(arguments.len().next_multiple_of(4), 0);
    assert_eq!(run(&mut table, &call(100_003, 3, 1, &arguments), 42, &mut room), (Disposition::Parked, 0));
    assert_eq!(table.parked(), 2);
    let mut pages = Vec::new();
    assert_eq!(table.poll_completion(Instant::ZERO, &mut pages), Some(Ticket(42)));
    assert_eq!(table.counters().completions_unknown, 1, "the stray one");
    assert_eq!(table.poll_completion(Instant::ZERO, &mut pages), Some(Ticket(41)));
    assert_eq!(table.poll_completion(Instant::ZERO, &mut pages), None);
    let (disposition, reply) = finish(&mut table, Ticket(41));
    assert_eq!((disposition, &reply[..]), (Disposition::Replied, &[0, 0, 0, 2][..]), "MNT3ERR_NOENT");
    let (disposition, reply) = finish(&mut table, Ticket(42));
    assert_eq!((disposition, &reply[..8]), (Disposition::Replied, &[0, 0, 0, 0, 0, 0, 0, 2][..]), "NF3DIR");
    assert_eq!(finish(&mut table, Ticket(42)).0, Disposition::SystemError, "once");
}

#[test]
fn lists_do_not_go_by_datagram_to_strangers() {
    let mut table = table();
    let mut room = [0; 2048];
    for (program, version, procedure) in
        [(100_000, 2, 4), (100_000, 3, 4), (100_000, 4, 11), (100_000, 4, 12), (100_005, 3, 2), (100_005, 3, 5)]
    {
        // rpcb of GETADDRLIST: two words and three empty strings.
        let mut asked = call(program, version, procedure, &[0; 20]);
        for (address, transport, answered) in [
            ("192.0.2.1:53", Transport::Udp, false),
            ("192.0.2.1:53", Transport::Tcp, true),
            ("10.0.0.9:900", Transport::Udp, true),
        ] {
            (asked.peer.address, asked.peer.transport) = (address.parse().unwrap(), transport);
            let (disposition, len) = run(&mut table, &asked, 1, &mut room);
            assert_eq!(disposition == Disposition::Replied, answered, "{program} {procedure} {address} {transport:?}");
            assert!(answered || len == 0);
        }
    }
    assert_eq!(table.counters().lists_refused, 6);
}
