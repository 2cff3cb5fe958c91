//! What the operator, or a program, is told of targets without having asked.

use core::fmt;

use serde::Serialize;

use super::records::Cr3;
use crate::console::Record;
use crate::suppression::member::Sign;
use crate::suppression::notice::{End, Notice, Subject};

/// A notice of a VM's: a line for people, and a record for programs, which has what belongs to it and,
/// beside it, the name of the event.
#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) struct NoticeLine<'a> {
    /// The VM's name.
    pub vm: &'a str,
    /// The target, by the root that the operator named.
    pub cr3: Cr3,
    /// The member that it is about.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub member: Option<Cr3>,
    /// The member that this one descends from.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub parent: Option<Cr3>,
    /// The sign by which it was known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sign: Option<&'static str>,
    /// Whether it is the only one that lives.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub takes_over: Option<bool>,
    /// The number of members that live on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub living: Option<usize>,
    /// The way in which the process ended.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub end: Option<&'static str>,
    /// The number of members that there may be.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bound: Option<usize>,
    /// The CPU time that it had, in millionths of one CPU.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub share_ppm: Option<u64>,
    /// The number of notices that were left out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub left_out: Option<u32>,
    /// The subject, in the words of the hypervisor.
    #[serde(skip)]
    subject: Subject,
}

impl<'a> NoticeLine<'a> {
    /// Makes the line of `notice` in the VM of this name.
    #[must_use]
    pub(crate) const fn new(vm: &'a str, notice: &Notice) -> Self {
        let mut line = Self {
            vm,
            cr3: Cr3(notice.target),
            member: None,
            parent: None,
            sign: None,
            takes_over: None,
            living: None,
            end: None,
            bound: None,
            share_ppm: None,
            left_out: None,
            subject: notice.subject,
        };
        match notice.subject {
            Subject::Joined {
                member,
                parent,
                sign,
                takes_over,
            } => {
                line.member = Some(Cr3(member));
                line.parent = Some(Cr3(parent));
                line.sign = Some(sign.name());
                line.takes_over = Some(takes_over);
            }
            Subject::MemberEnded {
                member,
                end,
                living,
            } => {
                line.member = Some(Cr3(member));
                line.end = Some(end.name());
                line.living = Some(living);
            }
            Subject::Ended(end) => line.end = Some(end.name()),
            Subject::Full { root, bound } => {
                line.member = Some(Cr3(root));
                line.bound = Some(bound);
            }
            Subject::WithoutEffect { share } => line.share_ppm = Some(share),
            Subject::LimitedByBudget => {}
            Subject::LeftOut(count) => line.left_out = Some(count),
        }
        line
    }
}

/// Returns the name of the event that `notice` tells of, in a trace.
#[must_use]
pub(crate) const fn event_name(notice: &Notice) -> &'static str {
    match notice.subject {
        Subject::Joined { .. } => "member-joined",
        Subject::MemberEnded { .. } => "member-ended",
        Subject::Ended(_) => "target-ended",
        Subject::Full { .. } => "family-full",
        Subject::WithoutEffect { .. } => "without-effect",
        Subject::LimitedByBudget => "limited-by-budget",
        Subject::LeftOut(_) => "notices-left-out",
    }
}

impl Record for NoticeLine<'_> {
    const HEADING: &'static str = "";

    fn row(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "vm {}: target {}: ", self.vm, self.cr3.0)?;
        let ended = |end: End| match end {
            End::Died => "has ended",
            End::Lost => "is lost: its CR3 is another process's now",
        };
        match self.subject {
            Subject::Joined {
                member,
                parent,
                sign,
                takes_over,
            } => {
                let with = if takes_over {
                    "takes over from it"
                } else {
                    "is suppressed with it"
                };
                match sign {
                    Sign::Rule => write!(f, "{member} was found by the same rule, and {with}"),
                    _ => write!(f, "{member} comes of {parent} by {sign}, and {with}"),
                }
            }
            Subject::MemberEnded {
                member,
                end,
                living: 0,
            } => write!(
                f,
                "{member} {}, and nobody of its family is left; descendants are looked for",
                ended(end)
            ),
            Subject::MemberEnded {
                member,
                end,
                living,
            } => write!(f, "{member} {}; {living} of its family live on", ended(end)),
            Subject::Ended(end) => write!(f, "it {}, and is released", ended(end)),
            Subject::Full { root, bound } => write!(
                f,
                "{root} comes of it, but is not followed: a family has at most {bound} members"
            ),
            Subject::WithoutEffect { share } => write!(
                f,
                "without effect for 2 s: it had {}.{} % of a CPU",
                share / 10_000,
                share / 1_000 % 10
            ),
            Subject::LimitedByBudget => f.write_str("its budget of CPU time holds it back"),
            Subject::LeftOut(count) => write!(f, "{count} more notices were left out"),
        }
    }
}

#[cfg(test)]
mod tests {
    use devices::time::HostTicks;

    use super::*;
    use crate::console::{Answer, Format};
    use crate::suppression::address_space::{Root, RootFormat};

    fn root(cr3: u64) -> Root {
        Root::new(cr3, RootFormat::Long)
    }

    fn shown(subject: Subject, format: Format) -> alloc::string::String {
        let notice = Notice {
            at: HostTicks(5),
            target: root(0x1000),
            subject,
        };
        let mut screen = alloc::vec::Vec::new();
        Answer::new(&mut screen, format).record(&NoticeLine::new("web", &notice));
        alloc::string::String::from_utf8(screen)
            .unwrap()
            .trim_end()
            .into()
    }

    #[test]
    fn a_line_tells_people_what_has_happened() {
        let joined = |takes_over| Subject::Joined {
            member: root(0x5000),
            parent: root(0x1000),
            sign: Sign::Fork,
            takes_over,
        };
        let ended = |living| Subject::MemberEnded {
            member: root(0x5000),
            end: End::Died,
            living,
        };
        let full = Subject::Full {
            root: root(0x7000),
            bound: 64,
        };
        for (subject, expected) in [
            (
                joined(false),
                "0x5000 comes of 0x1000 by fork, and is suppressed with it",
            ),
            (
                joined(true),
                "0x5000 comes of 0x1000 by fork, and takes over from it",
            ),
            (ended(2), "0x5000 has ended; 2 of its family live on"),
            (
                ended(0),
                "0x5000 has ended, and nobody of its family is left; descendants are looked for",
            ),
            (
                Subject::Ended(End::Lost),
                "it is lost: its CR3 is another process's now, and is released",
            ),
            (
                full,
                "0x7000 comes of it, but is not followed: a family has at most 64 members",
            ),
            (
                Subject::WithoutEffect { share: 123_456 },
                "without effect for 2 s: it had 12.3 % of a CPU",
            ),
            (
                Subject::LimitedByBudget,
                "its budget of CPU time holds it back",
            ),
            (Subject::LeftOut(7), "7 more notices were left out"),
        ] {
            let line = alloc::format!("vm web: target 0x1000: {expected}");
            assert_eq!(shown(subject, Format::Table), line);
        }
    }

    #[test]
    fn json_has_what_belongs_to_the_event() {
        let joined = Subject::Joined {
            member: root(0x5000),
            parent: root(0x1000),
            sign: Sign::Exec,
            takes_over: false,
        };
        assert_eq!(
            shown(joined, Format::Json),
            r#"{"vm":"web","cr3":"0x1000","member":"0x5000","parent":"0x1000","sign":"exec","takes_over":false}"#
        );
        assert_eq!(
            shown(Subject::Ended(End::Died), Format::Json),
            r#"{"vm":"web","cr3":"0x1000","end":"died"}"#
        );
    }
}
