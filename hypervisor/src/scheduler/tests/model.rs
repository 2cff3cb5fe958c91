//! The same in all orders, with as little as can go wrong.

use std::sync::PoisonError;

use super::*;
use crate::model;

const SMALL: Size = Size {
    cpus: 2,
    vms: 1,
    vcpus: 1,
    rounds: 1,
    senders: 1,
    messages: 2,
    pins: false,
    pauses: false,
};

/// Checks a scenario, one at a time: they have one set of lines.
fn check(delays: usize, others: usize, scenario: fn()) {
    static CHECKING: std::sync::Mutex<()> = std::sync::Mutex::new(());
    let _checking = CHECKING.lock().unwrap_or_else(PoisonError::into_inner);
    model::check(delays, others, scenario);
}

#[test]
fn no_wake_up_is_lost_while_a_vcpu_blocks() {
    check(2, 2_000, || messages_are_sent(SMALL));
}

#[test]
fn no_wake_up_is_lost_while_vcpus_compete_and_are_moved() {
    check(1, 2_000, || {
        messages_are_sent(Size {
            vms: 2,
            vcpus: 2,
            messages: 4,
            ..SMALL
        });
    });
}

#[test]
fn no_wake_up_is_lost_while_vcpus_are_pinned() {
    check(1, 2_000, || {
        messages_are_sent(Size {
            vcpus: 2,
            rounds: 2,
            pins: true,
            ..SMALL
        });
    });
}

#[test]
fn no_wake_up_is_lost_while_a_vm_is_paused() {
    check(1, 10_000, || {
        messages_are_sent(Size {
            rounds: 2,
            pauses: true,
            ..SMALL
        });
    });
}
