//! Rules by which processes are found without an operator: a pattern in their memory, or much CPU time
//! for long.
//!
//! - [`rule`]: what a rule says;
//! - [`patterns`]: the patterns of a VM's rules, looked for at once;
//! - [`searcher`]: which address space is searched next; `clean_frames`: what need not be;
//!   `shared_pages`: who else has what was found;
//! - [`hogs`]: who has taken much for how long;
//! - [`limiter`]: what all this may cost.
//!
//! All is pure: whoever has the VMs tells what runs in them and when, and does what follows from a
//! match.
#![forbid(unsafe_code)]

mod clean_frames;
pub(crate) mod hogs;
pub(crate) mod limiter;
pub(crate) mod patterns;
pub(crate) mod rule;
pub(crate) mod searcher;
mod shared_pages;
