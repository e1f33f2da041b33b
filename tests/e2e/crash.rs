//! kill -9 in the middle of writes, again and again, on one configuration. What was acknowledged as stable (RFC 1813 section 3.3.7:
//! a FILE_SYNC WRITE, or an UNSTABLE one followed by a COMMIT with the same verifier) has to be there after the restart under the same
//! file handle; what was only sent may be there, in whole or in part, and nothing else may.
//!
//! The loop has to notice data that is lost: it is also run with a host that loses some between kill and restart, and has to fail.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::FileExt as _;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use crate::bed::Bed;
use crate::client::{
    FILE_SYNC, Handle, NFS, Received, Reply, Rpc, UNSTABLE, Written, parse_reply, procedure, split_status, write_arguments,
};
use crate::hostile::export_root;
use crate::libnfs::Random;
use crate::report::{Report, full};
use crate::server::Setup;

const FILES: usize = 4;
const BLOCKS: usize = 24;
const BLOCK_BYTES: usize = 32 << 10;
/// Calls in flight at once, each on a block of its own: two writes to one block could pass one another.
const BATCH: usize = 12;

pub fn run(report: &mut Report) {
    let rounds = if full() { 50 } else { 5 };
    report.case("kill_9_during_writes", || kill_loop(rounds, None));
    for (name, loss, noticed) in LOSSES {
        report.case(&format!("notices_{name}"), || match kill_loop(LOSSY_ROUNDS, Some(loss)) {
            Ok(()) => bail!("the host lost data {LOSSY_ROUNDS} times and nobody noticed"),
            Err(error) if format!("{error:#}").contains(noticed) => Ok(()),
            Err(error) => Err(error.context(format!("failed, but not with \"{noticed}\""))),
        });
    }
}

/// Kills in which nothing may have been acknowledged that can be lost, before the loss has to be noticed.
const LOSSY_ROUNDS: u32 = 3;

/// What the host loses between the kill and the restart.
#[derive(Clone, Copy)]
enum Loss {
    /// One block that was made durable in this round has the bytes from before: an fsync that was none.
    Write,
    /// The same for its last 8 bytes only.
    Tail,
    /// A file ends where its last block began.
    Length,
    /// A file that was created in this round.
    Name,
    /// A file is another one with the same bytes: its handle is not the client's.
    Identity,
}

/// With what the loop has to fail.
const LOSSES: [(&str, Loss, &str); 5] = [
    ("a_lost_write", Loss::Write, "after the restart: over NFS: block"),
    ("a_lost_tail", Loss::Tail, "after the restart: over NFS: block"),
    ("a_lost_length", Loss::Length, "after the restart: over NFS: block"),
    ("a_lost_name", Loss::Name, "after kill"),
    ("a_lost_identity", Loss::Identity, "READ with the handle from before the kill"),
];

impl Loss {
    /// `before`: the files and what was durable when the round began.
    fn strike(self, bed: &Bed, model: &Model, before: &Snapshot, created: &str) -> Result<()> {
        let newer = |block: &usize| model.blocks[*block].durable > before.durable[*block];
        let path = |file: usize| bed.export().join(format!("f{file}"));
        match self {
            Loss::Write | Loss::Tail => {
                let Some(block) = (0..model.blocks.len()).find(newer) else { return Ok(()) };
                let (at, file) = (offset_of(block) as usize, block / BLOCKS);
                let lost =
                    if matches!(self, Loss::Write) { at..at + BLOCK_BYTES } else { at + BLOCK_BYTES - 8..at + BLOCK_BYTES };
                let host = fs::OpenOptions::new().write(true).open(path(file))?;
                host.write_all_at(&before.files[file][lost.clone()], lost.start as u64)?;
            }
            Loss::Length => {
                fs::OpenOptions::new().write(true).open(path(0))?.set_len(offset_of(BLOCKS - 1))?;
            }
            Loss::Name => fs::remove_file(bed.export().join(created))?,
            Loss::Identity => {
                fs::copy(path(0), bed.export().join("copy"))?;
                fs::rename(bed.export().join("copy"), path(0))?;
            }
        }
        Ok(())
    }
}

/// The host's files and the durable generations at one time.
struct Snapshot {
    files: Vec<Vec<u8>>,
    durable: Vec<u32>,
}

impl Snapshot {
    fn take(bed: &Bed, model: &Model) -> Result<Snapshot> {
        let files = (0..FILES).map(|file| fs::read(bed.export().join(format!("f{file}")))).collect::<Result<_, _>>()?;
        Ok(Snapshot { files, durable: model.blocks.iter().map(|block| block.durable).collect() })
    }
}

/// What one block may hold. A generation is one WRITE of it; every 8-byte word of the block names it.
#[derive(Default, Clone)]
struct Block {
    durable: u32,
    /// Sent after the durable one, oldest first; the last one is what the client wants to be there.
    later: Vec<u32>,
    /// Acknowledged as UNSTABLE under this verifier, to be covered by a COMMIT.
    unstable: Option<(u32, [u8; 8])>,
}

struct Model {
    handles: Vec<Handle>,
    blocks: Vec<Block>,
    generation: u32,
    random: Random,
    committed: u64,
    stable: u64,
}

fn word(generation: u32, block: usize) -> u64 {
    u64::from(generation) << 32 | block as u64
}

fn content(generation: u32, block: usize) -> Vec<u8> {
    word(generation, block).to_be_bytes().repeat(BLOCK_BYTES / 8)
}

fn offset_of(block: usize) -> u64 {
    (block % BLOCKS * BLOCK_BYTES) as u64
}

impl Model {
    fn next_generation(&mut self, block: usize) -> u32 {
        self.generation += 1;
        self.blocks[block].later.push(self.generation);
        self.generation
    }

    fn make_durable(&mut self, block: usize, generation: u32) {
        let entry = &mut self.blocks[block];
        entry.durable = generation;
        entry.later.retain(|later| *later > generation);
        if entry.unstable.is_some_and(|(unstable, _)| unstable <= generation) {
            entry.unstable = None;
        }
    }

    /// Sends a batch of writes. The keys are xids; the values are what a reply means.
    fn send_batch(&mut self, rpc: &mut Rpc) -> Result<BTreeMap<u32, (usize, u32)>> {
        let mut sent = BTreeMap::new();
        let first = self.random.next() as usize;
        for index in 0..BATCH {
            // A step that shares no factor with the number of blocks visits each one once.
            let block = (first + index * 5) % self.blocks.len();
            let stable = if self.random.next() % 4 == 0 { FILE_SYNC } else { UNSTABLE };
            let generation = self.next_generation(block);
            let arguments = write_arguments(&self.handles[block / BLOCKS], offset_of(block), stable, &content(generation, block));
            sent.insert(rpc.send(NFS, 3, procedure::WRITE, &arguments.0)?, (block, generation));
        }
        Ok(sent)
    }

    fn take_replies(&mut self, rpc: &mut Rpc, mut sent: BTreeMap<u32, (usize, u32)>) -> Result<()> {
        while !sent.is_empty() {
            let (xid, reply) = rpc.receive()?;
            let (block, generation) = sent.remove(&xid).context("a reply to a call that was not made")?;
            let Reply::Success(body) = reply else { bail!("WRITE was answered by {reply:?}") };
            self.acknowledged(block, generation, &body)?;
        }
        Ok(())
    }

    fn acknowledged(&mut self, block: usize, generation: u32, body: &[u8]) -> Result<()> {
        let (status, body) = split_status(body)?;
        ensure!(status == 0, "WRITE failed with nfsstat3 {status}");
        let written = Written::parse(&body)?;
        ensure!(written.count as usize == BLOCK_BYTES, "a short write of {} bytes", written.count);
        if written.committed == UNSTABLE {
            self.blocks[block].unstable = Some((generation, written.verifier));
        } else {
            self.stable += 1;
            self.make_durable(block, generation);
        }
        Ok(())
    }

    fn commit(&mut self, rpc: &mut Rpc, file: usize) -> Result<()> {
        let verifier = rpc.commit(&self.handles[file])?;
        for block in file * BLOCKS..(file + 1) * BLOCKS {
            if let Some((generation, since)) = self.blocks[block].unstable
                && since == verifier
            {
                self.committed += 1;
                self.make_durable(block, generation);
            }
        }
        Ok(())
    }

    /// Writes until `end`, then leaves a batch behind without waiting for its replies.
    fn write_until(&mut self, rpc: &mut Rpc, end: Instant) -> Result<()> {
        while Instant::now() < end {
            let sent = self.send_batch(rpc)?;
            self.take_replies(rpc, sent)?;
            let file = self.random.next() as usize % FILES;
            self.commit(rpc, file)?;
        }
        let unanswered = self.send_batch(rpc)?;
        std::thread::sleep(Duration::from_micros(self.random.next() % 4000));
        // Replies that are here already count: the server has promised.
        let mut unanswered = unanswered;
        while let Ok(Received::Record(bytes)) = rpc.receive_within(Duration::from_millis(1)) {
            if let (xid, Reply::Success(body)) = parse_reply(&bytes)?
                && let Some((block, generation)) = unanswered.remove(&xid)
            {
                self.acknowledged(block, generation, &body)?;
            }
        }
        Ok(())
    }

    fn check_block(&self, block: usize, bytes: &[u8], place: &str) -> Result<()> {
        let entry = &self.blocks[block];
        ensure!(bytes.len() == BLOCK_BYTES, "{place}: block {block} has {} bytes", bytes.len());
        for (index, found) in bytes.chunks_exact(8).enumerate() {
            let found = u64::from_be_bytes(found.try_into()?);
            let allowed = std::iter::once(&entry.durable).chain(&entry.later).any(|generation| word(*generation, block) == found);
            ensure!(
                allowed,
                "{place}: block {block} byte {}: found {found:#x}, acknowledged was generation {:#x}, later ones {:x?}",
                index * 8,
                entry.durable,
                entry.later
            );
        }
        Ok(())
    }

    /// Everything acknowledged, through the server.
    fn check(&self, rpc: &mut Rpc) -> Result<()> {
        for block in 0..self.blocks.len() {
            let bytes = rpc
                .read(&self.handles[block / BLOCKS], offset_of(block), BLOCK_BYTES as u32)
                .context("READ with the handle from before the kill")?;
            self.check_block(block, &bytes, "over NFS")?;
        }
        Ok(())
    }

    /// A client's retries: what was not acknowledged is sent again, and committed.
    fn retry(&mut self, rpc: &mut Rpc) -> Result<()> {
        for block in 0..self.blocks.len() {
            self.blocks[block].unstable = None;
            let Some(generation) = self.blocks[block].later.last().copied() else { continue };
            let handle = self.handles[block / BLOCKS].clone();
            let written = rpc.write(&handle, offset_of(block), UNSTABLE, &content(generation, block))?;
            self.blocks[block].unstable = Some((generation, written.verifier));
        }
        for file in 0..FILES {
            self.commit(rpc, file)?;
        }
        ensure!(self.blocks.iter().all(|block| block.later.is_empty()), "a COMMIT right after its writes had another verifier");
        Ok(())
    }

    /// After a COMMIT the bytes are the host's file.
    fn check_on_host(&self, bed: &Bed) -> Result<()> {
        for file in 0..FILES {
            let bytes = fs::read(bed.export().join(format!("f{file}")))?;
            ensure!(bytes.len() == BLOCKS * BLOCK_BYTES, "f{file} has {} bytes on the host", bytes.len());
            for (index, block) in bytes.chunks(BLOCK_BYTES).enumerate() {
                self.check_block(file * BLOCKS + index, block, "on the host")?;
            }
        }
        Ok(())
    }
}

fn kill_loop(rounds: u32, loss: Option<Loss>) -> Result<()> {
    let mut bed = Bed::new(Setup::default())?;
    let root = export_root(&bed)?;
    let mut rpc = bed.rpc()?;
    let mut model = Model {
        handles: Vec::new(),
        blocks: vec![Block::default(); FILES * BLOCKS],
        generation: 0,
        random: Random(0x5eed),
        committed: 0,
        stable: 0,
    };
    for file in 0..FILES {
        model.handles.push(rpc.create(&root, format!("f{file}").as_bytes())?);
    }
    for block in 0..model.blocks.len() {
        let generation = model.next_generation(block);
        let handle = model.handles[block / BLOCKS].clone();
        rpc.write(&handle, offset_of(block), FILE_SYNC, &content(generation, block))?;
        model.make_durable(block, generation);
    }
    let mut created: Vec<(String, Handle)> = Vec::new();
    for round in 0..rounds {
        let name = format!("created in round {round}");
        created.push((name.clone(), rpc.create(&root, name.as_bytes())?));
        let before = Snapshot::take(&bed, &model)?;
        let end = Instant::now() + Duration::from_millis(50 + model.random.next() % 250);
        model.write_until(&mut rpc, end).with_context(|| format!("round {round}, writing"))?;
        bed.kill();
        drop(rpc);
        if let Some(loss) = loss {
            loss.strike(&bed, &model, &before, &name)?;
        }
        bed.start().with_context(|| format!("restart of round {round}"))?;
        rpc = bed.rpc()?;
        model.check(&mut rpc).with_context(|| format!("round {round}, after the restart"))?;
        for (name, handle) in &created {
            let found = rpc.lookup(&root, name.as_bytes()).with_context(|| format!("{name} after kill {round}"))?;
            ensure!(found == *handle, "{name} has another file handle after kill {round}");
        }
        model.retry(&mut rpc).with_context(|| format!("round {round}, the retries"))?;
        model.check_on_host(&bed).with_context(|| format!("round {round}"))?;
    }
    println!("    {rounds} kills, {} stable writes and {} committed ones kept", model.stable, model.committed);
    bed.finish()
}
