//! MOUNT version 3: from an export's path, or that of a directory below it, to the first file handle.
//!
//! Read first: RFC 1813 appendix I. A directory below an export is walked to, one Lookup of the store at a time, as the caller
//! (squashed): MOUNT hands out no handle that LOOKUP would not. A walk that waits parks the call. Deliberately not here:
//! MOUNT versions 1 and 2 (32-byte handles of NFSv2), access by netgroup, persistence of the list of mounts, which is
//! a hint for people and no more (RFC 1813 section 5.1.3: it may be wrong).

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};

use smallvec::SmallVec;

use super::exports::{EXPORT_NAME_MAX, Export, ExportTable, FILE_HANDLE_MAX, NoExport};
use crate::buf::Slice;
use crate::counters;
use crate::rpc::auth::{AUTH_NONE, AUTH_SYS};
use crate::rpc::xdr::{Encoder, XdrError};
use crate::rpc::{Call, Disposition, Peer, ProcedureInfo, Results, Ticket, Transport};
use crate::store::{Credential, Failure, NAME_MAX, ObjectId, ObjectKind, Operation, Outcome, Start, Status, Token};
use crate::time::Instant;

pub const PROGRAM: u32 = 100_005;
pub const VERSION: u32 = 3;

/// Most bytes of the answers of DUMP and EXPORT.
const LIST_BYTES_MAX: u32 = 32 << 10;
/// ... over UDP, where nobody fragments for us ...
const LIST_BYTES_MAX_UDP: usize = 1400;
/// ... nor, over IPv6, does any router: they fit 1,280 bytes, headers and all (RFC 8200 section 5).
const LIST_BYTES_MAX_UDP_V6: usize = 1200;

mod procedure {
    pub const NULL: u32 = 0;
    pub const MNT: u32 = 1;
    pub const DUMP: u32 = 2;
    pub const UMNT: u32 = 3;
    pub const UMNTALL: u32 = 4;
    pub const EXPORT: u32 = 5;
}
use procedure::*;

/// Whether the answer to a procedure is a list, far longer than the question.
pub fn is_list(procedure: u32) -> bool {
    matches!(procedure, DUMP | EXPORT)
}

/// mountstat3 of RFC 1813 section 5.1.5.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum MountStatus {
    Ok = 0,
    NoEntry = 2,
    Io = 5,
    Access = 13,
    NotDirectory = 20,
    NameTooLong = 63,
    ServerFault = 10006,
}

impl From<Status> for MountStatus {
    fn from(status: Status) -> MountStatus {
        match status {
            Status::NoEntry | Status::Stale | Status::BadHandle => MountStatus::NoEntry,
            Status::AccessDenied | Status::NotOwner => MountStatus::Access,
            Status::NotDirectory => MountStatus::NotDirectory,
            Status::NameTooLong => MountStatus::NameTooLong,
            Status::ServerFault => MountStatus::ServerFault,
            _ => MountStatus::Io,
        }
    }
}

/// What MOUNT needs of the exports, their stores and their handles, as one core has them.
pub trait MountTree {
    fn exports(&self) -> &ExportTable;

    /// `None`: the export's store cannot be reached now.
    fn root(&self, export: &Export) -> Option<ObjectId>;

    /// Starts an operation on the store numbered `store`, which exists if `root` of its export did.
    fn start(
        &mut self,
        now: Instant,
        store: usize,
        caller: &Credential,
        operation: &Operation<'_>,
        token: Token,
        pages: &mut Vec<Slice>,
    ) -> Start;

    fn file_handle(&self, export: u32, object: ObjectId) -> SmallVec<[u8; FILE_HANDLE_MAX]>;
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Options {
    /// Walks of one core that wait for a store; one more is answered MNT3ERR_IO.
    pub walks_max: usize,
    /// Mounts remembered for DUMP, over all cores; one more is made but not remembered.
    pub mounts_max: usize,
}

impl Default for Options {
    fn default() -> Options {
        Options { walks_max: 256, mounts_max: 1024 }
    }
}

counters! {
    /// What one core's MOUNT counts.
    pub struct MountCounters {
        /// Calls of MNT.
        mounts,
        /// Of those, refused.
        mounts_refused,
        /// Of those, because the client may not use the export.
        mounts_not_allowed,
        /// Calls of UMNT and UMNTALL.
        unmounts,
        /// Mounts left out of DUMP's list because `mounts_max` was reached.
        mounts_not_listed,
        /// Mounts refused because `walks_max` was reached.
        walks_refused,
        /// Answers of DUMP and EXPORT cut short.
        lists_cut,
        /// Arguments that did not decode.
        garbage_arguments,
    }
    gauges {
        /// Walks waiting for a store.
        walks,
    }
}

struct Mounted {
    client: IpAddr,
    path: Vec<u8>,
}

/// Who has mounted what. Shared by the cores; a hint for people.
#[derive(Default)]
pub struct MountList {
    mounted: Mutex<Vec<Mounted>>,
}

impl MountList {
    fn with<T>(&self, f: impl FnOnce(&mut Vec<Mounted>) -> T) -> T {
        // A list of hints is still one after a panic elsewhere.
        f(&mut self.mounted.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// `false` if the list is full.
    fn add(&self, client: IpAddr, path: &[u8], mounts_max: usize) -> bool {
        self.with(|mounted| {
            if mounted.iter().any(|entry| entry.client == client && entry.path == path) {
                return true;
            }
            let room = mounted.len() < mounts_max;
            if room {
                mounted.push(Mounted { client, path: path.to_vec() });
            }
            room
        })
    }

    fn remove(&self, client: IpAddr, path: Option<&[u8]>) {
        self.with(|mounted| {
            mounted.retain(|entry| entry.client != client || path.is_some_and(|path| path != entry.path));
        });
    }
}

/// A way down from an export's root.
struct Walk {
    export: u32,
    store: usize,
    caller: Credential,
    client: IpAddr,
    /// The path as the client gave it, and where its next component starts.
    path: SmallVec<[u8; 128]>,
    next: usize,
    at: ObjectId,
    /// What the store answered, between `deliver` and `complete`.
    answer: Option<Result<Outcome, Failure>>,
}

impl Walk {
    /// The next component that leads somewhere.
    fn component(&mut self) -> Option<SmallVec<[u8; 32]>> {
        loop {
            let rest = self.path.get(self.next..).filter(|rest| !rest.is_empty())?;
            let len = rest.iter().position(|&byte| byte == b'/').unwrap_or(rest.len());
            let component = SmallVec::from_slice(&rest[..len]);
            self.next += len + 1;
            if !component.is_empty() && component[..] != b"."[..] {
                return Some(component);
            }
        }
    }
}

/// One core's MOUNT server.
pub struct Mount {
    options: Options,
    list: Arc<MountList>,
    walks: HashMap<Ticket, Walk>,
    counters: MountCounters,
}

impl Mount {
    pub fn new(options: Options, list: Arc<MountList>) -> Mount {
        Mount { options, list, walks: HashMap::new(), counters: MountCounters::default() }
    }

    pub fn counters(&self) -> &MountCounters {
        &self.counters
    }

    pub fn procedure(&self, number: u32) -> Option<ProcedureInfo> {
        let (name, head_bytes_max) = match number {
            NULL => ("NULL", 0),
            // Status, handle, and two flavors with their count.
            MNT => ("MNT", 4 + 4 + FILE_HANDLE_MAX as u32 + 12),
            DUMP => ("DUMP", LIST_BYTES_MAX),
            UMNT => ("UMNT", 0),
            UMNTALL => ("UMNTALL", 0),
            EXPORT => ("EXPORT", LIST_BYTES_MAX),
            _ => return None,
        };
        // All but MNT change a list of hints at most, and MNT twice is MNT.
        Some(ProcedureInfo { name, caches_reply: false, head_bytes_max, pages_bytes_max: 0 })
    }

    pub fn call(
        &mut self,
        tree: &mut impl MountTree,
        now: Instant,
        call: &Call<'_>,
        ticket: Ticket,
        results: &mut Results<'_>,
    ) -> Disposition {
        let done = match call.procedure {
            MNT => self.mount(tree, now, call, ticket, results),
            UMNT => self.unmount(call),
            UMNTALL => {
                self.counters.unmounts += 1;
                self.list.remove(call.peer.ip(), None);
                Ok(Disposition::Replied)
            }
            DUMP => {
                self.dump(&call.peer, &mut results.head);
                Ok(Disposition::Replied)
            }
            EXPORT => {
                self.export(tree.exports(), &call.peer, &mut results.head);
                Ok(Disposition::Replied)
            }
            _ => Ok(Disposition::Replied),
        };
        done.unwrap_or_else(|_| {
            self.counters.garbage_arguments += 1;
            Disposition::GarbageArgs
        })
    }

    fn mount(
        &mut self,
        tree: &mut impl MountTree,
        now: Instant,
        call: &Call<'_>,
        ticket: Ticket,
        results: &mut Results<'_>,
    ) -> Result<Disposition, XdrError> {
        let mut arguments = call.arguments;
        let mut scratch = [0; EXPORT_NAME_MAX];
        let path = arguments.string(EXPORT_NAME_MAX)?;
        let path = path.contiguous_in(&mut scratch).ok_or(XdrError::TooLong)?;
        self.counters.mounts += 1;
        let client = call.peer.ip();
        let walk = match tree.exports().resolve(path, client) {
            Ok((export, below)) => tree.root(export).map(|at| Walk {
                export: export.id,
                store: export.store,
                caller: export.squash(call.credential),
                client,
                path: SmallVec::from_slice(path),
                next: below_starts(path, below),
                at,
                answer: None,
            }),
            Err(NoExport::NotAllowed) => {
                self.counters.mounts_not_allowed += 1;
                return Ok(self.refuse(MountStatus::Access, results));
            }
            Err(NoExport::NotFound) => return Ok(self.refuse(MountStatus::NoEntry, results)),
        };
        let Some(walk) = walk else { return Ok(self.refuse(MountStatus::Io, results)) };
        Ok(self.go_on(tree, now, walk, ticket, results))
    }

    /// Walks until the path ends, the store makes it wait, or there is no way on.
    fn go_on(
        &mut self,
        tree: &mut impl MountTree,
        now: Instant,
        mut walk: Walk,
        ticket: Ticket,
        results: &mut Results<'_>,
    ) -> Disposition {
        while let Some(name) = walk.component() {
            // Nothing above the export is to be had, nor anything a name cannot be.
            if name[..] == b".."[..] || name.contains(&0) {
                return self.refuse(MountStatus::NoEntry, results);
            }
            if name.len() > NAME_MAX {
                return self.refuse(MountStatus::NameTooLong, results);
            }
            if self.walks.len() >= self.options.walks_max {
                self.counters.walks_refused += 1;
                return self.refuse(MountStatus::Io, results);
            }
            let lookup = Operation::Lookup { directory: walk.at, name: &name };
            match tree.start(now, walk.store, &walk.caller, &lookup, Token(ticket.0), results.pages) {
                Start::Done(answer) => match step(answer) {
                    Ok(object) => walk.at = object,
                    Err(status) => return self.refuse(status, results),
                },
                Start::Parked => {
                    self.walks.insert(ticket, walk);
                    self.counters.walks = self.walks.len() as u64;
                    return Disposition::Parked;
                }
            }
        }
        self.arrive(tree, &walk, results)
    }

    fn arrive(&mut self, tree: &impl MountTree, walk: &Walk, results: &mut Results<'_>) -> Disposition {
        if !self.list.add(walk.client, &walk.path, self.options.mounts_max) {
            self.counters.mounts_not_listed += 1;
        }
        let out = &mut results.head;
        out.u32(MountStatus::Ok as u32);
        out.opaque(&tree.file_handle(walk.export, walk.at));
        // The flavors the server takes, the preferred one first.
        out.u32(2);
        out.u32(AUTH_SYS);
        out.u32(AUTH_NONE);
        Disposition::Replied
    }

    fn refuse(&mut self, status: MountStatus, results: &mut Results<'_>) -> Disposition {
        self.counters.mounts_refused += 1;
        results.head.u32(status as u32);
        Disposition::Replied
    }

    /// Takes a finished operation if it belongs to a walk: its call is to be completed. Otherwise gives it back.
    #[expect(clippy::result_large_err, reason = "not an error: the answer goes on to whom it belongs")]
    pub fn deliver(&mut self, token: Token, answer: Result<Outcome, Failure>) -> Result<Ticket, Result<Outcome, Failure>> {
        let ticket = Ticket(token.0);
        match self.walks.get_mut(&ticket) {
            Some(walk) => {
                walk.answer = Some(answer);
                Ok(ticket)
            }
            None => Err(answer),
        }
    }

    /// Whether a parked call is one of MOUNT's.
    pub fn owns(&self, ticket: Ticket) -> bool {
        self.walks.contains_key(&ticket)
    }

    pub fn complete(
        &mut self,
        tree: &mut impl MountTree,
        now: Instant,
        ticket: Ticket,
        results: &mut Results<'_>,
    ) -> Disposition {
        let walk = self.walks.remove(&ticket);
        self.counters.walks = self.walks.len() as u64;
        let Some(mut walk) = walk else { return Disposition::SystemError };
        let Some(answer) = walk.answer.take() else { return Disposition::SystemError };
        match step(answer) {
            Ok(object) => {
                walk.at = object;
                self.go_on(tree, now, walk, ticket, results)
            }
            Err(status) => self.refuse(status, results),
        }
    }

    fn unmount(&mut self, call: &Call<'_>) -> Result<Disposition, XdrError> {
        let mut arguments = call.arguments;
        let mut scratch = [0; EXPORT_NAME_MAX];
        let path = arguments.string(EXPORT_NAME_MAX)?;
        let path = path.contiguous_in(&mut scratch).ok_or(XdrError::TooLong)?;
        self.counters.unmounts += 1;
        self.list.remove(call.peer.ip(), Some(path));
        Ok(Disposition::Replied)
    }

    /// mountlist of RFC 1813 section 5.2.2.
    fn dump(&mut self, peer: &Peer, out: &mut Encoder<'_>) {
        let list = self.list.clone();
        let complete = list.with(|mounted| {
            mounted.iter().all(|entry| {
                fitting(peer, out, |out| {
                    out.bool(true);
                    out.opaque(entry.client.to_string().as_bytes());
                    out.opaque(&entry.path);
                })
            })
        });
        out.bool(false);
        self.counters.lists_cut += u64::from(!complete);
    }

    /// exports of RFC 1813 section 5.2.5; the groups are the client networks.
    fn export(&mut self, exports: &ExportTable, peer: &Peer, out: &mut Encoder<'_>) {
        let complete = exports.iter().all(|export| {
            fitting(peer, out, |out| {
                out.bool(true);
                out.opaque(export.name.as_bytes());
                for network in &export.clients {
                    out.bool(true);
                    out.opaque(network.to_string().as_bytes());
                }
                out.bool(false);
            })
        });
        out.bool(false);
        self.counters.lists_cut += u64::from(!complete);
    }
}

/// Writes one entry of a list if it fits with the list's end behind it; otherwise nothing.
fn fitting(peer: &Peer, out: &mut Encoder<'_>, entry: impl FnOnce(&mut Encoder<'_>)) -> bool {
    let start = out.position();
    entry(out);
    let bytes_max = match (peer.transport, peer.address) {
        (Transport::Tcp, _) => usize::MAX,
        (Transport::Udp, SocketAddr::V4(_)) => LIST_BYTES_MAX_UDP,
        (Transport::Udp, SocketAddr::V6(_)) => LIST_BYTES_MAX_UDP_V6,
    };
    let too_long = out.position() + 4 > bytes_max;
    let fits = !out.overflowed() && out.room() >= 4 && !too_long;
    if !fits {
        out.truncate(start);
    }
    fits
}

/// Where `below`, a part of `path` that `ExportTable::resolve` gave, starts in it.
fn below_starts(path: &[u8], below: &[u8]) -> usize {
    if below.is_empty() { path.len() } else { below.as_ptr() as usize - path.as_ptr() as usize }
}

/// The directory a lookup led to.
fn step(answer: Result<Outcome, Failure>) -> Result<ObjectId, MountStatus> {
    match answer {
        // RFC 1813 section 5.2.1: only directories are mounted. Symbolic links are the client's to follow.
        Ok(Outcome::Found { object, attributes, .. }) if attributes.kind == ObjectKind::Directory => Ok(object),
        Ok(Outcome::Found { .. }) => Err(MountStatus::NotDirectory),
        Ok(_) => Err(MountStatus::ServerFault),
        Err(failure) => Err(failure.status.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::buf::View;
    use crate::program::exports::Squash;
    use crate::rpc::AuthSys;
    use crate::rpc::xdr::Decoder;
    use crate::store::{Attributes, Timestamp};

    /// One export, "/export", in store 0: "a" is a directory with directory "b" in it, "file" is a file, "secret" is not
    /// to be entered, whatever is below "slow" waits.
    struct Tree {
        exports: ExportTable,
        reachable: bool,
        parked: Vec<(Token, Result<Outcome, Failure>)>,
        callers: Vec<u32>,
    }

    impl MountTree for Tree {
        fn exports(&self) -> &ExportTable {
            &self.exports
        }
        fn root(&self, _: &Export) -> Option<ObjectId> {
            self.reachable.then(|| ObjectId::new(b"").unwrap())
        }
        fn start(
            &mut self,
            _: Instant,
            store: usize,
            caller: &Credential,
            operation: &Operation<'_>,
            token: Token,
            _: &mut Vec<Slice>,
        ) -> Start {
            assert_eq!(store, 0);
            self.callers.push(caller.uid);
            let Operation::Lookup { directory, name } = operation else { panic!("only lookups") };
            let path = [directory.as_bytes(), b"/", name].concat();
            let kind = match &path[..] {
                b"/a" | b"/a/b" | b"/slow" | b"/slow/b" => Ok(ObjectKind::Directory),
                b"/file" => Ok(ObjectKind::File),
                b"/secret" => Err(Status::AccessDenied),
                _ => Err(Status::NoEntry),
            };
            let answer = kind.map_err(Failure::from).map(|kind| Outcome::Found {
                object: ObjectId::new(&path).unwrap(),
                attributes: attributes(kind),
                directory: None,
            });
            if path.starts_with(b"/slow") {
                self.parked.push((token, answer));
                return Start::Parked;
            }
            Start::Done(answer)
        }
        fn file_handle(&self, export: u32, object: ObjectId) -> SmallVec<[u8; FILE_HANDLE_MAX]> {
            let mut handle = SmallVec::from_slice(&[export as u8]);
            handle.extend_from_slice(object.as_bytes());
            handle
        }
    }

    fn attributes(kind: ObjectKind) -> Attributes {
        let time = Timestamp::default();
        Attributes {
            kind,
            mode: 0o755,
            links: 1,
            uid: 0,
            gid: 0,
            size: 0,
            used: 0,
            device: (0, 0),
            file_system: 1,
            file_id: 1,
            accessed: time,
            modified: time,
            changed: time,
        }
    }

    struct Rig {
        tree: Tree,
        mount: Mount,
        client: &'static str,
        transport: Transport,
    }

    fn rig() -> Rig {
        let export = Export {
            id: 7,
            name: "/export".into(),
            read_only: false,
            squash: Squash::Root,
            anon_uid: 65534,
            anon_gid: 65534,
            clients: vec!["10.77.0.0/16".parse().unwrap(), "fd00::/8".parse().unwrap()],
            store: 0,
        };
        let exports = ExportTable::new(vec![export]).unwrap();
        let tree = Tree { exports, reachable: true, parked: Vec::new(), callers: Vec::new() };
        let mount = Mount::new(Options { walks_max: 1, mounts_max: 2 }, Arc::default());
        Rig { tree, mount, client: "10.77.0.1:700", transport: Transport::Tcp }
    }

    impl Rig {
        fn with_results(
            &mut self,
            number: u32,
            f: impl FnOnce(&mut Mount, &mut Tree, &mut Results<'_>) -> Disposition,
        ) -> Result<Vec<u8>, Disposition> {
            let mut room = vec![0; self.mount.procedure(number).unwrap().head_bytes_max as usize];
            let mut pages = Vec::new();
            let mut results = Results::new(Encoder::new(&mut room), &mut pages);
            let disposition = f(&mut self.mount, &mut self.tree, &mut results);
            assert!(!results.head.overflowed());
            match disposition {
                Disposition::Replied => Ok(results.head.written().to_vec()),
                other => Err(other),
            }
        }

        fn ask(&mut self, number: u32, arguments: &[u8]) -> Result<Vec<u8>, Disposition> {
            let caller = crate::rpc::Credential::Sys(AuthSys { stamp: 0, uid: 0, gid: 0, groups: SmallVec::new() });
            let call = Call {
                xid: 1,
                program: PROGRAM,
                version: VERSION,
                procedure: number,
                peer: Peer {
                    address: self.client.parse().unwrap(),
                    local: "10.77.0.2:20048".parse().unwrap(),
                    transport: self.transport,
                },
                credential: &caller,
                arguments: Decoder::new(View::from(arguments)),
            };
            self.with_results(number, |mount, tree, results| mount.call(tree, Instant::ZERO, &call, Ticket(5), results))
        }

        fn mnt(&mut self, path: &str) -> Result<Vec<u8>, Disposition> {
            self.ask(MNT, &encoded(|e| e.opaque(path.as_bytes())))
        }
    }

    fn encoded(fill: impl FnOnce(&mut Encoder<'_>)) -> Vec<u8> {
        let mut room = [0; 4096];
        let mut encoder = Encoder::new(&mut room);
        fill(&mut encoder);
        encoder.written().to_vec()
    }

    fn mounted(handle: &[u8]) -> Result<Vec<u8>, Disposition> {
        Ok(encoded(|e| {
            e.u32(0);
            e.opaque(handle);
            e.u32(2);
            e.u32(1);
            e.u32(0);
        }))
    }

    fn refused(status: MountStatus) -> Result<Vec<u8>, Disposition> {
        Ok((status as u32).to_be_bytes().to_vec())
    }

    #[test]
    fn exports_and_directories_below_them_are_mounted() {
        let mut rig = rig();
        assert_eq!(rig.mnt("/export"), mounted(b"\x07"));
        assert_eq!(rig.mnt("//export/"), mounted(b"\x07"));
        assert_eq!(rig.mnt("/export/a"), mounted(b"\x07/a"));
        assert_eq!(rig.mnt("/export//a/./b/"), mounted(b"\x07/a/b"));
        assert_eq!(rig.tree.callers, [65534; 3], "root is squashed");
    }

    #[test]
    fn what_is_not_there_or_not_allowed_is_refused() {
        let mut rig = rig();
        for path in ["", "export", "/", "/exporta", "/etc", "/export/..", "/export/a/../a", "/export/x", "/export/a\0"] {
            assert_eq!(rig.mnt(path), refused(MountStatus::NoEntry), "{path:?}");
        }
        assert_eq!(rig.mnt("/export/file"), refused(MountStatus::NotDirectory));
        assert_eq!(rig.mnt("/export/secret"), refused(MountStatus::Access));
        assert_eq!(rig.mnt(&format!("/export/{}", "n".repeat(256))), refused(MountStatus::NameTooLong));
        assert_eq!(rig.mnt(&"/".repeat(1025)), Err(Disposition::GarbageArgs), "longer than MNTPATHLEN");
        assert_eq!(rig.ask(MNT, &[0xff; 8]), Err(Disposition::GarbageArgs));
        assert_eq!(rig.ask(UMNT, &[0, 0, 0, 9]), Err(Disposition::GarbageArgs));
        rig.client = "192.168.0.1:700";
        assert_eq!(rig.mnt("/export"), refused(MountStatus::Access));
        rig.client = "10.77.0.1:700";
        rig.tree.reachable = false;
        assert_eq!(rig.mnt("/export"), refused(MountStatus::Io));
        let counters = rig.mount.counters();
        assert_eq!((counters.mounts, counters.mounts_refused, counters.mounts_not_allowed), (14, 14, 1));
        assert_eq!(counters.garbage_arguments, 3);
    }

    #[test]
    fn a_walk_that_waits_goes_on_when_the_store_answers() {
        let mut rig = rig();
        assert_eq!(rig.mnt("/export/slow/b"), Err(Disposition::Parked));
        assert_eq!(rig.mnt("/export/a"), refused(MountStatus::Io), "walks_max");
        for last in [false, true] {
            let (token, answer) = rig.tree.parked.pop().unwrap();
            assert!(rig.mount.deliver(Token(99), Err(Status::Io.into())).is_err(), "not ours");
            let ticket = rig.mount.deliver(token, answer).unwrap();
            assert!(rig.mount.owns(ticket));
            let done = rig.with_results(MNT, |mount, tree, results| mount.complete(tree, Instant::ZERO, ticket, results));
            assert_eq!(done, if last { mounted(b"\x07/slow/b") } else { Err(Disposition::Parked) });
        }
        assert_eq!((rig.mount.counters().walks, rig.mount.counters().walks_refused), (0, 1));
        assert_eq!(rig.mnt("/export/slow/x"), Err(Disposition::Parked));
        let (token, answer) = rig.tree.parked.pop().unwrap();
        let ticket = rig.mount.deliver(token, answer).unwrap();
        rig.with_results(MNT, |mount, tree, results| mount.complete(tree, Instant::ZERO, ticket, results)).unwrap_err();
        let (token, answer) = rig.tree.parked.pop().unwrap();
        let ticket = rig.mount.deliver(token, answer).unwrap();
        let done = rig.with_results(MNT, |mount, tree, results| mount.complete(tree, Instant::ZERO, ticket, results));
        assert_eq!(done, refused(MountStatus::NoEntry));
    }

    #[test]
    fn the_list_of_mounts_is_kept_and_bounded() {
        let mut rig = rig();
        rig.mnt("/export").unwrap();
        rig.mnt("/export").unwrap();
        rig.mnt("/export/a").unwrap();
        rig.client = "10.77.0.3:1";
        rig.mnt("/export").unwrap();
        assert_eq!(rig.mount.counters().mounts_not_listed, 1);
        let entry = |e: &mut Encoder<'_>, path: &[u8]| {
            e.bool(true);
            e.opaque(b"10.77.0.1");
            e.opaque(path);
        };
        let both = encoded(|e| {
            entry(e, b"/export");
            entry(e, b"/export/a");
            e.bool(false);
        });
        assert_eq!(rig.ask(DUMP, &[]), Ok(both.clone()));
        rig.ask(UMNTALL, &[]).unwrap();
        assert_eq!(rig.ask(DUMP, &[]), Ok(both), "another client's mounts stay");
        rig.client = "10.77.0.1:900";
        rig.ask(UMNT, &encoded(|e| e.opaque(b"/export"))).unwrap();
        let one = encoded(|e| {
            entry(e, b"/export/a");
            e.bool(false);
        });
        assert_eq!(rig.ask(DUMP, &[]), Ok(one));
        rig.ask(UMNTALL, &[]).unwrap();
        assert_eq!(rig.ask(DUMP, &[]), Ok(vec![0; 4]));
    }

    #[test]
    fn export_lists_networks_as_groups_and_is_cut_to_what_fits() {
        let mut rig = rig();
        let list = encoded(|e| {
            e.bool(true);
            e.opaque(b"/export");
            for network in ["10.77.0.0/16", "fd00::/8"] {
                e.bool(true);
                e.opaque(network.as_bytes());
            }
            e.bool(false);
            e.bool(false);
        });
        assert_eq!(rig.ask(EXPORT, &[]), Ok(list));
        let template = rig.tree.exports.iter().next().unwrap().clone();
        let many = (0..500).map(|id| Export { id, name: format!("/{}{id}", "e".repeat(100)), ..template.clone() });
        rig.tree.exports = ExportTable::new(many.collect()).unwrap();
        assert!(rig.ask(EXPORT, &[]).unwrap().len() > 30_000);
        rig.transport = Transport::Udp;
        let cut = rig.ask(EXPORT, &[]).unwrap();
        assert!(cut.len() > 1200 && cut.len() <= 1400 && cut.ends_with(&[0; 8]));
        // What is left of 1,280 bytes behind the headers of IPv6, UDP and RPC.
        rig.client = "[fd00::1]:700";
        let cut = rig.ask(EXPORT, &[]).unwrap();
        assert!(cut.len() > 1000 && cut.len() <= 1280 - 40 - 8 - 24 && cut.ends_with(&[0; 8]));
        rig.transport = Transport::Tcp;
        assert!(rig.ask(EXPORT, &[]).unwrap().len() > 30_000);
        assert_eq!(rig.mount.counters().lists_cut, 4);
    }
}
