//! Starting, stopping, pausing and pinning VMs by commands.

use core::ops::ControlFlow;

use super::host::{Host, WEB};
use crate::operator::session::PowerOff;

/// What `vms` says about `web`.
fn state(host: &mut Host) -> alloc::string::String {
    let answer = host.answer("vms");
    let line = answer
        .lines()
        .find(|line| line.starts_with("web "))
        .unwrap();
    line.split_ascii_whitespace().nth(1).unwrap().into()
}

#[test]
fn a_vm_is_paused_and_goes_on() {
    let mut host = Host::new();
    assert_eq!(host.answer("pause web"), "paused\n");
    assert_eq!(state(&mut host), "paused");
    assert_eq!(host.answer("resume web --json"), "{\"done\":\"resumed\"}\n");
    assert_eq!(state(&mut host), "running");
}

#[test]
fn a_vm_is_stopped_and_started_and_what_it_was_can_be_looked_at_meanwhile() {
    let mut host = Host::new();
    assert_eq!(host.answer("stop web"), "stopping\nvm web ended: stopped\n");
    assert_eq!(state(&mut host), "stopping");
    host.work();
    assert_eq!(state(&mut host), "ended");
    assert!(host.answer("ps web").starts_with("CR3 "));
    assert!(host.answer("stats web").starts_with("WHAT "));
    assert_eq!(host.answer("start web"), "starting\n");
    host.work();
    assert_eq!(state(&mut host), "loading");
    host.vms.loaded(WEB);
    assert_eq!(state(&mut host), "running");
}

#[test]
fn a_vm_is_restarted() {
    let mut host = Host::new();
    let before = host.vm(WEB);
    assert_eq!(
        host.answer("restart web"),
        "restarting\nvm web ended: stopped\n"
    );
    host.work();
    assert_eq!(state(&mut host), "loading");
    assert!(!alloc::sync::Arc::ptr_eq(&before, &host.vm(WEB)));
}

#[test]
fn requests_that_a_state_does_not_allow_are_refused_for_one_reason() {
    let mut host = Host::new();
    let refused = |host: &mut Host, line: &str, message: &str| {
        assert_eq!(
            host.answer(line),
            alloc::format!("error: web is {message}: `vms` shows it\n"),
            "{line}"
        );
        let answer = host.answer(&alloc::format!("{line} --json"));
        assert!(
            answer.starts_with("{\"error\":\"wrong_state\","),
            "{answer}"
        );
    };
    refused(&mut host, "resume web", "running, so it cannot be resumed");
    refused(&mut host, "start web", "running, so it cannot be started");
    host.answer("pause web");
    refused(&mut host, "pause web", "paused, so it cannot be paused");
    host.answer("stop web");
    host.work();
    refused(&mut host, "stop web", "ended, so it cannot be stopped");
    refused(&mut host, "pause web", "ended, so it cannot be paused");
}

#[test]
fn a_vm_that_has_never_run_has_no_processes() {
    let mut host = Host::with_vms_defined();
    assert_eq!(state(&mut host), "defined");
    for line in [
        "ps web",
        "stats web",
        "targets web",
        "find web x",
        "trace web",
    ] {
        let answer = host.answer(&alloc::format!("{line} --json"));
        assert!(
            answer.starts_with("{\"error\":\"wrong_state\","),
            "{line}: {answer}"
        );
    }
    assert_eq!(host.answer("targets --json"), "");
}

#[test]
fn vcpus_are_pinned_and_let_go() {
    let mut host = Host::new();
    assert_eq!(host.answer("pin web 0 1"), "pinned\n");
    assert!(host.answer("stats web").contains("\nvcpu0-on-cpu1-pinned "));
    assert_eq!(host.answer("pin web 0 any"), "pinned\n");
    assert!(!host.answer("stats web").contains("pinned"));
    let answer = host.answer("pin web 0 2 --json");
    assert!(answer.starts_with("{\"error\":\"no_cpu\","), "{answer}");
    let answer = host.answer("pin web 1 0 --json");
    assert!(answer.starts_with("{\"error\":\"no_vcpu\","), "{answer}");
}

#[test]
fn the_machine_is_switched_off_after_the_answer() {
    let mut host = Host::new();
    host.types("shutdown");
    host.screen();
    host.keys("\r");
    assert_eq!(host.poll(), ControlFlow::Break(PowerOff));
    host.shows("\nswitching the machine off\n");
}
