//! The host's serial lines, 8 data bits, no parity, 1 stop bit: the console, by default the first of COM1
//! to COM4 that there is, and the line for detectors, COM2, if it is opened. Without a UART, all output
//! vanishes and no input comes.
//!
//! Output goes through a ring. While booting, every write waits until the UART has taken
//! it all, so that nothing is lost if the next step fails. Once [`set_buffered`] is on, a
//! write gives the UART what it takes at once and leaves the rest to [`Line::poll`]: on the wire
//! a byte takes 87 us, and the exit path must not wait for that.
//!
//! Nothing here waits for ever: the lock and the UART are waited for a bounded number of
//! steps. A line that cannot get the lock is dropped (this happens only to an NMI handler
//! that interrupted a writer); reports of fatal errors break the lock instead.

use core::fmt::{self, Write};
use core::sync::atomic::{AtomicU64, Ordering};

use spin::{Mutex, MutexGuard};
use uart_16550::backend::PioBackend;
use uart_16550::spec::registers::{FifoTriggerLevel, IER, LSR};
use uart_16550::{BaudRate, Config, Uart16550};

use super::console_line::{COM_PORTS, ConsoleLine};

/// The size of the ring, with room for what guests may have on their way, and for a burst of
/// console output of a whole `--json` listing besides.
const RING_SIZE: usize = 256 << 10;
/// Polls of the line status register (about 1 us each on hardware) for a FIFO of 16 bytes
/// to empty, which takes 1.4 ms. A UART that takes longer is broken and given up.
const FIFO_POLLS: u32 = 1_000_000;
/// Attempts at the lock before a line is dropped, or the lock broken.
const LOCK_ATTEMPTS: u32 = 10_000_000;

/// The size of the ring of the line for detectors: what goes there has a queue of its own.
const DETECTOR_RING_SIZE: usize = 4 << 10;

/// The number of bytes that have gone into a ring, and of those out of it, since the start.
struct Counts {
    written: AtomicU64,
    sent: AtomicU64,
}

impl Counts {
    const fn new() -> Self {
        Self {
            written: AtomicU64::new(0),
            sent: AtomicU64::new(0),
        }
    }
}

struct Serial {
    uart: Uart16550<PioBackend>,
    /// The first I/O port of the UART.
    port: u16,
    working: bool,
    buffered: bool,
    ring: &'static mut [u8],
    /// The position of the oldest byte in the ring.
    first: usize,
    /// The number of bytes in the ring.
    count: usize,
    counts: &'static Counts,
}

/// The rings' bytes, apart from [`Serial`] to be in the BSS rather than in the image.
static mut RING: [u8; RING_SIZE] = [0; RING_SIZE];
static mut DETECTOR_RING: [u8; DETECTOR_RING_SIZE] = [0; DETECTOR_RING_SIZE];

static COUNTS: Counts = Counts::new();
static DETECTOR_COUNTS: Counts = Counts::new();

/// The console's line.
pub(crate) static CONSOLE: Line = {
    let ring = &raw mut RING;
    // SAFETY: the only use of the ring.
    Line::new(COM_PORTS[0], unsafe { &mut *ring }, &COUNTS)
};

/// The line for detectors, which carries what programs say to each other.
pub(crate) static DETECTORS: Line = {
    let ring = &raw mut DETECTOR_RING;
    // SAFETY: the only use of the ring.
    Line::new(DETECTOR_PORT, unsafe { &mut *ring }, &DETECTOR_COUNTS)
};

/// The port of the line for detectors: COM2.
const DETECTOR_PORT: u16 = COM_PORTS[1];

/// A serial line, as raw bytes in both directions.
pub(crate) struct Line {
    serial: Mutex<Serial>,
    capacity: u64,
    counts: &'static Counts,
}

impl Line {
    const fn new(port: u16, ring: &'static mut [u8], counts: &'static Counts) -> Self {
        Self {
            capacity: ring.len() as u64,
            serial: Mutex::new(Serial::new(port, ring, counts)),
            counts,
        }
    }

    fn lock(&self) -> Option<MutexGuard<'_, Serial>> {
        (0..LOCK_ATTEMPTS).find_map(|_| {
            let guard = self.serial.try_lock();
            if guard.is_none() {
                core::hint::spin_loop();
            }
            guard
        })
    }

    /// Returns the lock, taken from its holder if need be, for reports after which this CPU does
    /// nothing any more.
    fn break_lock(&self) -> MutexGuard<'_, Serial> {
        self.lock().unwrap_or_else(|| {
            // SAFETY: the holder is what this CPU was doing before the fatal error, which will
            // never go on; or a CPU stuck for seconds, whose unlocking a free lock is harmless.
            unsafe { self.serial.force_unlock() };
            self.serial.lock()
        })
    }

    /// Writes raw bytes, which wait in the ring once the line is buffered; more than it has room for
    /// take as long as the line.
    pub(crate) fn write(&self, bytes: &[u8]) {
        if let Some(mut serial) = self.lock() {
            serial.write(bytes);
        }
    }

    /// Returns the next byte of input, if one has come.
    #[must_use]
    pub(crate) fn try_read_byte(&self) -> Option<u8> {
        let mut serial = self.lock()?;
        if !serial.working {
            return None;
        }
        serial.uart.try_receive_byte().ok()
    }

    /// Returns the size of the ring.
    #[must_use]
    pub(crate) const fn capacity(&self) -> u64 {
        self.capacity
    }

    /// Returns how many bytes have been written since the start.
    #[must_use]
    pub(crate) fn written(&self) -> u64 {
        self.counts.written.load(Ordering::Relaxed)
    }

    /// Returns how many of the bytes that were [`written`](Line::written) the UART has taken.
    #[must_use]
    pub(crate) fn sent(&self) -> u64 {
        self.counts.sent.load(Ordering::Relaxed)
    }

    /// Gives the UART as much waiting output as it takes at once.
    pub(crate) fn poll(&self) {
        if let Some(mut serial) = self.lock()
            && serial.count > 0
        {
            serial.poll();
        }
    }

    /// Returns the first I/O port of its UART, if there is one.
    #[must_use]
    pub(super) fn port(&self) -> Option<u16> {
        let serial = self.lock()?;
        serial.working.then_some(serial.port)
    }

    /// Has the UART interrupt for `reasons`, and for no others.
    pub(super) fn interrupt_for(&self, reasons: IER) {
        if let Some(mut serial) = self.lock() {
            serial.uart.disable_interrupts(!reasons);
            serial.uart.enable_interrupts(reasons);
            // What was asked for before has been seen to.
            let _ = serial.uart.isr();
        }
    }

    /// Waits until all output is on the wire.
    pub(crate) fn flush(&self) {
        if let Some(mut serial) = self.lock() {
            serial.flush();
        }
    }
}

impl Serial {
    const fn new(port: u16, ring: &'static mut [u8], counts: &'static Counts) -> Self {
        Self {
            // SAFETY: the machine's serial lines are tarpit's; guests only ever see emulated ones.
            uart: match unsafe { Uart16550::new_port(port) } {
                Ok(uart) => uart,
                Err(_) => panic!("a COM port's registers lie within the I/O port space"),
            },
            port,
            working: false,
            buffered: false,
            ring,
            first: 0,
            count: 0,
            counts,
        }
    }

    /// Goes over to `line`, if there is a UART that can do its speed. Returns whether there is.
    fn use_line(&mut self, line: ConsoleLine) -> bool {
        // SAFETY: the machine's serial lines are tarpit's; guests only ever see emulated ones.
        let Ok(mut uart) = (unsafe { Uart16550::new_port(line.port) }) else {
            return false;
        };
        let config = Config {
            interrupts: IER::empty(),
            // An interrupt leaves a millisecond until the FIFO is full.
            fifo_trigger_level: Some(FifoTriggerLevel::Four),
            baud_rate: BaudRate::Custom(line.baud),
            check_cts_before_sending: false,
            ..Config::DEFAULT
        };
        let works = uart.init(config).is_ok();
        if works {
            self.flush();
            self.uart = uart;
            self.port = line.port;
            self.working = true;
        }
        works
    }

    /// Gives the UART what it takes now.
    fn poll(&mut self) -> usize {
        let end = (self.first + self.count).min(self.ring.len());
        let sent = self.uart.send_bytes(&self.ring[self.first..end]);
        self.first = (self.first + sent) % self.ring.len();
        self.count -= sent;
        self.counts.sent.fetch_add(sent as u64, Ordering::Relaxed);
        sent
    }

    /// Waits until at most `left` bytes are in the ring.
    fn drain_to(&mut self, left: usize) {
        let mut polls = 0;
        while self.count > left {
            if self.poll() > 0 {
                polls = 0;
                continue;
            }
            polls += 1;
            if polls == FIFO_POLLS {
                self.working = false;
                let lost = self.count as u64;
                self.counts.sent.fetch_add(lost, Ordering::Relaxed);
                self.count = 0;
            }
            core::hint::spin_loop();
        }
    }

    /// Waits until all is on the wire, the UART's own FIFO included.
    fn flush(&mut self) {
        self.drain_to(0);
        let mut polls = 0;
        while self.working && !self.uart.lsr().contains(LSR::TRANSMITTER_EMPTY) {
            polls += 1;
            self.working = polls < FIFO_POLLS;
        }
    }

    fn write(&mut self, bytes: &[u8]) {
        if !self.working {
            return;
        }
        for &byte in bytes {
            let size = self.ring.len();
            if self.count == size {
                self.drain_to(size / 2);
            }
            self.ring[(self.first + self.count) % size] = byte;
            self.count += 1;
        }
        let length = bytes.len() as u64;
        self.counts.written.fetch_add(length, Ordering::Relaxed);
        if self.buffered {
            self.poll();
        } else {
            self.drain_to(0);
        }
    }
}

/// Text for a terminal: line feeds become carriage return and line feed.
struct Terminal<'a>(&'a mut Serial);

impl Write for Terminal<'_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for line in text.split_inclusive('\n') {
            match line.strip_suffix('\n') {
                Some(line) => {
                    self.0.write(line.as_bytes());
                    self.0.write(b"\r\n");
                }
                None => self.0.write(line.as_bytes()),
            }
        }
        Ok(())
    }
}

/// Sets up the first serial line of a PC's that there is.
pub(crate) fn init() {
    let mut serial = CONSOLE.serial.lock();
    let mut lines = COM_PORTS.into_iter().map(ConsoleLine::at);
    let _ = lines.any(|line| serial.use_line(line));
}

/// Goes over to `line`, after all output is out on the one before. Returns false, and does nothing, if
/// there is no UART.
#[must_use]
pub(crate) fn use_line(line: ConsoleLine) -> bool {
    CONSOLE
        .lock()
        .is_some_and(|mut serial| serial.use_line(line))
}

/// Writes text, with line feeds made fit for a terminal.
pub(crate) fn print(text: fmt::Arguments<'_>) {
    if let Some(mut serial) = CONSOLE.lock() {
        // The writer itself never fails, and a failing Display loses just its own text.
        let _ = Terminal(&mut serial).write_fmt(text);
    }
}

/// Prints as [`print`], from a context that may have interrupted the holder of the lock and will
/// never return to it; waits until all is out.
pub(crate) fn emergency_print(text: fmt::Arguments<'_>) {
    let mut serial = CONSOLE.break_lock();
    let _ = Terminal(&mut serial).write_fmt(text);
    serial.flush();
}

/// Flushes as [`flush`], from a context that may have interrupted the holder of the lock and will
/// never return to it.
pub(crate) fn emergency_flush() {
    CONSOLE.break_lock().flush();
}

/// Waits until all of the console's output is on the wire.
pub(crate) fn flush() {
    CONSOLE.flush();
}

/// Has writes leave, from now on, to [`Line::poll`] what the UART does not take at once (or, with
/// `false`, wait for all of it again).
pub(crate) fn set_buffered(buffered: bool) {
    if let Some(mut serial) = CONSOLE.lock() {
        serial.buffered = buffered;
    }
}

/// Opens the line for detectors. Returns false, and does nothing, if there is no UART at COM2, or it is
/// the console's.
#[must_use]
pub(crate) fn open_detectors() -> bool {
    let is_console =
        |console: MutexGuard<'_, Serial>| console.working && console.port == DETECTOR_PORT;
    if CONSOLE.lock().is_none_or(is_console) {
        return false;
    }
    DETECTORS.lock().is_some_and(|mut line| {
        line.buffered = true;
        line.use_line(ConsoleLine::at(DETECTOR_PORT))
    })
}
