//! Whole sessions at the console: what is typed, what guests write, what the terminal shows.

use std::string::{String, ToString};
use std::vec::Vec;

use super::*;
use crate::suppression::address_space::{Root, RootFormat};

/// A terminal at a console with the VMs `web` and `db`, and an executor that answers from
/// fixed data.
struct Session {
    console: Console,
    screen: Vec<u8>,
    to_guests: Vec<(usize, u8)>,
}

fn root(cr3: u64) -> Root {
    Root::new(cr3, RootFormat::Long)
}

impl Session {
    fn new() -> Self {
        let mut console = Console::new();
        console.add_vm("web");
        console.add_vm("db");
        let mut session = Self {
            console,
            screen: Vec::new(),
            to_guests: Vec::new(),
        };
        let screen = &mut session.screen;
        session
            .console
            .open(&mut |bytes: &[u8]| screen.extend_from_slice(bytes));
        session
    }

    fn types(&mut self, text: &str) {
        for byte in text.bytes() {
            let screen = &mut self.screen;
            let mut out = |bytes: &[u8]| screen.extend_from_slice(bytes);
            match self.console.operator_byte(byte, &mut out) {
                Input::None => {}
                Input::Guest { vm, byte } => self.to_guests.push((vm, byte)),
                Input::Line => {
                    execute(&mut self.console, &mut out);
                    self.console.done(&mut out);
                }
            }
        }
    }

    fn guest_writes(&mut self, vm: usize, text: &str) {
        for byte in text.bytes() {
            let screen = &mut self.screen;
            let mut out = |bytes: &[u8]| screen.extend_from_slice(bytes);
            self.console.guest_byte(vm, byte, 1_500_000, &mut out);
        }
    }

    fn shows(&mut self, expected: &str) {
        let screen = String::from_utf8(core::mem::take(&mut self.screen)).unwrap();
        assert_eq!(screen.replace("\r\n", "\n"), expected);
    }
}

/// Does what the hypervisor does, with made-up facts.
fn execute(console: &mut Console, out: &mut impl Output) {
    let line = console.line().to_string();
    let json = wants_json(&line);
    let request = match parse(&line) {
        Ok(Some(request)) => request,
        Ok(None) => return,
        Err(problem) => return error(out, json, problem.kind(), problem),
    };
    let vm = match request.command.vm().map(|name| console.vm(name)) {
        Some(Err(problem)) => {
            return error(out, json, "unknown_vm", problem);
        }
        Some(Ok(vm)) => Some(vm),
        None => None,
    };
    match (request.command, vm) {
        (Command::Help(None), _) => {
            let _ = core::fmt::Write::write_fmt(&mut Text(out), format_args!("{Overview}"));
        }
        (Command::Vms, _) => answer(
            out,
            json,
            [VmLine {
                vm: "web",
                state: "running",
                memory_mib: 512,
                vcpus: 1,
                targets: 0,
                lead_ms: -3,
            }],
        ),
        (Command::Ps { vm }, _) => answer(
            out,
            json,
            [ProcessLine {
                vm,
                cr3: Cr3(root(0x1a2b000)),
                aliases: Aliases(&[root(0x1a2c000)]),
                cpu_permille: 334,
                cpu_ms: 12_345,
                seen_ms_ago: 2,
                target: false,
            }],
        ),
        (Command::Suppress { vm, cr3, factors }, _) => {
            answer(out, json, [TargetLine::new(vm, root(cr3), &[], factors)]);
        }
        (Command::Stats { vm }, _) => answer(
            out,
            json,
            [StatsLine {
                vm,
                what: "ept_violation",
                count: 10,
                ticks: 4321,
            }],
        ),
        (Command::Attach { .. }, Some(vm)) => console.attach(vm, out),
        (other, _) => panic!("not in this session: {other:?}"),
    }
}

#[test]
fn from_finding_a_process_to_slowing_it_down() {
    let mut session = Session::new();
    session.shows("tarpit> ");
    session.types("vms\r");
    session.shows(
        "vms\n\
         VM               STATE       MEMORY  VCPUS  TARGETS       LEAD\n\
         web              running     512 MiB      1        0      -3 ms\n\
         tarpit> ",
    );
    session.types("ps web\r");
    session.shows(
        "ps web\n\
         CR3               CPU      TIME ms      SEEN  TARGET  ALIASES\n\
         0x1a2b000       33.4 %      12345      2 ms  no      0x1a2c000\n\
         tarpit> ",
    );
    session.types("suppress web 0x1a2b000\r");
    session.shows(
        "suppress web 0x1a2b000\n\
         VM               CR3            INTERVAL     CLOCK  ALIASES\n\
         web              0x1a2b000      1/1000      1000x  -\n\
         tarpit> ",
    );
    session.types("stats web\r");
    session.shows(
        "stats web\n\
         WHAT                            COUNT           TICKS   PER EACH\n\
         ept_violation                      10            4321        432\n\
         tarpit> ",
    );
}

#[test]
fn a_program_reads_json() {
    let mut session = Session::new();
    session.types("ps web --json\r");
    session.shows(
        "tarpit> ps web --json\n\
         {\"vm\":\"web\",\"cr3\":\"0x1a2b000\",\"aliases\":[\"0x1a2c000\"],\"cpu_permille\":334,\
         \"cpu_ms\":12345,\"seen_ms_ago\":2,\"target\":false}\n\
         tarpit> ",
    );
    session.types("ps wbe --json\r");
    session.shows(
        "ps wbe --json\n\
         {\"error\":\"unknown_vm\",\"message\":\"there is no VM `wbe`: did you mean `web`?\"}\n\
         tarpit> ",
    );
    session.types("--json suppress web \"\r");
    session.shows(
        "--json suppress web \"\n\
         {\"error\":\"bad_cr3\",\"message\":\"`\\\"` is no CR3: it must be a hexadecimal number \
         as `ps` shows it, for instance 0x1a2b000\"}\n\
         tarpit> ",
    );
}

#[test]
fn wrong_input_is_explained() {
    let mut session = Session::new();
    session.types("supress web 0x1a2b000\r\r");
    session.shows(
        "tarpit> supress web 0x1a2b000\n\
         error: unknown command `supress`: did you mean `suppress`?\n\
         tarpit> \n\
         tarpit> ",
    );
}

#[test]
fn tab_knows_commands_and_vms() {
    let mut session = Session::new();
    session.types("su\tw\t");
    session.shows("tarpit> suppress web ");
}

#[test]
fn guests_write_while_the_operator_types() {
    let mut session = Session::new();
    session.types("ps w");
    session.guest_writes(1, "hello\n");
    session.types("eb\x03");
    session.shows("tarpit> ps w\r\x1b[K[db   1.500000] hello\ntarpit> ps web^C\ntarpit> ");
}

#[test]
fn messages_of_the_hypervisor_do_not_break_the_line_either() {
    let mut session = Session::new();
    session.types("vm");
    let screen = &mut session.screen;
    session
        .console
        .message(&mut |bytes: &[u8]| screen.extend_from_slice(bytes), |out| {
            out.write(b"web has ended\r\n")
        });
    session.shows("tarpit> vm\r\x1b[Kweb has ended\ntarpit> vm");
}

#[test]
fn attached_to_a_guest_and_back() {
    let mut session = Session::new();
    session.types("attach web\r");
    session.shows("tarpit> attach web\nattached to web; Ctrl-] comes back\n");
    session.types("ls\r\x03");
    assert_eq!(
        session.to_guests,
        [(0, b'l'), (0, b's'), (0, b'\r'), (0, 3)]
    );
    session.guest_writes(0, "# ");
    session.guest_writes(1, "unseen\n");
    session.types("\x1d");
    session.shows("# \ndetached from web\nlines of db not shown: 1\ntarpit> ");
    session.types("attach db\r");
    let screen = &mut session.screen;
    session
        .console
        .detach_from(1, &mut |bytes: &[u8]| screen.extend_from_slice(bytes));
    session.shows("attach db\nattached to db; Ctrl-] comes back\ndetached from db\ntarpit> ");
}
