//! A small ONC RPC and NFSv3 client over a kernel TCP socket, for cases that need exact control of records, credentials, xids,
//! file handles, stability and verifiers. Read first: RFC 5531 sections 9-11, RFC 1813 section 3, RFC 4506.
//! It trusts nothing it needs not to: replies are parsed with bounds, and every read has a time limit.

use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

pub const NFS: u32 = 100_003;
pub const MOUNT: u32 = 100_005;
pub const RPCBIND: u32 = 100_000;
pub const LAST_FRAGMENT: u32 = 1 << 31;
/// Past this a silent server counts as hung.
pub const REPLY_LIMIT: Duration = Duration::from_secs(10);

pub mod procedure {
    pub const GETATTR: u32 = 1;
    pub const SETATTR: u32 = 2;
    pub const LOOKUP: u32 = 3;
    pub const READLINK: u32 = 5;
    pub const READ: u32 = 6;
    pub const WRITE: u32 = 7;
    pub const CREATE: u32 = 8;
    pub const MKDIR: u32 = 9;
    pub const SYMLINK: u32 = 10;
    pub const MKNOD: u32 = 11;
    pub const REMOVE: u32 = 12;
    pub const RMDIR: u32 = 13;
    pub const RENAME: u32 = 14;
    pub const LINK: u32 = 15;
    pub const READDIR: u32 = 16;
    pub const READDIRPLUS: u32 = 17;
    pub const COMMIT: u32 = 21;
}

pub const UNSTABLE: u32 = 0;
pub const FILE_SYNC: u32 = 2;

pub type Handle = Vec<u8>;

/// Appends XDR.
#[derive(Default, Clone)]
pub struct Xdr(pub Vec<u8>);

impl Xdr {
    pub fn u32(mut self, value: u32) -> Xdr {
        self.0.extend_from_slice(&value.to_be_bytes());
        self
    }

    pub fn u64(mut self, value: u64) -> Xdr {
        self.0.extend_from_slice(&value.to_be_bytes());
        self
    }

    /// Variable-length opaque or string with its padding.
    pub fn opaque(mut self, bytes: &[u8]) -> Xdr {
        self = self.u32(u32::try_from(bytes.len()).expect("test data is short"));
        self.0.extend_from_slice(bytes);
        self.0.resize(self.0.len().next_multiple_of(4), 0);
        self
    }

    pub fn raw(mut self, bytes: &[u8]) -> Xdr {
        self.0.extend_from_slice(bytes);
        self
    }

    /// A sattr3 that sets nothing.
    pub fn no_attributes(self) -> Xdr {
        self.u32(0).u32(0).u32(0).u32(0).u32(0).u32(0)
    }
}

/// Takes XDR apart.
pub struct Reader<'a>(pub &'a [u8]);

impl<'a> Reader<'a> {
    pub fn bytes(&mut self, count: usize) -> Result<&'a [u8]> {
        ensure!(self.0.len() >= count, "a reply ends {} bytes early", count - self.0.len());
        let (head, rest) = self.0.split_at(count);
        self.0 = rest;
        Ok(head)
    }

    pub fn u32(&mut self) -> Result<u32> {
        Ok(u32::from_be_bytes(self.bytes(4)?.try_into()?))
    }

    pub fn u64(&mut self) -> Result<u64> {
        Ok(u64::from_be_bytes(self.bytes(8)?.try_into()?))
    }

    pub fn opaque(&mut self) -> Result<&'a [u8]> {
        let length = self.u32()? as usize;
        let bytes = self.bytes(length)?;
        self.bytes(length.next_multiple_of(4) - length)?;
        Ok(bytes)
    }

    /// post_op_attr; `None` if the server left them out.
    pub fn post_op_attributes(&mut self) -> Result<Option<Attributes>> {
        if self.u32()? == 0 { Ok(None) } else { self.attributes().map(Some) }
    }

    /// RFC 1813 section 2.5, fattr3: 84 bytes.
    pub fn attributes(&mut self) -> Result<Attributes> {
        let (kind, mode, links) = (self.u32()?, self.u32()?, self.u32()?);
        let (uid, gid) = (self.u32()?, self.u32()?);
        let size = self.u64()?;
        self.bytes(8 + 8 + 8)?;
        let fileid = self.u64()?;
        self.bytes(8 * 3)?;
        Ok(Attributes { kind, mode, links, uid, gid, size, fileid })
    }

    /// wcc_data is skipped: the pre-operation attributes, then the post-operation ones.
    pub fn skip_wcc(&mut self) -> Result<()> {
        if self.u32()? != 0 {
            self.bytes(24)?;
        }
        self.post_op_attributes().map(drop)
    }
}

#[derive(Debug, Clone)]
#[allow(dead_code, reason = "the whole of what a server says, whichever part a case looks at")]
pub struct Attributes {
    pub kind: u32,
    pub mode: u32,
    pub links: u32,
    pub uid: u32,
    pub gid: u32,
    pub size: u64,
    pub fileid: u64,
}

/// An RPC reply after its xid.
#[derive(Debug, PartialEq, Eq, Clone)]
pub enum Reply {
    Success(Vec<u8>),
    ProgUnavail,
    ProgMismatch { low: u32, high: u32 },
    ProcUnavail,
    GarbageArgs,
    SystemErr,
    RpcMismatch { low: u32, high: u32 },
    AuthError(u32),
}

#[derive(Clone)]
pub struct Credential {
    pub flavor: u32,
    pub body: Vec<u8>,
}

impl Credential {
    pub fn unix(uid: u32, gid: u32, groups: &[u32]) -> Credential {
        let mut body = Xdr::default().u32(0).opaque(b"e2e").u32(uid).u32(gid).u32(groups.len() as u32);
        for group in groups {
            body = body.u32(*group);
        }
        Credential { flavor: 1, body: body.0 }
    }
}

/// The call's bytes without a record marker. `arguments` follow the verifier.
pub fn call_bytes(xid: u32, program: u32, version: u32, procedure: u32, credential: &Credential, arguments: &[u8]) -> Vec<u8> {
    Xdr::default()
        .u32(xid)
        .u32(0)
        .u32(2)
        .u32(program)
        .u32(version)
        .u32(procedure)
        .u32(credential.flavor)
        .opaque(&credential.body)
        .u32(0)
        .u32(0)
        .raw(arguments)
        .0
}

/// One record in one fragment.
pub fn record(bytes: &[u8]) -> Vec<u8> {
    let mut framed = (LAST_FRAGMENT | u32::try_from(bytes.len()).expect("test data is short")).to_be_bytes().to_vec();
    framed.extend_from_slice(bytes);
    framed
}

pub fn parse_reply(bytes: &[u8]) -> Result<(u32, Reply)> {
    let mut reader = Reader(bytes);
    let xid = reader.u32()?;
    ensure!(reader.u32()? == 1, "a record from the server is not a reply");
    let reply = if reader.u32()? == 0 {
        reader.u32()?;
        reader.opaque()?;
        match reader.u32()? {
            0 => Reply::Success(reader.0.to_vec()),
            1 => Reply::ProgUnavail,
            2 => Reply::ProgMismatch { low: reader.u32()?, high: reader.u32()? },
            3 => Reply::ProcUnavail,
            4 => Reply::GarbageArgs,
            5 => Reply::SystemErr,
            other => bail!("accept_stat {other}"),
        }
    } else {
        match reader.u32()? {
            0 => Reply::RpcMismatch { low: reader.u32()?, high: reader.u32()? },
            1 => Reply::AuthError(reader.u32()?),
            other => bail!("reject_stat {other}"),
        }
    };
    Ok((xid, reply))
}

/// What came instead of a record.
#[derive(Debug, PartialEq, Eq)]
pub enum Received {
    Record(Vec<u8>),
    Closed,
    /// Nothing within the limit, and the connection stands.
    Silence,
}

pub struct Rpc {
    pub stream: TcpStream,
    pub credential: Credential,
    xid: u32,
}

impl Rpc {
    pub fn new(stream: TcpStream) -> Result<Rpc> {
        stream.set_read_timeout(Some(REPLY_LIMIT))?;
        stream.set_write_timeout(Some(REPLY_LIMIT))?;
        // Two clients of one machine must not share xids: the duplicate request cache would answer for the other.
        let xid = u32::from(stream.local_addr()?.port()) << 16;
        Ok(Rpc { stream, credential: Credential::unix(0, 0, &[]), xid })
    }

    pub fn next_xid(&mut self) -> u32 {
        self.xid = self.xid.wrapping_add(1);
        self.xid
    }

    /// Sends a call and gives its xid; the reply is fetched by `receive`.
    pub fn send(&mut self, program: u32, version: u32, procedure: u32, arguments: &[u8]) -> Result<u32> {
        let xid = self.next_xid();
        let call = call_bytes(xid, program, version, procedure, &self.credential, arguments);
        self.stream.write_all(&record(&call))?;
        Ok(xid)
    }

    pub fn send_raw(&mut self, bytes: &[u8]) -> Result<()> {
        Ok(self.stream.write_all(bytes)?)
    }

    /// One record, the end of the connection, or silence until `limit`.
    pub fn receive_within(&mut self, limit: Duration) -> Result<Received> {
        self.stream.set_read_timeout(Some(limit))?;
        let mut whole = Vec::new();
        loop {
            let mut marker = [0; 4];
            match self.stream.read_exact(&mut marker) {
                Ok(()) => {}
                Err(error) => match error.kind() {
                    ErrorKind::WouldBlock | ErrorKind::TimedOut if whole.is_empty() => return Ok(Received::Silence),
                    ErrorKind::UnexpectedEof | ErrorKind::ConnectionReset | ErrorKind::BrokenPipe => return Ok(Received::Closed),
                    _ => return Err(error.into()),
                },
            }
            let marker = u32::from_be_bytes(marker);
            let length = (marker & !LAST_FRAGMENT) as usize;
            ensure!(length <= 4 << 20, "the server announces a fragment of {length} bytes");
            let start = whole.len();
            whole.resize(start + length, 0);
            match self.stream.read_exact(&mut whole[start..]) {
                Ok(()) => {}
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                    bail!("a record of {length} bytes stops in its middle for {limit:?}");
                }
                Err(error) if matches!(error.kind(), ErrorKind::UnexpectedEof | ErrorKind::ConnectionReset) => {
                    return Ok(Received::Closed);
                }
                Err(error) => return Err(error.into()),
            }
            if marker & LAST_FRAGMENT != 0 {
                return Ok(Received::Record(whole));
            }
        }
    }

    pub fn receive(&mut self) -> Result<(u32, Reply)> {
        match self.receive_within(REPLY_LIMIT)? {
            Received::Record(bytes) => parse_reply(&bytes),
            Received::Closed => bail!("the server closed the connection"),
            Received::Silence => bail!("no reply within {REPLY_LIMIT:?}"),
        }
    }

    pub fn call(&mut self, program: u32, version: u32, procedure: u32, arguments: &[u8]) -> Result<Reply> {
        let xid = self.send(program, version, procedure, arguments)?;
        let (got, reply) = self.receive()?;
        ensure!(got == xid, "reply to xid {got:#x} instead of {xid:#x}");
        Ok(reply)
    }

    pub fn null(&mut self) -> Result<()> {
        match self.call(NFS, 3, 0, &[])? {
            Reply::Success(_) => Ok(()),
            other => bail!("NULL was answered by {other:?}"),
        }
    }

    /// An NFSv3 call: its nfsstat3 and what follows.
    pub fn nfs(&mut self, procedure: u32, arguments: &Xdr) -> Result<(u32, Vec<u8>)> {
        match self.call(NFS, 3, procedure, &arguments.0)? {
            Reply::Success(body) => split_status(&body),
            other => bail!("procedure {procedure} was answered by {other:?}"),
        }
    }

    fn nfs_ok(&mut self, procedure: u32, arguments: &Xdr) -> Result<Vec<u8>> {
        let (status, body) = self.nfs(procedure, arguments)?;
        ensure!(status == 0, "procedure {procedure} failed with nfsstat3 {status}");
        Ok(body)
    }

    /// MNT: the mountstat3 and, if it is 0, the export's file handle. This connection has to be one to the MOUNT port.
    pub fn mount(&mut self, path: &[u8]) -> Result<Result<Handle, u32>> {
        match self.call(MOUNT, 3, 1, &Xdr::default().opaque(path).0)? {
            Reply::Success(body) => {
                let (status, body) = split_status(&body)?;
                Ok(if status == 0 { Ok(Reader(&body).opaque()?.to_vec()) } else { Err(status) })
            }
            other => bail!("MNT was answered by {other:?}"),
        }
    }

    pub fn getattr(&mut self, handle: &[u8]) -> Result<Attributes> {
        let body = self.nfs_ok(procedure::GETATTR, &Xdr::default().opaque(handle))?;
        Reader(&body).attributes()
    }

    pub fn lookup(&mut self, folder: &[u8], name: &[u8]) -> Result<Handle> {
        let body = self.nfs_ok(procedure::LOOKUP, &Xdr::default().opaque(folder).opaque(name))?;
        Ok(Reader(&body).opaque()?.to_vec())
    }

    /// CREATE, unchecked, mode 0644.
    pub fn create(&mut self, folder: &[u8], name: &[u8]) -> Result<Handle> {
        let arguments = Xdr::default().opaque(folder).opaque(name).u32(0).u32(1).u32(0o644).u32(0).u32(0).u32(0).u32(0).u32(0);
        let body = self.nfs_ok(procedure::CREATE, &arguments)?;
        let mut reader = Reader(&body);
        ensure!(reader.u32()? == 1, "CREATE gave no file handle");
        Ok(reader.opaque()?.to_vec())
    }

    pub fn mkdir(&mut self, folder: &[u8], name: &[u8]) -> Result<Handle> {
        let arguments = Xdr::default().opaque(folder).opaque(name).u32(1).u32(0o755).u32(0).u32(0).u32(0).u32(0).u32(0);
        let body = self.nfs_ok(procedure::MKDIR, &arguments)?;
        let mut reader = Reader(&body);
        ensure!(reader.u32()? == 1, "MKDIR gave no file handle");
        Ok(reader.opaque()?.to_vec())
    }

    pub fn write(&mut self, handle: &[u8], offset: u64, stable: u32, data: &[u8]) -> Result<Written> {
        let body = self.nfs_ok(procedure::WRITE, &write_arguments(handle, offset, stable, data))?;
        Written::parse(&body)
    }

    pub fn commit(&mut self, handle: &[u8]) -> Result<[u8; 8]> {
        let body = self.nfs_ok(procedure::COMMIT, &Xdr::default().opaque(handle).u64(0).u32(0))?;
        let mut reader = Reader(&body);
        reader.skip_wcc()?;
        Ok(reader.bytes(8)?.try_into()?)
    }

    pub fn read(&mut self, handle: &[u8], offset: u64, count: u32) -> Result<Vec<u8>> {
        let body = self.nfs_ok(procedure::READ, &Xdr::default().opaque(handle).u64(offset).u32(count))?;
        parse_read(&body).map(|(data, _)| data)
    }
}

pub fn split_status(body: &[u8]) -> Result<(u32, Vec<u8>)> {
    let mut reader = Reader(body);
    let status = reader.u32().context("a reply without a status")?;
    Ok((status, reader.0.to_vec()))
}

pub fn write_arguments(handle: &[u8], offset: u64, stable: u32, data: &[u8]) -> Xdr {
    Xdr::default().opaque(handle).u64(offset).u32(data.len() as u32).u32(stable).opaque(data)
}

/// READ3resok: the data and whether the end of the file was reached.
pub fn parse_read(body: &[u8]) -> Result<(Vec<u8>, bool)> {
    let mut reader = Reader(body);
    reader.post_op_attributes()?;
    let count = reader.u32()?;
    let eof = reader.u32()? != 0;
    let data = reader.opaque()?.to_vec();
    ensure!(data.len() == count as usize, "READ says {count} bytes and carries {}", data.len());
    ensure!(reader.0.is_empty(), "{} bytes follow a READ's data", reader.0.len());
    Ok((data, eof))
}

pub struct Written {
    pub count: u32,
    pub committed: u32,
    pub verifier: [u8; 8],
}

impl Written {
    pub fn parse(body: &[u8]) -> Result<Written> {
        let mut reader = Reader(body);
        reader.skip_wcc()?;
        Ok(Written { count: reader.u32()?, committed: reader.u32()?, verifier: reader.bytes(8)?.try_into()? })
    }
}
