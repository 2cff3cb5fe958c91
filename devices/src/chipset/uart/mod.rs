//! The 16550A UART of a PC's serial port.
//!
//! Source: National Semiconductor PC16550D datasheet (June 1995).
//!
//! Transmission takes no time: a byte written to the transmitter leaves at once, and the
//! transmitter is always empty. A guest that polls for room in the transmitter then never
//! waits, and each "transmitter empty" interrupt is still the answer to something the guest
//! did (a byte written, the interrupt enabled), so that there can be no storm of them.
//!
//! Received bytes come when the host has them, whatever the divisor. The divisor matters for
//! one thing: the character timeout, by which the receive FIFO announces bytes that are too
//! few for its trigger level.
//!
//! The modem at the other end is there and ready: DCD, DSR and CTS are asserted, RI is not.
//! OUT2 does not gate the interrupt output, though the wiring of a PC has it so: as with QEMU and
//! other hypervisors, for whose serial port there are kernels that never set it (xv6).

use bitflags::bitflags;

use super::bus::{Access, Context, Device, Outputs};
use crate::line::Line;
use crate::time::{Hertz, Now, TimerTicks};
use fifo::{Fifo, Received};

mod fifo;
#[cfg(test)]
mod tests;

/// The device's output: the interrupt.
pub(super) const INTERRUPT: usize = 0;

/// Half bit times a second at a divisor of one (1.8432 MHz / 16 bits a second). Half,
/// because there are frames with one and a half stop bits.
const HALF_BIT_RATE: Hertz = Hertz::new(2 * 1_843_200 / 16);

bitflags! {
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    struct InterruptEnable: u8 {
        const RECEIVED_DATA = 1 << 0;
        const TRANSMITTER_EMPTY = 1 << 1;
        const LINE_STATUS = 1 << 2;
        const MODEM_STATUS = 1 << 3;
    }

    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    struct LineControl: u8 {
        const WORD_LENGTH = 0b11;
        const TWO_STOP_BITS = 1 << 2;
        const PARITY_ENABLE = 1 << 3;
        const BREAK = 1 << 6;
        const DIVISOR_LATCH = 1 << 7;
        const _ = !0;
    }

    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    struct ModemControl: u8 {
        const DTR = 1 << 0;
        const RTS = 1 << 1;
        const OUT1 = 1 << 2;
        const OUT2 = 1 << 3;
        const LOOPBACK = 1 << 4;
    }

    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    struct LineStatus: u8 {
        const DATA_READY = 1 << 0;
        const OVERRUN = 1 << 1;
        const BREAK = 1 << 4;
        const TRANSMITTER_HOLDING_EMPTY = 1 << 5;
        const TRANSMITTER_EMPTY = 1 << 6;
        const ERROR_IN_FIFO = 1 << 7;
    }

    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    struct ModemStatus: u8 {
        const DELTA_CTS = 1 << 0;
        const DELTA_DSR = 1 << 1;
        const TRAILING_EDGE_RI = 1 << 2;
        const DELTA_DCD = 1 << 3;
        const CTS = 1 << 4;
        const DSR = 1 << 5;
        const RI = 1 << 6;
        const DCD = 1 << 7;
    }
}

impl ModemStatus {
    const DELTAS: Self = Self::DELTA_CTS
        .union(Self::DELTA_DSR)
        .union(Self::TRAILING_EDGE_RI)
        .union(Self::DELTA_DCD);
    /// The inputs from the modem at the other end.
    const CONNECTED: Self = Self::CTS.union(Self::DSR).union(Self::DCD);
}

/// Interrupt identification register, bits 3:0: what the UART asks attention for, in falling
/// priority.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
enum Cause {
    LineStatus = 0b0110,
    ReceivedData = 0b0100,
    CharacterTimeout = 0b1100,
    TransmitterEmpty = 0b0010,
    ModemStatus = 0b0000,
}

/// No interrupt is pending.
const NO_INTERRUPT: u8 = 0b0001;
/// Bits 7:6 of the interrupt identification register while the FIFOs are on.
const FIFOS_ENABLED: u8 = 0b1100_0000;

/// A 16550A. Its eight registers are addressed by their offset, 0 to 7.
#[derive(Clone, Debug)]
pub struct Uart {
    tsc: Hertz,
    fifo: Fifo,
    enabled: InterruptEnable,
    line_control: LineControl,
    modem_control: ModemControl,
    modem_status: ModemStatus,
    overrun: bool,
    /// The byte at the head of the FIFO was a break, and LSR has not been read since it got
    /// there.
    break_shown: bool,
    /// The transmitter ran empty and nobody has been told.
    transmitter_event: bool,
    scratch: u8,
    divisor: u16,
    /// Four character times at the present divisor and frame, in ticks.
    timeout: u64,
    /// The time at which the bytes in the FIFO will have waited for too long.
    timeout_at: Option<TimerTicks>,
    timed_out: bool,
    /// The interrupt output as last driven.
    output: bool,
}

impl Uart {
    /// Makes a UART after reset, in a guest whose time runs at `tsc`. (The divisor, which reset
    /// leaves undefined, is the one for 115200 baud.)
    #[must_use]
    pub const fn new(tsc: Hertz) -> Self {
        let mut uart = Self {
            tsc,
            fifo: Fifo::new(),
            enabled: InterruptEnable::empty(),
            line_control: LineControl::empty(),
            modem_control: ModemControl::empty(),
            modem_status: ModemStatus::CONNECTED,
            overrun: false,
            break_shown: false,
            transmitter_event: false,
            scratch: 0,
            divisor: 1,
            timeout: 0,
            timeout_at: None,
            timed_out: false,
            output: false,
        };
        uart.timeout = uart.four_characters();
        uart
    }

    /// Reads register `offset` (modulo 8).
    pub fn read(&mut self, now: Now, offset: u16, line: &mut impl Line) -> u8 {
        match offset & 7 {
            0 if self.divisor_latched() => self.divisor as u8,
            0 => self.read_received(now, line),
            1 if self.divisor_latched() => (self.divisor >> 8) as u8,
            1 => self.enabled.bits(),
            2 => self.read_identification(line),
            3 => self.line_control.bits(),
            4 => self.modem_control.bits(),
            5 => self.read_line_status(line),
            6 => self.read_modem_status(line),
            _ => self.scratch,
        }
    }

    /// Writes register `offset` (modulo 8). Returns the byte that went out on the wire, if
    /// the write sent one.
    #[must_use = "a byte transmitted has to go somewhere"]
    pub fn write(&mut self, now: Now, offset: u16, value: u8, line: &mut impl Line) -> Option<u8> {
        let mut sent = None;
        match offset & 7 {
            0 if self.divisor_latched() => {
                self.set_divisor(self.divisor & 0xff00 | u16::from(value));
            }
            0 => sent = self.transmit(now, value, line),
            1 if self.divisor_latched() => {
                self.set_divisor(self.divisor & 0x00ff | u16::from(value) << 8);
            }
            1 => self.write_enable(value),
            2 => self.write_fifo_control(value),
            3 => self.write_line_control(now, value),
            4 => self.write_modem_control(value),
            // LSR is for factory tests to write, and MSR reads as the wires are.
            5 | 6 => {}
            _ => self.scratch = value,
        }
        self.drive(line);
        sent
    }

    /// Returns whether a byte from the wire would find room. While it is in loopback, the UART does
    /// not listen.
    #[must_use]
    pub const fn can_receive(&self) -> bool {
        !self.fifo.is_full() && !self.modem_control.contains(ModemControl::LOOPBACK)
    }

    /// Takes a byte from the wire. Without room ([`Uart::can_receive`]) it is lost, and the
    /// guest sees an overrun; in loopback it is lost unseen.
    pub fn receive(&mut self, now: Now, byte: u8, line: &mut impl Line) {
        self.receive_from_wire(now, Received::Byte(byte), line);
    }

    /// Takes a break from the wire: the line held low for more than a character. Linux on
    /// a serial console takes it as the "magic SysRq" key.
    pub fn receive_break(&mut self, now: Now, line: &mut impl Line) {
        self.receive_from_wire(now, Received::Break, line);
    }

    fn receive_from_wire(&mut self, now: Now, received: Received, line: &mut impl Line) {
        if !self.modem_control.contains(ModemControl::LOOPBACK) {
            self.put(now, received);
            self.drive(line);
        }
    }

    /// Returns when the UART next needs [`Uart::expire`].
    #[must_use]
    pub const fn next_deadline(&self) -> Option<TimerTicks> {
        self.timeout_at
    }

    /// Raises the character timeout if it is due.
    pub fn expire(&mut self, now: Now, line: &mut impl Line) {
        if self.timeout_at.is_some_and(|at| at <= now.timer) {
            self.timeout_at = None;
            self.timed_out = true;
            self.drive(line);
        }
    }

    const fn divisor_latched(&self) -> bool {
        self.line_control.contains(LineControl::DIVISOR_LATCH)
    }

    fn read_received(&mut self, now: Now, line: &mut impl Line) -> u8 {
        let byte = self.fifo.take();
        self.show_head();
        self.restart_timeout(now);
        self.drive(line);
        byte
    }

    fn read_identification(&mut self, line: &mut impl Line) -> u8 {
        let cause = self.cause();
        let fifos = if self.fifo.is_enabled() {
            FIFOS_ENABLED
        } else {
            0
        };
        // Telling of the empty transmitter settles it; the other causes go with what
        // caused them.
        if cause == Some(Cause::TransmitterEmpty) {
            self.transmitter_event = false;
            self.drive(line);
        }
        fifos | cause.map_or(NO_INTERRUPT, |cause| cause as u8)
    }

    fn read_line_status(&mut self, line: &mut impl Line) -> u8 {
        let mut status = LineStatus::TRANSMITTER_HOLDING_EMPTY | LineStatus::TRANSMITTER_EMPTY;
        status.set(LineStatus::DATA_READY, !self.fifo.is_empty());
        status.set(LineStatus::OVERRUN, self.overrun);
        status.set(LineStatus::BREAK, self.break_shown);
        status.set(LineStatus::ERROR_IN_FIFO, self.fifo.holds_error());
        if self.overrun || self.break_shown {
            self.overrun = false;
            self.break_shown = false;
            self.fifo.settle_head_error();
            self.drive(line);
        }
        status.bits()
    }

    fn read_modem_status(&mut self, line: &mut impl Line) -> u8 {
        let status = self.modem_status;
        if status.intersects(ModemStatus::DELTAS) {
            self.modem_status.remove(ModemStatus::DELTAS);
            self.drive(line);
        }
        status.bits()
    }

    fn transmit(&mut self, now: Now, byte: u8, line: &mut impl Line) -> Option<u8> {
        // Filling the transmitter settles the event, and its running empty is a new one:
        // for an edge-triggered interrupt controller there must be an edge between them.
        self.transmitter_event = false;
        self.drive(line);
        self.transmitter_event = true;
        if self.modem_control.contains(ModemControl::LOOPBACK) {
            self.put(now, Received::Byte(byte));
            None
        } else {
            Some(byte)
        }
    }

    fn write_enable(&mut self, value: u8) {
        let before = self.enabled;
        self.enabled = InterruptEnable::from_bits_truncate(value);
        // Enabling the interrupt of a transmitter that is empty raises it; Linux's driver
        // starts its transmissions with this, and tests for it when it opens the port.
        let newly_enabled = self.enabled.difference(before);
        if newly_enabled.contains(InterruptEnable::TRANSMITTER_EMPTY) {
            self.transmitter_event = true;
        }
    }

    fn write_fifo_control(&mut self, value: u8) {
        if self.fifo.control(value) {
            self.forget_timeout();
            self.show_head();
        }
    }

    fn write_line_control(&mut self, now: Now, value: u8) {
        let before = self.line_control;
        self.line_control = LineControl::from_bits_retain(value);
        self.timeout = self.four_characters();
        let break_starts = self
            .line_control
            .difference(before)
            .contains(LineControl::BREAK);
        if break_starts && self.modem_control.contains(ModemControl::LOOPBACK) {
            self.put(now, Received::Break);
        }
    }

    fn write_modem_control(&mut self, value: u8) {
        self.modem_control = ModemControl::from_bits_truncate(value);
        let levels = self.modem_inputs();
        let changed = levels.symmetric_difference(self.modem_status);
        let mut status = levels | self.modem_status.intersection(ModemStatus::DELTAS);
        for (input, delta) in [
            (ModemStatus::CTS, ModemStatus::DELTA_CTS),
            (ModemStatus::DSR, ModemStatus::DELTA_DSR),
            (ModemStatus::DCD, ModemStatus::DELTA_DCD),
        ] {
            if changed.contains(input) {
                status |= delta;
            }
        }
        // Of the ring indicator only the end counts.
        if changed.contains(ModemStatus::RI) && !levels.contains(ModemStatus::RI) {
            status |= ModemStatus::TRAILING_EDGE_RI;
        }
        self.modem_status = status;
    }

    /// Returns the levels of the four modem inputs. In loopback, the four outputs drive them.
    fn modem_inputs(&self) -> ModemStatus {
        if !self.modem_control.contains(ModemControl::LOOPBACK) {
            return ModemStatus::CONNECTED;
        }
        let mut inputs = ModemStatus::empty();
        for (output, input) in [
            (ModemControl::RTS, ModemStatus::CTS),
            (ModemControl::DTR, ModemStatus::DSR),
            (ModemControl::OUT1, ModemStatus::RI),
            (ModemControl::OUT2, ModemStatus::DCD),
        ] {
            inputs.set(input, self.modem_control.contains(output));
        }
        inputs
    }

    const fn set_divisor(&mut self, divisor: u16) {
        self.divisor = divisor;
        self.timeout = self.four_characters();
    }

    /// Returns four character times in ticks. (A divisor of zero, which has no meaning, counts as
    /// one.)
    const fn four_characters(&self) -> u64 {
        let data_bits = 5 + (self.line_control.bits() & LineControl::WORD_LENGTH.bits()) as u64;
        let parity = self.line_control.contains(LineControl::PARITY_ENABLE) as u64;
        let half_stop_bits = match (
            self.line_control.contains(LineControl::TWO_STOP_BITS),
            data_bits,
        ) {
            (false, _) => 2,
            (true, 5) => 3,
            (true, _) => 4,
        };
        let half_bits = 2 * (1 + data_bits + parity) + half_stop_bits;
        let divisor = if self.divisor == 0 { 1 } else { self.divisor };
        HALF_BIT_RATE.ticks_for(4 * half_bits * divisor as u64, self.tsc)
    }

    /// Puts what the receiver has got into the FIFO.
    fn put(&mut self, now: Now, received: Received) {
        let was_empty = self.fifo.is_empty();
        self.overrun |= !self.fifo.put(received);
        if was_empty || !self.fifo.is_enabled() {
            self.show_head();
        }
        // A timeout that was announced stands until a byte is read (data sheet, "FIFO
        // interrupt mode operation").
        if !self.timed_out {
            self.restart_timeout(now);
        }
    }

    /// Shows the byte that has come to the head of the FIFO: LSR now tells of its error, if it has
    /// one.
    const fn show_head(&mut self) {
        self.break_shown = self.fifo.head_is_break();
    }

    /// Starts the timeout anew, as the FIFO was filled or read: those that remain in it start to
    /// wait anew.
    fn restart_timeout(&mut self, now: Now) {
        self.forget_timeout();
        if self.fifo.is_enabled() && !self.fifo.is_empty() {
            self.timeout_at = Some(now.timer.saturating_add(self.timeout));
        }
    }

    const fn forget_timeout(&mut self) {
        self.timed_out = false;
        self.timeout_at = None;
    }

    /// Returns the cause of highest priority among those that are enabled.
    const fn cause(&self) -> Option<Cause> {
        if self.enabled.contains(InterruptEnable::LINE_STATUS) && (self.overrun || self.break_shown)
        {
            return Some(Cause::LineStatus);
        }
        if self.enabled.contains(InterruptEnable::RECEIVED_DATA) {
            if self.fifo.at_trigger_level() {
                return Some(Cause::ReceivedData);
            }
            if self.timed_out {
                return Some(Cause::CharacterTimeout);
            }
        }
        if self.enabled.contains(InterruptEnable::TRANSMITTER_EMPTY) && self.transmitter_event {
            return Some(Cause::TransmitterEmpty);
        }
        if self.enabled.contains(InterruptEnable::MODEM_STATUS)
            && self.modem_status.intersects(ModemStatus::DELTAS)
        {
            return Some(Cause::ModemStatus);
        }
        None
    }

    /// Brings the interrupt output up to date. In loopback nothing leaves the port: on a PC that
    /// disconnects OUT2.
    fn drive(&mut self, line: &mut impl Line) {
        let is_looped = self.modem_control.contains(ModemControl::LOOPBACK);
        let level = !is_looped && self.cause().is_some();
        if level != self.output {
            self.output = level;
            line.set_level(level);
        }
    }
}

/// The UART as COM1, whose other end is the chipset's host.
impl Device for Uart {
    fn read(&mut self, access: Access, cx: &mut Context<'_>) -> u64 {
        let (had_room, now) = (self.can_receive(), cx.now);
        let value = Self::read(self, now, access.offset16(), &mut cx.output(INTERRUPT));
        self.tell_of_room(had_room, cx);
        value.into()
    }

    fn write(&mut self, access: Access, value: u64, cx: &mut Context<'_>) {
        let (had_room, now) = (self.can_receive(), cx.now);
        let (offset, value) = (access.offset16(), value as u8);
        let sent = Self::write(self, now, offset, value, &mut cx.output(INTERRUPT));
        if let Some(byte) = sent {
            cx.host.serial_transmit(byte);
        }
        self.tell_of_room(had_room, cx);
    }

    fn next_deadline(&self, _: &Outputs<'_>) -> Option<TimerTicks> {
        self.timeout_at
    }

    fn expire(&mut self, cx: &mut Context<'_>) {
        let now = cx.now;
        Self::expire(self, now, &mut cx.output(INTERRUPT));
    }

    fn reset(&mut self, cx: &mut Context<'_>) {
        let had_room = self.can_receive();
        *self = Self::new(self.tsc);
        cx.set_output(INTERRUPT, false);
        self.tell_of_room(had_room, cx);
    }
}

impl Uart {
    /// Tells the host of room for input that there was none before.
    fn tell_of_room(&self, had_room: bool, cx: &mut Context<'_>) {
        if !had_room && self.can_receive() {
            cx.host.serial_ready();
        }
    }
}
