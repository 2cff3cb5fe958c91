//! A VM that halts and wakes as fast as it can, and what another VM has of it.

use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use super::*;

/// A VCPU that halts as soon as it runs, and is woken as soon as it has halted.
const STORM: Guest = Guest::Periodic {
    work: 1,
    every: MS / 10,
};

/// A VCPU that is to be served soon.
const SLEEPER: Guest = Guest::Periodic {
    work: MS / 2,
    every: 7 * MS,
};

/// What the first VCPU of a VM has of 2 seconds beside another VM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Service {
    latency: Latency,
    received: u64,
}

fn beside(cpus: u32, own: &[(Guest, Option<u32>)], other: &[(Guest, Option<u32>)]) -> Service {
    let mut simulation = Simulation::new(cpus);
    let vm = simulation.add(100, None, own);
    simulation.add(100, None, other);
    simulation.pass(2_000 * MS);
    Service {
        latency: simulation.latency(vm),
        received: simulation.received(vm),
    }
}

#[test]
fn a_storm_on_one_cpu_costs_a_vm_on_another_nothing() {
    let own = [(SLEEPER, Some(1)), hog_on(1)];
    let alone = beside(2, &own, &[]);
    assert!(alone.latency.count > 200, "{alone:?}");
    assert_eq!(beside(2, &own, &[(STORM, Some(0)); 4]), alone);
}

#[test]
fn a_storm_on_the_same_cpu_costs_no_more_latency_than_a_hog() {
    let own = [(SLEEPER, None)];
    let beside_hog = beside(1, &own, &[HOG; 4]);
    let beside_storm = beside(1, &own, &[(STORM, None); 4]);
    assert!(beside_storm.latency.count > 200, "{beside_storm:?}");
    assert!(
        beside_storm.latency.max <= beside_hog.latency.max,
        "{beside_storm:?}, {beside_hog:?}"
    );
    assert!(
        beside_storm.received >= beside_hog.received * 99 / 100,
        "{beside_storm:?}, {beside_hog:?}"
    );
}

#[test]
fn a_storm_takes_no_more_of_a_cpu_than_its_share() {
    let computing = beside(1, &[HOG], &[(STORM, None); 4]);
    assert!(computing.received >= 960 * MS, "{computing:?}");
}

#[test]
fn a_storm_that_goes_from_cpu_to_cpu_costs_no_more_latency_than_hogs() {
    let own = [(SLEEPER, None); 4];
    let beside_hogs = beside(4, &own, &[HOG; 8]);
    let beside_storm = beside(4, &own, &[(STORM, None); 8]);
    assert!(
        beside_storm.latency.max <= beside_hogs.latency.max.max(SETTINGS.granularity),
        "{beside_storm:?}, {beside_hogs:?}"
    );
    assert!(
        beside_storm.received >= beside_hogs.received * 99 / 100,
        "{beside_storm:?}, {beside_hogs:?}"
    );
}

/// What a CPU does with its own VCPUs while the queue of another is locked, over and over.
#[test]
fn a_cpu_goes_on_while_the_queue_of_another_is_locked() {
    let queues = Arc::new(Queues::new(SETTINGS, 2, HostTicks(0)));
    queues
        .add_vm(VmId(0), 100, None, &[Some(0), Some(0)])
        .unwrap();
    queues.add_vm(VmId(1), 100, Some(50), &[Some(1)]).unwrap();
    queues.wake(vcpu(1, 0), HostTicks(0));
    let locked = queues.lock(1);
    let (done, is_done) = mpsc::channel();
    let other = queues.clone();
    thread::spawn(move || {
        for round in 1..100 {
            let now = HostTicks(round * MS);
            for index in 0..2 {
                other.wake(vcpu(0, index), now);
            }
            for _ in 0..2 {
                let Decision::Run { vcpu, .. } = other.next(0, now, 0) else {
                    panic!("two want to run");
                };
                other.block(0, HostTicks(u64::MAX), now);
                other.released(0, vcpu);
            }
            let idle = other.next(0, now, 0);
            assert!(matches!(idle, Decision::Idle { .. }), "{idle:?}");
        }
        done.send(()).unwrap();
    });
    is_done
        .recv_timeout(Duration::from_secs(20))
        .expect("it waits for a lock");
    drop(locked);
}
