//! Where unsafe code may be.

use std::path::Path;

use anyhow::Result;
use proc_macro2::{TokenStream, TokenTree};
use syn::visit::{self, Visit};
use syn::{Attribute, Item};

use super::modules::{Module, is_for_tests};

/// A visitor that finds unsafe code that is not of tests.
#[derive(Default)]
struct Finder {
    found: bool,
}

fn names_unsafe(tokens: TokenStream) -> bool {
    tokens.into_iter().any(|token| match token {
        TokenTree::Ident(ident) => ident == "unsafe",
        TokenTree::Group(group) => names_unsafe(group.stream()),
        _ => false,
    })
}

impl<'ast> Visit<'ast> for Finder {
    fn visit_item(&mut self, item: &'ast Item) {
        let attributes: &[Attribute] = match item {
            Item::Const(item) => &item.attrs,
            Item::Fn(item) => &item.attrs,
            Item::Impl(item) => {
                self.found |= item.unsafety.is_some();
                &item.attrs
            }
            Item::Mod(item) => &item.attrs,
            Item::Static(item) => &item.attrs,
            Item::Trait(item) => {
                self.found |= item.unsafety.is_some();
                &item.attrs
            }
            _ => &[],
        };
        if !attributes.iter().any(is_for_tests) {
            visit::visit_item(self, item);
        }
    }

    fn visit_impl_item_fn(&mut self, item: &'ast syn::ImplItemFn) {
        if !item.attrs.iter().any(is_for_tests) {
            visit::visit_impl_item_fn(self, item);
        }
    }

    fn visit_signature(&mut self, signature: &'ast syn::Signature) {
        self.found |= matches!(signature.safety, syn::Safety::Unsafe(_));
        visit::visit_signature(self, signature);
    }

    fn visit_expr_unsafe(&mut self, _: &'ast syn::ExprUnsafe) {
        self.found = true;
    }

    fn visit_item_foreign_mod(&mut self, _: &'ast syn::ItemForeignMod) {
        self.found = true;
    }

    fn visit_macro(&mut self, call: &'ast syn::Macro) {
        let assembles = call.path.segments.last();
        self.found |= assembles.is_some_and(|name| name.ident == "global_asm");
        self.found |= names_unsafe(call.tokens.clone());
    }
}

/// Returns whether the module or one in it has unsafe code that is not of tests.
fn has_unsafe(module: &Module) -> bool {
    let mut finder = Finder::default();
    finder.visit_file(&module.syntax);
    finder.found || module.inner.iter().any(has_unsafe)
}

/// Returns whether the module forbids unsafe code to itself and those in it. Where tests need it,
/// all other code may be meant.
fn forbids_unsafe(module: &Module) -> bool {
    module.syntax.attrs.iter().any(|attribute| {
        let syn::Meta::List(list) = &attribute.meta else {
            return false;
        };
        let what = list.tokens.to_string();
        (list.path.is_ident("forbid") && what == "unsafe_code")
            || (list.path.is_ident("cfg_attr")
                && what.replace(' ', "") == "not(test),forbid(unsafe_code)")
    })
}

/// Returns the files without unsafe code in or below them where nothing forbids it.
fn unfenced(module: &Module) -> Vec<&Path> {
    if forbids_unsafe(module) {
        Vec::new()
    } else if has_unsafe(module) {
        module.inner.iter().flat_map(unfenced).collect()
    } else {
        vec![&module.path]
    }
}

#[test]
fn modules_without_unsafe_code_forbid_it() -> Result<()> {
    for root in ["arch", "devices", "hypervisor", "vmx"] {
        let file = xtask::testbed::paths::workspace()
            .join(root)
            .join("src/lib.rs");
        let root = Module::read(&file)?;
        let unfenced = unfenced(&root);
        assert!(
            unfenced.is_empty(),
            "these have no unsafe code, and should say #![forbid(unsafe_code)]: {unfenced:#?}"
        );
    }
    Ok(())
}

#[test]
fn a_module_is_fenced_by_itself_or_by_those_that_it_is_in() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let files = [
        (
            "lib.rs",
            "mod safe; mod fenced; mod danger; mod above; #[cfg(test)] mod tests;",
        ),
        (
            "safe.rs",
            "fn f() {} #[cfg(test)] mod tests { fn g() { unsafe { h() } } }",
        ),
        ("fenced.rs", "#![forbid(unsafe_code)] fn f() {}"),
        ("danger.rs", "macro_rules! m { () => { unsafe { f() } } }"),
        ("above.rs", "mod inner; unsafe fn f() {}"),
        (
            "above/inner.rs",
            "#![cfg_attr(not(test), forbid(unsafe_code))] mod deep;",
        ),
        (
            "above/inner/deep.rs",
            "// unsafe\nconst TEXT: &str = \"unsafe\";",
        ),
        ("tests.rs", "fn f() { unsafe { g() } }"),
    ];
    std::fs::create_dir_all(directory.path().join("above/inner"))?;
    for (name, text) in files {
        std::fs::write(directory.path().join(name), text)?;
    }
    let root = Module::read(&directory.path().join("lib.rs"))?;
    assert_eq!(root.tests.len(), 1);
    assert_eq!(unfenced(&root), [directory.path().join("safe.rs")]);
    Ok(())
}
