//! The interrupt wires of the machine, from the devices to the 8259A pair and the IOAPIC.

use super::ChipsetHost;
use super::hpet::{self, Route};
use super::ioapic::IoApic;
use super::pic::PicPair;
use crate::platform_map::{IOAPIC_ID, gsi, irq, port};

/// The input that an output of a device is soldered to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wire {
    /// IRQ 0, unless the HPET has it.
    Pit,
    /// IRQ 8, unless the HPET has it.
    Rtc,
    /// An ISA interrupt that no other device is wired to.
    Irq(u8),
    /// One of the four interrupts of PCI: inputs of the IOAPIC, and, two and two, of the 8259A
    /// pair.
    Pci(u8),
}

/// The interrupt controllers and what is soldered to their inputs.
#[derive(Clone, Debug)]
pub(super) struct Interrupts {
    pic: PicPair,
    /// INTR as the host last heard of it.
    pic_output: bool,
    ioapic: IoApic,
    /// The HPET has taken the place of the PIT and the RTC.
    legacy_replacement: bool,
    irq0: Timers,
    irq8: Timers,
    /// The pin that each timer of the HPET holds asserted, beside IRQ 0 and 8. Timers may
    /// share one: it is as high as any of them drives it.
    hpet_pins: [Option<u8>; hpet::TIMERS],
    /// The levels of the interrupts of PCI.
    pci: [bool; irq::PCI.len()],
}

/// The outputs of the two timers that contend for one wire.
#[derive(Clone, Copy, Debug, Default)]
struct Timers {
    /// The PIT or the RTC.
    classic: bool,
    hpet: bool,
}

impl Timers {
    /// Returns what is on the wire. The replacement shuts out the classic timer only: the HPET
    /// itself drives the wire in no other mode.
    const fn level(self, legacy_replacement: bool) -> bool {
        self.hpet || (self.classic && !legacy_replacement)
    }
}

impl Interrupts {
    /// Returns the controllers as firmware leaves them: all masked, the IOAPIC with its ID.
    pub(super) fn new() -> Self {
        /// The interrupts of PCI are asserted by pulling their wires low.
        const WIRED_LOW: u32 = 0xf << gsi::PCI;
        let mut ioapic = IoApic::new(WIRED_LOW);
        set_ioapic_id(&mut ioapic);
        Self {
            pic: pic_as_firmware_leaves_it(),
            pic_output: false,
            ioapic,
            legacy_replacement: false,
            irq0: Timers::default(),
            irq8: Timers::default(),
            hpet_pins: [None; hpet::TIMERS],
            pci: [false; irq::PCI.len()],
        }
    }

    /// Drives the device's end of a wire.
    pub(super) fn drive(&mut self, wire: Wire, level: bool, host: &mut dyn ChipsetHost) {
        match wire {
            Wire::Pit => {
                self.irq0.classic = level;
                self.drive_irq0(host);
            }
            Wire::Rtc => {
                self.irq8.classic = level;
                self.drive_irq8(host);
            }
            Wire::Irq(irq) => self.set_irq(irq, level, host),
            Wire::Pci(n) => self.set_pci(n.into(), level, host),
        }
    }

    /// Tells whether a rising edge on `wire` would change anything now.
    pub(super) fn hear_edge(&self, wire: Wire) -> bool {
        match wire {
            Wire::Pit => !self.legacy_replacement && self.hear_irq(irq::PIT),
            Wire::Rtc => !self.legacy_replacement && self.hear_irq(irq::RTC),
            Wire::Irq(irq) => self.hear_irq(irq),
            // Not an edge.
            Wire::Pci(_) => true,
        }
    }

    /// Tells whether a rising edge of a timer of the HPET would change anything now.
    pub(super) fn hear_hpet_edge(&self, route: Route) -> bool {
        match route {
            Route::LegacyIrq0 => self.hear_irq(irq::PIT),
            Route::LegacyIrq8 => self.hear_irq(irq::RTC),
            Route::Gsi(pin) => self.ioapic.hears_edge(pin.into()),
        }
    }

    fn hear_irq(&self, irq: u8) -> bool {
        self.pic.hears_edge(irq) || self.ioapic.hears_edge(pin_of(irq))
    }

    /// Drives the output of timer `timer` of the HPET.
    pub(super) fn set_hpet(
        &mut self,
        timer: usize,
        route: Route,
        level: bool,
        host: &mut dyn ChipsetHost,
    ) {
        match route {
            Route::LegacyIrq0 => {
                self.irq0.hpet = level;
                self.drive_irq0(host);
            }
            Route::LegacyIrq8 => {
                self.irq8.hpet = level;
                self.drive_irq8(host);
            }
            Route::Gsi(pin) => {
                if let Some(held) = self.hpet_pins.get_mut(timer) {
                    *held = level.then_some(pin);
                }
                let level = self.hpet_pins.contains(&Some(pin));
                self.set_pin(usize::from(pin), level, host);
            }
        }
    }

    /// Gives IRQ 0 and IRQ 8 to the HPET, or back to the PIT and the RTC.
    pub(super) fn set_legacy_replacement(&mut self, on: bool, host: &mut dyn ChipsetHost) {
        if on != self.legacy_replacement {
            self.legacy_replacement = on;
            self.drive_irq0(host);
            self.drive_irq8(host);
        }
    }

    fn drive_irq0(&mut self, host: &mut dyn ChipsetHost) {
        let level = self.irq0.level(self.legacy_replacement);
        self.set_irq(irq::PIT, level, host);
    }

    fn drive_irq8(&mut self, host: &mut dyn ChipsetHost) {
        let level = self.irq8.level(self.legacy_replacement);
        self.set_irq(irq::RTC, level, host);
    }

    /// Drives the wire of an ISA interrupt.
    pub(super) fn set_irq(&mut self, irq: u8, level: bool, host: &mut dyn ChipsetHost) {
        self.pic.set_irq(irq, level);
        self.forward_pic(host);
        self.set_pin(pin_of(irq), level, host);
    }

    /// Drives the wire of global system interrupt `number` (an ISA interrupt if below 16) for
    /// the test device, whatever else is on that wire: the last to drive it wins.
    pub(super) fn set_test_line(&mut self, number: u8, level: bool, host: &mut dyn ChipsetHost) {
        const ISA_INTERRUPTS: u8 = 16;
        if number < ISA_INTERRUPTS && number != irq::CASCADE {
            self.set_irq(number, level, host);
        } else {
            self.set_pin(number.into(), level, host);
        }
    }

    /// Drives an interrupt of PCI.
    fn set_pci(&mut self, n: usize, level: bool, host: &mut dyn ChipsetHost) {
        let (Some(wire), Some(&irq)) = (self.pci.get_mut(n), irq::PCI.get(n)) else {
            return;
        };
        *wire = level;
        let shared = self.pci.iter().zip(irq::PCI);
        let any = shared
            .into_iter()
            .any(|(&level, other)| level && other == irq);
        self.pic.set_irq(irq, any);
        self.forward_pic(host);
        self.set_pin(gsi::PCI as usize + n, level, host);
    }

    /// Drives a wire that ends at the IOAPIC alone.
    fn set_pin(&mut self, pin: usize, level: bool, host: &mut dyn ChipsetHost) {
        self.ioapic
            .set_pin(pin, level, &mut |message| host.interrupt_message(message));
    }

    pub(super) fn read_pic(&mut self, port: u16, host: &mut dyn ChipsetHost) -> u8 {
        let value = self.pic.read(port);
        self.forward_pic(host);
        value
    }

    pub(super) fn write_pic(&mut self, port: u16, value: u8, host: &mut dyn ChipsetHost) {
        self.pic.write(port, value);
        self.forward_pic(host);
    }

    pub(super) fn acknowledge_pic(&mut self, host: &mut dyn ChipsetHost) -> u8 {
        let vector = self.pic.acknowledge();
        self.forward_pic(host);
        vector
    }

    pub(super) fn read_ioapic(&self, offset: u16, size: u8) -> u64 {
        self.ioapic.mmio_read(offset, size)
    }

    pub(super) fn write_ioapic(
        &mut self,
        offset: u16,
        size: u8,
        value: u64,
        host: &mut dyn ChipsetHost,
    ) {
        self.ioapic.mmio_write(offset, size, value, &mut |message| {
            host.interrupt_message(message);
        });
    }

    pub(super) fn end_of_interrupt(&mut self, vector: u8, host: &mut dyn ChipsetHost) {
        self.ioapic
            .end_of_interrupt(vector, &mut |message| host.interrupt_message(message));
    }

    /// Puts the 8259A pair into the state after power-up. Devices drive their wires anew.
    pub(super) fn reset_pic(&mut self, host: &mut dyn ChipsetHost) {
        self.pic = pic_as_firmware_leaves_it();
        self.forward_pic(host);
    }

    /// Puts the IOAPIC into the state that firmware leaves it in.
    pub(super) fn reset_ioapic(&mut self) {
        self.ioapic.reset();
        set_ioapic_id(&mut self.ioapic);
    }

    fn forward_pic(&mut self, host: &mut dyn ChipsetHost) {
        let output = self.pic.output();
        if output != self.pic_output {
            self.pic_output = output;
            host.pic_output(output);
        }
    }
}

/// Returns the 8259A pair after power-up, with the inputs of PCI's interrupts level-triggered.
fn pic_as_firmware_leaves_it() -> PicPair {
    let mut pic = PicPair::new();
    let level = irq::PCI.iter().fold(0u16, |set, irq| set | 1 << irq);
    pic.write(port::ELCR_MASTER, level as u8);
    pic.write(port::ELCR_SLAVE, (level >> 8) as u8);
    pic
}

/// Returns the IOAPIC pin that an ISA interrupt is also wired to.
const fn pin_of(irq: u8) -> usize {
    if irq == irq::PIT {
        gsi::PIT as usize
    } else {
        irq as usize
    }
}

/// Gives the IOAPIC its ID, as firmware does.
fn set_ioapic_id(ioapic: &mut IoApic) {
    ioapic.mmio_write(0x00, 4, 0, &mut |_| {});
    ioapic.mmio_write(0x10, 4, u64::from(IOAPIC_ID) << 24, &mut |_| {});
}
