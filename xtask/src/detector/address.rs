//! Where a tarpit's line for detectors can be reached.

use std::convert::Infallible;
use std::fmt;
use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::str::FromStr;

use anyhow::{Context, Result};
use rustix::termios::{OptionalActions, isatty, tcgetattr, tcsetattr};

use crate::testbed::relay::Relay;

/// An address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    /// `HOST:PORT`: TCP.
    Tcp(String),
    /// A path: a socket, a serial port or a pseudo-terminal.
    Path(PathBuf),
}

/// Both directions of a connection.
pub(super) type Ends = (Box<dyn Read + Send>, Box<dyn Write + Send>);

impl Default for Address {
    /// Returns that of `cargo xtask run --detector` on this machine.
    fn default() -> Self {
        Self::Path(Relay::path_of("run"))
    }
}

impl FromStr for Address {
    type Err = Infallible;

    /// Takes `tcp:HOST:PORT`, `unix:PATH`, `HOST:PORT`, or a path for anything else.
    fn from_str(text: &str) -> Result<Self, Infallible> {
        if let Some(path) = text.strip_prefix("unix:") {
            return Ok(Self::Path(path.into()));
        }
        if let Some(host) = text.strip_prefix("tcp:") {
            return Ok(Self::Tcp(host.to_owned()));
        }
        let is_port = |port: &str| !port.is_empty() && port.bytes().all(|it| it.is_ascii_digit());
        Ok(match text.rsplit_once(':') {
            Some((host, port)) if is_port(port) && !host.contains('/') => {
                Self::Tcp(text.to_owned())
            }
            _ => Self::Path(text.into()),
        })
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(host) => f.write_str(host),
            Self::Path(path) => path.display().fmt(f),
        }
    }
}

impl Address {
    /// Connects.
    pub(super) fn connect(&self) -> Result<Ends> {
        let hint = || {
            format!(
                "cannot connect to {self}: is a tarpit with `detector=on` there? \
                 (`cargo xtask run --detector` starts one)"
            )
        };
        match self {
            Self::Tcp(host) => {
                let stream = TcpStream::connect(host).with_context(hint)?;
                stream.set_nodelay(true)?;
                Ok((Box::new(stream.try_clone()?), Box::new(stream)))
            }
            Self::Path(path) => {
                let kind = std::fs::metadata(path).with_context(hint)?.file_type();
                if kind.is_socket() {
                    let stream = UnixStream::connect(path).with_context(hint)?;
                    return Ok((Box::new(stream.try_clone()?), Box::new(stream)));
                }
                let open = OpenOptions::new().read(true).write(true).open(path);
                let file: File = open.with_context(hint)?;
                if isatty(&file) {
                    let mut settings = tcgetattr(&file)?;
                    settings.make_raw();
                    // What carriers and modems would say does not matter.
                    settings
                        .control_modes
                        .insert(rustix::termios::ControlModes::CLOCAL);
                    settings.set_speed(115_200)?;
                    tcsetattr(&file, OptionalActions::Now, &settings)?;
                }
                Ok((Box::new(file.try_clone()?), Box::new(file)))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_a_host_with_a_port_or_a_path() -> Result<()> {
        let tcp = |text: &str| Address::Tcp(text.to_owned());
        for (text, address) in [
            ("localhost:4444", tcp("localhost:4444")),
            ("[::1]:4444", tcp("[::1]:4444")),
            ("tcp:host:1", tcp("host:1")),
            ("/dev/ttyS1", Address::Path("/dev/ttyS1".into())),
            ("unix:a:1", Address::Path("a:1".into())),
            ("dir/a:1", Address::Path("dir/a:1".into())),
            ("socket", Address::Path("socket".into())),
        ] {
            assert_eq!(text.parse::<Address>()?, address, "{text}");
        }
        Ok(())
    }

    #[test]
    fn nobody_there_is_told_with_the_remedy() -> Result<()> {
        let error = "/nowhere".parse::<Address>()?.connect().err();
        let error = error.context("connected to nothing")?.to_string();
        assert!(
            error.contains("/nowhere") && error.contains("run --detector"),
            "{error}"
        );
        Ok(())
    }
}

#[cfg(test)]
mod fuzz {
    use super::*;
    use crate::test_text::text;

    #[test]
    fn addresses_of_tarpits() {
        fuzzing::check!().for_each(|bytes: &[u8]| {
            let given = text(
                bytes,
                &[
                    "tcp:",
                    "unix:",
                    ":",
                    "/",
                    "localhost",
                    "9000",
                    "::1",
                    "[",
                    "]",
                ],
            );
            let Ok(address) = given.parse::<Address>();
            let shown = address.to_string();
            assert!(given.ends_with(&shown), "{given}");
            // What is shown, with its kind in front, is the same again.
            let kind = match &address {
                Address::Tcp(_) => "tcp",
                Address::Path(_) => "unix",
            };
            assert_eq!(format!("{kind}:{shown}").parse(), Ok(address));
        });
    }
}
