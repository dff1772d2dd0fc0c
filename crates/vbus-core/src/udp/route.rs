//! What the routing table says of the way to an address, before anything was sent there.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};

use rustix::net::sockopt;

/// Bytes of the headers before a payload: IPv4 and UDP, IPv6 and UDP.
const HEADERS_V4: usize = 28;
const HEADERS_V6: usize = 48;
/// UDP's length field counts its own header; IPv4's total length counts both.
const PAYLOAD_MAX_V4: usize = 65_535 - HEADERS_V4;
const PAYLOAD_MAX_V6: usize = 65_535 - 8;

/// The largest datagram that the first link on the way to `to` carries whole, as the routing table has it. A hint
/// to begin the search with: links further on may carry less, and what ICMP claimed may have lowered it.
pub fn datagram_max(to: SocketAddr, from: Option<IpAddr>) -> io::Result<usize> {
    exit(to, from).map(|its| its.datagram_max)
}

/// The first link on the way to somewhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exit {
    /// Bytes of the largest datagram that it carries whole.
    pub datagram_max: usize,
    /// Our address there.
    pub address: IpAddr,
}

/// By which link the routing table leads to `to`.
pub fn exit(to: SocketAddr, from: Option<IpAddr>) -> io::Result<Exit> {
    let to = super::normal(to);
    let any = if to.is_ipv4() { IpAddr::from(Ipv4Addr::UNSPECIFIED) } else { Ipv6Addr::UNSPECIFIED.into() };
    // Connecting sends nothing; it only has the kernel look for the route.
    let socket = UdpSocket::bind((from.unwrap_or(any), 0))?;
    socket.connect(to)?;
    let datagram_max = if to.is_ipv4() {
        (sockopt::ip_mtu(&socket)? as usize).saturating_sub(HEADERS_V4).min(PAYLOAD_MAX_V4)
    } else {
        (sockopt::ipv6_mtu(&socket)? as usize).saturating_sub(HEADERS_V6).min(PAYLOAD_MAX_V6)
    };
    Ok(Exit { datagram_max, address: socket.local_addr()?.ip() })
}
