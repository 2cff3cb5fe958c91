//! What is delivered when: the order of exceptions, NMIs and interrupts, and what holds them off.

use arch::ExceptionVector;
use arch::apic::Register;
use arch::gpr::{RAX, RCX};
use devices::apic_message::DeliveryMode::{ExtInt, Fixed, Init, Nmi};
use devices::platform_map::port;
use vmx::bitmaps::MsrAccess;
use vmx::event::Event;

use super::*;
use crate::emulate::{Ports, Width};
use crate::vcpu::Activity;
use crate::vcpu::backend::ApicAssistance;
use crate::vcpu::backend::exit::Exit;
use crate::vcpu::backend::fake::Stay;
use crate::vcpu::fixture::{at, send, vcpu, vcpu_with_rom, vcpu_with_virtual_delivery};

const DIVIDE_ERROR: Event = Event::exception(ExceptionVector::Division, None);
const DOUBLE_FAULT: Event = Event::exception(ExceptionVector::Double, Some(0));
const PAGE_FAULT: Event = Event::exception(ExceptionVector::Page, Some(2));

/// A short stay that ends with `exit`.
fn until(exit: Exit) -> Stay {
    Stay::until(10, exit)
}

/// The handler of an interrupt enables interrupts again, or the guest does otherwise.
fn enabling_interrupts() -> Stay {
    until(Exit::InterruptWindow).having(|cpu| cpu.rflags |= RFlags::INTERRUPT_FLAG.bits())
}

#[test]
fn an_interrupt_is_delivered_by_the_next_entry_and_once() {
    let mut vcpu = vcpu();
    send(vcpu.vm(), Fixed, 0x40);
    let next = vcpu.then(until(Exit::Cpuid)).entry_after_script();
    let first = &vcpu.cpu.entries[0];
    assert_eq!(first.event, Some(Event::interrupt(0x40)));
    assert!(!first.interrupt_window, "nothing else waits");
    assert_eq!(next.event, None);
}

#[test]
fn an_interrupt_waits_until_the_guest_enables_interrupts() {
    let mut vcpu = vcpu();
    vcpu.cpu.rflags &= !RFlags::INTERRUPT_FLAG.bits();
    send(vcpu.vm(), Fixed, 0x40);
    let next = vcpu.then(enabling_interrupts()).entry_after_script();
    let first = &vcpu.cpu.entries[0];
    assert_eq!((first.event, first.interrupt_window), (None, true));
    assert_eq!(next.event, Some(Event::interrupt(0x40)));
    assert!(!next.interrupt_window);
}

#[test]
fn a_second_interrupt_opens_a_window_behind_the_first() {
    let mut vcpu = vcpu();
    send(vcpu.vm(), Fixed, 0x40);
    send(vcpu.vm(), Fixed, 0x90);
    let next = vcpu.then(enabling_interrupts()).entry_after_script();
    assert_eq!(vcpu.cpu.entries[0].event, Some(Event::interrupt(0x90)));
    // What is in service holds 0x40 off.
    assert!(!vcpu.cpu.entries[0].interrupt_window);
    assert_eq!(next.event, None);

    let mut vcpu = self::vcpu();
    send(vcpu.vm(), Fixed, 0x40);
    vcpu.then(until(Exit::HostInterrupt).having({
        let vm = vcpu.vm().clone();
        move |_| send(&vm, Fixed, 0x90)
    }));
    let next = vcpu.then(enabling_interrupts()).entry_after_script();
    assert_eq!(vcpu.cpu.entries[0].event, Some(Event::interrupt(0x40)));
    // Its handler has interrupts disabled.
    assert_eq!(vcpu.cpu.entries[1].event, None);
    assert!(vcpu.cpu.entries[1].interrupt_window);
    assert_eq!(next.event, Some(Event::interrupt(0x90)));
}

#[test]
fn the_shadow_of_sti_and_of_mov_ss_holds_interrupts_and_nmis_off() {
    for shadow in [
        Interruptibility::BLOCKED_BY_STI,
        Interruptibility::BLOCKED_BY_MOV_SS,
    ] {
        let mut vcpu = vcpu();
        vcpu.cpu.interruptibility = shadow;
        send(vcpu.vm(), Fixed, 0x40);
        send(vcpu.vm(), Nmi, 0);
        let first = vcpu.entry_after_script();
        assert_eq!(first.event, None, "{shadow:?}");
        assert!(first.interrupt_window && first.nmi_window, "{shadow:?}");
        assert_eq!(first.interruptibility, shadow);
    }
}

#[test]
fn a_shadow_ends_with_the_instruction_that_exits() {
    let mut vcpu = vcpu();
    vcpu.cpu.interruptibility = Interruptibility::BLOCKED_BY_STI;
    send(vcpu.vm(), Fixed, 0x40);
    let next = vcpu.then(until(Exit::Cpuid)).entry_after_script();
    assert_eq!(next.interruptibility, Interruptibility::empty());
    // The interrupt has not been looked at since: its window opens at once.
    assert!(next.interrupt_window);
}

#[test]
fn an_nmi_comes_before_an_interrupt() {
    let mut vcpu = vcpu();
    send(vcpu.vm(), Fixed, 0x40);
    send(vcpu.vm(), Nmi, 0);
    let next = vcpu.then(enabling_interrupts()).entry_after_script();
    let first = &vcpu.cpu.entries[0];
    assert_eq!((first.event, first.nmi_window), (Some(Event::NMI), false));
    assert!(first.interrupt_window);
    // The NMI's handler has enabled interrupts.
    assert_eq!(next.event, Some(Event::interrupt(0x40)));
}

#[test]
fn an_nmi_needs_no_interrupt_flag() {
    let mut vcpu = vcpu();
    vcpu.cpu.rflags &= !RFlags::INTERRUPT_FLAG.bits();
    send(vcpu.vm(), Nmi, 0);
    assert_eq!(vcpu.entry_after_script().event, Some(Event::NMI));
}

#[test]
fn of_many_nmis_in_the_handler_of_one_a_single_one_waits_for_its_end() {
    let mut vcpu = vcpu();
    send(vcpu.vm(), Nmi, 0);
    let vm = vcpu.vm().clone();
    let in_handler = until(Exit::HostInterrupt).having(move |_| {
        for _ in 0..3 {
            send(&vm, Nmi, 0);
        }
    });
    let iret = || {
        until(Exit::NmiWindow).having(|cpu| {
            cpu.interruptibility -= Interruptibility::BLOCKED_BY_NMI;
        })
    };
    let last = vcpu
        .then(in_handler)
        .then(iret())
        .then(iret())
        .entry_after_script();
    let entries = &vcpu.cpu.entries;
    assert_eq!(entries[0].event, Some(Event::NMI));
    assert_eq!((entries[1].event, entries[1].nmi_window), (None, true));
    assert_eq!(entries[2].event, Some(Event::NMI));
    assert!(!entries[2].nmi_window, "the processor latches one");
    assert_eq!(last.event, None);
}

#[test]
fn an_exception_comes_before_nmis_and_interrupts() {
    let mut vcpu = vcpu();
    vcpu.then(until(Exit::Rdpmc).having({
        let vm = vcpu.vm().clone();
        move |_| {
            send(&vm, Fixed, 0x40);
            send(&vm, Nmi, 0);
        }
    }));
    let next = vcpu.entry_after_script();
    assert_eq!(next.event, Some(Event::GENERAL_PROTECTION));
    assert!(next.nmi_window && next.interrupt_window);
}

#[test]
fn a_fault_pushes_the_resume_flag_and_ends_the_shadow_before_it() {
    let mut vcpu = vcpu();
    vcpu.then(until(Exit::UndefinedInstruction).having(|cpu| {
        cpu.interruptibility = Interruptibility::BLOCKED_BY_MOV_SS;
    }));
    let next = vcpu.entry_after_script();
    assert_eq!(next.event, Some(Event::INVALID_OPCODE));
    assert_ne!(next.rflags & RFlags::RESUME_FLAG.bits(), 0);
    assert_eq!(next.interruptibility, Interruptibility::empty());
}

#[test]
fn an_interrupt_does_not_push_the_resume_flag() {
    let mut vcpu = vcpu();
    send(vcpu.vm(), Fixed, 0x40);
    assert_eq!(
        vcpu.entry_after_script().rflags & RFlags::RESUME_FLAG.bits(),
        0
    );
}

#[test]
fn an_event_whose_delivery_an_exit_interrupts_is_delivered_again_before_all_others() {
    let mut vcpu = vcpu();
    let vm = vcpu.vm().clone();
    vcpu.then(
        until(Exit::HostInterrupt)
            .delivering(PAGE_FAULT)
            .having(move |_| send(&vm, Nmi, 0)),
    );
    let next = vcpu.entry_after_script();
    assert_eq!((next.event, next.nmi_window), (Some(PAGE_FAULT), true));
}

#[test]
fn an_nmi_whose_delivery_an_exit_interrupts_finds_nmis_open_when_it_is_delivered_again() {
    let mut vcpu = vcpu();
    send(vcpu.vm(), Nmi, 0);
    vcpu.then(until(Exit::HostInterrupt).delivering(Event::NMI));
    let next = vcpu.entry_after_script();
    assert_eq!(next.event, Some(Event::NMI));
    assert!(
        !next
            .interruptibility
            .contains(Interruptibility::BLOCKED_BY_NMI)
    );
}

#[test]
fn an_exception_in_the_delivery_of_an_nmi_leaves_nmis_blocked() {
    let mut vcpu = vcpu();
    send(vcpu.vm(), Nmi, 0);
    vcpu.then(until(Exit::UndefinedInstruction).delivering(Event::NMI));
    let next = vcpu.entry_after_script();
    assert_eq!(next.event, Some(Event::INVALID_OPCODE));
    assert!(
        next.interruptibility
            .contains(Interruptibility::BLOCKED_BY_NMI)
    );
}

#[test]
fn a_fault_in_the_delivery_of_a_fault_makes_a_double_fault_and_a_third_ends_the_vm() {
    let mut vcpu = vcpu();
    let next = vcpu
        .then(until(Exit::Rdpmc).delivering(DIVIDE_ERROR))
        .entry_after_script();
    assert_eq!(next.event, Some(DOUBLE_FAULT));

    let mut vcpu = self::vcpu();
    vcpu.then(until(Exit::Rdpmc).delivering(DOUBLE_FAULT));
    assert_eq!(
        vcpu.run(at(1_000_000)),
        crate::vcpu::RunExit::Stopped(StopReason::TripleFault)
    );
    assert_eq!(vcpu.cpu.entries.len(), 1, "it is not entered again");
}

#[test]
fn a_fault_in_the_delivery_of_an_interrupt_takes_its_place() {
    let mut vcpu = vcpu();
    let next = vcpu
        .then(until(Exit::Rdpmc).delivering(Event::interrupt(0x40)))
        .entry_after_script();
    assert_eq!(next.event, Some(Event::GENERAL_PROTECTION));
}

#[test]
fn a_pending_debug_exception_comes_before_interrupts_and_nmis() {
    let mut vcpu = vcpu();
    vcpu.cpu.pending_debug = true;
    send(vcpu.vm(), Fixed, 0x40);
    send(vcpu.vm(), Nmi, 0);
    let first = vcpu.entry_after_script();
    assert_eq!(first.event, None);
    assert!(first.interrupt_window && first.nmi_window);
}

/// Programs the 8259 pair to begin at vector 0x20.
fn start_pic(vcpu: &mut Vcpu<crate::vcpu::backend::fake::FakeCpu>) {
    vcpu.with_devices(at(0), |_, devices| {
        for (offset, value) in [(0, 0x11), (1, 0x20), (1, 4), (1, 1), (1, 0)] {
            devices.write_port(port::PIC_MASTER + offset, Width::BYTE, value);
        }
    });
}

#[test]
fn an_external_interrupt_has_the_8259_pairs_vector() {
    let mut vcpu = vcpu();
    start_pic(&mut vcpu);
    send(vcpu.vm(), ExtInt, 0);
    let first = vcpu.entry_after_script();
    // No line is asserted any more: the spurious interrupt, IRQ 7.
    assert_eq!(first.event, Some(Event::interrupt(0x27)));
    assert!(!first.interrupt_window);
}

#[test]
fn an_external_interrupt_waits_for_a_window_like_any_other() {
    for mut vcpu in [vcpu(), vcpu_with_virtual_delivery()] {
        start_pic(&mut vcpu);
        vcpu.cpu.rflags &= !RFlags::INTERRUPT_FLAG.bits();
        send(vcpu.vm(), ExtInt, 0);
        let next = vcpu.then(enabling_interrupts()).entry_after_script();
        let first = &vcpu.cpu.entries[0];
        assert_eq!((first.event, first.interrupt_window), (None, true));
        assert_eq!(next.event, Some(Event::interrupt(0x27)));
    }
}

#[test]
fn an_interrupt_below_the_task_priority_waits_at_the_threshold() {
    let mut vcpu = vcpu();
    vcpu.lapic.set_task_priority(0x50);
    send(vcpu.vm(), Fixed, 0x43);
    let first = vcpu.entry_after_script();
    assert_eq!((first.event, first.interrupt_window), (None, false));
    assert_eq!(first.tpr_threshold, 4, "the guest exits below class 4");
    vcpu.lapic.set_task_priority(0x30);
    let next = vcpu
        .then(until(Exit::TprBelowThreshold))
        .entry_after_script();
    assert_eq!(next.tpr_threshold, 0);
    assert_eq!(
        vcpu.cpu.entries[1].event,
        Some(Event::interrupt(0x43)),
        "as soon as the VCPU runs"
    );
}

#[test]
fn a_processor_that_delivers_interrupts_is_told_of_them_and_nothing_is_injected() {
    let mut vcpu = vcpu_with_virtual_delivery();
    assert_eq!(vcpu.cpu.assistance, ApicAssistance::XApic);
    send(vcpu.vm(), Fixed, 0x40);
    send(vcpu.vm(), Fixed, 0x51);
    let first = vcpu.entry_after_script();
    assert_eq!((first.event, first.interrupt_window), (None, false));
    assert_eq!(vcpu.cpu.virtual_interrupts, (0x51, 0));
}

#[test]
fn the_processor_leaves_the_apic_to_the_model_while_software_has_disabled_it() {
    const SVR: u16 = Register::SVR.offset();
    let mut vcpu = vcpu_with_virtual_delivery();
    vcpu.with_devices(at(0), |_, devices| {
        let now = devices.now;
        let (lapic, mut messages) = devices.lapic();
        lapic.mmio_write(now, SVR, 4, 0xff, &mut messages);
    });
    vcpu.follow_apic_enable();
    assert_eq!(vcpu.cpu.assistance, ApicAssistance::XApicTpr);
}

#[test]
fn after_an_init_the_bootstrap_processor_goes_on_in_its_firmware() {
    let mut vcpu = vcpu_with_rom();
    vcpu.activity = Activity::Running;
    vcpu.cpu.rip = 0x1234;
    send(vcpu.vm(), Init, 0);
    vcpu.entry_after_script();
    assert_eq!((vcpu.cpu.rip, vcpu.cpu.cr0 & 1), (0xfff0, 0));
}

#[test]
fn an_init_takes_back_what_was_to_be_delivered() {
    let mut vcpu = vcpu();
    vcpu.activity = Activity::Running;
    vcpu.raise(Event::GENERAL_PROTECTION).unwrap();
    let highest = vcpu.lapic.highest();
    vcpu.prepare_events(highest, false);
    assert!(vcpu.cpu.is_injecting());
    send(vcpu.vm(), Init, 0);
    // The bootstrap processor finds no firmware to go on with.
    assert_eq!(
        vcpu.run(at(1_000)),
        crate::vcpu::RunExit::Stopped(StopReason::Reset)
    );
    assert!(!vcpu.cpu.is_injecting());
}

#[test]
fn hlt_ends_by_an_nmi_always_and_by_an_interrupt_that_the_guest_lets_in() {
    let halted = |interrupts: bool, mode| {
        let mut vcpu = vcpu();
        if !interrupts {
            vcpu.cpu.rflags &= !RFlags::INTERRUPT_FLAG.bits();
        }
        vcpu.then(until(Exit::Hlt));
        assert_eq!(vcpu.run(at(1_000)), crate::vcpu::RunExit::Halted);
        send(vcpu.vm(), mode, 0x40);
        vcpu.run_for(1_000);
        vcpu.activity == Activity::Halted
    };
    assert!(!halted(true, Fixed));
    assert!(halted(false, Fixed));
    assert!(!halted(false, Nmi));
    assert!(!halted(true, ExtInt));
}

#[test]
fn a_fault_of_an_emulated_instruction_sets_cr2() {
    let mut vcpu = vcpu();
    vcpu.raise_fault(Fault {
        vector: ExceptionVector::Page,
        error_code: Some(2),
        cr2: Some(0x1234),
    })
    .unwrap();
    assert_eq!(vcpu.cpu.cr2, 0x1234);
    assert_eq!(vcpu.entry_after_script().event, Some(PAGE_FAULT));
}

#[test]
fn an_x2apic_that_the_processor_runs_exits_only_for_what_it_does_not_do() {
    const X2APIC: u64 = 0xfee0_0d00;
    const SELF_IPI: u32 = 0x83f;
    const CURRENT_COUNT: u32 = 0x839;
    let mut vcpu = vcpu_with_virtual_delivery();
    assert!(vcpu.cpu.msr_exits(SELF_IPI, MsrAccess::Write));
    vcpu.then(until(Exit::Wrmsr).having(|cpu| {
        cpu.gprs[RCX] = u64::from(arch::msr::IA32_APIC_BASE);
        cpu.gprs[RAX] = X2APIC;
    }));
    vcpu.entry_after_script();
    assert_eq!(vcpu.cpu.assistance, ApicAssistance::X2Apic);
    assert!(!vcpu.cpu.msr_exits(SELF_IPI, MsrAccess::Write));
    assert!(vcpu.cpu.msr_exits(SELF_IPI, MsrAccess::Read));
    assert!(vcpu.cpu.msr_exits(CURRENT_COUNT, MsrAccess::Read));
}
