//! Guests under QEMU's software emulation: Debian's kernel (unpacked by scripts/install.sh, not installed) with a small initrd made
//! here. A guest reports on its console, one `GUEST-RESULT: ok|FAIL step` line per step and `GUEST-DONE` at its end.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use crate::net::Netns;
use crate::process::{self, Daemon};
use crate::report::skip;

const BUSYBOX: &str = "/bin/busybox";

pub struct Kernel {
    root: PathBuf,
    tools: PathBuf,
    pub version: String,
}

/// Debian's kernel and mount.nfs, or the reason why there is none.
pub fn kernel() -> Result<Kernel> {
    let guest = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/guest");
    let Ok(version) = fs::read_to_string(guest.join(".complete")) else {
        return skip("no guest kernel under target/guest: scripts/install.sh test");
    };
    for program in ["qemu-system-x86_64", "cpio", "modprobe", "busybox"] {
        if process::find(program).is_none() {
            return skip(format!("{program} is not installed"));
        }
    }
    Ok(Kernel { root: guest.join("kernel"), tools: guest.join("tools"), version: version.trim().to_owned() })
}

impl Kernel {
    pub fn image(&self) -> PathBuf {
        self.root.join("boot").join(format!("vmlinuz-{}", self.version))
    }

    /// The files of a module and of what it needs, in loading order. A module built into the kernel has none.
    fn module_files(&self, module: &str) -> Result<Vec<PathBuf>> {
        let mut command = Command::new(process::find("modprobe").context("kmod")?);
        command.arg("-d").arg(&self.root).args(["-S", &self.version, "--show-depends", module]);
        let listing = process::run(command, Duration::from_secs(10))?.text();
        Ok(listing.lines().filter_map(|line| line.strip_prefix("insmod ")).map(|path| PathBuf::from(path.trim())).collect())
    }

    /// An initrd with busybox, these modules, mount.nfs if `nfs`, and `script` as /test.sh.
    pub fn initrd(&self, folder: &Path, modules: &[&str], nfs: bool, script: &str) -> Result<PathBuf> {
        let stage = folder.join("initrd");
        for sub in ["bin", "sbin", "modules", "etc", "lib64", "lib", "usr/bin", "usr/sbin"] {
            fs::create_dir_all(stage.join(sub))?;
        }
        fs::copy(process::find("busybox").context("busybox-static")?, stage.join(&BUSYBOX[1..]))?;
        let mut order = String::new();
        for module in modules {
            for file in self.module_files(module)? {
                let name = file.file_name().and_then(|name| name.to_str()).context("a module's name")?;
                let inside = format!("/modules/{name}");
                if !order.lines().any(|line| line == inside) {
                    fs::copy(&file, stage.join(&inside[1..]))?;
                    order += &format!("{inside}\n");
                }
            }
        }
        fs::write(stage.join("modules.list"), order)?;
        fs::copy(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/e2e/guest/init.sh"), stage.join("init"))?;
        fs::set_permissions(stage.join("init"), fs::Permissions::from_mode(0o755))?;
        fs::write(stage.join("test.sh"), script)?;
        fs::write(stage.join("etc/passwd"), "root:x:0:0::/:/bin/sh\nu:x:1000:1000::/:/bin/sh\n")?;
        fs::write(stage.join("etc/group"), "root:x:0:\nu:x:1000:\nstaff:x:2000:u\n")?;
        if nfs {
            self.add_mount_nfs(&stage)?;
        }
        let archive = folder.join("initrd.cpio");
        let mut command = Command::new("sh");
        command.arg("-c").arg("cd \"$1\" && find . | cpio -o -H newc --quiet >\"$2\"").arg("sh").arg(&stage).arg(&archive);
        process::run(command, Duration::from_secs(60))?;
        Ok(archive)
    }

    /// Debian's mount.nfs with its libraries: from nfs-common's unpacked package first, then from this machine.
    fn add_mount_nfs(&self, stage: &Path) -> Result<()> {
        let program = self.tools.join("sbin/mount.nfs");
        let own = ["usr/lib/x86_64-linux-gnu", "lib/x86_64-linux-gnu"].map(|sub| self.tools.join(sub).display().to_string());
        let mut command = Command::new("ldd");
        command.arg(&program).env("LD_LIBRARY_PATH", own.join(":"));
        for line in process::run(command, Duration::from_secs(10))?.text().lines() {
            ensure!(!line.contains("not found"), "mount.nfs lacks a library: {}", line.trim());
            let Some(path) = line.split_whitespace().find(|word| word.starts_with('/')) else { continue };
            let name = Path::new(path).file_name().context("a library's name")?;
            let folder = if path.starts_with("/lib64/") { "lib64" } else { "lib" };
            fs::copy(path, stage.join(folder).join(name))?;
        }
        fs::copy(&program, stage.join("bin/mount.nfs"))?;
        symlink("../bin/mount.nfs", stage.join("sbin/mount.nfs"))?;
        for file in ["netconfig", "protocols", "services"] {
            fs::copy(self.tools.join("etc").join(file), stage.join("etc").join(file))?;
        }
        // The loader looks in /lib and not in Debian's multi-arch folders.
        Ok(())
    }
}

pub struct Guest {
    daemon: Daemon,
}

/// Boots inside a namespace. `arguments` are the devices; `words` go onto the kernel's command line.
pub fn boot(net: &Netns, folder: &Path, kernel: &Kernel, initrd: &Path, arguments: &[&str], words: &str) -> Result<Guest> {
    let mut command = net.command("qemu-system-x86_64");
    command.args(["-nodefaults", "-no-user-config", "-display", "none", "-serial", "stdio", "-monitor", "none", "-no-reboot"]);
    command.args(["-accel", "tcg,thread=multi", "-cpu", "max"]);
    command.arg("-kernel").arg(kernel.image()).arg("-initrd").arg(initrd);
    command.arg("-append").arg(format!("console=ttyS0 quiet panic=-1 no_timer_check mitigations=off {words}"));
    command.args(arguments);
    Ok(Guest { daemon: Daemon::spawn(command, &folder.join("guest.log"))? })
}

impl Guest {
    fn console(&self) -> String {
        String::from_utf8_lossy(&fs::read(&self.daemon.log).unwrap_or_default()).replace('\r', "")
    }

    /// Waits for a line on the console, and for no failed step before it.
    pub fn wait_for(&mut self, line: &str, limit: Duration) -> Result<()> {
        let deadline = Instant::now() + limit;
        loop {
            let console = self.console();
            if console.lines().any(|found| found.contains(line)) {
                return Ok(());
            }
            if let Some(status) = self.daemon.exited()? {
                bail!("the guest ended ({status}) before \"{line}\"\n{}", self.daemon.tail());
            }
            ensure!(Instant::now() < deadline, "no \"{line}\" from the guest within {limit:?}\n{}", self.daemon.tail());
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    /// Waits for the guest's end. Every step named in the script has to have passed.
    pub fn finish(&mut self, limit: Duration, script: &str) -> Result<()> {
        self.wait_for("GUEST-DONE", limit)?;
        self.daemon.wait(Duration::from_secs(20))?;
        let console = self.console();
        let failures: Vec<&str> =
            console.lines().filter(|line| line.contains("GUEST-RESULT: FAIL") || line.contains("GUEST-OUTPUT:")).collect();
        ensure!(failures.is_empty(), "{}", failures.join("\n"));
        let steps: Vec<&str> = script.lines().filter_map(|line| line.strip_prefix("step ")?.split(' ').next()).collect();
        for step in &steps {
            let passed = console.lines().any(|line| line.contains(&format!("GUEST-RESULT: ok {step} ")));
            ensure!(passed, "the guest's step {step} left no result\n{}", self.daemon.tail());
        }
        println!("    {} steps passed in the guest", steps.len());
        Ok(())
    }
}
