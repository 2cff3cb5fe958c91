//! The ACPI PM timer. ACPI specification, 4.8.2.1.

use kernels::pm_timer::{HERTZ, PmTimer};
use kernels::{Report, println};

use crate::arrivals::Time;

pub(crate) fn test(report: &mut Report, time: Time) {
    let Some(timer) = PmTimer::find() else {
        report.skip("PM timer", "there is none");
        return;
    };
    println!("PM timer: port {:#x}, mask {:#x}", timer.port, timer.mask);
    let first = timer.read();
    time.expect_rate(report, "the PM timer counts", HERTZ, 10, || {
        timer.between(first, timer.read())
    });
    let mut last = timer.read();
    let mut backwards = 0;
    for _ in 0..10_000 {
        let next = timer.read();
        backwards += u64::from(timer.between(last, next) > u64::from(timer.mask) / 2);
        last = next;
    }
    report.equal("the PM timer never goes back", backwards, 0);
}
