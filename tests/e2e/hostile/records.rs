//! Record marking (RFC 5531 section 11): sizes, fragments, pieces, noise.

use std::net::Shutdown;

use anyhow::{Result, ensure};

use super::{Case, Ground, expect_closed, expect_ignored, expect_reply};
use crate::client::{Credential, LAST_FRAGMENT, NFS, Reply, call_bytes, parse_reply, procedure, record};
use crate::client::{Received, Xdr};
use crate::libnfs::Random;

pub const CASES: &[Case] = &[
    ("marker_of_2_gib", marker_of_2_gib),
    ("marker_of_2_gib_not_last", marker_of_2_gib_not_last),
    ("marker_just_over_any_call", marker_just_over_any_call),
    ("fragments_that_add_up_too_high", fragments_that_add_up_too_high),
    ("endless_empty_fragments", endless_empty_fragments),
    ("a_few_empty_fragments_before_a_call", a_few_empty_fragments_before_a_call),
    ("empty_record", empty_record),
    ("record_of_4_bytes", record_of_4_bytes),
    ("call_split_into_single_bytes", call_split_into_single_bytes),
    ("call_in_4_byte_fragments", call_in_4_byte_fragments),
    ("marker_split_and_then_closed", marker_split_and_then_closed),
    ("record_cut_by_half_close", record_cut_by_half_close),
    ("reply_instead_of_a_call", reply_instead_of_a_call),
    ("message_type_7", message_type_7),
    ("random_bytes", random_bytes),
    ("http_request", http_request),
    ("bad_call_between_two_good_ones", bad_call_between_two_good_ones),
];

fn null_call(xid: u32) -> Vec<u8> {
    call_bytes(xid, NFS, 3, 0, &Credential::unix(0, 0, &[]), &[])
}

fn marker_of_2_gib(ground: &mut Ground) -> Result<()> {
    let mut rpc = ground.rpc()?;
    rpc.send_raw(&u32::MAX.to_be_bytes())?;
    expect_closed(&mut rpc)
}

fn marker_of_2_gib_not_last(ground: &mut Ground) -> Result<()> {
    let mut rpc = ground.rpc()?;
    rpc.send_raw(&(!LAST_FRAGMENT).to_be_bytes())?;
    expect_closed(&mut rpc)
}

/// 16 MiB is past what any server of this kind takes in one record.
fn marker_just_over_any_call(ground: &mut Ground) -> Result<()> {
    let mut rpc = ground.rpc()?;
    rpc.send_raw(&(LAST_FRAGMENT | 16 << 20).to_be_bytes())?;
    expect_closed(&mut rpc)
}

/// Each fragment is small, their sum is not: the limit counts over the record.
fn fragments_that_add_up_too_high(ground: &mut Ground) -> Result<()> {
    const FRAGMENT: u32 = 256 << 10;
    let mut rpc = ground.rpc()?;
    let mut fragment = FRAGMENT.to_be_bytes().to_vec();
    fragment.resize(4 + FRAGMENT as usize, 0);
    for _ in 0..64 {
        // The server may close before everything was sent.
        if rpc.send_raw(&fragment).is_err() {
            return Ok(());
        }
    }
    expect_closed(&mut rpc)
}

fn endless_empty_fragments(ground: &mut Ground) -> Result<()> {
    let mut rpc = ground.rpc()?;
    let many = vec![0; 4 << 10];
    for _ in 0..1024 {
        if rpc.send_raw(&many).is_err() {
            return Ok(());
        }
    }
    expect_closed(&mut rpc)
}

fn a_few_empty_fragments_before_a_call(ground: &mut Ground) -> Result<()> {
    let mut rpc = ground.rpc()?;
    let mut bytes = vec![0; 3 * 4];
    bytes.extend(record(&null_call(77)));
    rpc.send_raw(&bytes)?;
    let (xid, reply) = rpc.receive()?;
    ensure!(xid == 77, "reply to xid {xid}");
    expect_reply(&reply, &Reply::Success(Vec::new()))
}

fn empty_record(ground: &mut Ground) -> Result<()> {
    let mut rpc = ground.rpc()?;
    rpc.send_raw(&record(&[]))?;
    expect_closed(&mut rpc)
}

/// Too short for an xid and a direction: no reply is possible.
fn record_of_4_bytes(ground: &mut Ground) -> Result<()> {
    let mut rpc = ground.rpc()?;
    rpc.send_raw(&record(&[1, 2, 3, 4]))?;
    expect_closed(&mut rpc)
}

fn call_split_into_single_bytes(ground: &mut Ground) -> Result<()> {
    let mut rpc = ground.rpc()?;
    let arguments = Xdr::default().opaque(&ground.root);
    let call = call_bytes(78, NFS, 3, procedure::GETATTR, &rpc.credential, &arguments.0);
    for byte in record(&call) {
        rpc.send_raw(&[byte])?;
    }
    let (xid, reply) = rpc.receive()?;
    ensure!(xid == 78 && matches!(&reply, Reply::Success(body) if body.starts_with(&[0; 4])), "answered by {reply:?}");
    Ok(())
}

fn call_in_4_byte_fragments(ground: &mut Ground) -> Result<()> {
    let mut rpc = ground.rpc()?;
    let call = null_call(79);
    let count = call.len().div_ceil(4);
    let mut bytes = Vec::new();
    for (index, piece) in call.chunks(4).enumerate() {
        let last = if index + 1 == count { LAST_FRAGMENT } else { 0 };
        bytes.extend((last | piece.len() as u32).to_be_bytes());
        bytes.extend(piece);
    }
    rpc.send_raw(&bytes)?;
    let (xid, reply) = rpc.receive()?;
    ensure!(xid == 79, "reply to xid {xid}");
    expect_reply(&reply, &Reply::Success(Vec::new()))
}

fn marker_split_and_then_closed(ground: &mut Ground) -> Result<()> {
    for cut in 1..4 {
        let mut rpc = ground.rpc()?;
        rpc.send_raw(&record(&null_call(80))[..cut])?;
    }
    Ok(())
}

fn record_cut_by_half_close(ground: &mut Ground) -> Result<()> {
    let mut rpc = ground.rpc()?;
    rpc.send_raw(&record(&null_call(81))[..20])?;
    rpc.stream.shutdown(Shutdown::Write)?;
    expect_closed(&mut rpc)
}

/// A reply on the fore channel could only belong to a callback, and there is none: dropped, and the connection stays.
fn reply_instead_of_a_call(ground: &mut Ground) -> Result<()> {
    let mut rpc = ground.rpc()?;
    let reply = Xdr::default().u32(82).u32(1).u32(0).u32(0).u32(0).u32(0);
    rpc.send_raw(&record(&reply.0))?;
    expect_ignored(&mut rpc)
}

/// Neither CALL nor REPLY: nothing can be answered. Linux takes all that is no CALL for a reply to a callback, and so it is dropped.
fn message_type_7(ground: &mut Ground) -> Result<()> {
    let mut rpc = ground.rpc()?;
    rpc.send_raw(&record(&Xdr::default().u32(83).u32(7).u32(2).u32(NFS).u32(3).u32(0).u64(0).u64(0).0))?;
    expect_ignored(&mut rpc)
}

fn random_bytes(ground: &mut Ground) -> Result<()> {
    let mut random = Random(4711);
    for _ in 0..20 {
        let mut rpc = ground.rpc()?;
        let mut noise = random.bytes(64 << 10);
        noise[0] |= 0x80;
        noise[1] |= 0x80;
        if rpc.send_raw(&noise).is_ok() {
            expect_closed(&mut rpc)?;
        }
    }
    Ok(())
}

/// "GET " as a marker is a fragment of 1.1 GB.
fn http_request(ground: &mut Ground) -> Result<()> {
    let mut rpc = ground.rpc()?;
    rpc.send_raw(b"GET / HTTP/1.1\r\nHost: nfs\r\n\r\n")?;
    expect_closed(&mut rpc)
}

fn bad_call_between_two_good_ones(ground: &mut Ground) -> Result<()> {
    let mut rpc = ground.rpc()?;
    let cut = call_bytes(2, NFS, 3, procedure::GETATTR, &rpc.credential, &[0, 0, 0, 64]);
    rpc.send_raw(&[record(&null_call(1)), record(&cut), record(&null_call(3))].concat())?;
    let mut replies = Vec::new();
    for _ in 0..3 {
        match rpc.receive_within(crate::client::REPLY_LIMIT)? {
            Received::Record(bytes) => replies.push(parse_reply(&bytes)?),
            other => anyhow::bail!("{other:?} after {} replies", replies.len()),
        }
    }
    // Replies may overtake one another.
    replies.sort_by_key(|(xid, _)| *xid);
    let expected = [(1, Reply::Success(Vec::new())), (2, Reply::GarbageArgs), (3, Reply::Success(Vec::new()))];
    ensure!(replies == expected, "answered by {replies:?}");
    Ok(())
}
