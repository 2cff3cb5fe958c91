//! When the guest is seen to go on, and that it does not notice.

use devices::apic_message::DeliveryMode::Fixed;
use vmx::event::{Event as GuestEvent, EventKind};

use super::*;
use crate::suppression::order::Policy;
use crate::vcpu::backend::exit::Exit;
use crate::vcpu::backend::fake::{Entry, FakeCpu, Stay};
use crate::vcpu::fixture::{
    TARGET, load, send, suppress, vcpu, vcpu_with_virtual_delivery, with_processes,
};

const CODE: u64 = 0x40_1000;
const KERNEL_CODE: u64 = 0xffff_8000_0000_1000;
const STACK: u64 = 0xffff_8000_0001_0000;

/// A VCPU whose target is about to be interrupted in user mode at [`CODE`], with `dr7`.
fn interrupted(dr7: u64) -> Vcpu<FakeCpu> {
    interrupt_target_of(vcpu(), dr7)
}

fn interrupt_target_of(vcpu: Vcpu<FakeCpu>, dr7: u64) -> Vcpu<FakeCpu> {
    let mut vcpu = with_processes(vcpu);
    suppress(vcpu.vm(), TARGET, 1000, Policy::Paper);
    vcpu.cpu.debug_addresses = [0xa, 0xb, 0xc, 0xd];
    vcpu.cpu.dr7 = dr7;
    vcpu.then(Stay::until(10, Exit::Cpuid));
    vcpu.then(load(TARGET));
    let vm = vcpu.vm().clone();
    vcpu.then(Stay::until(10, Exit::Cpuid).having(move |cpu| {
        cpu.set_cpl(3);
        cpu.rip = CODE - 2;
        send(&vm, Fixed, 0x40);
    }));
    vcpu
}

/// The guest executes the instruction at `rip`, on which there is a breakpoint that sets these causes.
fn breakpoint_at(rip: u64, cpl: u32, causes: u64) -> Stay {
    let exception = InterceptedException {
        event: GuestEvent::exception(arch::ExceptionVector::Debug, None),
        nmi_unblocked: false,
        debug_causes: causes,
    };
    assert_eq!(exception.event.kind, EventKind::HardwareException);
    Stay::until(300, Exit::Exception(exception)).having(move |cpu| {
        cpu.rip = rip;
        cpu.set_cpl(cpl);
    })
}

fn rate(entry: &Entry) -> u64 {
    entry.tsc.multiplier >> 48
}

/// On some processors a breakpoint comes before an interrupt that they are to deliver.
#[test]
fn a_processor_that_delivers_interrupts_has_this_one_injected() {
    let mut vcpu = interrupt_target_of(vcpu_with_virtual_delivery(), 0x400);
    let vm = vcpu.vm().clone();
    let nested = Stay::until(10, Exit::Cpuid).having(move |cpu| {
        cpu.set_cpl(0);
        cpu.rip = KERNEL_CODE;
        send(&vm, Fixed, 0x30);
    });
    vcpu.then(nested);
    let after = vcpu.entry_after_script();
    let handler = &vcpu.cpu.entries[3];
    assert_eq!(handler.event, Some(GuestEvent::interrupt(0x40)));
    assert_eq!(handler.dr7, 0x402);
    // A lower one stays with the processor.
    assert_eq!(after.event, None);
    assert_eq!(vcpu.cpu.virtual_interrupts, (0x30, 0x40));
}

#[test]
fn the_clock_is_fast_again_when_the_interrupted_instruction_is_next() {
    let mut vcpu = interrupted(0x400);
    vcpu.then(breakpoint_at(CODE, 3, 0b1));
    let after = vcpu.entry_after_script();
    let handler = &vcpu.cpu.entries[3];
    assert_eq!(handler.event, Some(GuestEvent::interrupt(0x40)));
    assert_eq!(handler.debug_addresses, [CODE, 0xb, 0xc, 0xd]);
    assert_eq!(handler.dr7, 0x402);
    assert!(handler.debug_register_exits);
    assert_eq!(rate(handler), 1);
    assert_eq!(after.debug_addresses, [0xa, 0xb, 0xc, 0xd]);
    assert_eq!((after.dr7, after.debug_register_exits), (0x400, false));
    assert_eq!((after.event, rate(&after)), (None, 1000));
    assert_eq!(vcpu.cpu.dr6, 0xffff_0ff0);
}

#[test]
fn the_guests_own_breakpoints_stay_and_are_delivered() {
    // DR0 and DR2 are the guest's, the latter for writes of eight bytes.
    const OWN: u64 = 0x400 | 0b1 | 0b10 << 4 | 0b1001 << 24;
    let mut vcpu = interrupted(OWN);
    vcpu.then(breakpoint_at(CODE, 3, 0b11));
    let after = vcpu.entry_after_script();
    let handler = &vcpu.cpu.entries[3];
    assert_eq!(handler.debug_addresses, [0xa, CODE, 0xc, 0xd]);
    assert_eq!(handler.dr7, OWN | 0b10 << 2);
    assert_eq!(after.dr7, OWN);
    let event = after.event.expect("the guest's own breakpoint");
    assert_eq!(event.vector, arch::ExceptionVector::Debug as u8);
    assert_eq!(vcpu.cpu.dr6 & 0xf, 0b1, "and nothing of ours");
}

#[test]
fn a_guest_that_uses_all_debug_registers_has_them() {
    let mut vcpu = interrupted(0x4ff);
    let handler = vcpu.entry_after_script();
    assert_eq!(handler.event, Some(GuestEvent::interrupt(0x40)));
    assert_eq!(handler.debug_addresses, [0xa, 0xb, 0xc, 0xd]);
    assert_eq!((handler.dr7, handler.debug_register_exits), (0x4ff, false));
    assert_eq!(rate(&handler), 1, "its end is looked for");
    assert!(handler.time_limit < 100_000);
}

#[test]
fn a_guest_that_looks_at_its_debug_registers_sees_its_own() {
    let mut vcpu = interrupted(0x400);
    vcpu.then(Stay::until(300, Exit::DebugRegister).having(|cpu| cpu.rip = 0x1234));
    let again = vcpu.entry_after_script();
    assert_eq!(again.debug_addresses, [0xa, 0xb, 0xc, 0xd]);
    assert_eq!((again.dr7, again.debug_register_exits), (0x400, false));
    assert_eq!(vcpu.cpu.rip, 0x1234, "it is executed again");
}

#[test]
fn the_same_code_in_a_handler_is_not_the_end() {
    let mut vcpu = with_processes(vcpu());
    suppress(vcpu.vm(), TARGET, 1000, Policy::Paper);
    vcpu.then(Stay::until(10, Exit::Cpuid));
    let vm = vcpu.vm().clone();
    vcpu.then(load(TARGET))
        .then(Stay::until(10, Exit::Cpuid).having(move |cpu| {
            cpu.rip = KERNEL_CODE - 2;
            cpu.gprs[RSP] = STACK;
            send(&vm, Fixed, 0x40);
        }));
    vcpu.then(breakpoint_at(KERNEL_CODE, 0, 0b1).having(|cpu| {
        cpu.rip = KERNEL_CODE;
        cpu.gprs[RSP] = STACK - 0x100;
    }));
    vcpu.then(breakpoint_at(KERNEL_CODE, 0, 0b1).having(|cpu| {
        cpu.rip = KERNEL_CODE;
        cpu.gprs[RSP] = STACK;
        cpu.rflags |= RFlags::INTERRUPT_FLAG.bits();
    }));
    let after = vcpu.entry_after_script();
    let past = &vcpu.cpu.entries[4];
    assert_eq!(past.debug_addresses[0], KERNEL_CODE);
    assert_ne!(past.rflags & RFlags::RESUME_FLAG.bits(), 0);
    assert_eq!((past.event, rate(past)), (None, 1));
    assert_eq!((after.event, rate(&after)), (None, 1000));
    assert_eq!(after.debug_addresses[0], 0);
}

#[test]
fn a_string_instruction_that_was_interrupted_does_not_hide() {
    let mut vcpu = interrupted(0x400);
    let vm = vcpu.vm().clone();
    vcpu.cpu.script.pop_back();
    vcpu.then(Stay::until(10, Exit::HostInterrupt).having(move |cpu| {
        cpu.set_cpl(3);
        cpu.rip = CODE;
        cpu.rflags |= RFlags::RESUME_FLAG.bits();
        send(&vm, Fixed, 0x40);
    }));
    let handler = vcpu.entry_after_script();
    assert_eq!(handler.event, Some(GuestEvent::interrupt(0x40)));
    assert_eq!(handler.debug_addresses[0], CODE);
    assert_eq!(handler.rflags & RFlags::RESUME_FLAG.bits(), 0);
}
