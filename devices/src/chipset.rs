//! The chipset of one VM: all its devices but the local APICs, and the wires between them.
//!
//! Whoever runs the guest hands in its port and MMIO accesses together with the time, calls
//! [`Chipset::expire`] when [`Chipset::next_deadline`] has come, and is called back through
//! [`ChipsetHost`] for all that leaves the chipset. Where everything is says
//! [`crate::platform_map`].
//!
//! ```text
//!  PIT ─┬─ HPET legacy ─ IRQ 0 ─┐         ┌─ 8259A pair ── INTR (pic_output)
//!  RTC ─┘  replacement ─ IRQ 8 ─┤         │
//!  COM1 ──────────────── IRQ 4 ─┼─ IRQ n ─┤
//!  i8042 ─────────────── IRQ 1 ─┤         │
//!  PM1 ───────────────── IRQ 9 ─┘         └─ IOAPIC ─┬─── messages (interrupt_message)
//!  HPET ──────────────── pins of its choice ─────────┘
//! ```

use crate::apic_message::ApicMessage;
use crate::debug_exit::DebugExit;
use crate::fw_cfg::FwCfg;
use crate::hpet::{Hpet, Route};
use crate::i8042::I8042;
use crate::pit::Pit;
use crate::platform_map::{HPET_ROUTES, SLEEP_TYPE_S5, irq, mmio};
use crate::pm_timer::{PmTimer, Width};
use crate::pm1::Pm1;
use crate::post_port::PostPort;
use crate::rtc::{NaiveDateTime, Rtc};
use crate::speaker_port::SpeakerPort;
use crate::test_device::TestDevice;
use crate::time::{Hertz, Now, TimerTicks};
use crate::uart::Uart;
use interrupts::Interrupts;
use pci_config::PciConfig;
use reset::{ResetControl, SystemControlA};

mod interrupts;
mod pci_config;
mod ports;
mod reset;
#[cfg(test)]
mod tests;

/// What a guest can ask of its power supply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PowerRequest {
    /// Switch the VM off (ACPI S5).
    Off,
    /// Reset the VM: the keyboard controller's pulse, port 0x92 or the reset control register.
    Reset,
    /// End the VM with this code: a write to the debug-exit port.
    DebugExit(u32),
}

/// What surrounds the chipset: the local APICs, the other end of the serial line, the power
/// supply.
pub trait ChipsetHost {
    /// The IOAPIC or a device sends an interrupt to the local APICs.
    fn interrupt_message(&mut self, message: ApicMessage);

    /// The INTR output of the 8259A pair changed to `asserted`. It is wired to LINT0 of the
    /// boot processor's local APIC.
    fn pic_output(&mut self, asserted: bool);

    /// The guest sent `byte` over COM1.
    fn serial_transmit(&mut self, byte: u8);

    /// COM1 had no room for input ([`Chipset::serial_can_receive`]) and now has.
    fn serial_ready(&mut self) {}

    /// The guest asks for a change of power. The access that did it completes as usual; the
    /// guest is not to be resumed after it.
    fn power(&mut self, request: PowerRequest);
}

/// What differs from one machine to the next.
#[derive(Clone, Copy, Debug)]
pub struct ChipsetConfig {
    /// Frequency of the guest's TSC, the unit of its time.
    pub tsc: Hertz,
    /// The date and time (UTC) that the RTC shows at the start.
    pub date: NaiveDateTime,
    /// How many processors the machine has.
    pub processors: u16,
    /// Its RAM, in bytes.
    pub ram_size: u64,
}

/// The chipset of one VM. See the [module documentation](self).
#[derive(Clone, Debug)]
pub struct Chipset {
    pm_timer: PmTimer,
    /// When [`Chipset::expire`] is next needed: the earliest deadline of all devices. Kept
    /// up to date by every operation that may move one.
    next_deadline: TimerTicks,
    interrupts: Interrupts,
    hpet: Hpet,
    pit: Pit,
    speaker_port: SpeakerPort,
    rtc: Rtc,
    pm1: Pm1,
    uart: Uart,
    i8042: I8042,
    system_control_a: SystemControlA,
    reset_control: ResetControl,
    pci: PciConfig,
    post: PostPort,
    debug_exit: DebugExit,
    fw_cfg: FwCfg,
    test_device: TestDevice,
}

/// The deadline of a device that has none.
const NEVER: TimerTicks = TimerTicks(u64::MAX);

impl Chipset {
    /// The chipset as firmware leaves it: interrupts masked, timers stopped, ACPI mode on.
    #[must_use]
    pub fn new(config: ChipsetConfig, now: Now) -> Self {
        // The FADT's flag TMR_VAL_EXT is set.
        let pm_timer = PmTimer::new(Width::Bits32, config.tsc);
        let mut chipset = Self {
            pm_timer,
            next_deadline: NEVER,
            interrupts: Interrupts::new(),
            hpet: Hpet::new(config.tsc, HPET_ROUTES),
            pit: Pit::new(config.tsc),
            speaker_port: SpeakerPort::new(),
            rtc: Rtc::new(config.date, config.tsc, now),
            pm1: Pm1::new(pm_timer, SLEEP_TYPE_S5, now),
            uart: Uart::new(config.tsc),
            i8042: I8042::new(),
            system_control_a: SystemControlA::new(),
            reset_control: ResetControl::new(),
            pci: PciConfig::new(),
            post: PostPort::new(),
            debug_exit: DebugExit,
            fw_cfg: FwCfg::new(config.processors, config.ram_size),
            test_device: TestDevice::new(),
        };
        chipset.update_deadline();
        chipset
    }

    /// When [`Chipset::expire`] is next needed.
    #[inline]
    #[must_use]
    pub fn next_deadline(&self) -> Option<TimerTicks> {
        (self.next_deadline != NEVER).then_some(self.next_deadline)
    }

    /// Does what is due.
    pub fn expire(&mut self, now: Now, host: &mut impl ChipsetHost) {
        if now.timer < self.next_deadline {
            return;
        }
        let interrupts = &mut self.interrupts;
        let due = |deadline: Option<TimerTicks>| deadline.is_some_and(|at| at <= now.timer);
        if due(self.hpet.next_deadline()) {
            self.hpet.expire(now, &mut |timer, route, level| {
                interrupts.set_hpet(timer, route, level, host);
            });
        }
        if due(self.pit.next_deadline()) {
            self.pit
                .expire(now, &mut |level| interrupts.set_pit(level, host));
        }
        if due(self.rtc.next_deadline()) {
            self.rtc
                .expire(now, &mut |level| interrupts.set_rtc(level, host));
        }
        if due(self.pm1.next_deadline()) {
            self.pm1.expire(now, &mut |level| {
                interrupts.set_irq(irq::SCI, level, host);
            });
        }
        if due(self.uart.next_deadline()) {
            self.uart.expire(now, &mut |level| {
                interrupts.set_irq(irq::COM1, level, host);
            });
        }
        self.update_deadline();
    }

    fn update_deadline(&mut self) {
        self.next_deadline = [
            self.hpet.next_deadline(),
            self.pit.next_deadline(),
            self.rtc.next_deadline(),
            self.pm1.next_deadline(),
            self.uart.next_deadline(),
        ]
        .into_iter()
        .flatten()
        .min()
        .unwrap_or(NEVER);
    }

    /// Reads `size` bytes (1, 2, 4 or 8) at the guest-physical address `address`; `None` if
    /// no device of the chipset is there.
    pub fn mmio_read(&self, now: Now, address: u64, size: u8) -> Option<u64> {
        if let Some(offset) = offset_in(address, mmio::IOAPIC, mmio::IOAPIC_LENGTH) {
            return Some(self.interrupts.read_ioapic(offset, size));
        }
        if let Some(offset) = offset_in(address, mmio::HPET, mmio::HPET_LENGTH) {
            return Some(self.hpet.read(u64::from(offset), usize::from(size), now));
        }
        let offset = offset_in(address, mmio::TEST_MEMORY, mmio::TEST_MEMORY_LENGTH)?;
        Some(self.test_device.read_memory(offset, size))
    }

    /// Writes the low `size` bytes (1, 2, 4 or 8) of `value` at the guest-physical address
    /// `address`. Returns whether a device of the chipset is there.
    pub fn mmio_write(
        &mut self,
        now: Now,
        address: u64,
        size: u8,
        value: u64,
        host: &mut impl ChipsetHost,
    ) -> bool {
        if let Some(offset) = offset_in(address, mmio::IOAPIC, mmio::IOAPIC_LENGTH) {
            self.interrupts.write_ioapic(offset, size, value, host);
            return true;
        }
        if let Some(offset) = offset_in(address, mmio::HPET, mmio::HPET_LENGTH) {
            self.write_hpet(now, offset, size, value, host);
            return true;
        }
        if let Some(offset) = offset_in(address, mmio::TEST_MEMORY, mmio::TEST_MEMORY_LENGTH) {
            self.test_device.write_memory(offset, size, value);
            return true;
        }
        false
    }

    fn write_hpet(
        &mut self,
        now: Now,
        offset: u16,
        size: u8,
        value: u64,
        host: &mut impl ChipsetHost,
    ) {
        let interrupts = &mut self.interrupts;
        let mut outputs =
            |timer, route: Route, level| interrupts.set_hpet(timer, route, level, host);
        self.hpet.write(
            u64::from(offset),
            usize::from(size),
            value,
            now,
            &mut outputs,
        );
        self.interrupts
            .set_legacy_replacement(self.hpet.legacy_replacement(), host);
        self.update_deadline();
    }

    /// A local APIC tells of the end of the level-triggered interrupt `vector`.
    pub fn end_of_interrupt(&mut self, vector: u8, host: &mut impl ChipsetHost) {
        self.interrupts.end_of_interrupt(vector, host);
    }

    /// The interrupt acknowledge (INTA) cycle of a processor that accepts an ExtINT: the
    /// vector of the 8259A pair.
    #[must_use]
    pub fn acknowledge_pic(&mut self, host: &mut impl ChipsetHost) -> u8 {
        self.interrupts.acknowledge_pic(host)
    }

    /// Whether COM1 has room for a byte of input.
    #[must_use]
    pub const fn serial_can_receive(&self) -> bool {
        self.uart.can_receive()
    }

    /// Gives COM1 a byte of input. Without room ([`Chipset::serial_can_receive`]) it is lost
    /// and the guest sees an overrun.
    pub fn serial_receive(&mut self, now: Now, byte: u8, host: &mut impl ChipsetHost) {
        let interrupts = &mut self.interrupts;
        let mut line = |level| interrupts.set_irq(irq::COM1, level, host);
        self.uart.receive(now, byte, &mut line);
        self.update_deadline();
    }

    /// Gives COM1 a break.
    pub fn serial_break(&mut self, now: Now, host: &mut impl ChipsetHost) {
        let interrupts = &mut self.interrupts;
        let mut line = |level| interrupts.set_irq(irq::COM1, level, host);
        self.uart.receive_break(now, &mut line);
        self.update_deadline();
    }

    /// Presses the power button: the guest, if it listens, shuts down in order.
    pub fn press_power_button(&mut self, host: &mut impl ChipsetHost) {
        let interrupts = &mut self.interrupts;
        self.pm1
            .press_power_button(&mut |level| interrupts.set_irq(irq::SCI, level, host));
        self.update_deadline();
    }

    /// The last code written to the POST port.
    #[must_use]
    pub const fn post_code(&self) -> u8 {
        self.post.read()
    }
}

/// The offset of `address` in the region of `length` bytes at `base`, if it is in there.
const fn offset_in(address: u64, base: u64, length: u64) -> Option<u16> {
    let offset = address.wrapping_sub(base);
    if offset < length {
        Some(offset as u16)
    } else {
        None
    }
}
