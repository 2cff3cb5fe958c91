//! The cases: processes that try to slip away, and busy systems beside a target that have nothing to do
//! with it.

/// The kind of a case, by what is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// A process that tries to slip away: what its family still gets.
    Evader,
    /// Others beside a family that is suppressed: what they lose, and whether any of them is taken in.
    Bystander {
        /// The units that it does at least.
        units: u64,
    },
    /// Others while rules are applied: what they lose.
    Watched,
}

/// A case.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Case {
    /// The name of the case on the command line.
    pub name: &'static str,
    /// The title of the case in the tables.
    pub title: &'static str,
    /// The words that the workload's `start` gets for the process that the case is about.
    pub start: &'static str,
    /// The kind of the case.
    pub kind: Kind,
}

const fn evader(name: &'static str, title: &'static str, start: &'static str) -> Case {
    Case {
        name,
        title,
        start,
        kind: Kind::Evader,
    }
}

const fn bystander(
    name: &'static str,
    title: &'static str,
    start: &'static str,
    units: u64,
) -> Case {
    Case {
        name,
        title,
        start,
        kind: Kind::Bystander { units },
    }
}

/// The family beside which others are measured: eight workers and the process that has forked them.
pub(super) const FAMILY: &str = "storm n=8 unit=1000";
/// The processes of that.
pub(super) const FAMILY_SIZE: usize = 9;

/// All cases. A unit of 100,000 steps takes about 2 ms at the default speed, one of 10,000 next to nothing.
pub(super) const CASES: [Case; 18] = [
    evader("forks", "forks each unit", "forks n=0 unit=10000"),
    evader("forks-2ms", "forks each 2 ms", "forks n=0 unit=100000"),
    evader(
        "execs",
        "becomes a new program each 2 ms",
        "execs n=0 unit=100000",
    ),
    evader("storm-8", "forks 8 workers", "storm n=8 unit=1000"),
    evader("storm-64", "forks 64 workers", "storm n=63 unit=1000"),
    evader(
        "daemons",
        "double fork and setsid each 2 ms",
        "daemons unit=100000",
    ),
    evader(
        "shells",
        "a shell that starts a program in a loop",
        "shells unit=100000",
    ),
    evader(
        "respawns",
        "a parent that makes a new child each 2 ms",
        "spawns unit=100000",
    ),
    evader(
        "ptraces",
        "a pair, one traces the other",
        "ptraces unit=1000",
    ),
    evader(
        "movers",
        "moves to another top-level slot each unit",
        "movers unit=10000",
    ),
    evader(
        "clones",
        "clones itself on its address space each 2 ms",
        "clones unit=100000",
    ),
    evader(
        "halves",
        "changes its top-level table each unit",
        "halves unit=1000",
    ),
    bystander(
        "script",
        "a shell script of short processes",
        "script unit=1000",
        400,
    ),
    bystander("builds", "a parallel build", "builds unit=1000", 100),
    bystander(
        "serves",
        "a web server that forks, and clients",
        "serves unit=1000",
        100,
    ),
    bystander(
        "spawns",
        "a process that makes 20,000 others",
        "spawns unit=100",
        20_000,
    ),
    Case {
        name: "watched-hog",
        title: "computes under 16 rules of 32 bytes",
        start: "hog",
        kind: Kind::Watched,
    },
    Case {
        name: "watched-script",
        title: "a shell script under 16 rules of 32 bytes",
        start: "script unit=1000",
        kind: Kind::Watched,
    },
];

/// Returns whether `name` means any case: it is a case's, or the beginning of some and a `*`.
pub(super) fn is_known(name: &str) -> bool {
    CASES.iter().any(|case| is_meant(case, name))
}

fn is_meant(case: &Case, name: &str) -> bool {
    match name.strip_suffix('*') {
        Some(beginning) => case.name.starts_with(beginning),
        None => case.name == name,
    }
}

/// Returns the cases of these names, or all if there are none.
pub(super) fn chosen(names: &[String]) -> Vec<Case> {
    let is_chosen =
        |case: &&Case| names.is_empty() || names.iter().any(|name| is_meant(case, name));
    CASES.iter().filter(is_chosen).copied().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cases_are_chosen_by_name_and_beginning() {
        let names = |words: &[&str]| -> Vec<&str> {
            let words: Vec<String> = words.iter().map(|&word| word.to_owned()).collect();
            chosen(&words).iter().map(|case| case.name).collect()
        };
        assert_eq!(names(&[]).len(), CASES.len());
        assert_eq!(
            names(&["storm*", "execs"]),
            ["execs", "storm-8", "storm-64"]
        );
        assert!(is_known("watched*") && !is_known("storm"));
    }
}
