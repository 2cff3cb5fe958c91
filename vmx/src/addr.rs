//! Addresses, as types: see [`arch::addr`].

pub use arch::addr::{GuestPhysAddr, GuestVirtAddr, HostPhysAddr};
pub use arch::paging::PAGE_SIZE;
