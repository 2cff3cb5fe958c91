//! Which modules a crate has, and what each names of the others, from its source.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use proc_macro2::{TokenStream, TokenTree};
use syn::punctuated::Punctuated;
use syn::visit::{self, Visit};
use syn::{Attribute, ImplItem, Item, Meta, Token, UseTree};

/// The names of a module and of those that it is in, outermost first; empty for the crate's root.
pub(crate) type ModulePath = Vec<String>;

/// A path into the crate that a module's code names: from the root, without `crate`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Mention {
    /// The module whose code it is.
    pub(crate) by: ModulePath,
    /// The path that it names.
    pub(crate) what: ModulePath,
    /// The file and the line.
    pub(crate) place: String,
}

/// A crate's code without what is compiled for its tests only.
#[derive(Clone, Debug, Default)]
pub(crate) struct Source {
    /// All modules but the root.
    pub(crate) modules: Vec<ModulePath>,
    /// The paths that they name, however written: in `use`, in a path, in a macro's arguments.
    pub(crate) mentions: Vec<Mention>,
}

impl Source {
    /// Reads the crate with this root file, as in `hypervisor/src/lib.rs`.
    pub(crate) fn read(root: &Path) -> Result<Self> {
        let mut reader = Reader::default();
        let directory = root.parent().context("a file without a directory")?;
        reader.file(root, directory, Vec::new())?;
        Ok(reader.finish())
    }
}

/// Code as it is found: a path is resolved when all modules are known.
struct Raw {
    by: ModulePath,
    path: Vec<String>,
    place: String,
}

#[derive(Default)]
struct Reader {
    modules: Vec<ModulePath>,
    raw: Vec<Raw>,
    /// `#[macro_export]` puts a macro into the root, wherever it is defined.
    exported_macros: BTreeMap<String, ModulePath>,
    /// Names that modules have by `use`, with what they stand for there.
    imports: BTreeMap<ModulePath, BTreeMap<String, Vec<String>>>,
}

impl Reader {
    /// Reads a file and those of its modules. `below` is the directory that these are in.
    fn file(&mut self, file: &Path, below: &Path, module: ModulePath) -> Result<()> {
        let text =
            fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?;
        let syntax = syn::parse_file(&text)
            .with_context(|| format!("cannot understand {}", file.display()))?;
        if syntax.attrs.iter().any(is_for_tests) {
            return Ok(());
        }
        self.items(&syntax.items, file, below, &module)
    }

    fn items(
        &mut self,
        items: &[Item],
        file: &Path,
        below: &Path,
        module: &ModulePath,
    ) -> Result<()> {
        for item in items {
            if attributes(item).iter().any(is_for_tests) {
                continue;
            }
            if let Item::Mod(inner) = item {
                let name = inner.ident.to_string();
                let mut path = module.clone();
                path.push(name.clone());
                self.modules.push(path.clone());
                match &inner.content {
                    Some((_, items)) => self.items(items, file, &below.join(name), &path)?,
                    None => {
                        ensure!(
                            !inner.attrs.iter().any(|a| a.path().is_ident("path")),
                            "{}: `#[path]` is not understood here",
                            file.display()
                        );
                        let (file, below) = module_file(below, &name)?;
                        self.file(&file, &below, path)?;
                    }
                }
                continue;
            }
            if let Item::Macro(definition) = item
                && let Some(name) = &definition.ident
                && definition
                    .attrs
                    .iter()
                    .any(|a| a.path().is_ident("macro_export"))
            {
                self.exported_macros
                    .insert(name.to_string(), module.clone());
            }
            let mut mentions = Mentions::default();
            mentions.visit_item(item);
            if let Item::Use(_) = item {
                let known = self.imports.entry(module.clone()).or_default();
                for (path, name) in &mentions.imports {
                    known.insert(name.clone(), path.clone());
                }
            }
            let imports = mentions.imports.into_iter().map(|(path, _)| path);
            let found = mentions.paths.into_iter();
            for (path, line) in found.chain(imports.map(|path| (path, mentions.line))) {
                self.raw.push(Raw {
                    by: module.clone(),
                    path,
                    place: format!("{}:{line}", file.display()),
                });
            }
        }
        Ok(())
    }

    fn finish(self) -> Source {
        let mut mentions = Vec::new();
        for raw in &self.raw {
            let mut what = self.resolve(&raw.by, &raw.path);
            // Names that are passed on can be passed on again; nothing is by a hundred modules.
            for _ in 0..100 {
                let Some(path) = what else { break };
                what = self.origin(&path);
                mentions.push(Mention {
                    by: raw.by.clone(),
                    what: path,
                    place: raw.place.clone(),
                });
            }
        }
        Source {
            modules: self.modules,
            mentions,
        }
    }

    /// A path that module `by` writes, from the root on. None: it leads out of the crate, or is the
    /// name of something in the module itself.
    fn resolve(&self, by: &ModulePath, path: &[String]) -> Option<ModulePath> {
        let (first, rest) = path.split_first()?;
        let mut whole = match first.as_str() {
            "crate" => Vec::new(),
            "self" => by.clone(),
            "super" => by.split_last()?.1.to_vec(),
            name => {
                let mut child = by.clone();
                child.push(name.to_owned());
                // Something else of that name may be meant, a crate or an imported module: that is
                // found where it is imported.
                return self.modules.contains(&child).then(|| {
                    child.extend_from_slice(rest);
                    child
                });
            }
        };
        for name in rest {
            match name.as_str() {
                "super" => whole.pop().map(drop)?,
                "self" => {}
                name => whole.push(name.to_owned()),
            }
        }
        Some(whole)
    }

    /// Where a name comes from that the module in this path has by `use`, or the root by
    /// `#[macro_export]`.
    fn origin(&self, path: &ModulePath) -> Option<ModulePath> {
        let is_module = |path: &[String]| self.modules.iter().any(|module| module == path);
        let length =
            (0..path.len()).take_while(|&length| length == 0 || is_module(&path[..length]));
        let (module, rest) = path.split_at(length.last()?);
        let (name, rest) = rest.split_first()?;
        if is_module(&[module, std::slice::from_ref(name)].concat()) {
            return None;
        }
        if let (true, Some(by)) = (module.is_empty(), self.exported_macros.get(name)) {
            return Some(by.clone());
        }
        let meaning = self.imports.get(module)?.get(name)?;
        let mut there = self.resolve(&module.to_vec(), meaning)?;
        there.extend_from_slice(rest);
        (there != *path).then_some(there)
    }
}

/// The file of the module `name` that is declared in a file whose modules are below a directory, and
/// the directory that its own modules are below.
fn module_file(below: &Path, name: &str) -> Result<(PathBuf, PathBuf)> {
    let directory = below.join(name);
    for file in [below.join(format!("{name}.rs")), directory.join("mod.rs")] {
        if file.exists() {
            return Ok((file, directory));
        }
    }
    bail!("no file of the module {name} in {}", below.display())
}

/// Whether what has this attribute is compiled for tests only.
fn is_for_tests(attribute: &Attribute) -> bool {
    attribute.path().is_ident("cfg")
        && attribute
            .parse_args::<Meta>()
            .is_ok_and(|condition| !can_be(&condition, true))
}

/// Whether a condition of `cfg` can have this value where `test` is not set and anything else may be
/// or not.
fn can_be(condition: &Meta, value: bool) -> bool {
    let Meta::List(list) = condition else {
        return !condition.path().is_ident("test") || !value;
    };
    let parts = list.parse_args_with(Punctuated::<Meta, Token![,]>::parse_terminated);
    let Ok(parts) = parts else { return true };
    let mut parts = parts.iter();
    if list.path.is_ident("not") {
        return parts.any(|part| can_be(part, !value));
    }
    if list.path.is_ident("all") == value {
        parts.all(|part| can_be(part, value))
    } else {
        parts.any(|part| can_be(part, value))
    }
}

fn attributes(item: &Item) -> &[Attribute] {
    match item {
        Item::Const(item) => &item.attrs,
        Item::Enum(item) => &item.attrs,
        Item::ExternCrate(item) => &item.attrs,
        Item::Fn(item) => &item.attrs,
        Item::ForeignMod(item) => &item.attrs,
        Item::Impl(item) => &item.attrs,
        Item::Macro(item) => &item.attrs,
        Item::Mod(item) => &item.attrs,
        Item::Static(item) => &item.attrs,
        Item::Struct(item) => &item.attrs,
        Item::Trait(item) => &item.attrs,
        Item::Type(item) => &item.attrs,
        Item::Union(item) => &item.attrs,
        Item::Use(item) => &item.attrs,
        _ => &[],
    }
}

/// A visitor that collects the paths in an item.
#[derive(Default)]
struct Mentions {
    /// Paths in code, with their lines.
    paths: Vec<(Vec<String>, usize)>,
    /// Paths in `use`, with the names that they get.
    imports: Vec<(Vec<String>, String)>,
    /// The line of the `use`.
    line: usize,
}

impl Mentions {
    fn tree(&mut self, tree: &UseTree, before: &[String]) {
        let with = |name: &dyn ToString| {
            let mut path = before.to_vec();
            path.push(name.to_string());
            path
        };
        match tree {
            UseTree::Path(part) => self.tree(&part.tree, &with(&part.ident)),
            UseTree::Group(group) => {
                for tree in &group.items {
                    self.tree(tree, before);
                }
            }
            UseTree::Name(name) if name.ident == "self" => {
                let last = before.last().cloned().unwrap_or_default();
                self.imports.push((before.to_vec(), last));
            }
            UseTree::Name(name) => {
                self.imports
                    .push((with(&name.ident), name.ident.to_string()));
            }
            UseTree::Rename(name) => {
                self.imports
                    .push((with(&name.ident), name.rename.to_string()));
            }
            _ => self.imports.push((before.to_vec(), "*".to_owned())),
        }
    }

    /// The paths that begin with `crate`, `self` or `super` in a macro's arguments or body, of which
    /// no grammar is known.
    fn tokens(&mut self, tokens: TokenStream) {
        let mut path: Vec<String> = Vec::new();
        let mut line = 0;
        let mut colons = 0;
        for token in tokens {
            match token {
                TokenTree::Ident(ident) => {
                    let name = ident.to_string();
                    let goes_on = !path.is_empty() && colons == 2;
                    if !goes_on {
                        self.keep(&mut path, line);
                        line = ident.span().start().line;
                    }
                    let begins = ["crate", "self", "super"].contains(&name.as_str());
                    if goes_on || begins {
                        path.push(name);
                    }
                    colons = 0;
                }
                TokenTree::Punct(punct) if punct.as_char() == ':' => colons += 1,
                TokenTree::Group(group) => {
                    self.keep(&mut path, line);
                    self.tokens(group.stream());
                }
                _ => self.keep(&mut path, line),
            }
        }
        self.keep(&mut path, line);
    }

    fn keep(&mut self, path: &mut Vec<String>, line: usize) {
        let path = std::mem::take(path);
        // A lone `self` is a value.
        if path.len() > 1 {
            self.paths.push((path, line));
        }
    }
}

impl<'ast> Visit<'ast> for Mentions {
    fn visit_item(&mut self, item: &'ast Item) {
        if !attributes(item).iter().any(is_for_tests) {
            visit::visit_item(self, item);
        }
    }

    fn visit_impl_item(&mut self, item: &'ast ImplItem) {
        let attributes: &[Attribute] = match item {
            ImplItem::Const(item) => &item.attrs,
            ImplItem::Fn(item) => &item.attrs,
            ImplItem::Macro(item) => &item.attrs,
            ImplItem::Type(item) => &item.attrs,
            _ => &[],
        };
        if !attributes.iter().any(is_for_tests) {
            visit::visit_impl_item(self, item);
        }
    }

    fn visit_item_use(&mut self, item: &'ast syn::ItemUse) {
        self.line = item.use_token.span.start().line;
        if item.leading_colon.is_none() {
            self.tree(&item.tree, &[]);
        }
    }

    fn visit_path(&mut self, path: &'ast syn::Path) {
        if let (None, Some(first)) = (path.leading_colon, path.segments.first()) {
            let names = path.segments.iter().map(|part| part.ident.to_string());
            let line = first.ident.span().start().line;
            self.paths.push((names.collect(), line));
        }
        visit::visit_path(self, path);
    }

    /// `pub(in crate::a)` uses nothing of `a`.
    fn visit_vis_restricted(&mut self, _: &'ast syn::VisRestricted) {}

    fn visit_macro(&mut self, call: &'ast syn::Macro) {
        self.tokens(call.tokens.clone());
        visit::visit_macro(self, call);
    }
}
