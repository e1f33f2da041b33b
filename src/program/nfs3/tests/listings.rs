//! READDIR and READDIRPLUS: budgets to the byte, cookies, verifiers.

use std::collections::BTreeSet;

use super::*;

const BAD_COOKIE: u32 = 10003;
const TOOSMALL: u32 = 10005;

struct Listed {
    names: Vec<Vec<u8>>,
    cookie: u64,
    verifier: u64,
    eof: bool,
    /// Bytes of the resok structure.
    bytes: usize,
}

fn readdir(rig: &mut Rig, directory: &[u8], cookie: u64, verifier: u64, sizes: (u32, Option<u32>)) -> Result<Listed, u32> {
    let (count, maxcount) = sizes;
    let arguments = at(directory).u64(cookie).u64(verifier).u32(count);
    let mut answer = match maxcount {
        None => rig.call(16, &arguments),
        Some(maxcount) => rig.call(17, &arguments.u32(maxcount)),
    };
    let status = answer.u32();
    assert!(answer.attributes().is_some(), "attributes come with success and failure");
    if status != 0 {
        answer.end();
        return Err(status);
    }
    let verifier = answer.u64();
    let mut listed = Listed { names: vec![], cookie, verifier, eof: false, bytes: answer.bytes.len() - 4 };
    while answer.u32() == 1 {
        let file_id = answer.u64();
        listed.names.push(answer.opaque());
        listed.cookie = answer.u64();
        if maxcount.is_some() {
            assert_eq!(answer.attributes().unwrap().file_id, file_id);
            assert_eq!(answer.u32(), 1, "the handle follows");
            answer.opaque();
        }
    }
    listed.eof = answer.u32() == 1;
    answer.end();
    Ok(listed)
}

fn filled(rig: &mut Rig, entries: usize) -> (Vec<u8>, BTreeSet<Vec<u8>>) {
    let root = rig.root(1);
    let mut names = BTreeSet::from([b".".to_vec(), b"..".to_vec()]);
    for i in 0..entries {
        let name = format!("{i}{}", "x".repeat(i * 7 % 40)).into_bytes();
        rig.create(&root, &name, 0o644);
        names.insert(name);
    }
    (root, names)
}

#[test]
fn every_budget_is_kept_to_the_byte_and_gets_on() {
    both(|rig| {
        let (root, names) = filled(rig, 25);
        let mut too_small = 0;
        for plus in [false, true] {
            for budget in (0..700).chain([1000, 4096, 100_000, u32::MAX]) {
                let sizes = if plus { (budget, Some(budget)) } else { (budget, None) };
                let (mut cookie, mut verifier, mut found) = (0, 0, Vec::new());
                loop {
                    let listed = match readdir(rig, &root, cookie, verifier, sizes) {
                        Ok(listed) => listed,
                        Err(status) => {
                            assert_eq!(status, TOOSMALL);
                            too_small += 1;
                            break;
                        }
                    };
                    assert!(listed.bytes <= budget as usize, "{} bytes in {budget}", listed.bytes);
                    assert!(listed.eof || !listed.names.is_empty(), "an empty page that is not the end");
                    found.extend(listed.names);
                    (cookie, verifier) = (listed.cookie, listed.verifier);
                    if listed.eof {
                        assert_eq!(found.len(), names.len(), "each entry once");
                        assert_eq!(found.iter().cloned().collect::<BTreeSet<_>>(), names);
                        break;
                    }
                }
            }
        }
        assert!(too_small > 100, "small budgets were refused");
        assert_eq!(rig.nfs3.counters().status_toosmall, too_small);
    });
}

#[test]
fn a_page_is_as_full_as_its_budget_allows() {
    both(|rig| {
        let (root, _) = filled(rig, 3);
        // "." and "..": 28 bytes each; around them 88 + 8 + 8.
        let exactly_two = 88 + 8 + 8 + 28 + 28;
        assert_eq!(readdir(rig, &root, 0, 0, (exactly_two, None)).unwrap().names.len(), 2);
        assert_eq!(readdir(rig, &root, 0, 0, (exactly_two - 1, None)).unwrap().names.len(), 1);
        let handle_len = root.len().next_multiple_of(4) as u32;
        let exactly_one = 88 + 8 + 8 + 28 + 88 + 8 + handle_len;
        assert_eq!(readdir(rig, &root, 0, 0, (1000, Some(exactly_one))).unwrap().names.len(), 1);
        assert_eq!(readdir(rig, &root, 0, 0, (1000, Some(exactly_one - 1))).err(), Some(TOOSMALL));
        // dircount: 24 bytes for "." (fileid, length, padded name, cookie).
        assert_eq!(readdir(rig, &root, 0, 0, (24, Some(4096))).unwrap().names.len(), 1);
        assert_eq!(readdir(rig, &root, 0, 0, (47, Some(4096))).unwrap().names.len(), 1);
        assert_eq!(readdir(rig, &root, 0, 0, (48, Some(4096))).unwrap().names.len(), 2);
        assert_eq!(readdir(rig, &root, 0, 0, (23, Some(4096))).err(), Some(TOOSMALL));
    });
}

#[test]
fn cookies_hold_while_their_verifier_does() {
    both(|rig| {
        let (root, _) = filled(rig, 10);
        let first = readdir(rig, &root, 0, 0xdead, (200, None)).unwrap();
        assert!(!first.eof);
        assert_eq!(readdir(rig, &root, first.cookie, first.verifier ^ 1, (200, None)).err(), Some(BAD_COOKIE));
        assert_eq!(readdir(rig, &root, first.cookie, first.verifier ^ 1, (200, Some(400))).err(), Some(BAD_COOKIE));
        let next = readdir(rig, &root, first.cookie, first.verifier, (4096, None)).unwrap();
        assert!(next.eof);
        let again = readdir(rig, &root, first.cookie, first.verifier, (4096, None)).unwrap();
        assert_eq!(again.names, next.names);
        let beyond = readdir(rig, &root, u64::MAX, first.verifier, (4096, None)).unwrap();
        assert!(beyond.eof && beyond.names.is_empty());
        let file = rig.create(&root, b"file", 0o644);
        assert_eq!(readdir(rig, &file, 0, 0, (4096, None)).err(), Some(NOTDIR));
    });
}
