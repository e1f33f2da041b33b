//! Holds docs/rfc to the tests it names: every row names tests that exist, or says why there is none.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// What the RFCs without numbers of their own ask for: the section, MUST or SHOULD where it says so, and a word to tell them apart.
const REQUIREMENTS: [(&str, &[&str]); 5] = [
    (
        "2018",
        &[
            "2 MUST NOT",
            "3",
            "4 MUST NOT",
            "4 SHOULD all",
            "4 text",
            "4 SHOULD ACK",
            "4 SHOULD bear",
            "4 MUST first",
            "4 SHOULD many",
            "4 SHOULD repeat",
            "5 SHOULD record",
            "5 MUST head",
            "5 SHOULD forget",
            "5.1 MUST",
            "5.1 growth",
            "5.1 MUST ignore",
            "8 MUST newest",
            "8 MUST NOT old",
            "8 MUST NOT",
            "8 harm",
        ],
    ),
    (
        "5961",
        &[
            "3.2-1 MUST",
            "3.2-2 MUST",
            "3.2-3 MUST challenge",
            "3.2-3 MUST drop",
            "3.2 MUST SYN-SENT",
            "3.2 SYN-RECEIVED",
            "4.2 MUST challenge",
            "4.2 MUST drop",
            "5.2 MUST",
            "5.2 MUST discard",
            "5.2 MAX.SND.WND",
            "7 SHOULD",
            "7 SHOULD tunable",
            "7 MAY",
            "9",
        ],
    ),
    (
        "7323",
        &[
            "2.2 MUST both",
            "2.2 MUST NOT",
            "2.2 MUST ignore",
            "2.3 MUST 14",
            "2.3 MUST own",
            "2.3 SHOULD log",
            "2.3 in",
            "2.3 out",
            "2.4 MUST shrink",
            "2.4-1 sender",
            "2.4-2 sender",
            "2.4 receiver",
            "3.2 SYN",
            "3.2 MUST ignore",
            "3.2 MUST send",
            "3.2 SHOULD reset",
            "3.2 SHOULD drop",
            "3.2 MUST NOT",
            "3.2 MUST echo",
            "3.2 SHOULD zero",
            "3.2 MUST ignore echo",
            "4.1",
            "4.1 ambiguous",
            "4.2",
            "4.3-2",
            "4.3 B",
            "4.3 C",
            "5.2 MUST NOT",
            "5.2 MUST NOT learn",
            "5.3 R1",
            "5.3 R2",
            "5.3 R3",
            "5.3 R3 order",
            "5.3 R4, R5",
            "5.3 MUST once",
            "5.4 MUST slow",
            "5.4 MUST fast",
            "5.5",
            "7.1 SHOULD",
        ],
    ),
    (
        "8985",
        &[
            "4-1 MUST SACK",
            "4-1 MUST scoreboard",
            "4-2 MUST time",
            "4-2 chains",
            "4-3 RECOMMENDED",
            "6.2-1 SHOULD",
            "6.2-2",
            "6.2-3",
            "6.2-4 SHOULD zero",
            "6.2-4 SHOULD fraction",
            "6.2-4 SHOULD adapt",
            "6.2-4 MUST bound",
            "6.2-5",
            "6.2-5 lost copies",
            "6.3",
            "7.1",
            "7.2 SHOULD start",
            "7.2 SHOULD except",
            "7.2 PTO",
            "7.2 least",
            "7.2 RTO",
            "7.2 SHOULD 1 s",
            "7.2 MAY",
            "7.3 MUST one",
            "7.3 MUST sample",
            "7.3 SHOULD new",
            "7.3 SHOULD last",
            "7.3 MUST re-arm",
            "7.4.1",
            "7.4.2 MUST",
            "7.4.2 needless",
            "8 SHOULD",
            "9.3",
        ],
    ),
    (
        "9438",
        &[
            "4.2 ACK clock",
            "4.2 K",
            "4.2 target",
            "4.2 MUST NOT",
            "4.3 SHOULD W_est",
            "4.3 SHOULD alpha",
            "4.4 MUST",
            "4.5 MUST",
            "4.6 MUST",
            "4.6 SHOULD beta",
            "4.6 flight",
            "4.6 MUST cwnd",
            "4.6 MUST ECN",
            "4.6 MUST ECN minimum",
            "4.6 MUST ECN beyond",
            "4.7 SHOULD",
            "4.7 SHOULD off",
            "4.8 ssthresh",
            "4.8 K",
            "4.8 SHOULD",
            "4.9.1 MAY",
            "4.9.2 MAY",
            "4.9.2 later",
            "4.10 MUST",
            "4.10 SHOULD",
            "4.10 W_max",
            "5.1 SHOULD",
            "5.8",
        ],
    ),
];

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

/// What is wrong with one cell; nothing: `None`. Three forms there are: tests, in backquotes and first; "Refused: " or "Elsewhere: " and a
/// reason; and "Refused where" with the case, a colon, the reason, and a test of what is done in that case or in all others.
fn complaint(held_by: &str, scripts: &BTreeSet<String>) -> Option<String> {
    let mut named = held_by.split('`').skip(1).step_by(2).peekable();
    let partly = held_by.strip_prefix("Refused where ").map(|rest| rest.split_once(": ").unwrap_or_default());
    let reason = ["Refused: ", "Elsewhere: "].into_iter().find_map(|word| held_by.strip_prefix(word));
    if let Some(reason) = reason.or(partly.map(|(_, reason)| reason)) {
        if reason.trim().len() < 10 {
            return Some("a reason too short to be one".to_string());
        }
        if partly.is_some_and(|(case, _)| case.contains('`') || !named.clone().any(is_test_name)) {
            return Some("a case without its colon, or without a test".to_string());
        }
        // A reason may name code, too.
        return named.filter(|name| is_test_name(name) || is_file(name)).find_map(|name| missing(name, scripts));
    }
    if !held_by.starts_with('`') || ["Refused", "Elsewhere"].into_iter().any(|word| held_by.contains(word)) {
        return Some("begins neither with a test nor as a reason does".to_string());
    }
    if named.peek().is_none() {
        return Some("names neither a test nor a reason".to_string());
    }
    named.find_map(|name| match is_test_name(name) {
        true => missing(name, scripts),
        false => Some(format!("'{name}' is no test")),
    })
}

/// A script's title, or `file.rs: function`.
fn is_test_name(name: &str) -> bool {
    name.starts_with("RFC ") || name.contains(": ")
}

fn is_file(name: &str) -> bool {
    name.ends_with(".rs") || name.ends_with(".md")
}

/// What does not exist of a test or a file that is named.
fn missing(name: &str, scripts: &BTreeSet<String>) -> Option<String> {
    if name.starts_with("RFC ") {
        return (!scripts.contains(name)).then(|| format!("no script is called '{name}'"));
    }
    let Some((file, function)) = name.split_once(": ") else {
        return (!root().join(name).is_file()).then(|| format!("there is no file {name}"));
    };
    let text = fs::read_to_string(root().join(file)).unwrap_or_default();
    (!runs(&text, function)).then(|| format!("{file} has no test {function} that runs"))
}

/// Whether a file has a function of this name that `cargo test` runs: not just any function, and none that is ignored. `proptest!` wants the
/// attribute, too.
fn runs(text: &str, function: &str) -> bool {
    text.match_indices(&format!("fn {function}(")).any(|(at, _)| {
        // Attributes and comments stand right above it.
        let above = text[..at].rsplit('\n').skip(1).map(str::trim);
        let own: Vec<&str> = above.take_while(|line| line.starts_with('#') || line.starts_with("//")).collect();
        own.contains(&"#[test]") && !own.iter().any(|line| line.starts_with("#[ignore"))
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
    // Some ask for two things; of the MAYs there is a row where one is taken that has conditions.
    let others = ["MUST-20 (b)", "MAY-2", "MAY-2 (2)", "REC-1"].map(str::to_string);
    let all: BTreeSet<String> = all.chain(others).collect();
    let missing: Vec<&String> = all.difference(&rows).collect();
    assert!(missing.is_empty(), "{missing:?}");
    let unknown: Vec<&String> = rows.difference(&all).collect();
    assert!(unknown.is_empty(), "{unknown:?}");
}

#[test]
fn every_other_requirement_has_one_row_and_every_row_is_known() {
    for (rfc, wanted) in REQUIREMENTS {
        let rows = rows(&root().join(format!("docs/rfc/{rfc}.md")));
        let rows: Vec<&str> = rows.iter().map(|(requirement, _)| requirement.as_str()).collect();
        let missing: Vec<&&str> = wanted.iter().filter(|wanted| !rows.contains(wanted)).collect();
        assert!(missing.is_empty(), "RFC {rfc} has no row for {missing:?}");
        let unknown: Vec<&&str> = rows.iter().filter(|row| !wanted.contains(row)).collect();
        assert!(unknown.is_empty(), "RFC {rfc}: the list of requirements in tests/conformance.rs lacks {unknown:?}");
        assert_eq!(rows.iter().collect::<BTreeSet<_>>().len(), rows.len(), "RFC {rfc} has a row twice");
    }
}

#[test]
fn a_row_can_be_wrong() {
    let scripts = scripts();
    assert!(scripts.len() >= 150, "{} scripts", scripts.len());
    for held_by in [
        "",
        "somehow",
        "Refused:",
        "`RFC 1: no such script`",
        "`src/tcp/rtt.rs: sample`",
        "`src/tcp/rtt.rs: nothing`",
        "`connect`",
        "Refused: as in Linux, and shown by `RFC 1: no such script`",
        "Elsewhere: `connect` is right about it: `src/tcp/rtt.rs: nothing`",
        "Elsewhere: `src/no/such/file.rs` looks after it",
        "Refused, as in Linux: `src/tcp/tests/script.rs: scripts`",
        "Refused for other reasons: `src/tcp/tests/script.rs: scripts`",
        "Refused where it is asked for: as in Linux, and no test shows it",
        "Refused where `src/tcp/tests/script.rs: scripts` shows it",
        "Refused where it is asked for",
        "as in Linux: `src/tcp/tests/script.rs: scripts`",
        "`src/tcp/tests/script.rs: scripts` Refused where it is asked for",
    ] {
        assert!(complaint(held_by, &scripts).is_some(), "{held_by}");
    }
    for held_by in [
        "Elsewhere: `connect` of `src/tcp/endpoint.rs` sees to it",
        "Refused where it is asked for: as in Linux. `src/tcp/tests/script.rs: scripts`",
        "`src/tcp/tests/script.rs: scripts` and nothing else",
    ] {
        assert_eq!(complaint(held_by, &scripts), None);
    }
}

#[test]
fn a_function_that_is_not_run_is_no_test() {
    let text = "
        fn beside() {}

        #[test]
        fn plain() {}

        /// Why.
        #[test]
        #[should_panic(expected = \"so\")]
        fn told() {}

        #[test]
        #[ignore = \"slow\"]
        fn ignored() {}

        #[ignore]
        #[test]
        fn ignored_above() {}

        // #[test]
        fn remarked() {}

        #[test]
        fn before() {}
        fn close() {}

        proptest! {
            fn within() {}

            #[test]
            fn property(n in 0..9) {}
        }

        fn behind() {}
    ";
    for name in ["plain", "told", "before", "property"] {
        assert!(runs(text, name), "{name}");
    }
    for name in ["beside", "ignored", "ignored_above", "remarked", "close", "within", "behind", "absent"] {
        assert!(!runs(text, name), "{name}");
    }
}
