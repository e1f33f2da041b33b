//! Bad input over kernel TCP sockets. Each case asserts exactly what the server answers, and after each one the server has to answer
//! NULL on a new connection and on one that was open all the time, and must still run. docs/testing.md lists them.
//! Not here: forged segments (`attack`), and malformed packets, which the simulator and the fuzz targets send.

mod calls;
mod names;
mod records;
mod streams;

use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use crate::bed::Bed;
use crate::client::{Handle, MOUNT, NFS, RPCBIND, Received, Reply, Rpc, Xdr};
use crate::report::Report;
use crate::server::Setup;

type Case = (&'static str, fn(&mut Ground) -> Result<()>);

/// How long a connection that has to be closed may stand, and how long silence counts as "no reply".
const CLOSE_LIMIT: Duration = Duration::from_secs(5);
const SILENCE: Duration = Duration::from_millis(500);
const IPPROTO_TCP: u32 = 6;

pub struct Ground {
    bed: Bed,
    root: Handle,
    mount_port: u16,
    /// Open from the start; it has to be served to the end.
    witness: Rpc,
}

const GUIDE: &str = include_str!("../../../docs/testing.md");

pub fn run(report: &mut Report) {
    report.case("each_case_is_in_the_guide", || {
        let all = [records::CASES, calls::CASES, names::CASES, streams::CASES];
        for (name, _) in all.iter().copied().flatten() {
            ensure!(GUIDE.contains(&format!("| {name} |")), "docs/testing.md does not say what {name} gets");
        }
        Ok(())
    });
    // One server for all: a case that breaks it fails, and the next one gets a new server.
    let mut ground: Option<Ground> = None;
    for cases in [records::CASES, calls::CASES, names::CASES, streams::CASES] {
        for (name, case) in cases {
            report.case(name, || {
                if ground.is_none() {
                    ground = Some(Ground::new()?);
                }
                let ready = ground.as_mut().context("the ground was just made")?;
                let outcome = case(ready).and_then(|()| ready.still_serves());
                if let Err(error) = outcome {
                    let log = ready.bed.running().map(|server| server.tail()).unwrap_or_default();
                    ground = None;
                    bail!("{error:#}\n{log}");
                }
                Ok(())
            });
        }
    }
    if let Some(ground) = ground {
        report.case("server_ends_cleanly_after_all", || ground.bed.finish());
    }
}

impl Ground {
    fn new() -> Result<Ground> {
        let bed = Bed::new(Setup::default())?;
        let mount_port = mount_port(&bed)?;
        let root = match bed.rpc_to(mount_port)?.mount(b"/export")? {
            Ok(handle) => handle,
            Err(status) => bail!("MNT of /export failed with mountstat3 {status}"),
        };
        let witness = bed.rpc()?;
        Ok(Ground { bed, root, mount_port, witness })
    }

    fn still_serves(&mut self) -> Result<()> {
        self.bed.check()?;
        self.bed.rpc().and_then(|mut rpc| rpc.null()).context("NULL on a new connection afterwards")?;
        self.witness.null().context("NULL on the connection that was open all the time")?;
        let attributes = self.witness.getattr(&self.root).context("GETATTR of the root afterwards")?;
        ensure!(attributes.kind == 2, "the export's root is no directory any more");
        Ok(())
    }

    fn rpc(&self) -> Result<Rpc> {
        self.bed.rpc()
    }

    /// A fresh file with these bytes, made over NFS.
    fn file(&mut self, name: &str, data: &[u8]) -> Result<Handle> {
        let handle = self.witness.create(&self.root, name.as_bytes())?;
        if !data.is_empty() {
            self.witness.write(&handle, 0, crate::client::FILE_SYNC, data)?;
        }
        Ok(handle)
    }
}

/// The MOUNT service's TCP port, from rpcbind (RFC 1833 section 3, PMAPPROC_GETPORT).
pub fn mount_port(bed: &Bed) -> Result<u16> {
    let arguments = Xdr::default().u32(MOUNT).u32(3).u32(IPPROTO_TCP).u32(0);
    match bed.rpc_to(111)?.call(RPCBIND, 2, 3, &arguments.0)? {
        Reply::Success(body) => {
            let port = crate::client::Reader(&body).u32()?;
            ensure!(port != 0, "rpcbind knows no MOUNT v3 over TCP");
            Ok(u16::try_from(port)?)
        }
        other => bail!("GETPORT was answered by {other:?}"),
    }
}

/// The export's file handle, for other groups.
pub fn export_root(bed: &Bed) -> Result<Handle> {
    match bed.rpc_to(mount_port(bed)?)?.mount(b"/export")? {
        Ok(handle) => Ok(handle),
        Err(status) => bail!("MNT of /export failed with mountstat3 {status}"),
    }
}

fn expect_closed(rpc: &mut Rpc) -> Result<()> {
    match rpc.receive_within(CLOSE_LIMIT)? {
        Received::Closed => Ok(()),
        Received::Silence => bail!("the connection still stands after {CLOSE_LIMIT:?}"),
        Received::Record(bytes) => bail!("a reply of {} bytes came instead of a close", bytes.len()),
    }
}

/// No reply, and the connection goes on to serve.
fn expect_ignored(rpc: &mut Rpc) -> Result<()> {
    match rpc.receive_within(SILENCE)? {
        Received::Silence => rpc.null().context("the same connection afterwards"),
        Received::Closed => bail!("the connection was closed"),
        Received::Record(bytes) => bail!("a reply of {} bytes came", bytes.len()),
    }
}

fn expect_reply(got: &Reply, expected: &Reply) -> Result<()> {
    ensure!(got == expected, "answered by {got:?}, expected {expected:?}");
    Ok(())
}

/// The nfsstat3 has to be one of `allowed`: where the RFC leaves a choice there are two.
fn expect_status(rpc: &mut Rpc, procedure: u32, arguments: &Xdr, allowed: &[u32]) -> Result<()> {
    let (status, _) = rpc.nfs(procedure, arguments)?;
    ensure!(allowed.contains(&status), "nfsstat3 {status}, expected one of {allowed:?}");
    Ok(())
}

fn expect_garbage(rpc: &mut Rpc, procedure: u32, arguments: &Xdr) -> Result<()> {
    let reply = rpc.call(NFS, 3, procedure, &arguments.0)?;
    expect_reply(&reply, &Reply::GarbageArgs)?;
    rpc.null().context("the same connection afterwards")
}

/// nfsstat3 (RFC 1813 section 2.6).
mod status {
    pub const OK: u32 = 0;
    pub const NOENT: u32 = 2;
    pub const ACCES: u32 = 13;
    pub const EXIST: u32 = 17;
    pub const NOTDIR: u32 = 20;
    pub const ISDIR: u32 = 21;
    pub const INVAL: u32 = 22;
    pub const FBIG: u32 = 27;
    pub const NAMETOOLONG: u32 = 63;
    pub const NOTEMPTY: u32 = 66;
    pub const STALE: u32 = 70;
    pub const BADHANDLE: u32 = 10_001;
    pub const NOT_SYNC: u32 = 10_002;
    pub const BAD_COOKIE: u32 = 10_003;
    pub const TOOSMALL: u32 = 10_005;
    pub const BADTYPE: u32 = 10_007;
}
