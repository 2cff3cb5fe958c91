//! Virtio over PCI (4.1): a device as a function on the bus. Modern only.
//!
//! Here are the registers; what a driver has the device do is done by its [worker](super::worker).

use alloc::boxed::Box;
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;

use arch::addr::GuestPhysAddr;

use super::device::{DeviceError, VirtioDevice, feature, status};
use super::queue::{MAX_SIZE, Placement, Queue, QueueFeatures};
use super::worker::{Due, Worker, bits};
use crate::chipset::pci::config::ConfigSpace;
use crate::chipset::pci::{BarAccess, FunctionContext, Header, PciFunction, Work};
use crate::time::{HostTicks, TimerTicks};

/// The vendor of all virtio devices, and where the numbers of the devices begin (4.1.2).
const VENDOR: u16 = 0x1af4;
const FIRST_DEVICE: u16 = 0x1040;
/// No device before version 1 has a subsystem of this number.
const SUBSYSTEM: u16 = 0x1100;
/// A device without a legacy interface.
const REVISION: u8 = 1;

/// The BAR of the structures, and that of the MSI-X table.
const BAR: usize = 0;
const MSIX_BAR: usize = 1;
/// The places of the structures in their BAR, a page for each.
const PAGE: u32 = 0x1000;
const COMMON: u32 = 0;
const ISR: u32 = PAGE;
const DEVICE: u32 = 2 * PAGE;
const NOTIFY: u32 = 3 * PAGE;
const BAR_SIZE: u32 = 4 * PAGE;

/// The identifier of the capabilities: vendor-specific.
const CAPABILITY: u8 = 0x09;
/// The types of capabilities (4.1.4).
mod capability {
    pub(super) const COMMON: u8 = 1;
    pub(super) const NOTIFY: u8 = 2;
    pub(super) const ISR: u8 = 3;
    pub(super) const DEVICE: u8 = 4;
    pub(super) const PCI: u8 = 5;
}
/// The length of the common configuration structure.
const COMMON_LENGTH: u32 = 0x38;
/// The distance between the notification addresses of two queues.
const NOTIFY_MULTIPLIER: u32 = 4;
/// No MSI-X vector.
const NO_VECTOR: u16 = 0xffff;

/// Bits of the ISR status (4.1.4.5).
const ISR_QUEUE: u8 = 1 << 0;
const ISR_CONFIG: u8 = 1 << 1;

/// The registers of a queue.
#[derive(Clone, Debug)]
struct QueueSlot {
    size: u16,
    vector: u16,
    descriptors: u64,
    available: u64,
    used: u64,
    is_enabled: bool,
}

impl QueueSlot {
    const RESET: Self = Self {
        size: MAX_SIZE,
        vector: NO_VECTOR,
        descriptors: 0,
        available: 0,
        used: 0,
        is_enabled: false,
    };
}

/// A virtio device on the PCI bus.
#[derive(Debug)]
pub struct VirtioPci {
    worker: Arc<Worker>,
    /// The device's name, with its ID, and what it says that it is.
    name: String,
    header: Header,
    /// The features that are offered.
    features: u64,
    /// The words of the feature registers that are selected.
    device_feature_select: u32,
    driver_feature_select: u32,
    driver_features: u64,
    config_vector: u16,
    status: u8,
    queue_select: u16,
    queues: Vec<QueueSlot>,
    isr: u8,
    /// The offset of the capability by which the structures are reached through the configuration
    /// space.
    access_capability: usize,
    /// The number of times that the device has needed a reset.
    failures: u32,
    /// The number of times that the driver was told of an error that is none of its making.
    host_failures: u32,
    /// Whether the guest lets it be a bus master, as far as it knows.
    is_master: bool,
    /// The times at which there is work, as the worker has told.
    due: Due,
}

impl VirtioPci {
    /// Puts `device` on the bus.
    #[must_use]
    pub fn new(device: Box<dyn VirtioDevice>) -> Self {
        let queues = device.queues();
        Self {
            name: [device.name(), device.id()].join(" ").trim_end().into(),
            header: Header {
                id: (VENDOR, FIRST_DEVICE + device.device_type()),
                subsystem: (VENDOR, SUBSYSTEM),
                class: device.pci_class(),
                revision: REVISION,
            },
            features: device.features()
                | feature::VERSION_1
                | feature::INDIRECT_DESC
                | feature::EVENT_IDX,
            worker: Arc::new(Worker::new(device)),
            device_feature_select: 0,
            driver_feature_select: 0,
            driver_features: 0,
            config_vector: NO_VECTOR,
            status: 0,
            queue_select: 0,
            queues: alloc::vec![QueueSlot::RESET; queues],
            isr: 0,
            access_capability: 0,
            failures: 0,
            host_failures: 0,
            is_master: true,
            due: Due::default(),
        }
    }

    const fn has_status(&self, bit: u8) -> bool {
        self.status & bit != 0
    }

    /// Forgets all that a driver has told it.
    fn reset_device(&mut self) {
        self.worker.reset();
        self.due = Due::default();
        self.device_feature_select = 0;
        self.driver_feature_select = 0;
        self.driver_features = 0;
        self.config_vector = NO_VECTOR;
        self.status = 0;
        self.queue_select = 0;
        self.queues.fill(QueueSlot::RESET);
        self.isr = 0;
    }

    fn selected_queue(&mut self) -> Option<&mut QueueSlot> {
        self.queues.get_mut(usize::from(self.queue_select))
    }

    fn read_common(&mut self, offset: u32) -> u32 {
        let select = self.queue_select;
        let queue = self.queues.get(usize::from(select));
        match offset {
            0x00 => self.device_feature_select,
            0x04 => word(self.features, self.device_feature_select),
            0x08 => self.driver_feature_select,
            0x0c => word(self.driver_features, self.driver_feature_select),
            0x10 => self.config_vector.into(),
            0x12 => self.queues.len() as u32,
            0x14 => self.status.into(),
            // The configuration never changes by itself.
            0x15 => 0,
            0x16 => select.into(),
            // A queue that is not there has the size zero.
            0x18 => queue.map_or(0, |queue| queue.size.into()),
            0x1a => queue.map_or(NO_VECTOR, |queue| queue.vector).into(),
            0x1c => queue.map_or(0, |queue| queue.is_enabled.into()),
            0x1e => select.into(),
            0x20 => queue.map_or(0, |queue| queue.descriptors as u32),
            0x24 => queue.map_or(0, |queue| (queue.descriptors >> 32) as u32),
            0x28 => queue.map_or(0, |queue| queue.available as u32),
            0x2c => queue.map_or(0, |queue| (queue.available >> 32) as u32),
            0x30 => queue.map_or(0, |queue| queue.used as u32),
            0x34 => queue.map_or(0, |queue| (queue.used >> 32) as u32),
            _ => 0,
        }
    }

    fn write_common(&mut self, offset: u32, value: u32, cx: &mut FunctionContext<'_>) {
        let vectors = self.queues.len() as u32 + 1;
        // A vector that the table does not have is not taken (4.1.5.1.2).
        let vector = if value < vectors {
            value as u16
        } else {
            NO_VECTOR
        };
        match offset {
            0x00 => self.device_feature_select = value,
            0x08 => self.driver_feature_select = value,
            // What was agreed on stays so.
            0x0c if !self.has_status(status::FEATURES_OK) => {
                let select = self.driver_feature_select;
                self.driver_features = with_word(self.driver_features, select, value);
            }
            0x10 => self.config_vector = vector,
            0x14 => self.write_status(value as u8, cx),
            0x16 => self.queue_select = value as u16,
            0x1c if value == 1 => self.enable_queue(cx),
            _ => {
                let Some(slot) = self.selected_queue() else {
                    return;
                };
                match offset {
                    0x1a => slot.vector = vector,
                    // An enabled queue stays where it is (4.1.4.3.2).
                    _ if slot.is_enabled => {}
                    0x18 => slot.size = value as u16,
                    0x20 => slot.descriptors = with_word(slot.descriptors, 0, value),
                    0x24 => slot.descriptors = with_word(slot.descriptors, 1, value),
                    0x28 => slot.available = with_word(slot.available, 0, value),
                    0x2c => slot.available = with_word(slot.available, 1, value),
                    0x30 => slot.used = with_word(slot.used, 0, value),
                    0x34 => slot.used = with_word(slot.used, 1, value),
                    _ => {}
                }
            }
        }
    }

    fn write_status(&mut self, value: u8, cx: &mut FunctionContext<'_>) {
        if value == 0 {
            self.reset_device();
            cx.set_pin(false);
            return;
        }
        // Only the device sets this bit, and only a reset clears one (2.1.1).
        let mut added = value & !self.status & !status::NEEDS_RESET;
        if added & status::FEATURES_OK != 0 {
            let chosen = self.driver_features;
            let mut worker = self.worker.lock();
            if chosen & !self.features != 0
                || chosen & feature::VERSION_1 == 0
                || !worker.device.accepts(chosen)
            {
                // The driver reads it back, and finds that its choice is not taken.
                added &= !status::FEATURES_OK;
            } else {
                worker.device.set_features(chosen);
            }
        }
        self.status |= added;
        if added & status::DRIVER_OK != 0 {
            self.worker.lock().is_driver_ready = true;
            self.want_work(cx);
        }
    }

    fn enable_queue(&mut self, cx: &mut FunctionContext<'_>) {
        let features = QueueFeatures {
            indirect: self.driver_features & feature::INDIRECT_DESC != 0,
            event_index: self.driver_features & feature::EVENT_IDX != 0,
        };
        let index = usize::from(self.queue_select);
        let Some(slot) = self.queues.get(index).filter(|slot| !slot.is_enabled) else {
            return;
        };
        let at = Placement {
            size: slot.size,
            descriptors: GuestPhysAddr(slot.descriptors),
            available: GuestPhysAddr(slot.available),
            used: GuestPhysAddr(slot.used),
        };
        match Queue::new(at, features) {
            Some(queue) => {
                self.worker.lock().enable(index, queue);
                self.queues[index].is_enabled = true;
            }
            None => {
                self.worker.lock().has_failed = true;
                self.fail(DeviceError::BadQueueSize(at.size), cx);
            }
        }
    }

    /// Follows the driver's notification of queue `index`.
    fn notify(&mut self, index: usize, cx: &mut FunctionContext<'_>) {
        if index < self.queues.len() {
            self.worker.notify(index);
            self.want_work(cx);
        }
    }

    /// Has the worker run.
    fn want_work(&mut self, cx: &mut FunctionContext<'_>) {
        self.follow_mastership(cx);
        cx.want_work();
    }

    /// Tells the worker whether it may reach the guest's RAM.
    fn follow_mastership(&mut self, cx: &mut FunctionContext<'_>) {
        if self.is_master != cx.is_master {
            self.is_master = cx.is_master;
            self.worker.lock().is_master = cx.is_master;
            self.hear_news(cx);
        }
    }

    /// Takes up what the worker has to tell, unless somebody is at work.
    fn hear_news(&mut self, cx: &mut FunctionContext<'_>) {
        let Some(news) = self.worker.tell() else {
            return;
        };
        self.due = news.due;
        for index in bits(news.interrupts) {
            let vector = self.queues.get(index).map_or(NO_VECTOR, |it| it.vector);
            self.interrupt(vector, ISR_QUEUE, cx);
        }
        if let Some(error) = news.error {
            self.fail(error, cx);
        }
        if let Some(failure) = news.failure {
            self.host_failures = self.host_failures.saturating_add(1);
            if self.host_failures.is_power_of_two() {
                cx.report(format_args!("{}: I/O errors: {failure}", self.name));
            }
        }
    }

    /// Gives up on a driver that did what no driver may: nothing more is done for it before it resets
    /// the device.
    fn fail(&mut self, error: DeviceError, cx: &mut FunctionContext<'_>) {
        self.status |= status::NEEDS_RESET;
        self.failures = self.failures.saturating_add(1);
        // A guest that goes on so is not to fill the log.
        if self.failures.is_power_of_two() {
            cx.report(format_args!("{} needs a reset: {error}", self.name));
        }
        if self.has_status(status::DRIVER_OK) {
            self.interrupt(self.config_vector, ISR_CONFIG, cx);
        }
    }

    fn interrupt(&mut self, vector: u16, reason: u8, cx: &mut FunctionContext<'_>) {
        if cx.has_messages() {
            // No vector is one that the table does not have.
            cx.send_message(vector);
        } else {
            self.isr |= reason;
            cx.set_pin(true);
        }
    }

    /// Reads the ISR status, which clears it and lets go of the pin.
    fn read_isr(&mut self, cx: &mut FunctionContext<'_>) -> u8 {
        cx.set_pin(false);
        core::mem::take(&mut self.isr)
    }

    /// Reads `size` bytes, of a size that the structure takes, from `offset` of the BAR on.
    fn read_structure(&mut self, offset: u32, size: u8, cx: &mut FunctionContext<'_>) -> u64 {
        match offset & !(PAGE - 1) {
            COMMON if size == 8 => {
                let high = self.read_common(offset + 4);
                u64::from(self.read_common(offset)) | u64::from(high) << 32
            }
            COMMON => self.read_common(offset).into(),
            ISR if offset == ISR => self.read_isr(cx).into(),
            DEVICE => {
                let worker = self.worker.lock();
                (0..usize::from(size)).rev().fold(0, |value, byte| {
                    let offset = (offset - DEVICE) as usize + byte;
                    value << 8 | u64::from(worker.device.config(offset))
                })
            }
            _ => 0,
        }
    }

    fn write_structure(&mut self, offset: u32, size: u8, value: u64, cx: &mut FunctionContext<'_>) {
        match offset & !(PAGE - 1) {
            COMMON => {
                self.write_common(offset, value as u32, cx);
                if size == 8 {
                    self.write_common(offset + 4, (value >> 32) as u32, cx);
                }
            }
            NOTIFY => self.notify(((offset - NOTIFY) / NOTIFY_MULTIPLIER) as usize, cx),
            // The configuration of our devices is for reading.
            _ => {}
        }
    }

    /// Returns the access to the BAR that the driver has described in the access capability (4.1.4.9);
    /// `None` if it is none that may be made.
    fn described_access(&self, config: &ConfigSpace) -> Option<(u32, u8)> {
        let field = |offset, size| config.read(self.access_capability + offset, size);
        let (bar, offset, length) = (field(4, 1) as u8, field(8, 4), field(12, 4));
        let size = match length {
            1 => 1,
            2 => 2,
            4 => 4,
            _ => return None,
        };
        (usize::from(bar) == BAR && offset < BAR_SIZE && offset.is_multiple_of(length))
            .then_some((offset, size))
    }

    /// Tells whether an access to the configuration space touches the data of the access capability.
    const fn touches_access_data(&self, offset: usize, size: u8) -> bool {
        let data = self.access_capability + 16;
        offset < data + 4 && offset + size as usize > data
    }
}

/// Returns word `select` of a feature register; there are two.
const fn word(value: u64, select: u32) -> u32 {
    match select {
        0 => value as u32,
        1 => (value >> 32) as u32,
        _ => 0,
    }
}

/// Returns `register` with word `select` being `value`.
const fn with_word(register: u64, select: u32, value: u32) -> u64 {
    match select {
        0 => register & !0xffff_ffff | value as u64,
        1 => register & 0xffff_ffff | (value as u64) << 32,
        _ => register,
    }
}

/// Makes the body of a capability: what is behind its identifier and the pointer to the next.
fn body(kind: u8, offset: u32, length: u32, extra: Option<u32>) -> Vec<u8> {
    let size = if extra.is_some() { 20 } else { 16 };
    let mut body = alloc::vec![size, kind, BAR as u8, 0, 0, 0];
    body.extend(offset.to_le_bytes());
    body.extend(length.to_le_bytes());
    body.extend(extra.iter().flat_map(|extra| extra.to_le_bytes()));
    body
}

impl PciFunction for VirtioPci {
    fn config(&mut self) -> ConfigSpace {
        let mut config = self.header.config();
        config.add_memory_bar(BAR, BAR_SIZE);
        let notify_length = NOTIFY_MULTIPLIER * self.queues.len() as u32;
        for (kind, offset, length, extra) in [
            (capability::COMMON, COMMON, COMMON_LENGTH, None),
            (
                capability::NOTIFY,
                NOTIFY,
                notify_length,
                Some(NOTIFY_MULTIPLIER),
            ),
            (capability::ISR, ISR, 1, None),
            (capability::DEVICE, DEVICE, PAGE, None),
        ] {
            config.add_capability(CAPABILITY, &body(kind, offset, length, extra), &[]);
        }
        // The driver writes BAR, offset, length and data.
        let mut writable = [0xff; 18];
        writable[..2].fill(0);
        writable[3..6].fill(0);
        let access = body(capability::PCI, 0, 0, Some(0));
        self.access_capability = config.add_capability(CAPABILITY, &access, &writable);
        config
    }

    /// Has a vector for each queue, and one for the configuration.
    fn msix(&self) -> Option<(usize, usize)> {
        Some((MSIX_BAR, self.queues.len() + 1))
    }

    fn read(&mut self, access: BarAccess, cx: &mut FunctionContext<'_>) -> u64 {
        self.read_structure(access.offset as u32, access.size, cx)
    }

    fn write(&mut self, access: BarAccess, value: u64, cx: &mut FunctionContext<'_>) {
        self.write_structure(access.offset as u32, access.size, value, cx);
    }

    fn before_config_read(
        &mut self,
        config: &mut ConfigSpace,
        offset: usize,
        size: u8,
        cx: &mut FunctionContext<'_>,
    ) {
        if self.touches_access_data(offset, size)
            && let Some((offset, size)) = self.described_access(config)
        {
            let value = self.read_structure(offset, size, cx) as u32;
            let data = self.access_capability + 16;
            config.set(data, &value.to_le_bytes()[..size.into()]);
        }
    }

    fn after_config_write(
        &mut self,
        config: &ConfigSpace,
        offset: usize,
        size: u8,
        cx: &mut FunctionContext<'_>,
    ) {
        self.follow_mastership(cx);
        if self.touches_access_data(offset, size)
            && let Some((offset, size)) = self.described_access(config)
        {
            let value = config.read(self.access_capability + 16, size);
            let value = u64::from(value) & (u64::MAX >> (64 - 8 * u32::from(size)));
            self.write_structure(offset, size, value, cx);
        }
    }

    fn next_deadline(&self) -> Option<TimerTicks> {
        // At once: but others come in between.
        self.due.now.then_some(TimerTicks::ZERO)
    }

    fn expire(&mut self, cx: &mut FunctionContext<'_>) {
        self.want_work(cx);
    }

    fn work(&self) -> Option<Arc<dyn Work>> {
        Some(self.worker.clone())
    }

    fn after_work(&mut self, cx: &mut FunctionContext<'_>) {
        self.hear_news(cx);
    }

    fn input_arrived(&mut self, cx: &mut FunctionContext<'_>) {
        self.hear_news(cx);
    }

    fn next_host_deadline(&self) -> Option<HostTicks> {
        self.due.at
    }

    fn follow_host_time(&mut self, now: HostTicks, cx: &mut FunctionContext<'_>) {
        if self.due.at.is_some_and(|at| at <= now) {
            self.worker.follow_host_time(now);
            self.hear_news(cx);
        }
    }

    fn reset(&mut self) {
        self.reset_device();
    }
}
