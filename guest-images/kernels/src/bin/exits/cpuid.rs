//! CPUID.

use core::arch::asm;
use core::arch::x86_64::{__cpuid, __cpuid_count};

use arch::cpuid::{EXTENDED, Extended1Edx, Leaf1Ecx};
use kernels::Report;
use kernels::lapic::{Lapic, Mode};
use x86_64::registers::control::{Cr4, Cr4Flags};

const VMX: u32 = Leaf1Ecx::VMX.bits();
const XSAVE: u32 = Leaf1Ecx::XSAVE.bits();
const OSXSAVE: u32 = Leaf1Ecx::OSXSAVE.bits();

pub(crate) fn test(report: &mut Report) {
    let highest = __cpuid(0).eax;
    report.within("cpuid: highest basic leaf", u64::from(highest), 0x7..=0xff);
    report.equal("cpuid: no VMX in the guest", __cpuid(1).ecx & VMX, 0);
    report.within(
        "cpuid: highest extended leaf",
        u64::from(__cpuid(EXTENDED).eax),
        0x8000_0008..=0x8000_00ff,
    );
    let lapic = Lapic::enable(Mode::XApic);
    report.equal(
        "cpuid: initial APIC ID is the LAPIC's",
        __cpuid(1).ebx >> 24,
        lapic.id(),
    );

    if __cpuid(1).ecx & XSAVE == 0 {
        report.skip("cpuid: OSXSAVE follows CR4", "no XSAVE");
    } else {
        let cr4 = Cr4::read();
        // SAFETY: no code here uses XSAVE.
        unsafe { Cr4::write(cr4 | Cr4Flags::OSXSAVE) };
        report.equal(
            "cpuid: OSXSAVE set with CR4's",
            __cpuid(1).ecx & OSXSAVE,
            OSXSAVE,
        );
        // SAFETY: as above.
        unsafe { Cr4::write(cr4 - Cr4Flags::OSXSAVE) };
        report.equal(
            "cpuid: OSXSAVE clear with CR4's",
            __cpuid(1).ecx & OSXSAVE,
            0,
        );
        // SAFETY: as above.
        unsafe { Cr4::write(cr4) };
        let area = __cpuid_count(0xd, 0);
        report.within(
            "cpuid: XSAVE area holds x87 and SSE state",
            u64::from(area.ebx),
            576..=u64::from(area.ecx),
        );
        report.equal("cpuid: XCR0 can hold x87 and SSE", area.eax & 3, 3);
    }

    report.holds(
        "cpuid: SYSCALL in 64-bit mode",
        __cpuid(EXTENDED + 1).edx & Extended1Edx::SYSCALL.bits() != 0,
    );

    let (rax, rbx, rcx, rdx): (u64, u64, u64, u64);
    // SAFETY: CPUID touches no memory; RBX is put back.
    unsafe {
        asm!(
            "xchg rbx, {rbx}",
            "cpuid",
            "xchg rbx, {rbx}",
            rbx = inout(reg) u64::MAX => rbx,
            inout("rax") 0xffff_ffff_0000_0000_u64 => rax,
            inout("rcx") 0xffff_ffff_0000_0000_u64 => rcx,
            inout("rdx") u64::MAX => rdx,
        );
    }
    let upper = (rax | rbx | rcx | rdx) >> 32;
    report.equal("cpuid: upper halves are zero", upper, 0);
    report.equal("cpuid: EAX alone selects the leaf", rax, u64::from(highest));
}
