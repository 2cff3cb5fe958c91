//! Instructions that exit to a hypervisor, and what must hold in the guest all the same.
//!
//! The word `sysenter-unchecked` on the command line leaves out that IA32_SYSENTER_EIP refuses an
//! address that is not canonical: KVM makes it canonical instead (its `__kvm_set_msr`).
#![cfg_attr(target_os = "none", no_std, no_main)]

mod control_registers;
mod cpuid;
mod debug;
mod exceptions;
mod instructions;
mod mmio;
mod mmio_forms;
mod mmio_registers;
mod msrs;
mod ports;
mod state;

use kernels::Report;

fn run(report: &mut Report) {
    cpuid::test(report);
    msrs::test(report);
    control_registers::test(report);
    instructions::test(report);
    exceptions::test(report);
    debug::test(report);
    ports::test(report);
    state::test(report);
    mmio_forms::test(report);
    mmio_registers::test(report);
    mmio::test(report);
}

kernels::kernel!(run);
