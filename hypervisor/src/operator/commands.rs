//! What each command does.

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::fmt::Write;
use core::sync::atomic::Ordering;

use super::job::{Find, Job};
use super::{CONSOLE, Line, TIME, micros, vms};
use devices::time::HostTicks;

use crate::console::{
    Aliases, Command, Cr3, DoneLine, Overview, Pattern, ProcessLine, StatsLine, TargetLine, Text,
    TraceAction, TraceLine, VmLine, answer, error, parse, wants_json,
};
use crate::host_time::host_now;
use crate::machine::{power, serial};
use crate::scheduler::Latency;
use crate::suppression::Factors;
use crate::suppression::address_space::{Root, RootFormat, same_process};
use crate::suppression::target::Target;
use crate::suppression::usage::{self, Process};
use crate::vm::Vm;
use crate::world::{self, RequestError, World};

/// Carries out a line that the operator has entered, and answers it; or begins to, and the
/// rest is the job.
pub(super) fn execute(line: &str) -> Option<Job> {
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
            let number = match console.vm(name) {
                Ok(number) => number,
                Err(problem) => {
                    error(out, json, "unknown_vm", problem);
                    return None;
                }
            };
            drop(console);
            vms::get(number)
        }
    };
    match (request.command, vm) {
        (Command::Help(None), _) => {
            let _ = write!(Text(out), "{Overview}");
        }
        (Command::Help(Some(topic)), _) => {
            let _ = write!(Text(out), "{topic}");
        }
        (Command::Vms, _) => list_vms(json),
        (Command::Ps { .. }, Some(vm)) => list_processes(&vm, json),
        (Command::Suppress { cr3, factors, .. }, Some(vm)) => suppress(&vm, cr3, factors, json),
        (Command::Targets { .. }, Some(vm)) => list_targets(&[vm], json),
        (Command::Targets { .. }, None) => list_targets(&vms::all(), json),
        (Command::Release { cr3, .. }, Some(vm)) => release(&vm, cr3, json),
        (Command::Stats { .. }, Some(vm)) => statistics(&vm, json),
        (Command::Find { pattern, .. }, Some(vm)) => return Some(find(vm, &pattern, json)),
        (Command::Trace { action, .. }, Some(vm)) => return trace(&vm, action, json),
        (Command::Attach { .. }, Some(vm)) => CONSOLE.lock().attach(vm.id.0, out),
        (Command::Pause { .. }, Some(vm)) => pause(&vm, json),
        (Command::Resume { .. }, Some(vm)) => resume(&vm, json),
        (Command::Stop { .. }, Some(vm)) => ask(json, "stopping", |world| world.stop(vm.id)),
        (Command::Start { .. }, Some(vm)) => ask(json, "starting", |world| world.start(vm.id)),
        (Command::Restart { .. }, Some(vm)) => {
            ask(json, "restarting", |world| world.restart(vm.id));
        }
        (Command::Pin { vcpu, cpu, .. }, Some(vm)) => {
            ask(json, "pinned", |world| world.pin(vm.id, vcpu, cpu));
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
        // The console has just found the VM that the command names.
        (_, None) => {}
    }
    None
}

/// Ticks of host time in milliseconds.
fn millis(ticks: i64) -> i64 {
    let Some((tsc, _)) = TIME.get() else { return 0 };
    let millis = i128::from(ticks) * 1000 / i128::from(tsc.get());
    millis.clamp(i64::MIN.into(), i64::MAX.into()) as i64
}

/// Asks the world for something, and answers `done` if it agrees.
fn ask(json: bool, done: &str, request: impl FnOnce(&World) -> Result<(), RequestError>) {
    match world::get().map(request) {
        Some(Err(problem)) => error(&mut Line, json, problem.kind(), problem),
        _ => answer(&mut Line, json, [DoneLine { done }]),
    }
}

fn pause(vm: &Vm, json: bool) {
    match world::get().map(|world| world.pause(vm.id)) {
        Some(Ok(())) => answer(&mut Line, json, [DoneLine { done: "paused" }]),
        _ => wrong_state(vm, "running", json),
    }
}

fn resume(vm: &Vm, json: bool) {
    match world::get().map(|world| world.resume(vm.id)) {
        Some(Ok(())) => answer(&mut Line, json, [DoneLine { done: "resumed" }]),
        _ => wrong_state(vm, "paused", json),
    }
}

fn wrong_state(vm: &Vm, wanted: &str, json: bool) {
    let text = format_args!(
        "{} is {}, not {wanted}: `vms` shows it",
        vm.name,
        vm.state().name()
    );
    error(&mut Line, json, "wrong_state", text);
}

fn list_vms(json: bool) {
    let vms = vms::all();
    let now = host_now();
    answer(
        &mut Line,
        json,
        vms.iter().map(|vm| {
            let watch = vm.suppression.lock();
            VmLine {
                vm: &vm.name,
                state: vm.state().name(),
                memory_mib: vm
                    .ram
                    .ranges()
                    .map(|range| range.length)
                    .sum::<u64>()
                    .div_ceil(1 << 20),
                vcpus: vm.vcpus(),
                targets: watch.targets().iter().count(),
                lead_ms: millis(watch.lead(now)),
            }
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

fn statistics(vm: &Arc<Vm>, json: bool) {
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
    let shares = world::get().map_or_else(Vec::new, |world| world.shares(vm.id));
    let places: Vec<_> = shares
        .iter()
        .enumerate()
        .map(|(index, share)| {
            let pinned = if share.pinned { "-pinned" } else { "" };
            let what = alloc::format!("vcpu{index}-on-cpu{}{pinned}", share.cpu);
            (what, share.latency.count, share.received)
        })
        .collect();
    let latency = shares
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
