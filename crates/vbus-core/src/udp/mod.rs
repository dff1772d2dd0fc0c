//! Floor 2: one UDP socket for IPv4 and IPv6, and what the kernel can tell and save.
//!
//! [`Socket::send`] hands over up to [`SEGMENTS_MAX`] equal datagrams in one system call (GSO), and cuts them itself
//! where a network card refuses that; [`Socket::receive`] fills a [`Batch`] with as many as there are, several in
//! one buffer (GRO). Nothing here waits, and nothing that the network does to a datagram is an error of the socket:
//! [`Sent`] tells what became of it.
//!
//! Addresses are in their shortest form on both ways out: what IPv6 wraps of IPv4 is IPv4.

mod batch;
mod changes;
mod doors;
mod interfaces;
mod knock;
mod route;
mod socket;

pub use batch::{Batch, Datagram};
pub use changes::Changes;
pub use doors::Doors;
pub use interfaces::{Interface, interfaces};
pub use knock::{Echo, knock};
pub use route::{Exit, datagram_max, exit};
pub use socket::{BUFFER_BYTES, BindError, Buffers, Counts, Sent, Socket, Transmit};

use std::net::{IpAddr, SocketAddr, SocketAddrV6};

/// Most datagrams that one [`Transmit`] may hold (the kernel's `UDP_MAX_SEGMENTS` of old; newer ones take 128).
pub const SEGMENTS_MAX: usize = 64;
/// Most bytes that one [`Transmit`] may hold: an IP packet less both headers of IPv6.
pub const TRANSMIT_MAX: usize = 65_535 - 48;

/// The shortest form of an address: IPv4 within IPv6 is IPv4, and a flow label names no peer.
pub fn normal(address: SocketAddr) -> SocketAddr {
    match address {
        SocketAddr::V4(_) => address,
        SocketAddr::V6(v6) => match v6.ip().to_ipv4_mapped() {
            Some(v4) => SocketAddr::new(v4.into(), v6.port()),
            None => SocketAddrV6::new(*v6.ip(), v6.port(), 0, v6.scope_id()).into(),
        },
    }
}

/// [`normal`] for an address without a port.
pub fn normal_ip(address: IpAddr) -> IpAddr {
    address.to_canonical()
}

#[cfg(all(test, not(loom)))]
mod tests;
