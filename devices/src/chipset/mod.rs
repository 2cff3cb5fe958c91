//! The chipset of one VM: all its devices but the local APICs, and the wires between them.
//!
//! Whoever runs the guest hands in its port and MMIO accesses together with the time
//! ([`Environment`]), calls [`Chipset::expire`] when [`Chipset::next_deadline`] has come, and is
//! called back through [`ChipsetHost`] for all that leaves the chipset.
//!
//! Devices that move data between the guest's RAM and elsewhere do that apart from all this, so that
//! other processors can use the chipset meanwhile: after a call, there may be work to
//! [take](Chipset::take_work), to [run](PendingWork::run) with the guest's RAM, and to
//! [take up](Chipset::finish_work).
//!
//! A device is a file here that implements [`bus::Device`], and a row of the table below, which
//! says where it is. The numbers that firmware tables tell a guest, too, have their names in
//! [`crate::platform_map`].
//!
//! ```text
//!  PIT ─┬─ HPET legacy ─ IRQ 0 ─┐         ┌─ 8259A pair ── INTR (pic_output)
//!  RTC ─┘  replacement ─ IRQ 8 ─┤         │
//!  COM1 ──────────────── IRQ 4 ─┼─ IRQ n ─┤
//!  i8042 ─────────────── IRQ 1 ─┤         │
//!  PM1 ───────────────── IRQ 9 ─┘         └─ IOAPIC ─┬─── messages (interrupt_message)
//!  HPET ──────────────── pins of its choice ─────────┤
//!  PCI ─┬─ INTA to INTD (and IRQ 10, 11) ────────────┘
//!       └─ MSI-X ──────────────────────────────────────── messages
//! ```

#[macro_use]
mod table;

mod accesses;
pub mod acpi_pm;
pub mod bus;
pub mod debug_exit;
pub mod fw_cfg;
pub mod hpet;
pub mod i8042;
pub mod ioapic;
pub mod pci;
pub mod pic;
pub mod pit;
pub mod pm1;
pub mod pm_timer;
pub mod post_port;
mod reset;
pub mod rtc;
pub mod speaker_port;
pub mod test_device;
#[cfg(test)]
mod tests;
pub mod uart;
pub mod vga_text;
mod wires;

use alloc::boxed::Box;
use alloc::vec::Vec;

use crate::apic_message::ApicMessage;
use crate::platform_map::{HPET_ROUTES, IOAPIC_PINS, SLEEP_TYPE_S5, irq, mmio, port};
use crate::time::{Hertz, HostTicks, Now, TimerTicks};
use acpi_pm::AcpiPm;
use bus::{Context, Decoder, Device, Outputs, Region, Space};
use bus::{byte_ports, memory, port_of_size, wide_ports};
use debug_exit::DebugExit;
use fw_cfg::FwCfg;
use hpet::Hpet;
use i8042::I8042;
use ioapic::IoApicWindow;
use pci::{BusSetup, PciFunction, PciHost};
use pic::PicPorts;
use post_port::PostPort;
use reset::{ResetControl, SystemControlA};
use rtc::{NaiveDateTime, Rtc};
use speaker_port::PitAndSpeaker;
use test_device::TestDevice;
use uart::Uart;
use vga_text::{TextScreen, VgaText};
use wires::{Interrupts, Wire};

pub use bus::Environment;
pub use pci::PendingWork;

devices! { |config, functions, now|
    pic: PicPorts = PicPorts, at [
        byte_ports(port::PIC_MASTER, 2), byte_ports(port::PIC_SLAVE, 2), byte_ports(port::ELCR_MASTER, 2)
    ], wired to [];
    ioapic: IoApicWindow = IoApicWindow, at [memory(mmio::IOAPIC, mmio::IOAPIC_LENGTH)], wired to [];
    pit: PitAndSpeaker = PitAndSpeaker::new(config.tsc),
        at [byte_ports(port::PIT, 4), byte_ports(port::SYSTEM_CONTROL_B, 1)], wired to [Wire::Pit];
    rtc: Rtc = rtc_of(config, now), at [byte_ports(port::RTC_INDEX, 2)], wired to [Wire::Rtc];
    hpet: Hpet = Hpet::new(config.tsc, HPET_ROUTES), at [memory(mmio::HPET, mmio::HPET_LENGTH)], wired to [];
    acpi: AcpiPm = AcpiPm::new(config.tsc, SLEEP_TYPE_S5, now), at [
        wide_ports(port::PM1A_EVENT, port::PM1A_EVENT_LENGTH as u16),
        wide_ports(port::PM1A_CONTROL, port::PM1A_CONTROL_LENGTH as u16),
        wide_ports(port::PM_TIMER, port::PM_TIMER_LENGTH as u16)
    ], wired to [Wire::Irq(irq::SCI)];
    com1: Uart = Uart::new(config.tsc), at [byte_ports(port::COM1, 8)], wired to [Wire::Irq(irq::COM1)];
    i8042: I8042 = I8042::new(),
        at [byte_ports(port::I8042_DATA, 1), byte_ports(port::I8042_COMMAND, 1)], wired to [Wire::Irq(irq::KEYBOARD)];
    system_control_a: SystemControlA = SystemControlA::new(), at [byte_ports(port::SYSTEM_CONTROL_A, 1)], wired to [];
    reset_control: ResetControl = ResetControl::new(), at [byte_ports(port::RESET_CONTROL, 1)], wired to [];
    vga: VgaText = VgaText::new(config.tsc), at [
        byte_ports(port::VGA_CRTC, 2), byte_ports(port::VGA_INPUT_STATUS_1, 1), byte_ports(port::VGA_MISCELLANEOUS, 1)
    ], wired to [];
    pci: PciHost = PciHost::new(functions, config.bus_setup()), at [
        port_of_size(port::PCI_CONFIG_ADDRESS, 4), wide_ports(port::PCI_CONFIG_DATA, 4),
        memory(mmio::PCI_CONFIG, mmio::PCI_CONFIG_LENGTH), memory(mmio::PCI_WINDOW, mmio::PCI_WINDOW_LENGTH)
    ], wired to [Wire::Pci(0), Wire::Pci(1), Wire::Pci(2), Wire::Pci(3)];
    post: PostPort = PostPort::new(), at [byte_ports(port::POST, 1)], wired to [];
    debug_exit: Option<DebugExit> = config.test_devices.then_some(DebugExit), at [wide_ports(port::DEBUG_EXIT, 1)], wired to [];
    fw_cfg: Option<FwCfg> = fw_cfg_of(config),
        at [port_of_size(port::FW_CFG_SELECTOR, 2), byte_ports(port::FW_CFG_DATA, 1)], wired to [];
    test_device: Option<TestDevice> = config.test_devices.then(TestDevice::new), at [
        byte_ports(port::TEST_LATCH, 4), byte_ports(port::TEST_BYTES, 4),
        wide_ports(port::TEST_IRQ_LINES, IOAPIC_PINS as u16), memory(mmio::TEST_MEMORY, mmio::TEST_MEMORY_LENGTH)
    ], wired to [];
}

/// A guest's request to its power supply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PowerRequest {
    /// A switch-off of the VM (ACPI S5).
    Off,
    /// A reset of the VM: the keyboard controller's pulse, port 0x92 or the reset control register.
    Reset,
    /// The end of the VM with this code: a write to the debug-exit port.
    DebugExit(u32),
}

/// The surroundings of the chipset: the local APICs, the other end of the serial line, the power
/// supply.
pub trait ChipsetHost {
    /// Sends an interrupt of the IOAPIC's or a device's to the local APICs.
    fn interrupt_message(&mut self, message: ApicMessage);

    /// Takes a change of the INTR output of the 8259A pair to `asserted`. It is wired to LINT0 of
    /// the boot processor's local APIC.
    fn pic_output(&mut self, asserted: bool);

    /// Takes `byte`, which the guest has sent over COM1.
    fn serial_transmit(&mut self, byte: u8);

    /// Hears that COM1 had no room for input ([`Chipset::serial_can_receive`]) and now has.
    fn serial_ready(&mut self) {}

    /// Takes what a device has to tell the operator about what the guest did with it.
    fn report(&mut self, _message: core::fmt::Arguments<'_>) {}

    /// Takes the guest's request for a change of power. The access that did it completes as usual;
    /// the guest is not to be resumed after it.
    fn power(&mut self, request: PowerRequest);
}

/// The properties of a machine that starts in firmware: it leaves to the firmware what is otherwise
/// done when the machine is made, and tells it what there is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FirmwareConfig {
    /// RAM below 4 GiB, in bytes.
    pub low_ram: u64,
    /// RAM from 4 GiB on, in bytes.
    pub high_ram: u64,
    /// The files in the firmware-configuration interface.
    pub files: Vec<fw_cfg::File>,
}

/// The properties that differ from one machine to the next.
#[derive(Clone, Debug)]
pub struct ChipsetConfig {
    /// Frequency of the guest's TSC, the unit of its time.
    pub tsc: Hertz,
    /// The date and time (UTC) that the RTC shows at the start.
    pub date: NaiveDateTime,
    /// The number of the machine's processors.
    pub processors: u16,
    /// Its RAM, in bytes.
    pub ram_size: u64,
    /// Whether it has what test kernels expect and no other machine has: the debug-exit port,
    /// the test device and the firmware-configuration interface.
    pub test_devices: bool,
    /// The facts that its firmware is told, if it starts in firmware.
    pub firmware: Option<FirmwareConfig>,
}

impl ChipsetConfig {
    /// Returns who sets up the PCI bus.
    const fn bus_setup(&self) -> BusSetup {
        match self.firmware {
            Some(_) => BusSetup::ByFirmware,
            None => BusSetup::Done,
        }
    }
}

/// Returns the RTC, whose memory tells firmware how large the machine is.
fn rtc_of(config: &ChipsetConfig, now: Now) -> Rtc {
    let mut rtc = Rtc::new(config.date, config.tsc, now);
    if let Some(firmware) = &config.firmware {
        rtc.store_machine(firmware.low_ram, firmware.high_ram, config.processors);
    }
    rtc
}

/// Returns the firmware-configuration interface, which firmware asks and test kernels do.
fn fw_cfg_of(config: &ChipsetConfig) -> Option<FwCfg> {
    let files = config.firmware.as_ref().map(|firmware| &*firmware.files);
    (config.test_devices || files.is_some()).then(|| {
        FwCfg::new(
            config.processors,
            config.ram_size,
            files.unwrap_or_default(),
        )
    })
}

/// The chipset of one VM. See the [module documentation](self).
#[derive(Debug)]
pub struct Chipset {
    devices: Devices,
    interrupts: Interrupts,
    ports: Decoder<Id>,
    memory: Decoder<Id>,
    /// The time at which each device next needs to expire, by its number.
    deadlines: [TimerTicks; Id::ALL.len()],
    /// The time at which [`Chipset::expire`] is next needed: the earliest of the deadlines.
    next_deadline: TimerTicks,
    /// The devices whose deadlines depend on whether their edges are heard: a bit for each.
    edge_sources: u32,
    /// The host time at which something on the PCI bus may go on; `u64::MAX` for never.
    next_host_deadline: HostTicks,
    /// The number of times that one of both has been moved.
    deadline_changes: u32,
}

const _: () = assert!(Id::ALL.len() <= u32::BITS as usize, "a bit for each device");

/// Returns the devices whose bits are set.
fn set_of(bits: u32) -> impl Iterator<Item = Id> {
    Id::ALL
        .iter()
        .copied()
        .filter(move |&id| bits >> id as u32 & 1 != 0)
}

/// The deadline of a device that has none.
const NEVER: TimerTicks = TimerTicks(u64::MAX);

impl Chipset {
    /// Makes a chipset as firmware leaves it: interrupts masked, timers stopped, ACPI mode on. On
    /// its PCI bus are `functions`, the first of them device 1. Where the machine starts in firmware, the bus is
    /// as after power-up.
    #[must_use]
    pub fn new(config: &ChipsetConfig, functions: Vec<Box<dyn PciFunction>>, now: Now) -> Self {
        let mut devices = Devices::new(config, functions, now);
        let mut ports = Decoder::new();
        let mut memory = Decoder::new();
        for &id in Id::ALL {
            if !devices.get(id).is_present() {
                continue;
            }
            for (number, &region) in id.regions().iter().enumerate() {
                match region.space {
                    Space::Ports => ports.add(region, number, id),
                    Space::Memory => memory.add(region, number, id),
                }
            }
        }
        let mut chipset = Self {
            devices,
            interrupts: Interrupts::new(),
            ports,
            memory,
            deadlines: [NEVER; Id::ALL.len()],
            next_deadline: NEVER,
            edge_sources: 0,
            next_host_deadline: HostTicks(u64::MAX),
            deadline_changes: 0,
        };
        for &id in Id::ALL {
            chipset.update_deadline(id);
        }
        chipset
    }

    /// Returns when [`Chipset::expire`] is next needed.
    #[inline]
    #[must_use]
    pub fn next_deadline(&self) -> Option<TimerTicks> {
        (self.next_deadline != NEVER).then_some(self.next_deadline)
    }

    /// Returns the host time at which [`Chipset::follow_host_time`] is next needed, as what the VM may have of the
    /// machine lets a device go on; `u64::MAX` for never.
    #[inline]
    #[must_use]
    pub const fn next_host_deadline(&self) -> HostTicks {
        self.next_host_deadline
    }

    /// Returns a number that differs from what it was if a deadline has been moved.
    #[inline]
    #[must_use]
    pub const fn deadline_changes(&self) -> u32 {
        self.deadline_changes
    }

    /// Follows that host time has come to `host`. What is due then [expires](Self::expire) next.
    #[inline]
    pub fn follow_host_time(&mut self, host: HostTicks, env: &mut Environment<'_>) {
        if self.next_host_deadline <= host {
            self.with_device(Id::pci, env, |devices, cx| {
                devices.pci.follow_host_time(host, cx)
            });
        }
    }

    /// Does what is due.
    pub fn expire(&mut self, env: &mut Environment<'_>) {
        if env.now.timer < self.next_deadline {
            return;
        }
        for &id in Id::ALL {
            if self.deadlines[id as usize] <= env.now.timer {
                let mut cx = context(&mut self.interrupts, id, env);
                self.devices.get(id).expire(&mut cx);
                self.update_deadline(id);
            }
        }
    }

    /// Returns work of a device's that a call has left to be run, if there is some.
    #[inline]
    #[must_use]
    pub fn take_work(&mut self) -> Option<PendingWork> {
        self.devices.pci.take_work()
    }

    /// Takes up what has come of work that was run: interrupts, or more to do later.
    pub fn finish_work(&mut self, done: &PendingWork, env: &mut Environment<'_>) {
        self.with_device(Id::pci, env, |devices, cx| {
            devices.pci.finish_work(done, cx)
        });
    }

    /// Puts all devices into the state that they have after power-up. The RTC keeps its time and
    /// its memory.
    pub fn reset(&mut self, env: &mut Environment<'_>) {
        for &id in Id::ALL {
            let mut cx = context(&mut self.interrupts, id, env);
            self.devices.get(id).reset(&mut cx);
            self.update_deadline(id);
        }
    }

    /// Follows a call to a device that may have moved its deadline.
    fn update_deadline(&mut self, id: Id) {
        let outputs = Outputs::new(&self.interrupts, id.wires());
        let deadline = self.devices.get(id).next_deadline(&outputs);
        let deadline = deadline.unwrap_or(NEVER);
        let bit = 1 << id as u32;
        self.edge_sources = self.edge_sources & !bit | if outputs.asked() { bit } else { 0 };
        let before = core::mem::replace(&mut self.deadlines[id as usize], deadline);
        if deadline != before {
            let next = self.deadlines.iter().copied().min().unwrap_or(NEVER);
            if core::mem::replace(&mut self.next_deadline, next) != next {
                self.note_deadline_change();
            }
        }
        if id == Id::pci {
            let host = self.devices.pci.next_host_deadline();
            let host = host.unwrap_or(HostTicks(u64::MAX));
            if core::mem::replace(&mut self.next_host_deadline, host) != host {
                self.note_deadline_change();
            }
        }
    }

    const fn note_deadline_change(&mut self) {
        self.deadline_changes = self.deadline_changes.wrapping_add(1);
    }

    /// Lets happen what nobody has heard so far, before somebody may start to listen.
    fn expire_edge_sources(&mut self, env: &mut Environment<'_>) {
        for id in set_of(self.edge_sources) {
            let mut cx = context(&mut self.interrupts, id, env);
            self.devices.get(id).expire(&mut cx);
        }
    }

    /// Follows a change of what the interrupt controllers hear.
    fn update_edge_sources(&mut self) {
        for id in set_of(self.edge_sources) {
            self.update_deadline(id);
        }
    }

    /// Takes note of the end of the level-triggered interrupt `vector` at a local APIC.
    pub fn end_of_interrupt(&mut self, vector: u8, host: &mut dyn ChipsetHost) {
        self.interrupts.end_of_interrupt(vector, host);
    }

    /// Answers the interrupt acknowledge (INTA) cycle of a processor that accepts an ExtINT.
    /// Returns the vector of the 8259A pair.
    #[must_use]
    pub fn acknowledge_pic(&mut self, env: &mut Environment<'_>) -> u8 {
        self.expire_edge_sources(env);
        let vector = self.interrupts.acknowledge_pic(env.host);
        self.update_edge_sources();
        vector
    }

    /// Follows the arrival of something from outside for a function on the PCI bus.
    pub fn pci_input_arrived(&mut self, env: &mut Environment<'_>) {
        self.with_device(Id::pci, env, |devices, cx| devices.pci.input_arrived(cx));
    }

    /// Tells whether COM1 has room for a byte of input.
    #[must_use]
    pub const fn serial_can_receive(&self) -> bool {
        self.devices.com1.can_receive()
    }

    /// Gives COM1 a byte of input. Without room ([`Chipset::serial_can_receive`]) it is lost
    /// and the guest sees an overrun.
    pub fn serial_receive(&mut self, byte: u8, env: &mut Environment<'_>) {
        self.with_device(Id::com1, env, |devices, cx| {
            let now = cx.now;
            devices
                .com1
                .receive(now, byte, &mut cx.output(uart::INTERRUPT));
        });
    }

    /// Lets `ticks` of the TSC pass for the RTC alone: see [`Rtc::run_on`].
    pub fn run_rtc_on(&mut self, ticks: u64, env: &mut Environment<'_>) {
        self.with_device(Id::rtc, env, |devices, cx| {
            let now = cx.now;
            devices.rtc.run_on(ticks, now, &mut cx.output(rtc::IRQ_8));
        });
    }

    /// Gives COM1 a break.
    pub fn serial_break(&mut self, env: &mut Environment<'_>) {
        self.with_device(Id::com1, env, |devices, cx| {
            let now = cx.now;
            devices
                .com1
                .receive_break(now, &mut cx.output(uart::INTERRUPT));
        });
    }

    /// Presses the power button: the guest, if it listens, shuts down in order.
    pub fn press_power_button(&mut self, env: &mut Environment<'_>) {
        self.with_device(Id::acpi, env, |devices, cx| {
            devices.acpi.press_power_button(cx);
        });
    }

    /// Has something from outside happen to device `id`, and takes note of when it is due next.
    fn with_device(
        &mut self,
        id: Id,
        env: &mut Environment<'_>,
        happen: impl FnOnce(&mut Devices, &mut Context<'_>),
    ) {
        let mut cx = context(&mut self.interrupts, id, env);
        happen(&mut self.devices, &mut cx);
        self.update_deadline(id);
    }

    /// Returns where the text screen and its cursor are in the memory of the VGA.
    #[must_use]
    pub fn text_screen(&self) -> TextScreen {
        self.devices.vga.screen()
    }

    /// Returns the last code written to the POST port.
    #[must_use]
    pub const fn post_code(&self) -> u8 {
        self.devices.post.last()
    }
}

/// Returns what the device `id` can reach during a call.
fn context<'a>(
    interrupts: &'a mut Interrupts,
    id: Id,
    env: &'a mut Environment<'_>,
) -> Context<'a> {
    Context {
        now: env.now,
        host: env.host,
        interrupts,
        wires: id.wires(),
    }
}
