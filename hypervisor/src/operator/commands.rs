//! What each command does.

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::fmt::Write;
use core::sync::atomic::Ordering;

use super::job::{Find, Job};
use super::{CONSOLE, Line, TIME, micros, report_stops};
use devices::time::HostTicks;

use crate::console::{
    Aliases, Command, Cr3, DoneLine, Overview, Pattern, ProcessLine, StatsLine, TargetLine, Text,
    TraceAction, TraceLine, VmLine, answer, error, parse, wants_json,
};
use crate::ids::VmId;
use crate::machine::host_time::host_now;
use crate::machine::{power, serial};
use crate::manager::{RequestError, VmManager};
use crate::scheduler::Latency;
use crate::suppression::Factors;
use crate::suppression::address_space::{Root, RootFormat, same_process};
use crate::suppression::target::Target;
use crate::suppression::usage::{self, Process};
use crate::vm::Vm;

/// Carries out a line that the operator has entered, and answers it; or begins to, and the
/// rest is the job.
pub(super) fn execute(manager: &VmManager, line: &str) -> Option<Job> {
    let out = &mut Line;
    let json = wants_json(line);
    let request = match parse(line) {
        Ok(Some(request)) => request,
        Ok(None) => return None,
        Err(problem) => {
            error(out, json, problem.kind(), problem);
            return None;
        }
    };
    let vm = match request.command.vm() {
        None => None,
        Some(name) => {
            let console = CONSOLE.lock();
            match console.vm(name) {
                Ok(number) => Some(VmId(number)),
                Err(problem) => {
                    error(out, json, "unknown_vm", problem);
                    return None;
                }
            }
        }
    };
    match (&request.command, vm) {
        (Command::Help(None), _) => {
            let _ = write!(Text(out), "{Overview}");
        }
        (Command::Help(Some(topic)), _) => {
            let _ = write!(Text(out), "{topic}");
        }
        (Command::Vms, _) => list_vms(manager, json),
        (Command::Targets { .. }, None) => {
            let vms: Vec<_> = manager.ids().filter_map(|id| manager.vm(id).ok()).collect();
            list_targets(&vms, json);
        }
        (Command::Attach { .. }, Some(id)) => CONSOLE.lock().attach(id.0, out),
        (Command::Pause { .. }, Some(id)) => ask(json, "paused", manager.pause(id)),
        (Command::Resume { .. }, Some(id)) => ask(json, "resumed", manager.resume(id)),
        (Command::Stop { .. }, Some(id)) => {
            let answer = manager.stop(id);
            report_stops(manager);
            ask(json, "stopping", answer);
        }
        (Command::Start { .. }, Some(id)) => ask(json, "starting", manager.start(id)),
        (Command::Restart { .. }, Some(id)) => {
            let answer = manager.restart(id);
            report_stops(manager);
            ask(json, "restarting", answer);
        }
        (Command::Pin { vcpu, cpu, .. }, Some(id)) => {
            ask(json, "pinned", manager.pin(id, *vcpu, *cpu));
        }
        (Command::Shutdown, _) => {
            answer(
                out,
                json,
                [DoneLine {
                    done: "switching the machine off",
                }],
            );
            serial::flush();
            power::off();
        }
        (_, Some(id)) => match manager.vm(id) {
            Ok(vm) => return look_at(manager, request.command, vm, json),
            Err(problem) => error(out, json, problem.kind(), problem),
        },
        // The console has just found the VM that the command names.
        (_, None) => {}
    }
    None
}

/// Carries out a command on what a VM's VCPUs share, whether it runs or has run.
fn look_at(manager: &VmManager, command: Command<'_>, vm: Arc<Vm>, json: bool) -> Option<Job> {
    match command {
        Command::Ps { .. } => list_processes(&vm, json),
        Command::Suppress { cr3, factors, .. } => suppress(&vm, cr3, factors, json),
        Command::Targets { .. } => list_targets(&[vm], json),
        Command::Release { cr3, .. } => release(&vm, cr3, json),
        Command::Stats { .. } => statistics(manager, &vm, json),
        Command::Find { pattern, .. } => return Some(find(vm, &pattern, json)),
        Command::Trace { action, .. } => return trace(&vm, action, json),
        _ => debug_assert!(false, "carried out before"),
    }
    None
}

/// Ticks of host time in milliseconds.
fn millis(ticks: i64) -> i64 {
    let Some((tsc, _)) = TIME.get() else { return 0 };
    let millis = i128::from(ticks) * 1000 / i128::from(tsc.get());
    millis.clamp(i64::MIN.into(), i64::MAX.into()) as i64
}

/// Answers `done` to a request that the manager agrees to, and why to one that it does not.
fn ask(json: bool, done: &str, agreed: Result<(), RequestError>) {
    match agreed {
        Err(problem) => error(&mut Line, json, problem.kind(), problem),
        Ok(()) => answer(&mut Line, json, [DoneLine { done }]),
    }
}

fn list_vms(manager: &VmManager, json: bool) {
    let now = host_now();
    answer(
        &mut Line,
        json,
        manager.ids().filter_map(|id| {
            let info = manager.info(id).ok()?;
            let (targets, lead) = info.vm.as_ref().map_or((0, 0), |vm| {
                let watch = vm.suppression.lock();
                (watch.targets().iter().count(), watch.lead(now))
            });
            Some(VmLine {
                vm: manager.name(id).ok()?,
                state: info.state.name(),
                memory_mib: info.memory >> 20,
                vcpus: info.vcpus as usize,
                targets,
                lead_ms: millis(lead),
            })
        }),
    );
}

/// The processes seen in `vm`, by share of the CPU.
fn processes(vm: &Vm, now: HostTicks) -> Vec<Process> {
    let format = vm.root_format();
    let mut usages: Vec<_> = vm.usages.iter().map(|usage| usage.lock()).collect();
    usage::report(usages.iter_mut().map(|usage| &mut **usage), now, |a, b| {
        same_process(&vm.ram, a, b, format)
    })
}

fn find(vm: Arc<Vm>, pattern: &Pattern, json: bool) -> Job {
    let roots = processes(&vm, host_now())
        .into_iter()
        .map(|process| process.roots)
        .collect();
    let format = vm.root_format();
    Job::Find(alloc::boxed::Box::new(Find::new(
        vm, format, roots, pattern, json,
    )))
}

fn trace(vm: &Vm, action: TraceAction, json: bool) -> Option<Job> {
    match action {
        TraceAction::Show(count) => return Some(Job::show(vm.trace.latest(count), json)),
        TraceAction::Status => {}
        TraceAction::On => {
            if vm.trace.start().is_err() {
                let text = "no memory for a trace: a VM with less would leave some";
                error(&mut Line, json, "no_memory", text);
                return None;
            }
        }
        TraceAction::Off => vm.trace.stop(),
        TraceAction::Clear => vm.trace.clear(),
    }
    // Loads of CR3 exit from now on, or no longer.
    vm.suppression_generation.fetch_add(1, Ordering::AcqRel);
    answer(
        &mut Line,
        json,
        [TraceLine {
            vm: &vm.name,
            on: vm.trace.is_on(),
            events: vm.trace.len(),
        }],
    );
    None
}

fn list_processes(vm: &Arc<Vm>, json: bool) {
    let now = host_now();
    let processes = processes(vm, now);
    let watch = vm.suppression.lock();
    answer(
        &mut Line,
        json,
        processes.iter().filter_map(|process| {
            let (first, aliases) = process.roots.split_first()?;
            Some(ProcessLine {
                vm: &vm.name,
                cr3: Cr3(*first),
                aliases: Aliases(aliases),
                cpu_permille: process.share,
                cpu_ms: millis(process.total as i64) as u64,
                seen_ms_ago: micros(now).saturating_sub(micros(process.last_seen)) / 1000,
                target: process
                    .roots
                    .iter()
                    .any(|root| watch.targets().of(*root).is_some()),
            })
        }),
    );
}

fn suppress(vm: &Arc<Vm>, cr3: u64, factors: Factors, json: bool) {
    let format = vm.root_format();
    let root = Root::new(cr3, format);
    let seen: Vec<Root> = vm
        .usages
        .iter()
        .flat_map(|usage| usage.lock().roots().collect::<Vec<_>>())
        .collect();
    let mut watch = vm.suppression.lock();
    if let Err(problem) = watch.suppress(&vm.ram, root, format, factors, seen.into_iter()) {
        return error(&mut Line, json, "no_target", problem);
    }
    vm.suppression_generation.fetch_add(1, Ordering::AcqRel);
    answer_target(vm, watch.targets().of(root), json);
}

fn answer_target(vm: &Vm, target: Option<&Target>, json: bool) {
    if let Some(target) = target {
        let roots: Vec<Root> = target.roots().collect();
        let (_, aliases) = roots.split_first().unwrap_or((&roots[0], &[]));
        answer(
            &mut Line,
            json,
            [TargetLine::new(
                &vm.name,
                target.root(),
                aliases,
                target.factors(),
            )],
        );
    }
}

fn list_targets(vms: &[Arc<Vm>], json: bool) {
    let targets: Vec<(&str, Vec<Root>, Factors)> = vms
        .iter()
        .flat_map(|vm| {
            let watch = vm.suppression.lock();
            watch
                .targets()
                .iter()
                .map(|target| (vm.name.as_str(), target.roots().collect(), target.factors()))
                .collect::<Vec<_>>()
        })
        .collect();
    answer(
        &mut Line,
        json,
        targets.iter().filter_map(|(vm, roots, factors)| {
            let (first, aliases) = roots.split_first()?;
            Some(TargetLine::new(vm, *first, aliases, *factors))
        }),
    );
}

fn release(vm: &Arc<Vm>, cr3: Option<u64>, json: bool) {
    let mut watch = vm.suppression.lock();
    match cr3 {
        Some(cr3) => {
            let root = Root::new(cr3, vm.root_format());
            let Some(target) = watch.release(root) else {
                return error(
                    &mut Line,
                    json,
                    "no_target",
                    format_args!("{root} is no target of {}: `targets` lists them", vm.name),
                );
            };
            vm.suppression_generation.fetch_add(1, Ordering::AcqRel);
            answer_target(vm, Some(&target), json);
        }
        None => {
            let count = watch.release_all();
            vm.suppression_generation.fetch_add(1, Ordering::AcqRel);
            let done = alloc::format!("{count} released");
            answer(&mut Line, json, [DoneLine { done: &done }]);
        }
    }
}

fn statistics(manager: &VmManager, vm: &Arc<Vm>, json: bool) {
    let mut lines: Vec<(&str, u64, u64)> = Vec::new();
    let (mut exits, mut root_ticks, mut guest_ticks) = (0, 0, 0);
    for statistics in &vm.statistics {
        let statistics = statistics.lock();
        for reason in statistics.reasons() {
            let name = vmx::exit::reason_name(reason.reason);
            root_ticks += reason.root_ticks;
            match lines.iter_mut().find(|line| line.0 == name) {
                Some(line) => {
                    line.1 += reason.exits;
                    line.2 += reason.root_ticks;
                }
                None => lines.push((name, reason.exits, reason.root_ticks)),
            }
        }
        exits += statistics.total_exits;
        guest_ticks += statistics.guest_ticks;
    }
    lines.sort_by_key(|line| core::cmp::Reverse(line.1));
    lines.push(("all-exits", exits, root_ticks));
    lines.push(("guest", exits, guest_ticks));
    let name = &vm.name;
    let usage = manager.cpu_usage(vm.id);
    let places: Vec<_> = usage
        .iter()
        .enumerate()
        .map(|(index, share)| {
            let pinned = if share.pinned { "-pinned" } else { "" };
            let what = alloc::format!("vcpu{index}-on-cpu{}{pinned}", share.cpu);
            (what, share.latency.count, share.received)
        })
        .collect();
    let latency = usage
        .iter()
        .fold(Latency::default(), |all, share| all.and(share.latency));
    lines.extend(
        places
            .iter()
            .map(|(what, wakes, received)| (what.as_str(), *wakes, *received)),
    );
    lines.push(("wait-when-woken", latency.count, latency.total));
    lines.push(("longest-wait-when-woken", 1, latency.max));
    answer(
        &mut Line,
        json,
        lines.iter().map(|&(what, count, ticks)| StatsLine {
            vm: name,
            what,
            count,
            ticks,
        }),
    );
}

/// The format of roots in a guest in long mode, which all that have processes worth naming
/// are in, unless it says otherwise.
impl Vm {
    fn root_format(&self) -> RootFormat {
        match self.root_format.load(Ordering::Relaxed) {
            1 => RootFormat::Narrow,
            2 => RootFormat::Pae,
            _ => RootFormat::Long,
        }
    }
}
