//! The I/O APIC as its driver sees it.

use alloc::vec::Vec;

use super::*;
use crate::apic_message::DeliveryMode;

const LEVEL: u32 = arch::ioapic::LEVEL as u32;
const MASKED: u32 = arch::ioapic::MASKED as u32;
const ACTIVE_LOW: u32 = arch::ioapic::ACTIVE_LOW as u32;
const REMOTE_IRR: u32 = arch::ioapic::REMOTE_IRR as u32;

/// An I/O APIC and what it has sent.
struct Board {
    ioapic: IoApic,
    sent: Vec<ApicMessage>,
}

impl Board {
    fn new() -> Self {
        Self::wired(0)
    }

    fn wired(wired_low: u32) -> Self {
        Self {
            ioapic: IoApic::new(wired_low),
            sent: Vec::new(),
        }
    }

    fn pin(&mut self, pin: usize, asserted: bool) {
        let sent = &mut self.sent;
        self.ioapic.set_pin(pin, asserted, &mut |m| sent.push(m));
    }

    fn store(&mut self, offset: u16, value: u32) {
        let sent = &mut self.sent;
        self.ioapic
            .mmio_write(offset, 4, value.into(), &mut |m| sent.push(m));
    }

    fn write(&mut self, register: u8, value: u32) {
        self.store(IOREGSEL, register.into());
        self.store(IOWIN, value);
    }

    fn read(&mut self, register: u8) -> u32 {
        self.store(IOREGSEL, register.into());
        self.ioapic.mmio_read(IOWIN, 4) as u32
    }

    fn program(&mut self, pin: u8, low: u32) {
        self.write(0x10 + 2 * pin, low);
    }

    fn entry(&mut self, pin: u8) -> u32 {
        self.read(0x10 + 2 * pin)
    }

    fn eoi(&mut self, vector: u8) {
        let sent = &mut self.sent;
        self.ioapic.end_of_interrupt(vector, &mut |m| sent.push(m));
    }

    fn vectors(&mut self) -> Vec<u8> {
        self.sent.drain(..).map(|m| m.vector).collect()
    }
}

#[test]
fn identity_registers() {
    let mut board = Board::new();
    assert_eq!(board.read(1), 0x0017_0020);
    board.write(0, u32::MAX);
    assert_eq!(board.read(0), 0x0f00_0000);
    assert_eq!(board.read(2), 0x0f00_0000, "arbitration follows the ID");
    board.write(1, 0);
    board.write(2, 0);
    assert_eq!(board.read(1), 0x0017_0020);
    assert_eq!(board.read(2), 0x0f00_0000);
    board.store(IOREGSEL, 0x1ff);
    assert_eq!(board.ioapic.mmio_read(IOREGSEL, 4), 0xff);
}

#[test]
fn entries_start_masked_and_keep_what_is_writable() {
    let mut board = Board::new();
    for pin in 0..PINS as u8 {
        assert_eq!(board.entry(pin), MASKED);
        assert_eq!(board.read(0x11 + 2 * pin), 0);
    }
    board.program(3, u32::MAX);
    board.write(0x17, u32::MAX);
    assert_eq!(board.entry(3), 0x0001_afff, "read-only bits stay clear");
    assert_eq!(board.read(0x17), 0xff00_0000);
    board.ioapic.reset();
    assert_eq!(board.entry(3), MASKED);
}

#[test]
fn registers_that_do_not_exist_read_as_zero_and_ignore_writes() {
    let mut board = Board::new();
    for register in [3, 0xf, 0x40, 0xff] {
        board.write(register, u32::MAX);
        assert_eq!(board.read(register), 0, "{register:#x}");
    }
    assert_eq!(board.ioapic.mmio_read(0x20, 4), 0);
    board.pin(24, true);
    board.pin(usize::MAX, true);
    assert_eq!(board.sent, []);
}

#[test]
fn parts_of_registers_can_be_read_but_iowin_not_written_in_parts() {
    let mut board = Board::new();
    board.program(0, 0x0000_a531);
    assert_eq!(board.ioapic.mmio_read(IOWIN, 1), 0x31);
    assert_eq!(board.ioapic.mmio_read(IOWIN + 1, 1), 0xa5);
    assert_eq!(board.ioapic.mmio_read(IOWIN, 8), 0xa531);
    board.ioapic.mmio_write(IOWIN, 1, 0x77, &mut |_| {});
    board.ioapic.mmio_write(IOWIN + 1, 4, 0x77, &mut |_| {});
    assert_eq!(board.entry(0), 0xa531);
    board.ioapic.mmio_write(IOREGSEL, 1, 1, &mut |_| {});
    assert_eq!(board.ioapic.mmio_read(IOWIN, 4), VERSION.into());
}

#[test]
fn an_edge_interrupts_once_and_waits_for_no_end() {
    let mut board = Board::new();
    board.program(4, 0x31);
    board.pin(4, true);
    board.pin(4, true);
    assert_eq!(board.vectors(), [0x31]);
    board.eoi(0x31);
    assert_eq!(board.vectors(), []);
    board.pin(4, false);
    board.pin(4, true);
    assert_eq!(board.vectors(), [0x31]);
    assert_eq!(board.entry(4), 0x31);
}

#[test]
fn a_masked_edge_is_lost() {
    let mut board = Board::new();
    board.program(4, 0x31 | MASKED);
    board.pin(4, true);
    board.program(4, 0x31);
    assert_eq!(board.vectors(), []);
}

#[test]
fn a_level_interrupts_again_after_the_end_of_interrupt_as_long_as_it_lasts() {
    let mut board = Board::new();
    board.program(9, 0x42 | LEVEL);
    board.pin(9, true);
    assert_eq!(board.vectors(), [0x42]);
    assert_eq!(board.entry(9), 0x42 | LEVEL | REMOTE_IRR);
    board.pin(9, false);
    board.pin(9, true);
    assert_eq!(board.vectors(), [], "not answered yet");
    board.eoi(0x41);
    assert_eq!(board.vectors(), [], "another vector");
    board.eoi(0x42);
    assert_eq!(board.vectors(), [0x42]);
    board.pin(9, false);
    board.eoi(0x42);
    assert_eq!(board.vectors(), []);
    assert_eq!(board.entry(9), 0x42 | LEVEL);
}

#[test]
fn the_eoi_register_ends_interrupts_too() {
    let mut board = Board::new();
    board.program(9, 0x42 | LEVEL);
    board.pin(9, true);
    board.pin(9, false);
    board.store(EOI, 0x42);
    assert_eq!(board.entry(9), 0x42 | LEVEL);
}

#[test]
fn unmasking_an_asserted_level_interrupts() {
    let mut board = Board::new();
    board.program(9, 0x42 | LEVEL | MASKED);
    board.pin(9, true);
    assert_eq!(board.vectors(), []);
    board.program(9, 0x42 | LEVEL);
    assert_eq!(board.vectors(), [0x42]);
    // Masked while in service: the end of interrupt frees it without another one.
    board.program(9, 0x42 | LEVEL | MASKED);
    board.eoi(0x42);
    assert_eq!(board.vectors(), []);
    board.program(9, 0x42 | LEVEL);
    assert_eq!(board.vectors(), [0x42]);
}

#[test]
fn switching_to_edge_and_back_frees_a_level_pin() {
    let mut board = Board::new();
    board.program(9, 0x42 | LEVEL);
    board.pin(9, true);
    board.program(9, 0x42 | MASKED);
    assert_eq!(board.entry(9), 0x42 | MASKED);
    board.program(9, 0x42 | LEVEL);
    assert_eq!(board.vectors(), [0x42, 0x42]);
}

#[test]
fn pins_that_share_a_vector_all_hear_its_end() {
    let mut board = Board::new();
    board.program(16, 0x42 | LEVEL);
    board.program(17, 0x42 | LEVEL);
    board.pin(16, true);
    board.pin(17, true);
    assert_eq!(board.vectors(), [0x42, 0x42]);
    board.pin(16, false);
    board.eoi(0x42);
    assert_eq!(board.vectors(), [0x42]);
    assert_eq!(board.entry(16) & REMOTE_IRR, 0);
    assert_eq!(board.entry(17) & REMOTE_IRR, REMOTE_IRR);
}

#[test]
fn polarity_says_which_level_is_active() {
    let mut board = Board::wired(1 << 20);
    board.program(20, 0x50 | LEVEL | ACTIVE_LOW);
    assert_eq!(board.vectors(), [], "an idle wire is high");
    board.pin(20, true);
    assert_eq!(board.vectors(), [0x50]);
    // The wrong polarity for the wire: what is idle interrupts.
    board.program(5, 0x51 | LEVEL | ACTIVE_LOW);
    assert_eq!(board.vectors(), [0x51]);
    // The falling edge of a wire that is active low.
    board.program(6, 0x52 | ACTIVE_LOW);
    board.pin(6, true);
    assert_eq!(board.vectors(), []);
    board.pin(6, false);
    assert_eq!(board.vectors(), [0x52]);
}

#[test]
fn messages_carry_mode_and_destination() {
    let mut board = Board::new();
    board.write(0x11, 0x0300_0000);
    board.program(0, 0x31 | 1 << 8 | 1 << 11 | LEVEL);
    board.pin(0, true);
    assert_eq!(
        board.sent,
        [ApicMessage {
            destination: Destination::Logical(3),
            delivery_mode: DeliveryMode::LowestPriority,
            vector: 0x31,
            trigger: Trigger::Level,
        }]
    );
    board.sent.clear();
    board.write(0x13, 0xff00_0000);
    board.program(1, 7 << 8);
    board.pin(1, true);
    assert_eq!(board.sent[0].destination, Destination::All);
    assert_eq!(board.sent[0].delivery_mode, DeliveryMode::ExtInt);
}

#[test]
fn an_nmi_has_no_level_to_end() {
    let mut board = Board::new();
    board.program(2, 4 << 8 | LEVEL);
    board.pin(2, true);
    assert_eq!(board.sent[0].delivery_mode, DeliveryMode::Nmi);
    board.eoi(0);
    board.write(0x15, 0x0100_0000);
    assert_eq!(board.sent.len(), 1, "sent once, for the edge");
    assert_eq!(board.entry(2) & REMOTE_IRR, 0);
}

#[test]
fn a_reserved_delivery_mode_sends_nothing() {
    let mut board = Board::new();
    board.program(2, 3 << 8 | LEVEL);
    board.pin(2, true);
    assert_eq!(board.sent, []);
    assert_eq!(board.entry(2) & REMOTE_IRR, 0);
}
