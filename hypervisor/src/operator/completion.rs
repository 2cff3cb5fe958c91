//! What the tab key offers.

use alloc::string::String;
use alloc::vec::Vec;

use super::command::Candidates;
use super::commands;
use super::dispatch::JSON;

/// Returns the words that may stand in the place of the last, unfinished word of `line`: commands,
/// options, and arguments, where `vms` are the names of VMs. Not all of them begin as the
/// unfinished word does.
#[must_use]
pub(crate) fn candidates<'n>(line: &str, mut vms: impl Iterator<Item = &'n str>) -> Vec<String> {
    let start = line.rfind(' ').map_or(0, |space| space + 1);
    let (before, word) = line.split_at(start);
    let mut words = before
        .split_ascii_whitespace()
        .filter(|word| !word.starts_with("--"));
    let owned = |words: &mut dyn Iterator<Item = &str>| words.map(String::from).collect();
    let Some(command) = words.next() else {
        return if word.starts_with('-') {
            alloc::vec![JSON.into()]
        } else {
            owned(&mut commands::names())
        };
    };
    let Ok(command) = commands::find(command) else {
        return Vec::new();
    };
    if word.starts_with('-') {
        let options = command.options.iter().map(|option| option.name);
        return owned(&mut options.chain([JSON]));
    }
    let parameter = command.parameters.get(words.count());
    match parameter.map(|parameter| parameter.candidates) {
        Some(Candidates::Vms) => owned(&mut vms),
        Some(Candidates::Commands) => owned(&mut commands::names()),
        Some(Candidates::Words(words)) => owned(&mut words.iter().copied()),
        Some(Candidates::Unknown) | None => Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn candidates(line: &str) -> Vec<String> {
        super::candidates(line, ["web", "database"].into_iter())
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
            [
                "--interval",
                "--clock",
                "--policy",
                "--cap",
                "--lead",
                "--follow",
                "--json"
            ]
        );
        assert!(candidates("help ").contains(&"stats".into()));
        assert!(candidates("vms ").is_empty());
        assert!(candidates("nonsense ").is_empty());
        assert!(candidates("trace web show ").is_empty());
        assert_eq!(candidates("pin web 0 "), ["any"]);
    }
}
