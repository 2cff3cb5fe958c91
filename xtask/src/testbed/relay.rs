//! A machine's line for detectors, for any number of clients at a time: a socket in the file system.
//!
//! The machine has one serial line. What it says, all clients hear, line by line; what they say is
//! passed on line by line, so that no two mix. Each knows its answers by their ids.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result};

use crate::testbed::paths;

/// The longest line that is passed on: tarpit takes shorter ones only.
const LONGEST: u64 = 64 << 10;

/// The time that a client has to take a line before it is dropped.
const TAKES_WITHIN: Duration = Duration::from_secs(1);

/// The clients that listen.
type Clients = Arc<Mutex<Vec<UnixStream>>>;

/// A relay, until it is dropped.
#[derive(Debug)]
pub struct Relay {
    path: PathBuf,
}

impl Relay {
    /// Returns where the relay of the run `name` is.
    pub fn path_of(name: &str) -> PathBuf {
        paths::logs().join(format!("{name}.detector"))
    }

    /// Begins to relay between `machine` and whoever connects to the socket of the run `name`.
    ///
    /// # Errors
    /// When the socket cannot be made.
    pub fn start(name: &str, machine: TcpStream) -> Result<Self> {
        Self::at(&Self::path_of(name), machine)
    }

    fn at(path: &Path, machine: TcpStream) -> Result<Self> {
        // One that is left from a run that was killed.
        let _ = std::fs::remove_file(path);
        let listener = UnixListener::bind(path)
            .with_context(|| format!("cannot make the socket {}", path.display()))?;
        let clients = Clients::default();
        let heard = machine.try_clone()?;
        let to_machine = Arc::new(Mutex::new(machine));
        std::thread::spawn({
            let clients = clients.clone();
            move || pass_on_to_clients(heard, &clients)
        });
        std::thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let to_machine = to_machine.clone();
                let Ok(heard) = client.try_clone() else {
                    continue;
                };
                let _ = client.set_write_timeout(Some(TAKES_WITHIN));
                lock(&clients).push(client);
                std::thread::spawn(move || pass_on_to_machine(heard, &to_machine));
            }
        });
        Ok(Self {
            path: path.to_owned(),
        })
    }

    /// Returns where the socket is.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Calls `each` with every line, with its end, until there are no more or it returns false.
fn for_each_line(from: impl Read, mut each: impl FnMut(&[u8]) -> bool) {
    let mut from = BufReader::new(from);
    let mut line = Vec::new();
    loop {
        line.clear();
        match from.by_ref().take(LONGEST).read_until(b'\n', &mut line) {
            Ok(0) | Err(_) => return,
            Ok(_) if each(&line) => {}
            Ok(_) => return,
        }
    }
}

fn pass_on_to_clients(machine: TcpStream, clients: &Mutex<Vec<UnixStream>>) {
    for_each_line(machine, |line| {
        lock(clients).retain_mut(|client| client.write_all(line).is_ok());
        true
    });
    // The machine is gone: so are they.
    for client in lock(clients).drain(..) {
        let _ = client.shutdown(std::net::Shutdown::Both);
    }
}

fn pass_on_to_machine(client: UnixStream, machine: &Mutex<TcpStream>) {
    for_each_line(client, |line| {
        let mut line = line.to_vec();
        if !line.ends_with(b"\n") {
            // It has gone in the middle of a line, or the line is too long: the next one is whole.
            line.push(b'\n');
        }
        lock(machine).write_all(&line).is_ok()
    });
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    struct Bench {
        machine: BufReader<TcpStream>,
        relay: Relay,
        _directory: tempfile::TempDir,
    }

    fn bench() -> Result<Bench> {
        let listener = TcpListener::bind(("127.0.0.1", 0))?;
        let ours = TcpStream::connect(listener.local_addr()?)?;
        let (theirs, _) = listener.accept()?;
        let directory = tempfile::tempdir()?;
        Ok(Bench {
            machine: BufReader::new(theirs),
            relay: Relay::at(&directory.path().join("socket"), ours)?,
            _directory: directory,
        })
    }

    impl Bench {
        fn client(&self) -> Result<BufReader<UnixStream>> {
            Ok(BufReader::new(UnixStream::connect(self.relay.path())?))
        }
    }

    fn line(from: &mut impl BufRead) -> Result<String> {
        let mut line = String::new();
        from.read_line(&mut line)?;
        Ok(line)
    }

    #[test]
    fn clients_do_not_mix_and_all_hear_the_machine() -> Result<()> {
        let mut bench = bench()?;
        let (mut one, mut two) = (bench.client()?, bench.client()?);
        one.get_mut().write_all(b"from o")?;
        two.get_mut().write_all(b"from two\n")?;
        assert_eq!(line(&mut bench.machine)?, "from two\n");
        one.get_mut().write_all(b"ne\n")?;
        assert_eq!(line(&mut bench.machine)?, "from one\n");
        bench.machine.get_mut().write_all(b"to all\n")?;
        assert_eq!(line(&mut one)?, "to all\n");
        assert_eq!(line(&mut two)?, "to all\n");
        Ok(())
    }

    #[test]
    fn a_client_that_goes_in_the_middle_of_a_line_spoils_nobody_elses() -> Result<()> {
        let mut bench = bench()?;
        let (mut one, mut two) = (bench.client()?, bench.client()?);
        one.get_mut().write_all(b"half")?;
        drop(one);
        assert_eq!(line(&mut bench.machine)?, "half\n");
        two.get_mut().write_all(b"whole\n")?;
        assert_eq!(line(&mut bench.machine)?, "whole\n");
        // Who has gone is forgotten.
        for number in 0..100 {
            bench
                .machine
                .get_mut()
                .write_all(format!("{number}\n").as_bytes())?;
            assert_eq!(line(&mut two)?, format!("{number}\n"));
        }
        Ok(())
    }

    #[test]
    fn clients_see_the_end_of_the_machine() -> Result<()> {
        let mut bench = bench()?;
        let mut client = bench.client()?;
        client.get_mut().write_all(b"hello\n")?;
        line(&mut bench.machine)?;
        let Bench { machine, .. } = bench;
        drop(machine);
        assert_eq!(line(&mut client)?, "");
        Ok(())
    }
}
