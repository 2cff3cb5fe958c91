//! The chipset's I/O ports.

use super::{Chipset, ChipsetHost, PowerRequest};
use crate::i8042::ResetPulse;
use crate::platform_map::{IOAPIC_PINS, irq, port};
use crate::time::Now;

const PIC_MASTER_DATA: u16 = port::PIC_MASTER + 1;
const PIC_SLAVE_DATA: u16 = port::PIC_SLAVE + 1;
const PIT_LAST: u16 = port::PIT + 3;
const PM1A_EVENT_LAST: u16 = port::PM1A_EVENT + port::PM1A_EVENT_LENGTH as u16 - 1;
const PM1A_CONTROL_LAST: u16 = port::PM1A_CONTROL + port::PM1A_CONTROL_LENGTH as u16 - 1;
const PM_TIMER_LAST: u16 = port::PM_TIMER + port::PM_TIMER_LENGTH as u16 - 1;
const TEST_LATCH_LAST: u16 = port::TEST_LATCH + 3;
const TEST_BYTES_LAST: u16 = port::TEST_BYTES + 3;
const TEST_IRQ_LINES_LAST: u16 = port::TEST_IRQ_LINES + IOAPIC_PINS as u16 - 1;
const PCI_CONFIG_DATA_LAST: u16 = port::PCI_CONFIG_DATA + 3;

/// The bits of a value of `size` bytes.
const fn mask(size: u8) -> u32 {
    match size {
        1 => 0xff,
        2 => 0xffff,
        _ => 0xffff_ffff,
    }
}

fn request_reset(pulse: Option<ResetPulse>, host: &mut impl ChipsetHost) {
    if let Some(ResetPulse) = pulse {
        host.power(PowerRequest::Reset);
    }
}

impl Chipset {
    /// Reads `size` bytes (1, 2 or 4; anything else counts as 4) from port `port` on.
    ///
    /// Where there is nothing, all bits read as ones. The bits beyond `size` bytes are zero.
    pub fn port_read(&mut self, now: Now, port: u16, size: u8, host: &mut impl ChipsetHost) -> u32 {
        // What Linux reads most, ahead of the search for the rest.
        if port == port::PM_TIMER {
            return self.pm_timer.read(now) & mask(size);
        }
        if size == 1 {
            return u32::from(self.read_byte(now, port, host));
        }
        let value = match port {
            port::PM1A_EVENT..=PM1A_EVENT_LAST => self.pm1.read_event(port - port::PM1A_EVENT, now),
            port::PM1A_CONTROL..=PM1A_CONTROL_LAST => {
                self.pm1.read_control(port - port::PM1A_CONTROL)
            }
            port::PM_TIMER..=PM_TIMER_LAST => self.pm_timer.read_at(port - port::PM_TIMER, now),
            port::PCI_CONFIG_ADDRESS if size == 4 => self.pci.read_address(),
            port::PCI_CONFIG_DATA..=PCI_CONFIG_DATA_LAST => {
                self.pci.read_data(port - port::PCI_CONFIG_DATA)
            }
            port::DEBUG_EXIT => self.debug_exit.read(),
            // Byte-wide devices: the bus makes byte accesses of a wider one.
            _ => {
                let mut value = 0;
                for byte in 0..u16::from(size.min(4)) {
                    let port = port.wrapping_add(byte);
                    value |= u32::from(self.read_byte(now, port, host)) << (8 * byte);
                }
                value
            }
        };
        value & mask(size)
    }

    /// Writes the low `size` bytes (1, 2 or 4; anything else counts as 4) of `value` to port
    /// `port` on. Where there is nothing, nothing happens.
    pub fn port_write(
        &mut self,
        now: Now,
        port: u16,
        size: u8,
        value: u32,
        host: &mut impl ChipsetHost,
    ) {
        if size == 1 {
            return self.write_byte(now, port, value as u8, host);
        }
        match port {
            port::PM1A_EVENT..=PM1A_EVENT_LAST => {
                self.write_pm1_event(now, port, size, value, host);
            }
            port::PM1A_CONTROL..=PM1A_CONTROL_LAST => {
                self.write_pm1_control(port, size, value, host);
            }
            port::PCI_CONFIG_ADDRESS if size == 4 => self.pci.write_address(value),
            port::DEBUG_EXIT => self.write_debug_exit(value & mask(size), host),
            port::FW_CFG_SELECTOR if size == 2 => self.fw_cfg.select(value as u16),
            // One wire a port, whatever the width.
            port::TEST_IRQ_LINES..=TEST_IRQ_LINES_LAST => {
                self.write_test_line(port, value & mask(size) != 0, host);
            }
            _ => {
                for byte in 0..u16::from(size.min(4)) {
                    let port = port.wrapping_add(byte);
                    self.write_byte(now, port, (value >> (8 * byte)) as u8, host);
                }
            }
        }
    }

    fn read_byte(&mut self, now: Now, port: u16, host: &mut impl ChipsetHost) -> u8 {
        let interrupts = &mut self.interrupts;
        match port {
            port::COM1..=port::COM1_LAST => {
                let had_room = self.uart.can_receive();
                let mut line = |level| interrupts.set_irq(irq::COM1, level, host);
                let value = self.uart.read(now, port - port::COM1, &mut line);
                self.after_uart(had_room, host);
                value
            }
            port::PIC_MASTER
            | PIC_MASTER_DATA
            | port::PIC_SLAVE
            | PIC_SLAVE_DATA
            | port::ELCR_MASTER
            | port::ELCR_SLAVE => interrupts.read_pic(port, host),
            port::PIT..=PIT_LAST => self.pit.read(port - port::PIT, now),
            port::SYSTEM_CONTROL_B => self.speaker_port.read(&self.pit, now),
            port::RTC_INDEX | port::RTC_DATA => {
                let mut line = |level| interrupts.set_rtc(level, host);
                let value = self.rtc.read(port - port::RTC_INDEX, now, &mut line);
                self.update_deadline();
                value
            }
            port::I8042_DATA => self
                .i8042
                .read_data(&mut |level| interrupts.set_irq(irq::KEYBOARD, level, host)),
            port::I8042_COMMAND => self.i8042.read_status(),
            port::SYSTEM_CONTROL_A => self.system_control_a.read(),
            port::POST => self.post.read(),
            port::RESET_CONTROL => self.reset_control.read(),
            port::DEBUG_EXIT => self.debug_exit.read() as u8,
            port::PCI_CONFIG_DATA..=PCI_CONFIG_DATA_LAST => {
                self.pci.read_data(port - port::PCI_CONFIG_DATA) as u8
            }
            port::PM1A_EVENT..=PM1A_EVENT_LAST => {
                self.pm1.read_event(port - port::PM1A_EVENT, now) as u8
            }
            port::PM1A_CONTROL..=PM1A_CONTROL_LAST => {
                self.pm1.read_control(port - port::PM1A_CONTROL) as u8
            }
            port::PM_TIMER..=PM_TIMER_LAST => {
                self.pm_timer.read_at(port - port::PM_TIMER, now) as u8
            }
            port::FW_CFG_DATA => self.fw_cfg.read(),
            port::TEST_LATCH..=TEST_LATCH_LAST | port::TEST_BYTES..=TEST_BYTES_LAST => {
                self.test_device.read_latch(port)
            }
            _ => 0xff,
        }
    }

    fn write_byte(&mut self, now: Now, port: u16, value: u8, host: &mut impl ChipsetHost) {
        let interrupts = &mut self.interrupts;
        match port {
            port::COM1..=port::COM1_LAST => {
                let had_room = self.uart.can_receive();
                let mut line = |level| interrupts.set_irq(irq::COM1, level, host);
                let sent = self.uart.write(now, port - port::COM1, value, &mut line);
                if let Some(byte) = sent {
                    host.serial_transmit(byte);
                }
                self.after_uart(had_room, host);
            }
            port::PIC_MASTER
            | PIC_MASTER_DATA
            | port::PIC_SLAVE
            | PIC_SLAVE_DATA
            | port::ELCR_MASTER
            | port::ELCR_SLAVE => interrupts.write_pic(port, value, host),
            port::PIT..=PIT_LAST => {
                let mut line = |level| interrupts.set_pit(level, host);
                self.pit.write(port - port::PIT, value, now, &mut line);
                self.update_deadline();
            }
            port::SYSTEM_CONTROL_B => self.speaker_port.write(value, &mut self.pit, now),
            port::RTC_INDEX | port::RTC_DATA => {
                let mut line = |level| interrupts.set_rtc(level, host);
                self.rtc
                    .write(port - port::RTC_INDEX, value, now, &mut line);
                self.update_deadline();
            }
            port::I8042_DATA | port::I8042_COMMAND => {
                let mut line = |level| interrupts.set_irq(irq::KEYBOARD, level, host);
                let reset = if port == port::I8042_DATA {
                    self.i8042.write_data(value, &mut line)
                } else {
                    self.i8042.write_command(value, &mut line)
                };
                request_reset(reset, host);
            }
            port::SYSTEM_CONTROL_A => {
                request_reset(self.system_control_a.write(value), host);
            }
            port::RESET_CONTROL => {
                request_reset(self.reset_control.write(value), host);
            }
            port::POST => self.post.write(value),
            port::TEST_LATCH..=TEST_LATCH_LAST | port::TEST_BYTES..=TEST_BYTES_LAST => {
                self.test_device.write_latch(port, value);
            }
            port::TEST_IRQ_LINES..=TEST_IRQ_LINES_LAST => {
                self.write_test_line(port, value != 0, host);
            }
            port::DEBUG_EXIT => self.write_debug_exit(u32::from(value), host),
            port::PM1A_EVENT..=PM1A_EVENT_LAST => {
                self.write_pm1_event(now, port, 1, u32::from(value), host);
            }
            port::PM1A_CONTROL..=PM1A_CONTROL_LAST => {
                self.write_pm1_control(port, 1, u32::from(value), host);
            }
            _ => {}
        }
    }

    fn write_pm1_event(
        &mut self,
        now: Now,
        port: u16,
        size: u8,
        value: u32,
        host: &mut impl ChipsetHost,
    ) {
        let interrupts = &mut self.interrupts;
        let mut sci = |level| interrupts.set_irq(irq::SCI, level, host);
        self.pm1
            .write_event(port - port::PM1A_EVENT, size, value, now, &mut sci);
        self.update_deadline();
    }

    fn write_pm1_control(&mut self, port: u16, size: u8, value: u32, host: &mut impl ChipsetHost) {
        let interrupts = &mut self.interrupts;
        let mut sci = |level| interrupts.set_irq(irq::SCI, level, host);
        let off = self
            .pm1
            .write_control(port - port::PM1A_CONTROL, size, value, &mut sci);
        self.update_deadline();
        if off.is_some() {
            host.power(PowerRequest::Off);
        }
    }

    fn write_test_line(&mut self, port: u16, level: bool, host: &mut impl ChipsetHost) {
        let pin = port.saturating_sub(port::TEST_IRQ_LINES) as u8;
        self.interrupts.set_test_line(pin, level, host);
    }

    fn write_debug_exit(&self, value: u32, host: &mut impl ChipsetHost) {
        host.power(PowerRequest::DebugExit(self.debug_exit.write(value)));
    }

    /// What follows an access to the UART: its deadline may have moved, and it may have got
    /// room for input.
    fn after_uart(&mut self, had_room: bool, host: &mut impl ChipsetHost) {
        self.update_deadline();
        if !had_room && self.uart.can_receive() {
            host.serial_ready();
        }
    }
}
