//! What the file programs serve: the exports, the stores they are kept in, and the handles that lead there. One per core.

use std::net::IpAddr;
use std::sync::Arc;

use smallvec::SmallVec;

use super::exports::{Export, ExportTable, FILE_HANDLE_MAX};
use super::handle::{HandleSeal, OpenedHandles};
use super::mount::MountTree;
use crate::buf::Slice;
use crate::store::{Credential, Failure, ObjectId, Operation, Outcome, Start, Status, Store, Token};
use crate::time::Instant;

/// One core's view of everything that is exported.
pub struct Volumes {
    exports: Arc<ExportTable>,
    stores: Vec<Box<dyn Store>>,
    seal: HandleSeal,
    opened: OpenedHandles,
    /// The store to ask first for completions, so that a busy one does not starve the others.
    next_store: usize,
}

impl Volumes {
    /// `stores` in the numbering of `Export::store`.
    pub fn new(exports: Arc<ExportTable>, stores: Vec<Box<dyn Store>>, seal: HandleSeal) -> Volumes {
        Volumes { exports, stores, seal, opened: OpenedHandles::new(), next_store: 0 }
    }

    /// Takes a new export table (the configuration changed). The stores stay; a new export must name one of them.
    pub fn set_exports(&mut self, exports: Arc<ExportTable>) {
        self.exports = exports;
    }

    pub fn exports(&self) -> &ExportTable {
        &self.exports
    }

    pub fn seal(&self) -> &HandleSeal {
        &self.seal
    }

    pub fn stores(&self) -> &[Box<dyn Store>] {
        &self.stores
    }

    pub fn stores_mut(&mut self) -> &mut [Box<dyn Store>] {
        &mut self.stores
    }

    /// Operations that wait in the stores.
    pub fn parked(&self) -> usize {
        self.stores.iter().map(|store| store.parked()).sum()
    }

    /// Takes one finished operation from the stores; a READ's data are appended to `pages`.
    pub fn poll_completion(&mut self, now: Instant, pages: &mut Vec<Slice>) -> Option<(Token, Result<Outcome, Failure>)> {
        for turn in 0..self.stores.len() {
            let at = (self.next_store + turn) % self.stores.len();
            if let Some(done) = self.stores[at].poll_completion(now, pages) {
                self.next_store = at + 1;
                return Some(done);
            }
        }
        None
    }

    /// The export and the object that a handle names, if it is one of ours.
    pub fn open(&mut self, handle: &[u8]) -> Result<(u32, ObjectId), Status> {
        self.opened.open(&self.seal, handle).ok_or(Status::BadHandle)
    }

    /// A READ with this handle will probably come next. Only memory is asked for, so a wrong guess does no harm.
    pub fn expect_read(&self, handle: &[u8], offset: u64) {
        if let Some((export, object)) = self.opened.guess(handle)
            && let Some(export) = self.exports.find_by_id(export)
            && let Some(store) = self.stores.get(export.store)
        {
            store.expect_read(object, offset);
        }
    }

    /// The export of a handle, for a client that may use it.
    pub fn admit(&self, export: u32, client: IpAddr) -> Result<&Export, Status> {
        // It was ours once: the export is gone (RFC 1813 section 2.6, NFS3ERR_STALE).
        let export = self.exports.find_by_id(export).ok_or(Status::Stale)?;
        if !export.allowed(client) {
            return Err(Status::AccessDenied);
        }
        if export.store >= self.stores.len() {
            return Err(Status::Stale);
        }
        Ok(export)
    }
}

impl MountTree for Volumes {
    fn exports(&self) -> &ExportTable {
        &self.exports
    }

    fn root(&self, export: &Export) -> Option<ObjectId> {
        Some(self.stores.get(export.store)?.root())
    }

    fn start(
        &mut self,
        now: Instant,
        store: usize,
        caller: &Credential,
        operation: &Operation<'_>,
        token: Token,
        pages: &mut Vec<Slice>,
    ) -> Start {
        match self.stores.get_mut(store) {
            Some(store) => store.start(now, caller, operation, token, pages),
            None => Start::Done(Err(Status::Stale.into())),
        }
    }

    fn file_handle(&self, export: u32, object: ObjectId) -> SmallVec<[u8; FILE_HANDLE_MAX]> {
        self.seal.seal(export, object).to_smallvec()
    }
}
