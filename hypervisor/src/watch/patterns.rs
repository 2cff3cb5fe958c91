//! Several patterns, looked for at once.

use alloc::vec::Vec;

use aho_corasick::{AhoCorasick, AhoCorasickKind, MatchKind};

use crate::search::pattern::Pattern;

/// The most patterns that are looked for at once in a VM.
pub(crate) const MAX_PATTERNS: usize = 16;

/// Patterns, each known by the number of its rule.
#[derive(Clone, Debug)]
pub(crate) struct PatternSet {
    /// `None` without any pattern.
    automaton: Option<AhoCorasick>,
    rules: Vec<u32>,
    longest: usize,
}

impl PatternSet {
    /// Makes one of the patterns of these rules, of which the first [`MAX_PATTERNS`] count.
    #[must_use]
    pub(crate) fn new<'a>(rules: impl Iterator<Item = (u32, &'a Pattern)> + Clone) -> Self {
        let rules = rules.take(MAX_PATTERNS);
        let patterns = rules.clone().map(|(_, pattern)| pattern.bytes());
        let longest = patterns.clone().map(<[u8]>::len).max();
        // A table of all states and bytes would be faster to walk, but a megabyte long.
        let automaton = AhoCorasick::builder()
            .kind(Some(AhoCorasickKind::ContiguousNFA))
            .match_kind(MatchKind::Standard)
            .build(patterns);
        debug_assert!(automaton.is_ok(), "a thousand states are not too many");
        Self {
            automaton: automaton.ok().filter(|_| longest.is_some()),
            rules: rules.map(|(rule, _)| rule).collect(),
            longest: longest.unwrap_or(0),
        }
    }

    /// Returns whether there is none.
    #[must_use]
    pub(crate) const fn is_empty(&self) -> bool {
        self.automaton.is_none()
    }

    /// Returns how many bytes of a piece are to be looked at again with the next one.
    #[must_use]
    pub(crate) const fn overlap(&self) -> usize {
        self.longest.saturating_sub(1)
    }

    /// Calls `found` with the rule of each pattern that is in `bytes`, and where, unless it lies wholly
    /// in the first `known` bytes.
    pub(crate) fn find(&self, bytes: &[u8], known: usize, mut found: impl FnMut(u32, usize)) {
        let Some(automaton) = &self.automaton else {
            return;
        };
        for one in automaton.find_overlapping_iter(bytes) {
            if one.end() > known
                && let Some(rule) = self.rules.get(one.pattern().as_usize())
            {
                found(*rule, one.start());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::vec::Vec;

    use proptest::prelude::*;

    use super::*;

    fn found(words: &[&str], pieces: &[&[u8]]) -> Vec<(u32, usize)> {
        let patterns: Vec<Pattern> = words.iter().map(|it| Pattern::parse(it).unwrap()).collect();
        let set = PatternSet::new((0..).zip(&patterns));
        let mut all = Vec::new();
        let (mut buffer, mut kept, mut start) = (Vec::new(), 0, 0);
        for piece in pieces {
            buffer.extend_from_slice(piece);
            set.find(&buffer, kept, |pattern, at| all.push((pattern, start + at)));
            kept = set.overlap().min(buffer.len());
            start += buffer.len() - kept;
            buffer.drain(..buffer.len() - kept);
        }
        all.sort_unstable();
        all
    }

    #[test]
    fn patterns_within_and_across_others_are_all_found() {
        assert_eq!(
            found(&["abcd", "bc", "cde"], &[b"xabcdex"]),
            [(0, 1), (1, 2), (2, 3)]
        );
        assert_eq!(
            found(&["abcd", "bc"], &[b"a", b"bc", b"d"]),
            [(0, 0), (1, 1)]
        );
        assert_eq!(found(&[], &[b"abc"]), []);
    }

    proptest! {
        #[test]
        fn it_does_not_matter_where_pieces_end(
            words in prop::collection::vec("[ab]{1,5}", 1..16),
            pieces in prop::collection::vec("[ab]{0,9}", 1..9),
        ) {
            let words: Vec<&str> = words.iter().map(|word| &word[..]).collect();
            let whole = pieces.concat();
            let pieces: Vec<&[u8]> = pieces.iter().map(|piece| piece.as_bytes()).collect();
            let mut expected = Vec::new();
            for (number, word) in words.iter().enumerate() {
                let at = (0..whole.len()).filter(|at| whole[*at..].starts_with(word));
                expected.extend(at.map(|at| (number as u32, at)));
            }
            prop_assert_eq!(found(&words, &pieces), expected);
        }
    }
}
