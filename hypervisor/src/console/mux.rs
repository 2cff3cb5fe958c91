//! Several guests' output on one line: whole lines with the guest's name and the host time in
//! front, or the raw bytes of the one guest that the operator is attached to.
//!
//! A guest's byte costs a store into a fixed buffer, and no allocation.

use alloc::vec::Vec;
use core::fmt::Write;

use super::output::{Output, Text};

/// The longest part of a guest's line that is shown in one piece.
const LINE_CAPACITY: usize = 200;
/// The time after which an unfinished line is shown, in microseconds: prompts end in no line feed.
const STALE_AFTER: u64 = 500_000;

/// The part of a control sequence that has come from the guest. Controls are not for the shared
/// terminal: they would let a guest write over what others wrote.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Control {
    None,
    Escape,
    /// A control sequence, ended by a letter.
    Sequence,
    /// An operating-system command, ended by BEL or ESC.
    Command,
}

/// The names of channels, which whoever has the guests keeps.
pub(crate) trait ChannelNames {
    /// Returns the name of a channel.
    fn channel_name(&self, channel: usize) -> &str;
}

/// One guest's output.
#[derive(Debug)]
struct Channel {
    line: [u8; LINE_CAPACITY],
    length: usize,
    /// The time of the line's first byte, in microseconds of host time.
    begun: u64,
    control: Control,
    /// Lines that were not shown because the operator was attached to another guest.
    missed: u64,
}

/// All guests' output.
#[derive(Debug)]
pub(super) struct Mux {
    /// The guests' channels, by their numbers.
    channels: Vec<Channel>,
    attached: Option<usize>,
    /// Whether the attached guest's last byte did not end a line.
    mid_line: bool,
}

impl Channel {
    /// Makes a channel on which nothing has been written.
    const fn new() -> Self {
        Self {
            line: [0; LINE_CAPACITY],
            length: 0,
            begun: 0,
            control: Control::None,
            missed: 0,
        }
    }

    /// Takes a byte of the guest's output; `true` if the line is to be shown.
    fn push(&mut self, byte: u8, now: u64) -> bool {
        match self.control {
            Control::None => {}
            Control::Escape => {
                self.control = match byte {
                    b'[' => Control::Sequence,
                    b']' | b'P' => Control::Command,
                    // Two-byte sequences, some with an intermediate byte.
                    b' '..=b'/' => Control::Escape,
                    _ => Control::None,
                };
                return false;
            }
            Control::Sequence => {
                if matches!(byte, b'@'..=b'~') {
                    self.control = Control::None;
                }
                return false;
            }
            Control::Command => {
                match byte {
                    0x07 => self.control = Control::None,
                    0x1b => self.control = Control::Escape,
                    // It is not closed: the rest of the guest's output is not to be swallowed.
                    b'\n' => self.control = Control::None,
                    _ => {}
                }
                return false;
            }
        }
        match byte {
            b'\n' => return true,
            0x1b => self.control = Control::Escape,
            b'\t' | b' '..=b'~' | 0x80.. => {
                if self.length == 0 {
                    self.begun = now;
                }
                if let Some(place) = self.line.get_mut(self.length) {
                    *place = byte;
                    self.length += 1;
                }
                return self.length == LINE_CAPACITY;
            }
            _ => {}
        }
        false
    }

    fn show(&mut self, name: &str, now: u64, out: &mut (impl Output + ?Sized)) {
        let at = if self.length == 0 { now } else { self.begun };
        prefix(name, at, out);
        self.write_line(out);
        out.write(b"\r\n");
        self.length = 0;
    }

    /// Writes the line as far as it is text. A terminal would obey the controls that UTF-8 has in two bytes,
    /// and take bytes that are no UTF-8 for anything.
    fn write_line(&self, out: &mut (impl Output + ?Sized)) {
        let line = self.line.get(..self.length).unwrap_or_default();
        for chunk in line.utf8_chunks() {
            for text in chunk.valid().split(|c: char| c.is_control() && c != '\t') {
                out.write(text.as_bytes());
            }
            if !chunk.invalid().is_empty() {
                out.write("\u{fffd}".as_bytes());
            }
        }
    }
}

/// Writes `[name  12.345678] `, the time from microseconds.
fn prefix(name: &str, now: u64, out: &mut (impl Output + ?Sized)) {
    let (seconds, micros) = (now / 1_000_000, now % 1_000_000);
    // An output cannot fail.
    let _ = write!(Text(out), "[{name} {seconds:>3}.{micros:06}] ");
}

impl Mux {
    /// Makes a multiplexer of so many channels, numbered from 0.
    #[must_use]
    pub(super) fn new(channels: usize) -> Self {
        Self {
            channels: (0..channels).map(|_| Channel::new()).collect(),
            attached: None,
            mid_line: false,
        }
    }

    /// Returns the channel that the operator is attached to.
    #[must_use]
    pub(super) const fn attached(&self) -> Option<usize> {
        self.attached
    }

    /// Takes a byte of the guest of a channel with this name, at `now` microseconds of host time. `around` is
    /// called before and after a whole line is written, if one is (to take the operator's own
    /// line off the terminal and back).
    pub(super) fn guest_byte<O: Output + ?Sized>(
        &mut self,
        number: usize,
        name: &str,
        byte: u8,
        now: u64,
        out: &mut O,
        around: impl Fn(Around, &mut O),
    ) {
        let attached = self.attached;
        let Some(channel) = self.channels.get_mut(number) else {
            return;
        };
        if attached == Some(number) {
            out.write(&[byte]);
            self.mid_line = byte != b'\n';
            return;
        }
        if !channel.push(byte, now) {
            return;
        }
        if attached.is_some() {
            channel.missed += 1;
            channel.length = 0;
            return;
        }
        around(Around::Before, out);
        channel.show(name, now, out);
        around(Around::After, out);
    }

    /// Shows lines that were begun a while ago and are not finished at `now`. To be called a
    /// few times a second.
    pub(super) fn flush_stale<O: Output + ?Sized>(
        &mut self,
        names: &dyn ChannelNames,
        now: u64,
        out: &mut O,
        around: impl Fn(Around, &mut O),
    ) {
        if self.attached.is_some() {
            return;
        }
        for (number, channel) in self.channels.iter_mut().enumerate() {
            if channel.length > 0 && now.saturating_sub(channel.begun) >= STALE_AFTER {
                around(Around::Before, out);
                channel.show(names.channel_name(number), now, out);
                around(Around::After, out);
            }
        }
    }

    /// Attaches the operator to a channel, and shows its unfinished line.
    pub(super) fn attach(
        &mut self,
        number: usize,
        names: &dyn ChannelNames,
        out: &mut (impl Output + ?Sized),
    ) {
        let Some(channel) = self.channels.get_mut(number) else {
            return;
        };
        let name = names.channel_name(number);
        let _ = writeln!(Text(out), "attached to {name}; Ctrl-] comes back");
        channel.write_line(out);
        self.mid_line = channel.length > 0;
        channel.length = 0;
        channel.control = Control::None;
        self.attached = Some(number);
    }

    /// Ends the attachment, and tells what was not shown meanwhile.
    pub(super) fn detach(&mut self, names: &dyn ChannelNames, out: &mut (impl Output + ?Sized)) {
        let Some(attached) = self.attached.take() else {
            return;
        };
        if core::mem::take(&mut self.mid_line) {
            out.write(b"\r\n");
        }
        let _ = writeln!(Text(out), "detached from {}", names.channel_name(attached));
        for (number, channel) in self.channels.iter_mut().enumerate() {
            let missed = core::mem::take(&mut channel.missed);
            if missed > 0 {
                let name = names.channel_name(number);
                let _ = writeln!(Text(out), "lines of {name} not shown: {missed}");
            }
        }
    }
}

/// The moment at which [`Mux::guest_byte`] calls its caller back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Around {
    /// The moment before a line is shown.
    Before,
    /// The moment after a line is shown.
    After,
}

#[cfg(test)]
impl<const N: usize> ChannelNames for [&str; N] {
    fn channel_name(&self, channel: usize) -> &str {
        self[channel]
    }
}

#[cfg(test)]
mod tests {
    use std::string::String;

    use super::*;

    /// The names of the channels.
    const NAMES: [&str; 2] = ["web", "db"];

    struct Session {
        mux: Mux,
        screen: Vec<u8>,
        now: u64,
    }

    impl Session {
        fn new() -> Self {
            Self {
                mux: Mux::new(NAMES.len()),
                screen: Vec::new(),
                now: 12_345_678,
            }
        }

        fn guest(&mut self, channel: usize, text: &str) {
            for byte in text.bytes() {
                let (name, now) = (NAMES[channel], self.now);
                self.mux
                    .guest_byte(channel, name, byte, now, &mut self.screen, |_, _| {});
            }
        }

        /// What has come out since the last look.
        fn screen(&mut self) -> String {
            String::from_utf8(core::mem::take(&mut self.screen)).unwrap()
        }
    }

    #[test]
    fn lines_carry_the_name_and_the_time_of_their_beginning() {
        let mut session = Session::new();
        session.guest(0, "Hel");
        assert_eq!(session.screen(), "");
        session.now += 1_000_000;
        session.guest(0, "lo\r\n\n");
        assert_eq!(
            session.screen(),
            "[web  12.345678] Hello\r\n[web  13.345678] \r\n"
        );
    }

    #[test]
    fn controls_in_two_bytes_and_bytes_that_are_no_text_reach_no_terminal() {
        let mut session = Session::new();
        // CSI by U+009B would erase the line, and put another guest's name there.
        session.guest(0, "\u{9b}2K\u{9b}1Gfine \u{e9}\u{20ac}\n");
        assert_eq!(
            session.screen(),
            "[web  12.345678] 2K1Gfine \u{e9}\u{20ac}\r\n"
        );
        for byte in [b'a', 0x9b, 0xe2, 0x82, b'b', 0xc2] {
            let (name, now) = (NAMES[0], session.now);
            let mux = &mut session.mux;
            mux.guest_byte(0, name, byte, now, &mut session.screen, |_, _| {});
        }
        session.mux.attach(0, &NAMES, &mut session.screen);
        let screen = session.screen();
        let shown = screen.ends_with("a\u{fffd}\u{fffd}b\u{fffd}");
        assert!(shown, "{screen:?}");
    }

    #[test]
    fn lines_of_different_guests_do_not_mix() {
        let mut session = Session::new();
        session.guest(0, "from w");
        session.guest(1, "from the database\n");
        session.guest(0, "eb\n");
        assert_eq!(
            session.screen(),
            "[db  12.345678] from the database\r\n[web  12.345678] from web\r\n"
        );
    }

    #[test]
    fn a_prompt_is_shown_after_a_while() {
        let mut session = Session::new();
        session.guest(0, "login: ");
        for (wait, expected) in [
            (100_000, ""),
            (400_000, "[web  12.345678] login: \r\n"),
            (900_000, ""),
        ] {
            session.now += wait;
            session
                .mux
                .flush_stale(&NAMES, session.now, &mut session.screen, |_, _| {});
            assert_eq!(session.screen(), expected);
        }
    }

    #[test]
    fn a_guest_cannot_move_the_cursor_or_fake_anothers_line() {
        let mut session = Session::new();
        session.guest(
            0,
            "\x1b[2J\x1b[31mred\x1b[0m\x07\x1b]0;title\x07 end\x1b(B!\r\x08\n",
        );
        assert_eq!(session.screen(), "[web  12.345678] red end!\r\n");
        session.guest(0, "nice\rtry\x1b]unclosed\nnext\n");
        assert_eq!(session.screen(), "[web  12.345678] nicetrynext\r\n");
    }

    #[test]
    fn endless_lines_come_in_pieces() {
        let mut session = Session::new();
        session.guest(0, &"x".repeat(2 * LINE_CAPACITY + 1));
        assert_eq!(session.screen().lines().count(), 2);
        session.guest(0, "\n");
        assert_eq!(session.screen(), "[web  12.345678] x\r\n");
    }

    #[test]
    fn an_attached_guest_has_the_line_for_itself() {
        let mut session = Session::new();
        session.guest(0, "log");
        session.mux.attach(0, &NAMES, &mut session.screen);
        assert_eq!(
            session.screen(),
            "attached to web; Ctrl-] comes back\r\nlog"
        );
        session.guest(0, "in: \x1b[1mroot\r\n# ");
        session.guest(1, "one\ntwo\nthr");
        assert_eq!(session.screen(), "in: \x1b[1mroot\r\n# ");
        session.mux.detach(&NAMES, &mut session.screen);
        assert_eq!(
            session.screen(),
            "\r\ndetached from web\r\nlines of db not shown: 2\r\n"
        );
        session.guest(1, "ee\n");
        assert_eq!(session.screen(), "[db  12.345678] three\r\n");
    }
}
