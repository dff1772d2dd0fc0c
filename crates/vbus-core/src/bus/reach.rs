//! Whom the user named, and how the attempts to reach them go.

use std::net::SocketAddr;
use std::time::Duration;

use crate::base::time::Time;
use crate::transport::Attempt;
use crate::transport::Connection;

/// The pause after an attempt that nobody answered, at first; it doubles up to the last.
const PAUSE_FIRST: Duration = Duration::from_millis(100);
const PAUSE_LAST: Duration = Duration::from_secs(5);
/// The pause after a refusal: a person has to do something about it.
const PAUSE_REFUSED: Duration = Duration::from_secs(5);
/// The pause where nothing is to be gained: who is there is a peer already, or speaks IPv6 and we do not.
const PAUSE_NEEDLESS: Duration = Duration::from_secs(60);
/// Beyond so many tries the pause is the longest.
const TRIES_MAX: u32 = 10;
/// Names of which addresses are tried.
const TARGETS_MAX: usize = 4096;
/// Addresses of one name that are tried.
const ADDRESSES_MAX: usize = 256;

/// Everyone who was named.
#[derive(Default)]
pub(super) struct Targets(Vec<Target>);

struct Target {
    name: String,
    /// How it was found.
    source: String,
    places: Vec<Place>,
}

struct Place {
    address: SocketAddr,
    stage: Stage,
    tries: u32,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// Tried again then.
    Waiting(Time),
    Trying(Attempt),
    Met(Connection),
    /// That is we ourselves.
    Own,
}

/// What an attempt came to.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Outcome {
    Met(Connection),
    Unanswered,
    Refused,
    Own,
}

impl Targets {
    /// Something may be reached at these addresses, too.
    pub(super) fn add(&mut self, name: String, source: String, addresses: &[SocketAddr]) {
        let found = self.0.iter().position(|its| its.name == name && its.source == source);
        let at = match found {
            Some(at) => at,
            None if self.0.len() >= TARGETS_MAX => return,
            None => {
                self.0.push(Target { name, source, places: Vec::new() });
                self.0.len() - 1
            }
        };
        let places = &mut self.0[at].places;
        for &address in addresses {
            if places.len() < ADDRESSES_MAX && places.iter().all(|place| place.address != address) {
                places.push(Place { address, stage: Stage::Waiting(Time::ZERO), tries: 0 });
            }
        }
    }

    /// It is not found so any more.
    pub(super) fn remove(&mut self, name: &str, source: &str) {
        self.0.retain(|its| its.name != name || its.source != source);
    }

    /// An address that is to be tried now, and the name that has it. Told what came of it by `began` or `put_off`.
    pub(super) fn due(&self, now: Time) -> Option<(String, SocketAddr)> {
        let is_due = |place: &&Place| matches!(place.stage, Stage::Waiting(at) if at <= now);
        let due = |target: &Target| {
            let place = target.places.iter().find(is_due)?;
            Some((target.name.clone(), place.address))
        };
        self.0.iter().find_map(due)
    }

    /// The attempt to reach an address began.
    pub(super) fn began(&mut self, address: SocketAddr, attempt: Attempt) {
        for place in self.places_mut().filter(|place| place.address == address) {
            place.stage = Stage::Trying(attempt);
        }
    }

    /// An address need not be tried now.
    pub(super) fn put_off(&mut self, address: SocketAddr, now: Time) {
        for place in self.places_mut().filter(|place| place.address == address) {
            place.stage = Stage::Waiting(now + PAUSE_NEEDLESS);
        }
    }

    /// Whoever is there is a neighbour: memory beats the network.
    pub(super) fn avoid(&mut self, connection: Connection) {
        for place in self.places_mut().filter(|place| place.stage == Stage::Met(connection)) {
            place.tries = TRIES_MAX;
        }
    }

    /// An attempt came to an end.
    pub(super) fn on_outcome(&mut self, attempt: Attempt, outcome: Outcome, now: Time) {
        for place in self.places_mut().filter(|place| place.stage == Stage::Trying(attempt)) {
            place.tries += 1;
            place.stage = match outcome {
                Outcome::Met(connection) => {
                    if place.tries < TRIES_MAX {
                        place.tries = 0;
                    }
                    Stage::Met(connection)
                }
                Outcome::Unanswered => {
                    let pause = PAUSE_FIRST * 2u32.pow(place.tries.min(TRIES_MAX));
                    Stage::Waiting(now + pause.min(PAUSE_LAST))
                }
                Outcome::Refused => Stage::Waiting(now + PAUSE_REFUSED),
                Outcome::Own => Stage::Own,
            };
        }
    }

    /// A peer is gone.
    pub(super) fn on_lost(&mut self, connection: Connection, now: Time) {
        for place in self.places_mut().filter(|place| place.stage == Stage::Met(connection)) {
            let pause = if place.tries == TRIES_MAX { PAUSE_NEEDLESS } else { PAUSE_FIRST };
            place.stage = Stage::Waiting(now + pause);
        }
    }

    /// Names of which nobody is met.
    pub(super) fn names_of(&self, attempt: Attempt) -> Vec<String> {
        let tries = |target: &&Target| target.places.iter().any(|its| its.stage == Stage::Trying(attempt));
        self.0.iter().filter(tries).map(|target| target.name.clone()).collect()
    }

    /// When there is something to try.
    pub(super) fn timeout(&self) -> Option<Time> {
        let at = |place: &Place| match place.stage {
            Stage::Waiting(at) => Some(at),
            _ => None,
        };
        self.places().filter_map(at).min()
    }

    fn places(&self) -> impl Iterator<Item = &Place> {
        self.0.iter().flat_map(|target| &target.places)
    }

    fn places_mut(&mut self) -> impl Iterator<Item = &mut Place> {
        self.0.iter_mut().flat_map(|target| &mut target.places)
    }
}
