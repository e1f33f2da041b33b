//! What is known of each block of a file, by the block's number: a radix tree of small nodes.
//!
//! An entry is found in a few steps, each of them a load from a place that follows from the number: no keys are compared on the way
//! down, only once at the end. A node with a single child does not exist (path compression, as in Morrison's PATRICIA), so a table
//! has fewer branches than leaves and what it takes is bounded by what is in it, wherever that lies: at most a leaf and a branch,
//! `NODE_LEN` entries and as many pointers, for an entry that is alone.
//!
//! Not here: what an entry means, locks.

use crate::raw;

/// Entries of a leaf and children of a branch. Few, so that blocks that a client scatters over a huge sparse file cost little
/// beside their data; enough that a READ of many blocks finds most of them in a row.
const NODE_LEN: usize = 1 << NODE_BITS;
const NODE_BITS: u32 = 4;

struct Leaf<T> {
    /// The number of the first entry, a multiple of `NODE_LEN`.
    first: u64,
    /// Entries, or more: who takes one out for a moment does not tell (`BlockTable::entry`).
    used: u32,
    entries: [Option<T>; NODE_LEN],
}

struct Branch<T> {
    /// The lowest number that belongs below it.
    first: u64,
    /// Bits of a number behind those that choose among the children; a multiple of `NODE_BITS`.
    shift: u32,
    /// At least two.
    used: u32,
    children: [Option<Node<T>>; NODE_LEN],
}

enum Node<T> {
    Leaf(Box<Leaf<T>>),
    Branch(Box<Branch<T>>),
}

/// The place in a node whose children or entries stand for `shift` bits each.
fn place(number: u64, shift: u32) -> usize {
    (number >> shift) as usize % NODE_LEN
}

/// The lowest number that shares a node with `number`, if its children or entries stand for `shift` bits each.
fn first(number: u64, shift: u32) -> u64 {
    match shift + NODE_BITS {
        u64::BITS => 0,
        below => number >> below << below,
    }
}

impl<T> Node<T> {
    /// A leaf with one entry.
    fn leaf(number: u64, entry: T) -> Node<T> {
        let mut entries = [const { None }; NODE_LEN];
        entries[place(number, 0)] = Some(entry);
        Node::Leaf(Box::new(Leaf { first: first(number, 0), used: 1, entries }))
    }

    /// The lowest number that belongs here, and the bits that each child or entry stands for.
    fn range(&self) -> (u64, u32) {
        match self {
            Node::Leaf(leaf) => (leaf.first, 0),
            Node::Branch(branch) => (branch.first, branch.shift),
        }
    }

    /// Puts an entry where it belongs; gives the old one back.
    fn insert(slot: &mut Option<Node<T>>, number: u64, entry: T) -> Option<T> {
        let Some(node) = slot else {
            *slot = Some(Node::leaf(number, entry));
            return None;
        };
        let (start, shift) = node.range();
        if first(number, shift) != start {
            // They part at the highest bit in which they differ.
            let shift = (number ^ start).ilog2() / NODE_BITS * NODE_BITS;
            let mut children = [const { None }; NODE_LEN];
            children[place(start, shift)] = slot.take();
            children[place(number, shift)] = Some(Node::leaf(number, entry));
            *slot = Some(Node::Branch(Box::new(Branch { first: first(number, shift), shift, used: 2, children })));
            return None;
        }
        match node {
            Node::Leaf(leaf) => {
                let old = leaf.entries[place(number, 0)].replace(entry);
                leaf.used += u32::from(old.is_none());
                old
            }
            Node::Branch(branch) => {
                let child = &mut branch.children[place(number, branch.shift)];
                branch.used += u32::from(child.is_none());
                Node::insert(child, number, entry)
            }
        }
    }

    /// Takes an entry out.
    fn remove(slot: &mut Option<Node<T>>, number: u64) -> Option<T> {
        match slot.as_mut()? {
            Node::Leaf(leaf) => {
                let old = leaf.entries[place(number, 0)].take_if(|_| leaf.first == first(number, 0))?;
                leaf.used -= 1;
                if leaf.used == 0 {
                    *slot = None;
                }
                Some(old)
            }
            Node::Branch(branch) => {
                let child = &mut branch.children[place(number, branch.shift)];
                let old = Node::remove(child, number)?;
                if child.is_none() {
                    branch.used -= 1;
                    Node::compress(slot);
                }
                Some(old)
            }
        }
    }

    /// Takes out the entries from `number` on, in order.
    fn remove_from(slot: &mut Option<Node<T>>, number: u64, removed: &mut impl FnMut(T)) {
        match slot {
            None => {}
            Some(Node::Leaf(leaf)) => {
                for (entry, at) in leaf.entries.iter_mut().zip(leaf.first..=u64::MAX) {
                    if at >= number
                        && let Some(entry) = entry.take()
                    {
                        leaf.used -= 1;
                        removed(entry);
                    }
                }
                if leaf.used == 0 {
                    *slot = None;
                }
            }
            Some(Node::Branch(branch)) => {
                let from = match first(number, branch.shift) {
                    // Those in front of the child that `number` would be in have smaller numbers.
                    at if at == branch.first => place(number, branch.shift),
                    at if at < branch.first => 0,
                    _ => return,
                };
                for child in branch.children[from..].iter_mut().filter(|child| child.is_some()) {
                    Node::remove_from(child, number, removed);
                    branch.used -= u32::from(child.is_none());
                }
                Node::compress(slot);
            }
        }
    }

    /// Something below a branch is gone: a branch with nothing below it goes, one with a single child gives it its place.
    fn compress(slot: &mut Option<Node<T>>) {
        if let Some(Node::Branch(branch)) = slot
            && branch.used < 2
        {
            *slot = branch.children.iter_mut().find_map(Option::take);
        }
    }
}

/// Entries by number.
pub struct BlockTable<T> {
    root: Option<Node<T>>,
    len: u64,
}

impl<T> Default for BlockTable<T> {
    fn default() -> BlockTable<T> {
        BlockTable { root: None, len: 0 }
    }
}

impl<T> BlockTable<T> {
    /// Entries.
    pub fn len(&self) -> u64 {
        self.len
    }

    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// What stands at `number` and at those behind it, as far as they are in one place: at least one, all of them empty if there is
    /// nothing. For who wants many in a row.
    #[inline]
    pub fn run(&self, number: u64) -> &[Option<T>] {
        let mut node = self.root.as_ref();
        while let Some(Node::Branch(branch)) = node {
            node = branch.children[place(number, branch.shift)].as_ref();
        }
        match node {
            Some(Node::Leaf(leaf)) if leaf.first == first(number, 0) => &leaf.entries[place(number, 0)..],
            _ => const { &[None] },
        }
    }

    /// Starts to bring the entry at `number` into the cache.
    #[inline]
    pub fn prefetch(&self, number: u64) {
        if let Some(entry) = self.run(number).first() {
            raw::prefetch(entry);
        }
    }

    #[inline]
    pub fn get(&self, number: u64) -> Option<&T> {
        self.run(number).first()?.as_ref()
    }

    pub fn get_mut(&mut self, number: u64) -> Option<&mut T> {
        self.entry(number)?.as_mut()
    }

    /// The place of an entry that exists, so that the entry may be taken out, changed and put back: it must be there again when
    /// the table is asked for anything else.
    pub fn entry(&mut self, number: u64) -> Option<&mut Option<T>> {
        let mut node = self.root.as_mut()?;
        while let Node::Branch(branch) = node {
            node = branch.children[place(number, branch.shift)].as_mut()?;
        }
        match node {
            Node::Leaf(leaf) if leaf.first == first(number, 0) => {
                Some(&mut leaf.entries[place(number, 0)]).filter(|entry| entry.is_some())
            }
            _ => None,
        }
    }

    /// Puts an entry there; gives the old one back.
    pub fn insert(&mut self, number: u64, entry: T) -> Option<T> {
        let old = Node::insert(&mut self.root, number, entry);
        self.len += u64::from(old.is_none());
        old
    }

    /// Takes an entry out.
    pub fn remove(&mut self, number: u64) -> Option<T> {
        let old = Node::remove(&mut self.root, number);
        self.len -= u64::from(old.is_some());
        old
    }

    /// Takes out all entries from `number` on, in order.
    pub fn remove_from(&mut self, number: u64, mut removed: impl FnMut(T)) {
        let len = &mut self.len;
        Node::remove_from(&mut self.root, number, &mut |entry| {
            *len -= 1;
            removed(entry);
        });
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;
    use crate::buf::{PagePool, Slice};

    /// Leaves and branches in use.
    fn nodes<T>(node: &Option<Node<T>>) -> (u64, u64) {
        match node {
            None => (0, 0),
            Some(Node::Leaf(leaf)) => {
                assert_eq!(leaf.entries.iter().flatten().count(), leaf.used as usize);
                assert!(leaf.used > 0);
                (1, 0)
            }
            Some(Node::Branch(branch)) => {
                let children: Vec<_> = branch.children.iter().filter(|child| child.is_some()).collect();
                assert_eq!(children.len(), branch.used as usize);
                assert!(branch.used >= 2, "a branch with a single child");
                for child in &children {
                    let (start, shift) = child.as_ref().unwrap().range();
                    assert!(shift < branch.shift && first(start, branch.shift) == branch.first);
                }
                children.into_iter().map(nodes).fold((0, 1), |(leaves, branches), below| (leaves + below.0, branches + below.1))
            }
        }
    }

    #[derive(Clone, Debug)]
    enum Step {
        Insert(u64, u32),
        Remove(u64),
        RemoveFrom(u64),
        Change(u64, u32),
    }

    /// Numbers that meet each other, near the start, in the middle and at the far end.
    fn number() -> impl Strategy<Value = u64> {
        prop_oneof![
            4 => 0..200u64,
            2 => (0..u64::BITS / NODE_BITS, 0..3u64).prop_map(|(level, near)| (1u64 << (NODE_BITS * level)).wrapping_sub(1) + near),
            1 => (0..100u64).prop_map(|near| (i64::MAX as u64 / 512) - near),
            1 => (0..100u64).prop_map(|near| u64::MAX - near),
        ]
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            6 => (number(), any::<u32>()).prop_map(|(number, value)| Step::Insert(number, value)),
            3 => number().prop_map(Step::Remove),
            1 => number().prop_map(Step::RemoveFrom),
            2 => (number(), any::<u32>()).prop_map(|(number, value)| Step::Change(number, value)),
        ]
    }

    proptest! {
        #[test]
        fn it_is_a_map_and_takes_no_more_than_its_entries_need(steps in proptest::collection::vec(step(), 1..200)) {
            let (mut table, mut model) = (BlockTable::default(), BTreeMap::new());
            for step in steps {
                match step {
                    Step::Insert(number, value) => {
                        prop_assert_eq!(table.insert(number, value), model.insert(number, value));
                    }
                    Step::Remove(number) => prop_assert_eq!(table.remove(number), model.remove(&number)),
                    Step::RemoveFrom(number) => {
                        let mut removed = Vec::new();
                        table.remove_from(number, |entry| removed.push(entry));
                        prop_assert_eq!(removed, model.split_off(&number).into_values().collect::<Vec<_>>());
                    }
                    Step::Change(number, value) => {
                        let entry = table.entry(number).map(|entry| *entry = Some(value));
                        prop_assert_eq!(entry, model.get_mut(&number).map(|old| *old = value));
                    }
                }
                prop_assert_eq!(table.len(), model.len() as u64);
                prop_assert_eq!(table.is_empty(), model.is_empty());
                let (leaves, branches) = nodes(&table.root);
                prop_assert!(leaves <= table.len() && branches <= leaves.saturating_sub(1));
                for (number, value) in &model {
                    prop_assert_eq!(table.get(*number), Some(value));
                    prop_assert_eq!(table.get_mut(*number), Some(&mut value.clone()));
                    for near in [number.wrapping_sub(1), number.wrapping_add(1)] {
                        prop_assert_eq!(table.get(near), model.get(&near));
                    }
                    let run = table.run(*number);
                    prop_assert!(!run.is_empty());
                    for (nth, entry) in run.iter().enumerate() {
                        prop_assert_eq!(entry.as_ref(), model.get(&(number + nth as u64)));
                    }
                }
            }
            let last = model.keys().next_back().copied();
            table.remove_from(0, |_| {});
            prop_assert!(table.is_empty() && table.root.is_none(), "last was {:?}", last);
        }
    }

    #[test]
    fn what_it_takes_is_bounded_by_what_is_in_it() {
        let mut table = BlockTable::default();
        for (entries, number) in [(1, 0), (2, u64::MAX), (3, 1 << 62), (4, i64::MAX as u64)] {
            table.insert(number, ());
            assert_eq!(nodes(&table.root), (entries, u64::from(entries > 1)));
        }
        table.remove_from(1, drop);
        assert_eq!(nodes(&table.root), (1, 0), "the root comes down again");
        let mut dense = BlockTable::default();
        (0..4096).for_each(|number| assert!(dense.insert(number, ()).is_none()));
        assert_eq!(nodes(&dense.root), (256, 16 + 1));
        let mut entry = BlockTable::default();
        entry.insert(16, ());
        assert_eq!((entry.run(0).len(), entry.run(16).len(), entry.run(20).len()), (1, 16, 12));
    }

    /// The smallest blocks of all, 4 KiB, where they cost most beside their data: each alone, as far apart as they can be.
    #[test]
    fn scattered_blocks_cost_a_fifth_of_their_data_at_most() {
        const BLOCKS: u64 = 1 << 14;
        let block = PagePool::anonymous(1, 4096).unwrap().allocate().unwrap().freeze();
        let mut table = BlockTable::default();
        for number in 0..BLOCKS {
            table.insert(number.reverse_bits(), block.clone());
        }
        let (leaves, branches) = nodes(&table.root);
        let bytes = leaves as usize * size_of::<Leaf<Slice>>() + branches as usize * size_of::<Branch<Slice>>();
        assert!(bytes as u64 / BLOCKS <= 4096 / 5, "{} bytes a block", bytes as u64 / BLOCKS);
    }
}
