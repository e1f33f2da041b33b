//! GETATTR, SETATTR, ACCESS (RFC 1813 sections 3.3.1, 3.3.2, 3.3.4).

use super::decode::{self, Refusal, Request, Scratch, Verb};
use super::encode;
use super::procedures::{Reply, unexpected};
use crate::rpc::xdr::{Decoder, Encoder};
use crate::store::{Failure, Outcome};

pub fn decode_getattr<'a>(d: &mut Decoder<'a>, scratch: &'a mut Scratch) -> Result<Request<'a>, Refusal> {
    Ok(Request::new(decode::handle(d, &mut scratch.handle)?, Verb::GetAttributes))
}

pub fn encode_getattr(e: &mut Encoder<'_>, outcome: &Outcome, _: &Reply<'_>) -> Result<(), Failure> {
    let Outcome::Attributes(attributes) = outcome else { return unexpected() };
    encode::fattr3(e, attributes);
    Ok(())
}

pub fn decode_setattr<'a>(d: &mut Decoder<'a>, scratch: &'a mut Scratch) -> Result<Request<'a>, Refusal> {
    let handle = decode::handle(d, &mut scratch.handle)?;
    let changes = decode::changes(d)?;
    // sattrguard3: the change time the client believes in.
    let guard = if d.bool()? { Some(decode::time(d)?) } else { None };
    decode::check_changes(&changes)?;
    Ok(Request::new(handle, Verb::SetAttributes { changes, guard }))
}

pub fn encode_setattr(e: &mut Encoder<'_>, outcome: &Outcome, _: &Reply<'_>) -> Result<(), Failure> {
    let Outcome::Changed { wcc } = outcome else { return unexpected() };
    encode::wcc_data(e, wcc);
    Ok(())
}

pub fn decode_access<'a>(d: &mut Decoder<'a>, scratch: &'a mut Scratch) -> Result<Request<'a>, Refusal> {
    Ok(Request::new(decode::handle(d, &mut scratch.handle)?, Verb::Access { mask: d.u32()? }))
}

pub fn encode_access(e: &mut Encoder<'_>, outcome: &Outcome, _: &Reply<'_>) -> Result<(), Failure> {
    let Outcome::Granted { mask, attributes } = outcome else { return unexpected() };
    encode::post_op_attr(e, Some(attributes));
    e.u32(*mask);
    Ok(())
}
