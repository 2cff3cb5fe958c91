//! How VMs end, as tarpit's console tells it, and what exit status that makes.

use std::fmt;

/// The way in which a VM ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum VmEnd {
    /// The value that the guest wrote to its debug-exit port, 0xf4.
    DebugExit(u32),
    /// A switch-off.
    PowerOff,
    /// Anything else, in tarpit's words.
    Other(String),
}

impl VmEnd {
    /// Returns what this line of tarpit's console, `vm NAME ended: HOW`, says about the VM.
    pub fn from_line(line: &str, vm: &str) -> Option<Self> {
        let rest = line
            .strip_prefix("vm ")?
            .strip_prefix(vm)?
            .strip_prefix(" ended: ")?;
        Some(Self::from_words(rest))
    }

    /// Makes it from the words that say how, which end such a line.
    pub fn from_words(how: &str) -> Self {
        let how = how.trim();
        if let Some(code) = how.strip_prefix("debug-exit ") {
            return number(code).map_or_else(|| Self::Other(how.to_owned()), Self::DebugExit);
        }
        match how {
            "poweroff" => Self::PowerOff,
            _ => Self::Other(how.to_owned()),
        }
    }

    /// Returns the exit status: for a value `v` at the debug-exit port `(v << 1) | 1`, as QEMU's
    /// `isa-debug-exit` has it (so a test kernel's success, 0, is status 1); even otherwise.
    pub fn status(&self) -> u8 {
        match self {
            Self::DebugExit(value) => (value.to_le_bytes()[0] << 1) | 1,
            Self::PowerOff => 0,
            Self::Other(_) => 4,
        }
    }
}

impl fmt::Display for VmEnd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::DebugExit(value) => write!(f, "debug-exit {value}"),
            Self::PowerOff => f.write_str("poweroff"),
            Self::Other(how) => f.write_str(how),
        }
    }
}

fn number(text: &str) -> Option<u32> {
    match text.strip_prefix("0x") {
        Some(digits) => u32::from_str_radix(digits, 16).ok(),
        None => text.parse().ok(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_debug_exit_value_makes_qemus_status() {
        let end = VmEnd::from_line("vm test ended: debug-exit 0", "test");
        assert_eq!(end, Some(VmEnd::DebugExit(0)));
        assert_eq!(VmEnd::DebugExit(0).status(), 1);
        assert_eq!(VmEnd::DebugExit(1).status(), 3);
        assert_eq!(VmEnd::DebugExit(0x7f).status(), 255);
        assert_eq!(
            VmEnd::from_line("vm t ended: debug-exit 0x10", "t"),
            Some(VmEnd::DebugExit(16))
        );
    }

    #[test]
    fn other_ends_never_look_like_a_debug_exit() {
        let end = |how: &str| VmEnd::from_line(&format!("vm a ended: {how}\n"), "a");
        assert_eq!(end("poweroff"), Some(VmEnd::PowerOff));
        assert_eq!(
            end("triple fault"),
            Some(VmEnd::Other("triple fault".into()))
        );
        for how in ["poweroff", "reset", "triple fault", "debug-exit what"] {
            assert!(end(how).is_some_and(|end| end.status() % 2 == 0), "{how}");
        }
    }

    #[test]
    fn another_vms_end_is_not_ours() {
        assert_eq!(VmEnd::from_line("vm ab ended: poweroff", "a"), None);
    }

    #[test]
    fn a_guest_cannot_tell_its_own_end() {
        assert_eq!(
            VmEnd::from_line("[a   1.25] vm a ended: debug-exit 0", "a"),
            None
        );
    }
}

#[cfg(test)]
mod fuzz {
    use super::*;
    use crate::test_text::text;

    #[test]
    fn ends_of_vms() {
        fuzzing::check!().for_each(|bytes: &[u8]| {
            let words = [
                "vm ",
                "web",
                " ended: ",
                "debug-exit ",
                "poweroff",
                "0x",
                "+",
                "0",
                "ff",
            ];
            let line = text(bytes, &words);
            if let Some(end) = VmEnd::from_line(&line, "web") {
                // What is shown is read as the same end.
                assert_eq!(VmEnd::from_words(&end.to_string()), end, "{line}");
                let is_exit = matches!(end, VmEnd::DebugExit(_));
                assert_eq!(end.status() % 2 == 1, is_exit);
            }
        });
    }
}
