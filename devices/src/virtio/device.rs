//! What a virtio device is to its transport.

use core::fmt::{self, Debug};

use super::chain::{BufferError, Chain};
use super::queue::{Queue, QueueError};
use crate::guest_memory::GuestMemory;
use crate::time::HostTicks;

/// Bits of the device status field (2.1).
pub mod status {
    /// DRIVER_OK.
    pub const DRIVER_OK: u8 = 4;
    /// FEATURES_OK.
    pub const FEATURES_OK: u8 = 8;
    /// DEVICE_NEEDS_RESET.
    pub const NEEDS_RESET: u8 = 0x40;
}

/// Feature bits of all devices (6).
pub mod feature {
    /// VIRTIO_F_INDIRECT_DESC.
    pub const INDIRECT_DESC: u64 = 1 << 28;
    /// VIRTIO_F_EVENT_IDX.
    pub const EVENT_IDX: u64 = 1 << 29;
    /// VIRTIO_F_VERSION_1.
    pub const VERSION_1: u64 = 1 << 32;
}

/// The cause of a device's need for a reset: its driver did what no driver may.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeviceError {
    /// A queue is not as it must be.
    Queue(QueueError),
    /// A buffer is shorter than the request has it, or not in RAM.
    Buffer(BufferError),
    /// The size of a queue is none that a queue can have.
    BadQueueSize(u16),
}

impl From<QueueError> for DeviceError {
    fn from(error: QueueError) -> Self {
        Self::Queue(error)
    }
}

impl From<BufferError> for DeviceError {
    fn from(error: BufferError) -> Self {
        Self::Buffer(error)
    }
}

impl fmt::Display for DeviceError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Queue(error) => write!(f, "{error}"),
            Self::Buffer(BufferError::TooShort) => f.write_str("a buffer is too short"),
            Self::Buffer(BufferError::NotRam(error)) => write!(f, "{error}"),
            Self::BadQueueSize(size) => write!(f, "a queue of {size} entries"),
        }
    }
}

impl core::error::Error for DeviceError {}

/// The cause of an error that a device tells its driver of and that is none of the driver's making.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HostFailure {
    /// The machine has no memory left for what is written.
    OutOfMemory,
    /// The image that a disk begins as has nothing to be read there.
    DamagedImage,
}

impl fmt::Display for HostFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::OutOfMemory => "the machine has no memory left for what is written",
            Self::DamagedImage => "its image is damaged, or not all there",
        })
    }
}

/// The state of a device's work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// Nothing more to do before the driver notifies it again.
    Idle,
    /// More to do, after the device has worked for long enough at a time.
    Busy,
    /// More to do, but not before this host time.
    Until(HostTicks),
}

/// The work that a device may still do before others come in, as a number of bytes to copy.
#[derive(Debug)]
pub struct Budget(u64);

impl Budget {
    /// The work that a device may do at a time.
    const AT_A_TIME: u64 = 256 << 10;
    /// The least that a request takes: reading where it is, and answering it.
    const REQUEST: u64 = 4 << 10;
    /// The work that a descriptor takes.
    const DESCRIPTOR: u64 = 64;

    /// Returns what a device may do at a time.
    #[must_use]
    pub const fn new() -> Self {
        Self(Self::AT_A_TIME)
    }

    /// Takes what a request takes by itself, whatever is to be done for it.
    pub fn spend_on_request(&mut self, chain: &Chain) {
        self.spend(Self::REQUEST + Self::DESCRIPTOR * chain.len() as u64);
    }

    /// Takes what is as much work as copying so many bytes.
    pub const fn spend(&mut self, bytes: u64) {
        self.0 = self.0.saturating_sub(bytes);
    }

    /// Tells whether it is time for others.
    #[must_use]
    pub const fn is_spent(&self) -> bool {
        self.0 == 0
    }
}

impl Default for Budget {
    fn default() -> Self {
        Self::new()
    }
}

/// A device behind a transport.
pub trait VirtioDevice: Debug + Send {
    /// Returns its name, for messages.
    fn name(&self) -> &'static str;

    /// Returns what tells it from others of its name; may be empty.
    fn id(&self) -> &str {
        ""
    }

    /// Returns its type (5).
    fn device_type(&self) -> u16;

    /// Returns what PCI says that it is: base class, sub-class and programming interface.
    fn pci_class(&self) -> (u8, u8, u8);

    /// Returns the features that it offers, besides those of the queues.
    fn features(&self) -> u64;

    /// Tells whether a driver may choose these features, which are among those offered: some need others.
    fn accepts(&self, _features: u64) -> bool {
        true
    }

    /// Returns how many queues it has.
    fn queues(&self) -> usize;

    /// Reads a byte of its configuration; what is not there is zero.
    fn config(&self, _offset: usize) -> u8 {
        0
    }

    /// Is told the features that the driver has chosen of those offered.
    fn set_features(&mut self, _features: u64) {}

    /// Tells whether there is something for queue `index` to do of which the driver knows nothing.
    fn has_input(&self, _index: usize) -> bool {
        false
    }

    /// Works on its queue `index`, until there is nothing to do or it has worked for long enough.
    ///
    /// # Errors
    /// If the driver did what no driver may.
    fn work(
        &mut self,
        index: usize,
        queue: &mut Queue,
        memory: &dyn GuestMemory,
    ) -> Result<Progress, DeviceError>;

    /// Returns why it has told its driver of an error since the last call, if that was none of the driver's making.
    fn take_failure(&mut self) -> Option<HostFailure> {
        None
    }

    /// Forgets all that a driver has told it, and what it was working on.
    fn reset(&mut self);
}

/// Serves the requests in `queue`, until there is none or the device has worked for long enough. `serve`
/// does what a chain asks for, in `chain`, and returns how many bytes it has written into it.
///
/// # Errors
/// If the driver did what no driver may.
pub(super) fn serve_requests(
    queue: &mut Queue,
    memory: &dyn GuestMemory,
    chain: &mut Chain,
    mut serve: impl FnMut(&mut Chain, &mut Budget) -> Result<u32, DeviceError>,
) -> Result<Progress, DeviceError> {
    let mut budget = Budget::new();
    while !budget.is_spent() {
        if !queue.take(memory, chain)? {
            return Ok(Progress::Idle);
        }
        budget.spend_on_request(chain);
        let written = serve(chain, &mut budget)?;
        queue.give_back(memory, chain.head(), written)?;
    }
    Ok(Progress::Busy)
}
