//! The host's own local APICs: reaching their registers, and interrupting other CPUs (SDM
//! vol. 3A, ch. 11).

use super::cpu::PerCpu;
use super::cpu::trap::{self, TrapFrame};
use arch::ApicBaseFlags;
use arch::apic::{Register, delivery_mode, icr, svr};
use arch::msr::IA32_APIC_BASE;
use vmx::msr;

/// The vector of spurious interrupts, which need no EOI.
const SPURIOUS_VECTOR: u8 = 0xff;

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
        unsafe {
            let base = msr::read(IA32_APIC_BASE) | ApicBaseFlags::LAPIC_ENABLE.bits();
            msr::write(IA32_APIC_BASE, base);
        }
        let apic = Self::current();
        apic.write(Register::SVR, svr::ENABLED | u32::from(SPURIOUS_VECTOR));
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
        let base = unsafe { msr::read(IA32_APIC_BASE) };
        if base & ApicBaseFlags::X2APIC_ENABLE.bits() != 0 {
            Self::Msrs
        } else {
            Self::Page(base & arch::paging::ADDRESS)
        }
    }

    pub(super) fn write(self, register: Register, value: u32) {
        // SAFETY: the registers used by this module and the timer exist on every LAPIC, and
        // none of them touches memory that Rust knows of. The page is mapped one to one.
        unsafe {
            match self {
                Self::Page(base) => {
                    let address = base + u64::from(register.offset());
                    (address as *mut u32).write_volatile(value);
                }
                Self::Msrs => msr::write(register.msr(), value.into()),
            }
        }
    }

    pub(super) fn read(self, register: Register) -> u32 {
        // SAFETY: as for writing.
        unsafe {
            match self {
                Self::Page(base) => {
                    let address = base + u64::from(register.offset());
                    (address as *const u32).read_volatile()
                }
                Self::Msrs => msr::read(register.msr()) as u32,
            }
        }
    }

    /// Signals the end of the interrupt in service.
    pub fn end_interrupt(self) {
        self.write(Register::EOI, 0);
    }

    /// Interrupts the CPU with the APIC ID `target` with `vector`.
    pub fn send_interrupt(self, target: u32, vector: u8) {
        self.send(target, vector.into());
    }

    /// Resets the CPU with the APIC ID `target`, which then waits for a start-up.
    pub fn send_init(self, target: u32) {
        self.send(target, delivery_mode::INIT | icr::ASSERT);
    }

    /// Starts the CPU with the APIC ID `target` in real mode at `page` * 4096.
    pub fn send_start_up(self, target: u32, page: u8) {
        self.send(
            target,
            delivery_mode::START_UP | icr::ASSERT | u32::from(page),
        );
    }

    fn send(self, target: u32, command: u32) {
        match self {
            Self::Msrs => {
                // The write is not ordered after earlier stores, which the target is to see
                // (SDM vol. 3A, 11.12.3).
                // SAFETY: fences have no other effect; the ICR's addressee is by the caller.
                unsafe {
                    core::arch::x86_64::_mm_mfence();
                    core::arch::x86_64::_mm_lfence();
                    msr::write(
                        Register::ICR_LOW.msr(),
                        u64::from(target) << 32 | u64::from(command),
                    );
                }
            }
            Self::Page(_) => {
                // Hardware accepts within microseconds; one that does not is beyond help.
                const PATIENCE: u32 = 1_000_000;
                for _ in 0..PATIENCE {
                    if self.read(Register::ICR_LOW) & icr::DELIVERY_STATUS == 0 {
                        break;
                    }
                    core::hint::spin_loop();
                }
                self.write(Register::ICR_HIGH, target << 24);
                self.write(Register::ICR_LOW, command);
            }
        }
    }
}
