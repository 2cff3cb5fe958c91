//! Why VM entry failed: the guest-state checks of SDM vol. 3C, 27.3.1, done again in
//! software to name what the processor only hints at.
#![forbid(unsafe_code)]

use core::fmt;

use arch::msr::DebugCtl;
use arch::{Cr0Flags, Cr4Flags, EferFlags, RFlags};

use crate::controls::{Entry, Secondary};
use crate::event::EventKind;
use crate::fields;
use crate::segment::{AccessRights, DescriptorTable, Segment, SegmentRegister};
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

/// The state of a guest, as far as VM entry checks it.
#[derive(Clone, Copy, Debug)]
#[allow(missing_docs, reason = "the registers' names say it")]
pub struct GuestState {
    /// Whether the entry is to IA-32e mode.
    pub long: bool,
    /// Whether the guest may be without paging.
    pub unrestricted: bool,
    pub cr0: u64,
    pub cr3: u64,
    pub cr4: u64,
    pub efer: u64,
    pub dr7: u64,
    pub rip: u64,
    pub rflags: u64,
    /// The segment registers, in the order of [`SegmentRegister::ALL`].
    pub segments: [Segment; 8],
    pub gdtr: DescriptorTable,
    pub idtr: DescriptorTable,
    /// The activity state: 0 for active.
    pub activity: u32,
    pub interruptibility: u32,
    /// Whether the trap of a single step is pending.
    pub pending_single_step: bool,
    /// IA32_DEBUGCTL.BTF: single steps are of branches.
    pub steps_branches: bool,
    /// The interruption information of the event that is injected.
    pub injected: u32,
}

impl GuestState {
    /// Reads it from the current VMCS.
    #[must_use]
    pub fn of(vmcs: &Vmcs) -> Self {
        /// SDM vol. 3C, table 25-4.
        const PENDING_SINGLE_STEP: u64 = 1 << 14;
        let entry = Entry::from_bits_retain(vmcs.read(fields::ENTRY_CONTROLS));
        let secondary = Secondary::from_bits_retain(vmcs.read(fields::SECONDARY_CONTROLS));
        let debugctl = DebugCtl::from_bits_retain(vmcs.read(fields::GUEST_DEBUGCTL));
        Self {
            long: entry.contains(Entry::IA32E_MODE_GUEST),
            unrestricted: secondary.contains(Secondary::UNRESTRICTED_GUEST),
            cr0: vmcs.read(fields::GUEST_CR0),
            cr3: vmcs.read(fields::GUEST_CR3),
            cr4: vmcs.read(fields::GUEST_CR4),
            efer: vmcs.read(fields::GUEST_EFER),
            dr7: vmcs.read(fields::GUEST_DR7),
            rip: vmcs.read(fields::GUEST_RIP),
            rflags: vmcs.read(fields::GUEST_RFLAGS),
            segments: SegmentRegister::ALL.map(|register| vmcs.segment(register)),
            gdtr: vmcs.gdtr(),
            idtr: vmcs.idtr(),
            activity: vmcs.read(fields::GUEST_ACTIVITY_STATE),
            interruptibility: vmcs.read(fields::GUEST_INTERRUPTIBILITY),
            pending_single_step: vmcs.read(fields::GUEST_PENDING_DEBUG) & PENDING_SINGLE_STEP != 0,
            steps_branches: debugctl.contains(DebugCtl::BTF),
            injected: vmcs.read(fields::ENTRY_INTERRUPTION_INFORMATION),
        }
    }

    /// Reports to `report` each check that fails.
    pub fn check(&self, mut report: impl FnMut(FailedCheck)) {
        let mut check = |ok: bool, what, value| {
            if !ok {
                report(FailedCheck { what, value });
            }
        };
        self.check_registers(&mut check);
        for register in SegmentRegister::ALL {
            self.check_segment(register, &mut check);
        }
        self.check_events(&mut check);
    }

    fn check_registers(&self, check: &mut impl FnMut(bool, &'static str, u64)) {
        let Self {
            long,
            unrestricted,
            cr3,
            rip,
            dr7,
            ..
        } = *self;
        let cr0 = Cr0Flags::from_bits_retain(self.cr0);
        let cr4 = Cr4Flags::from_bits_retain(self.cr4);
        let efer = EferFlags::from_bits_retain(self.efer);
        let rflags = RFlags::from_bits_retain(self.rflags);
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
        check(
            !v86 || cr0.contains(Cr0Flags::PROTECTED_MODE_ENABLE),
            "RFLAGS.VM in real mode",
            rflags.bits(),
        );

        let cs = self.segment(SegmentRegister::Cs);
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
        check(dr7 >> 32 == 0, "DR7 has bits above 32", dr7);
        check(
            canonical(self.gdtr.base),
            "GDTR base is not canonical",
            self.gdtr.base,
        );
        check(
            canonical(self.idtr.base),
            "IDTR base is not canonical",
            self.idtr.base,
        );
    }

    const fn segment(&self, register: SegmentRegister) -> Segment {
        self.segments[register as usize]
    }

    fn check_segment(
        &self,
        register: SegmentRegister,
        check: &mut impl FnMut(bool, &'static str, u64),
    ) {
        let segment = self.segment(register);
        let rights = segment.rights;
        let system = matches!(register, SegmentRegister::Ldtr | SegmentRegister::Tr);
        if rights.contains(AccessRights::UNUSABLE) {
            check(
                !matches!(register, SegmentRegister::Cs | SegmentRegister::Tr),
                "CS or TR is unusable",
                rights.bits().into(),
            );
            return;
        }
        let v86 = self.rflags & RFlags::VIRTUAL_8086_MODE.bits() != 0;
        if v86 && !system {
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
            return;
        }
        let kind = rights.bits() & 0xf;
        check(
            match register {
                // Data, accessed and writable, is for real mode.
                SegmentRegister::Cs => matches!(kind, 3 | 9 | 11 | 13 | 15),
                SegmentRegister::Ss => matches!(kind, 3 | 7),
                SegmentRegister::Tr => kind == 11 || kind == 3 && !self.long,
                SegmentRegister::Ldtr => kind == 2,
                // Accessed, and readable if code.
                _ => kind & 1 != 0 && (kind & 8 == 0 || kind & 2 != 0),
            },
            "segment has a wrong type, or is not marked accessed",
            rights.bits().into(),
        );
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
        let granular = rights.contains(AccessRights::GRANULARITY);
        check(
            (segment.limit & 0xfff == 0xfff || !granular)
                && (segment.limit & 0xfff0_0000 == 0 || granular),
            "segment limit does not fit its granularity",
            segment.limit.into(),
        );
        check(
            match register {
                SegmentRegister::Fs | SegmentRegister::Gs => canonical(segment.base),
                SegmentRegister::Ldtr | SegmentRegister::Tr => canonical(segment.base),
                _ => segment.base >> 32 == 0,
            },
            "segment base is out of range",
            segment.base,
        );
    }

    fn check_events(&self, check: &mut impl FnMut(bool, &'static str, u64)) {
        let Self {
            activity,
            interruptibility,
            injected,
            ..
        } = *self;
        let rflags = RFlags::from_bits_retain(self.rflags);
        let [cs, ss] = [SegmentRegister::Cs, SegmentRegister::Ss].map(|it| self.segment(it));
        check(
            self.unrestricted || cs.selector & 3 == ss.selector & 3,
            "SS.RPL differs from CS.RPL",
            ss.selector.into(),
        );
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
        let steps = rflags.contains(RFlags::TRAP_FLAG) && !self.steps_branches;
        check(
            interruptibility & 3 == 0 && activity != 1 || steps == self.pending_single_step,
            "a pending single step does not go with RFLAGS.TF, in the shadow of STI or MOV SS or in HLT",
            rflags.bits(),
        );
        if injected >> 31 == 0 {
            return;
        }
        let kind = injected >> 8 & 7;
        let vector = injected & 0xff;
        check(
            kind != EventKind::ExternalInterrupt as u32
                || (rflags.contains(RFlags::INTERRUPT_FLAG) && interruptibility & 3 == 0),
            "an external interrupt is injected while interrupts are blocked",
            injected.into(),
        );
        check(
            kind != EventKind::Nmi as u32 || vector == 2 && interruptibility & 2 == 0,
            "an NMI is injected after MOV SS, or with another vector",
            injected.into(),
        );
        let is_exception = kind == EventKind::HardwareException as u32;
        check(
            !is_exception || vector < 32,
            "an exception has the vector of an interrupt",
            injected.into(),
        );
        let protected = self.cr0 & Cr0Flags::PROTECTED_MODE_ENABLE.bits() != 0;
        let has_code = is_exception && protected && matches!(vector, 8 | 10..=14 | 17 | 21);
        check(
            has_code == (injected >> 11 & 1 != 0),
            "an error code is injected that the event has not, or the other way round",
            injected.into(),
        );
    }
}

/// Runs the checks on the current VMCS and reports each that fails to `report`.
pub fn check_guest_state(vmcs: &Vmcs, mut report: impl FnMut(FailedCheck)) {
    GuestState::of(vmcs).check(&mut report);
    let link = vmcs.read(fields::VMCS_LINK_POINTER);
    if link != u64::MAX {
        report(FailedCheck {
            what: "the VMCS link pointer is set",
            value: link,
        });
    }
}
