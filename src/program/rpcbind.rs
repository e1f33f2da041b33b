//! rpcbind: where the server's programs listen, from a table that does not change while the server runs.
//!
//! Read first: RFC 1833 sections 2 (versions 3 and 4) and 3 (version 2, the port mapper), RFC 5665 section 5.2.3 (universal
//! addresses). Deliberately not here: registration (SET and UNSET answer FALSE) and calling on behalf of others (CALLIT and
//! BCAST are never answered, which RFC 1833 allows and which keeps the server from being a reflector; INDIRECT is
//! PROC_UNAVAIL), and the conversion of transport addresses, whose layout is the host's private matter (PROC_UNAVAIL).

use std::fmt::Write;
use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;

use crate::rpc::xdr::{Decoder, Encoder, XdrError};
use crate::rpc::{Call, Disposition, ProcedureInfo, Results, Transport};
use crate::time::{Duration, Instant};

pub const PROGRAM: u32 = 100_000;
pub const VERSIONS: RangeInclusive<u32> = 2..=4;
/// The port everybody knows.
pub const PORT: u16 = 111;

/// Most entries of the table; keeps every answer within one datagram and one page.
pub const SERVICES_MAX: usize = 16;
/// Longest string in an argument, bytes: netids, universal addresses and owners are far shorter.
const STRING_MAX: usize = 255;
/// Most bytes of one entry in an answer: words, netid, universal address (IPv6), owner, protocol names.
const ENTRY_BYTES_MAX: usize = 128;
const HEAD_BYTES_MAX: u32 = (SERVICES_MAX * ENTRY_BYTES_MAX + 64) as u32;
const STATISTICS_BYTES: u32 = 3 * 17 * 4;
const OWNER: &[u8] = b"superuser";

/// Procedures; 3, 4 and 9 and up mean something else in version 2 or do not exist there.
mod procedure {
    pub const NULL: u32 = 0;
    pub const SET: u32 = 1;
    pub const UNSET: u32 = 2;
    /// GETPORT in version 2.
    pub const GETADDR: u32 = 3;
    pub const DUMP: u32 = 4;
    /// BCAST in version 4.
    pub const CALLIT: u32 = 5;
    pub const GETTIME: u32 = 6;
    pub const GETVERSADDR: u32 = 9;
    pub const GETADDRLIST: u32 = 11;
    pub const GETSTAT: u32 = 12;
    pub const COUNT: usize = 13;
}
use procedure::*;

/// Whether the answer to a procedure is a list, far longer than the question.
pub fn is_list(procedure: u32) -> bool {
    matches!(procedure, DUMP | GETADDRLIST | GETSTAT)
}

/// One line of the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Service {
    pub program: u32,
    pub version: u32,
    pub transport: Transport,
    pub port: u16,
}

/// The network id of a transport and an address family (RFC 5665 section 5.2.3.3 and 5.2.3.4).
fn network_id(transport: Transport, ip: IpAddr) -> &'static str {
    match (transport, ip) {
        (Transport::Tcp, IpAddr::V4(_)) => "tcp",
        (Transport::Udp, IpAddr::V4(_)) => "udp",
        (Transport::Tcp, IpAddr::V6(_)) => "tcp6",
        (Transport::Udp, IpAddr::V6(_)) => "udp6",
    }
}

/// IPPROTO numbers (RFC 1833 section 3).
fn protocol(transport: Transport) -> u32 {
    match transport {
        Transport::Tcp => 6,
        Transport::Udp => 17,
    }
}

/// An address and a port in text: "10.77.0.2.8.1" is port 2049 (RFC 5665 section 5.2.3.3).
fn universal_address(address: SocketAddr) -> Text {
    let [high, low] = address.port().to_be_bytes();
    let mut text = Text::default();
    // An address and two small numbers always fit.
    let _ = write!(text, "{}.{high}.{low}", address.ip());
    text
}

/// Short text without the heap.
struct Text {
    bytes: [u8; 64],
    len: usize,
}

impl Default for Text {
    fn default() -> Text {
        Text { bytes: [0; 64], len: 0 }
    }
}

impl Write for Text {
    fn write_str(&mut self, text: &str) -> std::fmt::Result {
        let into = self.bytes.get_mut(self.len..self.len + text.len()).ok_or(std::fmt::Error)?;
        into.copy_from_slice(text.as_bytes());
        self.len += text.len();
        Ok(())
    }
}

impl Text {
    fn as_bytes(&self) -> &[u8] {
        &self.bytes[..self.len]
    }
}

/// The table and what was asked of it.
pub struct Rpcbind {
    services: Vec<Service>,
    /// Seconds since 1970 at `Instant::ZERO`, for GETTIME.
    epoch: Duration,
    /// Calls by version (from 2) and procedure, for GETSTAT.
    calls: [[u32; COUNT]; 3],
}

/// More services than an answer can hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("more than {SERVICES_MAX} services")]
pub struct TooManyServices;

impl Rpcbind {
    /// A table of `services`; rpcbind's own entries are among them if it should be found. `epoch`: the wall clock's time
    /// (since 1970) at `Instant::ZERO`.
    pub fn new(services: Vec<Service>, epoch: Duration) -> Result<Rpcbind, TooManyServices> {
        if services.len() > SERVICES_MAX {
            return Err(TooManyServices);
        }
        Ok(Rpcbind { services, epoch, calls: [[0; COUNT]; 3] })
    }

    pub fn procedure(&self, version: u32, number: u32) -> Option<ProcedureInfo> {
        let (name, head_bytes_max) = match (version, number) {
            (_, NULL) => ("NULL", 0),
            (_, SET) => ("SET", 4),
            (_, UNSET) => ("UNSET", 4),
            (2, GETADDR) => ("GETPORT", 4),
            (_, GETADDR) => ("GETADDR", ENTRY_BYTES_MAX as u32),
            (_, DUMP) => ("DUMP", HEAD_BYTES_MAX),
            (_, CALLIT) => ("CALLIT", 0),
            (3 | 4, GETTIME) => ("GETTIME", 4),
            (4, GETVERSADDR) => ("GETVERSADDR", ENTRY_BYTES_MAX as u32),
            (4, GETADDRLIST) => ("GETADDRLIST", HEAD_BYTES_MAX),
            (4, GETSTAT) => ("GETSTAT", STATISTICS_BYTES),
            _ => return None,
        };
        Some(ProcedureInfo { name, caches_reply: false, head_bytes_max, pages_bytes_max: 0 })
    }

    pub fn call(&mut self, now: Instant, call: &Call<'_>, results: &mut Results<'_>) -> Disposition {
        let by_version = self.calls.get_mut((call.version as usize).wrapping_sub(2));
        if let Some(count) = by_version.and_then(|calls| calls.get_mut(call.procedure as usize)) {
            *count = count.wrapping_add(1);
        }
        let done = match call.version {
            2 => self.port_mapper(call, &mut results.head),
            _ => self.rpcbind(now, call, &mut results.head),
        };
        done.unwrap_or(Disposition::GarbageArgs)
    }

    /// The line for a program and version over a transport; with `any_version`, that of another version if need be: the
    /// caller will learn from PROG_MISMATCH which versions there are.
    fn find(&self, program: u32, version: u32, transport: Transport, any_version: bool) -> Option<&Service> {
        let mut candidates = self.services.iter().filter(|s| s.program == program && s.transport == transport);
        let exact = candidates.clone().find(|service| service.version == version);
        exact.or_else(|| if any_version { candidates.next() } else { None })
    }

    /// Version 2 (RFC 1833 section 3). It knows IPv4 only, and ports on the address it was asked at.
    fn port_mapper(&self, call: &Call<'_>, out: &mut Encoder<'_>) -> Result<Disposition, XdrError> {
        let mut arguments = call.arguments;
        match call.procedure {
            SET | UNSET => {
                arguments.skip(16)?;
                out.bool(false);
            }
            GETADDR => {
                let (program, version, number) = (arguments.u32()?, arguments.u32()?, arguments.u32()?);
                arguments.u32()?;
                let transport = [Transport::Tcp, Transport::Udp].into_iter().find(|t| protocol(*t) == number);
                let found = transport.and_then(|transport| self.find(program, version, transport, true));
                out.u32(found.map_or(0, |service| u32::from(service.port)));
            }
            DUMP => {
                for service in &self.services {
                    out.bool(true);
                    out.u32(service.program);
                    out.u32(service.version);
                    out.u32(protocol(service.transport));
                    out.u32(u32::from(service.port));
                }
                out.bool(false);
            }
            CALLIT => return Ok(Disposition::Dropped),
            _ => {}
        }
        Ok(Disposition::Replied)
    }

    /// Versions 3 and 4 (RFC 1833 section 2).
    fn rpcbind(&self, now: Instant, call: &Call<'_>, out: &mut Encoder<'_>) -> Result<Disposition, XdrError> {
        let mut arguments = call.arguments;
        let local = call.peer.local.ip().to_canonical();
        match call.procedure {
            SET | UNSET => {
                Question::decode(&mut arguments)?;
                out.bool(false);
            }
            GETADDR | GETVERSADDR => {
                let question = Question::decode(&mut arguments)?;
                let found = question
                    .transport(call.peer.transport, local)
                    .and_then(|t| self.find(question.program, question.version, t, call.procedure == GETADDR));
                match found {
                    Some(service) => out.opaque(universal_address(SocketAddr::new(local, service.port)).as_bytes()),
                    // RFC 1833 section 2.2.1: a null string for what is not there.
                    None => out.opaque(b""),
                }
            }
            DUMP => {
                for service in &self.services {
                    out.bool(true);
                    out.u32(service.program);
                    out.u32(service.version);
                    out.opaque(network_id(service.transport, local).as_bytes());
                    out.opaque(universal_address(SocketAddr::new(local, service.port)).as_bytes());
                    out.opaque(OWNER);
                }
                out.bool(false);
            }
            CALLIT => return Ok(Disposition::Dropped),
            GETTIME => {
                let seconds = (self.epoch + Duration::from_nanos(now.nanos())).as_secs();
                // 32 bits on the wire: wraps in 2106.
                out.u32(seconds as u32);
            }
            GETADDRLIST => {
                let question = Question::decode(&mut arguments)?;
                self.address_list(&question, local, out);
            }
            GETSTAT => self.statistics(out),
            _ => {}
        }
        Ok(Disposition::Replied)
    }

    /// rpcb_entry_list of RFC 1833 section 2.1.
    fn address_list(&self, question: &Question, local: IpAddr, out: &mut Encoder<'_>) {
        let matches = |s: &&Service| s.program == question.program && s.version == question.version;
        for service in self.services.iter().filter(matches) {
            out.bool(true);
            out.opaque(universal_address(SocketAddr::new(local, service.port)).as_bytes());
            out.opaque(network_id(service.transport, local).as_bytes());
            // nc_semantics: NC_TPI_CLTS, NC_TPI_COTS_ORD.
            out.u32(if service.transport == Transport::Udp { 1 } else { 3 });
            out.opaque(if local.is_ipv4() { b"inet" } else { b"inet6" });
            out.opaque(if service.transport == Transport::Udp { b"udp" } else { b"tcp" });
        }
        out.bool(false);
    }

    /// rpcb_stat_byvers of RFC 1833 section 2.1: calls by procedure; nothing was ever set, unset or called for others.
    fn statistics(&self, out: &mut Encoder<'_>) {
        for calls in &self.calls {
            for count in calls {
                out.u32(*count);
            }
            // setinfo, unsetinfo, and the ends of addrinfo and rmtinfo.
            (0..4).for_each(|_| out.u32(0));
        }
    }
}

/// struct rpcb of RFC 1833 section 2.1, as far as it matters.
struct Question {
    program: u32,
    version: u32,
    network_id: [u8; 4],
    network_id_len: usize,
}

impl Question {
    fn decode(arguments: &mut Decoder<'_>) -> Result<Question, XdrError> {
        let (program, version) = (arguments.u32()?, arguments.u32()?);
        let id = arguments.string(STRING_MAX)?;
        arguments.string(STRING_MAX)?;
        arguments.string(STRING_MAX)?;
        let mut network_id = [0; 4];
        id.copy_to(&mut network_id);
        Ok(Question { program, version, network_id, network_id_len: id.len() })
    }

    /// The transport the network id names, in the family of the address the call came to; without one, that of the call.
    fn transport(&self, called_over: Transport, local: IpAddr) -> Option<Transport> {
        if self.network_id_len == 0 {
            return Some(called_over);
        }
        let id = self.network_id.get(..self.network_id_len)?;
        [Transport::Tcp, Transport::Udp].into_iter().find(|transport| network_id(*transport, local).as_bytes() == id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::buf::View;
    use crate::rpc::{Credential, Peer};

    fn table() -> Rpcbind {
        let service = |program, version, transport, port| Service { program, version, transport, port };
        let services = vec![
            service(100_000, 2, Transport::Tcp, 111),
            service(100_003, 3, Transport::Tcp, 2049),
            service(100_005, 3, Transport::Udp, 20048),
        ];
        Rpcbind::new(services, Duration::from_secs(1_700_000_000)).unwrap()
    }

    fn ask_at(local: &str, version: u32, number: u32, arguments: &[u8]) -> Result<Vec<u8>, Disposition> {
        let mut table = table();
        let info = table.procedure(version, number).ok_or(Disposition::SystemError)?;
        let mut room = vec![0; info.head_bytes_max as usize];
        let mut pages = Vec::new();
        let mut results = Results::new(Encoder::new(&mut room), &mut pages);
        let address = "10.77.0.1:700".parse().unwrap();
        let call = Call {
            xid: 1,
            program: PROGRAM,
            version,
            procedure: number,
            peer: Peer { address, local: local.parse().unwrap(), transport: Transport::Tcp },
            credential: &Credential::None,
            arguments: Decoder::new(View::from(arguments)),
        };
        let disposition = table.call(Instant::from_millis(2_500), &call, &mut results);
        assert!(!results.head.overflowed());
        match disposition {
            Disposition::Replied => Ok(results.head.written().to_vec()),
            other => Err(other),
        }
    }

    fn ask(version: u32, number: u32, arguments: &[u8]) -> Result<Vec<u8>, Disposition> {
        ask_at("10.77.0.2:111", version, number, arguments)
    }

    fn words(words: &[u32]) -> Vec<u8> {
        words.iter().flat_map(|word| word.to_be_bytes()).collect()
    }

    fn encoded(fill: impl FnOnce(&mut Encoder<'_>)) -> Vec<u8> {
        let mut room = [0; 1024];
        let mut encoder = Encoder::new(&mut room);
        fill(&mut encoder);
        encoder.written().to_vec()
    }

    fn rpcb(program: u32, version: u32, network_id: &[u8]) -> Vec<u8> {
        encoded(|e| {
            e.u32(program);
            e.u32(version);
            e.opaque(network_id);
            e.opaque(b"");
            e.opaque(b"owner");
        })
    }

    #[test]
    fn the_port_mapper_answers_and_refuses() {
        assert_eq!(ask(2, 0, &[]), Ok(vec![]));
        assert_eq!(ask(2, 3, &words(&[100_003, 3, 6, 0])), Ok(words(&[2049])));
        assert_eq!(ask(2, 3, &words(&[100_003, 3, 17, 0])), Ok(words(&[0])), "not over UDP");
        assert_eq!(ask(2, 3, &words(&[100_005, 3, 17, 0])), Ok(words(&[20048])));
        assert_eq!(ask(2, 3, &words(&[100_003, 4, 6, 0])), Ok(words(&[2049])), "another version's port");
        assert_eq!(ask(2, 3, &words(&[100_021, 4, 6, 0])), Ok(words(&[0])));
        assert_eq!(ask(2, 3, &words(&[100_003, 3, 99, 0])), Ok(words(&[0])));
        assert_eq!(ask(2, 3, &words(&[100_003, 3])), Err(Disposition::GarbageArgs));
        assert_eq!(ask(2, 1, &words(&[1, 1, 6, 99])), Ok(words(&[0])), "SET");
        assert_eq!(ask(2, 2, &words(&[100_003, 3, 6, 0])), Ok(words(&[0])), "UNSET");
        assert_eq!(ask(2, 5, &words(&[100_003, 3, 0, 0])), Err(Disposition::Dropped), "CALLIT");
        let dump = [1, 100_000, 2, 6, 111, 1, 100_003, 3, 6, 2049, 1, 100_005, 3, 17, 20048, 0];
        assert_eq!(ask(2, 4, &[]), Ok(words(&dump)));
        assert_eq!(ask(2, 6, &[]), Err(Disposition::SystemError), "no such procedure");
    }

    #[test]
    fn rpcbind_gives_universal_addresses_at_the_address_it_was_asked_at() {
        let text = |text: &str| Ok(encoded(|e| e.opaque(text.as_bytes())));
        for version in [3, 4] {
            assert_eq!(ask(version, 3, &rpcb(100_003, 3, b"tcp")), text("10.77.0.2.8.1"));
            assert_eq!(ask(version, 3, &rpcb(100_003, 3, b"")), text("10.77.0.2.8.1"));
            assert_eq!(ask(version, 3, &rpcb(100_005, 3, b"udp")), text("10.77.0.2.78.80"));
            assert_eq!(ask(version, 3, &rpcb(100_003, 3, b"tcp6")), text(""));
            assert_eq!(ask(version, 3, &rpcb(100_003, 3, b"udp")), text(""));
            assert_eq!(ask(version, 3, &rpcb(100_021, 3, b"tcp")), text(""));
            assert_eq!(ask(version, 3, &[0xff; 16]), Err(Disposition::GarbageArgs));
            assert_eq!(ask(version, 1, &rpcb(1, 1, b"tcp")), Ok(words(&[0])));
            assert_eq!(ask(version, 5, &[]), Err(Disposition::Dropped));
            assert_eq!(ask(version, 6, &[]), Ok(words(&[1_700_000_002])));
            assert_eq!(ask(version, 7, &[]), Err(Disposition::SystemError), "no such procedure");
        }
        assert_eq!(ask_at("[fd00::2]:111", 4, 3, &rpcb(100_003, 3, b"tcp6")), text("fd00::2.8.1"));
        assert_eq!(ask(4, 3, &rpcb(100_003, 4, b"tcp")), text("10.77.0.2.8.1"), "GETADDR: any version");
        assert_eq!(ask(4, 9, &rpcb(100_003, 4, b"tcp")), text(""), "GETVERSADDR: only that version");
        assert_eq!(ask(3, 9, &rpcb(100_003, 4, b"tcp")), Err(Disposition::SystemError));
    }

    #[test]
    fn lists_end_and_hold_every_entry() {
        let dump = ask(4, 4, &[]).unwrap();
        let first = encoded(|e| {
            e.bool(true);
            e.u32(100_000);
            e.u32(2);
            e.opaque(b"tcp");
            e.opaque(b"10.77.0.2.0.111");
            e.opaque(b"superuser");
        });
        assert!(dump.starts_with(&first) && dump.ends_with(&[0; 4]));
        let list = encoded(|e| {
            e.bool(true);
            e.opaque(b"10.77.0.2.78.80");
            e.opaque(b"udp");
            e.u32(1);
            e.opaque(b"inet");
            e.opaque(b"udp");
            e.bool(false);
        });
        assert_eq!(ask(4, 11, &rpcb(100_005, 3, b"")), Ok(list));
        let statistics = ask(4, 12, &[]).unwrap();
        assert_eq!(statistics.len(), 3 * 17 * 4);
        assert_eq!(statistics[(2 * 17 + 12) * 4..][..4], [0, 0, 0, 1], "this GETSTAT itself");
    }

    #[test]
    fn the_largest_table_fits_its_answers_and_a_larger_one_is_refused() {
        let service = Service { program: u32::MAX, version: 4, transport: Transport::Tcp, port: u16::MAX };
        assert!(Rpcbind::new(vec![service; SERVICES_MAX + 1], Duration::ZERO).is_err());
        let longest: SocketAddr = "[aaaa:aaaa:aaaa:aaaa:aaaa:aaaa:aaaa:aaaa]:65535".parse().unwrap();
        let address = universal_address(longest);
        assert_eq!(address.as_bytes(), b"aaaa:aaaa:aaaa:aaaa:aaaa:aaaa:aaaa:aaaa.255.255");
        assert!(12 + 8 + 4 + address.len.next_multiple_of(4) + 16 + 16 < ENTRY_BYTES_MAX);
    }
}
