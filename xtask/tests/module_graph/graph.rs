//! Which modules use which, and whether that leads back to where it began.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use crate::source::Source;

/// The modules directly in one module, or in the crate's root, and who uses whom.
#[derive(Clone, Debug, Default)]
pub(crate) struct Graph {
    /// The uses, by user and used: a place of each.
    edges: BTreeMap<String, BTreeMap<String, String>>,
}

impl Graph {
    /// The graph of the modules directly in `parent`; each stands for all that is below it, too.
    pub(crate) fn of(source: &Source, parent: &[String]) -> Self {
        let child = |path: &[String]| -> Option<String> {
            let name = path.strip_prefix(parent)?.first()?;
            let module = [parent, std::slice::from_ref(name)].concat();
            source.modules.contains(&module).then(|| name.clone())
        };
        let mut graph = Self::default();
        for mention in &source.mentions {
            let (Some(by), Some(what)) = (child(&mention.by), child(&mention.what)) else {
                continue;
            };
            if by != what {
                let used = graph.edges.entry(by).or_default();
                used.entry(what).or_insert_with(|| mention.place.clone());
            }
        }
        graph
    }

    /// The modules that `from` uses, directly or through others.
    fn reachable(&self, from: &str) -> BTreeSet<&str> {
        let mut seen = BTreeSet::new();
        let mut open = vec![from];
        while let Some(module) = open.pop() {
            let used = self.edges.get(module).into_iter().flatten();
            for (used, _) in used {
                if seen.insert(used.as_str()) {
                    open.push(used);
                }
            }
        }
        seen
    }

    /// The modules that use themselves through others.
    pub(crate) fn cyclic(&self) -> BTreeSet<&str> {
        let modules = self.edges.keys().map(String::as_str);
        modules
            .filter(|module| self.reachable(module).contains(module))
            .collect()
    }

    /// Who of the cyclic modules uses which, with a place each.
    pub(crate) fn describe_cycles(&self) -> String {
        let cyclic = self.cyclic();
        let mut text = String::new();
        for (by, used) in &self.edges {
            for (what, place) in used {
                let is_in_cycle = cyclic.contains(by.as_str())
                    && cyclic.contains(what.as_str())
                    && self.reachable(what).contains(by.as_str());
                if is_in_cycle {
                    let _ = writeln!(text, "  {by} uses {what}: {place}");
                }
            }
        }
        text
    }
}
