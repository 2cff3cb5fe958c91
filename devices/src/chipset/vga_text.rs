//! A VGA as far as text goes: the registers of the CRT controller, and where they say that the
//! screen and the cursor are.
//!
//! Sources: IBM Personal System/2 Hardware Interface Technical Reference (1991), "Video
//! subsystem"; FreeVGA project, for what later adapters agree on.
//!
//! The text itself is in memory at [`crate::platform_map::mmio::VGA_TEXT`], where a guest writes
//! it without any help: RAM to the guest, and here only a number. Small systems write there and
//! move the cursor by the CRT controller; larger ones are told by ACPI that there is no VGA
//! ([`crate::platform_map::IAPC_BOOT_ARCH`]), and find none on PCI. There are no fonts, no
//! palette and no graphics modes.

use alloc::string::String;
use alloc::vec::Vec;

use arch::addr::GuestPhysAddr;

use super::bus::{Access, Context, Device};
use crate::guest_memory::{GuestMemory, NotRam};
use crate::platform_map::mmio;
use crate::time::{Hertz, Oscillator};

/// Columns of the screen.
pub const COLUMNS: u16 = 80;
/// Rows of the screen.
pub const ROWS: u16 = 25;

/// The regions: the CRT controller's ports, input status 1, and the miscellaneous output register.
const CRTC: usize = 0;
const INPUT_STATUS_1: usize = 1;

/// The number of registers of the CRT controller.
const REGISTERS: usize = 25;
/// The registers of the CRT controller that mean something here.
mod register {
    pub(super) const CURSOR_START: u8 = 0x0a;
    pub(super) const START_HIGH: u8 = 0x0c;
    pub(super) const START_LOW: u8 = 0x0d;
    pub(super) const CURSOR_HIGH: u8 = 0x0e;
    pub(super) const CURSOR_LOW: u8 = 0x0f;
    pub(super) const VERTICAL_RETRACE_END: u8 = 0x11;
}

/// The registers as a BIOS sets them for mode 3, 80 x 25 characters in color.
const MODE_3: [u8; REGISTERS] = [
    0x5f, 0x4f, 0x50, 0x82, 0x55, 0x81, 0xbf, 0x1f, 0x00, 0x4f, 0x0d, 0x0e, 0x00, 0x00, 0x00, 0x00,
    0x9c, 0x8e, 0x8f, 0x28, 0x1f, 0x96, 0xb9, 0xa3, 0xff,
];
/// Cursor start: the cursor is switched off.
const CURSOR_OFF: u8 = 1 << 5;
/// Vertical retrace end: registers 0 to 7 are protected.
const PROTECTED: u8 = 1 << 7;

/// Miscellaneous output in mode 3: the CRT controller at 0x3d4, the clock for 720 pixels.
const MISCELLANEOUS: u8 = 0x67;

/// Input status 1: no picture is being drawn (a retrace of either kind).
const DISPLAY_DISABLED: u8 = 1 << 0;
/// Input status 1: vertical retrace.
const VERTICAL_RETRACE: u8 = 1 << 3;
/// Lines of a frame in mode 3 at 70 Hz.
const LINES: u64 = 449;
/// The first line that shows nothing of the picture, and those of the vertical retrace.
const BLANK_FROM: u64 = 400;
const RETRACE: core::ops::Range<u64> = 412..414;
/// The frequency of lines: 28.322 MHz / 900 pixels.
const LINE_RATE: Hertz = Hertz::new(31_469);

/// The places of the screen and of the cursor in the adapter's memory, counted in characters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TextScreen {
    /// The character in the upper left corner.
    pub start: u16,
    /// The character that the cursor is at, if the cursor is on.
    pub cursor: Option<u16>,
}

/// The CRT controller of a VGA in text mode, and the status registers by which drivers wait for
/// a retrace.
#[derive(Clone, Debug)]
pub struct VgaText {
    index: u8,
    registers: [u8; REGISTERS],
    lines: Oscillator,
}

impl VgaText {
    /// Makes a VGA in mode 3, for a guest whose TSC runs at `tsc`.
    #[must_use]
    pub const fn new(tsc: Hertz) -> Self {
        Self {
            index: 0,
            registers: MODE_3,
            lines: Oscillator::new(LINE_RATE, tsc),
        }
    }

    /// Returns where the screen and the cursor are.
    #[must_use]
    pub fn screen(&self) -> TextScreen {
        let word = |high, low| u16::from_be_bytes([self.register(high), self.register(low)]);
        let cursor_on = self.register(register::CURSOR_START) & CURSOR_OFF == 0;
        TextScreen {
            start: word(register::START_HIGH, register::START_LOW),
            cursor: cursor_on.then(|| word(register::CURSOR_HIGH, register::CURSOR_LOW)),
        }
    }

    /// Returns the value of a register; zero where there is none.
    fn register(&self, index: u8) -> u8 {
        let register = self.registers.get(usize::from(index));
        register.copied().unwrap_or(0)
    }

    fn write_register(&mut self, value: u8) {
        let is_protected = self.register(register::VERTICAL_RETRACE_END) & PROTECTED != 0;
        let index = usize::from(self.index);
        let kept = match index {
            // Line compare's highest bit is not a matter of the mode, and not protected.
            7 if is_protected => !(1 << 4),
            0..=7 if is_protected => 0xff,
            _ => 0,
        };
        if let Some(register) = self.registers.get_mut(index) {
            *register = *register & kept | value & !kept;
        }
    }

    fn input_status(&self, cx: &Context<'_>) -> u8 {
        let line = self.lines.cycle(cx.now) % LINES;
        let mut status = 0;
        if line >= BLANK_FROM {
            status |= DISPLAY_DISABLED;
        }
        if RETRACE.contains(&line) {
            status |= VERTICAL_RETRACE;
        }
        status
    }
}

impl Device for VgaText {
    fn read(&mut self, access: Access, cx: &mut Context<'_>) -> u64 {
        let value = match (access.region, access.offset) {
            (CRTC, 0) => self.index,
            (CRTC, _) => self.register(self.index),
            (INPUT_STATUS_1, _) => self.input_status(cx),
            _ => MISCELLANEOUS,
        };
        value.into()
    }

    fn write(&mut self, access: Access, value: u64, _: &mut Context<'_>) {
        match (access.region, access.offset) {
            (CRTC, 0) => self.index = value as u8,
            (CRTC, _) => self.write_register(value as u8),
            // The status is for reading; the feature-control register behind it has no feature.
            _ => {}
        }
    }

    fn reset(&mut self, _: &mut Context<'_>) {
        self.index = 0;
        self.registers = MODE_3;
    }
}

/// Returns what is on a screen: a row of characters for each line, as the adapter's font (code page 437)
/// shows them.
///
/// # Errors
/// If the guest has no RAM where the adapter's memory is.
pub fn read_rows(screen: TextScreen, memory: &dyn GuestMemory) -> Result<Vec<String>, NotRam> {
    let mut rows = Vec::with_capacity(ROWS.into());
    for row in 0..ROWS {
        let mut line = String::with_capacity(COLUMNS.into());
        for column in 0..COLUMNS {
            let position = screen.start.wrapping_add(row * COLUMNS + column);
            // A character and its attribute; the adapter's memory wraps around.
            let offset = 2 * u64::from(position) % mmio::VGA_TEXT_LENGTH;
            let cell = memory.read_u16(GuestPhysAddr(mmio::VGA_TEXT + offset))?;
            line.push(character(cell as u8));
        }
        line.truncate(line.trim_end().len());
        rows.push(line);
    }
    Ok(rows)
}

/// Returns the character that code page 437 has for `code`; a space for those that show nothing.
fn character(code: u8) -> char {
    const LOW: &str = " ☺☻♥♦♣♠•◘○◙♂♀♪♫☼►◄↕‼¶§▬↨↑↓→←∟↔▲▼";
    const HIGH: &str = concat!(
        "ÇüéâäàåçêëèïîìÄÅÉæÆôöòûùÿÖÜ¢£¥₧ƒáíóúñÑªº¿⌐¬½¼¡«»░▒▓│┤╡╢╖╕╣║╗╝╜╛┐└┴┬├─┼╞╟╚╔╩╦╠═╬╧",
        "╨╤╥╙╘╒╓╫╪┘┌█▄▌▐▀αßΓπΣσµτΦΘΩδ∞φε∩≡±≥≤⌠⌡÷≈°∙·√ⁿ²■ "
    );
    let (table, index) = match code {
        0x20..0x7f => return code.into(),
        0x7f => return '⌂',
        0..0x20 => (LOW, code),
        0x80.. => (HIGH, code - 0x80),
    };
    table.chars().nth(index.into()).unwrap_or(' ')
}

#[cfg(test)]
mod tests {
    extern crate std;

    use core::cell::RefCell;
    use std::vec;

    use super::*;

    #[test]
    fn every_code_has_a_character_of_its_own() {
        let mut seen = std::collections::BTreeSet::new();
        for code in 1..=0xfe {
            let character = character(code);
            assert!(seen.insert(character), "{code:#x}: {character}");
        }
        assert_eq!(character(0), ' ');
        assert_eq!(character(0xb3), '│');
        assert_eq!(character(0xdb), '█');
        assert_eq!(character(0xfe), '■');
    }

    /// The adapter's memory.
    struct TextMemory(RefCell<Vec<u8>>);

    impl GuestMemory for TextMemory {
        fn read(&self, address: GuestPhysAddr, buffer: &mut [u8]) -> Result<(), NotRam> {
            let start = (address.0 - mmio::VGA_TEXT) as usize;
            buffer.copy_from_slice(&self.0.borrow()[start..start + buffer.len()]);
            Ok(())
        }

        fn write(&self, address: GuestPhysAddr, data: &[u8]) -> Result<(), NotRam> {
            let start = (address.0 - mmio::VGA_TEXT) as usize;
            self.0.borrow_mut()[start..start + data.len()].copy_from_slice(data);
            Ok(())
        }
    }

    impl TextMemory {
        fn print(&self, position: u64, text: &str) {
            for (n, byte) in (position..).zip(text.bytes()) {
                let address = GuestPhysAddr(mmio::VGA_TEXT + 2 * n);
                self.write(address, &[byte, 0x07]).unwrap();
            }
        }
    }

    #[test]
    fn the_screen_shows_the_memory_from_its_start_on() {
        let memory = TextMemory(RefCell::new(vec![0; mmio::VGA_TEXT_LENGTH as usize]));
        memory.print(0, "first");
        memory.print(80, "second");
        let screen = |start| TextScreen {
            start,
            cursor: None,
        };
        let rows = read_rows(screen(0), &memory).unwrap();
        assert_eq!(rows.len(), 25);
        assert_eq!((rows[0].as_str(), rows[1].as_str()), ("first", "second"));
        assert_eq!(rows[2], "");
        // Scrolled by a line, and to the end of the memory.
        assert_eq!(read_rows(screen(80), &memory).unwrap()[0], "second");
        let last = (mmio::VGA_TEXT_LENGTH / 2) as u16 - 80;
        assert_eq!(read_rows(screen(last), &memory).unwrap()[1], "first");
    }

    #[test]
    fn registers_of_the_timing_are_protected_as_a_bios_leaves_them() {
        let mut vga = VgaText::new(Hertz::new(1_000_000_000));
        vga.index = 0;
        vga.write_register(0);
        assert_eq!(vga.register(0), 0x5f);
        vga.index = 7;
        vga.write_register(0);
        assert_eq!(vga.register(7), 0x0f, "but for line compare");
        vga.index = register::VERTICAL_RETRACE_END;
        vga.write_register(0x0e);
        vga.index = 0;
        vga.write_register(0x12);
        assert_eq!(vga.register(0), 0x12);
        vga.index = 0xff;
        vga.write_register(1);
        assert_eq!(vga.register(0xff), 0, "no register");
    }
}
