//! The header of a call, read in place, and the order in which it is judged.
//!
//! Read first: RFC 5531 section 9. The order is sunrpc's `svc_process_common`: RPC version, credential (even for a program
//! that does not exist), program, version, procedure. Decoding the arguments is the program's.

use super::auth::{Credential, LastCredential};
use super::programs::{ProcedureInfo, Programs, Transport};
use super::reply::Rejection;
use super::xdr::{Decoder, XdrError};
use crate::buf::View;

/// The only version of RPC (RFC 5531 section 8.1).
pub const RPC_VERSION: u32 = 2;
const CALL: u32 = 0;

/// What the front of a message says it is.
pub enum Message<'a> {
    Call {
        xid: u32,
        /// At the RPC version.
        rest: Decoder<'a>,
    },
    /// Direction REPLY, or no direction: an answer to a call nobody made.
    NotACall,
}

/// A call whose procedure exists and whose credential is well formed.
pub struct Admitted<'a> {
    pub program: u32,
    pub version: u32,
    pub procedure: u32,
    pub credential: Credential,
    pub info: ProcedureInfo,
    pub arguments: Decoder<'a>,
}

/// Reads xid and direction.
#[inline]
pub fn parse(message: View<'_>) -> Result<Message<'_>, XdrError> {
    let mut rest = Decoder::new(message);
    let [xid, direction] = rest.words()?;
    Ok(if direction == CALL { Message::Call { xid, rest } } else { Message::NotACall })
}

/// Tells the program about a call that comes after the one at hand, taken to be like those before it on its connection.
#[inline]
pub fn expect(message: &[u8], last: &LastCredential, programs: &impl Programs) {
    let mut header = Decoder::new(View::from(message));
    let Ok([_xid, CALL, RPC_VERSION, program, _version, procedure]) = header.words() else { return };
    if !last.is_empty() && header.skip(last.len()).is_ok() {
        programs.expect(program, procedure, header);
    }
}

/// Judges the header of a call from the RPC version on; `last` is of the same connection. `Err` if it ends before the credential: not even a rejection is due.
#[inline]
pub fn admit<'a>(
    mut header: Decoder<'a>,
    transport: Transport,
    last: &mut LastCredential,
    programs: &impl Programs,
) -> Result<Result<Admitted<'a>, Rejection>, XdrError> {
    let [rpc_version, program, version, procedure] = header.words()?;
    if rpc_version != RPC_VERSION {
        return Ok(Err(Rejection::RpcMismatch));
    }
    let credential = match last.authenticate(&mut header) {
        Ok(credential) => credential,
        Err(stat) => return Ok(Err(Rejection::AuthError(stat))),
    };
    let Some(versions) = programs.versions(program, transport) else {
        return Ok(Err(Rejection::ProgramUnavailable));
    };
    if !versions.contains(&version) {
        return Ok(Err(Rejection::ProgramMismatch { low: *versions.start(), high: *versions.end() }));
    }
    let Some(info) = programs.procedure(program, version, procedure) else {
        return Ok(Err(Rejection::ProcedureUnavailable));
    };
    Ok(Ok(Admitted { program, version, procedure, credential, info, arguments: header }))
}
