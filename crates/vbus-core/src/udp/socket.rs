//! The socket: how it is made, what a send can come to, and what it counted.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use quinn_udp::{EcnCodepoint, UdpSockRef, UdpSocketState};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType, sockopt};

use super::{Batch, SEGMENTS_MAX, TRANSMIT_MAX, normal};
use crate::base::descriptor::Descriptor;
use crate::base::ecn::Ecn;

/// What is asked for in each direction: 64 full batches, or 30 ms at 1 Gbit/s.
pub const BUFFER_BYTES: usize = 4 << 20;
/// Destinations of which it is remembered that the way there cuts no batches. More than these: none does.
const UNCUT_MAX: usize = 64;

/// A UDP socket that never waits. Closed in the child of a fork.
pub struct Socket {
    file: Descriptor,
    options: UdpSocketState,
    address: SocketAddr,
    buffers: Buffers,
    /// Where segmentation was refused, so that we cut batches ourselves.
    uncut: Vec<IpAddr>,
    counts: Counts,
}

/// Why a socket could not be had.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// Somebody has it.
    #[error(
        "UDP address {address} is taken by another program; choose another port, or 0 to have one picked"
    )]
    Taken {
        /// What was asked for.
        address: SocketAddr,
    },
    /// No interface has it.
    #[error("UDP address {address} is none of this host; `[::]:{}` listens on all", address.port())]
    Foreign {
        /// What was asked for.
        address: SocketAddr,
    },
    /// A port below 1024, most likely.
    #[error(
        "UDP address {address} is not for this user; choose a port from 1024 on, or 0 to have one picked"
    )]
    Forbidden {
        /// What was asked for.
        address: SocketAddr,
    },
    /// Something else is wrong with the machine.
    #[error("no UDP socket at {address}: {source}")]
    Other {
        /// What was asked for.
        address: SocketAddr,
        /// What the kernel said.
        source: io::Error,
    },
}

/// Datagrams of one size to one address; the last may be shorter.
#[derive(Clone, Copy, Debug)]
pub struct Transmit<'a> {
    /// Where they go.
    pub to: SocketAddr,
    /// Which address of ours they come from; the routing table chooses if that is left open.
    pub from: Option<IpAddr>,
    /// What is to be written in their headers.
    pub ecn: Ecn,
    /// Bytes of each but the last. `None`: it is one datagram.
    pub segment: Option<usize>,
    /// Their payloads, one after the other: at most [`SEGMENTS_MAX`], and at most [`TRANSMIT_MAX`] bytes.
    pub bytes: &'a [u8],
}

/// What became of a [`Transmit`].
#[derive(Debug)]
#[must_use]
pub enum Sent {
    /// The kernel took all.
    All,
    /// The kernel's buffer is full: the first `bytes` are taken, the rest can be sent when the socket is writable.
    Blocked {
        /// Bytes that the kernel took.
        bytes: usize,
    },
    /// The first link on the way carries only smaller datagrams: no loss by congestion, but news for the search
    /// for the path's MTU.
    TooLarge,
    /// They did not go: no route, a firewall, an address that is gone. The next may go.
    Failed(io::Error),
}

/// What the kernel gives the socket to hold. It counts its own bookkeeping in, so less of payload fits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Buffers {
    /// For what arrived and is not read.
    pub receive: usize,
    /// For what was sent and is not on the wire.
    pub send: usize,
}

impl Buffers {
    /// How much may be sent at once without being told to wait: small datagrams cost the kernel up to four times
    /// their bytes.
    pub fn burst(&self) -> usize {
        self.send / 4
    }
}

/// What the socket did so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Datagrams taken by the kernel.
    pub sent: u64,
    /// Their bytes.
    pub sent_bytes: u64,
    /// Datagrams that arrived.
    pub received: u64,
    /// Their bytes.
    pub received_bytes: u64,
    /// Sends that met a full buffer.
    pub blocked: u64,
    /// Datagrams too large for the first link.
    pub too_large: u64,
    /// Sends that failed otherwise.
    pub failed: u64,
    /// Batches that the kernel refused to cut.
    pub uncut: u64,
    /// Sends from another address than the one that was asked for, which is gone.
    pub from_elsewhere: u64,
}

impl Socket {
    /// A socket at `address`. `[::]` listens to IPv4 too, and to IPv4 alone where there is no IPv6; port 0 has the
    /// kernel pick one.
    pub fn bind(address: SocketAddr) -> Result<Self, BindError> {
        let (file, bound) = match open(address) {
            Err(Errno::AFNOSUPPORT | Errno::ADDRNOTAVAIL)
                if address.is_ipv6() && address.ip().is_unspecified() =>
            {
                let v4 = SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), address.port());
                (open(v4), v4)
            }
            opened => (opened, address),
        };
        let file = file.map_err(|error| match error {
            Errno::ADDRINUSE => BindError::Taken { address },
            Errno::ADDRNOTAVAIL => BindError::Foreign { address },
            Errno::ACCESS => BindError::Forbidden { address },
            error => BindError::Other { address, source: error.into() },
        })?;
        Self::listening(file, bound).map_err(|source| BindError::Other { address, source })
    }

    fn listening(file: Descriptor, bound: SocketAddr) -> io::Result<Self> {
        let options = options(&file)?;
        let buffers = ask_for_buffers(&file)?;
        let address = SocketAddr::try_from(rustix::net::getsockname(&file)?).unwrap_or(bound);
        Ok(Self { file, options, address, buffers, uncut: Vec::new(), counts: Counts::default() })
    }

    /// Where it listens, with the port that was picked.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Whether datagrams to `to` can be sent at all: not to IPv6 where there is only IPv4.
    pub fn speaks(&self, to: &SocketAddr) -> bool {
        let v6_of_ours = self.address.is_ipv6();
        let v4_too = !v6_of_ours || self.address.ip().is_unspecified();
        if normal(*to).is_ipv4() { v4_too } else { v6_of_ours }
    }

    /// What the kernel gives it to hold.
    pub fn buffers(&self) -> Buffers {
        self.buffers
    }

    /// What it did so far.
    pub fn counts(&self) -> Counts {
        self.counts
    }

    /// Takes what has arrived. `Ok(false)`: nothing.
    pub fn receive(&mut self, batch: &mut Batch) -> io::Result<bool> {
        match batch.fill(|slices, told| self.options.recv(UdpSockRef::from(&self.file), slices, told)) {
            Ok(()) => {
                let (datagrams, bytes) = batch.sum();
                self.counts.received += datagrams;
                self.counts.received_bytes += bytes;
                Ok(true)
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(false),
            // News by ICMP of something sent earlier. Whoever can forge a datagram can forge that too: the
            // protocol finds out by itself.
            Err(error) if is_of_the_network(&error) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Hands datagrams to the kernel.
    pub fn send(&mut self, transmit: &Transmit<'_>) -> Sent {
        debug_assert!(transmit.bytes.len() <= TRANSMIT_MAX || transmit.segment.is_none());
        debug_assert!(transmit.datagrams() <= SEGMENTS_MAX);
        let sent = match transmit.segment.filter(|&segment| segment < transmit.bytes.len()) {
            Some(_) if !self.is_cut_on_the_way_to(transmit.to) => self.send_one_by_one(transmit),
            Some(_) => match self.hand_over(transmit, transmit.bytes, transmit.segment) {
                Err(error) if is_refusal_to_cut(&error) => self.send_uncut(transmit),
                outcome => self.judge(outcome, transmit.bytes.len(), transmit.datagrams(), 0),
            },
            None => {
                let outcome = self.hand_over(transmit, transmit.bytes, None);
                self.judge(outcome, transmit.bytes.len(), 1, 0)
            }
        };
        match &sent {
            Sent::All => {}
            Sent::Blocked { .. } => self.counts.blocked += 1,
            Sent::TooLarge => self.counts.too_large += 1,
            Sent::Failed(_) => self.counts.failed += 1,
        }
        sent
    }

    /// A batch that the kernel would not cut. If its parts go by themselves, it was the cutting that it refused.
    fn send_uncut(&mut self, transmit: &Transmit<'_>) -> Sent {
        self.counts.uncut += 1;
        let before = self.counts.sent;
        let sent = self.send_one_by_one(transmit);
        let to = normal(transmit.to).ip();
        if self.counts.sent > before && self.uncut.len() < UNCUT_MAX && !self.uncut.contains(&to) {
            self.uncut.push(to);
        }
        sent
    }

    fn send_one_by_one(&mut self, transmit: &Transmit<'_>) -> Sent {
        let mut taken = 0;
        let segment = transmit.segment.unwrap_or(transmit.bytes.len());
        for part in transmit.bytes.chunks(segment.max(1)) {
            let outcome = self.hand_over(transmit, part, None);
            match self.judge(outcome, part.len(), 1, taken) {
                Sent::All => taken += part.len(),
                short => return short,
            }
        }
        Sent::All
    }

    /// One call of the kernel; two, if the address that this is to come from is none of ours any more. The routing
    /// table then chooses another: for the peer we have moved, which it knows what to do about.
    fn hand_over(&mut self, transmit: &Transmit<'_>, bytes: &[u8], segment: Option<usize>) -> io::Result<()> {
        let mut handed = quinn_udp::Transmit {
            destination: transmit.to,
            ecn: EcnCodepoint::from_bits(transmit.ecn.bits()),
            contents: bytes,
            segment_size: segment,
            src_ip: transmit.from,
        };
        let outcome = self.options.try_send(UdpSockRef::from(&self.file), &handed);
        let Err(error) = &outcome else { return outcome };
        if is_refusal_to_cut(error)
            && let Ok(options) = options(&self.file)
        {
            // It takes the refusal for that of an old kernel, which cannot do ECN either.
            self.options = options;
        }
        if handed.src_ip.take().is_none() || !may_be_for_the_source(error) {
            return outcome;
        }
        match self.options.try_send(UdpSockRef::from(&self.file), &handed) {
            Ok(()) => self.counts.from_elsewhere += 1,
            Err(_) => return outcome,
        }
        Ok(())
    }

    fn judge(&mut self, outcome: io::Result<()>, bytes: usize, datagrams: usize, taken: usize) -> Sent {
        match outcome {
            Ok(()) => {
                self.counts.sent += datagrams as u64;
                self.counts.sent_bytes += bytes as u64;
                Sent::All
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Sent::Blocked { bytes: taken },
            Err(error) if quinn_udp::is_msg_size_err(&error) => Sent::TooLarge,
            Err(error) => Sent::Failed(error),
        }
    }

    fn is_cut_on_the_way_to(&self, to: SocketAddr) -> bool {
        self.uncut.len() < UNCUT_MAX && !self.uncut.contains(&normal(to).ip())
    }
}

impl Transmit<'_> {
    /// How many datagrams it is.
    pub fn datagrams(&self) -> usize {
        self.segment.map_or(1, |segment| self.bytes.len().div_ceil(segment.max(1)))
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

fn open(address: SocketAddr) -> rustix::io::Result<Descriptor> {
    let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let file = rustix::net::socket_with(family, SocketType::DGRAM, flags, None)?;
    if address.is_ipv6() {
        // Said in both cases: the default is a setting of the machine.
        sockopt::set_ipv6_v6only(&file, !address.ip().is_unspecified())?;
    }
    rustix::net::bind(&file, &address)?;
    Ok(Descriptor::new(file))
}

/// Sets what `quinn-udp` sets: ECN and destination of what arrives, coalescing, and never a fragment by IP, whatever
/// ICMP says (`PMTUDISC_PROBE`).
fn options(file: &Descriptor) -> io::Result<UdpSocketState> {
    let options = UdpSocketState::new(UdpSockRef::from(file))?;
    let off: libc::c_int = 0;
    // It also asks for the time of arrival, which nobody here reads, and which leaves no room for the ECN bits of
    // coalesced IPv4 datagrams at a socket for both families.
    // SAFETY: the option takes an int, which lives through the call.
    let result = unsafe {
        libc::setsockopt(
            file.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_TIMESTAMPNS,
            (&raw const off).cast(),
            size_of_val(&off) as libc::socklen_t,
        )
    };
    if result == 0 { Ok(options) } else { Err(io::Error::last_os_error()) }
}

fn ask_for_buffers(file: &Descriptor) -> io::Result<Buffers> {
    // Whoever may go beyond the machine's limit does; the others get what it allows.
    if sockopt::set_socket_recv_buffer_size_force(file, BUFFER_BYTES).is_err() {
        sockopt::set_socket_recv_buffer_size(file, BUFFER_BYTES)?;
    }
    if sockopt::set_socket_send_buffer_size_force(file, BUFFER_BYTES).is_err() {
        sockopt::set_socket_send_buffer_size(file, BUFFER_BYTES)?;
    }
    Ok(Buffers {
        receive: sockopt::socket_recv_buffer_size(file)?,
        send: sockopt::socket_send_buffer_size(file)?,
    })
}

/// What drivers say that cannot cut batches, or not with a checksum to be filled in.
fn is_refusal_to_cut(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EIO | libc::EINVAL))
}

/// What the kernel says of a source address that no interface has.
fn may_be_for_the_source(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::EINVAL | libc::EADDRNOTAVAIL | libc::ENETUNREACH | libc::ENODEV)
    )
}

fn is_of_the_network(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(
            libc::ECONNREFUSED
                | libc::ECONNRESET
                | libc::EHOSTUNREACH
                | libc::ENETUNREACH
                | libc::EHOSTDOWN
                | libc::ENETDOWN
                | libc::EMSGSIZE
                | libc::EPROTO
                | libc::ENOPROTOOPT
                | libc::EOPNOTSUPP
                | libc::EACCES
                | libc::EPERM
                | libc::ENOBUFS
                | libc::ENOMEM
        )
    )
}
