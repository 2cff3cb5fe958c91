//! What the kernel says of itself: its log, its clocks.

use core::ffi::CStr;

use crate::say;
use crate::system;
use crate::system::files::read_file;
use crate::system::time::{Clock, now};

/// Prints the kernel's log between two marker lines; if `new`, just what came since it was last
/// printed so.
///
/// Each line has its level before it (`<4>` and below: warnings and worse), as syslog(2) gives it.
pub fn print_kernel_log(new: bool) {
    say!("dmesg begin");
    let outcome = system::with_kernel_log(new, |log| {
        // Nowhere to report that the console cannot be written to.
        let _ = system::write_all(log);
    });
    if let Err(error) = outcome {
        say!("dmesg: {error}");
    }
    say!("dmesg end");
}

/// The clock event devices that a machine with up to eight CPUs has, and where sysfs names each.
const CLOCKEVENTS: [(&str, &CStr); 9] = {
    macro_rules! device {
        ($name:literal) => {
            ($name, {
                const PATH: &str = concat!(
                    "/sys/devices/system/clockevents/",
                    $name,
                    "/current_device\0"
                );
                match CStr::from_bytes_with_nul(PATH.as_bytes()) {
                    Ok(path) => path,
                    Err(_) => panic!("the path ends with its only zero byte"),
                }
            })
        };
    }
    [
        device!("broadcast"),
        device!("clockevent0"),
        device!("clockevent1"),
        device!("clockevent2"),
        device!("clockevent3"),
        device!("clockevent4"),
        device!("clockevent5"),
        device!("clockevent6"),
        device!("clockevent7"),
    ]
};

/// Prints what time it is, and which devices the kernel tells it by: lines of `name=value`.
pub fn print_clocks() {
    let realtime = now(Clock::Realtime);
    let monotonic = now(Clock::Monotonic);
    say!("clocks realtime={realtime} monotonic={monotonic}");
    print_device(
        "clocksource",
        c"/sys/devices/system/clocksource/clocksource0/current_clocksource",
    );
    print_device(
        "clocksources",
        c"/sys/devices/system/clocksource/clocksource0/available_clocksource",
    );
    for (name, path) in CLOCKEVENTS {
        print_device(name, path);
    }
}

/// Prints what the file at `path` holds, if it is there and holds something.
fn print_device(name: &str, path: &CStr) {
    let mut buffer = [0; 128];
    let Ok(content) = read_file(path, &mut buffer) else {
        return;
    };
    let Ok(content) = core::str::from_utf8(content) else {
        return;
    };
    let content = content.trim();
    if !content.is_empty() {
        say!("clocks {name}={content}");
    }
}
