//! Holds the source to what ARCHITECTURE.md states: which room may import which, and where `unsafe` may stand.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// Room -> rooms it may import. The same table stands in ARCHITECTURE.md (`the_document_states_the_same_table`).
const MAY_IMPORT: &[(&str, &[&str])] = &[
    ("raw", &[]),
    ("counters", &[]),
    ("time", &[]),
    ("buf", &["raw"]),
    ("wire", &["buf", "counters"]),
    ("net", &["wire", "buf", "time", "counters"]),
    ("tcp", &["wire", "buf", "time", "counters"]),
    ("rpc", &["buf", "time", "counters"]),
    ("store", &["buf", "raw", "time", "counters"]),
    ("program", &["rpc", "store", "buf", "time", "counters"]),
    ("control", &["counters"]),
    ("shard", &["net", "tcp", "rpc", "program", "store", "wire", "buf", "time", "counters"]),
    ("serve", &["shard", "control", "net", "tcp", "rpc", "program", "store", "raw", "buf", "time", "counters"]),
    ("load", &["control", "net", "tcp", "rpc", "program", "wire", "raw", "buf", "time", "counters"]),
];

fn source_files(dir: &Path, into: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            source_files(&path, into);
        } else if path.extension().is_some_and(|ext| ext == "rs") {
            into.push(path);
        }
    }
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The room a file belongs to: the folder under `src`, or the file's own stem.
fn room_of(path: &Path) -> String {
    let relative = path.strip_prefix(root().join("src")).unwrap();
    let first = relative.components().next().unwrap().as_os_str().to_str().unwrap();
    first.trim_end_matches(".rs").to_string()
}

fn code_lines(text: &str) -> impl Iterator<Item = &str> {
    text.lines().map(|line| line.split("//").next().unwrap_or("")).filter(|line| !line.trim().is_empty())
}

/// Rooms named in `crate::room` or `crate::{room, ..}` paths.
fn imports(text: &str, rooms: &BTreeSet<&str>) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    let joined: String = code_lines(text).collect::<Vec<_>>().join("\n");
    for (at, _) in joined.match_indices("crate::") {
        // `$crate::` in a macro names the crate for its users, not an import of this file.
        if joined[..at].ends_with('$') {
            continue;
        }
        let rest = &joined[at + "crate::".len()..];
        let group = rest.strip_prefix('{').map(|rest| rest.split(';').next().unwrap_or(""));
        let candidates: Vec<&str> = match group {
            Some(group) => group.split([',', '{', '}', ' ', '\n']).map(|path| path.split("::").next().unwrap_or("")).collect(),
            None => vec![rest.split(|c: char| !c.is_alphanumeric() && c != '_').next().unwrap_or("")],
        };
        found.extend(candidates.into_iter().filter(|name| rooms.contains(name)).map(str::to_string));
    }
    found
}

#[test]
fn imports_only_go_down() {
    let allowed: BTreeMap<&str, &[&str]> = MAY_IMPORT.iter().copied().collect();
    let rooms: BTreeSet<&str> = allowed.keys().copied().collect();
    let mut files = Vec::new();
    source_files(&root().join("src"), &mut files);
    let mut wrong = Vec::new();
    let mut seen = 0;
    for file in &files {
        let room = room_of(file);
        if room == "lib" || room == "main" {
            continue;
        }
        let Some(may) = allowed.get(room.as_str()) else {
            wrong.push(format!("{}: room '{room}' is not in the table", file.display()));
            continue;
        };
        let text = fs::read_to_string(file).unwrap();
        for import in imports(&text, &rooms) {
            seen += 1;
            if import != room && !may.contains(&import.as_str()) {
                wrong.push(format!("{}: '{room}' imports '{import}'", file.display()));
            }
        }
    }
    assert!(seen > 20, "the scan found only {seen} imports: it does not see the code any more");
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn unsafe_stands_only_in_its_room() {
    let mut files = Vec::new();
    source_files(&root().join("src"), &mut files);
    let mut wrong = Vec::new();
    for file in files {
        if room_of(&file) == "raw" {
            continue;
        }
        let text = fs::read_to_string(&file).unwrap();
        let words = |line: &str| line.split(|c: char| !c.is_alphanumeric() && c != '_').any(|word| word == "unsafe");
        if code_lines(&text).any(words) {
            wrong.push(file.display().to_string());
        }
    }
    assert!(wrong.is_empty(), "unsafe outside src/raw: {}", wrong.join(", "));
}

/// Where time and chance are handed in: a run is the same for the same input and seed.
const WITHOUT_CLOCK: [&str; 3] = ["net", "tcp", "wire"];

/// What tells of the machine's time, or of chance.
const CLOCKS_AND_CHANCE: [&str; 10] = [
    "std::time::Instant",
    "Instant::now",
    "SystemTime",
    "UNIX_EPOCH",
    "clock_gettime",
    "rand",
    "getrandom",
    "thread_rng",
    "fastrand",
    "RandomState",
];

/// Without comments, and without the tests that stand at a file's foot.
fn shipped_lines(text: &str) -> impl Iterator<Item = &str> {
    code_lines(text.split("#[cfg(test)]\nmod tests {").next().unwrap())
}

/// Whether `line` has `words` and not as a part of other names.
fn names(line: &str, words: &str) -> bool {
    let part_of_a_name = |c: char| c.is_alphanumeric() || c == '_';
    line.match_indices(words).any(|(at, _)| {
        let rest = &line[at + words.len()..];
        !line[..at].ends_with(part_of_a_name) && !rest.starts_with(part_of_a_name)
    })
}

#[test]
fn the_protocols_read_no_clock_and_draw_no_lots() {
    let mut files = Vec::new();
    source_files(&root().join("src"), &mut files);
    let is_test = |path: &Path| {
        let mut parts = path.strip_prefix(root()).unwrap().components();
        parts.any(|part| ["tests", "tests.rs"].iter().any(|name| part.as_os_str() == *name))
    };
    files.retain(|file| WITHOUT_CLOCK.contains(&room_of(file).as_str()) && !is_test(file));
    assert!(files.len() > 40, "the scan found only {} files", files.len());
    let mut wrong = Vec::new();
    for file in files {
        let text = fs::read_to_string(&file).unwrap();
        for line in shipped_lines(&text) {
            // `use std::time::{Duration, Instant}` names it, too.
            let imported = line.contains("std::time::{") && names(line, "Instant");
            let found = CLOCKS_AND_CHANCE.iter().any(|words| names(line, words));
            if found || imported {
                wrong.push(format!("{}: {}", file.display(), line.trim()));
            }
        }
    }
    assert!(wrong.is_empty(), "a clock or chance of its own:\n{}", wrong.join("\n"));
}

#[test]
fn the_document_states_the_same_table() {
    let document = fs::read_to_string(root().join("ARCHITECTURE.md")).unwrap();
    for (room, may) in MAY_IMPORT {
        let list = if may.is_empty() { "nothing".to_string() } else { may.join(", ") };
        let row = format!("| {room} | {list} |");
        assert!(document.contains(&row), "ARCHITECTURE.md lacks the row: {row}");
    }
}

#[test]
fn the_way_of_one_read_names_functions_that_exist() {
    let document = fs::read_to_string(root().join("ARCHITECTURE.md")).unwrap();
    let section = document.split("## The way of one READ").nth(1).expect("the section exists");
    let section = section.split("\n## ").next().unwrap();
    let mut files = Vec::new();
    source_files(&root().join("src"), &mut files);
    source_files(&root().join("dpdk"), &mut files);
    let sources: Vec<(String, String)> = files
        .iter()
        .map(|path| (path.strip_prefix(root()).unwrap().display().to_string(), fs::read_to_string(path).unwrap()))
        .collect();
    let mut named = 0;
    // Each step is written `path/file.rs: function`.
    for piece in section.split('`').skip(1).step_by(2) {
        let Some((file, function)) = piece.split_once(": ") else { continue };
        let (_, text) = sources
            .iter()
            .find(|(path, _)| path == file)
            .unwrap_or_else(|| panic!("ARCHITECTURE.md names {file}, which is not there"));
        let name = function.rsplit("::").next().unwrap();
        assert!(text.contains(&format!("fn {name}")), "{file} has no function {name}");
        named += 1;
    }
    assert!(named >= 12, "only {named} steps are named");
}
