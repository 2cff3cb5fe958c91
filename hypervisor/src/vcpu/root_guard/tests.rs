//! When a target is seen to come in, that others do not exit, and what the guest's own accesses do.

use arch::paging::PAGE_SIZE;
use devices::apic_message::DeliveryMode::Fixed;
use devices::clock::Rates;
use vmx::event::Event;

use super::*;
use crate::guest_memory::GuestMemory;
use crate::suppression::order::Policy;
use crate::vcpu::backend::exit::Exit;
use crate::vcpu::backend::fake::{Entry, FakeCpu, Stay};
use crate::vcpu::fixture::{OTHER, TARGET, load, send, suppress, vcpu, vcpus, with_processes};

const REAL_TIME: u64 = Rates::REAL_TIME.counter.bits();

fn vcpu_with_target() -> Vcpu<FakeCpu> {
    let mut vcpu = with_processes(vcpu());
    suppress(vcpu.vm(), TARGET, 1000, Policy::Paper);
    vcpu.then(Stay::until(10, Exit::Cpuid));
    vcpu
}

fn fault(address: u64, final_access: bool) -> NestedPageFault {
    NestedPageFault {
        address: GuestPhysAddr(address),
        write: true,
        fetch: false,
        final_access,
        nmi_unblocked: false,
    }
}

/// The guest's kernel has loaded `cr3`, which did not exit, and needs a translation.
fn walk(cr3: u64) -> Stay {
    let walk = Exit::NestedPageFault(fault(cr3 + 8 * 85, false));
    Stay::until(100, walk).having(move |cpu| {
        cpu.cr3 = cr3;
        cpu.set_cpl(0);
    })
}

/// The guest's kernel accesses what is at `address`.
fn access(address: u64) -> Stay {
    Stay::until(100, Exit::NestedPageFault(fault(address, true)))
}

fn is_guarded(entry: &Entry) -> bool {
    assert!(!entry.cr3_exits || entry.view == View::Whole);
    entry.view == View::Guarded
}

#[test]
fn without_a_target_there_is_no_guard() {
    let mut vcpu = with_processes(vcpu());
    let entry = vcpu.then(Stay::until(10, Exit::Cpuid)).entry_after_script();
    assert!(!is_guarded(&entry));
    assert!(!entry.cr3_exits);
}

#[test]
fn others_switch_without_an_exit_while_there_is_a_target() {
    let mut vcpu = vcpu_with_target();
    // It loads other roots, of which nobody is told.
    for root in [OTHER, 0x5000, OTHER] {
        vcpu.then(Stay::until(10, Exit::Cpuid).having(move |cpu| cpu.cr3 = root));
    }
    vcpu.entry_after_script();
    for entry in &vcpu.cpu.entries[1..] {
        assert!(is_guarded(entry) && !entry.cr3_exits);
        assert_eq!(entry.tsc.multiplier, REAL_TIME);
    }
}

#[test]
fn the_first_walk_through_its_root_is_the_switch_to_a_target() {
    let mut vcpu = vcpu_with_target();
    vcpu.then(walk(TARGET));
    vcpu.then(Stay::until(100, Exit::Cpuid));
    let back = vcpu.then(load(OTHER)).entry_after_script();
    let target_in = &vcpu.cpu.entries[2];
    assert_eq!(target_in.tsc.multiplier, 1000 * REAL_TIME);
    assert!(!is_guarded(target_in) && target_in.cr3_exits);
    assert_eq!(back.tsc.multiplier, REAL_TIME);
    assert!(is_guarded(&back) && !back.cr3_exits);
}

#[test]
fn a_vcpu_that_idles_on_a_targets_root_is_not_taken_for_it_when_it_wakes() {
    let mut vcpu = vcpu_with_target();
    vcpu.then(walk(TARGET));
    let vm = vcpu.vm().clone();
    vcpu.then(Stay::until(100, Exit::Hlt));
    vcpu.run_for(10_000);
    send(&vm, Fixed, 0x40);
    vcpu.then(Stay::until(50, Exit::Cpuid));
    let awake = vcpu.entry_after_script();
    assert!(!is_guarded(&awake), "there is nothing to be seen");
    assert!(awake.cr3_exits, "but who comes next");
    assert_eq!(awake.tsc.multiplier, REAL_TIME);
}

/// The guest computes until it is looked at, for as long as an access is let through.
fn moment() -> Stay {
    Stay::until(2_000, Exit::TimeLimit)
}

#[test]
fn the_kernel_may_access_a_root_for_a_moment_in_which_loads_of_cr3_exit() {
    let mut vcpu = vcpu_with_target();
    vcpu.then(access(TARGET + 0x18));
    vcpu.then(moment());
    let after = vcpu.then(Stay::until(10, Exit::Cpuid)).entry_after_script();
    let let_through = &vcpu.cpu.entries[2];
    assert!(!is_guarded(let_through) && let_through.cr3_exits);
    assert_eq!(let_through.time_limit, 2_000);
    assert_eq!(let_through.tsc.multiplier, REAL_TIME);
    for entry in [&vcpu.cpu.entries[3], &after] {
        assert!(is_guarded(entry) && !entry.cr3_exits);
    }
}

#[test]
fn an_exit_before_the_moment_is_over_leaves_loads_of_cr3_exiting() {
    let mut vcpu = vcpu_with_target();
    let vm = vcpu.vm().clone();
    vcpu.then(access(TARGET).having(move |cpu| {
        cpu.set_cpl(0);
        send(&vm, Fixed, 0x40);
    }));
    let handler = vcpu.then(Stay::until(10, Exit::Cpuid)).entry_after_script();
    assert_eq!(vcpu.cpu.entries[2].event, Some(Event::interrupt(0x40)));
    assert!(!is_guarded(&handler) && handler.cr3_exits);
}

#[test]
fn a_target_that_is_loaded_in_that_moment_is_seen() {
    let mut vcpu = vcpu_with_target();
    vcpu.then(access(TARGET));
    vcpu.then(load(TARGET));
    let target_in = vcpu.entry_after_script();
    assert_eq!(target_in.tsc.multiplier, 1000 * REAL_TIME);
    assert!(!is_guarded(&target_in) && target_in.cr3_exits);
}

#[test]
fn a_target_that_was_loaded_before_it_is_seen() {
    let mut vcpu = vcpu_with_target();
    vcpu.then(access(TARGET).having(|cpu| {
        cpu.cr3 = TARGET;
        cpu.set_cpl(0);
    }));
    let target_in = vcpu.entry_after_script();
    assert!(!is_guarded(&target_in) && target_in.cr3_exits);
    assert!(target_in.cr3_exempt.is_empty());
    assert!(vcpu.observer.directive.loaded_member.is_some());
}

#[test]
fn a_walk_for_nobody_that_is_a_target_is_let_through() {
    let mut vcpu = vcpu_with_target();
    // Somebody's page table is a target's root as well.
    vcpu.then(
        Stay::until(100, Exit::NestedPageFault(fault(TARGET, false))).having(|cpu| cpu.cr3 = OTHER),
    );
    let after = vcpu.then(moment()).entry_after_script();
    let let_through = &vcpu.cpu.entries[2];
    assert!(!is_guarded(let_through) && let_through.cr3_exits);
    assert_eq!(let_through.tsc.multiplier, REAL_TIME);
    assert!(is_guarded(&after));
}

#[test]
fn the_access_that_tells_of_the_end_of_a_process_ends_the_guard() {
    let mut vcpu = vcpu_with_target();
    vcpu.then(access(TARGET + 8 * 85));
    let vm = vcpu.vm().clone();
    vcpu.then(moment().having(move |_| {
        vm.ram
            .write(GuestPhysAddr(TARGET + 8 * 85), &[0; 8])
            .expect("RAM");
    }));
    let after = vcpu.entry_after_script();
    assert!(vcpu.vm().suppression.lock().targets().is_empty());
    assert!(!vcpu.vm().memory_map.is_guarding());
    assert!(!is_guarded(&after) && !after.cr3_exits);
}

#[test]
fn an_iret_that_has_unblocked_nmis_is_executed_again_with_them_blocked() {
    let mut vcpu = vcpu_with_target();
    let unblocked = NestedPageFault {
        nmi_unblocked: true,
        ..fault(TARGET + 8 * 85, false)
    };
    vcpu.then(Stay::until(100, Exit::NestedPageFault(unblocked)).having(|cpu| cpu.cr3 = TARGET));
    let entry = vcpu.entry_after_script();
    assert!(
        entry
            .interruptibility
            .contains(Interruptibility::BLOCKED_BY_NMI)
    );
}

#[test]
fn each_vcpu_has_a_guard_of_its_own() {
    let mut both = vcpus(2).into_iter();
    let mut first = with_processes(both.next().unwrap());
    let mut second = both.next().unwrap();
    suppress(first.vm(), TARGET, 1000, Policy::Paper);
    first.then(Stay::until(10, Exit::Cpuid)).then(walk(TARGET));
    assert!(!is_guarded(&first.entry_after_script()));
    second.cpu.cr3 = OTHER;
    second.activity = crate::vcpu::Activity::Running;
    second.then(Stay::until(10, Exit::Cpuid));
    assert!(is_guarded(&second.entry_after_script()));
}

#[test]
fn a_switch_from_one_target_to_another_is_seen_however_often() {
    let mut vcpu = vcpu_with_target();
    suppress(vcpu.vm(), OTHER, 500, Policy::Paper);
    vcpu.then(Stay::until(10, Exit::Cpuid));
    // Each comes in by a load that exits, and then its own loads do not.
    for root in [TARGET, OTHER, TARGET] {
        vcpu.then(load(root)).then(Stay::until(10, Exit::Cpuid));
    }
    vcpu.entry_after_script();
    let last_of = |root: u64| {
        let of = |entry: &&Entry| entry.cr3_exempt == [root];
        vcpu.cpu.entries.iter().rfind(of)
    };
    assert_eq!(last_of(TARGET).unwrap().tsc.multiplier, 1000 * REAL_TIME);
    assert_eq!(last_of(OTHER).unwrap().tsc.multiplier, 500 * REAL_TIME);
    let both = |entry: &Entry| entry.cr3_exempt.len() > 1;
    assert!(!vcpu.cpu.entries.iter().any(both));
}

#[test]
fn each_switch_to_a_target_is_counted_once() {
    let mut vcpu = vcpu_with_target();
    for _ in 0..3 {
        vcpu.then(walk(TARGET)).then(load(TARGET)).then(load(OTHER));
    }
    vcpu.entry_after_script();
    let snapshot = vcpu.vm().suppression.lock().snapshot(host_now());
    assert_eq!(snapshot.targets[0].switch_ins, 3);
}

#[test]
fn where_roots_cannot_be_guarded_all_loads_of_cr3_exit() {
    let mut vcpu = with_processes(vcpu());
    suppress(vcpu.vm(), TARGET, 1000, Policy::Paper);
    vcpu.vm().memory_map.guard(|_| Ok(())).unwrap();
    let entry = vcpu.then(Stay::until(10, Exit::Cpuid)).entry_after_script();
    assert!(!is_guarded(&entry) && entry.cr3_exits);
    assert!(entry.cr3_exempt.is_empty());
}

#[test]
fn while_switches_are_traced_all_loads_of_cr3_exit() {
    let mut vcpu = vcpu_with_target();
    vcpu.vm().trace.start().unwrap();
    vcpu.vm().suppression_changed();
    let entry = vcpu.entry_after_script();
    assert!(!is_guarded(&entry) && entry.cr3_exits);
}

#[test]
fn an_access_to_what_is_beside_a_root_is_none_to_it() {
    let mut vcpu = vcpu_with_target();
    vcpu.cpu.script.clear();
    let map = &vcpu.vm().memory_map;
    assert!(!map.is_guarded(GuestPhysAddr(TARGET - 1)));
    assert!(!map.is_guarded(GuestPhysAddr(TARGET + PAGE_SIZE)));
    assert!(map.is_guarded(GuestPhysAddr(TARGET + PAGE_SIZE - 1)));
}
