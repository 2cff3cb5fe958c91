//! Commands that take their time: done a little at each look at the console, while guests run.

use alloc::boxed::Box;
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec;
use alloc::vec::Vec;
use core::fmt::Write;

use devices::time::HostTicks;
use memchr::memmem::Finder;

use super::{Line, nanos};
use crate::console::{
    Address, Aliases, Cr3, EventLine, MatchLine, Pattern, Text, answer, heading, line,
};
use crate::machine::host_time::host_now;
use crate::machine::serial;
use crate::search::Search;
use crate::suppression::address_space::{Root, RootFormat};
use crate::trace::Entry;
use crate::vm::Vm;

/// How much output may wait for the line before more is made: a tenth of a second's.
const BACKLOG: usize = 1024;

/// A command that goes on.
pub(super) enum Job {
    /// `find`.
    Find(Box<Find>),
    /// `trace VM show`.
    Show {
        /// What is still to be shown.
        entries: vec::IntoIter<Entry>,
        /// In JSON.
        json: bool,
    },
}

impl Job {
    /// Shows the events of a trace.
    pub(super) fn show(entries: Vec<Entry>, json: bool) -> Self {
        heading::<EventLine>(&mut Line, json);
        Self::Show {
            entries: entries.into_iter(),
            json,
        }
    }

    /// Goes on until host time `until`, or until the line is busy. Returns whether it is done.
    pub(super) fn go_on(&mut self, until: HostTicks) -> bool {
        match self {
            Self::Find(find) => find.go_on(until),
            Self::Show { entries, json } => {
                while serial::backlog() < BACKLOG && host_now() < until {
                    let Some(entry) = entries.next() else {
                        return true;
                    };
                    let event = EventLine::new(nanos(entry.at), entry.vcpu, entry.event);
                    line(&mut Line, *json, &event);
                }
                false
            }
        }
    }
}

/// A search through the processes of a VM.
pub(super) struct Find {
    vm: Arc<Vm>,
    format: RootFormat,
    json: bool,
    finder: Finder<'static>,
    ram: u64,
    /// The roots of each process; those from `current` on are still to be searched.
    processes: Vec<Vec<Root>>,
    current: usize,
    search: Option<Search>,
    found: Vec<(usize, Search)>,
}

impl Find {
    pub(super) fn new(
        vm: Arc<Vm>,
        format: RootFormat,
        processes: Vec<Vec<Root>>,
        pattern: &Pattern,
        json: bool,
    ) -> Self {
        let ram = vm.ram.ranges().map(|range| range.length).sum();
        Self {
            vm,
            format,
            json,
            finder: Finder::new(pattern.bytes()).into_owned(),
            ram,
            processes,
            current: 0,
            search: None,
            found: Vec::new(),
        }
    }

    fn go_on(&mut self, until: HostTicks) -> bool {
        loop {
            let Some(root) = self
                .processes
                .get(self.current)
                .and_then(|roots| roots.first())
            else {
                self.tell();
                return true;
            };
            let search = self
                .search
                .get_or_insert_with(|| Search::new(*root, self.format, self.ram));
            if !search.step(&self.vm.ram, &self.finder) {
                if let Some(search) = self.search.take()
                    && search.matches() > 0
                {
                    self.found.push((self.current, search));
                }
                self.current += 1;
            }
            if host_now() >= until {
                return false;
            }
        }
    }

    fn tell(&self) {
        if self.found.is_empty() && !self.json {
            let mut text = String::new();
            // Writing to a string does not fail.
            let _ = writeln!(
                text,
                "none of {} address spaces holds it",
                self.processes.len()
            );
            let _ = Text(&mut Line).write_str(&text);
            return;
        }
        let lines = self.found.iter().filter_map(|(index, search)| {
            let (first, aliases) = self.processes.get(*index)?.split_first()?;
            Some(MatchLine {
                vm: &self.vm.name,
                cr3: Cr3(*first),
                aliases: Aliases(aliases),
                address: Address(search.first()?.0),
                matches: search.matches(),
                complete: search.is_complete(),
            })
        });
        answer(&mut Line, self.json, lines);
    }
}
