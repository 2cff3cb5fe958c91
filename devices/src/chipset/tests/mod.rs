extern crate std;

use core::sync::atomic::{AtomicU64, Ordering};
use std::sync::Arc;
use std::{rc::Rc, string::String, vec, vec::Vec};

use super::*;
use crate::apic_message::{DeliveryMode, Destination, Trigger};
use crate::platform_map::{self, gsi, port};
use crate::time::CounterTicks;
use crate::virtio::driver::Ram;

mod firmware;
mod fuzz;
mod interrupts;
mod pci;
mod ports;
mod unheard;
mod virtio;

/// A tick of the guest's TSC is a nanosecond.
const TSC: Hertz = Hertz::new(1_000_000_000);
const DATE: &str = "2026-11-23T16:20:59";
const MILLISECOND: u64 = 1_000_000;

/// A host that records what the chipset sends to it.
#[derive(Default)]
struct Board {
    messages: Vec<ApicMessage>,
    intr: bool,
    sent: Vec<u8>,
    ready: u32,
    power: Vec<PowerRequest>,
    reports: Vec<String>,
}

impl ChipsetHost for Board {
    fn interrupt_message(&mut self, message: ApicMessage) {
        self.messages.push(message);
    }

    fn pic_output(&mut self, asserted: bool) {
        assert_ne!(asserted, self.intr, "only changes are told");
        self.intr = asserted;
    }

    fn serial_transmit(&mut self, byte: u8) {
        self.sent.push(byte);
    }

    fn serial_ready(&mut self) {
        self.ready += 1;
    }

    fn report(&mut self, message: core::fmt::Arguments<'_>) {
        self.reports.push(std::format!("{message}"));
    }

    fn power(&mut self, request: PowerRequest) {
        self.power.push(request);
    }
}

/// A machine without a processor, at whose bus sits the test.
struct Machine {
    config: ChipsetConfig,
    chipset: Chipset,
    board: Board,
    ram: Rc<Ram>,
    time: u64,
}

impl Machine {
    fn new() -> Self {
        Self::with_test_devices(true)
    }

    fn with_test_devices(test_devices: bool) -> Self {
        Self::with_functions(test_devices, Vec::new())
    }

    fn with_functions(test_devices: bool, functions: Vec<Box<dyn PciFunction>>) -> Self {
        Self::with(test_devices, functions, None)
    }

    /// A machine that starts in firmware.
    fn with_firmware(functions: Vec<Box<dyn PciFunction>>, firmware: FirmwareConfig) -> Self {
        Self::with(false, functions, Some(firmware))
    }

    fn with(
        test_devices: bool,
        functions: Vec<Box<dyn PciFunction>>,
        firmware: Option<FirmwareConfig>,
    ) -> Self {
        let config = ChipsetConfig {
            tsc: TSC,
            date: DATE.parse().unwrap(),
            processors: 2,
            ram_size: 256 << 20,
            test_devices,
            firmware,
        };
        Self {
            chipset: Chipset::new(&config, functions, Now::default()),
            config,
            board: Board::default(),
            // The devices that transfer nothing by themselves need none.
            ram: Rc::new(Ram::new(0)),
            time: 0,
        }
    }

    fn now(&self) -> Now {
        Now {
            counter: CounterTicks(self.time),
            timer: TimerTicks(self.time),
        }
    }

    /// The chipset and what surrounds it now.
    fn parts(&mut self) -> (&mut Chipset, Environment<'_>) {
        let env = Environment {
            now: self.now(),
            host: &mut self.board,
        };
        (&mut self.chipset, env)
    }

    /// Runs the work that a call has left.
    fn run_work(&mut self) {
        while let Some(work) = self.chipset.take_work() {
            if work.run(&*self.ram) {
                let (chipset, mut env) = self.parts();
                chipset.finish_work(&work, &mut env);
            }
        }
    }

    /// Calls the chipset when it wants to be.
    fn expire(&mut self) {
        let (chipset, mut env) = self.parts();
        chipset.expire(&mut env);
        self.run_work();
    }

    fn follow_host_time(&mut self, host: u64) {
        let (chipset, mut env) = self.parts();
        chipset.follow_host_time(HostTicks(host), &mut env);
    }

    fn read(&mut self, port: u16, size: u8) -> u32 {
        let (chipset, mut env) = self.parts();
        let value = chipset.port_read(port, size, &mut env);
        self.run_work();
        value
    }

    fn write(&mut self, port: u16, size: u8, value: u32) {
        let (chipset, mut env) = self.parts();
        chipset.port_write(port, size, value, &mut env);
        self.run_work();
    }

    fn mmio_read(&mut self, address: u64, size: u8) -> Option<u64> {
        let (chipset, mut env) = self.parts();
        let value = chipset.mmio_read(address, size, &mut env);
        self.run_work();
        value
    }

    fn serial_receive(&mut self, byte: u8) {
        let (chipset, mut env) = self.parts();
        chipset.serial_receive(byte, &mut env);
    }

    fn press_power_button(&mut self) {
        let (chipset, mut env) = self.parts();
        chipset.press_power_button(&mut env);
    }

    fn inb(&mut self, port: u16) -> u8 {
        self.read(port, 1) as u8
    }

    fn outb(&mut self, port: u16, value: u8) {
        self.write(port, 1, value.into());
    }

    fn mmio_write(&mut self, address: u64, size: u8, value: u64) {
        let (chipset, mut env) = self.parts();
        let claimed = chipset.mmio_write(address, size, value, &mut env);
        assert!(claimed, "{address:#x}");
        self.run_work();
    }

    fn ioapic_write(&mut self, register: u8, value: u32) {
        self.mmio_write(mmio::IOAPIC, 4, register.into());
        self.mmio_write(mmio::IOAPIC + 0x10, 4, value.into());
    }

    /// Lets `pin` of the IOAPIC send `vector` to local APIC 0.
    fn unmask_pin(&mut self, pin: u32, vector: u8, trigger: Trigger) {
        let level = if trigger == Trigger::Level {
            1 << 15
        } else {
            0
        };
        self.ioapic_write(0x10 + 2 * pin as u8, u32::from(vector) | level);
    }

    /// Initializes the 8259A pair with vectors from 0x30 on and unmasks one interrupt.
    fn unmask_pic(&mut self, irq: u8) {
        for (port, icw) in [(port::PIC_MASTER, 0x30), (port::PIC_SLAVE, 0x38)] {
            self.outb(port, 0x11);
            self.outb(port + 1, icw);
            self.outb(port + 1, if icw == 0x30 { 0x04 } else { 0x02 });
            self.outb(port + 1, 0x01);
        }
        let masked = !(1u16 << irq | 1 << irq::CASCADE);
        self.outb(port::PIC_MASTER + 1, masked as u8);
        self.outb(port::PIC_SLAVE + 1, (masked >> 8) as u8);
    }

    /// Lets time pass until `time`, expiring each deadline when it has come.
    fn run_until(&mut self, time: u64) {
        while let Some(deadline) = self.chipset.next_deadline().filter(|at| at.0 <= time) {
            self.time = self.time.max(deadline.0);
            self.expire();
        }
        self.time = time;
    }

    /// The vectors of the messages sent since the last call.
    fn take_vectors(&mut self) -> Vec<u8> {
        core::mem::take(&mut self.board.messages)
            .iter()
            .map(|message| message.vector)
            .collect()
    }

    /// Programs PIT channel 0 as a rate generator of 1000 Hz. Its output rises at once, and
    /// then with every period.
    fn start_pit(&mut self) {
        self.outb(port::PIT + 3, 0x34);
        self.outb(port::PIT, (1193 & 0xff) as u8);
        self.outb(port::PIT, (1193 >> 8) as u8);
    }

    fn cmos_read(&mut self, index: u8) -> u8 {
        self.outb(port::RTC_INDEX, index);
        self.inb(port::RTC_DATA)
    }

    fn cmos_write(&mut self, index: u8, value: u8) {
        self.outb(port::RTC_INDEX, index);
        self.outb(port::RTC_DATA, value);
    }

    fn hpet_write(&mut self, register: u64, value: u64) {
        self.mmio_write(mmio::HPET + register, 8, value);
    }

    fn acknowledge_pic(&mut self) -> u8 {
        let (chipset, mut env) = self.parts();
        chipset.acknowledge_pic(&mut env)
    }
}
