//! How the documentation of functions begins: with what the function does, as a verb in the third
//! person ("Returns the number of ...").

use anyhow::Result;
use syn::visit::{self, Visit};
use syn::{Attribute, Expr, ExprLit, Lit, Meta};

use super::modules::{Module, is_for_tests};

/// Words that end as such a verb does and are none.
const NO_VERBS: [&str; 8] = [
    "Always", "As", "Bits", "Bytes", "Its", "This", "Thus", "Unless",
];

/// A visitor that collects the functions whose documentation begins otherwise.
#[derive(Default)]
struct Finder {
    found: Vec<String>,
}

/// Returns the first line of the documentation, if there is any.
fn first_line(attributes: &[Attribute]) -> Option<String> {
    attributes.iter().find_map(|attribute| {
        let Meta::NameValue(pair) = &attribute.meta else {
            return None;
        };
        match &pair.value {
            Expr::Lit(ExprLit {
                lit: Lit::Str(text),
                ..
            }) if pair.path.is_ident("doc") => Some(text.value().trim().to_owned()),
            _ => None,
        }
    })
}

/// Returns whether a line begins with a verb in the third person, capitalized. What merely looks
/// like one passes, but for [`NO_VERBS`].
fn begins_with_a_verb(line: &str) -> bool {
    let word = line.split([' ', ',', '.', ':', ';']).next().unwrap_or("");
    let is_word = word.chars().enumerate().all(|(index, letter)| {
        if index == 0 {
            letter.is_ascii_uppercase()
        } else {
            letter.is_ascii_lowercase() || letter == '-'
        }
    });
    is_word && word.ends_with('s') && !NO_VERBS.contains(&word)
}

impl Finder {
    fn check(&mut self, attributes: &[Attribute], signature: &syn::Signature) {
        let line = first_line(attributes);
        if let Some(line) = line.filter(|line| !begins_with_a_verb(line)) {
            self.found.push(format!("{}: {line}", signature.ident));
        }
    }
}

impl<'ast> Visit<'ast> for Finder {
    fn visit_item_mod(&mut self, item: &'ast syn::ItemMod) {
        if !item.attrs.iter().any(is_for_tests) {
            visit::visit_item_mod(self, item);
        }
    }

    fn visit_item_fn(&mut self, item: &'ast syn::ItemFn) {
        self.check(&item.attrs, &item.sig);
        visit::visit_item_fn(self, item);
    }

    fn visit_impl_item_fn(&mut self, item: &'ast syn::ImplItemFn) {
        self.check(&item.attrs, &item.sig);
        visit::visit_impl_item_fn(self, item);
    }

    fn visit_trait_item_fn(&mut self, item: &'ast syn::TraitItemFn) {
        self.check(&item.attrs, &item.sig);
        visit::visit_trait_item_fn(self, item);
    }
}

fn check(root: &str) -> Result<()> {
    let file = xtask::testbed::paths::workspace().join(root);
    let mut wrong = Vec::new();
    Module::read(&file)?.each(&mut |module| {
        let mut finder = Finder::default();
        finder.visit_file(&module.syntax);
        let path = module.path.display();
        wrong.extend(finder.found.iter().map(|found| format!("{path}: {found}")));
    });
    let wrong = wrong.join("\n");
    assert!(
        wrong.is_empty(),
        "{root}: the documentation of functions begins with a verb, as in \"Returns\":\n{wrong}"
    );
    Ok(())
}

#[test]
fn documentation_of_functions_begins_with_what_they_do() -> Result<()> {
    for root in ["arch", "devices", "hypervisor", "vmx", "xtask", "tests"] {
        check(&format!("{root}/src/lib.rs"))?;
    }
    Ok(())
}

#[test]
fn a_verb_in_the_third_person_is_told_from_other_words() {
    for line in [
        "Returns the size.",
        "Has it wait",
        "Writes, and flushes",
        "Goes on.",
    ] {
        assert!(begins_with_a_verb(line), "{line}");
    }
    for line in [
        "The size.",
        "Whether it waits",
        "As above",
        "",
        "`value` adds",
        "returns it",
        "EPTs",
    ] {
        assert!(!begins_with_a_verb(line), "{line}");
    }
}
