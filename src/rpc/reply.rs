//! Headers of replies: success, and each way of saying no.
//!
//! Read first: RFC 5531 section 9 (rpc_msg, reply_body, accepted_reply, rejected_reply).

use super::auth::{AUTH_NONE, AuthStat};
use super::call::RPC_VERSION;
use super::xdr::Encoder;

/// Bytes of the header in front of the results of a successful call.
pub const SUCCESS_LEN: usize = 24;
/// Bytes of the longest rejection (PROG_MISMATCH).
pub const REJECTION_LEN_MAX: usize = 32;

const REPLY: u32 = 1;
const MSG_ACCEPTED: u32 = 0;
const MSG_DENIED: u32 = 1;

/// Every answer but SUCCESS, with the words of RFC 5531 section 9.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rejection {
    /// MSG_DENIED, RPC_MISMATCH.
    RpcMismatch,
    /// MSG_DENIED, AUTH_ERROR.
    AuthError(AuthStat),
    /// PROG_UNAVAIL.
    ProgramUnavailable,
    /// PROG_MISMATCH.
    ProgramMismatch { low: u32, high: u32 },
    /// PROC_UNAVAIL.
    ProcedureUnavailable,
    /// GARBAGE_ARGS.
    GarbageArguments,
    /// SYSTEM_ERR.
    SystemError,
}

/// Exactly `SUCCESS_LEN` bytes; the results follow.
pub fn encode_success(encoder: &mut Encoder<'_>, xid: u32) {
    encoder.words([xid, REPLY, MSG_ACCEPTED, AUTH_NONE, 0, 0]);
}

/// A whole reply of at most `REJECTION_LEN_MAX` bytes.
pub fn encode_rejection(encoder: &mut Encoder<'_>, xid: u32, rejection: Rejection) {
    let accepted = |encoder: &mut Encoder<'_>, stat| encoder.words([xid, REPLY, MSG_ACCEPTED, AUTH_NONE, 0, stat]);
    match rejection {
        Rejection::RpcMismatch => encoder.words([xid, REPLY, MSG_DENIED, 0, RPC_VERSION, RPC_VERSION]),
        Rejection::AuthError(stat) => encoder.words([xid, REPLY, MSG_DENIED, 1, stat as u32]),
        Rejection::ProgramUnavailable => accepted(encoder, 1),
        Rejection::ProgramMismatch { low, high } => {
            accepted(encoder, 2);
            encoder.words([low, high]);
        }
        Rejection::ProcedureUnavailable => accepted(encoder, 3),
        Rejection::GarbageArguments => accepted(encoder, 4),
        Rejection::SystemError => accepted(encoder, 5),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn encoded(encode: impl FnOnce(&mut Encoder<'_>)) -> Vec<u32> {
        let mut room = [0xee; 64];
        let mut encoder = Encoder::new(&mut room);
        encode(&mut encoder);
        let words = encoder.written().chunks_exact(4).map(|word| u32::from_be_bytes(word.try_into().unwrap()));
        words.collect()
    }

    #[test]
    fn every_reply_header_word_for_word() {
        let reject = |rejection| encoded(|encoder| encode_rejection(encoder, 9, rejection));
        assert_eq!(encoded(|encoder| encode_success(encoder, 9)), [9, 1, 0, 0, 0, 0]);
        assert_eq!(reject(Rejection::RpcMismatch), [9, 1, 1, 0, 2, 2]);
        assert_eq!(reject(Rejection::AuthError(AuthStat::BadCredential)), [9, 1, 1, 1, 1]);
        assert_eq!(reject(Rejection::AuthError(AuthStat::BadVerifier)), [9, 1, 1, 1, 3]);
        assert_eq!(reject(Rejection::AuthError(AuthStat::TooWeak)), [9, 1, 1, 1, 5]);
        assert_eq!(reject(Rejection::ProgramUnavailable), [9, 1, 0, 0, 0, 1]);
        assert_eq!(reject(Rejection::ProgramMismatch { low: 3, high: 4 }), [9, 1, 0, 0, 0, 2, 3, 4]);
        assert_eq!(reject(Rejection::ProcedureUnavailable), [9, 1, 0, 0, 0, 3]);
        assert_eq!(reject(Rejection::GarbageArguments), [9, 1, 0, 0, 0, 4]);
        assert_eq!(reject(Rejection::SystemError), [9, 1, 0, 0, 0, 5]);
    }
}
