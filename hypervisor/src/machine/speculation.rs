//! Makes a CPU do what keeps tenants apart: writes to IA32_SPEC_CTRL, IA32_PRED_CMD, IA32_FLUSH_CMD
//! and IA32_TSX_CTRL, and VERW. What of it is needed is decided in [`crate::speculation`].

use core::arch::asm;

use arch::msr::{
    FlushCmd, IA32_FLUSH_CMD, IA32_PRED_CMD, IA32_SPEC_CTRL, IA32_TSX_CTRL, PredCmd, SpecCtrl,
    TsxCtrl,
};
use vmx::entry::{ReturnStack, WorldSwitch};
use vmx::msr;

use super::cpu::gdt;

/// The measures against speculation that a CPU takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Remedies {
    /// The bits of IA32_SPEC_CTRL that are set once and for all, and under guests that do not write it; empty if none
    /// of them helps.
    pub spec_ctrl: SpecCtrl,
    /// Whether they are written at each exit of a guest besides, as IBRS must be that is not enhanced; then guests run
    /// with what they have written.
    pub spec_ctrl_at_exits: bool,
    /// The treatment of the return stack buffer at each exit.
    pub return_stack: ReturnStack,
    /// Whether guests execute in small pages only, whatever size their RAM's are.
    pub no_execution_in_large_pages: bool,
    /// Whether TSX is switched off, by IA32_TSX_CTRL.
    pub disable_tsx: bool,
    /// Whether indirect branches forget what they have learnt when the CPU turns to another VM: IBPB,
    /// by IA32_PRED_CMD.
    pub branch_barrier: bool,
    /// Whether VERW overwrites the CPU's buffers when it turns to another VM.
    pub clear_buffers: bool,
    /// Whether the first-level data cache is flushed when the CPU turns to another VM, by
    /// IA32_FLUSH_CMD.
    pub flush_l1d: bool,
}

impl Remedies {
    /// No measures: for a processor that needs none, or has no means.
    #[cfg(test)]
    pub(crate) const NONE: Self = Self {
        spec_ctrl: SpecCtrl::empty(),
        spec_ctrl_at_exits: false,
        return_stack: ReturnStack::Keep,
        no_execution_in_large_pages: false,
        disable_tsx: false,
        branch_barrier: false,
        clear_buffers: false,
        flush_l1d: false,
    };

    /// Returns what is done at each entry of a guest and at each exit.
    pub(crate) const fn world_switch(self) -> WorldSwitch {
        WorldSwitch {
            spec_ctrl: self.spec_ctrl.bits(),
            writes_spec_ctrl: self.spec_ctrl_at_exits,
            return_stack: self.return_stack,
            ..WorldSwitch::PLAIN
        }
    }

    /// Sets what stays as it is on this CPU.
    ///
    /// # Safety
    /// This CPU has the MSRs that are asked for, and their bits.
    pub(crate) unsafe fn prepare_cpu(self) {
        // SAFETY: by the contract. Neither MSR has any effect on what code does, but for transactions,
        // which tarpit does not use and shows to no guest.
        unsafe {
            if self.disable_tsx {
                let off = TsxCtrl::RTM_DISABLE | TsxCtrl::TSX_CPUID_CLEAR;
                msr::write(IA32_TSX_CTRL, off.bits());
            }
            if !self.spec_ctrl.is_empty() {
                msr::write(IA32_SPEC_CTRL, self.spec_ctrl.bits());
            }
        }
    }

    /// Lets this CPU, which turns to another VM, forget what the one before has taught its branch
    /// predictors.
    ///
    /// # Safety
    /// As for [`Remedies::prepare_cpu`].
    pub(crate) unsafe fn forget_branches(self) {
        if self.branch_barrier {
            // SAFETY: by the contract; the command has no effect on what code does.
            unsafe { msr::write(IA32_PRED_CMD, PredCmd::IBPB.bits()) };
        }
    }

    /// Removes what this CPU's caches and buffers hold of other VMs' data, before a guest is entered.
    ///
    /// # Safety
    /// As for [`Remedies::prepare_cpu`].
    pub(crate) unsafe fn forget_data(self) {
        if self.flush_l1d {
            // SAFETY: by the contract; a flush writes modified lines back.
            unsafe { msr::write(IA32_FLUSH_CMD, FlushCmd::L1D_FLUSH.bits()) };
        }
        if self.clear_buffers {
            // The form with a memory operand is the one that overwrites the buffers.
            let selector = gdt::DATA.0;
            // SAFETY: VERW changes ZF alone.
            unsafe { asm!("verw word ptr [{}]", in(reg) &raw const selector, options(nostack)) };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_are_cleared_without_any_effect_on_memory() {
        let remedies = Remedies {
            clear_buffers: true,
            ..Remedies::NONE
        };
        // SAFETY: VERW exists on every CPU, in every ring.
        unsafe { remedies.forget_data() };
        // SAFETY: nothing is asked for.
        unsafe { Remedies::NONE.forget_data() };
    }
}
