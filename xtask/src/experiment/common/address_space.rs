//! The processes of a guest as tarpit's `ps` lists them, and which of them are the workload's.

use anyhow::{Context, Result};

/// A process, as tarpit sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AddressSpace {
    /// The console's name for the process.
    pub cr3: String,
    /// Its share of a CPU in thousandths.
    pub cpu_permille: u64,
}

impl AddressSpace {
    /// Returns those that `ps` answers with.
    ///
    /// # Errors
    /// When the answer is something else.
    pub(in crate::experiment) fn all_in(answer: &[serde_json::Value]) -> Result<Vec<Self>> {
        let one = |line: &serde_json::Value| {
            Some(Self {
                cr3: line["cr3"].as_str()?.to_owned(),
                cpu_permille: line["cpu_permille"].as_u64()?,
            })
        };
        answer
            .iter()
            .map(|line| one(line).with_context(|| format!("not an address space: {line}")))
            .collect()
    }
}

/// Returns the `count` address spaces that have run most lately, where they are told from the rest:
/// none has less than half of what they have on average, and no other has as much as that.
pub(in crate::experiment) fn fair_sharers(
    seen: &[AddressSpace],
    count: usize,
) -> Option<Vec<AddressSpace>> {
    let mut spaces = seen.to_vec();
    spaces.sort_by_key(|space| std::cmp::Reverse(space.cpu_permille));
    let rest = spaces.split_off(count.min(spaces.len()));
    let sum: u64 = spaces.iter().map(|space| space.cpu_permille).sum();
    let half_of_average = sum as f64 / count as f64 / 2.0;
    let has_share = |space: &AddressSpace| space.cpu_permille as f64 >= half_of_average;
    let told_apart = spaces.iter().all(has_share) && !rest.iter().any(has_share);
    (spaces.len() == count && sum > 0 && told_apart).then_some(spaces)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn address_spaces_are_read_from_what_ps_answers() -> Result<()> {
        let answer = [
            serde_json::json!({"vm": "debian", "cr3": "0x1a2b000", "aliases": ["0x1a2c000"],
                "cpu_permille": 331, "cpu_ms": 700, "seen_ms_ago": 1, "target": false}),
        ];
        let spaces = AddressSpace::all_in(&answer)?;
        assert_eq!(spaces[0].cr3, "0x1a2b000");
        assert_eq!(spaces[0].cpu_permille, 331);
        assert!(AddressSpace::all_in(&[serde_json::json!({"error": "unknown_vm"})]).is_err());
        Ok(())
    }

    #[test]
    fn the_workloads_processes_are_those_with_a_fair_share_however_many_cpus_there_are() {
        let space = |cpu_permille| AddressSpace {
            cr3: format!("{cpu_permille:#x}"),
            cpu_permille,
        };
        let seen = [30, 331, 320, 5, 340].map(space);
        let busy = fair_sharers(&seen, 3).expect("three");
        assert_eq!(busy, [340, 331, 320].map(space));
        assert_eq!(fair_sharers(&seen, 2), None, "a third has as much");
        assert_eq!(fair_sharers(&seen, 4), None, "the fourth hardly runs");
        assert_eq!(fair_sharers(&seen[..2], 3), None);
        assert_eq!(fair_sharers(&[0, 0].map(space), 2), None);
        let on_four_cpus = [200, 200, 333, 250, 14].map(space);
        assert_eq!(
            fair_sharers(&on_four_cpus, 4).map(|busy| busy.len()),
            Some(4)
        );
    }
}
