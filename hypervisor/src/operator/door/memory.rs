//! Reading a guest's memory for a client, a little at a time.

use alloc::string::String;
use alloc::sync::Arc;
use core::fmt::Write;

use arch::addr::{GuestPhysAddr, GuestVirtAddr};
use devices::time::HostTicks;
use serde::Serialize;
use vmx::addr::PAGE_SIZE;

use super::request::ReadRequest;
use crate::guest_memory::GuestMemory;
use crate::operator::command::{Job, Progress};
use crate::operator::context::Context;
use crate::operator::error::CommandError;
use crate::operator::inspect;
use crate::operator::records::Hex;
use crate::search::pages::{self, Reach};
use crate::suppression::address_space::{Root, RootFormat};
use crate::vm::Vm;

/// The most bytes that one request reads.
pub(crate) const MOST: u64 = 64 << 10;
/// The most bytes in a line of the answer.
const CHUNK: u64 = 512;
/// The output that may wait before more is made, in bytes.
const BACKLOG: u64 = 8 << 10;

/// The meaning of the addresses.
#[derive(Clone, Copy, Debug)]
enum Space {
    /// Guest-physical ones.
    Physical,
    /// Virtual ones, in this address space.
    Virtual(Root, RootFormat),
}

/// A piece of memory that is being read.
pub(super) struct Reading {
    vm: Arc<Vm>,
    space: Space,
    next: u64,
    left: u64,
}

impl Reading {
    /// Begins what `request` asks for.
    ///
    /// # Errors
    /// If the VM is not there, or the range is too long or no range.
    pub(super) fn begin(
        request: &ReadRequest,
        context: &Context<'_>,
    ) -> Result<Self, CommandError> {
        let vm = context.vm_named(&request.vm)?;
        let space = match request.cr3 {
            None => Space::Physical,
            Some(cr3) => {
                let format = inspect::root_format(&vm);
                Space::Virtual(Root::new(cr3.0, format), format)
            }
        };
        if request.length == 0 || request.length > MOST {
            return Err(CommandError::new(
                "bad_length",
                format_args!(
                    "{} bytes cannot be read at once: ask for 1 to {MOST}",
                    request.length
                ),
            ));
        }
        if request.address.0.checked_add(request.length - 1).is_none() {
            return Err(CommandError::new(
                "bad_address",
                "there are no addresses behind 0xffffffffffffffff: ask for less",
            ));
        }
        Ok(Self {
            vm,
            space,
            next: request.address.0,
            left: request.length,
        })
    }

    /// Reads the next bytes that lie together, into `bytes` if they are there. Returns their number
    /// and whether they are.
    fn read(&self, bytes: &mut [u8; CHUNK as usize]) -> (u64, bool) {
        let to_page_end = PAGE_SIZE - self.next % PAGE_SIZE;
        let length = self.left.min(CHUNK).min(to_page_end);
        let physical = match self.space {
            Space::Physical => self.next,
            Space::Virtual(root, format) => {
                let at = GuestVirtAddr(self.next);
                if !is_canonical(self.next, format) {
                    return (self.left.min(to_page_end), false);
                }
                let region = pages::region_at(&self.vm.ram, root, format, at, Reach::All);
                match region.frame {
                    Some(frame) => frame.0.wrapping_add(self.next - region.start),
                    None => return (self.left.min((region.end - self.next).max(1)), false),
                }
            }
        };
        let place = bytes.get_mut(..length as usize).unwrap_or_default();
        let there = self.vm.ram.read(GuestPhysAddr(physical), place).is_ok();
        (length, there)
    }
}

/// Returns whether a virtual address can be one.
const fn is_canonical(address: u64, format: RootFormat) -> bool {
    match format {
        RootFormat::Long => matches!(address >> 47, 0 | 0x1_ffff),
        RootFormat::Pae | RootFormat::Narrow => address >> 32 == 0,
    }
}

impl Job for Reading {
    fn step(&mut self, context: &mut Context<'_>, until: HostTicks) -> Progress {
        let mut bytes = [0; CHUNK as usize];
        while self.left > 0 {
            if context.answer.backlog() >= BACKLOG {
                return Progress::More;
            }
            let (length, there) = self.read(&mut bytes);
            let read = bytes.get(..length as usize).filter(|_| there);
            context.answer.json(&Piece {
                address: Hex(self.next),
                length,
                data: read.map(hexadecimal),
            });
            self.next = self.next.wrapping_add(length);
            self.left -= length;
            if context.clock.now() >= until {
                break;
            }
        }
        if self.left > 0 {
            Progress::More
        } else {
            Progress::Done
        }
    }
}

fn hexadecimal(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(2 * bytes.len());
    for byte in bytes {
        // A string takes everything.
        let _ = write!(text, "{byte:02x}");
    }
    text
}

/// A piece of memory.
#[derive(Serialize)]
struct Piece {
    /// Its first address.
    address: Hex,
    /// Its length in bytes.
    length: u64,
    /// Its contents, two digits a byte; `None` if nothing is mapped there, or no RAM.
    data: Option<String>,
}
