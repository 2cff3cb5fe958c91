//! Events that are found by comparing what is with what was.

use alloc::string::String;
use alloc::vec::Vec;
use core::sync::atomic::Ordering;

use devices::time::HostTicks;

use super::{Event, Listener, Reporter};
use crate::ids::VmId;
use crate::manager::VmManager;
use crate::operator::clock::HostClock;
use crate::operator::context::Surroundings;
use crate::operator::inspect::TargetInfo;
use crate::operator::records::{Aliases, Cr3};
use crate::suppression::address_space::Root;
use crate::vm::Vm;

/// The number of times a second that clocks are looked at.
const CLOCKS_PER_SECOND: u64 = 1;
/// The change of a lead that is worth a word, in milliseconds.
const LEAD_STEP: u64 = 10;
/// The beginnings of log messages that are told.
const WARNINGS: [&str; 2] = ["tarpit: warning: ", "tarpit: error: "];

/// The last look at a VM.
#[derive(Clone, Debug, Default)]
struct Seen {
    state: &'static str,
    /// The generation of its targets, and the roots that name them.
    generation: Option<u32>,
    targets: Vec<Root>,
    /// The lead and the drift that were told, in milliseconds.
    lead: (i64, i64),
}

/// The last look at everything.
#[derive(Clone, Debug, Default)]
pub(in crate::operator) struct Changes {
    vms: Vec<Seen>,
    /// The position in the log behind what has been told.
    log: u64,
    clocks_at: HostTicks,
}

impl Changes {
    /// Reports what has changed since the last look.
    pub(in crate::operator) fn look(
        &mut self,
        surroundings: &Surroundings<'_>,
        reporter: &mut Reporter<'_, impl Listener>,
    ) {
        let Surroundings {
            vms, clock, host, ..
        } = *surroundings;
        self.vms.resize_with(vms.ids().count(), Seen::default);
        let now = clock.now();
        let look_at_clocks = now >= self.clocks_at;
        if look_at_clocks {
            let interval = clock.fraction_of_second(CLOCKS_PER_SECOND);
            self.clocks_at = now.saturating_add(interval);
        }
        for (id, seen) in vms.ids().zip(&mut self.vms) {
            seen.look_at_state(id, vms, reporter);
            if let Ok(vm) = vms.vm(id) {
                seen.look_at_targets(&vm, reporter);
                if look_at_clocks {
                    seen.look_at_clock(&vm, clock, now, reporter);
                }
            }
        }
        self.look_at_log(host.log_since, reporter);
    }

    fn look_at_log(
        &mut self,
        since: fn(u64) -> (String, u64),
        reporter: &mut Reporter<'_, impl Listener>,
    ) {
        let (new, position) = since(self.log);
        self.log = position;
        let is_warning = |line: &&str| WARNINGS.iter().any(|start| line.starts_with(start));
        for message in new.lines().filter(is_warning) {
            reporter.report(&Event::Log { message });
        }
    }
}

impl Seen {
    fn look_at_state(
        &mut self,
        id: VmId,
        vms: &VmManager,
        reporter: &mut Reporter<'_, impl Listener>,
    ) {
        let (Ok(info), Ok(vm)) = (vms.info(id), vms.name(id)) else {
            return;
        };
        let state = info.state.name();
        if core::mem::replace(&mut self.state, state) != state {
            reporter.report(&Event::VmState { vm, state });
        }
    }

    /// Reports what has become of targets.
    fn look_at_targets(&mut self, vm: &Vm, reporter: &mut Reporter<'_, impl Listener>) {
        let generation = vm.suppression_generation.load(Ordering::Acquire);
        if self.generation.replace(generation) == Some(generation) {
            return;
        }
        let targets: Vec<TargetInfo> = {
            let suppression = vm.suppression.lock();
            let targets = suppression.targets().iter();
            targets.map(TargetInfo::from).collect()
        };
        let name = |target: &TargetInfo| target.roots.first().copied();
        for root in core::mem::take(&mut self.targets) {
            if !targets.iter().any(|target| name(target) == Some(root)) {
                let cr3 = Cr3(root);
                reporter.report(&Event::TargetOut { vm: &vm.name, cr3 });
            } else {
                self.targets.push(root);
            }
        }
        for target in &targets {
            let Some((root, aliases)) = target.roots.split_first() else {
                continue;
            };
            if !self.targets.contains(root) {
                self.targets.push(*root);
                reporter.report(&Event::TargetIn {
                    vm: &vm.name,
                    cr3: Cr3(*root),
                    aliases: Aliases(aliases),
                    interval: target.order.factors.interval.get(),
                    clock: target.order.factors.clock.get(),
                });
            }
        }
    }

    fn look_at_clock(
        &mut self,
        vm: &Vm,
        clock: &HostClock,
        now: HostTicks,
        reporter: &mut Reporter<'_, impl Listener>,
    ) {
        let (lead, drift) = {
            let suppression = vm.suppression.lock();
            (suppression.lead(now).most(), suppression.drift(now).most())
        };
        let lead = (clock.millis(lead), clock.millis(drift));
        let is_news =
            |old: i64, new: i64| old.abs_diff(new) >= LEAD_STEP || (new == 0) != (old == 0);
        if is_news(self.lead.0, lead.0) || is_news(self.lead.1, lead.1) {
            self.lead = lead;
            reporter.report(&Event::ClockLead {
                vm: &vm.name,
                lead_ms: lead.0,
                drift_ms: lead.1,
            });
        }
    }
}
