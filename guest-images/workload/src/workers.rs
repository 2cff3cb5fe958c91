//! The processes that work.

use crate::counters::{Counters, Slot};
use crate::parameters::{self, MAX_PROCESSES, Parameters};
use crate::start::Start;
use crate::system::memory::{self, shared_counters};
use crate::system::time::{Clock, now, sleep_for};
use crate::system::{self, Errno, Fork, Pid, families};
use crate::work::Work;
use crate::{init, say, tag};

/// The time that [`Workers::forget`] gives processes to end, in nanoseconds.
const PATIENCE: u64 = 60_000_000_000;
/// The time between two looks at who has ended meanwhile, in nanoseconds.
const PAUSE: u64 = 1_000_000;

/// All processes that were started since the last [`Workers::forget`]; process `i` has slot `i` of
/// the counters.
#[derive(Debug)]
pub struct Workers {
    counters: &'static Counters,
    /// The living processes' numbers.
    pids: [Option<Pid>; MAX_PROCESSES],
    started: usize,
    unit: u64,
}

/// A request that cannot be met.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// A start when all slots have been used.
    Full,
    /// An index that no process has.
    NoSuchProcess,
    /// An error of the kernel's.
    Kernel(Errno),
}

impl core::fmt::Display for Refusal {
    fn fmt(&self, formatter: &mut core::fmt::Formatter) -> core::fmt::Result {
        match self {
            Self::Full => write!(
                formatter,
                "no more than {MAX_PROCESSES} processes until `forget`"
            ),
            Self::NoSuchProcess => write!(formatter, "no such process"),
            Self::Kernel(error) => write!(formatter, "{error}"),
        }
    }
}

impl Workers {
    /// Makes a table without a process.
    ///
    /// # Errors
    /// What `mmap(2)` says of the shared page.
    pub fn new(parameters: &Parameters) -> Result<Self, Errno> {
        Ok(Self {
            counters: shared_counters()?,
            pids: [None; MAX_PROCESSES],
            started: 0,
            unit: parameters.unit,
        })
    }

    /// Starts one process and prints its index and number.
    ///
    /// # Errors
    /// [`Refusal::Full`], or what `fork(2)` says.
    pub fn start(&mut self, start: &Start) -> Result<(), Refusal> {
        let index = self.started;
        let (slot, pid) = self
            .counters
            .get(index)
            .zip(self.pids.get_mut(index))
            .ok_or(Refusal::Full)?;
        match system::fork().map_err(Refusal::Kernel)? {
            Fork::Child => {
                tag::hold(index);
                if index == 0 {
                    hold_pattern();
                }
                let unit = start.unit.unwrap_or(self.unit);
                work(start, Work::new(slot, index, unit, start.number), slot)
            }
            Fork::Parent(child) => {
                *pid = Some(child);
                self.started += 1;
                say!("process {index} pid {child}");
                Ok(())
            }
        }
    }

    /// Asks process `index`, and all that have come of it, to end; [`Self::bury`] tells when it has.
    ///
    /// # Errors
    /// [`Refusal::NoSuchProcess`].
    pub fn end(&self, index: usize) -> Result<(), Refusal> {
        let started = self.counters.get(..self.started).unwrap_or_default();
        // What has come of a process may live where the process itself has ended.
        started
            .get(index)
            .ok_or(Refusal::NoSuchProcess)?
            .ask_to_end();
        Ok(())
    }

    /// Ends process `index` at once, and asks all that have come of it to end; [`Self::bury`] tells when
    /// it has.
    ///
    /// # Errors
    /// [`Refusal::NoSuchProcess`], or what `kill(2)` says.
    pub fn kill(&self, index: usize) -> Result<(), Refusal> {
        self.end(index)?;
        match self.pids.get(index).copied().flatten() {
            Some(pid) => system::kill(pid).map_err(Refusal::Kernel),
            None => Ok(()),
        }
    }

    /// Ends all processes at once, and forgets them: the next one is process 0. Those that have come of them are
    /// ended, too, where this is the system's first process, and asked to end elsewhere. Where some do not end, all
    /// keep their slots, so that they do not count in others'.
    ///
    /// # Errors
    /// What `kill(2)` says, or [`Errno::ETIMEDOUT`] where one has not ended after a minute.
    pub fn forget(&mut self) -> Result<(), Refusal> {
        let slots = self.counters.get(..self.started).unwrap_or_default();
        slots.iter().for_each(Slot::ask_to_end);
        for pid in self.pids.iter_mut().filter_map(Option::take) {
            system::kill(pid).map_err(Refusal::Kernel)?;
        }
        if families::is_first() {
            families::kill_all_others().map_err(Refusal::Kernel)?;
        }
        let deadline = now(Clock::Monotonic).saturating_add(PATIENCE);
        // All that live have come of a child of this process: see `families::adopt_orphans`.
        while families::has_children() {
            if system::ended_child().is_none() {
                if now(Clock::Monotonic) > deadline {
                    return Err(Refusal::Kernel(Errno::ETIMEDOUT));
                }
                sleep_for(PAUSE);
            }
        }
        slots.iter().for_each(Slot::clear);
        self.started = 0;
        say!("forgotten");
        Ok(())
    }

    /// Prints which processes have ended since the last call.
    pub fn bury(&mut self) {
        while let Some(ended) = system::ended_child() {
            for (index, pid) in self.pids.iter_mut().enumerate() {
                if pid.take_if(|pid| *pid == ended.pid).is_some() {
                    say!(
                        "process {index} pid {} ended status {}",
                        ended.pid,
                        ended.status
                    );
                }
            }
        }
    }

    /// Returns whether any process lives, be it one that has come of another.
    #[must_use]
    pub fn any(&self) -> bool {
        families::has_children()
    }

    /// Returns how many units each process has finished, by index, as text: `12,34,56`.
    #[must_use]
    pub fn counts(&self) -> Counts<'_> {
        Counts(self.counters.get(..self.started).unwrap_or_default())
    }
}

/// The units that each process has finished, as text: see [`Workers::counts`].
#[derive(Clone, Copy, Debug)]
pub struct Counts<'a>(&'a [Slot]);

impl core::fmt::Display for Counts<'_> {
    fn fmt(&self, formatter: &mut core::fmt::Formatter) -> core::fmt::Result {
        for (index, slot) in self.0.iter().enumerate() {
            let comma = if index == 0 { "" } else { "," };
            write!(formatter, "{comma}{}", slot.finished())?;
        }
        Ok(())
    }
}

/// Does what a process does until it ends.
fn work(start: &Start, work: Work, slot: &Slot) -> ! {
    let name = start.behavior.name;
    if let Err(error) = start.schedule.apply() {
        say!("{name}: the kernel does not schedule it so: {error}");
        system::exit(1);
    }
    if let Err(error) = (start.behavior.run)(work) {
        say!("{name}: {error}");
        system::exit(1);
    }
    system::exit(i32::from(slot.wrong() != 0));
}

/// Puts the text of `workload.pattern` in this process's memory, once, for as long as it lives.
///
/// It is read here, after the fork, and the buffer it was read to is wiped, so that a search of all
/// guest memory finds it in one address space only.
fn hold_pattern() {
    let mut buffer = [0; init::COMMAND_LINE];
    init::with_command_line(&mut buffer, |command_line| {
        let Some(pattern) = parameters::pattern(command_line) else {
            return;
        };
        // Too long for the command line cannot be: the text came from there.
        if let Ok(memory) = memory::private(init::COMMAND_LINE) {
            for (place, byte) in memory.iter_mut().zip(pattern.bytes()) {
                *place = byte;
            }
            core::hint::black_box(memory);
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::behaviors::by_name;
    use crate::system::files;

    /// Starts processes that leave others behind, forgets them, and says whether nobody lives and nothing
    /// more is counted.
    fn forget_hoppers() -> Option<()> {
        files::open_as_console(c"/dev/null").ok()?;
        families::adopt_orphans();
        let parameters = Parameters::parse("workload.unit=500", |_| {});
        let mut workers = Workers::new(&parameters).ok()?;
        for name in ["daemons", "storm", "clones", "forks"] {
            let mut start = Start::new(by_name(name)?);
            start.number = Some(2);
            workers.start(&start).ok()?;
        }
        let counters = workers.counters;
        while counters[..4].iter().any(|slot| slot.finished() < 10) {
            sleep_for(PAUSE);
            workers.bury();
        }
        workers.forget().ok()?;
        sleep_for(20 * PAUSE);
        let counted = counters.iter().any(|slot| slot.finished() > 0);
        (!counted && !workers.any()).then_some(())
    }

    #[test]
    fn nobody_counts_who_has_come_of_a_forgotten_process() {
        let child = match system::fork().expect("a process") {
            Fork::Child => system::exit(i32::from(forget_hoppers().is_none())),
            Fork::Parent(child) => child,
        };
        let ended = loop {
            match system::ended(child) {
                Some(ended) => break ended,
                None => sleep_for(PAUSE),
            }
        };
        assert_eq!(ended.status, 0);
    }
}
