//! How many connections each remote address has opened here: one address must not take every place.
//!
//! Read first: RFC 4987 section 3.3, RFC 4291 section 2.5.4. A remote is an IPv4 address or the /64 of an IPv6 one, which is what one
//! host may choose addresses from. Bounded by the endpoint's connections, which are what it counts.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::hash::BuildHasher;
use std::net::{IpAddr, Ipv6Addr};

pub(crate) struct Remotes<S> {
    connections: HashMap<IpAddr, usize, S>,
}

/// Who is counted together.
fn remote_of(ip: IpAddr) -> IpAddr {
    match ip {
        IpAddr::V4(_) => ip,
        IpAddr::V6(v6) => IpAddr::V6(Ipv6Addr::from_bits(v6.to_bits() >> 64 << 64)),
    }
}

impl<S: BuildHasher> Remotes<S> {
    pub fn new(hash: S) -> Remotes<S> {
        Remotes { connections: HashMap::with_hasher(hash) }
    }

    pub fn connections(&self, ip: IpAddr) -> usize {
        self.connections.get(&remote_of(ip)).copied().unwrap_or(0)
    }

    pub fn add(&mut self, ip: IpAddr) {
        *self.connections.entry(remote_of(ip)).or_insert(0) += 1;
    }

    pub fn remove(&mut self, ip: IpAddr) {
        if let Entry::Occupied(mut entry) = self.connections.entry(remote_of(ip)) {
            *entry.get_mut() -= 1;
            if *entry.get() == 0 {
                entry.remove();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::hash::RandomState;

    #[test]
    fn a_host_is_an_ipv4_address_or_an_ipv6_network() {
        let mut remotes = Remotes::new(RandomState::new());
        let ip = |text: &str| text.parse::<IpAddr>().unwrap();
        for text in ["10.0.0.1", "2001:db8::1", "2001:db8::2"] {
            remotes.add(ip(text));
        }
        let counts = ["10.0.0.1", "10.0.0.2", "2001:db8::ffff:3", "2001:db8:0:1::1"].map(|text| remotes.connections(ip(text)));
        assert_eq!(counts, [1, 0, 2, 0]);
        remotes.remove(ip("2001:db8::9"));
        remotes.remove(ip("10.0.0.1"));
        remotes.remove(ip("10.0.0.1"));
        assert_eq!((remotes.connections(ip("2001:db8::1")), remotes.connections.len()), (1, 1));
    }
}
