//! How the kernel is to schedule a process: class, priority, CPU.

use linux_raw_sys::general::{SCHED_BATCH, SCHED_FIFO, SCHED_IDLE, SCHED_NORMAL, SCHED_RR};

use crate::system::{Errno, scheduling};

/// A priority within the real-time classes where none is given: in the middle.
const MIDDLE: u8 = 50;

/// A scheduling class.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Class {
    /// Time shared by nice values.
    #[default]
    Other,
    /// The same, for those that do not wait for anybody.
    Batch,
    /// The class of processes that run if nobody else wants to.
    Idle,
    /// Real time: first in, first out, at this priority from 1 to 99.
    Fifo(u8),
    /// Real time, in turns with those of the same priority.
    RoundRobin(u8),
}

impl Class {
    /// Returns the class in a word such as `batch` or `fifo:99`.
    fn parse(word: &str) -> Option<Self> {
        let (name, priority) = match word.split_once(':') {
            Some((name, priority)) => (name, Some(priority.parse().ok()?)),
            None => (word, None),
        };
        match (name, priority) {
            ("other", None) => Some(Self::Other),
            ("batch", None) => Some(Self::Batch),
            ("idle", None) => Some(Self::Idle),
            ("fifo", _) => Some(Self::Fifo(real_time(priority)?)),
            ("rr", _) => Some(Self::RoundRobin(real_time(priority)?)),
            _ => None,
        }
    }

    const fn policy_and_priority(self) -> (u32, u8) {
        match self {
            Self::Other => (SCHED_NORMAL, 0),
            Self::Batch => (SCHED_BATCH, 0),
            Self::Idle => (SCHED_IDLE, 0),
            Self::Fifo(priority) => (SCHED_FIFO, priority),
            Self::RoundRobin(priority) => (SCHED_RR, priority),
        }
    }
}

/// Returns a priority of the real-time classes.
fn real_time(priority: Option<u8>) -> Option<u8> {
    Some(priority.unwrap_or(MIDDLE)).filter(|priority| (1..=99).contains(priority))
}

/// The scheduling of a process.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Schedule {
    /// `sched=other|batch|idle|fifo[:P]|rr[:P]`.
    pub class: Class,
    /// `nice=N`, from -20 to 19.
    pub nice: i8,
    /// `cpu=N`: the CPU that it stays on; any if not given.
    pub cpu: Option<u32>,
}

impl Schedule {
    /// Takes the setting `name=value` over; `None` if there is none such.
    pub fn set(&mut self, name: &str, value: &str) -> Option<()> {
        match name {
            "sched" => self.class = Class::parse(value)?,
            "nice" => {
                self.nice = value
                    .parse()
                    .ok()
                    .filter(|nice| (-20..=19).contains(nice))?;
            }
            "cpu" => self.cpu = Some(value.parse().ok().filter(|cpu| *cpu < 64)?),
            _ => return None,
        }
        Some(())
    }

    /// Has the kernel schedule this process so.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn apply(&self) -> Result<(), Errno> {
        // First the CPU: with a real-time class, what it was on would be kept from others.
        if let Some(cpu) = self.cpu {
            scheduling::pin_to(cpu)?;
        }
        if self.nice != 0 {
            scheduling::set_nice(self.nice)?;
        }
        if self.class != Class::Other {
            let (policy, priority) = self.class.policy_and_priority();
            scheduling::set_policy(policy, priority)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(settings: &[(&str, &str)]) -> Option<Schedule> {
        let mut schedule = Schedule::default();
        for (name, value) in settings {
            schedule.set(name, value)?;
        }
        Some(schedule)
    }

    #[test]
    fn each_setting_is_read() {
        let expected = Schedule {
            class: Class::Fifo(99),
            nice: -20,
            cpu: Some(1),
        };
        let settings = [("sched", "fifo:99"), ("nice", "-20"), ("cpu", "1")];
        assert_eq!(parsed(&settings), Some(expected));
        for (word, class) in [
            ("other", Class::Other),
            ("batch", Class::Batch),
            ("idle", Class::Idle),
            ("fifo", Class::Fifo(50)),
            ("rr:1", Class::RoundRobin(1)),
        ] {
            let schedule = parsed(&[("sched", word)]);
            assert_eq!(schedule.map(|it| it.class), Some(class), "{word}");
        }
    }

    #[test]
    fn what_the_kernel_would_not_take_is_refused() {
        for (name, value) in [
            ("sched", "fifo:0"),
            ("sched", "rr:100"),
            ("sched", "batch:1"),
            ("sched", "fast"),
            ("nice", "-21"),
            ("nice", "20"),
            ("cpu", "64"),
            ("cpus", "1"),
        ] {
            assert_eq!(parsed(&[(name, value)]), None, "{name}={value}");
        }
    }
}
