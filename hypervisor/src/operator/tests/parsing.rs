//! From a line to a command and its arguments, and to errors.

use alloc::format;
use alloc::string::{String, ToString};
use core::cell::RefCell;

use proptest::prelude::*;
use proptest::test_runner::TestRunner;

use super::host::Host;
use crate::console::Format;
use crate::operator::arguments::Arguments;
use crate::operator::command::{Command, OptionParameter, Outcome, Parameter};
use crate::operator::commands::COMMANDS;
use crate::operator::dispatch::{parse, wanted_format};

fn parsed(line: &str) -> Arguments<'_> {
    parse(line).unwrap().unwrap()
}

/// The error of a line, to whatever VMs.
fn error(line: &str) -> String {
    let answer = Host::new().answer(line);
    let error = answer.strip_prefix("error: ");
    error
        .unwrap_or_else(|| panic!("{answer}"))
        .trim_end()
        .into()
}

#[test]
fn plain_commands() {
    assert!(parse("  ").unwrap().is_none());
    assert!(parse("--json").unwrap().is_none());
    for (line, name, vm) in [
        ("vms", "vms", None),
        (" ps  web ", "ps", Some("web")),
        ("targets", "targets", None),
        ("targets web", "targets", Some("web")),
        ("stats web", "stats", Some("web")),
        ("attach web", "attach", Some("web")),
        ("shutdown", "shutdown", None),
    ] {
        let arguments = parsed(line);
        assert_eq!(arguments.command().name, name);
        if !arguments.command().parameters.is_empty() {
            assert_eq!(arguments.get("VM"), vm, "{line}");
        }
    }
    assert_eq!(parsed("help").get("COMMAND"), None);
    assert_eq!(parsed("help ps").get("COMMAND"), Some("ps"));
}

#[test]
fn json_is_a_flag_anywhere() {
    for line in ["--json ps web", "ps --json web", "ps web --json"] {
        assert_eq!(parsed(line).get("VM"), Some("web"));
        assert_eq!(wanted_format(line), Format::Json);
    }
    assert_eq!(wanted_format("ps web"), Format::Table);
    assert_eq!(wanted_format("find web \"--json\""), Format::Table);
}

#[test]
fn errors_tell_the_cause_and_the_remedy() {
    for (line, expected) in [
        (
            "supress web 1",
            "unknown command `supress`: did you mean `suppress`?",
        ),
        (
            "frobnicate",
            "unknown command `frobnicate`: `help` lists the commands",
        ),
        (
            "help ps web",
            "`help` has no use for `web`: usage: help [COMMAND]",
        ),
        ("help pss", "unknown command `pss`: did you mean `ps`?"),
        ("ps", "`ps` needs VM: usage: ps VM"),
        ("ps web now", "`ps` has no use for `now`: usage: ps VM"),
        ("ps --all", "`ps` has no option `--all`: usage: ps VM"),
        (
            "release web",
            "`release` needs CR3 or `all`: usage: release VM CR3|all",
        ),
        (
            "suppress web",
            "`suppress` needs CR3: usage: suppress VM CR3 [N] [--interval N] [--clock N] [--policy P] \
             [--cap %] [--lead T] [--follow W]",
        ),
        (
            "suppress web 0x5000 --intervall 5",
            "`suppress` has no option `--intervall`: did you mean `--interval`?",
        ),
        (
            "suppress web 0x5000 --clock",
            "`--clock` needs a value: for instance `--clock 1000`",
        ),
        (
            "suppress web 0x5000 --clock 1 --clock 2",
            "`--clock` is given twice: give it once",
        ),
        (
            "suppress web 0x5000 0",
            "`0` is no factor: it must be a whole number from 1 to 65535",
        ),
        (
            "suppress web 0x5000 65536",
            "`65536` is no factor: it must be a whole number from 1 to 65535",
        ),
        (
            "suppress web all",
            "`all` is no CR3: it must be a hexadecimal number as `ps` shows it, \
             for instance 0x1a2b000",
        ),
        (
            "release web 0x1_000",
            "`0x1_000` is no CR3: it must be a hexadecimal number as `ps` shows it, \
             for instance 0x1a2b000",
        ),
        (
            "pin web x 3",
            "`x` is no number of a VCPU or CPU: they are counted from 0",
        ),
        (
            "pin web 1 +3",
            "`+3` is no number of a VCPU or CPU: they are counted from 0",
        ),
        (
            "trace web shwo",
            "`trace` cannot `shwo`: did you mean `show`?",
        ),
        (
            "trace web show 0",
            "`0` is no number of events: it must be a whole number from 1",
        ),
        ("ps webb", "there is no VM `webb`: did you mean `web`?"),
        ("ps x", "there is no VM `x`: `vms` lists them"),
    ] {
        assert_eq!(error(line), expected, "{line}");
    }
}

#[test]
fn the_value_of_a_wrong_argument_is_told_before_that_there_is_no_such_vm() {
    for (line, kind) in [
        ("suppress nobody all", "bad_cr3"),
        ("release nobody x", "bad_cr3"),
        ("find nobody 0x1", "bad_pattern"),
        ("trace nobody frob", "bad_action"),
        ("trace nobody show x", "bad_count"),
        ("trace nobody show +1", "bad_count"),
        ("pin nobody x 0", "bad_number"),
        ("ps nobody", "unknown_vm"),
    ] {
        let answer = Host::new().answer(&format!("{line} --json"));
        let value: serde_json::Value = serde_json::from_str(&answer).unwrap();
        assert_eq!(value["error"], kind, "{line}");
    }
}

#[test]
fn every_command_that_takes_a_vm_knows_when_there_is_none() {
    let mut host = Host::new();
    for command in COMMANDS {
        let takes_vm = command.parameters.first().is_some_and(|it| it.name == "VM");
        if takes_vm {
            // An argument that some command takes in each place.
            let rest = match command.name {
                "suppress" | "release" | "find" | "watch" => " 0x5000",
                "unwatch" => " all",
                "pin" => " 0 0",
                _ => "",
            };
            let answer = host.answer(&format!("{} nobody{rest}", command.name));
            assert_eq!(
                answer, "error: there is no VM `nobody`: `vms` lists them\n",
                "{}",
                command.name
            );
        }
    }
}

/// A command that no table has, with all that a command can have.
static MADE_UP: Command = Command {
    name: "made-up",
    usage: "made-up FIRST [SECOND] [--option VALUE] [--other VALUE]",
    summary: "",
    details: "",
    parameters: &[Parameter::required("FIRST"), Parameter::optional("SECOND")],
    options: &[
        OptionParameter {
            name: "--option",
            example: "7",
        },
        OptionParameter {
            name: "--other",
            example: "8",
        },
    ],
    run: |_, _| Ok(Outcome::Done),
};

#[test]
fn arguments_come_to_their_names_in_any_order_of_options() {
    for line in [
        "one two --option 3",
        "--option 3 one two",
        "one --option=3 two",
    ] {
        let arguments = Arguments::new(&MADE_UP, line.split(' ')).unwrap();
        assert_eq!(arguments.get("FIRST"), Some("one"), "{line}");
        assert_eq!(arguments.get("SECOND"), Some("two"), "{line}");
        assert_eq!(arguments.option("--option"), Some("3"), "{line}");
        assert_eq!(arguments.option("--other"), None, "{line}");
    }
    for (line, kind) in [
        ("--option 3", "missing_argument"),
        ("one two three", "unexpected_argument"),
        ("one --option", "missing_value"),
        ("one --option 1 --option 2", "repeated_option"),
        ("one --optional", "unknown_option"),
        ("one --", "unknown_option"),
    ] {
        let error = Arguments::new(&MADE_UP, line.split(' ')).unwrap_err();
        assert_eq!(error.kind(), kind, "{line}: {error}");
    }
    let error = Arguments::new(&MADE_UP, ["one", "--option"]).unwrap_err();
    assert_eq!(
        error.to_string(),
        "`--option` needs a value: for instance `--option 7`"
    );
}

#[test]
fn no_line_is_too_strange() {
    let words = [
        "suppress",
        "web",
        "release",
        "0x5000",
        "--clock",
        "--interval",
        "--json",
        "=",
        "1",
        "trace",
        "show",
        "on",
        "find",
        "all",
        "pin",
        "any",
        "ps",
        "db",
        "targets",
        "pause",
        "resume",
        "stop",
        "start",
        "restart",
        "stats",
        "networks",
        "disks",
        "help",
        "vms",
        "\"",
        "--",
    ];
    let words = prop::collection::vec(prop::sample::select(words.to_vec()), 0..9);
    let line = prop_oneof![
        "[ -~]{0,80}",
        words.prop_map(|words| words.join(" ")),
        ("[a-z]{1,8}", "[ -~]{0,40}").prop_map(|(name, rest)| format!("{name} web {rest}")),
    ];
    let host = RefCell::new(Host::new());
    TestRunner::default()
        .run(&line, |line| {
            let command = line.trim_ascii_start().split(' ').next();
            // These leave the session.
            prop_assume!(!matches!(command, Some("attach" | "shutdown")));
            prop_assume!(!line.contains("--json attach") && !line.contains("--json shutdown"));
            let host = &mut *host.borrow_mut();
            let answer = host.answer(&line);
            if wanted_format(&line) == Format::Json {
                for line in answer.lines().filter(|line| !line.starts_with("vm ")) {
                    let value = serde_json::from_str::<serde_json::Value>(line);
                    prop_assert!(value.is_ok(), "{line}");
                }
            }
            host.work();
            Ok(())
        })
        .unwrap();
}
