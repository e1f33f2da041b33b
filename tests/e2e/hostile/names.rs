//! Names, paths, links and exports: nothing outside the export is reached, and no name does what names cannot.

use anyhow::{Result, bail, ensure};

use super::status::{ACCES, BADTYPE, EXIST, INVAL, ISDIR, NAMETOOLONG, NOENT, NOTEMPTY, OK};
use super::{Case, Ground, expect_status};
use crate::client::{NFS, Reader, Reply, Rpc, Xdr, procedure};

const MNT3ERR_NOENT: u32 = 2;
const MNT3ERR_ACCES: u32 = 13;
const MNT3ERR_NAMETOOLONG: u32 = 63;

pub const CASES: &[Case] = &[
    ("name_with_a_slash", name_with_a_slash),
    ("name_with_nul", name_with_nul),
    ("name_that_is_empty", name_that_is_empty),
    ("name_of_256_bytes", name_of_256_bytes),
    ("name_of_100_kib", name_of_100_kib),
    ("name_longer_than_its_record", name_longer_than_its_record),
    ("dot_and_dot_dot_cannot_be_made_or_removed", dot_and_dot_dot),
    ("dot_dot_of_the_root", dot_dot_of_the_root),
    ("symlink_out_of_the_export", symlink_out_of_the_export),
    ("symlink_target_of_64_kib", symlink_target_of_64_kib),
    ("rename_into_itself", rename_into_itself),
    ("hard_link_to_a_directory", hard_link_to_a_directory),
    ("remove_of_a_directory_and_rmdir_of_a_file", remove_and_rmdir_swapped),
    ("mount_path_traversal", mount_path_traversal),
    ("mount_path_of_2_kib", mount_path_of_2_kib),
    ("mount_of_what_is_not_exported", mount_of_what_is_not_exported),
];

fn lookup(ground: &Ground, name: &[u8]) -> Xdr {
    Xdr::default().opaque(&ground.root).opaque(name)
}

fn create(ground: &Ground, name: &[u8]) -> Xdr {
    lookup(ground, name).u32(0).no_attributes()
}

/// Every procedure that takes a name refuses this one.
fn refused_everywhere(ground: &mut Ground, name: &[u8], allowed: &[u32]) -> Result<()> {
    let mut rpc = ground.rpc()?;
    ground.file("known", b"")?;
    let (plain, other) = (lookup(ground, name), lookup(ground, b"known"));
    let check = |rpc: &mut Rpc, what: u32, arguments: &Xdr| -> Result<()> {
        let (status, _) = rpc.nfs(what, arguments)?;
        ensure!(allowed.contains(&status), "procedure {what}: nfsstat3 {status}, expected one of {allowed:?}");
        Ok(())
    };
    check(&mut rpc, procedure::CREATE, &create(ground, name))?;
    check(&mut rpc, procedure::MKDIR, &plain.clone().no_attributes())?;
    check(&mut rpc, procedure::SYMLINK, &plain.clone().no_attributes().opaque(b"target"))?;
    check(&mut rpc, procedure::RENAME, &other.raw(&plain.0))?;
    let handle = rpc.lookup(&ground.root, b"known")?;
    check(&mut rpc, procedure::LINK, &Xdr::default().opaque(&handle).raw(&plain.0))
}

fn name_with_a_slash(ground: &mut Ground) -> Result<()> {
    for name in [&b"a/b"[..], b"/", b"/etc/passwd", b"../../etc/passwd", b"known/"] {
        refused_everywhere(ground, name, &[INVAL, ACCES])?;
        expect_status(&mut ground.rpc()?, procedure::LOOKUP, &lookup(ground, name), &[INVAL, ACCES, NOENT])?;
        expect_status(&mut ground.rpc()?, procedure::REMOVE, &lookup(ground, name), &[INVAL, ACCES, NOENT])?;
    }
    Ok(())
}

fn name_with_nul(ground: &mut Ground) -> Result<()> {
    for name in [&b"a\0b"[..], b"\0", b"known\0"] {
        refused_everywhere(ground, name, &[INVAL, ACCES])?;
        expect_status(&mut ground.rpc()?, procedure::LOOKUP, &lookup(ground, name), &[INVAL, ACCES, NOENT])?;
    }
    Ok(())
}

fn name_that_is_empty(ground: &mut Ground) -> Result<()> {
    refused_everywhere(ground, b"", &[INVAL, ACCES])?;
    expect_status(&mut ground.rpc()?, procedure::LOOKUP, &lookup(ground, b""), &[INVAL, ACCES, NOENT])
}

/// One byte under it is a name like any other.
fn name_of_256_bytes(ground: &mut Ground) -> Result<()> {
    refused_everywhere(ground, &[b'n'; 256], &[NAMETOOLONG])?;
    expect_status(&mut ground.rpc()?, procedure::LOOKUP, &lookup(ground, &[b'n'; 256]), &[NAMETOOLONG])?;
    expect_status(&mut ground.rpc()?, procedure::CREATE, &create(ground, &[b'n'; 255]), &[OK])?;
    expect_status(&mut ground.rpc()?, procedure::REMOVE, &lookup(ground, &[b'n'; 255]), &[OK])
}

fn name_of_100_kib(ground: &mut Ground) -> Result<()> {
    let mut rpc = ground.rpc()?;
    match rpc.call(NFS, 3, procedure::LOOKUP, &lookup(ground, &vec![b'n'; 100 << 10]).0)? {
        Reply::GarbageArgs => {}
        Reply::Success(body) if body.starts_with(&NAMETOOLONG.to_be_bytes()) => {}
        other => bail!("answered by {other:?}"),
    }
    rpc.null()
}

fn name_longer_than_its_record(ground: &mut Ground) -> Result<()> {
    let mut rpc = ground.rpc()?;
    for claimed in [40, 255, u32::MAX] {
        let arguments = Xdr::default().opaque(&ground.root).u32(claimed).raw(b"short name..");
        super::expect_garbage(&mut rpc, procedure::LOOKUP, &arguments)?;
    }
    Ok(())
}

fn dot_and_dot_dot(ground: &mut Ground) -> Result<()> {
    let mut rpc = ground.rpc()?;
    let allowed = [EXIST, INVAL, ACCES, ISDIR, NOTEMPTY];
    for name in [&b"."[..], b".."] {
        expect_status(&mut rpc, procedure::CREATE, &create(ground, name), &allowed)?;
        expect_status(&mut rpc, procedure::MKDIR, &lookup(ground, name).no_attributes(), &allowed)?;
        expect_status(&mut rpc, procedure::REMOVE, &lookup(ground, name), &allowed)?;
        expect_status(&mut rpc, procedure::RMDIR, &lookup(ground, name), &allowed)?;
        expect_status(&mut rpc, procedure::RENAME, &lookup(ground, name).raw(&lookup(ground, b"moved").0), &allowed)?;
    }
    Ok(())
}

/// ".." of the export's root is the root itself, or there is none: never the folder above.
fn dot_dot_of_the_root(ground: &mut Ground) -> Result<()> {
    let mut rpc = ground.rpc()?;
    let (status, body) = rpc.nfs(procedure::LOOKUP, &lookup(ground, b".."))?;
    match status {
        OK => {
            let above = rpc.getattr(Reader(&body).opaque()?)?;
            ensure!(above.fileid == rpc.getattr(&ground.root)?.fileid, "the folder above the export was reached");
            Ok(())
        }
        NOENT | ACCES => Ok(()),
        other => bail!("nfsstat3 {other}"),
    }
}

/// The target is the client's text: the server keeps it and does not follow it.
fn symlink_out_of_the_export(ground: &mut Ground) -> Result<()> {
    let mut rpc = ground.rpc()?;
    let target = b"../../../../../../etc";
    expect_status(&mut rpc, procedure::SYMLINK, &lookup(ground, b"way out").no_attributes().opaque(target), &[OK])?;
    let link = rpc.lookup(&ground.root, b"way out")?;
    ensure!(rpc.getattr(&link)?.kind == 5, "LOOKUP followed the link");
    let (status, body) = rpc.nfs(procedure::READLINK, &Xdr::default().opaque(&link))?;
    let mut reader = Reader(&body);
    reader.post_op_attributes()?;
    ensure!(status == OK && reader.opaque()? == target, "READLINK gave nfsstat3 {status} or another text");
    let (status, _) = rpc.nfs(procedure::LOOKUP, &Xdr::default().opaque(&link).opaque(b"passwd"))?;
    ensure!(status != OK, "a name was looked up through the link");
    let (status, _) = rpc.nfs(procedure::READ, &Xdr::default().opaque(&link).u64(0).u32(100))?;
    ensure!(status != OK, "the link was read like a file");
    expect_status(&mut rpc, procedure::REMOVE, &lookup(ground, b"way out"), &[OK])
}

fn symlink_target_of_64_kib(ground: &mut Ground) -> Result<()> {
    let mut rpc = ground.rpc()?;
    let arguments = lookup(ground, b"long link").no_attributes().opaque(&vec![b't'; 64 << 10]);
    match rpc.call(NFS, 3, procedure::SYMLINK, &arguments.0)? {
        Reply::GarbageArgs => Ok(()),
        Reply::Success(body) if body.starts_with(&NAMETOOLONG.to_be_bytes()) => Ok(()),
        other => bail!("answered by {other:?}"),
    }
}

fn rename_into_itself(ground: &mut Ground) -> Result<()> {
    let mut rpc = ground.rpc()?;
    let folder = rpc.mkdir(&ground.root, b"outer")?;
    let into = lookup(ground, b"outer").opaque(&folder).opaque(b"inner");
    expect_status(&mut rpc, procedure::RENAME, &into, &[INVAL])?;
    expect_status(&mut rpc, procedure::RMDIR, &lookup(ground, b"outer"), &[OK])
}

fn hard_link_to_a_directory(ground: &mut Ground) -> Result<()> {
    const PERM: u32 = 1;
    let mut rpc = ground.rpc()?;
    let folder = rpc.mkdir(&ground.root, b"linked")?;
    let arguments = Xdr::default().opaque(&folder).opaque(&ground.root).opaque(b"link to it");
    expect_status(&mut rpc, procedure::LINK, &arguments, &[ISDIR, INVAL, ACCES, PERM, BADTYPE])?;
    expect_status(&mut rpc, procedure::RMDIR, &lookup(ground, b"linked"), &[OK])
}

fn remove_and_rmdir_swapped(ground: &mut Ground) -> Result<()> {
    const PERM: u32 = 1;
    const NOTDIR: u32 = super::status::NOTDIR;
    let mut rpc = ground.rpc()?;
    let folder = rpc.mkdir(&ground.root, b"folder")?;
    ground.file("plain", b"x")?;
    rpc.create(&folder, b"inside")?;
    expect_status(&mut rpc, procedure::REMOVE, &lookup(ground, b"folder"), &[ISDIR, PERM, ACCES])?;
    expect_status(&mut rpc, procedure::RMDIR, &lookup(ground, b"plain"), &[NOTDIR])?;
    expect_status(&mut rpc, procedure::RMDIR, &lookup(ground, b"folder"), &[NOTEMPTY, EXIST])?;
    expect_status(&mut rpc, procedure::REMOVE, &Xdr::default().opaque(&folder).opaque(b"inside"), &[OK])?;
    expect_status(&mut rpc, procedure::RMDIR, &lookup(ground, b"folder"), &[OK])
}

fn mount_refused(ground: &mut Ground, path: &[u8], allowed: &[u32]) -> Result<()> {
    match ground.bed.rpc_to(ground.mount_port)?.mount(path)? {
        Ok(_) => bail!("{:?} was mounted", String::from_utf8_lossy(path)),
        Err(status) => ensure!(allowed.contains(&status), "mountstat3 {status}, expected one of {allowed:?}"),
    }
    Ok(())
}

fn mount_path_traversal(ground: &mut Ground) -> Result<()> {
    for path in [&b"/export/.."[..], b"/export/../../etc", b"/export/../export/..", b"../export", b"/export/./../.."] {
        mount_refused(ground, path, &[MNT3ERR_NOENT, MNT3ERR_ACCES])?;
    }
    Ok(())
}

/// MNTPATHLEN is 1024.
fn mount_path_of_2_kib(ground: &mut Ground) -> Result<()> {
    let path = [b"/export/".to_vec(), vec![b'p'; 2 << 10]].concat();
    let mut rpc = ground.bed.rpc_to(ground.mount_port)?;
    match rpc.call(crate::client::MOUNT, 3, 1, &Xdr::default().opaque(&path).0)? {
        Reply::GarbageArgs => Ok(()),
        Reply::Success(body) if body.starts_with(&MNT3ERR_NAMETOOLONG.to_be_bytes()) => Ok(()),
        other => bail!("answered by {other:?}"),
    }
}

fn mount_of_what_is_not_exported(ground: &mut Ground) -> Result<()> {
    for path in [&b"/"[..], b"/etc", b"/exports", b"/expor", b"", b"/export\0"] {
        mount_refused(ground, path, &[MNT3ERR_NOENT, MNT3ERR_ACCES])?;
    }
    Ok(())
}
