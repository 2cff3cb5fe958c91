//! The i8042 keyboard controller, with nothing plugged into it.
//!
//! Sources: Intel UPI-C42 keyboard controller specification; IBM PS/2 Hardware Interface
//! Technical Reference (1991), "Keyboard and auxiliary device controller".
//!
//! It is there for what a PC without a keyboard needs of it: resetting the machine (command
//! 0xFE). The FADT says that there is none ([`crate::platform_map::IAPC_BOOT_ARCH`]), so
//! that an operating system with ACPI does not look. One that does finds a controller in
//! working order, an answer to every command at once, no auxiliary port, and a keyboard
//! port where whatever is sent times out.
//!
//! The A20 gate is open for good: bit 1 of the output port reads as set.

use bitflags::bitflags;

use super::PowerRequest;
use super::bus::{Access, Context, Device};
use crate::line::Line;

bitflags! {
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    struct Status: u8 {
        const OUTPUT_BUFFER_FULL = 1 << 0;
        const SYSTEM = 1 << 2;
        const LAST_WRITE_WAS_COMMAND = 1 << 3;
        const KEYLOCK_OPEN = 1 << 4;
        const TIMEOUT = 1 << 6;
    }
}

/// Bits of the command byte (byte 0 of the controller's RAM).
const KEYBOARD_INTERRUPT: u8 = 1 << 0;
const SYSTEM_FLAG: u8 = 1 << 2;
const KEYBOARD_DISABLED: u8 = 1 << 4;
const AUXILIARY_DISABLED: u8 = 1 << 5;
const TRANSLATE: u8 = 1 << 6;

/// Output port: A20 open (bit 1), reset not asserted (bit 0).
const OUTPUT_PORT: u8 = 0b11;
/// Bit 0 of the output port: 0 asserts reset.
const NOT_RESET: u8 = 1 << 0;
/// Input port: keyboard not locked.
const INPUT_PORT: u8 = 0x80;

/// The controller's byte to a device that did not answer: "resend", with the timeout bit.
const RESEND: u8 = 0xfe;

/// The purpose of a byte written to the data port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Data {
    ToKeyboard,
    ToRam(u8),
    ToOutputPort,
    /// A byte that comes back as if a device had sent it.
    Echoed,
    ToAuxiliary,
}

/// A pulse on the wire that resets the machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use = "the machine has to be reset"]
pub struct ResetPulse;

/// The controller: a data port (0x60) and a command/status port (0x64).
#[derive(Clone, Debug)]
pub struct I8042 {
    /// The controller's RAM; byte 0 is the command byte.
    ram: [u8; 32],
    output: u8,
    status: Status,
    next_data: Data,
}

impl Default for I8042 {
    fn default() -> Self {
        Self::new()
    }
}

impl I8042 {
    /// Makes a controller as firmware leaves it: self-tested, both ports disabled, no interrupts.
    #[must_use]
    pub const fn new() -> Self {
        let mut ram = [0; 32];
        ram[0] = SYSTEM_FLAG | KEYBOARD_DISABLED | AUXILIARY_DISABLED | TRANSLATE;
        Self {
            ram,
            output: 0,
            status: Status::SYSTEM.union(Status::KEYLOCK_OPEN),
            next_data: Data::ToKeyboard,
        }
    }

    /// Reads the data port: takes what is in the output buffer.
    pub fn read_data(&mut self, line: &mut impl Line) -> u8 {
        self.status
            .remove(Status::OUTPUT_BUFFER_FULL | Status::TIMEOUT);
        self.drive(line);
        self.output
    }

    /// Reads the status port. The controller is never busy: its input buffer is always empty.
    #[must_use]
    pub const fn read_status(&self) -> u8 {
        self.status.bits()
    }

    /// Writes the data port.
    pub fn write_data(&mut self, value: u8, line: &mut impl Line) -> Option<ResetPulse> {
        self.status.remove(Status::LAST_WRITE_WAS_COMMAND);
        let purpose = core::mem::replace(&mut self.next_data, Data::ToKeyboard);
        let mut reset = None;
        match purpose {
            Data::ToKeyboard | Data::ToAuxiliary => self.time_out(),
            Data::ToRam(address) => {
                if let Some(byte) = self.ram.get_mut(usize::from(address)) {
                    *byte = value;
                }
                self.status
                    .set(Status::SYSTEM, self.ram[0] & SYSTEM_FLAG != 0);
            }
            Data::ToOutputPort if value & NOT_RESET == 0 => reset = Some(ResetPulse),
            Data::ToOutputPort => {}
            Data::Echoed => self.answer(value),
        }
        self.drive(line);
        reset
    }

    /// Writes the command port.
    pub fn write_command(&mut self, command: u8, line: &mut impl Line) -> Option<ResetPulse> {
        self.status.insert(Status::LAST_WRITE_WAS_COMMAND);
        self.next_data = Data::ToKeyboard;
        let mut reset = None;
        match command {
            0x20..=0x3f => self.answer(self.ram[usize::from(command & 0x1f)]),
            0x60..=0x7f => self.next_data = Data::ToRam(command & 0x1f),
            0xa7 => self.ram[0] |= AUXILIARY_DISABLED,
            0xa8 => self.ram[0] &= !AUXILIARY_DISABLED,
            // Test of the auxiliary interface: its clock line is stuck low.
            0xa9 => self.answer(0x01),
            // Self test: passed.
            0xaa => {
                self.ram[0] |= SYSTEM_FLAG;
                self.status.insert(Status::SYSTEM);
                self.answer(0x55);
            }
            // Test of the keyboard interface: no fault.
            0xab => self.answer(0x00),
            0xad => self.ram[0] |= KEYBOARD_DISABLED,
            0xae => self.ram[0] &= !KEYBOARD_DISABLED,
            0xc0 => self.answer(INPUT_PORT),
            0xd0 => self.answer(OUTPUT_PORT),
            0xd1 => self.next_data = Data::ToOutputPort,
            // Without an auxiliary port, 0xd3 is 0xd2: its echo lacks the auxiliary mark, by
            // which drivers tell.
            0xd2 | 0xd3 => self.next_data = Data::Echoed,
            0xd4 => self.next_data = Data::ToAuxiliary,
            // Pulse low the output port bits that are clear in the command.
            0xf0..=0xff if command & NOT_RESET == 0 => reset = Some(ResetPulse),
            _ => {}
        }
        self.drive(line);
        reset
    }

    fn answer(&mut self, value: u8) {
        self.output = value;
        self.status.insert(Status::OUTPUT_BUFFER_FULL);
        self.status.remove(Status::TIMEOUT);
    }

    fn time_out(&mut self) {
        self.answer(RESEND);
        self.status.insert(Status::TIMEOUT);
    }

    fn drive(&self, line: &mut impl Line) {
        line.set_level(
            self.ram[0] & KEYBOARD_INTERRUPT != 0
                && self.status.contains(Status::OUTPUT_BUFFER_FULL),
        );
    }
}

impl I8042 {
    /// The region of the data port; the other is the command and status port.
    const DATA: usize = 0;
    /// The output: the keyboard port's interrupt.
    const INTERRUPT: usize = 0;
}

impl Device for I8042 {
    fn read(&mut self, access: Access, cx: &mut Context<'_>) -> u64 {
        let value = match access.region {
            Self::DATA => self.read_data(&mut cx.output(Self::INTERRUPT)),
            _ => self.read_status(),
        };
        value.into()
    }

    fn write(&mut self, access: Access, value: u64, cx: &mut Context<'_>) {
        let value = value as u8;
        let pulse = match access.region {
            Self::DATA => self.write_data(value, &mut cx.output(Self::INTERRUPT)),
            _ => self.write_command(value, &mut cx.output(Self::INTERRUPT)),
        };
        ResetPulse::reset_machine(pulse, cx);
    }

    fn reset(&mut self, cx: &mut Context<'_>) {
        *self = Self::new();
        cx.set_output(Self::INTERRUPT, false);
    }
}

impl ResetPulse {
    /// Resets the machine if there was a pulse.
    pub(super) fn reset_machine(pulse: Option<Self>, cx: &mut Context<'_>) {
        if let Some(Self) = pulse {
            cx.host.power(PowerRequest::Reset);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Driver {
        controller: I8042,
        irq: bool,
    }

    impl Driver {
        fn new() -> Self {
            Self {
                controller: I8042::new(),
                irq: false,
            }
        }

        fn command(&mut self, command: u8) -> Option<ResetPulse> {
            self.controller
                .write_command(command, &mut |level| self.irq = level)
        }

        fn write(&mut self, data: u8) -> Option<ResetPulse> {
            self.controller
                .write_data(data, &mut |level| self.irq = level)
        }

        /// What the output buffer holds, if it holds something.
        fn read(&mut self) -> Option<u8> {
            let full = self.controller.read_status() & 1 != 0;
            let data = self.controller.read_data(&mut |level| self.irq = level);
            full.then_some(data)
        }
    }

    #[test]
    fn linux_finds_a_working_controller() {
        let mut driver = Driver::new();
        assert_eq!(driver.read(), None, "nothing to flush");
        assert_eq!(driver.command(0xaa), None);
        assert_eq!(driver.read(), Some(0x55));
        assert_eq!(driver.command(0x20), None);
        let byte = driver.read().unwrap();
        assert_eq!(driver.command(0x60), None);
        assert_eq!(driver.write(byte ^ 0x10), None);
        assert_eq!(driver.command(0x20), None);
        assert_eq!(driver.read(), Some(byte ^ 0x10));
    }

    #[test]
    fn linux_finds_no_auxiliary_port() {
        // i8042_check_aux(): an echo marked as auxiliary, or a test that reports no error,
        // means that there is a port.
        const AUXILIARY: u8 = 0x20;
        let mut driver = Driver::new();
        assert_eq!(driver.command(0xd3), None);
        assert_eq!(driver.write(0x5a), None);
        assert_eq!(driver.controller.read_status() & AUXILIARY, 0);
        assert_eq!(driver.read(), Some(0x5a));
        assert_eq!(driver.command(0xa9), None);
        assert!(!matches!(driver.read(), None | Some(0x00 | 0xfa | 0xff)));
    }

    #[test]
    fn what_is_sent_to_a_device_times_out_at_once() {
        for auxiliary in [false, true] {
            let mut driver = Driver::new();
            assert_eq!(driver.command(0x60), None);
            assert_eq!(driver.write(0x01), None);
            if auxiliary {
                assert_eq!(driver.command(0xd4), None);
            }
            assert_eq!(driver.write(0xf2), None);
            assert!(driver.irq);
            assert_eq!(driver.controller.read_status() & 0x41, 0x41);
            assert_eq!(driver.read(), Some(0xfe));
            assert!(!driver.irq);
            assert_eq!(driver.controller.read_status() & 0x41, 0);
        }
    }

    #[test]
    fn no_interrupt_unless_enabled() {
        let mut driver = Driver::new();
        assert_eq!(driver.write(0xf2), None);
        assert!(!driver.irq);
    }

    #[test]
    fn pulsing_bit_0_of_the_output_port_resets() {
        for command in 0xf0..=0xff {
            let reset = Driver::new().command(command).is_some();
            assert_eq!(reset, command & 1 == 0, "command {command:#x}");
        }
    }

    #[test]
    fn writing_the_output_port_resets_but_cannot_shut_a20() {
        let mut driver = Driver::new();
        assert_eq!(driver.command(0xd1), None);
        assert_eq!(driver.write(0xdd), None, "A20 off, no reset");
        assert_eq!(driver.command(0xd0), None);
        assert_eq!(driver.read(), Some(0x03));
        assert_eq!(driver.command(0xd1), None);
        assert_eq!(driver.write(0xfe), Some(ResetPulse));
    }

    #[test]
    fn a_driver_that_waits_for_the_input_buffer_never_waits() {
        let mut driver = Driver::new();
        for command in 0..=0xff {
            let _ = driver.command(command);
            assert_eq!(driver.controller.read_status() & 2, 0);
            let _ = driver.write(command);
            assert_eq!(driver.controller.read_status() & 2, 0);
        }
    }
}
