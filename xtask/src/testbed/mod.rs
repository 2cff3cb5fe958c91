//! The test bed: everything between an empty Debian machine and a console of tarpit's.
//!
//! From the bottom: packages and toolchains ([`provision`]); programs, kernels, RAM disks and firmware
//! ([`build`], [`kernel`], [`initramfs`], [`userland`], [`firmware`]); bootable CDs ([`image`]) with boot modules ([`module`]);
//! disks that firmware boots ([`disk_image`]), and compressed ones ([`qcow2`]); emulated machines ([`machine`]) and their serial lines
//! ([`serial`], and [`relay`] for detectors). On top, [`setup`] puts a
//! machine with guests together, [`choice`] says which emulator to use here, and [`options`] is what
//! a user can say about both.

pub mod build;
pub mod choice;
pub mod claim;
pub mod disk_image;
pub mod findings;
pub mod firmware;
pub mod image;
pub mod initramfs;
pub mod kernel;
pub mod machine;
pub mod module;
pub mod options;
pub mod paths;
pub mod progress;
pub mod provision;
pub mod qcow2;
pub mod relay;
pub mod screen;
pub mod serial;
pub mod setup;
pub mod userland;
pub mod verdict;

pub use setup::Setup;
