//! News that interfaces or addresses of this host changed.

use std::os::fd::{AsFd, BorrowedFd};

use rustix::net::netlink::SocketAddrNetlink;
use rustix::net::{AddressFamily, RecvFlags, SocketFlags, SocketType};

use crate::base::descriptor::Descriptor;

/// `RTMGRP_LINK`, `RTMGRP_IPV4_IFADDR` and `RTMGRP_IPV6_IFADDR`.
const GROUPS: u32 = 0x1 | 0x10 | 0x100;
/// News that are taken at a time; the rest makes it readable again.
const READS: usize = 64;

/// Readable after something changed. Closed in the child of a fork.
#[derive(Debug)]
pub struct Changes(Descriptor);

impl Changes {
    /// `None` where the system does not tell.
    pub fn open() -> Option<Self> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let file = rustix::net::socket_with(AddressFamily::NETLINK, SocketType::RAW, flags, None).ok()?;
        rustix::net::bind(&file, &SocketAddrNetlink::new(0, GROUPS)).ok()?;
        Some(Self(Descriptor::new(file)))
    }

    /// Takes what waits: that there was something is all that matters, so an overrun does no harm.
    pub fn drain(&self) {
        for _ in 0..READS {
            let mut rest_is_thrown_away = [0; 1];
            match rustix::net::recv(&self.0, &mut rest_is_thrown_away[..], RecvFlags::DONTWAIT) {
                // More came than could be kept.
                Ok(_) | Err(rustix::io::Errno::NOBUFS | rustix::io::Errno::INTR) => {}
                Err(_) => return,
            }
        }
    }
}

impl AsFd for Changes {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
