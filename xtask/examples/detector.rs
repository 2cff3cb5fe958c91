//! A detector: finds the processes of a VM that hold a byte signature, makes sure by reading their
//! memory, and suppresses them.
//!
//! ```text
//! cargo run -p xtask --example detector -- ADDR VM SIGNATURE N [ROUNDS]
//! ```

use std::time::Duration;

use anyhow::{Context, Result, bail};
use xtask::detector::{Address, Client};

fn main() -> Result<()> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let [address, vm, signature, n, rounds @ ..] = words.as_slice() else {
        bail!("say where and what: ADDR VM SIGNATURE N [ROUNDS]");
    };
    let address: Address = address.parse()?;
    let rounds: u64 = rounds
        .first()
        .map_or(Ok(u64::MAX), |rounds| rounds.parse())?;
    let mut client = Client::connect(&address)?;
    for _ in 0..rounds {
        for found in client.command(&format!("find {vm} \"{signature}\""))? {
            let cr3 = found["cr3"].as_str().context("a match without cr3")?;
            if holds(&mut client, vm, cr3, &found["address"], signature)?
                && !is_target(&mut client, vm, cr3)?
            {
                client.command(&format!("suppress {vm} {cr3} {n}"))?;
                println!("suppressed {vm} {cr3}");
            }
        }
        while let Some(event) = client.event(Duration::from_secs(1))? {
            println!("{event}");
        }
    }
    Ok(())
}

/// Returns whether the process has the signature at this address now.
fn holds(
    client: &mut Client,
    vm: &str,
    cr3: &str,
    address: &serde_json::Value,
    signature: &str,
) -> Result<bool> {
    let digits = address.as_str().and_then(|text| text.strip_prefix("0x"));
    let address = u64::from_str_radix(digits.context("a match without address")?, 16)?;
    let bytes = client.read(vm, Some(cr3), address, signature.len() as u64)?;
    Ok(bytes.into_iter().eq(signature.bytes().map(Some)))
}

/// Returns whether the process is suppressed already.
fn is_target(client: &mut Client, vm: &str, cr3: &str) -> Result<bool> {
    let targets = client.command(&format!("targets {vm}"))?;
    Ok(targets.iter().any(|target| target["cr3"] == cr3))
}
