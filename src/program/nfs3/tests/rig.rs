//! A server's NFSv3 without network: calls as bytes in, replies as bytes out, over a memory store that answers at once or
//! parks everything.

use std::collections::VecDeque;
use std::sync::Arc;

use super::super::*;
use crate::buf::{PagePool, RxBuf, RxChain, View};
use crate::program::exports::{ExportTable, Squash};
use crate::program::handle::HandleSeal;
use crate::rpc::xdr::{Decoder, Encoder};
use crate::rpc::{AuthSys, Credential, Peer, Transport};
use crate::store::memory::{self, MemoryHandle, MemoryStore};
use crate::store::{Operation, Store, Timestamp};

pub const BLOCK: usize = 4096;
pub const KEY: [u8; 16] = *b"key of the tests";

/// A store whose every operation parks.
struct Parking {
    inner: MemoryHandle,
    done: VecDeque<(Token, Result<Outcome, Failure>, Vec<Slice>)>,
}

impl Store for Parking {
    fn root(&self) -> ObjectId {
        self.inner.root()
    }

    fn start(
        &mut self,
        now: Instant,
        caller: &crate::store::Credential,
        operation: &Operation<'_>,
        token: Token,
        _: &mut Vec<Slice>,
    ) -> Start {
        let mut pages = Vec::new();
        let Start::Done(result) = self.inner.start(now, caller, operation, token, &mut pages) else { panic!("memory parks") };
        self.done.push_back((token, result, pages));
        Start::Parked
    }

    fn poll_completion(&mut self, _: Instant, pages: &mut Vec<Slice>) -> Option<(Token, Result<Outcome, Failure>)> {
        let (token, result, data) = self.done.pop_front()?;
        pages.extend(data);
        Some((token, result))
    }

    fn parked(&self) -> usize {
        self.done.len()
    }
}

pub struct Rig {
    pub volumes: Volumes,
    pub nfs3: Nfs3,
    pub credential: Credential,
    pub client: &'static str,
    /// The data of the last reply, by reference.
    pub pages: Vec<Slice>,
    ticket: u64,
    now: u64,
}

fn export(id: u32, store: usize) -> Export {
    Export {
        id,
        name: format!("/export{id}"),
        read_only: false,
        squash: Squash::Root,
        anon_uid: 65534,
        anon_gid: 65534,
        clients: vec!["10.0.0.0/8".parse().unwrap()],
        store,
    }
}

pub fn sys(uid: u32, gid: u32) -> Credential {
    Credential::Sys(AuthSys { stamp: 0, uid, gid, groups: Default::default() })
}

impl Rig {
    /// Exports 1 and 2 on two stores; export 3 is the first store again, read-only.
    pub fn new(parking: bool) -> Rig {
        let exports = vec![export(1, 0), export(2, 1), Export { read_only: true, ..export(3, 0) }];
        let exports = Arc::new(ExportTable::new(exports).unwrap());
        let store = |instance| {
            let pool = PagePool::anonymous(1024, BLOCK).unwrap();
            let options = memory::Options { instance, ..memory::Options::new(pool) };
            let wall = Timestamp { seconds: 1_000, nanoseconds: 0 };
            MemoryStore::new(options, Instant::ZERO, wall).unwrap().handle()
        };
        let boxed = |inner: MemoryHandle| -> Box<dyn Store> {
            if parking { Box::new(Parking { inner, done: VecDeque::new() }) } else { Box::new(inner) }
        };
        let stores = vec![boxed(store(1)), boxed(store(2))];
        Rig {
            volumes: Volumes::new(exports, stores, HandleSeal::new(KEY)),
            nfs3: Nfs3::new(Options::default()),
            credential: sys(1000, 100),
            client: "10.1.2.3",
            pages: Vec::new(),
            ticket: 0,
            now: 0,
        }
    }

    pub fn root(&self, export: u32) -> Vec<u8> {
        let store = self.volumes.exports().find_by_id(export).unwrap().store;
        self.volumes.seal().seal(export, self.volumes.stores()[store].root()).as_bytes().to_vec()
    }

    /// Makes one call with the room the procedure says it needs; the disposition, and head and data as one.
    pub fn raw(&mut self, procedure: u32, arguments: &[u8]) -> (Disposition, Vec<u8>) {
        // Through buffers of 7 bytes: everything straddles.
        let mut chain = RxChain::new();
        for piece in arguments.chunks(7) {
            chain.push(RxBuf::from_vec(piece.to_vec()));
        }
        self.raw_view(procedure, chain.view(0, chain.len()).unwrap())
    }

    pub fn raw_view(&mut self, procedure: u32, arguments: View<'_>) -> (Disposition, Vec<u8>) {
        self.now += 1;
        self.ticket += 1;
        let (now, ticket) = (Instant::from_millis(self.now), Ticket(self.ticket));
        let peer = Peer {
            address: format!("{}:800", self.client).parse().unwrap(),
            local: "10.0.0.1:2049".parse().unwrap(),
            transport: Transport::Tcp,
        };
        let call = Call {
            xid: 1,
            program: PROGRAM,
            version: VERSION,
            procedure,
            peer,
            credential: &self.credential,
            arguments: Decoder::new(arguments),
        };
        let info = self.nfs3.procedure(procedure).unwrap();
        let mut room = vec![0; info.head_bytes_max as usize];
        self.pages.clear();
        let mut results = Results::new(Encoder::new(&mut room), &mut self.pages);
        let mut disposition = self.nfs3.call(&mut self.volumes, now, &call, ticket, &mut results);
        if disposition == Disposition::Parked {
            assert_eq!(results.head.position(), 0, "a parked call has written nothing");
            let mut pages = Vec::new();
            let (token, result) = self.volumes.poll_completion(now, &mut pages).unwrap();
            assert_eq!(self.nfs3.deliver(token, result), Ok(ticket));
            assert!(self.nfs3.owns(ticket) && self.volumes.poll_completion(now, &mut pages).is_none());
            *results.pages = pages;
            disposition = self.nfs3.complete(&self.volumes, ticket, &mut results);
            assert_eq!(self.nfs3.counters().parked, 0);
        }
        assert!(!results.head.overflowed(), "{} needs more than it says", info.name);
        let mut reply = results.head.written().to_vec();
        let data = self.pages.iter().map(|page| &page[..]).collect::<Vec<_>>().concat();
        assert!(data.len() <= info.pages_bytes_max as usize, "{} brings more pages than it says", info.name);
        reply.extend(data);
        (disposition, reply)
    }

    /// A call that must be answered; the reply as words to be read.
    pub fn call(&mut self, procedure: u32, arguments: &Args) -> Answer {
        let (disposition, bytes) = self.raw(procedure, &arguments.0);
        assert_eq!(disposition, Disposition::Replied);
        Answer { bytes, at: 0 }
    }

    /// A call whose status is all that matters.
    pub fn status(&mut self, procedure: u32, arguments: &Args) -> u32 {
        self.call(procedure, arguments).u32()
    }

    /// CREATE (GUARDED); the handle.
    pub fn create(&mut self, directory: &[u8], name: &[u8], mode: u32) -> Vec<u8> {
        let mut answer = self.call(8, &Args::new().opaque(directory).opaque(name).u32(1).mode(mode));
        assert_eq!(answer.u32(), 0);
        answer.created()
    }

    pub fn mkdir(&mut self, directory: &[u8], name: &[u8], mode: u32) -> Vec<u8> {
        let mut answer = self.call(9, &Args::new().opaque(directory).opaque(name).mode(mode));
        assert_eq!(answer.u32(), 0);
        answer.created()
    }

    pub fn write(&mut self, file: &[u8], offset: u64, data: &[u8]) -> u32 {
        self.status(7, &Args::new().opaque(file).u64(offset).u32(data.len() as u32).u32(2).opaque(data))
    }

    /// READ; data and eof.
    pub fn read(&mut self, file: &[u8], offset: u64, count: u32) -> Result<(Vec<u8>, bool), u32> {
        let mut answer = self.call(6, &Args::new().opaque(file).u64(offset).u32(count));
        match answer.u32() {
            0 => {}
            status => return Err(status),
        }
        answer.attributes().unwrap();
        let count = answer.u32();
        let eof = answer.u32() == 1;
        assert_eq!(answer.u32(), count, "length of the opaque data");
        let data = answer.rest().to_vec();
        assert_eq!(data.len(), count as usize);
        Ok((data, eof))
    }
}

/// Arguments of a call, item by item.
#[derive(Clone, Default)]
pub struct Args(pub Vec<u8>);

impl Args {
    pub fn new() -> Args {
        Args::default()
    }

    pub fn u32(mut self, value: u32) -> Args {
        self.0.extend(value.to_be_bytes());
        self
    }

    pub fn u64(mut self, value: u64) -> Args {
        self.0.extend(value.to_be_bytes());
        self
    }

    pub fn opaque(self, bytes: &[u8]) -> Args {
        self.u32(bytes.len() as u32).fixed(bytes)
    }

    pub fn fixed(mut self, bytes: &[u8]) -> Args {
        self.0.extend(bytes);
        self.0.resize(self.0.len().next_multiple_of(4), 0);
        self
    }

    /// sattr3 with nothing but a mode.
    pub fn mode(self, mode: u32) -> Args {
        self.u32(1).u32(mode).u32(0).u32(0).u32(0).u32(0).u32(0)
    }

    /// sattr3 with nothing but a size.
    pub fn size(self, size: u64) -> Args {
        self.u32(0).u32(0).u32(0).u32(1).u64(size).u32(0).u32(0)
    }
}

/// fattr3, as far as tests look at it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fattr {
    pub kind: u32,
    pub mode: u32,
    pub links: u32,
    pub uid: u32,
    pub gid: u32,
    pub size: u64,
    pub file_system: u64,
    pub file_id: u64,
    pub device: (u32, u32),
    pub accessed: (u32, u32),
    pub modified: (u32, u32),
    pub changed: (u32, u32),
}

/// A reply, read item by item. Reading behind its end fails the test.
pub struct Answer {
    pub bytes: Vec<u8>,
    pub at: usize,
}

impl Answer {
    pub fn rest(&self) -> &[u8] {
        &self.bytes[self.at..]
    }

    pub fn u32(&mut self) -> u32 {
        self.at += 4;
        u32::from_be_bytes(self.bytes[self.at - 4..self.at].try_into().unwrap())
    }

    pub fn u64(&mut self) -> u64 {
        u64::from(self.u32()) << 32 | u64::from(self.u32())
    }

    pub fn opaque(&mut self) -> Vec<u8> {
        let len = self.u32() as usize;
        let bytes = self.bytes[self.at..self.at + len].to_vec();
        self.at += len.next_multiple_of(4);
        bytes
    }

    pub fn fattr(&mut self) -> Fattr {
        let (kind, mode, links, uid, gid) = (self.u32(), self.u32(), self.u32(), self.u32(), self.u32());
        let (size, _used) = (self.u64(), self.u64());
        let device = (self.u32(), self.u32());
        let (file_system, file_id) = (self.u64(), self.u64());
        let mut time = || (self.u32(), self.u32());
        let (accessed, modified, changed) = (time(), time(), time());
        Fattr { kind, mode, links, uid, gid, size, file_system, file_id, device, accessed, modified, changed }
    }

    /// post_op_attr.
    pub fn attributes(&mut self) -> Option<Fattr> {
        (self.u32() == 1).then(|| self.fattr())
    }

    /// wcc_data: whether there was something before, and what is after.
    pub fn wcc(&mut self) -> (bool, Option<Fattr>) {
        let before = self.u32() == 1;
        if before {
            self.at += 24;
        }
        (before, self.attributes())
    }

    /// CREATE3resok and its like; the handle.
    pub fn created(&mut self) -> Vec<u8> {
        assert_eq!(self.u32(), 1, "the handle follows");
        let handle = self.opaque();
        assert!(self.attributes().is_some());
        assert!(matches!(self.wcc(), (true, Some(_))));
        self.end();
        handle
    }

    pub fn end(&self) {
        assert_eq!(self.rest(), b"", "nothing follows");
    }
}
