//! DPDK's environment layer: started once per process, cleaned up when nothing uses its memory any more.
//!
//! Deliberately not here: launching work on lcores. A core's loop is an ordinary thread that calls [`register_thread`]
//! and pins itself; DPDK only has to know it for its per-core buffer caches.

use std::{
    ffi::CString,
    marker::PhantomData,
    os::raw::c_char,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use dpdk_sys as sys;

use crate::{
    error::{Errno, Error},
    pool,
};

/// How addresses are shown to devices.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum IovaMode {
    /// DPDK decides.
    #[default]
    Auto,
    /// Physical addresses (needs root and hugepages).
    Physical,
    /// Virtual addresses (an IOMMU, or no device that does DMA).
    Virtual,
}

/// What DPDK is started with. Unknown needs go through `extra_arguments`.
#[derive(Debug, Clone)]
pub struct EalOptions {
    /// CPUs DPDK may place its lcores on; the first becomes the main lcore. Usually one: other cores' threads
    /// register themselves.
    pub lcores: Vec<u16>,
    /// Use hugepages. Without them memory is ordinary pages: fine for virtual devices, not for a NIC.
    pub hugepages: bool,
    /// Memory to take at start, in MiB. Without hugepages this is all there will ever be.
    pub memory_mib: u32,
    /// Must be unique among the DPDK processes of a machine.
    pub file_prefix: String,
    /// Virtual devices, as DPDK's `--vdev` takes them, e.g. `net_tap0,iface=nfs0`.
    pub vdevs: Vec<String>,
    /// PCI addresses to probe. Empty: the PCI bus is not touched at all.
    pub allow: Vec<String>,
    /// See [`IovaMode`].
    pub iova_mode: IovaMode,
    /// DPDK's telemetry socket, which costs a thread.
    pub telemetry: bool,
    /// DPDK's log level, as `--log-level` takes it (`error`, `notice`, `lib.eal:debug`, ...).
    pub log_level: Option<String>,
    /// `rte_eal_init` pins the calling thread to the main lcore's CPU. False: the thread's mask is put back after it.
    pub pin_calling_thread: bool,
    /// Passed as they are, after everything else.
    pub extra_arguments: Vec<String>,
}

impl Default for EalOptions {
    fn default() -> EalOptions {
        EalOptions {
            lcores: vec![0],
            hugepages: true,
            memory_mib: 512,
            file_prefix: "nfsplice".to_owned(),
            vdevs: Vec::new(),
            allow: Vec::new(),
            iova_mode: IovaMode::Auto,
            telemetry: false,
            log_level: None,
            pin_calling_thread: true,
            extra_arguments: Vec::new(),
        }
    }
}

impl EalOptions {
    /// The arguments given to `rte_eal_init`, the program name first.
    pub fn arguments(&self) -> Result<Vec<String>, Error> {
        if self.lcores.is_empty() {
            return Err(Error::Invalid("the list of lcores is empty".to_owned()));
        }
        let lcores: Vec<String> = self.lcores.iter().map(u16::to_string).collect();
        let mut arguments = vec!["nfsplice".to_owned(), "-l".to_owned(), lcores.join(",")];
        arguments.push(format!("--main-lcore={}", self.lcores[0]));
        arguments.push(format!("--file-prefix={}", self.file_prefix));
        arguments.extend(["-m".to_owned(), self.memory_mib.to_string()]);
        match self.hugepages {
            // No files: nothing has to be mounted, the kernel takes the pages back however the process ends, and virtio-user can
            // hand its few descriptors (at most 8, VHOST_MEMORY_MAX_NREGIONS) to the other end.
            true => arguments.extend(["--in-memory", "--single-file-segments"].map(str::to_owned)),
            false => arguments.push("--no-huge".to_owned()),
        }
        match self.iova_mode {
            IovaMode::Auto => {}
            IovaMode::Physical => arguments.push("--iova-mode=pa".to_owned()),
            IovaMode::Virtual => arguments.push("--iova-mode=va".to_owned()),
        }
        if self.allow.is_empty() {
            arguments.push("--no-pci".to_owned());
        }
        arguments.extend(self.allow.iter().flat_map(|address| ["-a".to_owned(), address.clone()]));
        arguments.extend(self.vdevs.iter().map(|device| format!("--vdev={device}")));
        if !self.telemetry {
            arguments.push("--no-telemetry".to_owned());
        }
        arguments.extend(self.log_level.iter().map(|level| format!("--log-level={level}")));
        arguments.extend(self.extra_arguments.iter().cloned());
        Ok(arguments)
    }
}

static STARTED: AtomicBool = AtomicBool::new(false);

/// DPDK, running. Ports and zones keep it alive; the last of them cleans up.
#[derive(Debug)]
pub struct Eal {
    pub(crate) running: Arc<Running>,
}

/// The shared part: exists as long as anything made from this EAL does.
#[derive(Debug)]
pub(crate) struct Running {
    iova_is_virtual: bool,
    hugepages: bool,
}

impl Eal {
    /// Starts DPDK. The calling thread becomes lcore `lcores[0]` and is pinned there unless
    /// [`EalOptions::pin_calling_thread`] is false.
    pub fn init(options: &EalOptions) -> Result<Eal, Error> {
        let arguments = options.arguments()?;
        let mut owned = Vec::with_capacity(arguments.len());
        for argument in &arguments {
            owned.push(
                CString::new(argument.as_str()).map_err(|_| Error::Invalid(format!("NUL byte in the argument {argument:?}")))?,
            );
        }
        if STARTED.swap(true, Ordering::AcqRel) {
            return Err(Error::AlreadyInitialised);
        }
        // EAL permutes the array and keeps pointers into the strings: both live for the rest of the process.
        let pointers: Vec<*mut c_char> = owned.into_iter().map(CString::into_raw).collect();
        let count = i32::try_from(pointers.len()).map_err(|_| Error::Invalid("too many EAL arguments".to_owned()))?;
        let pointers = Vec::leak(pointers);
        let mut affinity = sys::nfsplice_affinity::default();
        // SAFETY: `affinity` is a plain buffer of the size the shim asserts.
        let saved = unsafe { sys::nfsplice_affinity_save(&mut affinity) } == 0;
        // SAFETY: `count` valid NUL-terminated strings that are never freed; called once per process (STARTED).
        let result = unsafe { sys::rte_eal_init(count, pointers.as_mut_ptr()) };
        if saved && !options.pin_calling_thread {
            // SAFETY: the mask this thread had before. Failing leaves the thread pinned, which is harmless.
            unsafe { sys::nfsplice_affinity_restore(&affinity) };
        }
        if result < 0 {
            return Err(Error::Initialise { arguments: arguments.join(" "), errno: Errno::current() });
        }
        // SAFETY: EAL is running.
        let (mode, hugepages) = unsafe { (sys::rte_eal_iova_mode(), sys::rte_eal_has_hugepages()) };
        Ok(Eal {
            running: Arc::new(Running { iova_is_virtual: mode == sys::rte_iova_mode_RTE_IOVA_VA, hugepages: hugepages != 0 }),
        })
    }

    /// True when a device sees the process's own addresses.
    pub fn iova_is_virtual(&self) -> bool {
        self.running.iova_is_virtual()
    }

    /// True when memory comes from hugepages.
    pub fn has_hugepages(&self) -> bool {
        self.running.hugepages
    }

    /// Names of the ports DPDK has found, open or not.
    pub fn port_names(&self) -> Vec<String> {
        crate::port::names()
    }
}

impl Running {
    pub(crate) fn iova_is_virtual(&self) -> bool {
        self.iova_is_virtual
    }
}

impl Drop for Running {
    /// `rte_eal_cleanup` unmaps all of DPDK's memory. Ports and zones hold `Running`, so they are gone; buffers do not,
    /// so the pools are asked. When a buffer is still out there, DPDK is left as it is until the process ends.
    fn drop(&mut self) {
        /// A thread that is just putting its last buffer back has left DPDK's code long before this has passed.
        const GRACE: Duration = Duration::from_millis(5);
        if !pool::all_home() {
            return;
        }
        std::thread::sleep(GRACE);
        if pool::all_home() {
            pool::forget_all();
            // SAFETY: EAL is running; a NUL-terminated string that lives as long.
            let folder = unsafe { std::ffi::CStr::from_ptr(sys::rte_eal_get_runtime_dir()) };
            let folder = folder.to_string_lossy().into_owned();
            // SAFETY: no port, zone or buffer made by this crate is left; STARTED forbids any new use.
            unsafe { sys::rte_eal_cleanup() };
            // DPDK leaves its files (some MiB of /run per file prefix) behind; nobody else may use this prefix.
            let _ = std::fs::remove_dir_all(folder);
        }
    }
}

/// A thread known to DPDK until this is dropped. Not `Send`: it speaks of the thread that made it.
#[derive(Debug)]
pub struct RegisteredThread {
    not_send: PhantomData<*const ()>,
    registered: bool,
}

/// Makes the calling thread known to DPDK, which gives it its own buffer caches. Every thread that polls a queue should
/// do this once. Not required for correctness: an unknown thread may still drop buffers (a server's I/O thread
/// dropping a page, say), it takes the pools' shared, slower way. On a thread DPDK already knows (the one that called
/// [`Eal::init`]) it does nothing. The registration may outlive neither the thread nor its use of this crate.
pub fn register_thread() -> Result<RegisteredThread, Error> {
    // SAFETY: rte_lcore_id is a thread-local read.
    if unsafe { sys::nfsplice_lcore_known() } != 0 {
        return Ok(RegisteredThread { not_send: PhantomData, registered: false });
    }
    // SAFETY: callable from any thread; fails cleanly when EAL is not running or no lcore id is free.
    match unsafe { sys::rte_thread_register() } {
        0 => Ok(RegisteredThread { not_send: PhantomData, registered: true }),
        _ => Err(Error::Thread(Errno::current())),
    }
}

impl Drop for RegisteredThread {
    fn drop(&mut self) {
        if self.registered {
            // SAFETY: this thread registered itself (not Send). DPDK documents the call as harmless after cleanup.
            unsafe { sys::rte_thread_unregister() };
        }
    }
}

/// The CPU's time-stamp counter.
#[inline]
pub fn cycles() -> u64 {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: rdtsc exists on every x86-64 CPU.
    unsafe {
        core::arch::x86_64::_rdtsc()
    }
    #[cfg(not(target_arch = "x86_64"))]
    compile_error!("cycles(): add this architecture's counter")
}

/// How often [`cycles`] counts per second, as measured by DPDK at start (0 before [`Eal::init`]).
pub fn cycles_hz() -> u64 {
    // SAFETY: reads a global that EAL set at start.
    unsafe { sys::rte_get_tsc_hz() }
}

/// DPDK's version, e.g. `DPDK 22.11.11`.
pub fn version() -> String {
    // SAFETY: returns a static NUL-terminated string.
    unsafe { std::ffi::CStr::from_ptr(sys::rte_version()) }.to_string_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_a_pci_address_the_pci_bus_is_left_alone() {
        let mut options = EalOptions { vdevs: vec!["net_ring0".to_owned()], ..EalOptions::default() };
        assert!(options.arguments().unwrap().contains(&"--no-pci".to_owned()));
        options.allow.push("0000:00:04.0".to_owned());
        let arguments = options.arguments().unwrap();
        assert!(!arguments.contains(&"--no-pci".to_owned()));
        assert!(arguments.windows(2).any(|pair| pair == ["-a", "0000:00:04.0"]));
    }

    #[test]
    fn an_empty_lcore_list_is_refused() {
        let options = EalOptions { lcores: Vec::new(), ..EalOptions::default() };
        assert!(matches!(options.arguments(), Err(Error::Invalid(_))));
    }
}
