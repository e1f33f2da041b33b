//! Text scripts of calls, replayed by every connection.
//!
//! One call a line: `null`, `getattr FILE`, `lookup FILE`, `read FILE OFFSET BYTES`, `write FILE OFFSET BYTES [STABLE]`,
//! `commit FILE [OFFSET BYTES]`, `readdirplus`. FILE is the number of a file of the working set, BYTES and OFFSET take k, m and g, STABLE
//! is unstable, data-sync or file-sync. `repeat N` to `end` repeats what is between; `#` begins a comment.

use std::fmt;
use std::sync::Arc;

use super::options::IO_BYTES_MAX;
use super::protocol::{Operation, Verb};
use super::workload::Source;
use crate::control::load_cli::parse_size;

/// Calls of one script, its repetitions written out.
pub const CALLS_MAX: usize = 4 << 20;
/// `repeat` inside `repeat`.
const NESTING_MAX: usize = 8;

/// A line that is none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ScriptError {
    /// From 1.
    pub line: usize,
    /// What was found and what is allowed.
    pub message: String,
}

impl fmt::Display for ScriptError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.line, self.message)
    }
}

/// The calls of `text`, about files below `files`.
///
/// # Errors
/// The first wrong line.
pub fn parse(text: &str, files: u32) -> Result<Vec<Operation>, ScriptError> {
    // The calls so far, and the blocks that are open: line, count, where in the calls they begin.
    let mut calls: Vec<Operation> = Vec::new();
    let mut blocks: Vec<(usize, usize, usize)> = Vec::new();
    let mut last = 0;
    for (number, line) in text.lines().enumerate().map(|(at, line)| (at + 1, line)) {
        last = number;
        let wrong = |message: String| ScriptError { line: number, message };
        let words: Vec<&str> = line.split('#').next().unwrap_or("").split_whitespace().collect();
        match words[..] {
            [] => {}
            ["repeat", count] => {
                let count = count.parse().ok().filter(|count| *count >= 1);
                let count = count.ok_or_else(|| wrong(format!("found {line:?}, allowed repeat N with N of at least 1")))?;
                if blocks.len() >= NESTING_MAX {
                    return Err(wrong(format!("found repeat inside {NESTING_MAX} others, allowed fewer")));
                }
                blocks.push((number, count, calls.len()));
            }
            ["end"] => {
                let (_, count, begin) = blocks.pop().ok_or_else(|| wrong("found end, allowed after repeat".into()))?;
                let block = calls[begin..].to_vec();
                if (count - 1).saturating_mul(block.len()).saturating_add(calls.len()) > CALLS_MAX {
                    return Err(wrong(format!("found more than {CALLS_MAX} calls with all repetitions, allowed fewer")));
                }
                (1..count).for_each(|_| calls.extend_from_slice(&block));
            }
            _ => calls.push(call(&words, files).map_err(|allowed| wrong(format!("found {:?}, allowed {allowed}", line.trim())))?),
        }
        if calls.len() > CALLS_MAX {
            return Err(wrong(format!("found more than {CALLS_MAX} calls, allowed fewer")));
        }
    }
    if let Some((line, _, _)) = blocks.pop() {
        return Err(ScriptError { line, message: "found repeat without end, allowed with".into() });
    }
    if calls.is_empty() {
        return Err(ScriptError { line: last.max(1), message: "found no call, allowed at least one".into() });
    }
    Ok(calls)
}

/// `Err`: what is allowed.
fn call(words: &[&str], files: u32) -> Result<Operation, String> {
    let file = |word: &str| {
        let number = word.parse().ok().filter(|number| *number < files);
        number.ok_or(format!("a file below {files} (--files)"))
    };
    let bytes = |word: &str| {
        let count = parse_size(word).ok().filter(|count| (1..=IO_BYTES_MAX).contains(count));
        count.map(|count| count as u32).ok_or(format!("1 to {IO_BYTES_MAX} bytes"))
    };
    let offset = |word: &str| parse_size(word).map_err(|_| "an offset such as 65536 or 64k".to_owned());
    let access = |verb, number: &str, at: &str, count: &str, stable| {
        Ok(Operation { verb, file: file(number)?, offset: offset(at)?, count: bytes(count)?, stable })
    };
    match *words {
        ["null"] => Ok(Operation::of(Verb::Null, 0)),
        ["readdirplus"] => Ok(Operation::of(Verb::ReadDirPlus, 0)),
        ["getattr", number] => Ok(Operation::of(Verb::Getattr, file(number)?)),
        ["lookup", number] => Ok(Operation::of(Verb::Lookup, file(number)?)),
        ["commit", number] => Ok(Operation::of(Verb::Commit, file(number)?)),
        ["commit", number, at, count] => access(Verb::Commit, number, at, count, 0),
        ["read", number, at, count] => access(Verb::Read, number, at, count, 0),
        ["write", number, at, count] => access(Verb::Write, number, at, count, 0),
        ["write", number, at, count, stable] => {
            let words = ["unstable", "data-sync", "file-sync"];
            let stable = words.iter().position(|word| *word == stable).ok_or("unstable, data-sync or file-sync")?;
            access(Verb::Write, number, at, count, stable as u32)
        }
        _ => Err("null, getattr FILE, lookup FILE, read FILE OFFSET BYTES, write FILE OFFSET BYTES [STABLE], \
                  commit FILE [OFFSET BYTES], readdirplus, repeat N, end"
            .into()),
    }
}

/// A script in the hands of several connections, each at its own place.
pub struct Replay {
    calls: Arc<[Operation]>,
    at: Vec<usize>,
    /// Through once; else from the start again.
    once: bool,
}

impl Replay {
    pub fn new(calls: Arc<[Operation]>, connections: usize, once: bool) -> Replay {
        Replay { calls, at: vec![0; connections], once }
    }
}

impl Source for Replay {
    fn next(&mut self, stream: usize) -> Option<Operation> {
        let at = &mut self.at[stream];
        if *at == self.calls.len() {
            if self.once {
                return None;
            }
            *at = 0;
        }
        *at += 1;
        self.calls.get(*at - 1).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_of_line_is_read() {
        let text = "# a comment\n\nnull\nrepeat 2\n  read 1 64k 4k  # twice\n  repeat 2\ngetattr 0\nend\nend\nlookup 2\n\
                    write 2 0 5 file-sync\nwrite 0 0 5\ncommit 2\ncommit 2 0 1m\nreaddirplus\n";
        let calls = parse(text, 3).unwrap();
        let verbs: Vec<&str> = calls.iter().map(|call| call.verb.name()).collect();
        let expected = "NULL READ GETATTR GETATTR READ GETATTR GETATTR LOOKUP WRITE WRITE COMMIT COMMIT READDIRPLUS";
        assert_eq!(verbs.join(" "), expected);
        assert_eq!((calls[1].file, calls[1].offset, calls[1].count), (1, 65_536, 4096));
        assert_eq!((calls[8].stable, calls[9].stable, calls[11].count), (2, 0, 1 << 20));
    }

    #[test]
    fn a_wrong_line_is_named_with_what_is_allowed() {
        let wrong = |text: &str| parse(text, 3).unwrap_err().to_string();
        assert_eq!(wrong("null\nread 3 0 4k"), "2: found \"read 3 0 4k\", allowed a file below 3 (--files)");
        assert!(wrong("reed 1 0 4k").starts_with("1: found \"reed 1 0 4k\", allowed null, getattr FILE"));
        assert!(wrong("read 1 0 0").contains("allowed 1 to"));
        assert!(wrong("read 1 x 4k").contains("allowed an offset"));
        assert!(wrong("write 1 0 4k firm").contains("allowed unstable, data-sync or file-sync"));
        assert!(wrong("null\nrepeat 0").starts_with("2: found"));
        assert!(wrong("null\nend").starts_with("2: found end"));
        assert!(wrong("null\nrepeat 3\nnull").starts_with("2: found repeat without end"));
        assert!(wrong("# nothing\n").contains("found no call"));
        assert!(wrong("repeat 3000\nrepeat 3000\nnull\nend\nend").starts_with("5: found more than"));
    }

    #[test]
    fn each_connection_has_its_own_place() {
        let calls: Arc<[Operation]> = parse("null\ngetattr 0", 1).unwrap().into();
        let mut once = Replay::new(Arc::clone(&calls), 2, true);
        let verbs: Vec<_> = [0, 1, 0, 1, 0].map(|stream| once.next(stream).map(|call| call.verb)).into();
        assert_eq!(verbs, [Some(Verb::Null), Some(Verb::Null), Some(Verb::Getattr), Some(Verb::Getattr), None]);
        let mut again = Replay::new(calls, 1, false);
        assert_eq!((0..5).filter_map(|_| again.next(0)).filter(|call| call.verb == Verb::Null).count(), 3);
    }
}
