//! Holds docs/rfc to the tests it names: every row names tests that exist, or says why there is none.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn files(folder: &str, extension: &str) -> Vec<PathBuf> {
    let mut files: Vec<PathBuf> = fs::read_dir(root().join(folder)).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.retain(|path| path.extension().is_some_and(|found| found == extension));
    files.sort();
    files
}

/// Titles of the text scripts.
fn scripts() -> BTreeSet<String> {
    let texts = files("src/tcp/tests/scripts", "tcp").into_iter().map(|path| fs::read_to_string(path).unwrap());
    let titles = |text: String| text.lines().filter_map(|line| Some(line.strip_prefix("=== ")?.to_string())).collect::<Vec<_>>();
    texts.flat_map(titles).collect()
}

/// The rows of a file's table: requirement, and what holds it.
fn rows(path: &Path) -> Vec<(String, String)> {
    let text = fs::read_to_string(path).unwrap();
    let table = text.lines().filter(|line| line.starts_with('|')).skip(2);
    table
        .map(|line| {
            let cells: Vec<&str> = line.trim_matches('|').splitn(3, '|').map(str::trim).collect();
            assert_eq!(cells.len(), 3, "{}: {line}", path.display());
            (cells[0].to_string(), cells[2].to_string())
        })
        .collect()
}

/// What is wrong with one cell; nothing: `None`.
fn complaint(held_by: &str, scripts: &BTreeSet<String>) -> Option<String> {
    for reason in ["Refused: ", "Elsewhere: "] {
        if let Some(reason) = held_by.strip_prefix(reason) {
            return (reason.trim().len() < 10).then(|| "a reason too short to be one".to_string());
        }
    }
    let named: Vec<&str> = held_by.split('`').skip(1).step_by(2).collect();
    if named.is_empty() {
        return Some("names neither a test nor a reason".to_string());
    }
    named.into_iter().find_map(|name| {
        if name.starts_with("RFC ") {
            return (!scripts.contains(name)).then(|| format!("no script is called '{name}'"));
        }
        let Some((file, function)) = name.split_once(": ") else { return Some(format!("'{name}' is no test")) };
        let text = fs::read_to_string(root().join(file)).unwrap_or_default();
        let at = text.find(&format!("fn {function}("));
        // A test, not just any function.
        let before = at.and_then(|at| text[..at].rsplit("\n\n").next()).unwrap_or("");
        let is_test = before.contains("#[test]") || text[..at.unwrap_or(0)].rfind("proptest!").is_some();
        (at.is_none() || !is_test).then(|| format!("{file} has no test {function}"))
    })
}

#[test]
fn every_row_names_a_test_that_exists_or_a_reason() {
    let scripts = scripts();
    let mut wrong = Vec::new();
    let mut count = 0;
    for path in files("docs/rfc", "md") {
        let name = path.file_stem().unwrap().to_str().unwrap().to_string();
        if name == "README" {
            continue;
        }
        for (requirement, held_by) in rows(&path) {
            count += 1;
            wrong.extend(complaint(&held_by, &scripts).map(|complaint| format!("RFC {name}, {requirement}: {complaint}")));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(count > 150, "only {count} rows are seen");
}

#[test]
fn every_numbered_requirement_of_rfc_9293_has_its_row() {
    let rows: BTreeSet<String> = rows(&root().join("docs/rfc/9293.md")).into_iter().map(|(requirement, _)| requirement).collect();
    let all = (1..=69).map(|n| format!("MUST-{n}")).chain((1..=31).map(|n| format!("SHLD-{n}")));
    let missing: Vec<String> = all.filter(|requirement| !rows.contains(requirement)).collect();
    assert!(missing.is_empty(), "{missing:?}");
}

#[test]
fn a_row_can_be_wrong() {
    let scripts = scripts();
    assert!(scripts.len() >= 150, "{} scripts", scripts.len());
    for held_by in ["", "somehow", "Refused:", "`RFC 1: no such script`", "`src/tcp/rtt.rs: sample`", "`src/tcp/rtt.rs: nothing`"]
    {
        assert!(complaint(held_by, &scripts).is_some(), "{held_by}");
    }
}
