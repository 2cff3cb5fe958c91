//! Facts of the x86 architecture, each in one place for the whole workspace.
//!
//! What the `x86_64` crate names is taken from there, and the types that are used all over the
//! workspace are re-exported here: the bits of control, debug and flags registers, of page-table
//! entries and page-fault error codes, and the exception vectors. This crate adds what `x86_64`
//! has no names for.
//!
//! References in the comments of all crates of this workspace are to the Intel 64 and IA-32
//! Architectures Software Developer's Manual (SDM), combined volumes 1 to 4, edition of June
//! 2024, order number 325462-084US.
#![no_std]
#![forbid(unsafe_code)]

pub mod addr;
pub mod apic;
pub mod cpuid;
pub mod gpr;
pub mod ioapic;
pub mod msr;
pub mod paging;
pub mod reset;

pub use x86_64::registers::control::{Cr0Flags, Cr4Flags};
pub use x86_64::registers::debug::{Dr6Flags, Dr7Flags};
pub use x86_64::registers::model_specific::{ApicBaseFlags, EferFlags};
pub use x86_64::registers::rflags::RFlags;
pub use x86_64::registers::xcontrol::XCr0Flags;
pub use x86_64::structures::idt::{ExceptionVector, PageFaultErrorCode};
pub use x86_64::structures::paging::PageTableFlags;

/// The error of an access or instruction that raises #GP with error code 0, and has no other
/// effect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GeneralProtection;
