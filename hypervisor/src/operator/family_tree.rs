//! The processes of a target, as the operator sees them: a tree of who descends from whom.

use alloc::vec::Vec;
use core::fmt;

use serde::ser::SerializeSeq;
use serde::{Serialize, Serializer};

use super::clock::HostClock;
use super::records::Cr3;
use crate::suppression::snapshot::MemberSnapshot;

/// The members of a target: in JSON a list, in a table a tree.
#[derive(Clone, Copy)]
pub(super) struct Members<'a> {
    pub members: &'a [MemberSnapshot],
    pub clock: &'a HostClock,
}

/// A member.
#[derive(Clone, Copy, Debug, Serialize)]
struct MemberLine {
    /// Its first root.
    cr3: Cr3,
    /// The first root of the member that it descends from.
    #[serde(skip_serializing_if = "Option::is_none")]
    parent: Option<Cr3>,
    /// The sign by which it came into the family.
    sign: &'static str,
    /// The time since then, in milliseconds.
    age_ms: i64,
    /// The real CPU time that it has had since then, in microseconds.
    cpu_us: i64,
    /// Whether it is `alive`, has `died` or is `lost`.
    state: &'static str,
}

impl Members<'_> {
    fn line(&self, member: &MemberSnapshot) -> MemberLine {
        let micros = |ticks: u64| {
            self.clock
                .micros_of(i64::try_from(ticks).unwrap_or(i64::MAX))
        };
        MemberLine {
            cr3: Cr3(member.root),
            parent: member.parent.map(Cr3),
            sign: member.sign.name(),
            age_ms: micros(member.age) / 1000,
            cpu_us: micros(member.used),
            state: member.ended.map_or("alive", |end| end.name()),
        }
    }

    /// Returns the members, each behind its parent, with its distance from the first one. Of two that had
    /// the same root, the later one is meant as a parent; one whose parent is not remembered is beside
    /// the first.
    fn in_tree(&self) -> Vec<(&MemberSnapshot, usize)> {
        let parent_of = |index: usize| {
            let parent = self.members[index].parent?;
            (0..index).rev().find(|&it| self.members[it].root == parent)
        };
        let parents: Vec<_> = (0..self.members.len()).map(parent_of).collect();
        let mut tree = Vec::new();
        let children = |of: Option<usize>, depth: usize| {
            let is_child = move |&(_, parent): &(usize, &Option<usize>)| *parent == of;
            let found: Vec<_> = parents.iter().enumerate().filter(is_child).collect();
            found
                .into_iter()
                .rev()
                .map(move |(index, _)| (index, depth))
        };
        let mut waiting: Vec<(usize, usize)> = children(None, 0).collect();
        while let Some((index, depth)) = waiting.pop() {
            tree.push((&self.members[index], depth));
            waiting.extend(children(Some(index), depth + 1));
        }
        tree
    }
}

impl Serialize for Members<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut list = serializer.serialize_seq(Some(self.members.len()))?;
        for member in self.members {
            list.serialize_element(&self.line(member))?;
        }
        list.end()
    }
}

impl fmt::Debug for Members<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.members.fmt(f)
    }
}

/// The tree, each line behind a line end; nothing for a target of one process.
impl fmt::Display for Members<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        /// The distance from the first one beyond which nothing is indented further.
        const DEEPEST: usize = 16;
        if self.members.len() < 2 {
            return Ok(());
        }
        for (member, depth) in self.in_tree() {
            let line = self.line(member);
            let indent = 2 * (1 + depth.min(DEEPEST));
            write!(
                f,
                "\n{:indent$}{} {} for {} ms, used {} ms, {}",
                "",
                line.cr3.0,
                line.sign,
                line.age_ms,
                line.cpu_us / 1000,
                line.state
            )?;
        }
        Ok(())
    }
}
