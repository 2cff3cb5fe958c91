extern crate std;

use std::{vec, vec::Vec};

use super::*;
use crate::time::CounterTicks;

const RBR: u16 = 0;
const THR: u16 = 0;
const IER: u16 = 1;
const IIR: u16 = 2;
const FCR: u16 = 2;
const LCR: u16 = 3;
const MCR: u16 = 4;
const LSR: u16 = 5;
const MSR: u16 = 6;
const SCR: u16 = 7;

const RDI: u8 = 0x01;
const THRI: u8 = 0x02;
const RLSI: u8 = 0x04;
const MSI: u8 = 0x08;

const OUT2: u8 = 0x08;
const LOOP: u8 = 0x10;
const N81: u8 = 0x03;
const TRANSMITTER_IDLE: u8 = 0x60;

const TSC: Hertz = Hertz::new(1_152_000_000);
/// A bit at 115200 baud.
const BIT: u64 = 10_000;

/// A serial port with a driver that has its interrupts gated through.
struct Port {
    uart: Uart,
    level: bool,
    edges: u32,
    now: u64,
    sent: Vec<u8>,
}

impl Port {
    fn new() -> Self {
        let mut port = Self {
            uart: Uart::new(TSC),
            level: false,
            edges: 0,
            now: 0,
            sent: Vec::new(),
        };
        port.write(LCR, N81);
        port.write(MCR, OUT2);
        port
    }

    fn with_fifo(fcr: u8) -> Self {
        let mut port = Self::new();
        port.write(FCR, fcr);
        port
    }

    /// Does something to the UART with its line connected.
    fn with<R>(&mut self, act: impl FnOnce(&mut Uart, Now, &mut dyn FnMut(bool)) -> R) -> R {
        let now = Now {
            counter: CounterTicks(self.now),
            timer: TimerTicks(self.now),
        };
        let (level, edges) = (&mut self.level, &mut self.edges);
        act(&mut self.uart, now, &mut |asserted| {
            *edges += u32::from(asserted && !*level);
            *level = asserted;
        })
    }

    fn read(&mut self, register: u16) -> u8 {
        self.with(|uart, now, mut line| uart.read(now, register, &mut line))
    }

    fn write(&mut self, register: u16, value: u8) {
        let sent = self.with(|uart, now, mut line| uart.write(now, register, value, &mut line));
        self.sent.extend(sent);
    }

    fn receive(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.with(|uart, now, mut line| uart.receive(now, byte, &mut line));
        }
    }

    fn receive_break(&mut self) {
        self.with(|uart, now, mut line| uart.receive_break(now, &mut line));
    }

    fn advance(&mut self, ticks: u64) {
        self.now += ticks;
        self.with(|uart, now, mut line| uart.expire(now, &mut line));
    }

    /// Interrupts since the last call.
    fn take_edges(&mut self) -> u32 {
        core::mem::take(&mut self.edges)
    }
}

#[test]
fn bytes_written_go_out_at_once_and_the_transmitter_is_always_ready() {
    let mut port = Port::new();
    for &byte in b"Linux" {
        assert_eq!(port.read(LSR), TRANSMITTER_IDLE);
        port.write(THR, byte);
    }
    assert_eq!(port.sent, b"Linux");
    assert_eq!(port.read(LSR), TRANSMITTER_IDLE);
}

#[test]
fn the_scratch_register_and_the_divisor_latch_keep_what_is_written() {
    let mut port = Port::new();
    port.write(SCR, 0xa5);
    assert_eq!(port.read(SCR), 0xa5);
    port.write(LCR, 0x80 | N81);
    port.write(0, 0x34);
    port.write(1, 0x12);
    assert_eq!((port.read(0), port.read(1)), (0x34, 0x12));
    port.write(LCR, N81);
    assert_eq!(port.sent, b"");
    assert_eq!(port.read(IER), 0);
}

#[test]
fn reserved_bits_of_ier_and_mcr_read_as_zero() {
    let mut port = Port::new();
    port.write(IER, 0xff);
    port.write(MCR, 0xff);
    assert_eq!(port.read(IER), 0x0f);
    assert_eq!(port.read(MCR), 0x1f);
}

#[test]
fn linux_recognizes_a_16550a() {
    // autoconfig() of the 8250 driver: IER sticks, loopback works, FIFOs show in IIR.
    let mut port = Port::new();
    port.write(MCR, LOOP | 0x0a);
    assert_eq!(port.read(MSR) & 0xf0, 0x90);
    port.write(MCR, OUT2);
    port.write(FCR, 0x01);
    assert_eq!(port.read(IIR) >> 6, 0b11);
    port.write(FCR, 0x00);
    assert_eq!(port.read(IIR) >> 6, 0b00);
}

#[test]
fn linux_finds_no_transmitter_bug() {
    // serial8250_do_startup(): enabling the interrupt of an empty transmitter raises it,
    // every time (UART_BUG_THRE, UART_BUG_TXEN).
    let mut port = Port::new();
    for _ in 0..2 {
        port.write(IER, THRI);
        assert_eq!(port.read(IIR), 0x02);
        assert_eq!(port.read(IIR), 0x01, "told once");
        port.write(IER, 0);
    }
    // Writing the bit that is set already is not enabling.
    port.write(IER, THRI);
    port.read(IIR);
    port.take_edges();
    port.write(IER, THRI);
    assert_eq!((port.read(IIR), port.take_edges()), (0x01, 0));
}

#[test]
fn a_transmitter_interrupt_always_answers_something_the_guest_did() {
    let mut port = Port::new();
    port.write(IER, THRI);
    assert_eq!(port.take_edges(), 1);
    assert_eq!(port.read(IIR), 0x02);
    assert!(!port.level);
    // Sixteen bytes from the interrupt handler, the way Linux fills a FIFO.
    for _ in 0..16 {
        port.write(THR, b'x');
    }
    assert!(port.level, "the transmitter has run empty again");
    assert_eq!(port.read(IIR), 0x02);
    port.take_edges();
    port.advance(1_000_000 * BIT);
    assert_eq!((port.level, port.take_edges()), (false, 0), "no storm");
}

#[test]
fn each_byte_written_makes_an_edge_for_an_edge_triggered_controller() {
    let mut port = Port::new();
    port.write(IER, THRI);
    port.take_edges();
    port.write(THR, b'x');
    assert_eq!((port.level, port.take_edges()), (true, 1));
}

#[test]
fn loopback_alone_gates_the_interrupt() {
    let mut port = Port::new();
    port.write(IER, THRI);
    for out2 in [0, OUT2] {
        port.write(MCR, out2 | LOOP);
        assert!(!port.level, "in loopback, with OUT2 {out2}");
        port.write(MCR, out2);
        assert!(port.level, "with OUT2 {out2}");
    }
}

/// `uartinit` of xv6, which clears all of the modem control register and has its input from
/// interrupts.
#[test]
fn a_driver_that_never_sets_out2_is_told_of_what_comes_in() {
    let mut port = Port::new();
    port.write(FCR, 0);
    port.write(MCR, 0);
    port.write(IER, RDI);
    port.read(IIR);
    port.read(RBR);
    assert!(!port.level);
    port.receive(b"l");
    assert!(port.level);
    assert_eq!(port.read(RBR), b'l');
}

#[test]
fn without_fifos_one_byte_fits_and_the_next_overruns_it() {
    let mut port = Port::new();
    port.write(IER, RDI);
    assert!(port.uart.can_receive());
    port.receive(b"a");
    assert!(port.level);
    assert!(!port.uart.can_receive());
    assert_eq!(port.read(IIR), 0x04);
    port.receive(b"b");
    assert_eq!(port.read(LSR), TRANSMITTER_IDLE | 0x03);
    assert_eq!(
        port.read(LSR),
        TRANSMITTER_IDLE | 0x01,
        "an error is told once"
    );
    assert_eq!(port.read(RBR), b'b');
    assert!(!port.level);
    assert_eq!(port.read(LSR), TRANSMITTER_IDLE);
}

#[test]
fn the_fifo_keeps_sixteen_bytes_in_order_and_drops_the_seventeenth() {
    let mut port = Port::with_fifo(0x01);
    port.receive(b"0123456789abcdef");
    assert!(!port.uart.can_receive());
    port.receive(b"X");
    assert_eq!(port.read(LSR), TRANSMITTER_IDLE | 0x03);
    let mut received = Vec::new();
    while port.read(LSR) & 1 != 0 {
        received.push(port.read(RBR));
    }
    assert_eq!(received, b"0123456789abcdef");
    assert!(port.uart.can_receive());
}

#[test]
fn received_data_interrupts_at_the_trigger_level_and_until_below_it() {
    for (fcr, trigger) in [(0x01, 1), (0x41, 4), (0x81, 8), (0xc1, 14)] {
        let mut port = Port::with_fifo(fcr);
        port.write(IER, RDI);
        port.receive(&vec![b'x'; trigger - 1]);
        assert!(!port.level, "trigger level {trigger}");
        port.receive(b"x");
        assert!(port.level);
        assert_eq!(port.read(IIR), 0xc4);
        assert!(port.level, "IIR does not settle it");
        port.read(RBR);
        assert!(!port.level);
    }
}

#[test]
fn bytes_below_the_trigger_level_are_announced_after_four_character_times() {
    let mut port = Port::with_fifo(0xc1);
    port.write(IER, RDI);
    port.receive(b"ab");
    assert_eq!(port.uart.next_deadline(), Some(TimerTicks(40 * BIT)));
    port.advance(40 * BIT - 1);
    assert!(!port.level);
    port.advance(1);
    assert!(port.level);
    assert_eq!(port.uart.next_deadline(), None);
    assert_eq!(port.read(IIR), 0xcc);
    // Reading one byte settles it, and the other starts to wait anew.
    port.read(RBR);
    assert!(!port.level);
    assert_eq!(port.uart.next_deadline(), Some(TimerTicks(80 * BIT)));
    port.read(RBR);
    assert_eq!(port.uart.next_deadline(), None);
}

#[test]
fn only_a_read_settles_a_timeout() {
    let mut port = Port::with_fifo(0xc1);
    port.write(IER, RDI);
    port.receive(b"ab");
    port.advance(40 * BIT);
    assert!(port.level);
    port.receive(b"c");
    assert!(port.level, "another byte does not take the news back");
    assert_eq!(port.read(IIR), 0xcc);
    assert_eq!(port.take_edges(), 1);
    assert_eq!(port.uart.next_deadline(), None);
    port.read(RBR);
    assert!(!port.level);
    assert_eq!(port.uart.next_deadline(), Some(TimerTicks(80 * BIT)));
}

#[test]
fn a_character_time_follows_the_frame_and_the_divisor() {
    for (lcr, divisor, bits_by_two) in [
        (0x03, 1, 20),
        (0x03, 12, 20 * 12),
        (0x00, 1, 14),       // 5N1
        (0x04, 1, 15),       // 5N1.5
        (0x07, 1, 22),       // 8N2
        (0x0b, 1, 22),       // 8O1
        (0x1f, 96, 24 * 96), // 8E2
        (0x03, 0, 20),
    ] {
        let mut port = Port::with_fifo(0xc1);
        port.write(LCR, 0x80);
        port.write(0, divisor);
        port.write(1, 0);
        port.write(LCR, lcr);
        port.receive(b"a");
        assert_eq!(
            port.uart.next_deadline(),
            Some(TimerTicks(4 * bits_by_two * BIT / 2)),
            "LCR {lcr:#x}, divisor {divisor}"
        );
    }
}

#[test]
fn without_fifos_there_is_no_timeout() {
    let mut port = Port::new();
    port.receive(b"a");
    assert_eq!(port.uart.next_deadline(), None);
}

#[test]
fn clearing_the_receiver_or_switching_fifos_forgets_bytes_and_timeout() {
    for fcr in [0x03, 0x00] {
        let mut port = Port::with_fifo(0xc1);
        port.write(IER, RDI);
        port.receive(b"abc");
        port.advance(40 * BIT);
        assert!(port.level);
        port.write(FCR, fcr);
        assert!(!port.level);
        assert_eq!(port.read(LSR), TRANSMITTER_IDLE);
        assert_eq!(port.uart.next_deadline(), None);
    }
    // Clearing the transmitter, or writing a new trigger level, touches nothing received.
    let mut port = Port::with_fifo(0x01);
    port.receive(b"abc");
    port.write(FCR, 0x85);
    assert_eq!(port.read(RBR), b'a');
}

#[test]
fn the_most_urgent_cause_is_told_first() {
    let mut port = Port::with_fifo(0x81);
    port.write(IER, RDI | THRI | RLSI | MSI);
    // Modem status: loopback connects the inputs to the outputs, which are low but OUT2.
    port.write(MCR, LOOP | OUT2);
    port.write(MCR, OUT2);
    port.receive(&[b'x'; 17]);
    assert_eq!(port.read(IIR), 0xc6, "overrun");
    port.read(LSR);
    assert_eq!(port.read(IIR), 0xc4, "received data");
    for _ in 0..9 {
        port.read(RBR);
    }
    port.advance(40 * BIT);
    assert_eq!(port.read(IIR), 0xcc, "character timeout");
    for _ in 0..7 {
        port.read(RBR);
    }
    assert_eq!(port.read(IIR), 0xc2, "transmitter empty");
    assert_eq!(port.read(IIR), 0xc0, "modem status");
    assert!(port.level);
    port.read(MSR);
    assert_eq!(port.read(IIR), 0xc1, "nothing");
    assert!(!port.level);
}

#[test]
fn a_cause_that_is_not_enabled_is_not_told() {
    let mut port = Port::new();
    port.receive(b"ab");
    port.write(THR, b'x');
    assert_eq!(port.read(IIR), 0x01);
    assert!(!port.level);
}

#[test]
fn a_break_is_a_zero_byte_with_its_error_shown_at_the_head() {
    let mut port = Port::with_fifo(0x01);
    port.write(IER, RLSI);
    port.receive(b"a");
    port.receive_break();
    port.receive(b"h");
    assert_eq!(
        port.read(LSR),
        TRANSMITTER_IDLE | 0x81,
        "somewhere in the FIFO"
    );
    assert!(!port.level);
    port.read(RBR);
    assert!(port.level);
    assert_eq!(port.read(IIR), 0xc6);
    assert_eq!(port.read(LSR), TRANSMITTER_IDLE | 0x91);
    assert!(!port.level);
    assert_eq!(port.read(RBR), 0);
    assert_eq!(port.read(LSR), TRANSMITTER_IDLE | 0x01);
    assert_eq!(port.read(RBR), b'h');
}

#[test]
fn an_error_that_was_told_is_no_error_in_the_fifo() {
    let mut port = Port::with_fifo(0x01);
    port.receive_break();
    assert_eq!(port.read(LSR), TRANSMITTER_IDLE | 0x91);
    assert_eq!(port.read(LSR), TRANSMITTER_IDLE | 0x01);
    port.receive(b"a");
    port.receive_break();
    assert_eq!(port.read(LSR), TRANSMITTER_IDLE | 0x81, "a later one is");
    assert_eq!(port.read(LSR), TRANSMITTER_IDLE | 0x81, "until it is told");
}

#[test]
fn in_loopback_the_receiver_hears_the_transmitter_and_nothing_else() {
    let mut port = Port::with_fifo(0x01);
    port.write(MCR, LOOP);
    assert!(!port.uart.can_receive());
    port.receive(b"wire");
    port.write(THR, b'L');
    assert_eq!(port.sent, b"");
    assert_eq!(port.read(RBR), b'L');
    assert_eq!(port.read(LSR), TRANSMITTER_IDLE);
    port.write(LCR, 0x40 | N81);
    assert_eq!(port.read(LSR) & 0x11, 0x11, "it hears a break, too");
}

#[test]
fn the_modem_is_there_and_its_inputs_follow_the_outputs_in_loopback() {
    let mut port = Port::new();
    assert_eq!(port.read(MSR), 0xb0);
    for (outputs, inputs) in [(0x01, 0x20), (0x02, 0x10), (0x04, 0x40), (0x08, 0x80)] {
        port.write(MCR, LOOP | outputs);
        assert_eq!(port.read(MSR) & 0xf0, inputs);
    }
    port.write(MCR, 0);
    assert_eq!(port.read(MSR) & 0xf0, 0xb0);
}

#[test]
fn changes_of_the_modem_inputs_are_told_once() {
    let mut port = Port::new();
    port.write(MCR, LOOP | 0x0f);
    assert_eq!(
        port.read(MSR),
        0xf0,
        "RI rising is no event, and nothing else changed"
    );
    port.write(MCR, LOOP);
    assert_eq!(port.read(MSR), 0x0f);
    assert_eq!(port.read(MSR), 0x00);
    port.write(MCR, LOOP | 0x01);
    port.write(MCR, LOOP);
    assert_eq!(
        port.read(MSR),
        0x02,
        "a delta stays though the level came back"
    );
}

#[test]
fn registers_of_status_cannot_be_written() {
    let mut port = Port::new();
    port.write(LSR, 0xff);
    port.write(MSR, 0xff);
    assert_eq!(port.read(LSR), TRANSMITTER_IDLE);
    assert_eq!(port.read(MSR), 0xb0);
}

proptest::proptest! {
    /// The line is asserted exactly while IIR tells of a cause.
    #[test]
    fn line_and_identification_agree_whatever_happens(
        steps in proptest::collection::vec((0u16..20, proptest::num::u8::ANY), 0..300)
    ) {
        let mut port = Port::new();
        for (what, value) in steps {
            match what {
                0..8 => port.write(what, value),
                8..16 => {
                    port.read(what - 8);
                }
                16 | 17 => port.receive(&[value]),
                18 => port.receive_break(),
                _ => port.advance(u64::from(value) * BIT),
            }
            let is_looped = port.uart.modem_control.contains(ModemControl::LOOPBACK);
            let pending = port.uart.clone().read(Now::default(), IIR, &mut |_| {}) & 1 == 0;
            proptest::prop_assert_eq!(port.level, pending && !is_looped);
        }
    }
}
