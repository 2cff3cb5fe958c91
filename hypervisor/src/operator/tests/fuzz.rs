//! Targets for fuzzing: sessions of an operator and of a program who say anything that there is to say.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::ops::ControlFlow;

use serde_json::{Value, json};

use super::host::{DB, Host, MS, WEB};
use crate::console::Format;
use crate::operator::dispatch::wanted_format;
use crate::test_text::{Piece, line};

/// What commands are made of.
const WORDS: [&str; 64] = [
    "help ",
    "vms ",
    "ps ",
    "targets ",
    "stats ",
    "networks ",
    "disks ",
    "find ",
    "suppress ",
    "release ",
    "watch ",
    "unwatch ",
    "rules ",
    "trace ",
    "pin ",
    "pause ",
    "resume ",
    "stop ",
    "start ",
    "restart ",
    "log ",
    "host ",
    "screen ",
    "attach ",
    "shutdown",
    "web ",
    "db ",
    "web 0x1000 ",
    "web 0x2000 ",
    "db 0x1000 ",
    "all ",
    "0x1000",
    "0x3000",
    "1000 ",
    "--json ",
    "--interval ",
    "--clock ",
    "--policy ",
    "paper ",
    "bounded ",
    "--cap ",
    "0.5",
    "--lead ",
    "250",
    "--follow ",
    "fork ",
    "exec ",
    "none ",
    "--suppress ",
    "hog ",
    "90 ",
    "30 ",
    "--except ",
    "on ",
    "off ",
    "show ",
    "clear ",
    "any ",
    "EVIL",
    "'a b'",
    "\"",
    "=",
    "-",
    ",",
];

/// A machine with processes that have run.
fn host_with_processes() -> Host {
    let mut host = Host::with_door();
    host.wait(10_000);
    host.process(WEB, &[0x1000, 0x2000], 0x8000);
    host.process(WEB, &[0x3000], 0xc000);
    host.has_run(WEB, 500 * MS, &[(0x3000, MS, MS), (0x1000, 2 * MS, 2 * MS)]);
    host.screen();
    host.client_hears();
    assert_eq!(host.poll(), ControlFlow::Continue(()));
    host
}

/// Checks each line that is an answer for programs: JSON and nothing else.
fn check_json(answer: &str) {
    for line in answer.lines() {
        let value: Result<Value, _> = serde_json::from_str(line);
        assert!(
            value.is_ok_and(|value| value.is_object()),
            "no JSON: {line}"
        );
    }
}

#[test]
fn lines_at_the_console() {
    fuzzing::check!()
        .with_type::<Vec<(Vec<Piece>, u8)>>()
        .for_each(|lines| {
            let mut host = host_with_processes();
            for (pieces, after) in lines.iter().take(12) {
                let text: String = line(pieces, &WORDS)
                    .chars()
                    .filter(|it| matches!(it, ' '..='~'))
                    .collect();
                // What the line editor takes.
                let text = &text[..text.len().min(150)];
                let word = |name: &str| {
                    text.split(|c: char| !c.is_ascii_lowercase())
                        .any(|it| it == name)
                };
                // These leave the session, and are tests of their own.
                if word("attach") || word("shutdown") {
                    continue;
                }
                let answer = host.answer(text);
                if wanted_format(text) == Format::Json {
                    // Notices of what comes of it are for people, and told to programs at the door.
                    let own = answer
                        .lines()
                        .filter(|line| !line.starts_with("vm ") && !line.starts_with("watch"));
                    check_json(&own.collect::<Vec<_>>().join("\n"));
                }
                host.client_hears();
                host.wait(u64::from(*after) * 20);
                host.work();
                if after & 1 != 0 {
                    host.guest_writes(DB, "some output\n");
                }
                assert_eq!(host.poll(), ControlFlow::Continue(()));
            }
        });
}

#[test]
fn requests_at_the_door() {
    fuzzing::check!()
        .with_type::<(Vec<(u8, Vec<Piece>, [u64; 3])>, Vec<u8>)>()
        .for_each(|(requests, raw)| {
            let mut host = host_with_processes();
            let mut said = 0;
            let mut ends = 0;
            for (kind, pieces, [a, b, c]) in requests.iter().take(12) {
                let text = line(pieces, &WORDS);
                let word = |name: &str| text.split(|c: char| !c.is_ascii_lowercase()).any(|it| it == name);
                if word("shutdown") || text.contains('\n') {
                    continue;
                }
                let vm = if a & 1 == 0 { "web" } else { "db" };
                let request = match kind % 8 {
                    0..4 => json!({"id": a, "command": text}),
                    4 => json!({"id": "x", "read": {"vm": vm, "address": b % 0x2_0000, "length": c % 3000}}),
                    5 => json!({"id": 1, "read": {"vm": vm, "address": b, "length": c % 99, "cr3": format!("{:#x}", a & 0xf000)}}),
                    6 => json!({"id": 2, "registers": {"vm": vm, "vcpu": b % 4}}),
                    _ => json!({"id": 3, "events": c & 1 == 0}),
                };
                host.client_says(&format!("{request}\n"));
                said += 1;
                for _ in 0..2000 {
                    assert_eq!(host.poll(), ControlFlow::Continue(()));
                    // Each line is looked at there: that it is JSON, and as the documents have it.
                    ends += host.client_hears().iter().filter(|line| line["end"] == true).count();
                    if ends == said {
                        break;
                    }
                    // VCPUs that never run are waited for for two seconds.
                    host.wait(2);
                }
                assert_eq!(ends, said, "no end to {request}");
                host.work();
            }
            // Anything: it is answered, or skipped, and the next request is served as ever.
            let raw = String::from_utf8_lossy(raw);
            host.client_says(&format!("{}\n{}\n", raw.replace("shutdown", ""), json!({"id": 77, "hello": 1})));
            let mut is_answered = false;
            for _ in 0..2000 {
                assert_eq!(host.poll(), ControlFlow::Continue(()));
                is_answered |= host.client_hears().iter().any(|line| line["id"] == 77);
            }
            assert!(is_answered, "{raw:?}");
        });
}
