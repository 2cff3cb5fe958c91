//! Halting until a time, by the local APIC's timer in TSC-deadline mode. SDM vol. 3A, 11.5.4.1.

use core::arch::asm;

use arch::apic::{Register, lvt};
use arch::msr::IA32_TSC_DEADLINE;
use x86_64::registers::model_specific::Msr;

use crate::interrupts::{Frame, set_handler};
use crate::lapic::{self, Lapic, Mode};
use crate::tsc;

const TIMER_VECTOR: u8 = 0x40;

fn on_timer(_: &mut Frame) {
    Lapic::current().end();
}

/// Sets this CPU's local APIC and its timer up for [`until`]. Returns whether the timer has what it takes.
#[must_use]
pub fn prepare() -> bool {
    if !lapic::has_tsc_deadline() {
        return false;
    }
    set_handler(TIMER_VECTOR, on_timer);
    let lapic = Lapic::enable(Mode::XApic);
    lapic.write(
        Register::LVT_TIMER,
        lvt::TIMER_TSC_DEADLINE | u32::from(TIMER_VECTOR),
    );
    true
}

/// Halts until the TSC is at `wake_at`. Returns how much later it was woken, in ticks.
pub fn until(wake_at: u64) -> u64 {
    // SAFETY: the timer's handler keeps all registers. STI lets HLT begin before anything comes
    // in; should the time be over already, the interrupt ends HLT at once.
    unsafe {
        Msr::new(IA32_TSC_DEADLINE).write(wake_at);
        asm!("sti", "hlt", "cli");
    }
    tsc::now().saturating_sub(wake_at)
}
