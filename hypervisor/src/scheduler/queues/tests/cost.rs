//! What decisions cost, in steps: comparisons, looks at what other CPUs say of themselves, locks.

use std::println;

use super::*;

/// Numbers that look random, the same each time.
struct Random(u64);

impl Random {
    /// Returns a number below `bound`.
    fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % bound
    }
}

/// The steps that calls of one kind have taken.
#[derive(Clone, Copy, Default)]
struct Cost {
    calls: u64,
    steps: u64,
    most: u64,
}

impl Cost {
    /// Notes a call that began after `before` steps.
    fn note(&mut self, before: u64) {
        let steps = steps::counted() - before;
        self.calls += 1;
        self.steps += steps;
        self.most = self.most.max(steps);
    }

    fn mean(self) -> f64 {
        self.steps as f64 / self.calls as f64
    }
}

/// CPUs whose VCPUs compute, sleep until a timer or until they are woken, all at random.
struct Machine {
    queues: Queues,
    random: Random,
    vcpus: u64,
    now: u64,
    running: Vec<Option<(VcpuId, HostTicks)>>,
    asleep: Vec<VcpuId>,
    next: Cost,
    wake: Cost,
    block: Cost,
}

/// The number of VCPUs of each VM.
const EACH: u64 = 2;

impl Machine {
    fn new(cpus: u32, vcpus: u64) -> Self {
        let queues = Queues::new(SETTINGS, cpus, HostTicks(0));
        let mut machine = Self {
            queues,
            random: Random(42),
            vcpus,
            now: 0,
            running: vec![None; cpus as usize],
            asleep: vec![],
            next: Cost::default(),
            wake: Cost::default(),
            block: Cost::default(),
        };
        for id in 0..(vcpus / EACH) as usize {
            // One of ten has a cap, one of seven is pinned.
            let cap = (id % 10 == 0).then_some(20);
            let pin = (id % 7 == 0).then_some(id as u32 % cpus);
            let weight = 50 + 50 * (id as u32 % 4);
            let pins = [pin; EACH as usize];
            machine.queues.add_vm(VmId(id), weight, cap, &pins).unwrap();
            for index in 0..EACH as u32 {
                machine.wake(vcpu(id, index));
            }
        }
        machine
    }

    fn wake(&mut self, target: VcpuId) {
        let before = steps::counted();
        let kicks = self.queues.wake(target, HostTicks(self.now));
        self.wake.note(before);
        for cpu in kicks.iter() {
            self.ask(cpu);
        }
    }

    fn ask(&mut self, cpu: u32) {
        loop {
            let loaded = self.queues.loaded_on(cpu);
            let before = steps::counted();
            let decision = self.queues.next(cpu, HostTicks(self.now), 0);
            self.next.note(before);
            let leaves = match decision {
                Decision::Run { vcpu, until, .. } => {
                    self.running[cpu as usize] = Some((vcpu, until));
                    loaded.filter(|loaded| *loaded != vcpu)
                }
                Decision::Release(vcpu) => Some(vcpu),
                Decision::Idle { .. } => {
                    self.running[cpu as usize] = None;
                    None
                }
            };
            if let Some(leaves) = leaves {
                let kicks = self.queues.released(cpu, leaves);
                for other in kicks.iter().filter(|&other| other != cpu) {
                    self.ask(other);
                }
            }
            if !matches!(decision, Decision::Release(_)) {
                return;
            }
        }
    }

    /// Lets a tenth of a millisecond pass.
    fn step(&mut self) {
        self.now += MS / 10;
        for cpu in 0..self.running.len() as u32 {
            match self.running[cpu as usize] {
                // It has something to do for 2 ms, on average.
                Some((vcpu, _)) if self.random.below(20) == 0 => {
                    let wake_at = if self.random.below(2) == 0 {
                        // As many sleep as run, however many there are.
                        let sleep = 1 + self.random.below(4 * MS * self.vcpus);
                        HostTicks(self.now + sleep / self.running.len() as u64)
                    } else {
                        self.asleep.push(vcpu);
                        HostTicks(u64::MAX)
                    };
                    let before = steps::counted();
                    self.queues.block(cpu, wake_at, HostTicks(self.now));
                    self.block.note(before);
                    self.ask(cpu);
                }
                Some((_, until)) if self.now < until.0 => {}
                _ => self.ask(cpu),
            }
        }
        while self.asleep.len() as u64 > self.vcpus / 4 {
            let place = self.random.below(self.asleep.len() as u64) as usize;
            let target = self.asleep.swap_remove(place);
            self.wake(target);
        }
    }

    fn run(cpus: u32, vcpus: u64) -> [Cost; 3] {
        let mut machine = Self::new(cpus, vcpus);
        for _ in 0..2_000 {
            machine.step();
        }
        [machine.next, machine.wake, machine.block] = [Cost::default(); 3];
        for _ in 0..40_000 / u64::from(cpus).min(8) {
            machine.step();
        }
        for cost in [machine.next, machine.wake, machine.block] {
            assert!(cost.calls > 300, "only {} calls", cost.calls);
        }
        [machine.next, machine.wake, machine.block]
    }
}

/// The steps that twice as many VCPUs may cost more. One that looks at each costs 492 more of 500.
const PER_VCPU_DOUBLING: f64 = 4.0;
/// The steps that twice as many CPUs may cost more. One that looks at each costs 63 more of 64.
const PER_CPU_DOUBLING: f64 = 2.0;
/// The steps that it may cost besides that there is another CPU, from which to take something.
const TAKING: f64 = 4.0;

#[test]
fn decisions_cost_no_more_than_the_logarithm_of_cpus_and_vcpus() {
    println!("| CPUs | VCPUs | `next` | most | `wake` | most | `block` | most |");
    println!("| --- | --- | --- | --- | --- | --- | --- | --- |");
    let (cpu_counts, vcpu_counts) = ([1, 4, 16, 64], [8, 50, 500]);
    let mut table = Vec::new();
    for &cpus in &cpu_counts {
        for &vcpus in &vcpu_counts {
            let costs = Machine::run(cpus, vcpus);
            let [next, wake, block] = costs.map(|cost| (cost.mean(), cost.most));
            println!(
                "| {cpus} | {vcpus} | {:.1} | {} | {:.1} | {} | {:.1} | {} |",
                next.0, next.1, wake.0, wake.1, block.0, block.1
            );
            table.push((cpus, vcpus, costs));
        }
    }
    let of = |cpus: u32, vcpus: u64| {
        let is_it = |line: &&(u32, u64, [Cost; 3])| (line.0, line.1) == (cpus, vcpus);
        table.iter().find(is_it).unwrap().2
    };
    for (cpus, vcpus, costs) in &table {
        let [eight_vcpus, one_cpu] = [of(*cpus, 8), of(1, *vcpus)];
        let more_vcpus = (*vcpus as f64 / 8.0).log2();
        let more_cpus = f64::from(*cpus).log2();
        for (kind, cost) in costs.iter().enumerate() {
            let mean = cost.mean();
            let what = std::format!("{cpus} CPUs, {vcpus} VCPUs, kind {kind}: {mean}");
            assert!(
                mean <= eight_vcpus[kind].mean() + PER_VCPU_DOUBLING * more_vcpus,
                "{what}"
            );
            let taking = if *cpus > 1 { TAKING } else { 0.0 };
            assert!(
                mean <= one_cpu[kind].mean() + taking + PER_CPU_DOUBLING * more_cpus,
                "{what}"
            );
        }
    }
}
