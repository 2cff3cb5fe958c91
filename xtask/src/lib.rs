//! Builds tarpit, makes bootable images, runs them in emulated machines and tests them.
//!
//! `cargo xtask` is the program; the integration tests and experiments use this library: they
//! make an image ([`image`]), start a machine ([`machine`]) and talk to it ([`serial`]).

pub mod baseline;
pub mod bench;
pub mod build;
pub mod bundle;
pub mod claim;
pub mod clean;
pub mod experiment;
pub mod findings;
pub mod image;
pub mod initramfs;
pub mod kernel;
pub mod machine;
pub mod module;
pub mod nested;
pub mod paths;
pub mod progress;
pub mod readme;
pub mod run;
pub mod screen;
pub mod serial;
pub mod setup;
pub mod terminal;
pub mod test;
pub mod verdict;
