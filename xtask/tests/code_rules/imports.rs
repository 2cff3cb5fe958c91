//! The order of imports: the standard library, other crates, this crate, and what is imported for
//! others; with one empty line between two of these.

use std::collections::BTreeSet;

use anyhow::Result;
use proc_macro2::LineColumn;
use syn::spanned::Spanned;
use syn::visit::{self, Visit};
use syn::{Item, ItemUse, UseTree, Visibility};

use super::modules::Module;

/// The groups, in their order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Group {
    /// The standard library.
    Standard,
    /// Another crate.
    External,
    /// This crate, by `crate`, `super`, `self`, or the name of a module beside the import.
    Own,
    /// Anything that is made visible to others here.
    Exported,
}

/// Returns the group of an import beside the modules called `modules`.
fn group(item: &ItemUse, modules: &BTreeSet<String>) -> Group {
    if !matches!(item.vis, Visibility::Inherited) {
        return Group::Exported;
    }
    let UseTree::Path(path) = &item.tree else {
        return Group::External;
    };
    let root = path.ident.to_string();
    match root.as_str() {
        "std" | "core" | "alloc" => Group::Standard,
        "crate" | "super" | "self" => Group::Own,
        _ if item.leading_colon.is_none() && modules.contains(&root) => Group::Own,
        _ => Group::External,
    }
}

/// Returns the lines of the imports among `items` that are out of order.
fn out_of_order(items: &[Item]) -> Vec<LineColumn> {
    let modules = items
        .iter()
        .filter_map(|item| match item {
            Item::Mod(module) => Some(module.ident.to_string()),
            _ => None,
        })
        .collect();
    let mut wrong = Vec::new();
    for pair in items.windows(2) {
        let [Item::Use(first), Item::Use(second)] = pair else {
            continue;
        };
        let (before, after) = (group(first, &modules), group(second, &modules));
        let start = second.span().start();
        let is_apart = start.line > first.span().end().line + 1;
        if after < before || is_apart != (before != after) {
            wrong.push(start);
        }
    }
    wrong
}

/// A collector of what is out of order in the modules of a file.
#[derive(Default)]
struct Finder {
    wrong: Vec<LineColumn>,
}

impl<'ast> Visit<'ast> for Finder {
    fn visit_file(&mut self, file: &'ast syn::File) {
        self.wrong.extend(out_of_order(&file.items));
        visit::visit_file(self, file);
    }

    fn visit_item_mod(&mut self, item: &'ast syn::ItemMod) {
        if let Some((_, items)) = &item.content {
            self.wrong.extend(out_of_order(items));
        }
        visit::visit_item_mod(self, item);
    }
}

#[test]
fn imports_are_in_one_order() -> Result<()> {
    let workspace = xtask::testbed::paths::workspace();
    let mut wrong = Vec::new();
    for root in super::CRATES {
        Module::read(&workspace.join(root))?.each_with_tests(&mut |module| {
            let mut finder = Finder::default();
            finder.visit_file(&module.syntax);
            let path = module.path.display();
            wrong.extend(finder.wrong.iter().map(|at| format!("{path}:{}", at.line)));
        });
    }
    let wrong = wrong.join("\n");
    assert!(
        wrong.is_empty(),
        "imports: the standard library, other crates, this crate, what is exported; an empty line between:\n{wrong}"
    );
    Ok(())
}

#[test]
fn an_import_out_of_order_is_found() -> Result<()> {
    let lines = |text: &str| -> Result<Vec<usize>> {
        let mut finder = Finder::default();
        finder.visit_file(&syn::parse_file(text)?);
        Ok(finder.wrong.iter().map(|at| at.line).collect())
    };
    let good = "mod a;\n\nuse core::fmt;\n\nuse log::Level;\n\nuse crate::x::Y;\nuse a::Z;\n\npub use a::W;\n";
    assert!(lines(good)?.is_empty());
    assert_eq!(lines("use log::Level;\n\nuse core::fmt;\n")?, [3]);
    assert_eq!(lines("use core::fmt;\nuse log::Level;\n")?, [2]);
    assert_eq!(lines("use core::fmt;\n\nuse core::mem;\n")?, [3]);
    assert_eq!(
        lines("mod t {\n    use crate::x::Y;\n    use log::Level;\n}\n")?,
        [3]
    );
    Ok(())
}
