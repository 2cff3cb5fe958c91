//! The host's own local APICs: reaching their registers, and interrupting other CPUs (SDM
//! vol. 3A, ch. 12).

use super::cpu::PerCpu;
use super::cpu::trap::{self, TrapFrame};
use vmx::msr;

/// The vector of spurious interrupts, which need no EOI.
const SPURIOUS_VECTOR: u8 = 0xff;

const APIC_BASE: u32 = 0x1b;
const APIC_BASE_ENABLED: u64 = 1 << 11;
const APIC_BASE_X2APIC: u64 = 1 << 10;

// Registers by their index: the MSR's distance from 0x800, which is a sixteenth of the
// offset in the page.
const EOI: u32 = 0x0b;
const SVR: u32 = 0x0f;
const SVR_ENABLED: u32 = 1 << 8;
const ICR_LOW: u32 = 0x30;
const ICR_HIGH: u32 = 0x31;
const ICR_PENDING: u32 = 1 << 12;
const ICR_ASSERT: u32 = 1 << 14;
const ICR_INIT: u32 = 0b101 << 8;
const ICR_START_UP: u32 = 0b110 << 8;

/// The local APIC of this CPU; how its registers are reached.
#[derive(Clone, Copy, Debug)]
pub enum LocalApic {
    /// At this address (xAPIC).
    Page(u64),
    /// As MSRs (x2APIC).
    Msrs,
}

fn on_spurious(_: &mut TrapFrame) {}

impl LocalApic {
    /// Switches this CPU's local APIC on, in the mode that firmware has left it in.
    ///
    /// # Safety
    /// Interrupts are off; nothing else uses this CPU's LAPIC; its page is mapped one to
    /// one.
    #[must_use]
    pub unsafe fn enable() -> Self {
        trap::set_hook(SPURIOUS_VECTOR, Some(on_spurious));
        // SAFETY: every 64-bit CPU has IA32_APIC_BASE; enabling the APIC where it is changes
        // nothing else.
        unsafe { msr::write(APIC_BASE, msr::read(APIC_BASE) | APIC_BASE_ENABLED) };
        let apic = Self::current();
        apic.write(SVR, SVR_ENABLED | u32::from(SPURIOUS_VECTOR));
        apic
    }

    /// The LAPIC of the CPU that runs this.
    #[must_use]
    pub fn current() -> Self {
        PerCpu::current().local_apic
    }

    /// As [`LocalApic::current`], found out from the CPU: once, since the mode stays.
    pub(super) fn of_this_cpu() -> Self {
        // SAFETY: every 64-bit CPU has IA32_APIC_BASE.
        let base = unsafe { msr::read(APIC_BASE) };
        if base & APIC_BASE_X2APIC != 0 {
            Self::Msrs
        } else {
            Self::Page(base & 0x000f_ffff_ffff_f000)
        }
    }

    pub(super) fn write(self, index: u32, value: u32) {
        // SAFETY: the registers used by this module and the timer exist on every LAPIC, and
        // none of them touches memory that Rust knows of. The page is mapped one to one.
        unsafe {
            match self {
                Self::Page(base) => {
                    ((base + u64::from(index) * 16) as *mut u32).write_volatile(value);
                }
                Self::Msrs => msr::write(0x800 + index, value.into()),
            }
        }
    }

    pub(super) fn read(self, index: u32) -> u32 {
        // SAFETY: as for writing.
        unsafe {
            match self {
                Self::Page(base) => ((base + u64::from(index) * 16) as *const u32).read_volatile(),
                Self::Msrs => msr::read(0x800 + index) as u32,
            }
        }
    }

    /// Signals the end of the interrupt in service.
    pub fn end_interrupt(self) {
        self.write(EOI, 0);
    }

    /// Interrupts the CPU with the APIC ID `target` with `vector`.
    pub fn send_interrupt(self, target: u32, vector: u8) {
        self.send(target, vector.into());
    }

    /// Resets the CPU with the APIC ID `target`, which then waits for a start-up.
    pub fn send_init(self, target: u32) {
        self.send(target, ICR_INIT | ICR_ASSERT);
    }

    /// Starts the CPU with the APIC ID `target` in real mode at `page` * 4096.
    pub fn send_start_up(self, target: u32, page: u8) {
        self.send(target, ICR_START_UP | ICR_ASSERT | u32::from(page));
    }

    fn send(self, target: u32, command: u32) {
        match self {
            Self::Msrs => {
                // The write is not ordered after earlier stores, which the target is to see
                // (SDM vol. 3A, 12.12.3).
                // SAFETY: fences have no other effect; the ICR's addressee is by the caller.
                unsafe {
                    core::arch::x86_64::_mm_mfence();
                    core::arch::x86_64::_mm_lfence();
                    msr::write(
                        0x800 + ICR_LOW,
                        u64::from(target) << 32 | u64::from(command),
                    );
                }
            }
            Self::Page(_) => {
                // Hardware accepts within microseconds; one that does not is beyond help.
                const PATIENCE: u32 = 1_000_000;
                for _ in 0..PATIENCE {
                    if self.read(ICR_LOW) & ICR_PENDING == 0 {
                        break;
                    }
                    core::hint::spin_loop();
                }
                self.write(ICR_HIGH, target << 24);
                self.write(ICR_LOW, command);
            }
        }
    }
}
