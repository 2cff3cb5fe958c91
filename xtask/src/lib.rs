//! Builds tarpit, makes bootable images, runs them in emulated machines and tests them.
//!
//! Three layers, each of which uses those above it in this list only:
//!
//! - [`testbed`]: packages, kernels, images, emulated machines and their consoles. [`testbed::Setup`]
//!   puts a machine with guests together.
//! - [`experiment`]: what is measured on them, one file or folder each.
//! - [`cli`]: `cargo xtask`, the command line.
//!
//! Beside them, for a tarpit that runs anywhere: [`detector`] is a client of its protocol, and [`top`]
//! a live table made with that.

pub mod cli;
pub mod detector;
pub mod experiment;
#[cfg(test)]
mod test_text;
pub mod testbed;
pub mod top;
