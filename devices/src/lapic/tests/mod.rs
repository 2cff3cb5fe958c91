//! The local APIC as its guest, its owner and other CPUs see it.

mod fuzz;
mod incoming;
mod lint;
mod modes;
mod priority;
mod registers;
mod sending;
mod timer;
mod timer_steps;
mod virtualized;

use alloc::vec::Vec;

use super::*;
use crate::apic_message::{DeliveryMode, Destination, Trigger};
use crate::time::{CounterTicks, Now, TimerTicks};

/// Everything that a local APIC has sent.
#[derive(Debug, Default)]
struct Recorder {
    messages: Vec<ApicMessage>,
    ends: Vec<u8>,
}

impl ApicBus for Recorder {
    fn send(&mut self, message: ApicMessage) {
        self.messages.push(message);
    }

    fn end_of_interrupt(&mut self, vector: u8) {
        self.ends.push(vector);
    }
}

/// A processor's APIC, its bus, and the time.
struct Cpu {
    apic: LocalApic,
    bus: Recorder,
    now: Now,
}

const TSC_HZ: u64 = 2_500_000_000;
const TIMER_HZ: u64 = 25_000_000;
/// Guest ticks in a period of the timer's input clock.
const TICKS: u64 = TSC_HZ / TIMER_HZ;

const LVT_MASKED: u32 = 1 << 16;

fn config(id: u32) -> ApicConfig {
    ApicConfig {
        id,
        bootstrap: id == 0,
        tsc_hz: Hertz::new(TSC_HZ),
        timer_hz: Hertz::new(TIMER_HZ),
        physical_address_bits: 46,
        cmci: false,
    }
}

impl Cpu {
    /// After power-up.
    fn powered_up(id: u32) -> Self {
        Self {
            apic: LocalApic::new(config(id)),
            bus: Recorder::default(),
            now: Now::default(),
        }
    }

    /// In xAPIC mode, enabled by software, with spurious vector 0xff.
    fn xapic(id: u32) -> Self {
        let mut cpu = Self::powered_up(id);
        cpu.write(Register::SVR, 0x1ff);
        cpu
    }

    /// In x2APIC mode, enabled by software, with spurious vector 0xff.
    fn x2apic(id: u32) -> Self {
        let mut cpu = Self::xapic(id);
        cpu.apic.set_apic_base(0xfee0_0c00).unwrap();
        cpu
    }

    fn write(&mut self, register: Register, value: u32) {
        self.apic
            .mmio_write(self.now, offset(register), 4, value.into(), &mut self.bus);
    }

    fn read(&mut self, register: Register) -> u32 {
        self.apic.mmio_read(self.now, offset(register), 4) as u32
    }

    fn wrmsr(&mut self, msr: u32, value: u64) -> Result<(), GeneralProtection> {
        self.apic.msr_write(self.now, msr, value, &mut self.bus)
    }

    fn rdmsr(&mut self, msr: u32) -> Result<u64, GeneralProtection> {
        self.apic.msr_read(self.now, msr)
    }

    /// Lets `ticks` of guest time pass, on both lines.
    fn wait(&mut self, ticks: u64) {
        self.now = at(self.now.timer.0 + ticks);
        self.apic.expire(self.now);
    }

    fn interrupt(&mut self, vector: u8, level: bool) {
        let trigger = if level { Trigger::Level } else { Trigger::Edge };
        self.apic
            .deliver(&message(DeliveryMode::Fixed, vector, trigger));
    }

    /// Takes and ends the pending vector.
    fn handle(&mut self) -> Option<u8> {
        let pending = self.apic.pending()?;
        let vector = self.apic.acknowledge();
        assert_eq!(pending, Pending::Vector(vector));
        self.apic.end_of_interrupt(&mut self.bus);
        Some(vector)
    }

    fn esr(&mut self) -> u32 {
        self.write(Register::ESR, 0);
        self.read(Register::ESR)
    }
}

fn at(ticks: u64) -> Now {
    Now {
        counter: CounterTicks(ticks),
        timer: TimerTicks(ticks),
    }
}

fn offset(register: Register) -> u16 {
    (register.word() * 4) as u16
}

fn message(delivery_mode: DeliveryMode, vector: u8, trigger: Trigger) -> ApicMessage {
    ApicMessage {
        destination: Destination::Physical(0),
        delivery_mode,
        vector,
        trigger,
    }
}
