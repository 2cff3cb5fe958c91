//! A client of tarpit's protocol for detectors (`docs/protocol.md`): what `cargo xtask ctl`, `top` and
//! `exporter` are made with, and a detector of your own can be.
//!
//! ```no_run
//! # fn main() -> anyhow::Result<()> {
//! use xtask::detector::{Address, Client};
//!
//! let mut client = Client::connect(&Address::default())?;
//! for vm in client.command("vms")? {
//!     println!("{}", vm["vm"]);
//! }
//! # Ok(())
//! # }
//! ```

mod address;
mod client;
pub mod metrics;

pub use address::Address;
#[cfg(test)]
pub(crate) use client::tests;
pub use client::{Client, Record, Refused};
