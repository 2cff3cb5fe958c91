//! VCPUs for tests: whole VMs, whose guests run on a [`FakeCpu`].

use alloc::boxed::Box;
use alloc::sync::Arc;
use alloc::vec::Vec;

use arch::gpr::RAX;
use devices::apic_message::{ApicMessage, DeliveryMode, Destination, Trigger};
use devices::time::HostTicks;
use vmx::addr::GuestPhysAddr;

use super::backend::exit::{ControlRegisterAccess, Exit};
use super::backend::fake::{Entry, FakeCpu, Stay};
use super::{RunExit, Vcpu, VcpuConfig};
use crate::guest_memory::GuestMemory;
use crate::ids::{VcpuId, VmId};
use crate::machine::host_time::{fake as host_clock, host_now};
use crate::msr::{HostMsrs, Msrs};
use crate::suppression::address_space::{Root, RootFormat};
use crate::suppression::order::{Defaults, Order, Policy};
use crate::suppression::{Factor, Factors};
use crate::vm::Vm;
use crate::vm::host::Waker;
use crate::vm::ram::GuestRam;
use crate::vm::rom::Rom;
use crate::vm::test_vm;

/// The host's time when a VM is made.
pub(super) const START: HostTicks = HostTicks(1_000_000_000);
/// The size of a VM's RAM, in bytes.
const RAM_SIZE: u64 = 1 << 20;

/// The host time `ticks` after [`START`].
pub(super) const fn at(ticks: u64) -> HostTicks {
    START.saturating_add(ticks)
}

/// A machine with one CPU, on which the test is awake.
struct NoOtherCpu;

impl Waker for NoOtherCpu {
    fn kick(&self, _: u32) {}

    fn wake(&self, _: VcpuId) {}
}

/// The VCPUs of a new VM, at host time [`START`]. `prepare` changes their processors before.
fn vcpus_with(count: u32, prepare: impl Fn(&mut FakeCpu)) -> Vec<Vcpu<FakeCpu>> {
    vcpus_in(test_vm::ram(RAM_SIZE), count, prepare)
}

/// The same, in this RAM.
fn vcpus_in(ram: GuestRam, count: u32, prepare: impl Fn(&mut FakeCpu)) -> Vec<Vcpu<FakeCpu>> {
    host_clock::set(START);
    let lapics = test_vm::lapics(count);
    let vm = test_vm::vm_with(
        VmId(0),
        "test",
        &lapics,
        ram,
        Vec::new(),
        Arc::new(NoOtherCpu),
        Box::new(test_vm::Written::default()),
    );
    (0..)
        .zip(lapics)
        .map(|(index, mut lapic)| {
            lapic.enter_virtual_wire_mode();
            let host = HostMsrs {
                microcode_revision: 0,
                arch_capabilities: 0,
            };
            let mut cpu = FakeCpu::new();
            prepare(&mut cpu);
            let config = VcpuConfig {
                index,
                lapic,
                msrs: Msrs::new(&vm.cpuid, &host),
                virtualize_apic: true,
                tsc: test_vm::TSC,
            };
            Vcpu::new(vm.clone(), cpu, config).expect("the fake processor takes it")
        })
        .collect()
}

/// The VCPUs of a new VM, at host time [`START`]; their local APICs are in virtual wire mode, and
/// nothing of them but the TPR is left to the processor.
pub(super) fn vcpus(count: u32) -> Vec<Vcpu<FakeCpu>> {
    vcpus_with(count, |_| ())
}

/// The one VCPU of a new VM: see [`vcpus`].
pub(super) fn vcpu() -> Vcpu<FakeCpu> {
    vcpus(1).remove(0)
}

/// The same, with a processor that delivers interrupts by itself.
pub(super) fn vcpu_with_virtual_delivery() -> Vcpu<FakeCpu> {
    vcpus_with(1, |cpu| cpu.can_virtualize_apic = true).remove(0)
}

/// The one VCPU of a VM with firmware.
pub(super) fn vcpu_with_rom() -> Vcpu<FakeCpu> {
    let rom = Rom::new(GuestPhysAddr(0xffff_f000), &[0x90; 0x1000]).expect("there is a heap");
    vcpus_in(test_vm::ram(RAM_SIZE).with_rom(Arc::new(rom)), 1, |_| ()).remove(0)
}

impl Vcpu<FakeCpu> {
    /// Appends what the guest does next.
    pub(super) fn then(&mut self, stay: Stay) -> &mut Self {
        self.cpu.script.push_back(stay);
        self
    }

    /// Runs the guest until its script is over, and returns the entry after it.
    pub(super) fn entry_after_script(&mut self) -> Entry {
        self.then(Stay::until(0, Exit::TripleFault));
        let exit = self.run(HostTicks(u64::MAX));
        assert_eq!(exit, RunExit::Stopped(super::StopReason::TripleFault));
        self.cpu.last_entry().clone()
    }

    /// Runs the guest for `ticks`.
    pub(super) fn run_for(&mut self, ticks: u64) -> RunExit {
        self.run(host_now().saturating_add(ticks))
    }
}

/// Sends a message to all local APICs of `vm`.
pub(super) fn send(vm: &Vm, delivery_mode: DeliveryMode, vector: u8) {
    vm.route(&ApicMessage {
        destination: Destination::All,
        delivery_mode,
        vector,
        trigger: Trigger::Edge,
    });
}

/// The root of the process that is to be a target, and of another one.
pub(super) const TARGET: u64 = 0x1000;
pub(super) const OTHER: u64 = 0x3000;

/// `vcpu` with two processes in its VM's memory, of which the other runs, in user mode.
pub(super) fn with_processes(mut vcpu: Vcpu<FakeCpu>) -> Vcpu<FakeCpu> {
    vcpu.cpu.cr3 = OTHER;
    vcpu.cpu.set_cpl(3);
    for root in [TARGET, OTHER] {
        let entry = (root + 0x7000) | 0x67;
        vcpu.vm
            .ram
            .write(GuestPhysAddr(root + 8 * 85), &entry.to_le_bytes())
            .unwrap();
    }
    vcpu
}

/// Makes the process of `cr3` a target of factor `n`.
pub(super) fn suppress(vm: &Vm, cr3: u64, n: u32, policy: Policy) {
    let factors = Factors::both(Factor::new(n).unwrap());
    let order = Order {
        policy,
        ..Order::new(factors, Defaults::default())
    };
    let root = Root::new(cr3, RootFormat::Long);
    vm.suppression
        .lock()
        .suppress(&vm.ram, root, RootFormat::Long, order, &[], host_now())
        .unwrap();
    vm.suppression_changed();
}

/// The guest's kernel loads CR3.
pub(super) fn load(cr3: u64) -> Stay {
    let access = ControlRegisterAccess::Write {
        register: 3,
        gpr: RAX as u8,
    };
    Stay::until(100, Exit::ControlRegister(access)).having(move |cpu| {
        cpu.gprs[RAX] = cr3;
        cpu.set_cpl(0);
    })
}
