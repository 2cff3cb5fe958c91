//! Sockets of the Internet's protocols.

use syscalls::{Sysno, syscall};

use super::Errno;

/// The family of addresses of IPv4.
const AF_INET: u16 = 2;
/// `socket(2)`'s kind of a stream.
const SOCK_STREAM: usize = 1;
/// `socket(2)`'s kind of datagrams.
const SOCK_DGRAM: usize = 2;
/// `sendto(2)`'s option to fail rather than to wait.
const MSG_DONTWAIT: usize = 0x40;
/// `sendto(2)`'s option to send no signal where nobody receives.
const MSG_NOSIGNAL: usize = 0x4000;

/// The address of a service: a machine's, and a port there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Address {
    /// The machine's address.
    pub host: [u8; 4],
    /// The port.
    pub port: u16,
}

impl Address {
    /// Returns it as the kernel wants it: `sockaddr_in`.
    fn encoded(self) -> [u8; 16] {
        let mut bytes = [0; 16];
        let fields = [
            AF_INET.to_ne_bytes(),
            self.port.to_be_bytes(),
            [self.host[0], self.host[1]],
            [self.host[2], self.host[3]],
        ];
        for (place, byte) in bytes.iter_mut().zip(fields.as_flattened()) {
            *place = *byte;
        }
        bytes
    }
}

/// A socket that is connected. It is closed when it is dropped.
#[derive(Debug)]
pub struct Socket {
    descriptor: usize,
}

impl Socket {
    /// Returns a stream to and from this address, by TCP.
    ///
    /// # Errors
    /// What `socket(2)` and `connect(2)` say.
    pub fn stream(to: Address) -> Result<Self, Errno> {
        Self::connect(SOCK_STREAM, to)
    }

    /// Returns a socket that sends datagrams to this address, by UDP.
    ///
    /// # Errors
    /// What `socket(2)` and `connect(2)` say.
    pub fn datagrams(to: Address) -> Result<Self, Errno> {
        Self::connect(SOCK_DGRAM, to)
    }

    fn connect(kind: usize, to: Address) -> Result<Self, Errno> {
        let address = to.encoded();
        // SAFETY: no memory is involved.
        let descriptor = unsafe { syscall!(Sysno::socket, usize::from(AF_INET), kind, 0) }?;
        let socket = Self { descriptor };
        // SAFETY: the kernel only reads the address.
        unsafe { syscall!(Sysno::connect, descriptor, address.as_ptr(), address.len()) }?;
        Ok(socket)
    }

    /// Sends these bytes, waits until the kernel has taken some, and says how many.
    ///
    /// # Errors
    /// What `sendto(2)` says.
    pub fn send(&self, bytes: &[u8]) -> Result<usize, Errno> {
        self.send_with(bytes, MSG_NOSIGNAL)
    }

    /// Sends these bytes if the kernel takes them at once.
    ///
    /// # Errors
    /// What `sendto(2)` says: `EAGAIN` where it does not.
    pub fn send_at_once(&self, bytes: &[u8]) -> Result<usize, Errno> {
        self.send_with(bytes, MSG_NOSIGNAL | MSG_DONTWAIT)
    }

    fn send_with(&self, bytes: &[u8], options: usize) -> Result<usize, Errno> {
        let (data, length) = (bytes.as_ptr(), bytes.len());
        // SAFETY: the kernel only reads the slice, and there is no address.
        unsafe { syscall!(Sysno::sendto, self.descriptor, data, length, options, 0, 0) }
    }

    /// Waits for bytes, and says how many have come; none where the other side has ended the stream.
    ///
    /// # Errors
    /// What `read(2)` says.
    pub fn receive(&self, buffer: &mut [u8]) -> Result<usize, Errno> {
        let (data, length) = (buffer.as_mut_ptr(), buffer.len());
        // SAFETY: the kernel writes within the slice.
        unsafe { syscall!(Sysno::read, self.descriptor, data, length) }
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        // SAFETY: the descriptor is this socket's own.
        let _ = unsafe { syscall!(Sysno::close, self.descriptor) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_has_its_port_in_the_networks_order() {
        let address = Address {
            host: [10, 0, 0, 1],
            port: 80,
        };
        let expected = [2, 0, 0, 80, 10, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0];
        assert_eq!(address.encoded(), expected);
    }
}
