//! Why a VM stops, as the operator is told.
#![forbid(unsafe_code)]

use alloc::boxed::Box;
use core::fmt;

use vmx::addr::GuestPhysAddr;
use vmx::ept::EptError;

use super::backend::EntryFailed;
use crate::emulate::Unsupported;
use crate::guest_boot::LoadError;
use crate::guest_memory::NotRam;
use crate::machine::machine_check::MachineCheck;

/// The reason why a VM stops. Only the first two kinds are the guest's own wish.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum StopReason {
    /// A power-off by the guest.
    PowerOff,
    /// A reset by the guest.
    Reset,
    /// A test kernel's write of this to the debug-exit port.
    DebugExit(u32),
    /// A stop by the operator.
    Stopped,
    /// A failure to load the guest, when the VM was started again.
    NotLoaded(LoadError),
    /// A failure of the hardware under the guest.
    MachineCheck(Box<MachineCheck>),
    /// An exception in delivering a double fault.
    TripleFault,
    /// An instruction on a device that cannot be carried out, as its page tables are not in RAM.
    Unsupported(Unsupported),
    /// A task's state, or the address to go on at after a reset, outside RAM.
    NotRam(NotRam),
    /// A refusal by the processor of what it was given for the guest: a bug of tarpit's.
    EntryRefused(EntryFailed),
    /// A refusal by the processor of the guest's state.
    EntryFailure {
        /// The vendor's number of the exit.
        number: u16,
        /// Its name.
        name: &'static str,
    },
    /// An exit that nothing of ours asks for.
    UnexpectedExit {
        /// The vendor's number of the exit.
        number: u16,
        /// Its name.
        name: &'static str,
    },
    /// A memory map that cannot be changed as the guest needs it.
    MemoryMap(EptError),
    /// A nested page table that the processor does not take.
    NestedPageTableInvalid(GuestPhysAddr),
}

impl StopReason {
    /// Returns whether the guest meant it, or there was none yet: no dump is due.
    #[must_use]
    pub(crate) const fn is_orderly(&self) -> bool {
        matches!(
            self,
            Self::PowerOff | Self::Reset | Self::DebugExit(_) | Self::Stopped | Self::NotLoaded(_)
        )
    }
}

impl From<EptError> for StopReason {
    fn from(error: EptError) -> Self {
        Self::MemoryMap(error)
    }
}

impl fmt::Display for StopReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::PowerOff => f.write_str("poweroff"),
            Self::Reset => f.write_str("reset"),
            Self::DebugExit(code) => write!(f, "debug-exit {code}"),
            Self::Stopped => f.write_str("stopped"),
            Self::NotLoaded(error) => write!(f, "{error}"),
            Self::MachineCheck(check) => write!(f, "{check}"),
            Self::TripleFault => f.write_str("triple fault"),
            Self::Unsupported(instruction) => write!(f, "{instruction}"),
            Self::NotRam(access) => write!(f, "{access}"),
            Self::EntryRefused(error) => write!(f, "VM entry failed: {error}"),
            Self::EntryFailure { number, name } => {
                write!(f, "VM entry failed: exit reason {number}, {name}")
            }
            Self::UnexpectedExit { number, name } => {
                write!(f, "unexpected VM exit {number}, {name}")
            }
            Self::MemoryMap(error) => write!(f, "memory map: {error}"),
            Self::NestedPageTableInvalid(address) => {
                write!(
                    f,
                    "invalid nested page table for {address:?}: a bug of tarpit's"
                )
            }
        }
    }
}
