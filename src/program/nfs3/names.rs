//! LOOKUP, CREATE, MKDIR, SYMLINK, MKNOD, REMOVE, RMDIR, RENAME, LINK (RFC 1813 sections 3.3.3 and 3.3.8 to 3.3.15).

use super::decode::{self, Refusal, Request, Scratch, Verb};
use super::encode;
use super::procedures::{Reply, unexpected};
use crate::rpc::xdr::{Decoder, Encoder};
use crate::store::{CreateHow, Failure, LINK_TARGET_MAX, NodeKind, Outcome, Status};

pub fn decode_lookup<'a>(d: &mut Decoder<'a>, scratch: &'a mut Scratch) -> Result<Request<'a>, Refusal> {
    let handle = decode::handle(d, &mut scratch.handle)?;
    let name = decode::name(d, &mut scratch.first)??;
    Ok(Request::new(handle, Verb::Lookup { name }))
}

pub fn encode_lookup(e: &mut Encoder<'_>, outcome: &Outcome, reply: &Reply<'_>) -> Result<(), Failure> {
    let Outcome::Found { object, attributes, directory } = outcome else { return unexpected() };
    e.opaque(reply.handle(*object).as_bytes());
    encode::post_op_attr(e, Some(attributes));
    encode::post_op_attr(e, directory.as_ref());
    Ok(())
}

pub fn decode_create<'a>(d: &mut Decoder<'a>, scratch: &'a mut Scratch) -> Result<Request<'a>, Refusal> {
    let handle = decode::handle(d, &mut scratch.handle)?;
    let name = decode::new_name(d, &mut scratch.first)?;
    let how = match d.u32()? {
        0 => CreateHow::Unchecked(decode::changes(d)?),
        1 => CreateHow::Guarded(decode::changes(d)?),
        2 => CreateHow::Exclusive(d.opaque_fixed()?),
        _ => return Err(Refusal::Garbage),
    };
    if let CreateHow::Unchecked(changes) | CreateHow::Guarded(changes) = &how {
        decode::check_changes(changes)?;
    }
    Ok(Request::new(handle, Verb::Create { name: name?, how }))
}

/// CREATE3resok, MKDIR3resok, SYMLINK3resok and MKNOD3resok are the same.
pub fn encode_created(e: &mut Encoder<'_>, outcome: &Outcome, reply: &Reply<'_>) -> Result<(), Failure> {
    let Outcome::Created { object, attributes, directory } = outcome else { return unexpected() };
    encode::post_op_fh3(e, &reply.handle(*object));
    encode::post_op_attr(e, Some(attributes));
    encode::wcc_data(e, directory);
    Ok(())
}

pub fn decode_mkdir<'a>(d: &mut Decoder<'a>, scratch: &'a mut Scratch) -> Result<Request<'a>, Refusal> {
    let handle = decode::handle(d, &mut scratch.handle)?;
    let name = decode::new_name(d, &mut scratch.first)?;
    let attributes = decode::changes(d)?;
    decode::check_changes(&attributes)?;
    Ok(Request::new(handle, Verb::MakeDirectory { name: name?, attributes }))
}

pub fn decode_symlink<'a>(d: &mut Decoder<'a>, scratch: &'a mut Scratch) -> Result<Request<'a>, Refusal> {
    let handle = decode::handle(d, &mut scratch.handle)?;
    let name = decode::new_name(d, &mut scratch.first)?;
    let attributes = decode::changes(d)?;
    let target = d.string(d.remaining())?;
    decode::check_changes(&attributes)?;
    if target.len() > LINK_TARGET_MAX {
        return Err(Status::NameTooLong.into());
    }
    let target: &[u8] = target.contiguous_in(&mut scratch.target).ok_or(Refusal::Garbage)?;
    // symlink(2) has no such names: the empty one, and one with a NUL inside.
    if target.is_empty() || target.contains(&0) {
        return Err(Status::InvalidArgument.into());
    }
    Ok(Request::new(handle, Verb::Symlink { name: name?, target, attributes }))
}

pub fn decode_mknod<'a>(d: &mut Decoder<'a>, scratch: &'a mut Scratch) -> Result<Request<'a>, Refusal> {
    let handle = decode::handle(d, &mut scratch.handle)?;
    let name = decode::new_name(d, &mut scratch.first)?;
    // ftype3: the types that are made by other procedures have no arguments here and are refused (section 3.3.11).
    let kind = d.u32()?;
    let attributes = match kind {
        3 | 4 | 6 | 7 => decode::changes(d)?,
        1 | 2 | 5 => return Err(Status::BadType.into()),
        _ => return Err(Refusal::Garbage),
    };
    let kind = match kind {
        3 => NodeKind::BlockDevice { major: d.u32()?, minor: d.u32()? },
        4 => NodeKind::CharacterDevice { major: d.u32()?, minor: d.u32()? },
        6 => NodeKind::Socket,
        _ => NodeKind::Fifo,
    };
    decode::check_changes(&attributes)?;
    Ok(Request::new(handle, Verb::MakeNode { name: name?, kind, attributes }))
}

pub fn decode_remove<'a>(d: &mut Decoder<'a>, scratch: &'a mut Scratch) -> Result<Request<'a>, Refusal> {
    let handle = decode::handle(d, &mut scratch.handle)?;
    let name = decode::name(d, &mut scratch.first)??;
    if decode::is_dots(name) {
        return Err(Status::AccessDenied.into());
    }
    Ok(Request::new(handle, Verb::Remove { name }))
}

pub fn decode_rmdir<'a>(d: &mut Decoder<'a>, scratch: &'a mut Scratch) -> Result<Request<'a>, Refusal> {
    let handle = decode::handle(d, &mut scratch.handle)?;
    // RFC 1813 section 3.3.13, implementation: "." gets INVAL and ".." gets EXIST.
    match decode::name(d, &mut scratch.first)?? {
        b"." => Err(Status::InvalidArgument.into()),
        b".." => Err(Status::Exists.into()),
        name => Ok(Request::new(handle, Verb::RemoveDirectory { name })),
    }
}

pub fn encode_removed(e: &mut Encoder<'_>, outcome: &Outcome, _: &Reply<'_>) -> Result<(), Failure> {
    let Outcome::Removed { directory } = outcome else { return unexpected() };
    encode::wcc_data(e, directory);
    Ok(())
}

pub fn decode_rename<'a>(d: &mut Decoder<'a>, scratch: &'a mut Scratch) -> Result<Request<'a>, Refusal> {
    let handle = decode::handle(d, &mut scratch.handle)?;
    let from = decode::name(d, &mut scratch.first)?;
    let second = Some(decode::handle(d, &mut scratch.second_handle)?);
    let to = decode::name(d, &mut scratch.second)?;
    let (from, to) = (from?, to?);
    // RFC 1813 section 3.3.14: aliases of directories cannot be renamed, or renamed over.
    if decode::is_dots(from) || decode::is_dots(to) {
        return Err(Status::InvalidArgument.into());
    }
    Ok(Request { handle, second, verb: Verb::Rename { from, to } })
}

pub fn encode_rename(e: &mut Encoder<'_>, outcome: &Outcome, _: &Reply<'_>) -> Result<(), Failure> {
    let Outcome::Renamed { from, to } = outcome else { return unexpected() };
    encode::wcc_data(e, from);
    encode::wcc_data(e, to);
    Ok(())
}

pub fn decode_link<'a>(d: &mut Decoder<'a>, scratch: &'a mut Scratch) -> Result<Request<'a>, Refusal> {
    let handle = decode::handle(d, &mut scratch.handle)?;
    let second = Some(decode::handle(d, &mut scratch.second_handle)?);
    let name = decode::new_name(d, &mut scratch.first)??;
    Ok(Request { handle, second, verb: Verb::Link { name } })
}

pub fn encode_link(e: &mut Encoder<'_>, outcome: &Outcome, _: &Reply<'_>) -> Result<(), Failure> {
    let Outcome::Linked { attributes, directory } = outcome else { return unexpected() };
    encode::post_op_attr(e, attributes.as_ref());
    encode::wcc_data(e, directory);
    Ok(())
}
