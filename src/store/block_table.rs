//! What is known of each block of a file, by the block's number: a radix tree of small nodes.
//!
//! The first blocks of a file are found in one step, those of a large one in two or three, each of them a load from a place
//! that follows from the number: no keys are compared. Only nodes with something in them exist, so what a table takes is bounded
//! by what is in it and not by where that lies: a block that is alone at the far end of 64 bits of numbers costs eleven nodes.
//! A node takes one to one and a half KiB, so blocks of 4 KiB that a client scatters over a huge sparse file can cost more here than
//! their data; skipping nodes with a single child would end that.
//!
//! Not here: what an entry means, locks.

use crate::raw;

/// Entries of a leaf and children of a branch.
const NODE_LEN: usize = 1 << NODE_BITS;
const NODE_BITS: u32 = 6;
/// Nodes on the way to an entry, with numbers of 64 bits.
#[cfg(test)]
const NODE_DEPTH_MAX: u32 = u64::BITS.div_ceil(NODE_BITS);

struct Leaf<T> {
    /// Entries, or more: who takes one out for a moment does not tell (`BlockTable::entry`).
    used: u32,
    entries: [Option<T>; NODE_LEN],
}

struct Branch<T> {
    /// Bits of a number behind those that choose among the children.
    shift: u32,
    used: u32,
    children: [Option<Node<T>>; NODE_LEN],
}

impl<T> Branch<T> {
    fn new(shift: u32) -> Box<Branch<T>> {
        Box::new(Branch { shift, used: 0, children: [const { None }; NODE_LEN] })
    }
}

enum Node<T> {
    Leaf(Box<Leaf<T>>),
    Branch(Box<Branch<T>>),
}

/// The place in a node whose children or entries stand for `shift` bits each.
fn place(number: u64, shift: u32) -> usize {
    (number >> shift) as usize % NODE_LEN
}

impl<T> Node<T> {
    /// An empty node whose children or entries stand for `shift` bits each.
    fn new(shift: u32) -> Node<T> {
        match shift {
            0 => Node::Leaf(Box::new(Leaf { used: 0, entries: [const { None }; NODE_LEN] })),
            _ => Node::Branch(Branch::new(shift)),
        }
    }

    fn shift(&self) -> u32 {
        match self {
            Node::Leaf(_) => 0,
            Node::Branch(branch) => branch.shift,
        }
    }

    /// Whether numbers as large as this one are below it, if it is the root.
    fn reaches(&self, number: u64) -> bool {
        number.checked_shr(self.shift() + NODE_BITS).unwrap_or(0) == 0
    }

    /// Puts an entry where it belongs; gives the old one back.
    fn insert(&mut self, number: u64, entry: T) -> Option<T> {
        match self {
            Node::Leaf(leaf) => {
                let old = leaf.entries[place(number, 0)].replace(entry);
                leaf.used += u32::from(old.is_none());
                old
            }
            Node::Branch(branch) => {
                let child = &mut branch.children[place(number, branch.shift)];
                branch.used += u32::from(child.is_none());
                child.get_or_insert_with(|| Node::new(branch.shift - NODE_BITS)).insert(number, entry)
            }
        }
    }

    /// Takes an entry out; tells also whether the node is empty now.
    fn remove(&mut self, number: u64) -> (Option<T>, bool) {
        match self {
            Node::Leaf(leaf) => {
                let old = leaf.entries[place(number, 0)].take();
                leaf.used -= u32::from(old.is_some());
                (old, leaf.used == 0)
            }
            Node::Branch(branch) => {
                let child = &mut branch.children[place(number, branch.shift)];
                let Some(node) = child else { return (None, false) };
                let (old, is_empty) = node.remove(number);
                if is_empty {
                    *child = None;
                    branch.used -= 1;
                }
                (old, branch.used == 0)
            }
        }
    }

    /// Takes out the entries from `number` on (as far as its bits matter here); tells whether the node is empty now.
    fn remove_from(&mut self, number: u64, removed: &mut impl FnMut(T)) -> bool {
        match self {
            Node::Leaf(leaf) => {
                for entry in leaf.entries[place(number, 0)..].iter_mut().filter_map(Option::take) {
                    leaf.used -= 1;
                    removed(entry);
                }
                leaf.used == 0
            }
            Node::Branch(branch) => {
                let first = place(number, branch.shift);
                for (at, child) in branch.children.iter_mut().enumerate().skip(first) {
                    let from = if at == first { number } else { 0 };
                    if child.as_mut().is_some_and(|node| node.remove_from(from, removed)) {
                        *child = None;
                        branch.used -= 1;
                    }
                }
                branch.used == 0
            }
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
        let mut node = self.root.as_ref().filter(|root| root.reaches(number));
        while let Some(Node::Branch(branch)) = node {
            node = branch.children[place(number, branch.shift)].as_ref();
        }
        match node {
            Some(Node::Leaf(leaf)) => &leaf.entries[place(number, 0)..],
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
        let mut node = self.root.as_mut().filter(|root| root.reaches(number))?;
        loop {
            match node {
                Node::Branch(branch) => node = branch.children[place(number, branch.shift)].as_mut()?,
                Node::Leaf(leaf) => return Some(&mut leaf.entries[place(number, 0)]).filter(|entry| entry.is_some()),
            }
        }
    }

    /// Puts an entry there; gives the old one back.
    pub fn insert(&mut self, number: u64, entry: T) -> Option<T> {
        let mut root = self.root.take().unwrap_or_else(|| Node::new(number.checked_ilog2().unwrap_or(0) / NODE_BITS * NODE_BITS));
        while !root.reaches(number) {
            let mut above = Branch::new(root.shift() + NODE_BITS);
            above.children[0] = Some(root);
            above.used = 1;
            root = Node::Branch(above);
        }
        let old = self.root.insert(root).insert(number, entry);
        self.len += u64::from(old.is_none());
        old
    }

    /// Takes an entry out.
    pub fn remove(&mut self, number: u64) -> Option<T> {
        let root = self.root.as_mut().filter(|root| root.reaches(number))?;
        let (old, is_empty) = root.remove(number);
        self.len -= u64::from(old.is_some());
        self.shrink(is_empty);
        old
    }

    /// Takes out all entries from `number` on, in order.
    pub fn remove_from(&mut self, number: u64, mut removed: impl FnMut(T)) {
        let Some(root) = self.root.as_mut().filter(|root| root.reaches(number)) else { return };
        let len = &mut self.len;
        let is_empty = root.remove_from(number, &mut |entry| {
            *len -= 1;
            removed(entry);
        });
        self.shrink(is_empty);
    }

    /// Something was taken out: takes away what is not needed above what is left.
    fn shrink(&mut self, is_empty: bool) {
        if is_empty {
            self.root = None;
        }
        while let Some(Node::Branch(root)) = &mut self.root
            && root.used == 1
            && root.children[0].is_some()
        {
            self.root = root.children[0].take();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    /// Nodes in use.
    fn nodes<T>(node: &Option<Node<T>>) -> u64 {
        match node {
            None => 0,
            Some(Node::Leaf(leaf)) => {
                assert_eq!(leaf.entries.iter().flatten().count(), leaf.used as usize);
                1
            }
            Some(Node::Branch(branch)) => {
                assert_eq!(branch.children.iter().flatten().count(), branch.used as usize);
                1 + branch.children.iter().map(nodes).sum::<u64>()
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
            2 => (0..6u32, 0..3u64).prop_map(|(level, near)| (1u64 << (NODE_BITS * level)).wrapping_sub(1) + near),
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
                prop_assert!(nodes(&table.root) <= table.len() * u64::from(NODE_DEPTH_MAX));
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
            assert!(nodes(&table.root) <= entries * u64::from(NODE_DEPTH_MAX));
        }
        table.remove_from(1, drop);
        assert_eq!(nodes(&table.root), 1, "the root comes down again");
        let mut dense = BlockTable::default();
        (0..4096).for_each(|number| assert!(dense.insert(number, ()).is_none()));
        assert_eq!(nodes(&dense.root), 64 + 1);
        let mut entry = BlockTable::default();
        entry.insert(64, ());
        assert_eq!((entry.run(0).len(), entry.run(64).len(), entry.run(100).len()), (1, 64, 28));
    }
}
