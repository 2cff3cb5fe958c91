//! The APIC timer against a model that steps through every tick, over any sequence of
//! changes of mode, mask, count, divisor and deadline.

use proptest::prelude::*;

use super::*;

/// The timer as the manual describes it (SDM vol. 3A, 11.5.4), for an input clock as fast as
/// the TSC.
#[derive(Clone, Debug)]
struct Stepped {
    tsc: u64,
    mode: u32,
    masked: bool,
    divisor: u32,
    prescaler: u32,
    initial: u32,
    current: u32,
    deadline: u64,
    interrupted: bool,
}

impl Stepped {
    fn new() -> Self {
        Self {
            tsc: 0,
            mode: 0,
            masked: true,
            divisor: 2,
            prescaler: 0,
            initial: 0,
            current: 0,
            deadline: 0,
            interrupted: false,
        }
    }

    fn expire(&mut self) {
        self.interrupted |= !self.masked;
    }

    fn tick(&mut self) {
        self.tsc += 1;
        self.check_deadline();
        if self.current == 0 {
            return;
        }
        self.prescaler += 1;
        if self.prescaler < self.divisor {
            return;
        }
        self.prescaler = 0;
        self.current -= 1;
        if self.current == 0 {
            self.expire();
            if self.mode == 1 {
                self.current = self.initial;
            }
        }
    }

    fn check_deadline(&mut self) {
        if self.deadline != 0 && self.tsc >= self.deadline {
            self.deadline = 0;
            self.expire();
        }
    }

    fn act(&mut self, action: Action) {
        match action {
            Action::Lvt(mode, masked) => {
                // Only between one-shot and periodic does the count go on.
                if mode != self.mode && (mode > 1 || self.mode > 1) {
                    (self.initial, self.current, self.deadline) = (0, 0, 0);
                }
                (self.mode, self.masked) = (mode, masked);
            }
            Action::Initial(count) if self.mode <= 1 => {
                (self.initial, self.current, self.prescaler) = (count, count, 0);
            }
            Action::Initial(_) => {}
            Action::Divide(configuration) => {
                let divisor = [2, 4, 8, 16, 32, 64, 128, 1][configuration as usize];
                if divisor != self.divisor {
                    (self.divisor, self.prescaler) = (divisor, 0);
                }
            }
            Action::Deadline(deadline) => {
                if self.mode == 2 {
                    self.deadline = deadline;
                    self.check_deadline();
                }
            }
            Action::Wait(ticks) => (0..ticks).for_each(|_| self.tick()),
        }
    }

    /// The tick of the next interrupt.
    fn next_interrupt(&self) -> Option<u64> {
        if self.masked {
            return None;
        }
        let mut ahead = Self {
            interrupted: false,
            ..self.clone()
        };
        while ahead.current != 0 || ahead.deadline != 0 {
            ahead.tick();
            if ahead.interrupted {
                return Some(ahead.tsc);
            }
        }
        None
    }
}

#[derive(Clone, Copy, Debug)]
enum Action {
    /// Timer mode and mask.
    Lvt(u32, bool),
    Initial(u32),
    /// The three bits of the configuration.
    Divide(u32),
    Deadline(u64),
    Wait(u64),
}

fn actions() -> impl Strategy<Value = Vec<Action>> {
    let action = prop_oneof![
        3 => (0..4u32, any::<bool>()).prop_map(|(mode, masked)| Action::Lvt(mode, masked)),
        3 => (0..12u32).prop_map(Action::Initial),
        1 => (0..8u32).prop_map(Action::Divide),
        2 => (0..2_000u64).prop_map(Action::Deadline),
        6 => prop_oneof![0..10u64, 0..200u64].prop_map(Action::Wait),
    ];
    prop::collection::vec(action, 1..60)
}

proptest! {
    #[test]
    fn any_sequence_of_changes_does_what_the_manual_says_tick_by_tick(actions in actions()) {
        let mut cpu = Cpu::powered_up(0);
        cpu.apic = LocalApic::new(ApicConfig {
            timer_hz: Hertz::new(TSC_HZ),
            ..config(0)
        });
        cpu.write(Register::SVR, 0x1ff);
        let mut model = Stepped::new();
        for action in actions {
            model.act(action);
            match action {
                Action::Lvt(mode, masked) => {
                    let mask = if masked { LVT_MASKED } else { 0 };
                    cpu.write(Register::LVT_TIMER, 0x40 | mode << 17 | mask);
                }
                Action::Initial(count) => cpu.write(Register::INITIAL_COUNT, count),
                Action::Divide(configuration) => {
                    cpu.write(Register::DIVIDE, configuration & 3 | (configuration & 4) << 1);
                }
                Action::Deadline(deadline) => cpu.apic.set_tsc_deadline(cpu.now, deadline),
                Action::Wait(ticks) => {
                    cpu.now = at(cpu.now.timer.0 + ticks);
                    // As its owner does: an expiry that it is not told of costs nothing.
                    if cpu.apic.next_deadline().is_some_and(|due| due <= cpu.now.timer) {
                        cpu.apic.expire(cpu.now);
                    }
                }
            }
            let interrupted = core::mem::take(&mut model.interrupted);
            prop_assert_eq!(cpu.handle().is_some(), interrupted, "{:?}", action);
            prop_assert_eq!(cpu.read(Register::CURRENT_COUNT), model.current);
            prop_assert_eq!(cpu.read(Register::INITIAL_COUNT), model.initial);
            prop_assert_eq!(cpu.apic.tsc_deadline(cpu.now), model.deadline);
            prop_assert_eq!(
                cpu.apic.next_deadline().map(|due| due.0),
                model.next_interrupt()
            );
        }
    }
}
