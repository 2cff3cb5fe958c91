//! The files of a crate, and how its modules are nested.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use syn::{Attribute, Item};

/// A file of a crate, with those of the modules that it declares.
pub(crate) struct Module {
    /// The path of the file.
    pub(crate) path: PathBuf,
    /// The syntax tree of the file.
    pub(crate) syntax: syn::File,
    /// The modules that it declares without a body, but for those of tests.
    pub(crate) inner: Vec<Module>,
    /// Those of tests.
    pub(crate) tests: Vec<Module>,
}

impl Module {
    /// Reads the crate with this root file, as in `hypervisor/src/lib.rs`.
    pub(crate) fn read(root: &Path) -> Result<Self> {
        let directory = root.parent().context("a file without a directory")?;
        Self::read_file(root.to_owned(), directory)
    }

    /// Reads a file and those of its modules, which are in `below`.
    fn read_file(path: PathBuf, below: &Path) -> Result<Self> {
        let text =
            fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        let syntax = syn::parse_file(&text)
            .with_context(|| format!("cannot understand {}", path.display()))?;
        let (mut inner, mut tests) = (Vec::new(), Vec::new());
        for item in &syntax.items {
            let Item::Mod(module) = item else { continue };
            if module.content.is_some() {
                continue;
            }
            let directory = below.join(module.ident.to_string());
            let files = [directory.with_extension("rs"), directory.join("mod.rs")];
            let Some(file) = files.into_iter().find(|file| file.exists()) else {
                bail!(
                    "no file of the module {} in {}",
                    module.ident,
                    below.display()
                );
            };
            let module_of = Self::read_file(file, &directory)?;
            if module.attrs.iter().any(is_for_tests) {
                tests.push(module_of);
            } else {
                inner.push(module_of);
            }
        }
        Ok(Self {
            path,
            syntax,
            inner,
            tests,
        })
    }

    /// Calls `visit` with this file and all below it but those of tests.
    pub(crate) fn each(&self, visit: &mut impl FnMut(&Self)) {
        visit(self);
        for module in &self.inner {
            module.each(visit);
        }
    }

    /// Calls `visit` with this file and all below it, those of tests too.
    pub(crate) fn each_with_tests(&self, visit: &mut impl FnMut(&Self)) {
        visit(self);
        for module in self.inner.iter().chain(&self.tests) {
            module.each_with_tests(visit);
        }
    }
}

/// Returns whether what has this attribute is compiled for tests only: `cfg(test)`, alone or with
/// more conditions.
pub(crate) fn is_for_tests(attribute: &Attribute) -> bool {
    let syn::Meta::List(list) = &attribute.meta else {
        return false;
    };
    let condition = list.tokens.to_string();
    list.path.is_ident("cfg") && (condition == "test" || condition.starts_with("all (test"))
}
