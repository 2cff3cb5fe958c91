//! A target for fuzzing: whatever keys are pressed and whatever guests write, the operator sees the line
//! that is typed, and guests do nothing to the terminal.

use std::borrow::ToOwned;
use std::string::String;
use std::vec::Vec;

use super::line_editor::{LINE_CAPACITY, PROMPT};
use super::tests::{NAMES, Session};
use super::*;

/// The last line of a terminal, and the controls that it understands.
#[derive(Default)]
struct Screen {
    line: Vec<char>,
    column: usize,
}

impl Screen {
    /// Shows what was written, which is to be text and the controls of the console's own.
    fn show(&mut self, written: &[u8]) {
        let text = core::str::from_utf8(written).expect("a terminal takes UTF-8");
        let mut text = text.chars();
        while let Some(character) = text.next() {
            match character {
                '\r' => self.column = 0,
                '\n' => self.line.clear(),
                '\x07' => {}
                '\x08' => self.column = self.column.saturating_sub(1),
                '\x1b' => {
                    assert_eq!(text.next().zip(text.next()), Some(('[', 'K')));
                    self.line.truncate(self.column);
                }
                '\t' => self.put(' '),
                _ => {
                    assert!(
                        !character.is_control(),
                        "{character:?} reaches the terminal"
                    );
                    self.put(character);
                }
            }
        }
    }

    fn put(&mut self, character: char) {
        self.line.truncate(self.line.len().max(self.column));
        match self.line.get_mut(self.column) {
            Some(place) => *place = character,
            None => self.line.push(character),
        }
        self.column += 1;
    }

    fn text(&self) -> String {
        self.line.iter().collect()
    }
}

#[test]
fn keys_and_output_of_guests() {
    fuzzing::check!()
        .with_type::<Vec<(u8, u8, Vec<u8>)>>()
        .for_each(|acts| {
            let mut session = Session::new();
            let mut screen = Screen::default();
            let mut now = 0;
            for (kind, number, bytes) in acts {
                let channel = usize::from(number % 2);
                match kind % 8 {
                    0..3 => {
                        // Ctrl-] and the arrows among the keys.
                        for &byte in bytes {
                            let keys: &[u8] = match byte {
                                0x80..0x90 => b"\x1b[A",
                                0x90..0xa0 => b"\x1b[B",
                                0xa0..0xb0 => b"\t",
                                0xb0..0xc0 => b"\x7f",
                                _ => &[byte],
                            };
                            for &key in keys {
                                session.key(key);
                            }
                        }
                    }
                    3..6 => {
                        for &byte in bytes {
                            let out = &mut session.screen;
                            session
                                .console
                                .guest_byte(channel, NAMES[channel], byte, now, out);
                        }
                    }
                    6 => {
                        now += u64::from(*number) * 100_000;
                        session
                            .console
                            .flush_stale(&NAMES, now, &mut session.screen);
                    }
                    _ => session
                        .console
                        .message(&mut session.screen, |out| out.write(b"a message\r\n")),
                }
                assert!(session.console.line().len() <= LINE_CAPACITY);
                screen.show(&core::mem::take(&mut session.screen));
                let prompt = core::str::from_utf8(PROMPT).unwrap();
                assert_eq!(
                    screen.text().trim_end(),
                    (prompt.to_owned() + session.console.line()).trim_end()
                );
            }
            for line in &session.entered {
                assert!(line.bytes().all(|byte| matches!(byte, b' '..=b'~')));
            }
        });
}

#[test]
fn attachments_come_and_go() {
    fuzzing::check!()
        .with_type::<Vec<(u8, u8, Vec<u8>)>>()
        .for_each(|acts| {
            let mut session = Session::new();
            let mut attached = None;
            for (kind, number, bytes) in acts {
                let channel = usize::from(number % 2);
                match kind % 4 {
                    0 => {
                        session.console.attach(channel, &NAMES, &mut session.screen);
                        attached = Some(channel);
                    }
                    1 => {
                        session
                            .console
                            .detach_from(channel, &NAMES, &mut session.screen);
                        attached = attached.filter(|it| *it != channel);
                    }
                    2 => {
                        for &byte in bytes {
                            let out = &mut session.screen;
                            let input = session.console.operator_byte(byte, &NAMES, out);
                            // All goes to the guest, but for the key that comes back.
                            match attached {
                                Some(_) if byte == DETACH => attached = None,
                                Some(channel) => assert_eq!(input, Input::Guest { channel, byte }),
                                None => assert!(!matches!(input, Input::Guest { .. })),
                            }
                            if input == Input::Line {
                                session.console.done(&mut session.screen);
                            }
                        }
                    }
                    _ => {
                        session.screen.clear();
                        for &byte in bytes {
                            let out = &mut session.screen;
                            session
                                .console
                                .guest_byte(channel, NAMES[channel], byte, 0, out);
                        }
                        match attached {
                            Some(it) if it == channel => assert_eq!(session.screen, *bytes),
                            Some(_) => assert_eq!(session.screen, b""),
                            None => {}
                        }
                    }
                }
            }
        });
}
