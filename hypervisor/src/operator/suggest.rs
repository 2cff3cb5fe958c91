//! Suggestions for a mistyped word.

/// Words beyond this length get no suggestion.
const LONGEST: usize = 24;

/// Returns the candidate that is so near to `word` that it was probably meant.
pub(super) fn suggest<'a>(
    word: &str,
    candidates: impl IntoIterator<Item = &'a str>,
) -> Option<&'a str> {
    candidates
        .into_iter()
        .filter_map(|candidate| {
            // A prefix is an abbreviation; else up to every third letter may be wrong.
            let distance = if !word.is_empty() && candidate.starts_with(word) {
                0
            } else {
                distance(word, candidate)?
            };
            let allowed = word.len().div_ceil(3);
            (distance <= allowed && distance < candidate.len()).then_some((distance, candidate))
        })
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| candidate)
}

/// Counts the letters to be inserted, left out, replaced, or swapped with their neighbor to make
/// one word the other (the optimal string alignment distance); `None` for long words.
fn distance(a: &str, b: &str) -> Option<usize> {
    let (a, b) = (a.as_bytes(), b.as_bytes());
    if a.len() > LONGEST || b.len() > LONGEST {
        return None;
    }
    // The last three rows of the table of distances between prefixes.
    let mut before = [0; LONGEST + 1];
    let mut previous: [usize; LONGEST + 1] = core::array::from_fn(|index| index);
    for (row, x) in a.iter().enumerate() {
        let mut current = [0; LONGEST + 1];
        current[0] = row + 1;
        for (column, y) in b.iter().enumerate() {
            let mut best = (previous[column] + usize::from(x != y))
                .min(previous[column + 1] + 1)
                .min(current[column] + 1);
            if row > 0 && column > 0 && *x == b[column - 1] && a[row - 1] == *y {
                best = best.min(before[column - 1] + 1);
            }
            current[column + 1] = best;
        }
        before = previous;
        previous = current;
    }
    Some(previous[b.len()])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn distances() {
        for (a, b, expected) in [
            ("", "", 0),
            ("help", "help", 0),
            ("hlep", "help", 1),
            ("supress", "suppress", 1),
            ("sttas", "stats", 1),
            ("ps", "vms", 2),
            ("", "abc", 3),
        ] {
            assert_eq!(distance(a, b), Some(expected), "{a} {b}");
        }
        assert_eq!(distance(&"x".repeat(99), "x"), None);
    }

    #[test]
    fn typing_errors_are_understood_and_nonsense_is_not() {
        let words = ["help", "suppress", "stats", "shutdown"];
        assert_eq!(suggest("supress", words), Some("suppress"));
        assert_eq!(suggest("sta", words), Some("stats"));
        assert_eq!(suggest("hlep", words), Some("help"));
        assert_eq!(suggest("xyzzy", words), None);
        assert_eq!(suggest("", words), None);
    }
}
