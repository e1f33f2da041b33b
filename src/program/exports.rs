//! The export table: what is served, to whom, and as whom its callers act.
//!
//! Read first: RFC 1813 appendix I (MOUNT names exports by path) and section 4.4 (mapping of user ids). One table, shared
//! read-only by every core; replaced as a whole when the configuration changes. Deliberately not here: parsing of the
//! configuration file, where an export's files live (`store` is an index the owner of the stores understands).

use std::fmt;
use std::net::{IpAddr, Ipv4Addr};
use std::str::FromStr;

use crate::rpc::auth::GROUPS_MAX;
use crate::rpc::{AuthSys, Credential};
use crate::store;

/// A range of client addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Network {
    address: IpAddr,
    prefix: u8,
}

impl Network {
    /// `None` if the prefix is longer than the address. Bits behind the prefix are ignored.
    pub fn new(address: IpAddr, prefix: u8) -> Option<Network> {
        let bits = if address.is_ipv4() { 32 } else { 128 };
        (prefix <= bits).then_some(Network { address, prefix })
    }

    pub fn contains(&self, ip: IpAddr) -> bool {
        if let (IpAddr::V4(network), IpAddr::V4(ip)) = (self.address, ip) {
            return self.contains_v4(network, ip);
        }
        // An IPv4 client on a dual-stack path is still an IPv4 client.
        match (self.address, ip.to_canonical()) {
            (IpAddr::V4(network), IpAddr::V4(ip)) => self.contains_v4(network, ip),
            (IpAddr::V6(network), IpAddr::V6(ip)) => {
                let mask = u128::MAX.checked_shl(128 - u32::from(self.prefix)).unwrap_or(0);
                (network.to_bits() ^ ip.to_bits()) & mask == 0
            }
            _ => false,
        }
    }

    fn contains_v4(&self, network: Ipv4Addr, ip: Ipv4Addr) -> bool {
        let mask = u32::MAX.checked_shl(32 - u32::from(self.prefix)).unwrap_or(0);
        (network.to_bits() ^ ip.to_bits()) & mask == 0
    }
}

impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.prefix)
    }
}

/// Text that is not "address" or "address/prefix".
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("expected an IP address or ADDRESS/PREFIX")]
pub struct BadNetwork;

impl FromStr for Network {
    type Err = BadNetwork;
    fn from_str(text: &str) -> Result<Network, BadNetwork> {
        let (address, prefix) = match text.split_once('/') {
            Some((address, prefix)) => (address, Some(prefix.parse::<u8>().map_err(|_| BadNetwork)?)),
            None => (text, None),
        };
        let address: IpAddr = address.parse().map_err(|_| BadNetwork)?;
        let whole = if address.is_ipv4() { 32 } else { 128 };
        Network::new(address, prefix.unwrap_or(whole)).ok_or(BadNetwork)
    }
}

/// Which callers lose their identity.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Squash {
    None,
    /// uid 0 and gid 0 become the anonymous ones.
    Root,
    All,
}

/// One exported tree.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Export {
    /// Part of every file handle: must stay the same over restarts.
    pub id: u32,
    /// The path clients mount: "/export".
    pub name: String,
    pub read_only: bool,
    pub squash: Squash,
    pub anon_uid: u32,
    pub anon_gid: u32,
    /// Who may use it; nobody if empty.
    pub clients: Vec<Network>,
    /// Which store holds it, in the numbering of whoever owns the stores.
    pub store: usize,
}

impl Export {
    pub fn allowed(&self, client: IpAddr) -> bool {
        self.clients.iter().any(|network| network.contains(client))
    }

    /// The identity under which the store checks permissions. Follows nfsd: with `Root` each 0 among uid, gid and groups is
    /// replaced on its own; an id of -1 names nobody and is replaced always.
    pub fn squash(&self, caller: &Credential) -> store::Credential {
        match caller {
            Credential::Sys(caller) if self.squash != Squash::All => self.squash_ids(caller),
            // Nobody was named, or nobody is believed.
            Credential::Sys(_) | Credential::None => {
                store::Credential { uid: self.anon_uid, gid: self.anon_gid, groups: smallvec::SmallVec::new() }
            }
        }
    }

    fn squash_ids(&self, caller: &AuthSys) -> store::Credential {
        let lost = |id: u32| id == u32::MAX || (id == 0 && self.squash == Squash::Root);
        let gid = |gid: u32| if lost(gid) { self.anon_gid } else { gid };
        store::Credential {
            uid: if lost(caller.uid) { self.anon_uid } else { caller.uid },
            gid: gid(caller.gid),
            groups: {
                // Copied whole, used or not: that is a few instructions.
                let mut groups = [0; GROUPS_MAX];
                let used = groups.iter_mut().zip(&caller.groups).map(|(to, from)| *to = gid(*from)).count();
                smallvec::SmallVec::from_buf_and_len(groups, used)
            },
        }
    }
}

/// Longest NFSv3 file handle, bytes (FHSIZE3, RFC 1813 section 2.4).
pub const FILE_HANDLE_MAX: usize = 64;

/// Why a path does not lead to an export.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoExport {
    NotFound,
    /// It is exported, but not to this client.
    NotAllowed,
}

/// All exports.
#[derive(Clone, Debug, Default)]
pub struct ExportTable {
    exports: Vec<Export>,
}

/// Two exports that cannot be told apart, or one that cannot be named.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadExports {
    #[error("two exports have the id {0}")]
    SameId(u32),
    #[error("two exports have the name {0:?}")]
    SameName(String),
    #[error("the export name {0:?} is not an absolute path without \".\" and \"..\", of at most 1024 bytes")]
    BadName(String),
}

/// Longest path MOUNT carries, bytes (MNTPATHLEN, RFC 1813 appendix I).
pub const EXPORT_NAME_MAX: usize = 1024;

/// The components of a path; repeated and trailing slashes do not count.
fn components(path: &[u8]) -> impl Iterator<Item = &[u8]> {
    path.split(|&byte| byte == b'/').filter(|component| !component.is_empty())
}

impl ExportTable {
    pub fn new(exports: Vec<Export>) -> Result<ExportTable, BadExports> {
        for (index, export) in exports.iter().enumerate() {
            let name = export.name.as_bytes();
            let dots = components(name).any(|component| component == b"." || component == b"..");
            if !name.starts_with(b"/") || name.len() > EXPORT_NAME_MAX || name.contains(&0) || dots {
                return Err(BadExports::BadName(export.name.clone()));
            }
            for other in &exports[..index] {
                if other.id == export.id {
                    return Err(BadExports::SameId(export.id));
                }
                if components(other.name.as_bytes()).eq(components(name)) {
                    return Err(BadExports::SameName(export.name.clone()));
                }
            }
        }
        Ok(ExportTable { exports })
    }

    pub fn iter(&self) -> impl Iterator<Item = &Export> {
        self.exports.iter()
    }

    pub fn find_by_id(&self, id: u32) -> Option<&Export> {
        self.exports.iter().find(|export| export.id == id)
    }

    /// The export that a client names exactly, up to repeated and trailing slashes.
    pub fn find_by_path(&self, path: &[u8], client: IpAddr) -> Result<&Export, NoExport> {
        let (export, below) = self.resolve(path, client)?;
        if below.is_empty() { Ok(export) } else { Err(NoExport::NotFound) }
    }

    /// The innermost export on `path`, and the part of the path below it.
    pub fn resolve<'p>(&self, path: &'p [u8], client: IpAddr) -> Result<(&Export, &'p [u8]), NoExport> {
        if !path.starts_with(b"/") {
            return Err(NoExport::NotFound);
        }
        let depth = |export: &Export| components(export.name.as_bytes()).count();
        let found = self
            .exports
            .iter()
            .filter_map(|export| Some((export, below(export.name.as_bytes(), path)?)))
            .max_by_key(|(export, _)| depth(export))
            .ok_or(NoExport::NotFound)?;
        if found.0.allowed(client) { Ok(found) } else { Err(NoExport::NotAllowed) }
    }
}

/// What follows `name` in `path`, without the slashes around it; `None` if the path does not start with the name.
fn below<'p>(name: &[u8], path: &'p [u8]) -> Option<&'p [u8]> {
    let trim = |mut path: &'p [u8]| {
        while let [b'/', rest @ ..] = path {
            path = rest;
        }
        path
    };
    let mut rest = trim(path);
    for component in components(name) {
        rest = rest.strip_prefix(component)?;
        if !rest.is_empty() && !rest.starts_with(b"/") {
            return None;
        }
        rest = trim(rest);
    }
    while let [front @ .., b'/'] = rest {
        rest = front;
    }
    Some(rest)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn export(id: u32, name: &str, squash: Squash) -> Export {
        Export {
            id,
            name: name.into(),
            read_only: false,
            squash,
            anon_uid: 65534,
            anon_gid: 65533,
            clients: vec!["10.0.0.0/8".parse().unwrap(), "fd00::/64".parse().unwrap()],
            store: 0,
        }
    }

    fn client() -> IpAddr {
        "10.1.2.3".parse().unwrap()
    }

    #[test]
    fn networks_match_by_prefix_and_family() {
        let network = |text: &str| text.parse::<Network>().unwrap();
        assert!(network("10.77.0.0/16").contains("10.77.255.1".parse().unwrap()));
        assert!(!network("10.77.0.0/16").contains("10.78.0.1".parse().unwrap()));
        assert!(network("10.77.0.0/16").contains("::ffff:10.77.0.1".parse().unwrap()), "mapped IPv4");
        assert!(network("0.0.0.0/0").contains("1.2.3.4".parse().unwrap()));
        assert!(!network("0.0.0.0/0").contains("::1".parse().unwrap()));
        assert!(network("::/0").contains("fe80::1".parse().unwrap()));
        assert!(network("10.0.0.1").contains("10.0.0.1".parse().unwrap()));
        assert!(!network("10.0.0.1").contains("10.0.0.2".parse().unwrap()));
        for bad in ["10.0.0.0/33", "::/129", "10.0.0", "10.0.0.0/", "10.0.0.0/-1", ""] {
            assert_eq!(bad.parse::<Network>(), Err(BadNetwork), "{bad:?}");
        }
        assert_eq!(network("fd00::/64").to_string(), "fd00::/64");
    }

    #[test]
    fn paths_are_normalised_and_the_innermost_export_wins() {
        let table = ExportTable::new(vec![
            export(1, "/", Squash::None),
            export(2, "/srv/data", Squash::None),
            export(3, "/srv/data2/", Squash::None),
        ])
        .unwrap();
        let resolve = |path: &'static str| table.resolve(path.as_bytes(), client()).map(|(e, below)| (e.id, below));
        assert_eq!(resolve("/srv/data"), Ok((2, &b""[..])));
        assert_eq!(resolve("//srv///data//"), Ok((2, &b""[..])));
        assert_eq!(resolve("/srv/data2"), Ok((3, &b""[..])));
        assert_eq!(resolve("/srv/data/a//b/"), Ok((2, &b"a//b"[..])));
        assert_eq!(resolve("/srv/dat"), Ok((1, &b"srv/dat"[..])));
        assert_eq!(resolve("/"), Ok((1, &b""[..])));
        assert_eq!(resolve(""), Err(NoExport::NotFound));
        assert_eq!(resolve("srv/data"), Err(NoExport::NotFound));
        assert_eq!(table.find_by_path(b"/srv", client()), Err(NoExport::NotFound), "below an export is not an export");
        assert_eq!(table.find_by_path(b"/srv/data/", client()).unwrap().id, 2);
        let stranger = "192.168.0.1".parse().unwrap();
        assert_eq!(table.find_by_path(b"/srv/data", stranger), Err(NoExport::NotAllowed));
        assert_eq!(table.find_by_id(3).unwrap().name, "/srv/data2/");
    }

    #[test]
    fn a_table_that_is_ambiguous_is_refused() {
        let two = |a: Export, b: Export| ExportTable::new(vec![a, b]).err();
        let e = |id, name| export(id, name, Squash::None);
        assert_eq!(two(e(1, "/a"), e(1, "/b")), Some(BadExports::SameId(1)));
        assert_eq!(two(e(1, "/a"), e(2, "//a/")), Some(BadExports::SameName("//a/".into())));
        for name in ["a", "", "/a/../b", "/./a", "/a\0"] {
            assert_eq!(ExportTable::new(vec![e(1, name)]).err(), Some(BadExports::BadName(name.into())));
        }
    }

    #[test]
    fn squashing_follows_nfsd() {
        let caller = |uid, gid, groups: &[u32]| {
            Credential::Sys(AuthSys { stamp: 0, uid, gid, groups: smallvec::SmallVec::from_slice(groups) })
        };
        let squashed = |squash, caller: &Credential| {
            let credential = export(1, "/", squash).squash(caller);
            (credential.uid, credential.gid, credential.groups.to_vec())
        };
        let root = caller(0, 0, &[0, 5]);
        assert_eq!(squashed(Squash::None, &root), (0, 0, vec![0, 5]));
        assert_eq!(squashed(Squash::Root, &root), (65534, 65533, vec![65533, 5]));
        assert_eq!(squashed(Squash::All, &root), (65534, 65533, vec![]));
        assert_eq!(squashed(Squash::Root, &caller(1000, 0, &[100])), (1000, 65533, vec![100]));
        assert_eq!(squashed(Squash::None, &caller(u32::MAX, u32::MAX, &[])), (65534, 65533, vec![]));
        assert_eq!(squashed(Squash::None, &Credential::None), (65534, 65533, vec![]));
    }
}
