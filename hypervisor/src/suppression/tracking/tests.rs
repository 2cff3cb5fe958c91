//! What VCPUs report, and what the clock does under the paper's policy, which shows most directly
//! when a target is taken to run.

use std::vec::Vec;

use devices::clock::{Course, Rates};
use devices::time::{Hertz, HostTicks};

use super::super::address_space::{Root, RootFormat};
use super::super::handler::Context;
use super::super::kernel_thread::Thread;
use super::super::order::{Defaults, Follow, Order, Policy};
use super::super::{Directive, Event, Factor, Factors, Observation, Stay, Suppression};
use super::SWITCH;
use crate::test_ram::TestRam;

const TSC: Hertz = Hertz::new(1_000_000_000);
const FORMAT: RootFormat = RootFormat::Long;
const TARGET: u64 = 0x1000;
const ALIAS: u64 = 0x2000;
const OTHER: u64 = 0x3000;

const KERNEL: Context = Context {
    user_mode: false,
    interruptible: true,
    rsp: 0xffff_c900_0000_3e00,
};
const USER: Context = Context {
    user_mode: true,
    interruptible: true,
    rsp: 0x7fff_0000_0000,
};

fn root(cr3: u64) -> Root {
    Root::new(cr3, FORMAT)
}

fn factors(n: u32) -> Factors {
    Factors::both(Factor::new(n).unwrap())
}

fn fast() -> Rates {
    factors(1000).rates()
}

fn paper(factors: Factors) -> Order {
    Order {
        policy: Policy::Paper,
        ..Order::new(factors, Defaults::default())
    }
}

/// A root that has just been loaded, in the kernel.
fn running(cr3: u64) -> Observation {
    Observation {
        root: Some((root(cr3), FORMAT)),
        loaded: true,
        halted: false,
        context: KERNEL,
        thread: Thread::Unknown,
        not_resumed: false,
    }
}

/// The same some time later.
fn still(cr3: u64) -> Observation {
    Observation {
        loaded: false,
        ..running(cr3)
    }
}

/// The same, but in user mode.
fn in_user_mode(observation: Observation) -> Observation {
    Observation {
        context: USER,
        ..observation
    }
}

struct Scene {
    ram: TestRam,
    suppression: Suppression,
    /// The time for which each VCPU has waited for its CPU, in ticks.
    waited: u64,
}

impl Scene {
    /// A target with two roots, and another process, in a VM of `vcpus` VCPUs on as many CPUs.
    fn new(vcpus: usize) -> Self {
        let ram = TestRam::new(0x10000);
        for at in [TARGET, ALIAS] {
            ram.write_u64(at + 8 * 85, 0xa067);
        }
        ram.write_u64(OTHER + 8 * 85, 0xb067);
        let suppression = Suppression::new(Defaults::default(), vcpus, TSC, HostTicks(0));
        let mut scene = Self {
            ram,
            suppression,
            waited: 0,
        };
        for vcpu in 0..vcpus {
            scene.at(0, vcpu, Event::OnCpu(USER));
        }
        scene.suppress(TARGET, paper(factors(1000)));
        scene
    }

    fn suppress(&mut self, cr3: u64, order: Order) {
        self.suppression
            .suppress(&self.ram, root(cr3), FORMAT, order, &[], HostTicks(0))
            .unwrap();
    }

    fn at(&mut self, now: u64, vcpu: usize, event: Event) -> Directive {
        self.suppression
            .note_cpu_time(vcpu, now.saturating_sub(self.waited));
        let now = HostTicks(now);
        let directive = self.suppression.report(&self.ram, vcpu, event, now);
        self.suppression.clock_changed(now, 0);
        directive
    }

    /// The rates after VCPU 0 has been seen to do this.
    fn seen(&mut self, now: u64, observation: Observation) -> Rates {
        self.at(now, 0, Event::Seen(observation)).clock.rates
    }
}

#[test]
fn the_clock_is_fast_while_the_target_runs_under_either_root() {
    let mut scene = Scene::new(1);
    assert_eq!(scene.seen(1, running(OTHER)), Rates::REAL_TIME);
    assert_eq!(scene.seen(2, running(TARGET)), fast());
    assert_eq!(scene.seen(3, running(ALIAS)), fast());
    assert_eq!(scene.seen(4, running(OTHER)), Rates::REAL_TIME);
    assert_eq!(scene.seen(5, running(ALIAS)), fast());
}

#[test]
fn a_handler_that_runs_when_its_process_becomes_a_target_ends_in_real_time() {
    let mut scene = Scene::new(1);
    assert_eq!(scene.seen(1, still(OTHER)), Rates::REAL_TIME);
    scene.suppress(OTHER, paper(factors(1000)));
    let named = scene.at(2, 0, Event::Seen(still(OTHER)));
    assert_eq!(named.clock.rates, Rates::REAL_TIME);
    assert!(
        !named.handler_runs,
        "what it has interrupted is elsewhere: where it is now it goes on at once"
    );
    assert_eq!(scene.seen(3, still(OTHER)), Rates::REAL_TIME);
    let back = Observation {
        context: USER,
        ..still(OTHER)
    };
    assert_eq!(scene.seen(4, back), fast());
}

#[test]
fn an_interrupt_of_user_mode_ends_a_handler_that_had_begun_before() {
    let mut scene = Scene::new(1);
    scene.seen(1, still(OTHER));
    scene.suppress(OTHER, paper(factors(1000)));
    scene.seen(2, still(OTHER));
    let next = scene.at(3, 0, Event::Interrupted(USER, Thread::User));
    assert!(next.handler_runs, "its end can be seen");
}

#[test]
fn a_target_whose_processor_waits_for_a_cpu_does_not_speed_the_clock_up() {
    let mut scene = Scene::new(1);
    scene.seen(1, running(TARGET));
    assert_eq!(scene.at(2, 0, Event::OffCpu).clock.rates, Rates::REAL_TIME);
    assert_eq!(scene.at(3, 0, Event::OnCpu(KERNEL)).clock.rates, fast());
    let halted = Observation {
        halted: true,
        ..still(TARGET)
    };
    scene.seen(4, halted);
    scene.at(5, 0, Event::OffCpu);
    assert_eq!(
        scene.at(6, 0, Event::OnCpu(KERNEL)).clock.rates,
        Rates::REAL_TIME
    );
}

#[test]
fn a_target_that_comes_to_a_cpu_where_it_takes_no_interrupts_is_not_kept_out_there() {
    let mut scene = Scene::new(1);
    scene.suppress(TARGET, Order::new(factors(1000), Defaults::default()));
    let in_user_mode = in_user_mode(running(TARGET));
    scene.seen(1, in_user_mode);
    // It has had twice its budget.
    let held = scene.at(2_000_000, 0, Event::Seen(still(TARGET)));
    assert_ne!(held.stay, Stay::Run);
    scene.at(2_000_001, 0, Event::OffCpu);
    let back = scene.at(2_000_002, 0, Event::OnCpu(KERNEL));
    assert_ne!(back.stay, Stay::Run);
    // No interrupt would let it go on.
    scene.at(2_000_003, 0, Event::OffCpu);
    let deaf = Context {
        interruptible: false,
        ..KERNEL
    };
    let back = scene.at(2_000_004, 0, Event::OnCpu(deaf));
    assert_eq!(back.stay, Stay::Run);
    assert!(back.report_when_interruptible);
}

/// The time from which on no copies of the target are expected.
const ALL_ARE_KNOWN: u64 = 2 * TSC.get();

#[test]
fn exits_count_in_full_while_members_may_not_be_known() {
    let mut scene = Scene::new(1);
    scene.seen(1, running(TARGET));
    scene.seen(2, running(OTHER));
    scene.seen(1_000, running(TARGET));
    let from = scene
        .suppression
        .fast_from(HostTicks(100_000), HostTicks(0));
    assert_eq!(from, HostTicks(90_000));
}

#[test]
fn exits_count_for_no_more_guest_time_than_two_thirds_of_what_others_have_had() {
    let mut scene = Scene::new(1);
    let mut now = ALL_ARE_KNOWN;
    scene.seen(now, running(TARGET));
    for (had, counts) in [
        (1_000_000, 666u64),
        (8_000_000, 5_333),
        (90_000_000, 10_000),
    ] {
        scene.seen(now + 1, running(OTHER));
        now += 1 + had;
        assert!(scene.seen(now, running(TARGET)).is_fast());
        // It took long, and the next one as well.
        for counts in [counts, if had > 20_000_000 { 10_000 } else { 0 }] {
            now += 20_000;
            let from = scene.suppression.fast_from(HostTicks(now), HostTicks(0));
            assert!(
                counts.abs_diff(now - from.0) <= 1,
                "{had}: {}",
                now - from.0
            );
        }
    }
}

#[test]
fn exits_count_for_more_where_turns_take_much_of_the_little_that_a_vm_has_of_its_cpu() {
    const TURN: u64 = 40_000;
    let counts = |waits| {
        let mut scene = Scene::new(1);
        let mut now = ALL_ARE_KNOWN;
        for _ in 0..100 {
            now += TURN;
            scene.seen(now, running(OTHER));
            // Turns, which are short, are hardly ever waited in.
            now += 300 * TURN;
            scene.waited += waits;
            scene.seen(now, running(TARGET));
        }
        let from = scene
            .suppression
            .fast_from(HostTicks(now + TURN), HostTicks(0));
        now + TURN - from.0
    };
    assert_eq!(counts(0), 2_000, "the least");
    assert!(counts(200 * TURN) > 5_000, "of a third of the CPU");
}

#[test]
fn exits_count_for_no_more_than_everybody_takes_for_right() {
    let mut scene = Scene::new(1);
    scene.suppress(TARGET, Order::new(factors(1000), Defaults::default()));
    let user = in_user_mode(running(TARGET));
    let since = ALL_ARE_KNOWN;
    assert!(scene.seen(since, user).is_fast());
    // 15 ms are right.
    for (fast_for, counts) in [(1_000, 10_000), (9_000, 6_000), (14_000, 1_000)] {
        let now = HostTicks(since + fast_for);
        let mut then = scene.suppression.clone();
        then.time.advance(now);
        let counted = now.since(then.fast_from(now, HostTicks(0)));
        assert!(counted.abs_diff(counts) < 300, "{fast_for}: {counted}");
    }
}

#[test]
fn what_a_scheduler_takes_to_switch_to_a_target_that_is_then_stopped_is_not_the_targets() {
    let mut scene = Scene::new(1);
    scene.suppress(TARGET, Order::new(factors(1000), Defaults::default()));
    let user = in_user_mode(still(TARGET));
    let deaf = Observation {
        context: Context {
            interruptible: false,
            ..KERNEL
        },
        ..running(TARGET)
    };
    let used = |scene: &mut Scene| scene.suppression.snapshot(HostTicks(0)).targets[0].used;
    scene.seen(1, running(OTHER));
    // One that is let run has had it all, and so has one that does not come out of the kernel.
    scene.seen(1_000, running(TARGET));
    scene.seen(3_000, user);
    scene.seen(4_000, running(OTHER));
    assert_eq!(used(&mut scene), 3_000);
    scene.seen(4_100, running(TARGET));
    scene.seen(4_800, running(OTHER));
    assert_eq!(used(&mut scene), 3_700);
    // It has more than its budget.
    scene.seen(5_000, running(TARGET));
    scene.seen(6_000, user);
    scene.seen(2_006_000, running(OTHER));
    let before = used(&mut scene);
    let mut now = 2_100_000;
    for _ in 0..10 {
        let switched = scene.at(now, 0, Event::Seen(deaf));
        assert!(switched.report_when_interruptible);
        let back = scene.at(now + 2_000, 0, Event::Seen(user));
        assert_ne!(back.stay, Stay::Run);
        scene.seen(now + 50_000, running(OTHER));
        now += 100_000;
    }
    assert_eq!(used(&mut scene), before);
}

#[test]
fn time_without_a_cpu_is_none_that_a_kernel_has_had_to_switch() {
    let mut scene = Scene::new(1);
    scene.suppress(TARGET, Order::new(factors(1000), Defaults::default()));
    let user = in_user_mode(running(TARGET));
    assert!(scene.seen(10, user).is_fast());
    assert!(scene.seen(30_000, still(TARGET)).is_fast());
    scene.at(40_000, 0, Event::Interrupted(KERNEL, Thread::Unknown));
    let back = scene.at(46_000, 0, Event::Resumed(KERNEL));
    assert!(!back.clock.rates.is_fast(), "it is about to switch");
    // It is not entered: it has to leave its CPU, which the report was in the way of.
    scene.suppression.note_own_time(0, 9_000);
    scene.at(55_000, 0, Event::OffCpu);
    let back = scene.at(500_000, 0, Event::OnCpu(KERNEL));
    assert!(!back.clock.rates.is_fast(), "it has not got on since");
    assert!(scene.seen(520_000, still(TARGET)).is_fast());
}

#[test]
fn the_handler_of_an_interrupt_runs_in_real_time() {
    let mut scene = Scene::new(1);
    let user = in_user_mode(running(TARGET));
    assert_eq!(scene.seen(10, user), fast());
    let handler = scene.at(20, 0, Event::Interrupted(USER, Thread::Unknown));
    assert_eq!(handler.clock.rates, Rates::REAL_TIME);
    assert!(handler.handler_runs, "its end is to be reported");
    assert!(handler.look_at < HostTicks(u64::MAX), "and looked for");
    assert_eq!(scene.seen(4_000, still(TARGET)), Rates::REAL_TIME);
    let back = scene.at(5_000, 0, Event::Resumed(USER));
    assert_eq!((back.clock.rates, back.handler_runs), (fast(), false));
    scene.at(6_000, 0, Event::Interrupted(USER, Thread::Unknown));
    let late = scene.at(7_000, 0, Event::Seen(still(TARGET)));
    assert_eq!(late.clock.rates, Rates::REAL_TIME);
    assert_eq!(
        scene.seen(10_000_000, still(TARGET)),
        fast(),
        "no handler takes so long"
    );
}

/// Has handlers interrupt a target that runs, whose clock is a thousand times as fast: each is told how long it takes, and
/// the next one comes `pause` ticks after its end. Returns by how much timers are delayed after each.
fn delays_of_timers(pause: u64, lengths: impl Iterator<Item = u64>) -> Vec<u64> {
    let mut scene = Scene::new(1);
    scene.seen(1, running(TARGET));
    let mut now = 10;
    let delay = |length: u64| {
        scene.at(now, 0, Event::Interrupted(USER, Thread::Unknown));
        let end = now + length;
        let after = scene.at(end, 0, Event::Resumed(USER));
        now = end + pause;
        after.timers_from.since(HostTicks(end))
    };
    lengths.map(delay).collect()
}

/// The length of a usual handler.
const USUAL: u64 = 2_000;

#[test]
fn timers_by_the_microsecond_are_delayed_by_no_more_than_what_handlers_usually_take() {
    // 20 us of guest time apart: one in some fifty may be for others.
    const PAUSE: u64 = 20;
    let usual = delays_of_timers(PAUSE, (0..100).map(|_| USUAL));
    let delayed = usual[50..].iter().filter(|delay| **delay == USUAL / 2);
    assert!(delayed.count() >= 45, "{usual:?}");
    // The end of the last ones was seen late, as where the processor was busy with something else.
    let late = delays_of_timers(
        PAUSE,
        (0..100).map(|n| if n < 98 { USUAL } else { 1_000_000 }),
    );
    let most = late[98..].iter().max().unwrap();
    assert!((USUAL / 2..=2 * USUAL).contains(most), "{late:?}");
}

#[test]
fn timers_of_no_more_interrupts_than_a_kernel_s_ticks_are_not_delayed() {
    // 4 ms and 1 ms of guest time apart.
    for pause in [4_000, 1_000] {
        let delays = delays_of_timers(pause, (0..1_000).map(|_| USUAL));
        assert_eq!(delays.iter().max(), Some(&0), "{pause}");
    }
}

#[test]
fn timers_are_delayed_for_no_longer_than_a_tick_of_guest_time() {
    /// Ticks that a tick of most guests, 4 ms, takes at a thousand times the rate.
    const TICK: u64 = 4_000;
    let mut scene = Scene::new(1);
    scene.seen(1, running(TARGET));
    for turn in 1..100 {
        let now = turn * 1_000_000;
        scene.at(now, 0, Event::Interrupted(USER, Thread::Unknown));
        let after = scene.at(now + 20_000, 0, Event::Resumed(USER));
        assert!(after.timers_from.0 <= now + 20_000 + TICK, "{turn}");
    }
}

#[test]
fn a_fast_clock_is_stopped_before_a_vcpu_tells_what_it_has_done() {
    let mut scene = Scene::new(2);
    scene.at(1, 1, Event::Seen(running(OTHER)));
    assert_eq!(scene.seen(2, running(TARGET)), fast());
    assert!(
        !scene.suppression.stop_fast_clock(1, HostTicks(3)),
        "it is not its own"
    );
    assert!(scene.suppression.stop_fast_clock(0, HostTicks(4)));
    assert!(!scene.suppression.clock().rates.is_fast());
    scene.suppression.clock_changed(HostTicks(4), 0);
    assert_eq!(scene.seen(5, still(TARGET)), fast(), "the target runs on");
    let halted = Observation {
        halted: true,
        ..still(OTHER)
    };
    scene.at(6, 1, Event::Seen(halted));
    assert!(
        scene.suppression.stop_fast_clock(0, HostTicks(7)),
        "its own guest sees it"
    );
    assert!(!scene.suppression.stop_fast_clock(0, HostTicks(8)));
}

#[test]
fn whose_root_a_vcpu_has_is_found_out_again_when_no_clock_is_fast_beside_it() {
    const SOON: u64 = TSC.get() / 4_000;
    let mut scene = Scene::new(2);
    let order = Order {
        follow: Follow::All,
        ..paper(factors(1000))
    };
    scene.suppress(TARGET, order);
    scene.at(1, 1, Event::Seen(running(OTHER)));
    assert_eq!(scene.seen(2, running(TARGET)), fast());
    let beside = scene.at(3, 1, Event::Seen(still(OTHER)));
    assert_eq!(beside.judged_until, HostTicks(3 + SOON));
    let other_root = scene.at(4, 1, Event::Seen(running(ALIAS)));
    assert!(!other_root.target_in, "it is not looked at yet");
    scene.seen(5, running(OTHER));
    let after = scene.at(6, 1, Event::Seen(still(ALIAS)));
    assert!(after.target_in);
    let after = scene.at(7, 1, Event::Seen(running(OTHER)));
    assert!(after.judged_until > HostTicks(7 + SOON));
}

#[test]
fn after_a_handler_the_kernel_has_the_time_that_a_switch_takes_before_the_clock_is_fast() {
    let mut scene = Scene::new(1);
    scene.suppress(TARGET, Order::new(factors(1000), Defaults::default()));
    let in_kernel = Observation {
        context: KERNEL,
        ..still(TARGET)
    };
    scene.seen(1, running(TARGET));
    let mut fast_from = |end: u64| {
        scene.at(end - 2_000, 0, Event::Interrupted(KERNEL, Thread::User));
        scene.at(end, 0, Event::Resumed(KERNEL));
        let mut after = (end..).step_by(500).skip(1);
        after
            .find(|now| scene.seen(*now, in_kernel).is_fast())
            .unwrap()
            - end
    };
    let first = fast_from(10_000);
    assert!((8_000..10_000).contains(&first), "{first}");
    // One that does not switch is in something longer.
    fast_from(30_000);
    let third = fast_from(100_000);
    assert!(third > 50_000, "{third}");
}

#[test]
fn an_interrupt_in_a_handler_does_not_make_it_another() {
    let mut scene = Scene::new(1);
    scene.seen(1, running(TARGET));
    scene.at(2, 0, Event::Interrupted(KERNEL, Thread::User));
    let deeper = Context {
        rsp: KERNEL.rsp - 0x300,
        ..KERNEL
    };
    scene.at(3, 0, Event::Interrupted(deeper, Thread::Unknown));
    let softirq = Observation {
        context: deeper,
        ..still(TARGET)
    };
    assert_eq!(scene.seen(4, softirq), Rates::REAL_TIME);
    assert_eq!(
        scene.seen(5, still(TARGET)),
        fast(),
        "the outermost frame goes on"
    );
}

#[test]
fn a_handler_whose_processor_waits_for_a_cpu_goes_on_in_real_time() {
    let mut scene = Scene::new(1);
    let deeper = Observation {
        context: Context {
            interruptible: false,
            ..KERNEL
        },
        ..still(TARGET)
    };
    scene.seen(1, running(TARGET));
    scene.at(2, 0, Event::Interrupted(USER, Thread::Unknown));
    scene.at(3, 0, Event::OffCpu);
    let long = 10_000_000;
    let back = scene.at(long, 0, Event::OnCpu(deeper.context));
    assert_eq!(back.clock.rates, Rates::REAL_TIME, "still in its handler");
    assert_eq!(scene.seen(long + 40_000, still(TARGET)), Rates::REAL_TIME);
    assert_eq!(
        scene.seen(long + 60_000, deeper),
        Rates::REAL_TIME,
        "interrupts are still off"
    );
    assert_eq!(
        scene.seen(long + 60_001, still(TARGET)),
        fast(),
        "none takes so long"
    );
}

#[test]
fn a_halted_processor_that_keeps_the_targets_cr3_runs_in_real_time() {
    let mut scene = Scene::new(1);
    let halted = Observation {
        halted: true,
        ..still(TARGET)
    };
    let back = in_user_mode(still(TARGET));
    assert_eq!(scene.seen(1, running(TARGET)), fast());
    assert_eq!(scene.seen(2, halted), Rates::REAL_TIME);
    assert_eq!(
        scene.seen(3, still(TARGET)),
        Rates::REAL_TIME,
        "a handler of an idle CPU"
    );
    assert_eq!(scene.seen(4, back), fast(), "without a load of CR3");
}

#[test]
fn whose_thread_runs_is_of_no_interest_until_a_kernel_has_had_time_to_switch_again() {
    let mut scene = Scene::new(1);
    let known_for = |directive: Directive| directive.thread_known_for;
    assert_eq!(known_for(scene.at(1, 0, Event::Seen(running(OTHER)))), 0);
    let came_in = scene.at(1_000, 0, Event::Seen(running(TARGET)));
    assert_eq!(known_for(came_in), SWITCH);
    let overrun = Directive {
        stops_in_kernel: true,
        ..came_in
    };
    assert!(!overrun.asks_thread(KERNEL, SWITCH - 1) && overrun.asks_thread(KERNEL, SWITCH));
    // Reports are no time of the kernel's.
    scene.suppression.note_own_time(0, 9_000);
    let later = scene.at(11_000, 0, Event::Seen(still(TARGET)));
    assert_eq!(known_for(later), SWITCH - 1_000);
    let later = scene.at(11_000 + SWITCH, 0, Event::Seen(still(TARGET)));
    assert_eq!(known_for(later), 0);
}

#[test]
fn a_kernel_thread_on_the_targets_cr3_is_not_the_target() {
    let mut scene = Scene::new(1);
    assert_eq!(scene.seen(1, running(TARGET)), fast());
    let thread = |thread| Observation {
        thread,
        ..still(TARGET)
    };
    let answer = scene.at(2, 0, Event::Interrupted(KERNEL, Thread::Kernel));
    assert_eq!(answer.clock.rates, Rates::REAL_TIME);
    assert!(!answer.handler_runs && !answer.target_in);
    assert!(
        answer.report_when_interruptible,
        "the handler may switch to the target"
    );
    let later = scene.at(10_000, 0, Event::Seen(thread(Thread::Kernel)));
    assert_eq!(later.clock.rates, Rates::REAL_TIME);
    assert!(
        later.look_at <= HostTicks(260_000),
        "it is looked at again soon"
    );
    assert_eq!(
        scene.seen(20_000, thread(Thread::User)),
        fast(),
        "a system call of the target's goes on"
    );
}

#[test]
fn a_kernel_that_is_about_to_leave_does_so_after_an_interrupt_however_deep_the_debt() {
    let mut scene = Scene::new(1);
    scene.suppress(TARGET, Order::new(factors(1000), Defaults::default()));
    scene.seen(1, running(TARGET));
    // A thousand times what it may have; and what a debtor gets at a time.
    let second = TSC.get();
    scene.seen(second - 10_000, still(TARGET));
    let stopped = scene.at(second, 0, Event::Seen(still(TARGET)));
    assert_ne!(stopped.stay, Stay::Run);
    let leaves = Context {
        rsp: 0xffff_c900_0000_4000 - 0xd0,
        ..KERNEL
    };
    for context in [KERNEL, leaves] {
        scene.at(second + 10, 0, Event::Interrupted(context, Thread::User));
        let on = scene.at(second + 1_000, 0, Event::Resumed(context));
        assert_eq!(on.stay == Stay::Run, context == leaves, "{context:?}");
    }
    let on = scene.at(second + 1_001, 0, Event::Time);
    assert_eq!(on.stay, Stay::Run);
    assert!(on.look_at <= HostTicks(second + 10_000));
    assert!(!on.clock.rates.is_fast() && on.stops_in_kernel);
    let looked = Observation {
        context: leaves,
        ..still(TARGET)
    };
    let stays = scene.at(second + 10_000, 0, Event::Seen(looked));
    assert_ne!(stays.stay, Stay::Run, "it has had its time");
    let other = Observation {
        thread: Thread::Kernel,
        ..looked
    };
    let other = scene.at(second + 10_001, 0, Event::Seen(other));
    assert!(
        other.stay == Stay::Run && !other.target_in,
        "it was not the target"
    );
}

#[test]
fn what_a_hidden_target_may_have_had_is_charged() {
    let mut scene = Scene::new(1);
    let halted = Observation {
        halted: true,
        ..still(TARGET)
    };
    let back = in_user_mode(still(TARGET));
    scene.seen(1, running(TARGET));
    scene.seen(1, halted);
    scene.at(1_000, 0, Event::Woke);
    scene.seen(51_000, back);
    assert_eq!(
        scene.suppression.snapshot(HostTicks(51_000)).targets[0].used,
        50_000
    );
}

#[test]
fn of_several_vcpus_one_with_a_target_is_enough() {
    let mut scene = Scene::new(2);
    scene.suppress(TARGET, paper(factors(5)));
    scene.suppress(OTHER, paper(factors(7)));
    let mut rates = |at, vcpu, observation| {
        let directive = scene.at(at, vcpu, Event::Seen(observation));
        directive.clock.rates
    };
    let halted = Observation {
        halted: true,
        ..still(OTHER)
    };
    let back = Observation {
        context: USER,
        ..still(OTHER)
    };
    let nobody = Observation {
        root: Some((root(0x5000), FORMAT)),
        ..running(TARGET)
    };
    assert_eq!(rates(0, 1, running(TARGET)), factors(5).rates());
    assert_eq!(rates(1, 0, running(OTHER)), factors(7).rates());
    assert_eq!(rates(2, 0, halted), factors(5).rates());
    assert_eq!(rates(3, 1, nobody), Rates::REAL_TIME);
    assert_eq!(rates(4, 0, back), factors(7).rates());
}

#[test]
fn release_ends_it_at_the_next_observation() {
    let mut scene = Scene::new(1);
    scene.seen(1, running(TARGET));
    assert!(
        scene.suppression.release(root(ALIAS)).is_none(),
        "not seen yet"
    );
    assert!(scene.suppression.release(root(TARGET)).is_some());
    assert_eq!(scene.seen(2, running(TARGET)), Rates::REAL_TIME);
    assert_eq!(scene.suppression.clock(), Course::REAL_TIME);
    assert!(!scene.suppression.is_active());
}

#[test]
fn the_page_of_a_dead_target_does_not_slow_its_next_owner() {
    let mut scene = Scene::new(1);
    scene.seen(1, running(TARGET));
    scene.ram.write_u64(TARGET + 8 * 85, 0);
    scene.seen(2, running(OTHER));
    assert!(
        scene.suppression.targets().is_empty(),
        "seen to be gone when it was left"
    );
    scene.ram.write_u64(TARGET + 8 * 85, 0xc067);
    assert_eq!(scene.seen(3, running(TARGET)), Rates::REAL_TIME);
}
