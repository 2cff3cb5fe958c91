//! A VCPU's state for those who look at it from outside: the engineer who has to find out why its guest
//! died, and detectors.
#![forbid(unsafe_code)]

use core::fmt;

use vmx::addr::GuestVirtAddr;
use vmx::segment::SegmentRegister;

use super::backend::{GuestCpu, Interruptibility};
use super::{Activity, Vcpu};
use crate::guest_memory::GuestMemory;
use crate::guest_paging::{Access, AccessKind, Paging};
use crate::vm::registers::{GENERAL_NAMES, RegisterCopy, SegmentCopy};

impl<C: GuestCpu> Vcpu<C> {
    /// Leaves a copy of the registers where others can look at it.
    #[cold]
    pub(super) fn copy_registers(&self) {
        if let Some(place) = self.vm.registers.get(self.index as usize) {
            *place.lock() = Some(copy_registers(&self.cpu, self.activity));
        }
    }
}

fn copy_registers(cpu: &impl GuestCpu, activity: Activity) -> RegisterCopy {
    let mut general = [0; 16];
    for (index, register) in general.iter_mut().enumerate() {
        *register = cpu.gpr(index);
    }
    RegisterCopy {
        general,
        rip: cpu.rip(),
        rflags: cpu.rflags(),
        cpl: cpu.cpl(),
        cr0: cpu.cr0(),
        cr3: cpu.cr3(),
        cr4: cpu.cr4(),
        efer: cpu.efer(),
        activity: activity.name(),
        nmis_blocked: cpu
            .interruptibility()
            .contains(Interruptibility::BLOCKED_BY_NMI),
        segments: SegmentRegister::ALL.map(|register| {
            let segment = cpu.segment(register);
            SegmentCopy {
                name: name(register),
                selector: segment.selector,
                base: segment.base,
                limit: segment.limit,
                rights: segment.rights.bits(),
            }
        }),
    }
}

/// Writes the registers of a VCPU, the code at RIP, and what only its processor's vendor knows.
///
/// # Errors
/// If `out` fails.
pub(crate) fn write_dump(
    cpu: &impl GuestCpu,
    activity: Activity,
    memory: &impl GuestMemory,
    out: &mut impl fmt::Write,
) -> fmt::Result {
    let copy = copy_registers(cpu, activity);
    for (index, (name, value)) in GENERAL_NAMES.iter().zip(copy.general).enumerate() {
        let end = if index % 4 == 3 { "\n" } else { "  " };
        write!(out, "{name:<3} {value:016x}{end}")?;
    }
    writeln!(
        out,
        "rip {:016x}  rflags {:08x}  cpl {}  {}{}",
        copy.rip,
        copy.rflags,
        copy.cpl,
        copy.activity,
        if copy.nmis_blocked {
            ", NMIs blocked"
        } else {
            ""
        }
    )?;
    writeln!(
        out,
        "cr0 {:08x}  cr3 {:016x}  cr4 {:08x}  efer {:04x}",
        copy.cr0, copy.cr3, copy.cr4, copy.efer
    )?;
    for segment in copy.segments {
        writeln!(
            out,
            "{:<4} {:04x}  base {:016x}  limit {:08x}  rights {:05x}",
            segment.name, segment.selector, segment.base, segment.limit, segment.rights
        )?;
    }
    write_code(cpu, memory, out)?;
    cpu.write_state(out)
}

const fn name(register: SegmentRegister) -> &'static str {
    match register {
        SegmentRegister::Es => "es",
        SegmentRegister::Cs => "cs",
        SegmentRegister::Ss => "ss",
        SegmentRegister::Ds => "ds",
        SegmentRegister::Fs => "fs",
        SegmentRegister::Gs => "gs",
        SegmentRegister::Ldtr => "ldtr",
        SegmentRegister::Tr => "tr",
    }
}

fn write_code(
    cpu: &impl GuestCpu,
    memory: &impl GuestMemory,
    out: &mut impl fmt::Write,
) -> fmt::Result {
    let start = cpu
        .segment_base(crate::emulate::SegmentRegister::Cs)
        .wrapping_add(cpu.rip());
    write!(out, "code at {start:#x}:")?;
    let paging = Paging::new(cpu);
    // As a supervisor's read: the dump is to show what is there, not what is allowed.
    let access = Access {
        kind: AccessKind::Read,
        user: false,
        smap_override: true,
    };
    for offset in 0..16 {
        let address = GuestVirtAddr(start.wrapping_add(offset));
        let mut byte = [0];
        let fetched = paging
            .translate(memory, address, access)
            .ok()
            .and_then(|physical| memory.read(physical, &mut byte).ok());
        match fetched {
            Some(()) => write!(out, " {:02x}", byte[0])?,
            None => write!(out, " ??")?,
        }
    }
    write!(out, "\nits page-table entries:")?;
    let mut written = Ok(());
    paging.visit_entries(memory, GuestVirtAddr(start), |level, entry| {
        written = written.and_then(|()| write!(out, "  level {level} {entry:016x}"));
    });
    written?;
    writeln!(out)
}
