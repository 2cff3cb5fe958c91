//! The console on COM1: 115200 8N1, polled, but for who has nothing else to do than to wait.

use core::fmt;
use core::sync::atomic::{AtomicU16, Ordering};

use x86_64::instructions::port::Port;

use crate::interrupts::{self, Frame};
use crate::pic;

const COM1: u16 = 0x3f8;
const INTERRUPT_ENABLE: u16 = COM1 + 1;
const FIFO_CONTROL: u16 = COM1 + 2;
const LINE_CONTROL: u16 = COM1 + 3;
const MODEM_CONTROL: u16 = COM1 + 4;
const LINE_STATUS: u16 = COM1 + 5;

const DATA_READY: u8 = 1 << 0;
const HOLDING_EMPTY: u8 = 1 << 5;

fn write(port: u16, value: u8) {
    // SAFETY: the ports above are the UART's, which touches no memory.
    unsafe { Port::new(port).write(value) }
}

fn read(port: u16) -> u8 {
    // SAFETY: as above.
    unsafe { Port::new(port).read() }
}

/// Sets the UART up.
pub fn init() {
    write(INTERRUPT_ENABLE, 0);
    write(LINE_CONTROL, 0x80);
    write(COM1, 1);
    write(INTERRUPT_ENABLE, 0);
    write(LINE_CONTROL, 0x03);
    write(FIFO_CONTROL, 0x07);
    write(MODEM_CONTROL, 0x03);
}

/// Returns the next byte that came in, if there is one.
#[must_use]
pub fn receive() -> Option<u8> {
    (read(LINE_STATUS) & DATA_READY != 0).then(|| read(COM1))
}

/// The interrupt of COM1.
const IRQ: u8 = 4;
/// Modem control: DTR, RTS, and OUT2, which lets the interrupt out.
const INTERRUPTS_OUT: u8 = 0x0b;
/// Interrupt enable: a byte has come in.
const ON_RECEIVE: u8 = 1 << 0;
/// No byte, among those that came in.
const NOTHING: u16 = 0x100;

/// The byte that the last interrupt brought.
static RECEIVED: AtomicU16 = AtomicU16::new(NOTHING);

fn take(_: &mut Frame) {
    while let Some(byte) = receive() {
        RECEIVED.store(byte.into(), Ordering::Relaxed);
    }
    pic::end(IRQ);
}

/// Halts until a byte comes in, by the 8259's interrupt, and returns it. Of several that come at once
/// it is the last.
#[must_use]
pub fn wait() -> u8 {
    interrupts::set_handler(pic::BASE + IRQ, take);
    RECEIVED.store(NOTHING, Ordering::Relaxed);
    write(MODEM_CONTROL, INTERRUPTS_OUT);
    write(INTERRUPT_ENABLE, ON_RECEIVE);
    pic::unmask(IRQ);
    let received = loop {
        let received = RECEIVED.load(Ordering::Relaxed);
        if received != NOTHING {
            break received;
        }
        // SAFETY: the handler keeps all registers. Nothing comes in between STI and HLT.
        unsafe { core::arch::asm!("sti", "hlt", "cli") };
    };
    pic::mask_all();
    write(INTERRUPT_ENABLE, 0);
    received as u8
}

/// The serial line, to which [`println!`](crate::println) prints.
#[derive(Debug)]
pub struct Serial;

impl fmt::Write for Serial {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for byte in text.bytes() {
            while read(LINE_STATUS) & HOLDING_EMPTY == 0 {
                core::hint::spin_loop();
            }
            write(COM1, byte);
        }
        Ok(())
    }
}

/// Prints to the serial console.
#[macro_export]
macro_rules! print {
    ($($text:tt)*) => {{
        use core::fmt::Write as _;
        // Writing to the UART cannot fail.
        let _ = write!($crate::serial::Serial, $($text)*);
    }};
}

/// Prints a line to the serial console.
#[macro_export]
macro_rules! println {
    ($($text:tt)*) => {{
        $crate::print!($($text)*);
        $crate::print!("\n");
    }};
}
