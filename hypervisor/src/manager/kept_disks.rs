//! The disks of a VM over its lives: those with `snapshot=keep` stay as the guest leaves them.
//!
//! A VM is made when its predecessor is off all CPUs, which is a power cut for that: what its devices had answered is
//! on the disk, and a request that they were working on is there in part or not at all. Nothing is copied; both have
//! the same [`SharedDisk`], of which only one works.
#![forbid(unsafe_code)]

use alloc::sync::Arc;
use alloc::vec::Vec;

use devices::virtio::disk::{Disk, SharedDisk};
use spin::Mutex;

use super::factory::CreateError;
use crate::machine::heap;
use crate::vm::VmDisk;
use crate::vm_config::GuestDisk;

/// The disks of a VM that are kept, whether it runs or not.
#[derive(Debug, Default)]
pub(super) struct KeptDisks {
    /// The disks, by their numbers among all of the VM's; `None` for one that begins anew each time.
    disks: Vec<Option<SharedDisk>>,
}

impl KeptDisks {
    /// Returns the disks for a VM that is made, in the order of `configs`, which are the same each time: those that
    /// are kept as they were left, and the others as they were in the beginning.
    ///
    /// # Errors
    /// If there is no memory for their tables; what is kept stays so.
    pub(super) fn for_vm(
        &mut self,
        configs: &[GuestDisk<'static>],
    ) -> Result<Vec<VmDisk>, CreateError> {
        self.disks.resize(configs.len(), None);
        let disks = configs.iter().zip(&mut self.disks);
        disks.map(|(config, kept)| disk(config, kept)).collect()
    }
}

/// Returns the disk of `config`: what is `kept` of it, if that is something, or else a new one.
fn disk(config: &GuestDisk<'static>, kept: &mut Option<SharedDisk>) -> Result<VmDisk, CreateError> {
    let contents = match kept {
        Some(kept) => kept.clone(),
        None => {
            let new = Disk::new(config.image, config.read_only, heap::has_room_for_guests);
            let new = new.map_err(|_| CreateError::Tables)?;
            Arc::new(Mutex::new(new))
        }
    };
    if config.keeps {
        *kept = Some(contents.clone());
    }
    Ok(VmDisk {
        id: config.id.clone(),
        keeps: config.keeps,
        contents,
    })
}
