//! The terminal: what is typed, what guests write, what is shown. Sessions with commands are in
//! [`crate::operator`]'s tests.

use std::string::String;
use std::vec::Vec;

use super::*;

/// The names of the channels.
pub(super) const NAMES: [&str; 2] = ["web", "db"];

/// A terminal at a console with the channels `web` and `db`.
pub(super) struct Session {
    pub(super) console: Console,
    pub(super) screen: Vec<u8>,
    to_guests: Vec<(usize, u8)>,
    pub(super) entered: Vec<String>,
}

impl Session {
    pub(super) fn new() -> Self {
        let mut console = Console::new(NAMES.len());
        let mut screen = Vec::new();
        console.open(&mut screen);
        Self {
            console,
            screen,
            to_guests: Vec::new(),
            entered: Vec::new(),
        }
    }

    pub(super) fn key(&mut self, byte: u8) {
        match self.console.operator_byte(byte, &NAMES, &mut self.screen) {
            Input::None => {}
            Input::Guest { channel, byte } => self.to_guests.push((channel, byte)),
            Input::Line => {
                self.entered.push(self.console.line().into());
                self.console.done(&mut self.screen);
            }
            Input::Complete => self.console.complete(&NAMES, &mut self.screen),
        }
    }

    fn types(&mut self, text: &str) {
        text.bytes().for_each(|byte| self.key(byte));
    }

    fn guest_writes(&mut self, channel: usize, text: &str) {
        for byte in text.bytes() {
            self.console
                .guest_byte(channel, NAMES[channel], byte, 1_500_000, &mut self.screen);
        }
    }

    fn shows(&mut self, expected: &str) {
        let screen = String::from_utf8(core::mem::take(&mut self.screen)).unwrap();
        assert_eq!(screen.replace("\r\n", "\n"), expected);
    }
}

#[test]
fn lines_are_handed_out_one_by_one() {
    let mut session = Session::new();
    session.types("vms\rps w\t\r");
    assert_eq!(session.entered, ["vms", "ps web "]);
    session.shows("tarpit> vms\ntarpit> ps web \ntarpit> ");
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
    session
        .console
        .message(&mut session.screen, |out| out.write(b"web has ended\r\n"));
    session.shows("tarpit> vm\r\x1b[Kweb has ended\ntarpit> vm");
}

#[test]
fn a_guest_that_is_no_more_ends_the_attachment_to_it_only() {
    let mut session = Session::new();
    session.console.attach(1, &NAMES, &mut session.screen);
    session.console.detach_from(0, &NAMES, &mut session.screen);
    session.shows("tarpit> attached to db; Ctrl-] comes back\n");
    session.console.detach_from(1, &NAMES, &mut session.screen);
    session.shows("detached from db\ntarpit> ");
}
