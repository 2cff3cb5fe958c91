//! Targets that are held and parked, and what wakes them.

use arch::gpr::{RAX, RCX, RDX};
use devices::apic_message::DeliveryMode::Fixed;
use devices::clock::{Course, Rate, Rates};
use vmx::event::Event as GuestEvent;

use super::*;
use crate::machine::host_time::fake::{self, set};
use crate::suppression::order::Policy;
use crate::suppression::snapshot::Limit;
use crate::vcpu::backend::exit::{Exit, InterceptedException};
use crate::vcpu::backend::fake::{FakeCpu, Stay as GuestStay};
use crate::vcpu::fixture::{OTHER, TARGET, at, load, send, suppress, vcpu, vcpus, with_processes};

const MS: u64 = 1_000_000;
const CODE: u64 = 0x40_1000;

/// A VCPU whose guest has switched to a target of factor `n`, in user mode.
fn with_target(vcpu: Vcpu<FakeCpu>, n: u32) -> Vcpu<FakeCpu> {
    let mut vcpu = with_processes(vcpu);
    suppress(vcpu.vm(), TARGET, n, Policy::Bounded);
    vcpu.then(GuestStay::until(10, Exit::Cpuid));
    vcpu.then(load(TARGET));
    vcpu.then(GuestStay::until(10, Exit::Cpuid).having(|cpu| {
        cpu.set_cpl(3);
        cpu.rip = CODE;
    }));
    vcpu
}

/// The time that the guest was in the guest, in ticks.
fn time_in_guest(vcpu: &Vcpu<FakeCpu>) -> u64 {
    vcpu.statistics().guest_ticks()
}

/// Runs `vcpu` until it comes off its CPU by itself, and returns until when.
fn parked(vcpu: &mut Vcpu<FakeCpu>) -> HostTicks {
    match vcpu.run_for(20 * MS) {
        RunExit::Delayed(until) => until,
        other => panic!("{other:?}"),
    }
}

/// The same until it is parked for its budget, and not for a moment because the clock is ahead.
fn parked_for_budget(vcpu: &mut Vcpu<FakeCpu>) -> HostTicks {
    loop {
        let until = parked(vcpu);
        if limit(vcpu) != Limit::Lead {
            return until;
        }
        set(until);
    }
}

/// What limits the target.
fn limit(vcpu: &Vcpu<FakeCpu>) -> Limit {
    let snapshot = vcpu.vm().suppression.lock().snapshot(host_now());
    snapshot.targets[0].limit
}

#[test]
fn a_target_is_parked_for_a_moment_where_the_clock_is_far_ahead() {
    let mut vcpu = with_target(vcpu(), 1000);
    let until = parked(&mut vcpu);
    assert_eq!(limit(&vcpu), Limit::Lead);
    assert!((3 * MS..6 * MS).contains(&until.since(host_now())));
    let lead = |vcpu: &Vcpu<FakeCpu>| vcpu.vm().suppression.lock().lead(host_now()).most();
    assert!(lead(&vcpu) <= 15 * MS as i64);
    set(until);
    parked(&mut vcpu);
    assert!(lead(&vcpu) <= 15 * MS as i64, "still");
}

#[test]
fn a_target_that_is_alone_has_its_budget_and_is_parked() {
    let mut vcpu = with_target(vcpu(), 1000);
    let until = parked_for_budget(&mut vcpu);
    assert!(until > host_now());
    let had = time_in_guest(&vcpu);
    assert!((MS / 2..=MS).contains(&had), "{had}");
    let snapshot = vcpu.vm().suppression.lock().snapshot(host_now());
    assert!(snapshot.lead.most() <= 1_000 * MS as i64);
    assert_ne!(snapshot.targets[0].limit, Limit::Clock);
}

#[test]
fn a_target_that_is_on_a_cpu_again_is_entered_with_a_fast_clock() {
    let mut vcpu = with_target(vcpu(), 1000);
    assert!(matches!(vcpu.run_for(5_000), RunExit::Preempted));
    for turn in 0..3 {
        let rates = vcpu.vm().board.lock().clock.rates();
        assert!(!rates.is_fast(), "{turn}: {rates:?}");
        let entries = vcpu.cpu.entries.len();
        assert!(matches!(vcpu.run_for(1_000), RunExit::Preempted));
        let first = &vcpu.cpu.entries[entries];
        assert!(first.tsc.multiplier > 900 * Rate::ONE.bits(), "{turn}");
    }
}

/// The time for which others have run before a target is seen, in ticks.
const OTHERS_HAD: u64 = 40 * MS;

/// A VCPU that has just been seen to run a target, whose clock is about to be fast, while `others` run.
fn with_target_seen(others: &mut [Vcpu<FakeCpu>], vcpu: Vcpu<FakeCpu>) -> Vcpu<FakeCpu> {
    let mut vcpu = with_processes(vcpu);
    suppress(vcpu.vm(), TARGET, 1000, Policy::Bounded);
    for other in others {
        other.activity = crate::vcpu::Activity::Running;
        other.note_cpu(true);
    }
    vcpu.note_cpu(true);
    vcpu.cpu.cr3 = TARGET;
    vcpu.cpu.set_cpl(3);
    set(at(OTHERS_HAD));
    vcpu.follow(at(OTHERS_HAD));
    vcpu
}

/// Checks what counts, in guest time, of an exit that takes `took` ticks and in which a switch to a target is seen,
/// where `others` run as well.
#[track_caller]
fn counts_of_an_exit(took: u64, others: &mut [Vcpu<FakeCpu>], vcpu: Vcpu<FakeCpu>, most: i64) {
    let mut vcpu = with_target_seen(others, vcpu);
    let stop_at = vcpu.observer.directive.stop_at;
    fake::advance(took);
    vcpu.follow_suppression();
    let vm = vcpu.vm();
    let factor = vm.board.lock().clock.rates().counter.bits() / Rate::ONE.bits();
    assert!(factor > 1, "{took}");
    let lead = vm.suppression.lock().lead(host_now()).most();
    assert!((most * 99 / 100..=most).contains(&lead), "{took}: {lead}");
    // Its turn ends at the same lead.
    let late = vcpu.observer.directive.stop_at.since(stop_at);
    let counted = lead.unsigned_abs() / (factor - 1);
    assert!(late.abs_diff(took - counted) <= 1, "{took}: {late}");
}

#[test]
fn an_exit_that_switches_to_a_target_counts_for_a_moment_of_guest_time_however_long_it_is() {
    for (took, most) in [
        (2_000, 2 * MS as i64),
        (20_000, 10 * MS as i64),
        (1_000_000, 10 * MS as i64),
    ] {
        counts_of_an_exit(took, &mut [], vcpu(), most);
    }
}

#[test]
fn it_counts_for_no_more_where_the_clock_catches_up_before() {
    let mut vcpu = with_target_seen(&mut [], vcpu());
    let ninth = Rate::from_bits(Rate::ONE.bits() / 8 * 9).unwrap();
    let rates = Rates {
        counter: ninth,
        timer: ninth,
    };
    let vm = vcpu.vm().clone();
    vm.board
        .lock()
        .clock
        .set_course(at(OTHERS_HAD), Course::at(rates));
    fake::advance(1_000_000);
    vcpu.follow_suppression();
    let lead = vm.suppression.lock().lead(host_now()).most();
    assert!((9 * MS as i64..=10 * MS as i64).contains(&lead), "{lead}");
}

#[test]
fn an_exit_of_a_target_that_runs_on_counts_for_no_more_than_one_in_which_it_comes_in() {
    let mut vcpu = with_target_seen(&mut [], vcpu());
    vcpu.follow_suppression();
    // It loads its root again, which is told, and that takes long.
    set(at(OTHERS_HAD + 1_000));
    vcpu.observer.loaded_cr3 = Some(TARGET);
    vcpu.follow(at(OTHERS_HAD + 1_000));
    fake::advance(1_000_000);
    vcpu.follow_suppression();
    let vm = vcpu.vm();
    assert!(vm.board.lock().clock.rates().is_fast());
    let lead = vm.suppression.lock().lead(host_now()).most();
    assert!((10 * MS as i64..=11 * MS as i64).contains(&lead), "{lead}");
}

#[test]
fn it_counts_for_half_a_tick_at_most_where_another_vcpu_runs_that_sees_it_pass() {
    for took in [20_000, 1_000_000] {
        let mut both = vcpus(2);
        let first = both.remove(0);
        counts_of_an_exit(took, &mut both, first, 2 * MS as i64);
    }
}

#[test]
fn an_exit_counts_in_full_where_the_clock_is_far_ahead_however_little_others_have_had() {
    let mut vcpu = with_target(vcpu(), 1000);
    parked_for_budget(&mut vcpu);
    let now = host_now();
    let mut suppression = vcpu.vm().suppression.lock();
    assert!(suppression.lead(now).most() > 100 * MS as i64);
    let factor = suppression.clock().rates.counter.bits() / Rate::ONE.bits();
    let from = suppression.fast_from(now, HostTicks(0));
    assert_eq!(now.since(from) * factor.max(1), 10 * MS);
}

#[test]
fn a_fast_clock_that_others_see_is_stopped_when_a_timer_has_called_the_target_out() {
    for (count, goes_on) in [(1, true), (2, false)] {
        let mut rest = vcpus(count);
        let first = rest.remove(0);
        let mut vcpu = with_target_seen(&mut rest, first);
        vcpu.follow_suppression();
        let vm = vcpu.vm().clone();
        let is_fast = || vm.board.lock().clock.rates().is_fast();
        assert!(is_fast());
        // Its timers are looked at, and one is not due yet.
        vcpu.time.deadline = at(OTHERS_HAD + 1_000);
        set(at(OTHERS_HAD + 999));
        vcpu.pending |= Requests::TIMERS;
        vcpu.process_requests(at(OTHERS_HAD + 999), vm.requests(0))
            .unwrap();
        assert!(is_fast(), "{count}");
        vcpu.time.deadline = at(OTHERS_HAD + 1_000);
        set(at(OTHERS_HAD + 1_000));
        vcpu.pending |= Requests::TIMERS;
        vcpu.process_requests(at(OTHERS_HAD + 1_000), vm.requests(0))
            .unwrap();
        assert_eq!(is_fast(), goes_on, "{count}");
        // Nothing interrupts it, and so it is asked soon.
        assert_eq!(
            vcpu.observer.directive.look_at <= at(OTHERS_HAD + 1_000),
            !goes_on
        );
    }
}

#[test]
fn the_clock_is_not_fast_while_the_cpu_does_something_else_than_to_hold_a_target() {
    let mut vcpu = with_target(vcpu(), 4000);
    let mut held = 0;
    for turn in 0..20_000 {
        if turn % 500 == 0 {
            std::eprintln!(
                "{turn} {:?} {:?} {:?}",
                limit(&vcpu),
                vcpu.observer.directive.stay,
                vcpu.vm().suppression.lock().lead(host_now()).most()
            );
        }
        if let RunExit::Delayed(until) = vcpu.run_for(300) {
            set(until);
        } else if vcpu.observer.directive.stay == Stay::Hold {
            held += 1;
            let rates = vcpu.vm().board.lock().clock.rates();
            assert!(!rates.is_fast(), "{turn}: {rates:?}");
        }
    }
    assert!(held > 100, "{held}");
}

#[test]
fn an_interrupt_wakes_a_parked_target_and_its_handler_runs() {
    let mut vcpu = with_target(vcpu(), 1000);
    parked_for_budget(&mut vcpu);
    let entries = vcpu.cpu.entries.len();
    let vm = vcpu.vm().clone();
    assert!(matches!(vcpu.run_for(10), RunExit::Delayed(_)));
    assert_eq!(vcpu.cpu.entries.len(), entries, "nothing wakes it");

    send(&vm, Fixed, 0x40);
    let resumes = InterceptedException {
        event: GuestEvent::exception(arch::ExceptionVector::Debug, None),
        nmi_unblocked: false,
        debug_causes: 0b1,
    };
    vcpu.then(
        GuestStay::until(2_000, Exit::Exception(resumes)).having(|cpu| {
            assert_eq!(cpu.debug_addresses[0], cpu.rip);
            cpu.rflags |= RFlags::INTERRUPT_FLAG.bits();
        }),
    );
    assert!(
        matches!(vcpu.run_for(MS), RunExit::Delayed(_)),
        "parked again"
    );
    let handler = vcpu.cpu.last_entry();
    assert_eq!(vcpu.cpu.entries.len(), entries + 1, "for the handler alone");
    assert_eq!(handler.event, Some(GuestEvent::interrupt(0x40)));
    assert!(handler.tsc.multiplier <= Rate::ONE.bits());
}

#[test]
fn a_switch_in_the_handler_lets_others_run_on() {
    let mut vcpu = with_target(vcpu(), 1000);
    parked_for_budget(&mut vcpu);
    send(&vcpu.vm().clone(), Fixed, 0x40);
    vcpu.then(load(OTHER).having(|cpu| {
        cpu.gprs[RAX] = OTHER;
        cpu.set_cpl(0);
        cpu.rflags |= RFlags::INTERRUPT_FLAG.bits();
    }));
    vcpu.then(GuestStay::until(10, Exit::Cpuid).having(|cpu| cpu.set_cpl(3)));
    assert_eq!(vcpu.run_for(3 * MS), RunExit::Preempted);
    assert_eq!(vcpu.cpu.cr3, OTHER);
}

#[test]
fn a_release_wakes_a_parked_target() {
    let mut vcpu = with_target(vcpu(), 1000);
    parked_for_budget(&mut vcpu);
    let vm = vcpu.vm().clone();
    vm.suppression.lock().release_all();
    vm.suppression_changed();
    let before = time_in_guest(&vcpu);
    assert_eq!(vcpu.run_for(MS), RunExit::Preempted);
    assert!(time_in_guest(&vcpu) - before > MS * 9 / 10);
    // The lead is given back, slowly at first.
    assert!(vcpu.cpu.last_entry().tsc.multiplier < Rate::ONE.bits());
}

#[test]
fn what_the_clock_gains_is_given_back_while_others_run() {
    let mut vcpu = with_target(vcpu(), 1000);
    vcpu.then(GuestStay::until(4_000, Exit::Cpuid));
    vcpu.then(load(OTHER));
    assert_eq!(vcpu.run(at(20 * MS)), RunExit::Preempted);
    let lead = vcpu.vm().suppression.lock().lead(host_now()).most();
    assert!(lead.unsigned_abs() < MS / 20, "{lead}");
    let rates: alloc::vec::Vec<_> = vcpu
        .cpu
        .entries
        .iter()
        .map(|entry| entry.tsc.multiplier)
        .collect();
    assert!(rates.contains(&(1000 << 48)));
    let half = Rate::ONE.bits() / 2;
    assert!(rates.iter().any(|rate| (half / 4..=half).contains(rate)));
    assert_eq!(rates.last(), Some(&(1 << 48)));
}

/// Has `vcpu` set its timer to `due`, in guest time, and fall asleep.
fn sleep_until(vcpu: &mut Vcpu<FakeCpu>, due: u64) {
    const LVT_TIMER: u16 = arch::apic::Register::LVT_TIMER.offset();
    const TSC_DEADLINE_MODE: u64 = 2 << 17;
    vcpu.activity = crate::vcpu::Activity::Running;
    vcpu.with_devices(host_now(), |_, devices| {
        let now = devices.now;
        let (lapic, mut messages) = devices.lapic();
        lapic.mmio_write(now, LVT_TIMER, 4, TSC_DEADLINE_MODE | 0x60, &mut messages);
    });
    vcpu.then(GuestStay::until(10, Exit::Wrmsr).having(move |cpu| {
        cpu.gprs[RCX] = u64::from(arch::msr::IA32_TSC_DEADLINE);
        cpu.gprs[RAX] = due & 0xffff_ffff;
        cpu.gprs[RDX] = due >> 32;
    }));
    vcpu.then(GuestStay::until(10, Exit::Hlt));
    assert_eq!(vcpu.run_for(MS), RunExit::Halted);
}

#[test]
fn who_is_awake_keeps_time_for_those_that_sleep() {
    let mut both = vcpus(2);
    let (mut sleeper, runner) = (both.pop().unwrap(), both.pop().unwrap());
    let mut runner = with_target(runner, 1000);
    sleep_until(&mut sleeper, 8 * MS);
    let vm = runner.vm().clone();
    assert!(!vm.requests(1).are_pending());
    // 8 ms of guest time are 8 us under the fast clock.
    runner.run(at(20_000));
    assert!(vm.requests(1).are_pending());
    assert!(host_now() < at(MS));
}

#[test]
fn a_vcpu_that_has_fallen_asleep_while_the_clock_was_slow_is_woken_in_time_when_it_is_not_any_more()
{
    let mut both = vcpus(2);
    let (mut sleeper, runner) = (both.pop().unwrap(), both.pop().unwrap());
    let mut runner = with_target(runner, 1000);
    let vm = runner.vm().clone();
    let clock = || {
        let clock = &vm.board.lock().clock;
        (clock.now(host_now()).timer.0, clock.rates())
    };
    runner.run_for(8_000);
    runner.then(load(OTHER));
    runner.then(GuestStay::until(10, Exit::Cpuid).having(|cpu| cpu.set_cpl(3)));
    runner.run_for(1_000);
    let (now, slow) = clock();
    assert!(slow.counter < Rate::ONE, "it gives back");
    let due = now + 4 * MS;
    sleep_until(&mut sleeper, due);
    let (mut now, mut rates) = clock();
    while now < due {
        assert!(
            !vm.requests(1).are_pending(),
            "who asks it to wake believes that it has been asked already"
        );
        runner.run_for(MS / 16);
        (now, rates) = clock();
    }
    assert_eq!(rates, devices::clock::Rates::REAL_TIME);
    assert!(vm.requests(1).are_pending());
}
