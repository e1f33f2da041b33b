//! Whether the host has the hugepages that the configuration asks for, said before DPDK is started: its own words for a lack of
//! them name neither how many are needed nor what to do.
//!
//! Not here: taking them, which is EAL's part.

use std::path::Path;

use anyhow::ensure;

/// One folder for each size of hugepages.
const SIZES: &str = "/sys/kernel/mm/hugepages";

/// `needed_mib` in all.
pub fn check(needed_mib: u32) -> anyhow::Result<()> {
    check_in(Path::new(SIZES), needed_mib)
}

fn check_in(sizes: &Path, needed_mib: u32) -> anyhow::Result<()> {
    let free_mib = free_kib(sizes) >> 10;
    // Those that others have stay theirs.
    let missing = u64::from(needed_mib).saturating_sub(free_mib).div_ceil(2);
    let pages = there_are(sizes) + missing;
    ensure!(
        free_mib >= u64::from(needed_mib),
        "memory.hugepages: {needed_mib} MiB of hugepages are needed (memory.eal_mib, memory.page_cache_mib and the exports in memory), \
         {free_mib} MiB are free. Reserve them, in pages of 2 MiB: sysctl vm.nr_hugepages={pages}; or set hugepages = false."
    );
    Ok(())
}

/// Pages of 2 MiB, in use or not.
fn there_are(sizes: &Path) -> u64 {
    let count = std::fs::read_to_string(sizes.join("hugepages-2048kB/nr_hugepages"));
    count.ok().and_then(|count| count.trim().parse().ok()).unwrap_or(0)
}

/// Of all sizes together; what cannot be read counts as none.
fn free_kib(sizes: &Path) -> u64 {
    let Ok(entries) = std::fs::read_dir(sizes) else { return 0 };
    let free = |path: &Path| -> Option<u64> {
        let kib: u64 = path.file_name()?.to_str()?.strip_prefix("hugepages-")?.strip_suffix("kB")?.parse().ok()?;
        let pages: u64 = std::fs::read_to_string(path.join("free_hugepages")).ok()?.trim().parse().ok()?;
        kib.checked_mul(pages)
    };
    entries.flatten().filter_map(|entry| free(&entry.path())).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lack_is_told_with_what_is_needed_and_what_is_there() {
        let sizes = std::env::temp_dir().join(format!("nfsplice-hugepages-{}", std::process::id()));
        for (size, pages) in [("hugepages-2048kB", "10\n"), ("hugepages-1048576kB", "1\n"), ("hugepages-64kB", "?")] {
            let folder = sizes.join(size);
            std::fs::create_dir_all(&folder).unwrap();
            std::fs::write(folder.join("free_hugepages"), pages).unwrap();
        }
        // 90 of 2 MiB are in use.
        std::fs::write(sizes.join("hugepages-2048kB/nr_hugepages"), "100\n").unwrap();
        assert!(check_in(&sizes, 1024 + 20).is_ok());
        let text = check_in(&sizes, 1024 + 21).unwrap_err().to_string();
        assert!(text.contains("1045 MiB of hugepages are needed") && text.contains("1044 MiB are free"), "{text}");
        assert!(text.contains("sysctl vm.nr_hugepages=101;"), "{text}");
        assert!(check_in(&sizes.join("none"), 1).is_err());
        std::fs::remove_dir_all(&sizes).unwrap();
    }
}
