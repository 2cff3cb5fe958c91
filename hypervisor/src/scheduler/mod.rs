//! Which VCPU a physical CPU runs, and what it does when there is none.

use alloc::string::String;
use alloc::vec::Vec;

use devices::time::{Hertz, HostTicks};

use crate::host_time::host_now;
use crate::machine::host_timer::HostTimer;
use crate::machine::{power, serial};
use crate::operator;
use crate::options::OnEnd;
use crate::vcpu::{Activity, Ending, Pause, Vcpu};
use crate::vm::State;

/// Slices of a CPU's time: 10 ms.
const SLICES_PER_SECOND: u64 = 100;
/// How often the console's line is looked at: its FIFO of 16 bytes fills in 1.4 ms.
const POLLS_PER_SECOND: u64 = 1000;

/// The VCPUs of a physical CPU, taken in turn.
pub struct Scheduler {
    vcpus: Vec<Vcpu>,
    /// The VCPU whose state is in the processor.
    loaded: Option<usize>,
    timer: HostTimer,
    slice: u64,
    poll_interval: u64,
    next_poll: HostTicks,
    on_end: OnEnd,
}

impl Scheduler {
    /// A scheduler without VCPUs.
    #[must_use]
    pub fn new(timer: HostTimer, tsc: Hertz, on_end: OnEnd) -> Self {
        Self {
            vcpus: Vec::new(),
            loaded: None,
            timer,
            slice: tsc.get() / SLICES_PER_SECOND,
            poll_interval: tsc.get() / POLLS_PER_SECOND,
            next_poll: host_now(),
            on_end,
        }
    }

    /// Adds the VCPUs of a VM.
    pub fn add(&mut self, vcpus: Vec<Vcpu>) {
        self.vcpus.extend(vcpus);
    }

    /// The loop of this CPU.
    pub fn run(&mut self) -> ! {
        let mut turn = 0;
        loop {
            let now = host_now();
            if now >= self.next_poll {
                operator::poll();
                self.next_poll = now.saturating_add(self.poll_interval);
            }
            match self.next_runnable(turn, now) {
                Some(index) => {
                    self.switch_to(index);
                    let slice_end = now.saturating_add(self.slice);
                    let pause = self.run_slice(index, slice_end);
                    if let Pause::Ended(ending) = pause {
                        self.end_vm(index, ending);
                    }
                    turn = index + 1;
                }
                None => self.idle(),
            }
        }
    }

    /// Runs a VCPU until the end of its slice, with the console served in between.
    fn run_slice(&mut self, index: usize, slice_end: HostTicks) -> Pause {
        loop {
            let until = slice_end.min(self.next_poll);
            let pause = self.vcpus[index].run(until);
            if pause != Pause::Preempted {
                return pause;
            }
            let now = host_now();
            if now >= self.next_poll {
                operator::poll();
                self.next_poll = now.saturating_add(self.poll_interval);
            }
            if now >= slice_end || self.vcpus[index].vm().state() != State::Running {
                return pause;
            }
        }
    }

    /// The first VCPU from `turn` on that has something to do.
    fn next_runnable(&mut self, turn: usize, now: HostTicks) -> Option<usize> {
        let count = self.vcpus.len();
        (0..count)
            .map(|offset| (turn + offset) % count)
            .find(|&index| {
                if self.vcpus[index].vm().state() != State::Running {
                    return false;
                }
                if self.vcpus[index].activity() == Activity::Running {
                    return true;
                }
                if !self.vcpus[index].wants_attention(now) {
                    return false;
                }
                self.switch_to(index);
                match self.vcpus[index].poll(now) {
                    Ok(runnable) => runnable,
                    // Ended while halted: let its run say so.
                    Err(_) => true,
                }
            })
    }

    /// Sleeps until a VCPU's timer is due or the console is to be looked at.
    fn idle(&mut self) {
        let running = |vcpu: &&Vcpu| vcpu.vm().state() == State::Running;
        let deadline = self.vcpus.iter().filter(running).map(Vcpu::deadline).min();
        let until = deadline.unwrap_or(HostTicks(u64::MAX)).min(self.next_poll);
        self.timer.sleep_until(until);
    }

    fn switch_to(&mut self, index: usize) {
        if self.loaded == Some(index) {
            return;
        }
        if let Some(old) = self.loaded {
            self.vcpus[old].unload();
        }
        if self.vcpus[index].load().is_err() {
            crate::fatal::fatal(format_args!(
                "the processor refuses a VMCS: a bug of tarpit's"
            ));
        }
        self.loaded = Some(index);
    }

    /// Ends the VM of VCPU `index`, with a dump if the guest did not mean it.
    fn end_vm(&mut self, index: usize, ending: Ending) {
        let vm = self.vcpus[index].vm().clone();
        if !ending.is_orderly() {
            let mut dump = String::new();
            // Writing to a string does not fail.
            let _ = self.vcpus[index].write_dump(&mut dump);
            serial::print(format_args!(
                "vm {}: state of VCPU {} at its end:\n{dump}",
                vm.name,
                self.vcpus[index].index()
            ));
        }
        operator::message(format_args!("vm {} ended: {ending}\n", vm.name));
        vm.set_state(State::Ended);
        operator::vm_ended(&vm);
        self.loaded = None;
        self.vcpus.retain(|vcpu| vcpu.vm().id != vm.id);
        if self.vcpus.is_empty() && self.on_end == OnEnd::PowerOff {
            serial::flush();
            power::off();
        }
    }
}
