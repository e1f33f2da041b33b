//! The configuration's words into each layer's `Options`. No decision is taken here that is not a default of the layer, a key of
//! the configuration, or a relation between two layers' limits that neither can know; each of those says why.

use std::net::Ipv4Addr;
use std::sync::Arc;

use anyhow::Context as _;

use super::clock::Clock;
use super::stores;
use crate::control::config::{AddressProbe, Config, Congestion, Ecn, Export as ExportConfig, Port, Squash as SquashConfig, Tcp};
use crate::net::InterfaceOptions;
use crate::net::interface::{Ipv6Options, ProbeOptions};
use crate::net::neighbour::NeighbourOptions;
use crate::program::ProgramTable;
use crate::program::exports::{Export, Network, Squash};
use crate::program::handle::HandleSeal;
use crate::program::mount::{self, Mount, MountList};
use crate::program::nfs3::{self, Nfs3};
use crate::program::rpcbind::{self, Rpcbind, Service};
use crate::program::volumes::Volumes;
use crate::rpc::Transport;
use crate::store::Store;
use crate::time::Duration;
use crate::{rpc, tcp};

/// rpcbind's port (RFC 1833 section 3), NFS's (RFC 7530 section 3.1; the same for version 3 by custom) and, since MOUNT has none,
/// the one that Linux uses.
pub const RPCBIND_PORT: u16 = 111;
pub const NFS_PORT: u16 = 2049;
pub const MOUNT_PORT: u16 = 20048;

pub const STREAM_PORTS: [u16; 3] = [RPCBIND_PORT, NFS_PORT, MOUNT_PORT];
pub const DATAGRAM_PORTS: [u16; 2] = [RPCBIND_PORT, MOUNT_PORT];

/// Smallest block of the pool for reply heads, bytes.
const FRAGMENT_BYTES_MIN: u32 = 64 << 10;
/// What a READDIRPLUS head may need besides the entries' budget, bytes: reply header, attributes, verifier.
const HEAD_SLACK_BYTES: u32 = 4096;

fn seconds(value: u32) -> Duration {
    Duration::from_secs(value.into())
}

fn millis(value: u32) -> Duration {
    Duration::from_millis(value.into())
}

/// A reply head must fit one block of the fragment pool: the longest is a directory listing.
pub fn fragment_bytes(config: &Config) -> usize {
    (config.limits.readdir_bytes_max + HEAD_SLACK_BYTES).next_power_of_two().max(FRAGMENT_BYTES_MIN) as usize
}

pub fn tcp_options(config: &Config, driver_buffers_max: usize) -> tcp::Options {
    let limits = &config.limits;
    tcp::Options {
        // The longest record must fit with the marks of its fragments, or it never completes.
        receive_window_max: limits.tcp_receive_window_bytes_max.max(limits.record_bytes_max + 4 * limits.record_fragments_max),
        receive_buffers_max: limits.receive_buffers_per_connection_max as usize,
        driver_buffers_max,
        // The RPC server stops taking calls at `send_queue_bytes_max`; a reply it has taken on before must always fit.
        send_queue_bytes_max: 2 * limits.send_queue_bytes_max as usize,
        connections_max: limits.connections_max as usize,
        connections_per_remote_max: limits.tcp_connections_per_address_max as usize,
        syn_received_max: limits.tcp_half_open_max as usize,
        time_wait: seconds(limits.tcp_time_wait_s),
        time_wait_max: limits.tcp_time_wait_max as usize,
        rto_min: millis(limits.tcp_rto_min_ms),
        rto_max: millis(limits.tcp_rto_max_ms),
        delayed_ack: millis(limits.tcp_delayed_ack_ms),
        user_timeout: seconds(limits.tcp_user_timeout_s),
        fin_wait_2_timeout: seconds(limits.tcp_fin_wait_s),
        congestion: match config.tcp.congestion {
            Congestion::Cubic => tcp::CongestionControl::Cubic,
            Congestion::NewReno => tcp::CongestionControl::NewReno,
            Congestion::Dctcp => tcp::CongestionControl::Dctcp,
        },
        ecn: match config.tcp.ecn {
            Ecn::Off => tcp::Ecn::Off,
            Ecn::Accept => tcp::Ecn::Accept,
        },
        pacing: config.tcp.pacing,
        nagle: config.tcp.nagle,
        keepalive: keepalive(&config.tcp),
        accept_queue_max: limits.tcp_accept_queue_max as usize,
        syn_cookies: config.tcp.syn_cookies,
        // Its range ends before a byte does.
        syn_ack_retries_max: u8::try_from(config.tcp.syn_ack_retries_max).unwrap_or(u8::MAX),
        rto_initial: millis(config.tcp.rto_initial_ms),
        challenge_ack_interval: millis(config.tcp.challenge_ack_interval_ms),
        path_mtu_raise: seconds(config.tcp.path_mtu_raise_s),
        sack: config.tcp.sack,
        timestamps: config.tcp.timestamps,
        window_scaling: config.tcp.window_scaling,
        ..tcp::Options::default()
    }
}

fn keepalive(config: &Tcp) -> Option<tcp::Keepalive> {
    (config.keepalive_s > 0).then(|| tcp::Keepalive {
        idle: seconds(config.keepalive_s),
        interval: seconds(config.keepalive_interval_s),
        // Its range ends before a byte does.
        probes_max: u8::try_from(config.keepalive_probes_max).unwrap_or(u8::MAX),
    })
}

pub fn rpc_options(config: &Config, drc_seed: [u64; 2]) -> rpc::Options {
    let limits = &config.limits;
    let defaults = rpc::Options::default();
    rpc::Options {
        record_bytes_max: limits.record_bytes_max,
        fragments_max: limits.record_fragments_max,
        empty_fragments_max: limits.record_empty_fragments_max,
        record_timeout: seconds(limits.record_timeout_s),
        record_bytes_per_second_min: limits.record_bytes_per_second_min,
        connections_max: limits.connections_max,
        connections_unauthenticated_max: limits.connections_unauthenticated_max,
        idle_timeout: seconds(limits.idle_timeout_s),
        calls_in_flight_max: limits.calls_in_flight_per_connection_max,
        calls_in_flight_total_max: limits.calls_in_flight_per_core_max,
        send_queue_bytes_max: limits.send_queue_bytes_max.into(),
        // A datagram is never fragmented on its way out: it must fit the narrowest port. What is sent over IPv6 is shorter anyway.
        datagram_bytes_max: config.ports.iter().map(|port| u32::from(port.mtu) - 28).min().unwrap_or(1472),
        drc: rpc::drc::DrcOptions {
            entries: limits.duplicate_request_cache_entries,
            expiry: seconds(limits.duplicate_request_cache_s),
            seed: drc_seed,
            ..defaults.drc
        },
        ..defaults
    }
}

/// `secret`: what the identifiers of IPv6 addresses are made from.
pub fn interface_options(config: &Config, port: &Port, mac: [u8; 6], mtu: u16, secret: [u8; 16]) -> InterfaceOptions {
    let limits = &config.limits;
    // One limit for each family's table.
    let neighbours_max = limits.arp_entries_max as usize;
    InterfaceOptions {
        vlan: port.vlan,
        addresses: port.addresses.iter().map(|cidr| (cidr.address, cidr.prefix_length)).collect(),
        gateway: port.gateway,
        time_to_live: port.time_to_live,
        probe: match port.address_probe {
            AddressProbe::Quick => ProbeOptions::quick(),
            AddressProbe::Rfc5227 => ProbeOptions::rfc5227(),
            AddressProbe::Off => ProbeOptions::none(),
        },
        neighbours: NeighbourOptions { neighbours_max, reachable: seconds(limits.arp_age_s), ..NeighbourOptions::default() },
        ipv6: Ipv6Options {
            slaac: port.slaac,
            gateway: port.gateway_ipv6,
            secret,
            interface_name: port.device.name.clone(),
            neighbours: NeighbourOptions { neighbours_max, ..NeighbourOptions::discovery() },
            ..Ipv6Options::default()
        },
        ..InterfaceOptions::new(mac, mtu, Ipv4Addr::UNSPECIFIED.into(), 0)
    }
}

/// `store`: the number of the export's store.
pub fn export(config: &ExportConfig, store: usize) -> Export {
    Export {
        id: config.id,
        name: config.name.clone(),
        read_only: config.read_only,
        squash: match config.squash {
            SquashConfig::None => Squash::None,
            SquashConfig::Root => Squash::Root,
            SquashConfig::All => Squash::All,
        },
        anon_uid: config.anonuid,
        anon_gid: config.anongid,
        clients: config.clients.iter().filter_map(|net| Network::new(net.address, net.prefix_length)).collect(),
        store,
    }
}

/// One core's programs. `key` seals the file handles.
pub fn programs(
    config: &Config,
    handles: Vec<Box<dyn Store>>,
    key: [u8; 16],
    mounts: Arc<MountList>,
) -> anyhow::Result<ProgramTable> {
    let exports = stores::export_table(&config.exports)?;
    let volumes = Volumes::new(exports, handles, HandleSeal::new(key));
    let wall = Clock::wall();
    let epoch = Duration::new(wall.seconds.try_into().unwrap_or(0), wall.nanoseconds);
    let rpcbind = Rpcbind::new(services(), epoch).context("rpcbind")?;
    Ok(ProgramTable::new(volumes, rpcbind, Mount::new(mount::Options::default(), mounts), Nfs3::new(nfs3_options(config))))
}

fn nfs3_options(config: &Config) -> nfs3::Options {
    let limits = &config.limits;
    nfs3::Options {
        read_bytes_max: limits.read_bytes_max,
        write_bytes_max: limits.write_bytes_max,
        directory_bytes_max: limits.readdir_bytes_max,
        // Each store refuses what is too much for it: one that does not answer takes no place of the others' calls.
        parked_max: limits.calls_in_flight_per_core_max as usize,
    }
}

/// What rpcbind tells about this server.
fn services() -> Vec<Service> {
    let service = |program, version, transport, port| Service { program, version, transport, port };
    let mut services = Vec::new();
    for transport in [Transport::Tcp, Transport::Udp] {
        services.extend(rpcbind::VERSIONS.map(|version| service(rpcbind::PROGRAM, version, transport, RPCBIND_PORT)));
        services.push(service(mount::PROGRAM, mount::VERSION, transport, MOUNT_PORT));
    }
    services.push(service(nfs3::PROGRAM, nfs3::VERSION, Transport::Tcp, NFS_PORT));
    services
}

#[cfg(test)]
mod tests {
    use super::*;

    /// With keepalive, so that all of its keys tell something.
    const FILE: &str = "[tcp]
keepalive_s = 30
[[port]]
device = 'net_tap0'
address = '10.77.0.2/24'
[[export]]
name = '/e'
path = '/srv'
";

    fn parse(text: &str) -> Result<Config, String> {
        Config::parse("t.toml", text, None).map_err(|problems| problems.to_string())
    }

    /// What TCP is told, a field on each line.
    fn told(config: &Config) -> Vec<String> {
        format!("{:#?}", tcp_options(config, 4096)).lines().map(|line| line.trim().to_owned()).collect()
    }

    /// `value` as TOML, and what else may stand there.
    fn others(value: &str, parse: impl Fn(&str) -> Result<Config, String>) -> Vec<String> {
        if let Ok(number) = value.parse::<u64>() {
            return vec![(number + 1).to_string(), number.saturating_sub(1).to_string()];
        }
        match value {
            "true" => vec!["false".to_owned()],
            "false" => vec!["true".to_owned()],
            // The refusal of a wrong word tells the right ones.
            word => {
                let refusal = parse("'?'").unwrap_err();
                let words = refusal.split('"').skip(1).step_by(2).map(|word| format!("\"{word}\""));
                words.filter(|other| other != word).collect()
            }
        }
    }

    /// For each key of a table that begins with `prefix` the fields that another value of it changes.
    fn effects(table: &str, prefix: &str) -> Vec<(String, Vec<String>)> {
        let text = parse(FILE).unwrap().to_toml();
        let (head, rest) = text.split_once(&format!("\n[{table}]\n")).unwrap();
        let keys = rest.lines().take_while(|line| !line.is_empty()).filter(|line| line.starts_with(prefix));
        let effect = |line: &str| {
            let (key, value) = line.split_once(" = ").unwrap();
            let with = |value: &str| {
                parse(&format!("{head}\n[{table}]\n{}", rest.replacen(&format!("{line}\n"), &format!("{key} = {value}\n"), 1)))
            };
            let other = others(value, with).into_iter().find_map(|value| with(&value).ok());
            let other = told(&other.unwrap_or_else(|| panic!("{key}: nothing but {value} is allowed")));
            let before = told(&with(value).unwrap());
            assert_eq!(before.len(), other.len(), "{key}");
            let changed = before.iter().zip(&other).filter(|(before, after)| before != after);
            (key.to_owned(), changed.map(|(before, _)| before.split(':').next().unwrap_or("").to_owned()).collect())
        };
        keys.map(effect).collect()
    }

    #[test]
    fn every_key_of_tcp_changes_the_option_of_its_name() {
        let effects = effects("tcp", "");
        assert!(effects.len() >= 15, "{effects:?}");
        for (key, changed) in effects {
            let name = key.trim_end_matches("_ms").trim_end_matches("_s");
            let [field] = &changed[..] else { panic!("{key} changes {changed:?}") };
            assert!(name.ends_with(field.as_str()) || (name, field.as_str()) == ("keepalive", "idle"), "{key} changes {field}");
        }
    }

    #[test]
    fn every_limit_of_tcp_changes_an_option_of_its_own() {
        let effects = effects("limits", "tcp_");
        assert!(effects.len() >= 11, "{effects:?}");
        let mut seen = std::collections::BTreeSet::new();
        for (key, changed) in effects {
            assert!(changed.len() == 1 && seen.insert(changed.clone()), "{key} changes {changed:?}");
        }
    }

    #[test]
    fn the_time_to_live_reaches_the_interface_of_its_port() {
        let config = parse(&FILE.replace("[[export]]", "time_to_live = 255\n[[export]]")).unwrap();
        let options = |config: &Config| interface_options(config, &config.ports[0], [2, 0, 0, 0, 0, 1], 1500, [0; 16]);
        assert_eq!([parse(FILE).unwrap(), config].map(|config| options(&config).time_to_live), [64, 255]);
    }
}
