//! Why nobody answers at an address: what the kernel and the host there say when somebody knocks.
//!
//! A node's own socket is connected to nobody, and hears little of what ICMP says. This is a socket per address for a
//! moment, which does; an empty datagram is what it sends, and no protocol takes that for anything.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

/// From knock to knock: hosts say only so much by ICMP in a second.
const PAUSE: Duration = Duration::from_millis(100);

/// What came of a knock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Echo {
    /// The host says that no program has this port, or a firewall of it says so.
    Closed,
    /// Our own kernel does not let it out.
    Forbidden,
    /// Nothing came back.
    Silent,
    /// Nobody on the link has this address.
    NoHost,
    /// There is no way to that network.
    NoRoute,
}

/// Knocks at all of `addresses` at once, for as long as `patience` lasts where nothing comes back.
pub fn knock(addresses: &[SocketAddr], patience: Duration) -> Vec<Echo> {
    let mut doors: Vec<Door> = addresses.iter().map(|&address| Door::at(super::normal(address))).collect();
    let end = Instant::now() + patience;
    while doors.iter().any(|door| door.echo.is_none()) && Instant::now() < end {
        doors.iter_mut().for_each(Door::knock);
        wait(&doors, PAUSE.min(end.saturating_duration_since(Instant::now())));
        doors.iter_mut().for_each(Door::listen);
    }
    let deserted = deserted();
    doors.iter().map(|door| door.verdict(&deserted)).collect()
}

struct Door {
    address: SocketAddr,
    socket: Option<UdpSocket>,
    echo: Option<Echo>,
}

impl Door {
    fn at(address: SocketAddr) -> Self {
        match connect(address) {
            Ok(socket) => Self { address, socket: Some(socket), echo: None },
            Err(error) => Self { address, socket: None, echo: Some(meaning(&error).unwrap_or(Echo::Silent)) },
        }
    }

    fn knock(&mut self) {
        self.hear(|socket| socket.send(&[]));
    }

    fn listen(&mut self) {
        self.hear(|socket| socket.recv(&mut [0]));
    }

    fn hear(&mut self, call: impl FnOnce(&UdpSocket) -> io::Result<usize>) {
        let socket = self.socket.as_ref().filter(|_| self.echo.is_none());
        if let Some(Err(error)) = socket.map(call) {
            self.echo = meaning(&error);
        }
    }

    fn verdict(&self, deserted: &[IpAddr]) -> Echo {
        match self.echo {
            None | Some(Echo::Silent) if deserted.contains(&self.address.ip()) => Echo::NoHost,
            echo => echo.unwrap_or(Echo::Silent),
        }
    }
}

fn connect(address: SocketAddr) -> io::Result<UdpSocket> {
    let any =
        if address.is_ipv4() { IpAddr::from(Ipv4Addr::UNSPECIFIED) } else { Ipv6Addr::UNSPECIFIED.into() };
    let socket = UdpSocket::bind((any, 0))?;
    socket.set_nonblocking(true)?;
    socket.connect(address)?;
    Ok(socket)
}

fn meaning(error: &io::Error) -> Option<Echo> {
    Some(match error.raw_os_error()? {
        libc::ECONNREFUSED => Echo::Closed,
        libc::EPERM => Echo::Forbidden,
        libc::EHOSTUNREACH | libc::EHOSTDOWN => Echo::NoHost,
        // A firewall on the way that says no.
        libc::EACCES => Echo::Closed,
        libc::ENETUNREACH | libc::ENETDOWN | libc::EADDRNOTAVAIL => Echo::NoRoute,
        _ => return None,
    })
}

/// Until there is news at a door of which nothing is known, or the time is over.
fn wait(doors: &[Door], time: Duration) {
    let open = doors.iter().filter(|door| door.echo.is_none()).filter_map(|door| door.socket.as_ref());
    let mut waited: Vec<PollFd<'_>> = open.map(|socket| PollFd::new(socket, PollFlags::IN)).collect();
    let time = Timespec::try_from(time).unwrap_or_default();
    // Whatever it says: the sockets are asked next.
    let _ = poll(&mut waited, Some(&time));
}

/// Addresses of IPv4 for which nobody answered when the kernel asked on the link.
fn deserted() -> Vec<IpAddr> {
    let table = std::fs::read_to_string("/proc/net/arp").unwrap_or_default();
    let nobody = |line: &&str| line.split_whitespace().nth(2) == Some("0x0");
    let address = |line: &str| line.split_whitespace().next()?.parse().ok();
    table.lines().skip(1).filter(nobody).filter_map(address).collect()
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn a_port_without_a_program_is_told_from_one_that_says_nothing() {
        let silent = UdpSocket::bind("127.0.0.1:0").expect("a port");
        let closed = UdpSocket::bind("127.0.0.1:0").expect("a port").local_addr().expect("its address");
        let addresses = [silent.local_addr().expect("its address"), closed];
        assert_eq!(knock(&addresses, Duration::from_millis(300)), [Echo::Silent, Echo::Closed]);
    }
}
