//! Two VCPUs that stay in the guest until they are kicked, and three changes of their clock: the operator's, and one
//! by a VCPU.

use core::sync::atomic as unseen;

use shuttle::thread;

use super::*;
use crate::model;
use crate::sync::atomic::{AtomicBool, AtomicU32};
use crate::sync::spin_loop;
use crate::vm::requests::Requests;

const VCPUS: usize = 2;

/// The VM, whose VCPUs have a CPU each.
#[derive(Default)]
struct Vm {
    gate: ClockGate,
    vcpus: [VcpuRequests; VCPUS],
    /// Whether each CPU's stay in the guest is at its end: what a kick does, in the guest or out of it.
    is_cut_short: [AtomicBool; VCPUS],
    /// The rates of the clock, which a change writes in two halves.
    clock: [AtomicU32; 2],
    /// Whether each VCPU is in the guest: seen by nobody but assertions.
    in_guest: [unseen::AtomicBool; VCPUS],
    /// Whether each VCPU has been woken since it fell asleep.
    is_woken: [AtomicBool; VCPUS],
    is_over: AtomicBool,
}

impl Vm {
    /// Makes a request of a VCPU, as [`crate::vm::Vm::request`] does.
    fn request(&self, index: u32) {
        let requests = &self.vcpus[index as usize];
        if requests.make(Requests::CLOCK) {
            match requests.running_on() {
                Some(cpu) => self.is_cut_short[cpu as usize].store(true, SeqCst),
                None => self.is_woken[index as usize].store(true, SeqCst),
            }
        }
    }

    fn assert_out(&self) {
        for (index, in_guest) in self.in_guest.iter().enumerate() {
            let in_guest = in_guest.load(SeqCst);
            assert!(
                !in_guest,
                "VCPU {index} is in the guest as its clock changes"
            );
        }
    }

    fn change(&self, own: Option<u32>) {
        let request = |index| self.request(index);
        self.gate.change(&self.vcpus, own, request, || {
            for half in &self.clock {
                self.assert_out();
                let rate = half.load(SeqCst);
                half.store(rate + 1, SeqCst);
            }
            self.assert_out();
        });
    }

    fn clock(&self) -> [u32; 2] {
        [self.clock[0].load(SeqCst), self.clock[1].load(SeqCst)]
    }

    /// Runs VCPU `index` as [`crate::vcpu`] does, for some turns: in the first, one that `changes` does so.
    fn run(&self, index: usize, turns: u32, changes: bool) {
        let requests = &self.vcpus[index];
        let (mut seen, mut applied) = (0, [0; 2]);
        for turn in 0..turns {
            requests.set_running_on(Some(index as u32));
            if changes && turn == 0 {
                self.change(Some(index as u32));
            }
            // What has changed meanwhile was not followed; what changes from now on, it is told of.
            let mut wanted = Requests::CLOCK;
            for _ in 0..2 {
                loop {
                    wanted |= requests.take();
                    if wanted.contains(Requests::CLOCK) && self.gate.state() != seen {
                        seen = self.gate.pass(requests);
                        applied = self.clock();
                    }
                    wanted = Requests::empty();
                    // The limit of the stay is set before the last look at the requests.
                    self.is_cut_short[index].store(false, SeqCst);
                    if !requests.are_pending() {
                        break;
                    }
                }
                self.in_guest[index].store(true, SeqCst);
                while !self.is_cut_short[index].load(SeqCst) && !self.is_over.load(SeqCst) {
                    assert_eq!(applied, self.clock(), "VCPU {index} shows another time");
                    spin_loop();
                }
                self.in_guest[index].store(false, SeqCst);
            }
            // As it falls asleep, the scheduler looks whether it is to wake at once.
            self.is_woken[index].store(false, SeqCst);
            requests.set_running_on(None);
            if requests.are_pending() {
                self.is_woken[index].store(true, SeqCst);
            }
        }
    }
}

fn clock_changes() {
    let vm = Vm::default();
    thread::scope(|scope| {
        let vm = &vm;
        scope.spawn(move || vm.run(0, 3, false));
        scope.spawn(move || vm.run(1, 2, true));
        for _ in 0..2 {
            vm.change(None);
        }
        vm.is_over.store(true, SeqCst);
    });
    assert_eq!(vm.gate.state() % 2, 0, "the gate is closed");
    for (index, requests) in vm.vcpus.iter().enumerate() {
        let sleeps_on = requests.are_pending() && !vm.is_woken[index].load(SeqCst);
        assert!(
            !sleeps_on,
            "whoever wants to wake VCPU {index} takes it for woken"
        );
    }
}

#[test]
fn nobody_is_in_the_guest_while_its_clock_changes_and_each_change_ends() {
    model::check(3, 5_000, clock_changes);
}
