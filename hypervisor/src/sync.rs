//! The locks and atomics by which CPUs meet: the processor's own, or in models (`model/mod.rs`) those of a
//! scheduler that decides in which order they are accessed.
//!
//! What a model checks takes them from here. All that others are woken by, wait for or rely on is accessed in the
//! order of sequential consistency (`SeqCst`) or with a lock held: models know no weaker orders.
#![forbid(unsafe_code)]

#[cfg(all(test, feature = "model"))]
pub(crate) use crate::model::mutex::Mutex;
#[cfg(not(all(test, feature = "model")))]
pub(crate) use core::hint::spin_loop;
#[cfg(not(all(test, feature = "model")))]
pub(crate) use core::sync::atomic;
#[cfg(all(test, feature = "model"))]
pub(crate) use shuttle::hint::spin_loop;
#[cfg(all(test, feature = "model"))]
pub(crate) use shuttle::sync::{MutexGuard, atomic};
#[cfg(not(all(test, feature = "model")))]
pub(crate) use spin::{Mutex, MutexGuard};
