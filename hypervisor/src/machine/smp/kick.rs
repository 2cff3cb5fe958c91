//! Kicks: making another CPU leave its guest or its sleep, so that it looks at what there is for it.
//!
//! A kick is an NMI. Interrupts would do by the manual, as those of the host exit whatever the guest's RFLAGS.IF
//! is (SDM vol. 3C, 26.2). But Bochs (2.7 and later) has three faults with them: they stay pending where the
//! guest was entered with the flag clear; they are let in after the exit of a guest that had it set; and where one
//! comes while a virtual interrupt waits for a guest that has the flag clear, *that* is delivered, so that the
//! guest is interrupted where it cannot be. A Linux does not survive that for long. NMIs have none of these
//! faults.
//!
//! # Why none is lost
//! A pending interrupt would end the next stay in the guest, or the next HLT. An NMI does not wait: it strikes at
//! once, and its handler has to leave something behind.
//! - *On the way into the guest*: it cuts the coming stay short ([`vmx::vmcs::cut_stay_short`]). A VCPU limits
//!   its stay first and looks at its requests afterwards, for the last time: a request is seen then, or the NMI
//!   comes after the limit was set, and cuts it.
//! - *On the way into HLT*: it notes that it was there, and [`halt`] does not halt. One that strikes between the
//!   look at the note and the HLT itself finds the CPU there and has it go on behind the HLT.
//!
//! NMIs are not queued: of several that are sent before the first has been handled, one may be all that comes. So
//! who finds that one is on its way sends none: its handler runs after what the CPU is to look at was made known.

use core::arch::global_asm;
use core::sync::atomic::{AtomicBool, Ordering};

use super::{APIC_IDS, MAX_CPUS, stop};
use crate::machine::cpu::PerCpu;
use crate::machine::cpu::trap::TrapFrame;
use crate::machine::local_apic::LocalApic;

/// The kicks of one CPU.
#[derive(Debug)]
struct Kicks {
    /// Whether an NMI is on its way.
    is_coming: AtomicBool,
    /// Whether one has come since the CPU has last begun to look for work.
    has_come: AtomicBool,
}

static KICKS: [Kicks; MAX_CPUS] = [const {
    Kicks {
        is_coming: AtomicBool::new(false),
        has_come: AtomicBool::new(false),
    }
}; MAX_CPUS];

// tarpit_halt: RDI has the address of a byte. Halts with interrupts open, unless the byte is not zero, and closes
// them again. STI takes effect after HLT has begun, so that no interrupt is lost in between (SDM vol. 2B, STI).
global_asm!(
    ".global tarpit_halt",
    ".global tarpit_halt_end",
    "tarpit_halt:",
    "cmp byte ptr [rdi], 0",
    "jne 2f",
    "sti",
    "hlt",
    "tarpit_halt_end:",
    "2:",
    "cli",
    "ret",
);

unsafe extern "C" {
    fn tarpit_halt(has_been_kicked: *const AtomicBool);
    fn tarpit_halt_end();
}

/// Makes CPU `index`, which runs, leave its guest or its sleep. Does nothing on that CPU itself, which is awake.
pub(crate) fn kick(index: u32) {
    if index == PerCpu::current().index {
        return;
    }
    let cpu = index as usize;
    if let (Some(id), Some(kicks)) = (APIC_IDS.get(cpu), KICKS.get(cpu))
        && !kicks.is_coming.swap(true, Ordering::SeqCst)
    {
        LocalApic::current().send_nmi(id.load(Ordering::Relaxed));
    }
}

/// Says that this CPU is about to look for work: it will see what it has been kicked for up to now.
pub(crate) fn begin_to_look() {
    if let Some(kicks) = KICKS.get(PerCpu::current().index as usize) {
        kicks.has_come.store(false, Ordering::SeqCst);
    }
}

/// Halts this CPU until an interrupt or a kick comes; not at all if it has been kicked since it has
/// [begun to look](begin_to_look). Interrupts are off before and after.
pub(crate) fn halt() {
    if let Some(kicks) = KICKS.get(PerCpu::current().index as usize) {
        // SAFETY: the byte lives for ever; handlers of interrupts return, and change nothing but the LAPIC.
        unsafe { tarpit_halt(&raw const kicks.has_come) };
    }
}

/// Has what an NMI of [`kick`] is for happen on this CPU. Returns whether the NMI is one.
pub(super) fn on_nmi(frame: &mut TrapFrame) -> bool {
    let Some(own) = PerCpu::try_current() else {
        return false;
    };
    let Some(kicks) = KICKS.get(own.index as usize) else {
        return false;
    };
    // Before anything is done: one that is sent later is for what this one may not have seen to.
    let is_kick = kicks.is_coming.swap(false, Ordering::SeqCst);
    kicks.has_come.store(true, Ordering::SeqCst);
    if stop::has_task(own.index) {
        // SAFETY: CPUs with a VCPU are in VMX root operation, where the handler runs.
        unsafe { vmx::vmcs::cut_stay_short() };
    }
    frame.rip = behind_halt(frame.rip);
    is_kick
}

/// Returns where a CPU that was interrupted at `rip` goes on: behind the HLT if it was about to execute that.
fn behind_halt(rip: u64) -> u64 {
    let end = tarpit_halt_end as *const () as u64;
    let about_to_halt = tarpit_halt as *const () as u64..end;
    if about_to_halt.contains(&rip) {
        end
    } else {
        rip
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_is_about_to_halt_goes_on_behind_it_and_nobody_else_does() {
        let start = tarpit_halt as *const () as u64;
        let end = tarpit_halt_end as *const () as u64;
        // CMP, JNE, STI and HLT.
        assert_eq!(end - start, 3 + 2 + 1 + 1);
        for rip in start..end {
            assert_eq!(behind_halt(rip), end);
        }
        for rip in [0, start - 1, end, end + 1] {
            assert_eq!(behind_halt(rip), rip);
        }
    }
}
