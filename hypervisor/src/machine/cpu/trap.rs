//! Exceptions and interrupts of the host: to a hook where one is set. An exception without one ends in
//! a register dump and a halt; an interrupt without one is counted, and has no other effect.

use core::sync::atomic::{AtomicUsize, Ordering};

use super::dump;
use super::idt::VECTORS;
use crate::machine::stray;

/// The registers that an entry stub leaves on the stack: the general registers, the vector, and
/// what the CPU pushed (SDM vol. 3A, 6.14.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
#[allow(missing_docs, reason = "registers by their own names")]
pub(crate) struct TrapFrame {
    pub r15: u64,
    pub r14: u64,
    pub r13: u64,
    pub r12: u64,
    pub r11: u64,
    pub r10: u64,
    pub r9: u64,
    pub r8: u64,
    pub rdi: u64,
    pub rsi: u64,
    pub rbp: u64,
    pub rbx: u64,
    pub rdx: u64,
    pub rcx: u64,
    pub rax: u64,
    pub vector: u64,
    /// The exception's error code; zero for vectors without one.
    pub error_code: u64,
    pub rip: u64,
    pub cs: u64,
    pub rflags: u64,
    pub rsp: u64,
    pub ss: u64,
}

/// A function that is called when a vector strikes. Runs with interrupts off; for an NMI on a stack
/// of its own, where it must neither take locks nor log, as it may have interrupted their holder.
/// An external interrupt's hook signals its end to the LAPIC itself.
pub(crate) type Hook = fn(&mut TrapFrame);

/// Hooks as addresses; 0 is none.
static HOOKS: [AtomicUsize; VECTORS] = [const { AtomicUsize::new(0) }; VECTORS];

/// Sets what is called on all CPUs when `vector` strikes, or with `None` nothing again.
pub(crate) fn set_hook(vector: u8, hook: Option<Hook>) {
    let address = hook.map_or(0, |hook| hook as usize);
    HOOKS[usize::from(vector)].store(address, Ordering::Release);
}

/// Handles what the entry stubs have caught.
pub(super) extern "C" fn handle(frame: &mut TrapFrame) {
    let address = HOOKS
        .get(frame.vector as usize)
        .map_or(0, |hook| hook.load(Ordering::Acquire));
    if address == 0 {
        if frame.vector >= stray::FIRST_INTERRUPT {
            stray::take(frame.vector as u8);
            return;
        }
        dump::fatal_trap(frame);
    }
    // SAFETY: not zero, so it is a `Hook` stored by `set_hook`.
    let hook: Hook = unsafe { core::mem::transmute(address) };
    hook(frame);
}

/// Returns the name of an exception (SDM vol. 3A, table 6-1).
#[must_use]
pub(crate) const fn name(vector: u64) -> &'static str {
    match vector {
        0 => "#DE divide error",
        1 => "#DB debug exception",
        2 => "NMI",
        3 => "#BP breakpoint",
        4 => "#OF overflow",
        5 => "#BR bound range exceeded",
        6 => "#UD invalid opcode",
        7 => "#NM device not available",
        8 => "#DF double fault",
        10 => "#TS invalid TSS",
        11 => "#NP segment not present",
        12 => "#SS stack-segment fault",
        13 => "#GP general protection",
        14 => "#PF page fault",
        16 => "#MF x87 floating-point error",
        17 => "#AC alignment check",
        18 => "#MC machine check",
        19 => "#XM SIMD floating-point exception",
        20 => "#VE virtualization exception",
        21 => "#CP control protection exception",
        9 | 15 | 22..=31 => "reserved exception",
        _ => "external interrupt",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(vector: u64) -> TrapFrame {
        // SAFETY: a structure of integers.
        let mut frame: TrapFrame = unsafe { core::mem::zeroed() };
        frame.vector = vector;
        frame
    }

    #[test]
    fn a_hook_gets_its_vectors_frame_and_may_change_it() {
        set_hook(0xf1, Some(|frame| frame.rip += 2));
        let mut frame = frame(0xf1);
        handle(&mut frame);
        assert_eq!(frame.rip, 2);
        set_hook(0xf1, None);
    }

    #[test]
    fn the_frame_is_as_long_as_what_the_stubs_push() {
        assert_eq!(size_of::<TrapFrame>(), 22 * 8);
        assert_eq!(core::mem::offset_of!(TrapFrame, vector), 15 * 8);
    }
}
