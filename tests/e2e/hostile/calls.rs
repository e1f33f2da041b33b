//! RPC headers and credentials (RFC 5531 sections 8 to 10), and arguments that do not decode or ask for the impossible.

use anyhow::{Result, bail, ensure};

use super::status::{BAD_COOKIE, BADHANDLE, BADTYPE, FBIG, INVAL, ISDIR, NOT_SYNC, NOTDIR, OK, STALE, TOOSMALL};
use super::{Case, Ground, expect_garbage, expect_reply, expect_status};
use crate::client::{Credential, MOUNT, NFS, RPCBIND, Reply, Xdr, call_bytes, parse_read, procedure, record, write_arguments};

const AUTH_BADCRED: u32 = 1;
const AUTH_BADVERF: u32 = 3;

pub const CASES: &[Case] = &[
    ("rpc_version_3", rpc_version_3),
    ("unknown_program", unknown_program),
    ("nfs_versions_2_and_99", nfs_versions_2_and_99),
    ("procedure_22", procedure_22),
    ("credential_of_401_bytes", credential_of_401_bytes),
    ("credential_longer_than_its_record", credential_longer_than_its_record),
    ("credential_cut_short", credential_cut_short),
    ("credential_with_17_groups", credential_with_17_groups),
    ("machine_name_of_256_bytes", machine_name_of_256_bytes),
    ("unknown_credential_flavor", unknown_credential_flavor),
    ("verifier_that_is_not_null", verifier_that_is_not_null),
    ("getattr_without_arguments", getattr_without_arguments),
    ("handle_of_65_bytes", handle_of_65_bytes),
    ("handle_of_4_gib", handle_of_4_gib),
    ("handle_of_no_bytes", handle_of_no_bytes),
    ("handle_forged", handle_forged),
    ("handle_with_one_bit_changed", handle_with_one_bit_changed),
    ("handle_stale", handle_stale),
    ("read_of_4_gib", read_of_4_gib),
    ("read_past_the_end_of_everything", read_past_the_end_of_everything),
    ("read_of_a_directory", read_of_a_directory),
    ("write_longer_than_its_record", write_longer_than_its_record),
    ("write_count_unlike_its_data", write_count_unlike_its_data),
    ("write_past_the_largest_offset", write_past_the_largest_offset),
    ("write_with_stability_9", write_with_stability_9),
    ("create_with_mode_3", create_with_mode_3),
    ("mknod_of_type_99", mknod_of_type_99),
    ("truncate_to_8_eib", truncate_to_8_eib),
    ("setattr_with_a_wrong_guard", setattr_with_a_wrong_guard),
    ("readdir_with_no_room", readdir_with_no_room),
    ("readdir_with_a_foreign_cookie", readdir_with_a_foreign_cookie),
    ("readdirplus_of_4_gib", readdirplus_of_4_gib),
    ("readdir_of_a_file", readdir_of_a_file),
    ("bytes_after_the_arguments", bytes_after_the_arguments),
    ("rpcbind_set_from_the_network", rpcbind_set_from_the_network),
    ("mount_program_on_a_wrong_version", mount_program_on_a_wrong_version),
];

fn rpc_version_3(ground: &mut Ground) -> Result<()> {
    let mut rpc = ground.rpc()?;
    let mut call = call_bytes(1, NFS, 3, 0, &rpc.credential, &[]);
    call[8..12].copy_from_slice(&3_u32.to_be_bytes());
    rpc.send_raw(&record(&call))?;
    expect_reply(&rpc.receive()?.1, &Reply::RpcMismatch { low: 2, high: 2 })?;
    rpc.null()
}

fn unknown_program(ground: &mut Ground) -> Result<()> {
    let reply = ground.rpc()?.call(0x2000_0007, 1, 0, &[])?;
    expect_reply(&reply, &Reply::ProgUnavail)
}

fn nfs_versions_2_and_99(ground: &mut Ground) -> Result<()> {
    for version in [2, 99] {
        match ground.rpc()?.call(NFS, version, 0, &[])? {
            Reply::ProgMismatch { low: 3, high: 3 | 4 } => {}
            other => bail!("version {version} was answered by {other:?}"),
        }
    }
    Ok(())
}

fn procedure_22(ground: &mut Ground) -> Result<()> {
    let mut rpc = ground.rpc()?;
    let reply = rpc.call(NFS, 3, 22, &[])?;
    expect_reply(&reply, &Reply::ProcUnavail)?;
    rpc.null()
}

/// GETATTR with this credential is refused, and the connection stays.
fn refused(ground: &mut Ground, credential: Credential, reason: u32) -> Result<()> {
    let mut rpc = ground.rpc()?;
    let good = std::mem::replace(&mut rpc.credential, credential);
    let reply = rpc.call(NFS, 3, procedure::GETATTR, &Xdr::default().opaque(&ground.root).0)?;
    expect_reply(&reply, &Reply::AuthError(reason))?;
    rpc.credential = good;
    rpc.null()
}

/// RFC 5531 section 8.2: an opaque_auth has at most 400 bytes.
fn credential_of_401_bytes(ground: &mut Ground) -> Result<()> {
    refused(ground, Credential { flavor: 1, body: vec![0; 401] }, AUTH_BADCRED)
}

fn credential_longer_than_its_record(ground: &mut Ground) -> Result<()> {
    let mut rpc = ground.rpc()?;
    let call = Xdr::default().u32(5).u32(0).u32(2).u32(NFS).u32(3).u32(1).u32(1).u32(300).raw(&[0; 40]);
    rpc.send_raw(&record(&call.0))?;
    expect_reply(&rpc.receive()?.1, &Reply::AuthError(AUTH_BADCRED))?;
    rpc.null()
}

fn credential_cut_short(ground: &mut Ground) -> Result<()> {
    let mut body = Credential::unix(0, 0, &[1, 2, 3]).body;
    body.truncate(body.len() - 8);
    refused(ground, Credential { flavor: 1, body }, AUTH_BADCRED)
}

fn credential_with_17_groups(ground: &mut Ground) -> Result<()> {
    refused(ground, Credential::unix(1000, 1000, &(0..17).collect::<Vec<u32>>()), AUTH_BADCRED)
}

fn machine_name_of_256_bytes(ground: &mut Ground) -> Result<()> {
    let body = Xdr::default().u32(0).opaque(&[b'm'; 256]).u32(0).u32(0).u32(0).0;
    refused(ground, Credential { flavor: 1, body }, AUTH_BADCRED)
}

fn unknown_credential_flavor(ground: &mut Ground) -> Result<()> {
    refused(ground, Credential { flavor: 77, body: Vec::new() }, AUTH_BADCRED)
}

/// AUTH_SYS goes with a verifier of AUTH_NONE only.
fn verifier_that_is_not_null(ground: &mut Ground) -> Result<()> {
    let mut rpc = ground.rpc()?;
    let credential = Credential::unix(0, 0, &[]);
    let call = Xdr::default().u32(9).u32(0).u32(2).u32(NFS).u32(3).u32(1).u32(credential.flavor).opaque(&credential.body);
    let call = call.u32(1).opaque(&[0; 20]).opaque(&ground.root);
    rpc.send_raw(&record(&call.0))?;
    expect_reply(&rpc.receive()?.1, &Reply::AuthError(AUTH_BADVERF))?;
    rpc.null()
}

fn getattr_without_arguments(ground: &mut Ground) -> Result<()> {
    expect_garbage(&mut ground.rpc()?, procedure::GETATTR, &Xdr::default())
}

/// NFS3_FHSIZE is 64.
fn handle_of_65_bytes(ground: &mut Ground) -> Result<()> {
    expect_garbage(&mut ground.rpc()?, procedure::GETATTR, &Xdr::default().opaque(&[7; 65]))
}

fn handle_of_4_gib(ground: &mut Ground) -> Result<()> {
    expect_garbage(&mut ground.rpc()?, procedure::GETATTR, &Xdr::default().u32(u32::MAX).raw(&[7; 64]))
}

fn handle_of_no_bytes(ground: &mut Ground) -> Result<()> {
    expect_status(&mut ground.rpc()?, procedure::GETATTR, &Xdr::default().opaque(&[]), &[BADHANDLE])
}

fn handle_forged(ground: &mut Ground) -> Result<()> {
    let mut rpc = ground.rpc()?;
    for length in [1, 8, 16, 28, 32, 64] {
        expect_status(&mut rpc, procedure::GETATTR, &Xdr::default().opaque(&vec![0xa5; length]), &[BADHANDLE, STALE])?;
    }
    Ok(())
}

/// A handle is authenticated as a whole: no bit of it may be changed.
fn handle_with_one_bit_changed(ground: &mut Ground) -> Result<()> {
    let mut rpc = ground.rpc()?;
    for bit in 0..ground.root.len() * 8 {
        let mut forged = ground.root.clone();
        forged[bit / 8] ^= 1 << (bit % 8);
        expect_status(&mut rpc, procedure::GETATTR, &Xdr::default().opaque(&forged), &[BADHANDLE, STALE])?;
    }
    Ok(())
}

fn handle_stale(ground: &mut Ground) -> Result<()> {
    let handle = ground.file("soon gone", b"x")?;
    let mut rpc = ground.rpc()?;
    expect_status(&mut rpc, procedure::REMOVE, &Xdr::default().opaque(&ground.root).opaque(b"soon gone"), &[OK])?;
    expect_status(&mut rpc, procedure::GETATTR, &Xdr::default().opaque(&handle), &[STALE])?;
    expect_status(&mut rpc, procedure::READ, &Xdr::default().opaque(&handle).u64(0).u32(10), &[STALE])?;
    expect_status(&mut rpc, procedure::WRITE, &write_arguments(&handle, 0, 2, b"y"), &[STALE])
}

/// A short read, not an error (RFC 1813 section 3.3.6).
fn read_of_4_gib(ground: &mut Ground) -> Result<()> {
    let data = vec![0x5a; 3 << 16];
    let handle = ground.file("read 4 GiB", &data)?;
    let mut rpc = ground.rpc()?;
    let (status, body) = rpc.nfs(procedure::READ, &Xdr::default().opaque(&handle).u64(0).u32(u32::MAX))?;
    ensure!(status == OK, "nfsstat3 {status}");
    let (got, eof) = parse_read(&body)?;
    ensure!(!got.is_empty() && data.starts_with(&got), "{} bytes that are not the file's", got.len());
    ensure!(eof == (got.len() == data.len()), "eof is {eof} after {} of {} bytes", got.len(), data.len());
    Ok(())
}

fn read_past_the_end_of_everything(ground: &mut Ground) -> Result<()> {
    let handle = ground.file("read far", b"short")?;
    let mut rpc = ground.rpc()?;
    for offset in [5, 1 << 40] {
        let (status, body) = rpc.nfs(procedure::READ, &Xdr::default().opaque(&handle).u64(offset).u32(4096))?;
        ensure!(status == OK, "nfsstat3 {status} at offset {offset}");
        let (got, eof) = parse_read(&body)?;
        ensure!(got.is_empty() && eof, "{} bytes, eof {eof} at offset {offset}", got.len());
    }
    // Past what a file can have: the end of the file, or an argument error.
    for offset in [i64::MAX as u64, 1 << 63, u64::MAX - 1, u64::MAX] {
        let (status, body) = rpc.nfs(procedure::READ, &Xdr::default().opaque(&handle).u64(offset).u32(u32::MAX))?;
        match status {
            OK => ensure!(parse_read(&body)? == (Vec::new(), true), "data at offset {offset}"),
            INVAL | FBIG => {}
            other => bail!("nfsstat3 {other} at offset {offset}"),
        }
    }
    Ok(())
}

fn read_of_a_directory(ground: &mut Ground) -> Result<()> {
    let arguments = Xdr::default().opaque(&ground.root).u64(0).u32(4096);
    expect_status(&mut ground.rpc()?, procedure::READ, &arguments, &[ISDIR, INVAL])
}

/// The XDR array claims more than the record holds.
fn write_longer_than_its_record(ground: &mut Ground) -> Result<()> {
    let handle = ground.file("write long", b"kept")?;
    let mut rpc = ground.rpc()?;
    for claimed in [5_000, 1 << 20, u32::MAX - 3, u32::MAX] {
        let arguments = Xdr::default().opaque(&handle).u64(0).u32(claimed).u32(2).u32(claimed).raw(&[0xee; 64]);
        expect_garbage(&mut rpc, procedure::WRITE, &arguments)?;
    }
    ensure!(rpc.read(&handle, 0, 100)? == b"kept", "the file was changed");
    Ok(())
}

fn write_count_unlike_its_data(ground: &mut Ground) -> Result<()> {
    let handle = ground.file("write count", b"kept")?;
    let mut rpc = ground.rpc()?;
    for count in [0, 7, 9, u32::MAX] {
        let arguments = Xdr::default().opaque(&handle).u64(0).u32(count).u32(2).opaque(b"12345678");
        match rpc.call(NFS, 3, procedure::WRITE, &arguments.0)? {
            Reply::GarbageArgs => {}
            Reply::Success(body) if body.starts_with(&INVAL.to_be_bytes()) => {}
            other => bail!("count {count} for 8 bytes was answered by {other:?}"),
        }
    }
    ensure!(rpc.read(&handle, 0, 100)? == b"kept", "the file was changed");
    Ok(())
}

fn write_past_the_largest_offset(ground: &mut Ground) -> Result<()> {
    let handle = ground.file("write far", b"kept")?;
    let mut rpc = ground.rpc()?;
    for offset in [i64::MAX as u64, 1 << 63, u64::MAX - 1, u64::MAX] {
        expect_status(&mut rpc, procedure::WRITE, &write_arguments(&handle, offset, 2, b"beyond"), &[FBIG, INVAL])?;
    }
    ensure!(rpc.getattr(&handle)?.size == 4, "the file was changed");
    Ok(())
}

fn write_with_stability_9(ground: &mut Ground) -> Result<()> {
    let handle = ground.file("write stable 9", b"kept")?;
    expect_garbage(&mut ground.rpc()?, procedure::WRITE, &write_arguments(&handle, 0, 9, b"gone"))
}

fn create_with_mode_3(ground: &mut Ground) -> Result<()> {
    let arguments = Xdr::default().opaque(&ground.root).opaque(b"create mode 3").u32(3).no_attributes();
    expect_garbage(&mut ground.rpc()?, procedure::CREATE, &arguments)
}

fn mknod_of_type_99(ground: &mut Ground) -> Result<()> {
    let mut rpc = ground.rpc()?;
    let arguments = Xdr::default().opaque(&ground.root).opaque(b"mknod 99").u32(99).no_attributes().u64(0);
    match rpc.call(NFS, 3, procedure::MKNOD, &arguments.0)? {
        Reply::GarbageArgs => Ok(()),
        Reply::Success(body) if body.starts_with(&BADTYPE.to_be_bytes()) => Ok(()),
        other => bail!("answered by {other:?}"),
    }
}

fn truncate_to_8_eib(ground: &mut Ground) -> Result<()> {
    let handle = ground.file("truncate far", b"kept")?;
    let mut rpc = ground.rpc()?;
    for size in [1 << 63, u64::MAX] {
        let arguments = Xdr::default().opaque(&handle).u32(0).u32(0).u32(0).u32(1).u64(size).u32(0).u32(0).u32(0);
        expect_status(&mut rpc, procedure::SETATTR, &arguments, &[FBIG, INVAL])?;
    }
    ensure!(rpc.getattr(&handle)?.size == 4, "the file was changed");
    Ok(())
}

/// sattrguard3: a ctime that is not the file's.
fn setattr_with_a_wrong_guard(ground: &mut Ground) -> Result<()> {
    let handle = ground.file("guarded", b"kept")?;
    let arguments = Xdr::default().opaque(&handle).u32(1).u32(0).u32(0).u32(0).u32(0).u32(0).u32(0).u32(1).u32(12).u32(34);
    expect_status(&mut ground.rpc()?, procedure::SETATTR, &arguments, &[NOT_SYNC])
}

fn readdir_with_no_room(ground: &mut Ground) -> Result<()> {
    ground.file("an entry with a name that needs some room", b"")?;
    let mut rpc = ground.rpc()?;
    for count in [0, 1, 8] {
        expect_status(&mut rpc, procedure::READDIR, &Xdr::default().opaque(&ground.root).u64(0).u64(0).u32(count), &[TOOSMALL])?;
        let arguments = Xdr::default().opaque(&ground.root).u64(0).u64(0).u32(count).u32(count);
        expect_status(&mut rpc, procedure::READDIRPLUS, &arguments, &[TOOSMALL])?;
    }
    Ok(())
}

fn readdir_with_a_foreign_cookie(ground: &mut Ground) -> Result<()> {
    let arguments = Xdr::default().opaque(&ground.root).u64(u64::MAX - 5).u64(0x0102_0304_0506_0708).u32(4096);
    expect_status(&mut ground.rpc()?, procedure::READDIR, &arguments, &[BAD_COOKIE])
}

/// The reply keeps to the server's own limit.
fn readdirplus_of_4_gib(ground: &mut Ground) -> Result<()> {
    let arguments = Xdr::default().opaque(&ground.root).u64(0).u64(0).u32(u32::MAX).u32(u32::MAX);
    expect_status(&mut ground.rpc()?, procedure::READDIRPLUS, &arguments, &[OK])
}

fn readdir_of_a_file(ground: &mut Ground) -> Result<()> {
    let handle = ground.file("no folder", b"")?;
    let mut rpc = ground.rpc()?;
    expect_status(&mut rpc, procedure::READDIR, &Xdr::default().opaque(&handle).u64(0).u64(0).u32(4096), &[NOTDIR])?;
    expect_status(&mut rpc, procedure::LOOKUP, &Xdr::default().opaque(&handle).opaque(b"x"), &[NOTDIR])
}

/// The kernel's server takes them; so does this one.
fn bytes_after_the_arguments(ground: &mut Ground) -> Result<()> {
    let arguments = Xdr::default().opaque(&ground.root).raw(&[9; 40]);
    expect_status(&mut ground.rpc()?, procedure::GETATTR, &arguments, &[OK])
}

/// The table is static: SET and UNSET answer FALSE, or are no procedures at all.
fn rpcbind_set_from_the_network(ground: &mut Ground) -> Result<()> {
    let mut rpc = ground.bed.rpc_to(111)?;
    for call in [1, 2] {
        let arguments = Xdr::default().u32(MOUNT).u32(3).u32(6).u32(666);
        match rpc.call(RPCBIND, 2, call, &arguments.0)? {
            Reply::Success(body) if body == [0; 4] => {}
            Reply::ProcUnavail | Reply::AuthError(_) => {}
            other => bail!("procedure {call} was answered by {other:?}"),
        }
    }
    ensure!(super::mount_port(&ground.bed)? == ground.mount_port, "the table was changed");
    Ok(())
}

fn mount_program_on_a_wrong_version(ground: &mut Ground) -> Result<()> {
    match ground.bed.rpc_to(ground.mount_port)?.call(MOUNT, 9, 0, &[])? {
        Reply::ProgMismatch { high: 3, .. } => Ok(()),
        other => bail!("answered by {other:?}"),
    }
}
