//! A virtio device over PCI, as virtio 1.2, 4.1 has it: where its structures are, and the steps of setting it up.

use kernels::pci::{COMMAND, DECODE_AND_MASTER, Function, IDENTITY};

/// The vendor of all virtio devices, and the number before that of the first.
const VENDOR: u16 = 0x1af4;
const BEFORE_FIRST: u16 = 0x1040;
/// The identifier of vendor-specific capabilities, in which virtio tells where its structures are.
const CAPABILITY: u8 = 0x09;

/// The kinds of devices (5).
pub(crate) const NETWORK: u16 = 1;
pub(crate) const BLOCK: u16 = 2;
pub(crate) const ENTROPY: u16 = 4;

/// Offsets in the common configuration (4.1.4.3).
pub(crate) mod common {
    pub(crate) const DEVICE_FEATURE_SELECT: u64 = 0x00;
    pub(crate) const DRIVER_FEATURE_SELECT: u64 = 0x08;
    pub(crate) const DRIVER_FEATURE: u64 = 0x0c;
    pub(crate) const STATUS: u64 = 0x14;
    pub(crate) const QUEUE_SELECT: u64 = 0x16;
    pub(crate) const QUEUE_SIZE: u64 = 0x18;
    pub(crate) const QUEUE_VECTOR: u64 = 0x1a;
    pub(crate) const QUEUE_ENABLE: u64 = 0x1c;
    pub(crate) const QUEUE_DESCRIPTORS: u64 = 0x20;
    pub(crate) const QUEUE_AVAILABLE: u64 = 0x28;
    pub(crate) const QUEUE_USED: u64 = 0x30;
    pub(crate) const LENGTH: u64 = 0x38;
}

/// Bits of the device's status (2.1).
pub(crate) mod status {
    pub(crate) const ACKNOWLEDGE: u8 = 1;
    pub(crate) const DRIVER: u8 = 2;
    pub(crate) const DRIVER_OK: u8 = 4;
    pub(crate) const FEATURES_OK: u8 = 8;
    pub(crate) const NEEDS_RESET: u8 = 0x40;
    /// All that a driver sets one after the other.
    pub(crate) const ALL: u8 = ACKNOWLEDGE | DRIVER | DRIVER_OK | FEATURES_OK;
}

/// The feature without which no modern device works, and those of rings: indirect descriptors and the event
/// index (6).
pub(crate) const VERSION_1: u64 = 1 << 32;
pub(crate) const OF_RINGS: u64 = 1 << 28 | 1 << 29;

/// A queue's size, and where its three parts are.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Placement {
    pub(crate) size: u16,
    pub(crate) descriptors: u64,
    pub(crate) available: u64,
    pub(crate) used: u64,
}

/// A device, and where its structures are.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Device {
    pub(crate) function: Function,
    pub(crate) kind: u16,
    pub(crate) common: u64,
    pub(crate) isr: u64,
    pub(crate) specific: u64,
    pub(crate) msix: u64,
    notify: u64,
    notify_multiplier: u64,
}

impl Device {
    /// Returns the devices of the bus, whose memory is decoded then, and which may access memory.
    pub(crate) fn all() -> impl Iterator<Item = Self> {
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
        for at in function.capabilities() {
            if function.byte(at) == CAPABILITY {
                let kind = function.byte(at + 3);
                let base = function.bar(function.byte(at + 4));
                places[usize::from(kind & 7)] = base + u64::from(function.read(at + 8));
                if kind == 2 {
                    notify_multiplier = function.read(at + 16).into();
                }
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
            msix: function.bar(1),
        })
    }

    pub(crate) fn write_common(self, offset: u64, value: u32) {
        write(self.common + offset, 4, value.into());
    }

    pub(crate) fn status(self) -> u8 {
        read(self.common + common::STATUS, 1) as u8
    }

    pub(crate) fn set_status(self, status: u8) {
        write(self.common + common::STATUS, 1, status.into());
    }

    /// Accepts these features.
    pub(crate) fn accept(self, features: u64) {
        for word in 0..2 {
            self.write_common(common::DRIVER_FEATURE_SELECT, word);
            self.write_common(common::DRIVER_FEATURE, (features >> (32 * word)) as u32);
        }
    }

    /// Places the queue `index`, and enables it.
    pub(crate) fn enable_queue(self, index: u16, at: Placement) {
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

    /// Tells it of the queue `index`.
    pub(crate) fn notify(self, index: u16) {
        write(
            self.notify + u64::from(index) * self.notify_multiplier,
            2,
            index.into(),
        );
    }
}

/// Reads 1, 2 or 4 bytes of a device.
pub(crate) fn read(address: u64, size: u8) -> u32 {
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
pub(crate) fn write(address: u64, size: u8, value: u64) {
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
