//! Simulated guests on simulated CPUs: what each gets, and how long it waits.

mod cost;
mod storm;

use std::vec;
use std::vec::Vec;

use super::Queues as Policy;
use super::*;

/// A millisecond of these tests, in ticks.
const MS: u64 = 1_000;
const SETTINGS: Settings = Settings {
    slice: 10 * MS,
    granularity: MS,
    period: 100 * MS,
};

/// The behavior of a simulated VCPU, over and over.
#[derive(Clone, Copy)]
enum Guest {
    /// A VCPU that computes for ever, with interrupts off for all that it matters.
    Hog,
    /// A VCPU that computes for `work` ticks, then sleeps until the next multiple of `every`.
    Periodic { work: u64, every: u64 },
}

struct Simulation {
    policy: Policy,
    guests: Vec<Vec<Guest>>,
    /// The ticks that are left of the present work of each VCPU.
    left: Vec<Vec<u64>>,
    now: u64,
    /// The VCPU that each CPU runs, and the time until which it does.
    doing: Vec<Option<(VcpuId, HostTicks)>>,
    /// The part of the time of the first VM, as a divisor, that is waived.
    waived: Option<u64>,
}

fn vcpu(vm: usize, index: u32) -> VcpuId {
    VcpuId {
        vm: VmId(vm),
        index,
    }
}

impl Simulation {
    fn new(cpus: u32) -> Self {
        Self {
            policy: Policy::new(SETTINGS, cpus, HostTicks(0)),
            guests: vec![],
            left: vec![],
            now: 0,
            doing: vec![None; cpus as usize],
            waived: None,
        }
    }

    fn add(&mut self, weight: u32, cap: Option<u32>, guests: &[(Guest, Option<u32>)]) -> usize {
        let id = self.guests.len();
        let pins: Vec<_> = guests.iter().map(|&(_, pin)| pin).collect();
        self.policy.add_vm(VmId(id), weight, cap, &pins).unwrap();
        self.guests
            .push(guests.iter().map(|&(guest, _)| guest).collect());
        self.left.push(vec![0; guests.len()]);
        for index in 0..guests.len() {
            self.wake(vcpu(id, index as u32));
        }
        id
    }

    fn wake(&mut self, target: VcpuId) {
        let kicks = self.policy.wake(target, HostTicks(self.now));
        self.kick(kicks);
    }

    fn kick(&mut self, kicks: CpuSet) {
        for cpu in kicks.iter() {
            self.ask(cpu);
        }
    }

    /// `cpu` asks what to do now.
    fn ask(&mut self, cpu: u32) {
        loop {
            let before = self.policy.loaded_on(cpu);
            match self.policy.next(cpu, HostTicks(self.now), 0) {
                Decision::Run { vcpu, until, .. } => {
                    assert!(
                        until.0 <= self.now + SETTINGS.slice,
                        "no longer than a slice"
                    );
                    if let Some(before) = before
                        && before != vcpu
                    {
                        let kicks = self.policy.released(cpu, before);
                        self.doing[cpu as usize] = Some((vcpu, until));
                        self.kick(kicks);
                    }
                    let left = &mut self.left[vcpu.vm.0][vcpu.index as usize];
                    if *left == 0 {
                        *left = match self.guests[vcpu.vm.0][vcpu.index as usize] {
                            Guest::Hog => u64::MAX,
                            Guest::Periodic { work, .. } => work,
                        };
                    }
                    self.doing[cpu as usize] = Some((vcpu, until));
                    self.check();
                    return;
                }
                Decision::Release(vcpu) => {
                    self.doing[cpu as usize] = None;
                    let kicks = self.policy.released(cpu, vcpu);
                    self.kick(kicks);
                }
                Decision::Idle { until } => {
                    assert!(until.0 > self.now);
                    self.doing[cpu as usize] = None;
                    return;
                }
            }
        }
    }

    /// No VCPU runs on two CPUs.
    fn check(&self) {
        for (cpu, doing) in self.doing.iter().enumerate() {
            let Some((vcpu, _)) = doing else { continue };
            let same = |other: &&Option<(VcpuId, HostTicks)>| {
                other.is_some_and(|(other, _)| other == *vcpu)
            };
            assert_eq!(self.doing.iter().filter(same).count(), 1, "on CPU {cpu}");
        }
    }

    /// Lets `ticks` pass, a tenth of a millisecond at a time.
    fn pass(&mut self, ticks: u64) {
        const STEP: u64 = MS / 10;
        for _ in 0..ticks / STEP {
            self.now += STEP;
            for cpu in 0..self.doing.len() {
                let Some((vcpu, until)) = self.doing[cpu] else {
                    self.ask(cpu as u32);
                    continue;
                };
                if vcpu.vm.0 == 0
                    && let Some(part) = self.waived
                {
                    self.policy.waive(cpu as u32, STEP / part);
                }
                let left = &mut self.left[vcpu.vm.0][vcpu.index as usize];
                *left = left.saturating_sub(STEP);
                if *left == 0
                    && let Guest::Periodic { every, .. } =
                        self.guests[vcpu.vm.0][vcpu.index as usize]
                {
                    let wake_at = HostTicks((self.now / every + 1) * every);
                    self.policy.block(cpu as u32, wake_at, HostTicks(self.now));
                    self.ask(cpu as u32);
                } else if self.now >= until.0 {
                    self.ask(cpu as u32);
                }
            }
        }
    }

    fn received(&self, vm: usize) -> u64 {
        let count = self.guests[vm].len() as u32;
        (0..count)
            .filter_map(|index| self.policy.received(vcpu(vm, index)))
            .sum()
    }

    /// What each VM gets of `ticks`, in percent of one CPU.
    fn percent(&mut self, ticks: u64) -> Vec<u64> {
        let before: Vec<_> = (0..self.guests.len()).map(|vm| self.received(vm)).collect();
        self.pass(ticks);
        (0..self.guests.len())
            .map(|vm| (self.received(vm) - before[vm]) * 100 / ticks)
            .collect()
    }

    fn latency(&self, vm: usize) -> Latency {
        self.policy.latency(vcpu(vm, 0)).unwrap()
    }
}

fn about(actual: u64, expected: u64) -> bool {
    actual.abs_diff(expected) <= 2
}

const HOG: (Guest, Option<u32>) = (Guest::Hog, None);

const fn hog_on(cpu: u32) -> (Guest, Option<u32>) {
    (Guest::Hog, Some(cpu))
}

#[test]
fn vms_share_a_cpu_by_weight_however_many_vcpus_they_bring() {
    let mut simulation = Simulation::new(1);
    simulation.add(100, None, &[HOG]);
    simulation.add(100, None, &[HOG; 4]);
    simulation.add(200, None, &[HOG; 2]);
    let shares = simulation.percent(4_000 * MS);
    assert!(
        about(shares[0], 25) && about(shares[1], 25) && about(shares[2], 50),
        "{shares:?}"
    );
}

#[test]
fn a_vm_has_its_share_besides_what_is_waived_up_to_a_small_part() {
    for (part, most) in [(50, 50), (4, 32)] {
        let mut simulation = Simulation::new(1);
        simulation.waived = Some(part);
        simulation.add(100, None, &[HOG]);
        simulation.add(100, None, &[HOG]);
        simulation.pass(10_000 * MS);
        let (had, others) = (simulation.received(0), simulation.received(1));
        let charged = had - had / most;
        assert!(
            charged.abs_diff(others) <= 20 * MS,
            "1/{part}: {had}, {others}"
        );
    }
}

#[test]
fn the_vcpus_of_a_vm_share_what_it_gets_equally() {
    let mut simulation = Simulation::new(1);
    simulation.add(100, None, &[HOG; 3]);
    simulation.pass(3_000 * MS);
    for index in 0..3 {
        let received = simulation.policy.received(vcpu(0, index)).unwrap();
        assert!(
            received.abs_diff(1_000 * MS) <= SETTINGS.slice,
            "{received}"
        );
    }
}

#[test]
fn a_hog_on_one_cpu_costs_a_vm_on_another_nothing() {
    let mut simulation = Simulation::new(2);
    simulation.add(100, None, &[hog_on(0); 3]);
    simulation.add(100, None, &[hog_on(1)]);
    assert_eq!(simulation.percent(1_000 * MS), [100, 100]);
}

#[test]
fn use_of_an_idle_cpu_is_not_held_against_a_vm_elsewhere() {
    let mut simulation = Simulation::new(2);
    simulation.add(100, None, &[hog_on(0), hog_on(1)]);
    simulation.add(100, None, &[hog_on(0)]);
    let shares = simulation.percent(2_000 * MS);
    assert!(about(shares[0], 150) && about(shares[1], 50), "{shares:?}");
}

#[test]
fn a_cap_holds_over_all_cpus_and_leaves_the_rest_to_others() {
    let mut simulation = Simulation::new(2);
    simulation.add(100, Some(30), &[HOG, HOG]);
    simulation.add(100, None, &[HOG, HOG]);
    let shares = simulation.percent(2_000 * MS);
    assert!(about(shares[0], 30) && about(shares[1], 170), "{shares:?}");
}

#[test]
fn a_capped_vm_alone_is_held_to_its_cap_and_the_cpu_sleeps() {
    let mut simulation = Simulation::new(1);
    simulation.add(100, Some(50), &[HOG]);
    let shares = simulation.percent(2_000 * MS);
    assert!(about(shares[0], 50), "{shares:?}");
}

#[test]
fn a_woken_vcpu_replaces_a_hog_within_the_granularity() {
    let mut simulation = Simulation::new(1);
    let sleeper = Guest::Periodic {
        work: MS / 2,
        every: 7 * MS,
    };
    simulation.add(100, None, &[(sleeper, None)]);
    simulation.add(100, None, &[HOG; 3]);
    simulation.pass(2_000 * MS);
    let latency = simulation.latency(0);
    assert!(latency.count > 200);
    assert!(latency.max <= SETTINGS.granularity + MS / 10, "{latency:?}");
    let got = simulation.received(0);
    assert!(
        about(got * 100 / (2_000 * MS), 7),
        "all that it asked for: {got}"
    );
}

#[test]
fn who_wakes_all_the_time_gets_no_more_than_its_share() {
    let mut simulation = Simulation::new(1);
    let storm = Guest::Periodic {
        work: MS,
        every: MS + MS / 10,
    };
    simulation.add(100, None, &[(storm, None)]);
    simulation.add(100, None, &[HOG]);
    let shares = simulation.percent(2_000 * MS);
    assert!(shares[1] >= 48, "{shares:?}");
}

#[test]
fn a_long_sleep_earns_no_monopoly() {
    let mut simulation = Simulation::new(1);
    simulation.add(100, None, &[HOG]);
    simulation.pass(10_000 * MS);
    simulation.add(100, None, &[HOG]);
    let shares = simulation.percent(200 * MS);
    assert!(shares[0] >= 40, "{shares:?}");
}

#[test]
fn unpinned_vcpus_spread_over_all_cpus() {
    let mut simulation = Simulation::new(4);
    simulation.add(100, None, &[HOG; 2]);
    simulation.add(100, None, &[HOG; 2]);
    assert_eq!(simulation.percent(1_000 * MS), [200, 200]);
}

#[test]
fn a_cpu_that_falls_idle_takes_work_from_another() {
    let mut simulation = Simulation::new(2);
    simulation.add(100, None, &[hog_on(1)]);
    simulation.add(100, None, &[HOG, HOG]);
    simulation.pass(100 * MS);
    let kicks = simulation.policy.stop_vm(VmId(0));
    simulation.kick(kicks);
    assert!(simulation.policy.is_quiescent(VmId(0)));
    simulation.policy.remove_vm(VmId(0));
    simulation.pass(20 * MS);
    let before = simulation.received(1);
    simulation.pass(1_000 * MS);
    assert_eq!(simulation.received(1) - before, 2_000 * MS);
}

#[test]
fn a_running_vcpu_moves_at_once_when_it_is_pinned_elsewhere() {
    let mut simulation = Simulation::new(2);
    simulation.add(100, None, &[hog_on(0)]);
    simulation.pass(5 * MS);
    assert_eq!(simulation.policy.running_on(0), Some(vcpu(0, 0)));
    let kicks = simulation.policy.pin(vcpu(0, 0), Some(1)).unwrap();
    simulation.kick(kicks);
    assert_eq!(simulation.policy.running_on(0), None);
    assert_eq!(simulation.policy.running_on(1), Some(vcpu(0, 0)));
    assert_eq!(simulation.policy.place(vcpu(0, 0)), Some((1, true)));
}

#[test]
fn who_moves_to_another_cpu_neither_starves_nor_starves_others() {
    let mut simulation = Simulation::new(2);
    simulation.add(100, None, &[hog_on(0), hog_on(1)]);
    simulation.pass(5_000 * MS);
    // The second one's queue has seen next to nothing yet.
    simulation.add(100, None, &[hog_on(0); 2]);
    simulation.pass(3_000 * MS);
    let kicks = simulation.policy.pin(vcpu(0, 0), Some(1)).unwrap();
    simulation.kick(kicks);
    let received =
        |simulation: &Simulation, index| simulation.policy.received(vcpu(0, index)).unwrap();
    let before = [received(&simulation, 0), received(&simulation, 1)];
    simulation.pass(200 * MS);
    for index in 0..2 {
        let got = received(&simulation, index) - before[index as usize];
        assert!(got.abs_diff(100 * MS) <= 2 * SETTINGS.slice, "{got}");
    }
}

#[test]
fn who_comes_to_a_cpu_has_no_claim_to_what_others_had_there_before() {
    let mut simulation = Simulation::new(2);
    simulation.add(100, None, &[hog_on(0)]);
    simulation.add(100, None, &[hog_on(1); 2]);
    simulation.pass(10_000 * MS);
    for index in 0..2 {
        let kicks = simulation.policy.pin(vcpu(1, index), Some(0)).unwrap();
        simulation.kick(kicks);
    }
    let shares = simulation.percent(200 * MS);
    assert!(
        shares[0].abs_diff(50) <= 5 && shares[1].abs_diff(50) <= 5,
        "{shares:?}"
    );
}

#[test]
fn a_vcpu_that_is_taken_over_has_no_claim_to_what_others_had_there_before() {
    let mut simulation = Simulation::new(2);
    simulation.add(100, None, &[hog_on(0)]);
    simulation.add(100, None, &[hog_on(1); 3]);
    simulation.pass(10_000 * MS);
    for index in 0..3 {
        let kicks = simulation.policy.pin(vcpu(1, index), None).unwrap();
        simulation.kick(kicks);
    }
    let shares = simulation.percent(200 * MS);
    assert!(
        shares[0].abs_diff(50) <= 5 && shares[1].abs_diff(150) <= 5,
        "{shares:?}"
    );
}

#[test]
fn a_vcpu_is_not_made_to_wait_for_what_it_had_alone() {
    let mut simulation = Simulation::new(1);
    let rare = |work, every| (Guest::Periodic { work, every }, None);
    // The first computes for 900 ms of each second; the second only now and then.
    simulation.add(
        100,
        None,
        &[rare(900 * MS, 1_000 * MS), rare(MS / 2, 130 * MS)],
    );
    simulation.pass(20_000 * MS);
    assert!(simulation.latency(0).max <= 2 * SETTINGS.slice);
    let second = simulation.policy.latency(vcpu(0, 1)).unwrap();
    assert!(second.max <= 2 * SETTINGS.slice, "{second:?}");
}

#[test]
fn a_sleeping_vcpu_that_is_pinned_elsewhere_wakes_there() {
    let mut simulation = Simulation::new(2);
    let sleeper = Guest::Periodic {
        work: MS,
        every: 10 * MS,
    };
    simulation.add(100, None, &[(sleeper, Some(0))]);
    simulation.pass(5 * MS);
    assert_eq!(simulation.policy.running_on(0), None);
    let kicks = simulation.policy.pin(vcpu(0, 0), Some(1)).unwrap();
    simulation.kick(kicks);
    simulation.now = 10 * MS;
    simulation.ask(0);
    simulation.ask(1);
    assert_eq!(simulation.policy.running_on(1), Some(vcpu(0, 0)));
}

#[test]
fn a_paused_vm_gets_nothing_and_resumes_without_a_claim() {
    let mut simulation = Simulation::new(1);
    simulation.add(100, None, &[HOG]);
    simulation.add(100, None, &[HOG]);
    let kicks = simulation.policy.set_paused(VmId(0), true);
    simulation.kick(kicks);
    let shares = simulation.percent(1_000 * MS);
    assert_eq!(shares[0], 0);
    assert!(shares[1] >= 99);
    let kicks = simulation.policy.set_paused(VmId(0), false);
    simulation.kick(kicks);
    let shares = simulation.percent(200 * MS);
    assert!(shares[1] >= 40, "{shares:?}");
}

#[test]
fn a_halted_vcpu_costs_nothing() {
    let mut simulation = Simulation::new(1);
    let asleep = Guest::Periodic {
        work: MS / 10,
        every: u64::MAX / 4,
    };
    simulation.add(100, None, &[(asleep, None); 3]);
    simulation.add(100, None, &[HOG]);
    simulation.pass(10 * MS);
    assert_eq!(simulation.percent(1_000 * MS), [0, 100]);
}

#[test]
fn pins_to_cpus_that_are_not_there_are_refused() {
    let policy = Policy::new(SETTINGS, 2, HostTicks(0));
    let error = PinError::NoCpu { cpu: 2, cpus: 2 };
    assert_eq!(policy.add_vm(VmId(0), 100, None, &[Some(2)]), Err(error));
    policy.add_vm(VmId(0), 100, None, &[None]).unwrap();
    assert_eq!(policy.pin(vcpu(0, 0), Some(2)), Err(error));
    assert_eq!(policy.pin(vcpu(0, 1), Some(0)), Err(PinError::NoVcpu));
    assert_eq!(policy.pin(vcpu(7, 0), Some(0)), Err(PinError::NoVcpu));
}

#[test]
fn waking_one_that_is_awake_or_unknown_does_nothing() {
    let mut simulation = Simulation::new(1);
    simulation.add(100, None, &[HOG]);
    assert!(simulation.policy.wake(vcpu(0, 0), HostTicks(5)).is_empty());
    assert!(simulation.policy.wake(vcpu(3, 9), HostTicks(5)).is_empty());
}

#[test]
fn a_cpu_is_contended_while_a_vcpu_of_another_vm_waits_for_it() {
    let mut simulation = Simulation::new(2);
    simulation.add(100, None, &[hog_on(0), hog_on(0)]);
    simulation.pass(5 * MS);
    let contended = |simulation: &mut Simulation, cpu| {
        let now = HostTicks(simulation.now);
        match simulation.policy.next(cpu, now, 0) {
            Decision::Run { contended, .. } => contended,
            other => panic!("{other:?}"),
        }
    };
    assert!(!contended(&mut simulation, 0), "by its own VM");
    simulation.add(100, None, &[hog_on(0)]);
    simulation.add(100, None, &[hog_on(1)]);
    simulation.pass(5 * MS);
    assert!(contended(&mut simulation, 0));
    assert!(!contended(&mut simulation, 1));
}

/// A CPU whose only VCPU sleeps until 10 ms, and a second one, likewise.
fn sleepers() -> Policy {
    let policy = Policy::new(SETTINGS, 2, HostTicks(0));
    policy
        .add_vm(VmId(0), 100, None, &[Some(0), Some(1)])
        .unwrap();
    for cpu in 0..2 {
        policy.wake(vcpu(0, cpu), HostTicks(0));
        policy.next(cpu, HostTicks(0), 0);
        policy.block(cpu, HostTicks(10 * MS), HostTicks(0));
    }
    policy
}

#[test]
fn an_idle_cpu_gets_a_sleeper_ahead_of_its_timer_and_is_told_when_that_is_due() {
    let policy = sleepers();
    let wake_up = Decision::Idle {
        until: HostTicks(10 * MS - 30),
    };
    assert_eq!(policy.next(0, HostTicks(MS), 30), wake_up);
    assert_eq!(policy.next(0, HostTicks(10 * MS - 31), 30), wake_up);
    let now = HostTicks(10 * MS - 30);
    let Decision::Run {
        vcpu: woken,
        not_before,
        ..
    } = policy.next(0, now, 30)
    else {
        panic!("the timer is near");
    };
    assert_eq!((woken, not_before), (vcpu(0, 0), HostTicks(10 * MS)));
    assert_eq!(
        policy.latency(vcpu(0, 0)).unwrap().max,
        0,
        "it has not waited"
    );
    // Without a lead the other one sleeps on.
    assert_eq!(
        policy.next(1, now, 0),
        Decision::Idle {
            until: HostTicks(10 * MS)
        }
    );
}

#[test]
fn a_cpu_that_has_work_lets_sleepers_sleep_until_their_timers_are_due() {
    let policy = sleepers();
    policy.add_vm(VmId(1), 100, None, &[Some(0)]).unwrap();
    policy.wake(vcpu(1, 0), HostTicks(9 * MS));
    for now in [9 * MS, 10 * MS - 1] {
        let Decision::Run {
            vcpu: running,
            not_before,
            until,
            ..
        } = policy.next(0, HostTicks(now), 30)
        else {
            panic!("there is work");
        };
        assert_eq!((running, not_before), (vcpu(1, 0), HostTicks(0)));
        assert_eq!(until, HostTicks(10 * MS));
    }
}

#[test]
fn one_that_comes_early_gives_way_to_whoever_has_something_to_do() {
    let policy = sleepers();
    policy.add_vm(VmId(1), 100, None, &[Some(0)]).unwrap();
    policy.next(0, HostTicks(10 * MS - 30), 30);
    assert_eq!(policy.running_on(0), Some(vcpu(0, 0)));
    let now = HostTicks(10 * MS - 20);
    let kicks = policy.wake(vcpu(1, 0), now);
    assert!(kicks.iter().eq([0]), "{kicks:?}");
    // It is not made to wait again, finds that its timer is not due, and halts.
    let Decision::Run { not_before, .. } = policy.next(0, now, 30) else {
        panic!("two want to run");
    };
    assert_eq!(not_before, HostTicks::ZERO);
    policy.block(0, HostTicks(10 * MS), now);
    let Decision::Run { vcpu: other, .. } = policy.next(0, now, 30) else {
        panic!("one wants to run");
    };
    assert_eq!(other, vcpu(1, 0));
}

#[test]
fn a_vcpu_that_was_taken_out_for_a_moment_is_in_again_and_goes_nowhere_else() {
    let policy = Policy::new(SETTINGS, 2, HostTicks(0));
    policy.add_vm(VmId(0), 100, None, &[None; 3]).unwrap();
    for index in 0..3 {
        policy.pin(vcpu(0, index), Some(0)).unwrap();
        policy.wake(vcpu(0, index), HostTicks(0));
        policy.pin(vcpu(0, index), None).unwrap();
    }
    let runs = |cpu, now| match policy.next(cpu, HostTicks(now), 0) {
        Decision::Run { vcpu, .. } => vcpu,
        other => panic!("{other:?}"),
    };
    let first = runs(0, 0);
    assert!(policy.released(0, first).iter().eq([1]), "for the others");
    assert_eq!(runs(0, MS), first);
    assert_eq!(policy.loaded_on(0), Some(first));
    let second = runs(0, 11 * MS);
    assert_ne!(second, first);
    // Its state has not been taken out of CPU 0 since.
    let third = runs(1, 11 * MS);
    assert!(third != first && third != second, "{third:?}");
    policy.block(1, HostTicks(u64::MAX), HostTicks(11 * MS));
    assert!(matches!(
        policy.next(1, HostTicks(11 * MS), 0),
        Decision::Idle { .. }
    ));
    assert!(policy.released(0, first).iter().eq([1]));
    assert_eq!(runs(1, 11 * MS), first);
}

#[test]
fn one_that_is_pinned_elsewhere_while_it_is_out_for_a_moment_goes_there() {
    let policy = Policy::new(SETTINGS, 2, HostTicks(0));
    policy.add_vm(VmId(0), 100, None, &[Some(0)]).unwrap();
    policy.wake(vcpu(0, 0), HostTicks(0));
    let _ = policy.next(0, HostTicks(0), 0);
    assert!(policy.released(0, vcpu(0, 0)).is_empty());
    let kicks = policy.pin(vcpu(0, 0), Some(1)).unwrap();
    assert!(kicks.iter().eq([0, 1]), "{kicks:?}");
    let release = Decision::Release(vcpu(0, 0));
    assert_eq!(policy.next(0, HostTicks(MS), 0), release);
    assert!(policy.released(0, vcpu(0, 0)).iter().eq([1]));
    let _ = policy.next(1, HostTicks(MS), 0);
    assert_eq!(policy.running_on(1), Some(vcpu(0, 0)));
}

#[test]
fn a_capped_vcpu_that_wakes_on_an_idle_cpu_without_budget_runs_in_the_next_period() {
    let policy = Policy::new(SETTINGS, 2, HostTicks(0));
    policy
        .add_vm(VmId(0), 100, Some(10), &[Some(0), Some(1)])
        .unwrap();
    policy.wake(vcpu(0, 0), HostTicks(0));
    let _ = policy.next(0, HostTicks(0), 0);
    let now = HostTicks(50 * MS);
    let next_period = Decision::Idle {
        until: HostTicks(100 * MS),
    };
    assert_eq!(policy.next(0, now, 0), next_period);
    let kicks = policy.wake(vcpu(0, 1), now);
    assert!(kicks.iter().eq([1]), "CPU 1 knows of no period");
    assert_eq!(policy.next(1, now, 0), next_period);
}

#[test]
fn a_timer_goes_with_a_vcpu_that_is_pinned_elsewhere() {
    let policy = Policy::new(SETTINGS, 2, HostTicks(0));
    policy.add_vm(VmId(0), 100, None, &[Some(0)]).unwrap();
    policy.wake(vcpu(0, 0), HostTicks(0));
    let _ = policy.next(0, HostTicks(0), 0);
    policy.pin(vcpu(0, 0), Some(1)).unwrap();
    policy.block(0, HostTicks(10 * MS), HostTicks(MS));
    let release = Decision::Release(vcpu(0, 0));
    assert_eq!(policy.next(0, HostTicks(MS), 0), release);
    assert!(policy.released(0, vcpu(0, 0)).iter().eq([1]));
    let until = HostTicks(10 * MS);
    assert_eq!(policy.next(1, HostTicks(MS), 0), Decision::Idle { until });
}
