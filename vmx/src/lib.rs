//! VMX as a typed API.
#![no_std]
pub mod addr;
