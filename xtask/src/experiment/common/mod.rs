//! What experiments have in common: Debian guests with a workload, what they report, and what
//! becomes of the results.

pub mod address_space;
pub(super) mod batch;
pub(super) mod cells;
pub mod countdown;
pub mod dmesg;
pub(super) mod exits;
pub(super) mod font;
pub(super) mod made;
pub(super) mod picture;
pub(super) mod place;
pub(super) mod record;
pub mod reports;
pub(super) mod results;
pub mod subject;
