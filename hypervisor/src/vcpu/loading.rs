//! How a VM that is started again gets its guest.
//!
//! Clearing the RAM takes as long as there is RAM. If the boot CPU did that, the VMs there would
//! stand still meanwhile. So the VM does it itself: its first VCPU clears the RAM and loads the
//! guest in its own CPU time, before it enters the guest for the first time.
#![forbid(unsafe_code)]

use alloc::boxed::Box;

use devices::time::HostTicks;

use super::backend::GuestCpu;
use super::{RunExit, StopReason, Vcpu};
use crate::guest_boot;
use crate::machine::host_time::host_now;
use crate::vm::requests::{Requests, VcpuRequests};
use crate::vm_config::VmConfig;

/// The number of bytes that are cleared between two looks at the time: some 50 us' worth.
const PIECE: u64 = 256 << 10;

/// A guest that is to be loaded.
pub(super) struct Loading {
    config: VmConfig<'static>,
    /// The number of bytes of the RAM that are clear.
    cleared: u64,
}

impl<C: GuestCpu> Vcpu<C> {
    /// Has the guest of `config` loaded when this VCPU, the VM's first, gets a CPU.
    pub(crate) fn load_guest_later(&mut self, config: VmConfig<'static>) {
        self.loading = Some(Box::new(Loading { config, cleared: 0 }));
    }

    /// Loads the guest, if it is to be loaded.
    ///
    /// # Errors
    /// If the VCPU is to come off its CPU: it is `until`, others want it to, the guest has been loaded,
    /// or its files do not make a guest.
    pub(super) fn load_guest(
        &mut self,
        until: HostTicks,
        requests: &VcpuRequests,
    ) -> Result<(), RunExit> {
        let Some(mut loading) = self.loading.take() else {
            return Ok(());
        };
        while let Some(next) = self.vm.ram.clear_piece(loading.cleared, PIECE) {
            loading.cleared = next;
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
        let state =
            guest_boot::load(&self.vm.ram, &loading.config).map_err(StopReason::NotLoaded)?;
        self.set_entry_state(&state);
        Err(RunExit::Loaded)
    }
}
