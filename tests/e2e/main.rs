//! End-to-end tests: the release binary in a network namespace of its own, used by clients that nobody here wrote
//! (Debian's libnfs tools, a stock Debian kernel in QEMU) and by a small hostile client over the kernel's TCP sockets.
//!
//! `cargo test --test e2e -- [FILTER]` runs the cases whose `group::name` contains FILTER; `--list` lists them.
//! Environment: `NFSPLICE_E2E=full` takes the long sizes, `NFSPLICE_E2E_BINARY` names another binary,
//! `NFSPLICE_E2E_SERVER=ganesha` runs the cases against NFS-Ganesha instead, which tests the tests.
//! Needs root. Everything happens in namespaces named `nfsplice-e2e-PID-N` and a temporary folder, both removed at the end.
//! Not here: reordering, duplication and corruption on the way (the simulator's part) and measurements (benches).
#![deny(unsafe_code)]

mod attack;
mod bare_metal;
mod bed;
mod client;
mod config_errors;
mod cores;
mod crash;
mod drain;
mod hostile;
mod interop;
mod ipv6;
mod kernel_client;
mod libnfs;
mod load;
mod looking_in;
mod net;
mod path_mtu;
mod process;
mod qemu;
mod report;
mod server;
mod standin;

use report::{Group, Report};

const GROUPS: &[Group] = &[
    Group { name: "libnfs", run: libnfs::run },
    Group { name: "ipv6", run: ipv6::run },
    Group { name: "path_mtu", run: path_mtu::run },
    Group { name: "hostile", run: hostile::run },
    Group { name: "attack", run: attack::run },
    Group { name: "interop", run: interop::run },
    Group { name: "config", run: config_errors::run },
    Group { name: "cores", run: cores::run },
    Group { name: "looking_in", run: looking_in::run },
    Group { name: "drain", run: drain::run },
    Group { name: "crash", run: crash::run },
    Group { name: "load", run: load::run },
    Group { name: "kernel", run: kernel_client::run },
    Group { name: "bare_metal", run: bare_metal::run },
];

fn main() {
    let filters: Vec<String> = std::env::args().skip(1).filter(|argument| !argument.starts_with('-')).collect();
    let list = std::env::args().any(|argument| argument == "--list");
    let mut report = Report::new(filters, list);
    if !list {
        net::sweep_leftovers();
        process::clean_up_on_interrupt();
    }
    for group in GROUPS {
        report.enter(group.name);
        (group.run)(&mut report);
    }
    std::process::exit(report.finish());
}
