//! `cargo xtask top`.

use std::io::IsTerminal;

use anyhow::{Result, bail};
use clap::Args;

use super::ctl::Connection;
use crate::detector::Client;
use crate::top;

/// Whom to watch.
#[derive(Args, Clone, Debug)]
pub(super) struct Options {
    #[command(flatten)]
    connection: Connection,
    /// The factor by which the key `s` suppresses a process
    #[arg(long, value_name = "N", default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..=65535))]
    factor: u32,
}

/// Watches until the user quits.
///
/// # Errors
/// When nobody is there, there is no terminal, or the connection fails.
pub(super) fn run(options: &Options) -> Result<()> {
    if !std::io::stdout().is_terminal() {
        bail!("`top` needs a terminal: `cargo xtask ctl vms` and the like print lists");
    }
    let mut client = Client::connect(&options.connection.address())?;
    let mut terminal = ratatui::try_init()?;
    let result = top::run(&mut client, &mut terminal, options.factor);
    ratatui::restore();
    result
}
