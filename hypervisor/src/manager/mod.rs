//! The one table of VMs: what there is, and starting, stopping, pausing and pinning it.
//!
//! Each VM has one slot, and one [state](VmState) there; the console, the operator's commands
//! and the CPUs' loops refer to it by its [`VmId`]. Requests may come from any CPU. What is asked
//! of a VM is seen by the others in nothing but the CPU time that they get.
//!
//! # Locks
//! Each slot has a lock, under which the scheduler's may be taken, and the clock of the slot's VM
//! be changed. Nobody holds two slots' locks at once, nor takes one with any other lock held but
//! that of a VCPU that has come off its guest.

mod create;
pub(crate) mod factory;
mod kept_disks;
mod making;
mod restarts;
mod slot;
mod state;

use alloc::boxed::Box;
use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;

use crate::ids::{VcpuId, VmId};
use crate::machine::host_time::host_now;
use crate::scheduler::{CpuUsage, Scheduler};
use crate::suppression::notice::Notice;
use crate::sync;
use crate::sync::Mutex;
use crate::sync::atomic::{AtomicBool, Ordering};
use crate::vcpu::StopReason;
use crate::vm::{AfterPause, Vm};
use crate::vm_config::VmConfig;
use factory::{Load, VmFactory};
use making::Making;
use restarts::Next;
use slot::{Life, VmSlot};

pub(crate) use create::HostFactory;
pub(crate) use state::{RequestError, StopCause, VmState};

/// The most bytes that wait for a guest to take them; what comes on top is lost, as on a
/// real line.
const INPUT_CAPACITY: usize = 4096;

/// The time after which no step of work is begun, as a divisor of a second: a tenth of a millisecond. A
/// step may take several times that.
const WORK_PER_SECOND: u64 = 10_000;

/// A VM as the operator sees it.
#[derive(Clone)]
pub(crate) struct VmInfo {
    /// The state that it is in.
    pub state: VmState,
    /// RAM in bytes.
    pub memory: u64,
    /// The number of its VCPUs.
    pub vcpus: u32,
    /// The state that its VCPUs share, or shared when it ran last; `None` if it has never been
    /// made.
    pub vm: Option<Arc<Vm>>,
}

/// A VM's end, to be told to the operator.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct VmStop {
    /// The VM.
    pub vm: VmId,
    /// The reason why it stops.
    pub reason: StopReason,
    /// The number of the VCPU that came to this end, and a description of what it was doing, if
    /// that was not what the guest meant.
    pub dump: Option<(u32, String)>,
}

/// The table of VMs. See the [module documentation](self).
pub(crate) struct VmManager {
    factory: Box<dyn VmFactory>,
    scheduler: Arc<Scheduler>,
    slots: Vec<VmSlot>,
    /// Whether there may be something for [`VmManager::work`].
    has_work: AtomicBool,
    /// The ends of VMs that [`VmManager::take_stops`] has not told yet.
    stops: Mutex<Vec<VmStop>>,
}

impl VmManager {
    /// Makes a table of VMs with these configurations, whose names differ, in the order of their
    /// numbers. They do not run yet: `factory` makes them when they are started, and `scheduler`
    /// runs them.
    #[must_use]
    pub(crate) fn new(
        factory: Box<dyn VmFactory>,
        scheduler: Arc<Scheduler>,
        configs: Vec<VmConfig<'static>>,
    ) -> Self {
        Self {
            factory,
            scheduler,
            slots: configs.into_iter().map(VmSlot::new).collect(),
            has_work: AtomicBool::new(false),
            stops: Mutex::new(Vec::new()),
        }
    }

    /// Returns the scheduler that the VMs run on.
    #[must_use]
    pub(crate) const fn scheduler(&self) -> &Arc<Scheduler> {
        &self.scheduler
    }

    /// Returns the numbers of all VMs.
    pub(crate) fn ids(&self) -> impl Iterator<Item = VmId> + Clone + use<> {
        (0..self.slots.len()).map(VmId)
    }

    /// Returns the names of all VMs, by number.
    pub(crate) fn names(&self) -> impl Iterator<Item = &str> + Clone {
        self.slots.iter().map(|slot| slot.config.name.as_str())
    }

    /// Returns the number of the VM of this name.
    #[must_use]
    pub(crate) fn find(&self, name: &str) -> Option<VmId> {
        self.names().position(|known| known == name).map(VmId)
    }

    fn slot(&self, id: VmId) -> Result<&VmSlot, RequestError> {
        self.slots.get(id.0).ok_or(RequestError::NoVm)
    }

    /// Returns the name of a VM.
    ///
    /// # Errors
    /// If there is no such VM.
    pub(crate) fn name(&self, id: VmId) -> Result<&str, RequestError> {
        Ok(&self.slot(id)?.config.name)
    }

    /// Returns what a VM is doing.
    ///
    /// # Errors
    /// If there is no such VM.
    #[cfg(test)]
    pub(crate) fn state(&self, id: VmId) -> Result<VmState, RequestError> {
        Ok(self.slot(id)?.life.lock().state.clone())
    }

    /// Returns what the VCPUs of a VM share, or shared when it ran last.
    ///
    /// # Errors
    /// If there is no such VM, or it has never been made.
    pub(crate) fn vm(&self, id: VmId) -> Result<Arc<Vm>, RequestError> {
        let slot = self.slot(id)?;
        let vm = slot.life.lock().vm.clone();
        vm.ok_or_else(|| RequestError::NeverRan(slot.config.name.clone()))
    }

    /// Returns all about a VM that a list of VMs shows.
    ///
    /// # Errors
    /// If there is no such VM.
    pub(crate) fn info(&self, id: VmId) -> Result<VmInfo, RequestError> {
        let slot = self.slot(id)?;
        let life = slot.life.lock();
        Ok(VmInfo {
            state: life.state.clone(),
            memory: slot.config.memory,
            vcpus: slot.config.vcpus,
            vm: life.vm.clone(),
        })
    }

    /// Returns what the VCPUs of a VM have had of the machine; nothing if it does not run.
    #[must_use]
    pub(crate) fn cpu_usage(&self, id: VmId) -> Vec<CpuUsage> {
        (0..)
            .map_while(|index| self.scheduler.usage(VcpuId { vm: id, index }))
            .collect()
    }

    /// Lets a VM get no CPU time, and stops its clock. To be called between the turns of the
    /// VCPUs of this CPU: waits until the VM's are off their CPUs.
    ///
    /// # Errors
    /// If it does not run.
    pub(crate) fn pause(&self, id: VmId) -> Result<(), RequestError> {
        let slot = self.slot(id)?;
        let mut life = slot.life.lock();
        if !matches!(life.state, VmState::Loading | VmState::Running) {
            return Err(slot.refuse(&life.state, "paused"));
        }
        life.state = VmState::Paused;
        self.scheduler.set_paused(id, true);
        if let Some(vm) = &life.vm {
            // They have been kicked; whatever they do, they come.
            while vm.is_on_a_cpu() {
                sync::spin_loop();
            }
            vm.stop_clock();
        }
        Ok(())
    }

    /// Lets a paused VM go on, and its clock as `clock` says.
    ///
    /// # Errors
    /// If it is not paused.
    pub(crate) fn resume(&self, id: VmId, clock: AfterPause) -> Result<(), RequestError> {
        let slot = self.slot(id)?;
        let mut life = slot.life.lock();
        if life.state != VmState::Paused {
            return Err(slot.refuse(&life.state, "resumed"));
        }
        life.state = if life.loaded {
            VmState::Running
        } else {
            VmState::Loading
        };
        if let Some(vm) = &life.vm {
            vm.continue_clock(clock);
        }
        self.scheduler.set_paused(id, false);
        Ok(())
    }

    /// Ends a VM, as if its power were cut.
    ///
    /// # Errors
    /// If it does not run, nor is about to.
    pub(crate) fn stop(&self, id: VmId) -> Result<(), RequestError> {
        let slot = self.slot(id)?;
        let mut life = slot.life.lock();
        if !life.state.is_live() && life.state != VmState::Starting {
            return Err(slot.refuse(&life.state, "stopped"));
        }
        self.begin_stop(id, &mut life, StopReason::Stopped, false, None);
        Ok(())
    }

    /// Starts a VM that does not run, from its boot modules and the disks that are kept.
    ///
    /// # Errors
    /// If it runs.
    pub(crate) fn start(&self, id: VmId) -> Result<(), RequestError> {
        let slot = self.slot(id)?;
        let mut life = slot.life.lock();
        if !matches!(life.state, VmState::Defined | VmState::Stopped(_)) {
            return Err(slot.refuse(&life.state, "started"));
        }
        life.state = VmState::Starting;
        self.has_work.store(true, Ordering::Release);
        Ok(())
    }

    /// Ends a VM, if it runs, and starts it again, from its boot modules and the disks that are kept.
    ///
    /// # Errors
    /// If there is no such VM.
    pub(crate) fn restart(&self, id: VmId) -> Result<(), RequestError> {
        let mut life = self.slot(id)?.life.lock();
        match &mut life.state {
            VmState::Defined | VmState::Stopped(_) => {
                life.state = VmState::Starting;
                self.has_work.store(true, Ordering::Release);
            }
            VmState::Starting => {}
            VmState::Stopping { restart, .. } => *restart = true,
            VmState::Loading | VmState::Running | VmState::Paused => {
                self.begin_stop(id, &mut life, StopReason::Stopped, true, None);
            }
        }
        Ok(())
    }

    /// Pins a VCPU to a physical CPU, or with `None` lets it go anywhere; also over restarts.
    ///
    /// # Errors
    /// If there is no such VM, VCPU or CPU, or the VM does not run; then nothing changes.
    pub(crate) fn pin(&self, id: VmId, index: u32, cpu: Option<u32>) -> Result<(), RequestError> {
        let mut life = self.slot(id)?.life.lock();
        self.scheduler.pin(VcpuId { vm: id, index }, cpu)?;
        if let Some(pin) = life.pins.get_mut(index as usize) {
            *pin = cpu;
        }
        Ok(())
    }

    /// Tells that the guest of a VM has been loaded, and goes on running.
    pub(crate) fn loaded(&self, id: VmId) {
        let Ok(slot) = self.slot(id) else { return };
        let mut life = slot.life.lock();
        life.loaded = true;
        if life.state == VmState::Loading {
            life.state = VmState::Running;
        }
    }

    /// Tells that the VM of `vcpu`, which is loaded on this CPU and has left its guest for the
    /// last time, has come to its end. `dump` describes what the VCPU was doing. If its
    /// configuration says so, it is started again.
    pub(crate) fn ended(&self, vcpu: VcpuId, reason: StopReason, dump: impl FnOnce() -> String) {
        let Ok(slot) = self.slot(vcpu.vm) else { return };
        let mut life = slot.life.lock();
        if !life.state.is_live() {
            // Another VCPU was first, or the operator.
            return;
        }
        let dump = (!reason.is_orderly()).then(|| (vcpu.index, dump()));
        let next = life.restarts.after(
            &reason,
            slot.config.restart,
            host_now(),
            self.factory.ticks_per_second(),
        );
        if next == Next::TooOften {
            log::error!(
                "vm {}: it has ended so too often to be started again: `start` starts it",
                slot.config.name
            );
        }
        self.begin_stop(vcpu.vm, &mut life, reason, next == Next::Restart, dump);
    }

    fn begin_stop(
        &self,
        id: VmId,
        life: &mut Life,
        reason: StopReason,
        restart: bool,
        dump: Option<(u32, String)>,
    ) {
        self.stops.lock().push(VmStop {
            vm: id,
            reason: reason.clone(),
            dump,
        });
        life.state = VmState::Stopping { reason, restart };
        self.scheduler.stop_vm(id);
        self.has_work.store(true, Ordering::Release);
    }

    /// Takes the ends of VMs that have not been told to the operator yet, in their order.
    pub(crate) fn take_stops(&self) -> Vec<VmStop> {
        core::mem::take(&mut *self.stops.lock())
    }

    /// Takes what there is to be told of the targets of all VMs, each VM's in its order.
    #[must_use]
    pub(crate) fn take_notices(&self) -> Vec<(VmId, Notice)> {
        let of = |id| {
            let notices = self.vm(id).map(|vm| vm.take_notices());
            notices
                .unwrap_or_default()
                .into_iter()
                .map(move |notice| (id, notice))
        };
        self.ids().flat_map(of).collect()
    }

    /// Returns whether [`VmManager::work`] is to be called.
    #[inline]
    #[must_use]
    pub(crate) fn has_work(&self) -> bool {
        self.has_work.load(Ordering::Acquire)
    }

    /// Clears away the VMs that have ended, and starts those that are to be started, as far as it gets in
    /// a short time: the rest is work for the next time. On the boot CPU, with no VCPU loaded.
    pub(crate) fn work(&self) {
        // Before looking: what comes later, counts later.
        self.has_work.store(false, Ordering::Release);
        let time = self.factory.ticks_per_second() / WORK_PER_SECOND;
        let until = host_now().saturating_add(time);
        let mut has_time = true;
        for (id, slot) in self.ids().zip(&self.slots) {
            let mut life = slot.life.lock();
            if let VmState::Stopping { reason, restart } = &life.state {
                if !self.scheduler.is_quiescent(id) {
                    self.has_work.store(true, Ordering::Release);
                    continue;
                }
                let next = if *restart {
                    VmState::Starting
                } else {
                    VmState::Stopped(StopCause::Ended(reason.clone()))
                };
                self.scheduler.remove_vm(id);
                if let Some(making) = life.making.take() {
                    life.ram = Some(making.ram);
                }
                life.state = next;
            }
            while life.former.is_some() || life.state == VmState::Starting {
                if !has_time {
                    self.has_work.store(true, Ordering::Release);
                    break;
                }
                if life.former.take().is_none()
                    && let Err(cause) = self.make_step(id, slot, &mut life, Load::Later)
                {
                    log::error!("vm {}: {cause}", slot.config.name);
                }
                has_time = host_now() < until;
            }
        }
    }

    /// Returns whether no VM runs, nor is to.
    #[must_use]
    pub(crate) fn all_stopped(&self) -> bool {
        self.slots.iter().all(|slot| {
            matches!(
                slot.life.lock().state,
                VmState::Defined | VmState::Stopped(_)
            )
        })
    }

    /// Starts all VMs, with their guests loaded at once. On the boot CPU, with no VCPU loaded.
    /// Returns those that cannot be made, and why: they are stopped, and the others run.
    #[must_use]
    pub(crate) fn start_all(&self) -> Vec<(VmId, StopCause)> {
        let mut failed = Vec::new();
        for (id, slot) in self.ids().zip(&self.slots) {
            let mut life = slot.life.lock();
            life.state = VmState::Starting;
            while life.state == VmState::Starting {
                if let Err(cause) = self.make_step(id, slot, &mut life, Load::Now) {
                    failed.push((id, cause));
                }
            }
        }
        failed
    }

    /// Does a step of making a VM, which is starting. After the last it runs, or it is noted why that cannot
    /// be.
    fn make_step(
        &self,
        id: VmId,
        slot: &VmSlot,
        life: &mut Life,
        load: Load,
    ) -> Result<(), StopCause> {
        let step = self.try_make_step(id, slot, life, load);
        match &step {
            Ok(false) => {}
            Ok(true) if life.loaded => life.state = VmState::Running,
            Ok(true) => life.state = VmState::Loading,
            Err(cause) => life.state = VmState::Stopped(cause.clone()),
        }
        step.map(drop)
    }

    /// Does a step of making a VM. Returns whether it was the last.
    fn try_make_step(
        &self,
        id: VmId,
        slot: &VmSlot,
        life: &mut Life,
        load: Load,
    ) -> Result<bool, StopCause> {
        let config = &slot.config;
        let mut making = match life.making.take() {
            Some(making) => making,
            None => {
                // If it cannot be made after all, others may have the RAM.
                let ram = match life.ram.take() {
                    Some(ram) => ram,
                    None => self.factory.allocate_ram(config.memory)?,
                };
                let disks = life.disks.for_vm(&config.disks)?;
                life.making = Some(Making::begin(&*self.factory, id, config, ram, disks)?);
                return Ok(false);
            }
        };
        if making.step(&*self.factory, load)? {
            life.making = Some(making);
            return Ok(false);
        }
        let Making { vm, ram, vcpus, .. } = making;
        let count = vcpus.len();
        // It may run on other CPUs from now on, but to the end only when the slot is unlocked.
        self.scheduler
            .add_vm(&vm, vcpus, config.weight, config.cap, &life.pins)?;
        life.former = life.vm.replace(vm);
        life.ram = Some(ram);
        life.loaded = load == Load::Now;
        log::info!(
            "vm {}: {} MiB, {count} VCPU{}",
            config.name,
            config.memory >> 20,
            if count == 1 { "" } else { "s" }
        );
        Ok(true)
    }

    /// Takes a byte for the serial port of a VM, which gets it when it can.
    pub(crate) fn type_to(&self, id: VmId, byte: u8) {
        let Ok(slot) = self.slot(id) else { return };
        let mut input = slot.input.lock();
        if input.len() < INPUT_CAPACITY {
            input.push_back(byte);
        }
    }

    /// Returns whether some of what was typed waits for its guest to take it.
    pub(crate) fn has_input(&self) -> bool {
        self.slots.iter().any(|slot| !slot.input.lock().is_empty())
    }

    /// Gives guests as much of what was typed for them as they take now: at their virtio console if it
    /// is there that they have written last, or else at their UART. So an answer goes to where its question
    /// came from; that a guest only listens at one of the two cannot be seen.
    pub(crate) fn pass_input_on(&self) {
        for slot in &self.slots {
            let mut input = slot.input.lock();
            if input.is_empty() {
                continue;
            }
            let vm = {
                let life = slot.life.lock();
                match life.state {
                    VmState::Loading | VmState::Running => life.vm.clone(),
                    _ => None,
                }
            };
            let Some(vm) = vm else { continue };
            if let Some(console) = vm.console.as_ref().filter(|it| it.is_in_use()) {
                let mut has_come = false;
                while console.has_room()
                    && let Some(byte) = input.pop_front()
                {
                    has_come |= console.push(byte);
                }
                if has_come {
                    vm.input_arrived();
                }
                continue;
            }
            vm.with_chipset(host_now(), |chipset, env| {
                while chipset.serial_can_receive()
                    && let Some(byte) = input.pop_front()
                {
                    chipset.serial_receive(byte, env);
                }
            });
        }
    }
}

#[cfg(test)]
mod tests;
