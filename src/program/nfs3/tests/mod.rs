//! NFSv3 by the byte: each procedure's success and main errors, over a store that answers at once and over one that parks.

mod listings;
mod rig;

use proptest::prelude::*;

use self::rig::{Answer, Args, BLOCK, Rig, sys};
use super::*;

const PERM: u32 = 1;
const NOENT: u32 = 2;
const ACCES: u32 = 13;
const EXIST: u32 = 17;
const XDEV: u32 = 18;
const NOTDIR: u32 = 20;
const ISDIR: u32 = 21;
const INVAL: u32 = 22;
const FBIG: u32 = 27;
const ROFS: u32 = 30;
const NAMETOOLONG: u32 = 63;
const NOTEMPTY: u32 = 66;
const STALE: u32 = 70;
const BADHANDLE: u32 = 10001;
const NOT_SYNC: u32 = 10002;
const BADTYPE: u32 = 10007;
const JUKEBOX: u32 = 10008;

/// Runs a test over both kinds of store.
fn both(test: impl Fn(&mut Rig)) {
    for parking in [false, true] {
        test(&mut Rig::new(parking));
    }
}

fn at(handle: &[u8]) -> Args {
    Args::new().opaque(handle)
}

#[test]
fn null_answers_nothing() {
    both(|rig| assert_eq!(rig.raw(0, &[]), (Disposition::Replied, vec![])));
    assert!(Nfs3::new(Options::default()).procedure(22).is_none());
    assert_eq!(Nfs3::new(Options::default()).procedure(21).unwrap().name, "COMMIT");
}

#[test]
fn getattr_to_the_byte() {
    both(|rig| {
        let root = rig.root(1);
        let (disposition, reply) = rig.raw(1, &at(&root).0);
        assert_eq!(disposition, Disposition::Replied);
        #[rustfmt::skip]
        let expected: &[u8] = &[
            0, 0, 0, 0,                                     // NFS3_OK
            0, 0, 0, 2,  0, 0, 1, 0xff,  0, 0, 0, 2,        // NF3DIR, 0777, two links
            0, 0, 0, 0,  0, 0, 0, 0,                        // uid, gid
            0, 0, 0, 0, 0, 0, 0, 128,                       // size: "." and ".."
            0, 0, 0, 0, 0, 0, 0, 128,                       // used
            0, 0, 0, 0, 0, 0, 0, 0,                         // rdev
            0, 0, 0, 0, 0, 0, 0, 1,                         // fsid
            0, 0, 0, 1, 0, 0, 0, 1,                         // fileid
            0, 0, 3, 0xe8, 0, 0, 0, 0,                      // atime: 1000 s
            0, 0, 3, 0xe8, 0, 0, 0, 0,                      // mtime
            0, 0, 3, 0xe8, 0, 0, 0, 0,                      // ctime
        ];
        assert_eq!(reply, expected);
    });
}

#[test]
fn a_read_to_the_byte() {
    both(|rig| {
        let root = rig.root(1);
        let file = rig.create(&root, b"f", 0o644);
        assert_eq!(rig.write(&file, 0, b"hello world"), 0);
        #[rustfmt::skip]
        let arguments = [
            &[0, 0, 0, file.len() as u8][..], &file[..], &[0; 2][..file.len().next_multiple_of(4) - file.len()],
            &[0, 0, 0, 0, 0, 0, 0, 6], &[0, 0, 0, 100],
        ].concat();
        let (_, reply) = rig.raw(6, &arguments);
        assert_eq!(reply[..8], [0, 0, 0, 0, 0, 0, 0, 1], "NFS3_OK, attributes follow");
        assert_eq!(reply[8 + 84..], *b"\0\0\0\x05\0\0\0\x01\0\0\0\x05world", "count, eof, length, data without padding");
    });
}

#[test]
fn handles_that_lead_nowhere() {
    both(|rig| {
        let root = rig.root(1);
        let file = rig.create(&root, b"f", 0o644);
        for cut in 0..root.len() {
            assert_eq!(rig.status(1, &at(&root[..cut])), BADHANDLE);
        }
        let mut forged = root.clone();
        forged[10] ^= 1;
        assert_eq!(rig.status(1, &at(&forged)), BADHANDLE);
        assert_eq!(rig.status(1, &at(&[&root[..], &[0]].concat())), BADHANDLE);
        assert_eq!(rig.raw(1, &at(&[0; 65]).0).0, Disposition::GarbageArgs, "no nfs_fh3");
        let foreign = HandleSealOf::another_key(rig);
        assert_eq!(rig.status(1, &at(&foreign)), BADHANDLE);
        let object = rig.volumes.stores()[0].root();
        let unknown = rig.volumes.seal().seal(77, object).as_bytes().to_vec();
        assert_eq!(rig.status(1, &at(&unknown)), STALE);
        let other_store = rig.volumes.seal().seal(2, object).as_bytes().to_vec();
        assert_eq!(rig.status(1, &at(&other_store)), STALE);
        assert_eq!(rig.status(12, &at(&root).opaque(b"f")), 0);
        assert_eq!(rig.status(1, &at(&file)), STALE);
        rig.client = "192.168.0.1";
        assert_eq!(rig.status(1, &at(&root)), ACCES, "not a client of this export");
    });
}

/// Handles of a server with another key.
struct HandleSealOf;

impl HandleSealOf {
    fn another_key(rig: &Rig) -> Vec<u8> {
        let seal = crate::program::handle::HandleSeal::new([9; 16]);
        seal.seal(1, rig.volumes.stores()[0].root()).as_bytes().to_vec()
    }
}

#[test]
fn setattr_and_its_guard() {
    both(|rig| {
        let root = rig.root(1);
        let file = rig.create(&root, b"f", 0o644);
        let mut answer = rig.call(2, &at(&file).mode(0o600).u32(0));
        assert_eq!(answer.u32(), 0);
        let (true, Some(after)) = answer.wcc() else { panic!("full wcc") };
        answer.end();
        assert_eq!((after.mode, after.uid, after.gid), (0o600, 1000, 100));
        assert_eq!(rig.status(2, &at(&file).mode(0o644).u32(1).u32(5).u32(5)), NOT_SYNC);
        let (seconds, nanoseconds) = after.changed;
        assert_eq!(rig.status(2, &at(&file).mode(0o644).u32(1).u32(seconds).u32(nanoseconds)), 0);
        // Times: leave atime, set mtime.
        let times = at(&file).u32(0).u32(0).u32(0).u32(0).u32(0).u32(2).u32(77).u32(88).u32(0);
        let mut answer = rig.call(2, &times);
        assert_eq!(answer.u32(), 0);
        assert_eq!(answer.wcc().1.unwrap().modified, (77, 88));
        let bad_time = at(&file).u32(0).u32(0).u32(0).u32(0).u32(0).u32(2).u32(77).u32(1_000_000_000).u32(0);
        assert_eq!(rig.status(2, &bad_time), INVAL);
        assert_eq!(rig.status(2, &at(&file).size(1 << 63).u32(0)), FBIG);
        assert_eq!(rig.status(2, &at(&root).mode(0).u32(0)), PERM, "root's directory");
        let not_a_bool = at(&file).u32(2);
        assert_eq!(rig.raw(2, &not_a_bool.0).0, Disposition::GarbageArgs);
    });
}

#[test]
fn lookup_and_names() {
    both(|rig| {
        let root = rig.root(1);
        let file = rig.create(&root, b"f", 0o644);
        let mut answer = rig.call(3, &at(&root).opaque(b"f"));
        assert_eq!((answer.u32(), answer.opaque()), (0, file.clone()));
        assert_eq!(answer.attributes().unwrap().kind, 1);
        assert_eq!(answer.attributes().unwrap().kind, 2);
        answer.end();
        let mut answer = rig.call(3, &at(&root).opaque(b"none"));
        assert_eq!(answer.u32(), NOENT);
        assert!(answer.attributes().is_some(), "the directory's attributes come with the failure");
        answer.end();
        assert_eq!(rig.status(3, &at(&file).opaque(b"x")), NOTDIR);
        let mut answer = rig.call(3, &at(&root).opaque(b".."));
        assert_eq!((answer.u32(), answer.opaque()), (0, root.clone()), "nothing above the root");
        let longest = [b'n'; 255];
        rig.create(&root, &longest, 0o644);
        assert_eq!(rig.status(3, &at(&root).opaque(&longest)), 0);
        for (name, status) in [
            (&[b'n'; 256][..], NAMETOOLONG),
            (&[b'n'; 5000], NAMETOOLONG),
            (b"", INVAL),
            (b"a/b", INVAL),
            (b"/", INVAL),
            (b"a\0b", INVAL),
            (b"../../etc/passwd", INVAL),
        ] {
            let mut all = vec![(3, at(&root).opaque(name)), (8, at(&root).opaque(name).u32(0).mode(0o644))];
            all.push((9, at(&root).opaque(name).mode(0o755)));
            all.push((10, at(&root).opaque(name).mode(0o777).opaque(b"target")));
            all.push((11, at(&root).opaque(name).u32(7).mode(0o644)));
            all.push((12, at(&root).opaque(name)));
            all.push((13, at(&root).opaque(name)));
            all.push((14, at(&root).opaque(name).opaque(&root).opaque(b"x")));
            all.push((14, at(&root).opaque(b"f").opaque(&root).opaque(name)));
            all.push((15, at(&file).opaque(&root).opaque(name)));
            for (procedure, arguments) in all {
                assert_eq!(rig.status(procedure, &arguments), status, "procedure {procedure}");
            }
        }
        for (dots, rmdir) in [(b".".as_slice(), INVAL), (b"..", EXIST)] {
            assert_eq!(rig.status(8, &at(&root).opaque(dots).u32(0).mode(0o644)), EXIST);
            assert_eq!(rig.status(9, &at(&root).opaque(dots).mode(0o755)), EXIST);
            assert_eq!(rig.status(10, &at(&root).opaque(dots).mode(0o777).opaque(b"t")), EXIST);
            assert_eq!(rig.status(11, &at(&root).opaque(dots).u32(7).mode(0o644)), EXIST);
            assert_eq!(rig.status(12, &at(&root).opaque(dots)), ACCES);
            assert_eq!(rig.status(13, &at(&root).opaque(dots)), rmdir);
            assert_eq!(rig.status(14, &at(&root).opaque(dots).opaque(&root).opaque(b"x")), INVAL);
            assert_eq!(rig.status(14, &at(&root).opaque(b"f").opaque(&root).opaque(dots)), INVAL);
            assert_eq!(rig.status(15, &at(&file).opaque(&root).opaque(dots)), EXIST);
        }
    });
}

#[test]
fn access_and_squash() {
    both(|rig| {
        let root = rig.root(1);
        let file = rig.create(&root, b"f", 0o640);
        let ask = |rig: &mut Rig, handle: &[u8]| {
            let mut answer = rig.call(4, &at(handle).u32(0x3f));
            assert_eq!(answer.u32(), 0);
            assert!(answer.attributes().is_some());
            let mask = answer.u32();
            answer.end();
            mask
        };
        assert_eq!(ask(rig, &file), 0x01 | 0x04 | 0x08);
        assert_eq!(ask(rig, &root), 0x1f);
        rig.credential = sys(1001, 100);
        assert_eq!(ask(rig, &file), 0x01, "the group reads");
        for nobody in [sys(0, 0), crate::rpc::Credential::None] {
            rig.credential = nobody;
            assert_eq!(ask(rig, &file), 0, "root is squashed");
            assert_eq!(rig.read(&file, 0, 10), Err(ACCES));
            let own = rig.create(&root, b"own", 0o644);
            let mut answer = rig.call(1, &at(&own));
            answer.u32();
            let attributes = answer.fattr();
            assert_eq!((attributes.uid, attributes.gid), (65534, 65534));
            assert_eq!(rig.status(12, &at(&root).opaque(b"own")), 0);
        }
    });
}

#[test]
fn links_of_both_kinds() {
    both(|rig| {
        let root = rig.root(1);
        let mut answer = rig.call(10, &at(&root).opaque(b"s").mode(0o777).opaque(b"some/where"));
        assert_eq!(answer.u32(), 0);
        let link = answer.created();
        let mut answer = rig.call(5, &at(&link));
        assert_eq!(answer.u32(), 0);
        assert_eq!(answer.attributes().unwrap().kind, 5);
        assert_eq!(answer.opaque(), b"some/where");
        answer.end();
        let longest = [b't'; 4095];
        assert_eq!(rig.status(10, &at(&root).opaque(b"l").mode(0o777).opaque(&longest)), 0);
        let mut answer = rig.call(3, &at(&root).opaque(b"l"));
        answer.u32();
        let long = answer.opaque();
        assert_eq!(rig.status(5, &at(&long)), 0, "the longest target fits in the head");
        assert_eq!(rig.status(10, &at(&root).opaque(b"m").mode(0o777).opaque(&[b't'; 4096])), NAMETOOLONG);
        assert_eq!(rig.status(10, &at(&root).opaque(b"m").mode(0o777).opaque(b"")), INVAL);
        assert_eq!(rig.status(10, &at(&root).opaque(b"m").mode(0o777).opaque(b"a\0b")), INVAL);
        let file = rig.create(&root, b"f", 0o644);
        assert_eq!(rig.status(5, &at(&file)), INVAL);
        let mut answer = rig.call(15, &at(&file).opaque(&root).opaque(b"g"));
        assert_eq!(answer.u32(), 0);
        assert_eq!(answer.attributes().unwrap().links, 2);
        assert!(matches!(answer.wcc(), (true, Some(_))));
        answer.end();
        let mut answer = rig.call(15, &at(&file).opaque(&root).opaque(b"g"));
        assert_eq!(answer.u32(), EXIST);
        assert_eq!(answer.attributes().unwrap().links, 2);
        assert!(matches!(answer.wcc(), (true, Some(_))), "wcc data with the failure too");
        answer.end();
        let elsewhere = rig.root(2);
        assert_eq!(rig.status(15, &at(&file).opaque(&elsewhere).opaque(b"h")), XDEV);
        assert_eq!(rig.status(15, &at(&root).opaque(&root).opaque(b"h")), ISDIR);
    });
}

#[test]
fn reads_at_the_edges() {
    both(|rig| {
        let root = rig.root(1);
        let file = rig.create(&root, b"f", 0o644);
        let data: Vec<u8> = (0..10_000u32).map(|i| i as u8).collect();
        assert_eq!(rig.write(&file, 0, &data), 0);
        assert_eq!(rig.read(&file, 0, 10_000), Ok((data.clone(), true)));
        assert_eq!(rig.read(&file, 1, 5000), Ok((data[1..5001].to_vec(), false)));
        assert_eq!(rig.read(&file, 10_000, 1), Ok((vec![], true)));
        assert_eq!(rig.read(&file, u64::MAX, u32::MAX), Ok((vec![], true)));
        assert_eq!(rig.read(&file, 0, 0), Ok((vec![], false)));
        assert_eq!(rig.read(&root, 0, 1), Err(ISDIR));
        // Up to rtmax at once, more never.
        assert_eq!(rig.status(2, &at(&file).size(5 << 20).u32(0)), 0);
        let (all, eof) = rig.read(&file, 0, u32::MAX).unwrap();
        assert_eq!((all.len(), eof), (1 << 20, false));
        assert_eq!(rig.nfs3.counters().calls_read, 7);
        assert_eq!(rig.nfs3.counters().read_bytes, 10_000 + 5000 + (1 << 20));
    });
}

#[test]
fn writes_at_the_edges() {
    both(|rig| {
        let root = rig.root(1);
        let file = rig.create(&root, b"f", 0o644);
        let mut answer = rig.call(7, &at(&file).u64(5).u32(3).u32(0).opaque(b"abc"));
        assert_eq!(answer.u32(), 0);
        let (true, Some(after)) = answer.wcc() else { panic!("full wcc") };
        assert_eq!(after.size, 8);
        assert_eq!((answer.u32(), answer.u32()), (3, 2), "count, FILE_SYNC");
        let verifier = answer.u64();
        answer.end();
        let mut answer = rig.call(21, &at(&file).u64(0).u32(0));
        assert_eq!(answer.u32(), 0);
        answer.wcc();
        assert_eq!(answer.u64(), verifier, "COMMIT has the verifier of WRITE");
        answer.end();
        assert_eq!(rig.status(7, &at(&file).u64(0).u32(4).u32(0).opaque(b"abc")), INVAL, "count is not the length");
        assert_eq!(rig.status(7, &at(&file).u64(u64::MAX).u32(1).u32(0).opaque(b"a")), FBIG);
        assert_eq!(rig.status(7, &at(&file).u64(i64::MAX as u64).u32(1).u32(0).opaque(b"a")), FBIG);
        assert_eq!(rig.raw(7, &at(&file).u64(0).u32(1).u32(3).opaque(b"a").0).0, Disposition::GarbageArgs);
        let lying = at(&file).u64(0).u32(1000).u32(0).u32(1000).fixed(b"short");
        assert_eq!(rig.raw(7, &lying.0).0, Disposition::GarbageArgs, "longer than its record");
        assert_eq!(rig.write(&root, 0, b"x"), ISDIR);
        // Longer than wtmax: the front is taken.
        let long = vec![7; (1 << 20) + 100];
        let mut answer = rig.call(7, &at(&file).u64(0).u32(long.len() as u32).u32(0).opaque(&long));
        assert_eq!(answer.u32(), 0);
        assert_eq!(answer.wcc().1.unwrap().size, 1 << 20);
        assert_eq!(answer.u32(), 1 << 20);
    });
}

#[test]
fn creation_in_every_way() {
    both(|rig| {
        let root = rig.root(1);
        let create = |how| at(&root).opaque(b"f").u32(how);
        assert_eq!(rig.status(8, &create(2).fixed(b"verifier")), 0);
        assert_eq!(rig.status(8, &create(2).fixed(b"verifier")), 0, "the same request again");
        assert_eq!(rig.status(8, &create(2).fixed(b"another1")), EXIST);
        assert_eq!(rig.status(8, &create(1).mode(0o644)), EXIST);
        assert_eq!(rig.status(8, &create(0).mode(0o644)), 0);
        assert_eq!(rig.raw(8, &create(3).0).0, Disposition::GarbageArgs);
        let directory = rig.mkdir(&root, b"d", 0o755);
        let mut answer = rig.call(9, &at(&root).opaque(b"d").mode(0o755));
        assert_eq!(answer.u32(), EXIST);
        assert!(matches!(answer.wcc(), (true, Some(_))));
        answer.end();
        for (kind, status) in [(1, BADTYPE), (2, BADTYPE), (5, BADTYPE), (6, 0), (7, 0)] {
            let name = [b'n', b'0' + kind];
            assert_eq!(rig.status(11, &at(&directory).opaque(&name).u32(u32::from(kind)).mode(0o644)), status);
        }
        assert_eq!(rig.raw(11, &at(&directory).opaque(b"n").u32(8).0).0, Disposition::GarbageArgs);
        let device = at(&directory).opaque(b"dev").u32(3).mode(0o600).u32(8).u32(1);
        assert_eq!(rig.status(11, &device), PERM, "devices are root's");
        assert_eq!(rig.status(13, &at(&root).opaque(b"d")), NOTEMPTY);
        assert_eq!(rig.status(13, &at(&root).opaque(b"f")), NOTDIR);
        assert_eq!(rig.status(12, &at(&root).opaque(b"d")), ISDIR);
        assert_eq!(rig.status(12, &at(&root).opaque(b"none")), NOENT);
    });
}

#[test]
fn rename_reports_both_directories() {
    both(|rig| {
        let root = rig.root(1);
        let directory = rig.mkdir(&root, b"d", 0o755);
        rig.create(&root, b"f", 0o644);
        let mut answer = rig.call(14, &at(&root).opaque(b"f").opaque(&directory).opaque(b"g"));
        assert_eq!(answer.u32(), 0);
        assert!(matches!(answer.wcc(), (true, Some(_))));
        assert!(matches!(answer.wcc(), (true, Some(_))));
        answer.end();
        let mut answer = rig.call(14, &at(&root).opaque(b"f").opaque(&directory).opaque(b"g"));
        assert_eq!(answer.u32(), NOENT);
        assert!(matches!(answer.wcc(), (true, Some(_))));
        assert!(matches!(answer.wcc(), (true, Some(_))));
        answer.end();
        assert_eq!(rig.status(14, &at(&root).opaque(b"d").opaque(&directory).opaque(b"in")), INVAL);
        let elsewhere = rig.root(2);
        assert_eq!(rig.status(14, &at(&root).opaque(b"d").opaque(&elsewhere).opaque(b"d")), XDEV);
    });
}

#[test]
fn a_read_only_export_changes_nothing() {
    both(|rig| {
        let (root, read_only) = (rig.root(1), rig.root(3));
        rig.create(&root, b"f", 0o644);
        let mut answer = rig.call(3, &at(&read_only).opaque(b"f"));
        assert_eq!(answer.u32(), 0);
        let file = answer.opaque();
        assert_eq!(rig.read(&file, 0, 10), Ok((vec![], true)));
        let modifying = [
            (2, at(&file).mode(0).u32(0)),
            (7, at(&file).u64(0).u32(1).u32(0).opaque(b"x")),
            (8, at(&read_only).opaque(b"n").u32(0).mode(0o644)),
            (9, at(&read_only).opaque(b"n").mode(0o755)),
            (10, at(&read_only).opaque(b"n").mode(0o777).opaque(b"t")),
            (11, at(&read_only).opaque(b"n").u32(7).mode(0o644)),
            (12, at(&read_only).opaque(b"f")),
            (13, at(&read_only).opaque(b"f")),
            (14, at(&read_only).opaque(b"f").opaque(&read_only).opaque(b"g")),
            (15, at(&file).opaque(&read_only).opaque(b"g")),
            (21, at(&file).u64(0).u32(0)),
        ];
        for (procedure, arguments) in modifying {
            assert_eq!(rig.status(procedure, &arguments), ROFS, "procedure {procedure}");
        }
        let mut answer = rig.call(4, &at(&file).u32(0x3f));
        answer.u32();
        answer.attributes();
        assert_eq!(answer.u32(), 0x01, "ACCESS promises no writing");
        assert_eq!(rig.nfs3.counters().status_rofs, 11);
    });
}

#[test]
fn file_system_information() {
    both(|rig| {
        let root = rig.root(1);
        let mut answer = rig.call(18, &at(&root));
        assert_eq!(answer.u32(), 0);
        assert!(answer.attributes().is_some());
        assert_eq!(answer.u64(), 1024 * BLOCK as u64);
        assert!(answer.u64() <= 1024 * BLOCK as u64);
        answer.at += 8 * 4;
        assert_eq!(answer.u32(), 0, "invarsec");
        answer.end();
        let mut answer = rig.call(19, &at(&root));
        assert_eq!(answer.u32(), 0);
        assert!(answer.attributes().is_some());
        let sizes: Vec<u32> = (0..7).map(|_| answer.u32()).collect();
        assert_eq!(sizes, [1 << 20, 1 << 20, 4096, 1 << 20, 1 << 20, 4096, 32 << 10]);
        assert_eq!(answer.u64(), i64::MAX as u64);
        assert_eq!((answer.u32(), answer.u32(), answer.u32()), (0, 1, 0x1b));
        answer.end();
        let mut answer = rig.call(20, &at(&root));
        assert_eq!(answer.u32(), 0);
        assert!(answer.attributes().is_some());
        let limits: Vec<u32> = (0..6).map(|_| answer.u32()).collect();
        assert_eq!(limits, [i32::MAX as u32, 255, 1, 1, 0, 1]);
        answer.end();
        for procedure in [18, 19, 20] {
            let mut answer: Answer = rig.call(procedure, &at(&[1; 20]));
            assert_eq!((answer.u32(), answer.u32()), (BADHANDLE, 0));
            answer.end();
        }
    });
}

#[test]
fn data_in_flight_never_changes() {
    both(|rig| {
        let root = rig.root(1);
        let file = rig.create(&root, b"f", 0o644);
        assert_eq!(rig.write(&file, 0, &[1; 3 * BLOCK]), 0);
        assert!(rig.read(&file, 0, 3 * BLOCK as u32).is_ok());
        let in_flight = std::mem::take(&mut rig.pages);
        let addresses: Vec<usize> = in_flight.iter().map(|page| page.address()).collect();
        assert_eq!(rig.write(&file, 100, &[2; 2 * BLOCK]), 0);
        assert_eq!(rig.status(2, &at(&file).size(10).u32(0)), 0);
        assert_eq!(rig.write(&file, 0, &[3; 5]), 0);
        assert!(in_flight.iter().all(|page| page.iter().all(|byte| *byte == 1)));
        let retransmitted: Vec<usize> = in_flight.iter().map(|page| page.address()).collect();
        assert_eq!(retransmitted, addresses);
        assert_eq!(rig.read(&file, 0, 100), Ok((vec![3, 3, 3, 3, 3, 1, 1, 1, 1, 1], true)));
    });
}

#[test]
fn too_many_parked_calls_are_told_to_come_again() {
    let mut rig = Rig::new(true);
    rig.nfs3 = Nfs3::new(Options { parked_max: 0, ..Options::default() });
    let root = rig.root(1);
    assert_eq!(rig.status(1, &at(&root)), JUKEBOX);
    assert_eq!(rig.nfs3.counters().parked_full, 1);
    assert_eq!(rig.nfs3.counters().status_jukebox, 1);
}

#[test]
fn a_store_that_completes_what_nobody_waits_for_is_counted() {
    let mut rig = Rig::new(true);
    let root = rig.root(1);
    let object = rig.volumes.stores()[0].root();
    let nobody = crate::store::Credential { uid: 0, gid: 0, groups: Default::default() };
    let operation = crate::store::Operation::GetAttributes { object };
    let mut pages = Vec::new();
    rig.volumes.stores_mut()[0].start(Instant::ZERO, &nobody, &operation, Token(999_999), &mut pages);
    assert_eq!(rig.status(1, &at(&root)), 0);
    assert_eq!(rig.nfs3.counters().completions_unknown, 1);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]
    #[test]
    fn no_bytes_make_a_procedure_panic(
        procedure in 0u32..22,
        prefix in 0usize..3,
        bytes in proptest::collection::vec(prop_oneof![any::<u8>(), Just(0u8), Just(1u8)], 0..400),
    ) {
        let mut rig = Rig::new(false);
        let root = rig.root(1);
        let start = match prefix {
            0 => Args::new(),
            1 => at(&root),
            _ => at(&root).opaque(b"name"),
        };
        let arguments = [start.0, bytes].concat();
        let (disposition, _) = rig.raw(procedure, &arguments);
        prop_assert!(matches!(disposition, Disposition::Replied | Disposition::GarbageArgs));
    }
}
