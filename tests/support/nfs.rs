//! ONC RPC and NFSv3 as bytes, the client's side, as far as tests need it (RFC 5531, RFC 1813).

pub const GETATTR: u32 = 1;
pub const SETATTR: u32 = 2;
pub const LOOKUP: u32 = 3;
pub const READ: u32 = 6;
pub const WRITE: u32 = 7;
pub const CREATE: u32 = 8;
pub const REMOVE: u32 = 12;
pub const RENAME: u32 = 14;
pub const NULL: u32 = 0;

pub const NFS3_OK: u32 = 0;
pub const NFS3ERR_NOENT: u32 = 2;

const PROGRAM: u32 = 100_003;
const VERSION: u32 = 3;
const UID: u32 = 1000;

/// A call's message: RPC header with AUTH_SYS, then the arguments.
pub fn call(xid: u32, procedure: u32, arguments: &Args) -> Vec<u8> {
    let credential = Args::new().u32(0).opaque(b"rig").u32(UID).u32(UID).u32(0);
    let header = Args::new().u32(xid).u32(0).u32(2).u32(PROGRAM).u32(VERSION).u32(procedure);
    header.u32(1).opaque(&credential.0).u32(0).u32(0).fixed(&arguments.0).0
}

/// A message as a record of one fragment.
pub fn record(message: &[u8]) -> Vec<u8> {
    [&(1 << 31 | message.len() as u32).to_be_bytes()[..], message].concat()
}

/// xid and results of an accepted, successful call; `Err` is the whole message.
pub fn accepted(message: Vec<u8>) -> Result<(u32, Answer), Vec<u8>> {
    let mut answer = Answer { bytes: message, at: 0 };
    if answer.bytes.len() < 24 {
        return Err(answer.bytes);
    }
    let xid = answer.u32();
    // REPLY, MSG_ACCEPTED, AUTH_NONE with an empty body, SUCCESS.
    let header = [answer.u32(), answer.u32(), answer.u32(), answer.u32(), answer.u32()];
    if header == [1, 0, 0, 0, 0] { Ok((xid, answer)) } else { Err(answer.bytes) }
}

pub fn read(file: &[u8], offset: u64, count: u32) -> Args {
    Args::new().opaque(file).u64(offset).u32(count)
}

/// FILE_SYNC.
pub fn write(file: &[u8], offset: u64, data: &[u8]) -> Args {
    Args::new().opaque(file).u64(offset).u32(data.len() as u32).u32(2).opaque(data)
}

/// UNSTABLE.
pub fn write_unstable(file: &[u8], offset: u64, data: &[u8]) -> Args {
    Args::new().opaque(file).u64(offset).u32(data.len() as u32).u32(0).opaque(data)
}

/// UNCHECKED, with mode 0644.
pub fn create(directory: &[u8], name: &[u8]) -> Args {
    Args::new().opaque(directory).opaque(name).u32(0).u32(1).u32(0o644).u32(0).u32(0).u32(0).u32(0).u32(0)
}

/// SETATTR of the size alone, without a guard.
pub fn set_size(file: &[u8], size: u64) -> Args {
    Args::new().opaque(file).u32(0).u32(0).u32(0).u32(1).u64(size).u32(0).u32(0).u32(0)
}

/// Arguments, item by item.
#[derive(Clone, Debug, Default)]
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
}

/// Results, read item by item. Reading behind the end fails the test.
#[derive(Clone, Debug)]
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

    /// nfsstat3, which must be NFS3_OK.
    pub fn ok(mut self) -> Answer {
        assert_eq!(self.u32(), NFS3_OK, "nfsstat3");
        self
    }

    /// post_op_attr; the size.
    pub fn attributes(&mut self) -> Option<u64> {
        (self.u32() == 1).then(|| self.fattr())
    }

    /// fattr3; the size.
    pub fn fattr(&mut self) -> u64 {
        self.at += 20;
        let size = self.u64();
        self.at += 56;
        size
    }

    /// wcc_data; the size afterwards.
    pub fn wcc(&mut self) -> Option<u64> {
        if self.u32() == 1 {
            self.at += 24;
        }
        self.attributes()
    }

    /// CREATE3resok; the handle.
    pub fn created(mut self) -> Vec<u8> {
        assert_eq!(self.u32(), 1, "the handle follows");
        self.opaque()
    }

    /// READ3resok; the data, padded to the end of the message.
    pub fn data(mut self) -> Vec<u8> {
        self.attributes().expect("attributes");
        let count = self.u32();
        let _end_of_file = self.u32();
        let data = self.opaque();
        assert_eq!(data.len(), count as usize);
        assert_eq!(self.rest(), b"", "nothing follows");
        data
    }
}
