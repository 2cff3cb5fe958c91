//! Rules, and what becomes of them while guests run: searches in small steps, of which all together
//! cost at most a hundredth of the time of the CPU that makes them.

use alloc::collections::VecDeque;
use alloc::string::{String, ToString};
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::cmp::Reverse;

use devices::time::HostTicks;

use super::clock::HostClock;
use super::error::CommandError;
use super::events::{Event, Listener, Reporter};
use super::inspect::{self, Processes};
use super::records::{Cr3, Hex};
use crate::ids::VmId;
use crate::manager::VmManager;
use crate::suppression::address_space::{Root, RootFormat};
use crate::suppression::order::Order;
use crate::suppression::usage::Process;
use crate::suppression::{Factor, Factors};
use crate::vm::Vm;
use crate::watch::hogs::Hogs;
use crate::watch::limiter::{Limiter, PERMILLE, PERMILLE_AGAIN};
use crate::watch::patterns::{MAX_PATTERNS, PatternSet};
use crate::watch::rule::{Action, Condition, Rule};
use crate::watch::searcher::{Found, Guest, Searcher, Step};

/// The most rules.
const MAX_RULES: usize = 128;
/// The longest turn, as a divisor of a second.
const TURNS_PER_SECOND: u64 = 8000;
/// The number of times a second that shares of the CPU are looked at.
const SHARES_PER_SECOND: u64 = 2;
/// The number of times a second that it is looked for something new while there was nothing the last time. Each asks
/// the VCPUs what they run, for which those that are in the guest come out.
const LOOKS_PER_SECOND: u64 = 50;
/// The time after which an address space is searched again, as a divisor of a second.
const AGAIN_PER_SECOND: u64 = 1;

/// A rule, and what has come of it.
#[derive(Clone, Debug)]
pub(super) struct RuleEntry {
    /// Its number, by which it is known.
    pub number: u32,
    /// The VM that it is for.
    pub vm: VmId,
    /// The rule.
    pub rule: Rule,
    /// The number of processes that it held for.
    pub matches: u64,
    /// The number of address spaces that were searched and do not hold the pattern, or of processes that
    /// had much CPU time for less long.
    pub misses: u64,
    hogs: Hogs,
    /// The target that was made of the first process that it held for: those that are found to hold the same pattern
    /// later belong to that one's family.
    family: Option<Root>,
}

/// A VM that is watched.
struct Watched {
    id: VmId,
    /// The state that its VCPUs share: another one after a restart.
    vm: Option<Arc<Vm>>,
    format: RootFormat,
    patterns: PatternSet,
    searcher: Searcher,
    /// The changes of roots of each VCPU up to the last look at what has run.
    changes: Vec<u64>,
    /// The members of targets that had come to their end by then.
    departures: u64,
    /// A buffer for the roots that they have run since then.
    seen: Vec<(Root, HostTicks)>,
    /// The processes, while they are being put together.
    processes: Option<Processes>,
    shares_at: HostTicks,
    /// The matches of which nothing has come yet.
    matches: VecDeque<Match>,
}

/// The rules, and the state of their application. See the [module documentation](self).
pub(crate) struct Watcher {
    rules: Vec<RuleEntry>,
    next_number: u32,
    watched: Vec<Watched>,
    /// The place in `watched` of the one whose turn is next.
    next: usize,
    limiter: Limiter,
    /// The limiter of searches through what has been searched before.
    again: Limiter,
    /// The time before which it need not be looked for something new.
    nothing_new_before: HostTicks,
    /// Whether there was more to do at the last look than to search again what was searched.
    has_more: bool,
}

/// A match, before anything is done about it.
struct Match {
    rule: u32,
    root: Root,
    /// All roots of the process that are known.
    roots: Vec<Root>,
    address: Option<u64>,
    permille: Option<u32>,
}

impl Watcher {
    /// Makes one without rules.
    #[must_use]
    pub(super) fn new(clock: &HostClock) -> Self {
        Self {
            rules: Vec::new(),
            next_number: 1,
            watched: Vec::new(),
            next: 0,
            limiter: Limiter::new(PERMILLE, clock.frequency(), clock.now()),
            again: Limiter::new(PERMILLE_AGAIN, clock.frequency(), clock.now()),
            nothing_new_before: clock.now(),
            has_more: false,
        }
    }

    /// Adds a rule for a VM. Returns its number.
    ///
    /// # Errors
    /// If there are too many.
    pub(super) fn add(&mut self, vm: VmId, rule: Rule) -> Result<u32, CommandError> {
        let of_vm = self.rules.iter().filter(|entry| entry.vm == vm);
        let patterns = of_vm.filter(|entry| entry.rule.pattern().is_some()).count();
        if self.rules.len() >= MAX_RULES || rule.pattern().is_some() && patterns >= MAX_PATTERNS {
            return Err(CommandError::new(
                "too_many_rules",
                format_args!(
                    "there can be {MAX_PATTERNS} patterns for a VM and {MAX_RULES} rules in all: \
                     `unwatch` removes some"
                ),
            ));
        }
        let number = self.next_number;
        self.next_number += 1;
        self.rules.push(RuleEntry {
            number,
            vm,
            rule,
            matches: 0,
            misses: 0,
            hogs: Hogs::default(),
            family: None,
        });
        self.rules_changed(vm);
        Ok(number)
    }

    /// Removes the rule of this number, if it is one of the VM's.
    pub(super) fn remove(&mut self, vm: VmId, number: u32) -> Option<RuleEntry> {
        let is_it = |entry: &RuleEntry| entry.vm == vm && entry.number == number;
        let at = self.rules.iter().position(is_it)?;
        let removed = self.rules.remove(at);
        self.rules_changed(vm);
        Some(removed)
    }

    /// Removes all rules of a VM, and returns how many there were.
    pub(super) fn remove_all(&mut self, vm: VmId) -> usize {
        let before = self.rules.len();
        self.rules.retain(|entry| entry.vm != vm);
        self.rules_changed(vm);
        before - self.rules.len()
    }

    /// Returns whether there is something to do soon, besides to look now and then for something new.
    pub(super) const fn goes_on(&self) -> bool {
        self.has_more
    }

    /// Returns all rules, the oldest first.
    pub(super) fn rules(&self) -> impl Iterator<Item = &RuleEntry> {
        self.rules.iter()
    }

    fn rules_changed(&mut self, vm: VmId) {
        self.nothing_new_before = HostTicks(0);
        self.has_more = true;
        let of_vm = || self.rules.iter().filter(|entry| entry.vm == vm);
        if of_vm().next().is_none() {
            self.watched.retain(|watched| watched.id != vm);
            return;
        }
        let patterns = of_vm().filter_map(|entry| Some((entry.number, entry.rule.pattern()?)));
        let patterns = PatternSet::new(patterns);
        match self.watched.iter_mut().find(|watched| watched.id == vm) {
            Some(watched) => {
                watched.patterns = patterns;
                watched.searcher.begin_anew();
            }
            None => self.watched.push(Watched {
                id: vm,
                vm: None,
                format: RootFormat::Long,
                patterns,
                searcher: Searcher::default(),
                changes: Vec::new(),
                departures: 0,
                seen: Vec::new(),
                processes: None,
                shares_at: HostTicks(0),
                matches: VecDeque::new(),
            }),
        }
    }

    /// Applies the rules for a moment, if they may cost some time now. Matches are reported.
    pub(super) fn look(
        &mut self,
        vms: &VmManager,
        clock: &HostClock,
        reporter: &mut Reporter<'_, impl Listener>,
    ) {
        if self.watched.is_empty() {
            self.has_more = false;
            return;
        }
        let begin = clock.now();
        // A turn that is too short is used up by what each begins with.
        let turn = clock.fraction_of_second(TURNS_PER_SECOND);
        if begin < self.nothing_new_before || self.limiter.left(begin) < turn {
            return;
        }
        self.has_more = false;
        let until = begin.saturating_add(turn);
        for _ in 0..self.watched.len() {
            self.next = (self.next + 1) % self.watched.len();
            self.has_more |= self.look_at_vm(self.next, vms, clock, until, reporter);
            if clock.now() >= until {
                break;
            }
        }
        if !self.has_more {
            let pause = clock.fraction_of_second(LOOKS_PER_SECOND);
            self.nothing_new_before = begin.saturating_add(pause);
        }
        self.limiter.charge(clock.now().since(begin));
    }

    /// Looks at the VM at place `at`. Returns whether there may be more to do than to search again what was searched.
    fn look_at_vm(
        &mut self,
        at: usize,
        vms: &VmManager,
        clock: &HostClock,
        until: HostTicks,
        reporter: &mut Reporter<'_, impl Listener>,
    ) -> bool {
        let Some(watched) = self.watched.get_mut(at) else {
            return false;
        };
        let Ok(vm) = vms.vm(watched.id) else {
            return false;
        };
        let mut has_more = false;
        let id = watched.id;
        let of_vm = |entry: &&mut RuleEntry| entry.vm == id;
        watched.follow(&vm, clock, until);
        if watched.matches.is_empty() {
            if watched.patterns.is_empty() {
                // Only shares are looked at.
            } else {
                let first;
                (first, has_more) = watched.search(&vm, clock, until, &mut self.again);
                let rules = self.rules.iter_mut().filter(of_vm);
                for entry in rules.filter(|entry| entry.rule.pattern().is_some()) {
                    let is_miss = |it: &&Vec<u32>| !it.contains(&entry.number);
                    entry.misses += first.iter().filter(is_miss).count() as u64;
                }
            }
            let rules = self.rules.iter_mut().filter(of_vm);
            let hogs = rules.filter(|entry| matches!(entry.rule.condition, Condition::Hogs(_)));
            watched.look_at_shares(&vm, hogs, clock, until);
        }
        has_more |= watched.processes.is_some() || !watched.matches.is_empty();
        // One at least, the others another time: what comes of a match takes long.
        while let Some(found) = self.next_match(at, &vm) {
            self.act(&vm, &found, clock, reporter);
            if clock.now() >= until {
                break;
            }
        }
        has_more
    }

    /// Takes the next match of the VM at place `at`, if its process is still there.
    fn next_match(&mut self, at: usize, vm: &Vm) -> Option<Match> {
        let watched = self.watched.get_mut(at)?;
        loop {
            let found = watched.matches.pop_front()?;
            if found.address.is_none() || watched.searcher.is_there(&watched.guest(vm), found.root)
            {
                return Some(found);
            }
        }
    }

    /// Does what a rule says about a match, and reports it.
    fn act(
        &mut self,
        vm: &Vm,
        found: &Match,
        clock: &HostClock,
        reporter: &mut Reporter<'_, impl Listener>,
    ) {
        let mut entries = self.rules.iter_mut();
        let Some(entry) = entries.find(|entry| entry.number == found.rule) else {
            return;
        };
        let format = inspect::root_format(vm);
        let is_exception = |cr3: &u64| {
            let root = Root::new(*cr3, format);
            root == found.root || found.roots.contains(&root)
        };
        if entry.rule.exceptions.iter().any(is_exception) {
            return;
        }
        entry.matches += 1;
        let (mut suppressed, mut refused) = (None, None);
        if let Action::Suppress(factor) = entry.rule.action {
            let family = entry.family.filter(|_| entry.rule.pattern().is_some());
            match suppress(vm, found.root, family, factor, clock.now()) {
                Ok(named) => {
                    entry.family = Some(named);
                    suppressed = Some(factor.get());
                }
                Err(why) => {
                    // It may have ended, and the next process have it at the same place.
                    let mut watched = self.watched.iter_mut();
                    if let (Some(address), Some(watched)) =
                        (found.address, watched.find(|it| it.id == entry.vm))
                    {
                        watched.searcher.begin_at(address);
                    }
                    refused = Some(why);
                }
            }
        }
        reporter.report(&Event::RuleMatch {
            rule: entry.number,
            vm: &vm.name,
            cr3: Cr3(found.root),
            condition: entry.rule.condition.to_string(),
            address: found.address.map(Hex),
            cpu_permille: found.permille,
            suppressed,
            refused,
        });
    }
}

/// Suppresses a process as a rule says, unless it is suppressed already: with the `family` of the target of this
/// name, if there is one. Returns the name of the target.
fn suppress(
    vm: &Vm,
    root: Root,
    family: Option<Root>,
    factor: Factor,
    now: HostTicks,
) -> Result<Root, String> {
    let (is_target, defaults) = {
        let suppression = vm.suppression.lock();
        (
            suppression.targets().of(root).is_some(),
            suppression.defaults(),
        )
    };
    if is_target {
        return Err("it is suppressed already".into());
    }
    let text = |error: CommandError| error.to_string();
    if let Some(named) = family
        && inspect::suppress_with(vm, named, root, now).map_err(text)?
    {
        return Ok(named);
    }
    let order = Order::new(Factors::both(factor), defaults);
    inspect::suppress(vm, root, order, now).map_err(text)?;
    Ok(root)
}

impl Watched {
    /// Takes note of what has run since the last look, the latest first: that may take half of the time until `until`.
    /// Who runs on is seen another time.
    fn follow(&mut self, vm: &Arc<Vm>, clock: &HostClock, until: HostTicks) {
        let format = inspect::root_format(vm);
        let is_same = self.vm.as_ref().is_some_and(|known| Arc::ptr_eq(known, vm));
        if !is_same || format != self.format {
            self.vm = Some(vm.clone());
            self.format = format;
            self.searcher = Searcher::default();
            self.processes = None;
            self.matches.clear();
            self.changes.clear();
            self.departures = 0;
        }
        if self.patterns.is_empty() {
            return;
        }
        {
            let suppression = vm.suppression.lock();
            let departed = suppression.departed_since(self.departures);
            self.departures = departed.count;
            if departed.are_incomplete {
                self.searcher.some_have_ended();
            }
            for root in departed.roots {
                self.searcher.has_ended(root);
            }
        }
        vm.sample_roots();
        let guest = self.guest(vm);
        self.changes.resize(vm.usages.len(), 0);
        self.seen.clear();
        for (usage, changes) in vm.usages.iter().zip(&mut self.changes) {
            let usage = usage.lock();
            let (seen, now) = usage.seen_since(*changes);
            self.seen.extend(seen);
            *changes = now;
        }
        self.seen.sort_unstable_by_key(|&(_, at)| Reverse(at));
        let begin = clock.now();
        let enough = begin.saturating_add(until.since(begin) / 2);
        for &(root, at) in &self.seen {
            self.searcher.see(&guest, root, at);
            if clock.now() >= enough {
                break;
            }
        }
    }

    fn guest<'a>(&self, vm: &'a Vm) -> Guest<'a, crate::vm::ram::GuestRam> {
        Guest {
            memory: &vm.ram,
            ram: vm.ram.ranges().map(|range| range.length).sum(),
            format: self.format,
        }
    }

    /// Searches until then, or until all that is left to do is to search again and `again` says that it may not.
    /// Returns what the address spaces have matched whose first search has ended, and whether there was anything else
    /// than to search again.
    fn search(
        &mut self,
        vm: &Vm,
        clock: &HostClock,
        until: HostTicks,
        again: &mut Limiter,
    ) -> (Vec<Vec<u32>>, bool) {
        let guest = self.guest(vm);
        let again_after = clock.fraction_of_second(AGAIN_PER_SECOND);
        let mut ended = Vec::new();
        let mut is_new = false;
        let mut now = clock.now();
        // Once at least: to take note of who has run may have taken all the time, each time.
        loop {
            let found = |found: Found| {
                self.matches.push_back(Match {
                    rule: found.rule,
                    root: found.root,
                    roots: Vec::new(),
                    address: Some(found.address),
                    permille: None,
                });
            };
            let may_search_again = again.left(now) > 0;
            let step = self.searcher.step(
                &guest,
                &self.patterns,
                now,
                again_after,
                may_search_again,
                found,
            );
            let begin = now;
            now = clock.now();
            match step {
                Step::Idle => break,
                Step::Piece => is_new = true,
                Step::Again => again.charge(now.since(begin)),
                Step::First(matched) => {
                    is_new = true;
                    ended.push(matched);
                }
            }
            if now >= until {
                break;
            }
        }
        (ended, is_new)
    }

    /// Looks at shares of the CPU, a few times a second.
    fn look_at_shares<'a>(
        &mut self,
        vm: &Vm,
        rules: impl Iterator<Item = &'a mut RuleEntry>,
        clock: &HostClock,
        until: HostTicks,
    ) {
        let mut rules = rules.peekable();
        let now = clock.now();
        if rules.peek().is_none() || self.processes.is_none() && now < self.shares_at {
            return;
        }
        let processes = self.processes.get_or_insert_with(|| {
            let interval = clock.fraction_of_second(SHARES_PER_SECOND);
            self.shares_at = now.saturating_add(interval);
            Processes::begin(vm, now)
        });
        let Some(list) = processes.step(vm, clock, until) else {
            return;
        };
        self.processes = None;
        let list: Vec<_> = list.take(Hogs::MOST).collect();
        for entry in rules {
            let Condition::Hogs(hog) = entry.rule.condition else {
                continue;
            };
            let ticks = u64::from(hog.seconds).saturating_mul(clock.fraction_of_second(1));
            let rule = entry.number;
            let found = |process: &Process| {
                if let Some(root) = process.roots.first() {
                    self.matches.push_back(Match {
                        rule,
                        root: *root,
                        roots: process.roots.clone(),
                        address: None,
                        permille: Some(process.share),
                    });
                }
            };
            let permille = hog.percent.saturating_mul(10);
            entry.misses += entry.hogs.look(&list, permille, ticks, now, found);
        }
    }
}
