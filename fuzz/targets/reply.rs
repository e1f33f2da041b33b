//! Replies as a client reads them: everything must decode, to the last byte.
//!
//! Read first: RFC 5531 section 9, RFC 1813 sections 2.5, 2.6, 3.3 and 5.2.

/// nfsstat3 of RFC 1813 section 2.6.
const NFS_STATUS: &[u32] = &[
    0, 1, 2, 5, 6, 13, 17, 18, 19, 20, 21, 22, 27, 28, 30, 31, 63, 66, 69, 70, 71, 10001, 10002, 10003, 10004, 10005, 10006,
    10007, 10008,
];
/// mountstat3 of RFC 1813 section 5.1.5.
const MOUNT_STATUS: &[u32] = &[0, 1, 2, 5, 13, 20, 22, 63, 10004, 10006];

/// The outcome of a call, from its xid on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Header {
    Success,
    /// accept_stat other than SUCCESS.
    Rejected(u32),
    Denied,
}

/// Reads item by item; what does not decode fails the fuzzer.
pub struct Answer<'a> {
    rest: &'a [u8],
}

impl<'a> Answer<'a> {
    pub fn new(rest: &'a [u8]) -> Answer<'a> {
        Answer { rest }
    }

    fn take(&mut self, n: usize) -> &'a [u8] {
        let (taken, rest) = self.rest.split_at_checked(n).expect("a reply ends early");
        self.rest = rest;
        taken
    }

    pub fn end(&self) {
        assert!(self.rest.is_empty(), "{} bytes behind the results", self.rest.len());
    }

    pub fn u32(&mut self) -> u32 {
        u32::from_be_bytes(self.take(4).try_into().expect("four bytes"))
    }

    pub fn u64(&mut self) -> u64 {
        u64::from(self.u32()) << 32 | u64::from(self.u32())
    }

    pub fn bool(&mut self) -> bool {
        match self.u32() {
            0 => false,
            1 => true,
            other => panic!("a bool of {other}"),
        }
    }

    pub fn opaque(&mut self) -> &'a [u8] {
        let len = self.u32() as usize;
        let bytes = self.take(len);
        let padding = self.take(len.next_multiple_of(4) - len);
        assert!(padding.iter().all(|byte| *byte == 0), "padding that is not zero");
        bytes
    }

    /// The reply header behind the xid.
    pub fn header(&mut self) -> Header {
        assert_eq!(self.u32(), 1, "REPLY");
        match self.u32() {
            0 => {
                assert_eq!((self.u32(), self.u32()), (0, 0), "an AUTH_NONE verifier");
                match self.u32() {
                    0 => return Header::Success,
                    2 => assert!(self.u32() <= self.u32(), "low and high version"),
                    stat => {
                        assert!(stat <= 5, "accept_stat {stat}");
                        self.end();
                        return Header::Rejected(stat);
                    }
                }
                self.end();
                Header::Rejected(2)
            }
            1 => {
                match self.u32() {
                    0 => assert_eq!((self.u32(), self.u32()), (2, 2), "RPC versions"),
                    1 => assert!((1..=14).contains(&self.u32()), "auth_stat"),
                    stat => panic!("reject_stat {stat}"),
                }
                self.end();
                Header::Denied
            }
            stat => panic!("reply_stat {stat}"),
        }
    }

    /// fattr3; the size.
    fn attributes(&mut self) -> u64 {
        assert!((1..=7).contains(&self.u32()), "ftype3");
        assert_eq!(self.u32() & !0o7777, 0, "mode");
        self.take(12);
        let size = self.u64();
        self.take(8 + 8 + 16);
        for _ in 0..3 {
            self.u32();
            assert!(self.u32() < 1_000_000_000, "nanoseconds");
        }
        size
    }

    fn post_op_attributes(&mut self) -> Option<u64> {
        self.bool().then(|| self.attributes())
    }

    fn wcc(&mut self) {
        if self.bool() {
            self.take(24);
        }
        self.post_op_attributes();
    }

    fn handle(&mut self) -> Vec<u8> {
        let handle = self.opaque();
        assert!((1..=64).contains(&handle.len()), "a handle of {} bytes", handle.len());
        handle.to_vec()
    }

    fn post_op_handle(&mut self, handles: &mut Vec<Vec<u8>>) {
        if self.bool() {
            handles.push(self.handle());
        }
    }

    /// The results of an NFSv3 procedure. Handles in them are appended to `handles`. `read`: offset and count of a READ.
    pub fn nfs3(&mut self, procedure: u32, read: Option<(u64, u32)>, read_max: u32, handles: &mut Vec<Vec<u8>>) -> u32 {
        if procedure == 0 {
            self.end();
            return 0;
        }
        let status = self.u32();
        assert!(NFS_STATUS.contains(&status), "nfsstat3 {status}");
        match (status, procedure) {
            (0, _) => self.nfs3_success(procedure, read, read_max, handles),
            (_, 1) => {}
            (_, 2 | 7..=13 | 21) => self.wcc(),
            (_, 14) => (self.wcc(), self.wcc()).0,
            (_, 15) => {
                self.post_op_attributes();
                self.wcc();
            }
            _ => drop(self.post_op_attributes()),
        }
        self.end();
        status
    }

    fn nfs3_success(&mut self, procedure: u32, read: Option<(u64, u32)>, read_max: u32, handles: &mut Vec<Vec<u8>>) {
        match procedure {
            1 => drop(self.attributes()),
            2 | 12 | 13 => self.wcc(),
            3 => {
                handles.push(self.handle());
                self.post_op_attributes();
                self.post_op_attributes();
            }
            4 => {
                self.post_op_attributes();
                assert_eq!(self.u32() & !0x3f, 0, "ACCESS bits");
            }
            5 => {
                self.post_op_attributes();
                self.opaque();
            }
            6 => self.read(read, read_max),
            7 => {
                self.wcc();
                self.u32();
                assert!(self.u32() <= 2, "stable_how");
                self.take(8);
            }
            8..=11 => {
                self.post_op_handle(handles);
                self.post_op_attributes();
                self.wcc();
            }
            14 => {
                self.wcc();
                self.wcc();
            }
            15 => {
                self.post_op_attributes();
                self.wcc();
            }
            16 | 17 => self.listing(procedure == 17, handles),
            18 => {
                self.post_op_attributes();
                self.take(52);
            }
            19 => {
                self.post_op_attributes();
                self.take(48);
            }
            20 => {
                self.post_op_attributes();
                self.take(8);
                for _ in 0..4 {
                    self.bool();
                }
            }
            21 => {
                self.wcc();
                self.take(8);
            }
            other => panic!("procedure {other} is not served"),
        }
    }

    /// RFC 1813 section 3.3.6: never more than asked for, and eof says whether that was the end.
    fn read(&mut self, request: Option<(u64, u32)>, most: u32) {
        let size = self.post_op_attributes();
        let count = self.u32();
        let end = self.bool();
        assert_eq!(self.opaque().len(), count as usize, "READ's count");
        assert!(count <= most, "{count} bytes");
        let Some((offset, asked)) = request else { return };
        assert!(count <= asked, "{count} bytes for {asked}");
        if let Some(size) = size {
            assert_eq!(end, offset.saturating_add(count.into()) >= size, "eof at {offset} + {count} of {size}");
        }
    }

    fn listing(&mut self, plus: bool, handles: &mut Vec<Vec<u8>>) {
        self.post_op_attributes();
        self.take(8);
        while self.bool() {
            self.u64();
            assert!((1..=255).contains(&self.opaque().len()), "a name");
            assert_ne!(self.u64(), 0, "a cookie");
            if plus {
                self.post_op_attributes();
                self.post_op_handle(handles);
            }
        }
        self.bool();
    }

    /// The results of a MOUNT procedure.
    pub fn mount(&mut self, procedure: u32, handles: &mut Vec<Vec<u8>>) {
        match procedure {
            1 => {
                let status = self.u32();
                assert!(MOUNT_STATUS.contains(&status), "mountstat3 {status}");
                if status == 0 {
                    handles.push(self.handle());
                    for _ in 0..self.u32() {
                        self.u32();
                    }
                }
            }
            2 => {
                while self.bool() {
                    assert!(self.opaque().len() <= 255, "a host's name");
                    assert!(self.opaque().len() <= 1024, "a path");
                }
            }
            5 => {
                while self.bool() {
                    assert!(self.opaque().len() <= 1024, "a path");
                    while self.bool() {
                        self.opaque();
                    }
                }
            }
            _ => {}
        }
        self.end();
    }
}
