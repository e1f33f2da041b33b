//! Multicast listener discovery: queries, and reports of the groups that a host is in.
//!
//! Read first: RFC 3810 sections 5.1 (queries), 5.2 (reports), 8.2.1 (which version a query is), RFC 2710 section 3 (version 1).
//! Deliberately not here: source lists. This host takes every source of its few groups, so its records are all
//! "exclude nobody", and a query for sources is answered like one for the group. Reports of others are not read.

use std::net::Ipv6Addr;

use smallvec::SmallVec;

use crate::wire::icmpv6::{fill_checksum, kind};
use crate::wire::{Malformed, array_at, u16_at};

/// Groups in one report; a host in more sends several. The whole packet is then below 256 bytes, which fits one header buffer.
pub const REPORT_GROUPS_MAX: usize = 8;

const QUERY_V1_LEN: usize = 24;
const QUERY_V2_LEN: usize = 28;
const MODE_IS_EXCLUDE: u8 = 2;
const CHANGE_TO_EXCLUDE: u8 = 4;
const CHANGE_TO_INCLUDE: u8 = 3;

/// Where a report goes to and what it says: `wire::ipv6::router_alert_header` goes in front of it.
pub type Message = SmallVec<[u8; 64]>;

/// A question.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Query {
    /// `None`: about all groups.
    pub group: Option<Ipv6Addr>,
    /// To be answered within so long, milliseconds.
    pub response_ms_max: u32,
    /// From a router that speaks only version 1.
    pub version_1: bool,
}

impl Query {
    /// `message`: all of it, from the ICMPv6 type on.
    pub fn parse(message: &[u8]) -> Result<Query, Malformed> {
        // RFC 3810 section 8.2.1: 24 bytes are version 1, 28 or more version 2, all else is discarded.
        let version_1 = match message.len() {
            QUERY_V1_LEN => true,
            QUERY_V2_LEN.. => false,
            _ => return Err(Malformed),
        };
        if message[0] != kind::MLD_QUERY {
            return Err(Malformed);
        }
        let code = u16_at(message, 4);
        let response_ms_max = match (version_1, code >> 15) {
            (true, _) | (false, 0) => u32::from(code),
            // RFC 3810 section 5.1.3: a floating-point number.
            (false, _) => (u32::from(code & 0x0fff) | 0x1000) << ((code >> 12 & 7) + 3),
        };
        let group: Ipv6Addr = array_at::<16>(message, 8).into();
        if !group.is_unspecified() && !group.is_multicast() {
            return Err(Malformed);
        }
        Ok(Query { group: (!group.is_unspecified()).then_some(group), response_ms_max, version_1 })
    }
}

/// Why a report is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Record {
    /// Asked.
    Current,
    /// Just become a member.
    Joined,
    /// No member any more.
    Left,
}

/// A version 2 report about at most `REPORT_GROUPS_MAX` groups, to `ipv6::ALL_MLDV2_ROUTERS`.
pub fn report(src: Ipv6Addr, dst: Ipv6Addr, record: Record, groups: &[Ipv6Addr]) -> Message {
    let groups = &groups[..groups.len().min(REPORT_GROUPS_MAX)];
    let mut out: Message = SmallVec::new();
    out.extend_from_slice(&[kind::MLDV2_REPORT, 0, 0, 0, 0, 0, 0, groups.len() as u8]);
    let record = match record {
        Record::Current => MODE_IS_EXCLUDE,
        Record::Joined => CHANGE_TO_EXCLUDE,
        Record::Left => CHANGE_TO_INCLUDE,
    };
    for group in groups {
        out.extend_from_slice(&[record, 0, 0, 0]);
        out.extend_from_slice(&group.octets());
    }
    fill_checksum(src, dst, &mut out);
    out
}

/// A version 1 report about one group (RFC 2710 section 3), which goes to the group itself; or, of a group left, a "done",
/// which goes to `ipv6::ALL_ROUTERS`.
pub fn report_v1(src: Ipv6Addr, dst: Ipv6Addr, record: Record, group: Ipv6Addr) -> Message {
    let kind = if record == Record::Left { kind::MLDV1_DONE } else { kind::MLDV1_REPORT };
    let mut out: Message = SmallVec::new();
    out.extend_from_slice(&[kind, 0, 0, 0, 0, 0, 0, 0]);
    out.extend_from_slice(&group.octets());
    fill_checksum(src, dst, &mut out);
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn query(code: u16, group: &str, len: usize) -> Result<Query, Malformed> {
        let mut bytes = vec![kind::MLD_QUERY, 0, 0, 0];
        bytes.extend(code.to_be_bytes());
        bytes.extend([0, 0]);
        bytes.extend(group.parse::<Ipv6Addr>().unwrap().octets());
        bytes.resize(len, 0);
        Query::parse(&bytes)
    }

    #[test]
    fn queries_of_both_versions() {
        let general = Query { group: None, response_ms_max: 10_000, version_1: false };
        assert_eq!(query(10_000, "::", 28), Ok(general));
        assert_eq!(query(10_000, "::", 24), Ok(Query { version_1: true, ..general }));
        assert_eq!(query(10_000, "ff02::1:ff00:1", 28).map(|q| q.group.is_some()), Ok(true));
        assert_eq!(query(0x8000, "::", 28).map(|q| q.response_ms_max), Ok(0x1000 << 3), "section 5.1.3");
        assert_eq!(query(0xffff, "::", 28).map(|q| q.response_ms_max), Ok(0x1fff << 10));
        for len in [8, 23, 25, 27] {
            assert_eq!(query(0, "::", len), Err(Malformed), "{len} bytes");
        }
        assert_eq!(query(0, "fe80::1", 28), Err(Malformed), "not a group");
    }

    #[test]
    fn reports_say_what_and_how_many() {
        let [src, dst, group] = ["fe80::1", "ff02::16", "ff02::1:ff00:1"].map(|text| text.parse().unwrap());
        let bytes = report(src, dst, Record::Joined, &[group, group]);
        assert_eq!((bytes.len(), &bytes[..2], &bytes[6..12]), (48, &[143, 0][..], &[0, 2, 4, 0, 0, 0][..]));
        assert_eq!(report(src, dst, Record::Current, &[group; 40]).len(), 8 + 20 * REPORT_GROUPS_MAX);
        assert_eq!(report_v1(src, group, Record::Current, group)[0], 131);
        assert_eq!(report_v1(src, dst, Record::Left, group)[0], 132);
    }

    proptest! {
        #[test]
        fn random_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..60)) {
            let _ = Query::parse(&bytes);
        }
    }
}
