//! The cases: what the target does, who is there besides it, and what can be asked of suppression
//! then.

/// The processes that run beside the targets in their VM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Others {
    /// Nobody.
    None,
    /// Two CPU-bound processes for each VCPU, which run where the kernel likes.
    Equals,
    /// This many CPU-bound processes, all on the second VCPU; the target is on the first.
    OnSecondVcpu(usize),
}

impl Others {
    /// Returns how many processes they are, in a VM of so many VCPUs.
    pub(super) fn count(self, vcpus: u32) -> usize {
        match self {
            Self::None => 0,
            Self::Equals => 2 * vcpus as usize,
            Self::OnSecondVcpu(count) => count,
        }
    }

    /// Returns what the workload's `start` is told of each of them.
    pub(super) const fn start(self) -> &'static str {
        match self {
            Self::None | Self::Equals => "hog",
            Self::OnSecondVcpu(_) => "hog cpu=1",
        }
    }
}

/// The relation of the target to the others, as the guest's scheduler sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Relation {
    /// Equal shares for the target and the others.
    Equal,
    /// A preference for the target: the others have what it leaves, which in guest time is little.
    Preferred,
    /// A VCPU that the target has to itself.
    Alone,
}

/// A case.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Case {
    /// The name of the case on the command line.
    pub name: &'static str,
    /// The title of the case in the tables.
    pub title: &'static str,
    /// The words that the workload's `start` gets for each target.
    pub targets: &'static [&'static str],
    /// The other processes.
    pub others: Others,
    /// The relation of the targets to the others.
    pub relation: Relation,
    /// Whether another VM wants the first CPU.
    pub neighbor: bool,
    /// The number of VCPUs that the VM has to have; any if not given.
    pub vcpus: Option<u32>,
}

impl Case {
    /// Makes a target beside equals, which is what most are.
    const fn beside_equals(
        name: &'static str,
        title: &'static str,
        start: &'static [&'static str],
    ) -> Self {
        Self {
            name,
            title,
            targets: start,
            others: Others::Equals,
            relation: Relation::Equal,
            neighbor: false,
            vcpus: None,
        }
    }

    /// Returns the same beside others that the scheduler puts behind it.
    const fn preferred(self) -> Self {
        Self {
            relation: Relation::Preferred,
            ..self
        }
    }

    /// Returns the same without others.
    const fn alone(self) -> Self {
        Self {
            others: Others::None,
            relation: Relation::Alone,
            ..self
        }
    }

    /// Returns the same with another VM on the first CPU.
    const fn with_neighbor(self) -> Self {
        Self {
            neighbor: true,
            ..self
        }
    }

    /// Returns the same in a VM of two VCPUs, the target alone on the first and so many others on
    /// the second.
    const fn apart_from(self, count: usize) -> Self {
        Self {
            others: Others::OnSecondVcpu(count),
            relation: Relation::Alone,
            vcpus: Some(2),
            ..self
        }
    }

    /// Returns whether a target is a CPU-bound process in user mode and nothing else.
    pub(super) fn is_plain_hog(self) -> bool {
        self.targets == ["hog"]
    }

    /// Returns whether the targets want the CPU all the time.
    pub(super) fn is_busy(self) -> bool {
        !self.targets.iter().any(|start| start.starts_with("wakes"))
    }
}

/// All cases.
pub(super) const CASES: [Case; 24] = [
    Case::beside_equals("equal", "one of equals", &["hog"]),
    Case::beside_equals("nice", "nice -20", &["hog nice=-20"]).preferred(),
    Case::beside_equals("fifo", "SCHED_FIFO", &["hog sched=fifo"]).preferred(),
    Case::beside_equals("rr", "SCHED_RR", &["hog sched=rr"]).preferred(),
    Case::beside_equals("batch", "SCHED_BATCH", &["hog sched=batch"]),
    Case::beside_equals("alone", "alone in the VM", &["hog"]).alone(),
    Case::beside_equals("random", "getrandom of 64 KiB", &["random"]),
    Case::beside_equals("mappings", "mmap, touch, munmap", &["mappings"]),
    Case::beside_equals("naps", "20,000 instructions, then sleeps 50 us", &["naps"]),
    Case::beside_equals("asleep", "wakes every 100 ms", &["wakes"]),
    Case::beside_equals("asleep-alone", "wakes every 100 ms, alone", &["wakes"]).alone(),
    Case::beside_equals("threads", "four threads", &["threads n=4"]),
    Case::beside_equals("two-targets", "two targets", &["hog", "hog"]),
    Case::beside_equals("zeros", "reads /dev/zero", &["zeros"]),
    Case::beside_equals(
        "interrupted-call",
        "getrandom with a 20 us timer",
        &["interrupted-call"],
    ),
    Case::beside_equals("signals", "a signal every 20 us", &["signals"]),
    Case::beside_equals("yields", "sched_yield", &["yields"]),
    Case::beside_equals("page-cache", "page-cache writes", &["page-cache"]),
    Case::beside_equals(
        "apart-one",
        "alone on a VCPU, one on the other",
        &["hog cpu=0"],
    )
    .apart_from(1),
    Case::beside_equals(
        "apart-two",
        "alone on a VCPU, two on the other",
        &["hog cpu=0"],
    )
    .apart_from(2),
    Case::beside_equals(
        "apart-naps",
        "naps on a VCPU, one on the other",
        &["naps cpu=0"],
    )
    .apart_from(1),
    Case::beside_equals(
        "nice-neighbor",
        "nice -20, and a neighbor VM",
        &["hog nice=-20"],
    )
    .preferred()
    .with_neighbor(),
    Case::beside_equals(
        "fifo-neighbor",
        "SCHED_FIFO, and a neighbor VM",
        &["hog sched=fifo"],
    )
    .preferred()
    .with_neighbor(),
    Case::beside_equals(
        "alone-neighbor",
        "alone in the VM, and a neighbor VM",
        &["hog"],
    )
    .alone()
    .with_neighbor(),
];

/// Returns the cases in a VM of so many VCPUs whose name is one of these, or has one of these with
/// a `*` at its end as its beginning; all of them where none is given.
pub(super) fn chosen(names: &[String], vcpus: u32) -> Vec<Case> {
    let matches = |case: &Case, name: &String| match name.strip_suffix('*') {
        Some(beginning) => case.name.starts_with(beginning),
        None => case.name == name,
    };
    CASES
        .into_iter()
        .filter(|case| case.vcpus.is_none_or(|only| only == vcpus))
        .filter(|case| names.is_empty() || names.iter().any(|name| matches(case, name)))
        .collect()
}

/// Returns whether a case has this name, as [`chosen`] takes it.
pub(super) fn is_known(name: &str) -> bool {
    (1..=2).any(|vcpus| !chosen(&[name.to_owned()], vcpus).is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(names: &[&str], vcpus: u32) -> Vec<&'static str> {
        let names: Vec<String> = names.iter().map(|&name| name.to_owned()).collect();
        chosen(&names, vcpus).iter().map(|case| case.name).collect()
    }

    #[test]
    fn cases_are_chosen_by_name_or_beginning() {
        assert_eq!(names(&["nice", "alone"], 1), ["nice", "alone"]);
        assert_eq!(names(&["nice*"], 1), ["nice", "nice-neighbor"]);
        assert!(is_known("apart-one"));
        assert!(!is_known("apart"));
    }

    #[test]
    fn what_needs_a_second_vcpu_is_only_where_there_is_one() {
        assert_eq!(names(&["apart*"], 1), [""; 0]);
        assert_eq!(names(&["apart*"], 2).len(), 3);
        assert_eq!(names(&[], 2).len(), CASES.len());
    }

    #[test]
    fn no_two_cases_have_the_same_name() {
        let mut all = names(&[], 2);
        all.sort_unstable();
        all.dedup();
        assert_eq!(all.len(), CASES.len());
    }
}
