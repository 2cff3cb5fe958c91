//! All VMs of the machine, from the operator's point of view: what there is, and starting,
//! stopping, pausing and pinning it.
//!
//! Whoever asks for something only leaves a note; the boot CPU acts on it ([`World::work`])
//! when no VCPU of the VM is on any CPU any more. What is asked of a VM is seen by the
//! others in nothing but the CPU time that they get.

use alloc::string::{String, ToString};
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicBool, Ordering};

use spin::{Mutex, Once};
use thiserror::Error;

use crate::machine::{power, serial};
use crate::operator;
use crate::options::OnEnd;
use crate::scheduler::hub::Share;
use crate::scheduler::{Hub, PinError, VcpuRef, cpu_loop};
use crate::vcpu::{StopReason, Vcpu};
use crate::vm::create::{CreateError, Maker, allocate_ram, load_guest};
use crate::vm::ram::GuestRam;
use crate::vm::{State, Vm, VmId, output};
use crate::vm_config::{MAX_VCPUS, VmConfig};

/// What a VM is doing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Its VCPUs get CPU time.
    Running,
    /// The operator has paused it.
    Paused,
    /// It has ended, or is to, and its VCPUs are coming off their CPUs.
    Stopping,
    /// It is no more; this is how it ended.
    Ended(String),
}

/// Why a request is refused.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum RequestError {
    /// No such VM.
    #[error("there is no such VM")]
    NoVm,
    /// The VM is not in a state for that.
    #[error("vm {name} is {phase}: it cannot be {request}")]
    Phase {
        /// Its name.
        name: String,
        /// What it is.
        phase: &'static str,
        /// What was asked for.
        request: &'static str,
    },
    /// A VCPU cannot be pinned.
    #[error("{0}")]
    Pin(#[from] PinError),
}

impl RequestError {
    /// A name of the error for programs.
    #[must_use]
    pub const fn kind(&self) -> &'static str {
        match self {
            Self::NoVm => "unknown_vm",
            Self::Phase { .. } => "wrong_state",
            Self::Pin(PinError::NoCpu { .. }) => "no_cpu",
            Self::Pin(PinError::NoVcpu) => "no_vcpu",
        }
    }
}

impl Phase {
    /// In one word.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Stopping => "stopping",
            Self::Ended(_) => "ended",
        }
    }
}

/// A VM as the operator sees it.
#[derive(Clone, Debug)]
pub struct VmInfo {
    /// Its number.
    pub id: VmId,
    /// Its name.
    pub name: String,
    /// What it is doing.
    pub phase: Phase,
    /// RAM in bytes.
    pub memory: u64,
    /// Its share of a CPU, relative to others.
    pub weight: u32,
    /// The most CPU time it may have, in percent of one CPU.
    pub cap: Option<u32>,
    /// What each VCPU has had of the machine; empty if the VM does not run.
    pub vcpus: Vec<Share>,
}

struct Managed {
    config: VmConfig<'static>,
    /// Where each VCPU is pinned: kept over a restart.
    pins: Vec<Option<u32>>,
    phase: Phase,
    /// The last one made.
    vm: Option<Arc<Vm>>,
    /// Kept over restarts: it will fit.
    ram: Option<GuestRam>,
    ending: Option<StopReason>,
    restart: bool,
}

impl Managed {
    fn refuse(&self, request: &'static str) -> RequestError {
        RequestError::Phase {
            name: self.config.name.clone(),
            phase: self.phase.name(),
            request,
        }
    }
}

/// All VMs.
pub struct World {
    maker: Maker,
    hub: &'static Hub,
    on_end: OnEnd,
    vms: Mutex<Vec<Managed>>,
    /// There may be something for [`World::work`].
    has_work: AtomicBool,
}

static WORLD: Once<World> = Once::new();

/// The world, once it is made: for the console.
#[must_use]
pub fn get() -> Option<&'static World> {
    WORLD.get()
}

/// Makes the world, with VMs of these configurations, which do not run yet. The first call
/// counts.
pub fn init(
    maker: Maker,
    hub: &'static Hub,
    on_end: OnEnd,
    configs: Vec<VmConfig<'static>>,
) -> &'static World {
    let managed = configs.into_iter().map(|config| Managed {
        pins: (0..config.vcpus as usize)
            .map(|index| config.pins.get(index).copied())
            .collect(),
        config,
        phase: Phase::Ended("not started".to_string()),
        vm: None,
        ram: None,
        ending: None,
        restart: false,
    });
    let vms: Vec<_> = managed.collect();
    output::divide_among(vms.len());
    WORLD.call_once(|| World {
        maker,
        hub,
        on_end,
        vms: Mutex::new(vms),
        has_work: AtomicBool::new(false),
    })
}

/// Leaves it to the VM to load its guest: other VMs run by now.
fn load_later(first: &mut Vcpu, config: &VmConfig<'static>) -> Result<(), CreateError> {
    first.load_guest_later(config.clone());
    Ok(())
}

impl World {
    /// All VMs, by number.
    #[must_use]
    pub fn vms(&self) -> Vec<VmInfo> {
        let vms = self.vms.lock();
        vms.iter()
            .enumerate()
            .map(|(number, managed)| {
                let id = VmId(number);
                VmInfo {
                    id,
                    name: managed.config.name.clone(),
                    phase: managed.phase.clone(),
                    memory: managed.config.memory,
                    weight: managed.config.weight,
                    cap: managed.config.cap,
                    vcpus: self.shares(id),
                }
            })
            .collect()
    }

    /// What the VCPUs of a VM have had of the machine; empty if it does not run.
    #[must_use]
    pub fn shares(&self, id: VmId) -> Vec<Share> {
        (0..MAX_VCPUS as u32)
            .map_while(|index| self.hub.share(VcpuRef { vm: id, index }))
            .collect()
    }

    /// The number of the VM of this name.
    #[must_use]
    pub fn find(&self, name: &str) -> Option<VmId> {
        let vms = self.vms.lock();
        let number = vms.iter().position(|vm| vm.config.name == name)?;
        Some(VmId(number))
    }

    /// What the VCPUs of a VM share, or shared when it ran last.
    #[must_use]
    pub fn vm(&self, id: VmId) -> Option<Arc<Vm>> {
        self.vms.lock().get(id.0)?.vm.clone()
    }

    /// Calls `look` with a VCPU, which comes off its CPU for that; `None` if there is none. Only
    /// for the boot CPU's console, between the turns of VCPUs.
    pub fn with_vcpu<R>(
        &self,
        id: VmId,
        index: u32,
        look: impl FnOnce(&mut Vcpu) -> R,
    ) -> Option<R> {
        self.hub.with_vcpu(VcpuRef { vm: id, index }, look)
    }

    fn request<R>(
        &self,
        id: VmId,
        act: impl FnOnce(&mut Managed) -> Result<R, RequestError>,
    ) -> Result<R, RequestError> {
        act(self.vms.lock().get_mut(id.0).ok_or(RequestError::NoVm)?)
    }

    /// Lets a VM get no CPU time, and stops its clock. For the boot CPU's console, between
    /// the turns of VCPUs.
    ///
    /// # Errors
    /// If it does not run.
    pub fn pause(&self, id: VmId) -> Result<(), RequestError> {
        self.request(id, |managed| {
            if managed.phase != Phase::Running {
                return Err(managed.refuse("paused"));
            }
            managed.phase = Phase::Paused;
            self.hub.set_paused(id, true);
            if let Some(vm) = &managed.vm {
                // They have been called; whatever they do, they come.
                while vm.is_on_a_cpu() {
                    core::hint::spin_loop();
                }
                vm.pause();
            }
            Ok(())
        })
    }

    /// Lets a paused VM go on.
    ///
    /// # Errors
    /// If it is not paused.
    pub fn resume(&self, id: VmId) -> Result<(), RequestError> {
        self.request(id, |managed| {
            if managed.phase != Phase::Paused {
                return Err(managed.refuse("resumed"));
            }
            managed.phase = Phase::Running;
            if let Some(vm) = &managed.vm {
                vm.resume();
            }
            self.hub.set_paused(id, false);
            Ok(())
        })
    }

    /// Ends a VM, as if its power were cut.
    ///
    /// # Errors
    /// If it does not run.
    pub fn stop(&self, id: VmId) -> Result<(), RequestError> {
        self.request(id, |managed| {
            if !matches!(managed.phase, Phase::Running | Phase::Paused) {
                return Err(managed.refuse("stopped"));
            }
            self.begin_end(id, managed, StopReason::Stopped);
            Ok(())
        })
    }

    /// Starts a VM that has ended, from its boot modules.
    ///
    /// # Errors
    /// If it has not ended.
    pub fn start(&self, id: VmId) -> Result<(), RequestError> {
        self.request(id, |managed| {
            if !matches!(managed.phase, Phase::Ended(_)) {
                return Err(managed.refuse("started"));
            }
            managed.restart = true;
            self.has_work.store(true, Ordering::Release);
            Ok(())
        })
    }

    /// Ends a VM, if it runs, and starts it again from its boot modules.
    ///
    /// # Errors
    /// If there is no such VM.
    pub fn restart(&self, id: VmId) -> Result<(), RequestError> {
        self.request(id, |managed| {
            managed.restart = true;
            if matches!(managed.phase, Phase::Running | Phase::Paused) {
                self.begin_end(id, managed, StopReason::Stopped);
            }
            self.has_work.store(true, Ordering::Release);
            Ok(())
        })
    }

    /// Pins a VCPU to a physical CPU, or with `None` lets it go anywhere; also over restarts.
    ///
    /// # Errors
    /// If there is no such VM, VCPU or CPU, or the VM does not run; then nothing changes.
    pub fn pin(&self, id: VmId, index: u32, cpu: Option<u32>) -> Result<(), RequestError> {
        self.request(id, |managed| {
            self.hub.pin(VcpuRef { vm: id, index }, cpu)?;
            if let Some(pin) = managed.pins.get_mut(index as usize) {
                *pin = cpu;
            }
            Ok(())
        })
    }

    /// Tells that the VM of `vcpu`, which is loaded on this CPU, has come to its end.
    pub fn ended(&self, vcpu: &Vcpu, ending: &StopReason) {
        let vm = vcpu.vm();
        let mut vms = self.vms.lock();
        let Some(managed) = vms.get_mut(vm.id.0) else {
            return;
        };
        if !matches!(managed.phase, Phase::Running | Phase::Paused) {
            // Another VCPU was first, or the operator.
            return;
        }
        if !ending.is_orderly() {
            serial::print(format_args!(
                "vm {}: state of VCPU {} at its end:\n{}",
                vm.name,
                vcpu.index(),
                cpu_loop::dump(vcpu)
            ));
        }
        self.begin_end(vm.id, managed, ending.clone());
    }

    fn begin_end(&self, id: VmId, managed: &mut Managed, ending: StopReason) {
        operator::message(format_args!("vm {} ended: {ending}\n", managed.config.name));
        if let Some(vm) = &managed.vm {
            vm.set_state(State::Ended);
            operator::vm_ended(vm);
        }
        managed.phase = Phase::Stopping;
        managed.ending = Some(ending);
        self.hub.stop_vm(id);
        self.has_work.store(true, Ordering::Release);
    }

    /// Whether [`World::work`] is to be called.
    #[inline]
    #[must_use]
    pub fn has_work(&self) -> bool {
        self.has_work.load(Ordering::Acquire)
    }

    /// Clears away the VMs that have ended, and starts those that are to be started. On the
    /// boot CPU, with no VCPU loaded.
    pub fn work(&self) {
        // Before looking: what comes later, counts later.
        self.has_work.store(false, Ordering::Release);
        let mut vms = self.vms.lock();
        for (number, managed) in vms.iter_mut().enumerate() {
            let id = VmId(number);
            if managed.phase == Phase::Stopping {
                if !self.hub.is_quiescent(id) {
                    self.has_work.store(true, Ordering::Release);
                    continue;
                }
                self.hub.remove_vm(id);
                let ending = managed.ending.take();
                managed.phase =
                    Phase::Ended(ending.map_or_else(String::new, |ending| ending.to_string()));
            }
            if managed.restart && matches!(managed.phase, Phase::Ended(_)) {
                managed.restart = false;
                if let Err(error) = self.make(id, managed, load_later) {
                    log::error!("vm {}: {error}", managed.config.name);
                    managed.phase = Phase::Ended(error);
                }
            }
        }
        let all_ended = vms
            .iter()
            .all(|managed| matches!(managed.phase, Phase::Ended(_)));
        if all_ended && self.on_end == OnEnd::PowerOff {
            serial::flush();
            power::off();
        }
    }

    /// Makes a VM, has its guest loaded by `load`, and lets it run. The error is for the
    /// operator.
    fn make(
        &self,
        id: VmId,
        managed: &mut Managed,
        load: impl FnOnce(&mut Vcpu, &VmConfig<'static>) -> Result<(), CreateError>,
    ) -> Result<(), String> {
        let config = &managed.config;
        let ram = match managed.ram.take() {
            Some(ram) => ram,
            None => allocate_ram(config.memory).map_err(|error| error.to_string())?,
        };
        managed.ram = Some(ram.clone());
        let mut vcpus = self
            .maker
            .make(id, config, ram)
            .map_err(|error| error.to_string())?;
        if let Some(first) = vcpus.first_mut() {
            load(first, config).map_err(|error| error.to_string())?;
        }
        let count = vcpus.len();
        if let Some(vm) = vcpus.first().map(Vcpu::vm) {
            if managed.vm.replace(vm.clone()).is_none() {
                operator::add_vm(vm);
            } else {
                operator::vms::replace(vm.clone());
            }
        }
        self.hub
            .add_vm(vcpus, config.weight, config.cap, &managed.pins)
            .map_err(|error| error.to_string())?;
        managed.phase = Phase::Running;
        log::info!(
            "vm {}: {} MiB, {count} VCPU{}",
            config.name,
            config.memory >> 20,
            if count == 1 { "" } else { "s" }
        );
        Ok(())
    }

    /// Starts all VMs. On the boot CPU, with no VCPU loaded.
    ///
    /// # Errors
    /// The first VM that cannot be made, and why.
    pub fn start_all(&self) -> Result<(), String> {
        let mut vms = self.vms.lock();
        for (number, managed) in vms.iter_mut().enumerate() {
            self.make(VmId(number), managed, load_guest)
                .map_err(|error| alloc::format!("vm {}: {error}", managed.config.name))?;
        }
        Ok(())
    }
}
