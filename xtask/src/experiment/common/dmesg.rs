//! What a kernel's log says about the machine it runs on: the complaints in it.

use std::sync::LazyLock;

use regex::RegexSet;

/// The lines that no log may have: time that is wrong, CPUs that seem stuck, hardware that
/// misbehaves.
const COMPLAINTS: [&str; 21] = [
    // Time.
    r"clocksource: .*(unstable|skew|wd-|Long readout|Marking)",
    r"timekeeping watchdog",
    r"(?i)tsc.*(unstable|unsynchronized|warp|failed|doesn't|does not)",
    r"hrtimer: interrupt took",
    r"(?i)time.*went backwards",
    r"(?i)(timer|hpet|lapic|apic).*(not connected|doesn't work|does not work|not working|failed)",
    r"NOHZ.*(error|pending)",
    r"sched: RT throttling",
    r"(?i)interrupt took too long",
    // Stuck CPUs.
    r"(?i)lockup",
    r"(?i)rcu.*(stall|starved)",
    r"blocked for more than",
    // Hardware.
    r"(?i)unchecked MSR",
    r"(?i)hardware error|machine check.*(event|exception)",
    r"(?i)nobody cared|spurious.*interrupt|no irq handler|unexpected irq",
    r"APIC error|MP-BIOS bug|(?i)firmware bug",
    // The kernel's own word for what must not be.
    r"Call Trace",
    r"WARNING:",
    r"BUG[: ]|Oops|general protection|Kernel panic",
    r"segfault|traps: ",
    r"workload: .*WRONG",
];

/// The complaint of the same kernel in the same emulator without tarpit: the CPU that Bochs shows
/// has no mitigation against RETBleed.
const EXCEPTED: [&str; 1] = [r"RETBleed: WARNING: Spectre v2 mitigation leaves CPU vulnerable"];

/// Returns the lines of a log that complain, without the levels in front. Empty: the log is clean.
pub fn complaints(log: &str) -> Vec<String> {
    static BAD: LazyLock<RegexSet> =
        LazyLock::new(|| RegexSet::new(COMPLAINTS).expect("valid expressions"));
    static GOOD: LazyLock<RegexSet> =
        LazyLock::new(|| RegexSet::new(EXCEPTED).expect("valid expressions"));
    log.lines()
        .filter(|line| BAD.is_match(line) && !GOOD.is_match(line))
        .map(|line| without_level(line).to_owned())
        .collect()
}

/// Returns the kernel's release, as in "6.1.0-56-cloud-amd64".
pub fn release(log: &str) -> Option<&str> {
    let (_, rest) = log.split_once("Linux version ")?;
    rest.split_whitespace().next()
}

/// Returns a line without the `<4>` that syslog(2) puts in front.
fn without_level(line: &str) -> &str {
    let level = line.strip_prefix('<').and_then(|rest| rest.split_once('>'));
    match level {
        Some((digits, rest)) if digits.chars().all(|c| c.is_ascii_digit()) => rest,
        _ => line,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CLEAN: &str = "\
<5>[    0.000000] Linux version 6.1.0-56-cloud-amd64 (debian-kernel@lists.debian.org) (gcc-12)
<6>[    0.000000] tsc: Detected 1000.000 MHz processor
<6>[    0.000000] clocksource: refined-jiffies: mask: 0xffffffff max_cycles: 0xffffffff
<6>[    0.004000] clocksource: Switched to clocksource tsc-early
<6>[    0.100000] TSC deadline timer available
<4>[    0.120000] RETBleed: WARNING: Spectre v2 mitigation leaves CPU vulnerable to RETBleed attacks, data leaks possible!
<6>[    0.200000] rcu: Hierarchical RCU implementation.
<6>[    0.200000] NMI watchdog: Perf NMI watchdog permanently disabled
<6>[    0.300000] ..TIMER: vector=0x30 apic1=0 pin1=2 apic2=-1 pin2=-1
<6>[    0.400000] x86/mce: Machine check enabled
";

    #[test]
    fn a_quiet_log_is_clean() {
        assert_eq!(complaints(CLEAN), Vec::<String>::new());
        assert_eq!(release(CLEAN), Some("6.1.0-56-cloud-amd64"));
    }

    #[test]
    fn each_complaint_is_found_in_the_kernels_own_words() {
        for line in [
            "clocksource: timekeeping watchdog on CPU0: Marking clocksource 'tsc' as unstable because the skew is too large:",
            "clocksource: timekeeping watchdog on CPU0: hpet wd-wd read-back delay of 63000ns",
            "tsc: Marking TSC unstable due to clocksource watchdog",
            "watchdog: BUG: soft lockup - CPU#0 stuck for 22s! [init:75]",
            "rcu: INFO: rcu_preempt self-detected stall on CPU",
            "rcu: rcu_sched kthread starved for 5250 jiffies! g-1187 f0x0 RCU_GP_WAIT_FQS(5)",
            "hrtimer: interrupt took 2203456 ns",
            "unchecked MSR access error: RDMSR from 0x1a2 at rIP: 0xffffffff8107",
            "mce: [Hardware Error]: Machine check events logged",
            "Call Trace:",
            "WARNING: CPU: 0 PID: 0 at kernel/time/timekeeping.c:1234",
            "INFO: task kworker/0:1:13 blocked for more than 120 seconds.",
            "..MP-BIOS bug: 8254 timer not connected to IO-APIC",
            "APIC timer disabled due to verification failure; lapic timer failed",
            "irq 9: nobody cared (try booting with the \"irqpoll\" option)",
            "perf: interrupt took too long (2503 > 2500), lowering kernel.perf_event_max_sample_rate",
            "sched: RT throttling activated",
            "workload: process 0 computed 0x1 from 0x2: WRONG",
        ] {
            let log = format!("{CLEAN}<4>[   12.5] {line}\n");
            assert_eq!(complaints(&log), [format!("[   12.5] {line}")]);
        }
    }

    #[test]
    fn only_the_known_warning_is_excepted() {
        let other = "[0.1] RETBleed: WARNING: something else\n";
        assert_eq!(complaints(other).len(), 1);
    }
}
