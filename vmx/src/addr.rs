//! Addresses, as types: see [`arch::addr`].
#![forbid(unsafe_code)]

pub use arch::addr::{GuestPhysAddr, GuestVirtAddr, HostPhysAddr};
pub use arch::paging::PAGE_SIZE;
