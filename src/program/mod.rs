//! The programs behind the RPC server: rpcbind, MOUNT, NFSv3.
//!
//! - `exports`: what is served, to whom, as whom.
//! - `handle`: file handles, sealed under a key.
//! - `volumes`: exports, stores and handles together, as one core has them.
//! - `rpcbind`: where the programs listen.
//! - `mount`: from an export's path to its first file handle.
//! - `nfs3`: the NFS version 3 program.
//!
//! [`ProgramTable`] is all of them for one core, as the RPC server wants them. The ticket of a call is the token of the
//! operation it waits for, so a completion finds its program by the number alone.
//!
//! May import: `rpc`, `store`, `buf`, `time`, `counters`. Knows neither TCP nor record marks.
#![allow(clippy::result_large_err, reason = "a failure carries two wcc_data on the stack; a box would allocate per failing call")]

pub mod exports;
pub mod handle;
pub mod mount;
pub mod nfs3;
pub mod rpcbind;
pub mod volumes;

use std::ops::RangeInclusive;

use crate::buf::Slice;
use crate::counters;
use crate::rpc::auth::AuthStat;
use crate::rpc::xdr::Decoder;
use crate::rpc::{Call, Disposition, ProcedureInfo, Programs, Results, Ticket, Transport};
use crate::time::Instant;

use mount::Mount;
use nfs3::Nfs3;
use rpcbind::Rpcbind;
use volumes::Volumes;

counters! {
    /// What one core's table of programs counts beside the programs' own.
    pub struct ProgramCounters {
        /// Completions of a store that no parked call waits for: a store's error.
        completions_unknown,
        /// Lists asked for by datagram from addresses that may use no export, refused.
        lists_refused,
    }
}

/// One core's programs.
pub struct ProgramTable {
    volumes: Volumes,
    rpcbind: Rpcbind,
    mount: Mount,
    nfs3: Nfs3,
    counters: ProgramCounters,
}

impl ProgramTable {
    pub fn new(volumes: Volumes, rpcbind: Rpcbind, mount: Mount, nfs3: Nfs3) -> ProgramTable {
        ProgramTable { volumes, rpcbind, mount, nfs3, counters: ProgramCounters::default() }
    }

    pub fn volumes(&self) -> &Volumes {
        &self.volumes
    }

    pub fn volumes_mut(&mut self) -> &mut Volumes {
        &mut self.volumes
    }

    pub fn rpcbind(&self) -> &Rpcbind {
        &self.rpcbind
    }

    pub fn mount(&self) -> &Mount {
        &self.mount
    }

    pub fn nfs3(&self) -> &Nfs3 {
        &self.nfs3
    }

    pub fn counters(&self) -> &ProgramCounters {
        &self.counters
    }

    /// Whether the answer is many times longer than the call and goes to an address that anybody may have put there: the lists
    /// over UDP, but to those who may use an export. (Well known as an amplifier: US-CERT TA14-017A, portmap.)
    fn would_reflect(&self, call: &Call<'_>) -> bool {
        let is_list = match call.program {
            rpcbind::PROGRAM => rpcbind::is_list(call.procedure),
            mount::PROGRAM => mount::is_list(call.procedure),
            _ => false,
        };
        is_list
            && call.peer.transport == Transport::Udp
            && !self.volumes.exports().iter().any(|export| export.allowed(call.peer.ip()))
    }

    /// Operations that wait in the stores: while there are any, `poll_completion` must be called again.
    pub fn parked(&self) -> usize {
        self.volumes.parked()
    }
}

impl Programs for ProgramTable {
    fn versions(&self, program: u32, transport: Transport) -> Option<RangeInclusive<u32>> {
        match program {
            rpcbind::PROGRAM => Some(rpcbind::VERSIONS),
            mount::PROGRAM => Some(mount::VERSION..=mount::VERSION),
            // Its replies are far larger than datagrams, and nothing would pace them (RFC 8085 section 3.1).
            nfs3::PROGRAM if transport == Transport::Tcp => Some(nfs3::VERSION..=nfs3::VERSION),
            _ => None,
        }
    }

    fn procedure(&self, program: u32, version: u32, procedure: u32) -> Option<ProcedureInfo> {
        match program {
            rpcbind::PROGRAM => self.rpcbind.procedure(version, procedure),
            mount::PROGRAM => self.mount.procedure(procedure),
            nfs3::PROGRAM => self.nfs3.procedure(procedure),
            _ => None,
        }
    }

    #[inline]
    fn expect(&self, program: u32, procedure: u32, arguments: Decoder<'_>) {
        if program == nfs3::PROGRAM {
            self.nfs3.expect(&self.volumes, procedure, arguments);
        }
    }

    fn call(&mut self, now: Instant, call: &Call<'_>, ticket: Ticket, results: &mut Results<'_>) -> Disposition {
        if self.would_reflect(call) {
            self.counters.lists_refused += 1;
            return Disposition::AuthError(AuthStat::TooWeak);
        }
        match call.program {
            rpcbind::PROGRAM => self.rpcbind.call(now, call, results),
            mount::PROGRAM => self.mount.call(&mut self.volumes, now, call, ticket, results),
            nfs3::PROGRAM => self.nfs3.call(&mut self.volumes, now, call, ticket, results),
            // `versions` named no other, so the server asked for none.
            _ => Disposition::SystemError,
        }
    }

    fn pages_refused(&self) -> u64 {
        self.volumes.stores().iter().map(|store| store.pages_refused()).sum()
    }

    fn poll_completion(&mut self, now: Instant, pages: &mut Vec<Slice>) -> Option<Ticket> {
        loop {
            let before = pages.len();
            let (token, result) = self.volumes.poll_completion(now, pages)?;
            let unclaimed = match self.nfs3.deliver(token, result) {
                Ok(ticket) => return Some(ticket),
                Err(result) => result,
            };
            if let Ok(ticket) = self.mount.deliver(token, unclaimed) {
                return Some(ticket);
            }
            self.counters.completions_unknown += 1;
            pages.truncate(before);
        }
    }

    fn complete(&mut self, now: Instant, ticket: Ticket, results: &mut Results<'_>) -> Disposition {
        if self.mount.owns(ticket) {
            return self.mount.complete(&mut self.volumes, now, ticket, results);
        }
        self.nfs3.complete(&self.volumes, ticket, results)
    }
}

#[cfg(test)]
mod tests;
