//! A device: where its structures are (4.1.4), and the steps of setting it up (3.1).

use arch::apic::DEFAULT_ADDRESS;

use crate::pci::{COMMAND, DECODE_AND_MASTER, Function, IDENTITY};

/// The vendor of all virtio devices, and the number before that of the first.
const VENDOR: u16 = 0x1af4;
const BEFORE_FIRST: u16 = 0x1040;
/// The identifier of vendor-specific capabilities, in which virtio tells where its structures are.
const CAPABILITY: u8 = 0x09;
/// The identifier of the capability of MSI-X (PCI Local Bus Specification 3.0, 6.8.2), and the bits of its
/// register by which the table is used, and all of it masked. The register behind tells where the table is: by which
/// BAR, in its lowest bits, and how far from there.
const MSIX: u8 = 0x11;
const MSIX_ENABLE: u32 = 1 << 31;
const MSIX_MASK: u32 = 1 << 30;
const MSIX_BAR: u32 = 0b111;

/// The device type of network cards (5).
pub const NETWORK: u16 = 1;
/// The device type of disks.
pub const BLOCK: u16 = 2;
/// The device type of sources of entropy.
pub const ENTROPY: u16 = 4;

/// Offsets in the common configuration (4.1.4.3), by their names there.
#[expect(missing_docs, reason = "the specification's names")]
pub mod common {
    pub const DEVICE_FEATURE_SELECT: u64 = 0x00;
    pub const DRIVER_FEATURE_SELECT: u64 = 0x08;
    pub const DRIVER_FEATURE: u64 = 0x0c;
    pub const STATUS: u64 = 0x14;
    pub const QUEUE_SELECT: u64 = 0x16;
    pub const QUEUE_SIZE: u64 = 0x18;
    pub const QUEUE_VECTOR: u64 = 0x1a;
    pub const QUEUE_ENABLE: u64 = 0x1c;
    pub const QUEUE_DESCRIPTORS: u64 = 0x20;
    pub const QUEUE_AVAILABLE: u64 = 0x28;
    pub const QUEUE_USED: u64 = 0x30;
    pub const LENGTH: u64 = 0x38;
}

/// Bits of the device's status (2.1), by their names there.
#[expect(missing_docs, reason = "the specification's names")]
pub mod status {
    pub const ACKNOWLEDGE: u8 = 1;
    pub const DRIVER: u8 = 2;
    pub const DRIVER_OK: u8 = 4;
    pub const FEATURES_OK: u8 = 8;
    pub const NEEDS_RESET: u8 = 0x40;
    /// All that a driver sets one after the other.
    pub const ALL: u8 = ACKNOWLEDGE | DRIVER | DRIVER_OK | FEATURES_OK;
}

/// The status of a device whose features are agreed on.
const READY: u8 = status::ACKNOWLEDGE | status::DRIVER | status::FEATURES_OK;

/// The feature without which no modern device works (6).
pub const VERSION_1: u64 = 1 << 32;
/// The features of rings: indirect descriptors and the event index (6).
pub const OF_RINGS: u64 = 1 << 28 | 1 << 29;

/// The vector of a queue, or of the configuration, that sends no message (4.1.4.3).
pub const NO_VECTOR: u16 = 0xffff;

/// A queue's size, and where its three parts are.
#[derive(Clone, Copy, Debug)]
pub struct Placement {
    /// Its number of descriptors.
    pub size: u16,
    /// The address of its table of descriptors.
    pub descriptors: u64,
    /// The address of its available ring.
    pub available: u64,
    /// The address of its used ring.
    pub used: u64,
}

/// A device, and where its structures are.
#[derive(Clone, Copy, Debug)]
pub struct Device {
    /// The function that it is on the bus.
    pub function: Function,
    /// Its device type.
    pub kind: u16,
    /// The address of its common configuration.
    pub common: u64,
    /// The address of its interrupt status.
    pub isr: u64,
    /// The address of the configuration that its type has.
    pub specific: u64,
    /// The address of its table of MSI-X messages.
    pub msix: u64,
    notify: u64,
    notify_multiplier: u64,
}

impl Device {
    /// Returns the devices of the bus, whose memory is decoded then, and which may access memory.
    pub fn all() -> impl Iterator<Item = Self> {
        Function::all().filter_map(Self::of)
    }

    fn of(function: Function) -> Option<Self> {
        let identity = function.read(IDENTITY);
        let kind = ((identity >> 16) as u16).checked_sub(BEFORE_FIRST)?;
        if identity as u16 != VENDOR {
            return None;
        }
        function.write(COMMAND, DECODE_AND_MASTER);
        let mut places = [0; 8];
        let mut notify_multiplier = 0;
        let mut msix = 0;
        for at in function.capabilities() {
            match function.byte(at) {
                CAPABILITY => {
                    let kind = function.byte(at + 3);
                    let base = function.bar(function.byte(at + 4));
                    places[usize::from(kind & 7)] = base + u64::from(function.read(at + 8));
                    if kind == 2 {
                        notify_multiplier = function.read(at + 16).into();
                    }
                }
                MSIX => {
                    let table = function.read(at + 4);
                    let base = function.bar((table & MSIX_BAR) as u8);
                    msix = base + u64::from(table & !MSIX_BAR);
                }
                _ => {}
            }
        }
        Some(Self {
            function,
            kind,
            common: places[1],
            notify: places[2],
            notify_multiplier,
            isr: places[3],
            specific: places[4],
            msix,
        })
    }

    /// Writes four bytes of the common configuration.
    pub fn write_common(self, offset: u64, value: u32) {
        write(self.common + offset, 4, value.into());
    }

    /// Returns its status.
    #[must_use]
    pub fn status(self) -> u8 {
        read(self.common + common::STATUS, 1) as u8
    }

    /// Sets its status; 0 resets it.
    pub fn set_status(self, status: u8) {
        write(self.common + common::STATUS, 1, status.into());
    }

    /// Accepts these features.
    pub fn accept(self, features: u64) {
        for word in 0..2 {
            self.write_common(common::DRIVER_FEATURE_SELECT, word);
            self.write_common(common::DRIVER_FEATURE, (features >> (32 * word)) as u32);
        }
    }

    /// Resets it and agrees with it on these features, up to where its queues are set up. Returns whether it accepts them.
    #[must_use]
    pub fn begin(self, features: u64) -> bool {
        self.set_status(0);
        self.set_status(status::ACKNOWLEDGE | status::DRIVER);
        self.accept(features);
        self.set_status(READY);
        self.status() == READY
    }

    /// Lets it begin to work: its queues are set up.
    pub fn go(self) {
        self.set_status(READY | status::DRIVER_OK);
    }

    /// Places the queue `index`, and enables it.
    pub fn enable_queue(self, index: u16, at: Placement) {
        write(self.common + common::QUEUE_SELECT, 2, index.into());
        write(self.common + common::QUEUE_SIZE, 2, at.size.into());
        for (offset, address) in [
            (common::QUEUE_DESCRIPTORS, at.descriptors),
            (common::QUEUE_AVAILABLE, at.available),
            (common::QUEUE_USED, at.used),
        ] {
            self.write_common(offset, address as u32);
            self.write_common(offset + 4, (address >> 32) as u32);
        }
        write(self.common + common::QUEUE_ENABLE, 2, 1);
    }

    /// Lets it interrupt by the messages of its table, or by its pin.
    pub fn use_messages(self, used: bool) {
        let function = self.function;
        let place = function
            .capabilities()
            .find(|&at| function.byte(at) == MSIX);
        if let Some(at) = place {
            let control = function.read(at) & !(MSIX_ENABLE | MSIX_MASK);
            function.write(at, control | if used { MSIX_ENABLE } else { 0 });
        }
    }

    /// Makes its message `entry` the interrupt `vector` of the first CPU.
    pub fn set_message(self, entry: u16, vector: u8) {
        let entry = self.msix + 16 * u64::from(entry);
        write(entry, 8, DEFAULT_ADDRESS);
        write(entry + 8, 4, vector.into());
        write(entry + 12, 4, 0);
    }

    /// Has the queue `index` send the message `entry`, or none ([`NO_VECTOR`]).
    pub fn set_queue_vector(self, index: u16, entry: u16) {
        write(self.common + common::QUEUE_SELECT, 2, index.into());
        write(self.common + common::QUEUE_VECTOR, 2, entry.into());
    }

    /// Tells it of the queue `index`.
    pub fn notify(self, index: u16) {
        write(
            self.notify + u64::from(index) * self.notify_multiplier,
            2,
            index.into(),
        );
    }
}

/// Reads 1, 2 or 4 bytes of a device.
#[must_use]
pub fn read(address: u64, size: u8) -> u32 {
    // SAFETY: all of the first 4 GiB is mapped, and where a device's structures are is no memory.
    unsafe {
        match size {
            1 => (address as *const u8).read_volatile().into(),
            2 => (address as *const u16).read_volatile().into(),
            _ => (address as *const u32).read_volatile(),
        }
    }
}

/// Writes 1, 2, 4 or 8 bytes of a device.
pub fn write(address: u64, size: u8, value: u64) {
    // SAFETY: as in `read`. What the device then does to memory is bounded by what it is told: see `rings`.
    unsafe {
        match size {
            1 => (address as *mut u8).write_volatile(value as u8),
            2 => (address as *mut u16).write_volatile(value as u16),
            4 => (address as *mut u32).write_volatile(value as u32),
            _ => (address as *mut u64).write_volatile(value),
        }
    }
}
