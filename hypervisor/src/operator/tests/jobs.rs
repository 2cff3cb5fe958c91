//! Commands that go on in steps while guests run: `find` and `trace VM show`.

use alloc::string::String;
use alloc::vec::Vec;

use devices::time::HostTicks;
use vmx::addr::GuestPhysAddr;

use super::host::{Host, MS, WEB};
use crate::guest_memory::GuestMemory;
use crate::trace::Event;

/// A process of `web` whose page holds `EVIL` twice, and one that does not.
fn host_with_evil() -> Host {
    let host = Host::new();
    host.wait(10_000);
    host.process(WEB, &[0x1000, 0x2000], 0x8000);
    host.process(WEB, &[0x3000], 0xc000);
    let memory = &host.vm(WEB).ram;
    memory.write(GuestPhysAddr(0x8123), b"EVIL EVIL").unwrap();
    host.has_run(
        WEB,
        500 * MS,
        &[(0x3000, MS, MS), (0x1000, 2 * MS, 2 * MS), (0x2000, MS, MS)],
    );
    host
}

#[test]
fn a_signature_leads_to_its_process() {
    let mut host = host_with_evil();
    assert_eq!(
        host.answer("find web EVIL"),
        "CR3            FIRST AT           MATCHES  ALIASES\n\
         0x1000         0x1123                   2  0x2000\n"
    );
    assert_eq!(
        host.answer("find web 0x4556494c --json"),
        "{\"vm\":\"web\",\"cr3\":\"0x1000\",\"aliases\":[\"0x2000\"],\"address\":\"0x1123\",\
         \"matches\":2,\"complete\":true}\n"
    );
    assert_eq!(
        host.answer("find web 'not there'"),
        "none of 2 address spaces holds it\n"
    );
    assert_eq!(host.answer("find web 'not there' --json"), "");
}

#[test]
fn processes_are_put_together_and_shown_a_little_at_a_time() {
    let mut host = host_with_evil();
    let roots = |answer: &str| -> Vec<String> {
        let words = answer.lines().map(|line| line.split(' ').next());
        words.map(|word| word.unwrap_or_default().into()).collect()
    };
    let at_once = roots(&host.answer("ps web"));
    assert_eq!(at_once, ["CR3", "0x1000", "0x3000"]);
    host.screen();
    host.let_time_pass();
    host.types("ps web\r");
    host.shows("ps web\n");
    let mut shown = String::new();
    for _ in 0..100 {
        host.types("");
        shown += &host.screen();
    }
    let list = shown.strip_suffix("tarpit> ").unwrap();
    assert_eq!(roots(list), at_once);
}

#[test]
fn what_is_typed_meanwhile_waits() {
    let mut host = host_with_evil();
    host.screen();
    host.let_time_pass();
    host.types("find web EVIL\rvms\r");
    host.types("");
    host.shows("find web EVIL\n");
    for _ in 0..10_000 {
        host.types("");
    }
    let screen = host.screen();
    let (found, rest) = screen.split_once("tarpit> ").unwrap();
    assert!(found.ends_with("2  0x2000\n"), "{found}");
    assert!(rest.starts_with("vms\nVM  "), "{rest}");
}

#[test]
fn control_c_ends_it_and_drops_what_was_typed() {
    let mut host = host_with_evil();
    host.screen();
    host.let_time_pass();
    host.types("find web EVIL\r");
    host.types("vms\r\x03");
    host.shows("find web EVIL\n^C\ntarpit> ");
    host.types("");
    host.shows("");
    assert_eq!(host.answer("targets --json"), "");
}

#[test]
fn a_trace_is_recorded_shown_and_forgotten() {
    let mut host = Host::new();
    assert_eq!(
        host.answer("trace web"),
        "web: tracing is off, 0 events kept\n"
    );
    assert_eq!(
        host.answer("trace web on"),
        "web: tracing is on, 0 events kept\n"
    );
    let vm = host.vm(WEB);
    let begin = host.now().0;
    for n in 1..=3 {
        let at = HostTicks(begin + n * MS);
        vm.trace.record(Some(0), Event::Timer, || at);
    }
    assert_eq!(
        host.answer("trace web show"),
        "      TIME us  VCPU  EVENT\n\
        \u{20}    1000.000     0  timer     \n\
        \u{20}    2000.000     0  timer     \n\
        \u{20}    3000.000     0  timer     \n"
    );
    assert_eq!(
        host.answer("trace web show 1 --json"),
        "{\"ns\":3000000,\"vcpu\":0,\"event\":\"timer\"}\n"
    );
    assert_eq!(
        host.answer("trace web off --json"),
        "{\"vm\":\"web\",\"on\":false,\"events\":3}\n"
    );
    assert_eq!(
        host.answer("trace web clear"),
        "web: tracing is off, 0 events kept\n"
    );
    assert_eq!(host.answer("trace web show --json"), "");
}

#[test]
fn a_long_answer_waits_for_the_line() {
    let mut host = Host::new();
    host.answer("trace web on");
    let vm = host.vm(WEB);
    for n in 0..100 {
        vm.trace.record(Some(0), Event::Timer, || HostTicks(n));
    }
    *host.line.stuck.lock() = 5000;
    host.types("trace web show --json\r");
    for _ in 0..1000 {
        host.types("");
    }
    host.shows("trace web show --json\n");
    *host.line.stuck.lock() = 0;
    for _ in 0..1000 {
        host.types("");
    }
    let screen = host.screen();
    assert_eq!(screen.lines().count(), 101);
    assert!(screen.ends_with("\ntarpit> "));
}
