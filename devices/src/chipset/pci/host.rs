//! The host bridge: from a processor's accesses to the functions on the bus.

use alloc::boxed::Box;
use alloc::sync::Arc;
use alloc::vec::Vec;

use super::super::bus::{Access, Context, Device, Outputs};
use super::config::{BARS, ConfigSpace, command, register};
use super::function::{BarAccess, FunctionContext, Header, PciFunction, Work};
use super::msix::{self, MsixTable};
use crate::guest_memory::GuestMemory;
use crate::platform_map::{irq, mmio};
use crate::time::{HostTicks, TimerTicks};

/// The regions, in the order of the table: CONFIG_ADDRESS, the data window, the memory-mapped
/// configuration space, and the window for BARs.
const ADDRESS: usize = 0;
const DATA: usize = 1;
const ECAM: usize = 2;

/// CONFIG_ADDRESS: the configuration space is enabled.
const ENABLE: u32 = 1 << 31;
/// CONFIG_ADDRESS: the bits that are there.
const IMPLEMENTED: u32 = 0x80ff_fffc;

/// The most functions that the bus has beside the host bridge.
pub const MAX_FUNCTIONS: usize = 31;
/// The interrupts that the bus has.
const INTERRUPTS: usize = 4;

/// The host bridge: vendor 8086h, device 0D57h, which other small hypervisors show, too, and for
/// which no operating system has a driver or a workaround. Base class 06h (bridge), sub-class
/// 00h (host).
const BRIDGE: Header = Header {
    id: (0x8086, 0x0d57),
    subsystem: (0, 0),
    class: (6, 0, 0),
    revision: 0,
};

/// The host bridge of a machine that starts in firmware: the i440FX, which SeaBIOS knows, in a
/// subsystem by which it tells that there is a firmware-configuration interface.
const I440FX: Header = Header {
    id: (0x8086, 0x1237),
    subsystem: (0x1af4, 0x1100),
    class: (6, 0, 0),
    revision: 2,
};
/// The i440FX's registers of what is read and written from 0xC0000 to 0xFFFFF, the programmable
/// attribute map (data sheet 290549-001, 3.2.18), and the bits of each that there are.
///
/// The memory there is RAM whatever they say, with a copy of the firmware in it at the start. That
/// is what firmware wants: it opens the RAM, copies itself there where it finds the RAM closed, and
/// closes it to writes when it is done. Nobody else writes there.
const PAM: usize = 0x59;
const PAM_BITS: [u8; 7] = [0x30, 0x33, 0x33, 0x33, 0x33, 0x33, 0x33];

/// The state that a bus is in after power-up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BusSetup {
    /// The state in which firmware leaves it: BARs are placed, functions switched on.
    Done,
    /// The state in which the firmware that the machine starts in finds it: BARs are at zero, functions
    /// switched off. The host bridge is one that firmware knows.
    ByFirmware,
}

impl BusSetup {
    /// Returns the configuration space of the host bridge after power-up.
    fn bridge(self) -> ConfigSpace {
        match self {
            Self::Done => BRIDGE.config(),
            Self::ByFirmware => {
                let mut config = I440FX.config();
                config.let_write(PAM, &PAM_BITS);
                config
            }
        }
    }
}

/// Returns which of the bus's four interrupts the INTA pin of device `device` is wired to.
#[must_use]
pub const fn interrupt_of(device: usize) -> usize {
    device % INTERRUPTS
}

/// A device on the bus: the function that it has.
#[derive(Debug)]
struct Slot {
    config: ConfigSpace,
    /// None in the host bridge.
    function: Option<Box<dyn PciFunction>>,
    msix: Option<Msix>,
    /// The level of the function's interrupt pin, in its own sense.
    pin: bool,
    /// Whether that, unless it is switched off, asserts the interrupt that it is wired to.
    is_driven: bool,
    /// Whether the function has said that there is work to be run.
    wants_work: bool,
    /// The times at which the function is due, as it was after the last call.
    due: Due,
}

/// The MSI-X table of a function.
#[derive(Debug)]
struct Msix {
    table: MsixTable,
    /// The BAR that it is in.
    bar: usize,
    /// The offset of its message control register.
    control: usize,
}

/// A BAR that answers: where, and whose it is.
#[derive(Clone, Copy, Debug)]
struct Decoded {
    base: u64,
    size: u64,
    device: usize,
    bar: usize,
}

/// The host bridge with its bus.
#[derive(Debug)]
pub struct PciHost {
    address: u32,
    slots: Vec<Slot>,
    decoded: Vec<Decoded>,
    setup: BusSetup,
    /// The device whose turn it is to do what is due.
    turn: usize,
    /// The device whose function has work to be run.
    at_work: Option<usize>,
    /// The times at which the first of the functions is due.
    due: Due,
}

/// The times at which a function is due, if it ever is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Due {
    guest: Option<TimerTicks>,
    host: Option<HostTicks>,
}

/// The work of a function that is to be run, without the chipset.
#[derive(Clone, Debug)]
pub struct PendingWork {
    device: usize,
    work: Arc<dyn Work>,
}

impl PendingWork {
    /// Runs it. Returns whether something has come of it that the chipset is to take up.
    #[must_use]
    pub fn run(&self, memory: &dyn GuestMemory) -> bool {
        self.work.run(memory)
    }
}

impl PciHost {
    /// Makes a bus with these functions, the first of them device 1; what is beyond
    /// [`MAX_FUNCTIONS`] has no place.
    #[must_use]
    pub fn new(functions: Vec<Box<dyn PciFunction>>, setup: BusSetup) -> Self {
        debug_assert!(functions.len() <= MAX_FUNCTIONS);
        let bridge = Slot {
            config: setup.bridge(),
            function: None,
            msix: None,
            pin: false,
            is_driven: false,
            wants_work: false,
            due: Due::default(),
        };
        let functions = functions.into_iter().take(MAX_FUNCTIONS);
        let mut host = Self {
            address: 0,
            slots: core::iter::once(bridge)
                .chain(functions.map(Slot::new))
                .collect(),
            decoded: Vec::new(),
            setup,
            turn: 0,
            at_work: None,
            due: Due::default(),
        };
        host.configure();
        host
    }

    /// Does what firmware does: gives each BAR a place in the window, and each function its
    /// interrupt line, and switches the functions on. Where there is firmware, it is left to that.
    fn configure(&mut self) {
        if self.setup == BusSetup::ByFirmware {
            return self.decode();
        }
        let mut next = mmio::PCI_WINDOW;
        for (device, slot) in self.slots.iter_mut().enumerate().skip(1) {
            for bar in 0..BARS {
                let Some((_, size)) = slot.config.bar(bar) else {
                    continue;
                };
                next = next.next_multiple_of(size.into());
                debug_assert!(next + u64::from(size) <= mmio::PCI_WINDOW + mmio::PCI_WINDOW_LENGTH);
                slot.config.place_bar(bar, next as u32);
                next += u64::from(size);
            }
            let line = irq::PCI[interrupt_of(device)];
            slot.config.set(register::INTERRUPT_LINE, &[line]);
            let on = command::MEMORY | command::BUS_MASTER;
            slot.config.set(register::COMMAND, &on.to_le_bytes());
        }
        self.decode();
    }

    /// Finds out which BARs answer.
    fn decode(&mut self) {
        self.decoded.clear();
        for (device, slot) in self.slots.iter().enumerate() {
            if slot.config.command() & command::MEMORY == 0 {
                continue;
            }
            for bar in 0..BARS {
                if let Some((base, size)) = slot.config.bar(bar) {
                    self.decoded.push(Decoded {
                        base: base.into(),
                        size: size.into(),
                        device,
                        bar,
                    });
                }
            }
        }
    }

    /// Returns the device that CONFIG_ADDRESS selects, and the register of its configuration space. `None`
    /// if there is no configuration space at the data window now.
    const fn selected(&self) -> Option<(usize, usize)> {
        // One bus, and one function a device.
        const BUS_AND_FUNCTION: u32 = 0x00ff_0700;
        if self.address & (ENABLE | BUS_AND_FUNCTION) != ENABLE {
            return None;
        }
        let device = (self.address >> 11) as usize & 0x1f;
        Some((device, self.address as usize & 0xfc))
    }

    /// Returns the device and the register at `offset` of the memory-mapped configuration space.
    const fn mapped(offset: u64) -> Option<(usize, usize)> {
        const FUNCTION: u64 = 7 << 12;
        if offset & FUNCTION != 0 {
            return None;
        }
        Some(((offset >> 15) as usize & 0x1f, offset as usize & 0xfff))
    }

    /// Reads `size` bytes (at most 4) of the configuration space of `device` from `offset` on.
    fn read_config(&mut self, device: usize, offset: usize, size: u8, cx: &mut Context<'_>) -> u32 {
        let Some(slot) = self.slots.get_mut(device) else {
            return u32::MAX;
        };
        slot.config.set_interrupt_status(slot.pin);
        self.call(device, cx, |function, config, cx| {
            function.before_config_read(config, offset, size, cx);
        });
        self.slots[device].config.read(offset, size)
    }

    /// Writes the low `size` bytes (at most 4) of `value` to the configuration space of `device`
    /// from `offset` on.
    fn write_config(
        &mut self,
        device: usize,
        offset: usize,
        size: u8,
        value: u32,
        cx: &mut Context<'_>,
    ) {
        let Some(slot) = self.slots.get_mut(device) else {
            return;
        };
        slot.config.write(offset, size, value);
        if let Some(msix) = &mut slot.msix {
            let control = slot.config.u16(msix.control);
            let mut send = |message| cx.host.interrupt_message(message);
            msix.table.set_control(control, &mut send);
        }
        self.call(device, cx, |function, config, cx| {
            function.after_config_write(config, offset, size, cx);
        });
        if offset < register::CAPABILITIES {
            self.decode();
        }
    }

    /// Finds the BAR at `address`, and the access to it. Of BARs that software has put in one place,
    /// the first answers.
    fn find_bar(&self, address: u64, size: u8) -> Option<(usize, BarAccess)> {
        self.decoded.iter().find_map(|decoded| {
            let offset = address.wrapping_sub(decoded.base);
            (offset < decoded.size).then_some((
                decoded.device,
                BarAccess {
                    bar: decoded.bar,
                    offset,
                    size,
                },
            ))
        })
    }

    fn read_bar(&mut self, address: u64, size: u8, cx: &mut Context<'_>) -> u64 {
        let Some((device, access)) = self.find_bar(address, size) else {
            return u64::MAX;
        };
        let slot = &mut self.slots[device];
        if let Some(msix) = &slot.msix
            && msix.bar == access.bar
        {
            return msix.table.read(access.offset, size);
        }
        let value = self.call(device, cx, |function, _, cx| function.read(access, cx));
        value.unwrap_or(u64::MAX)
    }

    fn write_bar(&mut self, address: u64, size: u8, value: u64, cx: &mut Context<'_>) {
        let Some((device, access)) = self.find_bar(address, size) else {
            return;
        };
        let slot = &mut self.slots[device];
        if let Some(msix) = &mut slot.msix
            && msix.bar == access.bar
        {
            let mut send = |message| cx.host.interrupt_message(message);
            return msix.table.write(access.offset, size, value, &mut send);
        }
        self.call(device, cx, |function, _, cx| {
            function.write(access, value, cx);
        });
    }

    /// Returns the host time at which [`PciHost::follow_host_time`] is next needed.
    #[must_use]
    pub const fn next_host_deadline(&self) -> Option<HostTicks> {
        self.due.host
    }

    /// Tells the functions that host time has come to `now`.
    pub(crate) fn follow_host_time(&mut self, now: HostTicks, cx: &mut Context<'_>) {
        self.call_all(cx, |function, cx| function.follow_host_time(now, cx));
    }

    /// Tells the functions that something may have come for them from outside.
    pub(crate) fn input_arrived(&mut self, cx: &mut Context<'_>) {
        self.call_all(cx, |function, cx| function.input_arrived(cx));
    }

    fn call_all(
        &mut self,
        cx: &mut Context<'_>,
        call: impl Fn(&mut dyn PciFunction, &mut FunctionContext<'_>),
    ) {
        for device in 0..self.slots.len() {
            self.call(device, cx, |function, _, cx| call(function, cx));
        }
    }

    /// Finds out when the first of the functions is due.
    fn find_due(&mut self) {
        let slots = || self.slots.iter().map(|slot| slot.due);
        self.due = Due {
            guest: slots().filter_map(|due| due.guest).min(),
            host: slots().filter_map(|due| due.host).min(),
        };
    }

    /// Returns the work that the last call has left to be run, if there is some.
    #[inline]
    #[must_use]
    pub fn take_work(&mut self) -> Option<PendingWork> {
        let device = self.at_work.take()?;
        let work = self.slots.get(device)?.function.as_ref()?.work()?;
        Some(PendingWork { device, work })
    }

    /// Takes up what has come of work that was run.
    pub(crate) fn finish_work(&mut self, done: &PendingWork, cx: &mut Context<'_>) {
        self.call(done.device, cx, |function, _, cx| function.after_work(cx));
    }

    /// Calls the function of `device`, if it has one, with what it can reach, and follows what it wants then.
    fn call<R>(
        &mut self,
        device: usize,
        cx: &mut Context<'_>,
        call: impl FnOnce(&mut dyn PciFunction, &mut ConfigSpace, &mut FunctionContext<'_>) -> R,
    ) -> Option<R> {
        let slot = self.slots.get_mut(device)?;
        let result = slot.call(cx, call)?;
        if core::mem::take(&mut slot.wants_work) {
            self.at_work = Some(device);
        }
        let asserts_pin = slot.asserts_pin();
        let is_driven = core::mem::replace(&mut slot.is_driven, asserts_pin);
        if slot.follow_due() {
            self.find_due();
        }
        if asserts_pin != is_driven {
            self.drive_interrupt(interrupt_of(device), cx);
        }
        Some(result)
    }

    /// Drives an interrupt of the bus as the pins say that are wired to it.
    fn drive_interrupt(&self, interrupt: usize, cx: &mut Context<'_>) {
        let sharing = self.slots.iter().skip(interrupt).step_by(INTERRUPTS);
        let asserted = sharing.into_iter().any(|slot| slot.is_driven);
        cx.set_output(interrupt, asserted);
    }
}

impl Slot {
    fn new(function: Box<dyn PciFunction>) -> Self {
        let mut slot = Self {
            config: ConfigSpace::new(),
            msix: function.msix().map(|(bar, vectors)| Msix {
                table: MsixTable::new(vectors),
                bar,
                control: 0,
            }),
            function: Some(function),
            pin: false,
            is_driven: false,
            wants_work: false,
            due: Due::default(),
        };
        slot.reset();
        slot
    }

    /// Puts it back into the state after power-up, with the BARs not placed.
    fn reset(&mut self) {
        self.pin = false;
        self.is_driven = false;
        self.wants_work = false;
        let Some(function) = &mut self.function else {
            return;
        };
        function.reset();
        self.config = function.config();
        // Software writes what firmware and it have agreed on there.
        self.config.let_write(register::INTERRUPT_LINE, &[0xff]);
        self.config.set(register::INTERRUPT_PIN, &[1]);
        let command = command::MEMORY | command::BUS_MASTER | command::INTX_DISABLE;
        self.config
            .let_write(register::COMMAND, &command.to_le_bytes());
        if let Some(msix) = &mut self.msix {
            msix.table.reset();
            self.config.add_memory_bar(msix.bar, msix::BAR_SIZE);
            let capability = self.config.add_capability(
                msix::CAPABILITY,
                &msix.table.capability(msix.bar as u8),
                &msix::CONTROL_WRITABLE.to_le_bytes(),
            );
            msix.control = capability + 2;
        }
    }

    /// Asks the function when it is due. Returns whether that has changed.
    fn follow_due(&mut self) -> bool {
        let due = self
            .function
            .as_ref()
            .map_or(Due::default(), |function| Due {
                guest: function.next_deadline(),
                host: function.next_host_deadline(),
            });
        core::mem::replace(&mut self.due, due) != due
    }

    const fn asserts_pin(&self) -> bool {
        self.pin && self.config.command() & command::INTX_DISABLE == 0
    }

    /// Calls the function with what it can reach.
    fn call<R>(
        &mut self,
        cx: &mut Context<'_>,
        call: impl FnOnce(&mut dyn PciFunction, &mut ConfigSpace, &mut FunctionContext<'_>) -> R,
    ) -> Option<R> {
        let function = self.function.as_deref_mut()?;
        let mut context = FunctionContext {
            now: cx.now,
            is_master: self.config.command() & command::BUS_MASTER != 0,
            wants_work: &mut self.wants_work,
            msix: self.msix.as_mut().map(|msix| &mut msix.table),
            pin: &mut self.pin,
            host: &mut *cx.host,
        };
        Some(call(function, &mut self.config, &mut context))
    }
}

impl Device for PciHost {
    fn read(&mut self, access: Access, cx: &mut Context<'_>) -> u64 {
        let found = match access.region {
            ADDRESS => return self.address.into(),
            DATA => self
                .selected()
                .map(|(device, register)| (device, register + access.offset as usize)),
            ECAM => Self::mapped(access.offset),
            _ => return self.read_bar(mmio::PCI_WINDOW + access.offset, access.size, cx),
        };
        let Some((device, offset)) = found else {
            return u64::MAX;
        };
        if access.size <= 4 {
            return self.read_config(device, offset, access.size, cx).into();
        }
        let low = self.read_config(device, offset, 4, cx);
        let high = self.read_config(device, offset + 4, 4, cx);
        u64::from(low) | u64::from(high) << 32
    }

    fn write(&mut self, access: Access, value: u64, cx: &mut Context<'_>) {
        let found = match access.region {
            ADDRESS => {
                self.address = value as u32 & IMPLEMENTED;
                return;
            }
            DATA => self
                .selected()
                .map(|(device, register)| (device, register + access.offset as usize)),
            ECAM => Self::mapped(access.offset),
            _ => {
                let address = mmio::PCI_WINDOW + access.offset;
                return self.write_bar(address, access.size, value, cx);
            }
        };
        let Some((device, offset)) = found else {
            return;
        };
        self.write_config(device, offset, access.size.min(4), value as u32, cx);
        if access.size > 4 {
            self.write_config(device, offset + 4, 4, (value >> 32) as u32, cx);
        }
    }

    fn next_deadline(&self, _: &Outputs<'_>) -> Option<TimerTicks> {
        self.due.guest
    }

    fn expire(&mut self, cx: &mut Context<'_>) {
        // One at a time: each may work for as long as it is good for others to wait.
        let count = self.slots.len();
        let is_due = |slot: &Slot| slot.due.guest.is_some_and(|at| at <= cx.now.timer);
        let mut in_turn = (0..count).map(|step| (self.turn + step) % count);
        if let Some(device) = in_turn.find(|&device| is_due(&self.slots[device])) {
            self.turn = device + 1;
            self.call(device, cx, |function, _, cx| function.expire(cx));
        }
    }

    fn reset(&mut self, cx: &mut Context<'_>) {
        self.address = 0;
        self.at_work = None;
        for slot in &mut self.slots {
            slot.reset();
            slot.follow_due();
        }
        self.find_due();
        if let Some(bridge) = self.slots.first_mut() {
            bridge.config = self.setup.bridge();
        }
        self.configure();
        for interrupt in 0..INTERRUPTS {
            cx.set_output(interrupt, false);
        }
    }
}
