//! Why VM entry failed: the guest-state checks of SDM vol. 3C, 27.3.1, done again in
//! software to name what the processor only hints at.
#![forbid(unsafe_code)]

use core::fmt;

use arch::{Cr0Flags, Cr4Flags, EferFlags, RFlags};

use crate::controls::{Entry, Secondary};
use crate::fields;
use crate::segment::{AccessRights, SegmentRegister};
use crate::vmcs::Vmcs;

/// Returns the name of a VM-instruction error (SDM vol. 3C, 31.4).
#[must_use]
pub const fn instruction_error(number: u32) -> &'static str {
    match number {
        1 => "VMCALL executed in VMX root operation",
        2 => "VMCLEAR with invalid physical address",
        3 => "VMCLEAR with VMXON pointer",
        4 => "VMLAUNCH with non-clear VMCS",
        5 => "VMRESUME with non-launched VMCS",
        6 => "VMRESUME after VMXOFF",
        7 => "VM entry with invalid control fields",
        8 => "VM entry with invalid host-state fields",
        9 => "VMPTRLD with invalid physical address",
        10 => "VMPTRLD with VMXON pointer",
        11 => "VMPTRLD with incorrect VMCS revision identifier",
        12 => "VMREAD or VMWRITE of an unsupported VMCS component",
        13 => "VMWRITE to a read-only VMCS component",
        15 => "VMXON executed in VMX root operation",
        26 => "VM entry with events blocked by MOV SS",
        28 => "invalid operand to INVEPT or INVVPID",
        _ => "no or an unknown VM-instruction error",
    }
}

/// A guest-state check that the current VMCS does not pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FailedCheck {
    /// The fault found, in words.
    pub what: &'static str,
    /// The value that is wrong.
    pub value: u64,
}

impl fmt::Display for FailedCheck {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({:#x})", self.what, self.value)
    }
}

const fn canonical(address: u64) -> bool {
    (address as i64) << 16 >> 16 == address as i64
}

/// Runs the checks on the current VMCS and reports each that fails to `report`.
pub fn check_guest_state(vmcs: &Vmcs, mut report: impl FnMut(FailedCheck)) {
    let mut check = |ok: bool, what, value| {
        if !ok {
            report(FailedCheck { what, value });
        }
    };
    let entry = Entry::from_bits_retain(vmcs.read(fields::ENTRY_CONTROLS));
    let long = entry.contains(Entry::IA32E_MODE_GUEST);
    let unrestricted = Secondary::from_bits_retain(vmcs.read(fields::SECONDARY_CONTROLS))
        .contains(Secondary::UNRESTRICTED_GUEST);
    let cr0 = Cr0Flags::from_bits_retain(vmcs.read(fields::GUEST_CR0));
    let cr3 = vmcs.read(fields::GUEST_CR3);
    let cr4 = Cr4Flags::from_bits_retain(vmcs.read(fields::GUEST_CR4));
    let efer = EferFlags::from_bits_retain(vmcs.read(fields::GUEST_EFER));
    let rip = vmcs.read(fields::GUEST_RIP);
    let rflags = RFlags::from_bits_retain(vmcs.read(fields::GUEST_RFLAGS));
    let v86 = rflags.contains(RFlags::VIRTUAL_8086_MODE);

    check(
        !cr0.contains(Cr0Flags::PAGING) || cr0.contains(Cr0Flags::PROTECTED_MODE_ENABLE),
        "CR0.PG without CR0.PE",
        cr0.bits(),
    );
    check(
        unrestricted || cr0.contains(Cr0Flags::PROTECTED_MODE_ENABLE),
        "CR0.PE is 0 without unrestricted guest",
        cr0.bits(),
    );
    check(
        cr3 >> 52 == 0,
        "CR3 has bits above the physical-address width",
        cr3,
    );
    check(
        !long || cr0.contains(Cr0Flags::PAGING),
        "IA-32e mode without CR0.PG",
        cr0.bits(),
    );
    check(
        !long || cr4.contains(Cr4Flags::PHYSICAL_ADDRESS_EXTENSION),
        "IA-32e mode without CR4.PAE",
        cr4.bits(),
    );
    check(
        long || !cr4.contains(Cr4Flags::PCID),
        "CR4.PCIDE outside IA-32e mode",
        cr4.bits(),
    );
    check(
        efer.contains(EferFlags::LONG_MODE_ACTIVE) == long,
        "EFER.LMA differs from the IA-32e-mode control",
        efer.bits(),
    );
    check(
        !cr0.contains(Cr0Flags::PAGING)
            || efer.contains(EferFlags::LONG_MODE_ENABLE)
                == efer.contains(EferFlags::LONG_MODE_ACTIVE),
        "EFER.LMA differs from EFER.LME with paging on",
        efer.bits(),
    );
    check(
        rflags.bits() & arch::reset::RFLAGS != 0,
        "RFLAGS bit 1 is 0",
        rflags.bits(),
    );
    check(
        rflags.bits() & !(RFlags::all().bits() | arch::reset::RFLAGS) == 0,
        "RFLAGS has reserved bits set",
        rflags.bits(),
    );
    check(!v86 || !long, "RFLAGS.VM in IA-32e mode", rflags.bits());

    let cs = vmcs.segment(SegmentRegister::Cs);
    let ss = vmcs.segment(SegmentRegister::Ss);
    let cs_long = long && cs.rights.contains(AccessRights::LONG);
    check(
        cs_long || rip >> 32 == 0,
        "RIP above 4 GiB outside 64-bit mode",
        rip,
    );
    check(!cs_long || canonical(rip), "RIP is not canonical", rip);
    check(
        !cs_long || !cs.rights.contains(AccessRights::DEFAULT_BIG),
        "CS has both L and D set",
        cs.rights.bits().into(),
    );
    for register in SegmentRegister::ALL {
        let segment = vmcs.segment(register);
        let rights = segment.rights;
        if rights.contains(AccessRights::UNUSABLE) {
            check(
                !matches!(register, SegmentRegister::Cs | SegmentRegister::Tr),
                "CS or TR is unusable",
                rights.bits().into(),
            );
            continue;
        }
        if v86 && !matches!(register, SegmentRegister::Ldtr | SegmentRegister::Tr) {
            check(
                segment.base == u64::from(segment.selector) << 4,
                "segment base is not selector * 16 in virtual-8086 mode",
                segment.base,
            );
            check(
                segment.limit == 0xffff,
                "segment limit is not 0xffff in virtual-8086 mode",
                segment.limit.into(),
            );
            check(
                rights.bits() == 0xf3,
                "segment rights are not 0xf3 in virtual-8086 mode",
                rights.bits().into(),
            );
            continue;
        }
        let system = matches!(register, SegmentRegister::Ldtr | SegmentRegister::Tr);
        check(
            rights.contains(AccessRights::CODE_OR_DATA) != system,
            "segment has the wrong S flag",
            rights.bits().into(),
        );
        check(
            rights.contains(AccessRights::PRESENT),
            "segment is not present",
            rights.bits().into(),
        );
        check(
            system || rights.contains(AccessRights::ACCESSED),
            "segment is not marked accessed",
            rights.bits().into(),
        );
        let granular = rights.contains(AccessRights::GRANULARITY);
        check(
            if granular {
                segment.limit & 0xfff == 0xfff
            } else {
                segment.limit & 0xfff0_0000 == 0
            },
            "segment limit does not fit its granularity",
            segment.limit.into(),
        );
    }
    let tr = vmcs.segment(SegmentRegister::Tr);
    check(
        matches!(tr.rights.bits() & 15, 11) || !long && tr.rights.bits() & 15 == 3,
        "TR is not a busy TSS of the right size",
        tr.rights.bits().into(),
    );
    check(
        unrestricted || cs.selector & 3 == ss.selector & 3,
        "SS.RPL differs from CS.RPL",
        ss.selector.into(),
    );
    check(
        canonical(vmcs.gdtr().base),
        "GDTR base is not canonical",
        vmcs.gdtr().base,
    );
    check(
        canonical(vmcs.idtr().base),
        "IDTR base is not canonical",
        vmcs.idtr().base,
    );

    let activity = vmcs.read(fields::GUEST_ACTIVITY_STATE);
    let interruptibility = vmcs.read(fields::GUEST_INTERRUPTIBILITY);
    let injected = vmcs.read(fields::ENTRY_INTERRUPTION_INFORMATION);
    check(activity <= 3, "unknown activity state", activity.into());
    check(
        activity != 1 || ss.rights.dpl() == 0,
        "activity state HLT outside ring 0",
        ss.rights.bits().into(),
    );
    check(
        interruptibility & 3 != 3,
        "blocking by STI and by MOV SS at once",
        interruptibility.into(),
    );
    check(
        interruptibility & 1 == 0 || rflags.contains(RFlags::INTERRUPT_FLAG),
        "blocking by STI with RFLAGS.IF 0",
        interruptibility.into(),
    );
    check(
        injected >> 31 == 0
            || injected >> 8 & 7 != 0
            || (rflags.contains(RFlags::INTERRUPT_FLAG) && interruptibility & 3 == 0),
        "an external interrupt is injected while interrupts are blocked",
        injected.into(),
    );
    check(
        vmcs.read(fields::VMCS_LINK_POINTER) == u64::MAX,
        "the VMCS link pointer is set",
        vmcs.read(fields::VMCS_LINK_POINTER),
    );
}
