//! The parts of the Linux workload.
//!
//! [`init`] is the program; [`parameters`], [`command`] and [`computation`] are pure and tested on
//! the host; [`counters`], [`workers`] and [`console`] are the processes and what they share;
//! [`system`] is the only module that makes system calls.
#![cfg_attr(not(test), no_std)]

pub mod command;
pub mod computation;
pub mod console;
pub mod counters;
pub mod init;
pub mod inquiry;
pub mod parameters;
pub mod system;
pub mod workers;
