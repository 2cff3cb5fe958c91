//! Floods a machine in the network with datagrams that nobody there has asked for, and computes in between: what
//! malware does to others and to its own machine.

use super::Behavior;
use crate::system::Errno;
use crate::system::sockets::{Address, Socket};
use crate::work::Work;

/// The port at which nobody listens: that of the service `discard`.
const VICTIM: Address = Address {
    host: [10, 0, 0, 1],
    port: 9,
};
/// The length of a datagram, in bytes.
const LENGTH: usize = 1024;
/// The number of datagrams between two computations.
const BURST: u32 = 16;

pub(super) const BEHAVIOR: Behavior = Behavior {
    name: "floods",
    unit: "16 datagrams of 1 KiB to 10.0.0.1, as far as the kernel takes them, and a computation",
    run,
};

fn run(work: Work) -> Result<(), Errno> {
    let socket = Socket::datagrams(VICTIM)?;
    let mut computation = work.computation(0);
    while work.goes_on() {
        burst(&socket);
        computation.do_unit();
    }
    Ok(())
}

fn burst(socket: &Socket) {
    for _ in 0..BURST {
        // Refused by the victim, or no room in the kernel: it goes on all the same.
        let _ = socket.send_at_once(&[0x5a; LENGTH]);
    }
}

#[cfg(test)]
mod tests {
    use std::net::UdpSocket;
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_burst_reaches_who_listens_and_is_no_error_where_nobody_does() {
        let victim = UdpSocket::bind("127.0.0.1:0").expect("a port");
        victim
            .set_read_timeout(Some(Duration::from_secs(10)))
            .expect("a limit");
        let port = victim.local_addr().expect("an address").port();
        let socket = Socket::datagrams(Address {
            host: [127, 0, 0, 1],
            port,
        })
        .expect("a socket");
        burst(&socket);
        let mut datagram = [0; 2 * LENGTH];
        for _ in 0..BURST {
            assert_eq!(victim.recv(&mut datagram).expect("a datagram"), LENGTH);
        }
        drop(victim);
        burst(&socket);
    }
}
