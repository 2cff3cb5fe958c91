//! The parts of the Linux workload.
//!
//! [`init`] is the program, [`workers`] its processes, and [`behaviors`] what they do;
//! [`parameters`], [`command`], [`start`], [`schedule`], [`blocks`] and [`computation`] are pure and tested on
//! the host; [`system`] is the only module that makes system calls.
#![cfg_attr(not(test), no_std)]

pub mod behaviors;
pub mod blocks;
pub mod command;
pub mod computation;
pub mod console;
pub mod counters;
pub mod init;
pub mod inquiry;
pub mod parameters;
pub mod schedule;
pub mod start;
pub mod system;
pub mod tag;
pub mod work;
pub mod workers;
