//! A VM's processes and targets, as commands see them.

use alloc::vec::Vec;
use core::sync::atomic::Ordering;

use devices::time::HostTicks;

use super::clock::HostClock;
use super::error::CommandError;
use crate::suppression::address_space::{Root, RootFormat, user_half_digest};
use crate::suppression::order::Order;
use crate::suppression::snapshot::Snapshot;
use crate::suppression::target::Target;
use crate::suppression::usage::{self, Grouping, SeenRoots};
use crate::vm::Vm;

/// A target of a VM.
#[derive(Clone, Debug)]
pub(super) struct TargetInfo {
    /// Its roots; the operator named the first.
    pub roots: Vec<Root>,
    /// The order by which it is suppressed.
    pub order: Order,
    /// The multiple of real time at which its guest's clock can run at most, if that is much less than
    /// it was to be.
    pub slower_clock: Option<u64>,
}

impl From<&Target> for TargetInfo {
    fn from(target: &Target) -> Self {
        Self {
            roots: target.named_roots().collect(),
            order: *target.order(),
            slower_clock: None,
        }
    }
}

/// Returns the format of roots in the guest: that of long mode, which all that have processes worth
/// naming are in, unless the guest has been seen to page otherwise.
pub(super) fn root_format(vm: &Vm) -> RootFormat {
    match vm.root_format.load(Ordering::Relaxed) {
        1 => RootFormat::Narrow,
        2 => RootFormat::Pae,
        _ => RootFormat::Long,
    }
}

/// The processes seen in a VM, being put together a little at a time: there may be thousands.
pub(super) struct Processes {
    format: RootFormat,
    /// The seed of the digests of user halves.
    seed: u64,
    /// The rest of the table of a VCPU.
    table: usage::Table,
    /// The number of the VCPU whose table is the next.
    next_table: usize,
    roots: SeenRoots,
    /// The roots by the digests of their user halves.
    grouping: Grouping<u128>,
}

impl Processes {
    /// Begins at `now` with those of `vm`.
    pub(super) fn begin(vm: &Vm, now: HostTicks) -> Self {
        Self {
            format: root_format(vm),
            seed: now.0,
            table: usage::Table::default(),
            next_table: 0,
            roots: SeenRoots::default(),
            grouping: Grouping::default(),
        }
    }

    /// Goes on until `until`, and holds up each VCPU no longer than it takes to copy its table. Returns all
    /// processes, by share of the CPU, when that is it.
    pub(super) fn step(
        &mut self,
        vm: &Vm,
        clock: &HostClock,
        until: HostTicks,
    ) -> Option<usage::Processes> {
        loop {
            if let Some(seen) = self.table.next() {
                self.roots.add(seen);
            } else if let Some(usage) = vm.usages.get(self.next_table) {
                self.table = usage.lock().at(clock.now());
                self.next_table += 1;
            } else if let Some(seen) = self.roots.take_next() {
                let digest = user_half_digest(&vm.ram, seen.root, self.format, self.seed);
                self.grouping.add(seen, digest);
            } else if !self.grouping.step() {
                return Some(core::mem::take(&mut self.grouping).into_processes());
            }
            if clock.now() >= until {
                return None;
            }
        }
    }
}

/// Returns what switches to the targets of `vm` are seen by, in a word.
pub(super) fn switches_are_seen_by(vm: &Vm) -> &'static str {
    if vm.memory_map.is_guarding() && !vm.trace.is_on() {
        "walks"
    } else {
        "loads"
    }
}

/// Returns what is suppressed in `vm`, and how that goes.
pub(super) fn suppression(vm: &Vm, now: HostTicks) -> Snapshot {
    vm.suppression.lock().snapshot(now)
}

/// Makes the process of `root` a target, or changes how it is suppressed. Returns the target.
///
/// # Errors
/// If `root` is no process's, or there are too many targets.
pub(super) fn suppress(
    vm: &Vm,
    root: Root,
    order: Order,
    now: HostTicks,
) -> Result<Option<TargetInfo>, CommandError> {
    let seen = seen(vm);
    let statistics = vm.statistics.iter();
    let exit_cost = statistics
        .map(|it| it.lock().exit_cost())
        .max()
        .unwrap_or(0);
    let target = {
        let mut suppression = vm.suppression.lock();
        suppression
            .suppress(&vm.ram, root, root_format(vm), order, &seen, now)
            .map_err(|problem| CommandError::new("no_target", problem))?;
        suppression.set_exit_cost(exit_cost);
        let fastest = suppression.fastest();
        let target = suppression.targets().named(root).map(TargetInfo::from);
        target.map(|target| TargetInfo {
            slower_clock: target
                .order
                .wants_much_more_than(fastest)
                .then_some(fastest),
            ..target
        })
    };
    vm.suppression_changed();
    vm.await_suppression_change();
    Ok(target)
}

/// Makes the process of `root` a member of the family of the target that was named by `with`. Returns
/// whether there is such a target.
///
/// # Errors
/// If `root` is no process's, or the family has as many members as it may have.
pub(super) fn suppress_with(
    vm: &Vm,
    with: Root,
    root: Root,
    now: HostTicks,
) -> Result<bool, CommandError> {
    let seen = seen(vm);
    let is_there = {
        let mut suppression = vm.suppression.lock();
        let is_there = suppression.suppress_with(&vm.ram, with, root, &seen, now);
        if suppression.has_notices() {
            vm.note_notices(&mut suppression, None);
        }
        is_there
    };
    vm.suppression_changed();
    vm.await_suppression_change();
    is_there.map_err(|problem| CommandError::new("no_target", problem))
}

/// Returns the roots that VCPUs of `vm` have been seen to have, in their order: those of one process are often
/// neighbors.
fn seen(vm: &Vm) -> Vec<Root> {
    let mut seen = Vec::new();
    for usage in &vm.usages {
        seen.extend(usage.lock().roots());
    }
    seen.sort_unstable();
    seen.dedup();
    seen
}

/// Ends the suppression of the target that has `root`; `None` if there is none.
pub(super) fn release(vm: &Vm, root: Root) -> Option<TargetInfo> {
    let target = vm.suppression.lock().release(root)?;
    vm.suppression_changed();
    Some(TargetInfo::from(&target))
}

/// Ends all suppression; returns how many targets there were.
pub(super) fn release_all(vm: &Vm) -> usize {
    let count = vm.suppression.lock().release_all();
    vm.suppression_changed();
    count
}
