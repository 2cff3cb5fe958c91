//! Switching the machine off, resetting it, and halting.

use spin::Once;
use x86_64::instructions::{self, port::Port};

use super::acpi::{ResetRegister, ResetSpace, SoftOff};
use super::serial;

/// The ways to switch this machine off and to reset it, from its ACPI tables.
#[derive(Clone, Copy, Debug, Default)]
struct Ways {
    soft_off: Option<SoftOff>,
    reset: Option<ResetRegister>,
}

static WAYS: Once<Ways> = Once::new();

/// Makes the ACPI ways known to [`off`] and [`reset`]. The first call counts.
pub(crate) fn init(soft_off: Option<SoftOff>, reset: Option<ResetRegister>) {
    WAYS.call_once(|| Ways { soft_off, reset });
}

/// PM1 control register: the machine is in ACPI mode (ACPI 6.5, 4.8.3.2.1).
const SCI_EN: u16 = 1 << 0;
/// PM1 control register: enter the sleeping state in SLP_TYP.
const SLP_EN: u16 = 1 << 13;
const SLP_TYP_SHIFT: u32 = 10;
const SLP_TYP_MASK: u16 = 7 << SLP_TYP_SHIFT;
/// Port reads to wait for firmware to hand over the ACPI registers, about a microsecond
/// each on hardware.
const ACPI_ENABLE_READS: u32 = 300_000;

/// Switches the machine off by ACPI's S5 state, after all console output is out. Halts if
/// the machine has no such way, or ignores it.
pub(crate) fn off() -> ! {
    serial::flush();
    if let Some(soft_off) = WAYS.get().and_then(|ways| ways.soft_off) {
        // SAFETY: the ports and values are the firmware's own; nothing runs after this.
        unsafe { enter_s5(soft_off) };
        serial::emergency_print(format_args!("tarpit: warning: power-off was ignored\n"));
    } else {
        serial::emergency_print(format_args!(
            "tarpit: warning: no ACPI way to power off; halted\n"
        ));
    }
    halt()
}

/// Asks for S5.
///
/// # Safety
/// `soft_off` must come from the machine's ACPI tables.
unsafe fn enter_s5(soft_off: SoftOff) {
    let mut pm1a = Port::<u16>::new(soft_off.pm1a_control);
    // SAFETY: reads and writes of the ports named by the FADT, as ACPI prescribes.
    unsafe {
        if let Some(enable) = soft_off.acpi_enable
            && pm1a.read() & SCI_EN == 0
        {
            Port::<u8>::new(enable.port).write(enable.value);
            for _ in 0..ACPI_ENABLE_READS {
                if pm1a.read() & SCI_EN != 0 {
                    break;
                }
            }
        }
        let sleep = |old: u16, kind: u8| {
            old & !SLP_TYP_MASK | (u16::from(kind & 7) << SLP_TYP_SHIFT) | SLP_EN
        };
        let value = sleep(pm1a.read(), soft_off.sleep_type_a);
        pm1a.write(value);
        if let Some(port) = soft_off.pm1b_control {
            let mut pm1b = Port::<u16>::new(port);
            let value = sleep(pm1b.read(), soft_off.sleep_type_b);
            pm1b.write(value);
        }
        // The transition takes a moment; any port read is a delay.
        for _ in 0..ACPI_ENABLE_READS {
            let _ = pm1a.read();
        }
    }
}

/// Port reads between the attempts at a reset, to let each take effect.
const RESET_READS: u32 = 100_000;

/// Resets the machine: by the ACPI reset register, else the chipset's port 0xcf9, else the
/// keyboard controller, else a triple fault.
pub(crate) fn reset() -> ! {
    serial::flush();
    // SAFETY: the machine is given up; each write does nothing but reset it.
    unsafe {
        if let Some(register) = WAYS.get().and_then(|ways| ways.reset) {
            match register.space {
                ResetSpace::Port(port) => Port::<u8>::new(port).write(register.value),
                ResetSpace::Memory(address) => {
                    (address as *mut u8).write_volatile(register.value);
                }
            }
            pause();
        }
        let mut chipset = Port::<u8>::new(0xcf9);
        chipset.write(0x02); // full reset, armed
        chipset.write(0x06); // and fired
        pause();
        Port::<u8>::new(0x64).write(0xfe); // pulse the reset line
        pause();
        let no_idt = x86_64::structures::DescriptorTablePointer {
            limit: 0,
            base: x86_64::VirtAddr::zero(),
        };
        instructions::tables::lidt(&no_idt);
        core::arch::asm!("ud2", options(noreturn));
    }
}

fn pause() {
    for _ in 0..RESET_READS {
        delay();
    }
}

/// Lets about a microsecond pass: what it takes to read a port of the old kind.
pub(crate) fn delay() {
    // SAFETY: reading the POST port has no effect but to take time.
    let _ = unsafe { Port::<u8>::new(0x80).read() };
}

/// Halts this CPU for ever, interrupts off, after all console output is out.
pub(crate) fn halt() -> ! {
    serial::emergency_flush();
    loop {
        instructions::interrupts::disable();
        instructions::hlt();
    }
}
