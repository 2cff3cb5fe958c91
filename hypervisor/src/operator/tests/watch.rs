//! Rules: from what is typed to processes that are suppressed without an operator.

use alloc::format;
use alloc::vec::Vec;

use serde_json::Value;
use vmx::addr::GuestPhysAddr;

use super::host::{Host, MS, WEB};
use crate::guest_memory::GuestMemory;
use crate::watch::rule::Rule;

/// The rules as programs see them.
fn rules(host: &mut Host) -> Vec<Value> {
    let answer = host.answer("rules --json");
    let lines = answer.lines();
    lines
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

/// A process whose memory holds this from 0x1123 on, with its tables behind `page`.
fn process(host: &Host, root: u64, page: u64, content: &[u8]) {
    host.process(WEB, &[root], page);
    let at = GuestPhysAddr(page + 0x123);
    host.vm(WEB).ram.write(at, content).unwrap();
}

/// Three processes, of which two hold `EVIL`; they have run just now.
fn run_processes(host: &Host) {
    host.wait(20);
    process(host, 0x1000, 0x8000, b"EVIL");
    process(host, 0x2000, 0xc000, b"good");
    process(host, 0x3000, 0x1_0000, b"EVIL");
    let ran = [0x1000, 0x2000, 0x3000].map(|root| (root, MS, MS));
    host.has_run(WEB, 500 * MS, &ran);
}

#[test]
fn who_holds_a_pattern_is_told_and_listed() {
    let mut host = Host::with_door();
    host.wait(10_000);
    assert_eq!(
        host.answer("watch web EVIL --except 0x3000"),
        "RULE  VM               MATCHES    MISSES  ACTION          WHAT, AND EXCEPTIONS\n\
         \u{20}  1  web                    0         0  tell            EVIL; not 0x3000\n"
    );
    run_processes(&host);
    host.screen();
    host.types("");
    let shown = host.screen();
    assert!(
        shown.contains("vm web: rule 1 (EVIL at 0x1123) holds for 0x1000\n"),
        "{shown}"
    );
    assert!(!shown.contains("0x3000"), "an exception: {shown}");
    let heard = host.client_hears();
    let told: Vec<_> = heard
        .iter()
        .filter(|it| it["event"] == "rule_match")
        .collect();
    assert_eq!(told.len(), 1);
    assert_eq!(told[0]["cr3"], "0x1000");
    assert_eq!(told[0]["address"], "0x1123");
    assert_eq!(told[0]["suppressed"], Value::Null);
    let listed = rules(&mut host);
    assert_eq!(listed[0]["matches"], 1);
    assert_eq!(listed[0]["misses"], 1);
    assert_eq!(host.answer("targets --json"), "");
    for _ in 0..100 {
        host.wait(100);
        host.types("");
    }
    assert_eq!(rules(&mut host), listed, "once is enough");
}

#[test]
fn who_holds_a_pattern_is_suppressed_from_the_first_sample_on() {
    let mut host = Host::with_rules(&[Rule::watch("EVIL,50").unwrap()]);
    host.wait(10_000);
    process(&host, 0x3000, 0x1_0000, b"EVIL");
    host.has_run(WEB, 500 * MS, &[(0x3000, MS, MS)]);
    host.types("");
    let shown = host.screen();
    assert!(
        shown.contains("vm web: rule 1 (EVIL at 0x1123) holds for 0x3000: suppressed by 50\n"),
        "{shown}"
    );
    let targets = host.answer("targets web --json");
    let target: Value = serde_json::from_str(&targets).unwrap();
    assert_eq!(target["cr3"], "0x3000");
    assert_eq!(target["clock"], 50);
    let heard = host.client_hears();
    let names: Vec<_> = heard.iter().filter_map(|it| it["event"].as_str()).collect();
    let at = |name| names.iter().position(|it| *it == name);
    assert!(
        at("rule_match").is_some() && at("rule_match") < at("target_in"),
        "{names:?}"
    );
    // Its place is taken by another with the same root, and that by a third.
    for page in [0x2_0000, 0x3_0000] {
        host.answer("release web all");
        process(&host, 0x3000, page, b"EVIL");
        host.wait(20);
        host.has_run(WEB, 500 * MS, &[(0x3000, MS, MS)]);
        host.types("");
        assert!(!host.answer("targets web --json").is_empty());
    }
    assert_eq!(rules(&mut host)[0]["matches"], 3);
}

#[test]
fn all_that_hold_a_pattern_are_one_family_with_one_budget() {
    let mut host = Host::with_door();
    host.wait(10_000);
    run_processes(&host);
    host.types("watch web EVIL --suppress 50\r");
    host.types("");
    // What is told of targets comes with the next look.
    host.types("");
    let shown = host.screen();
    for root in ["0x1000", "0x3000"] {
        let told = format!("holds for {root}: suppressed by 50\n");
        assert!(shown.contains(&told), "{shown}");
    }
    assert!(
        shown.contains("was found by the same rule, and is suppressed with it\n"),
        "{shown}"
    );
    let target: Value = serde_json::from_str(&host.answer("targets web --json")).unwrap();
    let signs: Vec<&Value> = target["members"]
        .as_array()
        .unwrap()
        .iter()
        .map(|member| &member["sign"])
        .collect();
    assert_eq!(signs, ["named", "rule"]);
    let heard = host.client_hears();
    let joined = heard.iter().find(|it| it["event"] == "member_joined");
    assert_eq!(joined.unwrap()["sign"], "rule");
    // Who is found after the end of that begins another one.
    host.answer("release web all");
    process(&host, 0x2000, 0xc000, b"EVIL");
    host.wait(2000);
    host.has_run(WEB, 500 * MS, &[(0x2000, MS, MS)]);
    host.types("");
    let target: Value = serde_json::from_str(&host.answer("targets web --json")).unwrap();
    assert_eq!(target["cr3"], "0x2000");
    assert_eq!(target["members"].as_array().unwrap().len(), 1);
}

#[test]
fn who_is_suppressed_already_keeps_its_order() {
    let mut host = Host::new();
    host.wait(10_000);
    run_processes(&host);
    host.answer("suppress web 0x1000 7");
    host.types("watch web EVIL --suppress 50\r");
    host.types("");
    let shown = host.screen();
    assert!(
        shown.contains("0x1000: not suppressed: it is suppressed already\n"),
        "{shown}"
    );
    let targets = host.answer("targets web --json");
    let clocks: Vec<Value> = targets
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).unwrap()["clock"].clone())
        .collect();
    assert_eq!(clocks, [7, 50]);
}

#[test]
fn who_takes_much_for_long_is_suppressed() {
    let mut host = Host::new();
    host.wait(20_000);
    host.answer("watch web --hog 50 3 --suppress 100");
    host.answer("watch web 5 --hog=80%");
    process(&host, 0x1000, 0x8000, b"");
    process(&host, 0x2000, 0xc000, b"");
    for _ in 0..8 {
        host.has_run(
            WEB,
            500 * MS,
            &[(0x1000, 900 * MS, 900 * MS), (0x2000, MS, MS)],
        );
        host.wait(500);
        host.types("");
    }
    let shown = host.screen();
    assert!(
        shown.contains("rule 1 (hog 50 % for 3 s) holds for 0x1000: suppressed by 100\n"),
        "{shown}"
    );
    assert!(!shown.contains("0x2000"));
    assert!(!host.answer("targets web --json").is_empty());
    for _ in 0..4 {
        host.has_run(WEB, 500 * MS, &[(0x1000, MS, MS)]);
        host.wait(500);
        host.types("");
    }
    let listed = rules(&mut host);
    assert_eq!(
        (&listed[0]["matches"], &listed[0]["misses"]),
        (&1.into(), &0.into())
    );
    assert_eq!(listed[1]["matches"], 0);
    assert_eq!(listed[1]["action"], "tell");
}

#[test]
fn rules_are_removed() {
    let mut host = Host::new();
    for word in ["one", "two", "three"] {
        host.answer(&format!("watch web {word}"));
    }
    host.answer("watch db four");
    assert_eq!(host.answer("unwatch web 2"), "1 removed\n");
    let answer = host.answer("unwatch web 4 --json");
    assert!(answer.starts_with("{\"error\":\"no_rule\","), "{answer}");
    let left: Vec<_> = rules(&mut host)
        .iter()
        .map(|it| it["what"].clone())
        .collect();
    assert_eq!(left, ["one", "three", "four"]);
    assert_eq!(host.answer("rules db --json").lines().count(), 1);
    assert_eq!(host.answer("unwatch web all"), "2 removed\n");
    host.wait(10_000);
    process(&host, 0x1000, 0x8000, b"one");
    host.has_run(WEB, 500 * MS, &[(0x1000, MS, MS)]);
    host.screen();
    host.types("");
    host.shows("");
}

#[test]
fn bad_rules_are_refused() {
    let mut host = Host::new();
    for (line, kind) in [
        ("watch web 0x1", "bad_pattern"),
        ("watch web", "missing_argument"),
        ("watch web x --suppress 0", "bad_factor"),
        ("watch web x --suppress 5 --tell", "bad_action"),
        ("watch web x --tell=5", "unknown_option"),
        ("watch web x --except web", "bad_cr3"),
        ("watch web --hog 50 x", "bad_hog"),
        ("watch web --hog 0 5", "bad_hog"),
        ("unwatch web x", "bad_number"),
        ("unwatch web +1", "bad_number"),
    ] {
        let answer = host.answer(&format!("{line} --json"));
        assert!(
            answer.starts_with(&format!("{{\"error\":\"{kind}\",")),
            "{line}: {answer}"
        );
    }
    for number in 0..16 {
        host.answer(&format!("watch web pattern-{number} --tell"));
    }
    let answer = host.answer("watch web one-more --json");
    assert!(
        answer.starts_with("{\"error\":\"too_many_rules\","),
        "{answer}"
    );
    assert!(!host.answer("watch db one-more --json").contains("error"));
}

/// As where hundreds of processes a second come and go: with what may be spent there is time for nothing but
/// taking note of them.
#[test]
fn who_lives_for_a_moment_is_searched_though_taking_note_takes_all_the_time() {
    let mut host = Host::new();
    host.wait(10_000);
    host.answer("watch web EVIL --suppress 1000");
    // More than a poll earns.
    host.let_ticks_pass(20 * MS / 1000);
    let mut is_found = |life: u64, page: u64, content: &[u8]| {
        let root = 0x1000 + (life % 5) * 0x1000;
        process(&host, root, page, content);
        host.runs_on(WEB, core::iter::once(root));
        host.types("");
        let found = host.vm(WEB).suppression.lock().targets().iter().count() == 1;
        let empty = [0; 8];
        host.vm(WEB).ram.write(GuestPhysAddr(root), &empty).unwrap();
        host.wait(1);
        found
    };
    // Until nothing is left that was saved up.
    assert!((0..1000).all(|life| !is_found(life, 0x2_0000, b"good")));
    assert!((0..1000).any(|life| is_found(life, 0x4_0000, b"EVIL")));
}

/// Time passes with each look at the clock, which there is one of for each page or hole.
#[test]
fn searching_costs_at_most_a_hundredth_of_the_time_and_searching_again_less_than_half_of_that() {
    const POLLS: u64 = 10_000;
    const SPACES: u64 = 20;
    let setup = || {
        let host = Host::new();
        host.wait(10_000);
        for number in 0..SPACES {
            let page = 0x2_0000 + number * 0x4000;
            process(&host, 0x1000 + number * 0x1000, page, b"");
            // Many pages, all of them the same one.
            let tables = (0..4).map(|it| (page + 0x2000 + it * 8, page + 0x3000));
            let pages = (0..512).map(|it| (page + 0x3000 + it * 8, page));
            for (slot, entry) in tables.chain(pages) {
                let entry = (entry | 0x67).to_le_bytes();
                host.vm(WEB).ram.write(GuestPhysAddr(slot), &entry).unwrap();
            }
        }
        host.let_ticks_pass(400);
        host
    };
    // The time that polls take while all run on, in thousandths of all time.
    let cost = |host: &mut Host, polls: u64| {
        let begin = host.now();
        let mut spent = 0;
        for _ in 0..polls {
            host.runs_on(WEB, (0..SPACES).map(|it| 0x1000 + it * 0x1000));
            let before = host.now();
            host.types("");
            spent += host.now().since(before);
            host.wait(1);
        }
        spent as f64 * 1000. / host.now().since(begin) as f64
    };
    let mut host = setup();
    let without = cost(&mut host, POLLS);
    // Other patterns each time, before all have been searched for the last ones.
    const ROUNDS: u32 = 90;
    let mut first = 0.;
    for round in 0..=ROUNDS {
        host.answer("unwatch web all");
        for number in 0..16 {
            host.answer(&format!("watch web {round:02}{number:028}"));
        }
        let cost = cost(&mut host, 25) - without;
        // In the first, what was saved up before is used.
        if round > 0 {
            first += cost / f64::from(ROUNDS);
        }
    }
    assert!((5. ..=10.).contains(&first), "{first} permille");
    while rules(&mut host)[0]["misses"].as_u64() < Some(SPACES) {
        cost(&mut host, 25);
    }
    let again = cost(&mut host, POLLS) - without;
    // To look at who runs takes some time besides.
    assert!((1. ..=4.).contains(&again), "{again} permille");
    assert_eq!(rules(&mut host)[0]["misses"], SPACES);
}
