//! A process of a family: its roots, and what it is known by.

#![forbid(unsafe_code)]

use core::fmt;

use devices::time::HostTicks;

use super::address_space::{Root, RootFormat, referred_table, same_process, user_tables};
use super::notice::End;
use super::private_pages::{Fate, PrivatePages};
use crate::guest_memory::GuestMemory;

/// The most roots that one process has.
pub(super) const MAX_ROOTS: usize = 4;
pub(super) const WITNESSES: usize = 4;

/// An entry of a root's user half, and the table it refers to. Table zero: none.
type Witness = (usize, u64);
type Witnesses = [Witness; WITNESSES];

/// The sign by which a process is known to belong to a family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Sign {
    /// The operator's word.
    Named,
    /// The private memory that it has in common with its parent.
    Fork,
    /// The kernel stack on which the address space was exchanged.
    Exec,
    /// The rule that another member was found by.
    Rule,
}

impl Sign {
    /// Returns its name, for the operator.
    #[must_use]
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Named => "named",
            Self::Fork => "fork",
            Self::Exec => "exec",
            Self::Rule => "rule",
        }
    }
}

impl fmt::Display for Sign {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The way in which a process comes into a family.
#[derive(Clone, Copy, Debug)]
pub(super) struct Origin {
    pub(super) sign: Sign,
    /// The first root of its parent.
    pub(super) parent: Option<Root>,
    pub(super) at: HostTicks,
}

/// A process of a family.
#[derive(Clone, Debug)]
pub(crate) struct Member {
    /// Its number in the family.
    pub(super) id: u32,
    /// Its roots, the one that was seen first at the front.
    roots: [Option<Root>; MAX_ROOTS],
    witnesses: Witnesses,
    pub(super) pages: PrivatePages,
    /// The time at which its pages were looked at last while it ran on, and the CPU time that it had had then, in ticks.
    pub(super) looked_at: HostTicks,
    pub(super) looked_at_use: u64,
    /// The time at which more pages were searched for last.
    pub(super) searched_at: HostTicks,
    /// The CPU time that it had had when its frozen pages were read last, in ticks.
    pub(super) read_at_use: Option<u64>,
    /// The way in which it came into the family.
    pub(super) origin: Origin,
    /// Real CPU time in its address space, in ticks.
    pub(super) used: u64,
    /// Its end, if that has come.
    pub(super) ended: Option<End>,
}

/// Returns what the process of `root` is known by; `None` if it has no user space.
pub(super) fn witnesses(
    memory: &impl GuestMemory,
    root: Root,
    format: RootFormat,
) -> Option<Witnesses> {
    let mut witnesses = [(0, 0); WITNESSES];
    let mut tables = user_tables(memory, root, format);
    witnesses[0] = tables.next()?;
    for (witness, table) in witnesses[1..].iter_mut().zip(tables) {
        *witness = table;
    }
    Some(witnesses)
}

impl Member {
    /// Makes a member of number `id` with this first root, known by `witnesses`.
    pub(super) const fn new(id: u32, root: Root, witnesses: Witnesses, origin: Origin) -> Self {
        let mut roots = [None; MAX_ROOTS];
        roots[0] = Some(root);
        Self {
            id,
            roots,
            witnesses,
            pages: PrivatePages::NONE,
            looked_at: HostTicks(0),
            looked_at_use: 0,
            searched_at: HostTicks(0),
            read_at_use: None,
            origin,
            used: 0,
            ended: None,
        }
    }

    /// Returns the root of it that was seen first.
    pub(super) fn root(&self, format: RootFormat) -> Root {
        // A member is made with its first root, and never loses it.
        self.roots[0].unwrap_or(Root::new(0, format))
    }

    /// Returns all its roots known so far.
    pub(super) fn roots(&self) -> impl Iterator<Item = Root> + '_ {
        self.roots.iter().flatten().copied()
    }

    /// Returns the table that `root` has where this process has its first one: two roots that have the same there are
    /// one process's.
    pub(super) fn corresponding_table(
        &self,
        memory: &impl GuestMemory,
        root: Root,
        format: RootFormat,
    ) -> u64 {
        referred_table(memory, root, format, self.witnesses[0].0)
    }

    pub(super) const fn lives(&self) -> bool {
        self.ended.is_none()
    }

    pub(super) fn has(&self, root: Root) -> bool {
        self.lives() && self.roots.contains(&Some(root))
    }

    /// Takes `root` in if it is another root of this process.
    pub(super) fn adopt(
        &mut self,
        memory: &impl GuestMemory,
        root: Root,
        format: RootFormat,
    ) -> bool {
        if !self.lives()
            // The whole comparison is only for those that agree here.
            || self.corresponding_table(memory, root, format) != self.witnesses[0].1
            || !same_process(memory, self.root(format), root, format)
        {
            return false;
        }
        if let Some(free) = self.roots.iter_mut().find(|known| known.is_none()) {
            *free = Some(root);
        }
        true
    }

    /// Looks at the process, whose root a processor has, or had without a break since it was looked at
    /// last: whatever the root refers to is its. It is gone only when that is nothing; else it is
    /// known by what it has now.
    pub(super) fn look_while_loaded(
        &mut self,
        memory: &impl GuestMemory,
        format: RootFormat,
    ) -> Option<End> {
        let root = self.root(format);
        let stands = |&(index, table): &Witness| {
            table == 0 || referred_table(memory, root, format, index) == table
        };
        if self.witnesses.iter().all(stands) {
            return None;
        }
        match witnesses(memory, root, format) {
            Some(current) => {
                self.witnesses = current;
                None
            }
            None => Some(End::Died),
        }
    }

    /// Looks at the process, whose root no processor has had for a while: its page may be in use for
    /// something else. While a process does not run, its kernel may take pages away from it, and may move
    /// one, but does not take its tables. So the process is gone when none of its tables is there any
    /// more, or some are not and none of its pages, or there are others in the place of its pages.
    pub(super) fn look_after_a_while(
        &mut self,
        memory: &impl GuestMemory,
        format: RootFormat,
    ) -> Option<End> {
        let root = self.root(format);
        let stands = |&&(index, table): &&Witness| {
            table != 0 && referred_table(memory, root, format, index) == table
        };
        let known = self.witnesses.iter().filter(|it| it.1 != 0).count();
        let standing = self.witnesses.iter().filter(stands).count();
        if standing == known && self.pages.keep_any(memory, root, format) {
            return None;
        }
        let pages = self.pages.fate(memory, root, format);
        if standing < known {
            let Some(current) = witnesses(memory, root, format) else {
                return Some(End::Died);
            };
            if standing == 0 || pages.kept == 0 && pages != Fate::default() {
                // A kernel that frees an address space unmaps its pages, and then the tables.
                let is_emptied = pages.taken > 0 && pages.exchanged == 0;
                return Some(if is_emptied { End::Died } else { End::Lost });
            }
            // The process has let go of a part of its address space.
            self.witnesses = current;
        }
        (pages.kept == 0 && pages.exchanged >= 2).then_some(End::Lost)
    }
}
