//! Which of the host's addresses a node answers at, where its user named some.

use std::net::IpAddr;
use std::time::Duration;

use super::interfaces::{Interface, all_interfaces};
use crate::base::time::Time;

/// Interfaces get and lose addresses; they are looked at so often at most.
const PAUSE: Duration = Duration::from_secs(1);

/// Lets in what came to an address that the user means.
#[derive(Debug, Default)]
pub struct Doors {
    /// Names of interfaces, or addresses; empty is all.
    given: Vec<String>,
    known: Vec<IpAddr>,
    due: Time,
}

impl Doors {
    /// Interfaces by name, or by an address; none is all.
    pub fn new(given: &[String]) -> Self {
        Self { given: given.to_vec(), ..Self::default() }
    }

    /// Whether a datagram to `to` may in. Where the kernel does not say, it may.
    #[inline]
    pub fn let_in(&mut self, now: Time, to: Option<IpAddr>) -> bool {
        self.given.is_empty() || to.is_none_or(|to| self.is_ours(now, to))
    }

    fn is_ours(&mut self, now: Time, to: IpAddr) -> bool {
        if !self.known.contains(&to)
            && self.due <= now
            && let Ok(there) = all_interfaces()
        {
            self.due = now + PAUSE;
            let is_meant = |its: &&Interface| self.given.iter().any(|given| its.is(given));
            self.known = there.iter().filter(is_meant).map(|its| its.address).collect();
        }
        self.known.contains(&to)
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    #[test]
    fn what_came_elsewhere_stays_outside() {
        let here = IpAddr::from([127, 0, 0, 1]);
        let elsewhere = IpAddr::from([192, 0, 2, 1]);
        for given in [&["lo".to_owned()][..], &["127.0.0.1".to_owned()]] {
            let mut doors = Doors::new(given);
            assert!(doors.let_in(Time::ZERO, Some(here)));
            assert!(!doors.let_in(Time::ZERO, Some(elsewhere)));
        }
        let mut closed = Doors::new(&["192.0.2.7".to_owned()]);
        assert!(!closed.let_in(Time::ZERO, Some(here)));
        assert!(Doors::default().let_in(Time::ZERO, Some(elsewhere)), "nobody named any");
    }
}
