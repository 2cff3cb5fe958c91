//! Machines whose memory is in pieces, or does not suffice for all.

use anyhow::{Result, ensure};
use tests::{Case, tarpit};
use xtask::testbed::module::Guest;

/// There is a hole in the machine's memory, and on neither side of it enough for the VM. The guest sees none of that.
pub(crate) fn a_vm_whose_ram_lies_in_two_pieces_has_all_of_it(case: &Case) -> Result<()> {
    let guest = Guest {
        memory_mib: 400,
        ..Guest::new("large").command_line("mib=400")
    };
    let mut session = tarpit(case)?
        .memory_mib(512)
        .options("loglevel=debug on-end=poweroff")
        .before_boot("cutmem 200M 232M")
        .kernel("ram", &guest)?
        .boot()?;
    session.wait_for("400 MiB of RAM lie in pieces: [0xe800000..")?;
    session.wait_for("vm large ended: debug-exit 0")?;
    Ok(())
}

/// The message tells what would fit; the other VM has nothing to do with it.
pub(crate) fn a_vm_that_does_not_fit_is_left_out_and_the_other_runs(case: &Case) -> Result<()> {
    let large = Guest {
        memory_mib: 900,
        ..Guest::new("large")
    };
    let mut session = tarpit(case)?
        .memory_mib(512)
        .kernel("ram", &large)?
        .kernel("triple_fault", &Guest::new("small"))?
        .boot()?;
    session.wait_for("vm large: not enough memory for 900 MiB of RAM")?;
    session.wait_for("vm small ended: triple fault")?;
    let vms = session.query("vms")?;
    ensure!(
        vms.len() == 2 && vms.iter().all(|vm| vm["state"] == "ended"),
        "{vms:?}"
    );
    Ok(())
}
