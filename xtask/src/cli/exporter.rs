//! `cargo xtask exporter`: metrics for Prometheus, by HTTP.

use std::time::Duration;

use anyhow::{Result, anyhow};
use clap::Args;
use tiny_http::{Header, Method, Request, Response, Server};

use crate::detector::metrics::{CONTENT_TYPE, Metrics};
use crate::detector::{Address, Client};

/// The longest wait for one answer of a host: Prometheus waits ten seconds for all by default.
const PATIENCE: Duration = Duration::from_secs(5);

/// Which hosts, and where to tell of them.
#[derive(Args, Clone, Debug)]
pub(super) struct Options {
    /// A host's line for detectors (COM2), as for `ctl`, and in front perhaps a name for it:
    /// `web1=host:4444`. Can be given several times [default: that of `cargo xtask run --detector`]
    #[arg(long, value_name = "[NAME=]ADDR")]
    connect: Vec<String>,
    /// Where to listen for HTTP; the metrics are at /metrics
    #[arg(long, value_name = "HOST:PORT", default_value = "127.0.0.1:9469")]
    listen: String,
}

/// A host, and the connection to it while there is one.
struct Host {
    name: String,
    address: Address,
    client: Option<Client>,
}

/// Serves until it is ended.
///
/// # Errors
/// When it cannot listen.
pub(super) fn run(options: &Options) -> Result<()> {
    let mut hosts = hosts(&options.connect)?;
    let server = listen(&options.listen)?;
    eprintln!("Metrics at http://{}/metrics", options.listen);
    for request in server.incoming_requests() {
        answer(request, &mut hosts);
    }
    Ok(())
}

fn listen(address: &str) -> Result<Server> {
    Server::http(address).map_err(|error| anyhow!("cannot listen at {address}: {error}"))
}

fn hosts(connect: &[String]) -> Result<Vec<Host>> {
    let host = |text: &String| {
        let (name, address) = match text.split_once('=') {
            Some((name, address)) => (name.to_owned(), address),
            None => (text.clone(), text.as_str()),
        };
        let address = address.parse()?;
        Ok(Host {
            name,
            address,
            client: None,
        })
    };
    if connect.is_empty() {
        let address = Address::default();
        return Ok(vec![Host {
            name: "run".to_owned(),
            address,
            client: None,
        }]);
    }
    connect.iter().map(host).collect()
}

fn answer(request: Request, hosts: &mut [Host]) {
    // Who has gone does not hear it.
    let _ = match (request.method(), request.url()) {
        (Method::Get | Method::Head, "/metrics") => {
            let mut response = Response::from_string(collect(hosts).text());
            if let Ok(header) = Header::from_bytes("Content-Type", CONTENT_TYPE) {
                response.add_header(header);
            }
            request.respond(response)
        }
        (Method::Get | Method::Head, _) => {
            let response = Response::from_string("the metrics are at /metrics\n");
            request.respond(response.with_status_code(404))
        }
        _ => request.respond(Response::empty(405)),
    };
}

/// Connects to all hosts that are not connected, at the same time, and asks one after the other.
fn collect(hosts: &mut [Host]) -> Metrics {
    std::thread::scope(|scope| {
        for host in hosts.iter_mut().filter(|host| host.client.is_none()) {
            scope.spawn(|| host.client = Client::connect_within(&host.address, PATIENCE).ok());
        }
    });
    let mut metrics = Metrics::default();
    for host in hosts {
        if !metrics.add_host(&host.name, host.client.as_mut()) {
            host.client = None;
        }
    }
    metrics
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::TcpStream;

    use anyhow::Context;

    use super::*;

    #[test]
    fn a_host_that_is_down_is_told_by_http() -> Result<()> {
        let mut hosts = hosts(&["web=/nowhere".to_owned(), "127.0.0.1:1".to_owned()])?;
        let server = listen("127.0.0.1:0")?;
        let port = server.server_addr().to_ip().context("no port")?.port();
        let scrape = std::thread::spawn(move || -> Result<Vec<String>> {
            let get = |what: &str| {
                let mut stream = TcpStream::connect(("127.0.0.1", port))?;
                write!(
                    stream,
                    "{what} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"
                )?;
                let mut answer = String::new();
                stream.read_to_string(&mut answer)?;
                Ok(answer)
            };
            ["GET /metrics", "GET /", "POST /metrics"]
                .into_iter()
                .map(get)
                .collect()
        });
        for _ in 0..3 {
            answer(server.recv()?, &mut hosts);
        }
        let answers = scrape.join().map_err(|_| anyhow!("no answer"))??;
        assert!(answers[0].starts_with("HTTP/1.1 200"), "{}", answers[0]);
        assert!(answers[0].contains("tarpit_up{host=\"web\"} 0\n"));
        assert!(answers[0].contains("tarpit_up{host=\"127.0.0.1:1\"} 0\n"));
        assert!(answers[0].contains("version=0.0.4"));
        assert!(answers[1].starts_with("HTTP/1.1 404"));
        assert!(answers[2].starts_with("HTTP/1.1 405"));
        Ok(())
    }
}
