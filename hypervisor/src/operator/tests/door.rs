//! Programs at the door: what they ask, what they are told, and what bad ones can do.

use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::ops::ControlFlow;

use proptest::prelude::*;
use serde_json::{Value, json};
use vmx::addr::GuestPhysAddr;

use super::host::{DB, Host, MS, WEB};
use crate::guest_memory::GuestMemory;
use crate::ids::VcpuId;
use crate::operator::session::PowerOff;
use crate::vcpu::StopReason;
use crate::vm::registers::{RegisterCopy, SegmentCopy};
use crate::vm::requests::Requests;

/// The session is looked after once.
#[track_caller]
fn poll(host: &mut Host) {
    assert_eq!(host.poll(), ControlFlow::Continue(()));
}

/// The answer to a request: its lines without the last, which must be its end.
#[track_caller]
fn ask(host: &mut Host, request: &Value) -> Vec<Value> {
    host.client_says(&format!("{request}\n"));
    let mut answer = Vec::new();
    for _ in 0..10_000 {
        poll(host);
        for line in host.client_hears() {
            if line["id"] == request["id"] {
                answer.push(line);
            }
        }
        if answer.last().is_some_and(|line| line["end"] == true) {
            answer.pop();
            return answer;
        }
    }
    panic!("no end to the answer to {request}: {answer:?}");
}

/// The events since the last look.
fn events(host: &mut Host) -> Vec<Value> {
    poll(host);
    let lines = host.client_hears().into_iter();
    lines.filter(|line| line.get("event").is_some()).collect()
}

#[test]
fn the_door_says_hello_and_answers_to_it() {
    let mut host = Host::with_door();
    poll(&mut host);
    let hello = host.client_hears().remove(0);
    assert_eq!(hello["hello"], "tarpit");
    assert_eq!(hello["protocol"], 1);
    let answer = ask(&mut host, &json!({"id": 1, "hello": 1}));
    assert_eq!(answer, [json!({"id": 1, "record": hello})]);
    let answer = ask(&mut host, &json!({"id": 2, "hello": 2}));
    assert_eq!(answer[0]["error"], "bad_protocol");
}

#[test]
fn commands_are_those_of_the_console() {
    let mut host = Host::with_door();
    host.wait(10_000);
    host.process(WEB, &[0x1000], 0x8000);
    host.has_run(WEB, 500 * MS, &[(0x1000, MS, MS)]);
    for command in [
        "vms",
        "ps web",
        "ps nobody",
        "find web x",
        "log",
        "stats db",
    ] {
        let at_console = host.answer(&format!("{command} --json"));
        let at_console = at_console.lines().map(|line| {
            let line: Value = serde_json::from_str(line).unwrap();
            line
        });
        let here = ask(&mut host, &json!({"id": "a", "command": command}));
        let here = here.into_iter().map(|line| match line.get("record") {
            Some(record) => record.clone(),
            None => json!({"error": line["error"], "message": line["message"]}),
        });
        assert!(at_console.eq(here), "{command}");
    }
    let help = ask(&mut host, &json!({"id": 1, "command": "help ps"}));
    assert!(!help.is_empty());
    let answer = ask(&mut host, &json!({"id": 1, "command": "attach web"}));
    assert_eq!(answer[0]["error"], "needs_terminal");
    assert_eq!(
        ask(&mut host, &json!({"id": 1, "command": " "})),
        [] as [Value; 0]
    );
}

#[test]
fn what_the_operator_types_and_what_programs_ask_do_not_mix() {
    let mut host = Host::with_door();
    host.screen();
    host.client_says("{\"id\":1,\"command\":\"vms\"}\n");
    host.types("pause web\r");
    host.shows("pause web\npaused\ntarpit> ");
    host.types("");
    let heard: Vec<_> = host.client_hears();
    assert_eq!(heard.iter().filter(|line| line["id"] == 1).count(), 3);
}

#[test]
fn a_process_is_suppressed_and_events_tell_of_it() {
    let mut host = Host::with_door();
    host.wait(10_000);
    host.process(WEB, &[0x1000, 0x2000], 0x8000);
    host.has_run(WEB, 500 * MS, &[(0x1000, MS, MS), (0x2000, MS, MS)]);
    events(&mut host);
    let answer = ask(
        &mut host,
        &json!({"id": 1, "command": "suppress web 0x1000 50"}),
    );
    assert_eq!(answer[0]["record"]["clock"], 50);
    host.client_says("{\"id\":2,\"command\":\"release web all\"}\n");
    let told = events(&mut host);
    assert_eq!(told.len(), 1, "{told:?}");
    let [target_in] = &told[..] else { panic!() };
    assert_eq!(target_in["event"], "target_in");
    assert_eq!(target_in["cr3"], "0x1000");
    assert_eq!(target_in["aliases"], json!(["0x2000"]));
    assert_eq!(target_in["us"], 10_000_000);
    let told = events(&mut host);
    assert_eq!(told[0]["event"], "target_out");
    assert_eq!(told[0]["cr3"], "0x1000");
}

#[test]
fn states_and_ends_of_vms_are_told() {
    let mut host = Host::with_door();
    let told = events(&mut host);
    let states: Vec<_> = told.iter().filter(|it| it["event"] == "vm_state").collect();
    assert_eq!(states.len(), 2);
    assert_eq!(states[1]["vm"], "db");
    assert_eq!(states[1]["state"], "running");
    let warnings: Vec<_> = told.iter().filter(|it| it["event"] == "log").collect();
    assert_eq!(warnings.len(), 1);
    assert_eq!(warnings[0]["message"], "tarpit: warning: two");
    let vcpu = VcpuId { vm: DB, index: 1 };
    let dump = || "RIP 0x1000\n".into();
    host.vms.ended(vcpu, StopReason::TripleFault, dump);
    let told = events(&mut host);
    assert_eq!(told[0]["event"], "vm_ended");
    assert_eq!(told[0]["reason"], "triple fault");
    assert_eq!(
        told[0]["crash"],
        json!({"vcpu": 1, "state": "RIP 0x1000\n"})
    );
    assert_eq!(told[1]["state"], "stopping");
    assert_eq!(
        ask(&mut host, &json!({"id": 1, "events": false})),
        [] as [Value; 0]
    );
    host.vms.stop(WEB).unwrap();
    assert_eq!(events(&mut host), [] as [Value; 0]);
}

#[test]
fn memory_is_read_by_address_space() {
    let mut host = Host::with_door();
    host.process(WEB, &[0x1000], 0x8000);
    let ram = &host.vm(WEB).ram;
    ram.write(GuestPhysAddr(0x8ffe), b"EV").unwrap();
    let read = |host: &mut Host, what: Value| ask(host, &json!({"id": 1, "read": what}));
    // The page is mapped at 0x1000, and nothing is behind it.
    let answer = read(
        &mut host,
        json!({"vm": "web", "cr3": "0x1000", "address": "0x1ffe", "length": 10}),
    );
    assert_eq!(
        answer,
        [
            json!({"id": 1, "record": {"address": "0x1ffe", "length": 2, "data": "4556"}}),
            json!({"id": 1, "record": {"address": "0x2000", "length": 8, "data": null}}),
        ]
    );
    let answer = read(
        &mut host,
        json!({"vm": "web", "address": 0x8fff, "length": 4}),
    );
    assert_eq!(answer[0]["record"]["data"], "56");
    // The first entry of the table there.
    assert_eq!(answer[1]["record"]["data"], "67a000");
    let answer = read(
        &mut host,
        json!({"vm": "web", "address": "0x8000", "length": 65536}),
    );
    let length = |line: &Value| line["record"]["length"].as_u64().unwrap();
    assert_eq!(answer.iter().map(length).sum::<u64>(), 65536);
    // Behind RAM, and where no address is.
    for (cr3, address) in [
        (None, "0xfffffffffffffff0"),
        (Some("0x1000"), "0x0000800000000000"),
        (Some("0xfffffffff000"), "0x1000"),
    ] {
        let answer = read(
            &mut host,
            json!({"vm": "web", "cr3": cr3, "address": address, "length": 16}),
        );
        assert_eq!(answer.len(), 1, "{answer:?}");
        assert_eq!(answer[0]["record"]["data"], Value::Null);
        assert_eq!(answer[0]["record"]["length"], 16);
    }
    for (what, error) in [
        (
            json!({"vm": "webb", "address": 0, "length": 1}),
            "unknown_vm",
        ),
        (
            json!({"vm": "web", "address": 0, "length": 0}),
            "bad_length",
        ),
        (
            json!({"vm": "web", "address": 0, "length": 65537}),
            "bad_length",
        ),
        (
            json!({"vm": "web", "address": u64::MAX, "length": 2}),
            "bad_address",
        ),
    ] {
        assert_eq!(read(&mut host, what)[0]["error"], error);
    }
}

#[test]
fn reading_writes_nothing() {
    let mut host = Host::with_door();
    host.process(WEB, &[0x1000], 0x8000);
    let vm = host.vm(WEB);
    // Neither accessed nor dirty.
    let entry = 0x8005_u64.to_le_bytes();
    vm.ram.write(GuestPhysAddr(0xb008), &entry).unwrap();
    let snapshot = || {
        let mut bytes = alloc::vec![0; 0x10000];
        vm.ram.read(GuestPhysAddr(0), &mut bytes).unwrap();
        bytes
    };
    let before = snapshot();
    let answer = ask(
        &mut host,
        &json!({"id": 1, "read":
            {"vm": "web", "cr3": "0x1000", "address": "0x1000", "length": 4096}}),
    );
    assert!(answer.iter().all(|line| line["record"]["data"].is_string()));
    assert!(before == snapshot());
}

#[test]
fn a_long_read_goes_on_in_steps() {
    let mut host = Host::with_door();
    host.let_time_pass();
    host.client_says("{\"id\":1,\"read\":{\"vm\":\"web\",\"address\":0,\"length\":65536}}\n");
    for _ in 0..3 {
        poll(&mut host);
    }
    let begun = host.client_hears();
    let records = begun.iter().filter(|line| line["id"] == 1).count();
    assert!(
        (1..=4).contains(&records),
        "{records} of 128 pieces in three turns"
    );
}

#[test]
fn registers_are_what_the_vcpu_has_copied() {
    let mut host = Host::with_door();
    let vm = host.vm(DB);
    host.client_says("{\"id\":1,\"registers\":{\"vm\":\"db\",\"vcpu\":1}}\n");
    poll(&mut host);
    assert!(vm.requests(1).take().contains(Requests::REGISTERS));
    assert!(!vm.requests(0).take().contains(Requests::REGISTERS));
    let segment = SegmentCopy {
        name: "cs",
        selector: 0x10,
        base: 0,
        limit: u32::MAX,
        rights: 0xa09b,
    };
    *vm.registers[1].lock() = Some(RegisterCopy {
        general: core::array::from_fn(|index| index as u64),
        rip: 0xffff_ffff_8100_0000,
        rflags: 2,
        cpl: 0,
        cr0: 1,
        cr3: 0x1000,
        cr4: 0x20,
        efer: 0x500,
        activity: "halted",
        nmis_blocked: true,
        segments: [segment; 8],
    });
    poll(&mut host);
    let heard = host.client_hears();
    let answer = heard.iter().find(|line| line["id"] == 1).unwrap();
    let record = &answer["record"];
    assert_eq!(record["rip"], "0xffffffff81000000");
    assert_eq!(record["general"]["r15"], "0xf");
    assert_eq!(record["cr3"], "0x1000");
    assert_eq!(record["activity"], "halted");
    assert_eq!(record["nmis_blocked"], true);
    assert_eq!(record["segments"][0]["limit"], "0xffffffff");
    let answer = ask(
        &mut host,
        &json!({"id": 2, "registers": {"vm": "db", "vcpu": 2}}),
    );
    assert_eq!(answer[0]["error"], "no_vcpu");
    // Nobody answers.
    host.client_says("{\"id\":3,\"registers\":{\"vm\":\"db\"}}\n");
    poll(&mut host);
    host.wait(3_000);
    poll(&mut host);
    let heard = host.client_hears();
    let answer = heard.iter().find(|line| line["id"] == 3).unwrap();
    assert_eq!(answer["error"], "no_answer");
}

#[test]
fn nonsense_is_answered_with_errors_and_the_next_request_as_ever() {
    let mut host = Host::with_door();
    poll(&mut host);
    host.client_hears();
    for (nonsense, id) in [
        (String::from("hello\n"), Value::Null),
        ("\u{fffd}\0\x7f\n".into(), Value::Null),
        ("{\"id\":5}\n".into(), json!(5)),
        (format!("{}\n", "[".repeat(4000)), Value::Null),
        (
            format!("{{\"id\":9,\"command\":{}}}\n", "9".repeat(3000)),
            json!(9),
        ),
    ] {
        host.client_says(&nonsense);
        for _ in 0..200 {
            poll(&mut host);
        }
        let heard = host.client_hears();
        assert_eq!(heard.len(), 2, "{heard:?}");
        assert_eq!(heard[0]["error"], "bad_request");
        assert_eq!(heard[0]["id"], id);
        assert_eq!(heard[1], json!({"id": id, "end": true}));
    }
    host.client_says("\n\r\n \n");
    host.client_says(&"x".repeat(50_000));
    host.client_says("\n");
    for _ in 0..1000 {
        poll(&mut host);
    }
    let heard = host.client_hears();
    assert_eq!(heard[0]["error"], "line_too_long", "{heard:?}");
    assert_eq!(ask(&mut host, &json!({"id": 1, "command": "vms"})).len(), 2);
}

#[test]
fn who_never_reads_costs_a_bounded_room_and_is_told_what_it_missed() {
    let mut host = Host::with_door();
    host.detector_is_stuck(true);
    for round in 0..2000 {
        host.client_says("{\"id\":1,\"command\":\"help\"}\n");
        let vm = if round % 2 == 0 { "pause" } else { "resume" };
        host.answer(&format!("{vm} web"));
    }
    assert!(
        host.client_heard_bytes() <= 4096,
        "more than the line takes"
    );
    host.detector_is_stuck(false);
    let mut heard = Vec::new();
    for _ in 0..1000 {
        poll(&mut host);
        heard.extend(host.client_hears());
    }
    let dropped = heard.iter().find(|line| line["event"] == "dropped");
    let count = dropped.and_then(|line| line["count"].as_u64());
    let told = heard.iter().filter(|line| line["event"] == "vm_state");
    // The first states of the two VMs besides.
    assert_eq!(count.unwrap_or(0) + told.count() as u64, 2002);
    assert!(
        heard
            .iter()
            .any(|line| line["error"] == "too_many_requests"),
        "a flood of requests"
    );
    assert_eq!(ask(&mut host, &json!({"id": 2, "command": "vms"})).len(), 2);
}

#[test]
fn the_machine_is_switched_off_after_the_answer() {
    let mut host = Host::with_door();
    host.client_says("{\"id\":1,\"command\":\"shutdown\"}\n");
    assert_eq!(host.poll(), ControlFlow::Break(PowerOff));
    let heard = host.client_hears();
    assert_eq!(heard.last().unwrap(), &json!({"id": 1, "end": true}));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn every_request_has_one_end_whatever_it_is(
        lines in prop::collection::vec(prop_oneof![
            "[ -~]{0,60}".prop_map(|line| json!(line).to_string()),
            (0u64..9, "(vms|ps web|find web x|suppress web 0x1000|targets|watch|x|\"|--json)( [a-z0-9]{1,5}){0,2}")
                .prop_filter("leaves the session", |(_, line)| !line.contains("attach"))
                .prop_map(|(id, line)| json!({"id": id, "command": line}).to_string()),
            (any::<u64>(), any::<u64>(), any::<Option<u64>>())
                .prop_map(|(address, length, cr3)| json!({"id": 3, "read":
                    {"vm": "web", "address": address, "length": length % 3000, "cr3": cr3}}).to_string()),
        ], 1..8),
    ) {
        let mut host = Host::with_door();
        host.process(WEB, &[0x1000], 0x8000);
        let mut ends = 0;
        let mut said = 0;
        for line in &lines {
            host.client_says(&format!("{line}\n"));
            said += 1;
            for _ in 0..400 {
                prop_assert_eq!(host.poll(), ControlFlow::Continue(()));
                ends += host.client_hears().iter().filter(|line| line["end"] == true).count();
                if ends == said {
                    break;
                }
            }
            prop_assert_eq!(ends, said, "{}", line);
        }
    }
}
