//! RDMSR and WRMSR: MSRs that every 64-bit Intel CPU has, and others.

use core::arch::x86_64::{__cpuid, __cpuid_count};

use arch::cpuid::Leaf7Ebx;
use arch::msr::*;
use kernels::interrupts::{Fault, catch};
use kernels::{Report, multiboot, platform, tsc};
use x86_64::registers::model_specific::Msr;

/// MSRs that hold what is written to them, with two legal values each.
const HOLDING: [(&str, u32, u64, u64); 9] = [
    ("IA32_SYSENTER_CS", IA32_SYSENTER_CS, 0x8, 0x0),
    (
        "IA32_SYSENTER_ESP",
        IA32_SYSENTER_ESP,
        0xffff_8000_0000_1234,
        0,
    ),
    ("IA32_SYSENTER_EIP", IA32_SYSENTER_EIP, 0x7fff_1234_5678, 0),
    ("IA32_STAR", IA32_STAR, 0x0018_0008_0000_0000, 0),
    ("IA32_LSTAR", IA32_LSTAR, 0xffff_ffff_8000_0000, 0x1000),
    ("IA32_CSTAR", IA32_CSTAR, 0xffff_ffff_8000_0000, 0x1000),
    ("IA32_FMASK", IA32_FMASK, 0x4_7700, 0),
    ("IA32_FS_BASE", IA32_FS_BASE, 0x7fff_dead_b000, 0),
    (
        "IA32_KERNEL_GS_BASE",
        IA32_KERNEL_GS_BASE,
        0xffff_8880_1234_5678,
        0,
    ),
];

/// MSRs that no CPU has.
const ABSENT: [u32; 3] = [0x1234_5678, 0xdead_beef, 0xc000_ffff];

pub(crate) fn read(msr: u32) -> Result<u64, Fault> {
    let mut value = 0;
    // SAFETY: reading an MSR has no effect, and an absent one is #GP.
    catch(|| value = unsafe { Msr::new(msr).read() })?;
    Ok(value)
}

pub(crate) fn write(msr: u32, value: u64) -> Result<(), Fault> {
    // SAFETY: the tests write values that do not change how this kernel runs.
    catch(|| unsafe { Msr::new(msr).write(value) })
}

pub(crate) fn test(report: &mut Report) {
    for (name, msr, first, second) in HOLDING {
        for value in [first, second] {
            let outcome = write(msr, value).and_then(|()| read(msr));
            report.same(name, outcome, Ok(value));
        }
    }
    report.holds("IA32_MTRRCAP can be read", read(IA32_MTRRCAP).is_ok());
    report.holds(
        "IA32_PAT can be written",
        write(IA32_PAT, 0x0007_0106_0007_0406).is_ok(),
    );
    report.same("IA32_PAT holds", read(IA32_PAT), Ok(0x0007_0106_0007_0406));
    let efer = read(IA32_EFER).unwrap_or(0);
    report.equal("IA32_EFER shows long mode active", efer & 0x500, 0x500);
    report.same(
        "IA32_EFER.SCE can be set",
        write(IA32_EFER, efer | 1).and_then(|()| read(IA32_EFER)),
        Ok(efer | 1),
    );
    report.same(
        "IA32_EFER.SCE can be cleared",
        write(IA32_EFER, efer).and_then(|()| read(IA32_EFER)),
        Ok(efer),
    );

    if platform::is_tcg() {
        report.skip("#GP for what MSRs do not take", "TCG ignores it");
    } else {
        for msr in ABSENT {
            report.same(
                "RDMSR of an absent MSR",
                read(msr),
                Err(Fault::GENERAL_PROTECTION),
            );
            report.same(
                "WRMSR to an absent MSR",
                write(msr, 0),
                Err(Fault::GENERAL_PROTECTION),
            );
        }
        for (name, msr, value) in [
            (
                "IA32_PAT with a reserved type",
                IA32_PAT,
                0x0007_0406_0007_0402,
            ),
            ("IA32_EFER with a reserved bit", IA32_EFER, efer | 1 << 63),
            (
                "IA32_LSTAR with a non-canonical address",
                IA32_LSTAR,
                0x8000_0000_0000_0000,
            ),
            (
                "IA32_KERNEL_GS_BASE with a non-canonical address",
                IA32_KERNEL_GS_BASE,
                1 << 63,
            ),
            ("IA32_MTRRCAP, which is read-only", IA32_MTRRCAP, 0),
            (
                "IA32_MISC_ENABLE with a reserved bit",
                IA32_MISC_ENABLE,
                1 << 63,
            ),
            (
                "IA32_EFER.LME cleared while paging",
                IA32_EFER,
                efer & !0x100,
            ),
        ] {
            report.same(name, write(msr, value), Err(Fault::GENERAL_PROTECTION));
        }
        let name = "IA32_SYSENTER_EIP with a non-canonical address";
        if multiboot::has_word("sysenter-unchecked") {
            report.skip(name, "the command line says `sysenter-unchecked`");
        } else {
            let written = write(IA32_SYSENTER_EIP, 1 << 47);
            report.same(name, written, Err(Fault::GENERAL_PROTECTION));
        }
        report.same("IA32_EFER unharmed", read(IA32_EFER), Ok(efer));
        // Performance monitoring available, BTS and PEBS unavailable.
        const READ_ONLY: u64 = 1 << 7 | 1 << 11 | 1 << 12;
        let misc = read(IA32_MISC_ENABLE);
        report.same(
            "IA32_MISC_ENABLE ignores writes to read-only bits",
            misc.and_then(|misc| write(IA32_MISC_ENABLE, misc ^ READ_ONLY))
                .and_then(|()| read(IA32_MISC_ENABLE)),
            misc,
        );
    }
    test_tsc(report);
}

/// The relations between the TSC, IA32_TSC_ADJUST and IA32_TSC_AUX. SDM vol. 3B, 18.17.3.
fn test_tsc(report: &mut Report) {
    const STEP: u64 = 1 << 40;
    if __cpuid_count(7, 0).ebx & Leaf7Ebx::TSC_ADJUST.bits() == 0 {
        report.skip("IA32_TSC_ADJUST", "not there");
    } else if platform::is_tcg() {
        report.skip("IA32_TSC_ADJUST", "TCG does not apply it");
    } else {
        let adjust = read(IA32_TSC_ADJUST).unwrap_or(0);
        let before = tsc::now();
        report.same(
            "IA32_TSC_ADJUST can be written",
            write(IA32_TSC_ADJUST, adjust + STEP),
            Ok(()),
        );
        let moved = tsc::now().wrapping_sub(before);
        report.within(
            "IA32_TSC_ADJUST moves the TSC",
            moved,
            STEP..=STEP + STEP / 16,
        );
        report.same(
            "IA32_TSC_ADJUST holds",
            read(IA32_TSC_ADJUST),
            Ok(adjust + STEP),
        );
        let now = tsc::now();
        report.same(
            "IA32_TIME_STAMP_COUNTER can be written",
            write(IA32_TIME_STAMP_COUNTER, now - STEP),
            Ok(()),
        );
        let back = read(IA32_TSC_ADJUST).unwrap_or(0).wrapping_sub(adjust) as i64;
        report.within(
            "writing the TSC moves IA32_TSC_ADJUST",
            back.unsigned_abs(),
            0..=STEP / 16,
        );
        report.within(
            "the TSC is what was written",
            tsc::now().wrapping_sub(now - STEP),
            0..=STEP / 16,
        );
        report.same(
            "IA32_TSC_ADJUST back",
            write(IA32_TSC_ADJUST, adjust),
            Ok(()),
        );
    }
    let first = tsc::now();
    if platform::is_tcg() {
        report.skip(
            "RDMSR of the TSC agrees with RDTSC",
            "TCG does not have the MSR",
        );
    } else {
        let agrees = read(IA32_TIME_STAMP_COUNTER).is_ok_and(|msr| first < msr && msr < tsc::now());
        report.holds("RDMSR of the TSC agrees with RDTSC", agrees);
    }
    if __cpuid(0x8000_0001).edx & 1 << 27 == 0 {
        report.skip("RDTSCP", "not there");
        return;
    }
    for value in [0, 0x1234_5678, 3] {
        let outcome = write(IA32_TSC_AUX, value);
        let mut aux = 0;
        // SAFETY: RDTSCP is there, as checked.
        let counter = unsafe { core::arch::x86_64::__rdtscp(&mut aux) };
        report.same(
            "RDTSCP gives IA32_TSC_AUX",
            outcome.map(|()| u64::from(aux)),
            Ok(value),
        );
        report.holds("RDTSCP is not before RDTSC", counter > first);
    }
    if !platform::is_tcg() {
        report.same(
            "IA32_TSC_AUX with upper bits",
            write(IA32_TSC_AUX, 1 << 32),
            Err(Fault::GENERAL_PROTECTION),
        );
    }
    let mut last = tsc::now();
    let mut backwards = 0;
    for _ in 0..10_000 {
        let next = tsc::now();
        backwards += u64::from(next <= last);
        last = next;
    }
    report.equal("RDTSC always increases", backwards, 0);
}
