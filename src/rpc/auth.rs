//! Credentials and verifiers of calls: AUTH_NONE and AUTH_SYS.
//!
//! Read first: RFC 5531 sections 8.2, 9 and 10, appendix A. RPCSEC_GSS (RFC 2203) and AUTH_TLS (RFC 9289) are named and
//! refused with AUTH_BADCRED for now, which is what a server without them answers.

use super::xdr::{Decoder, XdrError};

pub const AUTH_NONE: u32 = 0;
pub const AUTH_SYS: u32 = 1;
pub const RPCSEC_GSS: u32 = 6;
pub const AUTH_TLS: u32 = 7;

/// Longest body of a credential or verifier, bytes (RFC 5531 section 8.2).
pub const AUTH_BODY_MAX: usize = 400;
/// Longest machine name in an AUTH_SYS credential, bytes (RFC 5531 appendix A).
pub const MACHINE_NAME_MAX: usize = 255;
/// Most supplementary groups in an AUTH_SYS credential (RFC 5531 appendix A).
pub const GROUPS_MAX: usize = 16;

/// auth_stat of RFC 5531 section 9: why authentication failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum AuthStat {
    BadCredential = 1,
    RejectedCredential = 2,
    BadVerifier = 3,
    RejectedVerifier = 4,
    TooWeak = 5,
    InvalidResponse = 6,
    Failed = 7,
    GssCredentialProblem = 13,
    GssContextProblem = 14,
}

/// The AUTH_SYS credential as the client claims it; squashing is the export's matter.
#[derive(Debug, PartialEq, Eq)]
pub struct AuthSys {
    pub stamp: u32,
    pub uid: u32,
    pub gid: u32,
    pub groups: smallvec::SmallVec<[u32; GROUPS_MAX]>,
}

impl Clone for AuthSys {
    fn clone(&self) -> AuthSys {
        // At once, where the derived one goes group by group.
        AuthSys { groups: smallvec::SmallVec::from_slice(&self.groups), ..*self }
    }
}

/// Who the caller says it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Credential {
    None,
    Sys(AuthSys),
}

/// Longest credential and verifier, as they stand in a call's header, that are remembered, bytes: AUTH_SYS with 16 groups and a
/// machine name of 27 bytes.
const REMEMBERED_MAX: usize = 128;

/// The credential and verifier of a connection's last call, as they came and as what they mean: the same bytes are not parsed
/// again (sunrpc's XPT_CACHE_AUTH). What a credential means depends on nothing but its bytes.
pub struct LastCredential {
    len: usize,
    bytes: [u8; REMEMBERED_MAX],
    credential: Credential,
}

impl Default for LastCredential {
    fn default() -> LastCredential {
        LastCredential { len: 0, bytes: [0; REMEMBERED_MAX], credential: Credential::None }
    }
}

impl LastCredential {
    /// `authenticate`, unless the bytes are those of the call before.
    #[inline]
    pub fn authenticate(&mut self, header: &mut Decoder<'_>) -> Result<Credential, AuthStat> {
        if self.len > 0 && header.rest().peek(self.len) == Some(&self.bytes[..self.len]) && header.skip(self.len).is_ok() {
            return Ok(self.credential.clone());
        }
        self.parse(header)
    }

    /// Bytes of the last credential and verifier; 0 if there was none, or a long one.
    pub fn len(&self) -> usize {
        self.len
    }

    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    fn parse(&mut self, header: &mut Decoder<'_>) -> Result<Credential, AuthStat> {
        let before = header.rest();
        let credential = authenticate(header)?;
        let len = before.len() - header.remaining();
        if let (Some(bytes), Some(room)) = (before.peek(len), self.bytes.get_mut(..len)) {
            room.copy_from_slice(bytes);
            self.len = len;
            self.credential = credential.clone();
        }
        Ok(credential)
    }
}

/// Reads the credential and the verifier of a call and leaves `header` at the arguments.
pub fn authenticate(header: &mut Decoder<'_>) -> Result<Credential, AuthStat> {
    let flavor = header.u32().map_err(|_| AuthStat::BadCredential)?;
    // RFC 5531 section 8.2: opaque_auth bodies have at most 400 bytes.
    let body = header.opaque(AUTH_BODY_MAX).map_err(|_| AuthStat::BadCredential)?;
    let credential = match flavor {
        // RFC 5531 section 10.1; sunrpc refuses a body here too.
        AUTH_NONE if body.is_empty() => Credential::None,
        AUTH_SYS => Credential::Sys(auth_sys(Decoder::new(body)).map_err(|_| AuthStat::BadCredential)?),
        _ => return Err(AuthStat::BadCredential),
    };
    let verifier_flavor = header.u32().map_err(|_| AuthStat::BadCredential)?;
    let verifier = header.opaque(AUTH_BODY_MAX).map_err(|_| AuthStat::BadCredential)?;
    // RFC 5531 section 10.1 and appendix A: both flavors come with an AUTH_NONE verifier.
    if verifier_flavor != AUTH_NONE || !verifier.is_empty() {
        return Err(AuthStat::BadVerifier);
    }
    Ok(credential)
}

fn auth_sys(mut body: Decoder<'_>) -> Result<AuthSys, XdrError> {
    let stamp = body.u32()?;
    body.string(MACHINE_NAME_MAX)?;
    let [uid, gid] = body.words()?;
    let count = body.array_len(GROUPS_MAX, 4)?;
    let mut groups = [0; GROUPS_MAX];
    for group in &mut groups[..count] {
        *group = body.u32()?;
    }
    let groups = smallvec::SmallVec::from_buf_and_len(groups, count);
    // A body that goes on is not an AUTH_SYS body.
    if body.remaining() != 0 {
        return Err(XdrError::TooLong);
    }
    Ok(AuthSys { stamp, uid, gid, groups })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::buf::View;
    use crate::rpc::xdr::Encoder;

    fn call_auth(credential: (u32, &[u8]), verifier: (u32, &[u8])) -> Result<Credential, AuthStat> {
        let mut room = [0; 2048];
        let mut encoder = Encoder::new(&mut room);
        for (flavor, body) in [credential, verifier] {
            encoder.u32(flavor);
            encoder.opaque(body);
        }
        encoder.u32(77);
        let mut header = Decoder::new(View::from(encoder.written()));
        let credential = authenticate(&mut header)?;
        assert_eq!(header.u32(), Ok(77), "left at the arguments");
        Ok(credential)
    }

    fn sys_body(name: &[u8], groups: &[u32], count: u32, more: &[u8]) -> Vec<u8> {
        let mut room = [0; 1024];
        let mut encoder = Encoder::new(&mut room);
        encoder.u32(5);
        encoder.opaque(name);
        encoder.u32(1000);
        encoder.u32(100);
        encoder.u32(count);
        for group in groups {
            encoder.u32(*group);
        }
        encoder.opaque_fixed(more);
        encoder.written().to_vec()
    }

    const NONE: (u32, &[u8]) = (AUTH_NONE, &[]);

    #[test]
    fn the_two_flavors_are_accepted() {
        assert_eq!(call_auth(NONE, NONE), Ok(Credential::None));
        let groups: Vec<u32> = (1..=16).collect();
        let body = sys_body(b"client", &groups, 16, &[]);
        let expected = AuthSys { stamp: 5, uid: 1000, gid: 100, groups: groups.into() };
        assert_eq!(call_auth((AUTH_SYS, &body), NONE), Ok(Credential::Sys(expected)));
        assert!(call_auth((AUTH_SYS, &sys_body(&[b'n'; 255], &[], 0, &[])), NONE).is_ok());
    }

    #[test]
    fn the_same_bytes_mean_the_same_and_no_others_do() {
        let header = |name: &[u8], uid: u32, groups: &[u32]| {
            let mut room = [0; 1024];
            let mut encoder = Encoder::new(&mut room);
            let mut body = sys_body(name, groups, groups.len() as u32, &[]);
            let at = 8 + name.len().next_multiple_of(4);
            body[at..at + 4].copy_from_slice(&uid.to_be_bytes());
            encoder.u32(AUTH_SYS);
            encoder.opaque(&body);
            encoder.words([AUTH_NONE, 0, 77]);
            encoder.written().to_vec()
        };
        let long = [7; 255];
        let sixteen: Vec<u32> = (0..16).collect();
        let calls = [header(b"c", 1, &[]), header(b"c", 2, &[]), header(b"c", 2, &sixteen), header(&long, 3, &sixteen)];
        let mut last = LastCredential::default();
        for at in [0, 0, 1, 1, 0, 2, 2, 2, 3, 3, 2, 0] {
            let mut expected = Decoder::new(View::from(&calls[at][..]));
            let mut header = expected;
            assert_eq!(last.authenticate(&mut header), authenticate(&mut expected), "call {at}");
            assert_eq!((header.remaining(), header.u32()), (4, Ok(77)));
        }
        let cut = &calls[0][..calls[0].len() - 8];
        assert_eq!(
            last.authenticate(&mut Decoder::new(View::from(cut))),
            Err(AuthStat::BadCredential),
            "its verifier is missing"
        );
        let mut bad_verifier = calls[0].clone();
        let at = bad_verifier.len() - 9;
        bad_verifier[at] = 1;
        let mut header = Decoder::new(View::from(&bad_verifier[..]));
        assert!(last.authenticate(&mut header).is_err());
    }

    #[test]
    fn every_malformed_credential_is_a_bad_credential() {
        let bad = Err(AuthStat::BadCredential);
        assert_eq!(call_auth((AUTH_NONE, &[0; 4]), NONE), bad, "AUTH_NONE with a body");
        assert_eq!(call_auth((RPCSEC_GSS, &[]), NONE), bad);
        assert_eq!(call_auth((AUTH_TLS, &[]), NONE), bad);
        assert_eq!(call_auth((99, &[]), NONE), bad, "unknown flavor");
        assert_eq!(call_auth((AUTH_SYS, &[]), NONE), bad, "empty AUTH_SYS");
        assert_eq!(call_auth((AUTH_SYS, &sys_body(&[b'n'; 256], &[], 0, &[])), NONE), bad, "machine name of 256");
        assert_eq!(call_auth((AUTH_SYS, &sys_body(b"c", &[0; 17], 17, &[])), NONE), bad, "17 groups");
        assert_eq!(call_auth((AUTH_SYS, &sys_body(b"c", &[0; 2], 3, &[])), NONE), bad, "fewer groups than it says");
        assert_eq!(call_auth((AUTH_SYS, &sys_body(b"c", &[0; 2], 2, &[0; 4])), NONE), bad, "goes on behind the groups");
        assert_eq!(call_auth((AUTH_SYS, &[0; 401]), NONE), bad, "401 bytes");
        assert_eq!(call_auth(NONE, (AUTH_NONE, &[0; 401])), bad, "verifier of 401 bytes");
    }

    #[test]
    fn the_verifier_must_be_auth_none() {
        assert_eq!(call_auth(NONE, (AUTH_SYS, &[])), Err(AuthStat::BadVerifier));
        assert_eq!(call_auth(NONE, (AUTH_NONE, &[0; 4])), Err(AuthStat::BadVerifier));
        assert_eq!(call_auth((AUTH_SYS, &sys_body(b"c", &[], 0, &[])), (6, &[1; 8])), Err(AuthStat::BadVerifier));
    }

    #[test]
    fn an_end_inside_the_header_is_a_bad_credential() {
        for len in 0..16 {
            let bytes = vec![0; len];
            let mut header = Decoder::new(View::from(&bytes[..]));
            assert_eq!(authenticate(&mut header), Err(AuthStat::BadCredential), "{len} bytes");
        }
    }
}
