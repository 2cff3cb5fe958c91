//! What guests could learn of each other by what processors do in advance, and what keeps them from
//! it: which of the known issues a processor has, what tarpit does about each, and what remains.
//!
//! Pure: decisions only. [`crate::machine::speculation`] carries them out.
#![forbid(unsafe_code)]

mod defenses;
mod issue;
mod processor;
#[cfg(test)]
mod tests;

pub(crate) use defenses::Defenses;
pub(crate) use issue::Issue;
pub(crate) use processor::Processor;
