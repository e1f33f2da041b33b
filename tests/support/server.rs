//! The server of the rig: what `serve` builds from a configuration, here from constants, on any device.

use std::net::IpAddr;
use std::sync::Arc;

use nfsplice::buf::{FragmentArena, PagePool, Slice};
use nfsplice::net::memory_link::Random;
use nfsplice::net::{Device, Interface, InterfaceOptions};
use nfsplice::program::ProgramTable;
use nfsplice::program::exports::{Export, ExportTable, Squash};
use nfsplice::program::handle::HandleSeal;
use nfsplice::program::mount::{self, Mount, MountList};
use nfsplice::program::nfs3::{self, Nfs3};
use nfsplice::program::rpcbind::Rpcbind;
use nfsplice::program::volumes::Volumes;
use nfsplice::rpc::drc::SharedDrc;
use nfsplice::shard::{Lane, Shard};
use nfsplice::store::local::{LocalOptions, LocalStore};
use nfsplice::store::memory::{self, MemoryHandle, MemoryStore};
use nfsplice::store::{Credential, Failure, ObjectId, Operation, Outcome, Start, Store, Timestamp, Token};
use nfsplice::time::{Duration, Instant};
use nfsplice::{rpc, tcp};

use super::client::{CLIENT_ADDRESS, CLIENT_ADDRESS_V6};

pub const SERVER_ADDRESS: [u8; 4] = [10, 77, 0, 2];
/// fd4e:6673::2
pub const SERVER_ADDRESS_V6: [u16; 8] = [0xfd4e, 0x6673, 0, 0, 0, 0, 0, 2];
pub const NFS_PORT: u16 = 2049;
pub const EXPORT: u32 = 1;

/// What several servers serve together, as the cores of one do: they stay on threads of their own.
#[derive(Clone)]
pub struct Shared {
    /// Over `Setup::cache`.
    pub store: MemoryStore,
    pub drc: SharedDrc,
}

/// How a rig differs from the default one.
#[derive(Clone)]
pub struct Setup {
    pub mtu: u16,
    /// Calls go over IPv6. Both ends have addresses of both families then.
    pub ipv6: bool,
    /// Routers are heard.
    pub slaac: bool,
    pub vlan: Option<u16>,
    /// Where the server sends what is for anywhere else.
    pub gateway: Option<[u8; 4]>,
    /// Blocks of file data, and bytes in each.
    pub cache_blocks: usize,
    pub block_bytes: usize,
    /// Instead of anonymous memory.
    pub cache: Option<PagePool>,
    pub fragments: Option<PagePool>,
    /// Instead of a store and a duplicate request cache of its own.
    pub shared: Option<Shared>,
    /// Operations park now and then and complete in another order, as this seed says.
    pub parking: Option<u64>,
    /// The export is this directory of the host instead of memory. Its I/O threads live outside the virtual clock.
    pub directory: Option<std::path::PathBuf>,
    pub tcp: tcp::Options,
    pub rpc: rpc::Options,
    pub nfs3: nfs3::Options,
    pub client_tcp: tcp::Options,
}

impl Default for Setup {
    fn default() -> Setup {
        let rpc = rpc::Options::default();
        Setup {
            mtu: 1500,
            ipv6: false,
            slaac: false,
            vlan: None,
            gateway: None,
            cache_blocks: 512,
            block_bytes: 64 << 10,
            cache: None,
            fragments: None,
            shared: None,
            parking: None,
            directory: None,
            // The relation that `serve` keeps: what the RPC server has taken on always fits.
            tcp: tcp::Options { send_queue_bytes_max: 2 * rpc.send_queue_bytes_max as usize, ..tcp::Options::default() },
            rpc,
            nfs3: nfs3::Options::default(),
            client_tcp: tcp::Options {
                send_queue_bytes_max: 4 << 20,
                time_wait: Duration::from_millis(100),
                ..tcp::Options::default()
            },
        }
    }
}

impl Setup {
    /// The ends' addresses: client, server.
    pub fn addresses(&self) -> [IpAddr; 2] {
        match self.ipv6 {
            false => [CLIENT_ADDRESS.into(), SERVER_ADDRESS.into()],
            true => [CLIENT_ADDRESS_V6.into(), SERVER_ADDRESS_V6.into()],
        }
    }

    /// One end's interface, whose IPv6 addresses are used at once.
    pub fn interface(&self, mac: [u8; 6], v4: [u8; 4], v6: [u16; 8]) -> InterfaceOptions {
        let mut options = InterfaceOptions::new(mac, self.mtu, v4.into(), 24);
        options.vlan = self.vlan;
        options.gateway = self.gateway.filter(|gateway| *gateway != v4).map(Into::into);
        if self.ipv6 {
            options.addresses.push((v6.into(), 64));
            options.ipv6.duplicate_detections = 0;
            options.ipv6.slaac = self.slaac;
            options.ipv6.secret = [mac[5]; 16];
        }
        options
    }

    /// Bytes of replies that one connection may owe before its calls stay unread.
    pub fn send_queue_bytes_max(mut self, bytes: u64) -> Setup {
        self.rpc.send_queue_bytes_max = bytes;
        self.tcp.send_queue_bytes_max = 2 * bytes as usize;
        self
    }
}

pub struct Server<D> {
    pub shard: Shard<D, ProgramTable>,
    /// File data.
    pub cache: PagePool,
    /// Reply heads and copied-out requests.
    pub fragments: PagePool,
    /// The export's root handle.
    pub root: Vec<u8>,
    at_rest: (usize, usize),
    /// Goes last: handles on it are in the shard.
    _local: Option<LocalStore>,
}

pub fn arena(pool: &PagePool) -> FragmentArena {
    FragmentArena::new(pool.clone()).unwrap()
}

/// An empty memory store.
pub fn memory(cache: &PagePool) -> MemoryStore {
    let wall = Timestamp { seconds: 1_700_000_000, nanoseconds: 0 };
    MemoryStore::new(memory::Options::new(cache.clone()), Instant::ZERO, wall).unwrap()
}

/// Everything that is looked up once stays known, whatever the virtual clock says.
fn open_local(setup: &Setup, cache: &PagePool) -> Option<LocalStore> {
    let path = setup.directory.as_ref()?;
    let options = LocalOptions {
        attribute_cache_ms: 1 << 40,
        metadata_threads: 1,
        ..LocalOptions::new(path, EXPORT.into(), cache.clone(), [1; 8])
    };
    Some(LocalStore::open(options).unwrap())
}

/// One core's view of the one export, kept in `store`.
pub fn volumes(setup: &Setup, store: &MemoryStore) -> Volumes {
    let inner = store.handle();
    match setup.parking {
        None => exported(Box::new(inner)),
        Some(seed) => exported(Box::new(Parking { inner, random: Random::new(seed), done: Vec::new() })),
    }
}

fn exported(store: Box<dyn Store>) -> Volumes {
    let export = Export {
        id: EXPORT,
        name: "/export".to_owned(),
        read_only: false,
        squash: Squash::None,
        anon_uid: 65534,
        anon_gid: 65534,
        clients: vec!["10.77.0.0/24".parse().unwrap(), "fd4e:6673::/64".parse().unwrap()],
        store: 0,
    };
    Volumes::new(Arc::new(ExportTable::new(vec![export]).unwrap()), vec![store], HandleSeal::new([7; 16]))
}

impl<D: Device> Server<D> {
    pub fn new(setup: &Setup, device: D) -> Server<D> {
        Server::on_ports(setup, vec![(setup, device)])
    }

    /// On several ports, each with the addresses of a setup of its own; everything else is as `setup` says.
    pub fn on_ports(setup: &Setup, ports: Vec<(&Setup, D)>) -> Server<D> {
        let cache = setup.cache.clone().unwrap_or_else(|| PagePool::anonymous(setup.cache_blocks, setup.block_bytes).unwrap());
        let fragments = setup.fragments.clone().unwrap_or_else(|| PagePool::anonymous(256, 64 << 10).unwrap());
        let local = open_local(setup, &cache);
        let volumes = match &local {
            Some(local) => exported(Box::new(local.handle_for_core(0, None))),
            None => volumes(setup, &setup.shared.as_ref().map_or_else(|| memory(&cache), |shared| shared.store.clone())),
        };
        let root = volumes.seal().seal(EXPORT, volumes.stores()[0].root()).as_bytes().to_vec();
        let mut tcp = tcp::Endpoint::new(setup.tcp.clone(), *b"the server's key");
        tcp.set_copy_out(arena(&fragments));
        tcp.listen(NFS_PORT).unwrap();
        let lane = |(setup, device): (&Setup, D)| {
            let options = setup.interface(device.capabilities().mac, SERVER_ADDRESS, SERVER_ADDRESS_V6);
            Lane { interface: Interface::new(options, arena(&fragments), Instant::ZERO).unwrap(), device }
        };
        let lanes = ports.into_iter().map(lane).collect();
        let rpc = match &setup.shared {
            Some(shared) => rpc::Server::sharing(setup.rpc, arena(&fragments), shared.drc.clone()),
            None => rpc::Server::new(setup.rpc, arena(&fragments)),
        };
        let mount = Mount::new(mount::Options::default(), Arc::new(MountList::default()));
        let programs =
            ProgramTable::new(volumes, Rpcbind::new(Vec::new(), Duration::ZERO).unwrap(), mount, Nfs3::new(setup.nfs3));
        let shard = Shard::new(lanes, tcp, rpc, programs, Vec::new());
        let at_rest = (cache.outstanding(), fragments.outstanding());
        Server { shard, cache, fragments, root, at_rest, _local: local }
    }

    pub fn device(&mut self) -> &mut D {
        &mut self.shard.lanes_mut()[0].device
    }

    /// Connections in any state.
    pub fn connections(&self) -> usize {
        self.shard.tcp().connections().count()
    }

    /// Bytes of replies that all connections together have not got acknowledged.
    pub fn queued_bytes(&self) -> usize {
        self.shard.tcp().connections().map(|id| self.shard.tcp().queued(id)).sum()
    }

    /// Pages (of file data, of fragments) that are out beyond those an empty server has.
    pub fn pages_out(&self) -> (usize, usize) {
        (self.cache.outstanding() - self.at_rest.0, self.fragments.outstanding() - self.at_rest.1)
    }

    /// The client's address in the server's words, for `FourTuple`s.
    pub fn peer() -> std::net::IpAddr {
        CLIENT_ADDRESS.into()
    }
}

/// A memory store that answers some operations later and in another order. They take effect when they are started.
struct Parking {
    inner: MemoryHandle,
    random: Random,
    done: Vec<(Token, Result<Outcome, Failure>, Vec<Slice>)>,
}

impl Store for Parking {
    fn root(&self) -> ObjectId {
        self.inner.root()
    }

    fn start(
        &mut self,
        now: Instant,
        caller: &Credential,
        operation: &Operation<'_>,
        token: Token,
        pages: &mut Vec<Slice>,
    ) -> Start {
        if self.random.chance(300_000) {
            return self.inner.start(now, caller, operation, token, pages);
        }
        let mut own = Vec::new();
        let Start::Done(result) = self.inner.start(now, caller, operation, token, &mut own) else { panic!("memory parks") };
        self.done.push((token, result, own));
        Start::Parked
    }

    fn poll_completion(&mut self, _: Instant, pages: &mut Vec<Slice>) -> Option<(Token, Result<Outcome, Failure>)> {
        if self.done.is_empty() || self.random.chance(400_000) {
            return None;
        }
        let at = self.random.below(self.done.len() as u64) as usize;
        let (token, result, own) = self.done.swap_remove(at);
        pages.extend(own);
        Some((token, result))
    }

    fn parked(&self) -> usize {
        self.done.len()
    }
}
