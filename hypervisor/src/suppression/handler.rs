//! From an interrupt until the interrupted code goes on, a guest's kernel works, not the target.
//!
//! Under a fast clock a handler would seem to take N times as long, and once that is longer than
//! the guest's tick the next tick is due before the handler is over, and the guest does nothing but
//! handle ticks. So the clock is not fast while a handler runs, and its end is to be known, not
//! guessed: too late is real time for the target, too early is a storm of ticks.
//!
//! The end is when the interrupted frame goes on. The VCPU sees that by itself where it can (it
//! breaks on the interrupted instruction; see `vcpu::resume_point`), and reports it. What it cannot see
//! is a handler that goes on elsewhere: with a signal's handler, behind a system call that is begun
//! anew, or with guests that need all breakpoints themselves. That is seen at the next exit, whatever
//! its reason: in user mode no handler runs, and a kernel's stack that has shrunk past the interrupted
//! frame has left the handler. Such an exit is asked for when handlers of this guest are usually long
//! over.

#![forbid(unsafe_code)]

use arch::paging::PAGE_SIZE;
use devices::time::{Hertz, HostTicks};

/// The most that a kernel's stack is taken to hold, in bytes: two stack pointers that are further
/// apart belong to different stacks.
const STACK: u64 = 16 << 10;

/// The time that a handler of an interrupt of user mode is given while it is seen with interrupts off, as a multiple of
/// what others are: one that sends what a line has room for, byte by byte, takes some thousand instructions a byte.
const LONGEST_MASKED: u64 = 8;

/// The execution context of a VCPU: its mode, its interruptibility and its stack pointer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Context {
    /// Whether it is in user mode.
    pub user_mode: bool,
    /// Whether it takes interrupts: RFLAGS.IF is set, and nothing blocks them.
    pub interruptible: bool,
    /// Its stack pointer.
    pub rsp: u64,
}

impl Context {
    /// Returns whether the stack holds little more than where the kernel was entered: it is about to leave,
    /// or has just come. The stacks of kernels end where a page does.
    #[must_use]
    pub(super) const fn is_near_stack_top(&self) -> bool {
        /// The most that is on such a stack, in bytes: the frame of the interrupted code, and few calls.
        const ENTRY: u64 = 384;
        PAGE_SIZE - self.rsp % PAGE_SIZE <= ENTRY
    }
}

/// A handler that runs.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Handler {
    /// The context that was interrupted.
    frame: Context,
    /// Whether that is where the handler was seen to begin; else it had begun before.
    pub begin_was_seen: bool,
    since: HostTicks,
    look_at: HostTicks,
    /// Whether it has been looked at, and was not over.
    looked_at: bool,
    /// Whether the target has not caused it: its time is not charged then.
    pub free: bool,
    /// Whether the interrupted code is known not to have gone on.
    pub not_resumed: bool,
}

impl Handler {
    /// Returns whether the handler is over when the VCPU is seen in `context`.
    const fn is_over(&self, context: Context) -> bool {
        if context.user_mode {
            return true;
        }
        // A kernel's handlers run on a stack of their own, or further down on that of the frame; what
        // they defer may run with interrupts on, but still there.
        !self.frame.user_mode
            && context.interruptible
            && context.rsp >= self.frame.rsp
            && context.rsp - self.frame.rsp < STACK
    }

    /// Leaves out the `ticks` for which the VCPU had no CPU: that is no time of the handler's.
    pub(crate) const fn wait(&mut self, ticks: u64) {
        self.since = self.since.saturating_add(ticks);
        self.look_at = self.look_at.saturating_add(ticks);
    }

    /// Returns when it is to be looked at.
    pub(crate) const fn look_at(&self) -> HostTicks {
        self.look_at
    }

    /// Returns when it began.
    pub(crate) const fn since(&self) -> HostTicks {
        self.since
    }
}

/// The handlers on a VCPU that are free of charge.
///
/// For whom an interrupt comes is not known. No kernel ticks more often than a thousand times a second of its time, and no
/// line or disk that others use interrupts more often in real time, which goes on more quickly than the guest's while that
/// gives back a lead. Whoever is interrupted more often has asked for it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct FreeHandlers {
    /// The time that has passed for none yet, in ticks, up to `guest` and `host`.
    credit: u64,
    guest: u64,
    host: HostTicks,
}

impl FreeHandlers {
    /// The handlers that are free in a second.
    const PER_SECOND: u64 = 1000;
    /// Those that may be free in a row: timers of others come at any time.
    const IN_A_ROW: u64 = 4;

    /// Makes it so that as many are free in a row as may be.
    pub(crate) const fn new() -> Self {
        Self {
            credit: u64::MAX,
            guest: 0,
            host: HostTicks(0),
        }
    }

    /// Returns whether one that begins at `guest`, in ticks of guest time, and `host` is free, where the TSC counts at
    /// `tsc`.
    pub(crate) fn take(&mut self, guest: u64, host: HostTicks, tsc: Hertz) -> bool {
        let each = tsc.get() / Self::PER_SECOND;
        let passed = guest.saturating_sub(self.guest).max(host.since(self.host));
        self.guest = self.guest.max(guest);
        self.host = self.host.max(host);
        let credit = self.credit.saturating_add(passed);
        self.credit = credit.min(Self::IN_A_ROW * each);
        let is_free = self.credit >= each;
        if is_free {
            self.credit -= each;
        }
        is_free
    }
}

/// The lengths of this guest's handlers.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Lengths {
    /// The average of those whose end was seen, in ticks.
    usual: u64,
    /// The time that a handler is given before it is taken to be over, in ticks.
    longest: u64,
    /// The least time for which a VCPU is left alone, in ticks.
    least_look: u64,
    /// Whether the last end was reported.
    reported: bool,
}

impl Lengths {
    /// Makes the state in which nothing is known yet.
    pub(crate) const fn new(longest: u64, least_look: u64) -> Self {
        Self {
            usual: longest / 8,
            longest,
            least_look,
            reported: true,
        }
    }

    /// Adapts to a machine where a handler may take `longest` ticks, and where a VCPU is to be left
    /// alone for `least_look` ticks at least.
    pub(crate) const fn adapt(&mut self, longest: u64, least_look: u64) {
        self.longest = longest;
        self.least_look = least_look;
    }

    /// Returns a handler that interrupts `frame` at `now`.
    pub(crate) fn begin(&self, frame: Context, now: HostTicks, free: bool) -> Handler {
        // Where the end is reported, looking is for the exception.
        let wait = if self.reported {
            2 * self.usual
        } else {
            self.usual
        };
        Handler {
            frame,
            begin_was_seen: true,
            since: now,
            look_at: now.saturating_add(wait.max(self.least_look)),
            looked_at: false,
            free,
            not_resumed: false,
        }
    }

    /// Returns a handler in the middle of which a VCPU may be that is seen in the kernel, in `context`, at
    /// `now`: what it has interrupted is not known, and only user mode is sure to be no handler.
    pub(crate) fn begun_before(&self, context: Context, now: HostTicks) -> Handler {
        let frame = Context {
            user_mode: true,
            ..context
        };
        Handler {
            begin_was_seen: false,
            ..self.begin(frame, now, true)
        }
    }

    /// Takes note that the end of `handler` was `reported` at `now`, or found by looking.
    pub(crate) fn ended(&mut self, handler: &Handler, now: HostTicks, reported: bool) {
        self.reported = reported;
        if reported {
            let length = now.since(handler.since).min(self.longest);
            self.usual = self.usual / 8 * 7 + length / 8;
        } else if !handler.looked_at {
            // It was over some time ago: half of them are to be when they are looked at first.
            self.usual -= self.usual / 16;
        }
    }

    /// Returns whether `handler` is over for a VCPU that is seen in `context` at `now`; if not, it
    /// is looked at again.
    pub(crate) fn is_over(
        &mut self,
        handler: &mut Handler,
        context: Context,
        now: HostTicks,
    ) -> bool {
        let length = now.since(handler.since);
        // One that has interrupted user mode, and is seen with interrupts off, has not gone on to anything else yet.
        let is_masked = handler.begin_was_seen && handler.frame.user_mode && !context.interruptible;
        let longest = if is_masked {
            self.longest.saturating_mul(LONGEST_MASKED)
        } else {
            self.longest
        };
        if handler.is_over(context) || length >= longest {
            return true;
        }
        if now >= handler.look_at {
            if !handler.looked_at && !self.reported {
                self.usual = (self.usual + self.usual / 16).min(self.longest);
            }
            handler.looked_at = true;
            // Looks take time as well: one that is long is looked at less often.
            let wait = (self.usual / 2).max(length / 4).max(self.least_look);
            handler.look_at = now.saturating_add(wait);
        }
        false
    }

    /// Returns what handlers usually take, in ticks.
    pub(crate) const fn usual(&self) -> u64 {
        self.usual
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KERNEL: Context = Context {
        user_mode: false,
        interruptible: true,
        rsp: 0xffff_c900_0010_3f00,
    };
    const USER: Context = Context {
        user_mode: true,
        interruptible: true,
        rsp: 0x7fff_0000_1000,
    };

    fn at(rsp: u64, interruptible: bool) -> Context {
        Context {
            rsp,
            interruptible,
            ..KERNEL
        }
    }

    fn over(frame: Context, context: Context) -> bool {
        let mut lengths = Lengths::new(100_000, 2_000);
        let mut handler = lengths.begin(frame, HostTicks(0), true);
        lengths.is_over(&mut handler, context, HostTicks(5_000))
    }

    #[test]
    fn a_thousand_handlers_a_second_are_free_by_the_quicker_of_two_clocks() {
        const TSC: Hertz = Hertz::new(1_000_000_000);
        const MS: u64 = 1_000_000;
        // A fast clock, one that stands still, and one that is right; interrupts come every fifth of a millisecond of
        // the time that passes more quickly.
        for (guest, host) in [(MS, MS / 1000), (0, MS), (MS, MS)] {
            let mut handlers = FreeHandlers::new();
            let is_free = |n: &u64| {
                let host = HostTicks(n * host / 5);
                handlers.take(n * guest / 5, host, TSC)
            };
            let free = (0..5_000).filter(is_free).count();
            assert!((1_000..=1_004).contains(&free), "{guest}, {host}: {free}");
        }
    }

    #[test]
    fn user_mode_ends_a_handler() {
        assert!(over(USER, USER));
        assert!(over(KERNEL, USER));
        assert!(!over(USER, KERNEL));
    }

    #[test]
    fn a_kernel_frame_goes_on_when_the_stack_has_shrunk_to_it() {
        assert!(over(KERNEL, KERNEL));
        assert!(over(KERNEL, at(KERNEL.rsp + 0x80, true)));
        assert!(!over(KERNEL, at(KERNEL.rsp - 0x200, true)), "a softirq");
        assert!(!over(KERNEL, at(KERNEL.rsp, false)), "on its way out");
        assert!(
            !over(KERNEL, at(0xffff_c900_0000_3f80, true)),
            "a stack for interrupts"
        );
        assert!(
            !over(KERNEL, at(KERNEL.rsp + 0x10_0000, true)),
            "another thread's"
        );
    }

    #[test]
    fn a_handler_without_an_end_is_given_up() {
        let mut lengths = Lengths::new(100_000, 2_000);
        let mut handler = lengths.begin(USER, HostTicks(0), true);
        assert!(!lengths.is_over(&mut handler, KERNEL, HostTicks(99_999)));
        assert!(lengths.is_over(&mut handler, KERNEL, HostTicks(100_000)));
    }

    #[test]
    fn a_handler_of_an_interrupt_of_user_mode_has_longer_while_interrupts_are_off() {
        let masked = at(KERNEL.rsp, false);
        let over_at = |frame, context, begin_was_seen| {
            let mut lengths = Lengths::new(100_000, 2_000);
            let mut handler = Handler {
                begin_was_seen,
                ..lengths.begin(frame, HostTicks(0), true)
            };
            let mut looks = 0;
            loop {
                let now = handler.look_at();
                if lengths.is_over(&mut handler, context, now) {
                    return (now.0, looks);
                }
                looks += 1;
            }
        };
        let (end, looks) = over_at(USER, masked, true);
        assert!((800_000..1_000_000).contains(&end), "{end}");
        assert!(looks < 20, "{looks}: each takes some thousand ticks");
        // What runs may be the code that was interrupted.
        for (frame, context, begin_was_seen) in [
            (USER, KERNEL, true),
            (KERNEL, at(KERNEL.rsp - 0x200, false), true),
            (USER, masked, false),
        ] {
            let (end, _) = over_at(frame, context, begin_was_seen);
            assert!((100_000..125_000).contains(&end), "{end}");
        }
    }

    #[test]
    fn where_ends_are_reported_it_is_looked_for_when_that_is_late() {
        let mut lengths = Lengths::new(100_000, 2_000);
        for _ in 0..100 {
            let handler = lengths.begin(USER, HostTicks(0), true);
            lengths.ended(&handler, HostTicks(4_000), true);
        }
        assert!(lengths.usual().abs_diff(4_000) < 100);
        let mut handler = lengths.begin(USER, HostTicks(0), true);
        let first = handler.look_at();
        assert!(first.0.abs_diff(8_000) < 200);
        assert!(!lengths.is_over(&mut handler, KERNEL, first));
        assert!(handler.look_at() > first && handler.look_at().0 < 12_000);
        lengths.adapt(100_000, 60_000);
        let handler = lengths.begin(USER, HostTicks(0), true);
        assert_eq!(handler.look_at(), HostTicks(60_000));
    }

    #[test]
    fn where_ends_are_not_reported_the_usual_length_is_found_by_looking() {
        let mut lengths = Lengths::new(100_000, 500);
        for length in [4_000, 20_000, 3_000] {
            let mut late = 0;
            for _ in 0..200 {
                let mut handler = lengths.begin(USER, HostTicks(0), true);
                let seen = loop {
                    let now = handler.look_at();
                    let context = if now.0 >= length { USER } else { KERNEL };
                    if lengths.is_over(&mut handler, context, now) {
                        break now;
                    }
                };
                lengths.ended(&handler, seen, false);
                late = seen.0 - length;
            }
            assert!(lengths.usual().abs_diff(length) < length / 4);
            assert!(late <= length * 3 / 4, "{late} after {length}");
        }
    }
}
