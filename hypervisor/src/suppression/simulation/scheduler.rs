//! Schedulers that guests have, as far as they decide who runs for how long.

use std::vec::Vec;

/// The algorithm by which a guest shares a VCPU among processes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Kind {
    /// Linux up to 6.5: the least virtual run time goes next, after a slice of 0.75 to 6 ms.
    Cfs,
    /// Linux from 6.6 on: the earliest virtual deadline of those that are not ahead goes next.
    Eevdf,
    /// A fixed quantum, in milliseconds: BSD, Windows.
    RoundRobin(u64),
    /// Strict priority: the highest goes first, always; real-time throttling leaves others a
    /// twentieth of each second.
    Strict,
}

/// The scheduler's record of a process.
#[derive(Clone, Debug)]
struct Entity {
    /// The weight of the process; 1024 is usual.
    weight: u64,
    /// Guest time that it ran, by weight.
    virtual_time: u64,
    deadline: u64,
    runnable: bool,
}

/// The run queue of a VCPU. Times are guest time, in nanoseconds.
#[derive(Clone, Debug)]
pub(crate) struct Scheduler {
    kind: Kind,
    entities: Vec<Entity>,
    pub(crate) current: Option<usize>,
    /// The time at which the current one was put on, and the one up to which it is accounted for.
    since: u64,
    accounted: u64,
    /// Strict priority: what the first has had of the current second.
    throttled: u64,
    period: u64,
}

const MS: u64 = 1_000_000;
const EEVDF_SLICE: u64 = 3 * MS;

impl Scheduler {
    /// A queue of processes of these weights, all asleep. With [`Kind::Strict`] the first goes before
    /// all others.
    pub(crate) fn new(kind: Kind, weights: &[u64]) -> Self {
        Self {
            kind,
            entities: weights
                .iter()
                .map(|&weight| Entity {
                    weight,
                    virtual_time: 0,
                    deadline: EEVDF_SLICE,
                    runnable: false,
                })
                .collect(),
            current: None,
            since: 0,
            accounted: 0,
            throttled: 0,
            period: 0,
        }
    }

    fn account(&mut self, now: u64) {
        let ran = now - self.accounted;
        self.accounted = now;
        if now / (1000 * MS) != self.period {
            self.period = now / (1000 * MS);
            self.throttled = 0;
        }
        if let Some(current) = self.current {
            let entity = &mut self.entities[current];
            entity.virtual_time += ran * 1024 / entity.weight;
            if current == 0 {
                self.throttled += ran;
            }
        }
    }

    fn runnable(&self) -> impl Iterator<Item = usize> + '_ {
        (0..self.entities.len()).filter(|&id| self.entities[id].runnable)
    }

    fn least(&self) -> Option<usize> {
        self.runnable()
            .min_by_key(|&id| self.entities[id].virtual_time)
    }

    /// The average virtual time, by weight.
    fn average(&self) -> u64 {
        let (mut sum, mut weights) = (0u128, 0u128);
        for id in self.runnable() {
            let entity = &self.entities[id];
            sum += u128::from(entity.virtual_time) * u128::from(entity.weight);
            weights += u128::from(entity.weight);
        }
        (sum / weights.max(1)) as u64
    }

    fn is_throttled(&self) -> bool {
        self.throttled >= 950 * MS
    }

    /// Who should run.
    fn best(&self) -> Option<usize> {
        match self.kind {
            Kind::Cfs => self.least(),
            Kind::Eevdf => {
                let average = self.average();
                self.runnable()
                    .filter(|&id| self.entities[id].virtual_time <= average)
                    .min_by_key(|&id| self.entities[id].deadline)
            }
            Kind::RoundRobin(_) => {
                let count = self.entities.len();
                let from = self.current.map_or(0, |current| current + 1);
                (0..count)
                    .map(|step| (from + step) % count)
                    .find(|&id| self.entities[id].runnable)
            }
            Kind::Strict => {
                let first = self.entities.first().is_some_and(|first| first.runnable);
                if first && !self.is_throttled() {
                    return Some(0);
                }
                self.runnable()
                    .filter(|&id| id != 0)
                    .min_by_key(|&id| self.entities[id].virtual_time)
                    .or(first.then_some(0))
            }
        }
    }

    /// A tick at `now`: whether the current one is to go.
    pub(crate) fn tick(&mut self, now: u64) -> bool {
        self.account(now);
        let Some(current) = self.current else {
            return false;
        };
        let others = self.runnable().any(|id| id != current);
        if !others {
            return false;
        }
        let ran = now - self.since;
        match self.kind {
            Kind::Cfs => {
                let weights: u64 = self.runnable().map(|id| self.entities[id].weight).sum();
                let count = self.runnable().count() as u64;
                let latency = (6 * MS).max(count * 3 * MS / 4);
                let slice = (latency * self.entities[current].weight / weights).max(3 * MS / 4);
                ran > slice && self.least() != Some(current)
            }
            Kind::Eevdf => {
                let entity = &mut self.entities[current];
                if entity.virtual_time < entity.deadline {
                    return false;
                }
                entity.deadline = entity.virtual_time + EEVDF_SLICE * 1024 / entity.weight;
                true
            }
            Kind::RoundRobin(quantum) => ran >= quantum * MS,
            Kind::Strict => self.best() != Some(current) || (current != 0 && ran >= 4 * MS),
        }
    }

    /// A process wakes at `now`: whether it is to replace the current one at once.
    pub(crate) fn wake(&mut self, id: usize, now: u64) -> bool {
        self.account(now);
        if self.entities[id].runnable {
            return false;
        }
        let floor = match self.kind {
            Kind::Eevdf => self.average(),
            _ => self
                .runnable()
                .map(|id| self.entities[id].virtual_time)
                .min()
                .unwrap_or(0)
                .saturating_sub(3 * MS),
        };
        let entity = &mut self.entities[id];
        entity.virtual_time = entity.virtual_time.max(floor);
        entity.deadline = entity.virtual_time + EEVDF_SLICE * 1024 / entity.weight;
        entity.runnable = true;
        let Some(current) = self.current else {
            return true;
        };
        match self.kind {
            Kind::Cfs => {
                let granularity = MS * 1024 / self.entities[id].weight;
                self.entities[id].virtual_time + granularity < self.entities[current].virtual_time
            }
            Kind::Eevdf => self.best() == Some(id),
            Kind::RoundRobin(_) => true,
            Kind::Strict => id == 0 && !self.is_throttled(),
        }
    }

    /// A process goes to sleep at `now`.
    pub(crate) fn sleep(&mut self, id: usize, now: u64) {
        self.account(now);
        self.entities[id].runnable = false;
    }

    /// Puts the next one on, at `now`.
    pub(crate) fn pick(&mut self, now: u64) -> Option<usize> {
        self.account(now);
        let next = self.best();
        if next != self.current || matches!(self.kind, Kind::RoundRobin(_)) {
            self.since = now;
        }
        self.current = next;
        next
    }

    /// The current one would like others to run, at `now`.
    pub(crate) fn yield_now(&mut self, now: u64) {
        self.account(now);
        if let Some(current) = self.current
            && self.kind == Kind::Eevdf
        {
            let entity = &mut self.entities[current];
            entity.deadline += EEVDF_SLICE * 1024 / entity.weight;
        } else if let Some(current) = self.current
            && self.kind == Kind::Cfs
        {
            // The buddy that is skipped: it goes behind the next one.
            let next = self
                .runnable()
                .filter(|&id| id != current)
                .map(|id| self.entities[id].virtual_time)
                .min();
            if let Some(next) = next {
                let entity = &mut self.entities[current];
                entity.virtual_time = entity.virtual_time.max(next + 1);
            }
        }
    }
}
