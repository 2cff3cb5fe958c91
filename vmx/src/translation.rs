//! Invalidating cached translations (SDM vol. 3C, 29.4).

use core::arch::asm;

use crate::capabilities::Translation;

/// A virtual-processor identifier: tags a VCPU's translations in the TLB. Never zero, which
/// is the host's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Vpid(core::num::NonZeroU16);

impl Vpid {
    /// Returns the identifier `number`; `None` for zero.
    #[must_use]
    pub const fn new(number: u16) -> Option<Self> {
        match core::num::NonZeroU16::new(number) {
            Some(number) => Some(Self(number)),
            None => None,
        }
    }

    /// Returns the number.
    #[must_use]
    pub const fn get(self) -> u16 {
        self.0.get()
    }
}

#[repr(C)]
struct Descriptor(u64, u64);

fn invept(kind: u64, descriptor: &Descriptor) {
    // SAFETY: dropping translations is always sound. The capabilities say which kinds there
    // are; an unknown one fails without effect.
    unsafe { asm!("invept {}, [{}]", in(reg) kind, in(reg) descriptor, options(nostack)) }
}

fn invvpid(kind: u64, descriptor: &Descriptor) {
    // SAFETY: as for INVEPT.
    unsafe { asm!("invvpid {}, [{}]", in(reg) kind, in(reg) descriptor, options(nostack)) }
}

/// Drops what this CPU has cached of the EPT that `pointer` points to.
pub fn invalidate_ept(capabilities: &Translation, pointer: u64) {
    if capabilities.invept_single {
        invept(1, &Descriptor(pointer, 0));
    } else {
        invept(2, &Descriptor(0, 0));
    }
}

/// Drops all translations that this CPU has cached for `vpid`.
pub fn invalidate_vpid(capabilities: &Translation, vpid: Vpid) {
    if capabilities.invvpid_single {
        invvpid(1, &Descriptor(u64::from(vpid.get()), 0));
    } else {
        invvpid(2, &Descriptor(0, 0));
    }
}

/// Drops the translations of `vpid` that are not global: what a MOV to CR3 would.
pub fn invalidate_vpid_non_global(capabilities: &Translation, vpid: Vpid) {
    if capabilities.invvpid_single_non_global {
        invvpid(3, &Descriptor(u64::from(vpid.get()), 0));
    } else {
        invalidate_vpid(capabilities, vpid);
    }
}

/// Drops the translations of `vpid` for the linear address `address`.
pub fn invalidate_address(capabilities: &Translation, vpid: Vpid, address: u64) {
    if capabilities.invvpid_address {
        invvpid(0, &Descriptor(u64::from(vpid.get()), address));
    } else {
        invalidate_vpid(capabilities, vpid);
    }
}
