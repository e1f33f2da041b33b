//! What has to be there before the load starts: the ports, the export's root handle, the files of the working set.
//!
//! Read first: RFC 1833 section 3 (GETPORT), RFC 1813 appendix I (MNT) and section 3.3 (LOOKUP, CREATE, MKDIR, FSINFO).
//! Files that are there with their size are taken as they are, so that runs can follow each other; others are made, and told to the
//! caller, who fills them.

use std::net::{IpAddr, SocketAddr};

use super::conversation::{Conversation, ConversationError};
use super::protocol::{Caller, FileEntry, FileSet, HANDLE_MAX, NAME_MAX, post_op_attr, wcc_data};
use super::transport::Transport;
use crate::buf::View;
use crate::program::{mount, nfs3, rpcbind};
use crate::rpc::xdr::{Decoder, Encoder, XdrError};
use crate::time::Duration;

/// IPPROTO_TCP (RFC 1833 section 3.1).
const IPPROTO_TCP: u32 = 6;
/// Most bytes of a READ or WRITE that is asked for.
const TRANSFER_MAX: u32 = 64 << 20;

const LOOKUP: u32 = 3;
const CREATE: u32 = 8;
const MKDIR: u32 = 9;
const FSINFO: u32 = 19;
const GETPORT: u32 = 3;
const MNT: u32 = 1;
/// NFS3ERR_NOENT.
const NO_ENTRY: u32 = 2;

/// Where and what.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wanted {
    pub server: IpAddr,
    pub export: String,
    /// `None`: rpcbind is asked.
    pub nfs_port: Option<u16>,
    pub mount_port: Option<u16>,
    pub caller: Caller,
    pub timeout: Duration,
    /// `None`: no files are needed.
    pub files: Option<WantedFiles>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WantedFiles {
    /// Directory below the export's root.
    pub directory: String,
    pub count: u32,
    /// Bytes of each.
    pub bytes: u64,
}

/// What was found or made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    pub nfs: SocketAddr,
    pub set: FileSet,
    /// Numbers of the files that have less than their bytes.
    pub unfilled: Vec<u32>,
    /// FSINFO's rtmax and wtmax, bytes.
    pub read_max: u32,
    pub write_max: u32,
}

/// Why there is nothing to load.
#[derive(Debug, thiserror::Error)]
pub enum PrepareError {
    #[error("rpcbind: {0}")]
    Rpcbind(ConversationError),
    #[error("rpcbind on {0} knows no {1} over TCP: name its port")]
    NotRegistered(IpAddr, &'static str),
    #[error("MOUNT: {0}")]
    Mount(ConversationError),
    #[error("MOUNT of {export}: mountstat3 {status}{}", mount_status(*status))]
    MountRefused { export: String, status: u32 },
    #[error("NFS: {0}")]
    Nfs(ConversationError),
    #[error("{procedure} {name}: nfsstat3 {status}{}", nfs_status(*status))]
    Refused { procedure: &'static str, name: String, status: u32 },
}

fn mount_status(status: u32) -> &'static str {
    match status {
        2 => " (MNT3ERR_NOENT: there is no such export)",
        13 => " (MNT3ERR_ACCES: this client may not use it)",
        _ => "",
    }
}

/// The words of RFC 1813 section 2.6 for what a generator meets.
pub fn nfs_status(status: u32) -> &'static str {
    match status {
        1 => " (NFS3ERR_PERM)",
        2 => " (NFS3ERR_NOENT)",
        5 => " (NFS3ERR_IO)",
        13 => " (NFS3ERR_ACCES)",
        17 => " (NFS3ERR_EXIST)",
        20 => " (NFS3ERR_NOTDIR)",
        21 => " (NFS3ERR_ISDIR)",
        22 => " (NFS3ERR_INVAL)",
        27 => " (NFS3ERR_FBIG)",
        28 => " (NFS3ERR_NOSPC)",
        30 => " (NFS3ERR_ROFS)",
        69 => " (NFS3ERR_DQUOT)",
        70 => " (NFS3ERR_STALE)",
        10001 => " (NFS3ERR_BADHANDLE)",
        10006 => " (NFS3ERR_SERVERFAULT)",
        10008 => " (NFS3ERR_JUKEBOX)",
        _ => "",
    }
}

/// Finds or makes everything.
pub fn prepare<T: Transport>(transport: &mut T, wanted: &Wanted) -> Result<Target, PrepareError> {
    let port = |known: Option<u16>, transport: &mut T, program, version, name| match known {
        Some(port) => Ok(port),
        None => ask_rpcbind(transport, wanted, program, version, name),
    };
    let nfs_port = port(wanted.nfs_port, transport, nfs3::PROGRAM, nfs3::VERSION, "NFS version 3")?;
    let nfs = SocketAddr::new(wanted.server, nfs_port);
    let mut target =
        Target { nfs, set: FileSet::default(), unfilled: Vec::new(), read_max: TRANSFER_MAX, write_max: TRANSFER_MAX };
    let Some(files) = &wanted.files else { return Ok(target) };
    let mount_port = port(wanted.mount_port, transport, mount::PROGRAM, mount::VERSION, "MOUNT version 3")?;
    let root = mount_export(transport, wanted, SocketAddr::new(wanted.server, mount_port))?;
    let conversation = Conversation::open(transport, nfs, (nfs3::PROGRAM, nfs3::VERSION), &wanted.caller, wanted.timeout)
        .map_err(PrepareError::Nfs)?;
    let mut nfs3 = Nfs3Client { conversation };
    (target.read_max, target.write_max) = nfs3.transfer_max(&root)?;
    let directory = match nfs3.lookup(&root, &files.directory)? {
        Some((handle, _)) => handle,
        None => nfs3.make(MKDIR, &root, &files.directory)?,
    };
    for number in 0..files.count {
        let name = format!("f{number:06}");
        let (handle, size) = match nfs3.lookup(&directory, &name)? {
            Some(found) => found,
            None => (nfs3.make(CREATE, &directory, &name)?, 0),
        };
        if size < files.bytes {
            target.unfilled.push(number);
        }
        target.set.files.push(FileEntry { name, handle });
    }
    target.set.directory = directory;
    nfs3.conversation.close();
    Ok(target)
}

/// PMAPPROC_GETPORT (RFC 1833 section 3.2).
fn ask_rpcbind<T: Transport>(
    transport: &mut T,
    wanted: &Wanted,
    program: u32,
    version: u32,
    name: &'static str,
) -> Result<u16, PrepareError> {
    let remote = SocketAddr::new(wanted.server, rpcbind::PORT);
    let mut conversation = Conversation::open(transport, remote, (rpcbind::PROGRAM, 2), &wanted.caller, wanted.timeout)
        .map_err(PrepareError::Rpcbind)?;
    let arguments = |e: &mut Encoder<'_>| [program, version, IPPROTO_TCP, 0].into_iter().for_each(|word| e.u32(word));
    let results = conversation.call(GETPORT, arguments).map_err(PrepareError::Rpcbind)?;
    let port = Decoder::new(View::from(&results[..])).u32();
    conversation.close();
    match port.ok().and_then(|port| u16::try_from(port).ok()) {
        Some(0) | None => Err(PrepareError::NotRegistered(wanted.server, name)),
        Some(port) => Ok(port),
    }
}

/// The export's root handle.
fn mount_export<T: Transport>(transport: &mut T, wanted: &Wanted, remote: SocketAddr) -> Result<Vec<u8>, PrepareError> {
    let mut conversation =
        Conversation::open(transport, remote, (mount::PROGRAM, mount::VERSION), &wanted.caller, wanted.timeout)
            .map_err(PrepareError::Mount)?;
    let results = conversation.call(MNT, |e| e.opaque(wanted.export.as_bytes())).map_err(PrepareError::Mount)?;
    let mut d = Decoder::new(View::from(&results[..]));
    let read = (|| -> Result<Result<Vec<u8>, u32>, XdrError> {
        match d.u32()? {
            0 => Ok(Ok(d.opaque(HANDLE_MAX)?.to_vec())),
            status => Ok(Err(status)),
        }
    })();
    let malformed = conversation.malformed();
    conversation.close();
    match read {
        Err(_) => Err(PrepareError::Mount(malformed)),
        Ok(Err(status)) => Err(PrepareError::MountRefused { export: wanted.export.clone(), status }),
        Ok(Ok(handle)) => Ok(handle),
    }
}

struct Nfs3Client<'t, T> {
    conversation: Conversation<'t, T>,
}

impl<T: Transport> Nfs3Client<'_, T> {
    /// A call that answers with a status: the status, and what `read` makes of the results if it is NFS3_OK.
    fn call<R>(
        &mut self,
        procedure: u32,
        arguments: impl FnOnce(&mut Encoder<'_>),
        read: impl FnOnce(&mut Decoder<'_>) -> Result<R, XdrError>,
    ) -> Result<Result<R, u32>, PrepareError> {
        let results = self.conversation.call(procedure, arguments).map_err(PrepareError::Nfs)?;
        let mut d = Decoder::new(View::from(&results[..]));
        let answer = d.u32().and_then(|status| if status == 0 { read(&mut d).map(Ok) } else { Ok(Err(status)) });
        answer.map_err(|_| PrepareError::Nfs(self.conversation.malformed()))
    }

    /// rtmax and wtmax of FSINFO (RFC 1813 section 3.3.19).
    fn transfer_max(&mut self, root: &[u8]) -> Result<(u32, u32), PrepareError> {
        let read = |d: &mut Decoder<'_>| {
            post_op_attr(d)?;
            let read_max = d.u32()?;
            d.skip(8)?;
            Ok((read_max.min(TRANSFER_MAX), d.u32()?.min(TRANSFER_MAX)))
        };
        let answer = self.call(FSINFO, |e| e.opaque(root), read)?;
        answer.map_err(|status| PrepareError::Refused { procedure: "FSINFO", name: "of the root".into(), status })
    }

    /// Handle and size, if it is there.
    fn lookup(&mut self, directory: &[u8], name: &str) -> Result<Option<(Vec<u8>, u64)>, PrepareError> {
        let arguments = |e: &mut Encoder<'_>| {
            e.opaque(directory);
            e.opaque(name.as_bytes());
        };
        let read = |d: &mut Decoder<'_>| {
            let handle = d.opaque(HANDLE_MAX)?.to_vec();
            // The size lies behind type, mode, links, uid and gid (RFC 1813 section 2.6). Unknown: fill it.
            let size = if d.bool()? {
                d.skip(20)?;
                d.u64()?
            } else {
                0
            };
            Ok((handle, size))
        };
        match self.call(LOOKUP, arguments, read)? {
            Ok(found) => Ok(Some(found)),
            Err(NO_ENTRY) => Ok(None),
            Err(status) => Err(PrepareError::Refused { procedure: "LOOKUP", name: name.to_owned(), status }),
        }
    }

    /// CREATE (UNCHECKED) or MKDIR.
    fn make(&mut self, procedure: u32, directory: &[u8], name: &str) -> Result<Vec<u8>, PrepareError> {
        let arguments = |e: &mut Encoder<'_>| {
            e.opaque(directory);
            e.opaque(name.as_bytes());
            if procedure == CREATE {
                e.u32(0);
            }
            // sattr3: the mode and nothing else.
            e.u32(1);
            e.u32(if procedure == CREATE { 0o644 } else { 0o755 });
            (0..5).for_each(|_| e.u32(0));
        };
        let read = |d: &mut Decoder<'_>| {
            let handle = if d.bool()? { d.opaque(HANDLE_MAX)?.to_vec() } else { Vec::new() };
            post_op_attr(d)?;
            wcc_data(d)?;
            Ok(handle)
        };
        let word = if procedure == CREATE { "CREATE" } else { "MKDIR" };
        let refused = |status| PrepareError::Refused { procedure: word, name: name.to_owned(), status };
        let handle = self.call(procedure, arguments, read)?.map_err(refused)?;
        if !handle.is_empty() {
            return Ok(handle);
        }
        // The handle is optional (RFC 1813 section 3.3.8).
        let found = self.lookup(directory, name)?;
        found.map(|(handle, _)| handle).ok_or(refused(NO_ENTRY))
    }
}

/// Whether a file name can be one.
pub fn is_name(name: &str) -> bool {
    !name.is_empty() && name.len() <= NAME_MAX && !name.contains(['/', '\0']) && name != "." && name != ".."
}
