//! The addresses that this host has.

use std::ffi::CStr;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// An address of an interface that is up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Interface {
    /// The interface's name.
    pub name: String,
    /// One of its addresses.
    pub address: IpAddr,
}

impl Interface {
    /// Whether a user who wrote this means it.
    pub fn is(&self, given: &str) -> bool {
        self.name == given || given.parse() == Ok(self.address)
    }
}

/// Every address of every interface that is up, but for those that mean nothing without the name of a link.
pub fn interfaces() -> io::Result<Vec<Interface>> {
    let needs_a_link = |its: &Interface| matches!(its.address, IpAddr::V6(v6) if v6.is_unicast_link_local());
    let mut found = all_interfaces()?;
    found.retain(|its| !needs_a_link(its));
    Ok(found)
}

/// Every address of every interface that is up.
pub(super) fn all_interfaces() -> io::Result<Vec<Interface>> {
    let mut first = std::ptr::null_mut();
    // SAFETY: `first` is a place for the list's head, which is freed below.
    if unsafe { libc::getifaddrs(&raw mut first) } != 0 {
        return Err(io::Error::last_os_error());
    }
    let mut found = Vec::new();
    let mut next = first;
    // SAFETY: the list is whole until it is freed; its strings and addresses live as long.
    while let Some(its) = unsafe { next.as_ref() } {
        next = its.ifa_next;
        if its.ifa_flags & libc::IFF_UP as u32 == 0 || its.ifa_addr.is_null() {
            continue;
        }
        // SAFETY: as above; the name ends with a zero.
        let name = unsafe { CStr::from_ptr(its.ifa_name) }.to_string_lossy().into_owned();
        // SAFETY: as above; the family says what the address is.
        let address = match i32::from(unsafe { (*its.ifa_addr).sa_family }) {
            libc::AF_INET => {
                // SAFETY: it is one of IPv4.
                let v4 = unsafe { *its.ifa_addr.cast::<libc::sockaddr_in>() };
                IpAddr::V4(Ipv4Addr::from(u32::from_be(v4.sin_addr.s_addr)))
            }
            libc::AF_INET6 => {
                // SAFETY: it is one of IPv6.
                let v6 = unsafe { *its.ifa_addr.cast::<libc::sockaddr_in6>() };
                IpAddr::V6(Ipv6Addr::from(v6.sin6_addr.s6_addr))
            }
            _ => continue,
        };
        found.push(Interface { name, address });
    }
    // SAFETY: `first` came from getifaddrs and is freed once.
    unsafe { libc::freeifaddrs(first) };
    Ok(found)
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn a_host_has_its_loopback_address() {
        let found = interfaces().expect("the kernel tells");
        assert!(found.iter().any(|its| its.address.is_loopback()), "{found:?}");
        assert!(found.iter().all(|its| !its.name.is_empty()));
    }
}
