//! Writes to its serial console as fast as it can: what that costs its neighbors is the question.
#![cfg_attr(target_os = "none", no_std, no_main)]

use kernels::{Report, println};

fn run(_: &mut Report) {
    let mut lines = 0_u64;
    loop {
        println!(
            "babble: line {lines} of very many, each of which says that there are more to come"
        );
        lines += 1;
    }
}

kernels::kernel!(run);
