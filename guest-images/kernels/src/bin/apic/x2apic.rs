//! x2APIC mode: its transitions and its registers. SDM vol. 3A, 11.12.

use core::arch::x86_64::__cpuid_count;

use arch::apic::{Register, lvt};
use kernels::Report;
use kernels::interrupts::{Fault, catch};
use kernels::lapic::{self, GLOBAL_ENABLE, Lapic, Mode, X2APIC_ENABLE};
use x86_64::registers::model_specific::Msr;

use crate::delivery;

const GP: Fault = Fault::GENERAL_PROTECTION;

fn set_base(value: u64) -> Result<(), Fault> {
    catch(|| lapic::set_base(value))
}

fn msr(register: Register) -> Msr {
    Msr::new(register.msr())
}

fn write(register: Register, value: u64) -> Result<(), Fault> {
    // SAFETY: the APIC touches no memory.
    catch(|| unsafe { msr(register).write(value) })
}

fn read(register: Register) -> Result<u64, Fault> {
    let mut value = 0;
    // SAFETY: as above.
    catch(|| value = unsafe { msr(register).read() })?;
    Ok(value)
}

pub(crate) fn test(report: &mut Report) {
    test_transitions(report);
    let lapic = Lapic::enable(Mode::X2Apic);
    test_registers(report);
    delivery::test(report, lapic);
}

fn test_transitions(report: &mut Report) {
    let lapic = Lapic::enable(Mode::XApic);
    let plain = lapic::base() & !(GLOBAL_ENABLE | X2APIC_ENABLE);
    let (x, invalid) = (plain | GLOBAL_ENABLE, plain | X2APIC_ENABLE);
    let x2 = x | invalid;
    let id = lapic.id();
    report.same(
        "the MSRs are not there in xAPIC mode",
        read(Register::VERSION),
        Err(GP),
    );
    report.same("xAPIC to invalid", set_base(invalid), Err(GP));
    report.equal("unharmed", lapic::base(), x);
    lapic.write(Register::TPR, 0x20);
    lapic.write(Register::SVR, 0x1ab);
    report.same("xAPIC to x2APIC", set_base(x2), Ok(()));
    report.equal("IA32_APIC_BASE holds", lapic::base(), x2);
    report.same("TPR is kept", read(Register::TPR), Ok(0x20));
    report.same("SVR is kept", read(Register::SVR), Ok(0x1ab));
    report.same("x2APIC to x2APIC", set_base(x2), Ok(()));
    report.same("x2APIC to xAPIC", set_base(x), Err(GP));
    report.same("x2APIC to invalid", set_base(invalid), Err(GP));
    report.equal("unharmed", lapic::base(), x2);
    if crate::can_disable() {
        test_disabling(report, id);
    } else {
        report.skip("x2APIC to disabled", "the APIC cannot be enabled again");
    }
}

fn test_disabling(report: &mut Report, id: u32) {
    let disabled = lapic::base() & !(GLOBAL_ENABLE | X2APIC_ENABLE);
    let (x, invalid) = (disabled | GLOBAL_ENABLE, disabled | X2APIC_ENABLE);
    let x2 = x | invalid;
    report.same("x2APIC to disabled", set_base(disabled), Ok(()));
    report.same(
        "the MSRs are not there when disabled",
        read(Register::VERSION),
        Err(GP),
    );
    report.same("disabled to x2APIC", set_base(x2), Err(GP));
    report.same("disabled to invalid", set_base(invalid), Err(GP));
    report.equal("unharmed", lapic::base(), disabled);
    report.same("disabled to xAPIC", set_base(x), Ok(()));
    report.equal("the ID is the same again", Lapic::current().id(), id);
    report.equal(
        "TPR after disabling",
        Lapic::current().read(Register::TPR),
        0,
    );
}

fn test_registers(report: &mut Report) {
    let id = u64::from(__cpuid_count(0xb, 0).edx);
    report.same("ID is CPUID's", read(Register::ID), Ok(id));
    report.same(
        "LDR comes from the ID",
        read(Register::LDR),
        Ok((id >> 4) << 16 | 1 << (id & 15)),
    );
    for (name, register) in [
        ("ID cannot be written", Register::ID),
        ("version cannot be written", Register::VERSION),
        ("LDR cannot be written", Register::LDR),
        ("PPR cannot be written", Register::PPR),
        ("ISR cannot be written", Register::ISR),
        ("IRR cannot be written", Register::IRR),
        (
            "the current count cannot be written",
            Register::CURRENT_COUNT,
        ),
        ("there is no DFR to write", Register::DFR),
        ("there is no ICR high to write", Register::ICR_HIGH),
        ("there is nothing at 0x40 to write", Register::at(0x040)),
    ] {
        report.same(name, write(register, 0), Err(GP));
    }
    for (name, register) in [
        ("EOI cannot be read", Register::EOI),
        ("self-IPI cannot be read", Register::SELF_IPI),
        ("there is no DFR to read", Register::DFR),
        ("there is no ICR high to read", Register::ICR_HIGH),
        ("there is nothing at 0x40 to read", Register::at(0x040)),
        ("there is nothing at 0x0c0 to read", Register::RRD),
    ] {
        report.same(name, read(register), Err(GP));
    }
    for (name, register, value) in [
        ("EOI other than 0", Register::EOI, 1),
        ("ESR other than 0", Register::ESR, 1),
        ("TPR with reserved bits", Register::TPR, 0x100),
        ("SVR with reserved bits", Register::SVR, 0x1_01ff),
        (
            "LVT timer with reserved bits",
            Register::LVT_TIMER,
            0x1_0831,
        ),
        (
            "LVT LINT0 with reserved bits",
            Register::LVT_LINT0,
            0x3_0031,
        ),
        (
            "divide configuration with reserved bits",
            Register::DIVIDE,
            0x10,
        ),
        (
            "initial count with upper bits",
            Register::INITIAL_COUNT,
            1 << 32,
        ),
        ("TPR with upper bits", Register::TPR, 1 << 32),
        ("self-IPI with reserved bits", Register::SELF_IPI, 0x1_0041),
    ] {
        report.same(name, write(register, value), Err(GP));
    }
    // SAFETY: the APIC touches no memory; the IPIs are none.
    let icr = catch(|| unsafe { msr(Register::ICR_LOW).write(1 << 20) });
    report.same("ICR with reserved bits", icr, Err(GP));
    for (name, register, value) in [
        ("TPR", Register::TPR, 0x35),
        ("TPR back", Register::TPR, 0),
        (
            "LVT timer",
            Register::LVT_TIMER,
            u64::from(lvt::MASKED) | 0x31,
        ),
        ("divide configuration", Register::DIVIDE, 0xb),
        ("initial count", Register::INITIAL_COUNT, 0xffff_ffff),
        ("initial count back", Register::INITIAL_COUNT, 0),
    ] {
        report.same(
            name,
            write(register, value).and_then(|()| read(register)),
            Ok(value),
        );
    }
    // What was refused above may have been noted as an error: the first write takes it over.
    let _ = write(Register::ESR, 0);
    report.same(
        "ESR is 0",
        write(Register::ESR, 0).and_then(|()| read(Register::ESR)),
        Ok(0),
    );
    report.same("EOI of 0", write(Register::EOI, 0), Ok(()));
}
