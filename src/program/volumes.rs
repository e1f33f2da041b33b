//! What the file programs serve: the exports, the stores they are kept in, and the handles that lead there. One per core.

use std::net::IpAddr;
use std::sync::Arc;

use smallvec::SmallVec;

use super::exports::{Export, ExportTable, FILE_HANDLE_MAX, RootHandles};
use super::handle::{FileHandle, HandleSeal};
use crate::store::{ObjectId, Status, Store};

/// One core's view of everything that is exported.
pub struct Volumes {
    exports: Arc<ExportTable>,
    stores: Vec<Box<dyn Store>>,
    seal: HandleSeal,
}

/// What a file handle led to.
pub struct Opened<'a> {
    pub export: &'a Export,
    pub object: ObjectId,
}

impl Volumes {
    /// `stores` in the numbering of `Export::store`.
    pub fn new(exports: Arc<ExportTable>, stores: Vec<Box<dyn Store>>, seal: HandleSeal) -> Volumes {
        Volumes { exports, stores, seal }
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

    /// The export and the object behind a handle, for a client that may use it.
    pub fn open(&self, handle: &FileHandle, client: IpAddr) -> Result<Opened<'_>, Status> {
        let (export, object) = self.seal.open(handle).ok_or(Status::BadHandle)?;
        // It was ours once: the export is gone (RFC 1813 section 2.6, NFS3ERR_STALE).
        let export = self.exports.find_by_id(export).ok_or(Status::Stale)?;
        if !export.allowed(client) {
            return Err(Status::AccessDenied);
        }
        if export.store >= self.stores.len() {
            return Err(Status::Stale);
        }
        Ok(Opened { export, object })
    }
}

impl RootHandles for Volumes {
    fn root_handle(&self, export: &Export) -> Option<SmallVec<[u8; FILE_HANDLE_MAX]>> {
        let root = self.stores.get(export.store)?.root();
        Some(self.seal.seal(export.id, root).to_smallvec())
    }
}
