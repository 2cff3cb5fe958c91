//! What is typed, and what it means.

use super::*;
use crate::console::help::{Argument, COMMANDS};
use proptest::prelude::*;
use std::string::ToString;

fn command(line: &str) -> Command<'_> {
    parse(line).unwrap().unwrap().command
}

fn error(line: &str) -> std::string::String {
    parse(line).unwrap_err().to_string()
}

fn suppressed(line: &str) -> (u32, u32) {
    match command(line) {
        Command::Suppress {
            vm: "web",
            cr3: 0x1a2b000,
            factors,
        } => (factors.interval.get(), factors.clock.get()),
        other => panic!("{other:?}"),
    }
}

#[test]
fn plain_commands() {
    assert_eq!(parse("  "), Ok(None));
    assert_eq!(parse("--json"), Ok(None));
    assert_eq!(command("vms"), Command::Vms);
    assert_eq!(command(" ps  web "), Command::Ps { vm: "web" });
    assert_eq!(command("targets"), Command::Targets { vm: None });
    assert_eq!(command("targets web"), Command::Targets { vm: Some("web") });
    assert_eq!(command("stats web").vm(), Some("web"));
    assert_eq!(command("attach web"), Command::Attach { vm: "web" });
    assert_eq!(command("shutdown"), Command::Shutdown);
    assert_eq!(command("help"), Command::Help(None));
    assert_eq!(command("help ps"), Command::Help(topic("ps")));
}

#[test]
fn json_is_a_flag_anywhere() {
    for line in ["--json ps web", "ps --json web", "ps web --json"] {
        let request = parse(line).unwrap().unwrap();
        assert_eq!(request.command, Command::Ps { vm: "web" });
        assert!(request.json);
    }
    assert!(!parse("ps web").unwrap().unwrap().json);
}

#[test]
fn factors_default_to_each_other_and_then_to_1000() {
    assert_eq!(suppressed("suppress web 0x1a2b000"), (1000, 1000));
    assert_eq!(suppressed("suppress web 1a2b000 50"), (50, 50));
    assert_eq!(suppressed("suppress web 0x1A2B000 --interval 7"), (7, 7));
    assert_eq!(suppressed("suppress web 0x1a2b000 --clock=7"), (7, 7));
    assert_eq!(
        suppressed("suppress --clock 65535 web --interval 1 0x1a2b000"),
        (1, 65535)
    );
    assert_eq!(suppressed("suppress web 0x1a2b000 9 --clock 3"), (9, 3));
}

#[test]
fn release_takes_one_or_all() {
    let all = Command::Release {
        vm: "web",
        cr3: None,
    };
    assert_eq!(command("release web all"), all);
    let one = Command::Release {
        vm: "web",
        cr3: Some(0x5000),
    };
    assert_eq!(command("release web 0x5000"), one);
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
            "`suppress` needs CR3: usage: suppress VM CR3 [N] [--interval N] [--clock N]",
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
    ] {
        assert_eq!(error(line), expected, "{line}");
    }
}

#[test]
fn find_takes_text_and_bytes() {
    let pattern = |line| match command(line) {
        Command::Find { vm: "web", pattern } => pattern,
        other => panic!("{other:?}"),
    };
    assert_eq!(pattern("find web EVIL-42").bytes(), b"EVIL-42");
    assert_eq!(pattern("find web 0x7f454c46").bytes(), b"\x7fELF");
    assert_eq!(
        pattern("find web \"two  words\" --json").bytes(),
        b"two  words"
    );
    assert_eq!(pattern("find web \"--json\"").bytes(), b"--json");
    assert!(!wants_json("find web \"--json\""));
    assert_eq!(
        error("find web 0x1"),
        "`0x1` is no pattern: behind 0x must be pairs of hexadecimal digits; for text that \
         begins so, use quotes"
    );
    assert_eq!(
        error("find web"),
        "`find` needs PATTERN: usage: find VM PATTERN"
    );
    assert_eq!(
        error("find web two words"),
        "`find` has no use for `words`: usage: find VM PATTERN"
    );
}

#[test]
fn traces_are_begun_shown_and_ended() {
    for (line, action) in [
        ("trace web", TraceAction::Status),
        ("trace web on", TraceAction::On),
        ("trace web off", TraceAction::Off),
        ("trace web clear", TraceAction::Clear),
        ("trace web show", TraceAction::Show(usize::MAX)),
        ("trace web show 100 --json", TraceAction::Show(100)),
    ] {
        assert_eq!(command(line), Command::Trace { vm: "web", action });
    }
    assert_eq!(
        error("trace web shwo"),
        "`trace` cannot `shwo`: did you mean `show`?"
    );
    assert_eq!(
        error("trace web show 0"),
        "`0` is no number of events: it must be a whole number from 1"
    );
}

#[test]
fn numbers_that_are_none() {
    for word in ["+5000", "-5000", "0x", "0x1_000", "10000000000000000"] {
        let line = std::format!("release web {word}");
        assert_eq!(parse(&line), Err(ParseError::NoCr3(word)));
    }
}

#[test]
fn vcpus_are_pinned_by_numbers_and_unpinned_by_a_word() {
    let pin = |line| parse(line).map(|request| request.map(|request| request.command));
    let on = |cpu| {
        Ok(Some(Command::Pin {
            vm: "web",
            vcpu: 1,
            cpu,
        }))
    };
    assert_eq!(pin("pin web 1 3"), on(Some(3)));
    assert_eq!(pin("pin web 1 any"), on(None));
    for (line, word) in [("pin web x 3", "x"), ("pin web 1 +3", "+3")] {
        assert_eq!(pin(line), Err(ParseError::NoNumber(word)));
    }
}

#[test]
fn unknown_vms_get_a_suggestion() {
    let unknown = |name| UnknownVm {
        name,
        names: ["web", "database"],
    };
    assert_eq!(
        unknown("databse").to_string(),
        "there is no VM `databse`: did you mean `database`?"
    );
    assert_eq!(
        unknown("x").to_string(),
        "there is no VM `x`: `vms` lists them"
    );
}

#[test]
fn every_command_in_the_table_is_parsed() {
    for topic in COMMANDS {
        let line = match topic.argument {
            Argument::Command => std::format!("{} ps", topic.name),
            _ => std::format!("{} web 0x5000", topic.name),
        };
        if let Err(error) = parse(&line) {
            assert_ne!(error.kind(), "unknown_command", "{error}");
        }
    }
}

proptest! {
    #[test]
    fn no_line_is_too_strange(line in "\\PC{0,80}", words in prop::collection::vec(
        prop::sample::select(std::vec![
            "suppress", "web", "release", "0x5000", "--clock", "--interval", "--json", "=", "1",
        ]), 0..9,
    )) {
        let _ = parse(&line).map_err(|error| error.to_string());
        let _ = parse(&words.join(" ")).map_err(|error| error.to_string());
    }
}
