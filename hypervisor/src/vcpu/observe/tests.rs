//! What is seen of the address space, and what follows from it.

use arch::RFlags;
use arch::gpr::{RAX, RSP};
use devices::clock::Rates;
use vmx::addr::GuestPhysAddr;

use super::*;
use crate::guest_memory::GuestMemory;
use crate::suppression::address_space::{Root, RootFormat};
use crate::suppression::order::Policy;
use crate::suppression::usage::report;
use crate::vcpu::backend::exit::Exit;
use crate::vcpu::backend::fake::{Entry, FakeCpu, Stay};
use crate::vcpu::fixture::{OTHER, TARGET, at, load, suppress, vcpu, with_processes};

/// A VCPU of a VM with a target by the paper's policy and another process, which runs, in user mode.
fn vcpu_with_target() -> Vcpu<FakeCpu> {
    let vcpu = with_processes(vcpu());
    suppress(vcpu.vm(), TARGET, 1000, Policy::Paper);
    vcpu
}

#[test]
fn without_a_target_loads_of_cr3_do_not_exit() {
    let mut vcpu = vcpu();
    let entry = vcpu.then(Stay::until(10, Exit::Cpuid)).entry_after_script();
    assert!(!entry.cr3_exits);
}

#[test]
fn time_runs_fast_while_the_target_runs_and_its_own_loads_do_not_exit() {
    let mut vcpu = vcpu_with_target();
    vcpu.then(Stay::until(10, Exit::Cpuid));
    vcpu.then(load(TARGET));
    vcpu.then(Stay::until(100, Exit::Cpuid));
    let back = vcpu.then(load(OTHER)).entry_after_script();
    let entries = &vcpu.cpu.entries;
    let real_time = Rates::REAL_TIME.counter.bits();
    assert_eq!(entries[1].tsc.multiplier, real_time);
    assert_eq!(entries[2].tsc.multiplier, 1000 * real_time);
    assert_eq!(entries[2].cr3_exempt, [TARGET]);
    assert_eq!(back.tsc.multiplier, real_time);
    assert!(back.cr3_exempt.is_empty());
    assert_eq!(vcpu.cpu.cr3, OTHER);
}

#[test]
fn a_guest_that_halts_in_the_targets_address_space_is_in_real_time() {
    let mut vcpu = vcpu_with_target();
    vcpu.then(Stay::until(10, Exit::Cpuid));
    vcpu.then(load(TARGET));
    vcpu.then(Stay::until(100, Exit::Hlt));
    vcpu.run(at(10_000));
    assert_eq!(vcpu.vm().board.lock().clock.rates(), Rates::REAL_TIME);
}

#[test]
fn guest_time_is_charged_to_the_address_space_that_ran() {
    let mut vcpu = vcpu_with_target();
    vcpu.then(Stay::until(10, Exit::Cpuid));
    vcpu.then(load(TARGET));
    vcpu.then(Stay::until(700, Exit::Cpuid));
    vcpu.then(load(OTHER));
    vcpu.run(at(5_000));
    let mut usage = vcpu.vm().usages[0].lock();
    let processes = report([&mut *usage], at(5_000), |_, _| false);
    let ran = |root| {
        processes
            .iter()
            .find(|process| process.roots == [Root::new(root, RootFormat::Long)])
            .map(|process| process.total)
    };
    assert_eq!((ran(TARGET), ran(OTHER)), (Some(800), Some(4_200)));
}

#[test]
fn how_the_guest_pages_is_seen_beside_a_target_as_well() {
    let mut vcpu = vcpu_with_target();
    vcpu.then(Stay::until(10, Exit::Cpuid));
    vcpu.then(Stay::until(10, Exit::TimeLimit).having(|cpu| {
        cpu.efer = 0;
        cpu.cr4 = 0;
    }));
    vcpu.entry_after_script();
    let format = vcpu.vm().root_format.load(Ordering::Relaxed);
    assert_eq!(format, 1, "32-bit paging");
}

/// The root of a program that is new.
const NEW: u64 = 0x5000;

/// The guest's kernel loads the new program's root with interrupts off, its stack pointer at `rsp`.
fn exchange(rsp: u64) -> Stay {
    load(NEW).having(move |cpu| {
        cpu.gprs[RAX] = NEW;
        cpu.gprs[RSP] = rsp;
        cpu.set_cpl(0);
        cpu.rflags &= !RFlags::INTERRUPT_FLAG.bits();
    })
}

/// It takes interrupts with its stack pointer at `rsp`.
fn takes_interrupts(rsp: u64) -> Stay {
    Stay::until(20, Exit::InterruptWindow).having(move |cpu| {
        cpu.gprs[RSP] = rsp;
        cpu.rflags |= RFlags::INTERRUPT_FLAG.bits();
    })
}

/// The entries after a target's root was exchanged for another one with the stack pointer at 0x8000, and
/// after interrupts were on with it at `then`.
fn exchanged(then: u64) -> ([Entry; 2], Vcpu<FakeCpu>) {
    let mut vcpu = vcpu_with_target();
    let entry = (NEW + 0x7000) | 0x67;
    vcpu.vm()
        .ram
        .write(GuestPhysAddr(NEW + 8 * 85), &entry.to_le_bytes())
        .unwrap();
    vcpu.then(Stay::until(10, Exit::Cpuid)).then(load(TARGET));
    vcpu.then(exchange(0x8000)).then(takes_interrupts(then));
    let last = vcpu.entry_after_script();
    let entries = &vcpu.cpu.entries;
    let before = entries[entries.len() - 2].clone();
    ([before, last], vcpu)
}

#[test]
fn a_new_program_on_the_kernel_stack_that_goes_on_is_the_target() {
    let ([exchanged, after], vcpu) = exchanged(0x8040);
    assert!(exchanged.interrupt_window);
    assert_eq!(exchanged.tsc.multiplier, Rates::REAL_TIME.counter.bits());
    assert!(!after.interrupt_window && after.cr3_exits);
    assert!(vcpu.observer.directive.target_in);
}

#[test]
fn a_switch_to_another_kernel_stack_costs_one_exit_and_is_no_new_program() {
    let ([exchanged, after], vcpu) = exchanged(0xc000);
    assert!(exchanged.interrupt_window);
    assert!(!after.interrupt_window && !after.cr3_exits);
    assert_eq!(after.tsc.multiplier, Rates::REAL_TIME.counter.bits());
    assert!(!vcpu.observer.directive.target_in);
}
