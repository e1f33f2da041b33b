//! READLINK, READ, WRITE, COMMIT (RFC 1813 sections 3.3.5 to 3.3.7 and 3.3.21).
//!
//! A READ's data are references to the store's pages, handed on as they came; only what stands before them is encoded here,
//! and the padding behind them is the RPC server's.

use super::decode::{self, OFFSET_MAX, Refusal, Request, Scratch, Verb};
use super::encode;
use super::procedures::{Reply, unexpected};
use crate::rpc::xdr::{Decoder, Encoder};
use crate::store::{Failure, Outcome, Stability, Status};

pub fn decode_readlink<'a>(d: &mut Decoder<'a>, scratch: &'a mut Scratch) -> Result<Request<'a>, Refusal> {
    Ok(Request::new(decode::handle(d, &mut scratch.handle)?, Verb::ReadLink))
}

pub fn encode_readlink(e: &mut Encoder<'_>, outcome: &Outcome, _: &Reply<'_>) -> Result<(), Failure> {
    let Outcome::LinkTarget { target, attributes } = outcome else { return unexpected() };
    encode::post_op_attr(e, Some(attributes));
    e.opaque(target);
    Ok(())
}

pub fn decode_read<'a>(d: &mut Decoder<'a>, scratch: &'a mut Scratch) -> Result<Request<'a>, Refusal> {
    let handle = decode::handle(d, &mut scratch.handle)?;
    let [high, low, count] = d.words()?;
    let offset = u64::from(high) << 32 | u64::from(low);
    // No file has bytes there, so the answer is the end of the file (RFC 1813 section 3.3.6), as from the Linux server.
    let offset = offset.min(OFFSET_MAX);
    let count = count.min(u32::try_from(OFFSET_MAX - offset).unwrap_or(u32::MAX));
    Ok(Request::new(handle, Verb::Read { offset, count }))
}

pub fn encode_read(e: &mut Encoder<'_>, outcome: &Outcome, _: &Reply<'_>) -> Result<(), Failure> {
    let Outcome::Data { count, end_of_file, attributes } = outcome else { return unexpected() };
    encode::post_op_attr(e, Some(attributes));
    // The second count is the length of the opaque data, which follow in `Results::pages`.
    e.words([*count, u32::from(*end_of_file), *count]);
    Ok(())
}

pub fn decode_write<'a>(d: &mut Decoder<'a>, scratch: &'a mut Scratch) -> Result<Request<'a>, Refusal> {
    let handle = decode::handle(d, &mut scratch.handle)?;
    let offset = d.u64()?;
    let count = d.u32()?;
    let stability = d.enumeration(|value| match value {
        0 => Some(Stability::Unstable),
        1 => Some(Stability::DataSync),
        2 => Some(Stability::FileSync),
        _ => None,
    })?;
    let data = d.opaque(d.remaining())?;
    // RFC 1813 section 3.3.7: "The size of data must be equal to count."
    if data.len() != count as usize {
        return Err(Status::InvalidArgument.into());
    }
    match offset.checked_add(data.len() as u64) {
        Some(end) if end <= OFFSET_MAX => {}
        _ => return Err(Status::FileTooLarge.into()),
    }
    Ok(Request::new(handle, Verb::Write { offset, stability, data }))
}

fn stable_how(stability: Stability) -> u32 {
    match stability {
        Stability::Unstable => 0,
        Stability::DataSync => 1,
        Stability::FileSync => 2,
    }
}

pub fn encode_write(e: &mut Encoder<'_>, outcome: &Outcome, _: &Reply<'_>) -> Result<(), Failure> {
    let Outcome::Written { count, stability, verifier, wcc } = outcome else { return unexpected() };
    encode::wcc_data(e, wcc);
    e.u32(*count);
    e.u32(stable_how(*stability));
    e.opaque_fixed(verifier);
    Ok(())
}

pub fn decode_commit<'a>(d: &mut Decoder<'a>, scratch: &'a mut Scratch) -> Result<Request<'a>, Refusal> {
    let handle = decode::handle(d, &mut scratch.handle)?;
    let offset = d.u64()?;
    let count = d.u32()?;
    // A range that leaves the address space means "to the end of the file" (count 0), as in the Linux server.
    let count = if offset.checked_add(u64::from(count)).is_some_and(|end| end <= OFFSET_MAX) { count } else { 0 };
    Ok(Request::new(handle, Verb::Commit { offset: offset.min(OFFSET_MAX), count }))
}

pub fn encode_commit(e: &mut Encoder<'_>, outcome: &Outcome, _: &Reply<'_>) -> Result<(), Failure> {
    let Outcome::Committed { verifier, wcc } = outcome else { return unexpected() };
    encode::wcc_data(e, wcc);
    e.opaque_fixed(verifier);
    Ok(())
}
