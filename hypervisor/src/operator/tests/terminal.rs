//! The operator's line, and what guests write beside it.

use super::host::{DB, Host, WEB};
use crate::console::Output;
use crate::ids::VcpuId;
use crate::operator::terminal::{AnswerOutput, Unshown};
use crate::vcpu::StopReason;

#[test]
fn wrong_input_is_explained() {
    let mut host = Host::new();
    host.types("supress web 0x1a2b000\r\r");
    host.shows(
        "tarpit> supress web 0x1a2b000\n\
         error: unknown command `supress`: did you mean `suppress`?\n\
         tarpit> \n\
         tarpit> ",
    );
}

#[test]
fn tab_knows_commands_and_vms() {
    let mut host = Host::new();
    host.types("su\tw\t");
    host.shows("tarpit> suppress web ");
    host.types("\x15release db \t");
    assert!(host.screen().ends_with("release db all "));
}

#[test]
fn guests_write_while_the_operator_types() {
    let mut host = Host::new();
    host.wait(1500);
    host.types("ps w");
    host.guest_writes(DB, "hello\n");
    host.types("eb\x03");
    host.shows("tarpit> ps w\r\x1b[K[db   1.500000] hello\ntarpit> ps web^C\ntarpit> ");
}

#[test]
fn no_line_of_an_answer_is_torn_by_what_a_guest_writes_meanwhile() {
    let host = Host::new();
    host.screen();
    let mut unshown = Unshown::default();
    let write = |unshown: &mut Unshown, bytes: &[u8]| {
        AnswerOutput::new(&host.terminal, unshown).write(bytes);
        while unshown.show_line(&host.terminal, false) {}
    };
    write(&mut unshown, b"{\"vm\":");
    host.guest_writes(DB, "hello\n");
    write(&mut unshown, b"\"web\"}");
    write(&mut unshown, b"\r\n");
    write(&mut unshown, b"a last one");
    host.guest_writes(DB, "again\n");
    assert!(unshown.show_line(&host.terminal, true) && unshown.is_empty());
    let screen = host.screen();
    for line in ["] hello\n", "{\"vm\":\"web\"}\n", "] again\n", "a last one"] {
        assert!(screen.contains(line), "{line:?} in {screen:?}");
    }
}

#[test]
fn a_guests_prompt_is_shown_after_a_while() {
    let mut host = Host::new();
    host.guest_writes(WEB, "login: ");
    host.types("");
    host.shows("tarpit> ");
    host.wait(500);
    host.types("");
    host.shows("\r\x1b[K[web   0.000000] login: \ntarpit> ");
}

#[test]
fn attached_to_a_guest_and_back() {
    let mut host = Host::new();
    host.types("attach web\r");
    host.shows("tarpit> attach web\nattached to web; Ctrl-] comes back\n");
    host.types("ls\r\x03");
    assert_eq!(host.received(WEB), b"ls\r\x03");
    host.guest_writes(WEB, "# ");
    host.guest_writes(DB, "unseen\n");
    host.types("\x1d");
    host.shows("# \ndetached from web\nlines of db not shown: 1\ntarpit> ");
    host.types("attach db\r");
    host.vms.stop(DB).unwrap();
    host.types("");
    host.shows(
        "attach db\nattached to db; Ctrl-] comes back\nvm db ended: stopped\ndetached from db\n\
         tarpit> ",
    );
}

#[test]
fn the_end_of_a_vm_does_not_break_the_line() {
    let mut host = Host::new();
    host.types("vm");
    let dump = || "RIP 0x1000\n".into();
    let vcpu = VcpuId { vm: WEB, index: 0 };
    host.vms.ended(vcpu, StopReason::TripleFault, dump);
    host.types("s");
    let shown = host.screen();
    assert_eq!(
        shown,
        "tarpit> vm\r\x1b[Kvm web: state of VCPU 0 at its end:\nRIP 0x1000\ntarpit> vm\
         \r\x1b[Kvm web ended: triple fault\ntarpit> vms"
    );
}
