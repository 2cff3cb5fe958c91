//! Addresses, as types: a guest-physical address is not a host-physical one.

use core::fmt;

use crate::paging::PAGE_SIZE;

macro_rules! address {
    ($(#[$doc:meta])* $name:ident, $prefix:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub u64);

        impl $name {
            /// Returns the address `offset` bytes on; `None` past the end of the address space.
            #[must_use]
            pub const fn checked_add(self, offset: u64) -> Option<Self> {
                match self.0.checked_add(offset) {
                    Some(address) => Some(Self(address)),
                    None => None,
                }
            }

            /// Returns the start of the 4 KiB page that holds this address.
            #[must_use]
            pub const fn page(self) -> Self {
                Self(self.0 & !(PAGE_SIZE - 1))
            }

            /// Returns the offset of this address in its 4 KiB page.
            #[must_use]
            pub const fn page_offset(self) -> u64 {
                self.0 & (PAGE_SIZE - 1)
            }

            /// Returns whether the address is a multiple of `alignment`, a power of two.
            #[must_use]
            pub const fn is_aligned(self, alignment: u64) -> bool {
                self.0 & (alignment - 1) == 0
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!($prefix, ":{:#x}"), self.0)
            }
        }
    };
}

address! {
    /// A guest-physical address: what the guest's page tables hold, and EPT translates.
    GuestPhysAddr, "gpa"
}
address! {
    /// A host-physical address: what EPT and VMCS pointers hold.
    HostPhysAddr, "hpa"
}
address! {
    /// A guest-virtual (linear) address.
    GuestVirtAddr, "gva"
}
