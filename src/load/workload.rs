//! Which call comes next: a mix of calls over a working set, deterministic from a seed.
//!
//! Random accesses are aligned to their size and uniform over all blocks of all files. Sequential ones walk through the files
//! one after the other; each connection has a walk of its own, started at its share of the working set, as several clients
//! of one server have. Not here: when a call is made (`pacing`), what it looks like (`protocol`), scripts (`script`).

use super::protocol::{Operation, Verb};
use crate::net::memory_link::Random;

/// One kind of call in a mix.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Null,
    Getattr,
    Lookup,
    Read,
    RandomRead,
    Write,
    RandomWrite,
    Commit,
    ReadDirPlus,
    /// A connection for each call; in a mix of its own.
    Connect,
}

impl Kind {
    pub const ALL: [(Kind, &'static str); 10] = [
        (Kind::Null, "null"),
        (Kind::Getattr, "getattr"),
        (Kind::Lookup, "lookup"),
        (Kind::Read, "read"),
        (Kind::RandomRead, "randread"),
        (Kind::Write, "write"),
        (Kind::RandomWrite, "randwrite"),
        (Kind::Commit, "commit"),
        (Kind::ReadDirPlus, "readdirplus"),
        (Kind::Connect, "connect"),
    ];

    pub fn word(self) -> &'static str {
        Kind::ALL.iter().find(|(kind, _)| *kind == self).map_or("", |(_, word)| word)
    }

    /// Whether the files must have their data before it starts.
    pub fn reads(self) -> bool {
        matches!(self, Kind::Read | Kind::RandomRead)
    }
}

/// A mix: kinds with their shares, which add up to 100.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mix(pub Vec<(Kind, u32)>);

impl Mix {
    /// `randread`, or `randread=70,write=30`.
    ///
    /// # Errors
    /// What was found and what is allowed.
    pub fn parse(text: &str) -> Result<Mix, String> {
        let kinds: Vec<&str> = Kind::ALL.iter().map(|(_, word)| *word).collect();
        let kind = |word: &str| {
            let found = Kind::ALL.iter().find(|(_, known)| *known == word);
            found.map(|(kind, _)| *kind).ok_or(format!("found {word:?}, allowed one of {}", kinds.join(", ")))
        };
        if !text.contains('=') && !text.contains(',') {
            return Ok(Mix(vec![(kind(text)?, 100)]));
        }
        let mut mix = Vec::new();
        for part in text.split(',') {
            let (word, share) = part.split_once('=').ok_or(format!("found {part:?}, allowed KIND=PERCENT"))?;
            let share = share.parse().ok().filter(|share| (1..=100).contains(share));
            mix.push((kind(word)?, share.ok_or(format!("found {part:?}, allowed a share of 1 to 100 per cent"))?));
        }
        if mix.iter().any(|(kind, _)| *kind == Kind::Connect) {
            return Err(format!("found {text:?}, allowed connect alone: it closes what the others' calls are on"));
        }
        let sum: u32 = mix.iter().map(|(_, share)| share).sum();
        if sum == 100 { Ok(Mix(mix)) } else { Err(format!("found shares that add up to {sum}, allowed 100")) }
    }

    pub fn reads(&self) -> bool {
        self.0.iter().any(|(kind, _)| kind.reads())
    }

    /// Whether it is about files, or only about the server's root.
    pub fn needs_files(&self) -> bool {
        self.0.iter().any(|(kind, _)| !matches!(kind, Kind::Null | Kind::Connect))
    }

    /// Whether each call has a connection of its own.
    pub fn reconnects(&self) -> bool {
        self.0[..] == [(Kind::Connect, 100)]
    }

    pub fn to_text(&self) -> String {
        match &self.0[..] {
            [(kind, _)] => kind.word().to_owned(),
            mix => mix.iter().map(|(kind, share)| format!("{}={share}", kind.word())).collect::<Vec<_>>().join(","),
        }
    }
}

/// The shape of the working set and of the accesses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    pub files: u32,
    /// Bytes of each file.
    pub file_bytes: u64,
    /// Bytes of a READ or WRITE; at most `file_bytes`.
    pub io_bytes: u32,
    /// stable_how of a WRITE.
    pub stable: u32,
    /// WRITEs of a connection after which a COMMIT of the file comes; 0: none.
    pub commit_every: u32,
}

impl Shape {
    fn blocks_per_file(&self) -> u64 {
        (self.file_bytes / u64::from(self.io_bytes.max(1))).max(1)
    }

    fn blocks(&self) -> u64 {
        self.blocks_per_file() * u64::from(self.files.max(1))
    }
}

/// One connection's place in its walks.
#[derive(Clone, Copy, Default)]
struct Walk {
    read_block: u64,
    write_block: u64,
    writes: u32,
    /// The file of a COMMIT that is due.
    commit_due: Option<u32>,
}

/// What comes next.
pub trait Source {
    /// The next call of connection `stream`; `None`: it has none any more.
    fn next(&mut self, stream: usize) -> Option<Operation>;
}

/// A mix over a working set, for ever.
pub struct Workload {
    mix: Mix,
    shape: Shape,
    random: Random,
    walks: Vec<Walk>,
}

impl Workload {
    /// For the connections `first..first + count` of `total`; `seed` is the whole run's.
    pub fn new(mix: Mix, shape: Shape, seed: u64, first: usize, count: usize, total: usize) -> Workload {
        let walk = |nth: usize| {
            // Connections start evenly spread, so that they do not follow each other through the same blocks.
            let block = shape.blocks() * nth as u64 / total.max(1) as u64;
            Walk { read_block: block, write_block: block, ..Walk::default() }
        };
        Workload {
            mix,
            shape,
            random: Random::new(seed ^ (first as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15)),
            walks: (first..first + count).map(walk).collect(),
        }
    }

    fn pick(&mut self) -> Kind {
        if let [(kind, _)] = self.mix.0[..] {
            return kind;
        }
        let mut draw = self.random.below(100) as u32;
        for (kind, share) in &self.mix.0 {
            if draw < *share {
                return *kind;
            }
            draw -= share;
        }
        Kind::Null
    }

    fn access(&self, verb: Verb, block: u64) -> Operation {
        let per_file = self.shape.blocks_per_file();
        let size = self.shape.io_bytes;
        let stable = if verb == Verb::Write { self.shape.stable } else { 0 };
        Operation { verb, file: (block / per_file) as u32, offset: block % per_file * u64::from(size), count: size, stable }
    }

    fn write(&mut self, stream: usize, block: u64) -> Operation {
        let write = self.access(Verb::Write, block);
        let walk = &mut self.walks[stream];
        walk.writes += 1;
        if self.shape.commit_every > 0 && walk.writes >= self.shape.commit_every {
            walk.writes = 0;
            walk.commit_due = Some(write.file);
        }
        write
    }
}

impl Source for Workload {
    fn next(&mut self, stream: usize) -> Option<Operation> {
        if let Some(file) = self.walks[stream].commit_due.take() {
            return Some(Operation::of(Verb::Commit, file));
        }
        let blocks = self.shape.blocks();
        let file = |random: &mut Random, shape: &Shape| random.below(u64::from(shape.files.max(1))) as u32;
        Some(match self.pick() {
            Kind::Null => Operation::of(Verb::Null, 0),
            Kind::Connect => Operation::of(Verb::Connect, 0),
            Kind::Getattr => Operation::of(Verb::Getattr, file(&mut self.random, &self.shape)),
            Kind::Lookup => Operation::of(Verb::Lookup, file(&mut self.random, &self.shape)),
            Kind::Commit => Operation::of(Verb::Commit, file(&mut self.random, &self.shape)),
            Kind::ReadDirPlus => Operation::of(Verb::ReadDirPlus, 0),
            Kind::RandomRead => {
                let block = self.random.below(blocks);
                self.access(Verb::Read, block)
            }
            Kind::RandomWrite => {
                let block = self.random.below(blocks);
                self.write(stream, block)
            }
            Kind::Read => {
                let walk = &mut self.walks[stream];
                let block = walk.read_block;
                walk.read_block = (block + 1) % blocks;
                self.access(Verb::Read, block)
            }
            Kind::Write => {
                let walk = &mut self.walks[stream];
                let block = walk.write_block;
                walk.write_block = (block + 1) % blocks;
                self.write(stream, block)
            }
        })
    }
}

/// The working set's data, written once: for files that are not there yet. Ends with a COMMIT of each file.
pub struct Fill {
    files: Vec<u32>,
    shape: Shape,
    at: usize,
    offset: u64,
}

impl Fill {
    /// `shape.io_bytes` is the size of a WRITE.
    pub fn new(files: Vec<u32>, shape: Shape) -> Fill {
        Fill { files, shape, at: 0, offset: 0 }
    }
}

impl Source for Fill {
    fn next(&mut self, _: usize) -> Option<Operation> {
        if let Some(&file) = self.files.get(self.at) {
            let count = (self.shape.file_bytes - self.offset).min(u64::from(self.shape.io_bytes)) as u32;
            let write = Operation { verb: Verb::Write, file, offset: self.offset, count, stable: 0 };
            self.offset += u64::from(count);
            if self.offset >= self.shape.file_bytes {
                (self.at, self.offset) = (self.at + 1, 0);
            }
            return Some(write);
        }
        None
    }
}

/// A COMMIT of each file, to follow a [`Fill`] whose WRITEs were all answered.
pub struct CommitAll(pub std::vec::IntoIter<u32>);

impl Source for CommitAll {
    fn next(&mut self, _: usize) -> Option<Operation> {
        self.0.next().map(|file| Operation::of(Verb::Commit, file))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    const SHAPE: Shape = Shape { files: 3, file_bytes: 10_000, io_bytes: 4096, stable: 0, commit_every: 0 };

    fn workload(mix: &str, seed: u64) -> Workload {
        Workload::new(Mix::parse(mix).unwrap(), SHAPE, seed, 0, 2, 2)
    }

    #[test]
    fn a_mix_is_read_or_told_what_is_wrong() {
        assert_eq!(Mix::parse("read"), Ok(Mix(vec![(Kind::Read, 100)])));
        assert_eq!(Mix::parse("null=60,getattr=40"), Ok(Mix(vec![(Kind::Null, 60), (Kind::Getattr, 40)])));
        let wrong = |text: &str| Mix::parse(text).unwrap_err();
        assert!(wrong("reed").contains("\"reed\", allowed one of null, getattr"), "{}", wrong("reed"));
        assert!(wrong("read=60,write=50").contains("add up to 110, allowed 100"));
        assert!(wrong("read=0,write=100").contains("1 to 100"));
        assert!(wrong("read,write").contains("KIND=PERCENT"));
        assert!(wrong("connect=50,read=50").contains("connect alone"));
        assert!(Mix::parse("connect").unwrap().reconnects() && !Mix::parse("null").unwrap().reconnects());
    }

    #[test]
    fn one_seed_gives_one_sequence() {
        let calls = |seed| {
            let mut workload = workload("randread=50,getattr=30,write=20", seed);
            (0..200).filter_map(|n| workload.next(n % 2)).collect::<Vec<_>>()
        };
        assert_eq!(calls(7), calls(7));
        assert_ne!(calls(7), calls(8));
    }

    #[test]
    fn shares_are_kept() {
        let mut workload = workload("randread=70,getattr=30", 1);
        let reads = (0..10_000).filter(|_| workload.next(0).is_some_and(|call| call.verb == Verb::Read)).count();
        assert!((6_800..7_200).contains(&reads), "{reads}");
    }

    #[test]
    fn random_accesses_are_aligned_inside_the_files_and_reach_every_block() {
        let mut workload = workload("randread", 3);
        let blocks: HashSet<(u32, u64)> = (0..500)
            .filter_map(|_| workload.next(0))
            .inspect(|call| assert!(call.offset % 4096 == 0 && call.offset + u64::from(call.count) <= SHAPE.file_bytes))
            .map(|call| (call.file, call.offset))
            .collect();
        assert_eq!(blocks.len(), 6, "two whole blocks in each of three files");
    }

    #[test]
    fn sequential_walks_start_apart_and_go_round() {
        let mut workload = workload("read", 3);
        let mut walk = |stream| (0..7).filter_map(|_| workload.next(stream)).map(|c| (c.file, c.offset)).collect::<Vec<_>>();
        assert_eq!(walk(0), [(0, 0), (0, 4096), (1, 0), (1, 4096), (2, 0), (2, 4096), (0, 0)]);
        assert_eq!(walk(1)[..2], [(1, 4096), (2, 0)]);
    }

    #[test]
    fn commits_follow_their_writes() {
        let shape = Shape { commit_every: 2, ..SHAPE };
        let mut workload = Workload::new(Mix::parse("write").unwrap(), shape, 1, 0, 1, 1);
        let verbs: Vec<_> = (0..6).filter_map(|_| workload.next(0)).map(|call| (call.verb, call.file)).collect();
        let (write, commit) = (Verb::Write, Verb::Commit);
        assert_eq!(verbs, [(write, 0), (write, 0), (commit, 0), (write, 1), (write, 1), (commit, 1)]);
    }

    #[test]
    fn filling_writes_every_byte_once() {
        let mut fill = Fill::new(vec![0, 2], SHAPE);
        let calls: Vec<_> = std::iter::from_fn(|| fill.next(0)).map(|call| (call.file, call.offset, call.count)).collect();
        let of = |file| [(file, 0, 4096), (file, 4096, 4096), (file, 8192, 1808)];
        assert_eq!(calls, [of(0), of(2)].concat());
    }
}
