//! Reading a TOML document so that every complaint names file, line, column, key, what was found and what is allowed.
//!
//! A [`Section`] hands out the keys of one table. Each question names its [`Rule`](super::value::Rule); the answer is a typed
//! value, and what could not be read is noted in the [`Document`] instead of ending the reading, so that one run shows
//! all the mistakes of a file. Keys that were never asked for are unknown and refused.
//!
//! Deliberately not here: which keys exist (`mod.rs`, `limits.rs`) and what they mean together (`check.rs`).

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::ops::Range;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::value::{Rule, Toml};

/// One thing that is wrong with a configuration file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// The file as the operator named it.
    pub file: String,
    /// Line and column, both from 1; none when the file as a whole is meant.
    pub position: Option<(usize, usize)>,
    /// The key with its table, such as `port[0].mtu`; empty for TOML syntax errors.
    pub key: String,
    /// What was found and what is allowed.
    pub message: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.file)?;
        if let Some((line, column)) = self.position {
            write!(f, ":{line}:{column}")?;
        }
        if !self.key.is_empty() {
            write!(f, ": {}", self.key)?;
        }
        write!(f, ": {}", self.message)
    }
}

/// Everything that is wrong with a configuration file, in the order of its lines. One line each when displayed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problems(pub Vec<Problem>);

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, problem) in self.0.iter().enumerate() {
            if index > 0 {
                writeln!(f)?;
            }
            write!(f, "{problem}")?;
        }
        Ok(())
    }
}

impl std::error::Error for Problems {}

/// One key of the schema, as the reader met it: the annotated sample file is tested against these.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Key {
    /// Table and key, `port.mtu`.
    pub path: String,
    /// The text after "allowed" in this key's errors.
    pub allowed: String,
    /// The default as TOML; none for a key without one.
    pub default: Option<String>,
}

/// A configuration file's text with what reading it has found out.
pub struct Document<'t> {
    file: String,
    text: &'t str,
    spans: HashMap<String, Range<usize>>,
    refused: HashSet<String>,
    problems: Vec<(usize, Problem)>,
    pub(super) keys: Vec<Key>,
}

impl<'t> Document<'t> {
    /// Starts on `text`; `file` is only for messages.
    pub fn new(file: &str, text: &'t str) -> Self {
        Self {
            file: file.to_owned(),
            text,
            spans: HashMap::new(),
            refused: HashSet::new(),
            problems: Vec::new(),
            keys: Vec::new(),
        }
    }

    /// The document's root table, or every syntax error that TOML has with it.
    pub fn syntax(&mut self) -> Result<Spanned<DeTable<'t>>, Problems> {
        let (table, errors) = DeTable::parse_recoverable(self.text);
        if errors.is_empty() {
            return Ok(table);
        }
        for error in errors {
            let span = error.span().unwrap_or(0..0);
            let message = match self.snippet(span.clone()) {
                found if found.is_empty() => format!("not TOML: {}", error.message()),
                found => format!("not TOML: found {found}: {}", error.message()),
            };
            self.note("", span, message);
        }
        Err(self.take_problems())
    }

    /// Notes that the value of `key` is not among what is allowed.
    pub fn refuse(&mut self, key: &str, allowed: &str) {
        let found = match self.spans.get(key) {
            Some(span) => self.snippet(span.clone()),
            None => "nothing".to_owned(),
        };
        self.refuse_found(key, &found, allowed);
    }

    /// The same where what was found is not what stands in the file: a default, a sum.
    pub fn refuse_found(&mut self, key: &str, found: &str, allowed: &str) {
        let span = self.nearest_span(key);
        self.refused.insert(key.to_owned());
        self.note(key, span, format!("found {found}, allowed {allowed}"));
    }

    /// True when none of `keys` has been refused, so that a check across them says something new.
    pub fn sound(&self, keys: &[&str]) -> bool {
        !keys.iter().any(|key| self.refused.contains(*key))
    }

    /// The line a key's value stands on; none when the key is absent.
    pub fn line(&self, key: &str) -> Option<usize> {
        self.spans.get(key).map(|span| self.position(span.start).0)
    }

    /// All problems so far, in the file's order.
    pub fn take_problems(&mut self) -> Problems {
        self.problems.sort_by_key(|(offset, _)| *offset);
        Problems(self.problems.drain(..).map(|(_, problem)| problem).collect())
    }

    pub(super) fn is_clean(&self) -> bool {
        self.problems.is_empty()
    }

    fn note(&mut self, key: &str, span: Range<usize>, message: String) {
        let problem =
            Problem { file: self.file.clone(), position: Some(self.position(span.start)), key: key.to_owned(), message };
        self.problems.push((span.start, problem));
    }

    /// The span of a key, or of the closest table around it that stands in the file.
    fn nearest_span(&self, key: &str) -> Range<usize> {
        let mut path = key;
        loop {
            if let Some(span) = self.spans.get(path) {
                return span.clone();
            }
            match path.rfind('.') {
                Some(dot) => path = &path[..dot],
                None => return 0..0,
            }
        }
    }

    fn position(&self, offset: usize) -> (usize, usize) {
        let before = self.text.get(..offset).unwrap_or(self.text);
        let line = before.matches('\n').count() + 1;
        let column = before.rsplit('\n').next().map_or(0, |rest| rest.chars().count()) + 1;
        (line, column)
    }

    /// What the file says at `span`: its first line, cut to a length that fits on a terminal.
    fn snippet(&self, span: Range<usize>) -> String {
        const CHARACTERS_MAX: usize = 60;
        let text = self.text.get(span).unwrap_or("");
        let line = text.lines().next().unwrap_or("");
        if line.len() == text.trim_end().len() && line.chars().count() <= CHARACTERS_MAX {
            return line.to_owned();
        }
        let cut: String = line.chars().take(CHARACTERS_MAX).collect();
        format!("{cut}...")
    }
}

/// One table of the document: asks for its keys by name and refuses the rest at [`Section::finish`].
pub struct Section<'d, 't> {
    pub(super) document: &'d mut Document<'t>,
    path: String,
    schema: &'static str,
    table: Option<&'d DeTable<'t>>,
    asked: Vec<&'static str>,
}

impl<'d, 't> Section<'d, 't> {
    /// The root table.
    pub fn root(document: &'d mut Document<'t>, table: &'d DeTable<'t>) -> Self {
        Self { document, path: String::new(), schema: "", table: Some(table), asked: Vec::new() }
    }

    /// Reads the table `key` (absent: as if empty, so that defaults apply) with `read`.
    pub fn table<T>(&mut self, key: &'static str, read: impl FnOnce(&mut Section<'_, 't>) -> T) -> T {
        self.asked.push(key);
        let mut inner = None;
        if let Some((at, value)) = self.lookup(key) {
            match value.get_ref() {
                DeValue::Table(table) => {
                    self.document.spans.insert(key.to_owned(), at);
                    inner = Some(table);
                }
                _ => {
                    self.document.spans.insert(key.to_owned(), value.span());
                    self.document.refuse(key, &format!("a table: [{key}]"));
                }
            }
        }
        self.read_table(key.to_owned(), key, inner, read)
    }

    /// Reads every table of the array `key` with `read`, which also gets the table's own path such as `port[0]`.
    pub fn tables<T>(&mut self, key: &'static str, mut read: impl FnMut(&mut Section<'_, 't>, &str) -> T) -> Vec<T> {
        self.asked.push(key);
        let allowed = format!("tables, each under its own [[{key}]]");
        let Some((at, value)) = self.lookup(key) else {
            return Vec::new();
        };
        self.document.spans.insert(key.to_owned(), at);
        let DeValue::Array(array) = value.get_ref() else {
            self.document.spans.insert(key.to_owned(), value.span());
            self.document.refuse(key, &allowed);
            return Vec::new();
        };
        let mut all = Vec::new();
        for (index, element) in array.iter().enumerate() {
            let path = format!("{key}[{index}]");
            self.document.spans.insert(path.clone(), element.span());
            match element.get_ref() {
                DeValue::Table(table) => {
                    all.push(self.read_table(path.clone(), key, Some(table), |section| read(section, &path)));
                }
                _ => self.document.refuse(&path, &allowed),
            }
        }
        all
    }

    fn read_table<T>(
        &mut self,
        path: String,
        schema: &'static str,
        table: Option<&'d DeTable<'t>>,
        read: impl FnOnce(&mut Section<'_, 't>) -> T,
    ) -> T {
        let mut section = Section { document: &mut *self.document, path, schema, table, asked: Vec::new() };
        let value = read(&mut section);
        section.finish();
        value
    }

    /// A key that may be left out. None when it is absent or was refused.
    pub fn optional<R: Rule>(&mut self, key: &'static str, rule: R) -> Option<R::Value> {
        self.ask(key, &rule, None)
    }

    /// A key that must be there. None when it was refused.
    pub fn required<R: Rule>(&mut self, key: &'static str, rule: R) -> Option<R::Value> {
        let value = self.ask(key, &rule, None);
        if self.table.is_none_or(|table| !table.contains_key(key)) {
            self.document.refuse(&self.path_of(key), &rule.allowed());
        }
        value
    }

    /// A key that exists but not beside what other keys of this table say.
    pub fn forbidden<R: Rule>(&mut self, key: &'static str, rule: R, allowed: &str) {
        self.register(key, &rule, None);
        if let Some((_, value)) = self.lookup(key) {
            let path = self.path_of(key);
            self.document.spans.insert(path.clone(), value.span());
            self.document.refuse(&path, allowed);
        }
    }

    /// A key with a default.
    pub fn or<R: Rule>(&mut self, key: &'static str, rule: R, default: R::Value) -> R::Value
    where
        R::Value: Toml,
    {
        self.ask(key, &rule, Some(default.toml())).unwrap_or(default)
    }

    /// Whether this key's value was read and found bad.
    pub fn refused(&self, key: &str) -> bool {
        !self.document.sound(&[&self.path_of(key)])
    }

    /// The full path of one of this table's keys.
    pub fn path_of(&self, key: &str) -> String {
        match self.path.as_str() {
            "" => key.to_owned(),
            path => format!("{path}.{key}"),
        }
    }

    fn lookup(&self, key: &str) -> Option<(Range<usize>, &'d Spanned<DeValue<'t>>)> {
        let (name, value) = self.table?.get_key_value(key)?;
        Some((name.span(), value))
    }

    fn register<R: Rule>(&mut self, key: &'static str, rule: &R, default: Option<String>) {
        self.asked.push(key);
        let path = format!("{}.{key}", self.schema);
        match self.document.keys.iter_mut().find(|known| known.path == path) {
            Some(known) => known.default = known.default.take().or(default),
            None => self.document.keys.push(Key { path, allowed: rule.allowed(), default }),
        }
    }

    fn ask<R: Rule>(&mut self, key: &'static str, rule: &R, default: Option<String>) -> Option<R::Value> {
        self.register(key, rule, default);
        let (_, value) = self.lookup(key)?;
        let path = self.path_of(key);
        self.document.spans.insert(path.clone(), value.span());
        match rule.read(value) {
            Ok(good) => Some(good),
            Err(refusals) => {
                self.document.refused.insert(path.clone());
                for refusal in refusals {
                    let element = format!("{path}{}", refusal.suffix);
                    self.document.spans.insert(element.clone(), refusal.span);
                    self.document.refuse(&element, &refusal.allowed);
                }
                None
            }
        }
    }

    /// Refuses every key that nobody asked for.
    pub fn finish(self) {
        let Some(table) = self.table else { return };
        for (name, _) in table.iter() {
            let key: &str = name.get_ref();
            if self.asked.contains(&key) {
                continue;
            }
            let allowed = match nearest(key, &self.asked) {
                Some(near) => format!("one of this table's keys; did you mean {near}?"),
                None => format!("one of {}", self.asked.join(", ")),
            };
            let path = self.path_of(key);
            self.document.note(&path, name.span(), format!("found an unknown key, allowed {allowed}"));
        }
    }
}

/// The known key that a typing mistake most likely meant.
fn nearest<'k>(key: &str, known: &[&'k str]) -> Option<&'k str> {
    const MISTAKES_MAX: usize = 2;
    if let Some(longer) = known.iter().find(|name| name.starts_with(key)) {
        return Some(longer);
    }
    let (distance, near) = known.iter().map(|name| (edit_distance(key, name), *name)).min()?;
    (distance <= MISTAKES_MAX && distance < near.len()).then_some(near)
}

/// Levenshtein distance: insertions, deletions and replacements of one character.
fn edit_distance(from: &str, to: &str) -> usize {
    let to: Vec<char> = to.chars().collect();
    let mut row: Vec<usize> = (0..=to.len()).collect();
    for (deleted, a) in from.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = deleted + 1;
        for (index, b) in to.iter().enumerate() {
            let replaced = diagonal + usize::from(a != *b);
            diagonal = row[index + 1];
            row[index + 1] = replaced.min(row[index] + 1).min(diagonal + 1);
        }
    }
    row[to.len()]
}
