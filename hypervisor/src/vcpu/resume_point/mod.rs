//! Sees a guest go on with the code that an interrupt has interrupted.
//!
//! # Why a breakpoint
//! While a target's guest handles an interrupt its clock is not fast, and the end of the handler has to
//! be known, not guessed ([`crate::suppression::handler`]). The ways to see it:
//! - *Interrupt-window exiting* from the injection on. The first exit with the registers of the
//!   interrupted frame is the end; but most handlers of a tick defer work that runs with interrupts on,
//!   and that is the first exit then. From there on each instruction would exit.
//! - *The monitor trap flag* exits after each instruction: a handler has thousands.
//! - *A change of CR3* shows a return to user mode where the guest isolates its page tables, and only
//!   there.
//! - *An instruction breakpoint* on the interrupted instruction: one exit a handler, exact to the
//!   instruction, in whatever mode. It needs a debug register that the guest does not use.
//!
//! The breakpoint it is. A guest that uses all four debug registers, or whose code goes on elsewhere, for
//! instance in a signal's handler, is looked at as before, at times when its handlers are usually over.
//!
//! # Why the guest does not notice
//! The breakpoint is in a debug register whose enable bits in DR7 are clear, as a global one: a task
//! switch leaves it alone. While it is set, MOV DR exits: the register gets back what the guest has in
//! it, and the instruction is executed then. A #DB exit leaves DR6 alone (SDM vol. 3C, 28.1), so one that
//! has only our cause leaves no trace; one that has causes of the guest's as well is delivered with
//! these. RFLAGS.RF hides the instruction of a frame from breakpoints once: an interrupt between two
//! elements of a string instruction pushes it set (SDM vol. 3B, 18.3.1.1). It is cleared before, unless
//! the guest has breakpoints of its own.
//!
//! The same instruction may be executed in the handler, if the kernel was interrupted: that is told from
//! the end by the stack pointer, and gone past with RFLAGS.RF set. The first handler counts: one that
//! interrupts it comes and goes before.
#![forbid(unsafe_code)]

use arch::RFlags;
use arch::gpr::RSP;
use devices::time::HostTicks;

use super::Vcpu;
use super::backend::GuestCpu;
use super::backend::exit::InterceptedException;
use crate::emulate::SegmentRegister;
use crate::suppression::Event;

/// The number of debug registers that hold addresses.
const SLOTS: usize = 4;
/// The number of times that the handler may come past the instruction before it is given up: each
/// is an exit.
const MOST_PASSES: u32 = 16;

/// The breakpoint on the interrupted instruction.
#[derive(Clone, Copy, Debug)]
struct Breakpoint {
    slot: usize,
    /// The guest's value of the debug register, and its bits for that register in DR7.
    guest_value: u64,
    guest_control: u64,
    rip: u64,
    rsp: u64,
    user_mode: bool,
    passes: u32,
}

/// The point at which interrupted code will go on, if that is waited for.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct ResumePoint(Option<Breakpoint>);

impl ResumePoint {
    /// Returns whether the guest is waited for.
    pub(super) const fn is_watched(&self) -> bool {
        self.0.is_some()
    }

    /// Returns the instruction and the stack pointer of the point, if it is waited for and in user mode.
    pub(super) fn in_user_mode(&self) -> Option<(u64, u64)> {
        let breakpoint = self.0.filter(|breakpoint| breakpoint.user_mode)?;
        Some((breakpoint.rip, breakpoint.rsp))
    }
}

/// Returns the bits of DR7 that enable the breakpoint in `slot` for one task, or for all.
const fn enabled(slot: usize) -> u64 {
    0b11 << (2 * slot)
}

/// Returns the bit of DR7 that enables the breakpoint in `slot` for all tasks.
const fn enabled_globally(slot: usize) -> u64 {
    0b10 << (2 * slot)
}

/// Returns all bits of DR7 that belong to the breakpoint in `slot`; with condition and length zero
/// it is one for an instruction.
const fn control(slot: usize) -> u64 {
    enabled(slot) | 0b1111 << (16 + 4 * slot)
}

/// DR7: all enable bits.
const ANY_ENABLED: u64 = 0xff;

impl<C: GuestCpu> Vcpu<C> {
    /// Waits for the guest to come back to where it is: an interrupt is about to be delivered there.
    pub(super) fn watch_resume_point(&mut self) {
        if self.resume_point.0.is_some() {
            return;
        }
        let dr7 = self.cpu.dr7();
        let Some(slot) = (0..SLOTS).find(|&slot| dr7 & enabled(slot) == 0) else {
            return;
        };
        let rip = self.cpu.rip();
        let base = if self.cpu.in_64_bit_mode() {
            0
        } else {
            self.cpu.segment(SegmentRegister::Cs).base
        };
        self.resume_point.0 = Some(Breakpoint {
            slot,
            guest_value: self.cpu.debug_address(slot),
            guest_control: dr7 & control(slot),
            rip,
            rsp: self.cpu.gpr(RSP),
            user_mode: self.cpu.cpl() == 3,
            passes: 0,
        });
        self.cpu.set_debug_address(slot, base.wrapping_add(rip));
        self.cpu
            .set_dr7(dr7 & !control(slot) | enabled_globally(slot));
        self.cpu.set_debug_register_exits(true);
        let rflags = self.cpu.rflags();
        if rflags & RFlags::RESUME_FLAG.bits() != 0 && dr7 & ANY_ENABLED == 0 {
            self.cpu.set_rflags(rflags & !RFlags::RESUME_FLAG.bits());
        }
    }

    /// Does not wait any more: the guest gets its debug register back.
    pub(super) fn forget_resume_point(&mut self) {
        if let Some(breakpoint) = self.resume_point.0.take() {
            self.remove(breakpoint);
        }
    }

    fn remove(&mut self, breakpoint: Breakpoint) {
        let Breakpoint {
            slot,
            guest_value,
            guest_control,
            ..
        } = breakpoint;
        self.cpu.set_debug_address(slot, guest_value);
        let dr7 = self.cpu.dr7();
        self.cpu.set_dr7(dr7 & !control(slot) | guest_control);
        self.cpu.set_debug_register_exits(false);
    }

    /// Answers MOV DR: the guest gets its debug registers, and executes the instruction again.
    /// False if nothing was set that it would have met.
    pub(in crate::vcpu) fn handle_debug_register(&mut self) -> bool {
        let was_set = self.resume_point.0.is_some();
        self.forget_resume_point();
        was_set
    }

    /// Takes our own cause out of a #DB that made the guest exit at `at`. What is left is the guest's; `None` for nothing.
    pub(in crate::vcpu) fn take_resume_point(
        &mut self,
        mut exception: InterceptedException,
        at: HostTicks,
    ) -> Option<InterceptedException> {
        let Some(mut breakpoint) = self.resume_point.0 else {
            return Some(exception);
        };
        let cause = 1u64 << breakpoint.slot;
        if exception.debug_causes & cause == 0 || self.cpu.rip() != breakpoint.rip {
            return Some(exception);
        }
        let user_mode = self.cpu.cpl() == 3;
        if user_mode == breakpoint.user_mode && (user_mode || self.cpu.gpr(RSP) == breakpoint.rsp) {
            self.forget_resume_point();
            let context = self.context();
            self.report(Event::Resumed(context), at);
        } else {
            breakpoint.passes += 1;
            self.resume_point.0 = Some(breakpoint);
            let rflags = self.cpu.rflags();
            self.cpu.set_rflags(rflags | RFlags::RESUME_FLAG.bits());
            if breakpoint.passes >= MOST_PASSES {
                self.forget_resume_point();
            }
        }
        // Bits 3:0 tell of each condition that is met, enabled or not (SDM vol. 3C, table 28-4).
        let dr7 = self.cpu.dr7();
        let is_the_guests = |slot: usize| dr7 & enabled(slot) != 0 && slot != breakpoint.slot;
        let own = (0..SLOTS)
            .filter(|&slot| is_the_guests(slot))
            .fold(0, |causes, slot| causes | 1 << slot);
        exception.debug_causes &= !0b1111 | own;
        (exception.debug_causes != 0).then_some(exception)
    }
}

#[cfg(test)]
mod tests;
