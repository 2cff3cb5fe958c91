//! Commands that look and change nothing, or targets: tables for people, JSON for programs.

use alloc::vec::Vec;

use devices::time::HostTicks;
use vmx::addr::GuestPhysAddr;
use vmx::exit::basic;

use super::host::{DB, Host, MS, WEB};
use crate::guest_memory::GuestMemory;

/// The process of `web` that is to be slowed down: it has two roots.
const PROCESS: [u64; 2] = [0x1000, 0x2000];

fn host_with_a_process() -> Host {
    let host = Host::new();
    host.wait(10_000);
    host.process(WEB, &PROCESS, 0x8000);
    host.has_run(
        WEB,
        500 * MS,
        &[(PROCESS[0], 334 * MS, 12_345 * MS), (PROCESS[1], 0, 0)],
    );
    host
}

#[test]
fn from_finding_a_process_to_slowing_it_down_and_back() {
    let mut host = host_with_a_process();
    host.shows("tarpit> ");
    host.types("vms\r");
    host.shows(
        "vms\n\
         VM               STATE       MEMORY  VCPUS  TARGETS       LEAD      DRIFT\n\
         web              running     512 MiB      1        0       0 ms       0 ms\n\
         db               running     512 MiB      2        0       0 ms       0 ms\n\
         tarpit> ",
    );
    host.types("ps web\r");
    host.shows(
        "ps web\n\
         CR3               CPU      TIME ms      SEEN  TARGET  ALIASES\n\
         0x1000          33.4 %      12345      2 ms  no      0x2000\n\
         tarpit> ",
    );
    host.types("suppress web 0x1000\r");
    host.shows(
        "suppress web 0x1000\n\
         VM               CR3            INTERVAL     CLOCK  POLICY   ALIASES\n\
         web              0x1000         1/1000      1000x  bounded  0x2000\n\
         tarpit> ",
    );
    assert!(host.answer("ps web").contains("  yes     0x2000\n"));
    // 4 ms of guest time pass in no less than an exit takes.
    let dear = MS / 50;
    let vm = host.vm(WEB).clone();
    let set_exit_cost = |ticks| vm.statistics[0].lock().set_exit_cost(ticks);
    set_exit_cost(dear);
    let answer = host.answer("suppress web 0x1000");
    assert!(
        answer.contains("\nnote: exits are dear here: the clock runs at most 1"),
        "{answer}"
    );
    assert!(!host.answer("suppress web 0x1000 300").contains("note"));
    assert!(
        !host
            .answer("suppress web 0x1000 --policy paper")
            .contains("note")
    );
    set_exit_cost(0);
    host.answer("suppress web 0x1000 --policy bounded");
    assert!(
        host.answer("vms")
            .contains("512 MiB      1        1       0 ms       0 ms\n")
    );
    assert_eq!(
        host.answer("suppress web 0x2000 50 --clock 3"),
        "VM               CR3            INTERVAL     CLOCK  POLICY   ALIASES\n\
         web              0x1000         1/50           3x  bounded  0x2000\n",
        "its other root names it as well"
    );
    assert_eq!(host.answer("targets"), host.answer("targets web"));
    assert_eq!(
        host.answer("release web 0x1000"),
        "VM               CR3            INTERVAL     CLOCK  POLICY   ALIASES\n\
         web              0x1000         1/50           3x  bounded  0x2000\n"
    );
    assert_eq!(
        host.answer("release web 0x1000"),
        "error: 0x1000 is no target of web: `targets` lists them\n"
    );
    host.answer("suppress web 0x1000");
    assert_eq!(host.answer("release web all"), "1 released\n");
    assert_eq!(host.answer("release web all"), "0 released\n");
}

#[test]
fn a_new_target_is_looked_for_at_once() {
    let mut host = host_with_a_process();
    let vm = host.vm(WEB);
    let generation = || {
        vm.suppression_generation
            .load(core::sync::atomic::Ordering::SeqCst)
    };
    let mut before = generation();
    for line in [
        "suppress web 0x1000",
        "release web 0x1000",
        "release web all",
        "trace web on",
        "trace web off",
    ] {
        host.answer(line);
        assert_ne!(generation(), before, "{line}");
        before = generation();
    }
    for line in ["suppress web 0x5000", "release web 0x5000", "ps web"] {
        host.answer(line);
        assert_eq!(generation(), before, "{line}");
    }
}

#[test]
fn what_is_no_process_is_no_target() {
    let mut host = host_with_a_process();
    let answer = host.answer("suppress web 0x5000 --json");
    assert!(
        answer.starts_with("{\"error\":\"no_target\",\"message\":\""),
        "{answer}"
    );
    assert_eq!(host.answer("targets --json"), "");
}

#[test]
fn a_program_reads_json() {
    let mut host = host_with_a_process();
    host.types("ps web --json\r");
    host.shows(
        "tarpit> ps web --json\n\
         {\"vm\":\"web\",\"cr3\":\"0x1000\",\"aliases\":[\"0x2000\"],\"cpu_permille\":334,\
         \"cpu_ms\":12345,\"seen_ms_ago\":2,\"target\":false}\n\
         tarpit> ",
    );
    host.types("ps wbe --json\r");
    host.shows(
        "ps wbe --json\n\
         {\"error\":\"unknown_vm\",\"message\":\"there is no VM `wbe`: did you mean `web`?\"}\n\
         tarpit> ",
    );
    host.types("--json suppress web \"\r");
    host.shows(
        "--json suppress web \"\n\
         {\"error\":\"bad_cr3\",\"message\":\"`\\\"` is no CR3: it must be a hexadecimal number \
         as `ps` shows it, for instance 0x1a2b000\"}\n\
         tarpit> ",
    );
    assert_eq!(
        host.answer("suppress web 0x1000 --json"),
        "{\"vm\":\"web\",\"cr3\":\"0x1000\",\"aliases\":[\"0x2000\"],\"interval\":1000,\
         \"clock\":1000,\"policy\":\"bounded\"}\n"
    );
    assert_eq!(
        host.answer("vms --json"),
        "{\"vm\":\"web\",\"state\":\"running\",\"memory_mib\":512,\"vcpus\":1,\"targets\":1,\
         \"lead_ms\":0,\"drift_ms\":0,\"host_us\":10000000,\"guest_us\":0}\n\
         {\"vm\":\"db\",\"state\":\"running\",\"memory_mib\":512,\"vcpus\":2,\"targets\":0,\
         \"lead_ms\":0,\"drift_ms\":0,\"host_us\":10000000,\"guest_us\":0}\n"
    );
    assert_eq!(
        host.answer("release web all --json"),
        "{\"done\":\"1 released\"}\n"
    );
}

/// All lines of an answer in JSON.
fn objects(answer: &str) -> Vec<serde_json::Value> {
    let parse = |line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"));
    answer.lines().map(parse).collect()
}

#[test]
fn exits_are_counted_by_reason_over_all_vcpus() {
    let mut host = Host::new();
    host.answer("pin db 0 0");
    let vm = host.vm(DB);
    for (vcpu, exits, extra) in [(0, 7, 1), (1, 3, 0)] {
        let mut statistics = vm.statistics[vcpu].lock();
        let mut now = HostTicks(0);
        for index in 0..exits {
            statistics.end_exit(now);
            now = now.saturating_add(100);
            statistics.count_exit(basic::EPT_VIOLATION, now);
            now = now.saturating_add(if index == 0 { 432 + extra } else { 432 });
        }
        statistics.end_exit(now);
        statistics.count_exit(basic::CPUID, now);
    }
    let answer = host.answer("stats db");
    assert!(
        answer.starts_with(
            "WHAT                            COUNT           TICKS   PER EACH\n\
             ept-violation                      10            4321        432\n\
             cpuid                               2               0          0\n\
             all-exits                          12            4321        360\n\
             guest                              12            1000         83\n"
        ),
        "{answer}"
    );
    let lines = objects(&host.answer("stats db --json"));
    let names: Vec<_> = lines.iter().map(|line| &line["what"]).collect();
    assert_eq!(lines[0]["ticks"], 4321);
    for name in ["vcpu0-on-cpu0-pinned", "longest-wait-when-woken"] {
        assert!(names.contains(&&name.into()), "no {name} in {names:?}");
    }
}

#[test]
fn the_host_is_shown_as_it_was_found_and_as_it_is() {
    let mut host = Host::new();
    assert_eq!(
        host.answer("host"),
        "SUBJECT                    STATE\n\
         cpus                       2 of 2\n\
         meltdown                   not affected\n\
         nmis                       7\n"
    );
    let lines = objects(&host.answer("host --json"));
    assert_eq!(lines[1]["subject"], "meltdown");
    assert_eq!(lines[1]["state"], "not affected");
    assert_eq!(host.answer("log"), "tarpit: one\ntarpit: two\n");
    let lines = objects(&host.answer("log --json"));
    assert_eq!(lines[1]["message"], "tarpit: two");
}

#[test]
fn the_screen_is_shown_down_to_its_last_line() {
    const INDEX: u16 = 0x3d4;
    const CURSOR_START: u32 = 10;
    const CURSOR_OFF: u32 = 1 << 5;
    const CURSOR_LOW: u32 = 15;
    let mut host = Host::new();
    let vm = host.vm(WEB);
    let print = |row: u64, column: u64, text: &str| {
        for (byte, n) in text.bytes().zip(0..) {
            let address = 0xb_8000 + 2 * (80 * row + column + n);
            vm.ram.write(GuestPhysAddr(address), &[byte, 0x07]).unwrap();
        }
    };
    // The memory is not cleared before the guest does it.
    (0..25).for_each(|row| print(row, 0, &" ".repeat(80)));
    print(0, 0, "xv6...");
    print(2, 3, "$ ls");
    assert_eq!(host.answer("screen web"), "xv6...\n\n   $ ls\n");
    assert_eq!(
        objects(&host.answer("screen web --json"))[2],
        serde_json::json!({"vm": "web", "row": 2, "text": "   $ ls", "cursor": null})
    );
    // The cursor is in row 3, column 1; then it is switched off.
    let now = host.now();
    let set = |index, value| {
        vm.with_chipset(now, |chipset, env| {
            chipset.port_write(INDEX, 1, index, env);
            chipset.port_write(INDEX + 1, 1, value, env);
        });
    };
    set(CURSOR_LOW, 3 * 80 + 1);
    assert_eq!(host.answer("screen web"), "xv6...\n\n   $ ls\n\n");
    assert_eq!(objects(&host.answer("screen web --json"))[3]["cursor"], 1);
    set(CURSOR_START, CURSOR_OFF);
    assert_eq!(host.answer("screen web"), "xv6...\n\n   $ ls\n");
}

#[test]
fn every_command_explains_itself() {
    let mut host = Host::new();
    let overview = host.answer("help");
    let commands = objects(&host.answer("help --json"));
    assert!(commands.len() >= 17);
    for command in commands {
        let name = command["command"].as_str().unwrap();
        let usage = command["usage"].as_str().unwrap();
        assert!(overview.contains(command["summary"].as_str().unwrap()));
        let explanation = host.answer(&alloc::format!("help {name}"));
        assert!(explanation.starts_with(&alloc::format!("usage: {usage}\n\n")));
        let alone = objects(&host.answer(&alloc::format!("help {name} --json")));
        assert_eq!(alone, [command]);
    }
    assert_eq!(
        host.answer("help pss"),
        "error: unknown command `pss`: did you mean `ps`?\n"
    );
}
