//! One namespace with a server in it and a folder it exports: what nearly every case stands on.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::client::Rpc;
use crate::net::Netns;
use crate::process::{Daemon, TempDir};
use crate::server::{self, CLIENT_ADDRESS, CLIENT_ADDRESS_V6, DEVICE, NFS_PORT, SERVER_ADDRESS, Setup};
use crate::standin;

const START_LIMIT: Duration = Duration::from_secs(20);
const BRIDGE: &str = "br0";
/// The kernel's end needs an address of its own: the TAP driver gives it the one of the port.
const CLIENT_MAC: &str = "02:00:0a:4d:00:01";

pub struct Bed {
    // Dropped in this order: the server before its namespace, both before the folder.
    server: Option<Daemon>,
    far: Option<Netns>,
    pub net: Netns,
    pub setup: Setup,
    dir: TempDir,
}

impl Bed {
    /// Namespace, device and folders; the server is not started.
    pub fn prepare(setup: Setup) -> Result<Bed> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let dir = TempDir::new(&NEXT.fetch_add(1, Ordering::Relaxed).to_string())?;
        std::fs::create_dir_all(dir.path().join("export"))?;
        std::fs::create_dir_all(dir.path().join("state"))?;
        let net = Netns::new()?;
        let mut far = None;
        if standin::chosen() {
            far = Some(standin::far_side(&net, setup.mtu)?);
        } else if setup.device.starts_with("net_tap") {
            // It outlives the driver that opens it, so its address stays across restarts of the server.
            net.ip(&format!("tuntap add dev {DEVICE} mode tap multi_queue"))?;
        }
        let bed = Bed { server: None, far, net, setup, dir };
        if bed.has_device() {
            let mut addressed = DEVICE.to_owned();
            if let Some(vlan) = bed.setup.vlan {
                addressed = format!("{DEVICE}.{vlan}");
                bed.net.ip(&format!("link add link {DEVICE} name {addressed} address {CLIENT_MAC} type vlan id {vlan}"))?;
            }
            if bed.setup.bridge {
                bed.net.ip(&format!("link add {BRIDGE} address 02:00:0a:4d:00:fe type bridge"))?;
                bed.net.ip(&format!("link set {DEVICE} master {BRIDGE}"))?;
                bed.net.ip(&format!("link set {BRIDGE} up"))?;
                addressed = BRIDGE.to_owned();
            }
            bed.net.ip(&format!("addr add {CLIENT_ADDRESS}/24 dev {addressed}"))?;
            bed.net.ip(&format!("link set {DEVICE} up"))?;
            bed.net.ip(&format!("link set {addressed} up"))?;
            if bed.setup.ipv6 {
                // While the driver lends the kernel's end the server's own MAC address, the kernel would take the server for a
                // duplicate of itself.
                bed.net.ip(&format!("-6 addr add {CLIENT_ADDRESS_V6}/64 dev {addressed} nodad"))?;
            }
        }
        Ok(bed)
    }

    pub fn new(setup: Setup) -> Result<Bed> {
        let mut bed = Bed::prepare(setup)?;
        bed.start()?;
        Ok(bed)
    }

    fn has_device(&self) -> bool {
        standin::chosen() || self.setup.device.starts_with("net_tap")
    }

    pub fn folder(&self) -> &Path {
        self.dir.path()
    }

    pub fn export(&self) -> PathBuf {
        self.dir.path().join("export")
    }

    pub fn url(&self, path: &str) -> String {
        format!("nfs://{SERVER_ADDRESS}/export{path}")
    }

    pub fn address() -> SocketAddr {
        format!("{SERVER_ADDRESS}:{NFS_PORT}").parse().expect("a constant")
    }

    /// Starts the server and, where there is a device to reach it through, waits until it answers a call.
    pub fn start(&mut self) -> Result<()> {
        let folder = self.dir.path();
        let server = match &self.far {
            Some(far) => standin::spawn(far, folder)?,
            None => {
                let config = folder.join("nfsplice.toml");
                std::fs::write(&config, self.setup.to_toml(folder))?;
                let mut wrapper = std::process::Command::new("ip");
                wrapper.args(["netns", "exec", &self.net.name]);
                server::spawn(wrapper, &config, &folder.join("server.log"))?
            }
        };
        self.server = Some(server);
        if !self.has_device() {
            return Ok(());
        }
        let deadline = Instant::now() + START_LIMIT;
        loop {
            if self.far.is_none() {
                self.net.ip(&format!("link set {DEVICE} address {CLIENT_MAC} up"))?;
            }
            if self.rpc_within(Duration::from_millis(300)).and_then(|mut rpc| rpc.null()).is_ok() {
                // The driver may have set its own address after the line above; with both ends alike a bridge keeps the
                // server's frames to itself.
                if self.far.is_none() {
                    self.net.ip(&format!("link set {DEVICE} address {CLIENT_MAC}"))?;
                }
                return Ok(());
            }
            if let Some(status) = self.running()?.exited()? {
                bail!("the server ended with {status} before it answered\n{}", self.running()?.tail());
            }
            if Instant::now() > deadline {
                bail!("no answer from the server within {START_LIMIT:?}\n{}", self.running()?.tail());
            }
            thread::sleep(Duration::from_millis(50));
        }
    }

    pub fn running(&mut self) -> Result<&mut Daemon> {
        self.server.as_mut().context("no server was started")
    }

    /// A connection to the NFS port with the credentials of root.
    pub fn rpc(&self) -> Result<Rpc> {
        self.rpc_within(Duration::from_secs(5))
    }

    pub fn rpc_within(&self, limit: Duration) -> Result<Rpc> {
        Rpc::new(self.net.connect(Bed::address(), limit)?)
    }

    pub fn rpc_to(&self, port: u16) -> Result<Rpc> {
        let address = format!("{SERVER_ADDRESS}:{port}").parse()?;
        Rpc::new(self.net.connect(address, Duration::from_secs(5))?)
    }

    /// kill -9.
    pub fn kill(&mut self) {
        self.server = None;
    }

    /// Fails when the server is gone, or when it copied payload although it was told to splice.
    pub fn check(&mut self) -> Result<()> {
        if let Some(status) = self.running()?.exited()? {
            bail!("the server ended with {status}\n{}", self.running()?.tail());
        }
        if self.far.is_none() && self.setup.transmit == "splice" {
            server::check_no_copies(&server::stats(self.dir.path())?)?;
        }
        Ok(())
    }

    /// The end of a case: counters, then SIGTERM and its exit code.
    pub fn finish(mut self) -> Result<()> {
        self.check()?;
        let far = self.far.is_some();
        let server = self.running()?;
        if far {
            server.kill();
            return Ok(());
        }
        server::stop(server)
    }
}
