//! FSSTAT, FSINFO, PATHCONF (RFC 1813 sections 3.3.18 to 3.3.20).

use super::decode::{self, OFFSET_MAX, Refusal, Request, Scratch, Verb};
use super::encode;
use super::procedures::{Reply, unexpected};
use crate::rpc::xdr::{Decoder, Encoder};
use crate::store::{Failure, Outcome};

/// FSINFO's properties: hard links, symbolic links, PATHCONF the same everywhere, times can be set.
const FSF3_LINK: u32 = 0x01;
const FSF3_SYMLINK: u32 = 0x02;
const FSF3_HOMOGENEOUS: u32 = 0x08;
const FSF3_CANSETTIME: u32 = 0x10;

/// Suggested multiple of READ and WRITE sizes, bytes.
const TRANSFER_MULTIPLE: u32 = 4096;

pub fn decode_fsstat<'a>(d: &mut Decoder<'a>, scratch: &'a mut Scratch) -> Result<Request<'a>, Refusal> {
    Ok(Request::new(decode::handle(d, &mut scratch.handle)?, Verb::Status))
}

pub fn encode_fsstat(e: &mut Encoder<'_>, outcome: &Outcome, _: &Reply<'_>) -> Result<(), Failure> {
    let Outcome::FileSystemStatus { status, attributes } = outcome else { return unexpected() };
    encode::post_op_attr(e, Some(attributes));
    e.u64(status.bytes_total);
    e.u64(status.bytes_free);
    e.u64(status.bytes_available);
    e.u64(status.files_total);
    e.u64(status.files_free);
    e.u64(status.files_available);
    // invarsec 0: anything may change at once.
    e.u32(0);
    Ok(())
}

pub fn decode_fsinfo<'a>(d: &mut Decoder<'a>, scratch: &'a mut Scratch) -> Result<Request<'a>, Refusal> {
    Ok(Request::new(decode::handle(d, &mut scratch.handle)?, Verb::GetAttributes))
}

pub fn encode_fsinfo(e: &mut Encoder<'_>, outcome: &Outcome, reply: &Reply<'_>) -> Result<(), Failure> {
    let Outcome::Attributes(attributes) = outcome else { return unexpected() };
    let options = reply.options;
    encode::post_op_attr(e, Some(attributes));
    e.u32(options.read_bytes_max);
    e.u32(options.read_bytes_max);
    e.u32(TRANSFER_MULTIPLE);
    e.u32(options.write_bytes_max);
    e.u32(options.write_bytes_max);
    e.u32(TRANSFER_MULTIPLE);
    e.u32(options.directory_bytes_max);
    e.u64(OFFSET_MAX);
    // time_delta: one nanosecond.
    e.u32(0);
    e.u32(1);
    e.u32(FSF3_LINK | FSF3_SYMLINK | FSF3_HOMOGENEOUS | FSF3_CANSETTIME);
    Ok(())
}

pub fn decode_pathconf<'a>(d: &mut Decoder<'a>, scratch: &'a mut Scratch) -> Result<Request<'a>, Refusal> {
    Ok(Request::new(decode::handle(d, &mut scratch.handle)?, Verb::Limits))
}

pub fn encode_pathconf(e: &mut Encoder<'_>, outcome: &Outcome, _: &Reply<'_>) -> Result<(), Failure> {
    let Outcome::PathLimits { limits, attributes } = outcome else { return unexpected() };
    encode::post_op_attr(e, Some(attributes));
    e.u32(limits.links_max);
    e.u32(limits.name_max);
    // no_trunc, chown_restricted, not case_insensitive, case_preserving.
    e.bool(true);
    e.bool(true);
    e.bool(false);
    e.bool(true);
    Ok(())
}
