//! Fetches a page from a web server in the network, over a connection of its own each time, and tells how
//! long that takes.

use core::fmt;

use super::Behavior;
use crate::say;
use crate::system::Errno;
use crate::system::sockets::{Address, Socket};
use crate::system::time::{Clock, now, sleep_for};
use crate::work::Work;

const SERVER: Address = Address {
    host: [10, 0, 0, 1],
    port: 80,
};
const REQUEST: &[u8] = b"GET / HTTP/1.0\r\n\r\n";
/// The beginning of the answer to a request that is granted.
const GRANTED: &[u8] = b"HTTP/1.1 200 ";

/// The number of pages whose times one line tells. A line costs what some pages do.
const PAGES: usize = 16;

/// The time to wait after a request that has failed, in nanoseconds.
const PAUSE: u64 = 10_000_000;

pub(super) const BEHAVIOR: Behavior = Behavior {
    name: "fetches",
    unit: "a page from the web server at 10.0.0.1, told by lines `fetched` of 16 times in us",
    run,
};

fn run(work: Work) -> Result<(), Errno> {
    let mut times = [0; PAGES];
    let mut known = 0;
    while work.goes_on() {
        let begun = now(Clock::Monotonic);
        match fetch(SERVER) {
            Ok(true) => {}
            Ok(false) => {
                say!("fetch refused");
                sleep_for(PAUSE);
                continue;
            }
            Err(error) => {
                say!("fetch failed: {error}");
                sleep_for(PAUSE);
                continue;
            }
        }
        let took = now(Clock::Monotonic).saturating_sub(begun);
        work.count();
        if let Some(place) = times.get_mut(known) {
            *place = took / 1_000;
            known += 1;
        }
        if known == PAGES {
            say!("fetched us={}", Times(&times));
            known = 0;
        }
    }
    Ok(())
}

/// Fetches a page. True if it was granted.
fn fetch(server: Address) -> Result<bool, Errno> {
    let connection = Socket::stream(server)?;
    connection.send(REQUEST)?;
    let mut buffer = [0; 4096];
    let mut first = true;
    let mut is_granted = false;
    loop {
        let length = connection.receive(&mut buffer)?;
        if length == 0 {
            return Ok(is_granted);
        }
        if first {
            is_granted = buffer
                .get(..length)
                .unwrap_or_default()
                .starts_with(GRANTED);
            first = false;
        }
    }
}

/// Times as text: `12,34,56`.
struct Times<'a>(&'a [u64]);

impl fmt::Display for Times<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter) -> fmt::Result {
        for (index, time) in self.0.iter().enumerate() {
            let comma = if index == 0 { "" } else { "," };
            write!(formatter, "{comma}{time}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::TcpListener;

    use super::*;

    /// Fetches from a server that gives this answer.
    fn fetch_from(answer: &'static [u8]) -> Result<bool, Errno> {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let port = listener.local_addr().expect("an address").port();
        let server = std::thread::spawn(move || {
            let (mut connection, _) = listener.accept().expect("a connection");
            let mut request = vec![0; REQUEST.len()];
            connection.read_exact(&mut request).expect("a request");
            connection.write_all(answer).expect("to answer");
            request
        });
        let result = fetch(Address {
            host: [127, 0, 0, 1],
            port,
        });
        assert_eq!(server.join().expect("a request"), REQUEST);
        result
    }

    #[test]
    fn a_page_is_there_when_all_has_come_and_the_server_has_granted_it() {
        assert_eq!(fetch_from(b"HTTP/1.1 200 OK\r\n\r\nhello"), Ok(true));
        assert_eq!(fetch_from(b"HTTP/1.1 404 Not Found\r\n\r\n"), Ok(false));
        assert_eq!(fetch_from(b""), Ok(false));
    }

    #[test]
    fn a_server_that_is_not_there_is_told() {
        let port = {
            let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
            listener.local_addr().expect("an address").port()
        };
        let result = fetch(Address {
            host: [127, 0, 0, 1],
            port,
        });
        assert_eq!(result, Err(Errno::ECONNREFUSED));
    }

    #[test]
    fn times_are_told_as_counts_are() {
        assert_eq!(Times(&[12, 3, 456]).to_string(), "12,3,456");
    }
}
