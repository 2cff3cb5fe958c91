//! No module uses itself through others: the crates' modules are layers, each of which can be read
//! and tested without those above it.

mod graph;
mod source;

use std::path::Path;

use anyhow::Result;

use graph::Graph;
use source::Source;

fn read(root: &str) -> Result<Source> {
    let workspace = xtask::testbed::paths::workspace();
    Source::read(&workspace.join(root))
}

/// Fails if a module in `parent` is in a cycle.
fn check(root: &str, parent: &[&str]) -> Result<()> {
    let source = read(root)?;
    let parent: Vec<String> = parent.iter().map(|&name| name.to_owned()).collect();
    let is_there = |module: &source::ModulePath| module.starts_with(&parent);
    assert!(
        source
            .modules
            .iter()
            .filter(|module| is_there(module))
            .count()
            > 1,
        "{root} has no modules there"
    );
    let graph = Graph::of(&source, &parent);
    let cyclic = graph.cyclic();
    assert!(
        cyclic.is_empty(),
        "{root}: modules use themselves through others: {cyclic:?}\n{}",
        graph.describe_cycles()
    );
    Ok(())
}

#[test]
fn modules_of_the_hypervisor_are_layers() -> Result<()> {
    check("hypervisor/src/lib.rs", &[])
}

#[test]
fn modules_of_the_crates_below_it_are_layers() -> Result<()> {
    check("arch/src/lib.rs", &[])?;
    check("devices/src/lib.rs", &[])?;
    check("vmx/src/lib.rs", &[])
}

#[test]
fn modules_of_xtask_are_layers() -> Result<()> {
    for parent in [&[][..], &["testbed"], &["experiment"], &["cli"]] {
        check("xtask/src/lib.rs", parent)?;
    }
    Ok(())
}

/// Trees of made-up sources.
mod trees {
    use super::*;

    /// A crate of these files.
    fn tree(files: &[(&str, &str)]) -> Result<Source> {
        let directory = tempfile::tempdir()?;
        for (name, text) in files {
            let path = directory.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap_or(Path::new(".")))?;
            std::fs::write(path, text)?;
        }
        Source::read(&directory.path().join("lib.rs"))
    }

    /// The modules in cycles at the top of a crate of `a`, `b` and `c` with these texts.
    fn cyclic(a: &str, b: &str, c: &str) -> Result<Vec<String>> {
        cyclic_below("mod a; mod b; mod c;", a, b, c)
    }

    fn cyclic_below(root: &str, a: &str, b: &str, c: &str) -> Result<Vec<String>> {
        let source = tree(&[("lib.rs", root), ("a.rs", a), ("b.rs", b), ("c/mod.rs", c)])?;
        let graph = Graph::of(&source, &[]);
        Ok(graph.cyclic().into_iter().map(str::to_owned).collect())
    }

    #[test]
    fn one_way_is_no_cycle() -> Result<()> {
        let found = cyclic(
            "use crate::b::B; use crate::c;",
            "use crate::c::C;",
            "use std::fmt;",
        )?;
        assert_eq!(found, [""; 0]);
        Ok(())
    }

    #[test]
    fn a_way_back_is_found_through_others() -> Result<()> {
        let found = cyclic("use crate::b::B;", "use crate::c::C;", "use crate::a::A;")?;
        assert_eq!(found, ["a", "b", "c"]);
        let found = cyclic("use crate::b::B;", "use crate::a::A;", "use crate::a::A;")?;
        assert_eq!(found, ["a", "b"], "c uses a cycle and is in none");
        Ok(())
    }

    #[test]
    fn a_way_back_is_found_however_it_is_written() -> Result<()> {
        for back in [
            "use crate::{c, a::{A, Other}};",
            "use crate::a as other;",
            "use crate::a::*;",
            "use super::a::A;",
            "pub use crate::a::A;",
            "fn f() -> crate::a::A { todo!() }",
            "fn f() { crate::a::go() }",
            "fn f() { super::a::go() }",
            "mod inner { use super::super::a::A; }",
            "mod inner { fn f(a: &crate::a::A) {} }",
            "impl crate::a::Trait for B {}",
            "fn f() { println!(\"{}\", crate::a::X) }",
            "macro_rules! m { () => { $crate::a::go() } }",
            "fn f<T: crate::a::Trait>() {}",
            "struct B { a: Option<Box<crate::a::A>> }",
            "fn f() { use crate::a::A; }",
            "#[cfg(not(test))] use crate::a::A;",
            "#[cfg(any(test, feature = \"fake\"))] use crate::a::A;",
            "fn f(x: u8) { match x { crate::a::ONE => {} _ => {} } }",
        ] {
            assert_eq!(cyclic("use crate::b::B;", back, "")?, ["a", "b"], "{back}");
        }
        Ok(())
    }

    #[test]
    fn what_is_no_way_back_is_none() -> Result<()> {
        for nothing in [
            "#[cfg(test)] mod tests { use crate::a::A; }",
            "#[cfg(test)] use crate::a::A;",
            "#[cfg(all(test, target_os = \"linux\"))] fn f() { crate::a::go() }",
            "impl B { #[cfg(test)] fn f() { crate::a::go() } }",
            "/// See [`crate::a::A`].\nstruct B;",
            "// use crate::a::A;",
            "const TEXT: &str = \"crate::a::A\";",
            "pub(in crate::a) struct B;",
            "use ::a::A;",
            "use other::a::A; fn f() { other::a::go() }",
            "fn f(a: u8) { self::g(a) } fn g(_: u8) {}",
        ] {
            assert_eq!(
                cyclic("use crate::b::B;", nothing, "")?,
                [""; 0],
                "{nothing}"
            );
        }
        Ok(())
    }

    #[test]
    fn what_the_root_passes_on_belongs_where_it_comes_from() -> Result<()> {
        for (root, back) in [
            ("mod a; mod b; mod c; pub use a::A;", "use crate::A;"),
            (
                "mod a; mod b; mod c; use crate::a::A as Z;",
                "fn f(_: crate::Z) {}",
            ),
            (
                "mod b; mod c; #[macro_use] mod a;",
                "fn f() { crate::made!() }",
            ),
        ] {
            let a = "use crate::b; #[macro_export] macro_rules! made { () => {} }";
            assert_eq!(cyclic_below(root, a, back, "")?, ["a", "b"], "{back}");
        }
        Ok(())
    }

    #[test]
    fn what_a_module_passes_on_counts_for_both() -> Result<()> {
        let source = tree(&[
            ("lib.rs", "mod p;"),
            ("p.rs", "mod a; mod b; pub use a::A;"),
            ("p/a.rs", "use super::b::B;"),
            ("p/b.rs", "use crate::p::A;"),
        ])?;
        let graph = Graph::of(&source, &["p".to_owned()]);
        assert_eq!(graph.cyclic().into_iter().collect::<Vec<_>>(), ["a", "b"]);
        let found = cyclic(
            "use crate::b::B;",
            "pub use crate::c::C;",
            "use crate::b::C;",
        )?;
        assert_eq!(found, ["b", "c"]);
        Ok(())
    }

    #[test]
    fn modules_deeper_down_are_a_graph_of_their_own() -> Result<()> {
        let source = tree(&[
            ("lib.rs", "mod a;"),
            ("a.rs", "mod x; mod y; mod z { use super::x; }"),
            ("a/x.rs", "use super::y::Y;"),
            ("a/y.rs", "fn f() { crate::a::x::go() }"),
        ])?;
        assert_eq!(Graph::of(&source, &[]).cyclic().len(), 0);
        let graph = Graph::of(&source, &["a".to_owned()]);
        assert_eq!(graph.cyclic().into_iter().collect::<Vec<_>>(), ["x", "y"]);
        let described = graph.describe_cycles();
        assert!(described.contains("x uses y: "), "{described}");
        assert!(described.contains("a/y.rs:1"), "{described}");
        assert!(!described.contains("z uses"), "{described}");
        Ok(())
    }

    #[test]
    fn a_module_that_cannot_be_found_is_an_error_and_not_left_out() {
        let error = tree(&[("lib.rs", "mod gone;")]).expect_err("no file");
        assert!(error.to_string().contains("gone"), "{error}");
    }
}
