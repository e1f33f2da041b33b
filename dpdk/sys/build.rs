//! Finds the system's libdpdk, makes the bindings and compiles the shim.
//!
//! The pkg-config crate keeps only -I, -L and -l. DPDK's inline code also needs `-include rte_config.h` (done by
//! shim.h) and its `-m` flags, so the raw flags are asked for as well and given to the C compiler and to libclang alike.
//! Only the core libraries are linked; drivers are loaded at run time from DPDK's plugin folder.

use std::{env, path::PathBuf, process::Command};

const MISSING: &str = "
libdpdk was not found by pkg-config. nfsplice needs DPDK 22.11 and its headers:

    apt-get install libdpdk-dev libclang-dev clang pkg-config

To build the library without the NIC side: cargo build --no-default-features
";

/// The libraries whose exported functions are allow-listed below or used by the shim's inline calls.
const LIBRARIES: [&str; 4] = ["rte_ethdev", "rte_mbuf", "rte_mempool", "rte_eal"];

const FUNCTIONS: [&str; 51] = [
    "rte_eal_init",
    "rte_eal_cleanup",
    "rte_eal_iova_mode",
    "rte_eal_has_hugepages",
    "rte_eal_get_runtime_dir",
    "rte_strerror",
    "rte_version",
    "rte_thread_register",
    "rte_thread_unregister",
    "rte_get_tsc_hz",
    "rte_epoll_wait_interruptible",
    "rte_memzone_reserve_aligned",
    "rte_memzone_free",
    "rte_mem_virt2iova",
    "rte_mem_virt2memseg",
    "rte_mempool_avail_count",
    "rte_mempool_in_use_count",
    "rte_pktmbuf_pool_create",
    "rte_pktmbuf_free_bulk",
    "rte_eth_dev_adjust_nb_rx_tx_desc",
    "rte_eth_dev_close",
    "rte_eth_dev_configure",
    "rte_eth_dev_default_mac_addr_set",
    "rte_eth_dev_get_mtu",
    "rte_eth_dev_get_name_by_port",
    "rte_eth_dev_get_port_by_name",
    "rte_eth_dev_info_get",
    "rte_eth_dev_rx_intr_ctl_q",
    "rte_eth_dev_rx_intr_ctl_q_get_fd",
    "rte_eth_dev_rx_intr_disable",
    "rte_eth_dev_rx_intr_enable",
    "rte_eth_dev_set_mtu",
    "rte_eth_dev_socket_id",
    "rte_eth_dev_start",
    "rte_eth_dev_stop",
    "rte_eth_find_next",
    "rte_eth_link_get_nowait",
    "rte_eth_macaddr_get",
    "rte_eth_promiscuous_enable",
    "rte_eth_allmulticast_enable",
    "rte_eth_dev_rss_hash_conf_get",
    "rte_eth_dev_rss_reta_query",
    "rte_eth_rx_queue_setup",
    "rte_eth_stats_get",
    "rte_eth_stats_reset",
    "rte_eth_tx_done_cleanup",
    "rte_eth_tx_queue_setup",
    "rte_eth_xstats_get_by_id",
    "rte_eth_xstats_get_id_by_name",
    "rte_eth_xstats_get_names_by_id",
    "nfsplice_.*",
];

const TYPES: [&str; 12] = [
    "rte_mbuf",
    "rte_mbuf_ext_shared_info",
    "rte_memzone",
    "rte_memseg",
    "rte_eth_conf",
    "rte_eth_dev_info",
    "rte_eth_rss_reta_entry64",
    "rte_eth_stats",
    "rte_eth_xstat_name",
    "rte_eth_link",
    "rte_epoll_event",
    "nfsplice_.*",
];

const CONSTANTS: [&str; 19] = [
    "RTE_ETH_TX_OFFLOAD_(MULTI_SEGS|TCP_TSO|IPV4_CKSUM|TCP_CKSUM|UDP_CKSUM|MBUF_FAST_FREE)",
    "RTE_ETH_RX_OFFLOAD_(IPV4_CKSUM|TCP_CKSUM|UDP_CKSUM|SCATTER|TCP_LRO|RSS_HASH)",
    "RTE_ETH_RSS_(IPV4|IPV6|NONFRAG_IPV[46]_(TCP|UDP))",
    "rte_eth_rx_mq_mode_RTE_ETH_MQ_RX_(NONE|RSS)",
    "RTE_ETH_MQ_RX_RSS_FLAG",
    "RTE_ETH_RETA_GROUP_SIZE",
    "RTE_ETH_NAME_MAX_LEN",
    "RTE_ETH_XSTATS_NAME_SIZE",
    "RTE_ETH_LINK_UP",
    "RTE_MAX_ETHPORTS",
    "RTE_MBUF_F_RX_(IP|L4)_CKSUM_(MASK|GOOD|BAD|NONE|UNKNOWN)",
    "RTE_MBUF_F_RX_(RSS_HASH|LRO)",
    "RTE_MBUF_F_TX_(TCP_SEG|TCP_CKSUM|UDP_CKSUM|IP_CKSUM|IPV4|IPV6)",
    "RTE_MBUF_F_EXTERNAL",
    "RTE_MEMPOOL_CACHE_MAX_SIZE",
    "RTE_PKTMBUF_HEADROOM",
    "RTE_INTR_EVENT_(ADD|DEL)",
    "RTE_MEMZONE_NAMESIZE",
    "rte_iova_mode_RTE_IOVA_(VA|PA)",
];

fn main() {
    println!("cargo:rerun-if-changed=shim.c");
    println!("cargo:rerun-if-changed=shim.h");
    println!("cargo:rerun-if-changed=build.rs");
    for name in ["PKG_CONFIG", "PKG_CONFIG_PATH", "PKG_CONFIG_LIBDIR"] {
        println!("cargo:rerun-if-env-changed={name}");
    }
    let library = match pkg_config::Config::new().range_version("22.11".."22.12").cargo_metadata(false).probe("libdpdk") {
        Ok(library) => library,
        Err(error) => fail(&format!("{MISSING}\npkg-config says: {error}")),
    };
    for path in &library.link_paths {
        println!("cargo:rustc-link-search=native={}", path.display());
    }
    let machine_flags = machine_flags();

    let mut shim = cc::Build::new();
    shim.file("shim.c").opt_level(3).std("gnu11").warnings(true);
    for path in &library.include_paths {
        // As system headers: the shim's own warnings stay visible, DPDK's do not.
        shim.flag("-isystem").flag(path.to_str().expect("an include path in UTF-8"));
    }
    for flag in &machine_flags {
        shim.flag(flag);
    }
    shim.compile("nfsplice_dpdk_shim");
    for name in LIBRARIES {
        println!("cargo:rustc-link-lib={name}");
    }

    let out = PathBuf::from(env::var_os("OUT_DIR").expect("set by cargo"));
    let mut bindings = bindgen::Builder::default()
        .header("shim.h")
        .clang_args(library.include_paths.iter().map(|path| format!("-I{}", path.display())))
        .clang_args(&machine_flags)
        // RTE_BIT64() constants are expressions that bindgen cannot evaluate without it.
        .clang_macro_fallback()
        .clang_macro_fallback_build_dir(&out)
        .layout_tests(true)
        .derive_default(true)
        .generate_comments(false)
        .default_enum_style(bindgen::EnumVariation::Consts)
        // Packed types that contain aligned ones (E0588).
        .opaque_type("rte_arp_.*|rte_l2tpv2_combined_msg_hdr|rte_gtp_psc_.*");
    // Reached through pointers only.
    for name in ["rte_mempool", "rte_device", "rte_memseg_list"] {
        bindings = bindings.opaque_type(name);
    }
    for name in FUNCTIONS {
        bindings = bindings.allowlist_function(name);
    }
    for name in TYPES {
        bindings = bindings.allowlist_type(name);
    }
    for name in CONSTANTS {
        bindings = bindings.allowlist_var(name);
    }
    match bindings.generate() {
        Ok(made) => made.write_to_file(out.join("bindings.rs")).expect("OUT_DIR is writable"),
        Err(error) => fail(&format!("bindgen failed on DPDK's headers: {error}")),
    }
}

/// The `-m…` flags of libdpdk's own build, which its inline functions need. Never -march=native: the binary must run
/// on other machines of the same architecture.
fn machine_flags() -> Vec<String> {
    let output =
        Command::new(env::var_os("PKG_CONFIG").unwrap_or_else(|| "pkg-config".into())).args(["--cflags", "libdpdk"]).output();
    match output {
        Ok(output) if output.status.success() => String::from_utf8_lossy(&output.stdout)
            .split_whitespace()
            .filter(|flag| flag.starts_with("-m"))
            .map(str::to_owned)
            .collect(),
        _ => fail(MISSING),
    }
}

fn fail(text: &str) -> ! {
    eprintln!("{text}");
    std::process::exit(1)
}
