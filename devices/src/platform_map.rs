//! Where everything is: the ports, addresses and interrupts of the machine a guest sees.
//!
//! The one place for these numbers. The chipset decodes accesses by them
//! and the firmware tables (ACPI, MP) that a guest boots with are built from them, so that
//! what is described is what is there. The layout is the PC/AT's wherever the PC/AT has one;
//! the rest lies where chipsets of Intel's ICH family put it.

/// I/O ports.
pub mod port {
    /// Master 8259A: command port; its data port is the next.
    pub const PIC_MASTER: u16 = 0x20;
    /// Slave 8259A: command port; its data port is the next.
    pub const PIC_SLAVE: u16 = 0xa0;
    /// Edge/level control register of IRQ 0 to 7.
    pub const ELCR_MASTER: u16 = 0x4d0;
    /// Edge/level control register of IRQ 8 to 15.
    pub const ELCR_SLAVE: u16 = 0x4d1;

    /// PIT: channels 0, 1 and 2, then the mode register, on four ports.
    pub const PIT: u16 = 0x40;
    /// System control port B: gate and output of PIT channel 2, speaker, refresh toggle.
    pub const SYSTEM_CONTROL_B: u16 = 0x61;

    /// i8042 data port.
    pub const I8042_DATA: u16 = 0x60;
    /// i8042 command (write) and status (read) port.
    pub const I8042_COMMAND: u16 = 0x64;
    /// System control port A: fast A20 and fast CPU initialization.
    pub const SYSTEM_CONTROL_A: u16 = 0x92;

    /// CMOS RAM and RTC: index port; the data port is the next.
    pub const RTC_INDEX: u16 = 0x70;
    /// CMOS RAM and RTC: data port.
    pub const RTC_DATA: u16 = 0x71;

    /// POST diagnostic port.
    pub const POST: u16 = 0x80;
    /// Debug exit: a write ends the VM with the value written.
    pub const DEBUG_EXIT: u16 = 0xf4;

    /// Test device: the four bytes of its latch.
    pub const TEST_LATCH: u16 = 0xe0;
    /// Test device: its latch again, byte by byte.
    pub const TEST_BYTES: u16 = 0xe8;
    /// Test device: the level of each IOAPIC pin.
    pub const TEST_IRQ_LINES: u16 = 0x2000;

    /// VGA: index of the CRT controller's registers; their data port is the next.
    pub const VGA_CRTC: u16 = 0x3d4;
    /// VGA: input status 1.
    pub const VGA_INPUT_STATUS_1: u16 = 0x3da;
    /// VGA: miscellaneous output register, as it is read.
    pub const VGA_MISCELLANEOUS: u16 = 0x3cc;

    /// Firmware configuration: selector (16 bits).
    pub const FW_CFG_SELECTOR: u16 = 0x510;
    /// Firmware configuration: data, byte by byte.
    pub const FW_CFG_DATA: u16 = 0x511;

    /// COM1: eight ports.
    pub const COM1: u16 = 0x3f8;
    /// Last port of COM1.
    pub const COM1_LAST: u16 = COM1 + 7;

    /// PCI configuration address register (32 bits).
    pub const PCI_CONFIG_ADDRESS: u16 = 0xcf8;
    /// Reset control register; the FADT's RESET_REG.
    pub const RESET_CONTROL: u16 = 0xcf9;
    /// PCI configuration data window: four ports.
    pub const PCI_CONFIG_DATA: u16 = 0xcfc;

    /// PM1a event block: status (16 bits), then enable (16 bits).
    pub const PM1A_EVENT: u16 = 0x600;
    /// Length of the PM1a event block in bytes.
    pub const PM1A_EVENT_LENGTH: u8 = 4;
    /// PM1a control block (16 bits).
    pub const PM1A_CONTROL: u16 = 0x604;
    /// Length of the PM1a control block in bytes.
    pub const PM1A_CONTROL_LENGTH: u8 = 2;
    /// ACPI power management timer (32 bits).
    pub const PM_TIMER: u16 = 0x608;
    /// Length of the PM timer block in bytes.
    pub const PM_TIMER_LENGTH: u8 = 4;
}

/// Guest-physical addresses of memory-mapped devices.
pub mod mmio {
    /// VGA: the text, a character and its attribute in turn. This is RAM.
    pub const VGA_TEXT: u64 = 0xb_8000;
    /// Bytes of it.
    pub const VGA_TEXT_LENGTH: u64 = 0x8000;
    /// The configuration space of PCI, memory-mapped: a page for each function of bus 0.
    pub const PCI_CONFIG: u64 = 0xe000_0000;
    /// Bytes of it.
    pub const PCI_CONFIG_LENGTH: u64 = 0x10_0000;
    /// The window for the BARs of PCI functions.
    pub const PCI_WINDOW: u64 = 0xe010_0000;
    /// Bytes of that window.
    pub const PCI_WINDOW_LENGTH: u64 = IOAPIC - PCI_WINDOW;
    /// IOAPIC: index register at 0, data window at 0x10, EOI register at 0x40.
    pub const IOAPIC: u64 = 0xfec0_0000;
    /// Bytes the IOAPIC decodes.
    pub const IOAPIC_LENGTH: u64 = 0x1000;
    /// HPET.
    pub const HPET: u64 = 0xfed0_0000;
    /// Bytes the HPET decodes.
    pub const HPET_LENGTH: u64 = 0x400;
    /// Test device: memory.
    pub const TEST_MEMORY: u64 = 0xff00_0000;
    /// Bytes of it.
    pub const TEST_MEMORY_LENGTH: u64 = 0x1_0000;
    /// Local APICs, as reset puts them (IA32_APIC_BASE). Not part of the chipset.
    pub const LOCAL_APIC: u64 = arch::apic::DEFAULT_ADDRESS;
    /// Bytes a local APIC decodes.
    pub const LOCAL_APIC_LENGTH: u64 = 0x1000;
}

/// ISA interrupt requests: the input of that number of the 8259A pair.
///
/// IRQ n is also IOAPIC pin n, except that IRQ 0 is pin [`gsi::PIT`]: the MADT needs an
/// interrupt source override for that one, and for [`irq::SCI`].
pub mod irq {
    /// PIT channel 0, or HPET timer 0 in legacy replacement mode.
    pub const PIT: u8 = 0;
    /// i8042 keyboard port.
    pub const KEYBOARD: u8 = 1;
    /// The slave 8259A on the master; not an interrupt source, and not on the IOAPIC.
    pub const CASCADE: u8 = 2;
    /// COM1.
    pub const COM1: u8 = 4;
    /// RTC, or HPET timer 1 in legacy replacement mode.
    pub const RTC: u8 = 8;
    /// ACPI system control interrupt: level-triggered, active high.
    pub const SCI: u8 = 9;
    /// The four interrupts of PCI: inputs of the 8259A pair only, level-triggered as firmware sets
    /// them.
    pub const PCI: [u8; 4] = [10, 11, 10, 11];
    /// i8042 auxiliary port.
    pub const MOUSE: u8 = 12;
}

/// Global system interrupts: IOAPIC pins, the only IOAPIC's interrupts starting at 0.
pub mod gsi {
    /// First interrupt of the IOAPIC.
    pub const BASE: u32 = 0;
    /// The first of the four interrupts of PCI: level-triggered, active low.
    pub const PCI: u32 = 16;
    /// IRQ 0 of the PIT, conforming to ISA (edge, active high).
    pub const PIT: u32 = 2;
    /// The SCI. Level-triggered, active high: the flags of its interrupt source override
    /// are [`SCI_FLAGS`].
    pub const SCI: u32 = 9;
    /// MPS INTI flags of the SCI's override: polarity active high (01), trigger mode level
    /// (11). ACPI 6.5, 5.2.12.5.
    pub const SCI_FLAGS: u16 = 0b11_01;
}

/// IOAPIC ID: none that a local APIC of ours has, and within the register's four bits.
pub const IOAPIC_ID: u8 = 14;
/// Pins of the IOAPIC.
pub const IOAPIC_PINS: usize = 24;

/// The IOAPIC pins that an HPET timer's interrupt can be routed to, a bit for each: 20 to
/// 23, which no other device has.
pub const HPET_ROUTES: u32 = 0x00f0_0000;

/// The value that resets the machine, written to [`port::RESET_CONTROL`]: the FADT's RESET_VALUE.
pub const RESET_VALUE: u8 = 6;

/// SLP_TYP of S5 (soft off): what the DSDT's `\_S5` says and the PM1a control register
/// understands.
pub const SLEEP_TYPE_S5: u8 = 5;

/// CMOS index of the RTC's century byte: the FADT's CENTURY.
pub const RTC_CENTURY_INDEX: u8 = 0x32;

/// The FADT's IAPC_BOOT_ARCH (ACPI 6.5, table 5.11): legacy devices on the ISA bus (bit 0),
/// no 8042 keyboard controller (bit 1 clear: no keyboard is attached, so no driver need
/// probe for one; the controller is there for its reset pulse alone), no VGA (bit 2), MSI
/// (bit 3 clear), a CMOS RTC (bit 5 clear).
pub const IAPC_BOOT_ARCH: u16 = 0b00_0101;
