//! Debian's libnfs against the server: trees of small files and one large file both ways, at two MTUs, with and without loss.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{BufWriter, Read, Write};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use crate::bed::Bed;
use crate::process;
use crate::report::{Report, full, skip};
use crate::server::{DEVICE, Setup};

const LOSS_PERCENT: u32 = 1;
/// A loss test in which nothing was lost is no test: below this many packets dropped in either direction it fails.
const LOST_MIN: u64 = 3;

/// (files in the tree, size of the large file)
fn sizes(lossy: bool) -> (u32, u64) {
    match (full(), lossy) {
        (true, _) => (2_000, 2 << 30),
        (false, false) => (300, 256 << 20),
        (false, true) => (100, 128 << 20),
    }
}

pub fn run(report: &mut Report) {
    for mtu in [1500, 9000] {
        for loss in [0, LOSS_PERCENT] {
            let condition = format!("mtu{mtu}_loss{loss}");
            report.case(&format!("tree_{condition}"), || with_bed(mtu, loss, |bed| tree(bed, sizes(loss != 0).0)));
            report.case(&format!("large_file_{condition}"), || with_bed(mtu, loss, |bed| large_file(bed, sizes(loss != 0).1)));
        }
    }
    report.case("tree_transmit_copy", || {
        let bed = Bed::new(Setup { transmit: "copy", ..Setup::default() })?;
        tree(&bed, 50)?;
        bed.finish()
    });
}

fn with_bed(mtu: u16, loss: u32, case: impl FnOnce(&Bed) -> Result<()>) -> Result<()> {
    let bed = Bed::new(Setup { mtu, ..Setup::default() })?;
    if loss != 0 {
        bed.net.lose(DEVICE, loss)?;
    }
    case(&bed)?;
    if loss != 0 {
        let (inward, outward) = bed.net.lost()?;
        println!("    lost on purpose: {inward} packets from the server, {outward} to it");
        ensure!(inward >= LOST_MIN && outward >= LOST_MIN, "only {inward} and {outward} packets were lost");
    }
    bed.finish()
}

fn tool(bed: &Bed, program: &str, arguments: &[&str], limit: Duration) -> Result<process::Output> {
    if process::find(program).is_none() && !program.contains('/') {
        return skip(format!("{program} is not installed (libnfs-utils)"));
    }
    let mut command = bed.net.command(program);
    command.args(arguments);
    let shown = format!("{program} {}", arguments.join(" "));
    let output = process::output(command, limit).context(shown.clone())?;
    // nfs-ls and nfs-cat print some errors and still exit 0.
    if !output.status.success() || output.stderr.to_lowercase().contains("failed") {
        bail!("{shown}: {}\n{}", output.status, output.stderr);
    }
    Ok(output)
}

/// Paths as `nfs-ls -R` shows them, without the leading slash.
pub fn list(bed: &Bed, path: &str) -> Result<BTreeSet<String>> {
    let listing = tool(bed, "nfs-ls", &["-R", &bed.url(path)], Duration::from_secs(120))?;
    let names = listing
        .text()
        .lines()
        .filter_map(|line| line.split_whitespace().last().map(|name| name.trim_start_matches('/').to_owned()))
        .collect();
    Ok(names)
}

pub fn copy(bed: &Bed, from: &str, to: &str, limit: Duration) -> Result<()> {
    tool(bed, "nfs-cp", &[from, to], limit).map(drop)
}

/// The client for whole trees, compiled once a run.
fn nfstree(bed: &Bed) -> Result<PathBuf> {
    let binary = bed.folder().join("nfstree");
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/e2e/nfstree.c");
    let mut command = Command::new("cc");
    command.arg("-O1").arg("-o").arg(&binary).arg(source).arg("-lnfs");
    process::run(command, Duration::from_secs(60))?;
    Ok(binary)
}

fn tree(bed: &Bed, files: u32) -> Result<()> {
    const PER_FOLDER: u32 = 50;
    let nfstree = nfstree(bed)?;
    let nfstree = nfstree.to_str().context("a plain path")?;
    let local = bed.folder().join("tree");
    let mut random = Random(u64::from(files));
    for index in 0..files {
        let folder = local.join(format!("d{}/e", index / PER_FOLDER));
        fs::create_dir_all(&folder)?;
        // Sizes around the block and segment limits, an empty file among them.
        let size = [0, 1, 1447, 1448, 1449, 4096, 20_000, 65_535, 65_537][index as usize % 9];
        fs::write(folder.join(format!("file {index}")), random.bytes(size))?;
    }
    let source = local.to_str().context("a plain path")?;
    let limit = Duration::from_secs(600);
    let started = Instant::now();
    tool(bed, nfstree, &["put", source, &bed.url("")], limit).context("writing the tree")?;
    let wrote = started.elapsed();
    compare_trees(&local, &bed.export()).context("on the host after writing")?;

    // nfs-ls splits nothing: names with a blank show their last word, so the listing is compared by count and by folders.
    let listed = tool(bed, "nfs-ls", &["-R", &bed.url("")], limit)?.text().lines().count();
    let expected = walk(&local)?.len();
    ensure!(listed == expected, "nfs-ls -R shows {listed} entries, there are {expected}");

    let started = Instant::now();
    let back = bed.folder().join("back");
    fs::create_dir(&back)?;
    tool(bed, nfstree, &["get", &bed.url(""), back.to_str().context("a plain path")?], limit).context("reading the tree")?;
    let read = started.elapsed();
    compare_trees(&local, &back).context("read back")?;
    let sample = "/d0/e/file 8";
    let shown = tool(bed, "nfs-cat", &[&bed.url(sample)], Duration::from_secs(60))?;
    ensure!(shown.stdout == fs::read(local.join(&sample[1..]))?, "nfs-cat shows other bytes than the file has");

    let started = Instant::now();
    tool(bed, nfstree, &["rm", &bed.url("")], limit).context("deleting the tree")?;
    let deleted = started.elapsed();
    ensure!(walk(&bed.export())?.is_empty(), "the host still has {:?}", walk(&bed.export())?);
    println!("    {files} files: written {wrote:.1?}, read {read:.1?}, deleted {deleted:.1?}");
    Ok(())
}

fn large_file(bed: &Bed, size: u64) -> Result<()> {
    let local = bed.folder().join("large");
    let back = bed.folder().join("large.back");
    random_file(&local, size)?;
    // A transfer slower than this is a stall, not a transfer.
    let limit = Duration::from_secs(60 + size / (1 << 20));
    let started = Instant::now();
    copy(bed, local.to_str().context("a plain path")?, &bed.url("/large"), limit)?;
    let wrote = started.elapsed();
    compare_files(&local, &bed.export().join("large")).context("on the host after writing")?;
    let started = Instant::now();
    copy(bed, &bed.url("/large"), back.to_str().context("a plain path")?, limit)?;
    let read = started.elapsed();
    compare_files(&local, &back).context("read back")?;
    let rate = |time: Duration| size as f64 / 1e6 / time.as_secs_f64();
    println!("    {} MiB: written at {:.0} MB/s, read at {:.0} MB/s", size >> 20, rate(wrote), rate(read));
    Ok(())
}

/// xorshift64*: fast and repeatable.
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    pub fn bytes(&mut self, count: usize) -> Vec<u8> {
        let mut bytes: Vec<u8> = (0..count.div_ceil(8)).flat_map(|_| self.next().to_le_bytes()).collect();
        bytes.truncate(count);
        bytes
    }
}

/// A file in which each 64 KiB piece is unlike every other one, at memory speed: one random piece, stamped.
pub fn random_file(path: &Path, size: u64) -> Result<()> {
    const PIECE: usize = 64 << 10;
    let mut piece = Random(size | 1).bytes(PIECE);
    let mut file = BufWriter::with_capacity(1 << 20, File::create(path)?);
    let mut written = 0;
    while written < size {
        for stamp in piece.chunks_exact_mut(4096) {
            stamp[..8].copy_from_slice(&written.to_le_bytes());
        }
        let count = (size - written).min(PIECE as u64) as usize;
        file.write_all(&piece[..count])?;
        written += count as u64;
    }
    Ok(file.flush()?)
}

pub fn compare_files(left: &Path, right: &Path) -> Result<()> {
    let (mut a, mut b) = (File::open(left)?, File::open(right)?);
    let (length, other) = (a.metadata()?.len(), b.metadata()?.len());
    ensure!(length == other, "{} has {length} bytes, {} has {other}", left.display(), right.display());
    let (mut left_piece, mut right_piece) = (vec![0; 1 << 20], vec![0; 1 << 20]);
    let mut at = 0;
    while at < length {
        let count = (length - at).min(left_piece.len() as u64) as usize;
        a.read_exact(&mut left_piece[..count])?;
        b.read_exact(&mut right_piece[..count])?;
        if left_piece[..count] != right_piece[..count] {
            let first = left_piece.iter().zip(&right_piece).position(|(a, b)| a != b).unwrap_or(0);
            bail!("{} and {} differ from byte {}", left.display(), right.display(), at + first as u64);
        }
        at += count as u64;
    }
    Ok(())
}

/// Relative paths of everything under a folder.
pub fn walk(root: &Path) -> Result<BTreeSet<PathBuf>> {
    let mut found = BTreeSet::new();
    let mut open = vec![root.to_owned()];
    while let Some(folder) = open.pop() {
        for entry in fs::read_dir(&folder)? {
            let path = entry?.path();
            if path.symlink_metadata()?.is_dir() {
                open.push(path.clone());
            }
            found.insert(path.strip_prefix(root)?.to_owned());
        }
    }
    Ok(found)
}

fn compare_trees(left: &Path, right: &Path) -> Result<()> {
    let (a, b) = (walk(left)?, walk(right)?);
    if let Some(odd) = a.symmetric_difference(&b).next() {
        bail!("{} is only in one of the trees ({} and {} entries)", odd.display(), a.len(), b.len());
    }
    for path in a.iter().filter(|path| left.join(path).is_file()) {
        compare_files(&left.join(path), &right.join(path))?;
    }
    Ok(())
}
