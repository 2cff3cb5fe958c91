//! Bochs's display, a server of the RFB protocol: Debian's build has none that shows nothing.
//!
//! Bochs 2.7 takes the first port from 5900 on that is free, in `rfbServerThreadInit` of
//! `gui/rfb.cc`: for each port it binds one and the same socket, with `SO_REUSEADDR`, and then
//! listens. Where two start at the same time that goes wrong. Both bind 5900, which Linux allows as
//! long as neither listens; the second one's listen(2) fails with `EADDRINUSE`; and all its further
//! bind(2) fail with `EINVAL`, because its socket is bound. It panics: "RFB could not bind any port
//! between 5900 and 5949".
//!
//! So those of ours start one after the other ([`Turn`]), and one that met a Bochs of somebody else's
//! is started again ([`NoPort`]).

use std::fmt;
use std::net::{Ipv4Addr, TcpListener};
use std::ops::RangeInclusive;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener};
use std::path::Path;
use std::process::Child;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

/// Those that Bochs tries, in this order.
const PORTS: RangeInclusive<u16> = 5900..=5949;

/// The name of the socket that whoever starts a Bochs holds.
const NAME: &str = "tarpit-xtask-bochs-starts";

/// The right to start a Bochs, until dropped: nobody else has it, on this machine.
///
/// It is a socket in the abstract name space, which belongs to a network namespace as the ports do,
/// is the same for all users, and is gone when its process is, however that ends.
pub(in super::super) struct Turn {
    _socket: UnixListener,
}

impl Turn {
    /// Waits for it.
    ///
    /// # Errors
    /// When others have it for longer than `limit`, or there are no such sockets.
    pub(in super::super) fn take(limit: Duration) -> Result<Self> {
        Self::of_name(NAME, limit)
    }

    fn of_name(name: &str, limit: Duration) -> Result<Self> {
        let address = SocketAddr::from_abstract_name(name)?;
        let began = Instant::now();
        loop {
            match UnixListener::bind_addr(&address) {
                Ok(socket) => return Ok(Self { _socket: socket }),
                Err(error) if error.kind() == std::io::ErrorKind::AddrInUse => {}
                Err(error) => return Err(error).context("no socket to take turns with"),
            }
            if began.elapsed() > limit {
                bail!(
                    "other machines have been starting for {} s",
                    limit.as_secs()
                );
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

/// The failure of Bochs to find a port, although there is one that is free.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in super::super) struct NoPort {
    /// The port that it could bind and not listen on, where it was that.
    contested: Option<u16>,
}

impl fmt::Display for NoPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Bochs found no port for its display: ")?;
        match self.contested {
            Some(port) => write!(
                f,
                "another program began to listen on {port} between its bind and its listen \
                 (EADDRINUSE), and a bound socket cannot be bound to the next port (EINVAL)"
            ),
            None => f.write_str("all were taken when it tried, and one is free now"),
        }
    }
}

impl std::error::Error for NoPort {}

/// The state of the display, by Bochs's log so far.
#[derive(Clone, Debug, PartialEq, Eq)]
enum State {
    Starting,
    Listening,
    /// A display that has given up.
    Failed {
        contested: Option<u16>,
    },
}

fn state(log: &str) -> State {
    let (mut port, mut contested) = (None, None);
    for line in log.lines() {
        if line.contains("listening for connections on port ") {
            return State::Listening;
        }
        if line.contains("RFB could not bind any port") {
            return State::Failed { contested };
        }
        if let Some((_, number)) = line.split_once("Trying port ") {
            port = number.trim().parse().ok();
        }
        if line.contains("Could not listen on socket") {
            contested = port;
        }
    }
    State::Starting
}

/// Waits until the display of the Bochs that writes this log listens.
///
/// # Errors
/// [`NoPort`] if it is worth to start it again; other errors when no port is free, Bochs ends, or it
/// takes too long.
pub(in super::super) fn wait(child: &mut Child, log: &Path, limit: Duration) -> Result<()> {
    let began = Instant::now();
    loop {
        // First: what it wrote before it ended counts.
        let ended = child.try_wait()?;
        let said = std::fs::read(log).unwrap_or_default();
        match state(&String::from_utf8_lossy(&said)) {
            State::Listening => return Ok(()),
            State::Failed { contested } => return Err(why(contested)),
            State::Starting => {}
        }
        if let Some(status) = ended {
            bail!("it ended with {status}");
        }
        if began.elapsed() > limit {
            bail!("no display after {} s", limit.as_secs());
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Returns why there was no port: found out by trying ourselves, with the same options and
/// addresses.
fn why(contested: Option<u16>) -> anyhow::Error {
    let attempts = PORTS.map(|port| (port, TcpListener::bind((Ipv4Addr::UNSPECIFIED, port))));
    let mut errors = Vec::new();
    for (port, attempt) in attempts {
        match attempt {
            Ok(_) => return NoPort { contested }.into(),
            Err(error) => errors.push(format!("{port}: {error}")),
        }
    }
    anyhow::anyhow!(
        "Bochs needs a port for its display, and none is free:\n{}",
        errors.join("\n")
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_one_has_the_turn_and_it_is_passed_on() -> Result<()> {
        let name = format!("tarpit-xtask-turn-test-{}", std::process::id());
        let first = Turn::of_name(&name, Duration::ZERO)?;
        let Err(error) = Turn::of_name(&name, Duration::ZERO) else {
            bail!("two have the turn")
        };
        assert!(error.to_string().contains("have been starting"), "{error}");
        let waiting = std::thread::spawn(move || Turn::of_name(&name, Duration::from_secs(60)));
        drop(first);
        waiting.join().expect("no panic").map(drop)
    }

    /// Two sockets do what two Bochs do when they start at the same time.
    #[test]
    fn a_port_is_contested_between_bind_and_listen_as_the_log_tells_it() {
        let log = "00000000000i[RFB   ] Trying port 5900\n\
                   00000000000i[RFB   ] Could not listen on socket.\n\
                   00000000000i[RFB   ] Trying port 5901\n\
                   00000000000i[RFB   ] Could not bind socket.\n";
        assert_eq!(state(log), State::Starting);
        let panic =
            "00000000000p[RFB   ] >>PANIC<< RFB could not bind any port between 5900 and 5949\n";
        let contested = Some(5900);
        assert_eq!(state(&format!("{log}{panic}")), State::Failed { contested });
        let said = NoPort { contested }.to_string();
        assert!(
            said.contains("5900") && said.contains("EADDRINUSE"),
            "{said}"
        );
    }

    #[test]
    fn a_display_that_found_the_second_port_is_listening() {
        let log = "00000000000i[RFB   ] Trying port 5900\n\
                   00000000000i[RFB   ] Could not bind socket.\n\
                   00000000000i[RFB   ] Trying port 5901\n\
                   00000000000i[RFB   ] listening for connections on port 5901\n";
        assert_eq!(state(log), State::Listening);
    }

    #[test]
    fn taken_ports_alone_are_not_contested() {
        let log = "i[RFB   ] Trying port 5949\ni[RFB   ] Could not bind socket.\n\
                   p[RFB   ] >>PANIC<< RFB could not bind any port between 5900 and 5949\n";
        assert_eq!(state(log), State::Failed { contested: None });
    }
}
