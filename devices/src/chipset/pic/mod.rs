//! The pair of 8259A programmable interrupt controllers of a PC/AT.
//!
//! Source: Intel 8259A datasheet (order number 231468); for the edge/level control
//! registers, Intel 82371AB (PIIX4) datasheet, 4.2.5.
//!
//! The slave's output is wired to the master's input 2. Differences from a bare 8259A, all
//! of them those of an ICH: the cascade is hardwired, so that what ICW3 says changes nothing,
//! and the single mode of ICW1 only leaves it out; trigger modes come from the ELCRs and not
//! from ICW1; the 8080 mode (ICW4 bit 0 clear) acknowledges as 8086 mode does.
//!
//! An edge-triggered request stays latched when its line falls before it is acknowledged. The
//! chip would answer with a spurious interrupt then; keeping the request lets a source
//! pulse its line. A level-triggered request does go with its line, and acknowledging after
//! that yields the spurious IRQ 7 or 15.

use super::bus::{Access, Context, Device};
use crate::platform_map::{irq, port};

#[cfg(test)]
mod tests;

/// The pair as the CPU and the interrupt sources see it.
#[derive(Clone, Debug)]
pub struct PicPair {
    master: Chip,
    slave: Chip,
}

impl Default for PicPair {
    fn default() -> Self {
        Self::new()
    }
}

impl PicPair {
    /// Makes a pair as PC firmware leaves it: vectors 0x08 and 0x70, everything masked but the
    /// cascade, all inputs edge-triggered and low.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            // IRQ 0 (timer), 1 (keyboard) and 2 (cascade) cannot be made level-triggered.
            master: Chip::new(0x08, !(1 << irq::CASCADE), 0xf8, 1 << irq::CASCADE),
            // Nor can IRQ 8 (RTC) and 13 (FPU).
            slave: Chip::new(0x70, 0xff, 0xde, 0),
        }
    }

    /// Drives the input of ISA interrupt `irq`. There are inputs for 0, 1 and 3 to 15; a
    /// change of any other is ignored.
    pub const fn set_irq(&mut self, irq: u8, level: bool) {
        match irq {
            irq::CASCADE => {}
            0..8 => self.master.set_input(irq, level),
            8..16 => {
                self.slave.set_input(irq - 8, level);
                self.forward_slave();
            }
            _ => {}
        }
    }

    /// Tells whether a rising edge at the input of ISA interrupt `irq` would change anything: not
    /// if an edge before it waits for its acknowledgment, be the input masked or not.
    #[must_use]
    pub const fn hears_edge(&self, irq: u8) -> bool {
        let (chip, bit) = if irq < 8 {
            (&self.master, 1 << irq)
        } else {
            (&self.slave, 1 << (irq & 7))
        };
        chip.latched & bit == 0 || chip.level_triggered & bit != 0
    }

    /// Returns the INTR pin: whether the pair asks for an interrupt acknowledge cycle.
    #[must_use]
    pub const fn output(&self) -> bool {
        self.master.deliverable().is_some()
    }

    /// Performs an interrupt acknowledge (INTA) cycle and returns the vector.
    ///
    /// If the request has gone in the meantime, that is the spurious vector: the one of
    /// input 7 of the chip that was to answer, with no in-service bit set in it.
    pub const fn acknowledge(&mut self) -> u8 {
        match self.master.take() {
            Some(irq::CASCADE) => {
                let input = match self.slave.take() {
                    Some(input) => input,
                    None => Chip::SPURIOUS_INPUT,
                };
                self.forward_slave();
                self.slave.vector_base | input
            }
            Some(input) => self.master.vector_base | input,
            None => self.master.vector_base | Chip::SPURIOUS_INPUT,
        }
    }

    /// Reads one of the pair's six ports. Any other reads as all ones.
    pub const fn read(&mut self, port: u16) -> u8 {
        let value = match port {
            port::PIC_MASTER => self.master.read_command(),
            PIC_MASTER_DATA => self.master.read_data(),
            port::PIC_SLAVE => self.slave.read_command(),
            PIC_SLAVE_DATA => self.slave.read_data(),
            port::ELCR_MASTER => self.master.level_triggered,
            port::ELCR_SLAVE => self.slave.level_triggered,
            _ => 0xff,
        };
        // The read may have been a poll.
        self.forward_slave();
        value
    }

    /// Writes one of the pair's six ports. A write of any other is ignored.
    pub const fn write(&mut self, port: u16, value: u8) {
        match port {
            port::PIC_MASTER => self.master.write_command(value),
            PIC_MASTER_DATA => self.master.write_data(value),
            port::PIC_SLAVE => self.slave.write_command(value),
            PIC_SLAVE_DATA => self.slave.write_data(value),
            port::ELCR_MASTER => self.master.set_level_triggered(value),
            port::ELCR_SLAVE => self.slave.set_level_triggered(value),
            _ => {}
        }
        self.forward_slave();
    }

    /// Lets the slave's output show at the master. It is a level in either direction: when
    /// the slave's last request goes, the master's goes with it.
    const fn forward_slave(&mut self) {
        let bit = 1 << irq::CASCADE;
        if self.slave.deliverable().is_some() {
            self.master.latched |= bit;
        } else {
            self.master.latched &= !bit;
        }
    }
}

/// The ports of the chipset's pair on the bus. The pair itself is at the end of the devices' wires.
#[derive(Clone, Copy, Debug)]
pub(super) struct PicPorts;

impl PicPorts {
    /// Returns the port of an access.
    const fn port(access: Access) -> u16 {
        const FIRST: [u16; 3] = [port::PIC_MASTER, port::PIC_SLAVE, port::ELCR_MASTER];
        FIRST[access.region] + access.offset16()
    }
}

impl Device for PicPorts {
    fn read(&mut self, access: Access, cx: &mut Context<'_>) -> u64 {
        cx.interrupts.read_pic(Self::port(access), cx.host).into()
    }

    fn write(&mut self, access: Access, value: u64, cx: &mut Context<'_>) {
        cx.interrupts
            .write_pic(Self::port(access), value as u8, cx.host);
    }

    fn reset(&mut self, cx: &mut Context<'_>) {
        cx.interrupts.reset_pic(cx.host);
    }
}

const PIC_MASTER_DATA: u16 = port::PIC_MASTER + 1;
const PIC_SLAVE_DATA: u16 = port::PIC_SLAVE + 1;

/// The next initialization command word that the data port takes; none: it takes OCW1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum NextIcw {
    None,
    Icw2,
    Icw3,
    Icw4,
}

/// One 8259A.
#[derive(Clone, Debug)]
struct Chip {
    /// Levels of the inputs.
    inputs: u8,
    /// Requests latched by edges. Of a level-triggered input: stale, and ignored.
    latched: u8,
    /// In-service register.
    in_service: u8,
    /// Interrupt mask register.
    masked: u8,
    /// Edge/level control register.
    level_triggered: u8,
    /// The bits of the ELCR that can be set.
    level_capable: u8,
    /// The inputs that a slave is wired to.
    cascaded: u8,
    /// The vector of input 0.
    vector_base: u8,
    /// The input of lowest priority; the next (modulo 8) has the highest.
    lowest: u8,
    next_icw: NextIcw,
    /// ICW1 said that the chip is alone (SNGL), so that ICW3 will not come.
    single: bool,
    /// ICW1 said that ICW4 will come.
    icw4_needed: bool,
    auto_eoi: bool,
    rotate_on_auto_eoi: bool,
    special_fully_nested: bool,
    special_mask: bool,
    /// OCW3 selected the ISR, not the IRR, for reads of the command port.
    reads_in_service: bool,
    /// OCW3 asked for a poll: the next read acknowledges.
    poll: bool,
}

impl Chip {
    const SPURIOUS_INPUT: u8 = 7;

    const fn new(vector_base: u8, masked: u8, level_capable: u8, cascaded: u8) -> Self {
        Self {
            inputs: 0,
            latched: 0,
            in_service: 0,
            masked,
            level_triggered: 0,
            level_capable,
            cascaded,
            vector_base,
            lowest: 7,
            next_icw: NextIcw::None,
            single: false,
            icw4_needed: false,
            auto_eoi: false,
            rotate_on_auto_eoi: false,
            special_fully_nested: false,
            special_mask: false,
            reads_in_service: false,
            poll: false,
        }
    }

    const fn set_input(&mut self, input: u8, level: bool) {
        let bit = 1 << (input & 7);
        if level {
            self.latched |= bit & !self.inputs;
            self.inputs |= bit;
        } else {
            self.inputs &= !bit;
        }
    }

    const fn set_level_triggered(&mut self, value: u8) {
        let before = self.level_triggered;
        self.level_triggered = value & self.level_capable;
        // What rose while its level counted is no edge afterwards, nor the other way round.
        self.latched &= !(before | self.level_triggered);
    }

    /// Returns the interrupt request register.
    const fn requests(&self) -> u8 {
        (self.inputs & self.level_triggered) | (self.latched & !self.level_triggered)
    }

    /// Returns how far the highest-priority bit of `inputs` is from the highest priority: 0 to 7,
    /// or 8 if no bit is set.
    const fn rank(&self, inputs: u8) -> u8 {
        inputs.rotate_right(self.lowest as u32 + 1).trailing_zeros() as u8
    }

    /// Returns the input of that rank.
    const fn input_of(&self, rank: u8) -> u8 {
        (self.lowest + 1 + rank) & 7
    }

    /// Returns the input whose interrupt the chip asks for, if it does.
    const fn deliverable(&self) -> Option<u8> {
        let requests = self.requests() & !self.masked;
        if requests == 0 {
            return None;
        }
        let rank = self.rank(requests);
        // A masked level in service holds nothing up in special mask mode.
        let holding = if self.special_mask {
            self.in_service & !self.masked
        } else {
            self.in_service
        };
        let held_from = self.rank(holding);
        let input = self.input_of(rank);
        // In special fully nested mode the cascade may be requested while it is in service:
        // the slave has something more urgent. No other input of either chip nests in itself.
        let nested =
            self.special_fully_nested && self.cascaded & 1 << input != 0 && rank == held_from;
        if rank < held_from || nested {
            Some(input)
        } else {
            None
        }
    }

    /// Acknowledges the interrupt that the chip asks for and returns its input.
    const fn take(&mut self) -> Option<u8> {
        let Some(input) = self.deliverable() else {
            return None;
        };
        let bit = 1 << input;
        self.latched &= !bit;
        if !self.auto_eoi {
            self.in_service |= bit;
        } else if self.rotate_on_auto_eoi {
            self.lowest = input;
        }
        Some(input)
    }

    const fn read_command(&mut self) -> u8 {
        if self.poll {
            self.read_poll()
        } else if self.reads_in_service {
            self.in_service
        } else {
            self.requests()
        }
    }

    const fn read_data(&mut self) -> u8 {
        if self.poll {
            self.read_poll()
        } else {
            self.masked
        }
    }

    /// Returns the poll word: bit 7 says that there was a request, bits 2:0 whose.
    const fn read_poll(&mut self) -> u8 {
        self.poll = false;
        match self.take() {
            Some(input) => 0x80 | input,
            None => 0,
        }
    }

    const fn write_command(&mut self, value: u8) {
        if value & 0x10 != 0 {
            self.icw1(value);
        } else if value & 0x08 != 0 {
            self.ocw3(value);
        } else {
            self.ocw2(value);
        }
    }

    const fn write_data(&mut self, value: u8) {
        self.next_icw = match self.next_icw {
            NextIcw::None => {
                self.masked = value;
                NextIcw::None
            }
            NextIcw::Icw2 => {
                self.vector_base = value & 0xf8;
                if self.single {
                    self.after_icw3()
                } else {
                    NextIcw::Icw3
                }
            }
            NextIcw::Icw3 => self.after_icw3(),
            NextIcw::Icw4 => {
                self.auto_eoi = value & 0x02 != 0;
                self.special_fully_nested = value & 0x10 != 0;
                NextIcw::None
            }
        };
    }

    const fn after_icw3(&self) -> NextIcw {
        if self.icw4_needed {
            NextIcw::Icw4
        } else {
            NextIcw::None
        }
    }

    /// Starts the initialization sequence. An edge-triggered input that is high must fall
    /// and rise again to be seen.
    const fn icw1(&mut self, value: u8) {
        self.latched = 0;
        self.in_service = 0;
        self.masked = 0;
        self.lowest = 7;
        self.special_mask = false;
        self.reads_in_service = false;
        self.poll = false;
        self.rotate_on_auto_eoi = false;
        self.single = value & 0x02 != 0;
        self.icw4_needed = value & 0x01 != 0;
        if !self.icw4_needed {
            self.auto_eoi = false;
            self.special_fully_nested = false;
        }
        self.next_icw = NextIcw::Icw2;
    }

    /// Takes OCW2: end of interrupt and rotation.
    const fn ocw2(&mut self, value: u8) {
        let level = value & 7;
        match value >> 5 {
            0b000 => self.rotate_on_auto_eoi = false,
            0b100 => self.rotate_on_auto_eoi = true,
            0b001 => {
                self.end_highest();
            }
            0b101 => {
                if let Some(ended) = self.end_highest() {
                    self.lowest = ended;
                }
            }
            0b011 => self.in_service &= !(1 << level),
            0b111 => {
                self.in_service &= !(1 << level);
                self.lowest = level;
            }
            0b110 => self.lowest = level,
            _ => {}
        }
    }

    /// Ends the highest level in service, by a non-specific end of interrupt, and returns it. In
    /// special mask mode a masked level is not ended.
    const fn end_highest(&mut self) -> Option<u8> {
        let candidates = if self.special_mask {
            self.in_service & !self.masked
        } else {
            self.in_service
        };
        if candidates == 0 {
            return None;
        }
        let input = self.input_of(self.rank(candidates));
        self.in_service &= !(1 << input);
        Some(input)
    }

    /// Takes OCW3: special mask mode, poll command, choice of the register to read.
    const fn ocw3(&mut self, value: u8) {
        if value & 0x40 != 0 {
            self.special_mask = value & 0x20 != 0;
        }
        if value & 0x04 != 0 {
            self.poll = true;
        } else if value & 0x02 != 0 {
            self.reads_in_service = value & 0x01 != 0;
        }
    }
}
