//! A VM's processes and targets, as commands see them.

use alloc::vec::Vec;
use core::sync::atomic::Ordering;

use devices::time::HostTicks;

use super::error::CommandError;
use crate::suppression::address_space::{Root, RootFormat, same_process};
use crate::suppression::order::Order;
use crate::suppression::snapshot::Snapshot;
use crate::suppression::target::Target;
use crate::suppression::usage::{self, Process};
use crate::vm::Vm;

/// A target of a VM.
#[derive(Clone, Debug)]
pub(super) struct TargetInfo {
    /// Its roots; the operator named the first.
    pub roots: Vec<Root>,
    /// How it is suppressed.
    pub order: Order,
}

impl From<&Target> for TargetInfo {
    fn from(target: &Target) -> Self {
        Self {
            roots: target.roots().collect(),
            order: *target.order(),
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

/// Returns the processes seen in `vm`, by share of the CPU.
pub(super) fn processes(vm: &Vm, now: HostTicks) -> Vec<Process> {
    let format = root_format(vm);
    let mut usages: Vec<_> = vm.usages.iter().map(|usage| usage.lock()).collect();
    usage::report(usages.iter_mut().map(|usage| &mut **usage), now, |a, b| {
        same_process(&vm.ram, a, b, format)
    })
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
    let seen: Vec<Root> = vm
        .usages
        .iter()
        .flat_map(|usage| usage.lock().roots().collect::<Vec<_>>())
        .collect();
    let target = {
        let mut suppression = vm.suppression.lock();
        suppression
            .suppress(&vm.ram, root, root_format(vm), order, seen.into_iter(), now)
            .map_err(|problem| CommandError::new("no_target", problem))?;
        suppression.targets().of(root).map(TargetInfo::from)
    };
    vm.suppression_changed();
    Ok(target)
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
