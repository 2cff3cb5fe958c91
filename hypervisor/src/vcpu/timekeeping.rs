//! A VCPU and the VM's clock: the TSC that the guest reads, and the host time at which its
//! next timer is due.
#![forbid(unsafe_code)]

use arch::RFlags;
use devices::clock::Rates;
use devices::time::{HostTicks, Now, TimerTicks};
use devices::tsc::Tsc;
use spin::MutexGuard;

use super::backend::GuestCpu;
use super::{Activity, Vcpu};
use crate::vm::requests::Requests;
use crate::vm::{Board, BoardHost, Vm};

/// The time of a VCPU.
#[derive(Debug)]
pub(super) struct Timekeeping {
    /// The TSC that the guest reads.
    pub(super) tsc: Tsc,
    /// The state of the VM's clock gate when the clock was last applied.
    clock_seen: u64,
    /// The guest time at which the first of the guest's timers that it keeps time for is due.
    pub(super) next_timer: Option<TimerTicks>,
    /// The same in host time; of sleeping VCPUs as well, while the clock may change.
    pub(super) deadline: HostTicks,
}

impl Timekeeping {
    /// Makes the time of a VCPU after power-up.
    pub(super) const fn new() -> Self {
        Self {
            tsc: Tsc::new(),
            clock_seen: 0,
            next_timer: None,
            deadline: HostTicks(u64::MAX),
        }
    }
}

impl<C: GuestCpu> Vcpu<C> {
    /// Shows the VM's counter line as the guest's TSC: after any change of the clock's rates
    /// or of the TSC's offset. Without TSC scaling, RDTSC exits while the rate is not one, and
    /// so does RDMSR of the TSC.
    pub(super) fn apply_clock(&mut self) {
        let vm = &self.vm;
        let clock = &vm.board.lock().clock;
        let scaling = self.time.tsc.scaling(clock.tsc_scaling());
        let at_real_time = clock.rates().counter == Rates::REAL_TIME.counter;
        self.cpu.set_tsc(scaling, at_real_time);
    }

    /// Lets the VM's time go on by the course that its suppression has decided on, on all its
    /// VCPUs at one moment. No lock is held.
    pub(super) fn follow_suppression(&mut self) {
        if let Some(at) = self.vm.follow_suppression(self.index) {
            // What the clock is to reach it reaches later than it was taken to.
            let late = at.since(self.observer.directed_at);
            self.observer.directed_at = at;
            self.observer.directive.delay(late);
        }
        self.follow_clock();
        self.pending |= Requests::TIMERS;
    }

    /// Waits until the clock may be used, and shows it as it is now, if it has changed. Returns
    /// whether it has: timers may be due at other host times then.
    pub(super) fn follow_clock(&mut self) -> bool {
        let changed = self.time.clock_seen != self.vm.clock_gate().state();
        if changed {
            self.time.clock_seen = self.vm.clock_gate().pass(self.vm.requests(self.index));
            self.apply_clock();
        }
        changed
    }

    /// Lets all timers that are due at `host` expire, and finds out when the next one is. Returns
    /// whether one has expired.
    pub(super) fn update_timers(&mut self, host: HostTicks) -> bool {
        self.vm.requests(self.index).note_clock_use(host);
        let mut board = self.vm.board.lock();
        let now = board.clock.now(host);
        let mut next = None;
        let mut expired = false;
        if let Some(deadline) = self.lapic.next_deadline() {
            if deadline <= now.timer {
                self.lapic.expire(now);
                expired = true;
            }
            next = self.lapic.next_deadline();
        }
        // VCPU 0 keeps time for the devices that all VCPUs share.
        if self.index == 0 {
            let next_of_guest = board.chipset.next_deadline();
            if next_of_guest.is_some_and(|deadline| deadline <= now.timer)
                || board.chipset.next_host_deadline() <= host
            {
                board = expire_chipset(&self.vm, board, now, host);
                expired = true;
            }
            next = match (next, board.chipset.next_deadline()) {
                (Some(a), Some(b)) => Some(a.min(b)),
                (a, b) => a.or(b),
            };
        }
        self.time.next_timer = next;
        if self.observer.watching {
            next = self.keep_time_for_sleepers(now, next);
        }
        self.time.deadline = match next {
            Some(deadline) => board.clock.host_deadline(deadline),
            None => HostTicks(u64::MAX),
        };
        if self.index == 0 {
            self.time.deadline = self.time.deadline.min(board.chipset.next_host_deadline());
        }
        expired
    }

    /// Wakes VCPUs whose timers are due. Returns when the next timer is, `own` included.
    fn keep_time_for_sleepers(&self, now: Now, own: Option<TimerTicks>) -> Option<TimerTicks> {
        let mut next = own;
        for (index, due) in self.vm.look.sleepers() {
            if index == self.index {
                continue;
            }
            if due <= now.timer {
                self.vm.look.set_sleeper(index, None);
                self.vm.request(index, Requests::TIMERS);
            } else {
                next = Some(next.map_or(due, |next| next.min(due)));
            }
        }
        next
    }

    /// Sets the deadline of a VCPU that does not run at `host`. If its guest takes no interrupts,
    /// its own timer cannot wake it: what that is due for follows from the time when something
    /// else does.
    pub(super) fn update_deadline_of_halt(&mut self, host: HostTicks) {
        let takes_interrupts = self.activity == Activity::Halted
            && self.cpu.rflags() & RFlags::INTERRUPT_FLAG.bits() != 0;
        if takes_interrupts || self.time.deadline.0 == u64::MAX {
            return;
        }
        let board = self.vm.board.lock();
        self.time.deadline = HostTicks(u64::MAX);
        if self.index == 0 {
            let of_guest = board.chipset.next_deadline();
            let of_guest = of_guest.map_or(HostTicks(u64::MAX), |at| board.clock.host_deadline(at));
            let shared = of_guest.min(board.chipset.next_host_deadline());
            self.time.deadline = shared.max(host);
        }
    }
}

/// Lets the devices that all VCPUs share do what is due at host time `host`, which is `now` for them. Apart, as it
/// is seldom so.
#[inline(never)]
fn expire_chipset<'a>(
    vm: &'a Vm,
    mut board: MutexGuard<'a, Board>,
    now: Now,
    host: HostTicks,
) -> MutexGuard<'a, Board> {
    let mut surroundings = BoardHost::new(vm);
    let mut environment = surroundings.environment(now);
    board.chipset.follow_host_time(host, &mut environment);
    board.chipset.expire(&mut environment);
    let Some(work) = board.chipset.take_work() else {
        return board;
    };
    drop(board);
    vm.run_device_work(&work, host);
    vm.board.lock()
}
