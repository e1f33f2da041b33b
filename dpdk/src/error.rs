//! What can go wrong while setting up, named by what the caller can do about it. The data path has its own small
//! enum, [`crate::chain::TxRefused`].

use std::ffi::CStr;

use dpdk_sys as sys;

/// An error of the control path.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// DPDK can be started once per process, and not again after a failure or a clean-up.
    #[error("DPDK was already started in this process")]
    AlreadyInitialised,
    /// `rte_eal_init` refused its arguments or found no usable memory.
    #[error("rte_eal_init failed: {errno} (arguments: {arguments})")]
    Initialise {
        /// The arguments as given to DPDK.
        arguments: String,
        /// DPDK's reason.
        errno: Errno,
    },
    /// An argument with a NUL byte, an empty list and the like; the text names it.
    #[error("{0}")]
    Invalid(String),
    /// Not enough memory of the wanted kind.
    #[error(
        "{what}: {wanted_bytes} bytes wanted, {available_bytes} bytes got: {errno}; raise the memory size or the number of hugepages"
    )]
    Memory {
        /// What the memory was for.
        what: String,
        /// The size asked for.
        wanted_bytes: usize,
        /// What could be had before the failure.
        available_bytes: usize,
        /// DPDK's reason.
        errno: Errno,
    },
    /// No device of this name; `known` lists what DPDK has found.
    #[error("no port named {name}; DPDK knows: {}", if known.is_empty() { "none; why it did not start one is in its own lines above" } else { known })]
    NoSuchPort {
        /// The name looked for.
        name: String,
        /// The names there are, comma separated.
        known: String,
    },
    /// The port is already open in this process.
    #[error("port {0} is already open")]
    PortBusy(String),
    /// The device cannot do what was asked, and the caller asked for it explicitly.
    #[error("port {port} ({driver}): {what}")]
    Unsupported {
        /// The port's name.
        port: String,
        /// The driver's name.
        driver: String,
        /// What is missing.
        what: String,
    },
    /// A DPDK call on a port failed.
    #[error("port {port}: {call} failed: {errno}")]
    Port {
        /// The port's name.
        port: String,
        /// The DPDK call.
        call: &'static str,
        /// DPDK's reason.
        errno: Errno,
    },
    /// A thread could not be registered (more than 128 lcores).
    #[error("the thread could not be registered with DPDK: {0}")]
    Thread(Errno),
}

/// An errno value, printed as DPDK's text and number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Errno(pub i32);

impl Errno {
    /// The calling thread's `rte_errno`.
    pub(crate) fn current() -> Errno {
        // SAFETY: reads a thread-local integer.
        Errno(unsafe { sys::nfsplice_errno() })
    }

    /// From a call that returns a negative errno.
    pub(crate) fn from_return(value: i32) -> Errno {
        if value == -1 { Errno::current() } else { Errno(value.saturating_abs()) }
    }
}

impl std::fmt::Display for Errno {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // SAFETY: rte_strerror returns a NUL-terminated string in thread-local or static storage, read at once.
        let text = unsafe { CStr::from_ptr(sys::rte_strerror(self.0)) };
        write!(formatter, "{} (errno {})", text.to_string_lossy(), self.0)
    }
}
