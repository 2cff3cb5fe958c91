//! From a message to the local APICs that it is for.

use alloc::sync::Arc;
use core::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use super::port::ApicPort;
use crate::apic_message::{ApicMessage, DeliveryMode};

/// The arbitration of a VM's APIC bus. Any CPU may route at any time.
#[derive(Debug, Default)]
pub struct Router {
    /// The index of the port that the last lowest-priority message went to, so that equals take
    /// turns.
    last: AtomicUsize,
}

impl Router {
    /// Posts `message` to all of `ports` that it is for: of several, a lowest-priority one
    /// only to the one with the lowest arbitration priority. Calls `notify` with the index
    /// of each port whose owner has to be made to look. False if nobody accepted.
    pub fn route(
        &self,
        ports: &[Arc<ApicPort>],
        message: &ApicMessage,
        mut notify: impl FnMut(usize),
    ) -> bool {
        let mut post = |index: usize, port: &ApicPort| {
            if port.post(message) {
                notify(index);
            }
        };
        if message.delivery_mode == DeliveryMode::LowestPriority {
            return match self.lowest(ports, message) {
                Some((index, port)) => {
                    post(index, port);
                    true
                }
                None => false,
            };
        }
        let mut accepted = false;
        for (index, port) in ports.iter().enumerate() {
            if port.accepts(message) {
                post(index, port);
                accepted = true;
            }
        }
        accepted
    }

    fn lowest<'a>(
        &self,
        ports: &'a [Arc<ApicPort>],
        message: &ApicMessage,
    ) -> Option<(usize, &'a ApicPort)> {
        let last = self.last.load(Relaxed);
        let from_next = |index: usize| (index <= last, index);
        let (index, port) = ports
            .iter()
            .enumerate()
            .filter(|(_, port)| port.accepts(message))
            .min_by_key(|&(index, port)| (port.arbitration_priority(), from_next(index)))?;
        self.last.store(index, Relaxed);
        Some((index, port))
    }
}
