//! Stopping the other CPUs for good, wherever they are, and telling where that was.
#![forbid(unsafe_code)]

use core::fmt;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use super::{APIC_IDS, LAUNCH, MAX_CPUS};
use crate::ids::{VcpuId, VmId};
use crate::machine::cpu::PerCpu;
use crate::machine::cpu::trap::TrapFrame;
use crate::machine::local_apic::LocalApic;

/// Whether CPUs that get an NMI are to stop; once set, for ever.
static STOPPING: AtomicBool = AtomicBool::new(false);

/// The state of a CPU when it was stopped.
struct Record {
    /// The values of RIP and RSP.
    rip: AtomicU64,
    rsp: AtomicU64,
    /// Whether it has been stopped; set after them.
    stopped: AtomicBool,
    /// The VCPU that is loaded, as [`encode`] has it.
    task: AtomicU64,
}

static RECORDS: [Record; MAX_CPUS] = [const {
    Record {
        rip: AtomicU64::new(0),
        rsp: AtomicU64::new(0),
        stopped: AtomicBool::new(false),
        task: AtomicU64::new(0),
    }
}; MAX_CPUS];

/// A CPU besides the one that asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Other {
    index: u32,
}

/// The place in the code where a CPU was when it was stopped, with its stack and its VCPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    rip: u64,
    rsp: u64,
    task: Option<VcpuId>,
}

impl fmt::Display for Other {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let id = APIC_IDS.get(self.index as usize);
        let id = id.map_or(0, |id| id.load(Ordering::Relaxed));
        write!(f, "cpu {} (APIC ID {id})", self.index)
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "at rip {:#x}, rsp {:#x}, ", self.rip, self.rsp)?;
        match self.task {
            Some(VcpuId { vm, index }) => write!(f, "with VCPU {index} of VM {}", vm.0),
            None => f.write_str("without a VCPU"),
        }
    }
}

impl Other {
    /// Returns where it was when it was stopped; `None` if it has not been yet.
    #[must_use]
    pub(crate) fn place(self) -> Option<Place> {
        let record = RECORDS.get(self.index as usize)?;
        record.stopped.load(Ordering::Acquire).then(|| Place {
            rip: record.rip.load(Ordering::Relaxed),
            rsp: record.rsp.load(Ordering::Relaxed),
            task: decode(record.task.load(Ordering::Relaxed)),
        })
    }
}

/// Notes which VCPU is loaded on CPU `cpu`, for such a report.
pub(crate) fn note_task(cpu: u32, task: Option<VcpuId>) {
    if let Some(record) = RECORDS.get(cpu as usize) {
        record.task.store(encode(task), Ordering::Relaxed);
    }
}

/// Returns whether a VCPU is loaded on CPU `cpu`.
pub(super) fn has_task(cpu: u32) -> bool {
    let record = RECORDS.get(cpu as usize);
    record.is_some_and(|record| decode(record.task.load(Ordering::Relaxed)).is_some())
}

/// Returns a number for `task`; zero is none.
fn encode(task: Option<VcpuId>) -> u64 {
    task.map_or(0, |VcpuId { vm, index }| {
        (vm.0 as u64 + 1) << 32 | u64::from(index)
    })
}

fn decode(code: u64) -> Option<VcpuId> {
    let vm = (code >> 32).checked_sub(1)?;
    Some(VcpuId {
        vm: VmId(vm as usize),
        index: code as u32,
    })
}

/// Returns the CPUs that run besides this one.
pub(crate) fn others() -> impl Iterator<Item = Other> {
    let own = PerCpu::try_current().map_or(0, |cpu| cpu.index);
    let running = LAUNCH.get();
    let running = running.map_or(1, |launch| launch.running.load(Ordering::Acquire));
    (0..running)
        .filter(move |&index| index != own)
        .map(|index| Other { index })
}

/// Stops all other CPUs, by NMIs, for good. They do not come at once: see [`Other::place`].
pub(crate) fn stop_others() {
    STOPPING.store(true, Ordering::Release);
    for other in others() {
        if let Some(id) = APIC_IDS.get(other.index as usize) {
            LocalApic::current().send_nmi(id.load(Ordering::Relaxed));
        }
    }
}

/// Stops this CPU, which has got an NMI, if that is what the NMI is for.
pub(super) fn stop_if_asked(frame: &TrapFrame) {
    if !STOPPING.load(Ordering::Acquire) {
        return;
    }
    let index = PerCpu::try_current().map_or(0, |cpu| cpu.index);
    if let Some(record) = RECORDS.get(index as usize) {
        record.rip.store(frame.rip, Ordering::Relaxed);
        record.rsp.store(frame.rsp, Ordering::Relaxed);
        record.stopped.store(true, Ordering::Release);
    }
    loop {
        // Interrupts are off, and NMIs blocked until an IRET.
        x86_64::instructions::hlt();
    }
}

#[cfg(test)]
mod tests {
    use std::string::ToString;

    use super::*;

    #[test]
    fn a_place_tells_the_vcpu_that_is_loaded() {
        let vcpu = |vm, index| {
            Some(VcpuId {
                vm: VmId(vm),
                index,
            })
        };
        for task in [None, vcpu(0, 0), vcpu(0, 7), vcpu(500, 1)] {
            assert_eq!(decode(encode(task)), task);
        }
        let place = |task| Place {
            rip: 0x10_0000,
            rsp: 0x8000,
            task,
        };
        assert_eq!(
            place(vcpu(2, 1)).to_string(),
            "at rip 0x100000, rsp 0x8000, with VCPU 1 of VM 2"
        );
        assert_eq!(
            place(None).to_string(),
            "at rip 0x100000, rsp 0x8000, without a VCPU"
        );
    }

    #[test]
    fn a_cpu_that_has_not_stopped_has_no_place() {
        assert_eq!(Other { index: 63 }.place(), None);
        assert_eq!(Other { index: 64 }.place(), None);
    }
}
