//! What the tab key offers.

use super::command::{JSON, TRACE_ACTIONS};
use super::help::{Argument, COMMANDS, topic};
use super::line_editor::Complete;

/// Completes commands, options and the names of VMs.
pub(super) struct Completion<N>(
    /// Gives the names of the VMs.
    pub N,
);

impl<'n, N, I> Complete for Completion<N>
where
    N: Fn() -> I,
    I: Iterator<Item = &'n str>,
{
    fn candidates(&self, line: &str, offer: &mut dyn FnMut(&str)) {
        let start = line.rfind(' ').map_or(0, |space| space + 1);
        let (before, word) = line.split_at(start);
        let mut words = before
            .split_ascii_whitespace()
            .filter(|word| !word.starts_with("--"));
        let Some(command) = words.next() else {
            if word.starts_with('-') {
                offer(JSON);
            } else {
                COMMANDS.iter().for_each(|topic| offer(topic.name));
            }
            return;
        };
        let Some(topic) = topic(command) else {
            return;
        };
        let is_first_argument = words.next().is_none();
        if word.starts_with('-') {
            topic.options.iter().for_each(|option| offer(option));
            offer(JSON);
        } else if is_first_argument {
            match topic.argument {
                Argument::Vm => (self.0)().for_each(offer),
                Argument::Command => COMMANDS.iter().for_each(|topic| offer(topic.name)),
                Argument::None => {}
            }
        } else if topic.name == "release" {
            offer("all");
        } else if topic.name == "trace" {
            TRACE_ACTIONS.iter().for_each(|action| offer(action));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::string::String;
    use std::vec::Vec;

    fn candidates(line: &str) -> Vec<String> {
        let mut words = Vec::new();
        Completion(|| ["web", "database"].into_iter())
            .candidates(line, &mut |word| words.push(word.into()));
        words
    }

    #[test]
    fn each_place_has_its_candidates() {
        assert!(candidates("").contains(&"suppress".into()));
        assert_eq!(candidates("ps "), ["web", "database"]);
        assert_eq!(candidates("trace web "), ["on", "off", "show", "clear"]);
        assert_eq!(candidates("ps --json "), ["web", "database"]);
        assert_eq!(candidates("release web "), ["all"]);
        assert_eq!(
            candidates("suppress web 0x5000 --"),
            ["--interval", "--clock", "--json"]
        );
        assert!(candidates("help ").contains(&"stats".into()));
        assert!(candidates("vms ").is_empty());
        assert!(candidates("nonsense ").is_empty());
    }
}
