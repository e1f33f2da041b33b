//! Who is measured, and how each is started and asked: nfsplice over virtio_user with the generator on vhost, NFS-Ganesha and the
//! sendfile loop over the kernel's loopback. Every server is on CPU 0 and every generator on CPU 1.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::measure::{self, Pace, Sample};
use crate::net::Netns;
use crate::process::{self, Daemon, TempDir};
use crate::sendfile;
use crate::workload::{Set, Workload};

pub const SERVER_CPU: usize = 0;
pub const GENERATOR_CPU: usize = 1;
const SERVER_ADDRESS: &str = "10.77.0.2";
/// Memory of an export that holds the large set, and blocks for what is being rewritten.
const EXPORT_MIB: u32 = 1280;
const START_MAX: Duration = Duration::from_secs(20);
/// Where scripts/install.sh puts NFS-Ganesha and rpcbind.
const UNPACKED: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/target/peers");
const RAMP: Duration = Duration::from_millis(500);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Peer {
    Splice,
    Copy,
    Ganesha,
    Sendfile,
}

impl Peer {
    pub const ALL: [Peer; 4] = [Peer::Splice, Peer::Copy, Peer::Ganesha, Peer::Sendfile];

    pub fn name(self) -> &'static str {
        match self {
            Peer::Splice => "nfsplice",
            Peer::Copy => "nfsplice, copying",
            Peer::Ganesha => "NFS-Ganesha",
            Peer::Sendfile => "sendfile loop",
        }
    }

    pub fn takes(self, workload: &Workload) -> bool {
        self != Peer::Sendfile || workload.sendfile
    }
}

/// Where everything is.
pub struct Bed {
    pub binary: PathBuf,
    /// Logs and the generator's results.
    pub out: PathBuf,
    /// Sockets and configurations.
    pub scratch: TempDir,
    /// Files of the kernel's servers: 1 GiB.
    pub files: PathBuf,
    pub hz: f64,
    /// DPDK's memory from hugepages.
    pub hugepages: bool,
}

impl Bed {
    fn path(&self, name: &str) -> PathBuf {
        self.scratch.path().join(name)
    }

    fn log(&self, name: &str) -> PathBuf {
        self.out.join(format!("{name}.log"))
    }

    /// Where the generator leaves a run's result.
    fn json(&self, peer: &str, workload: &Workload) -> PathBuf {
        let plain = |text: &str| text.replace(|c: char| !c.is_ascii_alphanumeric(), "-").to_lowercase();
        self.out.join(format!("load-{}-{}.json", plain(peer), plain(&workload.full_name())))
    }

    /// The server's configuration. One port, one memory export. On a TAP it idles as it does for those who try it.
    fn config(&self, name: &str, transmit: &str, device: &str) -> Result<PathBuf> {
        let file = self.path(name);
        let idle = if device.starts_with("net_tap") { "auto" } else { "poll" };
        let text = format!(
            "[server]\nstate_dir = \"{}\"\nstats_socket = \"{}\"\nlog_level = \"warn\"\ntransmit = \"{transmit}\"\n\n\
             [cores]\nengine = [{SERVER_CPU}]\nio_threads = 1\nidle = \"{idle}\"\n\n\
             [memory]\nhugepages = {}\neal_mib = 256\npage_cache_mib = 64\n\n\
             [[port]]\ndevice = \"{device}\"\nmac = \"02:00:0a:4d:00:02\"\naddress = \"{SERVER_ADDRESS}/24\"\n\n\
             [[export]]\nname = \"/export\"\nstore = \"memory\"\nmemory_mib = {EXPORT_MIB}\nsquash = \"none\"\n\
             clients = [\"10.77.0.0/24\"]\n",
            self.path("state").display(),
            self.socket().display(),
            self.hugepages,
        );
        std::fs::write(&file, text)?;
        Ok(file)
    }

    pub fn socket(&self) -> PathBuf {
        self.path("stats.sock")
    }

    /// Starts `nfsplice serve` and waits until it is `ready`. `wrapper` enters a namespace.
    pub fn serve(&self, wrapper: Option<&Netns>, transmit: &str, device: &str, ready: impl Fn() -> bool) -> Result<Daemon> {
        let config = self.config("serve.toml", transmit, device)?;
        let mut command = match wrapper {
            Some(namespace) => namespace.command(&self.binary.display().to_string()),
            None => Command::new(&self.binary),
        };
        command.arg("serve").arg(&config);
        let mut server = Daemon::spawn(command, &self.log("serve"))?;
        let deadline = Instant::now() + START_MAX;
        while !ready() {
            if server.exited()?.is_some() || Instant::now() > deadline {
                bail!("nfsplice does not start\n{}", server.tail());
            }
            sleep(Duration::from_millis(20));
        }
        Ok(server)
    }

    /// One run against a new server: a vhost connection does not outlive the generator.
    pub fn nfsplice(&self, transmit: &str, workload: &Workload, pace: &Pace) -> Result<Sample> {
        let vhost = self.path("vhost.sock");
        let _ = std::fs::remove_file(&vhost);
        let device = format!("net_virtio_user0,path={},queues=1,queue_size=1024,server=1", vhost.display());
        // The driver waits for its other end: the server goes on when the generator is there.
        let mut server = self.serve(None, transmit, &device, || vhost.exists())?;
        let json = self.json(transmit, workload);
        let mut load = Command::new(&self.binary);
        load.args(["load", "--address", "10.77.0.1/24", "--cores", &GENERATOR_CPU.to_string()]);
        load.arg("--device").arg(format!("net_vhost0,iface={},queues=1,client=1,tso=1", vhost.display()));
        if !self.hugepages {
            load.arg("--no-huge");
        }
        measure::ask(&mut load, workload, pace, &json, &format!("{SERVER_ADDRESS}:/export"));
        let run = measure::run(load, pace, &json, || measure::own_meter(&self.socket()))
            .with_context(|| format!("nfsplice ({transmit}), {}", workload.full_name()))?;
        server.signal(rustix::process::Signal::TERM);
        let _ = server.wait(Duration::from_secs(5));
        run.sample(self.hz)
    }

    pub fn ganesha(&self) -> Result<Ganesha<'_>> {
        Ganesha::start(self)
    }

    pub fn sendfile(&self) -> Result<SendfileLoop<'_>> {
        SendfileLoop::start(self)
    }
}

/// NFS-Ganesha with rpcbind in a network, mount and process namespace of its own.
pub struct Ganesha<'b> {
    bed: &'b Bed,
    namespace: Netns,
    _daemon: Daemon,
    pids: Vec<u32>,
}

impl<'b> Ganesha<'b> {
    /// What is missing on this machine.
    pub fn missing() -> Option<&'static str> {
        let own = |program: &str| Path::new(UNPACKED).join(program).is_file();
        ["usr/bin/ganesha.nfsd", "sbin/rpcbind"]
            .into_iter()
            .find(|program| !own(program))
            .or(process::find("unshare").is_none().then_some("unshare"))
    }

    /// Starts it and waits until it takes connections.
    fn start(bed: &'b Bed) -> Result<Ganesha<'b>> {
        let namespace = Netns::new()?;
        let config = bed.path("ganesha.conf");
        let export = bed.files.join("export");
        std::fs::create_dir_all(&export)?;
        let text = format!(
            "NFS_CORE_PARAM {{ Protocols = 3; MNT_Port = 20048; Enable_NLM = false; Enable_RQUOTA = false;\n\
             mount_path_pseudo = true; Plugins_Dir = \"{UNPACKED}/usr/lib/x86_64-linux-gnu/ganesha\"; }}\n\
             NFSV4 {{ Graceless = true; UseGetpwnam = true; }}\n\
             EXPORT {{ Export_Id = 1; Path = \"{}\"; Pseudo = /export; Access_Type = RW; Squash = No_Root_Squash;\n\
             SecType = sys; Protocols = 3; MaxRead = 1048576; MaxWrite = 1048576; FSAL {{ Name = VFS; }} }}\n",
            export.canonicalize()?.display()
        );
        std::fs::write(&config, text)?;
        // Neither is installed, so what their packages would set up on the machine is set up in a mount namespace:
        // - /run: rpcbind's socket has a fixed path, and version 4.3 does not serve NFSv3 without an rpcbind to register with;
        // - /var/lib: ganesha's recovery data;
        // - /etc: rpcbind's user, the transports of libtirpc.
        // `UseGetpwnam`: libnfsidmap would look for its plug-in in the system's folders. The process namespace takes rpcbind along
        // when ganesha ends.
        let script = format!(
            "mount -t tmpfs none /run && mount -t tmpfs none /var/lib && mkdir -p /run/etc /run/ganesha /var/lib/nfs/ganesha && \
             cp -a /etc/. {UNPACKED}/etc/netconfig /run/etc && echo '_rpc:x:65533:65534::/run:/bin/false' >> /run/etc/passwd && \
             mount --bind /run/etc /etc && \
             export LD_LIBRARY_PATH={} && \
             {{ {UNPACKED}/sbin/rpcbind -f & sleep 0.3; exec {UNPACKED}/usr/bin/ganesha.nfsd -F -f {} -L {} -N NIV_EVENT -p /run/ganesha.pid; }}",
            libraries(),
            config.display(),
            bed.log("ganesha").display()
        );
        let mut command = namespace.command("taskset");
        command.args([
            "-c",
            &SERVER_CPU.to_string(),
            "unshare",
            "--mount",
            "--pid",
            "--fork",
            "--kill-child",
            "sh",
            "-c",
            &script,
        ]);
        let mut daemon = Daemon::spawn(command, &bed.log("ganesha-start"))?;
        let address = "127.0.0.1:2049".parse().expect("an address");
        let deadline = Instant::now() + START_MAX;
        while namespace.connect(address, Duration::from_secs(1)).is_err() {
            if daemon.exited()?.is_some() || Instant::now() > deadline {
                bail!("ganesha.nfsd does not start\n{}\n{}", daemon.tail(), process::tail(&bed.log("ganesha")));
            }
            sleep(Duration::from_millis(100));
        }
        let children = std::fs::read_to_string(format!("/proc/{0}/task/{0}/children", daemon.pid()))?;
        let pids: Vec<u32> = children.split_whitespace().filter_map(|word| word.parse().ok()).collect();
        Ok(Ganesha { bed, namespace, _daemon: daemon, pids })
    }

    pub fn run(&self, workload: &Workload, pace: &Pace) -> Result<Sample> {
        let json = self.bed.json("ganesha", workload);
        let mut load = self.namespace.command(&self.bed.binary.display().to_string());
        load.args(["load", "--transport", "kernel", "--cores", &GENERATOR_CPU.to_string()]);
        load.args(["--nfs-port", "2049", "--mount-port", "20048"]);
        // Other sizes, other files: the sets of two workloads do not disturb each other.
        load.args(["--directory", &format!("set-{}", workload.set.name().replace(' ', ""))]);
        measure::ask(&mut load, workload, pace, &json, "127.0.0.1:/export");
        let pids = server_pids(&self.pids);
        let run = measure::run(load, pace, &json, || measure::cpu_meter(&pids, self.bed.hz))
            .with_context(|| format!("NFS-Ganesha, {}", workload.full_name()))?;
        run.sample(self.bed.hz)
    }
}

/// Where its libraries are.
fn libraries() -> String {
    ["usr/lib/ganesha", "usr/lib/x86_64-linux-gnu", "lib/x86_64-linux-gnu"].map(|folder| format!("{UNPACKED}/{folder}")).join(":")
}

pub fn ganesha_version() -> String {
    let mut command = Command::new(Path::new(UNPACKED).join("usr/bin/ganesha.nfsd"));
    let output = command.arg("-v").env("LD_LIBRARY_PATH", libraries()).output();
    let text = output.map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default();
    text.split('=').nth(1).map_or("none".to_owned(), |version| version.trim().to_owned())
}

/// A server's processes, and the kernel thread that takes over softirq work on its CPU when there is too much of it.
fn server_pids(own: &[u32]) -> Vec<u32> {
    let softirq = format!("ksoftirqd/{SERVER_CPU}\n");
    let is_softirq = |pid: &u32| std::fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|name| name == softirq);
    own.iter().copied().chain((1..100).filter(is_softirq)).collect()
}

/// The sendfile loop, a process of its own.
pub struct SendfileLoop<'b> {
    bed: &'b Bed,
    process: std::process::Child,
    _guard: process::Guard,
    port: u16,
}

impl<'b> SendfileLoop<'b> {
    fn start(bed: &'b Bed) -> Result<SendfileLoop<'b>> {
        use std::io::BufRead as _;
        let (files, bytes) = Set::Large.shape();
        let file = bed.files.join("sendfile");
        sendfile::prepare(&file, u64::from(files) * bytes)?;
        let mut command = Command::new(std::env::current_exe()?);
        command.arg("sendfile-serve").arg(&file).arg(SERVER_CPU.to_string());
        let mut process = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn()?;
        let guard = process::Guard::new(&process);
        let mut port = String::new();
        std::io::BufReader::new(process.stdout.take().context("stdout is piped")?).read_line(&mut port)?;
        Ok(SendfileLoop { bed, process, _guard: guard, port: port.trim().parse().context("the sendfile loop has no port")? })
    }

    pub fn run(&self, workload: &Workload, pace: &Pace) -> Result<Sample> {
        let (files, bytes) = workload.set.shape();
        let plan = sendfile::Plan {
            connections: workload.connections as usize,
            depth: workload.depth as usize,
            bytes: if workload.mix == "null" { 0 } else { workload.bytes },
            working_set: u64::from(files) * bytes,
            ramp: RAMP,
            duration: pace.duration,
            verify: pace.verify,
        };
        let pids = server_pids(&[self.process.id()]);
        let port = self.port;
        let driver = std::thread::spawn(move || sendfile::drive(port, GENERATOR_CPU, plan));
        sleep(RAMP + pace.duration / 10);
        let (began, before) = (Instant::now(), measure::cpu_meter(&pids, self.bed.hz)?);
        sleep(pace.duration * 8 / 10);
        let (elapsed, after) = (began.elapsed().as_secs_f64(), measure::cpu_meter(&pids, self.bed.hz)?);
        let outcome = driver.join().map_err(|_| anyhow::anyhow!("the sendfile client panicked"))??;
        let rate = outcome.operations as f64 / outcome.seconds;
        let cycles = after.cycles - before.cycles;
        Ok(Sample {
            operations_per_s: rate,
            bytes_per_s: rate * f64::from(plan.bytes),
            p50_ns: outcome.latency_p50_ns as f64,
            p99_ns: outcome.latency_p99_ns as f64,
            cycles: cycles / (rate * elapsed),
            busy: cycles / (elapsed * self.bed.hz),
            ..Sample::default()
        })
    }
}

impl Drop for SendfileLoop<'_> {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// A folder's own path, for messages.
pub fn shown(path: &Path) -> String {
    path.strip_prefix(env!("CARGO_MANIFEST_DIR")).unwrap_or(path).display().to_string()
}
