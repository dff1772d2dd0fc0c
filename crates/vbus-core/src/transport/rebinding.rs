//! Where a path leads, and whether it leads somewhere else now.
//!
//! ```text
//! Here ──newest packet comes from elsewhere──▶ challenged there ──answered──▶ there is here
//!   ▲                                             │ no answer, or a newer packet from here
//!   └─────────────────────────────────────────────┘
//! ```
//! Whoever can send from a new address may only be relaying or replaying. Until it has answered a challenge it gets
//! at most three times the bytes that came from there (RFC 9000 §8.2, §9), and all else goes where it went.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use crate::base::time::Time;
use crate::wire::packet::{HEADER, TAG};

/// Both ends of a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Address {
    /// The peer's.
    pub remote: SocketAddr,
    /// Ours, if the socket told.
    pub local: Option<IpAddr>,
}

/// Bytes out for each byte in, before an address is proved.
const AMPLIFICATION: u64 = 3;
/// Bytes of the smallest packet with a challenge.
const LEAST: u64 = (HEADER + 9 + TAG) as u64;
/// So many challenges without an answer, and the address is forgotten.
const TRIES: u32 = 4;

/// Where a path leads.
#[derive(Debug)]
pub struct Rebinding {
    here: Address,
    there: Option<Candidate>,
    moves: u64,
}

#[derive(Debug)]
struct Candidate {
    address: Address,
    token: [u8; 8],
    /// Bytes that may still be sent there.
    allowed: u64,
    tries: u32,
    next_try: Time,
}

/// The path leads elsewhere now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Moved {
    /// Where it led.
    pub from: Address,
    /// Where it leads.
    pub to: Address,
}

impl Moved {
    /// Only the port differs: an address translator forgot, and the route is the same.
    pub fn keeps_route(&self) -> bool {
        self.from.remote.ip() == self.to.remote.ip()
    }
}

impl Rebinding {
    /// A path to an address that is proved.
    pub fn new(here: Address) -> Self {
        Self { here, there: None, moves: 0 }
    }

    /// Where everything goes.
    pub fn here(&self) -> Address {
        self.here
    }

    /// How often the path moved.
    pub fn moves(&self) -> u64 {
        self.moves
    }

    /// A packet that opened came from `from`. `newest`: none with a higher number came before it, so that no
    /// straggler or copy moves anything. `token` gives bytes that nobody guesses.
    pub fn on_packet(
        &mut self,
        now: Time,
        from: Address,
        bytes: usize,
        newest: bool,
        token: impl FnOnce() -> [u8; 8],
    ) {
        if from.remote == self.here.remote {
            self.here.local = from.local.or(self.here.local);
            if newest {
                self.there = None;
            }
            return;
        }
        let allowed = AMPLIFICATION * bytes as u64;
        match &mut self.there {
            Some(there) if there.address.remote == from.remote => {
                there.allowed = there.allowed.saturating_add(allowed);
            }
            _ if newest => {
                let token = token();
                self.there = Some(Candidate { address: from, token, allowed, tries: 0, next_try: now });
            }
            _ => {}
        }
    }

    /// A challenge should go: where to, and how many bytes it may have at most. To be told by
    /// [`Self::on_challenge_sent`] if it goes.
    pub fn poll_challenge(&mut self, now: Time) -> Option<(Address, [u8; 8], usize)> {
        let there = self.there.as_mut().filter(|there| now >= there.next_try)?;
        if there.tries >= TRIES {
            self.there = None;
            return None;
        }
        if there.allowed < LEAST {
            return None;
        }
        let room = usize::try_from(there.allowed).unwrap_or(usize::MAX);
        Some((there.address, there.token, room))
    }

    /// A challenge of so many bytes went; the next may go after `patience`.
    pub fn on_challenge_sent(&mut self, now: Time, bytes: usize, patience: Duration) {
        if let Some(there) = &mut self.there {
            there.allowed = there.allowed.saturating_sub(bytes as u64);
            there.next_try = now + patience * (1 << there.tries.min(8));
            there.tries += 1;
        }
    }

    /// A response came. If it answers the challenge, the path moves.
    pub fn on_response(&mut self, token: [u8; 8]) -> Option<Moved> {
        let there = self.there.take_if(|there| there.tries > 0 && there.token == token)?;
        let from = std::mem::replace(&mut self.here, there.address);
        self.moves += 1;
        Some(Moved { from, to: self.here })
    }

    /// When [`Self::poll_challenge`] has something to say by itself.
    pub fn timeout(&self) -> Option<Time> {
        let waits = |there: &&Candidate| there.tries > 0 && there.allowed >= LEAST;
        self.there.as_ref().filter(waits).map(|there| there.next_try)
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    const PATIENCE: Duration = Duration::from_millis(100);

    fn address(port: u16) -> Address {
        Address { remote: ([192, 0, 2, 1], port).into(), local: None }
    }

    fn at(ms: u64) -> Time {
        Time::ZERO + Duration::from_millis(ms)
    }

    #[test]
    fn a_path_moves_when_the_new_address_answered_its_challenge() {
        let mut path = Rebinding::new(address(1));
        path.on_packet(at(0), address(2), 400, true, || [7; 8]);
        assert_eq!(path.poll_challenge(at(0)), Some((address(2), [7; 8], 1200)));
        path.on_challenge_sent(at(0), 1200, PATIENCE);
        assert_eq!(path.here(), address(1));
        assert_eq!(path.on_response([8; 8]), None);
        let moved = path.on_response([7; 8]).expect("the token is right");
        assert!(moved.keeps_route() && path.here() == address(2));
        assert_eq!(path.on_response([7; 8]), None);
    }

    #[test]
    fn an_address_that_never_answers_gets_little_and_is_forgotten() {
        let mut path = Rebinding::new(address(1));
        path.on_packet(at(0), address(2), 100, true, || [7; 8]);
        let (mut sent, mut now) = (0, at(0));
        while let Some((_, _, room)) = path.poll_challenge(now) {
            path.on_challenge_sent(now, room.min(120), PATIENCE);
            sent += room.min(120);
            now += 8 * PATIENCE;
        }
        assert!(sent <= 300, "{sent} bytes out for 100 in");
        path.on_packet(now, address(2), 100_000, true, || [7; 8]);
        while path.poll_challenge(now).is_some() {
            path.on_challenge_sent(now, 60, PATIENCE);
            now = path.timeout().expect("it tries again, and then forgets");
        }
        assert_eq!((path.timeout(), path.here()), (None, address(1)));
    }

    #[test]
    fn a_straggler_moves_nothing_and_a_newer_packet_from_here_ends_the_doubt() {
        let mut path = Rebinding::new(address(1));
        path.on_packet(at(0), address(2), 400, false, || [7; 8]);
        assert_eq!(path.poll_challenge(at(0)), None);
        path.on_packet(at(0), address(2), 400, true, || [7; 8]);
        path.on_challenge_sent(at(0), 100, PATIENCE);
        path.on_packet(at(1), address(1), 400, true, || [7; 8]);
        assert_eq!(path.on_response([7; 8]), None);
    }
}
