//! How a VM that is started again gets its guest.
//!
//! Clearing the RAM takes as long as there is RAM, and copying the guest to it as long as its files
//! are. If the boot CPU did that, the VMs there would stand still meanwhile. So the VM does it itself, in
//! pieces: its first VCPU clears the RAM and loads the guest in its own CPU time, before it enters the
//! guest for the first time, and comes off its CPU when others want to have it.
#![forbid(unsafe_code)]

use alloc::boxed::Box;
use alloc::sync::Arc;

use devices::time::HostTicks;

use super::backend::GuestCpu;
use super::{RunExit, StopReason, Vcpu};
use crate::guest_boot::{GuestImage, LoadError};
use crate::machine::host_time::host_now;
use crate::vm::ram::GuestRam;
use crate::vm::requests::{Requests, VcpuRequests};

/// The number of bytes that are cleared or copied between two looks at the time: some 10 us' worth.
const PIECE: u64 = 64 << 10;

/// A guest that is to be loaded.
pub(super) struct Loading {
    image: Arc<GuestImage<'static>>,
    /// The number of bytes of the RAM that are clear.
    cleared: u64,
    /// The number of bytes of the image that are in the RAM.
    copied: u64,
}

impl Loading {
    /// Does a piece of the work. Returns whether there was anything to do.
    ///
    /// # Errors
    /// If the RAM is not that of a VM that the image is for.
    fn step(&mut self, ram: &GuestRam) -> Result<bool, LoadError> {
        if let Some(next) = ram.clear_piece(self.cleared, PIECE) {
            self.cleared = next;
            return Ok(true);
        }
        let next = self.image.memory.copy_piece(ram, self.copied, PIECE)?;
        self.copied = next.unwrap_or(self.copied);
        Ok(next.is_some())
    }
}

impl<C: GuestCpu> Vcpu<C> {
    /// Has the guest of `image` loaded when this VCPU, the VM's first, gets a CPU.
    pub(crate) fn load_guest_later(&mut self, image: Arc<GuestImage<'static>>) {
        self.loading = Some(Box::new(Loading {
            image,
            cleared: 0,
            copied: 0,
        }));
    }

    /// Loads the guest, if it is to be loaded.
    ///
    /// # Errors
    /// If the VCPU is to come off its CPU: it is `until`, others want it to, the guest has been loaded,
    /// or it does not fit into the RAM.
    pub(super) fn load_guest(
        &mut self,
        until: HostTicks,
        requests: &VcpuRequests,
    ) -> Result<(), RunExit> {
        let Some(mut loading) = self.loading.take() else {
            return Ok(());
        };
        while loading.step(&self.vm.ram).map_err(StopReason::NotLoaded)? {
            let exit = if requests.take().contains(Requests::YIELD) {
                RunExit::Yielded
            } else if host_now() >= until {
                RunExit::Preempted
            } else {
                continue;
            };
            self.loading = Some(loading);
            return Err(exit);
        }
        self.set_entry_state(&loading.image.entry);
        Err(RunExit::Loaded)
    }
}

#[cfg(test)]
mod tests {
    use alloc::vec;
    use alloc::vec::Vec;

    use vmx::addr::GuestPhysAddr;

    use super::super::backend::fake::FakeCpu;
    use super::super::fixture::vcpu;
    use super::*;
    use crate::guest_boot::test_ram::TestRam;
    use crate::guest_boot::{EntryState, MemoryImage};
    use crate::guest_memory::GuestMemory;
    use crate::machine::host_time::fake as host_clock;

    const MIB: u64 = 1 << 20;
    /// The bytes of a file, and where the guest has it.
    const FILE: usize = 700 << 10;
    const PLACE: GuestPhysAddr = GuestPhysAddr(0x2_0000);

    /// A guest of one large file.
    fn image() -> Arc<GuestImage<'static>> {
        let mut memory = MemoryImage::new(MIB);
        // Not over the hole for a video adapter.
        let (below, above) = (0xa_0000 - PLACE.0 as usize, GuestPhysAddr(0xb_8000));
        memory.write(PLACE, vec![0x5a; below]).unwrap();
        memory.write(above, vec![0xa5; FILE - below]).unwrap();
        let entry = EntryState::reset();
        Arc::new(GuestImage { memory, entry })
    }

    /// How the turns of a VCPU end in which its guest is loaded, each of which ends `slice` ticks after it
    /// begins, where a piece takes 1,000.
    fn turns(vcpu: &mut Vcpu<FakeCpu>, slice: u64) -> Vec<RunExit> {
        let vm = vcpu.vm().clone();
        let mut exits = Vec::new();
        while !exits.contains(&RunExit::Loaded) {
            let until = host_now().saturating_add(slice);
            exits.push(vcpu.load_guest(until, vm.requests(0)).unwrap_err());
        }
        exits
    }

    fn is_loaded(vcpu: &Vcpu<FakeCpu>) -> bool {
        let ram = TestRam::new(MIB);
        image().memory.copy_to(&ram).unwrap();
        let mut found = vec![0; 0x1_0000];
        [(0, 0xa_0000), (0xb_8000, MIB)]
            .into_iter()
            .all(|(start, end)| {
                (start..end).step_by(found.len()).all(|address| {
                    let length = found.len().min((end - address) as usize);
                    let found = &mut found[..length];
                    vcpu.vm().ram.read(GuestPhysAddr(address), found).unwrap();
                    *found == ram.bytes(address, length)
                })
            })
    }

    #[test]
    fn a_large_guest_is_loaded_in_as_many_turns_as_it_takes() {
        let mut vcpu = vcpu();
        let dirt = vec![0xee; 0xa_0000];
        vcpu.vm().ram.write(GuestPhysAddr(0), &dirt).unwrap();
        vcpu.load_guest_later(image());
        assert!(!is_loaded(&vcpu));
        host_clock::let_looks_take(1_000);
        // The RAM's two ranges are cleared in 10 and 5 pieces, the file's parts copied in 8 and 3.
        let exits = turns(&mut vcpu, 1_000);
        assert_eq!(exits[..26], [const { RunExit::Preempted }; 26]);
        assert_eq!(exits.len(), 27);
        assert!(is_loaded(&vcpu));
        // It is loaded once.
        let vm = vcpu.vm().clone();
        assert_eq!(vcpu.load_guest(host_now(), vm.requests(0)), Ok(()));
    }

    #[test]
    fn who_has_time_loads_its_guest_in_one_turn() {
        let mut vcpu = vcpu();
        vcpu.load_guest_later(image());
        host_clock::let_looks_take(1_000);
        assert_eq!(turns(&mut vcpu, 100_000), [RunExit::Loaded]);
        assert!(is_loaded(&vcpu));
    }

    #[test]
    fn who_is_asked_to_comes_off_its_cpu_between_two_pieces() {
        let mut vcpu = vcpu();
        vcpu.load_guest_later(image());
        let vm = vcpu.vm().clone();
        vm.requests(0).make(Requests::YIELD);
        assert_eq!(
            turns(&mut vcpu, 100_000),
            [RunExit::Yielded, RunExit::Loaded]
        );
        assert!(is_loaded(&vcpu));
    }

    #[test]
    fn a_guest_for_more_ram_ends_its_vm() {
        let mut vcpu = vcpu();
        let mut memory = MemoryImage::new(2 * MIB);
        memory.write(GuestPhysAddr(MIB), vec![1]).unwrap();
        let entry = EntryState::reset();
        vcpu.load_guest_later(Arc::new(GuestImage { memory, entry }));
        let vm = vcpu.vm().clone();
        let exit = vcpu.load_guest(HostTicks(u64::MAX), vm.requests(0));
        assert!(matches!(
            exit,
            Err(RunExit::Stopped(StopReason::NotLoaded(_)))
        ));
    }
}
