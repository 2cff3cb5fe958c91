//! VCPUs as threads, which come and go, read the clock all the while, and compare.

use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::vec::Vec;

use devices::clock::{Rate, Rates, TscScaling, VirtualClock};
use devices::time::HostTicks;

use super::*;
use crate::vm::requests::Requests;

const VCPUS: usize = 3;

struct Vm {
    gate: ClockGate,
    vcpus: Vec<VcpuRequests>,
    clock: Mutex<VirtualClock>,
    /// The latest time that any VCPU has read.
    latest: AtomicU64,
    stop: AtomicBool,
    readings: AtomicU64,
    changes: AtomicU32,
}

fn fenced_now() -> HostTicks {
    // SAFETY: reads a counter.
    HostTicks(unsafe {
        core::arch::x86_64::_mm_lfence();
        let now = core::arch::x86_64::_rdtsc();
        core::arch::x86_64::_mm_lfence();
        now
    })
}

impl Vm {
    fn set_rate(&self, own: Option<u32>, factor: u32) {
        let rate = Rate::times(factor).unwrap();
        // Threads cannot be kicked: a guest of these looks at its requests by itself.
        let request = |index: u32| {
            self.vcpus[index as usize].make(Requests::CLOCK);
        };
        self.gate.change(&self.vcpus, own, request, || {
            let rates = Rates {
                counter: rate,
                timer: rate,
            };
            self.clock.lock().unwrap().set_rates(fenced_now(), rates);
        });
        self.changes.fetch_add(1, SeqCst);
    }

    /// What a guest does between two exits: reads its TSC, and compares with what others have
    /// told it.
    fn guest_turn(&self, scaling: TscScaling) {
        let told = self.latest.load(SeqCst);
        let read = scaling.apply(fenced_now()).0;
        assert!(read >= told, "read {read} after being told {told}");
        self.latest.fetch_max(read, SeqCst);
        self.readings.fetch_add(1, SeqCst);
    }

    fn vcpu(&self, index: u32, seed: u64) {
        let requests = &self.vcpus[index as usize];
        let mut random = seed;
        while !self.stop.load(SeqCst) {
            requests.set_running_on(Some(index));
            for _ in 0..50 {
                requests.take();
                self.gate.pass(requests);
                let scaling = self.clock.lock().unwrap().tsc_scaling();
                while !requests.are_pending() {
                    self.guest_turn(scaling);
                    random = random
                        .wrapping_mul(6_364_136_223_846_793_005)
                        .wrapping_add(1);
                    if random >> 58 == 0 {
                        break;
                    }
                }
                if random >> 60 == 1 {
                    self.set_rate(Some(index), [1, 2, 10, 1000][(random >> 33) as usize % 4]);
                }
            }
            requests.set_running_on(None);
            std::thread::yield_now();
        }
    }
}

#[test]
fn no_vcpu_reads_a_time_before_one_that_another_has_read_however_the_rates_change() {
    let vm = Arc::new(Vm {
        gate: ClockGate::default(),
        vcpus: (0..VCPUS).map(|_| VcpuRequests::default()).collect(),
        clock: Mutex::new(VirtualClock::new(fenced_now())),
        latest: AtomicU64::new(0),
        stop: AtomicBool::new(false),
        readings: AtomicU64::new(0),
        changes: AtomicU32::new(0),
    });
    let vcpus: Vec<_> = (0..VCPUS as u32)
        .map(|index| {
            let vm = vm.clone();
            std::thread::spawn(move || vm.vcpu(index, u64::from(index) + 7))
        })
        .collect();
    // And the operator, who is no VCPU: until much has happened, however busy this machine is.
    let began = std::time::Instant::now();
    let enough = || vm.readings.load(SeqCst) > 10_000 && vm.changes.load(SeqCst) > 300;
    for round in 0.. {
        if round >= 300 && (enough() || began.elapsed().as_secs() > 60) {
            break;
        }
        vm.set_rate(None, 1 + round % 3 * 500);
        std::thread::sleep(std::time::Duration::from_micros(500));
    }
    vm.stop.store(true, SeqCst);
    for vcpu in vcpus {
        vcpu.join().unwrap();
    }
    assert!(enough());
}

#[test]
fn a_vcpu_that_is_on_no_cpu_is_not_waited_for_and_learns_of_the_change_later() {
    let gate = ClockGate::default();
    let vcpus = [VcpuRequests::default(), VcpuRequests::default()];
    let before = gate.pass(&vcpus[1]);
    gate.change(
        &vcpus,
        Some(0),
        |index| panic!("VCPU {index} runs nowhere"),
        || {},
    );
    assert_ne!(gate.state(), before);
}

#[test]
fn a_vcpu_on_a_cpu_is_asked_to_look() {
    let gate = ClockGate::default();
    let vcpus = [VcpuRequests::default(), VcpuRequests::default()];
    vcpus[1].set_running_on(Some(5));
    let requests = AtomicU32::new(0);
    let count = |index| {
        assert_eq!(index, 1);
        requests.fetch_add(1, SeqCst);
        // Its turn ends.
        vcpus[1].set_running_on(None);
    };
    gate.change(&vcpus, None, count, || {});
    assert_eq!(requests.into_inner(), 1);
}
