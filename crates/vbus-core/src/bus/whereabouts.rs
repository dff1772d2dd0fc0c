//! Where this node is: the addresses that its host has now, and where peers see it.
//!
//! Interfaces come and go, and a lease may bring another address. The kernel tells that something changed; what is
//! there now is read a moment later, for such news come in flocks.

use std::collections::VecDeque;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;

use super::net::NetworkConfig;
use super::node::NodeError;
use crate::base::time::Time;
use crate::transport::parameters::WORDS_MAX;
use crate::udp::{Changes, Interface, interfaces};
use crate::wire::far::Introduction;

const SETTLE: Duration = Duration::from_millis(100);
/// Addresses at which peers see us that are none of the host's, as behind an address translator: the latest.
const OBSERVED_MAX: usize = 4;

/// See the module.
pub(super) struct Whereabouts {
    config: NetworkConfig,
    bound: SocketAddr,
    changes: Option<Changes>,
    look_at: Option<Time>,
    here: Vec<Interface>,
    observed: VecDeque<SocketAddr>,
    said: Introduction,
}

impl Whereabouts {
    /// Of a node whose socket is bound to `bound`, which says `said` of itself.
    pub(super) fn new(
        config: &NetworkConfig,
        bound: SocketAddr,
        said: Introduction,
    ) -> Result<Self, NodeError> {
        // Before the first look, so that nothing is missed between the two.
        let changes = Changes::open();
        let here = interfaces()?;
        for given in &config.interfaces {
            if !here.iter().any(|its| its.is(given)) {
                let mut names: Vec<String> = here.iter().map(|its| its.name.clone()).collect();
                names.dedup();
                return Err(NodeError::Interface { given: given.clone(), there: names.join(", ") });
            }
        }
        let observed = VecDeque::new();
        let mut new = Self { config: config.clone(), bound, changes, look_at: None, here, observed, said };
        new.said.addresses = new.reckon();
        Ok(new)
    }

    /// Readable when something changed; `None` where the system does not tell.
    pub(super) fn changes(&self) -> Option<BorrowedFd<'_>> {
        self.changes.as_ref().map(AsFd::as_fd)
    }

    /// What [`Self::changes`] had to say is taken, and looked at in a moment.
    pub(super) fn on_changes(&mut self, now: Time) {
        self.changes.iter().for_each(Changes::drain);
        self.look_at.get_or_insert(now + SETTLE);
    }

    /// When to look.
    pub(super) fn timeout(&self) -> Option<Time> {
        self.look_at
    }

    /// Looks, if it is time. True: the host has other addresses than before.
    pub(super) fn look(&mut self, now: Time) -> bool {
        if self.look_at.take_if(|at| *at <= now).is_none() {
            return false;
        }
        let Ok(here) = interfaces() else { return false };
        if here == self.here {
            return false;
        }
        self.here = here;
        self.observed.clear();
        self.said.addresses = self.reckon();
        true
    }

    /// A peer sees us there. True: nobody knew that.
    pub(super) fn on_observed(&mut self, address: SocketAddr) -> bool {
        let ip = address.ip();
        let is_own = self.here.iter().any(|its| its.address == ip) || needs_a_link(ip);
        if is_own || ip.is_loopback() || ip.is_unspecified() || self.observed.contains(&address) {
            return false;
        }
        self.observed.truncate(OBSERVED_MAX - 1);
        self.observed.push_front(address);
        self.said.addresses = self.reckon();
        true
    }

    /// Where the node can be reached: addresses that mean something elsewhere first.
    pub(super) fn addresses(&self) -> &[String] {
        &self.said.addresses
    }

    /// What strangers are told of this node, at most so many bytes as fit.
    pub(super) fn words(&self) -> Vec<u8> {
        self.said.encode(WORDS_MAX)
    }

    fn reckon(&self) -> Vec<String> {
        let (config, bound) = (&self.config, self.bound);
        let is_wanted = |its: &&Interface| {
            let by_user = config.interfaces.is_empty() || config.interfaces.iter().any(|given| its.is(given));
            let by_socket = if bound.ip().is_unspecified() {
                bound.is_ipv6() || its.address.is_ipv4()
            } else {
                its.address == bound.ip().to_canonical()
            };
            by_user && by_socket
        };
        let mut own: Vec<_> = self.here.iter().filter(is_wanted).map(|its| its.address).collect();
        if own.is_empty() && config.interfaces.is_empty() && !bound.ip().is_unspecified() {
            // All of 127.0.0.0/8 is this host's, and one address of it is an interface's.
            own.push(bound.ip().to_canonical());
        }
        own.sort_by_key(|address| (address.is_loopback(), address.is_ipv6()));
        let (near, abroad): (Vec<IpAddr>, Vec<IpAddr>) = own.into_iter().partition(IpAddr::is_loopback);
        let with_port = |address: IpAddr| SocketAddr::new(address, bound.port());
        let abroad = abroad.into_iter().map(with_port);
        let seen = self.observed.iter().copied();
        abroad.chain(seen).chain(near.into_iter().map(with_port)).map(|its| its.to_string()).collect()
    }
}

/// Whether it means nothing without the name of a link.
fn needs_a_link(address: IpAddr) -> bool {
    matches!(address, IpAddr::V6(v6) if v6.is_unicast_link_local())
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    fn whereabouts() -> Whereabouts {
        let bound = "0.0.0.0:7000".parse().expect("an address");
        let config = NetworkConfig { listen: bound, open: false, interfaces: Vec::new() };
        Whereabouts::new(&config, bound, Introduction::default()).expect("the kernel tells")
    }

    #[test]
    fn where_peers_see_us_is_told_behind_our_own_addresses_and_before_loopback() {
        let mut here = whereabouts();
        let own = here.addresses().to_vec();
        let seen = |port: u16| SocketAddr::from(([192, 0, 2, 1], port));
        assert!(here.on_observed(seen(1)));
        assert!(!here.on_observed(seen(1)));
        assert!(!here.on_observed(own.last().expect("loopback").parse().expect("an address")));
        assert!(here.addresses().contains(&"192.0.2.1:1".to_owned()));
        assert_eq!(here.addresses().last(), own.last());
        for port in 2..100 {
            assert!(here.on_observed(seen(port)));
        }
        assert_eq!(here.addresses().len(), own.len() + OBSERVED_MAX);
    }

    #[test]
    fn nothing_is_looked_at_before_it_has_settled() {
        let mut here = whereabouts();
        here.on_changes(Time::ZERO);
        assert!(!here.look(Time::ZERO) && here.timeout() == Some(Time::ZERO + SETTLE));
        assert!(!here.look(Time::ZERO + SETTLE) && here.timeout().is_none());
    }
}
