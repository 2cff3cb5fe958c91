//! How long the guest runs, and when and why the loop ends.

use alloc::vec::Vec;

use arch::apic::{Register, lvt};
use arch::gpr::{RAX, RCX, RDX};
use devices::apic_message::DeliveryMode::{Fixed, Nmi};
use devices::platform_map::port;
use vmx::event::Event;

use super::*;
use crate::emulate::Width;
use crate::suppression::address_space::{Root, RootFormat};
use crate::vcpu::backend::exit::{Exit, IoAccess};
use crate::vcpu::backend::fake::{FakeCpu, Stay};
use crate::vcpu::fixture::{START, at, send, vcpu, vcpus};

/// The guest arms the TSC deadline: `ticks` after its TSC at [`START`].
fn arm(ticks: u64) -> Stay {
    Stay::until(10, Exit::Wrmsr).having(move |cpu| {
        cpu.gprs[RCX] = u64::from(arch::msr::IA32_TSC_DEADLINE);
        cpu.gprs[RAX] = ticks & 0xffff_ffff;
        cpu.gprs[RDX] = ticks >> 32;
    })
}

/// A VCPU whose timer has the vector 0x60 and waits for a TSC deadline.
fn vcpu_with_timer() -> Vcpu<crate::vcpu::backend::fake::FakeCpu> {
    const LVT_TIMER: u16 = Register::LVT_TIMER.offset();
    const TSC_DEADLINE_MODE: u64 = lvt::TIMER_TSC_DEADLINE as u64;
    let mut vcpu = vcpu();
    vcpu.with_devices(START, |_, devices| {
        let now = devices.now;
        let (lapic, mut messages) = devices.lapic();
        lapic.mmio_write(now, LVT_TIMER, 4, TSC_DEADLINE_MODE | 0x60, &mut messages);
    });
    vcpu
}

#[test]
fn a_guest_that_computes_runs_until_its_time_is_over_and_no_longer() {
    let mut vcpu = vcpu();
    assert_eq!(vcpu.run(at(5_000)), RunExit::Preempted);
    assert_eq!(host_now(), at(5_000));
    assert_eq!(vcpu.cpu.entries.len(), 1);
    assert_eq!(vcpu.cpu.last_entry().time_limit, 5_000);
}

#[test]
fn what_an_exit_takes_is_taken_off_the_next_stay() {
    let mut vcpu = vcpu();
    vcpu.then(Stay::until(1_200, Exit::Cpuid));
    assert_eq!(vcpu.run(at(5_000)), RunExit::Preempted);
    assert_eq!(vcpu.cpu.last_entry().time_limit, 3_800);
}

#[test]
fn a_guest_whose_time_is_over_before_it_begins_is_not_entered() {
    let mut vcpu = vcpu();
    assert_eq!(vcpu.run(START), RunExit::Preempted);
    assert_eq!(vcpu.run(HostTicks(0)), RunExit::Preempted);
    assert!(vcpu.cpu.entries.is_empty());
}

#[test]
fn a_timer_ends_the_stay_when_it_is_due_and_interrupts() {
    let mut vcpu = vcpu_with_timer();
    vcpu.then(arm(3_000));
    assert_eq!(vcpu.run(at(10_000)), RunExit::Preempted);
    let entries = &vcpu.cpu.entries;
    assert_eq!(entries[1].time_limit, 3_000 - 10);
    assert_eq!(
        (entries[2].at, entries[2].event),
        (at(3_000), Some(Event::interrupt(0x60)))
    );
    assert_eq!(entries[2].time_limit, 7_000);
}

#[test]
fn a_deadline_in_the_past_interrupts_at_once() {
    let mut vcpu = vcpu_with_timer();
    vcpu.then(Stay::until(2_000, Exit::Cpuid)).then(arm(5));
    assert_eq!(vcpu.run(at(10_000)), RunExit::Preempted);
    let third = &vcpu.cpu.entries[2];
    assert_eq!(
        (third.at, third.event),
        (at(2_010), Some(Event::interrupt(0x60)))
    );
}

/// A VCPU whose timer counts with the vector 0x60, over and over, in `period` ticks or a little more.
fn vcpu_with_periodic_timer(
    period: u64,
    masked: bool,
) -> Vcpu<crate::vcpu::backend::fake::FakeCpu> {
    const LVT_TIMER: u16 = Register::LVT_TIMER.offset();
    const INITIAL_COUNT: u16 = Register::INITIAL_COUNT.offset();
    const DIVIDE: u16 = Register::DIVIDE.offset();
    let mut vcpu = vcpu();
    let timer_hz = vcpu.vm().cpuid.apic_timer_hz();
    let count = period.div_ceil(crate::vm::test_vm::TSC.get() / timer_hz.get());
    vcpu.with_devices(START, |_, devices| {
        let now = devices.now;
        let (lapic, mut messages) = devices.lapic();
        let mask = u64::from(masked) << 16;
        for (register, value) in [
            (DIVIDE, 0b1011),
            (LVT_TIMER, 1 << 17 | mask | 0x60),
            (INITIAL_COUNT, count),
        ] {
            lapic.mmio_write(now, register, 4, value, &mut messages);
        }
    });
    vcpu
}

#[test]
fn a_guest_gets_on_however_short_the_period_of_its_timer_is() {
    const TIME: u64 = 100_000;
    let mut vcpu = vcpu_with_periodic_timer(50, false);
    // Seeing to a timer takes longer than its period.
    crate::machine::host_time::fake::let_looks_take(300);
    assert_eq!(vcpu.run(at(TIME)), RunExit::Preempted);
    assert!(host_now() < at(TIME + 3_000), "and not much longer");
    let entries = &vcpu.cpu.entries;
    assert!(entries.len() > 20, "{} entries", entries.len());
    // The handler does not end its interrupt, so that there is one.
    let interrupts = entries
        .iter()
        .filter(|entry| entry.event == Some(Event::interrupt(0x60)));
    assert_eq!(interrupts.count(), 1);
    let stay: u64 = entries.iter().map(|entry| entry.time_limit).sum();
    let least = entries.iter().map(|entry| entry.time_limit).min();
    assert!(least >= Some(50), "{least:?}");
    assert!(stay > TIME / 30, "{stay}");
}

#[test]
fn a_masked_timer_takes_nothing_from_the_guest() {
    let mut vcpu = vcpu_with_periodic_timer(50, true);
    crate::machine::host_time::fake::let_looks_take(300);
    assert_eq!(vcpu.run(at(100_000)), RunExit::Preempted);
    assert_eq!(vcpu.cpu.entries.len(), 1);
}

#[test]
fn a_timer_does_not_wake_a_halted_guest_that_takes_no_interrupts() {
    for (enabled, deadline) in [(true, at(1_000)), (false, HostTicks(u64::MAX))] {
        let mut vcpu = vcpu_with_periodic_timer(1_000, false);
        vcpu.then(Stay::until(10, Exit::Hlt).having(move |cpu| {
            cpu.rflags &= !arch::RFlags::INTERRUPT_FLAG.bits();
            cpu.rflags |= u64::from(enabled) << 9;
        }));
        assert_eq!(vcpu.run(at(100_000)), RunExit::Halted);
        assert_eq!(vcpu.deadline(), deadline, "interrupts on: {enabled}");
    }
}

#[test]
fn a_timer_that_ran_out_while_no_interrupt_was_taken_interrupts_after_an_nmi() {
    let mut vcpu = vcpu_with_periodic_timer(1_000, false);
    vcpu.then(
        Stay::until(10, Exit::Hlt).having(|cpu| cpu.rflags &= !arch::RFlags::INTERRUPT_FLAG.bits()),
    );
    assert_eq!(vcpu.run(at(100_000)), RunExit::Halted);
    crate::machine::host_time::fake::set(at(5_500));
    send(vcpu.vm(), Nmi, 0);
    let handler = Stay::until(10, Exit::InterruptWindow)
        .having(|cpu| cpu.rflags |= arch::RFlags::INTERRUPT_FLAG.bits());
    vcpu.then(handler);
    assert_eq!(vcpu.run(at(5_900)), RunExit::Preempted);
    let entries = &vcpu.cpu.entries;
    assert_eq!(entries[1].event, Some(Event::NMI));
    assert!(entries[1].interrupt_window);
    assert_eq!(entries[2].event, Some(Event::interrupt(0x60)));
}

#[test]
fn a_halted_guest_names_its_next_deadline_and_wakes_at_it() {
    let mut vcpu = vcpu_with_timer();
    vcpu.then(arm(3_000)).then(Stay::until(10, Exit::Hlt));
    assert_eq!(vcpu.run(at(10_000)), RunExit::Halted);
    assert_eq!((host_now(), vcpu.deadline()), (at(20), at(3_000)));

    crate::machine::host_time::fake::set(at(2_999));
    assert_eq!(vcpu.run(at(10_000)), RunExit::Halted, "too early");
    crate::machine::host_time::fake::set(at(3_000));
    assert_eq!(vcpu.run(at(10_000)), RunExit::Preempted);
    assert_eq!(vcpu.cpu.entries[2].event, Some(Event::interrupt(0x60)));
}

#[test]
fn an_interrupt_that_comes_with_the_hlt_ends_it() {
    let mut vcpu = vcpu();
    let vm = vcpu.vm().clone();
    vcpu.then(Stay::until(10, Exit::Hlt).having(move |_| send(&vm, Fixed, 0x40)));
    assert_eq!(vcpu.run(at(1_000)), RunExit::Preempted);
    assert_eq!(vcpu.cpu.last_entry().event, Some(Event::interrupt(0x40)));
}

#[test]
fn a_single_step_over_hlt_does_not_halt() {
    const RFLAGS_TF: u64 = arch::RFlags::TRAP_FLAG.bits();
    let mut vcpu = vcpu();
    vcpu.then(Stay::until(10, Exit::Hlt).having(|cpu| cpu.rflags |= RFLAGS_TF));
    assert_eq!(vcpu.run(at(1_000)), RunExit::Preempted);
    assert!(vcpu.cpu.pending_debug);
}

#[test]
fn a_request_that_comes_while_the_guest_runs_is_processed_before_the_next_entry() {
    let mut vcpu = vcpu();
    let vm = vcpu.vm().clone();
    vcpu.then(Stay::until(10, Exit::HostInterrupt).having(move |_| send(&vm, Nmi, 0)));
    assert_eq!(vcpu.run(at(1_000)), RunExit::Preempted);
    assert_eq!(vcpu.cpu.last_entry().event, Some(Event::NMI));
}

#[test]
fn who_is_asked_to_yield_leaves_its_cpu_and_keeps_what_it_was_to_deliver() {
    let mut vcpu = vcpu();
    let vm = vcpu.vm().clone();
    vcpu.then(Stay::until(10, Exit::Rdpmc).having(move |_| vm.request(0, Requests::YIELD)));
    assert_eq!(vcpu.run(at(1_000)), RunExit::Yielded);
    assert_eq!((host_now(), vcpu.cpu.entries.len()), (at(10), 1));
    assert_eq!(vcpu.run(at(1_000)), RunExit::Preempted);
    assert_eq!(vcpu.cpu.last_entry().event, Some(Event::GENERAL_PROTECTION));
}

#[test]
fn another_vcpus_timer_request_moves_the_deadline_of_the_chipset() {
    let mut vcpus = vcpus(2);
    let vm = vcpus[0].vm().clone();
    let program = |vcpu: &mut Vcpu<_>| {
        vcpu.with_devices(START, |_, devices| {
            use crate::emulate::Ports;
            // The PIT's channel 0, one shot, after 1193 of its ticks: a millisecond.
            devices.write_port(port::PIT + 3, Width::BYTE, 0x30);
            devices.write_port(port::PIT, Width::BYTE, 1193 & 0xff);
            devices.write_port(port::PIT, Width::BYTE, 1193 >> 8);
        });
    };
    assert_eq!(vcpus[0].run(at(10)), RunExit::Preempted);
    assert_eq!(vcpus[0].deadline(), HostTicks(u64::MAX));
    program(&mut vcpus[1]);
    assert!(vm.requests(0).are_pending());
    assert_eq!(vcpus[0].run(at(20)), RunExit::Preempted);
    let deadline = vcpus[0].deadline();
    assert!(
        (at(999_000)..at(1_001_000)).contains(&deadline),
        "{deadline:?}"
    );
}

#[test]
fn an_access_to_a_device_asks_only_for_what_it_has_changed() {
    const DEBUG_EXIT: u16 = port::DEBUG_EXIT;
    let access = |port, input, value| {
        let mut vcpu = vcpu();
        vcpu.pending = Requests::empty();
        vcpu.cpu.gprs[RAX] = value;
        let access = IoAccess {
            port,
            width: Width::BYTE,
            input,
        };
        vcpu.handle_io(access, START).unwrap();
        vcpu.pending
    };
    assert_eq!(access(port::PM_TIMER, true, 0), Requests::empty());
    assert_eq!(access(port::PIC_MASTER, true, 0), Requests::empty());
    // Mode 0 of the PIT's channel 0, and its count.
    assert_eq!(access(port::PIT + 3, false, 0x10), Requests::empty());
    assert_eq!(access(DEBUG_EXIT, false, 0), Requests::EVENT);
}

#[test]
fn arming_a_timer_asks_for_the_deadline_to_be_found_and_no_more() {
    let mut vcpu = vcpu_with_timer();
    vcpu.pending = Requests::empty();
    vcpu.cpu.gprs[RCX] = u64::from(arch::msr::IA32_TSC_DEADLINE);
    vcpu.cpu.gprs[RAX] = 5_000;
    vcpu.handle_wrmsr(START).unwrap();
    assert_eq!(vcpu.pending, Requests::TIMERS);
}

#[test]
fn a_guest_that_asks_for_its_end_gets_it() {
    let mut vcpu = vcpu();
    let out = IoAccess {
        port: port::DEBUG_EXIT,
        width: Width::BYTE,
        input: false,
    };
    vcpu.then(Stay::until(10, Exit::Io(out)).having(|cpu| cpu.gprs[RAX] = 7));
    assert_eq!(
        vcpu.run(at(1_000)),
        RunExit::Stopped(StopReason::DebugExit(7))
    );
}

/// A deadline that a read of the timer finds to be over interrupts as it would have anyway.
#[test]
fn a_timer_that_expires_as_it_is_read_interrupts() {
    let mut vcpu = vcpu_with_timer();
    vcpu.then(arm(3_000));
    vcpu.then(Stay::until(2_985, Exit::Rdmsr).having(|cpu| {
        cpu.gprs[RCX] = u64::from(arch::msr::IA32_TSC_DEADLINE);
        crate::machine::host_time::fake::advance(10);
    }));
    assert_eq!(vcpu.run(at(10_000)), RunExit::Preempted);
    let third = &vcpu.cpu.entries[2];
    assert_eq!(
        (third.at, third.event),
        (at(3_005), Some(Event::interrupt(0x60)))
    );
    assert_eq!(vcpu.cpu.gprs[RAX], 0, "it reads as disarmed");
}

#[test]
fn an_exit_that_nothing_asks_for_stops_the_vm_and_is_named() {
    let mut vcpu = vcpu();
    vcpu.then(Stay::until(10, Exit::Unexpected));
    assert_eq!(
        vcpu.run(at(1_000)),
        RunExit::Stopped(StopReason::UnexpectedExit {
            number: 0,
            name: "scripted"
        })
    );
}

#[test]
fn registers_are_copied_for_others_when_asked_for() {
    const R8: usize = 8;
    let mut vcpu = vcpu();
    vcpu.then(Stay::until(1_000, Exit::Cpuid).having(|cpu| cpu.gprs[R8] = 0x1234));
    let vm = vcpu.vm().clone();
    assert_eq!(vcpu.run(at(5_000)), RunExit::Preempted);
    assert_eq!(*vm.registers[0].lock(), None, "nobody has asked");
    vm.request(0, Requests::REGISTERS);
    assert_eq!(vcpu.run(at(6_000)), RunExit::Preempted);
    let copy = vm.registers[0].lock().unwrap();
    assert_eq!(copy.general[R8], 0x1234);
    assert_eq!(copy.general, vcpu.cpu.gprs);
    assert_eq!((copy.rip, copy.cr3), (vcpu.cpu.rip, vcpu.cpu.cr3));
    assert_eq!(copy.segments[1].name, "cs");
    assert_eq!((copy.activity, copy.nmis_blocked), ("running", false));
}

#[test]
fn the_root_that_runs_is_noted_for_others_when_asked_for() {
    let mut vcpu = vcpu();
    let paging = |cpu: &mut FakeCpu, root| {
        cpu.cr0 |= arch::Cr0Flags::PAGING.bits();
        cpu.cr3 = root;
    };
    vcpu.then(Stay::until(1_000, Exit::Cpuid).having(move |cpu| paging(cpu, 0x5000)));
    let vm = vcpu.vm().clone();
    let roots = || vm.usages[0].lock().roots().collect::<Vec<_>>();
    vcpu.then(Stay::until(2_000, Exit::Cpuid));
    assert_eq!(vcpu.run(at(3_000)), RunExit::Preempted);
    assert_eq!(roots(), [], "nobody has asked");
    vm.request(0, Requests::ROOT);
    assert_eq!(vcpu.run(at(6_000)), RunExit::Preempted);
    assert_eq!(roots(), [Root::new(0x5000, RootFormat::Narrow)]);
}
