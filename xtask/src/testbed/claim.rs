//! Names for runs that may happen at the same time: each gets files of its own.

use std::fs::{File, TryLockError};

use anyhow::{Context, Result};

use crate::testbed::paths;

/// A name that no other process uses until this is dropped.
#[derive(Debug)]
pub struct Claim {
    name: String,
    /// The file that is locked while we live, and unlocked by the system however we die.
    _lock: File,
}

impl Claim {
    /// Claims `name`, or else `name-2`, `name-3` and so on.
    ///
    /// # Errors
    /// When the lock file cannot be made.
    pub fn new(name: &str) -> Result<Self> {
        let directory = paths::logs();
        std::fs::create_dir_all(&directory)?;
        let numbered = (2..).map(|number| format!("{name}-{number}"));
        for name in std::iter::once(name.to_owned()).chain(numbered) {
            let path = directory.join(format!("{name}.lock"));
            let lock =
                File::create(&path).with_context(|| format!("cannot create {}", path.display()))?;
            match lock.try_lock() {
                Ok(()) => return Ok(Self { name, _lock: lock }),
                Err(TryLockError::WouldBlock) => {}
                Err(TryLockError::Error(error)) => {
                    return Err(error).with_context(|| format!("cannot lock {}", path.display()));
                }
            }
        }
        unreachable!("the numbers do not end")
    }

    /// Returns the name.
    pub fn name(&self) -> &str {
        &self.name
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_claimed_name_is_free_again_when_its_owner_is_gone() -> Result<()> {
        let first = Claim::new("claim-test")?;
        let second = Claim::new("claim-test")?;
        assert_eq!(
            (first.name(), second.name()),
            ("claim-test", "claim-test-2")
        );
        drop(first);
        assert_eq!(Claim::new("claim-test")?.name(), "claim-test");
        Ok(())
    }
}
