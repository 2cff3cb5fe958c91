//! A guest's controls of speculation: they are there as CPUID says, and IA32_SPEC_CTRL has what was written to it, also
//! when something has exited meanwhile, be it written seldom or often.
//!
//! With `has=1` on the command line CPUID must show them, with `has=0` it must not.
#![cfg_attr(target_os = "none", no_std, no_main)]

use core::arch::x86_64::__cpuid_count;

use arch::cpuid::Leaf7Edx;
use arch::msr::{FlushCmd, IA32_FLUSH_CMD, IA32_PRED_CMD, IA32_SPEC_CTRL, PredCmd, SpecCtrl};
use kernels::interrupts::{Fault, catch};
use kernels::{Report, multiboot};
use x86_64::registers::model_specific::Msr;

/// The writes after each of which something exits: more than tarpit looks at one by one.
const ROUNDS: usize = 200;

fn read(msr: u32) -> Result<u64, Fault> {
    let mut value = 0;
    // SAFETY: reading an MSR has no effect, and an absent one is #GP.
    catch(|| value = unsafe { Msr::new(msr).read() })?;
    Ok(value)
}

fn write(msr: u32, value: u64) -> Result<(), Fault> {
    // SAFETY: the values do not change what this kernel does.
    catch(|| unsafe { Msr::new(msr).write(value) })
}

fn run(report: &mut Report) {
    // CPUID exits.
    let features = || Leaf7Edx::from_bits_retain(__cpuid_count(7, 0).edx);
    let has = features().contains(Leaf7Edx::IBRS_IBPB);
    if let Some(expected) = multiboot::number("has") {
        report.equal("CPUID shows IBRS and IBPB", u64::from(has), expected);
    }
    let fault = Fault::GENERAL_PROTECTION;
    if !has {
        report.same("IA32_SPEC_CTRL", read(IA32_SPEC_CTRL), Err(fault));
        report.same("a write of it", write(IA32_SPEC_CTRL, 0), Err(fault));
        report.same("IA32_PRED_CMD", write(IA32_PRED_CMD, 1), Err(fault));
        report.same("IA32_FLUSH_CMD", write(IA32_FLUSH_CMD, 1), Err(fault));
        return;
    }
    report.same("IA32_SPEC_CTRL at first", read(IA32_SPEC_CTRL), Ok(0));
    report.same("a bit of none", write(IA32_SPEC_CTRL, 1 << 40), Err(fault));
    let values = [
        SpecCtrl::IBRS,
        SpecCtrl::empty(),
        SpecCtrl::IBRS | SpecCtrl::STIBP,
    ];
    let mut wrong = 0_u64;
    for value in values.into_iter().cycle().take(ROUNDS) {
        let written = write(IA32_SPEC_CTRL, value.bits());
        let is_there = || read(IA32_SPEC_CTRL) == Ok(value.bits());
        let stays = is_there() && features().contains(Leaf7Edx::IBRS_IBPB) && is_there();
        wrong += u64::from(written.is_err() || !stays);
    }
    report.equal("values of IA32_SPEC_CTRL that were lost", wrong, 0);
    let barrier = write(IA32_PRED_CMD, PredCmd::IBPB.bits());
    report.same("IBPB", barrier, Ok(()));
    report.same(
        "IA32_PRED_CMD cannot be read",
        read(IA32_PRED_CMD),
        Err(fault),
    );
    if features().contains(Leaf7Edx::L1D_FLUSH) {
        let flush = write(IA32_FLUSH_CMD, FlushCmd::L1D_FLUSH.bits());
        report.same("a flush of the L1D", flush, Ok(()));
    }
}

kernels::kernel!(run);
