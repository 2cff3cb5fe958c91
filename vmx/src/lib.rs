//! Intel VMX as a typed API.
//!
//! What a VCPU needs from the processor, each concept in a file of its own, in the terms of
//! the SDM (volume 3C): [`capabilities`] are read once per CPU, [`operation`] turns VMX on,
//! a [`vmcs::Vmcs`] holds a VCPU's state, [`ept`] its memory, [`bitmaps`] what it may touch
//! without an exit, [`entry`] goes in and comes out, [`exit`] says why it came out,
//! [`event`] is what to deliver on the way in, and [`diagnosis`] why it would not go in.
//!
//! The crate knows no devices and has no policy.
#![no_std]
extern crate alloc;

pub mod addr;
pub mod bitmaps;
pub mod capabilities;
pub mod controls;
pub mod diagnosis;
pub mod entry;
pub mod ept;
pub mod event;
pub mod exit;
pub mod fields;
pub mod msr;
pub mod operation;
pub mod page;
pub mod segment;
pub mod translation;
pub mod vmcs;
