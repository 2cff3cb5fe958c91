//! How documentation begins: that of functions with what they do, as a verb in the third person
//! ("Returns the number of ..."); that of types, fields, variants and constants with a noun phrase
//! ("The number of ...").

use anyhow::Result;
use syn::visit::{self, Visit};
use syn::{Attribute, Expr, ExprLit, Lit, Meta};

use super::modules::{Module, is_for_tests};

/// Words that end as such a verb does and are none.
const NO_VERBS: [&str; 8] = [
    "Always", "As", "Bits", "Bytes", "Its", "This", "Thus", "Unless",
];

/// Words that begin no noun phrase, or one that does not say what the thing is. (`Whether` is usual
/// for what is true or false.)
const NO_NOUNS: [&str; 68] = [
    "...", "After", "Also", "And", "Are", "As", "Asks", "At", "Because", "Before", "But", "By",
    "Collects", "Decides", "Do", "Does", "For", "From", "Gives", "Has", "How", "If", "In", "Is",
    "It", "Keeps", "Let", "Make", "Makes", "Not", "Of", "On", "Or", "Reads", "Returns", "Run",
    "Runs", "Says", "See", "Set", "Shows", "Since", "So", "Stay", "Takes", "Tells", "That",
    "There", "They", "Though", "To", "Until", "Up", "What", "When", "Where", "Which", "While",
    "Who", "Whom", "Whose", "Why", "With", "Without", "Writes", "Waits", "Holds", "Ends",
];

/// The derives by which clap makes help texts of documentation, which speak to the user.
const HELP_TEXTS: [&str; 4] = ["Parser", "Args", "Subcommand", "ValueEnum"];

/// A collector of documentation that begins otherwise.
#[derive(Default)]
struct Finder {
    functions: Vec<String>,
    things: Vec<String>,
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

/// Returns whether a line begins with none of [`NO_NOUNS`].
fn may_begin_with_a_noun(line: &str) -> bool {
    let word = line.split([' ', ',', ':', ';']).next().unwrap_or("");
    !NO_NOUNS.contains(&word) && !NO_NOUNS.contains(&word.trim_end_matches('.'))
}

/// Returns whether clap reads a type, of these attributes.
fn is_help_text(attributes: &[Attribute]) -> bool {
    attributes.iter().any(|attribute| {
        let Meta::List(list) = &attribute.meta else {
            return false;
        };
        let derived = list.tokens.to_string();
        list.path.is_ident("derive")
            && derived
                .split(',')
                .any(|name| HELP_TEXTS.contains(&name.trim()))
    })
}

impl Finder {
    fn check(&mut self, attributes: &[Attribute], signature: &syn::Signature) {
        let line = first_line(attributes);
        if let Some(line) = line.filter(|line| !begins_with_a_verb(line)) {
            self.functions.push(format!("{}: {line}", signature.ident));
        }
    }

    fn check_thing(&mut self, attributes: &[Attribute], name: &impl ToString) {
        let line = first_line(attributes);
        if let Some(line) = line.filter(|line| !may_begin_with_a_noun(line)) {
            self.things.push(format!("{}: {line}", name.to_string()));
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

    fn visit_item_struct(&mut self, item: &'ast syn::ItemStruct) {
        if !is_help_text(&item.attrs) {
            self.check_thing(&item.attrs, &item.ident);
            visit::visit_item_struct(self, item);
        }
    }

    fn visit_item_enum(&mut self, item: &'ast syn::ItemEnum) {
        if !is_help_text(&item.attrs) {
            self.check_thing(&item.attrs, &item.ident);
            visit::visit_item_enum(self, item);
        }
    }

    fn visit_variant(&mut self, variant: &'ast syn::Variant) {
        self.check_thing(&variant.attrs, &variant.ident);
        visit::visit_variant(self, variant);
    }

    fn visit_field(&mut self, field: &'ast syn::Field) {
        if let Some(name) = &field.ident {
            self.check_thing(&field.attrs, name);
        }
        visit::visit_field(self, field);
    }

    fn visit_item_trait(&mut self, item: &'ast syn::ItemTrait) {
        self.check_thing(&item.attrs, &item.ident);
        visit::visit_item_trait(self, item);
    }

    fn visit_item_type(&mut self, item: &'ast syn::ItemType) {
        self.check_thing(&item.attrs, &item.ident);
    }

    fn visit_item_const(&mut self, item: &'ast syn::ItemConst) {
        self.check_thing(&item.attrs, &item.ident);
    }

    fn visit_item_static(&mut self, item: &'ast syn::ItemStatic) {
        self.check_thing(&item.attrs, &item.ident);
    }

    fn visit_impl_item_const(&mut self, item: &'ast syn::ImplItemConst) {
        self.check_thing(&item.attrs, &item.ident);
    }

    fn visit_trait_item_fn(&mut self, item: &'ast syn::TraitItemFn) {
        self.check(&item.attrs, &item.sig);
        visit::visit_trait_item_fn(self, item);
    }
}

/// Returns what `of` takes from the findings in each file that is no test, with where it is.
fn found(of: fn(Finder) -> Vec<String>) -> Result<String> {
    let mut wrong = Vec::new();
    for root in super::CRATES {
        let file = xtask::testbed::paths::workspace().join(root);
        Module::read(&file)?.each(&mut |module| {
            let mut finder = Finder::default();
            finder.visit_file(&module.syntax);
            let path = module.path.display();
            wrong.extend(of(finder).iter().map(|found| format!("{path}: {found}")));
        });
    }
    Ok(wrong.join("\n"))
}

#[test]
fn documentation_of_functions_begins_with_what_they_do() -> Result<()> {
    let wrong = found(|finder| finder.functions)?;
    assert!(
        wrong.is_empty(),
        "the documentation of functions begins with a verb, as in \"Returns\":\n{wrong}"
    );
    Ok(())
}

#[test]
fn documentation_of_things_begins_with_what_they_are() -> Result<()> {
    let wrong = found(|finder| finder.things)?;
    assert!(
        wrong.is_empty(),
        "the documentation of types, fields, variants and constants begins with a noun phrase, as in \
         \"The number of\":\n{wrong}"
    );
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

#[test]
fn a_noun_phrase_is_told_from_a_clause() -> Result<()> {
    let text = "
        /// The size.
        struct Good {
            /// Whether it is empty.
            empty: bool,
            /// How many there are.
            count: u32,
        }
        enum Kind {
            /// It is new.
            New,
        }
        /// When it ends.
        const END: u32 = 1;
        #[derive(Clone, Args)]
        struct Options {
            /// Run it twice
            twice: bool,
        }";
    let mut finder = Finder::default();
    finder.visit_file(&syn::parse_file(text)?);
    let expected = [
        "count: How many there are.",
        "New: It is new.",
        "END: When it ends.",
    ];
    assert_eq!(finder.things, expected);
    Ok(())
}
