//! One spelling: American, as that of Rust's own documentation.

use std::fs;

use anyhow::Result;
use regex::Regex;

use super::documents::files;

/// British spellings, as a regular expression.
const BRITISH: &str = concat!(
    r"(?i)\b\w*(?:",
    r"colour|favour|honour|behaviour|neighbour|flavour|labour|",
    r"centre|fibre|licence|defence|offence|grey|catalogue|dialogue|cheque|",
    r"(?:initial|virtual|serial|synchron|normal|optim|recogn|organ|real|author|special|general|",
    r"minim|maxim|final|util|emphas|summar|priorit|daemon|capital|custom|apolog|critic)",
    r"is(?:e|ed|es|ing|ation|able)\b|",
    r"cancell(?:ed|ing)|labell(?:ed|ing)|modell(?:ed|ing)|travell(?:ed|ing)|signall(?:ed|ing)",
    r")\w*",
);

/// What is called so by others: a command that issues and scripts name, and words of their own.
const NAMES: [&str; 1] = ["behaviours"];

/// Returns the British spellings in a text, with their lines.
fn british(text: &str, pattern: &Regex) -> Vec<String> {
    let lines = (1..).zip(text.lines());
    lines
        .flat_map(|(number, line)| pattern.find_iter(line).map(move |word| (number, word)))
        .filter(|(_, word)| !NAMES.contains(&word.as_str()))
        .map(|(number, word)| format!("{number}: {}", word.as_str()))
        .collect()
}

#[test]
fn words_are_spelled_as_in_rust() -> Result<()> {
    let pattern = Regex::new(BRITISH)?;
    let mut wrong = Vec::new();
    for file in files(xtask::testbed::paths::workspace())? {
        let is_text = file.extension().is_some_and(|it| it == "rs" || it == "md");
        if !is_text || file.ends_with("code_rules/spelling.rs") {
            continue;
        }
        let found = british(&fs::read_to_string(&file)?, &pattern);
        let path = file.display();
        wrong.extend(found.iter().map(|word| format!("{path}:{word}")));
    }
    let wrong = wrong.join("\n");
    assert!(wrong.is_empty(), "not as in Rust:\n{wrong}");
    Ok(())
}

#[test]
fn british_words_are_told_from_american_ones() -> Result<()> {
    let pattern = Regex::new(BRITISH)?;
    let text = "The neighbour is\nVIRTUALISED and initialises.";
    let expected = ["1: neighbour", "2: VIRTUALISED", "2: initialises"];
    assert_eq!(british(text, &pattern), expected);
    let text = "A neighbor is virtualized; a precise promise, a serial line; `behaviours`.";
    assert!(british(text, &pattern).is_empty());
    Ok(())
}
