//! Which CPU's queue a VCPU is in: pins, where one that wakes goes, and what a CPU without work
//! takes from others.

use super::{CpuSet, PinError, Policy, RunState, VcpuEntry, VmEntry};
use crate::ids::VcpuId;

impl Policy {
    /// Pins a VCPU to a CPU, or with `None` lets it go anywhere. Returns the CPUs to be kicked.
    ///
    /// # Errors
    /// If there is no such VCPU or CPU; then nothing changes.
    pub(crate) fn pin(&mut self, target: VcpuId, cpu: Option<u32>) -> Result<CpuSet, PinError> {
        if let Some(cpu) = cpu {
            self.check_cpu(cpu)?;
        }
        let vcpu = self.vcpu_mut(target).ok_or(PinError::NoVcpu)?;
        vcpu.pin = cpu;
        let mut kicks = CpuSet::default();
        if let Some(cpu) = cpu
            && vcpu.home != cpu as usize
        {
            kicks.insert(vcpu.home);
            kicks.insert(cpu as usize);
            if let Some(old) = vcpu.loaded_on {
                kicks.insert(old);
            }
            self.move_home(target, cpu as usize);
        }
        Ok(kicks)
    }

    pub(super) fn check_cpu(&self, cpu: u32) -> Result<(), PinError> {
        if (cpu as usize) < self.cpus.len() {
            Ok(())
        } else {
            Err(PinError::NoCpu {
                cpu,
                cpus: self.cpu_count(),
            })
        }
    }

    /// Moves a VCPU to the queue of `home`, where others' virtual times mean other things.
    pub(super) fn move_home(&mut self, target: VcpuId, home: usize) {
        if let Some(Some(vm)) = self.vms.get_mut(target.vm.0)
            && let Some(vcpu) = vm.vcpus.get_mut(target.index as usize)
            && vcpu.home != home
        {
            vcpu.home = home;
            vcpu.time = vm.floor[home];
            self.catch_up(target);
        }
    }

    /// Returns where an unpinned VCPU that wakes goes: home, unless that is busy and another CPU is
    /// not. One whose state is still in a processor stays there.
    pub(super) fn home_for(&self, vcpu: &VcpuEntry) -> usize {
        if let Some(cpu) = vcpu.pin {
            return cpu as usize;
        }
        if let Some(cpu) = vcpu.loaded_on {
            return cpu;
        }
        let is_idle = |cpu: usize| self.load(cpu) == 0;
        if is_idle(vcpu.home) {
            return vcpu.home;
        }
        (0..self.cpus.len())
            .find(|&cpu| is_idle(cpu))
            .unwrap_or(vcpu.home)
    }

    /// Counts the VCPUs that run on `cpu` or could.
    pub(super) fn load(&self, cpu: usize) -> usize {
        self.all()
            .filter(|(target, vcpu)| {
                vcpu.home == cpu
                    && !matches!(vcpu.state, RunState::Blocked { .. })
                    && self.may_run(target.vm)
            })
            .count()
    }

    /// Takes a waiting VCPU from the fullest queue, if that is longer by two than that of
    /// `cpu`: then both have about the same.
    pub(super) fn steal(&mut self, cpu: usize) {
        if self.cpus.len() == 1 {
            return;
        }
        let own = self.load(cpu);
        let fullest = (0..self.cpus.len()).max_by_key(|&other| self.load(other));
        let Some(fullest) = fullest.filter(|&other| self.load(other) >= own + 2) else {
            return;
        };
        let movable = self
            .all()
            .filter(|(target, vcpu)| {
                vcpu.pin.is_none() && vcpu.loaded_on.is_none() && self.is_eligible(*target, fullest)
            })
            .map(|(target, _)| target)
            .min_by_key(|&target| self.key(target, fullest));
        if let Some(target) = movable {
            self.move_home(target, cpu);
        }
    }

    /// Returns the CPU with the fewest VCPUs, those of `new` included.
    pub(super) fn emptiest(&self, new: &VmEntry) -> usize {
        let vcpus = |cpu: usize| {
            let new = new.vcpus.iter().filter(|vcpu| vcpu.home == cpu).count();
            new + self.all().filter(|(_, vcpu)| vcpu.home == cpu).count()
        };
        (0..self.cpus.len())
            .min_by_key(|&cpu| vcpus(cpu))
            .unwrap_or(0)
    }

    /// Returns the CPU whose queue a VCPU belongs to, and whether it is pinned there.
    #[must_use]
    pub(crate) fn place(&self, target: VcpuId) -> Option<(u32, bool)> {
        let vcpu = self.vcpu(target)?;
        Some((vcpu.home as u32, vcpu.pin.is_some()))
    }
}
