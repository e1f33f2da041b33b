//! Page memory: alignment, addresses, and what happens when there is not enough. Uses hugepages when the machine has
//! 48 MiB of them free (a zone must then also be right in the device's view, page by page).

mod common;

use dpdk::{Eal, EalOptions, Error, Zone, ZoneSet};

const BLOCK: usize = 64 << 10;

#[test]
fn zones_are_aligned_addressable_and_returned() {
    let hugepages = free_hugepage_mib() >= 48;
    println!("hugepages: {hugepages}");
    let eal = if hugepages {
        Eal::init(&EalOptions {
            memory_mib: 48,
            file_prefix: format!("zones_{}", std::process::id()),
            log_level: Some("error".to_owned()),
            iova_mode: dpdk::eal::IovaMode::Physical,
            pin_calling_thread: false,
            ..EalOptions::default()
        })
        .expect("DPDK starts")
    } else {
        common::eal("zones", &[])
    };
    assert_eq!((eal.has_hugepages(), eal.iova_is_virtual()), (hugepages, !hugepages));

    let zone = Zone::reserve(&eal, "a name longer than DPDK's limit of 32", 3 * BLOCK + 5, BLOCK, -1).expect("memory");
    assert_eq!(zone.len(), 3 * BLOCK + 5);
    assert_eq!(zone.as_ptr().as_ptr() as usize % BLOCK, 0);
    for block in 0..3 {
        assert_eq!(zone.iova_of(block * BLOCK + BLOCK - 1) - zone.iova_of(block * BLOCK), BLOCK as u64 - 1);
        if eal.iova_is_virtual() {
            assert_eq!(zone.iova_of(block * BLOCK), zone.as_ptr().as_ptr() as u64 + (block * BLOCK) as u64);
        } else {
            assert_eq!(zone.iova_of(block * BLOCK) % BLOCK as u64, 0);
        }
    }
    assert!(zone.page_bytes() >= 4096);
    assert!(std::panic::catch_unwind(|| zone.iova_of(3 * BLOCK + 5)).is_err());

    assert!(matches!(Zone::reserve(&eal, "none", 0, BLOCK, -1), Err(Error::Invalid(_))));
    assert!(matches!(Zone::reserve(&eal, "odd", BLOCK, 3, -1), Err(Error::Invalid(_))));

    // A failed set gives back what it had: the same amount can be had afterwards, and again after a drop.
    let bytes = 32 << 20;
    let failed = ZoneSet::reserve(&eal, "too much", 1 << 40, BLOCK, -1);
    let Err(Error::Memory { wanted_bytes, available_bytes, .. }) = failed else { panic!("{failed:?}") };
    assert_eq!(wanted_bytes, 1 << 40);
    assert!(available_bytes >= bytes, "{available_bytes}");
    for _ in 0..3 {
        let set = ZoneSet::reserve(&eal, "pages", bytes - 1, BLOCK, -1).expect("memory");
        assert_eq!(set.len(), bytes);
        for zone in set.zones() {
            assert_eq!((zone.as_ptr().as_ptr() as usize % BLOCK, zone.len() % BLOCK), (0, 0));
            // SAFETY: inside the zone, which nobody else uses.
            unsafe { zone.as_ptr().add(zone.len() - 1).write(1) };
        }
    }
}

fn free_hugepage_mib() -> usize {
    let text = std::fs::read_to_string("/proc/meminfo").expect("procfs");
    let value = |name: &str| -> usize {
        let line = text.lines().find_map(|line| line.strip_prefix(name)).unwrap_or("0");
        line.trim().trim_end_matches("kB").trim().parse().unwrap_or(0)
    };
    value("HugePages_Free:") * value("Hugepagesize:") / 1024
}
